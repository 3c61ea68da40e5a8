"""Each layer of the float library against float64 numpy, forward and backward, at ordinary and at
extreme inputs: -ffast-math was wrong there while finite differences passed. Needs numpy alone, so
that it also runs under AddressSanitizer.

Bounds are multiples of U, the rounding error of a float, times what the exact result can be large
by; where a layer cannot but amplify rounding (a logit of 1e6 is itself rounded by 0.03) the bound
says so by its condition number.
"""

import ml_dtypes
import numpy as np
import pytest

U = 2.0**-24


@pytest.fixture(scope="module", params=[1, 3], ids=["thread", "threads"])
def lib(float_library, request):
    """Each test with one thread and with three, more than this machine may have and dividing
    nothing."""
    float_library.threads(request.param)
    yield float_library
    float_library.threads(1)


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def within(actual, wanted, bound, what=""):
    actual = np.asarray(actual, np.float64)
    assert np.isfinite(actual).all(), f"{what} is not finite"
    excess = abs(actual - wanted) - bound
    at = np.unravel_index(excess.argmax(), excess.shape)
    assert (excess <= 0).all(), (
        f"{what} at {at}: {actual[at]:.9g}, should be {wanted[at]:.9g} within "
        f"{np.broadcast_to(bound, excess.shape)[at]:.2g}"
    )


# ---- matrix multiply


def sizes():
    rng = np.random.default_rng(5)
    small = [tuple(rng.integers(1, 71, 3)) for _ in range(60)]
    edges = [
        (1, 1, 1),
        (1, 70, 1),
        (70, 1, 70),
        (1, 33, 300),
        (65, 1, 17),
        (12, 32, 16),
        (13, 33, 257),
        (24, 64, 512),
        (11, 31, 1030),
        (200, 130, 70),
        (3, 1030, 5),
        (530, 7, 9),
    ]
    return [tuple(map(int, s)) for s in small + edges]


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("add", ["none", "other", "out"])
def test_matmul(lib, rng, trans_a, trans_b, add):
    """Sizes that divide no tile, any transpose, nothing / another array / out itself added,
    addresses that are not aligned; nothing is written outside out."""
    for M, N, K in sizes():

        def matrix(rows, cols, guard=1):  # one float past an allocation's start
            whole = lib.array(rng.standard_normal(rows * cols + 2 * guard))
            return whole, whole[guard:-guard].reshape(rows, cols)

        (_, a), (_, b) = (
            matrix(*((K, M) if trans_a else (M, K))),
            matrix(*((N, K) if trans_b else (K, N))),
        )
        (whole, out), (_, other) = matrix(M, N, guard=37), matrix(M, N)
        before, wanted_add = (
            whole.copy(),
            dict(none=np.zeros((M, N)), other=other, out=out.copy())[add].astype(float),
        )
        if add != "out":
            out[...] = np.nan
        lib.matmul(out, a, b, dict(none=None, other=other, out=out)[add], M, N, K, trans_a, trans_b)
        op_a, op_b = (
            x.T if t else x for x, t in ((a.astype(float), trans_a), (b.astype(float), trans_b))
        )
        within(
            out,
            wanted_add + op_a @ op_b,
            (K + 2) * U * (abs(wanted_add) + abs(op_a) @ abs(op_b)),
            f"{M} x {N} x {K}",
        )
        assert (whole[:37] == before[:37]).all() and (whole[-37:] == before[-37:]).all(), (
            f"{M} x {N} x {K}: out of bounds"
        )


def test_products_wait_for_their_tasks(lib, rng):
    """The line after a product may read it: the tasks of all threads have ended."""
    rows, IC, OC = 200, 130, 250
    x, w = lib.array(rng.standard_normal((rows, IC))), lib.array(rng.standard_normal((OC, IC)))
    dout = lib.array(rng.standard_normal((rows, OC)))
    products = [x.astype(float) @ w.T, dout.astype(float) @ w, dout.T.astype(float) @ x]
    sizes = [abs(x) @ abs(w).T, abs(dout) @ abs(w), abs(dout).T @ abs(x)]
    for _ in range(20):
        seen = lib.matmul_forward(x, w), *lib.matmul_backward(dout, x, w)
        for actual, wanted, size, K in zip(seen, products, sizes, (IC, OC, rows)):
            within(actual, wanted, (K + 2) * U * size, f"product over {K}")


# ---- layer norm


def layernorm_rows(rng, C):
    rows = 70  # more than one group of rows, and than one chunk
    x = rng.standard_normal((rows, C))
    outlier, alternate = np.zeros((rows, C)), np.resize([1e6, -1e6], (rows, C))
    outlier[:, C // 2] = 1e6
    return dict(
        ordinary=x,
        shifted=x + 100,
        tiny=1e-6 * x,
        below_epsilon=1e-12 * x,
        million=1e6 * x,
        outlier=outlier,
        alternate=alternate,
        million_shifted=1e6 + 1e5 * x,
        zeros=0 * x,
        equal=0 * x + 0.7,
        equal_huge=0 * x + 1e6,
        mixed=x * 10.0 ** np.resize(np.arange(-2, 6), rows)[:, None],
    )


@pytest.mark.parametrize("C", [2, 3, 8, 24, 70, 256])
@pytest.mark.parametrize("kind", layernorm_rows(np.random.default_rng(0), 2))
def test_layernorm(lib, rng, kind, C):
    """Condition number: x's rounding, U max|x|, is amplified by 1 / sigma (equal rows: by 1 /
    sqrt(epsilon))."""
    x32, w32 = lib.array(layernorm_rows(rng, C)[kind]), lib.array(1 + rng.standard_normal(C))
    x, w = x32.astype(float), w32.astype(float)
    mean = x.mean(-1, keepdims=True)
    rstd = 1 / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-6)
    xhat = (x - mean) * rstd
    condition = (16 + C / 8) * U * (1 + abs(x).max(-1, keepdims=True) * rstd)

    out, mean32, rstd32 = lib.layernorm_forward(x32, w32)
    within(out, xhat * w, condition * abs(w).max() * (1 + abs(xhat)), "out")
    assert (
        abs(out) <= 1.001 * np.sqrt(C) * abs(w)
    ).all()  # whatever the rounding: |xhat| <= sqrt(C)
    within(mean32, mean[:, 0], (16 + C / 8) * U * abs(x).max(-1), "mean")
    if "equal" not in kind:
        within(rstd32, rstd[:, 0], condition[:, 0] * rstd[:, 0], "rstd")

    dout32 = lib.array(rng.standard_normal(x.shape) * (1e3 if kind == "million" else 1))
    g = dout32.astype(float) * w
    dx32, dw32 = lib.layernorm_backward(dout32, x32, w32, mean32, rstd32)
    dx = rstd * (g - g.mean(-1, keepdims=True) - xhat * (g * xhat).mean(-1, keepdims=True))
    within(dx32, dx, 4 * condition * rstd * abs(g).max(-1, keepdims=True) * (1 + abs(xhat)), "dinp")
    within(
        dw32, (dout32 * xhat).sum(0), (condition * (1 + abs(xhat)) * abs(dout32)).sum(0), "dweight"
    )


def test_layernorm_of_equal_rows_is_zero(lib):
    """A row of equal numbers that floats hold exactly carries no information: out = 0, dinp
    finite."""
    for value in (0, 1, -64, 2.0**20):
        x, w = lib.array(np.full((3, 32), value)), lib.array(np.ones(32))
        out, mean, rstd = lib.layernorm_forward(x, w)
        within(out, np.zeros(x.shape), 1e-6, f"out of {value}")
        within(rstd, np.full(3, 1e3), 1e-2, "rstd")


def test_layernorm_of_what_overflows_is_not_a_number(lib, rng):
    """Squares beyond a float are no reason for 0, which the layers above would take for sound."""
    x, w = lib.array(1e20 * rng.standard_normal((2, 24))), lib.array(np.ones(24))
    assert np.isnan(lib.layernorm_forward(x, w)[0]).all()
    assert np.isfinite(lib.layernorm_forward(lib.array(x * 1e-3), w)[0]).all()


# ---- GELU

GELU_AT = [
    s * x
    for x in (
        0,
        1e-8,
        1e-3,
        0.1,
        0.5,
        1,
        2,
        3,
        4,
        5,
        6,
        8,
        10,
        30,
        88,
        89,
        104,
        1e3,
        1e4,
        1e6,
        1e10,
        1e18,
    )
    for s in (1, -1)
]


def gelu(x):
    """The function and its derivative in double; 1 - tanh^2 as 1 / cosh^2, so that no 1 - 1 is
    left."""
    u = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    t, sech2 = np.tanh(u), 1 / np.cosh(np.clip(u, -300, 300)) ** 2
    return 0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * sech2 * np.sqrt(2 / np.pi) * (
        1 + 3 * 0.044715 * x**2
    )


@pytest.mark.parametrize("n", [1, 3, 8, 31, len(GELU_AT), 1000])
def test_gelu(lib, rng, n):
    """Pointwise, not relative to the largest: for negative x |gelu| < 0.2 whatever |x|, and the
    slope is in (-0.2, 1.2)."""
    for points in (
        np.resize(GELU_AT, n),
        np.resize(GELU_AT[::-1], n),
        4 * rng.standard_normal(n),
        1e6 * rng.standard_normal(n),
    ):
        x32, dout32 = lib.array(points), lib.array(rng.standard_normal(n))
        value, slope = gelu(x32.astype(float))
        x = x32.astype(float)
        within(
            lib.gelu_forward(x32)[0], value, 16 * U * np.where(x > 0, x, np.minimum(-x, 1)), "out"
        )
        within(lib.gelu_backward(x32, dout32), slope * dout32, 24 * U * abs(dout32), "dinp")


@pytest.mark.parametrize("x", GELU_AT)
def test_gelu_slope(lib, x):
    """One point a test, in every lane of a vector register: the prototype's slope at 1e6 was
    1e11."""
    x32 = lib.array([x] * 33)
    value, slope = gelu(x32.astype(float))
    within(lib.gelu_backward(x32, lib.array(np.ones(33))), slope, 24 * U, "slope")
    within(
        lib.gelu_backward(x32, lib.array(np.full(33, 1e6))),
        1e6 * slope,
        24e6 * U,
        "slope times 1e6",
    )


# ---- RoPE


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 2), (2, 7, 3, 8), (1, 33, 1, 20), (3, 5, 2, 6), (1, 600, 2, 64)], ids=str
)
@pytest.mark.parametrize("scale", [1, 1e6])
def test_rope(lib, rng, shape, scale):
    """A turn of every pair (i, i + HS/2) by t * 10000^(-2i/HS), to a float's rounding even at t =
    600; backward is the turn back, so it undoes forward."""
    B, T, NH, HS = shape
    x32 = lib.array(scale * rng.standard_normal(shape))
    z = x32[..., : HS // 2].astype(float) + 1j * x32[..., HS // 2 :]
    turn = np.exp(1j * np.arange(T)[:, None] * 10000.0 ** (-2 * np.arange(HS // 2) / HS))[
        None, :, None, :
    ]
    for which, wanted in (("forward", z * turn), ("backward", z / turn)):
        within(
            lib.rope(which, x32),
            np.concatenate([wanted.real, wanted.imag], -1),
            8 * U * abs(x32).max(),
            which,
        )
    within(
        lib.rope("backward", lib.rope("forward", x32)),
        x32,
        16 * U * abs(x32).max(),
        "there and back",
    )


# ---- attention


def soft_cap(s, cap):
    """The function and its derivative in double; 0: none."""
    if not cap:
        return s, np.ones_like(s)
    return cap * np.tanh(s / cap), 1 / np.cosh(np.clip(s / cap, -300, 300)) ** 2


def attention(q, k, v, scale, dout, cap=0):
    """Out, the largest logit and 1 / sum of exp(logit - largest) of each row, largest |logit|
    before the cap and the three gradients, all in double."""
    T = q.shape[1]
    causal = np.tril(np.ones((T, T), bool))
    s = np.einsum("bqhc,bkhc->bhqk", q, k) * scale
    largest = abs(np.where(causal, s, 0)).max()
    s, slope = soft_cap(s, cap)
    s = np.where(causal, s, -np.inf)
    top = s.max(-1, keepdims=True)
    e = np.exp(s - top)
    total = e.sum(-1, keepdims=True)
    p = e / total
    dp = np.einsum("bqhc,bkhc->bhqk", dout, v)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) * scale * slope
    return (
        np.einsum("bhqk,bkhc->bqhc", p, v),
        np.concatenate([top, 1 / total], -1),
        largest,
        np.einsum("bhqk,bkhc->bqhc", ds, k),
        np.einsum("bhqk,bqhc->bkhc", ds, q),
        np.einsum("bhqk,bqhc->bkhc", p, dout),
        abs(dp).max() * scale,
    )


def check_attention(lib, q, k, v, scale, rng, exact=False, cap=0.0):
    q, k, v = map(lib.array, (q, k, v))
    dout = lib.array(rng.standard_normal(q.shape))
    doubles = [x.astype(float) for x in (q, k, v)]
    out, softmax, largest, dq, dk, dv, ds = attention(*doubles, scale, dout.astype(float), cap)
    T = q.shape[1]
    # a logit is a sum of HS products, rounded at their size; exp turns that into a relative error
    # of a probability
    size = (
        1
        + (np.linalg.norm(doubles[0], axis=-1).max() * np.linalg.norm(doubles[1], axis=-1).max())
        * scale
    )
    rounding = (16 + T / 8 + 16 * cap) * U
    condition = rounding + 4 * U * size

    out32, softmax32, largest32 = lib.attention_forward(q, k, v, scale, cap)
    within(out32, out, (rounding if exact else condition) * abs(v).max(), "out")
    within(softmax32[..., 0], softmax[..., 0], 4 * U * (size + 2 * cap), "largest logit")
    within(softmax32[..., 1], softmax[..., 1], rounding if exact else condition, "1 / sum")
    within([largest32], np.array([largest]), 4 * U * size, "max_logit")
    dq32, dk32, dv32 = lib.attention_backward(dout, out32, softmax32, q, k, v, scale, cap)
    condition = rounding if exact else condition
    within(dq32, dq, 4 * condition * ds * abs(k).max(), "dq")
    within(dk32, dk, 4 * condition * ds * abs(q).max() * np.sqrt(T), "dk")
    within(dv32, dv, 2 * condition * abs(dout).max() * np.sqrt(T), "dv")
    return out32, largest32


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 2),
        (3, 1, 2, 8),
        (2, 7, 3, 8),
        (1, 33, 5, 6),
        (2, 32, 2, 16),
        (1, 70, 1, 20),
        (1, 129, 2, 64),
        (1, 257, 1, 4),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [0, 1, 10, 1e3, 1e6])
@pytest.mark.parametrize("cap", [0.0, 0.5, 30.0])
def test_attention(lib, rng, shape, size, cap):
    """Logits from 0 (uniform weights) to about 1e6 (one position takes all, unless capped)."""
    q, k, v = rng.standard_normal((3, *shape))
    check_attention(lib, q * size**0.5, k * size**0.5, v, shape[3] ** -0.5, rng, cap=cap)


@pytest.mark.parametrize("T", [2, 7, 33, 64, 70])
@pytest.mark.parametrize("cap", [0.0, 0.5, 30.0])
def test_attention_saturated_exactly(lib, rng, T, cap):
    """Products of small integers times 2^k: the logits, up to 4e6 and some equal, are exact, so out
    must be too."""
    q, k = rng.integers(-4, 5, (2, 2, T, 3, 8)) * 128.0
    v = rng.standard_normal(q.shape)
    _, largest = check_attention(lib, q, k, v, 0.25, rng, exact=True, cap=cap)
    assert largest > (1e5 if T == 2 else 2e5)


@pytest.mark.parametrize("T", [7, 70])
@pytest.mark.parametrize("cap", [0.5, 8.0, 30.0])
def test_attention_about_its_cap_exactly(lib, rng, T, cap):
    """The same of logits of the cap's size, on its bend."""
    q, k = rng.integers(-4, 5, (2, 2, T, 3, 8)) * 0.5
    v = rng.standard_normal(q.shape)
    _, largest = check_attention(lib, q, k, v, 0.25, rng, exact=True, cap=cap)
    assert 1 < largest < 30


@pytest.mark.parametrize("cap", [0.5, 1, 30, 1e4])
def test_soft_cap(lib, rng, cap):
    """cap tanh(s / cap) and its slope, at most 1 and never negative, of scores from 0 to infinity.
    Scores far below the cap are rounded as the cap is."""
    points = np.concatenate([cap * np.array(GELU_AT), GELU_AT, [1e30, -1e30, np.inf, -np.inf]])
    for s in points, cap * rng.standard_normal(1000), rng.standard_normal(1000):
        s = lib.array(s)
        value, slope = soft_cap(s.astype(float), cap)
        value32, slope32 = lib.soft_cap(s, cap)
        within(value32, value, 8 * U * cap, "value")
        within(slope32, slope, 8 * U, "slope")
        assert (abs(value32) <= cap * (1 + 4 * U)).all() and (slope32 >= 0).all()
    assert np.isnan(lib.soft_cap(lib.array([np.nan]), cap)).all()


# ---- the gate


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, len(GELU_AT)), (70, 33)], ids=str)
def test_gate(lib, rng, shape):
    """att times the sigmoid, which is right to its own size however small it is, down to e^-60."""
    for points in GELU_AT, GELU_AT[::-1], 4 * rng.standard_normal(shape):
        gate, (att, dout) = np.resize(points, shape), rng.standard_normal((2, *shape))
        gate, att, dout = map(lib.array, (gate, 1e6 * att, dout))
        x, a, d = (y.astype(float) for y in (gate, att, dout))
        e = np.exp(-abs(x))
        s = np.where(x > 0, 1, e) / (1 + e)
        slope = e / (1 + e) ** 2
        error = (8 + 2 * np.minimum(abs(x), 60)) * U  # exp of a rounded number
        within(lib.gate_forward(att, gate), a * s, abs(a) * (error * s + 1e-26), "out")
        datt, dgate = lib.gate_backward(dout, att, gate)
        within(datt, d * s, abs(d) * (error * s + 1e-26), "datt")
        within(dgate, d * a * slope, abs(d * a) * (error * slope + 1e-26), "dgate")


# ---- Muon's orthogonal matrices


def newton_schulz(s):
    """Of singular values whose squares add up to 1 at most, five steps."""
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return s


@pytest.mark.parametrize(
    "shape",
    [(1, 1), (1, 9), (9, 1), (2, 3), (24, 24), (37, 24), (24, 96), (96, 24), (64, 64), (70, 130)],
    ids=str,
)
@pytest.mark.parametrize("kind", ["ordinary", "spread", "deficient", "orthogonal", "repeated"])
@pytest.mark.parametrize("size", [1e-30, 1e-10, 1, 1e15, 1e30])
def test_orthogonalize(lib, rng, shape, kind, size):
    """The singular vectors stay, and the singular values, over the root of the sum of their
    squares, end in 0.68 to 1.21 if they were above 2e-3. Those of 0 stay 0, but for rounding, which
    each step multiplies by 3.4."""
    n = min(shape)
    x = rng.standard_normal(shape)
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    kinds = dict(
        ordinary=s,
        spread=np.geomspace(1, 1e-4, n),
        deficient=s * (np.arange(n) <= n // 2),
        orthogonal=np.ones(n),
        repeated=np.resize([1, 1, 0.01], n),
    )
    x = lib.array(size * (u * kinds[kind] @ vt))
    u, s, vt = np.linalg.svd(x.astype(float), full_matrices=False)
    s = s / (np.sqrt((s * s).sum()) + 1e-30)  # the guard against 0 / 0
    out = lib.orthogonalize(x)
    within(out, u * newton_schulz(s) @ vt, 2e-4, "out")
    seen = np.linalg.svd(out.astype(float), compute_uv=False)
    assert (seen < 1.21).all() and (seen > 0.68).sum() >= (s > 2e-3).sum() > 0


def test_orthogonalize_zeros(lib):
    """No direction to step in: no step, and no NaN."""
    for shape in (1, 1), (24, 24), (7, 30), (30, 7):
        assert (lib.orthogonalize(lib.array(np.zeros(shape))) == 0).all()


def test_orthogonalize_of_what_is_not_a_number(lib, rng):
    x = lib.array(rng.standard_normal((8, 12)))
    x[3, 4] = np.nan
    assert np.isnan(lib.orthogonalize(x)).all()


def test_attention_of_equal_rows(lib, rng):
    """Equal keys at a logit of 1e6: the mean of v so far."""
    q = k = np.full((1, 40, 2, 4), 1e3)
    check_attention(lib, q, k, rng.standard_normal(q.shape), 0.25, rng, exact=True)


@pytest.mark.parametrize("T", [9, 33, 70])
def test_attention_is_causal(lib, rng, T):
    """What comes later, however large, changes neither what came before nor the largest logit of
    before."""
    q, k, v = (lib.array(x) for x in rng.standard_normal((3, 1, T, 2, 8)))
    before, softmax, _ = lib.attention_forward(q, k, v, 0.3)
    changed = [x.copy() for x in (q, k, v)]
    for x in changed[1:]:
        x[:, T - 1] = 1e6
    after, softmax_after, largest = lib.attention_forward(*changed, 0.3)
    assert (after[:, : T - 1] == before[:, : T - 1]).all() and (
        softmax_after[:, :, : T - 1] == softmax[:, :, : T - 1]
    ).all()
    wanted = attention(*(x.astype(float) for x in changed), 0.3, np.zeros(q.shape))[2]
    assert abs(largest - wanted) < 1e-6 * wanted
    changed[0][:, T - 1] = (
        0  # now the last key meets q = 0 only: the earlier queries may not see it
    )
    wanted = attention(*(x.astype(float) for x in changed), 0.3, np.zeros(q.shape))[2]
    assert wanted < 100 and abs(lib.attention_forward(*changed, 0.3)[2] - wanted) < 1e-6 * wanted


# ---- output logits


def test_round_to_bf16(lib):
    """Every float that ends in 0, 1, a half or one beside it, as ml_dtypes rounds it; a NaN stays
    one."""
    upper = np.arange(1 << 16, dtype=np.uint32)[:, None] << 16
    x = (upper | np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)).view(np.float32)
    with np.errstate(invalid="ignore"):
        wanted = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    actual = lib.round_to_bf16(lib.array(x)).astype(np.float32)
    nan = np.isnan(x)
    assert np.isnan(actual[nan]).all() and nan.any() and not nan.all()
    assert (actual.view(np.uint32)[~nan] == wanted.view(np.uint32)[~nan]).all()


# ---- cross-entropy


def cross_entropy(logits, targets, z_loss):
    rows = np.arange(len(logits))
    top = logits.max(-1, keepdims=True)
    e = np.exp(logits - top)
    total = e.sum(-1, keepdims=True)
    p, log_z = e / total, (top + np.log(total))[:, 0]
    loss = (top[:, 0] - logits[rows, targets]) + np.log(total[:, 0])
    d = p * (1 + 2 * z_loss * log_z[:, None])
    d[rows, targets] -= 1
    return d / len(rows), loss.mean(), log_z.mean()


def logit_rows(rng, V):
    x = rng.standard_normal((9, V))
    winner = np.full((9, V), -1e6)
    winner[np.arange(9), np.arange(9) % V] = 1e6
    return dict(
        ordinary=x,
        wide=30 * x,
        million=1e6 * x,
        plus=0 * x + 1e6,
        minus=0 * x - 1e6,
        zeros=0 * x,
        winner=winner,
        loser=-winner,
        shifted=x + 1e6,
        shifted_down=x - 1e6,
        far=200 * np.sign(x),
    )


@pytest.mark.parametrize("V", [2, 3, 16, 61, 256, 1000])
@pytest.mark.parametrize("kind", logit_rows(np.random.default_rng(0), 2))
@pytest.mark.parametrize("z_loss", [0.0, 1e-4, 0.1])
def test_cross_entropy(lib, rng, kind, V, z_loss):
    """Logits are given, so nothing need be amplified: each row is right to rounding; the loss even
    at logits of 1e6."""
    logits = lib.array(logit_rows(rng, V)[kind])
    targets = np.arange(9) % V if kind in ("winner", "loser") else rng.integers(V, size=9)
    d, loss, log_z = cross_entropy(logits.astype(float), targets, z_loss)
    d32, loss32, log_z32 = lib.cross_entropy(logits, targets, z_loss)
    largest = 1 + 2 * z_loss * abs(logits.astype(float)).max(-1, keepdims=True)
    within(d32, d, (32 + V / 16) * U * largest / 9, "dlogits")
    within([loss32], np.array([loss]), 1e-6 * (1 + loss), "loss")
    within([log_z32], np.array([log_z]), 4 * U * abs(logits).max() + 1e-6, "log Z")
    if kind == "winner":
        assert loss32 < 1e-6
