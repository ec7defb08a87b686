"""A fleet is never of one version: yesterday's and tomorrow's messages meet today's code.

Tomorrow's are made from the golden vectors by the rules of evolution: one more trailing field
(outer and nested), a new reason in each list, a new tag in each union.
"""

from enum import Enum
from typing import Any

import msgpack
import msgspec
import pytest
from contract_shapes import (
    CAR_DECODERS,
    DECODER_OF,
    PAYLOAD_TYPES,
    decode,
    enums_in,
    evolved,
    plain,
    structs_in,
)

from edge_runtime.contract import codec, reasons
from edge_runtime.contract.errors import Rejected, RejectionReason
from edge_runtime.contract.golden import GOLDEN, Golden
from edge_runtime.contract.messages import (
    Acks,
    Cancelled,
    Control,
    Drain,
    Fence,
    Results,
    Taken,
    WorkOffer,
)
from edge_runtime.contract.reasons import WireEnum

NEW_REASON = "a_reason_of_tomorrow"
ALL_REASONS = {
    kind
    for kind in vars(reasons).values()
    if isinstance(kind, type) and issubclass(kind, WireEnum) and kind is not WireEnum
}

each_vector = pytest.mark.parametrize("vector", GOLDEN, ids=lambda v: v.name)
each_car_vector = pytest.mark.parametrize(
    "vector", [v for v in GOLDEN if type(v.message) in DECODER_OF], ids=lambda v: v.name
)


def wire_decoder(vector: Golden) -> codec.WireDecoder[Any]:
    return CAR_DECODERS[DECODER_OF[type(vector.message)]]()


def add_field(made: tuple[msgspec.Struct, Any]) -> Any:
    _, value = made
    if isinstance(value, list):
        return [*value, ["tomorrow", 1]]
    return {**value, "tomorrow": 1}


# --- today's code reads tomorrow's messages --------------------------------------------------


@each_vector
def test_one_more_field_outside_is_ignored(vector: Golden) -> None:
    payload = msgpack.packb(add_field((vector.message, plain(vector.message))))
    assert decode(type(vector.message), payload) == vector.message


@each_vector
def test_one_more_field_in_every_struct_is_ignored(vector: Golden) -> None:
    payload = msgpack.packb(plain(vector.message, add_field))
    assert decode(type(vector.message), payload) == vector.message


@each_car_vector
def test_fields_of_tomorrow_are_counted_at_any_depth(vector: Golden) -> None:
    decoder = wire_decoder(vector)
    decoder.decode(codec.encode(vector.message))
    assert decoder.counters == codec.CodecCounters()
    decoder.decode(msgpack.packb(plain(vector.message, add_field)))
    assert decoder.counters.trailing_fields == len(list(structs_in(vector.message)))
    assert decoder.counters.skipped_elements == 0


@pytest.mark.parametrize("kind", sorted(ALL_REASONS, key=lambda kind: kind.__name__))
def test_a_new_reason_decodes_as_unknown_and_is_counted(kind: type[Enum]) -> None:
    vector, known = next(
        (v, part) for v in GOLDEN for part in enums_in(v.message) if isinstance(part, kind)
    )
    old = codec.encode(known)
    payload = codec.encode(vector.message).replace(old, msgpack.packb(NEW_REASON))
    read = decode(type(vector.message), payload)
    assert kind["UNKNOWN"] in list(enums_in(read))
    assert known not in list(enums_in(read))
    if type(vector.message) in DECODER_OF:
        decoder = wire_decoder(vector)
        decoder.decode(payload)
        assert decoder.counters.unknown_reasons >= 1
        assert decoder.counters.trailing_fields == 0


@pytest.mark.parametrize("wrong", [None, 7, b"hold", ["hold"], True])
def test_a_reason_of_another_type_is_rejected(wrong: object) -> None:
    (vector,) = (v for v in GOLDEN if v.name == "state-ready")
    value = plain(vector.message)
    value[5] = wrong
    with pytest.raises(Rejected) as caught:
        decode(type(vector.message), msgpack.packb(value))
    assert caught.value.reason is RejectionReason.WRONG_TYPE


@pytest.mark.parametrize("name", CAR_DECODERS)
def test_a_new_message_is_a_counted_rejection(name: str) -> None:
    for payload in (["message_of_tomorrow", "car", 1, 2, 3], ["x"] * 40):
        with pytest.raises(Rejected) as caught:
            CAR_DECODERS[name]().decode(msgpack.packb(payload))
        assert caught.value.reason is RejectionReason.UNKNOWN_TAG


@pytest.mark.parametrize("read", [codec.decode_public, codec.decode_request])
def test_a_new_public_message_is_a_counted_rejection(read: Any) -> None:
    with pytest.raises(Rejected) as caught:
        read(msgpack.packb({"type": "message_of_tomorrow", "job": "j", "cursor": 1}))
    assert caught.value.reason is RejectionReason.UNKNOWN_TAG


@pytest.mark.parametrize("payload", [{"job": "j"}, {"type": 4}, [], None, {1: 2}])
@pytest.mark.parametrize("read", [codec.decode_public, codec.decode_request])
def test_a_public_message_of_another_shape_is_rejected(read: Any, payload: object) -> None:
    with pytest.raises(Rejected) as caught:
        read(msgpack.packb(payload))
    assert caught.value.reason is RejectionReason.WRONG_TYPE


def test_a_new_verdict_is_skipped_and_the_rest_is_used() -> None:
    decoder = codec.acks_decoder()
    taken, cancelled = ["taken", 1, [2, 3]], ["cancelled", 4, [5, 6]]
    payload = ["acks", "car", 9, [taken, ["deferred", 7, "until noon"], cancelled], "new field"]
    assert decoder.decode(msgpack.packb(payload)) == Acks(
        vehicle="car",
        boot=9,
        verdicts=(Taken(unit=1, fence=Fence(2, 3)), Cancelled(unit=4, fence=Fence(5, 6))),
    )
    assert decoder.counters.skipped_elements == 1


def test_a_new_order_is_skipped_and_the_rest_is_used() -> None:
    decoder = codec.control_decoder()
    payload = ["control", "car", [["dance", 1], ["drain", True], ["rebirth", "soon"]]]
    assert decoder.decode(msgpack.packb(payload)) == Control(
        vehicle="car", orders=(Drain(active=True),)
    )
    assert decoder.counters.skipped_elements == 2


def test_a_new_item_result_costs_only_its_chunk() -> None:
    (vector,) = (v for v in GOLDEN if v.name == "results")
    value = plain(vector.message)
    value[3][1][6][0] = ["maybe", 3, 0.5]
    decoder = codec.results_decoder()
    read = decoder.decode(msgpack.packb(value))
    assert isinstance(vector.message, Results)
    assert read.chunks == vector.message.chunks[:1]
    assert decoder.counters.skipped_elements == 1


def test_one_bad_unit_costs_only_itself() -> None:
    (vector,) = (v for v in GOLDEN if v.name == "work")
    value = plain(vector.message)
    value[2][0][1] = "not a number"
    decoder = codec.work_decoder()
    read = decoder.decode(msgpack.packb(value))
    assert isinstance(vector.message, WorkOffer)
    assert read.units == vector.message.units[1:]
    assert decoder.counters.skipped_elements == 1


@pytest.mark.parametrize(
    ("element", "reason"),
    [
        (["dance", 1], RejectionReason.UNKNOWN_TAG),
        (["drain", "yes"], RejectionReason.WRONG_TYPE),
        ([], RejectionReason.WRONG_TYPE),
        (7, RejectionReason.WRONG_TYPE),
    ],
)
def test_a_batch_of_nothing_usable_is_a_rejection(element: object, reason: RejectionReason) -> None:
    decoder = codec.control_decoder()
    with pytest.raises(Rejected) as caught:
        decoder.decode(msgpack.packb(["control", "car", [element] * 3]))
    assert caught.value.reason is reason
    assert decoder.counters.skipped_elements == 3


def test_the_second_reading_of_a_batch_keeps_its_bounds() -> None:
    orders = [["drain", True]] * 257
    for batch in (orders, [*orders[:256], ["dance"]]):
        with pytest.raises(Rejected) as caught:
            codec.control_decoder().decode(msgpack.packb(["control", "car", batch]))
        assert caught.value.reason is RejectionReason.WRONG_TYPE


# --- yesterday's messages on today's code, today's on tomorrow's ------------------------------


def drop_defaults(made: tuple[msgspec.Struct, Any]) -> Any:
    """The struct as it was before the last of its defaulted fields were added."""
    struct, value = made
    if isinstance(value, dict):
        return value
    for field in reversed(msgspec.structs.fields(type(struct))):
        if field.required or getattr(struct, field.name) != field.default:
            break
        value = value[:-1]
    return value


@each_vector
def test_messages_without_the_latest_fields_decode(vector: Golden) -> None:
    payload = msgpack.packb(plain(vector.message, drop_defaults))
    assert decode(type(vector.message), payload) == vector.message


def test_some_vectors_do_lack_fields_then() -> None:
    shorter = [
        v.name
        for v in GOLDEN
        if len(msgpack.packb(plain(v.message, drop_defaults))) < len(codec.encode(v.message))
    ]
    assert {"state-no-readings", "acks", "results", "work", "control"} <= set(shorter)


@pytest.mark.parametrize("kind", PAYLOAD_TYPES, ids=lambda kind: kind.__name__)
def test_todays_bytes_on_tomorrows_code_and_back(kind: type[msgspec.Struct]) -> None:
    tomorrow = evolved(kind)
    for vector in GOLDEN:
        if type(vector.message) is not kind:
            continue
        upgraded = msgspec.msgpack.decode(codec.encode(vector.message), type=tomorrow)
        assert upgraded.added_tomorrow == 7  # type: ignore[attr-defined]  # evolved() adds it
        changed = msgspec.structs.replace(upgraded, added_tomorrow=8)
        assert decode(kind, codec.encode(changed)) == vector.message
