"""The trainer against the JAX oracle (oracle.py): loss, log Z, attention logits, every gradient and
five steps of the optimizer, in float (1e-4) and in double (1e-9), over shapes that divide no tile
and every intervention.
"""

import functools

import numpy as np
import pytest

import oracle
from conftest import Model

# Each case: what differs from BASE. eps 1e-3 where gradients are zero but for rounding (T = 1: the
# softmax of one number; HS = 2: a normalised pair is always +-1): there Adam at 1e-8 would turn
# rounding into full steps.
BASE = dict(
    d=24, layers=2, heads=3, T=7, batch=1, vocab=61, lr=1e-2, min_lr=1e-5, warmup=2, steps=8
)
CASES = dict(
    odd=dict(),
    odd_off=dict(qk_norm=0, z_loss=0, wd=0),
    one_token=dict(T=1, batch=3, eps=1e-3),
    one_token_off=dict(T=1, batch=1, qk_norm=0, z_loss=0, eps=1e-3),
    one_head=dict(heads=1, d=20),
    one_layer=dict(layers=1, qk_norm=0),
    deep=dict(layers=5, d=8, heads=2, T=5, batch=2),
    two_symbols=dict(vocab=2, T=9, batch=2),
    head_of_2=dict(d=6, heads=3, qk_norm=0),
    head_of_2_normed=dict(d=6, heads=3, eps=1e-3),
    c64=dict(d=64, heads=4, T=32, batch=4, vocab=256, z_loss=1e-1),
    c40=dict(d=40, heads=5, T=33, batch=3, vocab=97, qk_norm=0, z_loss=1e-4),
    head_of_64=dict(d=64, heads=1, layers=1, T=70, vocab=130),
    no_layers=dict(layers=0, mu_param="full", base_d=8),
    simple=dict(mu_param="simple", base_d=8),
    intermediate=dict(mu_param="intermediate", base_d=8, qk_norm=0),
    full=dict(mu_param="full", base_d=8, qk_norm=0, z_loss=1e-1),
    full_normed=dict(mu_param="full", base_d=96, z_loss=1e-1, T=13, batch=2, eps=1e-3),
    full_at_base=dict(mu_param="full", base_d=24),
    scale=dict(scale="d_h"),
    rms_lr=dict(rms_lr=1, lr=0.3),
    relu2=dict(attention="relu2", qk_norm=0, z_loss=1e-1),
    relu2_long=dict(attention="relu2", T=150, d=16, heads=2, batch=2, scale="d_h"),
    norm_over_all=dict(qk_norm="model"),
    norm_over_all_full=dict(
        qk_norm="model", mu_param="full", base_d=12, heads=3, T=70, z_loss=1e-1
    ),
    kappa=dict(kappa=3, qk_norm=0),
    kappa_full=dict(kappa=0.5, qk_norm=0, mu_param="full", base_d=12, heads=3, T=9),
    rms_lr_simple=dict(rms_lr=1, mu_param="simple", base_d=8, qk_norm=0, wd=3, wd_independent=0),
    decay=dict(wd=0.3),
    decay_standard=dict(wd=20, wd_independent=0),
    rounded=dict(bf16_logits=1, z_loss=1e-1, vocab=11, T=5),
    rounded_full=dict(bf16_logits=1, mu_param="full", base_d=12, vocab=11, T=5),
    attn_cap=dict(attn_cap=2, qk_norm=0),
    attn_cap_of_relu2=dict(attn_cap=0.5, attention="relu2", T=70, d=16, heads=2),
    qk_clip=dict(qk_clip=0.5, qk_norm=0, batch=3),
    qk_clip_full=dict(qk_clip=0.05, qk_norm=0, mu_param="full", base_d=12, T=9, batch=2),
    muon=dict(optimizer="muon"),
    muon_one_head=dict(optimizer="muon", d=20, heads=1, T=40, wd=0.3, clip=0.05),
    gate=dict(gate=1),
    peri_ln=dict(peri_ln=1),
    cautious=dict(cautious=1, wd=0.3),
    cautious_standard=dict(cautious=1, wd=20, wd_independent=0, optimizer="muon"),
    muon_clip=dict(optimizer="muon", qk_clip=0.5, qk_norm=0, batch=2, rms_lr=1, lr=0.3),
    cures=dict(
        gate=1, peri_ln=1, attn_cap=1, qk_clip=0.7, qk_norm=0, attention="relu2", batch=3, eps=1e-3
    ),
    all_cures=dict(
        optimizer="muon",
        gate=1,
        peri_ln=1,
        attn_cap=1,
        cautious=1,
        qk_norm="model",
        mu_param="full",
        base_d=12,
        rms_lr=1,
        z_loss=1e-1,
        wd=3,
        wd_independent=0,
        clip=0.1,
        T=11,
        batch=2,
    ),
    clipped=dict(clip=0.05, eps=1e-3),
    unclipped=dict(clip=0, eps=1e-3),
    betas=dict(beta1=0.5, beta2=0.999, warmup=0, min_lr=1e-2),
    everything=dict(
        mu_param="full",
        base_d=12,
        rms_lr=1,
        z_loss=1e-1,
        wd=3,
        wd_independent=0,
        clip=0.1,
        eps=1e-3,
        beta1=0.8,
        warmup=8,
        d=36,
        heads=3,
        T=11,
        batch=2,
    ),
)
ACTIVATIONS = ["embedding", "q k v", "attention", "fc1", "last residual", "logits"]
TOLERANCE = dict(float=1e-4, double=1e-9)
# The norm of two numbers jumps where they tie: changing the oracle's weights by a float's rounding
# there changes its gradients by up to 1e-4 a step. So in float this case only shows that nothing
# breaks; in double it is as strict. The same of a logit halfway between two of bfloat16.
ILL_CONDITIONED = {
    ("float", "head_of_2_normed"): 3e-2,
    ("float", "rounded"): 1e-2,
    ("float", "rounded_full"): 1e-2,
}


def config(**changes):
    return {**oracle.CONFIG, **BASE, **changes}


def start(cfg, seed=1):
    """Weights of an ordinary initialisation, with the norms' scales away from 1. With rms_lr one
    tensor's RMS is so small that its learning rate has the least factor."""
    rng, p = np.random.default_rng(seed), oracle.init(cfg, seed)
    if cfg["rms_lr"]:
        p["h.0.mlp.c_fc.weight"] *= 1e-3
    return {
        n: x * (1 + 0.3 * rng.standard_normal(x.shape)) if x.ndim == 1 else x for n, x in p.items()
    }


def batches(cfg, seed=2):
    rng = np.random.default_rng(seed)
    while True:
        tokens = rng.integers(cfg["vocab"], size=(cfg["batch"], cfg["T"] + 1))
        yield tokens[:, :-1], tokens[:, 1:]


@functools.cache
def expected(case, fixed):
    """What five steps should give: for each step its batch, what was measured, the gradients and
    the state after it."""
    cfg = config(**CASES[case])
    p, stream, out = start(cfg), batches(cfg), []
    m = v = {n: np.zeros(x.shape) for n, x in p.items()}
    value_and_grad = compiled(case)
    for step in range(1, 6):
        batch = out[0][0] if fixed and out else next(stream)
        (total, seen), g = value_and_grad(p, *batch)
        g = {n: np.asarray(x) for n, x in g.items()}
        p, m, v, u, norm = oracle.step(cfg, p, m, v, g, seen, step)
        out.append((batch, dict(seen, total=total, norm=norm, updates=u), g, (p, m, v)))
    return out


@functools.cache
def compiled(case):
    return oracle.value_and_grad(config(**CASES[case]))


def model(library, cfg):
    """The C model of this config with the oracle's starting weights."""
    model = Model(library, **cfg)
    assert {n: x.shape for n, x in model.p.items()} == oracle.shapes(cfg)
    for name, x in start(cfg).items():
        model.p[name][...] = x
    return model


def close(actual, wanted, tolerance, what, norm=lambda x: np.abs(x).max(initial=0), floor=0.0):
    """The largest error over the largest value (norm: the size of either); over `floor` where that
    is larger."""
    actual, wanted = np.asarray(actual, float), np.asarray(wanted, float)
    assert np.isfinite(actual).all(), what
    error, scale = norm(actual - wanted), max(norm(wanted), floor)
    assert error <= tolerance * scale, f"{what}: relative error {error / max(scale, 1e-300):.2g}"


def all_close(actual, wanted, tolerance, what, norm=lambda x: np.abs(x).max()):
    """Tensor by tensor; one of less than 1e-3 of the largest is compared with that: 1e-4 of it is
    float's rounding of the largest (at T = 1 q's and k's gradients are 0, the difference of two
    equal numbers)."""
    assert actual.keys() == wanted.keys()
    floor = 1e-3 * max(map(norm, wanted.values()))
    for name, x in wanted.items():
        close(actual[name], x, tolerance, f"{what} {name}", norm, floor)


@pytest.mark.parametrize("fixed", [False, True], ids=["batches", "one_batch"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("precision", TOLERANCE)
def test_five_steps(precision, case, fixed, request):
    """Section 3 and 4: what a step measures, its gradients, and the weights and moments that it
    leaves."""
    library, cfg = request.getfixturevalue(precision + "_library"), config(**CASES[case])
    tolerance = ILL_CONDITIONED.get((precision, case), TOLERANCE[precision])
    c = model(library, cfg)
    for step, (batch, seen, g, state) in enumerate(expected(case, fixed), 1):
        where = f"step {step}"
        close(c.backward(*batch), seen["ce"], tolerance, f"{where} loss")
        close(c.total_loss(), seen["total"], tolerance, f"{where} total")
        close(c.log_z(), seen["log_z"], tolerance, f"{where} log Z")
        close(
            c.mean_logit(), seen["mean_logit"], tolerance, "mean logit", floor=seen["act_rms"][-1]
        )
        for name, wanted in seen["by_layer"].items():
            # a query that is 0 has no cosine
            seen_here, wanted = (np.nan_to_num(x, nan=-9) for x in (c.by_layer(name), wanted))
            close(seen_here, wanted, tolerance, f"{where} {name}")
        names = ACTIVATIONS if cfg["layers"] else [ACTIVATIONS[i] for i in (0, 4, 5)]
        for name, actual, wanted in zip(names, c.act_rms(), seen["act_rms"], strict=True):
            close(actual, wanted, tolerance, f"{where} RMS of {name}")
        all_close(c.g, g, tolerance, f"{where} gradient")
        close(c.forward(*batch), seen["ce"], tolerance, f"{where} loss, forward alone")
        close(c.update(step), seen["norm"], tolerance, f"{where} gradient norm")
        for kind, tensor in ("c_fc", "mlp.c_fc"), ("attn_c_proj", "attn.c_proj"):
            names = [f"h.{l}.{tensor}.weight" for l in range(cfg["layers"])]
            wanted = [oracle.rms(g[n]) for n in names]
            close(c.by_layer(f"{kind}_grad_rms"), wanted, tolerance, f"{where} {kind}'s gradient")
            wanted = [oracle.rms(seen["updates"][n]) for n in names]
            close(c.by_layer(f"{kind}_update_rms"), wanted, tolerance, f"{where} {kind}'s update")
        for tensors, wanted, what in zip((c.p, c.m, c.v), state, ("weight", "m", "v")):
            all_close(tensors, wanted, tolerance, f"{where} {what}", norm=np.linalg.norm)


@pytest.mark.parametrize(
    "changes",
    [
        dict(warmup=0),
        dict(warmup=1),
        dict(warmup=7),
        dict(warmup=20),
        dict(min_lr=0),
        dict(min_lr=1),
        dict(lr=0.3, steps=1, warmup=0),
        dict(lr=0.3, steps=1, warmup=1),
        *(
            dict(schedule=schedule, **more)
            for schedule in ("constant", "wsd")
            for more in (
                dict(),
                dict(steps=7, warmup=2),
                dict(warmup=16),
                dict(warmup=18),
                dict(warmup=20),
                dict(min_lr=1),
                dict(steps=1, warmup=0),
            )
        ),
    ],
    ids=str,
)
def test_schedule(changes, double_library):
    """Every step's learning rate: linear warm-up, then each schedule, never above the peak."""
    cfg = config(**{"steps": 20, **changes})
    c = Model(double_library, **cfg)
    for step in range(1, cfg["steps"] + 1):
        close(c.lr(step), oracle.schedule(cfg, step), 1e-12, f"step {step}")


def run(library, cfg, steps=5):
    c, stream = model(library, cfg), batches(cfg)
    return [(c.backward(*next(stream)), c.update(step)) for step in range(1, steps + 1)], c


def test_relu2_of_a_short_text(double_library):
    """Its factor is that of training: a sample's first tokens have the logits that they had
    there."""
    cfg = config(attention="relu2")
    c, (inputs, targets) = model(double_library, cfg), next(batches(cfg))
    wanted, _ = oracle.loss(cfg, start(cfg), inputs[:, :5], targets[:, :5])
    close(c.forward(inputs[:, :5], targets[:, :5]), wanted, 1e-12, "loss")


@pytest.mark.parametrize("mu_param", ["simple", "intermediate"])
@pytest.mark.parametrize("qk_norm", [0, 1])
def test_mu_param_at_base_width_is_the_standard_model(mu_param, qk_norm, float_library):
    """At C = base_d, bit for bit, initial weights and all."""
    flags = dict(qk_norm=qk_norm, seed=3)
    a = Model(float_library, **config(mu_param=mu_param, base_d=24, **flags))
    b = Model(float_library, **config(**flags))
    for step, batch in zip(range(1, 6), batches(config())):
        assert (a.flat == b.flat).all()
        assert (a.backward(*batch), a.update(step)) == (b.backward(*batch), b.update(step))
    assert (a.flat == b.flat).all()


@pytest.mark.parametrize("qk_norm", [0, 1])
def test_full_at_base_width_is_zero_queries_and_another_scale(qk_norm, float_library):
    """At C = base_d, bit for bit: the standard model with -scale d_h, started at zero queries."""
    a = Model(float_library, **config(mu_param="full", base_d=24, qk_norm=qk_norm))
    b = Model(float_library, **config(scale="d_h", qk_norm=qk_norm))
    for n in b.p:
        if n.endswith("c_attn.weight"):
            b.p[n][:24] = 0
    for step, batch in zip(range(1, 6), batches(config())):
        assert (a.flat == b.flat).all()
        assert (a.backward(*batch), a.update(step)) == (b.backward(*batch), b.update(step))
    assert (a.flat == b.flat).all()


def test_independent_decay_is_standard_decay_times_the_peak(double_library):
    """Independent wd = standard wd * lr, an identity."""
    lr, wd = 1e-2, 5.0
    _, a = run(double_library, config(lr=lr, wd=wd, wd_independent=0))
    _, b = run(double_library, config(lr=lr, wd=wd * lr, wd_independent=1))
    all_close(a.p, b.p, 1e-13, "weights")
    _, none = run(double_library, config(lr=lr, wd=0))
    assert abs(a.p["lm_head.weight"] - none.p["lm_head.weight"]).max() > 0.01


@pytest.mark.parametrize("mu_param", ["simple", "intermediate", "full"])
@pytest.mark.parametrize("base_d", [10, 24, 100])
def test_initial_weights_of_mu_param(mu_param, base_d, float_library):
    """Section 3.2.4: intermediate and full give the head the standard deviation
    sqrt(base_d) / C, and full starts the queries at 0. All else starts as in the standard model."""
    c = Model(float_library, **config(mu_param=mu_param, base_d=base_d))
    standard = Model(float_library, **config())
    for n, x in standard.p.items():
        wanted = x.astype(float)
        if n == "lm_head.weight" and mu_param != "simple":
            wanted *= np.sqrt(base_d / 24)  # 1 / sqrt(24) becomes sqrt(base_d) / 24
        if n.endswith("c_attn.weight") and mu_param == "full":
            wanted[:24] = 0
        np.testing.assert_allclose(c.p[n], wanted, rtol=1e-6, err_msg=n)


@pytest.mark.parametrize("qk_norm", [0, 1])
def test_full_leaves_zero_queries(qk_norm, float_library):
    """Zero queries have a gradient, through qk-norm too, and one step makes them weights like any
    other; the keys, which they multiply, have one a step later."""
    cfg = config(mu_param="full", base_d=8, qk_norm=qk_norm, warmup=0)
    c, stream = Model(float_library, **cfg), batches(cfg)
    for step in (1, 2):
        c.backward(*next(stream))
        for l in range(cfg["layers"]):
            q, k, v = np.split(c.g[f"h.{l}.attn.c_attn.weight"], 3)
            assert np.isfinite(q).all() and (abs(q).max(1) > 0).all() and v.any()
            assert k.any() == (step > 1)
        c.update(step)
    for l in range(cfg["layers"]):
        q, k, v = np.split(c.p[f"h.{l}.attn.c_attn.weight"], 3)
        assert 1e-3 < np.sqrt((q * q).mean()) < 1e-2


def test_squares_that_are_no_float(float_library):
    """Numbers whose squares are beyond a float have a norm and an RMS all the same."""
    cfg = config(clip=1)
    c = model(float_library, cfg)
    c.p["wte.weight"][...] = 1e-25
    c.p["wte.weight"][:, 0] = 1e25
    c.forward(*next(batches(cfg)))
    close(c.act_rms()[0], 1e25 / np.sqrt(cfg["d"]), 1e-6, "RMS of the embedding")
    for g in c.g.values():
        g[...] = 1e25
    close(c.update(1), 1e25 * np.sqrt(c.size), 1e-6, "gradient norm")
    assert np.isfinite(c.flat).all()


@pytest.mark.parametrize("seed", [1, 2])
def test_initial_weights(seed, float_library):
    """Section 3: scales 1; embedding N(0, 1/C); the rest normal cut at 2 sigma, of variance
    1/fan_in."""
    c = Model(float_library, **config(d=64, heads=4, vocab=500, seed=seed))
    for name, x in c.p.items():
        if x.ndim == 1:
            assert (x == 1).all(), name
            continue
        x, n = x.ravel() * np.sqrt(x.shape[1]), x.size
        assert abs(x.mean()) < 5 / np.sqrt(n), name
        assert abs((x * x).mean() - 1) < 5 * np.sqrt(2 / n), name
        if name == "wte.weight":
            assert 3.3 < abs(x).max() < 6 and abs((x**4).mean() - 3) < 5 * np.sqrt(96 / n)
        else:
            assert 0.98 < abs(x).max() / (2 / 0.8796256610342398) < 1.000001, name
    assert len({x.tobytes()[:256] for x in c.p.values() if x.ndim == 2}) == sum(
        x.ndim == 2 for x in c.p.values()
    )
    other = Model(float_library, **config(d=64, heads=4, vocab=500, seed=seed + 1))
    same = Model(float_library, **config(d=64, heads=4, vocab=500, seed=seed))
    assert not (c.p["wte.weight"] == other.p["wte.weight"]).any() and (c.flat == same.flat).all()


# ---- the oracle itself


def test_oracle_is_causal():
    cfg = config(T=12, batch=2)
    x, _ = next(batches(cfg))
    y = x.copy()
    y[:, 7:] = (y[:, 7:] + 1) % cfg["vocab"]
    a, b = (np.asarray(oracle.logits(cfg, start(cfg), z)) for z in (x, y))
    assert (a[:, :7] == b[:, :7]).all() and (a[:, 7:] != b[:, 7:]).any(-1).all()


def test_oracle_sees_relative_positions_only():
    """RoPE: the product of a rotated q and a rotated k depends on their distance."""
    q, k = np.random.default_rng(0).standard_normal((2, 8))
    rotated_q, rotated_k = (
        np.asarray(oracle.rope(np.tile(x, (1, 9, 1, 1)).reshape(1, 9, 1, 8)))[0, :, 0]
        for x in (q, k)
    )
    products = rotated_q @ rotated_k.T
    for distance in range(-8, 9):
        diagonal = np.diagonal(products, distance)
        close(diagonal, np.full(len(diagonal), diagonal[0]), 1e-12, f"distance {distance}")
    assert np.ptp(products) > 0.1 and np.isclose(products[0, 0], q @ k)


@pytest.mark.parametrize("qk_norm", [0, 1])
def test_oracle_initial_loss(qk_norm):
    """Logits of unit variance at the start: the loss is log V + 1/2."""
    cfg = config(d=64, heads=4, vocab=256, T=32, batch=8, qk_norm=qk_norm)
    ce, total = oracle.loss(cfg, oracle.init(cfg, 0), *next(batches(cfg)))
    assert abs(ce - np.log(256) - 0.5) < 0.15
    assert abs(total - ce - cfg["z_loss"] * (np.log(256) + 0.5) ** 2) < 1e-3


@pytest.mark.parametrize("case", ["everything", "full", "odd_off"])
def test_oracle_gradient(case):
    """Central differences along a random direction of each tensor, away from zero queries, where
    LayerNorm bends within a step."""
    cfg = config(**{**CASES[case], "rms_lr": 0})
    p, batch, rng, h = start(cfg), next(batches(cfg)), np.random.default_rng(3), 1e-5
    p = {n: np.where(x == 0, 0.2 * rng.standard_normal(x.shape), x) for n, x in p.items()}
    _, g = compiled(case)(p, *batch)
    for name, x in p.items():
        direction = rng.standard_normal(x.shape)
        up, down = (compiled(case)({**p, name: x + s * direction}, *batch)[0][0] for s in (h, -h))
        wanted = (g[name] * direction).sum()
        assert abs((up - down) / (2 * h) - wanted) < 1e-7 * max(
            abs(wanted), np.linalg.norm(g[name])
        ), name


def test_oracle_schedule():
    cfg = dict(oracle.CONFIG, lr=0.1, warmup=10, steps=110, min_lr=1e-5)
    lr = [oracle.schedule(cfg, step) for step in range(1, 111)]
    close(
        [lr[0], lr[4], lr[9], lr[59], lr[109]],
        [0.01, 0.05, 0.1, (0.1 + 1e-5) / 2, 1e-5],
        1e-12,
        "lr",
    )
    assert oracle.schedule(dict(cfg, min_lr=1), 110) == 0.1
    constant, wsd = (
        [oracle.schedule(dict(cfg, schedule=name), step) for step in range(1, 111)]
        for name in ("constant", "wsd")
    )
    assert constant == lr[:10] + [0.1] * 100
    # 22 steps are a fifth: the line passes its middle 11 steps before the end
    assert wsd[:88] == constant[:88] and wsd[88] < 0.1
    close([wsd[98], wsd[109]], [(0.1 + 1e-5) / 2, 1e-5], 1e-12, "wsd")
