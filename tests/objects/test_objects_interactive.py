"""Large inputs of requests that wait: the usual client, a real dispatcher, real cars, no trace."""

import asyncio
import gzip
import json
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from objects_buckets import narrows
from objects_cars import Garage, write_sum
from objects_house import ObjectsHouse, digest_of, eventually

from edge_runtime.contract import limits
from edge_runtime.contract.http import Quota
from edge_runtime.dispatcher.api.oip.bodies import LargeBodies, LargeBody, read_body, unpacked
from edge_runtime.dispatcher.api.oip.errors import OipError
from edge_runtime.dispatcher.front import Refusal
from edge_runtime.dispatcher.lending import Lender
from edge_runtime.dispatcher.objects_kept import ObjectsUnavailable

WAIT_S = 60.0
LARGEST = (limits.OBJECT_MAX_BYTES - 64) // 4
INFER = "/v2/models/sum/infer"
HEADER_LENGTH = "Inference-Header-Content-Length"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_sum(tmp_path / "models")
    return tmp_path / "models"


def body_of(values: int, *, of: float = 1.0, timeout_us: int | None = None) -> tuple[bytes, str]:
    """A request in binary, and the length of its JSON."""
    blob = np.full(values, of, "<f4").tobytes()
    x = {"name": "x", "shape": [values], "datatype": "FP32"}
    request: dict[str, Any] = {"inputs": [{**x, "parameters": {"binary_data_size": len(blob)}}]}
    if timeout_us is not None:
        request["parameters"] = {"timeout": timeout_us}
    text = json.dumps(request).encode()
    return text + blob, str(len(text))


async def infer(
    house: ObjectsHouse, values: int, *, timeout_us: int | None = None, **headers: str
) -> tuple[int, Any]:
    body, header_length = body_of(values, timeout_us=timeout_us)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    sent = {HEADER_LENGTH: header_length, **named}
    async with house.session.post(
        house.server.url + INFER, data=_Piecewise(body), headers=sent
    ) as answer:
        return answer.status, json.loads(await answer.read())


class _Piecewise:
    """A body in pieces: the client's library warns of large ones."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self) -> Any:
        for start in range(0, len(self._body), 1 << 18):
            yield self._body[start : start + (1 << 18)]


def sum_in(answer: Any) -> float:
    (output,) = answer["outputs"]
    (value,) = output["data"]
    return float(value)


def _ask_as_usual(url: str, values: np.ndarray, **how: Any) -> float:
    tensor = triton.InferInput("x", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values)
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        output = client.infer("sum", [tensor], **how).as_numpy("y")
    assert output is not None
    return float(output[0])


def assert_no_trace(house: ObjectsHouse) -> None:
    assert len(house.lender) == 0
    assert len(house.objects) == 0
    assert not list(house.folder.glob("objects/*/*"))


@pytest.mark.parametrize("how", [{}, {"request_compression_algorithm": "gzip"}])
async def test_the_usual_clients_large_tensor_is_computed_and_leaves_no_trace(
    house: ObjectsHouse, garage: Garage, how: dict[str, Any]
) -> None:
    async with asyncio.timeout(WAIT_S), garage.car() as car:
        before_mb = car.core.work.energy.spent(car._clock()).data_mb_month
        ones = np.ones(1_000_000, np.float32)
        assert await asyncio.to_thread(_ask_as_usual, house.server.url, ones, **how) == 1_000_000
        assert house.service.counters["inputs_lent"] == 1
        # Older cars, which fetch nothing, are not asked.
        assert all(need.by_reference for need in house.service.interactive.core._pools)
        assert_no_trace(house)
        assert list((garage.folder / "car-1" / "inputs").iterdir()) == []
        # The owner's data budget pays for what was fetched.
        await eventually(
            lambda: car.core.work.energy.spent(car._clock()).data_mb_month - before_mb > 3.9
        )


async def test_an_input_of_the_largest_size_goes_through_and_a_larger_one_is_told_the_limit(
    house: ObjectsHouse, garage: Garage
) -> None:
    async with asyncio.timeout(WAIT_S), garage.car():
        status, answer = await infer(house, LARGEST)
        assert (status, sum_in(answer)) == (HTTPStatus.OK, LARGEST)
        status, answer = await infer(house, limits.OBJECT_MAX_BYTES // 4)
        assert status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        assert "OBJECT_MAX_BYTES" in answer["error"]
        status, answer = await infer(house, limits.OIP_LARGE_BODY_MAX_BYTES // 4)
        assert status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        assert "OIP_LARGE_BODY_MAX_BYTES" in answer["error"]
    assert_no_trace(house)


async def test_a_tensor_in_json_goes_by_reference_as_far_as_json_goes(
    house: ObjectsHouse, garage: Garage
) -> None:
    def in_json(values: int) -> bytes:
        x = {"name": "x", "shape": [values], "datatype": "FP32", "data": [1] * values}
        return json.dumps({"inputs": [x]}).encode()

    async with asyncio.timeout(WAIT_S), garage.car():
        answer = await house.ask("POST", INFER, _Piecewise(in_json(100_000)))
        assert (answer.status, sum_in(json.loads(answer.body))) == (HTTPStatus.OK, 100_000)
        answer = await house.ask("POST", INFER, _Piecewise(in_json(500_000)))
        assert answer.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        assert b"OIP_BODY_MAX_BYTES" in answer.body


async def test_many_large_ones_at_once_are_all_computed(
    house: ObjectsHouse, garage: Garage
) -> None:
    sizes = [300_000 + 1_000 * number for number in range(12)]
    async with asyncio.timeout(WAIT_S), garage.car("car-1"), garage.car("car-2"):
        answers = await asyncio.gather(*(infer(house, size) for size in sizes))
    assert [status for status, _ in answers] == [HTTPStatus.OK] * len(sizes)
    assert [sum_in(answer) for _, answer in answers] == sizes
    assert_no_trace(house)


async def test_a_client_that_leaves_takes_its_input_with_it(
    house: ObjectsHouse, garage: Garage
) -> None:
    async with (
        asyncio.timeout(WAIT_S),
        narrows(house.server.port, 1 << 20) as way,
        garage.car(models_url=f"http://127.0.0.1:{way.port}") as car,
    ):
        await infer(house, 10)  # the package is there
        way.narrow(100_000)
        asking = asyncio.create_task(infer(house, 1_000_000))
        await asyncio.wait_for(way.is_blocked.wait(), 20)
        (attempt,) = car.core.work.attempts.values()
        assert attempt.is_fetching
        asking.cancel()
        await eventually(lambda: len(house.lender) == 0)
        await eventually(lambda: not car.core.work.attempts)
        # The download ends too: the next one is computed.
        way.open()
        assert (await infer(house, 50_000))[0] == HTTPStatus.OK
    assert_no_trace(house)


async def test_a_car_that_cannot_fetch_costs_time_and_another_answers(
    house: ObjectsHouse, garage: Garage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "INTERACTIVE_FETCH_MS", 300)
    monkeypatch.setattr(limits, "INTERACTIVE_COLD_MS", 300)
    async with (
        asyncio.timeout(WAIT_S),
        narrows(house.server.port, 1 << 20) as way,
        garage.car("car-1", f"http://127.0.0.1:{way.port}") as car,
    ):
        await infer(house, 10)
        way.narrow(1_000)
        asking = asyncio.create_task(infer(house, 200_000))
        await asyncio.wait_for(way.is_blocked.wait(), 20)
        assert any(attempt.is_fetching for attempt in car.core.work.attempts.values())
        async with garage.car("car-2"):
            status, answer = await asking
            assert (status, sum_in(answer)) == (HTTPStatus.OK, 200_000)
            assert house.service.interactive.core.counters["interactive_silences"] >= 1
            way.open()


async def test_the_deadline_holds_while_a_car_fetches(house: ObjectsHouse, garage: Garage) -> None:
    async with (
        asyncio.timeout(WAIT_S),
        narrows(house.server.port, 1 << 20) as way,
        garage.car(models_url=f"http://127.0.0.1:{way.port}") as car,
    ):
        await infer(house, 10)
        way.narrow(1_000)
        status, answer = await infer(house, 200_000, timeout_us=700_000)
        assert status == HTTPStatus.GATEWAY_TIMEOUT, answer
        await eventually(lambda: not car.core.work.attempts)
        assert_no_trace(house)
        way.open()


async def test_no_car_that_fetches_is_a_503_with_the_reason(
    house: ObjectsHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "INTERACTIVE_NO_CAR_MS", 50)
    status, answer = await infer(house, 200_000)
    assert status == HTTPStatus.SERVICE_UNAVAILABLE
    assert "no car" in answer["error"]
    assert_no_trace(house)


async def test_a_tenants_quota_counts_what_is_lent(
    house: ObjectsHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "INTERACTIVE_NO_CAR_MS", 60_000)
    quotas = house.lender._quotas
    await quotas.put("default", Quota(bytes=1_000_000))
    async with asyncio.timeout(WAIT_S):
        status, answer = await infer(house, 300_000)
        assert status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE, answer
        waiting = asyncio.create_task(infer(house, 200_000))
        await eventually(lambda: len(house.lender) == 1)
        status, answer = await infer(house, 100_000)
        assert status == HTTPStatus.TOO_MANY_REQUESTS, answer
        waiting.cancel()
        await eventually(lambda: len(house.lender) == 0)
        monkeypatch.setattr(limits, "INTERACTIVE_NO_CAR_MS", 50)
        status, answer = await infer(house, 100_000)
        assert status == HTTPStatus.SERVICE_UNAVAILABLE  # it had room: there is no car
        assert "no car" in answer["error"]
    assert not quotas._held


async def test_strings_of_a_tensor_model_do_not_go_by_reference(
    house: ObjectsHouse,
) -> None:
    body, header_length = body_of(40_000)
    body = body.replace(b'"FP32"', b'"BYTES"')
    sent = {HEADER_LENGTH: str(int(header_length) + 1)}
    async with house.session.post(
        house.server.url + INFER, data=_Piecewise(body), headers=sent
    ) as answer:
        assert answer.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        assert "ITEM_MAX_BYTES" in (await answer.json())["error"]


async def test_what_is_lent_is_read_by_its_ticket_alone_and_only_while_it_is_lent(
    house: ObjectsHouse,
) -> None:
    data = bytes(range(256)) * 4_096
    async with house.lender.lend("anna", data) as ref, house.lender.lend("anna", data) as again:
        assert (ref.sha256, ref.length) == (digest_of(data), len(data))
        assert ref.url != again.url
        whole = await house.ask("GET", ref.url)
        assert (whole.status, whole.body) == (HTTPStatus.OK, data)
        part = await house.ask("GET", ref.url, Range="bytes=1000000-")
        assert (part.status, part.body) == (HTTPStatus.PARTIAL_CONTENT, data[1_000_000:])
        for other in (
            ref.url.replace("/anna/", "/bert/"),
            ref.url.replace(ref.url.split("/")[4], "0" * 32),
            ref.url.replace(ref.sha256, digest_of(b"")),
            f"/objects/{ref.sha256}",
        ):
            assert (await house.ask("GET", other)).status == HTTPStatus.NOT_FOUND
        loan = house.lender.find("anna", ref.url.split("/")[4], ref.sha256)
        assert loan is not None
        reading = loan.read(range(len(data)))
        assert await anext(reading) == data[: limits.HTTP_FILE_CHUNK_BYTES]
    assert (await house.ask("GET", ref.url)).status == HTTPStatus.NOT_FOUND
    with pytest.raises(ObjectsUnavailable):
        await anext(reading)


async def test_too_much_to_lend_is_refused_before_it_is_hashed(house: ObjectsHouse) -> None:
    lender = Lender(house.lender._quotas)
    with pytest.raises(Refusal, match="OBJECT_MAX_BYTES"):
        async with lender.lend("anna", bytes(limits.OBJECT_MAX_BYTES + 1)):
            pytest.fail("it was lent")
    assert len(lender) == 0


def test_large_bodies_share_a_bound_and_give_back_what_they_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mib = 1 << 20
    monkeypatch.setattr(limits, "OIP_LARGE_BODIES_MAX_BYTES", 8 * mib)
    monkeypatch.setattr(limits, "OIP_TENANT_LARGE_BODIES_MAX_BYTES", 5 * mib)
    bodies = LargeBodies()
    with LargeBody(bodies, "anna") as first, LargeBody(bodies, "anna") as second:
        first.hold(limits.OIP_BODY_MAX_BYTES)  # is not large
        first.hold(2 * mib)
        first.hold(mib + 1)
        second.check(16 * mib)  # said, and not yet sent
        second.hold(3 * mib)
        assert _refused_by(first, 2 * mib + 1) == "OIP_TENANT_LARGE_BODIES_MAX_BYTES=5242880"
        with LargeBody(bodies, "bert") as third:
            third.hold(3 * mib)
            assert _refused_by(third, 3 * mib + 1) == "OIP_LARGE_BODIES_MAX_BYTES=8388608"
    with LargeBody(bodies, "anna") as again, LargeBody(bodies, "bert") as beside:
        again.hold(5 * mib)
        beside.hold(3 * mib)
        with pytest.raises(OipError, match="OIP_LARGE_BODY_MAX_BYTES"):
            again.hold(limits.OIP_LARGE_BODY_MAX_BYTES + 1)
    assert not bodies._tenants
    with LargeBody() as small, pytest.raises(OipError, match="OIP_BODY_MAX_BYTES"):
        small.hold(limits.OIP_BODY_MAX_BYTES + 1)
    with pytest.raises(OipError, match="OIP_BODY_MAX_BYTES"):
        unpacked(gzip.compress(bytes(limits.OIP_BODY_MAX_BYTES + 1)), "gzip")


def _refused_by(body: LargeBody, size: int) -> str | None:
    with pytest.raises(Refusal) as refused:
        body.hold(size)
    assert refused.value.problem.status == HTTPStatus.SERVICE_UNAVAILABLE
    return refused.value.problem.limit


async def test_what_a_large_body_held_is_free_when_it_broke_off(
    house: ObjectsHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "OIP_TENANT_LARGE_BODIES_MAX_BYTES", 5 << 20)
    body, header_length = body_of(1_000_000)
    head = (
        f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        f"{HEADER_LENGTH}: {header_length}\r\n\r\n"
    )
    for _ in range(4):
        _, writer = await asyncio.open_connection("127.0.0.1", house.server.port)
        writer.write(head.encode() + body[:-1])
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    monkeypatch.setattr(limits, "INTERACTIVE_NO_CAR_MS", 50)

    async def is_free() -> bool:
        status, answer = await infer(house, 1_000_000)
        assert status == HTTPStatus.SERVICE_UNAVAILABLE
        return "no car" in answer["error"]

    async with asyncio.timeout(WAIT_S):
        while not await is_free():
            pass  # the server sees a moment later that its client has gone


@pytest.mark.parametrize("size", [0, 1, limits.OIP_BODY_MAX_BYTES + 1])
async def test_a_packed_body_that_is_cut_or_goes_on_is_refused_at_every_size(size: int) -> None:
    whole = gzip.compress(bytes(size))

    async def read(body: bytes) -> bytes:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        with LargeBody(LargeBodies()) as large:
            return await read_body([(b"content-encoding", b"gzip")], receive, large)

    assert await read(whole) == bytes(size)
    for spoilt in (whole[:-1], whole[:-8], whole + b"more"):
        with pytest.raises(OipError, match="one whole gzip stream"):
            await read(spoilt)


async def test_a_bomb_is_refused_when_it_is_as_large_as_a_body_may_be(house: ObjectsHouse) -> None:
    bomb = gzip.compress(bytes(8 * limits.OIP_LARGE_BODY_MAX_BYTES))
    sent = {HEADER_LENGTH: "100", "Content-Encoding": "gzip"}
    async with house.session.post(
        house.server.url + INFER, data=_Piecewise(bomb), headers=sent
    ) as answer:
        assert answer.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        assert "OIP_LARGE_BODY_MAX_BYTES" in (await answer.json())["error"]
