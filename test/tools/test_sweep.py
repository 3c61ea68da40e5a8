"""sweep.sh: its plan, and that each run is made once and to the same bits whatever disturbs the
sweep: signals, kills, a second sweep on the same folder, a run that fails, hosts, a real Slurm
cluster of one node."""

import contextlib
import fcntl
import os
import pty
import re
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import termios
import time
from pathlib import Path

import pyte
import pytest

from test_cli import PROGRAM, REPO, snapshot, summary, table
from test_runs import assert_same_run, has_signal

SWEEP = REPO / "sweep.sh"
SEVEN = "3e-4 1e-3 3e-3 1e-2 3e-2 1e-1 3e-1"  # the paper's learning rates
# runs at laptop scale
EXPERIMENTS = dict(
    qk_norm=64,
    logit_growth=8,
    z_loss=84,
    warmup=168,
    weight_decay=144,
    depth_width=98,
    mu_param=288,
    coord_check=60,
    predict_logits=32,
    kappa=27,
    predict_eps=46,
    block_rms=9,
    recipe=72,
    scale=112,
    steps=42,
    qk_norm_over=48,
    batch=42,
    pointwise=84,
    rms_lr=64,
    beta2=56,
    clip=56,
    league=176,
    grid=1,
)
TINY = "-d 16 -T 8 -batch 2 -eval_tokens 64"
FEW = f"{TINY} -steps 30 -lr 1e-2,1e3".split()  # of clip: 4 clips x 2 learning rates x qk_norm 0, 1
# 4 runs of about a second
LONG = f"{TINY} -steps 8000 -log_every 250 -lr 1e-2 -clip 1,10 -checkpoint_every 500".split()


def command(out, *arguments, flags=FEW, experiment="clip", trainer=PROGRAM):
    return [
        str(SWEEP),
        experiment,
        "-trainer",
        str(trainer),
        "-out",
        str(out),
        *map(str, arguments),
        "--",
        *flags,
    ]


def sweep(out, *arguments, status=0, flags=FEW, experiment="clip", trainer=PROGRAM, **options):
    result = subprocess.run(
        command(out, *arguments, flags=flags, experiment=experiment, trainer=trainer),
        cwd=Path(out).parent,
        timeout=300,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        **options,
    )
    assert result.returncode == status, result.stdout + result.stderr
    return result.stdout + result.stderr


def runs(out):
    return sorted(p.parent.name for p in Path(out).glob("*/log.csv"))


def assert_same_sweep(a, b):
    assert runs(a) == runs(b) != []
    for name in runs(a):
        assert_same_run(Path(a) / name, Path(b) / name)
    rows = [
        [
            {k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second", "out")}
            for row in table(Path(x) / "summary.csv")
        ]
        for x in (a, b)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == len(runs(a))


def processes(word, where="cmdline"):
    """Running processes with the word in their command line (or environ)."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (
                word.encode() in (path / where).read_bytes()
                and "State:\tZ" not in (path / "status").read_text()
            ):
                found.append(int(path.name))
    return [pid for pid in found if pid != os.getpid()]


def until(condition, seconds=60):
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline, "waited in vain"
        time.sleep(0.01)


def script(path, text):
    path.unlink(missing_ok=True)  # never write through a link
    path.write_text("#!/bin/bash\n" + text)
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """An undisturbed sweep; its folder's name has what a shell stumbles over."""
    out = tmp_path_factory.mktemp("few") / "it's a $weep"
    return out, sweep(out)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("long") / "x"
    sweep(out, flags=LONG)
    return out


# ---------------------------------------------------------------------------
# What would run


def plan(experiment, *arguments, flags=()):
    result = subprocess.run(
        [str(SWEEP), experiment, "-dry_run", *arguments, "--", *flags],
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def flags_of(line):
    words = shlex.split(line)
    assert words[0] == "OMP_NUM_THREADS=1" and words[1] == "./train_gpt"
    # what comes last counts
    return {name[1:]: value for name, value in zip(words[2::2], words[3::2])}


def cost(flags):
    C, L, T = (int(flags[k]) for k in ("d", "layers", "T"))
    return (
        (12 * L * C * C + (int(flags["vocab"]) or 256) * C + L * T * C)
        * int(flags["steps"])
        * int(flags["batch"])
        * T
    )


@pytest.mark.parametrize("scale", ["laptop", "workstation", "paper"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_plan(experiment, scale, tmp_path):
    """Every run has a folder of its own, named by what varies; three seeds are three times the
    runs; nothing is written."""
    lines = plan(experiment, "-scale", scale)
    lines = [line for line in lines if "predict.py" not in line]
    found = [flags_of(line) for line in lines]
    assert scale != "laptop" or len(found) == EXPERIMENTS[experiment]
    assert len({flags["out"] for flags in found}) == len(found)
    assert {Path(flags["out"]).parent.as_posix() for flags in found} == {
        f"runs/{experiment}-{scale}"
    }
    varies = {name for name in found[0] if len({flags.get(name) for flags in found}) > 1} - {
        "out",
        "heads",
    }
    for flags in found:
        name = Path(flags["out"]).name
        assert re.fullmatch(r"[\w.-]+", name)
        for flag in varies:
            if experiment == "league" and flag not in flags:
                continue  # a cure that this run does not have
            word = f"_{flag}{flags[flag].replace('%', 'pct')}_"
            # one grid of kappa has the usual layers
            assert word in f"_{name}_" or (experiment, flag) == ("kappa", "layers"), name
        C, NH = int(flags["d"]), int(flags["heads"])
        assert C % NH == 0 and C // NH % 2 == 0
    if experiment != "coord_check":
        assert 3 * len(found) == sum(
            "predict.py" not in line for line in plan(experiment, "-scale", scale, "-seeds", "3")
        )
    for stage in "\n".join(plan(experiment, "-scale", scale)).split("predict.py"):
        costs = [
            cost(flags_of(line)) * (1 + 16 / int(flags_of(line)["d"]))
            for line in stage.splitlines()
            if line.startswith("OMP")
        ]
        # the longest first, so that none is left alone at the end
        assert costs == sorted(costs, reverse=True)
    if scale == "paper":
        assert {(f["T"], f["batch"]) for f in found if experiment != "batch"} <= {
            ("512", "256")
        } and {f["vocab"] for f in found} == {"32101"}
        assert {
            f["steps"] for f in found if experiment not in ("steps", "batch", "coord_check")
        } <= {"100000"}


@pytest.mark.parametrize(
    "experiment, varies",
    [
        (
            "qk_norm",
            dict(d="16 32 64 96", lr="3e-4 1e-3 3e-3 1e-2 3e-2 1e-1 3e-1 1", qk_norm="0 1"),
        ),
        ("logit_growth", dict(d="16 128", qk_norm="0 1")),
        (
            "z_loss",
            dict(
                z_loss="0 1e-4",
                wd="0 1e-4",
                lr=SEVEN,
                d="16 24 32",
                layers="1",
                T="16",
                batch="4",
                steps="30000",
                data="bigram",
                bf16_logits="1",
            ),
        ),
        ("warmup", dict(warmup="1% 5% 10% 25%", d="16 32 64", lr=SEVEN)),
        (
            "weight_decay",
            dict(wd_independent="0 1", wd="3e-4 1e-3 3e-3 0.1 0.3 1", lr=f"1e-4 {SEVEN} 1"),
        ),
        ("depth_width", dict(layers="2 4 8 32", d="32 48 64 128", qk_norm="0 1", steps="2000")),
        (
            "mu_param",
            dict(
                mu_param="off simple intermediate full",
                d="32 64 128 256",
                heads="2 4 8 16",
                base_d="32",
                lr=f"1e-4 {SEVEN} 1",
                qk_norm="0 1",
            ),
        ),
        (
            "coord_check",
            dict(d="32 64 128 256 512", seed="1 2 3", steps="10", warmup="0", log_every="1"),
        ),
        ("predict_eps", dict(eps="1e-8 1e-15 1e-6 1e-5 1e-4 1e-3")),
        ("predict_logits", dict(d="16 24 32 48 64 96 128 192", qk_norm="0")),
        ("kappa", dict(kappa="1 10 30 100 300 1e3 3e3 1e4 0", layers="2 0", qk_norm="0")),
        ("block_rms", dict(layers="4 8", d="32 64")),
        (
            "recipe",
            dict(
                mu_param="- simple",
                base_d="16",
                warmup="1% 25%",
                z_loss="0 1e-4",
                wd="0 1e-4",
                qk_norm="0 1",
                lr=f"{SEVEN} 1",
            ),
        ),
        ("scale", dict(scale="sqrt d_h", qk_norm="0 1", lr=SEVEN)),
        ("qk_norm_over", dict(qk_norm="1 model", lr=f"{SEVEN} 1")),
        ("pointwise", dict(attention="softmax relu2", qk_norm="0 1", lr=SEVEN)),
        ("rms_lr", dict(rms_lr="0 1", d="32 64 128 256", lr=f"1e-4 {SEVEN} 1 3 10")),
        ("steps", dict(steps="500 1000 2000", lr=SEVEN)),
        ("batch", dict(batch="8 16 32", steps="500 1000 2000")),
        ("beta2", dict(beta2="0.9 0.95 0.99 0.999")),
        ("clip", dict(clip="0 0.1 1 10")),
    ],
)
def test_what_varies(experiment, varies):
    found = [flags_of(line) for line in plan(experiment) if "predict.py" not in line]
    for flag, values in varies.items():
        assert {flags.get(flag, "-") for flags in found} == set(values.split()), flag


def test_batches_of_the_same_data():
    """Section E.9."""
    found = [flags_of(line) for line in plan("batch")]
    assert {int(flags["batch"]) * int(flags["steps"]) for flags in found} == {16000}


def test_held_out_runs_come_after_the_prediction():
    for experiment, held_out in dict(
        predict_logits={"96", "128", "192"}, predict_eps={"96", "128"}
    ).items():
        lines = plan(experiment)
        (at,) = [i for i, line in enumerate(lines) if "predict.py" in line]
        assert lines[at] == f"python3 predict.py runs/{experiment}-laptop"
        assert {flags_of(line)["d"] for line in lines[at + 1 :]} == held_out and {
            flags_of(line)["d"] for line in lines[:at]
        }.isdisjoint(held_out)


def test_flags_of_the_user():
    """They take the place of the experiment's values, or go to every run; any file's name comes
    through."""
    found = [
        flags_of(line)
        for line in plan(
            "qk_norm", flags=["-lr", "1e-2,2", "-d", "32x3,48", "-data", "a b's $x", "-steps", "7"]
        )
    ]
    assert {(f["lr"], f["d"], f["layers"], f["heads"], f["qk_norm"]) for f in found} == {
        (lr, d, layers, heads, q)
        for lr in ("1e-2", "2")
        for d, layers, heads in (("32", "3", "2"), ("48", "2", "3"))
        for q in "01"
    }
    assert {(f["data"], f["steps"]) for f in found} == {("a b's $x", "7")}
    assert {Path(f["out"]).name for f in found} >= {
        "d32_layers3_lr2_qk_norm0_seed1",
        "d48_lr1e-2_qk_norm1_seed1",
    }


def test_grid_runs_every_combination():
    """Of whichever flags have several values; a file's name with a comma is one value."""
    lines = plan("grid", flags="-wd 1e-4,1e-2 -beta2 0.9,0.99 -lr 1e-3,1e-2 -clip 3".split())
    found = {Path(f["out"]).name: f for f in map(flags_of, lines)}
    assert set(found) == {
        f"wd{wd}_beta2{beta2}_lr{lr}_seed1"
        for wd in ("1e-4", "1e-2")
        for beta2 in ("0.9", "0.99")
        for lr in ("1e-3", "1e-2")
    }
    for name, f in found.items():
        assert name == f"wd{f['wd']}_beta2{f['beta2']}_lr{f['lr']}_seed1"
        assert f["clip"] == "3" and f["d"] == "32" and f["heads"] == "2"
        assert Path(f["out"]).parent.as_posix() == "runs/grid-laptop"
    found = [
        flags_of(line)
        for line in plan(
            "grid", "-seeds", "2", flags=["-data", "a,b.txt", "-d", "32x4,48", "-T", "8,16"]
        )
    ]
    assert {f["data"] for f in found} == {"a,b.txt"}
    assert {Path(f["out"]).name for f in found} == {
        f"{d}_T{T}_seed{s}" for d in ("d32_layers4", "d48") for T in (8, 16) for s in (1, 2)
    }
    assert {(f["d"], f["layers"], f["heads"]) for f in found} == {
        ("32", "4", "2"),
        ("48", "2", "3"),
    }
    (one,) = map(flags_of, plan("grid", "-scale", "paper"))
    assert (one["d"], one["layers"], one["heads"]) == ("512", "6", "8")
    # in an experiment too, beside its own values
    names = {Path(flags_of(line)["out"]).name for line in plan("clip", flags=["-wd", "0,1"])}
    assert len(names) == 112 and "d32_lr1e-2_clip1_qk_norm0_wd1_seed1" in names
    # seeds of the user's
    assert len(plan("grid", flags=["-seed", "7,8,9"])) == 3


def test_help(tmp_path):
    """Every experiment, and for each scale its runs and the time here, on one screen of a terminal.
    The run that is timed is as clip's 56."""
    trainer = script(
        tmp_path / "trainer",
        'while [ "$1" != -out ]; do shift; done; printf "seconds\\n2\\n" >"$2/summary.csv"',
    )
    result = subprocess.run(
        [str(SWEEP), "-trainer", str(trainer), "-list"], capture_output=True, text=True, cwd=REPO
    )
    assert result.returncode == 0 and result.stderr == ""
    for name, count in EXPERIMENTS.items():
        if name == "grid":  # its runs are the user's
            continue
        (row,) = re.findall(
            rf"^{name} +(\d|\d\.\d(?:\.\d)?|[CE]\.\d+|ours|later) +(\d+), (\d+):(\d\d) +(\d+),"
            r" \d+\S* ?\w* +(\d+), \d+ \w+ +\w.*$",
            result.stdout,
            re.M,
        )
        assert int(row[1]) == count and (
            name != "clip"
            or abs(60 * int(row[2]) + int(row[3]) - 56 * 2 / len(os.sched_getaffinity(0))) <= 1
        )
    lines = result.stdout.splitlines()
    assert len(lines) < 24 and max(map(len, lines)) <= 80
    usage = subprocess.run([str(SWEEP), "-h"], capture_output=True, text=True, cwd=REPO)
    assert usage.returncode == 0 and usage.stderr == ""
    assert set(EXPERIMENTS) <= set(usage.stdout.split())
    lines = usage.stdout.splitlines()
    assert len(lines) < 24 and max(map(len, lines)) <= 80


# ---------------------------------------------------------------------------
# Wrong commands: one line, status 2, nothing written


@pytest.mark.parametrize(
    "arguments, says",
    [
        ("nothing", "'nothing' | qk_norm logit_growth z_loss"),
        ("", "'' | qk_norm"),
        ("clip warmup", "'warmup' | clip"),
        ("clip -scale huge", "-scale: 'huge' | laptop"),
        ("clip -sacle laptop", "'-sacle' | -h"),
        ("clip -lr 1e-2", "'-lr' | --"),
        ("clip -seeds", "-seeds needs"),
        ("clip -seeds 0", "-seeds: '0'"),
        ("clip -j x", "-j: 'x'"),
        ("clip -pack 1.5", "-pack"),
        ("clip -threads -1", "-threads"),
        ("clip -on nowhere", "-on: 'nowhere'"),
        ("clip -trainer nothing", "nothing | make"),
        ("clip -trainer .", "there is no trainer ."),
        ("clip -out file", "file"),
        ("clip -out file/x", "file/x | Not a directory"),
        ("clip -out /proc/x", "/proc/x"),
        ("clip -scale paper", "-scale paper | -data"),
        ("clip -- -max_iters 3", "-max_iters | -steps"),
        ("clip -- -steps", "-steps needs"),
        ("clip -- steps 3", "'steps'"),
        ("clip -- -steps x", "-steps: 'x'"),
        ("clip -- -lr 1e-3:1", "-lr: '1e-3:1'"),
        ("clip -- -d 1.5", "-d: '1.5'"),
        ("clip -- -lr ''", "-lr"),
        ("clip -- -clip -1", "-clip"),
        ("clip -- -out x", "-out"),
        ("clip -- -size 10k", "-size is not a flag"),
        ("clip -- -resume 1", "-resume"),
        ("depth_width -- -layers 3", "-layers"),
        ("clip -- -data nothing.txt", "nothing.txt"),
        ("clip -- -heads 3", "3 heads"),
    ],
)
def test_wrong_command(tmp_path, arguments, says):
    (tmp_path / "file").write_text("in the way")
    words = shlex.split(arguments)
    if "-trainer" not in words:
        words[1:1] = ["-trainer", PROGRAM]
    result = subprocess.run([str(SWEEP), *words], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == (1 if "nothing.txt" in says or "3 heads" in says else 2), (
        result.stdout + result.stderr
    )
    assert (
        result.stderr.startswith("sweep.sh: ")
        and result.stderr.count("\n") == 1
        and result.stdout == ""
    )
    assert not [word for word in says.split(" | ") if word not in result.stderr], result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "missing, arguments", [("parallel", []), ("flock", []), ("sbatch", ["-on", "slurm"])]
)
def test_a_missing_program_is_named(tmp_path, missing, arguments):
    """The machine's own programs, but for one."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for folder in ("/bin", "/usr/bin"):
        for path in Path(folder).iterdir():
            if path.name != missing and not (tools / path.name).exists():
                (tools / path.name).symlink_to(path)
    says = sweep(tmp_path / "x", *arguments, status=2, env=dict(os.environ, PATH=str(tools)))
    assert (
        missing in says and says.count("\n") == 1 and (missing == "sbatch" or "apt install" in says)
    )
    if missing == "parallel":  # moreutils has a program of that name
        script(tools / "parallel", "echo parallel from another package")
        assert "GNU parallel" in sweep(
            tmp_path / "x", status=2, env=dict(os.environ, PATH=str(tools))
        )
    assert not (tmp_path / "x").exists()


# ---------------------------------------------------------------------------
# A sweep, and the same again


def test_sweep(few):
    out, said = few
    assert (out / "experiment").read_text() == "clip\n"
    rows = table(out / "summary.csv")
    assert len(rows) == len(runs(out)) == 16 and "d16_lr1e-2_clip0.1_qk_norm0_seed1" in runs(out)
    for row in rows:
        name = Path(row["out"]).name
        assert (
            name == f"d16_lr{row['lr']}_clip{row['clip']}_qk_norm{row['qk_norm']}_seed1"
            and row == summary(out / name)
            and row["threads"] == "1"
        )
    diverged = {Path(row["out"]).name for row in rows if row["diverged"] == "1"}
    assert 0 < len(diverged) < 16
    *lines, last = said.splitlines()
    assert sorted(lines) == [
        f"{name} {'diverged' if name in diverged else 'finished'}" for name in runs(out)
    ]
    assert last.startswith("16 of 16 runs are in ")
    assert shlex.split(last[last.index("python3 plot.py") :]) == ["python3", "plot.py", str(out)]
    assert len((out / "joblog").read_text().splitlines()) == 16


def test_what_is_finished_is_not_repeated_and_seeds_are_added(few, tmp_path):
    out = tmp_path / "x"
    shutil.copytree(few[0], out)
    before = {name: snapshot(out / name) for name in runs(out)}
    assert "16 of 16 runs are already there" in sweep(out)
    (out / "summary.csv").unlink()
    assert "16 of 32 runs are already there" in sweep(out, "-seeds", 2)
    assert {name: snapshot(out / name) for name in before} == before
    assert len(table(out / "summary.csv")) == len(runs(out)) == 32


@pytest.mark.parametrize(
    "experiment, flags, arguments, says",
    [
        ("beta2", FEW, [], "experiment clip"),
        ("clip", FEW + ["-eps", "1e-6"], [], "other flags"),
        ("clip", FEW, ["-scale", "workstation"], "other flags"),
    ],
)
def test_a_folder_of_another_sweep_is_refused(few, experiment, flags, arguments, says):
    before = snapshot(few[0])
    said = sweep(few[0], *arguments, experiment=experiment, flags=flags, status=2)
    assert says in said and "-out" in said and said.count("\n") == 1
    assert snapshot(few[0]) == before


def test_a_folder_of_a_single_run_is_refused(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "log.csv").touch()
    before = snapshot(tmp_path)
    assert "x holds a single run" in sweep(tmp_path / "x", status=2)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "name",
    "summary.csv flags joblog slurm1 prediction.csv".split()
    + "experiment.tmp flags.tmp summary.csv.tmp".split(),
)
def test_files_of_others_are_refused(tmp_path, name):
    """In a folder that no sweep.sh has begun, such as that of a sweep by the trainer."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / name).write_text("a,b\n1,2\n")
    said = sweep(tmp_path / "x", status=2)
    assert f"x/{name}; choose another -out" in said and said.count("\n") == 1
    assert (tmp_path / "x" / name).read_text() == "a,b\n1,2\n"
    assert {path.name for path in (tmp_path / "x").iterdir()} == {name, "lock"}


def test_a_run_over_a_foreign_model_fails_and_keeps_it(tmp_path):
    name = plan("clip", flags=FEW)[0].split("/")[-1].strip()
    foreign = tmp_path / "x" / name / "model.safetensors"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"somebody's")
    assert f"{name} failed" in sweep(tmp_path / "x", status=1)
    assert foreign.read_bytes() == b"somebody's"


@pytest.mark.parametrize("arguments", [["-j", 1], ["-j", 5, "-threads", 2]])
def test_jobs_and_threads_change_no_bit(few, tmp_path, arguments):
    sweep(tmp_path / "x", *arguments)
    for name in runs(few[0]):
        assert_same_run(few[0] / name, tmp_path / "x" / name)
        assert summary(tmp_path / "x" / name)["threads"] == str(1 if len(arguments) == 2 else 2)


class Terminal:
    """A sweep on a terminal of 80 columns and 24 rows."""

    def __init__(self, words, cwd):
        self.screen = pyte.HistoryScreen(80, 24, history=1000)
        self.stream, self.status = pyte.ByteStream(self.screen), None
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(cwd)
            os.environ["TERM"] = "xterm"
            os.execv(words[0], words)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

    def type(self, text):
        os.write(self.fd, text.encode())

    def lines(self):
        """Reads what is there, until the end of the sweep."""
        while self.status is None and select.select([self.fd], [], [], 0.05)[0]:
            try:
                self.stream.feed(os.read(self.fd, 65536))
            except OSError:
                self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        assert not self.screen.history.top, "it scrolled"
        return [line.rstrip() for line in self.screen.display if line.strip()]


def test_on_a_terminal(tmp_path):
    """A bar with the time left, on one line; a failed run stays to be read."""
    trainer = script(
        tmp_path / "trainer",
        f"""case "$*" in
        *-resume*) ;;
        *"-clip 10 "*"-qk_norm 1"*-out*d16_*) echo out of order; exit 3;;
        esac
        exec {shlex.quote(PROGRAM)} "$@\"""",
    )
    terminal = Terminal(command("x", flags=LONG, trainer=trainer), tmp_path)
    seen = set()
    while terminal.status is None:
        seen.update(terminal.lines())
    assert terminal.status == 1
    lines = terminal.lines()
    assert any(re.match(r"(25|50|75)% [123]:[123]=\S+ d16_lr1e-2", line) for line in seen), seen
    (at,) = [
        i for i, line in enumerate(lines) if line.startswith("d16_lr1e-2_clip10_qk_norm1_seed1 f")
    ]
    assert "failed, exit status 3" in lines[at] and "    out of order" in lines[at : at + 3]
    assert [line[:4] for line in lines if re.match(r"\d+%", line)][-1] == "100%"
    assert "3 of 4 runs are in x; python3 plot.py x" in lines
    assert len(lines) <= 12, lines


def test_ctrl_c_on_a_terminal(undisturbed, tmp_path):
    """It ends all in order, and says how to go on."""
    words = command("a b", flags=LONG)
    terminal = Terminal(words, tmp_path)
    out = tmp_path / "a b"
    until(lambda: terminal.lines() and any(p.stat().st_size > 2000 for p in out.glob("*/log.csv")))
    terminal.type("\x03")
    until(lambda: terminal.lines() and terminal.status is not None)
    assert terminal.status == 130 and not processes("a b/d16")
    said = "".join(line.ljust(80) for line in terminal.lines())
    assert shlex.split(said[said.index("go on with: ") + 12 :]) == words
    assert list(out.glob("*/model.safetensors"))
    subprocess.run(words, cwd=tmp_path, check=True)
    assert_same_sweep(out, undisturbed)


# ---------------------------------------------------------------------------
# What goes wrong on the way


def test_a_run_that_fails_is_reported_and_the_others_go_on(few, tmp_path):
    trainer = script(
        tmp_path / "trainer",
        f'''case "$*" in
        *"-lr 1e-2"*"-clip 10"*"-qk_norm 1"*-out*d16_*)
            for i in 1 2 3 4 5 6 7; do echo "line $i"; done
            exit 3;;
        esac
        exec {shlex.quote(PROGRAM)} "$@"''',
    )
    said = sweep(tmp_path / "x", trainer=trainer, status=1)
    assert (
        said.count("the end of") == 1
        and "d16_lr1e-2_clip10_qk_norm1_seed1 failed, exit status 3" in said
        and "line 3\n    line 4" in said
        and "line 2\n" not in said
    )
    assert "15 of 16 runs" in said and "./sweep.sh" not in said and str(SWEEP) in said
    assert len(table(tmp_path / "x" / "summary.csv")) == 15
    assert "16 of 16" in sweep(tmp_path / "x")
    assert_same_sweep(tmp_path / "x", few[0])


def test_a_damaged_checkpoint_is_a_failed_run(tmp_path, few):
    out = tmp_path / "x"
    shutil.copytree(few[0], out)
    name = runs(out)[3]
    (out / name / "summary.csv").unlink()
    (out / name / "model.safetensors").write_bytes(b"not a model")
    said = sweep(out, status=1)
    assert f"{name} failed" in said and "model.safetensors is" in said and "15 of 16" in said


@pytest.mark.parametrize("send", [os.kill, os.killpg])
@pytest.mark.parametrize(
    "number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]
)
def test_stopped_and_gone_on_with(undisturbed, tmp_path, number, status, send):
    """By a signal to the script alone, as `kill` sends it, or to its group."""
    out = tmp_path / "x"
    process = subprocess.Popen(
        command(out, flags=LONG),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
        process_group=0,
    )
    until(lambda: any(p.stat().st_size > 2000 for p in out.glob("*/log.csv")))
    send(process.pid, number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == status and not processes(str(out))
    stopped = [
        p.parent for p in out.glob("*/model.safetensors") if not (p.parent / "summary.csv").exists()
    ]
    assert stopped and "stopped after step" in (stopped[0] / "output.txt").read_text()
    words = shlex.split(re.search(r"go on with: (.*)\n", said)[1])
    assert words == command(out, flags=LONG)
    assert subprocess.run(words, capture_output=True).returncode == 0
    assert "resuming after step" in (stopped[0] / "output.txt").read_text()
    assert_same_sweep(out, undisturbed)


@pytest.mark.parametrize("delay", [0, 0.05, 0.1, 0.2, 0.4, 0.8])
def test_stopped_at_once(tmp_path, delay):
    """Whatever it was doing: it ends soon, and so does all that it started."""
    out = tmp_path / "x"
    process = subprocess.Popen(
        command(out, flags=LONG + ["-steps", "1000000"]),
        stdout=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        process_group=0,
    )
    until(out.exists)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) in (130, -signal.SIGINT)
    until(lambda: not processes(str(out)), 30)


def test_stopped_when_gnu_parallel_dies_of_it(tmp_path):
    """It does not pass the signal on to a run that it is just starting."""
    out = tmp_path / "x"
    process = subprocess.Popen(
        command(out, flags=LONG + ["-steps", "1000000"]),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
        process_group=0,
    )
    until(lambda: any(out.glob("*/model.safetensors")))
    (gnu_parallel,) = [
        pid
        for pid in processes(str(out))
        if b"parallel" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1]
    ]
    os.kill(gnu_parallel, signal.SIGSTOP)
    os.killpg(process.pid, signal.SIGINT)
    until(lambda: has_signal(gnu_parallel, "ShdPnd", signal.SIGTERM))
    os.kill(gnu_parallel, signal.SIGKILL)
    assert "go on with" in process.communicate(timeout=60)[1] and process.returncode == 130
    assert not processes(str(out))


def test_killed_and_gone_on_with(undisturbed, tmp_path):
    out = tmp_path / "x"
    for _ in range(3):
        process = subprocess.Popen(
            command(out, flags=LONG),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )
        until(lambda: processes(f"-out\0{out}/") or process.poll() is not None)
        time.sleep(0.4)
        while found := processes(str(out)):
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        process.wait()
    sweep(out, flags=LONG)
    assert_same_sweep(out, undisturbed)


def test_only_the_sweep_killed_its_runs_are_waited_for(undisturbed, tmp_path):
    """What a dead sweep left running is not run twice at once."""
    out = tmp_path / "x"
    process = subprocess.Popen(
        command(out, flags=LONG),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    until(lambda: len(processes(f"-out\0{out}/")) >= 1)
    for pid in processes(str(out)):
        with contextlib.suppress(OSError):  # it has ended by itself
            if (
                b"-out\0" + str(out).encode() + b"/"
                not in Path(f"/proc/{pid}/cmdline").read_bytes()
            ):
                os.kill(pid, signal.SIGKILL)  # all but the trainers
    process.wait()
    assert processes(f"-out\0{out}/")
    assert "wait until it has ended" in sweep(out, flags=LONG, status=1)
    until(lambda: not processes(f"-out\0{out}/"))
    sweep(out, flags=LONG)
    assert_same_sweep(out, undisturbed)


def test_a_second_sweep_on_the_folder_is_told_to_wait(undisturbed, tmp_path):
    out = tmp_path / "x"
    first = subprocess.Popen(
        command(out, "-j", 1, flags=LONG), stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    until(lambda: processes(f"-out\0{out}/"))
    said = sweep(out, flags=LONG, status=1)
    assert said.count("\n") == 1 and f"{out}: another sweep" in said and "wait until" in said
    assert "4 of 4" in first.communicate(timeout=300)[0] and first.returncode == 0
    assert_same_sweep(out, undisturbed)


def test_two_sweeps_begun_at_once(undisturbed, tmp_path):
    """One of them makes the runs."""
    out, log = tmp_path / "x", tmp_path / "log"
    trainer = script(tmp_path / "trainer", f'echo "$@" >>{log}; exec {shlex.quote(PROGRAM)} "$@"')
    both = [
        subprocess.Popen(
            command(out, flags=LONG, trainer=trainer),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1], said
    begun = [line for line in log.read_text().splitlines() if str(out) in line]
    assert len(begun) == 4, "a run was made twice"
    assert_same_sweep(out, undisturbed)


def test_nobody_reads_its_output(tmp_path):
    """`./sweep.sh ... | head -n 1`: nothing lives on, and it says how to go on."""
    out = tmp_path / "x"
    process = subprocess.Popen(
        command(out, flags=LONG), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert "go on with" in process.stderr.read()
    assert process.wait(60) == 141 and not processes(str(out))


def test_no_folder_for_temporary_files(few, tmp_path):
    sweep(tmp_path / "x", env=dict(os.environ, TMPDIR=str(tmp_path / "nowhere")))
    assert_same_sweep(tmp_path / "x", few[0])


# ---------------------------------------------------------------------------
# Two stages


@pytest.fixture
def predictor(tmp_path, monkeypatch):
    """sweep.sh beside a predict.py that notes the runs that were there when it was asked."""
    folder = tmp_path / "copy"
    folder.mkdir()
    shutil.copy(SWEEP, folder)
    (folder / "predict.py").write_text("""import pathlib, sys
assert len(sys.argv) == 2
out = pathlib.Path(sys.argv[1])
assert not (out / "prediction.csv").exists()
runs = sorted(p.parent.name for p in out.glob("*/summary.csv"))
(out / "prediction.csv").write_text("\\n".join(runs))
""")
    monkeypatch.setattr("test_sweep.SWEEP", folder / "sweep.sh")
    return folder


STAGES = dict(
    experiment="predict_logits", flags="-T 4 -batch 1 -eval_tokens 4 -steps 2 -lr 1e-2".split()
)
WIDTHS = {"d16", "d24", "d32", "d48", "d64"}


def widths(out):
    return {name.split("_")[0] for name in (out / "prediction.csv").read_text().split()}


def test_prediction_comes_before_the_held_out_runs(predictor, tmp_path):
    out = tmp_path / "x"
    trainer = script(
        tmp_path / "trainer", f'[[ "$*" != *x/d48_* ]] || exit 1; exec {shlex.quote(PROGRAM)} "$@"'
    )
    assert "4 of 8 runs" in sweep(out, trainer=trainer, status=1, **STAGES)
    # no prediction from a part of the runs
    assert not (out / "prediction.csv").exists() and not list(out.glob("d96*"))
    sweep(out, **STAGES)
    assert widths(out) == WIDTHS and len(runs(out)) == 8
    before = (out / "prediction.csv").stat().st_mtime_ns
    sweep(out, "-seeds", 2, **STAGES)
    assert len(runs(out)) == 16 and (out / "prediction.csv").stat().st_mtime_ns == before
    (out / "prediction.csv").unlink()
    assert "no prediction.csv" in sweep(out, "-seeds", 3, status=2, **STAGES)


def test_a_prediction_that_fails_keeps_the_held_out_runs_back(predictor, tmp_path):
    (predictor / "predict.py").write_text("import sys; sys.exit('nothing to fit')")
    said = sweep(tmp_path / "x", status=1, **STAGES)
    assert "nothing to fit" in said and "predict.py" in said and len(runs(tmp_path / "x")) == 5


# ---------------------------------------------------------------------------
# Other machines


@pytest.fixture
def hosts(tmp_path, monkeypatch):
    """Two names of this machine, through an ssh that runs the command here, and no shell in the
    environment."""
    (tmp_path / "hosts").write_text("2/one\n2/two\n")
    ssh = script(
        tmp_path / "ssh",
        f'while [[ $1 == -* ]]; do shift; done; echo "$1" >>{tmp_path}/log; shift;'
        ' [[ $1 != -- ]] || shift; exec bash -c "$*"',
    )
    monkeypatch.setenv("PARALLEL_SSH", str(ssh))
    monkeypatch.delenv("SHELL", raising=False)
    return tmp_path / "hosts"


def test_hosts(hosts, few, tmp_path):
    sweep(tmp_path / "x", "-on", hosts, "-j", 2)
    assert set((tmp_path / "log").read_text().split()) == {"one", "two"}
    assert_same_sweep(tmp_path / "x", few[0])


def test_stopped_on_hosts(hosts, undisturbed, tmp_path):
    out = tmp_path / "x"
    process = subprocess.Popen(
        command(out, "-on", hosts, flags=LONG), stderr=subprocess.PIPE, text=True
    )
    until(lambda: any(p.stat().st_size > 2000 for p in out.glob("*/log.csv")))
    process.terminate()
    assert "go on with" in process.stderr.read() and process.wait(60) == 143
    assert not processes(str(out))
    assert list(out.glob("*/model.safetensors"))
    sweep(out, "-on", hosts, flags=LONG)
    assert_same_sweep(out, undisturbed)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A Slurm cluster of this one node on loopback, without systemd or cgroups."""
    if os.geteuid() != 0:
        pytest.skip("only root can start Slurm")
    folder, host = tmp_path_factory.mktemp("slurm"), socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    for parent in [folder, *folder.parents]:  # munged wants a socket that everyone can reach
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o111)
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o600)
    ports = []
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            ports.append(
                stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            )
    (folder / "slurm.conf").write_text(f"""ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=20
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
""")
    environment = dict(os.environ, SLURM_CONF=str(folder / "slurm.conf"))
    daemons = [
        [
            "munged",
            "--foreground",
            "--force",
            f"--key-file={folder}/key",
            f"--socket={folder}/munge.sock",
            f"--pid-file={folder}/munged.pid",
            f"--log-file={folder}/munged.log",
            f"--seed-file={folder}/seed",
        ],
        ["slurmctld", "-D", "-c", "-f", f"{folder}/slurm.conf"],
        ["slurmd", "-D", "-f", f"{folder}/slurm.conf"],
    ]
    running = []
    try:
        for daemon in daemons:
            running.append(
                subprocess.Popen(
                    daemon,
                    env=environment,
                    stdout=open(folder / f"{daemon[0]}.out", "w"),
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
            until(lambda: (folder / "munge.sock").exists())
        until(
            lambda: "idle"
            in subprocess.run(
                ["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True
            ).stdout
        )
        yield environment
    except AssertionError:
        print(
            *[path.read_text()[-2000:] for path in folder.glob("*.log")],
            *[path.read_text()[-2000:] for path in folder.glob("*.out")],
            sep="\n",
        )
        raise
    finally:
        subprocess.run(["scancel", "-u", "root"], env=environment)
        for process in reversed(running):
            process.terminate()
            process.wait(30)


def test_slurm(cluster, tmp_path):
    """A task is killed and requeued, another is told that its time is nearly over: the same bits as
    of the undisturbed sweep here."""
    out, flags = tmp_path / "a cluster", LONG + "-steps 40000 -clip 0,1,10 -qk_norm 0".split()

    def slurm(*words):
        result = subprocess.run(words, env=cluster, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def jobs(columns):
        return slurm("squeue", "-h", "-r", "-o", columns).split()

    said = sweep(out, "-on", "slurm", "-partition", "test", "-time", 5, flags=flags, env=cluster)
    array = re.match(r"job (\d+): 3 runs", said)[1]
    first, second = (
        out / line.split("\t")[0] for line in (out / "slurm1").read_text().splitlines()[:2]
    )
    for arguments in ["-on", "slurm"], []:  # neither another array nor runs here
        assert "wait until" in sweep(out, *arguments, status=1, flags=flags, env=cluster)
    until(lambda: all((run / "model.safetensors").exists() for run in (first, second)))
    (trainer,) = [
        pid
        for pid in processes(f"-out\0{first}\0")
        if Path(f"/proc/{pid}/exe").resolve() == Path(PROGRAM).resolve()
    ]
    os.kill(trainer, signal.SIGKILL)
    slurm("scancel", "--signal=USR1", "--batch", f"{array}_1")
    until(lambda: f"{array}_0" not in jobs("%i") and f"{array}_1|PD" in jobs("%i|%t"))
    assert (
        not (first / "summary.csv").exists()
        and f"{first.name} failed" in (out / "slurm.txt").read_text()
    )
    assert "stopped after step" in (second / "output.txt").read_text()
    slurm("scontrol", "requeue", f"{array}_0")
    time.sleep(1.1)  # slurmd refuses what begins again in the second in which it ended
    deadline = time.time() + 120
    while found := jobs("%i|%t"):
        # Slurm makes what is requeued wait for two minutes
        for job in {f"{array}_0|PD", f"{array}_1|PD"} & set(found):
            subprocess.run(
                ["scontrol", "update", f"JobId={job[:-3]}", "StartTime=now"],
                env=cluster,
                capture_output=True,
            )
        assert time.time() < deadline, found
        time.sleep(0.3)
    assert all("resuming after step" in (run / "output.txt").read_text() for run in (first, second))
    sweep(tmp_path / "here", flags=flags)
    assert_same_sweep(out, tmp_path / "here")
    assert "3 of 3 runs are already there" in sweep(out, "-on", "slurm", flags=flags, env=cluster)
    assert jobs("%i") == []


def test_slurm_predicts_between_the_stages(cluster, predictor, tmp_path):
    """Two runs a task; the held-out runs depend on the prediction, and the prediction on all runs
    before it."""
    out = tmp_path / "x"
    said = sweep(out, "-on", "slurm", "-pack", 2, env=cluster, **STAGES)
    assert len(re.findall(r"^job \d+: ", said, re.M)) == 3
    until(
        lambda: not subprocess.run(
            ["squeue", "-h"], env=cluster, capture_output=True, text=True
        ).stdout,
        120,
    )
    assert widths(out) == WIDTHS and len(runs(out)) == len(table(out / "summary.csv")) == 8


# ---------------------------------------------------------------------------


def test_shellcheck():
    result = subprocess.run(["shellcheck", str(SWEEP)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
