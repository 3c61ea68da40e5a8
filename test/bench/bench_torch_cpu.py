"""PyTorch's part of `make bench`: bench_torch.py's model and training step in float32 on the CPU.

    python test/bench/bench_torch_cpu.py eager|compiled C L NH T B V SECONDS
        prints: version VERSION
                tokens/s NUMBER

The caller limits the threads: OMP_NUM_THREADS, and taskset to as many cores.
"""

import sys

import torch

from bench_jax import report  # which imports no JAX by itself
from bench_torch import GPT, adamw, training_step


def train(how, C, L, NH, T, B, V, seconds):
    torch.manual_seed(0)
    model = GPT(C, L, NH, T, V)
    optimizer, tokens = adamw(model), torch.randint(V, (2, B, T))
    forward = torch.compile(model) if how == "compiled" else model

    def step():
        return training_step(forward, model, optimizer, tokens).item()

    report(torch.__version__, step, B * T, seconds)


if __name__ == "__main__":
    if len(sys.argv) != 9 or sys.argv[1] not in ("eager", "compiled"):
        sys.exit(__doc__)
    train(sys.argv[1], *map(int, sys.argv[2:8]), float(sys.argv[8]))
