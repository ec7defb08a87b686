"""The Grafana dashboard asks a real Prometheus that scrapes a dispatcher: every panel has data."""

import asyncio
import json
import math
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from brokers import free_port
from scripted_car import ScriptedCar
from service_rig import House

from edge_runtime.bus import MemoryBroker
from edge_runtime.contract import codec
from edge_runtime.contract.messages import (
    Chunk,
    Ending,
    ItemDone,
    ItemFailed,
    ItemResult,
    StopReport,
    UnitOffer,
    Usage,
    VehicleState,
)
from edge_runtime.contract.reasons import (
    Availability,
    EnergyMethod,
    HoldReason,
    ItemError,
    Outcome,
    ReleaseReason,
    StopTier,
    WearMethod,
)
from edge_runtime.contract.signals import Signals
from edge_runtime.contract.topics import Up
from edge_runtime.dispatcher.api import build_app, serve
from edge_runtime.dispatcher.core.placement import Requirement
from edge_runtime.dispatcher.dashboard import mount_dashboard

BOARD = json.loads(
    (Path(__file__).parents[2] / "deploy/grafana/edge-runtime.json").read_text("utf-8")
)
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
WAIT_S = 60.0
RATE_INTERVAL = "10s"
"""What Grafana would put for `$__rate_interval`: at least four scrapes."""


def one_fails(index: int) -> ItemResult:
    if index == 0:
        return ItemFailed(index=index, code=ItemError.UNDECODABLE_INPUT)
    return ItemDone(index=index, output=msgspec.Raw(b"\x01"), busy_ms=5.0)


class Commuter(ScriptedCar):
    """Gives the first attempt of every unit back, for its owner, and does the second."""

    def __init__(self, broker: MemoryBroker, name: str) -> None:
        super().__init__(broker, name, answer=one_fails)
        self._left: set[int] = set()

    def finished(self, unit: UnitOffer) -> Chunk:
        if unit.unit not in self._left and not unit.interactive:
            self._left.add(unit.unit)
            stop = StopReport(tier=StopTier.FREEZE, latency_ms=0.4)
            ending = Ending(
                outcome=Outcome.RELEASED,
                reason=ReleaseReason.HOLD,
                hold=HoldReason.OCCUPIED,
                stop=stop,
            )
            return msgspec.structs.replace(super().finished(unit), items=(), ending=ending)
        items: tuple[ItemResult, ...] = super().finished(unit).items
        if unit.interactive:
            items = tuple(ItemDone(index=n.index, output=msgspec.Raw(b"\x01")) for n in items)
        return msgspec.structs.replace(
            super().finished(unit),
            items=items,
            energy_j=3.0,
            usage=Usage(
                energy_method=EnergyMethod.INA,
                wear_percent=1e-6,
                wear_method=WearMethod.CELL_TABLE,
            ),
        )

    def hold(self) -> None:
        self.seq += 1
        state = VehicleState(
            vehicle=self.name,
            boot=self.boot,
            seq=self.seq,
            at_ms=0,
            availability=Availability.HOLD,
            hold=HoldReason.NOT_PLUGGED,
            free_units=0,
            energy_budget_wh=None,
            signals=Signals(),
        )
        self.publish(Up.STATE, codec.encode(state))


@pytest.fixture
def prometheus_command() -> str:
    if command := shutil.which("prometheus"):
        return command
    if os.environ.get("CI") == "true":
        pytest.fail("Prometheus is missing, and CI asks it what the Grafana dashboard shows")
    pytest.skip("Prometheus is not installed: apt-get install prometheus")


@contextmanager
def prometheus(command: str, folder: Path, target: str) -> Iterator[str]:
    """Its URL; it scrapes `target` (host and port) twice a second."""
    config = folder / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 500ms, scrape_timeout: 500ms}\n"
        "scrape_configs:\n"
        "  - job_name: edge-runtime\n"
        f"    static_configs: [{{targets: ['{target}']}}]\n"
    )
    address = f"127.0.0.1:{free_port()}"
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                command,
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'series'}",
                f"--web.listen-address={address}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield f"http://{address}"
    finally:
        process.kill()
        process.wait(10)


@pytest.fixture
async def scraped(
    open_house: Callable[..., Any], tmp_path: Path, prometheus_command: str
) -> AsyncIterator[tuple[House, str]]:
    """A dispatcher with `/metrics` on a socket, and the URL of a Prometheus that reads it."""
    async with open_house() as house:
        api = build_app(house.desk)
        mount_dashboard(api, house.service, house.desk)
        server = await serve(api, port=0)
        try:
            target = server.url.removeprefix("http://")
            with prometheus(prometheus_command, tmp_path, target) as url:
                yield house, url
        finally:
            await server.close()


async def asked(session: aiohttp.ClientSession, url: str, expression: str) -> list[Any]:
    """The series of one instant; what Prometheus cannot parse fails the test."""
    said = expression.replace("$instance", ".*").replace("$__rate_interval", RATE_INTERVAL)
    async with session.get(f"{url}/api/v1/query", params={"query": said}) as answer:
        body = await answer.json()
        assert body["status"] == "success", (said, body)
        return list(body["data"]["result"])


async def without_data(session: aiohttp.ClientSession, url: str, kinds: set[str]) -> list[str]:
    """The targets of panels of these kinds that show no number now."""
    empty = []
    for panel in PANELS:
        for target in panel["targets"] if panel["type"] in kinds else []:
            series = await asked(session, url, target["expr"])
            if not any(math.isfinite(float(one["value"][1])) for one in series):
                empty.append(f"{panel['title']}: {target['expr']}")
    return empty


async def is_scraped(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        return bool(await asked(session, url, "edge_runtime_info"))
    except aiohttp.ClientError:
        return False


async def until_scraped(session: aiohttp.ClientSession, url: str) -> None:
    async with asyncio.timeout(WAIT_S):
        while not await is_scraped(session, url):  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.1)


async def busy_moment(house: House, car: Commuter) -> None:
    """Something of everything: results, a failure, a release, an answer, a refusal."""
    await house.collect(await house.submit(4))
    package = house.service.shelf.find("noop")
    assert package is not None
    await house.service.interactive.infer(
        tenant="t1",
        requirement=Requirement(model=package.digest, task=package.spec.task),
        item=b"\x00",
        media_type="application/octet-stream",
        reference_ms=package.spec.reference_ms,
    )
    car.publish(Up.STATE, b"\xc1")


@pytest.mark.timeout(120)
async def test_every_panel_shows_something_of_a_busy_dispatcher(
    scraped: tuple[House, str],
) -> None:
    house, url = scraped
    async with (
        aiohttp.ClientSession() as session,
        Commuter(house.broker, "car1") as car,
        Commuter(house.broker, "held") as held,
    ):
        held.hold()
        await until_scraped(session, url)
        empty = ["nothing was asked"]
        async with asyncio.timeout(WAIT_S):
            while empty:
                await busy_moment(house, car)
                empty = await without_data(session, url, {"stat", "timeseries"})
        params = {"match[]": "edge_runtime_info"}
        async with session.get(f"{url}/api/v1/label/instance/values", params=params) as answer:
            assert len((await answer.json())["data"]) == 1, "the choice of a dispatcher"


@pytest.mark.timeout(120)
async def test_an_idle_dispatcher_has_numbers_at_a_glance(scraped: tuple[House, str]) -> None:
    _, url = scraped
    async with aiohttp.ClientSession() as session:
        await until_scraped(session, url)
        async with asyncio.timeout(WAIT_S):
            while await without_data(session, url, {"stat"}):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.1)


def test_every_panel_is_asked() -> None:
    assert len(PANELS) >= 20
    assert {panel["type"] for panel in PANELS} == {"stat", "timeseries"}
    assert all(panel["targets"] for panel in PANELS)
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
