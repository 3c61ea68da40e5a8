"""The tests of the exercises that are an intervention, and which exercise has which. Each takes the
student's program and its exercise, and raises Wrong."""

import numpy as np

import reference as ref
from student import Wrong, apart, differs, expect, place

ROUNDED = (
    "The difference is as small as a float's rounding; in a grading a real is a double. Is a number"
    " a float, or is a small constant another?"
)
# what train_gpt.cu does not log, or its driver does not ask for
NOT_IN_CUDA = "val_loss q_rms k_rms qk_cosine block_rms c_fc_update attn_c_proj_update".split()


def compare(ex, test, right, found, cfg, tolerance, prefix=""):
    """As expect, with the mistakes of the exercise and the hints of this test. Hints may be a dict
    by a part of the name of what differs first; the last row is for all other names."""
    at = differs(right(cfg), found, tolerance)
    if not at:
        return
    hints = ex["hints"].get(test, ())
    if isinstance(hints, dict):
        hints = next(h for part, h in hints.items() if part in at[0])
    try:
        expect(right, found, cfg, ex["mistakes"], hints, tolerance, prefix)
    except Wrong as error:
        if not error.hints[0] and not differs(right(cfg), found, 1e-6):
            error.hints[0] = ROUNDED
        raise


def logged(log, program):
    """The columns of log.csv that this program measures, and that have a value."""
    absent = NOT_IN_CUDA if program == "cuda" else ()
    return {
        "log.csv's " + n: x
        for n, x in log.items()
        if not np.isnan(x) and not n.startswith(tuple(absent))
    }


def columns(one):
    return {"log.csv's " + n: x for n, x in one["log"].items()}


def case(s, change, program="double", both_signs=False):
    """A config, weights, batches. both_signs: log Z is below 0 in some rows, above in others."""
    # one head: train_gpt.cu has heads of 8 channels at least
    cfg = {**ref.CONFIG, **dict(cuda={"heads": 1}).get(program, {}), **change}
    while True:
        p, batches = ref.init(cfg, s.rng, 0.2), s.batches(cfg, 5)
        if not both_signs or cfg["vocab"] != 2:
            return cfg, p, batches
        sums = np.exp(ref.measure(cfg, p, *batches[0])["logits"]).sum(-1)
        if sums.min() < 0.9 and sums.max() > 1.1:
            return cfg, p, batches


def cases(ex, program):
    return ex.get("cuda_cases", ex["cases"][-1:]) if program == "cuda" else ex["cases"]


def forward(s, ex, program="double", tolerance=1e-9):
    """The results of a step before any gradient of a weight, the smallest case first."""
    names = [*ex["fields"], "max_attn_logit", "loss", "log_z", "dlogits"]
    for change in cases(ex, program):
        cfg, p, batches = case(s, change, program, "both_signs" in ex)
        found = s.steps(cfg, p, batches[:1], program)[0]

        def right(c):
            out = ref.gradient(c, p, *batches[0])
            return {n: out[n] for n in names if np.size(out[n])} | logged(out["log"], program)

        compare(ex, "forward", right, {**found, **columns(found)}, cfg, tolerance)


def gradient(s, ex, program="double", tolerance=1e-9):
    """The gradient of every weight. The reference's are those of finite differences."""
    likely = tuple(x + ".weight" for x in ex.get("first", ()))
    for change in cases(ex, program):
        cfg, p, batches = case(s, change, program, "both_signs" in ex)
        found = s.steps(cfg, p, batches[:1], program)[0]["grads"]
        order = sorted(found, key=lambda n: not n.endswith(likely))

        def right(c):
            grads = ref.gradient(c, p, *batches[0])["grads"]
            return {n: grads[n] for n in order}

        compare(ex, "gradient", right, found, cfg, tolerance, "d loss / d ")


def initial(s, ex):
    """The weights that training starts from: without muParam of the usual size; with it the same,
    but for the head and the queries."""
    for change in ex["cases"]:
        cfg = {**ref.CONFIG, "vocab": 64, **change}
        off = s.initial({**cfg, "mu_param": "off"})
        parts = {
            f"{what} of {name}": x
            for name, whole in off.items()
            if name.endswith("c_attn.weight")
            for what, x in zip(("queries", "keys", "values"), np.split(whole, 3))
        }
        for name, x in (parts | off).items():
            size, wanted = ref.rms(x), 1.0 if x.ndim == 1 else x.shape[1] ** -0.5
            if not 0.7 < size / wanted < 1.3:
                raise Wrong(
                    f"with -mu_param off the initial {name} has the RMS {size:.3g}; expected about"
                    f" {wanted:.3g}, as without these lines",
                    "",
                    *ex["hints"]["off"],
                )
        right = lambda c: ref.mu_init(c, off)
        compare(ex, "initial", right, s.initial(cfg), cfg, 1e-9, "initial ")


def update(s, ex):
    """One step of the optimizer, from random weights, gradients and moments; a step after the
    warm-up comes first, since there no two mistakes are the same."""
    for change in ex["cases"]:
        cfg = {**ref.CONFIG, **change}
        warmup, last = cfg["warmup"], cfg["steps"]
        for step in s.rng.integers(warmup + 1, last), max(1, warmup - 1), 1, warmup or 1, last:
            p, m, g = (ref.init(cfg, s.rng, 0.2) for _ in range(3))
            v = {n: x**2 for n, x in ref.init(cfg, s.rng, 0.2).items()}
            one_update(s, ex, cfg, int(step), p, m, v, g)


def one_update(s, ex, cfg, step, p, m, v, g):
    """Returns the new weights."""
    size, names = ref.pack(p).size, ref.log_columns(cfg)
    sent, by_head = np.concatenate([ref.pack(x) for x in (p, g, m, v)]), ()
    if tau := cfg.get("qk_clip", 0):
        # a head's largest is above the limit in one sequence of two
        by_head = tau * np.exp(s.rng.uniform(-1, 1, (cfg["layers"], cfg["batch"], cfg["heads"])))
        sent = np.concatenate([sent, by_head.ravel()])
    flat, _ = s.answer(1 + 3 * size + len(names), "update", step, cfg, sent)
    parts = [ref.unpack(cfg, x) for x in np.split(flat[1 : 1 + 3 * size], 3)]
    found = dict(zip("pmv", parts), norm=flat[0])
    found |= columns(dict(log=dict(zip(names, flat[1 + 3 * size :]))))

    def right(c):
        *parts, norm, log = ref.adamw(c, p, m, v, g, step, by_head)
        return dict(zip("pmv", parts), norm=norm) | logged(log, "double")

    compare(ex, "update", right, found, cfg, 1e-9, f"after the update of step {step}: ")
    return found["p"]


def schedule(s, ex):
    """The learning rate of every step."""
    for change in ex["cases"]:
        cfg, p, _ = case(s, change)
        found = {
            f"learning rate of step {t}": one["lr"]
            for t, one in enumerate(s.steps(cfg, p, s.batches(cfg, cfg["steps"])), 1)
        }
        right = lambda c: {
            f"learning rate of step {t}": ref.schedule(c, t) for t in range(1, c["steps"] + 1)
        }
        compare(ex, "schedule", right, found, cfg, 1e-9)


def steps(s, ex, program="double", tolerance=1e-6, eps=1e-8):
    """Several whole steps."""
    for change in cases(ex, program):
        cfg, p, batches = case(s, {"eps": eps, **change}, program, "both_signs" in ex)
        # the stand-in for a GPU takes a second for a step
        whole_steps(s, ex, cfg, p, batches[: 2 if program == "cuda" else 5], program, tolerance)


def whole_steps(s, ex, cfg, p, batches, program="double", tolerance=1e-6):
    """Steps of training: loss, learning rate, norm, weights and all that is logged after each.
    Names no mistake: the tests of one thing at a time do."""
    names = "loss", "log_z", "norm", "lr"

    def right(c):
        out, q = {}, p
        m, v = ({n: np.zeros_like(x) for n, x in p.items()} for _ in "mv")
        for t, batch in enumerate(batches, 1):
            one = ref.gradient(c, q, *batch)
            q, m, v, one["norm"], log = ref.adamw(c, q, m, v, one["grads"], t, one["by_head"])
            one["lr"], one["log"] = ref.schedule(c, t), {**one["log"], **log}
            seen = {n: one[n] for n in names} | q | logged(one["log"], program)
            out.update({f"step {t}, {n}": x for n, x in seen.items()})
        return out

    found = {
        f"step {t}, {n}": x
        for t, one in enumerate(s.steps(cfg, p, batches, program), 1)
        for n, x in ({n: one[n] for n in names} | one["p"] | columns(one)).items()
    }
    compare({**ex, "mistakes": []}, "steps", right, found, cfg, tolerance)


def one_scratch(case, formula):
    """What a layer's test raises whose chunks share scratch. They are tasks: whether two of them
    meet there is left to chance, and rare."""
    return Wrong(
        f"all chunks write to the scratch of the first ({case})",
        "All chunks use one scratch.",
        "Two tasks may run at once: each needs scratch that no other uses.",
        f"the scratch of chunk n is {formula}",
    )


def qk_norm_gradient(s, ex):
    """The gradient, and that chunks do not share scratch."""
    gradient(s, ex)
    cfg = {**ref.CONFIG, "qk_norm": 1, "T": 70}
    rows, HS = cfg["batch"] * cfg["T"], cfg["d"] // cfg["heads"]
    size = rows * (6 * cfg["d"] + 4 * cfg["heads"]) + 2 * HS + cfg["T"] * HS
    (shared,), _ = s.answer(1, "qk_norm", 1, cfg, s.rng.standard_normal(size))
    if shared:
        raise one_scratch(f"{rows} rows", "dw + 2 * HS of this chunk's dw")


def far_past_the_cap(s, ex):
    """The gradient of queries and keys where every tanh is nearly 1."""
    cap, B, T, NH, HS = 0.5, 2, 5, 2, 4
    cfg = {**ref.CONFIG, "d": NH * HS, "heads": NH, "T": T, "batch": B, "attn_cap": cap}
    # The first channel alone makes the scores, 13 to 15 times the cap: one of q and k is 0 in the
    # others.
    q, k, v, dout = s.rng.standard_normal((4, B, T, NH, HS))
    q[..., 2:], k[..., 1:2] = 0, 0
    q[..., 0] = s.rng.uniform(13, 14, (B, T, NH)) * s.rng.choice([-1, 1], (B, T, NH))
    k[..., 0] = s.rng.uniform(2, 2.14, (B, T, NH)) * cap
    dout *= np.exp(28)
    turn = lambda x: x.transpose(0, 2, 1, 3)
    Q, K, V = (ref.Var(turn(x)) for x in (q, k, v))
    hide, scale = np.where(np.tril(np.ones((T, T), bool)), 0, -1e30), HS**-0.5
    scores = ref.capped(cfg, Q @ K.transpose(0, 1, 3, 2) * scale, scale)
    out = ref.weights(cfg, scores, hide) @ V
    (out * turn(dout)).sum().backward()
    top = (scores.value + hide).max(-1, keepdims=True)
    softmax = np.concatenate(
        [top, 1 / np.exp(scores.value + hide - top).sum(-1, keepdims=True)], -1
    )
    right = dict(dq=turn(Q.grad), dk=turn(K.grad))
    given = np.stack([q, k], 2), np.stack([q, k, v], 2), dout, turn(out.value), softmax
    size = 3 * B * T * NH * HS

    def named(flat):
        dq, dk, _ = np.moveaxis(flat[:size].reshape(B, T, 3, NH, HS), 2, 0)
        return dict(dq=dq, dk=dk)

    sent = np.concatenate([x.ravel() for x in given])
    found = named(s.answer(size + 1, "attention", B, cfg, sent, named=named)[0])
    if not (at := differs(right, found, 1e-9)):
        return
    name, i, wanted, got = at
    few = all((abs(found[n] - x) <= 0.01 * abs(x).max()).all() for n, x in right.items())
    none = "" if found["dq"].any() else "The gradient of the queries is 0 everywhere."
    raise Wrong(
        f"{place(name, i)}: {apart(wanted, got)} (scores are 13 to 15 times the cap, 0.5; indices"
        " b,t,h,i)",
        "The derivative has few right digits where tanh is nearly 1." if few else none,
        "Your derivative of the cap: does it subtract two numbers that are nearly the same?",
        "with e = exp(-2 |score| / cap) the derivative is 4 e / (1 + e)^2",
    )


EFFECT = dict(
    d=32,
    heads=2,
    layers=2,
    T=32,
    batch=8,
    vocab=128,
    base_d=32,
    warmup=15,
    z_loss=0,
)


def training(s, change, lr, steps, ex=None, grown=1):
    """Trains, always from the same weights on the same text; grown multiplies those of queries and
    keys. Returns the trained weights, how far they moved, and what the reference measures with them
    on other text: loss, log Z, largest attention logit. With ex, the first steps must be the
    reference's: what a wrong program trains has no effect to measure. They start from norms whose
    scales differ: from 1 those of q and k grow alike, and one may stand for the other."""
    cfg = {**ref.CONFIG, **EFFECT, **change, "steps": steps, "lr": lr}
    s.rng, kept = np.random.default_rng(s.seed), s.rng
    p, batches = ref.init(cfg, s.rng), s.text_batches(cfg, steps)
    for name in p:
        if name.endswith("c_attn.weight"):
            p[name][: 2 * cfg["d"]] *= grown
    other = s.text_batches({**cfg, "batch": 32}, 1)[0]
    s.rng = kept
    if ex:
        norms = {n: x for n, x in ref.init(cfg, s.rng, 0.2).items() if x.ndim == 1}
        whole_steps(s, ex, cfg, p | norms, batches[:2])
    trained = s.trained(cfg, p, batches)
    seen, before = ref.measure(cfg, trained, *other), ref.measure(cfg, p, *other)
    return dict(
        p=trained,
        start=p,
        moved=ref.rms(ref.pack(trained) - ref.pack(p)),
        loss=float(seen["loss"]),
        log_z=float(seen["log_z"]),
        max_attn_logit=float(seen["max_attn_logit"].max()),
        logits_moved=ref.rms(seen["logits"] - before["logits"]),
    )


def claim(holds, text, wanted, *hints):
    if not holds:
        raise Wrong(f"{text}; {wanted}", "", *hints)


def effect_qk_norm(s, ex):
    off, on = (training(s, dict(qk_norm=n), 0.3, 100, ex) for n in (0, 1))
    claim(
        on["max_attn_logit"] < off["max_attn_logit"] / 20,
        f"after 100 steps at LR 0.3 the largest attention logit is {on['max_attn_logit']:.3g} with"
        f" qk-norm (loss {on['loss']:.3f}), {off['max_attn_logit']:.3g} without (loss"
        f" {off['loss']:.3f})",
        "expected a twentieth or less",
    )


def effect_attn_cap(s, ex):
    off, on = (training(s, dict(qk_norm=0, attn_cap=c), 0.03, 100, ex, 10) for c in (0, 20))
    claim(
        on["loss"] < off["loss"] - 0.1 and on["max_attn_logit"] > 100,
        "after 100 steps at LR 0.03, from queries and keys ten times as large as usual, the loss is"
        f" {on['loss']:.3f} with -attn_cap 20 (largest logit {on['max_attn_logit']:.3g}),"
        f" {off['loss']:.3f} without",
        "expected it lower by 0.1 or more, and the largest logit, before the cap, still above 100",
    )


def effect_qk_clip(s, ex):
    off, on = (training(s, dict(qk_norm=0, qk_clip=c), 0.1, 100, ex, 4) for c in (0, 5))
    claim(
        on["max_attn_logit"] < 15 < off["max_attn_logit"] / 5,
        "after 100 steps at LR 0.1, from queries and keys four times as large as usual, the largest"
        " attention logit is"
        f" {on['max_attn_logit']:.3g} with -qk_clip 5, {off['max_attn_logit']:.3g} without",
        "expected at most 15 with it, more than 75 without",
    )


def effect_z_loss(s, ex):
    off, on = (training(s, dict(z_loss=z), 0.01, 100, ex) for z in (0, 0.1))
    claim(
        abs(on["log_z"]) < 1 < abs(off["log_z"]) - 1,
        f"mean log Z after 100 steps: {on['log_z']:.3f} with -z_loss 0.1, {off['log_z']:.3f}"
        " without",
        "expected it between -1 and 1 with the z-loss",
    )


def effect_warmup(s, ex):
    short, long = (training(s, dict(qk_norm=0, warmup=w), 0.1, 10, ex)["moved"] for w in (1, 10))
    claim(
        long < 0.85 * short,
        f"RMS of the way that the weights moved in 10 steps at LR 0.1: {long:.3g} with 10 steps of"
        f" warm-up, {short:.3g} with 1",
        "expected less than 0.85 times as much",
    )


def effect_wd(s, ex):
    lr = 1e-7
    off, on, torch = (
        training(s, dict(wd=wd, wd_independent=i), lr, 40, ex)
        for wd, i in ((0, 1), (0.02, 1), (0.02, 0))
    )
    size = lambda run: np.sqrt(np.mean(run["p"]["h.0.mlp.c_fc.weight"] ** 2))
    cfg = {**ref.CONFIG, **EFFECT, "steps": 40, "wd": 0.02, "lr": lr}
    wanted = np.prod([1 - 0.02 * ref.schedule(cfg, t) / lr for t in range(1, 41)])
    claim(
        abs(size(on) / size(off) - wanted) < 0.01,
        f"weights after 40 steps at LR {lr:g} with -wd 0.02: {size(on) / size(off):.4f} times those"
        " without decay",
        f"expected {wanted:.4f}: independent decay does not depend on the learning rate",
    )
    claim(
        abs(size(torch) / size(off) - 1) < 1e-3,
        f"the same with -wd_independent 0: {size(torch) / size(off):.4f} times",
        "expected 1.0000: this decay is as small as the learning rate",
    )


def effect_mu_param(s, ex):
    moved = {}
    for mu in "off", "full":
        for d in 32, 128:
            change = dict(d=d, heads=d // 16, mu_param=mu, warmup=0, min_lr=1e-3, T=16)
            moved[mu, d] = training(s, change, 1e-3, 1, ex)["logits_moved"]
    off, full = (moved[mu, 128] / moved[mu, 32] for mu in ("off", "full"))
    claim(
        full < 0.65 * off,
        f"how much more the first step moves the logits at -d 128 than at -d 32: {full:.2f} times"
        f" with -mu_param full, {off:.2f} times without",
        "expected less than 0.65 of that with muParam: a step's effect should hardly grow with the"
        " width",
    )


def effect_eps(s, ex):
    small, large = (training(s, dict(eps=e), 0.01, 30, ex)["moved"] for e in (1e-8, 1.0))
    claim(
        large < small / 5,
        f"RMS of the way that the weights moved: {large:.3g} with -eps 1, {small:.3g} with 1e-8",
        "an epsilon far above the gradients should make the updates die",
    )


def effect_clip(s, ex):
    loose, tight = (training(s, dict(clip=c, eps=1e-4), 0.01, 30, ex)["moved"] for c in (1.0, 1e-4))
    claim(
        tight < loose / 5,
        f"RMS of the way that the weights moved: {tight:.3g} with -clip 1e-4 -eps 1e-4, {loose:.3g}"
        " with -clip 1",
        "gradients clipped to a norm below epsilon should hardly move the weights",
    )


def effect_beta2(s, ex):
    """Gradients of 1e-3 for 30 steps, then one of 1: the larger beta2, the longer is v too small
    for it."""
    largest = []
    for beta2 in 0.5, 0.999:
        change = dict(beta2=beta2, clip=0, wd=0, steps=100, warmup=0, min_lr=1e-2)
        cfg = {**ref.CONFIG, **change}
        p = ref.init(cfg, s.rng)
        same = lambda x: {n: np.full_like(w, x) for n, w in p.items()}
        m, v = same(1e-3 * (1 - 0.9**30)), same(1e-6 * (1 - beta2**30))
        new = one_update(s, ex, cfg, 31, p, m, v, same(1.0))
        largest.append(abs(ref.pack(new) - ref.pack(p)).max() / 1e-2)
    claim(
        largest[1] > 3 * largest[0],
        f"a gradient that grows a thousandfold gives an update of {largest[1]:.3g} with -beta2"
        f" 0.999, {largest[0]:.3g} with 0.5",
        "expected more than 3 times as much",
    )


OFF = "This is the value with the flag off: your lines are not reached, or change nothing here."
AGAIN = (
    "The lines of the tests above, over several steps: does anything keep a value from one step to"
    " the next?"
)

# For each exercise: the student's files (default: train_gpt.c); its tests in the order of
# difficulty, each with points, title and function; the cases, flags that together reach every
# value of the flag, no layers and several, sizes that divide nothing; the mistakes that the
# reference can make, and what HINT=1 says of each; and for each test where to look (HINT=2) and the
# formula (HINT=3).
EXERCISES = {
    "qk_norm": dict(
        tests=[
            (25, "value: attention logits and loss", forward),
            (35, "gradient of every weight", qk_norm_gradient),
            (20, "five steps of AdamW", steps),
            (20, "effect: training at a high learning rate", effect_qk_norm),
        ],
        # 8 rows; 69 rows, two chunks; the flag off; no layer; one row; 141 rows, three chunks
        cases=[
            dict(qk_norm=1),
            dict(qk_norm=1, d=24, heads=3, layers=2, T=23, batch=3, vocab=13),
            dict(qk_norm=0, layers=2),
            dict(qk_norm=1, layers=0),
            dict(qk_norm=1, T=1, batch=1, eps=1e-3),
            dict(qk_norm=1, d=18, heads=3, T=47, batch=3),
        ],
        cuda_cases=[
            dict(qk_norm=1),
            dict(qk_norm=0),
            dict(qk_norm=1, d=24, heads=3, layers=2, T=15, batch=3, vocab=13),
        ],
        fields=("max_attn_logit", "loss", "log_z"),
        first=("q_norm", "k_norm", "c_attn"),
        mistakes=[
            ({"wrong_only": ""}, OFF),
            ({"wrong_only": "q"}, "Only the queries are normalised; the keys must be too."),
            ({"wrong_only": "k"}, "Only the keys are normalised; the queries must be too."),
            ({"wrong_after_rope": 1}, "The norm comes after RoPE here; it must come before."),
            ({"wrong_epsilon": 0}, "1e-6 is not added to the variance."),
            ({"wrong_epsilon": 1e-5}, "1e-5 is added to the variance; it must be 1e-6."),
            ({"wrong_weight": 1}, "The keys are scaled with the weight of the queries."),
            (
                {"wrong_straight": 1},
                "The gradient does not go through the norm: it is that of a model without it.",
            ),
            ({"wrong_turn": 1}, "The gradient is not turned back."),
            (
                {"wrong_rows": 1},
                "The gradients of q_weight and k_weight hold the rows of the first chunk only.",
            ),
            (
                {"wrong_both": 1},
                "The gradient of q_weight holds that of k_weight too.",
            ),
            ({"wrong_swapped": 1}, "The gradients of q_weight and k_weight are exchanged."),
            (
                {"wrong_back_weight": 1},
                "The gradient of the keys goes back through the weight of the queries.",
            ),
        ],
        hints=dict(
            forward={
                "act_rms": (
                    "qkv is an input: the backward pass and the log read it again.",
                    "layernorm_row(to + h * HS, ..., from + h * HS, ...), then from = to.",
                ),
                "": (
                    "The forward pass: which values are one head's, which weight, and what does"
                    " rope_row turn?",
                    "layernorm_row on each head's HS values, h < NH, from `from` to `to`, with i ?"
                    " k_weight : q_weight; then from = to, which rope_row turns.",
                ),
            },
            gradient={
                "_norm": (
                    "The backward pass: dw holds a chunk's gradients of two weights; the third"
                    " place adds up the chunks.",
                    "dw + i * HS gets the gradient of q_weight (i is 0) or k_weight;"
                    " sum_chunks(dq_weight, partial, 4 * HS, chunks, HS), and from partial + HS"
                    " for dk_weight.",
                ),
                "": (
                    "The backward pass: the order of its two steps, the input of the norm, and the"
                    " place of its mean and rstd.",
                    "Forward: normalise, turn. Backward: turn back, then layernorm_row_backward,"
                    " whose x is the head in qkv and whose mean and rstd are those of this row, of"
                    " q or k, and of this head: (B,T,2,NH).",
                ),
            },
            steps=(AGAIN, ""),
        ),
    ),
    "attn_cap": dict(
        tests=[
            (25, "value: attention logits and loss", forward),
            (25, "gradient of every weight", gradient),
            (15, "gradient where scores are 13 to 15 times the cap", far_past_the_cap),
            (20, "five steps of AdamW", steps),
            (15, "effect: training at a high learning rate", effect_attn_cap),
        ],
        # scores below and above the cap; many heads and layers; the flag off; a cap of which all
        # scores are thousands; no layer; one row; relu2; more queries than a block of 64
        cases=[
            dict(attn_cap=0.7, qk_norm=0),
            dict(attn_cap=1.5, qk_norm=1, d=24, heads=3, layers=2, T=23, batch=3, scale="d_h"),
            dict(attn_cap=0, qk_norm=0, layers=2),
            dict(attn_cap=1e-3, qk_norm=0, layers=2),
            dict(attn_cap=2, layers=0),
            dict(attn_cap=30, T=1, batch=1, eps=1e-3),
            dict(attn_cap=0.5, qk_norm=0, attention="relu2", d=12, heads=3, T=9),
            dict(attn_cap=1, qk_norm=0, d=12, heads=2, T=131, batch=2),
        ],
        cuda_cases=[
            dict(attn_cap=0.7, qk_norm=0),
            dict(attn_cap=0),
            dict(attn_cap=0.7, d=24, heads=3, layers=2, T=15, batch=3, vocab=13),
        ],
        fields=("max_attn_logit", "loss", "log_z"),
        first=("c_attn",),
        mistakes=[
            ({"wrong_cap": "missing"}, OFF),
            *(
                ({"wrong_cap": name}, words)
                for name, words in dict(
                    no_factor="The capped score is between -1 and 1: the cap is not multiplied in.",
                    no_division="The score is not divided by the cap before the tanh.",
                    product="The products are capped before they are scaled, with the cap of the"
                    " scores.",
                    squared="The scale is there twice before the tanh: the product is a score"
                    " already.",
                    size="Negative scores become positive.",
                    hard="A hard limit: scores within the cap must change too.",
                    mask="Later keys are hidden before the cap, which brings them back.",
                    logged="max_logit is that after the cap; it must be that before it.",
                    no_back="The backward pass knows nothing of the cap.",
                    back_p="The backward pass computes the softmax from the scores before the cap.",
                    straight="The gradient does not go through the cap: it is that of the capped"
                    " scores.",
                    no_square="In the derivative, tanh is not squared.",
                    square="The derivative is 0 where it should be 1, and 1 where it should be 0.",
                    capped="The derivative is taken at the capped score; it must be at the score.",
                    over_cap="The derivative is divided by the cap; the two factors cancel.",
                    at_product="The derivative is taken at the product; it must be at the score.",
                ).items()
            ),
        ],
        hints=dict(
            forward=(
                "The forward pass: what p holds before and after the next loop, and which number"
                " the cap is compared with.",
                "p[j] = cap / scale * tanh(p[j] * scale / cap) before the loop that scales and"
                " masks; for no score may an exponential overflow.",
            ),
            gradient=(
                "The backward pass: the capped scores again for the softmax, and for each score the"
                " derivative at the score, not at the capped one.",
                "ds_ij times 1 - tanh(s_ij / cap)^2, for the row at hand: s.slope holds one row.",
            ),
            steps=(AGAIN, ""),
        ),
    ),
    "qk_clip": dict(
        tests=[
            (45, "value: one update", update),
            (30, "five steps of AdamW", steps),
            (25, "effect: training at a high learning rate", effect_qk_clip),
        ],
        cases=[
            dict(qk_clip=1.5, qk_norm=0, d=12, heads=3, layers=2, batch=4, steps=20),
            dict(qk_clip=0, qk_norm=0, layers=2, batch=3),
            dict(qk_clip=0.3, qk_norm=0, layers=3, heads=4, batch=7, lr=0.2, wd=0.1),
            dict(qk_clip=100, qk_norm=0, d=40, heads=1, layers=1, batch=1, steps=6),
            dict(qk_clip=2, qk_norm=0, layers=0, heads=1, steps=6),
        ],
        # all heads above the limit; some; the flag off
        cuda_cases=[
            dict(qk_clip=tau, qk_norm=0, d=24, heads=3, layers=2, batch=3, steps=6)
            for tau in (0.4, 2, 0)
        ],
        mistakes=[
            ({"qk_clip": 0}, OFF),
            *(
                ({"wrong_clip": name}, words)
                for name, words in dict(
                    whole="The scores shrink twice: queries and keys each take the whole factor.",
                    fourth="The scores shrink by half as many orders of magnitude as they should.",
                    queries="Only the queries shrink; the keys must too.",
                    keys="Only the keys shrink; the queries must too.",
                    queries_whole="The queries take the whole factor, the keys nothing.",
                    values="The values shrink too.",
                    upside_down="The factor is upside down: the weights grow.",
                    always="A head below the limit must stay as it is.",
                    heads="All heads take the factor of the layer's largest score.",
                    first="The largest score is that of the batch's first sequence.",
                    last="The largest score is that of the batch's last sequence.",
                    mean="The mean over the batch stands where the largest should.",
                    least="The smallest over the batch stands where the largest should.",
                    sum="The scores of the batch's sequences are added.",
                    turned="max_logit is read as (NH,B); it is (B,NH).",
                    layer="The largest scores are those of the first layer, for every layer.",
                    layout="The rows are those of another layout: c_attn has all queries, then all"
                    " keys, then all values.",
                    columns="Columns shrink where rows should: a row makes one channel of q.",
                    before="The weights are clipped before the optimizer's step, not after it.",
                ).items()
            ),
        ],
        hints=dict(
            update=(
                "Your lines in gpt_update: which rows of c_attn make a head's queries and keys,"
                " which numbers of max_logit are this head's, and how a score depends on both.",
                "With HS rows a head, rows h HS to (h + 1) HS - 1 of c_attn and those C rows below"
                " them, times sqrt(tau / largest), where largest is the maximum over b of"
                " max_logit[b * NH + h], if it is above tau.",
            ),
            steps=(AGAIN, ""),
        ),
    ),
    "z_loss": dict(
        tests=[
            (30, "value: the gradient of the logits on a tiny case", forward),
            (30, "gradient of every weight", gradient),
            (20, "five steps of AdamW", steps),
            (20, "effect: log Z after training", effect_z_loss),
        ],
        # in the first, rows, sequences and vocabulary are 15, 3 and 7: no two factors are the same;
        # with two tokens log Z is negative in some rows
        cases=[
            dict(z_loss=0.1, T=5, batch=3),
            dict(z_loss=0.0),
            dict(z_loss=0.3, layers=2, T=13, batch=5, vocab=2),
            dict(z_loss=0.2, layers=0, T=1, batch=1),
            dict(z_loss=2.0, T=11, batch=7, vocab=67),
        ],
        cuda_cases=[
            dict(z_loss=0.1, T=5, batch=3, vocab=7),
            dict(z_loss=0.0),
            dict(z_loss=0.3, layers=2, T=5, batch=3, vocab=67),
        ],
        both_signs=True,
        fields=("loss", "log_z", "dlogits"),
        first=("lm_head",),
        mistakes=[
            ({"z_loss": 0}, OFF),
            (
                {"wrong_reported": 1},
                "The z-loss is in the loss that is reported; that is the cross-entropy alone.",
            ),
            *(
                ({"wrong_z": name}, words)
                for name, words in dict(
                    half="The term of the z-loss is half of what it should be.",
                    twice="The term of the z-loss is twice what it should be.",
                    sign="The sign of the term is wrong: it drives log Z away from 0.",
                    no_log_z="The term is the same in every row: it lacks the row's log Z.",
                    square="The square of log Z is in the term: that is the loss, not its"
                    " derivative.",
                    size="The size of log Z is in the term, without its sign.",
                    rows="The term is divided by the rows, and the lines below do so again.",
                    batch="The term is divided by the sequences of the batch.",
                    vocab="The term is divided by the vocabulary.",
                    sum="The term is multiplied by the rows.",
                    top="The largest logit stands where log Z should.",
                    z="Z stands where log Z should.",
                    mean="The mean of log Z stands where the row's should.",
                    first="The log Z of the first row is used for every row.",
                ).items()
            ),
        ],
        hints=dict(
            forward={
                "dlogits": (
                    "The gradient of the logits: what multiplies the softmax of a row.",
                    "dlogits = ((1 + 2 z_loss log Z) p - [target]) / rows, and log Z is log_z[i].",
                ),
                "": (
                    "What is reported: losses and log_z keep the values that they have.",
                    "The lines add to weight alone: losses[i] stays log Z - logit[target].",
                ),
            },
            gradient=("The gradient of the logits: all others follow from it.", ""),
            steps=(AGAIN, ""),
        ),
    ),
    "warmup": dict(
        files=("gpt.h", "train_gpt.c"),
        tests=[
            (50, "value: the learning rate of every step", schedule),
            (30, "five steps of AdamW", steps),
            (20, "effect: how far the first steps go", effect_warmup),
        ],
        cases=[
            dict(warmup=5, steps=11, lr=0.07),
            dict(warmup=0, steps=3),
            dict(warmup=5, steps=5),
            dict(warmup=1, steps=1),
            dict(warmup=3, steps=8, lr=0.3, min_lr=1.0),
            dict(warmup=4, steps=9, schedule="constant"),
            dict(warmup=2, steps=13, schedule="wsd", layers=0),
            dict(warmup=7, steps=7, layers=2),
        ],
        mistakes=[
            ({"wrong_missing": 1}, OFF),
            *(
                ({"wrong_rise": name}, words)
                for name, words in dict(
                    late="One step late: steps count from 1.",
                    early="One step early: steps count from 1.",
                    whole="A division of whole numbers: its result is 0 or 1.",
                    square="The learning rate rises as a parabola, not in a straight line.",
                    steps="It rises over all steps, not over those of the warm-up.",
                    end="It rises from min_lr; the line starts at 0.",
                    no_peak="It is a share of the peak: the peak is not multiplied in.",
                    peak="It is the peak from the first step on.",
                    upside_down="The fraction is upside down.",
                    falls="It falls from the peak to 0.",
                ).items()
            ),
        ],
        hints=dict(
            schedule=(
                "learning_rate: the share of the warm-up that is done, at which steps, and the"
                " rate at its end.",
                "lr * step / warmup where step < warmup; at step = warmup the peak.",
            ),
            steps=(AGAIN, ""),
        ),
    ),
    "wd": dict(
        files=("gpt.h", "train_gpt.c"),
        tests=[
            (40, "value: one update", update),
            (20, "five steps of AdamW", steps),
            (40, "effect: how far weights shrink", effect_wd),
        ],
        cases=[
            dict(wd=0.1, wd_independent=1, steps=20, warmup=5, lr=0.3),
            dict(wd=0.1, wd_independent=0, steps=20, warmup=5, lr=0.3),
            dict(wd=0.0, steps=6, warmup=3, lr=0.3),
            dict(wd=0.7, steps=9, warmup=0, lr=0.03, min_lr=0.02, layers=0),
            dict(wd=0.2, wd_independent=0, steps=9, schedule="wsd", layers=3),
        ],
        cuda_cases=[dict(wd=0.1, wd_independent=i, steps=20, warmup=5, lr=0.3) for i in (1, 0)],
        mistakes=[
            ({"wd": 0}, OFF),
            ({"wd_independent": 0}, "This is the decay of -wd_independent 0."),
            ({"wd_independent": 1}, "This is the decay of -wd_independent 1."),
            *(
                ({"wrong_decay": name}, words)
                for name, words in dict(
                    constant="The decay is the same at every step; it follows the schedule.",
                    sign="The sign is wrong: the weights grow.",
                    peak="The peak of the learning rate stands where that of the step should.",
                    first="The decay is that of the first step, at every step.",
                    before="The decay is that of the step before.",
                    half="The decay is half of what it should be.",
                ).items()
            ),
        ],
        hints=dict(
            update=(
                "weight_decay in gpt.h, for both values of -wd_independent; gpt_update calls it at"
                " each step.",
                "adamw subtracts decay * param; decay = wd * lr_t / lr, or wd * lr_t with"
                " -wd_independent 0, where lr_t is learning_rate(cfg, step).",
            ),
            steps=(AGAIN, ""),
        ),
    ),
    "mu_param": dict(
        files=("gpt.h", "train_gpt.c"),
        tests=[
            (30, "initial weights", initial),
            (15, "value: attention logits, loss", forward),
            (20, "value: one update", update),
            (15, "five steps of AdamW", steps),
            (20, "effect: a step's effect on the logits at two widths", effect_mu_param),
        ],
        # the head size at the base width is 3.5, 3, 6, 2, 12, 5/3 and 6
        cases=[
            dict(mu_param=mu, base_d=b, d=d, layers=layers, heads=heads, **more)
            for mu, d, b, layers, heads, more in (
                ("full", 20, 7, 2, 2, {}),
                ("intermediate", 16, 6, 2, 2, {}),
                ("simple", 8, 12, 2, 2, dict(scale="d_h")),
                ("off", 8, 4, 1, 2, {}),
                ("full", 16, 24, 1, 2, {}),
                ("full", 12, 5, 3, 3, dict(scale="d_h")),
                ("full", 8, 6, 0, 1, {}),
            )
        ],
        cuda_cases=[
            dict(mu_param=mu, d=24, base_d=9, layers=2, heads=3) for mu in ("full", "off", "simple")
        ],
        fields=("max_attn_logit", "loss", "log_z", "dlogits"),
        first=("c_attn",),
        mistakes=[
            ({"mu_param": "off"}, OFF),
            ({"mu_param": "full"}, "This is the value of 'full'."),
            ({"mu_param": "intermediate"}, "This is the value of 'intermediate'."),
            ({"mu_param": "simple"}, "This is the value of 'simple'."),
            ({"wrong_upside_down": 1}, "The factor m is upside down."),
            ({"wrong_whole": 1}, "m comes from a division of whole numbers: it has a fraction."),
            ({"wrong_tensors": "all"}, "Every tensor's learning rate is scaled."),
            (
                {"wrong_tensors": "norms"},
                "The norms' learning rate is scaled too: only linear layers' should be.",
            ),
            ({"wrong_tensors": "head"}, "The head's learning rate is not scaled."),
            ({"wrong_lr_root": 1}, "The power of m in the learning rate is wrong."),
            (
                {"wrong_fan_in": 1},
                "The MLP's second matrix has another factor: m is that of the width.",
            ),
            ({"wrong_root": 1}, "The power of m in the head's standard deviation is wrong."),
            ({"wrong_queries": "keys"}, "The keys start at 0 where the queries should."),
            ({"wrong_queries": "both"}, "The keys start at 0 too: only the queries should."),
            ({"wrong_queries": "all"}, "Queries, keys and values start at 0."),
            ({"wrong_queries": "row"}, "Only the first row of the queries starts at 0."),
            ({"wrong_scale": "base"}, "Attention's scale depends on base_d; it should not."),
            ({"wrong_scale": "base head"}, "Attention's scale has the base's head size in it."),
            ({"wrong_scale": "squared"}, "Attention's scale is multiplied with the old one."),
            ({"wrong_scale": "width"}, "Attention's scale has C where the head size should be."),
        ],
        hints=dict(
            off=(
                "-mu_param off: what your lines change there.",
                "cfg->mu_param >= MU_INTERMEDIATE for the head, >= MU_FULL for the queries.",
            ),
            initial={
                "lm_head": (
                    "parameters_init, the standard deviation of LM_HEAD.",
                    "sqrt(base_d) / C with intermediate and full: std /= sqrt(m).",
                ),
                "": (
                    "parameters_init, the first third of C_ATTN.",
                    "With full, memset the first C rows of c_attn (3C,C) to 0, no others.",
                ),
            },
            forward=(
                "attention_scale in gpt.h, which both passes read; HS is the head size at this"
                " width.",
                "1 / HS with full, 1 / sqrt(HS) without.",
            ),
            update={
                "update_rms": (
                    "The log: update_rms is that of the update without the learning rate.",
                    "Multiply kind_lr, and nothing else in gpt_update.",
                ),
                "": (
                    "mu_m and mu_lr_scale in gpt.h, and gpt_update, which multiplies.",
                    "m = C / base_d; a linear layer (p->role), the head included, learns at lr / m"
                    " with simple, intermediate and full.",
                ),
            },
            steps=(AGAIN, ""),
        ),
    ),
    "eps": dict(
        tests=[
            (50, "value: one update", update),
            (25, "five steps of AdamW", steps),
            (25, "effect: updates die", effect_eps),
        ],
        cases=[
            dict(eps=1e-1, steps=20, warmup=2),
            dict(eps=1e-15, steps=20),
            dict(eps=3.0, steps=6, layers=0),
            dict(eps=1e-2, steps=6, layers=2, d=40),  # a tensor of more than 4,096 values
        ],
        cuda_cases=[dict(eps=1e-2, steps=6, layers=2)],
        mistakes=[
            ({"eps": 1e-8}, OFF),
            *(
                ({"wrong_eps": name}, words)
                for name, words in dict(
                    root="epsilon is inside of the root.",
                    before="epsilon is added before v is corrected.",
                    largest="epsilon is a least value; it should be added.",
                    minus="epsilon is subtracted.",
                    square="epsilon is squared.",
                    sqrt="The root of epsilon is taken.",
                    both="1e-8 is added to the flag's value.",
                    after="epsilon multiplies the root; it should be added.",
                ).items()
            ),
            *(({"eps": x}, f"This is the value of -eps {x:g}.") for x in (0.0, 1e-4, 1.0)),
        ],
        hints=dict(
            update=(
                "gpt_update, the constants of the step, and where adamw uses eps.",
                "u = m^ / (sqrt(v^) + eps): outside of the root, after the correction of v.",
            ),
            steps=(AGAIN, ""),
        ),
    ),
    "beta2": dict(
        tests=[
            (50, "value: one update", update),
            (25, "five steps of AdamW", steps),
            (25, "effect: a sudden gradient", effect_beta2),
        ],
        cases=[
            dict(beta2=0.6, steps=20, warmup=2, beta1=0.7),
            dict(beta2=0.999, steps=20),
            dict(beta2=0.0, steps=6, layers=0),
            dict(beta2=0.7, steps=6, layers=2, d=40),
        ],
        cuda_cases=[dict(beta2=0.7, steps=6, layers=2)],
        mistakes=[
            ({"beta2": 0.95}, OFF),
            ({"wrong_kept": 1, "wrong_new": "fixed"}, "v decays with 0.95."),
            ({"wrong_kept": 1}, "The old v decays with 0.95."),
            ({"wrong_new": "fixed"}, "The new square has the factor of -beta2 0.95."),
            ({"wrong_new": "whole"}, "The new square has no factor."),
            ({"wrong_correction": "fixed"}, "The correction of v is that of -beta2 0.95."),
            ({"wrong_correction": "beta1"}, "The correction of v is that of m."),
            ({"wrong_correction": "none"}, "v is not corrected."),
            ({"wrong_correction": "late"}, "The correction of v is that of the step after."),
            ({"beta2": 0.7}, "This is the value with beta1 in place of beta2."),
            ({"beta2": 0.6**2}, "This is the value with the square of beta2."),
            ({"beta2": 0.6**0.5}, "This is the value with the root of beta2."),
            ({"beta2": 1 - 0.6}, "This is the value with 1 - beta2 in place of beta2."),
        ],
        hints=dict(
            update=(
                "gpt_update, the constants of the step: three places of AdamW hold beta2.",
                "v = beta2 v + (1 - beta2) g^2, and v^ = v / (1 - beta2^t).",
            ),
            steps=(AGAIN, ""),
        ),
    ),
    "clip": dict(
        tests=[
            (50, "value: one update", update),
            (25, "five steps of AdamW", steps),
            (25, "effect: a tight clip", effect_clip),
        ],
        cases=[
            dict(clip=0.5, steps=20),
            dict(clip=1e6, steps=20),
            dict(clip=0.0, steps=20),
            dict(clip=3.0, steps=9, layers=0),
            dict(clip=0.1, steps=6, layers=2, d=40),
        ],
        cuda_cases=[dict(clip=c, steps=6, layers=2) for c in (0.1, 100.0, 0.0)],
        mistakes=[
            ({"clip": 0}, OFF),
            ({"wrong_norm": 1}, "The norm that is returned is that after clipping."),
            (
                {"wrong_scaled": 1},
                "The gradients that are logged are those after clipping.",
            ),
            *(
                ({"wrong_cut": name}, words)
                for name, words in dict(
                    always="A gradient below the limit must stay as it is.",
                    zero="0 means no limit.",
                    square="The norm divides twice.",
                    root="The root of the factor is taken.",
                    no_norm="The norm is missing in the factor.",
                    upside_down="The factor is upside down.",
                    one="The gradient gets the norm 1, not the flag's value.",
                    none="A gradient above the limit becomes 0.",
                    plus="1e-6 is added to the norm.",
                    negative="The gradient changes its sign.",
                ).items()
            ),
        ],
        hints=dict(
            update={
                "norm": (
                    "gpt_update: the norm and the gradients are reported as they were.",
                    "Change clip_scale alone: adamw multiplies each gradient by it.",
                ),
                "grad_rms": (
                    "gpt_update: the gradients are logged as they were.",
                    "Change clip_scale alone: adamw multiplies each gradient by it.",
                ),
                "": (
                    "gpt_update: the norm is that of all gradients together; which norms are too"
                    " large, and what does -clip 0 mean?",
                    "clip_scale = clip / norm where clip > 0 and norm > clip; else 1.",
                ),
            },
            steps=(AGAIN, ""),
        ),
    ),
}


def cuda_forward(s, ex):
    forward(s, ex, "cuda", 2e-3)


def cuda_gradient(s, ex):
    gradient(s, ex, "cuda", 5e-3)


def cuda_steps(s, ex):
    # epsilon: else float's rounding of a gradient near 0 is a whole step
    steps(s, ex, "cuda", 5e-4, 1e-2)
