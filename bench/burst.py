"""Bursts of one-item no-op jobs, each durable before it is accepted, until all results are back.

`burst_jobs_per_s` submits 2,000 jobs through the SDK's `submit_many`; `single_post_jobs_per_s`
submits each with a POST of its own, 64 at a time. Broker, dispatcher and one car with a real
inference process, all started by the command line.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Iterator
from typing import Final

from _rig import TENANT, Load, Rig, ask, figure, median, say, tensor_item

from edge_runtime.client import EdgeClient
from edge_runtime.contract.http import ItemInput, JobRequest

JOBS: Final = 2_000
SINGLE_JOBS: Final = 1_000
POSTS_AT_ONCE: Final = 64
UNITS_MAX: Final = 256
"""Units that the one car holds at once: with 64, four waits for a disk would be the bound."""
ROUNDS: Final = 5
TIMEOUT_S: Final = 120.0


def _requests(count: int) -> list[JobRequest]:
    item = ItemInput(data=tensor_item(1.0))
    return [JobRequest(model="noop", items=(item,)) for _ in range(count)]


async def warm_up(client: EdgeClient) -> None:
    """Load the model and let the dispatcher measure the car."""
    async for result in client.submit("noop", [ItemInput(data=tensor_item(1.0))] * 64):
        assert result.ok, result


async def burst(client: EdgeClient, count: int = JOBS) -> float:
    """Jobs per second through `submit_many`."""
    requests = _requests(count)
    seen: set[int] = set()
    started_s = time.perf_counter()
    async with asyncio.timeout(TIMEOUT_S):
        async for one in client.submit_many(requests):
            assert one.result is not None, one
            assert one.result.ok, one
            seen.add(one.index)
    elapsed_s = time.perf_counter() - started_s
    assert len(seen) == count
    return count / elapsed_s


async def single_posts(client: EdgeClient) -> float:
    """Jobs per second with one POST a job; results come over the tenant's feed."""
    item = ItemInput(data=tensor_item(1.0))
    done: set[str] = set()
    changed = asyncio.Event()

    async def read() -> None:
        async for entry in client.feed():
            assert entry.result.ok, entry
            done.add(entry.job)
            changed.set()

    async def post(count: Iterator[int]) -> list[str]:
        return [(await client.submit("noop", [item])).job for _ in count]

    reader = asyncio.create_task(read())
    async with asyncio.timeout(TIMEOUT_S):
        while not done:  # jobs before the clock starts prove that the feed stands
            await client.submit("noop", [item])
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), 0.5)
        count = iter(range(SINGLE_JOBS))
        started_s = time.perf_counter()
        posted = await asyncio.gather(*(post(count) for _ in range(POSTS_AT_ONCE)))
        wanted = set(itertools.chain.from_iterable(posted))
        while not wanted <= done:
            changed.clear()
            await changed.wait()
        elapsed_s = time.perf_counter() - started_s
    reader.cancel()
    await asyncio.wait([reader])
    assert len(wanted) == SINGLE_JOBS
    return SINGLE_JOBS / elapsed_s


async def measure(rig: Rig) -> tuple[list[float], list[float]]:
    """Jobs per second of each round: bursts, single posts."""
    bursts, singles = [], []
    async with EdgeClient(rig.url, TENANT) as client:
        await warm_up(client)
        for _ in range(ROUNDS):
            bursts.append(await burst(client))
            singles.append(await single_posts(client))
            say(f"burst: {bursts[-1]:.0f} jobs/s; single posts: {singles[-1]:.0f} jobs/s")
    return bursts, singles


def main() -> None:
    """Measure and print."""
    with Rig() as rig:
        rig.start_broker()
        rig.start_dispatcher()
        rig.start_car(units_max=UNITS_MAX)
        rig.await_ready_car()
        with Load() as load:
            bursts, singles = asyncio.run(measure(rig))
        counters = ask(rig.url, "/v1/health")["counters"]
    shared = (
        f"2 cores: {rig.broker_kind}, dispatcher, one car with its engine,"
        " and the requester in this process"
    )
    facts = {"attempts": counters["attempts"], "jobs": counters["jobs"], "units_max": UNITS_MAX}
    facts |= load.facts()
    figure(
        "burst_jobs_per_s",
        median(bursts),
        "jobs/s",
        ">= 3200",
        shared=shared,
        digits=0,
        best=round(max(bursts)),
        worst=round(min(bursts)),
        **facts,
    )
    figure(
        "single_post_jobs_per_s",
        median(singles),
        "jobs/s",
        ">= 700",
        shared=shared,
        digits=0,
        best=round(max(singles)),
        worst=round(min(singles)),
        posts_at_once=POSTS_AT_ONCE,
        **load.facts(),
    )


if __name__ == "__main__":
    main()
