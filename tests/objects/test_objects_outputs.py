"""Large outputs from engine to requester: real dispatcher, sockets, store, cars and engine."""

import asyncio
import io
from http import HTTPStatus
from pathlib import Path

import msgspec
import pytest
from fill_model import count, filled, write_fill
from objects_cars import Garage
from objects_house import TUS, ObjectsHouse, digest_of, eventually, open_house

from edge_runtime.bus import BusSettings, MemoryBroker, MemoryBus, Message
from edge_runtime.client import ContractBroken, ItemResult
from edge_runtime.contract import codec, limits
from edge_runtime.contract.http import ItemInput, JobRequest
from edge_runtime.contract.messages import (
    JobResults,
    OutputReference,
)
from edge_runtime.contract.reasons import ItemError
from edge_runtime.contract.tensors import Tensor

WAIT_S = 60.0
VALUES = 100_000
LARGE = filled(VALUES)
NAME = digest_of(LARGE)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_fill(tmp_path / "models")
    return tmp_path / "models"


def values_in(result: ItemResult) -> int:
    (tensor,) = msgspec.convert(result.output, list[Tensor])
    assert len(tensor.data) == 4 * tensor.shape[0]
    return tensor.shape[0]


async def test_large_outputs_reach_the_requester_whole(
    house: ObjectsHouse, garage: Garage, tmp_path: Path
) -> None:
    async with asyncio.timeout(WAIT_S), garage.car() as car, house.client() as client:
        before = car.core.work.energy.spent(car._clock()).data_mb_month
        handle = client.submit("fill", [count(n) for n in (10, VALUES, 60_000, VALUES)])
        results = {result.item: result async for result in handle}
        assert {item: values_in(r) for item, r in results.items()} == {
            0: 10,
            1: VALUES,
            2: 60_000,
            3: VALUES,
        }
        ref = results[1].ref
        assert ref is not None
        assert ref == OutputReference(sha256=NAME, length=len(LARGE), url=f"/objects/{NAME}")
        assert results[0].ref is None
        assert len(house.objects) == 2, "what is the same is kept once"
        # By hand, and as a file.
        assert (await house.ask("GET", ref.url)).body == LARGE
        saved = await client.save(ref, tmp_path / "outputs")
        assert saved.read_bytes() == LARGE
        (left,) = [
            one async for one in client.handle(handle.id, cursor=3, download=False) if one.ref
        ] or [None]
        assert left is None or left.output is None
        # The owner's data budget pays for what left.
        await eventually(
            lambda: car.core.work.energy.spent(car._clock()).data_mb_month - before > 0.6
        )
        # Answered: the journal has nothing more of it.
        await eventually(lambda: car.core.work.outbox.count == 0)
        assert not (garage.folder / "car-1" / "outputs").exists()


async def test_an_output_of_the_largest_size_goes_through_and_no_larger(
    house: ObjectsHouse, garage: Garage
) -> None:
    most = (limits.OBJECT_MAX_BYTES - 64) // 4
    async with asyncio.timeout(WAIT_S), garage.car(), house.client() as client:
        inputs = [count(most), count(limits.OBJECT_MAX_BYTES // 4 + 1)]
        results = {r.item: r async for r in client.submit("fill", inputs)}
    assert values_in(results[0]) == most
    assert results[1].error is not None
    assert results[1].error.code is ItemError.RESULT_TOO_LARGE
    assert str(limits.OBJECT_MAX_BYTES) in results[1].error.message


async def test_many_jobs_have_their_large_outputs_too(house: ObjectsHouse, garage: Garage) -> None:
    requests = [JobRequest(model="fill", items=(ItemInput(data=count(n)),)) for n in (5, VALUES)]
    async with asyncio.timeout(WAIT_S), garage.car(), house.client() as client:
        found = {one.index: one.result async for one in client.submit_many(requests)}
    assert {i: values_in(r) for i, r in found.items() if r is not None} == {0: 5, 1: VALUES}


async def test_third_parties_are_told_where_it_is(
    house: ObjectsHouse, garage: Garage, broker: MemoryBroker
) -> None:
    settings = BusSettings("memory://", "third", subscriptions=(("er/1/t/#", 1),))
    async with asyncio.timeout(WAIT_S), MemoryBus(settings, broker) as third, house.client() as me:
        events = third.events()
        await anext(events)
        async with garage.car():
            await anext(aiter(me.submit("fill", [count(VALUES)])))
        while True:
            message = await anext(events)
            if isinstance(message, Message) and message.topic.endswith("/results"):
                break
    told = codec.decode_public(message.payload)
    assert isinstance(told, JobResults)
    (entry,) = told.results
    assert entry.ref == OutputReference(sha256=NAME, length=len(LARGE), url=f"/objects/{NAME}")
    assert not bytes(entry.output)
    as_json = await house.ask("GET", f"/v1/jobs/{told.job}/results", Accept="application/x-ndjson")
    line = msgspec.json.decode(as_json.body.splitlines()[0])
    assert line["ref"] == {"sha256": NAME, "length": len(LARGE), "url": f"/objects/{NAME}"}
    assert "output" not in line


async def test_results_and_outputs_survive_a_restart_of_the_dispatcher(
    tmp_path: Path, broker: MemoryBroker, models: Path, garage: Garage
) -> None:
    async with asyncio.timeout(WAIT_S):
        async with open_house(tmp_path, broker, models) as first, first.client() as client:
            handle = client.submit("fill", [count(VALUES)])
            async with garage.car():
                await anext(aiter(handle))
        async with open_house(tmp_path, broker, models) as then, then.client() as client:
            (result,) = [one async for one in client.results(handle.id)]
    assert values_in(result) == VALUES


async def test_an_output_goes_with_its_job_and_not_before(
    house: ObjectsHouse, garage: Garage
) -> None:
    async with asyncio.timeout(WAIT_S), garage.car(), house.client() as client:
        handle = client.submit("fill", [count(VALUES)])
        await anext(aiter(handle))
        in_use = await house.ask("DELETE", f"/objects/{NAME}", **TUS)
        assert (in_use.status, in_use.code) == (HTTPStatus.CONFLICT, "in_use")
        house.clock.ahead_ms += 3 * limits.OBJECT_LOOK_S * 1000
        await house.objects.sweep()
        assert len(house.objects) == 1
        await handle.delete()
        house.clock.ahead_ms += 2 * limits.OBJECT_LOOK_S * 1000
        await house.objects.sweep()
        assert len(house.objects) == 0, "nobody uploaded it but for the job"
        assert list(house.kept.rglob(NAME)) == []


async def test_what_is_gone_or_damaged_is_said_of_its_item(
    house: ObjectsHouse, garage: Garage
) -> None:
    async with asyncio.timeout(WAIT_S), garage.car(), house.client() as client:
        handle = client.submit("fill", [count(VALUES)])
        await anext(aiter(handle))
        kept = house.kept / "default" / NAME
        kept.write_bytes(filled(VALUES)[:-1] + b"x")
        with pytest.raises(ContractBroken, match="another SHA-256"):
            await anext(client.results(handle.id))
        house.objects._objects.pop(f"default/{NAME}")
        (result,) = [one async for one in client.results(handle.id)]
    assert result.error is not None
    assert result.error.code is ItemError.OUTPUT_UNAVAILABLE


# --- the dispatcher's door ----------------------------------------------------------------------


async def test_an_output_is_put_only_with_the_ticket_of_its_open_job(house: ObjectsHouse) -> None:
    async with house.client() as client, house.client("other") as other:
        job = (await client.submit("fill", [count(VALUES)])).job
        theirs = (await other.submit("fill", [count(VALUES)])).job
        place = house.objects.output_place("default", job)
        ticket = place.split("/")[-2]
        for wrong in (
            place.replace("/default/", "/other/"),
            place.replace(job, theirs),
            place.replace(ticket, "0" * len(ticket)),
            house.objects.output_place("default", theirs),
            house.objects.output_place("default", "nothing"),
        ):
            assert await house.put_output(wrong, LARGE) == HTTPStatus.NOT_FOUND, wrong
        assert await house.put_output(place, LARGE) == HTTPStatus.NO_CONTENT
        assert await house.put_output(place, LARGE) == HTTPStatus.OK, "it is there"
        # A ticket of a job reads nothing, and the other tenant's reads nothing of ours.
        for method in ("GET", "HEAD", "DELETE"):
            answer = await house.ask(method, f"{place}/{NAME}", **TUS)
            assert answer.status == HTTPStatus.NOT_FOUND
        assert (await house.ask("GET", f"/objects/{NAME}", X_Tenant="other")).status == 404
        assert (await house.ask("GET", f"/objects/{NAME}")).body == LARGE
        await client.cancel(job)
        assert await house.put_output(place, b"late") == HTTPStatus.GONE


async def test_wrong_bytes_and_too_many_are_refused(
    house: ObjectsHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house.client() as client:
        job = (await client.submit("fill", [count(VALUES)])).job
        place = house.objects.output_place("default", job)
        assert (await house.create(LARGE, place=place)).status == HTTPStatus.CREATED
        lies = io.BytesIO(bytes(len(LARGE)))
        wrong = await house.patch(NAME, 0, lies, place)
        assert (wrong.status, wrong.code) == (HTTPStatus.UNPROCESSABLE_ENTITY, "wrong_hash")
        too_long = await house.create(LARGE, limits.OBJECT_MAX_BYTES + 1, place)
        assert too_long.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        monkeypatch.setattr(limits, "STORE_RESERVE_BYTES", 1 << 60)
        assert await house.put_output(place, LARGE) == HTTPStatus.INSUFFICIENT_STORAGE
