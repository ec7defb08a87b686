"""Large outputs where something is wrong: cars that lie, quotas, disks, owners, crashes."""

import asyncio
from http import HTTPStatus
from pathlib import Path

import msgspec
import pytest
from fill_model import count, filled, write_fill
from lying_car import lying_car
from objects_cars import Garage
from objects_house import ObjectsHouse, digest_of, eventually

from edge_runtime.bus import MemoryBroker
from edge_runtime.contract import limits
from edge_runtime.contract.http import Quota
from edge_runtime.contract.messages import Fence, Reference
from edge_runtime.contract.reasons import ItemError, JobState
from edge_runtime.vehicle.core.commands import UploadOutputs
from edge_runtime.vehicle.core.events import Event, OutputsFailed, OutputsUploaded
from edge_runtime.vehicle.models.orders import Patience
from edge_runtime.vehicle.objects import OutputSender

WAIT_S = 60.0
VALUES = 100_000
LARGE = filled(VALUES)
NAME = digest_of(LARGE)
F1 = Fence(1, 1)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_fill(tmp_path / "models")
    return tmp_path / "models"


# --- cars that lie ------------------------------------------------------------------------------


async def test_a_reference_that_leads_nowhere_fails_and_the_next_car_does_better(
    house: ObjectsHouse, garage: Garage, broker: MemoryBroker
) -> None:
    async with asyncio.timeout(WAIT_S), house.client() as client, house.client("other") as other:
        await other.submit("fill", [count(VALUES)])
        async with lying_car(broker) as liar:
            theirs = await liar.offered()
            handle = client.submit("fill", [count(VALUES)])
            await handle
            unit = await liar.offered()
            assert (unit.tenant, theirs.tenant) == ("default", "other")
            # What another tenant's job put is whole there, and is not this job's.
            assert await house.put_output(theirs.outputs, LARGE) == HTTPStatus.NO_CONTENT
            ref = Reference(sha256=NAME, length=len(LARGE), url=f"{theirs.outputs}/{NAME}")
            await liar.claim(unit, ref)
            await eventually(lambda: house.service.core.state.counters["strike_output_unavailable"])
        async with garage.car():
            (result,) = [one async for one in handle]
        assert result.ok
        assert result.vehicle == "car-1"
        assert result.ref is not None


@pytest.mark.parametrize("lie", ["never_put", "half", "length", "address", "other_hash"])
async def test_lies_about_outputs_are_strikes_and_never_results(
    house: ObjectsHouse, broker: MemoryBroker, lie: str
) -> None:
    async with asyncio.timeout(WAIT_S), house.client() as client, lying_car(broker) as liar:
        handle = client.submit("fill", [count(VALUES)])
        job = (await handle).job
        unit = await liar.offered()
        assert unit.outputs == house.objects.output_place("default", job)
        ref = Reference(sha256=NAME, length=len(LARGE), url=f"{unit.outputs}/{NAME}")
        match lie:
            case "never_put":
                pass
            case "half":
                await house.objects.create_output("default", job, NAME, len(LARGE))
            case "length":
                assert await house.put_output(unit.outputs, LARGE) == HTTPStatus.NO_CONTENT
                ref = msgspec.structs.replace(ref, length=len(LARGE) - 1)
            case "address":
                await house.upload(LARGE)
                ref = msgspec.structs.replace(ref, url=house.path_for_cars("default", NAME))
            case _:
                assert await house.put_output(unit.outputs, LARGE) == HTTPStatus.NO_CONTENT
                ref = msgspec.structs.replace(ref, sha256=digest_of(b"other"))
        await liar.claim(unit, ref)
        await eventually(lambda: house.service.core.state.counters["strike_output_unavailable"])
        assert (await handle).done == 0


async def test_an_output_of_the_tenant_that_was_not_put_for_the_job_is_not_taken(
    house: ObjectsHouse, broker: MemoryBroker
) -> None:
    async with asyncio.timeout(WAIT_S), house.client() as client, lying_car(broker) as liar:
        await house.upload(LARGE)
        handle = client.submit("fill", [count(VALUES)])
        await handle
        unit = await liar.offered()
        ref = Reference(sha256=NAME, length=len(LARGE), url=f"{unit.outputs}/{NAME}")
        await liar.claim(unit, ref)
        await eventually(lambda: house.service.core.state.counters["strike_output_unavailable"])
        again = await liar.offered()
        await house.objects.create_output("default", again.job, NAME, len(LARGE))
        ref = Reference(sha256=NAME, length=len(LARGE), url=f"{again.outputs}/{NAME}")
        await liar.claim(again, ref)
        (result,) = [one async for one in handle]
        assert result.ref is not None
        assert result.ref.sha256 == NAME


# --- no room ------------------------------------------------------------------------------------


async def test_a_tenant_without_room_is_told_so_and_no_other_car_tries(
    house: ObjectsHouse, garage: Garage
) -> None:
    async with asyncio.timeout(WAIT_S), house.client() as client, garage.car():
        await client.set_quota("default", Quota(bytes=300_000))
        (result,) = [one async for one in client.submit("fill", [count(VALUES)])]
        assert result.error is not None
        assert result.error.code is ItemError.RESULT_TOO_LARGE
        assert "quota" in result.error.message
        assert result.error.attempts == 1
        assert len(house.objects) == 0


async def test_a_car_with_a_full_disk_gives_the_output_up_and_another_computes_it(
    house: ObjectsHouse, garage: Garage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STORAGE_RETRY_MS", 200)
    async with asyncio.timeout(WAIT_S), house.client() as client:
        handle = client.submit("fill", [count(VALUES)])
        async with garage.car("car-1") as car:
            await eventually(lambda: len(house.service.core.fleet) == 1)
            has_room = car._journal._has_room
            car._journal._has_room = lambda more=0: more == 0 and has_room()  # type: ignore[method-assign] # a disk with room for results, and for no more
            await handle
            await eventually(
                lambda: house.service.core.state.counters["strike_output_unavailable"] == 1
            )
            async with garage.car("car-2"):
                (result,) = [one async for one in handle]
        assert result.ok
        assert result.vehicle == "car-2"


async def test_a_dispatcher_with_a_full_disk_costs_only_time(
    house: ObjectsHouse, garage: Garage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CHUNK_RESEND_MS", 200)
    async with asyncio.timeout(WAIT_S), house.client() as client, garage.car() as car:
        handle = client.submit("fill", [count(VALUES)])
        job = (await handle).job
        reserve = limits.STORE_RESERVE_BYTES
        monkeypatch.setattr(limits, "STORE_RESERVE_BYTES", 1 << 60)
        await eventually(lambda: any(c.upload_tries for c in car.core.work.outbox._all()))
        assert (await client.status(job)).done == 0
        monkeypatch.setattr(limits, "STORE_RESERVE_BYTES", reserve)
        (result,) = [one async for one in handle]
        assert result.ok


# --- the owner's rules, and crashes --------------------------------------------------------------


class Shelf:
    """What a journal holds, for a sender without a car."""

    def __init__(self, house: ObjectsHouse, folder: Path, *outputs: bytes) -> None:
        self.told: list[Event] = []
        self.is_allowed = True
        self.outputs = {digest_of(data): data for data in outputs}
        self.urls = [house.server.url]
        self.sender = OutputSender(
            folder,
            read=lambda _unit, _fence, _seq, sha256: self.outputs.get(sha256),
            urls=lambda: self.urls,
            tell=self.told.append,
            may_upload=lambda _unit, _fence: self.is_allowed,
            patience=Patience(silence_s=5.0),
        )

    def command(self, place: str, *names: str) -> UploadOutputs:
        refs = tuple(
            Reference(sha256=name, length=len(self.outputs[name]), url=f"{place}/{name}")
            for name in names or self.outputs
        )
        return UploadOutputs(1, F1, 0, refs)


async def test_nothing_leaves_where_the_owner_forbids_the_network(
    house: ObjectsHouse, tmp_path: Path
) -> None:
    async with asyncio.timeout(WAIT_S), house.client() as client:
        job = (await client.submit("fill", [count(VALUES)])).job
        shelf = Shelf(house, tmp_path / "out", LARGE)
        command = shelf.command(house.objects.output_place("default", job))
        shelf.is_allowed = False
        await shelf.sender.upload(command)
        (failed,) = shelf.told
        assert isinstance(failed, OutputsFailed)
        assert not failed.was_allowed
        assert shelf.sender.take_sent_bytes() == 0
        assert len(house.objects) == 0
        shelf.is_allowed = True
        await shelf.sender.upload(command)
        assert shelf.told[1:] == [OutputsUploaded(1, F1, 0)]
        assert shelf.sender.take_sent_bytes() == len(LARGE)
        await shelf.sender.upload(command)
        assert shelf.told[2:] == [OutputsUploaded(1, F1, 0)]
        assert shelf.sender.take_sent_bytes() == 0, "what is there is not sent again"
        assert not (tmp_path / "out").exists()


async def test_what_broke_off_goes_on_where_it_ended(house: ObjectsHouse, tmp_path: Path) -> None:
    async with asyncio.timeout(WAIT_S), house.client() as client:
        job = (await client.submit("fill", [count(VALUES)])).job
        place = house.objects.output_place("default", job)
        await house.objects.create_output("default", job, NAME, len(LARGE))

        async def half() -> object:
            yield LARGE[:250_000]

        await house.objects.append("default", NAME, 0, half())  # type: ignore[arg-type] # an async generator of bytes
        shelf = Shelf(house, tmp_path / "out", LARGE)
        shelf.urls = ["http://127.0.0.1:9"]
        await shelf.sender.upload(shelf.command(place))
        assert isinstance(shelf.told[0], OutputsFailed)
        shelf.urls = [house.server.url]
        await shelf.sender.upload(shelf.command(place))
        assert shelf.told[1:] == [OutputsUploaded(1, F1, 0)]
        assert shelf.sender.take_sent_bytes() == len(LARGE) - 250_000


async def test_one_that_is_refused_spoils_no_other(house: ObjectsHouse, tmp_path: Path) -> None:
    async with asyncio.timeout(WAIT_S), house.client() as client:
        job = (await client.submit("fill", [count(VALUES)])).job
        place = house.objects.output_place("default", job)
        shelf = Shelf(house, tmp_path / "out", LARGE, filled(50_000))
        shelf.outputs[NAME] = bytes(len(LARGE))  # a journal whose bytes are not what it says
        await shelf.sender.upload(shelf.command(place))
        (done,) = shelf.told
        assert isinstance(done, OutputsUploaded)
        (refused,) = done.refused
        assert refused.sha256 == NAME
        assert "wrong_hash" in refused.message
        assert not refused.is_final
        assert len(house.objects) == 1


async def test_an_upload_is_broken_off_when_the_owner_forbids_the_network(
    house: ObjectsHouse, tmp_path: Path
) -> None:
    is_stalled, is_over = asyncio.Event(), asyncio.Event()

    async def stall(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_stalled.set()
        await is_over.wait()
        writer.close()

    async with asyncio.timeout(WAIT_S), await asyncio.start_server(stall, "127.0.0.1", 0) as server:
        shelf = Shelf(house, tmp_path / "out", LARGE)
        shelf.urls = [f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"]
        uploading = asyncio.create_task(shelf.sender.upload(shelf.command("/place")))
        await is_stalled.wait()
        shelf.sender.look()
        assert not uploading.done()
        shelf.is_allowed = False
        shelf.sender.look()
        await uploading
        is_over.set()
    (failed,) = shelf.told
    assert isinstance(failed, OutputsFailed)
    assert not failed.was_allowed


async def test_a_car_that_starts_again_hands_over_what_it_had_computed(
    house: ObjectsHouse, garage: Garage
) -> None:
    async with asyncio.timeout(WAIT_S), house.client() as client:
        handle = client.submit("fill", [count(VALUES)])
        job = (await handle).job
        house.objects._busy.add(f"default/{NAME}")  # somebody else is at it, and does not end
        async with garage.car() as car:
            await eventually(lambda: car.core.work.outbox.count == 1)
        assert (await client.status(job)).done == 0
        house.objects._busy.clear()
        async with garage.car() as car:
            (result,) = [one async for one in handle]
            assert not car.engine._worker, "nothing was computed again"
        assert result.ok
        assert (await client.status(job)).state is JobState.DONE
