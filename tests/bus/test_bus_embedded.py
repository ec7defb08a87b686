"""The embedded broker as a process: starts, dies with its parent, returns on its ports."""

import asyncio
import socket
import sys
from asyncio.subprocess import PIPE

import psutil
import pytest
from bus_rig import Reader, until

from edge_runtime.bus import BusSettings, Message, open_bus
from edge_runtime.bus.embedded import EmbeddedBroker
from edge_runtime.contract.errors import LocalError
from edge_runtime.contract.limits import MESSAGE_MAX_BYTES

PARENT = """
import asyncio, sys
from edge_runtime.bus.embedded import EmbeddedBroker

async def main():
    async with EmbeddedBroker() as broker:
        print(broker.pid, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

asyncio.run(main())
"""


async def test_it_takes_connections_once_started_and_returns_on_its_ports() -> None:
    async with EmbeddedBroker() as broker:
        urls, pid = (broker.url, broker.url_311), broker.pid
        await broker.kill()
        with pytest.raises(LocalError):
            _ = broker.pid
        await broker.start()
        assert (broker.url, broker.url_311) == urls
        assert broker.pid != pid
        for url, protocol in zip(urls, (5, 4), strict=True):
            async with Reader(open_bus(BusSettings(url, "x", protocol=protocol))) as reader:
                await reader.up()
        with pytest.raises(LocalError):
            await broker.start()
        pid = broker.pid
    assert not psutil.pid_exists(pid)


async def test_it_dies_with_its_parent() -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, stdin=PIPE, stdout=PIPE
    )
    assert parent.stdout is not None
    pid = int(await asyncio.wait_for(parent.stdout.readline(), 20))
    broker = psutil.Process(pid)
    assert broker.is_running()
    parent.kill()
    await parent.wait()
    await until(lambda: not broker.is_running() or broker.status() == psutil.STATUS_ZOMBIE)


async def test_a_taken_port_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(LocalError):
            await EmbeddedBroker(port=taken.getsockname()[1]).start()


async def test_clients_of_both_protocols_hear_each_other_and_a_burst_of_large_messages() -> None:
    count = 64
    async with EmbeddedBroker() as broker:
        new = BusSettings(broker.url, "new", subscriptions=(("to/new", 1),))
        old = BusSettings(broker.url_311, "old", protocol=4, subscriptions=(("to/old", 1),))
        async with Reader(open_bus(new)) as five, Reader(open_bus(old, fast=True)) as four:
            await five.up()
            await four.up()
            largest = bytes(MESSAGE_MAX_BYTES)
            for _ in range(count):
                five.bus.publish_soon(Message("to/old", largest))
                four.bus.publish_soon(Message("to/new", largest))
            for reader in (five, four):
                got = await reader.messages(count)
                assert {len(message.payload) for message in got} == {MESSAGE_MAX_BYTES}
                assert len(reader.events) == count + 1
