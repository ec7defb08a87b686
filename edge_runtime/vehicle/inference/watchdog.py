"""Whether the worker still gets anywhere: progress is a real output, and nothing else is.

Invariants
- Only what the worker *tells* counts: a finished or broken item, a loaded model, the end of a
  run. That it is alive, or busy, or says what it is at, does not.
- Two clocks run since the last output. Processor time is bounded by what items of this model have
  taken here, times `ENGINE_HANG_PER_MEASURED`, between `ENGINE_HANG_MIN_MS` and the other clock's
  bound: this finds a computation without end. Wall time is bounded by the package's reference
  time: this finds one that waits for ever, or that somebody else has stopped.
- Frozen time counts for neither.

The wall clock's bound is the one that the dispatcher's leases outlive (`dispatcher.core.pace`).
Deliberately absent: what is done about it; that is `engine`'s.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from edge_runtime.contract import limits
from edge_runtime.contract.reasons import ItemError

_FADES: Final = 0.9
"""How much of the slowest item's time is left when the next one was faster."""


@dataclass(slots=True)
class ItemTimes:
    """What items of each model take here: the slowest of late, in milliseconds."""

    _slowest_ms: OrderedDict[str, float] = field(default_factory=OrderedDict)

    def note(self, digest: str, busy_ms: float) -> None:
        """An item of this model was finished."""
        known_ms = self._slowest_ms.pop(digest, 0.0)
        faded_ms = known_ms * _FADES + busy_ms * (1 - _FADES)
        self._slowest_ms[digest] = max(busy_ms, faded_ms)
        while len(self._slowest_ms) > limits.MODELS_KNOWN_MAX:
            self._slowest_ms.popitem(last=False)

    def get(self, digest: str) -> float | None:
        """What is known of a model."""
        return self._slowest_ms.get(digest)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the worker may be at one thing, in milliseconds of either clock."""

    wall_ms: float
    cpu_ms: float


def item_patience(reference_ms: float, slowest_ms: float | None) -> Patience:
    """Return the patience for an item of a model with this reference time and record here."""
    by_reference_ms = limits.ENGINE_HANG_PER_REFERENCE * reference_ms
    wall_ms = min(max(limits.ENGINE_HANG_MS, by_reference_ms), limits.ENGINE_HANG_MAX_MS)
    if slowest_ms is None:
        return Patience(wall_ms, wall_ms)
    by_record_ms = limits.ENGINE_HANG_PER_MEASURED * slowest_ms
    return Patience(wall_ms, min(max(limits.ENGINE_HANG_MIN_MS, by_record_ms), wall_ms))


@dataclass(slots=True)
class Watch:
    """What the watchdog has seen of one process; times leave frozen time out."""

    since_ns: int
    """When the last real output came, or work for an idle worker."""
    cpu_since_ms: float | None = None
    """The process's processor time when that was first looked at."""
    kill_at_ns: int | None = None
    """The item was told to end; when the process is killed unless something comes."""
    done: tuple[int, int] | None = None
    """Ticket and index of the last item that is known to be over."""
    blame: ItemError = ItemError.ENGINE_KILLED
    """What is said of the item in hand when the process dies."""

    def progressed(self, clock_ns: int) -> None:
        """An output came."""
        self.since_ns = clock_ns
        self.cpu_since_ms = None
        self.kill_at_ns = None

    def is_hung(self, clock_ns: int, cpu_ms: float, patience: Patience) -> bool:
        """Whether nothing has come for too long by either clock."""
        if self.cpu_since_ms is None:
            self.cpu_since_ms = cpu_ms
        wall_ms = (clock_ns - self.since_ns) / 1e6
        return wall_ms > patience.wall_ms or cpu_ms - self.cpu_since_ms > patience.cpu_ms
