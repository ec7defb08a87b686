"""Ten thousand cars in one process: they say how they are, and some compute nothing very slowly.

    python bench/_crowd.py --broker mqtt://127.0.0.1:1883 --cars 10000

One connection speaks for all of them, through `contract.codec` like any car: a Birth each, then a
state each at the period of a real car. Two thirds are ready, the others drive, hold for one of
many reasons, or go offline and come back. What is offered is taken at once and finished, item by
item, after a while; some of it is given back because an owner returned. Prints "ready" when every
car has said how it is.
"""

import argparse
import asyncio
import functools
import random
import time
from typing import Final

from _scripted_car import OUTPUT

from edge_runtime.bus import BusSettings, Connected, Message, open_bus
from edge_runtime.bus.port import Bus
from edge_runtime.contract import codec
from edge_runtime.contract.messages import (
    CONTRACT_VERSION,
    Acks,
    Birth,
    Chunk,
    Ending,
    ItemDone,
    Offline,
    Results,
    StopReport,
    Taken,
    UnitOffer,
    VehicleLimits,
    VehicleState,
)
from edge_runtime.contract.reasons import (
    Availability,
    HoldReason,
    Outcome,
    ReleaseReason,
    StopTier,
)
from edge_runtime.contract.signals import Signals
from edge_runtime.contract.topics import Topics, Up

_REGIONS: Final = ("north", "south", "east", "west", "harbour", "old-town")
_REASONS: Final = tuple(reason for reason in HoldReason if reason is not HoldReason.UNKNOWN)
_STATE_PERIOD_S: Final = 10.0
_TURNS_PER_PERIOD: Final = 200
_ITEM_S: Final = 0.1
_WORKERS_AMONG: Final = 20
"""One process cannot answer for more: one car of so many can serve what is asked."""


class Crowd:
    """All the cars."""

    def __init__(self, bus: Bus, cars: int, seed: int) -> None:
        self._bus = bus
        self._topics = Topics()
        self._rng = random.Random(seed)
        self._boot = int(time.time())
        self._names = [f"car-{number:05d}" for number in range(cars)]
        self._seq = dict.fromkeys(self._names, 0)
        self._connection = dict.fromkeys(self._names, 1)
        self._in_hand = dict.fromkeys(self._names, 0)
        self._signed, self._work = codec.signed_decoder(), codec.work_decoder()
        self._tasks: set[asyncio.Task[None]] = set()
        self._connected = asyncio.Event()

    def _send(self, vehicle: str, kind: Up, message: object) -> None:
        self._bus.publish_soon(Message(self._topics.up(vehicle, kind), codec.encode(message)))

    def _born(self, number: int, vehicle: str) -> None:
        birth = Birth(
            vehicle=vehicle,
            boot=self._boot,
            connection=self._connection[vehicle],
            contract=CONTRACT_VERSION,
            runtime="crowd",
            vss="6.0",
            hardware=f"cpu-{number % 3}",
            tasks=("tensor",) if number % _WORKERS_AMONG == 0 else ("image-to-text",),
            resident=(),
            limits=VehicleLimits(units_max=2),
            region=_REGIONS[min(int(self._rng.expovariate(0.6)), len(_REGIONS) - 1)],
        )
        self._send(vehicle, Up.STATUS, birth)

    def _state(self, vehicle: str) -> None:
        rng = self._rng
        hold: HoldReason | None = None
        if self._in_hand[vehicle]:
            availability = Availability.WORKING
        else:
            draw = rng.random()
            availability = Availability.READY
            if draw > 0.85:
                availability = Availability.HOLD
                hold = _REASONS[min(int(rng.expovariate(0.25)), len(_REASONS) - 1)]
            elif draw > 0.72:
                availability = Availability.DRIVING
        self._seq[vehicle] += 1
        state = VehicleState(
            vehicle=vehicle,
            boot=self._boot,
            seq=self._seq[vehicle],
            at_ms=time.time_ns() // 1_000_000,
            availability=availability,
            hold=hold,
            free_units=2,
            energy_budget_wh=None,
            signals=Signals(
                is_parked=True,
                charge_percent=round(rng.uniform(20, 100), 1),
                battery_temperature_c=round(rng.uniform(5, 35), 1),
                compute_temperature_c=round(rng.uniform(30, 85), 1),
            ),
        )
        self._send(vehicle, Up.STATE, state)

    async def speak(self) -> None:
        """Every car says how it is once a period, evenly spread."""
        await self._connected.wait()
        await self._introduce()
        print("ready", flush=True)
        share = max(1, len(self._names) // _TURNS_PER_PERIOD)
        while True:
            for start in range(0, len(self._names), share):
                for number, vehicle in enumerate(self._names[start : start + share], start):
                    self._turn(number, vehicle)
                await asyncio.sleep(_STATE_PERIOD_S / _TURNS_PER_PERIOD)

    async def _introduce(self) -> None:
        for number, vehicle in enumerate(self._names):
            self._born(number, vehicle)
            self._state(vehicle)
            if number % 100 == 99:
                await asyncio.sleep(0.03)

    def _turn(self, number: int, vehicle: str) -> None:
        if self._connection[vehicle] < 0:
            self._connection[vehicle] = -self._connection[vehicle] + 1
            self._born(number, vehicle)
        elif self._rng.random() < 0.02 and not self._in_hand[vehicle]:
            gone = Offline(vehicle=vehicle, boot=self._boot, connection=self._connection[vehicle])
            self._send(vehicle, Up.STATUS, gone)
            self._connection[vehicle] = -self._connection[vehicle]
            return
        self._state(vehicle)

    async def listen(self) -> None:
        """Take what is offered."""
        async for event in self._bus.events():
            match event:
                case Message(topic=topic, payload=payload) if topic.endswith("/dn/work"):
                    offer = self._work.decode(self._signed.decode(payload).body)
                    taken = tuple(Taken(unit=unit.unit, fence=unit.fence) for unit in offer.units)
                    acks = Acks(vehicle=offer.vehicle, boot=self._boot, verdicts=taken)
                    self._send(offer.vehicle, Up.ACK, acks)
                    for unit in offer.units:
                        task = asyncio.create_task(self._compute(offer.vehicle, unit))
                        self._tasks.add(task)
                        task.add_done_callback(self._tasks.discard)
                case Connected():
                    self._connected.set()
                case _:
                    pass

    async def _compute(self, vehicle: str, unit: UnitOffer) -> None:
        rng = self._rng
        self._in_hand[vehicle] += 1
        self._state(vehicle)
        took_s = len(unit.items) * _ITEM_S * rng.lognormvariate(0, 0.4)
        items, ending = unit.items, Ending(outcome=Outcome.COMPLETED)
        if rng.random() < 0.08:
            items = items[: len(items) // 2]
            took_s /= 2
            ending = Ending(
                outcome=Outcome.RELEASED,
                reason=ReleaseReason.HOLD,
                hold=rng.choice((HoldReason.OCCUPIED, HoldReason.COMPUTE_HOT)),
                stop=StopReport(tier=StopTier.FREEZE, latency_ms=rng.lognormvariate(-1, 0.6)),
            )
        await asyncio.sleep(took_s)
        chunk = Chunk(
            job=unit.job,
            unit=unit.unit,
            fence=unit.fence,
            model=unit.model,
            seq=0,
            items=tuple(ItemDone(index=item.index, output=OUTPUT) for item in items),
            energy_j=40.0 * took_s,
            busy_ms=1000 * took_s,
            ending=ending,
        )
        self._send(vehicle, Up.RESULT, Results(vehicle=vehicle, boot=self._boot, chunks=(chunk,)))
        self._in_hand[vehicle] -= 1
        self._state(vehicle)


async def main() -> None:
    """Until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--broker", required=True)
    parser.add_argument("--cars", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    settings = BusSettings(
        url=options.broker,
        client_id="crowd",
        session_expiry_s=0,
        subscriptions=(("er/1/+/v/+/dn/work", 1),),
    )
    async with functools.partial(open_bus, fast=True)(settings) as bus:
        crowd = Crowd(bus, options.cars, options.seed)
        async with asyncio.TaskGroup() as group:
            group.create_task(crowd.listen())
            group.create_task(crowd.speak())


if __name__ == "__main__":
    asyncio.run(main())
