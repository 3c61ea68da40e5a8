"""Runs programs that are not trusted: limits on time, memory, output, files and processes; as
another user where root runs them; and, on Linux, without signals, processes, network or files."""

import ctypes
import errno
import os
import resource
import selectors
import signal
import subprocess
import tempfile
import time

# of processor time; three times as long by the clock
SECONDS = int(os.environ.get("SECONDS_A_TEST") or 20)
MEMORY, TEXT, ANSWER = 4 << 30, 1 << 20, 256 << 20  # bytes that a program may have, print, answer
# Linux counts all threads of the user, in other containers too: far above what a desktop has
MOST_THREADS = 4096
NOBODY = 65534
OUTSIDE = 99  # kit.h's exit status


class Wrong(Exception):
    """A message for the student: what was expected and found. Lines that begin with two blanks are
    quoted as they are. text: all that the program printed. Its hints are what HINT=1, 2 and 3 add:
    the mistake's name, where the grader knows one that gives these very numbers; where to look; the
    formula. Each may be empty."""

    def __init__(self, found, mistake="", where="", formula=""):
        super().__init__(found)
        self.text = ""
        self.hints = [mistake, where, formula]


class Outside(Wrong):
    """The same of a program that wrote past an end of an array (kit.h)."""


class Endless(Wrong):
    """The same of a program that does not end: the tests after it are not run."""


def run(command, stdin=b"", cpu=SECONDS, files=0, processes=0, answer=False, cwd=None, threads=1):
    """Runs a command within limits, with OMP_NUM_THREADS=threads. Returns its answer (written to
    the descriptor FD), its seconds of processor time and the text that it printed; raises Wrong
    where it fails."""

    def confine():
        os.setsid()
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        limits = [
            (resource.RLIMIT_CPU, cpu),
            (resource.RLIMIT_AS, MEMORY),
            (resource.RLIMIT_FSIZE, files),
            (resource.RLIMIT_CORE, 0),
        ]
        most = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        if threads == 1 or most == resource.RLIM_INFINITY or most > MOST_THREADS:
            most = MOST_THREADS if threads > 1 else 0
        for limit, value in limits + [(resource.RLIMIT_NPROC, most)] * (not processes):
            resource.setrlimit(limit, (value, value + (limit == resource.RLIMIT_CPU)))
        if not files:
            forbid()

    pipes = [os.pipe() for _ in range(1 + answer)]
    job = tempfile.TemporaryFile()
    job.write(stdin)
    job.seek(0)
    command = [str(pipes[-1][1]) if part == "FD" else part for part in command]
    child = subprocess.Popen(
        command,
        stdin=job,
        stdout=pipes[0][1],
        stderr=pipes[0][1],
        pass_fds=[w for _, w in pipes[1:]],
        preexec_fn=confine,
        cwd=cwd,
        env={
            "PATH": os.environ.get("PATH", ""),
            "OMP_NUM_THREADS": str(threads),
            "GOMP_SPINCOUNT": "1000",  # waiting threads sleep soon, as in train_gpt
            "KMP_BLOCKTIME": "1",
            "LC_ALL": "C",
            **{k: v for k, v in os.environ.items() if k.startswith("CUDA_EMU")},
        },
    )
    got, open_ends, verdict = [b"", b""], selectors.DefaultSelector(), None
    for i, (reading, writing) in enumerate(pipes):
        os.close(writing)
        open_ends.register(reading, selectors.EVENT_READ, i)
    parts, sizes, deadline = ([], []), [0, 0], time.monotonic() + 3 * cpu + 2
    late = f"it was not done after {3 * cpu + 2} s: a loop that does not end, or a wait?"
    try:
        while open_ends.get_map() and not verdict:
            for key, _ in open_ends.select(max(0.0, deadline - time.monotonic())):
                data = os.read(key.fd, 1 << 20)
                if not data:
                    open_ends.unregister(key.fd)
                    continue
                parts[key.data].append(data)
                sizes[key.data] += len(data)
                if sizes[key.data] > (TEXT, ANSWER)[key.data]:
                    verdict = (
                        f"it prints without end (more than {(TEXT, ANSWER)[key.data] >> 20} MB)"
                    )
            if time.monotonic() > deadline:
                verdict = late
        # it may have closed its pipes and go on
        while not verdict and not os.waitid(
            os.P_PID, child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG
        ):
            if time.monotonic() > deadline:
                verdict = late
            time.sleep(0.001)
    except BaseException:  # Ctrl-C: the program has another session
        os.killpg(child.pid, signal.SIGKILL)
        raise
    if verdict:
        os.killpg(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, but its number still its own
    os.killpg(child.pid, signal.SIGKILL)  # whatever it left behind
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = code = os.waitstatus_to_exitcode(status)
    for reading, _ in pipes:
        os.close(reading)
    job.close()
    got = [b"".join(p) for p in parts]
    text = got[0].decode(errors="replace").strip()
    if not verdict and code < 0:
        reason = {
            signal.SIGXCPU: (
                f"it used more than {cpu} s of processor time: a loop that does not end?"
            ),
            signal.SIGKILL: "it was killed: too much time or memory",
            signal.SIGSEGV: (
                "it crashed (segmentation fault): an index outside of an array, or memory that"
                " could not be had"
            ),
            signal.SIGFPE: "it crashed (division of whole numbers by 0)",
            signal.SIGXFSZ: "it wrote to a file, which it must not",
            signal.SIGABRT: "it aborted",
            signal.SIGILL: "it crashed (illegal instruction)",
        }
        verdict = reason.get(-code, f"it was ended by signal {-code}")
    if code == OUTSIDE:
        raise Outside(text.splitlines()[-1] if text else f"it ended with status {code}")
    if not verdict and code:
        verdict = f"it ended with status {code}"
    if verdict:
        kind = (
            Endless
            if any(word in verdict for word in ("without end", "does not end", "killed"))
            else Wrong
        )
        error = kind(verdict + (f". Its last words: {text[-600:]}" if text else ""))
        error.text = text
        raise error
    return got[1], usage.ru_utime + usage.ru_stime, text


# The column of a system call's number in forbid, and the machine's number
MACHINE = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}.get(os.uname().machine)
# Where a program may start threads but no processes. macOS limits processes alone.
THREADS = MACHINE is not None or os.uname().sysname != "Linux"


def forbid():
    """Seccomp, on x86-64 and Arm: no signals to others, no processes (but threads), no looking
    into them, no network, no change to any file or folder, no memory or messages that outlive the
    program, whoever the user is. Where the system has no seccomp the limits above must do.
    """
    names = dict(
        kill=(62, 129),
        tkill=(200, 130),
        rt_sigqueueinfo=(129, 138),
        rt_tgsigqueueinfo=(297, 240),
        pidfd_send_signal=(424, 424),
        ptrace=(101, 117),
        process_vm_readv=(310, 270),
        process_vm_writev=(311, 271),
        fork=(57, None),
        vfork=(58, None),
        socket=(41, 198),
        creat=(85, None),
        truncate=(76, 45),
        rename=(82, None),
        renameat=(264, 38),
        renameat2=(316, 276),
        unlink=(87, None),
        unlinkat=(263, 35),
        rmdir=(84, None),
        mkdir=(83, None),
        mkdirat=(258, 34),
        link=(86, None),
        linkat=(265, 37),
        symlink=(88, None),
        symlinkat=(266, 36),
        mknod=(133, None),
        mknodat=(259, 33),
        chmod=(90, None),
        fchmod=(91, 52),
        fchmodat=(268, 53),
        chown=(92, None),
        fchown=(93, 55),
        fchownat=(260, 54),
        shmget=(29, 194),
        semget=(64, 190),
        msgget=(68, 186),
        mq_open=(240, 180),
        io_uring_setup=(425, 425),
        openat2=(437, 437),
        prlimit64=(302, 261),
    )
    if MACHINE is None:
        return
    column, arch = MACHINE
    libc = ctypes.CDLL(None)
    libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: it ends with its grader
    load, equal, any_bit, answer = 0x20, 0x15, 0x45, 0x06
    allow, refuse, unknown, kill = (
        (answer, 0, 0, 0x7FFF0000),
        (answer, 0, 0, 0x00050000 | errno.EPERM),
        (answer, 0, 0, 0x00050000 | errno.ENOSYS),
        (answer, 0, 0, 0x80000000),
    )
    code = [(load, 0, 0, 4), (equal, 1, 0, arch), kill, (load, 0, 0, 0)]
    if column == 0:  # x86-64 also has calls of its 32-bit sister
        code += [(0x35, 0, 1, 0x40000000), kill]
    for number in (n[column] for n in names.values() if n[column] is not None):
        code += [(equal, 0, 1, number), refuse]
    # tgkill: signals to this process alone, as abort sends them; exec keeps its number
    code += [
        (equal, 0, 4, (234, 131)[column]),
        (load, 0, 0, 16),
        (equal, 1, 0, os.getpid()),
        refuse,
        (load, 0, 0, 0),
    ]
    # clone: threads alone. clone3's flags are in memory, which a filter cannot read: where it seems
    # to be missing, libc takes clone.
    code += [
        (equal, 0, 1, 435),
        unknown,
        (equal, 0, 4, (56, 220)[column]),
        (load, 0, 0, 16),
        (any_bit, 1, 0, 0x10000),  # CLONE_THREAD
        refuse,
        (load, 0, 0, 0),
    ]
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    # openat, open: only to read
    for number, argument in ((257, 2), (2, 1)) if column == 0 else ((56, 2),):
        code += [
            (equal, 0, 4, number),
            (load, 0, 0, 16 + 8 * argument),
            (any_bit, 0, 1, writing),
            refuse,
            (load, 0, 0, 0),
        ]
    code.append(allow)

    class Filter(ctypes.Structure):
        _fields_ = [
            ("code", ctypes.c_uint16),
            ("yes", ctypes.c_uint8),
            ("no", ctypes.c_uint8),
            ("k", ctypes.c_uint32),
        ]

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_uint16), ("filter", ctypes.POINTER(Filter))]

    filters = (Filter * len(code))(*code)
    program = Program(len(code), filters)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    libc.prctl(22, 2, ctypes.byref(program), 0, 0)  # PR_SET_SECCOMP, filter
