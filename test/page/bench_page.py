"""make bench_page: tokens a second of the page's program, one worker in headless Chromium, beside
one thread of the native program: of the page's compiler for any machine, and of make for this one.
All take turns; the medians of ROUNDS, and their ratios."""

import os
import pathlib
import re
import statistics
import subprocess
import tempfile

import test_page
from test_page import ROOT, Page

ROUNDS = 5
FLAGS = "-lr 1e-2 -steps 300 -eval_tokens 512 -out run".split()
SIZES = {"the page's default": "-d 32 -heads 2", "train_gpt's default": "-d 64 -heads 4"}


def native(program, flags, folder):
    out = subprocess.run(
        [program, *flags],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return float(re.findall(r"(\d+) tok/s", out)[-1])


def in_page(page, flags):
    log = page.driver.execute_async_script(
        "const [args, done] = arguments;"
        "program(args, {}, message => {"
        "  if ('status' in message) done(message.printed);"
        "});",
        flags,
    )
    return float(re.findall(r"(\d+) tok/s", log)[-1])


def main():
    driver = next(browser := test_page.driver.__wrapped__())
    page = Page(driver)
    page.open(test_page.SMALL)
    page.wait_for_curve()
    with tempfile.TemporaryDirectory() as folder:
        portable = pathlib.Path(folder) / "train_gpt"
        test_page.build_native(portable)
        for name, size in SIZES.items():
            flags = [*FLAGS, *size.split()]
            speeds = {"page": [], "native, any machine": [], "native, this machine": []}
            for _ in range(ROUNDS):
                speeds["page"].append(in_page(page, flags))
                speeds["native, any machine"].append(native(portable, flags, folder))
                speeds["native, this machine"].append(native(ROOT / "train_gpt", flags, folder))
            median = {who: statistics.median(values) for who, values in speeds.items()}
            print(f"{name} ({size}), tokens a second of one thread:")
            for who, speed in median.items():
                print(f"  {who:22} {speed:9,.0f}   the page has {median['page'] / speed:.2f} of it")
    browser.close()


if __name__ == "__main__":
    main()
