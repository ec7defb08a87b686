"""What is known of each model's longest node on this computer, kept on disk from life to life.

Invariants
- The file is of one kind of hardware and one ONNX Runtime; for any other it counts as empty.
- It holds at most `MODELS_KNOWN_MAX` models, the newest; a damaged or missing file is an empty
  one, and a file that cannot be written costs no more than measuring again.
"""

import contextlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Final

import msgspec
import structlog
from msgspec import Meta

from edge_runtime.contract import limits
from edge_runtime.vehicle.inference.options import WorkerOptions

_log = structlog.get_logger()

_Milliseconds = Annotated[float, Meta(ge=0, le=limits.ITEM_TIME_MAX_MS)]


class _File(msgspec.Struct):
    hardware: str
    node_ms: Annotated[dict[str, _Milliseconds], Meta(max_length=limits.MODELS_KNOWN_MAX)]


_decoder: Final = msgspec.json.Decoder(_File)


class NodeTimes:
    """Milliseconds of the longest node by package digest. `path` None keeps them in memory only."""

    def __init__(self, path: Path | None, options: WorkerOptions) -> None:
        self._path = path
        self._hardware = hardware_name(options)
        self._node_ms = self._read()

    def get(self, digest: str) -> float | None:
        """What was measured here, if it was."""
        return self._node_ms.get(digest)

    def put(self, digest: str, node_ms: float) -> None:
        """Keep a measurement."""
        self._node_ms.pop(digest, None)
        self._node_ms[digest] = min(max(node_ms, 0.0), float(limits.ITEM_TIME_MAX_MS))
        while len(self._node_ms) > limits.MODELS_KNOWN_MAX:
            del self._node_ms[next(iter(self._node_ms))]
        self._write()

    def _read(self) -> dict[str, float]:
        if self._path is None:
            return {}
        try:
            with self._path.open("rb") as file:
                kept = _decoder.decode(file.read(limits.NODE_TIMES_FILE_MAX_BYTES))
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            _log.warning("node_times_unreadable", path=str(self._path), why=str(error))
            return {}
        return kept.node_ms if kept.hardware == self._hardware else {}

    def _write(self) -> None:
        """Replace the file. Not synced: a crash costs one measurement."""
        if self._path is None:
            return
        body = msgspec.json.encode(_File(self._hardware, self._node_ms))
        fresh = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            fresh.write_bytes(body)
            fresh.replace(self._path)
        except OSError as error:
            _log.warning("node_times_unwritten", path=str(self._path), why=str(error))
            with contextlib.suppress(OSError):
                fresh.unlink()


def hardware_name(options: WorkerOptions) -> str:
    """Name what decides how long a node takes: processor, ONNX Runtime, provider, threads."""
    try:
        runtime = version("onnxruntime")
    except PackageNotFoundError:
        runtime = "of another name"
    return (
        f"{_processor()}; onnxruntime {runtime}; {options.provider};"
        f" {options.intra_op_threads} threads"
    )


def _processor() -> str:
    """Return the processor's own name, or the architecture's where it has none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in {"model name", "Model"}:
                return value.strip()[: limits.TEXT_MAX_CHARS]
    return platform.machine()
