#!/usr/bin/env python3
"""Kills training runs and sweeps at random moments, many times, and shows that nothing is lost.

A story is a run (or a sweep) that is killed a few times by SIGKILL, looked at and gone on with
after each, and at last left to end: its log, weights and summary must then be those of the same
command undisturbed, bit for bit. Ends with a table of what was done.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.numpy import load_file

import conftest  # noqa: F401, lets a program find the modules of the other folders
from test_cli import PROGRAM, TINY, summary, table, words
from test_runs import MODEL, age, assert_same_run, metadata
from test_sweep import SWEEP, assert_same_sweep, processes, until

RUN = {**TINY, "steps": 1500, "eval_every": 300, "eval_tokens": 64}
# four runs
SHELL_SWEEP = (
    "-d 16 -T 8 -batch 2 -eval_tokens 64 -steps 3000 -log_every 100 -lr 1e-2 -clip 1,10"
    " -checkpoint_every 100".split()
)
OWN_SWEEP = {**RUN, "lr": "1e-3,1e-2,1e-1", "log_every": 50, "checkpoint_every": 100}


def rows(text):
    """The whole lines of a log, without the column that tells the speed."""
    return [line.rsplit(",", 1)[0] for line in text.split("\n")[:-1]]


def last_step(log):
    return int(log[-1].split(",")[0]) if len(log) > 1 else 0


def look(folder, flags, wanted, over=False):
    """What a kill left: nothing half-written where a reader would look. Returns the steps that are
    lost if this is gone on with. over: the run had been begun over an older one, whose log may be
    still there."""
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    assert names <= {
        *(name + end for name in ("log.csv", MODEL, "summary.csv") for end in ("", ".tmp")),
        *("log.csv.new", MODEL + ".new", MODEL + ".new.tmp"),
    }, names
    # killed while its first checkpoint replaced an older run's results
    model = folder / (MODEL + ".new" * (MODEL + ".new" in names))
    current = folder / ("log.csv" + ".new" * (model.suffix == ".new" and "log.csv.new" in names))
    if "summary.csv" in names:
        assert summary(folder)["final_loss"] == summary(wanted)["final_loss"]
    saved, log = 0, rows(current.read_text()) if current.name in names else []
    if model.name in names:
        load_file(model)
        data = metadata(folder, model.name)
        saved, kept = (
            int(data["step"]),
            rows(current.read_bytes()[: int(data["log_bytes"])].decode()),
        )
        assert (
            saved == flags["steps"]
            or flags["checkpoint_every"]
            and saved % flags["checkpoint_every"] == 0
        )
        assert last_step(kept) <= saved < last_step(kept) + flags[
            "log_every"
        ] or saved == last_step(kept)
        assert kept == rows((wanted / "log.csv").read_text())[: len(kept)]
    # at least: steps between rows do not show
    lost = 0 if over and not saved else max(last_step(log) - saved, 0)
    assert lost <= (flags["checkpoint_every"] or flags["steps"]), (lost, flags)
    return lost


class Moments:
    """When to kill a run: each waits for its moment. seconds: of the whole run undisturbed."""

    def __init__(self, rng, folder, flags, seconds):
        self.rng, self.model, self.log, self.end = (
            rng,
            folder / MODEL,
            folder / "log.csv",
            f"\n{flags['steps']},",
        )
        self.part, self.seconds = folder / (MODEL + ".tmp"), seconds

    def wait(self, process, condition, pause=0.0002):
        while process.poll() is None and not condition():
            time.sleep(pause)

    def any_moment(self, process):
        time.sleep(self.rng.uniform(0, self.seconds))

    def at_its_start(self, process):
        time.sleep(self.rng.uniform(0, 0.05))

    def within_a_checkpoint(self, process):
        """While the file beside is being written."""
        before = age(self.part)
        # it takes less than a millisecond
        self.wait(process, lambda: age(self.part) not in (0, before), pause=0)
        time.sleep(self.rng.choice([0, self.rng.uniform(0, 0.001)]))

    def after_a_checkpoint(self, process):
        before = age(self.model)
        self.wait(process, lambda: age(self.model) not in (0, before))
        time.sleep(self.rng.uniform(0, 0.002))

    def at_its_end(self, process):
        self.wait(process, lambda: self.log.exists() and self.end in self.log.read_text()[-2000:])
        time.sleep(self.rng.uniform(0, 0.005))


MOMENTS = [name for name in vars(Moments) if name not in ("wait",) and not name.startswith("_")]


class Book:
    """What was done: a row a kind of kill."""

    def __init__(self, kills):
        self.kills, self.done, self.rows, self.started = kills, 0, {}, time.time()

    def add(self, kind, lost=0, every=0, left=0):
        row = self.rows.setdefault(kind, [0, 0, 0, 0])
        self.done += 1
        row[:] = (
            row[0] + 1,
            row[1] + left,
            *max(row[2:], [lost, every], key=lambda pair: pair[0] / max(pair[1], 1)),
        )
        if sys.stdout.isatty() or self.done % 10 == 0:
            seconds = (time.time() - self.started) * max(self.kills - self.done, 0) / self.done
            print(
                f"\r{self.done}/{self.kills} kills, {seconds // 60:.0f}:{seconds % 60:02.0f} left ",
                end="" if sys.stdout.isatty() else "\n",
                flush=True,
            )

    def show(self):
        print(
            f"\n{'killed':<44}{'kills':>6}{'half-written file left':>24}{'most steps lost':>17}"
            f"{'of checkpoint_every':>21}"
        )
        for kind, (kills, left, lost, every) in self.rows.items():
            print(f"{kind:<44}{kills:>6}{left:>24}{lost:>17}{every or '-':>21}")


class Undisturbed:
    """The same commands, left alone: each is run once."""

    def __init__(self, home):
        self.home, self.seconds = home, {}

    def of(self, name, command, env=None):
        folder = self.home / name
        if not folder.exists():
            started = time.time()
            subprocess.run(
                (
                    [*command, "-out", folder]
                    if command[0] == PROGRAM
                    else [word if word != "OUT" else folder for word in command]
                ),
                check=True,
                stdout=subprocess.DEVNULL,
                stdin=subprocess.DEVNULL,
                env=env,
            )
            self.seconds[name] = time.time() - started
        return folder, self.seconds[name]


def environment(threads=1, **more):
    return dict(os.environ, OMP_NUM_THREADS=str(threads), **more)


def run_story(rng, home, undisturbed, book, kills, moments=MOMENTS):
    """One run, killed so many times (or fewer, if it ends before)."""
    flags = {
        **RUN,
        "qk_norm": rng.choice([0, 1]),
        "log_every": rng.choice([1, 4, 10]),
        "checkpoint_every": rng.choice([0, 10, 50, 400]),
    }
    command, folder = [PROGRAM, *words(flags)], home / f"run{book.done}"
    wanted, seconds = undisturbed.of(
        f"run-{flags['qk_norm']}-{flags['log_every']}",
        [PROGRAM, *words({**flags, "checkpoint_every": 0})],
        environment(),
    )
    for _ in range(3 * kills):
        if kills == 0:
            break
        resume = (
            folder / MODEL
        ).exists() and rng.random() < 0.95  # else it is begun again, over what there is
        over = not resume and (folder / "log.csv").exists()
        process = subprocess.Popen(
            [PROGRAM, "-resume", "-out", folder] if resume else [*command, "-out", folder],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment(rng.choice([1, 1, 2, 3])),
        )
        moment = rng.choice(moments)
        getattr(Moments(rng, folder, flags, seconds), moment)(process)
        process.kill()
        said = process.communicate()[1]
        if process.returncode != -signal.SIGKILL:
            # it had ended: what the kill before left was good
            assert (process.returncode, said) == (0, b""), (command, folder, resume, said)
            continue
        kills -= 1
        book.add(
            "a run, " + moment.replace("_", " "),
            look(folder, flags, wanted, over),
            flags["checkpoint_every"] or flags["steps"],
            any(folder.glob("*.tmp")),
        )
    last = subprocess.run(
        (
            [PROGRAM, "-resume", "-out", folder]
            if (folder / MODEL).exists()
            else [*command, "-out", folder]
        ),
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert last.returncode == 0, (command, folder, last.stderr)
    assert_same_run(folder, wanted, but=["checkpoint_every"])
    assert sorted(path.name for path in folder.iterdir()) == ["log.csv", MODEL, "summary.csv"]


def parts(out):
    """The processes of a sweep of this folder by what they are."""
    found = {}
    for pid in processes(str(out)):
        with contextlib.suppress(OSError):
            argv = [
                os.path.basename(word)
                for word in Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            ]
            own = "," in argv[argv.index("-lr") + 1] if "-lr" in argv else False
            kind = (
                "a trainer"
                if argv[0] == os.path.basename(PROGRAM) and not own
                else (
                    "GNU parallel"
                    if "parallel" in argv[:2]
                    else "the shell of a run"
                    if "_run" in argv
                    else "the sweep"
                )
            )
            found.setdefault(kind, []).append(pid)
    return found


def kill(pids):
    """Whether there was one to kill."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(pids)


def kill_all(out):
    killed = False
    while kill(processes(str(out))):
        killed = True
        time.sleep(0.01)
    return killed


def look_at_sweep(out, wanted):
    """Every row of every summary is whole and right, and no file is left but those that the next
    start writes over."""
    finals = {
        row["out"].rsplit("/", 1)[1]: row["final_loss"] for row in table(wanted / "summary.csv")
    }
    for path in [out / "summary.csv", *out.glob("*/summary.csv")]:
        for row in table(path) if path.exists() else []:
            assert row["final_loss"] == finals[row["out"].rsplit("/", 1)[1]]
    for path in out.glob("*/" + MODEL):
        load_file(path)
    names = {out: ("summary.csv", "experiment", "flags")}  # the sweep's own; else a run's
    assert all(
        path.name[:-4] in names.get(path.parent, (MODEL, MODEL + ".new", "summary.csv"))
        for path in out.glob("**/*.tmp")
    )


def shell_sweep_story(rng, home, undisturbed, book, kills):
    """sweep.sh: all of it, or a part of it, killed; then the same command again."""
    temporary, out = home / "tmp", home / f"sweep{book.done}"
    temporary.mkdir(exist_ok=True)
    command = [
        str(SWEEP),
        "clip",
        "-trainer",
        PROGRAM,
        "-j",
        "1",
        "-out",
        "OUT",
        "--",
        *SHELL_SWEEP,
    ]
    env = environment(TMPDIR=str(temporary))
    wanted, seconds = undisturbed.of("sweep.sh", command, env)
    command[command.index("OUT")] = str(out)
    for _ in range(kills):
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=env,
            text=True,
        )
        time.sleep(rng.uniform(0, 0.8 * seconds))
        target = rng.choice(
            ["all of it", "the sweep", "GNU parallel", "the shell of a run", "a trainer"]
        )
        killed = kill_all(out) if target == "all of it" else kill(parts(out).get(target, []))
        # its children still have the pipe
        lives_on = killed and target == "the sweep"
        said = str(process.wait()) if lives_on else process.communicate()[0]
        assert process.returncode in (-signal.SIGKILL, 0, 1), said
        # what a killed sweep left running has the folder
        assert process.returncode != 1 or "wait until" in said or "again with: " in said, said
        if killed:
            book.add("sweep.sh: " + target)
        if rng.random() < 0.5:  # else what lives on meets the next start
            until(lambda: not processes(str(out)), 120)
        look_at_sweep(out, wanted)
    # a killed sweep's mktemp or awk too: it holds, or yet makes, a temporary folder
    until(lambda: not processes(f"TMPDIR={temporary}", "environ"), 120)
    for path in temporary.iterdir():
        os.utime(path, (0, 0))  # as if it were of yesterday
    last = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=env
    )
    assert last.returncode == 0, (out, last.stdout, last.stderr)
    assert_same_sweep(out, wanted)
    assert [*out.glob("**/*.tmp"), *temporary.iterdir()] == []


def own_sweep_story(rng, home, undisturbed, book, kills):
    """The trainer's own sweep, which starts again with the same command."""
    command, out = [PROGRAM, *words(OWN_SWEEP)], home / f"own{book.done}"
    wanted, seconds = undisturbed.of("own", command, environment())
    for _ in range(kills):
        process = subprocess.Popen(
            [*command, "-out", out],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(),
            text=True,
        )
        time.sleep(rng.uniform(0, 0.8 * seconds))
        target = rng.choice(["all of it", "the sweep", "a run"])
        children = (
            [
                int(pid)
                for pid in (
                    Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                )
            ]
            if process.poll() is None
            else []
        )
        killed = kill(
            {
                "all of it": [process.pid, *children],
                "the sweep": [process.pid],
                "a run": children[:1],
            }[target]
        )
        said = process.communicate(timeout=120)[0]
        assert process.returncode in (-signal.SIGKILL, 0, 1) and (
            process.returncode != 1 or "was killed by signal 9" in said
        ), said
        until(lambda: not processes(str(out)), 30)  # the runs of a dead sweep stop by themselves
        if killed:
            book.add("train_gpt -lr: " + target)
        look_at_sweep(out, wanted)
    for path in out.glob("lr*"):  # a run goes on alone
        if (path / MODEL).exists():
            subprocess.run([PROGRAM, "-resume", "-out", path], check=True, env=environment())
            assert_same_run(path, wanted / path.name)
    last = subprocess.run(
        [*command, "-out", out], capture_output=True, text=True, env=environment()
    )
    assert last.returncode == 0, (out, last.stderr)
    for path in wanted.glob("lr*"):
        assert_same_run(out / path.name, path)
    assert [row["final_loss"] for row in table(out / "summary.csv")] == [
        row["final_loss"] for row in table(wanted / "summary.csv")
    ]
    assert list(out.glob("**/*.tmp")) == []


STORIES = {run_story: 6, shell_sweep_story: 4, own_sweep_story: 4}  # and the kills of each


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-kills", type=int, default=200)
    parser.add_argument("-seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    print(
        f"repeat this with: {sys.argv[0]} -kills {options.kills} -seed {options.seed}", flush=True
    )
    book = Book(options.kills)
    with tempfile.TemporaryDirectory() as home:
        undisturbed, number = Undisturbed(Path(home) / "undisturbed"), 0
        undisturbed.home.mkdir()
        while book.done < options.kills:
            story = [run_story, run_story, shell_sweep_story, run_story, own_sweep_story][
                number % 5
            ]
            try:
                story(
                    random.Random(f"{options.seed} {number}"),
                    Path(home),
                    undisturbed,
                    book,
                    min(STORIES[story], options.kills - book.done),
                )
            except BaseException:
                print(f"\nin story {number} of seed {options.seed}", file=sys.stderr)
                raise
            number += 1
    book.show()
    print(
        f"{book.done} kills in {number} stories: each ended with the log, weights and summary of"
        " its undisturbed run, bit for bit"
    )


if __name__ == "__main__":
    main()
