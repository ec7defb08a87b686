"""The dispatcher's machine: events in, commands out.

`handle` is the only mutator, `next_deadline_ms` the only word on time, `check` the invariants.
The shell calls `handle` for every event of a tick, then `finish_tick` once: that places work on
free cars and returns everything the tick decided, in the order in which it must happen.

Deliberately absent: I/O, encoding, topics; any knowledge of what an item contains.
"""

import heapq
from collections import Counter
from enum import Enum
from typing import NoReturn, assert_never

import msgspec

from edge_runtime.contract import limits
from edge_runtime.contract.clock import Now
from edge_runtime.contract.errors import Rejected, RejectionReason
from edge_runtime.contract.http import AttemptEnd, Explanation
from edge_runtime.contract.messages import (
    Cancel,
    Chunk,
    ChunkAnswer,
    Ending,
    Item,
    ItemDone,
    Rebirth,
    VehicleState,
)
from edge_runtime.contract.reasons import CancelReason, ChunkVerdict, JobState, Outcome
from edge_runtime.dispatcher.core.attempts import Attempts
from edge_runtime.dispatcher.core.booking import price_of, work_done
from edge_runtime.dispatcher.core.commands import (
    AddJob,
    Command,
    FindAttempt,
    LoadJobs,
    PutQuarantine,
    PutVehicle,
    WithdrawFailures,
)
from edge_runtime.dispatcher.core.events import (
    AttemptFound,
    ChunkReceived,
    Event,
    ItemsLoaded,
    JobCancelled,
    JobRequeued,
    JobsLoaded,
    JobSubmitted,
    QuarantineSet,
    StateReported,
    StoredAttempt,
    StoredJob,
    TimePassed,
    VehicleBorn,
    VehicleWent,
    VerdictReceived,
    WeightSet,
)
from edge_runtime.dispatcher.core.fairness_room import Room
from edge_runtime.dispatcher.core.fleet import Fleet
from edge_runtime.dispatcher.core.jobs import Job, TenantQueue, Unit, UnitState
from edge_runtime.dispatcher.core.placement import Requirement
from edge_runtime.dispatcher.core.settling import Settling
from edge_runtime.dispatcher.core.state import State

_ITEM_OVERHEAD_BYTES = 64
_REFERENCE_BYTES = 80 + limits.TEXT_MAX_CHARS


class _Placing(Enum):
    """What became of a job's turn."""

    PLACED = "placed"
    NO_CAR = "no car is free for its requirement"
    LOADING = "its items are being read from the store"
    NOTHING = "what it has waits for other cars than those that are free"


class DispatcherCore:
    """Jobs, units, attempts, leases; pure."""

    def __init__(
        self, *, epoch: int, next_job_no: int = 1, next_unit: int = 1, fleet: Fleet | None = None
    ) -> None:
        self._state = State(epoch, next_job_no, next_unit, fleet or Fleet())
        self._attempts = Attempts(self._state)
        self._settling = Settling(self._state, self._attempts)
        self._rebirths: dict[str, None] = {}
        self._deadlines: list[tuple[int, int]] = []
        self._boosts: list[tuple[int, int]] = []
        self._room = Room(self._state, self._attempts)
        self._greetings = limits.GREETINGS
        self._greet_at_ms = 0
        self.is_draining = False
        """Set by a shell that stops: nothing is offered to cars any more."""

    # --- for the shell ---

    @property
    def fleet(self) -> Fleet:
        """The registry (read only outside the core)."""
        return self._state.fleet

    @property
    def state(self) -> State:
        """Everything else (read only outside the core)."""
        return self._state

    def handle(self, event: Event, now: Now) -> None:
        """Apply one event. Raises `Rejected` for a car's message that is not accepted."""
        match event:
            case StateReported(state=state):
                self._state_reported(state, now)
            case ChunkReceived(vehicle=vehicle, chunk=chunk):
                self._chunk(vehicle, chunk, now)
            case VerdictReceived(vehicle=vehicle, verdict=verdict):
                self._known(vehicle)
                self._attempts.answered(vehicle, verdict, now)
            case JobSubmitted():
                self._submitted(event)
            case ItemsLoaded():
                self._items_loaded(event)
            case VehicleBorn(birth=birth):
                if event.is_retained:
                    self._ask_rebirth(birth.vehicle)  # its state is not retained
                self._state.fleet.born(birth, is_live=not event.is_retained)
                self._state.emit(PutVehicle(birth=birth))
            case VehicleWent():
                self._went(event, now)
            case AttemptFound():
                self._attempt_found(event, now)
            case JobCancelled(job=job_id):
                self._cancelled(job_id, now)
            case JobRequeued():
                self._requeued(event, now)
            case JobsLoaded():
                self._jobs_loaded(event)
            case QuarantineSet() | WeightSet():
                self._ordered(event, now)
            case TimePassed():
                pass
            case _:
                assert_never(event)

    def finish_tick(self, now: Now) -> list[Command]:
        """Act on due timers, place work on free cars, and hand out the tick's commands."""
        self._expire_jobs(now)  # first: nothing of an ended job is offered again
        self._boost_jobs(now)
        self._attempts.time_passed(now)
        if not self.is_draining:
            self._schedule(now)
        self._state.announce_due(now)
        self._greet(now)
        for vehicle in list(self._rebirths)[: limits.REBIRTHS_PER_TICK_MAX]:
            del self._rebirths[vehicle]
            self._state.order(vehicle, Rebirth(delay_max_ms=min(30_000, 10 * len(self._rebirths))))
        return self._state.flush(now)

    def next_deadline_ms(self, now: Now) -> int | None:
        """Boot time in ms at which `finish_tick` wants to be called again."""
        due = [self._attempts.next_deadline_ms()]
        if self._state.status_queue:
            due.append(self._state.status_queue[0][0])
        if self._deadlines:
            due.append(now.boot_ms + max(0, self._deadlines[0][0] - now.utc_ms))
        if self._boosts:
            due.append(now.boot_ms + max(0, self._boosts[0][0] - now.utc_ms))
        if self._rebirths:
            due.append(now.boot_ms + limits.EMPTY_POOL_REBUILD_MS)
        if self._greetings:
            due.append(self._greet_at_ms)
        return min((moment for moment in due if moment is not None), default=None)

    # --- cars ---

    def _state_reported(self, state: VehicleState, now: Now) -> None:
        try:
            self._state.fleet.reported(state, now.boot_ms)
        except Rejected as rejected:
            if rejected.reason is not RejectionReason.OLD_SEQUENCE:
                self._ask_rebirth(state.vehicle)
            raise

    def _went(self, event: VehicleWent, now: Now) -> None:
        """A Will never ends a lease by itself; an old one is answered with Rebirth."""
        try:
            self._state.fleet.went(event.offline)
        except Rejected:
            self._ask_rebirth(event.offline.vehicle)
            raise
        self._state.tell(now, f"offline car={event.offline.vehicle}")

    def _known(self, vehicle: str) -> int:
        """The row of a car; one that is not known is asked to introduce itself."""
        row = self._state.fleet.row_of.get(vehicle)
        if row is None:
            self._ask_rebirth(vehicle)
            raise Rejected(RejectionReason.UNKNOWN_VEHICLE, vehicle)
        return row

    def _ask_rebirth(self, vehicle: str) -> None:
        if len(self._rebirths) < limits.ENDED_ATTEMPTS_KEPT_MAX:
            self._rebirths[vehicle] = None

    def _greet(self, now: Now) -> None:
        """Ask cars that the store knows, and that have said nothing yet, to introduce themselves.

        A dispatcher that starts again need not wait for their next state. A large fleet is not
        asked: so many states arrive soon by themselves.
        """
        if not self._greetings or now.boot_ms < self._greet_at_ms:
            return
        unseen = self._state.fleet.unseen()
        if len(unseen) > limits.GREETED_CARS_MAX:
            unseen = []
        for vehicle in unseen:
            self._ask_rebirth(vehicle)
        self._greetings = self._greetings - 1 if unseen else 0
        self._greet_at_ms = now.boot_ms + limits.GREETING_MS

    def _ordered(self, event: QuarantineSet | WeightSet, now: Now) -> None:
        """What the operator decides."""
        match event:
            case QuarantineSet(vehicle=vehicle, on=on):
                self._quarantine(vehicle, on=on, now=now)
            case WeightSet(tenant=tenant, weight=weight):
                self._state.turns.shares.set_weight(tenant, weight)

    def _quarantine(self, vehicle: str, *, on: bool, now: Now) -> None:
        state = self._state
        row = state.fleet.require(vehicle)
        state.fleet.quarantine(row, on=on)
        state.emit(PutQuarantine(vehicle=vehicle, on=on))
        if on:
            for unit in [unit for unit in state.units.values() if unit.row == row]:
                self._attempts.cancel(unit, CancelReason.QUARANTINED, now)
                self._attempts.requeue(unit)

    # --- jobs ---

    def _submitted(self, event: JobSubmitted) -> None:
        state, spec = self._state, event.spec
        job = Job(no=state.next_job_no, spec=spec)
        job.written = job.counts
        state.next_job_no += 1
        state.emit(AddJob(no=job.no, spec=spec, items=event.items))
        state.counters["jobs"] += 1
        queue = state.turns.queue(spec.tenant)
        if queue.has_more or queue.open_jobs >= self._window_share():
            # It waits in the store until its tenant's window has room.
            queue.has_more, queue.waiting_through_no = True, job.no
            state.counters["jobs_waiting_in_store"] += 1
            return
        room = state.window_items + len(event.items) <= limits.WINDOW_ITEMS_MAX
        if room and state.window_bytes < limits.WINDOW_BYTES_MAX:
            self._keep(job, event.items)
            job.loaded_through, job.is_fully_loaded = spec.items - 1, True
        self._open(job, queue)
        queue.loaded_through_no = job.no
        state.touch(job)

    def _window_share(self) -> int:
        tenants = max(1, len(self._state.turns))
        return max(limits.TENANT_WINDOW_JOBS_MIN, limits.WINDOW_JOBS_MAX // tenants)

    def _open(self, job: Job, queue: TenantQueue) -> None:
        state = self._state
        state.jobs[job.spec.id] = job
        state.job_by_no[job.no] = job
        queue.open_jobs += 1
        queue.push(job)
        self._set_deadline(job)

    def _set_deadline(self, job: Job) -> None:
        heapq.heappush(self._deadlines, (job.spec.deadline_ms, job.no))
        heapq.heappush(self._boosts, (job.urgent_from_ms, job.no))
        if len(self._deadlines) > 2 * len(self._state.jobs) + limits.STORY_EVENTS_MAX:
            # Most entries belong to jobs that ended long before their deadline.
            open_jobs = self._state.jobs.values()
            self._deadlines = [(job.spec.deadline_ms, job.no) for job in open_jobs]
            heapq.heapify(self._deadlines)
            self._boosts = [(job.urgent_from_ms, job.no) for job in open_jobs if not job.is_urgent]
            heapq.heapify(self._boosts)

    def _keep(self, job: Job, items: tuple[Item, ...]) -> None:
        """Hold open items in memory, to be offered; those with strikes alone."""
        state = self._state
        for item in items:
            job.items[item.index] = item
            (job.alone if item.index in job.strikes else job.pending).append(item.index)
            state.window_bytes += len(item.data)
        state.window_items += len(items)

    def _items_loaded(self, event: ItemsLoaded) -> None:
        self._state.items_arrived(event.job)
        job = self._state.jobs.get(event.job)
        if job is None or job.is_over or not job.is_loading:
            return  # it ended, or ended and runs again, since this was read
        job.is_loading = False
        job.loaded_through = event.through
        job.is_fully_loaded = not event.more
        self._keep(
            job,
            tuple(
                item
                for item in event.items
                if item.index not in job.closed_ahead and item.index not in job.items
            ),
        )
        job.closed_ahead = {index for index in job.closed_ahead if index > event.through}
        self._state.turns.queue(job.spec.tenant).push(job)

    def _jobs_loaded(self, event: JobsLoaded) -> None:
        queue = self._state.turns.queue(event.tenant)
        queue.is_loading = False
        for stored in event.jobs:
            self.restore_job(stored)
        if not event.more:
            queue.loaded_through_no = max(queue.loaded_through_no, queue.asked_at_no)
        # A job that was accepted after the reading waits for the next one.
        queue.has_more = event.more or queue.waiting_through_no > queue.loaded_through_no

    def restore_job(self, stored: StoredJob, *, in_order: bool = True) -> Job | None:
        """Take up an open job from the store; its items follow when its turn comes.

        None for one that has ended since it was read. `in_order` says that every open job of
        its tenant with a lower number has been taken up too.
        """
        queue = self._state.turns.queue(stored.spec.tenant)
        if in_order and stored.in_order:
            queue.loaded_through_no = max(queue.loaded_through_no, stored.no)
        known = self._state.jobs.get(stored.spec.id)
        if known is not None:
            return known
        if stored.spec.id in self._state.ended_jobs:
            return None
        job = Job(
            no=stored.no,
            spec=stored.spec,
            state=stored.state,
            done=stored.done,
            failed=stored.failed,
            cursor=stored.cursor,
        )
        job.written = job.counts
        for index, vehicle in stored.strikes:
            job.strikes.setdefault(index, []).append(vehicle)
        self._open(job, queue)
        return job

    def restore_attempt(self, stored: StoredAttempt, now: Now) -> None:
        """Take up a live attempt from the store; its job must have been restored before."""
        state = self._state
        job = state.job_by_no[stored.job_no]
        row = state.fleet.require(stored.vehicle)
        self._attempts.restore(stored, job, row, now)

    def ask_who_is_there(self, now: Now) -> None:
        """The bus is up again: cars whose state is missing or stale are asked for it, in turns."""
        fleet = self._state.fleet
        stale = fleet.column("seen_ms") <= now.boot_ms - limits.STATE_STALE_MS
        for row in stale.nonzero()[0].tolist():
            self._ask_rebirth(fleet.vehicles[row])

    def has_more(self, tenant: str) -> None:
        """The store holds open jobs of a tenant beyond those restored."""
        self._state.turns.queue(tenant).has_more = True

    def _cancelled(self, job_id: str, now: Now) -> None:
        """Of a cancel and a result the first wins."""
        job = self._state.jobs.get(job_id)
        if job is not None and not job.is_over:
            self._settling.end_job(job, JobState.CANCELLED, now)

    def _requeued(self, event: JobRequeued, now: Now) -> None:
        """Withdraw failures; an ended job is open again, with what was not run of it."""
        state, stored = self._state, event.job
        ended = state.ended_jobs.get(stored.spec.id)
        if ended is not None:
            stored = msgspec.structs.replace(
                stored,
                state=ended.state,
                done=ended.done,
                failed=ended.failed,
                cursor=ended.cursor,
            )
        known = state.jobs.get(stored.spec.id)
        withdrawn = known.withdrawn if known else ended.withdrawn if ended else {}
        # What was read before an item was withdrawn the last time says nothing of it now.
        read_at = event.job.cursor
        items = tuple(x for x in event.items if withdrawn.get(x.index, -1) < read_at)
        if not items:
            return
        state.ended_jobs.pop(stored.spec.id, None)
        job = self.restore_job(stored, in_order=False)
        assert job is not None, stored
        indices = tuple(item.index for item in items)
        state.emit(WithdrawFailures(job_no=job.no, items=indices))
        if job.is_over:
            job.is_loading = job.is_fully_loaded = False
            job.loaded_through = -1
        for index in indices:
            job.strikes.pop(index, None)
            withdrawn[index] = job.cursor
        job.withdrawn = withdrawn
        job.failed -= len(indices)
        job.state = JobState.RUNNING
        job.spec = stored.spec
        self._set_deadline(job)
        self._keep(job, items)
        state.turns.queue(job.spec.tenant).push(job)
        state.touch(job)
        state.tell(now, f"requeued job={job.spec.id} items={len(indices)}")

    def _expire_jobs(self, now: Now) -> None:
        while self._deadlines and self._deadlines[0][0] <= now.utc_ms:
            _, no = heapq.heappop(self._deadlines)
            job = self._state.job_by_no.get(no)
            if job is None or job.is_over or job.spec.deadline_ms > now.utc_ms:
                continue  # it ended, or was requeued with a later deadline
            self._settling.end_job(job, JobState.EXPIRED, now)

    def _boost_jobs(self, now: Now) -> None:
        """Lift the jobs whose deadline has come near; each queue is put in order once."""
        turns = self._state.turns
        lifted: set[tuple[str, Requirement]] = set()
        while self._boosts and self._boosts[0][0] <= now.utc_ms:
            _, no = heapq.heappop(self._boosts)
            job = self._state.job_by_no.get(no)
            if job is not None and not job.is_over and job.urgent_from_ms <= now.utc_ms:
                job.is_urgent = True
                lifted.add((job.spec.tenant, job.spec.requirement))
        for tenant, requirement in lifted:
            turns.queue(tenant).rank_again(requirement)

    # --- chunks ---

    def _chunk(self, vehicle: str, chunk: Chunk, now: Now) -> None:
        """Every chunk from the right car is answered (design §7)."""
        state = self._state
        row = self._known(vehicle)
        if state.fleet.is_quarantined(row):
            self._answer(vehicle, chunk, ChunkVerdict.NOT_WANTED)
            raise Rejected(RejectionReason.QUARANTINED, vehicle)
        unit = state.units.get(chunk.unit)
        if unit is not None and unit.fence == chunk.fence:
            if unit.vehicle != vehicle or unit.job.spec.id != chunk.job:
                self._refuse_chunk(vehicle, chunk)
            self._current_chunk(unit, chunk, now)
            return
        old = state.old_attempts.get((chunk.unit, chunk.fence))
        if old is None:
            state.emit(FindAttempt(vehicle=vehicle, chunk=chunk))
            return
        if old.vehicle != vehicle or old.job != chunk.job:
            self._refuse_chunk(vehicle, chunk)
        self._late_chunk(vehicle, chunk, old.issued, now)

    def _refuse_chunk(self, vehicle: str, chunk: Chunk) -> NoReturn:
        """Not an attempt of this car: it may forget the chunk, and the lie is counted."""
        self._answer(vehicle, chunk, ChunkVerdict.NOT_WANTED)
        raise Rejected(RejectionReason.NOT_YOUR_ATTEMPT, vehicle)

    def _current_chunk(self, unit: Unit, chunk: Chunk, now: Now) -> None:
        state, job = self._state, unit.job
        if chunk.model != job.spec.requirement.model:
            self._answer(unit.vehicle, chunk, ChunkVerdict.NOT_WANTED)
            return
        open_before, done_before = len(unit.open), job.done
        done = 0
        for result in chunk.items:
            # Looked up each time: a chunk may name an item twice.
            if result.index in unit.open:
                self._settling.take(job, unit, result, unit.vehicle, now)
                done += isinstance(result, ItemDone)
        if chunk.seq not in unit.seqs and len(unit.seqs) < limits.CHUNKS_PER_UNIT_MAX:
            unit.seqs.add(chunk.seq)
            unit.items_done += done
            unit.busy_ms += chunk.busy_ms
            unit.energy_j += chunk.energy_j
            state.fleet.worked(unit.row, done)
            model = job.spec.requirement.model
            state.pace.measured(model, unit.row, len(chunk.items), chunk.busy_ms)
        self._book(job, unit.vehicle, chunk, job.done - done_before, now)
        is_news = len(unit.open) < open_before
        verdict = ChunkVerdict.STORED if is_news else ChunkVerdict.ALREADY_HAVE
        self._answer(unit.vehicle, chunk, verdict)
        self._attempts.renew(unit, now)
        if chunk.ending is not None:
            self._unit_ended(unit, chunk.ending, now)

    def _unit_ended(self, unit: Unit, ending: Ending, now: Now) -> None:
        match ending.outcome:
            case Outcome.COMPLETED:
                end = AttemptEnd.COMPLETED
            case Outcome.CANCELLED:
                end = AttemptEnd.CANCELLED
            case Outcome.RELEASED | Outcome.UNKNOWN:
                end = AttemptEnd.RELEASED
        self._attempts.end(unit, end, now, ending)
        if end is AttemptEnd.COMPLETED:
            self._attempts.suspect(unit)
        self._attempts.requeue(unit)

    def _late_chunk(self, vehicle: str, chunk: Chunk, issued: tuple[int, ...], now: Now) -> None:
        """A stale fence fills open items; it renews no lease and changes no unit's state."""
        state = self._state
        job = state.jobs.get(chunk.job)
        wanted = job is not None and not job.is_over and chunk.model == job.spec.requirement.model
        if job is None or not wanted:
            self._answer(vehicle, chunk, ChunkVerdict.NOT_WANTED)
            return
        state.counters["late_chunks"] += 1
        is_news = False
        done_before = job.done
        for result in chunk.items:
            if result.index in issued and self._settling.take_late(job, result, vehicle, now):
                is_news = True
        self._book(job, vehicle, chunk, job.done - done_before, now)
        verdict = ChunkVerdict.STORED if is_news else ChunkVerdict.ALREADY_HAVE
        self._answer(vehicle, chunk, verdict)

    def _book(self, job: Job, vehicle: str, chunk: Chunk, items: int, now: Now) -> None:
        if items:
            self._state.work.add(
                work_done(
                    chunk,
                    tenant=job.spec.tenant,
                    vehicle=vehicle,
                    items=items,
                    credits_=price_of(items, job.spec.reference_ms),
                    asked_ms=job.spec.submitted_ms,
                    now_ms=now.utc_ms,
                )
            )

    def _attempt_found(self, event: AttemptFound, now: Now) -> None:
        chunk = event.chunk
        if event.stored is not None:
            self.restore_job(event.stored, in_order=False)
        if event.issued is None:
            if event.known_job:
                self._refuse_chunk(event.vehicle, chunk)
            self._answer(event.vehicle, chunk, ChunkVerdict.NOT_WANTED)
            return
        job = self._state.jobs.get(chunk.job)
        if job is not None and event.open_items:
            self._adopt_open(job, event.open_items)
        self._late_chunk(event.vehicle, chunk, event.issued, now)

    def _adopt_open(self, job: Job, items: tuple[Item, ...]) -> None:
        """Items that the store says are open, ahead of the job's own loading."""
        known = job.closed_ahead | job.items.keys()
        ahead = [item for item in items if item.index > job.loaded_through]
        self._keep(job, tuple(item for item in ahead if item.index not in known))

    def _answer(self, vehicle: str, chunk: Chunk, verdict: ChunkVerdict) -> None:
        self._state.counters[f"chunks_{verdict.value}"] += 1
        self._state.order(
            vehicle,
            ChunkAnswer(
                unit=chunk.unit,
                fence=chunk.fence,
                first_seq=chunk.seq,
                through_seq=chunk.seq,
                verdict=verdict,
            ),
        )
        if verdict is ChunkVerdict.NOT_WANTED and chunk.ending is None:
            self._state.order(
                vehicle,
                Cancel(unit=chunk.unit, fence=chunk.fence, reason=CancelReason.JOB_CANCELLED),
            )

    # --- placing work ---

    def _schedule(self, now: Now) -> None:
        turns = self._state.turns
        blocked: set[Requirement] = set()
        waiting: list[Job] = []
        turns.resume()
        self._room.new_tick()
        for _ in range(limits.PLACEMENTS_PER_TICK_MAX):
            job = turns.next(blocked)
            if job is None:
                break
            match self._place(job, now):
                case _Placing.PLACED:
                    turns.served(job.spec.tenant)
                case _Placing.NO_CAR:
                    blocked.add(job.spec.requirement)
                case _Placing.LOADING:
                    turns.queue(job.spec.tenant).drop(job)  # until its items have been loaded
                case _Placing.NOTHING:
                    turns.queue(job.spec.tenant).drop(job)
                    waiting.append(job)
        turns.end_tick()
        for job in waiting:
            turns.queue(job.spec.tenant).push(job)
        for queue in list(turns):
            self._refill(queue)

    def _refill(self, queue: TenantQueue) -> None:
        state = self._state
        share = self._window_share()
        if queue.has_more and not queue.is_loading and queue.open_jobs <= share // 2:
            queue.is_loading, queue.asked_at_no = True, state.next_job_no - 1
            state.emit(
                LoadJobs(tenant=queue.tenant, after_no=queue.loaded_through_no, limit=share // 2)
            )
        if not queue.open_jobs and not queue.has_more and queue.is_idle:
            state.turns.forget(queue)

    def _place(self, job: Job, now: Now) -> _Placing:
        """Offer one unit of the job to the best free car."""
        if job.alone and self._place_alone(job, now):
            return _Placing.PLACED
        if not (job.pending or job.requeued):
            if job.is_loading:
                return _Placing.LOADING
            if job.is_fully_loaded:
                return _Placing.NOTHING
        requirement = job.spec.requirement
        refusers = job.refusers(now.boot_ms)
        row = self._state.placement.choose(requirement, now.boot_ms, refusers)
        row = self._room.first_of_tenant(job, row, refusers, now)
        if row is None:
            # Where cars only refuse this job, others of its requirement may have their turn.
            return _Placing.NOTHING if refusers else _Placing.NO_CAR
        item_ms = self._state.pace.expect_ms(requirement.model, job.spec.reference_ms, row)
        unit: Unit | None
        if job.requeued:
            unit = job.requeued.popleft()
            if not unit.open:
                return _Placing.PLACED  # late chunks finished it
        else:
            unit = self._cut(job, item_ms)
        if unit is None:
            return _Placing.LOADING if job.is_loading else _Placing.NO_CAR
        self._attempts.begin(unit, row, item_ms, now)
        return _Placing.PLACED

    def _place_alone(self, job: Job, now: Now) -> bool:
        """Offer one isolated item to a free car that it has not failed on; whether one was."""
        state = self._state
        refused: set[frozenset[str]] = set()
        for _ in range(min(len(job.alone), limits.ALONE_TRIES_PER_PLACEMENT)):
            index = job.alone[0]
            silent = job.expiries.get(index, ())
            if len(silent) >= limits.ATTEMPTS_PER_ITEM_MAX:
                job.alone.popleft()
                self._settling.expire_item(job, index, now)
                return True
            avoid = frozenset((*job.strikes.get(index, ()), *silent))
            row = None if avoid in refused else self._choose_other(job, avoid, now)
            if row is None:
                refused.add(avoid)
                job.alone.rotate(-1)
                continue
            job.alone.popleft()
            unit = self._new_unit(job, [index], alone=True)
            requirement = job.spec.requirement
            item_ms = state.pace.expect_ms(requirement.model, job.spec.reference_ms, row)
            self._attempts.begin(unit, row, item_ms, now)
            return True
        return False

    def _choose_other(self, job: Job, avoid: frozenset[str], now: Now) -> int | None:
        """A free car outside `avoid`; any free car where no other one is alive."""
        placement, requirement = self._state.placement, job.spec.requirement
        refusers = job.refusers(now.boot_ms)
        avoid |= refusers
        row = placement.choose(requirement, now.boot_ms, avoid)
        if row is None and avoid and not placement.others_live(requirement, avoid, now.boot_ms):
            row = placement.choose(requirement, now.boot_ms, refusers)
        return row

    def _cut(self, job: Job, item_ms: float) -> Unit | None:
        """A unit from the head of the job, closed by time, fair share or size (design §3)."""
        state = self._state
        slots = state.placement.pool(job.spec.requirement).eligible
        waiting = job.open_count - job.in_flight
        most = state.pace.unit_items(item_ms, waiting, slots)
        if len(job.pending) <= most:
            state.load_items(job, most)
        taken: list[int] = []
        size = object_bytes = 0
        while job.pending and len(taken) < most:
            item = job.items[job.pending[0]]
            size += len(item.data) + len(item.media_type) + _ITEM_OVERHEAD_BYTES
            if item.ref is not None:
                size += _REFERENCE_BYTES
                object_bytes += item.ref.length
            is_full = size > limits.UNIT_MAX_BYTES or object_bytes > limits.UNIT_OBJECTS_MAX_BYTES
            if taken and is_full:
                break
            taken.append(job.pending.popleft())
        return self._new_unit(job, taken, alone=False) if taken else None

    def _new_unit(self, job: Job, items: list[int], *, alone: bool) -> Unit:
        unit = Unit(id=self._state.next_unit, job=job, open=dict.fromkeys(items), alone=alone)
        self._state.next_unit += 1
        return unit

    # --- for people ---

    def explain(self, job: Job, now: Now) -> Explanation:
        """Why a job is waiting, from the data that placement decides on."""
        eligible, excluded = self._state.placement.excluded(job.spec.requirement, now.boot_ms)
        if job.refused_by:
            excluded["refused_this_job"] = len(job.refused_by)
        waiting = job.open_count - job.in_flight
        if not waiting:
            summary = "nothing waits: every open item is out on a car"
        elif not len(self._state.fleet):
            summary = "no car has ever connected"
        elif eligible:
            summary = f"{eligible} cars are free: its turn comes with the next placement"
        else:
            causes = ", ".join(f"{count} {cause}" for cause, count in excluded.items())
            summary = f"no car is free for it: {causes}"
        return Explanation(
            job=job.spec.id,
            summary=summary,
            items_open=job.open_count,
            items_in_flight=job.in_flight,
            cars_total=len(self._state.fleet),
            cars_eligible=eligible,
            cars_excluded=excluded,
        )

    def check(self) -> None:
        """Invariants; tests call it after every event."""
        state = self._state
        flights = [0] * len(state.fleet)
        for unit in state.units.values():
            assert unit.state is not UnitState.PENDING, unit
            assert unit.job.units[unit.id] is unit, unit
            assert set(unit.open) <= set(unit.issued), unit
            assert set(unit.open) <= set(unit.job.items), unit
            flights[unit.row] += 1
        assert flights == list(state.fleet.in_flight[: len(flights)])
        out = Counter(unit.job.spec.tenant for unit in state.units.values())
        assert out == state.units_out, (out, state.units_out)
        items = size = 0
        for job in state.jobs.values():
            items += len(job.items)
            size += sum(len(item.data) for item in job.items.values())
            assert 0 <= job.open_count <= job.spec.items, job
            assert job.cursor >= job.done + job.failed, job
            assert job.in_flight == sum(len(unit.open) for unit in job.units.values()), job
            places = [*job.pending, *job.alone]
            for unit in [*job.requeued, *job.units.values()]:
                places += unit.open
            if not job.is_over:
                assert sorted(places) == sorted(set(places)), (job.spec.id, places)
                assert set(places) == set(job.items), (job.spec.id, places, list(job.items))
        assert (items, size) == (state.window_items, state.window_bytes)
