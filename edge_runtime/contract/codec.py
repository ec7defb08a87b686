"""Bounded, typed encoding and decoding of every message.

Decoding never raises anything but `Rejected` with a countable reason: the size is checked
before the bytes are looked at, types and lengths while decoding, and one bad element of a
batch (a newer peer's tag) is skipped and counted while the rest of the batch is used.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

import msgspec

from edge_runtime.contract import limits
from edge_runtime.contract.errors import Rejected, RejectionReason
from edge_runtime.contract.messages import (
    Acks,
    Chunk,
    Control,
    Desired,
    FetchSince,
    HostStatus,
    Order,
    PublicMessage,
    Results,
    Signed,
    Status,
    UnitOffer,
    VehicleState,
    Verdict,
    WorkOffer,
)

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
encode: Final[Callable[[Any], bytes]] = _encoder.encode
"""Any contract message to MessagePack bytes."""


def encode_signed(message: Any) -> bytes:
    """A `dn` message in its envelope; the signature stays empty until signing is built."""
    return _encoder.encode(Signed(key_id="", signature=b"", body=_encoder.encode(message)))


@dataclass(slots=True)
class CodecCounters:
    """What the codec let pass on purpose: newer peers' extra fields and batch elements."""

    trailing_fields: int = 0
    skipped_elements: int = 0


_FIXARRAY_FIRST, _FIXARRAY_LAST = 0x90, 0x9F


@dataclass(slots=True)
class WireDecoder(Generic[T]):
    """Decodes one topic's messages.

    `element_type` and `batch_field` describe a batch message whose elements are decoded one by
    one when decoding it whole fails.
    """

    message_type: Any
    tags: frozenset[str]
    field_counts: dict[str, int]
    batch: "_Batch | None" = None
    counters: CodecCounters = field(default_factory=CodecCounters)
    _decoder: msgspec.msgpack.Decoder[Any] = field(init=False)

    def __post_init__(self) -> None:
        self._decoder = msgspec.msgpack.Decoder(self.message_type)

    def decode(self, payload: bytes) -> T:
        """The message, or `Rejected` (oversize, malformed, unknown_tag or wrong_type)."""
        if len(payload) > limits.MESSAGE_MAX_BYTES:
            raise Rejected(RejectionReason.OVERSIZE, f"{len(payload)} bytes")
        try:
            message: T = self._decoder.decode(payload)
        except msgspec.ValidationError as error:
            return self._decode_elements(payload, error)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Rejected(RejectionReason.MALFORMED, str(error)[:200]) from None
        self._count_trailing(payload, message)
        return message

    def _count_trailing(self, payload: bytes, message: T) -> None:
        head = payload[0]
        if _FIXARRAY_FIRST <= head <= _FIXARRAY_LAST:
            known = self.field_counts[type(message).__name__]
            if head - _FIXARRAY_FIRST > known:
                self.counters.trailing_fields += 1

    def _decode_elements(self, payload: bytes, error: msgspec.ValidationError) -> T:
        tag = _tag_of(payload)
        if tag is not None and tag not in self.tags:
            raise Rejected(RejectionReason.UNKNOWN_TAG, tag[:64]) from None
        if self.batch is None:
            raise Rejected(RejectionReason.WRONG_TYPE, str(error)[:200]) from None
        return self.batch.decode(payload, error, self.counters)  # type: ignore[no-any-return]  # the batch builds T


_tag_decoder = msgspec.msgpack.Decoder(list[msgspec.Raw])


def _tag_of(payload: bytes) -> str | None:
    """The first element of an array-like message where it is a string."""
    try:
        first = _tag_decoder.decode(payload)[0]
        return msgspec.msgpack.decode(first, type=str)
    except (msgspec.DecodeError, IndexError, UnicodeDecodeError, RecursionError):
        return None


class _Batch:
    """Second reading of a batch message: good elements are kept, bad ones counted."""

    def __init__(self, message_type: type[Any], batch_field: str, element_type: Any) -> None:
        self._message_type = message_type
        self._batch_field = batch_field
        fields = msgspec.structs.fields(message_type)
        lenient = msgspec.defstruct(
            f"Lenient{message_type.__name__}",
            [
                (f.encode_name, list[msgspec.Raw] if f.name == batch_field else f.type)
                for f in fields
            ],
            tag=message_type.__struct_config__.tag,
            array_like=True,
            frozen=True,
        )
        self._outer = msgspec.msgpack.Decoder(lenient)
        self._element = msgspec.msgpack.Decoder(element_type)
        self._max = 4 * limits.ORDERS_PER_MESSAGE_MAX

    def decode(
        self, payload: bytes, error: msgspec.ValidationError, counters: CodecCounters
    ) -> Any:
        try:
            outer = self._outer.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise Rejected(RejectionReason.WRONG_TYPE, str(error)[:200]) from None
        values = msgspec.structs.asdict(outer)
        raw = values.pop(self._batch_field)
        if len(raw) > self._max:
            raise Rejected(RejectionReason.WRONG_TYPE, f"{len(raw)} elements")
        good = []
        for element in raw:
            try:
                good.append(self._element.decode(element))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                counters.skipped_elements += 1
        if not good:
            raise Rejected(RejectionReason.WRONG_TYPE, str(error)[:200])
        return self._message_type(**values, **{self._batch_field: tuple(good)})


def _decoder(
    *types: type[Any], batch: tuple[str, Any] | None = None
) -> Callable[[], WireDecoder[Any]]:
    union: Any = types[0]
    for other in types[1:]:
        union |= other
    tags = frozenset(str(t.__struct_config__.tag) for t in types)
    counts = {t.__name__: len(t.__struct_fields__) + 1 for t in types}

    def make() -> WireDecoder[Any]:
        second = _Batch(types[0], *batch) if batch else None
        return WireDecoder(union, tags, counts, second)

    return make


status_decoder: Callable[[], WireDecoder[Status]] = _decoder(*Status.__args__)
state_decoder: Callable[[], WireDecoder[VehicleState]] = _decoder(VehicleState)
acks_decoder: Callable[[], WireDecoder[Acks]] = _decoder(Acks, batch=("verdicts", Verdict))
results_decoder: Callable[[], WireDecoder[Results]] = _decoder(Results, batch=("chunks", Chunk))
work_decoder: Callable[[], WireDecoder[WorkOffer]] = _decoder(WorkOffer, batch=("units", UnitOffer))
control_decoder: Callable[[], WireDecoder[Control]] = _decoder(Control, batch=("orders", Order))
desired_decoder: Callable[[], WireDecoder[Desired]] = _decoder(Desired)
signed_decoder: Callable[[], WireDecoder[Signed]] = _decoder(Signed)
host_decoder: Callable[[], WireDecoder[HostStatus]] = _decoder(HostStatus)

_public: msgspec.msgpack.Decoder[PublicMessage] = msgspec.msgpack.Decoder(PublicMessage)
_request = msgspec.msgpack.Decoder(FetchSince)


def decode_public(payload: bytes) -> PublicMessage:
    """A tenant-topic message; `Rejected` otherwise."""
    return _decode_map(_public, payload)


def decode_request(payload: bytes) -> FetchSince:
    """A tenant's request; `Rejected` otherwise."""
    return _decode_map(_request, payload)


def _decode_map(decoder: msgspec.msgpack.Decoder[T], payload: bytes) -> T:
    if len(payload) > limits.MESSAGE_MAX_BYTES:
        raise Rejected(RejectionReason.OVERSIZE, f"{len(payload)} bytes")
    try:
        return decoder.decode(payload)
    except msgspec.ValidationError as error:
        raise Rejected(RejectionReason.WRONG_TYPE, str(error)[:200]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected(RejectionReason.MALFORMED, str(error)[:200]) from None
