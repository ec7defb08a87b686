"""The recent past in stretches of equal length: throughput, and how long units took.

Invariants
- Memory is bounded: `ACTIVITY_BUCKETS_MAX` stretches, each with a histogram of fixed size.
- A quantile is off by at most the ratio of two bounds of the histogram (12 %).
- A stretch without anything is there all the same: a plot has no hole where nothing happened.
"""

import bisect
from collections import deque
from typing import Final

from edge_runtime.contract import limits
from edge_runtime.contract.overview import Moment

_RATIO: Final = 1.12
_BOUNDS_MS: Final = tuple(_RATIO**n for n in range(140))
"""From 1 ms to about two hours."""


class Durations:
    """A histogram of durations with quantiles."""

    __slots__ = ("_counts", "total")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.total = 0

    def add(self, duration_ms: float) -> None:
        """Count one."""
        place = bisect.bisect_left(_BOUNDS_MS, duration_ms)
        self._counts[place] = self._counts.get(place, 0) + 1
        self.total += 1

    def quantile_ms(self, share: float) -> float | None:
        """The duration that `share` of all do not pass, None where there is none."""
        if not self.total:
            return None
        wanted = share * self.total
        seen = 0
        for place in sorted(self._counts):
            seen += self._counts[place]
            if seen >= wanted:
                break
        return round(_BOUNDS_MS[min(place, len(_BOUNDS_MS) - 1)], 1)


class _Stretch:
    __slots__ = ("done", "failed", "number", "units")

    def __init__(self, number: int) -> None:
        self.number = number
        self.done = self.failed = 0
        self.units = Durations()


class Activity:
    """The last ten minutes. Times are UTC in ms."""

    def __init__(self) -> None:
        self._stretches: deque[_Stretch] = deque(maxlen=limits.ACTIVITY_BUCKETS_MAX)

    def add(self, now_ms: int, done: int, failed: int, units_ms: list[int]) -> None:
        """Items that ended, and how long completed units took, until now."""
        stretch = self._current(now_ms)
        stretch.done += done
        stretch.failed += failed
        for duration_ms in units_ms:
            stretch.units.add(duration_ms)

    def _current(self, now_ms: int) -> _Stretch:
        number = now_ms // limits.ACTIVITY_BUCKET_MS
        newest = self._stretches[-1].number if self._stretches else number - 1
        # A clock that was set back writes into the newest stretch; one set forward begins anew.
        if number - newest > limits.ACTIVITY_BUCKETS_MAX:
            self._stretches.clear()
            newest = number - 1
        for missing in range(newest + 1, number + 1):
            self._stretches.append(_Stretch(missing))
        return self._stretches[-1]

    def history(self, now_ms: int) -> tuple[Moment, ...]:
        """The stretches, oldest first; the last one is not over."""
        self._current(now_ms)
        return tuple(
            Moment(
                end_ms=(stretch.number + 1) * limits.ACTIVITY_BUCKET_MS,
                done=stretch.done,
                failed=stretch.failed,
                units=stretch.units.total,
                unit_p50_ms=stretch.units.quantile_ms(0.5),
                unit_p95_ms=stretch.units.quantile_ms(0.95),
            )
            for stretch in self._stretches
        )
