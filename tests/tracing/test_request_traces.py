"""One trace from the requester's HTTP call through the dispatcher and MQTT to the car's run."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
import pytest
from brokers import BrokerProcess, free_port
from traced_service import TracedService

from edge_runtime.client import EdgeClient
from edge_runtime.contract.http import ItemInput
from edge_runtime.contract.reasons import Availability
from edge_runtime.contract.tensors import from_numpy
from edge_runtime.vehicle.models.importers.synthetic import write_synthetic

CALLER_TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER_SPAN = "b7ad6b7169203331"
WAIT_S = 60.0


@pytest.fixture
def traced(tmp_path: Path, embedded_broker: BrokerProcess) -> Iterator[tuple[str, Path, Path]]:
    """The URL of a dispatcher with one car, and the files of their spans."""
    write_synthetic("noop", tmp_path / "models")
    (tmp_path / "policy.toml").write_text("dwell_s = 0.2\n[consent]\ngiven = true\nversion = 1\n")
    broker, port = embedded_broker.url(5), free_port()
    namespace = f"trace{port}"
    url = f"http://127.0.0.1:{port}"
    with ExitStack() as stack:
        dispatcher = TracedService(
            tmp_path / "dispatcher",
            "dispatcher",
            f"--broker={broker}",
            f"--namespace={namespace}",
            f"--store={tmp_path / 'store.db'}",
            f"--models={tmp_path / 'models'}",
            f"--http=127.0.0.1:{port}",
        )
        stack.callback(dispatcher.kill)
        car = TracedService(
            tmp_path / "car",
            "vehicle",
            "--id=car-1",
            f"--broker={broker}",
            f"--namespace={namespace}",
            f"--state-dir={tmp_path / 'car-1'}",
            f"--policy={tmp_path / 'policy.toml'}",
            "--sensors=simulated",
        )
        stack.callback(car.kill)
        yield url, dispatcher.spans, car.spans


def spans_in(path: Path, name: str) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [span for span in map(json.loads, lines) if span["name"] == name]


async def spans_of_trace(path: Path, name: str) -> list[dict[str, Any]]:
    """Wait for spans of that name: they are written when they end."""
    deadline_s = time.monotonic() + WAIT_S
    while not (found := [s for s in spans_in(path, name) if s["trace"] == CALLER_TRACE]):
        assert time.monotonic() < deadline_s, f"no span {name!r} in {path}"
        await asyncio.sleep(0.02)
    return found


async def until_ready(client: EdgeClient) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            cars = (await client.fleet()).cars
            if any(car.availability is Availability.READY for car in cars):
                return
            await asyncio.sleep(0.05)


async def run_job(url: str) -> str:
    async with EdgeClient(url) as client, aiohttp.ClientSession() as http:
        await until_ready(client)
        item = ItemInput(data=msgspec.msgpack.encode([from_numpy("x", np.ones(1, np.float32))]))
        body = msgspec.json.encode({"model": "noop", "items": [item] * 3})
        headers = {
            "Content-Type": "application/json",
            "traceparent": f"00-{CALLER_TRACE}-{CALLER_SPAN}-01",
        }
        async with http.post(f"{url}/v1/jobs", data=body, headers=headers) as answer:
            assert answer.status == 201, await answer.text()
            job: str = (await answer.json())["job"]
        results = [result async for result in client.results(job)]
        assert len(results) == 3
        return job


async def test_a_job_is_one_trace_from_its_request_to_the_car(
    traced: tuple[str, Path, Path],
) -> None:
    url, of_dispatcher, of_car = traced
    job = await run_job(url)
    (request,) = await spans_of_trace(of_dispatcher, "POST /v1/jobs")
    assert request["parent"] == CALLER_SPAN
    assert request["attributes"]["http.response.status_code"] == 201
    (attempt,) = await spans_of_trace(of_dispatcher, "attempt")
    (unit,) = await spans_of_trace(of_car, "unit")
    for span in (attempt, unit):
        assert span["parent"] == request["span"]
        assert span["attributes"]["edge_runtime.job"] == job
        assert span["attributes"]["edge_runtime.items_done"] == 3
        assert span["attributes"]["edge_runtime.car"] == "car-1"
        assert span["start"] <= span["end"]
    for name in ("edge_runtime.unit", "edge_runtime.fence"):
        assert attempt["attributes"][name] == unit["attributes"][name]


def test_without_an_sdk_the_library_is_not_even_loaded_by_a_car() -> None:
    code = (
        "import sys; import edge_runtime.vehicle.agent; "
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
