"""A stream of pages as one HTTP answer that costs a bounded amount of memory.

Invariants
- Pages are pulled: the next one is asked for when the last has been handed to the transport, so
  a slow reader holds one page and one write buffer, nothing more.
- The source is closed as soon as the reader leaves, the server closes, or the reader takes
  nothing for `HTTP_STREAM_STALL_S`.
- A stream that ends well ends with its last element (`StreamEnd`); one that fails here ends with
  `StreamProblem`; one that just ends was cut, and its reader resumes by its cursor.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import structlog
from litestar.types import Receive, Scope, Send

from edge_runtime.contract import limits
from edge_runtime.contract.http import FeedEntry, StreamEnd, StreamProblem
from edge_runtime.contract.messages import JobStatus, ResultEntry
from edge_runtime.dispatcher.api.problems import problem_of
from edge_runtime.dispatcher.api.wire import StreamWriter

_log = structlog.get_logger(__name__)

_FINISH_S = 1.0

Page = Sequence[ResultEntry] | Sequence[FeedEntry] | JobStatus


class _ReaderStalled(Exception):  # noqa: N818 - named for what the reader does; never leaves here
    """The transport took nothing for `HTTP_STREAM_STALL_S`."""


class OpenStreams:
    """How many streams are open, and whether the server wants them to end."""

    def __init__(self, streams_max: int = limits.HTTP_STREAMS_MAX) -> None:
        self._streams_max = streams_max
        self.count = 0
        self.closing = asyncio.Event()

    @property
    def is_full(self) -> bool:
        """Whether one more stream is refused."""
        return self.count >= self._streams_max


class StreamAnswer:
    """An ASGI application that writes pages until they, the reader or the server end."""

    def __init__(
        self,
        pages: AsyncIterator[Page],
        writer: StreamWriter,
        streams: OpenStreams,
        headers: dict[str, str] | None = None,
    ) -> None:
        self._pages = pages
        self._writer = writer
        self._streams = streams
        self._is_started = False
        self._headers = [
            (b"content-type", writer.media_type.encode()),
            (b"cache-control", b"no-store"),
            *((name.encode(), value.encode()) for name, value in (headers or {}).items()),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the stream."""
        del scope
        self._streams.count += 1
        tasks = [
            asyncio.ensure_future(self._pump(send)),
            asyncio.ensure_future(_disconnected(receive)),
            asyncio.ensure_future(self._streams.closing.wait()),
        ]
        pump, gone, _ = tasks
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            is_reader_gone = gone.done()
        finally:
            self._streams.count -= 1
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if not pump.cancelled():
            pump.result()
        elif not is_reader_gone:
            await self._finish(send)

    async def _pump(self, send: Send) -> None:
        try:
            await self._start(send)
            await self._write_pages(send)
        except _ReaderStalled:
            # The answer stays incomplete, which makes the server drop the connection.
            _log.warning("http_stream_stalled", stall_s=limits.HTTP_STREAM_STALL_S)
        finally:
            if isinstance(self._pages, AsyncGenerator):
                await self._pages.aclose()

    async def _start(self, send: Send) -> None:
        if not self._is_started:
            self._is_started = True
            await send({"type": "http.response.start", "status": 200, "headers": self._headers})

    async def _finish(self, send: Send) -> None:
        """End the answer of a stream that the server cuts, unless its reader does not read."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_FINISH_S):
                await self._start(send)
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write_pages(self, send: Send) -> None:
        try:
            async for page in self._pages:
                await self._write_page(send, page)
        except _ReaderStalled:
            raise
        except Exception as error:  # noqa: BLE001 - whatever fails, the reader is told in its stream
            problem = problem_of(error)
            if problem.code == "internal":
                _log.error("http_stream_failed", exc_info=error)
            await _write(send, self._writer.encode(StreamProblem(problem=problem)))
        await _write(send, b"", more=False)

    async def _write_page(self, send: Send, page: Page) -> None:
        if isinstance(page, JobStatus):
            await _write(send, self._writer.encode(StreamEnd(status=page)))
            return
        if not page:
            await _write(send, self._writer.heartbeat)
            return
        buffer = bytearray()
        for element in page:
            buffer += self._writer.encode(element)
            if len(buffer) >= limits.HTTP_STREAM_WRITE_BYTES:
                await _write(send, bytes(buffer))
                buffer.clear()
        if buffer:
            await _write(send, bytes(buffer))


async def _write(send: Send, data: bytes, *, more: bool = True) -> None:
    try:
        async with asyncio.timeout(limits.HTTP_STREAM_STALL_S) as stall:
            await send({"type": "http.response.body", "body": data, "more_body": more})
    except TimeoutError:
        if stall.expired():
            raise _ReaderStalled from None
        raise


async def _disconnected(receive: Receive) -> None:
    message: Any = await receive()
    while message["type"] != "http.disconnect":
        message = await receive()
