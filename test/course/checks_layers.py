"""The tests of the exercises that are a layer or a kernel: attention, the matrix multiply, CUDA."""

import os
import shlex
import shutil

import numpy as np

import reference as ref
from checks import claim, gradient, sweep
from sandbox import run
from student import Wrong, differs, expect, in_float, kit_file, place

# attention's backward pass, layer by layer


def attention_case(s, B, T, NH, HS, spread):
    """qk (B,T,2,NH,HS), qkv (B,T,3,NH,HS), dout, out (B,T,NH,HS), softmax (B,NH,T,2); and the
    gradients by the reference's tape, dq, dk, dv (B,T,NH,HS). The q and k in qkv are others, as
    before qk-norm and RoPE."""
    q, k, v, dout = (s.rng.standard_normal((B, T, NH, HS)) * x for x in (spread, spread, 1, 1))
    Q, K, V = (ref.Var(x.transpose(0, 2, 1, 3)) for x in (q, k, v))
    scores = Q @ K.transpose(0, 1, 3, 2) * HS**-0.5
    hide = np.where(np.tril(np.ones((T, T), bool)), 0, -1e30)
    top = (scores.value + hide).max(-1, keepdims=True)
    e = (scores + (hide - top)).exp()
    out = e * e.sum(-1) ** -1 @ V
    (out * dout.transpose(0, 2, 1, 3)).sum().backward()
    back = lambda x: x.transpose(0, 2, 1, 3)
    softmax = np.concatenate([top, 1 / e.value.sum(-1, keepdims=True)], -1)
    others = s.rng.standard_normal((2, *q.shape)) * spread
    qk, qkv = np.stack([q, k], 2), np.stack([*others, v], 2)
    return (qk, qkv, dout, back(out.value), softmax), dict(
        dv=back(V.grad), dq=back(Q.grad), dk=back(K.grad)
    )


def attention_layer(s, ex, names, shapes):
    hints = dict(
        dv=(
            "dv_j = sum over i >= j of p_ij dout_i, with p_ij = exp(scale q_i k_j - softmax_i0)"
            " softmax_i1 and the q and k of qk, not of qkv: sum over the later queries, not the"
            " earlier keys"
        ),
        dq=(
            "dq_i = sum over j <= i of ds_ij k_j, ds_ij = scale p_ij (dp_ij - dot_i), dp_ij ="
            " dout_i v_j, dot_i = dout_i out_i: is the scale there once, and is dot subtracted?"
        ),
        dk=(
            "dk_j = sum over i >= j of ds_ij q_i: the same ds as for dq, transposed; add up the"
            " sums of several blocks. A row of dqkv is 3*C long, a row of qk 2*C"
        ),
    )
    for shape in shapes:
        B, T, NH, HS, spread = shape
        numbers, right = attention_case(s, *shape)
        cfg = {**ref.CONFIG, "d": NH * HS, "heads": NH, "T": T}
        flat, _ = s.answer(
            3 * B * T * NH * HS, "attention", B, cfg, np.concatenate([x.ravel() for x in numbers])
        )
        parts = np.moveaxis(flat.reshape(B, T, 3, NH, HS), 2, 0)
        found = dict(zip(("dq", "dk", "dv"), parts))
        for name in names:
            at = differs({name: right[name]}, found, 1e-7)
            if at:
                where = f"B {B}, T {T}, NH {NH}, HS {HS}"
                if np.isnan(found[name]).all():
                    raise Wrong(f"{name} ({where}) is not written")
                scale, size = (
                    HS**-0.5,
                    lambda k: not differs({name: right[name]}, {name: found[name] * k}, 1e-7),
                )
                extra = (
                    "It is right but for the scale 1/sqrt(HS), which is missing."
                    if size(scale)
                    else (
                        "It is right but for the scale 1/sqrt(HS), which is there twice."
                        if size(1 / scale)
                        else ""
                    )
                )
                raise Wrong(
                    f"{place(name, at[1])} ({where}; indices b,t,h,i): expected {at[2]:.6g}, found"
                    f" {at[3]:.6g}",
                    extra,
                    "",
                    hints[name],
                )


def attention_tiny_dv(s, ex):
    attention_layer(s, ex, ["dv"], [(1, 2, 1, 2, 1), (1, 4, 1, 4, 1)])


def attention_tiny_qk(s, ex):
    attention_layer(s, ex, ["dq", "dk"], [(1, 2, 1, 2, 1), (1, 4, 1, 4, 1)])


def attention_large(s, ex):
    attention_layer(
        s,
        ex,
        ["dv", "dq", "dk"],
        [(2, 7, 3, 4, 1), (1, 70, 2, 6, 1), (1, 150, 1, 8, 1), (2, 33, 2, 8, 30)],
    )


def attention_effect(s, ex):
    run = sweep(s, {}, (0.01,), 50)[0]
    moved = np.sqrt(
        np.mean(
            (run["p"]["h.0.attn.c_attn.weight"] - run["start"]["h.0.attn.c_attn.weight"])[:64] ** 2
        )
    )
    claim(
        moved > 0.02,
        f"the weights of queries and keys moved by {moved:.2g} (RMS) in 50 steps at LR 0.01",
        "expected more than 0.02",
    )


# the matrix multiply


def products(s, shapes, program="double"):
    jobs, wanted = [], []
    for M, N, K, ta, tb, add in shapes:
        a, b, plus = (
            s.rng.standard_normal((M, K)),
            s.rng.standard_normal((K, N)),
            s.rng.standard_normal((M, N)),
        )
        if program != "double":
            a, b, plus = map(in_float, (a, b, plus))
        jobs += [
            np.array([M, N, K, ta, tb, add]),
            (a.T if ta else a).ravel(),
            (b.T if tb else b).ravel(),
        ] + [plus.ravel()] * add
        wanted.append(a @ b + add * plus)
    flat, seconds = s.answer(
        sum(w.size for w in wanted),
        "multiply",
        len(shapes),
        ref.CONFIG,
        np.concatenate(jobs),
        program,
    )
    for (M, N, K, ta, tb, add), w in zip(shapes, wanted):
        found, flat = flat[: w.size].reshape(w.shape), flat[w.size :]
        at = differs({"out": w}, {"out": found}, 1e-10 if program == "double" else 1e-4)
        if at:
            why = (
                "An edge: rows or columns that do not fill a block?"
                if M % 8 or N % 8 or K % 8
                else (
                    "A transposed matrix? (i, j) is at data[i * row + j * col]." if ta or tb else ""
                )
            )
            raise Wrong(
                f"{place('out', at[1])} of a product ({M},{K})"
                f" ({K},{N}){', a transposed' * ta}{', b transposed' * tb}"
                f"{', added to a matrix' * add}:"
                f" expected {at[2]:.6g}, found {at[3]:.6g}",
                "",
                why,
            )
    return seconds


def multiply_right(s, ex):
    sizes = [(1, 1, 1), (2, 3, 4), (8, 16, 8), (13, 33, 17), (64, 64, 64), (100, 129, 600)]
    sizes.append((448, 304, 24))  # several blocks of rows and of columns
    products(
        s,
        [
            (*size, ta, tb, add)
            for size in sizes
            for ta in (0, 1)
            for tb in (0, 1)
            for add in (0, 1)
        ],
    )


def multiply_speed(s, ex, least=10):
    """Processor time of the same products by the naive loops and by the student's, taken in turns;
    medians."""
    if not hasattr(s, "speed"):
        s.build("float", "-O3")
        shutil.copy(kit_file("naive.c"), s.place)
        run(
            [
                *shlex.split(os.environ.get("CC", "cc")),
                "-O3",
                "-march=native",
                "-o",
                "naive",
                "naive.c",
            ],
            cpu=60,
            files=64 << 20,
            processes=1,
            cwd=s.place,
        )
        (s.place / "naive").chmod(0o755)
        times = ([], [])
        for _ in range(3):
            shapes = [(576, 576, 576, 0, 0, 0), (576, 576, 576, 0, 1, 0)]
            times[1].append(products(s, shapes, "float"))
            numbers = [
                x
                for shape in shapes
                for x in (np.array(shape), s.rng.standard_normal(2 * 576 * 576))
            ]
            times[0].append(
                run(
                    [str(s.place / "naive"), "FD", str(len(shapes))],
                    np.concatenate(numbers).tobytes(),
                    answer=True,
                )[1]
            )
        s.speed = float(np.median(times[0]) / np.median(times[1]))
    claim(
        s.speed >= least,
        f"{s.speed:.1f} times as fast as the naive loops",
        f"expected {least} times",
        "Let the innermost loop run along rows; keep a tile of sums in"
        " registers; copy what is read often to where it lies in order",
    )


def multiply_speed_3(s, ex):
    multiply_speed(s, ex, 3)


# a kernel of train_gpt.cu, on the CPU


def kernel(s, work, arrays, size, order):
    os.environ["CUDA_EMU_ORDER"] = order
    return s.answer(
        size,
        work,
        1,
        {},
        np.concatenate(
            [
                np.array([x.shape[0], x.shape[-1]]) if i == 0 else x.ravel()
                for i, x in enumerate([arrays[0], *arrays])
            ]
        ),
        "cuda",
    )[0]


# 1/(1 + exp(-2u)) is (1 + tanh(u))/2, without the digits that 1 + tanh(u) loses near tanh(u) = -1.
def gelu_value(x):
    return x / (1 + np.exp(-2 * (2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


def kernel_gelu_forward(s, ex):
    for n in 8, 1000, 5000:
        x = in_float(s.rng.standard_normal((1, n)) * 3)
        found = kernel(s, "gelu_forward", [x], n, "forward")
        expect(
            lambda c: {"out": gelu_value(x[0])},
            {"out": found},
            {**ref.CONFIG},
            [],
            (
                "",
                f"gelu(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), of {n} values here."
                f" A thread"
                " has W of them, the last threads of the last block perhaps none",
            ),
            1e-5,
        )
    x = np.array([[-1e6, -100.0, 0, 100, 1e6, 0, 0, 0]])
    found = kernel(s, "gelu_forward", [x], 8, "forward")
    expect(
        lambda c: {"out": np.maximum(x[0], 0)},
        {"out": found},
        {**ref.CONFIG},
        [],
        ("at |x| = 1e6 nothing may overflow", ""),
        1e-5,
    )


def kernel_gelu_backward(s, ex):
    for n in 8, 1000, 5000:
        x, d = in_float(s.rng.standard_normal((2, 1, n)) * 3)
        found = kernel(s, "gelu_backward", [d, x], n, "forward")
        slope = (gelu_value(x + 1e-5) - gelu_value(x - 1e-5)) / 2e-5
        expect(
            lambda c: {"dinp": (slope * d)[0]},
            {"dinp": found},
            {**ref.CONFIG},
            [],
            (
                "",
                "dinp = dout * gelu'(inp): by the product rule, gelu'(x) = s + x s (1 - s)"
                " (2u)' with s"
                " = 1/(1 + exp(-2u))",
            ),
            1e-4,
        )


def layernorm_case(s, rows, C, order):
    x, w = (
        in_float(s.rng.standard_normal((rows, C)) + 2),
        in_float(1 + 0.3 * s.rng.standard_normal(C)),
    )
    found = kernel(s, "layernorm_forward", [x, w], rows * C, order).reshape(rows, C)
    y = x - x.mean(1, keepdims=True)
    expect(
        lambda c: {"out": y / np.sqrt((y * y).mean(1, keepdims=True) + 1e-6) * w},
        {"out": found},
        {**ref.CONFIG},
        [],
        (
            f"rows {rows}, C {C}, the block's threads in {order} order. Mean and variance are"
            f" of the"
            " whole row, over all its threads; a value beyond C counts nothing",
            "",
        ),
        1e-4,
    )


def kernel_layernorm(s, ex):
    for rows, C in (1, 8), (3, 64), (5, 96), (2, 1032), (130, 24):
        layernorm_case(s, rows, C, "forward")


def kernel_orders(s, ex):
    for order in "reverse", "random":
        for rows, C in (3, 64), (2, 2056):
            layernorm_case(s, rows, C, order)


def kernel_model(s, ex):
    cfg = dict(d=16, heads=2, T=5, vocab=11, batch=2)
    gradient(
        s,
        {
            **ex,
            "cases": [cfg],
            "hints": {
                "gradient": ("a whole model's gradient, in float: are all three kernels right?", "")
            },
            "mistakes": [],
        },
        "cuda",
        2e-3,
    )


EXERCISES = {
    "attention_backward": dict(
        tests=[
            (20, "dv on tiny cases", attention_tiny_dv),
            (30, "dq and dk on tiny cases", attention_tiny_qk),
            (25, "all three at larger shapes and scores", attention_large),
            (15, "gradient of a whole model, by finite differences", gradient),
            (10, "effect: attention learns", attention_effect),
        ],
        cases=[dict(qk_norm=0, layers=2), dict(qk_norm=1, d=24, heads=3, T=7)],
        first=("c_attn",),
        mistakes=[],
        hints=dict(
            gradient=(
                "",
                "attention_backward is wrong in some shape; the tests before this say where.",
            )
        ),
    ),
    "matmul": dict(
        tests=[
            (0, "products of every shape", multiply_right, True),
            (30, "3 times as fast as the naive loops", multiply_speed_3),
            (70, "10 times as fast", multiply_speed),
        ],
        cases=[],
        mistakes=[],
        hints={},
    ),
    "cuda": dict(
        files=("train_gpt.cu",),
        program="cuda",
        tests=[
            (20, "gelu_forward", kernel_gelu_forward),
            (20, "gelu_backward", kernel_gelu_backward),
            (25, "layernorm_forward", kernel_layernorm),
            (20, "layernorm_forward with the threads in other orders", kernel_orders),
            (15, "gradient of a whole model, by finite differences", kernel_model),
        ],
        cases=[],
        mistakes=[],
        hints={},
    ),
}
