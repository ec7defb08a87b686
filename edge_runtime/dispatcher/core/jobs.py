"""Jobs, units and the queues that decide whose turn it is.

A job holds in memory only the items it may soon offer; the rest wait in the store. Every open
item that is loaded is in exactly one place: `pending`, `alone`, a requeued unit or a unit that
is out on a car.
"""

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from edge_runtime.contract.messages import Fence, Item, JobStatus
from edge_runtime.contract.reasons import JobState
from edge_runtime.dispatcher.core.events import JobSpec
from edge_runtime.dispatcher.core.placement import Requirement

NO_FENCE = Fence(0, 0)


class UnitState(Enum):
    """Where a unit stands; a unit that ended is not kept."""

    PENDING = "pending"
    OFFERED = "offered"
    RUNNING = "running"


@dataclass(slots=True, eq=False)
class Unit:
    """A slice of a job for one car. `open` holds its unfinished item indices in order."""

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
    lease_until_boot_ms: int = 0
    expected_item_ms: float = 0.0
    items_done: int = 0
    busy_ms: float = 0.0
    energy_j: float = 0.0
    expiries: int = 0


@dataclass(slots=True, eq=False)
class Job:
    """One open job. `cursor` numbers its newest result; `loaded_through` the last loaded index."""

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
    expiries: dict[int, int] = field(default_factory=dict)
    loaded_through: int = -1
    is_loading: bool = False
    is_fully_loaded: bool = False
    is_queued: bool = False
    closed_ahead: set[int] = field(default_factory=set)
    status_due: bool = False

    @property
    def open_count(self) -> int:
        """Items without a canonical end."""
        return self.spec.items - self.done - self.failed

    @property
    def in_flight(self) -> int:
        """Items out on cars."""
        return sum(len(unit.open) for unit in self.units.values())

    @property
    def has_work(self) -> bool:
        """Whether something of it could be offered, now or after a load."""
        return bool(self.alone or self.requeued or self.pending) or not self.is_fully_loaded

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
        )


class TenantQueue:
    """A tenant's jobs with work, by requirement; within one, by priority, then acceptance."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self._heaps: dict[Requirement, list[tuple[int, int, Job]]] = {}
        self.open_jobs = 0
        self.loaded_through_no = 0
        self.has_more = False
        self.is_loading = False

    def push(self, job: Job) -> None:
        """Queue a job that has work, once."""
        if not job.is_queued:
            job.is_queued = True
            heap = self._heaps.setdefault(job.spec.requirement, [])
            heapq.heappush(heap, (-job.spec.priority, job.no, job))

    def next(self, blocked: set[Requirement]) -> Job | None:
        """The first job whose requirement is not blocked; jobs without work fall out here."""
        best: tuple[int, int, Job] | None = None
        for requirement in list(self._heaps):
            if requirement in blocked:
                continue
            top = self._top(requirement)
            if top is not None and (best is None or top[:2] < best[:2]):
                best = top
        return best[2] if best else None

    def _top(self, requirement: Requirement) -> tuple[int, int, Job] | None:
        heap = self._heaps[requirement]
        while heap:
            job = heap[0][2]
            if job.has_work and not job.state.is_terminal:
                return heap[0]
            heapq.heappop(heap)
            job.is_queued = False
        del self._heaps[requirement]
        return None

    def drop(self, job: Job) -> None:
        """Take the top job off its queue until it is pushed again."""
        heap = self._heaps.get(job.spec.requirement)
        if heap and heap[0][2] is job:
            heapq.heappop(heap)
            job.is_queued = False

    @property
    def is_idle(self) -> bool:
        """Whether it has nothing queued."""
        return not self._heaps


class Turns:
    """Round robin over tenants: each placement is one tenant's turn."""

    def __init__(self) -> None:
        self._queues: dict[str, TenantQueue] = {}
        self._ring: deque[TenantQueue] = deque()

    def queue(self, tenant: str) -> TenantQueue:
        """The tenant's queue."""
        queue = self._queues.get(tenant)
        if queue is None:
            queue = self._queues[tenant] = TenantQueue(tenant)
            self._ring.append(queue)
        return queue

    def __len__(self) -> int:
        return len(self._queues)

    def __iter__(self) -> Iterator[TenantQueue]:
        return iter(self._queues.values())

    def forget(self, queue: TenantQueue) -> None:
        """Drop a tenant that has no open job."""
        del self._queues[queue.tenant]
        self._ring.remove(queue)

    def next(self, blocked: set[Requirement]) -> Job | None:
        """The job whose turn it is, or None when no tenant has one that is not blocked."""
        for _ in range(len(self._ring)):
            queue = self._ring[0]
            self._ring.rotate(-1)
            if queue.is_idle:
                continue
            job = queue.next(blocked)
            if job is not None:
                return job
        return None
