"""Large outputs of requests that wait: the usual client, a real dispatcher, real cars, no trace."""

import asyncio
import io
import json
from collections import Counter
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tritonclient.http as triton
from fill_model import filled, write_fill
from objects_buckets import narrows
from objects_cars import Garage
from objects_house import TUS, Answer, ObjectsHouse, digest_of, eventually

from edge_runtime.bus import Message
from edge_runtime.contract import codec, limits
from edge_runtime.contract.messages import (
    INTERACTIVE_JOB,
    Chunk,
    Fence,
    ItemDone,
    ItemFailed,
    Reference,
    Results,
)
from edge_runtime.contract.reasons import ItemError
from edge_runtime.contract.topics import Up
from edge_runtime.dispatcher.core.events import ChunkReceived
from edge_runtime.dispatcher.front import Refusal
from edge_runtime.dispatcher.receiving import Receiver

WAIT_S = 60.0
VALUES = 200_000
LARGEST = (limits.OBJECT_MAX_BYTES - 64) // 4
INFER = "/v2/models/fill/infer"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_fill(tmp_path / "models")
    return tmp_path / "models"


def _ask_as_usual(url: str, values: int, **how: Any) -> int:
    tensor = triton.InferInput("n", [1], "INT64")
    tensor.set_data_from_numpy(np.array([values], np.int64))
    with triton.InferenceServerClient(
        url.removeprefix("http://"), network_timeout=WAIT_S
    ) as client:
        output = client.infer("fill", [tensor], **how).as_numpy("y")
    assert output is not None
    assert output.sum() == len(output)
    return len(output)


async def ask(house: ObjectsHouse, values: int, *, is_binary: bool = True, **more: Any) -> Answer:
    """A request as JSON; the answer's output is binary or JSON."""
    request = {
        "inputs": [{"name": "n", "shape": [1], "datatype": "INT64", "data": [values]}],
        "outputs": [{"name": "y", "parameters": {"binary_data": is_binary}}],
        **more,
    }
    return await house.ask("POST", INFER, json.dumps(request).encode())


def assert_no_trace(house: ObjectsHouse) -> None:
    assert house.service.interactive.receiver is not None
    assert len(house.service.interactive.receiver) == 0
    assert len(house.objects) == 0
    assert not list(house.folder.glob("objects/*/*"))


@pytest.mark.parametrize("how", [{}, {"response_compression_algorithm": "gzip"}])
async def test_the_usual_client_gets_a_large_output_whole(
    house: ObjectsHouse, garage: Garage, how: dict[str, Any]
) -> None:
    async with asyncio.timeout(WAIT_S), garage.car() as car:
        before_mb = car.core.work.energy.spent(car._clock()).data_mb_month
        assert await asyncio.to_thread(_ask_as_usual, house.server.url, VALUES, **how) == VALUES
        assert await asyncio.to_thread(_ask_as_usual, house.server.url, 10, **how) == 10
        assert house.service.counters["outputs_received"] == 1
        assert car.core.work.handover.size_bytes == 0
        assert_no_trace(house)
        # The owner's data budget pays for what left.
        await eventually(
            lambda: car.core.work.energy.spent(car._clock()).data_mb_month - before_mb > 0.8
        )


async def test_the_largest_output_goes_through_and_a_larger_one_is_told_the_limit(
    house: ObjectsHouse, garage: Garage
) -> None:
    async with asyncio.timeout(WAIT_S), garage.car():
        assert await asyncio.to_thread(_ask_as_usual, house.server.url, LARGEST) == LARGEST
        answer = await ask(house, limits.OBJECT_MAX_BYTES // 4 + 1)
    assert answer.status == HTTPStatus.INTERNAL_SERVER_ERROR
    assert b"result_too_large" in answer.body
    assert str(limits.OBJECT_MAX_BYTES).encode() in answer.body


async def test_as_json_an_output_goes_as_far_as_json_does(
    house: ObjectsHouse, garage: Garage
) -> None:
    async with asyncio.timeout(WAIT_S), garage.car():
        answer = await ask(house, VALUES, is_binary=False)
        (output,) = json.loads(answer.body)["outputs"]
        assert len(output["data"]) == VALUES
        most = limits.OIP_JSON_OUTPUT_MAX_BYTES // 4
        answer = await ask(house, most + 1, is_binary=False)
    assert answer.status == HTTPStatus.BAD_REQUEST
    assert b"OIP_JSON_OUTPUT_MAX_BYTES" in answer.body
    assert b"binary_data" in answer.body


async def test_many_large_outputs_at_once_from_two_cars(
    house: ObjectsHouse, garage: Garage
) -> None:
    sizes = [VALUES + 1_000 * (number // 2) for number in range(12)]
    async with asyncio.timeout(WAIT_S), garage.car("car-1"), garage.car("car-2"):
        answers = await asyncio.gather(*(ask(house, size) for size in sizes))
    assert [answer.status for answer in answers] == [HTTPStatus.OK] * len(sizes)
    for size, answer in zip(sizes, answers, strict=True):
        assert answer.body.endswith(np.ones(size, "<f4").tobytes())
    assert_no_trace(house)


async def test_a_client_that_leaves_takes_the_output_with_it(
    house: ObjectsHouse, garage: Garage
) -> None:
    async with (
        asyncio.timeout(WAIT_S),
        narrows(house.server.port, 1 << 20) as way,
        garage.car(models_url=f"http://127.0.0.1:{way.port}") as car,
    ):
        await ask(house, 10)  # the package is there
        way.narrow(100_000)
        asking = asyncio.create_task(ask(house, VALUES))
        await asyncio.wait_for(way.is_blocked.wait(), 20)
        assert car.core.work.handover.size_bytes > 0
        asking.cancel()
        await eventually(lambda: car.core.work.handover.size_bytes == 0)
        await eventually(lambda: len(house.service.interactive.receiver or ()) == 0)
        way.open()
        assert (await ask(house, VALUES)).status == HTTPStatus.OK
    assert_no_trace(house)


async def test_a_car_that_cannot_hand_in_costs_time_and_another_answers(
    house: ObjectsHouse, garage: Garage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "INTERACTIVE_FETCH_MS", 300)
    monkeypatch.setattr(limits, "INTERACTIVE_COLD_MS", 300)
    async with (
        asyncio.timeout(WAIT_S),
        narrows(house.server.port, 1 << 20) as way,
        garage.car("car-1", f"http://127.0.0.1:{way.port}") as car,
    ):
        await ask(house, 10)
        way.narrow(1_000)
        asking = asyncio.create_task(ask(house, VALUES))
        await asyncio.wait_for(way.is_blocked.wait(), 20)
        assert car.core.work.handover.size_bytes > 0
        async with garage.car("car-2"):
            assert (await asking).status == HTTPStatus.OK
            assert house.service.interactive.core.counters["interactive_silences"] >= 1
            way.open()
            await eventually(lambda: car.core.work.handover.size_bytes == 0)


async def test_an_upload_that_broke_off_goes_on_where_it_was(
    house: ObjectsHouse, garage: Garage
) -> None:
    async with (
        asyncio.timeout(WAIT_S),
        narrows(house.server.port, 1 << 20) as way,
        garage.car(models_url=f"http://127.0.0.1:{way.port}"),
    ):
        await ask(house, 10)
        way.narrow(300_000)
        asking = asyncio.create_task(ask(house, VALUES))
        await asyncio.wait_for(way.is_blocked.wait(), 20)
        way.cut()
        assert (await asking).status == HTTPStatus.OK
        assert house.service.interactive.core.counters["interactive_again"] == 0
    assert_no_trace(house)


# --- the place itself ---------------------------------------------------------------------------


class Units:
    """What the core would say of units."""

    def __init__(self) -> None:
        self.out = {7, 8}
        self.coming: list[tuple[int, int]] = []
        self.counters: Counter[str] = Counter()
        self.receiver = Receiver(self.out.__contains__, self._comes, self.counters, bytes)

    def _comes(self, unit: int, size_bytes: int) -> None:
        self.coming.append((unit, size_bytes))

    def reference(self, data: bytes, unit: int = 7) -> Reference:
        sha256 = digest_of(data)
        url = f"{self.receiver.place('anna', unit)}/{sha256}"
        return Reference(sha256=sha256, length=len(data), url=url)

    async def put(self, data: bytes, unit: int = 7) -> int:
        self.receiver.create(unit, digest_of(data), len(data))
        return await self.receiver.append(unit, digest_of(data), 0, pieces(data))


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


DATA = filled(50_000)


async def test_what_was_handed_in_is_taken_by_its_address_alone() -> None:
    units = Units()
    ref = units.reference(DATA)
    assert units.receiver.problem(ref) is not None, "nothing has come"
    half = len(DATA) // 2
    assert units.receiver.create(7, ref.sha256, ref.length) == 0
    assert units.coming == [(7, len(DATA))]
    assert await units.receiver.append(7, ref.sha256, 0, pieces(DATA[:half])) == half
    assert units.receiver.problem(ref) is not None, "half of it has come"
    assert units.receiver.create(7, ref.sha256, ref.length) == half
    assert units.coming[-1] == (7, len(DATA) - half)
    await units.receiver.append(7, ref.sha256, half, pieces(DATA[half:]))
    assert units.receiver.problem(ref) is None
    assert units.receiver.read(ref) == DATA
    for other in (
        units.reference(DATA, unit=8),
        Reference(sha256=ref.sha256, length=ref.length, url=ref.url.replace("/anna/", "/bert/")),
        Reference(sha256=ref.sha256, length=ref.length, url=f"/objects/{ref.sha256}"),
        Reference(sha256=ref.sha256, length=ref.length, url="ä/ö/ü/x"),
        Reference(sha256=digest_of(b""), length=ref.length, url=ref.url),
        Reference(sha256=ref.sha256, length=ref.length + 1, url=ref.url),
    ):
        assert units.receiver.problem(other) is not None, other
    units.out.clear()
    units.receiver.forget_ended()
    assert units.receiver.problem(ref) is not None
    assert len(units.receiver) == 0


async def test_no_car_hears_of_all_bytes_before_they_are_proven() -> None:
    units = Units()
    ref = units.reference(DATA)
    have_come = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield DATA
        have_come.set()
        await asyncio.Event().wait()

    units.receiver.create(7, ref.sha256, ref.length)
    first = asyncio.create_task(units.receiver.append(7, ref.sha256, 0, slow()))
    await have_come.wait()
    with pytest.raises(Refusal, match="another request"):
        units.receiver.create(7, ref.sha256, ref.length)
    first.cancel()
    await asyncio.wait([first])
    assert units.receiver.create(7, ref.sha256, ref.length) == 0, "they were never proven"
    await units.put(DATA)
    assert units.receiver.problem(ref) is None


async def test_what_is_not_what_was_announced_is_not_kept() -> None:
    units = Units()
    nested = b"\x91" * 200_000 + b"\xc0"
    not_one = b"\xc0" * 200_000
    for data, problem in ((nested, "readable"), (not_one, "readable"), (b"\xd9", "readable")):
        with pytest.raises(Refusal, match=problem):
            await units.put(data)
        assert len(units.receiver) == 0
    units.receiver.create(7, digest_of(DATA), 10)
    with pytest.raises(Refusal, match="another SHA-256"):
        await units.receiver.append(7, digest_of(DATA), 0, pieces(DATA[:10]))
    assert len(units.receiver) == 0


async def test_every_wrong_step_is_told() -> None:
    units = Units()
    name = digest_of(DATA)
    with pytest.raises(Refusal, match="not begun"):
        await units.receiver.append(7, name, 0, pieces(DATA))
    with pytest.raises(Refusal, match="at least one byte"):
        units.receiver.create(7, name, 0)
    with pytest.raises(Refusal, match="at most"):
        units.receiver.create(7, name, limits.OBJECT_MAX_BYTES + 1)
    units.receiver.create(7, name, len(DATA))
    with pytest.raises(Refusal, match="was begun with"):
        units.receiver.create(7, name, len(DATA) + 1)
    with pytest.raises(Refusal, match="goes on at byte 0"):
        await units.receiver.append(7, name, 5, pieces(DATA))
    with pytest.raises(Refusal, match="goes beyond"):
        await units.receiver.append(7, name, 0, pieces(DATA, b"x"))
    units = Units()
    await units.put(DATA)
    with pytest.raises(Refusal, match="goes on at"):
        await units.receiver.append(7, name, 0, pieces(DATA))


async def test_one_body_at_a_time() -> None:
    units = Units()
    name = digest_of(DATA)
    units.receiver.create(7, name, len(DATA))
    more = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield DATA[:10]
        await more.wait()
        yield DATA[10:]

    first = asyncio.create_task(units.receiver.append(7, name, 0, slowly()))
    await asyncio.sleep(0)
    with pytest.raises(Refusal, match="another request"):
        await units.receiver.append(7, name, 10, pieces(DATA[10:]))
    more.set()
    assert await first == len(DATA)


async def test_what_is_held_is_bounded_by_unit_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "INTERACTIVE_OUTPUTS_MAX_BYTES", limits.OBJECT_MAX_BYTES + 1)
    units = Units()
    units.receiver.create(7, digest_of(b"a"), limits.OBJECT_MAX_BYTES)
    with pytest.raises(Refusal, match="at most"):
        units.receiver.create(7, digest_of(b"b"), 1)
    units.receiver.create(8, digest_of(b"b"), 1)
    with pytest.raises(Refusal) as refused:
        units.receiver.create(8, digest_of(b"c"), 1)
    assert refused.value.problem.status == HTTPStatus.SERVICE_UNAVAILABLE
    units.out.discard(7)
    units.receiver.forget_ended()
    units.receiver.create(8, digest_of(b"c"), 1)


async def test_over_http_only_the_ticket_opens_and_only_while_the_unit_is_out(
    house: ObjectsHouse,
) -> None:
    receiver = house.service.interactive.receiver
    assert receiver is not None
    place = receiver.place("default", 5)
    gone = await house.ask("POST", place, **TUS)
    assert (gone.status, gone.code) == (HTTPStatus.GONE, "not_awaited")
    for wrong in (
        place.replace("/default/", "/anna/"),
        place.replace("unit-5", "unit-6"),
        place.replace(place.split("/")[4], "0" * 32),
    ):
        assert (await house.ask("POST", wrong, **TUS)).status == HTTPStatus.NOT_FOUND
        put = await house.patch(digest_of(DATA), 0, io.BytesIO(DATA), wrong)
        assert put.status == HTTPStatus.NOT_FOUND


async def test_a_car_that_only_says_that_it_handed_in_is_not_believed(
    house: ObjectsHouse,
) -> None:
    """Its item has failed, and may be computed by another."""
    receiver = house.service.interactive.receiver
    assert receiver is not None
    lie = Reference(
        sha256=digest_of(DATA),
        length=len(DATA),
        url=f"{receiver.place('default', 5)}/{digest_of(DATA)}",
    )
    done = ItemDone(index=0, output=msgspec.Raw(b"\xc0"), ref=lie)
    chunk = Chunk(
        job=INTERACTIVE_JOB, unit=5, fence=Fence(1, 1), model="a" * 64, seq=0, items=(done,)
    )
    said = Results(vehicle="car-1", boot=1, chunks=(chunk,))
    topic = house.service.topics.up("car-1", Up.RESULT)
    message = Message(topic, codec.encode(said))
    (event,) = house.service._intake.events(message)
    assert isinstance(event, ChunkReceived)
    (item,) = event.chunk.items
    assert isinstance(item, ItemFailed)
    assert item.code is ItemError.OUTPUT_UNAVAILABLE
    assert not item.code.is_final
