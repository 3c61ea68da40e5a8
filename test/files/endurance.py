#!/usr/bin/env python3
"""What lasts long and what is large: a run of 100,000 steps keeps its memory and its speed, data of
8 GB opens at once, and a model of 100 million parameters takes the memory that was announced. A
line for each with what was measured and what was allowed.
"""

import argparse
import contextlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PROGRAM = os.environ.get("TRAIN_GPT", str(Path(__file__).resolve().parents[2] / "train_gpt"))
ENVIRONMENT = dict(os.environ, OMP_NUM_THREADS="1")
SMALL = "-d 16 -layers 1 -heads 1".split()
LARGE = "-d 768 -layers 14 -heads 12".split()
failed = []


def report(what, measured, allowed, unit):
    verdict = "ok" if measured <= allowed else "TOO MUCH"
    if measured > allowed:
        failed.append(what)
    print(f"{what:<70}{measured:>10.3g} {unit:<8}allowed {allowed:>8.3g}   {verdict}", flush=True)


def memory(pid, name):
    """VmRSS or VmHWM, its peak, in MB. (wait4's peak would be Python's own, whose memory the child
    has until it begins.)"""
    return int(re.search(name + r":\s*(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) * 1024e-6


def train(folder, *flags):
    """Returns what it printed, its seconds of CPU and its peak of resident memory in MB."""
    peak = 0
    process = subprocess.Popen(
        [PROGRAM, *map(str, flags), "-out", folder],
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    while (done := os.wait4(process.pid, os.WNOHANG))[0] == 0:
        with contextlib.suppress(OSError, TypeError):  # TypeError: it has just ended
            peak = max(peak, memory(process.pid, "VmHWM"))
        time.sleep(0.0005)
    process.returncode = os.waitstatus_to_exitcode(done[1])
    said, used = process.stdout.read(), done[2]
    assert process.returncode == 0, said
    return said, used.ru_utime + used.ru_stime, peak


def tail(path):
    """The step of the last whole row."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        return int(file.read().split(b"\n")[-2].split(b",")[0])


def long_run(home, steps):
    """CPU time, not the clock's, as other programs run too; of windows of a fiftieth, the median of
    the first ten and of the last ten."""
    folder, samples = home / "long", []
    process = subprocess.Popen(
        [PROGRAM, *SMALL, "-steps", str(steps), "-checkpoint_every", "200", "-out", folder],
        stdout=subprocess.DEVNULL,
        env=ENVIRONMENT,
    )
    seen, started = 0, time.time()
    while process.poll() is None:
        time.sleep(0.01)
        try:
            step = tail(folder / "log.csv")
            if step < seen + steps // 1000 or step == steps:
                continue
            seen = step
            nanoseconds = int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[0])
            samples.append((step, nanoseconds / 1e3, memory(process.pid, "VmRSS")))
        except (OSError, IndexError, ValueError, TypeError):  # not there yet, or just gone
            continue
        if sys.stderr.isatty():
            print(
                f"\r{step}/{steps} steps, {(time.time() - started) / step * (steps - step):.0f} s"
                " left ",
                end="",
                file=sys.stderr,
            )
    assert process.returncode == 0
    step, micro, resident = np.array(samples).T
    at = np.interp(np.linspace(step[0], step[-1], 51), step, micro)
    cost = np.diff(at) / ((step[-1] - step[0]) / 50)
    first, last = statistics.median(cost[:10]), statistics.median(cost[-10:])
    print(
        f"\r{steps} steps in {time.time() - started:.0f} s; CPU a step: {first:.1f} us in the first"
        f" fifth, {last:.1f} in the last (windows {min(cost):.1f} to {max(cost):.1f}); resident:"
        f" {resident[0]:.2f} MB, then {resident[len(samples) // 20 :].min():.2f} to"
        f" {resident.max():.2f}"
    )
    report(
        "a long run: more CPU a step in the last fifth than in the first",
        100 * (last / first - 1),
        5,
        "%",
    )
    report(
        "a long run: more memory than after a twentieth of it",
        resident.max() - resident[len(samples) // 20],
        0.5,
        "MB",
    )


def large_data(home):
    flags = [*SMALL, *"-vocab 256 -steps 20 -eval_tokens 1024".split()]
    _, cpu, peak = train(home / "synthetic", *flags)
    for name, header in (
        ("large.bin", np.array([20240520, 1, 4 * 10**9] + [0] * 253, "<u4").tobytes()),
        ("large.txt", b""),
    ):
        path = home / name
        path.write_bytes(header)
        os.truncate(path, len(header) + 8 * 10**9)
        _, more_cpu, more_peak = train(home / f"of_{name}", "-data", path, *flags)
        report(f"{name}, 8 GB: CPU beyond a run without a file", more_cpu - cpu, 1, "s")
        # of the file: 2^24 tokens of each part are looked at first
        report(f"{name}, 8 GB: memory beyond a run without a file", more_peak - peak, 80, "MB")


def large_model(home):
    said, cpu, peak = train(
        home / "large", *LARGE, *"-T 32 -batch 2 -steps 3 -eval_tokens 64".split()
    )
    parameters, announced = re.search(r"(\d+) parameters.* ([\d.]+) MB of memory", said).groups()
    print(
        f"{int(parameters) / 1e6:.1f} million parameters, {cpu:.0f} s of CPU: {announced} MB"
        f" announced, {peak:.1f} MB at the peak"
    )
    report("a large model: off what was announced", 100 * abs(peak / float(announced) - 1), 10, "%")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-steps", type=int, default=100000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        large_data(Path(home))
        large_model(Path(home))
        long_run(Path(home), options.steps)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
