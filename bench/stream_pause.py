"""What the reader of a streamed text notices when the car that writes it goes.

Two cars have SmolLM2 loaded. While a text streams, the owner of the car that writes it comes back
(its sensor says so), or its process gets SIGKILL; the figure is the longest silence from then on.
A text that differs from that of an undisturbed run has lost or repeated a token, or flipped one
where two were as likely; all are counted.

`--trials N` of each; 200 are asked for, and take about an hour.
"""

import argparse
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus
from typing import Final, NamedTuple

import psutil
from _rig import REPOSITORY, Load, Process, Rig, ask, engine_of, figure, median, say, wait_for

MODELS: Final = REPOSITORY / ".data" / "models"
QUESTION: Final = "Tell me a story about a car that waits for its owner."
NEW_TOKENS: Final = 48
STRIKE_AT: Final = 6
"""Events of a stream before its car goes."""
PROMPT_S: Final = 120.0


class Told(NamedTuple):
    """A text as it came: when each event did, in seconds of one clock."""

    text: str
    at_s: list[float]


def events(url: str) -> Iterator[str]:
    """The pieces of one streamed answer."""
    body = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": NEW_TOKENS,
        "ignore_eos": True,
        "stream": True,
    }
    request = urllib.request.Request(  # noqa: S310 - http only
        f"{url}/v1/chat/completions", json.dumps(body).encode(), method="POST"
    )
    with urllib.request.urlopen(request, timeout=PROMPT_S) as answer:  # noqa: S310 - http only
        for line in answer:
            if line.startswith(b"data: {"):
                event = json.loads(line[len(b"data: ") :])
                if "error" in event:
                    raise RuntimeError(event["error"]["message"])
                yield event["choices"][0]["delta"].get("content", "")


def read(url: str) -> Told:
    """One text, undisturbed."""
    text, at_s = "", []
    for piece in events(url):
        text += piece
        at_s.append(time.perf_counter())
    return Told(text, at_s)


def computes(url: str) -> bool:
    """Whether a text is written from beginning to end; 503 says that no car can."""
    try:
        return bool(read(url).text)
    except urllib.error.HTTPError as error:
        if error.code != HTTPStatus.SERVICE_UNAVAILABLE:
            raise
        say(f"not yet: {error.read().decode()[:300]}")
        return False


def sit_down(car: Process) -> None:
    """The owner is back."""
    car.tell(json.dumps({"is_occupied": True}))


def get_up(car: Process) -> None:
    """The owner leaves."""
    car.tell(json.dumps({"release": ["is_occupied"]}))


def cpu_s(car: Process) -> float:
    """What its inference process has used so far."""
    engine = engine_of(car)
    if engine is None:
        return 0.0
    try:
        used = engine.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return used.user + used.system


class Fleet:
    """Two cars that have the model loaded."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.cars = {name: rig.start_car(name) for name in ("car-1", "car-2")}
        rig.await_ready_car(2)
        for name in self.cars:
            self.warm(name)

    def warm(self, name: str) -> None:
        """Have one car compute, so that it has the model loaded: the other one is not there."""
        others = [car for other, car in self.cars.items() if other != name]
        for car in others:
            sit_down(car)
        wait_for("the other car to be held", lambda: self._ready() == {name})
        wait_for(f"{name} to compute", lambda: computes(self._rig.url))
        for car in others:
            get_up(car)
        wait_for("both cars", lambda: len(self._ready()) == len(self.cars))

    def strike(self, *, is_kill: bool) -> tuple[Told, float]:
        """A text whose car goes; when it went."""
        text, at_s, struck_s = "", [], 0.0
        before = {name: cpu_s(car) for name, car in self.cars.items()}
        writer = ""
        for piece in events(self._rig.url):
            text += piece
            at_s.append(time.perf_counter())
            if len(at_s) == STRIKE_AT:
                spent = {name: cpu_s(car) - before[name] for name, car in self.cars.items()}
                writer = max(spent, key=lambda name: spent[name])
                struck_s = time.perf_counter()
                if is_kill:
                    self.cars[writer].kill()
                else:
                    sit_down(self.cars[writer])
        if is_kill:
            self.cars[writer] = self._rig.start_car(writer)
            wait_for("the car to be back", lambda: len(self._ready()) == len(self.cars))
            self.warm(writer)
        else:
            get_up(self.cars[writer])
            wait_for("both cars", lambda: len(self._ready()) == len(self.cars))
        return Told(text, at_s), struck_s

    def _ready(self) -> set[str]:
        cars = ask(self._rig.url, "/v1/fleet")["cars"]
        return {car["vehicle"] for car in cars if car["availability"] in {"ready", "working"}}


def silence_ms(told: Told, since_s: float) -> float:
    """The longest wait for an event that ended after `since_s`."""
    return max(
        (after - before) * 1000
        for before, after in zip(told.at_s, told.at_s[1:], strict=False)
        if after > since_s
    )


def measure(rig: Rig, fleet: Fleet, trials: int, shared: str, *, is_kill: bool) -> None:
    """Strike so often, and say what was noticed."""
    whole = read(rig.url).text
    silences_ms, differing = [], 0
    with Load() as load:
        for trial in range(trials):
            told, struck_s = fleet.strike(is_kill=is_kill)
            silences_ms.append(silence_ms(told, struck_s))
            differing += told.text != whole
            if trial % 10 == 9:
                say(f"{trial + 1} of {trials}: longest silence {max(silences_ms):.0f} ms")
    ordered = sorted(silences_ms)
    figure(
        "stream_pause_on_kill" if is_kill else "stream_pause_on_release",
        ordered[int(len(ordered) * 0.99)],
        "ms",
        "<= 1500" if is_kill else "<= 400",
        shared=shared,
        digits=0,
        median=round(median(silences_ms)),
        longest=round(ordered[-1]),
        trials=trials,
        texts_that_differ=differing,
        **load.facts(),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    trials = parser.parse_args().trials
    with Rig() as rig:
        rig.start_broker()
        rig.start_dispatcher(MODELS)
        shared = f"{rig.broker_kind}, dispatcher, 2 cars and the reader share the machine"
        fleet = Fleet(rig)
        measure(rig, fleet, trials, shared, is_kill=False)
        measure(rig, fleet, trials, shared, is_kill=True)


if __name__ == "__main__":
    main()
