"""train_gpt.cu against train_gpt.c (design.md section 6, layer 3): the same weights and batches must give the same losses,
gradients and AdamW steps. On the CPU over the stand-in cuda_emu.h, or, with GPU=1 (make test_gpu), on this machine's GPU."""
import csv
import functools
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
import safetensors.numpy

from conftest import ROOT, SANITIZE, TEST, Library, Model, build, build_emu
from test_oracle import ACTIVATIONS, BASE, CASES, ILL_CONDITIONED, all_close, batches, close, config, model

GPU = bool(os.environ.get("GPU"))
ORDERS = ("forward",) if GPU else ("forward", "reverse", "random")    # of a block's threads; a GPU has its own
NVCC = shutil.which("nvcc")

# Beside the oracle's shapes, those that fill several of the kernels' tiles and warps. eps as in test_oracle.py.
MORE = dict(
    long=dict(d=16, heads=2, layers=1, T=150, eps=1e-3),
    head_of_80=dict(d=160, heads=2, layers=1, T=40, eps=1e-3),
    head_of_150=dict(d=300, heads=2, layers=1, T=5, qk_norm=0, eps=1e-3),
    wide=dict(d=1032, heads=6, layers=1, T=3, vocab=19, eps=1e-3),
    many_symbols=dict(d=8, heads=1, layers=1, vocab=5003, T=4, eps=1e-3),
)
SHAPES = {**CASES, **MORE}


def shim(*flags):
    """cu_shim.cu as a library."""
    if GPU:
        return build("cu_shim_gpu", [NVCC or "nvcc", "-std=c++17", "-O3", "-arch=native", "-Xcompiler", "-fPIC", "-shared", "-I", str(ROOT),
                                     str(TEST / "cu_shim.cu"), "-lcublas", *flags], ".so")
    return build_emu("cu_shim", TEST / "cu_shim.cu", "-fPIC", "-shared", *flags, suffix=".so")


@pytest.fixture(scope="session")
def cuda():
    return Library(False, shim())


def steps(library, cfg, number=5):
    """For each step: its loss, log Z, largest attention logits, RMS of activations and gradient norm; its gradients; and the
    weights and moments after it."""
    m, stream, out = model(library, cfg), batches(cfg), []
    for step in range(1, number + 1):
        batch = next(stream)
        loss = m.backward(*batch)
        log_z, grads = m.log_z(), copies(m.g)
        assert step > 1 or m.forward(*batch) == loss, "the forward pass alone gives another loss"
        norm = m.update(step)
        out.append((dict(loss=loss, log_z=log_z, logits=m.max_attn_logits(), act_rms=m.act_rms(), norm=norm), grads, *map(copies, (m.p, m.m, m.v))))
    return out


def copies(tensors):
    return {n: x.copy() for n, x in tensors.items()}


@functools.cache
def reference(library, case):
    """train_gpt.c's steps."""
    return steps(library, config(**SHAPES[case]), 2 if case in MORE else 5)


def same_bits(a, b):
    for step, (x, y) in enumerate(zip(a, b), 1):
        for name in x[0]:
            assert np.array_equal(x[0][name], y[0][name]), f"step {step} {name}"
        for tensors, others, what in zip(x[1:], y[1:], ("gradient", "weight", "m", "v")):
            for name in tensors:
                assert (tensors[name] == others[name]).all(), f"step {step} {what} {name}"


def check_fp32(library, case, wanted):
    """To 1e-4: what a step measures, every gradient, and the weights and moments after it. Returns the steps."""
    tolerance, out = ILL_CONDITIONED.get(("float", case), 1e-4), steps(library, dict(config(**SHAPES[case]), dtype="fp32"), len(wanted))
    for step, ((seen, *tensors), (wanted_seen, *wanted)) in enumerate(zip(out, wanted), 1):
        for name in seen:
            close(seen[name], wanted_seen[name], tolerance, f"step {step} {name}")
        all_close(tensors[0], wanted[0], tolerance, f"step {step} gradient")
        for x, y, what in zip(tensors[1:], wanted[1:], ("weight", "m", "v")):
            all_close(x, y, tolerance, f"step {step} {what}", norm=np.linalg.norm)
    return out


@pytest.mark.parametrize("case", SHAPES)
def test_fp32(case, cuda, float_library, monkeypatch):
    """Five AdamW steps (of the larger shapes two) equal train_gpt.c's; and have the same bits in every order of the threads,
    and from run to run."""
    first = check_fp32(cuda, case, reference(float_library, case))
    for order in ORDERS[1:] or ORDERS:
        monkeypatch.setenv("CUDA_EMU_ORDER", order)
        same_bits(first, steps(cuda, dict(config(**SHAPES[case]), dtype="fp32"), 1 if case in MORE else 5))


# bf16 has 8 bits: a product's factors are off by up to 2^-9 each, and Adam makes full steps of gradients that are 0 but
# for rounding. So each is compared over the tensor, and weights only by the losses that they give.
BF16_CASES = [c for c in SHAPES if c not in ("head_of_2_normed", "one_token", "one_token_off")]


def relative_error(actual, wanted):
    return np.linalg.norm(actual - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize("case", BF16_CASES)
def test_bf16(case, cuda, float_library, monkeypatch):
    cfg = dict(config(**SHAPES[case]), dtype="bf16")
    wanted = reference(float_library, case)
    first = steps(cuda, cfg, len(wanted))
    for step, (actual, exact) in enumerate(zip(first, wanted), 1):
        print(case, step, "loss", abs(actual[0]["loss"] / exact[0]["loss"] - 1), {k: round(float(np.max(relative_error(np.atleast_1d(actual[0][k]), np.atleast_1d(exact[0][k])))), 5) for k in actual[0]})
        if step == 1:
            print("GRAD", {n: round(float(relative_error(actual[1][n], exact[1][n])), 5) for n in exact[1]})
