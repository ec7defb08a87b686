"""An API over a MemoryFront on an ephemeral port, with an aiohttp session."""

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from memory_front import MemoryFront

from edge_runtime.dispatcher.api import Api, HttpServer, build_app, serve

WAIT_S = 10.0
MSGPACK = "application/x-msgpack"


@dataclass
class Served:
    front: MemoryFront
    api: Api
    server: HttpServer
    session: aiohttp.ClientSession

    def url(self, path: str) -> str:
        return f"{self.server.url}{path}"

    async def call(
        self, method: str, path: str, *, body: Any = None, status: int = 200, **headers: str
    ) -> Any:
        """JSON both ways; asserts the status; the decoded body."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.request(
            method, self.url(path), json=body, headers=named
        ) as response:
            data = await response.read()
            assert response.status == status, data
            return msgspec.json.decode(data) if data else None

    async def send(self, data: bytes, path: str = "/v1/jobs", **headers: str) -> tuple[int, Any]:
        """POST raw bytes as JSON, or as the given Content-Type."""
        named = {"Content-Type": "application/json"}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        file = io.BytesIO(data)  # aiohttp warns of bytes over 1 MiB
        async with self.session.post(self.url(path), data=file, headers=named) as response:
            return response.status, msgspec.json.decode(await response.read())


@asynccontextmanager
async def served(
    front: MemoryFront, *, port: int = 0, backup_dir: Path | None = None
) -> AsyncIterator[Served]:
    api = build_app(front, backup_dir=backup_dir)
    server = await serve(api, port=port)
    try:
        async with aiohttp.ClientSession() as session:
            yield Served(front, api, server, session)
    finally:
        await server.close()


async def wait_until(predicate: Callable[[], bool | Awaitable[bool]]) -> None:
    """Let the loop turn until the predicate holds; TimeoutError after 10 s."""
    async with asyncio.timeout(WAIT_S):
        while True:
            found = predicate()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0)


def job(**fields: Any) -> dict[str, Any]:
    return {"model": "noop", "items": [{"text": "hello"}], **fields}
