"""From the sensor's event to the last processor time of the inference process.

A real car works on a stream of real images; again and again its owner comes back: one JSON line on
the car's standard input, the simulated sensor's live command. From then on this process reads the
scheduler's own account of every thread of the engine (/proc/<pid>/task/*/schedstat, nanoseconds on
a processor) every 0.2 ms until all of them are stopped; the last moment at which the account still
grew is the engine's last processor time, to 0.2 ms, late rather than early. Then the owner leaves
and the engine goes on.
"""

import asyncio
import contextlib
import json
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import cv2
import psutil
from _rig import DATA, MODELS, TENANT, Load, Process, Rig, engine_of, figure, say, wait_for

from edge_runtime.client import EdgeClient
from edge_runtime.contract.http import ItemInput

STOPS_EACH: Final = 120
ITEMS: Final = 4_000
LOOK_EVERY_S: Final = 0.000_2
STILL_S: Final = 0.05
STUCK_S: Final = 5.0
BUSY_WITHIN_S: Final = 0.02
PHASE_MAX_S: Final = 0.05
PERCENTILE: Final = 0.99


class Account:
    """Processor time of all threads of a process, by its scheduler statistics."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        folders = list(Path(f"/proc/{pid}/task").iterdir())
        with contextlib.ExitStack() as undo:
            self._files = [
                undo.enter_context((folder / "schedstat").open("rb", buffering=0))
                for folder in folders
            ]
            self._states = [
                undo.enter_context((folder / "stat").open("rb", buffering=0)) for folder in folders
            ]
            self._close = undo.pop_all()

    def close(self) -> None:
        """Let go of the files."""
        self._close.close()

    def ran_ns(self) -> int:
        """Nanoseconds on a processor so far. Raises ProcessLookupError once it is gone."""
        return sum(int(os.pread(file.fileno(), 64, 0).split()[0]) for file in self._files)

    def states(self) -> set[bytes]:
        """The states of its threads: R runs or wants to, S sleeps, T is stopped."""
        lines = [os.pread(file.fileno(), 512, 0) for file in self._states]
        return {line[line.rindex(b")") + 2 :][:1] for line in lines}


def await_busy(account: Account) -> None:
    """Wait until the engine computes."""
    deadline_s = time.monotonic() + STUCK_S
    while True:
        before_ns = account.ran_ns()
        time.sleep(BUSY_WITHIN_S)
        if account.ran_ns() - before_ns > BUSY_WITHIN_S * 1e9 / 4:
            return
        if time.monotonic() > deadline_s:
            raise TimeoutError("the engine does not compute")


def stop_once(car: Process, account: Account) -> float | None:
    """The owner comes back: milliseconds from the event to the last processor time.

    None where the engine had just finished what it held: then there was nothing to stop.
    """
    event_s = time.perf_counter()
    car.tell(json.dumps({"is_occupied": True}))
    ran_ns = account.ran_ns()
    last_s = seen_s = event_s
    while seen_s - last_s < STILL_S or b"R" in account.states():
        if seen_s - event_s > STUCK_S:
            raise TimeoutError("the engine did not stop")
        time.sleep(LOOK_EVERY_S)
        now_ns = account.ran_ns()
        seen_s = time.perf_counter()
        if now_ns != ran_ns:
            ran_ns, last_s = now_ns, seen_s
    return (last_s - event_s) * 1e3 if b"T" in account.states() else None


def stop_often(car: Process, name: str) -> list[float]:
    """The latency of each stop, in milliseconds."""
    rng = random.Random(7)
    latencies_ms: list[float] = []
    account: Account | None = None
    while len(latencies_ms) < STOPS_EACH:
        engine: psutil.Process = wait_for("engine", lambda: engine_of(car))
        if account is None or account.pid != engine.pid:
            if account is not None:
                account.close()
            account = Account(engine.pid)
        try:
            await_busy(account)
            time.sleep(rng.uniform(0, PHASE_MAX_S))
            if (latency_ms := stop_once(car, account)) is not None:
                latencies_ms.append(latency_ms)
        except ProcessLookupError:
            account = None  # it was stopped for longer than the grace: a new one takes over
        car.tell(json.dumps({"is_occupied": False}))
    if account is not None:
        account.close()
    ordered = sorted(latencies_ms)
    say(f"stop_latency: {name}: p50 {ordered[len(ordered) // 2]:.2f} ms, max {ordered[-1]:.2f} ms")
    return latencies_ms


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of all are not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]


def frames() -> list[ItemInput]:
    """Frames of the in-car clip, as JPEG."""
    clip = cv2.VideoCapture(str(DATA / "demo" / "carphone_pristine.mp4"))
    found = []
    while len(found) < 16:
        is_read, frame = clip.read()
        assert is_read
        _, jpeg = cv2.imencode(".jpg", frame)
        found.append(ItemInput(media_type="image/jpeg", data=jpeg.tobytes()))
    return found


def signs() -> list[ItemInput]:
    """Photographs of signs."""
    paths = sorted((DATA / "demo").glob("scenetext0[36].jpg"))
    return [ItemInput(media_type="image/jpeg", data=path.read_bytes()) for path in paths]


async def measure(rig: Rig, car: Process) -> dict[str, list[float]]:
    """Stop latencies by model."""
    found = {}
    async with EdgeClient(rig.url, TENANT) as client:
        for model, images in (("centerface", frames()), ("pp-ocr", signs())):
            count = ITEMS if model == "centerface" else ITEMS // 10
            items = [images[number % len(images)] for number in range(count)]
            job = (await client.submit(model, items)).job
            found[model] = await asyncio.to_thread(stop_often, car, model)
            await client.cancel(job)
    return found


def main() -> None:
    """Measure and print."""
    with Rig() as rig:
        rig.start_broker()
        rig.start_dispatcher(MODELS)
        car = rig.start_car(units_max=2)
        rig.await_ready_car()
        with Load() as load:
            found = asyncio.run(measure(rig, car))
    values = [value for model in found.values() for value in model]
    figure(
        "stop_latency_ms",
        percentile(values, PERCENTILE),
        "ms (p99)",
        "<= 20",
        shared=(
            f"2 cores: {rig.broker_kind}, dispatcher, one car with its engine (idle scheduling"
            " class), and the observer in this process"
        ),
        digits=2,
        stops=len(values),
        max_ms=round(max(values), 2),
        **{
            f"{model.replace('-', '_')}_{name}_ms": round(percentile(latencies, share), 2)
            for model, latencies in found.items()
            for name, share in (("p50", 0.5), ("p99", PERCENTILE))
        },
        **load.facts(),
    )


if __name__ == "__main__":
    main()
