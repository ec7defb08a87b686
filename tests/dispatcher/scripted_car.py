"""A car that speaks the wire and computes nothing: it answers every item with its index.

It stands in for a car where the dispatcher is under test; what real cars do is tested with real
cars.
"""

import asyncio
from collections.abc import Callable
from typing import Self

import msgspec

from edge_runtime.bus import Bus, BusSettings, Connected, MemoryBroker, MemoryBus, Message
from edge_runtime.contract import codec
from edge_runtime.contract.messages import (
    Acks,
    Birth,
    Cancel,
    Chunk,
    ChunkAnswer,
    Control,
    Ending,
    ItemDone,
    ItemResult,
    Order,
    Rebirth,
    Results,
    Taken,
    UnitOffer,
    VehicleLimits,
    VehicleState,
    Verdict,
)
from edge_runtime.contract.reasons import Availability, Outcome
from edge_runtime.contract.signals import Signals
from edge_runtime.contract.topics import Down, Topics, Up

Answer = Callable[[int], ItemResult]


def echo(index: int) -> ItemResult:
    return ItemDone(index=index, output=msgspec.Raw(msgspec.msgpack.encode({"item": index})))


class ScriptedCar:
    """`async with ScriptedCar(...)`: births, takes and answers until left."""

    def __init__(
        self,
        broker: MemoryBroker,
        name: str,
        *,
        units_max: int = 64,
        answer: Answer = echo,
        takes: bool = True,
        works: bool = True,
        tasks: tuple[str, ...] = ("tensor",),
    ) -> None:
        self.name = name
        self.topics = Topics()
        self.boot, self.seq = 1, 0
        self.units_max = units_max
        self.tasks = tasks
        self.answer = answer
        self.takes, self.works = takes, works
        self.offers: list[UnitOffer] = []
        self.orders: list[Order] = []
        self.changed = asyncio.Condition()
        self.bus: Bus = MemoryBus(
            BusSettings(
                url="memory://",
                client_id=name,
                subscriptions=((self.topics.down_all(name), 1),),
            ),
            broker,
        )
        self._signed = codec.signed_decoder()
        self._work = codec.work_decoder()
        self._control = codec.control_decoder()

    async def __aenter__(self) -> Self:
        await self.bus.__aenter__()
        self._task = asyncio.create_task(self._run())
        await self.until(lambda car: car.seq > 0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.bus.__aexit__(*exc)

    async def until(
        self, condition: Callable[["ScriptedCar"], bool], timeout_s: float = 10
    ) -> None:
        async with asyncio.timeout(timeout_s), self.changed:
            await self.changed.wait_for(lambda: condition(self))

    @property
    def answers(self) -> list[ChunkAnswer]:
        return [order for order in self.orders if isinstance(order, ChunkAnswer)]

    @property
    def cancels(self) -> list[Cancel]:
        return [order for order in self.orders if isinstance(order, Cancel)]

    def publish(self, kind: Up, payload: bytes, vehicle: str | None = None) -> None:
        self.bus.publish_soon(Message(self.topics.up(vehicle or self.name, kind), payload))

    def birth(self) -> None:
        birth = Birth(
            vehicle=self.name,
            boot=self.boot,
            connection=1,
            contract=1,
            runtime="scripted",
            vss="6.0",
            hardware="none",
            tasks=self.tasks,
            resident=(),
            limits=VehicleLimits(units_max=self.units_max),
        )
        topic = self.topics.up(self.name, Up.STATUS)
        self.bus.publish_soon(Message(topic, codec.encode(birth), retain=True))
        self.report(Availability.READY)

    def report(self, availability: Availability) -> None:
        self.seq += 1
        state = VehicleState(
            vehicle=self.name,
            boot=self.boot,
            seq=self.seq,
            at_ms=0,
            availability=availability,
            hold=None,
            free_units=self.units_max,
            energy_budget_wh=None,
            signals=Signals(),
        )
        self.publish(Up.STATE, codec.encode(state))

    def verdicts(self, *verdicts: Verdict) -> None:
        acks = Acks(vehicle=self.name, boot=self.boot, verdicts=verdicts)
        self.publish(Up.ACK, codec.encode(acks))

    def chunks(self, *chunks: Chunk) -> None:
        results = Results(vehicle=self.name, boot=self.boot, chunks=chunks)
        self.publish(Up.RESULT, codec.encode(results))

    def finished(self, unit: UnitOffer) -> Chunk:
        return Chunk(
            job=unit.job,
            unit=unit.unit,
            fence=unit.fence,
            model=unit.model,
            seq=0,
            items=tuple(self.answer(item.index) for item in unit.items),
            busy_ms=0.1 * len(unit.items),
            ending=Ending(outcome=Outcome.COMPLETED),
        )

    async def _run(self) -> None:
        async for event in self.bus.events():
            match event:
                case Connected():
                    self.birth()
                case Message():
                    self._message(event)
                case _:
                    continue
            async with self.changed:
                self.changed.notify_all()

    def _message(self, message: Message) -> None:
        body = self._signed.decode(message.payload).body
        if message.topic.endswith(Down.WORK.value):
            units = self._work.decode(body).units
            self.offers += units
            if self.takes:
                self.verdicts(*(Taken(unit=unit.unit, fence=unit.fence) for unit in units))
            if self.works:
                self.chunks(*(self.finished(unit) for unit in units))
        elif message.topic.endswith(Down.CONTROL.value):
            control: Control = self._control.decode(body)
            self.orders += control.orders
            if any(isinstance(order, Rebirth) for order in control.orders):
                self.birth()
