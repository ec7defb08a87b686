"""Turn any bus message into something a person can read. Pure, and total: it never raises.

A message is recognised by its own tag, not by its topic, so a misplaced one still reads as what
it is. What no contract decoder takes is shown as plain MessagePack, as text, or as bytes.
Everything is abbreviated, and nothing reaches the terminal that could steer it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import msgspec

from edge_runtime.contract import codec, limits
from edge_runtime.contract.errors import Rejected
from edge_runtime.contract.messages import Signed

_TEXT_SHOWN_CHARS: Final = 120
_BYTES_SHOWN: Final = 8
_ELEMENTS_SHOWN: Final = 8
_DEPTH_SHOWN: Final = 12
_CAR_TOPIC_PARTS: Final = 7

_BY_TAG: Final[dict[str, codec.WireDecoder[Any]]] = {
    tag: decoder
    for decoder in (
        codec.status_decoder(),
        codec.state_decoder(),
        codec.acks_decoder(),
        codec.results_decoder(),
        codec.work_decoder(),
        codec.control_decoder(),
        codec.desired_decoder(),
        codec.signed_decoder(),
        codec.host_decoder(),
    )
    for tag in decoder.tags
}
_BY_TYPE: Final[dict[str, Callable[[bytes], Any]]] = {
    "results": codec.decode_public,
    "status": codec.decode_public,
    "fleet": codec.decode_public,
    "fetch_since": codec.decode_request,
    "request_refused": codec.decode_public,
}


@dataclass(frozen=True, slots=True)
class Reading:
    """One message, readable.

    `subject` is who or what the topic is about. `kind` is the message's tag, or "msgpack", "text",
    "bytes" or "empty" where the contract knows no such message; `problem` then says why.
    """

    topic: str
    subject: str
    kind: str
    fields: Mapping[str, Any]
    length: int
    problem: str | None = None


def read_message(topic: str, payload: bytes) -> Reading:
    """Read one message of any topic."""
    shown_topic = _printable(topic)
    subject = _subject(shown_topic)
    kind, value, problem = _decode(payload)
    plain = to_plain(value)
    fields = plain if isinstance(plain, dict) else {"value": plain}
    fields.pop("type", None)
    return Reading(shown_topic, subject, kind, fields, len(payload), problem)


def _decode(payload: bytes) -> tuple[str, Any, str | None]:
    """(kind, value, problem)."""
    if not payload:
        return "empty", {}, None
    if len(payload) > limits.MESSAGE_MAX_BYTES:
        return "bytes", payload, f"oversize: {len(payload)} bytes"
    try:
        generic = msgspec.msgpack.decode(payload)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError, OverflowError) as error:
        return _text_or_bytes(payload, f"malformed: {error}")
    name, decode = _decoder_of(generic)
    if decode is None:
        return "msgpack", generic, f"unknown_tag: {name}" if name else "no tag"
    try:
        message = decode(payload)
    except Rejected as rejected:
        return "msgpack", generic, f"{rejected.reason.value}: {rejected.detail}"
    if isinstance(message, Signed):
        kind, value, problem = _decode(message.body)
        signature = "signed" if message.signature else "unsigned"
        return (f"{kind} ({signature})", value, problem)
    return name, message, None


def _decoder_of(generic: Any) -> tuple[str, Callable[[bytes], Any] | None]:
    """The tag, and the decoder that knows it."""
    match generic:
        case [str() as tag, *_]:
            known = _BY_TAG.get(tag)
            return tag[: limits.ID_MAX_CHARS], known.decode if known else None
        case {"type": str() as tag}:
            return tag[: limits.ID_MAX_CHARS], _BY_TYPE.get(tag)
        case _:
            return "", None


def _text_or_bytes(payload: bytes, problem: str) -> tuple[str, Any, str]:
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return "bytes", payload, problem
    return ("text", text, problem) if text.isprintable() else ("bytes", payload, problem)


def to_plain(value: Any, depth: int = 0) -> Any:
    """`value` as dicts, lists, strings and numbers, abbreviated; defaults are left out."""
    if depth > _DEPTH_SHOWN:
        return "…"
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return _abbreviated(value)
        case bytes() | bytearray() | memoryview():
            return _bytes_line(bytes(value))
        case Enum():
            return to_plain(value.value, depth + 1)
        case msgspec.Raw():
            return _raw(value, depth)
        case msgspec.Struct():
            return _struct(value, depth)
        case dict():
            return _mapping(value, depth)
        case list() | tuple() | set() | frozenset():
            return _sequence(list(value), depth)
        case _:
            return _abbreviated(str(value))


def _struct(value: msgspec.Struct, depth: int) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    tag = value.__struct_config__.tag
    if tag is not None:
        plain["type"] = tag
    for field in msgspec.structs.fields(value):
        content = getattr(value, field.name)
        if content is not None and content != field.default:
            plain[field.name] = to_plain(content, depth + 1)
    return plain


def _raw(value: msgspec.Raw, depth: int) -> Any:
    try:
        return to_plain(msgspec.msgpack.decode(value), depth + 1)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError, OverflowError):
        return _bytes_line(bytes(value))


def _mapping(value: dict[Any, Any], depth: int) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, content in list(value.items())[: _ELEMENTS_SHOWN * 4]:
        name = key if isinstance(key, str) else str(to_plain(key, depth + 1))
        plain[_abbreviated(name)] = to_plain(content, depth + 1)
    if len(value) > len(plain):
        plain["…"] = f"{len(value) - len(plain)} more"
    return plain


def _sequence(value: list[Any], depth: int) -> list[Any]:
    plain = [to_plain(element, depth + 1) for element in value[:_ELEMENTS_SHOWN]]
    if len(value) > _ELEMENTS_SHOWN:
        plain.append(f"… {len(value) - _ELEMENTS_SHOWN} more")
    return plain


def _bytes_line(value: bytes) -> str:
    head = value[:_BYTES_SHOWN].hex(" ")
    return f"<{len(value)} bytes {head}{' …' if len(value) > _BYTES_SHOWN else ''}>"


def _abbreviated(text: str) -> str:
    shown = _printable(text[:_TEXT_SHOWN_CHARS])
    return f"{shown}… ({len(text)} chars)" if len(text) > _TEXT_SHOWN_CHARS else shown


def _printable(text: str) -> str:
    """`text` with everything that is no visible character written as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _subject(topic: str) -> str:
    """Who a topic is about, in a word or two."""
    parts = topic.split("/")
    match parts[2:]:
        case [_, "v", vehicle, "up", kind] if len(parts) == _CAR_TOPIC_PARTS:
            return f"{vehicle} > {kind}"
        case [_, "v", vehicle, "dn", kind] if len(parts) == _CAR_TOPIC_PARTS:
            return f"{vehicle} < {kind}"
        case ["host", dispatcher]:
            return f"host {dispatcher}"
        case ["t", tenant, "jobs", job, kind]:
            return f"{tenant}/{job} {kind}"
        case ["t", tenant, "request"]:
            return f"{tenant} request"
        case ["pub", "fleet", region]:
            return f"fleet {region}"
        case _:
            return topic


def one_line(fields: Mapping[str, Any]) -> str:
    """Fields as `key=value` on one line, nested ones in braces."""
    return " ".join(f"{name}={_inline(value)}" for name, value in fields.items())


def _inline(value: Any) -> str:
    match value:
        case dict():
            return "{" + one_line(value) + "}"
        case list():
            return "[" + " ".join(_inline(element) for element in value) + "]"
        case float():
            return f"{value:g}"
        case bool() | None:
            return {True: "yes", False: "no", None: "-"}[value]
        case _:
            return str(value)
