"""make sass: the machine code of train_gpt.cu's kernels, for sm_80 and sm_90.

For each kernel: registers per thread, instructions that spill them (LDL, STL), shared memory, and
loads by an address of any kind (LD), which are slower than LDG and LDS. For the main loop of each
attention kernel, per warp and 16 x 32 scores (a block of 64 queries has four such warps): issue
slots, HMMA (tensor cores), LDSM (ldmatrix), LDS, and from global memory LDG and LDGSTS (cp.async)
by width in bits.
"""

import collections
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
ARCHITECTURES = "sm_80", "sm_90"
# an HMMA is 16 x 8 scores by 16 channels; products of the formulas: q k^T, p v; q k^T, dout v^T,
# ds k; and those two, ds^T q, p^T dout
PRODUCTS = dict(attention_forward_kernel=2, attention_dq_kernel=3, attention_dkv_kernel=4)


def tool(name):
    path = shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")
    if not path:
        sys.exit(f"sass: {name} is missing; it comes with the CUDA toolkit")
    return path


def output(*command):
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"sass: {command[0]} failed: {(result.stderr.strip() or '?').splitlines()[-1]}")
    return result.stdout


def plain(mangled):
    """The name of a kernel, with its template's first number and, as 1, a switch that is on."""
    length = re.match(r"_Z(\d+)", mangled)
    if not length:
        return mangled
    name, rest = mangled[length.end() :][: int(length[1])], mangled[length.end() + int(length[1]) :]
    number, on = re.match(r"ILi(\d+)E", rest), re.match(r"I(Li\d+E)?Lb1E", rest)
    words = ([number[1]] if number else []) + (["1"] if on else [])
    return f"{name}<{','.join(words)}>" if words else name


def kernels(cubin):
    """For each kernel: its registers, its bytes of shared memory and its instructions, as
    (address, opcode, target of a jump)."""
    found = {}
    text = output(tool("cuobjdump"), "-res-usage", cubin)
    for name, registers, shared in re.findall(r"Function (\S+):\s+REG:(\d+) .*?SHARED:(\d+)", text):
        found[name] = [int(registers), int(shared), []]
    for part in output(tool("cuobjdump"), "-sass", cubin).split("Function : ")[1:]:
        name, code = part.split(None, 1)
        for address, opcode, rest in re.findall(
            r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);", code
        ):
            target = re.search(r"\b0x([0-9a-f]+)", rest) if opcode.startswith("BRA") else None
            found[name][2].append((int(address, 16), opcode, target and int(target[1], 16)))
    return found


def loops(code):
    """The opcodes of attention's main loop, which fetches a tile, and of the loop over 16 rows of
    it, which is the same where it is unrolled."""
    found = [
        [op for at, op, _ in code if target <= at <= end]
        for end, _, target in code
        if target is not None and target < end
    ]
    outer = [ops for ops in found if count(ops, "LDGSTS")]
    return [max(some, key=lambda ops: (count(ops, "HMMA"), -len(ops))) for some in (outer, found)]


def count(opcodes, pattern):
    return sum(bool(re.match(pattern + r"(\.|$)", op)) for op in opcodes)


def width(opcode):
    bits = re.search(r"\.(U?8|U?16|64|128)\b", opcode)
    return int(bits[1].lstrip("U")) if bits else 32


WIDTHS = 128, 64, 32


def report(architecture, cubin):
    print(f"{'':61}| main loop; LDG and LDGSTS: 128/64/32")
    print(f"{architecture:29} registers spills shared generic | slots HMMA LDSM LDS   LDG LDGSTS")
    for mangled, (registers, shared, code) in sorted(
        kernels(cubin).items(), key=lambda k: plain(k[0])
    ):
        name, all_ops = plain(mangled), [op for _, op, _ in code]
        spills, generic = count(all_ops, "(LDL|STL)"), count(all_ops, "LD")
        line = f"{name:29} {registers:9} {spills:6} {shared:6} {generic:7}"
        products = PRODUCTS.get(name.split("<")[0])
        if products:
            channels = int(re.search(r"<(\d+)", name)[1])
            outer, inner = loops(code)
            # blocks of 16 x 32 scores in a tile, and how often the inner loop runs
            blocks = min(64, 4096 // channels) / 32
            runs = blocks * products * channels / 4 / count(inner, "HMMA")
            ops = collections.Counter(outer)
            ops.update({op: n * (runs - 1) for op, n in collections.Counter(inner).items()})
            each = {
                x: sum(n for op, n in ops.items() if count([op], x)) / blocks
                for x in ("HMMA", "LDSM", "LDS")
            }
            line += f" | {sum(ops.values()) / blocks:5.0f}  "
            line += " ".join(f"{n:3.0f}" for n in each.values())
            for name in "LDG", "LDGSTS":
                found = [
                    sum(n for op, n in ops.items() if count([op], name) and width(op) == bits)
                    for bits in WIDTHS
                ]
                line += " " + "/".join(f"{n / blocks:g}" for n in found)
        print(line)


def main():
    tool("cuobjdump")
    for architecture in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            cubin = f"{folder}/train_gpt.cubin"
            output(
                tool("nvcc"),
                "-std=c++17",
                "-O3",
                *sys.argv[1:],
                f"-arch={architecture}",
                "-cubin",
                "-o",
                cubin,
                str(ROOT / "train_gpt.cu"),
            )
            report(architecture, cubin)


if __name__ == "__main__":
    main()
