"""The stand-in for CUDA (cuda_emu.h), by the small kernels of emu_kernels.cu: a missing barrier, an
access outside of an allocation and a warp call that some lanes leave out are caught, and what is
right comes out right.
"""

import os
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest

from conftest import SANITIZE, TEST, build_emu

ORDERS = "forward", "reverse", "random"
bfloat16 = jnp.bfloat16


@pytest.fixture(scope="session")
def kernels():
    return build_emu("emu_kernels", TEST / "cuda" / "emu_kernels.cu")


@pytest.fixture(scope="session")
def sanitized():
    return build_emu("emu_kernels_sanitized", TEST / "cuda" / "emu_kernels.cu", *SANITIZE)


def run(program, name, *numbers, values=(), **settings):
    """A command of emu_kernels: its exit status, what it wrote as bytes and what it said."""
    environment = {**os.environ, **{"CUDA_EMU_" + k: str(v) for k, v in settings.items()}}
    result = subprocess.run(
        [program, name, *map(str, numbers)],
        input=b"".join(x.tobytes() for x in values),
        capture_output=True,
        env=environment,
    )
    return result.returncode, result.stdout, result.stderr.decode()


def output(program, name, *numbers, dtype=np.float32, **options):
    status, out, said = run(program, name, *numbers, **options)
    assert status == 0, said + out.decode(errors="replace")
    return np.frombuffer(out, dtype)


def stops(program, name, *numbers, **options):
    """What it says when it is stopped."""
    status, _, said = run(program, name, *numbers, **options)
    assert status < 0 or "AddressSanitizer" in said, f"status {status}: {said}"
    return said


# Each: the kernel, its argument, the right result
T = np.arange(128)
MISSING = [
    ("neighbour", 1, ((T + 1) % 128) ** 2),
    ("neighbour", 127, ((T - 1) % 128) ** 2),
    ("neighbour", 32, ((T + 32) % 128) ** 2),
    ("overwrite", 1, ((T + 1) % 128) ** 2 - 1),
    ("overwrite", 127, ((T - 1) % 128) ** 2 - 1),
    ("broadcast", 0, 11 + 0 * T),
    ("broadcast", 127, 11 + 0 * T),
    ("in_warp", 1, (T - T % 32 + (T + 1) % 32) ** 2),
    ("in_warp", 31, (T - T % 32 + (T - 1) % 32) ** 2),
    ("before_load", 0, 1 + 0 * T),
    ("after_copy", 0, T**2),
    ("after_copy", 1, ((T + 1) % 128) ** 2),
    ("after_copy", 127, ((T - 1) % 128) ** 2),
    ("early_copy", 1, ((T + 1) % 128) ** 2 - 1),
    ("early_copy", 127, ((T - 1) % 128) ** 2 - 1),
    ("two_groups", 0, T**2),
]


@pytest.mark.parametrize(
    "name, argument, wanted", MISSING, ids=[f"{name}_{argument}" for name, argument, _ in MISSING]
)
def test_missing_barrier(name, argument, wanted, kernels):
    """With its barrier the result is right in every order; without it, wrong in at least one."""
    for order in ORDERS:
        assert (output(kernels, name, 0, argument, dtype=np.int32, ORDER=order) == wanted).all(), (
            order
        )
    assert any(
        (output(kernels, name, 1, argument, dtype=np.int32, ORDER=order) != wanted).any()
        for order in ORDERS
    )


@pytest.mark.parametrize(
    "name, inside, outside",
    [
        ("store_at", 69, 70),
        ("load_at", 69, 70),
        ("store_at", 0, -1),
        ("load_at", 0, 1000),
        ("shared_at", 31, 32),
    ],
)
def test_outside_of_an_allocation(name, inside, outside, sanitized):
    run_inside = run(sanitized, name, inside)
    assert run_inside[0] == 0, run_inside[2]
    said = stops(sanitized, name, outside)
    assert f"kernel {name}, block (1,0,0), thread (5,0,0)" in said
    assert "AddressSanitizer" in said


@pytest.mark.parametrize("name", ["freed", "host_reads"])
def test_wrong_use_of_device_memory(name, sanitized, kernels):
    """Memory after cudaFree; device memory read by the host."""
    if name == "host_reads":
        assert run(sanitized, name, 0)[0] == 0
        assert "AddressSanitizer" in stops(sanitized, name, 1)
    assert run(kernels, "freed", 0)[0] == 0
    assert "kernel on_two: argument 2 points to no device or pinned memory" in stops(
        kernels, "freed", 1
    )


def test_host_pointer(kernels):
    assert (output(kernels, "host_pointer", 0) == 0).all()
    assert "kernel on_two: argument 2 points to no device or pinned memory" in stops(
        kernels, "host_pointer", 1
    )


def test_unwritten_memory_is_nan(kernels):
    """Shared memory of the second block is not that of the first; device memory that nobody
    wrote."""
    for order in ORDERS:
        x = output(kernels, "unwritten", ORDER=order)
        assert (x[:32] == 1).all() and np.isnan(x[32:]).all(), order


def test_results_need_a_synchronisation(kernels):
    before, after = run(kernels, "too_early")[1].split()
    assert b"nan" in before and after == b"1"


DIVERGENT = dict(
    some_wait="divergent barriers in a block",
    some_end="has ended",
    two_barriers="divergent barriers in a block",
    half_shuffles="divergent barriers in a warp",
    two_shuffles="divergent barriers in a warp",
    mask="with mask 0xffff",
    lane_left_out="has ended",
    misaligned="the address of a row is not a multiple of 16",
    copy_misaligned="cp.async of 16 bytes: an address is not a multiple of that",
    copy_left="a thread ends and has not waited for its copies",
)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", DIVERGENT)
def test_divergence(name, order, kernels):
    assert run(kernels, name, 0, ORDER=order)[0] == 0
    said = stops(kernels, name, 1, ORDER=order)
    assert DIVERGENT[name] in said and f"kernel {name}, block (0,0,0)" in said


def test_part_of_a_warp(kernels):
    assert run(kernels, "small_warp", 0)[0] == 0
    assert "in a warp of 16 threads; 32 are needed" in stops(kernels, "small_warp", 1)


@pytest.mark.parametrize("order", ORDERS)
def test_indices_and_shuffles(order, kernels):
    block, thread = np.divmod(np.arange(24 * 30), 30)
    assert (output(kernels, "indices", dtype=np.uint32, ORDER=order) == block * 1000 + thread).all()
    out = run(kernels, "shuffles", ORDER=order)[1]
    assert (np.frombuffer(out[:128], np.float32) == (np.arange(32) * 7 + 3) % 32).all()
    assert (np.frombuffer(out[128:], np.float64) == 31 * 16 + 8).all()


def test_bf16_rounding(kernels):
    """To nearest, halves to even, as JAX rounds: random bits, and every number halfway between
    two."""
    rng = np.random.default_rng(0)
    bits = np.concatenate(
        [rng.integers(2**32, size=20000), np.arange(2**16) << 16 | 0x8000]
    ).astype(np.uint32)
    x = bits.view(np.float32)
    with np.errstate(all="ignore"):
        wanted = np.asarray(jnp.asarray(x).astype(bfloat16)).view(np.uint16)
    out = run(kernels, "bf16", x.size, values=[x])[1]
    actual, back = (
        np.frombuffer(out[: 2 * x.size], np.uint16),
        np.frombuffer(out[2 * x.size :], np.uint32),
    )
    nan = np.isnan(x)
    assert (actual[~nan] == wanted[~nan]).all() and np.isnan(back.view(np.float32)[nan]).all()
    assert (back == actual.astype(np.uint32) << 16).all()


def as_bf16(x):
    return np.asarray(jnp.asarray(x, jnp.float32).astype(bfloat16))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("by_columns", [0, 1])
def test_mma(by_columns, order, kernels):
    """ldmatrix, both ways, and mma against a plain product."""
    rng = np.random.default_rng(1)
    a, b = as_bf16(rng.standard_normal((16, 16))), as_bf16(rng.standard_normal((16, 8)))
    c = rng.standard_normal((16, 8)).astype(np.float32)
    stored = np.ascontiguousarray(b.T) if by_columns else b
    out = output(kernels, "mma", by_columns, values=[a, stored, c], ORDER=order)
    wanted = 2 * a.astype(float) @ b.astype(float) + c
    np.testing.assert_allclose(out.reshape(16, 8), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
def test_copies(order, kernels):
    """16 bytes, of which the last 0, 4, 8, 12 or 16 are zeros."""
    x = np.arange(1, 129, dtype=np.float32)
    wanted = x.reshape(32, 4) * (np.arange(4) < 4 - np.arange(32)[:, None] % 5)
    out = output(kernels, "copies", values=[x], ORDER=order)
    assert (out.reshape(32, 4) == wanted).all()


def test_powers(kernels):
    x = np.linspace(-140, 20, 128, dtype=np.float32)
    x[:3] = -np.inf, np.inf, np.nan
    wanted = np.where(x < -126, 0, np.exp2(x.astype(float)))
    np.testing.assert_allclose(output(kernels, "powers", values=[x]), wanted, rtol=1e-6)


@pytest.mark.parametrize("before, after", [(0.0, 127.0), (200.0, 200.0)])
def test_maximum(before, after, kernels):
    assert output(kernels, "maximum", values=[np.float32([before])]) == [after]


@pytest.mark.parametrize("bf16", [(0, 0), (1, 0), (1, 1)])
@pytest.mark.parametrize("transposed", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm(transposed, bf16, kernels):
    rng, (ta, tb) = np.random.default_rng(2), transposed
    for m, n, k, extra, alpha, beta in (
        (5, 7, 9, 0, 1, 0),
        (33, 1, 20, 3, 2, 1),
        (1, 17, 0, 1, 1, 2),
    ):
        # rows and columns of a, b and c, kept by columns
        shape = [(k, m) if ta else (m, k), (n, k) if tb else (k, n), (m, n)]
        ld = [max(1, rows) + extra for rows, _ in shape]
        a, b, c = (
            rng.standard_normal((cols, l)).astype(np.float32) for (_, cols), l in zip(shape, ld)
        )
        if not beta:
            c[:] = np.nan  # must not be read
        a, b, c = (
            as_bf16(x) if is16 else x for x, is16 in ((a, bf16[0]), (b, bf16[0]), (c, bf16[1]))
        )
        wanted = c.astype(float)
        x, y = (z.astype(float)[:, :rows].T for z, (rows, _) in zip((a, b), shape[:2]))
        product = alpha * (x.T if ta else x) @ (y.T if tb else y)
        wanted[:, :m] = product.T + (beta * wanted[:, :m] if beta else 0)
        numbers = ta, tb, m, n, k, *ld, *bf16, alpha, beta
        out = output(
            kernels,
            "gemm",
            *numbers,
            a.size,
            b.size,
            c.size,
            values=[a, b, c],
            dtype=bfloat16 if bf16[1] else np.float32,
        )
        np.testing.assert_allclose(
            out.astype(float).reshape(c.shape), wanted, rtol=2**-8 if bf16[1] else 0, atol=1e-5
        )
    out_of_bounds = 0, 0, 4, 4, 4, 4, 4, 5, *bf16, 1, 0
    assert "c, 4 x 4 with a leading dimension of 5, is not inside" in stops(
        kernels, "gemm", *out_of_bounds, 16, 16, 18, values=[np.zeros(1000, np.float32)]
    )
    status, out, _ = run(
        kernels,
        "gemm",
        0,
        0,
        4,
        4,
        4,
        3,
        4,
        4,
        *bf16,
        1,
        0,
        16,
        16,
        16,
        values=[np.zeros(1000, np.float32)],
    )
    assert status == 1 and b"unsupported value" in out


def test_graph(kernels):
    assert (output(kernels, "graph", 0) == 3).all()
    assert b"not permitted when stream is capturing" in run(kernels, "graph", 1)[1]


@pytest.mark.parametrize(
    "command, settings, wanted",
    [
        (["launch", 0, 1, 32], {}, "invalid configuration argument"),
        (["launch", 1, 1, 1025], {}, "invalid configuration argument"),
        (["launch", 1, 65536, 32], {}, "invalid configuration argument"),
        (["copy", 129], {}, "invalid argument"),
        (["fork"], {}, "initialization error"),
        (["unwritten"], dict(DEVICES=0), "no CUDA-capable device"),
        (["unwritten"], dict(DEVICES="old"), "driver version is insufficient"),
        (["unwritten"], dict(MEMORY=279), "out of memory"),
        (["unwritten"], dict(FAIL=2), "unknown error"),
    ],
    ids=str,
)
def test_errors(command, settings, wanted, kernels):
    """What CUDA reports as an error, and what it is told to pretend."""
    assert wanted in run(kernels, *command, **settings)[1].decode()


def test_memory_just_enough(kernels):
    assert run(kernels, "unwritten", MEMORY=280)[0] == 0


@pytest.mark.parametrize(
    "line, refused",
    [
        ("__global__ void k(float *x) { atomicAdd(x, 1.0f); }", "atomicAdd"),
        ("__constant__ float c[4];", "__constant__"),
        ("__managed__ float c;", "__managed__"),
        ("extern __shared__ float s[];", "conflicting specifiers"),
        (
            "__device__ float f(float x) { return __shfl_xor_sync(~0u, x, 1, 16); }",
            "__shfl_xor_sync",
        ),
        (
            "__device__ float f(float4 x) { return __shfl_xor_sync(~0u, x, 1).x; }",
            "shuffles of this type",
        ),
        ("__device__ __nv_bfloat16 f(__nv_bfloat16 x) { return x + x; }", "operator+"),
        ("__device__ float f(__nv_bfloat16 x) { return x; }", "cannot convert"),
        ("void f() { cudaMallocManaged(0, 4); }", "cudaMallocManaged"),
        ("void f() { cudaDeviceReset(); }", "cudaDeviceReset"),
        (
            "__global__ void k(int) {} void f() { k<<<1, 1>>>(1); }",
            "expected primary-expression before ‘<’",
        ),
    ],
    ids=lambda x: x[:40],
)
def test_refused(line, refused):
    """What is not supported does not compile, and the compiler names it."""
    result = subprocess.run(
        ["g++", "-std=c++17", "-fsyntax-only", "-DCUDA_EMU", "-x", "c++", "-"],
        input=f'#include "cuda_emu.h"\n{line}\n',
        cwd=TEST / "cuda",
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    assert result.returncode != 0 and refused in result.stderr, result.stderr
