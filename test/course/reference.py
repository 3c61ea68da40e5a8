"""The reference of the exercises: the model and AdamW in float64 numpy, written from the paper
(section 2.1) and not from train_gpt.c. A small tape (Var) computes gradients, so that no backward
pass is written here.

A model is a dict of arrays under the names of model.safetensors, in its order; a config is a dict
like CONFIG. A config may also hold a typical mistake (a key that begins with "wrong_"): if the
reference with that mistake gives the student's numbers, the grader names the mistake.
"""

import numpy as np

CONFIG = dict(
    d=8,
    layers=1,
    heads=2,
    T=4,
    batch=2,
    vocab=7,
    qk_norm=1,
    z_loss=1e-4,
    mu_param="off",
    base_d=8,
    lr=1e-2,
    min_lr=1e-5,
    warmup=2,
    steps=10,
    beta1=0.9,
    beta2=0.95,
    eps=1e-8,
    clip=1.0,
    wd=1e-4,
    wd_independent=1,
)
# The numbers that a variant of an exercise changes (variants.py), as they usually are; and those of
# the variant that is graded.
STANDARD = dict(
    clip_to=1,
    eps_power=0,
    beta2_power=1,
    warmup_start=0,
    wd_peak=1,
    z_target=0,
    qk_scale=1,
    mu_power=1,
)
VARIANT = {}


def number(cfg, name):
    return STANDARD[name] if "wrong_standard" in cfg else {**STANDARD, **VARIANT}[name]


# linear layers: every matrix but the embedding
LINEAR = ("c_attn.weight", "c_proj.weight", "c_fc.weight", "lm_head.weight")


# ---- a tape: an array, and for each array that it was made from the gradient that it passes on


class Var:
    def __init__(self, value, *parents):
        self.value, self.parents, self.grad = np.asarray(value, float), parents, 0.0

    def __add__(self, b):
        b = var(b)
        return Var(self.value + b.value, (self, lambda g: g), (b, lambda g: g))

    def __mul__(self, b):
        b = var(b)
        return Var(
            self.value * b.value, (self, lambda g: g * b.value), (b, lambda g: g * self.value)
        )

    def __matmul__(self, b):
        b = var(b)
        return Var(
            self.value @ b.value,
            (self, lambda g: g @ b.value.swapaxes(-1, -2)),
            (b, lambda g: self.value.swapaxes(-1, -2) @ g),
        )

    def __pow__(self, n):
        return Var(self.value**n, (self, lambda g: g * n * self.value ** (n - 1)))

    def __neg__(self):
        return self * -1

    def __sub__(self, b):
        return self + -var(b)

    def __getitem__(self, i):
        def back(g):
            out = np.zeros_like(self.value)
            np.add.at(out, i, g)
            return out

        return Var(self.value[i], (self, back))

    def exp(self):
        y = np.exp(self.value)
        return Var(y, (self, lambda g: g * y))

    def log(self):
        return Var(np.log(self.value), (self, lambda g: g / self.value))

    def tanh(self):
        y = np.tanh(self.value)
        return Var(y, (self, lambda g: g * (1 - y * y)))

    def sum(self, axis=None):
        return Var(
            self.value.sum(axis, keepdims=axis is not None),
            (self, lambda g: g + np.zeros_like(self.value)),
        )

    def mean(self, axis=None):
        return self.sum(axis) * (1 / (self.value.size if axis is None else self.value.shape[axis]))

    def reshape(self, *shape):
        return Var(self.value.reshape(shape), (self, lambda g: g.reshape(self.value.shape)))

    def transpose(self, *axes):
        return Var(self.value.transpose(axes), (self, lambda g: g.transpose(np.argsort(axes))))

    def backward(self):
        """Sets grad, of this number, in all that it was made from."""
        order, seen = [], set()

        def visit(v):
            if id(v) not in seen:
                seen.add(id(v))
                for parent, _ in v.parents:
                    visit(parent)
                order.append(v)

        visit(self)
        self.grad = np.ones_like(self.value)
        for v in reversed(order):
            for parent, back in v.parents:
                g = back(v.grad)
                while g.ndim > parent.value.ndim:  # what was broadcast is summed
                    g = g.sum(0)
                for axis, n in enumerate(parent.value.shape):
                    if n == 1 and g.shape[axis] > 1:
                        g = g.sum(axis, keepdims=True)
                parent.grad = parent.grad + g


def var(x):
    return x if isinstance(x, Var) else Var(x)


# ---- parameters


def shapes(cfg):
    C, V, HS = cfg["d"], cfg["vocab"], cfg["d"] // cfg["heads"]
    qk = {"attn.q_norm": (HS,), "attn.k_norm": (HS,)} if cfg["qk_norm"] else {}
    layer = {
        "ln_1": (C,),
        "attn.c_attn": (3 * C, C),
        **qk,
        "attn.c_proj": (C, C),
        "ln_2": (C,),
        "mlp.c_fc": (4 * C, C),
        "mlp.c_proj": (C, 4 * C),
    }
    out = {"wte.weight": (V, C)}
    for name, shape in layer.items():  # kind by kind, as the program keeps them
        out.update({f"h.{l}.{name}.weight": shape for l in range(cfg["layers"])})
    return {**out, "ln_f.weight": (C,), "lm_head.weight": (V, C)}


def init(cfg, rng, spread=0.0):
    """Initial weights; spread moves the norms' scales away from 1, so that a scale that is left out
    shows."""
    return {
        name: (
            1 + spread * rng.standard_normal(shape)
            if len(shape) == 1
            else rng.standard_normal(shape) / shape[1] ** 0.5
        )
        for name, shape in shapes(cfg).items()
    }


def pack(p):
    return np.concatenate([x.ravel() for x in p.values()])


def unpack(cfg, flat):
    out, at = {}, 0
    for name, shape in shapes(cfg).items():
        out[name] = flat[at : at + int(np.prod(shape))].reshape(shape)
        at += out[name].size
    return out


# ---- muParam (section 3.2.4)


def mu_m(cfg):
    """The width over the base width."""
    if "wrong_upside_down" in cfg:
        return cfg["base_d"] / cfg["d"]
    if "wrong_whole" in cfg:
        return cfg["d"] // cfg["base_d"]
    return cfg["d"] / cfg["base_d"]


def mu_init(cfg, standard):
    """The initial weights, from those of the standard model."""
    p = {n: x.copy() for n, x in standard.items()}
    if cfg["mu_param"] in ("intermediate", "full"):
        p["lm_head.weight"] /= mu_m(cfg) ** (1 if "wrong_root" in cfg else 0.5)
    if cfg["mu_param"] == "full":
        for n in p:
            if n.endswith("c_attn.weight"):
                p[n][: cfg["d"]] = 0
    return p


def mu_lr_scale(cfg, name):
    """What multiplies the learning rate of this tensor."""
    if cfg["mu_param"] == "off" or "wrong_head" in cfg and name == "lm_head.weight":
        return 1
    return (
        mu_m(cfg) ** -number(cfg, "mu_power") if name.endswith(LINEAR) or "wrong_all" in cfg else 1
    )


# ---- the model


def layernorm(x, weight):
    x = x - x.mean(-1)
    return x * ((x * x).mean(-1) + 1e-6) ** -0.5 * weight


def rope(x):
    """x (B,NH,T,HS): the pair (i, i + HS/2) at position t turns by t * 10000^(-2i/HS)."""
    T, HS = x.value.shape[-2:]
    angle = np.tile(np.arange(T)[:, None] * 10000.0 ** (-np.arange(HS // 2) * 2 / HS), 2)
    # x @ swap = (-second half, first half)
    swap = np.roll(np.eye(HS), HS // 2, 1) * np.where(np.arange(HS) < HS // 2, -1, 1)
    return x * np.cos(angle) + x @ swap * np.sin(angle)


def model(cfg, p, inputs, targets):
    """The results of a batch (B,T), as Vars: total (the loss with the z-loss, whose gradient is
    taken), loss, log_z, max_attn_logit (L), logits."""
    C, NH, (B, T) = cfg["d"], cfg["heads"], inputs.shape
    HS = C // NH
    scale = HS**-0.5
    if cfg["mu_param"] == "full":
        scale = (HS * mu_m(cfg)) ** -0.5 if "wrong_scale" in cfg else 1 / HS
    hide, largest = np.where(np.tril(np.ones((T, T), bool)), 0, -1e30), []
    p = {n: var(x) for n, x in p.items()}
    x = p["wte.weight"][inputs]
    for l in range(cfg["layers"]):
        w = lambda name: p[f"h.{l}.{name}.weight"]
        qkv = layernorm(x, w("ln_1")) @ w("attn.c_attn").transpose(1, 0)
        q, k, v = (
            qkv[..., i * C : (i + 1) * C].reshape(B, T, NH, HS).transpose(0, 2, 1, 3)
            for i in range(3)
        )
        norms = {"q": w("attn.q_norm"), "k": w("attn.k_norm")} if cfg["qk_norm"] else {}
        if "wrong_only" in cfg:
            norms = {n: norms[n] for n in cfg["wrong_only"]}
        if "wrong_weight" in cfg:
            norms["k"] = norms["q"]
        if "wrong_after_rope" in cfg:
            q, k = rope(q), rope(k)
        scaled = lambda y, weight: layernorm(y, weight) * number(cfg, "qk_scale")
        q, k = (scaled(y, norms[n]) if n in norms else y for n, y in (("q", q), ("k", k)))
        if "wrong_after_rope" not in cfg:
            q, k = rope(q), rope(k)
        s = q @ k.transpose(0, 1, 3, 2) * scale
        largest.append(np.where(hide < 0, 0, abs(s.value)).max())
        s = (s + (hide - (s.value + hide).max(-1, keepdims=True))).exp()
        att = (s * s.sum(-1) ** -1 @ v).transpose(0, 2, 1, 3).reshape(B, T, C)
        x = x + att @ w("attn.c_proj").transpose(1, 0)
        y = layernorm(x, w("ln_2")) @ w("mlp.c_fc").transpose(1, 0)
        y = y * ((y + y**3 * 0.044715) * (2 / np.pi) ** 0.5).tanh() * 0.5 + y * 0.5
        x = x + y @ w("mlp.c_proj").transpose(1, 0)
    out = layernorm(x, p["ln_f.weight"]) @ p["lm_head.weight"].transpose(1, 0)
    top = out.value.max(-1, keepdims=True)
    log_z = (out - top).exp().sum(-1).log() + top
    picked = np.arange(cfg["vocab"]) == targets[..., None]
    loss = (log_z - (out * picked).sum(-1)).mean()
    return dict(
        total=loss + ((log_z - number(cfg, "z_target")) ** 2).mean() * cfg["z_loss"],
        loss=loss,
        log_z=log_z.mean(),
        max_attn_logit=var(largest),
        logits=out,
        p=p,
    )


def measure(cfg, p, inputs, targets):
    """The same as numbers and arrays."""
    return {name: x.value for name, x in model(cfg, p, inputs, targets).items() if name != "p"}


def gradient(cfg, p, inputs, targets):
    """The same, with the gradients as grads and that of the logits as dlogits."""
    out = model(cfg, p, inputs, targets)
    out["total"].backward()
    grads = {n: x.grad + np.zeros_like(x.value) for n, x in out.pop("p").items()}
    return {**{n: x.value for n, x in out.items()}, "dlogits": out["logits"].grad, "grads": grads}


def slope(cfg, p, inputs, targets, name, i, step=1e-4):
    """d total / d p[name][i] by finite differences of the fourth order: f' = (8 (f(h) - f(-h)) -
    (f(2h) - f(-2h))) / 12h."""
    total = 0.0
    for h, weight in (step, 8), (-step, -8), (2 * step, -1), (-2 * step, 1):
        x = p[name].copy()
        x.flat[i] += h
        total += weight * float(measure(cfg, {**p, name: x}, inputs, targets)["total"])
    return total / (12 * step)


# ---- the optimizer


def schedule(cfg, step):
    """The learning rate at a step, counted from 1."""
    peak, low, warmup, steps = cfg["lr"], min(cfg["min_lr"], cfg["lr"]), cfg["warmup"], cfg["steps"]
    if step < warmup:
        start = number(cfg, "warmup_start") * peak
        return start + (peak - start) * (step - 1 if "wrong_step" in cfg else step) / warmup
    if "wrong_restart" in cfg:
        warmup = 0
    done = (step - warmup) / (steps - warmup) if steps > warmup else 0.0
    return low + (peak - low) * 0.5 * (1 + np.cos(np.pi * done))


def adamw(cfg, p, m, v, g, step):
    """One step of AdamW; returns new p, m, v and the norm of the gradient before it was clipped."""
    norm = np.sqrt(sum((x * x).sum() for x in g.values()))
    cut = (
        number(cfg, "clip_to") * cfg["clip"] / norm
        if cfg["clip"] and (norm > cfg["clip"] or "wrong_always" in cfg)
        else 1.0
    )
    lr, b1, b2 = schedule(cfg, step), cfg["beta1"], cfg["beta2"] ** number(cfg, "beta2_power")
    peak = cfg["lr"] if cfg["wd_independent"] else number(cfg, "wd_peak")
    decay = lr / peak * cfg["wd"]
    eps = cfg["eps"] / cfg["d"] ** number(cfg, "eps_power")
    if "wrong_constant" in cfg:
        decay = cfg["wd"]
    P, M, V = {}, {}, {}
    for n in p:
        M[n] = b1 * m[n] + (1 - b1) * cut * g[n]
        V[n] = b2 * v[n] + (1 - b2) * (cut * g[n]) ** 2
        P[n] = (
            p[n]
            - lr
            * mu_lr_scale(cfg, n)
            * M[n]
            / (1 - b1**step)
            / (np.sqrt(V[n] / (1 - b2**step)) + eps)
            - decay * p[n]
        )
    return P, M, V, norm
