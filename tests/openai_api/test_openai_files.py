"""Files, models and embeddings by the unmodified `openai` package, and hostile uploads by hand."""

import asyncio
import base64
import os
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import openai
import pytest
from openai import APIStatusError
from openai_house import TASKS, BatchHouse, ReadingCar, jsonl, request_line, upload

from edge_runtime.contract import limits
from edge_runtime.contract.http import Quota
from edge_runtime.contract.messages import ItemDone, ItemFailed, ItemResult, Tokens
from edge_runtime.contract.reasons import ItemError

BOUNDARY = "b0undary"


async def test_a_file_is_durable_under_its_name_before_it_is_answered(
    house: BatchHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[set[str]] = []
    fsync, folder = os.fsync, tmp_path / "files"

    def watched(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink() == folder:
            named.append({entry.name for entry in folder.iterdir()})
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", watched)
    async with house.openai() as client:
        file = await upload(client, jsonl(request_line("a")))
    assert named == [{file}], "its folder was synced once, when it had its name"


def form(*parts: tuple[str, bytes], end: bool = True) -> bytes:
    """Parts (headers after `form-data;`, content) as multipart/form-data."""
    body = b"".join(
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + data + b"\r\n"
        for head, data in parts
    )
    return body + (f"--{BOUNDARY}--\r\n".encode() if end else b"")


async def post_form(
    house: BatchHouse, body: bytes | AsyncIterator[bytes], content_type: str | None = None
) -> tuple[int, Any]:
    kind = content_type or f"multipart/form-data; boundary={BOUNDARY}"
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{house.server.url}/v1/files", data=body, headers={"Content-Type": kind}
        ) as response,
    ):
        return response.status, msgspec.json.decode(await response.read())


# --- files -------------------------------------------------------------------------------------


async def test_a_file_goes_in_and_comes_out_and_goes(house: BatchHouse) -> None:
    data = jsonl(*(request_line(f"r{n}", "x" * 1000) for n in range(3_000)))
    async with house.openai() as client:
        file = await client.files.create(file=("mine.jsonl", data), purpose="batch")
        assert (file.bytes, file.filename, file.status) == (len(data), "mine.jsonl", "processed")
        assert (await client.files.retrieve(file.id)) == file
        assert (await client.files.content(file.id)).content == data
        others = [await upload(client, b"{}\n") for _ in range(3)]
        first = await client.files.list(limit=2)
        assert [one.id for one in first.data] == others[:0:-1]
        everything = [one.id async for one in client.files.list(limit=2)]
        assert everything == [*reversed(others), file.id]
        assert (await client.files.delete(file.id)).deleted
        with pytest.raises(APIStatusError) as refused:
            await client.files.retrieve(file.id)
        assert refused.value.status_code == 404
        assert not house.desk.shelf.path(file.id).exists()


async def test_a_file_in_use_is_not_deleted(house: BatchHouse) -> None:
    async with house.openai() as client:
        await house.door.quotas.put("default", Quota(jobs=0))  # the batch's jobs wait
        file = await upload(client, jsonl(request_line("a")))
        house.desk.shelf.use(file, "batch_x")
        with pytest.raises(APIStatusError) as refused:
            await client.files.delete(file)
        assert (refused.value.status_code, refused.value.code) == (409, "file_in_use")
        house.desk.shelf.leave(file)
        assert (await client.files.delete(file)).deleted


async def test_a_file_expires(house: BatchHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    async with house.openai() as client:
        after: Any = {"anchor": "created_at", "seconds": 3_600}
        file = await upload(client, b"{}", expires_after=after)
        assert (await client.files.retrieve(file)).expires_at is not None
        now_ms = house.desk.shelf._now_ms() + 3_601_000
        monkeypatch.setattr(house.desk.shelf, "_now_ms", lambda: now_ms)
        with pytest.raises(APIStatusError):
            await client.files.retrieve(file)
        await house.desk.shelf.sweep()
        assert not house.desk.shelf.path(file).exists()
        after["seconds"] = 1
        with pytest.raises(APIStatusError) as refused:
            await upload(client, b"{}", expires_after=after)
        assert refused.value.param == "expires_after[seconds]"


async def test_only_batches_purpose_is_taken(house: BatchHouse) -> None:
    async with house.openai() as client:
        with pytest.raises(APIStatusError) as refused:
            await client.files.create(file=b"{}", purpose="fine-tune")
        assert (refused.value.status_code, refused.value.param) == (400, "purpose")


async def test_bytes_of_files_count_for_the_quota(house: BatchHouse) -> None:
    async with house.openai() as client:
        await house.door.quotas.put("default", Quota(bytes=100))
        file = await upload(client, b"x" * 90)
        with pytest.raises(openai.RateLimitError) as refused:
            await upload(client, b"x" * 20)
        assert refused.value.response.headers["Retry-After"] == "2"
        assert "90 open bytes of at most 100" in refused.value.message
        await client.files.delete(file)
        await upload(client, b"x" * 20)
        assert len(list(house.desk.shelf.path("x").parent.iterdir())) == 1


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (form(('name="purpose"', b"batch")), "missing_field"),
        (form(('name="file"; filename="a"', b"{}")), "invalid_purpose"),
        (form(('name="file"; filename="a"', b"{}"), end=False), "malformed"),
        (b"", "malformed"),
        (b"\x00" * 100, "malformed"),
        (form(('nothing="x"', b"{}")), "malformed"),
        (
            form(('name="file"; filename="a"', b"1"), ('name="file"; filename="b"', b"2")),
            "invalid_field",
        ),
        (form(*[(f'name="f{n}"', b"x") for n in range(100)]), "malformed"),
    ],
)
async def test_a_form_that_is_none(house: BatchHouse, body: bytes, code: str) -> None:
    status, answer = await post_form(house, body)
    assert (status, answer["error"]["code"]) == (400, code), answer
    assert not list(house.desk.shelf.path("x").parent.iterdir()), "nothing is left"


async def test_what_is_no_form_at_all(house: BatchHouse) -> None:
    status, answer = await post_form(house, b"{}", "application/json")
    assert (status, answer["error"]["param"]) == (415, "Content-Type")


async def test_a_file_or_a_field_beyond_its_bound_ends_the_upload(
    house: BatchHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FILE_MAX_BYTES", 500_000)
    status, answer = await post_form(house, form(('name="file"; filename="a"', bytes(900_000))))
    assert (status, answer["error"]["code"]) == (413, "too_large")
    assert "FILE_MAX_BYTES=500000" in answer["error"]["message"]
    status, answer = await post_form(house, form(('name="purpose"', b"x" * 100_000)))
    assert (status, answer["error"]["code"]) == (413, "too_large")
    assert not list(house.desk.shelf.path("x").parent.iterdir())


async def test_a_slow_upload_is_given_up(
    house: BatchHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "UPLOAD_SILENCE_S", 0.1)
    is_answered = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield form(('name="file"; filename="a"', b"{}"), end=False)
        await is_answered.wait()

    sending = asyncio.create_task(post_form(house, slowly()))
    async with asyncio.timeout(20):
        status, answer = await sending
    is_answered.set()
    assert (status, answer["error"]["code"]) == (408, "too_slow")
    assert not list(house.desk.shelf.path("x").parent.iterdir())


async def test_a_caller_that_leaves_leaves_nothing(house: BatchHouse) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield form(('name="file"; filename="a"', b"x" * 3_000_000), end=False)
        raise ConnectionResetError

    with pytest.raises(aiohttp.ClientError):
        await post_form(house, broken())
    async with asyncio.timeout(20):
        while list(house.desk.shelf.path("x").parent.iterdir()):  # noqa: ASYNC110 - a folder has no event
            await asyncio.sleep(0.01)


async def test_a_nearly_full_disk_takes_no_file(
    house: BatchHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(house.service.store, "free_bytes", lambda: 0)
    status, answer = await post_form(house, form(('name="file"; filename="a"', b"{}")))
    assert (status, answer["error"]["code"]) == (507, "store_nearly_full")


async def test_names_of_files_reach_nothing_else(house: BatchHouse, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    async with house.openai() as client:
        for name in ("..%2Fsecret", "../secret", "%00", "x" * 5000):
            with pytest.raises((APIStatusError, openai.APIConnectionError)) as refused:
                await client.files.content(name)
            if isinstance(refused.value, APIStatusError):
                assert refused.value.status_code in (404, 400)


# --- models and embeddings ---------------------------------------------------------------------


async def test_models_are_listed_as_their_client_reads_them(house: BatchHouse) -> None:
    async with house.openai() as client:
        found = {model.id: model async for model in client.models.list()}
        assert set(found) == {"noop", "vectors", "talker"}
        assert found["vectors"].owned_by == "edge-runtime"
        assert (await client.models.retrieve("vectors@1")).id == "vectors@1"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("gpt-4o")


async def test_embeddings_in_both_forms(house: BatchHouse) -> None:
    car = ReadingCar(house.broker, "car1", tasks=TASKS)
    async with house.openai() as client, car:
        made = await client.embeddings.create(model="vectors", input=["a", "bb"])
        assert [one.embedding for one in made.data] == [[1.0, 0.5, -1.0], [2.0, 0.5, -1.0]]
        floats = await client.embeddings.create(model="vectors", input="a", encoding_format="float")
        assert floats.data[0].embedding == [1.0, 0.5, -1.0]
        raw = await client.embeddings.with_raw_response.create(
            model="vectors", input="a", encoding_format="base64"
        )
        text = msgspec.json.decode(raw.content)["data"][0]["embedding"]
        assert base64.b64decode(text) == struct.pack("<3f", 1, 0.5, -1)
    assert house.service.core.state.jobs == {}, "nothing of it is durable"


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"model": "gpt-4o"}, 404, "model_not_found"),
        ({"model": "talker"}, 404, "model_not_supported"),
        ({"input": []}, 400, "invalid_input"),
        ({"input": ""}, 400, "invalid_input"),
        ({"input": [[1, 2]]}, 400, "invalid_input"),
        ({"input": ["x"] * 2_049}, 400, "invalid_input"),
        ({"dimensions": 7}, 400, "unsupported_value"),
        ({"encoding_format": "int8"}, 400, "invalid_request"),
    ],
)
async def test_embeddings_that_cannot_be(
    house: BatchHouse, fields: dict[str, Any], status: int, code: str
) -> None:
    async with house.openai() as client:
        with pytest.raises(APIStatusError) as refused:
            await client.embeddings.create(**{"model": "vectors", "input": "a", **fields})
        assert (refused.value.status_code, refused.value.code) == (status, code)
        assert refused.value.type == "invalid_request_error"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"model": 1}', b"[" * 50_000])
async def test_a_body_that_is_no_request(house: BatchHouse, body: bytes) -> None:
    for path in ("/v1/embeddings", "/v1/batches"):
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                house.server.url + path, data=body, headers={"Content-Type": "application/json"}
            ) as response,
        ):
            answer = msgspec.json.decode(await response.read())
            assert response.status in (400, 422), answer
            assert set(answer["error"]) == {"message", "type", "param", "code"}


async def test_a_failure_on_the_car_is_the_callers_to_know(house: BatchHouse) -> None:
    def answer(index: int) -> ItemResult:
        return ItemFailed(index=index, code=ItemError.INVALID_PARAMETERS, message="too odd")

    async with house.openai() as client, house.car(answer=answer):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.embeddings.create(model="vectors", input="a")
        assert refused.value.code == "invalid_parameters"


async def test_no_car_is_said_in_time(house: BatchHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "INTERACTIVE_NO_CAR_MS", 50)
    async with house.openai() as client:
        with pytest.raises(APIStatusError) as refused:
            await client.embeddings.create(model="vectors", input="a")
        assert (refused.value.status_code, refused.value.code) == (503, "no_car")
        assert int(refused.value.response.headers["retry-after"]) >= 1


async def test_who_leaves_is_not_worked_for(house: BatchHouse) -> None:
    async with house.openai() as client, house.car(works=False) as car:
        asking = asyncio.create_task(client.embeddings.create(model="vectors", input="a"))
        await car.until(lambda car: bool(car.offers))
        asking.cancel()
        await asyncio.wait([asking])
        await car.until(lambda car: bool(car.cancels))
        assert not house.service.interactive.core.waiting


@pytest.mark.parametrize(
    "output",
    ["a lie", None, {}, {"datatype": "FP32", "data": 10**12}, {"datatype": "FP32", "data": b"123"}],
)
async def test_a_car_that_talks_nonsense_is_a_bad_gateway(house: BatchHouse, output: Any) -> None:
    def answer(index: int) -> ItemResult:
        return ItemDone(index=index, output=msgspec.Raw(msgspec.msgpack.encode(output)))

    async with house.openai() as client, house.car(answer=answer):
        for asking in (
            client.embeddings.create(model="vectors", input="a"),
            client.completions.create(model="talker", prompt="a"),
        ):
            with pytest.raises(openai.InternalServerError) as refused:
                await asking
            assert (refused.value.status_code, refused.value.code) == (502, "invalid_output")


async def test_a_stream_whose_end_is_nonsense_ends_with_an_error(house: BatchHouse) -> None:
    async with house.openai() as client, house.car(works=False) as car:
        stream = asyncio.create_task(_read_stream(client))
        await car.until(lambda car: bool(car.offers))
        (unit,) = car.offers
        said = Tokens(index=0, offset=0, ids=(5,), text="so ")
        done = ItemDone(index=0, output=msgspec.Raw(b"\xc3"))
        chunk = car.finished(unit)
        car.chunks(msgspec.structs.replace(chunk, items=(), tokens=(said,), ending=None))
        car.chunks(msgspec.structs.replace(chunk, seq=1, items=(done,)))
        text, error = await stream
        assert text == "so "
        assert error.body["code"] == "invalid_output"


async def _read_stream(client: openai.AsyncOpenAI) -> tuple[str, Any]:
    text = ""
    stream = await client.completions.create(model="talker", prompt="a", stream=True)
    try:
        async for event in stream:
            text += event.choices[0].text
    except openai.APIError as error:
        return text, error
    return text, None
