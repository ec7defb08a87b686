"""A car that takes units by hand, and says of them what a test wants it to say."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec

from edge_runtime.bus import BusSettings, Connected, MemoryBroker, MemoryBus, Message
from edge_runtime.contract import codec
from edge_runtime.contract.messages import (
    Acks,
    Birth,
    Chunk,
    Ending,
    ItemDone,
    Reference,
    Results,
    Taken,
    UnitOffer,
    VehicleLimits,
    VehicleState,
)
from edge_runtime.contract.reasons import Availability, Outcome
from edge_runtime.contract.signals import Signals
from edge_runtime.contract.topics import Topics, Up

NIL = msgspec.Raw(b"\xc0")


class LyingCar:
    """One car; `offered` gives its next unit."""

    def __init__(self, bus: MemoryBus, name: str) -> None:
        self._bus = bus
        self.name = name
        self._topics = Topics()
        self._offers: asyncio.Queue[UnitOffer] = asyncio.Queue()

    async def read(self) -> None:
        signed, work = codec.signed_decoder(), codec.work_decoder()
        async for event in self._bus.events():
            if isinstance(event, Connected):
                await self._introduce()
            elif isinstance(event, Message) and event.topic.endswith("/dn/work"):
                for unit in work.decode(signed.decode(event.payload).body).units:
                    await self._say(
                        Up.ACK,
                        Acks(
                            vehicle=self.name,
                            boot=1,
                            verdicts=(Taken(unit=unit.unit, fence=unit.fence),),
                        ),
                    )
                    self._offers.put_nowait(unit)

    async def _introduce(self) -> None:
        await self._say(
            Up.STATUS,
            Birth(
                vehicle=self.name,
                boot=1,
                connection=1,
                contract=1,
                runtime="lying",
                vss="6.0",
                hardware="none",
                tasks=("tensor",),
                resident=(),
                limits=VehicleLimits(units_max=8),
            ),
        )
        await self._say(
            Up.STATE,
            VehicleState(
                vehicle=self.name,
                boot=1,
                seq=1,
                at_ms=0,
                availability=Availability.READY,
                hold=None,
                free_units=8,
                energy_budget_wh=None,
                signals=Signals(),
            ),
        )

    async def _say(self, kind: Up, message: msgspec.Struct) -> None:
        topic = self._topics.up(self.name, kind)
        await self._bus.publish(Message(topic, codec.encode(message)))

    async def offered(self) -> UnitOffer:
        return await self._offers.get()

    async def claim(self, unit: UnitOffer, ref: Reference) -> None:
        """Say that the unit's first item is done, and that its output is there."""
        chunk = Chunk(
            job=unit.job,
            unit=unit.unit,
            fence=unit.fence,
            model=unit.model,
            seq=0,
            items=(ItemDone(index=unit.items[0].index, output=NIL, ref=ref),),
            ending=Ending(outcome=Outcome.COMPLETED),
        )
        await self._say(Up.RESULT, Results(vehicle=self.name, boot=1, chunks=(chunk,)))


@contextlib.asynccontextmanager
async def lying_car(broker: MemoryBroker, name: str = "liar") -> AsyncIterator[LyingCar]:
    """A car that is ready for work."""
    settings = BusSettings("memory://", name, subscriptions=((Topics().down_all(name), 1),))
    async with MemoryBus(settings, broker) as bus:
        car = LyingCar(bus, name)
        reading = asyncio.create_task(car.read())
        try:
            yield car
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
