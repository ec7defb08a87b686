"""The golden vectors: read without our code, read with it, and never changed."""

import base64
import json
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest
from contract_shapes import PAYLOAD_TYPES, decode, plain, structs_in

from edge_runtime.contract import codec, messages
from edge_runtime.contract.golden import GOLDEN, Golden, GoldenChanged, golden_files
from edge_runtime.contract.schemas import CHANNELS
from edge_runtime.contract.signals import Signals

FOLDER = Path(__file__).parents[2] / "schemas" / "golden"
INDEX: list[dict[str, Any]] = json.loads((FOLDER / "index.json").read_text())["vectors"]

each_vector = pytest.mark.parametrize("vector", GOLDEN, ids=lambda v: v.name)


def stored(vector: Golden) -> bytes:
    return (FOLDER / f"{vector.name}.msgpack").read_bytes()


def from_index(value: Any) -> Any:
    match value:
        case {"$base64": str(text)} if len(value) == 1:
            return base64.b64decode(text)
        case dict():
            return {key: from_index(part) for key, part in value.items()}
        case list():
            return [from_index(part) for part in value]
        case _:
            return value


def is_same_or_older(seen: Any, expected: Any) -> bool:
    """Whether `seen` is `expected`, possibly from before a trailing field was added."""
    if isinstance(seen, list) and isinstance(expected, list):
        pairs = zip(seen, expected, strict=False)
        return len(seen) <= len(expected) and all(is_same_or_older(*pair) for pair in pairs)
    if isinstance(seen, dict) and isinstance(expected, dict):
        missing = [expected[key] for key in expected.keys() - seen.keys()]
        is_older = seen.keys() <= expected.keys() and not any(missing)
        return is_older and all(is_same_or_older(seen[key], expected[key]) for key in seen)
    return bool(seen == expected)


@each_vector
def test_plain_msgpack_reads_what_the_contract_says(vector: Golden) -> None:
    seen, expected = msgpack.unpackb(stored(vector)), plain(vector.message)
    # That what an older vector lacks are defaults is what the next test shows.
    assert seen == expected or is_same_or_older(seen, expected), expected


@each_vector
def test_our_codec_reads_it_as_the_same_object(vector: Golden) -> None:
    assert decode(type(vector.message), stored(vector)) == vector.message


@each_vector
def test_todays_encoder_writes_what_it_reads(vector: Golden) -> None:
    again = decode(type(vector.message), codec.encode(vector.message))
    assert again == vector.message


def test_index_names_every_file_with_its_value() -> None:
    assert [entry["file"] for entry in INDEX] == [f"{v.name}.msgpack" for v in GOLDEN]
    assert {path.name for path in FOLDER.glob("*.msgpack")} == {e["file"] for e in INDEX}
    for entry, vector in zip(INDEX, GOLDEN, strict=True):
        assert from_index(entry["value"]) == msgpack.unpackb(stored(vector))
        assert entry["message"] == type(vector.message).__name__


def test_every_message_type_and_union_member_has_a_vector() -> None:
    seen = {type(struct) for vector in GOLDEN for struct in structs_in(vector.message)}
    wire = {
        kind
        for kind in vars(messages).values()
        if isinstance(kind, type)
        and issubclass(kind, msgspec.Struct)
        and not kind.__name__.startswith("_")
        and kind.__module__ == messages.__name__
    }
    assert seen == wire | {Signals}
    assert {type(v.message) for v in GOLDEN} == set(PAYLOAD_TYPES)


def test_every_channel_has_a_vector() -> None:
    assert {v.channel for v in GOLDEN} == {channel.name for channel in CHANNELS}


def test_a_typical_state_stays_small() -> None:
    (typical,) = (v for v in GOLDEN if v.name == "state-ready")
    assert len(codec.encode(typical.message)) <= 110


def test_bytes_that_exist_are_kept_while_they_mean_the_same() -> None:
    (vector,) = (v for v in GOLDEN if v.name == "control-rebirth-now")
    older = msgpack.packb(["control", vector.message.vehicle, [["rebirth"], ["drain", False]]])  # type: ignore[attr-defined]  # a Control
    assert older != codec.encode(vector.message)
    assert (
        golden_files({"control-rebirth-now.msgpack": older})["control-rebirth-now.msgpack"] == older
    )


@pytest.mark.parametrize("change", [b"", b"\xc1", b"\x93\xa7offline\xa1x\x01"])
def test_bytes_that_changed_their_meaning_are_refused(change: bytes) -> None:
    with pytest.raises(GoldenChanged) as caught:
        golden_files({"offline.msgpack": change, "birth.msgpack": stored(GOLDEN[0])})
    assert caught.value.names == ["offline"]
