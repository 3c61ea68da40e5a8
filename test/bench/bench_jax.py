"""The yardsticks of `make bench`: the same model and training step in jitted float32 JAX, and numpy's sgemm.

    python test/bench_jax.py C L NH T B V seconds      prints tokens/s: the median of the steps after compilation
    python test/bench_jax.py sgemm N seconds           prints GFLOP/s of an N^3 float32 product: median and best

The caller limits the threads, in the environment and to as many cores (taskset):
    1 thread    XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1" taskset -c 0
    n threads   taskset -c 0-(n-1)          XLA makes a thread for every core that it may run on
    sgemm       OPENBLAS_NUM_THREADS=n      numpy's wheel carries OpenBLAS
"""

import os
import statistics
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")


def seconds_each(step, seconds, at_least=5):
    """Calls step (which waits for its result) until the time is up; the time of each call."""
    times, end = [], time.perf_counter() + seconds
    while len(times) < at_least or time.perf_counter() < end:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times


def sgemm(N, seconds):
    import numpy as np

    a, b = np.random.default_rng(0).standard_normal((2, N, N), np.float32)
    out = a @ b
    times = seconds_each(lambda: np.matmul(a, b, out=out), seconds)
    print(
        f"sgemm {N}: {2e-9 * N**3 / statistics.median(times):.1f} GFLOP/s median, {2e-9 * N**3 / min(times):.1f} best"
    )


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
            q, k, v = (
                y.reshape(B, T, NH, HS) for y in jnp.split(norm(x, w["ln_1"]) @ w["c_attn"], 3, -1)
            )
            q, k = rope(norm(q, w["q_norm"])), rope(norm(k, w["k_norm"]))
            s = jnp.einsum("bqhc,bkhc->bhqk", q, k) * HS**-0.5
            a = jax.nn.softmax(jnp.where(causal, s, -jnp.inf))
            x = x + jnp.einsum("bhqk,bkhc->bqhc", a, v).reshape(B, T, C) @ w["attn_proj"]
            x = x + jax.nn.gelu(norm(x, w["ln_2"]) @ w["c_fc"]) @ w["mlp_proj"]
        logits = norm(x, p["ln_f"]) @ p["lm_head"]
        log_z = jax.nn.logsumexp(logits, -1)
        return (
            log_z - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0] + 1e-4 * log_z**2
        ).mean()

    def step(state, inputs, targets):
        (p, m, v, t), tree = state, jax.tree.map
        value, g = jax.value_and_grad(loss)(p, inputs, targets)
        size = jnp.sqrt(sum((x * x).sum() for x in jax.tree.leaves(g)))
        cut, t = jnp.minimum(1, 1 / size), t + 1
        m = tree(lambda m, g: 0.9 * m + 0.1 * cut * g, m, g)
        v = tree(lambda v, g: 0.95 * v + 0.05 * (cut * g) ** 2, v, g)
        to_m, to_v = 1 / (1 - 0.9**t), 1 / (1 - 0.95**t)
        p = tree(
            lambda p, m, v: p - 1e-3 * m * to_m / (jnp.sqrt(v * to_v) + 1e-8) - 1e-4 * p, p, m, v
        )
        return (p, m, v, t), value

    step = jax.jit(step, donate_argnums=0)
    zeros = lambda: jax.tree.map(jnp.zeros_like, params)
    state = [(params, zeros(), zeros(), jnp.float32(0))]
    tokens = jax.random.randint(next(keys), (B, T + 1), 0, V)
    inputs, targets = jnp.array(tokens[:, :-1]), jnp.array(tokens[:, 1:])

    def once():
        state[0], value = step(state[0], inputs, targets)
        return value.block_until_ready()

    first = once()
    times = seconds_each(once, seconds)
    last = once()
    assert last < first, "it does not train"  # the same batch again and again
    print(
        f"jax C {C} L {L} NH {NH} T {T} B {B} V {V}: {B * T / statistics.median(times):.0f} tokens/s"
    )


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "sgemm":
        sgemm(int(sys.argv[2]), float(sys.argv[3]))
    elif len(sys.argv) == 8:
        train(*map(int, sys.argv[1:7]), float(sys.argv[7]))
    else:
        sys.exit(__doc__)
