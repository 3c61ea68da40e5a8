"""plot.py: numbers against hand-computed ones, what the figures hold (their lines, not their
pixels), files that are not as they should be, the libraries that it needs, and a real sweep."""

import csv
import importlib.util
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

REPO = Path(__file__).resolve().parents[2]
PROGRAM = os.environ.get("TRAIN_GPT", str(REPO / "train_gpt"))
spec = importlib.util.spec_from_file_location("plot", REPO / "plot.py")
plot = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plot)
N = plot.N

RUN = dict(
    lr="1e-2",
    d=32,
    layers=2,
    heads=2,
    batch=16,
    steps=300,
    warmup="5%",
    optimizer="adamw",
    beta2=0.95,
    eps="1e-08",
    clip=1,
    wd="0.0001",
    wd_independent=1,
    cautious=0,
    qk_norm=1,
    attn_cap=0,
    qk_clip=0,
    gate=0,
    peri_ln=0,
    z_loss="0.0001",
    mu_param="off",
    base_d=32,
    seed=1,
    data="a, b.txt",
    out="x",
    threads=1,
    parameters=41184,
    parameters_non_embedding=24800,
    initial_loss=6,
    final_loss=2,
    entropy_floor=0.9,
    diverged=0,
    max_attn_logit=10,
    log_z=5,
)
COLUMNS = list(RUN)
LRS = ["3e-4", "1e-3", "3e-3", "1e-2", "3e-2", "1e-1", "3e-1", "1"]
LOSSES = [3.5, 2.5, 2.2, 2.0, 2.4, 3.0, math.nan, math.nan]  # the last two diverged: 6 each
SENSITIVITY = (3.5 + 2.5 + 2.2 + 2.0 + 2.4 + 3.0 + 6) / 7 - 2.0
SMALL = "d 32 (24.8k parameters)"


def sweep(folder, *runs, experiment=None):
    """A sweep's folder with these runs, each told by what differs from RUN."""
    folder.mkdir(parents=True, exist_ok=True)
    if experiment:
        (folder / "experiment").write_text(experiment + "\n")
    with open(folder / "summary.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({**RUN, **run} for run in runs)
    return str(folder)


def losses(table, **flags):
    """Runs of a table {learning rate: loss}."""
    return [
        dict(lr=lr, final_loss=x, diverged=int(math.isnan(x)), **flags) for lr, x in table.items()
    ]


def seven(best="1e-2", above=1.0, **flags):
    """Runs at the paper's seven learning rates: loss 2 at the best and `above` more elsewhere. LR
    sensitivity is 6/7 of it."""
    return losses({lr: 2.0 if lr == best else 2.0 + above for lr in LRS[:7]}, **flags)


def known(folder, **flags):
    """Eight learning rates with the losses above."""
    runs = losses(dict(zip(LRS, LOSSES)), **flags)
    return sweep(folder, *(run | dict(max_attn_logit=10 * i) for i, run in enumerate(runs)))


def logged(folder, run, rows, columns):
    """A sweep's run with its log."""
    path = folder / run["out"]
    path.mkdir(parents=True, exist_ok=True)
    common = ["step", "lr", "train_loss", "val_loss", "grad_norm", "log_z"]
    with open(path / "log.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(common + columns), restval=1)
        writer.writeheader()
        writer.writerows({"step": step} | row for step, row in rows.items())


def read(folders):
    """The runs of one experiment."""
    found = plot.read_sweeps(folders)
    assert len(found) <= 1
    return next(iter(found.values()), [])


def panels(figure):
    """The panels, without the legends."""
    return [ax for ax in figure.axes if ax.axison]


def curves(ax):
    """{label: points} of the lines, and the crosses of the runs that diverged."""
    lines, crosses = {}, []
    for line in ax.lines:
        points = [(float(x), float(y)) for x, y in zip(*line.get_data()) if math.isfinite(x)]
        if not line.get_label().startswith(("entropy", "_child", "limit")):
            lines[line.get_label()] = points
    for points in ax.collections:
        if points.get_label() == "diverged":
            crosses += points.get_offsets().tolist()
    return lines, [tuple(point) for point in crosses]


def legends(figure):
    """The words of each block's legend."""
    return [
        [text.get_text() for text in ax.get_legend().get_texts()]
        for ax in figure.axes
        if not ax.axison
    ]


def draw(experiment, folder, *runs):
    """The panels of an experiment's figure of these runs."""
    return panels(plot.draw(experiment, read([sweep(folder, *runs, experiment=experiment)])))


def run_plot(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, str(REPO / "plot.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=60,
    )


def rows_of(table):
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("|") and "--" not in line
    ]


def near(value):
    return pytest.approx(value)


# What the runs say


def test_lr_sensitivity_by_hand():
    losses = pd.Series([3.5, 2.5, 2.2, 2.0, 2.4, 3.0, 6, 9], [float(lr) for lr in LRS])
    assert plot.sensitivity(losses) == near(SENSITIVITY)  # lr 1 is not one of the seven
    assert math.isnan(plot.sensitivity(losses.drop(3e-2)))  # six are no sensitivity


def test_the_shifted_range_is_the_best_of_those_that_are_there():
    losses = pd.Series([2.5, 2, 2, 2, 2, 2, 2, 3, 5], [1e-4, *map(float, LRS)])
    assert plot.sensitivity(losses) == near(1 / 7)
    assert plot.shifted_sensitivity(losses) == near(0.5 / 7)  # 1e-4 to 1e-1
    assert plot.shifted_sensitivity(losses.drop(1e-4)) == near(1 / 7)
    assert math.isnan(plot.shifted_sensitivity(losses.drop(1e-2)))


def test_a_loss_above_the_initial_one_counts_as_the_initial(tmp_path):
    runs = read([sweep(tmp_path, dict(final_loss=9), dict(seed=2, final_loss=5))])
    assert plot.loss(runs).tolist() == [6, 5]


def test_runs_that_differ_otherwise_are_no_seeds_of_each_other(tmp_path):
    runs = [
        dict(warmup="5%"),
        dict(warmup="30"),  # of 300 steps: 10%
        dict(d=16, steps=100, parameters_non_embedding=1e4),
    ]
    (ax, _) = draw("lr", tmp_path, *runs)
    assert list(curves(ax)[0]) == [
        "d 16, warmup 5% (10k parameters)",
        "d 32, warmup 5% (24.8k parameters)",
        "d 32, warmup 10% (24.8k parameters)",
    ]


def test_a_run_given_twice_counts_once(tmp_path):
    a = sweep(tmp_path / "a", dict(lr="1e-2", out="a"))
    b = sweep(tmp_path / "b", dict(lr="0.01", out="b"))
    assert len(read([a, a, b])) == 1


def test_a_folder_of_runs(tmp_path):
    sweep(tmp_path / "s" / "lr1e-2", dict(lr="1e-2"))
    sweep(tmp_path / "s" / "lr1e-1", dict(lr="1e-1"))
    assert sorted(read([tmp_path / "s"]).lr) == [0.01, 0.1]


def test_a_stale_table_and_runs_of_their_own(tmp_path):
    """The joined table is written from time to time: a run's own summary counts too, and once."""
    sweep(tmp_path, dict(lr="1e-2", out="s/a"), experiment="qk_norm")
    sweep(tmp_path / "a", dict(lr="1e-2", out="s/a"))
    sweep(tmp_path / "b", dict(lr="1e-1", out="s/b"))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "log.csv").write_text("step\n")  # begun
    found = plot.read_sweeps([tmp_path])
    assert list(found) == ["qk_norm"]
    runs = found["qk_norm"]
    assert list(zip(runs.lr, runs.folder)) == [(1e-2, tmp_path / "a"), (1e-1, tmp_path / "b")]


def test_sweeps_of_several_experiments(tmp_path, capsys):
    sweep(tmp_path / "a", dict(lr="1e-2"), experiment="qk_norm")
    sweep(tmp_path / "b", dict(lr="1e-1"), experiment="qk_norm")
    sweep(tmp_path / "c", dict(lr="1e-1"), experiment="batch")
    sweep(tmp_path / "d", dict(lr="1e-1"), experiment="weather")
    found = plot.read_sweeps([tmp_path])
    assert {name: len(runs) for name, runs in found.items()} == dict(qk_norm=2, batch=1, grid=1)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "d/experiment: 'weather' is not an experiment that I know: drawn as grid" in said
    assert plot.main([str(tmp_path), "-o", str(tmp_path / "f"), "-format", "svg"]) == 0
    drawn = sorted(path.name for path in (tmp_path / "f").iterdir())
    assert drawn == ["batch.svg", "grid.svg", "qk_norm.svg"]
    assert plot.main(["table", str(tmp_path)]) == 0
    headings = re.findall("^## (.*)", capsys.readouterr().out, re.M)
    assert headings == ["qk_norm", "batch", "grid"]


# Files


HEADER = (
    "lr,d,layers,heads,steps,warmup,qk_norm,seed,out,threads,parameters_non_embedding,"
    "initial_loss,final_loss,entropy_floor,diverged,max_attn_logit,log_z"
)
GOOD = "1e-2,32,2,2,300,5%,1,7,x,1,24800,6,2,0.9,0,10,5"
BAD = {
    "empty": (b"", "is empty"),
    "header": (HEADER.encode() + b"\n", "has no rows yet"),
    "foreign": (b"name,age\nAda,36\n", "has no column lr: not written by train_gpt"),
    "cut": (
        f"{HEADER}\n{GOOD}\n{GOOD[:30]}".encode(),
        f"line 3: {GOOD[:30].count(',') + 1} cells instead of 17; left out",
    ),
    "word": (
        f"{HEADER}\n\n{GOOD.replace('1e-2', 'fast')}\n".encode(),
        "line 3: lr is 'fast', not a number; left out",
    ),
    "damaged": (
        f"{HEADER}\n{GOOD.replace(',2,0.9', ',2?0,0.9')}\n".encode(),
        "line 2: final_loss is '2?0', not a number; left out",
    ),
    "missing": (
        f"{HEADER}\n{GOOD.replace(',2,0.9', ',,0.9')}\n{GOOD}x,\n".encode(),
        "line 2: no final_loss, but the run did not diverge; left out, and 1 more",
    ),
    "binary": (bytes(range(256)) * 20, ""),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_summary_is_named_and_does_not_stop_the_rest(tmp_path, capsys, name):
    contents, message = BAD[name]
    (tmp_path / name).mkdir()
    (tmp_path / name / "summary.csv").write_bytes(contents)
    runs = read([str(tmp_path / name), known(tmp_path / "good")])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{name}/summary.csv: " in said and message in said
    assert len(runs) == 8 + (name == "cut")


def test_nothing_to_draw(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad").mkdir()
    (tmp_path / "sweep" / "lr1").mkdir(parents=True)
    (tmp_path / "sweep" / "lr1" / "log.csv").touch()
    before = sorted(tmp_path.rglob("*"))
    for arguments in ["bad", "nowhere"], ["table", "bad"], ["log", "bad"], ["log", "sweep"], []:
        assert plot.main(arguments) == 1
        said = capsys.readouterr().err
        assert "nothing to show" in said
        assert ("such as sweep/lr1" in said) == (arguments == ["log", "sweep"])
    assert sorted(tmp_path.rglob("*")) == before
    assert run_plot("bad", cwd=tmp_path).returncode == 1


@pytest.mark.parametrize("arguments", [["-format", "gif"], ["-colour", "red"], ["log"]])
def test_usage(arguments):
    with pytest.raises(SystemExit) as exit:
        plot.main(arguments)
    assert exit.value.code == 2


def test_pictures_go_to_the_first_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    known(tmp_path / "a")
    known(tmp_path / "runs" / "b")
    logged(tmp_path, dict(out="run"), {0: {}, 10: {}}, [])
    assert plot.main(["a", "runs"]) == plot.main([]) == plot.main(["log", "run", "a"]) == 0
    out = capsys.readouterr().out
    assert out == "wrote a/lr.png\nwrote runs/lr.png\nwrote run/log.png\n"


@pytest.mark.parametrize("form", ["png", "pdf", "svg"])
def test_a_picture_that_it_did_not_draw_is_kept(tmp_path, capsys, form):
    """Its own it draws again."""
    folder, picture = known(tmp_path / "a"), tmp_path / f"a/lr.{form}"
    assert [plot.main([folder, "-format", form]) for _ in range(2)] == [0, 0]
    picture.write_bytes(b"somebody's photograph")
    capsys.readouterr()
    assert plot.main([folder, "-format", form]) == 1
    assert capsys.readouterr().err == (
        f"plot.py: {picture}: plot.py did not draw it; choose another -o\n"
    )
    assert picture.read_bytes() == b"somebody's photograph"


def test_an_output_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert plot.main([known(tmp_path / "a"), "-o", str(tmp_path / "file")]) == 1
    said = capsys.readouterr().err
    assert str(tmp_path / "file") in said and said.count("\n") == 1


def test_without_its_columns_there_is_no_figure_but_the_others(tmp_path, capsys):
    for name in "predict_eps", "qk_norm":
        (tmp_path / name).mkdir()
        (tmp_path / name / "experiment").write_text(name)
        (tmp_path / name / "summary.csv").write_text(f"{HEADER}\n{GOOD}\n")
    assert plot.main([str(tmp_path), "-o", str(tmp_path / "f"), "-format", "svg"]) == 0
    assert capsys.readouterr().err == (
        f"plot.py: {tmp_path}/predict_eps: no figure of predict_eps: its runs have no column"
        " 'eps'\n"
    )
    assert [path.name for path in (tmp_path / "f").iterdir()] == ["qk_norm.svg"]


# What the figures hold


def test_panels_lines_and_crosses(tmp_path):
    """off on the left, on on the right; a line a size with the losses as written; crosses on the
    runs that diverged and nowhere else."""
    folders = [
        known(tmp_path / "off", qk_norm=0),
        sweep(
            tmp_path / "on", dict(lr="1e-2"), dict(lr="1e-1", d=64, parameters_non_embedding=2e6)
        ),
    ]
    figure = plot.draw("lr", read(folders))
    top_off, top_on, low_off, low_on = panels(figure)
    assert [ax.get_title() for ax in (top_off, top_on)] == ["without qk-norm", "with qk-norm"]
    assert top_off.get_ylim() == top_on.get_ylim() and low_off.get_ylim() == low_on.get_ylim()
    assert [ax.get_xscale() for ax in panels(figure)] == ["log"] * 4
    assert (top_off.get_yscale(), low_off.get_yscale()) == ("linear", "log")
    large = "d 64 (2M parameters)"
    expected = [(float(lr), 6 if math.isnan(x) else x) for lr, x in zip(LRS, LOSSES)]
    assert curves(top_off) == ({SMALL: expected}, expected[-2:])
    assert curves(top_on) == ({SMALL: [(1e-2, 2)], large: [(1e-1, 2)]}, [])
    lines, crosses = curves(low_off)
    # the first logit, 0, was never logged
    assert lines[SMALL] == [(float(lr), 10 * i) for i, lr in enumerate(LRS)][1:]
    assert crosses == [(0.3, 60), (1, 70)]
    assert legends(figure) == [[SMALL, large, "diverged", "entropy of the language"]]


def test_median_band_and_a_seed_that_diverged(tmp_path):
    runs = [
        dict(lr=lr, seed=s, final_loss=x, diverged=int(math.isnan(x)))
        for lr, xs in [("1e-2", [2, 2.25, 3]), ("1e-1", [3, 4, math.nan])]
        for s, x in enumerate(xs)
    ]
    figure = plot.draw("lr", read([sweep(tmp_path, *runs)]))
    ax = panels(figure)[0]
    assert curves(ax) == ({SMALL: [(1e-2, 2.25), (1e-1, 4)]}, [(1e-1, 6)])
    corners = {tuple(np.round(p, 6)) for p in ax.collections[0].get_paths()[0].vertices}
    assert corners == {(1e-2, 2), (1e-2, 3), (1e-1, 3), (1e-1, 6)}
    assert "median and range of the seeds" in legends(figure)[0]


def test_sensitivity_is_the_median_of_the_seeds_and_only_of_whole_grids(tmp_path):
    runs = [run for s, x in enumerate([1, 2, 4]) for run in seven(above=x, seed=s)]
    *_, ax = draw("qk_norm", tmp_path, *runs)
    assert curves(ax)[0] == {"with qk-norm": [(24800, near(2 * 6 / 7))]}
    *_, ax = draw("qk_norm", tmp_path, *runs[:-1])  # the third seed is not there yet
    assert curves(ax)[0] == {"with qk-norm": [(24800, near(1.5 * 6 / 7))]}
    assert len(draw("qk_norm", tmp_path, *runs[:6])) == 2  # no panel


def test_colours_are_ordered_and_differ_in_grey():
    for n in range(2, 9):
        looks = plot.looks_of(["d"], [str(i) for i in range(n)], 0).values()
        grey = [np.dot(colour[:3], [0.299, 0.587, 0.114]) for colour, _, _ in looks]
        assert all(np.diff(grey) < -0.04) and max(grey) < 0.8
        assert len({marker for _, marker, _ in looks}) == n
    looks = plot.looks_of(["qk_norm"], ["off", "on", "other"], 0).values()
    assert len({to_hex(colour) for colour, _, _ in looks}) == 3
    assert len({dashes for _, _, dashes in looks}) == 3


def test_the_floor_only_where_it_is_the_same(tmp_path):
    def floors(*values):
        ax = draw("lr", tmp_path, *(dict(lr=lr, entropy_floor=x) for lr, x in zip(LRS, values)))[0]
        lines = [line for line in ax.lines if line.get_label().startswith("entropy")]
        return [line.get_ydata()[0] for line in lines]

    assert floors(0.9, 0.9) == [0.9]
    assert floors(0.9, 0.8) == floors("", "") == floors(0.9, "") == []


def test_qk_norm_has_its_sensitivity_below(tmp_path):
    folders = [
        known(tmp_path / "off", qk_norm=0),
        sweep(tmp_path / "on", *losses(dict(zip(LRS, [3, 2, 2, 2, 2, 2, 2, 9])))),
    ]
    figure = plot.draw("qk_norm", read(folders))
    *_, ax = panels(figure)
    assert ax.get_ylabel() == "LR sensitivity, nats\n(LR 3e-4 to 3e-1)"
    assert curves(ax)[0] == {
        "without qk-norm": [(24800, near(SENSITIVITY))],
        "with qk-norm": [(24800, near(1 / 7))],
    }
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["24.8k"]
    assert legends(figure)[1] == ["without qk-norm", "with qk-norm"]


def test_z_loss(tmp_path):
    runs = [
        run | dict(log_z=3, out=f"z{z}wd{wd}lr{run['lr']}", z_loss=z, wd=wd)
        for z in ("0", "1e-4")
        for wd in ("0", "1e-4")
        for run in seven(above=1 + (wd == "0"))
    ]
    for run in runs:
        rows = {step: dict(mean_logit=step * float(run["lr"]), val_loss=4) for step in (0, 10, 20)}
        logged(tmp_path, run, rows, ["mean_logit"])
    axes = draw("z_loss", tmp_path, *runs)
    names = [f"{z}, wd {wd}" for z in ("without z-loss", "z_loss 1e-4") for wd in ("0", "1e-4")]
    assert len(axes) == 5 and sorted(curves(axes[0])[0]) == sorted(names)
    assert curves(axes[1])[0] == {name: [(float(lr), 3) for lr in LRS[:7]] for name in names}
    for name, points in curves(axes[2])[0].items():
        assert points == [(RUN[N], near(6 / 7 * (1 + name.endswith("wd 0"))))], name
    # of LR 0.1 alone; step 0 comes before the first step
    assert curves(axes[3])[0] == {name: [(10, 1), (20, 2)] for name in names}
    assert curves(axes[4])[0] == {name: [(10, 4), (20, 4)] for name in names}


def by_layer(value, *names, layers=2):
    return {f"{name}_{l}": value(l) for name in names for l in range(layers)}


def test_logit_growth(tmp_path):
    runs = [
        dict(lr=lr, d=d, qk_norm=on, out=f"d{d}lr{lr}qk{on}", parameters_non_embedding=d * d)
        for lr in ("1e-2", "1e-1")
        for d in (16, 128)
        for on in (0, 1)
    ]
    names = ["max_attn_logit", "q_rms", "k_rms"]
    for run in runs:
        rows = {
            step: by_layer(lambda l: run["d"] * step + l, *names) | dict(qk_cosine_0=-step / 100)
            for step in (10, 20)
        }
        logged(tmp_path, run, rows, [*rows[10]])
    axes = draw("logit_growth", tmp_path, *runs)
    titles = [f"{on} qk-norm, LR {lr}" for on in ("without", "with") for lr in ("1e-2", "1e-1")]
    assert [ax.get_title() for ax in axes[:4]] == titles and len(axes) == 20
    sizes = {"d 16 (256 parameters)": 16, "d 128 (16.4k parameters)": 128}
    for ax in (*axes[:4], *axes[8:16]):  # block 0
        assert curves(ax)[0] == {name: [(10, 10 * d), (20, 20 * d)] for name, d in sizes.items()}
    for ax in axes[16:]:  # whatever its sign
        assert curves(ax)[0] == {name: [(10, 0.1), (20, 0.2)] for name in sizes}


def test_block_rms(tmp_path):
    runs = [dict(lr=lr, layers=layers, out=f"{layers}{lr}") for layers in (2, 4) for lr in LRS[2:4]]
    names = ["block_rms", "c_fc_grad_rms", "attn_c_proj_grad_rms", "c_fc_update_rms"]
    for run in runs:
        layers = run["layers"]
        rows = {
            step: by_layer(lambda l: float(run["lr"]) * (l + 1) * step, *names, layers=layers)
            for step in range(1, 22)
        }
        logged(tmp_path, run, rows, [*rows[1]])
    axes = draw("block_rms", tmp_path, *runs)
    assert len(axes) == 10
    for ax, blocks in zip(axes[:6], [2, 4] * 3):  # the median of the last two steps
        assert curves(ax)[0] == {
            f"LR {lr}": [(l, near(float(lr) * (l + 1) * 20.5)) for l in range(blocks)]
            for lr in LRS[2:4]
        }
    for ax in axes[6:]:  # block 0
        points = curves(ax)[0]["LR 1e-2"]
        assert points == [(step, near(0.01 * step)) for step in range(1, 22)]


def test_kappa_beside_bigrams(tmp_path):
    kappas = ("1", "1e3")
    runs = [dict(lr=lr, kappa=k, final_loss=1 + float(lr)) for lr in LRS[2:5] for k in kappas]
    bigrams = [dict(lr=lr, kappa="0", layers=0, final_loss=2 + float(lr)) for lr in LRS[2:5]]
    COLUMNS.insert(COLUMNS.index("z_loss"), "kappa")
    try:
        (ax,) = draw("kappa", tmp_path, *runs, *bigrams)
    finally:
        COLUMNS.remove("kappa")
    lines, _ = curves(ax)
    assert {name: lines[name] for name in lines if name != "without layers"} == {
        f"LR {lr}": [(1, near(1 + float(lr))), (1e3, near(1 + float(lr)))] for lr in LRS[2:5]
    }
    (dotted,) = (line for line in ax.lines if line.get_linestyle() == ":")
    assert set(dotted.get_ydata()) == {2.003}  # at the best learning rate


def test_recipe(tmp_path):
    none = dict(qk_norm=0, z_loss="0", wd="0", warmup="1%")
    runs = [
        run
        for above, flags in ((2, none), (1, dict(warmup="25%")), (0.5, dict(mu_param="simple")))
        for run in seven(above=above, **flags)
    ]
    axes = draw("recipe", tmp_path, *runs)
    names = ["no intervention", "qk-norm, z-loss, decay, warm-up", "the same, and µParam"]
    assert [ax.get_title() for ax in axes[:3]] == names and len(axes) == 6
    for ax in axes[:3]:
        assert len(curves(ax)[0]) == 1
    assert curves(axes[3])[0] == {
        name: [(RUN[N], near(above * 6 / 7))] for name, above in zip(names, (2, 1, 0.5))
    }


def test_league(tmp_path):
    """A point for each cure: the medians and the ranges of sensitivity and best loss. A panel for
    each cure, in the order of the list."""
    cures = {
        "bare": (1, dict(qk_norm=0)),
        "soft cap": (0.75, dict(qk_norm=0, attn_cap=30)),
        "QK-clip": (0.7, dict(qk_norm=0, qk_clip=30)),
        "gate": (0.65, dict(qk_norm=0, gate=1)),
        "Peri-LN": (0.6, dict(qk_norm=0, peri_ln=1)),
        "decay 1e-2, cautious": (0.55, dict(qk_norm=0, cautious=1, wd="0.01")),
        "Muon": (0.5, dict(qk_norm=0, optimizer="muon")),
        "Muon, QK-clip": (0.45, dict(qk_norm=0, optimizer="muon", qk_clip=30)),
        "Muon, qk-norm": (0.4, dict(optimizer="muon")),
        "qk-norm": (0.35, dict()),
        "qk-norm, long warm-up": (0.3, dict(warmup="25%")),
    }
    runs = [
        run
        for above, flags in reversed(cures.values())
        for seed in (1, 2, 3)
        for run in seven(above=above * seed, seed=seed, **flags)
    ]
    axes = draw("league", tmp_path, *runs)
    points = {bar.get_label(): bar for bar in axes[0].containers}
    assert list(points) == list(cures)
    for name, (above, _) in cures.items():
        (middle, _, bars) = points[name].lines
        assert (middle.get_xdata()[0], middle.get_ydata()[0]) == (near(above * 12 / 7), 2)
        (ends,) = bars[0].get_segments()
        assert list(ends[:, 0]) == [near(above * 6 / 7), near(above * 18 / 7)]
    assert axes[0].get_xlabel() == "LR sensitivity"
    assert [ax.get_title().replace(",\n", ", ") for ax in axes[1:]] == list(cures)
    for ax in axes[1:]:
        assert len(curves(ax)[0]) == 1


def test_warmup(tmp_path):
    runs = [
        run
        for warmup, x in (("1%", 2), ("15", 1.5), ("25%", 1))
        for run in seven(warmup=warmup, above=x, qk_norm=0)
    ]
    over_lr, sensitivity, fixed = draw("warmup", tmp_path, *runs)  # 15 of 300 steps are 5%
    assert list(curves(over_lr)[0]) == ["warmup 1%", "warmup 5%", "warmup 25%"]
    assert over_lr.get_title() == "without qk-norm, d 32"
    assert curves(sensitivity)[0] == {
        f"warmup {w}%": [(24800, near(x * 6 / 7))] for w, x in ((1, 2), (5, 1.5), (25, 1))
    }
    assert fixed.get_title() == "without qk-norm, LR 1e-1"
    assert curves(fixed)[0] == {SMALL: [(0, 4), (1, 3.5), (2, 3)]}
    assert [tick.get_text() for tick in fixed.get_xticklabels()] == ["1", "5", "25"]


def test_weight_decay(tmp_path):
    runs = []
    for d in (16, 32):
        size = dict(d=d, parameters_non_embedding=1000 * d)
        runs += seven(wd="1e-4", **size)
        runs += seven(wd="1", wd_independent=0, best="1e-3", **size)
        runs += losses({"1e-4": 2, "1": 2}, wd="1", wd_independent=0, **size)
    one, two, best, paper, shifted = draw("weight_decay", tmp_path, *runs)
    assert [one.get_title(), two.get_title()] == ["d 16", "d 32"]
    assert list(curves(one)[0]) == ["standard, wd 1", "independent, wd 1e-4"]
    assert curves(paper)[0]["standard, wd 1"] == [(16000, near(6 / 7)), (32000, near(6 / 7))]
    # 1e-4 and 1e-3 are best
    assert curves(shifted)[0]["standard, wd 1"] == [(16000, near(5 / 7)), (32000, near(5 / 7))]
    assert curves(best)[0]["standard, wd 1"] == [(16000, 1e-4), (32000, 1e-4)]
    assert "best 3 decades" in shifted.get_ylabel()


def test_depth_width(tmp_path):
    sizes = [(32, 1), (32, 2), (32, 4), (16, 2), (64, 2), (16, 1), (48, 4)]
    runs = [
        run
        for d, layers in sizes
        for qk_norm in (0, 1)
        for run in seven(
            above=0.01 * d * layers * (2 - qk_norm),
            d=d,
            layers=layers,
            parameters_non_embedding=12 * d * d * layers,
            qk_norm=qk_norm,
        )
    ]
    axes = draw("depth_width", tmp_path, *runs)
    ways = ("depth alone", "width alone", "both")
    assert [ax.get_title() for ax in axes[:6]] == [
        f"{qk} qk-norm, {way}" for qk in ("without", "with") for way in ways
    ]
    shown = [[name.split(" (")[0] for name in curves(ax)[0]] for ax in axes[:3]]
    assert shown == [
        ["d 32, layers 1", "d 32, layers 2", "d 32, layers 4"],
        ["d 16, layers 2", "d 32, layers 2", "d 64, layers 2"],
        ["d 16, layers 1", "d 32, layers 2", "d 48, layers 4"],
    ]
    members = [sizes[:3], [sizes[3], sizes[1], sizes[4]], [sizes[5], sizes[1], sizes[6]]]
    assert curves(axes[7])[0] == {
        way: [(12 * d * d * n, near(0.01 * d * n * 6 / 7)) for d, n in here]
        for way, here in zip(ways, members)
    }
    assert {y for points in curves(axes[8])[0].values() for _, y in points} == {2}  # best losses


def test_mu_param(tmp_path):
    best = {("off", 32): "3e-2", ("off", 64): "1e-2", ("full", 32): "3e-2", ("full", 64): "3e-2"}
    runs = [
        run
        for (mode, d), lr in best.items()
        for run in seven(best=lr, d=d, mu_param=mode, parameters_non_embedding=d * d)
    ]
    axes = draw("mu_param", tmp_path, *runs)
    titles = ["with qk-norm, standard model", "with qk-norm, µParam full"]
    assert [ax.get_title() for ax in axes[:2]] == titles
    assert list(curves(axes[0])[0]) == ["d 32 (1.02k parameters)", "d 64 (4.1k parameters)"]
    assert curves(axes[2])[0] == {
        "standard model": [(0, 3e-2), (1, 1e-2)],
        "µParam full": [(0, 3e-2), (1, 3e-2)],
    }
    names = ("standard model", "µParam full")
    assert curves(axes[3])[0] == {name: [(0, 2), (1, 2)] for name in names}
    for ax in axes[4:]:
        assert curves(ax)[0] == {name: [(0, near(6 / 7)), (1, near(6 / 7))] for name in names}


def test_no_best_rate_of_half_a_sweep(tmp_path):
    """While a sweep runs, a size has no best learning rate before it has as many as the others."""
    runs = [run for d in (32, 64) for run in seven(d=d, parameters_non_embedding=1000 * d)]
    *_, best, _, paper, _ = draw("mu_param", tmp_path, *runs[:-1])
    assert curves(best)[0] == {"standard model": [(0, 1e-2)]}
    assert curves(paper)[0] == {"standard model": [(0, near(6 / 7))]}


def test_coord_check(tmp_path):
    columns = [f"act_rms_{kind}" for kind in ("att", "c_fc", "residual", "logits")]
    runs = [
        dict(d=d, mu_param=mode, parameters_non_embedding=d * d, out=f"{mode}{d}")
        for d in (32, 64)
        for mode in ("off", "simple", "full")
    ]
    for run in runs:
        rows = {
            step: dict(
                lr=0.01 * step,
                act_rms_att=step * run["d"],
                update_rms_c_fc=0.5,
                update_rms_lm_head=0.25,
            )
            for step in range(1, 11)
        }
        logged(tmp_path, run, rows, [*columns, "update_rms_c_fc", "update_rms_lm_head"])
    axes = draw("coord_check", tmp_path, *runs)
    assert curves(axes[0])[0] == {f"step {s}": [(0, s * 32), (1, s * 64)] for s in (1, 2, 3, 6, 10)}
    # learning rate x RMS x inputs; the learning rate of every linear layer / m with muParam
    effect = [[y / (0.01 * 2) for _, y in curves(ax)[0]["step 2"]] for ax in axes[-6:]]
    assert effect[:3] == [[near(16), near(32)], [near(16), near(16)], [near(16), near(16)]]
    assert effect[3:] == [[near(8), near(16)], [near(8), near(8)], [near(8), near(8)]]


@pytest.mark.parametrize(
    "flag, values",
    [("steps", [100, 200]), ("batch", [8, 16]), ("beta2", [0.9, 0.999]), ("clip", [0, 1])],
)
def test_settings(tmp_path, flag, values):
    runs = [
        run
        for i, value in enumerate(values)
        for qk_norm in (0, 1)
        for run in seven(above=1 + i, qk_norm=qk_norm, **{flag: value})
    ]
    off, on, best, least, sensitivity = draw(flag, tmp_path, *runs)
    assert list(curves(off)[0]) == [f"{flag} {value:g}" for value in values]
    assert curves(sensitivity)[0] == {
        f"{qk} qk-norm": [(0, near(6 / 7)), (1, near(12 / 7))] for qk in ("without", "with")
    }
    ticks = [tick.get_text() for tick in best.get_xticklabels()]
    assert ticks == [f"{value:g}" for value in values]


def test_grid(tmp_path):
    runs = [dict(wd=wd, beta2=b, lr=lr) for wd in ("0", "1") for b in (0, 0.9) for lr in ("1", "2")]
    loss, logit = draw("grid", tmp_path / "a", *runs)
    assert curves(loss)[0] == curves(loss)[0]
    names = [f"beta2 {b}, wd {wd}" for b in ("0", "0.9") for wd in ("0", "1")]
    assert curves(loss)[0] == {name: [(1, 2), (2, 2)] for name in names}
    assert curves(logit)[0] == {name: [(1, 10), (2, 10)] for name in names}
    # one learning rate: against the first flag that varies and is a number
    runs = [
        dict(mu_param=mode, wd=wd, final_loss=i + 2)
        for mode in ("off", "full")
        for i, wd in enumerate(("0", "1e-2"))
    ]
    loss, _ = draw("grid", tmp_path / "b", *runs)
    line = [(0, 2), (1, 3)]
    assert curves(loss)[0] == {"standard model": line, "µParam full": line}
    assert [tick.get_text() for tick in loss.get_xticklabels()] == ["0", "1e-2"]
    assert loss.get_xlabel() == "wd"


def test_more_than_four_panels_go_to_a_second_row(tmp_path):
    runs = [dict(d=d, parameters_non_embedding=d * d) for d in range(8, 56, 8)]
    figure = plot.draw("weight_decay", read([sweep(tmp_path, *runs)]))
    spans = [ax.get_subplotspec() for ax in panels(figure)[:6]]
    assert [(s.rowspan.start, s.colspan.start) for s in spans] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (0, 3),
        (1, 0),
        (1, 1),
    ]


# Single runs


def test_log_of_known_data(tmp_path, capsys):
    head = (
        "step,tokens,lr,train_loss,val_loss,grad_norm,log_z,max_attn_logit_0,max_attn_logit_1,"
        "grad_rms_wte,update_rms_wte\n"
    )
    (tmp_path / "log.csv").write_text(
        head + "0,0,,,5.5,,,,,,\n10,1,1,4,,1,2,30,40,1e-3,.1\n20,2,1,3,3.5,1,-200,50,160,1e-9,.2\n"
        "30,3,1,-nan,,,,,,,\n40,3,1,2"
    )
    log = plot.read_log(tmp_path)
    assert len(log) == 4
    assert "line 6: 4 cells instead of 11; left out" in capsys.readouterr().err
    axes = panels(plot.draw_log({"run": log}, {"run": 1e-7}))
    assert [ax.get_ylabel() for ax in axes] == [label for label, *_ in plot.CURVES]
    lines = [curves(ax)[0] for ax in axes]
    assert lines[0] == {"train": [(10, 4), (20, 3)], "val": [(0, 5.5), (20, 3.5)]}
    assert lines[2] == {"layer 0": [(10, 30), (20, 50)], "layer 1": [(10, 40), (20, 160)]}
    assert lines[4] == {"wte": [(10, 1e-3), (20, 1e-9)]}
    assert lines[5] == {"wte": [(10, 0.1), (20, 0.2)]}
    # where the trainer's diagnosis warns, in the panels that it is in
    marks = [[x.get_ydata()[0] for x in ax.lines if x.get_label()[:5] == "limit"] for ax in axes]
    assert marks == [[], [], [100], [-128], [pytest.approx(1e-8)], []]
    axes = panels(plot.draw_log({"a": log, "b": log[:1]}, {}))  # b without a single step
    assert len(axes) == 12
    assert [ax.get_title() for ax in axes] == ["a", "b"] + [""] * 10


# Tables


def test_table(tmp_path):
    folders = [
        known(tmp_path / "a", qk_norm=0),
        sweep(tmp_path / "b", dict(seed=1, final_loss=2.5), dict(seed=2, final_loss=2.75, log_z=6)),
    ]
    result = run_plot("table", *folders)
    assert result.returncode == 0 and not result.stderr
    rows = rows_of(result.stdout)
    assert rows[0] == ["runs", "lr", "loss", "logit", "log_z", "diverged"]
    assert rows[1] == ["without qk-norm", "3e-4", "3.5", "-", "5", "0 of 1"]
    assert rows[8] == ["without qk-norm", "1", "6", "70", "5", "1 of 1"]
    seeds = ["2.625 (2.5 to 2.75)", "10", "5.5 (5 to 6)", "0 of 2"]
    assert rows[9] == ["with qk-norm", "1e-2", *seeds]
    assert rows[10] == ["runs", "best_lr", "best_loss", "sensitivity", "shifted"]
    # of one learning rate there is none; of 1e-3 to 1 it is larger
    assert rows[11:] == [["without qk-norm", "0.01", "2", "1.086", "1.086"]]
    for block in result.stdout.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(line) for line in lines}) <= 1  # aligned


# The libraries


def requirements(script):
    return re.findall(r'^#     "(\w+)>=([\d.]+)",$', (REPO / script).read_text(), re.M)


def test_the_lower_bounds_are_no_newer_than_debian_12():
    debian = dict(
        matplotlib="3.6.3", numpy="1.24.2", pandas="1.5.3", scipy="1.10.1", seaborn="0.12.2"
    )
    assert requirements("plot.py") == [(a, b) for a, b in debian.items() if a != "scipy"]
    assert requirements("predict.py") == list(debian.items())


@pytest.mark.parametrize("script", ["plot.py", "predict.py"])
def test_a_library_that_is_missing_or_old_gets_one_line(tmp_path, script):
    result = subprocess.run(
        [sys.executable, "-S", REPO / script, "x"], capture_output=True, text=True
    )
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert "needs matplotlib 3.6.3 or newer" in result.stderr
    assert "apt install python3-seaborn" in result.stderr and "pip install" in result.stderr
    (tmp_path / script).write_text((REPO / script).read_text().replace("0.12.2", "99"))
    (tmp_path / "plot.py").write_text(
        (tmp_path / script).read_text() if script == "plot.py" else (REPO / "plot.py").read_text()
    )
    result = subprocess.run(
        [sys.executable, tmp_path / script, "x"], capture_output=True, text=True
    )
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert "needs seaborn 99 or newer" in result.stderr


# Real sweeps


def uv(resolution, *arguments):
    """Runs plot.py with the oldest libraries that it asks for, or the newest of all."""
    options = f"--quiet --no-project --isolated --python 3.11 --resolution {resolution}".split()
    return subprocess.run(
        [
            Path(sys.executable).with_name("uv"),
            "run",
            *options,
            *("--with-requirements", REPO / "plot.py", "python", REPO / "plot.py"),
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=600,
    )


TINY = "-T 8 -batch 2 -steps 10 -eval_tokens 64 -eval_every 0".split()
SEVEN = ",".join(LRS[:7])
# flags in place of the experiment's own; else two widths
SOME = {
    "warmup": f"-d 16,32 -warmup 1%,25% -lr {SEVEN}",
    "depth_width": f"-d 16x1,16x2,32x2,32x1 -lr {SEVEN}",
    "steps": f"-steps 5,10 -d 16 -lr {SEVEN}",
    "batch": f"-batch 2,4 -d 16 -lr {SEVEN}",
    "beta2": f"-beta2 0.9,0.99 -d 16 -lr {SEVEN}",
    "clip": f"-clip 0,1 -d 16 -lr {SEVEN}",
    "predict_logits": "-lr 1e-2,1e-1",
    "predict_eps": "-lr 1e-2,1e-1",
    "z_loss": "-d 16 -lr 1e-2,1e-1",
    "coord_check": "-d 16,32 -lr 1e-2",
}
ALONE = ("lr", "grid")  # not sweep.sh's, or without flags of their own


@pytest.mark.skipif(not Path(PROGRAM).exists(), reason="train_gpt is not built")
def test_every_experiment_with_the_oldest_and_the_newest_libraries(tmp_path):
    """The runs of sweep.sh's own plan, in small; the held-out ones after the prediction. Every
    panel has lines, and a colour stands for one thing."""
    experiments = [name for name in plot.EXPERIMENTS if name not in ALONE]
    for name in experiments:
        flags = SOME.get(name, f"-d 16,32 -lr {SEVEN}").split()
        for flag, value in zip(TINY[::2], TINY[1::2]):
            flags += [flag, value] if flag not in flags else []
        command = [REPO / "sweep.sh", name, "-dry_run", "-seeds", "1", "-trainer", PROGRAM]
        plan = subprocess.run(
            [*command, "-out", name, "--", *flags], capture_output=True, text=True, cwd=tmp_path
        )
        assert plan.returncode == 0, plan.stderr
        script = "set -e\nexport OMP_NUM_THREADS=1\n" + re.sub(
            r"python3 predict.py ",
            f"{sys.executable} {REPO}/predict.py ",
            plan.stdout,
        )
        (tmp_path / name).mkdir()
        (tmp_path / name / "experiment").write_text(name + "\n")
        done = subprocess.run(
            ["bash"], input=script, cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / name / "prediction.csv").exists() == name.startswith("predict")
    sweep(tmp_path / "lr", *seven())
    grid = [dict(mu_param=mode, wd=wd) for mode in ("off", "full") for wd in ("0", "1e-2")]
    sweep(tmp_path / "grid", *grid, experiment="grid")
    for name, runs in plot.read_sweeps([tmp_path]).items():
        drawn, meaning = panels(plot.draw(name, runs)), {}
        empty = [ax.get_ylabel() for ax in drawn if not any(curves(ax)[0].values())]
        assert not empty, (name, empty)
        for line in (line for ax in drawn for line in ax.lines):
            if line.get_color() != "0.3" and not line.get_label().startswith("_"):
                meaning.setdefault(to_hex(line.get_color()), set()).add(line.get_label())
        assert all(len(labels) == 1 for labels in meaning.values()), (name, meaning)
    for resolution in "lowest-direct", "highest":
        predicted = [tmp_path / name for name in plot.PREDICTIONS]
        for command in [tmp_path, "-o", tmp_path / resolution], ["table", *predicted]:
            result = uv(resolution, *command)
            assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.count(": predicted before these runs, and observed.") == 3
        log = uv(resolution, "log", tmp_path / "clip" / "d16_lr1e-2_clip0_qk_norm0_seed1")
        assert (log.returncode, log.stderr) == (0, "")
        drawn = sorted(path.stem for path in (tmp_path / resolution).iterdir())
        assert drawn == sorted(plot.EXPERIMENTS)


@pytest.mark.skipif(not Path(PROGRAM).exists(), reason="train_gpt is not built")
@pytest.mark.parametrize(
    "name, flags, diverged",
    [
        ("all train", "", 0),
        ("the initial loss counts", "-warmup 0 -clip 0 -qk_norm 0 -beta2 0.1 -layers 6", 4),
        ("not finite", "-wd_independent 0 -wd 1000", 4),
    ],
)
def test_train_gpt_and_plot_py_agree_on_lr_sensitivity(tmp_path, name, flags, diverged):
    flags = f"-lr 3e-4:3e-1 -d 16 -heads 2 -T 8 -batch 2 -steps 30 -eval_tokens 64 {flags}"
    words = dict(zip(flags.split()[::2], flags.split()[1::2]))
    result = subprocess.run(
        [PROGRAM, *(x for pair in words.items() for x in pair), "-out", "sweep"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    printed = re.search(r"LR sensitivity.*?(\d+\.\d{3})\b", result.stdout, re.S)[1]
    runs = read([tmp_path / "sweep"])
    assert len(runs) == 7
    assert (runs.diverged > 0).sum() == diverged
    assert (runs.final_loss > runs.initial_loss).any() == (name == "the initial loss counts")
    assert runs.final_loss.isna().any() == (name == "not finite")
    found = plot.MEASURES["sensitivity"][2](runs).dropna()
    assert [f"{x:.3f}" for x in found] == [printed]
    assert rows_of(run_plot("table", "sweep", cwd=tmp_path).stdout)[-1][3] == f"{found[0]:.4g}"
