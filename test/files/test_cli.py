"""The command line: what a wrong one says and leaves alone, and what each form of a right one does.

Whatever is wrong, the trainer writes one line that names it and changes no file; exit status 2 for
the command, 1 for the rest. Damaged checkpoints are in test_checkpoint.py, damaged data in
test_data.py."""

import collections
import csv
import math
import os
import re
import resource
import shlex
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

REPO = Path(__file__).resolve().parents[2]
PROGRAM = os.environ.get("TRAIN_GPT", str(REPO / "train_gpt"))
NAME = Path(PROGRAM).name  # messages begin with it
TINY = dict(lr="1e-2", d=16, layers=1, heads=2, T=8, batch=2, steps=30, eval_tokens=64)


def words(flags):
    """A text, or a dict of flags, as the words of a command line; words stay as they are."""
    if isinstance(flags, dict):
        return [str(word) for name, value in flags.items() for word in ("-" + name, value)]
    return shlex.split(flags) if isinstance(flags, str) else flags


def program(*arguments, cwd, threads=1, **options):
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads))
    return subprocess.run(
        [PROGRAM, *arguments],
        cwd=cwd,
        env=environment,
        timeout=900,  # a busy machine takes that long
        capture_output=True,
        stdin=subprocess.DEVNULL,
        **{"text": True, **options},
    )


def train(folder, status=0, threads=1, **flags):
    """Runs the tiny model with these flags; folder is then -out. Returns what it printed."""
    result = program(
        *words({**TINY, **flags}), "-out", str(folder), cwd=Path(folder).parent, threads=threads
    )
    assert result.returncode == status, result.stderr + result.stdout
    return result.stdout


def table(path):
    """A CSV file's rows as dicts of text."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(None not in row and None not in row.values() for row in rows), (
        f"{path}: a row of another length"
    )
    return rows


def log(folder):
    """log.csv as a dict of columns; an empty cell is NaN."""
    rows = table(Path(folder) / "log.csv")
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}


def summary(folder):
    (row,) = table(Path(folder) / "summary.csv")
    return row


def snapshot(folder):
    return {
        p: (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else None)
        for p in sorted(Path(folder).rglob("*"))
    }


@pytest.fixture
def folder(tmp_path):
    """A folder with a finished run, a text and what else a command may stumble over."""
    train(tmp_path / "run", steps=2)
    (tmp_path / "book.txt").write_bytes(b"to be or not to be, that is the question\n" * 20)
    (tmp_path / "file").write_text("in the way")
    return tmp_path


def assert_refused(folder, arguments, status, says):
    before = snapshot(folder)
    result = program(*words(arguments), cwd=folder)
    assert result.returncode == status, (result.returncode, result.stdout, result.stderr)
    assert (
        result.stderr.startswith(f"{NAME}: ")
        and result.stderr.count("\n") == 1
        and result.stderr.endswith("\n")
    )
    assert not [word for word in says.split(" | ") if word not in result.stderr], result.stderr
    assert snapshot(folder) == before


# ---------------------------------------------------------------------------
# The help, and what is derived from it


def flag_table(tmp_path):
    """name -> (default, range, section) as -h prints them."""
    lines = program("-h", cwd=tmp_path).stdout.splitlines()
    head = next(line for line in lines if line.startswith("flag "))
    section, accepted = head.index("paper"), head.index("range")
    rows = {}
    for line in lines:
        if line.startswith("-"):
            name, default = line[1:section].split(" ", 1)
            values = line[accepted:].split("  ")[0]  # two spaces before the meaning
            rows[name] = default.strip(), values, line[section:accepted].strip()
    return rows


SECTIONS = dict(
    qk_norm="3.1.1",
    z_loss="3.1.2",
    bf16_logits="3.1.2",
    warmup="3.2.1",
    wd="3.2.2",
    wd_independent="3.2.2",
    d="3.2.3",
    layers="3.2.3",
    heads="3.2.3",
    mu_param="3.2.4",
    base_d="3.2.4",
    scale="E.6",
    rms_lr="E.14",
    kappa="3.3",
    attention="E.11",
    eps="3.4",
    beta2="ours",
    clip="ours",
    batch="E.9",
    steps="E.7",
    schedule="ours",
    attn_cap="later",
    qk_clip="later",
    optimizer="later",
    gate="later",
    peri_ln="later",
    cautious="later",
)
DEFAULTS = dict(
    qk_norm="1",
    z_loss="1e-4",
    warmup="5%",
    wd="1e-4",
    wd_independent="1",
    mu_param="off",
    scale="sqrt",
    rms_lr="0",
    kappa="0",
    attention="softmax",
    eps="1e-8",
    clip="1",
    beta1="0.9",
    beta2="0.95",
    min_lr="1e-5",
    data="synthetic",
    schedule="cosine",
    eval="0",
    attn_cap="0",
    qk_clip="0",
    optimizer="adamw",
    gate="0",
    peri_ln="0",
    cautious="0",
)
RANGES = dict(
    eps=">= 1e-30",
    clip=">= 0",
    wd=">= 0",
    z_loss=">= 0",
    min_lr=">= 0",
    beta1="0 <= x < 1",
    beta2="0 <= x < 1",
    qk_norm="0 1 model",
    wd_independent="0 .. 1",
    mu_param="off simple intermediate full",
    scale="sqrt d_h",
    rms_lr="0 .. 1",
    layers="0 .. 1024",
    kappa=">= 0",
    attention="softmax relu2",
    temperature=">= 0",
    schedule="cosine constant wsd",
    attn_cap="0 .. 10000",
    qk_clip=">= 0",
    optimizer="adamw muon",
    gate="0 .. 1",
    peri_ln="0 .. 1",
    cautious="0 .. 1",
    eval="0 .. 1",
    init="FILE",
    prompt="TEXT",
    tokenizer="FILE",
)
FLAGS = """lr d layers heads T batch steps warmup schedule optimizer min_lr beta1 beta2 eps clip wd
    wd_independent cautious rms_lr qk_norm kappa attn_cap qk_clip gate peri_ln z_loss bf16_logits
    mu_param base_d scale attention seed data val init vocab eval_tokens eval_every log_every
    checkpoint_every micro_batch resume eval sample prompt tokenizer temperature out""".split()
MAY_BE_EMPTY = "val init prompt tokenizer out".split()


@pytest.mark.parametrize("flag", ["-h", "-help", "--help", "-d 7 -h"])
def test_help_lists_every_flag(tmp_path, flag):
    result = program(*flag.split(), cwd=tmp_path)
    assert (result.returncode, result.stderr, list(tmp_path.iterdir())) == (0, "", [])
    rows = flag_table(tmp_path)
    assert sorted(rows) == sorted(FLAGS)
    assert all(default for name, (default, _, _) in rows.items() if name not in MAY_BE_EMPTY)
    assert all(accepted for _, accepted, _ in rows.values())
    lines = result.stdout.replace(PROGRAM, "./train_gpt").splitlines()
    assert max(map(len, lines)) <= 80
    assert {name: rows[name][2] for name in SECTIONS} == SECTIONS
    assert {name: rows[name][0] for name in DEFAULTS} == DEFAULTS
    assert {name: rows[name][1] for name in RANGES} == RANGES


def test_every_flag_refuses_what_is_outside_its_range(tmp_path):
    tried = 0
    for name, (_, accepted, _) in flag_table(tmp_path).items():
        if match := re.fullmatch(r"(\S+) \.\. (\S+)", accepted):
            bad = [str(int(match[1]) - 1), str(int(float(match[2])) + 1), "1e99"]
            bad += ["1.5"] * (name != "attn_cap")  # a real number
        elif match := re.fullmatch(r">= (\S+)", accepted):
            # of eps: 1e-60 is 0 in a float, and 0/0 AdamW's first update
            bad = ["-1e-9"] + ["0", "1e-60"] * (match[1] != "0")
        elif accepted == "0 <= x < 1":
            bad = ["-1e-9", "1"]
        else:
            continue
        for value in bad + ["nan", "inf", "-1e400", "", "x", "1x", " 1", "1 ", "1,5"]:
            assert_refused(tmp_path, [f"-{name}", value], 2, f"-{name} | {accepted}")
            tried += 1
    assert tried > 250


# ---------------------------------------------------------------------------
# Wrong commands


@pytest.mark.parametrize(
    "arguments, says",
    [
        ("-layer 2", "-layer is not | -layers"),
        ("-qknorm 0", "-qknorm is not | -qk_norm"),
        ("-Steps 3", "-Steps is not | -steps"),
        ("-lrr", "-lrr is not a flag (-h lists all)"),
        ("-learning_rate 1e-3", "-learning_rate is not | it is called -lr here"),
        ("-learning-rate 1e-3", "-learning-rate is not | it is called -lr here"),
        ("-weight_decay 0.1", "it is called -wd here"),
        ("-max_iters 100", "it is called -steps here"),
        ("-n_embd 64", "it is called -d here"),
        ("-dropout 0.1", "-dropout is not a flag: this model does not have it"),
        ("-" + "x" * 300, "is not a flag"),
        ("book.txt", "book.txt | is not a flag"),
        ("-lr 1e-2 1e-3", "1e-3 | is not a flag"),
        ("--lr 1e-2", "--lr | -lr"),
        ("- 3", "'-' is not a flag"),
        ("'' 3", "is not a flag"),
        ("-d", "-d needs a value"),
        ("-d -lr 1e-2", "-d needs a value"),
        ("-out", "-out needs a value"),
        ("-data -T 3", "-data needs"),
        ("-data 'a\tb'", "-data | control character"),
        ("-mu_param most", "-mu_param | 'most' | one of: off simple intermediate full"),
        ("-qk_norm 2", "-qk_norm | '2' | one of: 0 1 model"),
        ("-attention relu", "-attention | 'relu' | one of: softmax relu2"),
        ("-mu_param fuller", "-mu_param | 'fuller'"),
        ("-mu_param ''", "-mu_param"),
        ("-mu_param 'off simple'", "-mu_param"),
        ("-heads 3 -d 16", "-heads | 3 heads | -d 16"),
        ("-heads 32 -d 16", "-heads | 32"),
        ("-T 65536 -batch 65536", "-batch | 65536 | 2^31"),
        ("-T 65536 -batch 16384 -heads 2", "2^31"),
        ("-heads 2 -d 18", "9 | odd | even"),
        ("-kappa 3", "-kappa 3 | qk-norm | add -qk_norm 0"),
        ("-qk_clip 30", "-qk_clip 30: qk-norm gives q and k their size | add -qk_norm 0\n"),
        ("-qk_clip 9 -qk_norm model", "-qk_clip 9: qk-norm | whatever their | add -qk_norm 0\n"),
        ("-attn_cap 1e-31", "-attn_cap 1e-31 | expected 0, or at least 1e-30"),
        ("-qk_norm 0 -qk_clip 1e-300", "-qk_clip 1e-300 | expected 0, or at least 1e-30"),
        ("-qk_norm 0 -kappa 1e-40", "-kappa 1e-40 | expected 0, or at least 1e-30"),
        ("-qk_clip 30 -qk_norm 0 -kappa 3", "-qk_clip 30: -kappa gives | add -kappa 0\n"),
        ("-optimizer adam", "-optimizer | 'adam' | one of: adamw muon"),
        ("-gate 2", "-gate | '2' | 0 .. 1"),
        ("-heads 16 -d 16", "odd"),
        *[
            (f"-steps 30 -warmup '{x}'", "-warmup | from 0 to 30 | 100%")
            for x in "31 -1 1.5 101% -1% nan nan% inf% x 5%% 5x % 1e99%".split() + ["", "5 %"]
        ],
        *[
            (f"-lr '{x}'", "-lr")
            for x in (
                "0 -1e-3 nan inf 1e-400 1e400 x 1e-2x 1e-2, ,1e-2 1e-3,,1e-2 1e-3,x 1:2:3 : :1 1:"
                " 1,2:3 1;2".split()
                + ["", " 1e-2", "1e-3, 1e-2", ",".join(["1e-3"] * 65)]
            )
        ],
        ("-lr 1e-1:1e-3", "-lr | '1e-1:1e-3' | smaller first"),
        ("-lr 1e-3:1e-3", "smaller first"),
        ("-lr 1e-30:1e30", "-lr | 64"),
        ("-lr 0.00100000000000", "-lr | '0.00100000000000' | at most 15 characters"),
        ("-lr 1e-3,0.001", "-lr | '0.001' is given twice"),
        ("-sample 5 -lr 1e-3,1e-2", "-sample"),
        ("-sample 5 -lr", "-sample"),
        ("-resume -lr 1e-3,1e-2 -out x", "-resume | -resume -out x/lr1e-3; | sweep.sh"),
        ("-resume -lr 1e-3,1e-2 -out 'a x'", "-resume -out 'a x/lr1e-3';"),
        ("-resume -lr", "-resume | lr3e-4 | sweep.sh"),
        ("-sample 1e10", "-sample"),
        ("-eval -lr 1e-3,1e-2", "-eval: name one learning rate"),
        ("-eval -sample 5", "-sample, -eval and -resume: give one"),
        ("-resume -sample 5", "-sample, -eval and -resume: give one"),
        ("-resume -eval", "-sample, -eval and -resume: give one"),
        ("-sample 0 -out run", "-sample 0: would write nothing"),
        ("-prompt abc", "-prompt: goes with -sample"),
        ("-tokenizer x.bin", "-tokenizer: goes with -sample"),
        ("-sample 5 -prompt 'a\nb'", "-prompt | control character"),
        ("-schedule linear", "-schedule | 'linear' | one of: cosine constant wsd"),
        ("-lr_scheduler_type linear", "it is called -schedule here"),
        ("-lr 1e-2 -out " + "x" * 600, "-out"),
        ("-sample 1 -out " + "x" * 500, "longer than 511 characters: xxx"),
        ("-steps 1 -out " + "a/" * 250 + "abcde", "longer than 511 characters: a/a"),
    ],
)
def test_wrong_command(tmp_path, arguments, says):
    assert_refused(tmp_path, arguments, 2, says)


def test_names_of_other_programs_lead_to_flags(tmp_path):
    """Each name of the table to a flag that -h lists, or to none."""
    names = re.findall(r'\{"(\w+)", (?:"(\w+)"|NULL)\}', (REPO / "lib/flags.h").read_text())
    assert len(names) > 30 and not {theirs for theirs, _ in names} & set(FLAGS)
    for theirs, ours in names:
        says = f"it is called -{ours} here" if ours in FLAGS else "this model does not have it"
        assert ours in ("", *FLAGS)
        assert_refused(tmp_path, f"-{theirs} 1", 2, f"-{theirs} is not a flag | {says}")


@pytest.mark.parametrize(
    "arguments, says",
    [
        ("-mu_param simple -base_d 16", ["-mu_param has no effect where -d is -base_d"]),
        ("-mu_param intermediate -base_d 16", ["-mu_param has no effect where -d is -base_d"]),
        ("-mu_param full -base_d 16", []),
        ("-mu_param simple -base_d 8", []),
        ("-mu_param simple", []),
        ("-base_d 32", ["-base_d has no effect without -mu_param"]),
        ("-base_d 8 -mu_param off", ["-base_d has no effect without -mu_param"]),
        (
            "-mu_param full -scale sqrt",
            ["-scale has no effect with -mu_param full, which has d_h"],
        ),
        ("-mu_param simple -base_d 8 -scale d_h", []),
        ("-wd 0 -wd_independent 0", ["-wd_independent has no effect with -wd 0"]),
        ("-wd_independent 0", []),
        ("-wd 0 -cautious 1", ["-cautious has no effect with -wd 0"]),
        ("-cautious 1", []),
        ("-qk_norm 0 -qk_clip 3 -attn_cap 30 -gate 1 -peri_ln 1 -optimizer muon", []),
        ("-warmup 100% -min_lr 1e-3", ["-min_lr has no effect where warm-up takes all steps"]),
        ("-min_lr 1e-3", []),
        ("-min_lr 1e-3 -schedule constant", ["-min_lr has no effect with -schedule constant"]),
        ("-min_lr 1e-3 -schedule wsd", []),
        ("-bf16_logits 1", []),
        (
            "-layers 0 -heads 1 -qk_norm 0 -kappa 3 -scale d_h -attention relu2",
            [
                f"-{name} has no effect without layers"
                for name in "heads qk_norm kappa scale attention".split()
            ],
        ),
        (
            "-layers 0 -qk_norm 0 -attn_cap 30 -qk_clip 30 -gate 1 -peri_ln 1 -optimizer muon",
            [
                f"-{name} has no effect without layers"
                for name in "heads qk_norm attn_cap qk_clip gate peri_ln optimizer".split()
            ],
        ),
        ("-temperature 0.5", ["-temperature has no effect without -sample"]),
        ("-sample 3 -temperature 0.5 -out run", []),
        ("-resume -steps 3 -out run", []),
        (
            "-lr 1e-3,1e-2 -base_d 32 -temperature 2",
            [
                "-base_d has no effect without -mu_param",
                "-temperature has no effect without -sample",
            ],
        ),
    ],
)
def test_a_flag_without_effect_is_named(folder, arguments, says):
    """In one line each, and the command goes on."""
    fresh = not {"-resume", "-sample", "-eval"} & set(words(arguments))
    flags = words({**TINY, "steps": 2} if fresh else {}) + words(arguments)
    result = program(*flags, cwd=folder, text=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr.decode().splitlines() == [f"{NAME}: note: {line}" for line in says]


@pytest.mark.parametrize(
    "arguments, says",
    [
        ("-data nothing.txt", "nothing.txt | No such file"),
        ("-data .", ".: is a directory"),
        ("-data book.txt -val nothing.txt", "nothing.txt"),
        ("-data book.txt -T 500", "book.txt | too short | -T 500"),
        ("-data book.txt -T 83", "book.txt | last tenth | -T 83"),
        ("-data book.txt -vocab 100 -out run", "book.txt | token 1 | -vocab"),
        ("-data file -vocab 1", "file"),
        ("-resume -out nothing", "nothing/model.safetensors | no saved model | nothing/lr1e-2"),
        ("-sample 5 -out nothing", "nothing/model.safetensors | no saved model"),
        ("-eval -out nothing", "nothing/model.safetensors | no saved model"),
        ("-eval -out run -data nothing.txt", "nothing.txt | No such file"),
        ("-eval -out run -data book.txt -T 500", "book.txt | too short | -T 500"),
        ("-eval -out run -d 32", "run/model.safetensors | shape | leave them out"),
        ("-sample -out run -init run/model.safetensors", "-init run/model.safetensors | leave out"),
        ("-data ''", "-data: is empty | synthetic"),
        ("-init nothing", "nothing | No such file"),
        ("-init run", "run is a folder | model.safetensors"),
        ("-init book.txt", "book.txt | not a safetensors file"),
        ("-init run/model.safetensors -out run", "replace this file | another -out"),
        ("-resume", "runs/default/model.safetensors"),
        ("-sample", "runs/default/model.safetensors"),
        ("-resume -out run -d 32", "run/model.safetensors | shape | leave them out"),
        ("-sample 5 -out run -layers 2", "run/model.safetensors | h.1. | leave them out"),
        ("-resume -out run -gate 1", "no tensor h.0.attn.gate.weight | -gate | leave them out"),
        ("-eval -out run -peri_ln 1", "no tensor h.0.post_1.weight | -peri_ln | leave them out"),
        ("-resume -out run -steps 1", "run/model.safetensors | 2 steps | -steps 1"),
        ("-out file", "file | folder"),
        ("-out file/run", "file/run | Not a directory"),
        ("-out /dev/null/run", "/dev/null/run"),
        ("-out /proc/run", "/proc/run"),
        ("-d 65536 -layers 1000 -heads 64 -out new", "GB | -d"),
        ("-T 65536 -batch 16000 -out new", "GB | -T | -batch"),
        ("-batch 65536 -T 4096 -layers 1024 -out new", "GB | -layers"),
    ],
)
def test_what_cannot_be_done(folder, arguments, says):
    fresh = not {"-resume", "-sample", "-eval", "-init"} & set(words(arguments))
    # what comes last counts
    assert_refused(folder, words(TINY if fresh else {}) + words(arguments), 1, says)


@pytest.mark.parametrize(
    "arguments, says",
    [
        ("-data nothing.txt", "nothing.txt"),
        ("-data book.txt -T 500", "-T 500"),
        ("-data book.txt -vocab 100", "book.txt | token 1 | -vocab"),
        ("-d 65536 -layers 1000 -heads 64", "GB | -d"),
        ("-out file", "file | folder"),
    ],
)
@pytest.mark.parametrize("out", ["new", "run"])
def test_what_no_run_of_a_sweep_can_do_is_said_once(folder, arguments, says, out):
    assert_refused(
        folder, words({**TINY, "lr": "1e-3,1e-2,1e-1", "out": out}) + words(arguments), 1, says
    )


without_sanitizer = pytest.mark.skipif(
    Path(PROGRAM).exists() and b"__asan" in Path(PROGRAM).read_bytes(),
    reason="AddressSanitizer needs terabytes of addresses",
)


def little_memory():
    resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))


@without_sanitizer
@pytest.mark.parametrize("size", ["-d 1024 -layers 12 -heads 16", "-d 768 -layers 14 -heads 12"])
def test_memory_that_a_limit_denies(tmp_path, size):
    result = program(*words(size), "-out", "new", cwd=tmp_path, preexec_fn=little_memory)
    assert (
        result.returncode == 1
        and result.stderr.count("\n") == 1
        and re.search(r"\d [MG]B.* -d", result.stderr)
    )
    assert list(tmp_path.iterdir()) == []


@without_sanitizer
def test_data_that_a_limit_denies(tmp_path):
    with open(tmp_path / "book.txt", "wb") as file:
        file.truncate(2**36)
    result = program("-data", "book.txt", "-out", "new", cwd=tmp_path, preexec_fn=little_memory)
    assert result.returncode == 1 and re.fullmatch(
        NAME + r": book.txt: cannot map its 68719476736 bytes .*: give smaller files\n",
        result.stderr,
    ), result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["book.txt"]


# ---------------------------------------------------------------------------
# Right commands


HALF_DECADES = "3e-4 1e-3 3e-3 1e-2 3e-2 1e-1 3e-1 1".split()


@pytest.mark.parametrize(
    "lr, runs",
    [
        ([], HALF_DECADES),
        (["3e-4:1"], HALF_DECADES),
        (["3e-4:3e-1"], HALF_DECADES[:-1]),
        (["1e-3,1e-2"], ["1e-3", "1e-2"]),
        (["1e-2,1e-3,0.5"], ["1e-2", "1e-3", "0.5"]),
        (["0.002:0.05"], ["0.002", "3e-3", "1e-2", "3e-2", "0.05"]),
        (["0.5:40"], ["0.5", "1", "3", "10", "30", "40"]),
        (["1e-2:2e-2"], ["1e-2", "2e-2"]),
        (["0.0003:0.001"], ["0.0003", "0.001"]),
    ],
)
def test_learning_rates_of_a_sweep(tmp_path, lr, runs):
    flags = {k: v for k, v in TINY.items() if k != "lr"}
    result = program(
        "-lr", *lr, *words({**flags, "steps": 1}), "-out", "x", cwd=tmp_path, threads=4
    )
    assert (result.returncode, result.stderr) == (0, "")
    runs = [float(x) for x in runs]
    assert [float(row["lr"]) for row in table(tmp_path / "x" / "summary.csv")] == pytest.approx(
        runs, rel=1e-12
    )
    assert sorted(float(log(p)["lr"][1]) for p in (tmp_path / "x").glob("lr*")) == pytest.approx(
        [1e-5] * len(runs), rel=1e-6
    )


@pytest.mark.parametrize("lr", ["1e-2", "0.01", "3e-2", "7"])
def test_one_learning_rate_is_one_run(tmp_path, lr):
    train(tmp_path / "x", lr=lr, steps=3)
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == [
        "log.csv",
        "model.safetensors",
        "summary.csv",
    ]
    assert float(summary(tmp_path / "x")["lr"]) == float(lr)


@pytest.mark.parametrize(
    "flags, warmup",
    [
        (dict(), 2),
        (dict(warmup=7), 7),
        (dict(warmup="20%"), 6),
        (dict(warmup="0"), 0),
        (dict(warmup="0%"), 0),
        (dict(warmup="100%"), 30),
        (dict(warmup=29), 29),
        (dict(min_lr=0), 2),
        (dict(min_lr=1), 2),
        (dict(steps=1, warmup=0), 0),
        (dict(steps=7, warmup="50%"), 4),
    ],
)
def test_schedule(tmp_path, flags, warmup):
    """Linear warm-up from 0, then a cosine that ends in min_lr at the last step."""
    train(tmp_path / "x", log_every=1, **flags)
    peak, steps = 1e-2, flags.get("steps", 30)
    end = min(peak, flags.get("min_lr", 1e-5))
    wanted = [
        (
            peak * s / warmup
            if s < warmup
            else end
            + (peak - end) * (1 + math.cos(math.pi * (s - warmup) / max(1, steps - warmup))) / 2
        )
        for s in range(1, steps + 1)
    ]
    assert log(tmp_path / "x")["lr"][1:] == pytest.approx(wanted, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    "flags, name",
    [
        ("", "default"),
        ("-lr 3e-2 -qk_norm 0", "lr3e-2_qk_norm0"),
        ("-d 64 -eps 0.00000001 -qk_norm 1", "default"),
        ("-eps 1e-6", "eps1e-06"),
        ("-mu_param full -warmup 1%", "warmup1-_mu_paramfull"),
        ("-data '../texts/a book.txt'", "datatexts-a-book.txt_"),
    ],
)
def test_default_folder(tmp_path, flags, name):
    """Named by what differs from the defaults, always one folder below runs/."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a book.txt").write_bytes(b"to be or not " * 100)
    (tmp_path / "x").mkdir()
    result = program(
        *words(flags),
        "-steps",
        "1",
        "-T",
        "8",
        "-batch",
        "1",
        "-eval_tokens",
        "8",
        cwd=tmp_path / "x",
    )
    (made,) = (tmp_path / "x" / "runs").iterdir()
    assert result.returncode == 0 and (made / "model.safetensors").exists()
    assert result.stdout.startswith(f"runs/{made.name}:\n")
    rest = (
        made.name.replace("_T8_batch1_steps1", "")
        .replace("T8_batch1_steps1", "")
        .replace("_eval_tokens8", "")
        .lstrip("_")
    )
    assert re.fullmatch(r"[\w.-]+", made.name) and (rest or "default").startswith(name), made.name


# commands that differ, and that easily share a folder's name
DIFFERENT = [
    *("-data en/train.txt", "-data fr/train.txt", "-data ./en/train.txt", "-data en.train.txt"),
    *("-data en-train.txt", "-data a/en/train.txt", "-data b/en/train.txt", "-data 'en train.txt'"),
    *("-data en_train.txt", "-data 'en*train.txt'", "-data EN-train.txt", "-data en-train.txt/"),
    *("-data a -vocab 300", "-data a_vocab300", "-data A", "-data a", "-data a -val b"),
    *("-data a_valb", "-data ''", "-val ä", "-val ö"),
    *("-eps 1e-20", "-eps 1e20", "-warmup 1", "-warmup 1%", ""),
    *("-lr 1e-3,1e-2", "-lr 1e-3:1e-2", "-lr 1e-3", "-lr 0.001"),
    *(f"-data {'x' * 300}{end} -d 32" for end in "ab"),
    *(f"-data {'x/' * 240}{end} -val {'y/' * 240}{end}" for end in "ab"),
    *(f"-data {'x' * 180} -seed {seed}" for seed in (10**8, 10**8 + 1)),
]


def test_commands_that_differ_share_no_folder(tmp_path):
    """Nor on a file system that does not tell capitals from small letters. What -resume misses
    names the folder."""
    names = set()
    for flags in DIFFERENT:
        said = program("-resume", *words(flags), cwd=tmp_path).stderr
        missed = r" runs/([\w.+,-]+)/(?:model.safetensors: no saved model|lr1e-3;)"
        name = re.search(missed, said)[1]
        assert len(name) <= 240
        names.add(name.lower())
    assert len(names) == len(DIFFERENT)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_shows_the_end_of_a_path(tmp_path):
    said = program("-resume", "-data", "/a/long/way/to/en/train.txt", cwd=tmp_path).stderr
    assert re.search(r"runs/dataen-train.txt_[0-9a-f]{8}/model", said)


@pytest.mark.parametrize("lr", ["1e-2", "1e-2,1e-3"])
@pytest.mark.parametrize(
    "name, content",
    [
        ("model.safetensors", b'\x40\0\0\0\0\0\0\0{"__metadata__":{"format":"pt"}}' + b" " * 99),
        ("model.safetensors", b"not one at all"),
        ("log.csv", b"step,loss\n1,5.5\n"),
        ("log.csv", b"\0" * 100),
        ("summary.csv", b"name,score\n"),
        ("log.csv.new", b"somebody's"),
        ("model.safetensors.new", b"somebody's"),
        ("summary.csv.tmp", b"somebody's"),
        ("model.safetensors.tmp", b"somebody's"),
        ("model.safetensors.new.tmp", b"somebody's"),
    ],
)
def test_files_of_others_are_refused(folder, name, content, lr):
    """Beside our own files too, and by a sweep."""
    for out in "run", "new":
        (folder / out).mkdir(exist_ok=True)
        (folder / out / name).write_bytes(content)
        says = f"{out}/{name}: this program did not write it | choose another -out"
        assert_refused(folder, words({**TINY, "lr": lr, "out": out}), 1, says)


@pytest.mark.parametrize("command", [dict(eval=1), dict(sample=9), dict(resume=1, steps=9)])
def test_a_command_on_a_saved_model_replaces_nothing_of_others(folder, command):
    (folder / "run/model.safetensors.new").write_text("somebody's")
    says = "run/model.safetensors.new: this program did not write it"
    flags = " ".join(f"-{name} {value}" for name, value in command.items())
    assert_refused(folder, words(f"{flags} -out run"), 1, says)


def test_a_file_behind_a_link_stays(folder):
    """Even one that this program wrote: of another run."""
    (folder / "new").mkdir()
    content = (folder / "run/summary.csv").read_bytes()
    (folder / "new/summary.csv.tmp").symlink_to("../run/summary.csv")
    train(folder / "new", steps=2)
    assert (folder / "run/summary.csv").read_bytes() == content
    assert not (folder / "new/summary.csv").is_symlink()


def test_a_run_of_a_sweep_whose_folder_has_a_file_of_others(folder):
    (folder / "new/lr1e-2").mkdir(parents=True)
    (folder / "new/lr1e-2/log.csv").write_text("mine\n")
    result = program(*words({**TINY, "lr": "1e-2,1e-3", "out": "new"}), cwd=folder)
    assert result.returncode == 1 and "lr1e-2/log.csv: this program did" in result.stderr
    assert (folder / "new/lr1e-2/log.csv").read_text() == "mine\n"
    assert [row["lr"] for row in table(folder / "new/summary.csv")] == ["1e-3"]


def test_empty_files_and_files_of_other_names_are_no_obstacle(folder):
    for name in "log.csv", "summary.csv", "model.safetensors", "notes.txt":
        (folder / "new").mkdir(exist_ok=True)
        (folder / "new" / name).touch()
    train(folder / "new", steps=2)
    assert (folder / "new/notes.txt").read_bytes() == b"" and summary(folder / "new")[
        "steps"
    ] == "2"


def test_what_is_not_a_file_is_refused(folder):
    for name in "log.csv", "summary.csv", "model.safetensors":
        (folder / name).mkdir()
        assert_refused(folder, words({**TINY, "out": "."}), 1, f"./{name} | choose another -out")
        (folder / name).rmdir()


def test_no_steps(tmp_path):
    """-steps 0 measures the initial model, and leaves what every run leaves."""
    out = train(tmp_path / "x", steps=0)
    assert f"wrote log.csv, summary.csv and model.safetensors to\n{tmp_path}/x\n" in out
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == [
        "log.csv",
        "model.safetensors",
        "summary.csv",
    ]
    row = summary(tmp_path / "x")
    assert row["initial_loss"] == row["final_loss"] and len(log(tmp_path / "x")["step"]) == 1
    train(tmp_path / "x", steps=3, resume=1)
    train(tmp_path / "y", steps=3)
    assert np.array_equal(
        log(tmp_path / "x")["val_loss"], log(tmp_path / "y")["val_loss"], equal_nan=True
    )


# ---------------------------------------------------------------------------
# -sample


def sample(folder, *flags, text=False):
    before = snapshot(folder)
    result = program("-sample", *flags, "-out", str(folder), cwd=folder.parent, text=text)
    assert (result.returncode, len(result.stderr)) == (0, 0), result.stderr
    assert snapshot(folder) == before
    return result.stdout


@pytest.fixture(scope="module")
def book_model(tmp_path_factory):
    home = tmp_path_factory.mktemp("sample")
    (home / "book.txt").write_bytes(b"to be or not to be, that is the question\n" * 50)
    train(home / "run", data=home / "book.txt", steps=300, lr="3e-2", d=32, batch=16)
    return home / "run"


@pytest.mark.parametrize("n", [1, 8, 9, 100])
def test_sample_writes_n_bytes_of_its_text(book_model, n):
    out = sample(book_model, str(n))
    assert len(out) == n + 1 and out[-1:] == b"\n"
    common = sum(c in b"to be or not to be, that is the question\n" for c in out)
    assert common >= 0.9 * n


def test_sample_alone_writes_some(book_model):
    assert len(sample(book_model)) == 201


def test_sample_is_drawn(book_model):
    """The same seed gives the same text, another seed another; temperature 0 the same from every
    seed; a high one noise."""
    hot, cold = ["100", "-temperature", "1"], ["100", "-temperature", "0"]
    assert (
        sample(book_model, *hot)
        == sample(book_model, "100")
        == sample(book_model, *hot, "-seed", "1")
    )
    assert sample(book_model, *hot) != sample(book_model, *hot, "-seed", "2")
    assert sample(book_model, *cold) == sample(book_model, *cold, "-seed", "2")
    assert len(set(sample(book_model, "1000", "-temperature", "1e6"))) > 200


@pytest.mark.parametrize(
    "steps, flags", [(300, {}), (0, {}), (0, dict(gate=1, peri_ln=1, attn_cap=1))], ids=str
)
def test_sample_at_temperature_0_is_the_oracles_likeliest(book_model, tmp_path, steps, flags):
    """Also of a model that was not trained, whose choice depends on all of its context."""
    from safetensors.numpy import load_file

    import oracle

    cfg, model = (
        dict(oracle.CONFIG, d=32, layers=1, heads=2, T=8, **flags),
        book_model if steps else tmp_path / "x",
    )
    if not steps:
        train(model, d=32, steps=0, **flags)
    weights = {
        n: x.astype(float)
        for n, x in load_file(model / "model.safetensors").items()
        if "adam" not in n
    }
    text = [10]
    for _ in range(30):
        context = text[-8:]
        text.append(
            int(
                np.argmax(
                    oracle.logits(cfg, weights, np.array([context + [0] * (8 - len(context))]))[
                        0, len(context) - 1
                    ]
                )
            )
        )
    assert sample(model, "30", "-temperature", "0") == bytes(text[1:]) + b"\n"


def test_sample_after_resume_is_of_the_longer_run(book_model, tmp_path):
    """A run of 3 steps that goes on to 6 is another model; -sample then finds it."""
    train(tmp_path / "x", steps=3)
    before = sample(tmp_path / "x", "50")
    train(tmp_path / "x", steps=6, resume=1)
    assert sample(tmp_path / "x", "50") != before


def test_sample_of_a_large_vocabulary_is_numbers(tmp_path):
    tokens = np.arange(2000) % 300
    header = np.zeros(256, np.int32)
    header[:3] = 20240520, 1, len(tokens)
    (tmp_path / "tokens.bin").write_bytes(header.tobytes() + tokens.astype(np.uint16).tobytes())
    train(tmp_path / "x", data=tmp_path / "tokens.bin", vocab=300)
    numbers = [int(x) for x in sample(tmp_path / "x", "40", text=True).split()]
    assert len(numbers) == 40 and max(numbers) < 300 and len(set(numbers)) > 5


def test_sample_of_the_bigram_source_is_numbers(tmp_path):
    """However small its vocabulary. Most of them, once it is learned, follow each other in it."""
    train(tmp_path / "x", data="bigram", vocab=50, steps=300, lr="3e-2", d=32, batch=16)
    numbers = [int(x) for x in sample(tmp_path / "x", "400", text=True).split()]
    pairs = list(zip(numbers, numbers[1:]))
    assert len(numbers) == 400 and {*numbers} <= {*range(50)}
    followers = {a: collections.Counter(b for x, b in pairs if x == a) for a in numbers}
    assert sum(c.most_common(1)[0][1] for c in followers.values() if c) > 0.7 * len(pairs)


# ---------------------------------------------------------------------------
# -prompt and -tokenizer


@pytest.mark.parametrize(
    "prompt, then",
    [("q", "uestion\n"), ("or not t", "o be"), ("to be or not to be, that", " is the")],
)
def test_a_prompt_is_continued(book_model, prompt, then):
    """It is written first; all of it, though a model of T tokens sees the last T alone."""
    cold = ["30", "-temperature", "0"]
    out = sample(book_model, *cold, "-prompt", prompt)
    assert out.startswith((prompt + then).encode()) and len(out) == len(prompt) + 31
    seen = sample(book_model, *cold, "-prompt", prompt[-8:])
    assert out[-31:] == seen[-31:]


def test_a_prompt_of_other_bytes(book_model):
    prompt = "caf\u00e9 \x80\xff".encode("latin-1").decode("latin-1")
    assert sample(book_model, "9", "-prompt", prompt).startswith(prompt.encode())


def test_a_prompt_is_all_of_the_context(book_model, tmp_path):
    """Nothing stands before it: one token is what the same token is that starts a sample."""
    assert sample(book_model, "50") == sample(book_model, "50", "-prompt", "")
    train(tmp_path / "x", data="bigram", vocab=50, steps=0, T=64)  # starts from 10, a newline
    alone = sample(tmp_path / "x", "60", text=True)
    assert sample(tmp_path / "x", "60", "-prompt", "10", text=True) == "10 " + alone


@pytest.fixture(scope="module")
def token_model(tmp_path_factory):
    """A model of the numbers 0, 1 ... 298 in turn, for a vocabulary that is padded to 300."""
    home = tmp_path_factory.mktemp("tokens")
    header = np.zeros(256, np.int32)
    tokens = np.arange(40000) % 299
    header[:3] = 20240520, 1, len(tokens)
    (home / "tokens.bin").write_bytes(header.tobytes() + tokens.astype(np.uint16).tobytes())
    train(home / "x", data=home / "tokens.bin", vocab=300, steps=300, lr="3e-2", d=32, batch=32)
    return home / "x"


def test_a_prompt_of_numbers(token_model):
    numbers = sample(token_model, "4", "-temperature", "0", "-prompt", " 7 8  9 ", text=True)
    assert numbers == "7 8 9 10 11 12 13 \n"
    assert sample(token_model, "4", "-prompt", " ") == sample(token_model, "4")


@pytest.mark.parametrize("word", ["300", "-1", "1.5", "x", "nan", "1e9", "1,2"])
def test_a_prompt_of_wrong_numbers(token_model, word):
    says = f"-prompt: '{word}' | numbers from 0 to 299 | text is not encoded"
    home = token_model.parent
    assert_refused(home, ["-sample", "5", "-prompt", f"3 {word} 4", "-out", "x"], 2, says)


def test_a_prompt_of_bytes_outside_of_the_vocabulary(tmp_path):
    train(tmp_path / "x", vocab=128, steps=1)
    refused = ["-sample", "5", "-out", "x", "-prompt"]
    says = "-prompt: its byte 2, which is 195, | below 128"
    assert_refused(tmp_path, [*refused, "a\u00e9"], 2, says)
    assert_refused(tmp_path, [*refused, "\x80"], 2, "-prompt: its byte 1, which is 194")
    vocab_98 = dict(data=tmp_path / "text", vocab=98, steps=1)
    (tmp_path / "text").write_bytes(b"aaab" * 1000)
    assert program(*words({**TINY, **vocab_98}), "-out", "y", cwd=tmp_path).returncode == 1
    train(tmp_path / "y", **{**vocab_98, "vocab": 99})
    assert_refused(tmp_path, [*refused, "c", "-out", "y"], 2, "-prompt: its byte 1, which is 99,")


def tokenizer(path, words, version=2, end=None, magic=20240328, count=None, more=b""):
    """llm.c's gpt2_tokenizer.bin, of these words."""
    header = np.zeros(256, np.uint32)
    count = len(words) if count is None else count
    header[:4] = magic, version, count, max(0, len(words) - 1) if end is None else end
    path.write_bytes(header.tobytes() + b"".join(bytes([len(w)]) + w for w in words) + more)
    return path.name


WORDS = [b"<%d>" % i for i in range(298)] + ["\u20ac".encode() + b"\x1b\x00"]


def test_tokenizer(token_model):
    """Tokens as their bytes; one of no text, which pads the vocabulary, is never drawn."""
    name, cold = tokenizer(token_model.parent / "good", WORDS), ["4", "-temperature", "0"]
    given = ["-tokenizer", name]
    out = sample(token_model, *cold, *given, "-prompt", "7 8")
    assert out == b"<7><8><9><10><11><12>\n"
    assert sample(token_model, "3", *cold[1:], *given, "-prompt", "297") == b"<297>" + b"".join(
        [WORDS[298], b"<0><1>\n"]
    )
    hot = sample(token_model, "3000", "-temperature", "1e6", *given)
    assert re.fullmatch(rb"(<\d+>|\xe2\x82\xac\x1b\0)+\n", hot)
    says = "-prompt: '299' | numbers from 0 to 298 | not even with -tokenizer"
    prompt = ["-sample", "5", *given, "-prompt", "299", "-out", "x"]
    assert_refused(token_model.parent, prompt, 2, says)


def test_without_a_prompt_a_text_starts_after_the_end_of_the_last(token_model):
    name = tokenizer(token_model.parent / "end", WORDS, end=41)
    assert sample(token_model, "2", "-temperature", "0", "-tokenizer", name) == b"<42><43>\n"


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(magic=20240520), "not a vocabulary file | gpt2_tokenizer.bin"),
        (dict(version=3), "not a vocabulary file of version 1 or 2"),
        (dict(version=0), "not a vocabulary file of version 1 or 2"),
        (dict(version=1), "299 tokens and the end-of-text token 50256"),
        (dict(end=299), "299 tokens and the end-of-text token 299"),
        (dict(words=WORDS + [b"x", b"y"]), "301 tokens | the model has 300"),
        (dict(words=WORDS[:172]), "172 tokens | the model has 300"),
        (dict(words=[]), "0 tokens"),
        (dict(words=WORDS[:5] + [b""] + WORDS[6:]), "is damaged: token 5 of 299"),
        (dict(count=300), "is damaged: token 299 of 300"),
        (dict(words=WORDS[:-1], count=299, more=b"\4abc"), "is damaged: token 298 of 299"),
        (dict(count=298, end=0), "is damaged: it goes on after its 298 tokens"),
        (dict(more=b"\n"), "is damaged: it goes on after its 299 tokens"),
    ],
)
def test_a_wrong_tokenizer_is_refused_by_name(token_model, change, says):
    name = tokenizer(token_model.parent / "bad", **{"words": WORDS, **change})
    command = ["-sample", "5", "-out", "x", "-tokenizer", name]
    assert_refused(token_model.parent, command, 1, f"bad: | {says}")


def test_a_tokenizer_that_is_not_for_this(token_model, book_model):
    command = ["-sample", "5", "-out", "x", "-tokenizer"]
    home = token_model.parent
    assert_refused(home, [*command, "none"], 1, "-tokenizer: cannot read none: No such file")
    (home / "short").write_bytes(b"\x28\xd7\x34\x01")
    assert_refused(home, [*command, "short"], 1, "short: is not a vocabulary file")
    of_bytes = ["-sample", "5", "-out", "run", "-tokenizer", "x"]
    assert_refused(book_model.parent, of_bytes, 2, "-tokenizer: the tokens of this model are bytes")


def test_version_1_is_gpt2s(tmp_path):
    """It does not say which token ends a text: 50256. A padded vocabulary of 50304 is usual."""
    words = [b"%d" % i for i in range(50256)] + [b"<|endoftext|>"]
    header = np.zeros(256, np.int32)
    header[:3] = 20240520, 1, 2000
    (tmp_path / "t.bin").write_bytes(header.tobytes() + np.zeros(2000, np.uint16).tobytes())
    train(tmp_path / "x", data=tmp_path / "t.bin", vocab=50304, steps=0, d=2, heads=1)
    flags = ["3", "-tokenizer", tokenizer(tmp_path / "v1", words, version=1, end=0)]
    out = sample(tmp_path / "x", *flags)
    assert out == sample(tmp_path / "x", *flags, "-prompt", "50256")[len("<|endoftext|>") :]


def test_a_sample_that_cannot_be_written(tmp_path):
    train(tmp_path / "run", steps=1)
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [PROGRAM, "-sample", "10", "-out", str(tmp_path / "run")],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    assert (
        result.returncode == 1
        and "cannot write the sample" in result.stderr
        and result.stderr.count("\n") == 1
    )


def test_a_sweep_where_who_started_it_ignores_its_children(tmp_path):
    result = program(
        *words({**TINY, "lr": "1e-3,1e-2"}),
        "-out",
        "new",
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
    )
    assert result.returncode == 0 and (tmp_path / "new/summary.csv").exists(), result.stderr
