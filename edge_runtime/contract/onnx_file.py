"""Finds weights outside an ONNX file, without the onnx package and without loading the model.

An ONNX file is a protobuf message. This module walks its wire format along the few fields that
can hold a tensor and skips everything else, so a file of any size costs milliseconds and no
memory. It knows field numbers only, no meaning: whether the model is valid is for ONNX Runtime.

Invariant: a file that ONNX Runtime could read as having external data is reported here; what
does not parse as protobuf is reported too, never skipped.

Deliberately absent: any check of operators or shapes.
"""

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from edge_runtime.contract import limits
from edge_runtime.contract.errors import RemoteError

_VARINT_BITS: Final = 63

_TENSOR: Final = "TensorProto"
_TENSOR_EXTERNAL_DATA: Final = 13
_TENSOR_DATA_LOCATION: Final = 14

# message -> field number -> message inside; from onnx.proto (field numbers never change).
_INSIDE: Final[Mapping[str, Mapping[int, str]]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: _TENSOR, 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: _TENSOR,
        6: "GraphProto",
        10: _TENSOR,
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: _TENSOR, 2: _TENSOR},
    _TENSOR: {},
}


class NotOnnx(RemoteError):  # noqa: N818 - named for what the file is
    """The bytes are not a protobuf message, or nest deeper than any real model."""


def has_external_data(path: Path) -> bool:
    """Whether any tensor of the ONNX file at `path` keeps its data in another file.

    Raises `NotOnnx` when the file is not protobuf and `OSError` when it cannot be read.
    """
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise NotOnnx("the file is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _message_has_external_data(data, 0, len(data), "ModelProto", 0)


def _message_has_external_data(
    data: mmap.mmap, start: int, end: int, message: str, depth: int
) -> bool:
    if depth > limits.ONNX_NESTING_MAX:
        raise NotOnnx(f"messages nest deeper than {limits.ONNX_NESTING_MAX}")
    inside = _INSIDE[message]
    for number, value, length in _fields(data, start, end):
        if message == _TENSOR:
            located_outside = number == _TENSOR_DATA_LOCATION and value != 0
            if located_outside or number == _TENSOR_EXTERNAL_DATA:
                return True
            continue
        child = inside.get(number)
        if child is None or length is None:
            continue
        if _message_has_external_data(data, value, value + length, child, depth + 1):
            return True
    return False


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int | None]]:
    """Yield (field number, offset, length) for bytes and (field number, value, None) else."""
    position = start
    while position < end:
        key, position = _varint(data, position, end)
        match key & 7:
            case 0:
                value, position = _varint(data, position, end)
                yield key >> 3, value, None
            case 1:
                position += 8
            case 2:
                length, position = _varint(data, position, end)
                if length > end - position:
                    raise NotOnnx("a field reaches past the end of its message")
                yield key >> 3, position, length
                position += length
            case 5:
                position += 4
            case wire_type:
                raise NotOnnx(f"wire type {wire_type} is not used by ONNX")
    if position != end:
        raise NotOnnx("a field reaches past the end of its message")


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= end:
            raise NotOnnx("the file ends inside a number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the continuation bit of a varint
            return value, position
        shift += 7
        if shift > _VARINT_BITS:
            raise NotOnnx("a number has more than 64 bits")
