"""predict.py: fits against hand-computed ones and against laws that the data follow, the file that
is written once, and what plot.py makes of it."""

import csv
import importlib.util
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import test_plot
from test_plot import curves, known, logged, panels, read, rows_of, run_plot, sweep

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))
spec = importlib.util.spec_from_file_location("predict", REPO / "predict.py")
predict = importlib.util.module_from_spec(spec)
spec.loader.exec_module(predict)
plot = test_plot.plot

LAW = [-4, 2.7, 1.8, 0.8, 1.0]  # y = a + b x + c l + d x l + e l^2
FORM = "a + b x + c l + d x l + e l^2"
SIZES = {d: 24 * d * d + 5 * d for d in (16, 24, 32, 48, 64, 96, 128, 192)}
FITTED = (16, 24, 32, 48, 64)
RATES = ("3e-3", "1e-2", "3e-2", "1e-1")


def law(parameters, lr):
    x, l = math.log10(parameters), math.log10(lr)
    return np.dot(LAW, [1, x, l, x * l, l * l])


def quadratic(parameters, lr):
    """The law of the logits early in training."""
    x = math.log10(parameters)
    return 10 ** (1 + 10 * lr - 0.5 * x + 0.1 * x * x)


def prophecy(folder, noise, random, widths=FITTED, seeds=(1, 2)):
    """Runs whose largest attention logit follows the law, but for the noise (in log10)."""
    runs = [
        dict(
            lr=lr,
            d=d,
            heads=d // 8,
            parameters_non_embedding=SIZES[d],
            seed=seed,
            qk_norm=0,
            max_attn_logit=10 ** (law(SIZES[d], float(lr)) + noise * random.normal()),
        )
        for d in widths
        for lr in RATES
        for seed in seeds
    ]
    for i, run in enumerate(runs):
        run["out"] = f"run{i}"
        early = quadratic(run["parameters_non_embedding"], float(run["lr"]))
        # 2% of 300 steps
        rows = {step: dict(max_attn_logit_0=early if step == 6 else 1) for step in (3, 6, 9)}
        logged(Path(folder), run, rows, ["max_attn_logit_0"])
    return sweep(folder, *runs, experiment="predict_logits")


def logs(folder):
    """log10 of the sizes, the learning rates and the logits."""
    runs = read([folder])
    return (np.log10(runs[name]) for name in (plot.N, "lr", "max_attn_logit"))


def test_regression_by_hand():
    """y = 0.5 + 0.8 x; residuals -0.3, 0.9, -0.9, 0.3; so 1.8 / 2 of variance, and at 5: 0.9 (1 +
    1/4 + 2.5^2/5) of a new run."""
    form, x = "a + b x, for each LR", np.array([1.0, 2, 3, 4])
    fits = predict.regress(form, x, np.full(4, -2.0), np.array([1.0, 3, 2, 4]))
    coefficients, covariance, freedom, variance = fits[-2.0]
    assert coefficients == pytest.approx([0.5, 0.8]) and freedom == 2
    assert variance == pytest.approx(0.9) and covariance[1, 1] == pytest.approx(0.18)
    mean, deviation, _ = predict.extrapolate(form, fits, np.array([5.0]), -2.0)
    assert mean[0] == pytest.approx(4.5) and deviation[0] == pytest.approx(1.5)
    # one degree of freedom is no interval
    assert predict.regress(form, x[:3], np.full(3, -2.0), x[:3]) == {}


def test_the_fit_finds_the_law_and_its_interval_holds_90_percent(tmp_path):
    random, inside = np.random.default_rng(1), []
    for i in range(60):
        fits = predict.regress(FORM, *logs(prophecy(tmp_path / str(i), 0.1, random)))
        coefficients, covariance, freedom, variance = fits[None]
        assert freedom == 35 and variance == pytest.approx(0.01, rel=0.9)
        assert np.all(abs(coefficients - LAW) < 5 * np.sqrt(np.diag(covariance)))
        curve = predict.curve_of(FORM, fits, 1, np.array([SIZES[64]]), 1e-2, 9)
        held = curve.iloc[-1]
        outcome = 10 ** (law(held.parameters, 1e-2) + 0.1 * random.normal())
        inside.append(held.low < outcome < held.high)
    assert 0.8 < np.mean(inside) < 0.98


def test_each_form_finds_its_own_law():
    """Without noise the coefficients are exact, and the rehearsal chooses a form that has the law
    in it."""
    sizes = np.log10([SIZES[d] for d in FITTED] * 2)
    x, l = map(np.ravel, np.meshgrid(sizes, np.log10([3e-3, 1e-2, 3e-2, 1e-1])))
    for form, (apart, terms) in predict.FORMS.items():
        true = np.linspace(1, -0.5, len(terms(x, l)))
        y = np.stack(terms(x, l), 1) @ true
        fits = predict.regress(form, x, l, y)
        assert len(fits) == (4 if apart else 1)
        for coefficients, *_ in fits.values():
            assert coefficients == pytest.approx(true, abs=1e-6)
        errors = [np.abs(predict.rehearse(other, x, l, y)[0]).max() for other in predict.FORMS]
        assert min(errors) < 1e-6


def test_prediction_is_written_once_and_drawn_as_written(tmp_path, capsys):
    random = np.random.default_rng(2)
    folder = prophecy(tmp_path, 0.05, random)
    assert predict.main([folder]) == 0
    said, path = capsys.readouterr().out, tmp_path / "prediction.csv"
    assert "40 runs of 5 sizes" in said and "6224 13944 24736 55536 98624" in said
    assert f"y = {FORM}\n" in said
    # the paper's form has the law of the logits at 2% of the steps in it
    assert f"y = {plot.QUADRATIC}, the paper's form\n" in said
    for lr in RATES:
        assert f"LR {lr}: coefficients {1 + 10 * float(lr):.6g} -0.5 0.1;" in said
    lines = [line for line in path.open() if not line.startswith("#")]
    rows = [row for row in csv.DictReader(lines) if row.pop("measure") == "logit"]
    rows = [{name: float(x) for name, x in row.items()} for row in rows]
    assert {row["parameters"] for row in rows if row["fitted"]} == {SIZES[d] for d in FITTED}
    fits = predict.regress(FORM, *logs(folder))
    widen = float(re.search(r"times ([\d.]+)", said)[1])
    assert widen >= 1
    for row in rows[::50]:
        assert row["predicted"] == pytest.approx(10 ** law(row["parameters"], row["lr"]), rel=0.3)
        x, l = np.log10([row["parameters"]]), math.log10(row["lr"])
        _, (deviation,), freedom = predict.extrapolate(FORM, fits, x, l)
        half = 10 ** (stats.t.ppf(0.95, freedom) * widen * deviation)
        assert row["high"] / row["predicted"] == pytest.approx(half, rel=0.01)
        assert row["predicted"] / row["low"] == pytest.approx(half, rel=0.01)
    # where it passes 100: 10^x with a + b x + c l + d x l + e l^2 = 2
    for lr in "3e-3", "1e-2", "3e-2":
        l = math.log10(float(lr))
        truth = 10 ** ((2 - LAW[0] - LAW[2] * l - LAW[4] * l * l) / (LAW[1] + LAW[3] * l))
        found = re.search(rf"^LR {lr}: above 100 from ([\d.]+)([kM]) parameters", said, re.M)
        number = float(found[1]) * {"k": 1e3, "M": 1e6}[found[2]]
        assert number == pytest.approx(truth, rel=0.3)
    # the runs that were held out
    before = path.read_bytes()
    prophecy(tmp_path, 0.05, random, widths=(*FITTED, 96, 128))
    assert predict.main([folder]) == 1 and path.read_bytes() == before
    assert capsys.readouterr().err == (
        f"predict.py: {path}: is there already; a prediction is made once, before its outcome\n"
    )
    # the figure: the file's curve, although the runs would now give another; hollow points up to
    # d 64, full ones after
    rows = before.decode().splitlines()
    cells = rows[-1].split(",")
    rows[-1] = ",".join([*cells[:3], "123456", *cells[4:]])
    path.write_text("\n".join(rows))
    early, left, right = panels(plot.draw("predict_logits", read([folder])))
    assert left.get_xscale() == left.get_yscale() == right.get_xscale() == "log"
    dashed = [line for line in left.lines if line.get_linestyle() == "--"]
    assert sum(123456 in line.get_ydata() for line in dashed) == 1
    points = [line for line in left.lines if line.get_linestyle() == "None"]
    hollow, full = (
        {x for p in points if (p.get_markerfacecolor() == "white") == white for x in p.get_xdata()}
        for white in (True, False)
    )
    assert hollow == {SIZES[d] for d in FITTED} and full == {SIZES[d] for d in (96, 128)}
    at = 10 ** (1 + 10 * 0.1 - 0.5 * math.log10(SIZES[128]) + 0.1 * math.log10(SIZES[128]) ** 2)
    full = [p for p in early.lines if p.get_linestyle() == "None" and SIZES[128] in p.get_xdata()]
    assert any(y == pytest.approx(at) for p in full for y in p.get_ydata())
    assert list(curves(right)[0]) == [f"LR {lr}" for lr in RATES]
    _, early, table = run_plot("table", folder).stdout.split(": predicted before")
    assert all(row[2] == row[5] for row in rows_of(early)[1:])  # without noise
    table = rows_of(table)
    assert [row[:2] for row in table[1:]] == [
        [d, f"{float(lr):.4g}"] for lr in RATES for d in ("96", "96", "128", "128")
    ]
    inside = [row[-1] == "True" for row in table[1:]]
    assert np.mean(inside) > 0.6
    for _, _, _, low, high, observed, held in table[1:]:
        assert (float(low) <= float(observed) <= float(high)) == (held == "True")


def test_a_prediction_that_cannot_be_made(tmp_path, capsys):
    random = np.random.default_rng(3)
    (tmp_path / "c").mkdir()
    no_eps = sweep(tmp_path / "d", dict(), experiment="predict_eps")
    text = (tmp_path / "d" / "summary.csv").read_text()
    (tmp_path / "d" / "summary.csv").write_text(text.replace(",eps,", ",epsilon,"))
    for folder, message in (
        (
            known(tmp_path / "a"),
            "its experiment is lr; a prediction is for predict_logits or predict_eps",
        ),
        (
            prophecy(tmp_path / "b", 0.1, random, widths=(16, 32, 64)),
            "runs of 3 sizes: a prediction needs 4, better 5 or more",
        ),
        (str(tmp_path / "c"), "holds 0 experiments with finished runs, not one"),
        (no_eps, "its runs have no column 'eps'"),
    ):
        assert predict.main([folder]) == 1
        said = capsys.readouterr().err.splitlines()
        assert said[-1] == f"predict.py: {folder}: {message}"
        assert not (Path(folder) / "prediction.csv").exists()


def test_two_predictions_and_a_damaged_one(tmp_path, capsys):
    random = np.random.default_rng(4)
    a, b = (prophecy(tmp_path / x, 0.05, random, seeds=(seed,)) for seed, x in enumerate("ab"))
    assert predict.main([a]) == predict.main([b]) == 0
    found, runs = plot.read_prediction("predict_logits", read([a, b]))
    assert {str(sweep) for sweep in runs.sweep} == {a}
    assert found["logit"]["prediction"].lr.nunique() == 4
    assert f"{b}/prediction.csv: another prediction than {a}" in capsys.readouterr().err
    path = Path(a) / "prediction.csv"
    path.write_text(re.sub("^0.003,.*", "0.003,16,x", path.read_text(), flags=re.M))
    assert plot.main([a, "-o", str(tmp_path / "f"), "-format", "svg"]) == 0
    comments = path.read_text().count("#")
    assert f"prediction.csv: line {comments + 2}: 3 cells" in capsys.readouterr().err
    found, _ = plot.read_prediction("predict_logits", read([a]))
    assert sorted(found["logit"]["prediction"].lr.unique()) == [1e-2, 3e-2, 1e-1]


def test_predict_eps(tmp_path, capsys):
    """The gradient's RMS at the end falls as 1e3 lr^-1 parameters^-1.5; epsilon varies at the
    largest size."""

    def run(d, lr, eps="1e-8", **more):
        size = dict(d=d, heads=d // 8, parameters_non_embedding=SIZES[d])
        run = size | dict(lr=lr, eps=eps, out=f"d{d}lr{lr}eps{eps}") | more
        end = 1e3 / float(lr) * SIZES[d] ** -1.5
        rows = {
            step: dict(c_fc_grad_rms_0=end if step > 90 else 1, c_fc_update_rms_0=0.1 / float(eps))
            for step in range(10, 101, 10)
        }
        logged(tmp_path, run, rows, ["c_fc_grad_rms_0", "c_fc_update_rms_0"])
        return run

    runs = [run(d, lr) for d in FITTED for lr in ("1e-2", "3e-2", "1e-1")]
    folder = sweep(tmp_path, *runs, experiment="predict_eps")
    assert predict.main([folder]) == 0
    meets = (1e3 / 0.1 / 1e-8) ** (1 / 1.5)
    number = re.search(r"LR 1e-1: below 1e-8 from ([\d.]+)M", capsys.readouterr().out)[1]
    assert float(number) * 1e6 == pytest.approx(meets, rel=0.1)
    held = [run(96, "1e-2")]
    held += [run(96, "1e-1", eps, final_loss=3) for eps in ("1e-8", "1e-6", "1e-15")]
    sweep(tmp_path, *runs, *held, experiment="predict_eps")
    gradient, against_lr, _, update, loss, *over_steps = panels(
        plot.draw("predict_eps", read([folder]))
    )
    assert gradient.get_ylim()[0] < 1e-8
    assert any(SIZES[96] in line.get_xdata() for line in gradient.lines)
    assert curves(against_lr)[0]["d 96 (222k parameters)"] == [
        (float(lr), pytest.approx(1e3 / float(lr) * SIZES[96] ** -1.5)) for lr in ("1e-2", "1e-1")
    ]
    expected = [(eps, pytest.approx(0.1 / eps)) for eps in (1e-15, 1e-8, 1e-6)]
    assert curves(update)[0] == {"LR 1e-1": expected}
    assert curves(loss)[0] == {"LR 1e-1": [(1e-15, 3), (1e-8, 3), (1e-6, 3)]}
    assert [len(curves(ax)[0]) for ax in over_steps] == [3, 3, 3]


def test_the_command(tmp_path):
    result = subprocess.run(
        [sys.executable, REPO / "predict.py"], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 2 and "DIR" in result.stderr
    folder = prophecy(tmp_path / "a", 0.05, np.random.default_rng(5))
    result = subprocess.run(
        [sys.executable, REPO / "predict.py", folder], capture_output=True, text=True, cwd=tmp_path
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith(f"wrote {folder}/prediction.csv\n")
