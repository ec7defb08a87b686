"""Our messages of `kuksa.val.v2` against bytes that the official Python client wrote."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.vehicle.sensors import kuksa_messages as messages
from edge_runtime.vehicle.sensors.kuksa import _datapoint

RECORDED = json.loads((Path(__file__).parent / "kuksa_recorded.json").read_text())["messages"]
CHARGE = "Vehicle.Powertrain.TractionBattery.StateOfCharge.Displayed"


def recorded(name: str) -> bytes:
    return bytes.fromhex(RECORDED[name])


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("string", "EMPTY"),
        ("bool_true", True),
        ("bool_false", False),
        ("int32", -126),
        ("int64", -(2**40)),
        ("uint32", 7),
        ("uint64", 2**50),
        ("float", 80.5),
        ("double", -1e300),
        ("float_inf", math.inf),
        ("none", None),
        *((kind, kind) for kind in messages.ARRAYS),
    ],
)
def test_a_datapoint_of_the_official_client_is_read(name: str, raw: Any) -> None:
    datapoint = messages.Datapoint.FromString(recorded(f"Datapoint/{name}"))
    read, stamp = _datapoint(datapoint)
    assert read == raw
    assert type(read) is type(raw)
    assert stamp == (1_795_000_000, 0 if name == "none" else 123_000_000)


def test_not_a_number_is_read_as_such() -> None:
    read, _ = _datapoint(messages.Datapoint.FromString(recorded("Datapoint/float_nan")))
    assert isinstance(read, float)
    assert math.isnan(read)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "GetValuesRequest",
            messages.GetValuesRequest(signal_ids=[{"path": CHARGE}, {"path": "Vehicle.Speed"}]),
        ),
        (
            "SubscribeRequest",
            messages.SubscribeRequest(signal_paths=[CHARGE, "Vehicle.Speed"], buffer_size=1000),
        ),
        ("ListMetadataRequest", messages.ListMetadataRequest(root=CHARGE)),
    ],
)
def test_what_we_ask_is_what_the_official_client_asks(name: str, message: Any) -> None:
    assert message.SerializeToString() == recorded(name)


def test_answers_that_the_official_client_wrote_are_read() -> None:
    values = messages.GetValuesResponse.FromString(recorded("GetValuesResponse"))
    assert [_datapoint(datapoint)[0] for datapoint in values.data_points] == [80.5, None]
    changes = messages.SubscribeResponse.FromString(recorded("SubscribeResponse"))
    assert {entry.key: _datapoint(entry.value)[0] for entry in changes.entries} == {
        CHARGE: 80.5,
        "Vehicle.Speed": None,
    }
    (metadata,) = messages.ListMetadataResponse.FromString(
        recorded("ListMetadataResponse")
    ).metadata
    assert (metadata.path, metadata.unit) == (CHARGE, "percent")
