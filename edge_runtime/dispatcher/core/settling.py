"""Settling: an item's one canonical end, a job's end, and what counts against an item.

Invariants
- An item is settled once: `job.items` holds exactly the loaded items that are open, and settling
  takes the item out. What is settled while the store is being read is remembered until the
  reading has arrived (`closed_ahead`).
- Cursors of a job grow by one with each settled item, in the order in which they are committed.
- A final error blames the input and settles the item; any other error is a strike for
  (item, car). An item with strikes is retried alone, on cars without one while there are any,
  and fails for good after `POISON_DISTINCT_CARS` cars.
"""

from edge_runtime.contract import limits
from edge_runtime.contract.clock import Now
from edge_runtime.contract.http import OBJECTS_PATH
from edge_runtime.contract.messages import (
    ItemDone,
    ItemFailed,
    ItemResult,
    OutputReference,
    Reference,
    ResultError,
    Text,
)
from edge_runtime.contract.reasons import CancelReason, ItemError, JobState
from edge_runtime.dispatcher.core.attempts import Attempts
from edge_runtime.dispatcher.core.commands import AddResult, AddStrike, FailRemaining
from edge_runtime.dispatcher.core.jobs import Job, Unit, UnitState
from edge_runtime.dispatcher.core.state import State


class Settling:
    """Settles items and ends jobs."""

    def __init__(self, state: State, attempts: Attempts) -> None:
        self._state = state
        self._attempts = attempts

    def take(self, job: Job, unit: Unit | None, result: ItemResult, vehicle: str, now: Now) -> bool:
        """One item result of a legitimate attempt; True if it settled or struck the item.

        `unit` is the live unit that holds the item now, whoever ran it.
        """
        index = result.index
        if index not in job.items:
            return False
        if unit is not None:
            self.leave(unit, index)
        match result:
            case ItemDone(ref=Reference() as ref):
                self.settle(job, index, vehicle, now, ref=_readable_at(ref))
            case ItemDone():
                self.settle(job, index, vehicle, now, output=bytes(result.output))
            case ItemFailed(code=code, message=message):
                final = _error(code, message, 1) if code.is_final else None
                error = final or self._strike(job, result, vehicle, now)
                if error is None:
                    self.isolate(job, index)
                else:
                    self.settle(job, index, vehicle, now, error=error)
        return True

    def take_late(self, job: Job, result: ItemResult, vehicle: str, now: Now) -> bool:
        """One item result of an attempt that is over; True if it settled or struck the item.

        A failure counts once a car: a reboot may take longer than a lease, and then all that is
        said of the item in hand comes late. A struck item that another car has in hand meanwhile
        stays there. A deadline is not believed: the job may have a new one.
        """
        index = result.index
        if index not in job.items:
            return False
        holder = job.holder(index)
        if isinstance(result, ItemFailed) and not result.code.is_final:
            if vehicle in job.strikes.get(index, ()):
                return False
            error = self._strike(job, result, vehicle, now)
            if error is None:
                if holder is None or holder.state is UnitState.PENDING:
                    self._withhold(job, holder, index)
                    self.isolate(job, index)
                return True
            self._withhold(job, holder, index)
            self.settle(job, index, vehicle, now, error=error)
        elif isinstance(result, ItemFailed) and result.code is ItemError.DEADLINE_PASSED:
            return False
        else:
            self._withhold(job, holder, index)
            self.take(job, None, result, vehicle, now)
        self._state.counters["late_items"] += 1
        if holder is not None and not holder.open and holder.id in self._state.units:
            self._attempts.cancel(holder, CancelReason.STALE_FENCE, now)
        return True

    def _withhold(self, job: Job, holder: Unit | None, index: int) -> None:
        """Take an open item from wherever it is."""
        if holder is None:
            job.unqueue(index)
        else:
            self.leave(holder, index)

    def leave(self, unit: Unit, index: int) -> None:
        """An item is no longer this unit's."""
        del unit.open[index]
        if unit.state is not UnitState.PENDING:
            unit.job.in_flight -= 1
            self._state.fleet.progressed(unit.row, unit.expected_item_ms)

    def isolate(self, job: Job, index: int) -> None:
        """From now on the item is tried alone."""
        job.alone.append(index)
        self._state.turns.queue(job.spec.tenant).push(job)

    def settle(
        self,
        job: Job,
        index: int,
        vehicle: str,
        now: Now,
        *,
        output: bytes | None = None,
        error: ResultError | None = None,
        ref: OutputReference | None = None,
    ) -> None:
        """The item's canonical end."""
        state = self._state
        self._close(job, index)
        job.cursor += 1
        if error is None:
            job.done += 1
        else:
            job.failed += 1
            state.counters[f"item_failed_{error.code.value}"] += 1
        state.emit(
            AddResult(
                job_no=job.no,
                job=job.spec.id,
                tenant=job.spec.tenant,
                cursor=job.cursor,
                index=index,
                at_ms=now.utc_ms,
                vehicle=vehicle,
                output=output,
                error=error,
                traceparent=job.spec.traceparent,
                ref=ref,
            )
        )
        if job.open_count:
            state.touch(job)
        else:
            self.end_job(job, JobState.DONE, now)

    def _close(self, job: Job, index: int) -> None:
        item = job.items.pop(index)
        self._state.window_items -= 1
        self._state.window_bytes -= len(item.data)
        if job.is_loading or index > job.loaded_through:
            job.closed_ahead.add(index)
        job.strikes.pop(index, None)
        job.expiries.pop(index, None)

    def _strike(self, job: Job, failure: ItemFailed, vehicle: str, now: Now) -> ResultError | None:
        """Count a failure against an item; the error it ends with if that was one too many."""
        state, index, code = self._state, failure.index, failure.code
        struck = job.strikes.setdefault(index, [])
        struck.append(vehicle)
        distinct = len(set(struck))
        state.counters[f"strike_{code.value}"] += 1
        if (
            distinct >= limits.POISON_DISTINCT_CARS
            or len(struck) >= 2 * limits.POISON_DISTINCT_CARS
        ):
            state.tell(now, f"poison job={job.spec.id} item={index} cars={distinct}")
            return _error(code, failure.message, len(struck))
        state.emit(AddStrike(job_no=job.no, index=index, vehicle=vehicle))
        return None

    def expire_item(self, job: Job, index: int, now: Now) -> None:
        """An item whose attempts all vanished: the bound that keeps it from living for ever."""
        error = _error(ItemError.TOO_MANY_ATTEMPTS, "every attempt ended in silence", 0)
        self.settle(job, index, "", now, error=error)

    def end_job(self, job: Job, job_state: JobState, now: Now) -> None:
        """Nothing more happens to this job; its live attempts are taken back."""
        state = self._state
        reason = (
            CancelReason.DEADLINE if job_state is JobState.EXPIRED else CancelReason.JOB_CANCELLED
        )
        job.state = job_state
        if job_state is JobState.EXPIRED and job.open_count:
            error = _error(ItemError.DEADLINE_PASSED, "the job's deadline passed", 0)
            state.emit(
                FailRemaining(
                    job_no=job.no,
                    job=job.spec.id,
                    tenant=job.spec.tenant,
                    after_cursor=job.cursor,
                    at_ms=now.utc_ms,
                    error=error,
                )
            )
            job.cursor += job.open_count
            job.failed += job.open_count
        state.window_items -= len(job.items)
        state.window_bytes -= sum(len(item.data) for item in job.items.values())
        job.items.clear()
        job.closed_ahead.clear()
        job.strikes.clear()
        job.expiries.clear()
        job.pending.clear()
        job.alone.clear()
        job.requeued.clear()
        job.is_fully_loaded = True
        state.touch(job, finished_ms=now.utc_ms)
        for unit in list(job.units.values()):
            if unit.open:
                self._attempts.cancel(unit, reason, now)  # the last one retires the job
        state.retire(job)


def _readable_at(ref: Reference) -> OutputReference:
    """For its readers an output is an object of their tenant."""
    url = f"{OBJECTS_PATH}/{ref.sha256}"
    return OutputReference(sha256=ref.sha256, length=ref.length, url=url)


def _error(code: ItemError, message: Text, attempts: int) -> ResultError:
    return ResultError(code=code, message=message[: limits.TEXT_MAX_CHARS], attempts=attempts)
