"""`make bench`: training speed at four shapes, beside what this machine's multiply, OpenBLAS and JAX reach.

Every round runs build/bench (ours, its own multiply and OpenBLAS, in turn) and then test/bench_jax.py, all on the same
cores. The table shows medians; a ratio is the median of the rounds' ratios, each of figures measured at one time.
"""

import argparse
import ctypes.util
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from statistics import median

TEST = Path(__file__).resolve().parent
SHAPES = [
    ((32, 2, 2, 32, 16), 1),
    ((128, 4, 4, 64, 12), 2),
    ((256, 6, 4, 256, 4), 2),
    ((512, 8, 8, 512, 2), 2),
]
VOCABULARY = 256
ROW = "{:17} {:>7} | {:>8} {:>8} | {:>8} {:>6} | {:>8} {:>6} | {:>8} {:>6}"
HEADER = [
    ROW.format("", "", "", "training", "multiply", "1024^3", "OpenBLAS", "2048^3", "", "JAX"),
    ROW.format(
        "C, L, NH, T, B",
        "threads",
        "tokens/s",
        "GFLOP/s",
        *["GFLOP/s", "ratio"] * 2,
        "tokens/s",
        "ratio",
    ),
]


def find_openblas():
    """The library and the name of its sgemm: numpy's own, else the system's, else nothing."""
    for folder in sys.path:
        for library in Path(folder).glob("numpy.libs/libscipy_openblas64*.so"):
            return [str(library), "scipy_cblas_sgemm64_"]
    library = ctypes.util.find_library("openblas")
    return [library, "cblas_sgemm"] if library else []


def machine():
    try:
        name = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):
        name = platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores"


def run(command, threads, numbers):
    """Runs the command on so many cores; the numbers that it prints. RuntimeError says what went wrong."""
    one = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    environment = dict(
        os.environ,
        OMP_NUM_THREADS=str(threads),
        OPENBLAS_NUM_THREADS=str(threads),
        GOMP_SPINCOUNT="5000",
        KMP_BLOCKTIME="1",
        XLA_FLAGS=one if threads == 1 else "",
    )
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads]))
    try:
        result = subprocess.run(
            ["taskset", "-c", cores, *map(str, command)],
            env=environment,
            capture_output=True,
            text=True,
        )
    except OSError as error:
        raise RuntimeError(error) from None
    found = re.search(numbers, result.stdout)
    if result.returncode or not found:
        said = (
            result.stderr.strip() or result.stdout.strip() or "it printed nothing"
        ).splitlines()[-1]
        raise RuntimeError(f"exit status {result.returncode}: {said}")
    return [float(number) for number in found.groups()]


def progress(text):
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


def ratio(ours, theirs):
    return f"{median(a / b for a, b in zip(ours, theirs)):.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seconds",
        type=float,
        default=3,
        help="of each part of a round, at least five steps (default 3)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--no-jax", action="store_true", help="leave JAX out")
    options = parser.parse_args()
    if not 0 <= options.seconds < 1e6 or options.rounds < 1:
        parser.error("--seconds takes a number from 0, --rounds one from 1")

    openblas, failed = find_openblas(), 0
    parts = {
        "ours": ([TEST.parent / "build/bench"], openblas, r"^(\S+) (\S+) (\S+) (\S+)\n$"),
        "JAX": ([sys.executable, TEST / "bench_jax.py"], [], r"(\S+) tokens/s"),
    }
    if options.no_jax:
        del parts["JAX"]
    print(
        f"{machine()}; OpenBLAS: {Path(openblas[0]).name if openblas else 'not found, its columns stay empty'}"
    )
    print(*HEADER, sep="\n", flush=True)
    for shape, threads in SHAPES:
        name, threads = ", ".join(map(str, shape)), min(threads, len(os.sched_getaffinity(0)))
        seen = {part: [] for part in parts}
        for number in range(options.rounds):
            for part in list(seen):
                command, library, numbers = parts[part]
                progress(f"{name}: round {number + 1} of {options.rounds}, {part}")
                try:
                    seen[part].append(
                        run(
                            [*command, *shape, VOCABULARY, options.seconds, *library],
                            threads,
                            numbers,
                        )
                    )
                except RuntimeError as error:
                    progress("")
                    print(f"bench: {name}: {part} failed: {error}", file=sys.stderr)
                    del seen[part]
                    failed = 1
        cells = [""] * 8
        if "ours" in seen:
            tokens, rate, own, blas = zip(*seen["ours"])
            cells[:4] = (
                f"{median(tokens):.0f}",
                f"{median(rate):.1f}",
                f"{median(own):.1f}",
                ratio(rate, own),
            )
            if openblas:
                cells[4:6] = f"{median(blas):.1f}", ratio(rate, blas)
        if "JAX" in seen:
            (jax,) = zip(*seen["JAX"])
            cells[6:] = f"{median(jax):.0f}", ratio(tokens, jax) if "ours" in seen else ""
        progress("")
        print(ROW.format(name, threads, *cells).rstrip(), flush=True)
    print(
        f"V = {VOCABULARY}; rounds: {options.rounds}, medians; ratio: our training over that. "
        "Model FLOPs: 6 (N - embedding) + 12 L T/2 C a token."
    )
    return failed


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        progress("")
        sys.exit("bench: interrupted")
