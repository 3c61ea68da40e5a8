"""JAX's part of `make bench`: the same model and training step in jitted float32 JAX.

    python test/bench/bench_jax.py C L NH T B V SECONDS
        prints: version VERSION
                tokens/s NUMBER

The caller limits the threads, in the environment and to as many cores (taskset). XLA makes a thread
for each core that it may run on; one thread needs
    XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
"""

import os
import statistics
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")


def report(version, step, tokens, seconds):
    """Calls step() until the time is up, at least five times; prints the median's tokens/s.

    step() trains on the same batch each time and returns the loss. The first call, which may
    compile, is not timed.
    """
    first, times, end = step(), [], time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        last = step()
        times.append(time.perf_counter() - start)
    assert last < first, f"the loss does not fall: {first} {last}"
    print(f"version {version}\ntokens/s {tokens / statistics.median(times):.1f}")


def train(C, L, NH, T, B, V, seconds):
    import jax
    import jax.numpy as jnp

    HS = C // NH
    keys = iter(jax.random.split(jax.random.key(0), 6 * L + 8))

    def matrix(rows, cols):  # in x out, as JAX multiplies best
        return jax.random.truncated_normal(next(keys), -2, 2, (rows, cols)) / 0.8796 / rows**0.5

    def layer():
        return dict(
            ln_1=jnp.ones(C),
            q_norm=jnp.ones(HS),
            k_norm=jnp.ones(HS),
            ln_2=jnp.ones(C),
            c_attn=matrix(C, 3 * C),
            attn_proj=matrix(C, C),
            c_fc=matrix(C, 4 * C),
            mlp_proj=matrix(4 * C, C),
        )

    params = dict(
        wte=jax.random.normal(next(keys), (V, C)) / C**0.5,
        h=[layer() for _ in range(L)],
        ln_f=jnp.ones(C),
        lm_head=matrix(C, V),
    )
    angle = jnp.arange(T)[:, None, None] * 1e4 ** (-2 * jnp.arange(HS // 2) / HS)
    cos, sin, causal = jnp.cos(angle), jnp.sin(angle), jnp.tril(jnp.ones((T, T), bool))

    def norm(x, w):
        x = x - x.mean(-1, keepdims=True)
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * w

    def rope(x):
        a, b = jnp.split(x, 2, -1)
        return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)

    def loss(p, inputs, targets):
        x = p["wte"][inputs]
        for w in p["h"]:  # unrolled: measured faster here than a scan over the layers
            qkv = jnp.split(norm(x, w["ln_1"]) @ w["c_attn"], 3, -1)
            q, k, v = (y.reshape(B, T, NH, HS) for y in qkv)
            q, k = rope(norm(q, w["q_norm"])), rope(norm(k, w["k_norm"]))
            s = jnp.einsum("bqhc,bkhc->bhqk", q, k) * HS**-0.5
            a = jax.nn.softmax(jnp.where(causal, s, -jnp.inf))
            x = x + jnp.einsum("bhqk,bkhc->bqhc", a, v).reshape(B, T, C) @ w["attn_proj"]
            x = x + jax.nn.gelu(norm(x, w["ln_2"]) @ w["c_fc"]) @ w["mlp_proj"]
        logits = norm(x, p["ln_f"]) @ p["lm_head"]
        log_z = jax.nn.logsumexp(logits, -1)
        of_target = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
        return (log_z - of_target + 1e-4 * log_z**2).mean()

    def step(state, inputs, targets):
        (p, m, v, t), tree = state, jax.tree.map
        value, g = jax.value_and_grad(loss)(p, inputs, targets)
        size = jnp.sqrt(sum((x * x).sum() for x in jax.tree.leaves(g)))
        cut, t = jnp.minimum(1, 1 / size), t + 1
        m = tree(lambda m, g: 0.9 * m + 0.1 * cut * g, m, g)
        v = tree(lambda v, g: 0.95 * v + 0.05 * (cut * g) ** 2, v, g)
        to_m, to_v = 1 / (1 - 0.9**t), 1 / (1 - 0.95**t)
        adam = tree(lambda m, v: m * to_m / (jnp.sqrt(v * to_v) + 1e-8), m, v)
        p = tree(lambda p, u: p - 1e-3 * u - 1e-4 * p, p, adam)
        return (p, m, v, t), value

    step = jax.jit(step, donate_argnums=0)
    m, v = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
    state = [(params, m, v, jnp.float32(0))]
    tokens = jax.random.randint(next(keys), (B, T + 1), 0, V)
    inputs, targets = jnp.array(tokens[:, :-1]), jnp.array(tokens[:, 1:])

    def once():
        state[0], value = step(state[0], inputs, targets)
        return float(value)

    report(jax.__version__, once, B * T, seconds)


if __name__ == "__main__":
    if len(sys.argv) != 8:
        sys.exit(__doc__)
    train(*map(int, sys.argv[1:7]), float(sys.argv[7]))
