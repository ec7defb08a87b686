"""A broker inside the process, and the bus to it, with faults by configuration.

Invariants
- The broker behaves as MQTT brokers do where the rest of the house can tell: wildcards, QoS 0
  and 1, retained messages, Wills, sessions with bounded queues and expiry, takeover of a client
  id, access lists, refusals. Like Mosquitto it drops what does not fit a session's queue, tells
  the publisher nothing, and on MQTT 3.1.1 hides a refused publish.
- Every random decision comes from `Faults.rng`, every delay from the running loop's clock: the
  same seed on a deterministic loop gives the same run.
- `Faults.fired` counts each kind of fault that happened, so a campaign can tell that none was
  idle.

Deliberately absent: threads, sockets, shared subscriptions, the codec. Messages pass as they
are; nothing here proves that they survive a wire.
"""

import asyncio
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from paho.mqtt.matcher import MQTTMatcher

from edge_runtime.bus.access import Access, AccessList
from edge_runtime.bus.link import LinkHandlers, LinkInfo
from edge_runtime.bus.outbox import NO_MATCHING_SUBSCRIBERS, Ticket
from edge_runtime.bus.port import MQTT_5, BusRefused, BusSettings, BusUnavailable, Message
from edge_runtime.bus.reconnecting import ReconnectingBus
from edge_runtime.contract.errors import ConfigError
from edge_runtime.contract.limits import (
    BUS_INBOUND_MAX_MESSAGES,
    BUS_INFLIGHT_MAX_MESSAGES,
    BUS_OUTBOUND_MAX_MESSAGES,
    BUS_PACKET_MAX_BYTES,
    BUS_SESSION_QUEUE_MAX_MESSAGES,
)

BAD_USER: Final = 0x86
NOT_AUTHORIZED: Final = 0x87
_KEEPALIVE_FACTOR: Final = 1.5
_REORDER_DELAY_S: Final = 0.05


class Partition(Enum):
    """Which directions of a connection are cut."""

    NONE = "none"
    TO_BROKER = "to_broker"
    FROM_BROKER = "from_broker"
    BOTH = "both"

    @property
    def cuts_to_broker(self) -> bool:
        """Whether nothing reaches the broker."""
        return self in (Partition.TO_BROKER, Partition.BOTH)

    @property
    def cuts_from_broker(self) -> bool:
        """Whether nothing comes back."""
        return self in (Partition.FROM_BROKER, Partition.BOTH)


@dataclass(slots=True)
class Faults:
    """What goes wrong between one bus and the broker; may be changed while it runs.

    `loss`, `duplicate` and `reorder` are probabilities per message and direction; a lost QoS 1
    message is acknowledged all the same, as a broker with a full queue does. `delay_max_s` is
    the upper end of a uniform delay that keeps the order; a reordered message ignores the
    order. `refused` are topic filters this bus may neither publish on nor subscribe to.
    """

    rng: random.Random
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    delay_max_s: float = 0.0
    refused: tuple[str, ...] = ()
    partition: Partition = Partition.NONE
    fired: Counter[str] = field(default_factory=Counter)
    _listeners: list[Callable[[], None]] = field(default_factory=list)

    def set_partition(self, partition: Partition) -> None:
        """Cut or heal; held traffic moves on when a direction heals before the keepalive."""
        self.partition = partition
        if partition is not Partition.NONE:
            self.fired["partition"] += 1
        for listener in list(self._listeners):
            listener()

    def refuses(self, topic: str) -> bool:
        """Whether `topic`, or a filter as a whole, is refused."""
        if any(_matches(pattern, topic) for pattern in self.refused):
            self.fired["refused"] += 1
            return True
        return False

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` at every change of the partition; the answer stops that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)


class _Session:
    """What the broker keeps of one client id."""

    def __init__(self, client_id: str) -> None:
        self.client_id = client_id
        self.link: MemoryLink | None = None
        self.filters: dict[str, int] = {}
        self.queue: deque[tuple[Message, float | None]] = deque()
        self.expires_at_s: float | None = None


class MemoryBroker:
    """An MQTT broker as a Python object.

    `users` maps names to passwords; None lets everybody in. `access` has the rules of each
    listener, which is the host of a client's URL; None allows everything. `dropped_messages`
    counts what a session's full queue threw away unseen.
    """

    def __init__(
        self,
        *,
        users: Mapping[str, str] | None = None,
        access: Mapping[str, AccessList] | None = None,
        hides_subscribe_refusals: bool = False,
        session_queue_max_messages: int = BUS_SESSION_QUEUE_MAX_MESSAGES,
    ) -> None:
        self._users = users
        self._access = access
        self._hides_subscribe_refusals = hides_subscribe_refusals
        self._session_queue_max_messages = session_queue_max_messages
        self._sessions: dict[str, _Session] = {}
        self._retained: dict[str, tuple[Message, float | None]] = {}
        # filter -> {client id: granted QoS}
        self._subscribers = _filter_tree()
        self._is_running = True
        self.dropped_messages = 0

    # --- for whoever runs it ------------------------------------------------------------

    def kill(self) -> None:
        """Die without warning and forget everything: connections, sessions, retained."""
        self._is_running = False
        links = [session.link for session in self._sessions.values()]
        self._sessions.clear()
        self._retained.clear()
        self._subscribers = _filter_tree()
        for link in links:
            if link is not None:
                link.broker_ended("connection lost")

    def start(self) -> None:
        """Take connections again."""
        self._is_running = True

    def cut(self, client_id: str) -> None:
        """Break one client's connection; its Will is published."""
        session = self._sessions.get(client_id)
        if session is not None and session.link is not None:
            self._end(session, session.link, "connection lost", publish_will=True)

    # --- for links ------------------------------------------------------------------------

    def connect(self, link: "MemoryLink") -> bool:
        """Take `link` in; whether there was a session. Raises BusRefused, BusUnavailable."""
        if not self._is_running:
            raise BusUnavailable("connection refused")
        self._authenticate(link.settings)
        client_id = link.settings.client_id
        session = self._sessions.get(client_id)
        if session is not None and session.link is not None:
            # Mosquitto sends no Will then: who took over is there.
            self._end(session, session.link, "session taken over", publish_will=False)
        expires_at_s = None if session is None else session.expires_at_s
        if session is not None and (
            link.settings.session_expiry_s == 0
            or (expires_at_s is not None and _now_s() >= expires_at_s)
        ):
            self._forget(session)
            session = None
        present = session is not None
        if session is None:
            session = self._sessions[client_id] = _Session(client_id)
        session.link = link
        session.expires_at_s = None
        while session.queue:
            message, deadline_s = session.queue.popleft()
            is_late = deadline_s is not None and _now_s() >= deadline_s
            if not is_late and self.allows(Access.READ, link, message.topic):
                link.from_broker(message)
        return present

    def disconnect(self, link: "MemoryLink", *, publish_will: bool) -> None:
        """`link` said goodbye, or its keepalive ran out."""
        session = self._sessions.get(link.settings.client_id)
        if session is not None and session.link is link:
            self._end(session, link, "closed", publish_will=publish_will)

    def subscribe(self, link: "MemoryLink", topic_filter: str, qos: int) -> None:
        """Grant a subscription and send what is retained under it."""
        session = self._sessions[link.settings.client_id]
        session.filters[topic_filter] = qos
        subscribers = self._subscribers_of(topic_filter)
        subscribers[session.client_id] = qos
        for topic, (message, deadline_s) in list(self._retained.items()):
            is_late = deadline_s is not None and _now_s() >= deadline_s
            if is_late or not self.allows(Access.READ, link, topic):
                continue
            if _matches(topic_filter, topic):
                link.from_broker(_as_sent(message, qos, retain=True))

    def publish(self, message: Message) -> int:
        """Route a message; how many sessions it matched."""
        deadline_s = None if message.expiry_s is None else _now_s() + message.expiry_s
        if message.retain:
            if message.payload:
                self._retained[message.topic] = (message, deadline_s)
            else:
                self._retained.pop(message.topic, None)
        granted: dict[str, int] = {}
        for subscribers in self._subscribers.iter_match(message.topic):
            for client_id, qos in subscribers.items():
                granted[client_id] = max(qos, granted.get(client_id, 0))
        for client_id, qos in granted.items():
            self._route(self._sessions[client_id], _as_sent(message, qos, retain=False), deadline_s)
        return len(granted)

    def allows(self, access: Access, link: "MemoryLink", topic: str) -> bool:
        """Whether the client behind `link` may read or write `topic`."""
        if self._access is None:
            return True
        rules = self._access[urlsplit(link.settings.url).netloc.rpartition("@")[2]]
        return rules.allows(access, link.user, link.settings.client_id, topic)

    def hides_subscribe_refusals(self) -> bool:
        """Whether a refused subscription is answered as granted, as Mosquitto's ACL file does."""
        return self._hides_subscribe_refusals

    # --- inside ---------------------------------------------------------------------------

    def _authenticate(self, settings: BusSettings) -> None:
        if self._users is None:
            return
        name, password = _login(settings)
        if self._users.get(name) != password:
            code = BAD_USER if settings.protocol == MQTT_5 else NOT_AUTHORIZED
            raise BusRefused("connect", "", code, "bad user name or password")

    def _route(self, session: _Session, message: Message, deadline_s: float | None) -> None:
        if session.link is not None:
            if self.allows(Access.READ, session.link, message.topic):
                session.link.from_broker(message)
        elif message.qos == 0:
            return
        elif len(session.queue) < self._session_queue_max_messages:
            session.queue.append((message, deadline_s))
        else:
            self.dropped_messages += 1

    def _end(
        self, session: _Session, link: "MemoryLink", reason: str, *, publish_will: bool
    ) -> None:
        session.link = None
        session.expires_at_s = _now_s() + link.settings.session_expiry_s
        for message in link.broker_ended(reason):
            self._route(session, message, None)
        if link.settings.session_expiry_s == 0:
            self._forget(session)
        will = link.will if publish_will else None
        if will is not None and self.allows(Access.WRITE, link, will.topic):
            self.publish(will)

    def _forget(self, session: _Session) -> None:
        for topic_filter in session.filters:
            subscribers = self._subscribers_of(topic_filter)
            subscribers.pop(session.client_id, None)
            if not subscribers:
                del self._subscribers[topic_filter]
        del self._sessions[session.client_id]

    def _subscribers_of(self, topic_filter: str) -> dict[str, int]:
        try:
            subscribers: dict[str, int] = self._subscribers[topic_filter]
        except KeyError:
            subscribers = self._subscribers[topic_filter] = {}
        return subscribers


class _Lane:
    """One direction of one connection: holds, delays, loses, repeats and reorders."""

    def __init__(self, faults: Faults | None, is_cut: Callable[[], bool]) -> None:
        self._faults = faults
        self._is_cut = is_cut
        self._held: deque[Callable[[], None]] = deque()
        self._timers: dict[object, asyncio.TimerHandle] = {}
        self._last_due_s = 0.0

    def __len__(self) -> int:
        return len(self._held) + len(self._timers)

    def carry(self, arrive: Callable[[], None], lost: Callable[[], None] | None = None) -> None:
        """Let `arrive` happen at the other end; `lost` marks what may be lost or repeated."""
        faults = self._faults
        if faults is None:
            arrive()
            return
        times = 1
        if lost is not None and _strikes(faults, "loss", faults.loss):
            arrive, lost = lost, None
        elif lost is not None and _strikes(faults, "duplicate", faults.duplicate):
            times = 2
        for _ in range(times):
            self._schedule(faults, arrive, may_reorder=lost is not None)

    def heal(self) -> None:
        """Move what was held, unless the lane is still cut."""
        while self._held and not self._is_cut():
            self._held.popleft()()

    def end(self) -> None:
        """Forget what is under way."""
        self._held.clear()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _schedule(self, faults: Faults, arrive: Callable[[], None], *, may_reorder: bool) -> None:
        now_s = _now_s()
        delay_s = faults.rng.uniform(0, faults.delay_max_s) if faults.delay_max_s else 0.0
        if delay_s:
            faults.fired["delay"] += 1
        if may_reorder and _strikes(faults, "reorder", faults.reorder):
            due_s = now_s + delay_s + faults.rng.uniform(0, max(_REORDER_DELAY_S, delay_s))
        else:
            # asyncio fires timers of the same moment in any order.
            due_s = max(math.nextafter(self._last_due_s, math.inf), now_s + delay_s)
            self._last_due_s = due_s
        if due_s <= now_s and not self._timers:
            self._arrive(arrive)
            return
        key = object()
        self._timers[key] = asyncio.get_running_loop().call_at(
            due_s, self._arrive_later, key, arrive
        )

    def _arrive_later(self, key: object, arrive: Callable[[], None]) -> None:
        del self._timers[key]
        self._arrive(arrive)

    def _arrive(self, arrive: Callable[[], None]) -> None:
        if self._held or self._is_cut():
            self._held.append(arrive)
        else:
            arrive()


class MemoryLink:
    """One connection to a `MemoryBroker`."""

    def __init__(
        self,
        broker: MemoryBroker,
        faults: Faults | None,
        settings: BusSettings,
        will: Message | None,
        handlers: LinkHandlers,
    ) -> None:
        self.settings = settings
        self.user, _ = _login(settings)
        self.will = will
        self._broker = broker
        self._faults = faults
        self._handlers = handlers
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[str] = self._loop.create_future()
        self._to_broker = _Lane(faults, lambda: self._partition.cuts_to_broker)
        self._from_broker = _Lane(faults, lambda: self._partition.cuts_from_broker)
        self._undelivered: dict[object, Message] = {}
        self._keepalive: asyncio.TimerHandle | None = None
        self._stop_listening: Callable[[], None] | None = None

    @property
    def _partition(self) -> Partition:
        return Partition.NONE if self._faults is None else self._faults.partition

    # --- the link -------------------------------------------------------------------------

    async def connect(self) -> LinkInfo:
        """Connect. Raises BusRefused or BusUnavailable."""
        # A real connect lets others run.
        await asyncio.sleep(0)
        if self._partition is not Partition.NONE:
            raise BusUnavailable("unreachable")
        session_present = self._broker.connect(self)
        if self._faults is not None:
            self._stop_listening = self._faults.listen(self._partition_changed)
        return LinkInfo(
            session_present=session_present,
            window=BUS_INFLIGHT_MAX_MESSAGES,
            packet_max_bytes=BUS_PACKET_MAX_BYTES,
        )

    async def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        """Subscribe to all of `filters`. Raises BusRefused, BusUnavailable."""
        await asyncio.sleep(0)
        if self._partition is not Partition.NONE or self._ended.done():
            raise BusUnavailable("unreachable")
        for topic_filter, qos in filters:
            if self._faults is None or not self._faults.refuses(topic_filter):
                self._broker.subscribe(self, topic_filter, qos)
            elif not self._broker.hides_subscribe_refusals():
                raise BusRefused("subscribe", topic_filter, NOT_AUTHORIZED, "not authorized")

    def send(self, ticket: Ticket) -> None:
        """Put one publish on its way. Raises BusUnavailable."""
        if self._ended.done():
            raise BusUnavailable("connection lost")
        self._to_broker.carry(
            lambda: self._arrived(ticket), lambda: self._acknowledge(ticket, 0, "")
        )

    async def lost(self) -> str:
        """Wait until the connection has ended by itself; why."""
        await asyncio.wait([self._ended])
        return self._ended.result()

    def abort(self, reason: str) -> None:
        """Give the connection up: `lost` returns now."""
        self._broker.disconnect(self, publish_will=True)
        self.broker_ended(reason)

    async def close(self) -> None:
        """Say goodbye and free the timers; behind a partition nobody hears it, hence the Will."""
        self._broker.disconnect(self, publish_will=self._partition is not Partition.NONE)
        self.broker_ended("closed")

    # --- what the broker calls --------------------------------------------------------------

    def from_broker(self, message: Message) -> None:
        """A message for this client leaves the broker."""
        if len(self._from_broker) >= BUS_INBOUND_MAX_MESSAGES:
            self._broker.dropped_messages += 1
            return
        key = object()
        if message.qos:
            self._undelivered[key] = message

        def arrive() -> None:
            self._undelivered.pop(key, None)
            self._handlers.deliver(message)

        def lose() -> None:
            self._undelivered.pop(key, None)

        self._from_broker.carry(arrive, lose)

    def broker_ended(self, reason: str) -> list[Message]:
        """End the connection; the QoS 1 messages that were still under way to the client."""
        undelivered = list(self._undelivered.values())
        self._undelivered.clear()
        self._to_broker.end()
        self._from_broker.end()
        if self._keepalive is not None:
            self._keepalive.cancel()
            self._keepalive = None
        if self._stop_listening is not None:
            self._stop_listening()
            self._stop_listening = None
        if not self._ended.done():
            self._ended.set_result(reason)
        return undelivered

    # --- inside -----------------------------------------------------------------------------

    def _arrived(self, ticket: Ticket) -> None:
        message = ticket.message
        is_refused = self._faults is not None and self._faults.refuses(message.topic)
        if is_refused or not self._broker.allows(Access.WRITE, self, message.topic):
            hidden = self.settings.protocol != MQTT_5
            self._acknowledge(ticket, 0 if hidden else NOT_AUTHORIZED, "not authorized")
            return
        matched = self._broker.publish(message)
        nobody = not matched and self.settings.protocol == MQTT_5 and message.qos
        self._acknowledge(ticket, NO_MATCHING_SUBSCRIBERS if nobody else 0, "")

    def _acknowledge(self, ticket: Ticket, reason_code: int, reason: str) -> None:
        # Never from inside `send`: an acknowledgement of a real broker comes later too.
        def arrive() -> None:
            self._loop.call_soon(self._handlers.settle, ticket, reason_code, reason)

        self._from_broker.carry(arrive)

    def _partition_changed(self) -> None:
        if self._partition is Partition.NONE:
            if self._keepalive is not None:
                self._keepalive.cancel()
                self._keepalive = None
        elif self._keepalive is None:
            self._keepalive = self._loop.call_later(
                _KEEPALIVE_FACTOR * self.settings.keepalive_s, self.abort, "keepalive timeout"
            )
        self._to_broker.heal()
        self._from_broker.heal()


class MemoryBus(ReconnectingBus):
    """The `Bus` port on a `MemoryBroker`; `settings.url` is `memory://[user:password@]name`."""

    def __init__(
        self,
        settings: BusSettings,
        broker: MemoryBroker,
        faults: Faults | None = None,
        *,
        rng: random.Random | None = None,
        inbound_max_messages: int = BUS_INBOUND_MAX_MESSAGES,
        outbound_max_messages: int = BUS_OUTBOUND_MAX_MESSAGES,
    ) -> None:
        if urlsplit(settings.url).scheme != "memory":
            raise ConfigError("the URL of a memory bus must look like memory://")
        super().__init__(
            settings,
            lambda settings, will, handlers: MemoryLink(broker, faults, settings, will, handlers),
            rng=rng or (None if faults is None else faults.rng),
            inbound_max_messages=inbound_max_messages,
            outbound_max_messages=outbound_max_messages,
        )


def _strikes(faults: Faults, kind: str, probability: float) -> bool:
    if probability and faults.rng.random() < probability:
        faults.fired[kind] += 1
        return True
    return False


def _login(settings: BusSettings) -> tuple[str, str]:
    parts = urlsplit(settings.url)
    return unquote(parts.username or ""), unquote(parts.password or "")


def _matches(topic_filter: str, topic: str) -> bool:
    tree = _filter_tree()
    tree[topic_filter] = True
    return any(tree.iter_match(topic))


def _filter_tree() -> Any:
    return MQTTMatcher()  # type: ignore[no-untyped-call] # paho has no types here


def _as_sent(message: Message, granted_qos: int, *, retain: bool) -> Message:
    """`message` as a subscriber gets it."""
    if message.qos <= granted_qos and message.retain == retain:
        return message
    return Message(
        message.topic,
        message.payload,
        min(message.qos, granted_qos),
        retain,
        message.expiry_s,
        message.content_type,
        message.traceparent,
        message.response_topic,
        message.correlation,
    )


def _now_s() -> float:
    return asyncio.get_running_loop().time()
