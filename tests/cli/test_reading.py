"""`tap` reads every message of the contract, and never crashes on anything else."""

import msgpack
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_runtime.cli.reading import one_line, read_message
from edge_runtime.contract import codec, limits
from edge_runtime.contract.golden import GOLDEN, Golden
from edge_runtime.contract.messages import Cancel, Control, Fence
from edge_runtime.contract.reasons import CancelReason
from edge_runtime.contract.topics import Down, Topics

TOPIC = Topics("er").down("car-1", Down.CONTROL)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden.name)
def test_every_message_of_the_contract_is_recognised_on_any_topic(golden: Golden) -> None:
    payload = codec.encode(golden.message)
    for topic in (TOPIC, "somewhere/else"):
        reading = read_message(topic, payload)
        assert reading.problem is None or "signed" in reading.kind
        assert reading.kind not in {"msgpack", "bytes", "text"} or "signed" in reading.kind


def test_an_envelope_is_opened_and_its_orders_named() -> None:
    order = Cancel(unit=7, fence=Fence(3, 4), reason=CancelReason.DEADLINE)
    reading = read_message(TOPIC, codec.encode_signed(Control(vehicle="car-1", orders=(order,))))
    assert (reading.subject, reading.kind) == ("car-1 < control", "control (unsigned)")
    line = one_line(reading.fields)
    assert line == "vehicle=car-1 orders=[{type=cancel unit=7 fence=[3 4] reason=deadline}]"


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
    | st.binary(max_size=64),
    lambda inner: st.lists(inner, max_size=5)
    | st.dictionaries(st.text(max_size=9) | st.integers(-9, 9), inner, max_size=5),
    max_leaves=20,
)  # fmt: skip
TAGS = st.sampled_from(["state", "birth", "acks", "results", "work", "control", "signed", "host"])


def assert_readable(topic: str, payload: bytes) -> None:
    reading = read_message(topic, payload)
    line = f"{reading.subject}{reading.kind}{one_line(reading.fields)}{reading.problem}"
    assert "\n" not in reading.topic + reading.subject + one_line(reading.fields)
    assert "\x1b" not in line
    assert len(msgspec.json.encode(reading.fields)) < 256 * 1024
    assert reading.length == len(payload)


@given(topic=st.text(max_size=60), payload=st.binary(max_size=400))
@example("er/1/00/v/car/up/state", b"")
@example("\x1b[2J", b"\xc1")
@example("a", b"\x91" * 3_000)
@example("a", b"\x81\xa1k" * 900 + b"\xc0")
@example("a", b"\x00" * (limits.MESSAGE_MAX_BYTES + 1))
def test_any_bytes_on_any_topic_are_readable(topic: str, payload: bytes) -> None:
    assert_readable(topic, payload)


@given(tag=TAGS, rest=st.lists(JUNK, max_size=9))
def test_a_known_tag_with_junk_behind_it_is_readable(tag: str, rest: list[object]) -> None:
    assert_readable(TOPIC, msgpack.packb([tag, *rest]))


@given(kind=st.sampled_from(["results", "status", "fleet", "fetch_since", "new"]), rest=JUNK)
def test_a_public_message_with_junk_in_it_is_readable(kind: str, rest: object) -> None:
    assert_readable("er/1/t/x/jobs/y/results", msgpack.packb({"type": kind, "results": rest}))


def test_payloads_are_abbreviated() -> None:
    reading = read_message("a", msgpack.packb(["unknown", b"\xff" * 5_000, "x" * 5_000, [0] * 99]))
    line = one_line(reading.fields)
    assert "<5000 bytes ff ff ff ff ff ff ff ff …>" in line
    assert "… (5000 chars)" in line
    assert "… 91 more" in line
    assert len(line) < 400


@pytest.mark.parametrize(
    ("topic", "subject"),
    [
        ("er/1/a0/v/car-1/up/state", "car-1 > state"),
        ("er/1/a0/v/car-1/dn/work", "car-1 < work"),
        ("er/1/host/d1", "host d1"),
        ("er/1/t/acme/jobs/j1/results", "acme/j1 results"),
        ("er/1/t/acme/request", "acme request"),
        ("er/1/pub/fleet/eu", "fleet eu"),
        ("other/topic", "other/topic"),
    ],
)
def test_topics_are_told_in_a_word(topic: str, subject: str) -> None:
    assert read_message(topic, b"").subject == subject
