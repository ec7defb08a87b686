"""The `Bus` port: what the rest of the house may ask of a message broker.

Invariants
- A refused connect, subscribe or publish is an exception with its reason code, never silence.
- `publish` returns only after the broker has acknowledged (QoS 1); that acknowledgement is a
  hint, never durability (design rule 2).
- Both directions are bounded. What does not fit is refused (`BusOverflow`) or dropped with a
  typed reason and a counter; nothing is dropped silently.
- An incoming message is acknowledged to the broker when it has been handed to the application
  queue. The application's own acknowledgement, after its durable commit, is what counts.
- Closing leaves no task, thread or socket behind.

Deliberately absent: QoS 2, topic aliases, shared subscriptions, any retry of a publish whose
outcome is unknown (the application re-sends until it has the application's answer).
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final, Protocol, Self

from edge_runtime.contract.errors import LocalError, RemoteError

MQTT_5: Final = 5
WINDOW_311: Final = 20
"""MQTT 3.1.1 brokers cannot say how much they take; Mosquitto's default, and paho's, is this."""


class DropReason(Enum):
    """Why the bus let a message go (each is a counter label)."""

    INBOUND_FULL = "inbound_full"
    OUTBOUND_FULL = "outbound_full"
    TOO_LARGE = "too_large"
    NOT_CONNECTED = "not_connected"
    NO_SUBSCRIBER = "no_subscriber"
    REFUSED = "refused"
    UNACKNOWLEDGED = "unacknowledged"


class BusError(RemoteError):
    """The broker, or the way to it, failed."""


class BusRefused(BusError):  # noqa: N818 - named for what the broker did
    """The broker refused a connect, subscribe or publish.

    `operation` is "connect", "subscribe" or "publish"; `reason_code` is the MQTT 5 reason code
    (3.1.1 return codes are mapped onto it), 0 where only the canary saw the refusal.
    """

    def __init__(self, operation: str, topic: str, reason_code: int, reason: str) -> None:
        super().__init__(f"{operation} {topic!r} refused: {reason} (code {reason_code})")
        self.operation = operation
        self.topic = topic
        self.reason_code = reason_code
        self.reason = reason


class BusUnavailable(BusError):  # noqa: N818 - as BusRefused
    """Not connected, or the acknowledgement did not come in time: the outcome is unknown."""


class BusOverflow(LocalError):  # noqa: N818 - as BusRefused
    """A bounded queue is full, or a message is larger than the bus or the broker takes."""

    def __init__(self, reason: DropReason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Message:
    """One MQTT message, in either direction.

    `expiry_s`, `content_type`, `traceparent`, `response_topic` and `correlation` become MQTT 5
    properties where the broker has them and are left out on 3.1.1: nothing may rely on them.
    """

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    expiry_s: int | None = None
    content_type: str | None = None
    traceparent: str | None = None
    response_topic: str | None = None
    correlation: bytes | None = None


@dataclass(frozen=True, slots=True)
class Connected:
    """The bus is up. `session_present` is False when the broker kept nothing of us."""

    session_present: bool


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The bus is down; it reconnects by itself. `reason` is for people.

    `refused` says which operation the broker refused where that is why the bus is down; until
    a later attempt succeeds, `publish` raises the same.
    """

    reason: str
    refused: BusRefused | None = None


BusEvent = Message | Connected | Disconnected


@dataclass(slots=True)
class BusCounters:
    """What went through and what did not; read by the counters endpoint."""

    received: int = 0
    published: int = 0
    reconnects: int = 0
    dropped: dict[DropReason, int] = field(default_factory=lambda: dict.fromkeys(DropReason, 0))


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """Files for `mqtts://`, all PEM, read at every connect: a renewed one is used by the next.

    `ca` holds the authorities that may sign the broker's certificate; None: the system's.
    `cert` is our own certificate with its chain, `key` its key; None: `cert` holds it too.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None


@dataclass(frozen=True, slots=True)
class BusSettings:
    """How to reach a broker. `url` is `mqtt[s]://[user:password@]host:port` or `memory://`.

    `protocol` is 5 or 4 (MQTT 3.1.1). `canary_topic` is a topic this client may both publish
    and subscribe to; with it, refusals that the protocol hides are found by a self-addressed
    message at connect.
    """

    url: str
    client_id: str
    protocol: int = 5
    keepalive_s: int = 30
    session_expiry_s: int = 600
    will: Message | None = None
    subscriptions: tuple[tuple[str, int], ...] = ()
    canary_topic: str | None = None
    tls: TlsSettings = TlsSettings()


class Bus(Protocol):
    """A connection to one broker that reconnects by itself until closed.

    Use as an async context manager: entering starts the first connect in the background and
    returns at once (a broker that is not there yet is ordinary), leaving closes it.
    """

    @property
    def counters(self) -> BusCounters:
        """Live counters."""
        ...

    @property
    def is_connected(self) -> bool:
        """Whether a publish would be tried now."""
        ...

    @property
    def max_message_bytes(self) -> int:
        """Largest payload that is sent: our own limit or the broker's, whichever is less."""
        ...

    def events(self) -> AsyncIterator[BusEvent]:
        """Everything that happens, in order: connects, messages, disconnects. One consumer."""
        ...

    async def publish(self, message: Message) -> None:
        """Publish and wait for the broker's acknowledgement (QoS 1) or the hand-over (QoS 0).

        Raises `BusRefused`, `BusUnavailable` or `BusOverflow`.
        """
        ...

    async def publish_all(self, messages: Sequence[Message]) -> list[BusError | BusOverflow | None]:
        """Publish many in order, together; for each, None or what `publish` would have raised."""
        ...

    def publish_soon(self, message: Message) -> None:
        """Queue a publish without waiting; its failure is counted and logged, not raised.

        Raises `BusOverflow` when the outbound queue is full or the message too large.
        Order is kept among messages queued this way.
        """
        ...

    async def set_will(self, will: Message | None) -> None:
        """Use this Will from the next connect on."""
        ...

    def reconnect(self, reason: str) -> None:
        """Say goodbye (no Will) and connect again soon, with the certificates of then.

        A publish that the broker has not acknowledged yet ends as `BusUnavailable`. Does nothing
        while the bus is not connected: the next connect will read the files anyway.
        """
        ...

    def state(self) -> Mapping[str, object]:
        """A few facts for people: url, connected, protocol, queue lengths."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...
