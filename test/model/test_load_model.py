"""load_model.py, the way into JAX that test/README.md shows, computes what the trainer does."""

import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import load_model
from conftest import ROOT, TEST
from test_cli import program, train

TEXT = (
    b"To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer\n" * 40
)


@pytest.mark.parametrize(
    "shape",
    [dict(layers=2, d=24, heads=3, T=12), dict(layers=0), dict(T=9), dict(gate=1, peri_ln=1)],
    ids=str,
)
@pytest.mark.parametrize("qk_norm", [0, 1])
def test_loss_is_evals(tmp_path, qk_norm, shape):
    """The mean of -log p over the windows of the last tenth, to 1e-5, after the weights of the
    norms have left 1."""
    (tmp_path / "text").write_bytes(TEXT)
    flags = dict(data=tmp_path / "text", qk_norm=qk_norm, steps=60, lr="3e-2", **shape)
    train(tmp_path / "x", **flags)
    said = program("-eval", "-eval_tokens", "300", "-out", "x", cwd=tmp_path)
    loss, perplexity = map(
        float, re.search(r"loss (\S+) .* perplexity (\S+)", said.stdout).groups()
    )

    flags, weights = load_model.load(tmp_path / "x" / "model.safetensors")
    tensors = 6 + 2 * qk_norm + int(flags["gate"]) + 2 * int(flags["peri_ln"])
    assert len(weights) == 3 + int(flags["layers"]) * tensors
    assert all((w != 1).any() for w in weights.values())
    last, T = TEXT[len(TEXT) - len(TEXT) // 10 :], int(flags["T"])
    rows = [list(last[i : i + T + 1]) for i in range(0, 300 // T * T, T)]
    tokens = np.array(rows)
    logits = load_model.logits(flags, weights, tokens[:, :-1])
    logp = logits - jnp.log(jnp.exp(logits).sum(-1, keepdims=True))
    mean = -float(jnp.take_along_axis(logp, tokens[:, 1:, None], -1).mean())
    assert mean == pytest.approx(loss, abs=1e-5) and loss < 5
    assert np.exp(mean) == pytest.approx(perplexity, rel=1e-5)


def test_command(tmp_path):
    (tmp_path / "text").write_bytes(TEXT)
    train(tmp_path / "x", data=tmp_path / "text", steps=300, lr="3e-2", d=32, batch=16)
    script = TEST / "model" / "load_model.py"
    command = [sys.executable, script, tmp_path / "x" / "model.safetensors", "the quest"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert said.startswith("b'i' ") and len(said.split("b'")) >= 5


@pytest.mark.parametrize(
    "flags",
    [
        "-qk_norm model",
        "-qk_norm 0 -kappa 9",
        "-scale d_h",
        "-attention relu2",
        "-mu_param full",
        "-attn_cap 30",
    ],
)
def test_a_model_that_computes_something_else_is_refused(tmp_path, flags):
    words = flags.split()
    train(tmp_path / "x", steps=0, **{k[1:]: v for k, v in zip(words[::2], words[1::2])})
    with pytest.raises(ValueError, match=" ".join(words[-2:])):
        load_model.load(tmp_path / "x" / "model.safetensors")


def test_a_file_that_is_older_than_a_flag(tmp_path):
    train(tmp_path / "x", steps=2)
    path = tmp_path / "x" / "model.safetensors"
    flags, weights = load_model.load(path)
    older = {name: text for name, text in flags.items() if name not in load_model.KNOWN}
    older = {name: text for name, text in older.items() if name not in ("gate", "peri_ln")}
    older["qk_norm"] = flags["qk_norm"]
    save_file(load_file(path), tmp_path / "older", older)
    tokens = np.array([[84, 111, 32, 98, 101]])
    again = load_model.logits(*load_model.load(tmp_path / "older"), tokens)
    assert (load_model.logits(flags, weights, tokens) == again).all()
