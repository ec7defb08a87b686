"""Many publishes at once: in order, each with its own outcome."""

import asyncio
import random

import pytest
from bus_rig import Reader, Rig, until

from edge_runtime.bus import (
    BusOverflow,
    BusRefused,
    BusUnavailable,
    DropReason,
    Faults,
    MemoryBroker,
    Message,
)
from edge_runtime.contract.limits import MESSAGE_MAX_BYTES

COUNT = 3_000


async def test_many_arrive_in_order_and_each_is_acknowledged(rig: Rig) -> None:
    topic = rig.topic("many")
    async with Reader(rig.bus("many")) as reader:
        await reader.up()
        outcomes = await reader.bus.publish_all([Message(topic, b"%d" % n) for n in range(COUNT)])
        assert outcomes == [None] * COUNT
        assert reader.bus.counters.published == COUNT
        assert [int(m.payload) for m in await reader.messages(COUNT)] == list(range(COUNT))


async def test_each_message_has_its_own_outcome() -> None:
    rig = Rig("memory", 5, "m", MemoryBroker())
    faults = Faults(random.Random(7), refused=("m/secret",))
    async with Reader(rig.with_bounds(rig.settings(), faults)) as writer:
        await writer.up()
        fine, secret, large, last = await writer.bus.publish_all(
            [
                Message("m/a", b"fine"),
                Message("m/secret", b""),
                Message("m/a", bytes(MESSAGE_MAX_BYTES + 1)),
                Message("m/a", b"last"),
            ]
        )
    assert (fine, last) == (None, None)
    assert isinstance(secret, BusRefused)
    assert isinstance(large, BusOverflow)
    assert large.reason is DropReason.TOO_LARGE


async def test_without_a_connection_every_one_says_so(own_rig: Rig) -> None:
    async with Reader(own_rig.bus("a")) as reader:
        await reader.down()
        outcomes = await reader.bus.publish_all([Message(own_rig.topic("a"), b"")] * 3)
        assert [type(outcome) for outcome in outcomes] == [BusUnavailable] * 3


async def test_nothing_to_publish_is_nothing() -> None:
    rig = Rig("memory", 5, "m", MemoryBroker())
    async with Reader(rig.bus()) as reader:
        await reader.up()
        assert await reader.bus.publish_all([]) == []


async def test_a_caller_that_is_cancelled_leaves_the_bus_working() -> None:
    rig = Rig("memory", 5, "m", MemoryBroker())
    async with Reader(rig.bus("a")) as reader:
        await reader.up()
        publishing = asyncio.create_task(reader.bus.publish_all([Message("m/a", b"1")] * 50))
        await asyncio.sleep(0)
        publishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publishing
        await until(lambda: reader.bus.counters.published == 50)
        await reader.bus.publish(Message("m/a", b"after"))
