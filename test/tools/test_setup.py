"""Other machines: `make test` gets what it needs or says how; another make, a compiler without
OpenMP, no /proc."""

import os
import shutil
import subprocess

import pytest

from conftest import NO_PRELOAD, ROOT

SETUP = ROOT / "test" / "setup.sh"
ROOTLY = "id", "echo 0"  # a program, and what takes its place for whom is root
NOT_ROOT = "id", "echo 1000"


@pytest.fixture
def tools(tmp_path):
    """A folder with nothing but a shell and these programs."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def add(name, script=None):
        if script is None:
            (folder / name).symlink_to(shutil.which(name))
        else:
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)

    add("sh")
    add.folder = folder
    return add


def setup(tools, *arguments):
    return subprocess.run(
        [SETUP, *arguments],
        env={"PATH": str(tools.folder)},
        capture_output=True,
        text=True,
    )


def test_setup_finds_all_that_the_tests_need():
    """They are running, so all is there."""
    result = subprocess.run([SETUP, "sh=dash"], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("who, apt", [(NOT_ROOT, True), (ROOTLY, False)])
def test_setup_says_what_to_install(tools, tmp_path, who, apt):
    tools(*who)
    if apt:
        tools("apt-get", f"echo $* >>{tmp_path}/called")
    result = setup(tools, "qemu=qemu-user", "sh=dash")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    packages = result.stderr.split("install -y ")[1].split()
    assert {*"gcc g++ clang libomp-dev valgrind python3-venv git qemu-user".split()} <= {*packages}
    assert "dash" not in packages
    assert ("slurm-wlm" in packages and "munge" in packages) == (who == ROOTLY)
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("fails", ["never", "update", "install"])
def test_setup_installs_what_is_missing(tools, tmp_path, fails):
    for name in "gcc g++ git parallel shellcheck valgrind bmake cppcheck slurmctld munged".split():
        tools(name, "exit 0")
    tools("clang", "case $* in *fuzzer*) exit 1 ;; esac")  # without the library of libFuzzer
    tools("python3", "exit 1")  # without venv
    tools(*ROOTLY)
    tools("apt-get", f"echo $* >>{tmp_path}/called\n[ $2 != {fails} ]")
    result = setup(tools)
    update, install = "-qq update", "-qq install -y clang-tidy libclang-rt-dev python3-venv"
    called = (tmp_path / "called").read_text().splitlines()
    assert called == [update] + [install] * (fails != "update")
    assert f"apt-get {update} && apt-get {install}\n" in result.stdout
    assert result.returncode == (0 if fails == "never" else 2)
    assert result.stderr.count("\n") == (fails != "never")


def test_bsd_make_gets_one_line():
    result = subprocess.run(["bmake", "test"], cwd=ROOT, capture_output=True, text=True)
    said = result.stdout + result.stderr
    assert result.returncode and said.count("\n") == 1 and "needs GNU make" in said


@pytest.mark.parametrize("native", ["-march=native", "-mcpu=native", None])
def test_a_compiler_without_openmp(tools, tmp_path, native):
    """As Apple's. It knows this machine's processor by either flag, or not at all."""
    for name in "gpt.h", "dataloader.h", "train_gpt.c", "Makefile":
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "lib", tmp_path / "lib")
    compiler = tools.folder / "apple"
    compiler.write_text(f"""#!/bin/bash
for word; do
    case $word in
        {native}) ;;
        -fopenmp | -march=* | -mcpu=*) echo "unsupported option" >&2; exit 1 ;;
        *) kept+=("$word") ;;
    esac
done
exec gcc "${{kept[@]}}"
""")
    compiler.chmod(0o755)
    result = subprocess.run(
        ["make", "-s", f"CC={compiler}", "CFLAGS=-O1 -Wall -Wextra -Werror"],
        cwd=tmp_path,
        env=NO_PRELOAD,
        capture_output=True,
        text=True,
    )
    said = f"no OpenMP in {compiler}: a run has one thread\n"
    assert (result.returncode, result.stdout, result.stderr) == (0, said, "")
    flags = (tmp_path / "build/flags").read_text().split()
    assert [word for word in flags if "native" in word] == [native] * bool(native)
    run = "./train_gpt -d 16 -layers 1 -heads 1 -steps 2 -eval_tokens 64 -out x".split()
    result = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0 and "1 thread," in result.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hide /proc and /sys")
def test_without_proc_and_sys(tmp_path):
    hide = "mount -t tmpfs none /proc && mount -t tmpfs none /sys && "
    flags = "-d 16 -layers 1 -heads 1 -steps 2 -eval_tokens 64 -out x"
    unshare = ["unshare", "--mount", "sh", "-c"]
    if subprocess.run([*unshare, f"{hide} true"], capture_output=True).returncode:
        pytest.skip("this machine gives no mount namespace, as in a chroot")
    result = subprocess.run(
        [*unshare, f"{hide} exec {ROOT}/train_gpt {flags}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (0, "") and "step 2/2" in result.stdout
