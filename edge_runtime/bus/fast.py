"""The bus over mqttium: the dispatcher's hot path (docs/adr/0001-mqtt-adapters.md).

Invariants
- Messages come by callback and are acknowledged when the callback returns: no task, no queue
  of the library's own.
- Publishes leave in the order they came. `publish_nowait` is tried first; where mqttium is busy
  and raises FlowControlError, that message and all after it go through a task that awaits.
- mqttium's windows and queues are wide open, since the outbox keeps them; in particular the
  announced Receive Maximum is 65,535, for with less a burst ends the connection.

Deliberately absent: mqttium's own reconnection (a link lives once), its stores and WebSockets.
"""

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from mqttium import (
    BrokerDisconnectError,
    ConnectRefusedError,
    FlowControlError,
    MQTTError,
    MQTTProtocolVersion,
    PublishRejectedError,
    SubscribeError,
)
from mqttium.api import AsyncClient
from mqttium.api.models import PublishMessage, PublishReceipt
from mqttium.types import Message as Received
from mqttium.types import Properties
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from edge_runtime.bus.link import LinkHandlers, LinkInfo, parse_url
from edge_runtime.bus.outbox import NO_MATCHING_SUBSCRIBERS, REFUSED_FROM, Ticket
from edge_runtime.bus.port import (
    MQTT_5,
    WINDOW_311,
    BusRefused,
    BusSettings,
    BusUnavailable,
    Message,
)
from edge_runtime.bus.reconnecting import ReconnectingBus
from edge_runtime.bus.tls import refusal_hint, tls_context
from edge_runtime.contract.limits import (
    BUS_CLOSE_TIMEOUT_S,
    BUS_CONNECT_TIMEOUT_S,
    BUS_INBOUND_MAX_MESSAGES,
    BUS_INFLIGHT_MAX_MESSAGES,
    BUS_OUTBOUND_MAX_BYTES,
    BUS_OUTBOUND_MAX_MESSAGES,
    BUS_PACKET_MAX_BYTES,
    BUS_PROPERTY_SETS_KEPT_MAX,
)

_RECEIVE_MAXIMUM: Final = 65_535
_BROKEN: Final = (MQTTError, OSError)
"""How mqttium says that a connection broke: a reset comes out as the plain OSError it was."""
_TRACEPARENT: Final = "traceparent"
_CODES_OF_311: Final = {1: 0x84, 2: 0x85, 3: 0x88, 4: 0x86, 5: 0x87}
"""MQTT 3.1.1 connect return code -> MQTT 5 reason code."""


class MqttiumBus(ReconnectingBus):
    """The `Bus` port on mqttium; see `BusSettings` for what it needs."""

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
            MqttiumLink,
            rng=rng,
            inbound_max_messages=inbound_max_messages,
            outbound_max_messages=outbound_max_messages,
        )


class MqttiumLink:
    """One connection made by mqttium."""

    def __init__(self, settings: BusSettings, will: Message | None, handlers: LinkHandlers) -> None:
        self._endpoint = parse_url(settings.url)
        self._handlers = handlers
        self._tls = settings.tls
        self._is_5 = settings.protocol == MQTT_5
        self._client = _client_for(settings, will)
        self._client.on_message = self._received
        self._client.on_disconnect = self._disconnected
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._unheard: set[int | None] = set()
        self._waiting: deque[Ticket] = deque()
        self._answered: list[tuple[Ticket, PublishReceipt]] = []
        self._sender: asyncio.Task[None] | None = None
        self._watch_acknowledgements()

    async def connect(self) -> LinkInfo:
        """Connect. Raises BusRefused or BusUnavailable."""
        endpoint = self._endpoint
        context = tls_context(self._tls) if endpoint.is_tls else None
        try:
            answer = await self._client.connect(endpoint.host, endpoint.port, ssl=context)
        except ConnectRefusedError as error:
            code = error.reason_code
            if not self._is_5:
                code = _CODES_OF_311.get(code, code)
            raise BusRefused("connect", "", code, _name(PacketTypes.CONNACK, code)) from error
        except _BROKEN as error:
            hint = refusal_hint(self._tls, error) if endpoint.is_tls else ""
            raise BusUnavailable(f"{endpoint.address}: {error}{hint}") from error
        negotiated = self._client.negotiated
        window = negotiated.receive_maximum if self._is_5 else WINDOW_311
        return LinkInfo(
            session_present=answer.session_present,
            window=min(BUS_INFLIGHT_MAX_MESSAGES, window),
            packet_max_bytes=negotiated.maximum_packet_size,
        )

    async def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        """Subscribe to all of `filters`. Raises BusRefused, BusUnavailable."""
        try:
            await self._client.subscribe(filters)
        except SubscribeError as error:
            codes = error.result.reason_codes
            for (topic_filter, _), code in zip(filters, codes, strict=True):
                if code >= REFUSED_FROM:
                    reason = _name(PacketTypes.SUBACK, code)
                    raise BusRefused("subscribe", topic_filter, code, reason) from error
        except _BROKEN as error:
            raise BusUnavailable(f"subscribe: {error}") from error

    def send(self, ticket: Ticket) -> None:
        """Hand one publish to mqttium. Raises BusUnavailable."""
        if self._sender is None:
            message = ticket.message
            try:
                receipt = self._client.publish_nowait(
                    message.topic,
                    message.payload,
                    qos=message.qos,
                    retain=message.retain,
                    properties=_properties(message) if self._is_5 else None,
                )
            except FlowControlError:
                self._sender = asyncio.create_task(self._send_waiting(), name="bus sender")
            except _BROKEN as error:
                raise BusUnavailable(str(error)) from error
            else:
                self._follow(ticket, receipt)
                return
        self._waiting.append(ticket)

    async def lost(self) -> str:
        """Wait until the connection has ended by itself; why."""
        await asyncio.wait([self._ended])
        return self._ended.result()

    def abort(self, reason: str) -> None:
        """Give the connection up: `lost` returns now."""
        if not self._ended.done():
            self._ended.set_result(reason)

    async def close(self) -> None:
        """Say goodbye where possible and free every task and socket."""
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.wait([self._sender])
        with contextlib.suppress(*_BROKEN):
            async with asyncio.timeout(BUS_CLOSE_TIMEOUT_S):
                await self._client.disconnect()
        # mqttium reports the disconnect from a task that it does not wait for.
        reporter = self._client._lifecycle_hooks.task  # noqa: SLF001 - no public way to wait
        if reporter is not None:
            await asyncio.wait([reporter], timeout=BUS_CLOSE_TIMEOUT_S)

    # --- inside -----------------------------------------------------------------------------

    def _watch_acknowledgements(self) -> None:
        """Note "no matching subscribers": mqttium tells refusals only."""
        outbound = self._client._engine.outbound  # noqa: SLF001 - no public way to these codes
        decode = outbound._decode_puback  # noqa: SLF001 - as above

        def decode_and_note(remaining: bytes) -> tuple[int, int, Properties | None]:
            answer = decode(remaining)
            if answer[1] == NO_MATCHING_SUBSCRIBERS:
                self._unheard.add(answer[0])
            return answer

        outbound._decode_puback = decode_and_note  # noqa: SLF001 - as above

    async def _send_waiting(self) -> None:
        while self._waiting:
            ticket = self._waiting[0]
            message = ticket.message
            try:
                receipt = await self._client.publish(
                    message.topic,
                    message.payload,
                    qos=message.qos,
                    retain=message.retain,
                    properties=_properties(message) if self._is_5 else None,
                )
            except _BROKEN:
                # The connection is going; the outbox fails every ticket when it is gone.
                break
            self._waiting.popleft()
            self._follow(ticket, receipt)
        self._sender = None

    def _follow(self, ticket: Ticket, receipt: PublishReceipt) -> None:
        if ticket.message.qos and not receipt.is_done():
            # As `add_done_callback`, without a future, a partial and a turn of the loop for each.
            receipt._waiters = [_Done(self, ticket, receipt)]  # type: ignore[list-item]  # noqa: SLF001 - it calls `done` and `set_result`
        elif ticket.message.qos:
            self.answered(ticket, receipt)
        else:
            # Handed over. The turn of the loop lets the writer write before more is published.
            asyncio.get_running_loop().call_soon(self._handlers.settle, ticket, 0, "")

    def answered(self, ticket: Ticket, receipt: PublishReceipt) -> None:
        """A publish has its answer, which is told when mqttium has done with this batch of them."""
        if not self._answered:
            asyncio.get_running_loop().call_soon(self._tell_answered)
        self._answered.append((ticket, receipt))

    def _tell_answered(self) -> None:
        answered, self._answered = self._answered, []
        for ticket, receipt in answered:
            self._acknowledged(ticket, receipt)

    def _acknowledged(self, ticket: Ticket, receipt: PublishReceipt) -> None:
        match receipt.exception():
            case None if receipt.mid in self._unheard:
                self._unheard.discard(receipt.mid)
                self._handlers.settle(ticket, NO_MATCHING_SUBSCRIBERS, "")
            case None:
                self._handlers.settle(ticket, 0, "")
            case PublishRejectedError(reason_code=code):
                self._handlers.settle(ticket, code, _name(PacketTypes.PUBACK, code))
            case _:
                # The connection broke; the outbox fails the ticket with its reason.
                return

    def _received(self, message: Received) -> None:
        told = message.properties
        if told is None or not told.values:
            self._handlers.deliver(
                Message(message.topic, message.payload, int(message.qos), message.retain)
            )
            return
        self._handlers.deliver(
            Message(
                message.topic,
                message.payload,
                int(message.qos),
                message.retain,
                expiry_s=told.get("message_expiry_interval"),
                content_type=told.get("content_type"),
                traceparent=dict(told.get("user_property", ())).get(_TRACEPARENT),
                response_topic=told.get("response_topic"),
                correlation=told.get("correlation_data"),
            )
        )

    def _disconnected(self, cause: BaseException | None) -> None:
        if self._ended.done():
            return
        if isinstance(cause, BrokerDisconnectError):
            name = _name(PacketTypes.DISCONNECT, cause.reason_code)
            self._ended.set_result(f"the broker said: {name}")
        else:
            self._ended.set_result("connection lost")


class _Done:
    """What a receipt takes for a future that waits for it."""

    __slots__ = ("_link", "_receipt", "_ticket")

    def __init__(self, link: MqttiumLink, ticket: Ticket, receipt: PublishReceipt) -> None:
        self._link = link
        self._ticket = ticket
        self._receipt = receipt

    def done(self) -> bool:
        return False

    def set_result(self, _: None) -> None:
        self._link.answered(self._ticket, self._receipt)


def _client_for(settings: BusSettings, will: Message | None) -> AsyncClient:
    is_5 = settings.protocol == MQTT_5
    endpoint = parse_url(settings.url)
    return AsyncClient(
        settings.client_id,
        protocol=MQTTProtocolVersion.MQTTv5 if is_5 else MQTTProtocolVersion.MQTTv311,
        clean_start=settings.session_expiry_s == 0,
        keepalive=settings.keepalive_s,
        username=endpoint.username,
        password=endpoint.password,
        connect_properties=(
            Properties({"session_expiry_interval": settings.session_expiry_s}) if is_5 else None
        ),
        will=None
        if will is None
        else PublishMessage(
            will.topic,
            will.payload,
            will.qos,
            will.retain,
            _properties(will) if is_5 else None,
        ),
        maximum_packet_size=2 * BUS_PACKET_MAX_BYTES,
        max_inbound_inflight=_RECEIVE_MAXIMUM,
        max_outbound_inflight=BUS_INFLIGHT_MAX_MESSAGES,
        max_unacknowledged_messages=None,
        max_unacknowledged_bytes=None,
        max_write_queue_messages=2 * BUS_OUTBOUND_MAX_MESSAGES,
        max_write_queue_bytes=2 * BUS_OUTBOUND_MAX_BYTES,
        message_delivery="callback",
        connect_timeout=BUS_CONNECT_TIMEOUT_S,
        subscribe_timeout=BUS_CONNECT_TIMEOUT_S,
    )


def _properties(message: Message) -> Properties | None:
    """Mqttium's MQTT 5 properties of `message`, None when it has none."""
    return _properties_of(
        message.expiry_s,
        message.content_type,
        message.response_topic,
        message.correlation,
        message.traceparent,
    )


@lru_cache(maxsize=BUS_PROPERTY_SETS_KEPT_MAX)
def _properties_of(
    expiry_s: int | None,
    content_type: str | None,
    response_topic: str | None,
    correlation: bytes | None,
    traceparent: str | None,
) -> Properties | None:
    """Made once for a set of values: mqttium keeps their encoding with them."""
    values: dict[str, object] = {}
    if expiry_s is not None:
        values["message_expiry_interval"] = expiry_s
    if content_type is not None:
        values["content_type"] = content_type
    if response_topic is not None:
        values["response_topic"] = response_topic
    if correlation is not None:
        values["correlation_data"] = correlation
    if traceparent is not None:
        values["user_property"] = (_TRACEPARENT, traceparent)
    return Properties(values) if values else None


def _name(packet_type: int, code: int) -> str:
    """The name of an MQTT 5 reason code; paho knows them all."""
    try:
        return str(ReasonCode(packet_type, identifier=code))
    except KeyError:
        return "unnamed reason"
