// Plots as SVG: two curves over the last minutes, and a job's timeline.

import { clock, drawn, element, span } from "./words.js";

const HEIGHT = 190, LEFT = 56, BOTTOM = 24, TOP = 8, NARROWEST = 280;

function niceTop(value) {
  if (value <= 0) return 1;
  const step = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((n) => n * step).find((n) => n >= value * 0.999);
}

function path(points) {
  let pen = "M", text = "";
  for (const point of points) {
    if (point === null) pen = "M";
    else {
      text += `${pen}${point[0].toFixed(1)} ${point[1].toFixed(1)}`;
      pen = "L";
    }
  }
  return text;
}

// `curves`: [{name, className, values (null: nothing), area}], all over `times` (UTC in ms).
export function plot(figure, times, curves, format) {
  const top = niceTop(Math.max(0, ...curves.flatMap((curve) => curve.values.filter((v) => v !== null))));
  // One unit of the drawing is one pixel of the screen: text keeps its size on a phone.
  const WIDTH = Math.max(NARROWEST, figure.clientWidth);
  const x = (i) => LEFT + ((WIDTH - LEFT - 4) * i) / Math.max(1, times.length - 1);
  const y = (v) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - v / top);
  const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  const newest = curves.map((c) => `${c.name} ${format(c.values.findLast((v) => v !== null) ?? 0)}`);
  svg.setAttribute("aria-label", `${figure.querySelector("figcaption").textContent}. Newest: ${newest.join(", ")}.`);
  for (const part of [0, 0.5, 1]) {
    svg.append(
      drawn("line", { class: "axis", x1: LEFT, x2: WIDTH - 4, y1: y(top * part), y2: y(top * part) }),
      drawn("text", { x: LEFT - 6, y: y(top * part) + 4, "text-anchor": "end" }, format(top * part)),
    );
  }
  if (times.length > 1) {
    svg.append(
      drawn("text", { x: LEFT, y: HEIGHT - 6 }, clock(times[0])),
      drawn("text", { x: WIDTH - 4, y: HEIGHT - 6, "text-anchor": "end" }, `${clock(times.at(-1))} UTC`),
    );
  }
  for (const curve of curves) {
    const points = curve.values.map((v, i) => (v === null ? null : [x(i), y(v)]));
    if (curve.area && points.length > 1) {
      const edge = [[x(0), y(0)], ...points.map((p, i) => p ?? [x(i), y(0)]), [x(points.length - 1), y(0)]];
      svg.append(drawn("path", { class: "area", d: `${path(edge)}Z` }));
    }
    svg.append(drawn("path", { class: `curve ${curve.className}`, d: path(points) }));
    points.forEach((point, i) => {
      const alone = point && !points[i - 1] && !points[i + 1];
      if (alone) svg.append(drawn("circle", { class: `curve ${curve.className}`, cx: point[0], cy: point[1], r: 1.5 }));
    });
  }
  const old = figure.querySelector("svg.plot");
  svg.classList.add("plot");
  if (old) old.replaceWith(svg);
  else {
    const legend = element("p", { class: "legend", "aria-hidden": "true" });
    for (const curve of curves) {
      const line = drawn("svg", { viewBox: "0 0 26 11" });
      line.append(drawn("path", { class: `curve ${curve.className}`, d: "M0 6L26 6" }));
      legend.append(element("span", { children: [line, ` ${curve.name}`] }));
    }
    figure.append(svg, legend);
  }
}

const LOST = new Set(["offer_timeout", "lease_expired"]);
export function ending(attempt) {
  if (attempt.end === undefined || attempt.end === null) return attempt.taken_ms ? "running" : "offered";
  return attempt.end;
}
function kind(attempt) {
  const end = ending(attempt);
  if (LOST.has(end)) return "lost";
  return { completed: "completed", running: "running", offered: "refused", released: "released" }[end] ?? "refused";
}

const ROW = 18, LANES = 60;

// Attempts as bars, one row a car, those that began first on top.
export function timeline(attempts, now, room) {
  const lanes = new Map();
  for (const attempt of attempts) {
    if (!lanes.has(attempt.vehicle) && lanes.size < LANES) lanes.set(attempt.vehicle, lanes.size);
  }
  const from = Math.min(...attempts.map((a) => a.offered_ms));
  const until = Math.max(from + 1, ...attempts.map((a) => a.ended_ms ?? now));
  const left = 130, width = Math.max(NARROWEST, room), height = lanes.size * ROW + 26;
  const x = (ms) => left + ((width - left - 4) * (ms - from)) / (until - from);
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  svg.setAttribute("aria-label", `${attempts.length} attempts on ${lanes.size} cars over ${span(until - from)}; the table below has each.`);
  for (const [vehicle, lane] of lanes) {
    const name = vehicle.length > 16 ? `${vehicle.slice(0, 15)}…` : vehicle;
    svg.append(
      drawn("text", { x: left - 8, y: lane * ROW + 13, "text-anchor": "end" }, name),
      drawn("line", { class: "axis", x1: left, x2: width - 4, y1: lane * ROW + ROW, y2: lane * ROW + ROW }),
    );
  }
  for (const attempt of attempts) {
    const lane = lanes.get(attempt.vehicle);
    if (lane === undefined) continue;
    const start = x(attempt.offered_ms), end = x(attempt.ended_ms ?? now);
    const bar = drawn("rect", {
      class: kind(attempt), x: start.toFixed(1), y: lane * ROW + 4,
      width: Math.max(1.5, end - start).toFixed(1), height: ROW - 7, rx: 2,
    });
    bar.append(drawn("title", {}, `${attempt.vehicle}: unit ${attempt.unit}, ${attempt.items_done ?? 0} of ${attempt.items} items, ${ending(attempt).replaceAll("_", " ")}`));
    svg.append(bar);
  }
  svg.append(
    drawn("text", { x: left, y: height - 6 }, clock(from)),
    drawn("text", { x: width - 4, y: height - 6, "text-anchor": "end" }, `${clock(until)} UTC`),
  );
  const key = element("p", { class: "legend", "aria-hidden": "true" });
  for (const [className, says] of [["completed", "completed"], ["running", "running"], ["released", "given back"], ["lost", "fell silent"], ["refused", "refused, cancelled or not taken yet"]]) {
    const mark = drawn("svg", { viewBox: "0 0 26 11" });
    mark.append(drawn("rect", { class: className, width: 26, height: 11, rx: 2 }));
    key.append(element("span", { children: [mark, ` ${says}`] }));
  }
  return [svg, key];
}
