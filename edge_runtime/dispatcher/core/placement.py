"""Which car runs a unit: the one expected to finish it first, cold start included.

For each distinct set of requirements a pool holds the best candidates of one vector pass, in a
heap by expected wait. Placements take from the heap; entries are checked again when taken, so a
pool may be stale without ever being wrong. A pool is rebuilt when it runs dry, and not before
the fleet has changed; on a large fleet an empty pool is rebuilt at most every
`EMPTY_POOL_REBUILD_MS`. Scores in a pool only rise: on a small fleet, where every car is in it, a
pool is rebuilt after `POOL_MAX_AGE_MS`, or a car that was once busy would be passed over for good.
"""

import heapq
from typing import Any, NamedTuple

import numpy as np

from edge_runtime.contract import limits
from edge_runtime.dispatcher.core.fleet import (
    ALL_ROWS,
    ONLINE,
    QUARANTINED,
    READY_CODE,
    WORKING_CODE,
    Fleet,
    Mask,
)

_MIX = 40_503
"""Knuth's multiplier for 16 bits (2**16 / golden ratio)."""
_STRETCHES = 16
_Rows = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


class Requirement(NamedTuple):
    """What a job asks of a car; equal requirements share a pool.

    `by_reference`: some of its inputs have to be fetched.
    """

    model: str
    task: str
    region: str | None = None
    hardware: str | None = None
    vehicles: tuple[str, ...] = ()
    by_reference: bool = False


class Pool:
    """The best candidates for one requirement."""

    __slots__ = ("built_at_changes", "built_at_ms", "eligible", "heap", "salt", "turn")

    def __init__(self, salt: int) -> None:
        self.salt = salt
        self.heap: list[tuple[float, int, float]] = []
        self.built_at_changes = -1
        self.built_at_ms = -limits.EMPTY_POOL_REBUILD_MS
        self.eligible = 0
        self.turn = 0


class Placement:
    """Pools over one fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._pools: dict[Requirement, Pool] = {}
        self._salts = 1
        self.rebuilds = 0

    def pool(self, requirement: Requirement) -> Pool:
        """The pool of a requirement (the least recently added goes when there are too many)."""
        pool = self._pools.get(requirement)
        if pool is None:
            if len(self._pools) >= limits.POOLS_MAX:
                self._pools.pop(next(iter(self._pools)))
            pool = self._pools[requirement] = Pool(self._salts)
            self._salts += 7919
        return pool

    def choose(
        self, requirement: Requirement, now_ms: int, avoid: frozenset[str] = frozenset()
    ) -> int | None:
        """The row of the car to offer to next, or None. Does not book it.

        `avoid` names cars to pass over (those on which an item already failed).
        """
        pool = self.pool(requirement)
        if (
            now_ms - pool.built_at_ms >= limits.POOL_MAX_AGE_MS
            and len(self._fleet) <= limits.SMALL_FLEET_CARS
            and pool.built_at_changes != self._fleet.changes
        ):
            pool.heap.clear()
        row = self._take(pool, now_ms, avoid)
        if row is None and self._may_rebuild(pool, now_ms):
            self._rebuild(pool, requirement, now_ms)
            row = self._take(pool, now_ms, avoid)
        return row

    def _take(self, pool: Pool, now_ms: int, avoid: frozenset[str]) -> int | None:
        heap, fleet = pool.heap, self._fleet
        backlog, in_flight, units_max = fleet.backlog_ms, fleet.in_flight, fleet.units_max
        passed: list[tuple[float, int, float]] = []
        chosen = None
        while heap:
            score, row, cold = heap[0]
            waiting = backlog[row]
            if (
                in_flight[row] >= units_max[row]
                or waiting >= limits.BACKLOG_TARGET_MS
                or not fleet.is_available(row, now_ms)
            ):
                heapq.heappop(heap)
                continue
            if waiting + cold > score + limits.WAIT_TOLERANCE_MS:
                heapq.heapreplace(heap, (waiting + cold, row, cold))
                continue
            if avoid and fleet.vehicles[row] in avoid:
                passed.append(heapq.heappop(heap))
                continue
            chosen = row
            break
        for entry in passed:
            heapq.heappush(heap, entry)
        return chosen

    def _may_rebuild(self, pool: Pool, now_ms: int) -> bool:
        if self._fleet.changes == pool.built_at_changes:
            return now_ms - pool.built_at_ms >= limits.EMPTY_POOL_REBUILD_MS
        if len(self._fleet) <= limits.SMALL_FLEET_CARS or pool.eligible:
            return True
        return now_ms - pool.built_at_ms >= limits.EMPTY_POOL_REBUILD_MS

    def _rebuild(self, pool: Pool, requirement: Requirement, now_ms: int) -> None:
        fleet = self._fleet
        self.rebuilds += 1
        pool.built_at_changes, pool.built_at_ms = fleet.changes, now_ms
        warm, cold = self._some(pool, requirement, now_ms) or self._all(pool, requirement, now_ms)
        rows = np.concatenate((warm, cold))
        penalty = np.repeat((0.0, float(limits.COLD_START_MS)), (len(warm), len(cold)))
        # Equals are ordered differently in every pool, or all pools would fight for the
        # same cars (and re-sort each other's heaps) while a million others idle.
        mixed = ((rows + pool.salt) * _MIX) & 0xFFFF
        backlog = fleet.column("backlog_ms")[rows]
        scores = backlog + penalty + mixed * (limits.WAIT_TOLERANCE_MS / 0x10000)
        if len(rows) > limits.POOL_CANDIDATES:
            best = np.argpartition(scores, limits.POOL_CANDIDATES)[: limits.POOL_CANDIDATES]
            rows, scores, penalty = rows[best], scores[best], penalty[best]
        pool.heap = list(zip(scores.tolist(), rows.tolist(), penalty.tolist(), strict=True))
        heapq.heapify(pool.heap)

    def _some(self, pool: Pool, requirement: Requirement, now_ms: int) -> _Rows | None:
        """Candidates from one stretch of a large fleet, where enough are found in it.

        A sixteenth of a million equals is as good as all of them, and costs a sixteenth. Where
        some car holds the model, a stretch without enough that do will not do.
        """
        count = len(self._fleet)
        if count < limits.POOL_STRETCH_FLEET_CARS or requirement.vehicles:
            return None
        length = count // _STRETCHES
        pool.turn += 1
        start = (pool.salt + pool.turn) % _STRETCHES * length
        stretch = slice(start, start + length)
        mask = self._free(requirement, now_ms, stretch)
        number = self._fleet.models.find(requirement.model)
        if number is None:
            cold = np.flatnonzero(mask)
            if len(cold) < limits.POOL_CANDIDATES:
                return None
            pool.eligible = len(cold) * _STRETCHES
            return cold[:0], _sample(cold + start, pool.salt)
        holds = self._fleet.holds_model(number, stretch)
        warm = np.flatnonzero(mask & holds)
        if len(warm) < limits.POOL_WARM_ENOUGH:
            return None
        cold = np.flatnonzero(mask & ~holds)
        pool.eligible = (len(warm) + len(cold)) * _STRETCHES
        return _sample(warm + start, pool.salt), _sample(cold + start, pool.salt)

    def _all(self, pool: Pool, requirement: Requirement, now_ms: int) -> _Rows:
        """Rows that hold the model and rows that do not, each thinned to a bounded sample.

        From a million equals the best of a sample is as good as the best of all.
        """
        mask = self._free(requirement, now_ms)
        pool.eligible = int(np.count_nonzero(mask))
        number = self._fleet.models.find(requirement.model)
        if number is None:
            return np.empty(0, dtype=np.intp), _sample(np.flatnonzero(mask), pool.salt)
        holds = self._fleet.holds_model(number)
        warm = _sample(np.flatnonzero(mask & holds), pool.salt)
        if len(warm) >= limits.POOL_CANDIDATES:
            return warm, np.empty(0, dtype=np.intp)
        return warm, _sample(np.flatnonzero(mask & ~holds), pool.salt)

    def _free(self, requirement: Requirement, now_ms: int, rows: slice = ALL_ROWS) -> Mask:
        """Rows that may be offered such work now (bool[rows])."""
        mask = self._fleet.can_serve(*requirement[1:], rows=rows)
        mask &= self._fleet.available(now_ms, rows)
        mask &= self._fleet.has_room(rows)
        return mask

    def others_live(self, requirement: Requirement, avoid: frozenset[str], now_ms: int) -> bool:
        """Whether a car outside `avoid` could serve soon: it is live, busy or not."""
        mask = self.could_serve(requirement) & self._fleet.available(now_ms)
        mask &= self._fleet.column("units_max") > 0
        vehicles = self._fleet.vehicles
        return any(vehicles[row] not in avoid for row in np.flatnonzero(mask)[: len(avoid) + 1])

    def could_serve(self, requirement: Requirement) -> Mask:
        """Rows that could ever run such a job (bool[rows])."""
        return self._fleet.can_serve(*requirement[1:])

    def excluded(self, requirement: Requirement, now_ms: int) -> tuple[int, dict[str, int]]:
        """How many cars are eligible now, and how many are not by (first) cause."""
        fleet = self._fleet
        left = np.ones(len(fleet), dtype=bool)
        causes: dict[str, int] = {}
        offline = (fleet.column("flags") & ONLINE) == 0
        checks = {
            "offline": offline,
            "quarantined": (fleet.column("flags") & QUARANTINED) != 0,
            "cannot_serve": ~self.could_serve(requirement),
            "state_stale": fleet.column("seen_ms") <= now_ms - limits.STATE_STALE_MS,
            "held_or_driving": ~np.isin(fleet.column("availability"), (READY_CODE, WORKING_CODE)),
            "asked_to_wait": fleet.column("retry_at_ms") > now_ms,
            "busy": (fleet.column("in_flight") >= fleet.column("units_max"))
            | (fleet.column("backlog_ms") >= limits.BACKLOG_TARGET_MS),
        }
        for cause, mask in checks.items():
            hit = left & mask
            if hit.any():
                causes[cause] = int(hit.sum())
                left &= ~mask
        return int(left.sum()), causes


def _sample(rows: np.ndarray[Any, Any], salt: int) -> np.ndarray[Any, Any]:
    stride = len(rows) // (4 * limits.POOL_CANDIDATES)
    return rows[salt % stride :: stride] if stride > 1 else rows
