// The legend of a chart: the values at the pointer, or the newest ones, each with its label and its group.
"use strict";

const MOST_CHARACTERS = 36;  // of a group's name

class Legend {
  constructor(chart) {
    this.chart = chart;
    this.page = chart.page;
    this.element = element("div", "legend");
    this.element.tabIndex = 0;  // it may scroll
    this.element.setAttribute("aria-label", `${chart.panel.title}: values`);
  }

  update() {
    const labels = [...new Set(this.chart.lines.map((line) => line.label))], several = this.page.hasSeveralGroups();
    const groups = several ? this.page.shown.map((key) => this.page.group(key)) : [];
    const looks = this.chart.lines.map((line) => [line.label, line.group, line.dash, line.colour]);
    const key = JSON.stringify([looks, groups.map((group) => [group.key, group.label, group.short]), [...this.chart.off]]);
    if (this.key !== key) {
      this.key = key;
      this.cells = new Map();  // by group and label
      this.steps = new Map();  // by group
      several ? this.buildTable(labels, groups) : this.buildList(labels);
    }
    this.fill();
  }

  // One group: a list of labels with their values.
  buildList(labels) {
    this.head = element("span", "at");
    this.element.replaceChildren(this.head, ...labels.map((label) => {
      const line = this.lineOf(label), value = element("b");
      const button = this.makeToggle(label, [makeSample(line), element("span", "label", label), value]);
      this.cells.set(idOfCell(line), { value, host: button });
      return button;
    }));
  }

  // Several groups: a table with one row per group and one column per label.
  buildTable(labels, groups) {
    this.head = element("th", "at");
    const heads = labels.map((label) => element("th", "", this.makeToggle(label, [makeSample({ ...this.lineOf(label), colour: "currentColor" }), element("span", "label", label)])));
    const table = element("table", "", [
      element("thead", "", element("tr", "", [this.head, this.stepHead = element("th", "up-to"), ...heads])),
      element("tbody", "", groups.map((group) => this.buildRow(group, labels))),
    ]);
    this.element.replaceChildren(table);
    this.emphasise();
  }

  buildRow(group, labels) {
    const step = element("td", "up-to");
    this.steps.set(group.key, step);
    const cells = labels.map((label) => {
      const line = this.lineOf(label, group.key), value = element("td", "value", "–");
      value.title = `${group.label}\n${label}\nnot recorded`;
      if (line) this.cells.set(idOfCell(line), { value, host: value });
      value.classList.toggle("off", this.chart.off.has(label));
      return value;
    });
    const row = element("tr", "", [element("th", "group", this.makeName(group)), step, ...cells]);
    row.dataset.group = group.key;
    row.onmouseenter = () => this.page.emphasise(group.key);
    row.onmouseleave = () => this.page.emphasise(null);
    return row;
  }

  makeName(group) {
    const name = element("button", "name", [makeSwatch(this.page.colourOf(group.key)), element("span", "label", shorten(group.short, MOST_CHARACTERS))]);
    name.type = "button";
    name.title = `${group.label}\nclick to keep it singled out`;
    name.onclick = () => this.page.pin(group.key);
    return name;
  }

  makeToggle(label, content) {
    const off = this.chart.off, button = element("button", "toggle", content);
    button.type = "button";
    button.title = label;
    button.setAttribute("aria-pressed", !off.has(label));
    button.onclick = () => { off.has(label) ? off.delete(label) : off.add(label); this.chart.update(); };
    return button;
  }

  lineOf(label, group = null) {
    return this.chart.lines.find((line) => line.label === label && (group === null || line.group === group));
  }

  // Fill in the values, and say of which step they are as far as it is true for all of them.
  fill() {
    const at = this.chart.pointer(), rows = [];
    for (const line of this.chart.lines) {
      const cell = this.cells.get(idOfCell(line));
      if (!cell) continue;
      const row = rowAt(line, at);
      cell.value.textContent = row < 0 ? "–" : formatValue(line.curve.y[row]);
      cell.value.classList.toggle("partial", row >= 0 && isPartial(line, row));
      cell.host.title = this.describe(line, row, at);
      if (row >= 0) rows.push({ line, x: line.x[row] });
    }
    const places = new Set(rows.map(({ x }) => x)), unit = this.page.unit;
    const newest = rows.length ? Math.max(...places) : 0;
    this.head.textContent = at !== null ? `at or before ${unit} ${formatCount(at)}`
      : !rows.length ? "" : places.size > 1 ? (this.steps.size ? "newest" : `newest, up to ${unit} ${formatCount(newest)}`) : `newest, ${unit} ${formatCount(newest)}`;
    this.fillSteps(rows, at === null && places.size <= 1);
  }

  // The last step of each group's values; not shown while the head says it for all.
  fillSteps(rows, isCommon) {
    if (!this.steps.size) return;
    this.element.classList.toggle("one-step", isCommon);
    this.stepHead.textContent = `up to ${this.page.unit}`;
    for (const [group, cell] of this.steps) {
      const places = rows.filter(({ line }) => line.group === group).map(({ x }) => x);
      cell.textContent = places.length ? formatCount(Math.max(...places)) : "–";
    }
  }

  describe(line, row, at) {
    const first = this.page.hasSeveralGroups() ? [this.page.group(line.group).label, line.label] : [line.label];
    if (row < 0) return [...first, at !== null && line.x.length && at > line.x[line.x.length - 1] ? `its last value is of step ${formatCount(line.curve.x[line.curve.x.length - 1])}` : "no value yet"].join("\n");
    return [...first, `${line.curve.y[row] ?? "not finite"} at step ${formatCount(line.curve.x[row])}`, ...this.describeRuns(line.curve, row)].join("\n");
  }

  // Over which runs of the group the value is a mean, and its range or interval.
  describeRuns(curve, row) {
    const runs = this.page.group(curve.group).runs.length, count = curve.count ? curve.count[row] : 1;
    const over = runs < 2 ? "" : count > 1 ? `mean of ${count} of ${runs} runs` : `${count} of ${runs} runs`;
    const has = curve.low !== null && curve.low[row] !== null && curve.low[row] !== undefined;
    const range = has ? `${count > 1 ? "range" : "interval"} ${formatNumber(curve.low[row])} to ${formatNumber(curve.high[row])}` : "";
    return [over, curve.count && count < 2 ? "" : range].filter(Boolean);
  }

  emphasise() {
    const group = this.page.emphasisedGroup();
    for (const row of this.element.querySelectorAll("tbody tr")) {
      row.classList.toggle("emphasised", row.dataset.group === group);
      row.querySelector("button").setAttribute("aria-pressed", row.dataset.group === this.page.pinned);
    }
    const row = this.element.querySelector(".emphasised");
    if (row && !this.element.matches(":hover")) this.element.scrollTop = row.offsetTop - row.closest("table").tHead.offsetHeight;
  }
}

function idOfCell(line) { return `${line.group} ${line.label}`; }

function makeSwatch(colour) {
  const swatch = element("i", "swatch");
  swatch.style.background = colour;
  return swatch;
}

function formatValue(value) { return value === null ? "not finite" : formatNumber(value); }

function isPartial(line, row) {
  const count = line.curve.count?.[row];
  return count !== undefined && count > 0 && count < line.curve.runs;
}

// The last row, or the last one at or before `at`; -1 if the line begins later or has ended before.
function rowAt(line, at) {
  const last = line.x.length - 1;
  if (at === null || last < 0) return last;
  if (at > line.x[last]) return -1;
  let low = 0, high = line.x.length;
  while (low < high) { const middle = (low + high) >> 1; line.x[middle] <= at ? low = middle + 1 : high = middle; }
  return low - 1;
}
