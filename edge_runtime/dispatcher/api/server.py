"""The API on a socket: uvicorn inside the dispatcher's own event loop.

Invariants
- Loopback only without accounts, unless told otherwise.
- No signal handler is installed; the dispatcher decides when to stop.
- How many connections there may be, and how long without a request, is `connections`' to say.
- `close` returns with no task and no socket left: streams end, answers in the making get
  `HTTP_SHUTDOWN_S`, what still does not read is dropped.
"""

import asyncio
import contextlib
import functools
import ipaddress
import socket
from collections.abc import Iterator
from typing import cast

import structlog
import uvicorn

from edge_runtime.contract import limits
from edge_runtime.contract.errors import ConfigError
from edge_runtime.dispatcher.api.app import Api
from edge_runtime.dispatcher.api.connections import Connection, Connections

_log = structlog.get_logger(__name__)

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8080


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, and with an event for "it listens"."""

    def __init__(self, config: uvicorn.Config, bounds: Connections) -> None:
        super().__init__(config)
        self.bounds = bounds
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


class HttpServer:
    """A running API. `port` is the one it listens on, also where 0 was asked for."""

    def __init__(
        self, api: Api, server: _Server, task: asyncio.Task[None], host: str, port: int
    ) -> None:
        self._api = api
        self._server = server
        self._task = task
        self.host = host
        self.port = port

    @property
    def url(self) -> str:
        """Where to reach it from this machine."""
        return (
            f"http://[{self.host}]:{self.port}"
            if ":" in self.host
            else (f"http://{self.host}:{self.port}")
        )

    async def close(self) -> None:
        """Stop listening, end streams, wait for answers in the making. Idempotent."""
        self._api.end_streams()
        self._server.should_exit = True
        await asyncio.shield(self._task)
        for connection in list(self._server.server_state.connections):
            # Its peer reads nothing: closing in order would wait for ever.
            connection.transport.abort()
        self._server.bounds.close()
        _log.info("http_closed", port=self.port)


async def serve(
    app: Api,
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    *,
    allow_remote: bool = False,
    access_log: bool = False,
    connections_most: int | None = None,
) -> HttpServer:
    """Listen and answer until closed, on at most `connections_most` connections at once.

    None are as many as the process may have (`connections.connections_max`).
    `ConfigError` where the address cannot be used, or is not loopback without `allow_remote`.
    """
    listener = await _listen(host, port, allow_remote=allow_remote)
    bound_port: int = listener.getsockname()[1]
    app.is_remote = allow_remote
    connections = Connections(app.counters, connections_most)
    config = uvicorn.Config(
        app,
        loop="none",
        http=cast("type[asyncio.Protocol]", functools.partial(Connection, connections)),
        backlog=limits.HTTP_ACCEPTS_A_TURN,
        ws="none",
        lifespan="off",
        access_log=access_log,
        log_config=None,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=limits.HTTP_SHUTDOWN_S,
    )
    server = _Server(config, connections)
    task = asyncio.create_task(server.serve(sockets=[listener]), name="http-server")
    listening = asyncio.create_task(server.listening.wait())
    await asyncio.wait({task, listening}, return_when=asyncio.FIRST_COMPLETED)
    if listening.done():
        # To asyncio `backlog` is also how many it accepts before it looks at any of them.
        listener.listen(limits.HTTP_BACKLOG)
    else:
        listening.cancel()
        listener.close()
        await task
        raise ConfigError(f"cannot serve HTTP on {host}:{port}")
    _log.info("http_listening", host=host, port=bound_port, remote=allow_remote)
    return HttpServer(app, server, task, host, bound_port)


async def _listen(host: str, port: int, *, allow_remote: bool) -> socket.socket:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"http host {host!r} has no address: {error.strerror}") from None
    family, kind, protocol, _, address = found[0]
    if not (allow_remote or ipaddress.ip_address(address[0]).is_loopback):
        raise ConfigError(
            f"http host {host!r} is not loopback, and there are no accounts: make an operator's "
            "key first (edge-runtime accounts create --operator), allow remote callers "
            "explicitly, or use 127.0.0.1"
        )
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another port"
        ) from None
    return listener
