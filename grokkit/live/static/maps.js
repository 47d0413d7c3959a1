// Attribution maps: a row of images with one method's maps below, and a slider over the snapshots.
"use strict";

class Maps {
  constructor(page) {
    this.page = page;
    this.find = (name) => document.getElementById(`map-${name}`);
    this.step = null;  // null: the newest snapshot
    this.touched = false;
    this.find("step").oninput = (event) => {
      const steps = this.set().steps, place = Number(event.target.value);
      this.step = place === steps.length - 1 ? null : steps[place];
      this.touched = true;
      this.draw();
      page.redrawMarks();
    };
    for (const name of ["run", "method"]) this.find(name).onchange = () => { this.update(); page.redrawMarks(); };
  }

  // Runs that are shown and have maps.
  runs() {
    return this.page.shownRuns().filter((run) => (this.page.maps.get(run.id) ?? []).length);
  }

  set() {
    const sets = this.page.maps.get(this.find("run").value) ?? [];
    return sets.find((set) => set.identity === this.find("method").value) ?? sets[0];
  }

  getSelection() {
    const set = this.touched ? this.set() : null;
    return set ? { step: this.step ?? set.steps[set.steps.length - 1], run: this.find("run").value } : null;
  }

  update() {
    const runs = this.runs();
    this.find("body").hidden = !runs.length;
    this.find("empty").hidden = runs.length > 0;
    this.find("empty").textContent = this.page.emptyMessage({ missing: "add maps with: grokkit attribute RUN" }, []);
    this.fill("run", runs.map((run) => [run.id, this.page.nameRun(run)]));
    this.fill("method", (this.page.maps.get(this.find("run").value) ?? []).map((set) => [set.identity, this.nameMethod(set)]));
    if (runs.length) this.draw();
  }

  nameMethod(set) {
    const settings = this.page.sources[set.identity], name = set.method.replaceAll("_", " ");
    return settings ? `${name} (${settings})` : name;
  }

  fill(name, options) {
    const select = this.find(name), before = select.value;
    if (JSON.stringify(options) !== select.dataset.options) {
      select.dataset.options = JSON.stringify(options);
      select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
      if (options.some(([value]) => value === before)) select.value = before;
    }
    select.hidden = options.length < (name === "run" ? 2 : 1);
  }

  draw() {
    const set = this.set(), slider = this.find("step");
    const place = this.step === null ? set.steps.length - 1 : Math.max(0, set.steps.indexOf(this.step));
    slider.max = set.steps.length - 1;
    slider.value = place;
    const step = set.steps[place];
    this.find("at").textContent = `step ${step.toLocaleString("en")}`;
    slider.setAttribute("aria-valuetext", `step ${step}`);
    this.find("unit").textContent = `relevance for the true class, ${set.unit}; one scale for all snapshots${this.page.embedded && this.page.shownRuns().length > 1 ? "; this file has the maps of one run of each group" : ""}`;
    this.find("colours").style.background = `linear-gradient(90deg, ${set.colours.join(",")})`;
    this.find("low").textContent = set.signed ? `−${formatNumber(set.limit)}` : "0";
    this.find("high").textContent = formatNumber(set.limit);
    this.show(set, step);
  }

  show(set, step) {
    const run = this.find("run").value, base = `maps/${run}/${set.identity}`, count = set.labels.length;
    const strip = this.find("strip"), key = `${base} ${count}`;
    if (strip.dataset.key !== key) {
      strip.dataset.key = key;
      strip.replaceChildren(...set.labels.map((label, place) => this.cell(run, label, place, count)));
      this.load(`${base}/images.png`, ".image");
    }
    this.load(`${base}/${step}.png`, ".map", set.limit);
  }

  cell(run, label, place, count) {
    const cell = element("div", "cell"), className = this.page.runs.get(run).classes[label] ?? label;
    const parts = ["image", "map"].map((name) => element("div", name));
    for (const part of parts) {
      part.style.backgroundSize = `${100 * count}% 100%`;
      part.style.backgroundPosition = count > 1 ? `${(100 * place) / (count - 1)}% 0` : "0 0";
    }
    cell.append(...parts, element("p", "", `class ${className}`));
    return cell;
  }

  // Display the image only after it has loaded, so that nothing flickers while the slider moves.
  load(name, where, version = "") {
    const embeddedImage = this.page.pictures[name], address = embeddedImage ?? `${name}?v=${version}`;
    if (where === ".map") this.requestedUrl = address;
    const picture = new Image();
    picture.onload = () => {
      if (where === ".map" && this.requestedUrl !== address) return;
      for (const part of this.find("strip").querySelectorAll(where)) part.style.backgroundImage = `url("${address}")`;
    };
    picture.src = address;
  }
}
