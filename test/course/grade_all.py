"""make grade-all DIR=submissions EXERCISE=name [JOBS=n]: grades every submission in a folder, all
with the same inputs, and writes DIR/grades.csv: a row each, whatever is wrong with a submission. A
submission is a folder, a zip file or, where the exercise is train_gpt.c alone, a C file."""

import concurrent.futures
import csv
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import zipfile

import grade
from sandbox import Wrong
from student import LARGEST, nearest, source


def submissions(folder, files):
    """The submissions in this folder, in the order of their names."""
    suffixes = [".zip"] + [".c"] * (files == ["train_gpt.c"])
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and (path.is_dir() or path.suffix.lower() in suffixes)
    )


def collect(path, files):
    """{name: bytes}: the files that a submission has of these. Raises Wrong, or another error for a
    zip file that cannot be read."""
    if path.is_dir():
        top = nearest([found for name in files for found in path.rglob(name)], path)
        return {name: source(top, name, files) for name in files}
    if path.suffix.lower() == ".c":
        return {files[0]: source(path.parent, path.name, files)}
    with zipfile.ZipFile(path) as file:
        found = [pathlib.PurePosixPath(name) for name in file.namelist()]
        top = nearest([name for name in found if name.name in files], pathlib.PurePosixPath())
        out = {}
        for name in files:
            if top / name in found:
                with file.open(str(top / name)) as member:
                    out[name] = member.read(LARGEST)
        return out


def graded(path, words, files, seed):
    """The content of grade.json, or only its verdict."""
    try:
        with tempfile.TemporaryDirectory(prefix="grade-all-") as place:
            place = pathlib.Path(place)
            for name, text in collect(path, files).items():
                (place / name).write_bytes(text)
            command = [sys.executable, pathlib.Path(grade.__file__), place, *words]
            more = dict(SEED=str(seed), HINT="", TEST="")
            out = subprocess.run(
                command, capture_output=True, text=True, env={**os.environ, **more}
            )
            if out.returncode:
                return dict(verdict="the grading failed: " + (out.stderr.splitlines() or [""])[-1])
            return json.loads((place / "grade.json").read_text())
    except Wrong as error:
        return dict(verdict=str(error))
    except Exception as error:  # whatever a submission holds, the others are graded
        return dict(verdict=f"it cannot be read: {error}")


def row(path, result, titles):
    """A line of the table: name, score, each test's score, what is wrong first, seconds."""
    scores = {one["name"]: one["score"] for one in result.get("tests", [])}
    wrong = [one["output"] for one in result.get("tests", []) if one["output"]]
    verdict = wrong[0] if wrong and result["verdict"] == "see the tests" else result["verdict"]
    return [
        path.name,
        result.get("score", 0),
        *(scores.get(title, 0) for title in titles),
        " ".join(verdict.split()),
        result.get("execution_time", 0),
    ]


def whole_number(name, default):
    text = os.environ.get(name) or str(default)
    if not text.isdigit() or not int(text):
        grade.usage(f"{name}={text}: a whole number from 1 on")
    return int(text)


def main():
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else None
    if not folder or not folder.is_dir():
        grade.usage(
            "give the folder of all submissions: make grade-all DIR=submissions EXERCISE=eps"
        )
    if not sys.argv[2:]:
        grade.usage("say which exercise it is: EXERCISE=qk_norm, or EXERCISE='qk_norm cuda'")
    name, cuda = grade.exercise(folder, sys.argv[2:])
    files, titles = grade.handed_in(name, cuda), [test[1] for test in grade.tests(name, cuda)]
    todo, seed = submissions(folder, files), grade.seed()
    if not todo:
        grade.usage(f"{folder} holds no submission: a folder or a zip file each")
    jobs, started = whole_number("JOBS", max(1, (os.cpu_count() or 1) // 2)), time.monotonic()
    results = {}
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(graded, path, sys.argv[2:], files, seed): path for path in todo}
        try:
            for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
                path = futures[future]
                results[path] = future.result()
                left = (time.monotonic() - started) / done * (len(todo) - done)
                after = f" ({left // 60:.0f} min {left % 60:.0f} s left)" * (done < len(todo))
                score = results[path].get("score", 0)
                print(f"{done} of {len(todo)}{after}: {score:g}  {path.name}"[:80], flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            sys.exit("grade: interrupted; grades.csv is as it was")
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["name", "score", *titles, "verdict", "seconds"])
    table.writerows(row(path, results[path], titles) for path in todo)
    part = folder / f".grades.csv.{os.getpid()}"
    part.write_text(text.getvalue())
    part.replace(folder / "grades.csv")
    mean = sum(result.get("score", 0) for result in results.values()) / len(todo)
    print(f"{len(todo)} submissions, {mean:.1f} points on average; SEED={seed} repeats the inputs")
    print(folder / "grades.csv")


if __name__ == "__main__":
    main()
