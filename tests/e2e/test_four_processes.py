"""Broker, dispatcher and two cars, started by hand: any of them may be killed, nothing is lost."""

import asyncio
from pathlib import Path

import msgspec
import numpy as np
import pytest
from services import FourProcesses, Service, four_processes

from edge_runtime.client import EdgeClient, ItemResult
from edge_runtime.contract.http import ItemInput
from edge_runtime.contract.reasons import Availability
from edge_runtime.contract.tensors import from_numpy
from edge_runtime.dispatcher.storage.files import check_file
from edge_runtime.vehicle.models.importers.synthetic import MLP_WIDTH, write_synthetic

ITEMS = 1_500
READY_S = 60.0
DONE_S = 100.0


def tensor_items(count: int) -> list[ItemInput]:
    """Each item another constant, so that a result can be told from its neighbour's."""
    arrays = (np.full((1, MLP_WIDTH), n / count, np.float32) for n in range(count))
    return [
        ItemInput(
            media_type="application/x-msgpack",
            data=msgspec.msgpack.encode([from_numpy("x", array)]),
        )
        for array in arrays
    ]


async def until_ready(client: EdgeClient, cars: int) -> None:
    async with asyncio.timeout(READY_S):
        while True:
            fleet = await client.fleet()
            able = [car for car in fleet.cars if car.online]
            if sum(c.availability is Availability.READY for c in able) == cars:
                return
            await asyncio.sleep(0.05)


def crash(service: Service) -> None:
    assert service.is_running, service.log.read_text()[-2_000:]
    service.kill()
    service.start()


async def run_with_crashes(four: FourProcesses) -> list[ItemResult]:
    """Every result of one job, in the middle of which each of the four is killed once."""
    victims = {
        ITEMS * share // 100: service
        for share, service in zip((10, 30, 50, 70), four.all, strict=True)
    }
    results: list[ItemResult] = []
    async with EdgeClient(four.url) as client:
        await until_ready(client, len(four.cars))
        async for result in client.submit("mlp5ms", tensor_items(ITEMS)):
            results.append(result)
            if victim := victims.pop(len(results), None):
                crash(victim)
        (status,) = await client.jobs()
        assert (status.done, status.failed, status.last_cursor) == (ITEMS, 0, ITEMS)
        await until_ready(client, len(four.cars))  # who is still starting has no handler of SIGTERM
    assert not victims
    return results


@pytest.mark.timeout(READY_S + DONE_S)
async def test_killing_each_of_the_four_loses_nothing(tmp_path: Path) -> None:
    models = tmp_path / "models"
    write_synthetic("mlp5ms", models)
    with four_processes(tmp_path, models) as four:
        results = await run_with_crashes(four)
        for service in four.all:
            assert service.stop() == 0, service.log.read_text()[-2_000:]
        assert check_file(four.store) == []
    assert sorted(result.item for result in results) == list(range(ITEMS))
    assert [result.cursor for result in results] == list(range(1, ITEMS + 1))
    assert all(result.ok for result in results)
    assert {result.vehicle for result in results} == {"car-1", "car-2"}
