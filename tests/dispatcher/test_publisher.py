"""The tenants' topics: results first, then statuses; a restart finds what did not go out."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from store_rig import add_job

from edge_runtime.bus import BusSettings, Connected, MemoryBroker, MemoryBus, Message
from edge_runtime.contract import codec, limits
from edge_runtime.contract.messages import JobResults, JobStatus
from edge_runtime.contract.reasons import JobState
from edge_runtime.contract.topics import Topics
from edge_runtime.dispatcher.core.commands import AddResult, UpdateJob
from edge_runtime.dispatcher.publisher import Publisher
from edge_runtime.dispatcher.storage import SqliteStore

TENANT = "tenant"
JOBS = ("j1", "j2")
TIMEOUT_S = 10.0


class Desk:
    """A publisher on a memory broker with a real store of two finished jobs, and its reader."""

    def __init__(self, publisher: Publisher, store: SqliteStore, reader: MemoryBus) -> None:
        self.publisher = publisher
        self.store = store
        self._events = reader.events()

    async def ready(self) -> None:
        assert isinstance(await anext(self._events), Connected)

    async def next_message(self) -> JobResults | JobStatus:
        async with asyncio.timeout(TIMEOUT_S):
            event = await anext(self._events)
        assert isinstance(event, Message)
        message = codec.decode_public(event.payload)
        assert isinstance(message, JobResults | JobStatus)
        return message

    async def settled(self, job: str, cursor: int) -> None:
        """Until the store knows that the job is published through this cursor."""
        async with asyncio.timeout(TIMEOUT_S):
            while await self.store.published(job) != cursor:  # noqa: ASYNC110 - a file has no event
                await asyncio.sleep(0.01)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with opened(tmp_path / "store.db") as found:
        yield found


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Desk]:
    store = SqliteStore(path)
    await store.open(1)
    broker, topics = MemoryBroker(), Topics()
    filters = ((topics.tenant_all(TENANT), 1),)
    try:
        async with (
            MemoryBus(BusSettings("memory://", "reader", subscriptions=filters), broker) as reader,
            MemoryBus(BusSettings("memory://", "dispatcher"), broker) as bus,
        ):
            publisher = Publisher(bus, store, topics, Counter())
            found = Desk(publisher, store, reader)
            await found.ready()
            task = asyncio.create_task(publisher.run())
            yield found
            task.cancel()
            await asyncio.wait([task])
    finally:
        await store.close()


def result(no: int) -> AddResult:
    return AddResult(
        job_no=no,
        job=JOBS[no - 1],
        tenant=TENANT,
        cursor=1,
        index=0,
        at_ms=1,
        vehicle="car",
        output=b"\x01",
        error=None,
    )


def done(job: str) -> JobStatus:
    return JobStatus(
        job=job,
        tenant=TENANT,
        model="m",
        state=JobState.DONE,
        items=1,
        done=1,
        failed=0,
        last_cursor=1,
        submitted_ms=1,
        deadline_ms=2,
        finished_ms=2,
    )


async def commit_jobs(store: SqliteStore) -> None:
    numbers = range(1, len(JOBS) + 1)
    await store.commit(
        [
            *(add_job(no, JOBS[no - 1]) for no in numbers),
            *(result(no) for no in numbers),
            *(
                UpdateJob(
                    no=no,
                    state=JobState.DONE,
                    done=1,
                    failed=0,
                    cursor=1,
                    deadline_ms=2,
                    finished_ms=2,
                )
                for no in numbers
            ),
        ]
    )


async def test_results_go_before_the_statuses_that_came_with_them(desk: Desk) -> None:
    await commit_jobs(desk.store)
    for no, job in enumerate(JOBS, 1):
        desk.publisher.status(done(job))
        desk.publisher.results([result(no)])
    seen = [type(await desk.next_message()) for _ in range(4)]
    assert seen == [JobResults, JobResults, JobStatus, JobStatus]


async def test_a_status_alone_does_not_wait_for_results(desk: Desk) -> None:
    desk.publisher.status(done("j1"))
    message = await desk.next_message()
    assert isinstance(message, JobStatus)


async def test_what_comes_after_a_pause_is_published_at_once(desk: Desk) -> None:
    """The cursors that wait to be written keep nothing else waiting."""
    await commit_jobs(desk.store)
    desk.publisher.results([result(1)])
    await desk.next_message()
    started_s = asyncio.get_running_loop().time()
    for _ in range(5):
        desk.publisher.results([result(1)])
        await desk.next_message()
        await asyncio.sleep(0)
    assert asyncio.get_running_loop().time() - started_s < 0.4
    await desk.settled("j1", 1)


async def test_a_restart_publishes_the_status_that_did_not_go_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store.db"
    with monkeypatch.context() as patch:
        patch.setattr(limits, "STATUS_QUIET_MS", 600_000)
        patch.setattr(limits, "STATUS_PUBLISH_INTERVAL_MS", 600_000)
        async with opened(path) as before:
            await commit_jobs(before.store)
            before.publisher.status(done("j1"))
            before.publisher.results([result(1), result(2)])
            results = [await before.next_message() for _ in JOBS]
            assert {message.job for message in results} == set(JOBS)
            await before.settled("j2", 1)
            await before.publisher.flush()
            assert await before.store.published("j1") == 0
    async with opened(path) as after:
        after.publisher.catch_up(await after.store.unpublished(100))
        seen = [await after.next_message() for _ in range(2)]
    assert [(type(message), message.job) for message in seen] == [
        (JobResults, "j1"),
        (JobStatus, "j1"),
    ]
