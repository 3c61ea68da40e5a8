"""train_gpt.cu against train_gpt.c: the same weights and batches must give the same losses,
gradients and AdamW steps. On the CPU over the stand-in cuda_emu.h, or, with GPU=1 (make test_gpu),
on this machine's GPU.
"""

import concurrent.futures
import csv
import functools
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from conftest import ROOT, SANITIZE, TEST, Library, Model, build, build_emu
from test_oracle import CASES, all_close, batches, close, config, model

GPU = bool(os.environ.get("GPU"))
# of a block's threads; a GPU has its own
ORDERS = ("forward",) if GPU else ("forward", "reverse", "random")
NVCC = shutil.which("nvcc")

# The oracle's cases, in other shapes where the width or a head is no multiple of 8 channels; and
# shapes that fill several of the kernels' tiles and warps, the last of them in part. eps as in
# test_oracle.py.
CHANGED = dict(
    one_head=dict(heads=1),
    deep=dict(layers=5, d=16, heads=2, T=5, batch=2),
    everything=dict(CASES["everything"], d=48),
)
MORE = dict(
    long=dict(d=16, heads=2, layers=1, T=150, eps=1e-3),
    head_of_24=dict(d=48, heads=2, layers=1, T=35, batch=2, vocab=65, qk_norm=0, eps=1e-3),
    head_of_80=dict(d=80, heads=1, layers=1, T=40, eps=1e-3),
    head_of_128=dict(d=128, heads=1, layers=1, T=67, vocab=65, eps=1e-3),
    heads_of_64=dict(d=128, heads=2, layers=1, T=5, qk_norm=0, eps=1e-3),
    many_symbols=dict(d=8, heads=1, layers=1, vocab=8203, T=4, eps=1e-3),
    wide=dict(d=264, heads=3, layers=1, T=2, batch=1, eps=1e-3),
)
# the oracle's cases of the cures found since have others here: CURES
FOUND_SINCE = {"attn_cap", "qk_clip", "optimizer", "gate", "peri_ln", "cautious"}
SHAPES = {name: flags for name, flags in CASES.items() if not FOUND_SINCE & flags.keys()}
SHAPES |= {**CHANGED, **MORE}
# heads of 2, and the flags that only train_gpt.c has
for case in (
    "head_of_2",
    "head_of_2_normed",
    "kappa",
    "kappa_full",
    "relu2",
    "relu2_long",
    "norm_over_all",
    "norm_over_all_full",
):
    del SHAPES[case]
LARGE = {"c64", "c40", "head_of_64", *MORE}

# The cures found since the paper, in each of two layers, with values at which they act
CURES = dict(
    attn_cap=dict(attn_cap=2, qk_norm=0, T=40, eps=1e-3),
    attn_cap_normed=dict(attn_cap=0.05, scale="d_h", eps=1e-3),
    qk_clip=dict(qk_clip=5, qk_norm=0, batch=3, eps=1e-3),
    muon=dict(optimizer="muon", eps=1e-3),
    muon_wide=dict(optimizer="muon", d=40, heads=5, clip=0.05, eps=1e-3),
    muon_scaled=dict(optimizer="muon", rms_lr=1, mu_param="full", base_d=8, lr=0.3, eps=1e-3),
    gate=dict(gate=1, batch=2, eps=1e-3),
    peri_ln=dict(peri_ln=1, batch=2, eps=1e-3),
    cautious=dict(cautious=1, wd=0.3, eps=1e-3),
    together=dict(
        attn_cap=3,
        qk_clip=5,
        optimizer="muon",
        gate=1,
        peri_ln=1,
        cautious=1,
        wd=0.1,
        qk_norm=0,
        z_loss=1e-1,
        batch=3,
        eps=1e-3,
    ),
)
PRECISIONS = "fp32", "bf16"
BUILT_FOR = dict(fp32=["-DFP32"], bf16=[])


def nvcc_build(name, source, *flags, suffix=""):
    """Builds a .cu file for this machine's GPU, as `make train_gpt_cu` does."""
    command = [NVCC, "-std=c++17", "-O3", "-arch=native", *flags, "-I", str(ROOT), str(source)]
    return build(name, [*command, "-lcublas", "-lcublasLt"], suffix)


def shim(precision, *flags):
    """cu_shim.cu as a library."""
    source, flags = TEST / "cuda" / "cu_shim.cu", [*BUILT_FOR[precision], "-shared", *flags]
    if GPU:
        return nvcc_build("cu_shim_gpu", source, "-Xcompiler", "-fPIC", *flags, suffix=".so")
    return build_emu("cu_shim", source, "-fPIC", *flags, suffix=".so")


def rounds_shim():
    """The same of train_gpt.cu with one block where its kernels have hundreds: it must go round and
    round, as on larger models."""
    text = (ROOT / "train_gpt.cu").read_text()
    for name in "ROW_BLOCKS", "SUM_BLOCKS":
        text, count = re.subn(rf"\b{name} = [\d *]+", f"{name} = 1", text)
        assert count == 1, name
    program = ROOT / "build" / "train_gpt_rounds.cu"
    program.parent.mkdir(exist_ok=True)
    program.write_text(text)
    return shim("fp32", f'-DPROGRAM="{program}"')


def trainer(precision, *flags):
    if GPU:
        return nvcc_build("train_gpt_cu", ROOT / "train_gpt.cu", *BUILT_FOR[precision])
    flags = [*BUILT_FOR[precision], *flags]
    return build_emu("train_gpt_cu_emu", ROOT / "train_gpt.cu", *flags)


def real_build(precision):
    """What nvcc and its assembler say of the real program: in bf16 on all architectures, in fp32,
    which takes minutes for that, on one."""
    architectures = (80, 86, 89, 90, 100, 120) if precision == "bf16" else (80,)
    command = [NVCC, "-std=c++17", "-O3", *BUILT_FOR[precision], "-Werror", "all-warnings"]
    command += [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    command += ["-Xptxas", "-v", "-c", "-o", os.devnull, str(ROOT / "train_gpt.cu")]
    return NVCC and subprocess.run(command, capture_output=True, text=True)


# By the fixture that hands it to the tests
BUILDS = dict(
    cuda=lambda: shim("fp32"),
    cuda_bf16=lambda: shim("bf16"),
    rounds=rounds_shim,
    programs=lambda: {p: trainer(p) for p in PRECISIONS},
    sanitized=lambda: {p: trainer(p, *SANITIZE) for p in PRECISIONS},
    nvcc=lambda: {p: real_build(p) for p in PRECISIONS},
)


@pytest.fixture(scope="session")
def builds(request):
    """Builds what the chosen tests need, two at a time and beside the tests."""
    wanted = {name for item in request.session.items for name in item.fixturenames}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(make) for name, make in BUILDS.items() if name in wanted}


@pytest.fixture(scope="session")
def cuda(builds):
    return Library(False, builds["cuda"].result())


@pytest.fixture(scope="session")
def cuda_bf16(builds):
    return Library(False, builds["cuda_bf16"].result())


@pytest.fixture(scope="session")
def rounds(builds):
    return Library(False, builds["rounds"].result())


@pytest.fixture(scope="session")
def programs(builds):
    """The program of each precision."""
    return builds["programs"].result()


@pytest.fixture(scope="session")
def program(programs):
    return programs["fp32"]


@pytest.fixture(scope="session")
def sanitized(builds):
    return builds["sanitized"].result()


@pytest.fixture(scope="session")
def nvcc(builds):
    return builds["nvcc"].result()


def cured(library, cfg):
    """A model with a cure. Of the initial weights the norms' differ from 1, and the queries of the
    first half of the heads are so large that their scores exceed qk_clip and the cap."""
    m, rng = Model(library, **cfg), np.random.default_rng(1)
    for name, x in m.p.items():
        if 1 in x.shape or x.ndim == 1:
            x *= 1 + 0.3 * rng.standard_normal(x.shape)
        if name.endswith("c_attn.weight"):
            x[: cfg["d"] // 2] *= 3
    return m


def settings(case):
    """The flags of a case, and what makes its model."""
    return (config(**CURES[case]), cured) if case in CURES else (config(**SHAPES[case]), model)


def steps(library, cfg, number=5, start=model):
    """For each step: its loss, log Z, mean logit, largest attention logits, RMS of activations and
    gradient norm; its gradients; and the weights and moments after it."""
    m, stream, out = start(library, cfg), batches(cfg), []
    for step in range(1, number + 1):
        batch = next(stream)
        loss = m.backward(*batch)
        log_z, grads = m.log_z(), copies(m.g)
        assert step > 1 or m.forward(*batch) == loss, "the forward pass alone gives another loss"
        norm = m.update(step)
        out.append(
            (
                dict(
                    loss=loss,
                    log_z=log_z,
                    mean_logit=m.mean_logit(),
                    logits=m.by_layer("max_attn_logit"),
                    c_fc_grad_rms=m.by_layer("c_fc_grad_rms"),
                    attn_c_proj_grad_rms=m.by_layer("attn_c_proj_grad_rms"),
                    act_rms=m.act_rms(),
                    norm=norm,
                ),
                grads,
                *map(copies, (m.p, m.m, m.v)),
            )
        )
    return out


def copies(tensors):
    return {n: x.copy() for n, x in tensors.items()}


@functools.cache
def reference(library, case):
    """train_gpt.c's steps."""
    cfg, start = settings(case)
    return steps(library, cfg, 2 if case in MORE else 5, start)


def same_bits(a, b):
    for step, (x, y) in enumerate(zip(a, b), 1):
        for name in x[0]:
            assert np.array_equal(x[0][name], y[0][name]), f"step {step} {name}"
        for tensors, others, what in zip(x[1:], y[1:], ("gradient", "weight", "m", "v")):
            for name in tensors:
                assert (tensors[name] == others[name]).all(), f"step {step} {what} {name}"


def seen_close(seen, wanted, tolerance, step):
    for name in seen:
        floor = wanted["act_rms"][-1] if name == "mean_logit" else 0.0  # logits of either sign
        close(seen[name], wanted[name], tolerance, f"step {step} {name}", floor=floor)


def check_fp32(library, case, wanted):
    """To 1e-4: what a step measures, every gradient, and the weights and moments after it. Returns
    the steps."""
    cfg, start = settings(case)
    tolerance, out = 1e-4, steps(library, cfg, len(wanted), start)
    for step, ((seen, *tensors), (wanted_seen, *wanted)) in enumerate(zip(out, wanted), 1):
        seen_close(seen, wanted_seen, tolerance, step)
        all_close(tensors[0], wanted[0], tolerance, f"step {step} gradient")
        for x, y, what in zip(tensors[1:], wanted[1:], ("weight", "m", "v")):
            all_close(x, y, tolerance, f"step {step} {what}", norm=np.linalg.norm)
    return out


@pytest.mark.parametrize("case", SHAPES)
def test_fp32(case, cuda, float_library, monkeypatch):
    """Five AdamW steps equal train_gpt.c's (two of MORE), and have the same bits in every order of
    the threads (two of LARGE) and from run to run."""
    first = check_fp32(cuda, case, reference(float_library, case))
    for order in ORDERS[1:] or ORDERS:
        monkeypatch.setenv("CUDA_EMU_ORDER", order)
        same_bits(first, steps(cuda, config(**SHAPES[case]), 2 if case in LARGE else 5))


@pytest.mark.parametrize("case", CURES)
def test_cures(case, cuda, float_library, monkeypatch):
    """The same of the cures found since the paper."""
    first = check_fp32(cuda, case, reference(float_library, case))
    for order in ORDERS[1:] or ORDERS:
        monkeypatch.setenv("CUDA_EMU_ORDER", order)
        same_bits(first, steps(cuda, config(**CURES[case]), 2, cured))


@pytest.mark.parametrize("case", CURES)
def test_cures_act(case, cuda):
    """Each changes the third loss by more than rounding does, 1e-7."""
    off = dict(attn_cap=0, qk_clip=0, optimizer="adamw", cautious=0, gate=0, peri_ln=0)
    off = {name: value for name, value in off.items() if name in CURES[case]}
    with_it, without = (
        [seen["loss"] for seen, *_ in steps(cuda, config(**CURES[case] | changes), 3, cured)]
        for changes in ({}, off)
    )
    assert abs(with_it[-1] / without[-1] - 1) > 1e-5


def test_qk_clip_shrinks_the_heads_above_it(cuda):
    """By sqrt(tau / largest), and no others; so the same batch then has scores of tau."""
    cfg = config(**CURES["qk_clip"], lr=1e-30, min_lr=0, wd=0, layers=1)
    m = cured(cuda, cfg)
    batch, c_attn = next(batches(cfg)), m.p["h.0.attn.c_attn.weight"]
    before, C, HS = c_attn.copy(), cfg["d"], cfg["d"] // cfg["heads"]
    m.backward(*batch)
    m.update(1)
    ratio = (c_attn / before).reshape(3, cfg["heads"], HS, C)
    heads = ratio[0, :, 0, 0]
    assert (heads < 1).any() and (heads == 1).any() and (ratio[2] == 1).all()
    close(ratio[:2], np.broadcast_to(heads[:, None, None], ratio[:2].shape), 1e-6, "q and k")
    largest = m.by_layer("max_attn_logit")[0]
    assert abs(heads.min() / np.sqrt(cfg["qk_clip"] / largest) - 1) < 1e-6
    m.backward(*batch)
    m.update(2)
    assert abs(m.by_layer("max_attn_logit")[0] / cfg["qk_clip"] - 1) < 1e-5


def test_attention_at_logits_of_1e6(cuda):
    """Where all tokens are the same so are all v, and whatever q and k are each query's weights sum
    to 1: their gradients too."""
    cfg = config(layers=1, batch=2, T=70, qk_norm=0)

    def largest_logit_and_gradient(factor):
        c, qk = model(cuda, cfg), slice(0, 2 * cfg["d"])
        c.p["h.0.attn.c_attn.weight"][qk] *= factor
        c.backward(np.full((2, 70), 7), next(batches(cfg))[1])
        gradient = c.g["h.0.attn.c_attn.weight"][qk.stop :].copy()
        c.update(1)
        return c.by_layer("max_attn_logit")[0], gradient

    (small, wanted), (large, gradient) = (
        largest_logit_and_gradient(1),
        largest_logit_and_gradient(2e3),
    )
    assert small < 10 < 1e6 < large
    close(gradient, wanted, 1e-5, "gradient of v")


@pytest.mark.parametrize("name", ["wte.weight", "h.0.attn.c_attn.weight"])
def test_a_norm_of_what_overflows_is_not_a_number(name, cuda):
    """As in train_gpt.c: squares beyond a float do not make 0, and a loss that looks sound. Of
    c_attn only q and k: after v the norms of the MLP and of the head would overflow too."""
    cfg = config(layers=1)
    c = model(cuda, cfg)
    c.p[name][: 2 * cfg["d"]] *= 1e21
    assert not np.isfinite(c.forward(*next(batches(cfg))))


@pytest.mark.parametrize("case", ["everything", "deep", "two_symbols", "head_of_80", "together"])
def test_rounds(case, rounds, float_library):
    check_fp32(rounds, case, reference(float_library, case))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_round_to_bf16(precision, cuda, cuda_bf16, float_library):
    """As train_gpt.c's. A number of the bf16 build is that already."""
    x = np.random.default_rng(0).standard_normal((700, 24)).astype(np.float32)
    wanted = float_library.round_to_bf16(x)
    assert (dict(fp32=cuda, bf16=cuda_bf16)[precision].round_to_bf16(x) == wanted).all()
    assert (wanted != x).any()


def test_bf16_logits_change_nothing_in_bf16(cuda_bf16):
    same_bits(*(steps(cuda_bf16, config(bf16_logits=on), 2) for on in (0, 1)))


@pytest.mark.parametrize("rows, C", [(1, 8), (5, 24), (3, 1024), (6, 1032), (2, 4104), (700, 40)])
def test_layernorm(rows, C, cuda, float_library):
    """Widths that fill one warp to many, and more rows than blocks."""
    rng = np.random.default_rng(0)
    x, w, dout = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((rows, C), C, (rows, C))
    )
    x += 3
    expected = float_library.layernorm_forward(x, w)
    for actual, wanted in zip(cuda.layernorm_forward(x, w), expected):
        close(actual, wanted, 1e-4, "forward")
    for actual, wanted in zip(
        cuda.layernorm_backward(dout, x, w, *expected[1:]),
        float_library.layernorm_backward(dout, x, w, *expected[1:]),
    ):
        close(actual, wanted, 1e-4, "backward", floor=1e-3)


@pytest.mark.parametrize("precision, rounding", [("fp32", 1e-6), ("bf16", 2**-7)])
@pytest.mark.parametrize("rows, C, scale", [(33, 40, 0.5), (128, 64, 0.5), (16, 64, 1e20)])
def test_matmul_gelu(rows, C, scale, precision, rounding, cuda, cuda_bf16):
    """A product and its GELU, and the gradients of the product that follows, against float64, also
    where x^2 is no float. bf16 rounds to 2^-9, twice or thrice."""
    library = dict(fp32=cuda, bf16=cuda_bf16)[precision]
    rng = np.random.default_rng(0)
    # bf16 holds these numbers: the library does not change them
    inp, weight, dout, weight2 = (
        np.asarray(x, ml_dtypes.bfloat16).astype(np.float32)
        for x in (
            rng.standard_normal((rows, C)),
            rng.standard_normal((4 * C, C)) * scale,
            rng.standard_normal((rows, C)),
            rng.standard_normal((C, 4 * C)),
        )
    )
    living = model(library, config())  # it brings cuBLAS
    out, fc, dfc = (library.empty(rows, 4 * C) for _ in range(3))
    dweight = library.empty(C, 4 * C)
    library.call("matmul_gelu", out, fc, dfc, dweight, inp, weight, dout, weight2, rows, C, 4 * C)
    del living

    inp, weight, dout, weight2 = (x.astype(float) for x in (inp, weight, dout, weight2))
    x, d = inp @ weight.T, dout @ weight2
    near = np.clip(fc.astype(float), -30, 30)  # farther out gelu is x or 0
    tanh = np.tanh(np.sqrt(2 / np.pi) * (near + 0.044715 * near**3))
    slope = (1 + tanh) / 2 + near * (1 - tanh**2) / 2 * np.sqrt(2 / np.pi) * (
        1 + 3 * 0.044715 * near**2
    )
    # A sum in float is off in proportion to the sum of its terms' sizes.
    x_terms, d_terms = abs(inp) @ abs(weight).T, abs(dout) @ abs(weight2)
    for actual, wanted, size, terms, what in (
        (fc, x, x, x_terms, "product"),
        (out, fc * (1 + tanh) / 2, x, x_terms, "gelu"),
        (dfc, slope * d, d, d_terms, "gradient"),
        (dweight, dout.T @ out.astype(float), 0, abs(dout).T @ abs(out), "weight's gradient"),
    ):
        assert (abs(actual - wanted) <= rounding * abs(size) + 1e-6 * terms).all(), what


# bf16 has 8 bits: every factor of a product is off by up to 2^-9. Measured against fp32, over these
# cases: the loss differs by up to 0.3%, attention logits by 1%, a tensor's gradient by 0.5% to 6%
# (most of them by 1%; q_norm's and k_norm's, sums that cancel, by more). Adam then makes full steps
# of gradients that are 0 but for rounding, so after the first step only the loss is compared.
BF16_CASES = [
    "odd",
    "odd_off",
    "deep",
    "two_symbols",
    "c40",
    "head_of_64",
    "full",
    "full_normed",
    "everything",
    *MORE,
]
BF16 = dict(loss=5e-3, act_rms=5e-3, logits=2e-2, norm=3e-2)
BF16_GRADIENT, BF16_LOSS_AFTER = 8e-2, 2e-2


@pytest.mark.parametrize("case", BF16_CASES)
def test_bf16(case, cuda_bf16, float_library, monkeypatch):
    """Measures and gradients of the first step, the second's loss; the same bits in every order of
    the threads."""
    cfg = config(**SHAPES[case])
    first, wanted = steps(cuda_bf16, cfg, 2), reference(float_library, case)
    for name, tolerance in BF16.items():
        close(first[0][0][name], wanted[0][0][name], tolerance, name)
    all_close(first[0][1], wanted[0][1], BF16_GRADIENT, "gradient", norm=np.linalg.norm)
    close(first[1][0]["loss"], wanted[1][0]["loss"], BF16_LOSS_AFTER, "loss of step 2")
    for order in ORDERS[1:] or ORDERS:
        monkeypatch.setenv("CUDA_EMU_ORDER", order)
        same_bits(first, steps(cuda_bf16, cfg, 1))


# without attn_cap_normed: its scores are so alike that q's and k's gradients are mostly rounding
@pytest.mark.parametrize("case", [case for case in CURES if case != "attn_cap_normed"])
def test_cures_bf16(case, cuda_bf16, float_library, monkeypatch):
    """As test_bf16; and of the weights that Muon made, the next losses."""
    cfg, wanted = config(**CURES[case]), reference(float_library, case)
    first = steps(cuda_bf16, cfg, 3, cured)
    for name, tolerance in BF16.items():
        close(first[0][0][name], wanted[0][0][name], tolerance, name)
    all_close(first[0][1], wanted[0][1], BF16_GRADIENT, "gradient", norm=np.linalg.norm)
    for step in 1, 2:
        close(first[step][0]["loss"], wanted[step][0]["loss"], BF16_LOSS_AFTER, f"loss {step + 1}")
    for order in ORDERS[1:] or ORDERS:
        monkeypatch.setenv("CUDA_EMU_ORDER", order)
        same_bits(first, steps(cuda_bf16, cfg, 2, cured))


def test_bf16_is_bf16(cuda, cuda_bf16, float_library):
    """What test_bf16 allows is not fp32: each library has the precision that it was built for."""
    fp32, bf16 = (steps(library, config(), 1)[0][0]["loss"] for library in (cuda, cuda_bf16))
    exact = reference(float_library, "odd")[0][0]["loss"]
    assert abs(fp32 / exact - 1) < 2e-6 < abs(bf16 / exact - 1)


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-5), ("bf16", 2e-2)])
@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_micro_batches(micro_batch, precision, tolerance, cuda, cuda_bf16):
    """A batch of 5 in parts, the last of them smaller, gives what the whole does."""
    library = dict(fp32=cuda, bf16=cuda_bf16)[precision]
    cfg = config(batch=5, z_loss=1e-1, eps=1e-3)
    whole, parts = (steps(library, dict(cfg, **x), 2) for x in ({}, dict(micro_batch=micro_batch)))
    same_steps(parts, whole, tolerance)


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_micro_batches_of_the_cures(micro_batch, cuda):
    """The same; a head's largest score is that of the whole batch."""
    cfg = config(**CURES["together"] | dict(batch=5))
    whole, parts = (
        steps(cuda, dict(cfg, **x), 3, cured) for x in ({}, dict(micro_batch=micro_batch))
    )
    same_steps(parts, whole, 1e-5)


def same_steps(parts, whole, tolerance):
    for step, ((seen, *tensors), (wanted_seen, *wanted)) in enumerate(zip(parts, whole), 1):
        seen_close(seen, wanted_seen, tolerance, step)
        for x, y, what in zip(tensors, wanted, ("gradient", "weight", "m", "v")):
            all_close(x, y, tolerance, f"step {step} {what}", norm=np.linalg.norm)


# ---- the program

TINY = dict(
    d=16, layers=1, heads=2, T=8, batch=3, eval_tokens=64, log_every=1, eval_every=2, lr="1e-2"
)
ALL_CURES = dict(
    attn_cap=3, qk_clip=0.1, optimizer="muon", gate=1, peri_ln=1, cautious=1, wd=0.1, qk_norm=0
)
C_PROGRAM = os.environ.get("TRAIN_GPT", ROOT / "train_gpt")


def run(program, *words, status=0, cwd=None, settings=(), **flags):
    """Runs a trainer with these words and flags; returns what it printed and, where it should fail,
    its complaint. status None: any failure that is not a signal's."""
    flags = [str(x) for name, value in flags.items() for x in ("-" + name, value)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        **{"CUDA_EMU_" + k: str(v) for k, v in dict(settings).items()},
    }
    result = subprocess.run(
        [program, *map(str, words), *flags],
        cwd=cwd,
        env=environment,
        capture_output=True,
        timeout=600,
        stdin=subprocess.DEVNULL,
    )
    out, said = result.stdout.decode(errors="replace"), result.stderr.decode(errors="replace")
    wanted = (1, 2) if status is None else (status,)
    assert result.returncode in wanted, f"status {result.returncode}: {said}{out}"
    return out if status == 0 else said


def log(folder):
    with open(folder / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


# what train_gpt.c alone measures
UNMEASURED = ("q_rms", "k_rms", "qk_cosine", "block_rms", "c_fc_update", "attn_c_proj_update")


def same_log(actual, wanted, tolerance):
    """Every column of log.csv that both measure, but the speed."""
    assert len(actual) == len(wanted) and actual[0].keys() == wanted[0].keys()
    for a, b in zip(actual, wanted):
        for name in a.keys() - {"tokens_per_second"}:
            if name.startswith(UNMEASURED):
                continue
            assert bool(a[name]) == bool(b[name]), name
            if a[name]:
                close(
                    float(a[name]),
                    float(b[name]),
                    tolerance,
                    f"step {a['step']} {name}",
                    floor=1e-6,
                )


@pytest.mark.parametrize(
    "flags",
    [
        dict(),
        dict(qk_norm=0, mu_param="full", base_d=8, z_loss=0.1),
        dict(mu_param="intermediate", base_d=8, scale="d_h", rms_lr=1),
        dict(micro_batch=2),
        dict(batch=10, micro_batch=1),
        dict(steps=12, log_every=4, eval_every=0),
        dict(vocab=131),
        dict(layers=0, rms_lr=1),
        dict(layers=0, optimizer="muon"),
        ALL_CURES,
        dict(ALL_CURES, steps=12, log_every=4, eval_every=0, micro_batch=2),
        dict(qk_clip=0.1, qk_norm=0, steps=12, log_every=4, eval_every=6, layers=2),
        dict(optimizer="muon", rms_lr=1, layers=2),
    ],
    ids=str,
)
def test_log(flags, program, tmp_path):
    """A run of each writes the same log: initial loss, losses, norms, logits, RMS of every kind;
    also where some steps are not logged, and a graph of either sort is captured and launched."""
    flags = {**TINY, "steps": 5, **flags}
    run(program, **flags, out=tmp_path / "cuda")
    flags.pop("micro_batch", None)
    run(C_PROGRAM, **flags, out=tmp_path / "c")
    same_log(log(tmp_path / "cuda"), log(tmp_path / "c"), 1e-4)
    empty = {name for name in log(tmp_path / "c")[-1] if name.startswith(UNMEASURED)}
    assert len(empty) == 6 * flags.get("layers", TINY["layers"])
    assert not any(row[name] for row in log(tmp_path / "cuda") for name in empty)


@pytest.mark.parametrize("first", ["c", "cuda"])
def test_checkpoint_goes_on_in_the_other(first, program, tmp_path):
    """Four steps by one trainer, then eight more by each: the same log, weights and moments."""
    programs = {"c": C_PROGRAM, "cuda": program}
    run(programs[first], **TINY, steps=4, out=tmp_path / "c")
    shutil.copytree(tmp_path / "c", tmp_path / "cuda")
    for name, trainer in programs.items():
        run(trainer, "-resume", steps=8, out=tmp_path / name)
    same_log(log(tmp_path / "cuda"), log(tmp_path / "c"), 1e-4)
    tensors = {
        name: safetensors.numpy.load_file(tmp_path / name / "model.safetensors")
        for name in programs
    }
    all_close(tensors["cuda"], tensors["c"], 1e-4, "checkpoint", norm=np.linalg.norm)
    words = dict(sample=40, temperature=0, out=tmp_path / "c")
    sampled = run(program, **words)
    assert sampled == run(C_PROGRAM, **words) and len(sampled) > 1


def test_init_eval_and_prompt(program, tmp_path):
    """A run from given weights, the loss of a saved model and a prompt's continuation are those of
    train_gpt.c."""
    run(C_PROGRAM, **TINY, steps=6, qk_norm=0, out=tmp_path / "start")
    init, found = tmp_path / "start/model.safetensors", []
    for name, trainer in {"c": C_PROGRAM, "cuda": program}.items():
        run(trainer, **TINY, init=init, steps=4, schedule="wsd", out=tmp_path / name)
        said = run(trainer, eval=1, out=tmp_path / "c")
        text = run(trainer, sample=20, prompt="Munlu wehe", temperature=0, out=tmp_path / "c")
        found.append((float(re.search("loss ([0-9.]+)", said)[1]), text))
    same_log(log(tmp_path / "cuda"), log(tmp_path / "c"), 1e-4)
    assert abs(found[0][0] - found[1][0]) < 1e-4 and found[0][1] == found[1][1]
    assert abs(found[0][0] - float(log(tmp_path / "c")[-1]["val_loss"])) < 1e-6
    assert found[0][1].startswith("Munlu wehe") and len(found[0][1]) >= 30


@pytest.mark.parametrize("more", [{}, ALL_CURES], ids=["", "cures"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_resumed(precision, more, programs, tmp_path):
    """Six steps are three and three more, to the bit: so after each the weights that products read
    are the new parameters."""
    program, flags = programs[precision], {**TINY, "eval_every": 1, "warmup": 0, "min_lr": 1}
    flags.update(more)
    run(program, **flags, steps=6, out=tmp_path / "whole")
    run(program, **flags, steps=3, out=tmp_path / "parts")
    run(program, "-resume", steps=6, out=tmp_path / "parts")
    same_log(log(tmp_path / "parts"), log(tmp_path / "whole"), 0)


@pytest.mark.parametrize("micro_batch", [(), ("-micro_batch", "1")])
def test_stopped(micro_batch, program, tmp_path):
    """It names the command that goes on with it: this program, not train_gpt, with its memory."""
    flags = {**TINY, "steps": 10**6, "log_every": 1}
    words = [str(x) for name, value in flags.items() for x in ("-" + name, value)]
    command = [program, *words, *micro_batch, "-out", "a b"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=-1, text=True)
    while not (tmp_path / "a b/log.csv").exists() or len(log(tmp_path / "a b")) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGINT, said
    command = [str(program), "-resume", *micro_batch, "-out", "a b"]
    assert said.splitlines()[-1] == shlex.join(command)


def test_sweep(program, tmp_path):
    """Two learning rates: a folder each, one summary, as train_gpt's."""
    flags = {**TINY, "lr": "1e-3,1e-1", "steps": 4}
    printed = run(program, **flags, out=tmp_path / "cuda")
    run(C_PROGRAM, **flags, out=tmp_path / "c")
    rows = {}
    for name in "cuda", "c":
        with open(tmp_path / name / "summary.csv", newline="") as file:
            rows[name] = list(csv.DictReader(file))
    assert [r["lr"] for r in rows["cuda"]] == ["1e-3", "1e-1"] and rows["cuda"][0].keys() == rows[
        "c"
    ][0].keys()
    for a, b in zip(rows["cuda"], rows["c"]):
        for name in "initial_loss", "final_loss", "max_attn_logit", "log_z", "grad_norm":
            close(float(a[name]), float(b[name]), 1e-3, name)
    assert "LR sensitivity" in printed


@pytest.mark.parametrize("more", [{}, dict(optimizer="muon", qk_clip=0.1)], ids=str)
def test_diverged(more, program, tmp_path):
    """A loss that is not finite ends the run at the same step in both, with the weights of that
    step."""
    flags = {
        **TINY,
        "steps": 30,
        "lr": "1e30",
        "clip": 0,
        "warmup": 0,
        "qk_norm": 0,
        "eval_every": 0,
        "log_every": 4,
        **more,
    }
    run(program, **flags, out=tmp_path / "cuda")
    run(C_PROGRAM, **flags, out=tmp_path / "c")
    a, b = (
        next(csv.DictReader(open(tmp_path / name / "summary.csv", newline="")))
        for name in ("cuda", "c")
    )
    assert a["diverged"] == b["diverged"] == "1" and a["diverged_step"] == b["diverged_step"] != ""
    assert [row["step"] for row in log(tmp_path / "cuda")] == [
        row["step"] for row in log(tmp_path / "c")
    ]
    cuda, c = (
        safetensors.numpy.load_file(tmp_path / name / "model.safetensors") for name in ("cuda", "c")
    )
    for name, x in c.items():
        assert np.array_equal(np.isfinite(cuda[name]), np.isfinite(x)), name


def test_a_gradient_whose_square_overflows_ends_the_run(program, tmp_path):
    """At the same step in both. The loss itself stays finite."""
    flags = {**TINY, "steps": 9, "z_loss": 1e25, "clip": 0, "log_every": 1, "eval_every": 0}
    for name, trainer in ("cuda", program), ("c", C_PROGRAM):
        run(trainer, **flags, out=tmp_path / name)
        (row,) = csv.DictReader(open(tmp_path / name / "summary.csv", newline=""))
        assert (row["diverged"], row["diverged_step"]) == ("1", "2"), name
        rows = log(tmp_path / name)
        assert float(rows[1]["grad_norm"]) > 1e20 and np.isfinite(float(rows[1]["train_loss"]))


@pytest.mark.parametrize(
    "words",
    [
        "-h",
        "-lrr 1",
        "-d 3",
        "-steps x",
        "-resume -out nowhere",
        "-data nowhere.txt",
    ],
)
def test_words(words, program, tmp_path):
    """-h and complaints are train_gpt's, and no file is left."""
    said = []
    for p in program, C_PROGRAM:
        result = subprocess.run([p, *words.split()], cwd=tmp_path, capture_output=True, text=True)
        text = (result.stdout + result.stderr).replace(str(p), "PROGRAM")
        said.append((result.returncode, text.replace(f"{Path(p).name}: ", "PROGRAM: ")))
    assert said[0] == said[1] and not list(tmp_path.iterdir())


@pytest.mark.parametrize("lr", ["1e-2", "1e-3,1e-2"], ids=["one run", "a sweep"])
@pytest.mark.parametrize(
    "shape",
    [
        dict(d=20, heads=1),
        dict(d=20, heads=2),
        dict(d=16, heads=4),
        dict(d=136, heads=1),
        dict(d=8200, heads=1025),
    ],
    ids=str,
)
def test_shapes_it_does_not_take(shape, lr, program, tmp_path):
    """A width or heads of no multiple of 8 channels, a width above 8192, or heads above 128: one
    line that names the trainer which takes them, before any file is touched."""
    said = run(program, status=None, cwd=tmp_path, **{**TINY, "steps": 2, **shape, "lr": lr})
    assert re.fullmatch(rf"{program.name}: -d .*\./train_gpt\b.*\n", said), said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lr", ["1e-2", "1e-3,1e-2"], ids=["one run", "a sweep"])
@pytest.mark.parametrize("words", ["-kappa", "-attention relu2", "-qk_norm model"], ids=str)
def test_flags_it_does_not_have(words, lr, program, tmp_path):
    """One line that names the flag, and the trainer which has it."""
    value = "3" if words == "-kappa" else ()
    flags = {**TINY, "steps": 2, "lr": lr}
    said = run(program, "-qk_norm", 0, *words.split(), *value, status=2, cwd=tmp_path, **flags)
    says = "train_gpt_cu does not have it; ./train_gpt does"
    assert said == f"{program.name}: {words}: {says}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_flags_without_effect(precision, programs, tmp_path):
    """-bf16_logits, where logits are bf16 anyway, and micro-batches that are the whole batch."""
    path = programs[precision]
    flags = {**TINY, "steps": 1, "warmup": 0, "out": "x", "bf16_logits": 1}
    flags["micro_batch"] = flags.get("batch", 16)
    command = [str(x) for name, value in flags.items() for x in ("-" + name, value)]
    result = subprocess.run([path, *command], cwd=tmp_path, capture_output=True, text=True)
    said = [f"{path.name}: note: -micro_batch has no effect unless it is less than -batch"]
    if precision == "bf16":
        words = "-bf16_logits has no effect in this program, which always rounds them"
        said = [f"{path.name}: note: {words}", *said]
    assert (result.returncode, result.stderr.splitlines()) == (0, said)


@pytest.mark.skipif(GPU, reason="a real GPU cannot be told to fail")
@pytest.mark.parametrize(
    "settings, words, wanted",
    [
        (
            dict(DEVICES=0),
            (),
            "no NVIDIA GPU can be used here.*no CUDA-capable device.*/train_gpt trains on the CPU",
        ),
        (
            dict(DEVICES="old"),
            (),
            "driver is for CUDA 10.0 at most, and this program was built with 13.0",
        ),
        (
            dict(MEMORY=10**6),
            (),
            "needs 0.\\d+ GB of GPU memory, and 0.001 of the .* are free; .*-micro_batch",
        ),
        (
            dict(MEMORY=10**9, TAKEN=10**9 - 10**6),
            (),
            "needs 0.\\d+ GB of GPU memory, and 0.001 of the .*'s 1 GB are free; .*-micro_batch",
        ),
        (
            dict(CAPABILITY=75),
            (),
            "compute capability 7.5, and train_gpt_cu needs 8.0; ./train_gpt trains on the CPU",
        ),
        (dict(PTX=52), (), "was not built for the .*: make -B train_gpt_cu ARCH=sm_90"),
        (dict(DEVICES=0), ("lr", "1e-3,1e-2"), "no NVIDIA GPU can be used here"),
        (dict(MEMORY=10**6), ("lr", "1e-3,1e-2"), "GB of GPU memory"),
    ],
    ids=str,
)
def test_no_gpu(settings, words, wanted, program, tmp_path):
    """One line that says what is missing and what to do, before any file is touched."""
    flags = {**TINY, "steps": 2, **dict(zip(words[::2], words[1::2]))}
    said = run(program, status=1, cwd=tmp_path, settings=settings, **flags)
    assert re.fullmatch(rf"{program.name}: .*{wanted}.*\n", said), said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision, name", [("bf16", "cu_lr3e-2"), ("fp32", "cu_fp32_lr3e-2")])
def test_its_folders_are_not_those_of_train_gpt(precision, name, programs, tmp_path):
    command = [programs[precision], "-lr", "3e-2", "-resume"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stderr
    assert f" runs/{name}/model.safetensors: no saved model" in said


@pytest.mark.skipif(GPU, reason="a real GPU cannot be told to fail")
def test_every_call_is_checked(program, tmp_path):
    """Whichever call to CUDA or cuBLAS fails, the run ends with one line."""
    flags = [
        str(x)
        for name, value in {**TINY, "steps": 2, "eval_tokens": 24, "out": "out"}.items()
        for x in ("-" + name, value)
    ]
    numbers, failed = [*range(1, 60), *range(60, 1000, 23)], 0
    for n in numbers:
        result = subprocess.run(
            [program, *flags],
            cwd=tmp_path,
            env={**os.environ, "CUDA_EMU_FAIL": str(n)},
            capture_output=True,
            text=True,
        )
        if result.returncode == 0:  # fewer than n calls in the whole run
            break
        assert result.returncode == 1, n
        assert re.fullmatch(f"{program.name}: .*\n", result.stderr), (n, result.stderr)
        failed += 1
    assert 65 < failed < len(numbers), failed


@pytest.mark.skipif(GPU, reason="on a GPU compute-sanitizer looks")
@pytest.mark.parametrize(
    "flags",
    [
        dict(micro_batch=2, vocab=300),
        dict(d=24, heads=3, T=7, layers=2, qk_norm=0),
        dict(d=80, heads=1, T=33, batch=1),
        dict(d=128, heads=1, T=35, batch=1, vocab=131),
        dict(d=8, heads=1, T=1),
        dict(ALL_CURES, d=24, heads=3, T=7, layers=2, micro_batch=2),
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_inside_of_every_allocation(precision, flags, sanitized, tmp_path):
    """Under AddressSanitizer: no access outside of a buffer, none by the host to the device's,
    nothing left unfreed."""
    flags = {**TINY, "steps": 1, "eval_tokens": 8, **flags}
    run(sanitized[precision], **flags, out=tmp_path / "out")


# ---- the real build


@pytest.mark.skipif(not NVCC, reason="nvcc is not installed")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_nvcc(precision, nvcc):
    """No warning. In bf16, no kernel spills registers or keeps an array in local memory, except two
    registers of capped attention with long heads on sm_120. In fp32, which is for checks, values
    take twice as many."""
    said = nvcc[precision].stderr
    assert nvcc[precision].returncode == 0 and "warning" not in said, said
    frames = re.findall(
        r"entry function '(\S+)' for '(\S+)'\n.*\n"
        r" +(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads",
        said,
    )
    assert len(frames) > 20
    for kernel, machine, *spilled in frames if precision == "bf16" else ():
        capped = "attention_dkv_kernelILi128ELb1E" in kernel and machine == "sm_120"
        assert spilled == ["8" if capped else "0"] * 3, (kernel, machine)


@pytest.mark.skipif(
    not GPU or not shutil.which("compute-sanitizer"), reason="needs a GPU and compute-sanitizer"
)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer(tool, precision, programs, tmp_path):
    run(
        "compute-sanitizer",
        "--tool",
        tool,
        "--error-exitcode",
        "1",
        programs[precision],
        **{**TINY, "steps": 2, "T": 40},
        out=tmp_path / "out",
    )
