"""`make bench_gpu` without a GPU: what it counts against counts by hand, its table, its search for
a batch, and its PyTorch model against train_gpt.c."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import bench_gpu
from conftest import TEST, Model, build_emu
from test_oracle import all_close, batches, close, config

try:
    import torch
except ImportError:  # too large to be installed for one test
    torch = None

NVCC = shutil.which("nvcc")


def built(*flags):
    return build_emu("bench_gpu", TEST / "bench" / "bench_gpu.cu", "-O0", *flags)


@pytest.fixture(scope="session")
def program():
    return built()


# B 2, T 8: 16 rows of C 16, 256 values. L 2, NH 2, HS 8, V 50; 7856 parameters with qk-norm, of
# which 800 wte's; TOKENS of the 50 occur. Products have 56 values of the vocabulary, a multiple of
# 8, and 56 C = 896. A kernel: its launches, FLOPs, values of activations, floats.
TOKENS = 14
LAYER, VALUES = 2 * 16 * 16 * 16, 256  # FLOPs of a product (rows,C) x (C,C)
FC1, FC2 = 256 + 1024 + 1024, 1024 + 1024 + 256
COUNTS = {
    "product_forward": (
        9,
        2 * (3 + 1 + 4 + 4) * LAYER + 2 * 16 * 16 * 56,
        2 * (256 + 768 + 768) + 2 * (256 + 256 + 256) + 2 * (FC1 + FC2) + (256 + 896 + 896),
        0,
    ),
    "product_backward_input": (
        9,
        2 * (3 + 1 + 4 + 4) * LAYER + 2 * 16 * 16 * 56,
        2 * (768 + 768 + 256) + 2 * (256 + 256 + 256) + 2 * (FC1 + FC2) + (896 + 896 + 256),
        0,
    ),
    # it adds to gradients: reads them and writes them
    "product_backward_weight": (
        9,
        2 * (3 + 1 + 4 + 4) * LAYER + 2 * 16 * 16 * 56,
        2 * (256 + 768) + 2 * (256 + 256) + 4 * (256 + 1024) + (256 + 896),
        2 * (2 * (768 + 256 + 1024 + 1024) + 896),
    ),
    "embedding_forward_kernel": (1, 0, 2 * VALUES, 0),
    "residual_layernorm_forward_kernel": (5, 0, (2 + 4 * 4) * VALUES, 0),
    "qk_norm_rope_forward_kernel": (2, 0, 2 * 4 * VALUES, 0),
    # L, 2 products, B T T C halved
    "attention_forward_kernel": (2, 2 * 2 * (2 * 2 * 8 * 8 * 16) // 2, 2 * 4 * VALUES, 0),
    "gelu_forward_kernel": (2, 0, 2 * 2 * 1024, 0),
    "cross_entropy_kernel": (1, 0, 2 * 16 * 50, 0),
    "residual_layernorm_backward_kernel": (5, 0, 5 * 4 * VALUES, 0),
    "gelu_backward_kernel": (2, 0, 2 * 3 * 1024, 0),
    "attention_dq_kernel": (2, 2 * 3 * (2 * 2 * 8 * 8 * 16) // 2, 2 * 6 * VALUES, 0),
    "attention_dkv_kernel": (2, 2 * 4 * (2 * 2 * 8 * 8 * 16) // 2, 2 * 6 * VALUES, 0),
    "qk_norm_rope_backward_kernel": (2, 0, 2 * 6 * VALUES, 0),
    # a sum per row of threads, 16 for 16 rows; the 32 heads of q, and of k, are one block
    "sum_partials_kernel": (2, 0, 0, 5 * 16 * 16 + 4 * 1 * 8),
    "embedding_backward_kernel": (1, 0, VALUES, 2 * TOKENS * 16),
    "memset": (2, 0, VALUES, 7856),  # the gradients, and the residual stream's
    "loss_kernel": (1, 0, 0, 2 * 16),
    "squares_kernel": (1, 0, 0, 7856),
    "grad_norm_kernel": (1, 0, 0, 0),
    "adamw_kernel": (1, 0, 7856, 7 * 7856),  # the bf16 copy is the activations' size
}


def lines(program, *flags):
    result = subprocess.run(
        [
            program,
            "32",
            "4096",
            *"-d 16 -layers 2 -heads 2 -T 8 -batch 2 -vocab 50 -steps 1".split(),
            *flags,
        ],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return [line.split(" ") for line in result.stdout.splitlines()]


def test_counts(program):
    """Of each kernel that a step launches, and of the step."""
    seen = lines(program)
    kernels = {words[1]: words[2:] for words in seen if words[0] == "kernel"}
    assert kernels.keys() == COUNTS.keys()
    for name, (launches, flops, activations, floats) in COUNTS.items():
        count, seconds, work, moved = map(float, kernels[name])
        assert (count, work, moved) == (
            launches,
            flops,
            2 * activations + 4 * floats,
        ) and seconds > 0, name
    step = next(map(float, words[1:]) for words in seen if words[0] == "step")
    assert [words[1:] for words in seen if words[0] == "model"] == [
        ["16", "2", "2", "8", "2", "50", "7856"]
    ]
    seconds, flops, peak = step
    # cuBLAS's workspace, and little else
    assert (
        seconds > 0
        and flops == 16 * (6 * (7856 - 800) + 12 * 2 * 8 / 2 * 16)
        and 2**25 < peak < 2**26
    )
    products = sum(COUNTS[name][1] for name in COUNTS if name.startswith("product"))
    # 6 FLOPs a row and weight, with 6 C zeros
    assert products == 6 * 16 * (7856 - 800 - 5 * 16 - 4 * 8 + 6 * 16)


@pytest.mark.parametrize(
    "precision, flags, size", [(["-DFP32"], [], 4), ([], ["-qk_norm", "0"], 2)], ids=str
)
def test_counts_elsewhere(precision, flags, size):
    """In fp32, and without qk-norm."""
    output = lines(built(*precision), *flags)
    seen = {words[1]: words[2:] for words in output if words[0] == "kernel"}
    for name, values in dict(
        gelu_forward=2 * 2 * 1024,
        gelu_backward=2 * 3 * 1024,
        attention_forward=2 * 4 * VALUES,
        qk_norm_rope_backward=2 * (6 if size == 4 else 4) * VALUES,
    ).items():
        assert float(seen[name + "_kernel"][3]) == size * values, name
    assert float(seen["adamw_kernel"][3]) == (30 * (7856 - 32) if size == 2 else 28 * 7856)
    assert float(seen["sum_partials_kernel"][3]) == 4 * (5 * 16 * 16 + (4 * 8 if size == 4 else 0))


def test_table():
    """Rates and shares, from times that are easy to divide by."""
    words = dict(
        model="64 2 4 32 16 256 1000000".split(),
        step=["2e-3", "8e9", "5e9"],
        limits=["8e13", "4e12"],
    )
    kernels = [
        ("adamw_kernel", 1, 5e-4, 0, 1e9),
        ("product_forward", 9, 1e-3, 4e10, 1e9),
        ("grad_norm_kernel", 1, 1e-5, 0, 0),
    ]
    text = list(bench_gpu.report(words, kernels, ["2.9.0", "8", "4e-3", "7e9"], 8192))
    assert [re.sub(" +", " ", line) for line in text] == [
        "C 64, L 2, NH 4, T 32, V 256: 1 million parameters, batch 16",
        " 256000 tokens/s; model FLOPs 4 TFLOP/s, 5.0% of cuBLAS's 80 at 8192^3; 5 GB",
        " PyTorch 2.9.0, batch 8: 64000 tokens/s, 7 GB; train_gpt_cu is 4.00 times as fast",
        " kernel launches step us | TFLOP/s of limit | GB/s of copy",
        " product_forward 9 50.0% 1000 | 40 50.0% | 1000 25.0%",
        " adamw 1 25.0% 500 | | 2000 50.0%",
        " grad_norm 1 0.5% 10 | |",
        " all 11 75.5% 2000 | |",
    ]


@pytest.mark.parametrize(
    "rates, fits, wanted",
    [
        ({8: 10, 16: 19, 32: 30, 64: 30.1}, 64, 32),
        ({8: 10, 16: 19}, 16, 16),
        ({4: 5, 2: 3}, 4, 4),
        ({8: 10, 16: 9}, 16, 8),
    ],
    ids=str,
)
def test_batch(rates, fits, wanted):
    """Doubled while it pays and fits, halved until it fits."""

    def speed(B):
        if B > fits:
            raise RuntimeError("the run needs 200 GB of GPU memory")
        return rates[B], f"of {B}"

    assert bench_gpu.best_batch(speed) == (wanted, (rates[wanted], f"of {wanted}"))
    for message in "the run needs 1 TB of GPU memory", "the GPU failed":

        def never(B):
            raise RuntimeError(message)

        with pytest.raises(RuntimeError, match=message):
            bench_gpu.best_batch(never)


def test_command(program, tmp_path):
    """The whole command: its table on the stand-in; one line and exit status 1 for a shape that
    cannot be measured."""
    command = [
        sys.executable,
        TEST / "bench" / "bench_gpu.py",
        "--program",
        program,
        "--shape",
        "16,2,2,8,50",
        "--shape",
        "16,2,3,8,50",
        "--steps",
        "1",
        "--cube",
        "16",
        "--bytes",
        "4096",
        "--no-torch",
    ]
    result = subprocess.run([*command, "--batch", "2"], capture_output=True, text=True)
    assert result.returncode == 1 and re.fullmatch(
        r"bench_gpu: \(16, 2, 3, 8, 50\): .*-heads.*\n", result.stderr
    ), result.stderr
    assert result.stdout.startswith(
        "stand-in for CUDA on the CPU; medians of 1 steps; PyTorch: left out\n"
        "\n"
        "C 16, L 2, NH 2, T 8, V 50: "
    )
    for name in COUNTS:
        assert re.search(
            rf"^  {name.removesuffix('_kernel')} +{COUNTS[name][0]} ", result.stdout, re.M
        ), name
    assert [(16, 1, 1), (768, 14, 12)] == [
        shape[:3] for shape in (bench_gpu.SHAPES[0], bench_gpu.SHAPES[-4])
    ] and len(bench_gpu.SHAPES) == 11
    diverges = (
        "-d 16 -heads 2 -T 4 -batch 1 -steps 1 -warmup 0 -clip 0 -lr 1e30 -min_lr 1e30 -qk_norm 0"
    ).split()
    result = subprocess.run([program, "16", "4096", *diverges], capture_output=True, text=True)
    assert result.returncode == 1 and "not finite" in result.stderr, result.stderr
    for wrong in ["7"], ["x", "4096"], ["31", "4096"], ["32", "4096", "-steps", "0"]:
        assert subprocess.run([program, *wrong], capture_output=True, cwd=tmp_path).returncode == 2


@pytest.mark.skipif(not NVCC, reason="nvcc is not installed")
@pytest.mark.parametrize("flags", [[], ["-DFP32"]], ids=str)
def test_nvcc(flags):
    subprocess.run(
        [
            NVCC,
            "-std=c++17",
            *flags,
            "-O0",
            "-Xcicc",
            "-O0",
            "-Xptxas",
            "-O0",
            "-arch=sm_90",
            "-Werror",
            "all-warnings",
            "-c",
            "-o",
            os.devnull,
            TEST / "bench" / "bench_gpu.cu",
        ],
        check=True,
    )


@pytest.mark.skipif(not torch, reason="PyTorch is not installed")
@pytest.mark.parametrize(
    "shape",
    [
        dict(),
        dict(d=64, heads=4, T=32, batch=4, vocab=256, z_loss=1e-1),
        dict(d=20, heads=1, layers=1, T=7),
    ],
    ids=str,
)
def test_torch(shape, float_library):
    """The PyTorch model's loss and gradients equal train_gpt.c's at the same parameters."""
    from bench_torch import GPT

    cfg = config(**shape)
    ours, batch = Model(float_library, **cfg), next(batches(cfg))
    theirs = GPT(cfg["d"], cfg["layers"], cfg["heads"], cfg["T"], cfg["vocab"], cfg["z_loss"])
    theirs.load_state_dict({name: torch.from_numpy(p.copy()) for name, p in ours.p.items()})
    loss = theirs(*(torch.from_numpy(np.asarray(x, np.int64)) for x in batch))
    loss.backward()
    ours.backward(*batch)
    close(loss.item(), ours.total_loss(), 1e-5, "loss")
    all_close(
        {name: p.grad.numpy() for name, p in theirs.named_parameters()}, ours.g, 1e-4, "gradient"
    )
