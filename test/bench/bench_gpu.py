"""`make bench_gpu`: what training reaches on this machine's GPU, kernel by kernel, beside what the
GPU can do and PyTorch does.

Each shape runs build/bench_gpu, with its batch doubled until that pays no more, and then
test/bench/bench_torch.py with the same batch where PyTorch is installed. Limits (cuBLAS's bf16
product, a copy on the device) are measured in the same run.
"""

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LADDER = (  # C, L, NH: from 10 thousand to 100 million parameters
    (16, 1, 1),
    (32, 2, 2),
    (64, 2, 4),
    (96, 4, 6),
    (192, 4, 6),
    (256, 8, 8),
    (448, 10, 8),
    (768, 14, 12),
)
SHAPES = [(*rung, 512, 256) for rung in LADDER] + [
    (C, L, C // 64, 512, 32128) for C, L in ((512, 8), (1024, 16), (2048, 24))
]
PAYS = 1.02  # a batch twice as large is taken where it makes training this much faster
ROW = "  {:28} {:>8} {:>6} {:>9} | {:>8} {:>8} | {:>8} {:>7}"


def run(command):
    """What it prints; RuntimeError says what went wrong."""
    try:
        result = subprocess.run([*map(str, command)], capture_output=True, text=True)
    except OSError as error:
        raise RuntimeError(error) from None
    if result.returncode:
        raise RuntimeError(
            (
                result.stderr.strip() or result.stdout.strip() or f"exit status {result.returncode}"
            ).splitlines()[-1]
        )
    return result.stdout


def measure(options, shape, B):
    """bench_gpu's lines: the words of each but kernel's, and a list of kernels."""
    flags = [
        x
        for name, value in zip(("-d", "-layers", "-heads", "-T", "-vocab"), shape)
        for x in (name, value)
    ]
    lines = [
        line.split(" ", 1)
        for line in run(
            [
                options.program,
                options.cube,
                options.bytes,
                *flags,
                "-batch",
                B,
                "-steps",
                options.steps,
                "-lr",
                "1e-4",
            ]
        ).splitlines()
    ]
    kernels = [rest.split() for word, rest in lines if word == "kernel"]
    return (
        {word: rest.split() for word, rest in lines if word not in ("kernel", "gpu")},
        [(name, *map(float, x)) for name, *x in kernels],
        dict(lines)["gpu"],
    )


def best_batch(speed, B=8):
    """The largest batch (B, 2 B, 4 B ..., or less where that does not fit) that was PAYS times as
    fast as its half, and what speed(it) was: (tokens/s, ...)."""
    best = None
    while True:
        try:
            found = speed(B)
        except RuntimeError as error:
            if "memory" not in str(error) or (B == 1 and not best):
                raise
            if best:
                return B // 2, best
            B //= 2
            continue
        if best and found[0] < PAYS * best[0]:
            return B // 2, best
        best, B = found, 2 * B


def report(words, kernels, torch, cube):
    """The table of a shape, line by line."""
    C, L, NH, T, B, V, parameters = map(int, words["model"])
    seconds, flops, peak = map(float, words["step"])
    product, copy = map(float, words["limits"])
    yield (
        f"C {C}, L {L}, NH {NH}, T {T}, V {V}: {1e-6 * parameters:.3g} million parameters,"
        f" batch {B}"
    )
    yield (
        f"  {B * T / seconds:.0f} tokens/s; model FLOPs {1e-12 * flops / seconds:.4g} TFLOP/s,"
        f" {flops / seconds / product:.1%} of cuBLAS's {1e-12 * product:.4g} at {cube}^3;"
        f" {1e-9 * peak:.3g} GB"
    )
    if torch:
        version, torch_B, torch_seconds, torch_peak = torch
        rate = int(torch_B) * T / float(torch_seconds)
        yield (
            f"  PyTorch {version}, batch {torch_B}: {rate:.0f} tokens/s,"
            f" {1e-9 * float(torch_peak):.3g} GB; train_gpt_cu is {B * T / seconds / rate:.2f}"
            " times as fast"
        )
    yield ROW.format("kernel", "launches", "step", "us", "TFLOP/s", "of limit", "GB/s", "of copy")
    for name, launches, took, work, moved in sorted(kernels, key=lambda kernel: -kernel[2]):
        cells = [f"{1e-12 * work / took:.4g}", f"{work / took / product:.1%}"] if work else ["", ""]
        cells += [f"{1e-9 * moved / took:.4g}", f"{moved / took / copy:.1%}"] if moved else ["", ""]
        yield ROW.format(
            name.removesuffix("_kernel"),
            f"{launches:.0f}",
            f"{took / seconds:.1%}",
            f"{1e6 * took:.4g}",
            *cells,
        ).rstrip()
    yield ROW.format(
        "all",
        f"{sum(kernel[1] for kernel in kernels):.0f}",
        f"{sum(kernel[2] for kernel in kernels) / seconds:.1%}",
        f"{1e6 * seconds:.4g}",
        *[""] * 4,
    ).rstrip()


def main():
    numbers = lambda text: tuple(map(int, text.split(",")))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--program", default=ROOT / "build/bench_gpu", help="default build/bench_gpu"
    )
    parser.add_argument(
        "--shape",
        type=numbers,
        action="append",
        help="C,L,NH,T,V; may be repeated (default: the ladder and three more)",
    )
    parser.add_argument("--batch", type=int, default=0, help="default: as large as pays")
    parser.add_argument(
        "--steps", type=int, default=30, help="of which the median is shown (default 30)"
    )
    parser.add_argument(
        "--cube",
        type=int,
        default=8192,
        help="N of the product of N^3 that is the limit (default 8192)",
    )
    parser.add_argument(
        "--bytes", type=float, default=4e9, help="that the copy reads and writes (default 4e9)"
    )
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    options = parser.parse_args()
    if (
        options.steps < 1
        or options.cube < 1
        or options.bytes < 32
        or options.batch < 0
        or any(len(s) != 5 for s in options.shape or [])
    ):
        parser.error(
            "--steps and --cube take a number from 1, --bytes from 32, --batch from 0, --shape five"
            " numbers"
        )
    with_torch, failed = not options.no_torch and importlib.util.find_spec("torch") is not None, 0

    def speed(shape, B):
        words, kernels, gpu = measure(options, shape, B)
        return B * shape[3] / float(words["step"][0]), words, kernels, gpu

    for number, shape in enumerate(options.shape or SHAPES):
        try:
            B, (_, words, kernels, gpu) = (
                (options.batch, speed(shape, options.batch))
                if options.batch
                else best_batch(lambda B: speed(shape, B))
            )
            if not number:
                why_not = "left out" if options.no_torch else "not installed"
                print(
                    f"{gpu}; medians of {options.steps} steps;"
                    f" PyTorch: {'measured too' if with_torch else why_not}"
                )
            torch = None
            try:
                C, L, NH, T, V = shape
                torch = (
                    run(
                        [sys.executable, HERE / "bench_torch.py", C, L, NH, T, B, V, options.steps]
                    ).split()[-4:]
                    if with_torch
                    else None
                )
            except RuntimeError as error:
                print(f"bench_gpu: {shape}: PyTorch failed: {error}", file=sys.stderr)
                failed = 1
            print("", *report(words, kernels, torch, options.cube), sep="\n", flush=True)
        except RuntimeError as error:
            print(f"bench_gpu: {shape}: {error}", file=sys.stderr)
            failed = 1
            if not number:  # there is no GPU, or no program
                return failed
    print(
        "step: the kernel's share of it. FLOPs and bytes: what a kernel must compute, and move to"
        " and from memory (test/bench/bench_gpu.cu). Model FLOPs: 6 (N - embedding) + 12 L T/2 C a"
        " token."
    )
    return failed


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("bench_gpu: interrupted")
