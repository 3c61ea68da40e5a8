"""make autograder-NAME [CUDA=1] [VARIANT=seed] [HINT=n]: build/autograder-NAME.zip, to upload to
Gradescope as the autograder of a programming assignment. Students hand in the sources that the
exercise names, or their whole folder."""

import argparse
import io
import os
import pathlib
import shutil
import tempfile
import zipfile

import exercise
import grade

# Gradescope's images are Ubuntu. The distribution's numpy needs no pip.
SETUP = """#!/usr/bin/env bash
set -e
export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install -y --no-install-recommends gcc g++ libc6-dev python3 python3-numpy
"""
RUN = """#!/usr/bin/env bash
exec python3 "${AUTOGRADER:-/autograder}/source/kit/gradescope.py"
"""


def content(name, cuda, variant, level):
    """{path in the zip: bytes}"""
    out = {"setup.sh": SETUP.encode(), "run_autograder": RUN.encode()}
    with tempfile.TemporaryDirectory() as place:
        folder = exercise.write(name, pathlib.Path(place) / "folder", cuda, variant)
        shutil.copy(exercise.HERE / "gradescope.py", folder / "kit")
        (folder / "kit" / "hint").write_text(f"{level}\n")
        for path in sorted((folder / "kit").rglob("*")):
            if path.is_file():
                out[str(path.relative_to(folder))] = path.read_bytes()
    return out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--variant")
    args = parser.parse_args()
    level = grade.hint_level()
    name, cuda = grade.exercise(None, [args.name, *["cuda"] * args.cuda])
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as file:
        for path, text in content(name, cuda and name != "cuda", args.variant, level).items():
            entry = zipfile.ZipInfo(path)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o100755 if "/" not in path else 0o100644) << 16
            file.writestr(entry, text)
    out = exercise.ROOT / "build" / f"autograder-{name}.zip"
    out.parent.mkdir(exist_ok=True)
    part = out.with_name(f"{out.name}.{os.getpid()}")
    part.write_bytes(memory.getvalue())
    part.replace(out)
    files = " and ".join(grade.handed_in(name, cuda))
    print(f"{out.relative_to(exercise.ROOT)}: upload it to Gradescope; students hand in {files}")


if __name__ == "__main__":
    main()
