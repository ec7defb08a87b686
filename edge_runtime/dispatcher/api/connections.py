"""Connections of the HTTP server: bounded in number, in the size of what is no body, in patience.

uvicorn leaves all of these to a proxy in front; this dispatcher may have none.

Invariants
- There are never more connections than files that the process may open, nor more than
  `HTTP_CONNECTIONS_MAX`. For one more, that which has waited longest without a request goes;
  where all of them work, the new one is refused with 503 and closed.
- A connection is without a request for `HTTP_HEAD_S` at most: before its first, between two, in
  the middle of a head, in the rest of a body that was refused. It costs no timer of its own.
- What is no body (head, trailers, extensions of chunks) is at most `HTTP_HEAD_MAX_BYTES` at once.
- Trailers are no headers: what comes after the body never changes what was asked.
- When a connection is lost, every request on it knows, not only the last one.
- An answer that nobody reads is cut after `HTTP_UNREAD_S`.

Deliberately absent: WebSockets, `Upgrade` (the request is answered, and the connection closed),
bodies' own time, which their readers bound (`pace`).
"""

import asyncio
import resource
from collections import Counter
from http import HTTPStatus
from typing import Any, Final

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from edge_runtime.contract import limits
from edge_runtime.contract.http import Problem
from edge_runtime.dispatcher.api.forms import refusal_body, refusal_headers
from edge_runtime.dispatcher.api.problems import named_limit

_MALFORMED: Final = Problem(
    code="malformed", message="this is not an HTTP request", status=int(HTTPStatus.BAD_REQUEST)
)


def connections_max() -> int:
    """How many connections this process may hold: its open files but for a reserve, bounded."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return limits.HTTP_CONNECTIONS_MAX
    return max(1, min(limits.HTTP_CONNECTIONS_MAX, files - limits.HTTP_FILES_RESERVED))


class _Fault(Exception):  # noqa: N818 - never leaves the parser's call
    """A request breaks a bound; raised through the parser."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class Connections:
    """All connections of one server; `counters` say how many were refused or let go, and why."""

    def __init__(self, counters: Counter[str], most: int | None = None) -> None:
        self.most = connections_max() if most is None else most
        self.open: set[Connection] = set()
        self.lingering = 0
        self.counters = counters
        self._waiting: dict[Connection, float] = {}
        """Connections without a request, since when (loop time); in that order."""
        self._timer: asyncio.TimerHandle | None = None

    def admit(self, connection: "Connection", now_s: float) -> bool:
        """Whether there is room for one more; it waits for its first request then."""
        if len(self.open) >= self.most:
            oldest = next(iter(self._waiting), None)
            if oldest is None or now_s - self._waiting[oldest] < limits.HTTP_IDLE_KEPT_S:
                self.counters["http_connections_refused"] += 1
                return False
            self.counters["http_connections_let_go"] += 1
            self.forget(oldest)
            oldest.transport.abort()
        self.open.add(connection)
        self.wait(connection, now_s)
        return True

    def wait(self, connection: "Connection", now_s: float) -> None:
        """It has no request from now on."""
        self._waiting.pop(connection, None)
        self._waiting[connection] = now_s
        if self._timer is None:
            self._look_at(now_s + limits.HTTP_HEAD_S)

    def work(self, connection: "Connection") -> None:
        """It has a request."""
        self._waiting.pop(connection, None)

    def forget(self, connection: "Connection") -> None:
        """It is lost, or was refused."""
        self.open.discard(connection)
        self._waiting.pop(connection, None)

    def _look_at(self, when_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_at(when_s, self._look)

    def _look(self) -> None:
        """Give up those that have waited too long."""
        self._timer = None
        now_s = asyncio.get_running_loop().time()
        for connection, since_s in list(self._waiting.items()):
            if now_s - since_s < limits.HTTP_HEAD_S:
                self._look_at(since_s + limits.HTTP_HEAD_S)
                return
            self.counters["http_connections_idle"] += 1
            self.forget(connection)
            connection.give_up()

    def close(self) -> None:
        """No more timers."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Connection(HttpToolsProtocol):
    """One connection: uvicorn's, within bounds."""

    def __init__(
        self,
        connections: Connections,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._all = connections
        self.url = b""
        self._running: RequestResponseCycle | None = None
        self._has_head = False
        """The head of the request that is being read is complete."""
        self._loose_bytes = 0
        """What came since the last piece of a body, or end of a head."""
        self._is_over = False
        """Nothing that comes is looked at any more."""
        self._timer: asyncio.TimerHandle | None = None

    # --- the connection ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Admit it, or refuse it."""
        super().connection_made(transport)
        if not self._all.admit(self, self.loop.time()):
            name, value = "HTTP_CONNECTIONS_MAX", self._all.most
            message = "too many connections at once"
            self._end(HTTPStatus.SERVICE_UNAVAILABLE, "busy", message, named_limit(name, value))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell every request on it."""
        self._all.forget(self)
        self._set_timer(None)
        if self._is_over:
            self._all.lingering -= 1
        running = self._running
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    def give_up(self) -> None:
        """It has been without a request for too long."""
        if self._loose_bytes and not self._has_head:
            message = f"no whole head came within {limits.HTTP_HEAD_S:g} s"
            limit = named_limit("HTTP_HEAD_S", limits.HTTP_HEAD_S)
            self._end(HTTPStatus.REQUEST_TIMEOUT, "too_slow", message, limit)
        else:
            self._close()

    def pause_writing(self) -> None:
        """Its reader takes nothing."""
        super().pause_writing()
        if not self._is_over:
            self._set_timer(limits.HTTP_UNREAD_S)

    def resume_writing(self) -> None:
        """It takes again."""
        super().resume_writing()
        if not self._is_over:
            self._set_timer(None)

    def _set_timer(self, after_s: float | None) -> None:
        """Cut the connection after that time; None: not."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if after_s is None else self.loop.call_later(after_s, self._cut)

    def _cut(self) -> None:
        self._all.counters["http_connections_cut"] += 1
        self.transport.abort()

    def _close(self) -> None:
        """Close it; a peer that does not read what is left does not keep it."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _end(self, status: HTTPStatus, code: str, message: str, limit: str | None = None) -> None:
        problem = Problem(code=code, message=message, status=int(status), limit=limit)
        self._end_with(problem)

    def _end_with(self, problem: Problem) -> None:
        """Refuse what there is, and close.

        What still comes is read for a while: a socket that is closed with unread bytes takes the
        answer back from its peer.
        """
        self._is_over = True
        self._all.lingering += 1
        self._all.forget(self)
        self._unset_keepalive_if_required()
        running = self._running
        if running is not None and running.response_started and not running.response_complete:
            self.transport.abort()  # nothing can be said in the middle of an answer
            return
        self.transport.write(_refusal_bytes(problem, self.url.decode("latin-1")))
        if self._all.lingering > limits.HTTP_LINGERING_MAX or not self.transport.can_write_eof():
            self._close()
            return
        self.transport.write_eof()
        self._set_timer(limits.HTTP_LINGER_S)
        self.flow.resume_reading()
        if running is not None:
            running.disconnected = True
            running.message_event.set()

    # --- what comes ---

    def data_received(self, data: bytes) -> None:
        """Parse it within bounds."""
        if self._is_over:
            return
        self._unset_keepalive_if_required()
        self._loose_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # What follows is in no language that is spoken here.
            self.cycle.keep_alive = False
            return
        except httptools.HttpParserError as error:
            fault = error.__context__ if isinstance(error.__context__, _Fault) else None
            self._all.counters["http_requests_malformed"] += 1
            self._end_with(_MALFORMED if fault is None else fault.problem)
            return
        if self._loose_bytes > limits.HTTP_HEAD_MAX_BYTES and not self._is_over:
            self._all.counters["http_heads_too_large"] += 1
            self._end_with(_head_too_large("bytes", "HTTP_HEAD_MAX_BYTES"))

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._has_head = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; or a trailer, which says nothing here."""
        if self._has_head:
            return
        if len(self.headers) >= limits.HTTP_HEADERS_MAX:
            raise _Fault(_head_too_large("headers", "HTTP_HEADERS_MAX"))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """A request begins; behind another one it waits for its turn."""
        if len(self.pipeline) >= limits.HTTP_PIPELINE_MAX:
            message = "too many requests before the first was answered"
            limit = named_limit("HTTP_PIPELINE_MAX", limits.HTTP_PIPELINE_MAX)
            status = int(HTTPStatus.TOO_MANY_REQUESTS)
            raise _Fault(Problem(code="busy", message=message, status=status, limit=limit))
        self._has_head = True
        self._loose_bytes = 0
        super().on_headers_complete()
        self._all.work(self)

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        self._loose_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request has come whole."""
        self._loose_bytes = 0
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """An answer is written; the next request runs, or is waited for."""
        has_next = bool(self.pipeline)
        super().on_response_complete()
        if not has_next and not self._is_over and not self.transport.is_closing():
            self._all.wait(self, self.loop.time())


def _head_too_large(what: str, name: str) -> Problem:
    most = getattr(limits, name)
    return Problem(
        code="too_large",
        message=f"the head has more than {most} {what}",
        status=int(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE),
        field="headers",
        limit=named_limit(name, most),
    )


def _refusal_bytes(problem: Problem, path: str) -> bytes:
    """A whole answer, in the form of the path's family, that ends its connection."""
    body, media_type = refusal_body(problem, path)
    headers = {
        "content-type": media_type,
        "content-length": str(len(body)),
        "connection": "close",
        **refusal_headers(problem),
    }
    lines = [f"{name.lower()}: {value}\r\n".encode("latin-1") for name, value in headers.items()]
    return b"".join((STATUS_LINE[problem.status], *lines, b"\r\n", body))
