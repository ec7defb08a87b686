"""One connection to one broker, from its connect to its end: what an adapter has to bring.

Invariants
- A link lives once. Reconnecting is a new link, so nothing of an old connection (unacknowledged
  publishes, packet identifiers, half-read packets) can leak into the next.
- A link never waits for the application: messages are handed to `deliver`, answers to `settle`.
- Whatever the client library raises leaves a link as `BusRefused` or `BusUnavailable`.

Deliberately absent: queues, windows, retries, canaries. `ReconnectingBus` owns them for all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

from edge_runtime.bus.outbox import Ticket
from edge_runtime.bus.port import BusSettings, Message
from edge_runtime.contract.errors import ConfigError

_DEFAULT_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """What the broker answered to a connect.

    `window` is how many QoS 1 messages may be unacknowledged; `packet_max_bytes` is the
    broker's Maximum Packet Size, None where it told none.
    """

    session_present: bool
    window: int
    packet_max_bytes: int | None


@dataclass(frozen=True, slots=True)
class LinkHandlers:
    """Where a link hands what it gets; every call is made on the event loop.

    `settle(ticket, reason_code, reason)` ends a publish with the broker's MQTT 5 reason code.
    """

    deliver: Callable[[Message], None]
    settle: Callable[[Ticket, int, str], None]


class Link(Protocol):
    """One connection."""

    async def connect(self) -> LinkInfo:
        """Connect. Raises BusRefused or BusUnavailable."""
        ...

    async def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        """Subscribe to all of `filters`, (filter, qos) each. Raises BusRefused, BusUnavailable."""
        ...

    def send(self, ticket: Ticket) -> None:
        """Hand one publish to the client library. Raises BusUnavailable."""
        ...

    async def lost(self) -> str:
        """Wait until the connection has ended by itself; why, for people."""
        ...

    def abort(self, reason: str) -> None:
        """Give the connection up: `lost` returns now."""
        ...

    async def close(self) -> None:
        """Say goodbye where possible and free every task and socket. Never raises."""
        ...


OpenLink = Callable[[BusSettings, Message | None, LinkHandlers], Link]
"""Make a link (settings, Will, handlers); it connects when asked to."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a broker is and as whom to go there; never log `password`."""

    host: str
    port: int
    username: str | None
    password: str | None
    is_tls: bool = False

    @property
    def address(self) -> str:
        """`host:port`, for logs."""
        return f"{self.host}:{self.port}"


def parse_url(url: str) -> Endpoint:
    """The parts of `mqtt[s]://[user:password@]host[:port]`. Raises ConfigError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"the broker's URL is not valid: {error}") from error
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise ConfigError("the broker's URL must look like mqtt[s]://[user:password@]host:port")
    return Endpoint(
        host=parts.hostname,
        port=port or _DEFAULT_PORTS[parts.scheme],
        username=None if parts.username is None else unquote(parts.username),
        password=None if parts.password is None else unquote(parts.password),
        is_tls=parts.scheme == "mqtts",
    )
