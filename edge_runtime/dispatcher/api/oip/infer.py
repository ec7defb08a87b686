"""The bodies of `infer`: JSON, with or without binary tensors behind it, to an item and back.

Invariants
- Binary tensors stay opaque: they are cut out of the body, counted, and copied once into the item,
  once out of the output. No element of one is looked at, except the lengths of BYTES.
- The length of the JSON part, each tensor's length and the length of the body must agree exactly:
  nothing of a body is read twice, and nothing of it is left over.

The rules are those of the protocol and of its binary data extension; what its clients really send
(inputs binary by default, `binary_data_output` where no output is named) was observed.
"""

import base64
import struct
from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from msgspec import Meta

from edge_runtime.contract import limits
from edge_runtime.contract.errors import RemoteError
from edge_runtime.contract.package import ModelSpec, TensorSpec
from edge_runtime.contract.tensors import BadTensor, Tensor, check_tensor, element_count
from edge_runtime.dispatcher.api.oip.errors import OipError, bad

_NUMPY_NAMES: Final = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1",
    "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
_LENGTH: Final = struct.Struct("<I")
_TENSOR_TASK: Final = "tensor"
ITEM_INPUT: Final = TensorSpec(name="input", datatype="BYTES", shape=(1,))
"""The input of a task that is no `tensor`: the item as it is, one element."""
ITEM_OUTPUT: Final = TensorSpec(name="output", datatype="BYTES", shape=(1,))
"""And its output: the result as JSON text."""

_Name = Annotated[str, Meta(max_length=limits.ID_MAX_CHARS)]


class _Parameters(msgspec.Struct):
    """Of a tensor. Names that are not known say nothing here."""

    binary_data_size: Annotated[int, Meta(ge=0)] | None = None
    binary_data: bool | None = None
    classification: int | None = None
    shared_memory_region: str | None = None


class _Input(msgspec.Struct):
    name: _Name
    shape: Annotated[list[Annotated[int, Meta(ge=0)]], Meta(max_length=limits.TENSOR_MAX_RANK)]
    datatype: _Name
    parameters: _Parameters | None = None
    data: msgspec.Raw = msgspec.Raw()


class _Output(msgspec.Struct):
    name: _Name
    parameters: _Parameters | None = None


class _RequestParameters(msgspec.Struct):
    """Of a request. `timeout` is in microseconds."""

    binary_data_output: bool = False
    timeout: Annotated[int, Meta(ge=0)] | None = None
    sequence_id: int | str = 0


_Inputs = Annotated[list[_Input], Meta(max_length=limits.PACKAGE_TENSORS_MAX)]
_Outputs = Annotated[list[_Output], Meta(max_length=limits.PACKAGE_TENSORS_MAX)]


class _InferRequest(msgspec.Struct):
    inputs: _Inputs
    id: Annotated[str, Meta(max_length=limits.TEXT_MAX_CHARS)] | None = None
    parameters: _RequestParameters | None = None
    outputs: _Outputs | None = None


class _OutTensor(msgspec.Struct):
    """A tensor of an output, its bytes where they lie."""

    name: str
    datatype: str
    shape: list[int]
    data: memoryview


_requests = msgspec.json.Decoder(_InferRequest)
_outputs = msgspec.msgpack.Decoder(list[_OutTensor])
_encode = msgspec.msgpack.Encoder().encode
_encode_json = msgspec.json.Encoder().encode
_ALL_OUTPUTS: Final = _encode({})


class BadOutput(RemoteError):  # noqa: N818 - named for what it is
    """A car's output is not what its model gives."""


class Inference:
    """One request, understood. `wants` maps the outputs asked for to "as binary"; None: all."""

    __slots__ = ("id", "is_binary", "item", "parameters", "rows", "timeout_us", "wants")

    def __init__(self) -> None:
        self.id: str | None = None
        self.item = b""
        self.rows = 1
        self.parameters = _ALL_OUTPUTS
        self.timeout_us: int | None = None
        self.wants: dict[str, bool] | None = None
        self.is_binary = False


class Interface:
    """What a model takes and gives, as the protocol's clients see it."""

    def __init__(self, spec: ModelSpec) -> None:
        self.is_tensor = spec.task == _TENSOR_TASK
        self.inputs = spec.inputs if self.is_tensor else (ITEM_INPUT,)
        self.outputs = spec.outputs if self.is_tensor else (ITEM_OUTPUT,)
        self._by_name = {tensor.name: tensor for tensor in self.inputs}
        self._output_names = {tensor.name for tensor in self.outputs}
        axes = [tensor.batch_axis for tensor in (*self.inputs, *self.outputs)]
        self.is_batched = self.is_tensor and bool(axes) and None not in axes

    # --- requests ---

    def read(self, body: bytes, header_length: int | None) -> Inference:
        """Understand a body; `header_length` is that of its JSON, None: all of it is.

        Raises `OipError`.
        """
        if header_length == 0:
            return self._read_raw(body)
        if header_length is not None and header_length > limits.OIP_BODY_MAX_BYTES:
            raise _json_too_large(header_length)
        if header_length is not None and header_length > len(body):
            raise bad(
                f"Inference-Header-Content-Length is {header_length}; the body has {len(body)}"
            )
        blobs = memoryview(body)[len(body) if header_length is None else header_length :]
        try:
            request = _requests.decode(memoryview(body)[:header_length])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise bad(f"the inference request is not right: {error}"[:500]) from None
        inference = Inference()
        inference.id = request.id
        if request.parameters is not None:
            inference.timeout_us = request.parameters.timeout
            inference.is_binary = request.parameters.binary_data_output
            if request.parameters.sequence_id:
                raise bad("parameters.sequence_id: models here keep no state between requests")
        self._want(inference, request.outputs)
        self._fill(inference, request.inputs, blobs)
        return inference

    def _want(self, inference: Inference, outputs: list[_Output] | None) -> None:
        if not outputs:
            return
        wants: dict[str, bool] = {}
        for output in outputs:
            if output.name not in self._output_names:
                raise bad(
                    f"unexpected inference output {output.name!r}; "
                    f"the model gives {sorted(self._output_names)}"
                )
            parameters = output.parameters
            if parameters is not None and parameters.classification:
                raise bad(f"output {output.name!r}: classification is not offered")
            _no_shared_memory(output.name, parameters)
            binary = None if parameters is None else parameters.binary_data
            wants[output.name] = inference.is_binary if binary is None else binary
        inference.wants = wants
        if self.is_tensor and len(wants) < len(self._output_names):
            inference.parameters = _encode({"outputs": list(wants)})

    def _fill(self, inference: Inference, inputs: Sequence[_Input], blobs: memoryview) -> None:
        """Make the item of the inputs, and count its rows."""
        tensors: list[Tensor] = []
        position = 0
        for given in inputs:
            spec = self._by_name.get(given.name)
            if spec is None:
                raise bad(
                    f"unexpected inference input {given.name!r}; "
                    f"the model takes {sorted(self._by_name)}"
                )
            _no_shared_memory(given.name, given.parameters)
            size = None if given.parameters is None else given.parameters.binary_data_size
            if size is not None:
                end = position + size
                if end > len(blobs):
                    raise bad(
                        f"input {given.name!r} has a binary_data_size of {size}; "
                        f"{len(blobs) - position} bytes are left of the body"
                    )
                data: bytes | memoryview = blobs[position:end]
                position = end
                if given.datatype == "BYTES":
                    data = bytes(data)  # its elements are looked at
                if len(given.data):
                    raise bad(f"input {given.name!r} has both data and binary_data_size")
            else:
                data = _from_json(given)
            tensors.append(Tensor(given.name, given.datatype, tuple(given.shape), data))  # type: ignore[arg-type]  # a view of the body: encoded as its bytes
        if position != len(blobs):
            raise bad(f"{len(blobs) - position} bytes of the body belong to no input")
        self._finish(inference, tensors)

    def _finish(self, inference: Inference, tensors: list[Tensor]) -> None:
        names = [tensor.name for tensor in tensors]
        if len(names) != len(self._by_name) or len(set(names)) != len(names):
            raise bad(f"expected the inputs {sorted(self._by_name)} once each, got {names}")
        rows: int | None = None
        for tensor in tensors:
            spec = self._by_name[tensor.name]
            if self.is_tensor:
                _no_large_strings(tensor)
                _check(tensor, spec)
            else:
                _check_item(tensor)
            if self.is_batched and spec.batch_axis is not None:
                length = tensor.shape[spec.batch_axis]
                if rows not in {None, length}:
                    raise bad(f"input {tensor.name!r} has {length} rows, another has {rows}")
                rows = length
        inference.rows = rows or 1
        inference.item = _encode(tensors) if self.is_tensor else bytes(tensors[0].data[4:])

    def _read_raw(self, body: bytes) -> Inference:
        """A body that is one input and nothing else: a batch of one, all outputs binary."""
        if len(self.inputs) != 1:
            raise bad(f"a raw binary request needs a model of one input, not {len(self.inputs)}")
        (spec,) = self.inputs
        inference = Inference()
        inference.is_binary = True
        data = body if spec.datatype != "BYTES" else _LENGTH.pack(len(body)) + body
        shape = _raw_shape(spec, len(body))
        self._finish(inference, [Tensor(spec.name, spec.datatype, shape, data)])
        return inference

    # --- answers ---

    def answer(
        self, inference: Inference, output: bytes, name: str, version: str
    ) -> tuple[bytes, int | None]:
        """(the body of the response, the length of its JSON where more than that is in it).

        Raises `BadOutput` where the car's word is no list of tensors, or no value at all.
        """
        try:
            tensors = self._tensors(output)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BadTensor) as error:
            raise BadOutput(str(error)[:200]) from None
        views: list[dict[str, Any]] = []
        blobs: list[bytes | memoryview] = []
        for tensor in tensors:
            wants = inference.wants
            if wants is not None and tensor.name not in wants:
                continue
            view: dict[str, Any] = {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": tensor.shape,
            }
            if inference.is_binary if wants is None else wants[tensor.name]:
                view["parameters"] = {"binary_data_size": len(tensor.data)}
                blobs.append(tensor.data)
            else:
                _no_large_json(tensor)
                view["data"] = _to_json(tensor)
            views.append(view)
        header: dict[str, Any] = {"model_name": name, "model_version": version, "outputs": views}
        if inference.id is not None:
            header["id"] = inference.id
        text = _encode_json(header)
        if not blobs:
            return text, None
        return b"".join((text, *blobs)), len(text)

    def _tensors(self, output: bytes) -> list[_OutTensor]:
        """The outputs, each of as many bytes as its shape says."""
        if self.is_tensor:
            tensors = _outputs.decode(output)
            for tensor in tensors:
                is_bytes = tensor.datatype == "BYTES"
                data: Any = bytes(tensor.data) if is_bytes else tensor.data
                check_tensor(Tensor(tensor.name, tensor.datatype, tuple(tensor.shape), data))
            return tensors
        text = _encode_json(_readable(msgspec.msgpack.decode(output)))
        data = memoryview(_LENGTH.pack(len(text)) + text)
        return [_OutTensor(ITEM_OUTPUT.name, "BYTES", [1], data)]


def _readable(value: Any) -> Any:
    """A result with its bytes as base64, which is what JSON can say of them."""
    match value:
        case bytes():
            return base64.b64encode(value).decode()
        case list():
            return [_readable(part) for part in value]
        case dict():
            return {str(name): _readable(part) for name, part in value.items()}
        case None | bool() | int() | float() | str():
            return value
        case _:
            return str(value)


def _no_large_json(tensor: _OutTensor) -> None:
    """400 for an output that JSON would make several times as large."""
    if len(tensor.data) > limits.OIP_JSON_OUTPUT_MAX_BYTES:
        raise bad(
            f"output {tensor.name!r} has {len(tensor.data)} bytes: over "
            f"{limits.OIP_JSON_OUTPUT_MAX_BYTES} (OIP_JSON_OUTPUT_MAX_BYTES) it travels as binary "
            "only; ask for it with binary_data"
        )


def _no_large_strings(tensor: Tensor) -> None:
    """413 for strings that do not travel inline: each would be looked at, by us and by the car."""
    if tensor.datatype == "BYTES" and len(tensor.data) > limits.ITEM_MAX_BYTES:
        raise OipError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"input {tensor.name!r} has {len(tensor.data)} bytes of strings; at most "
            f"{limits.ITEM_MAX_BYTES} (ITEM_MAX_BYTES)",
        )


def _json_too_large(size: int) -> OipError:
    text = f"the JSON is over {limits.OIP_BODY_MAX_BYTES} bytes (OIP_BODY_MAX_BYTES): {size}"
    return OipError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text)


def _no_shared_memory(name: str, parameters: _Parameters | None) -> None:
    if parameters is not None and parameters.shared_memory_region is not None:
        raise bad(f"{name!r}: shared memory is not offered")


def _check(tensor: Tensor, spec: TensorSpec) -> None:
    """Raise `OipError` unless the tensor is what the model takes."""
    if tensor.datatype != spec.datatype:
        raise bad(
            f"inference input {tensor.name!r} data-type is {tensor.datatype!r}, "
            f"but the model expects {spec.datatype!r}"
        )
    fits = len(tensor.shape) == len(spec.shape) and all(
        free in (-1, given) for given, free in zip(tensor.shape, spec.shape, strict=True)
    )
    if not fits:
        raise bad(
            f"unexpected shape for input {tensor.name!r}: {list(tensor.shape)}; "
            f"the model expects {list(spec.shape)} (-1 is free)"
        )
    try:
        check_tensor(tensor)
    except BadTensor as error:
        raise bad(f"input {tensor.name!r}: {error}") from None


def _check_item(tensor: Tensor) -> None:
    """Raise `OipError` unless this is one element of BYTES, whatever is in it."""
    is_one = len(tensor.data) >= _LENGTH.size and (
        _LENGTH.unpack_from(tensor.data)[0] == len(tensor.data) - _LENGTH.size
    )
    if tensor.datatype != "BYTES" or element_count(tensor.shape) != 1 or not is_one:
        raise bad(f"input {tensor.name!r} is to be one element of BYTES: one item a request")


def _raw_shape(spec: TensorSpec, size: int) -> tuple[int, ...]:
    """The shape of a raw input: a batch of one, and at most one dimension by its length."""
    shape = [1 if axis == spec.batch_axis else side for axis, side in enumerate(spec.shape)]
    free = [axis for axis, side in enumerate(shape) if side == -1]
    if spec.datatype == "BYTES":
        return tuple(1 if side == -1 else side for side in shape)
    if len(free) > 1:
        raise bad(f"input {spec.name!r} has several free dimensions: a raw request cannot say them")
    if free:
        one = np.dtype(_NUMPY_NAMES[spec.datatype]).itemsize * element_count(
            tuple(1 if side == -1 else side for side in shape)
        )
        shape[free[0]] = size // max(one, 1)
    return tuple(shape)


def _from_json(given: _Input) -> bytes:
    """A tensor's bytes from its JSON data, nested or flat, row-major. Raises `OipError`."""
    where = f"input {given.name!r}"
    if not len(given.data):
        raise bad(f"{where} has neither data nor binary_data_size")
    try:
        values = msgspec.json.decode(given.data)
        count = element_count(tuple(given.shape))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BadTensor) as error:
        raise bad(f"{where}: {error}") from None
    if not isinstance(values, list):
        raise bad(f"{where}: data is not a list")
    if given.datatype == "BYTES":
        return _strings(where, values, count)
    name = _NUMPY_NAMES.get(given.datatype)
    if name is None:
        raise bad(f"{where}: {given.datatype!r} is no datatype of JSON data")
    return _numbers(where, values, name, count)


def _numbers(where: str, values: list[Any], name: str, count: int) -> bytes:
    try:
        array = np.array(values)
        if array.size and array.dtype.kind not in ("b" if name == "?" else "biuf"):
            raise bad(f"{where}: data holds something else than {name} values")
        if array.dtype.kind == "f" and np.dtype(name).kind in "iu":
            raise bad(f"{where}: data holds fractions; the datatype has none")
        exact = np.array(values, dtype=name) if array.size else np.empty(0, name)
    except (ValueError, TypeError, OverflowError) as error:
        raise bad(f"{where}: data is no array of its datatype: {error}"[:300]) from None
    if exact.size != count:
        raise bad(f"{where}: the shape says {count} elements, data has {exact.size}")
    return exact.tobytes()


def _strings(where: str, values: list[Any], count: int) -> bytes:
    flat: list[bytes] = []
    waiting = list(reversed(values))
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(reversed(value))
        elif isinstance(value, str):
            flat.append(value.encode())
        else:
            raise bad(f"{where}: data holds something else than strings")
    if len(flat) != count:
        raise bad(f"{where}: the shape says {count} elements, data has {len(flat)}")
    return b"".join(_LENGTH.pack(len(text)) + text for text in flat)


def _to_json(tensor: _OutTensor) -> list[Any]:
    if tensor.datatype != "BYTES":
        array = np.frombuffer(tensor.data, _NUMPY_NAMES[tensor.datatype])
        values: list[Any] = array.tolist()
        return values
    strings: list[Any] = []
    position = 0
    while position < len(tensor.data):
        (length,) = _LENGTH.unpack_from(tensor.data, position)
        position += _LENGTH.size
        strings.append(bytes(tensor.data[position : position + length]).decode(errors="replace"))
        position += length
    return strings
