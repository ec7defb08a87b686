"""An output that readers could not take ends as its item's failure, before it is kept."""

import time
from collections import Counter

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.bus import Message
from edge_runtime.contract import codec, limits
from edge_runtime.contract.messages import ItemDone, ItemFailed
from edge_runtime.contract.nesting import TooNested, check_nesting
from edge_runtime.contract.reasons import ItemError
from edge_runtime.contract.topics import Topics, Up
from edge_runtime.dispatcher.core.events import ChunkReceived
from edge_runtime.dispatcher.intake import Intake

TOPICS = Topics()
DEPTH = limits.OUTPUT_NESTING_MAX
MANY = 1 << 30


def received(*outputs: bytes) -> list[ItemDone | ItemFailed]:
    """What the core is told of these outputs of one chunk."""
    head = msgpack.packb(["results", "car", 1, [["chunk", "job", 1, [1, 1], "a" * 64, 0, 0]]])
    items = b"\xdc" + len(outputs).to_bytes(2)
    for index, output in enumerate(outputs):
        items += b"\x93" + msgpack.packb("ok") + msgpack.packb(index) + output
    payload = head[:-1] + items
    message = Message(topic=TOPICS.up("car", Up.RESULT), payload=payload)
    (event,) = Intake(TOPICS, Counter()).events(message)
    assert isinstance(event, ChunkReceived)
    return list(event.chunk.items)


@pytest.mark.parametrize("head", [b"\x91", b"\x81\xa1k", b"\x92\x01", b"\xdc\x00\x01", b"\x81"])
@pytest.mark.parametrize("depth", [DEPTH + 1, 200, 900])
def test_an_output_nested_too_deep_fails_its_item_only(head: bytes, depth: int) -> None:
    tail = b"\xc0" * depth if head == b"\x81" else b""
    deep = head * depth + b"\xc0" + tail
    before, failed, after = received(b"\x01", deep, b"\x02")
    assert isinstance(failed, ItemFailed)
    assert failed.index == 1
    assert failed.code is ItemError.MODEL_ERROR
    assert isinstance(before, ItemDone)
    assert isinstance(after, ItemDone)


@pytest.mark.parametrize("head", [b"\x91", b"\x81\xa1k", b"\x92\x01", b"\xdc\x00\x01"])
def test_an_output_at_the_bound_is_kept_as_it_came(head: bytes) -> None:
    deep = head * DEPTH + b"\xc0"
    (kept,) = received(deep)
    assert isinstance(kept, ItemDone)
    assert bytes(kept.output) == deep


def test_an_output_over_the_size_bound_fails_its_item() -> None:
    (failed,) = received(msgpack.packb(bytes(limits.OUTPUT_MAX_BYTES)))
    assert isinstance(failed, ItemFailed)
    assert failed.code is ItemError.RESULT_TOO_LARGE


def test_the_largest_honest_output_is_kept() -> None:
    line = {"text": "twelve chars", "score": 0.5, "box": [[1.1, 2.2]] * 4}
    (kept,) = received(msgpack.packb({"width": 1, "height": 1, "lines": [line] * 990}))
    assert isinstance(kept, ItemDone)


@pytest.mark.parametrize("unit", [b"\x91\xc0", b"\x80", b"\xd0\x80", b"\x01"])
def test_measuring_stays_cheap_whatever_is_sent(unit: bytes) -> None:
    count = (limits.OUTPUT_MAX_BYTES - 200) // len(unit)
    filler = b"\x92" + b"\xdc\x00\x50" + b"\x90" * 0x50
    output = filler + b"\xdd" + count.to_bytes(4) + unit * count
    seconds = []
    for _ in range(3):
        before = time.thread_time()
        received(output, output)
        seconds.append(time.thread_time() - before)
    assert min(seconds) < 0.005


def depth_of(value: object) -> int:
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    if isinstance(value, dict):
        return 1 + max(map(depth_of, (*value, *value.values())), default=0)
    return 0


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=300)
    | st.binary(max_size=300)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20)),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=40), inner),
    max_leaves=30,
)


@given(VALUES, st.integers(0, 6))
def test_the_measured_depth_is_the_depth(value: object, most: int) -> None:
    packed = msgpack.packb(value)
    if depth_of(value) <= most:
        check_nesting(packed, most, MANY)
    else:
        with pytest.raises(TooNested):
            check_nesting(packed, most, MANY)


def test_a_small_output_costs_next_to_nothing() -> None:
    output = codec.encode({"detections": [{"box": [1.5, 2.5, 3.5, 4.5], "label": "face"}] * 4})
    assert len(output) > DEPTH
    assert check_nesting(output, DEPTH, 0) == 0
