"""The readers' twenty questions: each command runs in a fresh folder, and its output holds the
lines of the answer."""

import os
import re
import shutil
import subprocess

import pytest

import answers
from conftest import ROOT

NUMBER = r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?!\.?\w)"  # not the section 3.1.2
QUESTIONS = answers.questions()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(command): its output. Two questions have the same command: it runs once."""
    place, printed = tmp_path_factory.mktemp("answers"), {}
    for name in ("Makefile", "gpt.h", "dataloader.h", "train_gpt.c", "train_gpt.cu", "lib"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, place / name)
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(ROOT / "test", place / "test", ignore=ignored)
    (place / "build").mkdir()
    (place / "build" / "venv").symlink_to(ROOT / "build" / "venv")
    os.utime(place / "test" / "requirements.txt", (0, 0))
    shutil.copy(ROOT / "train_gpt", place)

    def run(command):
        if command not in printed:
            out = subprocess.run(
                ["bash", "-ec", command],
                cwd=place,
                env={**os.environ, "COLUMNS": "80", "OMP_NUM_THREADS": "2"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert not out.returncode, out.stdout + out.stderr
            printed[command] = out.stdout
        return printed[command]

    return run


def holds(line, output):
    """The output has these words, and these numbers: whole ones exactly, others within a twentieth,
    as compilers round differently."""
    words = [re.escape(part) for part in re.split(NUMBER, " ".join(line.split()))]
    numbers = re.findall(NUMBER, line)
    return any(
        all(
            a == b if a.isdigit() else abs(float(a) - float(b)) <= 0.05 * abs(float(a))
            for a, b in zip(numbers, found.groups())
        )
        for found in re.finditer(f"({NUMBER})".join(words), " ".join(output.split()))
    )


@pytest.mark.parametrize("n", range(1, len(QUESTIONS) + 1))
def test_the_command_answers(n, run):
    _, command, lines, _ = QUESTIONS[n - 1]
    output = run(command)
    missing = [line for line in lines.splitlines() if not holds(line, output)]
    assert not missing, output


def test_a_wrong_answer_is_seen():
    assert holds("val 6.07", "step 0/1  val 6.0730")
    assert not holds("val 6.57", "step 0/1  val 6.0730")
    assert not holds("131457,98688", "131456,98688")
    assert not holds("loss 6.07", "step 0/1  val 6.0730")


def test_twenty():
    page = answers.PAGE.read_text()
    assert len(QUESTIONS) == 20 == page.count("\n## ")
    assert re.findall(r"^## (\d+)\.", page, re.M) == [str(n) for n in range(1, 21)]


def test_make_answers():
    make = lambda *more: subprocess.run(
        ["make", "-s", "answers", *more], cwd=ROOT, capture_output=True, text=True
    )
    whole, third, none = make(), make("Q=3"), make("Q=21")
    assert not whole.returncode and max(map(len, whole.stdout.splitlines())) <= 80
    assert all(
        " ".join(answer.split()) in " ".join(whole.stdout.split()) for *_, answer in QUESTIONS
    )
    assert third.stdout.startswith("3. What is the loss before") and third.stdout in whole.stdout
    assert none.returncode and "Q=21 is not a question; they are 1 to 20" in none.stderr


def explained(text):
    """The questions of a handout, or of a section of the rubric."""
    asked = text.split("\n## Explain")[1].split("\n## ")[0]
    return [" ".join(item.split()) for item in re.split(r"(?m)^\d+\. +", asked)[1:]]


def test_the_rubric_knows_every_question():
    """For each question of each handout, in its order: its first words, a full answer and half of
    one."""
    course = answers.PAGE.parent
    sections = dict(
        section.split("\n", 1) for section in (course / "rubric.md").read_text().split("\n## ")[1:]
    )
    handouts = {path.stem: path.read_text() for path in (course / "handouts").glob("*.md")}
    assert set(sections) == set(handouts)
    for name, text in handouts.items():
        form = r"\*\*(.*?)\*\*\n\n- Full: .*?\n- Half: [^*]*"
        quoted = [" ".join(q.split()) for q in re.findall(form, sections[name], re.S)]
        asked = explained(text)
        assert len(quoted) == len(asked), name
        assert sections[name].count("**") == 2 * len(asked), name
        for short, question in zip(quoted, asked):
            assert short.split()[:5] == question.split()[:5], (name, short)
