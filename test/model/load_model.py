"""model.safetensors in JAX: the logits of a trained model.

    build/venv/bin/python test/model/load_model.py runs/default/model.safetensors "Munlu wehe"

Prints the five bytes that the model finds likeliest after this text. Other flags than these change
what is computed with the weights, and are refused.
"""

import sys

import jax
import jax.numpy as jnp
from safetensors import safe_open

KNOWN = dict(
    qk_norm=["0", "1"],
    kappa=["0"],
    scale=["sqrt"],
    attention=["softmax"],
    mu_param=["off", "simple", "intermediate"],
    attn_cap=["0"],
)


def load(path):
    """Returns the flags of the run, as texts, and its weights by name, without AdamW's moments. A
    matrix has the shape (out, in)."""
    with safe_open(path, "numpy") as file:
        flags = file.metadata()
        names = [name for name in file.keys() if not name.startswith("adam.")]
        weights = {name: file.get_tensor(name) for name in names}
    for name, known in KNOWN.items():
        if flags.get(name, known[0]) not in known:  # a file older than the flag does not have it
            raise ValueError(f"{path}: not for a model with -{name} {flags[name]}")
    return flags, weights


def layernorm(x, weight):
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * weight


def rope(x):
    """x (B,T,NH,HS): at position t the pair (i, i + HS/2) turns by the angle t * 10000^(-2i/HS)."""
    T, half = x.shape[1], x.shape[3] // 2
    angle = jnp.arange(T)[:, None, None] * 10000.0 ** (-jnp.arange(half) / half)
    angle = angle.astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    turned = a * jnp.cos(angle) - b * jnp.sin(angle), a * jnp.sin(angle) + b * jnp.cos(angle)
    return jnp.concatenate(turned, -1)


def logits(flags, weights, tokens):
    """tokens (B,T) -> logits (B,T,V); those at t are of the token after t."""
    NH, (B, T) = int(flags["heads"]), tokens.shape
    x = weights["wte.weight"][tokens]  # (B,T,C)
    for l in range(int(flags["layers"])):
        w = lambda name: weights[f"h.{l}.{name}.weight"]
        # -peri_ln: a norm after each sublayer, too
        post = lambda y, name: layernorm(y, w(name)) if flags.get("peri_ln") == "1" else y
        normed = layernorm(x, w("ln_1"))
        qkv = normed @ w("attn.c_attn").T
        q, k, v = (y.reshape(B, T, NH, -1) for y in jnp.split(qkv, 3, -1))  # (B,T,NH,HS)
        if flags["qk_norm"] == "1":
            q, k = layernorm(q, w("attn.q_norm")), layernorm(k, w("attn.k_norm"))
        att = jax.nn.dot_product_attention(rope(q), rope(k), v, is_causal=True).reshape(B, T, -1)
        if flags.get("gate") == "1":
            att = att * jax.nn.sigmoid(normed @ w("attn.gate").T)
        x = x + post(att @ w("attn.c_proj").T, "post_1")
        inner = jax.nn.gelu(layernorm(x, w("ln_2")) @ w("mlp.c_fc").T)
        x = x + post(inner @ w("mlp.c_proj").T, "post_2")
    return layernorm(x, weights["ln_f.weight"]) @ weights["lm_head.weight"].T


if __name__ == "__main__":
    flags, weights = load(sys.argv[1])
    tokens = jnp.array([list(sys.argv[2].encode())])
    likeliest = jnp.argsort(-logits(flags, weights, tokens)[0, -1])[:5]
    print(*(bytes([int(token)]) for token in likeliest))
