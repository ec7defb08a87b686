"""A dispatcher with objects: real service, store, sockets."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from objects_cars import Garage
from objects_house import ObjectsHouse, open_house

from edge_runtime.bus import MemoryBroker
from edge_runtime.vehicle.models.importers.synthetic import write_synthetic


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    write_synthetic("noop", folder)
    return folder


@pytest.fixture
def garage(tmp_path: Path, broker: MemoryBroker) -> Garage:
    return Garage(tmp_path, broker)


@pytest.fixture
async def house(tmp_path: Path, broker: MemoryBroker, models: Path) -> AsyncIterator[ObjectsHouse]:
    async with open_house(tmp_path, broker, models) as opened:
        yield opened
