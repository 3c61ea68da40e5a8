"""`make bench`: training speed on the CPU, beside the machine's limits, JAX and PyTorch.

A round of a shape runs each program once, one after another, on the same cores. A figure is the
median of the rounds. A ratio is the median of the rounds' ratios, so that its two figures belong to
the same minute. Two shapes run again with busy loops beside, which this program starts and ends.
"""

import argparse
import contextlib
import ctypes.util
import itertools
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median

BENCH = Path(__file__).resolve().parent
PROGRAM = BENCH.parent.parent / "build/bench"
VOCABULARY = 256
SHAPES = [  # C, L, NH, T, B, threads
    (32, 2, 2, 32, 16, 1),
    (64, 2, 4, 32, 16, 1),
    (128, 4, 4, 64, 12, 2),
    (256, 6, 4, 256, 4, 2),
    (512, 8, 8, 512, 2, 2),
]
LOADED = SHAPES[1:3]  # measured on two threads with busy loops beside, too
LOOPS = (1, 4)

# Our threads spin for a moment and then sleep, as in train_gpt.
WAITING = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1", "KMP_USE_YIELD": "2"}
ONE_XLA_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
HOLD_OPENBLAS_BACK = {"OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"}  # set on some machines

# Ends when the process that started it (its argument) is gone, even killed.
BUSY_LOOP = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
while os.getppid() == int(sys.argv[1]):
    for _ in range(1000000):
        pass
"""

LIMITS = "{:17} {:>7} {:>8} {:>6} | {:>4} {:>5} | {:>4} {:>5} | {:>4} {:>5}"
LIMITS_HEAD = """
                          our training    |    peak    |  OpenBLAS  |  multiply
C, L, NH, T, B    threads tokens/s   GF/s | GF/s ratio | GF/s ratio | GF/s ratio"""
PEERS = "{:17} {:>8} | {:>8} {:>5} | {:>8} {:>5} | {:>8} {:>5}"
PEERS_HEAD = """
                    ours   |      JAX       | PyTorch, eager | PyTorch, compiled
C, L, NH, T, B    tokens/s | tokens/s ratio | tokens/s ratio | tokens/s ratio"""
LOAD = "{:17} {:>5} | {:>10} | {:>8} {:>5} | {:>8} {:>5}"
LOAD_HEAD = """
                  busy  | one thread |  two threads   |      JAX
C, L, NH, T, B    loops |   tokens/s | tokens/s ratio | tokens/s ratio"""
LEGEND = """
tokens/s: training, which is forward pass, backward pass and AdamW, of the model
with C channels, L layers, NH heads, T tokens a sequence, B sequences a batch
and a vocabulary of {vocabulary}. JAX and PyTorch train the same model.
GF/s: 10^9 floating-point operations (FLOPs) a second. A token takes 6 for each
parameter outside the embedding, and 12 L T/2 C for attention.
peak: multiply-adds in vector registers alone, on the same threads.
OpenBLAS: its product of two matrices of 2048 x 2048.
multiply: our product of two matrices of 1024 x 1024.
ratio: our training divided by the figure on the left of the ratio.
busy loops: processes beside that compute without end, on the same two cores.
Ratios there are our two threads to our one thread, and to JAX's two threads.
Figures are medians of the rounds ({rounds}), ratios medians of the rounds' ratios."""


@dataclass
class Part:
    """A program to measure; before and after stand around the shape in its command."""

    name: str
    before: list
    after: list = field(default_factory=list)
    threads: int = 0  # 0: the row's
    environment: dict = field(default_factory=dict)


@dataclass
class Row:
    """A row of a table; runs[part's name] gets the figures of each round."""

    shape: tuple
    threads: int
    loops: int
    parts: list
    runs: dict = field(default_factory=dict)
    failed: list = field(default_factory=list)

    def __str__(self):
        return ", ".join(map(str, self.shape))

    def figure(self, name, key="tokens/s", digits=0):
        runs = self.runs.get(name)
        return f"{median(run[key] for run in runs):.{digits}f}" if runs and key in runs[0] else ""

    def ratio(self, of, to, key="tokens/s", to_key="tokens/s"):
        pairs = list(zip(self.runs.get(of, []), self.runs.get(to, [])))
        if not pairs or to_key not in pairs[0][1]:
            return ""
        return f"{median(a[key] / b[to_key] for a, b in pairs):.2f}"


def find_openblas():
    """Returns numpy's library or the system's, and its names of two functions; or an empty list."""
    for folder in sys.path:
        for library in Path(folder).glob("numpy.libs/libscipy_openblas64*.so"):
            return [str(library), "scipy_cblas_sgemm64_", "scipy_openblas_get_corename64_"]
    library = ctypes.util.find_library("openblas")
    return [library, "cblas_sgemm", "openblas_get_corename"] if library else []


def why_no_torch(python):
    """Returns the reason why this Python cannot import PyTorch, or an empty text if it can."""
    try:
        command = [python, "-c", "import torch"]
        result = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        return str(error)
    if result.returncode == 0:
        return ""
    last = (result.stderr.strip() or f"exit status {result.returncode}").splitlines()[-1]
    return last.removeprefix("ModuleNotFoundError: ")


def machine(cores):
    try:
        name = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):
        name = platform.machine()
    return f"{name}, {len(cores)} of {os.cpu_count()} cores"


@contextlib.contextmanager
def busy(loops, cores):
    """Keeps this many busy loops on the cores, and ends them whatever happens."""
    command = ["taskset", "-c", cores, sys.executable, "-c", BUSY_LOOP, str(os.getpid())]
    running = []
    try:
        for _ in range(loops):
            running.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        yield
    finally:
        for loop in running:
            loop.kill()
        for loop in running:
            loop.wait()


def run(part, row, seconds):
    """Runs a part beside the row's busy loops and returns its figures, or raises RuntimeError."""
    threads = part.threads or row.threads
    environment = {k: v for k, v in os.environ.items() if k not in HOLD_OPENBLAS_BACK}
    environment |= part.environment
    environment |= {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    environment["XLA_FLAGS"] = ONE_XLA_THREAD if threads == 1 else ""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[: row.threads]))
    command = [*part.before, *row.shape, VOCABULARY, seconds, *part.after]
    command = ["taskset", "-c", cores, *map(str, command)]
    try:
        with busy(row.loops, cores):
            result = subprocess.run(command, env=environment, capture_output=True, text=True)
    except OSError as error:
        raise RuntimeError(error) from None
    figures = dict(re.findall(r"^(\S+) (\S+)$", result.stdout, re.M))
    if result.returncode or "tokens/s" not in figures:
        said = (result.stderr.strip() or result.stdout.strip() or "no output").splitlines()[-1]
        raise RuntimeError(f"exit status {result.returncode}: {said}")
    words = ("kernel", "version")
    return {key: value if key in words else float(value) for key, value in figures.items()}


def progress(text):
    if sys.stderr.isatty():
        text = text[: shutil.get_terminal_size().columns - 1]
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


def duration(seconds):
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def measure(rows, options):
    """Runs the parts of each row, round after round, and yields the row."""
    todo = [(row, part) for row in rows for _ in range(options.rounds) for part in row.parts]
    took = {}  # (part's name, busy loops): the seconds of each run

    def guess(row, part):
        return mean(took.get((part.name, row.loops), [options.seconds + 5]))

    for row in rows:
        for number in range(options.rounds):
            for part in row.parts:
                left = sum(guess(*job) for job in todo)
                todo.pop(0)
                if part in row.failed:
                    continue
                beside = f", {row.loops} busy loop{'s' * (row.loops > 1)}" if row.loops else ""
                place = f"{row}{beside}: round {number + 1} of {options.rounds}, {part.name}"
                progress(f"{place}; {duration(left)} left")
                start = time.monotonic()
                try:
                    figures = run(part, row, options.seconds)
                    row.runs.setdefault(part.name, []).append(figures)
                except RuntimeError as error:
                    progress("")
                    print(f"bench: {row}: {part.name} failed: {error}", file=sys.stderr)
                    row.runs.pop(part.name, None)
                    row.failed.append(part)
                took.setdefault((part.name, row.loops), []).append(time.monotonic() - start)
        progress("")
        yield row


def number(low, high, kind):
    """Returns a type for argparse: numbers of this kind from low to high."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            sort = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"'{text}': expected a {sort} from {low} to {high}")
        return value

    return parse


def shape(text):
    """A type for argparse: C,L,NH,T,B,threads."""
    try:
        C, L, NH, T, B, threads = numbers = tuple(map(int, text.split(",")))
        if min(numbers) >= 1 and C % (2 * NH) == 0:
            return numbers
    except ValueError:
        pass
    expected = "C,L,NH,T,B,threads, whole numbers from 1, C a multiple of 2 NH"
    raise argparse.ArgumentTypeError(f"'{text}': expected {expected}")


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rounds", type=number(1, 1000, int), default=3, help="rounds of each shape (default 3)"
    )
    parser.add_argument(
        "--seconds",
        type=number(0, 1000, float),
        default=3,
        help="of each program in a round, and at least five steps (default 3)",
    )
    parser.add_argument(
        "--shape",
        type=shape,
        action="append",
        metavar="C,L,NH,T,B,threads",
        help="measure this shape, in each table; may be repeated (default: five shapes)",
    )
    parser.add_argument("--no-jax", action="store_true", help="leave JAX out")
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    parser.add_argument("--no-load", action="store_true", help="leave the busy loops out")
    parser.add_argument(
        "--python", default="python3", help="the Python that has PyTorch (default python3)"
    )
    return parser.parse_args()


def limits_cells(row):
    yield from (row, row.threads, row.figure("ours"), row.figure("ours", "training", 1))
    for limit in ("peak", "openblas", "multiply"):
        yield row.figure("ours", limit)
        yield row.ratio("ours", "ours", "training", limit)


def peers_cells(row):
    yield from (row, row.figure("ours"))
    for peer in ("JAX", "PyTorch eager", "PyTorch compiled"):
        yield row.figure(peer)
        yield row.ratio("ours", peer)


def load_cells(row):
    yield from (row, row.loops, row.figure("one thread"), row.figure("two threads"))
    yield from (row.ratio("two threads", "one thread"), row.figure("JAX"))
    yield row.ratio("two threads", "JAX")


def show(line, cells):
    print(line.format(*map(str, cells)).rstrip(), flush=True)


def main():
    options = parse_options()
    cores, openblas = os.sched_getaffinity(0), find_openblas()
    with_jax, with_load = not options.no_jax, not options.no_load and len(cores) > 1
    no_torch = options.no_torch or why_no_torch(options.python)
    print(machine(cores))
    if not openblas:
        print("OpenBLAS: neither numpy's nor the system's was found")
    if not with_jax:
        print("JAX: --no-jax")
    if options.no_torch:
        print("PyTorch: --no-torch")
    elif no_torch:
        print(f"PyTorch: {no_torch}; make bench PYTHON=a Python that has it")
    if not with_load:
        print(f"busy loops: {'--no-load' if options.no_load else 'they need two cores'}")

    def ours(name, **settings):
        return Part(name, [PROGRAM], environment=WAITING, **settings)

    quiet = [ours("ours", after=["limits", *openblas])]
    loaded = [ours("one thread", threads=1), ours("two threads")]
    if with_jax:
        jax = Part("JAX", [sys.executable, BENCH / "bench_jax.py"])
        quiet.append(jax)
        loaded.append(jax)
    if not no_torch:
        for how in ("eager", "compiled"):
            torch = [options.python, BENCH / "bench_torch_cpu.py", how]
            quiet.append(Part(f"PyTorch {how}", torch))
    rows, busy_rows = [], []
    for *shape, threads in options.shape or SHAPES:
        rows.append(Row(shape, min(threads, len(cores)), 0, quiet))
    for *shape, _ in (options.shape or LOADED) if with_load else []:
        busy_rows += [Row(shape, 2, loops, loaded) for loops in LOOPS]

    measured = measure(rows + busy_rows, options)
    print(LIMITS_HEAD, flush=True)
    for row in itertools.islice(measured, len(rows)):
        show(LIMITS, limits_cells(row))
    if len(quiet) > 1:
        print(PEERS_HEAD)
        for row in rows:
            show(PEERS, peers_cells(row))
    if busy_rows:
        print(LOAD_HEAD, flush=True)
    for row in measured:
        show(LOAD, load_cells(row))
    print(LEGEND.format(vocabulary=VOCABULARY, rounds=options.rounds))
    for name, key, text in (
        ("ours", "kernel", "OpenBLAS ran its kernel for {}."),
        ("JAX", "version", "JAX is version {}."),
        ("PyTorch eager", "version", "PyTorch is version {}."),
    ):
        found = {row.runs[name][0][key] for row in rows if key in row.runs.get(name, [{}])[0]}
        if found:
            print(text.format(*found))
    return int(any(row.failed for row in rows + busy_rows))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        progress("")
        sys.exit("bench: interrupted")
