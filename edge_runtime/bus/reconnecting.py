"""The `Bus` port over any `Link`: reconnects, resubscribes, bounds, counts and reports.

Invariants
- `Connected` is said only when every subscription is granted and, where a canary topic is set,
  a message to ourselves has come back: what the application does next cannot be lost to a
  subscription that is not there yet.
- A refusal (connect, subscribe, canary) is reported once as `Disconnected.refused`, raised by
  every `publish` until it is over, and tried again: an operator may mend it meanwhile.
- One log line per change of state. Retries and single drops are counters.
- Reconnect delays have full jitter and shrink back only after a connection that lasted, so that
  neither a restarted broker nor two owners of one client id cause a storm.

Deliberately absent: publishing while disconnected. The application hears of the connection and
of each refused publish, and knows better than a queue what is still worth sending.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final, Self

import structlog

from edge_runtime.bus.inbox import Inbox
from edge_runtime.bus.link import Link, LinkHandlers, LinkInfo, OpenLink
from edge_runtime.bus.outbox import Outbox
from edge_runtime.bus.port import (
    BusCounters,
    BusError,
    BusEvent,
    BusOverflow,
    BusRefused,
    BusSettings,
    BusUnavailable,
    Connected,
    Disconnected,
    DropReason,
    Message,
)
from edge_runtime.contract.errors import LocalError
from edge_runtime.contract.limits import (
    BUS_CANARY_TIMEOUT_S,
    BUS_CLOSE_TIMEOUT_S,
    BUS_CONNECT_TIMEOUT_S,
    BUS_INBOUND_MAX_BYTES,
    BUS_INBOUND_MAX_MESSAGES,
    BUS_OUTBOUND_MAX_BYTES,
    BUS_OUTBOUND_MAX_MESSAGES,
    BUS_PACKET_MAX_BYTES,
    BUS_RECONNECT_FIRST_S,
    BUS_RECONNECT_MAX_S,
    BUS_STABLE_S,
    MESSAGE_MAX_BYTES,
)

_PACKET_OVERHEAD_BYTES: Final = BUS_PACKET_MAX_BYTES - MESSAGE_MAX_BYTES
_FIXED_BYTES: Final = 64
"""More than a PUBLISH packet's header, identifier and property tags take."""
_CANCEL_AGAIN_S: Final = 3 * BUS_CLOSE_TIMEOUT_S
_ORDINARY_DROPS: Final = frozenset({DropReason.NO_SUBSCRIBER})

log = structlog.get_logger(__name__)


class ReconnectingBus:
    """A `Bus` that makes its connections with `open_link`.

    `rng` draws the reconnect delays; the bounds may only be lowered, for tests and small
    machines.
    """

    def __init__(
        self,
        settings: BusSettings,
        open_link: OpenLink,
        *,
        rng: random.Random | None = None,
        inbound_max_messages: int = BUS_INBOUND_MAX_MESSAGES,
        outbound_max_messages: int = BUS_OUTBOUND_MAX_MESSAGES,
    ) -> None:
        self._settings = settings
        self._open_link = open_link
        # Delays need no secrecy, only difference between processes.
        self._rng = rng or random.Random()  # noqa: S311 - jitter is not a secret
        self._counters = BusCounters()
        self._inbox = Inbox(self._drop, inbound_max_messages, BUS_INBOUND_MAX_BYTES)
        self._outbox = Outbox(
            self._counters,
            self._drop,
            self._acknowledgement_overdue,
            outbound_max_messages,
            BUS_OUTBOUND_MAX_BYTES,
        )
        self._handlers = LinkHandlers(self._deliver, self._outbox.settle)
        self._will = settings.will
        self._log = log.bind(client_id=settings.client_id)
        self._link: Link | None = None
        self._is_closing = False
        self._is_connected = False
        self._was_connected = False
        self._down: BusError = BusUnavailable("not connected yet")
        self._down_noted = False
        self._refusal_noted: BusRefused | None = None
        self._drops_noted: set[DropReason] = set()
        self._packet_max_bytes: int | None = None
        self._canary: tuple[bytes, asyncio.Future[None]] | None = None
        self._task: asyncio.Task[None] | None = None
        self._left_because: str | None = None

    # --- the port ---------------------------------------------------------------------

    @property
    def counters(self) -> BusCounters:
        """Live counters."""
        return self._counters

    @property
    def is_connected(self) -> bool:
        """Whether a publish would be tried now."""
        return self._is_connected

    @property
    def max_message_bytes(self) -> int:
        """Largest payload that is sent: our own limit or the broker's, whichever is less."""
        if self._packet_max_bytes is None:
            return MESSAGE_MAX_BYTES
        return max(0, min(MESSAGE_MAX_BYTES, self._packet_max_bytes - _PACKET_OVERHEAD_BYTES))

    def events(self) -> AsyncIterator[BusEvent]:
        """Everything that happens, in order. One consumer (a second raises LocalError)."""
        return self._inbox.events()

    async def publish(self, message: Message) -> None:
        """Publish and wait for the acknowledgement (QoS 1) or the hand-over (QoS 0).

        Raises BusRefused, BusUnavailable or BusOverflow; LocalError for an impossible topic.
        """
        self._check(message)
        if not self._is_connected:
            self._drop(DropReason.NOT_CONNECTED)
            raise self._reason_down()
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._outbox.submit(message, waiter)
        await waiter

    async def publish_all(self, messages: Sequence[Message]) -> list[BusError | BusOverflow | None]:
        """Publish many in order, together; for each, None or what `publish` would have raised.

        One future for all of them: without a task and a future each, a publish costs half.
        """
        together = _Together(len(messages))
        for place, message in enumerate(messages):
            share = _Share(together, place)
            try:
                self._check(message)
                if not self._is_connected:
                    self._drop(DropReason.NOT_CONNECTED)
                    raise self._reason_down()
                self._outbox.submit(message, share)
            except (BusError, BusOverflow) as error:
                share.set_exception(error)
        if together.left:
            await together.all_done
        return together.outcomes

    def publish_soon(self, message: Message) -> None:
        """Queue a publish without waiting; a later failure is counted and logged.

        Raises BusOverflow (queue full, message too large); LocalError for an impossible topic.
        """
        self._check(message)
        if self._is_connected:
            self._outbox.submit(message, None)
        else:
            self._drop(DropReason.NOT_CONNECTED)

    async def set_will(self, will: Message | None) -> None:
        """Use this Will from the next connect on."""
        self._will = will

    def reconnect(self, reason: str) -> None:
        """Say goodbye (no Will) and connect again soon, with the certificates of then."""
        if self._is_connected and self._task is not None and self._left_because is None:
            self._left_because = reason
            self._log.info("bus_reconnecting", why=reason)
            # It waits for the connection to be lost, and for nothing else while it is up.
            self._task.cancel()

    def state(self) -> Mapping[str, object]:
        """A few facts for people: url without password, connected, protocol, queue lengths."""
        return {
            "url": _without_password(self._settings.url),
            "client_id": self._settings.client_id,
            "protocol": self._settings.protocol,
            "connected": self._is_connected,
            "why_down": None if self._is_connected else str(self._down),
            "inbound_messages": len(self._inbox),
            "outbound_messages": len(self._outbox),
            "in_flight_messages": self._outbox.in_flight,
        }

    async def __aenter__(self) -> Self:
        """Start connecting in the background."""
        if self._task is not None:
            raise LocalError("a bus is used once")
        self._task = asyncio.create_task(self._run(), name=f"bus {self._settings.client_id}")
        self._task.add_done_callback(self._ended)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Disconnect cleanly (no Will) and end every task."""
        task = self._task
        if task is None:
            return
        self._is_closing = True
        while not task.done():
            # Once is not always enough: a library may swallow it, where we cannot see it.
            task.cancel()
            await asyncio.wait([task], timeout=_CANCEL_AGAIN_S)
        # What broke the bus, if it broke, has been told to the consumer of its events.
        self._inbox.close()

    # --- connections ------------------------------------------------------------------

    async def _run(self) -> None:
        doublings = 0
        while True:
            error, lasted_s = await self._serve_one_connection()
            if self._is_closing:
                return
            self._note_down(error)
            doublings = 0 if lasted_s >= BUS_STABLE_S else doublings + 1
            # A day without a broker is thousands of doublings: more than a float can hold.
            ceiling_s = BUS_RECONNECT_FIRST_S * 2.0 ** max(0, min(doublings, 16) - 1)
            await asyncio.sleep(self._rng.uniform(0, min(BUS_RECONNECT_MAX_S, ceiling_s)))

    async def _serve_one_connection(self) -> tuple[BusError, float]:
        """Connect and stay; why it ended and for how many seconds it was up."""
        loop = asyncio.get_running_loop()
        link = self._open_link(self._settings, self._will, self._handlers)
        self._link = link
        self._inbox.hold()
        up_since_s: float | None = None
        error: BusError = BusUnavailable("closed")
        try:
            async with asyncio.timeout(BUS_CONNECT_TIMEOUT_S):
                info = await self._establish(link)
            if self._is_closing:
                # Python 3.11's wait_for, which both libraries use, may swallow a cancellation.
                raise asyncio.CancelledError
            up_since_s = loop.time()
            self._note_up(info)
            error = BusUnavailable(await self._stay(link))
        except TimeoutError:
            error = BusUnavailable(f"no answer within {BUS_CONNECT_TIMEOUT_S:g} s")
        except BusError as caught:
            error = caught
        finally:
            self._is_connected = False
            self._down = error
            self._link = None
            self._outbox.shut(str(error))
            # Acknowledged to the broker, so they must reach the application all the same.
            self._inbox.release(None)
            await link.close()
        return error, 0.0 if up_since_s is None else loop.time() - up_since_s

    async def _stay(self, link: Link) -> str:
        """Wait until the connection is lost, or to be made anew; why."""
        try:
            return await link.lost()
        except asyncio.CancelledError:
            reason, self._left_because = self._left_because, None
            if reason is None or self._is_closing or self._task is None:
                raise
            self._task.uncancel()
            return reason

    async def _establish(self, link: Link) -> LinkInfo:
        info = await link.connect()
        self._packet_max_bytes = info.packet_max_bytes
        filters = list(self._settings.subscriptions)
        canary_topic = self._settings.canary_topic
        if canary_topic is not None:
            filters.append((canary_topic, 1))
        if filters:
            await link.subscribe(filters)
        self._outbox.open(link.send, info.window)
        if canary_topic is not None:
            await self._prove(link, canary_topic)
        return info

    async def _prove(self, link: Link, topic: str) -> None:
        """Send ourselves a message: brokers hide refusals that its absence shows."""
        loop = asyncio.get_running_loop()
        nonce = self._rng.randbytes(12)
        echo: asyncio.Future[None] = loop.create_future()
        acknowledged: asyncio.Future[None] = loop.create_future()
        lost: asyncio.Future[str] = asyncio.ensure_future(link.lost())
        self._canary = (nonce, echo)
        try:
            self._outbox.submit(Message(topic, nonce, qos=1), acknowledged)
            for step in (acknowledged, echo):
                await asyncio.wait(
                    (step, lost),
                    timeout=BUS_CANARY_TIMEOUT_S,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if lost.done():
                    raise BusUnavailable(lost.result())
                # Not acknowledged at all is an ailing broker, not a refusal.
                if not acknowledged.done():
                    raise BusUnavailable("the broker does not acknowledge")
                acknowledged.result()
            if not echo.done():
                raise BusRefused("publish", topic, 0, "the self-addressed canary did not come back")
        finally:
            self._canary = None
            acknowledged.cancel()
            echo.cancel()
            lost.cancel()
            await asyncio.wait([lost])

    def _note_up(self, info: LinkInfo) -> None:
        if self._was_connected:
            self._counters.reconnects += 1
        self._was_connected = True
        self._is_connected = True
        self._down_noted = False
        self._drops_noted.clear()
        self._inbox.release(Connected(session_present=info.session_present))
        self._log.info(
            "bus_connected",
            url=_without_password(self._settings.url),
            protocol=self._settings.protocol,
            session_present=info.session_present,
        )

    def _note_down(self, error: BusError) -> None:
        refused = error if isinstance(error, BusRefused) else None
        if self._down_noted and (refused is None or self._same_refusal(refused)):
            return
        self._down_noted = True
        self._refusal_noted = refused
        self._drops_noted.clear()
        self._inbox.put_disconnected(Disconnected(reason=str(error), refused=refused))
        self._log.warning(
            "bus_disconnected", url=_without_password(self._settings.url), reason=str(error)
        )

    def _same_refusal(self, refused: BusRefused) -> bool:
        noted = self._refusal_noted
        return noted is not None and (noted.operation, noted.topic, noted.reason_code) == (
            refused.operation,
            refused.topic,
            refused.reason_code,
        )

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        # Only a defect ends the task by itself; the consumer must not wait for ever.
        failure = task.exception()
        self._inbox.close(failure)
        self._log.error("bus_failed", exc_info=failure)

    # --- messages ---------------------------------------------------------------------

    def _deliver(self, message: Message) -> None:
        if message.topic == self._settings.canary_topic:
            if self._canary is not None and self._canary[0] == message.payload:
                echo = self._canary[1]
                if not echo.done():
                    echo.set_result(None)
            return
        if self._inbox.put(message):
            self._counters.received += 1

    def _check(self, message: Message) -> None:
        topic = message.topic
        if not topic or "+" in topic or "#" in topic or "\0" in topic:
            raise LocalError(f"{topic!r} is not a topic to publish on")
        if message.qos not in (0, 1):
            raise LocalError(f"QoS {message.qos} is not used here: 0 or 1")
        size = len(message.payload)
        if size > MESSAGE_MAX_BYTES:
            self._drop(DropReason.TOO_LARGE)
            raise BusOverflow(
                DropReason.TOO_LARGE, f"{size} bytes; the limit is {MESSAGE_MAX_BYTES}"
            )
        if self._packet_max_bytes is not None:
            packet = _packet_bytes_at_most(message)
            if packet > self._packet_max_bytes:
                self._drop(DropReason.TOO_LARGE)
                raise BusOverflow(
                    DropReason.TOO_LARGE,
                    f"a packet of {packet} bytes; the broker takes {self._packet_max_bytes}",
                )

    def _reason_down(self) -> BusError:
        # A fresh exception each time: a stored one would collect tracebacks.
        down = self._down
        if isinstance(down, BusRefused):
            return BusRefused(down.operation, down.topic, down.reason_code, down.reason)
        return BusUnavailable(f"not connected: {down}")

    def _drop(self, reason: DropReason) -> None:
        self._counters.dropped[reason] += 1
        if reason not in self._drops_noted and reason not in _ORDINARY_DROPS:
            self._drops_noted.add(reason)
            self._log.warning(
                "bus_dropping", reason=reason.value, total=self._counters.dropped[reason]
            )

    def _acknowledgement_overdue(self) -> None:
        if self._link is not None:
            self._link.abort("the broker left a publish unacknowledged")


class _Together:
    """The outcomes of publishes that one caller waits for."""

    __slots__ = ("all_done", "left", "outcomes")

    def __init__(self, count: int) -> None:
        self.left = count
        self.outcomes: list[BusError | BusOverflow | None] = [None] * count
        self.all_done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class _Share:
    """One of them: a `Waiter`."""

    __slots__ = ("_place", "_together")

    def __init__(self, together: _Together, place: int) -> None:
        self._together = together
        self._place = place

    def done(self) -> bool:
        return self._together.all_done.done()

    def set_result(self, _: None) -> None:
        together = self._together
        together.left -= 1
        if not together.left:
            together.all_done.set_result(None)

    def set_exception(self, error: BusError | BusOverflow) -> None:
        self._together.outcomes[self._place] = error
        self.set_result(None)


def _packet_bytes_at_most(message: Message) -> int:
    """No PUBLISH packet of `message` is larger than this."""
    chars = len(message.topic)
    for text in (message.content_type, message.traceparent, message.response_topic):
        if text is not None:
            chars += len(text)
    correlation_bytes = 0 if message.correlation is None else len(message.correlation)
    # A character takes at most four bytes of UTF-8.
    return _FIXED_BYTES + 4 * chars + correlation_bytes + len(message.payload)


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
