"""Bounded, typed encoding and decoding of every message.

Decoding never raises anything but `Rejected` with a countable reason: the size is checked
before the bytes are looked at, types and lengths while decoding, and one bad element of a
batch (a newer peer's tag) is skipped and counted while the rest of the batch is used.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Generic, Protocol, TypeVar, get_args

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


class Signer(Protocol):
    """A private key: what signs the body of every `dn` message.

    `key_id` names the public key that verifies; `sign` takes the raw bytes of a body.
    """

    @property
    def key_id(self) -> str:
        """First 8 bytes of SHA-256 of the public key, in hex."""
        ...

    def sign(self, body: bytes) -> bytes:
        """The Ed25519 signature of `body`, 64 bytes."""
        ...


def encode_signed(message: Any, signer: Signer | None = None) -> bytes:
    """A `dn` message in its envelope; without a signer its key id and signature are empty."""
    body = _encoder.encode(message)
    if signer is None:
        return _encoder.encode(Signed(key_id="", signature=b"", body=body))
    return _encoder.encode(Signed(key_id=signer.key_id, signature=signer.sign(body), body=body))


@dataclass(slots=True)
class CodecCounters:
    """What the codec let pass on purpose: a newer peer's fields, reasons and batch elements."""

    trailing_fields: int = 0
    unknown_reasons: int = 0
    skipped_elements: int = 0


@dataclass(slots=True)
class WireDecoder(Generic[T]):
    """Decodes one topic's messages and counts what a newer peer put in them.

    `tags` are the tags that `message_type` knows; `batch` is the second reading of a batch
    message whose elements are decoded one by one when decoding it whole fails.
    """

    message_type: Any
    tags: frozenset[str]
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
        # Peers of the same version encode a message to the same bytes: 0.3 us prove the usual case.
        known = _encoder.encode(message)
        if known != payload and len(payload) <= limits.NEWER_CONTENT_LOOK_MAX_BYTES:
            self._count_newer(payload, known)
        return message

    def _count_newer(self, payload: bytes, known: bytes) -> None:
        try:
            theirs, ours = msgspec.msgpack.decode(payload), msgspec.msgpack.decode(known)
            _count_differences(theirs, ours, self.counters)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # A field this side ignores, or takes as raw bytes, holds no readable value: that
            # there is one is all that can be said of it.
            self.counters.trailing_fields += 1

    def _decode_elements(self, payload: bytes, error: msgspec.ValidationError) -> T:
        tag = _tag_of(payload)
        if tag is not None and tag not in self.tags:
            raise Rejected(RejectionReason.UNKNOWN_TAG, tag[:64]) from None
        if self.batch is None:
            raise Rejected(RejectionReason.WRONG_TYPE, str(error)[:200]) from None
        return self.batch.decode(payload, error, self.counters)  # type: ignore[no-any-return]  # the batch builds T


def _count_differences(theirs: object, ours: object, counters: CodecCounters) -> None:
    """Walk what they sent beside what was understood; equal parts are skipped at C speed."""
    if isinstance(theirs, list) and isinstance(ours, list):
        counters.trailing_fields += max(0, len(theirs) - len(ours))
        for their_part, our_part in zip(theirs, ours, strict=False):
            if their_part != our_part:
                _count_differences(their_part, our_part, counters)
    elif isinstance(theirs, str) and ours == "unknown":
        counters.unknown_reasons += 1


_FIXARRAY: Final = range(0x90, 0xA0)
_FIXSTR: Final = range(0xA0, 0xC0)
_ARRAY_HEADER_BYTES: Final = {0xDC: 3, 0xDD: 5}


def _tag_of(payload: bytes | msgspec.Raw) -> str | None:
    """The first element of an array-like message where it is a short string.

    Reads the first bytes only: a tag is under 32 bytes, and a payload that claims or holds a
    million elements must not cost more than one that does not.
    """
    head = bytes(memoryview(payload)[:48])
    if not head:
        return None
    start = 1 if head[0] in _FIXARRAY else _ARRAY_HEADER_BYTES.get(head[0], len(head))
    if start >= len(head) or head[start] not in _FIXSTR:
        return None
    end = start + 1 + head[start] - _FIXSTR.start
    return head[start + 1 : end].decode(errors="replace") if end <= len(head) else None


class _Batch:
    """Second reading of a batch message: good elements are kept, bad ones counted."""

    def __init__(self, message_type: type[Any], batch_field: str, element_type: Any) -> None:
        self._message_type = message_type
        self._batch_field = batch_field
        lenient = msgspec.defstruct(
            f"Lenient{message_type.__name__}",
            [self._lenient_field(f) for f in msgspec.structs.fields(message_type)],
            tag=message_type.__struct_config__.tag,
            array_like=True,
            frozen=True,
        )
        self._outer = msgspec.msgpack.Decoder(lenient)
        self._element = msgspec.msgpack.Decoder(element_type)
        self._element_tags = _tags(get_args(element_type) or (element_type,))

    def _lenient_field(self, info: msgspec.structs.FieldInfo) -> tuple[str, Any, Any]:
        kind = info.type
        if info.name == self._batch_field:
            # The same bound, checked before anything is allocated for the elements.
            kind = Annotated[list[msgspec.Raw], *get_args(info.type)[1:]]
        return (info.name, kind, _default_of(info))

    def decode(
        self, payload: bytes, error: msgspec.ValidationError, counters: CodecCounters
    ) -> Any:
        try:
            outer = self._outer.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise Rejected(RejectionReason.WRONG_TYPE, str(error)[:200]) from None
        values = msgspec.structs.asdict(outer)
        good = []
        reason = RejectionReason.UNKNOWN_TAG
        for element in values.pop(self._batch_field):
            try:
                good.append(self._element.decode(element))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                counters.skipped_elements += 1
                if not self._is_newer(_tag_of(element)):
                    reason = RejectionReason.WRONG_TYPE
        if not good:
            raise Rejected(reason, str(error)[:200]) from None
        return self._message_type(**values, **{self._batch_field: tuple(good)})

    def _is_newer(self, tag: str | None) -> bool:
        return bool(self._element_tags) and tag is not None and tag not in self._element_tags


def _default_of(info: msgspec.structs.FieldInfo) -> Any:
    if info.default is not msgspec.NODEFAULT:
        return msgspec.field(default=info.default)
    if info.default_factory is not msgspec.NODEFAULT:
        return msgspec.field(default_factory=info.default_factory)
    return msgspec.field()


def _tags(types: Iterable[type[Any]]) -> frozenset[str]:
    tags = (t.__struct_config__.tag for t in types)
    return frozenset(str(tag) for tag in tags if tag is not None)


def _decoder(
    *types: type[Any], batch: tuple[str, Any] | None = None
) -> Callable[[], WireDecoder[Any]]:
    union: Any = types[0]
    for other in types[1:]:
        union |= other
    tags = _tags(types)

    def make() -> WireDecoder[Any]:
        second = _Batch(types[0], *batch) if batch else None
        return WireDecoder(union, tags, second)

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
_PUBLIC_TAGS: Final = _tags(get_args(PublicMessage))
_request = msgspec.msgpack.Decoder(FetchSince)
_REQUEST_TAGS: Final = _tags((FetchSince,))


class _TypeKey(msgspec.Struct):
    """What of a named map says its kind."""

    type: str


_type_key = msgspec.msgpack.Decoder(_TypeKey)


def decode_public(payload: bytes) -> PublicMessage:
    """A tenant-topic message; `Rejected` otherwise."""
    return _decode_map(_public, _PUBLIC_TAGS, payload)


def decode_request(payload: bytes) -> FetchSince:
    """A tenant's request; `Rejected` otherwise."""
    return _decode_map(_request, _REQUEST_TAGS, payload)


def _decode_map(
    decoder: msgspec.msgpack.Decoder[T], known_tags: frozenset[str], payload: bytes
) -> T:
    if len(payload) > limits.MESSAGE_MAX_BYTES:
        raise Rejected(RejectionReason.OVERSIZE, f"{len(payload)} bytes")
    try:
        return decoder.decode(payload)
    except msgspec.ValidationError as error:
        if _map_tag_of(payload) in {None, *known_tags}:
            raise Rejected(RejectionReason.WRONG_TYPE, str(error)[:200]) from None
        raise Rejected(RejectionReason.UNKNOWN_TAG, str(error)[:200]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected(RejectionReason.MALFORMED, str(error)[:200]) from None


def _map_tag_of(payload: bytes) -> str | None:
    """The `type` of a named map where it has one."""
    try:
        return _type_key.decode(payload).type
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
