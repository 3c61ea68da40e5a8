"""The yardstick of `make bench_gpu`: the same model and training step, written plainly in PyTorch
and compiled by it.

python test/bench/bench_torch.py C L NH T B V steps

prints: torch VERSION B seconds bytes
the medians of a step, and the most memory; B is halved until it fits
"""

import statistics
import sys

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """Modules are named so that their parameters have the names of train_gpt's checkpoint."""

    def __init__(self, C, NH):
        super().__init__()
        self.NH, norm = NH, lambda n: nn.LayerNorm(n, eps=1e-6, bias=False)
        self.ln_1, self.ln_2 = norm(C), norm(C)
        self.attn = nn.ModuleDict(
            dict(
                c_attn=nn.Linear(C, 3 * C, bias=False),
                q_norm=norm(C // NH),
                k_norm=norm(C // NH),
                c_proj=nn.Linear(C, C, bias=False),
            )
        )
        self.mlp = nn.ModuleDict(
            dict(c_fc=nn.Linear(C, 4 * C, bias=False), c_proj=nn.Linear(4 * C, C, bias=False))
        )

    def forward(self, x, cos, sin):
        B, T, C = x.shape
        q, k, v = self.attn.c_attn(self.ln_1(x)).view(B, T, 3, self.NH, C // self.NH).unbind(2)
        q, k = rope(self.attn.q_norm(q), cos, sin), rope(self.attn.k_norm(k), cos, sin)
        q, k, v = (y.transpose(1, 2).to(v.dtype) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn.c_proj(y.transpose(1, 2).reshape(B, T, C))
        return x + self.mlp.c_proj(F.gelu(self.mlp.c_fc(self.ln_2(x)), approximate="tanh"))


def rope(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class GPT(nn.Module):
    def __init__(self, C, L, NH, T, V, z_loss=1e-4):
        super().__init__()
        self.wte, self.h, self.ln_f = (
            nn.Embedding(V, C),
            nn.ModuleList(Block(C, NH) for _ in range(L)),
            nn.LayerNorm(C, eps=1e-6, bias=False),
        )
        self.lm_head, self.z_loss = nn.Linear(C, V, bias=False), z_loss
        angle = torch.arange(T)[:, None, None] * 1e4 ** (
            -2 * torch.arange(C // NH // 2) / (C // NH)
        )
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        nn.init.normal_(self.wte.weight, std=C**-0.5)
        for linear in (m for m in self.modules() if isinstance(m, nn.Linear)):
            std = linear.in_features**-0.5 / 0.8796
            nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std)

    def forward(self, inputs, targets):
        x = self.wte(inputs)
        for block in self.h:
            x = block(x, self.cos, self.sin)
        logits = self.lm_head(self.ln_f(x)).float().flatten(0, 1)
        return (
            F.cross_entropy(logits, targets.flatten())
            + self.z_loss * logits.logsumexp(-1).square().mean()
        )


def adamw(model):
    # without a warm-up a wide model's loss rises at first where the learning rate is 1e-2
    hyper = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 1e-2}
    return torch.optim.AdamW(model.parameters(), fused=True, **hyper)


def training_step(forward, model, optimizer, tokens):
    """Trains on tokens (inputs, targets); returns the loss. forward: the model, or it compiled."""
    loss = forward(*tokens)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss


def train(C, L, NH, T, B, V, steps):
    """The median time of a step in seconds, and the most memory that the GPU gave, in bytes."""
    torch.manual_seed(0)
    torch.cuda.reset_peak_memory_stats()
    model = GPT(C, L, NH, T, V).cuda()
    optimizer, tokens = adamw(model), torch.randint(V, (2, B, T), device="cuda")
    compiled, ends = torch.compile(model), []

    def forward(*tokens):
        with torch.autocast("cuda", torch.bfloat16):
            return compiled(*tokens)

    for step in range(steps + 11):
        loss = training_step(forward, model, optimizer, tokens)
        ends.append(torch.cuda.Event(enable_timing=True))
        ends[-1].record()
    torch.cuda.synchronize()
    assert torch.isfinite(loss)
    times = [a.elapsed_time(b) / 1e3 for a, b in zip(ends[10:], ends[11:])]
    return statistics.median(times), torch.cuda.max_memory_reserved()


def main():
    C, L, NH, T, B, V, steps = map(int, sys.argv[1:])
    if not torch.cuda.is_available():
        sys.exit("bench_torch: PyTorch sees no GPU here")
    while True:
        try:
            seconds, size = train(C, L, NH, T, B, V, steps)
            break
        except torch.cuda.OutOfMemoryError:
            if B == 1:
                sys.exit("bench_torch: one sequence does not fit")
        torch.cuda.empty_cache()
        torch.compiler.reset()  # else it would compile for any B
        B //= 2
    print(f"torch {torch.__version__} {B} {seconds} {size}")


if __name__ == "__main__":
    if len(sys.argv) != 8:
        sys.exit(__doc__)
    main()
