"""ONNX Runtime as the engine's worker uses it: bounded, deterministic in threads, stoppable.

Invariants
- No spinning threads, no fallback to another provider, no custom-op libraries.
- Every run has its own `RunOptions`: the terminate flag is sticky, so it is set on one run and
  thrown away with it.
- A `Computation` may be stopped from another thread at any time; what runs ends at its next
  graph node.
- A model whose longest node is not known here is profiled in its first runs, and in no later one.

This module imports onnxruntime and is imported by the worker process only.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast
from weakref import WeakKeyDictionary

import onnxruntime as ort

from edge_runtime.contract import limits
from edge_runtime.contract.errors import LocalError
from edge_runtime.contract.reasons import ItemError
from edge_runtime.vehicle.inference import profiling
from edge_runtime.vehicle.inference.tasks.base import (
    Array,
    Binding,
    ItemFailure,
    ItemStopped,
    Session,
)

_TERMINATED: Final = "terminate flag"
_OUT_OF_MEMORY: Final = ("bad_alloc", "Failed to allocate memory", "bad allocation")
_LOG_ERRORS_ONLY: Final = 3


class Computation:
    """One item's computation, which may be several runs; `stop` may come from any thread."""

    __slots__ = ("_is_stopped", "_options")

    def __init__(self) -> None:
        self._is_stopped = False
        self._options: Any = None

    @property
    def is_stopped(self) -> bool:
        """Whether somebody wants it to end."""
        return self._is_stopped

    def stop(self) -> None:
        """End the current run at its next node, and every run of this item after it."""
        # The order matters: `start` first shows the options and then looks at the flag, so
        # either they are found here or the flag is seen there.
        self._is_stopped = True
        options = self._options
        if options is not None:
            options.terminate = True

    def start(self) -> Any:
        """Return options for one run. Raises `ItemStopped` when it may not begin any more."""
        self._options = ort.RunOptions()
        if self._is_stopped:
            raise ItemStopped
        return self._options


@dataclass(eq=False, slots=True)
class _Nodes:
    """What is known of one model's nodes; `open_sessions` are profiled, with runs so far."""

    digest: str
    node_ms: float | None
    open_sessions: dict[Any, int] = field(default_factory=dict)
    longest_ms: float = 0.0


class OrtBinding:
    """Arrays bound to a session's inputs and outputs without a copy; it keeps them alive."""

    def __init__(self, session: Session) -> None:
        self.io = cast("Any", session).io_binding()
        self._arrays: list[Array] = []

    def bind_input(self, name: str, array: Array) -> None:
        """Have an input read from this array."""
        self.io.bind_input(name, "cpu", 0, array.dtype.type, array.shape, self._keep(array))

    def bind_output(self, name: str, array: Array) -> None:
        """Have an output written to this array."""
        self.io.bind_output(name, "cpu", 0, array.dtype.type, array.shape, self._keep(array))

    def _keep(self, array: Array) -> int:
        """Return where the array's one piece of memory begins."""
        if not array.flags.c_contiguous:
            raise LocalError(f"an array of shape {array.shape} is not in one piece")
        self._arrays.append(array)
        return array.ctypes.data


class OrtRuntime:
    """Loads and runs sessions for one thread. Profiles are written in `scratch`, for a moment."""

    def __init__(self, *, provider: str, intra_op_threads: int, scratch: Path) -> None:
        ort.set_default_logger_severity(_LOG_ERRORS_ONLY)
        ort.disable_telemetry_events()
        self._provider = provider
        self._intra_op_threads = intra_op_threads
        self._computation = Computation()
        self._scratch = scratch
        self._loading = _Nodes("", 0.0)
        self._nodes: WeakKeyDictionary[Any, _Nodes] = WeakKeyDictionary()
        self._measured: dict[str, float] = {}

    def begin_model(self, digest: str, node_ms: float | None) -> None:
        """What is loaded from now on is of this model; `node_ms` None: measure its nodes."""
        self._loading = _Nodes(digest, node_ms)

    def take_measured(self) -> dict[str, float]:
        """Return what has been measured since the last call: milliseconds by digest."""
        measured, self._measured = self._measured, {}
        return measured

    def load(self, path: Path) -> Session:
        """Load a model file; see `Runtime.load`."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._intra_op_threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        nodes = self._loading
        if nodes.node_ms is None:
            options.enable_profiling = True
            options.profile_file_prefix = str(self._scratch / "profile")
        try:
            session = ort.InferenceSession(
                str(path), sess_options=options, providers=[self._provider]
            )
        except Exception as error:  # ONNX Runtime's own errors share no base but this
            raise _failure(error, path.name) from error
        session.disable_fallback()
        self._nodes[session] = nodes
        if nodes.node_ms is None:
            nodes.open_sessions[session] = 0
        return cast("Session", session)

    def rows_max(self, session: Session) -> int | None:
        """How many rows of a batch one run may have; see `Runtime.rows_max`."""
        node_ms = self._nodes[session].node_ms
        return None if node_ms is None else profiling.rows_max(node_ms)

    def run(self, session: Session, outputs: list[str], feeds: Mapping[str, Array]) -> list[Array]:
        """Run once; see `Runtime.run`."""
        return cast(
            "list[Array]",
            self._run(session, lambda options: cast("Any", session).run(outputs, feeds, options)),
        )

    def bind(self, session: Session) -> Binding:
        """Return a binding with nothing bound yet."""
        return OrtBinding(session)

    def run_bound(self, session: Session, binding: Binding) -> None:
        """Run once on bound arrays; see `Runtime.run_bound`."""
        bound = cast("OrtBinding", binding).io
        self._run(session, lambda options: cast("Any", session).run_with_iobinding(bound, options))

    def _run(self, session: Session, run: Callable[[Any], Any]) -> Any:
        computation = self._computation
        options = computation.start()
        try:
            results = run(options)
        except Exception as error:  # ONNX Runtime's own errors share no base but this
            if computation.is_stopped and _TERMINATED in str(error):
                raise ItemStopped from error
            raise _failure(error, "run") from error
        nodes = self._nodes[session]
        if session in nodes.open_sessions:
            self._profiled(session, nodes)
        return results

    def _profiled(self, session: Any, nodes: _Nodes) -> None:
        """A profiled run is over; the last one that is wanted ends the profile."""
        nodes.open_sessions[session] += 1
        if nodes.open_sessions[session] < limits.PROFILE_RUNS:
            return
        del nodes.open_sessions[session]
        longest_ms = profiling.take_profile(Path(session.end_profiling()))
        nodes.longest_ms = max(nodes.longest_ms, longest_ms)
        if not nodes.open_sessions:
            nodes.node_ms = self._measured[nodes.digest] = nodes.longest_ms

    def begin(self) -> Computation:
        """Start a new item; what is stopped before the return is not this one."""
        self._computation = Computation()
        return self._computation


def _failure(error: Exception, where: str) -> ItemFailure:
    message = str(error)
    if isinstance(error, MemoryError) or any(sign in message for sign in _OUT_OF_MEMORY):
        return ItemFailure(ItemError.OUT_OF_MEMORY, f"{where}: {message}")
    return ItemFailure(ItemError.MODEL_ERROR, f"{where}: {message}")
