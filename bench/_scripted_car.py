"""A car that computes nothing: it takes what it is offered and answers as a bench tells it to.

It speaks the wire through `contract.codec` like any car. Benches of the dispatcher use it, so
that what they measure is the dispatcher and the broker.
"""

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from edge_runtime.bus import Bus, BusSettings, Connected, Message, open_bus
from edge_runtime.contract import codec
from edge_runtime.contract.messages import (
    CONTRACT_VERSION,
    Acks,
    Birth,
    Chunk,
    ChunkAnswer,
    Control,
    Ending,
    ItemDone,
    Results,
    Taken,
    UnitOffer,
    VehicleLimits,
    VehicleState,
    WorkOffer,
)
from edge_runtime.contract.reasons import Availability, Outcome
from edge_runtime.contract.signals import Signals
from edge_runtime.contract.tensors import Tensor
from edge_runtime.contract.topics import Down, Topics, Up

OUTPUT: Final = msgspec.Raw(
    msgspec.msgpack.encode([Tensor("y", "FP32", (1,), b"\x00\x00\x80\x3f")])
)
"""A result as a tensor model gives it."""


class ScriptedCar:
    """One car on the bus. `on_offer` and `on_answer` are called with what arrives."""

    def __init__(self, bus: Bus, vehicle: str, topics: Topics, units_max: int) -> None:
        self._bus = bus
        self.vehicle = vehicle
        self._topics = topics
        self._work_topic = topics.down(vehicle, Down.WORK)
        self._units_max = units_max
        self.tasks: tuple[str, ...] = ("tensor",)
        self._boot = int(time.time())
        self._seq = 0
        self._signed = codec.signed_decoder()
        self._work = codec.work_decoder()
        self._control = codec.control_decoder()
        self.on_offer: Callable[[UnitOffer], None] = lambda _: None
        self.on_answer: Callable[[ChunkAnswer], None] = lambda _: None

    async def run(self) -> None:
        """Introduce itself at every connect and handle what comes, until cancelled."""
        async for event in self._bus.events():
            match event:
                case Connected():
                    self.announce()
                case Message(topic=topic, payload=payload):
                    body = self._signed.decode(payload).body
                    if topic == self._work_topic:
                        self._offered(self._work.decode(body))
                    else:
                        self._ordered(self._control.decode(body))
                case _:
                    pass

    def announce(self) -> None:
        """Birth and a state that takes work."""
        self._seq += 1
        birth = Birth(
            vehicle=self.vehicle,
            boot=self._boot,
            connection=self._seq,
            contract=CONTRACT_VERSION,
            runtime="bench",
            vss="6.0",
            hardware="bench",
            tasks=self.tasks,
            resident=(),
            limits=VehicleLimits(units_max=self._units_max),
        )
        state = VehicleState(
            vehicle=self.vehicle,
            boot=self._boot,
            seq=self._seq,
            at_ms=time.time_ns() // 1_000_000,
            availability=Availability.READY,
            hold=None,
            free_units=self._units_max,
            energy_budget_wh=None,
            signals=Signals(is_parked=True, is_plugged=True, charge_percent=80.0),
        )
        status = Message(self._topics.up(self.vehicle, Up.STATUS), codec.encode(birth), retain=True)
        self._bus.publish_soon(status)
        self._publish(Up.STATE, state)

    def send(self, *chunks: Chunk) -> None:
        """Publish chunks in one message."""
        results = Results(vehicle=self.vehicle, boot=self._boot, chunks=chunks)
        self._publish(Up.RESULT, results)

    def _publish(self, kind: Up, message: object) -> None:
        self._bus.publish_soon(Message(self._topics.up(self.vehicle, kind), codec.encode(message)))

    def _offered(self, offer: WorkOffer) -> None:
        verdicts = tuple(Taken(unit=unit.unit, fence=unit.fence) for unit in offer.units)
        self._publish(Up.ACK, Acks(vehicle=self.vehicle, boot=self._boot, verdicts=verdicts))
        for unit in offer.units:
            self.on_offer(unit)

    def _ordered(self, control: Control) -> None:
        for order in control.orders:
            if isinstance(order, ChunkAnswer):
                self.on_answer(order)


def chunks_of(
    unit: UnitOffer, items_per_chunk: int, item_ms: float = 0.02, output: msgspec.Raw = OUTPUT
) -> list[Chunk]:
    """Every item of a unit done, in chunks."""
    chunks = []
    for seq, start in enumerate(range(0, len(unit.items), items_per_chunk)):
        items = unit.items[start : start + items_per_chunk]
        is_last = start + items_per_chunk >= len(unit.items)
        chunks.append(
            Chunk(
                job=unit.job,
                unit=unit.unit,
                fence=unit.fence,
                model=unit.model,
                seq=seq,
                items=tuple(
                    ItemDone(index=item.index, output=output, busy_ms=item_ms) for item in items
                ),
                busy_ms=item_ms * len(items),
                ending=Ending(outcome=Outcome.COMPLETED) if is_last else None,
            )
        )
    return chunks


@asynccontextmanager
async def scripted_car(
    broker_url: str,
    vehicle: str = "scripted-1",
    *,
    units_max: int = 64,
    fast: bool = True,
    tasks: tuple[str, ...] = ("tensor",),
) -> AsyncIterator[ScriptedCar]:
    """A scripted car that lives inside the block. `fast` picks the dispatcher's MQTT client."""
    topics = Topics()
    settings = BusSettings(
        url=broker_url,
        client_id=vehicle,
        subscriptions=((topics.down_all(vehicle), 1),),
    )
    opening = functools.partial(open_bus, fast=fast)
    async with opening(settings) as bus:
        car = ScriptedCar(bus, vehicle, topics, units_max)
        car.tasks = tasks
        task = asyncio.create_task(car.run(), name="scripted car")
        try:
            yield car
        finally:
            task.cancel()
            await asyncio.wait([task])
