"""The dispatcher, for a program that wants inference: submit, stream, watch, operate.

    async with EdgeClient() as client:
        async for result in client.submit("faces", [Path("frame.jpg")]):
            print(result.item, result.output)

Everything here survives a dispatcher's restart for up to `unreachable_after_s` of silence. What
is raised: `JobRefused` and `DispatcherRefused` with the dispatcher's problem,
`DispatcherUnreachable`, `ContractBroken`; nothing of the HTTP library.
"""

import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import msgspec

from edge_runtime.client.handle import JobHandle
from edge_runtime.client.items import ItemLike, to_items
from edge_runtime.client.many import ManyResult, submit_many
from edge_runtime.client.objects import download, save, upload, with_references
from edge_runtime.client.results import (
    FeedResult,
    ItemResult,
    follow_feed,
)
from edge_runtime.client.transport import Transport
from edge_runtime.contract import limits
from edge_runtime.contract.http import (
    AttemptView,
    Backup,
    BackupDone,
    DeadLetter,
    Explanation,
    FleetView,
    Health,
    JobRequest,
    KeyMade,
    KeyView,
    ModelView,
    NewKey,
    Quarantine,
    Quota,
    Requeue,
    Requeued,
    Requirements,
    TenantUsage,
)
from edge_runtime.contract.messages import JobStatus, OutputReference
from edge_runtime.contract.overview import Overview
from edge_runtime.contract.reasons import JobState

T = TypeVar("T")

API_KEY_VARIABLE: Final = "EDGE_RUNTIME_API_KEY"
_NO_REQUIREMENTS = Requirements()
_encode = msgspec.msgpack.Encoder().encode
_nothing = msgspec.msgpack.Decoder(None)
_statuses = msgspec.msgpack.Decoder(list[JobStatus])
_attempts = msgspec.msgpack.Decoder(list[AttemptView])
_fleet = msgspec.msgpack.Decoder(FleetView)
_dead_letters = msgspec.msgpack.Decoder(list[DeadLetter])
_requeued = msgspec.msgpack.Decoder(Requeued)
_models = msgspec.msgpack.Decoder(list[ModelView])
_overview = msgspec.msgpack.Decoder(Overview)
_health = msgspec.msgpack.Decoder(Health)
_key_made = msgspec.msgpack.Decoder(KeyMade)
_key = msgspec.msgpack.Decoder(KeyView)
_keys = msgspec.msgpack.Decoder(list[KeyView])
_usage = msgspec.msgpack.Decoder(TenantUsage)
_usages = msgspec.msgpack.Decoder(list[TenantUsage])
_backup = msgspec.msgpack.Decoder(BackupDone)


class EdgeClient:
    """One dispatcher, seen by one tenant. An async context manager.

    `tenant="*"` is the operator, who sees every tenant's jobs and cannot submit.
    With accounts it needs an `api_key` (without one, that of the environment variable
    `EDGE_RUNTIME_API_KEY`), whose tenant is then the default. `unreachable_after_s` is how long
    nothing may answer before `DispatcherUnreachable`. With a `transport` of its own, which says
    the rest, it does not speak HTTP.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        tenant: str = "default",
        *,
        api_key: str | None = None,
        unreachable_after_s: float = limits.CLIENT_UNREACHABLE_S,
        transport: Transport | None = None,
    ) -> None:
        key = api_key or os.environ.get(API_KEY_VARIABLE)
        self._transport = transport or Transport(url, tenant, unreachable_after_s, api_key=key)

    async def __aenter__(self) -> Self:
        self._transport.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._transport.close()

    # --- submitting -----------------------------------------------------------------------------

    def submit(
        self,
        model: str,
        items: ItemLike | Iterable[ItemLike],
        *,
        parameters: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        deadline_s: float = limits.JOB_DEADLINE_DEFAULT_S,
        retention_s: float = limits.JOB_RETENTION_DEFAULT_S,
        purpose: str = "batch",
        priority: int = 5,
        requirements: Requirements = _NO_REQUIREMENTS,
    ) -> JobHandle:
        """A job; sent when the handle is awaited or iterated.

        `async for result in client.submit(...)` gives each item's result as it comes. Without an
        `idempotency_key` one is made, so that a lost answer never makes two jobs. Inputs over
        `ITEM_MAX_BYTES`, up to `OBJECT_MAX_BYTES`, are uploaded first; outputs over that are
        downloaded as their results are given.
        """
        key = idempotency_key or self._transport.new_key()

        async def make_request() -> JobRequest:
            request = JobRequest(
                model=model,
                items=await to_items(items),
                parameters=dict(parameters or {}),
                idempotency_key=key,
                deadline_s=deadline_s,
                retention_s=retention_s,
                purpose=purpose,
                priority=priority,
                requirements=requirements,
            )
            return await with_references(self._transport, request)

        return JobHandle(self._transport, make_request=make_request)

    def submit_many(
        self,
        requests: Iterable[JobRequest],
        *,
        requests_in_flight: int = limits.CLIENT_REQUESTS_IN_FLIGHT,
    ) -> AsyncGenerator[ManyResult, None]:
        """Submit any number of jobs and give every result of them, in order of arrival.

        `requests` is read as fast as jobs are accepted, never far ahead. A refused job, and one
        that ends before all its items, gives one `ManyResult` with a `problem`. The iterator
        ends when every job has. Close it (`contextlib.aclosing`) when leaving early.
        """
        return submit_many(self._transport, requests, requests_in_flight)

    async def upload(self, data: bytes) -> str:
        """Keep bytes as an object; its name, for `ItemInput(ref=…)` of any number of jobs.

        It stays for a day, and as long as a job that uses it. Raises `JobRefused`.
        """
        return await upload(self._transport, data)

    async def download(self, ref: OutputReference) -> bytes:
        """The bytes of a large output: MessagePack, proven by their hash.

        Raises `DispatcherRefused` (404: it is gone), `DispatcherUnreachable` or `ContractBroken`.
        """
        return await download(self._transport, ref)

    async def save(self, ref: OutputReference, folder: Path) -> Path:
        """A large output as a file in a folder, named by its hash. Raises as `download`."""
        return await save(self._transport, ref, folder)

    # --- one job --------------------------------------------------------------------------------

    def handle(self, job: str, *, cursor: int = 0, download: bool = True) -> JobHandle:
        """A job known by its id, resumed after `cursor`.

        Without `download` a large output is left where it is: its result has a `ref`.
        """
        return JobHandle(self._transport, job=job, cursor=cursor, download=download)

    def results(self, job: str, cursor: int = 0) -> AsyncIterator[ItemResult]:
        """A job's results after `cursor`, until it ends."""
        return aiter(self.handle(job, cursor=cursor))

    async def status(self, job: str) -> JobStatus:
        """A job's state and progress."""
        return await self.handle(job).status()

    async def cancel(self, job: str) -> JobStatus:
        """Cancel a job; idempotent."""
        return await self.handle(job).cancel()

    async def delete(self, job: str) -> None:
        """Forget a job and its results."""
        await self.handle(job).delete()

    async def why(self, job: str) -> Explanation:
        """Why a job is waiting."""
        return await self.handle(job).why()

    # --- the tenant's ---------------------------------------------------------------------------

    async def jobs(
        self, *, state: JobState | None = None, limit: int = 100, before: str | None = None
    ) -> list[JobStatus]:
        """A page of jobs, newest first; `before` is the last id of the page before."""
        query = _query(state=state.value if state else None, limit=limit, before=before)
        return await self._transport.call("GET", "/v1/jobs", _statuses, query=query)

    async def feed(self, position: int | None = None) -> AsyncGenerator[FeedResult, None]:
        """All results of the tenant after `position` (None: from now on), for ever."""
        async with aclosing(follow_feed(self._transport, position)) as pages:
            async for page in pages:
                for result in page:
                    yield result

    # --- the operator's -------------------------------------------------------------------------

    async def attempts(
        self, job: str | None = None, *, limit: int = 100, after: int = 0
    ) -> list[AttemptView]:
        """Attempts in order of offer, of one job or of all; `after` skips so many."""
        query = _query(limit=limit, after=after)
        if job is None:
            return await self._operate("GET", "/v1/attempts", _attempts, query=query)
        return await self._transport.call("GET", f"/v1/jobs/{job}/attempts", _attempts, query=query)

    async def fleet(self, *, limit: int = 100, offset: int = 0) -> FleetView:
        """A page of cars and the counts over all."""
        query = _query(limit=limit, offset=offset)
        return await self._operate("GET", "/v1/fleet", _fleet, query=query)

    async def overview(self, *, retry: bool = True) -> Overview:
        """Everything at a glance: what the dashboard shows."""
        return await self._operate("GET", "/dashboard/data/overview", _overview, retry=retry)

    async def quarantine(self, vehicle: str, *, on: bool = True) -> None:
        """Give a car no work, or work again."""
        path = f"/v1/fleet/{vehicle}/quarantine"
        await self._operate("POST", path, _nothing, body=_encode(Quarantine(on=on)))

    async def dead_letters(self, job: str | None = None, *, limit: int = 100) -> list[DeadLetter]:
        """Items that failed for good, newest first, of one job or of all."""
        query = _query(job=job, limit=limit)
        return await self._operate("GET", "/v1/dead-letters", _dead_letters, query=query)

    async def requeue(self, job: str, items: Sequence[int] = ()) -> int:
        """Run failed items of a job again (none named: all of them); how many."""
        body = _encode(Requeue(items=tuple(items)))
        path = f"/v1/jobs/{job}/requeue"
        return (await self._transport.call("POST", path, _requeued, body=body)).items

    async def models(self) -> list[ModelView]:
        """Packages that jobs may name."""
        return await self._operate("GET", "/v1/packages", _models)

    async def health(self) -> Health:
        """Readiness and counters; asked once, without patience."""
        return await self._operate("GET", "/v1/health", _health, retry=False)

    async def backup(self, name: str | None = None) -> BackupDone:
        """Back the dispatcher's store up into its backup folder; asked once."""
        body = _encode(Backup(name=name))
        return await self._operate("POST", "/v1/store/backup", _backup, body=body, retry=False)

    async def create_key(
        self, tenant: str, *, is_operator: bool = False, note: str = ""
    ) -> KeyMade:
        """Make an API key; asked once, for the answer is the only place where it stands."""
        body = _encode(NewKey(tenant=tenant, is_operator=is_operator, note=note))
        return await self._operate("POST", "/v1/accounts/keys", _key_made, body=body, retry=False)

    async def keys(self) -> list[KeyView]:
        """API keys by their prefixes: an operator sees all, a tenant its own."""
        return await self._operate("GET", "/v1/accounts/keys", _keys)

    async def revoke_key(self, prefix: str) -> KeyView:
        """End a key, at once and for good."""
        return await self._operate("DELETE", f"/v1/accounts/keys/{prefix}", _key)

    async def usage(self) -> list[TenantUsage]:
        """Quotas and what is used of them: an operator sees all, a tenant its own."""
        return await self._operate("GET", "/v1/accounts/usage", _usages)

    async def set_quota(self, tenant: str, quota: Quota) -> TenantUsage:
        """A tenant's quota from now on; `default-quota` is that of all without their own."""
        path = f"/v1/accounts/{tenant}/quota"
        return await self._operate("PUT", path, _usage, body=_encode(quota))

    async def _operate(
        self,
        method: str,
        path: str,
        answer: "msgspec.msgpack.Decoder[T]",
        *,
        query: Mapping[str, Any] | None = None,
        body: bytes | None = None,
        retry: bool = True,
    ) -> T:
        return await self._transport.call(
            method, path, answer, query=query, body=body, is_operator=True, retry=retry
        )


def _query(**parameters: str | int | None) -> dict[str, str]:
    return {name: str(value) for name, value in parameters.items() if value is not None}
