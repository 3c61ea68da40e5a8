"""In a terminal: no line wraps, a refresh leaves one copy of what it shows, control characters stay
out, and a command that is printed can be pasted.

The terminal is pyte, on a pseudo-terminal of that size."""

import fcntl
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time

import numpy as np
import pyte
import pytest
from safetensors.numpy import load_file, save_file

from test_cli import PROGRAM, REPO, program, table, train, words
from test_runs import MODEL, metadata

SMALL = dict(d=16, layers=1, heads=1, T=8, batch=2, steps=200, eval_tokens=64)
THIRTY = ",".join(f"{i}e-4" for i in range(1, 31))


class Terminal:
    """A command in a terminal of this size. wide: the same output where nothing can wrap."""

    def __init__(self, command, cwd, columns=80, rows=24, threads=1):
        self.ours, theirs = pty.openpty()
        self.screens = [pyte.HistoryScreen(n, rows, history=10**5) for n in (columns, 1000)]
        self.streams = [pyte.ByteStream(screen) for screen in self.screens]
        self.written = b""
        self.set_size(theirs, columns, rows)
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=dict(os.environ, OMP_NUM_THREADS=str(threads), TERM="xterm"),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    @staticmethod
    def set_size(handle, columns, rows):
        fcntl.ioctl(handle, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, columns, rows):
        self.set_size(self.ours, columns, rows)
        for screen, width in zip(self.screens, (columns, 1000)):
            screen.resize(rows, width)

    def read(self, seconds=300.0):
        """Shows what the command writes, for so long or until it has ended."""
        end = time.time() + seconds
        while (left := end - time.time()) > 0 and select.select([self.ours], [], [], left)[0]:
            try:
                part = os.read(self.ours, 65536)
            except OSError:  # the command has ended
                break
            self.written += part
            for stream in self.streams:
                stream.feed(part)
        return self.lines()

    def read_until(self, condition):
        """Until it holds of the lines and what was written. The command must not end before."""
        end = time.time() + 120
        while not condition(self.lines()):
            assert self.process.poll() is None and time.time() < end, self.lines()
            self.read(0.02)

    def read_redraws(self, n):
        wanted = self.written.count(b"\033[") + n
        self.read_until(lambda _: self.written.count(b"\033[") >= wanted)

    def press_control_c(self):
        os.write(self.ours, b"\x03")  # which is echoed; it is not the command's own terminal
        os.killpg(self.process.pid, signal.SIGINT)

    def lines(self, wide=False):
        """Every line, from the first that has scrolled away to the last on the screen."""
        screen = self.screens[wide]
        rows = [*screen.history.top, *(screen.buffer[y] for y in range(screen.lines))]
        return ["".join(row[x].data for x in range(screen.columns)).rstrip() for row in rows]

    def end(self, status=0, narrow=False):
        """The lines, once the command has ended: none has wrapped, but in a narrow terminal."""
        self.read()
        assert self.process.wait(10) == status, self.written
        os.close(self.ours)
        lines = self.lines()
        assert narrow or lines == self.lines(wide=True)
        while not lines[-1]:
            lines.pop()
        return lines


@pytest.fixture
def here(tmp_path):
    """A folder in which ./train_gpt is the program, as in the README."""
    (tmp_path / "train_gpt").symlink_to(PROGRAM)
    return tmp_path


def terminal(folder, flags, *size, **options):
    flags = {"out": "x", **SMALL, **flags} if isinstance(flags, dict) else flags
    return Terminal(["./train_gpt", *words(flags)], folder, *size, **options)


def shown(lines, pattern):
    return [match for line in lines if (match := re.match(pattern, line))]


SIZES = pytest.mark.parametrize("columns, rows", [(80, 24), (40, 10), (20, 3)])


# ---------------------------------------------------------------------------
# One run


@SIZES
def test_a_run_leaves_its_validations_and_no_other_step(here, columns, rows):
    screen = terminal(here, dict(lr="1e-2", steps=30000, eval_every=10000), columns, rows)
    lines = screen.end(narrow=columns < 80)
    assert [int(m[1]) for m in shown(lines, r"step +(\d+)/30000")] == [0, 10000, 20000, 30000], (
        lines
    )
    assert screen.written.count(b"\r\033[K") > 5
    if columns == 80:
        assert shown(
            lines, r"step 10000/30000  train \S+  val \S+  lr \S+  grad \S+  \d+:\d\d left"
        )


@SIZES
def test_a_long_run_shows_one_live_line_until_it_is_stopped(here, columns, rows):
    """And then the command that goes on with it."""
    flags = dict(lr="1e-2", d=32, heads=2, batch=64, steps=20000, eval_every=0)
    screen = terminal(here, flags, columns, rows)
    for _ in range(5):
        screen.read_redraws(1)
        lines = screen.lines()
        assert len(shown(lines, "step ")) <= 2, lines  # step 0 and the live line
    live = shown(lines, "step .*")[-1][0]
    if columns == 80:
        assert re.fullmatch(
            r"step +\d+/20000  train \S+  lr \S+  grad \S+  \d+:\d\d left(  \d+ tok/s)?", live
        )
    assert len(live) <= columns - 2 and len(live) > 14
    screen.press_control_c()
    lines = screen.end(130, narrow=columns < 80)
    assert len(shown(lines, "step ")) == 2, lines
    if columns == 80:
        assert shown(lines, r"stopped after step \d+; go on with:$")
        assert lines[-1] == "./train_gpt -resume -out x"


def test_a_run_that_diverges_is_diagnosed_within_the_width(here):
    flags = dict(lr=1, qk_norm=0, z_loss=0, steps=400)
    lines = terminal(here, flags).end()
    at = next(i for i, line in enumerate(lines) if line.startswith("diagnosis: "))
    assert "-qk_norm 1 fixes it" in re.sub(" +", " ", " ".join(lines[at:]))
    assert [line for line in lines[at:] if not line.startswith(("diagnosis: ", "  "))] == []


def test_what_goes_to_a_file_is_whole(here):
    out = train(here / "x", lr="1e-2", steps=100000, eval_every=25000, d=2, heads=1)
    (line, *_) = [line for line in out.splitlines() if line.startswith("step 100000")]
    assert line.endswith(" tok/s") and "  val " in line and "\033" not in out


# ---------------------------------------------------------------------------
# Sweeps


@SIZES
@pytest.mark.parametrize("rates", ["1e-3,1e-2,1e-1", THIRTY], ids=["3", "30"])
def test_a_sweep_redraws_in_place(here, rates, columns, rows):
    """A line for each run or, where they are too many, for the running ones, and their number."""
    screen = terminal(here, dict(lr=rates, steps=3000), columns, rows, threads=2)
    few, most = rates.count(",") + 1 < rows, 0
    while screen.process.poll() is None:
        lines = screen.read(0.05)
        if "final validation" in "".join(lines):
            break
        lrs = [m[1] for m in shown(lines, r"lr (\d\S*)")]
        assert len(lrs) == len(set(lrs)) and len(shown(lines, r"\d+ running")) <= 1, lines
        assert len(lrs) < rows, lines
        most = max(most, len(lrs))
    lines = screen.end(narrow=columns < 80)
    assert most == (3 if few else min(2, rows - 2)), most
    done = [m[1] for m in shown(lines, r"lr (\d\S*)")]
    assert done == (rates.split(",") if few else []), lines
    if not few:
        (count,) = shown(lines, r"\d+ running.*")
        assert count[0].startswith(f"0 running  {rates.count(',') + 1} done"), count
    assert screen.written.count(b"\033[J") > 3


def test_a_sweeps_table_and_chart_fit(here):
    """Of as many learning rates as there may be, and of those with the longest texts."""
    for rates in (
        ",".join(f"{i}e-4" for i in range(1, 65)),
        "0.0012345678901,1e-2,1234567.1",
    ):
        flags = dict(lr=rates, steps=3, eval_tokens=8)
        lines = terminal(here, flags, threads=2).end()
        wanted = rates.split(",")
        at = next(i for i, line in enumerate(lines) if "learning rate  " in line) + 2
        assert [line.split()[0] for line in lines[at : at + len(wanted)]] == wanted
        (chart,) = (i for i, line in enumerate(lines) if line.startswith("     LR  "))
        marks = [len(re.findall("[ox]", line[9:])) for line in lines[chart - 13 : chart]]
        assert sum(marks) == len(wanted)
        labels = [float(label) for label in lines[chart].split()[1:]]
        every = -(-len(wanted) // len(labels))
        assert labels == pytest.approx([float(rate) for rate in wanted[::every]], rel=0.25)


def test_a_resize_does_not_break_the_display(here):
    """After it, one copy of what is shown; of what was there before, at most another."""
    screen = terminal(here, dict(lr=THIRTY, steps=20000), 80, 40, threads=2)
    screen.read_until(lambda lines: shown(lines, "lr .* left"))
    screen.resize(60, 10)
    screen.read_redraws(4)
    before = len(screen.lines())
    screen.read_redraws(8)
    lines = screen.lines()
    assert len(shown(lines, r"\d+ running")) == 1 and len(lines) == before, lines
    screen.press_control_c()
    screen.end(130, narrow=True)


def test_a_failed_run_leaves_its_message(here):
    """The lines of the runs begin anew below it."""
    (here / "x").mkdir()
    (here / "x/lr1e-2").write_text("in the way")
    lines = terminal(here, dict(lr="1e-3,1e-2,1e-1", steps=3000)).end(1)
    message = next(i for i, line in enumerate(lines) if "lr1e-2: a file has that name" in line)
    rows = [line.split()[1] for line in lines[message:] if line.endswith(("done", "failed"))]
    assert rows == ["1e-3", "1e-2", "1e-1"], lines
    assert [row["lr"] for row in table(here / "x/summary.csv")] == ["1e-3", "1e-1"]


def test_a_sweep_shows_no_loss_before_it_knows_one(here):
    """One run at a time: the other waits, without a loss of 0."""
    screen = terminal(here, dict(lr="1e-3,1e-2", steps=3000))
    screen.end()
    assert b"lr 1e-2    waiting" in screen.written and b"train 0.0000" not in screen.written


# ---------------------------------------------------------------------------
# What else is printed


@pytest.mark.parametrize(
    "command",
    [
        "./train_gpt -h",
        f"make -s -C {REPO} show",
        f"{sys.executable} {REPO}/plot.py -h",
        f"{sys.executable} {REPO}/predict.py -h",
    ],
)
def test_texts_fit(here, command):
    assert len(Terminal(shlex.split(command), here).end()) > 10


def numbers_model(here):
    """A model of bytes that are nearly all control characters."""
    text = bytes([*range(32), 127, 65]) + "\x9b€\x85".encode() * 8 + b"\x9b"
    (here / "data").write_bytes(text * 100)
    train(here / "x", data=here / "data", vocab=256, steps=200, lr="3e-2")
    return ["-sample", "300", "-out", "x"]


def test_a_sample_of_binary_data_shows_dots_for_control_characters(here):
    command = numbers_model(here)
    raw = program(*command, cwd=here, text=False).stdout
    screen = terminal(here, command)
    screen.end(narrow=True)
    dots = re.sub(rb"[^\n\t -~\x80-\xff]", b".", raw)
    # U+0080 to U+009F too, of which U+009B begins a terminal's commands; € is e2 82 ac
    dots = re.sub(rb"(^|[^\x80-\xff]|\xc2)[\x80-\x9f]", rb"\1.", dots)
    assert screen.written.replace(b"\r\n", b"\n") == dots != raw
    assert b"\x1b" in raw and re.search(rb"\xc2[\x80-\x9f]", raw) and b"\xe2\x82" in raw


def test_a_sample_of_a_model_that_is_not_a_number(here):
    train(here / "x")
    weights = load_file(here / "x" / MODEL)
    weights["ln_f.weight"][3] = np.nan
    save_file(weights, here / "x" / MODEL, metadata(here / "x"))
    result = program("-sample", "5", "-out", "x", cwd=here)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "x/model.safetensors: its logits are not finite" in result.stderr


@pytest.mark.parametrize("name", ["a b", 'the "best"', "it's; $HOME *"])
def test_a_printed_command_can_be_pasted(here, name):
    """Of a run and of a sweep, whatever its folder is called."""
    flags = dict(batch=64, steps=20000, eval_every=0)
    for lr in "1e-2", "1e-3,1e-2":
        screen = terminal(here, {**flags, "lr": lr, "out": f"{name} {len(lr)}"}, threads=2)
        screen.read_until(lambda lines: shown(lines, ".*step .*train .* left"))
        screen.press_control_c()
        lines = screen.end(130)
        (at,) = (i for i, line in enumerate(lines) if "go on with" in line)
        command = "exec " + lines[at + 1] + " -steps 1000000000"
        pasted = Terminal(["sh", "-c", command], here)
        pasted.read_until(lambda lines: shown(lines, "step .* left"))
        assert shown(pasted.lines(), "resuming after step [1-9]")
        pasted.press_control_c()
        assert len(shown(pasted.end(130), "stopped after step")) == 1
