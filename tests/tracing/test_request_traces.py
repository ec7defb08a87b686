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


class Stage:
    """Traced processes on one broker, all killed in the end."""

    def __init__(self, folder: Path, broker: str, stack: ExitStack) -> None:
        write_synthetic("noop", folder / "models")
        (folder / "policy.toml").write_text("dwell_s = 0.2\n[consent]\ngiven = true\nversion = 1\n")
        self._folder, self._stack = folder, stack
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._bus = (f"--broker={broker}", f"--namespace=trace{port}")
        self._http = f"--http=127.0.0.1:{port}"

    def _start(self, name: str, *arguments: str) -> TracedService:
        service = TracedService(self._folder / name, *arguments)
        self._stack.callback(service.kill)
        return service

    def dispatcher(self, name: str = "dispatcher") -> TracedService:
        """One more life of the dispatcher; the store is the same."""
        places = (f"--store={self._folder / 'store.db'}", f"--models={self._folder / 'models'}")
        return self._start(name, "dispatcher", *self._bus, self._http, *places)

    def car(self) -> TracedService:
        places = (
            f"--state-dir={self._folder / 'car-1'}",
            f"--policy={self._folder / 'policy.toml'}",
        )
        named = ("--id=car-1", "--sensors=simulated")
        return self._start("car", "vehicle", *named, *self._bus, *places)


@pytest.fixture
def stage(tmp_path: Path, embedded_broker: BrokerProcess) -> Iterator[Stage]:
    with ExitStack() as stack:
        yield Stage(tmp_path, embedded_broker.url(5), stack)


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


async def until_up(url: str) -> None:
    async with aiohttp.ClientSession() as http, asyncio.timeout(WAIT_S):
        while True:
            try:
                async with http.get(f"{url}/readyz") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)


async def submit(url: str) -> str:
    """A job of three items whose request is in the caller's trace."""
    async with aiohttp.ClientSession() as http:
        item = ItemInput(data=msgspec.msgpack.encode([from_numpy("x", np.ones(1, np.float32))]))
        body = msgspec.json.encode({"model": "noop", "items": [item] * 3})
        headers = {
            "Content-Type": "application/json",
            "traceparent": f"00-{CALLER_TRACE}-{CALLER_SPAN}-01",
        }
        async with http.post(f"{url}/v1/jobs", data=body, headers=headers) as answer:
            assert answer.status == 201, await answer.text()
            job: str = (await answer.json())["job"]
            return job


async def read(url: str, job: str) -> None:
    async with EdgeClient(url) as client:
        assert len([result async for result in client.results(job)]) == 3


async def test_a_job_is_one_trace_from_its_request_to_the_car(stage: Stage) -> None:
    of_dispatcher, of_car = stage.dispatcher().spans, stage.car().spans
    async with EdgeClient(stage.url) as client:
        await until_ready(client)
    job = await submit(stage.url)
    await read(stage.url, job)
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


async def test_a_trace_outlives_the_dispatcher_that_began_it(stage: Stage) -> None:
    first = stage.dispatcher()
    await until_up(stage.url)
    job = await submit(stage.url)
    (request,) = await spans_of_trace(first.spans, "POST /v1/jobs")
    first.kill()
    second, car = stage.dispatcher("second"), stage.car()
    await until_up(stage.url)
    await read(stage.url, job)
    (attempt,) = await spans_of_trace(second.spans, "attempt")
    (unit,) = await spans_of_trace(car.spans, "unit")
    assert attempt["parent"] == unit["parent"] == request["span"]
    async with EdgeClient(stage.url) as client:
        status = await client.status(job)
    assert status.traceparent == f"00-{CALLER_TRACE}-{request['span']}-01"


def test_without_an_sdk_the_library_is_not_even_loaded_by_a_car() -> None:
    code = (
        "import sys; import edge_runtime.vehicle.agent; "
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
