"""The tests of the exercises, and which exercise has which. Each takes the student's program and
its exercise, and raises Wrong."""

import numpy as np

import reference as ref
from student import Wrong, expect


def case(s, change, program="double"):
    # one head: train_gpt.cu has heads of 8 channels at least
    cfg = {**ref.CONFIG, **dict(cuda={"heads": 1}).get(program, {}), **change}
    return cfg, ref.init(cfg, s.rng, 0.2), s.batches(cfg, 5)


def forward(s, ex, program="double", tolerance=1e-7):
    """The results of a step before any gradient of a weight, the smallest case first."""
    for change in ex["cases"]:
        cfg, p, batches = case(s, change, program)
        found = s.steps(cfg, p, batches[:1], program)[0]
        right = lambda c: {
            n: x for n, x in ref.gradient(c, p, *batches[0]).items() if n in ex["fields"]
        }
        expect(right, found, cfg, ex["mistakes"], ex["hints"]["forward"], tolerance)


def gradient(s, ex, program="double", tolerance=1e-5):
    """Gradients of weights against finite differences of the reference's loss, at random places of
    every tensor."""
    for change in ex["cases"]:
        cfg, p, batches = case(s, change, program)
        found = s.steps(cfg, p, batches[:1], program)[0]["grads"]
        # the likeliest first
        for name in sorted(
            found, key=lambda n: not any(n.endswith(x + ".weight") for x in ex.get("first", ()))
        ):
            size = max(abs(found[name]).max(), 1e-3) if np.isfinite(found[name]).all() else 1.0
            for i in s.rng.choice(p[name].size, min(4, p[name].size), replace=False):
                wanted, got = ref.slope(cfg, p, *batches[0], name, i), found[name].flat[i]
                if abs(wanted - got) <= tolerance * size + 1e-9:
                    continue
                right = lambda c: {name: ref.gradient(c, p, *batches[0])["grads"][name]}
                expect(
                    right,
                    {name: found[name]},
                    cfg,
                    ex["mistakes"],
                    ex["hints"]["gradient"],
                    tolerance,
                    "d loss / d ",
                )
                raise Wrong(
                    f"d loss / d {name}, element {i}: finite differences give {wanted:.6g}, the"
                    f" backward pass {got:.6g}",
                    "",
                    *ex["hints"]["gradient"],
                )


def initial(s, ex):
    """The weights that training starts from: without muParam of the usual size; with it the same,
    but for the head and the queries."""
    for change in ex["cases"]:
        cfg = {**ref.CONFIG, "vocab": 64, **change}
        off = s.initial({**cfg, "mu_param": "off"})
        for name, x in (
            ("head", off["lm_head.weight"]),
            (
                "queries",
                off["h.0.attn.c_attn.weight"][: cfg["d"]],
            ),
        ):
            size, wanted = np.sqrt((x * x).mean()), cfg["d"] ** -0.5
            if not 0.7 < size / wanted < 1.3:
                raise Wrong(
                    f"with -mu_param off the initial weights of the {name} have the RMS {size:.3g};"
                    f" expected about {wanted:.3g}, as without these lines"
                )
        right = lambda c: ref.mu_init(c, off)
        hint = ex["hints"]["initial"]
        expect(right, s.initial(cfg), cfg, ex["mistakes"], hint, 1e-9, "initial ")


def update(s, ex):
    """One step of the optimizer, from random weights, gradients and moments."""
    for change in ex["cases"]:
        cfg = {**ref.CONFIG, **change}
        p, m, g = (ref.init(cfg, s.rng, 0.2) for _ in range(3))
        v = {n: x**2 for n, x in ref.init(cfg, s.rng, 0.2).items()}
        step, size = int(s.rng.integers(1, cfg["steps"])), ref.pack(p).size
        flat, _ = s.answer(
            1 + 3 * size, "update", step, cfg, np.concatenate([ref.pack(x) for x in (p, g, m, v)])
        )
        found = dict(
            zip(("p", "m", "v"), (ref.unpack(cfg, flat[1 + i * size :][:size]) for i in range(3))),
            norm=flat[0],
        )
        right = lambda c: dict(zip(("p", "m", "v", "norm"), ref.adamw(c, p, m, v, g, step)))
        expect(
            right,
            found,
            cfg,
            ex["mistakes"],
            ex["hints"]["update"],
            1e-9,
            f"after the update of step {step}: ",
        )


def schedule(s, ex):
    """The learning rate of every step."""
    for change in ex["cases"]:
        cfg, p, batches = case(s, change)
        found = {
            f"learning rate of step {t}": one["lr"]
            for t, one in enumerate(s.steps(cfg, p, s.batches(cfg, cfg["steps"])), 1)
        }
        right = lambda c: {
            f"learning rate of step {t}": ref.schedule(c, t) for t in range(1, c["steps"] + 1)
        }
        expect(right, found, cfg, ex["mistakes"], ex["hints"]["schedule"], 1e-9)


def steps(s, ex, program="double", tolerance=1e-4, eps=1e-8):
    """Several whole steps: loss, learning rate, norm and weights after each."""
    for change in ex["cases"][-1:]:
        cfg, p, batches = case(s, {"eps": eps, **change}, program)
        found = s.steps(cfg, p, batches, program)

        def right(c):
            out, q = {}, p
            m, v = ({n: np.zeros_like(x) for n, x in p.items()} for _ in "mv")
            for t, batch in enumerate(batches, 1):
                one = ref.gradient(c, q, *batch)
                q, m, v, norm = ref.adamw(c, q, m, v, one["grads"], t)
                seen = dict(loss=one["loss"], norm=norm, lr=ref.schedule(c, t), **q)
                out.update({f"step {t}, {n}": x for n, x in seen.items()})
            return out

        found = {
            f"step {t}, {n}": x
            for t, one in enumerate(found, 1)
            for n, x in dict(loss=one["loss"], norm=one["norm"], lr=one["lr"], **one["p"]).items()
        }
        expect(right, found, cfg, ex["mistakes"], ex["hints"]["steps"], tolerance)


EFFECT = dict(
    d=32,
    heads=2,
    layers=2,
    T=32,
    batch=8,
    vocab=128,
    base_d=32,
    steps=150,
    warmup=15,
    lr=0.1,
    z_loss=0,
)


def sweep(s, change, lrs=(0.1,), steps=150):
    """Trains from the same weights on the same text, once for each learning rate; returns for each
    the trained weights, how far they moved, and what the reference measures with them on other
    text: loss, log Z, largest attention logit.
    """
    out = []
    for lr in lrs:
        cfg = {**ref.CONFIG, **EFFECT, "steps": steps, **change, "lr": lr}
        s.rng, kept = np.random.default_rng(s.seed), s.rng
        p, batches, other = (
            ref.init(cfg, s.rng),
            s.text_batches(cfg, cfg["steps"]),
            s.text_batches({**cfg, "batch": 32}, 1)[0],
        )
        s.rng = kept
        trained = s.trained(cfg, p, batches)
        seen = ref.measure(cfg, trained, *other)
        before = ref.measure(cfg, p, *other)
        out.append(
            dict(
                p=trained,
                start=p,
                moved=np.sqrt(np.mean((ref.pack(trained) - ref.pack(p)) ** 2)),
                loss=float(seen["loss"]),
                log_z=float(seen["log_z"]),
                max_attn_logit=float(seen["max_attn_logit"].max()),
                logits_moved=float(np.sqrt(np.mean((seen["logits"] - before["logits"]) ** 2))),
            )
        )
    return out


def claim(holds, text, wanted, *hints):
    if not holds:
        raise Wrong(f"{text}; {wanted}", "", *hints)


def effect_qk_norm(s, ex):
    seed, runs = s.seed, {0: [], 1: []}
    for s.seed in seed, seed + 1, seed + 2:  # one pair in six ends with the other loss lower
        for n in runs:
            runs[n] += sweep(s, dict(qk_norm=n), (0.3,), 200)
    s.seed = seed
    off, on = (
        {x: np.mean([run[x] for run in runs[n]]) for x in ("loss", "max_attn_logit")} for n in runs
    )
    trained = runs[1][0]["p"]
    # what was trained must be a model with qk-norm
    cfg, batch = ({**ref.CONFIG, **EFFECT, "qk_norm": 1}, s.batches(EFFECT, 1)[0])
    right = lambda c: {
        "largest attention logits of the trained model": ref.measure(c, trained, *batch)[
            "max_attn_logit"
        ]
    }
    expect(
        right,
        dict(zip(right(cfg), [s.steps(cfg, trained, [batch])[0]["max_attn_logit"]])),
        cfg,
        ex["mistakes"],
        ex["hints"]["forward"],
        1e-3,
    )
    claim(
        on["max_attn_logit"] < off["max_attn_logit"] / 20 and on["loss"] < off["loss"],
        f"after 200 steps at LR 0.3 the largest attention logit is {on['max_attn_logit']:.3g} and"
        f" the loss {on['loss']:.3f} with qk-norm, {off['max_attn_logit']:.3g} and"
        f" {off['loss']:.3f} without, as means of three trainings",
        "expected a twentieth of the logit or less, and a lower loss",
    )


def effect_z_loss(s, ex):
    off, on = (sweep(s, dict(z_loss=z), (0.01,), 100)[0] for z in (0, 0.1))
    claim(
        abs(on["log_z"]) < 1 < abs(off["log_z"]) - 1,
        f"mean log Z after 100 steps: {on['log_z']:.3f} with -z_loss 0.1, {off['log_z']:.3f}"
        " without",
        "expected it between -1 and 1 with the z-loss",
    )


def effect_warmup(s, ex):
    short, long = (sweep(s, dict(qk_norm=0, warmup=w), (0.1,), 10)[0]["moved"] for w in (1, 10))
    claim(
        long < 0.85 * short,
        f"RMS of the way that the weights moved in 10 steps at LR 0.1: {long:.3g} with 10 steps of"
        f" warm-up, {short:.3g} with 1",
        "expected less than 0.85 times as much",
    )


def effect_wd(s, ex):
    lr = 1e-7
    off, on, torch = (
        sweep(s, dict(wd=wd, wd_independent=i), (lr,), 40)[0]
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
            moved[mu, d] = sweep(
                s, dict(d=d, heads=d // 16, mu_param=mu, warmup=0, min_lr=1e-3, T=16), (1e-3,), 1
            )[0]["logits_moved"]
    off, full = (moved[mu, 128] / moved[mu, 32] for mu in ("off", "full"))
    claim(
        full < 0.65 * off,
        f"how much more the first step moves the logits at -d 128 than at -d 32: {full:.2f} times"
        f" with -mu_param full, {off:.2f} times without",
        "expected less than 0.65 of that with muParam: a step's effect should hardly grow with the"
        " width",
    )


def effect_eps(s, ex):
    small, large = (sweep(s, dict(eps=e), (0.01,), 30)[0]["moved"] for e in (1e-8, 1.0))
    claim(
        large < small / 5,
        f"RMS of the way that the weights moved: {large:.3g} with -eps 1, {small:.3g} with 1e-8",
        "an epsilon far above the gradients should make the updates die",
    )


def effect_clip(s, ex):
    loose, tight = (sweep(s, dict(clip=c, eps=1e-4), (0.01,), 30)[0]["moved"] for c in (1.0, 1e-4))
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
        cfg = {
            **ref.CONFIG,
            "beta2": beta2,
            "clip": 0,
            "wd": 0,
            "steps": 100,
            "warmup": 0,
            "min_lr": 1e-2,
        }
        p = ref.init(cfg, s.rng)
        zero = {n: np.zeros_like(x) for n, x in p.items()}
        m, v = (
            {n: x + 1e-3 * (1 - 0.9**30) for n, x in zero.items()},
            {n: x + 1e-6 * (1 - beta2**30) for n, x in zero.items()},
        )
        flat, _ = s.answer(
            1 + 3 * ref.pack(p).size,
            "update",
            31,
            cfg,
            np.concatenate([ref.pack(x) for x in (p, {n: x + 1 for n, x in zero.items()}, m, v)]),
        )
        largest.append(abs(flat[1 : 1 + ref.pack(p).size] - ref.pack(p)).max() / 1e-2)
    claim(
        largest[1] > 3 * largest[0],
        f"a gradient that grows a thousandfold gives an update of {largest[1]:.3g} with -beta2"
        f" 0.999, {largest[0]:.3g} with 0.5",
        "expected more than 3 times as much",
    )


OFF = "This is the value with the flag off: your lines are not reached, or change nothing."

# For each exercise: the student's files (default: train_gpt.c), and its tests in the order of
# difficulty, each with points, title and function.
EXERCISES = {
    "qk_norm": dict(
        tests=[
            (25, "value: attention logits and loss", forward),
            (35, "gradient, by finite differences", gradient),
            (20, "five steps of AdamW", steps),
            (20, "effect: training at a high learning rate", effect_qk_norm),
        ],
        # the second has 69 rows: more than one chunk
        cases=[dict(qk_norm=1), dict(qk_norm=1, d=24, heads=3, layers=2, T=23, batch=3, vocab=13)],
        fields=("max_attn_logit", "loss", "log_z"),
        first=("q_norm", "k_norm", "c_attn"),
        mistakes=[
            ({"wrong_only": ""}, OFF),
            ({"wrong_only": "q"}, "Only the queries are normalised; the keys must be too."),
            ({"wrong_only": "k"}, "Only the keys are normalised; the queries must be too."),
            (
                {"wrong_after_rope": 1},
                "This is the value with the norm after RoPE; the norm comes before.",
            ),
            (
                {"wrong_weight": 1},
                "The keys are scaled with the queries' weight; their weight is k_weight, K_NORM.",
            ),
        ],
        hints=dict(
            forward=(
                (
                    "",
                    "The norm is over the HS values of each head, not over C; rope_row turns"
                    " `from`, so"
                    " `from` must point to the normalised values.",
                )
            ),
            gradient=(
                (
                    "",
                    "The forward pass is normalise, then turn; so the backward pass turns back,"
                    " then"
                    " goes through the norm: layernorm_row_backward, whose x is what the"
                    " forward pass"
                    " normalised (in qkv). Mean and rstd are those of this row, of q or of k,"
                    " and of"
                    " this head: (B,T,2,NH). The weights' gradients are sums over all chunks.",
                )
            ),
            steps=("", "If value and gradient are right, this should be too."),
        ),
    ),
    "z_loss": dict(
        tests=[
            (30, "value: the gradient of the logits on a tiny case", forward),
            (30, "gradient of the weights, by finite differences", gradient),
            (20, "five steps of AdamW", steps),
            (20, "effect: log Z after training", effect_z_loss),
        ],
        cases=[
            dict(z_loss=0.1, T=2, batch=1, vocab=3),
            dict(z_loss=0.0),
            dict(z_loss=0.3, layers=2),
        ],
        fields=("loss", "log_z", "dlogits"),
        first=("lm_head",),
        mistakes=[
            ({"z_loss": 0}, OFF),
            *[
                ({"z_loss": z / 2}, "Half of it: the derivative of (log Z)^2 is 2 log Z.")
                for z in (0.1, 0.3)
            ],
        ],
        hints=dict(
            forward=(
                (
                    "",
                    "dlogits = (p - [target] + 2 z_loss log Z p) / rows: log Z is log_z[i] of"
                    " the row,"
                    " not the largest logit or the sum.",
                )
            ),
            gradient=("", "The gradient of the logits is wrong, and all others follow from it."),
            steps=("", "If value and gradient are right, this should be too."),
        ),
    ),
    "warmup": dict(
        files=("gpt.h", "train_gpt.c"),
        tests=[
            (50, "value: the learning rate of every step", schedule),
            (30, "five steps of AdamW", steps),
            (20, "effect: attention logits early in training", effect_warmup),
        ],
        cases=[
            dict(warmup=4, steps=10),
            dict(warmup=0, steps=3),
            dict(warmup=5, steps=5),
            dict(warmup=3, steps=8, lr=0.3),
        ],
        mistakes=[
            ({"warmup": 0}, OFF),
            (
                {"wrong_step": 1},
                "One step late: steps count from 1, and step 1 already learns at lr / warmup.",
            ),
            ({"wrong_restart": 1}, "The cosine begins after the warm-up, not at step 0."),
        ],
        hints=dict(
            schedule=("", "lr * step / warmup where step < warmup; at step = warmup the peak."),
            steps=("", "The schedule is wrong, or something else was changed."),
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
            dict(wd=0.1, wd_independent=1, steps=20, warmup=5, lr=0.2),
            dict(wd=0.1, wd_independent=0, steps=20, warmup=5, lr=0.2),
            dict(wd=0.05, steps=6, warmup=3, lr=0.3),
        ],
        mistakes=[
            ({"wd": 0}, OFF),
            ({"wd_independent": 0}, "This is the decay of -wd_independent 0, wd * lr_t."),
            ({"wd_independent": 1}, "This is the decay of -wd_independent 1, wd * lr_t / lr."),
            (
                {"wrong_constant": 1},
                "The decay is the same at every step; it follows the schedule, lr_t / lr.",
            ),
        ],
        hints=dict(
            update=(
                "",
                "decay is the share of the weight that decays: adamw subtracts decay * param.",
            ),
            steps=("", "If one update is right: is decay computed anew at each step?"),
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
        cases=[
            dict(mu_param=mu, base_d=b, d=d, layers=2)
            for mu, d, b in (
                ("full", 8, 3),
                ("intermediate", 16, 6),
                ("simple", 8, 12),
                ("off", 8, 4),
                ("full", 16, 24),
            )
        ],
        fields=("max_attn_logit", "loss", "log_z", "dlogits"),
        first=("c_attn",),
        mistakes=[
            ({"mu_param": "off"}, OFF),
            (
                {"mu_param": "full"},
                "This is the value of 'full': which of the four has each of the three?",
            ),
            (
                {"mu_param": "intermediate"},
                "This is the value of 'intermediate': 'full' also has another scale of attention,"
                " and queries that start at 0.",
            ),
            (
                {"mu_param": "simple"},
                "This is the value of 'simple': 'intermediate' and 'full' also start the head at"
                " another size.",
            ),
            (
                {"wrong_all": 1},
                "Every tensor learns at lr / m; only linear layers should (p->role).",
            ),
            ({"wrong_head": 1}, "The head is a linear layer too: it learns at lr / m."),
            ({"wrong_upside_down": 1}, "The factor is upside down: m = C / base_d."),
            ({"wrong_whole": 1}, "m = C / base_d is not a whole number: divide as double."),
            ({"wrong_root": 1}, "The head's standard deviation has the factor 1 / sqrt(m)."),
            (
                {"wrong_scale": 1},
                "The scale is 1 / HS, whatever the base width; HS is the head size at this width.",
            ),
        ],
        hints=dict(
            initial=(
                (
                    "",
                    "The head's standard deviation is sqrt(base_d) / C (intermediate, full);"
                    " the first"
                    " C rows of c_attn, the queries', are 0 (full). All else stays.",
                )
            ),
            forward=("", "Attention's scale is 1 / HS (full)."),
            gradient=(
                "",
                "attention_scale serves both passes: if the value is right, this should be.",
            ),
            update=("", "Linear layers (p->role), the head included, learn at lr / m."),
            steps=("", "If value and update are right, this should be too."),
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
            dict(eps=1e-2, steps=6),
        ],
        mistakes=[({"eps": 1e-8}, OFF)],
        hints=dict(
            update=(
                "",
                "u = m^ / (sqrt(v^) + eps): outside of the root, after the correction of v.",
            ),
            steps=("", "If one update is right, this should be too."),
        ),
    ),
    "beta2": dict(
        tests=[
            (50, "value: one update", update),
            (25, "five steps of AdamW", steps),
            (25, "effect: a sudden gradient", effect_beta2),
        ],
        cases=[
            dict(beta2=0.5, steps=20, warmup=2),
            dict(beta2=0.999, steps=20),
            dict(beta2=0.7, steps=6),
        ],
        mistakes=[({"beta2": 0.95}, OFF)],
        hints=dict(
            update=(
                (
                    "",
                    "v = beta2 v + (1 - beta2) g^2, and v^ = v / (1 - beta2^t): all three hold"
                    " beta2.",
                )
            ),
            steps=("", "If one update is right, this should be too."),
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
            dict(clip=0.1, steps=6),
        ],
        mistakes=[
            ({"clip": 0}, OFF),
            (
                {"wrong_always": 1},
                "A gradient below the limit must stay as it is: clip only where norm > clip.",
            ),
        ],
        hints=dict(
            update=(
                (
                    "",
                    "clip_scale = clip / norm where norm > clip, the norm of all gradients"
                    " together; 0"
                    " means no clipping.",
                )
            ),
            steps=("", "If one update is right, this should be too."),
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
