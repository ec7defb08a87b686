"""From attempts to bars: when each one ran, and which one took over from which. Pure.

A car takes units before it runs them. The dispatcher knows when a unit was taken and when it
ended, so a unit is drawn as running from the end of the one before it on that car, and as
waiting until then.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from edge_runtime.cli.demo.report.data import FaultMark
from edge_runtime.contract.http import AttemptEnd, AttemptView

_INTERRUPTED = frozenset({AttemptEnd.RELEASED, AttemptEnd.LEASE_EXPIRED, AttemptEnd.OFFER_TIMEOUT})


@dataclass(frozen=True, slots=True)
class Bar:
    """One attempt on its car's lane; milliseconds since the jobs were submitted.

    `stop_ms` is when it stopped computing: at a fault of its car, which the dispatcher hears of
    later, else at its end.
    """

    attempt: AttemptView
    taken_ms: int
    start_ms: int
    stop_ms: int
    end_ms: int

    @property
    def has_run(self) -> bool:
        """Whether it did more than wait on its car."""
        return self.stop_ms > self.start_ms

    @property
    def is_interrupted(self) -> bool:
        """Whether its car did not bring it to its end."""
        return self.attempt.end in _INTERRUPTED


@dataclass(frozen=True, slots=True)
class Reissue:
    """Work that a car gave back, or lost, and where it ran next."""

    before: Bar
    after: Bar


def make_bars(
    attempts: Iterable[AttemptView],
    started_ms: int,
    finished_ms: int,
    faults: Sequence[FaultMark] = (),
) -> list[Bar]:
    """Every attempt that a car took, in order of start."""
    stops: dict[str, list[int]] = defaultdict(list)
    for mark in faults:
        stops[mark.vehicle].append(mark.at_ms - started_ms)
    by_car: dict[str, list[AttemptView]] = defaultdict(list)
    for attempt in attempts:
        if attempt.taken_ms is not None:
            by_car[attempt.vehicle].append(attempt)
    bars: list[Bar] = []
    for vehicle, taken in by_car.items():
        bars.extend(_lane(taken, started_ms, finished_ms, stops[vehicle]))
    return sorted(bars, key=lambda bar: (bar.start_ms, bar.attempt.vehicle))


def _lane(
    attempts: list[AttemptView], started_ms: int, finished_ms: int, stops: list[int]
) -> list[Bar]:
    """One car's bars. What a stop finds waiting never ran: it ends where it would have begun."""
    spans = [_span(attempt, started_ms, finished_ms, stops) for attempt in attempts]
    bars: list[Bar] = []
    free_ms = 0
    # Of those that one stop ended, the one with results, else the oldest, was the one that ran.
    order = sorted(
        zip(spans, attempts, strict=True),
        key=lambda pair: (pair[0][1], not pair[1].items_done, pair[0][0], pair[1].counter),
    )
    for (taken_ms, stop_ms, end_ms), attempt in order:
        start_ms = min(max(taken_ms, free_ms), stop_ms)
        bars.append(Bar(attempt, taken_ms, start_ms, stop_ms, end_ms))
        free_ms = stop_ms
    return bars


def _span(
    attempt: AttemptView, started_ms: int, finished_ms: int, stops: list[int]
) -> tuple[int, int, int]:
    """When an attempt was taken, stopped and ended."""
    taken_ms = max(0, (attempt.taken_ms or attempt.offered_ms) - started_ms)
    end_ms = max(taken_ms, (attempt.ended_ms or finished_ms) - started_ms)
    if attempt.end not in _INTERRUPTED:
        return taken_ms, end_ms, end_ms
    within = [stop for stop in stops if taken_ms <= stop <= end_ms]
    return taken_ms, min(within, default=end_ms), end_ms


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
