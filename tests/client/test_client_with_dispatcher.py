"""The client and the API over the real dispatcher service: real core, SQLite and sockets.

Only the car is scripted; what real cars do is tested end to end elsewhere.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from scripted_car import ScriptedCar, echo

from edge_runtime.bus import BusSettings, MemoryBroker, MemoryBus
from edge_runtime.client import DispatcherRefused, EdgeClient, JobRefused
from edge_runtime.contract.http import ItemInput, JobRequest
from edge_runtime.contract.messages import ItemFailed, ItemResult
from edge_runtime.contract.reasons import ItemError, JobState
from edge_runtime.contract.tensors import Tensor
from edge_runtime.dispatcher.api import HttpServer, build_app, serve
from edge_runtime.dispatcher.desk import FrontDesk
from edge_runtime.dispatcher.service import DispatcherService, DispatcherSettings
from edge_runtime.dispatcher.storage import SqliteStore
from edge_runtime.vehicle.models.importers.synthetic import write_synthetic

WAIT_S = 60.0
TENSOR = Tensor(name="x", datatype="FP32", shape=(1,), data=bytes(4))
ITEM = ItemInput(data=msgspec.msgpack.encode([TENSOR]))

Dispatch = Callable[..., AbstractAsyncContextManager[HttpServer]]


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def dispatcher(tmp_path: Path, broker: MemoryBroker) -> Dispatch:
    """`async with dispatcher(port=…)`: the same store and broker each time."""
    models = tmp_path / "models"
    models.mkdir()
    write_synthetic("noop", models)

    def open_bus(settings: BusSettings) -> MemoryBus:
        return MemoryBus(settings, broker)

    @asynccontextmanager
    async def running(port: int = 0) -> AsyncIterator[HttpServer]:
        settings = DispatcherSettings("memory://", models_dir=models)
        store = SqliteStore(tmp_path / "store.db")
        async with DispatcherService(settings, store, open_bus) as service:
            app = build_app(FrontDesk(service), backup_dir=tmp_path / "backups")
            server = await serve(app, port=port)
            try:
                yield server
            finally:
                await server.close()

    return running


async def test_submit_to_results_and_the_operators_views(
    dispatcher: Dispatch, broker: MemoryBroker
) -> None:
    async with (
        asyncio.timeout(WAIT_S),
        dispatcher() as server,
        ScriptedCar(broker, "car1"),
        EdgeClient(server.url) as client,
    ):
        handle = client.submit("noop", [ITEM] * 300)
        results = [result async for result in handle]
        assert [result.cursor for result in results] == list(range(1, 301))
        assert all(result.output == {"item": result.item} for result in results)
        assert (await handle).state is JobState.DONE
        assert (await client.why(handle.id)).items_open == 0
        assert sum(attempt.items_done for attempt in await client.attempts(handle.id)) == 300
        assert [car.vehicle for car in (await client.fleet()).cars] == ["car1"]
        assert [model.name for model in await client.models()] == ["noop"]
        assert (await client.health()).ready
        assert (await client.backup("copy.db")).bytes > 0
        assert await client.dead_letters() == []
        again = client.submit("noop", [ITEM], idempotency_key="k")
        await again
        with pytest.raises(JobRefused):
            await client.submit("noop", [ITEM] * 2, idempotency_key="k")
        with pytest.raises(JobRefused):
            await client.submit("no-such-model", [ITEM])
        await handle.delete()
        with pytest.raises(DispatcherRefused):
            await handle


async def test_a_stream_goes_on_over_a_restart_of_the_dispatcher(
    dispatcher: Dispatch, broker: MemoryBroker
) -> None:
    items = 600
    async with asyncio.timeout(WAIT_S), ScriptedCar(broker, "car1", works=False) as car:
        async with dispatcher() as first:
            port = first.port
            client = await EdgeClient(first.url).__aenter__()
            handle = client.submit("noop", [ITEM] * items)
            stream = aiter(handle)
            reading = asyncio.create_task(anext(stream))
            await car.until(lambda car: bool(car.offers))
            car.chunks(car.finished(car.offers[0]))
            seen = [await reading]
        async with dispatcher(port=port):
            car.works = True
            car.chunks(*(car.finished(unit) for unit in car.offers[1:]))
            seen += [result async for result in stream]
        assert [result.cursor for result in seen] == list(range(1, items + 1))
        assert Counter(result.item for result in seen) == Counter(range(items))
        await client.__aexit__()


async def test_many_jobs_over_a_restart_of_the_dispatcher(
    dispatcher: Dispatch, broker: MemoryBroker
) -> None:
    jobs = 900
    got: Counter[int] = Counter()
    async with asyncio.timeout(WAIT_S), ScriptedCar(broker, "car1"):
        async with dispatcher() as first:
            port = first.port
            client = await EdgeClient(first.url).__aenter__()
            results = client.submit_many(
                (JobRequest(model="noop", items=(ITEM,)) for _ in range(jobs)),
                requests_in_flight=1,
            )
            async for found in results:
                got[found.index] += 1
                if len(got) == 100:
                    break
        async with dispatcher(port=port):
            async for found in results:
                assert found.problem is None
                got[found.index] += 1
            assert len(await client.jobs(limit=1000)) == jobs
        await client.__aexit__()
    assert got == Counter(range(jobs))


async def test_who_reads_a_job_whose_failures_were_run_again_reads_all_of_it(
    dispatcher: Dispatch, broker: MemoryBroker
) -> None:
    """Their cursors are in use no more: that is no gap."""
    wrong = {1, 2}

    def answer(index: int) -> ItemResult:
        if index in wrong:
            return ItemFailed(index=index, code=ItemError.RESULT_TOO_LARGE, message="large")
        return echo(index)

    request = JobRequest(model="noop", items=(ITEM,) * 5, idempotency_key="night")
    async with (
        asyncio.timeout(WAIT_S),
        dispatcher() as server,
        ScriptedCar(broker, "car1", answer=answer),
        EdgeClient(server.url) as client,
    ):
        handle = client.submit("noop", [ITEM] * 5, idempotency_key="night")
        first = [result async for result in handle]
        assert sorted(result.item for result in first if not result.ok) == [1, 2]
        wrong.clear()
        assert await client.requeue(handle.id) == 2
        again = [result async for result in client.results(handle.id, first[-1].cursor)]
        assert [(result.cursor, result.ok) for result in again] == [(6, True), (7, True)]
        from_start = [result async for result in client.results(handle.id)]
        cursors = [result.cursor for result in from_start]
        assert cursors == sorted(cursors)
        assert sorted(result.item for result in from_start) == list(range(5))
        assert all(result.ok for result in from_start)
        many = [found async for found in client.submit_many([request])]
    assert all(found.problem is None for found in many)
    assert sorted(found.result.item for found in many if found.result) == list(range(5))
