"""The two forms of every body: JSON, and MessagePack for who asks for it.

Invariants
- The answer's form follows `Accept`, the request's form `Content-Type`; JSON is the default of
  both. Any other `Content-Type` with a body is refused with 415.
- In JSON, bytes are base64, NaN and the infinities are null, and a map key that is not a string
  is the string of it.
- An output that its form cannot carry becomes an `unknown` error of that item in that answer;
  the stream goes on.
"""

from http import HTTPStatus
from typing import Any, Final

import msgspec
from litestar.connection import Request
from litestar.types import Receive, Scope, Send

from edge_runtime.contract.http import FeedEntry
from edge_runtime.contract.messages import ResultEntry, ResultError
from edge_runtime.contract.reasons import ItemError

JSON: Final = "application/json"
MSGPACK: Final = "application/x-msgpack"
NDJSON: Final = "application/x-ndjson"
_MSGPACK_NAMES: Final = (MSGPACK, "application/msgpack", "application/vnd.msgpack")

_json: Final = msgspec.json.Encoder()
_msgpack: Final = msgspec.msgpack.Encoder()
_outputs: Final = msgspec.msgpack.Decoder()


def names_msgpack(media_type: str) -> bool:
    """Whether an `Accept` or `Content-Type` value names MessagePack."""
    return any(name in media_type for name in _MSGPACK_NAMES)


def media_type_for(request: Request[Any, Any, Any]) -> str:
    """What the caller wants the answer in."""
    accept = request.headers.get("accept", "")
    return MSGPACK if names_msgpack(accept) else JSON


def encode_body(body: Any, media_type: str) -> bytes:
    """A contract struct, or a sequence of them, in either form."""
    return _msgpack.encode(body) if media_type == MSGPACK else _json.encode(body)


class Answer:
    """A complete answer: one status, one body. An ASGI application, as Litestar takes them."""

    __slots__ = ("_body", "_headers", "_status")

    def __init__(self, body: bytes, media_type: str, status: int = 200, **headers: str) -> None:
        self._body = body
        self._status = status
        self._headers: list[tuple[bytes, bytes]] = []
        if status != HTTPStatus.NO_CONTENT:
            self._headers.append((b"content-type", media_type.encode()))
            self._headers.append((b"content-length", str(len(body)).encode()))
        for name, value in headers.items():
            self._headers.append((name.replace("_", "-").encode(), value.encode("latin-1")))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        del scope, receive
        await send(
            {"type": "http.response.start", "status": self._status, "headers": self._headers}
        )
        await send({"type": "http.response.body", "body": self._body, "more_body": False})


def answer(request: Request[Any, Any, Any], body: Any, status: int = 200) -> Answer:
    """`body` in the form that the caller asked for."""
    media_type = media_type_for(request)
    return Answer(encode_body(body, media_type), media_type, status)


# --- results: outputs are MessagePack bytes as the car sent them --------------------------------


def _failed(entry: ResultEntry, error: ResultError) -> ResultEntry:
    return ResultEntry(
        cursor=entry.cursor,
        item=entry.item,
        at_ms=entry.at_ms,
        error=error,
        vehicle=entry.vehicle,
    )


def _json_output(output: msgspec.Raw) -> bytes:
    value = _outputs.decode(output)
    try:
        return _json.encode(value)
    except TypeError:
        return _json.encode(_with_json_types(value))


def _with_json_types(value: Any) -> Any:
    match value:
        case dict():
            return {
                key
                if isinstance(key, str | int | float | bytes) and not isinstance(key, bool)
                else str(key): _with_json_types(element)
                for key, element in value.items()
            }
        case list() | tuple():
            return [_with_json_types(element) for element in value]
        case msgspec.msgpack.Ext():
            return {"ext": value.code, "data": value.data}
        case _:
            return value


_UNCARRIABLE = (msgspec.DecodeError, TypeError, ValueError, OverflowError, RecursionError)


def json_result(entry: ResultEntry) -> ResultEntry:
    """The same entry with its output as JSON bytes."""
    if entry.error is not None:
        return _failed(entry, entry.error)
    if entry.ref is not None:
        return entry
    try:
        output = msgspec.Raw(_json_output(entry.output))
    except _UNCARRIABLE as error:
        message = f"the output has no JSON form: {type(error).__name__}"
        return _failed(entry, ResultError(code=ItemError.UNKNOWN, message=message, attempts=1))
    return msgspec.structs.replace(entry, output=output)


def msgpack_result(entry: ResultEntry) -> ResultEntry:
    """The same entry, without the empty output bytes that a failed one may carry."""
    return entry if entry.error is None else _failed(entry, entry.error)


class StreamWriter:
    """Encodes the elements of a stream: NDJSON lines, or MessagePack values back to back."""

    def __init__(self, media_type: str) -> None:
        self._is_msgpack = media_type == MSGPACK
        self.media_type = MSGPACK if self._is_msgpack else NDJSON
        self.heartbeat = _msgpack.encode(None) if self._is_msgpack else b"\n"
        """A nil, or an empty line: the stream stands and has nothing new."""

    def encode(self, element: Any) -> bytes:
        """One element as it travels."""
        match element:
            case ResultEntry():
                element = msgpack_result(element) if self._is_msgpack else json_result(element)
            case FeedEntry():
                make = msgpack_result if self._is_msgpack else json_result
                element = msgspec.structs.replace(element, result=make(element.result))
            case _:
                pass
        return _msgpack.encode(element) if self._is_msgpack else _json.encode(element) + b"\n"
