// Numbers, times and elements, formatted in the same way in all parts of the page.
"use strict";

function formatNumber(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e5 || size < 1e-3)) return value.toExponential(2);
  return size >= 1e3 ? String(Math.round(value)) : String(+value.toPrecision(4));
}

function formatTick(value) {
  if (value === null) return "";
  const size = Math.abs(value);
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(4)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(4)}k`;
  if (size !== 0 && size < 1e-4) return value.toExponential();
  return String(+value.toPrecision(6));
}

function formatCount(value) { return value.toLocaleString("en", { maximumFractionDigits: 2 }); }

// A name with its middle cut out if it is long: what tells it from others is mostly at its end.
function shorten(name, most) {
  return name.length <= most ? name : `${name.slice(0, Math.floor(most / 3))}…${name.slice(1 - Math.ceil((2 * most) / 3))}`;
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

function element(tag, name = "", content = []) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.append(...(Array.isArray(content) ? content : [content]));
  return made;
}
