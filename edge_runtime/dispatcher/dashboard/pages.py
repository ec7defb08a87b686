"""The dashboard over HTTP: static pages, what they show as JSON, a live stream of it; `/metrics`.

| path | gives |
| --- | --- |
| `/dashboard/` | the page, its styles and scripts, from this package |
| `/dashboard/data/overview` | everything at a glance (`contract.overview`), MessagePack too |
| `/dashboard/data/live` | the same once a second, as server-sent events |
| `/dashboard/data/cars?cell=&availability=&hold=&region=&limit=&offset=` | cars |
| `/dashboard/data/cars/{vehicle}` | one car, and why it gets no work |
| `/dashboard/data/jobs/{job}?after=` | one job, why it waits, its attempts |

Invariants
- Nothing is loaded from elsewhere and no script is inline: the Content-Security-Policy says so.
- Data is given only where `Access` has nothing against it; only GET and HEAD are answered.
- A stream costs one wait and one shared picture a second, and ends when its reader leaves, takes
  nothing for `HTTP_STREAM_STALL_S`, or the server closes.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus
from importlib import resources
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs

import msgspec
import structlog
from prometheus_client.exposition import choose_encoder

from edge_runtime.contract import limits
from edge_runtime.contract.http import Problem
from edge_runtime.contract.reasons import Availability, HoldReason
from edge_runtime.contract.topics import ID_PATTERN
from edge_runtime.dispatcher.api.problems import WrongMethod, named_limit, problem_of
from edge_runtime.dispatcher.api.streams import OpenStreams
from edge_runtime.dispatcher.api.wire import (
    JSON,
    MSGPACK,
    Answer,
    encode_body,
    names_msgpack,
)
from edge_runtime.dispatcher.dashboard.access import Access, operators_only
from edge_runtime.dispatcher.dashboard.picture import SHARDS, Picture
from edge_runtime.dispatcher.front import Refusal, refusal
from edge_runtime.dispatcher.metrics import Meter

_PREFIX: Final = "/dashboard"
_DATA: Final = f"{_PREFIX}/data/"
_ALLOW: Final = "GET, HEAD"
_STATIC: Final = "static"
_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE_DEFAULT: Final = 100
_encode: Final = msgspec.json.Encoder().encode

Scope = Any
Receive = Any
Send = Any
_Application = Callable[[Scope, Receive, Send], Awaitable[None]]
_log = structlog.get_logger(__name__)


class _File(NamedTuple):
    data: bytes
    media_type: str
    etag: str


class Pages:
    """The dashboard as an ASGI application, to be mounted under `/dashboard`."""

    def __init__(
        self, picture: Picture, streams: OpenStreams, access: Access = operators_only
    ) -> None:
        self._picture = picture
        self._streams = streams
        self._access = access
        self._files = _read_files()
        self.open_dashboards = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        try:
            answer = await self._answer(scope)
        except Refusal as refused:
            answer = _refused(refused.problem)
        except Exception as error:  # noqa: BLE001 - whatever fails, its reader is told, and the log
            _log.error("dashboard_request_failed", path=scope["path"], exc_info=error)
            answer = _refused(problem_of(error))
        await answer(scope, receive, send)

    async def _answer(self, scope: Scope) -> "_Application":
        path = scope["path"]
        if scope["method"] not in {"GET", "HEAD"}:
            raise WrongMethod(_ALLOW)
        if not path.startswith(_DATA):
            return self._static(path, scope)
        problem = self._access(scope)
        if problem is not None:
            raise Refusal(problem)
        if path == f"{_DATA}overview" and names_msgpack(_header(scope, b"accept")):
            body = encode_body(self._picture.overview(), MSGPACK)
            return Answer(body, MSGPACK, HTTPStatus.OK, cache_control="no-store")
        return await self._data(path.removeprefix(_DATA), _Query(scope))

    # --- pages ---

    def _static(self, path: str, scope: Scope) -> Answer:
        name = path.removeprefix(_PREFIX).removeprefix("/") or "index.html"
        if path == _PREFIX:
            # Scripts are named relative to the page: it needs its slash.
            return Answer(b"", JSON, HTTPStatus.PERMANENT_REDIRECT, location=f"{_PREFIX}/")
        file = self._files.get(name)
        if file is None:
            raise refusal(HTTPStatus.NOT_FOUND, "not_found", "no such page")
        named = {"etag": file.etag, "cache_control": "no-cache", **_SAFE}
        if _header(scope, b"if-none-match") == file.etag:
            return Answer(b"", file.media_type, HTTPStatus.NOT_MODIFIED, **named)
        return Answer(file.data, file.media_type, HTTPStatus.OK, **named)

    # --- data ---

    async def _data(self, what: str, query: "_Query") -> "_Application":
        kind, _, name = what.partition("/")
        match kind, name:
            case "overview", "":
                return _json(self._picture.as_json())
            case "live", "":
                if self.open_dashboards >= limits.DASHBOARD_STREAMS_MAX:
                    raise refusal(
                        HTTPStatus.SERVICE_UNAVAILABLE,
                        "busy",
                        "too many open dashboards",
                        limit=named_limit("DASHBOARD_STREAMS_MAX", limits.DASHBOARD_STREAMS_MAX),
                    )
                return self._live
            case "cars", "":
                return _json(_encode(self._cars(query)))
            case "cars", _ if ID_PATTERN.fullmatch(name):
                car = await self._picture.car(name)
                if car is None:
                    raise refusal(
                        HTTPStatus.NOT_FOUND,
                        "unknown_car",
                        f"no car {name!r} has ever connected",
                        field="vehicle",
                    )
                return _json(_encode(car))
            case "jobs", _ if ID_PATTERN.fullmatch(name):
                after = query.number("after", 0, limits.HTTP_COUNT_MAX)
                return _json(_encode(await self._picture.job(name, after)))
            case _:
                raise refusal(HTTPStatus.NOT_FOUND, "not_found", "no such data")

    def _cars(self, query: "_Query") -> Any:
        return self._picture.cars(
            cell=query.cell(),
            availability=query.one_of("availability", {*_AVAILABILITIES, "offline"}),
            hold=HoldReason(hold) if (hold := query.one_of("hold", _HOLDS)) else None,
            region=query.identifier("region"),
            limit=query.number("limit", _PAGE_DEFAULT, limits.HTTP_PAGE_MAX),
            offset=query.number("offset", 0, limits.HTTP_COUNT_MAX),
        )

    # --- the stream ---

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        self.open_dashboards += 1
        tasks = [
            asyncio.ensure_future(self._send_pictures(send)),
            asyncio.ensure_future(_gone(receive)),
            asyncio.ensure_future(self._streams.closing.wait()),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            is_closing = tasks[2].done()
        finally:
            self.open_dashboards -= 1
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if is_closing:
            with suppress(TimeoutError):
                async with asyncio.timeout(limits.DASHBOARD_PERIOD_S):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
        elif not tasks[0].cancelled():
            with suppress(TimeoutError):  # its reader takes nothing: the answer stays cut
                tasks[0].result()

    async def _send_pictures(self, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while True:
            event = b"event: overview\ndata: " + self._picture.as_json() + b"\n\n"
            async with asyncio.timeout(limits.HTTP_STREAM_STALL_S):
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await asyncio.sleep(limits.DASHBOARD_PERIOD_S)


class MetricsPage:
    """`/metrics`, in the form of Prometheus that the scraper asks for."""

    def __init__(self, meter: Meter, access: Access = operators_only) -> None:
        self._meter = meter
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scrape."""
        problem = self._access(scope)
        if problem is None and scope["path"] != "/metrics":
            problem = Problem(code="not_found", message="no such page", status=404)
        if problem is None and scope["method"] not in {"GET", "HEAD"}:
            problem = WrongMethod(_ALLOW).problem
        if problem is not None:
            answer = _refused(problem)
        else:
            encoder, media_type = choose_encoder(_header(scope, b"accept"))
            answer = Answer(encoder(self._meter.registry), media_type)
        await answer(scope, receive, send)


_AVAILABILITIES: Final = {member.value for member in Availability}
_HOLDS: Final = {member.value for member in HoldReason}
_SAFE: Final = {
    "content_security_policy": _POLICY,
    "x_content_type_options": "nosniff",
    "referrer_policy": "no-referrer",
}


class _Query:
    """A request's query, each value checked."""

    def __init__(self, scope: Scope) -> None:
        text = scope["query_string"].decode("latin-1")
        try:
            self._values = parse_qs(text, keep_blank_values=True, max_num_fields=16)
        except ValueError:
            raise _wrong("query", "at most 16 parameters") from None

    def text(self, name: str) -> str | None:
        """A parameter, None where it is absent or empty."""
        values = self._values.get(name)
        return values[-1] or None if values else None

    def number(self, name: str, default: int, most: int) -> int:
        """A whole number from 0 to `most`."""
        text = self.text(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit()) or len(text) > len(str(most)):
            raise _wrong(name, f"{name} is a whole number from 0 to {most}")
        if int(text) > most:
            raise _wrong(name, f"{name} is at most {most}")
        return int(text)

    def one_of(self, name: str, known: set[str]) -> str | None:
        """One of a closed list."""
        text = self.text(name)
        if text is not None and text not in known:
            raise _wrong(name, f"{name} is one of {', '.join(sorted(known))}")
        return text

    def identifier(self, name: str) -> str | None:
        """An id."""
        text = self.text(name)
        if text is not None and not ID_PATTERN.fullmatch(text):
            raise _wrong(name, f"{name} is 1 to 64 of A-Z a-z 0-9 _ -")
        return text

    def cell(self) -> int | None:
        """A shard, two hex digits, as its number."""
        text = self.text("cell")
        if text is None:
            return None
        known = {f"{number:02x}" for number in range(SHARDS)}
        if text not in known:
            raise _wrong("cell", "a cell is two hex digits, 00 to ff")
        return int(text, 16)


def _wrong(field: str, message: str) -> Refusal:
    return refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_field", message, field=field)


def _refused(problem: Problem) -> Answer:
    more = {"allow": _ALLOW} if problem.status == HTTPStatus.METHOD_NOT_ALLOWED else {}
    return Answer(_encode(problem), JSON, problem.status, cache_control="no-store", **more)


def _json(body: bytes) -> Answer:
    return Answer(body, JSON, HTTPStatus.OK, cache_control="no-store")


def _header(scope: Scope, wanted: bytes) -> str:
    for name, value in scope["headers"]:
        if name == wanted:
            text: str = value.decode("latin-1")
            return text
    return ""


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _read_files() -> dict[str, _File]:
    """The pages of this package, once per process."""
    files = {}
    for entry in resources.files(__package__).joinpath(_STATIC).iterdir():
        media_type = _TYPES.get(entry.name.rpartition(".")[2])
        if media_type is not None:
            data = entry.read_bytes()
            etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
            files[entry.name] = _File(data, media_type, etag)
    return files
