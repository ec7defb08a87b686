"""How an engine is set up; every default is the car's."""

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from edge_runtime.contract import limits


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker process is told when it starts.

    `memory_max_bytes` bounds its address space. `cpus` pins it; None leaves that to the kernel.
    `is_idle_class` puts it behind everything else that wants a processor.
    """

    provider: str = "CPUExecutionProvider"
    intra_op_threads: int = 1
    memory_max_bytes: int = limits.ENGINE_MEMORY_MAX_BYTES
    resident_models_max: int = limits.RESIDENT_MODELS_MAX
    output_max_bytes: int = limits.OUTPUT_MAX_BYTES
    cpus: tuple[int, ...] | None = None
    is_idle_class: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What the supervisor does, in milliseconds.

    `hang_ms` is how long an item may take; None means what was measured of the model says it, see
    `watchdog`. Frozen time counts for none of these. `idle_exit_ms` without work ends the process,
    which is what gives its memory back. `node_times` is a file that keeps what was measured of
    models' longest nodes; None measures them anew in each life.
    """

    worker: WorkerOptions = field(default_factory=WorkerOptions)
    hang_ms: int | None = None
    start_hang_ms: int = limits.ENGINE_START_HANG_MS
    load_hang_ms: int = limits.ENGINE_LOAD_HANG_MS
    terminate_grace_ms: int = limits.TERMINATE_GRACE_MS
    idle_exit_ms: int = limits.ENGINE_IDLE_EXIT_MS
    node_times: Path | None = None
