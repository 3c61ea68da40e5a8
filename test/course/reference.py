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
# the columns of log.csv that are layer by layer, and the activations that it measures
BY_LAYER = (
    "max_attn_logit q_rms k_rms qk_cosine block_rms c_fc_grad_rms c_fc_update_rms"
    " attn_c_proj_grad_rms attn_c_proj_update_rms"
).split()
ACTIVATIONS = "wte c_attn att c_fc residual logits".split()
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
    cap_slope=1,
    qk_clip_to=1,
    muon_size=0.2,
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
        *rows, n = self.value.shape
        if len(rows) > 1 and b.value.ndim == 2:  # one product of matrices: ten times as fast
            return (self.reshape(-1, n) @ b).reshape(*rows, -1)
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


def kinds(cfg):
    """{kind of tensor: its names}, one for each layer, under log.csv's names of the kinds."""
    out = {}
    for name in shapes(cfg):
        parts = name.removesuffix(".weight").split(".")
        kind = parts[-1] if parts[-1] != "c_proj" else f"{parts[-2]}_c_proj"
        out.setdefault(kind, []).append(name)
    return out


def log_columns(cfg):
    """The columns of log.csv that the driver answers, in its order."""
    return [
        "val_loss",
        "mean_logit",
        *(f"{name}_{l}" for name in BY_LAYER for l in range(cfg["layers"])),
        *(f"act_rms_{name}" for name in ACTIVATIONS),
        *(f"{x}_rms_{kind}" for x in ("grad", "param", "update") for kind in kinds(cfg)),
    ]


def rms(*arrays):
    return np.sqrt(sum((x * x).sum() for x in arrays) / sum(x.size for x in arrays))


# ---- muParam (section 3.2.4)


def mu_m(cfg):
    """The width over the base width."""
    if "wrong_upside_down" in cfg:
        return cfg["base_d"] / cfg["d"]
    if "wrong_whole" in cfg:
        return 1 / (1 / (cfg["d"] // cfg["base_d"]))  # 0 is an error, as in 1 / m
    return cfg["d"] / cfg["base_d"]


def mu_init(cfg, standard):
    """The initial weights, from those of the standard model."""
    p, C = {n: x.copy() for n, x in standard.items()}, cfg["d"]
    if cfg["mu_param"] in ("intermediate", "full"):
        p["lm_head.weight"] /= mu_m(cfg) ** (1 if "wrong_root" in cfg else 0.5)
    if cfg["mu_param"] == "full":
        zero = {"keys": slice(C, 2 * C), "both": slice(2 * C), "all": slice(3 * C), "row": slice(1)}
        for n in p:
            if not n.endswith("c_attn.weight"):
                continue
            p[n][zero.get(cfg.get("wrong_queries"), slice(C))] = 0
    return p


def mu_lr_scale(cfg, name):
    """What multiplies the learning rate of this tensor."""
    m = mu_m(cfg) ** number(cfg, "mu_power")
    if cfg["mu_param"] == "off":
        return 1
    if wrong := cfg.get("wrong_tensors"):
        apart = dict(all=False, head=name == "lm_head.weight", norms=name == "wte.weight")[wrong]
        return 1 if apart or not name.endswith(LINEAR) and wrong == "head" else 1 / m
    if "wrong_fan_in" in cfg and name.endswith("mlp.c_proj.weight"):
        m *= 4
    if "wrong_lr_root" in cfg:
        m **= 0.5
    return 1 / m if name.endswith(LINEAR) else 1


# ---- the model


def layernorm(x, weight, epsilon=1e-6):
    x = x - x.mean(-1)
    return x * ((x * x).mean(-1) + epsilon) ** -0.5 * weight


def rope(x):
    """x (B,NH,T,HS): the pair (i, i + HS/2) at position t turns by t * 10000^(-2i/HS)."""
    T, HS = x.value.shape[-2:]
    angle = np.tile(np.arange(T)[:, None] * 10000.0 ** (-np.arange(HS // 2) * 2 / HS), 2)
    # x @ swap = (-second half, first half)
    swap = np.roll(np.eye(HS), HS // 2, 1) * np.where(np.arange(HS) < HS // 2, -1, 1)
    return x * np.cos(angle) + x @ swap * np.sin(angle)


def with_gradient(value, path):
    """The value forward, the gradient of path backward: for the mistakes of a backward pass."""
    return path + (value - path.value)


def qk_norm(cfg, q, k, q_weight, k_weight):
    """q and k (B,NH,T,HS), each head normalized."""
    only, epsilon = cfg.get("wrong_only", "qk"), cfg.get("wrong_epsilon", 1e-6)
    first = np.arange(q.value.shape[0] * q.value.shape[2]).reshape(q.value.shape[0], 1, -1, 1) < 64
    out = []
    for name, x, weight in (
        ("q", q, q_weight),
        ("k", k, q_weight if "wrong_weight" in cfg else k_weight),
    ):
        y = layernorm(x, weight, epsilon) * number(cfg, "qk_scale") if name in only else x
        if "wrong_straight" in cfg:
            y = with_gradient(y.value, x)
        if "wrong_back_weight" in cfg:
            y = with_gradient(
                y.value, layernorm(x, q_weight.value) + layernorm(var(x.value), weight)
            )
        if "wrong_rows" in cfg:
            to_weight = layernorm(var(x.value), weight) * np.where(first, 1, 0)
            y = with_gradient(y.value, layernorm(x, weight.value) + to_weight)
        out.append(y)
    return out


# The capped score by mistake, from the score x, the cap c and attention's scale; the right one is
# c tanh(x / c)
CAPS = dict(
    missing=lambda x, c, scale: x,
    no_factor=lambda x, c, scale: tanh_cap(x, c) * (1 / c),
    no_division=lambda x, c, scale: tanh_cap(x, 1) * c,
    product=lambda x, c, scale: tanh_cap(x, c * scale),
    squared=lambda x, c, scale: tanh_cap(x, c / scale),
    size=lambda x, c, scale: tanh_cap(x * np.sign(x.value), c),
    hard=lambda x, c, scale: Var(x.value.clip(-c, c), (x, lambda g: g * (abs(x.value) < c))),
    straight=lambda x, c, scale: with_gradient(tanh_cap(x, c).value, x),
    no_square=lambda x, c, scale: sloped(x, c, 1 - abs(np.tanh(x.value / c))),
    square=lambda x, c, scale: sloped(x, c, np.tanh(x.value / c) ** 2),
    capped=lambda x, c, scale: sloped(x, c, 1 - np.tanh(np.tanh(x.value / c)) ** 2),
    over_cap=lambda x, c, scale: sloped(x, c, (1 - np.tanh(x.value / c) ** 2) / c),
    at_product=lambda x, c, scale: sloped(x, c, 1 - np.tanh(x.value / (c * scale)) ** 2),
)


def sloped(x, c, slope):
    """c tanh(x / c) with another derivative."""
    return Var(c * np.tanh(x.value / c), (x, lambda g: g * slope))


def tanh_cap(x, c, times=1):
    """c tanh(times x / c). 1 - tanh^2 would round to 0 where tanh rounds to 1."""
    e = np.exp(-2 * abs(times * x.value) / c)
    return sloped(x * times, c, 4 * e / (1 + e) ** 2)


def capped(cfg, x, scale):
    """The scores that go into softmax."""
    c = cfg.get("attn_cap", 0)
    if not c:
        return x
    if cfg.get("wrong_cap") in CAPS:
        return CAPS[cfg["wrong_cap"]](x, c, scale)
    return tanh_cap(x, c, number(cfg, "cap_slope"))


def weights(cfg, x, hide):
    """The weights of the keys (B,NH,T,T) from the scores that hide makes causal."""
    if cfg.get("attention") == "relu2":
        return (x * (hide + x.value > 0)) ** 2 * x.value.shape[-1] ** -0.5
    e = (x + (hide - (x.value + hide).max(-1, keepdims=True))).exp()
    return e * e.sum(-1) ** -1


def uncapped_backward(att, raw, y, hide, v, through):
    """Attention (B,NH,T,HS) whose backward pass computes the softmax from the scores before the
    cap, raw, with the largest and the sum of those after it, y. through: their gradient goes
    through the cap."""
    seen, grown = y.value + hide, raw.value + hide
    with np.errstate(over="ignore"):
        p = np.exp(grown - seen.max(-1, keepdims=True))
    p /= np.exp(seen - seen.max(-1, keepdims=True)).sum(-1, keepdims=True)
    dp = lambda g: g @ v.value.swapaxes(-1, -2) - (g * att.value).sum(-1, keepdims=True)
    return Var(
        att.value,
        (y if through else raw, lambda g: p * dp(g)),
        (v, lambda g: p.swapaxes(-1, -2) @ g),
    )


# What the z-loss adds to the weight of p, over z_loss: the right one is 2 log Z. z: log Z of each
# row, x: the logits
Z_TERMS = dict(
    half=lambda z, x: z,
    sign=lambda z, x: -2 * z,
    no_log_z=lambda z, x: 2 + 0 * z,
    square=lambda z, x: 2 * z * z,
    size=lambda z, x: 2 * abs(z),
    rows=lambda z, x: 2 * z / z.size,
    batch=lambda z, x: 2 * z / z.shape[0],
    vocab=lambda z, x: 2 * z / x.shape[-1],
    sum=lambda z, x: 2 * z * z.size,
    top=lambda z, x: 2 * x.max(-1, keepdims=True),
    z=lambda z, x: 2 * np.exp(z),
    mean=lambda z, x: 2 * z.mean() + 0 * z,
    first=lambda z, x: 2 * z.flat[0] + 0 * z,
    twice=lambda z, x: 4 * z,
)


def model(cfg, p, inputs, targets):
    """The results of a batch (B,T), as Vars: total (the loss with the z-loss, whose gradient is
    taken), loss, log_z, max_attn_logit (L), by_head (L,B,NH), the largest score of each head,
    logits; and log, what the forward pass logs."""
    C, NH, (B, T) = cfg["d"], cfg["heads"], inputs.shape
    HS = C // NH
    scale = 1 / HS if cfg.get("scale") == "d_h" else HS**-0.5
    if cfg["mu_param"] == "full":
        scale = {
            "base": (HS * mu_m(cfg)) ** -0.5,
            "squared": scale / HS,
            "width": 1 / C,
            "base head": cfg["base_d"] / NH / HS,
        }.get(cfg.get("wrong_scale"), 1 / HS)
    hide, by_head, log = np.where(np.tril(np.ones((T, T), bool)), 0, -1e30), [], {}
    seen = {name: [] for name in ACTIVATIONS}
    p = {n: var(x) for n, x in p.items()}
    x = p["wte.weight"][inputs]
    seen["wte"].append(x.value)
    for l in range(cfg["layers"]):
        w = lambda name: p[f"h.{l}.{name}.weight"]
        qkv = layernorm(x, w("ln_1")) @ w("attn.c_attn").transpose(1, 0)
        q, k, v = (
            qkv[..., i * C : (i + 1) * C].reshape(B, T, NH, HS).transpose(0, 2, 1, 3)
            for i in range(3)
        )
        turn = lambda x: with_gradient(rope(x).value, x) if "wrong_turn" in cfg else rope(x)
        norm = lambda q, k: qk_norm(cfg, q, k, w("attn.q_norm"), w("attn.k_norm"))
        if "wrong_after_rope" in cfg:
            q, k = norm(turn(q), turn(k))
        else:
            q, k = map(turn, norm(q, k) if cfg["qk_norm"] else (q, k))
        s = q @ k.transpose(0, 1, 3, 2) * scale
        raw, s = s, capped(cfg, s, scale)
        sizes = abs((s if cfg.get("wrong_cap") == "logged" else raw).value)
        by_head.append(np.where(hide < 0, 0, sizes).max((2, 3)))
        i = np.unravel_index(np.where(hide < 0, -1, abs(raw.value)).argmax(), raw.value.shape)
        a, b = q.value[i[:3]], k.value[(*i[:2], i[3])]
        with np.errstate(invalid="ignore"):
            log[f"qk_cosine_{l}"] = a @ b / np.sqrt(a @ a * (b @ b))
        log.update({f"q_rms_{l}": rms(q.value), f"k_rms_{l}": rms(k.value)})
        if cfg.get("wrong_cap") == "mask":
            late = hide < 0
            s, after = s * ~late + late * -cfg["attn_cap"], 0 * hide
        else:
            after = hide
        att = weights(cfg, s, after) @ v
        if cfg.get("wrong_cap") in ("no_back", "back_p"):
            att = uncapped_backward(att, raw, s, hide, v, cfg["wrong_cap"] == "back_p")
        att = att.transpose(0, 2, 1, 3).reshape(B, T, C)
        x = x + att @ w("attn.c_proj").transpose(1, 0)
        fc = layernorm(x, w("ln_2")) @ w("mlp.c_fc").transpose(1, 0)
        y = fc * ((fc + fc**3 * 0.044715) * (2 / np.pi) ** 0.5).tanh() * 0.5 + fc * 0.5
        x = x + y @ w("mlp.c_proj").transpose(1, 0)
        log[f"block_rms_{l}"] = rms(x.value)
        for name, activation in ("c_attn", qkv), ("att", att), ("c_fc", fc):
            seen[name].append(activation.value)
    out = layernorm(x, p["ln_f.weight"]) @ p["lm_head.weight"].transpose(1, 0)
    seen["residual"], seen["logits"] = [x.value], [out.value]
    top = out.value.max(-1, keepdims=True)
    log_z = (out - top).exp().sum(-1).log() + top
    picked = np.arange(cfg["vocab"]) == targets[..., None]
    loss = (log_z - (out * picked).sum(-1)).mean()
    z_loss = (log_z - number(cfg, "z_target")) ** 2
    if "wrong_z" in cfg:
        z_loss = log_z * Z_TERMS[cfg["wrong_z"]](log_z.value, out.value)
    total = loss + z_loss.mean() * cfg["z_loss"]
    log.update({f"act_rms_{name}": rms(*x) for name, x in seen.items() if x})
    log["mean_logit"] = out.value.mean()
    reported = total if "wrong_reported" in cfg else loss
    return dict(
        total=total,
        loss=reported,
        log_z=log_z.mean(),
        max_attn_logit=var([x.max() for x in by_head]),
        by_head=by_head,
        logits=out,
        log={"val_loss": loss.value, **log},
        p=p,
    )


def numbers(out):
    return {n: x.value if isinstance(x, Var) else x for n, x in out.items() if n != "p"}


def measure(cfg, p, inputs, targets):
    """The same as numbers and arrays."""
    return numbers(model(cfg, p, inputs, targets))


def gradient(cfg, p, inputs, targets):
    """The same, with the gradients as grads and that of the logits as dlogits."""
    out = model(cfg, p, inputs, targets)
    out["total"].backward()
    grads = {n: x.grad + np.zeros_like(x.value) for n, x in out["p"].items()}
    for q in [n for n in grads if n.endswith("q_norm.weight")]:
        k = q.replace("q_norm", "k_norm")
        if "wrong_swapped" in cfg:
            grads[q], grads[k] = grads[k], grads[q]
        if "wrong_both" in cfg:
            grads[q], grads[k] = grads[q] + grads[k], 0 * grads[k]
    return {**numbers(out), "dlogits": out["logits"].grad, "grads": grads}


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


# The learning rate in the warm-up over its peak, by mistake; the right one is step / warmup
RISES = dict(
    late=lambda c, t: (t - 1) / c["warmup"],
    early=lambda c, t: (t + 1) / c["warmup"],
    whole=lambda c, t: t // c["warmup"],
    square=lambda c, t: (t / c["warmup"]) ** 2,
    steps=lambda c, t: t / c["steps"],
    end=lambda c, t: (low := c["min_lr"] / c["lr"]) + (1 - low) * t / c["warmup"],
    no_peak=lambda c, t: t / c["warmup"] / c["lr"],
    peak=lambda c, t: 1,
    upside_down=lambda c, t: c["warmup"] / t,
    falls=lambda c, t: 1 - t / c["warmup"],
)


def schedule(cfg, step):
    """The learning rate at a step, counted from 1."""
    peak, low, warmup, steps = cfg["lr"], min(cfg["min_lr"], cfg["lr"]), cfg["warmup"], cfg["steps"]
    if step < warmup and "wrong_rise" in cfg:
        return peak * RISES[cfg["wrong_rise"]](cfg, step)
    if step < warmup and "wrong_missing" not in cfg:
        start = peak * number(cfg, "warmup_start")
        return start + (peak - start) * step / warmup
    shape, fifth = cfg.get("schedule", "cosine"), min(steps / 5, steps - warmup)
    if shape == "constant" or shape == "wsd" and steps - step >= fifth:
        return peak
    if shape == "wsd":
        return low + (peak - low) * (steps - step) / fifth
    done = (step - warmup) / (steps - warmup) if steps > warmup else 0.0
    return low + (peak - low) * 0.5 * (1 + np.cos(np.pi * done))


# The share of a weight that decays, over wd, by mistake
DECAYS = dict(
    constant=lambda c, t: 1,
    sign=lambda c, t: -schedule(c, t) / (c["lr"] if c["wd_independent"] else 1),
    peak=lambda c, t: c["lr"],
    first=lambda c, t: schedule(c, 1) / (c["lr"] if c["wd_independent"] else 1),
    before=lambda c, t: schedule(c, t - 1) / (c["lr"] if c["wd_independent"] else 1),
    root=lambda c, t: (schedule(c, t) / c["lr"]) ** 0.5 if c["wd_independent"] else schedule(c, t),
    half=lambda c, t: schedule(c, t) / (c["lr"] if c["wd_independent"] else 1) / 2,
    swapped=lambda c, t: schedule(c, t) / (1 if c["wd_independent"] else c["lr"]),
)


def decay(cfg, step):
    """The share of each weight that decays at a step."""
    if "wrong_decay" in cfg:
        return cfg["wd"] * DECAYS[cfg["wrong_decay"]](cfg, step)
    lr = schedule(cfg, step)
    return cfg["wd"] * lr / (cfg["lr"] if cfg["wd_independent"] else number(cfg, "wd_peak"))


# The factor of clipping, by mistake, from clip and the norm; the right one is clip / norm where the
# norm is larger than clip, and clip is not 0; else 1
CUTS = dict(
    always=lambda c, n: c / n if c else 1.0,
    zero=lambda c, n: c / n if n > c else 1.0,
    square=lambda c, n: c / n**2 if c and n > c else 1.0,
    root=lambda c, n: (c / n) ** 0.5 if c and n > c else 1.0,
    no_norm=lambda c, n: c if c and n > c else 1.0,
    upside_down=lambda c, n: n / c if c and n > c else 1.0,
    one=lambda c, n: 1 / n if c and n > c else 1.0,
    none=lambda c, n: 0.0 if c and n > c else 1.0,
    plus=lambda c, n: c / (n + 1e-6) if c and n > c else 1.0,
    negative=lambda c, n: -c / n if c and n > c else 1.0,
)


def beta2(cfg):
    return cfg["beta2"] ** number(cfg, "beta2_power")


def moments(cfg, m, v, g, cut):
    """The moments m and v of a tensor after a step with the gradient g."""
    b1, b2, g = cfg["beta1"], beta2(cfg), cut * g
    new = {"fixed": 0.05, "whole": 1}.get(cfg.get("wrong_new"), 1 - b2)
    kept = 0.95 if "wrong_kept" in cfg else b2
    return b1 * m + (1 - b1) * g, kept * v + new * g * g


def direction(cfg, m, v, step):
    """AdamW's update of a tensor without the learning rate, from its new moments."""
    b1, b2, eps = cfg["beta1"], beta2(cfg), cfg["eps"] / cfg["d"] ** number(cfg, "eps_power")
    b2 = {"fixed": 0.95, "beta1": b1}.get(cfg.get("wrong_correction"), b2)
    m, part = m / (1 - b1**step), 1 - b2 ** (step + (cfg.get("wrong_correction") == "late"))
    v = v / (1 if cfg.get("wrong_correction") == "none" else part)
    below = {
        "root": lambda: np.sqrt(v + eps),
        "before": lambda: np.sqrt(v) + eps / np.sqrt(part),
        "largest": lambda: np.maximum(np.sqrt(v), eps),
        "minus": lambda: np.sqrt(v) - eps,
        "square": lambda: np.sqrt(v) + eps**2,
        "sqrt": lambda: np.sqrt(v) + eps**0.5,
        "both": lambda: np.sqrt(v) + eps + 1e-8,
        "after": lambda: np.sqrt(v) * (1 + eps),
    }.get(cfg.get("wrong_eps"), lambda: np.sqrt(v) + eps)()
    with np.errstate(divide="ignore", invalid="ignore"):
        return m / below


# QK-clip, by mistake: the largest score of each head from those of each sequence, seen (B,NH); and
# the powers of the factor tau / largest for queries, keys and values. The right ones are the
# maximum over the batch, and 0.5, 0.5, 0.
LARGEST = dict(
    first=lambda seen: seen[0],
    last=lambda seen: seen[-1],
    mean=lambda seen: seen.mean(0),
    sum=lambda seen: seen.sum(0),
    least=lambda seen: seen.min(0),
    heads=lambda seen: 0 * seen[0] + seen.max(),
    turned=lambda seen: seen.reshape(seen.shape[1], -1).max(1),
)
POWERS = dict(
    whole=(1, 1, 0),
    fourth=(0.25, 0.25, 0),
    queries=(0.5, 0, 0),
    keys=(0, 0.5, 0),
    queries_whole=(1, 0, 0),
    values=(0.5, 0.5, 0.5),
    upside_down=(-0.5, -0.5, 0),
)


def qk_clip(cfg, p, by_head):
    """The weights p after QK-clip; by_head (L,B,NH): the largest score of each head of each
    sequence."""
    tau, C, NH, wrong = cfg.get("qk_clip", 0), cfg["d"], cfg["heads"], cfg.get("wrong_clip")
    out = dict(p)
    for l in range(cfg["layers"] if tau else 0):
        largest = LARGEST.get(wrong, lambda seen: seen.max(0))(
            by_head[0 if wrong == "layer" else l]
        )
        factor = number(cfg, "qk_clip_to") * tau / largest
        factor = np.where((largest > tau) | (wrong == "always"), factor, 1)
        factors = np.stack([factor**n for n in POWERS.get(wrong, (0.5, 0.5, 0))])  # (3,NH)
        if wrong == "layout":
            factors = factors.T
        rows = np.repeat(factors, C // NH).reshape(3, C, 1)
        if wrong == "columns":
            rows = rows.swapaxes(1, 2)
        name = f"h.{l}.attn.c_attn.weight"
        out[name] = (p[name].reshape(3, C, C) * rows).reshape(3 * C, C)
    return out


# ---- Muon. wrong: a mistake, one of those in checks_muon.py


@np.errstate(all="ignore")  # a mistake may overflow
def orthogonalize(x, wrong=""):
    """x = U S V^T with other singular values: Newton and Schulz's polynomial, five times, of S."""
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    a, b, c = 3.4445, -4.7750, 2.0315
    if wrong == "swapped":
        b, c = c, b
    if wrong == "cubic":
        a, b, c = 1.5, -0.5, 0
    norm = np.sqrt((x * x).sum())
    by = dict(
        no_norm=1, spectral=s[0], entry=abs(x).max(), squared=norm**2, guarded=norm + 1e-7
    ).get(wrong, norm)
    s = s / by if by else s
    first = s * s
    for _ in range(dict(four=4, six=6).get(wrong, 5)):
        g = first if wrong == "once" else s * s
        s = s * (a + b * g + c * (g if wrong == "linear" else g * g))
    return u * s @ vt


@np.errstate(all="ignore")
def muon(p, m, g, lr, cut, share, cautious, size, wrong=""):
    """A step of a matrix p with the momentum m and the gradient g, of which the share `share`
    decays. Returns its new values, its new momentum and its update."""
    g, beta = g * dict(no_clip=1, clip_twice=cut * cut).get(wrong, cut), 0.95
    beta = 0.9 if wrong == "beta1" else beta
    m = beta * m + (1 if wrong == "sum" else 1 - beta) * g
    ahead = beta * m + (1 if wrong == "ahead" else 1 - beta) * g
    u = orthogonalize(m if wrong == "plain" else g if wrong == "gradient" else ahead, wrong)
    sides = dict(
        shorter=size * min(p.shape) ** 0.5,
        no_root=size,
        no_size=max(p.shape) ** 0.5,
        no_factor=1,
        original=max(1, p.shape[0] / p.shape[1]) ** 0.5,
        ratio=size * max(1, p.shape[0] / p.shape[1]) ** 0.5,
        linear_side=size * max(p.shape),
    )
    u = u * sides.get(wrong, size * max(p.shape) ** 0.5)
    against = (g if wrong == "sign_of_g" else u) * p < 0
    share = dict(no_decay=0, decay_lr=share * lr).get(wrong, share)
    share = np.where(against & bool(cautious) & (wrong != "not_cautious"), 0, share)
    rate = dict(no_lr=1, lr_twice=lr * lr).get(wrong, lr)
    logged = dict(log_x=(size * max(p.shape) ** 0.5) ** -1, log_lr=lr).get(wrong, 1) * u
    return p - rate * u - share * p, m, logged


def uses_muon(cfg, name):
    """Whether Muon trains this tensor: the matrices inside the layers."""
    wrong = cfg.get("wrong_muon")
    inside = name.startswith("h.") and name.endswith(LINEAR)
    more = dict(head=("lm_head.weight",), ends=("lm_head.weight", "wte.weight")).get(wrong, ())
    return cfg.get("optimizer") == "muon" and (inside or name in more)


@np.errstate(all="ignore")
def adamw(cfg, p, m, v, g, step, by_head=()):
    """One step of the optimizer, AdamW or Muon, and with -qk_clip QK-clip by these largest scores
    (L,B,NH). Returns new p, m, v; the norm of the gradient before it was clipped; and what it
    logs."""
    norm, clip = np.sqrt(sum((x * x).sum() for x in g.values())), cfg["clip"]
    cut = number(cfg, "clip_to") * clip / norm if clip and norm > clip else 1.0
    if "wrong_cut" in cfg:
        cut = CUTS[cfg["wrong_cut"]](clip, norm)
    lr, wrong, share = schedule(cfg, step), cfg.get("wrong_muon"), decay(cfg, step)
    cautious, P, M, V, U = cfg.get("cautious", 0), {}, {}, {}, {}
    before = cfg.get("wrong_clip") == "before"
    p = qk_clip(cfg, p, by_head) if before else p
    for n in p:
        rate = lr * mu_lr_scale(cfg, n)
        M[n], V[n] = moments(cfg, m[n], v[n], g[n], cut)
        if uses_muon(cfg, n):
            V[n] = V[n] if wrong == "v" else v[n]
            rate = lr if wrong == "kind" else rate
            parts = dict(whole=1, heads=3 * cfg["heads"]).get(wrong, 3) if "c_attn" in n else 1
            rest = rate, cut, share, cautious, number(cfg, "muon_size"), wrong
            steps = [muon(*x, *rest) for x in zip(*(np.split(y[n], parts) for y in (p, m, g)))]
            P[n], M[n], U[n] = map(np.concatenate, zip(*steps))
            continue
        U[n] = direction(cfg, M[n], V[n], step)
        P[n] = p[n] - rate * U[n] - share * p[n] * (1 - cautious * (U[n] * p[n] < 0))
    P = P if before else qk_clip(cfg, P, by_head)
    seen = {n: x * cut for n, x in g.items()} if "wrong_scaled" in cfg else g
    log = {}
    for name, arrays in ("grad", seen), ("param", P), ("update", U):
        log.update(
            {f"{name}_rms_{kind}": rms(*map(arrays.get, of)) for kind, of in kinds(cfg).items()}
        )
    for kind in ("c_fc", "attn_c_proj") if cfg["layers"] else ():
        for l, n in enumerate(kinds(cfg)[kind]):
            log.update({f"{kind}_grad_rms_{l}": rms(seen[n]), f"{kind}_update_rms_{l}": rms(U[n])})
    return P, M, V, norm * (cut if "wrong_norm" in cfg else 1), log
