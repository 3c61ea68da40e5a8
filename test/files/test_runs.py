"""Whole runs: what their files say, that interruptions and threads change no bit, and the sweep."""

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

from test_cli import PROGRAM, TINY, log, program, snapshot, summary, table, train, words

MODEL = "model.safetensors"
# in log.csv, in the checkpoint
KINDS = dict(
    wte="wte",
    ln_1="ln_1",
    c_attn="attn.c_attn",
    q_norm="attn.q_norm",
    k_norm="attn.k_norm",
    gate="attn.gate",
    attn_c_proj="attn.c_proj",
    post_1="post_1",
    ln_2="ln_2",
    c_fc="mlp.c_fc",
    mlp_c_proj="mlp.c_proj",
    post_2="post_2",
    ln_f="ln_f",
    lm_head="lm_head",
)


def metadata(folder, name=MODEL):
    with safetensors.safe_open(Path(folder) / name, "numpy") as file:
        return file.metadata()


def assert_same_run(a, b, but=()):
    """Every bit of log.csv and of the final weights and moments, and every flag, but for times."""
    logs, weights = [log(x) for x in (a, b)], [load_file(Path(x) / MODEL) for x in (a, b)]
    assert list(logs[0]) == list(logs[1]) and weights[0].keys() == weights[1].keys()
    for name in logs[0].keys() - {"tokens_per_second"}:
        assert [logs[0][name].tolist()] == [
            pytest.approx(logs[1][name].tolist(), rel=0, abs=0, nan_ok=True)
        ], name
    assert [n for n, x in weights[0].items() if x.tobytes() != weights[1][n].tobytes()] == []
    flags = [
        {k: v for k, v in metadata(x).items() if k not in {"seconds", "log_bytes", *but}}
        for x in (a, b)
    ]
    assert flags[0] == flags[1]
    rows = [
        {
            k: v
            for k, v in summary(x).items()
            if k not in {"seconds", "tokens_per_second", "out", "threads", *but}
        }
        for x in (a, b)
    ]
    assert rows[0] == rows[1]


# ---------------------------------------------------------------------------
# The files


@pytest.fixture(
    scope="module",
    params=[
        dict(layers=2, d=24, heads=3, T=7, qk_norm=1),
        dict(qk_norm=0, steps=17),
        dict(steps=1, layers=3, log_every=1),
        dict(steps=1, log_every=1, optimizer="muon", gate=1, peri_ln=1, d=24, heads=3),
        dict(gate=1, peri_ln=1, attn_cap=2, qk_clip=3, qk_norm=0, cautious=1),
    ],
    ids=str,
)
def run(request, tmp_path_factory):
    flags = {**TINY, "layers": 2, "log_every": 4, "eval_every": 10, **request.param}
    folder = tmp_path_factory.mktemp("run") / 'a run, "quoted"'
    train(folder, **flags)
    return folder, flags


def test_log(run):
    folder, flags = run
    rows, L, steps = log(folder), flags["layers"], flags["steps"]
    has = dict(q_norm="qk_norm", k_norm="qk_norm", gate="gate", post_1="peri_ln", post_2="peri_ln")
    kinds = [k for k in KINDS if k not in has or flags.get(has[k], has[k] == "qk_norm")]
    by_layer = "max_attn_logit q_rms k_rms qk_cosine block_rms".split()
    by_layer += [f"{k}_{x}_rms" for k in ("c_fc", "attn_c_proj") for x in ("grad", "update")]
    assert list(rows) == [
        "step",
        "tokens",
        "lr",
        "train_loss",
        "val_loss",
        "grad_norm",
        "log_z",
        "mean_logit",
        *[f"{name}_{l}" for name in by_layer for l in range(L)],
        *[f"act_rms_{a}" for a in ("wte", "c_attn", "att", "c_fc", "residual", "logits")],
        *[f"{what}_rms_{k}" for what in ("grad", "param", "update") for k in kinds],
        "tokens_per_second",
    ]
    validated = {0, steps} | set(range(0, steps, 10))
    assert rows["step"].tolist() == sorted(validated | set(range(0, steps, flags["log_every"])))
    assert rows["tokens"].tolist() == (rows["step"] * flags["batch"] * flags["T"]).tolist()
    assert np.isfinite(rows["val_loss"]).tolist() == [step in validated for step in rows["step"]]
    for name, column in rows.items():
        assert np.isfinite(column[1:]).all() or name == "val_loss", name
        of_either_sign = name in ("val_loss", "log_z", "mean_logit") or "cosine" in name
        assert (column[1:] > 0).all() or of_either_sign, name
        assert np.isnan(column[0]) or name in ("step", "tokens", "val_loss"), name
    mean, log_z, rms = (rows[name][1:] for name in ("mean_logit", "log_z", "act_rms_logits"))
    assert (abs(mean) <= rms).all() and (mean + np.log(256) <= log_z).all()


def test_summary_follows_from_log_and_flags(run):
    folder, flags = run
    row, rows, weights = summary(folder), log(folder), load_file(folder / MODEL)
    names = program("-h", cwd=folder.parent).stdout
    assert (
        list(row)
        == re.findall(r"^-(\w+)", names, re.M)
        + """threads parameters parameters_non_embedding initial_loss best_loss
        final_loss entropy_floor diverged diverged_step max_attn_logit log_z grad_norm seconds
        tokens_per_second""".split()
    )
    for name, value in flags.items():
        assert row[name] == value or float(row[name]) == float(value), name
    assert (row["mu_param"], row["warmup"], row["data"], row["vocab"], row["out"]) == (
        "off",
        "5%",
        "synthetic",
        "256",
        str(folder),
    )
    val = rows["val_loss"][np.isfinite(rows["val_loss"])]
    logits = np.max([rows[name][1:] for name in rows if name.startswith("max_attn")])
    for name, wanted in dict(
        initial_loss=val[0],
        best_loss=val.min(),
        final_loss=val[-1],
        max_attn_logit=logits,
        log_z=rows["log_z"][-1],
        grad_norm=rows["grad_norm"][-1],
        diverged=float(val[-1] >= val[0]),
    ).items():
        assert float(row[name]) == wanted, name
    sizes = {n: x.size for n, x in weights.items() if not n.startswith("adam")}
    assert (
        int(row["parameters"])
        == sum(sizes.values())
        == int(row["parameters_non_embedding"]) + sizes["wte.weight"] + sizes["lm_head.weight"]
    )
    assert row["threads"] == "1" and row["diverged_step"] == "" and float(row["seconds"]) > 0
    assert 0.8 < float(row["entropy_floor"]) < 1.6


def test_model_holds_every_tensor_and_the_flags(run):
    folder, flags = run
    oracle = pytest.importorskip("oracle")
    weights = load_file(folder / MODEL)
    shapes = oracle.shapes({**oracle.CONFIG, **flags})
    assert {n: x.shape for n, x in weights.items()} == {
        p + n: s for n, s in shapes.items() for p in ("", "adam.m.", "adam.v.")
    }
    saved = metadata(folder)
    assert saved["step"] == str(flags["steps"])
    for name, value in flags.items():
        assert saved[name] == value or float(saved[name]) == float(value), name


def test_rms_columns_follow_from_the_weights_and_moments(run):
    """The last row's, from the checkpoint: the parameters, the update without the learning rate,
    and after the first step the gradient. Then Muon's update follows from its momentum, too: both
    are multiples of the gradient."""
    oracle = pytest.importorskip("oracle")
    folder, flags = run
    rows, weights, step = log(folder), load_file(folder / MODEL), flags["steps"]
    rms = lambda tensors: np.sqrt((np.concatenate([x.ravel() for x in tensors]) ** 2).mean())
    total = 0
    for kind, name in KINDS.items():
        if "param_rms_" + kind not in rows:
            continue
        p, m, v = (
            [
                x.astype(float)
                for n, x in weights.items()
                if re.fullmatch(
                    re.escape(prefix) + r"(h\.\d+\.)?" + re.escape(name) + r"\.weight", n
                )
            ]
            for prefix in ("", "adam.m.", "adam.v.")
        )
        muon = flags.get("optimizer") == "muon" and name.split(".")[-1] + ".weight" in oracle.HIDDEN
        share = 0.05 if muon else 0.1  # of the first gradient in its moment
        if muon:
            assert step == 1 and not any(x.any() for x in v)
            update = [oracle.muon(0, x / share, 3 if kind == "c_attn" else 1)[1] for x in m]
        else:
            update = [
                a / (1 - 0.9**step) / (np.sqrt(b / (1 - 0.95**step)) + 1e-8) for a, b in zip(m, v)
            ]
        for what, tensors in dict(param=p, update=update).items():
            assert rows[f"{what}_rms_{kind}"][-1] == pytest.approx(rms(tensors), rel=1e-5), (
                what,
                kind,
            )
        if step == 1:
            gradient = rms(m) / share * max(1, rows["grad_norm"][-1])
            assert rows["grad_rms_" + kind][-1] == pytest.approx(gradient, rel=1e-5), kind
        total += sum(x.size for x in p) * rows["grad_rms_" + kind] ** 2
    assert rows["grad_norm"][1:] == pytest.approx(np.sqrt(total[1:]), rel=1e-6)


# ---------------------------------------------------------------------------
# Validation loss, against the oracle with the final weights


def windows(tokens, T, eval_tokens):
    n = min((len(tokens) - 1) // T, max(1, eval_tokens // T))
    return np.array([tokens[i * T : (i + 1) * T] for i in range(n)]), np.array(
        [tokens[i * T + 1 : (i + 1) * T + 1] for i in range(n)]
    )


def write_tokens(path, tokens):
    header = np.zeros(256, np.int32)
    header[:3] = 20240520, 1, len(tokens)
    path.write_bytes(header.tobytes() + np.asarray(tokens, np.uint16).tobytes())


@pytest.mark.parametrize("eval_tokens", [1, 64, 70, 10**6])
@pytest.mark.parametrize("kind", ["text", "text and val", ".bin", ".bin and val"])
def test_validation_loss(tmp_path, kind, eval_tokens):
    """The mean over the first eval_tokens tokens, in consecutive windows of T, of -val or of the
    last tenth of -data."""
    import oracle

    rng, V = np.random.default_rng(1), 300 if ".bin" in kind else 256
    flags = dict(vocab=V)
    paths = [tmp_path / (name + (".bin" if ".bin" in kind else ".txt")) for name in ("data", "val")]
    texts = [(rng.integers(0, V, n) ** 2) // V for n in (1507, 333)]  # small tokens more often
    for path, text in zip(paths, texts):
        write_tokens(path, text) if ".bin" in kind else path.write_bytes(bytes(text.tolist()))
    tokens = texts[0][len(texts[0]) - len(texts[0]) // 10 :]
    if "val" in kind:
        flags["val"], tokens = paths[1], texts[1]
    train(tmp_path / "x", data=paths[0], steps=20, **{**flags, "eval_tokens": eval_tokens})
    weights = {
        n: x.astype(float) for n, x in load_file(tmp_path / "x" / MODEL).items() if "adam" not in n
    }
    cfg = dict(oracle.CONFIG, d=16, layers=1, heads=2, T=8, vocab=V)
    row, wanted = (
        summary(tmp_path / "x"),
        oracle.loss(cfg, weights, *windows(tokens, 8, eval_tokens))[0],
    )
    assert float(row["final_loss"]) == pytest.approx(float(wanted), rel=2e-6)
    assert row["vocab"] == str(V) and weights["wte.weight"].shape == (V, 16)
    assert row["entropy_floor"] == "" and row["final_loss"] < row["initial_loss"]


@pytest.mark.parametrize("flags", [dict(T=8), dict(T=40, d=32, lr="3e-2")])
def test_no_model_goes_below_the_entropy_floor(tmp_path, flags):
    train(tmp_path / "x", steps=300, batch=16, eval_every=50, **{**flags, "eval_tokens": 8000})
    row = summary(tmp_path / "x")
    assert 0.8 < float(row["entropy_floor"]) < float(row["best_loss"]) < 2.5


# ---------------------------------------------------------------------------
# The same bits


@pytest.mark.parametrize(
    "flags",
    [
        dict(),
        dict(d=24, heads=3, T=7, batch=1, layers=3),
        dict(d=96, heads=3, T=33, batch=5, qk_norm=0),
        dict(d=40, heads=5, T=70, batch=3, log_every=1),
        dict(d=16, heads=1, T=2, batch=40, mu_param="full", base_d=4, wd=1, wd_independent=0),
    ],
    ids=str,
)
def test_threads_change_no_bit(tmp_path, flags):
    for threads in (1, 2, 4, 3):
        train(tmp_path / str(threads), threads=threads, **{"steps": 11, "log_every": 5, **flags})
        assert_same_run(tmp_path / "1", tmp_path / str(threads))
    train(tmp_path / "seed", **{"steps": 11, "log_every": 5, "seed": 2, **flags})
    assert summary(tmp_path / "seed")["final_loss"] != summary(tmp_path / "1")["final_loss"]


def test_seed_chooses_the_batches(tmp_path):
    """The same weights, another -seed: other batches."""
    for seed in (1, 2):
        train(tmp_path / str(seed), steps=0)
        train(tmp_path / str(seed), steps=2, log_every=1, seed=seed, resume=1)
    a, b = (log(tmp_path / str(seed)) for seed in (1, 2))
    assert a["val_loss"][0] == b["val_loss"][0] and a["train_loss"][1] != b["train_loss"][1]


LONG = dict(steps=1500, checkpoint_every=7, log_every=3, eval_every=100)  # about a second


def test_a_log_of_another_run_is_refused(tmp_path):
    """A run that was killed before its first checkpoint, in the folder of an older one, left its
    log beside the older model."""
    train(tmp_path / "a", **TINY)
    train(tmp_path / "b", **{**TINY, "lr": "3e-3"})
    shutil.copy(tmp_path / "b/log.csv", tmp_path / "a/log.csv")
    before = snapshot(tmp_path)
    result = program("-resume", "-out", str(tmp_path / "a"), cwd=tmp_path)
    assert (
        result.returncode == 1
        and len(result.stderr.splitlines()) == 1
        and "a/log.csv" in result.stderr
    )
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "edit, says",
    [
        (lambda rows: rows[:-1], "no row up to step 30 ends"),
        (lambda rows: rows[:-1] + [rows[-1].replace("30,", "40,", 1)], "no row up to step 30 ends"),
        (lambda rows: rows[:-2] + [rows[-2][:-1] + "0\n", rows[-1]], "no row up to step 30 ends"),
        (lambda rows: rows[:-1] + [rows[-1][:-1] + "0"], "no row up to step 30 ends"),
    ],
    ids=["a row less", "a later step", "a byte more", "a row without an end"],
)
def test_a_log_that_does_not_fit_the_checkpoint_is_refused(tmp_path, edit, says):
    train(tmp_path / "a")
    with open(tmp_path / "a/log.csv") as file:
        rows = file.readlines()
    (tmp_path / "a/log.csv").write_text("".join(edit(rows)))
    before = snapshot(tmp_path)
    result = program("-resume", "-out", "a", cwd=tmp_path)
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert re.search("a/log.csv: not the log of this checkpoint: .*" + says, result.stderr)
    assert snapshot(tmp_path) == before


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "x"
    train(folder, **LONG)
    return folder


def start(folder, *arguments, threads=1):
    return subprocess.Popen(
        [PROGRAM, *arguments, "-out", folder.name],
        cwd=folder.parent,
        env=dict(os.environ, OMP_NUM_THREADS=str(threads)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait(process, condition):
    """Until the condition holds or the process has ended."""
    end = time.time() + 300
    while not condition() and process.poll() is None:
        assert time.time() < end
        time.sleep(0.002)


def has_signal(pid, kind, number):
    """SigCgt: it is caught; ShdPnd: it waits to be delivered."""
    signals = re.search(kind + r":\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return signals and int(signals[1], 16) >> number - 1 & 1


def age(path):
    with contextlib.suppress(FileNotFoundError):  # which it may be at any moment
        return path.stat().st_mtime_ns
    return 0


def test_killed_at_random_and_resumed(tmp_path, undisturbed):
    rng, folder, arguments, kills = (
        np.random.default_rng(),
        tmp_path / "x",
        words({**TINY, **LONG}),
        0,
    )
    for attempt in range(8):
        old = age(folder / MODEL)
        process = start(folder, *arguments, threads=1 + attempt % 2)
        wait(process, lambda: age(folder / MODEL) != old)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        assert (
            int(metadata(folder)["step"]) % 7 == 0
            or int(metadata(folder)["step"]) == LONG["steps"]
            or process.returncode == 0
        )
        arguments = ["-resume"]
    assert kills >= 3
    assert program("-resume", "-out", str(folder), cwd=tmp_path).returncode == 0
    assert_same_run(folder, undisturbed)
    assert sorted(p.name for p in folder.iterdir()) == ["log.csv", MODEL, "summary.csv"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_stops_after_a_step_and_says_how_to_go_on(tmp_path, undisturbed, number):
    """No checkpoint but the one of the signal: it is of the step that was said, and the command
    that was said goes on."""
    folder = tmp_path / "x"
    process = start(folder, *words({**TINY, **LONG, "checkpoint_every": 0}))
    wait(
        process,
        lambda: (folder / "log.csv").exists()
        and len((folder / "log.csv").read_text().splitlines()) > 20,
    )
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + number, "")
    step, command = re.search(r"stopped after step (\d+); go on with:\n(.*)$", out, re.M).groups()
    assert (
        50 < int(step) < 1500
        and metadata(folder)["step"] == step
        and not (folder / "summary.csv").exists()
    )
    assert command == shlex.join([PROGRAM, "-resume", "-out", "x"])
    assert program(*shlex.split(command)[1:], cwd=tmp_path).returncode == 0
    assert_same_run(folder, undisturbed, but=["checkpoint_every"])


def test_signal_before_the_first_step(tmp_path):
    """What the message says must work here too."""
    folder, flags = tmp_path / "x", {**TINY, "eval_tokens": 100000, "steps": 3}
    process = start(folder, *words(flags))
    wait(process, lambda: (folder / "log.csv").exists())
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    command = re.search(r"go on with:\n(.*)$", out, re.M)[1]
    result = program(*shlex.split(command)[1:], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    train(tmp_path / "y", **flags)
    assert_same_run(folder, tmp_path / "y")


def test_resume_of_a_finished_run_changes_nothing(tmp_path):
    train(tmp_path / "x")
    before, weights = (
        (tmp_path / "x" / "log.csv").read_bytes(),
        (tmp_path / "x" / MODEL).read_bytes(),
    )
    row = summary(tmp_path / "x")
    assert program("-resume", "-out", "x", cwd=tmp_path).returncode == 0
    assert (tmp_path / "x" / "log.csv").read_bytes() == before and (
        tmp_path / "x" / MODEL
    ).read_bytes() == weights
    again = summary(tmp_path / "x")
    assert [
        k for k in row if row[k] != again[k] and k not in ("seconds", "tokens_per_second", "out")
    ] == []


def test_resume_of_a_finished_run_has_all_digits_and_the_time_before(tmp_path):
    folder = tmp_path / "x"
    train(folder, wd=0.1 + 0.2)  # not 0.3
    assert float(metadata(folder)["wd"]) == 0.1 + 0.2
    save_file(load_file(folder / MODEL), folder / MODEL, {**metadata(folder), "seconds": "1000"})
    assert program("-resume", "-out", "x", cwd=tmp_path).returncode == 0
    assert 1000 <= float(summary(folder)["seconds"]) < 2000


@pytest.mark.parametrize("qk_norm", [0, 1])
@pytest.mark.parametrize("d, heads", [(48, 2), (24, 3), (16, 1)])
def test_mu_param(tmp_path, d, heads, qk_norm):
    """At d = base_d simple and intermediate are the standard model, bit for bit; elsewhere the four
    are different ones."""
    flags = dict(d=d, heads=heads, qk_norm=qk_norm, steps=12)
    seen = {}
    for mu_param in ("off", "simple", "intermediate", "full"):
        train(tmp_path / mu_param, mu_param=mu_param, base_d=d, **flags)
        if mu_param != "full":
            assert_same_run(tmp_path / "off", tmp_path / mu_param, but=["mu_param"])
        train(tmp_path / "other", mu_param=mu_param, base_d=8, **flags)
        seen[mu_param] = summary(tmp_path / "other")["final_loss"]
    assert len(set(seen.values())) == 4 and seen["off"] == summary(tmp_path / "off")["final_loss"]


def test_independent_decay_is_standard_decay_times_the_peak(tmp_path):
    for name, wd, independent in (
        ("a", 0.03, 1),
        ("b", 3, 0),
        ("none", 0, 1),
        ("as standard", 3, 1),
    ):
        train(tmp_path / name, wd=wd, wd_independent=independent, log_every=1)
    a, b, none = (log(tmp_path / name) for name in ("a", "b", "none"))
    for name in ("train_loss", "param_rms_wte", "param_rms_ln_f"):
        assert a[name][1:] == pytest.approx(b[name][1:], rel=1e-5)
    assert a["param_rms_wte"][-1] < 0.8 * none["param_rms_wte"][-1]


# ---------------------------------------------------------------------------
# Resumed with other flags


def resumed(folder, *flags):
    result = program("-resume", "-out", folder.name, *flags, cwd=folder.parent)
    assert (result.returncode, result.stderr) == (0, "")
    (line,) = re.findall(r"^(resuming after .*(?:\n  .*)*)", result.stdout, re.M)
    return line.replace("\n  ", " "), result.stdout


def test_resume_with_another_batch_and_length_goes_on_counting_tokens(tmp_path):
    """Also twice, and from a checkpoint between rows of the log."""
    folder = tmp_path / "x"
    train(folder, batch=4, T=16, steps=23, log_every=10)
    # As if it had taken a second: the summary has three decimals, of some milliseconds too few.
    save_file(load_file(folder / MODEL), folder / MODEL, {**metadata(folder), "seconds": "1"})
    resumed(folder, "-batch", "2", "-T", "8", "-steps", "46")
    row = summary(folder)
    resumed(folder, "-batch", "3", "-steps", "60")
    rows = log(folder)
    steps = rows["step"]
    wanted = 64 * np.minimum(steps, 23) + 16 * np.clip(steps - 23, 0, 23)
    wanted += 24 * np.maximum(steps - 46, 0)
    assert rows["tokens"].tolist() == wanted.tolist() and steps.tolist()[-1] == 60
    assert float(metadata(folder)["tokens"]) == wanted[-1]
    seconds = float(row["seconds"])
    assert float(row["tokens_per_second"]) * seconds == pytest.approx(64 * 23 + 16 * 23, rel=2e-3)


@pytest.mark.parametrize(
    "flags, says",
    [
        ("", None),
        ("-lr 1e-2 -steps 20 -batch 2", None),  # as they were
        ("-log_every 5", "changed: -log_every 10 -> 5"),
        ("-batch 4 -T 16", "changed: -T 8 -> 16, -batch 2 -> 4"),
        ("-lr 3e-3", "changed: -lr 1e-2 -> 3e-3{}"),
        (
            "-min_lr 1e-4 -mu_param full",
            "changed: -min_lr 1e-05 -> 0.0001, -mu_param off -> full{}",
        ),
        ("-steps 2000", "changed: -steps 20 -> 2000{}"),
        ("-warmup 3", "changed: -warmup 5% -> 3{}"),
        ("-optimizer muon -cautious 1", "changed: -optimizer adamw -> muon, -cautious 0 -> 1"),
        ("-data bigram -vocab 256", "changed: -data synthetic -> bigram"),
    ],
)
def test_resume_says_what_changed(tmp_path, flags, says):
    """And that the learning rate jumps, if it does: from and to those of the step before."""
    folder = tmp_path / "x"
    train(folder, steps=10)
    # as if it was stopped half-way
    save_file(load_file(folder / MODEL), folder / MODEL, {**metadata(folder), "steps": "20"})
    line, _ = resumed(folder, *flags.split())
    said = re.fullmatch(
        r"resuming after step 10(?:; (.*?)(; so the learning rate jumps from (\S+) to (\S+))?)?",
        line,
    )
    assert said and said[1] == (says.replace("{}", "") if says else None), line
    assert bool(said[2]) == ("{}" in (says or "")), line
    if said[2]:
        assert float(said[3]) != pytest.approx(float(said[4]), rel=1e-3)


def test_the_jump_of_the_schedule_is_the_logs(tmp_path):
    folder = tmp_path / "x"
    train(folder, steps=10, log_every=1)
    line, _ = resumed(folder, "-steps", "20")
    before, after = re.search("jumps from (.*) to (.*)", line).groups()
    assert float(before) == pytest.approx(log(folder)["lr"][10], rel=5e-3)
    train(tmp_path / "y", steps=20, log_every=1)
    assert float(after) == pytest.approx(log(tmp_path / "y")["lr"][10], rel=5e-3)


@pytest.mark.parametrize("kind", ["text", "shards", "val"])
def test_data_that_has_grown_since_the_checkpoint_is_noticed(tmp_path, kind):
    folder, text = tmp_path / "x", b"to be or not to be, that is the question\n" * 30
    (tmp_path / "a.txt").write_bytes(text)
    (tmp_path / "v").write_bytes(text)
    data = dict(data=tmp_path / "*.txt") | (dict(val=tmp_path / "v") if kind == "val" else {})
    train(folder, steps=10, **data)
    _, out = resumed(folder, "-steps", "12")
    assert "the data" not in out
    old = len(text) * (1 + (kind == "val"))
    grown = dict(text="a.txt", shards="b.txt", val="v")[kind]
    with open(tmp_path / grown, "ab") as file:
        file.write(text[:400])
    _, out = resumed(folder, "-steps", "14")
    says = f"the data has {old + 400} tokens now, and had {old} at the checkpoint"
    assert says in out.replace("\n ", "")
    _, out = resumed(folder, "-steps", "16")
    assert "the data" not in out  # it is the new checkpoint's


# ---------------------------------------------------------------------------
# Runs that go wrong


@pytest.mark.parametrize("log_every", [1, 10])
@pytest.mark.parametrize("clip", ["0", "1e30"])
def test_a_gradient_whose_square_overflows_ends_the_run(tmp_path, clip, log_every):
    """AdamW's v would be infinite, and no weight would move again. The loss leaves out the z-loss,
    and stays finite."""
    train(tmp_path / "x", z_loss=1e25, clip=clip, log_every=log_every)
    row, rows = summary(tmp_path / "x"), log(tmp_path / "x")
    assert (row["diverged"], row["diverged_step"], row["final_loss"]) == ("1", "2", "nan")
    assert rows["grad_norm"][1] > 1e20 and np.isfinite(rows["train_loss"][1])
    for weights in load_file(tmp_path / "x" / MODEL).values():
        assert not np.isinf(weights).any()


@pytest.mark.parametrize("flags", [dict(z_loss=1e25, clip=1), dict(z_loss=1e17, clip=0)], ids=str)
def test_a_large_gradient_that_does_not_overflow_does_not_end_the_run(tmp_path, flags):
    train(tmp_path / "x", **flags)
    assert summary(tmp_path / "x")["diverged_step"] == ""


def test_a_run_that_diverges_is_a_result(tmp_path):
    """Not a number at some step: exit status 0, and the step stands in the files, in the log and in
    the diagnosis (test_diagnosis.py)."""
    out = train(tmp_path / "x", lr="1e30", clip=0, qk_norm=0)
    row, rows = summary(tmp_path / "x"), log(tmp_path / "x")
    last = int(rows["step"][-1])
    assert (row["diverged"], row["diverged_step"]) == ("1", str(last)) and last < 30
    assert (
        row["final_loss"] == "nan"
        and not np.isfinite(rows["train_loss"][-1])
        and np.isfinite(float(row["initial_loss"]))
    )
    assert f"diagnosis: the loss was not finite at step {last}: a lower -lr fixes it" in out
    assert "-nan" not in (tmp_path / "x" / "log.csv").read_text() + out
    assert metadata(tmp_path / "x")["step"] == str(last)


def test_a_run_that_diverges_at_a_validation(tmp_path):
    """The loss of step 1 is finite, the weights that it leaves are not: the run ends there, its
    validation loss is infinite, not unknown."""
    train(tmp_path / "x", lr="1e30", clip=0, qk_norm=0, warmup=0, eval_every=1, log_every=1)
    rows = log(tmp_path / "x")
    assert summary(tmp_path / "x")["diverged_step"] == "1" and rows["step"].tolist() == [0, 1]
    assert np.isfinite(rows["train_loss"][1]) and rows["val_loss"][1] == np.inf


# ---------------------------------------------------------------------------
# The sweep

LRS = ["3e-4", "1e-3", "3e-3", "1e-2", "3e-2", "1e-1", "3e-1", "1"]
# above 2/22 the weights grow: far at 1e-1, without end at 3e-1
WILD = dict(wd=22, wd_independent=0, min_lr=1, steps=60)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "x"
    return folder, train(folder, threads=2, lr="3e-4:1", **WILD)


def test_sweep_leaves_every_run_and_one_summary(sweep):
    folder, _ = sweep
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [*("lr" + lr for lr in LRS), "summary.csv"]
    )
    rows = table(folder / "summary.csv")
    assert [row["lr"] for row in rows] == LRS and rows == [
        summary(folder / f"lr{lr}") for lr in LRS
    ]
    assert [row["diverged"] for row in rows] == ["0"] * 5 + ["1"] * 3
    assert (
        float(rows[5]["initial_loss"]) < float(rows[5]["final_loss"]) < float("inf")
        and rows[6]["final_loss"] == "nan"
    )


def test_sweep_is_its_single_runs(sweep, tmp_path):
    for lr in LRS:
        train(tmp_path / lr, lr=lr, **WILD)
        assert_same_run(sweep[0] / f"lr{lr}", tmp_path / lr)


def test_sweep_table(sweep):
    folder, out = sweep
    rows = table(folder / "summary.csv")
    lines = [line.split() for line in out[out.index("learning rate  ") :].splitlines()[2:10]]
    assert [line[0] for line in lines] == LRS
    for line, row in zip(lines, rows):
        for shown, name in zip(line[1:5], ("final_loss", "max_attn_logit", "log_z", "grad_norm")):
            wanted = float(row[name] or "nan")  # a run may end before its first logged step
            assert float(shown) == pytest.approx(wanted, rel=6e-3, abs=6e-4, nan_ok=True), (
                line,
                name,
            )
        assert line[5] == ("yes" if row["diverged"] == "1" else "no")


def test_sweep_sensitivity(sweep):
    """The mean of min(final, initial), less the best, over the paper's seven learning rates: the
    run at 1 stays out of it."""
    folder, out = sweep
    finals, initials = (
        [float(row[name]) for row in table(folder / "summary.csv")]
        for name in ("final_loss", "initial_loss")
    )
    losses = [initial if not final < initial else final for final, initial in zip(finals, initials)]
    (shown,) = re.findall(r"^LR sensitivity, nats \(.*\): (\S+)$", out, re.M)
    wanted = np.mean(losses[:7]) - min(losses[:7])
    assert float(shown) == pytest.approx(wanted, abs=6e-4) and wanted > 0.05


def test_sweep_sensitivity_is_over_exactly_the_papers_rates(tmp_path):
    """By their values, among others and in any order; if one is missing, it is not given."""
    rates = "0.3 3e-4 0.001 3e-3 2e-2 0.010 3e-2 0.1".split()
    flags = dict(steps=20, warmup=0)
    out = train(tmp_path / "x", lr=",".join(rates), **flags)
    losses = [
        min(float(row["final_loss"]), float(row["initial_loss"]))
        for row in table(tmp_path / "x/summary.csv")
        if row["lr"] != "2e-2"
    ]
    (shown,) = re.findall(r"^LR sensitivity, nats \(.*\): (\S+)$", out, re.M)
    wanted = np.mean(losses) - min(losses)
    assert float(shown) == pytest.approx(wanted, abs=6e-4) and wanted > 0.05
    for missing in ("3e-4", "0.010", "0.3"):
        few = ",".join(rate for rate in rates if rate != missing)
        out = train(tmp_path / missing, lr=few, **flags)
        (line,) = [line for line in out.splitlines() if line.startswith("LR sensitivity")]
        assert line.endswith("-lr 3e-4:3e-1") and "needs" in line


def test_sweep_chart(sweep):
    """A mark a run, an x where it diverged, no mark higher for a lower loss."""
    folder, out = sweep
    rows = table(folder / "summary.csv")
    chart = re.findall(r"^ *(\S+) \|(.*)$", out, re.M)
    levels, cells = [float(level) for level, _ in chart], [line.ljust(7 * 8) for _, line in chart]
    step = levels[0] - levels[1]
    for i, row in enumerate(rows):
        loss = (
            min(float(row["final_loss"]), float(row["initial_loss"]))
            if row["final_loss"] != "nan"
            else float(row["initial_loss"])
        )
        marks = [
            (level, mark)
            for level, line in zip(levels, cells)
            for mark in line[7 * i : 7 * i + 7]
            if mark in "ox"
        ]
        assert [mark for _, mark in marks] == ["x" if row["diverged"] == "1" else "o"]
        assert abs(marks[0][0] - loss) < 0.51 * step + 1e-3, (row["lr"], marks, loss)
    floor = next(level for level, line in zip(levels, cells) if "..." in line)
    assert abs(floor - float(rows[0]["entropy_floor"])) < 0.51 * step + 1e-3


def test_sweep_diagnosis_names_the_runs(sweep):
    folder, out = sweep
    wrong = set(re.findall(r"lr (\S+): the loss (?:was not finite|did not fall)", out))
    assert wrong == {row["lr"] for row in table(folder / "summary.csv") if row["diverged"] == "1"}


def test_a_rate_given_twice_is_refused_or_run_once(tmp_path):
    """Never two runs at a time in one folder."""
    result = program(*words({**TINY, "lr": "1e-2,1e-3,1e-2"}), "-out", "x", cwd=tmp_path, threads=4)
    if result.returncode == 0:
        assert [row["lr"] for row in table(tmp_path / "x" / "summary.csv")] == ["1e-2", "1e-3"]
    else:
        assert result.returncode == 2 and "1e-2" in result.stderr and not (tmp_path / "x").exists()


def test_one_run_of_a_sweep_fails_and_the_others_go_on(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "lr1e-2").write_text("in the way")
    result = program(*words({**TINY, "lr": "1e-3,1e-2,1e-1"}), "-out", "x", cwd=tmp_path)
    assert result.returncode == 1 and result.stderr.count("\n") == 1 and "x/lr1e-2" in result.stderr
    assert [row["lr"] for row in table(tmp_path / "x" / "summary.csv")] == ["1e-3", "1e-1"]
    assert (
        re.search(r"^ *1e-2 +failed", result.stdout, re.M)
        and "diagnosis: nothing else went wrong" in result.stdout
        and (tmp_path / "x" / "lr1e-2").read_text() == "in the way"
    )


def test_interrupted_sweep_says_how_to_go_on(tmp_path):
    """With one run, by the command that it names, or by the sweep's command, from the start."""
    flags = dict(LONG, lr="1e-3,1e-2,1e-1,1", steps=3000, checkpoint_every=0)
    train(tmp_path / "whole", **flags)
    (tmp_path / "x").mkdir()
    shutil.copy(tmp_path / "whole/summary.csv", tmp_path / "x")  # as if of an older sweep
    before = snapshot(tmp_path / "x")
    process = start(tmp_path / "x", *words({**TINY, **flags}), threads=2)
    wait(
        process,
        lambda: (tmp_path / "x/lr1e-3/log.csv").exists()
        and has_signal(process.pid, "SigCgt", signal.SIGINT),
    )
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "") and "the same command" in out
    assert before.items() <= snapshot(tmp_path / "x").items()  # no run was done
    assert [p for p in (tmp_path / "x").glob("lr*") if not (p / "summary.csv").exists()]
    command = shlex.split(re.search(r"go on with one run:\n(.*)$", out, re.M)[1])
    folder = Path(command[-1])
    assert command[:-1] == [PROGRAM, "-resume", "-out"] and folder.parent.name == "x"
    assert program(*command[1:], cwd=tmp_path).returncode == 0
    assert_same_run(tmp_path / folder, tmp_path / "whole" / folder.name)
    train(tmp_path / "x", **flags)
    for lr in flags["lr"].split(","):
        assert_same_run(tmp_path / "x" / f"lr{lr}", tmp_path / "whole" / f"lr{lr}")


def test_a_failed_run_is_not_offered_for_resume(tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "lr1e-3").write_text("in the way")
    process = start(folder, *words({**TINY, "lr": "1e-3,1e-2", "steps": 100000}), threads=2)
    wait(process, (folder / "lr1e-2/log.csv").exists)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "a file has that name" in err
    assert "-resume -out x/lr1e-2" in out and "-resume -out x/lr1e-3" not in out


def test_sweep_that_fails_leaves_the_summary_of_an_older_one(tmp_path):
    """Such as the same command again while the first still runs."""
    flags, folder = {**TINY, "lr": "1e-3,1e-2"}, tmp_path / "x"
    train(folder, **flags)
    before = snapshot(folder)
    with open(folder / "lr1e-3/log.csv") as one, open(folder / "lr1e-2/log.csv") as other:
        for log_file in one, other:
            fcntl.flock(log_file, fcntl.LOCK_EX)
        result = program(*words(flags), "-out", "x", cwd=tmp_path)
    assert result.returncode == 1 and result.stderr.count("another process is writing it") == 2
    assert snapshot(folder) == before


def test_a_signal_after_the_last_run_does_not_stop_the_report(tmp_path):
    folder, rates = tmp_path / "x", ("1e-3", "1e-2")
    process = start(folder, *words({**TINY, "lr": ",".join(rates), "steps": 300}), threads=2)
    wait(process, lambda: all((folder / f"lr{lr}/log.csv").exists() for lr in rates))
    process.send_signal(signal.SIGSTOP)
    wait(process, lambda: all((folder / f"lr{lr}/summary.csv").exists() for lr in rates))
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "") and "LR sensitivity" in out
    assert [row["lr"] for row in table(folder / "summary.csv")] == list(rates)


# ---------------------------------------------------------------------------
# A checkpoint and flags that do not belong together


@pytest.mark.parametrize("flags", ["-layers 1", "-layers 3", "-d 32", "-qk_norm 0", "-vocab 300"])
@pytest.mark.parametrize("command", ["-resume", "-sample 3"])
def test_a_model_of_another_shape_is_refused(tmp_path, command, flags):
    train(tmp_path / "x", **{**TINY, "layers": 2})
    before = snapshot(tmp_path)
    result = program(*command.split(), *flags.split(), "-out", str(tmp_path / "x"), cwd=tmp_path)
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1, result.stderr
    assert MODEL in result.stderr
    assert snapshot(tmp_path) == before


def test_a_folder_is_of_one_run_or_of_one_sweep(tmp_path):
    flags = words({**TINY, "steps": 2})
    for first, second, says in (
        ("1e-2", "1e-2,1e-1", "x/log.csv belongs to a single run"),
        ("1e-2,1e-1", "1e-2", "y/summary.csv belongs to a sweep"),
    ):
        out = "x" if "," in second else "y"
        assert program(*flags, "-lr", first, "-out", out, cwd=tmp_path).returncode == 0
        before = snapshot(tmp_path)
        result = program(*flags, "-lr", second, "-out", out, cwd=tmp_path)
        assert result.returncode == 1 and says in result.stderr and result.stderr.count("\n") == 1
        assert snapshot(tmp_path) == before
        assert program(*flags, "-lr", first, "-out", out, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("command", ["-steps 2", "-resume"])
def test_a_log_that_is_a_link_is_not_written(tmp_path, command):
    """It may be another run's."""
    train(tmp_path / "x", **TINY)
    (tmp_path / "y").mkdir()
    if command == "-resume":
        shutil.copy(tmp_path / "x" / MODEL, tmp_path / "y" / MODEL)
    (tmp_path / "y" / "log.csv").symlink_to(tmp_path / "x" / "log.csv")
    before = snapshot(tmp_path)
    result = program(*command.split(), "-out", "y", cwd=tmp_path)
    assert result.returncode == 1 and "y/log.csv is a link to another file" in result.stderr
    assert snapshot(tmp_path) == before


def test_a_run_over_an_older_one_says_so(tmp_path):
    says = "the older results in this folder stay until the first checkpoint"
    outputs = [train(tmp_path / "x", **{**TINY, **more}) for more in ({}, {}, dict(resume=1))]
    assert [says in out for out in outputs] == [False, True, False]


def test_a_diverged_run_stays_diverged_when_resumed(tmp_path):
    train(tmp_path / "x", **{**TINY, "lr": "1e30", "clip": 0, "qk_norm": 0})
    before = summary(tmp_path / "x")
    assert before["diverged"] == "1" and before["diverged_step"]
    assert program("-resume", "-out", str(tmp_path / "x"), cwd=tmp_path).returncode == 0
    after = summary(tmp_path / "x")
    assert [after[k] for k in ("diverged", "diverged_step", "final_loss")] == [
        before[k] for k in ("diverged", "diverged_step", "final_loss")
    ]


@pytest.mark.parametrize("command", ["-resume -steps 40", "-eval", "-sample 5"])
def test_a_checkpoint_that_is_older_than_a_flag(tmp_path, command):
    """The flag has its default there."""
    for name in "new", "old":
        train(tmp_path / name, **TINY)
    flags = metadata(tmp_path / "old")
    newer = (
        "schedule init attention kappa tokens data_tokens attn_cap qk_clip optimizer gate peri_ln"
    )
    for name in [*newer.split(), "cautious"]:
        del flags[name]
    save_file(load_file(tmp_path / "old" / MODEL), tmp_path / "old" / MODEL, flags)
    said = [
        program(*command.split(), "-out", name, cwd=tmp_path, text=False) for name in ("new", "old")
    ]
    assert [result.returncode for result in said] == [0, 0], said
    if "-resume" in command:
        assert_same_run(tmp_path / "new", tmp_path / "old")
    else:
        assert said[0].stdout.replace(b"new", b"old") == said[1].stdout


def test_tokens_of_an_older_checkpoint(tmp_path):
    """It does not count them. They follow from the batches of then, not from that of -resume."""
    train(tmp_path / "x", **{**TINY, "batch": 4, "steps": 10, "log_every": 5})
    flags = metadata(tmp_path / "x")
    del flags["tokens"]
    save_file(load_file(tmp_path / "x" / MODEL), tmp_path / "x" / MODEL, flags)
    more = "-resume -batch 8 -steps 20 -out x".split()
    assert program(*more, cwd=tmp_path).returncode == 0
    T, rows = int(flags["T"]), log(tmp_path / "x")
    assert rows["tokens"][-3:].tolist() == [10 * 4 * T, (10 * 4 + 5 * 8) * T, (10 * 4 + 10 * 8) * T]


# ---------------------------------------------------------------------------
# -eval: the loss of a saved model


def loss_of(folder, *flags):
    """(loss, the text before it); nothing is written."""
    before = snapshot(folder.parent)
    result = program("-eval", *flags, "-out", folder.name, cwd=folder.parent)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    assert snapshot(folder.parent) == before
    *head, line, end = result.stdout.split("\n")
    found = re.fullmatch(r"validation loss (\S+) nats per token, perplexity (\S+)", line)
    loss, perplexity = map(float, found.groups())
    assert perplexity == pytest.approx(np.exp(loss), rel=1e-4) and not end
    return loss, " ".join(" ".join(head).split())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "flags",
    [
        dict(),
        dict(qk_norm=0, d=24, heads=3),
        dict(layers=0),
        dict(T=7, batch=3),
        dict(gate=1, peri_ln=1, attn_cap=2, optimizer="muon"),
    ],
    ids=str,
)
def test_eval_is_the_runs_own_last_loss(tmp_path, monkeypatch, flags, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    train(tmp_path / "x", **{**TINY, "lr": "3e-2", "eval_tokens": 100, **flags})
    loss, head = loss_of(tmp_path / "x")
    assert loss == pytest.approx(float(summary(tmp_path / "x")["final_loss"]), abs=6e-7)
    T = flags.get("T", TINY["T"])
    assert head == f"x after step 30, on {100 // T * T} tokens of synthetic:"


def test_eval_elsewhere(tmp_path):
    """-data, -val, -eval_tokens and -T count where they are given, as in a run's first loss."""
    (tmp_path / "one").write_bytes(b"to be or not " * 300)
    (tmp_path / "two").write_bytes((b"two bees or four " * 300)[:5000])
    at = dict(data=tmp_path / "one")
    train(tmp_path / "x", **{**TINY, **at, "steps": 50, "lr": "3e-2"})
    start = dict(init=tmp_path / "x" / MODEL, steps=0)
    for i, more in enumerate(
        [dict(data=tmp_path / "two"), dict(val=tmp_path / "two"), dict(T=5), dict(eval_tokens=3)]
    ):
        train(tmp_path / str(i), **{**TINY, **at, **start, **more})
        wanted = float(summary(tmp_path / str(i))["initial_loss"])
        found, head = loss_of(tmp_path / "x", *words(more))
        assert found == pytest.approx(wanted, abs=6e-7)
        assert str(tmp_path / "two") in head or i > 1
    assert len({summary(tmp_path / str(i))["initial_loss"] for i in range(4)}) == 4


def test_eval_of_a_folder_wider_than_a_line(tmp_path):
    """The sentence begins with its name, not with an empty line."""
    name = "x" * 90
    train(tmp_path / name, **TINY)
    result = program("-eval", "-out", name, cwd=tmp_path)
    assert (result.returncode, result.stdout.split("\n")[0]) == (0, name)


def test_eval_of_a_model_that_is_not_a_number(tmp_path):
    train(tmp_path / "x", **TINY)
    weights, saved = load_file(tmp_path / "x" / MODEL), metadata(tmp_path / "x")
    weights["ln_f.weight"][3] = np.nan
    save_file(weights, tmp_path / "x" / MODEL, saved)
    result = program("-eval", "-out", "x", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert "x/model.safetensors: its loss is not finite: the run diverged" in result.stderr


def test_a_loss_that_cannot_be_written(tmp_path):
    train(tmp_path / "x", **TINY)
    with open("/dev/full", "w") as full:
        command = [PROGRAM, "-eval", "-out", tmp_path / "x"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1 and "cannot write the validation loss: No space" in result.stderr


# ---------------------------------------------------------------------------
# -init: a new run from given weights

SHAPES = dict(d=24, layers=2, heads=3, qk_norm=0, vocab=200, gate=1, peri_ln=1)
WITHOUT_SIZES = {k: v for k, v in TINY.items() if k not in ("d", "layers", "heads")}


@pytest.fixture
def trained(tmp_path):
    train(tmp_path / "a", **{**TINY, **SHAPES, "lr": "3e-2"})
    return tmp_path / "a" / MODEL


def begin(folder, flags, status=0):
    """A run without the sizes of TINY; returns what it printed, or its complaint."""
    result = program(*words({**WITHOUT_SIZES, **flags}), "-out", folder.name, cwd=folder.parent)
    assert result.returncode == status, result.stderr
    return result.stderr if status else result.stdout


def test_init_starts_from_the_weights(trained, tmp_path):
    """Its sizes are the file's; step 0 has the loss of that model; moments, steps and schedule are
    new."""
    before = trained.read_bytes()
    said = begin(tmp_path / "b", dict(init=trained, steps=0))
    assert f"starting from the weights of {trained}" in " ".join(said.split())
    assert "starting from" not in begin(tmp_path / "plain", dict(steps=0))
    given, found = load_file(trained), load_file(tmp_path / "b" / MODEL)
    assert given.keys() == found.keys()
    for name, x in found.items():
        assert not x.any() if name.startswith("adam") else (x == given[name]).all(), name
    last, row = summary(tmp_path / "a"), summary(tmp_path / "b")
    assert row["initial_loss"] == last["final_loss"]
    assert {name: row[name] for name in SHAPES} == {n: str(v) for n, v in SHAPES.items()}
    assert (row["init"], last["init"], metadata(tmp_path / "b")["init"]) == (
        str(trained),
        "",
        str(trained),
    )
    begin(tmp_path / "c", dict(init=trained, steps=4, log_every=1, warmup=2, lr="1e-3"))
    rows = log(tmp_path / "c")
    assert rows["step"].tolist() == [0, 1, 2, 3, 4] and rows["lr"][1:3].tolist() == [5e-4, 1e-3]
    assert trained.read_bytes() == before


def test_init_with_weights_alone_is_the_same_run(trained, tmp_path):
    """A file without AdamW's moments will do."""
    weights = {n: x for n, x in load_file(trained).items() if not n.startswith("adam")}
    save_file(weights, tmp_path / "weights", metadata(tmp_path / "a"))
    begin(tmp_path / "b", dict(init=trained))
    begin(tmp_path / "c", dict(init=tmp_path / "weights"))
    assert_same_run(tmp_path / "b", tmp_path / "c", but=["init"])
    del weights["ln_f.weight"]
    save_file(weights, tmp_path / "fewer", metadata(tmp_path / "a"))
    says = begin(tmp_path / "d", dict(init=tmp_path / "fewer"), 1)
    assert "fewer has no tensor ln_f.weight" in says and not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    "name, other",
    dict(d=48, layers=1, heads=2, qk_norm=1, vocab=201, gate=0, peri_ln=0).items(),
)
def test_init_of_another_shape(trained, tmp_path, name, other):
    says = begin(tmp_path / "b", {"init": trained, name: other}, 2)
    assert says == (
        f"train_gpt: -{name} {other}: the model of -init {trained} has -{name} {SHAPES[name]};"
        f" leave -{name} out\n"
    )
    assert not (tmp_path / "b").exists()
    begin(tmp_path / "b", {"init": trained, name: SHAPES[name]})


def test_init_takes_what_the_model_computes_unless_it_is_given(tmp_path):
    model = dict(qk_norm=0, kappa=3, mu_param="full", base_d=8, scale="d_h", attention="relu2")
    model.update(attn_cap=2, gate=1, peri_ln=1)
    ways = dict(z_loss=0, seed=7, schedule="wsd", optimizer="muon", cautious=1)
    train(tmp_path / "a", **{**TINY, **model, **ways})
    begin(tmp_path / "b", dict(init=tmp_path / "a" / MODEL, steps=0))
    a, b = metadata(tmp_path / "a"), metadata(tmp_path / "b")
    assert {n: b[n] for n in model} == {n: a[n] for n in model} == {n: str(model[n]) for n in model}
    assert [b[n] for n in ways] == ["0.0001", "1", "cosine", "adamw", "0"]
    begin(tmp_path / "c", dict(init=tmp_path / "a" / MODEL, steps=0, attention="softmax", kappa=0))
    c = metadata(tmp_path / "c")
    assert (c["attention"], c["kappa"], c["mu_param"]) == ("softmax", "0", "full")


def test_init_of_a_file_of_another_program(trained, tmp_path):
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "foreign")
    says = begin(tmp_path / "b", dict(init=tmp_path / "foreign"), 1)
    assert "foreign: not a checkpoint of this program: its metadata has no 'd'" in says
    weights = load_file(trained)
    weights["extra"] = np.zeros(3, np.float32)
    save_file(weights, tmp_path / "more", metadata(tmp_path / "a"))
    says = begin(tmp_path / "b", dict(init=tmp_path / "more"), 1)
    assert "a tensor that this model does not have" in says and not (tmp_path / "b").exists()


def test_init_and_an_interruption(trained, tmp_path):
    """The run goes on from its own checkpoint, even where the file of -init is gone, to the same
    bits. The same -init may be given again, another not."""
    flags = dict(init=trained, steps=300, checkpoint_every=7, T=32)
    begin(tmp_path / "whole", flags)
    process = start(tmp_path / "parts", *words({**WITHOUT_SIZES, **flags}))
    wait(process, lambda: (tmp_path / "parts" / MODEL).exists())
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM
    moved = trained.rename(tmp_path / "moved")
    resume = ["-resume", "-out", "parts"]
    result = program(*resume, cwd=tmp_path)
    assert result.returncode == 0 and "starting from" not in result.stdout, result.stderr
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    moved.rename(trained)
    assert program(*resume, "-init", str(trained), cwd=tmp_path).returncode == 0
    other = program(*resume, "-init", "other", cwd=tmp_path)
    assert other.returncode == 1 and "-init other: starts a new run" in other.stderr


def test_init_of_a_sweep(trained, tmp_path):
    begin(tmp_path / "s", dict(init=trained, lr="1e-3,1e-2"))
    begin(tmp_path / "one", dict(init=trained, lr="1e-2"))
    assert_same_run(tmp_path / "s" / "lr1e-2", tmp_path / "one")
    rows = table(tmp_path / "s" / "summary.csv")
    assert [row["init"] for row in rows] == [str(trained)] * 2


def test_init_from_a_run_that_diverged(trained, tmp_path):
    """No flag helps then. Moments that are not finite do no harm: they are not used."""
    weights, saved = load_file(trained), metadata(tmp_path / "a")
    weights["adam.m.ln_f.weight"][3] = np.nan
    save_file(weights, trained, saved)
    begin(tmp_path / "b", dict(init=trained))
    weights["ln_f.weight"][3] = np.inf
    save_file(weights, trained, saved)
    says = begin(tmp_path / "c", dict(init=trained), 1)
    assert f"-init {trained}: its tensor ln_f.weight is not finite: the run diverged" in says
    assert not (tmp_path / "c").exists()


def test_init_from_a_pipe(tmp_path):
    """It would wait for a writer, and be read twice."""
    os.mkfifo(tmp_path / "pipe")
    for path in tmp_path / "pipe", "/dev/urandom":
        assert f"{path} is a pipe or a device" in begin(tmp_path / "b", dict(init=path), 1)


def test_init_does_not_replace_its_file(trained, tmp_path):
    before = snapshot(tmp_path)
    for path in trained, tmp_path / "a" / ".." / "a" / MODEL:
        says = begin(tmp_path / "a", dict(init=path), 1)
        assert "the new run would replace this file; choose another -out" in says
    assert snapshot(tmp_path) == before


def test_init_of_a_sweep_does_not_replace_its_file(tmp_path):
    """Nor the results of the folder's other runs, before it is seen."""
    flags = {**TINY, "lr": "1e-3,1e-2"}
    train(tmp_path / "s", **flags)
    before = snapshot(tmp_path)
    says = begin(tmp_path / "s", dict(init=tmp_path / "s/lr1e-2" / MODEL, lr=flags["lr"]), 1)
    assert says.count("the new run would replace this file") == 1
    assert snapshot(tmp_path) == before
