// The page: polls the server for updates, merges them and draws them. An exported file has its data embedded.
"use strict";

const POLL_MS = 1000, IDLE_POLL_MS = 5000;
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
    this.bindSwitch("unit", (value) => { this.unit = value; });
    this.bindSwitch("axis", (value) => { this.axis = value; });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.recolour());
  }

  clear() {
    this.groups = []; this.shown = [];
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
        for (const chart of this.charts.values()) chart.redraw();
      };
    }
  }

  // ---- updates from the server

  applyUpdate(update) {
    if (update.reset) this.clear();
    this.cursor = update.cursor;
    this.now = update.now;
    this.roots = update.roots;
    this.groups = update.groups;
    this.shown = update.shown;
    Object.assign(this.pictures, update.pictures ?? {});
    for (const name of ["runs", "events", "maps"]) {
      for (const [id, value] of Object.entries(update[name])) this[name].set(id, value);
    }
    for (const piece of update.curves) this.mergeCurve(piece);
    this.draw(update);
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
      const before = known[name] ?? (name === "count" || name === "x" ? undefined : Array(known.x.length).fill(null));
      if (piece[name] || known[name]) merged[name] = [...before.slice(0, keptRows), ...(piece[name] ?? Array(piece.x.length).fill(null))];
    }
    this.curves.set(id, merged);
  }

  // ---- data for the charts

  curvesOf(panel) {
    const found = [...this.curves.values()].filter((curve) => curve.panel === panel && this.shown.includes(curve.group));
    return found.map((curve) => this.zoomed.has(curve.id) ? withZoomedRows(curve, this.zoomed.get(curve.id)) : curve);
  }

  group(key) { return this.groups.find((group) => group.key === key); }

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
  emptyMessage(panel, some) {
    const runs = this.shownRuns();
    if (!runs.length) return "waiting for a run";
    if (some) return "no finite value yet";
    return runs.some((run) => !ENDED.has(run.state)) ? "waiting for the first value" : `none recorded; ${panel.missing}`;
  }

  listEvents() {
    const found = this.shownRuns().flatMap((run) => (this.events.get(run.id) ?? []).map((event) => ({ ...event, run })));
    found.sort((a, b) => a.step - b.step || a.time - b.time);
    let number = 0;
    return found.map((event) => ({ ...event, group: this.groupOf(event.run.id), number: event.kind === "policy" ? ++number : null }));
  }

  // Decisions at the same step in the same group, such as those of several seeds, share one mark.
  decisions() {
    const marks = new Map();
    for (const { number, step, group } of this.listEvents()) {
      if (number === null) continue;
      const mark = marks.get(`${step} ${group}`);
      if (mark) mark.text = `${mark.first}–${number}`;
      else marks.set(`${step} ${group}`, { first: number, text: String(number), step, group });
    }
    return [...marks.values()];
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

  recolour() {
    for (const chart of this.charts.values()) { chart.keys = null; chart.redraw(); }
  }

  // ---- drawing

  draw(update) {
    this.drawTitle();
    this.drawRuns();
    this.drawPanels(update.panels);
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

  drawRuns() {
    const host = document.getElementById("runs");
    const known = new Map([...host.children].map((child) => [child.dataset.group, child]));
    for (const group of this.groups) {
      const card = known.get(group.key) ?? this.makeRunCard(group);
      known.delete(group.key);
      if (card.parentElement !== host) host.append(card);
      this.updateRunCard(card, group);
    }
    for (const gone of known.values()) gone.remove();
  }

  makeRunCard(group) {
    const card = element("div", "card run");
    card.dataset.group = group.key;
    const box = element("input");
    box.type = "checkbox";
    box.setAttribute("aria-label", `draw ${group.label}`);
    box.onchange = () => this.toggleGroup(group.key, box.checked);
    card.append(
      element("div", "name", [element("label", "", [box, element("span")]), element("small")]), element("div", "progress", [element("div", "track", element("div")), element("small")]),
      ...["status", "left", "ran", "money"].map((name) => element("div", `fact ${name}`)), element("div", "reason"),
    );
    return card;
  }

  toggleGroup(key, on) {
    this.requestedGroups = on ? [...this.shown, key] : this.shown.filter((each) => each !== key);
    if (this.embedded) {
      this.shown = this.groups.map((group) => group.key).filter((each) => this.requestedGroups.includes(each));
      this.draw({ reset: true, panels: this.embedded.panels, curves: [], events: {}, runs: {}, maps: {} });
    } else {
      this.cursor = "";
      this.poll();
    }
  }

  updateRunCard(card, group) {
    const runs = group.runs.map((id) => this.runs.get(id)).filter(Boolean);
    if (!runs.length) return;
    const facts = describeGroup(group, runs, this.now);
    const find = (name) => card.querySelector(`.${name}`);
    const box = card.querySelector("input");
    box.hidden = this.groups.length < 2;
    box.checked = this.shown.includes(group.key);
    find("name").querySelector("span").textContent = facts.name;
    find("name").querySelector("small").replaceChildren(facts.seeds, this.groups.length > 1 ? makeDashSample(this.shown.indexOf(group.key)) : "");
    find("track").firstChild.style.width = `${100 * facts.share}%`;
    find("track").hidden = facts.share === null;
    find("progress").querySelector("small").textContent = facts.steps;
    find("status").replaceChildren(element("span", `state ${facts.state}`, facts.states));
    setLines(find("left"), facts.left, facts.leftNote);
    setLines(find("ran"), facts.ran, facts.device);
    setLines(find("money"), facts.money, facts.moneyNote);
    find("reason").textContent = [...new Set(runs.map((run) => run.reason).filter(Boolean))].join(" · ");
  }

  drawEvents() {
    const events = this.listEvents(), host = document.getElementById("events");
    const key = JSON.stringify(events.map((event) => [event.run.id, event.step, event.text]));
    if (host.dataset.key === key) return;
    host.dataset.key = key;
    const several = this.shownRuns().length > 1;
    document.getElementById("event-count").textContent = events.length ? "policy decisions are numbered as in the charts" : "";
    host.replaceChildren(...events.map((event) => {
      const bad = ["measure_failed", "differs"].includes(event.kind);
      const text = element("span", bad ? "bad" : "", [event.kind === "policy" ? "" : `${event.kind.replaceAll("_", " ")}: `, event.text]);
      if (several) text.append(element("span", "run-name", ` (${event.run.name.split("/").pop()})`));
      return element("li", "", [element("span", "number", event.number ? String(event.number) : ""), element("span", "step", event.step.toLocaleString("en")), text]);
    }));
    if (!events.length) host.append(element("li", "empty", this.shownRuns().length ? "no events" : "waiting for a run"));
    this.redrawMarks();
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
    const runs = this.shownRuns().length;
    document.getElementById("cost-unit").textContent = total.size ? `seconds${runs > 1 ? ` of ${runs} runs` : ""}, and shares of training` : "";
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
  return [piece.group, piece.panel, piece.label, piece.choice, piece.probe, piece.source].join("|");
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

function describeGroup(group, runs, now) {
  const count = new Map();
  for (const run of runs) count.set(run.state, (count.get(run.state) ?? 0) + 1);
  const states = [...count].map(([state, number]) => runs.length > 1 ? `${number} ${state}` : state).join(", ");
  const active = runs.filter((run) => !ENDED.has(run.state));
  const worst = ["failed", "killed", "unreadable", "interrupted"].find((state) => count.has(state));
  const steps = sum(runs, "step"), total = runs.every((run) => run.total_steps) ? sum(runs, "total_steps") : null;
  const ends = active.map((run) => run.ends_at).filter((end) => end !== null);
  const end = ends.length ? Math.max(...ends) : null;
  const spent = runs.some((run) => run.spent !== null && run.spent !== undefined) ? sum(runs, "spent") : null;
  const ahead = sum(active.filter((run) => run.price && run.ends_at), (run) => run.price * Math.max(run.ends_at - now, 0) / 3600);
  const format = (number) => number.toLocaleString("en");
  return {
    name: group.label, seeds: runs.length > 1 ? `${runs.length} seeds: ${runs.map((run) => run.seed).join(", ")}` : `seed ${runs[0].seed}`,
    share: total ? Math.min(steps / total, 1) : null, states, state: active.length ? active[0].state : worst ?? "done",
    steps: total ? `step ${format(steps)} of ${format(total)}${runs.length > 1 ? ", all seeds" : ""}` : `step ${format(steps)}`,
    left: active.length ? (end === null ? "–" : `${duration(end - now)} left`) : clock(Math.max(...runs.map((run) => run.updated)), true),
    leftNote: active.length ? (end === null ? "end: not known yet" : `ends ${clock(end)}`) : "last written",
    ran: duration(sum(runs, "seconds")), device: runs[0].device.split(",")[0] || "",
    money: spent === null ? "" : `$${spent.toFixed(2)}`, moneyNote: spent === null ? "" : ahead > 0 ? `about $${(spent + ahead).toFixed(2)} in total` : "spent",
  };
}

function sum(runs, of) {
  return runs.reduce((total, run) => total + (typeof of === "string" ? run[of] ?? 0 : of(run)), 0);
}

function duration(seconds) {
  const whole = Math.max(Math.round(seconds), 0), pad = (number) => String(number).padStart(2, "0");
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${pad(whole % 60)} s`;
  return `${Math.floor(whole / 3600)} h ${pad(Math.floor((whole % 3600) / 60))} min`;
}

function clock(time, day = false) {
  const date = new Date(1000 * time);
  return day ? date.toLocaleString([], { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" }) : date.toLocaleTimeString();
}

function setLines(host, first, second) {
  host.replaceChildren(first, element("small", "", second));
}

function makeDashSample(place) {
  if (place < 0) return "";
  const space = "http://www.w3.org/2000/svg", svg = document.createElementNS(space, "svg"), line = document.createElementNS(space, "line");
  for (const [name, value] of Object.entries({ width: 60, height: 6 })) svg.setAttribute(name, value);
  const dash = DASHES[place % DASHES.length].join(" ");
  for (const [name, value] of Object.entries({ x1: 0, x2: 60, y1: 3, y2: 3, stroke: "currentColor", "stroke-width": 2, "stroke-dasharray": dash || "none" })) line.setAttribute(name, value);
  svg.append(line);
  return svg;
}

const page = new Page();
page.start();
