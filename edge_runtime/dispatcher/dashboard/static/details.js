// The dialog: a list of cars, one car, one job. What is open stands in the address after "#", so
// that Back closes it and a link leads to it.

import { ask } from "./live.js";
import { ending, timeline } from "./plots.js";
import { clock, count, element, energy, moment, span, words, workFacts, write } from "./words.js";

const KINDS = { car: showCar, job: showJob, cell: showCars, hold: showCars, availability: showCars, region: showCars };
const PAGE = 100;
const REFRESH_MS = 2000;

export class Details {
  constructor(dialog) {
    this.dialog = dialog;
    this.title = dialog.querySelector("#dialog-title");
    this.body = dialog.querySelector("#dialog-body");
    this.shown = "";
    this.timer = 0;
    dialog.querySelector("#dialog-close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => this.#closed());
    addEventListener("hashchange", () => this.follow());
  }

  #closed() {
    clearTimeout(this.timer);
    this.cut?.abort();
    const back = this.opener;
    this.shown = "";
    if (location.hash.includes("=")) history.pushState(null, "", location.pathname);
    if (back?.isConnected) back.focus();
  }

  // Opens what the address names.
  follow() {
    const [kind, name] = decodeURIComponent(location.hash.slice(1)).split("=");
    if (!(kind in KINDS) || !name) {
      if (this.dialog.open) this.dialog.close();
      return;
    }
    clearTimeout(this.timer);
    this.cut?.abort();
    this.cut = new AbortController();
    this.shown = `${kind}=${name}`;
    this.state = { offset: 0, after: 0 };
    write(this.title, `${kind === "availability" ? "state" : kind} ${words(name)}`);
    this.body.replaceChildren(element("p", { text: "asking" }));
    if (!this.dialog.open) {
      this.opener = document.activeElement;
      this.dialog.showModal();
    }
    this.title.focus();
    this.#refresh(kind, name, this.shown);
  }

  async #refresh(kind, name, shown) {
    try {
      const next = await KINDS[kind](this, kind, name);
      if (this.shown !== shown) return;
      next();
    } catch (error) {
      if (this.shown !== shown || error.name === "AbortError") return;
      this.body.replaceChildren(element("p", { class: "answer", role: "alert", text: error.message }));
      if (error.status === 404) return;
    }
    this.timer = setTimeout(() => this.#refresh(kind, name, shown), REFRESH_MS);
  }
}

function facts(pairs) {
  const list = element("dl", { class: "facts" });
  for (const [name, value] of pairs) {
    if (value !== undefined && value !== null && value !== "") {
      list.append(element("div", { children: [element("dt", { text: name }), element("dd", { text: String(value) })] }));
    }
  }
  return list;
}

function table(caption, heads, lines) {
  const made = element("table", { children: [element("caption", { class: "hidden-visually", text: caption })] });
  made.append(element("thead", { children: [element("tr", { children: heads.map((text) => element("th", { scope: "col", text })) })] }));
  const body = element("tbody");
  for (const line of lines) {
    body.append(element("tr", { children: line.map((cell) => element("td", cell instanceof Node ? { children: [cell] } : { text: cell })) }));
  }
  made.append(body);
  return element("div", { class: "wide", children: [made] });
}

export const open = (kind, name) => { location.hash = `${kind}=${encodeURIComponent(name)}`; };
const link = (kind, name) => element("a", { href: `#${kind}=${encodeURIComponent(name)}`, text: name });
const reading = (value, unit) => (value === undefined || value === null ? "" : `${value} ${unit}`);

async function showCars(details, kind, name) {
  const { offset } = details.state;
  const found = await ask(`cars?${kind}=${encodeURIComponent(name)}&limit=${PAGE}&offset=${offset}`, details.cut.signal);
  return () => {
    // Focus would be lost with the row that has it: the list waits while somebody is in it.
    if (details.body.contains(document.activeElement)) return;
    const lines = found.cars.map((car) => [
      link("car", car.vehicle),
      car.online ? words(car.availability) : "offline",
      car.hold ? words(car.hold) : "",
      car.region ?? "default",
      reading(car.charge_percent, "%"),
      String(car.units_in_flight),
    ]);
    const shown = found.cars.length ? `${count(offset + 1)} to ${count(offset + found.cars.length)} of ${count(found.total)} cars` : `no car of ${count(found.total)}`;
    const parts = [element("p", { class: "small", text: shown }), table("Cars", ["Car", "State", "Hold", "Region", "Charge", "Units"], lines)];
    if (found.total > PAGE) parts.push(pages(details, kind, name, found.total));
    details.body.replaceChildren(...parts);
  };
}

function pages(details, kind, name, total) {
  const go = (step) => {
    details.state.offset += step;
    details.title.focus();
    showCars(details, kind, name).then((draw) => draw(), () => {});
  };
  const before = element("button", { type: "button", text: "Previous page" });
  const after = element("button", { type: "button", text: "Next page" });
  before.disabled = details.state.offset === 0;
  after.disabled = details.state.offset + PAGE >= total;
  before.addEventListener("click", () => go(-PAGE));
  after.addEventListener("click", () => go(PAGE));
  return element("p", { children: [before, " ", after] });
}

async function showCar(details, kind, name) {
  const found = await ask(`cars/${encodeURIComponent(name)}`, details.cut.signal);
  return () => {
    const { car, cell, why, work } = found;
    const answers = element("ul", { class: "answer", children: (why.length ? why : ["nothing keeps it from work: it is offered the next unit that suits it"]).map((text) => element("li", { text: words(text) })) });
    details.body.replaceChildren(
      element("div", { children: [element("h3", { text: why.length ? "Why it gets no work now" : "It may get work" }), answers] }),
      facts([
        ["State", car.online ? words(car.availability) : "offline"],
        ["Cell", cell],
        ["Region", car.region ?? "default"],
        ["Hardware", car.hardware],
        ["Last heard", car.age_ms < 0 ? "never" : `${span(car.age_ms)} ago`],
        ["Units in hand", `${car.units_in_flight}, room for ${car.free_units}`],
        ["Work in hand", span(car.backlog_ms)],
        ["Items done", count(car.items_done ?? 0)],
        ["Charge", reading(car.charge_percent, "%")],
        ["Battery", reading(car.battery_temperature_c, "°C")],
        ["Computer", reading(car.compute_temperature_c, "°C")],
        ["Models loaded", (car.resident ?? []).map((digest) => digest.slice(0, 12)).join(", ")],
      ]),
      element("h3", { text: "Its finished work, over restarts" }),
      facts(workFacts(work)),
      element("p", { class: "small", text: "What decided in the car, with its owner's limits and readings: edge-runtime owner why, in the car." }),
    );
  };
}

async function showJob(details, kind, name) {
  const found = await ask(`jobs/${encodeURIComponent(name)}?after=${details.state.after}`, details.cut.signal);
  details.state.after = found.attempts_skipped;
  return () => {
    const { status, why, attempts } = found;
    const isOpen = details.body.querySelector("details")?.open ?? false;
    const focused = details.body.contains(document.activeElement) && document.activeElement.tagName === "SUMMARY";
    const bar = element("progress", { max: status.items, value: status.done + status.failed, "aria-label": "Progress" });
    const parts = [
      element("div", { children: [bar, element("p", { class: "small", text: `${count(status.done)} of ${count(status.items)} items done, ${count(status.failed)} failed` })] }),
      element("div", { children: [element("h3", { text: status.finished_ms ? "How it ended" : "Why it waits" }), element("p", { class: "answer", text: why.summary })] }),
    ];
    const excluded = Object.entries(why.cars_excluded);
    if (!status.finished_ms && excluded.length) {
      parts.push(table("Cars that are not asked", ["Cars", "Why they are not asked"], excluded.map(([cause, n]) => [count(n), words(cause)])));
    }
    parts.push(facts([
      ["State", status.state],
      ["Tenant", status.tenant],
      ["Model", found.model],
      ["Submitted", moment(status.submitted_ms)],
      ["Deadline", moment(status.deadline_ms)],
      ["Ended", status.finished_ms ? moment(status.finished_ms) : ""],
      ["Took", status.finished_ms ? span(status.finished_ms - status.submitted_ms) : ""],
      ["Energy of these attempts", energy(attempts.reduce((sum, a) => sum + (a.energy_j ?? 0), 0) / 3600)],
    ]));
    if (attempts.length) {
      const lines = attempts.map((a) => [
        clock(a.offered_ms), link("car", a.vehicle), `${a.items_done ?? 0} of ${a.items}`,
        words(ending(a)), a.hold ? words(a.hold) : a.release_reason ? words(a.release_reason) : "",
        span((a.ended_ms ?? Date.now()) - a.offered_ms),
      ]);
      const more = element("details", { children: [element("summary", { text: `${count(attempts.length)} attempts as a table` }), table("Attempts", ["Offered", "Car", "Items", "End", "Because", "Took"], lines)] });
      more.open = isOpen;
      const head = element("h3", { text: "Who worked on it" });
      const skipped = found.attempts_skipped ? [element("p", { class: "small", text: `${count(found.attempts_skipped)} older attempts are not shown` })] : [];
      parts.push(element("div", { children: [head, ...skipped, ...timeline(attempts, Date.now(), details.body.clientWidth - 32)] }), more);
    }
    details.body.replaceChildren(...parts);
    if (focused) details.body.querySelector("summary")?.focus();
  };
}
