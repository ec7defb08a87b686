"""Small bounded memories of the core: fences, models, the engine's health, the story.

Invariants
- Each has a bound from `contract.limits`; the oldest entry goes first.
- An answer about a fence is repeated unchanged until the deadline of its offer.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from edge_runtime.contract import limits
from edge_runtime.contract.clock import NS_PER_MS, Now
from edge_runtime.contract.messages import Fence, Verdict
from edge_runtime.vehicle.core.events import ModelFault


@dataclass(frozen=True, slots=True)
class Remembered:
    """The newest fence of a unit that this car is done with, and what it then answers."""

    fence: Fence
    verdict: Verdict
    until_ns: int


@dataclass(slots=True)
class FenceMemory:
    """What was refused, cancelled or ended here, by unit; of more than `most` the oldest goes."""

    most: int = limits.FENCES_REMEMBERED_MAX
    _by_unit: dict[int, Remembered] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._by_unit)

    def remember(self, verdict: Verdict, until_ns: int) -> None:
        """Keep this answer, unless a newer fence of the unit is known."""
        known = self._by_unit.get(verdict.unit)
        if known is not None and known.fence > verdict.fence:
            return
        self._by_unit.pop(verdict.unit, None)
        self._by_unit[verdict.unit] = Remembered(verdict.fence, verdict, until_ns)
        while len(self._by_unit) > self.most:
            del self._by_unit[next(iter(self._by_unit))]

    def recall(self, unit: int, now: Now) -> Remembered | None:
        """What is known of a unit, until the deadline."""
        known = self._by_unit.get(unit)
        if known is not None and known.until_ns <= now.boot_ns:
            del self._by_unit[unit]
            return None
        return known


@dataclass(frozen=True, slots=True)
class _FailedModel:
    fault: ModelFault
    until_ns: int


@dataclass(slots=True)
class ModelShelf:
    """Which model packages are ready, on their way, or could not be had a moment ago."""

    _ready: dict[str, None] = field(default_factory=dict)
    _awaited: dict[str, None] = field(default_factory=dict)
    _failed: dict[str, _FailedModel] = field(default_factory=dict)

    def is_ready(self, digest: str) -> bool:
        """Whether a run may be submitted."""
        return digest in self._ready

    def want(self, digest: str) -> bool:
        """Note that the package is awaited; whether it must be asked for."""
        if digest in self._ready or digest in self._awaited:
            return False
        self._failed.pop(digest, None)
        self._awaited[digest] = None
        return True

    def ready(self, digest: str) -> None:
        """The package is there; it counts as the most recently used."""
        self._awaited.pop(digest, None)
        self._failed.pop(digest, None)
        self._ready.pop(digest, None)
        self._ready[digest] = None
        while len(self._ready) > limits.MODELS_KNOWN_MAX:
            del self._ready[next(iter(self._ready))]

    def failed(self, digest: str, fault: ModelFault, now: Now) -> None:
        """The package could not be had; remembered for a while."""
        invalid = fault is ModelFault.INVALID
        wait_ms = limits.MODEL_INVALID_RETRY_MS if invalid else limits.MODEL_RETRY_MS
        self._awaited.pop(digest, None)
        self._ready.pop(digest, None)
        self._failed.pop(digest, None)
        self._failed[digest] = _FailedModel(fault, now.boot_ns + wait_ms * NS_PER_MS)
        while len(self._failed) > limits.MODELS_KNOWN_MAX:
            del self._failed[next(iter(self._failed))]

    def fault(self, digest: str, now: Now) -> tuple[ModelFault, int] | None:
        """(why, for how many more ms) while a failure is remembered."""
        failed = self._failed.get(digest)
        if failed is None or failed.until_ns <= now.boot_ns:
            return None
        return failed.fault, -((now.boot_ns - failed.until_ns) // NS_PER_MS)

    def missing(self, digests: Iterable[str], now: Now) -> list[str]:
        """Which of these could be asked for now."""
        return [
            digest
            for digest in digests
            if digest not in self._ready
            and digest not in self._awaited
            and self.fault(digest, now) is None
        ]

    @property
    def resident(self) -> tuple[str, ...]:
        """The packages that are ready, most recently used first, as many as a Birth names."""
        return tuple(reversed(self._ready))[: limits.RESIDENT_MODELS_MAX]


@dataclass(slots=True)
class EngineHealth:
    """Deaths in a row; too many of them close the car for a while that doubles."""

    unhealthy_until_ns: int | None = None
    _deaths: deque[int] = field(default_factory=lambda: deque(maxlen=limits.ENGINE_DEATHS_MAX))
    _rest_ms: int = limits.ENGINE_UNHEALTHY_MS

    def died(self, now: Now) -> bool:
        """Count a death; whether the engine must now rest."""
        self._deaths.append(now.boot_ns)
        window_ns = limits.ENGINE_DEATHS_WINDOW_MS * NS_PER_MS
        too_many = (
            len(self._deaths) == limits.ENGINE_DEATHS_MAX
            and now.boot_ns - self._deaths[0] <= window_ns
        )
        if too_many:
            self.unhealthy_until_ns = now.boot_ns + self._rest_ms * NS_PER_MS
            self._rest_ms = min(2 * self._rest_ms, limits.ENGINE_UNHEALTHY_MAX_MS)
            self._deaths.clear()
        return too_many

    def worked(self) -> None:
        """An item was finished: all is well."""
        if self._deaths or self._rest_ms != limits.ENGINE_UNHEALTHY_MS:
            self._deaths.clear()
            self._rest_ms = limits.ENGINE_UNHEALTHY_MS

    def tick(self, now: Now) -> None:
        """End the rest when its time has come."""
        if self.unhealthy_until_ns is not None and now.boot_ns >= self.unhealthy_until_ns:
            self.unhealthy_until_ns = None


@dataclass(slots=True)
class Story:
    """The last things that happened to units, for people and for errors."""

    _events: deque[tuple[int, int, Fence, str]] = field(
        default_factory=lambda: deque(maxlen=limits.CAR_STORY_EVENTS_MAX)
    )

    def tell(self, now: Now, unit: int, fence: Fence, what: str) -> None:
        """Add one event."""
        self._events.append((now.boot_ns, unit, fence, what))

    def of(self, unit: int) -> list[str]:
        """What is remembered of a unit, oldest first."""
        return [
            f"{boot_ns / 1e9:.3f}s fence {fence.epoch}.{fence.counter} {what}"
            for boot_ns, about, fence, what in self._events
            if about == unit
        ]
