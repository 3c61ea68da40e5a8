"""`make mirror`: train_gpt.c beside train_gpt.cu, section by section, and how much of the second
stands word for word in the first. Two panes in a terminal that is wide enough, else a unified diff.

The share counts the lines of train_gpt.cu, from "The model" on, that have more than eight letters
and digits. Blanks aside, such a line must stand word for word somewhere in train_gpt.c, and it
counts as often as it stands there.
"""

import argparse
import collections
import difflib
import itertools
import pathlib
import re
import shutil
import signal
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAMES = "train_gpt.c", "train_gpt.cu"
FROM, LETTERS, PANE = "The model", 8, 100


def sections(text):
    """(title, lines) of each section; the lines before the first heading have the title ""."""
    found, lines = [("", [])], text.splitlines()
    for line, after in itertools.zip_longest(lines, lines[1:]):
        if line.startswith("// ----"):
            found.append((after.removeprefix("// "), []))
        found[-1][1].append(line)
    return found


def functions(lines):
    """The names of the parameters of each function that is defined in these lines."""
    text = re.sub(r"//.*", "", "\n".join(lines))
    found = re.findall(r"^[A-Za-z][^;{}()]*?(\w+)\(([^;{}]*?)\)\s*\{", text, re.M)
    parameter = re.compile(r"(\w+)\s*(?:\[\w*\])*\s*$")
    names = {name: [parameter.search(p) for p in list.split(",")] for name, list in found}
    return {name: [p[1] for p in all if p and p[1] != "void"] for name, all in names.items()}


def plain(lines):
    return [" ".join(line.split()) for line in lines]


def shares(c, cu):
    """{title: (lines that stand in c too, lines)} of cu's sections from "The model" on."""
    left, found = collections.Counter(plain(c.splitlines())), {}
    those = itertools.dropwhile(lambda section: section[0] != FROM, sections(cu))
    for title, lines in those:
        lines = [x for x in plain(lines) if sum(map(str.isalnum, x)) > LETTERS]
        found[title] = sum(left[x] > 0 and not left.subtract([x]) for x in lines), len(lines)
    return found


def panes(a, b):
    """Two lists of lines beside each other: < and > mark a line that the other has not."""
    for how, i, end_i, j, end_j in difflib.SequenceMatcher(
        None, plain(a), plain(b), autojunk=False
    ).get_opcodes():
        for x, y in itertools.zip_longest(a[i:end_i], b[j:end_j]):
            mark = " " if how == "equal" else "<" if y is None else ">" if x is None else "|"
            yield f"{x or '':{PANE}} {mark} {y or ''}".rstrip()


def show(c, cu, wide):
    left, right = dict(sections(c)), dict(sections(cu))
    for title in [*left, *(title for title in right if title not in left)]:
        a, b = left.get(title, []), right.get(title, [])
        if wide:
            yield from panes(a, b)
        else:
            yield from difflib.unified_diff(a, b, *NAMES, title, title, n=1000, lineterm="")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-q", action="store_true", help="print the share only")
    quiet = parser.parse_args().q
    c, cu = ((ROOT / name).read_text() for name in NAMES)
    wide = sys.stdout.isatty() and shutil.get_terminal_size().columns >= 2 * PANE + 3
    for line in [] if quiet else show(c, cu, wide):
        print(line)
    found = shares(c, cu)
    for title, (same, lines) in found.items():
        print(f"{same:5} of {lines:4} lines {same / max(lines, 1):4.0%}  {title}")
    same, lines = map(sum, zip(*found.values()))
    print(f"{same:5} of {lines:4} lines {same / lines:4.0%}  of train_gpt.cu stand in train_gpt.c")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `make mirror | head` ends without a complaint
    main()
