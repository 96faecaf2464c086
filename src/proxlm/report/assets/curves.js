/* Curves: one plot for metrics of one kind. */
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

function bandOf(name, x, spread) {
  const mean = data.curves.series[name], std = new Map(spread.at.map((at, i) => [at, spread.y[i]]));
  const points = mean.at.map((at, i) => [x[at], mean.y[i], std.get(at)]).filter((p) => p[1] !== null && p[2] != null);
  return {
    name, colour: colour("--c0"),
    x: points.map((p) => p[0]), low: points.map((p) => p[1] - p[2]), high: points.map((p) => p[1] + p[2]),
  };
}

function linesOf(plot, x, weight) {
  return plot.names.flatMap((name, i) => {
    const curve = data.curves.series[name], few = curve.at.length < 25;
    const line = {
      name, x: curve.at.map((j) => x[j]), y: few ? curve.y : smooth(curve.y, weight), width: 1.8, opacity: 1,
      colour: colour("--c" + (i % 6)), dash: DASHES[Math.floor(i / 6) % 4], dots: few,
    };
    return weight > 0 && !few ? [{...line, y: curve.y, width: 1, opacity: 0.3, silent: true}, line] : [line];
  });
}

function drawCurves() {
  const weight = Number(byId("smoothing").value), axis = byId("axis").value;
  byId("smoothing-value").textContent = weight ? weight.toFixed(2) : "off";
  const x = data.curves[axis];
  for (const {plot, chart} of figures) {
    const spread = data.curves.series[plot.band];
    chart.draw(linesOf(plot, x, weight), spread ? bandOf(plot.names[0], x, spread) : null, axis);
  }
}

function startCurves() {
  const groups = new Map(), topics = new Map();
  for (const plot of data.curves.plots) topics.set(plot.group, [...topics.get(plot.group) ?? [], plot]);
  for (const [topic, plots] of topics) {
    const main = topic === data.curves.main, grid = make("div", {className: main ? "plots main" : "plots"});
    groups.set(topic, grid);
    /* A closed topic is drawn when it is opened: only then has it a size. */
    byId("plots").append(main ? grid : make("details", {open: !topics.has(data.curves.main)},
      make("summary", {}, topic, make("small", {}, plots.map((plot) => plot.title).join(" · "))), grid));
  }
  for (const plot of data.curves.plots) {
    const place = make("div", {className: "plot"});
    const title = plot.title + (plot.band ? " ± standard deviation" : "");
    const caption = make("figcaption", {}, title);
    /* Several curves have their names above them. */
    if (plot.names.length === 1 && plot.names[0] !== title) caption.append(make("code", {}, plot.names[0]));
    groups.get(plot.group).append(make("figure", {}, caption, place));
    figures.push({plot, chart: new Chart(place, title)});
  }
  const fixed = Object.entries(data.curves.constant).map(([name, v]) => name + " " + format(v));
  const notes = [];
  if (data.curves.every > 1) notes.push("Each point is the mean of " + data.curves.every + " rows.");
  for (const [name, other] of Object.entries(data.curves.same)) notes.push(name + " is equal to " + other + " in every row.");
  if (fixed.length) notes.push("The same in every row: " + fixed.join(", ") + ".");
  byId("curve-notes").textContent = notes.join(" ");
  byId("smoothing").value = data.curves.step.length >= 50 ? 0.6 : 0;
  byId("smoothing").oninput = byId("axis").onchange = drawCurves;
  drawCurves();
}
