"""Result streams: both forms, heartbeats, disconnects, slow readers, endings."""

import asyncio
import base64
import math
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgpack
import msgspec
import pytest
from memory_front import MemoryFront
from serving import MSGPACK, WAIT_S, Served, job, served, wait_until
from structlog.testing import capture_logs

from edge_runtime.contract import limits
from edge_runtime.contract.reasons import ItemError
from edge_runtime.dispatcher.api import streams as streams_module
from edge_runtime.dispatcher.api.streams import OpenStreams


async def submit(api: Served, items: int) -> str:
    status = await api.call("POST", "/v1/jobs", body=job(items=[{"text": "x"}] * items), status=201)
    name: str = status["job"]
    return name


async def lines(response: aiohttp.ClientResponse) -> AsyncIterator[Any]:
    async for line in response.content:
        yield msgspec.json.decode(line) if line.strip() else None


async def read_json(api: Served, path: str) -> list[Any]:
    async with api.session.get(api.url(path)) as response:
        assert response.headers["content-type"] == "application/x-ndjson"
        return [element async for element in lines(response)]


async def read_msgpack(api: Served, path: str) -> list[Any]:
    async with api.session.get(api.url(path), headers={"Accept": MSGPACK}) as response:
        assert response.headers["content-type"] == MSGPACK
        unpacker = msgpack.Unpacker(strict_map_key=False)
        unpacker.feed(await response.read())
        return list(unpacker)


async def test_results_of_a_finished_job_end_with_its_status(api: Served) -> None:
    name = await submit(api, 3)
    for item in (2, 0):
        api.front.finish(name, item, {"label": item})
    api.front.fail(name, 1)
    elements = await read_json(api, f"/v1/jobs/{name}/results")
    assert [element["cursor"] for element in elements[:-1]] == [1, 2, 3]
    assert [element["item"] for element in elements[:-1]] == [2, 0, 1]
    assert elements[0]["output"] == {"label": 2}
    assert "output" not in elements[2]
    assert elements[2]["error"] == {"code": "model_error", "message": "it broke", "attempts": 3}
    assert elements[3]["status"]["state"] == "done"
    assert await read_msgpack(api, f"/v1/jobs/{name}/results") == elements


async def test_a_cursor_skips_what_is_known(api: Served) -> None:
    name = await submit(api, 250)
    for item in range(250):
        api.front.finish(name, item)
    elements = await read_json(api, f"/v1/jobs/{name}/results?cursor=240")
    assert [element["cursor"] for element in elements[:-1]] == list(range(241, 251))
    assert len(await read_json(api, f"/v1/jobs/{name}/results?cursor=9999")) == 1


async def test_without_follow_a_running_job_ends_with_its_running_status(api: Served) -> None:
    name = await submit(api, 2)
    api.front.finish(name, 0)
    elements = await read_json(api, f"/v1/jobs/{name}/results")
    assert [("status" in element) for element in elements] == [False, True]
    assert elements[1]["status"]["state"] == "running"


async def test_follow_streams_as_items_finish(api: Served) -> None:
    name = await submit(api, 3)
    seen: list[Any] = []
    async with api.session.get(api.url(f"/v1/jobs/{name}/results?follow")) as response:
        api.front.finish(name, 0, "first")
        async for element in lines(response):
            seen.append(element)
            if element.get("cursor") == 1:
                api.front.finish(name, 1, "second")
            elif element.get("cursor") == 2:
                api.front.finish(name, 2, "third")
    assert [element.get("output") for element in seen] == ["first", "second", "third", None]
    assert seen[-1]["status"]["done"] == 3
    await wait_until(lambda: api.front.open_iterators == 0)


@pytest.mark.parametrize(
    ("output", "as_json"),
    [
        (None, None),
        (b"\x00\xff", "AP8="),
        (math.nan, None),
        ({"score": math.inf, "low": -math.inf}, {"score": None, "low": None}),
        ({1: "a", 2.5: "b"}, {"1": "a", "2.5": "b"}),
        ({None: 1, True: [b"x"]}, {"None": 1, "True": ["eA=="]}),
        ([1, [2, {"deep": "é"}]], [1, [2, {"deep": "é"}]]),
        (msgspec.msgpack.Ext(5, b"raw"), {"ext": 5, "data": base64.b64encode(b"raw").decode()}),
        (2**64 - 1, 2**64 - 1),
    ],
)
async def test_outputs_in_json(api: Served, output: Any, as_json: Any) -> None:
    name = await submit(api, 1)
    api.front.finish(name, 0, output)
    elements = await read_json(api, f"/v1/jobs/{name}/results")
    assert elements[0]["output"] == as_json
    feed = await read_json(api, "/v1/results?position=0")
    assert feed[-1]["result"] == elements[0]


@pytest.mark.parametrize("raw", [b"\xa2\xff\xfe", b"\x81\x80\x01"])
async def test_an_output_without_a_json_form_fails_alone(api: Served, raw: bytes) -> None:
    name = await submit(api, 2)
    api.front.finish(name, 0, raw=raw)
    api.front.finish(name, 1, "fine")
    elements = await read_json(api, f"/v1/jobs/{name}/results")
    assert elements[0]["error"]["code"] == ItemError.UNKNOWN.value
    assert elements[1]["output"] == "fine"
    assert elements[2]["status"]["state"] == "done"


async def test_the_feed_holds_all_jobs_of_its_tenant_only(api: Served) -> None:
    mine = [await submit(api, 1) for _ in range(3)]
    other = await api.call("POST", "/v1/jobs", body=job(), status=201, X_Tenant="other")
    for name in (mine[2], other["job"], mine[0], mine[1]):
        api.front.finish(name, 0)
    elements = await read_json(api, "/v1/results?position=0")
    assert elements[0] is None
    assert [element["job"] for element in elements[1:]] == [mine[2], mine[0], mine[1]]
    positions = [element["position"] for element in elements[1:]]
    assert positions == sorted(positions)
    rest = await read_msgpack(api, f"/v1/results?position={positions[0]}")
    assert rest == [None, *elements[2:]]


async def test_a_feed_from_now_says_where_it_starts(api: Served) -> None:
    name = await submit(api, 2)
    api.front.finish(name, 0, "old")
    async with api.session.get(api.url("/v1/results?follow=true")) as response:
        assert response.headers["feed-position"] == str(api.front.position)
        stream = lines(response)
        assert await anext(stream) is None
        api.front.finish(name, 1, "new")
        element = await asyncio.wait_for(anext(stream), WAIT_S)
    assert element["result"]["output"] == "new"


async def test_heartbeats(api: Served) -> None:
    api.front.heartbeat_s = 0.01
    name = await submit(api, 1)
    async with api.session.get(
        api.url(f"/v1/jobs/{name}/results?follow=1"), headers={"Accept": MSGPACK}
    ) as response:
        assert await response.content.readexactly(3) == b"\xc0\xc0\xc0"
    async with api.session.get(api.url(f"/v1/jobs/{name}/results?follow=1")) as response:
        assert await response.content.readexactly(3) == b"\n\n\n"


async def test_a_reader_that_leaves_stops_the_work(api: Served) -> None:
    name = await submit(api, 1)
    responses = [
        await api.session.get(api.url(path))
        for path in (f"/v1/jobs/{name}/results?follow=1", "/v1/results?follow=1")
    ]
    await wait_until(lambda: api.front.open_iterators == 2)
    assert api.api.open_streams == 2
    for response in responses:
        response.close()
    await wait_until(lambda: api.front.open_iterators == 0)
    await wait_until(lambda: api.api.open_streams == 0)


async def slow_reader(api: Served, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection with a tiny receive buffer that has asked and reads nothing."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", api.server.port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=4096)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    await writer.drain()
    return reader, writer


async def big_job(api: Served, items: int = 3000) -> str:
    name = await submit(api, items)
    for item in range(items):
        api.front.finish(name, item, b"\x00" * 20_000)
    return name


async def pulled_settles(api: Served) -> int:
    """The number of pages pulled once it has not moved for many turns of the loop."""
    await wait_until(lambda: api.front.pages_pulled > 0)
    seen, quiet = 0, 0
    async with asyncio.timeout(WAIT_S):
        while quiet < 2000:
            await asyncio.sleep(0)
            quiet = quiet + 1 if api.front.pages_pulled == seen else 0
            seen = api.front.pages_pulled
    return seen


async def test_a_slow_reader_holds_one_page(api: Served) -> None:
    name = await big_job(api)
    _, writer = await slow_reader(api, f"/v1/jobs/{name}/results")
    pulled = await pulled_settles(api)
    # 30 pages of 2.7 MB each: what is pulled fits the socket buffers, the rest waits.
    assert pulled <= 6
    writer.transport.abort()
    await wait_until(lambda: api.front.open_iterators == 0)


async def test_a_reader_that_never_reads_is_cut(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HTTP_STREAM_STALL_S", 0.05)
    name = await big_job(api)
    with capture_logs() as logs:
        _, writer = await slow_reader(api, f"/v1/jobs/{name}/results")
        await wait_until(lambda: api.front.pages_pulled > 0)
        await wait_until(lambda: api.front.open_iterators == 0)
    assert "http_stream_stalled" in [entry["event"] for entry in logs]
    writer.transport.abort()


async def test_closing_the_server_ends_streams_without_a_last_element() -> None:
    front = MemoryFront()
    async with served(front) as api:
        name = await submit(api, 2)
        response = await api.session.get(api.url(f"/v1/jobs/{name}/results?follow=1"))
        front.finish(name, 0)
        assert (await response.content.readline()).startswith(b'{"cursor":1')
        await asyncio.wait_for(api.server.close(), WAIT_S)
        assert await response.content.read() == b""
    assert front.open_iterators == 0


async def test_closing_does_not_wait_for_a_reader_that_does_not_read() -> None:
    async with served(MemoryFront()) as api:
        name = await big_job(api)
        _, writer = await slow_reader(api, f"/v1/jobs/{name}/results")
        await wait_until(lambda: api.front.pages_pulled > 0)
        await asyncio.wait_for(api.server.close(), 3 * limits.HTTP_SHUTDOWN_S)
        assert api.front.open_iterators == 0
        writer.transport.abort()


async def test_a_stream_whose_job_is_deleted_ends_with_the_problem(api: Served) -> None:
    name = await submit(api, 1)
    async with api.session.get(api.url(f"/v1/jobs/{name}/results?follow=1")) as response:
        await wait_until(lambda: api.front.open_iterators == 1)
        await api.call("DELETE", f"/v1/jobs/{name}", status=204)
        elements = [element async for element in lines(response)]
    assert elements[-1]["problem"]["code"] == "not_found"


async def test_a_stream_that_fails_ends_with_an_internal_problem(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_args: Any, **_options: Any) -> AsyncIterator[Any]:
        yield []
        await asyncio.sleep(0)
        raise RuntimeError("secret")

    monkeypatch.setattr(MemoryFront, "feed", broken)
    with capture_logs() as logs:
        elements = await read_json(api, "/v1/results?follow=1")
    assert [element and element["problem"]["code"] for element in elements] == [None, "internal"]
    assert "http_stream_failed" in [entry["event"] for entry in logs]


async def test_streams_are_bounded_in_number(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams_module.OpenStreams, "is_full", property(lambda _self: True))
    problem = await api.call("GET", "/v1/results", status=503)
    assert problem["limit"] == f"HTTP_STREAMS_MAX={limits.HTTP_STREAMS_MAX}"


def test_open_streams_are_full_at_their_bound() -> None:
    streams = OpenStreams(streams_max=1)
    assert not streams.is_full
    streams.count = 1
    assert streams.is_full
