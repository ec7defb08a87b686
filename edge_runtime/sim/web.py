"""HTTP without sockets: the production client's calls meet the production API as ASGI calls.

A request, its answer and every piece of a stream cross a network that delays and cuts; the
dispatcher's death breaks what is open, as a reset connection does.
"""

import asyncio
import io
import random
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode

from edge_runtime.client.transport import FIRST_ERROR, MSGPACK, Interrupted, Transport, refused
from edge_runtime.contract.limits import SIM_STREAM_PIECES_MAX
from edge_runtime.sim.hosts import Host

_NOTHING_S: Final = 45.0
_PIECE_S: Final = 0.05
OPERATOR: Final = "operator"
"""Whose key goes with requests that are for no tenant."""
_TENANT: Final = "x-tenant"
_AUTHORIZATION: Final = "authorization"


@dataclass
class Network:
    """The way between clients and the dispatcher, whose application is `app` while it listens."""

    rng: random.Random
    delay_max_s: float = 0.0
    cut_probability: float = 0.0
    is_cut: bool = False
    host: Host | None = None
    app: Any = None
    exchanges: "dict[Exchange, None]" = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    """Which key everybody has, by tenant; none where there are no accounts."""

    async def cross(self) -> None:
        """One way over the network. Raises `Interrupted`."""
        await asyncio.sleep(self.rng.uniform(0.0005, 0.001 + self.delay_max_s))
        if self.is_cut or self.rng.random() < self.cut_probability:
            raise Interrupted("connection reset")

    def listen(self, host: Host, app: Any) -> None:
        """The dispatcher serves `app` in its present life."""
        self.host, self.app = host, app

    def server_died(self) -> None:
        """Every open connection is reset."""
        self.app = None
        for exchange in list(self.exchanges):
            exchange.reset()


class Exchange:
    """One request and its answer: `piece` after piece of it, once it has `started`."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.status = 0
        self.headers: dict[str, str] = {}
        self.pieces: deque[bytes] = deque()
        self.is_whole = False
        self.is_reset = False
        self.news = asyncio.Event()
        self.room = asyncio.Event()
        self.left = asyncio.Event()

    def reset(self) -> None:
        """The connection is gone."""
        self.is_reset = True
        self.news.set()
        self.room.set()
        self.left.set()

    def begin(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None,
        body: bytes | None,
        headers: Mapping[str, str],
        *,
        pieces: int = 1,
        is_cut: bool = False,
    ) -> None:
        """Run the application, in the dispatcher's life; the body comes in so many pieces.

        With `is_cut` its sender hangs up behind the last of them.
        """
        network = self.network
        if network.app is None or network.host is None or not network.host.is_up:
            raise Interrupted("connection refused")
        lines = {"host": "127.0.0.1", "accept": MSGPACK, **headers}
        if network.keys and _AUTHORIZATION not in lines:
            lines[_AUTHORIZATION] = f"Bearer {network.keys[lines.get(_TENANT, OPERATOR)]}"
        scope = _scope(method, path, query, lines)
        sent = _pieces(body or b"", pieces, is_cut=is_cut)

        async def receive() -> Any:
            if sent and pieces > 1:
                await asyncio.sleep(_PIECE_S)
                if network.is_cut:
                    self.reset()
                if self.is_reset:
                    sent.clear()
            if sent:
                return sent.popleft()
            if not is_cut:
                await self.left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                self.headers = {k.decode(): v.decode() for k, v in message["headers"]}
                return
            while len(self.pieces) >= SIM_STREAM_PIECES_MAX and not self.is_reset:
                self.room.clear()
                await self.room.wait()
            if message.get("body"):
                self.pieces.append(message["body"])
            self.is_whole = not message.get("more_body", False)
            self.news.set()

        async def serve() -> None:
            try:
                await network.app(scope, receive, send)
            finally:
                if not self.is_whole:
                    self.reset()

        network.exchanges[self] = None
        network.host.run(serve(), "request")

    async def piece(self) -> bytes:
        """The next piece of the body; empty at its end. Raises `Interrupted`."""
        while True:
            if self.pieces:
                self.room.set()
                await self.network.cross()
                return self.pieces.popleft() if self.pieces else b""
            if self.is_reset:
                raise Interrupted("connection reset")
            if self.is_whole:
                return b""
            await self.hear()

    async def hear(self) -> None:
        """Wait for something to come. Raises `Interrupted`."""
        self.news.clear()
        try:
            async with asyncio.timeout(_NOTHING_S):
                await self.news.wait()
        except TimeoutError:
            raise Interrupted("nothing came for too long") from None

    async def started(self) -> None:
        """Until the head of the answer has come, which the first piece proves."""
        while not self.pieces and not self.is_whole:
            if self.is_reset:
                raise Interrupted("connection reset")
            await self.hear()

    async def body(self) -> bytes:
        """The whole body."""
        parts = []
        while part := await self.piece():
            parts.append(part)
        return b"".join(parts)

    def leave(self) -> None:
        """The client is done with it."""
        self.network.exchanges.pop(self, None)
        self.left.set()
        self.reset()


def _scope(
    method: str, path: str, query: Mapping[str, Any] | None, headers: Mapping[str, str]
) -> dict[str, Any]:
    """A request as a server tells its application of it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": urlencode(query or {}).encode(),
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }


def _pieces(body: bytes, count: int, *, is_cut: bool = False) -> deque[dict[str, Any]]:
    """A body as the application receives it."""
    size = max(1, -(-len(body) // count))
    parts = [body[start : start + size] for start in range(0, len(body), size)] or [b""]
    return deque(
        {"type": "http.request", "body": part, "more_body": is_cut or place < len(parts)}
        for place, part in enumerate(parts, 1)
    )


@asynccontextmanager
async def opened(
    network: Network,
    method: str,
    path: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    pieces: int = 1,
    is_cut: bool = False,
) -> AsyncIterator[Exchange]:
    """One request without a client. Raises `Interrupted`. Who leaves the block hangs up."""
    one = Exchange(network)
    try:
        await network.cross()
        one.begin(method, path, None, body, headers, pieces=pieces, is_cut=is_cut)
        yield one
    finally:
        one.leave()


async def exchange(
    network: Network,
    method: str,
    path: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    pieces: int = 1,
) -> tuple[int, dict[str, str], bytes]:
    """One request and its whole answer: (status, headers, body).

    Raises `Interrupted`. Who cancels it hangs up.
    """
    async with opened(network, method, path, body, headers, pieces=pieces) as one:
        content = await one.body()
    return one.status, one.headers, content


class _Response:
    """As much of a client's response as `StreamReader` reads."""

    def __init__(self, exchange: Exchange) -> None:
        self.status = exchange.status
        self.headers = _Headers(exchange.headers)
        self.content = self
        self._exchange = exchange

    async def readany(self) -> bytes:
        """The next piece."""
        return await self._exchange.piece()


class _Headers:
    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = {name.lower(): value for name, value in headers.items()}

    def get(self, name: str, default: str) -> str:
        """A header, whatever its case."""
        return self._headers.get(name.lower(), default)

    def __getitem__(self, name: str) -> str:
        return self._headers[name.lower()]


class SimTransport(Transport):
    """The client's transport on a `Network`."""

    def __init__(
        self, network: Network, tenant: str, unreachable_after_s: float, rng: random.Random
    ) -> None:
        super().__init__("http://dispatcher", tenant, unreachable_after_s, rng)
        self._network = network

    def open(self) -> None:
        """There is nothing to open."""

    async def close(self) -> None:
        """There is nothing to close."""

    async def _try(self, method: str, path: str, **request: Any) -> tuple[Any, bytes]:
        data = request.get("data")
        body = data.read() if isinstance(data, io.IOBase) else data
        headers = {name.lower(): value for name, value in request["headers"].items()}
        exchange = Exchange(self._network)
        try:
            await self._network.cross()
            exchange.begin(method, path, request.get("params"), body, headers)
            content = await exchange.body()
        finally:
            exchange.leave()
        if exchange.status >= FIRST_ERROR:
            raise refused(exchange.status, content)
        return _Response(exchange), content

    @asynccontextmanager
    async def stream(
        self, path: str, query: Mapping[str, Any], *, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[Any]:
        """One try at a stream."""
        exchange = Exchange(self._network)
        try:
            await self._network.cross()
            lines = {_TENANT: self._tenant, **(headers or {})}
            exchange.begin("GET", path, query, None, lines)
            await exchange.started()
            if exchange.status >= FIRST_ERROR:
                raise refused(exchange.status, await exchange.body())
            yield _Response(exchange)
        finally:
            exchange.leave()
