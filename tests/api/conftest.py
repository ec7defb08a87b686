"""Fixtures of the API's tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from memory_front import MemoryFront
from serving import Served, served


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Served]:
    async with served(MemoryFront(), backup_dir=tmp_path / "backups") as running:
        yield running
