// The list of groups of runs: which are drawn, how far they are, and what they cost.
"use strict";

const MANY_GROUPS = 6;

class RunList {
  constructor(page) {
    this.page = page;
    this.host = document.getElementById("runs");
    this.find = (name) => document.getElementById(`groups-${name}`);
    this.find("all").onclick = () => page.drawGroups(page.groups.map((group) => group.key));
    this.find("none").onclick = () => page.drawGroups([]);
  }

  draw() {
    const { groups, shown } = this.page, known = new Map([...this.host.children].map((child) => [child.dataset.group, child]));
    document.getElementById("groups").hidden = groups.length < 2;
    this.find("drawn").textContent = `${shown.length} of ${groups.length} groups of runs drawn`;
    this.find("hint").textContent = [
      shown.length > 1 ? "point at a name to single its lines out" : "", groups.length > GROUP_COLOURS ? `colours repeat after ${GROUP_COLOURS} groups` : "",
    ].filter(Boolean).join("; ");
    this.find("all").disabled = shown.length === groups.length;
    this.find("none").disabled = !shown.length;
    this.host.classList.toggle("many", groups.length > MANY_GROUPS);
    groups.forEach((group, place) => {
      const card = known.get(group.key) ?? this.makeCard(group);
      known.delete(group.key);
      if (this.host.children[place] !== card) this.host.insertBefore(card, this.host.children[place] ?? null);
      this.updateCard(card, group);
    });
    for (const gone of known.values()) gone.remove();
  }

  emphasise() {
    for (const card of this.host.children) card.classList.toggle("emphasised", card.dataset.group === this.page.emphasisedGroup());
  }

  makeCard(group) {
    const card = element("div", "card run"), box = element("input");
    card.dataset.group = group.key;
    box.type = "checkbox";
    box.onchange = () => this.toggle(group.key, box.checked);
    card.onmouseenter = () => this.page.emphasise(group.key);
    card.onmouseleave = () => this.page.emphasise(null);
    card.append(
      element("div", "name", [element("label", "", [box, element("i", "swatch"), element("span", "label")]), element("small")]), element("div", "progress", [element("div", "track", element("div")), element("small")]),
      ...["status", "left", "ran", "money"].map((name) => element("div", `fact ${name}`)), element("div", "reason"),
    );
    return card;
  }

  toggle(key, on) {
    const { shown } = this.page;
    this.page.drawGroups(on ? [...shown, key] : shown.filter((each) => each !== key));
  }

  updateCard(card, group) {
    const runs = group.runs.map((id) => this.page.runs.get(id)).filter(Boolean);
    if (!runs.length) return;
    const facts = describeGroup(group, runs, this.page.now), find = (name) => card.querySelector(`.${name}`);
    this.updateName(card, group, facts);
    find("track").firstChild.style.width = `${100 * facts.share}%`;
    find("track").hidden = facts.share === null;
    find("progress").querySelector("small").textContent = facts.steps;
    find("status").replaceChildren(element("span", `state ${facts.state}`, facts.states));
    setLines(find("left"), facts.left, facts.leftNote);
    setLines(find("ran"), facts.ran, facts.ranNote);
    setLines(find("money"), facts.money, facts.moneyNote);
    find("reason").textContent = facts.reasons;
  }

  updateName(card, group, facts) {
    const box = card.querySelector("input"), isDrawn = this.page.shown.includes(group.key), swatch = card.querySelector(".swatch");
    box.hidden = this.page.groups.length < 2;
    box.checked = isDrawn;
    box.setAttribute("aria-label", `draw ${group.label}`);
    swatch.hidden = !(isDrawn && this.page.hasSeveralGroups());
    swatch.style.background = this.page.colourOf(group.key);
    const name = card.querySelector(".label"), seeds = card.querySelector(".name small");
    name.textContent = shorten(facts.name, 90);
    name.title = facts.name;
    seeds.textContent = seeds.title = facts.seeds;
  }
}

// What a card says of a group; numbers of several runs are sums, and say so.
function describeGroup(group, runs, now) {
  const count = new Map();
  for (const run of runs) count.set(run.state, (count.get(run.state) ?? 0) + 1);
  const active = runs.filter((run) => !ENDED.has(run.state));
  const worst = ["failed", "killed", "unreadable", "interrupted"].find((state) => count.has(state));
  const devices = [...new Set(runs.map((run) => run.device.split(",")[0]).filter(Boolean))].join(", ");
  return {
    name: group.label, seeds: describeSeeds(runs), state: active.length ? active[0].state : worst ?? "done",
    states: [...count].map(([state, number]) => runs.length > 1 ? `${number} ${state}` : state).join(", "),
    ran: duration(sum(runs, "seconds")), ranNote: [runs.length > 1 ? `${runs.length} runs together` : "", devices].filter(Boolean).join(", "),
    reasons: [...new Set(runs.filter((run) => run.reason).map((run) => runs.length > 1 ? `${describeSeed(run)}: ${run.reason}` : run.reason))].join(" · "),
    ...describeProgress(runs), ...describeEnd(runs, active, now), ...describeMoney(runs, active, now),
  };
}

function describeSeed(run) { return Number.isInteger(run.seed) ? `seed ${run.seed}` : "seed not known"; }

// Runs with the same seed, such as copies, are no further seeds.
function describeSeeds(runs) {
  if (runs.length < 2) return describeSeed(runs[0]);
  const seeds = runs.map((run) => run.seed ?? "not known").join(", ");
  return new Set(runs.map((run) => run.seed)).size === runs.length ? `${runs.length} seeds: ${seeds}` : `${runs.length} runs, seeds ${seeds}`;
}

function describeProgress(runs) {
  const step = sum(runs, "step"), total = runs.every((run) => run.total_steps) ? sum(runs, "total_steps") : null;
  const of = total ? ` of ${formatCount(total)}` : "";
  return { share: total ? Math.min(step / total, 1) : null, steps: runs.length > 1 ? `${formatCount(step)}${of} steps of ${runs.length} runs together` : `step ${formatCount(step)}${of}` };
}

// The end of the last of the active runs, if it is known of all of them.
function describeEnd(runs, active, now) {
  if (!active.length) return { left: clock(Math.max(...runs.map((run) => run.updated)), true), leftNote: "last written" };
  const ends = active.map((run) => run.ends_at), end = ends.includes(null) ? null : Math.max(...ends);
  if (end === null) return { left: "–", leftNote: "end: not known yet" };
  return { left: `${duration(end - now)} left`, leftNote: `ends ${clock(end)}` };
}

function describeMoney(runs, active, now) {
  const paid = runs.filter((run) => Number.isFinite(run.spent)), spent = sum(paid, "spent");
  if (!paid.length) return { money: "", moneyNote: "" };
  const isKnown = active.length && active.every((run) => run.price && run.ends_at);
  const ahead = isKnown ? sum(active, (run) => run.price * Math.max(run.ends_at - now, 0) / 3600) : 0;
  const of = paid.length < runs.length ? `by ${paid.length} of ${runs.length} runs` : runs.length > 1 ? `by ${runs.length} runs` : "";
  const note = isKnown && paid.length === runs.length ? `about $${(spent + ahead).toFixed(2)} in total` : "spent";
  return { money: `$${spent.toFixed(2)}`, moneyNote: [note, of].filter(Boolean).join(" ") };
}
