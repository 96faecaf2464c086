/* Curves: one plot for metrics of one kind. */
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
