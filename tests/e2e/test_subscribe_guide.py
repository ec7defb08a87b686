"""docs/how-to/subscribe.md: its commands, its messages and its program, run as they stand there."""

import asyncio
import json
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import msgspec
import pytest
from services import four_processes
from subscribe_rig import noop_items

from edge_runtime.client import EdgeClient
from edge_runtime.contract import limits
from edge_runtime.contract.messages import FetchSince, JobResults, RequestRefused
from edge_runtime.contract.reasons import RequestRefusal
from edge_runtime.contract.topics import Topics
from edge_runtime.vehicle.models.importers.synthetic import write_synthetic

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "how-to" / "subscribe.md").read_text()


def snippets(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


def commands(containing: str) -> list[list[str]]:
    lines = [line for block in snippets("sh") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if containing in line]


def test_the_commands_for_accounts(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "edge_runtime"]
    subprocess.run([*run, "pki", "init", "house"], check=True, cwd=tmp_path, capture_output=True)
    told = [
        subprocess.run(
            [*run, *words[1:]], check=True, cwd=tmp_path, capture_output=True, text=True
        ).stdout
        for words in commands("edge-runtime pki tenant")
    ]
    add, add_reader, listed, removed = told
    assert add.startswith("user      tenant-acme\npassword  ")
    assert add_reader.startswith("user      tenant-acme.screen\npassword  ")
    assert listed == "tenant-acme\ntenant-acme.screen\n"
    assert removed == "tenant-acme.screen: removed\n"


def test_the_messages_are_those_of_the_contract() -> None:
    request, answer, refusal = (
        msgspec.json.decode(text, type=kind)
        for text, kind in zip(
            snippets("json"), (FetchSince, JobResults, RequestRefused), strict=True
        )
    )
    assert Topics().is_for_answers("acme", request.respond_to)
    assert (answer.since, request.cursor, refusal.since) == (41, 41, 41)
    for vector in (answer, refusal):
        assert set(json.loads(msgspec.json.encode(vector))) >= {"type", "job", "since"}


def test_the_figures_and_reasons_are_those_of_the_contract() -> None:
    assert f"{limits.REQUESTS_PER_S} requests a second, or {limits.REQUESTS_BURST} at once" in GUIDE
    assert f"over {limits.REQUEST_MAX_BYTES // 1024} KiB" in GUIDE
    assert f"No answer after {limits.SUBSCRIPTION_ANSWER_S:g} s" in GUIDE
    for reason in RequestRefusal:
        assert f"`{reason.value}`" in GUIDE or reason is RequestRefusal.UNKNOWN


def test_what_the_guide_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", GUIDE)
    assert links
    for link in links:
        assert (ROOT / "docs" / "how-to" / link).exists(), link


@pytest.mark.timeout(180)
def test_the_programs_run_as_they_stand_there(tmp_path: Path) -> None:
    """The SDK's, and the example's command; only the port is another."""
    write_synthetic("noop", tmp_path / "models")
    (program,) = snippets("python")
    (example,) = commands("python examples/subscribe/python/subscribe.py")
    with four_processes(tmp_path, tmp_path / "models", cars=("car-1",)) as four:
        port = four.broker.arguments[1].removeprefix("--port=")

        async def submit() -> str:
            async with EdgeClient(four.url) as client:
                job = (await client.submit("noop", noop_items(12))).job
                async for _ in client.results(job):
                    pass
                return job

        job = asyncio.run(submit())
        (tmp_path / "program.py").write_text(textwrap.dedent(program).replace("1883", port))
        told = read_lines([sys.executable, "-u", "program.py"], tmp_path, 13)
        assert [line.split()[0] for line in told[:12]] == [job] * 12
        assert "JobStatus" in told[12]
        (tmp_path / "cursors.json").unlink()
        words = [word.replace("1883", port) for word in example[1:]]
        words[0] = str(ROOT / words[0])
        lines = [json.loads(line) for line in read_lines([sys.executable, *words], tmp_path, 13)]
        assert [line["cursor"] for line in lines[:12]] == list(range(1, 13))
        assert lines[12]["state"] == "done"


def read_lines(command: list[str], folder: Path, count: int) -> list[str]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(count)]
        process.kill()
    return lines
