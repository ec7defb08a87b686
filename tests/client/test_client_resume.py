"""Restarts and cut connections: no repeat, no gap."""

import asyncio
from collections import Counter

import pytest
from cutting import cutting
from memory_front import MemoryFront
from serving import Served, served, wait_until

from edge_runtime.client import EdgeClient
from edge_runtime.contract.http import ItemInput, JobRequest

WAIT_S = 30.0


async def test_a_stream_goes_on_after_a_restart() -> None:
    front = MemoryFront()
    async with served(front) as first:
        port = first.server.port
        client = EdgeClient(first.server.url)
        await client.__aenter__()
        handle = client.submit("noop", ["x"] * 6)
        await handle
        stream = aiter(handle)
        for item in range(2):
            front.finish(handle.id, item)
        seen = [await anext(stream), await anext(stream)]
    # Down: nobody listens. What ends meanwhile must not be lost.
    front.finish(handle.id, 2)
    following = asyncio.create_task(anext(stream))
    async with served(front, port=port):
        seen.append(await asyncio.wait_for(following, WAIT_S))
        for item in range(3, 6):
            front.finish(handle.id, item)
        seen += [result async for result in stream]
        assert [result.cursor for result in seen] == [1, 2, 3, 4, 5, 6]
        assert (await handle).done == 6
    await client.__aexit__()


async def test_a_submission_survives_a_restart_and_makes_one_job() -> None:
    front = MemoryFront()
    front.submit_gate = asyncio.Event()
    async with served(front) as first, EdgeClient(first.server.url) as client:
        port = first.server.port
        handle = client.submit("noop", "x")
        submitting = asyncio.create_task(handle.status())
        await wait_until(lambda: front.submit_calls == 1)
        # The job is committed, the answer is lost with the connection.
        for connection in first.server._server.server_state.connections:
            connection.transport.abort()
        front.submit_gate.set()
        await wait_until(lambda: len(front.jobs_by_id) == 1)
        await first.server.close()
        async with served(front, port=port):
            assert (await asyncio.wait_for(submitting, WAIT_S)).job == "job-0"
    assert len(front.jobs_by_id) == 1


async def test_another_process_resumes_from_the_cursor(api: Served, client: EdgeClient) -> None:
    handle = client.submit("noop", ["x"] * 5)
    await handle
    for item in range(5):
        api.front.finish(handle.id, item)
    async for result in handle:
        if result.cursor == 3:
            break
    async with EdgeClient(api.server.url) as other:
        resumed = other.handle(handle.id, cursor=handle.cursor)
        assert [result.cursor async for result in resumed] == [4, 5]
        assert [result.cursor async for result in other.results(handle.id, 4)] == [5]


@pytest.mark.parametrize("seed", range(4))
async def test_cuts_at_any_byte_lose_and_repeat_nothing(api: Served, seed: int) -> None:
    items = 400
    async with (
        cutting(api.server.port, seed=seed, bytes_min=1, bytes_max=4_000) as proxy,
        EdgeClient(f"http://127.0.0.1:{proxy.port}") as client,
    ):
        handle = client.submit("noop", ["x"] * items)
        async with asyncio.timeout(WAIT_S):
            await handle

            async def finish() -> None:
                for item in range(items):
                    api.front.finish(handle.id, item, "o" * (item % 97))
                    if item % 20 == 0:
                        await asyncio.sleep(0)

            finishing = asyncio.create_task(finish())
            cursors = [result.cursor async for result in handle]
            await finishing
        assert cursors == list(range(1, items + 1))
        assert proxy.cuts > 0
    assert len(api.front.jobs_by_id) == 1


@pytest.mark.parametrize("seed", range(4))
async def test_submit_many_through_a_cutting_network(seed: int) -> None:
    jobs = 1_500
    front = MemoryFront(auto_finish=True)
    async with (
        served(front) as api,
        cutting(api.server.port, seed=seed, bytes_min=1, bytes_max=200_000) as proxy,
        EdgeClient(f"http://127.0.0.1:{proxy.port}") as client,
        asyncio.timeout(WAIT_S),
    ):
        requests = (
            JobRequest(model="noop", items=(ItemInput(text=str(number)),) * (1 + number % 3))
            for number in range(jobs)
        )
        got: Counter[tuple[int, int]] = Counter()
        async for found in client.submit_many(requests):
            assert found.problem is None
            assert found.result is not None
            got[found.index, found.result.item] += 1
        assert proxy.cuts > 0
    assert got == Counter(
        {(number, item): 1 for number in range(jobs) for item in range(1 + number % 3)}
    )
    assert len(front.jobs_by_id) == jobs


async def test_submit_many_over_restarts_on_the_same_port() -> None:
    jobs = 2_000
    front = MemoryFront()
    stop = asyncio.Event()

    async def work() -> None:
        """Finish what is open, a little at a time."""
        done = 0
        while not stop.is_set():
            names = list(front.jobs_by_id)[done : done + 100]
            for name in names:
                front.finish(name, 0)
            done += len(names)
            await asyncio.sleep(0.001)

    working = asyncio.create_task(work())
    got: Counter[int] = Counter()
    async with served(front) as api:
        port = api.server.port
        client = EdgeClient(api.server.url)
        await client.__aenter__()
        requests = (JobRequest(model="noop", items=(ItemInput(text="x"),)) for _ in range(jobs))
        results = client.submit_many(requests, requests_in_flight=2)
        async for found in results:
            got[found.index] += 1
            if len(got) == 50:
                break
    for target in (400, 900):
        async with served(front, port=port):
            async for found in results:
                got[found.index] += 1
                if len(got) == target:
                    break
    async with served(front, port=port), asyncio.timeout(WAIT_S):
        async for found in results:
            got[found.index] += 1
    assert got == Counter(range(jobs))
    assert len(front.jobs_by_id) == jobs
    stop.set()
    await working
    await client.__aexit__()
