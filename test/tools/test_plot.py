"""plot.py: numbers against hand-computed ones, what the figures hold (their lines, not their
pixels), files that are not as they should be, and a real sweep."""

import csv
import importlib.util
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

REPO = Path(__file__).resolve().parents[2]
PROGRAM = os.environ.get("TRAIN_GPT", str(REPO / "train_gpt"))
spec = importlib.util.spec_from_file_location("plot", REPO / "plot.py")
plot = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plot)

RUN = dict(
    lr="1e-2",
    d=32,
    layers=2,
    heads=2,
    batch=16,
    steps=300,
    warmup="5%",
    beta2=0.95,
    eps="1e-08",
    clip=1,
    wd="0.0001",
    wd_independent=1,
    qk_norm=1,
    z_loss="0.0001",
    mu_param="off",
    base_d=32,
    seed=1,
    data="a, b.txt",
    out="x",
    threads=1,
    parameters=41184,
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


def read(folders):
    """The runs of one experiment."""
    found = plot.read_sweeps(folders)
    assert len(found) <= 1
    return next(iter(found.values()), [])


def known(folder, **flags):
    """Eight learning rates with the losses above."""
    return sweep(
        folder,
        *(
            dict(lr=lr, final_loss=x, diverged=int(math.isnan(x)), max_attn_logit=10 * i, **flags)
            for i, (lr, x) in enumerate(zip(LRS, LOSSES))
        ),
    )


def curves(ax):
    """{label: points} of the lines in the legend, and the crosses of the runs that diverged."""
    lines, crosses = {}, []
    for line in ax.lines:
        points = [(float(x), float(y)) for x, y in zip(*line.get_data()) if math.isfinite(x)]
        if line.get_marker() == "x":
            crosses += points
        elif not line.get_label().startswith(("entropy", "_child")):
            lines[line.get_label()] = points
    return lines, crosses


def words(figure, part=0):
    return [text.get_text() for text in figure.subfigs[part].legends[0].get_texts()]


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


def test_lr_sensitivity_by_hand(tmp_path):
    runs = read([known(tmp_path)])
    paper, n = plot.lr_sensitivity(runs, 3e-4, 3e-1)  # ends of the grid are in it, lr 1 is not
    assert n == 7 and paper == pytest.approx((3.5 + 2.5 + 2.2 + 2.0 + 2.4 + 3.0 + 6) / 7 - 2.0)
    high, n = plot.lr_sensitivity(runs, 3e-3, 3e-1)
    assert n == 5 and high == pytest.approx((2.2 + 2.0 + 2.4 + 3.0 + 6) / 5 - 2.0)
    # of one learning rate there is none
    assert math.isnan(plot.lr_sensitivity(runs[:1], 3e-4, 3e-1)[0])


def test_a_loss_above_the_initial_one_counts_as_the_initial(tmp_path):
    (run,) = read([sweep(tmp_path, dict(final_loss=9, diverged=1))])
    assert plot.loss(run) == 6


def test_median_and_interval_over_seeds(tmp_path):
    runs = read(
        [sweep(tmp_path, *(dict(seed=s, final_loss=x) for s, x in enumerate([2.0, 2.1, 3.0])))]
    )
    assert plot.over(runs, "lr", plot.loss).tolist() == [[1e-2, 2.1, 2.0, 3.0]]
    assert plot.lr_sensitivity(
        runs + read([sweep(tmp_path, dict(lr="1e-1", final_loss=4))]), 3e-4, 3e-1
    )[0] == pytest.approx((2.1 + 4) / 2 - 2.1)


def test_panels_lines_and_crosses(tmp_path):
    """off on the left, on on the right; a line a size with the losses as written; crosses on the
    runs that diverged and nowhere else."""
    folders = [
        known(tmp_path / "off", qk_norm=0),
        sweep(tmp_path / "on", dict(lr="1e-2"), dict(lr="1e-1", d=64, parameters=2e6)),
    ]
    figure = plot.draw("lr", read(folders))
    (top_off, top_on), (low_off, low_on) = np.reshape(figure.axes, (2, 2))
    assert top_off.get_title() == "without qk-norm" and top_on.get_title() == "with qk-norm"
    assert top_off.get_ylim() == top_on.get_ylim() and low_off.get_ylim() == low_on.get_ylim()
    assert (
        [ax.get_xscale() for ax in figure.axes] == ["log"] * 4
        and top_off.get_yscale() == "linear"
        and low_off.get_yscale() == "log"
    )
    small, large = "d 32 (41.2k parameters)", "d 64 (2M parameters)"
    expected = [(float(lr), 6 if math.isnan(x) else x) for lr, x in zip(LRS, LOSSES)]
    lines, crosses = curves(top_off)
    assert lines[small] == expected and not lines[large] and crosses == expected[-2:]
    lines, crosses = curves(top_on)
    assert lines == {small: [(1e-2, 2)], large: [(1e-1, 2)]} and not crosses
    lines, crosses = curves(low_off)
    # the first logit, 0, was never logged
    assert lines[small] == [(float(lr), 10 * i) for i, lr in enumerate(LRS)][1:]
    assert crosses == [(0.3, 60), (1, 70)]
    assert words(figure) == [
        small,
        large,
        "entropy of the language: no model can go below",
        "diverged",
    ]


def test_interval_band_and_a_seed_that_diverged(tmp_path):
    folder = sweep(
        tmp_path,
        *(
            dict(lr=lr, seed=s, final_loss=x, diverged=int(math.isnan(x)))
            for lr, xs in [("1e-2", [2, 2.25, 2.5]), ("1e-1", [3, 4, math.nan])]
            for s, x in enumerate(xs)
        ),
    )
    ax = plot.draw("lr", read([folder])).axes[0]
    lines, crosses = curves(ax)
    assert list(lines.values()) == [[(1e-2, 2.25), (1e-1, 4)]] and crosses == [(1e-1, 6)]
    corners = {tuple(np.round(p, 6)) for p in ax.collections[0].get_paths()[0].vertices}
    assert corners == {(1e-2, 2), (1e-2, 2.5), (1e-1, 3), (1e-1, 6)}


def test_colours_are_ordered_and_differ_in_grey():
    for n in range(2, 9):
        grey = [np.dot(plot.look(i, n)["color"][:3], [0.299, 0.587, 0.114]) for i in range(n)]
        assert all(np.diff(grey) < -0.04) and max(grey) < 0.8
        assert len({plot.look(i, n)["marker"] for i in range(n)}) == n


def test_the_floor_only_where_it_is_the_same(tmp_path):
    def floors(*values):
        folder = sweep(tmp_path, *(dict(lr=lr, entropy_floor=x) for lr, x in zip(LRS, values)))
        return [
            line.get_ydata()[0]
            for line in plot.draw("lr", read([folder])).axes[0].lines
            if line.get_label().startswith("entropy")
        ]

    assert (
        floors(0.9, 0.9) == [0.9]
        and floors(0.9, 0.8) == []
        and floors("", "") == []
        and floors(0.9, "") == []
    )


def test_runs_that_differ_otherwise_are_no_seeds_of_each_other(tmp_path):
    runs = read(
        [
            sweep(
                tmp_path,
                dict(warmup="5%"),
                dict(warmup="10%"),
                dict(d=16, steps=100, parameters=1e4),
            )
        ]
    )
    # small to large; what all have is not said
    names = list(plot.by_name(runs, ["d", "layers"], ["lr", "qk_norm"]))
    assert names == [
        "d 16, warmup 5% (10k parameters)",
        "d 32, warmup 5% (41.2k parameters)",
        "d 32, warmup 10% (41.2k parameters)",
    ]


def test_a_run_given_twice_counts_once(tmp_path):
    a, b = (
        sweep(tmp_path / "a", dict(lr="1e-2", out="a")),
        sweep(tmp_path / "b", dict(lr="0.01", out="b")),
    )
    assert len(read([a, a, b])) == 1


def test_a_folder_of_sweeps_and_an_unfinished_sweep(tmp_path):
    sweep(tmp_path / "s" / "lr1e-2", dict(lr="1e-2"))
    sweep(tmp_path / "s" / "lr1e-1", dict(lr="1e-1"))
    assert [run["lr"] for run in read([tmp_path / "s"])] == [0.1, 0.01]


def test_table(tmp_path):
    folders = [
        known(tmp_path / "a", qk_norm=0),
        sweep(tmp_path / "b", dict(seed=1, final_loss=2.5), dict(seed=2, final_loss=2.75, log_z=6)),
    ]
    result = run_plot("table", *folders)
    assert result.returncode == 0 and not result.stderr
    rows = rows_of(result.stdout)
    assert rows[0] == [
        "qk_norm",
        "learning rate",
        "final loss",
        "max attention logit",
        "log Z",
        "diverged",
    ]
    assert rows[1] == ["0", "3e-4", "3.5000", "-", "5.000", "0 of 1"]
    assert rows[8] == ["0", "1", "6.0000", "70", "5.000", "1 of 1"]
    assert rows[9] == ["1", "1e-2", "2.6250 (2.500 to 2.750)", "10", "5.500", "0 of 2"]
    assert rows[10] == ["qk_norm", "best LR", "3e-4 to 3e-1", "3e-3 to 3e-1"]
    # of one learning rate there is none
    assert rows[11:] == [["0", "1e-2", "1.0857 (7)", "1.1200 (5)"]]
    for block in result.stdout.split("\n\n"):
        # aligned
        assert len({len(line) for line in block.splitlines() if line.startswith("|")}) <= 1


HEADER = (
    "lr,d,layers,heads,steps,warmup,qk_norm,seed,out,threads,parameters,initial_loss,final_loss,"
    "entropy_floor,diverged,max_attn_logit,log_z"
)
GOOD = "1e-2,32,2,2,300,5%,1,7,x,1,41184,6,2,0.9,0,10,5"
BAD = {
    "empty": (b"", "is empty"),
    "header": (HEADER.encode() + b"\n", "has no rows yet"),
    "foreign": (b"name,age\nAda,36\n", "has no column lr: not written by train_gpt"),
    "cut": (
        f"{HEADER}\n{GOOD}\n{GOOD[:30]}".encode(),
        f"line 3 has {GOOD[:30].count(',') + 1} cells, not 17: left out",
    ),
    "word": (
        f"{HEADER}\n{GOOD.replace('1e-2', 'fast')}\n".encode(),
        "line 2: lr is 'fast', not a number: left out",
    ),
    "damaged": (
        f"{HEADER}\n{GOOD.replace(',2,0.9', ',2?0,0.9')}\n".encode(),
        "line 2: final_loss is '2?0', not a number: left out",
    ),
    "missing": (
        f"{HEADER}\n{GOOD.replace(',2,0.9', ',,0.9')}\n{GOOD}x,\n".encode(),
        "line 2: final_loss is '', but the run did not diverge: left out, and 1 more",
    ),
    "binary": (bytes(range(256)) * 20, "has no column lr"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_summary_is_named_and_does_not_stop_the_rest(tmp_path, capsys, name):
    contents, message = BAD[name]
    (tmp_path / name).mkdir()
    (tmp_path / name / "summary.csv").write_bytes(contents)
    good = known(tmp_path / "good")
    runs = read([str(tmp_path / name), good])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{name}/summary.csv: " in said and message in said
    assert len(runs) == 8 + (name == "cut")


def test_nothing_to_draw(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad").mkdir()
    (tmp_path / "sweep" / "lr1").mkdir(parents=True)
    (tmp_path / "sweep" / "lr1" / "log.csv").touch()
    for arguments in ["bad", "nowhere"], ["table", "bad"], ["log", "bad"], ["log", "sweep"], []:
        assert plot.main(arguments) == 1
        said = capsys.readouterr().err
        assert "nothing to show" in said and ("such as sweep/lr1" in said) == (
            arguments[-1:] == ["sweep"]
        )
    assert not (tmp_path / "figures").exists()
    assert run_plot("bad", cwd=tmp_path).returncode == 1


@pytest.mark.parametrize(
    "arguments", [["-format", "gif"], ["-colour", "red"], ["log"], ["table", "-format", "png"]]
)
def test_usage(arguments):
    with pytest.raises(SystemExit) as exit:
        plot.main(arguments)
    assert exit.value.code == 2


def test_an_output_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert plot.main([known(tmp_path / "a"), "-o", str(tmp_path / "file")]) == 1
    said = capsys.readouterr().err
    assert str(tmp_path / "file") in said and said.count("\n") == 1


def test_log_of_known_data(tmp_path, capsys):
    head = (
        "step,tokens,lr,train_loss,val_loss,grad_norm,log_z,max_attn_logit_0,max_attn_logit_1,"
        "grad_rms_wte,update_rms_wte\n"
    )
    (tmp_path / "log.csv").write_text(
        head + "0,0,,,5.5,,,,,,\n10,1,1,4,,1,2,30,40,1e-3,.1\n20,2,1,3,3.5,1,2,50,60,1e-4,.2\n"
        "30,3,1,-nan,,,,,,,\n40,3,1,2"
    )
    rows = plot.read_csv(tmp_path / "log.csv", "step", "train_loss")
    assert len(rows) == 4 and "line 6 has 4 cells, not 11" in capsys.readouterr().err
    axes = plot.draw_log({"run": rows}, {"run": plot.diagnosis(rows)}).axes
    assert [ax.get_ylabel() for ax in axes] == [title for title, _, _ in plot.PANELS]
    lines = [curves(ax)[0] for ax in axes]
    assert lines[0]["train"] == [(10, 4), (20, 3)] and lines[0]["val"] == [(0, 5.5), (20, 3.5)]
    # from the axes' bottom to the top
    assert all(
        line["_not finite" if i == 0 else "_"] == [(30, 0), (30, 1)] for i, line in enumerate(lines)
    )
    assert lines[2]["layer 0"] == [(10, 30), (20, 50)] and lines[2]["layer 1"] == [
        (10, 40),
        (20, 60),
    ]
    assert lines[4]["wte"] == [(10, 1e-3), (20, 1e-4)] and lines[5]["wte"] == [(10, 0.1), (20, 0.2)]
    # a column each, one of them without a single step
    assert len(plot.draw_log({"a": rows, "b": rows[:1]}).axes) == 12


def test_qk_norm_has_sensitivity_of_both_grids_below(tmp_path):
    runs = read(
        [
            known(tmp_path / "off", qk_norm=0),
            sweep(
                tmp_path / "on",
                *(dict(lr=lr, final_loss=x) for lr, x in zip(LRS, [3, 2, 2, 2, 2, 2, 2, 9])),
            ),
        ]
    )
    figure = plot.draw("qk_norm", runs)
    assert [(ax.get_ylabel(), ax.get_title()) for ax in figure.axes[4:]] == [
        ("LR sensitivity, nats", f"LR {grid}") for grid in ("3e-4 to 3e-1", "3e-3 to 3e-1")
    ]
    paper, high = (curves(ax)[0] for ax in figure.axes[4:])
    assert paper["without qk-norm"] == [
        (41184, pytest.approx((3.5 + 2.5 + 2.2 + 2.0 + 2.4 + 3.0 + 6) / 7 - 2))
    ]
    assert paper["with qk-norm"] == [(41184, pytest.approx(1 / 7))] and high["with qk-norm"] == [
        (41184, 0)
    ]
    assert words(figure, 1) == ["without qk-norm", "with qk-norm"]


def test_no_sensitivity_of_half_a_grid(tmp_path):
    """While a sweep runs, a size whose learning rates are not all there has no sensitivity, gap or
    best rate yet."""
    runs = [
        run
        for d in (32, 64)
        for qk_norm in (0, 1)
        for run in losses(
            {"1e-2": 2, "3e-2": 2.5, "1e-1": 3}, d=d, parameters=1000 * d, qk_norm=qk_norm
        )
    ]
    points = lambda experiment, missing, panel: [
        curves(ax)[0]
        for ax in plot.draw(
            experiment, read([sweep(tmp_path, *(run for run in runs if run is not missing))])
        ).axes
    ][panel]
    assert points("qk_norm", None, -1) == {
        f"{qk} qk-norm": [(32000, 0.5), (64000, 0.5)] for qk in ("without", "with")
    }
    assert points("qk_norm", runs[0], -1) == {
        "without qk-norm": [(64000, 0.5)],
        "with qk-norm": [(32000, 0.5), (64000, 0.5)],
    }
    assert points("depth_width", runs[0], -1)["width alone"] == [(64000, 0)]
    assert points("weight_decay", runs[-1], 2)["with qk-norm"] == [(32000, 1e-2)]


# Predictions

LAW = [-4, 2.7, 1.8, 0.8, 1.0]  # y = a + b x + c l + d x l + e l^2
WIDTHS = {d: 24 * d * d + 517 * d for d in (16, 24, 32, 48, 64, 96, 128, 192)}


def law(parameters, lr):
    x, l = math.log10(parameters), math.log10(lr)
    return np.dot(LAW, [1, x, l, x * l, l * l])


def prophecy(folder, noise, random, widths=(16, 24, 32, 48, 64), seeds=(1, 2), **other):
    """Runs whose largest attention logit follows the law, but for the noise (in log10)."""
    return sweep(
        folder,
        *(
            dict(
                lr=lr,
                d=d,
                heads=d // 8,
                parameters=WIDTHS[d],
                seed=seed,
                qk_norm=0,
                max_attn_logit=10 ** (law(WIDTHS[d], float(lr)) + noise * random.normal()),
                **other,
            )
            for d in widths
            for lr in ("3e-3", "1e-2", "3e-2", "1e-1")
            for seed in seeds
        ),
        experiment="predict_logits",
    )


def test_student():
    for dof, t in (2, 2.920), (3, 2.353), (5, 2.015), (10, 1.812), (30, 1.697), (1000, 1.646):
        assert plot.student(dof) == pytest.approx(t, rel=0.015 if dof == 2 else 0.005)


def test_regression_by_hand():
    """y = 0.5 + 0.8 x; residuals -0.3, 0.9, -0.9, 0.3; so 1.8 / 2 of variance, and at 5: 0.9 (1 +
    1/4 + 2.5^2/5) of a new run."""
    form, x = "a + b x, for each LR", np.array([1.0, 2, 3, 4])
    fits = plot.regress(form, x, np.full(4, -2.0), np.array([1.0, 3, 2, 4]))
    coefficients, covariance, dof, variance = fits[-2.0]
    assert (
        coefficients == pytest.approx([0.5, 0.8])
        and dof == 2
        and variance == pytest.approx(0.9)
        and covariance[1, 1] == pytest.approx(0.18)
    )
    mean, deviation, _ = plot.extrapolate(form, fits, np.array([5.0]), -2.0)
    assert mean[0] == pytest.approx(4.5) and deviation[0] == pytest.approx(1.5)
    # one degree of freedom is no interval
    assert plot.regress(form, x[:3], np.full(3, -2.0), x[:3]) == {}


def test_the_fit_finds_the_law_and_its_interval_holds_90_percent(tmp_path):
    random, inside = np.random.default_rng(1), []
    for i in range(60):
        runs = read([prophecy(tmp_path / str(i), 0.1, random)])
        x, l, y = (
            np.log10([run[name] for run in runs]) for name in ("parameters", "lr", "max_attn_logit")
        )
        form = "a + b x + c l + d x l + e l^2"
        fits = plot.regress(form, x, l, y)
        coefficients, covariance, dof, variance = fits[None]
        assert dof == 35 and variance == pytest.approx(0.01, rel=0.9)
        assert np.all(abs(coefficients - LAW) < 5 * np.sqrt(np.diag(covariance)))
        mean, deviation, dof = plot.extrapolate(form, fits, np.log10([WIDTHS[192]]), -2.0)
        inside.append(
            abs(law(WIDTHS[192], 1e-2) + 0.1 * random.normal() - mean[0])
            < plot.student(dof) * deviation[0]
        )
    assert 0.8 < np.mean(inside) < 0.98


def test_each_form_finds_its_own_law(tmp_path):
    """Without noise the coefficients are exact, and the rehearsal chooses a form that has the law
    in it."""
    x, l = map(
        np.ravel,
        np.meshgrid(
            np.log10([WIDTHS[d] for d in (16, 24, 32, 48, 64)] * 2),
            np.log10([3e-3, 1e-2, 3e-2, 1e-1]),
        ),
    )
    for form, (apart, terms) in plot.FORMS.items():
        true = np.linspace(1, -0.5, len(terms(x, l)))
        y = np.stack(terms(x, l), 1) @ true
        fits = plot.regress(form, x, l, y)
        assert len(fits) == (4 if apart else 1)
        for coefficients, *_ in fits.values():
            assert coefficients == pytest.approx(true, abs=1e-6)
        best = min(plot.FORMS, key=lambda form: np.abs(plot.rehearse(form, x, l, y)[0]).max())
        assert np.abs(plot.rehearse(best, x, l, y)[0]).max() < 1e-6


def test_prediction_is_written_once_and_drawn_as_written(tmp_path, capsys):
    random = np.random.default_rng(2)
    folder = prophecy(tmp_path, 0.05, random)
    assert plot.main(["predict", folder]) == 0
    said, path = capsys.readouterr().out, tmp_path / "prediction.csv"
    assert (
        "40 runs of 5 sizes, parameters: 14416 26232 41120 80112 131392" in said
        and "y = a + b x + c l + d x l + e l^2" in said
    )
    rows = [row for row in csv.DictReader(line for line in path.open() if not line.startswith("#"))]
    (held,) = [row for row in rows if row["lr"] == "1e-2" and row["d"] == "96"]
    assert int(held["parameters"]) == WIDTHS[96] and held["fitted"] == "0"
    assert float(held["predicted"]) == pytest.approx(10 ** law(WIDTHS[96], 1e-2), rel=0.2)
    x, l, y = (
        np.log10([run[name] for run in read([folder])])
        for name in ("parameters", "lr", "max_attn_logit")
    )
    form, widen = (
        "a + b x + c l + d x l + e l^2",
        float(re.search(r"times ([\d.]+)", said).group(1)),
    )
    _, deviation, dof = plot.extrapolate(
        form, plot.regress(form, x, l, y), np.log10([WIDTHS[96]]), -2.0
    )
    assert widen >= 1 and [
        math.log10(float(held[end]) / float(held["predicted"])) for end in ("high", "low")
    ] == pytest.approx(
        [sign * plot.student(dof) * widen * deviation[0] for sign in (1, -1)], rel=0.01
    )
    assert {int(row["parameters"]) for row in rows if row["fitted"] == "1"} == {
        WIDTHS[d] for d in (16, 24, 32, 48, 64)
    }
    # Where it passes 100: 10^x with a + b x + c l + d x l + e l^2 = 2
    for lr in 3e-3, 1e-2, 3e-2:
        l = math.log10(lr)
        truth = 10 ** ((2 - LAW[0] - LAW[2] * l - LAW[4] * l * l) / (LAW[1] + LAW[3] * l))
        (line,) = [
            line
            for line in said.splitlines()
            if line.startswith(f"LR {plot.sci(lr)}: passes 100 at ")
        ]
        number, unit = re.match(r".* at ([\d.]+)([kM]) parameters", line).groups()
        assert float(number) * {"k": 1e3, "M": 1e6}[unit] == pytest.approx(
            truth, rel=0.3
        ) and line.endswith("within the fit") == (truth < WIDTHS[64])
    before = path.read_bytes()
    prophecy(tmp_path, 0.05, random, widths=(16, 24, 32, 48, 64, 96, 128))
    assert plot.main(["predict", folder]) == 1 and path.read_bytes() == before
    assert (
        capsys.readouterr().err
        == f"plot.py: {path}: is there already; a prediction is made once, before its outcome is"
        " known\n"
    )
    # The figure: the file's curve, although the runs would now give another; hollow points up to d
    # 64, full ones after
    path.write_text(
        re.sub(r"^1e-2,96,(\d+),0,[^,]+,", r"1e-2,96,\1,0,12345,", before.decode(), flags=re.M)
    )
    left, right = plot.draw("predict_logits", read([folder])).axes
    assert left.get_xscale() == left.get_yscale() == right.get_xscale() == "log"
    assert (
        sum(12345 in line.get_ydata() for line in left.lines if line.get_linestyle() == "--") == 1
    )
    hollow, full = (
        {
            x
            for line in left.lines
            if len(line.get_xdata())
            and line.get_linestyle() == "None"
            and (line.get_markerfacecolor() == "white") == white
            for x in line.get_xdata()
        }
        for white in (True, False)
    )
    assert hollow == {WIDTHS[d] for d in (16, 24, 32, 48, 64)} and full == {
        WIDTHS[d] for d in (96, 128)
    }
    # not of those past it from the start or never
    marks = [line.get_xdata()[0] for line in right.lines if line.get_label() == "_past"]
    assert marks == [pytest.approx(x, rel=0.2) for x in (1.4e5, 2.2e4)]
    table = run_plot("table", folder).stdout
    assert (
        "| 96 |" in table.split("What was predicted")[1].replace("  ", " ")
        and "12345" not in table.split("What was")[0]
    )


def test_a_prediction_that_cannot_be_made(tmp_path, capsys):
    random = np.random.default_rng(3)
    for folder, message in (
        (
            known(tmp_path / "a"),
            "its experiment is lr; a prediction is for predict_logits or predict_eps",
        ),
        (
            prophecy(tmp_path / "b", 0.1, random, widths=(16, 32, 64)),
            "runs of 3 sizes: a prediction needs 4, better 5 or more",
        ),
    ):
        assert plot.main(["predict", folder]) == 1
        assert (
            capsys.readouterr().err == f"plot.py: {folder}: {message}\n"
            and not (Path(folder) / "prediction.csv").exists()
        )


def test_two_predictions_and_a_damaged_one(tmp_path, capsys):
    random = np.random.default_rng(4)
    a, b = (
        prophecy(tmp_path / name, 0.05, random, seeds=(seed,)) for seed, name in enumerate("ab")
    )
    assert plot.main(["predict", a]) == plot.main(["predict", b]) == 0
    prediction, runs = plot.read_prediction(read([a, b]))
    assert (
        {str(run["sweep"]) for run in runs} == {a}
        and len(prediction) == 4
        and f"{b}/prediction.csv: another prediction than {a}" in capsys.readouterr().err
    )
    path = Path(a) / "prediction.csv"
    path.write_text(re.sub("^3e-3,.*", "3e-3,16,x", path.read_text(), flags=re.M))
    assert (
        plot.main([a, "-o", str(tmp_path / "f"), "-format", "svg"]) == 0
        and "prediction.csv: line " in capsys.readouterr().err
    )
    assert list(plot.read_prediction(read([a]))[0]) == [1e-2, 3e-2, 1e-1]


def test_without_its_columns_there_is_no_figure_but_the_others(tmp_path, capsys):
    for name in "predict_eps", "qk_norm":
        (tmp_path / name).mkdir()
        (tmp_path / name / "experiment").write_text(name)
        (tmp_path / name / "summary.csv").write_text(f"{HEADER}\n{GOOD}\n")
    assert plot.main([str(tmp_path), "-o", str(tmp_path / "f"), "-format", "svg"]) == 0
    assert (
        capsys.readouterr().err
        == f"plot.py: {tmp_path}/predict_eps: no figure of predict_eps: its runs have no column"
        " 'eps', or a word in it where a number should be\n"
    )
    assert [path.name for path in (tmp_path / "f").iterdir()] == ["qk_norm.svg"]
    assert plot.main(["predict", str(tmp_path / "predict_eps")]) == 1
    assert (
        capsys.readouterr().err
        == f"plot.py: {tmp_path}/predict_eps: no prediction: its runs have no column 'eps'\n"
    )


def test_crossing():
    x = np.array([4, 5, 6])
    assert plot.crossing(x, np.array([1, 3, 3]), 100, True) == pytest.approx(10**4.5)
    assert plot.crossing(x, np.array([3, 1, -1]), 100, False) == pytest.approx(10**4.5)
    assert (
        plot.crossing(x, np.array([0, 1, 1.9]), 100, True) == math.inf
        and plot.crossing(x, np.array([3, 3, 3]), 100, True) == 1e4
    )


# The other experiments


def losses(table, **flags):
    """Runs of a table {learning rate: loss}."""
    return [
        dict(lr=lr, final_loss=x, diverged=int(math.isnan(x)), **flags) for lr, x in table.items()
    ]


def logged(folder, run, rows, columns):
    """A sweep's run with its log."""
    path = folder / run["out"]
    path.mkdir(parents=True, exist_ok=True)
    head = [
        "step",
        "lr",
        "train_loss",
        "val_loss",
        "grad_norm",
        *dict.fromkeys(["log_z", *columns]),
    ]
    with open(path / "log.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, head, restval=1)
        writer.writeheader()
        writer.writerows({"step": step} | row for step, row in rows.items())


def test_z_loss(tmp_path):
    runs = [
        dict(lr=lr, z_loss=z, wd=wd, log_z=3, out=f"z{z}wd{wd}lr{lr}")
        for lr in ("1e-2", "3e-2", "1e-1")
        for z in ("0", "1e-4")
        for wd in ("0", "1e-4")
    ]
    for run in runs:
        logged(
            tmp_path,
            run,
            {
                0: {},
                10: dict(log_z=float(run["z_loss"]) * 1e4 + 1),
                20: dict(log_z=float(run["lr"])),
            },
            [],
        )
    figure = plot.draw("z_loss", read([sweep(tmp_path, *runs, experiment="z_loss")]))
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == [
        "wd 0",
        "wd 1e-4",
        "",
        "",
        "wd 0, LR 1e-2",
        "wd 0, LR 1e-1",
        "wd 1e-4, LR 1e-2",
        "wd 1e-4, LR 1e-1",
    ]
    assert curves(figure.axes[2])[0] == {
        f"z_loss {z}": [(lr, 3) for lr in (1e-2, 3e-2, 1e-1)] for z in ("0", "1e-4")
    }
    # step 0 knows no log Z
    assert curves(figure.axes[7])[0] == {
        "z_loss 0": [(10, 1), (20, 0.1)],
        "z_loss 1e-4": [(10, 2), (20, 0.1)],
    }


def test_warmup(tmp_path):
    runs = [
        run
        for warmup, x in (("1%", 2.5), ("15", 2.4), ("25%", 2.25))
        for run in losses({"1e-2": 2, "1e-1": x}, warmup=warmup, qk_norm=0)
    ]
    # 15 of 300 steps are 5%
    figure = plot.draw("warmup", read([sweep(tmp_path, *runs, experiment="warmup")]))
    over_lr, sensitivity, fixed = figure.axes
    assert (
        list(curves(over_lr)[0]) == ["warmup 1%", "warmup 5%", "warmup 25%"]
        and over_lr.get_title() == "without qk-norm, d 32"
    )
    assert curves(sensitivity)[0] == {
        f"warmup {w}%": [(41184, pytest.approx(s))] for w, s in ((1, 0.25), (5, 0.2), (25, 0.125))
    }
    # what it is from; and once, as both grids give this
    assert sensitivity.get_title() == "without qk-norm, LR 1e-2 to 1e-1"
    assert fixed.get_title() == "without qk-norm, LR 1e-1"
    assert curves(fixed)[0] == {"d 32 (41.2k parameters)": [(1, 2.5), (5, 2.4), (25, 2.25)]}
    assert [tick.get_text() for tick in fixed.get_xticklabels()] == ["1", "5", "25"]


def test_weight_decay(tmp_path):
    runs = [
        run
        for d in (16, 32)
        for independent, wd, x in ((1, "1e-4", 2), (0, "1e-2", 2.5), (0, "1", 4))
        for run in losses(
            {"1e-3": 2, "1e-2": x, "1e-1": 3},
            d=d,
            parameters=1000 * d,
            wd=wd,
            wd_independent=independent,
        )
    ]
    figure = plot.draw("weight_decay", read([sweep(tmp_path, *runs, experiment="weight_decay")]))
    assert [ax.get_title() for ax in figure.axes[:2]] == ["d 16", "d 32"]
    names = ["standard, wd 0.01", "standard, wd 1", "independent, wd 1e-4"]
    assert list(curves(figure.axes[0])[0]) == names
    best, paper, high = (curves(ax)[0] for ax in figure.axes[2:])
    assert paper["standard, wd 1"] == [(16000, 1), (32000, 1)] and high["standard, wd 1"] == [
        (16000, 0.5),
        (32000, 0.5),
    ]
    assert best["standard, wd 0.01"] == [(16000, 1e-3), (32000, 1e-3)]


def test_depth_width(tmp_path):
    sizes = [(32, 1), (32, 2), (32, 4), (16, 2), (64, 2), (16, 1), (48, 4)]
    runs = [
        run
        for d, layers in sizes
        for qk_norm in (0, 1)
        for run in losses(
            {"1e-2": 2, "1e-1": 2 + 0.01 * d * layers * (1 - qk_norm) + 0.5},
            d=d,
            layers=layers,
            parameters=12 * d * d * layers + qk_norm,
            qk_norm=qk_norm,
        )
    ]
    figure = plot.draw("depth_width", read([sweep(tmp_path, *runs, experiment="depth_width")]))
    assert [ax.get_title() for ax in figure.axes[:6]] == [
        f"{qk} qk-norm, {way}"
        for qk in ("without", "with")
        for way in ("depth alone", "width alone", "both")
    ]
    shown = [
        [name.split(" (")[0] for name, points in curves(ax)[0].items() if points]
        for ax in figure.axes[:3]
    ]
    assert shown == [
        ["d 32, layers 1", "d 32, layers 2", "d 32, layers 4"],
        ["d 16, layers 2", "d 32, layers 2", "d 64, layers 2"],
        ["d 16, layers 1", "d 32, layers 2", "d 48, layers 4"],
    ]
    gap = curves(figure.axes[-1])[0]
    assert gap == {
        way: [(12 * d * d * layers, pytest.approx(0.005 * d * layers)) for d, layers in members]
        for way, members in (
            ("depth alone", sizes[:3]),
            ("width alone", [sizes[3], sizes[1], sizes[4]]),
            ("both", [sizes[5], sizes[1], sizes[6]]),
        )
    }


def test_mu_param(tmp_path):
    best = {("off", 32): "3e-2", ("off", 64): "1e-2", ("full", 32): "3e-2", ("full", 64): "3e-2"}
    runs = [
        run
        for (mode, d), lr in best.items()
        for run in losses(
            {x: 2 if x == lr else 3 for x in ("3e-3", "1e-2", "3e-2", "1e-1")},
            d=d,
            mu_param=mode,
            parameters=d * d,
        )
    ]
    figure = plot.draw("mu_param", read([sweep(tmp_path, *runs, experiment="mu_param")]))
    assert [ax.get_title() for ax in figure.axes] == [
        "standard model",
        "µParam full",
        "",
        "LR 3e-3 to 1e-1",
    ]
    assert list(curves(figure.axes[0])[0]) == ["d 32 (1.02k parameters)", "d 64 (4.1k parameters)"]
    assert curves(figure.axes[2])[0] == {
        "standard model": [(32, 3e-2), (64, 1e-2)],
        "µParam full": [(32, 3e-2), (64, 3e-2)],
    }
    assert curves(figure.axes[3])[0] == {
        name: [(32, 0.75), (64, 0.75)] for name in ("standard model", "µParam full")
    }


def test_coord_check(tmp_path):
    columns = [f"act_rms_{kind}" for kind in ("att", "c_fc", "residual", "logits")] + [
        "update_rms_c_fc",
        "update_rms_lm_head",
    ]
    runs = [
        dict(d=d, heads=4, mu_param=mode, base_d=32, parameters=d * d, out=f"{mode}{d}")
        for d in (32, 64)
        for mode in ("off", "simple", "full")
    ]
    for run in runs:
        logged(
            tmp_path,
            run,
            {
                step: dict(
                    lr=0.01 * step,
                    act_rms_att=step * run["d"],
                    update_rms_c_fc=0.5,
                    update_rms_lm_head=0.25,
                )
                for step in range(1, 11)
            },
            columns,
        )
    figure = plot.draw("coord_check", read([sweep(tmp_path, *runs, experiment="coord_check")]))
    rows = np.reshape([curves(ax)[0] for ax in figure.axes], (6, 3))
    assert rows[0, 0] == {f"step {s}": [(32, s * 32), (64, s * 64)] for s in (1, 2, 3, 6, 10)}
    # learning rate x RMS x inputs
    effect = lambda cells: [[y / (0.01 * 2) for _, y in lines["step 2"]] for lines in cells]
    # hidden: learning rate / m in every mode of muParam
    assert effect(rows[4]) == [[16, 32], [16, 16], [16, 16]]
    # head: logits / m in intermediate and full
    assert effect(rows[5]) == [[8, 16], [8, 16], [8, 8]]
    assert {
        line.get_linestyle()
        for ax in figure.axes
        for line in ax.lines
        if line.get_label().startswith("step")
    } == {"-"}


@pytest.mark.parametrize(
    "flag, values",
    [("steps", [100, 200]), ("batch", [8, 16]), ("beta2", [0.9, 0.999]), ("clip", [0, 1])],
)
def test_settings(tmp_path, flag, values):
    runs = [
        run
        for i, value in enumerate(values)
        for qk_norm in (0, 1)
        for run in losses(
            {"1e-2": 2, "1e-1": 3 + i, "3e-1": math.nan}, qk_norm=qk_norm, **{flag: value}
        )
    ]
    figure = plot.draw(flag, read([sweep(tmp_path, *runs, experiment=flag)]))
    off, on, best, sensitivity = figure.axes
    assert list(curves(off)[0]) == [f"{flag} {value:g}" for value in values] and curves(off)[1] == [
        (0.3, 6),
        (0.3, 6),
    ]
    at = [0, 1] if flag in ("beta2", "clip") else values
    assert curves(sensitivity)[0] == {
        f"{qk} qk-norm": [(at[0], pytest.approx(11 / 3 - 2)), (at[1], pytest.approx(4 - 2))]
        for qk in ("without", "with")
    }
    assert [tick.get_text() for tick in best.get_xticklabels()] == [
        f"{value:g}" for value in values
    ]


def test_predict_eps(tmp_path):
    """The gradient's RMS at the end falls as 1e3 lr^-1 parameters^-1.5; epsilon varies at the
    largest size."""

    def run(d, lr, eps="1e-8", **more):
        run = (
            dict(d=d, heads=d // 8, lr=lr, eps=eps, parameters=WIDTHS[d], out=f"d{d}lr{lr}eps{eps}")
            | more
        )
        end = 1e3 / float(lr) * WIDTHS[d] ** -1.5
        logged(
            tmp_path,
            run,
            {
                step: dict(grad_rms_c_fc=end if step > 90 else 1, update_rms_c_fc=0.1 / float(eps))
                for step in range(10, 101, 10)
            },
            ["grad_rms_c_fc", "update_rms_c_fc"],
        )
        return run

    runs = [run(d, lr) for d in (16, 24, 32, 48, 64) for lr in ("1e-2", "3e-2", "1e-1")]
    folder = sweep(tmp_path, *runs, experiment="predict_eps")
    said = plot.predict("predict_eps", read([folder]), tmp_path / "prediction.csv")
    meets = (1e3 / 0.1 / 1e-8) ** (1 / 1.5)
    assert f"LR 1e-1: falls below 1e-8 at {plot.short(meets)[:3]}" in said
    sweep(
        tmp_path,
        *runs,
        run(96, "1e-2"),
        *(run(96, "1e-1", eps, final_loss=3) for eps in ("1e-8", "1e-6", "1e-15")),
        experiment="predict_eps",
    )
    figure = plot.draw("predict_eps", read([folder]))
    gradient, against_lr, _, update, loss = figure.axes
    assert gradient.get_ylim()[0] < 1e-8 and max(
        WIDTHS[96] in line.get_xdata() for line in gradient.lines
    )
    assert curves(against_lr)[0]["d 96 (271k parameters)"] == [
        (float(lr), pytest.approx(1e3 / float(lr) * WIDTHS[96] ** -1.5)) for lr in ("1e-2", "1e-1")
    ]
    assert curves(update)[0] == {
        "LR 1e-1": [
            (1e-15, pytest.approx(1e14)),
            (1e-8, pytest.approx(1e7)),
            (1e-6, pytest.approx(1e5)),
        ]
    }
    assert curves(loss)[0] == {"LR 1e-1": [(1e-15, 3), (1e-8, 3), (1e-6, 3)]}


# What a run's log shows


def test_diagnosis_marks_the_steps():
    def log(**columns):
        n = max(map(len, columns.values()))
        columns = dict(lr=[1] * n, train_loss=[3.0] * n, log_z=[1.0] * n) | columns
        return [
            dict(step=10.0 * i) | {name: float(x[i]) for name, x in columns.items()}
            for i in range(n)
        ]

    run = dict(eps=1e-8, warmup="10%", steps=200.0)
    says = lambda **columns: plot.diagnosis(log(**columns), run)
    # the worst layer
    assert says(max_attn_logit_0=[1, 101, 150], max_attn_logit_1=[1, 99, 200]) == [
        ("max_attn_logit_", 20, "past 100, layer 1")
    ]
    assert says(max_attn_logit_0=[1, 99, 100]) == [] and says(log_z=[1, -4.9, -5]) == []
    assert says(log_z=[1, -5.1, -9]) == [("log_z", 10, "below -5")]
    gone = dict(update_rms_wte=[1, 0.2, 1, 0.2, 0.1], grad_rms_wte=[1e-8] * 5)
    assert says(**gone) == [("update_rms_", 30, "wte met epsilon")]  # from where on it stayed
    assert (
        says(**gone | dict(grad_rms_wte=[1e-6] * 5)) == []
        and says(**gone | dict(update_rms_wte=[1, 1, 1, 1, 0.31])) == []
    )
    # of 20 steps
    assert says(train_loss=[math.nan, 3, 3.6, 3]) == [("train_loss", 20, "spike in warm-up")]
    assert (
        says(train_loss=[math.nan, 3, 3, 3.6]) == []
        and says(train_loss=[math.nan, 3, 3.4, 3]) == []
    )
    # its end: the highest rate
    assert plot.diagnosis(log(train_loss=[math.nan, 3, 3, 3.6], lr=[0, 1, 2, 3])) == [
        ("train_loss", 30, "spike in warm-up")
    ]
    stop = says(train_loss=[math.nan, 3, math.nan])
    assert stop[0] == ("train_loss", 20, "not finite") and len(stop) == 6
    run["diverged"] = 1.0
    assert says(train_loss=[math.nan, 7, 7]) == [("train_loss", 20, "not below the initial")]


def test_log_draws_what_the_diagnosis_says(tmp_path):
    run = dict(out="run", eps="1e-8")
    sweep(tmp_path / "run", run)
    logged(
        tmp_path,
        run,
        {0: {}, 10: dict(max_attn_logit_0=10), 20: dict(max_attn_logit_0=1000)},
        ["max_attn_logit_0"],
    )
    assert run_plot("log", tmp_path / "run", "-o", tmp_path, "-format", "svg").returncode == 0
    rows = plot.read_log(tmp_path / "run")
    ax = plot.draw_log({"run": rows}, {"run": plot.diagnosis(rows)}).axes[2]
    assert [text.get_text() for text in ax.texts] == ["past 100, layer 0"] and curves(ax)[0][
        "_past 100, layer 0"
    ] == [(20, 0), (20, 1)]


# Sweeps on the way


def test_a_stale_table_and_runs_of_their_own(tmp_path):
    """The joined table is written from time to time: a run's own summary counts too, and once."""
    sweep(tmp_path, dict(lr="1e-2", out="s/a"), experiment="qk_norm")
    sweep(tmp_path / "a", dict(lr="1e-2", out="s/a"))
    sweep(tmp_path / "b", dict(lr="1e-1", out="s/b"))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "log.csv").write_text("step\n")  # begun
    found = plot.read_sweeps([tmp_path])
    assert list(found) == ["qk_norm"] and [
        (run["lr"], run["folder"]) for run in found["qk_norm"]
    ] == [(1e-2, tmp_path / "a"), (1e-1, tmp_path / "b")]


def test_sweeps_of_several_experiments(tmp_path, capsys):
    sweep(tmp_path / "a", dict(lr="1e-2"), experiment="qk_norm")
    sweep(tmp_path / "b", dict(lr="1e-1"), experiment="qk_norm")
    sweep(tmp_path / "c", dict(lr="1e-1"), experiment="batch")
    sweep(tmp_path / "d", dict(lr="1e-1"), experiment="weather")
    assert {name: len(runs) for name, runs in plot.read_sweeps([tmp_path]).items()} == {
        "qk_norm": 2,
        "batch": 1,
        "lr": 1,
    }
    assert (
        "d/experiment: 'weather' is no experiment of mine: drawn as lr" in capsys.readouterr().err
    )
    assert plot.main([str(tmp_path), "-o", str(tmp_path / "f"), "-format", "svg"]) == 0
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == [
        "batch.svg",
        "lr.svg",
        "qk_norm.svg",
    ]
    assert plot.main(["table", str(tmp_path)]) == 0
    assert re.findall("^## (.*)", capsys.readouterr().out, re.M) == ["qk_norm", "batch", "lr"]


def test_watch(tmp_path):
    """Draws what is there, again when a run has ended, and ends when none is under way."""
    folder = tmp_path / "s"
    sweep(folder / "a", dict(lr="1e-2", out="a"))
    for name in "ab":
        logged(folder, dict(out=name), {0: {}}, [])
    (folder / "experiment").write_text("qk_norm")
    process = subprocess.Popen(
        [
            sys.executable,
            str(REPO / "plot.py"),
            "watch",
            str(folder),
            "-every",
            "0.2",
            "-o",
            str(tmp_path / "f"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == f"wrote {tmp_path}/f/qk_norm.png\n"
        time.sleep(1)
        assert process.poll() is None  # b is under way
        sweep(folder / "b", dict(lr="1e-1", out="b"))
        assert (
            process.stdout.read() == f"wrote {tmp_path}/f/qk_norm.png\n"
            and process.wait(timeout=20) == 0
        )
    finally:
        process.kill()


def test_dependencies():
    """Those of the inline metadata are the tests', and one that is missing gets the command that
    installs it."""
    block = re.search(
        r"^# /// script\n((?:#.*\n)+?)# ///$", (REPO / "plot.py").read_text(), re.M
    ).group(1)
    wanted = re.findall(r'"(\w+==[\d.]+)"', block)
    assert [w.split("==")[0] for w in wanted] == ["numpy", "matplotlib"]
    assert set(wanted) <= set((REPO / "test" / "requirements.txt").read_text().split())
    result = subprocess.run(
        [sys.executable, "-S", "-I", str(REPO / "plot.py")], capture_output=True, text=True
    )
    assert (
        result.returncode == 1
        and result.stderr.count("\n") == 1
        and "pip install " + " ".join(wanted) in result.stderr
    )


@pytest.mark.skipif(not Path(PROGRAM).exists(), reason="train_gpt is not built")
def test_a_real_sweep(tmp_path):
    tiny = "-lr 1e-3,1e-2 -d 16 -layers 1 -heads 1 -T 8 -batch 2 -steps 5 -eval_tokens 64".split()
    for qk_norm in "01":
        subprocess.run(
            [PROGRAM, *tiny, "-qk_norm", qk_norm, "-out", f"sweep{qk_norm}"],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            timeout=60,
        )
    for arguments, name in (
        (["sweep0", "sweep1"], "lr.png"),
        (["sweep0", "sweep1", "-format", "svg"], "lr.svg"),
        (["log", "sweep0/lr1e-2", "sweep1/lr1e-2", "-format", "pdf"], "log.pdf"),
    ):
        result = run_plot(*arguments, cwd=tmp_path)
        assert (result.returncode, result.stderr, result.stdout) == (
            0,
            "",
            f"wrote figures/{name}\n",
        )
        magic = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[name[-3:]]
        assert (tmp_path / "figures" / name).read_bytes().startswith(magic)
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "log.pdf",
        "lr.png",
        "lr.svg",
    ]
    runs = read([tmp_path / "sweep0", tmp_path / "sweep1"])
    lines = [curves(ax)[0] for ax in plot.draw("lr", runs).axes]
    assert len(runs) == 4 and [len(points) for line in lines for points in line.values()] == [2] * 4
    # the trainer's other columns do not set runs apart
    assert all(len(line) == 1 for line in lines)
    printed = rows_of(run_plot("table", "sweep0", "sweep1", cwd=tmp_path).stdout)
    assert [row[:2] for row in printed[1:5]] == [
        ["0", "1e-3"],
        ["0", "1e-2"],
        ["1", "1e-3"],
        ["1", "1e-2"],
    ] and printed[6][2].endswith("(2)")


TINY = "-T 8 -batch 2 -steps 10 -eval_tokens 64 -eval_every 0".split()
# of their grids; of the other experiments, two widths
SOME = {
    "warmup": "-d 16,32 -warmup 1%,25%",
    "depth_width": "-d 16x1,16x2,32x2,32x1",
    "steps": "-steps 5,10",
    "batch": "-batch 2,4",
    "beta2": "-beta2 0.9,0.99",
    "clip": "-clip 0,1",
    "predict_logits": "",
    "predict_eps": "",
}


@pytest.mark.skipif(not Path(PROGRAM).exists(), reason="train_gpt is not built")
def test_every_experiment_of_a_real_sweep(tmp_path):
    """The runs of sweep.sh's own plan, in small; the held-out ones after the prediction. Every
    figure has every line."""
    experiments = [name for name in plot.EXPERIMENTS if name != "lr"]
    for name in experiments:
        some = SOME.get(name, "-d 16,32").split()
        flags = [
            *(
                flag
                for i in range(0, len(TINY), 2)
                if TINY[i] not in some
                for flag in TINY[i : i + 2]
            ),
            *some,
            "-lr",
            "1e-2,1e-1",
        ]
        if name in ("steps", "batch", "beta2", "clip"):
            flags += ["-d", "16"]
        plan = subprocess.run(
            [
                REPO / "sweep.sh",
                name,
                "-dry_run",
                "-seeds",
                "1",
                "-trainer",
                PROGRAM,
                "-out",
                name,
                "--",
                *flags,
            ],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert plan.returncode == 0, plan.stderr
        script = "set -e\nexport OMP_NUM_THREADS=1\n" + plan.stdout.replace(
            "python3 plot.py", f"{sys.executable} {REPO}/plot.py"
        )
        (tmp_path / name).mkdir()
        (tmp_path / name / "experiment").write_text(name + "\n")
        done = subprocess.run(
            ["bash"], input=script, cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
    assert all(
        (tmp_path / name / "prediction.csv").exists() == name.startswith("predict")
        for name in experiments
    )
    found = plot.read_sweeps([tmp_path])
    assert sorted(found) == sorted(experiments)
    for name, runs in found.items():
        figure = plot.draw(name, runs)
        plot.save(figure, tmp_path, name, "svg")
        empty = [ax.get_title() for ax in figure.axes if not any(curves(ax)[0].values())]
        assert not empty, (name, empty)
    assert (
        run_plot("table", *experiments, cwd=tmp_path).stdout.count(
            "What was predicted, and what came"
        )
        == 2
    )
