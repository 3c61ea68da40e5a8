"""train_gpt.cu's attention alone against train_gpt.c's, in both precisions. On the CPU over the
stand-in cuda_emu.h, or, with GPU=1, on this machine's GPU.
"""

import ctypes
import os
import shutil

import ml_dtypes
import numpy as np
import pytest

from conftest import ROOT, TEST, Library, build, build_emu, packed

GPU = bool(os.environ.get("GPU"))
ORDERS = ("forward",) if GPU else ("forward", "reverse", "random")
TOLERANCE = dict(fp32=1e-5, bf16=1e-2)


class Attention(Library):
    """attention_shim.cu: of Library's functions only the two of attention."""

    def __init__(self, path, tolerance):
        self.c, self.real, self.tolerance = ctypes.CDLL(str(path)), np.float32, tolerance


@pytest.fixture(scope="session", params=["fp32", "bf16"])
def attention(request):
    flags, source = ["-DFP32"] * (request.param == "fp32"), TEST / "cuda" / "attention_shim.cu"
    if GPU:
        nvcc = [shutil.which("nvcc"), "-std=c++17", "-O3", "-arch=native", "-Xcompiler", "-fPIC"]
        libraries = ["-shared", "-I", str(ROOT), str(source), "-lcublas", "-lcublasLt"]
        path = build("attention_gpu", [*nvcc, *flags, *libraries], ".so")
    else:
        path = build_emu("attention", source, "-fPIC", "-shared", *flags, suffix=".so")
    return Attention(path, TOLERANCE[request.param])


def capped(library, q, k, v, dout, cap):
    """As run, of the scores under a cap."""
    (B, T, NH, HS), (qk, qkv) = q.shape, packed(q, k, v)
    out, softmax = library.empty(B, T, NH, HS), library.empty(B, NH, T, 2)
    largest, dqkv = library.empty(NH), library.empty(B, T, 3, NH, HS)
    given = qk, qkv, scale(q.shape), float(cap), *q.shape
    library.call("capped_forward", out, softmax, *given, largest)
    library.call("capped_backward", dqkv, dout, out, softmax, *given)
    return out, largest, *(dqkv[:, :, i] for i in range(3))


def capped_exactly(q, k, v, dout, cap):
    """The same from the formulas, in double, with p and ds as matrices."""
    q, k, v, dout = (x.astype(float).swapaxes(1, 2) for x in (q, k, v, dout))
    s = scale(q.swapaxes(1, 2).shape) * (q @ k.swapaxes(2, 3))
    hidden = np.triu(np.ones(s.shape[2:], bool), 1)
    largest = np.where(hidden, 0, abs(s)).max((0, 2, 3))
    bounded = np.where(hidden, -np.inf, cap * np.tanh(s / cap))
    p = np.exp(bounded - bounded.max(3, keepdims=True))
    p /= p.sum(3, keepdims=True)
    out, dp = p @ v, dout @ v.swapaxes(2, 3)
    ds = p * (dp - (p * dp).sum(3, keepdims=True)) / np.cosh(np.minimum(abs(s / cap), 300)) ** 2
    ds *= scale(q.swapaxes(1, 2).shape)
    gradients = ds @ k, ds.swapaxes(2, 3) @ q, p.swapaxes(2, 3) @ dout
    return out.swapaxes(1, 2), largest, *(x.swapaxes(1, 2) for x in gradients)


def rounded(x):
    """Numbers that bf16 holds, so that both precisions start from the same."""
    return np.asarray(x, ml_dtypes.bfloat16).astype(np.float32)


def numbers(shape):
    """q, k, v and the gradient of out, (B,T,NH,HS)."""
    rng = np.random.default_rng(0)
    return [rounded(rng.standard_normal(shape)) for _ in range(4)]


def scale(shape):
    return float(np.float32(shape[3] ** -0.5))


def run(library, q, k, v, dout):
    """out, the largest |score|, and the gradients of q, k and v."""
    out, softmax, largest = library.attention_forward(q, k, v, scale(q.shape))
    return out, largest, *library.attention_backward(dout, out, softmax, q, k, v, scale(q.shape))


def near(actual, wanted, tolerance):
    for x, y, name in zip(actual, wanted, ("out", "largest score", "dq", "dk", "dv")):
        assert np.isfinite(x).all(), name
        error = np.abs(x - y).max() / max(np.abs(y).max(), 1e-6)
        allowed = 1e-6 if name == "largest score" else tolerance
        assert error <= allowed, f"{name} is off by {error:.1e}"


# Of each padded size of a head (32, 64, 128), lengths that end inside of a tile and of a block
SHAPES = [
    (1, 1, 1, 8),
    (3, 5, 2, 8),
    (2, 70, 2, 16),
    (1, 150, 2, 24),
    (1, 33, 2, 40),
    (1, 130, 1, 64),
    (1, 64, 1, 80),
    (1, 200, 1, 128),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, attention, float_library, monkeypatch):
    """As train_gpt.c, and the same bits in every order of the threads."""
    given = numbers(shape)
    wanted, first = run(float_library, *given), run(attention, *given)
    near(first, wanted, attention.tolerance)
    for order in ORDERS[1:] or ORDERS:
        monkeypatch.setenv("CUDA_EMU_ORDER", order)
        for x, y in zip(run(attention, *given), first):
            assert np.array_equal(x, y), order


@pytest.mark.parametrize("cap", [0.3, 2, 50, 1e4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cap(shape, cap, attention, monkeypatch):
    """Values, gradients, and each head's largest score before the cap: as the formulas in double;
    the same bits in every order."""
    given = [2 * numbers(shape)[0], *numbers(shape)[1:]]
    first = capped(attention, *given, cap)
    # in float tanh is right to 1e-7: a score to 1e-7 of the cap
    near(first, capped_exactly(*given, cap), attention.tolerance + 1e-6 * cap)
    for order in ORDERS[1:] or ORDERS:
        monkeypatch.setenv("CUDA_EMU_ORDER", order)
        for x, y in zip(capped(attention, *given, cap), first):
            assert np.array_equal(x, y), order


@pytest.mark.parametrize("size", [1e-30, 1e3, 1e6, 1e15])
def test_cap_of_extreme_scores(size, attention):
    """Every score is the cap, or minus the cap, or nearly 0; no gradient is left of q and k."""
    q, k, v, dout = numbers((2, 70, 2, 64))
    q[..., 1:], k[..., 1:] = 0, 0
    q[..., 0] = k[..., 0] = rounded(size)
    k[:, ::2] *= -1
    actual = capped(attention, q, k, v, dout, 5)
    near(actual[:2], capped_exactly(q, k, v, dout, 5)[:2], attention.tolerance)
    near([actual[4]], [capped_exactly(q, k, v, dout, 5)[4]], attention.tolerance)
    for x in actual[2:4]:
        assert np.isfinite(x).all() and (size < 1 or (x == 0).all())


def test_a_large_cap_is_none(attention):
    given = numbers((1, 70, 2, 64))
    with_it, without = capped(attention, *given, 1e3), run(attention, *given)
    assert with_it[1].max() == np.float32(without[1])
    for i in 0, 2, 3, 4:
        near([with_it[i]], [without[i]], attention.tolerance + 1e-3)


def test_without_the_largest_score(attention):
    """The same bits whether it is measured or not."""
    q, k, v, _ = numbers((1, 150, 1, 64))
    wanted, softmax, _ = attention.attention_forward(q, k, v, scale(q.shape))
    out, other = np.full_like(wanted, np.nan), np.full_like(softmax, np.nan)
    qk, qkv = packed(q, k, v)
    attention.call("attention_forward", out, other, qk, qkv, scale(q.shape), *q.shape, None)
    assert np.array_equal(out, wanted) and np.array_equal(other, softmax)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("size", [1e2, 1e3, 1e6, 1e15])
def test_large_scores(size, sign, attention, float_library):
    """Scores of about size^2, all alike, from the first half of the channels: each query's p are
    1 / their number, forward and in both kernels of the backward pass."""
    q, k, v, dout = numbers((1, 70, 2, 64))
    q[..., :32], k[..., :32], q[..., 32:] = rounded(size / 5), rounded(sign * size / 7), 0
    wanted, actual = run(float_library, q, k, v, dout), run(attention, q, k, v, dout)
    for x in wanted, actual:  # where dq is not a sum of zero, nor dk of zeros
        x[2][..., :32], x[3][:] = 0, 0
    near(actual, wanted, attention.tolerance)


def test_p_sums_to_one_backward(attention):
    """Scores of 1e6: p decides between two keys, the same two forward and backward."""
    q, k, v, dout = numbers((1, 150, 1, 64))
    dv = run(attention, q * 1024, k * 1024, v, dout)[4]
    error = np.abs(dv.sum(1, dtype=float) - dout.sum(1, dtype=float)).max()
    assert error <= attention.tolerance * np.abs(dout).sum(1).max()


def test_scores_of_minus_infinity(attention, float_library):
    """In the first tile there are no others: p is 0 for them, and not NaN once there are."""
    q, k, v, _ = numbers((1, 150, 1, 64))
    q[..., 0], k[..., 0] = 1, 0
    k[0, :100, 0, 0] = -np.inf
    out = attention.attention_forward(q, k, v, scale(q.shape))[0]
    wanted = float_library.attention_forward(q, k, v, scale(q.shape))[0]
    assert np.isnan(out[0, :100]).all() and np.isnan(wanted[0, :100]).all()
    near([out[0, 100:]], [wanted[0, 100:]], attention.tolerance)


@pytest.mark.parametrize("name", ["q", "k"])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_score_that_is_not_a_number(number, name, attention):
    """It shows in out of each query that sees it, and in no other."""
    q, k, v, _ = numbers((1, 150, 1, 64))
    (q if name == "q" else k)[0, 90, 0, 3] = number
    q[..., 3] = np.abs(q[..., 3])  # a score of infinity, not -infinity
    k[..., 3] = np.abs(k[..., 3])
    out = attention.attention_forward(q, k, v, scale(q.shape))[0]
    bad = np.arange(150) == 90 if name == "q" else np.arange(150) >= 90
    assert np.array_equal(np.isnan(out[0, :, 0]).all(1), bad)
    assert np.isfinite(out[0, ~bad]).all()
