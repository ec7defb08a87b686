"""The ASGI application: routes, error answers, and the guard in front of them.

Without accounts the only door is loopback (`door` has what holds with them). A web page that a
person on this machine visits could still knock on it, so a request from a page of another origin
is refused, and so is one under a host name that is not this machine's (DNS rebinding), unless the
server was told to serve remote callers.
"""

import functools
import operator
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

from litestar import Litestar
from litestar.connection import Request
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp, Scope

from edge_runtime.contract.http import Problem
from edge_runtime.dispatcher.api.door import Door
from edge_runtime.dispatcher.api.forms import refuse
from edge_runtime.dispatcher.api.openai import BatchDesk
from edge_runtime.dispatcher.api.openai.embeddings import LiveEmbeddings
from edge_runtime.dispatcher.api.openapi import openapi_json
from edge_runtime.dispatcher.api.operations import OPERATIONS
from edge_runtime.dispatcher.api.operations_of_others import OPENAI
from edge_runtime.dispatcher.api.problems import answer_exception, duplicate_header
from edge_runtime.dispatcher.api.routes import Routes
from edge_runtime.dispatcher.api.streams import OpenStreams
from edge_runtime.dispatcher.api.wire import JSON, Answer
from edge_runtime.dispatcher.front import Front

LOOPBACK_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1"})
Mount = Callable[[Any, Any, Any], Awaitable[None]]
"""An application that answers everything under the first part of its paths."""
_ONCE: Final = frozenset({b"host", b"origin", b"content-type", b"x-tenant"})
"""Headers that decide something here: of two, a proxy may have read the other one."""
_ROUTES: Final = "edge_runtime.routes"
"""Where a request's scope has the handlers of the API that took it."""


class Api:
    """The dispatcher's HTTP API as an ASGI application.

    `is_remote` lifts the check of the Host header. `end_streams` makes every open stream end, so
    that a server can close. `mount` gives all paths under a prefix to another application, behind
    the same guard and door. `on_answer` is told path, status and seconds of each answer's begin.
    """

    def __init__(
        self,
        routes: Routes,
        streams: OpenStreams,
        door: Door | None = None,
        mounts: Mapping[str, Mount] | None = None,
    ) -> None:
        self._router = _router()
        self._mounts = dict(mounts or {})
        self._routes = routes
        self._streams = streams
        self._door = door
        self.counters: Counter[str] = Counter() if door is None else door.counters
        """What was refused before any route, and why."""
        self.is_remote = False
        self.around: Callable[[Mount, Any, Any, Any], Awaitable[None]] | None = None
        """Called with the application for every request, to serve it within something."""
        self.on_answer: Callable[[str, int, float], None] | None = None

    def mount(self, prefix: str, app: Mount) -> None:
        """Serve `/prefix` and every path under it by another application."""
        self._mounts[prefix] = app

    @property
    def streams(self) -> OpenStreams:
        """What is told to end when the server closes."""
        return self._streams

    @property
    def open_streams(self) -> int:
        """How many result streams are open."""
        return self._streams.count

    def end_streams(self) -> None:
        """End every open stream, and each new one at once."""
        self._streams.closing.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one HTTP request; there is no lifespan and no websocket."""
        if self.around is None:
            await self._serve(scope, receive, send)
        else:
            await self.around(self._serve, scope, receive, send)

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        if self.on_answer is not None:
            send = _timed(scope["path"], send, self.on_answer)
        problem = _guard(scope, check_host=not self.is_remote)
        if problem is None and self._door is not None:
            problem = self._door.admit(scope)
        if problem is None and self._mounts:
            path = scope["path"][1:]
            mounted = self._mounts.get(path) or self._mounts.get(path.partition("/")[0])
            if mounted is not None:
                await mounted(scope, receive, send)
                return
        if problem is None:
            await self._router(cast("Scope", {**scope, _ROUTES: self._routes}), receive, send)
        else:
            await refuse(problem, scope["path"], scope["headers"])(scope, receive, send)


def _timed(path: str, send: Any, on_answer: Callable[[str, int, float], None]) -> Any:
    started_s = time.perf_counter()

    def timed(message: Any) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            on_answer(path, message["status"], time.perf_counter() - started_s)
        sent: Awaitable[None] = send(message)
        return sent

    return timed


def _guard(scope: Scope, *, check_host: bool) -> Problem | None:
    seen: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name in _ONCE:
            if name in seen:
                return duplicate_header(name.decode().title())
            seen[name] = value
    host_name = seen.get(b"host", b"").decode("latin-1")
    origin = seen.get(b"origin", b"")
    if origin and _netloc(origin.decode("latin-1")) != host_name:
        return _forbidden("Origin", "requests from another site's pages are refused")
    if check_host and _hostname(host_name) not in LOOPBACK_HOSTS:
        return _forbidden("Host", "this dispatcher serves only this machine, by its loopback name")
    return None


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None  # such as http://[


def _hostname(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _forbidden(field: str, message: str) -> Problem:
    return Problem(code="forbidden", message=message, status=int(HTTPStatus.FORBIDDEN), field=field)


def build_app(
    front: Front,
    *,
    backup_dir: Path | None = None,
    door: Door | None = None,
    mounts: Mapping[str, Mount] | None = None,
    batches: BatchDesk | None = None,
    embed: LiveEmbeddings | None = None,
) -> Api:
    """The API over `front`. Backups are written into `backup_dir`, and refused without one.

    `door` has the accounts and quotas; without it there are none. `batches` has OpenAI's files
    and batches, `embed` the interactive way to embeddings. `mounts` are applications by the
    first part of the paths that are theirs (`v2`), behind the same guard and door.
    """
    streams = OpenStreams()
    return Api(
        Routes(front, streams, backup_dir, door=door, desk=batches, embed=embed),
        streams,
        door,
        mounts,
    )


@functools.cache
def _router() -> Litestar:
    """Finds the route of a request, in whose scope the API has put its handlers.

    One for all APIs of a process: to build it takes some 20 ms, and it remembers nothing.
    """
    operations = (*OPERATIONS, *OPENAI)
    methods: dict[str, set[str]] = {"/openapi.json": {"GET"}}
    for operation in operations:
        methods.setdefault(operation.path, set()).add(operation.method)
    # Before the others: Litestar's own answer to OPTIONS knows only the method that came first.
    handlers = [
        _route(path, "OPTIONS", _allowing(", ".join(sorted({*there, "OPTIONS"}))))
        for path, there in methods.items()
    ]
    handlers += [_route(each.path, each.method, _handler(each.handler)) for each in operations]
    return Litestar(
        [*handlers, _route("/openapi.json", "GET", _openapi)],
        openapi_config=None,
        logging_config=None,
        request_max_body_size=None,  # bodies.py bounds them, with a Problem
        exception_handlers={Exception: answer_exception},
    )


def _handler(name: str) -> Callable[[Request[Any, Any, Any]], Awaitable[ASGIApp]]:
    find = operator.attrgetter(name)

    async def handle(request: Request[Any, Any, Any]) -> ASGIApp:
        routes = cast("dict[str, Any]", request.scope)[_ROUTES]
        return cast("ASGIApp", await find(routes)(request))

    return handle


def _route(
    path: str, method: str, handle: Callable[[Request[Any, Any, Any]], Awaitable[ASGIApp]]
) -> HTTPRouteHandler:
    # The status is the answer's own; Litestar would want no body with a 204.
    return HTTPRouteHandler(
        _litestar_path(path),
        http_method=method,  # type: ignore[arg-type]  # a literal type; the table holds str
        status_code=int(HTTPStatus.OK),
    )(handle)


def _allowing(allow: str) -> Callable[[Request[Any, Any, Any]], Awaitable[ASGIApp]]:
    async def options(request: Request[Any, Any, Any]) -> ASGIApp:
        del request
        return Answer(b"", JSON, HTTPStatus.NO_CONTENT, allow=allow)

    return options


def _litestar_path(path: str) -> str:
    return (
        path.replace("{path}", "{path:path}")
        .replace("{job}", "{job:str}")
        .replace("{vehicle}", "{vehicle:str}")
        .replace("{digest}", "{digest:str}")
        .replace("{name}", "{name:str}")
        .replace("{prefix}", "{prefix:str}")
        .replace("{tenant}", "{tenant:str}")
    )


async def _openapi(request: Request[Any, Any, Any]) -> ASGIApp:
    del request
    return Answer(openapi_json(), JSON)
