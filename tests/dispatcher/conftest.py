"""One dispatcher on a memory broker, for the tests of its shell."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from service_rig import House

from edge_runtime.bus import BusSettings, MemoryBroker, MemoryBus
from edge_runtime.dispatcher.service import DispatcherService, DispatcherSettings
from edge_runtime.dispatcher.storage import SqliteStore
from edge_runtime.vehicle.models.importers.synthetic import write_synthetic


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_synthetic("noop", folder)
    return folder


@pytest.fixture
def open_house(tmp_path: Path, models_dir: Path) -> Callable[..., object]:
    """`async with open_house(broker=…) as house`; the same store each time."""

    @asynccontextmanager
    async def opened(broker: MemoryBroker | None = None) -> AsyncIterator[House]:
        broker = broker or MemoryBroker()

        def open_bus(settings: BusSettings) -> MemoryBus:
            return MemoryBus(settings, broker)

        settings = DispatcherSettings("memory://", models_dir=models_dir)
        store = SqliteStore(tmp_path / "store.db")
        async with DispatcherService(settings, store, open_bus) as service:
            yield House(service, broker)

    return opened


@pytest.fixture
async def house(open_house: Callable[..., object]) -> AsyncIterator[House]:
    async with open_house() as opened:  # type: ignore[attr-defined]
        yield opened
