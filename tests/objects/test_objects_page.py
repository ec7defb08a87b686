"""The commands of docs/reference/objects.md, as they stand there."""

import asyncio
import re
from pathlib import Path

import msgspec
import pytest
from objects_cars import Garage, sum_in, vector, write_sum
from objects_house import ObjectsHouse

from edge_runtime.bus import MemoryBroker

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "objects.md"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_sum(tmp_path / "models")
    return tmp_path / "models"


async def test_the_commands_of_the_page_work(
    house: ObjectsHouse, broker: MemoryBroker, tmp_path: Path
) -> None:
    (commands,) = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "input.bin").write_bytes(vector(50_000))
    async with asyncio.timeout(60), Garage(tmp_path, broker).car():
        shell = await asyncio.create_subprocess_exec(
            "bash",
            "-euo",
            "pipefail",
            "-c",
            commands,
            cwd=tmp_path,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "URL": house.server.url},
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await shell.communicate()
        assert shell.returncode == 0
        job = msgspec.json.decode(output)["job"]
        async with house.client() as client:
            (result,) = [one async for one in client.results(job)]
        assert sum_in(result.output) == 50_000.0
