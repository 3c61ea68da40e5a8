"""The same model a second time, in JAX and float64, written from the papers' definitions alone
and not from train_gpt.c: what both agree on is hardly a slip of one.

A model is a dict of arrays under the names of model.safetensors; a config is a dict as CONFIG:

    p = init(cfg, seed)
    (total, seen), g = value_and_grad(cfg)(p, inputs, targets)    # inputs, targets: integers (B, T)
    p, m, v, u, norm = step(cfg, p, m, v, g, seen, 1)             # steps count from 1
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)

CONFIG = dict(
    d=32,
    layers=2,
    heads=2,
    T=32,
    vocab=256,
    qk_norm=1,
    z_loss=1e-4,
    bf16_logits=0,
    kappa=0,
    attention="softmax",
    attn_cap=0,
    qk_clip=0,
    gate=0,
    peri_ln=0,
    mu_param="off",
    base_d=32,
    scale="sqrt",
    rms_lr=0,
    lr=1e-2,
    schedule="cosine",
    min_lr=1e-5,
    warmup=50,
    steps=1000,
    beta1=0.9,
    beta2=0.95,
    eps=1e-8,
    clip=1.0,
    wd=1e-4,
    wd_independent=1,
    cautious=0,
    optimizer="adamw",
)
# linear layers: every matrix but the embedding; those inside the layers
HIDDEN = ("c_attn.weight", "c_proj.weight", "c_fc.weight", "gate.weight")
LINEAR = (*HIDDEN, "lm_head.weight")


# ---- parameters


def shapes(cfg):
    """Every tensor's name and shape (a matrix is out x in), in the file's order."""
    C, V, HS = cfg["d"], cfg["vocab"], cfg["d"] // cfg["heads"]
    out = {"wte.weight": (V, C)}
    for l in range(cfg["layers"]):
        h = f"h.{l}."
        out[h + "ln_1.weight"] = (C,)
        out[h + "attn.c_attn.weight"] = (3 * C, C)
        if cfg["qk_norm"]:
            over = C if cfg["qk_norm"] == "model" else HS
            out[h + "attn.q_norm.weight"] = out[h + "attn.k_norm.weight"] = (over,)
        if cfg["gate"]:
            out[h + "attn.gate.weight"] = (C, C)
        out[h + "attn.c_proj.weight"] = (C, C)
        if cfg["peri_ln"]:
            out[h + "post_1.weight"] = (C,)
        out[h + "ln_2.weight"] = (C,)
        out[h + "mlp.c_fc.weight"] = (4 * C, C)
        out[h + "mlp.c_proj.weight"] = (C, 4 * C)
        if cfg["peri_ln"]:
            out[h + "post_2.weight"] = (C,)
    out["ln_f.weight"] = (C,)
    out["lm_head.weight"] = (V, C)
    return out


def init(cfg, seed):
    """Scales 1; embedding N(0, 1/C); other matrices normal cut at 2 sigma, then of variance
    1/fan_in. muParam (section 3.2.4): intermediate and full give the head the standard deviation
    sqrt(base fan-in) / fan-in, full starts the queries, the first C rows of c_attn, at 0."""
    rng, p = np.random.default_rng(seed), {}
    for name, shape in shapes(cfg).items():
        if len(shape) == 1:
            p[name] = np.ones(shape)
            continue
        x = rng.standard_normal(shape)
        while name != "wte.weight" and (abs(x) > 2).any():
            x = np.where(abs(x) > 2, rng.standard_normal(shape), x)
        # 0.8796: the standard deviation of a standard normal cut at 2
        x /= 1 if name == "wte.weight" else 0.87962566103423978
        std = shape[1] ** -0.5
        if name == "lm_head.weight" and cfg["mu_param"] in ("intermediate", "full"):
            std = cfg["base_d"] ** 0.5 / shape[1]
        if name.endswith("c_attn.weight") and cfg["mu_param"] == "full":
            x[: cfg["d"]] = 0
        p[name] = std * x
    return p


# ---- the model


def layernorm(x, weight):
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * weight


def rope(x):
    """x (B, T, NH, HS): the pair (i, i + HS/2) at position t turns by t * 10000^(-2i/HS)."""
    T, half = x.shape[1], x.shape[-1] // 2
    # (T, 1, HS/2)
    angle = (jnp.arange(T)[:, None] * 10000.0 ** (-jnp.arange(half) / half))[:, None, :]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate(
        [a * jnp.cos(angle) - b * jnp.sin(angle), a * jnp.sin(angle) + b * jnp.cos(angle)], -1
    )


def rms(x):
    return jnp.sqrt((x * x).mean())


def rms_norm(x, kappa):
    """sqrt(kappa) x / RMS(x), with LayerNorm's epsilon."""
    return x * jnp.sqrt(kappa / ((x * x).mean(-1, keepdims=True) + 1e-6))


def to_bfloat16(x):
    """x as a bfloat16 of its float holds it. Rounding has no slope of use: the gradient is x's."""
    near = x.astype(jnp.float32).astype(jnp.bfloat16).astype(x.dtype)
    return x + jax.lax.stop_gradient(near - x)


def forward(cfg, p, inputs):
    """Returns the logits (B, T, V); the measures of each layer; the RMS of activations: embedding,
    q k v, attention's output, fc1's output, last residual, logits (the three between only where
    there are layers); and the largest score of each layer and head. Scores are before a cap."""
    C, NH, (B, T) = cfg["d"], cfg["heads"], inputs.shape
    HS = C // NH
    scale = 1 / HS if cfg["mu_param"] == "full" or cfg["scale"] == "d_h" else HS**-0.5
    causal = jnp.tril(jnp.ones((T, T), bool))
    x, inner, head_logits = p["wte.weight"][inputs], [], []
    by_layer = {name: [] for name in "max_attn_logit q_rms k_rms qk_cosine block_rms".split()}
    embedding = x
    for l in range(cfg["layers"]):
        w = lambda name: p[f"h.{l}.{name}.weight"]
        normed = layernorm(x, w("ln_1"))
        qkv = normed @ w("attn.c_attn").T
        q, k, v = jnp.split(qkv, 3, -1)
        if cfg["qk_norm"] == "model":  # section E.8: over C
            q, k = layernorm(q, w("attn.q_norm")), layernorm(k, w("attn.k_norm"))
        q, k, v = (y.reshape(B, T, NH, HS) for y in (q, k, v))
        if cfg["qk_norm"] == 1:
            q, k = layernorm(q, w("attn.q_norm")), layernorm(k, w("attn.k_norm"))
        if cfg["kappa"]:  # figure 10
            q, k = rms_norm(q, cfg["kappa"]), rms_norm(k, cfg["kappa"])
            qkv = jnp.concatenate([y.reshape(B, T, C) for y in (q, k, v)], -1)  # as is measured
        q, k = rope(q), rope(k)
        s = jnp.einsum("bqhc,bkhc->bhqk", q, k) * scale
        largest = jnp.where(causal, abs(s), 0)
        size = lambda y: jnp.sqrt((y * y).sum(-1)).transpose(0, 2, 1)  # (B, NH, T)
        cosine = s / scale / size(q)[..., :, None] / size(k)[..., None, :]
        measures = largest.max(), rms(q), rms(k), cosine.ravel()[largest.argmax()]
        head_logits.append(largest.max((0, 2, 3)))
        if cfg["attn_cap"]:  # Gemma 2
            s = cfg["attn_cap"] * jnp.tanh(s / cfg["attn_cap"])
        if cfg["attention"] == "relu2":  # section E.11: T is the length in training
            a = jnp.where(causal, jax.nn.relu(s) ** 2 / cfg["T"] ** 0.5, 0)
        else:
            a = jax.nn.softmax(jnp.where(causal, s, -jnp.inf))
        att = jnp.einsum("bhqk,bkhc->bqhc", a, v).reshape(B, T, C)
        heads = att
        if cfg["gate"]:  # arXiv 2505.06708: of each element, from attention's input
            heads = att / (1 + jnp.exp(-(normed @ w("attn.gate").T)))
        # arXiv 2502.02732: x += norm(sublayer(norm(x)))
        post = layernorm if cfg["peri_ln"] else lambda y, weight: y
        post_weights = [w("post_1"), w("post_2")] if cfg["peri_ln"] else [None, None]
        x = x + post(heads @ w("attn.c_proj").T, post_weights[0])
        y = layernorm(x, w("ln_2")) @ w("mlp.c_fc").T
        inner.append((qkv, att, y))
        y = 0.5 * y * (1 + jnp.tanh((2 / jnp.pi) ** 0.5 * (y + 0.044715 * y**3)))
        x = x + post(y @ w("mlp.c_proj").T, post_weights[1])
        for name, value in zip(by_layer, (*measures, rms(x))):
            by_layer[name].append(value)
    out = layernorm(x, p["ln_f.weight"]) @ p["lm_head.weight"].T
    out = to_bfloat16(out) if cfg["bf16_logits"] else out
    acts = [embedding, *map(jnp.stack, zip(*inner)), x, out]
    return out, by_layer, jnp.stack([rms(y) for y in acts]), head_logits


def evaluate(cfg, p, inputs, targets):
    """Everything measured: total (what is descended), ce (what is logged), mean log Z, mean logit,
    largest attention logits, also by head, RMS of activations."""
    out, by_layer, act_rms, head_logits = forward(cfg, p, inputs)
    log_z = jax.nn.logsumexp(out, -1)
    ce = (log_z - jnp.take_along_axis(out, targets[..., None], -1)[..., 0]).mean()
    return ce + cfg["z_loss"] * (log_z**2).mean(), dict(
        ce=ce,
        log_z=log_z.mean(),
        mean_logit=out.mean(),
        by_layer=by_layer,
        act_rms=act_rms,
        head_logits=head_logits,
    )


def logits(cfg, p, inputs):
    return forward(cfg, p, inputs)[0]


def loss(cfg, p, inputs, targets):
    total, seen = evaluate(cfg, p, inputs, targets)
    return seen["ce"], total


def max_attention_logits(cfg, p, inputs):
    return forward(cfg, p, inputs)[1]["max_attn_logit"]


def value_and_grad(cfg):
    """Compiled: (p, inputs, targets) -> ((total, seen), gradients)."""
    return jax.jit(jax.value_and_grad(lambda p, x, y: evaluate(cfg, p, x, y), has_aux=True))


# ---- the optimizer


def schedule(cfg, step):
    """Steps count from 1: a line from 0 to the peak at step warmup, half a cosine from there to
    min_lr at the last. constant: the peak from there on. wsd: the peak from there on, and in the
    last fifth of the steps, or what warm-up leaves of it, a line to min_lr."""
    peak, low, warmup, steps = cfg["lr"], min(cfg["min_lr"], cfg["lr"]), cfg["warmup"], cfg["steps"]
    if step < warmup:
        return peak * step / warmup
    if cfg["schedule"] == "constant":
        return peak
    if cfg["schedule"] == "wsd":
        corners = [warmup, max(warmup, 0.8 * steps), steps]
        return peak if warmup == steps else np.interp(step, corners, [peak, peak, low])
    # the peak is the last step
    done = (step - warmup) / (steps - warmup) if steps > warmup else 0.0
    return low + (peak - low) * 0.5 * (1 + np.cos(np.pi * done))


def adamw(cfg, m, v, g, step):
    """New moments, and the update without the learning rate."""
    b1, b2 = cfg["beta1"], cfg["beta2"]
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    return m, v, m / (1 - b1**step) / (np.sqrt(v / (1 - b2**step)) + cfg["eps"])


def newton_schulz(x):
    """Keller Jordan's five steps: about U V^T of x = U S V^T. They are the same polynomial of the
    singular values, computed here by them, not by products of matrices."""
    U, s, Vt = np.linalg.svd(x, full_matrices=False)
    s = s / (np.sqrt((s * s).sum()) + 1e-30)  # the Frobenius norm; a matrix of zeros stays one
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return U * s @ Vt


def muon(m, g, parts):
    """Momentum 0.95 in Nesterov's form, made orthogonal, each of the parts of the rows alone, and
    of the RMS of AdamW's (Kimi K2: 0.2 sqrt(the longer side))."""
    m = 0.95 * m + 0.05 * g
    steps = [
        0.2 * np.sqrt(max(x.shape)) * newton_schulz(x) for x in np.split(0.95 * m + 0.05 * g, parts)
    ]
    return m, np.concatenate(steps)


def clip_queries_and_keys(cfg, c_attn, largest):
    """QK-clip (Kimi K2): a head whose largest score passed tau has its rows of Wq and of Wk
    multiplied by sqrt(tau / largest)."""
    factor = np.sqrt(np.minimum(1, cfg["qk_clip"] / np.maximum(largest, 1e-300)))
    rows = np.repeat(factor, cfg["d"] // cfg["heads"])
    return c_attn * np.concatenate([rows, rows, np.ones(cfg["d"])])[:, None]


def step(cfg, p, m, v, g, seen, step):
    """One step of the optimizer with a global-norm clip. muParam: linear layers learn at base
    fan-in / fan-in of the rate. rms_lr (section E.14): each tensor's rate times its RMS, at least
    1e-3. cautious (arXiv 2510.12402): decays only where the update and the weight have the same
    sign. seen: of the batch, for QK-clip. Returns new p, m, v, the updates without the learning
    rate, and the gradients' norm before the clip."""
    g = {n: np.asarray(x) for n, x in g.items()}
    norm = np.sqrt(sum((x * x).sum() for x in g.values()))
    cut = cfg["clip"] / norm if cfg["clip"] and norm > cfg["clip"] else 1.0
    lr = schedule(cfg, step)
    decay = (lr / cfg["lr"] if cfg["wd_independent"] else lr) * cfg["wd"]
    P, M, V, updates = {}, {}, {}, {}
    for n in p:
        if cfg["optimizer"] == "muon" and n.endswith(HIDDEN):
            M[n], u = muon(m[n], cut * g[n], 3 if n.endswith("c_attn.weight") else 1)
            V[n] = v[n]
        else:
            M[n], V[n], u = adamw(cfg, m[n], v[n], cut * g[n], step)
        rate = lr
        if cfg["mu_param"] != "off" and n.endswith(LINEAR):
            rate *= cfg["base_d"] / cfg["d"]
        if cfg["rms_lr"]:
            rate *= max(np.sqrt((p[n] ** 2).mean()), 1e-3)
        decays = u * p[n] >= 0 if cfg["cautious"] else 1
        P[n], updates[n] = p[n] - rate * u - decay * decays * p[n], u
    for l in range(cfg["layers"] if cfg["qk_clip"] else 0):
        n = f"h.{l}.attn.c_attn.weight"
        P[n] = clip_queries_and_keys(cfg, P[n], np.asarray(seen["head_logits"][l]))
    return P, M, V, updates, norm
