"""Admission: fails closed, stops at once, begins only after the dwell, never flaps."""

from dataclasses import dataclass, field
from itertools import pairwise
from math import inf, nan
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.contract import limits
from edge_runtime.contract.clock import Now
from edge_runtime.contract.reasons import HoldReason
from edge_runtime.contract.signals import Signals
from edge_runtime.vehicle.core.admission import (
    USED_SIGNALS,
    Admission,
    Circumstances,
    Decision,
    Driving,
    Hold,
    Ready,
)
from edge_runtime.vehicle.core.readings import Quality, Readings
from edge_runtime.vehicle.policy import (
    CAR_REQUIRES,
    Consent,
    Energy,
    OwnerPolicy,
    Window,
)

S = 1_000_000_000
MIDNIGHT_UTC_MS = 1_767_571_200_000
GOOD: dict[str, Any] = {
    "is_parked": True,
    "is_occupied": False,
    "is_plugged": True,
    "charge_percent": 80.0,
    "battery_temperature_c": 20.0,
    "compute_temperature_c": 45.0,
    "low_voltage_v": 12.8,
    "power_saving_level": 0,
}
POLICY = OwnerPolicy(consent=Consent(given=True, version=1), dwell_s=10)


@dataclass
class Car:
    """Admission with its world: set signals, move time, ask."""

    policy: OwnerPolicy | HoldReason = POLICY
    boot_ns: int = 1_000 * S
    utc_ms: int = MIDNIGHT_UTC_MS + 12 * 3600 * 1000
    is_clock_trusted: bool = True
    spent_wh: float = 0.0
    counts: dict[str, float] = field(default_factory=dict)
    admission: Admission = field(default_factory=Admission)
    readings: Readings = field(default_factory=Readings)
    values: dict[str, Any] = field(default_factory=lambda: dict(GOOD))

    @property
    def now(self) -> Now:
        return Now(self.boot_ns, self.utc_ms)

    @property
    def around(self) -> Circumstances:
        return Circumstances(
            self.policy, self.readings, self.is_clock_trusted, self.spent_wh, **self.counts
        )

    def decide(self, **changes: Any) -> Decision:
        """Everything is read afresh, with these changes."""
        self.values |= changes
        self.readings.update(self.values, self.boot_ns)
        return self.admission.decide(self.now, self.around)

    def silence(self) -> Decision:
        """Nothing is read."""
        return self.admission.decide(self.now, self.around)

    def advance(self, seconds: float) -> None:
        self.boot_ns += round(seconds * S)
        self.utc_ms += round(seconds * 1000)

    def open(self) -> None:
        self.decide()
        self.advance(10)
        assert self.decide() == Ready()


def test_ready_comes_only_after_the_dwell() -> None:
    car = Car()
    assert car.decide() == Hold(HoldReason.DWELL, stop=False)
    car.advance(9.999)
    assert car.decide() == Hold(HoldReason.DWELL, stop=False)
    car.advance(0.001)
    assert car.decide() == Ready()


STOPS = [
    ({"is_parked": False}, Driving()),
    ({"is_occupied": True}, Hold(HoldReason.OCCUPIED, stop=True)),
    ({"is_plugged": False}, Hold(HoldReason.NOT_PLUGGED, stop=True)),
    ({"charge_percent": 49.9}, Hold(HoldReason.CHARGE_LOW, stop=True)),
    ({"battery_temperature_c": 42.1}, Hold(HoldReason.BATTERY_HOT, stop=True)),
    ({"battery_temperature_c": -0.1}, Hold(HoldReason.BATTERY_COLD, stop=True)),
    ({"compute_temperature_c": 85.0}, Hold(HoldReason.COMPUTE_HOT, stop=True)),
    ({"compute_temperature_c": 78.1}, Hold(HoldReason.COMPUTE_HOT, stop=False)),
    ({"low_voltage_v": 11.7}, Hold(HoldReason.LOW_VOLTAGE_LOW, stop=True)),
    ({"power_saving_level": 6}, Hold(HoldReason.POWER_SAVING, stop=True)),
    ({"charge_percent": nan}, Hold(HoldReason.SENSOR_INVALID, stop=True)),
    ({"compute_temperature_c": inf}, Hold(HoldReason.SENSOR_INVALID, stop=True)),
    ({"charge_percent": 100.1}, Hold(HoldReason.SENSOR_INVALID, stop=True)),
    ({"charge_percent": True}, Hold(HoldReason.SENSOR_INVALID, stop=True)),
    ({"is_occupied": 0}, Hold(HoldReason.SENSOR_INVALID, stop=True)),
    ({"is_parked": "yes"}, Hold(HoldReason.SENSOR_INVALID, stop=True)),
    ({"power_saving_level": 1.5}, Hold(HoldReason.SENSOR_INVALID, stop=True)),
    ({"charge_percent": None}, Hold(HoldReason.SENSOR_STALE, stop=True)),
]


@pytest.mark.parametrize(("changes", "decision"), STOPS)
def test_every_stop_condition_stops_at_once(changes: dict[str, Any], decision: Decision) -> None:
    car = Car()
    car.open()
    assert car.decide(**changes) == decision


KEEPS = [
    {"charge_percent": 50.0},
    {"charge_percent": 59.9},
    {"battery_temperature_c": 36.0},
    {"battery_temperature_c": 4.0},
    {"compute_temperature_c": 78.0},
    {"compute_temperature_c": 70.1},
    {"low_voltage_v": 12.0},
]


@pytest.mark.parametrize("changes", KEEPS)
def test_between_start_and_stop_an_open_car_goes_on_and_a_closed_one_stays_closed(
    changes: dict[str, Any],
) -> None:
    car = Car()
    car.open()
    assert car.decide(**changes) == Ready()
    closed = Car()
    for _ in range(30):
        decision = closed.decide(**changes)
        assert isinstance(decision, Hold)
        assert not decision.stop
        closed.advance(1)


@pytest.mark.parametrize("name", ["battery_temperature_c", "low_voltage_v", "power_saving_level"])
def test_a_signal_the_car_does_not_have_decides_nothing(name: str) -> None:
    car = Car()
    car.values[name] = None
    car.open()


def test_a_laptop_lists_what_it_can_read() -> None:
    car = Car(policy=msgspec.structs.replace(POLICY, require=("compute_temperature_c",)))
    car.values = {"compute_temperature_c": 50.0}
    car.open()


@pytest.mark.parametrize("name", CAR_REQUIRES)
def test_a_silent_sensor_closes_the_car_when_it_becomes_stale(name: str) -> None:
    car = Car()
    car.open()
    del car.values[name]
    stale_s = limits.SENSOR_STALE_MS / 1000
    car.advance(stale_s)
    assert car.decide() == Ready()
    due = car.admission.next_ns(car.now, car.around)
    assert due == car.boot_ns + 1
    car.boot_ns = due
    assert car.decide() == Hold(HoldReason.SENSOR_STALE, stop=True)


def test_a_reading_from_the_future_is_stale() -> None:
    car = Car()
    car.open()
    car.readings.update({"charge_percent": 80.0}, car.boot_ns + S)
    assert car.silence() == Hold(HoldReason.SENSOR_STALE, stop=True)


def test_an_older_reading_never_replaces_a_newer_one() -> None:
    car = Car()
    car.open()
    car.readings.update({"is_occupied": True}, car.boot_ns - 1)
    assert car.silence() == Ready()


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (HoldReason.POLICY_INVALID, HoldReason.POLICY_INVALID),
        (HoldReason.CONSENT_MISSING, HoldReason.CONSENT_MISSING),
        (OwnerPolicy(), HoldReason.CONSENT_MISSING),
        (OwnerPolicy(consent=Consent(version=2)), HoldReason.CONSENT_WITHDRAWN),
        (msgspec.structs.replace(POLICY, paused=True), HoldReason.OWNER_PAUSED),
        (msgspec.structs.replace(POLICY, network_metered=True), HoldReason.NETWORK_METERED),
        (
            msgspec.structs.replace(POLICY, schedule=(Window(start="22:00", end="06:00"),)),
            HoldReason.OUTSIDE_SCHEDULE,
        ),
    ],
)
def test_the_owner_comes_first(policy: OwnerPolicy | HoldReason, reason: HoldReason) -> None:
    car = Car()
    car.open()
    car.policy = policy
    assert car.decide() == Hold(reason, stop=True)


def test_a_schedule_needs_a_clock_that_can_be_believed() -> None:
    car = Car(
        policy=msgspec.structs.replace(POLICY, schedule=(Window(start="00:00", end="00:00"),))
    )
    car.open()
    car.is_clock_trusted = False
    assert car.decide() == Hold(HoldReason.CLOCK_UNTRUSTED, stop=True)


def test_the_schedules_end_is_seen_without_an_event() -> None:
    car = Car(
        policy=msgspec.structs.replace(POLICY, schedule=(Window(start="11:00", end="12:01"),))
    )
    car.open()
    while car.decide() == Ready():
        due = car.admission.next_ns(car.now, car.around)
        assert due is not None
        car.advance((due - car.boot_ns) / S)
    assert car.silence() == Hold(HoldReason.OUTSIDE_SCHEDULE, stop=True)
    assert car.utc_ms == MIDNIGHT_UTC_MS + (12 * 60 + 1) * 60_000


def test_a_spent_energy_budget_finishes_what_is_held() -> None:
    car = Car(policy=msgspec.structs.replace(POLICY, energy=Energy(budget_wh_per_day=100)))
    car.open()
    car.spent_wh = 100
    assert car.decide() == Hold(HoldReason.ENERGY_BUDGET_SPENT, stop=False)


def test_a_relaxed_policy_lets_a_driver_keep_the_car_working() -> None:
    relaxed = msgspec.structs.replace(
        POLICY, parked_only=False, empty_only=False, plugged_only=False
    )
    car = Car(policy=relaxed)
    car.values |= {"is_parked": False, "is_occupied": True, "is_plugged": False}
    car.open()


def test_only_usable_signals_are_reported() -> None:
    car = Car()
    car.decide(charge_percent=nan, compute_temperature_c=51, ambient_temperature_c=-300.0)
    signals = car.readings.signals(car.now)
    assert signals.charge_percent is None
    assert signals.ambient_temperature_c is None
    assert signals.compute_temperature_c == 51
    assert signals.is_parked is True
    car.advance(60)
    assert car.readings.signals(car.now) == Signals()


def test_an_unknown_name_is_counted() -> None:
    readings = Readings()
    readings.update({"mood": 3}, 0)
    assert readings.unknown_names == 1


# --- properties -----------------------------------------------------------------------------

numbers = st.floats(allow_nan=True, allow_infinity=True, width=32) | st.floats(-20, 120)
anything = numbers | st.booleans() | st.none()
value_of = {
    name: (
        (st.booleans() | st.sampled_from([True, False]))
        if isinstance(good, bool)
        else st.just(good)
    )
    | st.just(good)
    | anything
    for name, good in GOOD.items()
}
step = st.tuples(
    st.fixed_dictionaries({}, optional=value_of),
    st.lists(st.sampled_from(sorted(GOOD)), max_size=2),
    st.sampled_from([0.0, 0.5, 1.0, 3.0, 6.0, 11.0]),
    st.booleans(),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(step, min_size=1, max_size=40))
def test_no_sequence_of_readings_makes_it_flap_or_fail_open(steps: list[Any]) -> None:
    car = Car()
    became_ready_ns: list[int] = []
    was_ready = False
    for changes, silent, seconds, back_to_good in steps:
        if back_to_good:
            car.values = dict(GOOD)
        car.values |= changes
        read = {name: value for name, value in car.values.items() if name not in silent}
        car.readings.update(read, car.boot_ns)
        decision = car.silence()
        is_ready = isinstance(decision, Ready)
        qualities = {name: car.readings.quality(name, car.now) for name in USED_SIGNALS}
        if is_ready:
            assert all(qualities[name] is Quality.GOOD for name in CAR_REQUIRES)
            assert not {Quality.STALE, Quality.INVALID} & set(qualities.values())
            assert car.readings.flag("is_occupied", car.now) is False
            assert car.readings.flag("is_parked", car.now) is True
        if is_ready and not was_ready:
            became_ready_ns.append(car.boot_ns)
        was_ready = is_ready
        car.advance(seconds)
    gaps = [b - a for a, b in pairwise(became_ready_ns)]
    assert all(gap >= POLICY.dwell_ns for gap in gaps)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([changes for changes, decision in STOPS if decision.stop]),
    st.integers(0, 100),
)
def test_a_stop_is_immediate_whatever_came_before(changes: dict[str, Any], pauses: int) -> None:
    car = Car()
    car.open()
    for _ in range(pauses):
        car.advance(1)
        assert car.decide() == Ready()
    decision = car.decide(**changes)
    assert not isinstance(decision, Ready)
    assert decision.stop
