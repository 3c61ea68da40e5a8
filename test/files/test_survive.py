"""That nothing is lost whatever happens to a run: a sample of `make survive`'s kills, and what else
a machine does to programs: the disk is full, a folder may not be written, the data goes away,
signals. Each time one line says it, and once it is mended the run goes on to the very result of an
undisturbed one."""

import contextlib
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import survive
import test_plot
from test_cli import (
    NAME,
    PROGRAM,
    REPO,
    TINY,
    program,
    snapshot,
    summary,
    train,
    without_sanitizer,
    words,
)
from test_runs import MODEL, assert_same_run, metadata, start, wait
from test_sweep import (
    FEW,
    assert_same_sweep,
    command,
    processes,
    sweep,
    until,
)

FLAGS = dict(steps=400, checkpoint_every=50, log_every=5, eval_every=200)
ROOT = os.geteuid() == 0
WAITING = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_USE_YIELD"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "x"
    train(folder, **FLAGS)
    return folder


def begin(folder, *more, **flags):
    return start(folder, *words({**TINY, **FLAGS, **flags}), *more)


def go_on(folder, wanted=None, **flags):
    """From the last checkpoint, or from the start where there is none."""
    arguments = ["-resume"] if (folder / MODEL).exists() else words({**TINY, **FLAGS, **flags})
    result = program(*arguments, "-out", str(folder), cwd=folder.parent)
    assert (result.returncode, result.stderr) == (0, "")
    if wanted:
        assert_same_run(folder, wanted)
    assert sorted(path.name for path in folder.iterdir()) == ["log.csv", MODEL, "summary.csv"]


def saved(folder):
    return (folder / MODEL).exists()


def assert_one_line(process, *says):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and err.startswith(f"{NAME}: ") and err.count("\n") == 1, (
        process.returncode,
        out,
        err,
    )
    assert [word for word in map(str, says) if word not in err] == [], err


# ---------------------------------------------------------------------------
# Killed


@pytest.mark.parametrize(
    "story, kills",
    [(survive.run_story, 5), (survive.shell_sweep_story, 2), (survive.own_sweep_story, 2)],
)
def test_killed(story, kills, tmp_path):
    seed = random.randrange(10**6)
    print("seed", seed)
    (tmp_path / "undisturbed").mkdir()
    story(
        random.Random(seed),
        tmp_path,
        survive.Undisturbed(tmp_path / "undisturbed"),
        survive.Book(kills),
        kills,
    )


def test_a_new_run_killed_over_an_old_one(tmp_path):
    """Before its first checkpoint: the old one's results are whole, and can be gone on with."""
    folder = tmp_path / "x"
    train(folder, steps=3)
    before = snapshot(folder)
    process = begin(folder, checkpoint_every=0, steps=10**8)
    wait(process, lambda: new_log(folder).exists() and new_log(folder).stat().st_size > 3000)
    # another one must not write the new log either
    assert_one_line(begin(folder), "log.csv: another process is writing it")
    process.kill()
    process.communicate()
    after = snapshot(folder)
    assert after.pop(new_log(folder)) and after == before
    result = program("-resume", "-out", "x", "-steps", "4", cwd=tmp_path)
    assert result.returncode == 0 and "resuming after step 3" in result.stdout
    assert not new_log(folder).exists()
    train(tmp_path / "y", steps=3)
    train(tmp_path / "y", steps=4, resume=1)
    assert_same_run(folder, tmp_path / "y")


def new_log(folder):
    return folder / "log.csv.new"


def test_a_new_run_replaces_an_old_one_at_its_first_checkpoint(tmp_path):
    folder = tmp_path / "x"
    train(folder, steps=3)
    process = begin(folder, steps=10**8, lr="3e-3")
    wait(process, lambda: metadata(folder)["lr"] == "3e-3")
    wait(process, lambda: not new_log(folder).exists())
    time.sleep(0.05)
    process.kill()
    process.communicate()
    assert {path.name for path in folder.iterdir()} - {MODEL + ".tmp"} == {"log.csv", MODEL}
    steps = str(int(metadata(folder)["step"]) + 9)
    result = program("-resume", "-out", "x", "-steps", steps, cwd=tmp_path)
    assert result.returncode == 0 and summary(folder)["lr"] == "3e-3"


@without_sanitizer
@pytest.mark.parametrize("moment", range(8))
def test_killed_while_it_replaces_an_old_one(tmp_path, moment, undisturbed):
    """Before or after each of its renames and unlinks in turn: the old results are whole, or
    -resume goes on with the new run."""
    folder = tmp_path / "x"
    train(folder, **{**FLAGS, "lr": "3e-3", "steps": 20})
    before = snapshot(folder)
    result = run_with(
        tmp_path,
        f"""
        #include <fcntl.h>
        #include <signal.h>
        #include <unistd.h>

        static int changes;
        int renameat(int, const char *, int, const char *);
        static int begins(void) {{
            if (changes++ == {moment}) raise(SIGKILL);
            return AT_FDCWD;
        }}
        int rename(const char *from, const char *to) {{
            return renameat(begins(), from, AT_FDCWD, to);
        }}
        int unlink(const char *path) {{ return unlinkat(begins(), path, 0); }}
        """,
        {**TINY, **FLAGS},
    )
    killed = result.returncode == -signal.SIGKILL
    assert killed or result.returncode == 0, result.stderr
    after = {path: what for path, what in snapshot(folder).items() if path in before}
    if after == before and not (folder / (MODEL + ".new")).exists():
        assert killed
        result = program("-resume", "-out", "x", cwd=tmp_path)
        assert result.returncode == 0 and summary(folder)["lr"] == "3e-3"
        assert metadata(folder)["step"] == "20"
    else:
        result = program("-resume", "-out", "x", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert_same_run(folder, undisturbed)
    assert sorted(path.name for path in folder.iterdir()) == ["log.csv", MODEL, "summary.csv"]


def test_runs_of_a_killed_sweep_stop(tmp_path):
    folder = tmp_path / "x"
    arguments = words({**TINY, **FLAGS, "lr": "1e-3,1e-2", "steps": 1000000})
    # its runs are found by the whole path
    process = subprocess.Popen(
        [PROGRAM, *arguments, "-out", str(folder)], stdout=subprocess.DEVNULL
    )
    wait(process, lambda: (folder / "lr1e-3" / MODEL).exists())
    process.kill()
    process.wait()
    try:
        until(lambda: not processes(str(folder)), 60)
    finally:
        survive.kill_all(folder)
    assert int(metadata(folder / "lr1e-3")["step"]) >= 50 and not list(folder.glob("*/*.tmp"))


def test_one_run_a_folder(tmp_path, undisturbed):
    """A second one changes nothing."""
    first = begin(tmp_path / "x")
    wait(first, lambda: saved(tmp_path / "x"))
    first.send_signal(signal.SIGSTOP)
    # after a write that has begun
    until(lambda: Path(f"/proc/{first.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T")
    before = snapshot(tmp_path / "x")
    for second in [
        start(tmp_path / "x", *arguments) for arguments in (["-resume"], words({**TINY, **FLAGS}))
    ]:
        assert_one_line(second, "log.csv: another process is writing it")
    assert snapshot(tmp_path / "x") == before
    first.send_signal(signal.SIGCONT)
    assert (first.communicate()[1], first.returncode) == ("", 0)
    assert_same_run(tmp_path / "x", undisturbed)


# ---------------------------------------------------------------------------
# Functions of the C library that do something else


def run_with(folder, functions, flags=TINY):
    """A tiny run in the folder x, with these functions in place of the C library's."""
    source, library = folder / "other.c", folder / "other.so"
    source.write_text(functions)
    compiler = shlex.split(os.environ.get("CC", "cc"))
    subprocess.run([*compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    environment = {k: v for k, v in os.environ.items() if k not in WAITING}
    return subprocess.run(
        [PROGRAM, *words(flags), "-out", "x"],
        cwd=folder,
        env={**environment, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@without_sanitizer
def test_the_log_is_locked_until_the_summary_is_there(tmp_path):
    result = run_with(
        tmp_path,
        r"""
        #include <fcntl.h>
        #include <stdio.h>
        #include <string.h>
        #include <sys/file.h>

        int rename(const char *from, const char *to) {
            int failed = renameat(AT_FDCWD, from, AT_FDCWD, to);
            if (!strcmp(to, "x/summary.csv"))
                fputs(flock(open("x/log.csv", O_RDONLY), LOCK_EX | LOCK_NB) ? "locked" : "free",
                      stderr);
            return failed;
        }
        """,
    )
    assert (result.returncode, result.stderr) == (0, "locked")


@without_sanitizer
def test_a_file_is_on_the_disk_before_its_name_and_its_name_at_the_end(tmp_path):
    result = run_with(
        tmp_path,
        r"""
        #include <fcntl.h>
        #include <stdio.h>
        #include <sys/stat.h>
        #include <unistd.h>

        int fsync(int file) {
            char link[64], path[4096] = "";
            snprintf(link, sizeof link, "/proc/self/fd/%d", file);
            fprintf(stderr, "sync %.*s\n", (int)readlink(link, path, sizeof path), path);
            return fdatasync(file);
        }
        int rename(const char *from, const char *to) {
            struct stat info;
            stat(from, &info);
            fprintf(stderr, "rename %s %d\n", to, info.st_size > 0);
            return renameat(AT_FDCWD, from, AT_FDCWD, to);
        }
        """,
    )
    folder = tmp_path / "x"
    wanted = [f"sync {folder}/log.csv"]
    for name in MODEL, "summary.csv":
        wanted += [f"sync {folder}/{name}.tmp", f"rename x/{name} 1", f"sync {folder}"]
    assert (result.returncode, result.stderr.splitlines()) == (0, wanted)


@without_sanitizer
def test_no_start_without_end_where_the_environment_is_full(tmp_path):
    result = run_with(
        tmp_path,
        """
        #include <unistd.h>

        int setenv(const char *name, const char *value, int over) { return -1; }
        int execv(const char *path, char *const *argv) { _exit(99); }
        int execvp(const char *file, char *const *argv) { _exit(99); }
        """,
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.skipif(
    Path(PROGRAM).exists() and b"GOMP_SPINCOUNT" not in Path(PROGRAM).read_bytes(),
    reason="built without OpenMP",
)
@pytest.mark.parametrize("name", [PROGRAM, Path(PROGRAM).name], ids=["path", "name"])
def test_threads_wait_as_they_should(tmp_path, name):
    """The settings are in the environment that the program starts with, and it keeps its name."""
    environment = {k: v for k, v in os.environ.items() if k not in WAITING}
    environment["PATH"] += ":" + str(Path(PROGRAM).parent)
    process = subprocess.Popen(
        [name, *words({**TINY, **FLAGS, "steps": 100000}), "-out", "x"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    try:
        wait(process, lambda: saved(tmp_path / "x"))
        proc = Path("/proc") / str(process.pid)
        settings = (proc / "environ").read_text().split("\0")
        assert (proc / "comm").read_text().strip() == Path(PROGRAM).name[:15]
    finally:
        process.kill()
        process.wait()
    assert {"GOMP_SPINCOUNT=1000", "KMP_BLOCKTIME=1", "KMP_USE_YIELD=2"} <= {*settings}


# ---------------------------------------------------------------------------
# No room, no permission


@contextlib.contextmanager
def small_disk(folder, options):
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def more_room(folder):
    subprocess.run(["mount", "-o", "remount,size=100m,nr_inodes=1000", folder], check=True)


needs_root = pytest.mark.skipif(not ROOT, reason="only root can make a small disk")


@needs_root
def test_full_disk(tmp_path, undisturbed):
    """Of so many KB, or so many files: each write in turn is the one that fails."""
    failed = []
    for i, options in enumerate(
        [f"size={k}k" for k in range(4, 400, 40)] + [f"nr_inodes={n}" for n in range(1, 5)]
    ):
        folder, flags = (
            tmp_path / str(i),
            {**TINY, **FLAGS, "checkpoint_every": 0 if "inodes" in options else 50},
        )
        with small_disk(folder, options):
            result = program(*words(flags), "-out", str(folder), cwd=tmp_path)
            if result.returncode:
                assert (
                    result.returncode == 1
                    and result.stderr.count("\n") == 1
                    and "No space left on device" in result.stderr
                ), result.stderr
                failed += [
                    name
                    for name in ("log.csv", MODEL, "summary.csv")
                    if f"{folder}/{name}" in result.stderr
                ]
                assert not list(folder.glob("*.tmp"))
                survive.look(folder, flags, undisturbed)
                more_room(folder)
                go_on(folder, **flags)
            assert_same_run(folder, undisturbed, but=["checkpoint_every"])
    assert set(failed) == {"log.csv", MODEL, "summary.csv"}


@needs_root
def test_full_disk_under_a_sweep(tmp_path):
    flags = FEW[:-1] + ["1e-2"]
    sweep(tmp_path / "wanted", flags=flags)
    for i, options in enumerate(["size=4k", "size=300k", "nr_inodes=20"]):
        out = tmp_path / str(i)
        with small_disk(out, options):
            result = subprocess.run(
                command(out, flags=flags), capture_output=True, text=True, stdin=subprocess.DEVNULL
            )
            assert (
                result.returncode == 1
                and "No space left on device" in result.stdout + result.stderr
            ), result
            more_room(out)
            sweep(out, flags=flags)
            assert_same_sweep(out, tmp_path / "wanted")
            assert not list(out.glob("**/*.tmp"))


def test_no_permission(tmp_path, undisturbed):
    """Root may write anywhere, but for the capability that says so."""
    ordinary = ["setpriv", "--bounding-set=-dac_override"] if ROOT else []

    def run(*arguments):
        return subprocess.Popen(
            [*ordinary, PROGRAM, *arguments, "-out", folder],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    folder = tmp_path / "x"
    tmp_path.chmod(0o555)
    assert_one_line(run(*words({**TINY, **FLAGS})), folder, "Permission denied")
    tmp_path.chmod(0o755)
    process = run(*words({**TINY, **FLAGS}))
    wait(process, lambda: saved(folder))
    folder.chmod(0o555)
    assert_one_line(process, MODEL, "Permission denied")
    (folder / "log.csv").chmod(0o444)
    before = snapshot(folder)
    assert_one_line(run("-resume"), "log.csv", "Permission denied")
    assert snapshot(folder) == before
    (folder / "log.csv").chmod(0o644)
    assert_one_line(run("-resume"), MODEL, "Permission denied")
    folder.chmod(0o755)
    go_on(folder, undisturbed)


def test_stdout_on_a_full_disk(tmp_path, undisturbed):
    """What a run prints is also in its files; a sample is nowhere else."""
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [PROGRAM, *words({**TINY, **FLAGS}), "-out", tmp_path / "x"], stdout=full
        )
        assert result.returncode == 0
        assert_same_run(tmp_path / "x", undisturbed)
        result = subprocess.run(
            [PROGRAM, "-sample", "9", "-out", tmp_path / "x"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (result.returncode, result.stderr) == (
        1,
        f"{NAME}: cannot write the sample: No space left on device\n",
    )


@needs_root
def test_pictures_without_room_or_permission(tmp_path, capsys):
    """An older picture stands, whole; nothing is left beside it; and nobody finds half a
    prediction."""
    sizes = dict(d=(16, 24, 32, 48, 64), layers=[2], heads=[2])
    runs = [
        dict(
            d=d,
            parameters_non_embedding=d * d * 100,
            lr=lr,
            seed=seed,
            qk_norm=0,
            max_attn_logit=d * float(lr) * 10,
            out=f"d{d}lr{lr}seed{seed}",
        )
        for d in sizes["d"]
        for lr in ("1e-2", "1e-1")
        for seed in (1, 2)
    ]
    folder = test_plot.sweep(tmp_path / "predict_logits", *runs, experiment="predict_logits")
    for run in runs:
        early = dict(max_attn_logit_0=run["d"] * float(run["lr"]))
        test_plot.logged(Path(folder), run, {6: early}, [*early])
    figures, small, smaller = (tmp_path / name for name in ("figures", "small", "smaller"))
    assert test_plot.plot.main([folder, "-o", str(figures)]) == 0
    (whole,) = figures.iterdir()

    figures.chmod(0o555)
    before = snapshot(figures)
    result = subprocess.run(
        [
            "setpriv",
            "--bounding-set=-dac_override",
            sys.executable,
            REPO / "plot.py",
            folder,
            "-o",
            figures,
        ],
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (1, f"plot.py: {whole}: Permission denied\n")
    assert snapshot(figures) == before
    with small_disk(small, "size=8k"):
        target = small / whole.name
        target.write_bytes(b"an older one, by matplotlib.org")
        before = snapshot(small)
        capsys.readouterr()
        assert test_plot.plot.main([folder, "-o", str(small)]) == 1
        assert capsys.readouterr().err == f"plot.py: {target}: No space left on device\n"
        assert snapshot(small) == before
    with small_disk(smaller, "size=16k"):
        test_plot.sweep(smaller, *runs, experiment="predict_logits")
        for run in runs:
            (smaller / run["out"]).symlink_to(Path(folder) / run["out"])
        before = snapshot(smaller)
        result = subprocess.run(
            [sys.executable, REPO / "predict.py", smaller], capture_output=True, text=True
        )
        error = f"predict.py: {smaller}/prediction.csv: No space left on device\n"
        assert (result.returncode, result.stderr) == (1, error)
        assert snapshot(smaller) == before
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, REPO / "plot.py", "table", folder],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (result.returncode, result.stderr) == (
        1,
        "plot.py: its output: No space left on device\n",
    )


# ---------------------------------------------------------------------------
# The data goes away


@pytest.fixture(scope="module")
def text():
    return (
        np.random.default_rng(0).choice(np.frombuffer(b"to be or not", np.uint8), 100000).tobytes()
    )


@pytest.fixture(scope="module")
def undisturbed_text(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("text")
    (folder / "book.txt").write_bytes(text)
    assert (
        program(*words({**TINY, **FLAGS}), "-data", "book.txt", "-out", "x", cwd=folder).returncode
        == 0
    )
    return folder / "x"


def test_data_deleted_during_a_run(tmp_path, text, undisturbed_text):
    (tmp_path / "book.txt").write_bytes(text)
    process = begin(tmp_path / "x", data="book.txt")
    wait(process, lambda: saved(tmp_path / "x"))
    (tmp_path / "book.txt").unlink()
    # it is mapped, and its disk space kept until the end
    assert (process.communicate()[1], process.returncode) == ("", 0)
    assert_same_run(tmp_path / "x", undisturbed_text)


def test_data_cut_short_during_a_run_and_gone_before_the_next(tmp_path, text, undisturbed_text):
    folder, book = tmp_path / "x", tmp_path / "book.txt"
    book.write_bytes(text)
    process = begin(folder, data="book.txt")
    wait(process, lambda: saved(folder))
    os.truncate(book, 5000)
    assert_one_line(process, "book.txt: cannot be read any more", "cut short")
    for spoil in (book.unlink, lambda: book.write_bytes(b"")):
        spoil()
        before = snapshot(folder)
        assert_one_line(start(folder, "-resume"), "book.txt")
        assert snapshot(folder) == before
    book.write_bytes(text)
    go_on(folder, undisturbed_text)


def test_a_wrong_token_where_nobody_looked_first(tmp_path):
    """Only the first 2^24 tokens are looked at before training; the rest when it is drawn."""
    looked_at, more = 2**24, 2**21
    with open(tmp_path / "book.txt", "wb") as file:
        file.seek(looked_at)
        file.write(b"\xc8" * (more // 16))  # within the nine tenths that are trained on
        file.truncate(looked_at + more)
    process = begin(tmp_path / "x", data="book.txt", vocab=100, checkpoint_every=10, log_every=1)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and err.count("\n") == 1
    place = int(err.split("book.txt: token 200 at position ")[1].split()[0])
    assert looked_at <= place < looked_at + more // 16
    step = int(metadata(tmp_path / "x")["step"])
    assert 0 <= survive.last_step(survive.rows((tmp_path / "x/log.csv").read_text())) - step < 10
    os.truncate(tmp_path / "book.txt", looked_at)
    os.truncate(tmp_path / "book.txt", looked_at + more)  # zeros there too
    go_on(tmp_path / "x")
    train(tmp_path / "y", **FLAGS, data=tmp_path / "book.txt", vocab=100)
    assert summary(tmp_path / "x")["final_loss"] == summary(tmp_path / "y")["final_loss"]


# ---------------------------------------------------------------------------
# Signals (SIGINT, SIGTERM and SIGHUP to a run: test_runs.py; to a sweep: test_sweep.py)


def test_stopped_and_continued(tmp_path, undisturbed):
    process = begin(tmp_path / "x")
    for _ in range(3):
        time.sleep(0.1)
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.1)
        process.send_signal(signal.SIGCONT)
    assert (process.communicate()[1], process.returncode) == ("", 0)
    assert_same_run(tmp_path / "x", undisturbed)


@pytest.mark.parametrize(
    "ignoring, number",
    [
        (["nohup"], signal.SIGHUP),
        (["sh", "-c", "trap '' INT; exec \"$@\"", "sh"], signal.SIGINT),
    ],
    ids=["nohup", "trap"],
)
def test_an_ignored_signal_stays_ignored(tmp_path, undisturbed, ignoring, number):
    process = subprocess.Popen(
        [*ignoring, PROGRAM, *words({**TINY, **FLAGS}), "-out", tmp_path / "x"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    wait(process, lambda: saved(tmp_path / "x"))
    process.send_signal(number)
    process.communicate()
    assert process.returncode == 0
    assert_same_run(tmp_path / "x", undisturbed)


@pytest.mark.parametrize("lr", ["1e-2", "1e-2,1e-3"])
def test_nobody_reads_its_output(tmp_path, lr):
    """As with `| head -1`: it stops at the next line that it has to say, and can be gone on
    with."""
    folder, flags = tmp_path / "x", {**TINY, **FLAGS, "lr": lr, "eval_every": 10}
    process = start(folder, *words(flags))
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert (
        process.wait() == 128 + signal.SIGPIPE
        and "stopped" in err
        and ("start the sweep again" if "," in lr else "go on with") in err
        and err.count("\n") == 2 + ("go on with" in err)
    ), err
    if "," in lr:  # a sweep starts again
        train(folder, **flags)
    else:
        result = program("-resume", "-out", "x", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    train(tmp_path / "y", **flags)
    for path in folder.glob("lr*") if "," in lr else [folder]:
        assert_same_run(path, tmp_path / "y" / path.relative_to(folder))


def test_nobody_reads_a_sweeps_output(tmp_path):
    out, flags = tmp_path / "x", FEW[:-1] + ["1e-2"]
    process = subprocess.Popen(
        command(out, flags=flags),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait() == 141 and "stopped; go on with: " in err, err
    until(lambda: not processes(str(out)), 20)
    sweep(out, flags=flags)
    sweep(tmp_path / "wanted", flags=flags)
    assert_same_sweep(out, tmp_path / "wanted")


# ---------------------------------------------------------------------------
# Memory: a container's limit counts, not only the machine's


@pytest.mark.parametrize(
    "limits, free",
    [
        ({"memory.max": "3000000", "memory.stat": "anon 1000000\nfile 9999999"}, 2e6),
        ({"memory.max": "max", "memory.stat": "anon 1000000"}, None),
        (
            {"memory.max": "3000000"},
            None,
        ),  # a limit, and nothing that says what of it is used
    ],
)
def test_limit_of_a_container(tmp_path, limits, free):
    for name, value in limits.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value + "\n")
    unshare = ["unshare", "--mount"] + ([] if ROOT else ["--map-root-user"])
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip(
            "this machine gives no mount namespace, in which a container's files could be shown"
        )
    result = subprocess.run(
        [
            *unshare,
            "sh",
            "-c",
            'mount --bind "$0/cgroup" /sys/fs/cgroup && exec "$@"',
            tmp_path,
            PROGRAM,
            "-steps",
            "1",
            "-out",
            tmp_path / "x",
        ],
        capture_output=True,
        text=True,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
    )
    if free is None:
        assert result.returncode == 0, result.stderr
    else:
        assert (
            result.returncode == 1
            and f"GB of memory and {1e-9 * free:.3g} GB are free" in result.stderr
        ), result.stderr
        assert not (tmp_path / "x").exists()
