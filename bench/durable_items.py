"""Results from a car's MQTT chunk to committed (SQLite, synchronous=FULL) and answered.

A scripted car in this process takes units until it holds enough, then sends every item back, 32
to a chunk, all at once; the clock runs from the first publish to the last ChunkAnswer. Broker and
dispatcher are their real processes.
"""

import asyncio
import time
from typing import Final

from _rig import SYNTHETIC, TENANT, Load, Rig, ask, figure, median, say, tensor_item
from _scripted_car import ScriptedCar, chunks_of, scripted_car

from edge_runtime.client import EdgeClient
from edge_runtime.contract.http import ItemInput
from edge_runtime.contract.messages import ChunkAnswer, UnitOffer

ITEMS: Final = 12_800
ITEMS_PER_CHUNK: Final = 32
CHUNKS_PER_MESSAGE: Final = 1
ROUNDS: Final = 7
STATE_EVERY_S: Final = 5.0
TIMEOUT_S: Final = 60.0


class Round:
    """Collects the units of one job, then sends its chunks and waits for all the answers."""

    def __init__(self, car: ScriptedCar) -> None:
        self._car = car
        self._units: dict[int, UnitOffer] = {}
        self._held = 0
        self._all_held = asyncio.Event()
        self._unanswered: set[tuple[int, int]] = set()
        self._all_answered = asyncio.Event()
        car.on_offer = self._offered
        car.on_answer = self._answered

    def _offered(self, unit: UnitOffer) -> None:
        if unit.unit not in self._units:
            self._units[unit.unit] = unit
            self._held += len(unit.items)
        if self._held == ITEMS:
            self._all_held.set()

    def _answered(self, answer: ChunkAnswer) -> None:
        for seq in range(answer.first_seq, answer.through_seq + 1):
            self._unanswered.discard((answer.unit, seq))
        if not self._unanswered:
            self._all_answered.set()

    async def run(self) -> float:
        """Items per second."""
        async with asyncio.timeout(TIMEOUT_S):
            await self._all_held.wait()
            chunks = [
                chunk for unit in self._units.values() for chunk in chunks_of(unit, ITEMS_PER_CHUNK)
            ]
            self._unanswered = {(chunk.unit, chunk.seq) for chunk in chunks}
            started_s = time.perf_counter()
            for chunk in chunks:
                self._car.send(chunk)
            await self._all_answered.wait()
            return ITEMS / (time.perf_counter() - started_s)


async def measure(rig: Rig) -> list[float]:
    """Items per second of each round."""
    item = ItemInput(data=tensor_item(1.0))
    rates = []
    async with (
        scripted_car(rig.broker_url) as car,
        EdgeClient(rig.url, TENANT) as client,
    ):
        await asyncio.to_thread(rig.await_ready_car)
        for _ in range(ROUNDS):
            round_ = Round(car)
            handle = client.submit("noop", [item] * ITEMS)
            status = await handle
            rates.append(await round_.run())
            while not status.state.is_terminal:
                await asyncio.sleep(0.01)
                status = await handle.status()
            car.announce()
            say(f"durable_items: {rates[-1]:.0f} items/s")
    return rates


def main() -> None:
    """Measure and print."""
    with Rig() as rig, Load() as load:
        rig.start_broker()
        dispatcher = rig.start_dispatcher(SYNTHETIC)
        rates = asyncio.run(measure(rig))
        dispatcher.check()
        counters = ask(rig.url, "/v1/health")["counters"]
    figure(
        "durable_items_per_s",
        median(rates),
        "items/s",
        ">= 10000",
        shared=f"2 cores: {rig.broker_kind}, dispatcher, and a scripted car in this process",
        digits=0,
        best=round(max(rates)),
        worst=round(min(rates)),
        items_per_chunk=ITEMS_PER_CHUNK,
        chunks_stored=counters.get("chunks_stored", 0),
        **load.facts(),
    )


if __name__ == "__main__":
    main()
