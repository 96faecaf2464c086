"""The report's script: it draws what the JSON in the page holds. Texts only ever enter the page as text."""

SCRIPT = r"""
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const format = (v) => v === null || v === undefined ? "–" : v === 0 ? "0"
  : Math.abs(v) >= 1e6 || Math.abs(v) < 1e-3 ? v.toExponential(3) : String(Number(v.toPrecision(5)));

function make(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/* A row of buttons of which one is pressed. */
function choice(place, labels, chosen, onChoose) {
  const press = (i) => {
    [...place.children].forEach((b, j) => b.setAttribute("aria-pressed", String(i === j)));
    onChoose(i);
  };
  const button = (label, i) => make("button", {type: "button", onclick: () => press(i)}, label);
  place.replaceChildren(...labels.map(button));
  press(chosen);
}

/* ---- Curves ---- */
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
/* Plotly reads a little HTML in its texts. */
const literal = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const DASHES = ["solid", "dash", "dot", "dashdot"];
const figures = [];

/* Exponential moving average, without the pull towards 0 at its start. */
function smooth(values, weight) {
  let mean = 0, total = 0;
  return values.map((v) => {
    if (v === null) return null;
    total = weight * total + 1 - weight;
    mean += (v - mean) * ((1 - weight) / total);
    return mean;
  });
}

function band(name, x, spread, rgb) {
  const mean = data.curves.series[name], std = new Map(spread.at.map((at, i) => [at, spread.y[i]]));
  const points = mean.at.map((at, i) => [x[at], mean.y[i], std.get(at)]).filter((p) => p[1] !== null && p[2] != null);
  return {
    x: [...points.map((p) => p[0]), ...points.map((p) => p[0]).reverse()],
    y: [...points.map((p) => p[1] + p[2]), ...points.map((p) => p[1] - p[2]).reverse()],
    type: "scatter", mode: "lines", line: {width: 0}, fill: "toself", fillcolor: rgb, opacity: 0.15,
    hoverinfo: "skip", showlegend: false,
  };
}

function traces(plot, axis, weight) {
  const x = data.curves[axis], drawn = [];
  if (plot.band) drawn.push(band(plot.names[0], x, data.curves.series[plot.band], colour("--c0")));
  plot.names.forEach((name, i) => {
    const curve = data.curves.series[name], at = curve.at.map((j) => x[j]);
    const line = {color: colour("--c" + (i % 6)), width: 1.8, dash: DASHES[Math.floor(i / 6) % 4]};
    const few = at.length < 25, mode = few ? "lines+markers" : "lines";
    const same = {x: at, mode, name: literal(name), type: "scatter", legendgroup: name, marker: {size: 5}};
    if (weight > 0 && !few) {
      const faint = {line: {...line, width: 1}, opacity: 0.3, hoverinfo: "skip", showlegend: false};
      drawn.push({...same, ...faint, y: curve.y});
    }
    drawn.push({...same, y: few ? curve.y : smooth(curve.y, weight), line, hovertemplate: "%{y:.5~g}"});
  });
  return drawn;
}

/* Plotly shows a constant of 0.0001 as 0, between -1 and 1. */
function verticalAxis(plot) {
  const values = plot.names.flatMap((name) => data.curves.series[name].y).filter((v) => v !== null);
  const low = values.reduce((a, b) => Math.min(a, b), Infinity);
  const high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const room = Math.abs(low) / 2 || 1;
  return {
    nticks: 6, exponentformat: Math.max(Math.abs(low), Math.abs(high)) < 0.01 ? "e" : "SI",
    ...(low === high ? {range: [low - room, low + room]} : {autorange: true}),
  };
}

function layout(plot, axis) {
  const grid = {gridcolor: colour("--line"), zerolinecolor: colour("--line"), automargin: true};
  return {
    margin: {l: 44, r: 12, t: 8, b: 34}, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: {color: colour("--soft"), size: 11, family: "system-ui, sans-serif"},
    xaxis: {...grid, title: {text: axis, standoff: 4}, nticks: 7},
    yaxis: {...grid, ...verticalAxis(plot)},
    hovermode: "x unified", hoverlabel: {bgcolor: colour("--ground"), font: {color: colour("--ink")}},
    showlegend: plot.names.length > 1, legend: {orientation: "h", y: 1.02, yanchor: "bottom", x: 0},
    /* A finger that scrolls the page must not zoom into a plot. */
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
  };
}

function drawCurves() {
  const weight = Number(byId("smoothing").value), axis = byId("axis").value;
  byId("smoothing-value").textContent = weight ? weight.toFixed(2) : "off";
  for (const {plot, place} of figures) {
    Plotly.react(place, traces(plot, axis, weight), layout(plot, axis), {responsive: true, displayModeBar: false});
  }
}

function startCurves() {
  const groups = new Map();
  for (const plot of data.curves.plots) {
    if (!groups.has(plot.group)) {
      const grid = make("div", {className: "plots"});
      groups.set(plot.group, grid);
      byId("plots").append(make("h3", {}, plot.group), grid);
    }
    const place = make("div", {className: "plot"});
    const title = plot.title + (plot.band ? " ± standard deviation" : "");
    groups.get(plot.group).append(make("figure", {}, make("figcaption", {}, title), place));
    figures.push({plot, place});
  }
  const fixed = Object.entries(data.curves.constant).map(([name, v]) => name + " " + format(v));
  const notes = [];
  if (data.curves.every > 1) notes.push("Each point is the mean of " + data.curves.every + " rows.");
  if (fixed.length) notes.push("The same in every row: " + fixed.join(", ") + ".");
  byId("curve-notes").textContent = notes.join(" ");
  byId("smoothing").value = data.curves.step.length >= 50 ? 0.6 : 0;
  byId("smoothing").oninput = byId("axis").onchange = drawCurves;
  drawCurves();
}

/* ---- Texts over training ---- */
const ENDS = {eos: "ended", stop: "stopped at a stop text", length: "cut at the length limit"};

function facts(sample) {
  const parts = ["step " + sample.step];
  if (sample.prompt_id !== undefined) parts.push("prompt " + sample.prompt_id);
  if (typeof sample.reward === "number") parts.push("reward " + format(sample.reward));
  const components = Object.entries(sample.components ?? {});
  if (components.length > 1) parts.push(...components.map(([name, v]) => name + " " + format(v)));
  if (sample.finish) parts.push(ENDS[sample.finish] ?? String(sample.finish));
  return make("h4", {className: "facts"}, parts.join(" · "));
}

function startTexts() {
  const steps = [...new Set(data.samples.texts.map((s) => s.step))], slider = byId("text-step");
  const show = () => {
    const step = steps[slider.value];
    byId("text-step-value").textContent = "step " + step;
    byId("texts").replaceChildren(...data.samples.texts.filter((s) => s.step === step).map((sample) =>
      make("article", {className: "card"}, facts(sample), make("div", {className: "text"},
        make("span", {className: "prompt"}, sample.prompt), sample.response))));
  };
  slider.max = steps.length - 1;
  slider.value = steps.length - 1;
  slider.oninput = show;
  const move = (by) => { slider.value = Number(slider.value) + by; show(); };
  byId("text-back").onclick = () => move(-1);
  byId("text-on").onclick = () => move(1);
  if (data.samples.all_steps > steps.length) {
    byId("text-notes").textContent = steps.length + " of the " + data.samples.all_steps + " steps written down.";
  }
  show();
}

/* ---- Tokens ---- */
let quantity = null, tokenStep = null;

/* The square root lets small numbers show beside large ones. */
function shade(value, scale) {
  if (value === null || value === undefined || !scale.reach) return "transparent";
  const share = (value - scale.centre) / scale.reach;
  const strength = 0.75 * Math.sqrt(Math.min(1, Math.abs(share)));
  return "rgb(var(" + (share < 0 ? "--below" : "--above") + ") / " + strength.toFixed(3) + ")";
}

function drawLegend() {
  const low = quantity.below ? -1 : 0, high = quantity.above ? 1 : 0;
  const at = (share) => quantity.centre + share * quantity.reach;
  const stops = [], ticks = [];
  for (let i = 0; i <= 16; i++) stops.push(shade(at(low + (high - low) * i / 16), quantity));
  for (let i = 0; i <= 4; i++) ticks.push(make("span", {}, format(at(low + (high - low) * i / 4))));
  const scale = make("div", {className: "scale"});
  scale.style.background = "linear-gradient(to right, " + stops.join(", ") + ")";
  byId("legend").replaceChildren(scale, make("div", {className: "ticks"}, ...ticks),
    make("p", {className: "note"}, quantity.label + (quantity.about ? ": " + quantity.about : "") + "."));
}

function tokenNode(sample, index) {
  const text = sample.tokens[index], node = make("span", {className: "token"});
  node.dataset.token = index;
  node.style.background = shade(sample.per_token[quantity.name]?.[index], quantity);
  if (text === "") node.append(make("span", {className: "mark"}, "▯"));
  for (const piece of text.split(/(\n)/)) {
    if (piece === "\n") node.append(make("span", {className: "mark"}, "⏎"), "\n");
    else if (piece) node.append(piece);
  }
  return node;
}

function drawTokens() {
  hideTip();
  drawLegend();
  byId("tokens").replaceChildren(...data.samples.tokens.filter((s) => s.step === tokenStep).map((sample) => {
    const text = make("div", {className: "text"}, make("span", {className: "prompt"}, sample.prompt),
      ...sample.tokens.map((_, i) => tokenNode(sample, i)));
    const card = make("article", {className: "card"}, facts(sample), text);
    card.dataset.sample = data.samples.tokens.indexOf(sample);
    return card;
  }));
}

function hideTip() {
  byId("tip").hidden = true;
  document.querySelectorAll(".token.chosen").forEach((node) => node.classList.remove("chosen"));
}

function showTip(node) {
  const sample = data.samples.tokens[node.closest(".card").dataset.sample], index = Number(node.dataset.token);
  const rows = data.samples.quantities.map((q) => make("tr", {className: q === quantity ? "shown" : ""},
    make("th", {scope: "row"}, q.label), make("td", {}, format(sample.per_token[q.name]?.[index]))));
  hideTip();
  node.classList.add("chosen");
  const tip = byId("tip"), box = node.getClientRects()[0];
  tip.replaceChildren(make("div", {}, make("code", {}, JSON.stringify(sample.tokens[index])),
    " · token " + (index + 1) + " of " + sample.tokens.length), make("table", {}, make("tbody", {}, ...rows)));
  tip.hidden = false;
  const width = document.documentElement.clientWidth, below = box.bottom + tip.offsetHeight + 8 < innerHeight;
  tip.style.left = Math.max(8, Math.min(box.left, width - tip.offsetWidth - 8)) + scrollX + "px";
  tip.style.top = (below ? box.bottom + 6 : box.top - tip.offsetHeight - 6) + scrollY + "px";
}

function startTokens() {
  const steps = [...new Set(data.samples.tokens.map((s) => s.step))];
  quantity = data.samples.quantities[0];
  tokenStep = steps.at(-1);
  choice(byId("token-step"), steps.map((s) => "Step " + s), steps.length - 1, (i) => {
    tokenStep = steps[i];
    drawTokens();
  });
  choice(byId("token-quantity"), data.samples.quantities.map((q) => q.label), 0, (i) => {
    quantity = data.samples.quantities[i];
    drawTokens();
  });
  const on = (event) => event.target.closest?.("#tokens .token");
  const follow = (event) => { const node = on(event); if (node) showTip(node); else hideTip(); };
  document.addEventListener("pointerover", follow);
  document.addEventListener("pointerdown", follow);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
}

/* ---- Light and dark ---- */
const dark = matchMedia("(prefers-color-scheme: dark)");
byId("theme").onclick = () => {
  const now = document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
  document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
  drawCurves();
};
dark.addEventListener("change", drawCurves);

startCurves();
if (data.samples.texts.length) startTexts();
if (data.samples.tokens.length) startTokens();
"""
