"""Grades an exercise: grade.py [DIR [EXERCISE]]. Prints points and mistakes, and writes
DIR/grade.json (in Gradescope's form).

It reads only the sources of the exercise from the student's folder. It builds them with this
folder's driver in a temporary folder and runs them as processes that may only compute: limits on
time, memory, output, files and processes, and as another user where the grader is root. Each
grading draws new inputs (SEED=n repeats one). reference.py computes the right answers after the
student's program has ended, so that the program cannot print them. The effect of a training is
measured here, on the weights that the program trained."""

import ctypes
import hashlib
import json
import os
import pathlib
import resource
import secrets
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # small matrices: more threads only wait for each other
import numpy as np

import reference as ref

KIT = pathlib.Path(__file__).resolve().parent
# A kit handed out is whole; else the project has the rest.
FOLDERS = (KIT,) if (KIT / "exercise").exists() else (KIT, KIT.parent / "cuda", KIT.parents[1])
# of processor time; three times as long by the clock
SECONDS = int(os.environ.get("SECONDS_A_TEST") or 20)
MEMORY, TEXT, ANSWER = 4 << 30, 1 << 20, 256 << 20  # bytes that a program may have, print, answer
NOBODY = 65534


class Wrong(Exception):
    """A message for the student."""


class Endless(Wrong):
    """The same of a program that does not end: the tests after it are not run."""


# ---- running what is not trusted


def run(command, stdin=b"", cpu=SECONDS, files=0, processes=0, answer=False, cwd=None):
    """Runs a command within limits. Returns its answer (written to the descriptor FD), its seconds
    of processor time and the text that it printed; raises Wrong where it fails."""

    def confine():
        os.setsid()
        if os.geteuid() == 0 and not files:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        limits = [
            (resource.RLIMIT_CPU, cpu),
            (resource.RLIMIT_AS, MEMORY),
            (resource.RLIMIT_FSIZE, files),
            (resource.RLIMIT_CORE, 0),
        ]
        for limit, value in limits + [(resource.RLIMIT_NPROC, 0)] * (not processes):
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
            "OMP_NUM_THREADS": "1",
            "LC_ALL": "C",
            **{k: v for k, v in os.environ.items() if k.startswith("CUDA_EMU")},
        },
    )
    got, open_ends, verdict = [b"", b""], selectors.DefaultSelector(), None
    for i, (reading, writing) in enumerate(pipes):
        os.close(writing)
        open_ends.register(reading, selectors.EVENT_READ, i)
    parts, sizes, deadline = ([], []), [0, 0], time.monotonic() + 3 * cpu + 2
    while open_ends.get_map() and not verdict:
        for key, _ in open_ends.select(max(0.0, deadline - time.monotonic())):
            data = os.read(key.fd, 1 << 20)
            if not data:
                open_ends.unregister(key.fd)
                continue
            parts[key.data].append(data)
            sizes[key.data] += len(data)
            if sizes[key.data] > (TEXT, ANSWER)[key.data]:
                verdict = f"it prints without end (more than {(TEXT, ANSWER)[key.data] >> 20} MB)"
        if time.monotonic() > deadline:
            verdict = f"it was not done after {3 * cpu + 2} s: a loop that does not end, or a wait?"
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
    if not verdict and code:
        verdict = f"it ended with status {code}"
    if verdict:
        kind = (
            Endless
            if any(word in verdict for word in ("without end", "does not end", "killed"))
            else Wrong
        )
        raise kind(verdict + (f". Its last words: {text[-600:]}" if text else ""))
    return got[1], usage.ru_utime + usage.ru_stime, text


def forbid():
    """Seccomp, on x86-64 and Arm: no signals to others, no processes, no looking into them, no
    network, no change to any file or folder, whoever the user is. Where the system has no seccomp
    the limits above must do.
    """
    names = dict(
        kill=(62, 129),
        tkill=(200, 130),
        rt_sigqueueinfo=(129, 138),
        pidfd_send_signal=(424, 424),
        ptrace=(101, 117),
        process_vm_readv=(310, 270),
        process_vm_writev=(311, 271),
        fork=(57, None),
        vfork=(58, None),
        clone=(56, 220),
        clone3=(435, 435),
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
        io_uring_setup=(425, 425),
        openat2=(437, 437),
        prlimit64=(302, 261),
    )
    column, arch = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}.get(
        os.uname().machine, (None, 0)
    )
    if column is None:
        return
    load, equal, any_bit, answer = 0x20, 0x15, 0x45, 0x06
    allow, refuse, kill = (
        (answer, 0, 0, 0x7FFF0000),
        (answer, 0, 0, 0x00050001),
        (answer, 0, 0, 0x80000000),
    )
    code = [(load, 0, 0, 4), (equal, 1, 0, arch), kill, (load, 0, 0, 0)]
    if column == 0:  # x86-64 also has calls of its 32-bit sister
        code += [(0x35, 0, 1, 0x40000000), kill]
    for number in (n[column] for n in names.values() if n[column] is not None):
        code += [(equal, 0, 1, number), refuse]
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
    program, libc = Program(len(code), filters), ctypes.CDLL(None)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    libc.prctl(22, 2, ctypes.byref(program), 0, 0)  # PR_SET_SECCOMP, filter


def kit_file(name):
    for folder in FOLDERS:
        if (folder / name).exists():
            return folder / name
    sys.exit(f"grade: the kit has no {name}")


class Student:
    """The student's program, built in a temporary folder, and its answers."""

    def __init__(self, folder, files, rng):
        self.folder, self.rng, self.built, self.hashes = folder, rng, {}, {}
        self.place = pathlib.Path(tempfile.mkdtemp(prefix="grade-"))
        self.place.chmod(0o755)
        for name in {"gpt.h", "dataloader.h", "driver.c"} - set(files):
            shutil.copy(kit_file(name), self.place)
        (self.place / "lib").mkdir()
        for header in (header for folder in FOLDERS for header in folder.glob("lib/*.h")):
            shutil.copy(header, self.place / "lib")
        for name in files:
            try:
                text = (folder / name).read_bytes()[: 4 << 20]
            except OSError as error:
                raise Wrong(f"{name} cannot be read: {error.strerror}")
            self.hashes[name] = hashlib.sha256(text).hexdigest()
            (self.place / name).write_bytes(text)

    def build(self, name="double", *options):
        """Builds a program and keeps it; raises Wrong with the compiler's first error."""
        if name not in self.built:
            if name == "cuda":
                stand_in = self.place / "test" / "cuda"
                stand_in.mkdir(parents=True, exist_ok=True)  # a build before may have failed
                shutil.copy(kit_file("cuda_emu.h"), stand_in)
                shutil.copy(kit_file("driver.cu"), self.place)
                command = [
                    *shlex.split(os.environ.get("CXX", "g++")),
                    "-std=c++17",
                    "-O0",
                    "-w",
                    "-fno-strict-aliasing",
                    "-rdynamic",
                    "-DCUDA_EMU",
                    "-DFP32",
                    "-x",
                    "c++",
                    "driver.cu",
                ]
            else:
                options = options or ("-O2", "-DDOUBLE")
                command = [
                    *shlex.split(os.environ.get("CC", "cc")),
                    "-std=gnu11",
                    "-w",
                    "-march=native",
                    "-fno-math-errno",
                    "-fopenmp-simd",
                    *options,
                    "driver.c",
                ]
            try:
                run(
                    [*command, "-o", name, "-lm"],
                    cpu=120,
                    files=64 << 20,
                    processes=1,
                    cwd=self.place,
                )
            except Wrong as error:
                text = str(error)
                at = text.find("error:")
                raise Wrong(
                    "it does not compile: "
                    + (text[text.rfind("\n", 0, at) + 1 :].split("\n")[0] if at >= 0 else text)
                )
            (self.place / name).chmod(0o755)
            self.built[name] = str(self.place / name)
        return self.built[name]

    def answer(self, size, work, count, cfg, numbers, program="double", cpu=SECONDS):
        """The program's answer, `size` numbers, and its seconds of processor time."""
        path = self.build(program)
        flags = [
            x
            for name, value in cfg.items()
            if not name.startswith("wrong_")
            for x in ("-" + name, str(value))
        ]
        raw, seconds, text = run(
            [path, "FD", work, str(count), *flags],
            np.ascontiguousarray(numbers, np.float64).tobytes(),
            answer=True,
            cpu=cpu,
        )
        if len(raw) != 8 * size:
            raise Wrong(
                f"it answered {len(raw)} bytes where {8 * size} were asked for: it ends too early,"
                " or writes where the driver does"
                + (f". It printed: {text[-300:]}" if text else "")
            )
        return np.frombuffer(raw), seconds

    def steps(self, cfg, p, batches, program="double"):
        """The results of a training step on each batch, as dicts; p, m, v are those after it."""
        N, L, rows, V = (
            sum(x.size for x in p.values()),
            cfg["layers"],
            cfg["batch"] * cfg["T"],
            cfg["vocab"],
        )
        each = rows * V + 4 * N + 4 + L
        numbers = np.concatenate([ref.pack(p)] + [x.ravel() for batch in batches for x in batch])
        flat, _ = self.answer(each * len(batches), "model", len(batches), cfg, numbers, program)
        out = []
        for a in flat.reshape(len(batches), each):
            cut = np.split(a, np.cumsum([rows * V, N, 1, 1, 1, 1, L, N, N]))
            one = dict(
                zip(
                    (
                        "dlogits",
                        "grads",
                        "loss",
                        "log_z",
                        "norm",
                        "lr",
                        "max_attn_logit",
                        "p",
                        "m",
                        "v",
                    ),
                    cut,
                )
            )
            one["dlogits"] = one["dlogits"].reshape(cfg["batch"], cfg["T"], V)
            out.append(
                {
                    n: (
                        ref.unpack(cfg, x)
                        if n in ("grads", "p", "m", "v")
                        else x
                        if n in ("dlogits", "max_attn_logit")
                        else x[0]
                    )
                    for n, x in one.items()
                }
            )
        return out

    def initial(self, cfg):
        """The weights that training starts from."""
        size = sum(np.prod(shape) for shape in ref.shapes(cfg).values())
        flat, _ = self.answer(size, "init", 0, cfg, [])
        return ref.unpack(cfg, flat.copy())

    def trained(self, cfg, p, batches):
        """The weights after training on these batches."""
        numbers = np.concatenate([ref.pack(p)] + [x.ravel() for batch in batches for x in batch])
        flat, _ = self.answer(
            ref.pack(p).size, "train", len(batches), cfg, numbers, cpu=2 * SECONDS
        )
        if not np.isfinite(flat).all():
            raise Wrong(f"training gives weights that are not finite, with {shown(cfg)}")
        return ref.unpack(cfg, flat)

    def batches(self, cfg, n):
        return [self.rng.integers(cfg["vocab"], size=(2, cfg["batch"], cfg["T"])) for _ in range(n)]

    def text_batches(self, cfg, n):
        """Text to train on: pieces of the project's own source."""
        text = (
            np.frombuffer(
                kit_file("dataloader.h").read_bytes() + kit_file("grade.py").read_bytes(), np.uint8
            )
            % cfg["vocab"]
        )
        start = self.rng.integers(len(text) - cfg["T"] - 1, size=(n, cfg["batch"], 1)) + np.arange(
            cfg["T"]
        )
        return [(text[s], text[s + 1]) for s in start]


# ---- comparing


def in_float(x):
    return x.astype(np.float32).astype(np.float64)


def shown(cfg):
    return (
        " ".join(
            f"-{n} {v}"
            for n, v in cfg.items()
            if ref.CONFIG.get(n) != v and not n.startswith("wrong_")
        )
        or "the defaults"
    )


def differs(wanted, found, tolerance):
    """Where two dicts of numbers and arrays differ first: (name, index, wanted, found), or None.
    Relative to the array's largest."""
    for name, x in wanted.items():
        if isinstance(x, dict):
            if at := differs(x, found[name], tolerance):
                return (f"{name}: " if name in ("m", "v") else "") + at[0], *at[1:]
            continue
        x, y = np.atleast_1d(x), np.atleast_1d(found[name])
        bad = ~(abs(x - y) <= tolerance * abs(x).max() + 1e-12)  # so that NaN is bad
        if bad.any():
            i = np.unravel_index(
                np.argmax(np.where(bad, np.where(np.isfinite(y), abs(x - y), np.inf), -1)), x.shape
            )
            return name, i, x[i], y[i]
    return None


def place(name, i):
    return name + ("[" + ",".join(map(str, i)) + "]" if len(i) > 1 or i[0] else "")


def expect(right, found, cfg, mistakes, hint, tolerance=1e-6, prefix=""):
    """Raises Wrong unless found equals right(cfg). The message names the first difference, then the
    mistake with which the reference gives the found values, or else the likeliest mistake."""
    at = differs(right(cfg), found, tolerance)
    if not at:
        return
    name, i, wanted, got = at
    text = f"{prefix}{place(name, i)}: expected {wanted:.6g}, found {got:.6g} (with {shown(cfg)})"
    if not np.isfinite(got):
        raise Wrong(
            f"{text}. Not a number: memory that was not written, a division by 0, or the logarithm"
            f" or root of a negative number. {hint}"
        )
    for change, words in mistakes:
        other = {**cfg, **change}
        if other != cfg and ref.shapes(other) == ref.shapes(cfg):
            try:
                if not differs(right(other), found, tolerance):
                    raise Wrong(f"{text}. {words}")
            except (KeyError, ValueError, ZeroDivisionError):
                continue
    if got == 0:
        text += ". It is exactly 0: is it ever written?"
    elif abs(wanted) > 1e-9 and abs(got / wanted - 1) > 1e-3:
        text += f" ({got / wanted:.4g} times what it should be)"
    raise Wrong(f"{text}. {hint}")


# ---- the tests, by name: each takes the student's program and its exercise, and raises Wrong


def case(s, change, program="double"):
    # one head: train_gpt.cu has heads of 8 channels at least
    cfg = {**ref.CONFIG, **dict(cuda={"heads": 1}).get(program, {}), **change}
    return cfg, ref.init(cfg, s.rng, 0.2), s.batches(cfg, 5)


def forward(s, ex, program="double", tolerance=1e-7):
    """The results of a step before any gradient of a weight, the smallest case first."""
    for change in ex["cases"]:
        cfg, p, batches = case(s, change, program)
        found = s.steps(cfg, p, batches[:1], program)[0]
        right = lambda c: {
            n: x for n, x in ref.gradient(c, p, *batches[0]).items() if n in ex["fields"]
        }
        expect(right, found, cfg, ex["mistakes"], ex["hints"]["forward"], tolerance)


def gradient(s, ex, program="double", tolerance=1e-5):
    """Gradients of weights against finite differences of the reference's loss, at random places of
    every tensor."""
    for change in ex["cases"]:
        cfg, p, batches = case(s, change, program)
        found = s.steps(cfg, p, batches[:1], program)[0]["grads"]
        # the likeliest first
        for name in sorted(
            found, key=lambda n: not any(n.endswith(x + ".weight") for x in ex.get("first", ()))
        ):
            size = max(abs(found[name]).max(), 1e-3) if np.isfinite(found[name]).all() else 1.0
            for i in s.rng.choice(p[name].size, min(4, p[name].size), replace=False):
                wanted, got = ref.slope(cfg, p, *batches[0], name, i), found[name].flat[i]
                if abs(wanted - got) <= tolerance * size + 1e-9:
                    continue
                right = lambda c: {name: ref.gradient(c, p, *batches[0])["grads"][name]}
                expect(
                    right,
                    {name: found[name]},
                    cfg,
                    ex["mistakes"],
                    ex["hints"]["gradient"],
                    tolerance,
                    "d loss / d ",
                )
                raise Wrong(
                    f"d loss / d {name}, element {i}: finite differences give {wanted:.6g}, the"
                    f" backward pass {got:.6g}. {ex['hints']['gradient']}"
                )


def initial(s, ex):
    """The weights that training starts from: without muParam of the usual size; with it the same,
    but for the head and the queries."""
    for change in ex["cases"]:
        cfg = {**ref.CONFIG, "vocab": 64, **change}
        off = s.initial({**cfg, "mu_param": "off"})
        for name, x in (
            ("head", off["lm_head.weight"]),
            (
                "queries",
                off["h.0.attn.c_attn.weight"][: cfg["d"]],
            ),
        ):
            size, wanted = np.sqrt((x * x).mean()), cfg["d"] ** -0.5
            if not 0.7 < size / wanted < 1.3:
                raise Wrong(
                    f"with -mu_param off the initial weights of the {name} have the RMS {size:.3g};"
                    f" expected about {wanted:.3g}, as without these lines"
                )
        right = lambda c: ref.mu_init(c, off)
        hint = ex["hints"]["initial"]
        expect(right, s.initial(cfg), cfg, ex["mistakes"], hint, 1e-9, "initial ")


def update(s, ex):
    """One step of the optimizer, from random weights, gradients and moments."""
    for change in ex["cases"]:
        cfg = {**ref.CONFIG, **change}
        p, m, g = (ref.init(cfg, s.rng, 0.2) for _ in range(3))
        v = {n: x**2 for n, x in ref.init(cfg, s.rng, 0.2).items()}
        step, size = int(s.rng.integers(1, cfg["steps"])), ref.pack(p).size
        flat, _ = s.answer(
            1 + 3 * size, "update", step, cfg, np.concatenate([ref.pack(x) for x in (p, g, m, v)])
        )
        found = dict(
            zip(("p", "m", "v"), (ref.unpack(cfg, flat[1 + i * size :][:size]) for i in range(3))),
            norm=flat[0],
        )
        right = lambda c: dict(zip(("p", "m", "v", "norm"), ref.adamw(c, p, m, v, g, step)))
        expect(
            right,
            found,
            cfg,
            ex["mistakes"],
            ex["hints"]["update"],
            1e-9,
            f"after the update of step {step}: ",
        )


def schedule(s, ex):
    """The learning rate of every step."""
    for change in ex["cases"]:
        cfg, p, batches = case(s, change)
        found = {
            f"learning rate of step {t}": one["lr"]
            for t, one in enumerate(s.steps(cfg, p, s.batches(cfg, cfg["steps"])), 1)
        }
        right = lambda c: {
            f"learning rate of step {t}": ref.schedule(c, t) for t in range(1, c["steps"] + 1)
        }
        expect(right, found, cfg, ex["mistakes"], ex["hints"]["schedule"], 1e-9)


def steps(s, ex, program="double", tolerance=1e-4, eps=1e-8):
    """Several whole steps: loss, learning rate, norm and weights after each."""
    for change in ex["cases"][-1:]:
        cfg, p, batches = case(s, {"eps": eps, **change}, program)
        found = s.steps(cfg, p, batches, program)

        def right(c):
            out, q = {}, p
            m, v = ({n: np.zeros_like(x) for n, x in p.items()} for _ in "mv")
            for t, batch in enumerate(batches, 1):
                one = ref.gradient(c, q, *batch)
                q, m, v, norm = ref.adamw(c, q, m, v, one["grads"], t)
                seen = dict(loss=one["loss"], norm=norm, lr=ref.schedule(c, t), **q)
                out.update({f"step {t}, {n}": x for n, x in seen.items()})
            return out

        found = {
            f"step {t}, {n}": x
            for t, one in enumerate(found, 1)
            for n, x in dict(loss=one["loss"], norm=one["norm"], lr=one["lr"], **one["p"]).items()
        }
        expect(right, found, cfg, ex["mistakes"], ex["hints"]["steps"], tolerance)


EFFECT = dict(
    d=32,
    heads=2,
    layers=2,
    T=32,
    batch=8,
    vocab=128,
    base_d=32,
    steps=150,
    warmup=15,
    lr=0.1,
    z_loss=0,
)


def sweep(s, change, lrs=(0.1,), steps=150):
    """Trains from the same weights on the same text, once for each learning rate; returns for each
    the trained weights, how far they moved, and what the reference measures with them on other
    text: loss, log Z, largest attention logit.
    """
    out = []
    for lr in lrs:
        cfg = {**ref.CONFIG, **EFFECT, "steps": steps, **change, "lr": lr}
        s.rng, kept = np.random.default_rng(s.seed), s.rng
        p, batches, other = (
            ref.init(cfg, s.rng),
            s.text_batches(cfg, cfg["steps"]),
            s.text_batches({**cfg, "batch": 32}, 1)[0],
        )
        s.rng = kept
        trained = s.trained(cfg, p, batches)
        seen = ref.measure(cfg, trained, *other)
        before = ref.measure(cfg, p, *other)
        out.append(
            dict(
                p=trained,
                start=p,
                moved=np.sqrt(np.mean((ref.pack(trained) - ref.pack(p)) ** 2)),
                loss=float(seen["loss"]),
                log_z=float(seen["log_z"]),
                max_attn_logit=float(seen["max_attn_logit"].max()),
                logits_moved=float(np.sqrt(np.mean((seen["logits"] - before["logits"]) ** 2))),
            )
        )
    return out


def claim(holds, text, hint):
    if not holds:
        raise Wrong(f"{text}. {hint}")


def effect_qk_norm(s, ex):
    seed, runs = s.seed, {0: [], 1: []}
    for s.seed in seed, seed + 1, seed + 2:  # one pair in six ends with the other loss lower
        for n in runs:
            runs[n] += sweep(s, dict(qk_norm=n), (0.3,), 200)
    s.seed = seed
    off, on = (
        {x: np.mean([run[x] for run in runs[n]]) for x in ("loss", "max_attn_logit")} for n in runs
    )
    trained = runs[1][0]["p"]
    # what was trained must be a model with qk-norm
    cfg, batch = ({**ref.CONFIG, **EFFECT, "qk_norm": 1}, s.batches(EFFECT, 1)[0])
    right = lambda c: {
        "largest attention logits of the trained model": ref.measure(c, trained, *batch)[
            "max_attn_logit"
        ]
    }
    expect(
        right,
        dict(zip(right(cfg), [s.steps(cfg, trained, [batch])[0]["max_attn_logit"]])),
        cfg,
        ex["mistakes"],
        ex["hints"]["forward"],
        1e-3,
    )
    claim(
        on["max_attn_logit"] < off["max_attn_logit"] / 20 and on["loss"] < off["loss"],
        f"after 200 steps at LR 0.3 the largest attention logit is {on['max_attn_logit']:.3g} and"
        f" the loss {on['loss']:.3f} with qk-norm, {off['max_attn_logit']:.3g} and"
        f" {off['loss']:.3f} without, as means of three trainings",
        "expected a twentieth of the logit or less, and a lower loss",
    )


def effect_z_loss(s, ex):
    off, on = (sweep(s, dict(z_loss=z), (0.01,), 100)[0] for z in (0, 0.1))
    claim(
        abs(on["log_z"]) < 1 < abs(off["log_z"]) - 1,
        f"mean log Z after 100 steps: {on['log_z']:.3f} with -z_loss 0.1, {off['log_z']:.3f}"
        " without",
        "expected it between -1 and 1 with the z-loss",
    )


def effect_warmup(s, ex):
    short, long = (sweep(s, dict(qk_norm=0, warmup=w), (0.1,), 10)[0]["moved"] for w in (1, 10))
    claim(
        long < 0.85 * short,
        f"RMS of the way that the weights moved in 10 steps at LR 0.1: {long:.3g} with 10 steps of"
        f" warm-up, {short:.3g} with 1",
        "expected less than 0.85 times as much",
    )


def effect_wd(s, ex):
    lr = 1e-7
    off, on, torch = (
        sweep(s, dict(wd=wd, wd_independent=i), (lr,), 40)[0]
        for wd, i in ((0, 1), (0.02, 1), (0.02, 0))
    )
    size = lambda run: np.sqrt(np.mean(run["p"]["h.0.mlp.c_fc.weight"] ** 2))
    cfg = {**ref.CONFIG, **EFFECT, "steps": 40, "wd": 0.02, "lr": lr}
    wanted = np.prod([1 - 0.02 * ref.schedule(cfg, t) / lr for t in range(1, 41)])
    claim(
        abs(size(on) / size(off) - wanted) < 0.01,
        f"weights after 40 steps at LR {lr:g} with -wd 0.02: {size(on) / size(off):.4f} times those"
        " without decay",
        f"expected {wanted:.4f}: independent decay does not depend on the learning rate",
    )
    claim(
        abs(size(torch) / size(off) - 1) < 1e-3,
        f"the same with -wd_independent 0: {size(torch) / size(off):.4f} times",
        "expected 1.0000: this decay is as small as the learning rate",
    )


def effect_mu_param(s, ex):
    moved = {}
    for mu in "off", "full":
        for d in 32, 128:
            moved[mu, d] = sweep(
                s, dict(d=d, heads=d // 16, mu_param=mu, warmup=0, min_lr=1e-3, T=16), (1e-3,), 1
            )[0]["logits_moved"]
    off, full = (moved[mu, 128] / moved[mu, 32] for mu in ("off", "full"))
    claim(
        full < 0.65 * off,
        f"how much more the first step moves the logits at -d 128 than at -d 32: {full:.2f} times"
        f" with -mu_param full, {off:.2f} times without",
        "expected less than 0.65 of that with muParam: a step's effect should hardly grow with the"
        " width",
    )


def effect_eps(s, ex):
    small, large = (sweep(s, dict(eps=e), (0.01,), 30)[0]["moved"] for e in (1e-8, 1.0))
    claim(
        large < small / 5,
        f"RMS of the way that the weights moved: {large:.3g} with -eps 1, {small:.3g} with 1e-8",
        "an epsilon far above the gradients should make the updates die",
    )


def effect_clip(s, ex):
    loose, tight = (sweep(s, dict(clip=c, eps=1e-4), (0.01,), 30)[0]["moved"] for c in (1.0, 1e-4))
    claim(
        tight < loose / 5,
        f"RMS of the way that the weights moved: {tight:.3g} with -clip 1e-4 -eps 1e-4, {loose:.3g}"
        " with -clip 1",
        "gradients clipped to a norm below epsilon should hardly move the weights",
    )


def effect_beta2(s, ex):
    """Gradients of 1e-3 for 30 steps, then one of 1: the larger beta2, the longer is v too small
    for it."""
    largest = []
    for beta2 in 0.5, 0.999:
        cfg = {
            **ref.CONFIG,
            "beta2": beta2,
            "clip": 0,
            "wd": 0,
            "steps": 100,
            "warmup": 0,
            "min_lr": 1e-2,
        }
        p = ref.init(cfg, s.rng)
        zero = {n: np.zeros_like(x) for n, x in p.items()}
        m, v = (
            {n: x + 1e-3 * (1 - 0.9**30) for n, x in zero.items()},
            {n: x + 1e-6 * (1 - beta2**30) for n, x in zero.items()},
        )
        flat, _ = s.answer(
            1 + 3 * ref.pack(p).size,
            "update",
            31,
            cfg,
            np.concatenate([ref.pack(x) for x in (p, {n: x + 1 for n, x in zero.items()}, m, v)]),
        )
        largest.append(abs(flat[1 : 1 + ref.pack(p).size] - ref.pack(p)).max() / 1e-2)
    claim(
        largest[1] > 3 * largest[0],
        f"a gradient that grows a thousandfold gives an update of {largest[1]:.3g} with -beta2"
        f" 0.999, {largest[0]:.3g} with 0.5",
        "expected more than 3 times as much",
    )


# attention's backward pass, layer by layer


def attention_case(s, B, T, NH, HS, spread):
    """qk (B,T,2,NH,HS), qkv (B,T,3,NH,HS), dout, out (B,T,NH,HS), softmax (B,NH,T,2); and the
    gradients by the reference's tape, dq, dk, dv (B,T,NH,HS). The q and k in qkv are others, as
    before qk-norm and RoPE."""
    q, k, v, dout = (s.rng.standard_normal((B, T, NH, HS)) * x for x in (spread, spread, 1, 1))
    Q, K, V = (ref.Var(x.transpose(0, 2, 1, 3)) for x in (q, k, v))
    scores = Q @ K.transpose(0, 1, 3, 2) * HS**-0.5
    hide = np.where(np.tril(np.ones((T, T), bool)), 0, -1e30)
    top = (scores.value + hide).max(-1, keepdims=True)
    e = (scores + (hide - top)).exp()
    out = e * e.sum(-1) ** -1 @ V
    (out * dout.transpose(0, 2, 1, 3)).sum().backward()
    back = lambda x: x.transpose(0, 2, 1, 3)
    softmax = np.concatenate([top, 1 / e.value.sum(-1, keepdims=True)], -1)
    others = s.rng.standard_normal((2, *q.shape)) * spread
    qk, qkv = np.stack([q, k], 2), np.stack([*others, v], 2)
    return (qk, qkv, dout, back(out.value), softmax), dict(
        dv=back(V.grad), dq=back(Q.grad), dk=back(K.grad)
    )


def attention_layer(s, ex, names, shapes):
    hints = dict(
        dv=(
            "dv_j = sum over i >= j of p_ij dout_i, with p_ij = exp(scale q_i k_j - softmax_i0)"
            " softmax_i1 and the q and k of qk, not of qkv: sum over the later queries, not the"
            " earlier keys"
        ),
        dq=(
            "dq_i = sum over j <= i of ds_ij k_j, ds_ij = scale p_ij (dp_ij - dot_i), dp_ij ="
            " dout_i v_j, dot_i = dout_i out_i: is the scale there once, and is dot subtracted?"
        ),
        dk=(
            "dk_j = sum over i >= j of ds_ij q_i: the same ds as for dq, transposed; add up the"
            " sums of several blocks. A row of dqkv is 3*C long, a row of qk 2*C"
        ),
    )
    for shape in shapes:
        B, T, NH, HS, spread = shape
        numbers, right = attention_case(s, *shape)
        cfg = {**ref.CONFIG, "d": NH * HS, "heads": NH, "T": T}
        flat, _ = s.answer(
            3 * B * T * NH * HS, "attention", B, cfg, np.concatenate([x.ravel() for x in numbers])
        )
        parts = np.moveaxis(flat.reshape(B, T, 3, NH, HS), 2, 0)
        found = dict(zip(("dq", "dk", "dv"), parts))
        for name in names:
            at = differs({name: right[name]}, found, 1e-7)
            if at:
                where = f"B {B}, T {T}, NH {NH}, HS {HS}"
                if np.isnan(found[name]).all():
                    raise Wrong(f"{name} ({where}) is not written")
                scale, size = (
                    HS**-0.5,
                    lambda k: not differs({name: right[name]}, {name: found[name] * k}, 1e-7),
                )
                extra = (
                    " It is right but for the scale 1/sqrt(HS), which is missing."
                    if size(scale)
                    else (
                        " It is right but for the scale 1/sqrt(HS), which is there twice."
                        if size(1 / scale)
                        else ""
                    )
                )
                raise Wrong(
                    f"{place(name, at[1])} ({where}; indices b,t,h,i): expected {at[2]:.6g}, found"
                    f" {at[3]:.6g}.{extra or ' ' + hints[name]}"
                )


def attention_tiny_dv(s, ex):
    attention_layer(s, ex, ["dv"], [(1, 2, 1, 2, 1), (1, 4, 1, 4, 1)])


def attention_tiny_qk(s, ex):
    attention_layer(s, ex, ["dq", "dk"], [(1, 2, 1, 2, 1), (1, 4, 1, 4, 1)])


def attention_large(s, ex):
    attention_layer(
        s,
        ex,
        ["dv", "dq", "dk"],
        [(2, 7, 3, 4, 1), (1, 70, 2, 6, 1), (1, 150, 1, 8, 1), (2, 33, 2, 8, 30)],
    )


def attention_effect(s, ex):
    run = sweep(s, {}, (0.01,), 50)[0]
    moved = np.sqrt(
        np.mean(
            (run["p"]["h.0.attn.c_attn.weight"] - run["start"]["h.0.attn.c_attn.weight"])[:64] ** 2
        )
    )
    claim(
        moved > 0.02,
        f"the weights of queries and keys moved by {moved:.2g} (RMS) in 50 steps at LR 0.01",
        "expected more than 0.02",
    )


# the matrix multiply


def products(s, shapes, program="double"):
    jobs, wanted = [], []
    for M, N, K, ta, tb, add in shapes:
        a, b, plus = (
            s.rng.standard_normal((M, K)),
            s.rng.standard_normal((K, N)),
            s.rng.standard_normal((M, N)),
        )
        if program != "double":
            a, b, plus = map(in_float, (a, b, plus))
        jobs += [
            np.array([M, N, K, ta, tb, add]),
            (a.T if ta else a).ravel(),
            (b.T if tb else b).ravel(),
        ] + [plus.ravel()] * add
        wanted.append(a @ b + add * plus)
    flat, seconds = s.answer(
        sum(w.size for w in wanted),
        "multiply",
        len(shapes),
        ref.CONFIG,
        np.concatenate(jobs),
        program,
    )
    for (M, N, K, ta, tb, add), w in zip(shapes, wanted):
        found, flat = flat[: w.size].reshape(w.shape), flat[w.size :]
        at = differs({"out": w}, {"out": found}, 1e-10 if program == "double" else 1e-4)
        if at:
            why = (
                "An edge: rows or columns that do not fill a block?"
                if M % 8 or N % 8 or K % 8
                else (
                    "A transposed matrix? (i, j) is at data[i * row + j * col]." if ta or tb else ""
                )
            )
            raise Wrong(
                f"{place('out', at[1])} of a product ({M},{K})"
                f" ({K},{N}){', a transposed' * ta}{', b transposed' * tb}"
                f"{', added to a matrix' * add}:"
                f" expected {at[2]:.6g}, found {at[3]:.6g}. {why}"
            )
    return seconds


def multiply_right(s, ex):
    sizes = [(1, 1, 1), (2, 3, 4), (8, 16, 8), (13, 33, 17), (64, 64, 64), (100, 129, 600)]
    sizes.append((448, 304, 24))  # several blocks of rows and of columns
    products(
        s,
        [
            (*size, ta, tb, add)
            for size in sizes
            for ta in (0, 1)
            for tb in (0, 1)
            for add in (0, 1)
        ],
    )


def multiply_speed(s, ex, least=10):
    """Processor time of the same products by the naive loops and by the student's, taken in turns;
    medians."""
    if not hasattr(s, "speed"):
        s.build("float", "-O3")
        shutil.copy(kit_file("naive.c"), s.place)
        run(
            [
                *shlex.split(os.environ.get("CC", "cc")),
                "-O3",
                "-march=native",
                "-o",
                "naive",
                "naive.c",
            ],
            cpu=60,
            files=64 << 20,
            processes=1,
            cwd=s.place,
        )
        (s.place / "naive").chmod(0o755)
        times = ([], [])
        for _ in range(3):
            shapes = [(576, 576, 576, 0, 0, 0), (576, 576, 576, 0, 1, 0)]
            times[1].append(products(s, shapes, "float"))
            numbers = [
                x
                for shape in shapes
                for x in (np.array(shape), s.rng.standard_normal(2 * 576 * 576))
            ]
            times[0].append(
                run(
                    [str(s.place / "naive"), "FD", str(len(shapes))],
                    np.concatenate(numbers).tobytes(),
                    answer=True,
                )[1]
            )
        s.speed = float(np.median(times[0]) / np.median(times[1]))
    claim(
        s.speed >= least,
        f"{s.speed:.1f} times as fast as the naive loops",
        f"expected {least} times. Let the innermost loop run along rows; keep a tile of sums in"
        " registers; copy what is read often to where it lies in order",
    )


def multiply_speed_3(s, ex):
    multiply_speed(s, ex, 3)


# a kernel of train_gpt.cu, on the CPU


def kernel(s, work, arrays, size, order):
    os.environ["CUDA_EMU_ORDER"] = order
    return s.answer(
        size,
        work,
        1,
        {},
        np.concatenate(
            [
                np.array([x.shape[0], x.shape[-1]]) if i == 0 else x.ravel()
                for i, x in enumerate([arrays[0], *arrays])
            ]
        ),
        "cuda",
    )[0]


# 1/(1 + exp(-2u)) is (1 + tanh(u))/2, without the digits that 1 + tanh(u) loses near tanh(u) = -1.
def gelu_value(x):
    return x / (1 + np.exp(-2 * (2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


def kernel_gelu_forward(s, ex):
    for n in 8, 1000, 5000:
        x = in_float(s.rng.standard_normal((1, n)) * 3)
        found = kernel(s, "gelu_forward", [x], n, "forward")
        expect(
            lambda c: {"out": gelu_value(x[0])},
            {"out": found},
            {**ref.CONFIG},
            [],
            f"gelu(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), of {n} values here. A thread"
            " has W of them, the last threads of the last block perhaps none",
            1e-5,
        )
    x = np.array([[-1e6, -100.0, 0, 100, 1e6, 0, 0, 0]])
    found = kernel(s, "gelu_forward", [x], 8, "forward")
    expect(
        lambda c: {"out": np.maximum(x[0], 0)},
        {"out": found},
        {**ref.CONFIG},
        [],
        "at |x| = 1e6 nothing may overflow",
        1e-5,
    )


def kernel_gelu_backward(s, ex):
    for n in 8, 1000, 5000:
        x, d = in_float(s.rng.standard_normal((2, 1, n)) * 3)
        found = kernel(s, "gelu_backward", [d, x], n, "forward")
        slope = (gelu_value(x + 1e-5) - gelu_value(x - 1e-5)) / 2e-5
        expect(
            lambda c: {"dinp": (slope * d)[0]},
            {"dinp": found},
            {**ref.CONFIG},
            [],
            "dinp = dout * gelu'(inp): by the product rule, gelu'(x) = s + x s (1 - s) (2u)' with s"
            " = 1/(1 + exp(-2u))",
            1e-4,
        )


def layernorm_case(s, rows, C, order):
    x, w = (
        in_float(s.rng.standard_normal((rows, C)) + 2),
        in_float(1 + 0.3 * s.rng.standard_normal(C)),
    )
    found = kernel(s, "layernorm_forward", [x, w], rows * C, order).reshape(rows, C)
    y = x - x.mean(1, keepdims=True)
    expect(
        lambda c: {"out": y / np.sqrt((y * y).mean(1, keepdims=True) + 1e-6) * w},
        {"out": found},
        {**ref.CONFIG},
        [],
        f"rows {rows}, C {C}, the block's threads in {order} order. Mean and variance are of the"
        " whole row, over all its threads; a value beyond C counts nothing",
        1e-4,
    )


def kernel_layernorm(s, ex):
    for rows, C in (1, 8), (3, 64), (5, 96), (2, 1032), (130, 24):
        layernorm_case(s, rows, C, "forward")


def kernel_orders(s, ex):
    for order in "reverse", "random":
        for rows, C in (3, 64), (2, 2056):
            layernorm_case(s, rows, C, order)


def kernel_model(s, ex):
    cfg = dict(d=16, heads=2, T=5, vocab=11, batch=2)
    gradient(
        s,
        {
            **ex,
            "cases": [cfg],
            "hints": {
                "gradient": "a whole model's gradient, in float: are all three kernels right?"
            },
            "mistakes": [],
        },
        "cuda",
        2e-3,
    )


OFF = "This is the value with the flag off: your lines are not reached, or change nothing."
NONE = {"forward": "", "gradient": "", "steps": "", "update": "", "schedule": ""}

# For each exercise: the student's files (default: train_gpt.c), and its tests in the order of
# difficulty, each with points, title and function.
EXERCISES = {
    "qk_norm": dict(
        tests=[
            (25, "value: attention logits and loss", forward),
            (35, "gradient, by finite differences", gradient),
            (20, "five steps of AdamW", steps),
            (20, "effect: training at a high learning rate", effect_qk_norm),
        ],
        # the second has 69 rows: more than one chunk
        cases=[dict(qk_norm=1), dict(qk_norm=1, d=24, heads=3, layers=2, T=23, batch=3, vocab=13)],
        fields=("max_attn_logit", "loss", "log_z"),
        first=("q_norm", "k_norm", "c_attn"),
        mistakes=[
            ({"wrong_only": ""}, OFF),
            ({"wrong_only": "q"}, "Only the queries are normalised; the keys must be too."),
            ({"wrong_only": "k"}, "Only the keys are normalised; the queries must be too."),
            (
                {"wrong_after_rope": 1},
                "This is the value with the norm after RoPE; the norm comes before.",
            ),
            (
                {"wrong_weight": 1},
                "The keys are scaled with the queries' weight; their weight is k_weight, K_NORM.",
            ),
        ],
        hints=dict(
            forward=(
                "The norm is over the HS values of each head, not over C; rope_row turns `from`, so"
                " `from` must point to the normalised values."
            ),
            gradient=(
                "The forward pass is normalise, then turn; so the backward pass turns back, then"
                " goes through the norm: layernorm_row_backward, whose x is what the forward pass"
                " normalised (in qkv). Mean and rstd are those of this row, of q or of k, and of"
                " this head: (B,T,2,NH). The weights' gradients are sums over all chunks."
            ),
            steps="If value and gradient are right, this should be too.",
        ),
    ),
    "z_loss": dict(
        tests=[
            (30, "value: the gradient of the logits on a tiny case", forward),
            (30, "gradient of the weights, by finite differences", gradient),
            (20, "five steps of AdamW", steps),
            (20, "effect: log Z after training", effect_z_loss),
        ],
        cases=[
            dict(z_loss=0.1, T=2, batch=1, vocab=3),
            dict(z_loss=0.0),
            dict(z_loss=0.3, layers=2),
        ],
        fields=("loss", "log_z", "dlogits"),
        first=("lm_head",),
        mistakes=[
            ({"z_loss": 0}, OFF),
            *[
                ({"z_loss": z / 2}, "Half of it: the derivative of (log Z)^2 is 2 log Z.")
                for z in (0.1, 0.3)
            ],
        ],
        hints=dict(
            forward=(
                "dlogits = (p - [target] + 2 z_loss log Z p) / rows: log Z is log_z[i] of the row,"
                " not the largest logit or the sum."
            ),
            gradient="The gradient of the logits is wrong, and all others follow from it.",
            steps="If value and gradient are right, this should be too.",
        ),
    ),
    "warmup": dict(
        files=("gpt.h", "train_gpt.c"),
        tests=[
            (50, "value: the learning rate of every step", schedule),
            (30, "five steps of AdamW", steps),
            (20, "effect: attention logits early in training", effect_warmup),
        ],
        cases=[
            dict(warmup=4, steps=10),
            dict(warmup=0, steps=3),
            dict(warmup=5, steps=5),
            dict(warmup=3, steps=8, lr=0.3),
        ],
        mistakes=[
            ({"warmup": 0}, OFF),
            (
                {"wrong_step": 1},
                "One step late: steps count from 1, and step 1 already learns at lr / warmup.",
            ),
            ({"wrong_restart": 1}, "The cosine begins after the warm-up, not at step 0."),
        ],
        hints=dict(
            schedule="lr * step / warmup where step < warmup; at step = warmup the peak.",
            steps="The schedule is wrong, or something else was changed.",
        ),
    ),
    "wd": dict(
        files=("gpt.h", "train_gpt.c"),
        tests=[
            (40, "value: one update", update),
            (20, "five steps of AdamW", steps),
            (40, "effect: how far weights shrink", effect_wd),
        ],
        cases=[
            dict(wd=0.1, wd_independent=1, steps=20, warmup=5, lr=0.2),
            dict(wd=0.1, wd_independent=0, steps=20, warmup=5, lr=0.2),
            dict(wd=0.05, steps=6, warmup=3, lr=0.3),
        ],
        mistakes=[
            ({"wd": 0}, OFF),
            ({"wd_independent": 0}, "This is the decay of -wd_independent 0, wd * lr_t."),
            ({"wd_independent": 1}, "This is the decay of -wd_independent 1, wd * lr_t / lr."),
            (
                {"wrong_constant": 1},
                "The decay is the same at every step; it follows the schedule, lr_t / lr.",
            ),
        ],
        hints=dict(
            update="decay is the share of the weight that decays: adamw subtracts decay * param.",
            steps="If one update is right: is decay computed anew at each step?",
        ),
    ),
    "mu_param": dict(
        files=("gpt.h", "train_gpt.c"),
        tests=[
            (30, "initial weights", initial),
            (15, "value: attention logits, loss", forward),
            (20, "value: one update", update),
            (15, "five steps of AdamW", steps),
            (20, "effect: a step's effect on the logits at two widths", effect_mu_param),
        ],
        cases=[
            dict(mu_param=mu, base_d=b, d=d, layers=2)
            for mu, d, b in (
                ("full", 8, 3),
                ("intermediate", 16, 6),
                ("simple", 8, 12),
                ("off", 8, 4),
                ("full", 16, 24),
            )
        ],
        fields=("max_attn_logit", "loss", "log_z", "dlogits"),
        first=("c_attn",),
        mistakes=[
            ({"mu_param": "off"}, OFF),
            (
                {"mu_param": "full"},
                "This is the value of 'full': which of the four has each of the three?",
            ),
            (
                {"mu_param": "intermediate"},
                "This is the value of 'intermediate': 'full' also has another scale of attention,"
                " and queries that start at 0.",
            ),
            (
                {"mu_param": "simple"},
                "This is the value of 'simple': 'intermediate' and 'full' also start the head at"
                " another size.",
            ),
            (
                {"wrong_all": 1},
                "Every tensor learns at lr / m; only linear layers should (p->role).",
            ),
            ({"wrong_head": 1}, "The head is a linear layer too: it learns at lr / m."),
            ({"wrong_upside_down": 1}, "The factor is upside down: m = C / base_d."),
            ({"wrong_whole": 1}, "m = C / base_d is not a whole number: divide as double."),
            ({"wrong_root": 1}, "The head's standard deviation has the factor 1 / sqrt(m)."),
            (
                {"wrong_scale": 1},
                "The scale is 1 / HS, whatever the base width; HS is the head size at this width.",
            ),
        ],
        hints=dict(
            initial=(
                "The head's standard deviation is sqrt(base_d) / C (intermediate, full); the first"
                " C rows of c_attn, the queries', are 0 (full). All else stays."
            ),
            forward="Attention's scale is 1 / HS (full).",
            gradient="attention_scale serves both passes: if the value is right, this should be.",
            update="Linear layers (p->role), the head included, learn at lr / m.",
            steps="If value and update are right, this should be too.",
        ),
    ),
    "eps": dict(
        tests=[
            (50, "value: one update", update),
            (25, "five steps of AdamW", steps),
            (25, "effect: updates die", effect_eps),
        ],
        cases=[
            dict(eps=1e-1, steps=20, warmup=2),
            dict(eps=1e-15, steps=20),
            dict(eps=1e-2, steps=6),
        ],
        mistakes=[({"eps": 1e-8}, OFF)],
        hints=dict(
            update="u = m^ / (sqrt(v^) + eps): outside of the root, after the correction of v.",
            steps="If one update is right, this should be too.",
        ),
    ),
    "beta2": dict(
        tests=[
            (50, "value: one update", update),
            (25, "five steps of AdamW", steps),
            (25, "effect: a sudden gradient", effect_beta2),
        ],
        cases=[
            dict(beta2=0.5, steps=20, warmup=2),
            dict(beta2=0.999, steps=20),
            dict(beta2=0.7, steps=6),
        ],
        mistakes=[({"beta2": 0.95}, OFF)],
        hints=dict(
            update=(
                "v = beta2 v + (1 - beta2) g^2, and v^ = v / (1 - beta2^t): all three hold beta2."
            ),
            steps="If one update is right, this should be too.",
        ),
    ),
    "clip": dict(
        tests=[
            (50, "value: one update", update),
            (25, "five steps of AdamW", steps),
            (25, "effect: a tight clip", effect_clip),
        ],
        cases=[
            dict(clip=0.5, steps=20),
            dict(clip=1e6, steps=20),
            dict(clip=0.0, steps=20),
            dict(clip=0.1, steps=6),
        ],
        mistakes=[
            ({"clip": 0}, OFF),
            (
                {"wrong_always": 1},
                "A gradient below the limit must stay as it is: clip only where norm > clip.",
            ),
        ],
        hints=dict(
            update=(
                "clip_scale = clip / norm where norm > clip, the norm of all gradients together; 0"
                " means no clipping."
            ),
            steps="If one update is right, this should be too.",
        ),
    ),
    "attention_backward": dict(
        tests=[
            (20, "dv on tiny cases", attention_tiny_dv),
            (30, "dq and dk on tiny cases", attention_tiny_qk),
            (25, "all three at larger shapes and scores", attention_large),
            (15, "gradient of a whole model, by finite differences", gradient),
            (10, "effect: attention learns", attention_effect),
        ],
        cases=[dict(qk_norm=0, layers=2), dict(qk_norm=1, d=24, heads=3, T=7)],
        first=("c_attn",),
        mistakes=[],
        hints=dict(
            gradient="attention_backward is wrong in some shape; the tests before this say where."
        ),
    ),
    "matmul": dict(
        tests=[
            (0, "products of every shape", multiply_right, True),
            (30, "3 times as fast as the naive loops", multiply_speed_3),
            (70, "10 times as fast", multiply_speed),
        ],
        cases=[],
        mistakes=[],
        hints={},
    ),
    "cuda": dict(
        files=("train_gpt.cu",),
        program="cuda",
        tests=[
            (20, "gelu_forward", kernel_gelu_forward),
            (20, "gelu_backward", kernel_gelu_backward),
            (25, "layernorm_forward", kernel_layernorm),
            (20, "layernorm_forward with the threads in other orders", kernel_orders),
            (15, "gradient of a whole model, by finite differences", kernel_model),
        ],
        cases=[],
        mistakes=[],
        hints={},
    ),
}


def cuda_forward(s, ex):
    forward(s, ex, "cuda", 2e-3)


def cuda_gradient(s, ex):
    gradient(s, ex, "cuda", 5e-3)


def cuda_steps(s, ex):
    # epsilon: else float's rounding of a gradient near 0 is a whole step
    steps(s, ex, "cuda", 5e-4, 1e-2)


def tests(name, cuda=False):
    """The exercise's tests; with train_gpt.cu, half of the points are for it."""
    out = EXERCISES[name]["tests"]
    if not cuda:
        return out
    more = (
        [(15, cuda_forward), (20, cuda_gradient), (15, cuda_steps)]
        if any(test[2] is forward for test in out)
        else [(50, cuda_steps)]
    )
    return [(test[0] / 2, *test[1:]) for test in out] + [
        (points, f"train_gpt.cu: {test.__name__[5:]}, in float", test) for points, test in more
    ]


def grade(folder, name, seed, cuda=False):
    """Grades; returns the content of grade.json."""
    ex, started = EXERCISES[name], time.monotonic()
    result = dict(
        exercise=name,
        score=0,
        max_score=100,
        seed=seed,
        verdict="",
        tests=[],
        kit=hashlib.sha256(b"".join(kit_file(f).read_bytes() for f in KIT_FILES)).hexdigest(),
    )
    student = None
    try:
        try:
            student = Student(
                folder,
                (*ex.get("files", ("train_gpt.c",)), *["train_gpt.cu"] * cuda),
                np.random.default_rng(seed),
            )
            student.seed = seed
            result["graded"] = student.hashes
            student.build(ex.get("program", "double"))
        except Wrong as error:
            result["verdict"] = str(error)
        needed = False
        for points, title, test, *gate in tests(name, cuda):
            one = dict(name=title, score=0, max_score=points, output="")
            result["tests"].append(one)
            if result["verdict"] or needed:
                one["output"] = result["verdict"] or "not tested: the first test must pass"
                continue
            student.rng = np.random.default_rng([seed, len(result["tests"])])
            try:
                test(student, ex)
                one["score"] = points
            except Wrong as error:
                one["output"] = str(error)
                needed = bool(gate)
                if isinstance(error, Endless):
                    result["verdict"] = "it does not end: no more tests"
            result["score"] += one["score"]
    finally:
        if student:
            shutil.rmtree(student.place, ignore_errors=True)
    result["verdict"] = result["verdict"] or (
        "all is right" if result["score"] == 100 else "see the tests"
    )
    result["execution_time"] = round(time.monotonic() - started, 2)
    return result


KIT_FILES = "grade.py", "reference.py", "driver.c"


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    if len(sys.argv) > 2:
        name = sys.argv[2:]
    else:
        try:
            name = (folder / "kit" / "exercise").read_text().split()
        except OSError:
            sys.exit(
                f"grade: {folder} is not the folder of an exercise: it has no kit/exercise; give"
                " one (make grade DIR=FOLDER), or say which exercise it is (EXERCISE=qk_norm)"
            )
    name, cuda = name[0], "cuda" in name[1:]
    if name not in EXERCISES:
        sys.exit(f"grade: no exercise '{name}'; there are: {' '.join(EXERCISES)}")
    result = grade(folder, name, int(os.environ.get("SEED") or secrets.randbelow(1 << 31)), cuda)
    for one in result["tests"]:
        print(
            f"{one['score']:3g} of {one['max_score']:<3g} {one['name']}"
            + (f"\n           {one['output']}" if one["output"] else "")
        )
    print(
        f"{result['score']:3g} of {result['max_score']}, {result['execution_time']} s:"
        f" {result['verdict']}"
    )
    part = folder / f"grade.json.{os.getpid()}"
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(folder / "grade.json")


if __name__ == "__main__":
    main()
