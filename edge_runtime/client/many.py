"""Thousands of jobs through a few requests and one stream.

Jobs travel up to 256 a request with several requests in flight; all results come back over the
tenant's feed, which is opened before the first request and resumed by its position.

Invariants
- Each result is given once: of the feed only the cursor that follows a job's last one is taken. A
  repeat is dropped; at a gap the job's own results are read, of which whatever follows is taken.
- Every request ends: with all its results, or with a `problem` (refused, cancelled, deleted).
- Memory is bounded: open jobs, results that came before their request's answer, and results that
  wait for the consumer each have a bound, and reaching one stops what feeds it.

How an early result finds its job: the feed may bring a result before the answer that names its
job. While requests are unanswered, results of unknown jobs are kept, stamped with the newest
request then sent; once all requests up to that stamp are answered, what is still unknown belongs
to somebody else's job and is dropped.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing

import msgspec

from edge_runtime.client.errors import DispatcherRefused, JobRefused
from edge_runtime.client.objects import with_references
from edge_runtime.client.results import (
    FeedResult,
    ItemResult,
    follow_feed,
    follow_results,
    with_output,
)
from edge_runtime.client.transport import LATER, Interrupted, Transport
from edge_runtime.contract import limits
from edge_runtime.contract.http import JobRequest, JobsAnswer, Problem, Submitted
from edge_runtime.contract.messages import JobStatus

_NOT_FOUND = 404
_GONE = 410
_encode = msgspec.msgpack.Encoder().encode
_answers = msgspec.msgpack.Decoder(JobsAnswer)
_status = msgspec.msgpack.Decoder(JobStatus)


class ManyResult(msgspec.Struct, frozen=True):
    """One result of one of many jobs, or the `problem` that ended a job without its results.

    `index` is the job's place among the requests, `key` its idempotency key; `job` is empty
    where the job was refused.
    """

    index: int
    key: str
    job: str
    result: ItemResult | None = None
    problem: Problem | None = None


class _Waiting(msgspec.Struct):
    """A request that is not accepted yet; `body` is its MessagePack."""

    index: int
    key: str
    body: msgspec.Raw


class _Open(msgspec.Struct):
    """An accepted job whose results are not all here; `cursor` is the last one given out.

    `given` has a 1 for each item of which a result was given out, `items_left` counts the others.
    """

    job: str
    index: int
    key: str
    items_left: int
    given: bytearray
    cursor: int
    heard_s: float


class _Outbox:
    """Pages on their way to the consumer; full stops who puts, a failure reaches who gets."""

    def __init__(self) -> None:
        self._pages: deque[list[ManyResult]] = deque()
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None
        self._is_ended = False
        self._putting = 0

    async def put(self, page: list[ManyResult]) -> None:
        if not page:
            return
        self._putting += 1
        try:
            while len(self._pages) >= limits.CLIENT_RESULT_PAGES_MAX:
                await self._wait()
            self._pages.append(page)
        finally:
            self._putting -= 1
            self._wake()

    async def get(self) -> list[ManyResult] | None:
        while not self._pages:
            if self._failure is not None:
                raise self._failure
            if self._is_ended and not self._putting:
                return None
            await self._wait()
        page = self._pages.popleft()
        self._wake()
        return page

    def end(self) -> None:
        self._is_ended = True
        self._wake()

    def fail(self, failure: BaseException) -> None:
        self._failure = self._failure or failure
        self._wake()

    async def _wait(self) -> None:
        await self._changed.wait()

    def _wake(self) -> None:
        # Waiters of the old event run later; each looks again at what it waits for.
        self._changed.set()
        self._changed = asyncio.Event()


class _Early:
    """Results of jobs that no answer has named yet."""

    def __init__(self) -> None:
        self._by_job: dict[str, tuple[int, list[ItemResult]]] = {}
        self._count = 0

    @property
    def is_full(self) -> bool:
        return self._count >= limits.CLIENT_EARLY_ENTRIES_MAX

    def keep(self, job: str, result: ItemResult, newest_request: int) -> None:
        self._by_job.setdefault(job, (newest_request, []))[1].append(result)
        self._count += 1

    def take(self, job: str) -> list[ItemResult]:
        _, results = self._by_job.pop(job, (0, []))
        self._count -= len(results)
        return results

    def drop_before(self, oldest_unanswered: int) -> None:
        """Forget what was kept before this request was sent: all its candidates are answered."""
        while self._by_job:
            job, (stamp, _) = next(iter(self._by_job.items()))
            if stamp >= oldest_unanswered:
                return
            self.take(job)


class _Run:
    """One call of `submit_many`."""

    def __init__(self, transport: Transport, requests: Iterable[JobRequest]) -> None:
        self.outbox = _Outbox()
        self._transport = transport
        self._requests = enumerate(requests)
        self._is_exhausted = False
        self._key_prefix = transport.new_key()
        self._open: dict[str, _Open] = {}
        self._posting_jobs = 0
        self._early = _Early()
        self._sent_requests = 0
        self._unanswered: set[int] = set()
        self._is_subscribed = asyncio.Event()
        self._progress = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    # --- submitting -----------------------------------------------------------------------------

    async def submit(self) -> None:
        """One of the tasks that post: takes batches until there are none."""
        await self._is_subscribed.wait()
        while True:
            while len(self._open) + self._posting_jobs >= limits.CLIENT_OPEN_JOBS_MAX:
                await self._progress.wait()
            batch = await self._next_batch()
            if not batch:
                break
            self._posting_jobs += len(batch)
            try:
                await self._post(batch)
            finally:
                self._posting_jobs -= len(batch)
        self._end_if_done()

    async def _next_batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size = 0
        while (
            not self._is_exhausted
            and len(batch) < limits.JOBS_PER_REQUEST_MAX
            and size < limits.CLIENT_REQUEST_TARGET_BYTES
        ):
            found = next(self._requests, None)
            if found is None:
                self._is_exhausted = True
                break
            index, request = found
            key = request.idempotency_key
            if key is None:
                key = f"{self._key_prefix}-{index}"
                request = msgspec.structs.replace(request, idempotency_key=key)
            body = _encode(request)
            if len(body) > limits.ITEM_MAX_BYTES:
                uploaded = await self._uploaded(index, key, request)
                if uploaded is None:
                    continue
                body = _encode(uploaded)
            size += len(body)
            batch.append(_Waiting(index, key, msgspec.Raw(body)))
        return batch

    async def _uploaded(self, index: int, key: str, request: JobRequest) -> JobRequest | None:
        """The request with its large inputs uploaded; None where that was refused, and told."""
        self._posting_jobs += 1
        try:
            return await with_references(self._transport, request)
        except DispatcherRefused as refused:
            waiting = _Waiting(index, key, msgspec.Raw())
            await self.outbox.put([_refused(waiting, refused.problem)])
            return None
        finally:
            self._posting_jobs -= 1

    async def _post(self, batch: list[_Waiting]) -> None:
        patience = self._transport.patience()
        while batch:
            self._sent_requests += 1
            number = self._sent_requests
            self._unanswered.add(number)
            try:
                answers = await self._call(batch)
                page: list[ManyResult] = []
                behind: list[str] = []
                later: list[tuple[_Waiting, Problem]] = []
                for waiting, answer in zip(batch, answers, strict=True):
                    self._register(waiting, answer, page, behind, later)
            finally:
                self._unanswered.discard(number)
                self._early.drop_before(min(self._unanswered, default=number + 1))
                self._wake()
            await self.outbox.put(page)
            for job in behind:
                await self._catch_up(job)
            batch = [waiting for waiting, _ in later]
            if later:
                try:
                    await patience.wait(Interrupted("busy", later[0][1]))
                except DispatcherRefused:
                    await self.outbox.put([_refused(*one) for one in later])
                    return

    async def _call(self, batch: list[_Waiting]) -> Sequence[Submitted]:
        body = _encode({"jobs": [waiting.body for waiting in batch]})
        try:
            # Safe to repeat: every job carries an idempotency key.
            answer = await self._transport.call("POST", "/v1/jobs/batch", _answers, body=body)
        except DispatcherRefused as refused:
            raise JobRefused(refused.problem) from None
        return answer.jobs

    def _register(
        self,
        waiting: _Waiting,
        answer: Submitted,
        page: list[ManyResult],
        behind: list[str],
        later: list[tuple[_Waiting, Problem]],
    ) -> None:
        status = answer.status
        if status is None:
            problem = answer.problem or _problem("internal", "the dispatcher gave no answer", 500)
            if problem.status in LATER:
                later.append((waiting, problem))
            else:
                page.append(_refused(waiting, problem))
            return
        if status.job in self._open:
            first = self._open[status.job].index
            message = f"the same idempotency key as request {first}, which is still open"
            page.append(_refused(waiting, _problem("duplicate_key", message, 409)))
            return
        given = bytearray(status.items)
        job = _Open(
            job=status.job,
            index=waiting.index,
            key=waiting.key,
            items_left=len(given),
            given=given,
            cursor=0,
            heard_s=self._loop.time(),
        )
        self._open[status.job] = job
        is_behind = status.last_cursor > 0 or status.state.is_terminal
        for result in self._early.take(status.job):
            is_behind |= not self._take(job, result, page)
        if is_behind and status.job in self._open:
            behind.append(status.job)

    # --- receiving ------------------------------------------------------------------------------

    async def read_feed(self) -> None:
        """The task that reads the tenant's feed, whatever restarts."""
        async with aclosing(follow_feed(self._transport, None)) as pages:
            async for page in pages:
                self._is_subscribed.set()
                if page:
                    await self._take_feed(page)

    async def _take_feed(self, entries: list[FeedResult]) -> None:
        page: list[ManyResult] = []
        behind: set[str] = set()
        for entry in entries:
            job = self._open.get(entry.job)
            if job is not None:
                if not self._take(job, entry.result, page):
                    behind.add(entry.job)
            elif self._unanswered:
                if self._early.is_full:
                    await self.outbox.put(page)
                    page = []
                    await self._wait_for_answers(entry)
                else:
                    self._early.keep(entry.job, entry.result, self._sent_requests)
        await self.outbox.put(page)
        for name in behind:
            await self._catch_up(name)
        self._end_if_done()

    async def _wait_for_answers(self, entry: FeedResult) -> None:
        """Wait until a place is free for the entry, or its job is known: then it is behind."""
        while self._early.is_full and self._unanswered and entry.job not in self._open:
            await self._progress.wait()
        if entry.job in self._open:
            await self._catch_up(entry.job)
        elif self._unanswered:
            self._early.keep(entry.job, entry.result, self._sent_requests)

    def _take(
        self, job: _Open, result: ItemResult, page: list[ManyResult], *, is_whole: bool = False
    ) -> bool:
        """Give a result out if it is the next one; False where one before it may be missing.

        `is_whole` says that nothing is: a failed item that is run again leaves its cursor unused.
        """
        if result.cursor <= job.cursor or job.job not in self._open:
            return True
        if result.cursor != job.cursor + 1 and not is_whole:
            return False
        job.cursor = result.cursor
        job.heard_s = self._loop.time()
        page.append(ManyResult(job.index, job.key, job.job, result))
        if result.item < len(job.given) and not job.given[result.item]:
            job.given[result.item] = True
            job.items_left -= 1
        if not job.items_left:
            self._close(job)
        return True

    async def _catch_up(self, name: str) -> None:
        """Read a job's own results up to now; close it where it has ended without the rest."""
        job = self._open.get(name)
        if job is None:
            return
        results = follow_results(self._transport, name, job.cursor, follow=False)
        try:
            async with aclosing(results) as pages:
                async for found in pages:
                    page: list[ManyResult] = []
                    if isinstance(found, JobStatus):
                        self._close_if_ended(job, found, page)
                    else:
                        for result in found:
                            self._take(job, result, page, is_whole=True)
                    await self.outbox.put(page)
        except DispatcherRefused as refused:
            if refused.problem.status != _NOT_FOUND:
                raise
            await self.outbox.put(self._give_up(job, _problem("job_deleted", "deleted", _GONE)))
        self._end_if_done()

    def _close_if_ended(self, job: _Open, status: JobStatus, page: list[ManyResult]) -> None:
        if status.state.is_terminal and job.cursor >= status.last_cursor:
            left, items = job.items_left, len(job.given)
            message = f"{status.state.value} with {left} of {items} items unfinished"
            page += self._give_up(job, _problem("job_ended", message, _GONE))

    def _give_up(self, job: _Open, problem: Problem) -> list[ManyResult]:
        if job.job not in self._open:
            return []
        self._close(job)
        return [ManyResult(job.index, job.key, job.job, None, problem)]

    async def watch_quiet(self) -> None:
        """The task that asks after jobs of which nothing was heard: cancelled ones say nothing."""
        while True:
            await asyncio.sleep(limits.CLIENT_QUIET_CHECK_S)
            now_s = self._loop.time()
            quiet = [
                job
                for job in self._open.values()
                if now_s - job.heard_s >= limits.CLIENT_QUIET_CHECK_S
            ]
            quiet.sort(key=lambda job: job.heard_s)
            for job in quiet[: limits.CLIENT_QUIET_CHECKS_MAX]:
                job.heard_s = now_s
                await self._ask_after(job)

    async def _ask_after(self, job: _Open) -> None:
        try:
            status = await self._transport.call("GET", f"/v1/jobs/{job.job}", _status)
        except DispatcherRefused as refused:
            if refused.problem.status != _NOT_FOUND:
                raise
        else:
            if not status.state.is_terminal and status.last_cursor <= job.cursor:
                return
        await self._catch_up(job.job)

    # --- ending ---------------------------------------------------------------------------------

    def _close(self, job: _Open) -> None:
        del self._open[job.job]
        self._wake()

    def _wake(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()

    def _end_if_done(self) -> None:
        if self._is_exhausted and not self._open and not self._posting_jobs:
            self.outbox.end()

    def watch(self, task: "asyncio.Task[None]") -> None:
        """A task that fails is the consumer's to hear of."""
        if not task.cancelled() and (failure := task.exception()) is not None:
            self.outbox.fail(failure)


def _problem(code: str, message: str, status: int) -> Problem:
    return Problem(code=code, message=message, status=status)


def _refused(waiting: _Waiting, problem: Problem) -> ManyResult:
    return ManyResult(waiting.index, waiting.key, "", None, problem)


async def submit_many(
    transport: Transport, requests: Iterable[JobRequest], requests_in_flight: int
) -> AsyncGenerator[ManyResult, None]:
    """See `EdgeClient.submit_many`."""
    run = _Run(transport, requests)
    tasks = [
        asyncio.create_task(work)
        for work in (
            run.read_feed(),
            run.watch_quiet(),
            *(run.submit() for _ in range(requests_in_flight)),
        )
    ]
    for task in tasks:
        task.add_done_callback(run.watch)
    try:
        while (page := await run.outbox.get()) is not None:
            for one in page:
                if one.result is not None and one.result.ref is not None:
                    result = await with_output(transport, one.result)
                    yield msgspec.structs.replace(one, result=result)
                else:
                    yield one
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
