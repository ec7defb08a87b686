"""Writes kuksa_recorded.json with the official client; run it where `kuksa-client` is installed."""

import json
from pathlib import Path
from typing import Any

from kuksa.val.v2 import types_pb2 as types
from kuksa.val.v2 import val_pb2 as val

CHARGE = "Vehicle.Powertrain.TractionBattery.StateOfCharge.Displayed"
VALUES: dict[str, dict[str, Any]] = {
    "string": {"string": "EMPTY"},
    "bool_true": {"bool": True},
    "bool_false": {"bool": False},
    "int32": {"int32": -126},
    "int64": {"int64": -(2**40)},
    "uint32": {"uint32": 7},
    "uint64": {"uint64": 2**50},
    "float": {"float": 80.5},
    "double": {"double": -1e300},
    "float_nan": {"float": float("nan")},
    "float_inf": {"float": float("inf")},
    "string_array": {"string_array": types.StringArray(values=["a", "b"])},
    "bool_array": {"bool_array": types.BoolArray(values=[True])},
    "int32_array": {"int32_array": types.Int32Array(values=[1])},
    "int64_array": {"int64_array": types.Int64Array(values=[1])},
    "uint32_array": {"uint32_array": types.Uint32Array(values=[1])},
    "uint64_array": {"uint64_array": types.Uint64Array(values=[1])},
    "float_array": {"float_array": types.FloatArray(values=[1.0])},
    "double_array": {"double_array": types.DoubleArray(values=[1.0])},
}


def datapoint(**value: Any) -> Any:
    stamp = {"seconds": 1_795_000_000, "nanos": 123_000_000}
    return types.Datapoint(timestamp=stamp, value=types.Value(**value))


def messages() -> dict[str, Any]:
    values = {f"Datapoint/{name}": datapoint(**value) for name, value in VALUES.items()}
    metadata = types.Metadata(
        path=CHARGE,
        id=3,
        data_type=types.DATA_TYPE_FLOAT,
        entry_type=types.ENTRY_TYPE_SENSOR,
        description="d",
        comment="c",
        unit="percent",
        min=types.Value(float=0),
        max=types.Value(float=100),
    )
    return values | {
        "Datapoint/none": types.Datapoint(timestamp={"seconds": 1_795_000_000}),
        "GetValuesRequest": val.GetValuesRequest(
            signal_ids=[types.SignalID(path=CHARGE), types.SignalID(path="Vehicle.Speed")]
        ),
        "GetValuesResponse": val.GetValuesResponse(
            data_points=[datapoint(float=80.5), types.Datapoint()]
        ),
        "SubscribeRequest": val.SubscribeRequest(
            signal_paths=[CHARGE, "Vehicle.Speed"], buffer_size=1000
        ),
        "SubscribeResponse": val.SubscribeResponse(
            entries={CHARGE: datapoint(float=80.5), "Vehicle.Speed": types.Datapoint()}
        ),
        "ListMetadataRequest": val.ListMetadataRequest(root=CHARGE),
        "ListMetadataResponse": val.ListMetadataResponse(metadata=[metadata]),
    }


def main() -> None:
    written = {
        name: message.SerializeToString(deterministic=True).hex()
        for name, message in messages().items()
    }
    record = {"made_by": "kuksa-client 0.6.0 (kuksa.val.v2)", "messages": written}
    path = Path(__file__).parent / "kuksa_recorded.json"
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
