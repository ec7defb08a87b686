"""Virtual time, and processes that die without a last word."""

import asyncio
import contextvars
import time
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from edge_runtime.sim.hosts import OneLife
from edge_runtime.sim.loop import SimLoop, Stuck, current_life


@pytest.fixture
def loop() -> Iterator[SimLoop]:
    loop = SimLoop(lambda: 0.001)
    asyncio.set_event_loop(loop)
    yield loop
    loop.bury()
    asyncio.set_event_loop(None)
    loop.close()


def start(loop: SimLoop, life: OneLife, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    context = contextvars.copy_context()
    context.run(current_life.set, life)
    return loop.create_task(work, context=context)


async def tick(heard: list[float]) -> None:
    try:
        while True:
            await asyncio.sleep(1)
            heard.append(asyncio.get_running_loop().time())
    finally:
        heard.append(-1)


def test_an_hour_passes_at_once(loop: SimLoop) -> None:
    began_s = time.perf_counter()
    loop.run_until_complete(asyncio.sleep(3_600))
    assert loop.time() == pytest.approx(3_600)
    assert time.perf_counter() - began_s < 5


def test_timeouts_and_threads_take_virtual_time(loop: SimLoop) -> None:
    async def main() -> str:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await asyncio.Event().wait()
        return await asyncio.to_thread(lambda: "done")

    assert loop.run_until_complete(main()) == "done"
    assert loop.time() == pytest.approx(10.001)


def test_what_a_thread_raises_reaches_its_caller(loop: SimLoop) -> None:
    def fail() -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        loop.run_until_complete(asyncio.to_thread(fail))


def test_the_dead_run_no_finally(loop: SimLoop) -> None:
    heard: list[float] = []
    life = OneLife("host", 1)

    async def main() -> None:
        start(loop, life, tick(heard))
        await asyncio.sleep(2.5)
        life.is_dead = True
        await asyncio.sleep(100)

    loop.run_until_complete(main())
    assert heard == [1, 2]


def test_a_thread_of_the_dead_never_ends_its_work(loop: SimLoop) -> None:
    done: list[str] = []
    life = OneLife("host", 1)

    async def work() -> None:
        await asyncio.to_thread(done.append, "written")

    async def main() -> None:
        start(loop, life, work())
        await asyncio.sleep(0.0005)
        life.is_dead = True
        await asyncio.sleep(1)

    loop.run_until_complete(main())
    assert done == []


def test_a_paused_life_goes_on_with_what_came_meanwhile(loop: SimLoop) -> None:
    heard: list[float] = []
    life = OneLife("host", 1)

    async def main() -> None:
        start(loop, life, tick(heard))
        await asyncio.sleep(1.5)
        life.is_paused = True
        await asyncio.sleep(10)
        life.is_paused = False
        loop.resume(life)
        await asyncio.sleep(1.1)

    loop.run_until_complete(main())
    assert heard == pytest.approx([1, 11.5, 12.5])


def test_a_world_in_which_nothing_will_happen_is_stuck(loop: SimLoop) -> None:
    async def for_ever() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Stuck):
        loop.run_until_complete(for_ever())


def test_sets_of_tasks_have_the_order_of_their_making(loop: SimLoop) -> None:
    async def main() -> list[str]:
        async def nothing() -> None:
            pass

        tasks = {asyncio.ensure_future(nothing()) for _ in range(50)}
        names = [task.get_name() for task in sorted(tasks, key=hash)]
        await asyncio.wait(tasks)
        return names

    names = loop.run_until_complete(main())
    assert names == sorted(names, key=lambda name: int(name.removeprefix("Task-")))
