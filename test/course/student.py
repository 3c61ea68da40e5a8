"""A student's program: built in a temporary folder with the kit's driver, asked for its results,
and compared with the right ones."""

import hashlib
import os
import pathlib
import shlex
import shutil
import sys
import tempfile

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # small matrices: more threads only wait for each other
import numpy as np

import reference as ref
from sandbox import SECONDS, Wrong, run

KIT = pathlib.Path(__file__).resolve().parent
# A kit handed out is whole; else the project has the rest.
FOLDERS = (KIT,) if (KIT / "exercise").exists() else (KIT, KIT.parent / "cuda", KIT.parents[1])


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
        try:
            raw, seconds, text = run(
                [path, "FD", work, str(count), *flags],
                np.ascontiguousarray(numbers, np.float64).tobytes(),
                answer=True,
                cpu=cpu,
            )
        except Wrong as error:
            raise type(error)(f"with {shown(cfg)}: {error}")
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
        log = ref.log_columns(cfg)
        each = rows * V + 4 * N + 4 + L + len(log)
        numbers = np.concatenate([ref.pack(p)] + [x.ravel() for batch in batches for x in batch])
        flat, _ = self.answer(each * len(batches), "model", len(batches), cfg, numbers, program)
        out = []
        for a in flat.reshape(len(batches), each):
            cut = np.split(a, np.cumsum([rows * V, N, 1, 1, 1, 1, L, N, N, N]))
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
                        "log",
                    ),
                    cut,
                )
            )
            one["log"] = dict(zip(log, one["log"]))
            one["dlogits"] = one["dlogits"].reshape(cfg["batch"], cfg["T"], V)
            out.append(
                {
                    n: (
                        ref.unpack(cfg, x)
                        if n in ("grads", "p", "m", "v")
                        else x
                        if n in ("dlogits", "max_attn_logit", "log")
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
        # so that NaN is bad, and what is infinite equals nothing
        bad = ~(abs(x - y) <= tolerance * abs(x).max() + 1e-12) | ~np.isfinite(x)
        if bad.any():
            i = np.unravel_index(
                np.argmax(np.where(bad, np.where(np.isfinite(y), abs(x - y), np.inf), -1)), x.shape
            )
            return name, i, x[i], y[i]
    return None


def place(name, i):
    return name + ("[" + ",".join(map(str, i)) + "]" if len(i) > 1 or i[0] else "")


def expect(right, found, cfg, mistakes, hints, tolerance=1e-6, prefix=""):
    """Raises Wrong unless found equals right(cfg). The message names the first difference; its
    first hint is the mistake with which the reference gives the same numbers, if there is one."""
    at = differs(right(cfg), found, tolerance)
    if not at:
        return
    name, i, wanted, got = at
    text = f"{prefix}{place(name, i)}: expected {wanted:.6g}, found {got:.6g} (with {shown(cfg)})"
    if not np.isfinite(got):
        raise Wrong(
            text,
            "Not a number: memory that was not written, a division by 0, or the logarithm or"
            " root of a negative number.",
            *hints,
        )
    for change, words in mistakes:
        other = {**cfg, **change}
        if other != cfg and ref.shapes(other) == ref.shapes(cfg):
            try:
                if not differs(right(other), found, tolerance):
                    raise Wrong(text, words, *hints)
            except (KeyError, ValueError, ZeroDivisionError):
                continue
    raise Wrong(text, "", *hints)
