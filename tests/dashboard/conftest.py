"""A dispatcher with its dashboard on an ephemeral port, over a memory broker."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from brokers import free_port
from dashboard_rig import Watched

from edge_runtime.bus import BusSettings, MemoryBroker, MemoryBus
from edge_runtime.dispatcher.api import build_app, serve
from edge_runtime.dispatcher.dashboard import mount_dashboard
from edge_runtime.dispatcher.desk import FrontDesk
from edge_runtime.dispatcher.service import DispatcherService, DispatcherSettings
from edge_runtime.dispatcher.storage import SqliteStore
from edge_runtime.vehicle.models.importers.synthetic import write_synthetic


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_synthetic("noop", folder)
    return folder


@pytest.fixture
async def watched(tmp_path: Path, models_dir: Path) -> AsyncIterator[Watched]:
    broker = MemoryBroker()

    def open_bus(settings: BusSettings) -> MemoryBus:
        return MemoryBus(settings, broker)

    settings = DispatcherSettings("memory://", models_dir=models_dir)
    store = SqliteStore(tmp_path / "store.db")
    async with DispatcherService(settings, store, open_bus) as service:
        await service.bus_tried.wait()
        desk = FrontDesk(service)
        api = build_app(desk)
        picture = mount_dashboard(api, service, desk)
        server = await serve(api, port=0)
        try:
            async with aiohttp.ClientSession() as session:
                yield Watched(service, desk, picture, server, broker, session)
        finally:
            await server.close()


@pytest.fixture
def unused_tcp_url() -> str:
    return f"http://127.0.0.1:{free_port()}"
