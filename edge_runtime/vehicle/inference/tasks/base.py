"""What a task is: from an item's bytes, as a person has them, to a small meaningful result.

Invariants
- A task keeps nothing of one item when the next begins.
- Whatever is wrong with an item ends as `ItemFailure` with a typed code and a message that
  names field and limit. `ItemStopped` passes through untouched: somebody wants the engine back.
- Sizes that an item claims (pixels, seconds, dimensions) are checked before memory is spent.

Deliberately absent: batching of items. On one CPU core it gains under 1.2 times for these models
(and loses for detection), and it makes every stop and every failure wait for its neighbours. An
item that is a batch by itself is run in pieces; see `batches`. Text generation, where it gains more
than four times, is no `Task`; see `generation`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from edge_runtime.contract import limits
from edge_runtime.contract.errors import RemoteError
from edge_runtime.contract.reasons import ItemError

Array = npt.NDArray[Any]
_Struct = TypeVar("_Struct", bound=msgspec.Struct)


class ItemFailure(RemoteError):  # noqa: N818 - one item fails; nothing else does
    """This item has no result; `code` says why and `detail` tells a person."""

    def __init__(self, code: ItemError, detail: str) -> None:
        super().__init__(f"{code.value}: {detail}")
        self.code = code
        self.detail = detail[: limits.TEXT_MAX_CHARS]


class ItemStopped(Exception):  # noqa: N818 - a wish, not an error
    """The computation was told to end before its result."""


class TensorInfo(Protocol):
    """What ONNX Runtime says of an input or output."""

    @property
    def name(self) -> str:
        """The tensor's name."""
        ...

    @property
    def type(self) -> str:
        """Its type as ONNX Runtime writes it, such as `tensor(float)`."""
        ...


class Session(Protocol):
    """A loaded ONNX model; `run` it through the `Runtime` only, so that it can be stopped."""

    def get_inputs(self) -> Sequence[TensorInfo]:
        """Return the model's inputs."""
        ...

    def get_outputs(self) -> Sequence[TensorInfo]:
        """Return the model's outputs."""
        ...

    def get_modelmeta(self) -> Any:
        """Return the model's metadata."""
        ...


class Binding(Protocol):
    """Where a run finds its inputs and leaves its outputs: arrays that must outlive it."""

    def bind_input(self, name: str, array: Array) -> None:
        """Have an input read from this array, whatever is in it by then."""
        ...

    def bind_output(self, name: str, array: Array) -> None:
        """Have an output written to this array, which has its type and shape."""
        ...


class Runtime(Protocol):
    """Loads and runs ONNX models under the engine's options."""

    def load(self, path: Path) -> Session:
        """Load a model file. Raises `ItemFailure` (model_error, out_of_memory)."""
        ...

    def run(self, session: Session, outputs: list[str], feeds: Mapping[str, Array]) -> list[Array]:
        """Run once with fresh run options.

        Raises `ItemStopped`, or `ItemFailure` (model_error, out_of_memory).
        """
        ...

    def bind(self, session: Session) -> Binding:
        """Return a binding with nothing bound yet."""
        ...

    def run_bound(self, session: Session, binding: Binding) -> None:
        """Run once with fresh run options, on arrays that stay where they are. Raises as `run`."""
        ...

    def rows_max(self, session: Session) -> int | None:
        """How many rows of a batch one run may have, so that it can be cancelled in time.

        None while that is being measured: one row at a time.
        """
        ...


class Task(Protocol):
    """A loaded model with what goes before and after it."""

    def run(self, data: bytes, media_type: str, parameters: Mapping[str, Any]) -> Any:
        """Return the item's result: dicts, lists, strings, numbers, bytes or `Tensor`s.

        Raises `ItemFailure` or `ItemStopped`.
        """
        ...


def parse_parameters(parameters: Mapping[str, Any], kind: type[_Struct]) -> _Struct:
    """Check the requester's parameters. Raises `ItemFailure` (invalid_parameters)."""
    try:
        return msgspec.convert(dict(parameters), kind)
    except msgspec.ValidationError as error:
        raise ItemFailure(ItemError.INVALID_PARAMETERS, f"parameters: {error}") from error


def rounded(values: npt.ArrayLike, digits: int) -> list[float]:
    """Return plain numbers without digits that mean nothing."""
    return [round(float(value), digits) for value in np.asarray(values).ravel()]
