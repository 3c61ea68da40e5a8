"""The course kit, as teacher and as student: every exercise scores zero as it is handed out and all
points with the solution; wrong solutions lose the points of the tests that they should fail, and no
others. Hostile programs get a verdict, and the grader survives.
"""

import concurrent.futures
import itertools
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest

import checks
import checks_layers
import checks_muon
import exercise
import grade
import reference as ref
import show
import wrong_interventions
import wrong_layers
import wrong_muon
from conftest import ROOT, TEST
from student import differs

SIZES = "d layers heads batch steps base_d".split()  # interventions without flagged lines
# neither trainer has a line of theirs
IN_GPT_H = "warmup schedule wd_independent base_d scale".split()


# ---- show


def test_markers():
    for name in show.FILES:
        show.chunks(show.read(name), name)  # exits where one is not closed
    for text in ("x // [a\n", "x // a]\n", "// [a\n// [a\n"):
        with pytest.raises(SystemExit):
            show.chunks(text)


@pytest.mark.parametrize("name", show.FILES)
def test_few_lines(name):
    """An intervention has at most 25 flagged lines a file."""
    for flag in {c[0] for c in show.chunks(show.read(name), name)}:
        assert show.count(name, flag) <= show.MOST_LINES, flag


def test_same_flags():
    """C and CUDA flag the same interventions, and each of them is in show's table."""
    c, cuda, shared = (
        {chunk[0] for chunk in show.chunks(show.read(name), name)}
        for name in ("train_gpt.c", "train_gpt.cu", "gpt.h")
    )
    assert c == cuda
    assert c | shared | set(SIZES) == set(show.FORMULA)
    assert set(show.FORMULA) <= set(show.flags())


def run(*command, **more):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, **more)


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("flag", show.FORMULA)
def test_show(flag, width):
    out = run(
        sys.executable, TEST / "course" / "show.py", flag, env={**os.environ, "COLUMNS": str(width)}
    )
    assert not out.returncode, out.stderr
    assert all(len(line) <= width for line in out.stdout.splitlines())
    section = show.flags()[flag][0]
    assert ("not in the paper" in out.stdout) == (section in ("ours", "later"))
    wanted = [
        f"{n:5}  "
        for name in show.FILES
        for f, n, _ in show.chunks(show.read(name), name)
        if f == flag
    ]
    assert all(n in out.stdout for n in wanted) and "[" + flag not in out.stdout
    assert ("no flagged lines" in out.stdout) == (flag in SIZES)
    assert (" | " in out.stdout) or width < 160 or flag in IN_GPT_H
    for name, function in re.findall(r"(\S+), (\w+):(?: +\||$)", out.stdout, re.M):
        assert exercise.definition(show.read(name).split("\n"), function)


def test_show_helpers():
    """show names the unmarked functions that only the flagged lines need, where they begin."""
    c, cuda = "train_gpt.c", "train_gpt.cu"
    wanted = {
        ("gate", c): "sigmoid gate_forward gate_backward",
        ("optimizer", c): "product orthogonalize",
        ("optimizer", cuda): "normalize_kernel polynomial_kernel orthogonalize nesterov_kernel",
        ("gate", cuda): "sigmoid gate_forward_kernel gate_forward gate_backward_kernel"
        " gate_backward",
        ("qk_norm", cuda): "layernorm_head layernorm_head_backward sum_heads",
        ("attn_cap", c): "",
        ("clip", c): "",
    }
    for (flag, name), functions in wanted.items():
        found, lines = show.helpers(name, flag), show.read(name).split("\n")
        assert list(found) == functions.split()
        assert all(f"{f}(" in lines[n - 1] and lines[n - 1][-1] != ";" for f, n in found.items())
    gate = run("make", "-s", "show-gate", "COLUMNS=80", cwd=ROOT).stdout
    found = show.helpers(c, "gate")
    where = ", ".join(map(str, found.values()))
    assert f"Only these lines need {', '.join(found)} ({c}:{where})." in " ".join(gate.split())


def test_show_table():
    """Every intervention with its section and help, within the terminal's width."""
    env = {**os.environ, "COLUMNS": "80"}
    out = run(sys.executable, TEST / "course" / "show.py", env=env)
    assert not out.returncode, out.stderr
    assert all(len(line) <= 80 for line in out.stdout.splitlines())
    words = " ".join(line[58:].strip() for line in out.stdout.splitlines())
    for flag, (section, text) in show.flags().items():
        if flag in show.FORMULA:
            assert re.search(rf"^-{flag} +{re.escape(section)} ", out.stdout, re.M), flag
            assert text in words, flag


def test_flags_table():
    """show reads every row of gpt.h's table of flags."""
    rows = show.read("gpt.h").split("FLAGS[] = {")[1].split("\n};")[0]
    assert len(show.flags()) == len(re.findall(r"^    (?:FLAG|NUMBER)", rows, re.M))


def test_show_functions():
    lines = show.read("train_gpt.c").splitlines()
    where = {flag: show.enclosing(lines, n) for flag, n, _ in show.chunks("\n".join(lines))}
    assert where == dict(
        qk_norm="qk_norm_rope_backward",
        kappa="gpt_backward",
        attention="attention_backward",
        z_loss="cross_entropy",
        bf16_logits="gpt_forward",
        mu_param="gpt_update",
        rms_lr="gpt_update",
        wd="gpt_update",
        eps="gpt_update",
        beta2="gpt_update",
        clip="gpt_update",
        attn_cap="attention_backward",
        qk_clip="gpt_update",
        optimizer="gpt_update",
        gate="gpt_backward",
        peri_ln="gpt_backward",
        cautious="gpt_update",
    )


# ---- exercises

WRONG = {**wrong_interventions.WRONG, **wrong_layers.WRONG, **wrong_muon.WRONG}
INTERVENTIONS = {**checks.EXERCISES, **checks_muon.EXERCISES}
NEAR_ZERO = 0
# a grading of train_gpt.cu takes four times as long
CUDA_GRADINGS = [
    ("z_loss cuda", "untouched"),
    ("z_loss cuda", "solution"),
    ("qk_norm cuda", "solution"),
    ("mu_param cuda", "solution"),
    ("clip cuda", "solution"),
    ("attn_cap cuda", "solution"),
    ("qk_clip cuda", "solution"),
    ("eps cuda", "solution"),
    ("beta2 cuda", "solution"),
    ("wd cuda", "solution"),
]
# All take twenty minutes. `make test` plays a tenth of the wrong solutions, the same in every run;
# COURSE=all, which make test_course sets, plays them all.
COURSE = os.environ.get("COURSE") == "all"
# of parallel: a race may hide while other tests keep the processors busy
RACES = "thread|wait|scratch|partial|embedding"


def played(name):
    """The variants of an exercise that are graded now: right ones always."""
    number = list(WRONG).index(name)
    first = ["solution"] if " cuda" not in name else []
    if first and (COURSE or number % 10 == 0):
        first.append("untouched")
    some = [v for i, v in enumerate(WRONG[name]) if COURSE or (i + number) % 10 == 0]
    if name == "parallel" and not COURSE:
        some = [v for v in some if not re.search(RACES, v)]
    return [*first, *(v for v in WRONG[name] if v.startswith("right_") or v in some)]


GRADINGS = CUDA_GRADINGS[:: 1 if COURSE else 3]
GRADINGS += [(name, variant) for name in WRONG for variant in played(name)]


# first hints that are true whatever the mistake is
FACTS = "(?i)not a number|is 0 everywhere|not written|threads have nothing to do|is not part of it"


def student_folder(where, name, variant):
    cases, name, cuda = WRONG.get(name, {}), name.split()[0], "cuda" in name.split()[1:]
    folder = exercise.write(name, where, cuda)
    if variant == "untouched":
        return folder
    changed = exercise.sources(name, cuda)
    texts = {file: show.read(file) for file in changed}
    for file, old, new in cases[variant]["patches"] if variant != "solution" else []:
        assert texts[file].count(old) == 1, (
            f"{name} {variant}: {texts[file].count(old)} times in {file}: {old}"
        )
        texts[file] = texts[file].replace(old, new)
    for file, text in texts.items():
        (folder / file).write_text(text)
    return folder


def graded(folder, *arguments, kit=None, **environment):
    out = run(
        sys.executable,
        (kit or folder / "kit") / "grade.py",
        folder,
        *arguments,
        env={**os.environ, "CC": "cc", "SEED": "", "HINT": "3", **environment},
    )
    assert not out.returncode, out.stderr
    assert all(len(line) <= 80 for line in out.stdout.splitlines()), out.stdout
    result = json.loads((folder / "grade.json").read_text())
    assert (
        result["score"] == sum(t["score"] for t in result["tests"])
        and result["max_score"] == sum(t["max_score"] for t in result["tests"]) == 100
    )
    assert f"of 100, {result['execution_time']} s" in out.stdout
    return result


@pytest.fixture(scope="module")
def gradings(request, tmp_path_factory):
    """The gradings of the selected tests, two at a time: {(exercise, variant): future}."""
    where = tmp_path_factory.mktemp("course")
    wanted = [
        item.callspec.params["grading"]
        for item in request.session.items
        if item.fspath == request.fspath
        and "grading" in getattr(item, "callspec", request).__dict__.get("params", {})
    ]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        yield {
            g: pool.submit(
                lambda g: graded(
                    student_folder(where / "-".join(g).replace(" ", "_"), *g), SEED="1"
                ),
                g,
            )
            for g in wanted
        }


@pytest.mark.parametrize("grading", GRADINGS, ids="-".join)
def test_grading(grading, gradings):
    name, variant = grading
    if name == "parallel" and checks_layers.cores() < 2:
        pytest.skip("one core: two threads take turns")
    result = gradings[grading].result()
    failed = {
        i for i, t in enumerate(result["tests"]) if t["score"] < t["max_score"] or t["output"]
    }
    report = json.dumps(result["tests"], indent=1)
    if variant == "untouched":
        assert result["score"] <= NEAR_ZERO, report
    elif variant == "solution":
        assert result["score"] == 100 and not failed, report
    else:
        case = WRONG[name][variant]
        lost = case["lost"] & set(range(len(result["tests"])))
        assert failed - case["either"] == lost - case["either"], report
        # The first hint names this mistake, is a fact, or is empty: a false one is worse than none.
        hints = {t["hints"][0] for t in result["tests"] if any(t["hints"])} - {""}
        says = case["says"] or "a hint that must not be there"
        named = {hint for hint in hints if says in hint or re.search(says, hint)}
        assert all(re.search(FACTS, hint) for hint in hints - named), report
        assert bool(named) == bool(case["says"]), report


def test_ten_wrong_solutions():
    exercises = {name: cases for name, cases in WRONG.items() if not name.endswith(" cuda")}
    assert set(exercises) == set(exercise.EXERCISES) == set(grade.EXERCISES)
    assert all(len(exercises[name]) >= 10 for name in INTERVENTIONS)
    for cases in wrong_layers.WRONG.values():
        assert sum(not variant.startswith("right_") for variant in cases) >= 10


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_reference(name):
    """The reference's gradients are those of finite differences, at random places."""
    rng = np.random.default_rng(1)
    for change in INTERVENTIONS[name]["cases"]:
        cfg = {**ref.CONFIG, **change}
        p = ref.init(cfg, rng, 0.2)
        batch = rng.integers(cfg["vocab"], size=(2, cfg["batch"], cfg["T"]))
        for n, grad in ref.gradient(cfg, p, *batch)["grads"].items():
            i = rng.integers(grad.size)
            assert grad.flat[i] == pytest.approx(ref.slope(cfg, p, *batch, n, i), 1e-6, 1e-8), n


def reference_answers(cfg, p, g, batch):
    """What each test compares, by the reference, as {test: one array}."""
    one, step = ref.gradient(cfg, p, *batch), cfg["warmup"] + 3
    squares = {n: x * x for n, x in g.items()}
    new = ref.adamw(cfg, p, g, squares, g, step, one["by_head"])
    flat = lambda *parts: np.concatenate([np.ravel(x) for x in parts])
    return dict(
        forward=flat(one["max_attn_logit"], one["loss"], one["log_z"], one["dlogits"]),
        gradient=ref.pack(one["grads"]),
        update=flat(ref.pack(new[0]), new[3], *new[4].values()),
        schedule=np.array([ref.schedule(cfg, t) for t in range(1, cfg["steps"] + 1)]),
        initial=ref.pack(ref.mu_init(cfg, p)),
    )


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_mistakes(name):
    """In the first case, in which a mistake shows first, no two give the same numbers: a hint names
    the one that was made. (That it is the value of another flag is true in any case.)"""
    ex, rng = INTERVENTIONS[name], np.random.default_rng(1)
    cfg = {**ref.CONFIG, **ex["cases"][0]}
    p, g = ref.init(cfg, rng, 0.2), ref.init(cfg, rng, 0.2)
    batch = rng.integers(cfg["vocab"], size=(2, cfg["batch"], cfg["T"]))
    right, found = reference_answers(cfg, p, g, batch), []
    for mistake, words in ex["mistakes"]:
        other = {**cfg, **mistake}
        if all(key.startswith("wrong_") for key in mistake):
            found.append((words, reference_answers(other, p, g, batch)))
    for test, x in right.items():
        wrong = [(words, y[test]) for words, y in found if not np.allclose(y[test], x, 1e-9, 0)]
        for i, (words, y) in enumerate(wrong):
            for others, z in wrong[:i]:
                assert not np.allclose(y, z, 1e-9, 0), (test, words, others)


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_hints(name):
    """Neither the mistake nor the place gives the formula away."""
    ex = INTERVENTIONS[name]
    hints = [h for x in ex["hints"].values() for h in (x.values() if isinstance(x, dict) else [x])]
    for text in [words for _, words in ex["mistakes"]] + [where for where, _ in hints]:
        assert not re.search(r"sqrt|[-+*/^=] ?\(?[a-zA-Z]\w* ?[*/^]|log_z\[i\]", text), text


def test_mistakes_differ():
    """The formulas by which mistakes of a layer are named: right without a mistake, and each
    mistake gives other numbers than any other, so that none is named by another's name."""
    rng = np.random.default_rng(0)
    s, scale = types.SimpleNamespace(rng=rng), 0.3
    numbers, right = checks_layers.attention_case(s, 2, 5, 2, 4, 1, scale)
    attention = lambda m: checks_layers.attention_wrong(numbers, m, scale)
    assert not differs(right, attention(""), 1e-9)
    x, dout, add = rng.standard_normal((3, 4, 6))
    weight, dweight, mean = *rng.standard_normal((2, 6)), x.mean(1)
    given = x, dout, add, weight, dweight, mean, (x.var(1) + 1e-6) ** -0.5
    X, w = ref.Var(x), ref.Var(weight)
    (ref.layernorm(X, w) * dout).sum().backward()
    layernorm = lambda m: checks_layers.layernorm_wrong(given, m, True)
    assert not differs(dict(dx=X.grad + add, dweight=w.grad + dweight), layernorm(""), 1e-9)
    tall = 1e-3 * rng.standard_normal((3, 8, 5))
    muon = lambda m: dict(zip("pmu", ref.muon(*tall, 0.3, 0.4, 0.1, 1, 0.2, m)))
    orthogonal = lambda m: dict(x=ref.orthogonalize(tall[0].T, m))
    inp, branch = rng.standard_normal((2, 2, 1032)) + 2
    norm = lambda m: checks_layers.norm_results(inp * 1e-3, branch * 1e-3, 1 + x.mean(), m)
    y = norm("")["out"].reshape(inp.shape)
    assert abs(y.mean(1)).max() < 1e-9
    slopes = lambda m: dict(
        out=checks_layers.some_of_W(checks_layers.gelu_value(inp[0], m), inp[0], m),
        dinp=checks_layers.some_of_W(
            checks_layers.gelu_slope(inp[0], m) * (1 if m == "no dout" else branch[0]), branch[0], m
        ),
    )
    for results, mistakes in (
        (attention, checks_layers.ATTENTION_MISTAKES),
        (layernorm, checks_layers.LAYERNORM_MISTAKES),
        (orthogonal, checks_muon.OF_MATRIX),
        (muon, checks_muon.OF_MATRIX + checks_muon.OF_STEP),
        (norm, checks_layers.NORM_MISTAKES),
        (slopes, checks_layers.GELU_MISTAKES),
    ):
        names = ["", *(name for name, _ in mistakes)]
        for a, b in itertools.combinations(names, 2):
            assert differs(results(a), results(b), 1e-6), (a, b)


# ---- the folder


@pytest.mark.parametrize(
    "name",
    [
        *exercise.EXERCISES,
        *(
            n + " cuda"
            for n, ex in exercise.EXERCISES.items()
            if "train_gpt.cu" in ex.get("cut", {})
        ),
    ],
)
def test_exercise(name, tmp_path):
    """The folder compiles without a warning; neither it nor its kit holds a line of the
    solution."""
    folder, (name, *cuda) = tmp_path / "handed out", name.split()
    exercise.write(name, folder, bool(cuda))
    compilers = {
        "train_gpt.c": ("cc", "-std=gnu11"),
        "train_gpt.cu": ("g++", "-std=c++17", "-DCUDA_EMU", "-DFP32", "-x", "c++"),
    }
    changed = exercise.sources(name, bool(cuda))
    for file, command in compilers.items():
        if (folder / file).exists():
            out = run(
                *command,
                "-fsyntax-only",
                "-Wall",
                "-Wextra",
                "-Wno-unknown-pragmas",
                "-fopenmp-simd",
                folder / file,
            )
            assert not out.returncode and not out.stderr, out.stderr
    ex = exercise.EXERCISES[name]
    for file in changed:
        assert "TO WRITE" in changed[file]
        flags, pieces = ex.get("flags", (name,)), ex.get("cut", {}).get(file, ())
        flagged = [chunk for chunk in show.chunks(show.read(file), file) if chunk[0] in flags]
        for (_, first, last), piece in zip(flagged, pieces):
            if piece:
                lines = [
                    show.unmarked(line).strip()
                    for line in show.read(file).splitlines()[first - 1 : last]
                ]
                # some stand a second time, in another layer
                assert not any(
                    changed[file].count(line) >= show.read(file).count(line)
                    for line in lines
                    if len(line) > 24 and not line.endswith(("{", "++)"))
                ), lines
    kit = {path.name for path in (folder / "kit").iterdir()}
    assert not kit & {"train_gpt.c", "train_gpt.cu", *changed, "exercise.py"}


def test_exercise_folder(tmp_path):
    """Any name of a folder will do; one that is taken, or cannot be made, is left as it is."""
    make = ("make", "-s", "-o", "build/venv/ready")
    folder = tmp_path / "a teacher's"
    out = run(*make, "exercise-eps", f"DIR={folder}", "VARIANT=3", cwd=ROOT)
    assert not out.returncode and (folder / "kit" / "exercise").read_text() == "eps variant=3\n"
    assert f"grade DIR={shlex.quote(str(folder))}" in out.stdout
    file = tmp_path / "file"
    file.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    full = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))
    for where, text, status, limit in (
        (folder, "is there and not empty; name another with DIR=", 2, None),
        (file, "is there and not empty; name another with DIR=", 2, None),
        (file / "x", "cannot be written: Not a directory", 1, None),
        (tmp_path / "half", "cannot be written: File too large", 1, full),
    ):
        for name in "eps", "stability":
            command = (sys.executable, TEST / "course" / "exercise.py", name, "--dir", where)
            out = run(*command, preexec_fn=limit)
            assert out.returncode == status and out.stderr == f"exercise: {where} {text}\n"
    assert sorted(tmp_path.rglob("*")) == before and file.read_text() == "mine"


def test_make(tmp_path):
    """The commands of the README, in the project and in the folder."""
    folder = tmp_path / "out"
    assert (
        "3.1.2" in run("make", "-s", "show", cwd=ROOT).stdout
        and "cross_entropy" in run("make", "-s", "show-z_loss", cwd=ROOT).stdout
    )
    assert (
        run("make", "-s", "exercise-nothing", cwd=ROOT).returncode
        and run("make", "-s", "show-nothing", cwd=ROOT).returncode
    )
    assert not run("make", "-s", "exercise-eps", f"DIR={folder}", cwd=ROOT).returncode
    built = run("make", "CFLAGS=-O0 -Wall -Wextra -Werror", cwd=folder)
    assert not built.returncode, built.stderr
    trained = run(
        "./train_gpt", "-steps", "3", "-d", "8", "-heads", "1", "-eval_tokens", "64", cwd=folder
    )
    assert not trained.returncode, trained.stderr
    path = {**os.environ, "PATH": os.path.dirname(sys.executable) + ":" + os.environ["PATH"]}
    for command, where in (
        (("make", "-s", "grade"), folder),
        (("make", "-s", "grade", f"DIR={folder}", "EXERCISE=eps"), ROOT),
    ):
        out = run(*command, cwd=where, env=path)
        assert not out.returncode and "0 of 100" in out.stdout, out.stdout + out.stderr
        assert json.loads((folder / "grade.json").read_text())["exercise"] == "eps"
    assert run("make", "-s", "grade", f"DIR={tmp_path}", cwd=ROOT).returncode


# ---- programs that are not to be trusted

START = (
    "#include <sys/socket.h>\n#include <sys/syscall.h>\n"
    "__attribute__((constructor)) static void first(void) { %s }\n"
)
HOSTILE = {  # the program's last lines, and a part of the verdict
    "loops": (START % "for (;;);", "does not end"),
    "waits": (START % "for (;;) pause();", "does not end"),
    "waits_unheard": (
        START % "for (int fd = 0; fd < 20; fd++) close(fd); for (;;) pause();",
        "does not end",
    ),
    "thread_outlives_main": (
        "#include <pthread.h>\n#include <sys/syscall.h>\n"
        + START
        % "pthread_t t; if (!pthread_create(&t, 0, (void *)pause, 0)) syscall(SYS_exit, 0);",
        "does not end",
    ),
    "crashes": (START % "volatile int *volatile nowhere = 0; *nowhere = 1;", "crashed"),
    "aborts": (START % "abort();", "ended by signal|aborted|crashed"),
    "prints": (START % 'for (;;) puts("100 of 100, all is right");', "prints without end"),
    "fills_memory": (START % "for (;;) memset(malloc(1 << 24), 1, 1 << 24);", "crashed|killed"),
    "starts_threads": (
        "#include <pthread.h>\n"
        + START
        % "pthread_t t; for (int i = 0; i < 100000; i++) pthread_create(&t, 0, (void *(*)(void *))"
        "pause, 0); exit(0);",
        "answered 0 bytes|ended with|killed",
    ),
    "exits": (START % 'puts("100 of 100"); exit(0);', "answered 0 bytes"),
    "answers": (
        START
        % "double x[4096]; for (int i = 0; i < 4096; i++) x[i] = 2.5; for (int fd = 3; fd < 20;"
        " fd++) if (write(fd, x, sizeof x) < 0) continue; exit(0);",
        "answered|expected",
    ),
    "does_not_compile": ("int x = ;\n", "does not compile"),
    "endless_include": ('#include "train_gpt.c"\n', "does not compile"),
    "reads_dev_zero": ('#include "/dev/zero"\n', "does not compile"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile(case, tmp_path):
    text, says = HOSTILE[case]
    folder = student_folder(tmp_path / "x", "eps", "solution")
    with open(folder / "train_gpt.c", "a") as file:
        file.write(text)
    result = graded(folder, SECONDS_A_TEST="1")
    assert result["score"] == 0, result
    assert all(
        re.search(says, t["output"]) or "does not end" in t["output"] for t in result["tests"]
    ), result


@pytest.mark.skipif(os.geteuid() != 0, reason="the compiler runs as the user who grades")
def test_secret(tmp_path):
    """Where root grades, a source cannot include what only root reads."""
    secret = tmp_path / "secret"
    secret.write_text("token\n")
    secret.chmod(0o600)
    tmp_path.chmod(0o755)
    for line in f'#include "{secret}"', f"""asm(".incbin \\"{secret}\\"");""":
        folder = student_folder(tmp_path / f"x{len(line)}", "eps", "solution")
        with open(folder / "train_gpt.c", "a") as file:
            file.write(line + "\n")
        verdict = graded(folder)["verdict"]
        assert "does not compile" in verdict and "token" not in verdict, verdict


@pytest.mark.parametrize(
    "line, error",
    [
        ("namespace cg = cooperative_groups;", "cooperative_groups"),
        ("__device__ half twice(half x) { return x + x; }", "half"),
        ("__constant__ float table[4];", "__constant__"),
    ],
)
def test_not_in_the_stand_in(line, error, tmp_path):
    """What the stand-in for CUDA lacks: the compiler's words, and where to look."""
    folder = student_folder(tmp_path / "x", "cuda", "solution")
    text = (folder / "train_gpt.cu").read_text()
    (folder / "train_gpt.cu").write_text(f"{line}\n{text}")
    verdict = graded(folder)["verdict"]
    assert error in verdict and "cuda_emu.h, its stand-in, say" in " ".join(verdict.split())


def test_one_core(tmp_path):
    """On one core the speed is not tested, and the grading says so."""
    folder = student_folder(tmp_path / "x", "parallel", "untouched")
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        result = graded(folder)
    finally:
        os.sched_setaffinity(0, allowed)
    *others, speed = result["tests"]
    assert speed["output"].startswith("one core") and not any(t["score"] for t in others)


def test_nan(tmp_path):
    folder = student_folder(tmp_path / "x", "eps", "solution")
    text = (folder / "train_gpt.c").read_text()
    (folder / "train_gpt.c").write_text(text.replace("    eps = cfg->eps;", "    eps = NAN;"))
    result = graded(folder)
    assert result["score"] == 0 and all("found nan" in t["output"] for t in result["tests"]), result
    assert all("Not a number" in t["hints"][0] for t in result["tests"]), result


def test_confined(tmp_path):
    """A right program that also tries what is forbidden: it does no harm, and gets all points."""
    victim = tmp_path / "victim"
    victim.write_text("here")
    victim.chmod(0o666)
    tmp_path.chmod(0o777)
    folder = student_folder(tmp_path / "x", "eps", "solution")
    with open(folder / "train_gpt.c", "a") as file:
        file.write(
            START
            % "kill(getppid(), 9); kill(-1, 9); syscall(SYS_tgkill, getppid(), getppid(), 9); if"
            # no process has this number: only the filter answers EPERM
            " (syscall(SYS_tgkill, 1 << 29, 1 << 29, 0) == 0 || errno != EPERM) abort();"
            " for (int i = 0; i < 1000; i++) if (!fork()) for"
            f' (;;); if (truncate("{victim}", 0) == 0) puts("truncated"); FILE *f ='
            f' fopen("{victim}", "w"); if (f) fputs("gone", f); f = fopen("{tmp_path}/new", "w");'
            f' if (f) fputs("new", f); rename("{victim}", "{tmp_path}/other");'
            f' unlink("{victim}"); if (socket(AF_INET, SOCK_STREAM, 0) >= 0) abort();'
        )
    assert graded(folder)["score"] == 100
    assert victim.read_text() == "here" and not (tmp_path / "new").exists()


def test_edited_kit(tmp_path):
    """The student edits the tests in the folder to give all points: the teacher's kit does not look
    at them."""
    folder = student_folder(tmp_path / "x", "eps", "untouched")
    honest = graded(folder)
    for name in "driver.c", "reference.py", "gpt.h":
        (folder / "kit" / name).write_text("#error\n")
    shutil.copy(folder / "kit" / "gpt.h", folder / "gpt.h")
    kit = folder / "kit" / "grade.py"
    kit.write_text(
        kit.read_text()
        .replace('one["score"] = points', "pass")
        .replace("score=0, max_score=points", "score=points, max_score=points")
    )
    result = graded(folder, "eps", kit=TEST / "course")
    assert result["score"] == 0 and [t["max_score"] for t in result["tests"]] == [
        t["max_score"] for t in honest["tests"]
    ]
    assert result["kit"] == honest["kit"]


def test_seed(tmp_path):
    """Inputs are drawn anew each time; a seed repeats them."""
    folder = student_folder(tmp_path / "x", "eps", "untouched")
    first, second = graded(folder), graded(folder)
    again = graded(folder, SEED=str(first["seed"]))
    outputs = lambda result: [t["output"] for t in result["tests"]]
    assert outputs(first) == outputs(again) != outputs(second)
