"""The tests of the exercises that are a layer or a kernel: attention, LayerNorm, the matrix
multiply, threads, CUDA."""

import math
import os
import shlex
import shutil

import numpy as np

import reference as ref
from checks import claim, gradient, one_scratch, steps, training
from sandbox import THREADS, run
from student import Wrong, apart, differs, in_float, kit_file, place


def same(right, found, case, mistakes, hints, tolerance):
    """As expect, for one call of a layer: raises Wrong unless found equals right(), a dict of
    arrays. right(mistake) is what a layer with that mistake computes; mistakes: (mistake, words).
    case says which call it was."""
    at = differs(right(), found, tolerance)
    if not at:
        return
    name, i, wanted, got = at
    array, whole = found[name], right()[name]
    bad = ~(abs(array - whole) <= tolerance * abs(whole).max() + 1e-12)
    text = f"{place(name, i)}: {apart(wanted, got)} ({case};"
    text += f" {bad.sum()} of {bad.size} numbers are wrong)"
    if np.isnan(array).all():
        raise Wrong(
            f"{name} is not a number anywhere ({case})",
            "It was not written, or was computed from memory that nobody wrote.",
            *hints,
        )
    if np.isnan(got):
        raise Wrong(
            text,
            "It is not a number: it was not written, or was computed from memory that nobody wrote,"
            " by a division by 0 or from the root of a negative number.",
            *hints,
        )
    for mistake, words in mistakes:
        if not differs({n: right(mistake)[n] for n in found}, found, tolerance):
            raise Wrong(text, words, *hints)
    raise Wrong(text, "" if array.any() else "It is 0 everywhere.", *hints)


# attention's backward pass, layer by layer


def attention_case(s, B, T, NH, HS, spread, scale):
    """qk (B,T,2,NH,HS), qkv (B,T,3,NH,HS), dout, out (B,T,NH,HS), softmax (B,NH,T,2); and the
    gradients by the reference's tape, dq, dk, dv (B,T,NH,HS). The q and k in qkv are others, as
    before qk-norm and RoPE."""
    q, k, v, dout = (s.rng.standard_normal((B, T, NH, HS)) * x for x in (spread, spread, 1, 1))
    Q, K, V = (ref.Var(x.transpose(0, 2, 1, 3)) for x in (q, k, v))
    scores = Q @ K.transpose(0, 1, 3, 2) * scale
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


ATTENTION_MISTAKES = [
    ("no scale", "It is right but for the scale, which is missing."),
    ("scale twice", "It is right but for the scale, which is there twice."),
    ("own scale", "The scale is that of the standard model here; it must be the argument `scale`."),
    ("no dot", "The softmax's normalisation is left out: each score changes all p of its row."),
    ("no p", "The softmax's derivative is not multiplied by p."),
    ("no inverse", "p is not divided by the sum of the exponentials."),
    ("no mask", "Keys after the query (j > i) take part."),
    ("qkv", "q and k are those of qkv. Attention saw those of qk."),
    ("ds", "dv is made of ds; out was made of p."),
    ("p", "The gradient of p goes on to q and k, past the softmax."),
    ("not transposed", "The sum is over the keys j <= i; it must be over the queries i >= j."),
]


def attention_wrong(numbers, mistake, scale):
    """The gradients with a mistake, by the formulas."""
    qk, qkv, dout, out, softmax = numbers
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (*np.moveaxis(qk, 2, 0), qkv[:, :, 2]))
    if mistake == "qkv":
        q, k = (x.transpose(0, 2, 1, 3) for x in np.moveaxis(qkv[:, :, :2], 2, 0))
    do, o = (x.transpose(0, 2, 1, 3) for x in (dout, out))
    T, scale = q.shape[2], q.shape[3] ** -0.5 if mistake == "own scale" else scale
    hide = np.where(np.tril(np.ones((T, T), bool)) | (mistake == "no mask"), 0, -np.inf)
    with np.errstate(over="ignore", invalid="ignore"):
        p = np.exp(scale * q @ k.swapaxes(-1, -2) + hide - softmax[..., :1])
        p *= 1 if mistake == "no inverse" else softmax[..., 1:]
        dp = do @ v.swapaxes(-1, -2)
        dot = 0 if mistake == "no dot" else (do * o).sum(-1, keepdims=True)
        ds = dp - dot if mistake == "no p" else p * (dp - dot)
        ds = np.where(hide < 0, 0, dp) if mistake == "p" else ds
        ds *= {"no scale": 1, "scale twice": scale**2}.get(mistake, scale)
        turn = (lambda x: x) if mistake == "not transposed" else (lambda x: x.swapaxes(-1, -2))
        found = dict(dv=turn(ds if mistake == "ds" else p) @ do, dq=ds @ k, dk=turn(ds) @ q)
    return {name: x.transpose(0, 2, 1, 3) for name, x in found.items()}


ATTENTION_HINTS = dict(
    dv=(
        "dv: p again from q, k and softmax; which q and k did attention see? A v_j is read by the"
        " queries from j on.",
        "dv_j = sum over i >= j of p_ij dout_i, with p_ij = exp(scale q_i k_j - softmax_i0)"
        " softmax_i1 and the q and k of qk, not of qkv",
    ),
    dq=(
        "dq: first the gradient of p, then that of the scores. Where does the scale belong, and"
        " what does a softmax subtract?",
        "dq_i = sum over j <= i of ds_ij k_j, ds_ij = scale p_ij (dp_ij - dot_i), dp_ij = dout_i"
        " v_j, dot_i = dout_i out_i",
    ),
    dk=(
        "dk: the same ds as for dq, seen from the key. With several blocks of queries, each adds"
        " to it. A row of dqkv is 3*C long, a row of qk 2*C.",
        "dk_j = sum over i >= j of ds_ij q_i",
    ),
)


def attention_layer(s, ex, names, shapes):
    for shape in shapes:
        B, T, NH, HS, spread, *flag = shape
        scale = 1 / HS if flag else HS**-0.5
        numbers, right = attention_case(s, B, T, NH, HS, spread, scale)
        cfg = {**ref.CONFIG, "d": NH * HS, "heads": NH, "T": T} | {"scale": f for f in flag}
        size = 3 * B * T * NH * HS

        def named(flat):
            parts = np.moveaxis(flat[:size].reshape(B, T, 3, NH, HS), 2, 0)
            return dict(zip(("dq", "dk", "dv"), parts), others=flat[size:])

        inputs = np.concatenate([x.ravel() for x in numbers])
        flat, _ = s.answer(size + 1, "attention", B, cfg, inputs, named=named)
        found, case = named(flat), f"B {B}, T {T}, NH {NH}, HS {HS}, scale {scale:.4g}"
        case += "; indices b,t,h,i"
        for name in names:
            pick = lambda m="", name=name: {
                name: (attention_wrong(numbers, m, scale) if m else right)[name]
            }
            hints = ATTENTION_HINTS[name]
            same(pick, {name: found[name]}, case, ATTENTION_MISTAKES, hints, 1e-7)
        if found["others"]:
            raise Wrong(
                f"{found['others'][0]:.0f} numbers are written to the scratch of other threads"
                " (run on thread 2 of 3)",
                "All threads use one scratch.",
                "attention_scratch finds this thread's part.",
                "thread n has scratch + n * attention_scratch_size(T, HS)",
            )


def attention_tiny_dv(s, ex):
    attention_layer(s, ex, ["dv"], [(1, 2, 1, 2, 1), (1, 4, 1, 4, 1)])


def attention_tiny_qk(s, ex):
    attention_layer(s, ex, ["dq", "dk"], [(1, 2, 1, 2, 1), (1, 4, 1, 4, 1)])


def attention_large(s, ex):
    # with another scale than 1/sqrt(HS), as in muParam
    shapes = [(2, 7, 3, 4, 1, "d_h"), (1, 150, 1, 8, 1, "d_h"), (1, 1, 1, 2, 1), (1, 70, 2, 6, 1)]
    # large scores; several heads for each thread
    shapes += [(2, 33, 2, 8, 30), (3, 65, 5, 10, 1), (1, 64, 1, 4, 1)]
    attention_layer(s, ex, ["dv", "dq", "dk"], shapes)


def attention_effect(s, ex):
    run = training(s, {}, 0.01, 50)
    weights = lambda p: p["h.0.attn.c_attn.weight"][:64]
    moved = np.sqrt(np.mean((weights(run["p"]) - weights(run["start"])) ** 2))
    claim(
        moved > 0.02,
        f"the weights of queries and keys moved by {moved:.2g} (RMS) in 50 steps at LR 0.01",
        "expected more than 0.02",
    )


# LayerNorm's backward pass

LAYERNORM_MISTAKES = [
    ("no mean of g", "The mean depends on every x too: a term is missing."),
    ("no mean of gn", "The variance depends on every x too: a term is missing."),
    ("no means", "Mean and variance are taken for constants: they depend on every x."),
    ("no rstd", "It is right but for rstd, which is missing."),
    ("no weight", "dout is not multiplied by the weight."),
    ("sums", "The sums over the row are not divided by C."),
    ("g", "dweight is a sum of dout * weight * n; the weight is one factor too many."),
    ("x", "dweight is a sum of dout * x; the weight multiplies the normalised x."),
    ("set", "dweight is replaced; a row must add to it."),
    ("no add", "add is left out."),
    ("add twice", "add is added twice."),
]


def layernorm_wrong(numbers, mistake, rows_alone):
    """dx and dweight with a mistake, by the formulas."""
    x, dout, add, weight, dweight, mean, rstd = numbers
    n, C = (x - mean[:, None]) * rstd[:, None], x.shape[1]
    g = dout if mistake == "no weight" else dout * weight
    average = lambda y: y.sum(1, keepdims=True) / (1 if mistake == "sums" else C)
    dn = g - (0 if mistake in ("no mean of g", "no means") else average(g))
    dn = dn - (0 if mistake in ("no mean of gn", "no means") else n * average(g * n))
    dx = (1 if mistake == "no rstd" else rstd[:, None]) * dn
    each = {"g": g * n, "x": dout * x}.get(mistake, dout * n)
    start = dweight if rows_alone else 0
    total = each[-1] if mistake == "set" else start + each.sum(0)
    return dict(dx=dx + {"no add": 0, "add twice": 2}.get(mistake, 1) * add, dweight=total)


LAYERNORM_HINTS = dict(
    dx=(
        "dx: mean and rstd depend on every x of the row, so each dx has three terms. add may be"
        " NULL or dx, and dx may be dout: read before you write.",
        "with g = dout * weight and n = (x - mean) * rstd:"
        " dx = add + rstd * (g - average(g) - n * average(g * n))",
    ),
    dweight=(
        "dweight: all rows share the weight. A row adds to it; the sum over all rows goes by"
        " chunks, each with memory for itself, which starts with anything.",
        "dweight += dout * n, with n = (x - mean) * rstd",
    ),
)


def layernorm_layer(s, names, cases):
    """cases: (how, rows, C), how as in driver.c."""
    words = ["add NULL", "add another array", "add is dx", "dx is dout", "all rows"]
    for how, rows, C in cases:
        x, dout, add = s.rng.standard_normal((3, rows, C))
        weight, dweight = 1 + 0.3 * s.rng.standard_normal(C), s.rng.standard_normal(C)
        x, add = 2 * x + 1, add if how in (1, 2, 4) else 0 * add
        X, w = ref.Var(x), ref.Var(weight)
        (ref.layernorm(X, w) * dout).sum().backward()
        y = x - x.mean(1, keepdims=True)
        numbers = x, dout, add, weight, dweight, x.mean(1), ((y * y).mean(1) + 1e-6) ** -0.5
        right = dict(dx=X.grad + add, dweight=w.grad + (dweight if how < 4 else 0))

        def named(flat):
            dx, dweight, shared = np.split(flat, [x.size, x.size + C])
            return dict(dx=dx.reshape(x.shape), dweight=dweight, shared=shared)

        given = [np.array([how, rows, C]), *(a.ravel() for a in numbers)]
        flat, _ = s.answer(x.size + C + 1, "layernorm", 1, {}, np.concatenate(given), named=named)
        found, case = named(flat), f"rows {rows}, C {C}, {words[how]}"
        for name in names:
            pick = lambda m="", name=name: {
                name: (layernorm_wrong(numbers, m, how < 4) if m else right)[name]
            }
            hints = LAYERNORM_HINTS[name]
            same(pick, {name: found[name]}, case, LAYERNORM_MISTAKES, hints, 1e-9)
        if found["shared"]:
            raise one_scratch(case, "the last 2 C values of row n of partial (chunks,3,C)")


def layernorm_dweight(s, ex):
    layernorm_layer(s, ["dweight"], [(0, 1, 3), (0, 1, 7), (0, 3, 5)])


def layernorm_dx(s, ex):
    layernorm_layer(s, ["dx"], [(0, 1, 3), (0, 1, 7), (0, 3, 33)])


def layernorm_shared(s, ex):
    layernorm_layer(s, ["dx", "dweight"], [(how, 2, C) for how in (1, 2, 3) for C in (5, 32)])


def layernorm_rows(s, ex):
    sizes = (1, 3), (3, 24), (64, 8), (65, 7), (200, 33)
    layernorm_layer(s, ["dx", "dweight"], [(4, *size) for size in sizes])


def layernorm_effect(s, ex):
    run = training(s, {}, 0.01, 50)
    moved = np.sqrt(np.mean((run["p"]["h.0.ln_1.weight"] - 1) ** 2))
    claim(
        moved > 0.02,
        f"the weights of the first LayerNorm moved by {moved:.2g} (RMS) in 50 steps at LR 0.01",
        "expected more than 0.02",
    )


# the matrix multiply

GAP = 12345  # what lies between the rows of out, as in driver.c
ADD = ["", ", added to a matrix", ", added to out"]


def products(s, shapes, program="double"):
    """Products (M, N, K, a transposed, b transposed, add, gap), as driver.c computes them. Returns
    their seconds."""
    jobs, wanted = [], []
    for M, N, K, ta, tb, add, gap in shapes:
        sizes = (M, K), (K, N), (M, N)
        a, b, plus = (s.rng.standard_normal(size) for size in sizes)
        if program != "double":
            a, b, plus = map(in_float, (a, b, plus))
        jobs.append(np.array([M, N, K, ta, tb, add, gap]))
        jobs += [(a.T if ta else a).ravel(), (b.T if tb else b).ravel()]
        jobs += [plus.ravel()] * (add > 0)
        wanted.append((a @ b, plus * (add > 0)))
    size = sum(M * (N + gap) for M, N, _, _, _, _, gap in shapes)

    def named(flat):
        out = {}
        for i, (M, N, K, _, _, _, gap) in enumerate(shapes):
            whole, flat = flat[: M * (N + gap)].reshape(M, N + gap), flat[M * (N + gap) :]
            out[f"out of product {i}, ({M},{K}) ({K},{N})"] = whole
        return out

    flat, seconds = s.answer(
        size, "multiply", len(shapes), ref.CONFIG, np.concatenate(jobs), program, named=named
    )
    tolerance = 1e-10 if program == "double" else 1e-4
    for shape, (product, plus), found in zip(shapes, wanted, named(flat).values()):
        M, N, K, ta, tb, add, gap = shape
        case = f"a product ({M},{K}) ({K},{N}){', a transposed' * ta}{', b transposed' * tb}"
        case += ADD[add] + f", rows {N + gap} apart" * (gap > 0)
        where = "Look at the last tile of rows and of columns, and at every use of row and col."
        hints = (
            where,
            "out (i,j) = add (i,j) + sum over k of a (i,k) b (k,j); a (i,k) is at"
            + (" a.data[i * a.row + k * a.col], out (i,j) at out[i * ldc + j]"),
        )
        if gap and (found[:, N:] != GAP).any():
            i, j = np.argwhere(found[:, N:] != GAP)[0]
            raise Wrong(
                f"it writes past the end of row {i} of out, at column {j + N} ({case})",
                "What lies between the rows of out is not part of it.",
                *hints,
            )
        right, found = product + plus, found[:, :N]
        close = lambda x: abs(found - x) <= tolerance * abs(right).max()
        bad = ~close(right)
        if not bad.any():
            continue
        _, at, expected, got = differs({"out": right}, {"out": found}, tolerance)
        (top, left), (bottom, last) = np.argwhere(bad).min(0), np.argwhere(bad).max(0)
        mistakes = [
            (
                np.isnan(found),
                "These elements are not a number: not written, or read past an edge.",
            ),
            (close(product), "These elements are the product alone: add is left out."),
            (close(product + 2 * plus), "To these elements add is added twice."),
        ]
        raise Wrong(
            f"{place('out', at)} of {case}: {apart(expected, got)}; the wrong elements are in rows"
            f" {top} to {bottom}, columns {left} to {last}",
            next((words for same, words in mistakes if same[bad].all()), ""),
            *hints,
        )
    return seconds


def multiply_right(s, ex):
    sizes = [(1, 1, 1), (2, 3, 4), (8, 16, 8), (13, 33, 17), (64, 64, 64), (100, 129, 600)]
    sizes += [(448, 304, 24), (1, 7, 1100), (200, 1, 3)]  # several blocks of rows and of columns
    ways = [(ta, tb, add) for ta in (0, 1) for tb in (0, 1) for add in (0, 1)]
    products(s, [(*size, *way, 0) for size in sizes for way in ways])
    # long enough for threads to take turns on a busy machine: what two of them share is overwritten
    products(s, [(480, 480, 720, 0, 0, 0, 0)])


def multiply_parts(s, ex):
    """Parts of larger matrices, and sums in place, by multiply itself."""
    sizes = [(1, 1, 1), (5, 7, 3), (13, 33, 17), (70, 40, 520)]
    ways = [(ta, tb, add) for ta in (0, 1) for tb in (0, 1) for add in (0, 1, 2)]
    products(s, [(*size, *way, gap) for size in sizes for way in ways for gap in (1, 16)])
    products(s, [(20, 30, 40, 0, 0, 2, 0), (300, 200, 10, 0, 1, 2, 0)])


def multiply_speed(s, ex, least=10):
    """Processor time of the same products by the naive loops and by the student's, taken in turns;
    medians."""
    if not hasattr(s, "speed"):
        s.build("float", "-O3")
        shutil.copy(kit_file("naive.c"), s.place)
        command = shlex.split(os.environ.get("CC", "cc")) + ["-O3", "-march=native", "naive.c"]
        s.compile([*command, "-o", "naive"])
        (s.place / "naive").chmod(0o755)
        shapes, times = [(576, 576, 576, 0, tb, 0, 0) for tb in (0, 1)], ([], [])
        for _ in range(3):
            times[1].append(products(s, shapes, "float"))
            sent = [x for one in shapes for x in (one, s.rng.standard_normal(2 * 576 * 576))]
            naive = [str(s.place / "naive"), "FD", str(len(shapes))]
            times[0].append(run(naive, np.concatenate(sent).tobytes(), answer=True)[1])
        s.speed = float(np.median(times[0]) / np.median(times[1]))
    claim(
        s.speed >= least,
        f"{s.speed:.1f} times as fast as the naive loops",
        f"expected {least} times",
        "In which order do the loops read b? How often is each value of a and of b loaded?",
        "Let the innermost loop run along rows; keep a tile of sums in registers; copy what is read"
        " often to where it lies in order.",
    )


def multiply_speed_3(s, ex):
    multiply_speed(s, ex, 3)


# threads

# For each layer of driver.c's work "layer": how often it is repeated, and the sizes of its results
TIMED = {**ref.CONFIG, **dict(d=128, heads=4, layers=1, T=64, batch=15, vocab=300, warmup=0)}
ROWS, CHANNELS, VOCABULARY = TIMED["batch"] * TIMED["T"], TIMED["d"], TIMED["vocab"]
PARAMETERS = sum(int(np.prod(shape)) for shape in ref.shapes(TIMED).values())
WEIGHTS = dict(norm=1, params=PARAMETERS, m=PARAMETERS, v=PARAMETERS)
LAYERS = dict(
    gelu=(10, {n: 4 * ROWS * CHANNELS for n in ("gelu", "slope", "dfc")}),
    embedding=(100, dict(embedded=ROWS * CHANNELS, dwte=VOCABULARY * CHANNELS)),
    sums=(20, WEIGHTS),
    products=(
        5,
        dict(logits=ROWS * VOCABULARY, dnorm=ROWS * CHANNELS, dlm_head=VOCABULARY * CHANNELS),
    ),
    others=(
        5,
        dict(ln_2=ROWS * CHANNELS, qk=2 * ROWS * CHANNELS, att=ROWS * CHANNELS)
        | dict(dlogits=ROWS * VOCABULARY, losses=ROWS, dqkv=3 * ROWS * CHANNELS)
        | dict(dx=ROWS * CHANNELS, dln_2=CHANNELS),
    ),
    step=(3, WEIGHTS),
)
PARALLEL_HINTS = (
    "One thread runs the program; the others only run tasks. Which loop has iterations that"
    " do not depend on each other?",
    "`#pragma omp taskloop` before a loop makes tasks of its iterations and waits for them. With"
    " nogroup it does not wait: then an `omp taskgroup` around it must.",
)
RACE_HINTS = (
    "Which places in memory do two iterations of your loop both write? In which order are the terms"
    " of each sum added?",
    "A task writes only where no other task reads or writes; sums of tasks are kept apart, and one"
    " thread adds them in a fixed order.",
)


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def one_layer(s, layer, threads):
    """A layer's results; how many repetitions had others; the gradient's norm, where it is a
    result; the seconds of processor time of the thread that runs the program, those that it spends
    in tasks where it is alone (-1: not known), and those of the other threads together."""
    repeats, sizes = LAYERS[layer]
    flags = [x for name, value in TIMED.items() for x in ("-" + name, str(value))]
    command = [s.build(), "FD", "layer", str(repeats), *flags]
    given = np.array([list(LAYERS).index(layer), s.seed % 1000], float).tobytes()
    raw, _, _ = run(command, given, answer=True, threads=threads)
    if len(raw) != 8 * (sum(sizes.values()) + 5):
        raise Wrong("it ends too early, or writes where the driver does")
    *parts, numbers = np.split(np.frombuffer(raw), np.cumsum(list(sizes.values())))
    return dict(zip(sizes, parts)), *numbers


def two_threads(s, layer, good, threads=(1, 3, 4)):
    """Raises Wrong unless a layer has the same bits with these numbers of threads and with 2, each
    time. Returns the seconds with 1 thread and of them in tasks, then with 2 threads those of the
    first and of the second: of the first run that is good(...), or of the last. On a busy machine
    the second thread may come too late, and more runs are tried."""
    tries = 3 if os.getloadavg()[0] < 2 * cores() else 6
    one = alone = None
    for count in (*threads, *[2] * tries):
        found, different, norm, mine, tasks, others = one_layer(s, layer, count)
        at = "norm" in found and differs(dict(norm=norm), found, 1e-9)
        if at:
            text = f"norm: {apart(at[2], at[3])} (threads: {count})"
            raise Wrong(text, "" if at[3] else "It is 0: no task adds to it.", *RACE_HINTS)
        one, alone = one or found, alone or (mine, tasks)
        at = differs(one, found, 0, 0)
        if at:
            text = f"{place(at[0], at[1])} is {at[2]:.10g} with 1 thread, {at[3]:.10g} with {count}"
            raise Wrong(text, "", *RACE_HINTS)
        if different:
            text = f"with {count} threads {different:.0f} of {LAYERS[layer][0]} repetitions give"
            raise Wrong(text + " other numbers than the first", "", *RACE_HINTS)
        if count == 2 and good(*alone, mine, others):
            break
    return *alone, mine, others


def in_tasks(alone, tasks, mine, others):
    """The share of the time that is spent in tasks; where that is not known, twice the share of
    the second thread."""
    return tasks / alone if tasks >= 0 else 2 * others / (mine + others)


def parallel_layer(layer, names):
    """A test: bits, and that most of the work is in tasks."""

    def test(s, ex):
        good = lambda *seconds: seconds[1] >= 0 or in_tasks(*seconds) >= 0.5
        share = in_tasks(*two_threads(s, layer, good))
        if share < 0.5:
            raise Wrong(
                f"{names}: {share:.0%} of the time is spent in tasks; expected at least 50%",
                "The other threads have nothing to do." if share < 0.02 else "",
                *PARALLEL_HINTS,
            )

    return test


def parallel_step(s, ex):
    """The whole step: right, the same bits with any number of threads, and not serial."""
    gradient(s, ex)
    steps(s, ex)
    return parallel_layer("step", "a whole step")(s, ex)


def parallel_speed(s, ex):
    """Processor time of the busier of two threads against that of one thread alone: the speed-up
    on two free cores, whatever else this machine does."""
    if not THREADS or cores() < 2:
        return "one core: speed was not tested"
    speed = lambda alone, tasks, mine, others: alone / max(mine, others)
    seconds = two_threads(s, "step", lambda *seconds: speed(*seconds) >= 1.35, (1,))
    claim(
        speed(*seconds) >= 1.35,
        f"a step on two threads is {speed(*seconds):.2f} times as fast as on one (processor time of"
        " the busier thread)",
        "expected 1.35 times",
        "What does the one thread still do alone? A profiler (perf) names the functions.",
        "speed-up on n threads <= 1 / (1 - p + p / n), where p is the share of the time in tasks",
    )


# a kernel of train_gpt.cu, on the CPU


def kernel(s, work, rows, C, arrays, sizes, order="forward", branch=0):
    """Runs a kernel, its threads in this order; returns a dict of its results, as in sizes."""
    os.environ["CUDA_EMU_ORDER"] = order
    given = np.concatenate([[rows, C, branch], *(x.ravel() for x in arrays)])
    flat, _ = s.answer(sum(sizes.values()), work, 1, {}, given, "cuda")
    return dict(zip(sizes, np.split(flat, np.cumsum(list(sizes.values())))))


GELU_MISTAKES = [
    ("erf", "It is GELU with the error function. Here it has the tanh form."),
    ("no cube", "The term 0.044715 x^3 is left out."),
    ("no factor", "sqrt(2/pi) is left out."),
    ("half u", "The sigmoid is of u; it must be of 2u, since (1 + tanh u)/2 = 1/(1 + exp(-2u))."),
    ("value", "It is dout times gelu(inp); the derivative belongs there."),
    ("s", "gelu' is taken for s alone; the product rule has a second term."),
    ("no dout", "It is gelu'(inp) alone: dout is left out."),
    ("half of W", "Of the W values of a thread only the first half is computed."),
    ("first of W", "Of the W values of a thread only the first is computed."),
]
W = 8  # as in lib/gpu.h


# 1/(1 + exp(-2u)) is (1 + tanh(u))/2, without the digits that 1 + tanh(u) loses near tanh(u) = -1.
def gelu_value(x, mistake=""):
    cube = 0 if mistake == "no cube" else 0.044715
    u = (1 if mistake == "no factor" else (2 / np.pi) ** 0.5) * (x + cube * x**3)
    if mistake == "erf":
        return x / 2 * (1 + np.vectorize(math.erf)(x / 2**0.5))
    return x / (1 + np.exp(-u if mistake == "half u" else -2 * u))


def gelu_slope(x, mistake=""):
    if mistake == "value":
        return gelu_value(x)
    if mistake == "s":
        return gelu_value(x) / x
    return (gelu_value(x + 1e-5, mistake) - gelu_value(x - 1e-5, mistake)) / 2e-5


def some_of_W(right, given, mistake):
    """A kernel that computes some of each thread's W values and leaves the others as they were."""
    count = {"half of W": W // 2, "first of W": 1}.get(mistake, W)
    return np.where(np.arange(right.size) % W < count, right, given)


GELU_WHERE = (
    "A thread has W values of all n. Some threads of the last block may have none. The formulas are"
    " those of train_gpt.c; nothing may overflow at |x| = 1e6."
)


def kernel_gelu_forward(s, ex):
    hints = GELU_WHERE, "gelu(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))"
    for rows, C in (1, 8), (1, 1000), (5, 1000), (3, 344), (1, 1024):
        x = in_float(s.rng.standard_normal(rows * C) * 3)
        found = kernel(s, "gelu_forward", rows, C, [x], dict(out=x.size))
        right = lambda m="": dict(out=some_of_W(gelu_value(x, m), x, m))
        same(right, found, f"of {x.size} values", GELU_MISTAKES, hints, 1e-5)
    x = np.array([-1e6, -100.0, 0, 100, 1e6, 0, 0, 0])
    found = kernel(s, "gelu_forward", 1, 8, [x], dict(out=8))
    same(lambda m="": dict(out=np.maximum(x, 0)), found, "of large values", [], hints, 1e-5)


def kernel_gelu_backward(s, ex):
    hints = (
        GELU_WHERE,
        (
            "dinp = dout * gelu'(inp): by the product rule, gelu'(x) = s + x s (1 - s) (2u)' with"
            " s = 1/(1 + exp(-2u))"
        ),
    )
    # in place: dinp is dout
    for rows, C, in_place in (1, 8, 0), (1, 1000, 0), (5, 1000, 0), (3, 344, 1), (1, 1024, 0):
        x, d = in_float(s.rng.standard_normal((2, rows * C)) * 3)
        found = kernel(s, "gelu_backward", rows, C, [x, d], dict(dinp=x.size), branch=in_place)

        def right(m=""):
            dinp = gelu_slope(x, m) * (1 if m == "no dout" else d)
            return dict(dinp=some_of_W(dinp, d, m))

        case = f"of {x.size} values" + ", dinp is dout" * in_place
        same(right, found, case, GELU_MISTAKES, hints, 1e-4)
    x, d = np.array([-1e6, -100.0, 0, 100, 1e6, 0, 0, 0]), np.ones(8)
    found = kernel(s, "gelu_backward", 1, 8, [x, d], dict(dinp=8))
    right = lambda m="": dict(dinp=(np.sign(x) + 1) / 2)
    same(right, found, "of large values", [], hints, 1e-5)


NORM_MISTAKES = [
    ("no branch", "branch is left out of the sum."),
    ("x is inp", "x is inp. It must be inp + branch, which the backward pass reads."),
    ("no mean", "The mean is not subtracted."),
    ("square", "The variance is the mean of x^2: x - mean must be squared."),
    ("no weight", "The weight is left out."),
    ("no epsilon", "1e-6 is not added to the variance."),
    ("no root", "rstd is 1/variance, without the root."),
    ("std", "rstd is the standard deviation; it must be 1 over it."),
    ("C - 1", "The variance is divided by C - 1."),
    ("sums", "The sums over the row are not divided by C."),
    ("32 threads", "The sums are over 32 threads; a row may have more."),
    ("one part", "A thread has PARTS parts of a row, and only the first was summed."),
]
NORM_HINTS = (
    "Mean and variance are of the whole row, over all its threads, however many; a value beyond C"
    " counts nothing. row_sum waits for the whole block: all of its threads must call it, also"
    " those of rows past the end.",
    "x = inp + branch; m = sum x / C; rstd = 1 / sqrt(sum (x - m)^2 / C + 1e-6);"
    " out = weight (x - m) rstd",
)


def norm_results(inp, branch, weight, mistake=""):
    """out, x, mean, rstd of LayerNorm, with a mistake."""
    rows, C = inp.shape
    sum_ = x = inp + branch
    if mistake in ("no branch", "x is inp"):
        x = inp
        sum_ = inp if mistake == "no branch" else sum_
    threads = 32 * -(-C // (32 * 2 * W))  # of a row, as row_block has them
    thread = np.arange(C) // W  # of the first part, where below `threads`
    seen = thread < threads if mistake == "one part" else np.ones(C)
    add = lambda y: (y * seen).sum(1, keepdims=True) / (1 if mistake == "sums" else C)
    if mistake == "32 threads":  # each warp takes its own sum for the row's
        warp = thread % threads // 32
        add = lambda y: y @ (warp[:, None] == warp) / C
    m = add(sum_)
    y = sum_ - (0 if mistake == "no mean" else m)
    variance = add(sum_ * sum_ if mistake == "square" else y * y)
    variance *= C / (C - 1) if mistake == "C - 1" else 1
    variance += 0 if mistake == "no epsilon" else 1e-6
    r = variance ** {"no root": -1.0, "std": 0.5}.get(mistake, -0.5)
    out = y * r * (1 if mistake == "no weight" else weight)
    return dict(out=out.ravel(), x=x.ravel(), mean=m[:, 0], rstd=r[:, 0])


def layernorm_case(s, rows, C, order="forward", branch=0, mean=2.0, spread=1.0):
    """Compares out, x, mean and rstd of one launch. The numbers have this mean and spread."""
    inp = in_float(s.rng.standard_normal((rows, C)) * spread + mean)
    weight = in_float(1 + 0.3 * s.rng.standard_normal(C))
    other = in_float(s.rng.standard_normal((rows, C)) * spread) * branch
    sizes = dict(out=inp.size, x=inp.size, mean=rows, rstd=rows)
    arrays = [inp, weight] + [other] * branch
    found = kernel(s, "layernorm_forward", rows, C, arrays, sizes, order, branch)
    right = lambda m="": norm_results(inp, other, weight, m)
    case = f"rows {rows}, C {C}" + ", with a branch" * branch
    case += f", the block's threads in {order} order" * (order != "forward")
    case += f", numbers of {mean:g} +- {spread:g}" * (mean != 2 or spread != 1)
    # all at once, so that a mistake is named only if it gives every result
    same(right, found, case, NORM_MISTAKES, NORM_HINTS, 1e-4)


# several rows a block, and one; 32 to 512 threads a row; rows past the end of the last block
NORM_SIZES = (1, 8), (3, 64), (5, 96), (3, 520), (1, 1000), (2, 1032), (130, 24)


def kernel_layernorm(s, ex):
    for rows, C in NORM_SIZES:
        layernorm_case(s, rows, C)
    layernorm_case(s, 3, 40, mean=1000)
    layernorm_case(s, 3, 40, mean=0, spread=1e-3)


def kernel_residual(s, ex):
    for rows, C in (1, 8), (3, 64), (5, 520), (2, 1032), (129, 24):
        layernorm_case(s, rows, C, branch=1)


def kernel_orders(s, ex):
    for order in "reverse", "random":
        for rows, C, branch in (3, 64, 0), (3, 520, 1), (2, 2056, 0):
            layernorm_case(s, rows, C, order, branch)


def kernel_model(s, ex):
    cfg = dict(d=16, heads=2, T=5, vocab=11, batch=2)
    gradient(s, {**ex, "cases": [cfg]}, "cuda", 2e-3)


EXERCISES = {
    "attention_backward": dict(
        tests=[
            (20, "dv on tiny cases", attention_tiny_dv),
            (30, "dq and dk on tiny cases", attention_tiny_qk),
            (25, "all three at larger shapes and scores", attention_large),
            (15, "gradient of a whole model, by finite differences", gradient),
            (10, "effect: attention learns", attention_effect),
        ],
        cases=[
            dict(qk_norm=0, layers=2),
            dict(qk_norm=1, d=24, heads=3, T=7, mu_param="full", base_d=5),
        ],
        first=("c_attn",),
        mistakes=[],
        hints=dict(
            gradient=("attention_backward is wrong in some shape; see the tests before.", "")
        ),
    ),
    "layernorm": dict(
        tests=[
            (15, "dweight on tiny cases", layernorm_dweight),
            (30, "dx on tiny cases", layernorm_dx),
            (15, "add and dx that share memory", layernorm_shared),
            (20, "many rows", layernorm_rows),
            (10, "gradient of a whole model, by finite differences", gradient),
            (10, "effect: the weights of LayerNorm learn", layernorm_effect),
        ],
        cases=[dict(qk_norm=0, layers=2), dict(qk_norm=1, d=24, heads=3, T=23, batch=3)],
        first=("ln_f", "ln_1", "ln_2", "q_norm"),
        mistakes=[],
        hints=dict(gradient=("LayerNorm is wrong in some case; see the tests before.", "")),
    ),
    "matmul": dict(
        tests=[
            (0, "products of every shape", multiply_right, True),
            (0, "parts of matrices, and sums in place", multiply_parts, True),
            (30, "3 times as fast as the naive loops", multiply_speed_3),
            (70, "10 times as fast", multiply_speed),
        ],
        cases=[],
        mistakes=[],
        hints={},
    ),
    "parallel": dict(
        tests=[
            (10, "GELU", parallel_layer("gelu", "gelu_forward, gelu_backward")),
            (
                15,
                "the embedding",
                parallel_layer("embedding", "embedding_forward, embedding_backward"),
            ),
            (15, "sums and AdamW", parallel_layer("sums", "sum_squares, adamw")),
            (
                15,
                "matrix products",
                parallel_layer("products", "matmul, matmul_forward, matmul_backward"),
            ),
            (
                15,
                "attention, LayerNorm, the loss",
                parallel_layer(
                    "others",
                    "residual_layernorm_*, kappa_*, qk_norm_rope_*, attention_*, round_to_bf16,"
                    " cross_entropy",
                ),
            ),
            (15, "a whole step: right, the same bits with 1 to 4 threads", parallel_step),
            (15, "speed on two threads", parallel_speed),
        ],
        cases=[dict(layers=2), dict(d=24, heads=3, T=45, batch=3)],
        mistakes=[],
        hints=dict.fromkeys(
            ("gradient", "steps"), ("A layer computes something else than before.", "")
        ),
    ),
    "cuda": dict(
        files=("train_gpt.cu",),
        program="cuda",
        tests=[
            (15, "gelu_forward", kernel_gelu_forward),
            (20, "gelu_backward", kernel_gelu_backward),
            (20, "layernorm_forward", kernel_layernorm),
            (15, "layernorm_forward of a residual sum", kernel_residual),
            (20, "layernorm_forward with the threads in other orders", kernel_orders),
            (10, "gradient of a whole model, by finite differences", kernel_model),
        ],
        cases=[],
        mistakes=[],
        hints=dict(gradient=("A whole model, in float: are all three kernels right?", "")),
    ),
}
