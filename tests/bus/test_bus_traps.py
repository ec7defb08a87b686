"""The traps that were reproduced in clients and brokers, each shown to be closed.

A scripted broker stands in where a real one cannot be made to misbehave on demand.
"""

import asyncio
import contextlib
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from brokers import make_mosquitto
from bus_rig import ADAPTERS, Reader, Rig, until

from edge_runtime.bus import (
    BusRefused,
    BusSettings,
    BusUnavailable,
    Disconnected,
    DropReason,
    MemoryBroker,
    Message,
)
from edge_runtime.bus.link import LinkHandlers
from edge_runtime.bus.mqtt import AiomqttBus, PahoLink
from edge_runtime.contract.errors import ConfigError

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, PINGREQ, PINGRESP, DISCONNECT = (
    0x10,
    0x20,
    0x30,
    0x40,
    0x80,
    0x90,
    0xC0,
    0xD0,
    0xE0,
)


class ScriptedBroker:
    """Speaks just enough MQTT 3.1.1 to misbehave: `answers` maps packet types to replies."""

    def __init__(self) -> None:
        self.answers: dict[int, Callable[[bytes], bytes]] = {
            CONNECT: lambda _: b"\x20\x02\x00\x00",
            SUBSCRIBE: lambda body: b"\x90\x03" + body[:2] + b"\x01",
            PUBLISH: lambda body: b"\x40\x02" + _publish_id(body),
            PINGREQ: lambda _: b"\xd0\x00",
        }
        self.hangs_up_on: set[int] = set()
        self.resets_on: set[int] = set()
        """With RST, as a network does; 0 is the moment of accepting."""
        self.got: list[tuple[int, int, bytes]] = []
        """(connection number, packet type, body)."""
        self.connections = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"mqtt://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def count(self, packet: int, connection: int | None = None) -> int:
        return sum(
            1 for number, kind, _ in self.got if kind == packet and connection in (None, number)
        )

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def send(self, packet: bytes) -> None:
        for writer in self._writers:
            writer.write(packet)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["ScriptedBroker"]:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield self
        finally:
            self._server.close()
            self.cut()
            await asyncio.gather(*self._tasks)
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        number = self.connections
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            packet = 0
            while packet not in self.resets_on:
                packet, body = await _read_packet(reader)
                self.got.append((number, packet, body))
                if packet in self.hangs_up_on:
                    break
                answer = self.answers.get(packet)
                if answer is not None:
                    writer.write(answer(body))
            else:
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, linger
                )
                writer.transport.abort()
        self._writers.discard(writer)
        writer.close()


async def _read_packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    packet = (await reader.readexactly(1))[0] & 0xF0
    length = shift = 0
    while True:
        byte = (await reader.readexactly(1))[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return packet, await reader.readexactly(length)


def _echo(body: bytes) -> bytes:
    """The same publish at QoS 0."""
    topic_length = int.from_bytes(body[:2], "big")
    rest = body[: 2 + topic_length] + body[4 + topic_length :]
    return bytes([PUBLISH, len(rest)]) + rest


def _publish_id(body: bytes) -> bytes:
    topic_length = int.from_bytes(body[:2], "big")
    return body[2 + topic_length : 4 + topic_length]


@pytest.fixture(params=["aiomqtt", "mqttium"])
def adapter(request: pytest.FixtureRequest) -> Any:
    return ADAPTERS[request.param]


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def settings_311(url: str, **changes: Any) -> BusSettings:
    return BusSettings(url, "trap", protocol=4, **changes)


async def test_a_publish_cut_off_is_unknown_and_never_sent_again_by_the_client(
    adapter: Any,
) -> None:
    """Paho re-sends by itself what a connection left unacknowledged, and tells success later."""
    async with ScriptedBroker().running() as broker:
        del broker.answers[PUBLISH]
        async with Reader(adapter(settings_311(broker.url))) as reader:
            await reader.up()
            reader.bus.publish_soon(Message("soon", b"1"))
            publishing = asyncio.create_task(reader.bus.publish(Message("waited", b"2")))
            await until(lambda: broker.count(PUBLISH) == 2)
            broker.cut()
            with pytest.raises(BusUnavailable, match="outcome unknown"):
                await publishing
            assert reader.bus.counters.dropped[DropReason.UNACKNOWLEDGED] == 1
            assert reader.bus.counters.published == 0
            await reader.up()
            # Everything the second connection sends comes after what it might re-send.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await reader.bus.publish(Message("new", b"3"))
            await until(lambda: broker.count(PUBLISH, connection=2) == 1)


async def test_a_broker_that_stops_acknowledging_is_left(
    adapter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """paho #613: waiting for a publish may hang for ever."""
    monkeypatch.setattr("edge_runtime.bus.outbox.BUS_ACK_TIMEOUT_S", 0.2)
    async with ScriptedBroker().running() as broker:
        del broker.answers[PUBLISH]
        async with Reader(adapter(settings_311(broker.url))) as reader:
            await reader.up()
            with pytest.raises(BusUnavailable, match="unacknowledged"):
                await reader.bus.publish(Message("a", b""))
            assert "unacknowledged" in (await reader.down()).reason
            await reader.up()


async def test_a_broker_that_hangs_up_on_connect_is_not_waited_for(adapter: Any) -> None:
    """aiomqtt notices a break before the CONNACK only by its timeout of 10 s."""
    async with ScriptedBroker().running() as broker:
        broker.hangs_up_on.add(CONNECT)
        async with Reader(adapter(settings_311(broker.url))) as reader:
            down = await reader.next(Disconnected, timeout_s=2)
            assert down.refused is None
            broker.hangs_up_on.clear()
            await reader.up()


@pytest.mark.parametrize("moment", [0, CONNECT, SUBSCRIBE, PUBLISH])
async def test_a_connection_reset_at_any_moment_is_made_again(
    adapter: Any, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mqttium lets plain OSErrors out of connect and subscribe, by chance of timing."""
    monkeypatch.setattr("edge_runtime.bus.reconnecting.BUS_RECONNECT_MAX_S", 0.001)
    async with ScriptedBroker().running() as broker:
        broker.resets_on.add(moment)
        settings = settings_311(broker.url, subscriptions=(("a", 1),), canary_topic="c")
        broker.answers[SUBSCRIBE] = lambda body: b"\x90\x04" + body[:2] + b"\x01\x01"
        bus = adapter(settings)
        async with Reader(bus) as reader:
            await until(lambda: broker.connections >= 40)
            broker.resets_on.clear()
            broker.answers[PUBLISH] = lambda body: b"\x40\x02" + _publish_id(body) + _echo(body)
            await reader.up()


async def test_a_broker_that_never_answers_is_given_up(
    adapter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_runtime.bus.reconnecting.BUS_CONNECT_TIMEOUT_S", 0.2)
    async with ScriptedBroker().running() as broker:
        answer = broker.answers.pop(CONNECT)
        before = open_descriptors()
        async with Reader(adapter(settings_311(broker.url))) as reader:
            assert "no answer" in (await reader.down()).reason
            broker.answers[CONNECT] = answer
            await reader.up()
        await until(lambda: open_descriptors() == before)


@pytest.mark.parametrize(
    ("return_code", "reason_code"), [(1, 0x84), (2, 0x85), (3, 0x88), (4, 0x86), (5, 0x87)]
)
async def test_311_return_codes_are_mapped_to_mqtt_5_reason_codes(
    adapter: Any, return_code: int, reason_code: int
) -> None:
    async with ScriptedBroker().running() as broker:
        broker.answers[CONNECT] = lambda _: bytes([0x20, 0x02, 0x00, return_code])
        async with Reader(adapter(settings_311(broker.url))) as reader:
            down = await reader.down()
            if adapter is AiomqttBus and return_code == 1:
                # paho keeps this one to itself.
                assert "Protocol error" in down.reason
            else:
                assert down.refused is not None
                assert down.refused.operation == "connect"
                assert down.refused.reason_code == reason_code


async def test_a_refused_subscription_is_an_error_with_the_filter(adapter: Any) -> None:
    async with ScriptedBroker().running() as broker:
        broker.answers[SUBSCRIBE] = lambda body: b"\x90\x04" + body[:2] + b"\x01\x80"
        settings = settings_311(broker.url, subscriptions=(("ok", 1), ("secret/#", 1)))
        async with Reader(adapter(settings)) as reader:
            down = await reader.down()
            assert down.refused is not None
            assert (down.refused.operation, down.refused.topic) == ("subscribe", "secret/#")
            assert down.refused.reason_code == 0x80
            with pytest.raises(BusRefused):
                await reader.bus.publish(Message("a", b""))
            # The refusal goes on and is reported once.
            await until(lambda: broker.count(SUBSCRIBE) >= 2)
            assert len(reader.events) == 1


@pytest.mark.parametrize(
    "garbage", [b"\x00\x00", b"\xf7\x00", b"\x30\x02\xff\xff", b"\x20\xff\xff\xff\xff\x7f"]
)
async def test_garbage_ends_the_connection_not_the_bus(adapter: Any, garbage: bytes) -> None:
    async with (
        ScriptedBroker().running() as broker,
        Reader(adapter(settings_311(broker.url))) as reader,
    ):
        await reader.up()
        broker.send(garbage)
        await reader.down()
        await reader.up()
        await reader.bus.publish(Message("a", b""))


async def test_a_dead_peer_is_noticed_by_its_missing_ping_response(adapter: Any) -> None:
    async with ScriptedBroker().running() as broker:
        answer = broker.answers.pop(PINGREQ)
        async with Reader(adapter(settings_311(broker.url, keepalive_s=1))) as reader:
            await reader.up()
            await reader.down()
            assert broker.count(PINGREQ) >= 1
            broker.answers[PINGREQ] = answer
            await reader.up()


async def test_nagles_algorithm_is_off_before_the_first_byte() -> None:
    """aiomqtt and paho leave it on: 88 ms a round trip."""
    async with ScriptedBroker().running() as broker:
        handlers = LinkHandlers(lambda _: None, lambda *_: None)
        link = PahoLink(settings_311(broker.url), None, handlers)
        await link.connect()
        block = link._client._socket
        assert block is not None
        assert block._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        await link.close()


@pytest.mark.mosquitto
@pytest.mark.parametrize("protocol", [5, 4])
async def test_a_small_receive_maximum_slows_a_burst_and_does_not_end_it(
    adapter: Any, protocol: int, tmp_path: Path
) -> None:
    """mqttium's and Mosquitto's defaults end the connection: "Receive Maximum exceeded"."""
    broker = make_mosquitto(tmp_path, "max_inflight_messages 3").start()
    try:
        rig = Rig(adapter.__name__, protocol, "burst", broker)
        settings = rig.settings("a")
        async with Reader(adapter(settings)) as reader:
            await reader.up()
            for number in range(2_000):
                reader.bus.publish_soon(Message("burst/a", b"%d" % number))
            got = await reader.messages(2_000)
            assert [int(message.payload) for message in got] == list(range(2_000))
            assert not any(isinstance(event, Disconnected) for event in reader.events)
    finally:
        broker.kill()


@pytest.mark.mosquitto
async def test_the_brokers_maximum_packet_size_is_kept_without_a_disconnect(
    adapter: Any, tmp_path: Path
) -> None:
    """Paho sends whatever it is given; the broker then ends the connection."""
    broker = make_mosquitto(tmp_path, "max_packet_size 20000").start()
    try:
        async with Reader(adapter(BusSettings(broker.url(5), "x"))) as reader:
            await reader.up()
            assert reader.bus.max_message_bytes == 20_000 - 8 * 1024
            await reader.bus.publish(Message("a", bytes(reader.bus.max_message_bytes)))
            await reader.bus.publish(Message("a", bytes(19_900)))
            with pytest.raises(Exception, match="too_large"):
                await reader.bus.publish(Message("a", bytes(19_990)))
            with pytest.raises(Exception, match="too_large"):
                reader.bus.publish_soon(Message("a", bytes(10_000), content_type="é" * 6_000))
            assert reader.bus.counters.dropped[DropReason.TOO_LARGE] == 2
            await reader.bus.publish(Message("a", b""))
            assert not any(isinstance(event, Disconnected) for event in reader.events)
    finally:
        broker.kill()


@pytest.mark.mosquitto
@pytest.mark.parametrize("kind", ["memory", "mosquitto"])
async def test_an_acknowledged_publish_is_no_promise_of_delivery(kind: str, tmp_path: Path) -> None:
    """A full session queue drops and tells the publisher nothing; the memory broker does too."""
    bound = 100
    if kind == "memory":
        memory = MemoryBroker(session_queue_max_messages=bound)
        rig = Rig("memory", 5, "full", memory)
    else:
        process = make_mosquitto(
            tmp_path, f"max_queued_messages {bound}", "max_inflight_messages 1"
        ).start()
        rig = Rig("aiomqtt", 5, "full", process)
    settings = rig.settings("a")
    async with Reader(rig.with_bounds(settings)) as absent:
        await absent.up()
    async with Reader(rig.bus()) as writer:
        await writer.up()
        for number in range(3 * bound):
            await writer.bus.publish(Message(rig.topic("a"), b"%d" % number))
        assert writer.bus.counters.published == 3 * bound
        async with Reader(rig.with_bounds(settings)) as back:
            await back.up()
            # What the application sends again arrives, behind what was kept.
            await until(lambda: len(back.received) >= bound)
            await writer.bus.publish(Message(rig.topic("a"), b"again"))
            while (await back.message()).payload != b"again":
                pass
        assert bound <= len(back.received) <= bound + 3
    rig.kill_broker()


async def test_importing_the_bus_loads_no_client_library() -> None:
    code = (
        "import sys, edge_runtime.bus as b; b.open_bus; "
        "sys.exit(any(m.split('.')[0] in ('paho', 'aiomqtt', 'mqttium') for m in sys.modules))"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await process.wait() == 0


async def test_a_cars_bus_never_loads_mqttium() -> None:
    code = "import sys, edge_runtime.bus.mqtt; sys.exit('mqttium' in sys.modules)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await process.wait() == 0


@pytest.mark.parametrize("url", ["", "127.0.0.1:1883", "http://a", "mqtt://", "mqtt://a:b"])
def test_a_wrong_url_says_what_to_change(adapter: Any, url: str) -> None:
    with pytest.raises(ConfigError, match="URL"):
        adapter(BusSettings(url, "x"))
