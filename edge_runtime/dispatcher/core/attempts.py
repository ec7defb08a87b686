"""Attempts: offered, taken, leased, ended. One transition table, three timers.

| unit state | fact                         | next     | and                                   |
| ---------- | ---------------------------- | -------- | ------------------------------------- |
| pending    | a car is free                | offered  | BeginAttempt, offer                   |
| offered    | Taken                        | running  | lease starts                          |
| offered    | Refused                      | pending  | car waits `retry_after_ms`            |
| offered    | no answer for OFFER_RESEND   | offered  | same offer again                      |
| offered    | no answer for OFFER_TIMEOUT  | pending  | attempt ends, Cancel, the car waits   |
| running    | chunk                        | running  | lease renewed                         |
| running    | last chunk, nothing open     | (done)   |                                       |
| running    | last chunk, items open       | pending  | under a new fence                     |
| running    | lease over                   | pending  | as above; first open item is isolated |
| any        | job ended, car quarantined   | (gone)   | Cancel                                |

Refusals and owner's stops never count against an item; a lease that ran out silently only
isolates the item that was probably running (design §7). So does a car that says it completed a
unit and did not: an item to which that happens `ATTEMPTS_PER_ITEM_MAX` times fails.
"""

import heapq

import msgspec

from edge_runtime.contract import limits
from edge_runtime.contract.clock import Now
from edge_runtime.contract.http import AttemptEnd
from edge_runtime.contract.messages import (
    Cancel,
    Cancelled,
    Ending,
    Fence,
    Refused,
    Taken,
    UnitOffer,
    Verdict,
)
from edge_runtime.contract.reasons import CancelReason, JobState, RefusalReason
from edge_runtime.dispatcher.core.commands import BeginAttempt, EndAttempt
from edge_runtime.dispatcher.core.events import StoredAttempt
from edge_runtime.dispatcher.core.jobs import Job, Unit, UnitState
from edge_runtime.dispatcher.core.state import State

NOT_THIS_JOB = (
    RefusalReason.EXPIRED,
    RefusalReason.TOO_LARGE,
    RefusalReason.TENANT_NOT_ALLOWED,
    RefusalReason.PURPOSE_NOT_ALLOWED,
    RefusalReason.MODEL_NOT_ALLOWED,
    RefusalReason.MODEL_INVALID,
    RefusalReason.TASK_UNKNOWN,
    RefusalReason.UNKNOWN,
)
"""What a car that is free for other work says of a job: asking it again is in vain."""


class Attempts:
    """Begins and ends attempts; owns their timers and the cancels that wait for an answer."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._timers: list[tuple[int, int, Fence]] = []
        self._cancels: dict[tuple[int, Fence], tuple[str, CancelReason, int]] = {}
        self._cancel_timers: list[tuple[int, int, Fence]] = []
        self._waits: list[int] = []

    # --- begin ---

    def begin(self, unit: Unit, row: int, item_ms: float, now: Now) -> None:
        """Offer a unit to the car in `row` under a new fence."""
        state, fleet = self._state, self._state.fleet
        job = unit.job
        expected_ms = item_ms * len(unit.open)
        unit.state = UnitState.OFFERED
        unit.fence = state.new_fence()
        unit.issued = tuple(unit.open)
        unit.vehicle, unit.row = fleet.vehicles[row], row
        unit.offered_boot_ms, unit.offered_ms = now.boot_ms, now.utc_ms
        unit.taken_ms = None
        unit.expected_item_ms = item_ms
        self._set_lease(unit, expected_ms + fleet.backlog_ms[row])
        unit.items_done, unit.busy_ms, unit.energy_j = 0, 0.0, 0.0
        unit.seqs.clear()
        job.units[unit.id] = unit
        job.in_flight += len(unit.open)
        state.units[unit.id] = unit
        state.units_out[job.spec.tenant] += 1
        state.turns.shares.charge(job.spec.tenant, expected_ms)
        fleet.offered(row, expected_ms)
        if job.state is JobState.ACCEPTED:
            job.state = JobState.RUNNING
            state.touch(job)
        state.emit(
            BeginAttempt(
                job_no=job.no,
                unit=unit.id,
                fence=unit.fence,
                vehicle=unit.vehicle,
                issued=unit.issued,
                alone=unit.alone,
                offered_ms=now.utc_ms,
            )
        )
        state.counters["attempts"] += 1
        self._offer(unit, now)

    def restore(self, stored: StoredAttempt, job: Job, row: int, now: Now) -> None:
        """Take up an attempt from the store: its lease starts anew, its offer is sent again.

        Attempts come oldest first. An item that a later one was issued again (struck, or
        requeued) is the later one's; one that failed on this car is tried alone.
        """
        state = self._state
        unit = Unit(
            id=stored.unit,
            job=job,
            open=dict.fromkeys(item.index for item in stored.items),
            alone=stored.alone,
            state=UnitState.OFFERED,
            fence=stored.fence,
            issued=stored.issued,
            vehicle=stored.vehicle,
            row=row,
            offered_boot_ms=now.boot_ms,
            offered_ms=stored.offered_ms,
        )
        for item in stored.items:
            index = item.index
            holder = job.holder(index)
            if holder is not None:
                del holder.open[index]
                job.in_flight -= 1
                state.fleet.progressed(holder.row, holder.expected_item_ms)
            elif index in job.items:
                job.unqueue(index)
            else:
                job.items[index] = item
                state.window_items += 1
                state.window_bytes += len(item.data)
            if not stored.alone and stored.vehicle in job.strikes.get(index, ()):
                del unit.open[index]
                job.alone.append(index)
        unit.expected_item_ms = state.pace.expect_ms(
            job.spec.requirement.model, job.spec.reference_ms, row
        )
        self._set_lease(unit, unit.expected_item_ms * len(unit.issued))
        job.units[unit.id] = unit
        job.in_flight += len(unit.open)
        state.units[unit.id] = unit
        state.units_out[job.spec.tenant] += 1
        state.fleet.offered(row, unit.expected_item_ms * len(unit.open))
        heapq.heappush(self._timers, (now.boot_ms, unit.id, unit.fence))

    def _set_lease(self, unit: Unit, expected_ms: float) -> None:
        spec = unit.job.spec
        unit.lease_ms = self._state.pace.lease_ms(expected_ms, spec.reference_ms)
        is_warm = self._state.fleet.is_resident(unit.row, spec.requirement.model)
        unit.cold_ms = 0 if is_warm else limits.LEASE_COLD_MS

    def _offer(self, unit: Unit, now: Now) -> None:
        """Queue the offer (first time or again, unchanged) and set its timer."""
        state, spec = self._state, unit.job.spec
        offer = UnitOffer(
            job=spec.id,
            unit=unit.id,
            fence=unit.fence,
            tenant=spec.tenant,
            purpose=spec.purpose,
            task=spec.requirement.task,
            model=spec.requirement.model,
            items=tuple(unit.job.items[index] for index in unit.open),
            parameters=msgspec.Raw(spec.parameters),
            deadline_ms=spec.deadline_ms,
            remaining_ms=max(0, spec.deadline_ms - now.utc_ms),
            lease_ms=unit.lease_ms + unit.cold_ms,
            traceparent=spec.traceparent,
        )
        state.offers.setdefault(unit.vehicle, []).append(offer)
        self._set_timer(unit, now)

    def _set_timer(self, unit: Unit, now: Now) -> None:
        again = now.boot_ms + limits.OFFER_RESEND_MS
        due = min(again, unit.offered_boot_ms + _offer_timeout_ms(unit))
        heapq.heappush(self._timers, (due, unit.id, unit.fence))

    # --- answers ---

    def answered(self, vehicle: str, verdict: Verdict, now: Now) -> None:
        """A car's verdict on an offer or a cancel."""
        state = self._state
        unit = state.units.get(verdict.unit)
        is_current = unit is not None and unit.fence == verdict.fence and unit.vehicle == vehicle
        match verdict:
            case Taken():
                if not is_current:
                    state.counters["taken_stale"] += 1
                    self._tell_cancel(
                        vehicle, verdict.unit, verdict.fence, CancelReason.STALE_FENCE
                    )
                elif unit is not None and unit.state is UnitState.OFFERED:
                    self._taken(unit, now)
            case Refused():
                if is_current and unit is not None:
                    state.counters[f"refused_{verdict.reason.value}"] += 1
                    wait_ms = verdict.retry_after_ms
                    if verdict.reason in NOT_THIS_JOB:
                        unit.job.refuse(vehicle, now.boot_ms)
                    else:
                        # "Busy, ask at once" would be asked a thousand times a second.
                        wait_ms = max(wait_ms, limits.REFUSAL_WAIT_MIN_MS)
                    self._wait(unit.row, wait_ms, now)
                    self.end(unit, AttemptEnd.REFUSED, now)
                    self.requeue(unit)
            case Cancelled():
                waiting = self._cancels.get((verdict.unit, verdict.fence))
                if waiting is not None and waiting[0] == vehicle:
                    del self._cancels[(verdict.unit, verdict.fence)]
                if is_current and unit is not None:
                    self.end(unit, AttemptEnd.CANCELLED, now)
                    self.requeue(unit)

    def _taken(self, unit: Unit, now: Now) -> None:
        unit.state = UnitState.RUNNING
        unit.taken_ms = now.utc_ms
        self.renew(unit, now)  # its offer's timer is still set and turns into the lease's
        unit.lease_until_boot_ms += unit.cold_ms

    def renew(self, unit: Unit, now: Now) -> None:
        """Progress renews the lease. A chunk proves that its offer was taken."""
        unit.lease_until_boot_ms = now.boot_ms + unit.lease_ms
        if unit.state is UnitState.OFFERED:
            self._taken(unit, now)

    # --- end ---

    def end(self, unit: Unit, end: AttemptEnd, now: Now, ending: Ending | None = None) -> None:
        """The attempt is over; its unit is nobody's until requeued or dropped."""
        state, job = self._state, unit.job
        stop = ending.stop if ending else None
        state.emit(
            EndAttempt(
                unit=unit.id,
                fence=unit.fence,
                job=job.spec.id,
                vehicle=unit.vehicle,
                end=end,
                taken_ms=unit.taken_ms,
                ended_ms=now.utc_ms,
                items_done=unit.items_done,
                busy_ms=unit.busy_ms,
                energy_j=unit.energy_j,
                outcome=ending.outcome if ending else None,
                release_reason=ending.reason if ending else None,
                hold=ending.hold if ending else None,
                stop_tier=stop.tier if stop else None,
                stop_latency_ms=stop.latency_ms if stop else None,
            )
        )
        state.counters[f"ended_{end.value}"] += 1
        state.remember(unit)
        left_ms = unit.expected_item_ms * len(unit.open)
        state.fleet.ended(unit.row, left_ms)
        state.turns.shares.charge(job.spec.tenant, -left_ms)
        state.units_out[job.spec.tenant] -= 1
        if not state.units_out[job.spec.tenant]:
            del state.units_out[job.spec.tenant]
        del state.units[unit.id]
        del job.units[unit.id]
        job.in_flight -= len(unit.open)
        unit.state = UnitState.PENDING
        state.retire(job)

    def requeue(self, unit: Unit) -> None:
        """What is still open goes back to pending, to be offered under a new fence."""
        job = unit.job
        if not unit.open or job.is_over:
            return
        if job.strikes and not unit.alone:
            for index in [index for index in unit.open if index in job.strikes]:
                del unit.open[index]
                job.alone.append(index)
        if unit.alone:
            job.alone.extend(unit.open)
        elif unit.open:
            job.requeued.append(unit)
        self._state.turns.queue(job.spec.tenant).push(job)

    def cancel(self, unit: Unit, reason: CancelReason, now: Now) -> None:
        """Take an attempt back from its car; re-sent until answered or given up."""
        self.end(unit, AttemptEnd.CANCELLED, now)
        key = (unit.id, unit.fence)
        if len(self._cancels) < limits.CANCELS_MAX:
            give_up = now.boot_ms + limits.CANCEL_GIVE_UP_MS
            self._cancels[key] = (unit.vehicle, reason, give_up)
            due = now.boot_ms + limits.OFFER_RESEND_MS
            heapq.heappush(self._cancel_timers, (due, *key))
        self._tell_cancel(unit.vehicle, unit.id, unit.fence, reason)

    def _tell_cancel(self, vehicle: str, unit: int, fence: Fence, reason: CancelReason) -> None:
        self._state.order(vehicle, Cancel(unit=unit, fence=fence, reason=reason))

    # --- time ---

    def next_deadline_ms(self) -> int | None:
        """Boot time in ms of the next timer."""
        heads = [timers[0][0] for timers in (self._timers, self._cancel_timers) if timers]
        heads += self._waits[:1]
        return min(heads) if heads else None

    def time_passed(self, now: Now) -> None:
        """Act on every timer that is due."""
        while self._timers and self._timers[0][0] <= now.boot_ms:
            _, unit_id, fence = heapq.heappop(self._timers)
            unit = self._state.units.get(unit_id)
            if unit is not None and unit.fence == fence:
                self._unit_due(unit, now)
        while self._cancel_timers and self._cancel_timers[0][0] <= now.boot_ms:
            _, unit_id, fence = heapq.heappop(self._cancel_timers)
            self._cancel_due(unit_id, fence, now)
        while self._waits and self._waits[0] <= now.boot_ms:
            heapq.heappop(self._waits)
            self._state.fleet.changes += 1  # a car may be asked again

    def _wait(self, row: int, wait_ms: int, now: Now) -> None:
        """Offer this car nothing for a while."""
        until = now.boot_ms + min(wait_ms, limits.OFFER_TIMEOUT_MS)
        fleet = self._state.fleet
        if until > max(now.boot_ms, fleet.retry_at_ms[row]):
            fleet.retry_at_ms[row] = until
            heapq.heappush(self._waits, until)

    def _unit_due(self, unit: Unit, now: Now) -> None:
        match unit.state:
            case UnitState.OFFERED:
                if not unit.open:  # restored, and only its last word was missing
                    self.end(unit, AttemptEnd.COMPLETED, now)
                elif now.boot_ms - unit.offered_boot_ms >= _offer_timeout_ms(unit):
                    self._give_up(unit, AttemptEnd.OFFER_TIMEOUT, now)
                else:
                    self._state.counters["offers_resent"] += 1
                    self._offer(unit, now)
            case UnitState.RUNNING:
                if now.boot_ms >= unit.lease_until_boot_ms:
                    self._give_up(unit, AttemptEnd.LEASE_EXPIRED, now)
                else:
                    entry = (unit.lease_until_boot_ms, unit.id, unit.fence)
                    heapq.heappush(self._timers, entry)
            case UnitState.PENDING:
                raise AssertionError(f"unit {unit.id} has a timer but is pending")

    def _give_up(self, unit: Unit, end: AttemptEnd, now: Now) -> None:
        state, job = self._state, unit.job
        state.tell(now, f"{end.value} job={job.spec.id} unit={unit.id} car={unit.vehicle}")
        self.end(unit, end, now)
        self._wait(unit.row, limits.OFFER_TIMEOUT_MS, now)
        self._tell_cancel(unit.vehicle, unit.id, unit.fence, CancelReason.LEASE_LOST)
        if end is AttemptEnd.LEASE_EXPIRED:
            self.suspect(unit)
        self.requeue(unit)

    def suspect(self, unit: Unit) -> None:
        """Isolate the item that was probably running when its car fell silent."""
        job = unit.job
        if not unit.open or job.is_over:
            return
        index = next(iter(unit.open))
        job.expiries.setdefault(index, []).append(unit.vehicle)
        if not unit.alone:
            del unit.open[index]
            job.alone.append(index)
            self._state.turns.queue(job.spec.tenant).push(job)

    def _cancel_due(self, unit: int, fence: Fence, now: Now) -> None:
        waiting = self._cancels.get((unit, fence))
        if waiting is None:
            return
        vehicle, reason, give_up = waiting
        if now.boot_ms >= give_up:
            del self._cancels[(unit, fence)]
            self._state.counters["cancels_given_up"] += 1
            return
        self._tell_cancel(vehicle, unit, fence, reason)
        due = now.boot_ms + limits.OFFER_RESEND_MS
        heapq.heappush(self._cancel_timers, (due, unit, fence))


def _offer_timeout_ms(unit: Unit) -> int:
    return max(limits.OFFER_TIMEOUT_MS, unit.lease_ms // 2)
