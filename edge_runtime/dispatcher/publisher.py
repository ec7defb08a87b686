"""Results and job status on the tenants' topics, in order of commit.

Invariants
- A job's results are published in the order of their cursors. What the broker did not
  acknowledge is published again: raw topics may repeat, they never skip for good.
- The published cursor in the store never runs ahead of the broker's acknowledgement.
- Memory is bounded: what does not fit in the queue is read from the store when its turn comes.
- The store remembers whose retained status is to be cleared until the broker has acknowledged it.
- Results go first. A job's status is retained and the newest replaces the one that waits, so
  statuses wait until results pause for `STATUS_QUIET_MS`, at most `STATUS_PUBLISH_INTERVAL_MS`.
"""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Sequence
from typing import assert_never

import msgspec
import structlog

from edge_runtime.bus import Bus, BusError, BusOverflow, BusRefused, Message
from edge_runtime.contract import codec, limits
from edge_runtime.contract.messages import JobResults, JobStatus, ResultEntry
from edge_runtime.contract.topics import Topics
from edge_runtime.dispatcher.core.commands import AddResult
from edge_runtime.dispatcher.pages import entry_bytes, pages
from edge_runtime.dispatcher.storage import Store, StoreError
from edge_runtime.dispatcher.storage.rows import committed_entry

_log = structlog.get_logger(__name__)
_MSGPACK = "application/x-msgpack"
_RETRY_S = 0.5


class _Batch(msgspec.Struct):
    tenant: str
    job: str
    traceparent: str | None
    entries: list[ResultEntry]
    size: int


class Publisher:
    """Owns the tenants' topics. `run` is its only task."""

    def __init__(self, bus: Bus, store: Store, topics: Topics, counters: Counter[str]) -> None:
        self._bus = bus
        self._store = store
        self._topics = topics
        self._counters = counters
        self._queue: deque[_Batch] = deque()
        self._queued_entries = 0
        self._queued_bytes = 0
        self._behind: dict[str, str] = {}
        self._statuses: dict[str, JobStatus | None] = {}
        self._status_tenants: dict[str, str] = {}
        self._published: dict[str, int] = {}
        self._flushed_at_s = 0.0
        self._results_at_s = 0.0
        self._status_since_s = 0.0
        self._wake = asyncio.Event()

    # --- told by the service, after each commit ---

    def results(self, commands: Sequence[AddResult]) -> None:
        """These results are committed."""
        self._results_at_s = asyncio.get_running_loop().time()
        batch: _Batch | None = None
        for command in commands:
            if command.job in self._behind:
                continue
            if self._is_full():
                self._fall_behind(command.tenant, command.job)
                continue
            entry = committed_entry(command)
            size = entry_bytes(entry)
            if (
                batch is None
                or batch.job != command.job
                or batch.size + size > limits.UNIT_MAX_BYTES
            ):
                batch = _Batch(command.tenant, command.job, command.traceparent, [], 0)
                self._queue.append(batch)
            batch.entries.append(entry)
            batch.size += size
            self._queued_entries += 1
            self._queued_bytes += size
        self._wake.set()

    def status(self, status: JobStatus) -> None:
        """A job's newest status; an older one that still waits is replaced."""
        self._put_status(status.job, status.tenant, status)

    def clear_status(self, tenant: str, job: str) -> None:
        """Remove a job's retained status from the broker."""
        self._put_status(job, tenant, None)

    def catch_up(self, jobs: Sequence[tuple[JobStatus, int]]) -> None:
        """Jobs with results above their published cursor (after a restart), status and all."""
        for status, published in jobs:
            self._published_through(status.job, published)
            self._fall_behind(status.tenant, status.job)
            self._put_status(status.job, status.tenant, status)
        self._wake.set()

    def fall_behind(self, tenant: str, job: str) -> None:
        """Results of this job were committed in bulk: read them from the store."""
        self._fall_behind(tenant, job)
        self._wake.set()

    def _put_status(self, job: str, tenant: str, status: JobStatus | None) -> None:
        if job not in self._statuses and len(self._statuses) >= limits.STATUSES_WAITING_MAX:
            self._counters["dropped_status_queue_full"] += 1
            return
        if not self._statuses:
            self._status_since_s = asyncio.get_running_loop().time()
        self._statuses[job] = status
        self._status_tenants[job] = tenant
        self._wake.set()

    def _is_full(self) -> bool:
        return (
            self._queued_entries >= limits.PUBLISH_QUEUE_ENTRIES_MAX
            or self._queued_bytes >= limits.PUBLISH_QUEUE_BYTES_MAX
        )

    def _fall_behind(self, tenant: str, job: str) -> None:
        self._behind[job] = tenant

    def _published_through(self, job: str, cursor: int) -> None:
        self._published[job] = max(cursor, self._published.get(job, 0))

    # --- the task ---

    async def run(self) -> None:
        """Publish until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            if not self._bus.is_connected:
                await asyncio.sleep(_RETRY_S)
            elif self._queue or self._behind:
                await self._publish_some()
                if self._is_status_overdue(loop.time()):
                    await self._publish_statuses()
            elif self._statuses and self._statuses_due_s() <= loop.time():
                await self._publish_statuses()
            else:
                await self._rest()
            if self._published and loop.time() >= self._flushed_at_s + limits.PUBLISHED_FLUSH_S:
                self._flushed_at_s = loop.time()
                await self.flush()

    def _is_status_overdue(self, now_s: float) -> bool:
        waited_s = now_s - self._status_since_s
        return bool(self._statuses) and waited_s >= limits.STATUS_PUBLISH_INTERVAL_MS / 1000

    def _statuses_due_s(self) -> float:
        """When the statuses that wait go out, if nothing else comes."""
        quiet_s = self._results_at_s + limits.STATUS_QUIET_MS / 1000
        return min(quiet_s, self._status_since_s + limits.STATUS_PUBLISH_INTERVAL_MS / 1000)

    async def _rest(self) -> None:
        """Wait for news, or until statuses or cursors are due."""
        due_s = []
        if self._statuses:
            due_s.append(self._statuses_due_s())
        if self._published:
            due_s.append(self._flushed_at_s + limits.PUBLISHED_FLUSH_S)
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(min(due_s, default=None)):
                await self._wake.wait()

    async def flush(self) -> None:
        """Write the published cursors; not of a job whose status waits: a restart finds it so."""
        cursors = {job: c for job, c in self._published.items() if job not in self._statuses}
        self._published = {job: c for job, c in self._published.items() if job in self._statuses}
        if not cursors:
            return
        try:
            await self._store.set_published(cursors)
        except StoreError as error:
            _log.warning("published_cursors_not_stored", error=str(error))
            for job, cursor in cursors.items():
                self._published_through(job, cursor)

    async def _publish_some(self) -> None:
        batches: list[_Batch] = []
        while self._queue and len(batches) < limits.PUBLISH_IN_FLIGHT_MAX:
            batches.append(self._queue.popleft())
        for batch in batches:
            self._queued_entries -= len(batch.entries)
            self._queued_bytes -= batch.size
        if batches:
            await self._publish_batches([b for b in batches if b.job not in self._behind])
        elif self._behind:
            job, tenant = next(iter(self._behind.items()))
            await self._publish_behind(tenant, job)

    async def _publish_batches(self, batches: Sequence[_Batch]) -> None:
        messages = [
            self._results_message(batch.tenant, batch.job, batch.entries, batch.traceparent)
            for batch in batches
        ]
        done = await self._publish_all(messages)
        for batch, is_done in zip(batches, done, strict=True):
            if not is_done or batch.job in self._behind:
                self._fall_behind(batch.tenant, batch.job)
            else:
                self._published_through(batch.job, batch.entries[-1].cursor)

    async def _publish_behind(self, tenant: str, job: str) -> None:
        """One page of a job that fell behind, from the store."""
        after = self._published.get(job)
        if after is None:
            after = await self._store.published(job)
        entries = await self._store.results(job, after, limits.FEED_PAGE_ITEMS)
        if not entries:
            del self._behind[job]
            return
        status = await self._store.job(job)
        traceparent = None if status is None else status.traceparent
        for page in pages(entries):
            message = self._results_message(tenant, job, page, traceparent)
            (done,) = await self._publish_all([message])
            if not done:
                return
            self._published_through(job, page[-1].cursor)

    def _results_message(
        self, tenant: str, job: str, entries: Sequence[ResultEntry], traceparent: str | None
    ) -> Message:
        results = JobResults(job=job, results=tuple(entries), traceparent=traceparent)
        return Message(
            topic=self._topics.job_results(tenant, job),
            payload=codec.encode(results),
            content_type=_MSGPACK,
            traceparent=traceparent,
        )

    async def _publish_statuses(self) -> None:
        jobs = list(self._statuses)[: limits.PUBLISH_IN_FLIGHT_MAX]
        waiting = [(job, self._status_tenants.pop(job), self._statuses.pop(job)) for job in jobs]
        messages = [
            Message(
                topic=self._topics.job_status(tenant, job),
                payload=b"" if status is None else codec.encode(status),
                retain=True,
                content_type=None if status is None else _MSGPACK,
                traceparent=None if status is None else status.traceparent,
            )
            for job, tenant, status in waiting
        ]
        done = await self._publish_all(messages)
        cleared = []
        for (job, tenant, status), is_done in zip(waiting, done, strict=True):
            if not is_done and job not in self._statuses:
                self._put_status(job, tenant, status)
            elif is_done and status is None:
                cleared.append(job)
        if cleared:
            try:
                await self._store.cleared(cleared)
            except StoreError as error:
                # They are cleared once more after the next start.
                _log.warning("cleared_statuses_not_stored", error=str(error))

    async def _publish_all(self, messages: Sequence[Message]) -> list[bool]:
        """Publish in order, together; which were acknowledged. A refusal counts as done."""
        done = []
        for outcome in await self._bus.publish_all(messages):
            match outcome:
                case None:
                    done.append(True)
                case BusRefused() | BusOverflow():
                    # Trying again would be refused again; the HTTP API still has it.
                    self._counters["publish_refused"] += 1
                    done.append(True)
                case BusError():
                    self._counters["publish_failed"] += 1
                    done.append(False)
                case _:
                    assert_never(outcome)
        if not all(done):
            await asyncio.sleep(_RETRY_S)
        return done
