"""Every gradient against finite differences in double precision: every tensor, under
every combination of the interventions that a gradient passes through, within 1e-6. Needs numpy
alone. Rounded logits (-bf16_logits) go up in steps, which have no slope: test_oracle.py has their
gradients.
"""

import itertools

import numpy as np
import pytest

from conftest import Model

COMBINATIONS = [
    dict(qk_norm=qk_norm, z_loss=z_loss, mu_param=mu_param)
    for qk_norm, z_loss, mu_param in itertools.product(
        (0, 1, "model"), (0, 1e-4, 1e-1), ("off", "simple", "intermediate", "full")
    )
]
COMBINATIONS += [dict(qk_norm=qk_norm, attention="relu2") for qk_norm in (0, 1)]
COMBINATIONS += [
    dict(qk_norm=qk_norm, attention=attention, attn_cap=cap)
    for qk_norm, attention, cap in itertools.product((0, 1), ("softmax", "relu2"), (0.5, 30))
]
COMBINATIONS += [
    dict(qk_norm=qk_norm, gate=1, peri_ln=peri_ln) for qk_norm in (0, 1) for peri_ln in (0, 1)
]
COMBINATIONS += [dict(peri_ln=1), dict(gate=1, peri_ln=1, attn_cap=1, mu_param="full", z_loss=0.1)]
COMBINATIONS += [dict(qk_norm=0, kappa=kappa, mu_param="full") for kappa in (0.3, 4)]
SMALL = dict(d=8, layers=1, heads=2, T=5, batch=2, vocab=5, base_d=2)  # every coordinate
SHAPES = [
    # random directions and some coordinates
    dict(d=24, layers=2, heads=3, T=7, batch=1, vocab=61, base_d=8, scale="d_h"),
    dict(d=12, layers=3, heads=1, T=4, batch=3, vocab=2, base_d=48),
    dict(d=10, layers=0, heads=1, T=5, batch=2, vocab=7, base_d=4),
    dict(d=64, layers=1, heads=2, T=33, batch=2, vocab=97, base_d=16),
]
STEP = 5e-4


def prepare(library, flags, seed=7):
    """A model whose norms' scales are away from 1, a batch, and its gradients (after another
    batch's: they are overwritten, not added to). Queries that start at 0 are set away from it:
    there LayerNorm bends within one STEP (test_oracle.py has the gradient at 0)."""
    c, rng = Model(library, **flags), np.random.default_rng(seed)
    for x in c.p.values():
        x += 0.2 * rng.standard_normal(x.shape) * ((x.ndim == 1) | (x == 0))
    tokens = rng.integers(flags["vocab"], size=(2, 2, flags["batch"], flags["T"]))
    for batch in tokens:
        c.backward(*batch)
    return c, batch, {n: g.copy() for n, g in c.g.items()}, rng


def slope(c, batch, x, direction):
    """d total / d direction at the weights x: two central differences, extrapolated to an error of
    step^4. The slope of max(0, score)^2 has a kink, which a short step hardly ever meets."""
    step = STEP / 100 if c.cfg.get("attention") == "relu2" else STEP

    def difference(h):
        kept, sides = x.copy(), []
        for sign in (1, -1):
            x[...] = kept + sign * h * direction
            c.forward(*batch)
            sides.append(c.total_loss())
            x[...] = kept
        return (sides[0] - sides[1]) / (2 * h)

    return (4 * difference(step) - difference(2 * step)) / 3


@pytest.mark.parametrize("flags", COMBINATIONS, ids=lambda f: "-".join(map(str, f.values())))
def test_every_coordinate(flags, double_library):
    """The smallest model: all coordinates of all tensors; relative to the tensor's largest
    gradient."""
    c, batch, g, _ = prepare(double_library, {**SMALL, **flags})
    for name, x in c.p.items():
        one = np.zeros(x.size)
        for i in range(x.size):
            one[i] = 1
            wanted = slope(c, batch, x, one.reshape(x.shape))
            one[i] = 0
            assert abs(g[name].flat[i] - wanted) < 1e-6 * abs(g[name]).max(), f"{name}[{i}]"
        assert abs(g[name]).max() > 1e-7, name


@pytest.mark.parametrize(
    "shape", SHAPES, ids=lambda s: f"C{s['d']}_L{s['layers']}_T{s['T']}_V{s['vocab']}"
)
@pytest.mark.parametrize("flags", COMBINATIONS, ids=lambda f: "-".join(map(str, f.values())))
def test_directions(flags, shape, double_library):
    """Larger models: for every tensor along its gradient, two random directions and four
    coordinates."""
    c, batch, g, rng = prepare(double_library, {**shape, **flags})
    for name, x in c.p.items():
        size = np.linalg.norm(g[name])
        directions = [g[name] / size] + [
            d / np.linalg.norm(d) for d in rng.standard_normal((2, *x.shape))
        ]
        directions += [np.eye(1, x.size, rng.integers(x.size)).reshape(x.shape) for _ in range(4)]
        for i, direction in enumerate(directions):
            assert abs((g[name] * direction).sum() - slope(c, batch, x, direction)) < 1e-6 * size, (
                f"{name}, direction {i}"
            )
