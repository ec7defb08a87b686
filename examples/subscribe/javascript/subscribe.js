// Read a tenant's results over MQTT with `mqtt` and `@msgpack/msgpack` alone.
//
//     npm ci
//     node subscribe.js mqtt://127.0.0.1:1883 TENANT [--job JOB] [--cursors FILE] [--ca FILE]
//
// Prints one JSON line for each result and each status, and keeps in FILE how far it has read each
// job: started again, it goes on from there. With --job it ends when the job has.

import { randomBytes } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { decode, encode } from "@msgpack/msgpack";
import mqtt from "mqtt";

const ASK_AGAIN_MS = 5000;
const ENDED = new Set(["done", "cancelled", "expired"]);

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: { job: { type: "string" }, cursors: { type: "string" }, ca: { type: "string" } },
});
const [url, name] = positionals;
const tenant = `er/1/t/${name}`;
const answers = `${tenant}/answers/${randomBytes(8).toString("hex")}`;
const isKept = options.cursors && existsSync(options.cursors);
const cursors = new Map(isKept ? Object.entries(JSON.parse(readFileSync(options.cursors))) : []);
const statuses = new Map();
const asked = new Map(); // job -> when it was asked for; 0: it is to be asked for

const client = mqtt.connect(url, {
  protocolVersion: 5,
  ...(options.ca ? { ca: readFileSync(options.ca) } : {}),
});
const cursorOf = (job) => cursors.get(job) ?? 0;
const print = (value) => console.log(JSON.stringify(value));

// Ask for what follows our cursor: on our answers topic comes a page of it.
function ask(job) {
  asked.set(job, Date.now());
  const request = { type: "fetch_since", job, cursor: cursorOf(job), respond_to: answers };
  client.publish(`${tenant}/request`, Buffer.from(encode(request)), { qos: 1 });
}

// Take what follows our cursor, once and in order.
function hearResults({ job, results, since, status }) {
  if (since !== undefined) asked.delete(job);
  const isAnswer = since !== undefined && since <= cursorOf(job);
  for (const entry of results) {
    if (entry.cursor <= cursorOf(job)) continue; // topics may repeat
    if (!isAnswer && entry.cursor !== cursorOf(job) + 1) {
      if (!asked.has(job)) asked.set(job, 0); // something is missing: fetch it
      break;
    }
    cursors.set(job, entry.cursor);
    print({ job, ...entry });
  }
  if (status) hearStatus(status, results.length === 0);
}

// The job's progress; with its end comes the cursor of the last result.
function hearStatus(status, isLast = false) {
  const { job, state } = status;
  if (status.last_cursor > cursorOf(job) && !isLast) {
    if (!asked.has(job)) asked.set(job, 0);
  } else if (JSON.stringify(status) !== statuses.get(job)) {
    statuses.set(job, JSON.stringify(status));
    print(status);
    if (options.job && ENDED.has(state)) end();
  }
}

function tick() {
  for (const [job, since] of asked) if (Date.now() - since > ASK_AGAIN_MS) ask(job);
  keep();
}

function keep() {
  if (options.cursors) {
    writeFileSync(options.cursors, JSON.stringify(Object.fromEntries(cursors)));
  }
}

function end() {
  clearInterval(ticking);
  keep();
  client.end();
}

const ticking = setInterval(tick, 200);
client.on("connect", () => {
  client.subscribe([`${tenant}/jobs/${options.job ?? "+"}/+`, answers], { qos: 1 });
  for (const job of options.job ? [options.job] : cursors.keys()) ask(job);
});
client.on("message", (_topic, payload) => {
  if (payload.length === 0) return; // a status that is retained no longer
  const told = decode(payload);
  if (told.type === "results") hearResults(told);
  else if (told.type === "status") hearStatus(told);
  else if (told.type === "request_refused" && told.reason === "unknown_job") {
    asked.delete(told.job);
    if (options.job) end();
  }
});
client.on("error", (error) => {
  console.error(error.message);
  process.exitCode = 1;
  end();
});
process.on("SIGINT", end);
