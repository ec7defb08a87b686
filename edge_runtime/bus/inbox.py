"""The way in: a bounded queue of bus events with one consumer.

Invariants
- Messages are bounded by count and bytes; one that does not fit is dropped and reported by its
  reason. Changes of state are never dropped; when nobody reads, old pairs of them are merged.
- While held, messages wait behind the `Connected` of their connection, so the consumer sees
  connects, messages and disconnects in order.
- A consumer with a full queue still lets the event loop breathe.

Deliberately absent: backpressure by withheld acknowledgements. A slow consumer loses messages,
with a counter, instead of stalling the broker; the application re-sends (design rule 2).
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final

from edge_runtime.bus.port import BusEvent, Connected, Disconnected, DropReason, Message
from edge_runtime.contract.errors import LocalError
from edge_runtime.contract.limits import (
    BUS_CHANGES_WAITING_MAX,
    BUS_INBOUND_MAX_BYTES,
    BUS_INBOUND_MAX_MESSAGES,
)

_EVENTS_PER_TURN: Final = 128


class Inbox:
    """Bus events on their way to the one consumer.

    `drop` is told of each message that does not fit; `max_bytes` counts payload bytes.
    """

    def __init__(
        self,
        drop: Callable[[DropReason], None],
        max_messages: int = BUS_INBOUND_MAX_MESSAGES,
        max_bytes: int = BUS_INBOUND_MAX_BYTES,
    ) -> None:
        self._drop = drop
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._events: deque[BusEvent] = deque()
        self._held: deque[Message] | None = None
        self._messages = 0
        self._bytes = 0
        self._wakeup: asyncio.Future[None] | None = None
        self._has_consumer = False
        self._closed = False
        self._failure: BaseException | None = None

    def __len__(self) -> int:
        return len(self._events) + len(self._held or ())

    def put(self, message: Message) -> bool:
        """Queue a message; False when it was dropped because the queue is full."""
        size = len(message.payload)
        if self._messages >= self._max_messages or self._bytes + size > self._max_bytes:
            self._drop(DropReason.INBOUND_FULL)
            return False
        self._messages += 1
        self._bytes += size
        if self._held is not None:
            self._held.append(message)
        else:
            self._events.append(message)
            self._wake()
        return True

    def hold(self) -> None:
        """Keep messages back until `release`: their `Connected` has not been queued yet."""
        if self._held is None:
            self._held = deque()

    def release(self, connected: Connected | None) -> None:
        """Queue `connected`, where the connection came up, and then what was held."""
        if connected is not None:
            self._put_change(connected)
        held, self._held = self._held, None
        if held:
            self._events.extend(held)
        self._wake()

    def put_disconnected(self, event: Disconnected) -> None:
        """Queue a loss of connection."""
        self._put_change(event)
        self._wake()

    def close(self, failure: BaseException | None = None) -> None:
        """End the stream after what is queued, with `failure` where the bus itself broke."""
        self._closed = True
        self._failure = failure
        self._wake()

    async def events(self) -> AsyncIterator[BusEvent]:
        """Events in order until the bus is closed. Raises LocalError for a second consumer."""
        if self._has_consumer:
            raise LocalError("the events of a bus have one consumer")
        self._has_consumer = True
        try:
            served = 0
            while True:
                if not self._events:
                    if self._closed:
                        break
                    served = 0
                    await self._wait()
                    continue
                event = self._events.popleft()
                if isinstance(event, Message):
                    self._messages -= 1
                    self._bytes -= len(event.payload)
                yield event
                served += 1
                if served >= _EVENTS_PER_TURN:
                    served = 0
                    await asyncio.sleep(0)
            if self._failure is not None:
                raise self._failure
        finally:
            self._has_consumer = False

    def _put_change(self, event: Connected | Disconnected) -> None:
        changes = len(self._events) - self._messages + len(self._held or ())
        if changes < BUS_CHANGES_WAITING_MAX:
            self._events.append(event)
            return
        # Nobody reads. The oldest change goes; what it said about the session must not.
        for position, old in enumerate(self._events):
            if isinstance(old, Message):
                continue
            del self._events[position]
            if isinstance(old, Connected) and not old.session_present:
                event = self._forget_session(event)
            break
        self._events.append(event)

    def _forget_session(self, event: Connected | Disconnected) -> Connected | Disconnected:
        for position, old in enumerate(self._events):
            if isinstance(old, Connected):
                self._events[position] = Connected(session_present=False)
                return event
        return Connected(session_present=False) if isinstance(event, Connected) else event

    async def _wait(self) -> None:
        self._wakeup = asyncio.get_running_loop().create_future()
        try:
            await self._wakeup
        finally:
            self._wakeup = None

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)
