"""Grades an exercise: grade.py [DIR [EXERCISE]]. Prints points and mistakes, and writes
DIR/grade.json (in Gradescope's form).

It reads only the sources of the exercise from the student's folder. It builds them with this
folder's driver in a temporary folder and runs them as processes that may only compute
(sandbox.py). Each grading draws new inputs (SEED=n repeats one). reference.py computes the right
answers after the student's program has ended, so that the program cannot print them. The effect of
a training is measured here, on the weights that the program trained."""

import hashlib
import json
import os
import pathlib
import secrets
import shutil
import sys
import textwrap
import time

import numpy as np

import checks
import checks_layers
import variants
from checks import cuda_forward, cuda_gradient, cuda_steps, forward
from sandbox import Endless, Wrong
from student import Student, kit_file

EXERCISES = {**checks.EXERCISES, **checks_layers.EXERCISES}
SHEETS = ("stability",)  # handouts that no program grades
# What a student's folder needs to grade itself
MODULES = "grade checks checks_layers student sandbox reference variants".split()
KIT_FILES = [*(name + ".py" for name in MODULES), "driver.c", "guards.h", "naive.c"]


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


def grade(folder, name, seed, cuda=False, words=()):
    """Grades; returns the content of grade.json. words: what kit/exercise says of a variant."""
    ex, started = EXERCISES[name], time.monotonic()
    names, standard = variants.use(name, words)
    if standard:
        ex = {**ex, "mistakes": [*standard, *ex["mistakes"]]}
    result = dict(
        exercise=name,
        score=0,
        max_score=100,
        seed=seed,
        verdict="",
        tests=[],
        kit=hashlib.sha256(b"".join(kit_file(f).read_bytes() for f in KIT_FILES)).hexdigest(),
    )
    student = None
    try:
        try:
            student = Student(
                folder,
                (*ex.get("files", ("train_gpt.c",)), *["train_gpt.cu"] * cuda),
                np.random.default_rng(seed),
                ex.get("threads", True),
            )
            student.seed = seed
            result["graded"] = student.hashes
            student.build(ex.get("program", "double"))
        except Wrong as error:
            result["verdict"] = str(error)
        needed = False
        for points, title, test, *gate in tests(name, cuda):
            one = dict(name=title, score=0, max_score=points, output="", hints=[])
            result["tests"].append(one)
            if result["verdict"] or needed:
                one["output"] = result["verdict"] or "not tested: the first test must pass"
                continue
            student.begin(np.random.default_rng([seed, len(result["tests"])]))
            try:
                one["output"] = test(student, ex) or ""
                if student.raced:
                    raise Wrong(student.raced, *THREADS)
                one["score"] = points
            except Wrong as error:
                one["output"] = str(error)
                one["hints"] = [variants.in_prose(hint, names) for hint in error.hints]
                needed = bool(gate)
                if isinstance(error, Endless):
                    result["verdict"] = "it does not end: no more tests"
            result["score"] += one["score"]
    finally:
        if student:
            shutil.rmtree(student.place, ignore_errors=True)
    result["verdict"] = result["verdict"] or (
        "all is right" if result["score"] == 100 else "see the tests"
    )
    result["execution_time"] = round(time.monotonic() - started, 2)
    return result


def said(test, level):
    """What a test says with this many hints."""
    hints = [f"hint {i}: {h}" for i, h in enumerate(test["hints"][:level], 1) if h]
    return [test["output"], *hints] if test["output"] else []


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    if len(sys.argv) > 2:
        name = sys.argv[2:]
    else:
        try:
            name = (folder / "kit" / "exercise").read_text().split()
        except OSError:
            sys.exit(
                f"grade: {folder} is not the folder of an exercise: it has no kit/exercise; give"
                " one (make grade DIR=FOLDER), or say which exercise it is (EXERCISE=qk_norm)"
            )
    name, *words = name
    if name in SHEETS:
        sys.exit(f"grade: no program grades '{name}'; its README.md says what to hand in")
    if name not in EXERCISES:
        sys.exit(f"grade: no exercise '{name}'; there are: {' '.join(EXERCISES)}")
    seed = int(os.environ.get("SEED") or secrets.randbelow(1 << 31))
    result = grade(folder, name, seed, "cuda" in words, words)
    level = int(os.environ.get("HINT") or 0)
    for one in result["tests"]:
        print(f"{one['score']:3g} of {one['max_score']:<3g} {one['name']}")
        for line in said(one, level):
            print(textwrap.fill(line, 80, initial_indent=" " * 11, subsequent_indent=" " * 11))
    print(
        f"{result['score']:3g} of {result['max_score']}, {result['execution_time']} s:"
        f" {result['verdict']}"
    )
    part = folder / f"grade.json.{os.getpid()}"
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(folder / "grade.json")


if __name__ == "__main__":
    main()
