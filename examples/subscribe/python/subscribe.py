"""Read a tenant's results over MQTT with paho-mqtt and msgpack alone.

    python subscribe.py mqtt://127.0.0.1:1883 TENANT [--job JOB] [--cursors FILE] [--ca FILE]

Prints one JSON line for each result and each status, and keeps in FILE how far it has read each
job: started again, it goes on from there. With --job it ends when the job has.
"""

import argparse
import json
import secrets
import signal
import ssl
import sys
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgpack
import paho.mqtt.client as mqtt

ASK_AGAIN_S = 5.0
ENDED = {"done", "cancelled", "expired"}


class Reader:
    """What has been read, by job, and what is missing."""

    def __init__(self, client: mqtt.Client, tenant: str, job: str | None, cursors: dict) -> None:
        self.client = client
        self.tenant = f"er/1/t/{tenant}"
        self.answers = f"{self.tenant}/answers/{secrets.token_hex(8)}"
        self.job = job
        self.cursors = cursors
        self.statuses = {}
        self.asked_s = {}
        self.is_over = False

    def connected(self, client: mqtt.Client, *_: object) -> None:
        """Subscribe to one job, or with one wildcard to all of them; ask for what was missed."""
        client.subscribe([(f"{self.tenant}/jobs/{self.job or '+'}/+", 1), (self.answers, 1)])
        for job in {self.job} if self.job else list(self.cursors):
            self.ask(job)

    def ask(self, job: str) -> None:
        """Request what follows our cursor: on our answers topic comes a page of it."""
        self.asked_s[job] = time.monotonic()
        cursor = self.cursors.get(job, 0)
        request = {
            "type": "fetch_since", "job": job, "cursor": cursor, "respond_to": self.answers,
        }  # fmt: skip
        self.client.publish(f"{self.tenant}/request", msgpack.packb(request), qos=1)

    def ask_again(self) -> None:
        """A broker may lose a request, or its answer."""
        for job, asked_s in list(self.asked_s.items()):
            if time.monotonic() - asked_s > ASK_AGAIN_S:
                self.ask(job)

    def heard(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        """Results, a status, or why there is no answer."""
        if not message.payload:
            return  # a status that is retained no longer
        told = msgpack.unpackb(message.payload)
        if told["type"] == "results":
            self.results(told)
        elif told["type"] == "status":
            self.status(told)
        elif told["type"] == "request_refused" and told["reason"] == "unknown_job":
            self.asked_s.pop(told["job"], None)
            self.is_over = bool(self.job)

    def results(self, told: dict) -> None:
        """Take what follows our cursor, once and in order."""
        job, since = told["job"], told.get("since")
        if since is not None:
            self.asked_s.pop(job, None)
        is_answer = since is not None and since <= self.cursors.get(job, 0)
        for entry in told["results"]:
            cursor = self.cursors.get(job, 0)
            if entry["cursor"] <= cursor:
                continue  # topics may repeat
            if not is_answer and entry["cursor"] != cursor + 1:
                self.asked_s.setdefault(job, 0.0)  # something is missing: fetch it
                break
            self.cursors[job] = entry["cursor"]
            print(json.dumps({"job": job, **entry}, default=repr), flush=True)
        if told.get("status"):
            self.status(told["status"], is_last=not told["results"])

    def status(self, told: dict, *, is_last: bool = False) -> None:
        """The job's progress; with its end comes the cursor of the last result."""
        job = told["job"]
        if told["last_cursor"] > self.cursors.get(job, 0) and not is_last:
            self.asked_s.setdefault(job, 0.0)
        elif told != self.statuses.get(job):
            self.statuses[job] = told
            print(json.dumps(told), flush=True)
            self.is_over = self.is_over or (bool(self.job) and told["state"] in ENDED)


def main() -> None:
    """Connect, and read until the job ends or somebody presses Ctrl-C."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("tenant")
    parser.add_argument("--job")
    parser.add_argument("--cursors", type=Path)
    parser.add_argument("--ca", help="authority of the broker's certificate, for mqtts://")
    options = parser.parse_args()
    cursors = {}
    if options.cursors and options.cursors.exists():
        cursors = json.loads(options.cursors.read_text())
    url = urlsplit(options.url)
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    if url.username:
        client.username_pw_set(unquote(url.username), unquote(url.password or ""))
    if url.scheme == "mqtts":
        client.tls_set_context(ssl.create_default_context(cafile=options.ca))
    reader = Reader(client, options.tenant, options.job, cursors)
    client.on_connect, client.on_message = reader.connected, reader.heard
    client.connect(url.hostname, url.port or (8883 if url.scheme == "mqtts" else 1883))
    signal.signal(signal.SIGINT, lambda *_: setattr(reader, "is_over", True))
    while not reader.is_over:
        if client.loop(timeout=0.2) != mqtt.MQTT_ERR_SUCCESS:
            time.sleep(1)  # the broker is away
            try:
                client.reconnect()
            except OSError as error:
                print(f"still away: {error}", file=sys.stderr)
        reader.ask_again()
        if options.cursors:
            options.cursors.write_text(json.dumps(reader.cursors))


if __name__ == "__main__":
    main()
