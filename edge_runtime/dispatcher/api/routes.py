"""What each route does: parse, ask the `Front`, answer. No decision is taken here."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from litestar.connection import Request
from litestar.types import ASGIApp

from edge_runtime.contract import limits
from edge_runtime.contract.http import (
    Backup,
    BackupDone,
    JobRequest,
    JobsAnswer,
    Problem,
    Quarantine,
    Requeue,
    Requeued,
    Submitted,
)
from edge_runtime.contract.topics import ID_PATTERN
from edge_runtime.dispatcher.api import queries
from edge_runtime.dispatcher.api.accounts import AccountRoutes
from edge_runtime.dispatcher.api.bodies import Body, BodyBudget, TypedBody, read_job, read_jobs
from edge_runtime.dispatcher.api.door import Door
from edge_runtime.dispatcher.api.files import answer_file
from edge_runtime.dispatcher.api.openai import BatchDesk
from edge_runtime.dispatcher.api.openai.embeddings import LiveEmbeddings
from edge_runtime.dispatcher.api.openai.routes import OpenAiRoutes
from edge_runtime.dispatcher.api.streams import OpenStreams, Page, StreamAnswer
from edge_runtime.dispatcher.api.wire import (
    JSON,
    Answer,
    StreamWriter,
    answer,
    media_type_for,
)
from edge_runtime.dispatcher.front import Front, Refusal, refusal

FEED_POSITION_HEADER: Final = "feed-position"
_Request = Request[Any, Any, Any]

_requeue: Final = TypedBody(Requeue)
_quarantine: Final = TypedBody(Quarantine)
_backup: Final = TypedBody(Backup)


class Routes:
    """The handlers, by name; `operations.py` says which method and path each one serves."""

    def __init__(
        self,
        front: Front,
        streams: OpenStreams,
        backup_dir: Path | None,
        *,
        door: Door | None = None,
        desk: BatchDesk | None = None,
        embed: LiveEmbeddings | None = None,
    ) -> None:
        self._front = front
        self._streams = streams
        self._backup_dir = backup_dir
        self._budget = BodyBudget()
        self.openai = OpenAiRoutes(front, self._budget, desk, embed)
        self.accounts = AccountRoutes(door, front, self._budget)

    # --- jobs ---------------------------------------------------------------------------------

    async def submit(self, request: _Request) -> ASGIApp:
        """One job: 201, 200 for a job that its idempotency key named before."""
        tenant = queries.tenant_of(request)
        async with self._submission(request) as body:
            job = await read_job(body)
            (submitted,) = await self._front.submit(tenant, [job])
        if submitted.status is None:
            raise Refusal(submitted.problem or _no_answer())
        status = HTTPStatus.OK if submitted.existing else HTTPStatus.CREATED
        return answer(request, submitted.status, status)

    async def submit_batch(self, request: _Request) -> ASGIApp:
        """Many jobs, each answered by itself: 200."""
        tenant = queries.tenant_of(request)
        async with self._submission(request) as body:
            read = await read_jobs(body)
            jobs = [job for job in read if isinstance(job, JobRequest)]
            accepted = await self._front.submit(tenant, jobs) if jobs else []
        if len(jobs) == len(read):
            return answer(request, JobsAnswer(jobs=tuple(accepted)))
        answers = iter(accepted)
        return answer(
            request,
            JobsAnswer(
                jobs=tuple(
                    Submitted(problem=job) if isinstance(job, Problem) else next(answers)
                    for job in read
                )
            ),
        )

    def _submission(self, request: _Request) -> Body:
        return Body(request, self._budget, "JOB_MAX_BODY_BYTES", limits.JOB_MAX_BODY_BYTES)

    async def jobs(self, request: _Request) -> ASGIApp:
        """A tenant's jobs, newest first."""
        statuses = await self._front.jobs(
            queries.scope_of(request),
            state=queries.job_state(request),
            limit=queries.page_limit(request),
            before=queries.identifier(request, "before"),
        )
        return answer(request, statuses)

    async def job(self, request: _Request) -> ASGIApp:
        """One job's status."""
        scope, job = queries.scope_of(request), _job_in(request)
        return answer(request, await self._front.job(scope, job))

    async def cancel(self, request: _Request) -> ASGIApp:
        """Cancel a job; its status then."""
        scope, job = queries.scope_of(request), _job_in(request)
        return answer(request, await self._front.cancel(scope, job))

    async def delete(self, request: _Request) -> ASGIApp:
        """Forget a job: 204."""
        await self._front.delete(queries.scope_of(request), _job_in(request))
        return Answer(b"", JSON, HTTPStatus.NO_CONTENT)

    async def why(self, request: _Request) -> ASGIApp:
        """Why a job waits."""
        scope, job = queries.scope_of(request), _job_in(request)
        return answer(request, await self._front.why(scope, job))

    async def requeue(self, request: _Request) -> ASGIApp:
        """Run failed items of a job again."""
        scope, job = queries.scope_of(request), _job_in(request)
        async with self._small_body(request) as body:
            wanted: Requeue = _requeue.decode(body)
        items = await self._front.requeue(scope, job, wanted.items)
        return answer(request, Requeued(items=items))

    # --- results --------------------------------------------------------------------------------

    async def results(self, request: _Request) -> ASGIApp:
        """A job's results after a cursor, as a stream."""
        scope, job = queries.scope_of(request), _job_in(request)
        cursor = queries.integer(request, "cursor", 0)
        follow = queries.flag(request, "follow")
        self._refuse_one_stream_more()
        # Asked first so that an unknown job is a 404 and not the problem of a 200.
        await self._front.job(scope, job)
        return self._stream(request, self._front.results(scope, job, cursor=cursor, follow=follow))

    async def feed(self, request: _Request) -> ASGIApp:
        """All results of a tenant after a position; `Feed-Position` says where it starts."""
        tenant = queries.tenant_of(request)
        position = queries.optional_integer(request, "position")
        follow = queries.flag(request, "follow")
        self._refuse_one_stream_more()
        if position is None:
            # Known before the stream starts, so that a reader that loses its connection before
            # the first result still knows where to go on.
            position = await self._front.feed_position(tenant)
        return self._stream(
            request,
            self._front.feed(tenant, position=position, follow=follow),
            {FEED_POSITION_HEADER: str(position)},
        )

    def _refuse_one_stream_more(self) -> None:
        if self._streams.is_full:
            raise refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "busy",
                "too many open streams",
                limit=f"HTTP_STREAMS_MAX={limits.HTTP_STREAMS_MAX}",
            )

    def _stream(
        self,
        request: _Request,
        pages: AsyncIterator[Page],
        headers: dict[str, str] | None = None,
    ) -> StreamAnswer:
        writer = StreamWriter(media_type_for(request))
        return StreamAnswer(pages, writer, self._streams, headers)

    # --- the operator's ---------------------------------------------------------------------------

    async def job_attempts(self, request: _Request) -> ASGIApp:
        """One job's attempts in order of offer."""
        scope, job = queries.scope_of(request), _job_in(request)
        await self._front.job(scope, job)
        attempts = await self._front.attempts(
            scope,
            job,
            limit=queries.page_limit(request),
            after=queries.integer(request, "after", 0),
        )
        return answer(request, attempts)

    async def attempts(self, request: _Request) -> ASGIApp:
        """All attempts in order of offer."""
        attempts = await self._front.attempts(
            queries.operator_scope_of(request),
            None,
            limit=queries.page_limit(request),
            after=queries.integer(request, "after", 0),
        )
        return answer(request, attempts)

    async def fleet(self, request: _Request) -> ASGIApp:
        """A page of cars, and the counts over all."""
        queries.require_operator(request)
        fleet = await self._front.fleet(
            limit=queries.page_limit(request), offset=queries.integer(request, "offset", 0)
        )
        return answer(request, fleet)

    async def quarantine(self, request: _Request) -> ASGIApp:
        """Give a car no work, or work again: 204."""
        queries.require_operator(request)
        async with self._small_body(request) as body:
            wanted: Quarantine = _quarantine.decode(body)
        vehicle = _path_id(request, "vehicle")
        await self._front.quarantine(vehicle, on=wanted.on)
        return Answer(b"", JSON, HTTPStatus.NO_CONTENT)

    async def dead_letters(self, request: _Request) -> ASGIApp:
        """Items that failed for good."""
        letters = await self._front.dead_letters(
            queries.operator_scope_of(request),
            queries.identifier(request, "job"),
            limit=queries.page_limit(request),
        )
        return answer(request, letters)

    async def backup(self, request: _Request) -> ASGIApp:
        """Back the store up into the backup folder: 201."""
        queries.require_operator(request)
        async with self._small_body(request) as body:
            wanted: Backup = _backup.decode(body)
        if self._backup_dir is None:
            raise refusal(
                HTTPStatus.CONFLICT, "backups_off", "this dispatcher has no backup folder"
            )
        name = wanted.name or datetime.now(UTC).strftime("backup-%Y%m%dT%H%M%S.%fZ.db")
        target = self._backup_dir / name
        await asyncio.to_thread(self._backup_dir.mkdir, parents=True, exist_ok=True)
        if await asyncio.to_thread(target.exists):
            raise refusal(HTTPStatus.CONFLICT, "exists", f"{name} exists already", field="name")
        size = await self._front.backup(target)
        return answer(request, BackupDone(path=str(target), bytes=size), HTTPStatus.CREATED)

    def _small_body(self, request: _Request) -> Body:
        return Body(
            request, self._budget, "HTTP_SMALL_BODY_MAX_BYTES", limits.HTTP_SMALL_BODY_MAX_BYTES
        )

    # --- models -----------------------------------------------------------------------------------

    async def models(self, request: _Request) -> ASGIApp:
        """Packages that jobs may name."""
        return answer(request, await self._front.models())

    async def manifest(self, request: _Request) -> ASGIApp:
        """A package's manifest, exactly the bytes that its digest is of."""
        return Answer(self._front.model_manifest(request.path_params["digest"]), JSON)

    async def file(self, request: _Request) -> ASGIApp:
        """A file of a package, or a range of it."""
        digest = request.path_params["digest"]
        name = str(request.path_params["path"]).lstrip("/")
        path = self._front.model_file(digest, name)
        return await answer_file(path, digest, name, request.headers)

    async def metadata(self, request: _Request) -> ASGIApp:
        """Signed metadata of the model repository, byte for byte."""
        path = self._front.model_metadata(request.path_params["name"])
        try:
            data = await asyncio.to_thread(path.read_bytes)
        except OSError:
            raise refusal(
                HTTPStatus.NOT_FOUND, "not_found", "the metadata cannot be read", field="name"
            ) from None
        return Answer(data, JSON)

    # --- health -----------------------------------------------------------------------------------

    async def health(self, request: _Request) -> ASGIApp:
        """Readiness and counters: 200 whatever they say."""
        return answer(request, await self._front.health())

    async def readyz(self, request: _Request) -> ASGIApp:
        """The same, 503 where not ready."""
        health = await self._front.health()
        status = HTTPStatus.OK if health.ready else HTTPStatus.SERVICE_UNAVAILABLE
        return answer(request, health, status)

    async def livez(self, request: _Request) -> ASGIApp:
        """While the event loop turns: 204."""
        del request
        return Answer(b"", JSON, HTTPStatus.NO_CONTENT)

    async def healthz(self, request: _Request) -> ASGIApp:
        """The same."""
        return await self.livez(request)


def _path_id(request: _Request, name: str) -> str:
    value: str = request.path_params[name]
    if not ID_PATTERN.fullmatch(value):
        raise refusal(HTTPStatus.NOT_FOUND, "not_found", f"no such {name}", field=name)
    return value


def _job_in(request: _Request) -> str:
    return _path_id(request, "job")


def _no_answer() -> Problem:
    return Problem(code="internal", message="the dispatcher gave no answer", status=500)
