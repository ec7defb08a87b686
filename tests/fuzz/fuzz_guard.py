"""The bounds of one input: processor time, memory, and no exception that is not a refusal."""

import resource
import time
import tracemalloc
from dataclasses import dataclass
from typing import Final

from targets import Target

INPUT_MAX_S: Final = 0.005
INPUT_MAX_BYTES: Final = 32 * 1024 * 1024
_TRIES: Final = 3
_KIB: Final = 1_024


@dataclass(frozen=True, slots=True)
class Fault:
    """What an input did to a target; `kind` is "crash", "slow" or "large"."""

    kind: str
    detail: str


def seconds_of(target: Target, data: bytes, tries: int = _TRIES) -> float:
    """Processor time of this thread; the best of a few, for other work shares the machine."""
    best = float("inf")
    for _ in range(tries):
        before = time.thread_time()
        target(data)
        best = min(best, time.thread_time() - before)
        if best <= INPUT_MAX_S:
            break
    return best


def peak_bytes_of(target: Target, data: bytes) -> int:
    """The most that Python allocated at once while the target ran."""
    tracemalloc.start()
    try:
        target(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def resident_peak_bytes() -> int:
    """The most memory that this process has had since it was last forgotten."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB


def fault_of(target: Target, data: bytes, *, is_memory_asked: bool = True) -> Fault | None:
    """What is wrong with what the target does to `data`, if anything."""
    try:
        seconds = seconds_of(target, data)
        peak_bytes = peak_bytes_of(target, data) if is_memory_asked else 0
    except Exception as error:  # noqa: BLE001 - whatever comes out is what is looked for
        return Fault("crash", f"{type(error).__name__}: {error}"[:300])
    if seconds > INPUT_MAX_S and len(data) <= target.input_max_bytes:
        return Fault("slow", f"{seconds * 1e3:.1f} ms for {len(data)} bytes")
    if peak_bytes > INPUT_MAX_BYTES:
        return Fault("large", f"{peak_bytes / 2**20:.1f} MiB for {len(data)} bytes")
    return None
