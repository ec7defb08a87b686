"""Bodies of the Open Inference Protocol: read within bounds of size and time, compressed or not.

Invariants
- No more than `OIP_BODY_MAX_BYTES` of a body are held, as it came or as it is unpacked: what a
  small body unpacks to is counted while it is unpacked. One with binary tensors may be larger,
  `OIP_LARGE_BODY_MAX_BYTES`; what all such bodies hold is bounded, and counted as they grow.
- A body that comes slower than its time ends with 408 and its connection.
- Of two headers that say the same thing, neither is believed.
"""

import asyncio
import gzip
import zlib
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Any, Final, Self

from edge_runtime.contract import limits
from edge_runtime.dispatcher.api.bodies import BodyBudget
from edge_runtime.dispatcher.api.oip.errors import OipError, bad
from edge_runtime.dispatcher.api.presence import ClientLeft, Receive

Headers = Iterable[tuple[bytes, bytes]]

_WINDOW_BITS: Final = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_COMPRESSION_LEVEL: Final = 1
_SMALL_BYTES: Final = 256
"""A response that is smaller gains nothing from being packed."""


def header(headers: Headers, name: bytes) -> str | None:
    """The value of a header that may be there once. Raises `OipError` for two."""
    found: bytes | None = None
    for key, value in headers:
        if key == name:
            if found is not None:
                raise bad(f"the header {name.decode()} is there twice")
            found = value
    return None if found is None else found.decode("latin-1").strip()


def length_header(headers: Headers, name: bytes) -> int | None:
    """The value of a header that is a length. Raises `OipError` for anything but digits."""
    text = header(headers, name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > limits.OIP_LENGTH_DIGITS_MAX:
        raise bad(f"the header {name.decode()} is not a length: {text[:40]!r}")
    return int(text)


class LargeBody:
    """What one request holds of the memory for large bodies, until its end.

    A context manager. Without a budget no body is large.
    """

    def __init__(self, budget: BodyBudget | None) -> None:
        self._budget = budget
        self._held_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._budget is not None:
            self._budget.release(self._held_bytes)

    def require(self, size: int) -> None:
        """Room for so many bytes. Raises `OipError` 413, or `Refusal` 503 for want of memory."""
        if size <= limits.OIP_BODY_MAX_BYTES or size <= self._held_bytes:
            return
        if self._budget is None or size > limits.OIP_LARGE_BODY_MAX_BYTES:
            raise _too_large(is_large=self._budget is not None)
        self._budget.reserve(size - self._held_bytes)
        self._held_bytes = size


async def read_body(headers: Headers, receive: Receive, large: LargeBody | None = None) -> bytes:
    """The whole body, unpacked; `large` where it may be. Raises `OipError` or `ClientLeft`.

    And `Refusal` 503 where too many large ones are in memory.
    """
    room = large or LargeBody(None)
    declared = length_header(headers, b"content-length")
    if declared is not None:
        room.require(declared)
    message = await _next(receive)
    body: bytes = message.get("body", b"")
    if message.get("more_body", False):
        body = await _rest(body, receive, room)
    room.require(len(body))
    encoding = header(headers, b"content-encoding")
    if encoding is None or encoding in {"", "identity"}:
        return body
    return await _unpacked(body, encoding, room)


async def _next(receive: Receive) -> dict[str, Any]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientLeft
    return message


async def _rest(first: bytes, receive: Receive, room: LargeBody) -> bytes:
    parts, size = [first], len(first)
    try:
        async with asyncio.timeout(limits.OIP_BODY_MAX_S):
            while True:
                message = await _next(receive)
                part = message.get("body", b"")
                parts.append(part)
                size += len(part)
                room.require(size)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        text = f"the body did not come within {limits.OIP_BODY_MAX_S:g} s (OIP_BODY_MAX_S)"
        raise OipError(HTTPStatus.REQUEST_TIMEOUT, text) from None


def unpacked(body: bytes, encoding: str) -> bytes:
    """A body that may not be large, without its encoding. Raises `OipError`."""
    pieces: list[bytes] = []
    for piece in _steps(body, encoding):
        pieces.append(piece)
        LargeBody(None).require(sum(map(len, pieces)))
    return b"".join(pieces)


async def _unpacked(body: bytes, encoding: str, room: LargeBody) -> bytes:
    """The same with room for more; what is more than a little is done beside the event loop."""
    steps = _steps(body, encoding)
    pieces = [next(steps)]
    size = len(pieces[0])
    room.require(size)
    while (piece := await asyncio.to_thread(next, steps, None)) is not None:
        pieces.append(piece)
        size += len(piece)
        room.require(size)
    return b"".join(pieces)


def _steps(body: bytes, encoding: str) -> Iterator[bytes]:
    """What a body unpacks to, a little at a time: a bomb is noticed before it is held."""
    bits = _WINDOW_BITS.get(encoding)
    if bits is None:
        known = ", ".join(_WINDOW_BITS)
        text = f"content-encoding {encoding[:40]!r} is not one of {known}"
        raise OipError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, text)
    unpacker = zlib.decompressobj(bits)
    left = body
    try:
        while True:
            yield unpacker.decompress(left, limits.OIP_BODY_MAX_BYTES + 1)
            left = unpacker.unconsumed_tail
            if unpacker.eof or not left:
                break
    except zlib.error as error:
        raise bad(f"the body is not {encoding}: {error}") from None
    if not unpacker.eof or unpacker.unused_data:
        raise bad(f"the body is not one whole {encoding} stream")


def _too_large(*, is_large: bool) -> OipError:
    name = "OIP_LARGE_BODY_MAX_BYTES" if is_large else "OIP_BODY_MAX_BYTES"
    text = f"the body is over {getattr(limits, name)} bytes ({name})"
    return OipError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text)


def packed(body: bytes, accepted: str | None) -> tuple[bytes, str | None]:
    """(the body as it travels, its content-encoding) for a client that accepts these."""
    if not accepted or len(body) < _SMALL_BYTES:
        return body, None
    wanted = {part.partition(";")[0].strip() for part in accepted.lower().split(",")}
    if "gzip" in wanted:
        return gzip.compress(body, _COMPRESSION_LEVEL, mtime=0), "gzip"
    if "deflate" in wanted:
        return zlib.compress(body, _COMPRESSION_LEVEL), "deflate"
    return body, None
