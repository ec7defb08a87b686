"""From the sensor's event to the last processor time of the inference process, by model and tier.

A real car works on real inputs; again and again its owner comes back: one JSON line on the car's
standard input, the simulated sensor's live command, from another process. The clock starts before
that write. From then on this process reads the scheduler's own account of every thread of the
engine (/proc/<pid>/task/*/schedstat, nanoseconds on a processor) until all of them are stopped;
the last moment at which the account still grew is the engine's last processor time.

Resolution: the kernel adds to the account when a thread leaves its processor, so the last growth
is seen at the first look after that. Looks are 0.2 ms apart and may come late, never early: each
figure is an upper bound, by 0.2 ms where the observer gets a processor at once (it asks for the
real-time class, and `observer` says whether it got it). `stat`'s utime and stime, in ticks of
10 ms, would hide what is measured here.

Three ways to stop, each with each model:

- visit: somebody gets in, and out again within the grace. Frozen, then thawed: costs no item;
- departure: the car drives off. Frozen, then killed: costs the item in hand. The figure ends
  with the last processor time before the process is stopped; what the kernel then spends on
  taking it apart is in `teardown`;
- cancel: the requester takes the job back. ONNX Runtime's terminate flag, then a kill. The car's
  own measurement, from its log; so are the items lost and the energy wasted.
"""

import asyncio
import contextlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import psutil
from _rig import (
    DATA,
    MODELS,
    SYNTHETIC,
    TENANT,
    Load,
    Process,
    Rig,
    ask,
    engine_of,
    figure,
    say,
    wait_for,
)

from edge_runtime.client import EdgeClient
from edge_runtime.contract.http import ItemInput
from edge_runtime.contract.tensors import from_numpy

VISITS_EACH: Final = 200
DEPARTURES_EACH: Final = 10
CANCELS_EACH: Final = 5
ITEMS: Final = 4_000
LOOK_EVERY_S: Final = 0.000_2
STILL_S: Final = 0.05
STUCK_S: Final = 30.0
BUSY_WITHIN_S: Final = 0.02
PHASE_MAX_S: Final = 0.05
LONG_AT_IT_S: Final = 2.0
P99: Final = 0.99


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
        """The states of its threads: R runs or wants to, S sleeps, T is stopped, Z is dead."""
        lines = [os.pread(file.fileno(), 512, 0) for file in self._states]
        return {line[line.rindex(b")") + 2 :][:1] for line in lines}


@dataclass(frozen=True)
class Stop:
    """Milliseconds from the event: to the last processor time before the stop, and after it."""

    latency_ms: float
    teardown_ms: float = 0.0


def await_busy(account: Account) -> None:
    """Wait until the engine computes."""
    deadline_s = time.monotonic() + STUCK_S
    while True:
        before_ns = account.ran_ns()
        time.sleep(BUSY_WITHIN_S)
        if account.ran_ns() - before_ns > BUSY_WITHIN_S * 1e9 / 8:
            return
        if time.monotonic() > deadline_s:
            raise TimeoutError("the engine does not compute")


def visit(car: Process, account: Account) -> Stop | None:
    """Somebody gets in; None where the engine had just finished what it held."""
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
    is_stopped = b"T" in account.states()
    car.tell(json.dumps({"release": ["is_occupied"]}))
    return Stop((last_s - event_s) * 1e3) if is_stopped else None


def departure(car: Process, account: Account) -> Stop | None:
    """The car drives off: its engine is stopped, and then its process is gone."""
    event_s = time.perf_counter()
    car.tell(json.dumps({"is_parked": False}))
    ran_ns = account.ran_ns()
    last_s = seen_s = event_s
    stopped_s: float | None = None
    try:
        while seen_s - event_s < STUCK_S:
            time.sleep(LOOK_EVERY_S)
            now_ns, states = account.ran_ns(), account.states()
            seen_s = time.perf_counter()
            if now_ns != ran_ns:
                ran_ns, last_s = now_ns, seen_s
            if stopped_s is None and not states & {b"R", b"S", b"D"}:
                stopped_s = last_s
        raise TimeoutError("the engine was not killed")
    except ProcessLookupError:
        pass
    car.tell(json.dumps({"release": ["is_parked"]}))
    # Where it was gone between two looks, the last of all bounds the one before the stop.
    until_s = last_s if stopped_s is None else stopped_s
    return Stop((until_s - event_s) * 1e3, (last_s - event_s) * 1e3)


def running_engine(car: Process) -> psutil.Process | None:
    """The car's inference process, unless it is only just ending."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return engine_of(car)
    return None


def stop_often(
    car: Process, count: int, stop: Callable[[Process, Account], Stop | None]
) -> list[Stop]:
    """Stop the car's engine while it computes, at random moments, `count` times."""
    be_prompt()
    rng = random.Random(7)
    stops: list[Stop] = []
    account: Account | None = None
    while len(stops) < count:
        engine = wait_for("engine", lambda: running_engine(car))
        try:
            if account is None or account.pid != engine.pid:
                if account is not None:
                    account.close()
                account = Account(engine.pid)
            await_busy(account)
            time.sleep(rng.uniform(0, PHASE_MAX_S))
            if (one := stop(car, account)) is not None:
                stops.append(one)
        except (ProcessLookupError, FileNotFoundError):
            continue  # it ended by itself: a new one takes over
    if account is not None:
        account.close()
    return stops


def share(values: Sequence[float], portion: float) -> float:
    """The smallest value that `portion` of all are not above."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(portion * 1000) * len(ordered) // 1000) - 1)]


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


def texts() -> list[ItemInput]:
    """Paragraphs of about 200 tokens."""
    words = "the car is parked and its computer has nothing to do until its owner comes back "
    return [
        ItemInput(media_type="text/plain", data=(f"{number}: " + words * 12).encode())
        for number in range(16)
    ]


def numbers() -> list[ItemInput]:
    """What the one huge multiplication is told to multiply."""
    import msgspec  # noqa: PLC0415 - the other models take files

    tensor = msgspec.msgpack.encode([from_numpy("x", np.ones(1, np.float32))])
    return [ItemInput(media_type="application/octet-stream", data=tensor)]


INPUTS: Final[dict[str, tuple[Callable[[], list[ItemInput]], int]]] = {
    "centerface": (frames, ITEMS),
    "pp-ocr": (signs, ITEMS // 10),
    "minilm": (texts, ITEMS),
    "big-node": (numbers, ITEMS // 40),
}
"""Inputs by model, and how many items keep it busy."""


async def measure(rig: Rig, car: Process, model: str) -> dict[str, list[Stop]]:
    """Stops of one model, by way."""
    make, count = INPUTS[model]
    inputs = make()
    items = [inputs[number % len(inputs)] for number in range(count)]
    async with EdgeClient(rig.url, TENANT) as client:
        job = (await client.submit(model, items)).job
        found = {
            "visit": await asyncio.to_thread(stop_often, car, VISITS_EACH, visit),
            "departure": await asyncio.to_thread(stop_often, car, DEPARTURES_EACH, departure),
        }
        await client.cancel(job)
        for _ in range(CANCELS_EACH):
            job = (await client.submit(model, items[:64])).job
            await asyncio.to_thread(_await_item, rig, car, job)
            await client.cancel(job)
    for way, stops in found.items():
        latencies = [stop.latency_ms for stop in stops]
        say(f"{model} {way}: p50 {share(latencies, 0.5):.2f}, max {max(latencies):.2f} ms")
    return found


def _await_item(rig: Rig, car: Process, job: str) -> None:
    """Wait until one of the job's items is being computed: after its first, or long at it."""
    pid, ran_ns = 0, 0
    deadline_s = time.monotonic() + STUCK_S
    while time.monotonic() < deadline_s:
        time.sleep(BUSY_WITHIN_S)
        if ask(rig.url, f"/v1/jobs/{job}")["done"] > 0:
            return
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            engine = running_engine(car)
            if engine is None:
                continue
            account = Account(engine.pid)
            now_ns = account.ran_ns()
            account.close()
            if engine.pid != pid:
                pid, ran_ns = engine.pid, now_ns
            if now_ns - ran_ns > LONG_AT_IT_S * 1e9:
                return
    raise TimeoutError("no item is computed")


def said(log: Path, event: str) -> list[dict[str, Any]]:
    """The car's log lines of one event."""
    lines = []
    for line in log.read_text(errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            record = json.loads(line)
            if record.get("event") == event:
                lines.append(record)
    return lines


def spread(values: Iterable[float | None]) -> dict[str, float]:
    """Count, p50, p99 and maximum of what was measured."""
    known = [value for value in values if value is not None]
    if not known:
        return {"count": 0}
    return {
        "count": len(known),
        "p50": round(share(known, 0.5), 2),
        "p99": round(share(known, P99), 2),
        "max": round(max(known), 2),
    }


def tiers(log: Path) -> dict[str, Any]:
    """What the car itself measured and lost, by the tier that fired."""
    stops = said(log, "engine_stopped")
    cancelled = [unit for unit in said(log, "unit") if unit["outcome"] == "cancelled"]
    found: dict[str, Any] = {
        "freeze": spread(stop["latency_ms"] for stop in stops if stop["tier"] == "freeze"),
        "thawed": sum(stop["outcome"] == "thawed" for stop in stops),
        "killed": sum(stop["outcome"] == "killed" for stop in stops),
    }
    for tier in ("terminate", "kill"):
        found[tier] = spread(u["stop_latency_ms"] for u in cancelled if u["stop_tier"] == tier)
    for outcome in ("thawed", "killed"):
        some = [stop for stop in stops if stop["outcome"] == outcome]
        found[f"items_lost_{outcome}_max"] = max((s["items_lost"] for s in some), default=0)
    lost = [*stops, *cancelled]
    found["items_lost"] = sum(entry["items_lost"] for entry in lost)
    found["wasted_wh"] = round(sum(entry["wasted_wh"] for entry in lost), 4)
    return found


def be_prompt() -> bool:
    """Let this thread look on time even while others use both processors; whether it may."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        return False
    return True


def main() -> None:
    """Measure and print."""
    found: dict[str, dict[str, list[Stop]]] = {}
    with ThreadPoolExecutor(1) as observer:
        is_prompt = observer.submit(be_prompt).result()
    own: dict[str, Any] = {}
    with Rig() as rig:
        models = rig.folder / "models"
        for model in INPUTS:
            shutil.copytree((SYNTHETIC if model == "big-node" else MODELS) / model, models / model)
        rig.start_broker()
        rig.start_dispatcher(models)
        with Load() as load:
            for model in INPUTS:
                car = rig.start_car(f"car-{model}", units_max=2)
                rig.await_ready_car()
                found[model] = asyncio.run(measure(rig, car, model))
                car.end()
                own[model] = tiers(car.log)
    visits = [stop.latency_ms for model in found.values() for stop in model["visit"]]
    figure(
        "stop_latency_ms",
        share(visits, P99),
        "ms (p99)",
        "<= 5",
        shared=(
            f"2 cores: {rig.broker_kind}, dispatcher, one car with its engine (idle scheduling"
            " class), and the observer in this process"
        ),
        digits=2,
        stops=len(visits),
        max_ms=round(max(visits), 2),
        resolution_ms=LOOK_EVERY_S * 1e3,
        observer="real-time class" if is_prompt else "ordinary class",
        to_last_cpu_ms={
            model: {way: spread(stop.latency_ms for stop in stops) for way, stops in ways.items()}
            for model, ways in found.items()
        },
        teardown_ms={
            model: spread(stop.teardown_ms for stop in ways["departure"])
            for model, ways in found.items()
        },
        by_the_car=own,
        **load.facts(),
    )


if __name__ == "__main__":
    main()
