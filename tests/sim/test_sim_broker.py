"""One script of sessions on the simulated broker and on Mosquitto: the same history on both.

Filters do not overlap: how often a message then comes is the broker's choice (MQTT 5, 3.3.4).
"""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import make_mosquitto

sys.path.append(str(Path(__file__).parent.parent / "bus"))

from bus_rig import Reader, Rig

from edge_runtime.bus import MemoryBroker, Message


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Rig]:
    broker = make_mosquitto(tmp_path, "max_queued_messages 5", "max_queued_bytes 0").start()
    yield Rig("aiomqtt", 5, "t", broker)
    broker.kill()


async def history(rig: Rig) -> list[str]:
    """What three clients hear, in lines that do not depend on time."""
    lines: list[str] = []

    async def hear(name: str, reader: Reader, count: int) -> None:
        messages = await reader.messages(count)
        lines.extend(
            f"{name} {m.topic} {m.payload.decode()} qos={m.qos} retain={m.retain}"
            for m in sorted(messages, key=lambda m: (m.topic, m.payload))
        )

    will = Message(rig.topic("will/c"), b"gone", retain=True)
    async with Reader(rig.bus("a/+", client_id="b")) as b:
        await b.up()
        async with Reader(rig.bus()) as sender:
            await sender.up()
            # Both qualities of service; retained set, replaced and cleared.
            await sender.bus.publish(Message(rig.topic("a/1"), b"once"))
            await sender.bus.publish(Message(rig.topic("a/2"), b"zero", qos=0))
            await sender.bus.publish(Message(rig.topic("kept/1"), b"old", retain=True))
            await sender.bus.publish(Message(rig.topic("kept/1"), b"new", retain=True))
            await sender.bus.publish(Message(rig.topic("kept/2"), b"x", retain=True))
            await sender.bus.publish(Message(rig.topic("kept/2"), b"", retain=True))
            await hear("b", b, 2)
            async with Reader(rig.bus("kept/+", client_id="d")) as d:
                await d.up()
                await hear("d", d, 1)
            # A session that is away: its queue keeps the first messages that fit, silently.
            away = {"client_id": "away", "session_expiry_s": 600}
            async with Reader(rig.bus("q", **away)) as first:
                lines.append(f"away present={(await first.up()).session_present}")
            for number in range(8):
                await sender.bus.publish(Message(rig.topic("q"), b"%d" % number))
            await sender.bus.publish(Message(rig.topic("q"), b"zero", qos=0))
            async with Reader(rig.bus("q", **away)) as again:
                lines.append(f"away present={(await again.up()).session_present}")
                await hear("away", again, 5)
                await sender.bus.publish(Message(rig.topic("q"), b"after"))
                await hear("away", again, 1)
            # A client id that is taken over leaves no Will.
            async with Reader(rig.bus("will/+")) as w:
                await w.up()
                async with Reader(rig.bus(client_id="c", will=will)) as c:
                    await c.up()
                    async with Reader(rig.bus(client_id="c")) as thief:
                        await thief.up()
                        await sender.bus.publish(Message(rig.topic("will/d"), b"not a will"))
                        await hear("w", w, 1)
    return lines


@pytest.mark.mosquitto
async def test_the_histories_agree(mosquitto: Rig) -> None:
    simulated = Rig("memory", 5, "t", MemoryBroker(session_queue_max_messages=5))
    async with asyncio.timeout(60):
        real = await history(mosquitto)
        assert await history(simulated) == real
    assert "away t/q 4 qos=1 retain=False" in real
    assert not any("t/q 5" in line for line in real)
