"""The store as a dict: applies the core's store commands one by one, and objects to wrong ones.

Every assertion here is a promise of the core to its store: one result per item, cursors without
gaps or repeats, fences that only grow, no attempt on an ended job, counts that are the results.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from edge_runtime.contract import limits
from edge_runtime.contract.http import AttemptEnd
from edge_runtime.contract.messages import Birth, Fence, Item, ResultError
from edge_runtime.contract.reasons import JobState
from edge_runtime.dispatcher.core import commands as c
from edge_runtime.dispatcher.core.events import (
    AttemptFound,
    ItemsLoaded,
    JobRequeued,
    JobsLoaded,
    JobSpec,
    StoredAttempt,
    StoredJob,
)
from edge_runtime.dispatcher.storage import Recovered
from edge_runtime.dispatcher.storage.schema import ITEM_BITS

Loaded = JobsLoaded | ItemsLoaded | AttemptFound


@dataclass
class ResultRow:
    position: int
    cursor: int
    index: int
    at_ms: int
    vehicle: str
    output: bytes | None
    error: ResultError | None


@dataclass
class JobRow:
    no: int
    spec: JobSpec
    items: dict[int, Item]
    state: JobState = JobState.ACCEPTED
    done: int = 0
    failed: int = 0
    cursor: int = 0
    deadline_ms: int = 0
    finished_ms: int | None = None
    results: dict[int, ResultRow] = field(default_factory=dict)
    strikes: list[tuple[int, str]] = field(default_factory=list)
    withdrawals: int = 0

    @property
    def is_open(self) -> bool:
        return self.finished_ms is None

    def open_items(self) -> list[int]:
        return sorted(set(self.items) - set(self.results))

    def stored(self) -> StoredJob:
        return StoredJob(
            no=self.no,
            spec=msgspec.structs.replace(self.spec, deadline_ms=self.deadline_ms),
            state=self.state,
            done=self.done,
            failed=self.failed,
            cursor=self.cursor,
            strikes=tuple(self.strikes),
        )


@dataclass
class AttemptRow:
    job_no: int
    unit: int
    fence: Fence
    vehicle: str
    issued: tuple[int, ...]
    alone: bool
    offered_ms: int = 0
    end: AttemptEnd | None = None
    items_done: int = 0
    energy_j: float = 0.0
    left: set[int] = field(default_factory=set)
    """Items that have ended, or were struck and go elsewhere, since the attempt began."""


class DictStore:
    """Durable state without a disk."""

    def __init__(self) -> None:
        self.jobs: dict[int, JobRow] = {}
        self.number: dict[str, int] = {}
        self.attempts: dict[tuple[int, Fence], AttemptRow] = {}
        self.live: dict[tuple[int, Fence], AttemptRow] = {}
        self.births: dict[str, Birth] = {}
        self.quarantined: set[str] = set()
        self.position = 0
        self.epoch = 0
        self.newest_fence = Fence(0, 0)
        self.last_job = 0
        self.last_unit = 0
        self.commits = 0
        self.booked: list[str] = []
        """The cars of the items that this commit has booked."""
        self._touched: set[int] = set()

    def job(self, job_id: str) -> JobRow:
        return self.jobs[self.number[job_id]]

    # --- writing ---

    def commit(self, commands: Sequence[c.StoreCommand]) -> int:
        before = self.position
        self.commits += 1
        self._touched.clear()
        for command in commands:
            self._apply(command)
        gave = (x.vehicle for x in commands if isinstance(x, c.AddResult) and x.output is not None)
        assert sorted(gave) == sorted(self.booked), "each output is booked once, to its car"
        self.booked.clear()
        for no in self._touched:
            self._check(self.jobs[no])
        return before

    def _apply(self, command: c.StoreCommand) -> None:
        match command:
            case c.AddJob():
                self._add_job(command)
            case c.UpdateJob():
                self._update_job(command)
            case c.AddResult():
                self._add_result(command)
            case c.FailRemaining():
                self._fail_remaining(command)
            case c.WithdrawFailures():
                self._withdraw(command)
            case c.AddStrike():
                job = self.jobs[command.job_no]
                assert command.index in job.open_items(), command
                job.strikes.append((command.index, command.vehicle))
                self._leave(command.job_no, command.index, command.vehicle)
            case c.BeginAttempt():
                self._begin(command)
            case c.EndAttempt():
                attempt = self.live.pop((command.unit, command.fence))
                assert attempt.vehicle == command.vehicle, command
                attempt.end = command.end
                attempt.items_done = command.items_done
                attempt.energy_j = command.energy_j
            case c.BookWork():
                self.booked += [command.vehicle] * command.items
            case c.PutVehicle():
                self.births[command.birth.vehicle] = command.birth
            case c.PutQuarantine():
                (self.quarantined.add if command.on else self.quarantined.discard)(command.vehicle)

    def _add_job(self, command: c.AddJob) -> None:
        assert command.no > self.last_job, "job numbers only grow"
        assert command.spec.id not in self.number
        self.last_job = command.no
        items = {item.index: item for item in command.items}
        assert sorted(items) == list(range(command.spec.items))
        row = JobRow(command.no, command.spec, items, deadline_ms=command.spec.deadline_ms)
        self.jobs[command.no] = row
        self.number[command.spec.id] = command.no

    def _update_job(self, command: c.UpdateJob) -> None:
        job = self.jobs[command.no]
        assert command.cursor >= job.cursor, (command, job)
        assert command.state.is_terminal == (command.finished_ms is not None), command
        job.state, job.done, job.failed = command.state, command.done, command.failed
        job.cursor, job.deadline_ms = command.cursor, command.deadline_ms
        job.finished_ms = command.finished_ms
        self._touched.add(job.no)

    def _add_result(self, command: c.AddResult) -> None:
        job = self.jobs[command.job_no]
        assert (command.output is None) != (command.error is None), command
        assert command.index in job.items, command
        assert command.index not in job.results, f"a second result: {command}"
        assert command.cursor == self._newest_cursor(job) + 1, (command, job.cursor)
        assert (command.job, command.tenant) == (job.spec.id, job.spec.tenant)
        self.position += 1
        job.results[command.index] = ResultRow(
            self.position,
            command.cursor,
            command.index,
            command.at_ms,
            command.vehicle,
            command.output,
            command.error,
        )
        self._leave(job.no, command.index)
        self._touched.add(job.no)

    def _newest_cursor(self, job: JobRow) -> int:
        return max(job.cursor, max((row.cursor for row in job.results.values()), default=0))

    def _fail_remaining(self, command: c.FailRemaining) -> None:
        job = self.jobs[command.job_no]
        assert command.after_cursor == self._newest_cursor(job), command
        for cursor, index in enumerate(job.open_items(), command.after_cursor + 1):
            self.position += 1
            job.results[index] = ResultRow(
                self.position, cursor, index, command.at_ms, "", None, command.error
            )
        self._touched.add(job.no)

    def _withdraw(self, command: c.WithdrawFailures) -> None:
        job = self.jobs[command.job_no]
        job.withdrawals += 1
        job.finished_ms = None
        for index in command.items:
            assert index in job.results, f"withdrawn but open: {index}"
            assert job.results[index].error is not None, f"withdrawn but done: {index}"
            del job.results[index]
        job.strikes = [entry for entry in job.strikes if entry[0] not in command.items]
        self._touched.add(job.no)

    def _begin(self, command: c.BeginAttempt) -> None:
        job = self.jobs[command.job_no]
        assert job.is_open, command
        assert command.fence > self.newest_fence, "fences only grow"
        self.newest_fence = command.fence
        self.last_unit = max(self.last_unit, command.unit)
        assert command.issued, command
        assert command.vehicle in self.births, command
        assert command.vehicle not in self.quarantined, command
        taken = {
            index
            for attempt in self.live.values()
            if attempt.job_no == command.job_no
            for index in attempt.issued
            if index not in attempt.left
        }
        assert set(command.issued) <= set(job.open_items()), command
        assert not taken & set(command.issued), f"out on two cars: {command}"
        attempt = AttemptRow(
            command.job_no,
            command.unit,
            command.fence,
            command.vehicle,
            command.issued,
            command.alone,
            command.offered_ms,
        )
        self.attempts[command.unit, command.fence] = attempt
        self.live[command.unit, command.fence] = attempt

    def _leave(self, job_no: int, index: int, vehicle: str | None = None) -> None:
        for attempt in self.live.values():
            if attempt.job_no == job_no and vehicle in (None, attempt.vehicle):
                attempt.left.add(index)

    def _check(self, job: JobRow) -> None:
        outcomes = [row.error is None for row in job.results.values()]
        assert job.done == sum(outcomes), job
        assert job.failed == len(outcomes) - sum(outcomes), job
        cursors = sorted(row.cursor for row in job.results.values())
        assert job.cursor == self._newest_cursor(job), job
        if not job.withdrawals:
            assert cursors == list(range(1, len(cursors) + 1)), job
        if job.state is JobState.DONE or job.state is JobState.EXPIRED:
            assert not job.open_items(), job
        if not job.is_open:
            assert not [row for row in self.live.values() if row.job_no == job.no and row.end]

    # --- reading ---

    def load(self, commands: Sequence[c.LoadCommand]) -> list[Loaded]:
        return [self._load(command) for command in commands]

    def _load(self, command: c.LoadCommand) -> Loaded:
        match command:
            case c.LoadJobs(tenant=tenant, after_no=after_no, limit=limit):
                found = self._open_jobs(tenant, after_no, limit + 1)
                return JobsLoaded(tenant=tenant, jobs=tuple(found[:limit]), more=len(found) > limit)
            case c.LoadItems():
                return self._load_items(command)
            case c.FindAttempt():
                return self._find(command)

    def _open_jobs(self, tenant: str, after_no: int, limit: int) -> list[StoredJob]:
        limit = min(limit, limits.WINDOW_JOBS_MAX)
        return [
            job.stored()
            for no, job in sorted(self.jobs.items())
            if no > after_no and job.is_open and job.spec.tenant == tenant
        ][:limit]

    def _load_items(self, command: c.LoadItems) -> ItemsLoaded:
        job = self.jobs[command.job_no]
        items: list[Item] = []
        size = 0
        more = False
        for index in job.open_items():
            if index <= command.after:
                continue
            if len(items) >= command.limit or size > command.limit_bytes:
                more = True
                break
            items.append(job.items[index])
            size += len(job.items[index].data)
        through = items[-1].index if items and more else 1 << ITEM_BITS
        return ItemsLoaded(job=command.job, items=tuple(items), through=through, more=more)

    def _find(self, command: c.FindAttempt) -> AttemptFound:
        chunk = command.chunk
        attempt = self.attempts.get((chunk.unit, chunk.fence))
        job = self.jobs.get(self.number.get(chunk.job, -1))
        if (
            attempt is None
            or job is None
            or attempt.vehicle != command.vehicle
            or attempt.job_no != job.no
        ):
            return AttemptFound(
                vehicle=command.vehicle, chunk=chunk, issued=None, known_job=job is not None
            )
        wanted = {result.index for result in chunk.items} & set(attempt.issued)
        still_open = sorted(wanted & set(job.open_items())) if job.is_open else []
        return AttemptFound(
            vehicle=command.vehicle,
            chunk=chunk,
            issued=attempt.issued,
            known_job=True,
            stored=job.stored() if job.is_open else None,
            open_items=tuple(job.items[index] for index in still_open),
        )

    def failed_items(
        self, job_id: str, items: Sequence[int], limit: int, new_deadline_ms: int
    ) -> JobRequeued | None:
        no = self.number.get(job_id)
        if no is None:
            return None
        job = self.jobs[no]
        stored = job.stored()
        deadline_ms = max(stored.spec.deadline_ms, new_deadline_ms)
        spec = msgspec.structs.replace(stored.spec, deadline_ms=deadline_ms)
        failed = [
            job.items[index]
            for index, row in sorted(job.results.items())
            if row.error is not None and (not items or index in items)
        ]
        stored = msgspec.structs.replace(stored, spec=spec)
        return JobRequeued(job=stored, items=tuple(failed[: max(1, limit)]))

    def delete(self, job_id: str) -> bool:
        no = self.number.get(job_id)
        if no is None or self.jobs[no].is_open:
            return False
        del self.number[job_id]
        del self.jobs[no]
        for key in [key for key, row in self.attempts.items() if row.job_no == no]:
            del self.attempts[key]
            self.live.pop(key, None)
        return True

    def recover(self, now_utc_s: int) -> Recovered:
        self.epoch = max(self.epoch + 1, now_utc_s)
        tenants = sorted({job.spec.tenant for job in self.jobs.values() if job.is_open})
        share = max(limits.TENANT_WINDOW_JOBS_MIN, limits.WINDOW_JOBS_MAX // max(1, len(tenants)))
        jobs: list[StoredJob] = []
        more = []
        for tenant in tenants:
            found = self._open_jobs(tenant, 0, share)
            jobs += found
            if len(found) == share:
                more.append(tenant)
        attempts = [
            self._stored_attempt(row) for row in self.live.values() if self.jobs[row.job_no].is_open
        ]
        known = {job.no for job in jobs}
        beyond = sorted({attempt.job_no for attempt in attempts} - known)
        jobs += [self._beyond_window(self.jobs[no].stored()) for no in beyond]
        return Recovered(
            epoch=self.epoch,
            next_job_no=self.last_job + 1,
            next_unit=self.last_unit + 1,
            births=list(self.births.values()),
            quarantined=sorted(self.quarantined),
            jobs=jobs,
            attempts=attempts,
            tenants_with_more=more,
        )

    def _beyond_window(self, stored: StoredJob) -> StoredJob:
        return msgspec.structs.replace(stored, in_order=False)

    def _stored_attempt(self, row: AttemptRow) -> StoredAttempt:
        job = self.jobs[row.job_no]
        return StoredAttempt(
            job_no=row.job_no,
            unit=row.unit,
            fence=row.fence,
            vehicle=row.vehicle,
            items=tuple(job.items[index] for index in row.issued if index not in job.results),
            issued=row.issued,
            alone=row.alone,
            offered_ms=row.offered_ms,
        )
