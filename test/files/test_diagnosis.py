"""The diagnosis: one sentence at the end of a run that went wrong, with the flag that fixes it, and
none for any other. Each log is that of a run. That of log Z is in test_phenomena.py: it takes
30,000 steps."""

import re
from pathlib import Path

import numpy as np
import pytest

from test_cli import TINY, log, program, summary, train, words

SMALL = dict(d=32, heads=2, layers=2, T=32, batch=8, steps=200, eval_tokens=1024, eval_every=0)
TEXT = Path(__file__).resolve().parents[2] / "README.md"
LOGITS = "attention logits grew past 100, first in layer"


def diagnosis(out):
    """Its sentences, each of which may take several lines."""
    lines = out.replace("\n  ", " ").splitlines()
    return [line.split("diagnosis: ")[1] for line in lines if line.startswith("diagnosis: ")]


def end(folder, **flags):
    """The diagnosis of a run, None if it says nothing, and the final loss, NaN if it diverged."""
    said = diagnosis(train(folder, **{**SMALL, "lr": "1e-2", **flags}))
    assert len(said) < 2
    return said[0] if said else None, float(summary(folder)["final_loss"])


def alphabet(tmp_path, **flags):
    """The data of lines that are all alike."""
    (tmp_path / "abc.txt").write_text("abcdefgh\n" * 3000)
    return {**flags, "data": tmp_path / "abc.txt"}


def noise(tmp_path, **flags):
    """Too few letters, in no order: there is nothing to learn but this text itself."""
    (tmp_path / "noise").write_bytes(np.random.default_rng(1).integers(97, 123, 800, np.uint8))
    return {**flags, "data": tmp_path / "noise"}


# flags -> the sentence, and the flags that it asks for
WRONG = {
    "logits": (
        dict(qk_norm=0, lr="1e-1"),
        rf"{LOGITS} \d of 2 \(max_attn_logit_\d\) at step (?P<step>\d+), up to (?P<most>\S+):"
        " -qk_norm 1 fixes it",
        dict(qk_norm=1),
    ),
    "logits a little past 100": (
        dict(qk_norm=0, lr="9e-2", d=16, layers=1),
        rf"{LOGITS} 1 of 1 \(max_attn_logit_0\) at step \d+, up to 1\d\d: -qk_norm 1 fixes it",
        dict(qk_norm=1),
    ),
    "logits of six layers": (
        dict(qk_norm=0, lr="1e-1", layers=6, d=16, steps=100),
        rf"{LOGITS} \d of 6 \(max_attn_logit_\d\) .*: -qk_norm 1 fixes it",
        dict(qk_norm=1),
    ),
    "logits in spite of qk-norm": (
        dict(lr=1),
        rf"{LOGITS} \d of 2 .*: a lower -lr fixes it",
        dict(lr="1e-1"),
    ),
    "logits with muParam": (
        dict(mu_param="full", base_d=8, lr=3),
        rf"{LOGITS} .*: a lower -lr fixes it",
        dict(lr="1e-1"),
    ),
    "logits past ten times the cap": (
        dict(qk_norm=0, attn_cap=10, lr="1e-1"),
        r"attention logits grew past 100, ten times -attn_cap, first in layer \d of 2 .*:"
        " -qk_norm 1 fixes it",
        dict(qk_norm=1),
    ),
    "logits of Muon": (
        dict(optimizer="muon", qk_norm=0, lr="1e-1"),
        rf"{LOGITS} \d of 2 .*: -qk_norm 1 fixes it",
        dict(qk_norm=1),
    ),
    "logits between two of QK-clip's": (
        dict(qk_norm=0, qk_clip=30, lr=1),
        rf"{LOGITS} \d of 2 .*: a lower -lr fixes it",
        dict(lr="1e-1"),
    ),
    "logits that QK-clip lets grow": (
        dict(qk_norm=0, qk_clip=1000, lr="1e-1"),
        rf"{LOGITS} \d of 2 .*: a lower -lr fixes it",
        dict(lr="1e-2"),
    ),
    "decay": (
        dict(wd="0.1"),
        r"the weights have decayed, each matrix to less than 0.3 of its initial RMS \(c_attn to"
        r" (?P<param_rms_c_attn>\S+), from 0.18\): a smaller -wd fixes it",
        dict(wd="1e-4"),
    ),
    "decay that follows the learning rate": (
        dict(wd=10, wd_independent=0),
        "the weights have decayed, .*: a smaller -wd fixes it",
        dict(wd="0.1"),
    ),
    "decay at a low learning rate": (
        dict(wd="1e-2", lr="1e-3", steps=300),
        r"the weights have decayed, .* \(c_attn to 0.0\d+, from 0.18\): a smaller -wd fixes it",
        dict(wd="1e-4"),
    ),
    "decay without layers": (
        dict(wd="0.1", layers=0),
        r"the weights have decayed, .* \(wte to .*, from 0.18\): a smaller -wd fixes it",
        dict(wd="1e-4"),
    ),
    "decay by more than the weights": (
        dict(wd=3),
        "the loss was not finite: each step of weight decay subtracts 3 times the weight; a smaller"
        " -wd fixes it",
        dict(wd="1e-4"),
    ),
    "epsilon": (
        dict(eps=1),
        r"the updates of wte are small \(RMS .*, before the learning rate\) as the RMS of its"
        " .*gradient, .*, is below a tenth of epsilon, 1: a smaller -eps fixes it",
        dict(eps="1e-8"),
    ),
    "epsilon without clipping": (
        dict(eps="0.1", clip=0),
        "the updates of wte .* of its gradient, .* epsilon, 0.1: a smaller -eps fixes it",
        dict(eps="1e-8"),
    ),
    "a clipped gradient": (
        dict(clip="1e-9"),
        r"the updates of wte are small \(RMS (?P<update_rms_wte>\S+), .* its clipped gradient,"
        r" (?P<clipped>\S+), is below a tenth of epsilon, 1e-08: a larger -clip fixes it",
        dict(clip=1),
    ),
    "infinity": (
        dict(lr="1e30", clip=0),
        r"the loss was not finite at step \d+: a lower -lr fixes it",
        dict(lr="1e-2"),
    ),
    "infinity without qk-norm": (
        dict(lr="1e30", clip=0, qk_norm=0),
        r"the loss was not finite at step \d+: a lower -lr fixes it",
        dict(lr="1e-2"),
    ),
    "infinity at a validation": (
        dict(lr="1e30", clip=0, warmup=0, eval_every=1, log_every=1, steps=9),
        "the loss was not finite at step 1: a lower -lr fixes it",
        dict(lr="1e-2"),
    ),
    "infinity with rms_lr": (
        dict(lr=3, rms_lr=1),
        r"the loss was not finite at step \d+: a lower -lr fixes it",
        dict(lr="3e-2"),
    ),
    "no descent": (
        dict(lr=1, steps=10),
        r"the final validation loss, \S+, is not below the initial \S+: a lower -lr fixes it",
        dict(lr="1e-2"),
    ),
    "no step": (
        dict(lr="1e-20", wd=0, steps=20),
        r"the final validation loss, \S+, is not below the initial \S+: a higher -lr fixes it",
        dict(lr="1e-2"),
    ),
    "kappa, at once": (
        dict(kappa="1e38", qk_norm=0, steps=20),
        r"the loss was not finite with attention logits near -kappa 1e\+38: a smaller -kappa .*",
        dict(kappa=3),
    ),
    "kappa, by its gradient": (
        dict(kappa="1e25", qk_norm=0, steps=20),
        r"the loss was not finite with attention logits near -kappa 1e\+25: a smaller -kappa .*",
        dict(kappa=3),
    ),
    "beta2": (
        dict(beta2=0),
        "the loss did not fall: AdamW's updates have no bound with -beta2 below beta1.2; a -beta2"
        " above 0.81 fixes it",
        dict(beta2=0.95),
    ),
    "beta2, for a while": (
        dict(beta2=0.5, lr="3e-1", layers=0),
        r"the training loss rose from \S+ to \S+ at step \d+: a larger -beta2 fixes it",
        dict(beta2=0.95),
    ),
    "z-loss": (
        dict(z_loss=10),
        r"a z-loss of weight 10 outweighs the loss itself \(log Z is \S+\): a smaller -z_loss"
        " fixes it",
        dict(z_loss="1e-4"),
    ),
    "z-loss without descent": (
        dict(z_loss="1e30"),
        r"a z-loss of weight 1e\+30 outweighs .*: a smaller -z_loss fixes it",
        dict(z_loss="1e-4"),
    ),
    "z-loss whose gradient overflows": (
        dict(z_loss="1e25", clip=0),
        r"a z-loss of weight 1e\+25 outweighs .*: a smaller -z_loss fixes it",
        dict(z_loss="1e-4"),
    ),
    "a gradient that overflows": (
        dict(lr="1e5", clip=0, d=16, layers=1, warmup=0),
        r"the gradient's norm grew to \S+, whose square a float does not hold: a lower -lr fixes"
        " it",
        dict(lr="1e-2"),
    ),
    "no warm-up": (
        dict(layers=0, d=16, lr=3, warmup=0),
        r"the training loss rose from (?P<initial>\S+) to (?P<spike>\S+) at step 10: a lower -lr or"
        " a longer -warmup fixes it",
        dict(lr="1e-2"),
    ),
    "a rise after long warm-up": (
        dict(layers=0, d=16, lr=3, warmup="50%"),
        r"the training loss rose from \S+ to \S+ at step \d+: a lower -lr fixes it",
        dict(lr="1e-2"),
    ),
    "memory": (
        lambda home: noise(home, steps=600, eval_every=100, T=16),
        r"the validation loss rose from (?P<best>\S+) to (?P<val_loss>\S+) while the training loss"
        r" fell to (?P<train_loss>[^,]+), as the model has memorized its data: fewer -steps or"
        " more -data fixes it",
        dict(steps=100, eval_every=100),
    ),
}

RIGHT = {
    "the default": {},
    "without qk-norm": dict(qk_norm=0),
    "logits a little below 100": dict(qk_norm=0, lr="7e-2", d=16, layers=1),
    "a high learning rate": dict(lr="1e-1"),
    "a low learning rate": dict(lr="3e-4"),
    "every step in the log": dict(log_every=1, steps=60),
    "ten steps": dict(steps=10),
    "one step": dict(steps=1),
    "no step": dict(steps=0, warmup=0),
    "no warm-up": dict(warmup=0),
    "only warm-up": dict(warmup="100%"),
    "six layers": dict(layers=6, d=16, steps=100),
    "no layers": dict(layers=0),
    "one token at a time": dict(T=1, batch=1, d=16),
    "batches of few tokens": dict(T=4, batch=1, d=16, steps=2000, eval_every=0),
    "bigrams, of few tokens": dict(data="bigram", layers=1, T=16, batch=4, steps=400),
    "bigrams, with logits past 100": dict(data="bigram", vocab=128, lr=1, steps=400, d=16, T=16),
    "bigrams, all learned": dict(data="bigram", vocab=16, layers=0, steps=300, lr="3e-2"),
    "all learned": lambda home: alphabet(home),
    "all learned, fast": lambda home: alphabet(home, lr="1e-1"),
    "all learned, with gradients below epsilon": lambda home: alphabet(home, eps="1e-4"),
    "a text": dict(data=TEXT),
    "logits that kappa sets": dict(qk_norm=0, kappa=1000),
    "logits that nothing saturates": dict(qk_norm=0, attention="relu2", lr="3e-1"),
    "a cap": dict(qk_norm=0, attn_cap=30),
    "a cap, with logits past 100 before it": dict(qk_norm=0, attn_cap=50, lr="7e-2"),
    "QK-clip": dict(qk_norm=0, qk_clip=30, lr="1e-1"),
    "Muon": dict(optimizer="muon"),
    "Muon at a high learning rate": dict(optimizer="muon", lr="1e-1"),
    "Muon, with gradients of its matrices below epsilon": dict(
        optimizer="muon", vocab=128, layers=6, peri_ln=1, wd=0, lr="3e-1", steps=100, eps="1e-3"
    ),
    "a gate": dict(gate=1, lr="1e-1"),
    "norms after sublayers": dict(peri_ln=1, lr="1e-1"),
    "cautious decay": dict(cautious=1, wd="1e-2"),
    "many cures": dict(optimizer="muon", gate=1, peri_ln=1, attn_cap=30, cautious=1),
    "muParam": dict(mu_param="simple", base_d=8),
    "muParam with queries of 0": dict(mu_param="full", base_d=8, qk_norm=0),
    "muParam with a small output matrix": dict(mu_param="intermediate", base_d=1, steps=100),
    "epsilon near the gradients": dict(eps="1e-4"),
    "a gradient clipped much": dict(clip="1e-3"),
    "no clipping": dict(clip=0),
    "decay": dict(wd="1e-3"),
    "decay that follows the learning rate": dict(wd="0.1", wd_independent=0),
    "z-loss": dict(z_loss=1),
    "rounded logits": dict(bf16_logits=1, z_loss=0, lr="1e-1"),
    "rms_lr": dict(rms_lr=1, lr="3e-2"),
    "beta1 above beta2": dict(beta1=0.99),
    "beta2": dict(beta2=0.999),
}


def in_log(name, rows):
    """The number that the sentence should have where WRONG names it."""
    if name == "step":
        past = [row for column, row in rows.items() if column.startswith("max_attn_logit")]
        return rows["step"][np.argmax((np.array(past) > 100).any(0))]
    if name == "most":
        return max(np.nanmax(row) for key, row in rows.items() if key.startswith("max_attn_logit"))
    if name == "clipped":
        return rows["grad_rms_wte"][-1] * min(1, 1e-9 / rows["grad_norm"][-1])
    if name == "spike":
        return rows["train_loss"][rows["step"] == 10][0]
    return {"initial": rows["val_loss"][0], "best": np.nanmin(rows["val_loss"])}.get(
        name, rows.get(name, [np.nan])[-1]
    )


@pytest.mark.parametrize("name", WRONG)
def test_what_went_wrong(name, tmp_path):
    """It is named, with the numbers of the log, and the flag that is named fixes it: a lower loss,
    without a diagnosis."""
    flags, says, cure = WRONG[name]
    flags = flags(tmp_path) if callable(flags) else flags
    said, loss = end(tmp_path / "wrong", **flags)
    match = re.fullmatch(says, said or "")
    assert match, said
    for number, value in match.groupdict().items():
        assert float(value) == pytest.approx(in_log(number, log(tmp_path / "wrong")), rel=0.05)
    again = program("-resume", "-out", "wrong", cwd=tmp_path)
    assert again.returncode == 0 and diagnosis(again.stdout) == [said]
    assert set(cure) & set(re.findall(r"-([a-z]\w+)", said)), said
    said, cured = end(tmp_path / "cured", **{**flags, **cure})
    assert said is None and not cured >= loss, (said, loss, cured)


@pytest.mark.parametrize("name", RIGHT)
def test_nothing_went_wrong(name, tmp_path):
    flags = RIGHT[name](tmp_path) if callable(RIGHT[name]) else RIGHT[name]
    said, loss = end(tmp_path / "run", **flags)
    assert said is None and np.isfinite(loss)


def test_a_resumed_run(tmp_path):
    """The end counts, and the flags with which it came about."""
    folder = tmp_path / "x"
    assert end(folder, eps=1)[0]
    more = "-resume -eps 1e-8 -steps 400 -out".split()
    result = program(*more, str(folder), cwd=tmp_path)
    assert result.returncode == 0 and diagnosis(result.stdout) == []


def test_weights_of_init_that_stay_as_good(tmp_path):
    """A higher learning rate would make them worse; so did one that is named as too high."""
    end(tmp_path / "run")
    flags = dict(init=tmp_path / "run/model.safetensors", steps=20, seed=3)
    flags.update(d=None, heads=None, layers=None)
    found = {}
    for lr in "1e-5", "3e-1":
        given = {k: v for k, v in {**SMALL, **flags, "lr": lr}.items() if v is not None}
        result = program(*words(given), "-out", f"lr{lr}", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        found[lr] = diagnosis(result.stdout)
    assert found["1e-5"] == [] and found["3e-1"][0].endswith("a lower -lr fixes it")
    row = summary(tmp_path / "lr1e-5")
    assert abs(float(row["final_loss"]) - float(row["initial_loss"])) < 0.01


def test_a_sweep_names_the_runs(tmp_path):
    out = train(tmp_path / "x", **{**SMALL, "qk_norm": 0, "lr": "1e-2,1e-1", "steps": 100})
    (said,) = diagnosis(out)
    assert said.startswith(f"lr 1e-1: {LOGITS}")


def test_a_sound_sweep(tmp_path):
    out = train(tmp_path / "x", lr="1e-3,1e-2")
    assert diagnosis(out) == ["nothing went wrong"]


def test_a_stopped_run_has_none(tmp_path):
    """It goes on."""
    command = [*words({**TINY, "lr": "1e-20", "wd": 0, "steps": 10**8}), "-out", "x"]
    result = program(*command, cwd=tmp_path, preexec_fn=lambda: __import__("signal").alarm(1))
    assert result.returncode and diagnosis(result.stdout) == []
