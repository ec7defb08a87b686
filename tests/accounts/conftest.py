"""A dispatcher with a door: real service, store, sockets; the car is scripted."""

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "dispatcher"))

from guarded_house import Guarded

from edge_runtime.bus import BusSettings, MemoryBroker, MemoryBus
from edge_runtime.dispatcher.api import build_app, open_door, serve
from edge_runtime.dispatcher.desk import FrontDesk
from edge_runtime.dispatcher.service import DispatcherService, DispatcherSettings
from edge_runtime.dispatcher.storage import SqliteStore
from edge_runtime.vehicle.models.importers.synthetic import write_synthetic

OpenHouse = Callable[..., AbstractAsyncContextManager[Guarded]]


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def open_guarded(tmp_path: Path, broker: MemoryBroker) -> OpenHouse:
    """`async with open_guarded() as house`: the same store each time."""
    models = tmp_path / "models"
    models.mkdir()
    write_synthetic("noop", models)

    @asynccontextmanager
    async def opened() -> AsyncIterator[Guarded]:
        def open_bus(settings: BusSettings) -> MemoryBus:
            return MemoryBus(settings, broker)

        store = SqliteStore(tmp_path / "store.db")
        settings = DispatcherSettings("memory://", models_dir=models)
        async with DispatcherService(settings, store, open_bus) as service:
            door = await open_door(service)
            app = build_app(FrontDesk(service, quotas=door.quotas), door=door)
            server = await serve(app, port=0)
            try:
                yield Guarded(service, door, server)
            finally:
                await server.close()

    return opened


@pytest.fixture
async def house(open_guarded: OpenHouse) -> AsyncIterator[Guarded]:
    async with open_guarded() as opened:
        yield opened
