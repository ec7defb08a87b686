"""The examples of `examples/subscribe`, run as their users do, on a real Mosquitto over TLS."""

import asyncio
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from node_tools import node, node_modules
from subscribe_rig import TENANT, Stack, noop_items, submitted, subscribe_stack

from edge_runtime.pki.tenants import Account

EXAMPLES = Path(__file__).parents[2] / "examples" / "subscribe"
pytestmark = [pytest.mark.mosquitto, pytest.mark.timeout(180)]
Command = list[str]
Line = dict[str, Any]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with subscribe_stack(tmp_path_factory.mktemp("examples")) as running:
        yield running


@pytest.fixture(params=["python", "javascript"])
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Command:
    """How the example is started; its folder is a copy, with nothing of ours on the way."""
    folder = tmp_path / "example"
    shutil.copytree(EXAMPLES / request.param, folder, ignore=shutil.ignore_patterns("node_modules"))
    if request.param == "python":
        return [sys.executable, str(folder / "subscribe.py")]
    (folder / "node_modules").symlink_to(node_modules("examples/subscribe/javascript"))
    return [node(), str(folder / "subscribe.js")]


def arguments(stack: Stack, account: Account, *more: str) -> Command:
    return [stack.url(account), TENANT, "--ca", str(stack.ca), *more]


def lines_of(text: str) -> list[Line]:
    return [json.loads(line) for line in text.splitlines()]


def results_of(lines: list[Line], job: str) -> list[int]:
    return [line["cursor"] for line in lines if line.get("job") == job and "cursor" in line]


def read_until(process: subprocess.Popen[str], enough: Callable[[Line], bool]) -> list[Line]:
    """Lines up to the first one that is enough."""
    assert process.stdout is not None
    lines = []
    for text in process.stdout:
        lines.append(json.loads(text))
        if enough(lines[-1]):
            return lines
    raise AssertionError(f"it ended with {process.wait(10)} after {lines[-3:]}")


def test_one_job_is_read_to_its_end_with_its_failures(
    stack: Stack, program: Command, tmp_path: Path
) -> None:
    account = stack.add(TENANT, f"one-{len(stack.accounts)}")

    async def submit() -> str:
        async with stack.client() as client:
            return (await client.submit("noop", noop_items(40), deadline_s=0.001)).job

    failed, job = asyncio.run(submit()), asyncio.run(submitted(stack, 40))
    cursors = tmp_path / "cursors.json"
    started = [*program, *arguments(stack, account, "--job", job, "--cursors", str(cursors))]
    done = subprocess.run(
        started, capture_output=True, text=True, timeout=90, check=True, cwd=tmp_path
    )
    lines = lines_of(done.stdout)
    assert results_of(lines, job) == list(range(1, 41))
    assert (lines[-1]["state"], lines[-1]["last_cursor"]) == ("done", 40)
    assert json.loads(cursors.read_text()) == {job: 40}
    again = subprocess.run(
        started, capture_output=True, text=True, timeout=90, check=True, cwd=tmp_path
    )
    assert results_of(lines_of(again.stdout), job) == []
    lines = lines_of(
        subprocess.run(
            [*program, *arguments(stack, account, "--job", failed)],
            capture_output=True, text=True, timeout=90, check=True, cwd=tmp_path,
        ).stdout
    )  # fmt: skip
    assert results_of(lines, failed) == list(range(1, 41))
    assert {line["error"]["code"] for line in lines[:-1] if "error" in line} == {"deadline_passed"}
    assert lines[-1]["state"] == "expired"


def test_away_and_back_it_goes_on_where_it_was(
    stack: Stack, program: Command, tmp_path: Path
) -> None:
    """Killed in the middle; the dispatcher is killed meanwhile; one wildcard finds all jobs."""
    account = stack.add(TENANT, f"away-{len(stack.accounts)}")
    cursors = tmp_path / "cursors.json"
    started = [*program, *arguments(stack, account, "--cursors", str(cursors))]
    first_job = asyncio.run(submitted(stack, 1_500))
    with subprocess.Popen(started, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        before = read_until(
            process, lambda line: line.get("job") == first_job and line.get("cursor", 0) >= 100
        )
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        before += lines_of(process.stdout.read())
        assert process.wait(30) == 0
    stack.restart_dispatcher()
    second_job = asyncio.run(submitted(stack, 20))
    with subprocess.Popen(started, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        waiting = {first_job, second_job}

        def is_all(line: Line) -> bool:
            if line.get("state") == "done":
                waiting.discard(line["job"])
            return not waiting

        after = read_until(process, is_all)
        process.kill()
    assert results_of([*before, *after], first_job) == list(range(1, 1_501))
    assert results_of(after, second_job) == list(range(1, 21))


def test_a_deleted_job_ends_it(stack: Stack, program: Command, tmp_path: Path) -> None:
    account = stack.add(TENANT, f"deleted-{len(stack.accounts)}")
    command = [*program, *arguments(stack, account, "--job", "j0")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path
    )
    assert done.stdout == ""
