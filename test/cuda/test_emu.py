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
    width="width 12; it must be 1, 2, 4, 8, 16 or 32",
    far_lane="by 32 lanes; there are 32",
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


@pytest.mark.parametrize("order", ORDERS)
def test_warp_calls(order, kernels):
    """Shuffles, votes and sums over a warp, as the CUDA C++ Programming Guide defines them; two
    warps do not see each other."""
    t = np.arange(64)
    x = lambda thread: thread * thread + 1
    lane, warp = t % 32, t - t % 32
    fold = lambda f: np.repeat([f(x(t[:32])), f(x(t[32:]))], 32)
    votes = np.repeat([sum(1 << i for i in range(32) if (i + w) % 3 == 0) for w in (0, 32)], 32)
    wanted = [
        x(warp + 5),
        x(t - t % 8 + (t % 4 + 9) % 8),
        x(warp + 3),
        x(np.where(lane >= 3, t - 3, t)),
        x(np.where(t % 4 >= 1, t - 1, t)),
        x(np.where(lane + 3 < 32, t + 3, t)),
        x(np.where(t % 4 < 3, t + 1, t)),
        x(t ^ 5),
        x(np.where(lane & 8, t - 8, t)),  # only an earlier group may be read
        votes,
        warp == 32,
        warp == 0,
        fold(np.sum),
        fold(np.max),
        fold(np.min),
        32 + 0 * t,
    ]
    out = output(kernels, "warp_calls", dtype=np.uint32, ORDER=order).reshape(-1, 64)
    for i, (found, right) in enumerate(zip(out, wanted, strict=True)):
        assert (found == right).all(), (i, found, right)


@pytest.mark.parametrize("order", ORDERS)
def test_books_sum(order, kernels):
    x = np.arange(1, 129, dtype=np.float32)
    out = output(kernels, "books_sum", values=[x], ORDER=order)
    assert (out[::32] == x.reshape(4, 32).sum(1)).all()


@pytest.mark.parametrize("order", ORDERS)
def test_atomics(order, kernels):
    out = output(kernels, "atomics", dtype=np.float64, ORDER=order)
    assert (out[:5] == [8128, -8128, 127, -200, 256]).all()
    assert (out[6:9] == [128 * 2.0**33, 64, 32]).all()
    if order == "forward":
        assert out[5] == 127 and out[9] == 1


def test_functions(kernels):
    """What CUDA calls rsqrtf, __expf, max and their like."""
    x = np.linspace(0.1, 9, 128, dtype=np.float32)
    a, b = x.astype(float), x.astype(float) + 1
    whole = x.astype(int)
    wanted = [
        *(a**-0.5, a**-0.5, np.exp(a), np.log(a), np.log2(a), np.log10(a), a**b, np.sin(a)),
        *(np.cos(a), a / b, 1 / a, a**0.5, a**-0.5, a * b + a, a + b, np.clip(a - 1, 0, 1), a),
        *(np.minimum(a, 1), np.maximum(whole, 2), [bin(i).count("1") for i in whole]),
        *([32 - int(i).bit_length() for i in whole], b),
    ]
    out = output(kernels, "functions", values=[x]).reshape(-1, 128)
    for i, (found, right) in enumerate(zip(out, wanted, strict=True)):
        np.testing.assert_allclose(found, right, rtol=3e-6, atol=1e-6, err_msg=str(i))


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


# The numbers of emu_kernels' product: a problem, as the algorithm is asked for and as it is done,
# and how. A is (m,k), B (k,n), C and D (m,n).
PROBLEM = dict(ta=0, tb=0, m=5, n=7, k=9, lda=16, ldb=16, ldd=16, in16=1, out16=1)
USE = dict(
    beta=0, apart=0, short_one=0, late=0, promise=16, workspace=1024, compute=68, graph=0, mistake=0
)
MATRICES = "a", "b", "c", "d"


def product(program, asked={}, settings={}, seed=2, **changes):
    """Runs a product of random matrices, and checks D, with the ends of its columns. asked: where
    the algorithm's problem differs from the product's."""
    p, use = PROBLEM | changes, USE | changes
    numbers = [(p | asked)[x] for x in PROBLEM] + [p[x] for x in PROBLEM] + [use[x] for x in USE]
    rng = np.random.default_rng(seed)
    ta, tb, m, n, k = (p[x] for x in "ta tb m n k".split())
    types = [bfloat16 if p[x] else np.float32 for x in ("in16", "in16", "out16")]
    a, b, c = (
        np.asarray(jnp.asarray(rng.standard_normal(shape), t))
        for shape, t in zip(
            (
                (m if ta else k, p["lda"]),
                (k if tb else n, p["ldb"]),
                (n, p["ldd"]),
            ),
            types,
        )
    )
    if not use["beta"]:
        c = c * np.asarray(np.nan, c.dtype)  # must not be read
    status, out, said = run(program, "product", *numbers, values=[a, b, c], **settings)
    if status:
        return status, out.decode(errors="replace") + said
    A, B = a.astype(float)[:, : k if ta else m].T, b.astype(float)[:, : n if tb else k].T
    sums = (
        0.5
        * ((A.T if ta else A) @ (B.T if tb else B)).T
        * (3 if use["graph"] and use["beta"] else 1)
    )
    if use["beta"]:
        sums += c.astype(float)[:, :m]
    wanted = c.astype(float) if use["beta"] and not use["apart"] else np.full(c.shape, np.nan)
    wanted[:, :m] = sums
    np.testing.assert_allclose(
        np.frombuffer(out, types[2]).astype(float),
        wanted.ravel()[: p["ldd"] * (n - 1) + m],
        rtol=2**-8 if p["out16"] else 0,
        atol=1e-5,
    )
    return 0, ""


TYPES = [(0, 0), (1, 0), (1, 1)]
TRANSPOSED = [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize("in16, out16", TYPES)
@pytest.mark.parametrize("ta, tb", TRANSPOSED)
def test_product(ta, tb, in16, out16, kernels):
    """Of odd sizes; C is not read, is D, or is not D."""
    for m, n, k in (5, 7, 9), (33, 1, 20), (1, 17, 1):
        lda, ldb, ldd = (-(-x // 8) * 8 for x in (k if ta else m, n if tb else k, m))
        for more in dict(beta=0), dict(beta=1), dict(beta=1, apart=1, ldd=ldd + 8, lda=lda + 16):
            settings = dict(ta=ta, tb=tb, m=m, n=n, k=k, lda=lda, ldb=ldb, ldd=ldd) | more
            assert product(kernels, in16=in16, out16=out16, **settings) == (0, ""), settings


def test_fp32_needs_four_elements(kernels):
    """A leading dimension of 12 is 48 bytes in fp32, and 24 in bf16."""
    for name in "lda", "ldb", "ldd":
        assert product(kernels, in16=0, out16=0, **{name: 12})[0] == 0
        assert "not supported" in product(kernels, **{name: 12})[1]


def test_product_in_a_graph(kernels):
    """Only recorded when it is called; its three runs add up."""
    assert product(kernels, beta=1, in16=0, out16=0, graph=1) == (0, "")


@pytest.mark.parametrize("i", range(4), ids=MATRICES)
def test_product_outside_of_an_allocation(i, kernels, sanitized):
    settings = dict(beta=1, apart=1)
    assert product(sanitized, **settings)[0] == 0
    status, said = product(kernels, short_one=i + 1, **settings)
    assert status < 0 and f"cublasLtMatmul: {MATRICES[i]}, " in said and "is not inside" in said


@pytest.mark.parametrize(
    "name, other, settings",
    [
        ("ta", 1, {}),
        ("tb", 1, {}),
        ("m", 7, {}),
        ("n", 7, {}),
        ("k", 7, {}),
        ("lda", 24, {}),
        ("ldb", 24, {}),
        ("ldd", 24, {}),
        ("in16", 0, dict(out16=0)),
        ("out16", 0, {}),
    ],
)
def test_an_algorithm_is_for_one_problem(name, other, settings, kernels):
    """Both problems are right, and one's algorithm is refused for the other."""
    settings = dict(m=8, n=8, k=8) | settings
    assert product(kernels, **settings) == (0, "")
    assert product(kernels, **settings | {name: other}) == (0, "")
    status, said = product(kernels, asked={name: other}, **settings)
    assert status == 1 and "unsupported value" in said, said


INVALID, UNSUPPORTED = "unsupported value", "requested is not supported"


@pytest.mark.parametrize(
    "settings, wanted",
    [
        (dict(m=17), INVALID),  # more rows than the leading dimension
        (dict(k=17), INVALID),
        (dict(m=0), INVALID),
        (dict(n=0), INVALID),
        (dict(k=0), INVALID),
        (dict(late=1), INVALID),
        (dict(late=2), INVALID),
        (dict(late=3, beta=1, apart=1), INVALID),
        (dict(late=4), INVALID),
        (dict(promise=512), INVALID),
        (dict(workspace=1023), INVALID),
        (dict(workspace=1025), INVALID),
        (dict(promise=8), UNSUPPORTED),
        (dict(in16=0, out16=1), UNSUPPORTED),
        (dict(beta=2), "beta is 2; it must be 0 or 1"),
        (dict(compute=77), "only CUBLAS_COMPUTE_32F"),
    ],
    ids=str,
)
def test_product_refused(settings, wanted, kernels):
    status, said = product(kernels, **settings)
    assert status in (1, -6) and wanted in said, said


MISTAKES = dict(
    no_handle_asks="not initialized",
    no_handle="not initialized",
    strange_stream=INVALID,
    late_workspace=INVALID,
    c_unlike_d=INVALID,
    b_unlike_a=INVALID,
    any_scheme="only CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE",
    no_algorithm=INVALID,
    half_a_setting=INVALID,
    another_setting="attribute 7; only TRANSA and TRANSB are supported",
)


@pytest.mark.parametrize("name", MISTAKES)
def test_mistaken_product(name, kernels):
    status, said = product(kernels, mistake=1 + list(MISTAKES).index(name))
    assert status in (1, -6) and MISTAKES[name] in said, said


def test_every_call_of_a_product_can_fail(kernels):
    for n in range(1, 100):
        status, said = product(kernels, settings=dict(FAIL=n), graph=1)
        if status == 0:
            break
        assert status == 1 and ("unknown error" in said or "failed to execute" in said), said
    assert n > 40, n


def test_what_a_kernel_was_built_for(kernels):
    assert run(kernels, "attributes")[1] == b"80 90\n"
    assert run(kernels, "attributes", PTX=52, CAPABILITY=120)[1] == b"52 120\n"


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
        ("__global__ void k(char *x) { atomicAdd(x, 1); }", "atomics of this type"),
        ("__global__ void k(float *x) { atomicMax(x, 1.0f); }", "atomicMax takes whole numbers"),
        ("__device__ int f(int x) { return max(x, 1.0f); }", "nvcc asks for a cast"),
        ("__global__ void k() { __shared__ float x[warpSize]; x[0] = 1; }", "storage size"),
        ("__device__ int f() { return __activemask(); }", "the stand-in has no __activemask"),
        ("__constant__ float c[4];", "__constant__"),
        ("__managed__ float c;", "__managed__"),
        ("extern __shared__ float s[];", "conflicting specifiers"),
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
        ["g++", "-std=c++17", "-S", "-o", "/dev/null", "-DCUDA_EMU", "-x", "c++", "-"],
        input=f'#include "cuda_emu.h"\n{line}\n',
        cwd=TEST / "cuda",
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    assert result.returncode != 0 and refused in result.stderr, result.stderr
