"""The dispatcher's end of the wire for one car: offers, listens, and answers when told to."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import msgspec
import numpy as np

from edge_runtime.bus import Bus, BusSettings, Connected, Message
from edge_runtime.contract import codec
from edge_runtime.contract.messages import (
    Birth,
    Cancelled,
    Chunk,
    ChunkAnswer,
    Control,
    Desired,
    Fence,
    HostStatus,
    Item,
    ItemDone,
    ItemFailed,
    Offline,
    Order,
    Refused,
    Taken,
    UnitOffer,
    VehicleState,
    WorkOffer,
)
from edge_runtime.contract.package import Package
from edge_runtime.contract.reasons import ChunkVerdict
from edge_runtime.contract.tensors import from_numpy
from edge_runtime.contract.topics import Down, Topics, Up

PATIENCE_S = 60.0


def tensor(*values: float) -> bytes:
    return msgspec.msgpack.encode([from_numpy("x", np.array(values, np.float32))])


def row(width: int) -> bytes:
    return msgspec.msgpack.encode([from_numpy("x", np.full((1, width), -0.5, np.float32))])


def unit_offer(
    package: Package, inputs: Iterable[bytes], unit: int = 1, counter: int = 1, **more: Any
) -> UnitOffer:
    fields: dict[str, Any] = {
        "job": f"job-{unit}",
        "unit": unit,
        "fence": Fence(1, counter),
        "tenant": "anna",
        "purpose": "test",
        "task": "tensor",
        "model": package.digest,
        "items": tuple(
            Item(index=index, media_type="application/octet-stream", data=data)
            for index, data in enumerate(inputs)
        ),
        "parameters": msgspec.Raw(codec.encode({})),
        "deadline_ms": 4_000_000_000_000,
        "remaining_ms": 600_000,
        "lease_ms": 30_000,
    }
    return UnitOffer(**(fields | more))


class ScriptedDispatcher:
    """Everything that one car said, decoded; ways to wait for more, and to answer."""

    def __init__(self, bus: Bus, vehicle: str, topics: Topics) -> None:
        self.bus = bus
        self.vehicle = vehicle
        self.topics = topics
        self.answers_chunks = True
        self.statuses: list[Birth | Offline] = []
        self.states: list[VehicleState] = []
        self.verdicts: list[Taken | Refused | Cancelled] = []
        self.chunks: list[Chunk] = []
        self.raw: list[Message] = []
        self._news = asyncio.Event()
        self._decoders = {
            Up.STATUS: codec.status_decoder(),
            Up.STATE: codec.state_decoder(),
            Up.ACK: codec.acks_decoder(),
            Up.RESULT: codec.results_decoder(),
        }

    async def read(self) -> None:
        async for event in self.bus.events():
            if isinstance(event, Message):
                self._heard(event)
            elif isinstance(event, Connected):
                self._news.set()

    def _heard(self, message: Message) -> None:
        if message.topic.endswith("/canary") or not message.payload:
            return
        self.raw.append(message)
        _, kind = self.topics.parse_up(message.topic)
        decoded = self._decoders[kind].decode(message.payload)
        match kind:
            case Up.STATUS:
                self.statuses.append(decoded)
            case Up.STATE:
                self.states.append(decoded)
            case Up.ACK:
                self.verdicts.extend(decoded.verdicts)
            case Up.RESULT:
                self.chunks.extend(decoded.chunks)
                if self.answers_chunks:
                    self.answer(decoded.chunks)
        self._news.set()

    def answer(self, chunks: Iterable[Chunk]) -> None:
        self.order(
            *(
                ChunkAnswer(
                    unit=chunk.unit,
                    fence=chunk.fence,
                    first_seq=chunk.seq,
                    through_seq=chunk.seq,
                    verdict=ChunkVerdict.STORED,
                )
                for chunk in chunks
            )
        )

    def order(self, *orders: Order) -> None:
        self._send(Down.CONTROL, Control(vehicle=self.vehicle, orders=orders))

    def offer(self, *units: UnitOffer) -> None:
        self._send(Down.WORK, WorkOffer(vehicle=self.vehicle, units=units))

    def desire(self, *models: str) -> None:
        self._send(Down.DESIRED, Desired(vehicle=self.vehicle, models=models))

    def _send(self, kind: Down, body: Any) -> None:
        topic = self.topics.down(self.vehicle, kind)
        self.bus.publish_soon(Message(topic, codec.encode_signed(body)))

    def host(self, models_url: str) -> None:
        status = HostStatus(dispatcher="d", epoch=1, online=True, models_url=models_url)
        message = Message(self.topics.host("d"), codec.encode(status), retain=True)
        self.bus.publish_soon(message)

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def ending(self, unit: int = 1, counter: int = 1) -> Chunk:
        """Wait for the last chunk of an attempt."""
        found: list[Chunk] = []

        def is_here() -> bool:
            found[:] = [c for c in self.of(unit, counter) if c.ending is not None]
            return bool(found)

        await self.until(is_here)
        return found[0]

    def of(self, unit: int = 1, counter: int = 1) -> list[Chunk]:
        return [c for c in self.chunks if (c.unit, c.fence) == (unit, Fence(1, counter))]

    def results(self, unit: int = 1) -> dict[int, ItemDone | ItemFailed]:
        return {item.index: item for c in self.chunks if c.unit == unit for item in c.items}


@contextlib.asynccontextmanager
async def scripted_dispatcher(
    open_bus: Callable[[BusSettings], Bus], url: str, vehicle: str, namespace: str
) -> AsyncIterator[ScriptedDispatcher]:
    topics = Topics(namespace)
    prefix = topics.up(vehicle, Up.STATE).removesuffix(Up.STATE.value)
    settings = BusSettings(
        url=url, client_id=f"{namespace}-script", subscriptions=((f"{prefix}+", 1),)
    )
    async with open_bus(settings) as bus:
        peer = ScriptedDispatcher(bus, vehicle, topics)
        reading = asyncio.create_task(peer.read())
        await peer.until(lambda: bus.is_connected)
        try:
            yield peer
        finally:
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading
