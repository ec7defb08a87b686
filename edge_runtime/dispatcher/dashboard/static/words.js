// Numbers and times as people read them; small makers of elements. Nothing here is given HTML.

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const count = (n) => (Math.abs(n) < 100_000 ? whole.format(n) : short.format(n));
export const share = (part, all) => (all ? `${((100 * part) / all).toFixed(part === all ? 0 : 1)} %` : "–");
export const words = (name) => name.replaceAll("_", " ");

export function rate(perSecond) {
  if (perSecond === 0) return "0";
  return perSecond >= 100 ? count(Math.round(perSecond)) : perSecond.toFixed(perSecond >= 10 ? 1 : 2);
}

export function span(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms === 0) return "0";
  if (ms < 1) return `${ms.toFixed(2)} ms`;
  if (ms < 1000) return `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
  const s = ms / 1000;
  if (s < 60) return `${s < 10 ? s.toFixed(1) : Math.round(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${Math.round((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86_400)} d ${Math.round((s % 86_400) / 3600)} h`;
}

export function energy(wh) {
  if (wh >= 1e6) return `${(wh / 1e6).toFixed(2)} MWh`;
  if (wh >= 1000) return `${(wh / 1000).toFixed(2)} kWh`;
  if (wh < 0.1) return wh === 0 ? "0 Wh" : `${(wh * 3600).toFixed(1)} J`;
  return `${wh.toFixed(wh < 10 ? 2 : 1)} Wh`;
}

const few = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
export const credits = (n) => (n < 100_000 ? few.format(n < 1000 ? n : Math.round(n)) : short.format(n));

// What finished work wore, of one pack: nothing is shown for what no car has told.
export function wear(work) {
  if (work.wear_unknown_items >= work.items) return work.items ? "not known" : "–";
  const part = `${few.format(work.wear_percent)} %`;
  return "worst_cell_table" in work.wear_percent_by_method && work.wear_percent ? `at most ${part}` : part;
}

const shares = (parts, show) => Object.entries(parts).filter(([, n]) => n > 0).map(([how, n]) => `${words(how)} ${show(n)}`).join(", ");

export function workFacts(work) {
  const unknown = work.wear_unknown_items;
  return [
    ["Items finished", count(work.items)],
    ["Of them interactive", count(work.interactive_items)],
    ["Credits", credits(work.credits)],
    ["Energy", energy(work.energy_wh)],
    ["Energy known by", shares(work.energy_wh_by_method, energy) || "–"],
    ["Wear, of one pack", wear(work)],
    ["Wear known by", shares(work.wear_percent_by_method, (n) => `${few.format(n)} %`) || "–"],
    ["Items whose wear is not known", count(unknown)],
    ["Since", work.since_ms === null || work.since_ms === undefined ? "–" : moment(work.since_ms)],
  ];
}

export const clock = (ms) => new Date(ms).toISOString().slice(11, 19);
export const moment = (ms) => (ms ? new Date(ms).toISOString().slice(0, 19).replace("T", " ") + " UTC" : "–");

export function element(name, { text, children = [], ...attributes } = {}) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null) made.setAttribute(key, value);
  }
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

export function drawn(name, attributes = {}, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// Text is written only where it changed: a screen reader is not disturbed, nothing is laid out.
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Rows of a table by key: kept, so that focus and selection survive the next second.
export function rows(body, entries, make, update) {
  const old = new Map([...body.children].map((row) => [row.dataset.key, row]));
  let place = body.firstChild;
  for (const entry of entries) {
    let row = old.get(entry.key);
    if (row) old.delete(entry.key);
    else {
      row = make(entry);
      row.dataset.key = entry.key;
    }
    update(row, entry);
    if (row === place) place = place.nextSibling;
    else body.insertBefore(row, place);
  }
  for (const row of old.values()) row.remove();
}
