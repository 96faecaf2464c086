/* A line chart as SVG: axes, lines with gaps, a band, a legend that switches lines off, values under the pointer, and
   zooming by dragging. A line is {name, x, y, colour, dash, width, opacity, dots, silent}; a y of null is a gap. */
const DASHES = ["", "6 4", "2 3", "7 3 2 3"];
const ROOM = {right: 12, top: 8, bottom: 36};
let charts = 0;

function shape(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/* About `count` round numbers from low to high. */
function ticks(low, high, count) {
  const least = (high - low) / count, power = 10 ** Math.floor(Math.log10(least));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= least * 0.999);
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  return Array.from({length: last - first + 1}, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function mark(value) {
  const size = Math.abs(value);
  return size === 0 || (size >= 1e-3 && size < 1e5) ? String(value) : value.toExponential().replace("e+", "e");
}

/* The least and the largest number, with some room; around a single number as much as half of it. */
function reach(values, room) {
  let low = Infinity, high = -Infinity;
  for (const v of values) if (v !== null) { low = Math.min(low, v); high = Math.max(high, v); }
  if (low > high) return [0, 1];
  const more = low === high ? (room ? Math.abs(low) / 2 || 1 : 0.5) : (high - low) * room;
  return [low - more, high + more];
}

class Chart {
  constructor(place, title) {
    Object.assign(this, {title, id: "chart" + charts++, off: new Set(), zoom: null, lines: [], band: null, axis: ""});
    this.legend = make("div", {className: "keys"});
    this.canvas = make("div", {className: "canvas"});
    place.append(this.legend, this.canvas);
    this.canvas.onpointermove = (event) => this.follow(event);
    this.canvas.onpointerleave = () => this.leave();
    this.canvas.onpointerdown = (event) => this.press(event);
    this.canvas.onpointerup = (event) => this.release(event);
    this.canvas.ondblclick = () => { this.zoom = null; this.paint(); };
    new ResizeObserver(() => this.paint()).observe(this.canvas);
  }

  draw(lines, band, axis) {
    if (axis !== this.axis) this.zoom = null;
    Object.assign(this, {lines, band, axis});
    const named = lines.filter((line) => !line.silent);
    this.legend.replaceChildren(...(named.length > 1 ? named : []).map((line) => this.key(line)));
    this.paint();
  }

  key(line) {
    const stroke = {x1: 0, y1: 5, x2: 22, y2: 5, stroke: line.colour, "stroke-width": 2, "stroke-dasharray": line.dash};
    const sample = shape("svg", {width: 22, height: 10, "aria-hidden": true}, shape("line", stroke));
    const flip = () => {
      if (!this.off.delete(line.name)) this.off.add(line.name);
      node.setAttribute("aria-pressed", String(!this.off.has(line.name)));
      this.paint();
    };
    const node = make("button", {type: "button", className: "key", onclick: flip}, sample, line.name);
    node.setAttribute("aria-pressed", String(!this.off.has(line.name)));
    return node;
  }

  shown() {
    return this.lines.filter((line) => !this.off.has(line.name));
  }

  scales() {
    const width = this.canvas.clientWidth, height = this.canvas.clientHeight, lines = this.shown();
    const [x0, x1] = this.zoom ?? reach(lines.flatMap((line) => line.x), 0);
    const seen = (line) => line.y.filter((_, i) => line.x[i] >= x0 && line.x[i] <= x1);
    const edges = this.band && !this.zoom ? [...this.band.low, ...this.band.high] : [];
    const [y0, y1] = reach([...lines.flatMap(seen), ...edges], 0.06);
    const rows = ticks(y0, y1, 5), left = 14 + 6.4 * Math.max(1, ...rows.map((v) => mark(v).length));
    const inner = {left, right: width - ROOM.right, top: ROOM.top, bottom: height - ROOM.bottom};
    return {
      ...inner, width, height, x0, x1, rows, columns: ticks(x0, x1, Math.max(2, Math.min(7, width / 60))),
      x: (v) => inner.left + (v - x0) / (x1 - x0) * (inner.right - inner.left),
      y: (v) => inner.bottom - (v - y0) / (y1 - y0) * (inner.bottom - inner.top),
    };
  }

  paint() {
    if (!this.canvas.clientWidth || !this.lines.length) return;
    const s = this.scale = this.scales(), text = {fill: colour("--soft"), "font-size": 11};
    const grid = {stroke: colour("--line"), "stroke-width": 1};
    const frame = [
      ...s.rows.flatMap((v) => [shape("line", {...grid, x1: s.left, x2: s.right, y1: s.y(v), y2: s.y(v)}),
        shape("text", {...text, x: s.left - 6, y: s.y(v) + 4, "text-anchor": "end"}, mark(v))]),
      ...s.columns.flatMap((v) => [shape("line", {...grid, x1: s.x(v), x2: s.x(v), y1: s.top, y2: s.bottom}),
        shape("text", {...text, x: s.x(v), y: s.bottom + 15, "text-anchor": "middle"}, mark(v))]),
      shape("text", {...text, x: (s.left + s.right) / 2, y: s.height - 4, "text-anchor": "middle"}, this.axis),
    ];
    const box = {x: s.left, y: s.top - 4, width: Math.max(0, s.right - s.left), height: s.bottom - s.top + 8};
    const inside = shape("g", {"clip-path": "url(#" + this.id + ")"}, ...this.bandShape(s),
      ...this.shown().flatMap((line) => this.lineShape(line, s)));
    this.pointer = shape("g", {});
    this.canvas.replaceChildren(shape("svg", {width: s.width, height: s.height, role: "img", "aria-label": this.words()},
      shape("clipPath", {id: this.id}, shape("rect", box)), ...frame, inside, this.pointer));
  }

  /* The plot for those who cannot see it: its title, and where each line begins, ends, and how far it goes. */
  words() {
    const about = this.shown().filter((line) => !line.silent).map((line) => {
      const there = line.y.flatMap((y, i) => y === null ? [] : [[line.x[i], y]]);
      if (!there.length) return line.name + ": no numbers";
      const [low, high] = reach(there.map((p) => p[1]), 0), [first, last] = [there[0], there.at(-1)];
      return line.name + ": " + format(first[1]) + " at " + this.axis + " " + format(first[0]) + ", " + format(last[1])
        + " at " + format(last[0]) + (low < high ? ", between " + format(low) + " and " + format(high) : "");
    });
    return [this.title, ...about].join(". ");
  }

  bandShape(s) {
    if (!this.band || this.off.has(this.band.name)) return [];
    const {x, low, high, colour: fill} = this.band, there = x.map((v, i) => s.x(v) + " " + s.y(high[i]));
    const back = x.map((v, i) => s.x(v) + " " + s.y(low[i])).reverse();
    return [shape("path", {d: "M" + [...there, ...back].join("L") + "Z", fill, opacity: 0.15})];
  }

  lineShape(line, s) {
    let path = "", pen = false;
    line.x.forEach((v, i) => {
      if (line.y[i] !== null) path += (pen ? "L" : "M") + s.x(v).toFixed(1) + " " + s.y(line.y[i]).toFixed(1) + (pen ? "" : "h0");
      pen = line.y[i] !== null;
    });
    const stroke = {stroke: line.colour, "stroke-width": line.width, "stroke-dasharray": line.dash, opacity: line.opacity};
    const dots = line.dots ? line.x.flatMap((v, i) => line.y[i] === null ? [] : [[v, line.y[i]]]) : [];
    return [shape("path", {d: path, fill: "none", "stroke-linecap": "round", "stroke-linejoin": "round", ...stroke}),
      ...dots.map(([v, y]) => shape("circle", {cx: s.x(v), cy: s.y(y), r: 2.5, fill: line.colour}))];
  }

  /* The place on the x axis under the pointer. */
  under(event) {
    const s = this.scale, at = event.clientX - this.canvas.getBoundingClientRect().left;
    return s.x0 + (Math.max(s.left, Math.min(s.right, at)) - s.left) / (s.right - s.left) * (s.x1 - s.x0);
  }

  follow(event) {
    if (!this.scale) return;
    const s = this.scale, here = this.under(event), lines = this.shown().filter((line) => !line.silent);
    if (this.from !== undefined) {
      const [a, b] = [s.x(this.from), s.x(here)].sort((p, q) => p - q);
      this.pointer.replaceChildren(shape("rect", {x: a, y: s.top, width: b - a, height: s.bottom - s.top,
        fill: colour("--soft"), opacity: 0.2}));
      return;
    }
    let nearest = null;
    for (const v of lines.flatMap((line) => line.x)) {
      if (v >= s.x0 && v <= s.x1 && (nearest === null || Math.abs(v - here) < Math.abs(nearest - here))) nearest = v;
    }
    if (nearest === null) return;
    const across = {x1: s.x(nearest), x2: s.x(nearest), y1: s.top, y2: s.bottom, stroke: colour("--soft")};
    this.pointer.replaceChildren(shape("line", across));
    const found = lines.map((line) => [line, line.y[line.x.indexOf(nearest)]]).filter((pair) => pair[1] !== undefined);
    const rows = found.map(([line, y]) => {
      const name = make("th", {scope: "row"}, line.name);
      name.style.color = line.colour;
      return make("tr", {}, name, make("td", {}, format(y)));
    });
    placeTip({left: event.clientX + 14, top: event.clientY, bottom: event.clientY + 10},
      make("div", {}, this.axis + " " + format(nearest)), make("table", {}, make("tbody", {}, ...rows)));
  }

  leave() {
    byId("tip").hidden = true;
    this.from = undefined;
    this.pointer?.replaceChildren();
  }

  press(event) {
    /* A finger that scrolls the page must not zoom into a plot. */
    if (event.pointerType === "touch" || !this.scale) return;
    this.from = this.under(event);
    this.canvas.setPointerCapture(event.pointerId);
    byId("tip").hidden = true;
  }

  release(event) {
    if (this.from === undefined) return;
    const range = [this.from, this.under(event)].sort((a, b) => a - b);
    this.from = undefined;
    if (this.scale.x(range[1]) - this.scale.x(range[0]) > 6) this.zoom = range;
    this.paint();
  }
}
