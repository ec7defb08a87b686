"""What schemathesis is told of forms that it does not know; named by SCHEMATHESIS_HOOKS."""

from typing import Any

import msgpack
import schemathesis

NO_MSGPACK = b"\xc1"


@schemathesis.serializer("application/x-msgpack")
def msgpack_body(_context: Any, value: Any) -> bytes:
    try:
        packed: bytes = msgpack.packb(value)
    except (OverflowError, TypeError, ValueError):
        return NO_MSGPACK
    return packed


@schemathesis.serializer("application/offset+octet-stream")
def piece_of_an_upload(_context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


@schemathesis.deserializer("application/x-msgpack")
def msgpack_answer(_context: Any, response: Any) -> Any:
    return msgpack.unpackb(response.content)
