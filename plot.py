#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "matplotlib>=3.6.3",
#     "numpy>=1.24.2",
#     "pandas>=1.5.3",
#     "seaborn>=0.12.2",
# ]
# ///
"""The paper's figures from the runs' CSV files.

plot.py [DIR ...]        a figure per experiment, NAME.png in the first DIR
plot.py table [DIR ...]  the numbers of these figures, as Markdown
plot.py log RUN ...      training curves side by side, log.png in the first RUN

DIR is a sweep by sweep.sh or by `train_gpt -lr`, or a folder of sweeps.
Default: runs"""

import argparse
import contextlib
import csv
import errno
import importlib.metadata
import itertools
import math
import os
import pathlib
import re
import sys
import warnings
from collections.abc import Callable
from operator import itemgetter
from typing import NamedTuple


def require(script):
    """Raises ImportError if a library that the script's first lines ask for is missing or old."""
    text = pathlib.Path(script).read_text(encoding="utf-8")
    wanted = re.findall(r'^#     "(\w+)>=([\d.]+)"', text, re.M)
    for name, least in wanted:
        try:
            there = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            there = "0"
        if [int(x) for x in re.findall(r"\d+", there)] < [int(x) for x in least.split(".")]:
            raise ImportError(
                f"needs {name} {least} or newer. Debian, Ubuntu: sudo apt install python3-seaborn."
                " Elsewhere: python3 -m venv build/venv && build/venv/bin/pip install "
                + " ".join(name for name, _ in wanted)
                + f", then build/venv/bin/python {pathlib.Path(script).name}"
            )


try:
    require(__file__)
    import matplotlib
    import numpy as np
    import pandas as pd
    import seaborn as sns
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import LogLocator, NullFormatter
except ImportError as error:
    sys.exit(f"plot.py: {error}")

STYLE = {
    "font.size": 10,
    "axes.titlesize": 10,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "savefig.dpi": 150,
    "svg.hashsalt": "plot.py",
}
ACROSS = 4  # at most so many panels side by side
N = "parameters_non_embedding"  # without the embedding and without the head
TEXTS = (
    "warmup schedule optimizer qk_norm mu_param scale attention data val init out measure".split()
)
# flags that do not change a result
HANDLING = """micro_batch resume eval sample prompt tokenizer temperature out eval_every log_every
    checkpoint_every""".split()
# Section 2.2: the learning rates of LR sensitivity; and all half-decades, for windows of seven
PAPER_RATES = [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1]
HALF_DECADES = [float(f"{mantissa}e{exponent}") for exponent in range(-7, 3) for mantissa in (1, 3)]
# the trainer's diagnosis warns past these: of log Z if logits are rounded, of gradients / epsilon
LOGIT_LIMIT, LOG_Z_LIMIT, EPS_LIMIT = 100, -128, 0.1
QUADRATIC = "a + b x + c x^2, for each LR"  # the paper's form (section 3.3)
EARLY_LIMIT = 7  # of a logit at 2% of the steps: the runs of predict_logits end worse past it


# ---------------------------------------------------------------------------
# Reading


def complain(path, what):
    """Tells the user of a file that cannot be used, and gives a table without rows instead."""
    print(f"plot.py: {path}: {what}", file=sys.stderr)
    return pd.DataFrame()


@contextlib.contextmanager
def whole(path):
    """Yields the path of a new file beside this one. It takes this one's place once it is written,
    so that a file appears whole or not at all."""
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        error.filename = str(path)  # a write that fails does not say where
        raise
    finally:
        part.unlink(missing_ok=True)


def parse(names, cells, needed):
    """Returns a line of a CSV file as {name: number, or text in a column of TEXTS}. Raises
    ValueError if it has too many or too few cells, a word for a number, or nan in a needed one."""
    if len(cells) != len(names):
        raise ValueError(f"{len(cells)} cells instead of {len(names)}")
    row = {}
    for name, cell in zip(names, cells):
        try:
            row[name] = cell if name in TEXTS else float(cell or "nan")
        except ValueError:
            raise ValueError(f"{name} is '{cell}', not a number") from None
        if name in needed and not math.isfinite(row[name]):
            raise ValueError(f"{name} is '{cell}', not a number")
    if row.get("diverged") == 0 and not math.isfinite(row["final_loss"]):
        raise ValueError("no final_loss, but the run did not diverge")
    return row


def read_csv(path, needed, present=""):
    """Returns a table of the file's lines. needed: columns of numbers, none of them nan; present:
    other columns that must be there. Lines that cannot be used are left out, and stderr gets a line
    about the first of them."""
    rows, bad = [], []
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
            lines = csv.reader(file)
            table = [(lines.line_num, line) for line in lines if line and line[0][:1] != "#"]
    except (OSError, csv.Error) as error:
        return complain(path, getattr(error, "strerror", None) or error)
    if not table:
        return complain(path, "is empty")
    (_, names), *table = table
    for name in f"{needed} {present}".split():
        if name not in names:
            return complain(path, f"has no column {name}: not written by train_gpt")
    for number, cells in table:
        try:
            rows.append(parse(names, cells, needed.split()))
        except ValueError as error:
            bad.append(f"line {number}: {error}")
    if bad:
        complain(path, f"{bad[0]}; left out" + (f", and {len(bad) - 1} more" if bad[1:] else ""))
    elif not rows:
        complain(path, "has no rows yet")
    return pd.DataFrame(rows)


def read_log(run):
    """Returns a run's log.csv."""
    run = pathlib.Path(run)
    runs = sorted(run.glob("*/log.csv"))
    if runs and not (run / "log.csv").exists():
        return complain(run, f"holds several runs: name them, such as {runs[0].parent}")
    return read_csv(run / "log.csv", "step", "train_loss val_loss grad_norm log_z")


def read_runs(path, sweep):
    """Returns the runs of a summary.csv, with the folder of each, and of the sweep."""
    runs = read_csv(
        path,
        f"lr d layers seed steps {N} initial_loss diverged",
        "qk_norm warmup out threads final_loss max_attn_logit log_z entropy_floor",
    )
    if runs.empty:
        return runs
    here = path.parent
    names = [pathlib.Path(out).name for out in runs.out]
    runs["folder"] = [here if here.name == name else here / name for name in names]
    runs["sweep"] = sweep
    # always a share of the steps, in percent
    number = pd.to_numeric(runs.warmup.str.rstrip("%"), errors="coerce").astype(float)
    share = 100 * number / runs.steps
    runs["warmup"] = number.where(runs.warmup.str.endswith("%"), share)
    return runs


def read_sweeps(folders):
    """Returns {experiment: table of its runs, each of them once}. A joined table may be older than
    the runs' own, so both are read. Sweeps of one experiment become one; that of `train_gpt -lr` is
    called lr."""
    found, names = {}, {}
    for folder in map(pathlib.Path, folders):
        patterns = ("summary.csv", "*/summary.csv", "*/*/summary.csv")
        paths = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
        for path in paths or [folder / "summary.csv"]:
            above = (path.parent, path.parent.parent)
            sweep = next((here for here in above if (here / "experiment").exists()), folder)
            if sweep not in names:
                names[sweep] = experiment_of(sweep)
            runs = read_runs(path, sweep)
            if len(runs):
                found.setdefault(names[sweep], []).append(runs)
    return {name: merge(tables) for name, tables in found.items()}


def experiment_of(sweep):
    """Returns the name of a sweep's experiment."""
    path = sweep / "experiment"
    name = path.read_text(errors="replace").strip() if path.exists() else "lr"
    if name in EXPERIMENTS:
        return name
    complain(path, f"'{name}' is not an experiment that I know: drawn as grid")
    return "grid"


def merge(tables):
    """Returns one table, with the flags in front, and each run once: as it was read last."""
    runs = pd.concat(tables, ignore_index=True)
    first = dict.fromkeys(name for table in tables for name in flags(table))
    rest = [name for name in runs if name not in first]
    return runs[[*first, *rest]].drop_duplicates(list(first), keep="last", ignore_index=True)


def flags(runs):
    """Returns the flags that can change a result: the columns before threads, without HANDLING."""
    before = runs.columns[: runs.columns.get_loc("threads")]
    return [name for name in before if name not in HANDLING]


# ---------------------------------------------------------------------------
# Names


def plain(x, least=0.1):
    """Writes a number as a flag: 3e-4, 0.95, 16. Below the least with an exponent."""
    if isinstance(x, str):
        return x
    if not math.isfinite(x):
        return "none"
    if x == 0 or least <= abs(x) < 1e6:
        return f"{x:g}"
    mantissa, exponent = f"{x:.6e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def short(count):
    """Writes a count with three digits: 14.4k, 1.2M."""
    for unit, name in [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")]:
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return f"{count:g}"


def word(flag, value):
    """Names a flag and its value."""
    if (flag, value) in WORDS:
        return WORDS[flag, value]
    if flag == "lr":
        return "LR " + plain(value, 1)
    return f"{flag} {plain(value)}" + "%" * (flag == "warmup")


def varying(runs):
    """Returns the flags that vary, without the learning rate and the seed."""
    vary = [name for name in flags(runs) if runs[name].nunique(dropna=False) > 1]
    if "heads" in vary and runs.groupby("d").heads.nunique().max() == 1:
        vary.remove("heads")  # the width says it
    return [name for name in vary if name not in ("lr", "seed")]


def key(runs, names):
    """Returns a text for each run, the same for runs that are the same in these columns."""
    return runs[list(names)].astype(str).agg("|".join, axis=1)


def unnamed(runs, known):
    """Returns the flags, other than these, in which runs differ that are the same in these: such
    runs are not seeds of each other."""
    same = runs.groupby(key(runs, known))
    others = [name for name in flags(runs) if name not in (*known, "seed")]
    return [name for name in others if (same[name].nunique(dropna=False) > 1).any()]


def named(runs, names):
    """Names each run after these flags, if they vary. The names are ordered, small to large."""
    vary = [name for name in names if runs[name].nunique(dropna=False) > 1] or names[:1]
    words = [[word(name, value) for value in runs[name]] for name in vary]
    labels = pd.Series([", ".join(parts) for parts in zip(*words)] or "", runs.index, dtype=object)
    rank = {name: [ORDER.get((name, value), value) for value in runs[name]] for name in vary}
    if "d" in vary:
        smallest = runs[N].groupby(labels).transform("min")
        rank = {"size": smallest} | rank
        labels += " (" + smallest.map(short) + " parameters)"
    ranks = pd.DataFrame(rank, runs.index)
    by_rank = labels[ranks.sort_values(list(ranks)).index] if vary else labels
    return pd.Series(pd.Categorical(labels, by_rank.unique()), runs.index)


# ---------------------------------------------------------------------------
# Measures: of a table of runs, a number for each run, or nan


def loss(runs):
    """The paper's loss: min(final, initial), and that at initialization of a run that diverged."""
    return np.fmin(runs.final_loss, runs.initial_loss)


def logit(runs):
    # 0: the run diverged before its first logged step
    return runs.max_attn_logit.where(runs.max_attn_logit > 0)


def end(log, name):
    """Of a column of a log, the median of the run's last tenth: a single step is noise."""
    if name not in log:
        return math.nan
    tail = log[name].iloc[-max(1, len(log) // 10) :]
    return tail[(tail > 0) & (tail < math.inf)].median()


def at_end(name):
    return lambda runs: runs.folder.map(lambda folder: end(read_log(folder), name))


def early(column, share=0.02):
    """Of a column of the log, the value at this share of the steps."""

    def value(run):
        log = read_log(run.folder)
        if column not in log or log[column].isna().all():
            return math.nan
        log = log.dropna(subset=column)
        return log[column].iloc[(log.step - share * run.steps).abs().argmin()]

    return lambda runs: runs.apply(value, axis=1)


def effect(kind):
    """Of a kind of tensor, the largest change of its output by one update, in case all of it adds
    up: learning rate x RMS of the update x inputs."""

    def value(runs):
        scale = (runs["base_d"] / runs.d).mask(runs["mu_param"] == "off", 1)
        return runs["now_lr"] * scale * runs[f"now_update_rms_{kind}"] * runs.d

    return value


def over_lr(value):
    """A number for the runs that differ in their learning rate alone, at the first of them. value:
    of a series {learning rate: loss}. There is none before all the learning rates are there that
    another size or seed has."""

    def measure(runs):
        same = [name for name in (*flags(runs), "family") if name in runs and name != "lr"]
        sweep = key(runs, same)
        line = key(runs, [name for name in same if name not in ("d", "layers", "heads", "seed")])
        rates = runs.lr.groupby(sweep).transform("nunique")
        complete = runs[rates == rates.groupby(line).transform("max")]
        y = pd.Series(math.nan, runs.index)
        for _, here in complete.assign(loss=loss(complete)).groupby(sweep):
            if here.lr.nunique() > 1:
                y[here.index[0]] = value(here.groupby("lr").loss.median())
        return y

    return measure


def sensitivity(losses, rates=PAPER_RATES):
    """LR sensitivity, section 2.2: the mean loss over seven learning rates minus the best; nan if
    one of them is not there."""
    losses = losses.reindex(rates)
    return (losses - losses.min()).mean(skipna=False)


def shifted_sensitivity(losses):
    """The least sensitivity over any seven half-decades: for settings that move the best learning
    rate, as the paper does for weight decay."""
    windows = [HALF_DECADES[i : i + 7] for i in range(len(HALF_DECADES) - 6)]
    return pd.Series([sensitivity(losses, window) for window in windows]).min()


# ---------------------------------------------------------------------------
# The experiments, as data

MEASURES = {  # the axis, its scale, the measure
    "loss": ("final validation loss, nats", "linear", loss),
    "logit": ("largest attention logit", "log", logit),
    "log_z": ("mean log Z at the end", "linear", itemgetter("log_z")),
    "best_lr": ("best learning rate", "log", over_lr(pd.Series.idxmin)),
    "best_loss": ("loss at the best LR, nats", "linear", over_lr(pd.Series.min)),
    "sensitivity": ("LR sensitivity, nats\n(LR 3e-4 to 3e-1)", "linear", over_lr(sensitivity)),
    "shifted": ("LR sensitivity, nats\n(best 3 decades)", "linear", over_lr(shifted_sensitivity)),
    "early_logit": (
        "largest attention logit of\nblock 0 at 2% of the steps",
        "log",
        early("max_attn_logit_0"),
    ),
    "gradient": ("at the end, block 0: RMS of\nc_fc's gradient", "log", at_end("c_fc_grad_rms_0")),
    "update": ("at the end, block 0: RMS of\nc_fc's update", "log", at_end("c_fc_update_rms_0")),
    "now_loss": ("training loss, nats", "linear", itemgetter("now_train_loss")),
    "now_val": ("validation loss, nats", "linear", itemgetter("now_val_loss")),
    "now_mean_logit": ("mean output logit", "linear", itemgetter("now_mean_logit")),
    "now_logit": ("largest attention\nlogit of block 0", "log", itemgetter("now_max_attn_logit_0")),
    "now_q": ("RMS of queries", "log", itemgetter("now_q_rms_0")),
    "now_k": ("RMS of keys", "log", itemgetter("now_k_rms_0")),
    "now_cosine": ("|cosine| of the\nlargest pair", "linear", lambda t: t["now_qk_cosine_0"].abs()),
    "now_gradient": (
        "RMS of the gradient\nof c_fc, block 0",
        "log",
        itemgetter("now_c_fc_grad_rms_0"),
    ),
    "now_update": (
        "RMS of the update\nof c_fc, block 0",
        "log",
        itemgetter("now_c_fc_update_rms_0"),
    ),
    "block_rms": ("at the end, RMS of:\nthe block's output", "log", itemgetter("block_rms")),
    "block_c_fc": ("gradient of c_fc\n(MLP)", "log", itemgetter("c_fc_grad_rms")),
    "block_attn": ("gradient of c_proj\n(attention)", "log", itemgetter("attn_c_proj_grad_rms")),
    "now_att": ("RMS of activations:\nattention's output", "log", itemgetter("now_act_rms_att")),
    "now_residual": ("last residual", "log", itemgetter("now_act_rms_residual")),
    "now_logits": ("output logits", "log", itemgetter("now_act_rms_logits")),
    "now_c_fc": ("MLP's hidden layer", "log", itemgetter("now_act_rms_c_fc")),
    "now_effect": ("effect of an update:\nMLP's first matrix", "log", effect("c_fc")),
    "now_head_effect": ("effect of an update:\noutput matrix", "log", effect("lm_head")),
}
OVER_LR = ["best_lr", "best_loss", "sensitivity", "shifted"]  # measures of several runs
# axes; on the others the values stand side by side, as some are 0
LOGARITHMIC = ("lr", "eps", "kappa", N)
AXES = {
    "lr": "learning rate",
    N: "parameters, without\nembedding and head",
    "d": "width d",
    "warmup": "warm-up, % of the steps",
    "step": "step",
    "steps": "steps of training",
    "batch": "batch, sequences",
    "beta2": "beta2 of AdamW",
    "clip": "gradient clipped at (0: not)",
    "eps": "epsilon of AdamW",
    "kappa": "kappa: mean square of q and of k",
    "block": "block",
    "sensitivity": "LR sensitivity",
}
WORDS = {  # in the order of lines and panels
    ("qk_norm", "0"): "without qk-norm",
    ("qk_norm", "1"): "with qk-norm",
    ("qk_norm", "model"): "qk-norm over all heads",
    ("attention", "softmax"): "softmax",
    ("attention", "relu2"): "squared ReLU",
    ("scale", "sqrt"): "scale 1/sqrt(d_h)",
    ("scale", "d_h"): "scale 1/d_h",
    ("rms_lr", 0): "learning rate",
    ("rms_lr", 1): "learning rate x RMS",
    ("recipe", "none"): "no intervention",
    ("recipe", "all"): "qk-norm, z-loss, decay, warm-up",
    ("recipe", "all and muParam"): "the same, and µParam",
    ("z_loss", 0): "without z-loss",
    ("wd_independent", 0): "standard",
    ("wd_independent", 1): "independent",
    ("mu_param", "off"): "standard model",
    ("mu_param", "simple"): "µParam simple",
    ("mu_param", "intermediate"): "µParam intermediate",
    ("mu_param", "full"): "µParam full",
    ("family", "depth"): "depth alone",
    ("family", "width"): "width alone",
    ("family", "both"): "both",
}
CURES = (
    "bare; soft cap; QK-clip; gate; Peri-LN; decay 1e-2, cautious;"
    " Muon; Muon, QK-clip; Muon, qk-norm; qk-norm; qk-norm, long warm-up"
)
WORDS |= {("cure", name): name for name in CURES.split("; ")}
# of the same type as the values, which may be others
ORDER = {pair: f"{i:02}" if isinstance(pair[1], str) else i for i, pair in enumerate(WORDS)}


def families(runs):
    """depth_width: the runs of each way to grow. The size where the ways meet belongs to all."""
    sizes = runs[["d", "layers"]].drop_duplicates()
    shared = [((sizes.d == d) | (sizes.layers == layers)).sum() for d, layers in sizes.values]
    d, layers = sizes.values[np.argmax(shared)]
    wide, deep = runs.d != d, runs.layers != layers
    ways = {"depth": ~wide, "width": ~deep, "both": wide == deep}
    return pd.concat([runs[way].assign(family=name) for name, way in ways.items()])


# an axis or line of this name tells apart the runs of these flags too
TELLS = {
    "recipe": "qk_norm z_loss wd warmup mu_param".split(),
    "kappa": ["layers"],
    "cure": "qk_norm attn_cap qk_clip gate peri_ln optimizer wd cautious warmup".split(),
}


def recipes(runs):
    """recipe: which of the paper's interventions the runs have."""
    all_of_them = np.where(runs.mu_param == "off", "all", "all and muParam")
    return runs.assign(recipe=np.where(runs.qk_norm == "0", "none", all_of_them))


def cures(runs):
    """league: the cures that each run has. All have weight decay and warm-up, some have more."""
    has = pd.DataFrame(
        {
            "decay 1e-2": runs.wd == 1e-2,
            "cautious": runs.cautious > 0,
            "soft cap": runs.attn_cap > 0,
            "gate": runs.gate > 0,
            "Peri-LN": runs.peri_ln > 0,
            "Muon": runs.optimizer == "muon",
            "QK-clip": runs.qk_clip > 0,
            "qk-norm": runs.qk_norm != "0",
            "long warm-up": runs.warmup >= 25,
        }
    )
    return runs.assign(cure=[", ".join(has.columns[row]) or "bare" for row in has.values])


def beside_bigrams(runs):
    """kappa: the runs with layers, and beside each the best loss of those without."""
    without = loss(runs[runs.layers == 0]).groupby(runs.seed).min().median()
    return runs[runs.layers > 0].assign(baseline=without)


def at_lrs(runs, *lrs):
    return runs[runs.lr.isin(lrs)]


def usual_eps(runs):
    return runs[runs["eps"] == 1e-8]


def several_eps(runs):
    return runs.groupby(["d", "layers", "lr"]).filter(lambda same: same["eps"].nunique() > 1)


def logged(runs):
    """Returns a row for each logged step; of a short log a few, as each becomes a line."""
    tables = []
    for _, run in runs.iterrows():
        log = read_log(run.folder)
        if log.empty:
            continue
        log = log[log.step > 0].reset_index(drop=True)
        if 0 < len(log) <= 20:
            log = log.iloc[sorted({round(x) - 1 for x in np.geomspace(1, len(log), 5)})]
        log = log.add_prefix("now_").rename(columns={"now_step": "step"})
        tables.append(log.assign(**run)[[*run.index, *log.columns]])
    return pd.concat(tables) if tables else runs[:0]


def by_block(runs):
    """Returns a row for each block of each run: what its log says of it, at the end."""
    rows = []
    names = "block_rms c_fc_grad_rms attn_c_proj_grad_rms".split()
    for _, run in runs.iterrows():
        log = read_log(run.folder)
        for block in range(int(run.layers)):
            seen = {name: end(log, f"{name}_{block}") for name in names}
            rows.append({**run, "block": block, **seen})
    return pd.DataFrame(rows)


SIZE = "d layers"
SETTING = lambda flag: [
    ("loss", "lr", flag, "qk_norm"),
    ("best_lr best_loss sensitivity", flag, "qk_norm", ""),
]
# A figure's blocks: what is measured, against what, a line for each, a column (or row/column) of
# panels for each, and of which runs. Those of grid are in its flags.
EXPERIMENTS = {
    "lr": [("loss logit", "lr", SIZE, "qk_norm")],
    "grid": [],
    "qk_norm": [("loss logit", "lr", SIZE, "qk_norm"), ("sensitivity", N, "qk_norm", "")],
    "logit_growth": [
        ("now_logit now_loss now_q now_k now_cosine", "step", SIZE, "/qk_norm lr", logged)
    ],
    "z_loss": [
        ("loss log_z", "lr", "z_loss wd", SIZE),
        ("sensitivity", N, "z_loss wd", ""),
        (
            "now_mean_logit now_val",
            "step",
            "z_loss wd",
            "/" + SIZE,
            lambda runs: logged(at_lrs(runs, 0.1)),
        ),
    ],
    "warmup": [
        ("loss", "lr", "warmup", "qk_norm/" + SIZE),
        ("sensitivity", N, "warmup", "qk_norm"),
        ("loss", "warmup", SIZE, "qk_norm", lambda runs: at_lrs(runs, 0.1)),
    ],
    "weight_decay": [
        ("loss", "lr", "wd_independent wd", SIZE),
        ("best_lr sensitivity shifted", N, "wd_independent wd", ""),
    ],
    "depth_width": [
        ("loss", "lr", SIZE, "qk_norm/family", families),
        ("sensitivity best_loss", N, "family", "qk_norm", families),
    ],
    "mu_param": [
        ("loss", "lr", "d", "qk_norm/mu_param"),
        ("best_lr best_loss sensitivity shifted", "d", "mu_param", "qk_norm"),
    ],
    "coord_check": [
        ("now_att now_residual now_c_fc now_logits", "d", "step", "mu_param", logged),
        ("now_effect now_head_effect", "d", "step", "mu_param", logged),
    ],
    "predict_logits": [("early_logit logit loss", N, "lr", "")],
    "kappa": [("loss", "kappa", "lr", "", beside_bigrams)],
    "block_rms": [
        ("block_rms block_c_fc block_attn", "block", "lr", "/" + SIZE, by_block),
        ("now_gradient now_update", "step", "lr", "/" + SIZE, logged),
    ],
    "recipe": [
        ("loss", "lr", SIZE, "recipe", recipes),
        ("sensitivity shifted best_loss", N, "recipe", "", recipes),
    ],
    "league": [
        ("best_loss", "sensitivity", "cure", SIZE, cures),
        ("loss", "lr", SIZE, "cure", cures),
    ],
    "scale": [
        ("loss", "lr", "d", "qk_norm/scale"),
        ("best_loss sensitivity", "d", "scale", "qk_norm"),
    ],
    "qk_norm_over": [("loss logit", "lr", SIZE, "qk_norm"), ("sensitivity", N, "qk_norm", "")],
    "pointwise": [
        ("logit loss", "lr", SIZE, "/qk_norm attention"),
    ],
    "rms_lr": [("loss", "lr", "d", "rms_lr"), ("best_lr best_loss", "d", "rms_lr", "")],
    "predict_eps": [
        ("gradient", N, "lr", "", usual_eps),
        ("gradient loss", "lr", SIZE, "", usual_eps),
        ("update loss", "eps", "lr", "", several_eps),
        (
            "now_gradient now_update now_loss",
            "step",
            "eps",
            "/lr",
            lambda runs: logged(several_eps(runs)),
        ),
    ],
    "steps": SETTING("steps"),
    "batch": SETTING("batch"),
    "beta2": SETTING("beta2"),
    "clip": SETTING("clip"),
}
FIT = ["predicted", "low", "high"]


class Prediction(NamedTuple):
    """What predict.py predicts, sections 3.3 and 3.4."""

    measure: str
    choose: Callable  # of which runs
    limit: float  # past which training suffers
    upwards: bool  # whether that is above it
    most: float  # how far the prediction goes, in times the largest size
    form: str = ""  # of predict.py's FORMS; else the one that predicts the largest sizes best


# The first is the paper's. The second is ours: larger models begin to end worse where the largest
# logit of the run is 100 (the paper's much longer runs failed at 1e4). Updates die where gradients
# are below epsilon.
PREDICTIONS = {
    "predict_logits": [
        Prediction("early_logit", lambda runs: runs, EARLY_LIMIT, True, 16, QUADRATIC),
        Prediction("logit", lambda runs: runs, LOGIT_LIMIT, True, 16),
    ],
    "predict_eps": [Prediction("gradient", usual_eps, 1e-8, False, 1e6)],
}


# ---------------------------------------------------------------------------
# Figures

SEQUENCES = [
    "viridis",
    "copper",
    "cool",
    "gray",
]  # of sizes and numbers: the figure's first such, ...
SWITCHES = ["#d55e00", "#000000", "#e69f00", "#cc79a7", "#8c510a", "#56b4e9"]  # of words
MARKERS, DASHES = "os^DvP*<>ph", ["", (4, 2), (1, 1.5), (6, 2, 1, 2), (3, 1, 1, 1)]
FITTED = {
    "fit, to the hollow points": {"marker": "o", "markerfacecolor": "white"},
    "prediction; band: 90% of runs": {"linestyle": "--"},
    "not known to the fit": {"marker": "o", "linestyle": ""},
}


def looks_of(flags, names, i):
    """Returns {name: (colour, marker, dashes)}: ordered colours for sizes and numbers, without
    viridis's yellow, and distinct colours and dashes for words."""
    n, dashes = len(names), [""]
    if flags and flags[0] in {flag for flag, _ in WORDS}:
        colours, dashes = SWITCHES, DASHES
    else:
        scale = matplotlib.colormaps[SEQUENCES[i % 4]]
        colours = [scale(0.85 * (n - 1 - i) / max(n - 1, 1)) for i in range(n)]
    return dict(zip(names, zip(*map(itertools.cycle, (colours, MARKERS, dashes)))))


def draw_lines(ax, table, looks):
    """Draws for each line the median over the seeds, a band from the least to the most, and a cross
    on each run that diverged."""
    lines = [name for name in looks if (table.line == name).any()]
    colours, markers, dashes = ({name: looks[name][i] for name in lines} for i in range(3))
    sns.lineplot(
        data=table,
        x="x",
        y="y",
        hue="line",
        hue_order=lines,
        palette=colours,
        style="line",
        style_order=lines,
        markers=markers,
        dashes=dashes,
        estimator="median" if table.duplicated(["line", "x"]).any() else None,
        errorbar=("pi", 100),
        err_kws={"linewidth": 0},
        legend=False,
        ax=ax,
    )
    for line, name in zip(ax.lines, lines):
        line.set_label(name)
        line.set_markevery(1 + len(line.get_xdata()) // 12)
    crosses = table[table.cross]
    if len(crosses):
        shade = list(crosses.line.map(colours))
        look = {"marker": "x", "linewidth": 2, "zorder": 3, "label": "diverged"}
        ax.scatter(crosses.x, crosses.y, 70, shade, **look)


def draw_points(ax, table, looks):
    """Draws for each line a point: the medians over the seeds, and the range of both measures."""
    for name, (colour, marker, _) in looks.items():
        here = table[table.line == name][["x", "y"]]
        if here.empty:
            continue
        middle, (least, most) = here.median(), (here.min(), here.max())
        bars = np.array([middle - least, most - middle]).T[:, :, None]
        ax.errorbar(
            *middle, bars[1], bars[0], color=colour, marker=marker, linestyle="", label=name
        )


def draw_prediction(ax, table, looks, prediction):
    """Draws the prediction as it was written, and the runs: hollow points were fitted, full ones
    were not known to the fit."""
    known = prediction[prediction.fitted == 1].parameters.max() if len(prediction) else 0
    for name, (colour, marker, _) in looks.items():
        here = table[table.line == name]
        seeds = here.groupby("x").y.agg(["median", "min", "max"])
        for points, face in (seeds.loc[:known], "white"), (seeds.loc[known + 1 :], colour):
            band = np.abs(points[["min", "max"]].sub(points["median"], axis=0)).values.T
            style = {"color": colour, "marker": marker, "markerfacecolor": face}
            ax.errorbar(points.index, points["median"], band, linestyle="", **style)
        ax.plot([], [], color=colour, marker=marker, label=name)
        curve = prediction[prediction.lr.isin(here.lr)].set_index("parameters")
        ax.fill_between(curve.index, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
        ax.plot(curve.predicted.loc[:known], color=colour)
        ax.plot(curve.predicted.loc[known:], color=colour, linestyle="--")
    for label, style in FITTED.items() if len(prediction) else ():
        ax.plot([], [], color="0.3", label=label, **style)


def draw_legend(ax, drawn, looks, seeds, beside):
    """Fills an axes with the legend of the others. Returns its height in inches."""
    found = {}
    for panel in drawn:
        found |= dict(zip(*reversed(panel.get_legend_handles_labels())))
    handles = {name: found[name] for name in looks if name in found} | found
    if "diverged" in handles:
        handles["diverged"] = Line2D([], [], color="0.3", marker="x", linestyle="", markersize=8)
    if seeds > 1:
        handles["median and range of the seeds"] = Patch(color="0.8")
    longest = max(map(len, handles), default=0)
    columns = max(1, min(4, 100 // (8 + longest) // (1 + beside)))
    ax.legend(handles.values(), handles.keys(), loc="center", ncols=columns)
    ax.axis("off")
    return 0.2 * math.ceil(len(handles) / columns) + 0.2


def log_scale(ax, axis):
    """Makes "x" or "y" logarithmic if it spans more than 1 to 3, with labels at 1 and 3 if it spans
    less than two powers of ten."""
    least, most = getattr(ax, f"get_{axis}lim")()
    least = max(least, {"x": ax.dataLim.minposx, "y": ax.dataLim.minposy}[axis])
    if not 0 < 3 * least < most < math.inf:
        return
    getattr(ax, f"set_{axis}scale")("log")
    which = getattr(ax, f"{axis}axis")
    which.set_minor_formatter(NullFormatter())
    if most < 100 * least:
        which.set_major_locator(LogLocator(subs=(1, 3)))
        which.set_major_formatter(lambda value, _: plain(value))


def draw_rows(part, rows, x, values, looks, seeds=1):
    """Draws rows of panels {title, label and scale of y, table of points, marks (y, words) and
    perhaps a prediction}, and their legend, below or beside. Panels with the same label have the
    same y axis. values: of x. Returns the height in inches."""
    wide = max(map(len, rows))
    beside = wide == len(rows) == 1
    places = part.add_gridspec(1, 2) if beside else part.add_gridspec(2, 1)
    grid = places[0].subgridspec(len(rows), wide)
    drawn, first, above = {}, {}, None
    for i, j in ((i, j) for i, row in enumerate(rows) for j in range(len(row))):
        panel = rows[i][j]
        above = ax = part.add_subplot(grid[i, j], sharex=above, sharey=first.get(panel["label"]))
        drawn[i, j] = first[panel["label"]] = ax
        table = panel["table"][np.isfinite(panel["table"][["x", "y"]]).all(axis=1)]
        if "prediction" in panel:
            draw_prediction(ax, table, looks, panel["prediction"])
        elif x in OVER_LR:
            draw_points(ax, table, looks)
        elif len(table):
            draw_lines(ax, table, looks)
        for y, words in panel["marks"]:
            ax.axhline(y, color="0.3", linestyle=":", label=words)
    room = [value for before, value in zip([0, *values], values) if value > 1.4 * before]
    for (i, j), ax in drawn.items():
        panel = rows[i][j]
        if panel["scale"] == "log":
            log_scale(ax, "y")
        same = j and panel["label"] == rows[i][0]["label"]
        ax.set_ylabel("" if same else panel["label"])
        ax.tick_params(labelleft=not same, labelbottom=(i + 1, j) not in drawn, which="both")
        over = rows[i - 1][j : j + 1] if i else []
        title = "" if over and over[0]["title"] == panel["title"] else panel["title"]
        ax.set_title(title.replace(", ", ",\n", 1) if wide > 3 and len(title) > 24 else title)
        ax.set_xlabel("" if (i + 1, j) in drawn else AXES.get(x, x))
        if x in (*LOGARITHMIC, *OVER_LR):
            log_scale(ax, "x")
        elif x != "step":
            ax.set_xticks(range(len(values)), map(plain, values))
        if x == N and len(room) <= 5 and "prediction" not in panel:
            ax.set_xticks(room, map(short, room))
    legend = part.add_subplot(places[1])
    heights = 2.2 * len(rows), draw_legend(legend, drawn.values(), looks, seeds, beside)
    if beside:
        return 2.6
    places.set_height_ratios(heights)
    return sum(heights) + 0.3


def panels_of(table, measures, panels, x, prediction):
    """Returns rows of panels: a row for each measure and each value of the flags before the slash,
    a column for each value of those after it. Without flags the measures stand side by side."""
    *down, right = [flags.split() for flags in panels.split("/")]
    row, column = named(table, down[0] if down else []), named(table, right)
    rows = []
    for measure in measures:
        label, scale, _ = MEASURES[measure]
        several = measure in OVER_LR or x == "step"
        points = table.assign(y=table[measure], cross=(table.diverged > 0) & (not several))
        zero = [(0, None)] if measure in OVER_LR[2:] else []
        panel = {"label": label, "scale": scale, "marks": zero}
        fixed = ""
        if measure == "loss" and x == "lr":
            floors = table.entropy_floor.unique()
            spread = points.y.max() - points.y.min()
            # a line far below would press the curves together
            if len(floors) == 1 and points.y.min() - floors[0] <= 1.5 * max(spread, 1):
                panel["marks"] = [(floors[0], "entropy of the language")]
        elif "baseline" in table:
            panel["marks"] = [(table.baseline[0], "without layers")]
        elif measure == "loss" and table.lr.nunique() == 1:
            fixed = word("lr", table.lr[0])
        if x == N:
            panel |= prediction.get(measure, {})
        for a in row.cat.categories:
            rows.append([])
            for b in column.cat.categories:
                title = ", ".join(re.sub(r" \(.*", "", name) for name in (a, b, fixed) if name)
                rows[-1].append(
                    panel | {"title": title, "table": points[(row == a) & (column == b)]}
                )
    rows = rows if right else [sum(rows, [])]
    return [row[i : i + ACROSS] for row in rows for i in range(0, len(row), ACROSS)]


def grid(runs):
    """Returns the blocks of an experiment with any flags: a line for each combination of those that
    vary, against the learning rate or, if that does not vary, the first that is a number."""
    vary = varying(runs)
    numbers = [name for name in vary if pd.api.types.is_numeric_dtype(runs[name])]
    x = numbers[0] if numbers and runs.lr.nunique() == 1 else "lr"
    return [("loss logit", x, " ".join(name for name in vary if name != x), "")]


def read_prediction(experiment, runs):
    """Returns what the panels of each predicted measure need of the file that predict.py wrote, if
    there may be one, and its runs."""
    if experiment not in PREDICTIONS:
        return {}, runs
    files = [sweep / "prediction.csv" for sweep in dict.fromkeys(runs.sweep)]
    files = [path for path in files if path.exists()]
    for path in files[1:]:
        complain(path, f"another prediction than {files[0]}: its runs are left out")
        runs = runs[runs.sweep != path.parent]
    names = "lr parameters fitted predicted low high"
    rows = read_csv(files[0], names, "measure") if files else []
    table = rows if len(rows) else pd.DataFrame(columns=["measure", *names.split()], dtype=float)
    return {
        one.measure: {
            "prediction": table[table.measure == one.measure],
            "marks": [(one.limit, f"limit: {plain(one.limit)}")],
        }
        for one in PREDICTIONS[experiment]
    }, runs


def blocks_of(experiment, runs):
    """Yields, for each block with anything to draw, its rows of panels, x, its values, {line: look}
    and the number of seeds. A colour stands for one thing in the whole figure. Where runs that
    would be seeds of each other differ in a flag that no axis, panel or line of the figure is for,
    the name of the line says it."""
    prediction, runs = read_prediction(experiment, runs)
    specs = EXPERIMENTS[experiment] or grid(runs)
    used = " ".join(" ".join(spec[1:4]) for spec in specs).replace("/", " ").split()
    used += [flag for name in used for flag in TELLS.get(name, [])]
    extras = unnamed(runs, [name for name in {*used, "lr"} if name in runs])
    palette = {}

    def with_lines(table, names):
        labels = named(table, names)
        looks = looks_of(names, list(labels.cat.categories), len(palette))
        palette.setdefault(names, looks)
        return table.assign(line=labels.astype(str))

    for measures, x, lines, panels, *choices in specs:
        names = (*lines.split(), *extras)
        early = {*names} <= {*runs}  # else some are columns that the choice adds
        here = with_lines(runs, names) if early else runs
        for choose in choices:
            here = choose(here)
        if here.empty:
            continue
        here = here.reset_index(drop=True)
        here = here if early else with_lines(here, names)
        for measure in measures.split():
            here[measure] = MEASURES[measure][2](here).astype(float)
        measures = [name for name in measures.split() if np.isfinite(here[name]).any()]
        if x in OVER_LR:
            here[x] = MEASURES[x][2](here).astype(float)
        values = sorted(here[x].dropna().unique())
        number = x in (*LOGARITHMIC, *OVER_LR, "step")
        here["x"] = here[x] if number else here[x].map(values.index)
        if measures:
            rows = panels_of(here, measures, panels, x, prediction)
            yield rows, x, values, palette[names], here.seed.nunique()


def draw(experiment, runs):
    """Returns the figure of an experiment, one block below the other."""
    blocks = list(blocks_of(experiment, runs)) or list(blocks_of("lr", runs))
    figure = Figure(figsize=(8, 8), layout="constrained")
    grid = figure.add_gridspec(len(blocks), 1)
    heights = [draw_rows(figure.add_subfigure(at), *block) for at, block in zip(grid, blocks)]
    grid.set_height_ratios(heights)
    figure.set_size_inches(8, sum(heights))
    return figure


# ---------------------------------------------------------------------------
# Training curves

# the axis, its scale, where the trainer's diagnosis warns, the columns, and their colours
CURVES = [
    ("loss, nats per token", "linear", None, "(train|val)_loss", 3),
    ("norm of the gradient", "log", None, "(grad_norm)", 3),
    ("largest attention logit", "log", LOGIT_LIMIT, r"max_attn_logit_(\d+)", 1),
    ("log Z", "linear", LOG_Z_LIMIT, "(log_z)", 3),
    ("RMS of gradients", "log", "eps", "grad_rms_(.*)", 0),
    ("RMS of updates / learning rate", "log", None, "update_rms_(.*)", 0),
]


def draw_log(logs, eps):
    """Returns the figure of training curves {run: log}, a column for each run; a single run has its
    panels in two columns. eps: {run: epsilon of AdamW}."""
    rows, looks = [], {}
    last = [pathlib.Path(run).name for run in logs]
    titles = dict(zip(logs, last if len({*last}) == len(last) else logs))
    for label, scale, limit, columns, sequence in CURVES:
        row = []
        for run, log in logs.items():
            matches = [match for name in log if (match := re.fullmatch(columns, name))]
            names = {match[0]: "layer " * match[1].isdigit() + match[1] for match in matches}
            table = log.melt("step", list(names), "line", "y").rename(columns={"step": "x"})
            table = table.assign(line=table.line.map(names), cross=False)
            looks = looks_of((), list(names.values()), sequence) | looks
            at = EPS_LIMIT * eps.get(run, 0) if limit == "eps" else limit
            marks = []
            if at is not None and table.y.min() <= at <= table.y.max():
                marks = [(at, "limit of the diagnosis")]
            panel = {"title": titles[run], "label": label, "scale": scale, "marks": marks}
            row.append(panel | {"table": table})
        rows.append(row)
    if len(logs) == 1:
        rows = [[a, b] for [a], [b] in zip(rows[::2], rows[1::2])]
    figure = Figure(figsize=(8, 8), layout="constrained")
    height = draw_rows(figure.add_subfigure(figure.add_gridspec(1, 1)[0]), rows, "step", [], looks)
    figure.set_size_inches(max(8, 2.4 * len(logs)), height)
    return figure


# ---------------------------------------------------------------------------
# Tables


def markdown(table):
    """Writes a table of texts, aligned: the first column to the left, the others to the right."""
    rows = [list(table.columns), *table.astype(str).values.tolist()]
    widths = [max(map(len, column)) for column in zip(*rows)]
    rule = [":" + "-" * (widths[0] - 1)] + ["-" * (width - 1) + ":" for width in widths[1:]]
    lines = []
    for first, *rest in [rows[0], rule, *rows[1:]]:
        cells = [first.ljust(widths[0]), *(x.rjust(w) for x, w in zip(rest, widths[1:]))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def middle(values):
    """Writes the median, and the least and the most if they differ."""
    values = values[np.isfinite(values)]
    if values.empty:
        return "-"
    text = f"{values.median():.4g}"
    if values.nunique() > 1:
        text += f" ({values.min():.4g} to {values.max():.4g})"
    return text


def share(diverged):
    return f"{diverged.sum():g} of {len(diverged)}"


def tables_of(runs):
    """Returns the results of each combination of the flags that vary, and what is said of several
    learning rates."""
    runs = runs.assign(runs=named(runs, varying(runs)))
    for name in ("loss", "logit", *OVER_LR):
        runs[name] = MEASURES[name][2](runs)
    columns = {"loss": middle, "logit": middle, "log_z": middle, "diverged": share}
    results = runs.groupby(["runs", "lr"], observed=True).agg(columns).reset_index()
    results["lr"] = results.lr.map(lambda lr: plain(lr, 1))
    over = runs[runs.best_lr.notna()].groupby("runs", observed=True)[OVER_LR].agg(middle)
    text = (
        "Final validation loss in nats (of a run that diverged, its loss at initialization),"
        " largest attention logit, mean log Z at the end: median over the seeds (least to most)."
        "\n\n"
    )
    text += markdown(results)
    if len(over):
        text += (
            "\n\nLR sensitivity in nats; 0: the learning rate does not matter. It is over the seven"
            " learning rates from 3e-4 to 3e-1; shifted: over the seven half-decades where it is"
            " least; -: they are not all there.\n\n"
        )
        text += markdown(over.reset_index())
    return text


def prediction_table(experiment, runs):
    """Returns the runs that were not known to the fit, beside what was predicted; or nothing."""
    text = ""
    found, runs = read_prediction(experiment, runs)
    for one in PREDICTIONS[experiment]:
        rows = []
        for lr, curve in found[one.measure]["prediction"].sort_values("parameters").groupby("lr"):
            held = one.choose(runs)
            known = curve[curve.fitted == 1].parameters.max()
            held = held[(held.lr == lr) & (held[N] > known)]
            at, x = np.log10(held[N]), np.log10(curve.parameters)
            for name in FIT:
                held[name] = 10 ** np.interp(at, x, np.log10(curve[name]))
            held["observed"] = MEASURES[one.measure][2](held) if len(held) else math.nan
            held["inside"] = held.observed.between(held.low, held.high)
            rows.append(held[["d", "lr", *FIT, "observed", "inside"]])
        if not sum(map(len, rows)):
            continue
        table = pd.concat(rows).sort_values(["lr", "d"])
        for name in table.columns[:-1]:
            table[name] = table[name].map(lambda x: f"{x:.4g}")
        label = " ".join(MEASURES[one.measure][0].split())
        text += f"\n\n{label}: predicted before these runs, and observed.\n\n{markdown(table)}"
    return text


# ---------------------------------------------------------------------------


def save(figure, folder, name, form):
    """Writes a picture, without the date, so that the same runs give the same file. Replaces none
    but Matplotlib's, which writes its address into all of its files."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.{form}"
    if path.exists() and b"matplotlib.org" not in path.read_bytes():
        raise FileExistsError(errno.EEXIST, "plot.py did not draw it; choose another -o", path)
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    with whole(path) as part:
        # tight: long labels would reach beyond the edge
        figure.savefig(part, metadata=undated.get(form), bbox_inches="tight")
    print(f"wrote {path}", flush=True)


def draw_all(found, folder, form):
    """Draws each experiment; one that lacks a column does not stop the others."""
    for experiment, runs in found.items():
        try:
            save(draw(experiment, runs), folder, experiment, form)
        except KeyError as column:
            complain(runs.sweep[0], f"no figure of {experiment}: its runs have no column {column}")


def print_tables(found):
    """Prints the tables of each experiment."""
    for experiment, runs in found.items():
        text = tables_of(runs)
        if experiment in PREDICTIONS:
            text += prediction_table(experiment, runs)
        print(f"## {experiment}\n\n{text}\n", flush=True)


def show(command, options):
    """Reads and shows what the command is for. Returns the exit status."""
    folder = options.o or pathlib.Path(options.folders[0])
    if command == "log":
        found = {run: log for run in options.folders if len(log := read_log(run))}
    else:
        found = read_sweeps(options.folders)
    if not found:
        print("plot.py: nothing to show in " + " ".join(options.folders), file=sys.stderr)
        return 1
    if command == "table":
        print_tables(found)
    elif command == "log":
        summaries = {run: pathlib.Path(run) / "summary.csv" for run in found}
        known = {run: read_csv(path, "eps") for run, path in summaries.items() if path.exists()}
        eps = {run: summary.eps[0] for run, summary in known.items() if len(summary)}
        save(draw_log(found, eps), folder, "log", options.format)
    else:
        draw_all(found, folder, options.format)
    return 0


def arguments(argv):
    """Returns "log", "table" or "", and the options."""
    command = argv[0] if argv[:1] in (["log"], ["table"]) else ""
    parser = argparse.ArgumentParser(
        prog="plot.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    many = "+" if command == "log" else "*"
    parser.add_argument("folders", nargs=many, default=["runs"], metavar="DIR")
    parser.add_argument("-o", type=pathlib.Path, metavar="FOLDER", help="default: the first DIR")
    parser.add_argument("-format", choices=["png", "pdf", "svg"], default="png")
    return command, parser.parse_args(argv[1:] if command else argv)


def main(argv):
    command, options = arguments(argv)
    try:
        with warnings.catch_warnings(), matplotlib.rc_context(STYLE):
            warnings.simplefilter("ignore")  # of the libraries, to their programmers
            return show(command, options)
    except OSError as error:
        complain(error.filename or "its output", error.strerror)
        if not error.filename:
            # what is left to write would fail once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
