"""One job: what may be submitted, what comes back, what is raised."""

import asyncio
import math
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest
from serving import Served, wait_until

from edge_runtime.client import (
    ContractBroken,
    DispatcherRefused,
    DispatcherUnreachable,
    EdgeClient,
    JobRefused,
)
from edge_runtime.contract import limits
from edge_runtime.contract.errors import ConfigError, EdgeError, LocalError
from edge_runtime.contract.http import ItemInput, Problem, Requirements
from edge_runtime.contract.reasons import ItemError, JobState


async def test_results_come_as_items_finish(api: Served, client: EdgeClient) -> None:
    handle = client.submit("noop", ["a", b"b", "c"])
    seen = []
    async for result in handle:
        seen.append(result)
        if result.item == 0:
            api.front.fail(handle.id, 2, ItemError.ENGINE_HUNG)
        elif result.item == 2:
            api.front.finish(handle.id, 1, {"score": math.nan, b"k": b"\x00"})
        if len(seen) == 1:
            assert handle.cursor == 1
    assert [(result.cursor, result.item, result.ok) for result in seen] == [
        (1, 0, True),
        (2, 2, False),
        (3, 1, True),
    ]
    assert seen[1].error is not None
    assert seen[1].error.code is ItemError.ENGINE_HUNG
    assert math.isnan(seen[2].output["score"])
    assert seen[2].output[b"k"] == b"\x00"
    assert (await handle).state is JobState.DONE


@pytest.fixture(autouse=True)
def _first_item_finishes(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first item of a job of several ends at once, so that iterations have a start."""
    submit = api.front._submit

    def submit_and_finish(tenant: str, request: Any) -> Any:
        answer = submit(tenant, request)
        if answer.status is not None and not answer.existing and answer.status.items > 1:
            api.front.finish(answer.status.job, 0, "first")
        return answer

    monkeypatch.setattr(api.front, "_submit", submit_and_finish)


async def test_all_kinds_of_items(api: Served, client: EdgeClient, tmp_path: Path) -> None:
    picture = tmp_path / "sign.jpg"
    picture.write_bytes(b"\xff\xd8jpeg")
    nameless = tmp_path / "nameless"
    nameless.write_bytes(b"?")
    given = ItemInput(media_type="audio/wav", data=b"RIFF")
    handle = client.submit("noop", [b"raw", bytearray(b"ba"), "text", picture, nameless, given])
    await handle
    assert api.front.jobs_by_id[handle.id].request.items == (
        ItemInput(data=b"raw"),
        ItemInput(data=b"ba"),
        ItemInput(media_type="text/plain", text="text"),
        ItemInput(media_type="image/jpeg", data=b"\xff\xd8jpeg"),
        ItemInput(data=b"?"),
        given,
    )


@pytest.mark.parametrize("alone", ["text", b"bytes", ItemInput(text="x")])
async def test_one_item_needs_no_list(client: EdgeClient, alone: Any) -> None:
    handle = client.submit("noop", alone)
    assert (await handle).items == 1


async def test_every_option_travels(api: Served, client: EdgeClient) -> None:
    handle = client.submit(
        "noop@1",
        "x",
        parameters={"threshold": 0.5},
        idempotency_key="mine",
        deadline_s=60,
        retention_s=120,
        purpose="safety",
        priority=9,
        requirements=Requirements(region="eu", vehicles=("car-1",)),
    )
    await handle
    request = api.front.jobs_by_id[handle.id].request
    assert request.parameters == {"threshold": 0.5}
    assert (request.model, request.idempotency_key) == ("noop@1", "mine")
    assert (request.deadline_s, request.retention_s) == (60, 120)
    assert (request.purpose, request.priority) == ("safety", 9)
    assert request.requirements == Requirements(region="eu", vehicles=("car-1",))


async def test_awaiting_twice_submits_once(api: Served, client: EdgeClient) -> None:
    handle = client.submit("noop", "x")
    with pytest.raises(LocalError):
        _ = handle.id
    first, second = await asyncio.gather(handle.status(), handle.status())
    assert first.job == second.job == handle.id
    assert (await handle).job == handle.id
    assert len(api.front.jobs_by_id) == 1


async def test_a_key_names_one_job_and_another_body_is_refused(client: EdgeClient) -> None:
    one = await client.submit("noop", "x", idempotency_key="k")
    assert await client.submit("noop", "x", idempotency_key="k") == one
    with pytest.raises(JobRefused) as refused:
        await client.submit("noop", "y", idempotency_key="k")
    assert (refused.value.problem.code, refused.value.problem.status) == ("key_reused", 409)
    without_keys = [await client.submit("noop", "x") for _ in range(2)]
    assert without_keys[0].job != without_keys[1].job


async def test_refusals_carry_the_problem(client: EdgeClient) -> None:
    handle = client.submit("nothing", "x")
    with pytest.raises(JobRefused, match="unknown_model") as refused:
        await handle
    assert refused.value.problem.field == "model"
    with pytest.raises(JobRefused):
        await anext(aiter(handle))
    with pytest.raises(JobRefused) as empty:
        await client.submit("noop", [])
    assert empty.value.problem.field == "items"
    assert issubclass(JobRefused, EdgeError)


async def test_a_large_file_is_refused_before_it_is_read(
    client: EdgeClient, tmp_path: Path
) -> None:
    large = tmp_path / "large.bin"
    with large.open("wb") as file:
        file.truncate(10 * 1024**4)
    with pytest.raises(JobRefused) as refused:
        await client.submit("noop", ["ok", large])
    assert refused.value.problem.field == "items[1]"
    assert refused.value.problem.limit == f"OBJECT_MAX_BYTES={limits.OBJECT_MAX_BYTES}"


async def test_a_request_over_one_mebibyte(api: Served, client: EdgeClient) -> None:
    handle = client.submit("noop", [b"\x01" * 100_000] * 30)
    assert (await handle).items == 30
    assert len(api.front.jobs_by_id[handle.id].request.items[29].data or b"") == 100_000


@pytest.mark.parametrize("status", [429, 503, 507])
async def test_busy_is_tried_again_and_said_once(
    api: Served, client: EdgeClient, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    api.front.refuse_next = [Problem(code="busy", message="the disk is full", status=status)] * 2
    assert (await client.submit("noop", "x")).items == 1
    assert api.front.submit_calls == 3
    (line,) = caplog.messages
    assert "the disk is full; trying again" in line


async def test_busy_for_too_long_is_a_refusal(api: Served) -> None:
    api.front.refuse_next = [Problem(code="busy", message="full", status=503)] * 1000
    async with EdgeClient(api.server.url, unreachable_after_s=0.2) as client:
        with pytest.raises(JobRefused) as refused:
            await client.submit("noop", "x")
    assert refused.value.problem.status == 503


async def test_nobody_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        async with EdgeClient(url, unreachable_after_s=0.2) as client:
            with pytest.raises(DispatcherUnreachable) as unreachable:
                await client.submit("noop", "x")
            assert unreachable.value.url == url
            assert unreachable.value.waited_s >= 0.2
            assert unreachable.value.cause
            with pytest.raises(DispatcherUnreachable):
                await anext(client.results("job-0"))
            with pytest.raises(DispatcherUnreachable):
                await client.health()


async def test_something_else_answers() -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with EdgeClient(url, unreachable_after_s=1.0) as client:
            with pytest.raises(ContractBroken):
                await client.status("job-0")
            with pytest.raises(ContractBroken):
                await anext(client.results("job-0"))


async def test_no_http_at_all() -> None:
    async def speak(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x10\x02\x00\x04MQTT")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with EdgeClient(url, unreachable_after_s=0.1) as client:
            with pytest.raises(DispatcherUnreachable):
                await client.status("job-0")


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "mqtt://h:1", "http://", "http://h:99999", ""])
def test_a_wrong_url_is_one_line(url: str) -> None:
    with pytest.raises(ConfigError, match="http://host:port"):
        EdgeClient(url)


async def test_the_client_must_be_opened() -> None:
    with pytest.raises(ConfigError, match="async with"):
        await EdgeClient().health()


async def test_undecodable_outputs_fail_alone(api: Served, client: EdgeClient) -> None:
    handle = client.submit("noop", ["a", "b", "c"])
    await handle
    api.front.finish(handle.id, 1, raw=b"\xa2\xff\xfe")
    api.front.finish(handle.id, 2, raw=msgspec.msgpack.encode("fine"))
    results = [result async for result in handle]
    assert [result.ok for result in results] == [True, False, True]
    assert results[1].error is not None
    assert results[1].error.code is ItemError.UNKNOWN
    feed = client.feed(0)
    from_feed = [await anext(feed) for _ in range(3)]
    await feed.aclose()
    assert [entry.result for entry in from_feed] == results


async def test_leaving_an_iteration_frees_the_stream(api: Served, client: EdgeClient) -> None:
    handle = client.submit("noop", ["a", "b"])
    async for result in handle:
        assert result.cursor == 1
        break
    await wait_until(lambda: api.front.open_iterators == 0)
    api.front.finish(handle.id, 1, "rest")
    assert [result.cursor async for result in handle] == [2]
    assert [result async for result in handle] == []


async def test_a_deleted_job_ends_its_iteration(client: EdgeClient) -> None:
    handle = client.submit("noop", ["a", "b"])
    results = aiter(handle)
    await anext(results)
    await handle.delete()
    with pytest.raises(DispatcherRefused) as refused:
        await anext(results)
    assert refused.value.problem.status == 404
