"""Jobs for the services in the container, sent from outside."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
import numpy as np

from edge_runtime.client import EdgeClient, ItemResult
from edge_runtime.contract.http import ItemInput
from edge_runtime.contract.reasons import Availability
from edge_runtime.contract.tensors import from_numpy
from edge_runtime.vehicle.models.importers.synthetic import MLP_WIDTH

MODEL = "mlp5ms"
WAIT_S = 120.0


def items_of(count: int) -> list[ItemInput]:
    rows = (np.full((1, MLP_WIDTH), n / count, np.float32) for n in range(count))
    return [
        ItemInput(
            media_type="application/x-msgpack",
            data=msgspec.msgpack.encode([from_numpy("x", row)]),
        )
        for row in rows
    ]


async def until_online(url: str, cars: int = 1) -> None:
    """Wait until so many cars are there and able to work (0: none is there at all)."""
    async with asyncio.timeout(WAIT_S), EdgeClient(url) as client:
        while True:
            fleet = await client.fleet()
            online = [car for car in fleet.cars if car.online]
            able = [car for car in online if car.availability is Availability.READY]
            if (len(able) if cars else len(online)) == cars:
                return
            await asyncio.sleep(0.05)


async def one_job(url: str, items: int) -> list[ItemResult]:
    """Every result of a job."""
    async with asyncio.timeout(WAIT_S), EdgeClient(url) as client:
        return [result async for result in client.submit(MODEL, items_of(items))]


@dataclass
class Submitted:
    """A job whose results are being read."""

    results: list[ItemResult] = field(default_factory=list)
    news: asyncio.Condition = field(default_factory=asyncio.Condition)
    reading: "asyncio.Task[None] | None" = None

    async def read(self, url: str, items: int) -> None:
        async with EdgeClient(url) as client:
            async for result in client.submit(MODEL, items_of(items)):
                async with self.news:
                    self.results.append(result)
                    self.news.notify_all()

    async def until_results(self, count: int) -> None:
        async with asyncio.timeout(WAIT_S), self.news:
            await self.news.wait_for(lambda: len(self.results) >= count)

    async def all_results(self) -> int:
        """Distinct items that ended well, once the job has ended."""
        assert self.reading is not None
        async with asyncio.timeout(WAIT_S):
            await self.reading
        assert len({result.cursor for result in self.results}) == len(self.results)
        return len({result.item for result in self.results if result.ok})


@asynccontextmanager
async def submitted(url: str, items: int) -> AsyncIterator[Submitted]:
    """A job of so many items of about 5 ms, read in the background."""
    job = Submitted()
    job.reading = asyncio.create_task(job.read(url, items))
    try:
        yield job
    finally:
        job.reading.cancel()
        await asyncio.gather(job.reading, return_exceptions=True)
