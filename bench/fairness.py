"""A tenant with a million queued items beside one that comes with a single one.

`newcomer_delay_ms` is how much later the newcomer's first result comes than on the same fleet
without anybody else, the worst of `TRIES`; a unit is 2,000 ms of a car's time. The cars compute
one unit after the other, each item for as long as it says, and hold what they are given, as real
cars do. Core, store, service and desk are the production's, in this process, on a memory bus.
"""

import asyncio
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from _rig import DATA, SYNTHETIC, Load, figure, median, say, tensor_item
from _scripted_car import ScriptedCar, chunks_of

from edge_runtime.bus import BusSettings, MemoryBroker, MemoryBus
from edge_runtime.cli.logging import configure_logging
from edge_runtime.contract import limits
from edge_runtime.contract.http import ItemInput, JobRequest
from edge_runtime.contract.messages import Acks, Cancel, Cancelled, Control, UnitOffer
from edge_runtime.contract.topics import Topics, Up
from edge_runtime.dispatcher.desk import FrontDesk
from edge_runtime.dispatcher.service import DispatcherService, DispatcherSettings
from edge_runtime.dispatcher.storage import SqliteStore

CROWD_ITEMS: Final = 1_000_000
CROWD_JOBS: Final = 20
CARS: Final = 2
ITEM_MS: Final = 20.0
ITEMS_PER_CHUNK: Final = 10
TRIES: Final = 6
BUSY_FOR_S: Final = 6.0
ANNOUNCE_S: Final = 5.0
TIMEOUT_S: Final = 60.0


class SerialCar(ScriptedCar):
    """Computes one unit after the other and drops what is cancelled before its turn."""

    def __init__(self, bus: MemoryBus, vehicle: str, topics: Topics) -> None:
        super().__init__(bus, vehicle, topics, units_max=8)
        self.waiting: deque[UnitOffer] = deque()
        self.came = asyncio.Event()
        self.on_offer = self._hold

    def _hold(self, unit: UnitOffer) -> None:
        self.waiting.append(unit)
        self.came.set()

    def _ordered(self, control: Control) -> None:
        for order in control.orders:
            if isinstance(order, Cancel):
                key = (order.unit, order.fence)
                left = [unit for unit in self.waiting if (unit.unit, unit.fence) != key]
                self.waiting = deque(left)
                verdict = Cancelled(unit=order.unit, fence=order.fence)
                acks = Acks(vehicle=self.vehicle, boot=self._boot, verdicts=(verdict,))
                self._publish(Up.ACK, acks)

    async def compute(self) -> None:
        """Work for ever."""
        while True:
            while not self.waiting:
                self.came.clear()
                await self.came.wait()
            unit = self.waiting.popleft()
            for chunk in chunks_of(unit, ITEMS_PER_CHUNK, ITEM_MS):
                await asyncio.sleep(chunk.busy_ms / 1000)
                self.send(chunk)

    async def announce_often(self) -> None:
        """Say its state, as cars do."""
        while True:
            await asyncio.sleep(ANNOUNCE_S)
            self.announce()


@asynccontextmanager
async def fleet(broker: MemoryBroker) -> AsyncIterator[None]:
    """So many cars, for as long as the block lasts."""
    topics, tasks = Topics(), []
    buses = []
    for number in range(CARS):
        name = f"car-{number}"
        subscriptions = ((topics.down_all(name), 1),)
        bus = MemoryBus(BusSettings("memory://", name, subscriptions=subscriptions), broker)
        buses.append(await bus.__aenter__())
        car = SerialCar(bus, name, topics)
        tasks += [
            asyncio.create_task(work()) for work in (car.run, car.compute, car.announce_often)
        ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for bus in buses:
            await bus.__aexit__(None, None, None)


async def first_result_ms(desk: FrontDesk, tenant: str) -> float:
    """From submitting one item to its result."""
    item = ItemInput(data=tensor_item(1.0))
    started_s = time.perf_counter()
    (submitted,) = await desk.submit(tenant, [JobRequest(model="noop", items=(item,))])
    assert submitted.status is not None, submitted.problem
    async with asyncio.timeout(TIMEOUT_S):
        async for page in desk.results(tenant, submitted.status.job, cursor=0, follow=True):
            if page:
                break
    return (time.perf_counter() - started_s) * 1000


async def measure(folder: Path) -> tuple[list[float], list[float], float]:
    """First results alone and beside the crowd (ms), and how long the crowd's accepting took."""
    broker = MemoryBroker()

    def open_bus(settings: BusSettings) -> MemoryBus:
        return MemoryBus(settings, broker)

    settings = DispatcherSettings("memory://", models_dir=SYNTHETIC)
    store = SqliteStore(folder / "dispatcher.db")
    async with DispatcherService(settings, store, open_bus) as service, fleet(broker):
        desk = FrontDesk(service)
        for _ in range(3):  # the dispatcher learns how long an item takes
            await first_result_ms(desk, "first")
        alone = [await first_result_ms(desk, f"alone-{n}") for n in range(TRIES)]
        items = (ItemInput(data=tensor_item(1.0)),) * (CROWD_ITEMS // CROWD_JOBS)
        started_s = time.perf_counter()
        for _ in range(CROWD_JOBS):
            (crowd,) = await desk.submit("crowd", [JobRequest(model="noop", items=items)])
            assert crowd.status is not None, crowd.problem
        accepted_s = time.perf_counter() - started_s
        await asyncio.sleep(BUSY_FOR_S)  # every car computes for the crowd, and holds more
        beside = []
        for number in range(TRIES):
            beside.append(await first_result_ms(desk, f"newcomer-{number}"))
            say(f"first result beside the crowd after {beside[-1]:.0f} ms")
            await asyncio.sleep(0.7)
    return alone, beside, accepted_s


def main() -> None:
    """Measure and print."""
    configure_logging("json", "warning")
    with tempfile.TemporaryDirectory(prefix="bench-", dir=DATA) as folder, Load() as load:
        alone, beside, accepted_s = asyncio.run(measure(Path(folder)))
    figure(
        "newcomer_delay_ms",
        max(beside) - median(alone),
        "ms",
        f"<= {limits.UNIT_TARGET_MS}",
        shared="2 cores: dispatcher and scripted cars in this process",
        digits=0,
        alone_ms=round(median(alone)),
        median_ms=round(median(beside)),
        worst_ms=round(max(beside)),
        crowd_items=CROWD_ITEMS,
        crowd_accepted_s=round(accepted_s, 1),
        cars=CARS,
        **load.facts(),
    )


if __name__ == "__main__":
    main()
