"""Jobs, units and the queues that decide whose turn it is.

A job holds in memory only the items it may soon offer; the rest wait in the store. Every open
item that is loaded is in exactly one place: `pending`, `alone`, a requeued unit or a unit that
is out on a car.
"""

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from edge_runtime.contract import limits
from edge_runtime.contract.messages import Fence, Item, JobStatus
from edge_runtime.contract.reasons import JobState
from edge_runtime.dispatcher.core.events import JobSpec
from edge_runtime.dispatcher.core.fairness import Shares
from edge_runtime.dispatcher.core.placement import Requirement

NO_FENCE = Fence(0, 0)
_OPEN = (JobState.ACCEPTED, JobState.RUNNING)


class UnitState(Enum):
    """Where a unit stands; a unit that ended is not kept."""

    PENDING = "pending"
    OFFERED = "offered"
    RUNNING = "running"


@dataclass(slots=True, eq=False)
class Unit:
    """A slice of a job for one car. `open` holds its unfinished item indices in order.

    `seqs` are the numbers of the chunks counted so far: a duplicate counts nothing twice.
    """

    id: int
    job: "Job"
    open: dict[int, None]
    alone: bool
    state: UnitState = UnitState.PENDING
    fence: Fence = NO_FENCE
    issued: tuple[int, ...] = ()
    vehicle: str = ""
    row: int = -1
    offered_boot_ms: int = 0
    offered_ms: int = 0
    taken_ms: int | None = None
    lease_ms: int = 0
    cold_ms: int = 0
    lease_until_boot_ms: int = 0
    expected_item_ms: float = 0.0
    items_done: int = 0
    busy_ms: float = 0.0
    energy_j: float = 0.0
    seqs: set[int] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Job:
    """One open job. `cursor` numbers its newest result; `loaded_through` the last loaded index.

    `in_flight` counts items out on cars. `strikes` and `expiries` name the cars on which an item
    failed, or that fell silent with it. `withdrawn` has the cursor at which a dead letter was
    requeued: what was read from the store before that is not news. `refused_by` has the cars that
    will not do this job, and until what boot time (ms) they are not asked again. `written` is
    what the store has.
    """

    no: int
    spec: JobSpec
    state: JobState = JobState.ACCEPTED
    done: int = 0
    failed: int = 0
    cursor: int = 0
    items: dict[int, Item] = field(default_factory=dict)
    pending: deque[int] = field(default_factory=deque)
    alone: deque[int] = field(default_factory=deque)
    requeued: deque[Unit] = field(default_factory=deque)
    units: dict[int, Unit] = field(default_factory=dict)
    strikes: dict[int, list[str]] = field(default_factory=dict)
    expiries: dict[int, list[str]] = field(default_factory=dict)
    withdrawn: dict[int, int] = field(default_factory=dict)
    in_flight: int = 0
    refused_by: dict[str, int] = field(default_factory=dict)
    written: tuple[JobState, int, int, int, int] | None = None
    loaded_through: int = -1
    is_loading: bool = False
    is_fully_loaded: bool = False
    is_queued: bool = False
    closed_ahead: set[int] = field(default_factory=set)
    status_due: bool = False
    is_urgent: bool = False

    @property
    def rank(self) -> int:
        """Its priority among its tenant's jobs, deadline included: the higher the sooner."""
        return self.spec.priority + limits.DEADLINE_BOOST_LEVELS * self.is_urgent

    @property
    def urgent_from_ms(self) -> int:
        """When (UTC) its deadline is near: a minute before it, or a tenth of its whole time."""
        spec = self.spec
        tenth_ms = (spec.deadline_ms - spec.submitted_ms) // 10
        return spec.deadline_ms - max(limits.DEADLINE_BOOST_MS, tenth_ms)

    @property
    def open_count(self) -> int:
        """Items without a canonical end."""
        return self.spec.items - self.done - self.failed

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state not in _OPEN

    @property
    def has_work(self) -> bool:
        """Whether something of it could be offered, now or after a load."""
        return bool(self.alone or self.requeued or self.pending) or not self.is_fully_loaded

    def refuse(self, vehicle: str, now_ms: int) -> None:
        """A car will not do this job: do not ask it again for a while."""
        if len(self.refused_by) >= limits.REFUSERS_PER_JOB_MAX:
            del self.refused_by[next(iter(self.refused_by))]
        self.refused_by.pop(vehicle, None)
        self.refused_by[vehicle] = now_ms + limits.REFUSED_JOB_MS

    def refusers(self, now_ms: int) -> frozenset[str]:
        """The cars that are not to be asked now."""
        for vehicle, until_ms in list(self.refused_by.items()):
            if until_ms > now_ms:
                break  # the first is the oldest
            del self.refused_by[vehicle]
        return frozenset(self.refused_by)

    def holder(self, index: int) -> Unit | None:
        """The unit that has an open item, on a car or waiting; None for one that is queued."""
        for unit in (*self.units.values(), *self.requeued):
            if index in unit.open:
                return unit
        return None

    def unqueue(self, index: int) -> None:
        """Take an open item off the queue that it is in."""
        (self.alone if index in self.alone else self.pending).remove(index)

    @property
    def counts(self) -> tuple[JobState, int, int, int, int]:
        """What changes while a job runs: state, done, failed, cursor, deadline."""
        return (self.state, self.done, self.failed, self.cursor, self.spec.deadline_ms)

    def status(self, finished_ms: int | None = None) -> JobStatus:
        """As its requester sees it."""
        spec = self.spec
        return JobStatus(
            job=spec.id,
            tenant=spec.tenant,
            model=spec.requirement.model,
            state=self.state,
            items=spec.items,
            done=self.done,
            failed=self.failed,
            last_cursor=self.cursor,
            submitted_ms=spec.submitted_ms,
            deadline_ms=spec.deadline_ms,
            finished_ms=finished_ms,
            traceparent=spec.traceparent,
        )


class _Line:
    """Jobs of one requirement: by rank, then acceptance. `head` is its place in `_heads`."""

    __slots__ = ("head", "jobs")

    def __init__(self) -> None:
        self.jobs: list[tuple[int, int, int, Job]] = []
        self.head: tuple[int, int, int] | None = None


class TenantQueue:
    """A tenant's jobs with work, by requirement; within one, by rank, then acceptance.

    `_heads` orders the lines by their first job, so that the next job is found without looking
    at every line; an entry that no longer is its line's `head` is passed over.
    """

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self._lines: dict[Requirement, _Line] = {}
        self._heads: list[tuple[int, int, int, Requirement]] = []
        self._set_aside: list[Requirement] = []
        self._pushes = 0
        self._queued = 0
        self._ended: set[int] = set()
        self.open_jobs = 0
        self.loaded_through_no = 0
        self.waiting_through_no = 0
        self.asked_at_no = 0
        self.has_more = False
        self.is_loading = False

    def push(self, job: Job) -> None:
        """Queue a job that has work, once."""
        if job.is_queued:
            return
        job.is_queued = True
        self._queued += 1
        self._pushes += 1  # the third key: two objects of one job number are never compared
        requirement = job.spec.requirement
        line = self._lines.get(requirement)
        if line is None:
            line = self._lines[requirement] = _Line()
        entry = (-job.rank, job.no, self._pushes, job)
        heapq.heappush(line.jobs, entry)
        if line.jobs[0] is entry:
            self._lead(requirement, line)

    def rank_again(self, requirement: Requirement) -> None:
        """Ranks of queued jobs of a requirement have changed."""
        line = self._lines.get(requirement)
        if line is None or not line.jobs:
            return
        line.jobs = [(-job.rank, no, push, job) for _, no, push, job in line.jobs]
        heapq.heapify(line.jobs)
        self._lead(requirement, line)

    def _lead(self, requirement: Requirement, line: _Line) -> None:
        """Enter a line under its first job."""
        line.head = line.jobs[0][:3]
        heapq.heappush(self._heads, (*line.head, requirement))
        if len(self._heads) > 2 * len(self._lines) + limits.STORY_EVENTS_MAX:
            self._heads = [(*x.head, name) for name, x in self._lines.items() if x.head]
            heapq.heapify(self._heads)

    def next(self, blocked: set[Requirement]) -> Job | None:
        """The first job whose requirement is not blocked; jobs without work fall out here.

        `blocked` only grows until `resume` is called.
        """
        while self._heads:
            first = self._heads[0]
            requirement = first[3]
            line = self._lines.get(requirement)
            if line is None or line.head != first[:3]:
                heapq.heappop(self._heads)
                continue
            if not self._prune(line):
                heapq.heappop(self._heads)
                del self._lines[requirement]
            elif line.jobs[0][:3] != line.head:
                heapq.heappop(self._heads)
                self._lead(requirement, line)
            elif requirement in blocked:
                heapq.heappop(self._heads)
                line.head = None
                self._set_aside.append(requirement)
            else:
                return line.jobs[0][3]
        return None

    def resume(self) -> None:
        """Nothing is blocked any more."""
        for requirement in self._set_aside:
            line = self._lines.get(requirement)
            if line is not None and line.head is None and self._prune(line):
                self._lead(requirement, line)
        self._set_aside.clear()

    def _prune(self, line: _Line) -> bool:
        """Take jobs without work from the head of a line; whether one with work is left."""
        while line.jobs:
            job = line.jobs[0][3]
            if job.has_work and not job.is_over:
                return True
            self._pop(line)
        return False

    def _pop(self, line: _Line) -> None:
        job = heapq.heappop(line.jobs)[3]
        job.is_queued = False
        self._queued -= 1
        self._ended.discard(job.no)

    def drop(self, job: Job) -> None:
        """Take the top job off its queue until it is pushed again."""
        line = self._lines.get(job.spec.requirement)
        if line is not None and line.jobs and line.jobs[0][3] is job:
            self._pop(line)

    def retired(self, job: Job) -> None:
        """An open job of this tenant ended; those still in line are swept when they are many."""
        self.open_jobs -= 1
        if not job.is_queued:
            return
        self._ended.add(job.no)
        if not self.open_jobs or len(self._ended) > limits.STORY_EVENTS_MAX + self._queued // 2:
            self._sweep()

    def _sweep(self) -> None:
        lines = list(self._lines.values())
        self._lines.clear()
        self._heads.clear()
        self._set_aside.clear()
        self._queued = 0
        self._ended.clear()
        for line in lines:
            for entry in line.jobs:
                job = entry[3]
                job.is_queued = False
                if job.has_work and not job.is_over:
                    self.push(job)

    @property
    def is_idle(self) -> bool:
        """Whether it has nothing queued."""
        return not self._queued

    def __len__(self) -> int:
        return self._queued


class Turns:
    """Deficit round robin over tenants (see `fairness`): who is served, and until when.

    Every tenant is in one place: in the `_ring` of those that may be served in this round, in
    order; among those that `_owe` and wait for the next one; or `_aside`, with nothing that could
    be placed in this tick, keeping its place. A turn passes with a unit that was placed, never
    with one for which there was no car.
    """

    def __init__(self) -> None:
        self.shares = Shares()
        self._queues: dict[str, TenantQueue] = {}
        self._ring: OrderedDict[str, TenantQueue] = OrderedDict()
        self._owe: dict[str, TenantQueue] = {}
        self._aside: dict[str, TenantQueue] = {}

    def queue(self, tenant: str) -> TenantQueue:
        """The tenant's queue. One that comes owing nothing has its first turn at once."""
        queue = self._queues.get(tenant)
        if queue is None:
            queue = self._queues[tenant] = self._ring[tenant] = TenantQueue(tenant)
            if self.shares.came(tenant):
                self._ring.move_to_end(tenant, last=False)
        return queue

    def __len__(self) -> int:
        return len(self._queues)

    def __iter__(self) -> Iterator[TenantQueue]:
        return iter(self._queues.values())

    def forget(self, queue: TenantQueue) -> None:
        """Drop a tenant that has no open job; what it owes is remembered."""
        del self._queues[queue.tenant]
        for place in (self._ring, self._owe, self._aside):
            place.pop(queue.tenant, None)

    def resume(self) -> None:
        """A new tick: nothing is blocked, and who was given back what it owed is served again."""
        for queue in self._queues.values():
            queue.resume()
        for tenant in [tenant for tenant in self._owe if self.shares.left_ms(tenant) > 0.0]:
            self._ring[tenant] = self._owe.pop(tenant)

    def next(self, blocked: set[Requirement]) -> Job | None:
        """The job whose turn it is, or None when no tenant has one that is not blocked."""
        while self._ring or self._new_round(blocked):
            tenant = next(iter(self._ring))
            queue = self._ring[tenant]
            job = None if queue.is_idle else queue.next(blocked)
            if job is not None and self.shares.left_ms(tenant) > 0.0:
                return job
            del self._ring[tenant]
            (self._aside if job is None else self._owe)[tenant] = queue
        return None

    def _new_round(self, blocked: set[Requirement]) -> bool:
        """Those who owe and have something to place may be served again; whether there are any.

        Not those for whom there is no car: whoever has something left and waits for the same
        cars comes before them.
        """
        able = [
            tenant
            for tenant, queue in self._owe.items()
            if not queue.is_idle and queue.next(blocked) is not None
        ]
        if able:
            self.shares.new_round(able)
            for tenant in able:
                self._ring[tenant] = self._owe.pop(tenant)
        return bool(able)

    def served(self, tenant: str) -> None:
        """A unit of the tenant was placed: the others come before its next one."""
        if tenant in self._ring:
            self._ring.move_to_end(tenant)

    def end_tick(self) -> None:
        """Who had nothing to place is where it was."""
        for tenant, queue in reversed(self._aside.items()):
            self._ring[tenant] = queue
            self._ring.move_to_end(tenant, last=False)
        self._aside.clear()
