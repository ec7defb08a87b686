"""Batches: a file of requests that becomes durable jobs, and a file of their answers.

`validating` (lines become jobs) → `in_progress` → `finalizing` (files are written) → `completed`,
`expired` or `cancelled`; `failed` only where the file itself cannot be read.

Invariants
- A batch is durable before it is answered, and goes on after a crash where it was: a part's
  record comes before its job, whose idempotency key is the part's name.
- Every line with something in it is in exactly one of the two files at the end; of a batch that
  is cancelled or expires while its file is still being read, every line that was read.
- When a batch is over no job of it runs.
- The end of a batch, its files' records and the end of its parts are one transaction.
"""

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from edge_runtime.contract import limits
from edge_runtime.contract.http import ItemInput, JobRequest, Problem
from edge_runtime.contract.messages import JobStatus, ResultEntry
from edge_runtime.contract.reasons import ItemError
from edge_runtime.dispatcher.accounts_quotas import Quotas
from edge_runtime.dispatcher.api.openai.files import FileShelf, StoredFile, Writing
from edge_runtime.dispatcher.api.openai.lines import TASK_OF_URL, Bad, answer_body
from edge_runtime.dispatcher.api.openai.parts import (
    Part,
    PartLine,
    Place,
    items_again,
    read_stretch,
    seen_in,
)
from edge_runtime.dispatcher.front import Front, Refusal
from edge_runtime.dispatcher.storage import Record, Store, StoreError

_log = structlog.get_logger(__name__)

_BATCH: Final = "batch"
_PART: Final = "part"
_ID_BYTES: Final = 12
_WINDOW: Final = re.compile(r"(?P<count>[1-9]\d{0,6})(?P<unit>[smhd])")
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
_OVER: Final = frozenset({"completed", "failed", "expired", "cancelled"})
_RESULTS_PAGE: Final = 64
_RETENTION_S: Final = 24 * 3600.0
_NOT_RUN: Final = {
    "expired": ("batch_expired", "the completion window ended before this request was done"),
    "cancelled": ("batch_cancelled", "the batch was cancelled before this request was done"),
    "completed": ("result_missing", "the job of this request was deleted"),
}


class BatchRequest(msgspec.Struct, frozen=True):
    """The body of `POST /v1/batches`."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None


class Batch(msgspec.Struct, kw_only=True):
    """What a record of kind `batch` says. `end` is what `finalizing` leads to; times in s UTC."""

    id: str
    tenant: str
    input_file_id: str
    endpoint: str
    completion_window: str
    window_s: int
    created_s: int
    expires_s: int
    total: int
    metadata: dict[str, str] | None = None
    status: str = "validating"
    end: str = "completed"
    place: Place = Place()
    completed: int = 0
    failed: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    error: tuple[str, str] | None = None
    times: dict[str, int] = {}

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in _OVER

    def body(self) -> dict[str, Any]:
        """As OpenAI's API writes it."""
        names = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling")
        errors = None
        if self.error is not None:
            code, message = self.error
            fault = {"code": code, "message": message, "param": None, "line": None}
            errors = {"object": "list", "data": [fault]}
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": errors,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.created_s,
            "expires_at": self.expires_s,
            **{f"{name}_at": self.times.get(name) for name in (*names, "cancelled")},
            "request_counts": {
                "total": self.total,
                "completed": self.completed,
                "failed": self.failed,
            },
            "metadata": self.metadata,
        }


_encode = msgspec.msgpack.Encoder().encode
_line_json = msgspec.json.Encoder().encode
_decode_batch = msgspec.msgpack.Decoder(Batch).decode
_decode_part = msgspec.msgpack.Decoder(Part).decode


class _Live:
    """An open batch in memory: its parts, and a bell for who waits with it."""

    def __init__(self, batch: Batch, parts: list[Part]) -> None:
        self.batch = batch
        self.parts = parts
        self.dirty: list[Part] = []
        """Parts that the store does not have as they are."""
        self.bell = asyncio.Event()
        self.ended: dict[str, JobStatus | None] = {}


class Batches:
    """All batches of a dispatcher. `run` drives them for as long as it lives."""

    def __init__(
        self,
        front: Front,
        store: Store,
        shelf: FileShelf,
        now_ms: Callable[[], int],
        *,
        random_bytes: Callable[[int], bytes],
        stretch_lines: int,
    ) -> None:
        self._front = front
        self._store = store
        self._shelf = shelf
        self._now_ms = now_ms
        self._random_bytes = random_bytes
        self._stretch_lines = stretch_lines
        self._live: dict[str, _Live] = {}
        self._new: asyncio.Queue[_Live] = asyncio.Queue()

    # --- for routes ---

    async def create(self, tenant: str, wanted: BatchRequest) -> Batch:
        """Accept a batch; durable when this returns. Raises `Refusal` 400, 404 or 429."""
        if wanted.endpoint not in TASK_OF_URL:
            known = ", ".join(TASK_OF_URL)
            raise _refused("invalid_endpoint", f"endpoint is one of {known}", "endpoint")
        window_s = _window_s(wanted.completion_window)
        file = await self._shelf.view(tenant, wanted.input_file_id)
        lines = file.stored.lines
        if file.stored.purpose != _BATCH:
            message = f"{file.id} was uploaded with purpose {file.stored.purpose!r}, not 'batch'"
            raise _refused("invalid_purpose", message, "input_file_id")
        if not lines:
            raise _refused("empty_file", f"{file.id} has no requests", "input_file_id")
        if lines > limits.BATCH_LINES_MAX:
            message = f"{file.id} has {lines} requests, of at most {limits.BATCH_LINES_MAX}"
            raise _refused("too_many_requests_in_file", message, "input_file_id")
        if len(self._live) >= limits.BATCHES_OPEN_MAX:
            message = f"{len(self._live)} batches are open, of at most {limits.BATCHES_OPEN_MAX}"
            status = HTTPStatus.TOO_MANY_REQUESTS
            raise _refused("too_many_batches", message, None, status)
        now_s = self._now_ms() // 1000
        batch = Batch(
            id=f"batch_{self._name()}",
            tenant=tenant,
            input_file_id=file.id,
            endpoint=wanted.endpoint,
            completion_window=wanted.completion_window,
            window_s=window_s,
            created_s=now_s,
            expires_s=now_s + window_s,
            total=lines,
            metadata=wanted.metadata,
        )
        self._shelf.use(file.id, batch.id)
        live = self._live[batch.id] = _Live(batch, [])
        try:
            await self._put(live)
        except BaseException:
            del self._live[batch.id]
            self._shelf.leave(file.id)
            raise
        self._new.put_nowait(live)
        return batch

    async def view(self, tenant: str | None, batch_id: str) -> Batch:
        """A batch of a tenant; `Refusal` 404 otherwise."""
        live = self._live.get(batch_id)
        batch: Batch | None = None
        if live is not None:
            batch = live.batch
        elif (record := await self._store.record(_BATCH, batch_id)) is not None:
            batch = _decode_batch(record.body)
        if batch is None or tenant not in (None, batch.tenant):
            message = f"No batch found with id {batch_id[:80]!r}"
            raise _refused("not_found", message, "batch_id", HTTPStatus.NOT_FOUND)
        return batch

    async def views(
        self, tenant: str | None, limit: int, after: str | None
    ) -> tuple[list[Batch], bool]:
        """A page of batches, newest first, and whether there are more."""
        records = await self._store.records(_BATCH, tenant, limit + 1, after)
        batches = [
            self._live[record.id].batch if record.id in self._live else _decode_batch(record.body)
            for record in records[:limit]
        ]
        return batches, len(records) > limit

    async def cancel(self, tenant: str | None, batch_id: str) -> Batch:
        """Stop a batch; what is done is kept. Raises `Refusal` 404, or 409 for one that is over."""
        batch = await self.view(tenant, batch_id)
        live = self._live.get(batch_id)
        if live is None or batch.is_over or batch.status == "finalizing":
            message = f"Cannot cancel a batch with status {batch.status!r}"
            raise _refused("batch_over", message, "batch_id", HTTPStatus.CONFLICT)
        if batch.end != "cancelled":
            batch.end = "cancelled"
            self._moved(batch, "cancelling")
            await self._put(live)
            live.bell.set()
        return batch

    # --- the work ---

    async def run(self) -> None:
        """Take up open batches, and drive all that come, for ever."""
        for record in await self._store.open_records(_BATCH):
            batch = _decode_batch(record.body)
            if batch.id in self._live:
                continue
            parts = await self._parts_of(batch)
            live = self._live[batch.id] = _Live(batch, parts)
            self._shelf.use(batch.input_file_id, batch.id)
            self._new.put_nowait(live)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sweep_forever())
            while True:
                live = await self._new.get()
                tasks.create_task(self._drive(live), name=live.batch.id)

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(limits.SWEEP_INTERVAL_S)
            try:
                await self._shelf.sweep()
            except (StoreError, OSError) as error:
                _log.warning("files_not_swept", error=str(error))

    async def _parts_of(self, batch: Batch) -> list[Part]:
        parts = []
        for no in range(batch.place.parts):
            record = await self._store.record(_PART, _part_id(batch, no))
            if record is not None:
                parts.append(_decode_part(record.body))
        return parts

    async def _drive(self, live: _Live) -> None:
        """From wherever it is to its end; what may pass is tried again."""
        batch = live.batch
        while not batch.is_over:
            try:
                await self._step(live)
            except (StoreError, Refusal) as error:
                _log.warning("batch_waits", batch=batch.id, status=batch.status, why=str(error))
                await asyncio.sleep(limits.BATCH_RETRY_S)
            except Exception as error:  # noqa: BLE001 - one batch's fault must not end the dispatcher
                _log.error("batch_failed", batch=batch.id, exc_info=error)
                batch.error = ("internal", f"the batch could not go on: {type(error).__name__}")
        self._shelf.leave(batch.input_file_id)
        del self._live[batch.id]
        _log.info(
            "batch", batch=batch.id, tenant=batch.tenant, state=batch.status, requests=batch.total
        )

    async def _step(self, live: _Live) -> None:
        batch = live.batch
        if batch.error is not None:
            await self._end(live, "failed", [])
        elif batch.status == "validating" or (batch.status == "cancelling" and not live.parts):
            await self._read(live)
        elif batch.status == "finalizing":
            await self._finalize(live)
        else:
            await self._wait(live)

    # --- lines become jobs ---

    async def _read(self, live: _Live) -> None:
        batch = live.batch
        path = self._shelf.path(batch.input_file_id)
        seen = seen_in(live.parts)
        tasks = await self._tasks()
        for place, part in enumerate(live.parts):
            if part.lines and not part.job and part.problem is None:
                items = await asyncio.to_thread(items_again, path, part, batch.endpoint, tasks)
                live.parts[place] = await self._submitted(batch, part, items)
                live.dirty.append(live.parts[place])
        is_end = False
        while not is_end:
            stretch = await asyncio.to_thread(
                read_stretch,
                path,
                batch.place,
                batch.endpoint,
                tasks,
                seen,
                lines_max=self._stretch_lines,
            )
            is_end = stretch.is_end
            batch.place = stretch.place
            first = len(live.parts)
            live.parts += [part for part, _ in stretch.parts]
            # With their predecessors' jobs: one transaction a stretch.
            live.dirty += live.parts[first:]
            await self._put(live)
            if self._is_to_end(batch):
                break
            for no, (part, items) in enumerate(stretch.parts, first):
                if part.lines:
                    live.parts[no] = await self._submitted(batch, part, items)
                    live.dirty.append(live.parts[no])
        if batch.status == "validating":
            self._moved(batch, "in_progress")
        await self._put(live)
        self._shelf.leave(batch.input_file_id)

    def _is_to_end(self, batch: Batch) -> bool:
        """Whether it was cancelled, or its window is over."""
        if batch.end == "completed" and self._now_ms() >= batch.expires_s * 1000:
            batch.end = "expired"
        return batch.end != "completed"

    async def _tasks(self) -> Mapping[str, str]:
        """What each model does, by every name it may be called."""
        tasks: dict[str, str] = {}
        for view in await self._front.models():
            for name in (view.name, f"{view.name}@{view.version}", view.digest):
                tasks[name] = view.task
        return tasks

    async def _submitted(self, batch: Batch, part: Part, items: tuple[ItemInput, ...]) -> Part:
        """The part with its job, or with the problem that it will never have one."""
        request = JobRequest(
            model=part.model,
            items=items,
            idempotency_key=_part_id(batch, part.no),
            deadline_s=float(batch.window_s),
            retention_s=_RETENTION_S,
        )
        while True:
            try:
                (answer,) = await self._front.submit(batch.tenant, [request])
            except Refusal as refused:
                if refused.problem.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                    problem: Problem | None = refused.problem
                    break
                if self._is_to_end(batch):
                    return part
                # A quota, or a store that takes no work now: the batch waits its time.
                await asyncio.sleep(refused.problem.retry_after_s or limits.BATCH_RETRY_S)
                continue
            if answer.status is not None:
                return msgspec.structs.replace(part, job=answer.status.job)
            problem = answer.problem
            break
        code, message = ("refused", "") if problem is None else (problem.code, problem.message)
        return msgspec.structs.replace(part, problem=(code, message))

    # --- jobs run ---

    async def _wait(self, live: _Live) -> None:
        """Until every job has ended; ends them itself when the batch is cancelled or late."""
        batch = live.batch
        while True:
            live.bell.clear()
            self._is_to_end(batch)
            await self._look(live)
            if len(live.ended) == sum(1 for part in live.parts if part.job):
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limits.BATCH_LOOK_S):
                    await live.bell.wait()
        self._moved(batch, "finalizing")
        await self._put(live)

    async def _look(self, live: _Live) -> None:
        """Ask after each open job; cancel it where the batch is not to go on; count."""
        batch = live.batch
        if batch.end != "completed":
            await self._find_jobs(live)
        completed = 0.0
        failed = sum(len(part.bad) + len(part.lines) * (not part.job) for part in live.parts)
        for part in live.parts:
            if not part.job:
                continue
            status = live.ended.get(part.job)
            if part.job not in live.ended:
                status = await self._status(batch, part.job)
                if status is None or status.state.is_terminal:
                    live.ended[part.job] = status
            if status is not None:
                # Lines of several items are counted by their share until their job has ended.
                lines_per_item = len(part.lines) / status.items
                completed += status.done * lines_per_item
                failed += int(status.failed * lines_per_item)
        batch.completed, batch.failed = int(completed), failed

    async def _find_jobs(self, live: _Live) -> None:
        """Take up jobs that their parts do not know: a crash, or a store's pause, came between."""
        batch = live.batch
        places = {
            _part_id(batch, part.no): place
            for place, part in enumerate(live.parts)
            if part.lines and not part.job and part.problem is None
        }
        known = await self._front.jobs_by_key(batch.tenant, list(places)) if places else {}
        for key, job in known.items():
            place = places[key]
            live.parts[place] = msgspec.structs.replace(live.parts[place], job=job)
            live.dirty.append(live.parts[place])

    async def _status(self, batch: Batch, job: str) -> JobStatus | None:
        try:
            if batch.end == "completed":
                return await self._front.job(batch.tenant, job)
            return await self._front.cancel(batch.tenant, job)
        except Refusal as refused:
            if refused.problem.status == HTTPStatus.NOT_FOUND:
                return None  # its tenant deleted it
            raise

    # --- files are written ---

    async def _finalize(self, live: _Live) -> None:
        batch = live.batch
        async with self._shelf.writing() as done, self._shelf.writing() as faults:
            completed = failed = 0
            for part in live.parts:
                for bad in part.bad:
                    failed += 1
                    error = {"code": bad.code, "message": bad.message, "line": bad.number}
                    await faults.write(
                        self._line(bad.custom_id, None, {**error, "param": bad.param})
                    )
                async for line, entries in self._answers(part):
                    body, fault = self._answer(batch, part, line, entries)
                    if fault is None:
                        completed += 1
                        await done.write(self._line(line.custom_id, body, None))
                    else:
                        failed += 1
                        await faults.write(self._line(line.custom_id, None, fault))
            batch.completed, batch.failed = completed, failed
            records = []
            for writing, name in ((done, "output"), (faults, "error")):
                if writing.size:
                    record = await self._placed(batch, writing, name)
                    setattr(batch, f"{name}_file_id", record.id)
                    records.append(record)
            await self._end(live, batch.end, records)

    async def _placed(self, batch: Batch, writing: Writing, name: str) -> Record:
        await writing.finish()
        stored = StoredFile(filename=f"{batch.id}_{name}.jsonl", purpose="batch_output", lines=0)
        return await self._shelf.place(writing, batch.tenant, stored)

    async def _answers(
        self, part: Part
    ) -> AsyncIterator[tuple[PartLine, list[ResultEntry | None]]]:
        """Each line with the results of its items, None for one that has none."""
        page: list[ResultEntry] = []
        index, last = 0, -1
        for line in part.lines:
            entries: list[ResultEntry | None] = []
            for item in range(index, index + line.items):
                if part.job and not page and last < item:
                    page = await self._store.results_by_item(part.job, item - 1, _RESULTS_PAGE)
                    page.reverse()
                    last = page[0].item if page else limits.COUNT_MAX
                entries.append(page.pop() if page and page[-1].item == item else None)
            index += line.items
            yield line, entries

    def _answer(
        self, batch: Batch, part: Part, line: PartLine, entries: list[ResultEntry | None]
    ) -> tuple[dict[str, Any], None] | tuple[None, dict[str, Any]]:
        if part.problem is not None:
            code, message = part.problem
            return None, {"code": code, "message": message}
        outputs = []
        for entry in entries:
            if entry is None:
                code, message = _NOT_RUN[batch.end]
                return None, {"code": code, "message": message}
            if entry.error is not None:
                error = entry.error
                if error.code.value == "deadline_passed":
                    code, message = _NOT_RUN["expired"]
                    return None, {"code": code, "message": message}
                return None, {"code": error.code.value, "message": error.message}
            if entry.ref is not None:
                message = f"the result has {entry.ref.length} bytes, too many for a line"
                return None, {"code": ItemError.RESULT_TOO_LARGE.value, "message": message}
            outputs.append(bytes(entry.output))
        name = self._name()
        try:
            body = answer_body(
                batch.endpoint,
                part.model,
                outputs,
                self._now_ms() // 1000,
                name,
                is_base64=line.is_base64,
            )
        except Bad as bad:
            return None, {"code": bad.code, "message": bad.message}
        return {"status_code": 200, "request_id": name, "body": body}, None

    def _line(
        self,
        custom_id: str | None,
        response: dict[str, Any] | None,
        error: dict[str, Any] | None,
    ) -> bytes:
        """One line of an output or error file."""
        name = f"batch_req_{self._name()}"
        line = {"id": name, "custom_id": custom_id, "response": response, "error": error}
        return _line_json(line) + b"\n"

    def _name(self) -> str:
        return self._random_bytes(_ID_BYTES).hex()

    # --- records ---

    def _moved(self, batch: Batch, status: str) -> None:
        batch.status = status
        batch.times = {**batch.times, status: self._now_ms() // 1000}

    def _record(self, batch: Batch) -> Record:
        return Record(
            _BATCH,
            batch.id,
            batch.tenant,
            batch.created_s * 1000,
            _encode(batch),
            is_open=not batch.is_over,
        )

    async def _put(self, live: _Live) -> None:
        batch, dirty = live.batch, live.dirty
        live.dirty = []
        records = [
            Record(_PART, _part_id(batch, part.no), batch.tenant, 0, _encode(part))
            for part in dirty
        ]
        try:
            await self._store.put_records([*records, self._record(batch)])
        except BaseException:
            live.dirty = dirty + live.dirty
            raise

    async def _end(self, live: _Live, status: str, files: list[Record]) -> None:
        batch = live.batch
        times = {**batch.times, status: self._now_ms() // 1000}
        ended = msgspec.structs.replace(batch, status=status, times=times)
        parts = [(_PART, _part_id(batch, part.no)) for part in live.parts]
        await self._store.put_records([*files, self._record(ended)], parts)
        batch.status, batch.times = ended.status, ended.times


class BatchDesk:
    """Files and batches of one dispatcher; `run` for as long as it lives.

    A file is read and made durable `stretch_lines` lines at a time.
    """

    def __init__(
        self,
        front: Front,
        store: Store,
        folder: Path,
        quotas: Quotas,
        now_ms: Callable[[], int],
        *,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
        stretch_lines: int = limits.BATCH_PART_LINES,
    ) -> None:
        self.shelf = FileShelf(store, folder, quotas, now_ms, random_bytes)
        self.batches = Batches(
            front,
            store,
            self.shelf,
            now_ms,
            random_bytes=random_bytes,
            stretch_lines=stretch_lines,
        )

    async def run(self) -> None:
        """Drive batches, for ever."""
        await self.batches.run()


def _part_id(batch: Batch, no: int) -> str:
    return f"{batch.id}/{no}"


def _window_s(text: str) -> int:
    found = _WINDOW.fullmatch(text)
    window_s = int(found["count"]) * _UNIT_S[found["unit"]] if found else 0
    if not 0 < window_s <= limits.BATCH_WINDOW_MAX_S:
        message = "completion_window is a time such as 24h, 30m or 7d, at most 30d"
        raise _refused("invalid_completion_window", message, "completion_window")
    return window_s


def _refused(
    code: str, message: str, field: str | None, status: HTTPStatus = HTTPStatus.BAD_REQUEST
) -> Refusal:
    return Refusal(Problem(code=code, message=message, status=int(status), field=field))
