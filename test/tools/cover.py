"""How much of the C sources the tests run, by gcc and gcov, in a copy of the tree: `make coverage`.
Prints a table and the lines that no test ran, and fails below 95% of a file's lines or where such a
line has no reason below."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import mutate

LEAST = 95
SOURCES = (
    "train_gpt.c",
    "gpt.h",
    "dataloader.h",
    *sorted(str(p.relative_to(mutate.ROOT)) for p in mutate.ROOT.glob("lib/*.h")),
)
TESTS = "layers", "gradients", "checkpoint", "cli", "data", "runs", "survive", "terminal"
# Of the gradients enough for double's own lines, of test_survive.py what the others leave: all of
# them take minutes. As another user a program cannot write its counts.
OPTIONS = "-k", "not drop_root and (not gradients or C12) and (not survive or one_run_a_folder)"

# Why a line cannot be run here: a part of its text, and the reason. Each excuses one line.
REASONS = [
    ("execvp(argv[0], argv)", "the program's other self goes on, and counts from 0"),
    ("but cannot sync its folder", "takes a disk that fails after the file was renamed"),
    (
        "cannot read the tensor %s of %s",
        "takes a file that shrinks between the reading of its header and of its data",
    ),
    ('"the file has become shorter"', "the same"),
    ("    return best;", "sample_token: only rounding leaves a rest after the last token"),
    (
        "static void on_bus_error(int number)",
        "ends by _exit, which leaves no counts; test_survive.py runs it",
    ),
    ("const char *const parts[] =", "the same"),
    ("for (int i = 0; i < 3; i++)", "the same"),
    ("if (write(STDERR_FILENO, parts[i]", "the same"),
    ("    _exit(FAILED);", "the same"),
    ("cannot look for the files of this pattern", "glob fails only where memory does"),
]


def counts(folder):
    """{source: {line: how often it ran}}, summed over all that was built. A run that was killed
    left no counts."""
    lines = {name: {} for name in SOURCES}
    for data in folder.rglob("*.gcda"):
        out = subprocess.run(
            ["gcov", "--json-format", "--stdout", str(data)],
            cwd=folder,
            capture_output=True,
            check=True,
        ).stdout
        for file in json.loads(out)["files"]:
            name = os.path.relpath((folder / file["file"]).resolve(), folder.resolve())
            for line in file["lines"] if name in lines else ():
                lines[name][line["line_number"]] = (
                    lines[name].get(line["line_number"], 0) + line["count"]
                )
    return lines


def main():
    with tempfile.TemporaryDirectory() as temporary:
        folder = mutate.copy_tree(pathlib.Path(temporary) / "tree")
        flags = "-O0 --coverage"
        environment = {**os.environ, "CC": "gcc", "CFLAGS": flags}
        subprocess.run(
            ["make", "-s", "CC=gcc", "CFLAGS=" + flags, "train_gpt"], cwd=folder, check=True
        )
        tests = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                "--basetemp",
                str(folder / "build" / "tests"),
                *OPTIONS,
                *(str(next(folder.glob(f"test/*/test_{name}.py"))) for name in TESTS),
            ],
            cwd=folder,
            env=environment,
        )
        lines, text = (
            counts(folder),
            {name: (folder / name).read_text().splitlines() for name in SOURCES},
        )
    bad, left = tests.returncode, []
    print(f"{'file':14}  {'lines':>6}  {'run':>6}  {'%':>6}")
    for name, count in lines.items():
        percent = 100 * sum(map(bool, count.values())) / max(1, len(count))
        print(f"{name:14}  {len(count):6}  {sum(map(bool, count.values())):6}  {percent:6.2f}")
        bad |= percent < LEAST
        left += [(name, n, text[name][n - 1]) for n in sorted(count) if not count[n]]
    unused = list(REASONS)
    for name, n, line in left:
        row = next((row for row in unused if row[0] in line), None)
        reason = row and row[1]
        if row:
            unused.remove(row)
        bad |= row is None
        print(
            f"{name}:{n}: {line.strip()[:90]}\n"
            f"    {reason or 'NO REASON: write a test, or say in REASONS why there is none'}"
        )
    for part, _ in REASONS:
        if not any(part in line for file in text.values() for line in file):
            bad = True
            print(f"REASONS: no line has {part!r} any more")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
