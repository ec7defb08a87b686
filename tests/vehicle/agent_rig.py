"""A whole car in this process: real journal, store and engine, simulated sensors, memory bus."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from scripted_dispatcher import ScriptedDispatcher, scripted_dispatcher

from edge_runtime.bus import Bus, BusSettings, MemoryBroker, MemoryBus
from edge_runtime.contract.package import Package
from edge_runtime.contract.reasons import Availability
from edge_runtime.vehicle.agent import VehicleAgent, VehicleSettings
from edge_runtime.vehicle.energy.counters import PowerMeter
from edge_runtime.vehicle.identity import NOBODY, Identity
from edge_runtime.vehicle.inference.engine import SupervisedEngine
from edge_runtime.vehicle.inference.options import EngineOptions
from edge_runtime.vehicle.models.store import PackageStore
from edge_runtime.vehicle.sensors.simulated import SimulatedSensors

POLICY = "dwell_s = 0\n[consent]\ngiven = true\nversion = 1\n"
VEHICLE = "car-1"


@dataclass
class Garage:
    """Where the car is kept between its lives; a broker; how to start either end."""

    folder: Path
    broker: MemoryBroker = field(default_factory=MemoryBroker)
    engine: EngineOptions = field(default_factory=EngineOptions)
    sensors: SimulatedSensors = field(default_factory=SimulatedSensors)
    units_max: int = 4
    url: str = "memory://house"
    models_url: str | None = "http://127.0.0.1:9"
    identity: Identity = NOBODY
    meter: PowerMeter | None = None

    def __post_init__(self) -> None:
        self.policy.write_text(POLICY)

    @property
    def policy(self) -> Path:
        return self.folder / "policy.toml"

    @property
    def state_dir(self) -> Path:
        return self.folder / "car"

    def open_bus(self, settings: BusSettings) -> Bus:
        return MemoryBus(settings, self.broker)

    def packages(self) -> PackageStore:
        return PackageStore(self.state_dir / "models", 1 << 30)

    async def stock(self, *packages: Package) -> None:
        store = self.packages()
        for package in packages:
            await store.add(package.folder)

    @contextlib.asynccontextmanager
    async def car(self) -> AsyncIterator[VehicleAgent]:
        settings = VehicleSettings(
            vehicle=VEHICLE,
            broker_url=self.url,
            state_dir=self.state_dir,
            policy=self.policy,
            units_max=self.units_max,
            models_url=self.models_url,
        )
        async with VehicleAgent(
            settings,
            open_bus=self.open_bus,
            make_engine=lambda emit: SupervisedEngine(self.engine, emit),
            packages=self.packages(),
            sensors=self.sensors,
            identity=self.identity,
            meter=self.meter,
        ) as agent:
            watching = asyncio.create_task(agent.wait_ended())
            try:
                yield agent
            finally:
                broken = watching.done()
                watching.cancel()
                if broken:
                    watching.result()

    @contextlib.asynccontextmanager
    async def dispatcher(self) -> AsyncIterator[ScriptedDispatcher]:
        async with scripted_dispatcher(self.open_bus, self.url, VEHICLE, "er") as peer:
            yield peer

    @contextlib.asynccontextmanager
    async def both(
        self, *packages: Package
    ) -> AsyncIterator[tuple[VehicleAgent, ScriptedDispatcher]]:
        """A ready car and its dispatcher."""
        await self.stock(*packages)
        async with self.dispatcher() as peer, self.car() as agent:
            await peer.until(lambda: is_ready(peer))
            yield agent, peer


def is_ready(peer: ScriptedDispatcher) -> bool:
    return bool(peer.states) and peer.states[-1].availability is Availability.READY


async def until(condition: Callable[[], bool], patience_s: float = 60.0) -> None:
    """Wait for what nobody tells of: files, processes."""
    async with asyncio.timeout(patience_s):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.005)
