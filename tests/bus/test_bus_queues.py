"""The bounds of both queues, without a broker."""

import asyncio
import random
from collections import Counter

import pytest
from bus_rig import Reader, Rig

from edge_runtime.bus import (
    BusCounters,
    BusOverflow,
    BusUnavailable,
    Connected,
    Disconnected,
    DropReason,
    MemoryBroker,
    Message,
)
from edge_runtime.bus.inbox import Inbox
from edge_runtime.bus.outbox import Outbox, Ticket
from edge_runtime.bus.reconnecting import ReconnectingBus


async def drained(inbox: Inbox) -> list[object]:
    inbox.close()
    return [event async for event in inbox.events()]


async def test_the_inbox_is_bounded_by_bytes_too() -> None:
    drops: Counter[DropReason] = Counter()
    inbox = Inbox(lambda reason: drops.update([reason]), max_messages=10, max_bytes=100)
    assert inbox.put(Message("a", bytes(60)))
    assert not inbox.put(Message("a", bytes(41)))
    assert inbox.put(Message("a", bytes(40)))
    assert drops == {DropReason.INBOUND_FULL: 1}
    assert len(await drained(inbox)) == 2


async def test_held_messages_come_behind_their_connect_and_count_as_queued() -> None:
    drops: Counter[DropReason] = Counter()
    inbox = Inbox(lambda reason: drops.update([reason]), max_messages=2)
    early = Message("a", b"early")
    inbox.hold()
    assert inbox.put(early)
    assert inbox.put(early)
    assert not inbox.put(early)
    inbox.release(Connected(session_present=True))
    assert await drained(inbox) == [Connected(session_present=True), early, early]


async def test_held_messages_of_a_failed_connect_are_not_lost() -> None:
    inbox = Inbox(lambda _: None)
    inbox.hold()
    inbox.put(Message("a", b"acknowledged already"))
    inbox.release(None)
    assert await drained(inbox) == [Message("a", b"acknowledged already")]


async def test_changes_of_state_are_bounded_and_never_hide_a_lost_session() -> None:
    inbox = Inbox(lambda _: None)
    message = Message("a", b"")
    inbox.put(message)
    inbox.release(Connected(session_present=False))
    for number in range(1_000):
        inbox.put_disconnected(Disconnected(f"{number}"))
        inbox.release(Connected(session_present=True))
    events = await drained(inbox)
    assert len(events) < 100
    assert message in events
    connects = [event for event in events if isinstance(event, Connected)]
    assert connects[0].session_present is False
    assert all(event.session_present for event in connects[1:])


async def test_a_full_inbox_lets_the_loop_breathe() -> None:
    inbox = Inbox(lambda _: None)
    for _ in range(1_000):
        inbox.put(Message("a", b""))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    await drained(inbox)
    task.cancel()
    assert turns >= 5


class Wire:
    """Records what an outbox sends and answers when told."""

    def __init__(self, **bounds: int) -> None:
        self.counters = BusCounters()
        self.drops: Counter[DropReason] = Counter()
        self.sent: list[Ticket] = []
        self.outbox = Outbox(self.counters, self._drop, lambda: None, **bounds)

    def _drop(self, reason: DropReason) -> None:
        self.drops[reason] += 1

    def submit(self, payload: bytes = b"", qos: int = 1) -> "asyncio.Future[None]":
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.outbox.submit(Message("t", payload, qos=qos), waiter)
        return waiter


async def test_the_window_holds_qos_1_back_and_keeps_the_order() -> None:
    wire = Wire()
    wire.outbox.open(wire.sent.append, window=2)
    for number in range(5):
        wire.submit(b"%d" % number)
    assert [ticket.message.payload for ticket in wire.sent] == [b"0", b"1"]
    wire.outbox.settle(wire.sent[1])
    wire.outbox.settle(wire.sent[0])
    assert [ticket.message.payload for ticket in wire.sent] == [b"0", b"1", b"2", b"3"]
    assert wire.outbox.in_flight == 2
    wire.outbox.shut("test")


async def test_the_outbox_is_bounded_by_bytes_too() -> None:
    wire = Wire(max_bytes=100)
    wire.submit(bytes(50))
    with pytest.raises(BusOverflow) as full:
        wire.submit(bytes(60))
    assert full.value.reason is DropReason.OUTBOUND_FULL
    wire.outbox.open(wire.sent.append, window=1)
    wire.outbox.settle(wire.sent[0])
    wire.submit(bytes(60))
    wire.outbox.shut("test")


async def test_every_ticket_ends_once_whatever_comes_late() -> None:
    wire = Wire()
    wire.outbox.open(wire.sent.append, window=1)
    waiters = [wire.submit(), wire.submit()]
    wire.outbox.submit(Message("t", b""), None)
    wire.outbox.shut("the wire broke")
    for waiter, words in zip(waiters, ("outcome unknown", "not sent"), strict=True):
        with pytest.raises(BusUnavailable, match=words):
            waiter.result()
    assert wire.drops == {DropReason.NOT_CONNECTED: 1}
    wire.outbox.settle(wire.sent[0])
    wire.outbox.fail(wire.sent[0], BusUnavailable("late"))
    assert wire.counters.published == 0
    assert len(wire.outbox) == 0


async def test_a_cancelled_publish_frees_its_place_when_it_is_answered() -> None:
    wire = Wire(max_messages=1)
    wire.outbox.open(wire.sent.append, window=1)
    wire.submit().cancel()
    with pytest.raises(BusOverflow):
        wire.submit()
    wire.outbox.settle(wire.sent[0])
    second = wire.submit()
    wire.outbox.settle(wire.sent[1])
    await second


async def test_a_defect_in_an_adapter_reaches_the_reader_of_events() -> None:
    rig = Rig("memory", 5, "m", MemoryBroker())

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    bus = ReconnectingBus(rig.settings(), broken, rng=random.Random(1))
    async with bus:
        with pytest.raises(ZeroDivisionError):
            await anext(aiter(bus.events()))


async def test_a_bus_is_used_once() -> None:
    rig = Rig("memory", 5, "m", MemoryBroker())
    bus = rig.bus()
    async with Reader(bus) as reader:
        await reader.up()
        with pytest.raises(Exception, match="once"):
            await bus.__aenter__()
