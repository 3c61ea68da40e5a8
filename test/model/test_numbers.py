"""The numbers: at the edge of what flags allow a run ends sound or as diverged, never in between;
whatever the threads and however often interrupted it has the same bits; and no change of a formula,
or of a default, passes unseen (golden.csv).

    make golden    remakes test/model/golden.csv after a change that is meant; git diff shows what
                   moved
"""

import csv
import io
import itertools
import os
import shlex
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from conftest import ROOT, TEST, Model, build
from test_cli import FLAGS, PROGRAM, log, program, summary, train, words
from test_runs import assert_same_run, start, wait, write_tokens

GOLDEN = TEST / "model" / "golden.csv"
EMULATOR = shlex.split(os.environ.get("EMULATOR", ""))

# ---------------------------------------------------------------------------
# Edges

EDGES = dict(
    lr=["1", "100", "1e10", "1e30"],
    eps=["1e-30", "1", "1e30"],
    beta1=["0", "0.9999999999999998"],
    beta2=["0", "0.9999999999999998"],
    clip=["0", "1e-300"],
    wd=["100", "1e300"],
    z_loss=["0", "1e30"],
    qk_norm=["0", "model"],
    mu_param=["full"],
    base_d=["65536"],
    scale=["d_h"],
    rms_lr=["1"],
    attention=["relu2"],
    attn_cap=["1e-30", "10000"],
    optimizer=["muon"],
    cures=["-gate 1 -peri_ln 1 -cautious 1"],
    warmup=["100%"],
    steps=["0", "1"],
    min_lr=["1e30"],
    schedule=["constant", "wsd"],
    shape=["-d 2 -heads 1", "-T 1 -batch 1", "-layers 3", "-layers 0", "-qk_norm 0 -kappa 1e6"],
    qk_clip=["1e-30 -qk_norm 0 -kappa 0"],
    data=["same", "two.bin -vocab 2", "one.bin -vocab 1"],
)
VALUES = [(flag, value) for flag, values in EDGES.items() for value in values]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edges")
    (folder / "same").write_bytes(b"a" * 400)
    for name, vocab in (("one.bin", 1), ("two.bin", 2)):
        write_tokens(folder / name, np.random.default_rng(1).integers(0, vocab, 400))
    return folder


@pytest.mark.parametrize("edge", VALUES, ids="-".join)
def test_edges(corpus, tmp_path, edge):
    """Each edge alone and with every other: the run ends, and its files agree on how."""
    for other in VALUES[VALUES.index(edge) :]:
        if other[0] == edge[0] and other != edge:
            continue
        flags = dict(
            d=8, layers=1, heads=2, T=4, batch=2, steps=4, eval_tokens=8, eval_every=2, log_every=1
        )
        extra = [
            w
            for name, value in dict([edge, other]).items()
            for w in shlex.split(value if value.startswith("-") else f"-{name} {value}")
        ]
        folder, given = tmp_path / "x", dict(zip(extra[::2], extra[1::2]))
        result = program(
            *words({name: x for name, x in flags.items() if "-" + name not in given}),
            *extra,
            "-out",
            str(folder),
            cwd=corpus,
        )
        notes = result.stderr.splitlines()  # on flags without effect
        assert result.returncode == 0 and all(": note: -" in note for note in notes), extra
        row, rows = summary(folder), log(folder)
        assert (
            "-nan"
            not in (folder / "log.csv").read_text()
            + (folder / "summary.csv").read_text()
            + result.stdout
        ), extra
        broken = [
            not np.isfinite(loss) or val == np.inf
            for loss, val in zip(rows["train_loss"][1:], rows["val_loss"][1:])
        ]
        last, steps = int(rows["step"][-1]), int(given.get("-steps", flags["steps"]))
        assert np.isfinite(float(row["initial_loss"])) and not any(broken[:-1]), extra
        if any(broken):
            assert (row["diverged"], row["diverged_step"], row["final_loss"]) == (
                "1",
                str(last),
                "nan",
            ), extra
            assert "\ndiagnosis: " in result.stdout, extra
            continue
        final = float(row["final_loss"])
        assert (
            (last, row["diverged_step"]) == (steps, "")
            and np.isfinite(final)
            and final == rows["val_loss"][-1]
        ), extra
        assert row["diverged"] == str(int(not final < float(row["initial_loss"]))), extra
        # LayerNorm cannot see activations whose squares overflow; were its output then 0, the loss
        # would be log V and look sound
        assert row["diverged"] == "1" or not (rows["act_rms_residual"] > 1e19).any(), extra


def test_width_1_is_refused(tmp_path):
    for arguments, says in (
        ("-d 1", "-d: '1' is not accepted; expected a whole number, 2 .. 65536"),
        ("-d 2 -heads 2", "the head size 2/2 = 1 is odd"),
    ):
        result = program(*arguments.split(), cwd=tmp_path)
        assert result.returncode == 2 and says in result.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [1e-30, 1e-10, 1, 1e10, 1e20, 3e38])
def test_clipping_of_gradients_of_any_size(float_library, size):
    """Their squares are summed in double: the norm is right, and so is AdamW's step, up to the
    largest float."""
    c, rng = (
        Model(
            float_library,
            d=24,
            layers=1,
            heads=3,
            T=4,
            batch=1,
            vocab=7,
            lr=1e-2,
            warmup=0,
            clip=1,
            wd=0,
            eps=1e-8,
        ),
        np.random.default_rng(1),
    )
    for g in c.g.values():
        g[...] = size * rng.uniform(-1, 1, g.shape)
    g, before = ({n: x.astype(float) for n, x in tensors.items()} for tensors in (c.g, c.p))
    norm = np.sqrt(sum((x * x).sum() for x in g.values()))
    assert c.update(1) == pytest.approx(norm, rel=1e-6)
    for n, x in g.items():
        x = x * min(1, 1 / norm)
        np.testing.assert_allclose(
            before[n] - c.p[n], 1e-2 * x / (np.sqrt(x * x) + 1e-8), rtol=1e-5, atol=1e-6
        )


def test_kappa_of_an_overflow_is_not_a_number(float_library):
    """As LayerNorm's: queries and keys whose squares are no float do not become 0, which would look
    sound."""
    flags = dict(d=8, layers=1, heads=2, T=4, batch=1, vocab=7, qk_norm=0, kappa=3)
    c, tokens = Model(float_library, **flags), np.array([[1, 2, 3, 4]])
    assert np.isfinite(c.forward(tokens, tokens))
    c.p["h.0.attn.c_attn.weight"][:16] *= 1e25
    assert not np.isfinite(c.forward(tokens, tokens))


@pytest.mark.parametrize("size", [1e4, 1e10, 1e20, 1e30, 1.6e38])
def test_cross_entropy_of_huge_logits(float_library, size):
    """Loss, log Z and gradient to rounding where the largest logits are equal, and where one stands
    alone."""
    x = np.array([[1, 1, -1, 0], [1, -1, -1, -1], [0, 0, -1, -1], [-1, -1, -1, -1]]) * size
    p = np.array([[0.5, 0.5, 0, 0], [1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25] * 4])
    targets, top = np.array([1, 0, 0, 3]), x.max(-1)
    d, loss, log_z = float_library.cross_entropy(float_library.array(x), targets, 1e-4)
    wanted = p * (1 + 2e-4 * (top + np.log(1 / p.max(-1))))[:, None] - np.eye(4)[targets]
    np.testing.assert_allclose(d, wanted / 4, rtol=1e-6, atol=1e-7 * size * 1e-4)
    assert loss == pytest.approx(-np.log(p[range(4), targets]).mean(), rel=1e-6)
    assert log_z == pytest.approx((top + np.log(1 / p.max(-1))).mean(), rel=1e-6)


@pytest.mark.parametrize(
    "value, at, finite",
    [
        (-np.inf, 1, True),
        (-np.inf, 0, False),
        (np.inf, 1, False),
        (np.inf, 0, False),
        (np.nan, 1, False),
        (np.nan, 0, False),
    ],
)
@pytest.mark.parametrize("V", [4, 33])
def test_cross_entropy_of_what_is_no_number(float_library, value, at, finite, V):
    """-infinity is probability 0, and an infinite loss as the target (0); all else shows in the
    loss. Other rows are as they were."""
    x = np.random.default_rng(1).standard_normal((3, V))
    alone, *_ = float_library.cross_entropy(float_library.array(x), [0, 0, 0], 1e-4)
    x[1, at] = value
    d, loss, _ = float_library.cross_entropy(float_library.array(x), [0, 0, 0], 1e-4)
    assert (
        np.isfinite(loss) == finite
        and (d[[0, 2]] == alone[[0, 2]]).all()
        and (d[1, at] == 0 or not finite)
    )


# ---------------------------------------------------------------------------
# The same bits, and the golden numbers

# Every flag that changes the numbers, at another value than TINY's (a text: with what it needs to
# matter)
TINY = dict(
    d=16,
    layers=2,
    heads=2,
    T=8,
    batch=2,
    steps=8,
    lr="3e-2",
    warmup=3,
    eval_tokens=64,
    eval_every=4,
    log_every=4,
)
CASES = {
    name: {name: value}
    for name, value in dict(
        lr=1,
        d=24,
        layers=1,
        heads=4,
        T=5,
        batch=3,
        steps=7,
        warmup=5,
        min_lr="1e-2",
        beta1=0.5,
        beta2=0.99,
        eps="1e-3",
        wd="1e-1",
        qk_norm=0,
        z_loss=0,
        bf16_logits=1,
        seed=2,
        vocab=300,
        eval_tokens=32,
    ).items()
}
CASES |= dict(
    default={},
    clip=dict(clip=0),
    tiny_clip=dict(clip="1e-6"),
    wd_independent=dict(wd="1e-1", wd_independent=0),
    large_z_loss=dict(z_loss=1),
    **{f"mu_{kind}": dict(mu_param=kind, base_d=8) for kind in ("simple", "intermediate", "full")},
    base_d=dict(mu_param="full", base_d=4),
    scale=dict(scale="d_h"),
    rms_lr=dict(rms_lr=1),
    bigram=dict(data="bigram", vocab=50),
    no_layers=dict(layers=0),
    attention=dict(attention="relu2"),
    qk_norm_model=dict(qk_norm="model"),
    kappa=dict(kappa=10, qk_norm=0),
    schedule=dict(schedule="wsd"),
    constant=dict(schedule="constant"),
    attn_cap=dict(attn_cap=1),
    qk_clip=dict(qk_clip=1, qk_norm=0),
    optimizer=dict(optimizer="muon"),
    gate=dict(gate=1),
    peri_ln=dict(peri_ln=1),
    cautious=dict(cautious=1, wd="1e-1"),
    cures=dict(
        d=24,
        heads=3,
        T=5,
        batch=3,
        qk_norm=0,
        attn_cap=2,
        qk_clip=1,
        optimizer="muon",
        gate=1,
        peri_ln=1,
        cautious=1,
    ),
)
# mu_*; test_data.py has data, but for bigram; test_runs.py has init
NO_NUMBERS = (
    "data val init eval_every log_every checkpoint_every micro_batch resume eval sample prompt"
    " tokenizer temperature out mu_param".split()
)
COLUMNS = (
    "step lr train_loss val_loss grad_norm log_z max_attn_logit_0 act_rms_c_fc param_rms_wte"
    " update_rms_lm_head update_rms_ln_f".split()
)


def case_flags(case, **more):
    return {
        name: value for name, value in {**TINY, **CASES[case], **more}.items() if value is not None
    }


def test_every_flag_has_a_case():
    assert {*FLAGS} == {*NO_NUMBERS, *CASES} - {
        "default",
        "bigram",
        "no_layers",
        "qk_norm_model",
        "tiny_clip",
        "large_z_loss",
        "mu_simple",
        "mu_intermediate",
        "mu_full",
        "constant",
        "cures",
    }


@pytest.mark.parametrize("number, case", list(enumerate(CASES)), ids=str)
def test_threads_change_no_bit(tmp_path, monkeypatch, number, case):
    """One to eight threads; each case with one and another number."""
    # more threads than cores: none should wait awake
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    for threads in range(1, 9) if case == "default" else (1, 2 + number % 7):
        result = program(
            *words(case_flags(case)), "-out", str(threads), cwd=tmp_path, threads=threads
        )
        assert result.returncode == 0, result.stderr
        assert_same_run(tmp_path / "1", tmp_path / str(threads))


def test_what_is_logged_changes_no_bit(tmp_path):
    """-qk_clip needs the largest scores at steps that log none too."""
    for every in 1, 3:
        train(tmp_path / str(every), qk_norm=0, qk_clip=1, lr="1e-1", log_every=every)
    one, three = (load_file(tmp_path / str(every) / "model.safetensors") for every in (1, 3))
    assert one.keys() == three.keys() and all((one[n] == three[n]).all() for n in one)


def test_threads_given_as_a_list(tmp_path):
    """OMP_NUM_THREADS=3,1 gives the team three threads, and says one inside it: attention's scratch
    must be for three."""
    for threads in ("3,1", "1"):
        result = program(
            *words(case_flags("default")), "-out", threads, cwd=tmp_path, threads=threads
        )
        assert result.returncode == 0, result.stderr
    assert_same_run(tmp_path / "3,1", tmp_path / "1")


@pytest.mark.parametrize("case", CASES)
def test_an_interruption_changes_no_bit(tmp_path, case):
    """With a checkpoint now and then, stopped by a signal and gone on with: as in one go without
    checkpoints."""
    flags = words(case_flags(case, steps=60))
    assert program(*flags, "-out", "whole", cwd=tmp_path).returncode == 0
    for attempt in range(9):  # until the signal comes before the end
        folder = tmp_path / str(attempt)
        process = start(folder, *flags, "-checkpoint_every", "5")
        wait(process, lambda: (folder / "model.safetensors").exists())
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=100)
        if process.returncode:
            break
    assert process.returncode == 128 + signal.SIGTERM
    assert program("-resume", "-out", folder.name, cwd=tmp_path).returncode == 0
    assert_same_run(tmp_path / "whole", folder, but=["checkpoint_every"])


def golden_rows(case, folder):
    """The case's log by a build in double, where another order of sums or another compiler changes
    nothing before the 12th digit. EMULATOR, from the environment, runs a foreign processor's."""
    cc, flags = (
        shlex.split(os.environ.get("CC", "cc")),
        shlex.split(os.environ.get("CFLAGS", "-O1")),
    )
    double = build(
        "train_gpt_double", [*cc, "-std=gnu11", *flags, "-DDOUBLE", str(ROOT / "train_gpt.c")]
    )
    subprocess.run(
        [*EMULATOR, double, *words(case_flags(case)), "-out", case],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    with open(Path(folder) / case / "log.csv", newline="") as file:
        return [
            {"case": case, **{name: row.get(name, "") for name in COLUMNS}}
            for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize("case", CASES)
def test_golden(case, tmp_path):
    wanted = [row for row in csv.DictReader(io.StringIO(GOLDEN.read_text())) if row["case"] == case]
    rows = golden_rows(case, tmp_path)
    assert [row["step"] for row in rows] == [row["step"] for row in wanted]
    for row, right in zip(rows, wanted):
        for name in COLUMNS:
            assert float(row[name] or "nan") == pytest.approx(
                float(right[name] or "nan"), rel=1e-8, nan_ok=True
            ), f"{name} at step {row['step']}. If the change is meant: make golden"


@pytest.mark.parametrize("case", CASES)
def test_golden_of_the_program(case, tmp_path):
    """In float, with all its vector code and threads. Two cases are chaotic: they enlarge the last
    digit's rounding, which another processor does otherwise, to more than a thousandth."""
    within = 1e-2 if case in ("lr", "kappa") else 1e-5
    wanted = [row for row in csv.DictReader(io.StringIO(GOLDEN.read_text())) if row["case"] == case]
    command = [*EMULATOR, PROGRAM, *words(case_flags(case)), "-out", "x"]
    environment = dict(os.environ, OMP_NUM_THREADS="2", OMP_WAIT_POLICY="passive")
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, env=environment)
    for name in "train_loss", "val_loss":
        right = [float(row[name] or "nan") for row in wanted]
        assert log(tmp_path / "x")[name] == pytest.approx(right, rel=within, nan_ok=True)


def test_golden_cases_all_differ():
    """Each flag matters to its numbers."""
    rows = list(csv.DictReader(io.StringIO(GOLDEN.read_text())))
    seen = [
        [[row[name] for name in COLUMNS] for row in rows if row["case"] == case] for case in CASES
    ]
    assert all(a != b for a, b in itertools.combinations(seen, 2)) and {
        row["case"] for row in rows
    } == {*CASES}


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        rows = [row for case in CASES for row in golden_rows(case, folder)]
    # not before all are there: a run may fail
    with open(GOLDEN, "w", newline="") as file:
        writer = csv.DictWriter(file, ["case", *COLUMNS], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
