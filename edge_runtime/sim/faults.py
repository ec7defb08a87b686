"""Everything that goes wrong, by name.

A nemesis is a coroutine that runs through the fault phase, strikes when its own random source
says so, and counts each strike in the ledger. `heal` undoes whatever is still in force: after it
the world is honest, connected and eligible, and must drain.
"""

import asyncio
import contextlib
import random
import shutil
from typing import Final

import msgspec

from edge_runtime.bus import BusSettings, MemoryBus, Message
from edge_runtime.bus.memory import Faults, Partition
from edge_runtime.client import EdgeClient
from edge_runtime.client.errors import DispatcherRefused, DispatcherUnreachable
from edge_runtime.contract import codec, limits
from edge_runtime.contract.errors import Rejected, RemoteError
from edge_runtime.contract.messages import Chunk, Fence, ItemDone, Results, UnitOffer
from edge_runtime.contract.topics import Up
from edge_runtime.dispatcher.storage import Store, StoreBusy
from edge_runtime.sim.bulk import bulky
from edge_runtime.sim.buses import car_url, overhear, service_url
from edge_runtime.sim.car import good_signals
from edge_runtime.sim.conversations import conversations
from edge_runtime.sim.front import BULKY, CONVERSATIONS, KEYHOLDERS, NIGHT_BATCHES
from edge_runtime.sim.hosts import Host, SimStore, copy_files, cursors_in
from edge_runtime.sim.keyholders import keyholders
from edge_runtime.sim.nemesis import HALF, Nemesis, hosts_of, often
from edge_runtime.sim.night_batches import night_batches
from edge_runtime.sim.stewards import (
    clean_stops,
    drains,
    echoes,
    killer_items,
    prefetches,
    small_outboxes,
)
from edge_runtime.sim.tenants import deleters, neighbours, third_parties, twins
from edge_runtime.sim.visitors import visitors
from edge_runtime.sim.world import TENANT, Car, World

_HOUR_S: Final = 3_600.0
_HOUR_MS: Final = 3_600_000
_CLOCK_SET_S: Final = 5.0
_STALE_CLOCK: Final = 0.4
_NEW_DISK: Final = 0.25
_TELLER_DIES: Final = 0.2
_PARTITIONS: Final = (Partition.TO_BROKER, Partition.FROM_BROKER, Partition.BOTH)


# --- the network ------------------------------------------------------------------------------


async def lossy(world: World, rng: random.Random) -> None:
    """Messages are lost, repeated, delayed and overtake each other, on every connection."""
    for faults in world.all_faults.values():
        faults.loss = rng.choice((0.0, 0.02, 0.2))
        faults.duplicate = rng.choice((0.0, 0.02, 0.3))
        faults.reorder = rng.choice((0.0, 0.1, 0.5))
        faults.delay_max_s = rng.choice((0.0, 0.05, 1.0, 5.0))
    world.network.delay_max_s = rng.choice((0.0, 0.05, 0.5))
    world.network.cut_probability = rng.choice((0.0, 0.02, 0.2))


async def partitions(world: World, rng: random.Random) -> None:
    """A host's way to the broker is cut, in one direction or both."""

    async def strike() -> None:
        name = rng.choice(sorted(world.all_faults))
        how = rng.choice(_PARTITIONS)
        world.ledger.fault(f"partition_{how.value}", name)
        world.all_faults[name].set_partition(how)
        await asyncio.sleep(rng.choice((0.5, 5.0, 20.0, 80.0)))
        world.all_faults[name].set_partition(Partition.NONE)

    await often(world, rng, 15, strike)


async def http_cuts(world: World, rng: random.Random) -> None:
    """Requesters do not reach the dispatcher, and what is open is reset."""

    async def strike() -> None:
        world.ledger.fault("http_cut")
        world.network.is_cut = True
        await asyncio.sleep(rng.choice((0.2, 3.0, 20.0)))
        world.network.is_cut = False

    await often(world, rng, 20, strike)


async def broker_deaths(world: World, rng: random.Random) -> None:
    """The broker dies and comes back with nothing; at times who is to tell it all dies then."""

    async def strike() -> None:
        world.ledger.fault("broker_death")
        world.broker.kill()
        await asyncio.sleep(rng.choice((0.1, 2.0, 15.0)))
        world.broker.start()
        if rng.random() < _TELLER_DIES:
            while world.service is None or not world.service.bus.is_connected:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.05)
            await asyncio.sleep(rng.uniform(0, 0.5))
            world.ledger.fault("death_before_it_told_all")
            world.kill(world.dispatcher, 0.5)

    await often(world, rng, 25, strike)


async def takeovers(world: World, rng: random.Random) -> None:
    """Somebody else connects under a host's client id."""

    async def strike() -> None:
        victim = world.client_id(rng.choice(hosts_of(world)))
        world.ledger.fault("takeover", victim)
        async with MemoryBus(
            BusSettings(service_url("thief"), victim), world.broker, rng=rng
        ) as bus:
            await asyncio.sleep(0.2)
            del bus

    await often(world, rng, 30, strike)


async def refusals(world: World, rng: random.Random) -> None:
    """The broker refuses a host's publishes for a while."""

    async def strike() -> None:
        name = rng.choice(sorted(world.all_faults))
        faults = world.all_faults[name]
        faults.refused = (rng.choice(("er/1/+/v/+/up/+", "er/1/t/#", "er/1/+/v/+/dn/+")),)
        before = faults.fired["refused"]
        await asyncio.sleep(rng.choice((1.0, 10.0)))
        faults.refused = ()
        for _ in range(faults.fired["refused"] - before):
            world.ledger.fault("refused_publish", name)

    await often(world, rng, 20, strike)


async def expiries(world: World, rng: random.Random) -> None:
    """The broker forgets a session, queued messages and all."""

    async def strike() -> None:
        victim = world.client_id(rng.choice(hosts_of(world)))
        if world.broker.expire(victim):
            world.ledger.fault("session_expiry", victim)

    await often(world, rng, 25, strike)


async def newer_peers(world: World, rng: random.Random) -> None:
    """A car speaks the wire of a later release for a while."""

    async def strike() -> None:
        world.broker.newer = rng.choice(world.cars).name
        world.ledger.fault("newer_peer", world.broker.newer)
        await asyncio.sleep(rng.choice((5.0, 30.0)))
        world.broker.newer = ""

    await often(world, rng, 20, strike)


# --- processes --------------------------------------------------------------------------------


async def dispatcher_kills(world: World, rng: random.Random) -> None:
    """The dispatcher is killed at a moment, or between any two of its steps."""

    async def strike() -> None:
        restart_s = rng.choice((0.05, 1.0, 10.0, 40.0))
        if rng.random() < HALF:
            world.ledger.fault("dispatcher_kill")
            world.kill(world.dispatcher, restart_s)
            return
        left = rng.randint(1, 400)

        def at_step(_: int) -> None:
            nonlocal left
            left -= 1
            if left <= 0 and not world.is_healed:
                world.loop.before_step = None
                world.ledger.fault("dispatcher_kill_at_step")
                world.kill(world.dispatcher, restart_s)

        world.loop.before_step = at_step

    await often(world, rng, 15, strike)


async def car_kills(world: World, rng: random.Random) -> None:
    """A car's process is killed, or the car loses power and boots."""

    async def strike() -> None:
        car = rng.choice(world.cars)
        if rng.random() < HALF:
            world.ledger.fault("car_kill", car.name)
        else:
            world.ledger.fault("car_reboot", car.name)
            car.host.booted_at_s, car.host.slept_s = world.loop.time(), 0.0
        world.kill(car.host, rng.choice((0.1, 3.0, 30.0)))

    await often(world, rng, 10, strike)


async def requester_kills(world: World, rng: random.Random) -> None:
    """The requesters die and come back with their keys and cursors."""

    async def strike() -> None:
        world.ledger.fault("requester_kill")
        back_s = rng.choice((0.1, 5.0, 60.0))
        for requester in world.requesters:
            requester.kill()
            world.loop.call_later(back_s, requester.start)

    await often(world, rng, 30, strike)


async def pauses(world: World, rng: random.Random) -> None:
    """A process is stopped, and goes on when its lease may be over."""

    async def strike() -> None:
        host = rng.choice(hosts_of(world))
        seconds = rng.choice((2.0, 20.0, 60.0, 150.0))
        world.ledger.fault("pause", f"{host.name} {seconds:g} s")
        host.pause(seconds)

    await often(world, rng, 25, strike)


async def second_dispatcher(world: World, rng: random.Random) -> None:
    """Another dispatcher is started on the same store: it must give up."""

    async def strike() -> None:
        if not world.dispatcher.is_up or world.service is None:
            return
        first = world.service.store
        store = SimStore(world.dispatcher)
        is_held = _holds(first, store)
        try:
            await store.open(world.dispatcher.now().utc_ms // 1000)
        except StoreBusy:
            world.ledger.fault("second_dispatcher")
        else:
            if is_held and _holds(first, store):
                world.ledger.violated("S6", "two dispatchers hold one store")
            await store.close()
            # It may have come between two lives of the first.
            world.ledger.rare["store_was_free"] += 1

    await often(world, rng, 30, strike)


def _holds(first: Store, second: SimStore) -> bool:
    """Whether the first has open what the second wants."""
    return isinstance(first, SimStore) and first.is_open and first.path == second.path


async def clock_jumps(world: World, rng: random.Random) -> None:
    """A host's UTC jumps by an hour, and back some time later."""

    async def strike() -> None:
        host = rng.choice(hosts_of(world))
        jump_ms = rng.choice((-1, 1)) * _HOUR_MS
        world.ledger.fault("clock_jump", f"{host.name} {jump_ms}")
        host.utc_offset_ms += jump_ms
        await asyncio.sleep(rng.choice((1.0, 30.0)))
        host.utc_offset_ms -= jump_ms

    await often(world, rng, 30, strike)


async def suspends(world: World, rng: random.Random) -> None:
    """A car wakes from an hour of sleep: its boot time has gone on, its timers have not."""

    async def strike() -> None:
        car = rng.choice(world.cars)
        world.ledger.fault("suspend", car.name)
        car.host.slept_s += _HOUR_S

    await often(world, rng, 60, strike)


# --- disks ------------------------------------------------------------------------------------


async def full_disks(world: World, rng: random.Random) -> None:
    """A host's disk has no room for a while."""

    async def strike() -> None:
        host = rng.choice(hosts_of(world))
        world.ledger.fault("disk_full", host.name)
        host.disk.is_full = True
        await asyncio.sleep(rng.choice((0.5, 10.0)))
        host.disk.is_full = False

    await often(world, rng, 20, strike)


async def failing_disks(world: World, rng: random.Random) -> None:
    """A host's disk answers with I/O errors for a while."""

    async def strike() -> None:
        host = rng.choice(hosts_of(world))
        world.ledger.fault("disk_error", host.name)
        host.disk.is_failing = True
        await asyncio.sleep(rng.choice((0.02, 1.0, 8.0)))
        host.disk.is_failing = False

    await often(world, rng, 20, strike)


async def power_cuts(world: World, rng: random.Random) -> None:
    """Power goes: the process and every write that was not synced."""

    async def strike() -> None:
        host = rng.choice(hosts_of(world))
        if not host.is_up:
            return
        host.watch_syncs()
        await asyncio.sleep(rng.choice((0.5, 3.0)))
        if world.is_healed or not host.is_up:
            host.image = None
            return
        world.ledger.fault("power_cut", host.name)
        world.kill(host, rng.choice((1.0, 10.0)), cuts_power=True)

    await often(world, rng, 20, strike)


async def stale_journals(world: World, rng: random.Random) -> None:
    """A car's disk goes back to an earlier state, as after a restored image, or is a new one.

    In some of these cars the clock stands still while they are off, until the network sets it.
    """

    async def strike() -> None:
        car = rng.choice(world.cars)
        saved = world.folder / f"{car.name}.image.{rng.getrandbits(32)}"
        copy_files(car.host.folder, saved)
        await asyncio.sleep(rng.choice((3.0, 20.0)))
        if world.is_healed or not car.host.is_up:
            return
        if rng.random() < _STALE_CLOCK:
            world.ledger.fault("stale_clock", car.name)
            car.host.utc_offset_ms -= _HOUR_MS
            world.loop.call_later(_CLOCK_SET_S, _set_clock_right, car.host)
        if rng.random() < _NEW_DISK:
            world.ledger.fault("new_disk", car.name)
            world.kill(car.host, 1.0)
            for name in ("journal.db", "journal.db-wal", "journal.db-shm"):
                (car.host.folder / name).unlink(missing_ok=True)
            return
        world.ledger.fault("stale_journal", car.name)
        world.kill(car.host, 1.0)
        for file in saved.iterdir():
            if file.is_file():  # not the folders of what is under way
                (car.host.folder / file.name).write_bytes(file.read_bytes())
        if not (saved / "journal.db-wal").exists():
            (car.host.folder / "journal.db-wal").unlink(missing_ok=True)

    await often(world, rng, 40, strike)


async def restored_backups(world: World, rng: random.Random) -> None:
    """The dispatcher's store is replaced by an older backup of it; once is enough for a world.

    Whoever does that looks at the clock first: an older store and a clock that is back, or still
    in the second in which the last dispatcher started, agree on an epoch that was given out.
    """
    await asyncio.sleep(rng.uniform(5, world.scale.faults_s / 2))
    host = world.dispatcher
    backup = world.folder / "dispatcher.backup"
    copy_files(host.folder, backup)
    await asyncio.sleep(rng.uniform(1, world.scale.faults_s / 3))
    if world.is_healed or not host.is_up:
        return
    world.ledger.fault("restored_backup")
    restart_s = rng.choice((0.5, 10.0))
    epoch = 0 if world.service is None else world.service.core.state.epoch
    world.loop.call_later(restart_s, _set_clock_right, host, epoch)
    world.kill(host, restart_s)
    shutil.rmtree(host.folder)
    copy_files(backup, host.folder)
    for requester in world.requesters:
        requester.kill()
    kept = cursors_in(host.folder / "dispatcher.db")
    world.ledger.restored(kept)
    back_s = rng.choice((0.1, 20.0))
    for requester in world.requesters:
        world.loop.call_later(back_s, requester.start)


def _set_clock_right(host: Host, last_epoch: int = 0) -> None:
    """Not behind, and beyond the moment for which the last dispatcher's epoch stands."""
    behind_ms = (last_epoch + 1) * 1_000 - host.now().utc_ms
    host.utc_offset_ms = max(0, host.utc_offset_ms, host.utc_offset_ms + behind_ms)


# --- owners and hardware ----------------------------------------------------------------------


async def owners(world: World, rng: random.Random) -> None:
    """Owners come back, unplug, withdraw consent; computers get hot."""

    async def strike() -> None:
        car = rng.choice(world.cars)
        kind = rng.choice(("owner_returns", "thermal_trip", "unplug", "consent_withdrawn"))
        world.ledger.fault(kind, car.name)
        signals = car.truth.signals
        match kind:
            case "owner_returns":
                change: dict[str, object] = dict(rng.choice(_OWNER_IS_THERE))
            case "thermal_trip":
                change = {"compute_temperature_c": 95.0}
            case "unplug":
                change = {"is_plugged": False}
            case _:
                change = {}
                car.truth.has_consent = False
                car.write_policy()
        before = {name: good_signals()[name] for name in change}
        signals.update(change)  # type: ignore[arg-type] # values of the same kinds
        car.changed()
        await asyncio.sleep(rng.choice((0.3, 2.0, 20.0)))
        signals.update(before)
        if kind == "consent_withdrawn":
            car.truth.has_consent = True
            car.write_policy()
        car.changed()

    await often(world, rng, 6, strike)


async def broken_sensors(world: World, rng: random.Random) -> None:
    """A signal falls silent or turns absurd."""

    async def strike() -> None:
        car = rng.choice(world.cars)
        name = rng.choice(("charge_percent", "is_parked", "compute_temperature_c"))
        if rng.random() < HALF or name == "is_parked":
            world.ledger.fault("sensor_stale", f"{car.name} {name}")
            car.sensors.mute.add(name)
            if rng.random() < HALF:
                car.truth.signals[name] = _BEHIND_A_DEAD_SENSOR[name]
                car.changed(tell=False)
        else:
            world.ledger.fault("sensor_absurd", f"{car.name} {name}")
            car.sensors.absurd[name] = rng.choice((-1e9, 1e9, float("nan"), float("inf")))
        await asyncio.sleep(rng.choice((2.0, 12.0)))
        car.sensors.mute.clear()
        car.sensors.absurd.clear()
        car.truth.signals[name] = good_signals()[name]
        car.changed()

    await often(world, rng, 20, strike)


async def engines(world: World, rng: random.Random) -> None:
    """Items hang or kill the engine; some do so on every car, some are undecodable."""
    datas = [data for job in world.plan if job.tenant == TENANT for data in job.data]
    poison = frozenset(rng.sample(datas, min(2, len(datas))))
    broken = frozenset(rng.sample(datas, min(2, len(datas)))) - poison
    hang, crash = rng.choice((0.0, 0.02, 0.1)), rng.choice((0.0, 0.02, 0.1))
    for car in world.cars:
        car.script.poison, car.script.broken = poison, broken
        car.script.hang, car.script.crash = hang, crash


async def slow_packages(world: World, rng: random.Random) -> None:
    """Packages cannot be fetched for a while."""

    async def strike() -> None:
        world.ledger.fault("package_server_down")
        world.is_fetch_failing = True
        for car in world.cars:
            car.held.clear()
        await asyncio.sleep(rng.choice((1.0, 20.0)))
        world.is_fetch_failing = False

    await often(world, rng, 40, strike)


# --- operators and requesters -----------------------------------------------------------------


async def operators(world: World, rng: random.Random) -> None:
    """People cancel jobs, requeue dead letters, put cars into quarantine and take them out."""

    async def strike() -> None:
        jobs = sorted(job.job for job in world.ledger.jobs.values() if job.tenant == TENANT)
        kind = rng.choice(("cancel", "requeue", "quarantine"))
        async with world.client("operator") as client:
            try:
                if kind == "quarantine":
                    car = rng.choice(world.cars).name
                    world.ledger.fault(kind, car)
                    world.quarantined.add(car)
                    await client.quarantine(car)
                    await asyncio.sleep(rng.choice((0.5, 10.0)))
                    await client.quarantine(car, on=False)
                elif jobs and kind == "cancel" and rng.random() < HALF:
                    job = rng.choice(jobs)
                    world.ledger.fault(kind, job)
                    status = await client.cancel(job)
                    world.ledger.cancelled.setdefault(job, status.last_cursor)
                elif kind == "requeue" and (
                    failed := [job for job in jobs if _has_dead(world, job)]
                ):
                    await _requeue(world, client, rng.choice(failed))
            except DispatcherUnreachable as error:
                world.ledger.note(f"operator: {error}")
            except DispatcherRefused as error:
                # A car that never connected, a disk that is full: said, not hidden.
                world.ledger.note(f"operator: {error}")

    await often(world, rng, 12, strike)


def _has_dead(world: World, job: str) -> bool:
    submitted = world.ledger.jobs[job]
    return submitted.is_done and any(not seen.ok for seen in submitted.read)


async def _requeue(world: World, client: EdgeClient, job: str) -> None:
    submitted = world.ledger.jobs[job]
    world.ledger.fault("requeue", job)
    submitted.was_requeued, submitted.was_read_again = True, False
    try:
        await client.requeue(job)
    finally:  # it may have come to pass although nobody heard
        submitted.is_done = False


# --- hostile peers ----------------------------------------------------------------------------


async def liars(world: World, rng: random.Random) -> None:
    """A car's identity is used to send what the car would not."""
    buses = {}
    async with contextlib.AsyncExitStack() as stack:
        for car in world.cars:
            settings = BusSettings(car_url(car.name), f"liar-{car.name}", subscriptions=(("#", 1),))
            bus = MemoryBus(settings, world.broker, Faults(rng), rng=rng)
            buses[car.name] = await stack.enter_async_context(bus)
            canary = world.topics.canary(car.name)
            own = (world.topics.down_all(car.name).rstrip("#+"), canary, "er/1/host/")
            listening = overhear(bus, world.ledger, f"the liar of {car.name}", own)
            world.keepers.append(asyncio.ensure_future(listening))

        async def strike() -> None:
            car = rng.choice(world.cars)
            kind, message = _lie(world, rng, car)
            world.ledger.fault(kind, car.name)
            if buses[car.name].is_connected:
                world.ledger.lies.add(message.payload)
                buses[car.name].publish_soon(message)

        await often(world, rng, 3, strike)


def _lie(world: World, rng: random.Random, car: Car) -> tuple[str, Message]:
    topic = world.topics.up(car.name, Up.RESULT)
    kind = rng.choice(("malformed", "oversize", "wrong_attempt", "old_fence", "other_car"))
    match kind:
        case "malformed":
            topic = world.topics.up(car.name, rng.choice(list(Up)))
            return kind, Message(topic, rng.randbytes(rng.randint(0, 200)))
        case "oversize":
            return kind, Message(topic, bytes(limits.MESSAGE_MAX_BYTES))
        case "other_car":
            other = rng.choice(world.cars)
            return kind, Message(topic, _false_result(world, rng, other.name, kind))
        case _:
            return kind, Message(topic, _false_result(world, rng, car.name, kind))


def _false_result(world: World, rng: random.Random, vehicle: str, kind: str) -> bytes:
    """A chunk for an attempt that this car does not have."""
    ledger = world.ledger
    units = sorted(ledger.fences)
    unit = rng.choice(units) if units else 1
    fences = [f for f, owner in ledger.fences.get(unit, {}).items() if owner != vehicle]
    fence = rng.choice(sorted(fences)) if fences and kind != "old_fence" else Fence(1, 1)
    job = rng.choice(sorted(ledger.jobs)) if ledger.jobs else "j0"
    chunk = Chunk(
        job=job,
        unit=unit,
        fence=fence,
        model=next(iter(world.packages)),
        seq=0,
        items=tuple(ItemDone(index=n, output=_LIE) for n in range(3)),
    )
    return codec.encode(Results(vehicle=vehicle, boot=1, chunks=(chunk,)))


async def eavesdroppers(world: World, rng: random.Random) -> None:
    """Who hears every offer answers for other cars, and for items that were not in it."""
    faults = Faults(rng)
    settings = BusSettings(service_url("ear"), "ear", subscriptions=(("er/1/+/v/+/dn/work", 1),))
    offers: dict[tuple[int, Fence], tuple[str, UnitOffer]] = {}
    # Of an attempt that is offered again only what is still open is named; all of it was issued.
    issued: dict[tuple[int, Fence], set[int]] = {}
    signed, decoder = codec.signed_decoder(), codec.work_decoder()

    async def listen() -> None:
        async for event in bus.events():
            if isinstance(event, Message):
                with contextlib.suppress(Rejected):
                    work = decoder.decode(signed.decode(event.payload).body)
                    offers.update({(x.unit, x.fence): (work.vehicle, x) for x in work.units})
                    for x in work.units:
                        issued.setdefault((x.unit, x.fence), set()).update(i.index for i in x.items)

    async def strike() -> None:
        if not offers or not bus.is_connected:
            return
        known = [offers[key] for key in sorted(offers)]
        vehicle, offer = rng.choice(known)
        items = {item.index for item in offer.items}
        kind = rng.choice(("wrong_attempt", "foreign_item"))
        if kind == "wrong_attempt":
            vehicle = rng.choice([car.name for car in world.cars if car.name != vehicle] or [""])
        else:
            ours = (other for _, other in known if other.job == offer.job)
            items = {item.index for other in ours for item in other.items}
            items -= issued[offer.unit, offer.fence]
        if vehicle and items:
            world.ledger.fault(kind, vehicle)
            payload = _stolen(vehicle, offer, items)
            world.ledger.lies.add(payload)
            bus.publish_soon(Message(world.topics.up(vehicle, Up.RESULT), payload))

    bus = MemoryBus(settings, world.broker, faults, rng=rng)
    async with bus:
        listening = asyncio.ensure_future(listen())
        try:
            await often(world, rng, 2, strike)
        finally:
            listening.cancel()


def _stolen(vehicle: str, offer: UnitOffer, items: set[int]) -> bytes:
    """False results of an attempt, in a chunk whose number no true one has."""
    chunk = Chunk(
        job=offer.job,
        unit=offer.unit,
        fence=offer.fence,
        model=offer.model,
        seq=_SEQ_OF_NOBODY,
        items=tuple(ItemDone(index=index, output=_LIE) for index in sorted(items)),
    )
    return codec.encode(Results(vehicle=vehicle, boot=1, chunks=(chunk,)))


# --- readers ------------------------------------------------------------------------------------


async def feed_readers(world: World, rng: random.Random) -> None:
    """Somebody reads the feed of all jobs, from its beginning, with pauses and in new streams."""
    ledger = world.ledger

    async def read() -> None:
        async with world.client("feed reader") as client:
            while True:
                position = ledger.feed[-1][0] if ledger.feed else 0
                try:
                    async with asyncio.timeout(rng.choice((1.0, 10.0, 60.0))):
                        async for entry in client.feed(position):
                            ledger.feed.append((entry.position, entry.job, entry.result.cursor))
                except (RemoteError, TimeoutError) as error:
                    ledger.note(f"feed: {error!r}")

    # It reads on when faults have stopped.
    ledger.readers.append(asyncio.ensure_future(read()))


_BEHIND_A_DEAD_SENSOR: Final[dict[str, float | bool]] = {
    "charge_percent": 10.0,
    "is_parked": False,
    "compute_temperature_c": 95.0,
}
_OWNER_IS_THERE: Final = (
    {"is_occupied": True, "is_parked": False},
    {"is_occupied": True},
    {"is_parked": False},
)
_SEQ_OF_NOBODY: Final = 900
_LIE: Final = msgspec.Raw(msgspec.msgpack.encode("a lie"))

NEMESES: Final[dict[str, Nemesis]] = {
    "lossy": lossy,
    "partitions": partitions,
    "http_cuts": http_cuts,
    "broker_deaths": broker_deaths,
    "takeovers": takeovers,
    "expiries": expiries,
    "newer_peers": newer_peers,
    "refusals": refusals,
    "dispatcher_kills": dispatcher_kills,
    "car_kills": car_kills,
    "requester_kills": requester_kills,
    "pauses": pauses,
    "second_dispatcher": second_dispatcher,
    "clock_jumps": clock_jumps,
    "suspends": suspends,
    "full_disks": full_disks,
    "failing_disks": failing_disks,
    "power_cuts": power_cuts,
    "stale_journals": stale_journals,
    "restored_backups": restored_backups,
    "owners": owners,
    "broken_sensors": broken_sensors,
    "engines": engines,
    "slow_packages": slow_packages,
    "operators": operators,
    "liars": liars,
    "eavesdroppers": eavesdroppers,
    "feed_readers": feed_readers,
    "neighbours": neighbours,
    "twins": twins,
    "deleters": deleters,
    "third_parties": third_parties,
    "clean_stops": clean_stops,
    "drains": drains,
    "prefetches": prefetches,
    "killer_items": killer_items,
    "echoes": echoes,
    "small_outboxes": small_outboxes,
    "visitors": visitors,
    CONVERSATIONS: conversations,
    KEYHOLDERS: keyholders,
    NIGHT_BATCHES: night_batches,
    BULKY: bulky,
}

RARER: Final = frozenset(
    {
        "neighbours",
        "twins",
        "deleters",
        "third_parties",
        "clean_stops",
        "drains",
        "prefetches",
        "killer_items",
        "echoes",
        "small_outboxes",
        "visitors",
        BULKY,
    }
)
"""Those that take part half as often: they bring jobs, readers and restarts, which cost time."""

RAREST: Final = frozenset({CONVERSATIONS, KEYHOLDERS, NIGHT_BATCHES})
"""Those that take part half as often again."""

FAULT_KINDS: Final = (
    "loss",
    "duplicate",
    "delay",
    "reorder",
    "partition_to_broker",
    "partition_from_broker",
    "partition_both",
    "http_cut",
    "broker_death",
    "takeover",
    "session_expiry",
    "queue_overflow",
    "newer_peer",
    "refused_publish",
    "dispatcher_kill",
    "dispatcher_kill_at_step",
    "car_kill",
    "car_reboot",
    "requester_kill",
    "pause",
    "second_dispatcher",
    "clock_jump",
    "suspend",
    "disk_full",
    "disk_error",
    "power_cut",
    "stale_journal",
    "stale_clock",
    "new_disk",
    "death_before_it_told_all",
    "restored_backup",
    "owner_returns",
    "thermal_trip",
    "unplug",
    "consent_withdrawn",
    "sensor_stale",
    "sensor_absurd",
    "engine_hang",
    "engine_crash",
    "package_server_down",
    "cancel",
    "requeue",
    "quarantine",
    "malformed",
    "oversize",
    "wrong_attempt",
    "old_fence",
    "other_car",
    "foreign_item",
    "foreign_request",
    "foreign_fetch",
    "twin_submit",
    "other_body",
    "rival_bodies",
    "delete",
    "delete_and_requeue",
    "delete_and_kill",
    "fetch_since",
    "subscription_resumed",
    "dispatcher_stop",
    "car_stop",
    "drain",
    "desired",
    "item_crashes_car",
    "item_reboots_car",
    "echo",
    "outbox_overflow",
    "visitor_asks",
    "visitor_leaves",
    "visitor_hurries",
    "bulky_visitor_asks",
    "bulky_visitor_leaves",
    "bulky_visitor_hurries",
    "conversation",
    "listener_leaves",
    "text_disturbed",
    "text_moved",
    "tokens_of_old_fence",
    "tokens_of_other_car",
    "key_made",
    "key_used",
    "key_revoked",
    "revoked_key_used",
    "key_guessed",
    "operators_revoke_each_other",
    "upload",
    "batch",
    "batch_cancelled",
    "batch_and_kill",
    "batch_ends_completed",
    "batch_ends_cancelled",
    "batch_ends_expired",
    "upload_cut",
    "fetch_cut",
    "wrong_bytes",
    "crash_after_upload",
    "network_forbidden",
    "exchange_broken_off",
    "false_reference",
    "foreign_object",
    "foreign_output",
)
"""Every kind that a campaign must have seen fire."""


async def end_quarantine(world: World) -> None:
    """Let every car out that was ever in quarantine: a restored store may have it there again."""
    waiting = sorted(world.quarantined)
    async with world.client("operator") as client:
        while waiting:
            try:
                await client.quarantine(waiting[-1], on=False)
            except DispatcherUnreachable:
                await asyncio.sleep(1.0)
                continue
            except DispatcherRefused as error:  # one that has never connected
                world.ledger.note(f"operator: {error}")
            waiting.pop()


def heal(world: World) -> None:
    """End every fault: from now on the world is honest, connected and eligible."""
    world.is_healed = True
    world.loop.before_step = None
    for faults in world.all_faults.values():
        faults.loss = faults.duplicate = faults.reorder = faults.delay_max_s = 0.0
        faults.refused = ()
        faults.set_partition(Partition.NONE)
    world.network.delay_max_s = world.network.cut_probability = 0.0
    world.network.is_cut = False
    world.broker.start()
    world.broker.newer = ""
    world.is_fetch_failing = False
    world.exchange_faults.heal()
    for host in hosts_of(world):
        host.utc_offset_ms = 0
        host.disk.is_full = host.disk.is_failing = False
        host.resume()
    for car in world.cars:
        car.script.hang = car.script.crash = 0.0
        car.sensors.mute.clear()
        car.sensors.absurd.clear()
        car.truth.signals.update(type(car.truth)(world.loop).signals)
        if not car.truth.has_consent:
            car.truth.has_consent = True
            car.write_policy()
        car.changed()
    for host in (*hosts_of(world), *world.requesters):
        if not host.is_up:
            host.start()
