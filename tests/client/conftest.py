"""The client's tests share the API's in-memory front and the dispatcher's scripted car."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "api"))
sys.path.append(str(Path(__file__).parent.parent / "dispatcher"))

from memory_front import MemoryFront
from serving import Served, served

from edge_runtime.client import EdgeClient


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Served]:
    async with served(MemoryFront(), backup_dir=tmp_path) as running:
        yield running


@pytest.fixture
async def client(api: Served) -> AsyncIterator[EdgeClient]:
    async with EdgeClient(api.server.url, unreachable_after_s=20.0) as opened:
        yield opened
