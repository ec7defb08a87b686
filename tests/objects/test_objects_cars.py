"""Large inputs from the client to the answer: real dispatcher, sockets, store, cars and engine."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from objects_cars import POLICY, Garage, sum_in, vector, write_sum
from objects_house import ObjectsHouse, digest_of, eventually, open_house

from edge_runtime.bus import MemoryBroker
from edge_runtime.client import JobRefused
from edge_runtime.contract import limits
from edge_runtime.contract.http import ItemInput, JobRequest
from edge_runtime.contract.messages import Reference
from edge_runtime.contract.reasons import ItemError, JobState
from edge_runtime.vehicle.core.commands import FetchInputs
from edge_runtime.vehicle.core.events import Event, InputsFailed, InputsFetched
from edge_runtime.vehicle.objects import InputFetcher

WAIT_S = 60.0
SMALL, LARGE = vector(10), vector(100_000)
OTHER = vector(60_000, of=0.5)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_sum(tmp_path / "models")
    return tmp_path / "models"


async def test_a_large_input_is_uploaded_fetched_and_computed(
    house: ObjectsHouse, garage: Garage
) -> None:
    async with asyncio.timeout(WAIT_S), garage.car() as car, house.client() as client:
        before = car.core.work.energy.spent(car._clock()).data_mb_month
        results = [r async for r in client.submit("sum", [SMALL, LARGE, OTHER, LARGE])]
        sums = {result.item: sum_in(result.output) for result in results}
        assert sums == {0: 10.0, 1: 100_000.0, 2: 30_000.0, 3: 100_000.0}
        assert len(house.objects) == 2
        assert list((garage.folder / "car-1" / "inputs").iterdir()) == []
        # The owner's data budget pays for what was fetched.
        await eventually(
            lambda: car.core.work.energy.spent(car._clock()).data_mb_month - before > 0.6
        )


async def test_an_input_of_the_largest_size_goes_through(
    house: ObjectsHouse, garage: Garage
) -> None:
    values = (limits.OBJECT_MAX_BYTES - 64) // 4
    async with asyncio.timeout(WAIT_S), garage.car(), house.client() as client:
        results = [r async for r in client.submit("sum", [vector(values), vector(values, of=2.0)])]
    assert {r.item: sum_in(r.output) for r in results} == {0: values, 1: 2.0 * values}


async def test_many_jobs_upload_what_is_large_and_tell_of_what_is_too_large(
    house: ObjectsHouse, garage: Garage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "OBJECT_MAX_BYTES", len(LARGE))
    requests = [
        JobRequest(model="sum", items=(ItemInput(data=data),))
        for data in (LARGE, SMALL, LARGE + b"x", OTHER)
    ]
    async with asyncio.timeout(WAIT_S), garage.car(), house.client() as client:
        found = {one.index: one async for one in client.submit_many(requests)}
    assert {i: sum_in(one.result.output) for i, one in found.items() if one.result} == {
        0: 100_000.0,
        1: 10.0,
        3: 30_000.0,
    }
    problem = found[2].problem
    assert problem is not None
    assert (problem.code, problem.field) == ("too_large", "items[0]")


async def test_what_is_there_already_is_not_uploaded_again(house: ObjectsHouse) -> None:
    async with house.client() as client:
        name = await client.upload(LARGE)
        assert name == digest_of(LARGE)
        assert await client.upload(LARGE) == name
        with pytest.raises(JobRefused, match="too_large"):
            await client.upload(bytes(limits.OBJECT_MAX_BYTES + 1))
    assert house.service.counters["objects_stored"] == 1


async def test_an_upload_by_the_client_survives_a_restart_of_the_dispatcher(
    tmp_path: Path, broker: MemoryBroker, models: Path
) -> None:
    data = os.urandom(4_000_000)
    async with open_house(tmp_path, broker, models) as first:
        port = first.server.port
        client = first.client()
        await first.create(data)
        await first.patch(digest_of(data), 0, data[:500_000])
    async with client:
        uploading = asyncio.create_task(client.upload(data))
        async with asyncio.timeout(WAIT_S), open_house(tmp_path, broker, models, port=port) as then:
            assert await uploading == digest_of(data)
            assert (await then.ask("GET", f"/objects/{digest_of(data)}")).body == data


async def test_an_object_that_changed_on_disk_reaches_no_model(
    house: ObjectsHouse, garage: Garage
) -> None:
    async with asyncio.timeout(WAIT_S), house.client() as client:
        handle = client.submit("sum", [SMALL, LARGE])
        await handle
        kept = house.kept / "default" / digest_of(LARGE)
        kept.write_bytes(vector(100_000, of=2.0))
        async with garage.car("car-1"), garage.car("car-2"), garage.car("car-3"):
            results = {result.item: result async for result in handle}
        assert sum_in(results[0].output) == 10.0
        assert results[1].error is not None
        assert results[1].error.code is ItemError.INPUT_UNAVAILABLE
        assert (await handle).state is JobState.DONE


async def test_an_object_that_is_gone_fails_its_item_alone(
    house: ObjectsHouse, garage: Garage
) -> None:
    async with asyncio.timeout(WAIT_S), house.client() as client:
        handle = client.submit("sum", [SMALL, LARGE])
        await handle
        house.objects._objects.pop(f"default/{digest_of(LARGE)}")
        async with garage.car("car-1"), garage.car("car-2"), garage.car("car-3"):
            results = {result.item: result async for result in handle}
    assert sum_in(results[0].output) == 10.0
    assert results[1].error is not None
    assert results[1].error.code is ItemError.INPUT_UNAVAILABLE
    assert results[1].error.attempts >= 3


async def test_a_store_that_is_away_for_a_while_costs_only_time(
    house: ObjectsHouse, garage: Garage
) -> None:
    async with asyncio.timeout(WAIT_S), house.client() as client:
        handle = client.submit("sum", [LARGE])
        await handle
        kept = house.kept / "default"
        kept.rename(house.kept / "away")
        async with garage.car() as car:
            await eventually(lambda: any(a.is_fetching for a in car.core.work.attempts.values()))
            (house.kept / "away").rename(kept)
            (result,) = [one async for one in handle]
    assert sum_in(result.output) == 100_000.0


async def test_a_fetch_ends_when_the_owner_forbids_the_network(
    house: ObjectsHouse, tmp_path: Path
) -> None:
    name = await house.upload(LARGE)
    ref = Reference(sha256=name, length=len(LARGE), url=house.path_for_cars("default", name))
    told: list[Event] = []
    is_allowed = False
    fetcher = InputFetcher(
        tmp_path / "inputs",
        urls=lambda: [house.server.url],
        tell=told.append,
        may_fetch=lambda unit: is_allowed and unit == 7,
    )
    await fetcher.fetch(FetchInputs(7, ((0, ref),)))
    is_allowed = True
    await fetcher.fetch(FetchInputs(8, ((0, ref),)))
    assert [type(event) for event in told] == [InputsFailed, InputsFailed]
    assert fetcher.take_received_bytes() == 0
    await fetcher.fetch(FetchInputs(7, ((0, ref), (3, ref))))
    fetched = told[-1]
    assert isinstance(fetched, InputsFetched)
    assert [(one.index, one.data) for one in fetched.inputs] == [(0, LARGE), (3, LARGE)]
    assert fetched.broken == ()
    assert fetcher.take_received_bytes() == len(LARGE)


async def test_a_fetch_that_broke_off_goes_on_where_it_ended(
    house: ObjectsHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "OBJECT_FETCH_RETRY_S", 0.01)
    name = await house.upload(LARGE)
    url = house.path_for_cars("default", name)
    ref = Reference(sha256=name, length=len(LARGE), url=url)
    told: list[Event] = []
    here = ["http://127.0.0.1:9"]
    fetcher = InputFetcher(
        tmp_path / "inputs", urls=lambda: here, tell=told.append, may_fetch=lambda _unit: True
    )
    await fetcher.fetch(FetchInputs(1, ((0, ref),)))
    assert isinstance(told[-1], InputsFailed)
    (tmp_path / "inputs" / name).write_bytes(LARGE[:300_000])
    here[:] = [house.server.url]
    await fetcher.fetch(FetchInputs(1, ((0, ref),)))
    assert isinstance(told[-1], InputsFetched)
    assert told[-1].inputs[0].data == LARGE
    assert fetcher.take_received_bytes() == len(LARGE) - 300_000


async def test_a_full_disk_gives_the_unit_back(
    house: ObjectsHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = await house.upload(LARGE)
    ref = Reference(sha256=name, length=len(LARGE), url=house.path_for_cars("default", name))
    told: list[Event] = []
    fetcher = InputFetcher(
        tmp_path / "inputs",
        urls=lambda: [house.server.url],
        tell=told.append,
        may_fetch=lambda _unit: True,
    )
    monkeypatch.setattr(limits, "JOURNAL_RESERVE_BYTES", 1 << 60)
    await fetcher.fetch(FetchInputs(1, ((0, ref),)))
    (failed,) = told
    assert isinstance(failed, InputsFailed)
    assert "do not fit" in failed.message
    assert fetcher.take_received_bytes() == 0


async def test_without_consent_nothing_is_fetched(house: ObjectsHouse, garage: Garage) -> None:
    garage.policy.write_text(POLICY.replace("true", "false"))
    async with asyncio.timeout(WAIT_S), house.client() as client, garage.car() as car:
        handle = client.submit("sum", [LARGE])
        await handle
        await eventually(lambda: len(house.service.core.fleet) == 1)
        assert not car.core.work.attempts
        assert not (garage.folder / "car-1" / "inputs").exists()
        garage.policy.write_text(POLICY)
        (result,) = [one async for one in handle]
        assert sum_in(result.output) == 100_000.0


async def test_a_restart_keeps_references_and_a_requeue_runs_them_again(
    tmp_path: Path, broker: MemoryBroker, models: Path, garage: Garage
) -> None:
    async with asyncio.timeout(WAIT_S):
        async with open_house(tmp_path, broker, models) as first, first.client() as client:
            handle = client.submit("sum", [SMALL, LARGE])
            await handle
            first.objects._objects.pop(f"default/{digest_of(LARGE)}")
            async with garage.car("car-1"), garage.car("car-2"), garage.car("car-3"):
                results = [result async for result in handle]
            assert sum(result.error is not None for result in results) == 1
        async with open_house(tmp_path, broker, models) as then, then.client() as client:
            # Its record is read again: the object is there, as after a backup was put back.
            assert await client.requeue(handle.id) == 1
            async with garage.car("car-4"):
                again = [one async for one in client.results(handle.id, cursor=2)]
    assert [(one.item, sum_in(one.output)) for one in again] == [(1, 100_000.0)]


async def test_an_open_job_goes_on_with_its_references_after_a_restart(
    tmp_path: Path, broker: MemoryBroker, models: Path, garage: Garage
) -> None:
    async with asyncio.timeout(WAIT_S):
        async with open_house(tmp_path, broker, models) as first, first.client() as client:
            job = (await client.submit("sum", [LARGE, SMALL], idempotency_key="k")).job
        async with open_house(tmp_path, broker, models) as then, then.client() as client:
            repeat = await client.submit("sum", [LARGE, SMALL], idempotency_key="k")
            assert repeat.job == job
            with pytest.raises(JobRefused, match="idempotency_conflict"):
                await client.submit("sum", [OTHER, SMALL], idempotency_key="k")
            async with garage.car():
                sums = {r.item: sum_in(r.output) async for r in client.results(job)}
    assert sums == {0: 100_000.0, 1: 10.0}


async def test_two_who_upload_the_same_bytes_at_once_both_have_them(house: ObjectsHouse) -> None:
    data = os.urandom(2_000_000)
    async with asyncio.timeout(WAIT_S), house.client() as one, house.client() as other:
        names = await asyncio.gather(*(who.upload(data) for who in (one, other, one, other)))
    assert set(names) == {digest_of(data)}
    assert len(house.objects) == 1


async def test_one_key_twice_at_once_is_one_job_though_one_of_them_keeps_its_objects_later(
    house: ObjectsHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both find that nobody knows the key; the second is at its objects until the first is done."""
    use, is_second, may_go_on = house.objects.use, asyncio.Event(), asyncio.Event()

    async def slow_use(*arguments: Any) -> None:
        await use(*arguments)
        if not is_second.is_set():
            is_second.set()
            await may_go_on.wait()

    monkeypatch.setattr(house.objects, "use", slow_use)
    name = await house.upload(LARGE)
    items = [ItemInput(ref=name)]
    async with asyncio.timeout(WAIT_S), house.client() as client:
        slow = client.submit("sum", items, idempotency_key="night")
        accepting = asyncio.create_task(slow.status())
        await is_second.wait()
        quick = await client.submit("sum", items, idempotency_key="night")
        may_go_on.set()
        assert (await accepting).job == quick.job
        assert (await client.status(quick.job)).state is JobState.ACCEPTED
        assert house.service.store_state == "ok"
