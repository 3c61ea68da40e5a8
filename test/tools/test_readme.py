"""The pages for people (README.md, the gallery, the tests' and the course's two): every command in
them runs, in the order in which they stand, in a fresh clone, as a new user would run it. What
would take long, or needs a network or a GPU, runs in the shorter form of SHORTER."""

import os
import re
import subprocess
import sys

import pytest

from conftest import ROOT

COURSE = "test/course/README.md", "test/course/lectures.md"
PAGES = "README.md", "figures/README.md", "test/README.md", *COURSE

# (a pattern of a whole command, the command that takes its place, why); the first match counts.
SHORTER = [
    (r"git clone \S+ (.*)", r"git clone -q origin \1", "the page has no address here"),
    (r"curl -o (\S+) .*", r"seq 100000 >\1", "no network"),
    (r"apt install .*", "true", "nothing is installed outside of the clone"),
    (r"\./train_gpt -lr -qk_norm 0", r"\g<0>", "its output is read"),
    (r"make train_gpt_cu\b.*", "make train_gpt_cu_emu", "no GPU: the stand-in on the CPU"),
    (
        r"\./train_gpt_cu .*",
        "./train_gpt_cu_emu -lr 1e-2 -d 16 -heads 2 -steps 1 -eval_tokens 64",
        "the same",
    ),
    (
        r"(.*\./train_gpt (?!-h|-sample|-eval).*)",
        r"\1 -steps 20 -eval_tokens 256",
        "a thousand steps",
    ),
    (
        r"(\./sweep.sh .*)_cu (.*) -d .*",
        r"\1_cu_emu \2 -d 16 -T 8 -vocab 256 -batch 2 -lr 1e-2 -steps 2 -eval_tokens 64",
        "no GPU: the stand-in",
    ),
    (
        r"\./sweep.sh qk_norm(.*)",
        r"./sweep.sh qk_norm\1 -- -d 16,64 -steps 10 -eval_tokens 256",
        "192 runs",
    ),
    (r"(\./sweep.sh \w+.* -- .*)", r"\1 -steps 10 -eval_tokens 256", "long runs"),
    (
        r"(\./sweep.sh predict.*)",
        r"\1 -- -lr 1e-2,1e-1 -steps 10 -eval_tokens 256",
        "long runs of nine sizes",
    ),
    (r"(\./sweep.sh \w+.*)", r"\1 -- -d 16 -lr 1e-2 -steps 10 -eval_tokens 256", "many long runs"),
    (r"make survive", 'make survive ARGS="-kills 2"', "200 kills"),
    (r"make mutate", "make -n mutate", "hours; test_mutate.py runs a sample"),
    (r"make fuzz", "make -n fuzz", "minutes; test_fuzz.py runs it for some seconds"),
    (r"make bench.*", "make -n bench", "minutes; test_bench.py runs it"),
    (r"make ((test_|bench_)?page)", r"make -n \1", "a compiler of 90 MB; .ci/run tests the page"),
    (r"make (test_gpu|sass)", r"make -n \1", "no GPU, no cuobjdump"),
    (
        r"make grade",
        "rm -rf lab/any && make exercise-eps DIR=lab/any && make -C lab/any grade",
        "in its folder",
    ),
    (r"make grade-all .*", r"mkdir submissions && cp -r lab/eps submissions && \g<0>", "a class"),
    (r"make (test|test_course|lint)", r"make -n \1", "this is what is running now"),
    (r"make (figures|endurance|golden|coverage)", r"make -n \1", "minutes or hours"),
    (r"(\S+ -m pytest .*)", r"\1 --collect-only", "these tests are running now"),
]
A_COMMAND = re.compile(r"(\w+=\S+ )?(\./\w|(make|python3|grep|tail|curl|apt|build/venv/bin/\w+) ?)")
A_FORM = re.compile(r"make \S+-[A-Z]+|…|\.\.\.| DIR$")  # such as make show-FLAG


def commands(page):
    """Those in blocks of shell lines, and those between backquotes."""
    text = (ROOT / page).read_text()
    found = []
    for block, words in re.findall(r"^```sh\n(.*?)^```|`([^`\n]+)`", text, re.M | re.S):
        lines = block.splitlines() or [words] * bool(A_COMMAND.match(words))
        found += [line.split("  #")[0].strip() for line in lines]
    return [line for line in dict.fromkeys(found) if line and not A_FORM.search(line)]


def shorter(command):
    for pattern, form, _ in SHORTER:
        if re.fullmatch(pattern, command):
            return re.sub(f"^(?:{pattern})$", form, command)
    return command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(command): what it prints. The clone has the tests' Python; its stamp is newer than the
    requirements, so that make does not install them again."""
    home = tmp_path_factory.mktemp("newcomer")
    origin, clone = home / "origin", home / "train_gpt"
    files = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    there = b"\0".join(file for file in files.split(b"\0") if (ROOT / os.fsdecode(file)).is_file())
    origin.mkdir()
    copy = f"tar -C '{ROOT}' --null -T - -cf - | tar -xf - && git init -q && git add -A"
    commit = "git -c user.name=a -c user.email=a commit -qm all"
    subprocess.run(["bash", "-c", f"{copy} && {commit}"], cwd=origin, input=there, check=True)
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])

    printed = {}  # what two pages tell to run runs once

    def run(command):
        if command in printed:
            return printed[command]
        result = subprocess.run(
            ["bash", "-c", command],
            cwd=clone if clone.exists() else home,
            env=os.environ | {"PATH": path, "GIT_CONFIG_GLOBAL": "/dev/null"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert result.returncode == 0, command + "\n" + result.stdout + result.stderr
        if command.startswith("git clone"):
            (clone / "build").mkdir()
            (clone / "build/venv").symlink_to(ROOT / "build/venv")
            os.utime(clone / "test/requirements.txt", (0, 0))
        printed[command] = result.stdout
        return result.stdout

    return run


NUMBER = r"-?\d[\d.]*(?:e[+-]?\d+)?"


def assert_printed(block, output):
    """Each line of the block is in the output, with numbers close to those (other compilers round
    otherwise), but for the last one of a line, which may be the seconds."""
    shape = lambda line: re.sub(rf"\s*{NUMBER}", "#", line).strip()
    numbers = lambda line: [float(x) for x in re.findall(NUMBER, line)]
    lines = {}
    for line in output.splitlines():
        lines.setdefault(shape(line), []).append(numbers(line))
    for line in block.splitlines():
        close = [
            found
            for found in lines.get(shape(line), [])
            if all(abs(a - b) <= 0.1 + 0.3 * abs(b) for a, b in zip(numbers(line)[:-1], found))
        ]
        assert close or line.strip() in ("", "..."), f"{line!r} is not printed:\n{output}"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_runs(run, page):
    output = {command: run(shorter(command)) for command in commands(page)}
    assert len(output) > 4
    if page == "README.md":
        (block,) = re.findall(
            r"^```text\n(learning rate.*?)^```", (ROOT / page).read_text(), re.M | re.S
        )
        assert_printed(block, output["./train_gpt -lr -qk_norm 0"])


def test_a_command_that_fails_is_seen(run):
    with pytest.raises(AssertionError, match="max_iters"):
        run("./train_gpt -max_iters 3")


def test_readme_takes_ten_minutes():
    assert len((ROOT / "README.md").read_text().split()) <= 1500


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """To a file or picture that is there and, after a #, to a heading of it."""
    for path, heading in re.findall(
        r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", (ROOT / page).read_text()
    ):
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), path
        if heading:
            headings = re.findall(r"^#+ (.*)", target.read_text(), re.M)
            assert heading in [
                re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings
            ]
