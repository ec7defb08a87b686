"""A car that is not there: driver, charge and temperatures by a script, and by live commands.

Invariants
- The model is a deterministic function of its script, its load and the time that has passed.
- An override by a live command wins over the script and the physics until it is released.
- A change of a yes/no signal, and every override, is told at once.

A live command is one JSON object on one line: `{"is_occupied": true}` sets, `{"release":
["is_occupied"]}` lets the model decide again, and null says the car has no such signal. A line
that is no such thing is counted and logged, and changes nothing.
"""

import asyncio
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from math import exp
from pathlib import Path
from typing import Annotated, Final

import msgspec
import structlog
from msgspec import Meta

from edge_runtime.contract import limits
from edge_runtime.contract.errors import ConfigError
from edge_runtime.contract.signals import SIGNALS, Value, Values
from edge_runtime.vehicle.clock import boot_ns
from edge_runtime.vehicle.core.events import SignalsRead

_NAMES: Final = frozenset(signal.name for signal in SIGNALS)
_FULL_PERCENT: Final = 100.0

log = structlog.get_logger()


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From `at_s` seconds after the start on, these signals have these values."""

    at_s: Annotated[float, Meta(ge=0)]
    set: Values


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a simulated car begins and what happens to it.

    The computer warms towards ambient + `compute_rise_c` while it works and cools towards ambient
    while it does not, with time constant `compute_tau_s`. The battery charges at
    `charge_percent_per_hour` while plugged.
    """

    ambient_temperature_c: float = 18.0
    compute_rise_c: float = 40.0
    compute_tau_s: Annotated[float, Meta(gt=0)] = 60.0
    charge_percent: Annotated[float, Meta(ge=0, le=100)] = 80.0
    charge_percent_per_hour: float = 10.0
    battery_temperature_c: float = 22.0
    compute_power_w: float = 45.0
    is_plugged: bool = True
    is_parked: bool = True
    is_occupied: bool = False
    low_voltage_v: float = 12.7
    steps: tuple[Step, ...] = ()


def parse_scenario(text: bytes) -> Scenario:
    """Read a scenario from TOML. Raises `ConfigError` that names the field."""
    try:
        scenario = msgspec.toml.decode(text, type=Scenario)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"scenario: {error}") from None
    for step in scenario.steps:
        unknown = sorted(step.set.keys() - _NAMES)
        if unknown:
            raise ConfigError(f"scenario: steps.set: {unknown[0]!r} is no signal")
    return scenario


@dataclass(slots=True)
class CarModel:
    """The physics. `advance` moves it; `values` reads it; nothing else changes it."""

    scenario: Scenario
    elapsed_s: float = 0.0
    is_busy: bool = False
    overrides: Values = field(default_factory=dict)
    _compute_c: float = field(init=False)
    _charge_percent: float = field(init=False)

    def __post_init__(self) -> None:
        self._compute_c = self.scenario.ambient_temperature_c
        self._charge_percent = self.scenario.charge_percent

    def advance(self, seconds: float) -> None:
        """Let time pass under the present load."""
        scenario = self.scenario
        goal_c = scenario.ambient_temperature_c + self.is_busy * scenario.compute_rise_c
        decay = exp(-seconds / scenario.compute_tau_s)
        self._compute_c = goal_c + (self._compute_c - goal_c) * decay
        if self.values()["is_plugged"]:
            gain = scenario.charge_percent_per_hour * seconds / 3600
            self._charge_percent = min(100.0, self._charge_percent + gain)
        self.elapsed_s += seconds

    def values(self) -> Values:
        """Every signal of this moment."""
        scenario = self.scenario
        values: Values = {
            "charge_percent": self._charge_percent,
            "battery_temperature_c": scenario.battery_temperature_c,
            "is_plugged": scenario.is_plugged,
            "is_charging": scenario.is_plugged and self._charge_percent < _FULL_PERCENT,
            "is_parked": scenario.is_parked,
            "is_occupied": scenario.is_occupied,
            "ambient_temperature_c": scenario.ambient_temperature_c,
            "compute_temperature_c": self._compute_c,
            "compute_power_w": self.is_busy * scenario.compute_power_w,
            "compute_load_percent": self.is_busy * 100.0,
            "low_voltage_v": scenario.low_voltage_v,
            "power_saving_level": 0,
        }
        for step in scenario.steps:
            if step.at_s <= self.elapsed_s:
                values |= step.set
        return values | self.overrides

    def next_step_s(self) -> float | None:
        """Seconds until the script's next step."""
        return min(
            (s.at_s - self.elapsed_s for s in self.scenario.steps if s.at_s > self.elapsed_s),
            default=None,
        )

    def command(self, line: bytes) -> None:
        """Obey one live command. Raises `ConfigError` for anything else."""
        try:
            wanted = msgspec.json.decode(line, type=dict[str, Value | list[str]])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"a live command is a JSON object of signals: {error}") from None
        released = wanted.pop("release", [])
        if not isinstance(released, list):
            raise ConfigError('release is a list of signals, as in {"release": ["is_occupied"]}')
        unknown = sorted({*wanted, *released} - _NAMES)
        if unknown:
            raise ConfigError(f"{unknown[0][:64]!r} is no signal")
        for name, value in wanted.items():
            if isinstance(value, list):
                raise ConfigError(f"{name} is one value, not a list")
            self.overrides[name] = value
        for name in released:
            self.overrides.pop(name, None)


class SimulatedSensors:
    """The model in real time. `commands` is a FIFO, or a file descriptor such as 0 for stdin."""

    def __init__(
        self,
        scenario: Scenario | None = None,
        commands: Path | int | None = None,
        clock: Callable[[], int] = boot_ns,
    ) -> None:
        self.model = CarModel(scenario or Scenario())
        self.wrong_lines = 0
        self._commands = commands
        self._clock = clock
        self._last_ns = clock()
        self._emit: Callable[[SignalsRead], None] | None = None
        self._partial = b""

    def note_load(self, *, is_busy: bool) -> None:
        """The computer is (not) working: it warms (cools) from now on."""
        self._catch_up()
        self.model.is_busy = is_busy

    def command(self, line: bytes) -> None:
        """Obey one live command now. Raises `ConfigError`."""
        self._catch_up()
        self.model.command(line)
        self._tell()

    async def run(self, emit: Callable[[SignalsRead], None]) -> None:
        """Tell every edge at once and every signal once a period, until cancelled."""
        self._emit = emit
        fd = self._open_commands()
        loop = asyncio.get_running_loop()
        if fd is not None:
            loop.add_reader(fd, self._readable, fd)
        try:
            while True:
                self._catch_up()
                self._tell()
                period_s = limits.SENSOR_PERIOD_MS / 1000
                next_step_s = self.model.next_step_s()
                await asyncio.sleep(period_s if next_step_s is None else min(period_s, next_step_s))
        finally:
            self._emit = None
            if fd is not None:
                loop.remove_reader(fd)
                if fd != self._commands:
                    os.close(fd)

    def _catch_up(self) -> None:
        now_ns = self._clock()
        self.model.advance((now_ns - self._last_ns) / 1e9)
        self._last_ns = now_ns

    def _tell(self) -> None:
        if self._emit is not None:
            self._emit(SignalsRead(self.model.values(), self._clock()))

    def _open_commands(self) -> int | None:
        if self._commands is None or isinstance(self._commands, int):
            return self._commands
        with suppress(FileExistsError):
            os.mkfifo(self._commands, 0o600)
        if not stat.S_ISFIFO(self._commands.stat().st_mode):
            raise ConfigError(f"{self._commands} exists and is no FIFO")
        # Read and write: a FIFO without a writer would be readable, and empty, for ever.
        return os.open(self._commands, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def _readable(self, fd: int) -> None:
        try:
            data = os.read(fd, limits.SENSOR_LINE_MAX_BYTES)
        except BlockingIOError:
            return
        if not data:
            asyncio.get_running_loop().remove_reader(fd)
            return
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > limits.SENSOR_LINE_MAX_BYTES:
            lines, self._partial = [*lines, self._partial], b""
        for line in lines:
            if line.strip():
                self._obey(line)

    def _obey(self, line: bytes) -> None:
        try:
            self.command(line)
        except ConfigError as error:
            self.wrong_lines += 1
            log.warning("live_command_wrong", why=str(error), count=self.wrong_lines)
