"""An item that is a batch, run in pieces small enough to be cancelled in time.

Invariants
- The pieces' results, put together, have the rows of the item, in order.
- A piece has at most `Runtime.rows_max` rows; while that is not known, one.
- Between two pieces a stop takes effect at once.

Rows are independent by the package's own word (`batch_axis`). What rounding makes of a matrix
product may still depend on how many rows it has, in the last digits; a package whose results
depend on their neighbours must not declare the axis.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from edge_runtime.contract.package import ModelSpec
from edge_runtime.contract.reasons import ItemError
from edge_runtime.vehicle.inference.tasks.base import Array, ItemFailure, Runtime, Session


@dataclass(frozen=True, slots=True)
class Axes:
    """The batch axis of every input and output, by name."""

    inputs: Mapping[str, int]
    outputs: Mapping[str, int]

    @classmethod
    def of(cls, spec: ModelSpec, outputs: list[str]) -> Self | None:
        """Return the axes, or None unless every input and each of these outputs has one."""
        given = {tensor.name: tensor.batch_axis for tensor in spec.inputs}
        taken = {tensor.name: tensor.batch_axis for tensor in spec.outputs}
        inputs = {name: axis for name, axis in given.items() if axis is not None}
        found = {name: axis for name in outputs if (axis := taken.get(name)) is not None}
        is_whole = bool(given) and len(inputs) == len(given) and len(found) == len(outputs)
        return cls(inputs, found) if is_whole else None


def run_in_pieces(
    runtime: Runtime, session: Session, outputs: list[str], feeds: Mapping[str, Array], axes: Axes
) -> list[Array]:
    """Run a batch of any length; returns as `Runtime.run`, and raises as it does.

    Raises `ItemFailure` (model_error) when an output lacks the rows that the package promises.
    """
    name, axis = next(iter(axes.inputs.items()))
    rows = feeds[name].shape[axis]
    pieces: list[list[Array]] = []
    start = 0
    while start < rows or not pieces:
        stop = min(rows, start + (runtime.rows_max(session) or 1))
        if start == 0 and stop >= rows:
            return runtime.run(session, outputs, feeds)
        piece = {name: _cut(feeds[name], axes.inputs[name], start, stop) for name in feeds}
        results = runtime.run(session, outputs, piece)
        _check_rows(outputs, results, axes, stop - start)
        pieces.append(results)
        start = stop
    columns = zip(*pieces, strict=True)
    return [
        np.concatenate(column, axis=axes.outputs[output])
        for output, column in zip(outputs, columns, strict=True)
    ]


def _cut(array: Array, axis: int, start: int, stop: int) -> Array:
    """Return rows `start` to `stop`, as ONNX Runtime takes them: in one piece of memory."""
    window = (slice(None),) * axis + (slice(start, stop),)
    return np.ascontiguousarray(array[window])


def _check_rows(outputs: list[str], results: list[Array], axes: Axes, rows: int) -> None:
    for output, result in zip(outputs, results, strict=True):
        axis = axes.outputs[output]
        if result.ndim <= axis or result.shape[axis] != rows:
            raise ItemFailure(
                ItemError.MODEL_ERROR,
                f"output {output!r} has shape {list(result.shape)} for {rows} rows; model.toml"
                f" says that axis {axis} is its batch axis",
            )
