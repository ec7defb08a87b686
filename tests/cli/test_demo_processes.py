"""The demo's processes end with it, however it ends."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from edge_runtime.cli.demo.processes import Child, ProcessEnded

PARENT = """
import asyncio, pathlib, sys
from edge_runtime.cli.demo.processes import Child
async def main():
    child = Child("broker", ["broker", "--port", sys.argv[1]], pathlib.Path(sys.argv[2]))
    await child.start()
    print(child.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def broker(port: int, folder: Path) -> Child:
    return Child("broker", ["broker", "--port", str(port)], folder / "broker.log")


async def until_logged(log: Path, word: str) -> None:
    await asyncio.to_thread(wait_until_logged, log, word)


def wait_until_logged(log: Path, word: str) -> None:
    deadline_s = time.monotonic() + 20
    while not (log.exists() and word in log.read_text()):
        assert time.monotonic() < deadline_s, f"{word} is not in {log}"
        time.sleep(0.02)


async def test_a_child_stops_on_request_and_starts_again(
    tmp_path: Path, free_port_of_test: int
) -> None:
    child = broker(free_port_of_test, tmp_path)
    await child.start()
    await until_logged(child.log, "broker_started")
    first = child.pid
    await child.kill()
    assert child.pid is None
    await child.start()
    assert child.pid not in {None, first}
    await child.stop()
    assert child.pid is None


async def test_a_child_that_ends_by_itself_is_an_error_that_quotes_its_log(tmp_path: Path) -> None:
    child = broker(0, tmp_path)
    await child.start()
    async with asyncio.timeout(20):
        assert await child.wait() == 2
    with pytest.raises(ProcessEnded, match="listen nowhere"):
        child.check()
    await child.stop()


async def test_a_child_dies_with_a_demo_that_is_killed(
    tmp_path: Path, free_port_of_test: int
) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PARENT,
        str(free_port_of_test),
        str(tmp_path / "broker.log"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert parent.stdout is not None
    child = psutil.Process(int(await parent.stdout.readline()))
    # Only once it runs Python of ours has it asked to die with its parent.
    await until_logged(tmp_path / "broker.log", "broker_started")
    os.kill(parent.pid, signal.SIGKILL)
    await parent.wait()
    gone, alive = await asyncio.to_thread(psutil.wait_procs, [child], 10)
    assert gone == [child]
    assert alive == []
