#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy==2.2.6", "matplotlib==3.10.3"]
# ///
"""The paper's figures from the runs' CSV files.

  plot.py [DIR ...]        from sweeps (default: all in runs/): lr.png, loss and largest attention logit against learning rate
  plot.py log RUN ...      training curves of single runs, side by side: log.png
  plot.py table [DIR ...]  the numbers of lr.png and the sensitivity to the learning rate, as Markdown"""
import argparse
import csv
import itertools
import math
import os
import pathlib
import re
import sys

try:
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
except ImportError as error:
    here, there = sys.prefix != sys.base_prefix, "build/venv/bin/python"    # a system's Python often refuses pip: a venv never
    packages = " ".join(re.findall(r'"(\w+==[\d.]+)"', pathlib.Path(__file__).read_text(encoding="utf-8")))
    install = f"{sys.executable} -m pip install {packages}" if here else f"python3 -m venv build/venv && {there} -m pip install {packages}"
    sys.exit(f"plot.py: {error.name} is missing; install it with: {install}" + ("" if here else f", then run: {there} plot.py"))

matplotlib.rcParams.update({"font.size": 10, "axes.titlesize": 11, "legend.fontsize": 9, "legend.frameon": False, "axes.grid": True,
                            "axes.axisbelow": True, "grid.color": "0.9", "axes.spines.top": False, "axes.spines.right": False,
                            "lines.linewidth": 1.5, "lines.markersize": 4.5, "savefig.dpi": 150, "svg.hashsalt": "plot.py"})
GRIDS = [(3e-4, 3e-1), (3e-3, 3e-1)]    # of LR sensitivity: the paper's, and the part that short runs can train at
HANDLING = "size out resume sample temperature eval_every log_every checkpoint_every".split()    # flags that leave a result as it is
PLACED = "lr d layers qk_norm seed".split()    # flags with a place of their own in the figure


# ---------------------------------------------------------------------------
# Reading

def complain(path, what):
    print(f"plot.py: {path}: {what}", file=sys.stderr)
    return []


def number(row, name):
    return row[name] if isinstance(row.get(name), float) else math.nan


def cell(text):
    try:
        return float(text)
    except ValueError:
        return text


def read_csv(path, finite, numbers, texts=""):
    """The rows as dicts, numbers as float. finite: columns that must hold a number, numbers: or nan, or nothing; texts: be there.
    What cannot be used is left out, with a line on stderr."""
    finite, numbers = finite.split(), numbers.split()
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
            names, *lines = list(csv.reader(file)) or [[]]
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
        elif wrong := [n for n in finite if not math.isfinite(number(row, n))] + [n for n in numbers if isinstance(row[n], str) and row[n]]:
            bad.append(f"line {i}: {wrong[0]} is '{row[wrong[0]]}', not a number")
        elif "diverged" in row and not row["diverged"] and not math.isfinite(number(row, "final_loss")):
            bad.append(f"line {i}: final_loss is '{row['final_loss']}', but the run did not diverge")
        else:
            rows.append(row)
    if bad:
        complain(path, f"{bad[0]}: left out" + (f", and {len(bad) - 1} more" if bad[1:] else ""))
    elif not rows:
        complain(path, "has no rows yet")
    return rows


def read_sweeps(folders):
    """The runs of these sweeps, each once. A folder of sweeps, or of a sweep's runs, does as well."""
    runs = {}
    for folder in map(pathlib.Path, folders):
        joined = folder / "summary.csv"
        for path in [joined] if joined.exists() else sorted(folder.glob("*/summary.csv")) or [joined]:
            for run in read_csv(path, "lr d layers qk_norm seed parameters initial_loss diverged",
                                "final_loss max_attn_logit log_z entropy_floor", "machine"):
                runs[tuple((name, run[name]) for name in flags(run))] = run
    return list(runs.values())


def flags(run):
    """The flags that can change a result: the columns before machine, but those."""
    return [name for name in itertools.takewhile(lambda name: name != "machine", run) if name not in HANDLING]


# ---------------------------------------------------------------------------
# What the runs say

def loss(run):
    """min(final, initial), as the paper counts: a run that diverged has its loss at initialisation."""
    return np.fmin(number(run, "final_loss"), run["initial_loss"])


def logit(run):
    return number(run, "max_attn_logit") or math.nan    # 0: the run diverged before its first logged step


def log_z(run):
    return number(run, "log_z")


def by_size(runs):
    """{name: runs}, small to large. Where runs of one size differ in another flag, the name says it: they are no seeds of each other."""
    sizes, groups = {}, {}
    for run in runs:
        sizes.setdefault((run["d"], run["layers"]), []).append(run)
    for (d, layers), same in sorted(sizes.items(), key=lambda item: (min(run["parameters"] for run in item[1]), item[0])):
        names = dict.fromkeys(name for run in same for name in flags(run) if name not in PLACED)
        differ = [name for name in names if len({run.get(name) for run in same}) > 1]
        for run in sorted(same, key=lambda run: [(str(type(x)), x) for x in map(run.get, differ)]):
            extra = "".join(f", {name} {x:g}" if isinstance(x, float) else f", {name} {x}" for name, x in zip(differ, map(run.get, differ)))
            groups.setdefault(f"d {d:g}, layers {layers:g}{extra}", []).append(run)
    return groups


def over_lr(runs, value):
    """An array of rows: learning rate, then median, least and most over the seeds."""
    found = {}
    for run in runs:
        if math.isfinite(value(run)):
            found.setdefault(run["lr"], []).append(value(run))
    return np.array([(lr, np.median(x), min(x), max(x)) for lr, x in sorted(found.items())]).reshape(-1, 4)


def lr_sensitivity(runs, least, most):
    """Section 2.2, from the medians over the seeds: the mean loss over the grid above the best. And the grid's size."""
    curve = over_lr(runs, loss)
    x = curve[(curve[:, 0] > least * (1 - 1e-9)) & (curve[:, 0] < most * (1 + 1e-9)), 1]
    return (x.mean() - x.min() if len(x) > 1 else math.nan), len(x)


def sci(lr):
    mantissa, exponent = f"{lr:.6e}".split("e")
    return f"{float(mantissa):g}" + f"e{int(exponent)}" * (int(exponent) != 0)


def short(count):
    return next((f"{count / unit:.3g}{name}" for unit, name in [(1e9, "B"), (1e6, "M"), (1e3, "k")] if count >= unit), f"{count:g}")


# ---------------------------------------------------------------------------
# Figures: each function returns one

def look(i, n):
    """Line i of n in an order: viridis without its yellow, the last the darkest, and a marker each, for print and the colour-blind."""
    return {"color": matplotlib.colormaps["viridis"](0.85 * (n - 1 - i) / max(n - 1, 1)), "marker": "osD^vP*<>ph"[i % 11]}


def draw_lr(runs):
    """Figures 1 and 2: final loss and largest attention logit against learning rate, a line a size, qk-norm off and on."""
    groups, switch = by_size(runs), sorted({run["qk_norm"] for run in runs})
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.subplots(2, len(switch), sharex=True, sharey="row", squeeze=False)
    floors = {number(run, "entropy_floor") for run in runs}
    for (top, bottom), qk_norm in zip(axes.T, switch):
        top.set_title("with qk-norm" if qk_norm else "without qk-norm")
        for i, (name, group) in enumerate(groups.items()):
            here, style = [run for run in group if run["qk_norm"] == qk_norm], look(i, len(groups))
            for ax, value in (top, loss), (bottom, logit):
                lr, median, least, most = over_lr(here, value).T
                ax.plot(lr, median, label=f"{name} ({short(group[0]['parameters'])} parameters)", **style)
                ax.fill_between(lr, least, most, color=style["color"], alpha=0.2, linewidth=0)
                crosses = [(run["lr"], value(run)) for run in here if run["diverged"]]
                ax.plot(*zip(*crosses or [(math.nan, math.nan)]), "x", color=style["color"], markersize=10, markeredgewidth=2, label="_diverged")
        if len(floors) == 1 and math.isfinite(min(floors)):
            top.axhline(min(floors), color="0.3", linestyle=":", label="entropy of the language: no model can go below")
        bottom.set(xscale="log", yscale="log", xlabel="peak learning rate")
    axes[0, 0].set_ylabel("final validation loss, nats per token")
    axes[1, 0].set_ylabel("largest attention logit")
    handles = {label: handle for ax in axes[0] for handle, label in zip(*ax.get_legend_handles_labels())}
    if len({run["seed"] for run in runs}) > 1:
        handles["line: median of the seeds; band: least to most"] = Patch(color="0.8")
    if any(run["diverged"] for run in runs):
        handles["diverged"] = Line2D([], [], color="0.3", marker="x", linestyle="", markersize=8, markeredgewidth=2)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)
    return figure


PANELS = [    # what draw_log shows: the axis and its scale, the columns' names or their beginnings
    ("loss, nats per token", "linear", ("train_loss", "val_loss")),
    ("norm of the gradient", "log", ("grad_norm",)),
    ("largest attention logit", "log", ("max_attn_logit_",)),
    ("log Z", "linear", ("log_z",)),
    ("RMS of gradients", "log", ("grad_rms_",)),
    ("RMS of updates / learning rate", "log", ("update_rms_",)),
]


def draw_log(logs):
    """Training curves, a column a run; a single run has its panels in two columns."""
    n = len(logs)
    figure = Figure(figsize=(8, 8.5) if n == 1 else (max(8, 3 * n), 14), layout="constrained")
    axes = figure.subplots(3, 2, sharex=True).reshape(6, 1) if n == 1 else figure.subplots(6, n, sharex="col", sharey="row")
    for row, (title, scale, columns) in zip(axes, PANELS):
        row[0].set_ylabel(title)
        names = list(dict.fromkeys(name for rows in logs.values() for name in rows[0] if name.startswith(columns)))
        for ax, rows in zip(row, logs.values()):
            step = np.array([r["step"] for r in rows])
            for i, name in enumerate(names):
                y = np.array([number(r, name) for r in rows])
                style = look(i, len(names)) | {"markevery": ((i + 1) / (len(names) + 1) / 4, 0.25)}    # a few, no two lines' at one place
                if name == "val_loss" or len(names) == 1:
                    style |= {"linestyle": "", "markevery": 1} if len(names) > 1 else {"marker": ""}
                label = re.sub(r"^(max_attn_logit|grad_rms|update_rms)_|_loss$", "", name)
                ax.plot(step[np.isfinite(y)], y[np.isfinite(y)], label="layer " * label.isdigit() + label, **style)
            for r in rows[1:]:
                if math.isnan(number(r, "train_loss")):
                    ax.axvline(r["step"], color="0.3", linestyle="--", label="not finite" if "train_loss" in names else "_")
            ax.set_yscale(scale)
    for ax, run in zip(axes[0], logs):
        ax.set_title(run)
    for ax in axes[-1 - (n == 1):].flat:
        ax.set_xlabel("step")
    for ax in *axes[0], axes[2, 0]:
        ax.legend(ncols=1 + len(ax.lines) // 5)
    figure.legend(*axes[-1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, title="RMS by kind of tensor")
    return figure


# ---------------------------------------------------------------------------
# Tables

def markdown(head, rows):
    """Aligned; the first column to the left, the others to the right."""
    width = [max(map(len, column)) for column in zip(head, *rows)]
    line = lambda row: "| " + " | ".join(x.rjust(w) if i else x.ljust(w) for i, (x, w) in enumerate(zip(row, width))) + " |"
    return "\n".join([line(head), line(["-" * (w - bool(i)) + ":" * bool(i) for i, w in enumerate(width)]), *map(line, rows)])


def tables(runs):
    points, sensitivity = [], []
    show = lambda x, form: "-" if math.isnan(x) else format(x, form)
    for name, group in by_size(runs).items():
        for qk_norm in sorted({run["qk_norm"] for run in group}):
            here = [run for run in group if run["qk_norm"] == qk_norm]
            for lr in sorted({run["lr"] for run in here}):
                seeds = [run for run in here if run["lr"] == lr]
                middle, least, most = over_lr(seeds, loss)[0, 1:]
                median = [next(iter(over_lr(seeds, value)[:, 1]), math.nan) for value in (logit, log_z)]
                points.append([name, f"{qk_norm:g}", sci(lr), f"{middle:.4f}" + (f" ({least:.3f} to {most:.3f})" if len(seeds) > 1 else ""),
                               show(median[0], ".4g"), show(median[1], ".3f"), f"{sum(run['diverged'] for run in seeds):g} of {len(seeds)}"])
            sensitivity.append([name, f"{qk_norm:g}"] + [f"{show(s, '.4f')} ({n})" for s, n in (lr_sensitivity(here, *grid) for grid in GRIDS)])
    return "\n".join([
        "Validation loss in nats per token, median over the seeds (least to most); a run that diverged counts with its loss at initialisation.", "",
        markdown(["size", "qk_norm", "learning rate", "final loss", "max attention logit", "log Z", "diverged"], points), "",
        "LR sensitivity in nats per token (from so many learning rates); 0: the learning rate does not matter.", "",
        markdown(["size", "qk_norm", *(f"{sci(least)} to {sci(most)}" for least, most in GRIDS)], sensitivity)])


# ---------------------------------------------------------------------------

FIGURES = [("lr", draw_lr)]    # the figures from sweeps, by the file's name


def save(figure, folder, name, form):
    """The file appears whole or not at all."""
    path = folder / f"{name}.{form}"
    part = folder / f".{name}.{os.getpid()}.{form}"
    figure.savefig(part, metadata={"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(form))
    part.replace(path)
    print(f"wrote {path}")


def main(argv):
    command = argv[0] if argv[:1] in (["log"], ["table"]) else ""
    parser = argparse.ArgumentParser(prog=f"plot.py {command}".strip(), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+" if command == "log" else "*", default=["runs"], metavar="RUN" if command == "log" else "DIR")
    if command != "table":
        parser.add_argument("-o", type=pathlib.Path, default=pathlib.Path("figures"), metavar="FOLDER", help="for the pictures; default: figures/")
        parser.add_argument("-format", choices=["png", "pdf", "svg"], default="png")
    options = parser.parse_args(argv[1:] if command else argv)
    if command == "log":
        rows = {folder: read_csv(pathlib.Path(folder) / "log.csv", "step", "train_loss val_loss grad_norm log_z") for folder in options.folders}
        found = {folder: rows for folder, rows in rows.items() if rows}
    else:
        found = read_sweeps(options.folders)
    if not found:
        print("plot.py: nothing to show: no finished run in " + " ".join(options.folders), file=sys.stderr)
        return 1
    if command == "table":
        print(tables(found))
        return 0
    try:
        options.o.mkdir(parents=True, exist_ok=True)
        for name, draw in [("log", draw_log)] if command else FIGURES:
            save(draw(found), options.o, name, options.format)
    except OSError as error:
        print(f"plot.py: {error.filename or options.o}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
