"""`make bench` in small: its tables, its usage errors, and that its busy loops end with it."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent.parent
SMALL = ["--rounds", "1", "--seconds", "0", "--shape", "16,1,2,8,2,1", "--python", sys.executable]
TWO_CORES = len(os.sched_getaffinity(0)) > 1
RATIO = r"\d+\.\d\d"
TRAINED = rf"\d+ +{RATIO}"


@pytest.fixture(scope="module", autouse=True)
def program():
    """build/bench, by the Makefile's rule; one worker at a time."""
    subprocess.run(["flock", "Makefile", "make", "-s", "build/bench"], cwd=ROOT, check=True)


def start(*flags, **environment):
    command = [sys.executable, BENCH / "bench.py", *SMALL, *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, **environment}, **pipes)


def busy_loops(parent):
    """The processes, as in /proc, whose command names this process's id."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        if b"getppid" in b" ".join(words) and str(parent).encode() in words:
            found.append(path.parent.name)
    return found


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_tables():
    """Each table has its row, at most 80 columns wide; OpenBLAS runs the kernel of this machine."""
    bench = start(OPENBLAS_CORETYPE="Nehalem", OPENBLAS_L2_SIZE="256")
    out, err = bench.communicate(timeout=600)
    assert bench.returncode == 0, err
    assert max(map(len, out.splitlines())) <= 80
    torch = importlib.util.find_spec("torch") is not None
    name = "16, 1, 2, 8, 2"
    limits = rf"{name} +1 +\d+ +\d+\.\d \| +{TRAINED} \| +{TRAINED} \| +{TRAINED}"
    peers = rf"{name} +\d+ \| +{TRAINED} \|" + (rf" +{TRAINED} \| +{TRAINED}" if torch else r" +\|")
    load = rf"{name} +(\d) \| +\d+ \| +{TRAINED} \| +{TRAINED}"
    assert len(re.findall(rf"^{limits}$", out, re.M)) == 1, out
    assert len(re.findall(rf"^{peers}$", out, re.M)) == 1, out
    assert re.findall(rf"^{load}$", out, re.M) == (["1", "4"] if TWO_CORES else []), out
    assert ("PyTorch: No module named 'torch'; make bench PYTHON=" in out) == (not torch), out
    assert re.search(r"^OpenBLAS ran its kernel for (?!Nehalem)\w+\.$", out, re.M), out
    assert re.search(rf"^{name}: round 1 of 1, ours; \d+ s left$", err, re.M), err
    assert not busy_loops(bench.pid)


def test_left_out():
    """Without JAX, PyTorch and busy loops there is one table, and a line that says why."""
    bench = start("--no-jax", "--no-torch", "--no-load")
    out, err = bench.communicate(timeout=600)
    assert bench.returncode == 0, err
    for name in ("JAX: --no-jax", "PyTorch: --no-torch", "busy loops: --no-load"):
        assert f"\n{name}\n" in out
    assert out.count("\n16, 1, 2, 8, 2 ") == 1


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--rounds", "0"], "--rounds: '0': expected a whole number from 1 to 1000"),
        (["--rounds", "1.5"], "--rounds: '1.5': expected a whole number from 1 to 1000"),
        (["--seconds", "-1"], "--seconds: '-1': expected a number from 0 to 1000"),
        (["--seconds", "nan"], "--seconds: 'nan': expected a number from 0 to 1000"),
        (["--shape", "16,1,2,8,2"], "--shape: '16,1,2,8,2': expected C,L,NH,T,B,threads"),
        (["--shape", "16,1,2,8,2,0"], "whole numbers from 1"),
        (["--shape", "6,1,2,8,2,1"], "C a multiple of 2 NH"),
        (["--jax"], "unrecognized arguments: --jax"),
    ],
    ids=str,
)
def test_usage(flags, message):
    bench = start(*flags)
    out, err = bench.communicate(timeout=600)
    assert bench.returncode == 2 and not out and message in err.splitlines()[-1], err


def test_program_usage():
    """The program itself: a wrong number of arguments, a shape that train_gpt refuses."""
    for command in ("16 1 2 8 2 256", "16 1 3 8 2 256 0", "16 1 2 8 2 256 0 limits a b"):
        result = subprocess.run([ROOT / "build/bench", *command.split()], capture_output=True)
        assert result.returncode == 2 and not result.stdout and result.stderr.count(b"\n") == 1
    command = "16 1 2 8 2 256 0 limits /nowhere.so sgemm corename".split()
    result = subprocess.run([ROOT / "build/bench", *command], capture_output=True, text=True)
    assert result.returncode == 1 and re.fullmatch(r".*/nowhere\.so.*\n", result.stderr)


@pytest.mark.skipif(not TWO_CORES, reason="busy loops need two cores")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=str)
def test_stopped(number):
    """Stopped while busy loops run, it leaves none, even killed."""
    bench = start("--seconds", "1", "--no-jax", "--no-torch")
    for line in bench.stderr:
        if "busy loops" in line:
            break
    wait_for(lambda: len(busy_loops(bench.pid)) == 4)
    bench.send_signal(number)
    _, err = bench.communicate(timeout=600)
    if number == signal.SIGINT:
        assert bench.returncode == 1 and err == "bench: interrupted\n"
        assert not busy_loops(bench.pid)
    wait_for(lambda: not busy_loops(bench.pid))
