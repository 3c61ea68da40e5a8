#!/bin/sh
# test/setup.sh [COMMAND=PACKAGE ...]
# Looks for every program that the tests need, and for these COMMANDs. Installs the missing ones, as
# root and with apt; otherwise prints the command that does, and fails with status 2.
set -eu

missing=""
need() {    # PACKAGE COMMAND ...: the package is missing if the command fails
    package=$1
    shift
    "$@" >/dev/null 2>&1 </dev/null || missing="$missing $package"
}

clang_links() {    # FUNCTION FLAG: builds a program of this function alone
    echo "int $1(void) { return 0; }" | clang "$2" -x c - -o /dev/null
}

for program in gcc=gcc g++=g++ clang=clang clang-tidy=clang-tidy cppcheck=cppcheck git=git \
    parallel=parallel shellcheck=shellcheck valgrind=valgrind bmake=bmake "$@"; do
    need "${program#*=}" command -v "${program%%=*}"
done
need libomp-dev clang_links main -fopenmp
need libclang-rt-dev clang_links LLVMFuzzerTestOneInput -fsanitize=fuzzer
need python3-venv python3 -c 'import venv, ensurepip'
if [ "$(id -u)" = 0 ]; then    # only root can start Slurm
    need slurm-wlm command -v slurmctld
    need munge command -v munged
fi
[ -n "$missing" ] || exit 0

install="apt-get -qq update && apt-get -qq install -y$missing"
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "make: the tests need more programs; as root, on Debian and Ubuntu: $install" >&2
    exit 2
fi
echo "make: the tests need more programs: $install"
DEBIAN_FRONTEND=noninteractive sh -c "$install" >/dev/null || {
    echo "make: this failed: $install" >&2
    exit 2
}
