"""Checkpoints: what model.safetensors holds, and that no damaged one is ever taken or overwritten.

Each row of DAMAGES makes a damaged file from a good one; the trainer must refuse it with exit
status 1 and one line that names the file, and leave it as it was."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

REPO = Path(__file__).resolve().parents[2]
PROGRAM = os.environ.get("TRAIN_GPT", str(REPO / "train_gpt"))
FLAGS = "-lr 1e-3 -d 16 -layers 1 -heads 2 -T 8 -batch 2 -steps 3 -eval_tokens 64".split()
FILE = "model.safetensors"


def run(folder, *flags, cwd, **options):
    return subprocess.run(
        [PROGRAM, *flags, "-out", str(folder)],
        cwd=cwd,
        timeout=120,
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        **options,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    home = tmp_path_factory.mktemp("checkpoint")
    result = run(home / "good", *FLAGS, cwd=home)
    assert result.returncode == 0, result.stderr
    return home / "good"


@pytest.fixture
def copy(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "copy"))


# ---------------------------------------------------------------------------
# Taking a file apart, and putting together one that lies


def split(blob):
    end = 8 + int.from_bytes(blob[:8], "little")
    return json.loads(blob[8:end]), blob[end:]


def to_json(header, **options):
    return json.dumps(header, ensure_ascii=False, **options).encode()


def join(header, data):
    text = header if isinstance(header, bytes) else to_json(header)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def names(header):
    """The tensors' names, in the order of their data."""
    return sorted(
        (n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"]
    )


def length(n):
    """The header's length field says n (of the true length and the file's)."""
    return (
        lambda blob: n(int.from_bytes(blob[:8], "little"), len(blob)).to_bytes(8, "little")
        + blob[8:]
    )


def cut(n):
    """Only the first n bytes (of the header's end and the file's length)."""
    return lambda blob: blob[: n(8 + int.from_bytes(blob[:8], "little"), len(blob))]


def edit(change):
    """change(header, first tensor's name, second's)"""

    def damage(blob):
        header, data = split(blob)
        change(header, *names(header)[:2])
        return join(header, data)

    return damage


def field(key, value):
    """The first tensor's field becomes value, or value(what it was)."""
    return edit(lambda h, a, b: h[a].update({key: value(h[a][key]) if callable(value) else value}))


def text(change):
    """change(the header as bytes)"""

    def damage(blob):
        end = 8 + int.from_bytes(blob[:8], "little")
        changed = change(blob[8:end].rstrip(b" "))
        assert changed != blob[8:end].rstrip(b" ")
        return join(changed, blob[end:])

    return damage


def only(header):
    """A header of these bytes before the true data."""
    return lambda blob: join(header, split(blob)[1])


def first(old, new):
    """The first occurrence of old in the header becomes new."""
    return text(lambda t: t.replace(old, new, 1))


def raw_number(number):
    """The first tensor's data begin at this number, written as it is."""

    def damage(blob):
        header, data = split(blob)
        header[names(header)[0]]["data_offsets"][0] = "NUMBER"
        return join(to_json(header).replace(b'"NUMBER"', number), data)

    return damage


def without_first(blob):
    """A sound file, in which one tensor is missing."""
    header, data = split(blob)
    gone = header.pop(names(header)[0])["data_offsets"][1]
    for name in names(header):
        header[name]["data_offsets"] = [offset - gone for offset in header[name]["data_offsets"]]
    return join(header, data[gone:])


def grown(extra_bytes, **tensor):
    """A tensor more, behind the others."""

    def damage(blob):
        header, data = split(blob)
        header["extra"] = dict(
            dtype="U8", shape=[extra_bytes], data_offsets=[len(data), len(data) + extra_bytes]
        )
        header["extra"].update(tensor)
        return join(header, data + bytes(extra_bytes))

    return damage


def duplicate(blob):
    """The first tensor is there twice, each time with its own data."""
    header, data = split(blob)
    name = names(header)[0]
    size = header[name]["data_offsets"][1]
    again = {name: dict(header[name], data_offsets=[len(data), len(data) + size])}
    return join(to_json(header)[:-1] + b"," + to_json(again)[1:], data + data[:size])


def hole(blob):
    """Eight bytes between the first tensor and the second belong to neither."""
    header, data = split(blob)
    start = header[names(header)[0]]["data_offsets"][1]
    for name in names(header)[1:]:
        header[name]["data_offsets"] = [offset + 8 for offset in header[name]["data_offsets"]]
    return join(header, data[:start] + bytes(8) + data[start:])


def overlap(blob):
    """All after the first tensor begin four bytes early."""
    header, data = split(blob)
    for name in names(header)[1:]:
        header[name]["data_offsets"] = [offset - 4 for offset in header[name]["data_offsets"]]
    return join(header, data[:-4])


def resized(blob):
    """A sound file, whose first tensor has a row less."""
    header, data = split(blob)
    name = names(header)[0]
    row = header[name]["data_offsets"][1] // header[name]["shape"][0]
    header[name]["shape"][0] -= 1
    for other in names(header):
        header[other]["data_offsets"] = [
            max(0, offset - row) for offset in header[other]["data_offsets"]
        ]
    return join(header, data[row:])


DAMAGES = {
    # truncated, or longer than it says
    "empty": cut(lambda header, size: 0),
    "one byte": cut(lambda header, size: 1),
    "seven bytes": cut(lambda header, size: 7),
    "length only": cut(lambda header, size: 8),
    "length and a brace": cut(lambda header, size: 9),
    "half a header": cut(lambda header, size: header // 2),
    "header but its last byte": cut(lambda header, size: header - 1),
    "header only": cut(lambda header, size: header),
    "header and a byte": cut(lambda header, size: header + 1),
    "half the data": cut(lambda header, size: (header + size) // 2),
    "all but a number": cut(lambda header, size: size - 4),
    "all but a byte": cut(lambda header, size: size - 1),
    "a byte more": lambda blob: blob + b"\0",
    "eight bytes more": lambda blob: blob + bytes(8),
    "twice": lambda blob: blob + blob,
    # the header's length
    "length 0": length(lambda n, size: 0),
    "length 1": length(lambda n, size: 1),
    "length 8 short": length(lambda n, size: n - 8),
    "length 8 long": length(lambda n, size: n + 8),
    "length of the file": length(lambda n, size: size),
    "length to the end": length(lambda n, size: size - 8),
    "length 100 MB": length(lambda n, size: 100000000),
    "length above 100 MB": length(lambda n, size: 100000001),
    "length 4 GB": length(lambda n, size: 2**32),
    "length 2^63 - 1": length(lambda n, size: 2**63 - 1),
    "length 2^63": length(lambda n, size: 2**63),
    "length 2^64 - 8": length(lambda n, size: 2**64 - 8),
    "length 2^64 - 1": length(lambda n, size: 2**64 - 1),
    "length big-endian": lambda blob: blob[:8][::-1] + blob[8:],
    # another kind of file
    "zeros": lambda blob: bytes(len(blob)),
    "ones": lambda blob: b"\xff" * len(blob),
    "a text": lambda blob: b"Once upon a time there was a small model.\n" * 100,
    "a zip": lambda blob: b"PK\x03\x04" + blob,
    "json": lambda blob: blob[8:],
    # JSON that is none
    "no header": only(b""),
    "no tensors": only(b"{}"),
    "an open brace": only(b"{"),
    "a closed brace": only(b"}"),
    "a list": only(b"[]"),
    "null": only(b"null"),
    "a string": only(b'"wte.weight"'),
    "nested lists": only(b"[" * 100000),
    "nested objects": only(b'{"a":' * 100000),
    "nested in a tensor": only(b'{"a":{"shape":' + b"[" * 100000),
    "nested metadata": only(b'{"__metadata__":' * 10000 + b"{}" + b"}" * 10000),
    "not closed": text(lambda t: t[:-1]),
    "closed twice": text(lambda t: t + b"}"),
    "two objects": text(lambda t: t + t),
    "comma at the end": text(lambda t: t[:-1] + b",}"),
    "comma at the start": text(lambda t: b"{," + t[1:]),
    "no colons": text(lambda t: t.replace(b":", b" ")),
    "single quotes": text(lambda t: t.replace(b'"', b"'")),
    "a comment": text(lambda t: b"{/**/" + t[1:]),
    "NUL first": text(lambda t: b"\0" + t),
    "NUL inside": first(b'"F32"', b'"F\x0032"'),
    "NUL between": first(b",", b",\0"),
    "NUL last": text(lambda t: t + b"\0"),
    "garbage": only(bytes(range(256)) * 8),
    # strings
    "string without end": text(lambda t: t.rstrip(b"}") + b',"never ends'),
    "control character": first(b'.weight"', b'.wei\nght"'),
    "unknown escape": first(b'.weight"', b'.\\weight"'),
    "short \\u": first(b'.weight"', b'.\\u12"'),
    "\\u of no hex": first(b'.weight"', b'.\\uwxyz"'),
    "\\u0000": first(b'.weight"', b'.weight\\u0000"'),
    "escaped letter": first(b'"__metadata__":{', b'"__metadata__":{"\\u0077":"1",'),
    "escaped newline": first(b'"__metadata__":{', b'"__metadata__":{"a\\nb":"1",'),
    "lone surrogate": first(b'.weight"', b'.weight\\ud800"'),
    "escape at the end": text(lambda t: t.rstrip(b"}") + b',"\\'),
    "long name": text(
        lambda t: t[:-1]
        + b',"'
        + b"x" * 100000
        + b'":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    ),
    "name of a newline": text(
        lambda t: t[:-1] + b',"a\\nb":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    ),
    # numbers
    "negative": raw_number(b"-1"),
    "minus zero": raw_number(b"-0"),
    "plus": raw_number(b"+0"),
    "fraction": raw_number(b"0.5"),
    "exponent": raw_number(b"0e0"),
    "hexadecimal": raw_number(b"0x0"),
    "leading zeros": raw_number(b"00"),
    "2^64": raw_number(b"18446744073709551616"),
    "10^5000": raw_number(b"1" + b"0" * 5000),
    "number as string": raw_number(b'"0"'),
    "number null": raw_number(b"null"),
    "number true": raw_number(b"true"),
    "number missing": raw_number(b""),
    "NaN": raw_number(b"NaN"),
    # offsets
    "reversed": field("data_offsets", lambda v: v[::-1]),
    "outside": field("data_offsets", lambda v: [v[0] + 10**9, v[1] + 10**9]),
    "far outside": field("data_offsets", lambda v: [2**64 - 1 - v[1], 2**64 - 1]),
    "wrapping": field("data_offsets", lambda v: [2**64 - 4, v[1] - 4]),
    "to the moon": field("data_offsets", [0, 2**64 - 1]),
    "four short": field("data_offsets", lambda v: [v[0], v[1] - 4]),
    "one short": field("data_offsets", lambda v: [v[0], v[1] - 1]),
    "empty tensor": field("data_offsets", [0, 0]),
    "one offset": field("data_offsets", [0]),
    "three offsets": field("data_offsets", lambda v: v + v[1:]),
    "no offsets": field("data_offsets", []),
    "offsets a number": field("data_offsets", 0),
    "many offsets": field("data_offsets", [0] * 100000),
    "same bytes": edit(
        lambda h, a, b: h[b].update({k: h[a][k] for k in ("shape", "data_offsets")})
    ),
    "another tensor's bytes": edit(
        lambda h, a, b: h["adam.m.wte.weight"].update(data_offsets=h["wte.weight"]["data_offsets"])
    ),
    "overlap": overlap,
    "hole": hole,
    # shapes
    "swapped": field("shape", lambda v: v[::-1]),
    "flat": field("shape", lambda v: [int(np.prod(v))]),
    "three dimensions": field("shape", lambda v: [1] + v),
    "scalar": field("shape", []),
    "a row less": resized,
    "shape that is not the offsets'": field("shape", lambda v: [v[0] + 1] + v[1:]),
    "product of 2^64": field("shape", [2**32, 2**32]),
    "product wraps to the size": field("shape", lambda v: [2**62 + int(np.prod(v)), 1]),
    "bytes wrap to the size": edit(
        lambda h, a, b: h[a].update(shape=[2**62 * 2 + h[a]["data_offsets"][1] // 4])
    ),
    "zero": field("shape", [0, 16]),
    "negative shape": field("shape", [-256, -16]),
    "shape a number": field("shape", 4096),
    "shape of text": field("shape", ["256", "16"]),
    "nested shape": field("shape", [[256, 16]]),
    "many dimensions": field("shape", lambda v: [1] * 100000 + v),
    # fields of a tensor
    "BF16": field("dtype", "BF16"),
    "F64": field("dtype", "F64"),
    "I32": field("dtype", "I32"),
    "unknown dtype": field("dtype", "F3.2\n"),
    "long dtype": field("dtype", "F" * 10000),
    "dtype a number": field("dtype", 32),
    "unknown field": edit(lambda h, a, b: h[a].update(color="blue")),
    "no dtype": edit(lambda h, a, b: h[a].pop("dtype")),
    "no shape": edit(lambda h, a, b: h[a].pop("shape")),
    "no data_offsets": edit(lambda h, a, b: h[a].pop("data_offsets")),
    "dtype twice": first(b'"dtype":', b'"dtype":"F32","dtype":'),
    "tensor of nothing": edit(lambda h, a, b: h.update({a: {}})),
    "tensor a list": edit(lambda h, a, b: h.update({a: [1, 2]})),
    "tensor null": edit(lambda h, a, b: h.update({a: None})),
    # names
    "missing": without_first,
    "renamed": edit(lambda h, a, b: h.update({a + "s": h.pop(a)})),
    "name without its end": edit(lambda h, a, b: h.update({a[:-1]: h.pop(a)})),
    "duplicated": duplicate,
    # tensors that nobody asks for are checked as well
    "extra outside": grown(8, data_offsets=[10**12, 10**12 + 8]),
    "extra over another": grown(0, shape=[8], data_offsets=[0, 8]),
    "extra without dtype": grown(8, dtype=None),
    # metadata
    "metadata a number": edit(lambda h, a, b: h["__metadata__"].update(number=1)),
    "metadata an object": edit(lambda h, a, b: h["__metadata__"].update(object={})),
    "metadata null": edit(lambda h, a, b: h.update(__metadata__=None)),
    "metadata a list": edit(lambda h, a, b: h.update(__metadata__=[])),
    "metadata long": edit(lambda h, a, b: h["__metadata__"].update(long="x" * 100000)),
    "metadata twice": text(lambda t: t[:-1] + b',"__metadata__":{}}'),
    "metadata key twice": first(b'"__metadata__":{', b'"__metadata__":{"key":"1","key":"2",'),
    "metadata a flood": edit(
        lambda h, a, b: h["__metadata__"].update({f"key{i}": "1" for i in range(10000)})
    ),
}

# Sound files, but not of a run: the reader of the format takes them, the trainer cannot.
STRANGERS = {
    "no metadata": edit(lambda h, a, b: h.pop("__metadata__")),
    "empty metadata": edit(lambda h, a, b: h.update(__metadata__={})),
    "another width": edit(lambda h, a, b: h["__metadata__"].update(d="32")),
    "another depth": edit(lambda h, a, b: h["__metadata__"].update(layers="2")),
    "no width": edit(lambda h, a, b: h["__metadata__"].pop("d")),
    "width of text": edit(lambda h, a, b: h["__metadata__"].update(d="wide")),
    "width of 0": edit(lambda h, a, b: h["__metadata__"].update(d="0")),
    "width out of range": edit(lambda h, a, b: h["__metadata__"].update(d="99999999999")),
    "a log of 0 bytes": edit(lambda h, a, b: h["__metadata__"].update(log_bytes="0")),
    "no log_bytes": edit(lambda h, a, b: h["__metadata__"].pop("log_bytes")),
    "heads that do not divide": edit(lambda h, a, b: h["__metadata__"].update(heads="3")),
    "an extra tensor": grown(24, dtype="I64", shape=[3]),
    "an extra unknown dtype": grown(3, dtype="F8_E5M2"),
    "an empty extra tensor": grown(0),
}

# Unusual, and right.
SOUND = {
    "unchanged": lambda blob: blob,
    "spaced out": lambda blob: join(to_json(split(blob)[0], indent=4), split(blob)[1]),
    "another order": edit(
        lambda h, a, b: h.update({name: h.pop(name) for name in reversed(list(h))})
    ),
    "escapes": first(b'"__metadata__":{', b'"__metadata__":{"a\\/b":"\\"\\\\",'),
}


def assert_refused(result):
    lines = result.stderr.splitlines()
    assert result.returncode == 1, (result.returncode, result.stderr)
    assert len(lines) == 1 and FILE in lines[0], result.stderr


@pytest.mark.parametrize("name", [*DAMAGES, *STRANGERS])
def test_damaged_file_is_refused_and_kept(copy, name):
    damaged = {**DAMAGES, **STRANGERS}[name]((copy / FILE).read_bytes())
    (copy / FILE).write_bytes(damaged)
    assert_refused(run(copy, "-resume", "1", cwd=copy.parent))
    assert (copy / FILE).read_bytes() == damaged


@pytest.mark.parametrize(
    "make",
    [lambda path: None, os.mkdir, lambda path: os.symlink(path, path)],
    ids=["nothing", "folder", "loop"],
)
def test_what_is_not_a_file_is_refused(copy, make):
    (copy / FILE).unlink()
    make(copy / FILE)
    assert_refused(run(copy, "-resume", "1", cwd=copy.parent))


def test_a_name_with_quotes_is_read_back(tmp_path):
    name = 'a "b\\c'
    (tmp_path / name).write_bytes(b"to be or not " * 20)
    assert run("x", *FLAGS, "-data", name, cwd=tmp_path).returncode == 0
    with safetensors.safe_open(tmp_path / "x" / FILE, "numpy") as file:
        assert file.metadata()["data"] == name
    assert run("x", "-resume", cwd=tmp_path).returncode == 0


def test_another_shape_is_named_beside_the_expected_one(copy):
    (copy / FILE).write_bytes(STRANGERS["another width"]((copy / FILE).read_bytes()))
    said = run(copy, "-resume", "1", cwd=copy.parent).stderr
    assert "wte.weight has shape [256,16], this model's has [256,32]" in said


def test_a_file_that_lacks_its_end_is_called_truncated(copy):
    (copy / FILE).write_bytes((copy / FILE).read_bytes()[:-4])
    result = run(copy, "-resume", "1", cwd=copy.parent)
    assert_refused(result)
    assert "is truncated: the tensor" in result.stderr


@pytest.mark.parametrize("name", SOUND)
def test_sound_file_is_taken(copy, name):
    (copy / FILE).write_bytes(SOUND[name]((copy / FILE).read_bytes()))
    result = run(copy, "-resume", "1", cwd=copy.parent)
    assert result.returncode == 0, result.stderr


def test_file_rewritten_by_the_official_package_is_taken(copy):
    with safetensors.safe_open(copy / FILE, "numpy") as file:
        metadata = file.metadata()
    safetensors.numpy.save_file(safetensors.numpy.load_file(copy / FILE), copy / FILE, metadata)
    result = run(copy, "-resume", "1", cwd=copy.parent)
    assert result.returncode == 0, result.stderr


def test_official_package_reads_the_file(trained):
    tensors = safetensors.numpy.load_file(trained / FILE)
    C, HS, V = 16, 8, len(tensors["wte.weight"])
    shapes = {
        "wte.weight": (V, C),
        "lm_head.weight": (V, C),
        "ln_f.weight": (C,),
        "h.0.ln_1.weight": (C,),
        "h.0.ln_2.weight": (C,),
        "h.0.attn.c_attn.weight": (3 * C, C),
        "h.0.attn.c_proj.weight": (C, C),
        "h.0.attn.q_norm.weight": (HS,),
        "h.0.attn.k_norm.weight": (HS,),
        "h.0.mlp.c_fc.weight": (4 * C, C),
        "h.0.mlp.c_proj.weight": (C, 4 * C),
    }
    assert {name: tensors[name].shape for name in shapes} == shapes
    assert all(
        tensor.dtype == np.float32 and np.isfinite(tensor).all() for tensor in tensors.values()
    )
    with safetensors.safe_open(trained / FILE, "numpy") as file:
        metadata = file.metadata()
    assert float(metadata["lr"]) == 1e-3
    assert [metadata[flag] for flag in ("d", "layers", "heads", "T", "batch", "steps")] == [
        "16",
        "1",
        "2",
        "8",
        "2",
        "3",
    ]


def test_header_is_padded_so_that_the_data_are_aligned(tmp_path):
    """Whatever the length of what it holds."""
    for digits in range(8):
        assert (
            run(
                tmp_path / str(digits), *FLAGS, "-lr", "1e-" + "0" * digits + "3", cwd=tmp_path
            ).returncode
            == 0
        )
        assert int.from_bytes((tmp_path / str(digits) / FILE).read_bytes()[:8], "little") % 8 == 0


def test_full_disk_leaves_the_previous_checkpoint(copy):
    before = (copy / FILE).read_bytes()

    # a write beyond half a checkpoint fails with EFBIG, as on a disk that fills with ENOSPC
    def no_room():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, len(before) // 2))

    result = run(copy, "-resume", "-steps", "6", cwd=copy.parent, preexec_fn=no_room)
    assert_refused(result)
    assert os.strerror(errno.EFBIG) in result.stderr
    assert (copy / FILE).read_bytes() == before
    assert not list(copy.glob(FILE + "*tmp*"))
