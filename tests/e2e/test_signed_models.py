"""From an empty folder to a car that runs signed packages only, as docs/how-to has it."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from services import FourProcesses, four_processes

from edge_runtime.client import EdgeClient
from edge_runtime.contract.http import ItemInput
from edge_runtime.contract.tensors import from_numpy
from edge_runtime.vehicle.models.importers.synthetic import write_synthetic

WAIT_S = 90.0


def models(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "edge_runtime", "models", *arguments],
        cwd=folder,
        env={**os.environ, "EDGE_RUNTIME_PASSPHRASE": "of this test"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def item(*shape: int) -> ItemInput:
    tensor = from_numpy("x", np.ones(shape, np.float32))
    return ItemInput(media_type="application/x-msgpack", data=msgspec.msgpack.encode([tensor]))


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    while True:
        if await condition():
            return
        await asyncio.sleep(0.1)


async def use(four: FourProcesses, signed: str, unsigned: str) -> None:
    async with EdgeClient(four.url) as client, asyncio.timeout(WAIT_S):

        async def is_signed() -> bool:
            return signed in {model.digest for model in await client.models()}

        async def is_refused() -> bool:
            return "refused_model_invalid" in (await client.health()).counters

        await until(is_signed)  # the dispatcher has to do that first
        results = [result async for result in client.submit(signed, [item(1)])]
        assert [result.ok for result in results] == [True]
        job = await client.submit(unsigned, [item(1, 160)])
        await until(is_refused)
        attempts = await client.attempts(job.job)
        assert all(attempt.items_done == 0 for attempt in attempts)


@pytest.mark.timeout(2 * WAIT_S)
async def test_a_car_with_a_root_runs_what_is_published_and_nothing_else(tmp_path: Path) -> None:
    write_synthetic("noop", tmp_path / "sources")
    unsigned = write_synthetic("chain", tmp_path / "models")
    first_root = models(tmp_path, "init-repository", "--root-keys=2", "--root-threshold=2")
    shutil.copyfile(tmp_path / first_root, tmp_path / "root.json")
    models(tmp_path, "add-publisher", "acme")
    online = tmp_path / "online-keys"
    online.mkdir()
    for role in ("snapshot", "timestamp"):
        (key,) = (tmp_path / "model-keys").glob(f"{role}.*.pem")
        key.rename(online / key.name)
    digest, name, version, publisher = models(
        tmp_path, "publish", "sources/noop", "--publisher=acme"
    ).split()
    assert (name, version, publisher) == ("noop", "1", "acme")
    assert models(tmp_path, "published") == "", "the online keys are the dispatcher's"
    with four_processes(
        tmp_path,
        tmp_path / "models",
        cars=("car-1",),
        for_dispatcher=(
            f"--repository={tmp_path / 'model-repository'}",
            f"--repository-keys={online}",
        ),
        for_cars=(f"--models-root={tmp_path / 'root.json'}",),
    ) as four:
        await use(four, digest, unsigned.digest)
        (car,) = four.cars
        assert "not_published" in car.log.read_text()
        assert car.stop() == 0
    assert digest in models(tmp_path, "published")
    mark = tmp_path / "car-1" / "packages" / digest / "trust.json"
    assert b'"acme"' in mark.read_bytes()
