"""SIGTERM to a real dispatcher with work on a real car: it drains, and another life goes on."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import msgspec
import numpy as np
from services import FourProcesses, four_processes

from edge_runtime.client import EdgeClient
from edge_runtime.contract.http import ItemInput
from edge_runtime.contract.reasons import Availability
from edge_runtime.contract.tensors import from_numpy
from edge_runtime.vehicle.models.importers.synthetic import MLP_WIDTH, write_synthetic

ITEMS = 1_200
EXIT_MAX_S = 30.0


def items() -> list[ItemInput]:
    data = msgspec.msgpack.encode([from_numpy("x", np.ones((1, MLP_WIDTH), np.float32))])
    return [ItemInput(media_type="application/x-msgpack", data=data)] * ITEMS


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110 - another process's states have no event here
            await asyncio.sleep(0.02)


async def stop_in_the_middle(four: FourProcesses) -> None:
    async with EdgeClient(four.url) as client, aiohttp.ClientSession() as http:

        async def is_car_ready() -> bool:
            cars = (await client.fleet()).cars
            return any(car.availability is Availability.READY for car in cars)

        await until(is_car_ready)
        job = await client.submit("mlp5ms", items())

        async def has_results() -> bool:
            return (await client.status(job.job)).done > 0

        await until(has_results)
        process = four.dispatcher.process
        assert process is not None
        asked_s = time.monotonic()
        process.send_signal(signal.SIGTERM)

        async def is_draining() -> bool:
            async with http.get(f"{four.url}/readyz") as answer:
                health = await answer.json()
                return answer.status == 503 and health["draining"] is True

        await until(is_draining, 10)
        body = {"model": "mlp5ms", "items": [{"text": "x"}]}
        async with http.post(f"{four.url}/v1/jobs", json=body) as refused:
            assert refused.status == 503
            assert refused.headers["Retry-After"]
            assert (await refused.json())["code"] == "draining"
        code = await asyncio.to_thread(process.wait, EXIT_MAX_S)
        assert code == 0, four.dispatcher.log.read_text()[-2_000:]
        assert time.monotonic() - asked_s < EXIT_MAX_S
        log = four.dispatcher.log.read_text()
        assert '"dispatcher_drained"' in log
        assert '"units_left":0' in log, "what the car had in hand was waited for"
        four.dispatcher.start()
        results = [result.item async for result in client.results(job.job)]
        assert sorted(results) == list(range(ITEMS))


async def test_a_dispatcher_drains_and_its_next_life_goes_on(tmp_path: Path) -> None:
    write_synthetic("mlp5ms", tmp_path / "models")
    with four_processes(tmp_path, tmp_path / "models", cars=("car-1",)) as four:
        await stop_in_the_middle(four)
