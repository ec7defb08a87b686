"""`Subscription` on a memory broker, with the production dispatcher."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from scripted_car import ScriptedCar
from service_rig import House

from edge_runtime.bus import BusSettings, MemoryBroker, MemoryBus, Message
from edge_runtime.client import JobLost, JobResult, Subscription
from edge_runtime.client.subscription_state import Entry
from edge_runtime.contract import codec
from edge_runtime.contract.errors import ConfigError
from edge_runtime.contract.messages import FleetAggregate, JobResults, JobStatus
from edge_runtime.contract.reasons import JobState
from edge_runtime.contract.topics import Topics
from edge_runtime.dispatcher.chores import Chores
from edge_runtime.dispatcher.service import DispatcherService, DispatcherSettings
from edge_runtime.dispatcher.storage import SqliteStore
from edge_runtime.vehicle.models.importers.synthetic import write_synthetic

TOPICS = Topics()
Opened = Callable[..., Any]


@pytest.fixture
def open_house(tmp_path: Path) -> Opened:
    """`async with open_house(broker) as house`: a dispatcher that answers; the same store."""
    write_synthetic("noop", tmp_path / "models")

    @asynccontextmanager
    async def opened(broker: MemoryBroker) -> AsyncIterator[House]:
        settings = DispatcherSettings("memory://", models_dir=tmp_path / "models")
        store = SqliteStore(tmp_path / "store.db")
        async with DispatcherService(settings, store, lambda s: MemoryBus(s, broker)) as service:
            Chores(service).start()
            yield House(service, broker)

    return opened


@pytest.fixture
async def house(open_house: Opened) -> AsyncIterator[House]:
    async with open_house(MemoryBroker()) as running, ScriptedCar(running.broker, "car1"):
        yield running


def subscribed(broker: MemoryBroker, **options: Any) -> Subscription:
    return Subscription("memory://", "t1", open_bus=lambda s: MemoryBus(s, broker), **options)


async def read(subscription: Subscription, *, until: Callable[[Entry], bool]) -> list[Entry]:
    entries = []
    async with asyncio.timeout(20):
        async for entry in subscription:
            entries.append(entry)
            if until(entry):
                break
    return entries


def is_never(entry: Entry) -> bool:
    del entry
    return False


def is_final(entry: Entry) -> bool:
    return isinstance(entry, JobStatus) and entry.state.is_terminal


def cursors_of(entries: list[Entry], job: str) -> list[int]:
    return [e.result.cursor for e in entries if isinstance(e, JobResult) and e.job == job]


async def test_one_job_is_read_to_its_end(house: House) -> None:
    job = await house.submit(100)
    async with subscribed(house.broker, job=job) as subscription:
        entries = await read(subscription, until=is_never)
    assert cursors_of(entries, job) == list(range(1, 101))
    results = [entry.result for entry in entries if isinstance(entry, JobResult)]
    assert all(result.output == {"item": result.item} for result in results)
    final = entries[-1]
    assert isinstance(final, JobStatus)
    assert (final.state, final.last_cursor) == (JobState.DONE, 100)
    assert subscription.cursors == {job: 100}


async def test_every_job_of_the_tenant_is_discovered_and_no_others(house: House) -> None:
    before = await house.submit(5)
    await house.collect(before)
    await house.desk.submit("t2", [])
    finals = []
    async with subscribed(house.broker) as subscription:
        first = await read(subscription, until=is_final)
        after = await house.submit(7)
        second = await read(
            subscription,
            until=lambda entry: is_final(entry) and entry.job == after,  # type: ignore[union-attr]  # a status
        )
        finals = [entry.job for entry in [*first, *second] if is_final(entry)]  # type: ignore[union-attr]  # a status
    assert cursors_of(first, before) == list(range(1, 6))
    assert cursors_of(second, after) == list(range(1, 8))
    assert finals == [before, after]


async def test_who_was_away_goes_on_with_its_cursors_and_hears_nothing_twice(
    house: House,
) -> None:
    job = await house.submit(50)
    async with subscribed(house.broker, job=job) as subscription:
        first = await read(
            subscription, until=lambda e: isinstance(e, JobResult) and e.result.cursor == 20
        )
        kept = subscription.cursors
    assert kept == {job: 20}
    await house.collect(job)
    async with subscribed(house.broker, job=job, cursors=kept) as subscription:
        second = await read(subscription, until=is_never)
    assert cursors_of([*first, *second], job) == list(range(1, 51))


async def test_breaking_off_and_going_on_loses_nothing(house: House) -> None:
    job = await house.submit(30)
    entries: list[Entry] = []
    async with subscribed(house.broker, job=job) as subscription:
        while not (entries and is_final(entries[-1])):
            entries += await read(subscription, until=lambda _: True)
    assert cursors_of(entries, job) == list(range(1, 31))


async def test_a_job_of_yesterday_has_no_retained_status_and_is_read_all_the_same(
    house: House,
) -> None:
    job = await house.submit(10)
    _, status = await house.collect(job)
    house.service.publisher.clear_status("t1", job)
    await house.until(lambda: not house.broker._retained.get(TOPICS.job_status("t1", job)))
    async with subscribed(house.broker, job=job, cursors={job: 4}) as subscription:
        entries = await read(subscription, until=is_never)
    assert cursors_of(entries, job) == list(range(5, 11))
    assert entries[-1] == status
    async with subscribed(house.broker, cursors={job: 4}) as subscription:
        entries = await read(subscription, until=is_final)
    assert cursors_of(entries, job) == list(range(5, 11))


async def test_a_deleted_and_a_foreign_job_are_lost(house: House) -> None:
    job = await house.submit(1)
    await house.collect(job)
    await house.service.store.delete(job)
    async with subscribed(house.broker, job=job) as subscription:
        assert await read(subscription, until=is_never) == [JobLost(job, "unknown_job")]


async def test_duplicates_gaps_and_nonsense_on_the_topics_change_nothing(house: House) -> None:
    job = await house.submit(40)
    entries, _ = await house.collect(job)
    house.service.publisher.clear_status("t1", job)
    async with (
        MemoryBus(BusSettings("memory://", "liar"), house.broker) as other,
        subscribed(house.broker, cursors={job: 0}, name="me") as subscription,
    ):
        await house.until(lambda: other.is_connected)
        topic = TOPICS.job_results("t1", job)
        some = [entries[n] for n in (30, 3, 3, 0, 39, 12)]
        for entry in some:
            await other.publish(Message(topic, codec.encode(JobResults(job=job, results=(entry,)))))
        wrong = codec.encode(JobResults(job="another", results=tuple(entries)))
        for nonsense in (b"", b"\xc1", wrong, b"\x91" * 300_000, bytes(100)):
            with_room = nonsense[: 256 * 1024]
            await other.publish(Message(topic, with_room))
            await other.publish(Message(TOPICS.job_status("t1", "x"), with_room))
        told = await read(subscription, until=is_final)
        counters = subscription.counters
    assert cursors_of(told, job) == list(range(1, 41))
    assert counters["rejected_malformed"] > 0
    assert counters["rejected_wrong_topic"] > 0


async def test_a_dispatcher_that_dies_in_between_is_waited_for(open_house: Opened) -> None:
    broker = MemoryBroker()
    async with subscribed(broker) as subscription:
        entries: list[Entry] = []
        async with ScriptedCar(broker, "car1"):
            async with open_house(broker) as house:
                job = await house.submit(60)
                entries += await read(
                    subscription, until=lambda e: isinstance(e, JobResult) and e.result.cursor > 9
                )
            async with open_house(broker):
                entries += await read(subscription, until=is_final)
    assert cursors_of(entries, job) == list(range(1, 61))


async def test_the_fleet_comes_where_it_is_asked_for(house: House) -> None:
    Chores(house.service).publish_aggregates()
    async with subscribed(house.broker, fleet=True) as subscription:
        (told,) = await read(subscription, until=lambda e: isinstance(e, FleetAggregate))
    assert isinstance(told, FleetAggregate)
    assert (told.region, told.cars) == ("default", 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"job": "a/b"}, "job must be"),
        ({"name": ""}, None),
        ({"name": "a#"}, "name must be"),
        ({"cursors": {"j": -1}}, r"cursors\['j'\] must be a whole number"),
        ({"cursors": {"j": True}}, "whole number"),
        ({"cursors": {"j": "7"}}, "whole number"),
        ({"cursors": {"j": 2**63}}, "whole number"),
        ({"cursors": {"+": 1}}, "a job of cursors must be"),
        ({"namespace": "a/b"}, "namespace must be"),
    ],
)
def test_what_cannot_be_subscribed_to_is_refused_by_name(
    options: dict[str, Any], words: str | None
) -> None:
    if words is None:
        subscribed(MemoryBroker(), **options)  # an empty name is no name
        return
    with pytest.raises(ConfigError, match=words):
        subscribed(MemoryBroker(), **options)


async def test_it_is_used_inside_its_context() -> None:
    with pytest.raises(ConfigError, match="async with"):
        await anext(aiter(subscribed(MemoryBroker())))


def test_the_stdout_of_whose_program_this_is_stays_clean() -> None:
    """The bus logs through structlog, which unconfigured prints to stdout."""
    program = """
import asyncio, sys
from edge_runtime.bus import MemoryBroker, MemoryBus
from edge_runtime.client import Subscription
async def main():
    broker = MemoryBroker()
    bus = lambda settings: MemoryBus(settings, broker)
    async with Subscription("memory://", "t1", open_bus=bus) as subscription:
        try:
            async with asyncio.timeout(0.2):
                await anext(aiter(subscription))
        except TimeoutError:
            print("connected and waited", file=sys.stderr)
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, timeout=60
    )
    assert done.stdout == b""
    assert b"connected and waited" in done.stderr
