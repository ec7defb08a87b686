"""Nemeses that are people with accounts: strangers, twins, those who forget, third parties."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

from edge_runtime.bus import BusOverflow, BusSettings, MemoryBus, Message
from edge_runtime.bus.memory import Faults
from edge_runtime.client import EdgeClient
from edge_runtime.client.errors import DispatcherRefused, DispatcherUnreachable, JobRefused
from edge_runtime.contract import codec
from edge_runtime.contract.errors import RemoteError
from edge_runtime.contract.messages import FetchSince, JobStatus
from edge_runtime.sim.buses import overhear, tenant_url
from edge_runtime.sim.nemesis import HALF, often
from edge_runtime.sim.subscriber import Subscriber
from edge_runtime.sim.third_party import ThirdParty
from edge_runtime.sim.world import (
    FICKLE,
    NEIGHBOUR,
    TENANT,
    Planned,
    World,
    is_passing,
    tensor_item,
)

_RIVAL: Final = "rival"
_DAY_S: Final = 86_400.0
_CONFLICT: Final = 409
_UNKNOWN: Final = 404
_FIRST_OF_NEIGHBOUR: Final = 1_000_000
_FIRST_OF_FICKLE: Final = 2_000_000
_FIRST_OF_RIVAL: Final = 3_000_000
_FEED_LOOK_S: Final = 2.0
_KNOWN: Final = 0.75


# --- another tenant ---------------------------------------------------------------------------


async def neighbours(world: World, rng: random.Random) -> None:
    """A second tenant has jobs under the same keys, and tries to reach the first one's."""
    number = _FIRST_OF_NEIGHBOUR
    plan = []
    for job in range(rng.randint(1, 2)):
        data = [tensor_item(number + item) for item in range(rng.randint(1, 3))]
        number += len(data)
        after_s = rng.uniform(0, world.scale.faults_s / 2)
        plan.append(Planned(NEIGHBOUR, f"key{job}", data, after_s, _DAY_S))
    world.add_requester(NEIGHBOUR, NEIGHBOUR, plan).start()
    url, name = tenant_url(NEIGHBOUR), f"er-{NEIGHBOUR}"
    settings = BusSettings(url, name, subscriptions=(("#", 1),))
    async with (
        MemoryBus(settings, world.broker, Faults(rng), rng=rng) as bus,
        world.client("prying neighbour", NEIGHBOUR) as client,
    ):
        own = (f"er/1/t/{NEIGHBOUR}/", "er/1/pub/fleet/")
        world.keepers.append(asyncio.ensure_future(overhear(bus, world.ledger, NEIGHBOUR, own)))

        async def strike() -> None:
            kind = rng.choice(("foreign_request", "foreign_request", "foreign_fetch", "own_list"))
            if kind == "foreign_fetch":
                _fetch_foreign(world, rng, bus)
            elif kind == "foreign_request":
                await _pry(world, rng, client)
            else:
                await _list_own(world, client)

        await often(world, rng, 6, strike)


def _jobs_of(world: World, tenant: str) -> list[str]:
    return sorted(job.job for job in world.ledger.jobs.values() if job.tenant == tenant)


def _fetch_foreign(world: World, rng: random.Random, bus: MemoryBus) -> None:
    """Ask for another's job, for one's own job on another's topic, or for nothing sensible.

    Whatever is answered is judged where the broker takes it (`witness`, S10).
    """
    theirs, ours = _jobs_of(world, TENANT), _jobs_of(world, NEIGHBOUR)
    request, topic = b"", f"er/1/t/{NEIGHBOUR}/request"
    kind = rng.choice(("theirs", "to them", "garbage"))
    if kind == "theirs" and theirs:
        own = f"er/1/t/{NEIGHBOUR}/answers/prying"
        request = codec.encode(FetchSince(job=rng.choice(theirs), cursor=0, respond_to=own))
    elif kind == "to them" and ours:
        respond_to = f"er/1/t/{TENANT}/jobs/{rng.choice(theirs or ['j0'])}/results"
        request = codec.encode(FetchSince(job=rng.choice(ours), cursor=0, respond_to=respond_to))
    elif kind == "garbage":
        request = rng.randbytes(rng.randint(1, 100))
    if request and bus.is_connected:
        world.ledger.fault("foreign_fetch", kind)
        try:
            bus.publish_soon(Message(topic, request))
        except BusOverflow as overflow:
            world.ledger.note(f"{NEIGHBOUR}: {overflow}")


async def _pry(world: World, rng: random.Random, client: EdgeClient) -> None:
    """Use another's job id, or a guessed one: there is no such job."""
    theirs = _jobs_of(world, TENANT)
    job = rng.choice(theirs) if theirs and rng.random() < _KNOWN else f"j{rng.randbytes(11).hex()}"
    ways: dict[str, Callable[[str], Awaitable[Any]]] = {
        "status": client.status,
        "read": lambda job: anext(client.results(job)),
        "cancel": client.cancel,
        "delete": client.delete,
        "requeue": client.requeue,
        "why": client.why,
        "list attempts of": client.attempts,
    }
    way = rng.choice(sorted(ways))
    world.ledger.fault("foreign_request", f"{way} {job}")
    try:
        answer = await ways[way](job)
    except DispatcherUnreachable as error:
        world.ledger.note(f"{NEIGHBOUR}: {error}")
    except DispatcherRefused as refused:
        if refused.problem.status != _UNKNOWN and not is_passing(refused):
            world.ledger.violated("S10", f"{NEIGHBOUR} may not {way} {job}: {refused}")
    else:
        if answer != []:
            world.ledger.violated("S10", f"{NEIGHBOUR} could {way} {job} of {TENANT}")


async def _list_own(world: World, client: EdgeClient) -> None:
    """Lists and feeds have one's own jobs and no other."""
    listed: set[str] = set()
    try:
        listed |= {status.job for status in await client.jobs()}
        async with asyncio.timeout(_FEED_LOOK_S):
            async for entry in client.feed(0):
                listed.add(entry.job)
    except (RemoteError, TimeoutError) as error:
        world.ledger.note(f"{NEIGHBOUR}: {error!r}")
    foreign = sorted(listed & set(_jobs_of(world, TENANT)))
    if foreign:
        world.ledger.violated("S10", f"{NEIGHBOUR} was told of {foreign[0]}")


# --- keys -------------------------------------------------------------------------------------


async def twins(world: World, rng: random.Random) -> None:
    """A key is brought again at the same time, and with another body."""
    rivals = 0

    async def strike() -> None:
        nonlocal rivals
        kind = rng.choice(("twin_submit", "other_body", "rival_bodies"))
        async with world.client(f"twin {rng.getrandbits(32)}") as client:
            if kind == "rival_bodies":
                rivals += 1
                await _submit_rivals(world, rng, client, rivals)
            elif kind == "twin_submit":
                await _submit_twice(world, client, rng.choice(_own_plan(world)))
            else:
                await _submit_other_body(world, client, rng.choice(_own_plan(world)))

    await often(world, rng, 15, strike)


def _own_plan(world: World) -> list[Planned]:
    return [planned for planned in world.plan if planned.tenant == TENANT]


async def _submit(client: EdgeClient, job: Planned, data: list[bytes]) -> JobStatus | RemoteError:
    try:
        return await client.submit("noop", data, idempotency_key=job.key, deadline_s=job.deadline_s)
    except (JobRefused, DispatcherUnreachable) as error:
        return error


async def _submit_twice(world: World, client: EdgeClient, job: Planned) -> None:
    """The same job twice at once: both are told of one."""
    world.ledger.fault("twin_submit", job.key)

    async def submit() -> None:
        outcome = await _submit(client, job, job.data)
        if isinstance(outcome, JobStatus):
            world.was_accepted(job, outcome)
        elif isinstance(outcome, JobRefused) and not is_passing(outcome):
            world.ledger.violated("S8", f"{job.key} refused to its twin: {outcome}")

    await asyncio.gather(submit(), submit())


async def _submit_other_body(world: World, client: EdgeClient, job: Planned) -> None:
    """A key that names a job names no other; what becomes of the job its requester sees."""
    is_known = (job.tenant, job.key) in world.ledger.keys
    if not is_known or "restored_backups" in world.chosen:
        return  # a store that goes back may not know the key, and rightly takes the body
    world.ledger.fault("other_body", job.key)
    outcome = await _submit(client, job, [*job.data, tensor_item(_FIRST_OF_RIVAL)])
    if isinstance(outcome, JobStatus):
        world.ledger.violated("S8", f"{job.key} is also another body: {outcome.job}")
    elif isinstance(outcome, JobRefused) and not _is_conflict(outcome):
        world.ledger.violated("S8", f"{job.key} with another body: {outcome}")


async def _submit_rivals(world: World, rng: random.Random, client: EdgeClient, number: int) -> None:
    """Two bodies under one new key at once: one of them is the job, the other is refused."""
    job = Planned(TENANT, f"{_RIVAL}{number}", [], 0.0, rng.choice((20.0, _DAY_S)))
    world.ledger.fault("rival_bodies", job.key)
    first = _FIRST_OF_RIVAL + 10 * number
    bodies = [[tensor_item(first + n)] for n in range(2)]
    outcomes = await asyncio.gather(*(_submit(client, job, data) for data in bodies))
    accepted = [outcome for outcome in outcomes if isinstance(outcome, JobStatus)]
    if len(accepted) > 1 and not world.ledger.has_gone_back:
        world.ledger.violated("S8", f"{job.key} was accepted with two bodies")
    for outcome in outcomes:
        if isinstance(outcome, JobRefused) and not _is_conflict(outcome):
            world.ledger.violated("S8", f"{job.key}: {outcome}")


def _is_conflict(refused: JobRefused) -> bool:
    return refused.problem.status == _CONFLICT or is_passing(refused)


# --- forgetting -------------------------------------------------------------------------------


async def deleters(world: World, rng: random.Random) -> None:
    """A tenant submits jobs and has them forgotten: while they run, when they ended, in a race."""
    number = 0

    async def strike() -> None:
        nonlocal number
        number += 1
        data = [tensor_item(_FIRST_OF_FICKLE + 10 * number + n) for n in range(rng.randint(1, 4))]
        if rng.random() < HALF:  # a dead letter, which may be requeued
            for car in world.cars:
                car.script.broken |= {data[-1]}
        planned = Planned(FICKLE, f"{FICKLE}{number}", data, 0.0, _DAY_S)
        async with world.client(f"{FICKLE}{number}", FICKLE) as client:
            status = await _submit(client, planned, data)
            if not isinstance(status, JobStatus):
                return
            world.ledger.note(f"{FICKLE}: {planned.key} accepted as {status.job}")
            await asyncio.sleep(rng.choice((0.0, 0.3, 2.0, 10.0)))
            await _delete(world, rng, client, status.job)
            await _look_again(world, rng, client)

    await often(world, rng, 12, strike)


async def _delete(world: World, rng: random.Random, client: EdgeClient, job: str) -> None:
    ledger = world.ledger
    ledger.deleting.add(job)
    calls: list[Awaitable[Any]] = [client.delete(job)]
    kind = rng.choice(
        ("delete", "delete", "delete_and_requeue", "delete_and_requeue", "delete_and_kill")
    )
    ledger.fault(kind, job)
    if kind == "delete_and_requeue":
        calls.insert(rng.randint(0, 1), client.requeue(job))
    elif kind == "delete_and_kill":
        world.loop.call_later(rng.uniform(0, 0.2), world.kill, world.dispatcher, rng.uniform(0, 3))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, RemoteError):
            raise outcome
        ledger.note(f"{FICKLE}: {job} {outcome!r}")
    try:
        await client.delete(job)  # what the race left; who was not answered asks again, too
    except DispatcherUnreachable as error:
        ledger.note(f"{FICKLE}: {job} {error}")
        return
    except DispatcherRefused as refused:
        if is_passing(refused):
            return
        if refused.problem.status != _UNKNOWN:
            ledger.violated("S2", f"{job} cannot be deleted: {refused}")
    ledger.deleted.add(job)


async def _look_again(world: World, rng: random.Random, client: EdgeClient) -> None:
    """A job that was deleted is unknown ever after."""
    ledger = world.ledger
    if not ledger.deleted or ledger.has_gone_back:
        return
    job = rng.choice(sorted(ledger.deleted))
    try:
        status = await client.status(job)
    except DispatcherUnreachable as error:
        ledger.note(f"{FICKLE}: {job} {error}")
    except DispatcherRefused as refused:
        if refused.problem.status != _UNKNOWN and not is_passing(refused):
            ledger.violated("S2", f"{job} was deleted: {refused}")
    else:
        if not ledger.has_gone_back:
            ledger.violated("S2", f"{job} was deleted and is {status.state.value}")


# --- third parties ----------------------------------------------------------------------------


async def third_parties(world: World, rng: random.Random) -> None:
    """Two read the tenant's topics over MQTT, one of them with the SDK; they come and go."""
    third = ThirdParty("third", TENANT, world.ledger, rng)
    own_rng = random.Random(rng.getrandbits(64))  # noqa: S311 - a seeded world
    subscriber = Subscriber("subscriber", TENANT, world.ledger, own_rng)
    for reader in (third, subscriber):
        faults = world.faults_for(reader.name)
        lossy = world.dispatcher_faults
        faults.loss, faults.duplicate = lossy.loss, lossy.duplicate
        faults.reorder, faults.delay_max_s = lossy.reorder, lossy.delay_max_s
        world.third_parties.append(reader)
        # They read on when faults have stopped.
        life = asyncio.ensure_future(reader.live(world.broker, faults, lambda: world.is_healed))
        world.keepers.append(life)
    world.waits_for.append(lambda: third.has_everything and subscriber.has_everything)
