"""The bus over aiomqtt and paho: what a car uses.

aiomqtt's client is subclassed, not called: its public surface throws away what the port must
know (docs/adr/0001-mqtt-adapters.md). Kept are its wiring of paho into asyncio, its connect and
subscribe; replaced are
- `_on_publish`, which ignores reason codes: a refused publish looks like a success;
- `_on_connect`, which ignores session present, Maximum Packet Size and Receive Maximum;
- `_on_disconnect`, which never ends a connect whose connection breaks before the answer;
- `_on_message` and the message queue, which cost a task per message and drop unseen;
- the socket: connected without the executor thread that aiomqtt leaves behind, TCP_NODELAY set
  before the first byte (Nagle and delayed acknowledgements cost 88 ms a round trip), read in
  blocks instead of paho's three system calls a packet, written once per turn of the loop.

Invariants
- paho's own in-flight window and queue are never used: the outbox keeps the broker's Receive
  Maximum, which paho does not, and paho re-sends by itself what it queued.
- A packet over the broker's limit never reaches paho.

Deliberately absent: WebSockets, QoS 2, paho's own TLS, paho's and aiomqtt's reconnects.
"""

import asyncio
import ipaddress
import random
import socket
import ssl
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, cast

import aiomqtt
from aiomqtt.types import PahoSocket
from paho.mqtt import client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge_runtime.bus.link import Endpoint, LinkHandlers, LinkInfo, parse_url
from edge_runtime.bus.outbox import REFUSED_FROM, Ticket
from edge_runtime.bus.port import (
    MQTT_5,
    WINDOW_311,
    BusRefused,
    BusSettings,
    BusUnavailable,
    Message,
)
from edge_runtime.bus.reconnecting import ReconnectingBus
from edge_runtime.bus.tls import refusal_hint, start_tls, tls_context
from edge_runtime.contract.limits import (
    BUS_CLOSE_TIMEOUT_S,
    BUS_CONNECT_TIMEOUT_S,
    BUS_INBOUND_MAX_MESSAGES,
    BUS_INFLIGHT_MAX_MESSAGES,
    BUS_OUTBOUND_MAX_MESSAGES,
    BUS_PACKET_MAX_BYTES,
    BUS_PROPERTY_SETS_KEPT_MAX,
)

_READ_BYTES: Final = 16 * 1024
_WRITE_BUFFER_BYTES: Final = 256 * 1024
_TRACEPARENT: Final = "traceparent"
_NOT_NOW: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
"""How a socket without and with TLS says that it would have to wait."""


class AiomqttBus(ReconnectingBus):
    """The `Bus` port on aiomqtt and paho; see `BusSettings` for what it needs."""

    def __init__(
        self,
        settings: BusSettings,
        *,
        rng: random.Random | None = None,
        inbound_max_messages: int = BUS_INBOUND_MAX_MESSAGES,
        outbound_max_messages: int = BUS_OUTBOUND_MAX_MESSAGES,
    ) -> None:
        parse_url(settings.url)
        super().__init__(
            settings,
            PahoLink,
            rng=rng,
            inbound_max_messages=inbound_max_messages,
            outbound_max_messages=outbound_max_messages,
        )


class PahoLink:
    """One connection made by paho inside aiomqtt's client."""

    def __init__(self, settings: BusSettings, will: Message | None, handlers: LinkHandlers) -> None:
        self._endpoint = parse_url(settings.url)
        self._tls = settings.tls
        self._client = _Client(settings, self._endpoint, will, handlers)

    async def connect(self) -> LinkInfo:
        """Connect. Raises BusRefused or BusUnavailable."""
        try:
            return await self._client.connect_over(await self._connected())
        except aiomqtt.MqttCodeError as error:
            code, reason = _code_of(error.rc)
            raise BusRefused("connect", "", code, reason) from error
        except (aiomqtt.MqttError, OSError) as error:
            hint = refusal_hint(self._tls, error) if self._endpoint.is_tls else ""
            raise BusUnavailable(f"{self._endpoint.address}: {error}{hint}") from error

    async def _connected(self) -> socket.socket:
        """A connected socket, with TLS where the URL says so. Raises OSError, BusUnavailable."""
        if not self._endpoint.is_tls:
            return await _connected_socket(self._endpoint)
        context = tls_context(self._tls)
        connected = await _connected_socket(self._endpoint)
        return await start_tls(connected, context, self._endpoint.host)

    async def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        """Subscribe to all of `filters`. Raises BusRefused, BusUnavailable."""
        try:
            answers = await self._client.subscribe(list(filters))
        except aiomqtt.MqttError as error:
            raise BusUnavailable(f"subscribe: {error}") from error
        for (topic_filter, _), answer in zip(filters, answers, strict=True):
            code, reason = _code_of(answer)
            if code >= REFUSED_FROM:
                raise BusRefused("subscribe", topic_filter, code, reason)

    def send(self, ticket: Ticket) -> None:
        """Hand one publish to paho. Raises BusUnavailable."""
        self._client.send(ticket)

    async def lost(self) -> str:
        """Wait until the connection has ended by itself; why."""
        return await self._client.lost()

    def abort(self, reason: str) -> None:
        """Give the connection up: `lost` returns now."""
        self._client.abort(reason)

    async def close(self) -> None:
        """Say goodbye where possible and free every task and socket."""
        await self._client.close()


class _Client(aiomqtt.Client):
    """aiomqtt's client, with the answers that it throws away handed on."""

    def __init__(
        self,
        settings: BusSettings,
        endpoint: Endpoint,
        will: Message | None,
        handlers: LinkHandlers,
    ) -> None:
        is_5 = settings.protocol == MQTT_5
        keeps_session = settings.session_expiry_s > 0
        properties = None
        if is_5:
            properties = _empty_properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = settings.session_expiry_s
            properties.MaximumPacketSize = 2 * BUS_PACKET_MAX_BYTES
        super().__init__(
            endpoint.host,
            endpoint.port,
            username=endpoint.username,
            password=endpoint.password,
            identifier=settings.client_id,
            protocol=aiomqtt.ProtocolVersion.V5 if is_5 else aiomqtt.ProtocolVersion.V311,
            will=_will_for_aiomqtt(will, is_5=is_5),
            clean_session=None if is_5 else not keeps_session,
            clean_start=not keeps_session if is_5 else paho.MQTT_CLEAN_START_FIRST_ONLY,
            keepalive=settings.keepalive_s,
            timeout=BUS_CONNECT_TIMEOUT_S,
            properties=properties,
            # 0 is "no limit": the outbox keeps both bounds, and paho scans its queue per answer.
            max_inflight_messages=0,
            max_queued_outgoing_messages=BUS_OUTBOUND_MAX_MESSAGES,
        )
        # paho formats a debug line per packet even where nobody reads them.
        self._client.disable_logger()
        self._client.on_socket_unregister_write = None
        self._handlers = handlers
        self._is_5 = is_5
        self._tickets: dict[int, Ticket] = {}
        self._socket: _BlockSocket | None = None
        self._writes_when_ready = False
        self._info: LinkInfo | None = None
        self._ended: asyncio.Future[str] = self._loop.create_future()

    async def connect_over(self, connected: socket.socket) -> LinkInfo:
        self._socket = _BlockSocket(connected)
        # paho opens its socket in this method; it may block for seconds and must not here.
        self._client._create_socket_connection = lambda: self._socket  # type: ignore[method-assign,assignment,return-value] # noqa: SLF001 - paho has no public way to bring a socket
        self._client_connect()
        verdicts: list[asyncio.Future[Any]] = [self._connected, self._ended]
        await asyncio.wait(verdicts, return_when=asyncio.FIRST_COMPLETED)
        if self._connected.done():
            self._connected.result()
        if self._info is None:
            raise aiomqtt.MqttError(self._ended.result())
        return self._info

    def send(self, ticket: Ticket) -> None:
        message = ticket.message
        info = self._client.publish(
            message.topic,
            message.payload,
            message.qos,
            message.retain,
            _publish_properties(message) if self._is_5 else None,
        )
        if info.rc != paho.MQTT_ERR_SUCCESS:
            raise BusUnavailable(paho.error_string(info.rc))
        # Identifiers come round after 65,535 publishes, long after the acknowledgement is due.
        self._tickets[info.mid] = ticket

    async def lost(self) -> str:
        await asyncio.wait([self._ended])
        return self._ended.result()

    def abort(self, reason: str) -> None:
        self._end(reason)
        if self._socket is not None:
            self._socket.shut()
            self._read_ready()

    async def close(self) -> None:
        if self._client.is_connected() and not self._ended.done():
            self._client.disconnect()
            await asyncio.wait([self._ended], timeout=BUS_CLOSE_TIMEOUT_S)
        self.abort("closed")
        if self._socket is not None:
            self._socket.close()
        if self._misc_task is not None:
            self._misc_task.cancel()
            await asyncio.wait([self._misc_task])
        for future in (self._connected, self._disconnected):
            # aiomqtt leaves its verdicts here; unread ones are reported as lost exceptions.
            if future.done() and not future.cancelled():
                future.exception()

    def _end(self, reason: str) -> None:
        if not self._ended.done():
            self._ended.set_result(reason)

    # --- what paho calls ----------------------------------------------------------------

    def _on_connect(
        self,
        client: paho.Client,
        userdata: Any,
        flags: paho.ConnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        if self._info is None and not reason_code.is_failure:
            told = vars(properties) if properties is not None else {}
            window = told.get("ReceiveMaximum", 65_535) if self._is_5 else WINDOW_311
            self._info = LinkInfo(
                session_present=flags.session_present,
                window=min(BUS_INFLIGHT_MAX_MESSAGES, window),
                packet_max_bytes=told.get("MaximumPacketSize"),
            )
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def _on_disconnect(
        self,
        client: paho.Client,
        userdata: Any,
        flags: paho.DisconnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        # MQTT 3.1.1's "unacceptable protocol version" comes here, not to `_on_connect`.
        who = "the broker said" if flags.is_disconnect_packet_from_server else "connection lost"
        self._end(f"{who}: {reason_code}")
        super()._on_disconnect(client, userdata, flags, reason_code, properties)

    def _on_publish(
        self,
        client: paho.Client,  # noqa: ARG002 - paho's signature
        userdata: Any,  # noqa: ARG002 - paho's signature
        mid: int,
        reason_code: ReasonCode,
        properties: Properties,  # noqa: ARG002 - paho's signature
    ) -> None:
        ticket = self._tickets.pop(mid, None)
        if ticket is None:
            return
        code = reason_code.value
        self._handlers.settle(ticket, code, str(reason_code) if code else "")

    def _on_message(
        self,
        client: paho.Client,  # noqa: ARG002 - paho's signature
        userdata: Any,  # noqa: ARG002 - paho's signature
        message: paho.MQTTMessage,
    ) -> None:
        properties = None if message.properties is None else vars(message.properties)
        if properties is None:
            self._handlers.deliver(
                Message(
                    topic=message.topic,
                    payload=bytes(message.payload),
                    qos=message.qos,
                    retain=bool(message.retain),
                )
            )
            return
        self._handlers.deliver(
            Message(
                topic=message.topic,
                payload=bytes(message.payload),
                qos=message.qos,
                retain=bool(message.retain),
                expiry_s=properties.get("MessageExpiryInterval"),
                content_type=properties.get("ContentType"),
                traceparent=dict(properties.get("UserProperty", ())).get(_TRACEPARENT),
                response_topic=properties.get("ResponseTopic"),
                correlation=properties.get("CorrelationData"),
            )
        )

    # --- the socket ----------------------------------------------------------------------

    def _on_socket_open(
        self,
        client: paho.Client,  # noqa: ARG002 - paho's signature
        userdata: Any,  # noqa: ARG002 - paho's signature
        sock: PahoSocket,
    ) -> None:
        self._loop.add_reader(sock.fileno(), self._read_ready)
        self._misc_task = self._loop.create_task(self._misc_loop())

    def _on_socket_close(self, client: paho.Client, userdata: Any, sock: PahoSocket) -> None:
        self._loop.remove_writer(sock.fileno())
        super()._on_socket_close(client, userdata, sock)

    def _on_socket_register_write(
        self,
        client: paho.Client,  # noqa: ARG002 - paho's signature
        userdata: Any,  # noqa: ARG002 - paho's signature
        sock: PahoSocket,  # noqa: ARG002 - paho's signature
    ) -> None:
        # Once per turn of the loop: what is published meanwhile leaves in the same write.
        self._loop.call_soon(self._flush)

    def _read_ready(self) -> None:
        block = self._socket
        if block is None or block.is_closed:
            return
        block.fill()
        if block.failure is not None:
            # With TLS 1.3 a refused certificate is heard of here, after the handshake.
            self._end(f"connection lost: {block.failure}")
        try:
            while block.is_readable:
                if self._client.loop_read() != paho.MQTT_ERR_SUCCESS:
                    return
                if block.has_pending:
                    # No event of the socket will tell of what TLS has read already.
                    block.fill()
        except Exception as error:  # noqa: BLE001 - paho lets decoding errors of any type out
            self._break(f"unreadable packet: {error}")

    def _flush(self) -> None:
        block = self._socket
        if block is None or block.is_closed:
            return
        self._client.loop_write()
        # A goodbye closes the socket from inside paho.
        if self._ended.done():
            return
        if not block.flush():
            self._break("connection lost while writing")
            return
        wants_more = block.has_unwritten or self._client.want_write()
        if wants_more and not self._writes_when_ready:
            self._loop.add_writer(block.fileno(), self._flush)
        elif self._writes_when_ready and not wants_more:
            self._loop.remove_writer(block.fileno())
        self._writes_when_ready = wants_more

    def _break(self, reason: str) -> None:
        self._end(reason)
        if self._socket is not None:
            self._socket.shut()
            # paho sees the end of the stream, closes its side and calls back.
            self._client.loop_read()


class _BlockSocket:
    """A connected socket in the shape paho wants, moving blocks instead of single packets.

    `recv` reads only what `fill` has fetched, so paho stops when a block is used up and the
    event loop gets its turn; `send` gathers until `flush`.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._block = b""
        self._position = 0
        self._at_end = False
        self._unwritten = bytearray()
        self.is_closed = False
        self.failure: OSError | None = None
        """What broke the connection, where it was more than its end."""

    @property
    def is_readable(self) -> bool:
        return not self.is_closed and (self._position < len(self._block) or self._at_end)

    @property
    def has_pending(self) -> bool:
        """Whether the block is used up and TLS holds more that it has decrypted."""
        return (
            isinstance(self._socket, ssl.SSLSocket)
            and not self._at_end
            and self._position >= len(self._block)
            and self._socket.pending() > 0
        )

    @property
    def has_unwritten(self) -> bool:
        return bool(self._unwritten)

    def fill(self) -> None:
        """Fetch the next block once the last is used up."""
        if self._at_end or self._position < len(self._block):
            return
        try:
            self._block = self._socket.recv(_READ_BYTES)
        except _NOT_NOW:
            return
        except OSError as error:
            self._block = b""
            self.failure = error
        self._position = 0
        self._at_end = not self._block

    def recv(self, buffer_size: int) -> bytes:
        start = self._position
        if start >= len(self._block):
            if self._at_end:
                return b""
            raise BlockingIOError
        self._position = min(len(self._block), start + buffer_size)
        return self._block[start : self._position]

    def send(self, buffer: bytes | bytearray) -> int:
        if len(self._unwritten) >= _WRITE_BUFFER_BYTES:
            raise BlockingIOError
        self._unwritten += buffer
        return len(buffer)

    def flush(self) -> bool:
        """Write what was gathered as far as it goes; False when the connection is broken."""
        while self._unwritten:
            try:
                written = self._socket.send(self._unwritten)
            except _NOT_NOW:
                return True
            except OSError:
                return False
            del self._unwritten[:written]
        return True

    def shut(self) -> None:
        """Nothing more in either direction."""
        self._at_end = True
        self._block = b""
        self._position = 0
        self._unwritten.clear()

    def close(self) -> None:
        if not self.is_closed:
            self.flush()
            self.is_closed = True
            self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def setblocking(self, flag: bool) -> None:
        self._socket.setblocking(flag)


async def _connected_socket(endpoint: Endpoint) -> socket.socket:
    """A connected TCP socket without Nagle's delay. Raises OSError."""
    loop = asyncio.get_running_loop()
    failure: OSError = ConnectionError("the name has no address")
    for family, address in await _addresses(endpoint, loop):
        candidate = socket.socket(family, socket.SOCK_STREAM)
        try:
            candidate.setblocking(False)
            candidate.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(candidate, address)
        except OSError as error:
            candidate.close()
            failure = error
        except BaseException:
            candidate.close()
            raise
        else:
            return candidate
    raise failure


async def _addresses(
    endpoint: Endpoint, loop: asyncio.AbstractEventLoop
) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    try:
        literal = ipaddress.ip_address(endpoint.host)
    except ValueError:
        found = await loop.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
        return [(family, address) for family, _, _, _, address in found]
    # An address needs no resolver, and the resolver would cost a thread.
    family = socket.AF_INET if literal.version == 4 else socket.AF_INET6  # noqa: PLR2004 - IPv4
    return [(family, (endpoint.host, endpoint.port))]


def _code_of(answer: object) -> tuple[int, str]:
    """(MQTT 5 reason code, its name) of paho's and aiomqtt's several kinds of answers."""
    if isinstance(answer, ReasonCode):
        return answer.value, str(answer)
    code = cast("int", answer)
    return code, paho.connack_string(code)


def _properties(message: Message, packet_type: int) -> Properties | None:
    """Paho's MQTT 5 properties of `message`, None when it has none."""
    properties: Properties | None = None
    fields = (
        ("MessageExpiryInterval", message.expiry_s),
        ("ContentType", message.content_type),
        ("ResponseTopic", message.response_topic),
        ("CorrelationData", message.correlation),
        (
            "UserProperty",
            None if message.traceparent is None else (_TRACEPARENT, message.traceparent),
        ),
    )
    for name, value in fields:
        if value is not None:
            properties = properties or _empty_properties(packet_type)
            setattr(properties, name, value)
    return properties


class _Packed(Properties):
    """Properties that paho has encoded before; encoding costs it up to 90 us a message."""

    def __init__(self, packed: bytes) -> None:
        # Not paho's constructor: it builds two tables that only encoding needs.
        object.__setattr__(self, "_packed", packed)

    def pack(self) -> bytes:
        packed: bytes = object.__getattribute__(self, "_packed")
        return packed


def _pack(properties: Properties) -> bytes:
    return bytes(properties.pack())  # type: ignore[no-untyped-call] # paho has no types here


@lru_cache(maxsize=BUS_PROPERTY_SETS_KEPT_MAX)
def _packed(*fields: Any) -> _Packed | None:
    properties = _properties(Message("", b"", 1, False, *fields), PacketTypes.PUBLISH)
    return None if properties is None else _Packed(_pack(properties))


def _publish_properties(message: Message) -> _Packed | None:
    return _packed(
        message.expiry_s,
        message.content_type,
        message.traceparent,
        message.response_topic,
        message.correlation,
    )


def _empty_properties(packet_type: int) -> Properties:
    return Properties(packet_type)  # type: ignore[no-untyped-call] # paho has no types here


def _will_for_aiomqtt(will: Message | None, *, is_5: bool) -> aiomqtt.Will | None:
    if will is None:
        return None
    return aiomqtt.Will(
        will.topic,
        will.payload,
        will.qos,
        will.retain,
        _properties(will, PacketTypes.WILLMESSAGE) if is_5 else None,
    )
