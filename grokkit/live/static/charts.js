// Charts: one per panel, with a shared horizontal axis of steps or epochs; drawn by uPlot.
"use strict";

const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3]];  // by group of runs
const Y_SIZE = 54;

function colourOf(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function mixColours(a, b, share) {
  const parts = [a, b].map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  return `rgb(${parts[0].map((value, i) => Math.round(value + (parts[1][i] - value) * share)).join(",")})`;
}

function layerColour(order, count) {
  const place = count > 1 ? (4 * order) / (count - 1) : 2, stop = Math.min(Math.floor(place), 3);
  return mixColours(colourOf(`layer${stop}`), colourOf(`layer${stop + 1}`), place - stop);
}

function formatNumber(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e5 || size < 1e-3)) return value.toExponential(2);
  return String(+value.toPrecision(4));
}

function tick(value) {
  if (value === null) return "";
  const size = Math.abs(value);
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(4)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(4)}k`;
  if (size !== 0 && size < 1e-4) return value.toExponential();
  return String(+value.toPrecision(6));
}

// Ticks of a log axis: all digits within half a decade, 1-2-5 within a few decades, otherwise powers of ten.
function logTicks(low, high, room) {
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high)), found = [];
  const digits = high < 4 * low ? [1, 2, 3, 4, 5, 6, 7, 8, 9] : last - first <= room / 3 ? [1, 2, 5] : [1];
  const stride = digits.length > 1 ? 1 : Math.max(1, Math.ceil((last - first) / room));
  for (let power = first; power <= last; power += stride) {
    for (const digit of digits) {
      const value = +(digit * 10 ** power).toPrecision(1);
      if (value >= low * 0.999 && value <= high * 1.001) found.push(value);
    }
  }
  return found;
}

class Chart {
  constructor(panel, page) {
    this.panel = panel;
    this.page = page;
    this.log = panel.scale === "log";
    this.off = new Set();
    this.shape = "";
    this.chosen = { choice: null, probe: null };
    this.element = this.build();
    new ResizeObserver(() => this.fit()).observe(this.host);
  }

  build() {
    const card = element("section", "card chart");
    card.dataset.panel = this.panel.key;
    this.unit = element("span", "unit");
    this.choices = element("span", "choices");
    const head = element("div", "head", [element("h2", "", this.panel.title), this.unit, this.choices]);
    this.selects = { choice: this.select("choice", "setting"), probe: this.select("probe", "probe set") };
    if (this.panel.scale !== "share") this.choices.append(this.logButton());
    this.legend = element("div", "legend");
    this.host = element("div", "plot");
    this.empty = element("div", "empty");
    this.host.append(this.empty);
    card.append(head, this.legend, this.host);
    return card;
  }

  logButton() {
    const button = element("button", "small", "log");
    button.type = "button";
    button.setAttribute("aria-pressed", this.log);
    button.setAttribute("aria-label", `${this.panel.title}: logarithmic value axis`);
    button.onclick = () => {
      this.log = !this.log;
      button.setAttribute("aria-pressed", this.log);
      this.redraw();
    };
    return button;
  }

  select(name, label) {
    const found = element("select");
    found.setAttribute("aria-label", `${this.panel.title}: ${label}`);
    found.hidden = true;
    found.onchange = () => { this.chosen[name] = found.value; this.redraw(); };
    this.choices.append(found);
    return found;
  }

  // Fill the select with the values that the curves have, keep the selection, and return the selected curves.
  filterBySelection(curves, name) {
    const known = [...new Set(curves.map((curve) => curve[name]).filter(Boolean))];
    const select = this.selects[name];
    if (known.join() !== [...select.options].map((option) => option.value).join()) {
      select.replaceChildren(...known.map((value) => new Option(value, value)));
    }
    if (!known.includes(this.chosen[name])) {
      this.chosen[name] = known.includes("train") ? "train" : middleOfMost(curves, known, name);
    }
    if (this.chosen[name] !== null) select.value = this.chosen[name];
    select.hidden = known.length < 2;
    return curves.filter((curve) => !curve[name] || curve[name] === this.chosen[name]);
  }

  redraw() { this.shape = ""; this.update(); }

  update() {
    const allCurves = this.page.curvesOf(this.panel.key);
    const curves = this.filterBySelection(this.filterBySelection(allCurves, "choice"), "probe");
    this.lines = this.makeLines(curves);
    const units = [...new Set(curves.map((curve) => curve.unit).filter(Boolean))];
    const one = this.selects.choice.hidden && this.chosen.choice ? [this.chosen.choice] : [];
    this.unit.textContent = [...units, ...one].join(" · ");
    this.empty.hidden = this.lines.some((line) => line.y.some((value) => value !== null));
    this.empty.textContent = this.page.emptyMessage(this.panel, this.lines.length > 0);
    const data = this.makeTable();
    const shape = JSON.stringify([this.lines.map((line) => [line.id, line.low !== null, line.colour]), this.log, this.page.unit, this.page.axis, [...this.off]]);
    if (shape !== this.shape || !this.plot) this.create(data, shape);
    else this.plot.setData(data, true);
    this.updateLegend();
  }

  makeLines(curves) {
    const layers = 1 + Math.max(0, ...curves.map((curve) => curve.order));
    const sorted = [...curves].sort((a, b) => a.order - b.order || a.label.localeCompare(b.label));
    return sorted.map((curve) => ({
      id: curve.id, label: curve.label, group: curve.group, curve, y: curve.y, low: curve.low, high: curve.high,
      x: this.page.scaleSteps(curve), dash: DASHES[this.page.shown.indexOf(curve.group) % DASHES.length],
      colour: this.colour(curve, layers), width: curve.role === "batch" ? 1 : 1.75,
    }));
  }

  colour(curve, layers) {
    if (curve.role === "layer") return layerColour(curve.order, layers);
    if (curve.role === "epsilon") return colourOf(`epsilon${curve.order % 4}`);
    return colourOf(curve.role) || colourOf("validation");
  }

  // One table over the union of all steps: undefined if a line has no row at a step, null if it has a gap.
  makeTable() {
    const shown = this.lines.filter((line) => !this.off.has(line.label));
    const positive = (values) => this.log ? values.map((value) => value > 0 ? value : null) : values;
    const tables = shown.map((line) => line.low === null
      ? [line.x, positive(line.y)] : [line.x, positive(line.y), positive(line.low), positive(line.high)]);
    this.drawn = shown;
    return tables.length ? uPlot.join(tables) : [[]];
  }

  create(data, shape) {
    this.shape = shape;
    if (this.plot) this.plot.destroy();
    this.plot = new uPlot(this.options(), data, this.host);
  }

  options() {
    const series = [{}], bands = [];
    for (const line of this.drawn) {
      series.push({ stroke: line.colour, width: line.width, dash: line.dash, points: { size: 4, fill: line.colour, space: 14 } });
      if (line.low === null) continue;
      const hidden = { stroke: "transparent", width: 0, points: { show: false } };
      series.push(hidden, { ...hidden });
      bands.push({ series: [series.length - 1, series.length - 2], fill: withAlpha(line.colour) });
    }
    return {
      width: this.host.clientWidth, height: this.host.clientHeight, series, bands, legend: { show: false },
      padding: [14, 10, 0, 0], scales: { x: this.xScale(), y: this.yScale() }, axes: [this.xAxis(), this.yAxis()],
      cursor: {
        y: false, points: { size: 6 }, sync: { key: "grokkit", setSeries: false }, drag: { x: true, y: false, setScale: false },
        bind: { dblclick: () => () => { this.page.setZoom(null); return null; } },
      },
      hooks: { setCursor: [() => this.updateLegend()], setSelect: [(plot) => this.zoom(plot)], draw: [(plot) => this.drawMarks(plot)] },
    };
  }

  // The same range in all charts, so that a step is at the same position in each.
  xScale() {
    const range = () => this.page.zoom ?? [0, this.page.extent() || 1];
    // The inverse hyperbolic sine is a logarithmic scale that includes 0.
    return this.page.axis === "log" ? { time: false, distr: 4, asinh: this.page.firstStep(), range } : { time: false, range };
  }

  yScale() {
    if (this.log) {
      return { distr: 3, range: (plot, low, high) => low > 0 ? [low / 1.15, high * 1.15] : [0.1, 1] };
    }
    const ranges = {
      share: () => [0, 1],
      zero: (plot, low, high) => [Math.min(0, low ?? 0), (high > 0 ? high : 1) * 1.06],
    };
    const padded = (plot, low, high) => {
      if (low === null) return [0, 1];
      const room = 0.08 * (high - low || Math.abs(high) || 1);
      return [low - room, high + room];
    };
    return { range: ranges[this.panel.scale] ?? padded };
  }

  xAxis() {
    const axis = this.axis({ label: this.page.unit === "epoch" ? "epoch" : "step (optimizer updates)", labelSize: 16, labelFont: "11px system-ui", labelGap: 0, size: 26, space: 60 });
    if (this.page.axis !== "log") return axis;
    const splits = (plot, at, low, high) => {
      const first = this.page.firstStep();
      return [...(low <= 0 ? [0] : []), ...logTicks(Math.max(low, first), Math.max(high, first), plot.bbox.width / devicePixelRatio / 60)];
    };
    return { ...axis, splits, filter: (plot, values) => values };
  }

  yAxis() {
    const axis = this.axis({ size: Y_SIZE, space: 34 });
    if (!this.log) return axis;
    return { ...axis, splits: (plot, at, low, high) => logTicks(low, high, 6), filter: (plot, values) => values };
  }

  axis(more) {
    const line = { stroke: colourOf("grid"), width: 1 };
    return { stroke: colourOf("muted"), font: "11px system-ui", grid: line, ticks: { show: false }, gap: 6, values: (plot, values) => values.map(tick), ...more };
  }

  zoom(plot) {
    const { left, width } = plot.select;
    if (width < 4) return;
    const ends = [left, left + width].map((place) => plot.posToVal(place, "x"));
    plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    this.page.setZoom(ends);
  }

  // Draw marks at the policy's decisions and at the snapshot whose maps are displayed.
  drawMarks(plot) {
    const context = plot.ctx, { left, top, width, height } = plot.bbox;
    let free = -Infinity;
    const mark = (step, group, colour, dash, text) => {
      const x = plot.valToPos(this.page.toAxisUnit(step, group), "x", true);
      if (!(x >= left && x <= left + width)) return;
      context.strokeStyle = context.fillStyle = colour;
      context.setLineDash(dash.map((part) => part * devicePixelRatio));
      context.beginPath(); context.moveTo(x, top); context.lineTo(x, top + height); context.stroke();
      if (text && x > free) { context.fillText(text, x, top - 3 * devicePixelRatio); free = x + 13 * devicePixelRatio; }
    };
    context.save();
    context.lineWidth = devicePixelRatio;
    context.font = `600 ${11 * devicePixelRatio}px system-ui`;
    context.textAlign = "center";
    if (this.panel.key === "rate" || this.panel.key.startsWith("signal")) {
      for (const { text, step, group } of this.page.decisions()) mark(step, group, colourOf("accent"), [4, 3], text);
    }
    const selected = this.page.selectedSnapshot();
    if (selected) mark(selected.step, selected.group, colourOf("muted"), [1, 3], "");
    context.restore();
  }

  // Show the values at the pointer in the legend, or the newest ones.
  updateLegend() {
    const labels = [...new Set(this.lines.map((line) => line.label))];
    const keys = labels.join("\n") + [...this.off].join();
    if (this.keys !== keys) this.buildLegend(labels, keys);
    const pointer = this.plot && this.plot.cursor.left >= 0 ? this.plot.cursor.idx : null;
    const at = pointer === null || pointer === undefined ? null : this.plot.data[0][pointer];
    const newest = Math.max(0, ...this.lines.map((line) => line.x[line.x.length - 1] ?? 0));
    this.at.textContent = `${this.page.unit} ${(at ?? newest).toLocaleString("en", { maximumFractionDigits: 2 })}`;
    for (const [label, place] of this.values) {
      place.textContent = this.lines.filter((line) => line.label === label).map((line) => formatNumber(valueAt(line, at))).join(" | ");
      place.parentElement.title = this.lines.filter((line) => line.label === label).map((line) => describeRange(line, at)).join("\n");
    }
  }

  buildLegend(labels, keys) {
    this.keys = keys;
    this.values = new Map();
    this.at = element("span", "at");
    this.legend.replaceChildren(this.at);
    for (const label of labels) {
      const swatch = element("i"), value = element("b");
      swatch.style.background = this.lines.find((line) => line.label === label).colour;
      const button = element("button", "", [swatch, element("span", "", label), value]);
      button.type = "button";
      button.setAttribute("aria-pressed", !this.off.has(label));
      button.onclick = () => { this.off.has(label) ? this.off.delete(label) : this.off.add(label); this.update(); };
      this.values.set(label, value);
      this.legend.append(button);
    }
  }

  fit() {
    if (this.plot && this.host.clientWidth) this.plot.setSize({ width: this.host.clientWidth, height: this.host.clientHeight });
  }
}

// The middle one of the values that most groups have.
function middleOfMost(curves, known, name) {
  const groups = (value) => new Set(curves.filter((curve) => curve[name] === value).map((curve) => curve.group)).size;
  const most = Math.max(0, ...known.map(groups)), common = known.filter((value) => groups(value) === most);
  return common[Math.floor((common.length - 1) / 2)] ?? null;
}

function withAlpha(colour) {
  const hex = colour.startsWith("#") ? [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)) : colour.match(/\d+/g).slice(0, 3);
  return `rgba(${hex.join(",")},0.15)`;
}

// The last row at or before `at`; the last row of all if `at` is null.
function rowAt(line, at) {
  let row = line.x.length - 1;
  if (at !== null) {
    let low = 0, high = line.x.length;
    while (low < high) { const middle = (low + high) >> 1; line.x[middle] <= at ? low = middle + 1 : high = middle; }
    row = low - 1;
  }
  return row;
}

function valueAt(line, at) {
  const row = rowAt(line, at);
  return row < 0 ? null : line.y[row];
}

function describeRange(line, at) {
  const row = rowAt(line, at);
  if (row < 0 || line.low === null) return "";
  const seeds = line.curve.count ? `mean of ${line.curve.count[row]} of ${line.curve.seeds} seeds, range` : "interval";
  return `${seeds} ${formatNumber(line.low[row])} to ${formatNumber(line.high[row])}`;
}

function element(tag, name = "", content = []) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.append(...(Array.isArray(content) ? content : [content]));
  return made;
}
