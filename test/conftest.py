"""Builds the C trainer as a library (shim.c) and lets the tests call it: Library is the C side,
Model one model."""

import ctypes as ct
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import zlib

import numpy as np
import pytest

TEST = pathlib.Path(__file__).resolve().parent
ROOT = TEST.parent
# the test files use each other, across folders
sys.path[:0] = map(str, sorted(TEST.glob("[a-z]*/")))
pytest.register_assert_rewrite("survive")  # its stories, too, show what failed
# A shell's background jobs ignore Ctrl-C, nohup's SIGHUP, and so would every program under test.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# the compiler itself needs no sanitizer
# the columns of log.csv with a value for each layer
BY_LAYER = re.findall(
    r'"(\w+)"', re.search(r"BY_LAYER\[.*?};", (ROOT / "lib/run.h").read_text(), re.S)[0]
)
NO_PRELOAD = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}


def compiles(cc, *flags):
    return not subprocess.run(
        [*cc, *flags, "-x", "c", "-", "-o", os.devnull],
        input=b"int main(void) { return 0; }",
        capture_output=True,
        env=NO_PRELOAD,
    ).returncode


def build_shim(double):
    """Compiles shim.c with CC and CFLAGS from the environment; again only when a source is newer
    than the library."""
    cc = shlex.split(os.environ.get("CC", "cc"))
    flags = shlex.split(os.environ.get("CFLAGS", "-O3 -march=native")) + ["-DDOUBLE"] * double
    flags += [f for f in ("-fopenmp-simd", "-fopenmp") if compiles(cc, f)]
    return build(
        f"shim_{'double' if double else 'float'}",
        [*cc, *flags, "-shared", "-fPIC", "-I", str(ROOT), str(TEST / "model" / "shim.c")],
        ".so",
    )


def build(name, command, suffix=""):
    """The file of this name that the command makes; each command has a file of its own."""
    result = ROOT / "build" / f"{name}_{zlib.crc32(shlex.join(command).encode()):08x}{suffix}"
    sources = [
        s
        for pattern in ("*", "lib/*", "test/**/*")
        for s in ROOT.glob(pattern)
        if s.suffix in (".c", ".h", ".cu")
    ]
    if not result.exists() or result.stat().st_mtime < max(s.stat().st_mtime for s in sources):
        result.parent.mkdir(exist_ok=True)
        part = result.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, "-o", str(part), "-lm"], check=True, env=NO_PRELOAD)
        part.replace(result)
    return result


SANITIZE = "-O0", "-g1", "-fsanitize=address,alignment", "-fno-sanitize-recover=all"


def build_emu(name, source, *flags, suffix=""):
    """Builds a .cu file over the stand-in for CUDA, as `make train_gpt_cu_emu` does."""
    cxx = shlex.split(os.environ.get("CXX", "g++"))
    fast = () if "-O0" in flags else shlex.split(os.environ.get("CXXFLAGS", "-O2 -march=native"))
    return build(
        name,
        [
            *cxx,
            "-std=c++17",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-Wno-unknown-pragmas",
            "-Wno-unused-function",
            "-fno-strict-aliasing",
            "-rdynamic",
            "-DCUDA_EMU",
            *fast,
            *flags,
            "-I",
            str(ROOT),
            "-x",
            "c++",
            str(source),
        ],
        suffix,
    )


class Library:
    """shim.c at one precision. Arrays of `real` go in and out as C-contiguous numpy arrays of
    self.real. Or another library of its functions, of which some may be missing."""

    def __init__(self, double, path=None):
        self.c = c = ct.CDLL(str(path or build_shim(double)))
        self.real = np.float64 if double else np.float32
        c.shim_real_size.restype = ct.c_size_t
        assert c.shim_real_size() == np.dtype(self.real).itemsize
        for name in "shim_new shim_params shim_grads shim_m shim_v".split():
            getattr(c, name).restype = ct.c_void_p
        for (
            name
        ) in "forward backward total_loss log_z mean_logit by_layer act_rms update lr".split():
            if path is None or hasattr(c, "shim_" + name):
                getattr(c, "shim_" + name).restype = ct.c_double
        c.shim_num_parameters.restype = ct.c_long
        for name in (
            "free layernorm_forward layernorm_backward gelu_forward gelu_backward rope "
            "capped_forward capped_backward soft_cap gate_forward gate_backward "
            "orthogonalize round_to_bf16 cross_entropy matmul matmul_forward matmul_backward "
            "tensor".split()
        ):
            if path is None or hasattr(c, "shim_" + name):
                getattr(c, "shim_" + name).restype = None

    def threads(self, n):
        """Without OpenMP there is one. More threads than free cores wait for each other: small
        models want one."""
        if hasattr(self.c, "omp_set_num_threads"):
            self.c.omp_set_num_threads(ct.c_int(n))

    def array(self, x):
        return np.array(x, self.real, order="C")

    def empty(self, *shape):
        """Filled with NaN: whatever the C code forgets to write shows."""
        return np.full(shape, np.nan, self.real)

    def call(self, name, *args):
        """Calls a layer: a float goes as double, an array by its address, None as NULL."""
        for a in args:
            assert not isinstance(a, np.ndarray) or (
                a.flags.c_contiguous and a.dtype in (self.real, np.int32, np.float64)
            )
        return getattr(self.c, "shim_" + name)(*[pass_on(a) for a in args])

    # Layers, each returning what it computed.

    def layernorm_forward(self, x, w):
        out, mean, rstd = self.empty(*x.shape), self.empty(len(x)), self.empty(len(x))
        self.call("layernorm_forward", out, mean, rstd, x, w, *x.shape)
        return out, mean, rstd

    def layernorm_backward(self, dout, x, w, mean, rstd):
        dx, dw = self.empty(*x.shape), self.empty(*w.shape)
        self.call("layernorm_backward", dx, dw, dout, x, w, mean, rstd, *x.shape)
        return dx, dw

    def gelu_forward(self, x):
        """The value and the slope."""
        out, slope = self.empty(*x.shape), self.empty(*x.shape)
        self.call("gelu_forward", out, slope, x, *rows_of(x))
        return out, slope

    def gelu_backward(self, x, dout):
        dx, slope = self.empty(*x.shape), self.gelu_forward(x)[1]
        self.call("gelu_backward", dx, dout, slope, *rows_of(x))
        return dx

    def rope(self, which, x):
        out = self.empty(*x.shape)
        self.call("rope", out, x, dict(forward=1, backward=-1)[which], *x.shape)
        return out

    def attention_forward(self, q, k, v, scale, cap=0.0):
        """Out, softmax's two numbers and the largest logit; a cap of 0 is none."""
        B, T, NH, HS = q.shape
        out, softmax = self.empty(B, T, NH, HS), self.empty(B, NH, T, 2)
        largest, (qk, qkv) = self.empty(NH), packed(q, k, v)
        self.call("capped_forward", out, softmax, qk, qkv, scale, cap, B, T, NH, HS, largest)
        return out, softmax, largest.max()

    def attention_backward(self, dout, out, softmax, q, k, v, scale, cap=0.0):
        B, T, NH, HS = q.shape
        dqkv, (qk, qkv) = self.empty(B, T, 3, NH, HS), packed(q, k, v)
        self.call("capped_backward", dqkv, dout, out, softmax, qk, qkv, scale, cap, *q.shape)
        return [np.ascontiguousarray(dqkv[:, :, i]) for i in range(3)]

    def soft_cap(self, s, cap):
        """The value and the slope."""
        out, slope = self.empty(*s.shape), self.empty(*s.shape)
        self.call("soft_cap", out, slope, s, float(cap), s.size)
        return out, slope

    def gate_forward(self, att, gate):
        out = self.empty(*att.shape)
        self.call("gate_forward", out, att, gate, *rows_of(att))
        return out

    def gate_backward(self, dout, att, gate):
        """The gradients of att, in dout's place as in the model, and of gate."""
        datt, dgate = dout.copy(), self.empty(*att.shape)
        self.call("gate_backward", datt, dgate, datt, att, gate, *rows_of(att))
        return datt, dgate

    def orthogonalize(self, x):
        out = x.copy()
        self.call("orthogonalize", out, *out.shape)
        return out

    def round_to_bf16(self, logits):
        out = logits.copy()
        self.call("round_to_bf16", out, *out.shape)
        return out

    def cross_entropy(self, logits, targets, z_loss):
        dlogits, loss, log_z = logits.copy(), np.full(1, np.nan), np.full(1, np.nan)
        self.call("cross_entropy", dlogits, loss, log_z, np.int32(targets), z_loss, *logits.shape)
        return dlogits, loss[0], log_z[0]

    def matmul(self, out, a, b, add, M, N, K, trans_a, trans_b):
        self.call("matmul", out, a, b, add, M, N, K, int(trans_a), int(trans_b))
        return out

    def matmul_forward(self, x, w):
        """Out as the line after the call finds it."""
        seen, out = self.empty(len(x), len(w)), self.empty(len(x), len(w))
        self.call("matmul_forward", seen, out, x, w, *x.shape, len(w))
        return seen

    def matmul_backward(self, dout, x, w):
        """The gradients of x and w, as the line after the call finds them."""
        seen, dx = self.empty(*x.shape), self.empty(*x.shape)
        seen_w, dw = self.empty(*w.shape), self.empty(*w.shape)
        self.call("matmul_backward", seen, seen_w, dx, dw, dout, x, w, *x.shape, len(w))
        return seen, seen_w


def rows_of(x):
    """The shape of x as rows and columns: a vector is one row."""
    return (1, x.size) if x.ndim == 1 else (x.size // x.shape[-1], x.shape[-1])


def packed(q, k, v):
    """q and k (B,T,NH,HS) as (B,T,2,C), and v as (B,T,3,C), in which nobody may read q and k."""
    return np.stack([q, k], 2), np.stack([np.full_like(v, np.nan)] * 2 + [v], 2)


def pass_on(a):
    if isinstance(a, np.ndarray):
        return ct.c_void_p(a.ctypes.data)
    return ct.c_double(a) if isinstance(a, float) else a  # an int goes as C's int


class Model:
    """A model of the C side. p, g, m, v: its memory as dicts of arrays, to read and to write."""

    def __init__(self, library, **flags):
        self.c, self.cfg = library.c, flags
        argv = [b"train_gpt"] + [
            str(x).encode() for name, value in flags.items() for x in ("-" + name, value)
        ]
        self.handle = ct.c_void_p(
            self.c.shim_new(ct.c_int(len(argv)), (ct.c_char_p * len(argv))(*argv))
        )
        self.size = self.c.shim_num_parameters(self.handle)
        flat = []
        for name in "params grads m v".split():
            address = getattr(self.c, "shim_" + name)(self.handle)
            flat.append(
                np.ctypeslib.as_array(
                    ct.cast(
                        address,
                        ct.POINTER(ct.c_double if library.real == np.float64 else ct.c_float),
                    ),
                    (self.size,),
                )
            )
        self.flat, self.p, self.g, self.m, self.v = flat[0], {}, {}, {}, {}
        for i in range(self.c.shim_num_tensors(self.handle)):
            name = ct.create_string_buffer(128)
            offset, rows, cols = ct.c_long(), ct.c_long(), ct.c_long()
            self.c.shim_tensor(self.handle, ct.c_int(i), name, *map(ct.byref, (offset, rows, cols)))
            name, offset, rows, cols = name.value.decode(), offset.value, rows.value, cols.value
            vector = re.search(r"(^|\.)(ln|post)_|_norm\.", name) is not None
            assert rows == 1 or not vector, name
            for flat_array, tensors in zip(flat, (self.p, self.g, self.m, self.v)):
                x = flat_array[offset : offset + rows * cols]
                tensors[name] = x if vector else x.reshape(rows, cols)

    def __del__(self):
        if getattr(self, "handle", None):
            self.c.shim_free(self.handle)

    def batch(self, function, inputs, targets):
        inputs, targets = (np.ascontiguousarray(x, np.int32) for x in (inputs, targets))
        return function(self.handle, *map(pass_on, (inputs, targets)), *map(ct.c_int, inputs.shape))

    def forward(self, inputs, targets):
        return self.batch(self.c.shim_forward, inputs, targets)

    def backward(self, inputs, targets):
        return self.batch(self.c.shim_backward, inputs, targets)

    def total_loss(self):
        return self.c.shim_total_loss(self.handle)

    def log_z(self):
        return self.c.shim_log_z(self.handle)

    def mean_logit(self):
        return self.c.shim_mean_logit(self.handle)

    def by_layer(self, name):
        """Of each layer, the measure of a name in log.csv."""
        i = BY_LAYER.index(name)
        layers = range(self.cfg["layers"])
        return np.array(
            [self.c.shim_by_layer(self.handle, ct.c_int(i), ct.c_int(l)) for l in layers]
        )

    def act_rms(self):
        """Without layers, of the embedding, the last residual and the logits."""
        rms = np.array([self.c.shim_act_rms(self.handle, ct.c_int(i)) for i in range(6)])
        if self.cfg["layers"]:
            return rms
        assert np.isnan(rms[1:4]).all()
        return rms[[0, 4, 5]]

    def update(self, step):
        return self.c.shim_update(self.handle, ct.c_int(step))

    def lr(self, step):
        return self.c.shim_lr(self.handle, ct.c_int(step))


def library(double):
    library = Library(double)
    library.threads(1)
    return library


@pytest.fixture(scope="session")
def float_library():
    return library(False)


@pytest.fixture(scope="session")
def double_library():
    return library(True)
