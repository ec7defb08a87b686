"""How deep a MessagePack value nests, measured without building it and without recursion.

Readers recurse: msgspec ends with RecursionError near 1,000 levels, msgpack gives up at 1,024, and
a stream with one such value is lost to all who follow it. So the depth is bounded where a value
enters, before anything is kept.

Deliberately absent: whether the value is well-formed; who calls has that from the decoder.
"""

from typing import Final

from edge_runtime.contract.errors import RemoteError

_INTEGER_BYTES: Final = {0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9}
_FLOAT_BYTES: Final = {0xCA: 5, 0xCB: 9}
_FIXED_EXTENSION_BYTES: Final = {0xD4: 3, 0xD5: 4, 0xD6: 6, 0xD7: 10, 0xD8: 18}
_FIXSTR: Final = range(0xA0, 0xC0)
_LENGTH_BYTES: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_EXTENSION_LENGTH_BYTES: Final = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_COUNT_BYTES: Final = {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
_FIXMAP: Final = range(0x80, 0x90)
_FIXARRAY: Final = range(0x90, 0xA0)
_MAPS: Final = frozenset({*_FIXMAP, 0xDE, 0xDF})
_CONTAINERS: Final = frozenset({*_FIXMAP, *_FIXARRAY, *_COUNT_BYTES})
_NO_CONTAINERS: Final = bytes(byte for byte in range(256) if byte not in _CONTAINERS)


def _size_of(head: int) -> int:
    """Bytes of a value with this first byte; 0 where more than the first byte says it."""
    if head in _FIXSTR:
        return 1 + head - _FIXSTR.start
    sizes = _INTEGER_BYTES | _FLOAT_BYTES | _FIXED_EXTENSION_BYTES
    if head in _CONTAINERS or head in _LENGTH_BYTES or head in _EXTENSION_LENGTH_BYTES:
        return 0
    return sizes.get(head, 1)


_SIZES: Final = tuple(_size_of(head) for head in range(256))


class TooNested(RemoteError):  # noqa: N818 - named for what the value is
    """A value nests deeper than allowed, or holds too many values to find out."""


def check_nesting(value: bytes, depth_max: int, values_max: int) -> int:
    """Raise `TooNested` unless one whole MessagePack value nests at most `depth_max` containers.

    Looks at no more than `values_max` values and returns how many it looked at: none where the
    bytes cannot hold so many containers, which costs under a microsecond for a small output.
    """
    if len(value) <= depth_max or len(value.translate(None, _NO_CONTAINERS)) <= depth_max:
        return 0
    return _values_looked_at(value, depth_max, values_max)


def _values_looked_at(value: bytes, depth_max: int, values_max: int) -> int:
    sizes = _SIZES
    position, inside, looked_at = 0, 1, 1
    outside: list[int] = []
    while True:
        while inside:
            inside -= 1
            head = value[position]
            size = sizes[head]
            if size:
                position += size
                continue
            if head not in _CONTAINERS:
                position += _long_size(value, position, head)
                continue
            count, position = _opened(value, position, head)
            outside.append(inside)
            inside = count
            looked_at += count
            if len(outside) > depth_max:
                raise TooNested(f"nested deeper than {depth_max}")
            if looked_at > values_max:
                raise TooNested(f"more than {values_max} values in lists and maps")
        if not outside:
            return looked_at
        inside = outside.pop()


def _opened(value: bytes, position: int, head: int) -> tuple[int, int]:
    """(values inside, where the first one begins) of a list or map."""
    width = _COUNT_BYTES.get(head, 0)
    start = position + 1 + width
    count = int.from_bytes(value[position + 1 : start]) if width else head & 0x0F
    return (2 * count if head in _MAPS else count), start


def _long_size(value: bytes, position: int, head: int) -> int:
    """Bytes of a string, bytes or extension that says its length in bytes of its own."""
    width = _LENGTH_BYTES.get(head) or _EXTENSION_LENGTH_BYTES[head]
    length = int.from_bytes(value[position + 1 : position + 1 + width])
    return 1 + width + length + (head in _EXTENSION_LENGTH_BYTES)
