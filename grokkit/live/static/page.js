// The page: polls the server for updates, merges them and draws them. An exported file has its data embedded.
"use strict";

const POLL_MS = 1000, IDLE_POLL_MS = 5000, MAX_EVENTS = 200;
const ENDED = new Set(["done", "failed", "interrupted", "killed", "unreadable"]);

class Page {
  constructor() {
    this.clear();
    this.cursor = "";
    this.requestedGroups = null;  // null: chosen by the server
    this.unit = "step";
    this.axis = "linear";
    this.zoom = null;
    this.charts = new Map();
    this.pictures = {};
    this.mapViewer = new Maps(this);
    this.runList = new RunList(this);
    this.hovered = this.pinned = null;  // keys of groups that are singled out
    this.bindSwitch("unit", (value) => { this.unit = value; });
    this.bindSwitch("axis", (value) => { this.axis = value; });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.recolour());
  }

  clear() {
    this.groups = []; this.shown = []; this.sources = {};
    this.runs = new Map(); this.events = new Map(); this.maps = new Map(); this.curves = new Map();
    this.zoomed = new Map();  // rows within the zoom, in finer resolution, by curve id
  }

  bindSwitch(name, set) {
    const buttons = [...document.querySelectorAll(`#${name} button`)];
    for (const button of buttons) {
      button.onclick = () => {
        for (const each of buttons) each.setAttribute("aria-pressed", each === button);
        set(button.dataset.value);
        this.zoom = null;
        this.zoomed.clear();
        this.redrawCharts();
      };
    }
  }

  // ---- updates from the server

  applyUpdate(update) {
    if (update.reset) this.clear();
    this.cursor = update.cursor;
    this.now = update.now;
    this.roots = update.roots;
    const names = JSON.stringify([this.groups, this.shown, this.sources]);
    this.groups = update.groups;
    this.shown = update.shown;
    this.sources = update.sources;
    if (!this.shown.includes(this.pinned)) this.pinned = null;
    Object.assign(this.pictures, update.pictures ?? {});
    for (const name of ["runs", "events", "maps"]) {
      for (const [id, value] of Object.entries(update[name])) this[name].set(id, value);
    }
    for (const piece of update.curves) this.mergeCurve(piece);
    this.draw({ ...update, reset: update.reset || names !== JSON.stringify([this.groups, this.shown, this.sources]) });
    if (update.curves.length) this.fetchZoomed();
  }

  // Replace a curve's rows from step `from` on.
  mergeCurve(piece) {
    const id = idOf(piece);
    const known = this.curves.get(id);
    if (!known || piece.from === 0) { this.curves.set(id, { ...piece, id }); return; }
    let keptRows = known.x.length;
    while (keptRows > 0 && known.x[keptRows - 1] >= piece.from) keptRows -= 1;
    const merged = { ...piece, id };
    for (const name of ["x", "y", "low", "high", "count"]) {
      const before = known[name] ?? Array(known.x.length).fill(name === "count" ? 1 : null);
      if (piece[name] || known[name]) merged[name] = [...before.slice(0, keptRows), ...(piece[name] ?? Array(piece.x.length).fill(name === "count" ? 1 : null))];
    }
    this.curves.set(id, merged);
  }

  // ---- data for the charts

  curvesOf(panel) {
    const found = [...this.curves.values()].filter((curve) => curve.panel === panel && this.shown.includes(curve.group));
    return found.map((curve) => this.zoomed.has(curve.id) ? withZoomedRows(curve, this.zoomed.get(curve.id)) : curve);
  }

  group(key) { return this.groups.find((group) => group.key === key); }

  // Whether colours are those of groups; of a single group they are those of roles, such as probe sets.
  hasSeveralGroups() { return this.shown.length > 1; }

  colourOf(key) { return groupColour(this.groups.findIndex((group) => group.key === key)); }

  emphasisedGroup() { return this.hovered ?? this.pinned; }

  // Single out the lines of a group while the pointer is on its name.
  emphasise(key) {
    const before = this.emphasisedGroup();
    this.hovered = this.hasSeveralGroups() && this.shown.includes(key) ? key : null;
    if (before !== this.emphasisedGroup()) this.drawEmphasis();
  }

  pin(key) {
    this.pinned = this.pinned === key ? null : key;
    this.drawEmphasis();
  }

  drawEmphasis() {
    for (const chart of this.charts.values()) { chart.emphasise(); chart.legend.emphasise(); }
    this.runList.emphasise();
  }

  // The name of a run among all of them, such as that of another configuration with the same name.
  nameRun(run) {
    const group = this.group(this.groupOf(run.id)), copies = group.runs.filter((id) => this.runs.get(id)?.seed === run.seed);
    const copy = copies.length > 1 ? `, copy ${1 + copies.indexOf(run.id)}` : "";
    return `${group.label}, ${describeSeed(run)}${copy}`;
  }

  toAxisUnit(step, group) {
    return this.unit === "epoch" ? step / (this.group(group)?.steps_per_epoch ?? 1) : step;
  }

  firstStep() { return Math.min(1, ...this.shown.map((key) => this.toAxisUnit(1, key))); }

  // The last step of all curves that are shown, in the unit of the axis.
  extent() {
    const shown = [...this.curves.values()].filter((curve) => this.shown.includes(curve.group) && curve.x.length);
    return Math.max(0, ...shown.map((curve) => this.toAxisUnit(curve.x[curve.x.length - 1], curve.group)));
  }

  scaleSteps(curve) { return curve.x.map((step) => this.toAxisUnit(step, curve.group)); }

  shownRuns() {
    return this.shown.flatMap((key) => this.group(key)?.runs ?? []).map((id) => this.runs.get(id)).filter(Boolean);
  }

  groupOf(run) { return this.groups.find((group) => group.runs.includes(run))?.key; }

  selectedSnapshot() {
    const selection = this.mapViewer.getSelection();
    return selection ? { step: selection.step, group: this.groupOf(selection.run) } : null;
  }

  // The text of an empty chart: what it waits for, or which command adds the values.
  emptyMessage(panel, lines) {
    const runs = this.shownRuns();
    if (!runs.length) return this.runs.size ? "no group is drawn" : "waiting for a run";
    if (lines.length) return lines.some((line) => line.x.length) ? "no finite value yet" : "the runs have no step in common yet";
    return runs.some((run) => !ENDED.has(run.state)) ? "waiting for the first value" : `none recorded; ${panel.missing}`;
  }

  listEvents() {
    const found = this.shownRuns().flatMap((run) => (this.events.get(run.id) ?? []).map((event) => ({ ...event, run })));
    found.sort((a, b) => a.step - b.step || a.time - b.time);
    let number = 0;
    return found.map((event) => ({ ...event, group: this.groupOf(event.run.id), number: event.kind === "policy" ? ++number : null }));
  }

  // Decisions at the same place of the axis, such as those of several seeds, share one mark; of several groups it has
  // the colour of none.
  decisions() {
    const marks = new Map();
    for (const { number, step, group } of this.listEvents()) {
      if (number === null) continue;
      const place = this.toAxisUnit(step, group), mark = marks.get(place);
      if (!mark) marks.set(place, { step, group, isShared: false, spans: [[number, number]] });
      else {
        mark.isShared ||= mark.group !== group;
        const last = mark.spans[mark.spans.length - 1];
        last[1] === number - 1 ? last[1] = number : mark.spans.push([number, number]);
      }
    }
    return [...marks.values()].map((mark) => ({ ...mark, text: mark.spans.map(([first, last]) => first === last ? String(first) : `${first}–${last}`).join(", ") }));
  }

  setZoom(ends) {
    this.zoom = ends;
    this.zoomed.clear();
    for (const chart of this.charts.values()) chart.update();
    this.fetchZoomed();
  }

  // Fetch the curves within the zoom at full resolution; an exported file has only the decimated rows.
  async fetchZoomed() {
    const zoom = this.zoom;
    if (!zoom || this.embedded) return;
    for (const group of this.shown) {
      const [low, high] = zoom.map((place) => place / this.toAxisUnit(1, group));
      try {
        const answer = await fetch(`window/${group}/${Math.max(Math.floor(low), 0)}/${Math.max(Math.ceil(high), 0)}`);
        const pieces = answer.ok ? await answer.json() : [];
        if (this.zoom !== zoom) return;
        for (const piece of pieces) this.zoomed.set(idOf(piece), piece);
      } catch {
        return;  // a lost connection is reported by the next poll
      }
    }
    for (const chart of this.charts.values()) chart.update();
  }

  redrawMarks() { for (const chart of this.charts.values()) if (chart.plot) chart.plot.redraw(false); }

  redrawCharts() { for (const chart of this.charts.values()) chart.redraw(); }

  recolour() {
    this.redrawCharts();
    this.runList.draw();
    this.drawEvents(true);
  }

  // ---- drawing

  draw(update) {
    this.drawTitle();
    this.runList.draw();
    this.drawPanels(update.panels);
    if (update.reset) this.emphasise(this.hovered);
    if (update.reset || update.curves.length || Object.keys(update.events).length || Object.keys(update.runs).length) {
      for (const chart of this.charts.values()) chart.update();
    }
    if (update.reset || Object.keys(update.maps).length || Object.keys(update.runs).length) this.mapViewer.update();
    this.drawEvents();
    this.drawCosts();
  }

  drawTitle() {
    const runs = [...this.runs.values()];
    const title = runs.length === 1 ? runs[0].name : runs.length ? `${runs.length} runs` : "no runs yet";
    document.getElementById("title").textContent = title;
    document.title = `${title} · grokkit`;
    const known = this.shown.length && this.shown.every((key) => this.group(key)?.steps_per_epoch);
    document.querySelector('#unit [data-value="epoch"]').disabled = !known;
    if (!known && this.unit === "epoch" && this.shown.length) document.querySelector('#unit [data-value="step"]').click();
    const problems = runs.flatMap((run) => run.problems);
    this.problems = runs.length ? problems : [`no runs below ${this.roots.join(", ")} yet; they are shown as soon as they appear`];
    if (!this.isOffline) this.notice("");
  }

  notice(sentence) {
    const text = [sentence, ...(this.problems ?? [])].filter(Boolean).join("\n"), place = document.getElementById("notice");
    if (place.textContent !== text) place.textContent = text;
  }

  drawPanels(panels) {
    const host = document.getElementById("charts"), panelKeys = new Set(panels.map((panel) => panel.key));
    for (const [key, chart] of this.charts) if (!panelKeys.has(key)) chart.element.remove();
    panels.forEach((panel, place) => {
      const fresh = !this.charts.has(panel.key);
      if (fresh) this.charts.set(panel.key, new Chart(panel, this));
      const chart = this.charts.get(panel.key);
      if (host.children[place] !== chart.element) host.insertBefore(chart.element, host.children[place] ?? null);
      if (fresh) chart.update();
    });
  }

  drawEvents(again = false) {
    const events = this.listEvents(), host = document.getElementById("events");
    const several = this.shownRuns().length > 1, names = new Map(this.shownRuns().map((run) => [run.id, this.nameRun(run)]));
    const key = JSON.stringify([events.map((event) => [event.run.id, event.step, event.text]), [...names], this.shown]);
    if (host.dataset.key === key && !again) return;
    host.dataset.key = key;
    const most = Math.max(0, ...this.shownRuns().map((run) => (this.events.get(run.id) ?? []).length));
    document.getElementById("event-count").textContent = [
      events.some((event) => event.number) ? "policy decisions are numbered as in the charts" : "", most >= MAX_EVENTS ? `at most the newest ${MAX_EVENTS} of each run` : "",
    ].filter(Boolean).join(" · ");
    host.replaceChildren(...events.map((event) => this.makeEvent(event, several ? names.get(event.run.id) : "")));
    if (!events.length) host.append(element("li", "empty", this.shownRuns().length ? "no events" : "waiting for a run"));
    this.redrawMarks();
  }

  makeEvent(event, name) {
    const bad = ["measure_failed", "differs"].includes(event.kind);
    const text = element("span", bad ? "bad" : "", [event.kind === "policy" ? "" : `${event.kind.replaceAll("_", " ")}: `, event.text]);
    if (name) text.append(element("span", "run-name", [this.hasSeveralGroups() ? makeSwatch(this.colourOf(event.group)) : "", shorten(name, 60)]));
    return element("li", "", [element("span", "number", event.number ? String(event.number) : ""), element("span", "step", event.step.toLocaleString("en")), text]);
  }

  drawCosts() {
    const total = new Map(), host = document.getElementById("costs");
    for (const run of this.shownRuns()) {
      for (const [name, seconds] of Object.entries(run.costs)) total.set(name, (total.get(name) ?? 0) + seconds);
    }
    const key = JSON.stringify([...total]);
    if (host.dataset.key === key) return;
    host.dataset.key = key;
    const most = Math.max(...total.values()), training = total.get("training") ?? 0;
    const runs = this.shownRuns().filter((run) => Object.keys(run.costs).length).length;
    document.getElementById("cost-unit").textContent = total.size ? `seconds${runs > 1 ? ` of ${runs} runs together` : ""}, and shares of training` : "";
    const rows = [...total].sort((a, b) => (b[0] === "training") - (a[0] === "training") || b[1] - a[1]);
    host.replaceChildren(...rows.flatMap(([name, seconds]) => {
      const fill = element("div");
      fill.style.width = `${(100 * seconds) / most}%`;
      const track = element("div", name === "training" ? "training" : "", element("div", "track", fill));
      const share = name === "training" || !training ? "" : `${((100 * seconds) / training).toFixed(1)} %`;
      return [element("span", "", name.replaceAll("_", " ")), track, element("span", "seconds", `${formatNumber(+seconds.toPrecision(3))} s`), element("span", "share", share)];
    }));
    if (!rows.length) host.append(element("div", "empty", "waiting for the first record"));
  }

  // ---- choice of groups

  drawGroups(keys) {
    this.requestedGroups = keys;
    if (this.embedded) {
      this.shown = this.groups.map((group) => group.key).filter((key) => keys.includes(key));
      this.draw({ reset: true, panels: this.embedded.panels, curves: [], events: {}, runs: {}, maps: {} });
    } else {
      this.cursor = "";
      this.poll();
    }
  }

  // ---- polling

  async poll() {
    clearTimeout(this.timer);
    const requestId = this.requestId = (this.requestId ?? 0) + 1;
    const groups = this.requestedGroups === null ? "" : `&groups=${this.requestedGroups.join(",")}`;
    let delay = POLL_MS;
    try {
      const answer = await fetch(`data?cursor=${this.cursor}${groups}`, { signal: AbortSignal.timeout(60000) });
      if (!answer.ok) throw new Error(`HTTP status ${answer.status}`);
      const update = await answer.json();
      if (requestId !== this.requestId) return;  // a newer request is under way
      this.isOffline = false;
      this.applyUpdate(update);
      document.getElementById("footer").textContent = `live, as of ${clock(update.now)} · ${this.roots.join(", ")}`;
      if (this.runs.size && [...this.runs.values()].every((run) => ENDED.has(run.state))) delay = IDLE_POLL_MS;
    } catch (error) {
      if (requestId !== this.requestId) return;
      this.isOffline = true;
      this.notice(`no response from the server (${error.message}); showing the last data, retrying`);
      delay = IDLE_POLL_MS;
    }
    this.timer = setTimeout(() => this.poll(), delay);
  }

  start() {
    const embedded = document.getElementById("data");
    if (embedded) {
      this.embedded = JSON.parse(embedded.textContent);
      this.applyUpdate(this.embedded);
      document.getElementById("footer").textContent = `exported ${new Date(1000 * this.now).toLocaleString()} · ${this.shownRuns().map((run) => run.name).join(", ")}`;
      return;
    }
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.poll(); });
    this.poll();
  }
}

function idOf(piece) {
  return [piece.group, piece.panel, piece.label, piece.choice, piece.probe, piece.source, piece.unit, piece.remark].join("|");
}

// The curve with its rows within the window of `zoomed` replaced by those of `zoomed`.
function withZoomedRows(curve, zoomed) {
  const first = curve.x.findIndex((step) => step >= zoomed.from), next = curve.x.findIndex((step) => step > zoomed.to);
  const before = first < 0 ? curve.x.length : first, after = next < 0 ? curve.x.length : next, found = { ...curve };
  for (const name of ["x", "y", "low", "high", "count"]) {
    if (!curve[name]) continue;
    const rows = zoomed[name] ?? Array(zoomed.x.length).fill(null);
    found[name] = [...curve[name].slice(0, before), ...rows, ...curve[name].slice(after)];
  }
  return found;
}

const page = new Page();
page.start();
