"""From attempts to bars: when each one ran, and which one took over from which. Pure.

A car takes units before it runs them. The dispatcher knows when a unit was taken and when it
ended, so a unit is drawn as running from the end of the one before it on that car, and as
waiting until then.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from edge_runtime.contract.http import AttemptEnd, AttemptView

_INTERRUPTED = frozenset({AttemptEnd.RELEASED, AttemptEnd.LEASE_EXPIRED, AttemptEnd.OFFER_TIMEOUT})


@dataclass(frozen=True, slots=True)
class Bar:
    """One attempt on its car's lane; milliseconds since the jobs were submitted."""

    attempt: AttemptView
    taken_ms: int
    start_ms: int
    end_ms: int

    @property
    def is_interrupted(self) -> bool:
        """Whether its car did not bring it to its end."""
        return self.attempt.end in _INTERRUPTED


@dataclass(frozen=True, slots=True)
class Reissue:
    """Work that a car gave back, or lost, and where it ran next."""

    before: Bar
    after: Bar


def make_bars(attempts: Iterable[AttemptView], started_ms: int, finished_ms: int) -> list[Bar]:
    """Every attempt that a car took, in order of start."""
    by_car: dict[str, list[AttemptView]] = defaultdict(list)
    for attempt in attempts:
        if attempt.taken_ms is not None:
            by_car[attempt.vehicle].append(attempt)
    bars: list[Bar] = []
    for taken in by_car.values():
        bars.extend(_lane(taken, started_ms, finished_ms))
    return sorted(bars, key=lambda bar: (bar.start_ms, bar.attempt.vehicle))


def _lane(attempts: list[AttemptView], started_ms: int, finished_ms: int) -> list[Bar]:
    bars: list[Bar] = []
    free_ms = 0
    for attempt in sorted(attempts, key=lambda a: (a.ended_ms or finished_ms, a.taken_ms or 0)):
        taken_ms = max(0, (attempt.taken_ms or attempt.offered_ms) - started_ms)
        end_ms = max(taken_ms, (attempt.ended_ms or finished_ms) - started_ms)
        start_ms = min(max(taken_ms, free_ms), end_ms)
        bars.append(Bar(attempt, taken_ms, start_ms, end_ms))
        free_ms = end_ms
    return bars


def find_reissues(bars: Sequence[Bar]) -> list[Reissue]:
    """For every interrupted attempt that had work left, the next attempt of the same unit."""
    by_unit: dict[tuple[str, int], list[Bar]] = defaultdict(list)
    for bar in bars:
        by_unit[bar.attempt.job, bar.attempt.unit].append(bar)
    reissues: list[Reissue] = []
    for unit_bars in by_unit.values():
        unit_bars.sort(key=lambda bar: (bar.attempt.epoch, bar.attempt.counter))
        reissues.extend(
            Reissue(before, after) for before, after in pairwise(unit_bars) if before.is_interrupted
        )
    return reissues
