"""Counters of energy as Linux shows them: whole, wrapped, forbidden, torn, absurd, gone."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.vehicle.core.energy_rows import PowerMethod
from edge_runtime.vehicle.core.events import EnergyMeasured
from edge_runtime.vehicle.energy.counters import Ina, PowerMeter, PowerSupply, Rapl

S = 1_000_000_000
RANGE_UJ = 262_143_328_850


class Clock:
    """Boot time that the test turns."""

    def __init__(self) -> None:
        self.ns = 7 * S

    def __call__(self) -> int:
        return self.ns


def put(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")
    return folder


def zone(
    root: Path, number: str, name: str, energy_uj: object, range_uj: object = RANGE_UJ
) -> Path:
    folder = root / "sys/class/powercap" / f"intel-rapl:{number}"
    return put(folder, name=name, energy_uj=energy_uj, max_energy_range_uj=range_uj)


def battery(root: Path, **files: object) -> Path:
    folder = root / "sys/class/power_supply/BAT0"
    return put(folder, **({"type": "Battery", "status": "Discharging"} | files))


# --- RAPL ----------------------------------------------------------------------------------------


def test_packages_and_memory_add_up_and_parts_do_not(tmp_path: Path) -> None:
    package = zone(tmp_path, "0", "package-0", 1_000_000)
    core = zone(tmp_path, "0:0", "core", 500_000)
    memory = zone(tmp_path, "0:1", "dram", 100_000)
    rapl = Rapl(tmp_path)
    assert rapl.begin()
    put(package, energy_uj=31_000_000)
    put(core, energy_uj=25_500_000)
    put(memory, energy_uj=2_100_000)
    assert rapl.joules(1.0) == pytest.approx(32)


def test_a_platform_zone_stands_for_all(tmp_path: Path) -> None:
    package = zone(tmp_path, "0", "package-0", 0)
    platform = zone(tmp_path, "1", "psys", 0)
    rapl = Rapl(tmp_path)
    assert rapl.begin()
    put(package, energy_uj=10_000_000)
    put(platform, energy_uj=45_000_000)
    assert rapl.joules(1.0) == pytest.approx(45)


@settings(deadline=None)
@given(st.integers(0, RANGE_UJ), st.lists(st.integers(0, 10**8), max_size=20))
def test_a_counter_that_wraps_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, start_uj: int, steps_uj: list[int]
) -> None:
    root = tmp_path_factory.mktemp("rapl")
    package = zone(root, "0", "package-0", start_uj)
    rapl = Rapl(root)
    assert rapl.begin()
    total, counted = start_uj, 0.0
    for step in steps_uj:
        total += step
        put(package, energy_uj=total % RANGE_UJ)
        joules = rapl.joules(1.0)
        assert joules is not None
        counted += joules
    assert counted == pytest.approx(sum(steps_uj) / 1e6, abs=1e-3)


@pytest.mark.parametrize(
    "text", ["", "-5", "nan", "inf", "12a", "\x00\x00", "9" * 100, str(RANGE_UJ + 1)]
)
def test_a_torn_or_absurd_counter_gives_nothing(tmp_path: Path, text: str) -> None:
    package = zone(tmp_path, "0", "package-0", 5)
    rapl = Rapl(tmp_path)
    assert rapl.begin()
    put(package, energy_uj=text)
    assert rapl.joules(1.0) is None
    assert not Rapl(tmp_path).begin()


@pytest.mark.parametrize("range_uj", ["0", "-1", "nan", ""])
def test_a_counter_without_a_range_is_not_used(tmp_path: Path, range_uj: str) -> None:
    zone(tmp_path, "0", "package-0", 5, range_uj)
    assert not Rapl(tmp_path).begin()


def test_a_counter_that_may_not_be_read_is_absent(tmp_path: Path) -> None:
    package = zone(tmp_path, "0", "package-0", 5)
    (package / "energy_uj").unlink()
    (package / "energy_uj").mkdir()  # even root cannot read it: EISDIR, an OSError as EACCES is
    assert not Rapl(tmp_path).begin()
    if os.geteuid() != 0:
        (package / "energy_uj").rmdir()
        put(package, energy_uj=5)
        (package / "energy_uj").chmod(0)
        assert not Rapl(tmp_path).begin()


def test_where_there_is_nothing_there_is_no_counter(tmp_path: Path) -> None:
    for counter in (Rapl(tmp_path), Ina(tmp_path), PowerSupply(tmp_path)):
        assert not counter.begin()
    meter = PowerMeter(tmp_path, Clock())
    assert meter.note_load(is_busy=True) is None
    assert meter.look() is None
    assert meter.note_load(is_busy=False) is None


# --- gauges --------------------------------------------------------------------------------------


def test_a_discharging_battery_tells_its_power(tmp_path: Path) -> None:
    battery(tmp_path, power_now=12_500_000)
    assert PowerSupply(tmp_path).watts() == pytest.approx(12.5)


def test_current_times_voltage_where_there_is_no_power(tmp_path: Path) -> None:
    battery(tmp_path, current_now=-1_500_000, voltage_now=12_000_000)
    assert PowerSupply(tmp_path).watts() == pytest.approx(18)


@pytest.mark.parametrize(
    "files",
    [
        {"status": "Charging", "power_now": 5},
        {"status": "Full", "power_now": 5},
        {"status": "", "power_now": 5},
        {"power_now": "nan"},
        {"current_now": 1_000_000},
        {"scope": "Device", "power_now": 5},
        {"type": "UPS", "power_now": 5},
    ],
)
def test_a_battery_that_does_not_feed_the_computer_says_nothing(
    tmp_path: Path, files: dict[str, object]
) -> None:
    battery(tmp_path, **files)
    assert PowerSupply(tmp_path).watts() is None


def test_the_input_rail_stands_for_all_rails(tmp_path: Path) -> None:
    chip = tmp_path / "sys/class/hwmon/hwmon2"
    put(chip, name="ina3221", in1_label="VDD_IN", curr1_input=2_000, in1_input=5_000)
    put(chip, in2_label="VDD_CPU", curr2_input=1_000, in2_input=5_000)
    assert Ina(tmp_path).watts() == pytest.approx(10)


def test_without_an_input_rail_all_rails_add_up_and_all_must_be_known(tmp_path: Path) -> None:
    chip = tmp_path / "sys/class/hwmon/hwmon2"
    put(chip, name="ina226", power1_input=3_000_000)
    put(tmp_path / "sys/class/hwmon/hwmon3", name="ina226", power1_input=4_000_000)
    put(tmp_path / "sys/class/hwmon/hwmon4", name="coretemp", power1_input=99_000_000)
    assert Ina(tmp_path).watts() == pytest.approx(7)
    put(chip, power1_input="torn?")
    assert Ina(tmp_path).watts() is None


def test_power_becomes_energy_by_the_mean_of_two_readings(tmp_path: Path) -> None:
    battery(tmp_path, power_now=10_000_000)
    gauge = PowerSupply(tmp_path)
    assert gauge.begin()
    battery(tmp_path, power_now=30_000_000)
    assert gauge.joules(2.0) == pytest.approx(40)


# --- the meter -----------------------------------------------------------------------------------


def test_the_meter_measures_the_time_of_work_and_no_other(tmp_path: Path) -> None:
    clock = Clock()
    package = zone(tmp_path, "0", "package-0", 0)
    meter = PowerMeter(tmp_path, clock)
    put(package, energy_uj=500_000_000)  # before the work: nobody's
    began = meter.note_load(is_busy=True)
    assert began == EnergyMeasured(0.0, 7 * S, 7 * S, PowerMethod.RAPL)
    assert meter.note_load(is_busy=True) is None
    clock.ns += S
    put(package, energy_uj=530_000_000)
    assert meter.look() == EnergyMeasured(pytest.approx(30.0), 7 * S, 8 * S, PowerMethod.RAPL)
    clock.ns += S // 2
    put(package, energy_uj=540_000_000)
    ended = meter.note_load(is_busy=False)
    assert ended == EnergyMeasured(pytest.approx(10.0), 8 * S, 8 * S + S // 2, PowerMethod.RAPL)
    clock.ns += S
    put(package, energy_uj=900_000_000)
    assert meter.look() is None


def test_a_counter_that_fails_is_given_up_for_another(tmp_path: Path) -> None:
    clock = Clock()
    supply = battery(tmp_path, power_now=10_000_000)
    zone(tmp_path, "0", "package-0", 0)
    meter = PowerMeter(tmp_path, clock)
    began = meter.note_load(is_busy=True)
    assert began is not None
    assert began.method is PowerMethod.SUPPLY
    put(supply, status="Charging")
    clock.ns += S
    again = meter.look()
    assert again == EnergyMeasured(0.0, 8 * S, 8 * S, PowerMethod.RAPL)


def test_a_counter_that_was_reset_is_not_a_wrap(tmp_path: Path) -> None:
    clock = Clock()
    package = zone(tmp_path, "0", "package-0", 200_000_000_000)
    meter = PowerMeter(tmp_path, clock)
    meter.note_load(is_busy=True)
    put(package, energy_uj=5_000)
    clock.ns += S
    assert meter.look() == EnergyMeasured(0.0, 8 * S, 8 * S, PowerMethod.RAPL)
    put(package, energy_uj=20_005_000)
    clock.ns += S
    measured = meter.look()
    assert measured is not None
    assert measured.joules == pytest.approx(20)


def test_a_clock_that_does_not_move_gives_no_energy(tmp_path: Path) -> None:
    package = zone(tmp_path, "0", "package-0", 0)
    meter = PowerMeter(tmp_path, Clock())
    meter.note_load(is_busy=True)
    put(package, energy_uj=20_000_000)
    measured = meter.look()
    assert measured is not None
    assert measured.joules == 0
