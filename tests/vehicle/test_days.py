"""The recorded days under the owner's policy: work begins, never flaps, and stops with the signal.

Each day is read every few seconds, as a car lives it, with and without noise on every number.
"""

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_runtime.contract.clock import Now
from edge_runtime.vehicle.core.admission import Admission, Circumstances, Driving, Ready
from edge_runtime.vehicle.core.readings import Readings
from edge_runtime.vehicle.policy import (
    AirTemperature,
    Consent,
    Departure,
    Network,
    OwnerPolicy,
)
from edge_runtime.vehicle.sensors.traces import read_trace

DAYS = sorted((Path(__file__).parents[2] / "examples" / "traces").glob("*.csv"))
BOOT_NS = 1_000_000_000_000
STEP_S = 4
DEFAULT = OwnerPolicy(consent=Consent(given=True, version=1))
EVERYTHING = msgspec.structs.replace(
    DEFAULT,
    dwell_s=60,
    ambient_temperature=AirTemperature(),
    cabin_temperature=AirTemperature(),
    departure=Departure(reserve_hours=3, conditioning="stop"),
    network=Network(metered="allow"),
)


def begun(day: Path, policy: OwnerPolicy, noise: random.Random | None) -> list[int]:
    """Boot times at which work could begin on this day; checks each moment's signals."""
    trace, readings, admission = read_trace(day), Readings(), Admission()
    times: list[int] = []
    was_ready = False
    for time_ns, values in trace.moments(STEP_S * 1_000_000_000):
        utc_ms = int(trace.start_utc_s * 1000) + time_ns // 1_000_000
        now = Now(BOOT_NS + time_ns, utc_ms)
        read: dict[str, Any] = dict(values)
        if noise is not None:
            read |= {
                name: value + noise.uniform(-2, 2)
                for name, value in read.items()
                if isinstance(value, float) and name != "charge_percent"
            }
            if isinstance(charge := read.get("charge_percent"), float | int):
                read["charge_percent"] = min(100.0, max(0.0, charge + noise.uniform(-2, 2)))
        readings.update(read, now.boot_ns)
        decision = admission.decide(now, Circumstances(policy, readings, True, 0.0))
        is_ready = isinstance(decision, Ready)
        if is_ready:
            assert read["is_parked"]
            assert not read["is_occupied"]
            assert read["is_plugged"]
            assert read["charge_percent"] >= policy.charge.stop_percent
        if not read["is_parked"]:
            assert isinstance(decision, Driving)
        if is_ready and not was_ready:
            times.append(now.boot_ns)
        was_ready = is_ready
    return times


def test_there_are_three_days() -> None:
    assert len(DAYS) == 3


@pytest.mark.parametrize("policy", [DEFAULT, EVERYTHING], ids=["default", "everything"])
@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("day", DAYS, ids=lambda day: day.stem)
def test_no_day_makes_it_flap(day: Path, seed: int | None, policy: OwnerPolicy) -> None:
    noise = None if seed is None else random.Random(seed)
    times = begun(day, policy, noise)
    assert all(after - before >= policy.dwell_ns for before, after in pairwise(times))
    if seed is None:
        assert len(times) <= 12, "a day has a handful of beginnings"


def test_some_day_lets_the_car_work() -> None:
    assert any(
        begun(day, msgspec.structs.replace(DEFAULT, network=Network(metered="allow")), None)
        for day in DAYS
    )
