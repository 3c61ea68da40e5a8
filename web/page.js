// The page: settings, a worker for each learning rate, and the charts.
"use strict";

// LR sensitivity is defined over the paper's learning rates (section 2.2). The order of the runs:
// the curve's shape is there early.
const RATES = ["3e-4", "1e-3", "3e-3", "1e-2", "3e-2", "1e-1", "3e-1"];
const ORDER = ["1e-2", "3e-1", "3e-4", "1e-1", "1e-3", "3e-2", "3e-3"];
const TICKS = [
  {flag: "qk_norm", on: "1", off: "0", text: "qk-norm: LayerNorm on queries and keys"},
  {flag: "z_loss", on: "1e-4", off: "0", text: "z-loss: keeps log Z near 0"},
  {flag: "warmup", on: "5%", off: "0", text: "warm-up: the learning rate starts at 0"},
  {flag: "wd", on: "1e-4", off: "0", text: "weight decay, independent of the learning rate"},
  {flag: "mu_param", on: "full", off: "off", ticked: false,
   text: "muParam: one best learning rate at any width (base width 32)"},
];
const SLIDERS = [
  {flag: "d", values: [16, 32, 48, 64, 96, 128], at: 1, text: "width C"},
  {flag: "layers", values: [1, 2, 3, 4, 6, 8], at: 1, text: "depth L"},
  {flag: "steps", values: [50, 100, 200, 400, 800, 1600, 3200], at: 3, text: "steps"},
];
const FAST_ENOUGH = 20;    // seconds: a sweep that would take longer gets fewer steps
const CALIBRATION = 20;    // steps

const $ = id => document.getElementById(id);
const wasm = Uint8Array.from(atob($("wasm").textContent), c => c.charCodeAt(0));
const shown = JSON.parse($("shown").textContent);
const workerURL = URL.createObjectURL(
  new Blob([$("worker").textContent], {type: "text/javascript"}));
const cores = navigator.hardwareConcurrency || 2;

let runs = new Map(), before = null;    // learning rate: run; the runs of the settings before
let waiting = [], working = new Set();
let chosen = null, started = 0, later;

// ---------------------------------------------------------------------------
// Settings, in the form and in the address

function settings() {
  const chosen = {};
  for (const {flag, on, off} of TICKS) chosen[flag] = $(flag).checked ? on : off;
  for (const {flag, values} of SLIDERS) chosen[flag] = String(values[$(flag).value]);
  return chosen;
}

// The flags of a run, but its learning rate.
function flags(steps = settings().steps) {
  const now = settings(), list = [];
  list.push("-d", now.d, "-heads", String(now.d / 16), "-layers", now.layers);
  list.push("-steps", String(steps));
  for (const {flag} of TICKS) list.push("-" + flag, now[flag]);
  if (now.mu_param != "off") list.push("-base_d", "32");
  return list;
}

function write_address() {
  history.replaceState(null, "", "#" + new URLSearchParams(settings()));
  $("command").textContent = "./train_gpt -lr 3e-4:3e-1 " + flags().join(" ");
  for (const {flag, values} of SLIDERS) $(flag + "_value").textContent = values[$(flag).value];
}

function read_address() {
  for (const [flag, value] of new URLSearchParams(location.hash.slice(1))) {
    const tick = TICKS.find(t => t.flag == flag), slider = SLIDERS.find(s => s.flag == flag);
    if (tick) $(flag).checked = value == tick.on;
    const at = slider ? slider.values.indexOf(Number(value)) : -1;
    if (at >= 0) $(flag).value = at;
  }
}

function make_form() {
  for (const {flag, ticked, text} of TICKS) {
    const label = document.createElement("label"), box = document.createElement("input");
    Object.assign(box, {type: "checkbox", id: flag, checked: ticked ?? true});
    label.append(box, " " + text);
    $("ticks").append(label);
    const details = document.createElement("details"), summary = document.createElement("summary");
    const pre = Object.assign(document.createElement("pre"), {textContent: shown[flag]});
    pre.tabIndex = 0;
    summary.textContent = "-" + flag;
    details.append(summary, pre);
    $("lines").append(details);
  }
  for (const {flag, values, at, text} of SLIDERS) {
    const label = document.createElement("label"), range = document.createElement("input");
    const value = Object.assign(document.createElement("b"), {id: flag + "_value"});
    Object.assign(range, {type: "range", id: flag, min: 0, max: values.length - 1, value: at});
    label.append(text + " ", value, range);
    $("sliders").append(label);
  }
}

// ---------------------------------------------------------------------------
// Runs

const table = csv => {    // rows of numbers by column
  const [head, ...rows] = csv.trim().split("\n").map(line => line.split(","));
  return rows.map(row => Object.fromEntries(head.map((name, i) => [name, row[i]])));
};
const number = text => text === undefined || text === "" ? NaN : Number(text);

// Starts the program; calls each(message) for what the worker posts. Returns the worker.
function program(args, files, each) {
  const worker = new Worker(workerURL);
  worker.onmessage = event => {
    if ("status" in event.data) worker.terminate();
    each(event.data);
  };
  worker.onerror = event => each({status: 1, printed: event.message, files: {}});
  worker.postMessage({wasm, args: ["./train_gpt", ...args], files});
  return worker;
}

// What counts in a sweep: the final loss, at most the one at the start (section 2.2); of a run that
// goes on, the last training loss.
function loss_of(run) {
  if (run.summary) {
    const first = number(run.summary.initial_loss), last = number(run.summary.final_loss);
    return last < first ? last : first;
  }
  return number(run.rows.findLast(row => row.train_loss)?.train_loss);
}

function logit_of(run) {
  let most = NaN;
  for (const row of run.rows)
    for (const name in row)
      if (name.startsWith("max_attn_logit_") && !(Number(row[name]) <= most) && row[name])
        most = Number(row[name]);
  return most;
}

function sensitivity(runs) {
  const losses = RATES.map(rate => runs?.get(rate)).filter(run => run?.summary).map(loss_of);
  if (losses.length < RATES.length) return "–";
  return (losses.reduce((a, b) => a + b) / losses.length - Math.min(...losses)).toFixed(3);
}

function start_next() {
  while (waiting.length && working.size < cores) {
    const run = waiting.shift();
    run.state = "training";
    working.add(run);
    const args = ["-lr", run.rate, ...run.flags, "-eval_every", "0", "-out", "run"];
    run.worker = program(args, {}, message => {
      if (message.row) {
        run.csv += message.row;
        const whole = run.csv.slice(0, run.csv.lastIndexOf("\n") + 1);
        if (whole) run.rows = table(whole);
      } else {
        working.delete(run);
        finish(run, message);
        start_next();
      }
      redraw();
    });
  }
}

function finish(run, {status, printed, files}) {
  Object.assign(run, {printed, files, state: "done"});
  if (status) {
    run.state = "failed";
    $("error").textContent = printed;
    return;
  }
  run.summary = table(new TextDecoder().decode(files["run/summary.csv"]))[0];
  if (run.summary.diverged_step) run.state = "diverged at step " + run.summary.diverged_step;
  const found = printed.slice(printed.lastIndexOf("diagnosis: "));
  run.diagnosis = found.startsWith("diagnosis: ") ? found.replace(/\s+/g, " ") : "";
}

function stop() {
  for (const run of working) {
    run.worker.terminate();
    run.state = "stopped";
  }
  for (const run of waiting) run.state = "stopped";
  working.clear();
  waiting = [];
  redraw();
}

function start() {
  stop();
  $("error").textContent = "";
  if ([...runs.values()].some(run => run.summary)) before = runs;
  runs = new Map(RATES.map(rate =>
    [rate, {rate, settings: settings(), flags: flags(), csv: "", rows: [], state: "waiting"}]));
  waiting = ORDER.map(rate => runs.get(rate));
  started = performance.now();
  start_next();
  redraw();
}

// A slider moves through many values: the runs start when it rests.
function changed() {
  write_address();
  clearTimeout(later);
  later = setTimeout(start, 250);
}

// Trains a few steps and lowers -steps where a sweep would take too long.
function calibrate(then) {
  const begun = performance.now();
  const args = ["-lr", "1e-2", ...flags(CALIBRATION), "-eval_tokens", "512", "-out", "run"];
  program(args, {}, ({status}) => {
    if (status === undefined) return;
    const seconds = (performance.now() - begun) / 1000 / CALIBRATION;
    const rounds = Math.ceil(RATES.length / cores), {values} = SLIDERS.find(s => s.flag == "steps");
    const most = FAST_ENOUGH / seconds / rounds;
    let at = Number($("steps").value);
    while (at > 0 && values[at] > most) at--;
    if (at < Number($("steps").value)) {
      $("steps").value = at;
      write_address();
      $("slow").textContent = `This machine is slow: ${values[at]} steps, so that the curve is `
        + "complete in some twenty seconds. The slider goes further.";
    }
    then();
  });
}

// ---------------------------------------------------------------------------
// Charts

const charts = {};
const color = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// A chart of lines: x and y with titles; log: the axes that are logarithmic.
function make_chart(id, x, y, log) {
  const axis = (name, title) => ({
    type: log.includes(name) ? "logarithmic" : "linear",
    title: {display: true, text: title},
    ticks: log.includes(name) ? {callback: short, maxRotation: 0} : {maxTicksLimit: 7},
    afterBuildTicks: x_axis => {
      if (name == "x" && log.includes("x")) x_axis.ticks = RATES.map(rate => ({value: +rate}));
    },
  });
  charts[id] = new Chart($(id), {
    type: "line",
    data: {datasets: []},
    options: {
      animation: false, maintainAspectRatio: false, parsing: false,
      scales: {x: axis("x", x), y: axis("y", y)},
      plugins: {legend: {display: id == "run_logits", labels: {boxHeight: 0}}},
      onClick: (event, elements, chart) => {
        const point = elements[0] && chart.data.datasets[elements[0].datasetIndex];
        const rate = point?.rates?.[elements[0].index];
        if (rate) choose(rate);
      },
    },
  });
}

function short(value) {    // of a logarithmic axis: 1, 3 and 10
  const text = value.toExponential(0).replace("+", "");
  return "13".includes(text[0]) ? value >= 1 && value < 1000 ? String(value) : text : "";
}

function curve(runs, value, style) {
  const there = RATES.map(rate => runs.get(rate)).filter(run => isFinite(value(run)));
  return {
    ...style,
    data: there.map(run => ({x: Number(run.rate), y: value(run)})),
    rates: there.map(run => run.rate),
    borderWidth: 2, pointRadius: 5, pointHoverRadius: 8,
  };
}

function set(id, datasets) {
  charts[id].data.datasets = datasets;
  charts[id].update("none");
}

function draw_sweep() {
  for (const [id, value] of [["loss", loss_of], ["logit", logit_of]]) {
    const now = color("--now"), ghost = color("--before");
    const sets = [curve(runs, value, {
      label: "now", borderColor: now,
      backgroundColor: now,
    })];
    if (before) sets.push(curve(before, value, {
      label: "before", borderColor: ghost, backgroundColor: ghost, borderDash: [6, 4],
      pointStyle: "triangle",
    }));
    const floor = number([...runs.values()].find(run => run.summary)?.summary.entropy_floor);
    if (id == "loss" && floor > 0) sets.push({
      label: "the entropy of the language", data: RATES.map(rate => ({x: Number(rate), y: floor})),
      borderColor: color("--faint"), borderWidth: 1, borderDash: [2, 3], pointRadius: 0,
    });
    set(id, sets);
  }
}

function draw_table() {
  const now = document.activeElement?.dataset?.rate;
  $("runs").replaceChildren(...RATES.filter(rate => runs.has(rate)).map(rate => {
    const run = runs.get(rate), row = document.createElement("tr");
    const button = document.createElement("button");
    Object.assign(button, {type: "button", textContent: rate, onclick: () => choose(rate)});
    button.dataset.rate = rate;
    button.setAttribute("aria-pressed", String(rate == chosen));
    const step = number(run.rows.at(-1)?.step) || 0;
    const state = run.state == "training" ? `step ${step} of ${run.settings.steps}` : run.state;
    const cells = [loss_of(run).toFixed(4), logit_of(run).toPrecision(3), state];
    const head = Object.assign(document.createElement("th"), {scope: "row"});
    head.append(button);
    row.append(head, ...cells.map(text =>
      Object.assign(document.createElement("td"), {textContent: text.replace("NaN", "–")})));
    return row;
  }));
  if (now) document.querySelector(`[data-rate="${now}"]`)?.focus();
}

function draw_status() {
  const done = [...runs.values()].filter(run => run.summary).length;
  const busy = working.size || waiting.length;
  const seconds = ((performance.now() - started) / 1000).toFixed(0);
  if (busy) $("status").textContent = `${done} of ${RATES.length} runs are done`;
  else if (done == RATES.length && !$("status").textContent.startsWith("All"))
    $("status").textContent = `All ${RATES.length} runs are done, after ${seconds} s`;
  else if (done < RATES.length) $("status").textContent = `Stopped: ${done} runs are done`;
  $("sensitivity").textContent = sensitivity(runs);
  $("sensitivity_before").textContent = sensitivity(before);
}

// ---------------------------------------------------------------------------
// One run

function points(run, name) {
  return run.rows.filter(row => row[name] && isFinite(row[name]))
    .map(row => ({x: Number(row.step), y: Number(row[name])}));
}

function line(run, name, label, hue, dash) {
  return {
    label, data: points(run, name), borderColor: color(hue), backgroundColor: color(hue),
    borderWidth: 2, pointRadius: 0, borderDash: dash || [],
  };
}

function draw_run() {
  const run = runs.get(chosen);
  $("detail").hidden = !run;
  if (!run) return;
  const layers = Number(run.settings.layers);
  set("run_loss", [line(run, "train_loss", "training", "--now")]);
  set("run_logits", Array.from({length: layers}, (_, l) => line(
    run, `max_attn_logit_${l}`, `layer ${l + 1}`, l % 2 ? "--before" : "--now",
    l > 1 ? [2 * l, 3] : [])));
  set("run_grad", [line(run, "grad_norm", "gradient norm", "--now")]);
  $("detail_title").textContent = `The run at learning rate ${chosen}: ${run.state}`;
  const words = run.diagnosis || (run.summary ? "diagnosis: nothing went wrong" : "");
  if ($("diagnosis").textContent != words) $("diagnosis").textContent = words;
  if (run.files && run.sample === undefined) sample(run);
  $("sample").textContent = run.sample || "";
}

// A model writes text when it is looked at.
function sample(run) {
  run.sample = "";
  if (!run.files["run/model.safetensors"]) return;
  const files = Object.fromEntries(
    Object.entries(run.files).map(([name, data]) => [name, data.slice()]));
  program(["-sample", "200", "-out", "run"], files, ({status, printed}) => {
    if (status !== undefined) run.sample = printed;
    redraw();
  });
}

function choose(rate) {
  chosen = rate;
  redraw();
}

// At most once a frame, however many rows arrive.
let frame = 0;
function redraw() {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    draw_sweep();
    draw_table();
    draw_status();
    draw_run();
  });
}

function csv_of(runs) {
  const done = [...runs.values()].filter(run => run.files?.["run/summary.csv"]);
  const texts = done.map(run => new TextDecoder().decode(run.files["run/summary.csv"]));
  return texts.map((text, i) => i ? text.slice(text.indexOf("\n") + 1) : text).join("");
}

function set_colors() {
  Chart.defaults.color = color("--ink");
  Chart.defaults.borderColor = color("--line");
  for (const chart of Object.values(charts)) chart.update("none");
  redraw();
}

const linked = location.hash.length > 1;    // by someone who chose the settings
make_form();
read_address();
write_address();
Chart.defaults.color = color("--ink");
Chart.defaults.borderColor = color("--line");
Chart.defaults.font.size = 13;
make_chart("loss", "learning rate", "loss, nats", ["x"]);
make_chart("logit", "learning rate", "largest attention logit", ["x", "y"]);
make_chart("run_loss", "step", "training loss", []);
make_chart("run_logits", "step", "largest logit by layer", ["y"]);
make_chart("run_grad", "step", "gradient norm", ["y"]);
matchMedia("(prefers-color-scheme: dark)").onchange = set_colors;
$("settings").onchange = changed;
$("settings").oninput = write_address;
$("run").onclick = start;
$("stop").onclick = stop;
$("copy").onclick = () => navigator.clipboard?.writeText($("command").textContent);
$("csv").onclick = () => {
  $("csv").href = URL.createObjectURL(new Blob([csv_of(runs)], {type: "text/csv"}));
};
onhashchange = () => {
  read_address();
  changed();
};
if (linked) start();
else calibrate(start);
