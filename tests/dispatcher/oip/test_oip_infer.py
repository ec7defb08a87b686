"""`infer`: what clients send and expect, in JSON, in binary, packed, and wrong."""

import asyncio
import gzip
import json
import zlib

import msgspec
import numpy as np
import pytest
from oip_rig import HEADER_LENGTH, NOOP, EchoCar, Oip, x_input

from edge_runtime.contract import limits
from edge_runtime.contract.messages import Cancel, ItemDone, ItemFailed, Refused
from edge_runtime.contract.reasons import Availability, CancelReason, ItemError, RefusalReason

FLOATS = np.array([1.5, -2.0, 3.25], "<f4")


def binary(values: np.ndarray = FLOATS, **more: object) -> tuple[bytes, dict[str, str]]:
    header = {
        "inputs": [
            {
                "name": "x",
                "shape": list(values.shape),
                "datatype": "FP32",
                "parameters": {"binary_data_size": values.nbytes},
            }
        ],
        **more,
    }
    text = json.dumps(header).encode()
    return text + values.tobytes(), {HEADER_LENGTH: str(len(text))}


# --- the protocol -------------------------------------------------------------------------------


async def test_json_in_json_out(front: Oip, echo: EchoCar) -> None:
    status, answer = await front.infer(x_input(1, 2.5, id="mine"))
    assert status == 200
    assert answer == {
        "model_name": "noop",
        "model_version": "1",
        "id": "mine",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2], "data": [1.0, 2.5]}],
    }
    assert echo.offers[0].interactive


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("given", "told"), [(TRACE, TRACE), ("x" * 4_000, None), (f"{TRACE}{'x' * 3_000}", None)]
)
async def test_a_trace_goes_to_the_car_and_what_is_none_does_not(
    front: Oip, echo: EchoCar, given: str, told: str | None
) -> None:
    """A car takes no offer with a text over its limit: a caller's header must not make one."""
    status, _ = await front.infer(x_input(1), traceparent=given)
    assert status == 200
    assert [offer.traceparent for offer in echo.offers] == [told]


async def test_nothing_of_it_is_in_the_store(front: Oip, echo: EchoCar) -> None:
    await front.infer(x_input(1))
    assert await front.house.service.store.count_open() == 0
    assert await front.house.service.store.attempts(None, None, 10, 0) == []
    assert await front.house.desk.jobs(None, state=None, limit=10, before=None) == []
    assert echo.offers


async def test_binary_in_binary_out(front: Oip, echo: EchoCar) -> None:
    body, headers = binary(parameters={"binary_data_output": True})
    status, said, answer = await front.call("POST", NOOP, body, **headers)
    assert status == 200
    length = int(said[HEADER_LENGTH.lower()])
    view = json.loads(answer[:length])
    assert view["outputs"][0]["parameters"] == {"binary_data_size": FLOATS.nbytes}
    assert "data" not in view["outputs"][0]
    assert np.array_equal(np.frombuffer(answer[length:], "<f4"), FLOATS)
    assert "id" not in view
    assert len(echo.offers) == 1


@pytest.mark.parametrize("is_binary", [True, False])
async def test_each_output_says_its_own_form(front: Oip, echo: EchoCar, is_binary: bool) -> None:
    outputs = [{"name": "y", "parameters": {"binary_data": is_binary}}]
    body, headers = binary(outputs=outputs, parameters={"binary_data_output": not is_binary})
    status, said, _ = await front.call("POST", NOOP, body, **headers)
    assert status == 200
    assert (HEADER_LENGTH.lower() in said) is is_binary
    assert echo.offers


async def test_a_raw_body_is_the_one_input(front: Oip, echo: EchoCar) -> None:
    status, said, answer = await front.call(
        "POST", NOOP, FLOATS[:1].tobytes(), **{HEADER_LENGTH: "0"}
    )
    assert status == 200
    assert answer[int(said[HEADER_LENGTH.lower()]) :] == FLOATS[:1].tobytes()
    assert echo.offers


@pytest.mark.parametrize(
    ("name", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)], ids=["gzip", "deflate"]
)
async def test_bodies_may_be_packed_both_ways(
    front: Oip, echo: EchoCar, name: str, pack: object
) -> None:
    many = np.arange(500, dtype="<f4")
    body, headers = binary(many, parameters={"binary_data_output": True})
    status, said, answer = await front.call(
        "POST",
        NOOP,
        pack(body),  # type: ignore[operator]  # one of two functions
        **headers,
        Content_Encoding=name,
        Accept_Encoding=name,
    )
    assert status == 200
    assert said["content-encoding"] == name
    plain = gzip.decompress(answer) if name == "gzip" else zlib.decompress(answer)
    assert plain[int(said[HEADER_LENGTH.lower()]) :] == many.tobytes()
    assert echo.offers


@pytest.mark.parametrize("data", [[[1, 2], [3, 4]], [1, 2, 3, 4]])
async def test_json_data_may_be_nested_or_flat(front: Oip, echo: EchoCar, data: object) -> None:
    request = x_input(1, 2, 3, 4)
    request["inputs"][0]["data"] = data
    _, answer = await front.infer(request)
    assert answer["outputs"][0]["data"] == [1.0, 2.0, 3.0, 4.0]
    assert echo.offers


async def test_a_version_may_be_named(front: Oip, echo: EchoCar) -> None:
    assert (await front.infer(x_input(1), "/v2/models/noop/versions/1/infer"))[0] == 200
    assert (await front.infer(x_input(1), "/v2/models/noop/versions/9/infer"))[0] == 404
    assert len(echo.offers) == 1


# --- wrong requests -----------------------------------------------------------------------------


def _input(**changes: object) -> dict[str, object]:
    request = x_input(1, 2)
    request["inputs"][0] |= changes
    return request


@pytest.mark.parametrize(
    ("request_body", "says"),
    [
        (b"", "not right"),
        (b"{", "not right"),
        (b"[]", "not right"),
        (b"\xff\xfe", "not right"),
        (b"[" * 100_000, "not right"),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":["\xd9"]}]}', "utf-8"),
        ({}, "inputs"),
        ({"inputs": []}, "expected the inputs"),
        ({"inputs": [{"name": "x"}]}, "shape"),
        (_input(name="z"), "unexpected inference input 'z'"),
        (_input(datatype="FP64"), "data-type"),
        (_input(datatype="FP99"), "datatype"),
        (_input(shape=[3]), "3 elements"),
        (_input(shape=[1, 2]), "unexpected shape"),
        (_input(shape=[-2]), "shape"),
        (_input(shape=[2**40]), "limit"),
        (_input(data=None), "not a list"),
        (_input(data="ab"), "not a list"),
        (_input(data=["a", "b"]), "something else"),
        (_input(data=[1, [2]]), "no array"),
        (_input(data=[1, 2, 3]), "2 elements"),
        (_input(parameters={"binary_data_size": 8}), "binary_data_size"),
        (_input(parameters={"shared_memory_region": "a"}), "shared memory"),
        ({"inputs": x_input(1)["inputs"] * 2}, "once each"),
        (x_input(1, outputs=[{"name": "q"}]), "unexpected inference output"),
        (x_input(1, outputs=[{"name": "y", "parameters": {"classification": 2}}]), "classif"),
        (x_input(1, parameters={"sequence_id": 3}), "sequence_id"),
        (x_input(1, parameters={"timeout": -1}), "timeout"),
        (x_input(1, parameters={"timeout": "soon"}), "timeout"),
        (x_input(1, id=7), "id"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_said_in_the_protocols_form(
    front: Oip, request_body: object, says: str
) -> None:
    status, answer = await front.infer(request_body)
    assert status == 400
    assert list(answer) == ["error"]
    assert says in answer["error"]
    assert not front.house.service.interactive.core.waiting


@pytest.mark.parametrize("length", ["-1", "+5", "0x10", "1e3", "", "9" * 30, "10, 10", "99999"])
async def test_the_length_of_the_json_is_digits_within_the_body(front: Oip, length: str) -> None:
    body, _ = binary()
    status, _, answer = await front.call("POST", NOOP, body, **{HEADER_LENGTH: length})
    assert status == 400
    assert "ength" in json.loads(answer)["error"]


@pytest.mark.parametrize("shift", [-1, 1, 4])
async def test_a_length_that_cuts_elsewhere_is_refused(front: Oip, shift: int) -> None:
    body, headers = binary()
    wrong = str(int(headers[HEADER_LENGTH]) + shift)
    status, _, _ = await front.call("POST", NOOP, body, **{HEADER_LENGTH: wrong})
    assert status == 400


async def test_two_lengths_are_not_believed(front: Oip) -> None:
    body, headers = binary()
    length = headers[HEADER_LENGTH]
    head = (
        f"POST {NOOP} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        f"{HEADER_LENGTH}: {length}\r\n{HEADER_LENGTH.lower()}: 0\r\nConnection: close\r\n\r\n"
    )
    answer = await front.raw(head.encode() + body)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"twice" in answer


@pytest.mark.parametrize("extra", [b"\x00", b"1234"])
async def test_bytes_that_belong_to_no_input_are_refused(front: Oip, extra: bytes) -> None:
    body, headers = binary()
    status, _, answer = await front.call("POST", NOOP, body + extra, **headers)
    assert status == 400
    assert "belong to no input" in json.loads(answer)["error"]


async def test_a_raw_body_of_the_wrong_length_is_refused(front: Oip) -> None:
    for size in (0, 1, 7, 8):
        status, _, _ = await front.call("POST", NOOP, bytes(size), **{HEADER_LENGTH: "0"})
        assert status == 400


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_body_that_is_not_what_it_says_is_refused(front: Oip, encoding: str) -> None:
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    whole = pack(json.dumps(x_input(1)).encode())
    for body in (b"plain", whole[:-4], whole + b"more"):
        status, _, _ = await front.call("POST", NOOP, body, Content_Encoding=encoding)
        assert status == 400
    assert (await front.call("POST", NOOP, whole, Content_Encoding="br"))[0] == 415


async def test_a_small_body_that_unpacks_to_a_huge_one_is_refused(front: Oip) -> None:
    bomb = gzip.compress(bytes(64 * limits.OIP_BODY_MAX_BYTES))
    status, _, answer = await front.call("POST", NOOP, bomb, Content_Encoding="gzip")
    assert status == 413
    assert "OIP_BODY_MAX_BYTES" in json.loads(answer)["error"]


async def test_too_large_is_413_and_names_the_limit(front: Oip) -> None:
    size = limits.OIP_BODY_MAX_BYTES + 1
    head = f"POST {NOOP} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n"
    said = await front.raw(head.encode())
    assert said.startswith(b"HTTP/1.1 413")
    assert b"OIP_BODY_MAX_BYTES" in said
    body, headers = binary(np.zeros(limits.ITEM_MAX_BYTES // 4, "<f4"))
    status, _, answer = await front.call("POST", NOOP, body, **headers)
    assert status == 413
    assert "ITEM_MAX_BYTES" in json.loads(answer)["error"]


async def test_a_body_in_many_chunks_is_counted_as_it_comes(front: Oip) -> None:
    async def endless() -> object:
        for _ in range(64):
            yield bytes(limits.OIP_BODY_MAX_BYTES // 16)

    async with front.session.post(f"http://{front.url}{NOOP}", data=endless()) as answer:
        assert answer.status == 413


async def test_a_body_that_never_ends_is_given_up(
    front: Oip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "OIP_BODY_MAX_S", 0.2)
    head = f"POST {NOOP} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"
    for begun in ("", "{"):
        answer = await front.raw((head + begun).encode())
        assert answer.startswith(b"HTTP/1.1 408")


# --- cars that do not ---------------------------------------------------------------------------


async def test_without_a_car_it_is_503_with_the_reason(
    front: Oip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "INTERACTIVE_NO_CAR_MS", 50)
    status, headers, answer = await front.call("POST", NOOP, json.dumps(x_input(1)).encode())
    assert status == 503
    assert int(headers["retry-after"]) >= 1
    assert "no car has ever connected" in json.loads(answer)["error"]


async def test_a_car_whose_owner_came_is_named_as_the_reason(
    front: Oip, echo: EchoCar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "INTERACTIVE_NO_CAR_MS", 50)
    echo.report(Availability.HOLD)
    await front.house.until(lambda: "hold" in front.house.service.core.fleet.counts()[0])
    status, answer = await front.infer(x_input(1))
    assert status == 503
    assert "held_or_driving" in answer["error"]


async def test_the_timeout_is_a_deadline_and_stops_the_car(front: Oip, echo: EchoCar) -> None:
    echo.works = False
    status, answer = await front.infer(x_input(1, parameters={"timeout": 50_000}))
    assert status == 504
    assert "deadline" in answer["error"]
    await echo.until(lambda car: bool(car.cancels))
    assert echo.cancels[0].reason is CancelReason.NOT_AWAITED


async def test_a_client_that_disappears_stops_the_car(front: Oip, echo: EchoCar) -> None:
    echo.works = False
    body = json.dumps(x_input(1)).encode()
    head = f"POST {NOOP} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with front.connect() as client:
        client.sendall(head.encode() + body)
        await echo.until(lambda car: bool(car.offers))
    await echo.until(lambda car: bool(car.cancels))
    cancel = echo.cancels[0]
    assert isinstance(cancel, Cancel)
    assert cancel.unit == echo.offers[0].unit
    await front.house.until(lambda: not front.house.service.interactive.core.waiting)


async def test_a_car_that_refuses_costs_the_client_nothing(front: Oip, echo: EchoCar) -> None:
    echo.works = False
    async with EchoCar(front.house.broker, "car-2", takes=False) as other:
        other.works = False
        asking = asyncio.create_task(front.infer(x_input(1)))
        await front.house.until(lambda: bool(echo.offers or other.offers))
        first, second = (echo, other) if echo.offers else (other, echo)
        second.works = True
        offer = first.offers[0]
        first.verdicts(
            Refused(unit=offer.unit, fence=offer.fence, reason=RefusalReason.HOLD, retry_after_ms=1)
        )
        assert (await asking)[0] == 200
        assert second.offers[0].unit != offer.unit


@pytest.mark.parametrize(
    ("code", "status"), [(ItemError.WRONG_SHAPE, 400), (ItemError.MODEL_ERROR, 500)]
)
async def test_what_a_car_says_of_an_item_is_the_answer(
    front: Oip, echo: EchoCar, code: ItemError, status: int
) -> None:
    echo.works = False
    asking = asyncio.create_task(front.infer(x_input(1)))
    await echo.until(lambda car: bool(car.offers))
    failed = ItemFailed(index=0, code=code, message="so it was")
    echo.chunks(echo.chunk(echo.offers[0], failed))
    got, answer = await asking
    assert got == status
    assert answer["error"] == f"{code.value}: so it was"


@pytest.mark.parametrize(
    "output",
    [
        "a lie",
        None,
        [],
        [{"name": "y"}],
        [{"name": "y", "datatype": "FP32", "shape": [9], "data": b"1234"}],
        [{"name": "y", "datatype": "FP99", "shape": [1], "data": b"1234"}],
        [{"name": "y", "datatype": "FP32", "shape": [-1], "data": b"1234"}],
    ],
)
async def test_a_car_that_talks_nonsense_is_named(
    front: Oip, echo: EchoCar, output: object
) -> None:
    echo.works = False
    asking = asyncio.create_task(front.infer(x_input(1)))
    await echo.until(lambda car: bool(car.offers))
    said = msgspec.Raw(msgspec.msgpack.encode(output))
    echo.chunks(echo.chunk(echo.offers[0], ItemDone(index=0, output=said)))
    status, answer = await asking
    if output == []:
        assert answer["outputs"] == []
    else:
        assert status == 500
        assert "car-1" in answer["error"]


async def test_many_requests_at_once_each_get_their_own(front: Oip, echo: EchoCar) -> None:
    async def one(number: int) -> list[float]:
        status, answer = await front.infer(x_input(float(number)))
        assert status == 200
        values: list[float] = answer["outputs"][0]["data"]
        return values

    answers = await asyncio.gather(*(one(number) for number in range(200)))
    assert answers == [[float(number)] for number in range(200)]
    assert len(echo.offers) < 200, "some of them travelled together"
