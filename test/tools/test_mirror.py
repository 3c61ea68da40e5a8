"""train_gpt.cu mirrors train_gpt.c: the same sections in the same order, the same argument lists,
and much of the same text. And mirror.py counts and shows right."""

import os
import pty
import re
import subprocess
import sys

import pytest

import mirror
from conftest import ROOT, TEST

SHARE = 0.40  # at least, of train_gpt.cu's lines from "The model" on
C, CU = (mirror.sections((ROOT / name).read_text()) for name in mirror.NAMES)
# Sections that one file has for itself
ALONE = (
    "What only a GPU needs",
    "Arithmetic",  # a GPU's is in lib/gpu.h
)
# The sections whose functions have the same parameters in both
LESSON = "Layers", "The model", "The optimizer", "The training loop"
# Parameters that only train_gpt.c's or only train_gpt.cu's function has, and why
SLOPE = "memory costs a GPU more than GELU's slope does, which it computes again"
LATER = "the GPU is not waited for: results are read later"
DIFFERENT = {
    "embedding_backward": (
        ["tokens"],
        ["order", "start", "first"],
        "positions sorted by token, so that no two threads add to the same row",
    ),
    "attention_forward": (["scratch", "relu2"], [], "scores stay in registers; softmax alone"),
    "attention_backward": (["relu2"], [], "softmax alone"),
    "qk_norm_rope_forward": (["over"], [], "qk-norm by head alone"),
    "qk_norm_rope_backward": (["over"], [], "qk-norm by head alone"),
    "gelu_forward": (["slope"], [], SLOPE),
    "gelu_backward": (["slope"], ["inp"], SLOPE),
    "matmul_gelu_forward": (["slope"], [], SLOPE),
    "matmul_gelu_backward": (["slope"], ["fc"], SLOPE),
    "cross_entropy": ([], ["batch_rows"], "the rows are those of a micro-batch"),
    "gpt_layout": (["memory"], ["create"], "each array is an allocation"),
    "gpt_loss": (["log_z"], [], LATER),
    "muon": (
        ["param", "grad", "m", "rows", "cols", "lr", "o", "scratch"],
        ["g", "kinds", "grid", "statistics"],
        "all matrices in one call: one launch makes their steps",
    ),
    "gpt_update": (["step", "stats"], ["statistics"], LATER),
    "gpt_statistics": ([], ["statistics"], LATER),
}
CU_FUNCTIONS = mirror.functions(line for _, lines in CU for line in lines)
BOTH = {
    name: parameters
    for title, lines in C
    if title.startswith(LESSON)
    for name, parameters in mirror.functions(lines).items()
    if name in CU_FUNCTIONS
}


def test_sections():
    c, cu = ([t for t, _ in sections if not t.startswith(ALONE)] for sections in (C, CU))
    assert c == cu and mirror.FROM in c


def test_functions_are_found():
    """The ones that a reader looks for first, and each that has an exception."""
    assert {"embedding_forward", "attention_backward", "gpt_forward", "evaluate"} <= {*BOTH}
    assert {*DIFFERENT} <= {*BOTH}


@pytest.mark.parametrize("name", BOTH)
def test_parameters(name):
    """The same names in the same order, whatever their types."""
    c, cu = BOTH[name], CU_FUNCTIONS[name]
    only_c, only_cu, _ = DIFFERENT.get(name, ([], [], ""))
    assert {*c} - {*cu} == {*only_c} and {*cu} - {*c} == {*only_cu}
    assert [x for x in c if x not in only_c] == [x for x in cu if x not in only_cu]


def test_share():
    found = mirror.shares(*((ROOT / name).read_text() for name in mirror.NAMES))
    same, lines = map(sum, zip(*found.values()))
    assert same >= SHARE * lines, f"{same} of {lines} lines, {same / lines:.1%}"


# ---- mirror.py itself

SMALL_C = """// head
// ---------------------------------------------------------------------------
// Layers

static void forward(real *out, const real *inp,
                    int rows, char lr[MAX][9]) {    // (rows,C)
    out[0] = inp[0] * 2;
}
// ---------------------------------------------------------------------------
// The model

    layernorm_forward(out, inp);                                                // [qk_norm]
    run_twice(out);
    if (!x) return;
"""
SMALL_CU = """// head
// ---------------------------------------------------------------------------
// Layers

    out[0] = inp[0] * 2;
// ---------------------------------------------------------------------------
// The model

  layernorm_forward(out,   inp); // [qk_norm]
    run_twice(out);
    run_twice(out);
    launch(forward_kernel, out);
    if (!x) {
// ---------------------------------------------------------------------------
// What only a GPU needs

    out[0] = inp[0] * 2;
"""


def test_shares_of_a_small_pair():
    """Blanks do not count, short lines neither, a line that stands once counts once."""
    assert mirror.shares(SMALL_C, SMALL_CU) == {
        "The model": (2, 4),
        "What only a GPU needs": (1, 2),
    }


def test_functions_of_a_small_file():
    found = mirror.functions(SMALL_C.splitlines() + ["int main(void) {", "void f(int (&x)[W]) {"])
    assert found["forward"] == ["out", "inp", "rows", "lr"] and found["main"] == []


def test_panes():
    text = list(mirror.show(SMALL_C, SMALL_CU, wide=True))
    assert {line[mirror.PANE + 1] for line in text if len(line) > mirror.PANE} == {*" <>|"}
    assert f"{'':100} >     launch(forward_kernel, out);" in text
    assert f"{'    run_twice(out);':100}       run_twice(out);" in text


def test_command():
    """-q prints the figures alone; without it the text comes first: two panes where the terminal
    holds them, else a unified diff."""
    command = [sys.executable, TEST / "tools" / "mirror.py"]
    quiet = subprocess.run([*command, "-q"], capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"( +\d+ of +\d+ lines +\d+%  .+\n){2,}", quiet)
    diff = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert diff.startswith("--- train_gpt.c") and diff.endswith(quiet)
    shown = {}
    for columns in 202, 203:
        ours, theirs = pty.openpty()
        child = subprocess.Popen(
            command, stdout=theirs, env={**os.environ, "COLUMNS": str(columns)}
        )
        os.close(theirs)
        shown[columns] = b""
        try:
            while part := os.read(ours, 1 << 16):
                shown[columns] += part
        except OSError:  # the end of a terminal
            pass
        os.close(ours)
        assert child.wait() == 0
    assert shown[202].startswith(b"--- train_gpt.c") and b"@@" not in shown[203]
