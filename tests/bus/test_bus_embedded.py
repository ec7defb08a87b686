"""The embedded broker as a process: starts, dies with its parent, returns on its ports."""

import asyncio
import contextlib
import socket
import struct
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from brokers import BrokerProcess, make_embedded
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


async def test_when_rumqttd_panics_over_a_lagging_client_that_leaves_it_starts_again(
    own_embedded: BrokerProcess,
) -> None:
    await _restarts_under(own_embedded, _leave_while_lagging)


async def test_when_rumqttd_panics_over_a_client_that_vanished_in_its_handshake_it_starts_again(
    own_embedded: BrokerProcess,
) -> None:
    await _restarts_under(own_embedded, _vanish_in_the_handshake)


@pytest.fixture
def own_embedded(tmp_path: Path) -> Iterator[BrokerProcess]:
    broker = make_embedded(tmp_path).start()
    yield broker
    broker.kill()


async def _restarts_under(broker: BrokerProcess, provocation: Callable[[int], None]) -> None:
    """Provoke until it happens: which ready event rumqttd takes first is its random choice."""
    assert broker.process is not None
    while b"embedded_broker_restarts" not in broker.log.read_bytes():
        with contextlib.suppress(OSError):
            await asyncio.to_thread(provocation, broker.ports[4])
    assert broker.process.poll() is None
    for protocol, port in broker.ports.items():
        settings = BusSettings(f"mqtt://127.0.0.1:{port}", "x", protocol=protocol)
        async with Reader(open_bus(settings)) as reader:
            await reader.up()


def _leave_while_lagging(port: int) -> None:
    """Subscribe, have more sent than rumqttd holds for one client, and say goodbye meanwhile."""
    subscribe = b"\x82\x08\x00\x01\x00\x03t/#\x00"
    publish = b"\x30\x41\x00\x03t/1" + bytes(60)
    with _raw_client(port, b"sub") as subscriber, _raw_client(port, b"pub") as publisher:
        subscriber.sendall(subscribe)
        subscriber.recv(5)
        publisher.sendall(publish * 1_500)
        subscriber.recv(1)
        subscriber.sendall(b"\xe0\x00")
        while subscriber.recv(65_536):
            pass


def _vanish_in_the_handshake(port: int) -> None:
    """Reset the connection right behind CONNECT, so that the CONNACK cannot be written; twice."""
    for _ in range(2):
        with socket.create_connection(("127.0.0.1", port), timeout=1) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(_connect(b"vanishing"))


@contextlib.contextmanager
def _raw_client(port: int, client_id: bytes) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=0.2) as client:
        client.sendall(_connect(client_id))
        client.recv(4)
        yield client


def _connect(client_id: bytes) -> bytes:
    """An MQTT 3.1.1 CONNECT with a clean session."""
    body = b"\x00\x04MQTT\x04\x02\x00\x1e" + struct.pack(">H", len(client_id)) + client_id
    return bytes([0x10, len(body)]) + body


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
