// The dispatcher's data: single questions, and the stream of server-sent events. By fetch and not
// by EventSource, because an operator's key travels in a header and not in an address.

let key = sessionStorage.getItem("key") ?? "";
export class Refused extends Error {
  constructor(status, problem) {
    super(problem?.message ?? `HTTP ${status}`);
    this.status = status;
  }
}

export const hasKey = () => key !== "";

export function useKey(value) {
  key = value;
  sessionStorage.setItem("key", value);
}

async function get(path, signal) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const answer = await fetch(path, { headers, signal, cache: "no-store" });
  if (!answer.ok) throw new Refused(answer.status, await answer.json().catch(() => null));
  return answer;
}

export const ask = async (path, signal) => (await get(`data/${path}`, signal)).json();

const SILENCE_MS = 10_000;

// Calls `onOverview` for each event and `onLink` when the connection comes and goes, for ever.
export async function follow(onOverview, onLink) {
  let wait = 500;
  for (;;) {
    const cut = new AbortController();
    let silence = setTimeout(() => cut.abort(), SILENCE_MS);
    try {
      const answer = await get("data/live", cut.signal);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        clearTimeout(silence);
        silence = setTimeout(() => cut.abort(), SILENCE_MS);
        rest += value;
        const events = rest.split("\n\n");
        rest = events.pop();
        const newest = events.pop();
        if (newest === undefined) continue;
        const data = newest.split("\n").filter((line) => line.startsWith("data: "));
        onLink("live");
        wait = 500;
        onOverview(JSON.parse(data.map((line) => line.slice(6)).join("\n")));
      }
      onLink("lost");
    } catch (error) {
      onLink(error instanceof Refused && [401, 403].includes(error.status) ? "refused" : "lost", error);
    } finally {
      clearTimeout(silence);
      cut.abort();
    }
    await new Promise((resume) => setTimeout(resume, wait * (0.5 + Math.random() / 2)));
    wait = Math.min(wait * 2, 10_000);
  }
}
