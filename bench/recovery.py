"""A dispatcher with a million open items is killed and started again.

`recovery_s` is from the start of the new process until a car gets work from it, everything
between included: the interpreter, the imports, the store, the broker. `recovery_memory_mb` is the
most memory it had resident from then on, while it goes on dispatching for some seconds. Each is
measured with the items in jobs of a thousand and in jobs of one.
"""

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Final

from _rig import SYNTHETIC, TENANT, Load, Process, Rig, figure, say, tensor_item
from _scripted_car import ScriptedCar, chunks_of, scripted_car

from edge_runtime.contract.messages import Chunk, ChunkAnswer, Fence, Item, UnitOffer
from edge_runtime.dispatcher.core.commands import AddJob
from edge_runtime.dispatcher.core.events import JobSpec
from edge_runtime.dispatcher.core.placement import Requirement
from edge_runtime.dispatcher.storage import SqliteStore

ITEMS: Final = 1_000_000
ITEMS_PER_COMMIT: Final = 20_000
ITEMS_PER_CHUNK: Final = 32
CARRY_ON_S: Final = 5.0
ANNOUNCE_S: Final = 0.2
TIMEOUT_S: Final = 120.0
_DAY_MS: Final = 24 * 3600 * 1000


def _job(no: int, items: int) -> AddJob:
    now_ms = time.time_ns() // 1_000_000
    data = tensor_item(1.0)
    return AddJob(
        no=no,
        spec=JobSpec(
            id=f"job{no:07d}",
            tenant=TENANT,
            requirement=Requirement(model="0" * 64, task="tensor"),
            parameters=b"\x80",
            purpose="batch",
            priority=5,
            items=items,
            submitted_ms=now_ms,
            deadline_ms=now_ms + _DAY_MS,
            retention_ms=_DAY_MS,
            reference_ms=1.0,
        ),
        items=tuple(
            Item(index=index, media_type="application/x-msgpack", data=data)
            for index in range(items)
        ),
    )


async def fill(path: Path, items_per_job: int) -> None:
    """A store with a million open items."""
    store = SqliteStore(path)
    await store.open(1)
    jobs_per_commit = max(1, ITEMS_PER_COMMIT // items_per_job)
    jobs = ITEMS // items_per_job
    for first in range(1, jobs + 1, jobs_per_commit):
        last = min(first + jobs_per_commit, jobs + 1)
        await store.commit([_job(no, items_per_job) for no in range(first, last)])
    await store.close()


class Worker:
    """A car that finishes what it is offered, and sends again what has not been answered."""

    def __init__(self, car: ScriptedCar) -> None:
        self._car = car
        self._unanswered: dict[tuple[int, Fence, int], Chunk] = {}
        self.offered = asyncio.Event()
        self.units = 0
        car.on_offer = self._on_offer
        car.on_answer = self._on_answer

    def _on_offer(self, unit: UnitOffer) -> None:
        self.units += 1
        self.offered.set()
        for chunk in chunks_of(unit, ITEMS_PER_CHUNK):
            self._unanswered[chunk.unit, chunk.fence, chunk.seq] = chunk
            self._car.send(chunk)

    def _on_answer(self, answer: ChunkAnswer) -> None:
        for seq in range(answer.first_seq, answer.through_seq + 1):
            self._unanswered.pop((answer.unit, answer.fence, seq), None)

    async def offered_again(self) -> None:
        """Wait for the next offer, saying every moment that it is there, as cars do."""
        self.offered.clear()
        while not self.offered.is_set():
            self._car.announce()
            for chunk in self._unanswered.values():
                self._car.send(chunk)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.offered.wait(), ANNOUNCE_S)


def peak_mb(process: Process) -> float:
    """The most that was ever resident, in MB (10**6 bytes)."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"no VmHWM of {process.pid}")


async def kill_and_start(rig: Rig) -> tuple[float, float, int]:
    """Seconds until the first offer, peak memory in MB, units offered in all."""
    first = await asyncio.to_thread(rig.start_dispatcher, SYNTHETIC)
    async with scripted_car(rig.broker_url) as car, asyncio.timeout(TIMEOUT_S):
        worker = Worker(car)
        await worker.offered_again()
        first.kill()
        started_s = time.perf_counter()
        starting = asyncio.create_task(asyncio.to_thread(rig.start_dispatcher, SYNTHETIC))
        await worker.offered_again()
        recovery_s = time.perf_counter() - started_s
        dispatcher = await starting
        await asyncio.sleep(CARRY_ON_S)
        dispatcher.check()
        return recovery_s, peak_mb(dispatcher), worker.units


def measure(items_per_job: int, suffix: str) -> None:
    """Build, kill, start, print."""
    with Rig() as rig:
        say(f"recovery: building a store with {ITEMS:,} open items, {items_per_job} a job")
        asyncio.run(fill(rig.folder / "dispatcher.db", items_per_job))
        size_mb = (rig.folder / "dispatcher.db").stat().st_size / 1e6
        rig.start_broker()
        with Load() as load:
            recovery_s, memory_mb, units = asyncio.run(kill_and_start(rig))
    facts = {
        "shared": f"2 cores: {rig.broker_kind}, dispatcher, a scripted car in this process",
        "items_per_job": items_per_job,
        "store_mb": round(size_mb),
        "units": units,
        **load.facts(),
    }
    figure(f"recovery_s{suffix}", recovery_s, "s", "<= 3", digits=2, **facts)
    figure(f"recovery_memory_mb{suffix}", memory_mb, "MB", "<= 300", digits=0, **facts)


def main() -> None:
    """Measure and print."""
    measure(1_000, "")
    measure(1, "_of_one_item_jobs")


if __name__ == "__main__":
    main()
