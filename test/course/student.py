"""A student's program: built in a temporary folder with the kit's driver, asked for its results,
and compared with the right ones."""

import functools
import hashlib
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # small matrices: more threads only wait for each other
import numpy as np

import reference as ref
from sandbox import NOBODY, SECONDS, THREADS, Outside, Wrong, run

LARGEST = 4 << 20  # bytes that are read of a source
# of a CUDA program: how g++ speaks of a name that it does not know, and what to say then
UNKNOWN = "not declared|not been declared|not name a type|No such file|not a |primary-expression"
STAND_IN = (
    "CUDA? The first lines of cuda_emu.h, its stand-in, say what there is and what is missing."
)
SEVERAL = 3  # threads that must give the results of one
KIT = pathlib.Path(__file__).resolve().parent
# A kit handed out is whole; else the project has the rest.
FOLDERS = (KIT,) if (KIT / "exercise").exists() else (KIT, KIT.parent / "cuda", KIT.parents[1])


def kit_file(name):
    for folder in FOLDERS:
        if (folder / name).exists():
            return folder / name
    sys.exit(f"grade: the kit has no {name}")


def source(folder, name, files):
    """The content of a file that is handed in with these others."""
    path = folder / name
    if not path.exists() and not path.is_symlink():
        raise Wrong(f"{name} is missing: hand in {' and '.join(sorted(files))}")
    if path.is_symlink() or not path.is_file():
        raise Wrong(f"{name} is not a plain file: hand in the file itself")
    try:
        with path.open("rb") as file:
            return file.read(LARGEST)
    except OSError as error:
        raise Wrong(f"{name} cannot be read: {error.strerror}")


def nearest(paths, top):
    """The folder that holds the most of these files; of several, the nearest to the top."""
    folders = [path.parent for path in paths]
    rank = lambda folder: (-folders.count(folder), len(folder.parts), str(folder))
    return min(folders, key=rank, default=top)


@functools.cache
def openmp(cc):
    """Whether this compiler has OpenMP with its library."""
    command = [*shlex.split(cc), "-fopenmp", "-include", "omp.h", "-x", "c", "-", "-o", os.devnull]
    program = b"int main(void) { return 0; }"
    try:
        return not subprocess.run(command, input=program, capture_output=True).returncode
    except OSError:
        return False


def quoted(place, name, line, column, width=64):
    """A line of a source in this folder and a caret below its column, or nothing."""
    path = (place / name).resolve()
    if place.resolve() not in path.parents or not path.is_file():
        return []
    lines = path.read_text(errors="replace").splitlines()
    if not 0 < line <= len(lines):
        return []
    code = lines[line - 1].expandtabs()
    start = len(code) - len(code.lstrip())
    if column - start > width:
        start = column - width // 2
    return ["  " + code[start:][:width].rstrip(), "  " + " " * (column - 1 - start) + "^"]


def undefined(text):
    """The functions that the linker misses, three at most, a line each."""
    missing = re.findall(r"undefined (?:reference to|symbol:?) [`'‘]?(\w+)", text)
    return "\n".join(f"undefined reference to '{x}'" for x in list(dict.fromkeys(missing))[:3])


class Student:
    """The student's program, built in a temporary folder, and its answers. threads: run it with
    several threads too, where the compiler has OpenMP. In the test at hand, raced: how the results
    differed then; trained_twice: a training has been run with several, and one is enough."""

    def __init__(self, folder, files, rng, threads=True):
        self.folder, self.built, self.hashes, self.warnings = folder, {}, {}, []
        self.threads = threads
        self.begin(rng)
        self.place = pathlib.Path(tempfile.mkdtemp(prefix="grade-"))
        self.place.chmod(0o755)
        for name in {"gpt.h", "dataloader.h", "driver.c", "kit.h"} - set(files):
            shutil.copy(kit_file(name), self.place)
        (self.place / "lib").mkdir()
        for header in (header for folder in FOLDERS for header in folder.glob("lib/*.h")):
            shutil.copy(header, self.place / "lib")
        for name in files:
            text = source(folder, name, files)
            self.hashes[name] = hashlib.sha256(text).hexdigest()
            (self.place / name).write_bytes(text)

    def begin(self, rng):
        """Begins a test, whose inputs are drawn from rng."""
        self.rng, self.raced, self.trained_twice = rng, "", False

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
                    "-Wall",
                    "-Wno-unknown-pragmas",
                    "-Wno-unused-function",
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
                cc = os.environ.get("CC", "cc")
                command = [
                    *shlex.split(cc),
                    "-std=gnu11",
                    "-Wall",
                    "-Wno-unknown-pragmas",
                    "-march=native",
                    "-fno-math-errno",
                    "-fopenmp" if openmp(cc) else "-fopenmp-simd",
                    *options,
                    "driver.c",
                ]
            try:
                command += ["-o", name, "-lm"]
                text = self.compile(command)
            except Wrong as error:
                said = [*self.compiler_says("error", error.text), undefined(error.text)][0]
                if name == "cuda" and re.search(UNKNOWN, said):
                    said += f"\n{STAND_IN}"
                raise Wrong("it does not compile: " + (f"\n{said}" if said else str(error)))
            for one in self.compiler_says("warning", text, self.hashes):
                if one not in self.warnings:
                    self.warnings.append(one)
            (self.place / name).chmod(0o755)
            self.built[name] = str(self.place / name)
        return self.built[name]

    def compile(self, command):
        """Runs a compiler in the folder and returns what it says. A source may include any file, so
        root gives the folder to the user that the compiler runs as, who reads no secrets."""
        if os.geteuid() == 0:
            for path in (self.place, *self.place.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
        return run(command, cpu=120, files=64 << 20, processes=1, cwd=self.place)[2]

    def compiler_says(self, kind, text, files=None):
        """The compiler's errors or warnings, those in these files alone if given: each its line,
        then the source line and a caret."""
        out = []
        for at in re.finditer(rf"^([^\s:]+):(\d+):(\d+): (?:fatal )?{kind}: .*$", text, re.M):
            name, line, column = at[1], int(at[2]), int(at[3])
            if files is None or name in files:
                out.append("\n".join([at[0], *quoted(self.place, name, line, column)]))
        return out

    def answer(self, size, work, count, cfg, numbers, program="double", cpu=SECONDS, named=None):
        """The program's answer, `size` numbers, and its seconds of processor time. Runs it with
        SEVERAL threads too, which must not change a number; if they do, says so in raced.
        named(numbers) is a dict of the answer's arrays."""
        path = self.build(program)
        flags = [
            x
            for name, value in cfg.items()
            if not name.startswith("wrong_")
            for x in ("-" + name, str(value))
        ]
        numbers = np.ascontiguousarray(numbers, np.float64).tobytes()
        several = self.threads and program == "double" and THREADS
        several = several and openmp(os.environ.get("CC", "cc"))
        if work == "train":
            several, self.trained_twice = several and not self.trained_twice, True
        answers = []
        for threads in (1, SEVERAL) if several else (1,):
            command = [path, "FD", work, str(count), *flags]
            try:
                raw, seconds, text = run(command, numbers, answer=True, cpu=cpu, threads=threads)
            except Outside as error:
                where = "An index is too large, or negative: at the last row, or at an odd size?"
                raise Outside(f"{error}" + f" (with {shown(cfg)})" * bool(cfg), "", where)
            except Wrong as error:
                raise type(error)(f"with {shown(cfg)}: {error}" if cfg else str(error))
            if len(raw) != 8 * size:
                raise Wrong(
                    f"it answered {len(raw)} bytes where {8 * size} were asked for: it ends too"
                    " early, or writes where the driver does"
                    + (f". It printed: {text[-300:]}" if text else "")
                )
            answers.append((np.frombuffer(raw), seconds))
        one, other = answers[0][0], answers[-1][0]
        if not self.raced and not np.array_equal(one, other, equal_nan=True):
            named = named or (lambda numbers: dict(answer=numbers))
            name, i, wanted, got = differs(named(one), named(other), 0, 0)
            self.raced = (
                f"{place(name, i)} is {wanted:.10g} with 1 thread, {got:.10g} with {SEVERAL}"
                f" (OMP_NUM_THREADS; with {shown(cfg)})"
            )
        return answers[0]

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
        fields = "dlogits grads loss log_z norm lr max_attn_logit p m v log".split()
        places = np.cumsum([rows * V, N, 1, 1, 1, 1, L, N, N, N])

        def steps(flat):
            out = []
            for part in flat.reshape(len(batches), each):
                one = dict(zip(fields, np.split(part, places)))
                one["log"] = dict(zip(log, one["log"]))
                one["dlogits"] = one["dlogits"].reshape(cfg["batch"], cfg["T"], V)
                for name in "grads", "p", "m", "v":
                    one[name] = ref.unpack(cfg, one[name])
                for name in "loss", "log_z", "norm", "lr":
                    one[name] = one[name][0]
                out.append(one)
            return out

        named = lambda flat: {f"step {t}": one for t, one in enumerate(steps(flat), 1)}
        size = each * len(batches)
        flat, _ = self.answer(size, "model", len(batches), cfg, numbers, program, named=named)
        return steps(flat)

    def initial(self, cfg):
        """The weights that training starts from."""
        size = sum(np.prod(shape) for shape in ref.shapes(cfg).values())
        flat, _ = self.answer(size, "init", 0, cfg, [])
        return ref.unpack(cfg, flat.copy())

    def trained(self, cfg, p, batches):
        """The weights after training on these batches."""
        numbers = np.concatenate([ref.pack(p)] + [x.ravel() for batch in batches for x in batch])
        flat, _ = self.answer(
            ref.pack(p).size,
            "train",
            len(batches),
            cfg,
            numbers,
            cpu=2 * SECONDS,
            named=lambda flat: dict(trained=ref.unpack(cfg, flat)),
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


@np.errstate(invalid="ignore")
def differs(wanted, found, tolerance, least=1e-12):
    """Where two dicts of numbers and arrays differ first: (name, index, wanted, found), or None.
    Relative to the array's largest, or by `least`."""
    for name, x in wanted.items():
        if isinstance(x, dict):
            if at := differs(x, found[name], tolerance, least):
                plain = name in ("grads", "p")
                return ("" if plain else f"{name}: ") + at[0], *at[1:]
            continue
        x, y = np.atleast_1d(x), np.atleast_1d(found[name])
        # so that NaN is bad, and what is infinite equals nothing
        bad = ~(abs(x - y) <= tolerance * abs(x).max() + least) | ~np.isfinite(x)
        if bad.any():
            i = np.unravel_index(
                np.argmax(np.where(bad, np.where(np.isfinite(y), abs(x - y), np.inf), -1)), x.shape
            )
            return name, i, x[i], y[i]
    return None


def place(name, i):
    return name + ("[" + ",".join(map(str, i)) + "]" if len(i) > 1 or i[0] else "")


def apart(wanted, got):
    """The two numbers in words, with six digits or as many as tell them apart."""
    for digits in range(6, 18):
        one, other = f"{wanted:.{digits}g}", f"{got:.{digits}g}"
        if one != other:
            break
    return f"expected {one}, found {other}"


def expect(right, found, cfg, mistakes, hints, tolerance=1e-6, prefix=""):
    """Raises Wrong unless found equals right(cfg). The message names the first difference; its
    first hint is the mistake with which the reference gives the same numbers, if there is one."""
    at = differs(right(cfg), found, tolerance)
    if not at:
        return
    name, i, wanted, got = at
    text = f"{prefix}{place(name, i)}: {apart(wanted, got)} (with {shown(cfg)})"
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
