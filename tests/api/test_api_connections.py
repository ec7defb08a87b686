"""Connections on real sockets: how many, how long, and what is no request."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from memory_front import MemoryFront
from raw_http import Wire, ask, head
from serving import WAIT_S, Served, job, wait_until

from edge_runtime.contract import limits
from edge_runtime.dispatcher.api import HttpServer, build_app, connections, serve

HEALTH = head("GET", "/v1/health")
BODY = json.dumps(job()).encode()


def submission(*headers: str, body: bytes = BODY) -> bytes:
    return head("POST", "/v1/jobs", "Content-Type: application/json", *headers).encode() + body


@contextlib.asynccontextmanager
async def small_house(front: MemoryFront, most: int) -> AsyncIterator[HttpServer]:
    """A server of `most` connections."""
    server = await serve(build_app(front), port=0, connections_most=most)
    try:
        yield server
    finally:
        await server.close()


# --- how long a connection may be without a request ---------------------------------------------


@pytest.mark.parametrize("sent", ["", HEALTH], ids=["before its first", "between two"])
async def test_a_connection_without_a_request_is_closed(
    api: Served, monkeypatch: pytest.MonkeyPatch, sent: str
) -> None:
    monkeypatch.setattr(limits, "HTTP_HEAD_S", 0.1)
    async with Wire(api.server.port) as wire:
        if sent:
            await wire.send(sent)
            assert (await wire.answer()).status == 200
        assert await wire.end() == b""
    assert api.api.counters["http_connections_idle"] == 1


@pytest.mark.parametrize("sent", ["G", "GET /v1/health HTTP/1.1\r\nHost: local", "\r\n\r\n"])
async def test_half_a_head_is_waited_for_and_then_refused(
    api: Served, monkeypatch: pytest.MonkeyPatch, sent: str
) -> None:
    monkeypatch.setattr(limits, "HTTP_HEAD_S", 0.1)
    said = await ask(api.server.port, sent)
    assert (said.status, said.json["code"]) == (408, "too_slow")
    assert said.json["limit"] == "HTTP_HEAD_S=0.1"
    assert said.headers["connection"] == "close"


async def test_a_head_that_drips_has_no_more_time_than_another(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HTTP_HEAD_S", 0.3)
    async with Wire(api.server.port) as wire:
        asking = asyncio.create_task(wire.answer())
        for byte in HEALTH[:-1] * 100:
            wire.writer.write(byte.encode())
            await asyncio.wait([asking], timeout=0.01)
            if asking.done():
                break
        assert (await asking).status == 408


async def test_the_rest_of_a_refused_body_is_not_waited_for(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HTTP_HEAD_S", 0.2)
    async with Wire(api.server.port) as wire:
        await wire.send(submission(f"Content-Length: {limits.JOB_MAX_BODY_BYTES + 1}", body=b"{"))
        assert (await wire.answer()).status == 413
        ending = asyncio.create_task(wire.end())
        while not ending.done():
            wire.writer.write(b" ")
            await asyncio.wait([ending], timeout=0.02)
        assert await ending == b""


async def test_others_are_answered_while_some_wait(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HTTP_HEAD_S", 0.4)
    async with Wire(api.server.port) as idle, Wire(api.server.port) as busy:
        ending = asyncio.create_task(idle.end())
        answers = 0
        while not ending.done():
            await busy.send(HEALTH)
            answers += (await busy.answer()).status == 200
        assert answers > 10
        await busy.send(HEALTH)
        assert (await busy.answer()).status == 200, "who asks again and again stays"


# --- what is no body ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pieces",
    [
        ["GET /v1/health HTTP/1.1\r\nHost: localhost\r\nX-Long: ", "a" * 8_192],
        ["GET /", "a" * 8_192],
        ["\r\n" * 4_096],
        [head("POST", "/v1/jobs", "Transfer-Encoding: chunked") + "1;x=", "a" * 8_192],
        [head("POST", "/v1/jobs", "Transfer-Encoding: chunked") + "0\r\nX-Long: ", "a" * 8_192],
    ],
    ids=["header", "path", "empty lines", "extension of a chunk", "trailer"],
)
async def test_what_never_ends_is_ended(api: Served, pieces: list[str]) -> None:
    first, again = pieces[0], pieces[-1]
    async with Wire(api.server.port) as wire:
        asking = asyncio.create_task(wire.answer())
        await wire.send(first)
        sent = len(first)
        with contextlib.suppress(ConnectionError):
            while not asking.done() and sent < 100 * limits.HTTP_HEAD_MAX_BYTES:
                await wire.send(again)
                sent += len(again)
                await asyncio.sleep(0)
        said = await asking
        assert (said.status, said.json["code"]) == (431, "too_large")
        assert said.json["limit"] == f"HTTP_HEAD_MAX_BYTES={limits.HTTP_HEAD_MAX_BYTES}"
    await api.call("GET", "/v1/health")
    assert api.front.jobs_by_id == {}


async def test_headers_are_counted(api: Served) -> None:
    most = limits.HTTP_HEADERS_MAX
    many = [f"X-{number}: 1" for number in range(most)]
    said = await ask(api.server.port, head("GET", "/v1/health", *many))
    assert (said.status, said.json["limit"]) == (431, f"HTTP_HEADERS_MAX={most}")
    assert (await ask(api.server.port, head("GET", "/v1/health", *many[1:]))).status == 200


@pytest.mark.parametrize(
    "sent",
    [
        "nonsense\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        "GET /v1/health HTTP/9.9\r\n\r\n",
        "GET /v1/h\xe9alth HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /v1/health HTTP/1.1\r\nHost : localhost\r\n\r\n",
        "GET /v1/health HTTP/1.1\r\nHost: localhost\r\n folded\r\n\r\n",
        "GET /v1/health HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_what_is_no_request_is_said_to_be_none(api: Served, sent: str) -> None:
    async with Wire(api.server.port) as wire:
        await wire.send(sent)
        said = await wire.answer()
        assert (said.status, said.json["code"]) == (400, "malformed")
        assert await wire.end() == b""
    assert api.api.counters["http_requests_malformed"] == 1


@pytest.mark.parametrize(
    "headers",
    [
        (f"Content-Length: {len(BODY)}", f"Content-Length: {len(BODY)}"),
        (f"Content-Length: {len(BODY)}", "Content-Length: 0"),
        (f"Content-Length: {len(BODY)}, {len(BODY)}",),
        (f"Content-Length: {len(BODY)}", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", f"Content-Length: {len(BODY)}"),
        ("Transfer-Encoding: chunked, identity",),
        ("Transfer-Encoding: xchunked",),
        ("Transfer-Encoding: gzip",),
        ("Content-Length: -1",),
        (f"Content-Length: +{len(BODY)}",),
        ("Content-Length: 0x10",),
        ("Content-Length: 1 0",),
        ("Content-Length:",),
        (f"Content-Length: {2**64}",),
        (f"Content-Length : {len(BODY)}",),
    ],
)
@pytest.mark.parametrize("path", ["/v1/jobs", "/v2/models/noop/infer", "/v1/chat/completions"])
async def test_a_body_whose_end_can_be_read_in_two_ways_is_refused(
    api: Served, headers: tuple[str, ...], path: str
) -> None:
    hidden = head("POST", "/v1/jobs/job-0/cancel", "Content-Length: 0")
    async with Wire(api.server.port) as wire:
        await wire.send(head("POST", path, *headers).encode() + BODY + hidden.encode())
        said = await wire.answer()
        assert said.status == 400
        assert "error" in said.json if path != "/v1/jobs" else said.json["code"] == "malformed"
        assert await wire.end() == b"", "and nothing behind it is taken for a request"
    assert api.front.jobs_by_id == {}


@pytest.mark.parametrize("name", ["Host", "Origin", "Content-Type", "X-Tenant"])
async def test_a_header_that_decides_is_there_once(api: Served, name: str) -> None:
    port = api.server.port
    values = {
        "Host": "localhost",
        "Origin": f"http://localhost:{port}",
        "Content-Type": "application/json",
        "X-Tenant": "mine",
    }
    lines = [f"{key}: {value}" for key, value in values.items()] + [f"Content-Length: {len(BODY)}"]
    lines[0] = f"Host: localhost:{port}"
    start = "POST /v1/jobs HTTP/1.1\r\n"
    once = start + "\r\n".join(lines) + "\r\n\r\n"
    assert (await ask(port, once.encode() + BODY)).status == 201
    lines.append(next(line for line in lines if line.startswith(name)))
    twice = start + "\r\n".join(lines) + "\r\n\r\n"
    said = await ask(port, twice.encode() + BODY)
    assert (said.status, said.json["code"], said.json["field"]) == (400, "duplicate_header", name)


async def test_trailers_are_no_headers(api: Served) -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        seen.extend(scope["headers"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    api.api.mount("echo", echo)
    async with Wire(api.server.port) as wire:
        await wire.send(head("POST", "/echo", "Transfer-Encoding: chunked", "X-Tenant: mine"))
        await wire.send("1\r\n{\r\n0\r\nX-Tenant: yours\r\nX-More: 1\r\n\r\n")
        assert (await wire.answer()).status == 204
        names = [name for name, _ in seen]
        assert names.count(b"x-tenant") == 1
        assert b"x-more" not in names
        await wire.send(HEALTH)
        assert (await wire.answer()).status == 200, "and the connection goes on behind them"


@pytest.mark.parametrize("wanted", ["websocket", "h2c"])
async def test_another_language_is_answered_in_this_one(api: Served, wanted: str) -> None:
    async with Wire(api.server.port) as wire:
        await wire.send(head("GET", "/v1/health", "Connection: Upgrade", f"Upgrade: {wanted}"))
        await wire.send("\x81\x05hello")
        said = await wire.answer()
        assert (said.status, said.headers["connection"]) == (200, "close")
        assert await wire.end() == b""


# --- several requests on one connection ---------------------------------------------------------


async def test_requests_in_a_row_are_answered_in_order(api: Served) -> None:
    async with Wire(api.server.port) as wire:
        paths = ["/livez", "/nothing", "/v1/health"] * 4
        await wire.send("".join(head("GET", path) for path in paths))
        statuses = [(await wire.answer()).status for _ in paths]
    assert statuses == [204, 404, 200] * 4


async def test_more_requests_than_may_wait_are_refused(api: Served) -> None:
    async with Wire(api.server.port) as wire:
        await wire.send(head("GET", "/livez") * (limits.HTTP_PIPELINE_MAX + 2))
        said = await wire.answer()
        assert (said.status, said.json["limit"]) == (
            429,
            f"HTTP_PIPELINE_MAX={limits.HTTP_PIPELINE_MAX}",
        )
        assert await wire.end() == b""


async def test_a_request_with_another_behind_it_knows_when_its_client_leaves(api: Served) -> None:
    begun, told = asyncio.Event(), asyncio.Event()

    async def wait(_scope: Any, receive: Any, _send: Any) -> None:
        begun.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        told.set()

    api.api.mount("wait", wait)
    async with Wire(api.server.port) as wire:
        await wire.send(head("GET", "/wait") + HEALTH)
        await asyncio.wait_for(begun.wait(), WAIT_S)
        wire.writer.transport.abort()
        await asyncio.wait_for(told.wait(), WAIT_S)


# --- how many connections -----------------------------------------------------------------------


async def test_one_too_many_is_refused_while_all_others_work() -> None:
    front = MemoryFront()
    front.submit_gate = asyncio.Event()
    async with small_house(front, 2) as server, contextlib.AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(Wire(server.port)) for _ in range(2)]
        for wire in wires:
            await wire.send(submission(f"Content-Length: {len(BODY)}"))
        await wait_until(lambda: front.submit_calls == 2)
        said = await ask(server.port, HEALTH)
        assert (said.status, said.json["code"]) == (503, "busy")
        assert said.json["limit"] == "HTTP_CONNECTIONS_MAX=2"
        assert said.headers["connection"] == "close"
        assert int(said.headers["retry-after"]) >= 1
        front.submit_gate.set()
        assert [(await wire.answer()).status for wire in wires] == [201, 201]
        wires[0].writer.close()
        await wires[0].end()
        await wait_until(_is_answered(server))


async def test_an_idle_connection_makes_room_the_oldest_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "HTTP_IDLE_KEPT_S", 0.0)
    front = MemoryFront()
    async with (
        small_house(front, 2) as server,
        Wire(server.port) as first,
        Wire(server.port) as second,
    ):
        for wire in (first, second):
            await wire.send(HEALTH)
            assert (await wire.answer()).status == 200
        assert (await ask(server.port, HEALTH)).status == 200
        assert await first.end() == b""
        await second.send(HEALTH)
        assert (await second.answer()).status == 200


async def test_refusals_without_end_do_not_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HTTP_LINGERING_MAX", 3)
    front = MemoryFront()
    front.submit_gate = asyncio.Event()
    server = await serve(api := build_app(front), port=0, connections_most=1)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(server.close)
        stack.callback(front.submit_gate.set)
        wire = await stack.enter_async_context(Wire(server.port))
        await wire.send(submission(f"Content-Length: {len(BODY)}"))
        await wait_until(lambda: front.submit_calls == 1)
        refused = [await stack.enter_async_context(Wire(server.port)) for _ in range(12)]
        ends = await asyncio.gather(*(one.end() for one in refused))
        assert sum(b" 503 " in end for end in ends) >= 3
        assert api.counters["http_connections_refused"] == 12


def _is_answered(server: HttpServer) -> Callable[[], Any]:
    async def asked() -> bool:
        return (await ask(server.port, HEALTH)).status == 200

    return asked


def test_connections_are_fewer_than_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(files: int) -> int:
        monkeypatch.setattr(connections.resource, "getrlimit", lambda _: (files, files))
        return connections.connections_max()

    assert of(1_024) == 1_024 - limits.HTTP_FILES_RESERVED
    assert of(10**6) == of(connections.resource.RLIM_INFINITY) == limits.HTTP_CONNECTIONS_MAX
    assert of(16) == 1


# --- slow bodies, readers that do not read --------------------------------------------------------


async def test_a_silent_body_is_given_up_and_gives_its_room_back(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "UPLOAD_SILENCE_S", 0.2)
    half = limits.HTTP_BODIES_MAX_BYTES // 2
    async with Wire(api.server.port) as one, Wire(api.server.port) as other:
        for wire in (one, other):
            await wire.send(submission(f"Content-Length: {half}", body=b"{"))
        for wire in (one, other):
            said = await wire.answer()
            assert (said.status, said.json["code"]) == (408, "too_slow")
            assert said.json["limit"] == "UPLOAD_SILENCE_S=0.2"
    assert (await api.send(BODY))[0] == 201


async def test_a_body_that_trickles_is_given_up(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "UPLOAD_SILENCE_S", 0.5)
    async with Wire(api.server.port) as wire:
        await wire.send(submission("Content-Length: 100000", body=b"{"))
        asking = asyncio.create_task(wire.answer())
        while not asking.done():
            wire.writer.write(b" ")
            await asyncio.wait([asking], timeout=0.05)
        said = await asking
        assert (said.status, said.json["code"]) == (408, "too_slow")
        assert said.json["limit"].startswith("HTTP_BODY_MIN_BYTES_PER_S=")


async def test_an_answer_that_nobody_reads_is_cut(
    api: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HTTP_UNREAD_S", 0.2)
    digest = "d" * 64
    (tmp_path / "large").write_bytes(bytes(64 * 1024 * 1024))
    api.front.model_root, api.front.manifests = tmp_path, {digest: b"{}"}
    async with Wire(api.server.port) as wire:
        wire.reader._limit = 1  # it stops reading at once
        await wire.send(head("GET", f"/v1/models/{digest}/files/large"))
        await wait_until(lambda: api.api.counters["http_connections_cut"] == 1)


async def test_who_closes_its_half_has_left(api: Served) -> None:
    api.front.submit_gate = asyncio.Event()
    async with Wire(api.server.port) as wire:
        await wire.send(submission(f"Content-Length: {len(BODY)}"))
        await wait_until(lambda: api.front.submit_calls == 1)
        wire.writer.write_eof()
        assert await wire.end() == b""
    api.front.submit_gate.set()
    await api.call("GET", "/v1/health")
