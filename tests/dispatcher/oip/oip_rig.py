"""`/v2` on a socket, over a real dispatcher on a memory broker, with a car that echoes tensors."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
from scripted_car import ScriptedCar
from service_rig import House

from edge_runtime.contract.messages import Chunk, Ending, ItemDone, ItemResult, UnitOffer
from edge_runtime.contract.reasons import Outcome
from edge_runtime.contract.tensors import Tensor
from edge_runtime.dispatcher.api import build_app, serve
from edge_runtime.dispatcher.api.oip import OpenInference
from edge_runtime.dispatcher.tracing import traced

NOOP = "/v2/models/noop/infer"
HEADER_LENGTH = "Inference-Header-Content-Length"
_tensors = msgspec.msgpack.Decoder(list[Tensor])


class EchoCar(ScriptedCar):
    """Gives back each item's `x` as `y`; `finish` decides what it answers where that is set."""

    def finished(self, unit: UnitOffer) -> Chunk:
        results: list[ItemResult] = []
        for item in unit.items:
            (x,) = _tensors.decode(item.data)
            output = msgspec.msgpack.encode([Tensor("y", x.datatype, x.shape, x.data)])
            results.append(ItemDone(index=item.index, output=msgspec.Raw(output), busy_ms=0.1))
        return self.chunk(unit, *results)

    def chunk(self, unit: UnitOffer, *results: ItemResult) -> Chunk:
        return Chunk(
            job=unit.job,
            unit=unit.unit,
            fence=unit.fence,
            model=unit.model,
            seq=0,
            items=results,
            busy_ms=0.1,
            ending=Ending(outcome=Outcome.COMPLETED),
        )


@dataclass
class Oip:
    house: House
    host: str
    port: int
    session: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return f"{self.host}:{self.port}"

    async def call(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.request(
            method, f"http://{self.url}{path}", data=body, headers=given
        ) as answer:
            said = {name.lower(): value for name, value in answer.headers.items()}
            return answer.status, said, await answer.read()

    async def infer(
        self, request: object, path: str = NOOP, **headers: str
    ) -> tuple[int, dict[str, Any]]:
        body = request if isinstance(request, bytes) else json.dumps(request).encode()
        status, _, answer = await self.call("POST", path, body, **headers)
        return status, json.loads(answer)

    async def raw(self, data: bytes, *, half_closes: bool = False) -> bytes:
        """What the server says to these bytes until it closes, or has answered once."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            writer.write(data)
            if half_closes:
                writer.write_eof()
            await writer.drain()
            async with asyncio.timeout(10):
                return await reader.read(65_536)
        finally:
            writer.close()

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=10)


def x_input(*values: float, **more: Any) -> dict[str, Any]:
    return {
        "inputs": [{"name": "x", "shape": [len(values)], "datatype": "FP32", "data": list(values)}],
        **more,
    }


@asynccontextmanager
async def oip(house: House) -> AsyncIterator[Oip]:
    app = build_app(house.desk, mounts={"v2": OpenInference(house.service)})
    app.around = traced
    server = await serve(app, port=0)
    try:
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            yield Oip(house, server.host, server.port, session)
    finally:
        await server.close()
