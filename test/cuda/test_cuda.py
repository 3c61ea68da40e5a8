"""train_gpt.cu against train_gpt.c: the same weights and batches must give the same losses,
gradients and AdamW steps. On the CPU over the stand-in cuda_emu.h, or, with GPU=1 (make test_gpu),
on this machine's GPU.
"""

import concurrent.futures
import csv
import functools
import os
import re
import shutil
import subprocess

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from conftest import ROOT, SANITIZE, TEST, Library, build, build_emu
from test_oracle import CASES, ILL_CONDITIONED, all_close, batches, close, config, model

GPU = bool(os.environ.get("GPU"))
# of a block's threads; a GPU has its own
ORDERS = ("forward",) if GPU else ("forward", "reverse", "random")
NVCC = shutil.which("nvcc")

# Beside the oracle's shapes, those that fill several of the kernels' tiles and warps. eps as in
# test_oracle.py.
MORE = dict(
    long=dict(d=16, heads=2, layers=1, T=150, eps=1e-3),
    head_of_80=dict(d=80, heads=1, layers=1, T=40, eps=1e-3),
    head_of_150=dict(d=150, heads=1, layers=1, T=5, qk_norm=0, eps=1e-3),
    many_symbols=dict(d=8, heads=1, layers=1, vocab=5003, T=4, eps=1e-3),
)
SHAPES = {**CASES, **MORE}
LARGE = {"c64", "c40", "head_of_64", *MORE}


def shim(*flags):
    """cu_shim.cu as a library."""
    if GPU:
        return build(
            "cu_shim_gpu",
            [
                NVCC,
                "-std=c++17",
                "-O3",
                "-arch=native",
                "-Xcompiler",
                "-fPIC",
                "-shared",
                "-I",
                str(ROOT),
                *(f for f in flags if f != "-O0"),
                str(TEST / "cuda" / "cu_shim.cu"),
                "-lcublas",
                "-lcublasLt",
            ],
            ".so",
        )
    return build_emu(
        "cu_shim", TEST / "cuda" / "cu_shim.cu", "-fPIC", "-shared", *flags, suffix=".so"
    )


def rounds_shim():
    """The same of train_gpt.cu with one block where its kernels have hundreds: each must go round
    and round, as on larger models."""
    text = (ROOT / "train_gpt.cu").read_text()
    for name in "ROW_BLOCKS", "HEAD_BLOCKS", "SUM_BLOCKS":
        text, count = re.subn(rf"\b{name} = [\d *]+", f"{name} = 1", text)
        assert count == 1, name
    program = ROOT / "build" / "train_gpt_rounds.cu"
    program.parent.mkdir(exist_ok=True)
    program.write_text(text)
    return shim("-O0", f'-DPROGRAM="{program}"')


def trainer(*flags):
    if GPU:
        return ROOT / "train_gpt_cu"
    return build_emu("train_gpt_cu_emu", ROOT / "train_gpt.cu", *flags)


def real_build():
    """What nvcc and its assembler say of the real program on two architectures."""
    architectures = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in (80, 90)]
    return NVCC and subprocess.run(
        [
            NVCC,
            "-std=c++17",
            "-O3",
            *architectures,
            "-Werror",
            "all-warnings",
            "-Xptxas",
            "-v",
            "-c",
            "-o",
            os.devnull,
            str(ROOT / "train_gpt.cu"),
        ],
        capture_output=True,
        text=True,
    )


BUILDS = dict(
    cuda=shim,
    program=lambda: trainer("-O0"),
    rounds=rounds_shim,
    sanitized=lambda: trainer(*SANITIZE),
    nvcc=real_build,
)


@pytest.fixture(scope="session")
def builds(request):
    """What the chosen tests need, two at a time and beside the tests."""
    wanted = {name for item in request.session.items for name in item.fixturenames}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(make) for name, make in BUILDS.items() if name in wanted}


@pytest.fixture(scope="session")
def cuda(builds):
    return Library(False, builds["cuda"].result())


@pytest.fixture(scope="session")
def rounds(builds):
    return Library(False, builds["rounds"].result())


@pytest.fixture(scope="session")
def program(builds):
    return builds["program"].result()


@pytest.fixture(scope="session")
def sanitized(builds):
    return builds["sanitized"].result()


@pytest.fixture(scope="session")
def nvcc(builds):
    return builds["nvcc"].result()


def steps(library, cfg, number=5):
    """For each step: its loss, log Z, largest attention logits, RMS of activations and gradient
    norm; its gradients; and the weights and moments after it."""
    m, stream, out = model(library, cfg), batches(cfg), []
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
                    logits=m.max_attn_logits(),
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
    return steps(library, config(**SHAPES[case]), 2 if case in MORE else 5)


def same_bits(a, b):
    for step, (x, y) in enumerate(zip(a, b), 1):
        for name in x[0]:
            assert np.array_equal(x[0][name], y[0][name]), f"step {step} {name}"
        for tensors, others, what in zip(x[1:], y[1:], ("gradient", "weight", "m", "v")):
            for name in tensors:
                assert (tensors[name] == others[name]).all(), f"step {step} {what} {name}"


def check_fp32(library, case, wanted):
    """To 1e-4: what a step measures, every gradient, and the weights and moments after it. Returns
    the steps."""
    tolerance, out = (
        ILL_CONDITIONED.get(("float", case), 1e-4),
        steps(library, dict(config(**SHAPES[case]), dtype="fp32"), len(wanted)),
    )
    for step, ((seen, *tensors), (wanted_seen, *wanted)) in enumerate(zip(out, wanted), 1):
        for name in seen:
            close(seen[name], wanted_seen[name], tolerance, f"step {step} {name}")
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
        same_bits(
            first,
            steps(cuda, dict(config(**SHAPES[case]), dtype="fp32"), 2 if case in LARGE else 5),
        )


def test_attention_at_logits_of_1e6(cuda):
    """Where all tokens are the same so are all v, and whatever q and k are each query's weights sum
    to 1: their gradients too."""
    cfg = config(layers=1, batch=2, T=70, qk_norm=0, dtype="fp32")

    def largest_logit_and_gradient(factor):
        c, qk = model(cuda, cfg), slice(0, 2 * cfg["d"])
        c.p["h.0.attn.c_attn.weight"][qk] *= factor
        c.backward(np.full((2, 70), 7), next(batches(cfg))[1])
        gradient = c.g["h.0.attn.c_attn.weight"][qk.stop :].copy()
        c.update(1)
        return c.max_attn_logits()[0], gradient

    (small, wanted), (large, gradient) = (
        largest_logit_and_gradient(1),
        largest_logit_and_gradient(2e3),
    )
    assert small < 10 < 1e6 < large
    close(gradient, wanted, 1e-5, "gradient of v")


@pytest.mark.parametrize("name", ["wte.weight", "h.0.attn.c_attn.weight"])
def test_a_norm_of_what_overflows_is_not_a_number(name, cuda):
    """As in train_gpt.c: squares beyond a float do not make 0, and a loss that looks sound."""
    cfg = config(layers=1, dtype="fp32")
    c = model(cuda, cfg)
    c.p[name][...] *= 1e21
    assert not np.isfinite(c.forward(*next(batches(cfg))))


@pytest.mark.parametrize("case", ["everything", "deep", "two_symbols"])
def test_rounds(case, rounds, float_library):
    check_fp32(rounds, case, reference(float_library, case))


@pytest.mark.parametrize("rows, C", [(1, 1), (5, 7), (3, 1024), (6, 1032), (2, 4104), (700, 40)])
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
    floor = 1e-3 if C > 1 else 1e9  # the norm of one number is 0, but for rounding
    for actual, wanted in zip(
        cuda.layernorm_backward(dout, x, w, *expected[1:]),
        float_library.layernorm_backward(dout, x, w, *expected[1:]),
    ):
        close(actual, wanted, 1e-4, "backward", floor=floor)


@pytest.mark.parametrize(
    "rows, C, scale", [(33, 40, 0.5), (128, 64, 0.5), (16, 64, 1e20), (5, 12, 0.5), (1, 8, 0.5)]
)
def test_gelu_in_products(rows, C, scale, cuda):
    """GELU as a product's last step and as a pass of its own, against float64, also where x^2 is no
    float. They round differently, so that it shows which one ran."""
    # it brings cuBLAS
    rng, living = (np.random.default_rng(0), model(cuda, dict(config(), dtype="bf16")))
    inp, weight, dout, weight2 = (
        np.asarray(rng.standard_normal(shape), ml_dtypes.bfloat16).astype(np.float32)
        for shape in ((rows, C), (4 * C, C), (rows, C), (C, 4 * C))
    )
    weight, seen = np.asarray(weight * scale, ml_dtypes.bfloat16).astype(np.float32), {}
    x, d = inp.astype(float) @ weight.T, dout.astype(float) @ weight2
    for fused in 0, 1:
        out, fc, dfc = seen[fused] = [cuda.empty(rows, 4 * C) for _ in range(3)]
        cuda.call("matmul_gelu", out, fc, dfc, inp, weight, dout, weight2, rows, C, 4 * C, fused)
        near = np.clip(fc.astype(float), -30, 30)  # farther out gelu is x or 0
        tanh = np.tanh(np.sqrt(2 / np.pi) * (near + 0.044715 * near**3))
        slope = (1 + tanh) / 2 + near * (1 - tanh**2) / 2 * np.sqrt(2 / np.pi) * (
            1 + 3 * 0.044715 * near**2
        )
        for actual, wanted, size, what in (
            (fc, x, x, "product"),
            (out, fc * (1 + tanh) / 2, x, "gelu"),
            (dfc, slope * d, d, "gradient"),
        ):
            # twice or thrice rounded to 2^-9
            assert (abs(actual - wanted) <= 2**-7 * abs(size) + 1e-6).all(), what
    same = [np.array_equal(a, b) for a, b in zip(seen[0], seen[1])]
    assert (
        same == [True, True, True] if C % 8 else same[1] and (scale > 1 or not (same[0] or same[2]))
    )
    assert living.size


@pytest.mark.skipif(GPU, reason="a real GPU cannot pretend to be another")
def test_gelu_elsewhere(program, tmp_path):
    """On another GPU, and where cuBLASLt knows no algorithm, GELU is a pass of its own, whose
    losses are a little different."""
    logs = []
    for i, settings in enumerate([{}, dict(EPILOGUES=0), dict(CAPABILITY=80)]):
        run(program, **{**TINY, "steps": 1}, dtype="bf16", out=tmp_path / str(i), settings=settings)
        logs.append(
            [
                {n: x for n, x in row.items() if n != "tokens_per_second"}
                for row in log(tmp_path / str(i))
            ]
        )
    assert logs[0] != logs[1] == logs[2]
    same_log(log(tmp_path / "0"), log(tmp_path / "1"), 5e-2)


# bf16 has 8 bits: every factor of a product is off by up to 2^-9. Measured against fp32, over these
# cases: the loss differs by up to 0.3%, attention logits by 1%, a tensor's gradient by 0.5% to 6%
# (most of them by 1%; q_norm's and k_norm's, sums that cancel, by more). Adam then makes full steps
# of gradients that are 0 but for rounding, so after the first step only the loss is compared.
BF16_CASES = [
    "odd",
    "odd_off",
    "deep",
    "two_symbols",
    "head_of_2",
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
def test_bf16(case, cuda, float_library, monkeypatch):
    """Measures and gradients of the first step, the second's loss; the same bits in every order of
    the threads."""
    cfg = dict(config(**SHAPES[case]), dtype="bf16")
    first, wanted = steps(cuda, cfg, 2), reference(float_library, case)
    for name, tolerance in BF16.items():
        close(first[0][0][name], wanted[0][0][name], tolerance, name)
    all_close(first[0][1], wanted[0][1], BF16_GRADIENT, "gradient", norm=np.linalg.norm)
    close(first[1][0]["loss"], wanted[1][0]["loss"], BF16_LOSS_AFTER, "loss of step 2")
    for order in ORDERS[1:] or ORDERS:
        monkeypatch.setenv("CUDA_EMU_ORDER", order)
        same_bits(first, steps(cuda, cfg, 1))


def test_bf16_is_bf16(cuda, float_library):
    """What test_bf16 allows is not fp32: both dtypes do what they say, and auto is bf16 where the
    GPU has it."""
    loss = {
        dtype: steps(cuda, dict(config(), dtype=dtype), 1)[0][0]["loss"]
        for dtype in ("fp32", "bf16", "auto")
    }
    exact = reference(float_library, "odd")[0][0]["loss"]
    assert (
        abs(loss["fp32"] / exact - 1) < 2e-6 < abs(loss["bf16"] / exact - 1)
        and loss["auto"] == loss["bf16"]
    )


@pytest.mark.parametrize("dtype, tolerance", [("fp32", 1e-5), ("bf16", 2e-2)])
@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_micro_batches(micro_batch, dtype, tolerance, cuda):
    """A batch of 5 in parts, the last of them smaller, gives what the whole does."""
    cfg = dict(config(batch=5, z_loss=1e-1, eps=1e-3), dtype=dtype)
    whole, parts = steps(cuda, cfg, 2), steps(cuda, dict(cfg, micro_batch=micro_batch), 2)
    for step, ((seen, *tensors), (wanted_seen, *wanted)) in enumerate(zip(parts, whole), 1):
        for name in seen:
            close(seen[name], wanted_seen[name], tolerance, f"step {step} {name}")
        for x, y, what in zip(tensors, wanted, ("gradient", "weight", "m", "v")):
            all_close(x, y, tolerance, f"step {step} {what}", norm=np.linalg.norm)


# ---- the program

TINY = dict(
    d=16, layers=1, heads=2, T=8, batch=3, eval_tokens=64, log_every=1, eval_every=2, lr="1e-2"
)
C_PROGRAM = os.environ.get("TRAIN_GPT", ROOT / "train_gpt")


def run(program, *words, status=0, cwd=None, settings=(), **flags):
    """Runs a trainer with these words and flags; returns what it printed and, where it should fail,
    its complaint."""
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
    assert result.returncode == status, f"status {result.returncode}: {said}{out}"
    return said if status else out


def log(folder):
    with open(folder / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def same_log(actual, wanted, tolerance):
    """Every column of log.csv but the speed."""
    assert len(actual) == len(wanted) and actual[0].keys() == wanted[0].keys()
    for a, b in zip(actual, wanted):
        for name in a.keys() - {"tokens_per_second"}:
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
        dict(micro_batch=2),
        dict(steps=12, log_every=4, eval_every=0),
    ],
    ids=str,
)
def test_log(flags, program, tmp_path):
    """A run of each writes the same log: initial loss, losses, norms, logits, RMS of every kind;
    also where some steps are not logged, and a graph of either sort is captured and launched."""
    flags = {**TINY, "steps": 5, **flags}
    run(program, **flags, dtype="fp32", out=tmp_path / "cuda")
    flags.pop("micro_batch", None)
    run(C_PROGRAM, **flags, out=tmp_path / "c")
    same_log(log(tmp_path / "cuda"), log(tmp_path / "c"), 1e-4)


@pytest.mark.parametrize("first", ["c", "cuda"])
def test_checkpoint_goes_on_in_the_other(first, program, tmp_path):
    """Four steps by one trainer, then eight more by each: the same log, weights and moments."""
    programs = {"c": (C_PROGRAM,), "cuda": (program, "-dtype", "fp32")}
    run(*programs[first], **TINY, steps=4, out=tmp_path / "c")
    shutil.copytree(tmp_path / "c", tmp_path / "cuda")
    for name, words in programs.items():
        run(*words, "-resume", steps=8, out=tmp_path / name)
    same_log(log(tmp_path / "cuda"), log(tmp_path / "c"), 1e-4)
    tensors = {
        name: safetensors.numpy.load_file(tmp_path / name / "model.safetensors")
        for name in programs
    }
    all_close(tensors["cuda"], tensors["c"], 1e-4, "checkpoint", norm=np.linalg.norm)
    words = dict(sample=40, temperature=0, dtype="fp32", out=tmp_path / "c")
    sampled = run(program, **words)
    words.pop("dtype")
    assert sampled == run(C_PROGRAM, **words) and len(sampled) > 1


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_resumed(dtype, program, tmp_path):
    """Six steps are three and three more, to the bit: so after each the weights that products read
    are the new parameters."""
    flags = {**TINY, "eval_every": 1, "warmup": 0, "min_lr": 1}
    run(program, **flags, steps=6, dtype=dtype, out=tmp_path / "whole")
    run(program, **flags, steps=3, dtype=dtype, out=tmp_path / "parts")
    run(program, "-resume", steps=6, dtype=dtype, out=tmp_path / "parts")
    same_log(log(tmp_path / "parts"), log(tmp_path / "whole"), 0)


def test_sweep(program, tmp_path):
    """Two learning rates: a folder each, one summary, as train_gpt's."""
    flags = {**TINY, "lr": "1e-3,1e-1", "steps": 4}
    printed = run(program, **flags, out=tmp_path / "cuda", dtype="fp32")
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


def test_diverged(program, tmp_path):
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
    }
    run(program, **flags, out=tmp_path / "cuda", dtype="fp32")
    run(C_PROGRAM, **flags, out=tmp_path / "c")
    a, b = (
        next(csv.DictReader(open(tmp_path / name / "summary.csv", newline="")))
        for name in ("cuda", "c")
    )
    assert a["diverged"] == b["diverged"] == "1" and a["diverged_step"] == b["diverged_step"] != ""


@pytest.mark.parametrize(
    "words",
    [
        "-h",
        "-lrr 1",
        "-d 3",
        "-steps x",
        "-resume -out nowhere",
        "-data nowhere.txt",
        "-dtype fp64",
    ],
)
def test_words(words, program, tmp_path):
    """-h and complaints are train_gpt's, and no file is left."""
    said = []
    for p in program, C_PROGRAM:
        result = subprocess.run([p, *words.split()], cwd=tmp_path, capture_output=True, text=True)
        said.append((result.returncode, (result.stdout + result.stderr).replace(str(p), "PROGRAM")))
    assert said[0] == said[1] and not list(tmp_path.iterdir())


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
        (dict(DEVICES=0), ("lr", "1e-3,1e-2"), "no NVIDIA GPU can be used here"),
        (dict(MEMORY=10**6), ("lr", "1e-3,1e-2"), "GB of GPU memory"),
    ],
    ids=str,
)
def test_no_gpu(settings, words, wanted, program, tmp_path):
    """One line that says what is missing and what to do, before any file is touched."""
    flags = {**TINY, "steps": 2, **dict(zip(words[::2], words[1::2]))}
    said = run(program, status=1, cwd=tmp_path, settings=settings, **flags)
    assert re.search(wanted, said) and said.count("\n") == 1 and said.startswith("train_gpt: "), (
        said
    )
    assert not list(tmp_path.iterdir())


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
        assert result.returncode == 1 and re.fullmatch("train_gpt: .*\n", result.stderr), (
            n,
            result.stderr,
        )
        failed += 1
    assert 65 < failed < len(numbers), failed


@pytest.mark.skipif(GPU, reason="on a GPU compute-sanitizer looks")
@pytest.mark.parametrize(
    "flags",
    [
        dict(micro_batch=2, vocab=300),
        dict(d=24, heads=3, T=7, layers=2, qk_norm=0),
        dict(d=80, heads=1, T=33, batch=1),
        dict(d=6, heads=3, T=1),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_inside_of_every_allocation(dtype, flags, sanitized, tmp_path):
    """Under AddressSanitizer: no access outside of a buffer, none by the host to the device's,
    nothing left unfreed."""
    run(
        sanitized,
        **{**TINY, "steps": 1, "eval_tokens": 8, **flags},
        dtype=dtype,
        out=tmp_path / "out",
    )


# ---- the real build


@pytest.mark.skipif(not NVCC, reason="nvcc is not installed")
def test_nvcc(nvcc):
    """No warning, and no kernel that spills registers or keeps an array in local memory."""
    assert nvcc.returncode == 0 and "warning" not in nvcc.stderr, nvcc.stderr
    frames = re.findall(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", nvcc.stderr
    )
    assert len(frames) > 20 and set(frames) == {("0", "0", "0")}


@pytest.mark.skipif(
    not GPU or not shutil.which("compute-sanitizer"), reason="needs a GPU and compute-sanitizer"
)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer(tool, dtype, program, tmp_path):
    run(
        "compute-sanitizer",
        "--tool",
        tool,
        "--error-exitcode",
        "1",
        program,
        **{**TINY, "steps": 2, "T": 40},
        dtype=dtype,
        out=tmp_path / "out",
    )
