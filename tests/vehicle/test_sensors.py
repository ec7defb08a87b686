"""Sensors: the simulated car's physics and live commands; a Linux computer's files."""

import asyncio
import math
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from edge_runtime.contract import limits
from edge_runtime.contract.errors import ConfigError
from edge_runtime.contract.signals import SIGNALS
from edge_runtime.vehicle.core.events import SignalsRead
from edge_runtime.vehicle.sensors.linux import LinuxSensors
from edge_runtime.vehicle.sensors.simulated import (
    CarModel,
    Scenario,
    SimulatedSensors,
    Step,
    parse_scenario,
)


@dataclass
class Listener:
    """What sensors said; waits for what it wants to hear."""

    said: list[SignalsRead] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, event: SignalsRead) -> None:
        self.said.append(event)
        self._news.set()

    async def hears(self, what: Callable[[SignalsRead], bool]) -> SignalsRead:
        async with asyncio.timeout(20):
            while True:
                for event in self.said:
                    if what(event):
                        return event
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def running(sensors: Any) -> AsyncIterator[Listener]:
    listener = Listener()
    task = asyncio.create_task(sensors.run(listener))
    try:
        yield listener
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


# --- the simulated car -------------------------------------------------------------------------


def test_the_computer_warms_while_it_works_and_cools_while_it_does_not() -> None:
    scenario = Scenario(ambient_temperature_c=20, compute_rise_c=40, compute_tau_s=60)
    model = CarModel(scenario)
    model.is_busy = True
    model.advance(60)
    assert model.values()["compute_temperature_c"] == pytest.approx(60 - 40 / math.e)
    model.advance(6000)
    assert model.values()["compute_temperature_c"] == pytest.approx(60)
    model.is_busy = False
    model.advance(60)
    assert model.values()["compute_temperature_c"] == pytest.approx(20 + 40 / math.e)


def test_the_model_depends_on_time_and_not_on_how_often_it_is_asked() -> None:
    once, often = CarModel(Scenario()), CarModel(Scenario())
    once.is_busy = often.is_busy = True
    once.advance(100)
    for _ in range(1000):
        often.advance(0.1)
    for name, value in once.values().items():
        assert often.values()[name] == pytest.approx(value)


def test_the_battery_charges_while_plugged_and_not_beyond_full() -> None:
    model = CarModel(Scenario(charge_percent=95, charge_percent_per_hour=10))
    model.advance(1800)
    assert model.values()["charge_percent"] == pytest.approx(100)
    model.advance(3600)
    assert model.values()["charge_percent"] == 100
    assert model.values()["is_charging"] is False


def test_a_script_happens_at_its_times() -> None:
    steps = (Step(at_s=10, set={"is_occupied": True}), Step(at_s=20, set={"is_occupied": False}))
    model = CarModel(Scenario(steps=steps))
    seen = []
    for _ in range(3):
        seen.append((model.values()["is_occupied"], model.next_step_s()))
        model.advance(10)
    assert seen == [(False, 10), (True, 10), (False, None)]


def test_a_live_command_wins_until_it_is_released() -> None:
    model = CarModel(Scenario())
    model.command(b'{"is_occupied": true, "compute_temperature_c": 95, "charge_percent": null}')
    model.advance(100)
    values = model.values()
    assert values["is_occupied"] is True
    assert values["compute_temperature_c"] == 95
    assert values["charge_percent"] is None
    model.command(b'{"release": ["is_occupied", "compute_temperature_c", "charge_percent"]}')
    assert model.values()["is_occupied"] is False
    assert model.values()["charge_percent"] is not None


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b"\xff",
        b'{"mood": 1}',
        b'{"release": ["mood"]}',
        b'{"release": 1}',
        b'{"is_occupied": ["x"]}',
        b'{"is_occupied": {"x": 1}}',
    ],
)
def test_a_wrong_live_command_changes_nothing(line: bytes) -> None:
    model = CarModel(Scenario())
    before = model.values()
    with pytest.raises(ConfigError):
        model.command(line)
    assert model.values() == before


def test_a_scenario_from_a_file() -> None:
    text = b"charge_percent = 55\n[[steps]]\nat_s = 5\nset = {is_parked = false}"
    scenario = parse_scenario(text)
    assert scenario.charge_percent == 55
    assert scenario.steps == (Step(at_s=5, set={"is_parked": False}),)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"charge_percent = 155", "charge_percent"),
        (b"colour = 'red'", "colour"),
        (b"[[steps]]\nat_s = 5\nset = {mood = 1}", "'mood' is no signal"),
    ],
)
def test_a_wrong_scenario_names_its_field(text: bytes, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_scenario(text)


def test_everything_the_model_says_is_a_known_signal() -> None:
    assert set(CarModel(Scenario()).values()) <= {signal.name for signal in SIGNALS}


async def test_a_live_command_through_a_fifo_is_told_at_once(tmp_path: Path) -> None:
    fifo = tmp_path / "commands"
    sensors = SimulatedSensors(commands=fifo)
    async with running(sensors) as listener:
        await listener.hears(lambda event: event.values["is_occupied"] is False)
        writer = os.open(fifo, os.O_WRONLY)
        os.write(writer, b'{"is_occ')
        os.write(writer, b'upied": true}\n{"compute_temperature_c": 95}\n')
        event = await listener.hears(lambda event: event.values["compute_temperature_c"] == 95)
        os.close(writer)
    assert event.values["is_occupied"] is True
    assert len(listener.said) <= 4


async def test_a_wrong_or_endless_line_is_counted_and_the_next_is_obeyed(tmp_path: Path) -> None:
    fifo = tmp_path / "commands"
    sensors = SimulatedSensors(commands=fifo)
    with capture_logs() as logs:
        async with running(sensors) as listener:
            await listener.hears(lambda _: True)
            writer = os.open(fifo, os.O_WRONLY)
            os.write(writer, b"nonsense\n" + b"x" * (2 * limits.SENSOR_LINE_MAX_BYTES) + b"\n")
            os.write(writer, b'{"is_parked": false}\n')
            await listener.hears(lambda event: event.values["is_parked"] is False)
            os.close(writer)
    assert sensors.wrong_lines >= 2
    assert {entry["event"] for entry in logs} == {"live_command_wrong"}


async def test_the_end_of_stdin_ends_the_commands_and_not_the_sensors() -> None:
    reader, writer = os.pipe()
    sensors = SimulatedSensors(commands=reader)
    async with running(sensors) as listener:
        os.write(writer, b'{"is_parked": false}\n')
        os.close(writer)
        await listener.hears(lambda event: event.values["is_parked"] is False)
        heard = len(listener.said)
        sensors.command(b'{"is_parked": true}')
        assert len(listener.said) == heard + 1
    os.close(reader)


async def test_a_file_in_the_fifos_place_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "commands"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="no FIFO"):
        await SimulatedSensors(commands=path).run(lambda _: None)


async def test_load_warms_the_simulated_computer() -> None:
    now_ns = [0]
    sensors = SimulatedSensors(Scenario(compute_tau_s=10), clock=lambda: now_ns[0])
    sensors.note_load(is_busy=True)
    now_ns[0] = 30 * 10**9
    sensors.note_load(is_busy=False)
    temperature = sensors.model.values()["compute_temperature_c"]
    assert temperature == pytest.approx(18 + 40 * (1 - math.exp(-3)))


# --- a Linux computer --------------------------------------------------------------------------


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


LAPTOP = {
    "sys/class/hwmon/hwmon0/name": "nvme",
    "sys/class/hwmon/hwmon0/temp1_input": "91000",
    "sys/class/hwmon/hwmon1/name": "coretemp",
    "sys/class/hwmon/hwmon1/temp1_input": "48000",
    "sys/class/hwmon/hwmon1/temp2_input": "51500",
    "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp",
    "sys/class/thermal/thermal_zone0/temp": "50000",
    "sys/class/thermal/cooling_device0/type": "Fan",
    "sys/class/power_supply/AC/type": "Mains",
    "sys/class/power_supply/AC/online": "1",
    "sys/class/power_supply/BAT0/type": "Battery",
    "sys/class/power_supply/BAT0/capacity": "81",
    "sys/class/power_supply/BAT0/temp": "312",
    "sys/class/power_supply/BAT0/status": "Charging",
    "sys/class/power_supply/BAT0/power_now": "12500000",
    "sys/class/power_supply/mouse/type": "Battery",
    "sys/class/power_supply/mouse/scope": "Device",
    "sys/class/power_supply/mouse/capacity": "3",
    "proc/stat": "cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1 1 1 1",
}


def test_a_laptop_is_read(tmp_path: Path) -> None:
    write(tmp_path, LAPTOP)
    sensors = LinuxSensors(tmp_path)
    values = sensors.read()
    assert values["compute_temperature_c"] == 51.5
    assert values["is_plugged"] is True
    assert values["is_charging"] is True
    assert values["charge_percent"] == 81
    assert values["battery_temperature_c"] == 31.2
    assert values["battery_power_w"] == 12.5
    assert values["compute_load_percent"] is None
    assert values["is_parked"] is None
    write(tmp_path, {"proc/stat": "cpu  130 0 110 860 0 0 0 0 0 0"})
    assert sensors.read()["compute_load_percent"] == pytest.approx(40)


def test_a_discharging_battery_gives_power(tmp_path: Path) -> None:
    write(tmp_path, LAPTOP | {"sys/class/power_supply/BAT0/status": "Discharging"})
    write(tmp_path, {"sys/class/power_supply/AC/online": "0"})
    values = LinuxSensors(tmp_path).read()
    assert values["battery_power_w"] == -12.5
    assert values["is_plugged"] is False
    assert values["is_charging"] is False


@pytest.mark.parametrize("broken", ["", "x", "-", "\x00"])
def test_what_cannot_be_read_is_absent_and_never_zero(tmp_path: Path, broken: str) -> None:
    assert set(LinuxSensors(tmp_path).read().values()) == {None}
    write(
        tmp_path,
        {
            name: broken
            for name in LAPTOP
            if not name.endswith(("type", "name", "online", "status"))
        },
    )
    assert set(LinuxSensors(tmp_path).read().values()) == {None}


def test_a_thermal_zone_serves_where_there_is_no_hwmon(tmp_path: Path) -> None:
    zone = "sys/class/thermal/thermal_zone0"
    write(tmp_path, {f"{zone}/type": "cpu-thermal", f"{zone}/temp": "43000"})
    assert LinuxSensors(tmp_path).read()["compute_temperature_c"] == 43


async def test_pulling_the_plug_is_told_between_the_full_readings(tmp_path: Path) -> None:
    write(tmp_path, LAPTOP)
    async with running(LinuxSensors(tmp_path)) as listener:
        await listener.hears(lambda event: event.values["is_plugged"] is True)
        write(tmp_path, {"sys/class/power_supply/AC/online": "0"})
        event = await listener.hears(lambda event: event.values["is_plugged"] is False)
    assert event.at_ns >= listener.said[0].at_ns


def test_this_computer_can_be_read() -> None:
    values = LinuxSensors().read()
    assert set(values) == {signal.name for signal in SIGNALS}
