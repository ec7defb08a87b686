"""A nemesis with much to say: jobs and visitors whose inputs and outputs do not travel inline.

Its own faults are of the exchanges: cut in the middle, with other bytes, forbidden by an owner
while they go on, followed by the death of the car; and people who refer to what is not there, or
is somebody else's.
"""

import asyncio
import base64
import contextlib
import hashlib
import random
from collections.abc import AsyncIterator
from functools import partial
from http import HTTPStatus
from typing import Final

import msgspec

from edge_runtime.bus import BusSettings, MemoryBus, Message
from edge_runtime.bus.memory import Faults
from edge_runtime.client.transport import Interrupted
from edge_runtime.contract import codec
from edge_runtime.contract.errors import Rejected
from edge_runtime.contract.messages import (
    Chunk,
    ItemDone,
    Reference,
    Results,
    UnitOffer,
)
from edge_runtime.contract.tensors import Tensor
from edge_runtime.contract.topics import Up
from edge_runtime.sim.buses import service_url
from edge_runtime.sim.car import WIDE, good_signals
from edge_runtime.sim.ledger import BULK
from edge_runtime.sim.nemesis import HALF, often
from edge_runtime.sim.visitors import Visits
from edge_runtime.sim.web import exchange
from edge_runtime.sim.world import NEIGHBOUR, TENANT, Planned, World

_FIRST: Final = 6_000_000
_FIRST_VISIT: Final = 7_000_000
_LARGE_VALUES: Final = 30_000
_WIDE: Final = 0.75
_DAY_S: Final = 86_400.0
_SEQ_OF_NOBODY: Final = 901
_NOT_FOUND: Final = 404
_KINDS: Final = (
    "fetch_cut",
    "upload_cut",
    "wrong_bytes",
    "death",
    "network_forbidden",
    "false_reference",
    "foreign_object",
    "foreign_output",
    "visit",
    "visit",
)


def bulky_item(number: int, *, is_large: bool, is_wide: bool) -> bytes:
    """An item that no other is like, with a large input, a large output, or both."""
    values = _LARGE_VALUES if is_large else 1
    last = WIDE if is_wide else b"\0"
    data = (number.to_bytes(3, "little") + last) * values
    item = msgspec.msgpack.encode([Tensor(name="x", datatype="FP32", shape=(values,), data=data)])
    return bytes(item)


async def bulky(world: World, rng: random.Random) -> None:
    """See the module."""
    number, plan = _FIRST, []
    for job in range(rng.randint(1, 2)):
        data = []
        for _ in range(rng.randint(1, 3)):
            number += 1
            is_wide = rng.random() < _WIDE
            is_large = not is_wide or rng.random() < HALF
            data.append(bulky_item(number, is_large=is_large, is_wide=is_wide))
        after_s = rng.uniform(0, world.scale.faults_s / 2)
        plan.append(Planned(TENANT, f"{BULK}{job}", data, after_s, _DAY_S))
    world.add_requester(BULK, TENANT, plan).start()
    world.exchange_faults.piece_s = rng.choice((0.0, 0.3, 2.0))

    def asked(number: int) -> bytes:
        kind = rng.randrange(3)
        return bulky_item(number, is_large=kind > 0, is_wide=kind < 2)  # noqa: PLR2004 - of three

    visits = Visits(world, rng, "bulky_visitor", _FIRST_VISIT, asked)
    largest = partial(bulky_item, is_large=True, is_wide=True)
    visits.keep_asking(visits.until_answered(largest))
    ear = _Ear(world, rng, visits)
    async with ear.listening():
        await often(world, rng, 4, ear.strike)


class _Ear:
    """Hears every offer, and strikes."""

    def __init__(self, world: World, rng: random.Random, visits: Visits) -> None:
        self._world = world
        self._rng = rng
        self._visits = visits
        self._offers: dict[tuple[int, str], UnitOffer] = {}
        everybody = ("er/1/+/v/+/dn/work", 1)
        settings = BusSettings(service_url("bulk"), BULK, subscriptions=(everybody,))
        self._bus = MemoryBus(settings, world.broker, Faults(rng), rng=rng)

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """While the block runs."""
        async with self._bus:
            task = asyncio.ensure_future(self._listen())
            try:
                yield
            finally:
                task.cancel()

    async def _listen(self) -> None:
        signed, decoder = codec.signed_decoder(), codec.work_decoder()
        async for event in self._bus.events():
            if isinstance(event, Message):
                with contextlib.suppress(Rejected):
                    work = decoder.decode(signed.decode(event.payload).body)
                    self._offers.update(
                        {(x.unit, work.vehicle): x for x in work.units if x.outputs}
                    )

    async def strike(self) -> None:
        """One of the kinds; what an exchange has to come for is counted when it does."""
        world, rng = self._world, self._rng
        match rng.choice(_KINDS):
            case "fetch_cut":
                world.exchange_faults.fetch_cuts += 1
            case "upload_cut":
                world.exchange_faults.upload_cuts += 1
            case "wrong_bytes":
                world.exchange_faults.wrong_bytes += 1
            case "death":
                world.exchange_faults.deaths += 1
            case "network_forbidden":
                await self._forbid()
            case "false_reference":
                self._lie()
            case "foreign_object":
                await self._read_foreign()
            case "visit":
                await self._visits.visit()
            case _:
                await self._put_foreign()

    async def _forbid(self) -> None:
        """The car saves power for a while: it may not use the network."""
        busy = [car for car in self._world.cars if car.is_exchanging]
        car = self._rng.choice(busy or self._world.cars)
        self._world.ledger.fault("network_forbidden", car.name)
        car.truth.signals["power_saving_level"] = _SAVING_LEVEL
        car.changed()
        await asyncio.sleep(self._rng.choice((0.5, 3.0, 20.0)))
        car.truth.signals["power_saving_level"] = good_signals()["power_saving_level"]
        car.changed()

    def _lie(self) -> None:
        """A car's identity refers to what nobody has put."""
        if not self._offers or not self._bus.is_connected:
            return
        (unit, vehicle), offer = self._rng.choice(sorted(self._offers.items(), key=_place))
        sha256 = hashlib.sha256(self._rng.randbytes(8)).hexdigest()
        ref = Reference(sha256=sha256, length=1_000, url=f"{offer.outputs}/{sha256}")
        chunk = Chunk(
            job=offer.job,
            unit=unit,
            fence=offer.fence,
            model=offer.model,
            seq=_SEQ_OF_NOBODY,
            items=(ItemDone(index=offer.items[0].index, output=_NIL, ref=ref),),
        )
        payload = codec.encode(Results(vehicle=vehicle, boot=1, chunks=(chunk,)))
        self._world.ledger.fault("false_reference", vehicle)
        self._world.ledger.doubted[offer.job] += 1
        self._world.ledger.lies.add(payload)
        self._bus.publish_soon(Message(self._world.topics.up(vehicle, Up.RESULT), payload))

    def _of_others(self) -> list[str]:
        kept = self._world.kept / TENANT
        return sorted(path.name for path in kept.iterdir()) if kept.is_dir() else []

    async def _read_foreign(self) -> None:
        """Whoever knows the name of another tenant's object is told that there is none."""
        names = self._of_others()
        if not names:
            return
        name = self._rng.choice(names)
        self._world.ledger.fault("foreign_object", name[:8])
        ticket = self._rng.randbytes(16).hex()
        paths = (f"/objects/{name}", f"/objects/for-cars/{TENANT}/{ticket}/{name}")
        await self._must_be_unknown("GET", self._rng.choice(paths), {"x-tenant": NEIGHBOUR})

    async def _put_foreign(self) -> None:
        """A ticket is of one job: with it nothing is put for another."""
        offers = [offer for _, offer in sorted(self._offers.items(), key=_place)]
        if not offers:
            return
        offer = self._rng.choice(offers)
        self._world.ledger.fault("foreign_output", offer.job)
        parts = offer.outputs.split("/")
        kind = self._rng.choice(("tenant", "ticket", "job"))
        if kind == "tenant":
            parts[3] = TENANT if offer.tenant == NEIGHBOUR else NEIGHBOUR
        elif kind == "ticket":
            parts[4] = self._rng.randbytes(16).hex()
        else:
            parts[5] = f"{offer.job}x"
        headers = {
            "tus-resumable": "1.0.0",
            "upload-length": "3",
            "upload-metadata": f"sha256 {_NAME_OF_NOBODY}",
        }
        await self._must_be_unknown("POST", "/".join(parts), headers)

    async def _must_be_unknown(self, method: str, path: str, headers: dict[str, str]) -> None:
        ledger = self._world.ledger
        try:
            status, _, _ = await exchange(self._world.network, method, path, b"", headers)
        except Interrupted as cut:
            ledger.note(f"{BULK}: {cut}")
            return
        if status != _NOT_FOUND and status < HTTPStatus.INTERNAL_SERVER_ERROR:
            ledger.violated("S10", f"{method} {path[:60]} is answered with {status}")


def _place(entry: tuple[tuple[int, str], UnitOffer]) -> tuple[int, str]:
    return entry[0]


_SAVING_LEVEL: Final = 8
_NIL: Final = msgspec.Raw(b"\xc0")
_NAME_OF_NOBODY: Final = base64.b64encode(hashlib.sha256().hexdigest().encode()).decode()
