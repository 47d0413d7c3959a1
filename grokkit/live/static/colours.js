// Colours and dashes: in one group the colour is the role of a curve; of several groups each has a colour in all charts.
"use strict";

const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3], [16, 4], [5, 2, 1, 2, 1, 2]];
const GROUP_COLOURS = 24;

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

// The colour of a group by its place among all groups, whether they are drawn or not.
function groupColour(place) { return colourOf(`group${place % GROUP_COLOURS}`); }

function withAlpha(colour, alpha) {
  const hex = colour.startsWith("#") ? [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)) : colour.match(/\d+/g).slice(0, 3);
  return `rgba(${hex.join(",")},${alpha})`;
}

// A short line as it is drawn in the chart.
function makeSample({ colour, dash, width }) {
  const space = "http://www.w3.org/2000/svg", svg = document.createElementNS(space, "svg"), line = document.createElementNS(space, "line");
  for (const [name, value] of Object.entries({ width: 28, height: 8, class: "sample" })) svg.setAttribute(name, value);
  const look = { x1: 0, x2: 28, y1: 4, y2: 4, stroke: colour, "stroke-width": width > 1 ? 2.25 : 1, "stroke-dasharray": dash.join(" ") || "none" };
  for (const [name, value] of Object.entries(look)) line.setAttribute(name, value);
  svg.append(line);
  return svg;
}
