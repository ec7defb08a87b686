"""The faults of the memory bus: each one fires, is counted and repeats with its seed."""

import asyncio
import random
from typing import Any

import pytest
from bus_rig import Reader, Rig, until

from edge_runtime.bus import (
    BusRefused,
    BusSettings,
    BusUnavailable,
    DropReason,
    Faults,
    MemoryBroker,
    MemoryBus,
    Message,
    Partition,
)
from edge_runtime.contract.errors import ConfigError

COUNT = 400


def faulty(seed: int = 7, **kinds: Any) -> Faults:
    return Faults(random.Random(seed), **kinds)


async def sent_and_received(faults: Faults, count: int = COUNT) -> list[int]:
    """What a faultless reader gets of `count` numbered messages sent through `faults`."""
    rig = Rig("memory", 5, "m", MemoryBroker())
    writer_bus = rig.with_bounds(rig.settings(), faults)
    async with Reader(rig.bus("a")) as reader, Reader(writer_bus) as writer:
        await reader.up()
        await writer.up()
        for number in range(count):
            writer.bus.publish_soon(Message("m/a", b"%d" % number))
        await until(lambda: writer.bus.counters.published == count)
        # A reordered message may be later than the acknowledgement of the last.
        await asyncio.sleep(0.12 if faults.reorder else 0)
    return [int(message.payload) for message in reader.received]


async def test_without_faults_everything_arrives_in_order() -> None:
    assert await sent_and_received(faulty()) == list(range(COUNT))


async def test_loss_is_acknowledged_and_counted() -> None:
    faults = faulty(loss=0.2)
    got = await sent_and_received(faults)
    assert got == sorted(set(got))
    assert len(got) == COUNT - faults.fired["loss"]
    assert 40 < faults.fired["loss"] < 130


async def test_duplicates_arrive_twice() -> None:
    faults = faulty(duplicate=0.2)
    got = await sent_and_received(faults)
    assert set(got) == set(range(COUNT))
    assert len(got) == COUNT + faults.fired["duplicate"]
    assert faults.fired["duplicate"] > 40


async def test_delays_keep_the_order() -> None:
    faults = faulty(delay_max_s=0.02)
    assert await sent_and_received(faults) == list(range(COUNT))
    assert faults.fired["delay"] >= COUNT


async def test_reordering_loses_nothing() -> None:
    faults = faulty(reorder=0.2)
    got = await sent_and_received(faults)
    assert got != sorted(got)
    assert sorted(got) == list(range(COUNT))
    assert faults.fired["reorder"] > 40


async def test_the_same_seed_strikes_the_same_messages() -> None:
    runs = [await sent_and_received(faulty(seed, loss=0.1, duplicate=0.1)) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


async def test_faults_strike_what_comes_in_too() -> None:
    rig = Rig("memory", 5, "m", MemoryBroker())
    faults = faulty(loss=1.0)
    deaf = rig.with_bounds(rig.settings("a"), faults)
    async with Reader(deaf) as reader, Reader(rig.bus()) as writer:
        await reader.up()
        await writer.up()
        await writer.bus.publish(Message("m/a", b"lost"))
        faults.loss = 0.0
        await writer.bus.publish(Message("m/a", b"heard"))
        assert (await reader.message()).payload == b"heard"


@pytest.mark.parametrize("protocol", [5, 4])
async def test_a_refused_publish_has_its_code_except_on_311(protocol: int) -> None:
    rig = Rig("memory", protocol, "m", MemoryBroker())
    faults = faulty(refused=("m/secret/#",))
    async with Reader(rig.with_bounds(rig.settings("#"), faults)) as reader:
        await reader.up()
        secret = Message("m/secret/x", b"secret")
        if protocol == 5:
            with pytest.raises(BusRefused) as refused:
                await reader.bus.publish(secret)
            assert refused.value.reason_code == 0x87
        else:
            await reader.bus.publish(secret)
        reader.bus.publish_soon(secret)
        await reader.bus.publish(Message("m/open", b"open"))
        assert (await reader.message()).payload == b"open"
        assert reader.bus.counters.dropped[DropReason.REFUSED] == int(protocol == 5)
        assert faults.fired["refused"] == 2


@pytest.mark.parametrize("hides_subscribe_refusals", [True, False])
async def test_the_canary_finds_a_refusal_that_311_hides(
    monkeypatch: pytest.MonkeyPatch, *, hides_subscribe_refusals: bool
) -> None:
    monkeypatch.setattr("edge_runtime.bus.reconnecting.BUS_CANARY_TIMEOUT_S", 0.05)
    broker = MemoryBroker(hides_subscribe_refusals=hides_subscribe_refusals)
    rig = Rig("memory", 4, "m", broker)
    faults = faulty(refused=("m/canary",))
    settings = rig.settings(canary_topic="m/canary")
    async with Reader(rig.with_bounds(settings, faults)) as reader:
        down = await reader.down()
        assert down.refused is not None
        assert down.refused.topic == "m/canary"
        assert down.refused.operation == "publish" if hides_subscribe_refusals else "subscribe"


async def test_a_wrong_password_is_a_refused_connect() -> None:
    broker = MemoryBroker(users={"me": "right"})
    rig = Rig("memory", 5, "m", broker)
    async with Reader(rig.bus(url="memory://me:wrong@broker")) as reader:
        down = await reader.down()
        assert down.refused is not None
        assert (down.refused.operation, down.refused.reason_code) == ("connect", 0x86)
    async with Reader(rig.bus(url="memory://me:right@broker")) as reader:
        await reader.up()


@pytest.mark.parametrize("direction", [Partition.TO_BROKER, Partition.FROM_BROKER, Partition.BOTH])
async def test_a_healed_partition_delivers_what_it_held(direction: Partition) -> None:
    rig = Rig("memory", 5, "m", MemoryBroker())
    faults = faulty()
    cut_off = rig.with_bounds(rig.settings("in"), faults)
    async with Reader(cut_off) as inside, Reader(rig.bus("out")) as outside:
        await inside.up()
        await outside.up()
        faults.set_partition(direction)
        publishing = asyncio.create_task(inside.bus.publish(Message("m/out", b"out")))
        await outside.bus.publish(Message("m/in", b"in"))
        if not direction.cuts_to_broker:
            assert (await outside.message()).payload == b"out"
        if not direction.cuts_from_broker:
            assert (await inside.message()).payload == b"in"
        # Without the way back there is no acknowledgement either.
        for _ in range(10):
            await asyncio.sleep(0)
        assert not publishing.done()
        faults.set_partition(Partition.NONE)
        await publishing
        if direction.cuts_to_broker:
            assert (await outside.message()).payload == b"out"
        if direction.cuts_from_broker:
            assert (await inside.message()).payload == b"in"
        assert faults.fired["partition"] == 1


async def test_a_long_partition_ends_the_connection_and_leaves_the_will() -> None:
    rig = Rig("memory", 5, "m", MemoryBroker())
    faults = faulty()
    settings = rig.settings("in", keepalive_s=0, will=Message("m/will", b"gone"))
    async with Reader(rig.with_bounds(settings, faults)) as inside, Reader(rig.bus("will")) as out:
        await inside.up()
        await out.up()
        faults.set_partition(Partition.BOTH)
        await out.bus.publish(Message("m/in", b"meanwhile"))
        with pytest.raises(BusUnavailable):
            await inside.bus.publish(Message("m/out", b""))
        await inside.down()
        assert (await out.message()).payload == b"gone"
        faults.set_partition(Partition.NONE)
        await inside.up()
        # It was under way and never acknowledged: the session still has it.
        assert (await inside.message()).payload == b"meanwhile"


async def test_a_session_ends_at_its_expiry() -> None:
    rig = Rig("memory", 5, "m", MemoryBroker())
    settings = rig.settings("a", session_expiry_s=1)
    async with Reader(rig.with_bounds(settings)) as first:
        await first.up()
    await asyncio.sleep(1.05)
    async with Reader(rig.with_bounds(settings)) as second:
        assert (await second.up()).session_present is False


async def test_a_queued_message_expires() -> None:
    rig = Rig("memory", 5, "m", MemoryBroker())
    settings = rig.settings("a")
    async with Reader(rig.with_bounds(settings)) as first:
        await first.up()
    async with Reader(rig.bus()) as writer:
        await writer.up()
        await writer.bus.publish(Message("m/a", b"stale", expiry_s=0))
        await writer.bus.publish(Message("m/a", b"fresh", expiry_s=60))
    async with Reader(rig.with_bounds(settings)) as second:
        assert (await second.message()).payload == b"fresh"


def test_a_memory_bus_wants_a_memory_url() -> None:
    with pytest.raises(ConfigError):
        MemoryBus(BusSettings("mqtt://a", "x"), MemoryBroker())
