"""What every adapter does on every broker and both protocol versions."""

import asyncio
import contextlib
import os
import random
import statistics
import sys
import threading
import time
from asyncio.subprocess import PIPE
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from bus_rig import CuttableWire, Reader, Rig, until

from edge_runtime.bus import (
    BusOverflow,
    BusUnavailable,
    Connected,
    Disconnected,
    DropReason,
    Faults,
    MemoryBroker,
    Message,
)
from edge_runtime.contract.errors import LocalError
from edge_runtime.contract.limits import MESSAGE_MAX_BYTES


async def test_a_message_arrives_with_what_the_protocol_can_carry(rig: Rig) -> None:
    sent = Message(
        rig.topic("a"),
        b"\x00payload\xff",
        qos=1,
        expiry_s=60,
        content_type="application/msgpack",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        response_topic=rig.topic("answers"),
        correlation=b"\x01\x02",
    )
    async with Reader(rig.bus("a")) as reader:
        await reader.up()
        await reader.bus.publish(sent)
        got = await reader.message()
    assert (got.topic, got.payload, got.qos, got.retain) == (sent.topic, sent.payload, 1, False)
    if rig.protocol == 5:
        assert got.content_type == sent.content_type
        assert got.traceparent == sent.traceparent
        assert got.response_topic == sent.response_topic
        assert got.correlation == sent.correlation
        # A broker takes off what a message has waited.
        assert got.expiry_s in (59, 60)


async def test_an_empty_payload_and_the_largest_arrive(rig: Rig) -> None:
    largest = random.Random(1).randbytes(MESSAGE_MAX_BYTES)
    async with Reader(rig.bus("a")) as reader:
        await reader.up()
        assert reader.bus.max_message_bytes == MESSAGE_MAX_BYTES
        await reader.bus.publish(Message(rig.topic("a"), b""))
        await reader.bus.publish(Message(rig.topic("a"), largest))
        assert (await reader.message()).payload == b""
        assert (await reader.message()).payload == largest
        assert not any(isinstance(event, Disconnected) for event in reader.events)


async def test_wildcards_take_what_they_match_and_nothing_else(rig: Rig) -> None:
    async with Reader(rig.bus("v/+/up/state", "host/#")) as reader:
        await reader.up()
        for rest in ("v/1/up/state", "v/1/2/up/state", "v/1/dn/work", "host", "host/a/b", "v/end"):
            await reader.bus.publish(Message(rig.topic(rest), rest.encode()))
        await reader.bus.publish(Message(rig.topic("host/last"), b"last"))
        got = []
        while not got or got[-1] != b"last":
            got.append((await reader.message()).payload)
    assert sorted(got) == [b"host", b"host/a/b", b"last", b"v/1/up/state"]


async def test_a_retained_message_waits_for_its_subscriber_and_can_be_cleared(rig: Rig) -> None:
    topic = rig.topic("kept")
    async with Reader(rig.bus()) as writer:
        await writer.up()
        await writer.bus.publish(Message(topic, b"old", retain=True))
        await writer.bus.publish(Message(topic, b"new", retain=True))
        async with Reader(rig.bus("kept")) as late:
            await late.up()
            got = await late.message()
            assert (got.payload, got.retain) == (b"new", True)
            await writer.bus.publish(Message(topic, b"", retain=True))
            assert (await late.message()).payload == b""
        async with Reader(rig.bus("kept")) as later:
            await later.up()
            await writer.bus.publish(Message(topic, b"live"))
            got = await later.message()
            assert (got.payload, got.retain) == (b"live", False)


async def test_a_killed_client_leaves_its_will(rig: Rig) -> None:
    async with Reader(rig.bus("will")) as reader:
        await reader.up()
        if isinstance(rig.broker, MemoryBroker):
            will = Message(rig.topic("will"), b"gone", retain=True)
            settings = rig.settings(will=will)
            async with Reader(rig.with_bounds(settings)) as victim:
                await victim.up()
                rig.broker.cut(settings.client_id)
                got = await reader.message()
        else:
            victim_process = await _client_process(rig)
            victim_process.kill()
            await victim_process.wait()
            got = await reader.message()
    assert (got.topic, got.payload) == (rig.topic("will"), b"gone")


async def test_a_clean_close_leaves_no_will(rig: Rig) -> None:
    will = Message(rig.topic("will"), b"gone")
    async with Reader(rig.bus("will", "end")) as reader:
        await reader.up()
        async with Reader(rig.bus(will=will)) as closing:
            await closing.up()
        await reader.bus.publish(Message(rig.topic("end"), b""))
        assert (await reader.message()).topic == rig.topic("end")


async def test_a_reconnect_that_was_asked_for_says_goodbye_and_subscribes_again(rig: Rig) -> None:
    will = Message(rig.topic("gone"), b"gone")
    bus = rig.bus("to", will=will, session_expiry_s=0)
    # Before it is up there is nothing to make anew.
    bus.reconnect("too early")
    async with Reader(rig.bus("#")) as watcher, Reader(bus) as reader:
        await watcher.up()
        await reader.up()
        for number in (1, 2):
            reader.bus.reconnect("a reason")
            reader.bus.reconnect("another, of no effect")
            assert (await reader.down()).reason == "a reason"
            await reader.up()
            assert reader.bus.counters.reconnects == number
            await watcher.bus.publish(Message(rig.topic("to"), b"still here"))
            assert (await reader.message()).payload == b"still here"
        assert {message.topic for message in watcher.received} == {rig.topic("to")}


async def test_closing_right_after_asking_for_a_reconnect_closes(rig: Rig) -> None:
    async with Reader(rig.bus()) as reader:
        await reader.up()
        reader.bus.reconnect("a reason")
    assert not reader.bus.is_connected


async def test_the_will_can_be_changed_for_the_next_connection(rig: Rig) -> None:
    old, new = (Message(rig.topic("will"), payload) for payload in (b"old", b"new"))
    settings = rig.settings(will=old)
    async with Reader(rig.bus("will")) as reader, contextlib.AsyncExitStack() as stack:
        await reader.up()
        if isinstance(rig.broker, MemoryBroker):
            cut = partial(rig.broker.cut, settings.client_id)
        else:
            wire = await stack.enter_async_context(CuttableWire(rig.broker.ports[rig.protocol]))
            settings = replace(settings, url=wire.url)
            cut = wire.cut
        victim = await stack.enter_async_context(Reader(rig.with_bounds(settings)))
        await victim.up()
        await victim.bus.set_will(new)
        cut()
        assert (await reader.message()).payload == b"old"
        await victim.down()
        await victim.up()
        cut()
        assert (await reader.message()).payload == b"new"


async def test_qos_0_arrives_over_a_living_connection(rig: Rig) -> None:
    async with Reader(rig.bus("a")) as reader:
        await reader.up()
        for number in range(50):
            await reader.bus.publish(Message(rig.topic("a"), b"%d" % number, qos=0))
        got = await reader.messages(50)
    assert [int(message.payload) for message in got] == list(range(50))
    # rumqttd gives every message the subscription's QoS.
    assert {message.qos for message in got} == {int(rig.is_embedded)}


async def test_messages_of_a_topic_keep_their_order(rig: Rig) -> None:
    count = 1_500
    async with Reader(rig.bus("a")) as reader:
        await reader.up()
        for number in range(count):
            # Both ways out share one order.
            if number % 50:
                reader.bus.publish_soon(Message(rig.topic("a"), b"%d" % number))
            else:
                await reader.bus.publish(Message(rig.topic("a"), b"%d" % number))
        got = await reader.messages(count)
    assert [int(message.payload) for message in got] == list(range(count))


async def test_a_message_over_the_limit_is_refused_before_it_is_sent(rig: Rig) -> None:
    too_large = Message(rig.topic("a"), bytes(MESSAGE_MAX_BYTES + 1))
    async with Reader(rig.bus("a")) as reader:
        await reader.up()
        with pytest.raises(BusOverflow) as refused:
            await reader.bus.publish(too_large)
        assert refused.value.reason is DropReason.TOO_LARGE
        with pytest.raises(BusOverflow):
            reader.bus.publish_soon(too_large)
        assert reader.bus.counters.dropped[DropReason.TOO_LARGE] == 2
        await reader.bus.publish(Message(rig.topic("a"), b"still connected"))
        assert (await reader.message()).payload == b"still connected"
        assert not any(isinstance(event, Disconnected) for event in reader.events)


@pytest.mark.parametrize("topic", ["", "a/+", "a/#", "a\0b"])
async def test_an_impossible_topic_is_the_callers_mistake(topic: str) -> None:
    rig = Rig("memory", 5, "t", MemoryBroker())
    async with Reader(rig.bus()) as reader:
        await reader.up()
        with pytest.raises(LocalError):
            await reader.bus.publish(Message(topic, b""))
        with pytest.raises(LocalError):
            reader.bus.publish_soon(Message(topic, b""))


async def test_a_broker_that_is_not_there_yet_is_waited_for(own_rig: Rig) -> None:
    async with Reader(own_rig.bus("a")) as reader:
        down = await reader.down()
        assert down.refused is None
        assert not reader.bus.is_connected
        with pytest.raises(BusUnavailable):
            await reader.bus.publish(Message(own_rig.topic("a"), b""))
        reader.bus.publish_soon(Message(own_rig.topic("a"), b""))
        assert reader.bus.counters.dropped[DropReason.NOT_CONNECTED] == 2
        own_rig.start_broker()
        assert await reader.up() == Connected(session_present=False)
        assert reader.bus.is_connected
        await reader.bus.publish(Message(own_rig.topic("a"), b"now"))
        assert (await reader.message()).payload == b"now"
        # One report per change of state, however many attempts it took.
        assert [type(event) for event in reader.events] == [Disconnected, Connected, Message]


async def test_a_broker_that_dies_and_returns_empty_is_found_and_subscribed_again(
    own_rig: Rig,
) -> None:
    own_rig.start_broker()
    async with Reader(own_rig.bus("a")) as reader, Reader(own_rig.bus()) as writer:
        await reader.up()
        await writer.up()
        own_rig.kill_broker()
        await reader.down()
        await writer.down()
        own_rig.start_broker()
        assert await reader.up() == Connected(session_present=False)
        await writer.up()
        assert reader.bus.counters.reconnects == 1
        await writer.bus.publish(Message(own_rig.topic("a"), b"again"))
        assert (await reader.message()).payload == b"again"


async def test_a_session_is_found_again(rig: Rig) -> None:
    settings = rig.settings("a")
    async with Reader(rig.with_bounds(settings)) as first:
        assert await first.up() == Connected(session_present=False)
    async with Reader(rig.with_bounds(settings)) as second:
        assert await second.up() == Connected(session_present=True)
    fresh = rig.settings("a", client_id=settings.client_id, session_expiry_s=0)
    async with Reader(rig.with_bounds(fresh)) as third:
        assert await third.up() == Connected(session_present=False)


async def test_what_was_sent_meanwhile_comes_after_the_connect(rig: Rig) -> None:
    if rig.is_embedded:
        pytest.skip("rumqttd keeps no queue for absent clients (design rule 2 needs none)")
    settings = rig.settings("a")
    async with Reader(rig.with_bounds(settings)) as first:
        await first.up()
    async with Reader(rig.bus()) as writer:
        await writer.up()
        for number in range(10):
            await writer.bus.publish(Message(rig.topic("a"), b"%d" % number))
    async with Reader(rig.with_bounds(settings)) as second:
        got = await second.messages(10)
        assert [int(message.payload) for message in got] == list(range(10))
        assert second.events[0] == Connected(session_present=True)


async def test_a_taken_over_connection_is_reported_and_won_back(rig: Rig) -> None:
    settings = rig.settings("a")
    async with Reader(rig.with_bounds(settings)) as first:
        await first.up()
        async with Reader(rig.with_bounds(settings)) as second:
            await second.up()
            down = await first.down()
            assert down.reason
        await first.up()
        await first.bus.publish(Message(rig.topic("a"), b"mine"))
        assert (await first.message()).payload == b"mine"


async def test_a_burst_of_2000_each_way_loses_nothing_and_keeps_the_connection(rig: Rig) -> None:
    count = 2_000
    async with Reader(rig.bus("to-a")) as a, Reader(rig.bus("to-b")) as b:
        await a.up()
        await b.up()
        for number in range(count):
            a.bus.publish_soon(Message(rig.topic("to-b"), b"%d" % number))
            b.bus.publish_soon(Message(rig.topic("to-a"), b"%d" % number))
        for reader in (a, b):
            got = await reader.messages(count)
            assert [int(message.payload) for message in got] == list(range(count))
            assert not any(isinstance(event, Disconnected) for event in reader.events)
            await until(lambda reader=reader: reader.bus.counters.published == count)
            assert sum(reader.bus.counters.dropped.values()) == 0


async def test_2000_awaited_publishes_at_once_are_all_acknowledged(rig: Rig) -> None:
    count = 2_000
    async with Reader(rig.bus("a")) as reader:
        await reader.up()
        await asyncio.gather(
            *(reader.bus.publish(Message(rig.topic("a"), bytes(100))) for _ in range(count))
        )
        await reader.messages(count)
        assert reader.bus.counters.published == count


async def test_what_the_reader_has_no_room_for_is_counted(rig: Rig) -> None:
    slow = rig.with_bounds(rig.settings("a"), inbound_max_messages=10)
    async with slow, Reader(rig.bus()) as writer:
        await writer.up()
        await until(lambda: slow.is_connected)
        for _ in range(50):
            await writer.bus.publish(Message(rig.topic("a"), b""))
        await until(lambda: slow.counters.dropped[DropReason.INBOUND_FULL] == 40)
        assert slow.counters.received == 10
        # The queue is usable again once it is read.
        events = aiter(slow.events())
        assert isinstance(await anext(events), Connected)
        for _ in range(10):
            assert isinstance(await anext(events), Message)
        await writer.bus.publish(Message(rig.topic("a"), b"room"))
        assert (await asyncio.wait_for(anext(events), 10)) == Message(rig.topic("a"), b"room")


async def test_a_full_outbound_queue_is_a_typed_refusal(rig: Rig) -> None:
    bus = rig.with_bounds(rig.settings("a"), outbound_max_messages=10)
    async with Reader(bus) as reader:
        await reader.up()
        for _ in range(10):
            bus.publish_soon(Message(rig.topic("a"), b""))
        with pytest.raises(BusOverflow) as full:
            bus.publish_soon(Message(rig.topic("a"), b""))
        assert full.value.reason is DropReason.OUTBOUND_FULL
        assert bus.counters.dropped[DropReason.OUTBOUND_FULL] == 1
        await reader.messages(10)
        await until(lambda: bus.counters.published == 10)
        await bus.publish(Message(rig.topic("a"), b"room"))
        assert (await reader.message()).payload == b"room"


async def test_nobody_listening_is_counted_where_the_broker_says_so(rig: Rig) -> None:
    async with Reader(rig.bus()) as reader:
        await reader.up()
        await reader.bus.publish(Message(rig.topic("nobody"), b""))
        says_so = rig.protocol == 5 and not rig.is_embedded
        assert reader.bus.counters.dropped[DropReason.NO_SUBSCRIBER] == int(says_so)
        assert reader.bus.counters.published == 1


async def test_a_round_trip_shows_no_nagle_delay(rig: Rig) -> None:
    async with Reader(rig.bus("question")) as server, Reader(rig.bus("answer")) as client:
        await server.up()
        await client.up()

        async def serve() -> None:
            while True:
                question = await server.message()
                server.bus.publish_soon(Message(rig.topic("answer"), question.payload))

        serving = asyncio.create_task(serve())
        round_trips_ms = []
        for _ in range(20):
            begun_s = time.perf_counter()
            client.bus.publish_soon(Message(rig.topic("question"), bytes(200)))
            await client.message()
            round_trips_ms.append((time.perf_counter() - begun_s) * 1_000)
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
    assert statistics.median(round_trips_ms) < 20


async def test_closing_leaves_no_task_thread_or_socket(own_rig: Rig) -> None:
    rig = own_rig  # a goodbye with work under way may end rumqttd (`bus/embedded.py`)
    rig.start_broker()
    before = _held_resources()
    bus = rig.bus("a", will=Message(rig.topic("will"), b""))
    async with bus:
        await until(lambda: bus.is_connected)
        # Closed with work under way in both directions.
        for _ in range(200):
            bus.publish_soon(Message(rig.topic("a"), bytes(1_000)))
    assert not bus.is_connected
    assert _held_resources() == before
    with pytest.raises(BusUnavailable):
        await bus.publish(Message(rig.topic("a"), b""))


async def test_closing_before_the_first_connect_leaves_nothing_either(own_rig: Rig) -> None:
    before = asyncio.all_tasks()
    async with own_rig.bus("a"):
        pass
    assert asyncio.all_tasks() == before


async def test_closing_at_any_moment_of_a_connect_leaves_nothing(rig: Rig) -> None:
    for turns in range(0, 60, 3):
        before = _held_resources()
        # Long enough for a busy machine, too short for a lost cancellation.
        async with asyncio.timeout(4), rig.bus("a", canary_topic=rig.topic("canary")):
            for _ in range(turns):
                await asyncio.sleep(0.0002)
        assert _held_resources() == before


async def test_events_have_one_consumer_and_end_with_the_bus(rig: Rig) -> None:
    async with Reader(rig.bus()) as reader:
        await reader.up()
        with pytest.raises(LocalError):
            await anext(aiter(reader.bus.events()))


async def test_the_state_for_people_names_no_password() -> None:
    broker = MemoryBroker(users={"me": "secret"})
    rig = Rig("memory", 5, "t", broker)
    async with Reader(rig.bus(url="memory://me:secret@here")) as reader:
        await reader.up()
        state = dict(reader.bus.state())
    assert state["connected"] is True
    assert state["url"] == "memory://here"
    assert "secret" not in repr(state)


async def test_the_canary_comes_back_and_stays_unseen(rig: Rig) -> None:
    async with Reader(rig.bus("#", canary_topic=rig.topic("canary"))) as reader:
        await reader.up()
        await reader.bus.publish(Message(rig.topic("a"), b"after"))
        assert (await reader.message()).payload == b"after"
        assert reader.bus.counters.received == 1


async def test_a_refusal_is_raised_with_its_code_and_mended_without_a_restart() -> None:
    rig = Rig("memory", 5, "t", MemoryBroker())
    faults = Faults(random.Random(1), refused=("t/secret",))
    async with Reader(rig.with_bounds(rig.settings("secret"), faults)) as reader:
        down = await reader.down()
        assert down.refused is not None
        assert (down.refused.operation, down.refused.topic) == ("subscribe", "t/secret")
        assert down.refused.reason_code == 0x87
        faults.refused = ()
        await reader.up()


def _held_resources() -> tuple[object, ...]:
    return (
        asyncio.all_tasks(),
        set(threading.enumerate()),
        len(list(Path("/proc/self/fd").iterdir())),
    )


async def _client_process(rig: Rig) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("bus_client.py")),
        rig.adapter,
        rig.url,
        f"{rig.prefix}-victim",
        str(rig.protocol),
        rig.topic("will"),
        stdin=PIPE,
        stdout=PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    while (line := await asyncio.wait_for(process.stdout.readline(), 20)) != b"up\n":
        assert line, "the client ended before it was connected"
    return process
