"""A dispatcher that unmodified OpenAI clients speak to; the car is scripted."""

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "dispatcher"))

from openai_house import BatchHouse, batch_house, write_talkers

from edge_runtime.bus import MemoryBroker

OpenBatchHouse = Callable[[], AbstractAsyncContextManager[BatchHouse]]


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def open_house(tmp_path: Path, broker: MemoryBroker) -> OpenBatchHouse:
    """`async with open_house() as house`: the same store and files each time."""
    models = tmp_path / "models"
    models.mkdir()
    write_talkers(models)

    @asynccontextmanager
    async def opened() -> AsyncIterator[BatchHouse]:
        async with batch_house(tmp_path, models, broker) as house:
            yield house

    return opened


@pytest.fixture
async def house(open_house: OpenBatchHouse) -> AsyncIterator[BatchHouse]:
    async with open_house() as opened:
        yield opened
