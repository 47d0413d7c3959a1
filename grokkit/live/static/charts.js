// Charts: one per panel, with a shared horizontal axis of steps or epochs; drawn by uPlot.
"use strict";

const Y_SIZE = 54, FADED = 0.1;

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
    this.chosen = { choice: null, probe: null, label: null };
    this.element = this.build();
    new ResizeObserver(() => this.fit()).observe(this.host);
  }

  build() {
    const card = element("section", "card chart");
    card.dataset.panel = this.panel.key;
    this.unit = element("span", "unit");
    this.choices = element("span", "choices");
    const head = element("div", "head", [element("h2", "", this.panel.title), this.unit, this.choices]);
    this.selects = { choice: this.select("choice", "setting"), probe: this.select("probe", "probe set"), label: this.select("label", "curve") };
    if (this.panel.scale !== "share") this.choices.append(this.logButton());
    this.legend = new Legend(this);
    this.host = element("div", "plot");
    this.empty = element("div", "empty");
    this.host.append(this.empty);
    card.append(head, this.legend.element, this.host);
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
    const curves = this.selectCurves();
    this.lines = this.makeLines(curves);
    this.unit.textContent = this.describeValues(curves);
    this.empty.hidden = this.lines.some((line) => line.curve.y.some((value) => value !== null));
    this.empty.textContent = this.page.emptyMessage(this.panel, this.lines);
    const data = this.makeTable();
    const shape = JSON.stringify([this.lines.map((line) => [line.id, line.low !== null, line.partial !== null, line.colour, line.dash]), this.log, this.page.unit, this.page.axis, [...this.off]]);
    if (shape !== this.shape || !this.plot) this.create(data, shape);
    else this.plot.setData(data, true);
    this.legend.update();
  }

  // The curves of the selected setting, probe set and, if several groups have more curves than there are dashes, label.
  selectCurves() {
    const curves = this.filterBySelection(this.filterBySelection(nameCurves(this.page.curvesOf(this.panel.key), this.page.sources), "choice"), "probe");
    const labels = new Set(curves.map((curve) => curve.label));
    this.selects.label.hidden = true;
    return this.page.hasSeveralGroups() && labels.size > DASHES.length ? this.filterBySelection(curves, "label") : curves;
  }

  // Unit, setting if there is only one, and remarks; units that differ are named in the labels.
  describeValues(curves) {
    const units = [...new Set(curves.map((curve) => curve.unit))], remarks = [...new Set(curves.map((curve) => curve.remark))];
    const setting = this.selects.choice.hidden && this.chosen.choice ? [this.chosen.choice] : [];
    return [...(units.length === 1 ? units : []), ...setting, ...remarks].filter(Boolean).join(" · ");
  }

  makeLines(curves) {
    const layers = 1 + Math.max(0, ...curves.map((curve) => curve.order)), several = this.page.hasSeveralGroups();
    const sorted = [...curves].sort((a, b) => a.order - b.order || a.label.localeCompare(b.label));
    const dashes = several ? dashesByLabel(sorted) : dashesByColour(sorted, (curve) => this.colour(curve, layers));
    return sorted.map((curve) => ({
      id: curve.id, label: curve.label, group: curve.group, curve, ...splitByRuns(curve), x: this.page.scaleSteps(curve),
      colour: several ? this.page.colourOf(curve.group) : this.colour(curve, layers),
      dash: DASHES[dashes.get(curve.label) % DASHES.length], width: curve.role === "batch" ? 1 : 1.75,
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
    const columns = (line) => [line.y, ...(line.low === null ? [] : [line.low, line.high]), ...(line.partial === null ? [] : [line.partial])];
    const tables = shown.map((line) => [line.x, ...columns(line).map(positive)]);
    this.drawn = shown;
    return tables.length ? uPlot.join(tables) : [[]];
  }

  create(data, shape) {
    this.shape = shape;
    if (this.plot) this.plot.destroy();
    this.plot = new uPlot(this.options(), data, this.host);
    this.emphasise();
  }

  // The series of each line in the order of `makeTable`, and which line each belongs to.
  makeSeries() {
    const series = [{}], bands = [];
    this.lineOfSeries = [null];
    const add = (line, look) => { series.push(look); this.lineOfSeries.push(line); };
    for (const line of this.drawn) {
      add(line, { stroke: line.colour, width: line.width, dash: line.dash, points: { size: 4, fill: line.colour, space: 14 } });
      if (line.low !== null) {
        const hidden = { stroke: "transparent", width: 0, points: { show: false } };
        add(line, hidden);
        add(line, { ...hidden });
        bands.push({ series: [series.length - 1, series.length - 2], fill: withAlpha(line.colour, 0.15) });
      }
      if (line.partial !== null) add(line, { stroke: withAlpha(line.colour, 0.6), width: 1, dash: line.dash, points: { size: 3, fill: line.colour, space: 14 } });
    }
    return { series, bands };
  }

  options() {
    const { series, bands } = this.makeSeries();
    return {
      width: this.host.clientWidth, height: this.host.clientHeight, series, bands, legend: { show: false },
      padding: [14, 10, 0, 0], scales: { x: this.xScale(), y: this.yScale() }, axes: [this.xAxis(), this.yAxis()],
      cursor: {
        y: false, points: { size: 6 }, sync: { key: "grokkit", setSeries: false }, drag: { x: true, y: false, setScale: false },
        bind: { dblclick: () => () => { this.page.setZoom(null); return null; } },
      },
      hooks: { setCursor: [() => this.legend.update()], setSelect: [(plot) => this.zoom(plot)], draw: [(plot) => this.drawMarks(plot)] },
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
    return { stroke: colourOf("muted"), font: "11px system-ui", grid: line, ticks: { show: false }, gap: 6, values: (plot, values) => values.map(formatTick), ...more };
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
      for (const { text, step, group, isShared } of this.page.decisions()) {
        mark(step, group, this.page.hasSeveralGroups() && !isShared ? this.page.colourOf(group) : colourOf("accent"), [4, 3], text);
      }
    }
    const selected = this.page.selectedSnapshot();
    if (selected) mark(selected.step, selected.group, colourOf("muted"), [1, 3], "");
    context.restore();
  }

  // Fade the lines of all groups but the one that is singled out.
  emphasise() {
    const group = this.page.emphasisedGroup();
    if (!this.plot) return;
    this.plot.series.forEach((series, place) => { if (place) series.alpha = !group || this.lineOfSeries[place].group === group ? 1 : FADED; });
    this.plot.redraw(false);
  }

  // The position of the pointer on the horizontal axis, at a row of the chart; null without a pointer.
  pointer() {
    const place = this.plot && this.plot.cursor.left >= 0 ? this.plot.cursor.idx : null;
    return place === null || place === undefined ? null : this.plot.data[0][place];
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

// The curves with labels that name the settings of their measure if there are several, and the units if these differ.
function nameCurves(curves, sources) {
  const units = new Set(curves.map((curve) => curve.unit));
  return curves.map((curve) => {
    const settings = sources[curve.source] ? ` (${sources[curve.source]})` : "", unit = units.size > 1 && curve.unit ? ` [${curve.unit}]` : "";
    return settings || unit ? { ...curve, label: `${curve.label}${settings}${unit}` } : curve;
  });
}

// Of several groups each label has a dash; batches are a thin line instead.
function dashesByLabel(curves) {
  const batches = new Set(curves.filter((curve) => curve.role === "batch").map((curve) => curve.label));
  const others = [...new Set(curves.map((curve) => curve.label))].filter((label) => !batches.has(label));
  return new Map([...[...batches].map((label) => [label, 0]), ...others.map((label, place) => [label, place])]);
}

// Of one group labels of the same colour differ in their dash.
function dashesByColour(curves, colour) {
  const used = new Map(), found = new Map();
  for (const curve of curves) {
    if (found.has(curve.label)) continue;
    const place = used.get(colour(curve)) ?? 0;
    found.set(curve.label, place);
    used.set(colour(curve), place + 1);
  }
  return found;
}

// The rows of a mean over all runs of a curve, and those of a mean over only some of them (null if there are none).
function splitByRuns(curve) {
  const isPartial = curve.count ? curve.count.map((count) => count > 0 && count < curve.runs) : [];
  if (!isPartial.includes(true)) return { y: curve.y, low: curve.low, high: curve.high, partial: null };
  const whole = (values) => values === null ? null : values.map((value, row) => isPartial[row] ? null : value);
  return { y: whole(curve.y), low: whole(curve.low), high: whole(curve.high), partial: curve.y.map((value, row) => isPartial[row] ? value : null) };
}
