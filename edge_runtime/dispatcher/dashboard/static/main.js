// The page: writes each overview into the elements that index.html has for it.

import { Cells } from "./cells.js";
import { Details, open } from "./details.js";
import { follow, hasKey, useKey } from "./live.js";
import { plot } from "./plots.js";
import { clock, count, credits, element, energy, rate, rows, share, span, wear, words, workFacts, write } from "./words.js";

const $ = (id) => document.getElementById(id);
const ORDER = ["ready", "working", "hold", "driving", "stopping", "unknown", "offline"];
const BUCKET_S = 5;
const RECENT = 6;
const HOLDS_SHOWN = 8;

const cells = new Cells($("grid"), $("shade"), $("scale-bar"), (cell) => open("cell", cell));
const details = new Details($("dialog"));

function meterRow(entry) {
  const name = element("button", { type: "button", class: "link" });
  name.addEventListener("click", () => open(entry.kind, entry.key));
  return element("tr", {
    children: [
      element("th", { scope: "row", children: [element("span", { class: `key ${entry.className}`, "aria-hidden": "true" }), name] }),
      element("td", { class: "number" }),
      element("td", { class: "number small" }),
      element("td", { class: "meter optional", "aria-hidden": "true", children: [element("div", { class: `bar ${entry.className}` })] }),
    ],
  });
}

function meter(row, entry) {
  const [name, number, part, bar] = row.children;
  write(name.lastChild, words(entry.key));
  write(number, count(entry.cars));
  write(part, share(entry.cars, entry.all));
  bar.firstChild.style.width = `${(100 * entry.cars) / Math.max(1, entry.all)}%`;
}

function drawFleet(o) {
  const states = ORDER.filter((state) => o.by_availability[state]);
  rows($("states"), states.map((key) => ({ key, kind: "availability", className: key, cars: o.by_availability[key], all: o.cars })), meterRow, meter);
  rows($("state-bar"), states.map((key) => ({ key })), ({ key }) => element("div", { class: key }), (part, { key }) => {
    part.style.flex = `${o.by_availability[key]} 0 0`;
  });
  const holds = Object.entries(o.by_hold).sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0]));
  const held = holds.reduce((sum, [, n]) => sum + n, 0);
  const entries = holds.map(([key, cars]) => ({ key, kind: "hold", className: "held", cars, all: held }));
  rows($("holds"), entries.slice(0, HOLDS_SHOWN), meterRow, meter);
  rows($("holds-rest"), entries.slice(HOLDS_SHOWN), meterRow, meter);
  $("rare-holds").hidden = entries.length <= HOLDS_SHOWN;
  write($("rare-says"), `${entries.length - HOLDS_SHOWN} rarer reasons`);
  $("no-holds").hidden = holds.length > 0;
  rows($("regions"), o.regions.map((row) => ({ key: row.region, row })), regionRow, (line, { row }) => {
    row.counts.forEach((n, i) => write(line.children[i + 1], count(n)));
  });
}

function regionRow({ key }) {
  const name = element("button", { type: "button", class: "link", text: key });
  if (key.startsWith("(")) name.disabled = true;
  name.addEventListener("click", () => open("region", key));
  return element("tr", { children: [element("th", { scope: "row", children: [name] }), ...Array.from({ length: 5 }, () => element("td", { class: "number" }))] });
}

function drawGlance(o) {
  const of = (name) => o.by_availability[name] ?? 0;
  const recent = o.history.slice(-RECENT - 1, -1);
  const items = recent.reduce((sum, m) => sum + m[1] + m[2], 0);
  write($("t-available"), count(of("ready") + of("working")));
  write($("t-cars"), `of ${count(o.cars)} known, ${count(of("offline"))} offline`);
  write($("t-working"), count(of("working")));
  write($("t-units"), `${count(o.units_in_flight)} units on cars`);
  write($("t-rate"), rate(items / Math.max(1, recent.length * BUCKET_S)));
  write($("t-rate-over"), `over ${Math.max(1, recent.length) * BUCKET_S} s`);
  const timed = o.history.filter((m) => m[5] !== null).at(-1);
  write($("t-p95"), timed ? span(timed[5]) : "–");
  write($("t-p50"), timed ? `half within ${span(timed[4])}` : "no unit has ended lately");
  write($("t-jobs"), count(o.jobs_open));
  write($("t-items"), `${count(o.items_waiting)} items wait, ${count(o.items_in_flight)} on cars`);
  write($("t-energy"), energy(o.totals.energy_wh));
  write($("t-busy"), `${span(o.totals.busy_s * 1000)} computed`);
}

function drawFlow(o) {
  const times = o.history.map((m) => m[0]);
  plot($("rate-plot"), times, [
    { name: "done", className: "done", area: true, values: o.history.map((m) => m[1] / BUCKET_S) },
    { name: "failed", className: "failed", values: o.history.map((m) => m[2] / BUCKET_S) },
  ], rate);
  plot($("time-plot"), times, [
    { name: "middle", className: "p50", values: o.history.map((m) => m[4]) },
    { name: "95th percentile", className: "p95", values: o.history.map((m) => m[5]) },
  ], span);
  if ($("flow-table").open) {
    rows($("flow-rows"), o.history.toReversed().map((m) => ({ key: String(m[0]), m })), () => element("tr", { children: Array.from({ length: 6 }, (_, i) => element("td", { class: i ? "number" : "" })) }), (line, { m }) => {
      [clock(m[0]), count(m[1]), count(m[2]), count(m[3]), span(m[4]), span(m[5])].forEach((text, i) => write(line.children[i], text));
    });
  }
}

function jobRow({ key }) {
  const bar = element("progress", { "aria-label": `Progress of ${key}` });
  const cell = (className) => element("td", { class: className });
  return element("tr", {
    children: [
      element("th", { scope: "row", children: [element("a", { href: `#job=${key}`, text: key })] }),
      cell(""), cell(""), element("td", { children: [bar] }), cell("number"), cell("number"), cell("number"), cell("number"),
    ],
  });
}

function drawJobs(o) {
  rows($("job-rows"), o.jobs.map((job) => ({ key: job.job, job })), jobRow, (row, { job }) => {
    const [, tenant, model, progress, items, failed, flying, age] = row.children;
    write(tenant, job.tenant);
    write(model, job.model);
    progress.firstChild.max = job.items;
    progress.firstChild.value = job.done + job.failed;
    write(items, `${count(job.done)} / ${count(job.items)}`);
    write(failed, count(job.failed));
    write(flying, count(job.in_flight));
    write(age, span(o.at_ms - job.submitted_ms));
  });
  $("no-jobs").hidden = o.jobs.length > 0;
  $("more-jobs").hidden = o.jobs_open <= o.jobs.length;
  write($("more-jobs"), `${count(o.jobs_open - o.jobs.length)} more are open.`);
}

function endedRow({ key }) {
  const cell = (className) => element("td", { class: className });
  return element("tr", {
    children: [
      element("th", { scope: "row", children: [element("a", { href: `#job=${key}`, text: key })] }),
      cell(""), cell(""), cell(""), cell("number"), cell("number"), cell("number"), cell("number"),
    ],
  });
}

function drawEnded(o) {
  rows($("ended-rows"), o.ended.map((job) => ({ key: job.job, job })), endedRow, (row, { job }) => {
    const texts = [
      job.tenant, job.model, job.state, `${count(job.done)} / ${count(job.items)}`, count(job.failed),
      span(job.finished_ms - job.submitted_ms), `${span(o.at_ms - job.finished_ms)} ago`,
    ];
    texts.forEach((text, i) => write(row.children[i + 1], text));
  });
  $("ended").hidden = o.ended.length === 0;
}

function drawFacts(list, facts) {
  rows(list, facts.map(([key, value]) => ({ key, value })), ({ key }) => element("div", { children: [element("dt", { text: key }), element("dd")] }), (row, { value }) => write(row.lastChild, value));
}

function tenantRow({ key }) {
  return element("tr", { children: [element("th", { scope: "row", text: key }), ...Array.from({ length: 4 }, () => element("td", { class: "number" }))] });
}

function drawWork(o) {
  drawFacts($("work-list"), workFacts(o.work));
  rows($("tenant-rows"), o.tenants.map(({ tenant, work }) => ({ key: tenant, work })), tenantRow, (row, { work }) => {
    [count(work.items), credits(work.credits), energy(work.energy_wh), wear(work)].forEach((text, i) => write(row.children[i + 1], text));
  });
  $("tenants").hidden = o.tenants.length === 0;
}

function drawTotals(o) {
  const t = o.totals;
  const each = t.items_done ? energy(t.energy_wh / t.items_done) : "–";
  const facts = [
    ["Began", `${span(o.at_ms - o.started_ms)} ago`],
    ["Items done", count(t.items_done)],
    ["Items failed for good", count(t.items_failed)],
    ["Attempts", count(t.attempts)],
    ...Object.entries(t.ended).map(([end, n]) => [`Attempts ${words(end)}`, count(n)]),
    ["Energy of finished items", energy(t.energy_wh)],
    ["Energy of an item", each],
    ["Time computed", span(t.busy_s * 1000)],
    ...Object.entries(t.stops).map(([tier, n]) => [`Stops by ${tier}`, count(n)]),
    ["Stopped within, 95 of 100", span(t.stop_p95_ms)],
  ];
  drawFacts($("total-list"), facts);
}

function drawHealth(o) {
  write($("name"), o.dispatcher);
  write($("version"), `edge-runtime ${o.version}`);
  const wrong = [];
  if (o.broker !== "connected") wrong.push(`broker ${o.broker}`);
  if (o.store !== "ok") wrong.push(`store: ${o.store}`);
  if (o.draining) wrong.push("draining: it is about to stop");
  $("health").hidden = wrong.length === 0;
  $("health").className = "badge bad";
  write($("health"), wrong.join(" · "));
}

let newest = null;
let asked = false;
function draw() {
  asked = false;
  for (const part of [drawHealth, drawGlance, drawFleet, drawFlow, drawJobs, drawEnded, drawWork, drawTotals]) part(newest);
  cells.draw(newest.cells);
  document.body.dataset.drawn = String(newest.at_ms);
}

// Drawn with the screen's next picture, and not at all while the page is hidden.
function take(overview) {
  newest = overview;
  if (!asked) {
    asked = true;
    requestAnimationFrame(draw);
  }
}

function link(state, error) {
  const badge = $("link");
  badge.className = `badge ${state === "live" ? "good" : "bad"}`;
  write(badge, { live: "live", lost: "no connection, trying again", refused: "not allowed" }[state]);
  $("entry").hidden = state !== "refused";
  if (state === "refused" && hasKey()) write($("entry-why"), error.message);
}

$("entry").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key").value.trim());
});
$("find").addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = $("find-name").value.trim();
  open(/^j[0-9a-f]{23}$/.test(name) ? "job" : "car", name);
});
$("flow-table").addEventListener("toggle", () => newest && drawFlow(newest));

// The plots are drawn for the width that they have.
addEventListener("resize", () => newest && drawFlow(newest));

const theme = $("theme");
function useTheme(name) {
  if (name) document.documentElement.dataset.theme = name;
  const dark = name ? name === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  theme.setAttribute("aria-pressed", String(dark));
}
useTheme(localStorage.getItem("theme"));
theme.addEventListener("click", () => {
  const next = theme.getAttribute("aria-pressed") === "true" ? "light" : "dark";
  localStorage.setItem("theme", next);
  useTheme(next);
});

details.follow();
follow(take, link);
