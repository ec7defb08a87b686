"""Bodies of the Open Inference Protocol: read within bounds of size and time, compressed or not.

Invariants
- No more than `OIP_BODY_MAX_BYTES` of a body are held, as it came or as it is unpacked: what a
  small body unpacks to is counted while it is unpacked.
- A body that comes slower than its time ends with 408 and its connection.
- Of two headers that say the same thing, neither is believed.
"""

import asyncio
import gzip
import zlib
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Final

from edge_runtime.contract import limits
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


async def read_body(headers: Headers, receive: Receive) -> bytes:
    """The whole body, unpacked. Raises `OipError` or `ClientLeft`."""
    declared = length_header(headers, b"content-length")
    if declared is not None and declared > limits.OIP_BODY_MAX_BYTES:
        raise _too_large()
    message = await _next(receive)
    body: bytes = message.get("body", b"")
    if message.get("more_body", False):
        body = await _rest(body, receive)
    if len(body) > limits.OIP_BODY_MAX_BYTES:
        raise _too_large()
    encoding = header(headers, b"content-encoding")
    if encoding is None or encoding in {"", "identity"}:
        return body
    return unpacked(body, encoding)


async def _next(receive: Receive) -> dict[str, Any]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientLeft
    return message


async def _rest(first: bytes, receive: Receive) -> bytes:
    parts, size = [first], len(first)
    try:
        async with asyncio.timeout(limits.OIP_BODY_MAX_S):
            while True:
                message = await _next(receive)
                part = message.get("body", b"")
                parts.append(part)
                size += len(part)
                if size > limits.OIP_BODY_MAX_BYTES:
                    raise _too_large()
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        text = f"the body did not come within {limits.OIP_BODY_MAX_S:g} s (OIP_BODY_MAX_S)"
        raise OipError(HTTPStatus.REQUEST_TIMEOUT, text) from None


def unpacked(body: bytes, encoding: str) -> bytes:
    """A body without its encoding. Raises `OipError`."""
    bits = _WINDOW_BITS.get(encoding)
    if bits is None:
        known = ", ".join(_WINDOW_BITS)
        text = f"content-encoding {encoding[:40]!r} is not one of {known}"
        raise OipError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, text)
    unpacker = zlib.decompressobj(bits)
    try:
        data = unpacker.decompress(body, limits.OIP_BODY_MAX_BYTES + 1)
    except zlib.error as error:
        raise bad(f"the body is not {encoding}: {error}") from None
    if len(data) > limits.OIP_BODY_MAX_BYTES:
        raise _too_large()
    if not unpacker.eof or unpacker.unused_data:
        raise bad(f"the body is not one whole {encoding} stream")
    return data


def _too_large() -> OipError:
    text = f"the body is over {limits.OIP_BODY_MAX_BYTES} bytes (OIP_BODY_MAX_BYTES)"
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
