"""What the dispatcher can know of a job's items before any car sees them."""

from collections.abc import Sequence

import msgspec

from edge_runtime.contract import limits
from edge_runtime.contract.http import ItemInput, Problem
from edge_runtime.contract.package import ModelSpec, TensorSpec
from edge_runtime.contract.tensors import BadTensor, Tensor, check_tensor

_OTHERS = 2
"""Of the three ways to give an item, those that are not used."""
_tensors = msgspec.msgpack.Decoder(list[Tensor])


def problem_with_items(spec: ModelSpec, items: Sequence[ItemInput]) -> Problem | None:
    """What is wrong with a job's items, naming field and limit; None when nothing is."""
    if not items:
        return Problem(
            code="empty", message="a job has at least one item", status=422, field="items"
        )
    for index, item in enumerate(items):
        problem = _problem_with_item(spec, item)
        if problem is not None:
            return msgspec.structs.replace(problem, field=f"items[{index}]{problem.field or ''}")
    return None


def _problem_with_item(spec: ModelSpec, item: ItemInput) -> Problem | None:
    if (item.data is None) + (item.text is None) + (item.ref is None) != _OTHERS:
        message = "an item has exactly one of data, text and ref"
        return Problem(code="invalid_field", message=message, status=422)
    if item.ref is not None:
        return None  # its bytes are looked at on the car
    size = len(item.data) if item.data is not None else len((item.text or "").encode())
    if size > limits.ITEM_MAX_BYTES:
        return Problem(
            code="too_large",
            message=f"the item has {size} bytes; at most {limits.ITEM_MAX_BYTES} travel inline",
            status=413,
            limit=f"ITEM_MAX_BYTES={limits.ITEM_MAX_BYTES}",
        )
    if spec.task == "tensor":
        return _problem_with_tensors(spec, item)
    return None


def _problem_with_tensors(spec: ModelSpec, item: ItemInput) -> Problem | None:
    try:
        tensors = _tensors.decode(item.data or b"")
        _check_tensors(tensors, spec.inputs)
    except BadTensor as bad:
        return Problem(code="wrong_tensor", message=str(bad), status=422, field=f".{bad.field}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"the item is no MessagePack list of tensors: {error}"
        return Problem(code="wrong_tensor", message=message, status=422, field=".data")
    return None


def _check_tensors(tensors: Sequence[Tensor], inputs: Sequence[TensorSpec]) -> None:
    """Raise `BadTensor` unless the tensors are the model's inputs, each of its type and shape."""
    wanted = {spec.name: spec for spec in inputs}
    names = sorted(tensor.name for tensor in tensors)
    if names != sorted(wanted):
        raise BadTensor("name", f"got inputs {names}; the model takes {sorted(wanted)}")
    for tensor in tensors:
        spec = wanted[tensor.name]
        if tensor.datatype != spec.datatype:
            raise BadTensor(
                f"{tensor.name}.datatype",
                f"{tensor.datatype!r}; the model takes {spec.datatype}",
            )
        fits = len(tensor.shape) == len(spec.shape) and all(
            free in (-1, given) for given, free in zip(tensor.shape, spec.shape, strict=True)
        )
        if not fits:
            raise BadTensor(
                f"{tensor.name}.shape",
                f"{list(tensor.shape)}; the model takes {list(spec.shape)} (-1 is free)",
            )
        check_tensor(tensor)
