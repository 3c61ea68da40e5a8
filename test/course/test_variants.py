"""The variants of the exercises: for each seed the right solution with the variant's names and
number gets all points, the standard one does not, and the folder holds neither."""

import os
import re

import pytest

import exercise
import reference
import show
import variants
from test_course import graded, run
from test_handouts import ANSWERS

SEEDS = "7", "8", "spring-2027"
# exercise: what the number changes in the project's solution; {} is the number
RIGHT = {
    "clip": [
        ("train_gpt.c", "clip_scale = cfg->clip / norm", "clip_scale = {} * cfg->clip / norm")
    ],
    "eps": [("train_gpt.c", "    eps = cfg->eps;", "    eps = cfg->eps / pow(cfg->d, {});")],
    "beta2": [
        ("train_gpt.c", "    beta2 = cfg->beta2;", "    beta2 = pow(cfg->beta2, {});"),
    ],
    "warmup": [
        (
            "gpt.h",
            "return cfg->lr * step / cfg->warmup;",
            "return cfg->lr * ({} + (1 - {}) * step / cfg->warmup);",
        )
    ],
    "wd": [("gpt.h", "lr / cfg->lr : lr)", "lr / cfg->lr : lr / {})")],
    "z_loss": [("train_gpt.c", "z_loss * log_z[i];", "z_loss * (log_z[i] - ({}));")],
    "qk_norm": [
        (
            "train_gpt.c",
            "                from = to;\n",
            "                for (int c = 0; c < C; c++) to[c] *= {};\n"
            + " " * 16
            + "from = to;\n",
        ),
        (
            "train_gpt.c",
            "                    size_t head = ((size_t)row * 2 + i) * NH;\n",
            "                    size_t head = ((size_t)row * 2 + i) * NH;\n"
            "                    for (int c = 0; c < C; c++) d[c] *= {};\n",
        ),
    ],
    "attn_cap": [
        (
            "train_gpt.c",
            "    real e = exponential(-2 * fabs(s) / cap), inverse = reciprocal(1 + e);\n"
            "    *slope = 4 * e",
            "    real e = exponential(-2 * ({}) * fabs(s) / cap), inverse = reciprocal(1 + e);\n"
            "    *slope = ({}) * 4 * e",
        )
    ],
    "qk_clip": [("train_gpt.c", "= sqrt(tau / largest);", "= sqrt({} * tau / largest);")],
    "muon": [("train_gpt.c", "size = (real)0.2 * sqrt(", "size = (real){} * sqrt(")],
    "mu_param": [("gpt.h", "? 1 / mu_m(cfg) : 1;", "? pow(mu_m(cfg), -{}) : 1;")],
}


def solution(name, seed, right):
    """{file: the project's text in the names of the variant and, if right, with its number}"""
    out = {}
    for file in exercise.sources(name):
        text = show.read(file)
        for where, old, new in RIGHT[name] if right else ():
            (value,) = variants.number(name, seed).values()
            if where == file:
                assert text.count(old) == 1, (name, old)
                text = text.replace(old, new.replace("{}", str(value)))
        out[file] = exercise.renamed(name, file, text, variants.names(name, seed))
    return out


def folder_with(where, name, seed, right):
    folder = exercise.write(name, where, variant=seed)
    for file, text in solution(name, seed, right).items():
        (folder / file).write_text(text)
    return folder


def test_every_number_has_a_right_solution():
    assert set(RIGHT) == set(variants.NUMBERS)
    keys = [key for key, *_ in variants.NUMBERS.values()]
    assert sorted(keys) == sorted(reference.STANDARD)
    assert not any(
        reference.STANDARD[key] in values for key, values, *_ in variants.NUMBERS.values()
    )


@pytest.mark.parametrize("seed", SEEDS if os.environ.get("COURSE") == "all" else SEEDS[:1])
@pytest.mark.parametrize("name", RIGHT)
def test_right(name, seed, tmp_path):
    result = graded(folder_with(tmp_path / "x", name, seed, True), SEED="1")
    assert result["score"] == 100, result


@pytest.mark.parametrize("name", RIGHT)
def test_standard(name, tmp_path):
    """The grading says what it is, with the first hint and not before."""
    result = graded(folder_with(tmp_path / "x", name, SEEDS[0], False), SEED="1")
    assert result["score"] < 100, result
    says = "This is the solution of the standard variant."
    assert says in [test["hints"][0] for test in result["tests"] if test["hints"]]
    assert says not in str([test["output"] for test in result["tests"]])


@pytest.mark.parametrize("name", exercise.EXERCISES)
def test_folder(name, tmp_path):
    """It compiles, its names are new ones, its README says the number, and the questions are the
    same in another order. Without a seed nothing changes."""
    standard = exercise.write(name, tmp_path / "standard")
    assert (standard / "kit" / "exercise").read_text() == name + "\n"
    assert variants.names(name, None) == {} == variants.number(name, None)
    readmes, questions = set(), lambda text: set(re.findall(r"(?m)^\d+\. (.*)", text))
    for seed in SEEDS:
        folder = exercise.write(name, tmp_path / seed, variant=seed)
        names = variants.names(name, seed)
        assert len(set(names.values())) == len(names)
        for file, text in exercise.sources(name, variant=seed).items():
            compiler = ["g++", "-std=c++17", "-DCUDA_EMU", "-DFP32", "-x", "c++"]
            if not file.endswith(".cu"):
                compiler = ["cc", "-std=gnu11", "-x", "c"]
            warnings = ["-fsyntax-only", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
            out = run(*compiler, *warnings, folder / ("train_gpt.c" if file == "gpt.h" else file))
            assert not out.returncode and not out.stderr, out.stderr
            was, functions = show.read(file), exercise.around(name, file, show.read(file))
            for old, new in names.items() if functions else ():
                assert not re.search(rf"\b{old}\b", "".join(bodies(text, functions))), old
                assert not re.search(rf"\b{new}\b", "".join(bodies(was, functions))), new
        text = (folder / "README.md").read_text()
        says = variants.sentence(name, seed)
        assert not any(re.search(answer, says) for answer in ANSWERS[name])
        assert says in " ".join(text.split()) and bool(says) == (name in RIGHT)
        sources = re.sub(r"\s*//\s*", " ", "".join(exercise.sources(name, variant=seed).values()))
        assert says in sources
        page = variants.in_prose((standard / "README.md").read_text(), names)
        assert questions(text) == questions(page)
        readmes.add(text.replace(says, ""))
    assert len(readmes) > 1


def bodies(text, functions):
    """The code of the functions, without comments."""
    lines = text.split("\n")
    for function in functions:
        start, _, end = exercise.definition(lines, function)
        yield re.sub(r"//.*|\w+(->|\.)\w+|\"[^\"\n]*\"", "", "\n".join(lines[start : end + 1]))


def test_errors(tmp_path):
    command = ["make", "-s", "-o", "build/venv/ready", "exercise-eps", f"DIR={tmp_path / 'x'}"]
    bad = run(*command, "VARIANT=a b", cwd=exercise.ROOT)
    assert bad.returncode and "VARIANT=a b is not a seed" in bad.stderr
    both = run(*command, "VARIANT=7", "CUDA=1", cwd=exercise.ROOT)
    assert both.returncode and "leave CUDA=1 or VARIANT out" in both.stderr
    assert not run(*command, "VARIANT=7", cwd=exercise.ROOT).returncode
    assert (tmp_path / "x" / "kit" / "exercise").read_text() == "eps variant=7\n"
    # the teacher's word counts, not the folder's
    (tmp_path / "x" / "kit" / "exercise").write_text("eps")
    result = graded(tmp_path / "x", "eps", "variant=7", kit=exercise.HERE)
    assert result["score"] == 0
