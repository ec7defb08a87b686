"""What tests of accounts share: a running dispatcher, clients with keys, bare requests."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from edge_runtime.client import EdgeClient
from edge_runtime.contract.http import ItemInput
from edge_runtime.contract.tensors import Tensor
from edge_runtime.dispatcher.api import Door, HttpServer
from edge_runtime.dispatcher.service import DispatcherService

ITEM = ItemInput(
    data=msgspec.msgpack.encode([Tensor(name="x", datatype="FP32", shape=(1,), data=bytes(4))])
)


@dataclass
class Guarded:
    service: DispatcherService
    door: Door
    server: HttpServer

    def client(self, key: str | None = None, tenant: str = "default") -> EdgeClient:
        return EdgeClient(self.server.url, tenant, api_key=key, unreachable_after_s=0.0)

    async def make_key(self, tenant: str, *, by: str | None = None, operator: bool = False) -> str:
        async with self.client(by) as client:
            return (await client.create_key(tenant, is_operator=operator)).key

    async def ask(
        self, method: str, path: str, *, body: Any = None, **headers: str
    ) -> tuple[int, Any, Mapping[str, str]]:
        """Status, decoded JSON body and headers of one bare request."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with (
            asyncio.timeout(20),
            aiohttp.ClientSession() as session,
            session.request(method, self.server.url + path, json=body, headers=named) as response,
        ):
            data = await response.read()
            decoded = msgspec.json.decode(data) if data else None
            return response.status, decoded, response.headers.copy()
