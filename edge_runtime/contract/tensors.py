"""Tensors on the wire: Open Inference Protocol datatypes, little-endian, row-major.

Invariants: nothing here trusts a length; a tensor becomes an array only when datatype, shape
and byte count agree. numpy is imported by the functions that need it, so that a process that
only carries tensors (an idle car, the dispatcher) stays light.

Deliberately absent: BF16 (numpy has no such type) and nested JSON data.
"""

import math
import struct
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta

from edge_runtime.contract import limits
from edge_runtime.contract.errors import RemoteError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[Any]

_NUMPY_NAMES: Final = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
_DATATYPES: Final = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "object": "BYTES",
}
_LENGTH: Final = struct.Struct("<I")


class BadTensor(RemoteError):  # noqa: N818 - named for what it is
    """A tensor contradicts itself; `field` is "datatype", "shape" or "data"."""

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(f"{field}: {detail}")
        self.field = field
        self.detail = detail


class Tensor(msgspec.Struct, frozen=True):
    """A named tensor: `data` holds the elements little-endian, last axis fastest.

    BYTES elements are a 4-byte little-endian length each, followed by that many bytes.
    """

    name: Annotated[str, Meta(max_length=limits.ID_MAX_CHARS)]
    datatype: Annotated[str, Meta(max_length=limits.ID_MAX_CHARS)]
    shape: Annotated[tuple[int, ...], Meta(max_length=limits.TENSOR_MAX_RANK)]
    data: bytes


def element_count(shape: tuple[int, ...]) -> int:
    """Return the number of elements; raises `BadTensor` (shape) when negative or over limits."""
    if len(shape) > limits.TENSOR_MAX_RANK:
        raise BadTensor("shape", f"rank {len(shape)}; the limit is {limits.TENSOR_MAX_RANK}")
    if any(dimension < 0 for dimension in shape):
        raise BadTensor("shape", f"{list(shape)} has a negative dimension")
    # Of an empty tensor too: numpy refuses sides that would be too many elements without the 0.
    count = math.prod(dimension or 1 for dimension in shape)
    if count > limits.TENSOR_MAX_ELEMENTS:
        raise BadTensor(
            "shape",
            f"{list(shape)} has {count} elements; the limit is {limits.TENSOR_MAX_ELEMENTS}",
        )
    return 0 if 0 in shape else count


def to_numpy(tensor: Tensor) -> "Array":
    """Return the tensor as an array; a read-only view of its bytes where that is possible.

    BYTES becomes an object array of `str` when every element is UTF-8, as ONNX Runtime wants
    strings. Raises `BadTensor` where datatype, shape and data do not agree.
    """
    import numpy as np  # noqa: PLC0415 - carrying a tensor must not load numpy

    count = element_count(tensor.shape)
    if tensor.datatype == "BYTES":
        return np.array(_strings(tensor.data, count), dtype=object).reshape(tensor.shape)
    return np.frombuffer(tensor.data, dtype=_fitting_type(tensor, count)).reshape(tensor.shape)


def check_tensor(tensor: Tensor) -> None:
    """Raise `BadTensor` where `to_numpy` would, at a fraction of its cost."""
    count = element_count(tensor.shape)
    if tensor.datatype == "BYTES":
        _strings(tensor.data, count)
    else:
        _fitting_type(tensor, count)


def _fitting_type(tensor: Tensor, count: int) -> str:
    """The element type as numpy names it, where that many elements are the data."""
    name = _NUMPY_NAMES.get(tensor.datatype)
    if name is None:
        known = ", ".join((*_NUMPY_NAMES, "BYTES"))
        raise BadTensor("datatype", f"{tensor.datatype!r} is not one of {known}")
    needed = count * (1 if name == "?" else int(name[-1]))
    if needed != len(tensor.data):
        raise BadTensor(
            "data",
            f"{tensor.datatype} {list(tensor.shape)} needs {needed} bytes, got {len(tensor.data)}",
        )
    return name


def from_numpy(name: str, array: "Array | np.generic") -> Tensor:
    """Return the array as a tensor (one copy).

    Raises `BadTensor` (datatype) for element types without a name on the wire.
    """
    import numpy as np  # noqa: PLC0415 - as in `to_numpy`

    whole = np.asarray(array)
    datatype = _DATATYPES.get(whole.dtype.name)
    if datatype is None:
        raise BadTensor("datatype", f"{whole.dtype.name} has no Open Inference Protocol name")
    if datatype == "BYTES":
        data = b"".join(_packed(element) for element in whole.ravel().tolist())
    elif whole.dtype.byteorder == ">":
        data = whole.astype(whole.dtype.newbyteorder("<")).tobytes()
    else:
        data = whole.tobytes()
    return Tensor(name=name, datatype=datatype, shape=whole.shape, data=data)


def _packed(element: object) -> bytes:
    data = element if isinstance(element, bytes) else str(element).encode()
    return _LENGTH.pack(len(data)) + data


def _strings(data: bytes, count: int) -> list[str]:
    strings: list[str] = []
    position = 0
    for _ in range(count):
        end = position + _LENGTH.size
        if end > len(data):
            raise BadTensor("data", f"ends after {len(strings)} of {count} BYTES elements")
        (length,) = _LENGTH.unpack_from(data, position)
        if length > len(data) - end:
            raise BadTensor("data", f"BYTES element {len(strings)} reaches past the end")
        position = end + length
        try:
            strings.append(data[end:position].decode())
        except UnicodeDecodeError as error:
            raise BadTensor("data", f"BYTES element {len(strings)} is not UTF-8") from error
    if position != len(data):
        raise BadTensor("data", f"{len(data) - position} bytes follow the last BYTES element")
    return strings
