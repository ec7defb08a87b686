"""`edge-runtime top` against a running dispatcher: for scripts, on a terminal, and without one."""

import asyncio
import os
import pty
import signal
import sys
from typing import Any

import msgspec
import pytest
from dashboard_rig import Watched

from edge_runtime.cli.commands.top import spark
from edge_runtime.contract.overview import Overview
from edge_runtime.contract.reasons import Availability, HoldReason

WAIT_S = 30


async def top(*arguments: str, **how: Any) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "edge_runtime", "top", *arguments, **how
    )


async def finished(*arguments: str) -> tuple[int, str, str]:
    process = await top(*arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    out, err = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_one_picture_without_a_terminal(watched: Watched) -> None:
    watched.put_car("hot", Availability.HOLD, HoldReason.COMPUTE_HOT)
    job = await watched.submit(3, tenant="anna")
    code, out, err = await finished("--once", f"--url={watched.server.url}")
    assert (code, err) == (0, "")
    for said in ("compute hot", job, "anna", "noop@1", "1 cars, 1 open jobs"):
        assert said in out
    assert "\x1b" not in out


async def test_finished_work_is_everybodys_and_each_tenants(watched: Watched) -> None:
    await watched.finish(anna=40, bert=2)
    code, out, err = await finished("--once", f"--url={watched.server.url}")
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "10.5" in lines["everybody's"]
    assert "at most 4e-05 %, 2 not known" in lines["everybody's"]
    assert "rapl" in lines["anna"]
    assert "0.02 Wh" in lines["bert"]
    assert lines["bert"].rstrip().endswith("not known")


async def test_json_is_one_line_of_everything(watched: Watched) -> None:
    watched.put_car("one")
    code, out, _ = await finished("--once", "--json", f"--url={watched.server.url}")
    assert code == 0
    overview = msgspec.json.decode(out, type=Overview)
    assert (overview.cars, len(overview.cells)) == (1, 256)
    assert out.count("\n") == 1


async def test_a_dispatcher_that_is_away_is_one_line_and_a_code(unused_tcp_url: str) -> None:
    code, out, err = await finished("--once", f"--url={unused_tcp_url}")
    assert (code, out) == (3, "")
    assert err.count("\n") == 1
    assert unused_tcp_url in err


async def test_a_wrong_interval_is_refused(watched: Watched) -> None:
    code, _, err = await finished("--interval-s=0", f"--url={watched.server.url}")
    assert code == 2
    assert "--interval-s" in err


async def test_on_a_terminal_it_stays_and_says_that_the_dispatcher_is_away(
    watched: Watched,
) -> None:
    ours, theirs = pty.openpty()
    process = await top(
        "--interval-s=0.1",
        f"--url={watched.server.url}",
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
    )
    os.close(theirs)
    screen = Screen(ours)
    try:
        await screen.until(b"open jobs")
        watched.put_car("late")
        await screen.until(b"1 cars")
        await watched.server.close()
        await screen.until(b"old by")
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), WAIT_S) == 130
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        screen.close()


class Screen:
    """What a process writes to a terminal."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self._text = b""
        self._news = asyncio.Event()
        asyncio.get_running_loop().add_reader(terminal, self._read)

    def _read(self) -> None:
        try:
            self._text += os.read(self._terminal, 65_536)
        except OSError:  # the process has closed its end
            asyncio.get_running_loop().remove_reader(self._terminal)
        self._news.set()

    async def until(self, text: bytes) -> None:
        async with asyncio.timeout(WAIT_S):
            while text not in self._text:
                self._news.clear()
                await self._news.wait()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._terminal)
        os.close(self._terminal)


@pytest.mark.parametrize(
    ("values", "line"), [([], ""), ([0, 0], "  "), ([0, 1, 100], " ▁█"), ([5], "█")]
)
def test_something_is_never_drawn_as_nothing(values: list[float], line: str) -> None:
    assert spark(values) == line
