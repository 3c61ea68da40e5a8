"""What a grading notices and says: writes past an array, memory that was never written, results
that depend on the threads, compilers' errors; hints, single tests, whole classes, Gradescope."""

import csv
import json
import os
import pathlib
import pty
import re
import signal
import subprocess
import sys
import tempfile
import time
import zipfile

import pytest

import grade
import sandbox
from conftest import ROOT, TEST
from student import apart, nearest
from test_course import run, student_folder

COURSE = TEST / "course"


def patched(where, name, *patches):
    """The folder of a solution with these texts replaced, each (old, new) or (file, old, new)."""
    folder = student_folder(where, name, "solution")
    for *file, old, new in patches:
        path = folder / (*file, "train_gpt.c")[0]
        text = path.read_text()
        assert text.count(old) == 1, f"{text.count(old)} times: {old}"
        path.write_text(text.replace(old, new))
    return folder


def says(folder, **environment):
    """The output of a grading, with its status; every line fits a terminal."""
    env = {**os.environ, "CC": "cc", "SEED": "1", "HINT": "", "TEST": "", **environment}
    out = run(sys.executable, COURSE / "grade.py", folder, env=env)
    assert all(len(line) <= 80 for line in out.stdout.splitlines()), out.stdout
    out.text = " ".join((out.stdout + out.stderr).split())
    return out


# ---- mistakes that the numbers alone may not show

BLOCK = "    int block = T > 2 * QB ? QB : QB / 2, last = (T - 1) / block * block;\n"
EPS = "    eps = cfg->eps;"
BOUND = "    if (at >= n) return;\n    float x[W], slope;\n    load(x, inp + at);\n    for"
NOTICED = {  # exercise, test, patch, what the grading says
    "past_the_end": (
        "attention_backward",
        "1",
        (BLOCK, BLOCK + "    dqkv[B * T * 3 * C + 1] = 0;\n"),
        "it writes 16 bytes past the end of dqkv (with -d 2 -heads 1 -T 2)",
    ),
    "before_the_start": (
        "attention_backward",
        "1",
        (BLOCK, BLOCK + "    dqkv[-1] = 0;\n"),
        "it writes 8 bytes before the start of dqkv (with -d 2 -heads 1 -T 2)",
    ),
    "an_array_of_the_model": (
        "qk_norm",
        "1",
        ("                from = to;\n", "                mean[head + NH] = 0, from = to;\n"),
        "it writes 8 bytes past the end of qk_mean of layer 0",
    ),
    "a_kernel": (
        "cuda",
        "1",
        ("train_gpt.cu", BOUND, BOUND.replace("    if (at >= n) return;\n", "")),
        "it writes 4064 bytes past the end of out",
    ),
    "reads_past_the_end": (
        "eps",
        "1",
        (EPS, "    eps = cfg->eps + 0 * g->params[g->num_parameters];"),
        "found nan",
    ),
    "never_written": (
        "qk_norm",
        "2",
        ("        sum_chunks(dk_weight, partial + over, (size_t)4 * over, chunks, over);\n", ""),
        "found nan",
    ),
    "not_kept_for_the_backward_pass": (
        "qk_norm",
        "2",
        ("mean + head + h, rstd + head + h, from", "mean + head + h, rstd + head, from"),
        "found nan",
    ),
    "threads": (
        "eps",
        "1",
        (EPS, "    eps = cfg->eps * omp_get_max_threads();"),
        "with 1 thread",
    ),
    "threads_of_a_training": (
        "eps",
        "3",
        (EPS, "    eps = cfg->eps * omp_get_max_threads();"),
        "with 1 thread",
    ),
    "compiler": (
        "eps",
        "1",
        (EPS, "    eps = cfg->epsilon;"),
        "has no member named 'epsilon'",
    ),
    "linker": (
        "eps",
        "1",
        (EPS, "    extern double best(void), worst(void); eps = best() * worst();"),
        "it does not compile: undefined reference to 'best' undefined reference to 'worst'",
    ),
}


@pytest.mark.parametrize("case", NOTICED)
def test_noticed(case, tmp_path):
    name, test, patch, text = NOTICED[case]
    out = says(patched(tmp_path / "x", name, patch), TEST=test)
    assert text in out.text and re.match(r" *0 of [1-9]", out.stdout), out.stdout


def test_quoted(tmp_path):
    """An error and warnings stand above their source line and a caret, each once; a right solution
    has no warning."""
    folder = patched(tmp_path / "x", "eps", (EPS, EPS + " double a, b, c, d;"))
    out = says(folder, TEST="1")
    assert out.stdout.count("unused variable") == 3 and "50 of 50" in out.stdout, out.stdout
    lines = [line.rstrip() for line in out.stdout.splitlines()]
    carets = [i for i, line in enumerate(lines) if line.strip() == "^"]
    code = {lines[i - 1][lines[i].index("^")] for i in carets}
    assert len(code) == 3 and code < set("abcd"), out.stdout
    assert "warning" not in says(student_folder(tmp_path / "y", "eps", "solution")).stdout


def test_apart():
    """The expected and the found number have six digits, or as many as tell them apart."""
    assert apart(0.5, 1 / 3) == "expected 0.5, found 0.333333"
    assert apart(-0.5743672, -0.57436721) == "expected -0.5743672, found -0.57436721"
    assert apart(1e9, 1e9 + 1) == "expected 1000000000, found 1000000001"
    assert apart(0.1, 0.1 + 2**-56) == "expected 0.10000000000000001, found 0.10000000000000002"


# ---- hints, single tests, progress


@pytest.fixture
def open_place():
    """A folder from which any user can run programs."""
    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        place.chmod(0o755)
        yield place


def waiting(where):
    """The folder of a program that never ends."""
    folder = student_folder(where, "eps", "solution")
    with open(folder / "train_gpt.c", "a") as file:
        file.write("__attribute__((constructor)) static void first(void) { pause(); }\n")
    return folder


def interrupt(command, place, programs):
    """Ctrl-C once this many of the students' programs run. Nothing of theirs is left in the process
    table; returns what the command says on standard error."""
    env = {**os.environ, "TMPDIR": str(place), "JOBS": "2", "HINT": "", "TEST": "", "SEED": "1"}
    child = subprocess.Popen(
        command, env=env, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    running = lambda: len(
        re.findall(f"{place}/grade-.*/double ", run("ps", "-A", "-o", "args").stdout)
    )
    deadline = time.monotonic() + 120
    while running() < programs and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(child.pid, signal.SIGINT)
    err = child.communicate(timeout=60)[1]
    assert child.returncode
    left = run("ps", "-A", "-o", "args").stdout
    assert str(place) not in left and not [*place.glob("grade-*")], left
    return err


def test_hints(tmp_path):
    """Each level says more; the last line names the next that does."""
    folder = student_folder(tmp_path / "x", "eps", "untouched")
    seen = [says(folder, TEST="1", HINT=str(level)) for level in range(4)]
    hints = [set(re.findall(r"hint (\d)", out.stdout)) for out in seen]
    levels = hints[3]
    assert levels and hints == [{i for i in levels if int(i) <= n} for n in range(4)]
    for n, out in enumerate(seen):
        further = [i for i in sorted(levels) if int(i) > n]
        assert (f"make grade HINT={further[0]}" if further else "make grade") in out.stdout or (
            not further and "make grade" not in out.stdout
        )
    assert "make grade" not in says(student_folder(tmp_path / "y", "eps", "solution")).stdout


def test_one_test(tmp_path):
    """TEST=number or a part of a title runs only that test, with the inputs of a whole grading, and
    leaves grade.json alone."""
    folder = student_folder(tmp_path / "x", "eps", "untouched")
    whole = says(folder)
    assert whole.text.count('first make "value" right') == 2
    before = (folder / "grade.json").read_text()
    for wanted in "2", "FIVE steps":
        out = says(folder, TEST=wanted)
        assert "0 of 25, " in out.stdout and "1 of 3 tests: grade.json is not written" in out.stdout
        expected = re.search(r"step 1, loss: expected \S+", whole.text)
        assert expected is None or expected[0] in out.text
        found = re.findall(r"expected (\S+), found", out.text)
        assert len(found) == 1 and found[0] in whole.text
        assert "first make" not in out.text
    assert (folder / "grade.json").read_text() == before


@pytest.mark.parametrize(
    "environment, text",
    [
        (dict(HINT="7"), "HINT=7: there are hints 1"),
        (dict(HINT="one"), "HINT=one: there are hints 1"),
        (dict(TEST="nothing"), "TEST=nothing: no test has this number or text; there are: 1 value"),
        (dict(TEST="4"), "TEST=4: no test"),
        (dict(SEED="x"), "SEED=x: a whole number"),
        (dict(EXERCISE="nothing"), "no exercise 'nothing'; there are: qk_norm"),
        (dict(EXERCISE="eps vairant=7"), "'vairant=7' says nothing about an exercise"),
        (dict(EXERCISE="stability"), "no program grades 'stability'"),
        (dict(DIR="/nowhere", EXERCISE="eps"), "DIR=/nowhere is not a folder"),
        (dict(DIR="/dev/null"), "DIR=/dev/null is not a folder"),
        (dict(DIR="/dev"), "/dev is not the folder of an exercise"),
    ],
    ids=str,
)
def test_usage(environment, text, tmp_path):
    """The project's make refuses these with one message, and so does the folder's if it knows the
    variable."""
    folder = student_folder(tmp_path / "x", "eps", "untouched")
    (folder / "kit" / "exercise").write_text("eps\n")
    words = [f"{name}={value}" for name, value in environment.items()]
    path = {**os.environ, "PATH": os.path.dirname(sys.executable) + ":" + os.environ["PATH"]}
    for command, where in (
        (("make", "-s", "grade"), folder),
        (("make", "-s", "-o", "build/venv/ready", "grade", f"DIR={folder}"), ROOT),
    )["EXERCISE" in environment or "DIR" in environment :]:
        out = run(*command, *words, cwd=where, env=path)
        assert out.returncode == 2 and text in " ".join(out.stderr.split()), out.stderr
        assert not out.stdout and not (folder / "grade.json").exists()


def test_no_name(tmp_path):
    """A kit whose exercise has no name in it."""
    (tmp_path / "kit").mkdir()
    (tmp_path / "kit" / "exercise").write_text("")
    out = says(tmp_path)
    assert out.returncode == 2 and "kit/exercise names none" in out.text, out.text


def test_save(tmp_path):
    """A file is replaced at once; where it cannot be, one line says so, and nothing is left."""
    (tmp_path / "a").write_text("old")
    grade.save(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    (tmp_path / "b").mkdir()
    for path in tmp_path / "b", tmp_path / "c" / "d":
        with pytest.raises(SystemExit, match="cannot be written"):
            grade.save(path, b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_interrupted(open_place):
    """Ctrl-C leaves the older grade.json as it was, and no program."""
    folder = waiting(open_place / "x")
    (folder / "grade.json").write_text("old")
    err = interrupt([sys.executable, COURSE / "grade.py", folder], open_place, 1)
    assert err == "\ngrade: interrupted; grade.json is as it was\n"
    assert (folder / "grade.json").read_text() == "old"


def test_progress(tmp_path):
    """On a terminal the test at hand is shown, and then gone."""
    folder = student_folder(tmp_path / "x", "eps", "untouched")
    terminal, its_end = pty.openpty()
    env = {**os.environ, "TEST": "1"}
    command = [sys.executable, COURSE / "grade.py", folder]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=its_end, env=env, check=True)
    os.close(its_end)
    text = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    shown = ["compiling", "test 1 of 3: value: one update", ""]
    assert text.replace("\033[K", "").split("\r")[1:] == shown


@pytest.mark.parametrize("name", grade.EXERCISES)
def test_width(name):
    """A report of every exercise's tests with every hint fits 80 columns."""
    long = "train_gpt.c:1:1: error: " + "a word and another " * 9 + "x" * 70
    result = dict(
        score=0,
        max_score=100,
        execution_time=10.25,
        verdict="it does not compile:\n" + long,
        warnings=[long + "\n  " + "code " * 40],
        tests=[
            dict(name=title, score=0, max_score=points, output=long, hints=[long, long, long])
            for points, title, *_ in grade.tests(name, "cuda" not in name)
        ],
    )
    assert all(len(line) <= 80 for level in range(4) for line in grade.report(result, level))


# ---- threads in the sandbox


def test_sandbox_threads(open_place):
    """A confined program may start threads where it is to have several, but no process."""
    (open_place / "x.c").write_text(
        "#include <omp.h>\n#include <stdio.h>\n#include <unistd.h>\n"
        "int main(void) {\n    int n = 0;\n    if (!fork()) for (;;);\n"
        "    #pragma omp parallel\n    {\n        #pragma omp atomic\n        n++;\n    }\n"
        '    printf("%d threads", n);\n    return 0;\n}\n'
    )
    subprocess.run(["cc", "-fopenmp", "-o", open_place / "x", open_place / "x.c"], check=True)
    for threads in 1, 3:
        assert sandbox.run([str(open_place / "x")], threads=threads)[2] == f"{threads} threads"


# ---- Gradescope


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Gradescope's zip of an exercise with hints of level 1, unpacked as Gradescope does."""
    root = tmp_path_factory.mktemp("autograder")
    make = ("make", "-s", "-o", "build/venv/ready")
    out = run(*make, "autograder-eps", "HINT=1", cwd=ROOT)
    assert not out.returncode and "build/autograder-eps.zip" in out.stdout, out.stderr
    # unlike Python's zipfile, unzip sets the permissions
    out = run("unzip", "-q", ROOT / "build" / "autograder-eps.zip", "-d", root / "source")
    assert not out.returncode, out.stderr
    assert {"setup.sh", "run_autograder"} < {path.name for path in (root / "source").iterdir()}
    assert "HINT=9" in run(*make, "autograder-eps", "HINT=9", cwd=ROOT).stderr
    return root


def on_gradescope(archive, where, files):
    """results.json for a submission of these {path: text}."""
    for path, text in files.items():
        (where / "submission" / path).parent.mkdir(parents=True, exist_ok=True)
        (where / "submission" / path).write_text(text)
    (where / "results").mkdir()
    (where / "source").symlink_to(archive / "source")
    path = os.path.dirname(sys.executable) + ":" + os.environ["PATH"]
    env = {**os.environ, "AUTOGRADER": str(where), "PATH": path, "CC": "cc", "SEED": "1"}
    out = run(archive / "source" / "run_autograder", cwd=where, env=env)
    assert not out.returncode, out.stderr
    assert [path.name for path in (where / "results").iterdir()] == ["results.json"]
    return json.loads((where / "results" / "results.json").read_text())


def test_autograder(archive, tmp_path):
    """The sources alone, the whole folder, and no source: points, messages and hints arrive in
    Gradescope's form."""
    right, stub = (
        (student_folder(tmp_path / name, "eps", name) / "train_gpt.c").read_text()
        for name in ("solution", "untouched")
    )
    seen = on_gradescope(archive, tmp_path / "a", {"train_gpt.c": right, "__MACOSX/notes": ""})
    assert seen["score"] == 100 and seen["output"] == "all is right"
    known = "score execution_time output output_format visibility tests extra_data"
    assert set(seen) == set(known.split())
    known = "name score max_score output output_format visibility"
    assert all(set(test) == set(known.split()) for test in seen["tests"])
    assert seen["extra_data"]["seed"] == 1
    files = {"my work/train_gpt.c": stub, "my work/kit/grade.py": "x", "my work/README.md": ""}
    seen = on_gradescope(archive, tmp_path / "b", files)
    assert seen["score"] == 0 and "expected" in seen["tests"][0]["output"]
    assert "hint 1: This is the value with the flag off" in seen["tests"][0]["output"]
    assert not re.search("hint [23]", json.dumps(seen))
    seen = on_gradescope(archive, tmp_path / "c", {"notes.txt": "sorry"})
    assert seen["score"] == 0 and len(seen["tests"]) == 3
    assert seen["output"] == "train_gpt.c is missing: hand in train_gpt.c"


def test_autograder_words():
    """A variant has a zip beside the standard one; wrong words make none."""
    make = ("make", "-s", "-o", "build/venv/ready")
    out = run(*make, "autograder-eps", "VARIANT=7", cwd=ROOT)
    assert out.stdout.startswith("build/autograder-eps-variant-7.zip: "), out.stderr
    with zipfile.ZipFile(ROOT / "build" / "autograder-eps-variant-7.zip") as file:
        assert file.read("kit/exercise") == b"eps variant=7\n"
        assert file.read("kit/hint") == b"0\n"
    assert "hand in train_gpt.cu\n" in run(*make, "autograder-cuda", "CUDA=1", cwd=ROOT).stdout
    for words, text in (
        (("autograder-stability",), "no program grades 'stability'"),
        (("autograder-eps", "VARIANT=a b"), "'variant=a b' says nothing about an exercise"),
        (("autograder-matmul", "CUDA=1"), "matmul has no lines in train_gpt.cu"),
    ):
        out = run(*make, *words, cwd=ROOT)
        assert out.returncode and f"autograder: {text}" in out.stderr, out.stderr
    assert not (ROOT / "build" / "autograder-matmul-cuda.zip").exists()


def test_nearest():
    """The folder with the most of the files; of several, the one nearest to the top."""
    paths = [pathlib.Path(p) for p in ("gpt.h", "a/gpt.h", "a/train_gpt.c", "a/b/train_gpt.c")]
    assert nearest(paths, None) == pathlib.Path("a")
    assert nearest([*paths, pathlib.Path("train_gpt.c")], None) == pathlib.Path()
    assert nearest([], "top") == "top"


# ---- a class


def test_grade_all(tmp_path):
    """A row for every submission, in order: folders, zip files and C files with any name, and ones
    that cannot be read."""
    right = (student_folder(tmp_path / "right", "eps", "solution") / "train_gpt.c").read_text()
    stub = (student_folder(tmp_path / "stub", "eps", "untouched") / "train_gpt.c").read_text()
    folder = tmp_path / "a teacher's class"
    for name, text in (
        ("Anna B/deep/train_gpt.c", right),
        ("bob.c", stub),
        ("empty/notes", ""),
        ("junk.zip", "junk"),
        ("wrong/train_gpt.c", "int x = ;"),
        ("grades.csv", "old"),
        ("slides.pdf", ""),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "link").mkdir()
    (folder / "link" / "train_gpt.c").symlink_to("/dev/zero")
    with zipfile.ZipFile(folder / "zoe's.zip", "w") as file:
        file.writestr("x/train_gpt.c", right)
        file.writestr("x/kit/driver.c", "#error\n")
    make = ("make", "-s", "-o", "build/venv/ready", "grade-all", f"DIR={folder}")
    before = sorted(folder.rglob("*"))
    refused = run(*make, "EXERCISE=eps", cwd=ROOT)
    assert refused.returncode and "grades.csv is not a table of this program's" in refused.stderr
    assert (folder / "grades.csv").read_text() == "old"
    (folder / "grades.csv").write_text("name,score,old")
    out = run(*make, "EXERCISE=eps", "JOBS=2", "SEED=5", "TEST=1", cwd=ROOT)
    assert not out.returncode, out.stderr
    assert out.stdout.startswith("passed over: slides.pdf\n1 of 7")
    assert "7 of 7: " in out.stdout and "s left)" in out.stdout and "SEED=5" in out.stdout
    assert all(len(line) <= 80 for line in out.stdout.splitlines()[:-1])
    assert sorted(folder.rglob("*")) == before, "a file was left"
    head, *rows = csv.reader((folder / "grades.csv").open())
    titles = [test[1] for test in grade.tests("eps")]
    assert head == ["name", "score", *titles, "verdict", "seconds"]
    seen = {row[0]: (row[1], row[-2]) for row in rows}
    names = ["Anna B", "bob.c", "empty", "junk.zip", "link", "wrong", "zoe's.zip"]
    assert list(seen) == names
    assert seen["Anna B"] == seen["zoe's.zip"] == ("100", "all is right")
    wrong = ["expected", "is missing", "cannot be read", "not a plain file", "int x = ;"]
    for name, text in zip(names[1:6], wrong):
        assert seen[name][0] == "0" and text in seen[name][1], seen


def test_grade_all_usage(tmp_path):
    """Wrong words: one line, and no grading."""
    (tmp_path / "anna").mkdir()
    (tmp_path / "slides.pdf").write_text("")
    make = ("make", "-s", "-o", "build/venv/ready", "grade-all", f"DIR={tmp_path}")
    for words, text in (
        ("", "say which exercise it is"),
        ("EXERCISE=nothing", "no exercise 'nothing'"),
        ("EXERCISE=eps JOBS=0", "JOBS=0: a whole number from 1 on"),
        ("EXERCISE=eps JOBS=x", "JOBS=x: a whole number"),
        ("EXERCISE=eps DIR=/x", "DIR=/x is not a folder"),
        ("EXERCISE=eps DIR=", "DIR= is not a folder"),
        ("EXERCISE=eps DIR=figures/gpu", "figures/gpu holds no submission"),
    ):
        out = run(*make, *words.split(), cwd=ROOT)
        assert out.returncode and f"grade-all: {text}" in out.stderr and not out.stdout, out.stderr


def test_grade_all_interrupted(open_place):
    """Ctrl-C leaves the older table as it was, and no process."""
    for name in "abc":
        waiting(open_place / "all" / name)
    (open_place / "all" / "grades.csv").write_text("name,score,old")
    command = [sys.executable, COURSE / "grade_all.py", open_place / "all", "eps"]
    assert "grade: interrupted" in interrupt(command, open_place, 2)
    assert (open_place / "all" / "grades.csv").read_text() == "name,score,old"
