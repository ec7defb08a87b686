"""One job in the hands of its requester.

`async for result in handle` gives what comes after `handle.cursor` and moves it; iterating again,
or a new handle made with the same cursor, goes on from there. `await handle` submits the job if
that has not happened yet and gives its status.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import aclosing

import msgspec

from edge_runtime.client.errors import DispatcherRefused, JobRefused
from edge_runtime.client.results import ItemResult, follow_results, with_output
from edge_runtime.client.transport import Transport
from edge_runtime.contract.errors import LocalError
from edge_runtime.contract.http import Explanation, JobRequest
from edge_runtime.contract.messages import JobStatus

_encode = msgspec.msgpack.Encoder().encode
_status = msgspec.msgpack.Decoder(JobStatus)
_explanation = msgspec.msgpack.Decoder(Explanation)
_nothing = msgspec.msgpack.Decoder(None)


class JobHandle:
    """A job that is being submitted, or one known by its id.

    Outputs that do not travel inline are downloaded as results are given out, unless `download` is
    False: then results have a `ref`.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        make_request: Callable[[], Awaitable[JobRequest]] | None = None,
        job: str | None = None,
        cursor: int = 0,
        download: bool = True,
    ) -> None:
        self._download = download
        self._transport = transport
        self._make_request = make_request
        self._job = job
        self._cursor = cursor
        self._submitting = asyncio.Lock()

    @property
    def id(self) -> str:
        """The dispatcher's id of the job; `LocalError` before it was submitted."""
        if self._job is None:
            raise LocalError("the job has no id yet: await the handle first")
        return self._job

    @property
    def cursor(self) -> int:
        """The cursor of the last result given out; resume from here, in another process too."""
        return self._cursor

    def __await__(self) -> Generator[object, None, JobStatus]:
        return self.status().__await__()

    async def status(self) -> JobStatus:
        """The job's state now, submitting it first if need be.

        Raises `JobRefused`, `DispatcherRefused` (404 once deleted) or `DispatcherUnreachable`.
        """
        return await self._submit() or await self._call("GET", "")

    async def cancel(self) -> JobStatus:
        """Cancel it; of a cancel and a result the first commit wins."""
        await self._submit()
        return await self._call("POST", "/cancel")

    async def delete(self) -> None:
        """Forget it and its results."""
        await self._submit()
        await self._transport.call("DELETE", f"/v1/jobs/{self.id}", _nothing)

    async def why(self) -> Explanation:
        """Why it is waiting."""
        await self._submit()
        return await self._transport.call("GET", f"/v1/jobs/{self.id}/why", _explanation)

    async def __aiter__(self) -> AsyncIterator[ItemResult]:
        await self._submit()
        async with aclosing(follow_results(self._transport, self.id, self._cursor)) as pages:
            async for page in pages:
                if isinstance(page, JobStatus):
                    return
                for result in page:
                    whole = await with_output(self._transport, result) if self._download else result
                    self._cursor = result.cursor
                    yield whole

    async def _call(self, method: str, path: str) -> JobStatus:
        return await self._transport.call(method, f"/v1/jobs/{self.id}{path}", _status)

    async def _submit(self) -> JobStatus | None:
        """The status of acceptance where this call submitted the job."""
        async with self._submitting:
            if self._make_request is None:
                return None
            body = _encode(await self._make_request())
            try:
                # Safe to repeat: every request carries an idempotency key.
                status = await self._transport.call("POST", "/v1/jobs", _status, body=body)
            except DispatcherRefused as refused:
                raise JobRefused(refused.problem) from None
            self._job = status.job
            self._make_request = None
            return status
