"""make exercise-NAME [DIR=...] [CUDA=1] [VARIANT=seed]: a folder to hand out, from which the lines
of an intervention are missing: cuts.py lists them, handouts/ has the pages, and variants.py says
what a VARIANT changes."""

import argparse
import pathlib
import re
import shlex
import shutil
import sys
import textwrap

import grade
import show
import variants
from cuts import EXERCISES

HERE, ROOT = pathlib.Path(__file__).resolve().parent, show.ROOT
SOURCES = "train_gpt.c", "gpt.h", "dataloader.h", "plot.py"


def commented(text, indent, width=100):
    return "\n".join(
        textwrap.wrap(
            text,
            width - len(indent),
            initial_indent=indent + "// ",
            subsequent_indent=indent + "// ",
        )
    )


def indented(code, indent):
    return "".join("\n" + indent + line for line in code.splitlines())


def without(text, patterns, name):
    """The text without these parts of comments."""
    for pattern in patterns:
        text, n = re.subn(pattern, "", text, flags=re.S)
        if n != 1:
            sys.exit(f"exercise: {name} has {n} comments '{pattern}', which cuts.py hides")
    return text


def cut_chunks(text, flags, pieces, name, hides):
    lines, chunks = text.split("\n"), [c for c in show.chunks(text, name) if c[0] in flags]
    if len(chunks) != len(pieces):
        sys.exit(
            f"exercise: {name} has {len(chunks)} chunks of {', '.join(flags)}, but cuts.py has"
            f" comments for {len(pieces)}"
        )
    for (flag, first, last), piece in reversed(list(zip(chunks, pieces))):
        if not piece:  # these lines stay, or are in a function that is cut
            continue
        comment, stub = piece
        indent = re.match(r" *", lines[first - 1])[0]
        while hides and not indent and lines[first - 2].startswith("//"):
            first -= 1
        code = indented(stub, indent)
        lines[first - 1 : last] = [commented(f"[{flag}] TO WRITE: {comment}", indent) + code]
    return "\n".join(lines)


def definition(lines, name):
    """First line (with template or attributes), line of the opening brace and last line, from 0, of
    a function, or of the enum whose first constant has this name."""
    lines = [*map(show.unmarked, lines)]
    for i, line in enumerate(lines):
        if line.startswith(f"enum {{ {name} "):
            return i, i, i
        if not re.match(rf"(?:[a-zA-Z_].*)?\b{name}\(", line):
            continue
        brace = i
        while not lines[brace].rstrip().endswith(("{", "}", ";")):
            brace += 1
        if lines[brace].rstrip().endswith(";"):  # only declared here
            continue
        start, end = i, brace
        while re.match(r"template|.*\b__(attribute|launch_bounds)__\S*$", lines[start - 1]):
            start -= 1
        if lines[brace].rstrip().endswith("{"):
            end = lines.index("}", brace)
        return start, brace, end
    sys.exit(f"exercise: no definition of {name}")


def cut_functions(text, bodies, removed):
    lines = text.split("\n")
    for name in [*bodies, *removed]:
        start, brace, end = definition(lines, name)
        above = start
        while lines[above - 1].startswith("//"):  # the comment above is part of the solution
            above -= 1
        stub = []
        if name in bodies:
            comment, body = bodies[name]
            todo = commented(f"[{name}] TO WRITE: {comment}", "    ")
            stub = [
                *map(show.unmarked, lines[start : brace + 1]),
                todo + indented(body, "    "),
                "}",
            ]
        lines[above : end + 1] = stub
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def around(name, file, text):
    """The functions that the exercise cuts, or that hold its cuts."""
    ex, lines = EXERCISES[name], text.split("\n")
    found = [c for c in show.chunks(text, file) if c[0] in ex.get("flags", (name,))]
    holders = {
        show.enclosing(lines, first)
        for (_, first, _), piece in zip(found, ex.get("cut", {}).get(file, ()))
        if piece and lines[first - 1].startswith(" ")
    }
    return sorted(holders | {*ex.get("functions", {}).get(file, ())})


def renamed(name, file, text, names):
    """The file with the variant's names in the functions around the cuts."""
    lines = text.split("\n")
    for function in around(name, file, text) if names else ():
        start, _, end = definition(lines, function)
        while lines[start - 1].startswith("//"):
            start -= 1
        part = variants.in_function("\n".join(lines[start : end + 1]), names)
        lines[start : end + 1] = part.split("\n")
    return "\n".join(lines)


def cut_pragmas(text, flag, comment):
    """Without the pragmas that make tasks and wait for them: each is a place to write."""
    return re.sub(r"#pragma omp task(loop|group)\b.*", f"// [{flag}] {comment}", text)


def pieces_of(name, file, pieces, variant):
    """The cuts' comments and stubs, in the variant's names and with its number."""
    names, says = variants.names(name, variant), variants.sentence(name, variant)
    said_in = variants.NUMBERS[name][2] if says else ("", ())
    out = []
    for i, piece in enumerate(pieces):
        if not piece:
            out.append(None)
            continue
        comment, stub = variants.in_prose(piece[0], names), variants.in_code(piece[1], names)
        if file == said_in[0] and i in said_in[1]:
            comment = f"{comment.rstrip('.')}. {says}"
        out.append((comment, stub))
    return out


def sources(name, cuda=False, variant=None):
    """{file: text with the exercise's lines taken out}, for the files that the exercise changes."""
    ex, out, names = EXERCISES[name], {}, variants.names(name, variant)
    for file, pieces in ex.get("cut", {}).items():
        if file != "train_gpt.cu" or cuda:
            hides, flags = ex.get("hides", {}).get(file), ex.get("flags", (name,))
            text = renamed(name, file, without(show.read(file), hides or (), file), names)
            pieces = pieces_of(name, file, pieces, variant)
            out[file] = cut_chunks(text, flags, pieces, file, hides is not None)
    for file, bodies in ex.get("functions", {}).items():
        text = out.get(file) or renamed(name, file, show.read(file), names)
        pieces = bodies.values()
        bodies = dict(zip(bodies, pieces_of(name, file, pieces, variant)))
        out[file] = cut_functions(text, bodies, ex.get("remove", {}).get(file, ()))
    for file, (flag, comment) in ex.get("pragmas", {}).items():
        out[file] = cut_pragmas(out[file], flag, comment)
    return out


PARTS = {  # what the handouts share
    "cuda": """## The same in train_gpt.cu ({points train_gpt.cu} points)

train_gpt.cu is the same program for a GPU: write your lines there too. The grading builds it for
the CPU, slowly but exactly, so that you need no GPU. `make train_gpt_cu_emu` builds that program.

    make grade TEST="train_gpt.cu"

""",
    "folder": """A comment marks each place.

    grep -n 'TO WRITE' {files}
    make                    builds train_gpt; ./train_gpt -h lists its flags
    make grade              tests your lines and writes grade.json; HINT=1 also names the mistake,
                            where it can, HINT=2 says where to look, HINT=3 gives the formula
    make grade TEST="..."   runs the tests with these words in their title

Change nothing else: the grading reads only {these} and uses fresh copies of the others. It needs
Python with numpy and installs numpy into build/venv where it is missing. Each grading draws new
inputs; `SEED=n make grade` repeats the one whose grade.json holds the seed n.

{shapes}""",
    "shapes": (
        "Letters: B batch, T sequence length, C channels (the width d), L layers, NH heads of size"
        " HS, V vocabulary; rows = B T. [c] is 1 where c holds, else 0."
    ),
    "plots": (
        "plot.py needs matplotlib and seaborn; where they are missing, it says how to install them."
    ),
    "paper": (
        "*Small-scale proxies for large-scale Transformer training instabilities* (Wortsman et al.,"
        " ICLR 2024, arXiv 2309.14322)"
    ),
    "estimate": "our estimate; no class has been timed",
}


def points(name, cuda, words):
    """The points of the tests that have these words in their title."""
    in_cuda = words.startswith("train_gpt.cu")
    found = [
        points
        for points, title, *_ in grade.tests(name, cuda)
        if words in title and title.startswith("train_gpt.cu") == in_cuda
    ]
    if not found:
        sys.exit(f"exercise: the handout of {name} asks for a test '{words}', which is not there")
    return f"{sum(found):g}"


def readme(name, changed=(), cuda=False):
    """The handout, with what several of them say. changed: the files with lines to write."""
    fill = lambda text: textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)
    parts = {
        **PARTS,
        "cuda": PARTS["cuda"] if cuda else "",
        "files": " ".join(sorted(changed)),
        "these": "these files" if len(changed) > 1 else "this file",
    }
    text = (HERE / "handouts" / f"{name}.md").read_text()
    for part, value in parts.items():
        text = text.replace("{" + part + "}", value)
    text = re.sub(r"\{points ([^}]+)\}", lambda m: points(name, cuda, m[1]), text)
    # a paragraph that a part made longer is filled again
    blocks = text.split("\n\n")
    return "\n\n".join(
        fill(" ".join(block.split()))
        if re.match(r"[^\s\d#-]", block) and max(map(len, block.splitlines())) > 100
        else block
        for block in blocks
    )


MAKEFILE = """# make          train_gpt, for this machine
# make grade    points, and what is wrong; writes grade.json. HINT=1, 2 or 3 says more;
#               TEST=name or number runs only those tests
# make clean
{head}

train_gpt: train_gpt.c $(HEADERS)
	$(CC) $(FLAGS) -o $@ train_gpt.c -lm

train_gpt_cu_emu: train_gpt.cu $(HEADERS) test/cuda/cuda_emu.h
	$(CXX) -std=c++17 $(CFLAGS) $(MARCH) -Wno-unknown-pragmas -fno-strict-aliasing -rdynamic \\
	-DCUDA_EMU -DFP32 -x c++ train_gpt.cu -o $@ -lm

# python3 where it has numpy, else a virtual environment that does
PYTHON := $(shell python3 -c 'import numpy' 2>/dev/null && echo python3 \\
	|| echo build/venv/bin/python)
build/venv/bin/python:
	python3 -m venv build/venv
	build/venv/bin/pip install -q --disable-pip-version-check {numpy}

.DELETE_ON_ERROR: # a build/venv without numpy is made again
.PHONY: grade clean
grade: $(filter build/%,$(PYTHON))
	@$(PYTHON) kit/grade.py .

clean:
	rm -rf train_gpt train_gpt_cu_emu build
"""


SHEET_MAKEFILE = """# make          train_gpt, for this machine
# make grade    what to hand in: no program grades this sheet
# make clean
{head}

train_gpt: train_gpt.c $(HEADERS)
	$(CC) $(FLAGS) -o $@ train_gpt.c -lm

.PHONY: grade clean
grade:
	@echo 'No program grades this sheet. README.md says:'
	@sed -n '/^## Hand in/,$$p' README.md

clean:
	rm -f train_gpt
"""


def makefile_head():
    """The project's Makefile down to the flags of the compiler."""
    makefile = show.read("Makefile")
    head = makefile[makefile.index("ifeq ($(origin CC)") : makefile.index("\nSOURCES :=")]
    return re.sub(r"^#.*\n", "", head, flags=re.M)  # they cite the project's README.md


def write_sheet(name, folder):
    """A handout with the whole sources, in which nothing is missing. The folder must be empty, or
    not there."""
    (folder / "kit").mkdir(parents=True)
    (folder / "kit" / "exercise").write_text(name + "\n")
    for file in SOURCES:
        shutil.copy(ROOT / file, folder)
    shutil.copytree(ROOT / "lib", folder / "lib")
    (folder / "Makefile").write_text(SHEET_MAKEFILE.replace("{head}", makefile_head()))
    (folder / "README.md").write_text(readme(name))
    return folder


def write(name, folder, cuda=False, variant=None):
    """The folder of an exercise. It must be empty, or not there."""
    if variant is not None and not re.fullmatch(variants.SEED, variant):
        grade.usage(f"VARIANT={variant} is not a seed; give a number or a word: VARIANT=7")
    if variant and cuda:
        grade.usage("variants have no lines in train_gpt.cu; leave CUDA=1 or VARIANT out")
    changed = sources(name, cuda, variant)
    if cuda and "train_gpt.cu" not in changed:
        grade.usage(f"{name} has no lines in train_gpt.cu; leave CUDA=1 out")
    kit, needs_cuda = folder / "kit", "train_gpt.cu" in changed
    kit.mkdir(parents=True)
    for file in SOURCES:
        (folder / file).write_text(changed.get(file) or show.read(file))
    for file in grade.KIT_FILES + ["driver.cu"] * needs_cuda:
        shutil.copy(HERE / file, kit)
    for file in ["dataloader.h"] + ["gpt.h"] * ("gpt.h" not in changed):
        shutil.copy(ROOT / file, kit)
    for place in folder, kit:
        (place / "lib").mkdir()
        for header in ROOT.glob("lib/*.h"):
            shutil.copy(header, place / "lib")
    if needs_cuda:
        (folder / "train_gpt.cu").write_text(changed["train_gpt.cu"])
        (folder / "test" / "cuda").mkdir(parents=True)
        for place in folder / "test" / "cuda", kit:
            shutil.copy(ROOT / "test" / "cuda" / "cuda_emu.h", place)
    numpy = re.search(r"^numpy==\S+", (ROOT / "test" / "requirements.txt").read_text(), re.M)[0]
    text = MAKEFILE.replace("{head}", makefile_head()).replace("{numpy}", numpy)
    if not needs_cuda:
        text = re.sub(r"train_gpt_cu_emu: .*?\n\n", "", text, flags=re.S)
    (folder / "Makefile").write_text(text)
    words = [name] + ["cuda"] * cuda + [f"variant={variant}"] * (variant is not None)
    (kit / "exercise").write_text(" ".join(words) + "\n")
    text = readme(name, changed, cuda)
    (folder / "README.md").write_text(
        text if variant is None else variants.handout(text, name, variant)
    )
    return folder


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--dir")
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--variant")
    args = parser.parse_args()
    folder, sheet = pathlib.Path(args.dir or f"exercise-{args.name}"), args.name in grade.SHEETS
    if sheet and (args.cuda or args.variant):
        grade.usage(f"{args.name} has no lines to write; leave CUDA=1 and VARIANT out")
    if not sheet and args.name not in EXERCISES:
        sizes = " (it has no flagged lines)" if args.name in show.FORMULA else ""
        grade.usage(
            f"there is none on '{args.name}'{sizes}; there are:"
            f" {' '.join([*EXERCISES, *grade.SHEETS])}"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        grade.usage(f"{folder} is there and not empty; name another with DIR=")
    try:
        if sheet:
            write_sheet(args.name, folder)
        else:
            write(args.name, folder, args.cuda and args.name != "cuda", args.variant)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)  # half of an exercise is of no use
        sys.exit(f"exercise: {folder} cannot be written: {error.strerror}")
    then = (
        "No program grades it."
        if sheet
        else f"Grade it with:\nmake grade DIR={shlex.quote(str(folder))}"
    )
    print(f"{folder}: hand it out; its README.md says what to do. {then}")


if __name__ == "__main__":
    main()
