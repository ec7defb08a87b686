"""How often work was stopped, by which tier, how fast, and what it cost: the car's own figures.

Invariants
- One entry a stop of the engine for the owner, and one a cancelled run that was computing.
- Nothing grows: a tier is a handful of numbers, its latencies a histogram with fixed bounds.

Deliberately absent: persistence (these are figures of one life of the process) and a way to
publish them; `summary` is for whoever shows them.
"""

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Final

import msgspec

from edge_runtime.contract.messages import StopReport
from edge_runtime.contract.reasons import StopTier

LATENCY_BOUNDS_MS: Final = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 500.0)
"""Upper bounds of the histogram's buckets; one more holds everything above."""


class TierSummary(msgspec.Struct, frozen=True):
    """What one tier did.

    `buckets` counts latencies up to each of `LATENCY_BOUNDS_MS`, then the rest; `unmeasured` the
    stops whose latency was not known in time.
    """

    tier: str
    stops: int
    unmeasured: int
    latency_sum_ms: float
    latency_max_ms: float
    buckets: tuple[int, ...]
    items_lost: int
    wasted_wh: float


class StopSummary(msgspec.Struct, frozen=True):
    """Every tier that fired, and what came of frozen engines."""

    tiers: tuple[TierSummary, ...]
    thawed: int
    killed: int
    items_lost: int
    wasted_wh: float


@dataclass(slots=True)
class _Tier:
    stops: int = 0
    unmeasured: int = 0
    latency_sum_ms: float = 0.0
    latency_max_ms: float = 0.0
    items_lost: int = 0
    wasted_wh: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS_MS) + 1))


@dataclass(slots=True)
class StopTally:
    """Counts stops."""

    thawed: int = 0
    killed: int = 0
    _tiers: dict[StopTier, _Tier] = field(default_factory=dict)

    def note(
        self, tier: StopTier, report: StopReport | None, *, items_lost: int, wasted_wh: float
    ) -> None:
        """Count one stop; `report` is None when it was not measured in time."""
        entry = self._tiers.setdefault(tier, _Tier())
        entry.stops += 1
        entry.items_lost += items_lost
        entry.wasted_wh += wasted_wh
        if report is None:
            entry.unmeasured += 1
            return
        latency_ms = report.latency_ms
        entry.latency_sum_ms += latency_ms
        entry.latency_max_ms = max(entry.latency_max_ms, latency_ms)
        entry.buckets[bisect_left(LATENCY_BOUNDS_MS, latency_ms)] += 1

    def summary(self) -> StopSummary:
        """The figures of this moment."""
        tiers = tuple(
            TierSummary(
                tier=tier.value,
                stops=entry.stops,
                unmeasured=entry.unmeasured,
                latency_sum_ms=entry.latency_sum_ms,
                latency_max_ms=entry.latency_max_ms,
                buckets=tuple(entry.buckets),
                items_lost=entry.items_lost,
                wasted_wh=entry.wasted_wh,
            )
            for tier, entry in self._tiers.items()
        )
        return StopSummary(
            tiers=tiers,
            thawed=self.thawed,
            killed=self.killed,
            items_lost=sum(tier.items_lost for tier in tiers),
            wasted_wh=sum(tier.wasted_wh for tier in tiers),
        )
