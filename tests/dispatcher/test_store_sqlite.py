"""What the SQLite store answers: pages, feeds, keys, dead letters, retention."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from store_rig import add_job

from edge_runtime.contract import limits
from edge_runtime.contract.http import AttemptEnd
from edge_runtime.contract.messages import Fence, ResultError
from edge_runtime.contract.reasons import ItemError, JobState, StopTier
from edge_runtime.dispatcher.core import commands as c
from edge_runtime.dispatcher.core import events as e
from edge_runtime.dispatcher.storage import SqliteStore

ERROR = ResultError(code=ItemError.MODEL_ERROR, message="m", attempts=3)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "store.db")
    await store.open(1_000)
    yield store
    await store.close()


async def reopened(store: SqliteStore) -> SqliteStore:
    await store.close()
    again = SqliteStore(store.path)
    await again.open(1_001)
    return again


def result(no: int, cursor: int, index: int, *, failed: bool = False, **fields: Any) -> c.AddResult:
    values: dict[str, Any] = {
        "job_no": no,
        "job": f"job{no}",
        "tenant": "tenant",
        "cursor": cursor,
        "index": index,
        "at_ms": 100 + cursor,
        "vehicle": "car",
        "output": None if failed else b"\x01",
        "error": ERROR if failed else None,
    }
    return c.AddResult(**{**values, **fields})


def update(no: int, done: int = 0, failed: int = 0, **fields: Any) -> c.UpdateJob:
    values: dict[str, Any] = {
        "no": no,
        "state": JobState.RUNNING,
        "done": done,
        "failed": failed,
        "cursor": done + failed,
        "deadline_ms": 9,
        "finished_ms": None,
    }
    return c.UpdateJob(**{**values, **fields})


def ended(no: int, done: int = 0, failed: int = 0, at_ms: int = 1_000) -> c.UpdateJob:
    return update(no, done, failed, state=JobState.DONE, finished_ms=at_ms)


def fail_remaining(no: int, after_cursor: int) -> c.FailRemaining:
    return c.FailRemaining(
        job_no=no,
        job=f"job{no}",
        tenant="tenant",
        after_cursor=after_cursor,
        at_ms=7,
        error=ERROR,
    )


def begin(unit: int, no: int, vehicle: str = "car", counter: int = 1) -> c.BeginAttempt:
    return c.BeginAttempt(
        job_no=no,
        unit=unit,
        fence=Fence(1_000, counter),
        vehicle=vehicle,
        issued=(0,),
        alone=False,
        offered_ms=5,
    )


# --- commits -----------------------------------------------------------------------------------


async def test_positions_follow_the_order_of_a_commit(store: SqliteStore) -> None:
    assert await store.commit([add_job(1, "job1", 4), add_job(2, "job2", 2)]) == 0
    results = [result(1, 1, 3), result(2, 1, 0), result(1, 2, 0)]
    assert await store.commit([*results, fail_remaining(1, 2), update(1, 2, 2)]) == 0
    assert await store.commit([result(2, 2, 1)]) == 5
    feed = await store.feed("tenant", 0, 100)
    assert [(x.position, x.job, x.result.cursor, x.result.item) for x in feed] == [
        (1, "job1", 1, 3),
        (2, "job2", 1, 0),
        (3, "job1", 2, 0),
        (4, "job1", 3, 1),
        (5, "job1", 4, 2),
        (6, "job2", 2, 1),
    ]
    assert [x.result.error for x in feed][2:5] == [None, ERROR, ERROR]


async def test_two_jobs_that_fail_in_one_commit_share_no_position(store: SqliteStore) -> None:
    await store.commit([add_job(1, "job1", 3), add_job(2, "job2", 2)])
    await store.commit([fail_remaining(1, 0), fail_remaining(2, 0)])
    assert [x.position for x in await store.feed("tenant", 0, 10)] == [1, 2, 3, 4, 5]
    assert await store.feed_position("tenant") == 5


async def test_a_commit_that_fails_leaves_nothing_and_gives_out_no_position(
    store: SqliteStore,
) -> None:
    await store.commit([add_job(1, "job1", 2)])
    with pytest.raises(Exception, match="contradicts"):
        await store.commit([result(1, 1, 0), result(1, 2, 0)])
    assert await store.feed("tenant", 0, 10) == []
    assert await store.commit([result(1, 1, 0)]) == 0


async def test_positions_numbers_and_units_are_never_given_out_twice(store: SqliteStore) -> None:
    await store.commit([add_job(1, "job1", 1), begin(7, 1)])
    await store.commit([result(1, 1, 0, failed=True), ended(1, failed=1)])
    assert await store.delete("job1")
    again = await reopened(store)
    assert await again.feed_position("tenant") == 1
    await again.close()
    found = await (third := SqliteStore(store.path)).open(1_002)
    assert (found.next_job_no, found.next_unit) == (2, 8)
    assert await third.commit([add_job(2, "job2", 1), result(2, 1, 0)]) == 1
    await third.close()


async def test_a_withdrawn_result_keeps_its_position(store: SqliteStore) -> None:
    """A reader that saw the failure must see what comes after it."""
    await store.commit([add_job(1, "job1", 1), result(1, 1, 0, failed=True), ended(1, failed=1)])
    withdraw = c.WithdrawFailures(job_no=1, items=(0,))
    await store.commit([withdraw, update(1, cursor=1)])
    again = await reopened(store)
    await again.commit([result(1, 2, 0), ended(1, done=1)])
    (entry,) = await again.feed("tenant", 1, 10)
    assert (entry.position, entry.result.cursor) == (2, 2)
    await again.close()


async def test_a_withdrawal_takes_failures_and_strikes_and_leaves_the_rest(
    store: SqliteStore,
) -> None:
    await store.commit([add_job(1, "job1", 3)])
    strikes = [c.AddStrike(job_no=1, index=index, vehicle="car") for index in (0, 1)]
    await store.commit([*strikes, result(1, 1, 0, failed=True), result(1, 2, 1), update(1, 1, 1)])
    await store.commit([c.WithdrawFailures(job_no=1, items=(0, 1)), update(1, 1, cursor=2)])
    assert [entry.item for entry in await store.results("job1", 0, 10)] == [1]
    assert await store.dead_letters(None, None, 10) == []
    event = await store.failed_items("job1", (), 10, 0)
    assert event is not None
    assert event.job.strikes == ()


# --- loads -------------------------------------------------------------------------------------


async def load_items(store: SqliteStore, after: int, **bounds: int) -> e.ItemsLoaded:
    values = {"limit": 100, "limit_bytes": 10_000, **bounds}
    command = c.LoadItems(job="job1", job_no=1, after=after, **values)
    (event,) = await store.load([command])
    assert isinstance(event, e.ItemsLoaded)
    return event


async def test_items_come_in_pages_bounded_by_count_and_by_size(store: SqliteStore) -> None:
    await store.commit([add_job(1, "job1", 10, size=100), add_job(2, "job2", 5)])
    await store.commit([result(1, 1, 1), result(1, 2, 2)])
    page = await load_items(store, -1, limit=3)
    assert [item.index for item in page.items] == [0, 3, 4]
    assert (page.through, page.more) == (4, True)
    page = await load_items(store, page.through, limit_bytes=150)
    assert [item.index for item in page.items] == [5, 6]
    page = await load_items(store, page.through)
    assert [item.index for item in page.items] == [7, 8, 9]
    assert not page.more
    assert page.items[0].data == bytes([7]) * 100
    assert (await load_items(store, page.through)).items == ()


async def test_the_last_page_that_is_just_full_says_so(store: SqliteStore) -> None:
    await store.commit([add_job(1, "job1", 4)])
    assert not (await load_items(store, -1, limit=4)).more
    assert (await load_items(store, -1, limit=3)).more


async def test_open_jobs_of_a_tenant_come_in_order_of_acceptance(store: SqliteStore) -> None:
    others = [add_job(no, f"job{no}", tenant="other") for no in (2, 4)]
    own = [add_job(no, f"job{no}") for no in (1, 3, 5, 6)]
    await store.commit([*own, *others])
    await store.commit([result(3, 1, 0), ended(3, done=1)])
    command = c.LoadJobs(tenant="tenant", after_no=0, limit=2)
    (page,) = await store.load([command])
    assert isinstance(page, e.JobsLoaded)
    assert ([job.no for job in page.jobs], page.more) == ([1, 5], True)
    (page,) = await store.load([c.LoadJobs(tenant="tenant", after_no=5, limit=2)])
    assert isinstance(page, e.JobsLoaded)
    assert ([job.no for job in page.jobs], page.more) == ([6], False)


async def test_recovery_reads_a_share_of_each_tenants_jobs(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WINDOW_JOBS_MAX", 4)
    monkeypatch.setattr(limits, "TENANT_WINDOW_JOBS_MIN", 2)
    tenants = ("ada", "bob")
    jobs = [add_job(no, f"job{no}", tenant=tenants[no % 2]) for no in range(1, 8)]
    await store.commit([*jobs, begin(1, 6), begin(2, 7, counter=2)])
    await store.close()
    again = SqliteStore(store.path)
    found = await again.open(1)
    await again.close()
    assert [(job.no, job.in_order) for job in found.jobs] == [
        (2, True),
        (4, True),
        (1, True),
        (3, True),
        (6, False),
        (7, False),
    ]
    assert sorted(found.tenants_with_more) == ["ada", "bob"]
    assert [attempt.job_no for attempt in found.attempts] == [6, 7]


# --- people ------------------------------------------------------------------------------------


async def test_keys_belong_to_a_tenant(store: SqliteStore) -> None:
    keyed = {"idempotency_key": "key", "body_hash": b"h1"}
    other = {"idempotency_key": "key", "body_hash": b"h2", "tenant": "other"}
    await store.commit([add_job(1, "job1", **keyed), add_job(2, "job2", **other)])
    await store.commit([add_job(3, "job3"), add_job(4, "job4")])  # without keys: as many as wanted
    assert await store.find_keys("tenant", ["key", "no"]) == {"key": ("job1", b"h1")}
    assert await store.find_keys("other", ["key"]) == {"key": ("job2", b"h2")}
    assert await store.find_keys("nobody", ["key"]) == {}


async def test_jobs_are_listed_newest_first_by_pages_tenant_and_state(store: SqliteStore) -> None:
    tenants = ("tenant", "other")
    await store.commit([add_job(no, f"job{no}", tenant=tenants[no % 2]) for no in range(1, 7)])
    await store.commit([result(2, 1, 0), ended(2, done=1)])

    async def names(*arguments: Any) -> list[str]:
        return [status.job for status in await store.jobs(*arguments)]

    assert await names(None, None, 4, None) == ["job6", "job5", "job4", "job3"]
    assert await names(None, None, 4, "job3") == ["job2", "job1"]
    assert await names("tenant", None, 10, None) == ["job6", "job4", "job2"]
    assert await names("tenant", "accepted", 10, None) == ["job6", "job4"]
    assert await names("tenant", "done", 10, "job4") == ["job2"]
    assert await names("nobody", None, 10, None) == []
    status = await store.job("job2")
    assert status is not None
    assert (status.state, status.done, status.last_cursor) == (JobState.DONE, 1, 1)
    assert await store.job("nothing") is None


async def test_attempts_are_listed_in_order_of_offer(store: SqliteStore) -> None:
    await store.commit([add_job(1, "job1"), add_job(2, "job2", tenant="other")])
    await store.commit([begin(1, 1), begin(2, 2, counter=2), begin(1, 1, "late", counter=3)])
    end = c.EndAttempt(
        unit=1,
        fence=Fence(1_000, 1),
        job="job1",
        vehicle="car",
        end=AttemptEnd.RELEASED,
        taken_ms=6,
        ended_ms=9,
        items_done=1,
        busy_ms=1.5,
        energy_j=2.5,
        outcome=None,
        release_reason=None,
        hold=None,
        stop_tier=StopTier.FREEZE,
        stop_latency_ms=0.5,
    )
    await store.commit([end])

    async def fences(*arguments: Any) -> list[int]:
        return [view.counter for view in await store.attempts(*arguments)]

    assert await fences(None, None, 10, 0) == [1, 2, 3]
    assert await fences(None, None, 1, 1) == [2]
    assert await fences("tenant", None, 10, 0) == [1, 3]
    assert await fences(None, "job2", 10, 0) == [2]
    assert await fences("other", "job1", 10, 0) == []
    first = (await store.attempts(None, "job1", 1, 0))[0]
    assert (first.end, first.taken_ms, first.ended_ms, first.items) == (
        AttemptEnd.RELEASED,
        6,
        9,
        1,
    )
    assert (first.stop_tier, first.stop_latency_ms) == (StopTier.FREEZE, 0.5)
    assert (first.busy_ms, first.energy_j) == (1.5, 2.5)


async def test_dead_letters_newest_first(store: SqliteStore) -> None:
    await store.commit([add_job(1, "job1", 3), add_job(2, "job2", 1, tenant="other")])
    await store.commit([result(1, 1, 2, failed=True), result(1, 2, 0)])
    await store.commit([result(2, 1, 0, failed=True, tenant="other"), result(1, 3, 1, failed=True)])

    async def letters(*arguments: Any) -> list[tuple[str, int]]:
        return [(x.job, x.item) for x in await store.dead_letters(*arguments)]

    assert await letters(None, None, 10) == [("job1", 1), ("job2", 0), ("job1", 2)]
    assert await letters(None, None, 1) == [("job1", 1)]
    assert await letters("tenant", None, 10) == [("job1", 1), ("job1", 2)]
    assert await letters("other", "job2", 10) == [("job2", 0)]
    assert await letters("other", "job1", 10) == []


async def test_failed_items_are_found_for_a_requeue(store: SqliteStore) -> None:
    await store.commit([add_job(1, "job1", 5, deadline_ms=500)])
    await store.commit([result(1, 1, 4, failed=True), result(1, 2, 1, failed=True)])
    await store.commit([result(1, 3, 2), update(1, 1, 2, deadline_ms=500)])

    async def found(items: tuple[int, ...], limit: int, deadline_ms: int) -> tuple[Any, ...]:
        event = await store.failed_items("job1", items, limit, deadline_ms)
        assert event is not None
        return [item.index for item in event.items], event.job.spec.deadline_ms

    assert await found((), 10, 900) == ([1, 4], 900)
    assert await found((), 1, 100) == ([1], 500)
    assert await found((4, 2, 3), 10, 100) == ([4], 500)
    assert await store.failed_items("nothing", (), 10, 0) is None


# --- retention and publishing ------------------------------------------------------------------


async def test_a_deleted_job_is_gone_with_everything(store: SqliteStore) -> None:
    strike = c.AddStrike(job_no=1, index=0, vehicle="car")
    await store.commit([add_job(1, "job1", 2, idempotency_key="key"), begin(1, 1), strike])
    await store.commit([add_job(2, "job2", 1), begin(2, 2, counter=2)])
    assert not await store.delete("job1")  # it is open
    await store.commit([result(1, 1, 0), result(1, 2, 1, failed=True), ended(1, 1, 1)])
    assert await store.delete("job1")
    assert not await store.delete("job1")
    assert await store.to_clear(10) == [("tenant", "job1")]
    await store.cleared(["job1", "job2"])
    assert await store.to_clear(10) == []
    assert await store.job("job1") is None
    assert await store.results("job1", 0, 10) == []
    assert await store.feed("tenant", 0, 10) == []
    assert await store.dead_letters(None, None, 10) == []
    assert [view.job for view in await store.attempts(None, None, 10, 0)] == ["job2"]
    assert await store.find_keys("tenant", ["key"]) == {}
    for table in ("item", "result", "attempt", "strike", "job"):
        (rows,) = await store._run(
            lambda table=table: store._db.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608 - constant names
        )
        assert rows == (1 if table in ("item", "attempt", "job") else 0), table


async def test_jobs_whose_retention_is_over(store: SqliteStore) -> None:
    await store.commit([add_job(no, f"job{no}", retention_ms=no * 100) for no in (1, 2, 3)])
    await store.commit([ended(1, at_ms=1_000), ended(2, at_ms=1_000)])
    assert await store.expired(1_100, 10) == []
    assert await store.expired(1_101, 10) == [("tenant", "job1")]
    assert await store.expired(9_999, 10) == [("tenant", "job1"), ("tenant", "job2")]
    assert len(await store.expired(9_999, 1)) == 1


async def test_jobs_that_ended_in_a_time(store: SqliteStore) -> None:
    await store.commit([add_job(no, f"job{no}") for no in range(1, 5)])
    await store.commit([ended(1, at_ms=30), ended(2, at_ms=10), ended(3, at_ms=20)])

    async def names(*arguments: int) -> list[str]:
        return [status.job for status in await store.ended_between(*arguments)]

    assert await names(0, 100, 10) == ["job2", "job3", "job1"]
    assert await names(10, 30, 10) == ["job3", "job1"]
    assert await names(0, 29, 1) == ["job2"]
    await store.commit([ended(4, at_ms=20)])
    assert await names(0, 100, 2) == ["job2", "job3", "job4"], "no two of a millisecond are parted"
    assert await names(20, 100, 2) == ["job1"]


async def test_the_published_cursor_only_grows(store: SqliteStore) -> None:
    await store.commit([add_job(1, "job1", 3), add_job(2, "job2", 1)])
    assert await store.unpublished(10) == []
    await store.commit([result(1, 1, 0), result(1, 2, 1), update(1, 2)])
    ((status, published),) = await store.unpublished(10)
    assert (status.job, status.last_cursor, published) == ("job1", 2, 0)
    await store.set_published({"job1": 2, "nothing": 7})
    await store.set_published({"job1": 1})
    assert (await store.published("job1"), await store.published("nothing")) == (2, 0)
    assert await store.unpublished(10) == []


async def test_remembered_numbers(store: SqliteStore) -> None:
    assert await store.get_meta("swept") == 0
    await store.set_meta("swept", 5)
    await store.set_meta("swept", 6)
    again = await reopened(store)
    assert await again.get_meta("swept") == 6
    await again.close()
