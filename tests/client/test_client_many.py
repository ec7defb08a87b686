"""submit_many: many jobs, few requests, one stream, bounded memory."""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import aclosing

import pytest
from memory_front import MemoryFront
from serving import Served, served, wait_until

from edge_runtime.client import EdgeClient, JobRefused, ManyResult
from edge_runtime.contract import limits
from edge_runtime.contract.http import ItemInput, JobRequest, Problem
from edge_runtime.contract.reasons import JobState

ITEM = ItemInput(text="x")


def requests(count: int, *, items: int = 1, model: str = "noop") -> list[JobRequest]:
    return [JobRequest(model=model, items=(ITEM,) * items) for _ in range(count)]


async def collect(client: EdgeClient, jobs: Iterable[JobRequest]) -> list[ManyResult]:
    async with asyncio.timeout(30):
        return [found async for found in client.submit_many(jobs)]


async def test_every_result_of_every_job(api: Served, client: EdgeClient) -> None:
    api.front.auto_finish = True
    got = await collect(client, requests(700, items=2))
    pairs = [(found.index, found.result.item) for found in got if found.result]
    assert sorted(pairs) == [(index, item) for index in range(700) for item in range(2)]
    assert api.front.submit_calls == 3
    assert {found.job for found in got} == set(api.front.jobs_by_id)
    for found in got:
        assert found.result is not None
        assert found.result.output == {"index": found.result.item}


async def test_no_requests_is_no_results(client: EdgeClient) -> None:
    assert await collect(client, []) == []


async def test_requests_are_closed_by_size_too(
    api: Served, client: EdgeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CLIENT_REQUEST_TARGET_BYTES", 1_000)
    api.front.auto_finish = True
    large = JobRequest(model="noop", items=(ItemInput(data=b"x" * 600),))
    assert len(await collect(client, [large] * 10)) == 10
    assert api.front.submit_calls == 5


async def test_refused_jobs_are_told_and_the_rest_goes_on(api: Served, client: EdgeClient) -> None:
    api.front.auto_finish = True
    jobs = [*requests(2), *requests(1, model="nothing"), JobRequest(model="noop", items=())]
    got = {found.index: found for found in await collect(client, jobs)}
    assert [got[index].problem for index in (0, 1)] == [None, None]
    assert got[2].problem is not None
    assert got[2].problem.code == "unknown_model"
    assert got[2].job == ""
    assert got[3].problem is not None
    assert got[3].problem.field == "items"


async def test_busy_jobs_are_sent_again_alone(api: Served, client: EdgeClient) -> None:
    api.front.auto_finish = True
    api.front.refuse_next = [Problem(code="busy", message="full", status=429)] * 5
    got = await collect(client, requests(8))
    assert sorted(found.index for found in got) == list(range(8))
    assert all(found.problem is None for found in got)
    assert len(api.front.jobs_by_id) == 8


async def test_a_refused_request_is_raised(
    client: EdgeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "JOB_MAX_BODY_BYTES", 10)
    with pytest.raises(JobRefused) as refused:
        await collect(client, requests(1))
    assert refused.value.problem.status == 413


async def test_jobs_known_before_give_all_their_results(api: Served, client: EdgeClient) -> None:
    known = [
        JobRequest(model="noop", items=(ITEM,) * 3, idempotency_key=f"key-{number}")
        for number in range(5)
    ]
    keys = [request.idempotency_key for request in known]
    first = [await client.submit("noop", [ITEM] * 3, idempotency_key=key) for key in keys]
    for status in first[:3]:
        for item in range(3):
            api.front.finish(status.job, item)
    api.front.finish(first[3].job, 0)
    running = asyncio.create_task(collect(client, known))
    await wait_until(lambda: api.front.submit_calls == 6)
    for status, item in ((first[3], 1), (first[4], 0), (first[3], 2), (first[4], 1), (first[4], 2)):
        api.front.finish(status.job, item)
    got = await running
    assert sorted((found.index, found.result.cursor) for found in got if found.result) == [
        (index, cursor) for index in range(5) for cursor in (1, 2, 3)
    ]
    assert {found.key for found in got} == {request.idempotency_key for request in known}


async def test_the_same_key_twice_in_one_call(api: Served, client: EdgeClient) -> None:
    twice = [JobRequest(model="noop", items=(ITEM,), idempotency_key="k")] * 2
    running = asyncio.create_task(collect(client, twice))
    await wait_until(lambda: len(api.front.jobs_by_id) == 1)
    api.front.finish("job-0", 0)
    got = {found.index: found for found in await running}
    assert got[0].result is not None
    assert got[1].problem is not None
    assert got[1].problem.code == "duplicate_key"


async def test_other_jobs_of_the_tenant_are_not_ours(api: Served, client: EdgeClient) -> None:
    other = await client.submit("noop", [ITEM] * 50)
    ours = asyncio.create_task(collect(client, requests(3)))
    await wait_until(lambda: len(api.front.jobs_by_id) == 4)
    for item in range(50):
        api.front.finish(other.job, item)
    for name in list(api.front.jobs_by_id)[1:]:
        api.front.finish(name, 0)
    assert sorted(found.index for found in await ours) == [0, 1, 2]


async def test_results_that_come_before_the_answer_are_kept(
    api: Served, client: EdgeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer waits until the feed has delivered; with few places the feed waits for it."""
    monkeypatch.setattr(limits, "CLIENT_EARLY_ENTRIES_MAX", 10)
    front = api.front
    submit = front.submit

    async def late(tenant: str, jobs: list[JobRequest]) -> object:
        answers = await submit(tenant, jobs)
        pulled = front.pages_pulled
        for answer in answers:
            assert answer.status is not None
            for item in range(answer.status.items):
                front.finish(answer.status.job, item)
        await wait_until(lambda: front.pages_pulled > pulled)
        return answers

    monkeypatch.setattr(front, "submit", late)
    got = await collect(client, requests(30, items=2))
    pairs = sorted((found.index, found.result.item) for found in got if found.result)
    assert pairs == [(index, item) for index in range(30) for item in range(2)]


async def test_cancelled_and_deleted_jobs_end_with_a_problem(
    api: Served, client: EdgeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CLIENT_QUIET_CHECK_S", 0.02)
    running = asyncio.create_task(collect(client, requests(4, items=2)))
    await wait_until(lambda: len(api.front.jobs_by_id) == 4)
    api.front.finish("job-0", 0)
    await client.cancel("job-0")
    await client.delete("job-1")
    await client.cancel("job-2")
    for item in range(2):
        api.front.finish("job-3", item)
    got = await running
    by_job = {
        name: [found for found in got if found.job == name] for name in ("job-0", "job-1", "job-2")
    }
    assert [found.result is not None for found in by_job["job-0"]] == [True, False]
    problems = {name: found[-1].problem for name, found in by_job.items()}
    assert problems["job-0"] is not None
    assert problems["job-0"].code == "job_ended"
    assert JobState.CANCELLED.value in problems["job-0"].message
    assert problems["job-1"] is not None
    assert problems["job-1"].code == "job_deleted"
    assert problems["job-2"] is not None
    assert len([found for found in got if found.job == "job-3"]) == 2


async def test_a_slow_consumer_stops_the_stream(
    api: Served, client: EdgeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CLIENT_RESULT_PAGES_MAX", 2)
    monkeypatch.setattr(limits, "CLIENT_OPEN_JOBS_MAX", 300)
    api.front.auto_finish = True
    taken = 0

    def endless() -> Iterator[JobRequest]:
        nonlocal taken
        while taken < 20_000:
            taken += 1
            yield JobRequest(model="noop", items=(ITEM,))

    async with aclosing(client.submit_many(endless())) as results:
        await anext(results)
        settled, turns = -1, 0
        async with asyncio.timeout(30):
            while turns < 3_000:
                await asyncio.sleep(0)
                turns = turns + 1 if taken == settled else 0
                settled = taken
        assert taken < 8_000
        count = 1
        async for _ in results:
            count += 1
            if count == 9_000:
                break
    assert taken >= 9_000


async def test_leaving_early_leaves_nothing_behind(api: Served, client: EdgeClient) -> None:
    before = asyncio.all_tasks()
    api.front.auto_finish = True
    async with aclosing(client.submit_many(requests(600))) as results:
        async for _ in results:
            break
    await wait_until(lambda: api.front.open_iterators == 0)
    await wait_until(lambda: len(asyncio.all_tasks() - before) <= 3)  # the server's connections


async def test_a_failing_iterable_is_the_callers_exception(client: EdgeClient) -> None:
    def broken() -> Iterator[JobRequest]:
        yield from requests(3)
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        await collect(client, broken())


async def test_unreachable_from_the_start_and_on_the_way() -> None:
    front = MemoryFront()
    async with served(front) as api:
        client = EdgeClient(api.server.url, unreachable_after_s=0.2)
        await client.__aenter__()
        running = asyncio.create_task(collect(client, requests(2)))
        await wait_until(lambda: len(front.jobs_by_id) == 2)
    with pytest.raises(Exception, match="no answer"):
        await running
    with pytest.raises(Exception, match="no answer"):
        await collect(client, requests(2))
    await client.__aexit__()
