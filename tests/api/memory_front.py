"""A small, real dispatcher front in memory, for the tests of the API and the client.

It accepts jobs, numbers results, wakes streams and keeps idempotency keys; there are no cars:
a test finishes items itself with `finish`, or sets `auto_finish`. It outlives the servers in
front of it, so a test can restart one on the same port.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.contract.http import (
    AttemptView,
    CarView,
    DeadLetter,
    Explanation,
    FeedEntry,
    FleetView,
    Health,
    JobRequest,
    ModelView,
    Problem,
    Submitted,
)
from edge_runtime.contract.messages import JobStatus, ResultEntry, ResultError
from edge_runtime.contract.reasons import Availability, ItemError, JobState
from edge_runtime.dispatcher.front import Refusal

AT_MS = 1_700_000_000_000
PAGE = 100


@dataclass
class Job:
    request: JobRequest
    status: JobStatus
    entries: list[ResultEntry] = field(default_factory=list)


def not_found(what: str) -> Refusal:
    return Refusal(Problem(code="not_found", message=f"no such {what}", status=404, field=what))


class MemoryFront:
    def __init__(self, *, auto_finish: bool = False) -> None:
        self.auto_finish = auto_finish
        self.jobs_by_id: dict[str, Job] = {}
        self.by_key: dict[tuple[str, str], str] = {}
        self.feeds: dict[str, list[FeedEntry]] = {}
        self.position = 0
        self.heartbeat_s = 15.0
        self.open_iterators = 0
        self.pages_pulled = 0
        self.quarantined: dict[str, bool] = {}
        self.refuse_next: list[Problem] = []
        self.model_root: Path | None = None
        self.manifests: dict[str, bytes] = {}
        self.is_ready = True
        self.submit_calls = 0
        self.submit_gate: asyncio.Event | None = None
        self._changed = asyncio.Event()

    # --- what a test does -------------------------------------------------------------------

    def finish(
        self, job_id: str, item: int, output: Any = None, *, raw: bytes | None = None
    ) -> None:
        self._add(job_id, item, output=msgspec.Raw(raw or msgspec.msgpack.encode(output)))

    def fail(self, job_id: str, item: int, code: ItemError = ItemError.MODEL_ERROR) -> None:
        # A fresh empty Raw, as a careless service would send it.
        error = ResultError(code=code, message="it broke", attempts=3)
        self._add(job_id, item, output=msgspec.Raw(), error=error)

    def _add(self, job_id: str, item: int, **end: Any) -> None:
        job = self.jobs_by_id[job_id]
        cursor = len(job.entries) + 1
        entry = ResultEntry(cursor=cursor, item=item, at_ms=AT_MS, vehicle="car-1", **end)
        job.entries.append(entry)
        failed = job.status.failed + (entry.error is not None)
        is_over = cursor == job.status.items
        job.status = msgspec.structs.replace(
            job.status,
            done=cursor - failed,
            failed=failed,
            last_cursor=cursor,
            state=JobState.DONE if is_over else JobState.RUNNING,
            finished_ms=AT_MS if is_over else None,
        )
        self.position += 2  # gaps are allowed, so there are some
        feed = self.feeds.setdefault(job.status.tenant, [])
        feed.append(FeedEntry(position=self.position, job=job_id, result=entry))
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait(self) -> None:
        async with asyncio.timeout(self.heartbeat_s):
            await self._changed.wait()

    # --- Front ------------------------------------------------------------------------------

    async def submit(self, tenant: str, jobs: Sequence[JobRequest]) -> list[Submitted]:
        self.submit_calls += 1
        if self.submit_gate is not None:
            await self.submit_gate.wait()
        return [self._submit(tenant, job) for job in jobs]

    def _submit(self, tenant: str, request: JobRequest) -> Submitted:
        if self.refuse_next:
            return Submitted(problem=self.refuse_next.pop(0))
        if request.model == "nothing":
            return Submitted(
                problem=Problem(code="unknown_model", message="no", status=404, field="model")
            )
        if request.idempotency_key is not None:
            known = self.by_key.get((tenant, request.idempotency_key))
            if known is not None:
                job = self.jobs_by_id[known]
                if job.request != request:
                    return Submitted(
                        problem=Problem(code="key_reused", message="other body", status=409)
                    )
                return Submitted(status=job.status, existing=True)
        job_id = f"job-{len(self.jobs_by_id)}"
        status = JobStatus(
            job=job_id,
            tenant=tenant,
            model=request.model,
            state=JobState.ACCEPTED,
            items=len(request.items),
            done=0,
            failed=0,
            last_cursor=0,
            submitted_ms=AT_MS,
            deadline_ms=AT_MS + int(request.deadline_s * 1000),
        )
        self.jobs_by_id[job_id] = Job(request, status)
        if request.idempotency_key is not None:
            self.by_key[tenant, request.idempotency_key] = job_id
        if self.auto_finish:
            for index in range(len(request.items)):
                self.finish(job_id, index, {"index": index})
        return Submitted(status=status)

    def _job(self, tenant: str | None, job: str) -> Job:
        found = self.jobs_by_id.get(job)
        if found is None or tenant not in (None, found.status.tenant):
            raise not_found("job")
        return found

    async def job(self, tenant: str | None, job: str) -> JobStatus:
        return self._job(tenant, job).status

    async def jobs(
        self, tenant: str | None, *, state: str | None, limit: int, before: str | None
    ) -> list[JobStatus]:
        newest_first = [
            job.status
            for job in reversed(self.jobs_by_id.values())
            if tenant in (None, job.status.tenant) and state in (None, job.status.state.value)
        ]
        if before is not None:
            ids = [status.job for status in newest_first]
            newest_first = newest_first[ids.index(before) + 1 :]
        return newest_first[:limit]

    async def cancel(self, tenant: str | None, job: str) -> JobStatus:
        found = self._job(tenant, job)
        if not found.status.state.is_terminal:
            found.status = msgspec.structs.replace(found.status, state=JobState.CANCELLED)
            self._wake()
        return found.status

    async def delete(self, tenant: str | None, job: str) -> None:
        self._job(tenant, job)
        del self.jobs_by_id[job]
        self._wake()

    async def results(
        self, tenant: str | None, job: str, *, cursor: int, follow: bool
    ) -> AsyncIterator[Sequence[ResultEntry] | JobStatus]:
        self.open_iterators += 1
        try:
            while True:
                found = self._job(tenant, job)
                page = found.entries[cursor : cursor + PAGE]
                if page:
                    cursor = page[-1].cursor
                    self.pages_pulled += 1
                    yield page
                elif found.status.state.is_terminal or not follow:
                    yield found.status
                    return
                else:
                    try:
                        await self._wait()
                    except TimeoutError:
                        yield []
        finally:
            self.open_iterators -= 1

    async def feed(
        self, tenant: str, *, position: int | None, follow: bool
    ) -> AsyncIterator[Sequence[FeedEntry]]:
        self.open_iterators += 1
        try:
            after = self.position if position is None else position
            yield []
            while True:
                entries = self.feeds.get(tenant, [])
                page = [entry for entry in entries[-20_000:] if entry.position > after][:PAGE]
                if page:
                    after = page[-1].position
                    self.pages_pulled += 1
                    yield page
                elif not follow:
                    return
                else:
                    try:
                        await self._wait()
                    except TimeoutError:
                        yield []
        finally:
            self.open_iterators -= 1

    async def feed_position(self, tenant: str) -> int:
        feed = self.feeds.get(tenant)
        return feed[-1].position if feed else 0

    async def why(self, tenant: str | None, job: str) -> Explanation:
        found = self._job(tenant, job)
        return Explanation(
            job=job,
            summary="no car holds the model",
            items_open=found.status.items,
            items_in_flight=0,
            cars_total=3,
            cars_eligible=0,
            cars_excluded={"not_plugged": 3},
        )

    async def attempts(
        self, tenant: str | None, job: str | None, *, limit: int, after: int
    ) -> list[AttemptView]:
        ids = [
            found.status.job
            for found in self.jobs_by_id.values()
            if tenant in (None, found.status.tenant) and job in (None, found.status.job)
        ]
        return [
            AttemptView(
                job=name, unit=1, epoch=1, counter=1, vehicle="car-1", offered_ms=AT_MS, items=1
            )
            for name in ids[after : after + limit]
        ]

    async def fleet(self, *, limit: int, offset: int) -> FleetView:
        cars = tuple(
            CarView(
                vehicle=f"car-{number}",
                availability=Availability.READY,
                online=True,
                quarantined=self.quarantined.get(f"car-{number}", False),
                age_ms=5,
                free_units=4,
                units_in_flight=0,
                backlog_ms=0.0,
            )
            for number in range(3)
        )
        page = cars[offset : offset + limit]
        return FleetView(cars=page, total=3, by_availability={"ready": 3}, by_hold={})

    async def quarantine(self, vehicle: str, *, on: bool) -> None:
        if vehicle not in {"car-0", "car-1", "car-2"}:
            raise not_found("vehicle")
        self.quarantined[vehicle] = on

    async def dead_letters(
        self, tenant: str | None, job: str | None, *, limit: int
    ) -> list[DeadLetter]:
        return [
            DeadLetter(job=name, item=entry.item, at_ms=entry.at_ms, error=entry.error)
            for name, found in self.jobs_by_id.items()
            for entry in found.entries
            if entry.error is not None
            and tenant in (None, found.status.tenant)
            and job in (None, name)
        ][:limit]

    async def requeue(self, tenant: str | None, job: str, items: Sequence[int]) -> int:
        found = self._job(tenant, job)
        failed = [entry for entry in found.entries if entry.error is not None]
        return len([entry for entry in failed if not items or entry.item in items])

    async def models(self) -> list[ModelView]:
        return [ModelView(name="noop", version="1", task="tensor", digest="a" * 64, bytes=10)]

    def model_manifest(self, digest: str) -> bytes:
        if digest not in self.manifests:
            raise not_found("model")
        return self.manifests[digest]

    def model_file(self, digest: str, path: str) -> Path:
        if digest not in self.manifests or self.model_root is None:
            raise not_found("model")
        names = {found.name for found in self.model_root.iterdir()}
        if path not in names:
            raise not_found("path")
        return self.model_root / path

    def model_metadata(self, name: str) -> Path:
        if self.model_root is None or name != "timestamp.json":
            raise not_found("name")
        return self.model_root / name

    async def backup(self, target: Path) -> int:
        return await asyncio.to_thread(target.write_bytes, b"store")

    async def health(self) -> Health:
        return Health(
            ready=self.is_ready,
            broker="connected" if self.is_ready else "down",
            store="ok",
            epoch=7,
            open_jobs=len(self.jobs_by_id),
            version="0.1.0",
        )
