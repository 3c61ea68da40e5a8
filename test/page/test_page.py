"""The page in a real browser: opened as a file, without a network, by Chromium."""

import csv
import io
import json
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from urllib.parse import unquote

import pytest
from axe_selenium_python import Axe
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "build" / "train_gpt.html"
PICTURES = ROOT / os.environ.get("PICTURES", "build")  # README.md's: PICTURES=figures
RATES = ["3e-4", "1e-3", "3e-3", "1e-2", "3e-2", "1e-1", "3e-1"]
SMALL = "#d=16&layers=1&steps=50"  # done in a second


class Page:
    """The browser, with the page open."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, settings="", width=1300, height=1000):
        self.driver.set_window_size(width, height)
        self.driver.get("about:blank")
        self.driver.get(PAGE.as_uri() + settings)

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def text(self, name):
        return self.driver.find_element(By.ID, name).text

    def picture(self, name):
        self.run("window.scrollTo(0, 0)")
        self.driver.save_screenshot(str(PICTURES / name))

    def wait(self, until, seconds=300):
        return WebDriverWait(self.driver, seconds, 0.1).until(lambda _: until())

    def wait_for_curve(self):
        self.wait(lambda: self.text("error") or self.text("status").startswith("All 7 runs"))
        assert self.text("error") == ""

    def losses(self):
        rows = self.driver.find_elements(By.CSS_SELECTOR, "#runs tr")
        cells = [row.text.split() for row in rows]
        assert [row[0] for row in cells] == RATES
        return [float(row[1]) for row in cells]

    def wait_until_shown(self, name):
        return self.wait(lambda: self.text(name))


@pytest.fixture(scope="session")
def driver():
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome")
    # no network: every name is unknown
    for flag in ("headless=new", "no-sandbox", "host-resolver-rules=MAP * ~NOTFOUND"):
        options.add_argument("--" + flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options, service)
    driver.set_script_timeout(300)
    yield driver
    driver.quit()


@pytest.fixture
def page(driver):
    """Nothing that a test does may leave a message in the browser's console."""
    driver.get_log("browser")
    yield Page(driver)
    driver.execute_script("if (window.stop) stop()")
    assert driver.get_log("browser") == []


def build_native(path):
    """The program as built by the page's compiler for any machine of this architecture."""
    command = [sys.executable, "-m", "ziglang", "cc", "-std=gnu11", "-O3", "-ffp-contract=off"]
    command += ["-target", f"{platform.machine()}-linux-musl", "-mcpu=baseline"]
    command += ["-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd"]
    subprocess.run([*command, ROOT / "train_gpt.c", "-o", path, "-lm"], check=True)


@pytest.fixture(scope="session")
def native(tmp_path_factory):
    path = tmp_path_factory.mktemp("native") / "train_gpt"
    build_native(path)
    return path


def test_one_file_without_a_network(page):
    text = PAGE.read_text()
    assert len(text) < 3e6
    assert "Released under the MIT License" in text  # Chart.js
    page.open(SMALL)
    page.wait_for_curve()
    loaded = page.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(name.startswith("blob:") for name in loaded), loaded


# ---- the numbers


@pytest.mark.parametrize(
    "flags",
    [
        "-lr 1e-2 -d 32 -heads 2 -steps 200",
        "-lr 1e-1 -d 32 -heads 2 -steps 200 -qk_norm 0",
        "-lr 3e-2 -d 48 -heads 3 -layers 3 -steps 100 -mu_param full -base_d 32",
        "-lr 3e-1 -d 64 -heads 4 -layers 1 -steps 100 -z_loss 0 -wd 0 -warmup 0",
    ],
)
def test_losses_are_those_of_the_native_program(page, native, flags, tmp_path):
    """All columns of log.csv but the speed, to the last printed digit."""
    page.open(SMALL)
    status, printed, log = page.driver.execute_async_script(
        "const [args, done] = arguments;"
        "stop();"
        "program([...args, '-out', 'run'], {}, message => {"
        "  if ('status' in message) done([message.status, message.printed,"
        "    new TextDecoder().decode(message.files['run/log.csv'])]);"
        "});",
        flags.split(),
    )
    assert status == 0, printed
    subprocess.run(
        [native, *flags.split(), "-out", "run"], cwd=tmp_path, check=True, stdout=subprocess.PIPE
    )
    without_speed = lambda text: [line.rsplit(",", 1)[0] for line in text.splitlines()]
    wanted = without_speed((tmp_path / "run" / "log.csv").read_text())
    assert len(wanted) > 10 and without_speed(log) == wanted


def test_files_are_those_of_the_native_program(page, native, tmp_path):
    """What each command prints, times aside: a run twice in one folder, resumed, looked at."""
    page.open(SMALL)
    small = "-lr 1e-2 -d 16 -heads 1 -steps 30 -eval_tokens 512 -out run"
    commands = [small, small, "-resume -steps 50 -out run", "-eval -out run"]
    commands += ["-sample 50 -out run", "-sample 50 -out nowhere", small + " -heads 3"]
    ended = page.driver.execute_async_script(
        "const [commands, done] = arguments, ended = []; let files = {};"
        "stop();"
        "(function next() {"
        "  if (!commands.length) return done(ended);"
        "  let rows = 0;"
        "  program(commands.shift().split(' '), files, message => {"
        "    if (message.row) rows += message.row.split('\\n').length - 1;"
        "    else {"
        "      ({files} = message); ended.push([message.status, message.printed, rows]); next();"
        "    }"
        "  });"
        "})()",
        commands,
    )
    assert [rows for _, _, rows in ended] == [5, 5, 2, 0, 0, 0, 0]  # step 0, three, a header
    same = lambda text: re.sub(r"\S+ left.*", "", text).replace("\ufffd", "?")
    for command, (status, printed, _) in zip(commands, ended):
        result = subprocess.run([native, *command.split()], cwd=tmp_path, capture_output=True)
        wanted = (result.stdout + result.stderr).decode(errors="replace")
        assert (status, same(printed)) == (result.returncode, same(wanted)), command


# ---- what a visitor does


def test_the_curve_bends(page):
    """The page as it opens, then without qk-norm: the right end of the curve rises, the logits grow
    by far, the curve before stays, and the diagnosis of a run names the cause."""
    page.open("#steps=400")  # on a busy machine the page itself would choose fewer
    begun = time.time()
    page.wait(lambda: page.run("return charts.loss.data.datasets[0].data.length"))
    assert time.time() - begun < 60  # on a free machine a second
    page.wait_for_curve()
    flat, with_norm = page.losses(), float(page.text("sensitivity"))
    page.picture("page_qk_norm_1.png")

    page.driver.find_element(By.ID, "qk_norm").send_keys(Keys.SPACE)  # by the keyboard
    page.wait(lambda: not page.text("status").startswith("All"))
    page.wait_for_curve()
    bent, without = page.losses(), float(page.text("sensitivity"))
    page.picture("page_qk_norm_0.png")
    assert bent[5] > flat[5] + 0.1 and bent[6] > flat[6] + 0.1, (flat, bent)
    assert abs(bent[3] - flat[3]) < 0.1  # a middle learning rate trains either way
    assert without > with_norm + 0.03
    assert float(page.text("sensitivity_before")) == with_norm
    logits = "return charts.logit.data.datasets.map(set => set.data.at(-1).y)"
    now, before = page.run(logits)
    assert now > 20 * before
    ghost = page.run("return charts.loss.data.datasets[1].data.map(point => point.y)")
    assert ghost == pytest.approx(flat, abs=1e-3)

    def click(chart, dataset, at):
        x, y = page.run(
            f"const chart = charts.{chart}, point = chart.getDatasetMeta({dataset}).data.at({at});"
            "chart.canvas.scrollIntoView(); const box = chart.canvas.getBoundingClientRect();"
            "return [box.x + point.x, box.y + point.y]"
        )
        webdriver.ActionChains(page.driver).move_by_offset(int(x), int(y)).click().perform()
        webdriver.ActionChains(page.driver).move_by_offset(-int(x), -int(y)).perform()

    click("loss", 0, -1)  # the highest learning rate
    page.wait(lambda: "3e-1" in page.text("detail_title"))
    click("logit", 1, -2)  # the ghost's points are of runs that are gone
    assert "3e-1" in page.text("detail_title")
    click("logit", 0, -2)
    page.wait(lambda: "1e-1" in page.text("detail_title"))
    click("logit", 0, -1)
    page.wait(lambda: "3e-1" in page.text("detail_title"))
    assert re.search("attention logits grew .*-qk_norm 1", page.text("diagnosis"))
    assert len(page.wait_until_shown("sample")) > 50
    points = "return ['run_loss', 'run_logits', 'run_grad'].map(id => charts[id].data.datasets"
    shown = page.run(points + ".map(set => set.data.length))")
    assert shown == [[40], [40, 40], [40]]


def test_a_link_holds_the_settings(page):
    page.open("#d=16&layers=1&steps=50&qk_norm=0&mu_param=full")
    page.wait_for_curve()
    losses, address = page.losses(), page.driver.current_url
    page.driver.get("about:blank")
    page.driver.get(address)
    page.wait_for_curve()
    ticked = page.run("return TICKS.filter(t => $(t.flag).checked).map(t => t.flag)")
    assert ticked == ["z_loss", "warmup", "wd", "mu_param"]
    assert page.losses() == losses


def test_the_command_and_the_numbers_are_the_same_sweep(page, native, tmp_path):
    """The command gives the page's losses and sensitivity; the CSV has the same numbers."""
    page.open(SMALL)
    page.wait_for_curve()
    command = shlex.split(page.text("command"))
    assert command[0] == "./train_gpt"
    out = subprocess.run(
        [native, *command[1:]], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    assert f"not matter): {page.text('sensitivity')}\n" in out
    rows = list(csv.DictReader(io.StringIO(page.run("return csv_of(runs)"))))
    assert [row["lr"] for row in rows] == RATES
    assert [float(row["final_loss"]) for row in rows] == pytest.approx(page.losses(), abs=1e-4)


def test_an_address_of_nonsense_is_ignored(page):
    page.open("#d=7&layers=x&steps=-1&qk_norm=banana&z_loss=0&foo=%25&d")
    chosen = page.run("stop(); return settings()")
    assert [chosen[name] for name in ("d", "layers", "steps")] == ["32", "2", "400"]
    assert (chosen["qk_norm"], chosen["z_loss"]) == ("1", "0")


def test_settings_change_while_runs_go_on(page):
    """The runs start anew; those that have ended are the ghost, which says how it differs. A button
    stays the same element, so that a click during the runs is not lost. Enter does not reload."""
    page.open("#d=16&layers=1&steps=200")
    button = page.driver.find_element(By.ID, "run_1e-2")
    page.wait(lambda: page.run("return [...runs.values()].some(run => run.summary)"))
    button.click()
    box = page.driver.find_element(By.ID, "qk_norm")
    box.send_keys(Keys.SPACE)
    page.wait(lambda: page.run("return runs.get('1e-2').settings.qk_norm == '0' && working.size"))
    box.send_keys(Keys.ENTER)
    assert button.get_attribute("aria-pressed") == "true"
    assert page.run(
        "return working.size <= cores && [...working].every(r => runs.get(r.rate) == r)"
    )
    page.wait(lambda: page.text("difference") == "-qk_norm 1")
    ghost = page.run(
        "return [charts.loss.data.datasets[1].data.length, [...before.values()]"
        ".every(run => run.summary && !run.files['run/model.safetensors'])]"
    )
    assert ghost[0] >= 1 and ghost[1]
    page.wait_for_curve()


def test_a_run_that_diverges_counts_as_its_start(page):
    """So the paper draws it. The learning rate is not one of the page's, which do not diverge."""
    page.open(SMALL)
    page.wait_for_curve()
    page.run(
        "const run = runs.get('3e-1'); run.flags.push('-clip', '0', '-qk_norm', '0');"
        "Object.assign(run, {rate: '1e9', rows: [], head: undefined, summary: undefined});"
        "waiting = [run]; start_next(); choose('3e-1')"
    )
    page.wait(lambda: "diverged at step 2" in page.text("detail_title"))
    drawn = page.run("return charts.loss.data.datasets[0].data[6].y")
    assert drawn == float(page.run("return runs.get('3e-1').summary.initial_loss"))
    assert page.losses()[6] == pytest.approx(drawn, abs=1e-4)
    assert "the loss was not finite at step 2" in page.text("diagnosis")


def test_copy_and_csv(page):
    """By clicks, also where a page has no navigator.clipboard."""
    page.open(SMALL)
    page.wait_for_curve()
    page.run(
        "Object.defineProperty(navigator, 'clipboard', {value: undefined});"
        "document.addEventListener('copy', () => copied = String(getSelection()));"
        "$('csv').addEventListener('click', event => event.preventDefault())"
    )
    page.driver.find_element(By.ID, "copy").click()
    assert page.text("copy") == "Copied"
    assert page.run("return copied") == page.text("command")
    page.driver.find_element(By.ID, "csv").click()
    address = page.run("return $('csv').href")
    assert unquote(address.removeprefix("data:text/csv,")) == page.run("return csv_of(runs)")


def test_stop_works_at_once(page):
    page.open("#d=128&layers=8&steps=3200")
    page.wait(lambda: page.run("return working.size"))
    page.driver.find_element(By.ID, "stop").click()
    page.wait(lambda: page.text("status").startswith("Stopped"), 2)
    assert page.run("return working.size + waiting.length") == 0
    page.wait(lambda: page.text("runs").count("stopped") == 7, 2)
    page.open()  # while the machine's speed is measured
    page.driver.find_element(By.ID, "stop").click()
    time.sleep(1)
    assert page.run("return working.size + waiting.length + Boolean(calibration)") == 0
    assert page.text("status").startswith("Stopped")


def test_an_error_of_the_program_is_shown(page):
    page.open(SMALL)
    page.run("stop(); flags = () => ['-d', '7', '-heads', '2']; start()")
    assert "train_gpt: -heads: 2 heads do not divide -d 7" in page.wait_until_shown("error")


def test_a_slow_machine_gets_fewer_steps(page):
    """A clock that runs a hundred times as fast"""
    script = page.driver.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument",
        {
            "source": "const real = performance.now.bind(performance);"
            "performance.now = () => 100 * real();"
        },
    )
    page.open()
    assert "This machine is slow: 50 steps" in page.wait_until_shown("slow")
    page.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


# ---- for everyone


@pytest.mark.parametrize("width", [360, 800, 2000])
def test_widths(page, width):
    """Nothing is wider than the window."""
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    page.open(SMALL, width=max(width, 500))
    page.wait_for_curve()
    page.run("choose('1e-2')")
    page.wait_until_shown("sample")
    window, document = page.run("return [innerWidth, document.documentElement.scrollWidth]")
    assert document <= window == width
    page.picture(f"page_{width}.png")
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible(page, scheme):
    """axe-core finds nothing: names for screen readers, contrast, order of headings and more."""
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    page.open(SMALL)
    page.wait_for_curve()
    page.run("choose('1e-2'); document.querySelectorAll('details').forEach(d => d.open = true)")
    page.wait_until_shown("sample")
    background = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    axe = Axe(page.driver)
    axe.inject()
    found = axe.run()
    assert found["violations"] == [], json.dumps(found["violations"], indent=1)
    page.picture(f"page_{scheme}.png")
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_every_control_by_the_keyboard(page):
    """Tab reaches ticks, sliders and buttons, in their order."""
    page.open(SMALL)
    page.wait_for_curve()
    reached = []
    for _ in range(60):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(page.run("return document.activeElement.id"))
    wanted = "qk_norm z_loss warmup wd mu_param optimizer attn_cap qk_clip gate peri_ln cautious"
    wanted = f"{wanted} d layers steps run stop command copy csv".split()
    assert [name for name in reached if name in wanted][: len(wanted)] == wanted
    assert [name[4:] for name in reached if name.startswith("run_")][:7] == RATES


def test_a_screen_reader_hears_what_changed_only(page):
    """Live regions are written when runs end, not at each row; a slider says its value."""
    page.open("#d=16&layers=1&steps=400")
    page.run(
        "choose('3e-1'); heard = 0; const count = list => heard += list.length;"
        "for (const region of document.querySelectorAll('[role=status], [aria-live]'))"
        "  new MutationObserver(count).observe(region, {childList: true, subtree: true})"
    )
    page.wait_for_curve()
    assert 7 <= page.run("return heard") <= 12  # 280 rows
    assert page.run("return $('steps').getAttribute('aria-valuetext')") == "400"


def test_dark_and_light_switch_live(page):
    page.open(SMALL)
    page.wait_for_curve()
    looks = []
    for scheme in "light", "dark":
        page.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )
        page.driver.execute_async_script(
            "requestAnimationFrame(() => setTimeout(arguments[0], 200))"
        )
        looks.append(
            page.run(
                "const {options, data} = charts.loss; return ["
                "charts.loss.scales.x.options.ticks.color,"
                "charts.loss.scales.x.options.grid.color, data.datasets[0].borderColor]"
            )
        )
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert looks == [["#1a1a1a", "#ccc", "#0065a3"], ["#eee", "#444", "#6cbcf0"]]


def test_the_lines_of_each_intervention(page):
    page.open(SMALL)
    page.wait_for_curve()
    shown = page.run("return [...document.querySelectorAll('#ticks pre')].map(p => p.textContent)")
    flags = page.run("return TICKS.map(t => t.flag)")
    assert [text.split(":")[0] for text in shown] == ["-" + flag for flag in flags]
    environment = {**os.environ, "COLUMNS": "100"}
    command = [sys.executable, ROOT / "test" / "course" / "show.py", "qk_norm"]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True).stdout
    assert shown[0] == printed and "layernorm_row(" in printed
