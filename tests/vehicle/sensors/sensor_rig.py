"""Listening to a source of signals, and a databroker to listen to."""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_runtime.vehicle.core.events import SignalsRead

DATABROKER = Path(__file__).parent / "databroker.py"
PATIENCE_S = 30.0

CHARGE = "Vehicle.Powertrain.TractionBattery.StateOfCharge.Displayed"
PLUGGED = (
    "Vehicle.Powertrain.TractionBattery.Charging.ChargingPort.AnyPosition.IsChargingCableConnected"
)
SEAT = "Vehicle.Cabin.Seat.Row1.DriverSide.OccupancyStatus"
COMPUTE_C = "Vehicle.ControlUnit.Central.Health.Resources.Temperature"
PARK_LOCK = "Vehicle.Powertrain.Transmission.IsParkLockEngaged"
GEAR = "Vehicle.Powertrain.Transmission.SelectedGear"
BRAKE = "Vehicle.Chassis.ParkingBrake.IsEngaged"

GOOD_CAR: tuple[tuple[str, str, Any], ...] = (
    (CHARGE, "float", 80.0),
    (PLUGGED, "bool", True),
    (SEAT, "string", "EMPTY"),
    (COMPUTE_C, "float", 40.0),
    (PARK_LOCK, "bool", True),
    (GEAR, "int32", 126),
    (BRAKE, "bool", True),
)
"""What a parked, plugged, empty and cool car writes."""


@dataclass
class Listener:
    """What a source said, and how to wait for what it is to say."""

    said: list[SignalsRead] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, event: SignalsRead) -> None:
        self.said.append(event)
        self._news.set()

    async def hears(self, what: Callable[[SignalsRead], bool], *, after: int = 0) -> SignalsRead:
        """The first event that is so, of those after the first `after`."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for event in self.said[after:]:
                    if what(event):
                        return event
                self._news.clear()
                await self._news.wait()

    async def hears_value(self, name: str, value: Any, *, after: int = 0) -> SignalsRead:
        """The first event that says this of a signal."""
        return await self.hears(
            lambda event: name in event.values and event.values[name] == value, after=after
        )


@asynccontextmanager
async def listening(sensors: Any) -> AsyncIterator[Listener]:
    listener = Listener()
    task = asyncio.create_task(sensors.run(listener))
    try:
        yield listener
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@dataclass
class Databroker:
    """A databroker process; `port` is 0 until it runs, and kept for its next life."""

    arguments: tuple[str, ...] = ()
    port: int = 0
    _process: asyncio.subprocess.Process | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(DATABROKER),
            str(self.port),
            *self.arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self._process = process
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            self.port = int(await process.stdout.readline())

    def _order(self, order: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")

    def write(self, path: str, kind: str | None, value: Any = None, *, times: int = 1) -> None:
        self._order({"set": path, "as": kind, "to": value, "times": times})

    def write_all(self, values: tuple[tuple[str, str, Any], ...]) -> None:
        for path, kind, value in values:
            self.write(path, kind, value)

    def forget(self, path: str) -> None:
        self._order({"forget": path})

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def databroker(*arguments: str) -> AsyncIterator[Databroker]:
    broker = Databroker(arguments)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.kill()
