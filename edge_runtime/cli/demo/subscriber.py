"""The third party of the demo: a separate process that counts what the tenant's topics say.

It is written against the documents only, with paho and msgpack, and imports nothing of
edge-runtime: its count is not the demo's own word. It keeps a cursor for every job. A repeat
(the raw topics may repeat) is at or below its cursor; a gap it cannot wait for is fetched from
the HTTP API; a second canonical result of an item, under another cursor, is a duplicate.

It reads JSON lines on stdin, `{"job": id, "items": n}` for each submitted job and
`{"finish": seconds}` at the end, and writes JSON lines on stdout: `{"event": "subscribed"}` and
finally `{"event": "counted", …}`.
"""

import argparse
import json
import queue
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgpack  # type: ignore[import-untyped]  # it ships no types
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

_QUEUE_SLOTS: Final = 100_000
_GAP_PATIENCE_S: Final = 2.0
_POLL_S: Final = 0.1
_HTTP_TIMEOUT_S: Final = 30.0
_MQTT_PORT: Final = 1883
_TERMINAL: Final = frozenset({"done", "cancelled", "expired"})


@dataclass(slots=True)
class JobCount:
    """What is known of one job. `items` counts canonical results by item."""

    submitted: int | None = None
    cursor: int = 0
    last_cursor: int | None = None
    items: Counter[int] = field(default_factory=Counter)
    ahead: dict[int, int] = field(default_factory=dict)
    repeats: int = 0
    conflicts: int = 0
    fetched: int = 0
    seen: dict[int, int] = field(default_factory=dict)

    def take(self, cursor: int, item: int) -> None:
        """Count one result: in order, ahead of a gap, or a repeat."""
        if cursor in self.seen:
            self.repeats += 1
            # The same cursor for another item would be a second truth about one result.
            self.conflicts += self.seen[cursor] != item
            return
        self.seen[cursor] = item
        self.items[item] += 1
        self.ahead[cursor] = item
        while self.cursor + 1 in self.ahead:
            self.cursor += 1
            del self.ahead[self.cursor]

    @property
    def has_gap(self) -> bool:
        """Whether results before a known one are missing."""
        return bool(self.ahead) or (self.last_cursor or 0) > self.cursor

    @property
    def is_complete(self) -> bool:
        """Whether the job has ended and every result up to its last was counted."""
        return self.last_cursor is not None and self.cursor >= self.last_cursor

    @property
    def lost(self) -> int:
        """Submitted items without a canonical result."""
        return sum(1 for item in range(self.submitted or 0) if item not in self.items)

    @property
    def duplicates(self) -> int:
        """Canonical results beyond the first of an item, and results of items nobody submitted."""
        again = sum(count - 1 for count in self.items.values())
        unknown = sum(1 for item in self.items if item >= (self.submitted or 0))
        return again + unknown + self.conflicts


class Subscriber:
    """Counts every job of one tenant."""

    def __init__(self, url: str, tenant: str, state: Path) -> None:
        self._url = url
        self._tenant = tenant
        self._state = state
        self._gap_since_s: dict[str, float] = {}
        self.jobs: dict[str, JobCount] = {}

    def job(self, name: str) -> JobCount:
        """The count of a job, new ones included."""
        return self.jobs.setdefault(name, JobCount())

    def on_payload(self, payload: bytes) -> None:
        """Count one message of a tenant topic."""
        message = msgpack.unpackb(payload)
        match message:
            case {"type": "results", "job": str() as name, "results": list() as results}:
                count = self.job(name)
                for result in results:
                    count.take(result["cursor"], result["item"])
                self._keep_cursors()
            case {"type": "status", "job": str() as name, "state": str() as state}:
                if state in _TERMINAL:
                    self.job(name).last_cursor = message["last_cursor"]
            case _:
                pass  # a newer dispatcher may say more; what is missed shows as a gap

    def _keep_cursors(self) -> None:
        kept = self._state.with_suffix(".part")
        kept.write_text(json.dumps({name: count.cursor for name, count in self.jobs.items()}))
        kept.replace(self._state)

    def fetch_gaps(self, now_s: float, *, patience_s: float = _GAP_PATIENCE_S) -> None:
        """Ask the HTTP API for what a gap has been hiding for too long."""
        for name, count in self.jobs.items():
            if not count.has_gap:
                self._gap_since_s.pop(name, None)
            elif now_s - self._gap_since_s.setdefault(name, now_s) >= patience_s:
                self._fetch(name, count)
                del self._gap_since_s[name]

    def _fetch(self, name: str, count: JobCount) -> None:
        request = urllib.request.Request(  # noqa: S310 - the demo's own dispatcher, http only
            f"{self._url}/v1/jobs/{name}/results?cursor={count.cursor}",
            headers={"Accept": "application/x-msgpack", "X-Tenant": self._tenant},
        )
        with urllib.request.urlopen(request, timeout=_HTTP_TIMEOUT_S) as answer:  # noqa: S310 - as above
            for element in msgpack.Unpacker(answer):
                if isinstance(element, dict) and "cursor" in element:
                    before = len(count.seen)
                    count.take(element["cursor"], element["item"])
                    count.fetched += len(count.seen) - before

    @property
    def is_complete(self) -> bool:
        """Whether every job that was named has ended and is counted."""
        named = [count for count in self.jobs.values() if count.submitted is not None]
        return bool(named) and all(count.is_complete for count in named)

    def report(self) -> dict[str, Any]:
        """The final count."""
        counts = self.jobs.values()
        return {
            "event": "counted",
            "jobs": sum(1 for count in counts if count.submitted is not None),
            "items": sum(count.submitted or 0 for count in counts),
            "results": sum(len(count.items) for count in counts),
            "lost": sum(count.lost for count in counts),
            "duplicates": sum(count.duplicates for count in counts),
            "repeats": sum(count.repeats for count in counts),
            "fetched": sum(count.fetched for count in counts),
        }


def _say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def _connect(broker: str, topic: str, inbox: "queue.Queue[tuple[str, Any]]") -> mqtt.Client:
    address = urlsplit(broker)
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)

    def on_connect(client: mqtt.Client, *_: Any) -> None:
        client.subscribe(topic, qos=1)

    def on_subscribe(_client: Any, _data: Any, _mid: Any, codes: list[Any], _props: Any) -> None:
        inbox.put(("refused" if codes[0].is_failure else "subscribed", str(codes[0])))

    client.on_connect = on_connect
    client.on_subscribe = on_subscribe
    client.on_message = lambda _client, _data, message: inbox.put(("message", message.payload))
    if address.username is not None:
        client.username_pw_set(address.username, address.password)
    client.connect(address.hostname or "127.0.0.1", address.port or _MQTT_PORT)
    client.loop_start()
    return client


def _read_stdin(inbox: "queue.Queue[tuple[str, Any]]") -> None:
    for line in sys.stdin:
        inbox.put(("order", json.loads(line)))
    inbox.put(("order", {"finish": 0}))


def _run(subscriber: Subscriber, inbox: "queue.Queue[tuple[str, Any]]") -> int:
    until_s: float | None = None
    while True:
        try:
            kind, content = inbox.get(timeout=_POLL_S)
        except queue.Empty:
            kind, content = "idle", None
        match kind, content:
            case "message", bytes() as payload:
                subscriber.on_payload(payload)
            case "subscribed", _:
                _say(event="subscribed")
            case "refused", reason:
                _say(event="refused", reason=reason)
                return 1
            case "order", {"finish": seconds}:
                until_s = time.monotonic() + seconds
            case "order", {"job": str() as name, "items": int() as items}:
                subscriber.job(name).submitted = items
            case _:
                subscriber.fetch_gaps(time.monotonic())
        if until_s is not None and (subscriber.is_complete or time.monotonic() > until_s):
            subscriber.fetch_gaps(time.monotonic(), patience_s=0)
            _say(**subscriber.report())
            return 0


def main(arguments: list[str]) -> int:
    """Subscribe, count until told to finish, and say the count."""
    parser = argparse.ArgumentParser(prog="edge-runtime demo subscriber")
    for option in ("broker", "url", "tenant", "namespace", "state"):
        parser.add_argument(f"--{option}", required=True)
    options = parser.parse_args(arguments)
    inbox: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=_QUEUE_SLOTS)
    subscriber = Subscriber(options.url, options.tenant, Path(options.state))
    topic = f"{options.namespace}/1/t/{options.tenant}/jobs/+/+"
    client = _connect(options.broker, topic, inbox)
    threading.Thread(target=_read_stdin, args=(inbox,), daemon=True).start()
    try:
        return _run(subscriber, inbox)
    except (OSError, urllib.error.URLError, ValueError) as error:
        _say(event="failed", reason=str(error))
        return 1
    finally:
        client.disconnect()
        client.loop_stop()
