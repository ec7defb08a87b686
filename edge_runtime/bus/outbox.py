"""The way out: one bounded FIFO of publishes and the window of those not yet acknowledged.

Invariants
- One order for everything: `publish` and `publish_soon` go through the same queue.
- What is queued and what is in flight count against the same bounds (messages and bytes).
- At most `window` QoS 1 messages are in flight; brokers end the connection of a client that
  sends more than their Receive Maximum.
- Every ticket ends exactly once: settled by the broker's answer, or failed by `shut`.

Deliberately absent: re-sending. When a connection ends, the outcome of what was in flight is
unknown, and only the application can say whether it is worth sending again.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from edge_runtime.bus.port import (
    BusCounters,
    BusError,
    BusOverflow,
    BusRefused,
    BusUnavailable,
    DropReason,
    Message,
)
from edge_runtime.contract.limits import (
    BUS_ACK_TIMEOUT_S,
    BUS_OUTBOUND_MAX_BYTES,
    BUS_OUTBOUND_MAX_MESSAGES,
)

REFUSED_FROM: Final = 0x80
"""MQTT 5 reason codes from here on are refusals."""
NO_MATCHING_SUBSCRIBERS: Final = 0x10


class Waiter(Protocol):
    """Who waits for the outcome of a publish: a future, or something like one."""

    def done(self) -> bool:
        """Whether nobody wants to know any more."""
        ...

    def set_result(self, result: None, /) -> None:
        """It was acknowledged, or handed over."""
        ...

    def set_exception(self, error: BusError, /) -> None:
        """It failed, or its outcome is unknown."""
        ...


class Ticket:
    """One publish on its way; `waiter` is None for `publish_soon`."""

    __slots__ = ("message", "sent_at_s", "size_bytes", "waiter")

    def __init__(self, message: Message, waiter: Waiter | None) -> None:
        self.message = message
        self.waiter = waiter
        self.size_bytes = len(message.payload) + len(message.topic)
        self.sent_at_s = 0.0


class Outbox:
    """Publishes from the application to the current connection's `send`.

    `drop` is told of every publish that failed without anybody waiting for it; `overdue` is
    called when the broker has left a message unacknowledged for `BUS_ACK_TIMEOUT_S`.
    """

    def __init__(
        self,
        counters: BusCounters,
        drop: Callable[[DropReason], None],
        overdue: Callable[[], None],
        max_messages: int = BUS_OUTBOUND_MAX_MESSAGES,
        max_bytes: int = BUS_OUTBOUND_MAX_BYTES,
    ) -> None:
        self._counters = counters
        self._drop = drop
        self._overdue = overdue
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._queue: deque[Ticket] = deque()
        self._sent: dict[Ticket, None] = {}
        self._in_flight = 0
        self._bytes = 0
        self._window = 0
        self._send: Callable[[Ticket], None] | None = None
        self._pumping = False
        self._deadline: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._queue) + len(self._sent)

    @property
    def in_flight(self) -> int:
        """QoS 1 messages sent and not yet acknowledged."""
        return self._in_flight

    def open(self, send: Callable[[Ticket], None], window: int) -> None:
        """Send through `send` from now on, at most `window` unacknowledged at a time."""
        self._send = send
        self._window = window
        self._pump()

    def submit(self, message: Message, waiter: Waiter | None) -> None:
        """Queue one publish. Raises BusOverflow when the bounds are reached."""
        ticket = Ticket(message, waiter)
        if len(self) >= self._max_messages or self._bytes + ticket.size_bytes > self._max_bytes:
            self._drop(DropReason.OUTBOUND_FULL)
            raise BusOverflow(
                DropReason.OUTBOUND_FULL, f"{len(self)} messages, {self._bytes} bytes are waiting"
            )
        self._bytes += ticket.size_bytes
        self._queue.append(ticket)
        self._pump()

    def settle(self, ticket: Ticket, reason_code: int = 0, reason: str = "") -> None:
        """The broker answered `ticket` (QoS 0: it was handed over) with an MQTT 5 reason code."""
        if ticket not in self._sent:
            return
        self._forget(ticket)
        if reason_code >= REFUSED_FROM:
            topic = ticket.message.topic
            self._fail(
                ticket, BusRefused("publish", topic, reason_code, reason), DropReason.REFUSED
            )
        else:
            if reason_code == NO_MATCHING_SUBSCRIBERS:
                self._drop(DropReason.NO_SUBSCRIBER)
            self._counters.published += 1
            if ticket.waiter is not None and not ticket.waiter.done():
                ticket.waiter.set_result(None)
        self._pump()

    def fail(self, ticket: Ticket, error: BusError) -> None:
        """The client library gave `ticket` up; its outcome is unknown."""
        if ticket in self._sent:
            self._forget(ticket)
            self._fail(ticket, error, DropReason.UNACKNOWLEDGED)
            self._pump()

    def shut(self, reason: str) -> None:
        """The connection is gone: fail everything, sent or not."""
        self._send = None
        self._window = 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        sent, queued = list(self._sent), list(self._queue)
        self._sent.clear()
        self._queue.clear()
        self._in_flight = self._bytes = 0
        for ticket in sent:
            self._fail(
                ticket, BusUnavailable(f"outcome unknown: {reason}"), DropReason.UNACKNOWLEDGED
            )
        for ticket in queued:
            self._fail(ticket, BusUnavailable(f"not sent: {reason}"), DropReason.NOT_CONNECTED)

    def _pump(self) -> None:
        # A send that fails settles at once and would pump again from inside.
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._queue and self._send is not None:
                ticket = self._queue[0]
                if ticket.message.qos and self._in_flight >= self._window:
                    break
                self._queue.popleft()
                self._send_one(ticket, self._send)
        finally:
            self._pumping = False

    def _send_one(self, ticket: Ticket, send: Callable[[Ticket], None]) -> None:
        self._sent[ticket] = None
        if ticket.message.qos:
            self._in_flight += 1
            loop = asyncio.get_running_loop()
            ticket.sent_at_s = loop.time()
            if self._deadline is None:
                self._deadline = loop.call_later(BUS_ACK_TIMEOUT_S, self._check_deadline)
        try:
            send(ticket)
        except BusError as error:
            self.fail(ticket, error)

    def _check_deadline(self) -> None:
        self._deadline = None
        oldest = next((ticket for ticket in self._sent if ticket.message.qos), None)
        if oldest is None:
            return
        loop = asyncio.get_running_loop()
        remaining_s = oldest.sent_at_s + BUS_ACK_TIMEOUT_S - loop.time()
        if remaining_s <= 0:
            self._overdue()
        else:
            self._deadline = loop.call_later(remaining_s, self._check_deadline)

    def _forget(self, ticket: Ticket) -> None:
        del self._sent[ticket]
        self._bytes -= ticket.size_bytes
        if ticket.message.qos:
            self._in_flight -= 1

    def _fail(self, ticket: Ticket, error: BusError, reason: DropReason) -> None:
        if ticket.waiter is None:
            self._drop(reason)
        elif not ticket.waiter.done():
            ticket.waiter.set_exception(error)
