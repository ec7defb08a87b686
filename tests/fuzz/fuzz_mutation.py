"""Damage to valid inputs, and bombs: what decoders are given.

All of it is a function of a `random.Random`, which a campaign seeds and Hypothesis drives.
"""

import random
from collections.abc import Callable, Sequence
from typing import Final

HEADS: Final = tuple(
    bytes([head, *b"\xff" * width])
    for head, width in (
        *((0xC4, 1), (0xC5, 2), (0xC6, 4), (0xC7, 2), (0xC9, 5), (0xCF, 8), (0xD3, 8)),
        *((0xD9, 1), (0xDA, 2), (0xDB, 4), (0xDC, 2), (0xDD, 4), (0xDE, 2), (0xDF, 4)),
    )
)
"""Everything that says a length or a large number, saying the largest."""

VALUES: Final = (
    *(b"\xc0", b"\xc2", b"\xc3", b"\x00", b"\x01", b"\x7f", b"\xff", b"\xe0", b"\x90", b"\x80"),
    *(b"\xa0", b"\xc4\x00", b"\xa1\xff", b"\xa3\xed\xa0\x80", b"\xa2\xc3\x28", b"\xc1"),
    *(b"\xca\x7f\xc0\x00\x00", b"\xcb\x7f\xf8" + bytes(6), b"\xcb\x3f\xf0" + bytes(6)),
    *(b"\xcb\x7f\xf0" + bytes(6), b"\xcf\x40" + bytes(7), b"\xcf\x40" + bytes(6) + b"\x01"),
    *(b"\xd3\x80" + bytes(7), b"\xd6\xff" + b"\xff" * 4, b"\xc7\x0c\xff" + b"\xff" * 12),
    *(
        b"\x92\x01\x02",
        b"\x91\xc0",
        b"\x82\xa1a\x01\xa1a\x02",
        b"\x81\x91\x01\x02",
        b"\x81\x80\xc0",
    ),
    *(b"null", b"true", b"1e999", b"-0", b'"\\ud800"', b'"\\u0000"', b"[[", b'{"a":1,"a":2}'),
    *(b"18446744073709551616", b"1.5", b'""', b",", b":", b"\\", b"\n", b"[[a]]", b"nan", b"'''"),
    *(b"\xff\xda", b"\xff\xc0", b"\xff\xd9", b"\xff\x01", b"IEND", b"IHDR", b"RIFF", b"data"),
)
"""Whole values of other types, broken ones, and what other formats set store by."""

NESTING: Final = (b"\x91", b"\x81\xa0", b"\x92\xc0", b"\x81", b"\xdd\x00\x00\x00\x01", b"[")
NESTING_TEXT: Final = (b'{"a":', b"a.", b"[a.b]\n", b"\x3a", b"\x32\x02")
_DEPTHS: Final = (3, 64, 65, 66, 120, 300, 490, 900, 1_030, 2_000)

Mutation = Callable[[bytes, random.Random], bytes]


def _flip(data: bytes, chance: random.Random) -> bytes:
    at = int(chance.random() * len(data))
    return data[:at] + bytes([data[at] ^ (1 << int(chance.random() * 8))]) + data[at + 1 :]


def _set(data: bytes, chance: random.Random) -> bytes:
    at = int(chance.random() * len(data))
    return data[:at] + bytes([int(chance.random() * 256)]) + data[at + 1 :]


def _cut(data: bytes, chance: random.Random) -> bytes:
    return data[: int(chance.random() * len(data))]


def _drop(data: bytes, chance: random.Random) -> bytes:
    at = int(chance.random() * len(data))
    return data[:at] + data[at + 1 + int(chance.random() * 8) :]


def _repeat(data: bytes, chance: random.Random) -> bytes:
    """A stretch once more behind itself: duplicate keys, elements too many."""
    at = int(chance.random() * len(data))
    end = at + 1 + int(chance.random() * 40)
    return data[:end] + data[at:end] + data[end:]


def _value(data: bytes, chance: random.Random) -> bytes:
    at = int(chance.random() * len(data))
    new = VALUES[int(chance.random() * len(VALUES))]
    return data[:at] + new + data[at + int(chance.random() * 3) :]


def _length(data: bytes, chance: random.Random) -> bytes:
    at = int(chance.random() * len(data))
    new = HEADS[int(chance.random() * len(HEADS))]
    return data[:at] + new + data[at + int(chance.random() * 3) :]


def _nest(data: bytes, chance: random.Random) -> bytes:
    """Something opened many times over, closed or not."""
    at = int(chance.random() * len(data))
    kinds = NESTING if chance.random() < 0.7 else NESTING_TEXT
    unit = kinds[int(chance.random() * len(kinds))]
    depth = _DEPTHS[int(chance.random() * len(_DEPTHS))]
    end = b"]" * depth if unit == b"[" else b"\xc0" * (depth if unit == b"\x81" else 1)
    return data[:at] + unit * depth + end + data[at + int(chance.random() * 2) :]


_MUTATIONS: Final[tuple[Mutation, ...]] = (
    *(_flip, _flip, _flip, _set, _set, _cut, _drop, _drop, _repeat, _value, _value, _value),
    *(_length, _length),
)
_NEST_CHANCE: Final = 0.02


def mutated(seeds: Sequence[bytes], chance: random.Random) -> bytes:
    """A damaged seed, a splice of two, or now and then nothing but random bytes."""
    roll = chance.random()
    data = seeds[int(chance.random() * len(seeds))]
    if roll < 0.02:
        return chance.randbytes(int(chance.random() * 64))
    if roll < 0.08:
        other = seeds[int(chance.random() * len(seeds))]
        data = data[: int(chance.random() * len(data))] + other[int(chance.random() * len(other)) :]
    elif roll < 0.08 + _NEST_CHANCE:
        data = _nest(data or b"\xc0", chance)
    for _ in range(1 + int(chance.random() * chance.random() * 6)):
        mutate = _MUTATIONS[int(chance.random() * len(_MUTATIONS))]
        data = mutate(data or b"\xc0", chance)
    return data


def bombs(size: int, depth: int = 100_000) -> dict[str, bytes]:
    """Inputs of at most `size` bytes that claim, nest or repeat as much as that allows."""
    made = {
        f"{unit!r} x {min(depth, size // len(unit))}": unit * min(depth, size // len(unit))
        for unit in (*NESTING, *NESTING_TEXT, *VALUES)
    }
    for head in HEADS:
        made[f"{head!r} alone"] = head
    count = size - 8
    for head in (0xDD, 0xDF, 0xC6, 0xDB):
        made[f"{head:#x} and {count} nils"] = bytes([head]) + count.to_bytes(4) + b"\xc0" * count
    return {name: bomb[:size] for name, bomb in made.items()}
