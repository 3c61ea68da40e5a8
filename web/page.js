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
  {flag: "optimizer", on: "muon", off: "adamw", ticked: false,
   text: "Muon instead of AdamW: orthogonal steps of the layers' matrices (found since)"},
  {flag: "attn_cap", on: "30", off: "0", ticked: false,
   text: "soft cap: attention logits within ±30 (found since)"},
  {flag: "qk_clip", on: "30", off: "0", ticked: false,
   text: "QK-clip: shrinks a head whose logits passed 30; without qk-norm (found since)"},
  {flag: "gate", on: "1", off: "0", ticked: false,
   text: "gate: attention's output times sigmoid(x W) (found since)"},
  {flag: "peri_ln", on: "1", off: "0", ticked: false,
   text: "Peri-LN: a LayerNorm after each sublayer, too (found since)"},
  {flag: "cautious", on: "1", off: "0", ticked: false,
   text: "cautious decay: only where the update shrinks the weight (found since)"},
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

let runs = new Map(), before = new Map();    // learning rate: run; those of the settings before
let waiting = [], working = new Set();
let chosen = null, started = 0, ended = 0, later, calibration;

onerror = message => write("error", message);    // as of a browser that starts no worker

// Only where it differs: a screen reader says again what is written again.
function write(id, text) {
  if ($(id).textContent != text) $(id).textContent = text;
}

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
  write("command", "./train_gpt -lr 3e-4:3e-1 " + flags().join(" "));
  write("copy", "Copy");
  for (const {flag, values} of SLIDERS) {
    const value = values[$(flag).value];
    write(flag + "_value", value);
    $(flag).setAttribute("aria-valuetext", value);
  }
}

function read_address() {
  for (const [flag, value] of new URLSearchParams(location.hash.slice(1))) {
    const tick = TICKS.find(t => t.flag == flag), slider = SLIDERS.find(s => s.flag == flag);
    if (tick && [tick.on, tick.off].includes(value)) $(flag).checked = value == tick.on;
    const at = slider ? slider.values.indexOf(Number(value)) : -1;
    if (at >= 0) $(flag).value = at;
  }
}

function make_form() {
  for (const {flag, ticked, text} of TICKS) {
    const label = document.createElement("label"), box = document.createElement("input");
    Object.assign(box, {type: "checkbox", id: flag, checked: ticked ?? true});
    label.append(box, " " + text);
    const details = document.createElement("details"), summary = document.createElement("summary");
    const pre = Object.assign(document.createElement("pre"), {textContent: shown[flag]});
    pre.tabIndex = 0;
    summary.textContent = `-${flag}: its lines in C`;
    details.append(summary, pre);
    $("ticks").append(label, details);
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

const number = text => text ? Number(text) : NaN;

// Adds a part of a CSV file to what is known of it: {head, rows, rest}, rest being half a line.
function add_rows(csv, text) {
  const lines = (csv.rest + text).split("\n");
  csv.rest = lines.pop();
  for (const line of lines) {
    const cells = line.split(",");
    if (csv.head) csv.rows.push(Object.fromEntries(csv.head.map((name, i) => [name, cells[i]])));
    else csv.head = cells;
  }
  return csv.rows;
}

// Starts the program; calls each(message) for what the worker posts. Returns the worker.
function program(args, files, each) {
  const worker = new Worker(workerURL);
  worker.onmessage = event => {
    if ("status" in event.data) worker.terminate();
    each(event.data);
  };
  worker.onerror = event => each({status: 1, printed: event.message || "no worker", files: {}});
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
  const logits = run.head?.filter(name => name.startsWith("max_attn_logit_")) || [];
  let most = 0;
  for (const row of run.rows)
    for (const name of logits) if (row[name] > most) most = Number(row[name]);
  return most || NaN;
}

function sensitivity(runs) {
  const losses = [...runs.values()].filter(run => run.summary).map(loss_of);
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
      if (!working.has(run)) return;    // a last word after stop()
      if (message.row) add_rows(run, message.row);
      else {
        working.delete(run);
        finish(run, message);
        start_next();
      }
      redraw();
    });
  }
}

function finish(run, {status, printed, files}) {
  Object.assign(run, {files, state: "done"});
  ended = performance.now();
  if (status) {
    run.state = "failed";
    write("error", printed);
    return;
  }
  run.summary_csv = new TextDecoder().decode(files["run/summary.csv"]);
  run.summary = add_rows({rest: "", rows: []}, run.summary_csv)[0];
  if (run.summary.diverged_step) run.state = "diverged at step " + run.summary.diverged_step;
  const found = printed.slice(printed.lastIndexOf("diagnosis: "));
  run.diagnosis = found.startsWith("diagnosis: ") ? found.replace(/\s+/g, " ") : "";
}

function stop() {
  clearTimeout(later);
  calibration?.terminate();
  later = calibration = null;
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
  write("error", "");
  const done = [...runs].filter(([, run]) => run.summary);
  if (done.length) before = new Map(done);
  for (const run of before.values()) run.files = {};    // weights, of which there may be 100 MB
  runs = new Map(RATES.map(rate => [rate, {
    rate, settings: settings(), flags: flags(), rest: "", rows: [], state: "waiting",
  }]));
  waiting = ORDER.map(rate => runs.get(rate));
  started = performance.now();
  start_next();
  redraw();
}

// A slider moves through many values: the runs start when it rests.
function changed() {
  write_address();
  write("slow", "");
  stop();
  later = setTimeout(start, 250);
}

// Trains a few steps and lowers -steps where a sweep would take too long.
function calibrate(then) {
  const begun = performance.now();
  const args = ["-lr", "1e-2", ...flags(CALIBRATION), "-eval_tokens", "512", "-out", "run"];
  write("status", "Measuring how fast this machine is");
  calibration = program(args, {}, ({status}) => {
    if (status === undefined || !calibration) return;
    calibration = null;
    const seconds = (performance.now() - begun) / 1000 / CALIBRATION;
    const rounds = Math.ceil(RATES.length / cores), {values} = SLIDERS.find(s => s.flag == "steps");
    const most = FAST_ENOUGH / seconds / rounds;
    let at = Number($("steps").value);
    while (at > 0 && values[at] > most) at--;
    if (at < Number($("steps").value)) {
      $("steps").value = at;
      write_address();
      write("slow", `This machine is slow: ${values[at]} steps, so that the curve is complete in `
        + "some twenty seconds. The slider goes further.");
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
    ...(name == "x" && log.includes("x") ? {min: 2e-4, max: 4.5e-1} : {}),    // also without data
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
  const there = [...runs.values()].filter(run => isFinite(value(run)));
  return {
    data: there.map(run => ({x: Number(run.rate), y: value(run)})),
    rates: there.map(run => run.rate),
    borderWidth: 2, pointRadius: 5, pointHoverRadius: 8,
    ...style,
  };
}

function set(id, datasets) {
  charts[id].data.datasets = datasets;
  charts[id].update("none");
}

function draw_sweep() {
  for (const [id, value] of [["loss", loss_of], ["logit", logit_of]]) {
    const now = color("--now"), ghost = color("--before");
    const sets = [curve(runs, value, {label: "now", borderColor: now, backgroundColor: now})];
    if (before.size) sets.push(curve(before, value, {
      label: "before", borderColor: ghost, backgroundColor: ghost, borderDash: [6, 4],
      pointStyle: "triangle", rates: [],    // a click shows none of them: their runs are gone
    }));
    const floor = number([...runs.values()].find(run => run.summary)?.summary.entropy_floor);
    if (id == "loss" && floor > 0) sets.push({
      label: "the entropy of the language", data: RATES.map(rate => ({x: Number(rate), y: floor})),
      borderColor: color("--faint"), borderWidth: 1, borderDash: [2, 3], pointRadius: 0,
    });
    set(id, sets);
  }
}

// Once: a button that is made anew loses a click, the focus, and the reader's place.
function make_table() {
  for (const rate of RATES) {
    $("runs").insertRow().innerHTML = `<th scope="row"><button type="button" id="run_${rate}">`
      + `${rate}</button></th><td id="loss_${rate}"><td id="logit_${rate}"><td id="state_${rate}">`;
    $(`run_${rate}`).onclick = () => choose(rate);
  }
}

function draw_table() {
  for (const [rate, run] of runs) {
    const step = run.rows.at(-1)?.step || 0, {steps} = run.settings;
    write(`loss_${rate}`, loss_of(run).toFixed(4).replace("NaN", "–"));
    write(`logit_${rate}`, logit_of(run).toPrecision(3).replace("NaN", "–"));
    write(`state_${rate}`, run.state == "training" ? `step ${step} of ${steps}` : run.state);
    $(`run_${rate}`).setAttribute("aria-pressed", rate == chosen);
  }
}

// The flags of the ghost that are not those of now
function difference() {
  if (!before.size) return "";
  const [[{settings: ghost}], [{settings: now}]] = [before, runs].map(map => [...map.values()]);
  const differ = Object.keys(now).filter(flag => ghost[flag] != now[flag]);
  return differ.map(flag => ` -${flag} ${ghost[flag]}`).join("");
}

function draw_status() {
  if (later || calibration) return;    // about to start
  const done = [...runs.values()].filter(run => run.summary).length;
  const seconds = ((ended - started) / 1000).toFixed(0);
  if (working.size || waiting.length) write("status", `${done} of ${RATES.length} runs are done`);
  else if (done < RATES.length) write("status", `Stopped: ${done} runs are done`);
  else write("status", `All ${RATES.length} runs are done, after ${seconds} s`);
  write("sensitivity", sensitivity(runs));
  write("sensitivity_before", sensitivity(before));
  write("difference", difference());
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
    l ? [2 * l, 3] : [])));
  set("run_grad", [line(run, "grad_norm", "gradient norm", "--now")]);
  write("detail_title", `The run at learning rate ${chosen}: ${run.state}`);
  write("diagnosis", run.diagnosis || (run.summary ? "diagnosis: nothing went wrong" : ""));
  if (run.files && run.sample === undefined) sample(run);
  write("sample", run.sample || "");
}

// A model writes text when it is looked at.
function sample(run) {
  run.sample = "";
  if (!run.files["run/model.safetensors"]) return;
  program(["-sample", "200", "-out", "run"], run.files, ({status, printed}) => {
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
  const texts = [...runs.values()].flatMap(run => run.summary_csv || []);
  return texts.map((text, i) => i ? text.slice(text.indexOf("\n") + 1) : text).join("");
}

// A chart keeps the colours of its axes and its legend: they are set, not left to Chart.defaults.
function set_colors() {
  const ink = color("--ink"), line = color("--line");
  for (const chart of Object.values(charts)) {
    chart.options.plugins.legend.labels.color = ink;
    for (const axis of Object.values(chart.options.scales)) {
      axis.ticks.color = axis.title.color = ink;
      axis.grid.color = axis.border.color = line;
    }
    chart.update("none");
  }
  redraw();
}

// In the oldest way, which also works where a page has no navigator.clipboard.
function copy() {
  getSelection().selectAllChildren($("command"));
  write("copy", document.execCommand("copy") ? "Copied" : "Selected: press Ctrl+C");
}

const linked = location.hash.length > 1;    // by someone who chose the settings
make_form();
make_table();
read_address();
write_address();
Chart.defaults.font.size = 13;
make_chart("loss", "learning rate", "loss, nats", ["x"]);
make_chart("logit", "learning rate", "largest attention logit", ["x", "y"]);
make_chart("run_loss", "step", "training loss", []);
make_chart("run_logits", "step", "largest logit by layer", ["y"]);
make_chart("run_grad", "step", "gradient norm", ["y"]);
set_colors();
matchMedia("(prefers-color-scheme: dark)").onchange = set_colors;
$("settings").onchange = changed;
$("settings").oninput = write_address;
$("settings").onsubmit = () => false;    // Enter in a tick
$("run").onclick = start;
$("stop").onclick = stop;
$("copy").onclick = copy;
$("csv").onclick = () => {
  $("csv").href = "data:text/csv," + encodeURIComponent(csv_of(runs));
};
onhashchange = () => {
  read_address();
  changed();
};
if (linked) start();
else calibrate(start);
