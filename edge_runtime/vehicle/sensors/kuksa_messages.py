"""The messages of `kuksa.val.v2` that a subscriber needs, as protobuf classes made at import.

Names, numbers and types are those of `kuksa/val/v2/{val,types}.proto` of the KUKSA databroker
(0.6, protobuf syntax 3); `tests/vehicle/sensors/test_kuksa_messages.py` holds them to bytes that
the project's official Python client wrote. Written here rather than taken from that client's
package because it brings a compiler, a shell and a second gRPC (88 MB) with it.

Invariants
- They live in a descriptor pool of their own: another user of `kuksa.val.v2` in the same process
  is no conflict.
- A map travels as its entries and `google.protobuf.Timestamp` as its two fields, which are the
  same bytes. Array values are declared as bytes: no signal here is an array, and one is a wrong
  value rather than none.
"""

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE: Final = "kuksa.val.v2"
_Kind = descriptor_pb2.FieldDescriptorProto
ARRAYS: Final = (
    *("string_array", "bool_array", "int32_array", "int64_array"),
    *("uint32_array", "uint64_array", "float_array", "double_array"),
)

# Message -> fields: name, number, type (a message's by name), and whether there are many.
_FIELDS: Final[dict[str, tuple[tuple[str, int, int | str, bool], ...]]] = {
    "Timestamp": (
        ("seconds", 1, _Kind.TYPE_INT64, False),
        ("nanos", 2, _Kind.TYPE_INT32, False),
    ),
    "Value": (
        ("string", 11, _Kind.TYPE_STRING, False),
        ("bool", 12, _Kind.TYPE_BOOL, False),
        ("int32", 13, _Kind.TYPE_SINT32, False),
        ("int64", 14, _Kind.TYPE_SINT64, False),
        ("uint32", 15, _Kind.TYPE_UINT32, False),
        ("uint64", 16, _Kind.TYPE_UINT64, False),
        ("float", 17, _Kind.TYPE_FLOAT, False),
        ("double", 18, _Kind.TYPE_DOUBLE, False),
        *((name, 21 + place, _Kind.TYPE_BYTES, False) for place, name in enumerate(ARRAYS)),
    ),
    "Datapoint": (("timestamp", 1, "Timestamp", False), ("value", 2, "Value", False)),
    "SignalID": (("id", 1, _Kind.TYPE_INT32, False), ("path", 2, _Kind.TYPE_STRING, False)),
    "GetValuesRequest": (("signal_ids", 1, "SignalID", True),),
    "GetValuesResponse": (("data_points", 1, "Datapoint", True),),
    "SubscribeRequest": (
        ("signal_paths", 1, _Kind.TYPE_STRING, True),
        ("buffer_size", 2, _Kind.TYPE_UINT32, False),
    ),
    "Entry": (("key", 1, _Kind.TYPE_STRING, False), ("value", 2, "Datapoint", False)),
    "SubscribeResponse": (("entries", 1, "Entry", True),),
    "ListMetadataRequest": (("root", 1, _Kind.TYPE_STRING, False),),
    "Metadata": (
        ("path", 9, _Kind.TYPE_STRING, False),
        ("id", 10, _Kind.TYPE_INT32, False),
        ("unit", 16, _Kind.TYPE_STRING, False),
    ),
    "ListMetadataResponse": (("metadata", 1, "Metadata", True),),
}
_ONEOFS: Final = {"Value": "typed_value", "SignalID": "signal"}


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="edge_runtime/kuksa_val_v2.proto", package=_PACKAGE, syntax="proto3"
    )
    for message_name, fields in _FIELDS.items():
        message = file.message_type.add(name=message_name)
        if message_name in _ONEOFS:
            message.oneof_decl.add(name=_ONEOFS[message_name])
        for name, number, kind, is_many in fields:
            field = message.field.add(name=name, number=number)
            field.label = _Kind.LABEL_REPEATED if is_many else _Kind.LABEL_OPTIONAL
            if isinstance(kind, str):
                field.type = _Kind.TYPE_MESSAGE
                field.type_name = f".{_PACKAGE}.{kind}"
            else:
                field.type = kind
            if message_name in _ONEOFS:
                field.oneof_index = 0
    return file


_pool = descriptor_pool.DescriptorPool()
_pool.Add(_file())


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


Datapoint: Final = _message("Datapoint")
SignalID: Final = _message("SignalID")
GetValuesRequest: Final = _message("GetValuesRequest")
GetValuesResponse: Final = _message("GetValuesResponse")
SubscribeRequest: Final = _message("SubscribeRequest")
SubscribeResponse: Final = _message("SubscribeResponse")
ListMetadataRequest: Final = _message("ListMetadataRequest")
ListMetadataResponse: Final = _message("ListMetadataResponse")
