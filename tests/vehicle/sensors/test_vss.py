"""From paths to signals: what each datapoint means, and what is silence."""

from math import isnan, nan
from typing import Any

import pytest
from sensor_rig import BRAKE, CHARGE, COMPUTE_C, GEAR, PARK_LOCK, SEAT

from edge_runtime.contract import limits
from edge_runtime.contract.clock import NS_PER_MS
from edge_runtime.contract.signals import SIGNALS
from edge_runtime.vehicle.sensors.vss import PARKED_BY, UNITS, VssReadings, paths_of

NAMES = tuple(signal.name for signal in SIGNALS)
PATHS = paths_of(NAMES, PARKED_BY)
S = 1_000_000_000
FROZEN_NS = limits.SENSOR_FROZEN_MS * NS_PER_MS
TIMER = "Vehicle.Powertrain.TractionBattery.Charging.Timer"


def tree(**settings: Any) -> VssReadings:
    return VssReadings(NAMES, frozenset(PATHS), **settings)


def told(name: str, *datapoints: tuple[str, Any]) -> Any:
    """What a fresh tree with these datapoints says of a signal."""
    readings = tree()
    for path, raw in datapoints:
        readings.update(path, raw, 1, S)
    return readings.values(S)[name]


def test_a_tree_without_values_says_none_of_everything() -> None:
    assert tree().values(S) == dict.fromkeys(NAMES)


def test_a_path_that_the_tree_lacks_is_no_reading() -> None:
    readings = VssReadings(NAMES, frozenset(PATHS) - {CHARGE})
    readings.update(CHARGE, 80.0, 1, S)
    assert readings.values(S)["charge_percent"] is None


@pytest.mark.parametrize(
    ("lock", "gear", "brake", "parked"),
    [
        (True, 126, True, True),
        (False, 126, True, False),
        (True, 1, True, False),
        (True, 0, True, False),
        (True, -1, True, False),
        (True, 126, False, False),
        (False, None, None, False),
        (None, None, False, False),
        (True, None, True, None),
        (None, 126, True, None),
        (None, None, None, None),
        (True, 126, 1, nan),
        (True, True, True, nan),
        (True, 126.0, True, nan),
        ("true", 126, True, nan),
    ],
)
def test_parked_is_the_conjunction(lock: Any, gear: Any, brake: Any, parked: Any) -> None:
    said = told("is_parked", (PARK_LOCK, lock), (GEAR, gear), (BRAKE, brake))
    if isinstance(parked, float):
        assert isinstance(said, float)
        assert isnan(said)
    else:
        assert said is parked


def test_a_car_without_a_park_lock_is_parked_by_the_others() -> None:
    readings = VssReadings(NAMES, frozenset(PATHS) - {PARK_LOCK}, ("gear", "brake"))
    readings.update(GEAR, 126, 1, S)
    assert readings.values(S)["is_parked"] is None
    readings.update(BRAKE, raw=True, stamp=1, at_ns=S)
    assert readings.values(S)["is_parked"] is True


@pytest.mark.parametrize(
    ("raw", "occupied"), [("OCCUPIED", True), ("EMPTY", False), ("UNKNOWN", None), (None, None)]
)
def test_unknown_occupancy_is_no_reading_and_never_empty(raw: Any, occupied: Any) -> None:
    assert told("is_occupied", (SEAT, raw)) is occupied


@pytest.mark.parametrize(
    ("mode", "time", "departure"),
    [
        ("END_TIME", "2026-11-23T06:30:00Z", 1_795_415_400),
        ("END_TIME", "2026-11-23T07:30:00+01:00", 1_795_415_400),
        ("END_TIME", "2026-11-23T06:30:00.4Z", 1_795_415_400),
        ("START_TIME", "2026-11-23T06:30:00Z", None),
        ("INACTIVE", "2026-11-23T06:30:00Z", None),
        ("END_TIME", "", None),
        ("END_TIME", None, None),
        (None, "2026-11-23T06:30:00Z", None),
        ("END_TIME", "2026-11-23T06:30:00", nan),
        ("END_TIME", "tomorrow", nan),
        ("END_TIME", 7.5, nan),
        ("SOMETIME", "2026-11-23T06:30:00Z", nan),
        ("END_TIME", "9999-12-31T23:59:59Z", 253_402_300_799),
    ],
)
def test_a_departure_needs_an_end_time_with_an_offset(mode: Any, time: Any, departure: Any) -> None:
    said = told("departure_utc_s", (f"{TIMER}.Mode", mode), (f"{TIMER}.Time", time))
    assert said == departure or (said is not None and isnan(said) and isnan(departure))


def test_a_timer_that_is_switched_off_is_told() -> None:
    readings = tree()
    readings.update(f"{TIMER}.Mode", "END_TIME", 1, S)
    readings.update(f"{TIMER}.Time", "2026-11-23T06:30:00Z", 1, S)
    assert readings.values(S)["departure_utc_s"] is not None
    readings.update(f"{TIMER}.Mode", "INACTIVE", 2, 2 * S)
    assert readings.values(2 * S)["departure_utc_s"] is None


@pytest.mark.parametrize("raw", ["80", True, "float_array"])
def test_a_number_of_another_type_is_invalid(raw: Any) -> None:
    said = told("charge_percent", (CHARGE, raw))
    assert isinstance(said, float)
    assert isnan(said)


def test_what_was_there_falls_silent_and_does_not_become_none() -> None:
    readings = tree()
    readings.update(CHARGE, 80.0, 1, S)
    assert readings.values(S)["charge_percent"] == 80.0
    readings.update(CHARGE, None, 2, 2 * S)
    assert "charge_percent" not in readings.values(2 * S)
    later = VssReadings(NAMES, frozenset(PATHS) - {CHARGE}, seen=readings.seen)
    assert "charge_percent" not in later.values(3 * S)


def test_a_measurement_that_nobody_renews_falls_silent() -> None:
    readings = tree()
    readings.update(COMPUTE_C, 40.0, "first", S)
    readings.update(CHARGE, 80.0, "first", S)
    for second in range(2, 61):
        readings.update(COMPUTE_C, 40.0, "first", second * S)
    assert readings.values(S + FROZEN_NS)["compute_temperature_c"] == 40.0
    late = readings.values(S + FROZEN_NS + 1)
    assert "compute_temperature_c" not in late
    assert late["charge_percent"] == 80.0
    readings.update(COMPUTE_C, 40.0, "again", 62 * S)
    assert readings.values(62 * S)["compute_temperature_c"] == 40.0


def test_a_tree_of_slow_providers_may_be_believed_for_ever() -> None:
    readings = tree(frozen_after_ms=0)
    readings.update(COMPUTE_C, 40.0, "first", S)
    assert readings.values(1000 * FROZEN_NS)["compute_temperature_c"] == 40.0


def test_an_older_datapoint_does_not_replace_a_newer_one() -> None:
    readings = tree()
    readings.update(SEAT, "OCCUPIED", 2, 2 * S)
    readings.update(SEAT, "EMPTY", 1, S)
    assert readings.values(2 * S)["is_occupied"] is True


def test_only_what_a_change_touches_is_told() -> None:
    readings = tree()
    readings.update(GEAR, 1, 1, S)
    assert readings.values(S, frozenset({GEAR})) == {"is_parked": False}


def test_every_path_is_of_vss_and_has_a_unit_where_vss_has_one() -> None:
    assert len(set(PATHS)) == len(PATHS)
    assert {path for path in PATHS if not UNITS.get(path)} == {
        path for path in PATHS if path not in UNITS or UNITS[path] == ""
    }
    assert UNITS[f"{TIMER}.Time"] == "iso8601"
    assert UNITS[COMPUTE_C] == "Celsius"
