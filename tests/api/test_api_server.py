"""The listening side: loopback, ports, closing."""

import asyncio
import signal
import socket

import aiohttp
import pytest
from memory_front import MemoryFront
from serving import served, wait_until

from edge_runtime.contract.errors import ConfigError
from edge_runtime.dispatcher.api import build_app, serve


async def test_only_loopback_without_the_flag() -> None:
    for host in ("0.0.0.0", "192.0.2.1"):  # noqa: S104 - refused, which is the point
        with pytest.raises(ConfigError, match="loopback"):
            await serve(build_app(MemoryFront()), host, 0)


async def test_the_flag_lets_remote_callers_in_under_any_name() -> None:
    server = await serve(build_app(MemoryFront()), "0.0.0.0", 0, allow_remote=True)  # noqa: S104 - asked for
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.get(
                f"http://127.0.0.1:{server.port}/v1/health", headers={"Host": "dispatcher:1"}
            ) as response,
        ):
            assert response.status == 200
    finally:
        await server.close()


async def test_a_taken_port_and_an_unknown_host_are_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}"):
            await serve(build_app(MemoryFront()), port=port)
    with pytest.raises(ConfigError, match=r"no\.such\.host\.invalid"):
        await serve(build_app(MemoryFront()), "no.such.host.invalid", 0)


async def test_closing_leaves_no_task_and_frees_the_port() -> None:
    before = asyncio.all_tasks()
    async with served(MemoryFront()) as api:
        port = api.server.port
        await api.call("GET", "/v1/health")
        await api.server.close()
        await api.server.close()
    assert asyncio.all_tasks() == before
    async with served(MemoryFront(), port=port) as again:
        assert again.server.port == port
        await again.call("GET", "/v1/health")


async def test_an_answer_in_the_making_is_finished_before_closing() -> None:
    front = MemoryFront()
    front.submit_gate = asyncio.Event()
    async with served(front) as api:
        posting = asyncio.create_task(
            api.call("POST", "/v1/jobs", body={"model": "m", "items": [{"text": ""}]}, status=201)
        )
        await wait_until(lambda: front.submit_calls > 0)
        closing = asyncio.create_task(api.server.close())
        await asyncio.sleep(0)
        front.submit_gate.set()
        assert (await posting)["state"] == "accepted"
        await closing


async def test_no_signal_handler_is_touched() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with served(MemoryFront()):
        now = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert now == before
