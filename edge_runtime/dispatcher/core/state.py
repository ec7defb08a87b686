"""What the dispatcher's core knows, and the commands it has decided on in this tick.

The three desks (`attempts`, `settling`, `machine`) share this one object; nothing outside
`dispatcher/core` writes to it.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from typing import NamedTuple

from edge_runtime.contract import limits
from edge_runtime.contract.clock import Now
from edge_runtime.contract.messages import Fence, Order, UnitOffer
from edge_runtime.contract.reasons import JobState
from edge_runtime.dispatcher.core.booking import Books
from edge_runtime.dispatcher.core.commands import (
    Command,
    LoadItems,
    PublishOffer,
    PublishOrders,
    PublishStatus,
    UpdateJob,
)
from edge_runtime.dispatcher.core.fleet import Fleet
from edge_runtime.dispatcher.core.jobs import Job, Turns, Unit
from edge_runtime.dispatcher.core.pace import Pace
from edge_runtime.dispatcher.core.placement import Placement


class OldAttempt(NamedTuple):
    """An attempt that is no longer current: which car had it, and which items."""

    vehicle: str
    job: str
    issued: tuple[int, ...]


class EndedJob(NamedTuple):
    """The last counts of a job that left memory: what was read before is older than this."""

    state: JobState
    done: int
    failed: int
    cursor: int
    withdrawn: dict[int, int]


class State:
    """Jobs, units, fleet; and this tick's outgoing commands."""

    def __init__(self, epoch: int, next_job_no: int, next_unit: int, fleet: Fleet) -> None:
        self.epoch = epoch
        self.fence_counter = 0
        self.next_job_no = next_job_no
        self.next_unit = next_unit
        self.fleet = fleet
        self.placement = Placement(fleet)
        self.pace = Pace(fleet)
        self.turns = Turns()
        self.jobs: dict[str, Job] = {}
        self.job_by_no: dict[int, Job] = {}
        self.units: dict[int, Unit] = {}
        self.units_out: Counter[str] = Counter()
        self.old_attempts: OrderedDict[tuple[int, Fence], OldAttempt] = OrderedDict()
        self.ended_jobs: OrderedDict[str, EndedJob] = OrderedDict()
        self.loading: dict[str, tuple[int, int]] = {}
        self.loading_items = 0
        self.loading_bytes = 0
        self.counters: Counter[str] = Counter()
        self.story: deque[tuple[int, str]] = deque(maxlen=limits.STORY_EVENTS_MAX)
        self.window_items = 0
        self.window_bytes = 0
        # this tick
        self.out: list[Command] = []
        self.offers: dict[str, list[UnitOffer]] = {}
        self.orders: dict[str, list[Order]] = {}
        self.work = Books()
        self.dirty: dict[str, tuple[Job, int | None]] = {}
        self.status_queue: deque[tuple[int, Job]] = deque()

    def emit(self, command: Command) -> None:
        """Ask for an effect."""
        self.out.append(command)

    def order(self, vehicle: str, order: Order) -> None:
        """Send an order to a car with this tick's batch."""
        self.orders.setdefault(vehicle, []).append(order)

    def tell(self, now: Now, story: str) -> None:
        """Remember what happened, for people who ask why."""
        self.story.append((now.utc_ms, story))

    def touch(self, job: Job, finished_ms: int | None = None) -> None:
        """The job's counts or state changed: write them once at the end of the tick."""
        self.dirty[job.spec.id] = (job, finished_ms)

    def remember(self, unit: Unit) -> None:
        """Keep what is needed to judge a late chunk of an attempt that ended."""
        key = (unit.id, unit.fence)
        self.old_attempts[key] = OldAttempt(unit.vehicle, unit.job.spec.id, unit.issued)
        if len(self.old_attempts) > limits.ENDED_ATTEMPTS_KEPT_MAX:
            self.old_attempts.popitem(last=False)

    def retire(self, job: Job) -> None:
        """Drop an ended job from memory once its last attempt is gone; the store has it."""
        if job.is_over and not job.units and job.spec.id in self.jobs:
            del self.jobs[job.spec.id]
            del self.job_by_no[job.no]
            self.ended_jobs[job.spec.id] = EndedJob(
                job.state, job.done, job.failed, job.cursor, job.withdrawn
            )
            if len(self.ended_jobs) > limits.ENDED_JOBS_KEPT_MAX:
                self.ended_jobs.popitem(last=False)
            self.turns.queue(job.spec.tenant).retired(job)

    def new_fence(self) -> Fence:
        """The next fence: greater than every fence of this and every earlier dispatcher."""
        self.fence_counter += 1
        return Fence(self.epoch, self.fence_counter)

    def load_items(self, job: Job, at_least: int) -> None:
        """Ask the store for more of a job's items, once at a time.

        While the window has room that is a good number of them, and without room what one unit
        needs (`at_least`): a window full of work that no car can do delays nobody else's.
        """
        known = job.spec.id in self.loading or len(self.loading) >= limits.LOADS_MAX
        if known or job.is_loading or job.is_fully_loaded:
            return
        limit = min(limits.LOAD_ITEMS, max(1, job.open_count))
        limit_bytes = min(limits.LOAD_BYTES, limit * limits.ITEM_MAX_BYTES)
        if (
            self.window_items + self.loading_items + limit > limits.WINDOW_ITEMS_MAX
            or self.window_bytes + self.loading_bytes + limit_bytes > limits.WINDOW_BYTES_MAX
        ):
            limit, limit_bytes = min(limit, at_least), limits.UNIT_MAX_BYTES
        job.is_loading = True
        self.loading[job.spec.id] = (limit, limit_bytes)
        self.loading_items += limit
        self.loading_bytes += limit_bytes
        self.emit(
            LoadItems(
                job=job.spec.id,
                job_no=job.no,
                after=job.loaded_through,
                limit=limit,
                limit_bytes=limit_bytes,
            )
        )

    def items_arrived(self, job_id: str) -> None:
        """What `load_items` asked for a job has come."""
        limit, limit_bytes = self.loading.pop(job_id, (0, 0))
        self.loading_items -= limit
        self.loading_bytes -= limit_bytes

    def flush(self, now: Now) -> list[Command]:
        """This tick's commands: store commands first as decided, then what is published."""
        for job, finished_ms in self.dirty.values():
            if job.written != job.counts:
                job.written = job.counts
                self.out.append(
                    UpdateJob(
                        no=job.no,
                        state=job.state,
                        done=job.done,
                        failed=job.failed,
                        cursor=job.cursor,
                        deadline_ms=job.spec.deadline_ms,
                        finished_ms=finished_ms,
                    )
                )
            self._announce(job, finished_ms, now)
        self.dirty.clear()
        self.out += self.work.take()
        for vehicle, units in self.offers.items():
            self.out.extend(
                PublishOffer(vehicle=vehicle, units=batch) for batch in _offer_batches(units)
            )
        self.offers.clear()
        for vehicle, orders in self.orders.items():
            for start in range(0, len(orders), limits.ORDERS_PER_MESSAGE_MAX):
                batch = tuple(orders[start : start + limits.ORDERS_PER_MESSAGE_MAX])
                self.out.append(PublishOrders(vehicle=vehicle, orders=batch))
        self.orders.clear()
        out, self.out = self.out, []
        return out

    def _announce(self, job: Job, finished_ms: int | None, now: Now) -> None:
        """Ends are announced at once, progress at most every interval."""
        if job.is_over:
            self.out.append(PublishStatus(status=job.status(finished_ms)))
        elif not job.status_due:
            job.status_due = True
            self.status_queue.append((now.boot_ms + limits.STATUS_PUBLISH_INTERVAL_MS, job))

    def announce_due(self, now: Now) -> None:
        """Publish the progress that has waited its interval."""
        while self.status_queue and self.status_queue[0][0] <= now.boot_ms:
            job = self.status_queue.popleft()[1]
            job.status_due = False
            if not job.is_over:
                self.out.append(PublishStatus(status=job.status()))


def _offer_batches(units: list[UnitOffer]) -> Iterator[tuple[UnitOffer, ...]]:
    """Units as messages: at most so many, and together under the message limit."""
    batch: list[UnitOffer] = []
    batch_bytes = 0
    for unit in units:
        unit_bytes = sum(len(item.data) for item in unit.items)
        full = batch_bytes + unit_bytes > limits.UNIT_MAX_BYTES
        if batch and (full or len(batch) >= limits.UNITS_PER_OFFER_MAX):
            yield tuple(batch)
            batch, batch_bytes = [], 0
        batch.append(unit)
        batch_bytes += unit_bytes
    if batch:
        yield tuple(batch)
