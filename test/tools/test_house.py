"""The house stands as built: what each header may include, how long gpt.h may be, and that
test/README.md names every file of the tests."""

import re

import pytest

from conftest import ROOT, TEST

# A header may include those of the rows above its own.
ORDER = [
    {"lib/base.h"},
    {"gpt.h", "dataloader.h", "lib/gpu.h"},
    {"lib/flags.h"},
    {"lib/checkpoint.h", "lib/sample.h"},
    {"lib/run.h"},
    {"lib/sweep.h"},
]
ROW = {header: row for row, headers in enumerate(ORDER) for header in sorted(headers)}
STAND_IN = "test/cuda/cuda_emu.h"  # takes the place of CUDA's own headers
PROGRAMS = "train_gpt.c", "train_gpt.cu"


def includes(name):
    """(the file, what stands after it) of each #include of ours, outside of comments."""
    lines = re.findall(r'^\s*#\s*include\s+"([^"]+)"(.*)$', (ROOT / name).read_text(), re.M)
    return [((ROOT / name).parent.joinpath(file).resolve(), rest) for file, rest in lines]


def test_every_header_has_a_row():
    headers = [*ROOT.glob("*.h"), *ROOT.glob("lib/*.h")]
    assert {str(header.relative_to(ROOT)) for header in headers} == set(ROW)


@pytest.mark.parametrize("header", ROW)
def test_no_header_includes_one_above_it(header):
    found = [str(file.relative_to(ROOT)) for file, _ in includes(header)]
    found = [file for file in found if file != STAND_IN]
    assert [file for file in found if ROW[file] >= ROW[header]] == []
    assert bool(found) == (ROW[header] > 0)  # all but the lowest stand on another


@pytest.mark.parametrize("name", [*ROW, *PROGRAMS])
def test_an_include_says_what_is_used(name):
    for file, rest in includes(name):
        assert file.exists() and re.fullmatch(r"\s+// \S.*", rest), f"{name}: {file.name}{rest}"


def test_gpt_h_is_short():
    assert len((ROOT / "gpt.h").read_text().splitlines()) <= 300


def test_readme_lists_every_file():
    """Each once, in the section of its folder; and no file that is not there."""
    sections = re.split(r"^## (\w+)/ .*$", (TEST / "README.md").read_text(), flags=re.M)
    listed = []
    for folder, text in zip(["", *sections[1::2]], sections[::2]):
        listed += [(folder, file) for file in re.findall(r"^\| ([\w.]+\.\w+) \| \S", text, re.M)]
    files = [path.relative_to(TEST) for path in TEST.rglob("*") if path.is_file()]
    files = [file for file in files if "handouts" not in file.parts]  # one row for all
    hidden = re.compile(r"[._].*")
    there = [
        ("" if len(file.parts) == 1 else file.parts[0], file.name)
        for file in files
        if not any(hidden.fullmatch(part) for part in file.parts) and file.name != "README.md"
    ]
    assert sorted(listed) == sorted(there)


def test_make_test_runs_every_folder():
    """But page, which needs a browser: make test_page."""
    (named,) = re.findall(r"\$\(addprefix test/,([\w ]+)\)", (ROOT / "Makefile").read_text())
    folders = {path.parent.name for path in TEST.rglob("test_*.py")}
    assert set(named.split()) == folders - {"page"}
