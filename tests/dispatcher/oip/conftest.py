"""Fixtures of the Open Inference Protocol's tests."""

from collections.abc import AsyncIterator

import pytest
from oip_rig import EchoCar, Oip, oip
from service_rig import House


@pytest.fixture
async def front(house: House) -> AsyncIterator[Oip]:
    """`/v2`, without any car."""
    async with oip(house) as opened:
        yield opened


@pytest.fixture
async def echo(front: Oip) -> AsyncIterator[EchoCar]:
    """A car for `front`."""
    async with EchoCar(front.house.broker, "car-1", takes=False) as car:
        await front.house.until(
            lambda: bool(front.house.service.core.fleet.counts()[0].get("ready"))
        )
        yield car
