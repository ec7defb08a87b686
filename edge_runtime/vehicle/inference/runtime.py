"""ONNX Runtime as the engine's worker uses it: bounded, deterministic in threads, stoppable.

Invariants
- No spinning threads, no fallback to another provider, no custom-op libraries.
- Every run has its own `RunOptions`: the terminate flag is sticky, so it is set on one run and
  thrown away with it.
- `stop` may be called from another thread at any time; what runs ends at its next graph node.

This module imports onnxruntime and is imported by the worker process only.
"""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import onnxruntime as ort

from edge_runtime.contract.reasons import ItemError
from edge_runtime.vehicle.inference.tasks.base import Array, ItemFailure, ItemStopped, Session

_TERMINATED: Final = "terminate flag"
_OUT_OF_MEMORY: Final = ("bad_alloc", "Failed to allocate memory", "bad allocation")
_LOG_ERRORS_ONLY: Final = 3


class OrtRuntime:
    """Loads and runs sessions; one caller runs, any thread may `stop`."""

    def __init__(self, *, provider: str, intra_op_threads: int) -> None:
        ort.set_default_logger_severity(_LOG_ERRORS_ONLY)
        ort.disable_telemetry_events()
        self._provider = provider
        self._intra_op_threads = intra_op_threads
        self._current: Any = None
        self._stopped = threading.Event()

    def load(self, path: Path) -> Session:
        """Load a model file; see `Runtime.load`."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._intra_op_threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        try:
            session = ort.InferenceSession(
                str(path), sess_options=options, providers=[self._provider]
            )
        except Exception as error:  # ONNX Runtime's own errors share no base but this
            raise _failure(error, path.name) from error
        session.disable_fallback()
        return cast("Session", session)

    def run(self, session: Session, outputs: list[str], feeds: Mapping[str, Array]) -> list[Array]:
        """Run once; see `Runtime.run`."""
        options = ort.RunOptions()
        # The order matters: `stop` first sets the flag and then looks for the options, so either
        # it finds them or the flag is seen here.
        self._current = options
        if self._stopped.is_set():
            raise ItemStopped
        try:
            results = cast("Any", session).run(outputs, feeds, options)
        except Exception as error:  # ONNX Runtime's own errors share no base but this
            if self._stopped.is_set() and _TERMINATED in str(error):
                raise ItemStopped from error
            raise _failure(error, "run") from error
        finally:
            self._current = None
        return cast("list[Array]", results)

    def stop(self) -> None:
        """End the current run at its next node, and refuse further ones until `begin`."""
        self._stopped.set()
        options = self._current
        if options is not None:
            options.terminate = True

    def begin(self) -> None:
        """Start afresh: the next item may run."""
        self._stopped.clear()


def _failure(error: Exception, where: str) -> ItemFailure:
    message = str(error)
    if isinstance(error, MemoryError) or any(sign in message for sign in _OUT_OF_MEMORY):
        return ItemFailure(ItemError.OUT_OF_MEMORY, f"{where}: {message}")
    return ItemFailure(ItemError.MODEL_ERROR, f"{where}: {message}")
