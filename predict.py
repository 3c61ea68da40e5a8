#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "matplotlib>=3.6.3",
#     "numpy>=1.24.2",
#     "pandas>=1.5.3",
#     "scipy>=1.10.1",
#     "seaborn>=0.12.2",
# ]
# ///
"""Predicts larger models from smaller ones (sections 3.3 and 3.4).

predict.py DIR: fits the runs of DIR, a sweep of predict_logits or predict_eps,
and writes DIR/prediction.csv, once. Runs of larger sizes come after; plot.py
compares."""

import argparse
import errno
import math
import pathlib
import sys
import warnings

import plot

try:
    plot.require(__file__)
    import numpy as np
    import pandas as pd
    from scipy import stats
except ImportError as error:
    sys.exit(f"predict.py: {error}")

# y = log10 of what is predicted, x = log10 of the parameters, l = log10 of the learning rate: the
# terms of each form, and whether each learning rate has a fit of its own
FORMS = {
    "a + b x, for each LR": (True, lambda x, l: [x**0, x]),
    plot.QUADRATIC: (True, lambda x, l: [x**0, x, x * x]),
    "a + b x + c l + d x l + e l^2": (False, lambda x, l: [x**0, x, l, x * l, l * l]),
    "a + b x + c l + d x l + e l^2 + f x^2": (
        False,
        lambda x, l: [x**0, x, l, x * l, l * l, x * x],
    ),
}


def regress(form, x, l, y, least=2):
    """Least squares. Returns {l, or None for all: (coefficients, their covariance, degrees of
    freedom, variance of a run)}, or {} if a fit has fewer degrees of freedom than the least."""
    apart, terms = FORMS[form]
    fits = {}
    for key in np.unique(l) if apart else [None]:
        here = l == key if apart else np.full(len(l), True)
        A = np.stack(terms(x[here], l[here]), 1)
        freedom = len(A) - A.shape[1]
        if freedom < least or np.linalg.matrix_rank(A) < A.shape[1]:
            return {}
        coefficients = np.linalg.lstsq(A, y[here], rcond=None)[0]
        variance = np.sum((A @ coefficients - y[here]) ** 2) / freedom
        fits[key] = coefficients, variance * np.linalg.inv(A.T @ A), freedom, variance
    return fits


def extrapolate(form, fits, x, l):
    """Returns, at each x, the mean, the standard deviation of one run, and the degrees of
    freedom."""
    apart, terms = FORMS[form]
    coefficients, covariance, freedom, variance = fits[l if apart else None]
    A = np.stack(terms(x, np.full_like(x, l)), 1)
    return A @ coefficients, np.sqrt(variance + np.sum(A @ covariance * A, axis=1)), freedom


def rehearse(form, x, l, y):
    """Predicts the largest size from the smaller ones, then the two largest. Returns the errors of
    y, and the same in standard deviations."""
    errors, deviations = [], []
    for held in (1, 2):
        small = x < np.unique(x)[-held]
        fits = regress(form, x[small], l[small], y[small], least=1)
        for key in np.unique(l) if fits else []:
            here = ~small & (l == key)
            mean, deviation, _ = extrapolate(form, fits, x[here], key)
            errors.extend(mean - y[here])
            deviations.extend((mean - y[here]) / np.fmax(deviation, 1e-12))
    return np.array(errors), np.array(deviations)


def rms(values):
    return math.sqrt(np.mean(np.square(values))) if len(values) else math.inf


def first_past(curve, column, limit, upwards):
    """Writes the parameters at which a column passes the limit."""
    past = curve[(curve[column] > limit) == upwards].parameters
    if past.empty:
        return f"above {plot.short(curve.parameters.max())}"
    return plot.short(past.min())


def curve_of(form, fits, widen, sizes, lr, most):
    """Returns the prediction for a learning rate: 90% of the runs are between low and high."""
    points = np.geomspace(sizes.min(), most * sizes.max(), 200).round()
    parameters = np.unique([*sizes, *points])
    mean, deviation, freedom = extrapolate(form, fits, np.log10(parameters), math.log10(lr))
    half = stats.t.ppf(0.95, freedom) * widen * deviation
    curve = pd.DataFrame({"lr": lr, "parameters": parameters})
    curve["fitted"] = curve.parameters.isin(sizes).astype(int)
    for name, y in ("predicted", mean), ("low", mean - half), ("high", mean + half):
        curve[name] = 10**y
    return curve


def predict(experiment, runs):
    """Returns what the predictions say, as lines, and their table. Raises ValueError if there are
    too few runs."""
    if experiment not in plot.PREDICTIONS:
        names = " or ".join(plot.PREDICTIONS)
        raise ValueError(f"its experiment is {experiment}; a prediction is for {names}")
    said, tables = [], []
    for prediction in plot.PREDICTIONS[experiment]:
        lines, table = predict_one(prediction, runs)
        said += lines
        tables.append(table.assign(measure=prediction.measure))
    return said, pd.concat(tables)


def predict_one(prediction, runs):
    """The same of one prediction."""
    label, _, value = plot.MEASURES[prediction.measure]
    runs = prediction.choose(runs)
    runs = runs.assign(y=value(runs))
    runs = runs[runs.y > 0]
    sizes = np.unique(runs[plot.N])
    if len(sizes) < 4:
        raise ValueError(f"runs of {len(sizes)} sizes: a prediction needs 4, better 5 or more")
    x, l, y = (np.log10(runs[name].to_numpy(float)) for name in (plot.N, "lr", "y"))
    forms = [prediction.form] if prediction.form else FORMS
    rehearsals = {form: rehearse(form, x, l, y) for form in forms}
    # first those that can do both rehearsals
    form = min(forms, key=lambda form: (-len(rehearsals[form][0]), rms(rehearsals[form][0])))
    fits = regress(form, x, l, y)
    errors, deviations = rehearsals[form]
    if not fits or not len(errors):
        raise ValueError("too few runs for a fit: more sizes or seeds")
    widen = max(1.0, rms(deviations))
    said = [
        f"{' '.join(label.split())}, predicted from {len(runs)} runs of {len(sizes)} sizes,"
        " parameters without embedding and head: " + " ".join(f"{n:.0f}" for n in sizes),
        "y = log10 of it, x = log10 of the parameters, l = log10 of the LR: y = "
        + form
        + ", the paper's form" * bool(prediction.form),
        "root mean square error of y in predicting the largest sizes from the smaller ones: "
        + "; ".join(f"{rms(e):.3f} with {f}" for f, (e, _) in rehearsals.items() if len(e)),
        f"low, high: 90% of runs, by Student's t, times {widen:.2f} (the root mean square of those"
        " errors in standard deviations, if above 1)",
    ]
    for key, (coefficients, _, freedom, variance) in fits.items():
        rate = "" if key is None else f"LR {plot.plain(10**key, 1)}: "
        terms = " ".join(f"{c:.6g}" for c in coefficients)
        said.append(
            f"{rate}coefficients {terms}; standard deviation of a run {math.sqrt(variance):.4g},"
            f" {freedom} degrees of freedom"
        )
    limit, upwards = prediction.limit, prediction.upwards
    curves = []
    for lr in np.unique(runs.lr):
        curve = curve_of(form, fits, widen, sizes, lr, prediction.most)
        curves.append(curve)
        middle, *ends = (first_past(curve, name, limit, upwards) for name in plot.FIT)
        ends = ends[::-1] if upwards else ends
        said.append(
            f"LR {plot.plain(lr, 1)}: {'above' if upwards else 'below'} {plot.plain(limit)} from"
            f" {middle} parameters on (90%: {ends[0]} to {ends[1]})"
        )
    return said, pd.concat(curves)


def write(path, said, table):
    """Writes the prediction, if there is none yet."""
    if path.exists():
        raise FileExistsError(
            errno.EEXIST, "is there already; a prediction is made once, before its outcome", path
        )
    with plot.whole(path) as part:
        comments = "".join(f"# {line}\n" for line in said)
        part.write_text(comments + table.to_csv(index=False, float_format="%.6g"), encoding="utf-8")


def main(argv):
    parser = argparse.ArgumentParser(
        prog="predict.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=pathlib.Path, metavar="DIR")
    folder = parser.parse_args(argv).folder
    path = folder / "prediction.csv"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries, to their programmers
            found = plot.read_sweeps([folder])
            if len(found) != 1:
                raise ValueError(f"holds {len(found)} experiments with finished runs, not one")
            said, table = predict(*found.popitem())
            write(path, said, table)
    except ValueError as error:
        print(f"predict.py: {folder}: {error}", file=sys.stderr)
        return 1
    except KeyError as error:
        print(f"predict.py: {folder}: its runs have no column {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"predict.py: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    print("\n".join(said) + f"\nwrote {path}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
