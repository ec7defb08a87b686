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
from edge_runtime.dispatcher.front import Refusal

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


def length_header(
    headers: Headers, name: bytes, digits_max: int = limits.OIP_LENGTH_DIGITS_MAX
) -> int | None:
    """The value of a header that is a length. Raises `OipError` for anything but a few digits."""
    text = header(headers, name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > digits_max:
        raise bad(f"the header {name.decode()} is not a length: {text[:40]!r}")
    return int(text)


class LargeBodies:
    """The memory that large bodies share, and what each tenant has of it."""

    def __init__(self) -> None:
        name = "OIP_LARGE_BODIES_MAX_BYTES"
        self._all = BodyBudget(limits.OIP_LARGE_BODIES_MAX_BYTES, name)
        self._tenants: dict[str, BodyBudget] = {}

    def reserve(self, tenant: str, count: int) -> None:
        """Take `count` bytes; `Refusal` 503 where they are not there."""
        of_tenant = self._tenants.get(tenant)
        if of_tenant is None:
            name = "OIP_TENANT_LARGE_BODIES_MAX_BYTES"
            of_tenant = BodyBudget(limits.OIP_TENANT_LARGE_BODIES_MAX_BYTES, name)
        of_tenant.reserve(count)
        try:
            self._all.reserve(count)
        except Refusal:
            of_tenant.release(count)
            raise
        self._tenants[tenant] = of_tenant

    def release(self, tenant: str, count: int) -> None:
        """Give them back."""
        self._all.release(count)
        of_tenant = self._tenants[tenant]
        of_tenant.release(count)
        if of_tenant.is_unused:
            del self._tenants[tenant]


class LargeBody:
    """How large one request's body may be, and what it holds of the memory for large ones.

    A context manager, left at the request's end. Without `bodies` it may not be large.
    """

    def __init__(self, bodies: LargeBodies | None = None, tenant: str = "") -> None:
        self._bodies = bodies
        self._tenant = tenant
        self._held_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bodies is not None and self._held_bytes:
            self._bodies.release(self._tenant, self._held_bytes)

    def check(self, size: int) -> None:
        """Raise `OipError` 413 where a body of so many bytes is too large."""
        is_large = self._bodies is not None
        name = "OIP_LARGE_BODY_MAX_BYTES" if is_large else "OIP_BODY_MAX_BYTES"
        bound: int = getattr(limits, name)
        if size > bound:
            text = f"the body is over {bound} bytes ({name})"
            raise OipError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text)

    def hold(self, size: int) -> None:
        """The same, and room for them. Raises also `Refusal` 503, for want of memory."""
        self.check(size)
        if self._bodies is not None and size > max(self._held_bytes, limits.OIP_BODY_MAX_BYTES):
            self._bodies.reserve(self._tenant, size - self._held_bytes)
            self._held_bytes = size


async def read_body(headers: Headers, receive: Receive, large: LargeBody | None = None) -> bytes:
    """The whole body, unpacked; `large` where it may be. Raises `OipError` or `ClientLeft`.

    And `Refusal` 503 where too many large ones are in memory.
    """
    room = large or LargeBody()
    declared = length_header(headers, b"content-length", limits.HTTP_LENGTH_DIGITS_MAX)
    if declared is not None:
        # Only what has come is counted: who announces much and sends nothing takes nothing.
        room.check(declared)
    body = await _whole(receive, room)
    encoding = header(headers, b"content-encoding")
    if encoding is None or encoding in {"", "identity"}:
        return body
    return await _unpacked(body, encoding, room)


async def _next(receive: Receive) -> dict[str, Any]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientLeft
    return message


async def _whole(receive: Receive, room: LargeBody) -> bytes:
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.OIP_BODY_MAX_S):
            while True:
                message = await _next(receive)
                part = message.get("body", b"")
                parts.append(part)
                size += len(part)
                room.hold(size)
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
        LargeBody().check(sum(map(len, pieces)))
    return b"".join(pieces)


async def _unpacked(body: bytes, encoding: str, room: LargeBody) -> bytes:
    """The same with room for more; what is more than a little is done beside the event loop."""
    steps = _steps(body, encoding)
    pieces = [next(steps)]
    size = len(pieces[0])
    room.hold(size)
    while (piece := await asyncio.to_thread(next, steps, None)) is not None:
        pieces.append(piece)
        size += len(piece)
        room.hold(size)
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
