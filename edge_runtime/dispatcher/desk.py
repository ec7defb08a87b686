"""The `Front` that the HTTP API speaks to, over one running dispatcher service."""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from edge_runtime import __version__
from edge_runtime.contract import limits
from edge_runtime.contract.http import (
    AttemptView,
    DeadLetter,
    Explanation,
    FeedEntry,
    FleetView,
    Health,
    ItemInput,
    JobRequest,
    ModelView,
    Problem,
    Submitted,
)
from edge_runtime.contract.messages import Item, JobStatus, Reference, ResultEntry
from edge_runtime.contract.package import Package
from edge_runtime.contract.reasons import JobState
from edge_runtime.dispatcher.accounts_quotas import Load, Quotas
from edge_runtime.dispatcher.core.events import (
    JobCancelled,
    JobSpec,
    JobSubmitted,
    QuarantineSet,
    WeightSet,
)
from edge_runtime.dispatcher.core.placement import Requirement
from edge_runtime.dispatcher.front import SUBMIT_TIMEOUT_S, Refusal
from edge_runtime.dispatcher.objects import Objects
from edge_runtime.dispatcher.service import DispatcherService
from edge_runtime.dispatcher.storage import KnownKey, StoreError
from edge_runtime.dispatcher.tracing import current_traceparent
from edge_runtime.dispatcher.validation import problem_with_items

_encode = msgspec.msgpack.Encoder().encode
_ID_BYTES = 6


class FrontDesk:
    """See `dispatcher.front.Front`. `random_hex` gives so many random bytes as hex digits."""

    def __init__(
        self,
        service: DispatcherService,
        random_hex: Callable[[int], str] = secrets.token_hex,
        quotas: Quotas | None = None,
        objects: Objects | None = None,
    ) -> None:
        self._service = service
        self._random_hex = random_hex
        self._objects = objects
        self._quotas = quotas or Quotas(service.store, service.clock)
        self._store = service.store
        if objects is None:
            service.take_outputs(lambda _tenant, _job: "", _no_objects)
        else:
            service.take_outputs(objects.output_place, objects.output_problem)
        self._accepting: dict[tuple[str, str], tuple[KnownKey, asyncio.Future[None]]] = {}

    # --- submitting ---

    async def submit(self, tenant: str, jobs: Sequence[JobRequest]) -> list[Submitted]:
        """Accept jobs; returns after their durable commit, one answer a job in order."""
        self._require_store()
        # One read of the kernel's random bytes for all of them.
        names = self._random_hex(len(jobs) * _ID_BYTES)
        specs = [
            await self._spec(tenant, job, names[2 * _ID_BYTES * n : 2 * _ID_BYTES * (n + 1)])
            for n, job in enumerate(jobs)
        ]
        known = await self._known(tenant, specs)
        new = [
            request
            for request, spec in zip(jobs, specs, strict=True)
            if isinstance(spec, JobSpec) and spec.idempotency_key not in known
        ]
        async with self._quotas.hold(tenant, lambda: _load(new)):
            if await self._use_objects(tenant, jobs, specs, known):
                # Others may have been accepted under the same keys meanwhile: nothing may wait
                # between this and `_submit`, which says what is being accepted.
                known = await self._known(tenant, specs)
            return await self._submit(tenant, jobs, specs, known)

    async def _known(self, tenant: str, specs: Sequence[JobSpec | Problem]) -> dict[str, KnownKey]:
        """Jobs that are in the store under the keys of these."""
        keys = [spec.idempotency_key for spec in specs if isinstance(spec, JobSpec)]
        named = [key for key in keys if key is not None]
        return await self._store.find_keys(tenant, named) if named else {}

    async def _use_objects(
        self,
        tenant: str,
        jobs: Sequence[JobRequest],
        specs: Sequence[JobSpec | Problem],
        known: dict[str, KnownKey],
    ) -> bool:
        """Keep what new jobs refer to, before they are accepted: it cannot go between.

        Whether there was anything, which takes its time.
        """
        uses: dict[str, list[str]] = {}
        until_ms = 0
        for request, spec in zip(jobs, specs, strict=True):
            if isinstance(spec, Problem) or spec.idempotency_key in known:
                continue
            digests = [item.ref for item in request.items if item.ref is not None]
            if digests:
                uses[spec.id] = digests
                until_ms = max(until_ms, spec.deadline_ms + spec.retention_ms)
        if not uses or self._objects is None:
            return False
        await self._objects.use(tenant, uses, until_ms)
        return True

    async def _submit(
        self,
        tenant: str,
        jobs: Sequence[JobRequest],
        specs: Sequence[JobSpec | Problem],
        known: dict[str, KnownKey],
    ) -> list[Submitted]:
        """Accept what is new, and find what is not."""
        answers: list[Submitted | None] = []
        events: list[JobSubmitted] = []
        repeats: list[tuple[int, str]] = []
        committed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = {committed}
        for request, spec in zip(jobs, specs, strict=True):
            if isinstance(spec, Problem):
                answers.append(Submitted(problem=spec))
                continue
            key = spec.idempotency_key
            before = known.get(key) if key else None
            being_accepted = self._accepting.get((tenant, key)) if key else None
            if being_accepted is not None:
                # Another request brought the same key and is not on disk yet: wait for it.
                before, other = being_accepted
                waiting.add(other)
            if before is not None:
                if before.body_hash != spec.body_hash:
                    answers.append(Submitted(problem=_other_body(key or "")))
                else:
                    repeats.append((len(answers), before.job))
                    answers.append(None)
                continue
            if key:
                self._accepting[tenant, key] = (KnownKey(spec.id, spec.body_hash), committed)
            events.append(JobSubmitted(spec=spec, items=self._items(tenant, request)))
            answers.append(Submitted(status=_accepted(spec)))
        self._accept(tenant, events, committed)
        await _within_timeout(waiting)
        for place, job in repeats:
            answers[place] = Submitted(status=await self.job(tenant, job), existing=True)
        return [answer for answer in answers if answer is not None]

    def _accept(
        self, tenant: str, events: Sequence[JobSubmitted], committed: asyncio.Future[None]
    ) -> None:
        """Hand the jobs over; `committed` is set when they are on disk."""
        if not events:
            committed.set_result(None)
            return

        def finished(task: asyncio.Future[None]) -> None:
            for event in events:
                if event.spec.idempotency_key:
                    self._accepting.pop((tenant, event.spec.idempotency_key), None)
            if task.cancelled():
                committed.cancel()
            else:
                committed.set_result(task.result())

        asyncio.ensure_future(self._service.commit(events)).add_done_callback(finished)

    def _require_store(self) -> None:
        if self._service.is_draining:
            message = "the dispatcher is about to stop and takes no new work; ask again"
            raise Refusal(Problem(code="draining", message=message, status=503))
        state = self._service.store_state
        if state != "ok":
            message = f"the store takes no new work: {state}"
            raise Refusal(Problem(code="store_unavailable", message=message, status=507))
        free = self._store.free_bytes()
        if free < limits.STORE_RESERVE_BYTES:
            # What is accepted needs room for its results: the last of the disk is theirs.
            message = (
                f"the store's disk has {free} bytes left, "
                f"{limits.STORE_RESERVE_BYTES} are kept for results"
            )
            raise Refusal(
                Problem(
                    code="store_nearly_full",
                    message=message,
                    status=507,
                    limit=f"STORE_RESERVE_BYTES={limits.STORE_RESERVE_BYTES}",
                )
            )

    async def _spec(self, tenant: str, request: JobRequest, name: str) -> JobSpec | Problem:
        service = self._service
        package = service.shelf.find(request.model)
        if package is None:
            await asyncio.to_thread(service.shelf.scan)
            package = service.shelf.find(request.model)
        if package is None:
            message = f"no model {request.model[:80]!r}; see GET /v1/packages"
            return Problem(code="unknown_model", message=message, status=404, field="model")
        problem = problem_with_items(package.spec, request.items)
        problem = problem or self._problem_with_references(tenant, request)
        if problem is not None:
            return problem
        return _job_spec(tenant, request, package, service.clock().utc_ms, name)

    def _problem_with_references(self, tenant: str, request: JobRequest) -> Problem | None:
        if self._objects is not None:
            return self._objects.problem_with(tenant, request)
        if all(item.ref is None for item in request.items):
            return None
        message = "this dispatcher keeps no objects: give data or text"
        return Problem(code="objects_off", message=message, status=422, field="items")

    def _items(self, tenant: str, request: JobRequest) -> tuple[Item, ...]:
        """A job's items as the core has them; of a reference, what a car needs to follow it."""
        objects = self._objects
        return tuple(
            Item(
                index=index,
                media_type=item.media_type,
                data=_data(item),
                ref=objects.reference(tenant, item.ref) if objects and item.ref else None,
            )
            for index, item in enumerate(request.items)
        )

    # --- jobs ---

    async def jobs_by_key(self, tenant: str, keys: Sequence[str]) -> dict[str, str]:
        """A tenant's jobs by idempotency key; what is being accepted now is waited for."""
        accepting = (self._accepting.get((tenant, key)) for key in keys)
        await _within_timeout([entry[1] for entry in accepting if entry is not None])
        known = await self._store.find_keys(tenant, keys)
        return {key: found.job for key, found in known.items()}

    async def job(self, tenant: str | None, job: str) -> JobStatus:
        """A job's status."""
        live = self._service.core.state.jobs.get(job)
        # An ended one is in memory as long as a car has to answer for it, deleted or not.
        if live is not None and not live.is_over:
            status: JobStatus | None = live.status()
        else:
            status = await self._store.job(job)
        if status is None or (tenant is not None and status.tenant != tenant):
            raise _unknown_job(job)
        return status

    async def jobs(
        self, tenant: str | None, *, state: str | None, limit: int, before: str | None
    ) -> list[JobStatus]:
        """Jobs, newest first."""
        return await self._store.jobs(tenant, state, limit, before)

    async def cancel(self, tenant: str | None, job: str) -> JobStatus:
        """Cancel; the first commit of a cancel or a result wins."""
        status = await self.job(tenant, job)
        if not status.state.is_terminal:
            await self._load_if_waiting(job)
            await self._service.commit([JobCancelled(job=job)])
            status = await self.job(tenant, job)
        return status

    async def _load_if_waiting(self, job: str) -> None:
        """A job that waits in the store is taken up first, so that the core can end it."""
        if job not in self._service.core.state.jobs:
            await self._service.take_up(job)

    async def delete(self, tenant: str | None, job: str) -> None:
        """Forget a job and its results; an open one is cancelled first."""
        async with self._service.ended_jobs:
            status = await self.cancel(tenant, job)
            await self._store.delete(job)
        self._service.publisher.clear_status(status.tenant, job)

    async def why(self, tenant: str | None, job: str) -> Explanation:
        """Why the job is waiting."""
        status = await self.job(tenant, job)
        now = self._service.clock()
        live = self._service.core.state.jobs.get(job)
        if live is not None:
            return self._service.core.explain(live, now)
        waiting = status.items - status.done - status.failed
        summary = (
            f"nothing waits: the job is {status.state.value}"
            if status.state.is_terminal
            else "its tenant has many jobs before it; it is read from the store in its turn"
        )
        return Explanation(
            job=job,
            summary=summary,
            items_open=0 if status.state.is_terminal else waiting,
            items_in_flight=0,
            cars_total=len(self._service.core.fleet),
            cars_eligible=0,
            cars_excluded={},
        )

    async def attempts(
        self, tenant: str | None, job: str | None, *, limit: int, after: int
    ) -> list[AttemptView]:
        """Attempts in order of offer; of live ones the newest is known from memory."""
        views = await self._store.attempts(tenant, job, limit, after)
        units = self._service.core.state.units
        return [
            view
            if view.ended_ms is not None
            or (unit := units.get(view.unit)) is None
            or (unit.fence.epoch, unit.fence.counter) != (view.epoch, view.counter)
            else msgspec.structs.replace(
                view,
                taken_ms=unit.taken_ms,
                items_done=unit.items_done,
                busy_ms=unit.busy_ms,
                energy_j=unit.energy_j,
            )
            for view in views
        ]

    async def dead_letters(
        self, tenant: str | None, job: str | None, *, limit: int
    ) -> list[DeadLetter]:
        """Items that failed for good, newest first."""
        return await self._store.dead_letters(tenant, job, limit)

    async def requeue(self, tenant: str | None, job: str, items: Sequence[int]) -> int:
        """Run failed items again; how many were requeued."""
        self._require_store()
        left = (await self.job(tenant, job)).failed
        new_deadline_ms = self._service.clock().utc_ms + limits.JOB_DEADLINE_DEFAULT_S * 1000
        total = 0
        while left > 0:  # items that fail again at once are not taken twice
            page = min(left, limits.LOAD_ITEMS)
            async with self._service.ended_jobs:
                event = await self._store.failed_items(job, items, page, new_deadline_ms)
                if event is None or not event.items:
                    break
                await self._service.commit([event])
            total += len(event.items)
            left -= len(event.items)
        return total

    # --- streams ---

    async def results(
        self, tenant: str | None, job: str, *, cursor: int, follow: bool
    ) -> AsyncIterator[Sequence[ResultEntry] | JobStatus]:
        """Pages of results after `cursor` in order of commit, then the job's status."""
        await self.job(tenant, job)
        with self._service.committed.listen(job) as news:
            while True:
                news.clear()
                status = await self.job(tenant, job)
                page = await self._store.results(job, cursor, limits.FEED_PAGE_ITEMS)
                if page:
                    cursor = page[-1].cursor
                    yield page
                elif not follow or status.state.is_terminal or self._service.committed.is_closed:
                    yield status
                    return
                elif not await _heard(news):
                    yield ()

    async def feed(
        self, tenant: str, *, position: int | None, follow: bool
    ) -> AsyncIterator[Sequence[FeedEntry]]:
        """A tenant's results over all jobs after `position`."""
        with self._service.committed.listen(f"tenant:{tenant}") as news:
            if position is None:
                position = await self._store.feed_position(tenant)
            yield ()
            while True:
                news.clear()
                page = await self._store.feed(tenant, position, limits.FEED_PAGE_ITEMS)
                if page:
                    position = page[-1].position
                    yield page
                elif not follow or self._service.committed.is_closed:
                    return
                elif not await _heard(news):
                    yield ()

    async def feed_position(self, tenant: str) -> int:
        """The newest position of the tenant's feed."""
        return await self._store.feed_position(tenant)

    # --- fleet, models, store ---

    async def fleet(self, *, limit: int, offset: int) -> FleetView:
        """Cars and counts."""
        fleet = self._service.core.fleet
        now_ms = self._service.clock().boot_ms
        by_availability, by_hold = fleet.counts()
        rows = range(min(offset, len(fleet)), min(offset + limit, len(fleet)))
        return FleetView(
            cars=tuple(fleet.view(row, now_ms) for row in rows),
            total=len(fleet),
            by_availability=by_availability,
            by_hold=by_hold,
        )

    async def quarantine(self, vehicle: str, *, on: bool) -> None:
        """Give a car no work, or give it work again."""
        if vehicle not in self._service.core.fleet.row_of:
            message = f"no car {vehicle[:80]!r} has ever connected"
            raise Refusal(Problem(code="unknown_car", message=message, status=404, field="vehicle"))
        await self._service.commit([QuarantineSet(vehicle=vehicle, on=on)])

    async def set_weight(self, tenant: str, weight: int) -> None:
        """A tenant's share of the fleet while others wait too."""
        await self._service.commit([WeightSet(tenant=tenant, weight=weight)])

    async def models(self) -> list[ModelView]:
        """Packages that jobs may name."""
        await asyncio.to_thread(self._service.shelf.scan)
        return self._service.shelf.views()

    def model_manifest(self, digest: str) -> bytes:
        """A package's canonical manifest."""
        return self._service.shelf.manifest(digest)

    def model_file(self, digest: str, path: str) -> Path:
        """A file of a package, only if its manifest names it."""
        return self._service.shelf.file(digest, path)

    def model_metadata(self, name: str) -> Path:
        """A file of the signed repository's metadata."""
        return self._service.shelf.metadata(name)

    async def backup(self, target: Path) -> int:
        """Online backup of the store to a new file; bytes written."""
        try:
            return await self._store.backup(target)
        except StoreError as error:
            raise Refusal(
                Problem(code="backup_failed", message=str(error), status=507, field="name")
            ) from error

    async def health(self) -> Health:
        """Readiness and counters."""
        service = self._service
        broker = "connected" if service.bus.is_connected else "not connected"
        return Health(
            ready=service.is_ready,
            draining=service.is_draining,
            broker=broker,
            store=service.store_state,
            epoch=service.core.state.epoch,
            open_jobs=await self._store.count_open(),
            version=__version__,
            counters=service.all_counters(),
        )


async def _within_timeout(waiting: Iterable[asyncio.Future[None]]) -> None:
    try:
        async with asyncio.timeout(SUBMIT_TIMEOUT_S):
            await asyncio.gather(*(asyncio.shield(future) for future in waiting))
    except TimeoutError:
        message = "not confirmed in time; ask again with the same idempotency key"
        raise Refusal(Problem(code="not_confirmed", message=message, status=503)) from None


async def _heard(news: asyncio.Event) -> bool:
    """Whether there was news within a heartbeat."""
    try:
        async with asyncio.timeout(limits.STREAM_HEARTBEAT_S):
            await news.wait()
    except TimeoutError:
        return False
    return True


def _job_spec(
    tenant: str, request: JobRequest, package: Package, now_ms: int, name: str
) -> JobSpec:
    """`name`: random hexadecimal digits; together with the time they are the job's id."""
    wanted = request.requirements
    body_hash = b""
    if request.idempotency_key is not None:
        body_hash = hashlib.sha256(_encode(_canonical(request))).digest()
    return JobSpec(
        id=f"j{now_ms:011x}{name}",
        tenant=tenant,
        requirement=Requirement(
            model=package.digest,
            task=package.spec.task,
            region=wanted.region,
            hardware=wanted.hardware,
            vehicles=wanted.vehicles,
            by_reference=any(item.ref is not None for item in request.items),
        ),
        parameters=_encode(request.parameters),
        purpose=request.purpose,
        priority=request.priority,
        items=len(request.items),
        submitted_ms=now_ms,
        deadline_ms=now_ms + int(request.deadline_s * 1000),
        retention_ms=int(request.retention_s * 1000),
        reference_ms=package.spec.reference_ms,
        idempotency_key=request.idempotency_key,
        body_hash=body_hash,
        traceparent=current_traceparent(),
    )


def _no_objects(_job: str, _ref: Reference) -> str:
    """What is wrong with any output by reference, where no objects are kept."""
    return "this dispatcher keeps no objects"


def _canonical(request: JobRequest) -> tuple[object, ...]:
    """What makes two bodies the same job, however their writers spelled the defaults."""
    wanted = request.requirements
    return (
        request.model,
        [
            (item.media_type, _data(item)) if item.ref is None else (item.media_type, b"", item.ref)
            for item in request.items
        ],
        request.parameters,
        float(request.deadline_s),
        float(request.retention_s),
        request.purpose,
        request.priority,
        (wanted.region, wanted.hardware, wanted.vehicles),
    )


def _load(jobs: Sequence[JobRequest]) -> Load:
    """What jobs add to what their tenant has open."""
    items = [item for job in jobs for item in job.items]
    return Load(len(jobs), len(items), sum(_size(item) for item in items))


def _size(item: ItemInput) -> int:
    return len(item.data) if item.data is not None else len((item.text or "").encode())


def _data(item: ItemInput) -> bytes:
    return item.data if item.data is not None else (item.text or "").encode()


def _accepted(spec: JobSpec) -> JobStatus:
    return JobStatus(
        job=spec.id,
        tenant=spec.tenant,
        model=spec.requirement.model,
        state=JobState.ACCEPTED,
        items=spec.items,
        done=0,
        failed=0,
        last_cursor=0,
        submitted_ms=spec.submitted_ms,
        deadline_ms=spec.deadline_ms,
        traceparent=spec.traceparent,
    )


def _other_body(key: str) -> Problem:
    return Problem(
        code="idempotency_conflict",
        message=f"the key {key[:80]!r} names a job with another body",
        status=409,
        field="idempotency_key",
    )


def _unknown_job(job: str) -> Refusal:
    message = f"no job {job[:80]!r}"
    return Refusal(Problem(code="unknown_job", message=message, status=404, field="job"))
