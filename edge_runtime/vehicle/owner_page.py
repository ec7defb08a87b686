"""The owner's page: one static page and the report as JSON, on loopback, read only.

Invariants
- It listens on 127.0.0.1 and answers nothing but GET and HEAD of two addresses; nothing can be
  decided here. It is off unless a port is given: every account of this computer can read it.
- A request names this computer (`Host`), so that no page of elsewhere can be led here by its name.
- Size, time and number of requests are bounded; each connection serves one.

Deliberately absent: an HTTP framework. A car has no HTTP server (`lint-imports` checks it), and
two fixed answers need none.
"""

import asyncio
import base64
import hashlib
import re
from collections.abc import Callable
from http import HTTPStatus
from importlib import resources
from types import TracebackType
from typing import Final, Self

import msgspec
import structlog

from edge_runtime.contract import limits
from edge_runtime.vehicle.owner import OwnerReport
from edge_runtime.vehicle.owner_clients import OwnerClients

HOST: Final = "127.0.0.1"
_PAGE_FILE: Final = "owner_page.html"
_REQUEST_PARTS: Final = 3

_log = structlog.get_logger()


class OwnerPage:
    """Serves while its context lasts. Port 0 means any free one; `port` is then the one it got.

    Entering raises `OSError` where the port is taken.
    """

    def __init__(self, port: int, report: Callable[[], OwnerReport]) -> None:
        self.port = port
        self._report = report
        self._clients = OwnerClients(self._answer)
        self._page = resources.files(__package__).joinpath(_PAGE_FILE).read_bytes()
        self._policy = _content_policy(self._page)
        self._server: asyncio.Server

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._clients.connected, HOST, self.port, limit=limits.OWNER_REQUEST_MAX_BYTES
        )
        self.port = self._server.sockets[0].getsockname()[1]
        _log.info("owner_page", url=f"http://{HOST}:{self.port}/")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        await self._clients.end()

    async def _answer(
        self,
        reader: asyncio.StreamReader,
        is_one_too_many: bool,
    ) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return self._response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        if is_one_too_many:
            return self._response(HTTPStatus.SERVICE_UNAVAILABLE)
        request, *fields = head.decode("latin-1").split("\r\n")
        parts = request.split(" ")
        if len(parts) != _REQUEST_PARTS or not parts[2].startswith("HTTP/1."):
            return self._response(HTTPStatus.BAD_REQUEST)
        if not self._is_meant(fields):
            return self._response(HTTPStatus.MISDIRECTED_REQUEST)
        method, path, _ = parts
        if method not in {"GET", "HEAD"}:
            return self._response(HTTPStatus.METHOD_NOT_ALLOWED)
        match path:
            case "/":
                kind, body = "text/html; charset=utf-8", self._page
            case "/report.json":
                kind, body = "application/json", msgspec.json.encode(self._report())
            case _:
                return self._response(HTTPStatus.NOT_FOUND)
        return self._response(HTTPStatus.OK, kind, body, has_body=method == "GET")

    def _is_meant(self, fields: list[str]) -> bool:
        hosts = [
            value.strip().lower()
            for name, colon, value in (field.partition(":") for field in fields)
            if colon and name.lower() == "host"
        ]
        return len(hosts) == 1 and hosts[0] in {f"{HOST}:{self.port}", f"localhost:{self.port}"}

    def _response(
        self,
        status: HTTPStatus,
        kind: str = "text/plain",
        body: bytes = b"",
        *,
        has_body: bool = True,
    ) -> bytes:
        body = body or f"{status.value} {status.phrase}\n".encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\n"
            f"Content-Type: {kind}\r\n"
            f"Content-Length: {len(body)}\r\n"
            f"Content-Security-Policy: {self._policy}\r\n"
            "Cache-Control: no-store\r\n"
            "Referrer-Policy: no-referrer\r\n"
            "X-Content-Type-Options: nosniff\r\n"
            "Allow: GET, HEAD\r\n"
            "Connection: close\r\n\r\n"
        )
        return head.encode() + (body if has_body else b"")


def _content_policy(page: bytes) -> str:
    """Nothing but the page's own script and style runs, and it asks nobody but this server."""
    hashes = {}
    for tag in (b"script", b"style"):
        found = re.search(rb"<%b>(.*?)</%b>" % (tag, tag), page, re.DOTALL)
        inner = b"" if found is None else found[1]
        hashes[tag] = base64.b64encode(hashlib.sha256(inner).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{hashes[b'script']}'; "
        f"style-src 'sha256-{hashes[b'style']}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
