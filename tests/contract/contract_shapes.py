"""What the contract tests know of messages: their plain form, evolved forms, random ones.

Written against MessagePack's own shapes (lists, maps), not against our encoder: a test that
compares with these does not ask the code under test what is right.
"""

import typing
from collections.abc import Callable, Iterator
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any

import msgpack
import msgspec
from hypothesis import strategies as st

from edge_runtime.contract import codec, messages

CAR_DECODERS: dict[str, Callable[[], codec.WireDecoder[Any]]] = {
    "status": codec.status_decoder,
    "state": codec.state_decoder,
    "acks": codec.acks_decoder,
    "results": codec.results_decoder,
    "work": codec.work_decoder,
    "control": codec.control_decoder,
    "desired": codec.desired_decoder,
    "signed": codec.signed_decoder,
    "host": codec.host_decoder,
}

DECODER_OF: dict[type[Any], str] = {
    messages.Birth: "status",
    messages.Offline: "status",
    messages.VehicleState: "state",
    messages.Acks: "acks",
    messages.Results: "results",
    messages.WorkOffer: "work",
    messages.Control: "control",
    messages.Desired: "desired",
    messages.Signed: "signed",
    messages.HostStatus: "host",
}

PAYLOAD_TYPES: tuple[type[Any], ...] = (
    *DECODER_OF,
    messages.JobResults,
    messages.JobStatus,
    messages.FleetAggregate,
    messages.FetchSince,
    messages.RequestRefused,
)

PlainOf = Callable[[Any], Any]


def decode(message_type: type[Any], payload: bytes) -> Any:
    """Decode as the receiver of that message does."""
    if message_type is messages.FetchSince:
        return codec.decode_request(payload)
    if message_type in DECODER_OF:
        return CAR_DECODERS[DECODER_OF[message_type]]().decode(payload)
    return codec.decode_public(payload)


def plain(value: Any, fields: PlainOf | None = None) -> Any:
    """What a MessagePack reader without our schema makes of `value`.

    `fields` changes the list or map of one struct after its parts are made.
    """
    match value:
        case msgspec.Raw():
            return msgpack.unpackb(bytes(value))
        case Enum():
            return value.value
        case msgspec.Struct():
            made = _plain_struct(value, fields)
            return fields((value, made)) if fields else made
        case tuple() | list():
            return [plain(part, fields) for part in value]
        case _:
            return value


def _plain_struct(value: msgspec.Struct, fields: PlainOf | None) -> Any:
    config = value.__struct_config__
    parts = {f.name: getattr(value, f.name) for f in msgspec.structs.fields(type(value))}
    if config.array_like:
        tag = [] if config.tag is None else [config.tag]
        return [*tag, *(plain(part, fields) for part in parts.values())]
    tagged = {} if config.tag is None else {config.tag_field: config.tag}
    if config.omit_defaults:
        defaults = {f.name: f.default for f in msgspec.structs.fields(type(value))}
        parts = {name: part for name, part in parts.items() if part != defaults[name]}
    return {**tagged, **{name: plain(part, fields) for name, part in parts.items()}}


def structs_in(value: Any) -> Iterator[msgspec.Struct]:
    """`value`, where it is a struct, and every struct inside it."""
    if isinstance(value, msgspec.Struct):
        yield value
        for name in value.__struct_fields__:
            yield from structs_in(getattr(value, name))
    elif isinstance(value, tuple):
        for part in value:
            yield from structs_in(part)


def enums_in(value: Any) -> Iterator[Enum]:
    """Every reason inside `value`."""
    for struct in structs_in(value):
        for name in struct.__struct_fields__:
            part = getattr(struct, name)
            if isinstance(part, Enum):
                yield part


def evolved(kind: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """Tomorrow's version of a message: one more field, last, with a default."""
    config = kind.__struct_config__
    return msgspec.defstruct(
        kind.__name__,
        [("added_tomorrow", int, 7)],
        bases=(kind,),
        tag=config.tag,
        tag_field=config.tag_field,
        array_like=config.array_like,
        frozen=True,
        kw_only=True,
    )


# --- random messages -----------------------------------------------------------------------

_json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
_raws = (_json_values | st.binary(max_size=16)).map(lambda v: msgspec.Raw(msgpack.packb(v)))


def values_of(kind: Any, meta: msgspec.Meta | None = None) -> st.SearchStrategy[Any]:
    """Random values of a contract type, within its declared bounds."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return values_of(arguments[0], arguments[1])
    if origin in (UnionType, typing.Union):
        return st.one_of(*(values_of(part) for part in arguments))
    if origin is tuple:
        least, most = (meta.min_length or 0, min(3, meta.max_length or 3)) if meta else (0, 3)
        return st.lists(values_of(arguments[0]), min_size=least, max_size=most).map(tuple)
    if issubclass(kind, Enum):
        return st.sampled_from(kind)
    if issubclass(kind, msgspec.Struct):
        return _structs_of(kind)
    if issubclass(kind, tuple):
        parts = typing.get_type_hints(kind, include_extras=True).values()
        return st.tuples(*(values_of(part) for part in parts)).map(lambda made: kind(*made))
    return _scalars_of(kind, meta or msgspec.Meta())


def _structs_of(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    made = {f.name: values_of(f.type) for f in msgspec.structs.fields(kind)}
    return st.fixed_dictionaries(made).map(lambda parts: kind(**parts))


def _scalars_of(kind: type[Any], meta: msgspec.Meta) -> st.SearchStrategy[Any]:
    if kind is NoneType:
        return st.none()
    if kind is bool:
        return st.booleans()
    if kind is msgspec.Raw:
        return _raws
    if kind is int:
        least = -(2**63) if meta.ge is None else int(meta.ge)
        return st.integers(least, 2**63 - 1 if meta.le is None else int(meta.le))
    if kind is float:
        return st.floats(meta.ge, meta.le, allow_nan=False, allow_infinity=False)
    if kind is str and meta.pattern:
        return st.from_regex(meta.pattern, fullmatch=True)
    least, most = meta.min_length or 0, min(12, meta.max_length or 12)
    return (st.text if kind is str else st.binary)(min_size=least, max_size=most)  # type: ignore[operator]  # both take the same sizes
