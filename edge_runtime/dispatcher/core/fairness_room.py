"""Room on a car for a tenant that has nothing out, when others' units fill the queues of all.

Cars hold a unit or two beyond the one they compute, so that they never wait. A tenant that comes
now would wait behind them. One unit that waits on a car, and has not begun, is taken back from a
tenant with more than one out, and the newcomer's first unit takes its place: behind what that
car computes now, which is one unit's time at most.

Invariants
- Nothing computed is lost: a unit of which anything was heard, or that is the first of its car,
  stays; what the car finished before the cancel reached it fills its items like any late chunk.
- A tenant is never left with nothing out for another's sake, so two can not take turns in
  displacing each other.
"""

from edge_runtime.contract import limits
from edge_runtime.contract.clock import Now
from edge_runtime.contract.reasons import CancelReason
from edge_runtime.dispatcher.core.attempts import Attempts
from edge_runtime.dispatcher.core.jobs import Job, Unit
from edge_runtime.dispatcher.core.state import State


class Room:
    """Finds a waiting unit that may be taken back, and takes it."""

    def __init__(self, state: State, attempts: Attempts) -> None:
        self._state = state
        self._attempts = attempts
        self._left = limits.ROOMS_PER_TICK_MAX

    def new_tick(self) -> None:
        """Room may be made again."""
        self._left = limits.ROOMS_PER_TICK_MAX

    def first_of_tenant(
        self, job: Job, row: int | None, refusers: frozenset[str], now: Now
    ) -> int | None:
        """The row for the job's next unit: `row`, or one where room was made for it.

        Only for a tenant with nothing out, and where `row` (None: no car has room) would have it
        wait for more than a unit's time.
        """
        state = self._state
        if state.units_out[job.spec.tenant] or not self._left:
            return row
        backlog_ms = float("inf") if row is None else state.fleet.backlog_ms[row]
        if backlog_ms <= limits.UNIT_TARGET_MS:
            return row
        self._left -= 1
        unit = self._waiting_unit(job, backlog_ms, refusers, now)
        if unit is None:
            return row
        freed = unit.row
        self._attempts.cancel(unit, CancelReason.STALE_FENCE, now)
        self._attempts.requeue(unit)
        state.counters["units_taken_back_for_others"] += 1
        return freed

    def _waiting_unit(
        self, job: Job, backlog_ms: float, refusers: frozenset[str], now: Now
    ) -> Unit | None:
        """The last unit of the car where a newcomer would then wait least; None: nowhere less."""
        state, fleet = self._state, self._state.fleet
        newest: dict[int, Unit] = {}
        in_front: set[int] = set()
        for unit in state.units.values():  # in order of offer
            if unit.row in newest:
                in_front.add(unit.row)
            newest[unit.row] = unit
        usable = state.placement.could_serve(job.spec.requirement)
        best, best_ms = None, backlog_ms
        for row in in_front:
            unit = newest[row]
            waits_ms = fleet.backlog_ms[row] - unit.expected_item_ms * len(unit.open)
            if (
                waits_ms < best_ms
                and self._may_go(unit)
                and usable[row]
                and unit.vehicle not in refusers
                and fleet.is_available(row, now.boot_ms)
            ):
                best, best_ms = unit, waits_ms
        return best

    def _may_go(self, unit: Unit) -> bool:
        state = self._state
        untouched = not unit.alone and not unit.seqs and len(unit.open) == len(unit.issued)
        # What this tick offers has not left: there is nothing to take back.
        leaving = state.offers.get(unit.vehicle, ())
        is_out = all(offer.unit != unit.id for offer in leaving)
        return untouched and is_out and state.units_out[unit.job.spec.tenant] > 1
