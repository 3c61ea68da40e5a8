"""Grades an exercise: grade.py [DIR [EXERCISE]]. Prints points and mistakes, and writes
DIR/grade.json. HINT=1, 2 and 3 say more of each mistake; TEST=name or number runs only those tests.

It reads only the sources of the exercise from the student's folder. It builds them with this
folder's driver in a temporary folder and runs them as processes that may only compute
(sandbox.py). Each grading draws new inputs (SEED=n repeats one). reference.py computes the right
answers after the student's program has ended, so that the program cannot print them. The effect of
a training is measured here, on the weights that the program trained."""

import hashlib
import json
import os
import pathlib
import re
import secrets
import shutil
import sys
import textwrap
import time

import numpy as np

import checks
import checks_layers
import checks_muon
import variants
from checks import cuda_forward, cuda_gradient, cuda_steps, forward
from sandbox import Endless, Wrong
from student import Student, kit_file

EXERCISES = {**checks.EXERCISES, **checks_layers.EXERCISES, **checks_muon.EXERCISES}
SHEETS = ("stability",)  # handouts that no program grades
# What a student's folder needs to grade itself
MODULES = "grade checks checks_layers checks_muon student sandbox reference variants".split()
KIT_FILES = [*(name + ".py" for name in MODULES), "driver.c", "kit.h", "naive.c"]


THREADS = (
    "",
    "Two tasks write to the same place, or the order of a sum depends on which thread is first.",
    "Each task of an `omp taskloop` writes to a part of memory that no other task writes to.",
)


def tests(name, cuda=False):
    """The exercise's tests; with train_gpt.cu, half of the points are for it."""
    out = EXERCISES[name]["tests"]
    if not cuda:
        return out
    more = (
        [(15, cuda_forward), (20, cuda_gradient), (15, cuda_steps)]
        if any(test[2] is forward for test in out)
        else [(50, cuda_steps)]
    )
    return [(test[0] / 2, *test[1:]) for test in out] + [
        (points, f"train_gpt.cu: {test.__name__[5:]}, in float", test) for points, test in more
    ]


def handed_in(name, cuda=False):
    """The files that a student hands in."""
    return [*EXERCISES[name].get("files", ("train_gpt.c",)), *["train_gpt.cu"] * cuda]


def chosen(all_tests, wanted):
    """The numbers, from 1, of the tests with this number or with this text in their title."""
    if wanted.isdigit():
        return [int(wanted)] if 0 < int(wanted) <= len(all_tests) else []
    titles = enumerate((test[1].lower() for test in all_tests), 1)
    return [i for i, title in titles if wanted.lower() in title]


def grade(folder, name, seed, cuda=False, only=None, progress=lambda text: None):
    """Grades, or runs only the tests of these numbers; returns the content of grade.json.
    progress(text) shows what is being done."""
    ex, started = EXERCISES[name], time.monotonic()
    if variants.mistakes:
        ex = {**ex, "mistakes": [*variants.mistakes, *ex["mistakes"]]}
    result = dict(
        exercise=name,
        score=0,
        max_score=100,
        seed=seed,
        verdict="",
        warnings=[],
        tests=[],
        kit=hashlib.sha256(b"".join(kit_file(f).read_bytes() for f in KIT_FILES)).hexdigest(),
    )
    student = None
    try:
        try:
            student = Student(
                folder,
                handed_in(name, cuda),
                np.random.default_rng(seed),
                ex.get("threads", True),
            )
            student.seed = seed
            result["graded"] = student.hashes
            progress("compiling")
            student.build(ex.get("program", "double"))
        except Wrong as error:
            result["verdict"] = str(error)
        needed, of, first = False, tests(name, cuda), ""
        for i, (points, title, test, *gate) in enumerate(of, 1):
            if only and i not in only:
                continue
            one = dict(name=title, score=0, max_score=points, output="", hints=[])
            result["tests"].append(one)
            if result["verdict"] or needed:
                one["output"] = result["verdict"] or "not tested: the first test must pass"
                continue
            progress(f"test {i} of {len(of)}: {title}")
            student.begin(np.random.default_rng([seed, i]))
            try:
                one["output"] = test(student, ex) or ""
                if student.raced:
                    raise Wrong(student.raced, *THREADS)
                one["score"] = points
            except Wrong as error:
                one["output"] = str(error)
                if first and title.startswith(("five steps", "effect")):
                    one["output"] += f'\nfirst make "{first}" right'
                first = first or title.split(":")[0]
                one["hints"] = [variants.in_prose(hint, variants.renamed) for hint in error.hints]
                needed = bool(gate)
                if isinstance(error, Endless):
                    result["verdict"] = "it does not end: no more tests"
            result["score"] += one["score"]
    finally:
        if student:
            result["warnings"] = student.warnings[:3]
            shutil.rmtree(student.place, ignore_errors=True)
    result["max_score"] = sum(one["max_score"] for one in result["tests"])
    if not result["verdict"]:
        right = result["score"] == result["max_score"]
        result["verdict"] = "all is right" if right else "see the tests"
    result["execution_time"] = round(time.monotonic() - started, 2)
    return result


def layout(text, margin=" " * 11):
    """Lines of at most 80 columns; all but quoted ones begin with the margin."""
    out = []
    for line in text.splitlines():
        fill = textwrap.TextWrapper(80, margin, " " * 11, break_on_hyphens=False)
        out += [(" " * 11 + line)[:80]] if line.startswith("  ") else fill.wrap(line)
        margin = " " * 11
    return out


MORE = ("names the mistake, where the numbers show it", "says where to look", "gives the formula")


def report(result, level):
    """What a student reads, as lines, with this many hints."""
    out, further = [], []
    for one in result["tests"]:
        out += layout(one["name"], f"{one['score']:3g} of {one['max_score']:<3g} ")
        if one["output"] != result["verdict"]:
            out += layout(one["output"])
        for i, hint in enumerate(one["hints"], 1):
            if hint and i <= level:
                out += layout(f"hint {i}: {hint}")
            further += [i] * (bool(hint) and i > level)
    points = f"{result['score']:3g} of {result['max_score']:g}, "
    out += layout(f"{result['execution_time']} s: {result['verdict']}", points)
    for warning in result["warnings"]:
        out += layout(warning)
    if further:
        out.append(f"make grade HINT={min(further)} {MORE[min(further) - 1]}")
    return out


def usage(message):
    """Ends make grade, make grade-all, make exercise-NAME or make autograder-NAME."""
    command = pathlib.Path(sys.argv[0]).stem.replace("_", "-")
    print(f"{command}: {message}", file=sys.stderr)
    sys.exit(2)


def save(path, content):
    """Writes a whole file, or leaves the older one as it is."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        sys.exit(f"grade: {path} cannot be written: {error.strerror}")


def hint_level():
    level = os.environ.get("HINT") or "0"
    if level not in ("0", "1", "2", "3"):
        usage(f"HINT={level}: there are hints 1 (names the mistake), 2 (where) and 3 (the formula)")
    return int(level)


def exercise(folder, arguments):
    """The name of the exercise, and whether train_gpt.cu is part of it: from the arguments or, if
    there are none, from the folder's kit. Takes note of the variant."""
    words = arguments
    if not words:
        try:
            words = (folder / "kit" / "exercise").read_text(errors="replace").split()
        except OSError:
            pass  # says so below
    if not words:
        usage(
            f"{folder} is not the folder of an exercise: kit/exercise names none; give one (make"
            " grade DIR=FOLDER), or say which exercise it is (EXERCISE=qk_norm)"
        )
    if words[0] in SHEETS:
        usage(f"no program grades '{words[0]}'; its README.md says what to hand in")
    if words[0] not in EXERCISES:
        usage(f"no exercise '{words[0]}'; there are: {' '.join(EXERCISES)}")
    for word in words[1:]:
        if word != "cuda" and not re.fullmatch(f"variant={variants.SEED}", word):
            usage(f"'{word}' says nothing about an exercise; 'cuda' and 'variant=7' do")
    variants.use(words[0], words[1:])
    return words[0], "cuda" in words[1:] and words[0] != "cuda"


def seed():
    text = os.environ.get("SEED") or str(secrets.randbelow(1 << 31))
    if not text.isdigit():
        usage(f"SEED={text}: a whole number from 0 on, as in grade.json")
    return int(text)


def show_progress(text):
    """On a terminal: the line at hand, or nothing."""
    if sys.stderr.isatty():
        print(f"\r{text[:79]}\033[K", end="", file=sys.stderr, flush=True)


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    if not folder.is_dir():
        usage(f"DIR={folder} is not a folder; give that of a student: make grade DIR=FOLDER")
    level, wanted = hint_level(), os.environ.get("TEST")
    name, cuda = exercise(folder, sys.argv[2:])
    of = tests(name, cuda)
    only = chosen(of, wanted) if wanted else None
    if wanted and not only:
        titles = "".join(f"\n  {i}  {test[1]}" for i, test in enumerate(of, 1))
        usage(f"TEST={wanted}: no test has this number or text; there are:{titles}")
    try:
        result = grade(folder, name, seed(), cuda, only, show_progress)
    except KeyboardInterrupt:
        sys.exit("\ngrade: interrupted; grade.json is as it was")
    show_progress("")
    print("\n".join(report(result, level)))
    if only:
        print(f"{len(only)} of {len(of)} tests: grade.json is not written")
        return
    save(folder / "grade.json", json.dumps(result, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
