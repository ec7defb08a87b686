"""`tensor`: any ONNX model; an item is a MessagePack array of named tensors, as is its result.

Each input is checked against `model.toml` before it runs: name, datatype, rank, fixed
dimensions, and that all inputs with a batch axis agree on its length. An item with more rows than
can be cancelled in time is run in pieces, where the package says that rows are independent: every
input and every output has a batch axis.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from edge_runtime.contract.package import ModelSpec, PackageFault, PackageRefused, TensorSpec
from edge_runtime.contract.reasons import ItemError
from edge_runtime.contract.tensors import BadTensor, Tensor, from_numpy, to_numpy
from edge_runtime.vehicle.inference.tasks.base import (
    Array,
    ItemFailure,
    Runtime,
    parse_parameters,
)
from edge_runtime.vehicle.inference.tasks.batches import Axes, run_in_pieces

_ONNX_TYPES: Final = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}

_FAULT_CODES: Final = {
    "datatype": ItemError.WRONG_DATATYPE,
    "shape": ItemError.WRONG_SHAPE,
    "data": ItemError.UNDECODABLE_INPUT,
}


class _Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    outputs: tuple[str, ...] | None = None
    """Names of the outputs wanted; all when not given."""


class TensorTask:
    """Runs named tensors through one model."""

    def __init__(self, folder: Path, spec: ModelSpec, runtime: Runtime) -> None:
        self._runtime = runtime
        self._inputs = {tensor.name: tensor for tensor in spec.inputs}
        self._session = runtime.load(spec.path_of("model", folder))
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._decoder = msgspec.msgpack.Decoder(list[Tensor])
        self._check_spec()
        self._axes = Axes.of(spec, self._outputs)

    def _check_spec(self) -> None:
        """Refuse a `model.toml` that describes another model than the file beside it."""
        inputs = {
            tensor.name: _ONNX_TYPES.get(tensor.type) for tensor in self._session.get_inputs()
        }
        declared = {name: tensor.datatype for name, tensor in self._inputs.items()}
        if inputs != declared:
            raise PackageRefused(
                PackageFault.BAD_SPEC, f"model.toml declares inputs {declared}, the file {inputs}"
            )

    def run(self, data: bytes, media_type: str, parameters: Mapping[str, Any]) -> list[Tensor]:
        """Return the outputs in the model's order; see `Task.run`."""
        del media_type  # tensors travel in one form only
        outputs = self._outputs
        if parameters:
            outputs = self._wanted(parse_parameters(parameters, _Parameters))
        try:
            tensors = self._decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ItemFailure(ItemError.UNDECODABLE_INPUT, f"not a list of tensors: {error}") from (
                error
            )
        feeds = self._feeds(tensors)
        if self._axes is None:
            results = self._runtime.run(self._session, outputs, feeds)
        else:
            results = run_in_pieces(self._runtime, self._session, outputs, feeds, self._axes)
        return [from_numpy(name, array) for name, array in zip(outputs, results, strict=True)]

    def _wanted(self, parameters: _Parameters) -> list[str]:
        if parameters.outputs is None:
            return self._outputs
        for name in parameters.outputs:
            if name not in self._outputs:
                raise ItemFailure(
                    ItemError.INVALID_PARAMETERS,
                    f"parameters: outputs names {name[:64]!r}; the model has {self._outputs}",
                )
        return list(parameters.outputs)

    def _feeds(self, tensors: list[Tensor]) -> dict[str, Array]:
        feeds: dict[str, Array] = {}
        batch: tuple[str, int] | None = None
        for tensor in tensors:
            spec = self._inputs.get(tensor.name)
            if spec is None or tensor.name in feeds:
                raise ItemFailure(
                    ItemError.WRONG_SHAPE,
                    f"input {tensor.name!r} is unknown or given twice; "
                    f"the model takes {list(self._inputs)}",
                )
            check_tensor(tensor, spec)
            if spec.batch_axis is not None:
                length = tensor.shape[spec.batch_axis]
                batch = batch or (tensor.name, length)
                if batch[1] != length:
                    raise ItemFailure(
                        ItemError.WRONG_SHAPE,
                        f"input {tensor.name!r} has {length} along its batch axis "
                        f"{spec.batch_axis}, {batch[0]!r} has {batch[1]}",
                    )
            try:
                feeds[tensor.name] = to_numpy(tensor)
            except BadTensor as error:
                raise ItemFailure(
                    _FAULT_CODES[error.field], f"input {tensor.name!r}: {error}"
                ) from error
        if len(feeds) != len(self._inputs):
            missing = [name for name in self._inputs if name not in feeds]
            raise ItemFailure(ItemError.WRONG_SHAPE, f"inputs {missing} are missing")
        return feeds


def check_tensor(tensor: Tensor, spec: TensorSpec) -> None:
    """Raise `ItemFailure` (wrong_datatype, wrong_shape) unless the tensor fits its spec."""
    if tensor.datatype != spec.datatype:
        raise ItemFailure(
            ItemError.WRONG_DATATYPE,
            f"input {tensor.name!r} is {tensor.datatype!r}; the model takes {spec.datatype}",
        )
    fits = len(tensor.shape) == len(spec.shape) and all(
        wanted in (-1, got) for got, wanted in zip(tensor.shape, spec.shape, strict=True)
    )
    if not fits:
        raise ItemFailure(
            ItemError.WRONG_SHAPE,
            f"input {tensor.name!r} has shape {list(tensor.shape)}; "
            f"the model takes {list(spec.shape)} (-1 is free)",
        )
