"""make page: the trainer as one page, build/train_gpt.html. The program is compiled to WebAssembly
by zig's C compiler; the charts are Chart.js, which chartkick brings, with its licence."""

import base64
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys

WEB = pathlib.Path(__file__).resolve().parent
ROOT = WEB.parent
BUILD = ROOT / "build"
# What the C library of WebAssembly only imitates; a page needs no more
IMITATED = {
    "SIGNAL": "signal",
    "PROCESS_CLOCKS": "process-clocks",
    "MMAN": "mman",
    "GETPID": "getpid",
}
INTERVENTIONS = (
    "qk_norm z_loss warmup wd mu_param optimizer attn_cap qk_clip gate peri_ln cautious".split()
)


def compile_program(out):
    command = [sys.executable, "-m", "ziglang", "cc", "-target", "wasm32-wasi", "-std=gnu11"]
    command += ["-O3", "-s", "-msimd128", "-fno-math-errno", "-fno-trapping-math"]
    command += ["-fopenmp-simd", "-include", str(WEB / "wasm.h")]
    command += [f"-D_WASI_EMULATED_{name}" for name in IMITATED]
    command += [str(ROOT / "train_gpt.c"), str(WEB / "wasm.c"), "-o", str(out), "-lm"]
    command += [f"-lwasi-emulated-{name}" for name in IMITATED.values()]
    subprocess.run(command, check=True)


def chart_library():
    """Chart.js, which says its own name and licence in its first lines."""
    (file,) = [
        file for file in importlib.metadata.files("chartkick") if file.name == "Chart.bundle.js"
    ]
    text = file.read_text()
    assert "Released under the MIT License" in text[:400]
    return text


def shown_lines(flag):
    """What make show prints of an intervention, of the C files."""
    shown = subprocess.run(
        [sys.executable, ROOT / "test" / "course" / "show.py", flag],
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=True,
    )
    return shown.stdout


def main():
    wasm = BUILD / "train_gpt.wasm"
    compile_program(wasm)
    parts = {
        "worker.js": (WEB / "worker.js").read_text(),
        "shown": json.dumps({flag: shown_lines(flag) for flag in INTERVENTIONS}),
        "wasm": base64.b64encode(wasm.read_bytes()).decode(),
        "chart": chart_library(),
        "page.js": (WEB / "page.js").read_text(),
    }
    page = (WEB / "page.html").read_text()
    for name, text in parts.items():
        assert page.count(f"<!-- {name} -->") == 1
        page = page.replace(f"<!-- {name} -->", text.replace("</script", "<\\/script"))
    part = BUILD / "train_gpt.html.part"
    part.write_text(page)
    part.replace(BUILD / "train_gpt.html")
    print(f"build/train_gpt.html: {len(page.encode()) / 1e6:.1f} MB; open it in a browser")


if __name__ == "__main__":
    main()
