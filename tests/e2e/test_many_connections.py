"""Thousands of connections that want nothing, on a dispatcher of its own: others are answered.

What ends each of them is shown in tests/api/test_api_connections.py.
"""

import asyncio
import contextlib
import resource
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import psutil
import pytest
from services import FourProcesses, four_processes

from edge_runtime.contract import limits
from edge_runtime.vehicle.models.importers.synthetic import write_synthetic

READY_S = 60.0
MANY = 4_000
ANSWERS = 400
WITHIN_S = 0.5
"""Of 100 answers the slowest but one, on a busy machine; without the others it is some 5 ms."""
MEMORY_MAX_BYTES = 96 * 1024 * 1024
"""What the connections may cost together: 32 KiB each."""
FILES = 1_000

KINDS = {
    "silent": b"",
    "half a head": b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\nX-Slow: 1",
    "kept alive": b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "half a body": (
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b'Content-Length: 4096\r\n\r\n{"model": '
    ),
    "half closed": b"GET /v1/results?follow=true HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.fixture(autouse=True)
def _many_files() -> Iterator[None]:
    """This process has an end of each connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.asynccontextmanager
async def dispatcher(folder: Path, files: int | None = None) -> AsyncIterator[FourProcesses]:
    """A dispatcher without cars; of at most so many open files."""
    write_synthetic("noop", folder / "models")
    with four_processes(folder, folder / "models", cars=()) as four:
        if files is not None:
            assert four.dispatcher.process is not None
            pid = four.dispatcher.process.pid
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (files, files))
        async with aiohttp.ClientSession() as session, asyncio.timeout(READY_S):
            while not await _is_ready(session, four.url):  # noqa: ASYNC110 - a process has no event
                await asyncio.sleep(0.05)
        yield four
    log = four.dispatcher.log.read_text()
    assert "Traceback" not in log
    assert "out of system resource" not in log


async def _is_ready(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/readyz") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


@contextlib.asynccontextmanager
async def held(url: str, sent: list[bytes]) -> AsyncIterator[list[asyncio.StreamWriter]]:
    """Connections that have sent this and nothing else."""
    port = int(url.rpartition(":")[2])
    writers: list[asyncio.StreamWriter] = []

    async def one(data: bytes) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writers.append(writer)
        writer.write(data)
        await writer.drain()
        if data == KINDS["half closed"]:
            writer.write_eof()

    for start in range(0, len(sent), 100):
        await asyncio.gather(*(one(data) for data in sent[start : start + 100]))
    try:
        yield writers
    finally:
        for writer in writers:
            writer.transport.abort()


async def answers(url: str, *, anew: bool) -> list[float]:
    """How long each of many requests took, one after the other, in seconds."""
    took: list[float] = []
    connector = aiohttp.TCPConnector(force_close=anew)
    async with aiohttp.ClientSession(connector=connector) as session:
        for _ in range(ANSWERS):
            began = time.monotonic()
            async with session.get(f"{url}/v1/jobs") as answer:
                assert answer.status == 200
                await answer.read()
            took.append(time.monotonic() - began)
    return sorted(took)


def p99(took: list[float]) -> float:
    return took[len(took) * 99 // 100]


async def test_thousands_that_want_nothing_keep_nobody_waiting(tmp_path: Path) -> None:
    async with dispatcher(tmp_path) as house:
        assert house.dispatcher.process is not None
        process = psutil.Process(house.dispatcher.process.pid)
        await answers(house.url, anew=False)
        before_bytes = process.memory_info().rss
        sent = [data for data in KINDS.values() for _ in range(MANY // len(KINDS))]
        async with held(house.url, sent):
            kept, anew = await asyncio.gather(
                answers(house.url, anew=False), answers(house.url, anew=True)
            )
            held_bytes = process.memory_info().rss - before_bytes
            open_now = sum(
                connection.status == psutil.CONN_ESTABLISHED
                for connection in process.net_connections("tcp")
            )
        assert open_now > 2_000
        assert p99(kept) < WITHIN_S
        assert p99(anew) < WITHIN_S
        assert held_bytes < MEMORY_MAX_BYTES


async def test_with_few_files_the_idle_ones_make_room(tmp_path: Path) -> None:
    async with dispatcher(tmp_path, FILES) as house:
        most = FILES - limits.HTTP_FILES_RESERVED
        async with held(house.url, [KINDS["silent"]] * (2 * FILES)) as writers:
            # While none of them has waited for long enough to make room, a new one is refused; the
            # refusal is an answer, not a reset.
            async with asyncio.timeout(20), aiohttp.ClientSession() as session:
                while True:
                    async with session.get(f"{house.url}/livez") as answer:
                        if answer.status == 204:
                            break
                        assert answer.status == 503
                        assert (await answer.json())["limit"] == f"HTTP_CONNECTIONS_MAX={most}"
                    await asyncio.sleep(0.05)
            took = await answers(house.url, anew=True)
            assert p99(took) < WITHIN_S
            assert len(writers) == 2 * FILES
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{house.url}/v1/health") as answer,
        ):
            counters = (await answer.json())["counters"]
        let_go = counters["http_connections_let_go"]
        assert let_go >= 1
        assert let_go + counters.get("http_connections_refused", 0) >= 2 * FILES - most
