"""Bytes from outside, made to do harm: fuzz.c's targets for a few seconds (`make fuzz`: for
minutes), and plot.py on damaged CSV files."""

import contextlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from conftest import NO_PRELOAD, ROOT

PROGRAM = os.environ.get("TRAIN_GPT", str(ROOT / "train_gpt"))
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 0))  # 0: a few, the same each time
spec = importlib.util.spec_from_file_location("plot", ROOT / "plot.py")
plot = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plot)


@pytest.mark.parametrize(
    "target, runs",
    [
        ("bin", 4000),
        ("safetensors", 4000),
        ("flags", 4000),
        ("tokenizer", 4000),
        ("resume", 200),
    ],
)
def test_reader_survives(tmp_path, target, runs):
    subprocess.run(["make", "-s", "build/fuzz"], cwd=ROOT, check=True, env=NO_PRELOAD)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    result = subprocess.run(
        [
            ROOT / "build/fuzz",
            f"-runs={runs}",
            "-seed=1",
            "-timeout=300",
            "-close_fd_mask=3",
            # a process starts with the peak memory of its parent, these tests: no limit for that
            "-rss_limit_mb=0",
            "-malloc_limit_mb=2048",
            f"-artifact_prefix={tmp_path}/",
            corpus,
        ],
        env={**NO_PRELOAD, "FUZZ": target},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=600,
    )
    done = re.search(r"Done (\d+) runs", result.stderr)
    assert result.returncode == 0 and int(done[1]) >= runs, result.stderr[-5000:]


# ---------------------------------------------------------------------------
# plot.py. A change is a function of a CSV file's text

CELLS = st.sampled_from(
    '0 -0 1 -1 nan -nan inf -inf 1e308 -1e308 1e-320 1e999 0x10 1_0 ١ True x 5% % -5% , " "" \n \r'
    " \0 \ufeff # é".split(" ")
    + ["", " ", "9" * 400, "x" * 140000]
)


def put(i, j, what):
    def change(text):
        rows = [line.split(",") for line in text.split("\n")]
        row = rows[i % len(rows)]
        row[j % len(row)] = what
        return "\n".join(map(",".join, rows))

    return change


def take(i, j, n):
    def change(text):
        rows = [line.split(",") for line in text.split("\n")]
        del rows[i % len(rows)][j % 60 : j % 60 + n]
        return "\n".join(map(",".join, rows))

    return change


NUMBER = st.integers(0, 1000)
CHANGE = st.one_of(
    st.builds(put, NUMBER, NUMBER, CELLS),
    st.builds(put, st.integers(1, 2), NUMBER, CELLS),
    st.builds(take, NUMBER, NUMBER, st.integers(1, 3)),
    st.builds(lambda n: lambda text: text[:n], st.integers(0, 3000)),
    st.builds(
        lambda i: lambda text: text + "\n" + text.split("\n")[i % (text.count("\n") + 1)], NUMBER
    ),
)
DAMAGE = st.one_of(st.lists(CHANGE, min_size=1, max_size=6), st.binary(max_size=300))


def damaged(text, damage):
    for change in damage if isinstance(damage, list) else []:
        text = change(text)
    return text.encode(errors="replace") if isinstance(damage, list) else damage


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A real sweep of two runs."""
    home = tmp_path_factory.mktemp("fuzz")
    subprocess.run(
        [
            PROGRAM,
            *"-lr 1e-3,1e-2 -d 8 -layers 1 -heads 2 -T 8 -batch 2 -steps 40 -log_every 1"
            " -eval_every 10 -eval_tokens 64 -out sweep".split(),
        ],
        cwd=home,
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return home


def run_plot(*arguments):
    """What it says; it must end with a known status and, where that is not 0, with a line that says
    why."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()) as printed:
        status = plot.main(list(map(str, arguments)))
    lines = said.getvalue().splitlines()
    assert (
        status in (0, 1)
        and all(line.startswith("plot.py: ") for line in lines)
        and (status == 0 or lines)
    ), (status, lines)
    return printed.getvalue() if status == 0 else None


def fuzz(examples):
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )


@pytest.fixture(scope="module")
def copy(swept):
    return Path(shutil.copytree(swept / "sweep", swept / "damaged"))


@fuzz(100)
@given(damage=DAMAGE, experiment=st.sampled_from(list(plot.EXPERIMENTS)))
def test_plot_table_of_a_damaged_summary(swept, copy, damage, experiment):
    (copy / "experiment").write_text(experiment)
    (copy / "summary.csv").write_bytes(damaged((swept / "sweep/summary.csv").read_text(), damage))
    run_plot("table", copy)


@fuzz(12)
@given(damage=DAMAGE, experiment=st.sampled_from(list(plot.EXPERIMENTS)))
def test_plot_figure_of_a_damaged_summary(swept, copy, damage, experiment):
    (copy / "experiment").write_text(experiment)
    (copy / "summary.csv").write_bytes(damaged((swept / "sweep/summary.csv").read_text(), damage))
    run_plot(copy, "-o", swept)


@fuzz(8)
@given(damage=DAMAGE)
def test_plot_log_of_a_damaged_log(swept, copy, damage):
    (copy / "lr1e-2/log.csv").write_bytes(
        damaged((swept / "sweep/lr1e-2/log.csv").read_text(), damage)
    )
    run_plot("log", copy / "lr1e-2", "-o", swept)


def test_plot_figure_of_a_word_among_numbers(swept, copy, capsys):
    header, first, *rows = (swept / "sweep/summary.csv").read_text().splitlines()
    first = first.split(",")
    first[header.split(",").index("beta2")] = "a word"
    (copy / "experiment").write_text("beta2")
    (copy / "summary.csv").write_text("\n".join([header, ",".join(first), *rows]))
    assert plot.main([str(copy), "-o", str(swept)]) == 0
    assert "line 2: beta2 is 'a word', not a number; left out" in capsys.readouterr().err
