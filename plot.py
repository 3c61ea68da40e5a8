#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy==2.2.6", "matplotlib==3.10.3"]
# ///
"""The paper's figures from the runs' CSV files.

plot.py [DIR ...]        from sweeps (default: all in runs/): a figure of each experiment,
                         EXPERIMENT.png; of a sweep by `train_gpt -lr`, lr.png
plot.py log RUN ...      training curves of single runs, side by side: log.png
plot.py table [DIR ...]  the numbers of the figures, as Markdown
plot.py predict DIR      of predict_logits or predict_eps: fits the runs that are there and writes
                         DIR/prediction.csv, once; runs of larger sizes come after, and the figure
                         compares
plot.py watch DIR ...    draws again while a sweep is running"""

import argparse
import contextlib
import csv
import errno
import itertools
import math
import os
import pathlib
import re
import sys
import time

try:
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import LogLocator, NullFormatter
except ImportError as error:
    # a system's Python often refuses pip: a venv never
    here, there = (sys.prefix != sys.base_prefix, "build/venv/bin/python")
    packages = " ".join(
        re.findall(r'"(\w+==[\d.]+)"', pathlib.Path(__file__).read_text(encoding="utf-8"))
    )
    install = (
        f"{sys.executable} -m pip install {packages}"
        if here
        else f"python3 -m venv build/venv && {there} -m pip install {packages}"
    )
    sys.exit(
        f"plot.py: {error.name} is missing; install it with: {install}"
        + ("" if here else f", then run: {there} plot.py")
    )

matplotlib.rcParams.update(
    {
        "font.size": 10,
        "axes.titlesize": 11,
        "legend.fontsize": 9,
        "legend.frameon": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "0.9",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "lines.linewidth": 1.5,
        "lines.markersize": 4.5,
        "savefig.dpi": 150,
        "svg.hashsalt": "plot.py",
    }
)
# of LR sensitivity: the paper's, and the part that short runs can train at
GRIDS = [(3e-4, 3e-1), (3e-3, 3e-1)]
# flags that leave a result as it is
HANDLING = (
    "micro_batch out resume sample temperature eval_every log_every checkpoint_every".split()
)  # flags that leave a result as it is
LOGIT_LIMIT, LOG_Z_LIMIT = 100, -5  # past these the trainer's diagnosis speaks (gpt.h)


# ---------------------------------------------------------------------------
# Reading


def complain(path, what):
    print(f"plot.py: {path}: {what}", file=sys.stderr)
    return []


@contextlib.contextmanager
def whole(path):
    """A file beside this one, which takes its place once it is written: it appears whole or not at
    all."""
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        error.filename = str(path)  # a write that fails does not say where
        raise
    finally:
        part.unlink(missing_ok=True)


def number(row, name):
    return row[name] if isinstance(row.get(name), float) else math.nan


def cell(text):
    try:
        return float(text)
    except ValueError:
        return text


def read_csv(path, finite, numbers, texts=""):
    """The rows as dicts, numbers as float. finite: columns that must hold a number, numbers: or
    nan, or nothing; texts: be there. What cannot be used is left out, with a line on stderr."""
    finite, numbers = finite.split(), numbers.split()
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
            names, *lines = list(csv.reader(line for line in file if not line.startswith("#"))) or [
                []
            ]
    except (OSError, csv.Error) as error:
        return complain(path, getattr(error, "strerror", None) or error)
    if not names:
        return complain(path, "is empty")
    if missing := [name for name in finite + numbers + texts.split() if name not in names]:
        return complain(path, f"has no column {missing[0]}: not written by train_gpt")
    rows, bad = [], []
    for i, cells in enumerate(lines, 2):
        row = dict(zip(names, map(cell, cells)))
        if len(cells) != len(names):
            bad += [f"line {i} has {len(cells)} cells, not {len(names)}"] if cells else []
        elif wrong := [n for n in finite if not math.isfinite(number(row, n))] + [
            n for n in numbers if isinstance(row[n], str) and row[n]
        ]:
            bad.append(f"line {i}: {wrong[0]} is '{row[wrong[0]]}', not a number")
        elif (
            "diverged" in row
            and not row["diverged"]
            and not math.isfinite(number(row, "final_loss"))
        ):
            bad.append(
                f"line {i}: final_loss is '{row['final_loss']}', but the run did not diverge"
            )
        else:
            rows.append(row)
    if bad:
        complain(path, f"{bad[0]}: left out" + (f", and {len(bad) - 1} more" if bad[1:] else ""))
    elif not rows:
        complain(path, "has no rows yet")
    return rows


def read_log(run):
    runs = sorted(pathlib.Path(run).glob("*/log.csv"))
    if runs and not (pathlib.Path(run) / "log.csv").exists():
        return complain(run, f"holds several runs: name them, such as {runs[0].parent}")
    return read_csv(pathlib.Path(run) / "log.csv", "step", "train_loss val_loss grad_norm log_z")


def read_sweeps(folders):
    """{experiment: its runs, each once}, from the sweeps' joined tables and from the runs' own, as
    a table may be older. A folder of sweeps does as well. Sweeps of one experiment are one; that of
    train_gpt -lr is called lr."""
    found, names = {}, {}
    for folder in map(pathlib.Path, folders):
        deep = [path.parent for path in folder.glob("*/experiment")]
        for path in [
            *folder.glob("summary.csv"),
            *sorted(folder.glob("*/summary.csv")),
            *(path for sweep in sorted(deep) for path in sorted(sweep.glob("*/summary.csv"))),
        ] or [folder / "summary.csv"]:
            sweep = next(
                (
                    here
                    for here in (path.parent, path.parent.parent)
                    if (here / "experiment").exists()
                ),
                folder,
            )
            if sweep not in names:
                names[sweep] = (
                    (sweep / "experiment").read_text(errors="replace").strip()
                    if (sweep / "experiment").exists()
                    else "lr"
                )
                if names[sweep] not in EXPERIMENTS:
                    complain(
                        sweep / "experiment",
                        f"'{names[sweep]}' is no experiment of mine: drawn as lr",
                    )
                    names[sweep] = "lr"
            for run in read_csv(
                path,
                "lr d layers qk_norm seed parameters initial_loss diverged",
                "final_loss max_attn_logit log_z entropy_floor",
                "threads",
            ):
                out = pathlib.Path(str(run.get("out", ""))).name
                run |= {
                    "sweep": sweep,
                    "folder": path.parent if path.parent.name == out else path.parent / out,
                }
                if "warmup" in run:  # always as a share, in percent
                    run["warmup"] = (
                        cell(run["warmup"].rstrip("%"))
                        if isinstance(run["warmup"], str)
                        else 100 * run["warmup"] / max(1, run["steps"])
                    )
                found.setdefault(names[sweep], {})[
                    tuple((flag, run[flag]) for flag in flags(run))
                ] = run
    return {name: list(runs.values()) for name, runs in found.items()}


def flags(run):
    """The flags that can change a result: the columns before threads, but those."""
    return [
        name
        for name in itertools.takewhile(lambda name: name != "threads", run)
        if name not in HANDLING
    ]


# ---------------------------------------------------------------------------
# What the runs say


def loss(run):
    """min(final, initial), as the paper counts: a run that diverged has its loss at
    initialisation."""
    return np.fmin(number(run, "final_loss"), run["initial_loss"])


def logit(run):
    # 0: the run diverged before its first logged step
    return number(run, "max_attn_logit") or math.nan


def at_end(name):
    """Of a column of the log, the median of the run's last tenth: one step's gradient says
    little."""

    def value(run):
        if name not in run:  # read once
            rows = [number(row, name) for row in read_log(run["folder"])]
            tail = [x for x in rows[-max(1, len(rows) // 10) :] if math.isfinite(x) and x > 0]
            run[name] = np.median(tail) if tail else math.nan
        return run[name]

    return value


def now(name):
    return lambda run: number(run["now"], name)


def effect(kind, hidden):
    """How much an update changes its layer's output at most: learning rate x RMS of the update x
    inputs, as all of them add up."""

    def value(run):
        m = run["d"] / run["base_d"]
        # the head's logits are divided by m instead
        scale = {"off": 1, "simple": 1 / m if hidden else 1}.get(run["mu_param"], 1 / m)
        return (
            number(run["now"], "lr") * scale * number(run["now"], f"update_rms_{kind}") * run["d"]
        )

    return value


def spread(values):
    values = [x for x in values if math.isfinite(x)]
    return (np.median(values), min(values), max(values)) if values else (math.nan,) * 3


def over(runs, x, value, across=()):
    """An array of rows: x, then median, least and most over the seeds. across: the value is not a
    run's but that of all runs with this x, which differ in these flags; their seeds, each by
    itself, give the least and the most.
    """
    groups, rows = {}, []
    for run in runs:
        groups.setdefault(run[x], []).append(run)
    for key, here in sorted(groups.items()):
        if across:
            seeds = [
                value([run for run in here if run["seed"] == seed])
                for seed in {run["seed"] for run in here}
            ]
            rows.append((key, value(here), *spread(seeds)[1:]))
        else:
            rows.append((key, *spread(map(value, here))))
    return np.array([row for row in rows if math.isfinite(row[1])]).reshape(-1, 4)


def lr_sensitivity(runs, least, most):
    """Section 2.2, from the medians over the seeds: the mean loss over the grid above the best. And
    the grid's size."""
    curve = over(runs, "lr", loss)
    x = curve[(curve[:, 0] > least * (1 - 1e-9)) & (curve[:, 0] < most * (1 + 1e-9)), 1]
    return (x.mean() - x.min() if len(x) > 1 else math.nan), len(x)


def best_lr(runs):
    curve = over(runs, "lr", loss)
    return curve[curve[:, 1].argmin(), 0] if len(curve) > 1 else math.nan


def gap(runs):
    """How much LR sensitivity qk-norm takes away."""
    off, on = (
        lr_sensitivity([run for run in runs if run["qk_norm"] == x], *GRIDS[1])[0] for x in (0, 1)
    )
    return off - on


def sci(lr):
    mantissa, exponent = f"{lr:.6e}".split("e")
    return f"{float(mantissa):g}" + f"e{int(exponent)}" * (int(exponent) != 0)


def plain(x):
    return (
        "none"
        if x is None
        else x
        if isinstance(x, str)
        else sci(x)
        if 0 < abs(x) < 1e-2
        else f"{x:g}"
    )


def short(count):
    return next(
        (
            f"{count / unit:.3g}{name}"
            for unit, name in [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")]
            if count >= unit
        ),
        f"{count:g}",
    )


# ---------------------------------------------------------------------------
# The experiments, as data

# the axis and its scale; the value of a run, or of all the runs that differ in the flags named last
MEASURES = {
    "loss": ("final validation loss, nats", "linear", loss),
    "logit": ("largest attention logit", "log", logit),
    "log_z": ("mean log Z at the end", "linear", lambda run: number(run, "log_z")),
    "sensitivity": (
        "LR sensitivity, nats",
        "linear",
        lambda runs: lr_sensitivity(runs, *GRIDS[0])[0],
        ["lr"],
    ),
    "sensitivity_high": (
        "LR sensitivity, nats",
        "linear",
        lambda runs: lr_sensitivity(runs, *GRIDS[1])[0],
        ["lr"],
    ),
    "gap": ("LR sensitivity, nats:\nwithout minus with", "linear", gap, ["lr", "qk_norm"]),
    "best_lr": ("best learning rate", "log", best_lr, ["lr"]),
    "gradient": (
        "RMS of the gradient,\nMLP's first matrix, at the end",
        "log",
        at_end("grad_rms_c_fc"),
    ),
    "update": (
        "RMS of the update / LR,\nMLP's first matrix, at the end",
        "log",
        at_end("update_rms_c_fc"),
    ),
    "now_log_z": ("mean log Z", "linear", now("log_z")),
    "now_att": ("RMS of activations:\nattention's output", "log", now("act_rms_att")),
    "now_c_fc": ("MLP's hidden layer", "log", now("act_rms_c_fc")),
    "now_residual": ("last residual", "log", now("act_rms_residual")),
    "now_logits": ("output logits", "log", now("act_rms_logits")),
    "now_effect": ("effect of an update:\nMLP's first matrix", "log", effect("c_fc", True)),
    "now_effect_head": ("output matrix", "log", effect("lm_head", False)),
}
AXES = {
    "lr": "peak learning rate",
    "parameters": "parameters",
    "d": "width d",
    "warmup": "warm-up, % of the steps",
    "step": "step",
    "steps": "steps of training",
    "batch": "batch, sequences",
    "beta2": "beta2 of AdamW",
    "clip": "gradient clipped at (0: not)",
    "eps": "epsilon of AdamW",
}
WORDS = {
    ("qk_norm", 0): "without qk-norm",
    ("qk_norm", 1): "with qk-norm",
    ("wd_independent", 1): "independent",
    ("wd_independent", 0): "standard",
    ("mu_param", "off"): "standard model",
} | {("mu_param", x): f"µParam {x}" for x in ("simple", "intermediate", "full")}
# of values that are words
ORDER = ["off", "simple", "intermediate", "full", "depth alone", "width alone", "both"]


def families(runs):
    """depth_width: the runs of each way to grow; the size where the ways meet belongs to all."""
    sizes = {(run["d"], run["layers"]) for run in runs}
    d, layers = max(
        sorted(sizes), key=lambda hub: sum(size[0] == hub[0] or size[1] == hub[1] for size in sizes)
    )
    ways = {
        "depth alone": lambda run: run["d"] == d,
        "width alone": lambda run: run["layers"] == layers,
        "both": lambda run: (run["d"] == d) == (run["layers"] == layers),
    }
    # qk-norm has a few
    least = {
        size: min(run["parameters"] for run in runs if (run["d"], run["layers"]) == size)
        for size in sizes
    }
    return [
        run | {"family": name, "parameters": least[run["d"], run["layers"]]}
        for name, belongs in ways.items()
        for run in runs
        if belongs(run)
    ]


def at_lr(*lrs):
    return lambda runs: [run for run in runs if any(math.isclose(run["lr"], lr) for lr in lrs)]


def usual_eps(runs):
    return [run for run in runs if run["eps"] == 1e-8]


def several_eps(runs):
    several = {(run["parameters"], run["lr"]) for run in runs if run["eps"] != 1e-8}
    return [run for run in runs if (run["parameters"], run["lr"]) in several]


def logged(runs):
    """A row for each logged step; of a short log a few, as each will be a line."""
    for run in runs:
        rows = [row for row in read_log(run["folder"]) if row["step"] > 0]
        few = (
            {round(x) for x in np.geomspace(1, max(1, len(rows)), 5)}
            if len(rows) <= 20
            else range(len(rows) + 1)
        )
        yield from (
            run | {"step": row["step"], "now": row} for i, row in enumerate(rows, 1) if i in few
        )


SIZE, BOTH_GRIDS = "d layers", "sensitivity sensitivity_high"
SETTING = lambda flag: [
    ("loss", "lr", flag, "qk_norm"),
    ("best_lr " + BOTH_GRIDS, flag, "qk_norm", ""),
]
# a figure's blocks: what is measured, against what, a line for each, a column (or: row/column) of
# panels for each, of which runs
EXPERIMENTS = {
    "lr": [("loss logit", "lr", SIZE, "qk_norm")],
    "qk_norm": [("loss logit", "lr", SIZE, "qk_norm"), (BOTH_GRIDS, "parameters", "qk_norm", "")],
    "z_loss": [
        ("loss log_z", "lr", "z_loss", "wd"),
        (
            "now_log_z",
            "step",
            "z_loss",
            "wd/lr",
            lambda runs: logged(at_lr(1e-2, 1e-1, 3e-1)(runs)),
        ),
    ],
    "warmup": [
        ("loss", "lr", "warmup", "qk_norm/" + SIZE),
        (BOTH_GRIDS, "parameters", "warmup", "qk_norm"),
        ("loss", "warmup", SIZE, "qk_norm", at_lr(1e-1)),
    ],
    "weight_decay": [
        ("loss", "lr", "wd_independent wd", SIZE),
        ("best_lr " + BOTH_GRIDS, "parameters", "wd_independent wd", ""),
    ],
    "depth_width": [
        ("loss", "lr", SIZE, "qk_norm/family", families),
        ("sensitivity_high", "parameters", "family", "qk_norm", families),
        ("gap", "parameters", "family", "", families),
    ],
    "mu_param": [("loss", "lr", "d", "mu_param"), ("best_lr " + BOTH_GRIDS, "d", "mu_param", "")],
    "coord_check": [
        (
            "now_att now_c_fc now_residual now_logits now_effect now_effect_head",
            "d",
            "step",
            "mu_param",
            logged,
        )
    ],
    "predict_logits": [("prediction", "", "", "")],
    "predict_eps": [
        ("prediction", "", "", "", usual_eps),
        ("gradient loss", "lr", SIZE, "", usual_eps),
        ("update loss", "eps", "lr", "", several_eps),
    ],
    "steps": SETTING("steps"),
    "batch": SETTING("batch"),
    "beta2": SETTING("beta2"),
    "clip": SETTING("clip"),
}


# ---------------------------------------------------------------------------
# Figures


def look(i, n):
    """Line i of n in an order: viridis without its yellow, the last the darkest, and a marker each,
    for print and the colour-blind."""
    return {
        "color": matplotlib.colormaps["viridis"](0.85 * (n - 1 - i) / max(n - 1, 1)),
        "marker": "osD^vP*<>ph"[i % 11],
    }


def name_of(names, run):
    def one(name):
        value = run.get(name)
        return WORDS.get((name, value)) or (
            value
            if name == "family"
            else (
                "LR " + sci(value)
                if name == "lr"
                else f"{name} {plain(value)}" + "%" * (name == "warmup")
            )
        )

    return ", ".join(map(one, names))


def by_name(runs, names, given=None):
    """{name: runs}, in order, a name for each combination of these flags. Where runs that are the
    same in these and the given flags, if any are, differ in another flag, the name says it: they
    are no seeds of each other."""
    groups, found, parameters = {}, {}, {}
    for run in runs if given is not None else []:
        groups.setdefault(tuple(map(run.get, (*names, *given))), []).append(run)
    names = [
        *names,
        *sorted(
            {
                name
                for same in groups.values()
                for name in flags(same[0])
                if name not in (*names, *given, "seed") and len({run.get(name) for run in same}) > 1
            }
        ),
    ]
    for run in runs:
        key = tuple(map(run.get, names))
        found.setdefault(key, []).append(run)
        parameters[key] = min(parameters.get(key, math.inf), run["parameters"])
    rank = lambda x: (
        (0, x) if isinstance(x, float) else (1, ORDER.index(x)) if x in ORDER else (2, str(x))
    )
    vary = [name for i, name in enumerate(names) if len({key[i] for key in found}) > 1] or names[:1]
    return {
        name_of(vary, found[key][0])
        + (f" ({short(parameters[key])} parameters)" if "d" in vary else ""): found[key]
        for key in sorted(
            found,
            key=lambda key: ([parameters[key]] if "d" in names else [], [rank(x) for x in key]),
        )
    }


def draw_line(ax, runs, name, style, x, measure, place, needed):
    """A line, its band over the seeds, and a cross on each run that diverged. Returns how many
    crosses. needed: the learning rates (and so on) without which there is no point yet, as it would
    be that of another grid."""
    value, *across = MEASURES[measure][2:]
    for flags in across:
        known = {
            key: {tuple(map(run.get, flags)) for run in runs if run[x] == key}
            for key in {run[x] for run in runs}
        }
        runs = [run for run in runs if needed <= known[run[x]]]
    curve, at = over(runs, x, value, *across), lambda key: place.get(key, key)
    ax.plot(
        [at(key) for key in curve[:, 0]],
        curve[:, 1],
        label=name,
        **style,
        markevery=0.2 if x == "step" else None,
    )
    ax.fill_between(
        [at(key) for key in curve[:, 0]],
        curve[:, 2],
        curve[:, 3],
        color=style["color"],
        alpha=0.2,
        linewidth=0,
    )
    crosses = (
        []
        if across or x == "step"
        else [(at(run[x]), value(run)) for run in runs if run["diverged"]]
    )
    ax.plot(
        *zip(*crosses or [(math.nan, math.nan)]),
        "x",
        color=style["color"],
        markersize=10,
        markeredgewidth=2,
        label="_diverged",
    )
    return len(crosses)


def x_axis(ax, x, values, place):
    ax.set_xlabel(AXES.get(x, x))
    if place:
        ax.set_xticks(list(place.values()), [f"{value:g}" for value in place])
        return
    ax.set_xscale("linear" if x == "step" else "log")
    # room for each; qk-norm's few parameters are none
    ticks = [value for before, value in zip([0, *values], values) if value > 1.4 * before]
    if x not in ("lr", "step", "eps") and len(ticks) <= 6:
        ax.set_xticks(ticks, map(short, ticks))
        ax.minorticks_off()


def lrs_of(measure, runs):
    """The learning rates that a sensitivity is over; none of other measures."""
    least, most = GRIDS[measure != "sensitivity"]
    return (
        sorted({run["lr"] for run in runs if least * (1 - 1e-9) < run["lr"] < most * (1 + 1e-9)})
        if measure in ("sensitivity", "sensitivity_high", "gap")
        else []
    )


def draw_block(part, runs, measures, x, lines, columns):
    """Rows of panels for the measures, or for the first of two flags, and columns for a flag; or
    the measures side by side. Returns how many rows and columns of panels there are."""
    measures, lines, (*down, right) = (
        measures.split(),
        lines.split(),
        map(str.split, columns.split("/")),
    )
    if (
        lrs_of("sensitivity", runs) == lrs_of("sensitivity_high", runs)
        and "sensitivity" in measures
    ):
        measures.remove("sensitivity")  # no lower learning rates: the same number
    groups = by_name(
        runs,
        lines,
        [
            *itertools.chain(*down, right),
            x,
            *(flag for measure in measures for flags in MEASURES[measure][3:] for flag in flags),
        ],
    )
    styles = {name: look(i, len(groups)) for i, name in enumerate(groups)}
    sideways, right = bool(right), by_name(runs, right) if right else {"": runs}
    panels = [
        (measure, upper, title)
        for measure in measures
        for upper in (by_name(runs, down[0]) if down else [""])
        for title in right
    ]
    wide = len(right) if sideways else len(panels)
    axes = part.subplots(
        -(-len(panels) // wide),
        wide,
        sharex=True,
        sharey="row" if sideways and x != "step" else False,
        squeeze=False,
    )
    if any(isinstance(run[x], str) for run in runs):
        raise KeyError(x)
    values, floors, crosses = (
        sorted({run[x] for run in runs}),
        {number(run, "entropy_floor") for run in runs},
        0,
    )
    # no log axis for these: side by side
    place = {value: i for i, value in enumerate(values)} if x == "beta2" or values[0] <= 0 else {}
    for i, (ax, (measure, upper, title)) in enumerate(zip(axes.flat, panels)):
        here = {id(run) for run in right[title]} & {
            id(run) for run in (by_name(runs, down[0])[upper] if down else runs)
        }
        (label, scale, _, *across), lrs = MEASURES[measure], lrs_of(measure, runs)
        needed = {
            tuple(map(run.get, flags))
            for flags in across
            for run in runs
            if run["lr"] in lrs or not lrs
        }
        for name, group in groups.items():
            crosses += draw_line(
                ax,
                [run for run in group if id(run) in here],
                name,
                styles[name],
                x,
                measure,
                place,
                needed,
            )
        names = [re.sub(r" \(.*", "", name) for name in (upper, title) if name]
        if ax.dataLim.minposy < math.inf:  # a log axis of nothing is an error
            ax.set_yscale(scale)
        if lrs:
            names.append(f"LR {sci(lrs[0])} to {sci(lrs[-1])}")
            ax.axhline(0, color="0.7", linewidth=0.8)
        elif measure == "loss" and len({run["lr"] for run in runs}) == 1:
            names.append("LR " + sci(runs[0]["lr"]))
        if measure == "loss" and x == "lr" and len(floors) == 1 and math.isfinite(min(floors)):
            ax.axhline(
                min(floors),
                color="0.3",
                linestyle=":",
                label="entropy of the language: no model can go below",
            )
        if i < wide or down or lrs:
            ax.set_title(", ".join(names))
        if i % wide == 0 or not sideways:
            ax.set_ylabel(label)
        if i + wide >= len(panels):
            x_axis(ax, x, values, place)
    for ax in axes.flat:
        least, most = ax.get_ylim()
        if ax.get_yscale() == "log" and most < 100 * least:  # of powers of ten there are one or two
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
            ax.yaxis.set_major_formatter(lambda y, _: sci(y))
            ax.yaxis.set_minor_formatter(NullFormatter())
    handles = {
        label: handle for ax in axes.flat for handle, label in zip(*ax.get_legend_handles_labels())
    }
    if len({run["seed"] for run in runs}) > 1:
        handles["line: median of the seeds; band: least to most"] = Patch(color="0.8")
    if crosses:
        handles["diverged"] = Line2D(
            [], [], color="0.3", marker="x", linestyle="", markersize=8, markeredgewidth=2
        )
    part.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=2 if len(handles) > 3 else 3,
    )
    return axes.shape


def draw(experiment, runs):
    """The figure of an experiment, a block under the other. Its size is set at the end: how many
    panels there are is in the runs."""
    figure, shapes = Figure(figsize=(8, 8), layout="constrained"), []
    blocks = [
        (block, list(choose[0](runs)) if choose else runs)
        for *block, choose in ((*b[:4], b[4:]) for b in EXPERIMENTS[experiment])
    ]
    blocks = [(block, here) for block, here in blocks if here] or [(EXPERIMENTS["lr"][0], runs)]
    grid = figure.add_gridspec(len(blocks), 1)
    parts = [figure.add_subfigure(cell) for cell in grid]
    for part, (block, here) in zip(parts, blocks):
        shapes.append(
            draw_prediction(part, experiment, here)
            if block[0] == "prediction"
            else draw_block(part, here, *block)
        )
    heights = [2.5 * rows + 1 for rows, _ in shapes]
    figure.set_size_inches(max(8, *(2.6 * wide for _, wide in shapes)), sum(heights))
    grid.set_height_ratios(heights)
    return figure


# ---------------------------------------------------------------------------
# Predictions (sections 3.3 and 3.4): fitted on small runs, written down, and only then compared
# with larger ones

# Of which runs, what, and past which limit training suffers: the trainer's diagnosis speaks at an
# attention logit of 100, where larger models begin to end worse (the paper's runs, much longer,
# failed at 1e4), and updates die at epsilon. reach: how far the curve goes, in times the largest
# width.
PREDICTIONS = {
    "predict_logits": {
        "of": list,
        "value": logit,
        "name": "largest attention logit",
        "limit": LOGIT_LIMIT,
        "up": True,
        "reach": 8,
    },
    "predict_eps": {
        "of": usual_eps,
        "value": at_end("grad_rms_c_fc"),
        "name": "RMS of the gradient of the MLP's first matrix",
        "limit": 1e-8,
        "up": False,
        "reach": 1e3,
    },
}
# y = log10 of the value; x = log10 of the parameters, l = log10 of the learning rate. For each LR
# by itself, or for all at once
FORMS = {
    "a + b x, for each LR": (True, lambda x, l: [x**0, x]),
    "a + b x + c x^2, for each LR": (True, lambda x, l: [x**0, x, x * x]),
    "a + b x + c l + d x l + e l^2": (False, lambda x, l: [x**0, x, l, x * l, l * l]),
    "a + b x + c l + d x l + e l^2 + f x^2": (
        False,
        lambda x, l: [x**0, x, l, x * l, l * l, x * x],
    ),
}


def student(dof):
    """The 95% quantile of Student's t (Abramowitz and Stegun, 26.7.5): between minus this and this
    lie 90%. 1% off at 2, less above."""
    z = 1.6448536
    return (
        z
        + (z**3 + z) / (4 * dof)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * dof**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * dof**3)
    )


def regress(form, x, l, y, least=2):
    """Least squares: {LR, or None for all: coefficients, their covariance, degrees of freedom,
    variance of a run}; {} if these are fewer than the least."""
    apart, terms = FORMS[form]
    fits = {}
    for key in sorted(set(l)) if apart else [None]:
        here = l == key if apart else np.full(len(l), True)
        A = np.stack(terms(x[here], l[here]), 1)
        dof = len(A) - A.shape[1]
        if dof < least or np.linalg.matrix_rank(A) < A.shape[1]:
            return {}
        coefficients = np.linalg.lstsq(A, y[here], rcond=None)[0]
        variance = np.sum((A @ coefficients - y[here]) ** 2) / dof
        fits[key] = coefficients, variance * np.linalg.inv(A.T @ A), dof, variance
    return fits


def extrapolate(form, fits, x, l):
    """Mean, standard deviation of one run, and degrees of freedom."""
    coefficients, covariance, dof, variance = fits[l if FORMS[form][0] else None]
    A = np.stack(FORMS[form][1](x, np.full_like(x, l)), 1)
    return A @ coefficients, np.sqrt(variance + np.einsum("ij,jk,ik->i", A, covariance, A)), dof


def rehearse(form, x, l, y):
    """Predicts the largest size from the smaller ones, and the two largest: the errors, and how
    many standard deviations they were."""
    errors, deviations = [], []
    for held in (1, 2):
        small = x < sorted(set(x))[-held]
        fits = regress(form, x[small], l[small], y[small], least=1)
        for key in sorted(set(l)) if fits else []:
            here = ~small & (l == key)
            mean, deviation, _ = extrapolate(form, fits, x[here], key)
            errors.extend(mean - y[here])
            deviations.extend((mean - y[here]) / np.fmax(deviation, 1e-12))
    return np.array(errors), np.array(deviations)


def crossing(x, y, limit, up):
    """Where log10 y passes the limit, x being log10 of the parameters; inf: nowhere up to the
    last."""
    past = (y > math.log10(limit)) == up
    if not past.any():
        return math.inf
    i = int(past.argmax())
    return (
        10 ** x[0]
        if i == 0
        else 10 ** np.interp(math.log10(limit), *zip(*sorted([(y[i - 1], x[i - 1]), (y[i], x[i])])))
    )


def grid_of_sizes(runs, reach):
    """(width or nan, parameters) of the curve's points: of one depth, the parameters are a
    quadratic of the width."""
    known = sorted({(run["d"], run["parameters"]) for run in runs})
    d, parameters = np.array(known).T
    if len({run["layers"] for run in runs}) == 1 and len(known) > 3 and len(set(d)) == len(d):
        quadratic = np.polyfit(d, parameters, 2)
        if np.allclose(np.polyval(quadratic, d), parameters, rtol=1e-6):
            unit = np.gcd.reduce(d.astype(int))
            widths = np.unique(
                [
                    *np.arange(d[0], 4 * d[-1] + 1, unit),
                    *unit * np.round(np.geomspace(4 * d[-1], reach * d[-1], 40) / unit),
                ]
            )
            return [(width, round(np.polyval(quadratic, width))) for width in widths]
    return [
        (math.nan, n)
        for n in sorted(
            {*parameters, *np.round(np.geomspace(parameters[0], reach**2 * parameters[-1], 100))}
        )
    ]


def predict(experiment, runs, path):
    """Writes the prediction; returns what it says, as text."""
    if experiment not in PREDICTIONS:
        raise ValueError(
            f"its experiment is {experiment}; a prediction is for " + " or ".join(PREDICTIONS)
        )
    what = PREDICTIONS[experiment]
    runs = [run for run in what["of"](runs) if what["value"](run) > 0]
    x, l, y = (
        np.array([math.log10(value(run)) for run in runs])
        for value in (lambda run: run["parameters"], lambda run: run["lr"], what["value"])
    )
    sizes, lrs = sorted({run["parameters"] for run in runs}), sorted({run["lr"] for run in runs})
    if len(sizes) < 4:
        raise ValueError(f"runs of {len(sizes)} sizes: a prediction needs 4, better 5 or more")
    rms = lambda values: float(np.sqrt(np.mean(np.square(values)))) if len(values) else math.inf
    rehearsals = {form: rehearse(form, x, l, y) for form in FORMS}
    # first those that can do both
    form = min(FORMS, key=lambda form: (-len(rehearsals[form][0]), rms(rehearsals[form][0])))
    fits = regress(form, x, l, y)
    if not fits or not math.isfinite(rms(rehearsals[form][0])):
        raise ValueError("too few runs for a fit: more sizes or seeds")
    widen = max(1.0, rms(rehearsals[form][1]))
    past = f"{'passes' if what['up'] else 'falls below'} {plain(what['limit'])}"
    said = [
        f"{what['name']}, predicted from {len(runs)} runs of {len(sizes)} sizes, parameters: "
        + " ".join(f"{n:.0f}" for n in sizes),
        "y = log10 of it, x = log10 of the parameters, l = log10 of the LR: y = " + form,
        "error in y when the largest sizes were predicted from the smaller ones, root mean square: "
        + "; ".join(
            f"{rms(rehearsals[f][0]):.3f} with {f}"
            for f in FORMS
            if math.isfinite(rms(rehearsals[f][0]))
        ),
        (
            f"low, high: 90% for one run, Student's t, times {widen:.2f} (what that rehearsal's"
            " errors were in standard deviations, if above 1)"
        ),
    ]
    for key, (coefficients, covariance, dof, variance) in fits.items():
        said.append(
            ("" if key is None else f"LR {sci(10**key)}: ")
            + "coefficients "
            + " ".join(f"{c:.6g}" for c in coefficients)
            + f"; a run's standard deviation {math.sqrt(variance):.4g}; degrees of freedom {dof};"
            " covariance, by rows " + " ".join(f"{c:.6g}" for c in covariance.flat)
        )
    grid, rows = grid_of_sizes(runs, what["reach"]), []
    at = np.log10([parameters for _, parameters in grid])
    for lr in lrs:
        mean, deviation, dof = extrapolate(form, fits, at, math.log10(lr))
        half = student(dof) * widen * deviation
        rows += [
            f"{sci(lr)},{'' if math.isnan(d) else format(d, 'g')},{n:.0f},{int(n in sizes)},"
            f"{10**m:.6g},{10 ** (m - h):.6g},{10 ** (m + h):.6g}"
            for (d, n), m, h in zip(grid, mean, half)
        ]
        middle, *ends = (
            crossing(at, y, what["limit"], what["up"]) for y in (mean, mean - half, mean + half)
        )
        word = lambda n: short(n) if math.isfinite(n) else f"above {short(grid[-1][1])}"
        said.append(
            f"LR {sci(lr)}: {past} at {word(middle)} parameters ({word(min(ends))} to"
            f" {word(max(ends))})" + ", within the fit" * bool(middle <= sizes[-1])
        )
    if path.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    with whole(path) as part:
        part.write_text(
            "".join(f"# {line}\n" for line in said)
            + "\n".join(["lr,d,parameters,fitted,predicted,low,high", *rows])
            + "\n",
            encoding="utf-8",
        )
    return "\n".join(said[:4] + said[4 + len(fits) :])


def read_prediction(runs):
    """{LR: (parameters, fitted, predicted, low, high)}, from the file that was written before, if
    there is one; and its runs."""
    found, (path, *others) = (
        {},
        sorted({path for run in runs if (path := run["sweep"] / "prediction.csv").exists()})
        or [None],
    )
    for row in read_csv(path, "lr parameters fitted predicted low high", "") if path else []:
        found.setdefault(row["lr"], []).append(
            [row[name] for name in ("parameters", "fitted", "predicted", "low", "high")]
        )
    for other in others:
        complain(other, f"another prediction than {path}: its runs are left out; draw it by itself")
    return {lr: np.array(sorted(rows)).T for lr, rows in sorted(found.items())}, [
        run for run in runs if run["sweep"] / "prediction.csv" not in others
    ]


def draw_prediction(part, experiment, runs):
    """What was predicted, as it was written, and what came: hollow points were fitted, full ones
    were not known."""
    prediction, runs = read_prediction(runs)
    what, lrs = PREDICTIONS[experiment], sorted({run["lr"] for run in runs})
    known = max(
        [rows[0][rows[1] == 1].max(initial=0) for rows in prediction.values()], default=math.inf
    )
    axes = part.subplots(1, 2 if what["up"] else 1, sharex=True, squeeze=False)[0]
    end = max(1.3 * max(run["parameters"] for run in runs), 8 * known) if what["up"] else math.inf
    for i, lr in enumerate(lrs):
        style, here = look(i, len(lrs)), [run for run in runs if run["lr"] == lr]
        for ax, value in zip(axes, (what["value"], loss)):
            curve = over(here, "parameters", value)
            for rows, size, face in (
                (curve[curve[:, 0] <= known], 4.5, "white"),
                (curve[curve[:, 0] > known], 6, style["color"]),
            ):
                ax.errorbar(
                    rows[:, 0],
                    rows[:, 1],
                    abs(rows[:, 2:] - rows[:, 1:2]).T,
                    **style,
                    linestyle="",
                    markersize=size,
                    markerfacecolor=face,
                    elinewidth=1,
                )
            ax.plot([], [], label=f"LR {sci(lr)}", **style)
        if what["up"]:
            axes[1].plot(curve[:, 0], curve[:, 1], color=style["color"], linewidth=1)
        if lr not in prediction:
            continue
        x, _, middle, low, high = prediction[lr][:, prediction[lr][0] <= end]
        axes[0].plot(x[x <= known], middle[x <= known], color=style["color"])
        axes[0].plot(x[x >= known], middle[x >= known], color=style["color"], linestyle="--")
        axes[0].fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        past = crossing(np.log10(x), np.log10(middle), what["limit"], what["up"])
        if what["up"] and len(curve) and x[0] < past < curve[-1, 0]:
            y = np.interp(math.log(past), np.log(curve[:, 0]), curve[:, 1])
            axes[1].plot(
                past, y, "|", color=style["color"], markersize=24, markeredgewidth=3, label="_past"
            )
    axes[0].axhline(what["limit"], color="0.3", linestyle=":")
    axes[0].set(xscale="log", yscale="log", ylabel=what["name"])
    axes[-1].set_ylabel(MEASURES["loss"][0] if what["up"] else what["name"])
    handles, grey = (
        dict(zip(*reversed(axes[0].get_legend_handles_labels()))),
        {"color": "0.3", "markersize": 6},
    )
    if prediction:
        handles |= {
            "fit, to the hollow points": Line2D(
                [], [], marker="o", markerfacecolor="white", **grey
            ),
            "prediction; band: 90% of runs": Line2D([], [], linestyle="--", **grey),
            "what came, not known to the fit": Line2D([], [], marker="o", linestyle="", **grey),
        }
    if prediction and what["up"]:
        handles[f"here the prediction passes {what['limit']}"] = Line2D(
            [], [], marker="|", linestyle="", markeredgewidth=3, color="0.3", markersize=12
        )
    if prediction and not what["up"]:
        axes[0].set_ylim(bottom=what["limit"] / 30)
    for ax in axes:
        ax.set_xlabel("parameters")
    part.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
    return 1.4, 3


# ---------------------------------------------------------------------------
# Single runs

PANELS = [  # the axis and its scale, the columns' names or their beginnings
    ("loss, nats per token", "linear", ("train_loss", "val_loss")),
    ("norm of the gradient", "log", ("grad_norm",)),
    ("largest attention logit", "log", ("max_attn_logit_",)),
    ("log Z", "linear", ("log_z",)),
    ("RMS of gradients", "log", ("grad_rms_",)),
    ("RMS of updates / learning rate", "log", ("update_rms_",)),
]


def diagnosis(rows, run=None):
    """What the trainer says at the end (diagnose in gpt.h), with the step where it begins:
    (beginning of the panel's columns, step, words). run: the run's summary, if it has one; without
    it epsilon is not known, and the warm-up ends where the learning rate is highest.
    """
    said, steps, run = [], [row["step"] for row in rows], run or {}
    first = lambda marks: next((step for step, mark in zip(steps, marks) if mark), None)
    column = lambda name: [number(row, name) for row in rows]
    highest = {
        name: np.nanmax(column(name))
        for name in rows[0]
        if name.startswith("max_attn_logit_") and np.isfinite(column(name)).any()
    }
    worst = max(highest, key=highest.get, default=None)
    if worst and highest[worst] > LOGIT_LIMIT:
        said.append(
            (
                "max_attn_logit_",
                first(x > LOGIT_LIMIT for x in column(worst)),
                f"past {LOGIT_LIMIT}, layer {worst.rsplit('_')[-1]}",
            )
        )
    if (step := first(x < LOG_Z_LIMIT for x in column("log_z"))) is not None:
        said.append(("log_z", step, f"below {LOG_Z_LIMIT}"))
    for name in [name for name in rows[0] if name.startswith("update_rms_")]:
        updates, gradients = column(name), column("grad_rms_" + name.removeprefix("update_rms_"))
        most = np.fmax.accumulate(updates)
        gone = [
            u < 0.3 * m and g < 10 * number(run, "eps") for u, m, g in zip(updates, most, gradients)
        ]
        if gone[-1]:
            said.append(
                (
                    "update_rms_",
                    steps[len(gone) - gone[::-1].index(False) if False in gone else 0],
                    f"{name.removeprefix('update_rms_')} met epsilon",
                )
            )
            break
    if run:
        warmup = (
            run["warmup"]
            if isinstance(run["warmup"], float)
            else run["steps"] * cell(run["warmup"].rstrip("%")) / 100
        )
    else:
        warmup = steps[int(np.nanargmax([-1, *column("lr")[1:]]))]
    losses = column("train_loss")
    least = np.fmin.accumulate(losses)
    if (
        step := first(s <= warmup and x > m + 0.5 for s, x, m in zip(steps, losses, least))
    ) is not None:
        said.append(("train_loss", step, "spike in warm-up"))
    if (step := first([False] + [not math.isfinite(x) for x in losses[1:]])) is not None:
        said += [
            (column[0], step, "not finite" if i == 0 else "")
            for i, (_, _, column) in enumerate(PANELS)
        ]
    elif run and run.get("diverged"):
        said.append(("train_loss", steps[-1], "not below the initial"))
    return said


def draw_log(logs, says=()):
    """Training curves, a column a run; a single run has its panels in two columns. says: what
    diagnosis() says of each run."""
    n, says = len(logs), dict(says)
    figure = Figure(figsize=(8, 8.5) if n == 1 else (max(8, 3 * n), 14), layout="constrained")
    axes = (
        figure.subplots(3, 2, sharex=True).reshape(6, 1)
        if n == 1
        else figure.subplots(6, n, sharex="col", sharey="row")
    )
    for row, (title, scale, columns) in zip(axes, PANELS):
        row[0].set_ylabel(title)
        names = list(
            dict.fromkeys(
                name for rows in logs.values() for name in rows[0] if name.startswith(columns)
            )
        )
        for ax, (run, rows) in zip(row, logs.items()):
            step = np.array([r["step"] for r in rows])
            for i, name in enumerate(names):
                y = np.array([number(r, name) for r in rows])
                # a few, no two lines' at one place
                style = look(i, len(names)) | {"markevery": ((i + 1) / (len(names) + 1) / 4, 0.25)}
                if name == "val_loss" or len(names) == 1:
                    style |= {"linestyle": "", "markevery": 1} if len(names) > 1 else {"marker": ""}
                label = re.sub(r"^(max_attn_logit|grad_rms|update_rms)_|_loss$", "", name)
                ax.plot(
                    step[np.isfinite(y)],
                    y[np.isfinite(y)],
                    label="layer " * label.isdigit() + label,
                    **style,
                )
            for at, words in [
                (at, words) for beginning, at, words in says.get(run, []) if beginning == columns[0]
            ]:
                ax.axvline(at, color="0.3", linestyle="--", linewidth=1, label="_" + words)
                ax.annotate(
                    words,
                    (at, 0.97),
                    xycoords=("data", "axes fraction"),
                    xytext=(2, 0),
                    textcoords="offset points",
                    rotation=90,
                    va="top",
                    fontsize=8,
                    bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1},
                )
            if ax.dataLim.minposy < math.inf:  # a log axis of nothing above 0 is an error
                ax.set_yscale(scale)
    for ax, run in zip(axes[0], logs):
        ax.set_title(run)
    for ax in axes[-1 - (n == 1) :].flat:
        ax.set_xlabel("step")
    for ax in *axes[0], axes[2, 0]:
        ax.legend(ncols=1 + len(ax.lines) // 5)
    figure.legend(
        *axes[-1, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=5,
        title="RMS by kind of tensor",
    )
    return figure


# ---------------------------------------------------------------------------
# Tables


def markdown(head, rows):
    """Aligned; the first column to the left, the others to the right."""
    width = [max(map(len, column)) for column in zip(head, *rows)]
    line = (
        lambda row: "| "
        + " | ".join(x.rjust(w) if i else x.ljust(w) for i, (x, w) in enumerate(zip(row, width)))
        + " |"
    )
    return "\n".join(
        [
            line(head),
            line(["-" * (w - bool(i)) + ":" * bool(i) for i, w in enumerate(width)]),
            *map(line, rows),
        ]
    )


def show(x, form):
    return "-" if math.isnan(x) else format(x, form)


def tables(runs):
    """The results of each combination of the flags that vary, and the LR sensitivity of each
    without the LR."""
    vary = [
        name
        for name in flags(runs[0])
        if name not in ("lr", "seed") and len({run.get(name) for run in runs}) > 1
    ]
    if len({(run["d"], run["heads"]) for run in runs} if "heads" in vary else {}) == len(
        {run["d"] for run in runs}
    ):
        vary.remove("heads")  # the width says it
    points, sensitivity = [], []
    for group in by_name(runs, vary).values():
        settings = [plain(x) for x in map(group[0].get, vary)]
        for lr in sorted({run["lr"] for run in group}):
            seeds = [run for run in group if run["lr"] == lr]
            middle, least, most = spread(map(loss, seeds))
            points.append(
                [
                    *settings,
                    sci(lr),
                    f"{middle:.4f}" + (f" ({least:.3f} to {most:.3f})" if len(seeds) > 1 else ""),
                    show(spread(map(logit, seeds))[0], ".4g"),
                    show(spread(number(run, "log_z") for run in seeds)[0], ".3f"),
                    f"{sum(run['diverged'] for run in seeds):g} of {len(seeds)}",
                ]
            )
        found = [lr_sensitivity(group, *grid) for grid in GRIDS]
        if found[0][1] > 1:
            sensitivity.append(
                [
                    *(settings or ["all"]),
                    sci(best_lr(group)),
                    *(f"{show(s, '.4f')} ({n})" for s, n in found),
                ]
            )
    return "\n".join(
        [
            (
                "Validation loss in nats per token, median over the seeds (least to most); a run"
                " that diverged counts with its loss at initialisation."
            ),
            "",
            markdown(
                [*vary, "learning rate", "final loss", "max attention logit", "log Z", "diverged"],
                points,
            ),
        ]
        + (
            [
                "",
                (
                    "LR sensitivity in nats per token (from so many learning rates); 0: the"
                    " learning rate does not matter."
                ),
                "",
                markdown(
                    [
                        *(vary or ["runs"]),
                        "best LR",
                        *(f"{sci(least)} to {sci(most)}" for least, most in GRIDS),
                    ],
                    sensitivity,
                ),
            ]
            if sensitivity
            else []
        )
    )


def prediction_table(experiment, runs):
    """The runs that the fit did not know, beside what was predicted."""
    what, rows, (prediction, runs) = PREDICTIONS[experiment], [], read_prediction(runs)
    for lr, (sizes, fitted, *curves) in prediction.items():
        for size in sorted({run["parameters"] for run in runs} - {*sizes[fitted == 1]}):
            seeds = [
                run for run in what["of"](runs) if run["parameters"] == size and run["lr"] == lr
            ]
            middle, low, high = (
                10 ** np.interp(math.log10(size), np.log10(sizes), np.log10(curve))
                for curve in curves
            )
            values = [what["value"](run) for run in seeds]
            if values and sizes[fitted == 1].max() < size <= sizes[-1]:
                rows.append(
                    [
                        f"{seeds[0]['d']:g}",
                        short(size),
                        sci(lr),
                        f"{middle:.3g}",
                        f"{low:.3g} to {high:.3g}",
                        ", ".join(show(x, ".3g") for x in values),
                        f"{sum(low <= x <= high for x in values)} of {len(values)}",
                    ]
                )
    return (
        "\n\nWhat was predicted, and what came.\n\n"
        + markdown(
            ["d", "parameters", "learning rate", "predicted", "90%", what["name"], "inside"], rows
        )
        if rows
        else ""
    )


# ---------------------------------------------------------------------------


def save(figure, folder, name, form):
    path = folder / f"{name}.{form}"
    with whole(path) as part:
        figure.savefig(
            part, metadata={"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(form)
        )
    print(f"wrote {path}", flush=True)


def draw_all(found, options):
    options.o.mkdir(parents=True, exist_ok=True)
    for experiment, runs in found.items():
        try:
            save(draw(experiment, runs), options.o, experiment, options.format)
        except KeyError as column:
            complain(
                runs[0]["sweep"],
                f"no figure of {experiment}: its runs have no column {column}, or a word in it"
                " where a number should be",
            )


def watch(options):
    """Draws when a run has ended. Done when at two looks each run that began has ended: the next
    begins at once."""
    ended, quiet = None, 0
    while quiet < 2:
        logs, now_ended = (
            {
                path.parent
                for folder in options.folders
                for path in pathlib.Path(folder).glob(f"**/{name}.csv")
            }
            for name in ("log", "summary")
        )
        quiet = quiet + 1 if logs and logs <= now_ended == ended else 0
        if now_ended != ended and now_ended:
            draw_all(read_sweeps(options.folders), options)
        ended = now_ended
        if quiet < 2:
            time.sleep(options.every)


def main(argv):
    command = argv[0] if argv[:1] and argv[0] in ("log", "table", "predict", "watch") else ""
    parser = argparse.ArgumentParser(
        prog=f"plot.py {command}".strip(),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders",
        nargs="+" if command in ("log", "watch") else 1 if command == "predict" else "*",
        default=["runs"],
        metavar="RUN" if command == "log" else "DIR",
    )
    if command == "predict":
        parser.add_argument(
            "-o", type=pathlib.Path, metavar="FILE", help="default: DIR/prediction.csv"
        )
    elif command != "table":
        parser.add_argument(
            "-o",
            type=pathlib.Path,
            default=pathlib.Path("figures"),
            metavar="FOLDER",
            help="for the pictures; default: figures/",
        )
        parser.add_argument("-format", choices=["png", "pdf", "svg"], default="png")
    if command == "watch":
        parser.add_argument(
            "-every", type=float, default=10, metavar="SECONDS", help="between looks; default: 10"
        )
    options = parser.parse_args(argv[1:] if command else argv)
    try:
        if command == "watch":
            watch(options)
            return 0
        if command == "log":
            found = {folder: rows for folder in options.folders if (rows := read_log(folder))}
        else:
            found = read_sweeps(options.folders)
        if not found:
            print("plot.py: nothing to show in " + " ".join(options.folders), file=sys.stderr)
            return 1
        if command == "table":
            heading = (lambda name: f"## {name}\n\n") if len(found) > 1 else lambda name: ""
            print(
                "\n\n".join(
                    heading(name)
                    + tables(runs)
                    + (prediction_table(name, runs) if name in PREDICTIONS else "")
                    for name, runs in found.items()
                ),
                flush=True,
            )
        elif command == "predict":
            name, path = (
                next(iter(found)),
                options.o or pathlib.Path(options.folders[0]) / "prediction.csv",
            )
            try:
                said = predict(name, found[name], path)
            except (ValueError, KeyError) as error:
                complain(
                    options.folders[0],
                    (
                        f"no prediction: its runs have no column {error}"
                        if isinstance(error, KeyError)
                        else error
                    ),
                )
                return 1
            print(f"{said}\nwrote {path}", flush=True)
        elif command == "log":
            options.o.mkdir(parents=True, exist_ok=True)
            summaries = {
                run: path for run in found if (path := pathlib.Path(run) / "summary.csv").exists()
            }
            says = {
                run: diagnosis(
                    rows,
                    (
                        next(iter(read_csv(summaries[run], "steps eps", "", "warmup")), None)
                        if run in summaries
                        else None
                    ),
                )
                for run, rows in found.items()
            }
            save(draw_log(found, says), options.o, "log", options.format)
        else:
            draw_all(found, options)
    except FileExistsError as error:
        complain(
            error.filename,
            (
                "is there already; a prediction is made once, before its outcome is known"
                if command == "predict"
                else error.strerror
            ),
        )
        return 1
    except OSError as error:
        complain(error.filename or "its output", error.strerror)
        if not error.filename:
            # what is left to write would fail once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
