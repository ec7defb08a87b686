"""Nemeses that are at home: clean stops, drains, wishes for models, killer items, old offers."""

import asyncio
import random
from typing import Final

from edge_runtime.bus import BusOverflow, BusSettings, MemoryBus, Message
from edge_runtime.bus.memory import Faults
from edge_runtime.contract import codec
from edge_runtime.contract.limits import SIM_OFFERS_KEPT_MAX
from edge_runtime.contract.messages import Control, Desired, Drain, Fence
from edge_runtime.contract.topics import Down
from edge_runtime.sim.buses import service_url
from edge_runtime.sim.nemesis import HALF, hosts_of, often
from edge_runtime.sim.world import TENANT, World

_KEEP_TELLING_S: Final = 5.0
_WISH_AGAIN_S: Final = 20.0


async def clean_stops(world: World, rng: random.Random) -> None:
    """The dispatcher, or a car, is told to end, as for an upgrade; then it is started again."""

    async def strike() -> None:
        hosts = hosts_of(world)
        busy = [car.host for car in world.cars if car.is_computing]
        host = rng.choice(busy if busy and rng.random() < HALF else hosts)
        if host.is_up:
            kind = "dispatcher_stop" if host is world.dispatcher else "car_stop"
            world.ledger.fault(kind, host.name)
            world.stop(host)

    await often(world, rng, 30, strike)


async def drains(world: World, rng: random.Random) -> None:
    """An operator drains cars for a while; he tells them again and again, as they may forget."""
    draining = {car.name: False for car in world.cars}
    told: set[str] = set()
    settings = BusSettings(service_url("operator"), "er-operator")
    bus = MemoryBus(settings, world.broker, Faults(rng), rng=rng)

    def tell(name: str) -> None:
        is_wanted = draining[name] and not world.is_healed
        control = Control(vehicle=name, orders=(Drain(active=is_wanted),))
        topic = world.topics.down(name, Down.CONTROL)
        if bus.is_connected:
            _publish(world, bus, Message(topic, codec.encode_signed(control)))

    async def keep_telling() -> None:
        async with bus:
            while True:
                await asyncio.sleep(_KEEP_TELLING_S)
                for name in sorted(told):
                    tell(name)

    async def strike() -> None:
        name = rng.choice(sorted(draining))
        told.add(name)
        draining[name] = True
        world.ledger.fault("drain", name)
        tell(name)
        await asyncio.sleep(rng.choice((2.0, 10.0, 30.0)))
        draining[name] = False
        tell(name)

    # Nobody else would say that it is over to a car that was away when faults stopped.
    world.keepers.append(asyncio.ensure_future(keep_telling()))
    await often(world, rng, 10, strike)


async def prefetches(world: World, rng: random.Random) -> None:
    """Cars are told which models to hold ready, on a retained topic of which brokers forget."""
    digest = min(world.packages)
    chosen = [car for car in world.cars if rng.random() < rng.choice((0.5, 1.0))]
    bus = MemoryBus(
        BusSettings(service_url("librarian"), "er-librarian"), world.broker, Faults(rng), rng=rng
    )

    async def keep_wishing() -> None:
        async with bus:
            while True:
                await asyncio.sleep(_WISH_AGAIN_S)
                for car in chosen if bus.is_connected else ():
                    desired = Desired(vehicle=car.name, models=(digest,))
                    topic = world.topics.down(car.name, Down.DESIRED)
                    _publish(world, bus, Message(topic, codec.encode_signed(desired), retain=True))

    for car in chosen:
        world.ledger.fault("desired", car.name)
        car.desired.add(digest)
    world.keepers.append(asyncio.ensure_future(keep_wishing()))


def _publish(world: World, bus: MemoryBus, message: Message) -> None:
    try:
        bus.publish_soon(message)
    except BusOverflow as overflow:
        world.ledger.note(f"{message.topic}: {overflow}")


async def killer_items(world: World, rng: random.Random) -> None:
    """An item ends the process, or the computer, of every car that begins it."""
    datas = [data for job in world.plan if job.tenant == TENANT for data in job.data]
    fatal = rng.choice(datas)
    for car in world.cars:
        car.script.fatal = frozenset({fatal})


async def echoes(world: World, rng: random.Random) -> None:
    """What was offered before comes again, late, as from a broker that redelivers."""
    heard: list[Message] = []
    newest: dict[tuple[str, int], tuple[Fence, Message]] = {}
    signed, work = codec.signed_decoder(), codec.work_decoder()
    ear = BusSettings(service_url("echo"), "er-echo", subscriptions=(("er/1/+/v/+/dn/work", 1),))
    bus = MemoryBus(ear, world.broker, Faults(rng), rng=rng)

    def repeat(old: Message) -> None:
        if bus.is_connected and not world.is_healed:
            world.ledger.fault("echo", old.topic)
            _publish(world, bus, Message(old.topic, old.payload))

    def hear(message: Message) -> None:
        """An offer that has just been overtaken by a newer one of its unit comes right after it."""
        offers = work.decode(signed.decode(message.payload).body)
        for offer in offers.units:
            key = (offers.vehicle, offer.unit)
            fence, before = newest.setdefault(key, (offer.fence, message))
            if fence < offer.fence:
                newest[key] = (offer.fence, message)
                world.loop.call_later(rng.uniform(0.05, 1.0), repeat, before)

    async def listen() -> None:
        async for event in bus.events():
            if isinstance(event, Message):
                hear(event)
                if len(heard) < SIM_OFFERS_KEPT_MAX:
                    heard.append(event)

    async def strike() -> None:
        if heard:
            repeat(rng.choice(heard))

    async with bus:
        listening = asyncio.ensure_future(listen())
        try:
            await often(world, rng, 6, strike)
        finally:
            listening.cancel()


async def small_outboxes(world: World, rng: random.Random) -> None:
    """Cars' buses have room for hardly anything (they read that when they open them)."""
    del world, rng
