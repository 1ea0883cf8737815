// A quiet picture of the feelings read so far: a dot for each message, further right the lighter it was read.

import { el, svg } from "./dom.js";

const ROW = 34; // units of the drawing from one message to the next
const WIDTH = 280;
const LEFT = 118; // where valence -1 lies
const RIGHT = 266; // where valence 1 lies
const TOP = 30;
const NUM_DRAWN = 12; // the newest; the table has all
const LIKELY = 0.2; // the least probability of a second feeling that is named

/** What the readings of one message say: { names: [..], valence: number or null }, or null where nothing was read. */
export function pointOf(readings) {
  const emotions = [...(readings?.emotion ?? [])].sort((one, other) => other.p - one.p);
  const names = emotions.filter((each, rank) => rank === 0 || (rank === 1 && each.p >= LIKELY)).map((each) => each.label);
  const valence = readings?.affect?.valence;
  const read = Number.isFinite(valence) ? Math.max(-1, Math.min(1, valence)) : null;
  return names.length || read !== null ? { names, valence: read } : null;
}

/** The drawing of the newest points, with a sentence in place of it for screen readers. */
export function picture(points) {
  const first = Math.max(0, points.length - NUM_DRAWN);
  const rows = points.slice(first).map((point, index) => ({ ...point, y: TOP + ROW * (index + 0.5) }));
  const height = TOP + ROW * rows.length + 4;
  const dots = rows.filter((row) => row.valence !== null).map((row) => ({ ...row, x: across(row.valence) }));
  const middle = across(0);
  return svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${height}`, width: WIDTH, height, role: "img", "aria-label": summary(points), class: "picture" },
    svg("text", { x: LEFT, y: 14, class: "axis" }, "heavier"),
    svg("text", { x: RIGHT, y: 14, class: "axis", "text-anchor": "end" }, "lighter"),
    svg("line", { x1: middle, x2: middle, y1: TOP - 6, y2: height - 4, class: "middle" }),
    svg("polyline", { points: dots.map(({ x, y }) => `${x},${y}`).join(" "), class: "path" }),
    dots.map(({ x, y }, index) => svg("circle", { cx: x, cy: y, r: index === dots.length - 1 ? 6 : 4.5, class: "dot" })),
    rows.map((row) => svg("text", { x: 0, y: row.y + 4, class: "feeling" }, row.names[0] ?? "–")),
  );
}

/** The same as a table, with every message. */
export function table(points) {
  const head = ["Message", "Feelings", "From heavy (−1) to light (1)"].map((text) => el("th", { scope: "col" }, text));
  const rows = points.map((point, index) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, String(index + 1)),
      el("td", {}, point.names.join(", ") || "–"),
      el("td", {}, point.valence === null ? "–" : signed(point.valence)),
    ),
  );
  return el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows));
}

function summary(points) {
  const last = points.at(-1);
  const count = points.length === 1 ? "one message" : `${points.length} messages`;
  const named = last.names.length ? `, the newest as ${last.names.join(" and ")}` : "";
  return `Feelings read in ${count}${named}. The table below has them all.`;
}

const across = (valence) => Math.round(LEFT + ((valence + 1) / 2) * (RIGHT - LEFT));
const signed = (value) => `${value < 0 ? "−" : value > 0 ? "+" : ""}${Math.abs(value).toFixed(1)}`;
