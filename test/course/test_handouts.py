"""The handouts: their commands run, their points add up to 100, their names exist, and none gives
away what it asks, or what a later one asks."""

import contextlib
import functools
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

import exercise
import grade
import show
from conftest import ROOT, TEST

sys.path.append(str(ROOT))
import plot

# The order of the course, and for each exercise what no handout may say up to its own
ANSWERS = {
    "clip": (r"clip / \w*norm", r"c ?/ ?\|g\|"),
    "eps": (r"= cfg->eps",),
    "beta2": (r"= cfg->beta2",),
    "warmup": (r"(step|t) / (cfg->)?warmup", r"lr (\* )?(step|t) /"),
    "wd": (r"lr(_t)? / (cfg->)?lr", r"lr_t / lr"),
    "z_loss": (r"2 (\* )?(c|z_loss) (\* )?log",),
    "layernorm": (r"(average|mean)\(g", r"g_[ij] - ", r"g\[j\] - ", r"(rstd|r) (\* )?\(g"),
    "qk_norm": (r"layernorm_row\(to", r"sqrt\(HS\) (times|\*? ?max)", r"p \(1 - p\)"),
    "attn_cap": (r"1 - \w*tanh", r"4 ?\*? ?e ?/", r"tanh\(.*\)\^2", r"sech|cosh"),
    "qk_clip": (r"sqrt\(tau", r"tau / (largest|S\b)"),
    "mu_param": (r"(1|lr) ?/ ?m\b", r"sqrt\(base_d\)", r"1 ?/ ?HS\b"),
    "attention_backward": (r"\(dp(_ij|_b)? - ", r"d[qkv] = ", r"sum of p_ij dp_ij is"),
    "matmul": (r"sum\[i\]\[",),
    "parallel": (r"\+= CHANNELS", r"channels? (for|of|is) (each|a) task"),
    "muon": (r"a s \+ b s", r"sqrt\((the )?longer", r"0\.2 (\* )?sqrt", r"300 C", r"p_?\(S\^2"),
    "cuda": (r"s \+ x s \(1 - s\)",),
}
HANDOUTS = [*exercise.EXERCISES, *grade.SHEETS]
IN_CUDA = [name for name, ex in exercise.EXERCISES.items() if "train_gpt.cu" in ex.get("cut", {})]
PAGES = [*HANDOUTS, *(name + " cuda" for name in IN_CUDA)]


def page(name, folder=None):
    """The README.md that students get."""
    name, *cuda = name.split()
    if name in grade.SHEETS:
        return exercise.readme(name)
    return exercise.readme(name, exercise.sources(name, bool(cuda)), bool(cuda))


@functools.cache
def solution(name):
    """The lines of code that the exercise takes out."""
    out = []
    for file, text in exercise.sources(name, True).items():
        kept = {show.unmarked(line).strip() for line in text.splitlines()}
        for line in map(str.strip, map(show.unmarked, show.read(file).splitlines())):
            if line not in kept and len(line) > 16 and not line.startswith(("//", "#", "static")):
                out.append(line.split("  //")[0].strip())
    return out


def test_every_handout():
    """Every exercise has a handout, and a place in the course."""
    files = {path.stem for path in (TEST / "course" / "handouts").glob("*.md")}
    assert files == set(HANDOUTS)
    assert set(ANSWERS) == set(exercise.EXERCISES)


@pytest.mark.parametrize("name", PAGES)
def test_page(name):
    """Two pages of at most 100 columns, with the same parts, and nothing left to fill in."""
    text = page(name)
    lines = text.splitlines()
    assert len(lines) <= 120 and max(map(len, lines)) <= 100
    assert not re.search(r"[{}]", text)
    heads = re.findall(r"(?m)^## (.*)", text)
    assert heads[0] == "The folder" and heads[1].startswith("Background")
    assert re.match(r"Explain( \(\d+ points\))?$", heads[-2]) and heads[-1] == "Hand in"
    tasks = [head for head in heads if head.startswith("Task")]
    assert [int(re.search(r"\d+", task)[0]) for task in tasks] == [*range(1, len(tasks) + 1)]
    assert all(word in text for word in ("**Time**", "**You need**", "At most four sentences"))


@pytest.mark.parametrize("name", PAGES)
def test_points(name):
    """The tasks' points are those of the grading, and each test belongs to a task."""
    text = page(name)
    found = [
        float(n)
        for head in re.findall(r"(?m)^## .*?\(([\d. +]+) points", text)
        for n in head.split("+")
    ]
    assert sum(found) == 100, found
    name, *cuda = name.split()
    if name in grade.SHEETS:
        return
    titles = [test[1] for test in grade.tests(name, bool(cuda))]
    asked = [words for words in re.findall(r'make grade TEST="(.*?)"', text) if words != "..."]
    for words in asked:
        assert any(words in title for title in titles), words
    for title in titles:
        assert any(words in title for words in asked), title


@pytest.mark.parametrize("name", HANDOUTS)
def test_gives_nothing_away(name):
    order = list(ANSWERS)
    text = page(name)
    here = order.index(name) if name in order else 0
    for later in order[here:]:
        for pattern in ANSWERS[later]:
            assert not (found := re.search(pattern, text)), (later, found)
    plain = " ".join(text.split())
    for other in exercise.EXERCISES:
        for line in solution(other):
            assert line not in plain, (other, line)
    for line in show.FORMULA.get(name, "").splitlines():
        assert line not in plain


@pytest.mark.parametrize("name", [n for n, ex in exercise.EXERCISES.items() if "hides" in ex])
def test_comments_give_nothing_away(name):
    """Nor do the comments that stay in the sources."""
    for file, text in exercise.sources(name, True).items():
        for pattern in ANSWERS[name]:
            assert not re.search(pattern, text), (file, pattern)


def test_lectures_give_nothing_away():
    """Nor do the lectures, but for what they keep until a sheet is in."""
    text = (TEST / "course" / "lectures.md").read_text()
    kept = r"(?ms)^\*\*When that sheet is in\*\*$.*?(?=^## |\Z)"
    told, number = re.subn(kept, "", text)
    assert number == 3  # hours 2 to 4
    for name, patterns in ANSWERS.items():
        for pattern in patterns:
            assert not (found := re.search(pattern, told)), (name, found)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the whole program, built, and the log of one run."""
    folder = tmp_path_factory.mktemp("handouts") / "stability"
    exercise.write_sheet("stability", folder)
    out = run("make CFLAGS=-O1", folder)
    assert not out.returncode, out.stderr
    short = "-lr 1e-2 -steps 1 -d 8 -heads 1 -eval_tokens 64"
    out = run(f"./train_gpt {short} -out runs/names", folder)
    assert not out.returncode, out.stderr
    return folder


def run(command, folder):
    path = os.path.dirname(sys.executable) + ":" + os.environ["PATH"]
    return subprocess.run(
        command,
        shell=True,
        cwd=folder,
        capture_output=True,
        text=True,
        env={"OMP_NUM_THREADS": "1", **os.environ, "PATH": path},
    )


def commands(text):
    """The commands of a page, in order: each begins a line of code, or stands in backquotes."""
    lines = [m[1] for m in re.finditer(r"(?m)^    (\S.*)", text)]
    for line in lines + re.findall(r"`([^`]*)`", text):
        command = re.split(r"  +", line)[0]
        if re.match(r"(\w+=\S+ )*(\./|make|python3|grep|cut|tail)", command):
            yield command


@pytest.mark.parametrize("name", HANDOUTS)
def test_commands(name, built, tmp_path):
    """Each command runs, a training for two steps, and leaves the picture that the page names. The
    sheets' and the interventions' run on the whole program."""
    folder, text = tmp_path / "x", page(name)
    shutil.copytree(built, folder)
    for command in commands(text):
        if re.match(r"(\w+=\S+ )*make grade|make$|\w+=n |grep|.*train_gpt_cu", command):
            continue  # test_grading, test_make, test_exercise, test_cuda_commands
        if command.startswith("python3 plot.py "):  # here: starting it anew takes seconds
            with contextlib.chdir(folder):
                assert not plot.main(shlex.split(command)[2:]), command
            continue
        short = " -steps 2 -warmup 1 -eval_tokens 64" if "train_gpt" in command else ""
        out = run(command + short, folder)
        assert not out.returncode, (command, out.stdout, out.stderr)
    for picture in re.findall(r"runs/[\w./-]+\.(?:png|csv)", text):
        assert (folder / picture).exists(), picture


@pytest.mark.parametrize("name", HANDOUTS)
def test_names(name, built, tmp_path):
    """What stands in backquotes exists: flags, functions, variables, files, columns of log.csv."""
    columns = (built / "runs" / "names" / "log.csv").read_text()
    folder = tmp_path / "x"
    if name in grade.SHEETS:
        exercise.write_sheet(name, folder)
    else:
        exercise.write(name, folder)
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "README.md"]
    there = columns + " ".join(path.name + " " + path.read_text() for path in files)
    for quoted in re.findall(r"`([^`]+)`", page(name)):
        for flag in re.findall(r"(?:^|\s)-([a-z]\w+)", quoted):
            assert flag in show.flags(), quoted
        if re.fullmatch(r"[A-Za-z_]\w+(->\w+|\(\))?", quoted):
            assert quoted in there or quoted in HANDOUTS, quoted


def test_cuda_commands(tmp_path):
    """train_gpt.cu compiles as it is handed out, and trains to nan, as the page says."""
    folder = exercise.write("cuda", tmp_path / "x")
    text = page("cuda").replace("make train_gpt_cu_emu", "make CFLAGS=-O1 train_gpt_cu_emu")
    first, second = [c for c in commands(text) if c.endswith("-eval_tokens 64")]
    assert "-O1" in first
    out = run(first, folder)
    assert not out.returncode and "nan" in out.stdout + out.stderr, out.stderr
    shutil.copy(show.ROOT / "train_gpt.cu", folder)
    out = run(first.split(" && ")[0] + " && " + second, folder)
    assert not out.returncode and "nan" not in out.stdout + out.stderr, out.stdout


@pytest.mark.parametrize("name", exercise.EXERCISES)
def test_trains_without(name, tmp_path):
    """train_gpt.c compiles and trains as it is handed out, and so do its other files."""
    folder = exercise.write(name, tmp_path / "x")
    out = run("make CFLAGS=-O0 train_gpt", folder)
    assert not out.returncode, out.stderr
    out = run("./train_gpt -lr 1e-2 -steps 3 -d 8 -heads 1 -eval_tokens 64 -log_every 1", folder)
    assert not out.returncode and "nan" not in out.stdout + out.stderr, out.stdout


def test_sheet(tmp_path):
    """A sheet has all lines; make grade, there and here, says what to do in its place."""
    folder = exercise.write_sheet("stability", tmp_path / "x")
    assert (folder / "train_gpt.c").read_text() == show.read("train_gpt.c")
    out = run("make -s grade", folder)
    assert not out.returncode and "No program grades" in out.stdout and "prediction" in out.stdout
    graded = run(f"{sys.executable} {TEST / 'course' / 'grade.py'} {folder}", tmp_path)
    assert graded.returncode and "no program grades" in graded.stderr
    exercises = f"{sys.executable} {TEST / 'course' / 'exercise.py'} stability --dir"
    for wrong, says in ((f"{folder}", "not empty"), (f"{tmp_path}/y --cuda", "no lines to write")):
        out = run(f"{exercises} {wrong}", tmp_path)
        assert out.returncode and says in out.stderr
