"""A dispatcher that always has work for one car: it offers, answers, and offers again.

Invariants
- It speaks the contract's messages over the bus and nothing else, as the real one does.
- What is offered lies within the owner's own lists (`allowed`): a trial of the policy must not end
  at a made-up tenant.
- After a refusal nothing is offered until the car tells its state again: a car that refuses
  everything is not asked in a circle.

Deliberately absent: a store, placement, leases, and everything else that decides between cars.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edge_runtime.bus import Bus, BusSettings, Message
from edge_runtime.contract import codec
from edge_runtime.contract.clock import Now
from edge_runtime.contract.messages import (
    Chunk,
    ChunkAnswer,
    Control,
    Fence,
    Item,
    Taken,
    UnitOffer,
    WorkOffer,
)
from edge_runtime.contract.package import Manifest, ModelSpec, Package
from edge_runtime.contract.reasons import ChunkVerdict, Outcome
from edge_runtime.contract.topics import Down, Topics, Up
from edge_runtime.vehicle.policy import Allowed

UNIT_ITEMS: Final = 5
_UNITS_AT_ONCE: Final = 2
_NAME: Final = "plenty"
_TASK: Final = "tensor"
_FENCE: Final = Fence(1, 1)
_LEASE_MS: Final = 120_000
_DEADLINE_MS: Final = 3_600_000
_NO_PARAMETERS: Final = msgspec.Raw(msgspec.msgpack.encode({}))


class Plenty:
    """Work without end for `vehicle`, and the count of what came of it."""

    def __init__(self, vehicle: str, clock: Callable[[], Now], allowed: Allowed) -> None:
        self.taken = self.completed = self.given_back = self.items = 0
        self.package = _package(allowed)
        self._vehicle = vehicle
        self._clock = clock
        self._tenant = next(iter(allowed.tenants), _NAME)
        self._purpose = next(iter(allowed.purposes), _NAME)
        self._topics = Topics()
        self._kinds = {self._topics.up(vehicle, kind): kind for kind in Up}
        self._offered: set[int] = set()
        self._next_unit = 1
        self._unit_items = UNIT_ITEMS
        self._is_open = False
        self._state = codec.state_decoder()
        self._acks = codec.acks_decoder()
        self._results = codec.results_decoder()

    def bus_settings(self) -> BusSettings:
        """Under which name it connects, and what it hears."""
        heard = tuple((topic, 1) for topic in self._kinds)
        return BusSettings(url=f"memory://{_NAME}", client_id=_NAME, subscriptions=heard)

    async def serve(self, bus: Bus) -> None:
        """Until cancelled."""
        async for event in bus.events():
            if isinstance(event, Message):
                self._heard(bus, self._kinds[event.topic], event.payload)

    def _heard(self, bus: Bus, kind: Up, payload: bytes) -> None:
        match kind:
            case Up.STATUS:
                return
            case Up.STATE:
                self._is_open = self._state.decode(payload).hold is None
                if not self._is_open:
                    self._unit_items = UNIT_ITEMS
            case Up.ACK:
                for verdict in self._acks.decode(payload).verdicts:
                    if isinstance(verdict, Taken):
                        self.taken += 1
                    else:
                        # What is left of a budget may be enough for less.
                        self._unit_items = 1
                        self._offered.discard(verdict.unit)
                        self._is_open = False
            case Up.RESULT:
                chunks = self._results.decode(payload).chunks
                orders = tuple(self._answer(chunk) for chunk in chunks)
                self._say(bus, Down.CONTROL, Control(vehicle=self._vehicle, orders=orders))
        units = tuple(self._units())
        if units:
            self._say(bus, Down.WORK, WorkOffer(vehicle=self._vehicle, units=units))

    def _answer(self, chunk: Chunk) -> ChunkAnswer:
        self.items += len(chunk.items)
        if chunk.ending is not None:
            self._offered.discard(chunk.unit)
            if chunk.ending.outcome is Outcome.COMPLETED:
                self.completed += 1
            else:
                self.given_back += 1
        return ChunkAnswer(
            unit=chunk.unit,
            fence=chunk.fence,
            first_seq=chunk.seq,
            through_seq=chunk.seq,
            verdict=ChunkVerdict.STORED,
        )

    def _units(self) -> list[UnitOffer]:
        """What the car has room for, now reckoned as offered."""
        units = []
        while self._is_open and len(self._offered) < _UNITS_AT_ONCE:
            number, self._next_unit = self._next_unit, self._next_unit + 1
            self._offered.add(number)
            units.append(self._unit(number))
        return units

    def _unit(self, number: int) -> UnitOffer:
        first = number * UNIT_ITEMS
        return UnitOffer(
            job=_NAME,
            unit=number,
            fence=_FENCE,
            tenant=self._tenant,
            purpose=self._purpose,
            task=_TASK,
            model=self.package.digest,
            items=tuple(
                Item(index=index, media_type="text/plain", data=str(first + index).encode())
                for index in range(self._unit_items)
            ),
            parameters=_NO_PARAMETERS,
            deadline_ms=self._clock().utc_ms + _DEADLINE_MS,
            remaining_ms=_DEADLINE_MS,
            lease_ms=_LEASE_MS,
        )

    def _say(self, bus: Bus, kind: Down, message: WorkOffer | Control) -> None:
        topic = self._topics.down(self._vehicle, kind)
        bus.publish_soon(Message(topic, codec.encode_signed(message)))


def _package(allowed: Allowed) -> Package:
    """A package in name only: the simulated engine opens no file."""
    manifest = Manifest(files=())
    spec = ModelSpec(
        name=_NAME,
        version="1",
        task=_TASK,
        licence="none",
        source="",
        files={},
        reference_ms=1.0,
        memory_bytes=0,
        inputs=(),
        outputs=(),
    )
    digest = next(iter(allowed.models), manifest.digest)
    return Package(folder=Path(), manifest=manifest, spec=spec, digest=digest)
