"""The owner's rules one by one: what each says of a moment, and with which key and numbers."""

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_admission import GOOD, MIDNIGHT_UTC_MS, POLICY, Car, S

from edge_runtime.contract.reasons import HoldReason
from edge_runtime.vehicle.core.admission import Decision, Hold, Ready
from edge_runtime.vehicle.core.rules import Finding, Level, Side
from edge_runtime.vehicle.policy import (
    AirTemperature,
    Allowed,
    Departure,
    Energy,
    Network,
    OwnerPolicy,
    TariffWindow,
    Wear,
    Window,
)

NOON_S = MIDNIGHT_UTC_MS // 1000 + 12 * 3600


def policy(**changes: Any) -> OwnerPolicy:
    return msgspec.structs.replace(POLICY, **changes)


def car(**changes: Any) -> Car:
    return Car(policy=policy(**changes))


def opened(**changes: Any) -> Car:
    it = car(**changes)
    it.open()
    return it


def deciding(it: Car) -> Finding:
    """The finding that decided last."""
    assert it.admission.last is not None
    return max(it.admission.last.findings, key=lambda finding: finding.level)


def stop(reason: HoldReason) -> Decision:
    return Hold(reason, stop=True)


def finish(reason: HoldReason) -> Decision:
    return Hold(reason, stop=False)


def test_every_finding_names_its_key_its_limit_and_what_was_compared() -> None:
    it = opened()
    it.decide(charge_percent=48.0)
    assert deciding(it) == Finding(
        Level.STOP,
        HoldReason.CHARGE_LOW,
        "charge.stop_percent",
        Side.BELOW,
        50.0,
        48.0,
        "charge_percent",
        "charge.start_percent",
        60.0,
    )


@pytest.mark.parametrize(
    ("changes", "signals", "decision", "key"),
    [
        (
            {"quiet_hours": (Window(start="12:00", end="13:00"),)},
            {},
            stop(HoldReason.OUTSIDE_SCHEDULE),
            "quiet_hours",
        ),
        (
            {"allowed": Allowed(jurisdictions=("eu", "ch"))},
            {},
            stop(HoldReason.JURISDICTION_NOT_ALLOWED),
            "allowed.jurisdictions",
        ),
        (
            {"energy": Energy(price_max_per_kwh=0.3, price_per_kwh=0.31)},
            {},
            finish(HoldReason.TARIFF_HIGH),
            "energy.price_max_per_kwh",
        ),
        (
            {
                "energy": Energy(price_max_per_kwh=0.3),
                "tariff": (TariffWindow(start="01:00", end="02:00", price_per_kwh=0.1),),
            },
            {},
            finish(HoldReason.TARIFF_HIGH),
            "energy.price_max_per_kwh",
        ),
        (
            {"energy": Energy(budget_wh_per_month=100)},
            {},
            finish(HoldReason.ENERGY_BUDGET_SPENT),
            "energy.budget_wh_per_month",
        ),
        (
            {"wear": Wear(equivalent_full_cycles_per_year=5)},
            {},
            finish(HoldReason.WEAR_BUDGET_SPENT),
            "wear.equivalent_full_cycles_per_year",
        ),
        (
            {"network": Network(budget_mb_per_month=5)},
            {},
            finish(HoldReason.DATA_BUDGET_SPENT),
            "network.budget_mb_per_month",
        ),
        (
            {},
            {"is_network_metered": True},
            stop(HoldReason.NETWORK_METERED),
            "network.metered",
        ),
        (
            {},
            {"departure_utc_s": NOON_S + 29 * 60},
            stop(HoldReason.DEPARTURE_SOON),
            "departure.stop_before_min",
        ),
        (
            {},
            {"departure_utc_s": NOON_S - 29 * 60},
            stop(HoldReason.DEPARTURE_SOON),
            "departure.stop_before_min",
        ),
        (
            {"departure": Departure(reserve_hours=8)},
            {"departure_utc_s": NOON_S + 7 * 3600, "charge_percent": 84.0},
            stop(HoldReason.CHARGE_LOW),
            "departure.reserve_stop_percent",
        ),
        (
            {"departure": Departure(conditioning="stop")},
            {"is_conditioning": True},
            stop(HoldReason.DEPARTURE_SOON),
            "departure.conditioning",
        ),
        (
            {"ambient_temperature": AirTemperature()},
            {"ambient_temperature_c": 40.5},
            stop(HoldReason.AMBIENT_OUT_OF_RANGE),
            "ambient_temperature.stop_max_c",
        ),
        (
            {"cabin_temperature": AirTemperature()},
            {"cabin_temperature_c": -15.5},
            stop(HoldReason.CABIN_OUT_OF_RANGE),
            "cabin_temperature.stop_min_c",
        ),
        (
            {"cabin_temperature": AirTemperature()},
            {},
            stop(HoldReason.SENSOR_STALE),
            "cabin_temperature",
        ),
        (
            {"require": ("battery_energy_kwh",)},
            {},
            stop(HoldReason.SENSOR_STALE),
            "require",
        ),
    ],
)
def test_each_rule_holds_the_car_and_says_its_key(
    changes: dict[str, Any], signals: dict[str, Any], decision: Decision, key: str
) -> None:
    it = car(**changes)
    it.values |= signals
    assert it.decide() == decision
    assert deciding(it).key == key


@pytest.mark.parametrize(
    ("changes", "signals"),
    [
        ({"quiet_hours": (Window(start="13:00", end="12:00"),)}, {}),
        ({"allowed": Allowed(jurisdictions=("default",))}, {}),
        ({"energy": Energy(price_max_per_kwh=0.3, price_per_kwh=0.3)}, {}),
        ({"network": Network(metered="allow")}, {"is_network_metered": True}),
        ({}, {"is_network_metered": False}),
        ({}, {"departure_utc_s": NOON_S + 31 * 60}),
        ({}, {"departure_utc_s": NOON_S - 31 * 60}),
        (
            {"departure": Departure(reserve_hours=8)},
            {"departure_utc_s": NOON_S + 9 * 3600, "charge_percent": 84.0},
        ),
        ({}, {"is_conditioning": True, "cabin_temperature_c": 60.0, "ambient_temperature_c": 60.0}),
        ({"cabin_temperature": AirTemperature()}, {"cabin_temperature_c": 20.0}),
    ],
)
def test_each_rule_lets_work_go_on(changes: dict[str, Any], signals: dict[str, Any]) -> None:
    it = car(**changes)
    it.values |= signals
    it.open()


def test_budgets_that_are_counted_bind_when_they_are_spent() -> None:
    it = car(
        energy=Energy(budget_wh_per_month=100),
        wear=Wear(equivalent_full_cycles_per_year=5),
        network=Network(budget_mb_per_month=50),
    )
    it.counts = {"spent_wh_month": 99.9, "equivalent_full_cycles_year": 4.9, "data_mb_month": 49.9}
    it.open()
    for name, spent, reason in (
        ("spent_wh_month", 100.0, HoldReason.ENERGY_BUDGET_SPENT),
        ("equivalent_full_cycles_year", 5.0, HoldReason.WEAR_BUDGET_SPENT),
        ("data_mb_month", 50.0, HoldReason.DATA_BUDGET_SPENT),
        ("spent_wh_month", float("nan"), HoldReason.ENERGY_BUDGET_SPENT),
    ):
        before = it.counts[name]
        it.counts[name] = spent
        assert it.decide() == finish(reason)
        it.counts[name] = before


@pytest.mark.parametrize(
    "changes",
    [
        {"quiet_hours": (Window(start="01:00", end="02:00"),)},
        {"energy": Energy(price_max_per_kwh=0.3, price_per_kwh=0.1)},
    ],
)
def test_every_rule_about_hours_needs_a_clock_that_can_be_believed(changes: dict[str, Any]) -> None:
    it = opened(**changes)
    it.is_clock_trusted = False
    assert it.decide() == stop(HoldReason.CLOCK_UNTRUSTED)


def test_a_departure_needs_a_clock_that_can_be_believed() -> None:
    it = opened()
    it.is_clock_trusted = False
    assert it.decide() == Ready()
    assert it.decide(departure_utc_s=NOON_S + 86_400) == stop(HoldReason.CLOCK_UNTRUSTED)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("departure_utc_s", {}),
        ("is_network_metered", {}),
        ("cabin_temperature_c", {"cabin_temperature": AirTemperature()}),
        ("ambient_temperature_c", {"ambient_temperature": AirTemperature()}),
        ("is_conditioning", {"departure": Departure(conditioning="stop")}),
    ],
)
def test_a_rules_own_signal_that_falls_silent_or_turns_absurd_stops_work(
    name: str, changes: dict[str, Any]
) -> None:
    good: dict[str, Any] = {
        "departure_utc_s": NOON_S + 86_400,
        "is_network_metered": False,
        "cabin_temperature_c": 20.0,
        "ambient_temperature_c": 20.0,
        "is_conditioning": False,
    }
    it = car(**changes)
    it.values |= good
    it.open()
    assert it.decide(**{name: "absurd"}) == stop(HoldReason.SENSOR_INVALID)
    it = car(**changes)
    it.values |= good
    it.open()
    del it.values[name]
    it.advance(5.001)
    assert it.decide() == stop(HoldReason.SENSOR_STALE)


def test_the_departures_edges_are_seen_without_an_event() -> None:
    it = car(departure=Departure(reserve_hours=1, late_min=5))
    it.values |= {"departure_utc_s": NOON_S + 7200, "charge_percent": 86.0}
    it.open()
    seen: list[tuple[float, Decision]] = []
    while it.utc_ms < (NOON_S + 7200 + 600) * 1000:
        due = it.admission.next_ns(it.now, it.around)
        assert due is not None
        assert due > it.boot_ns
        it.utc_ms += (due - it.boot_ns) // 1_000_000
        it.boot_ns = due
        # 86 percent is over the reserve at which work stops, under the one at which it begins.
        decision = it.decide()
        if not seen or seen[-1][1] != decision:
            seen.append((it.utc_ms / 1000 - NOON_S, decision))
    (soon_s, soon), (over_s, over), (ready_s, ready) = seen[1:]
    assert seen[0][1] == Ready()
    assert soon == stop(HoldReason.DEPARTURE_SOON)
    assert 5400 <= soon_s <= 5400.1
    assert over == Hold(HoldReason.DWELL, stop=False)
    assert 7500 <= over_s <= 7500.1
    assert ready == Ready()
    assert 7509.9 <= ready_s <= 7510.2


def test_a_reserve_is_for_the_departure_alone() -> None:
    it = opened(departure=Departure(reserve_hours=8))
    assert it.decide(charge_percent=60.0) == Ready()
    assert it.decide(departure_utc_s=NOON_S + 7200) == stop(HoldReason.CHARGE_LOW)


def test_work_begins_so_often_a_day_and_no_more() -> None:
    it = car(cycles_per_day_max=2, dwell_s=10)
    for _ in range(2):
        it.open()
        assert it.decide(is_occupied=True) == stop(HoldReason.OCCUPIED)
        it.values["is_occupied"] = False
    it.decide()
    it.advance(10)
    assert it.decide() == finish(HoldReason.CYCLES_SPENT)
    due = it.admission.next_ns(it.now, it.around)
    it.utc_ms = MIDNIGHT_UTC_MS + 86_400_000
    it.boot_ns += 12 * 3600 * S
    assert due is not None
    it.decide()
    it.advance(10)
    assert it.decide() == Ready()


def test_a_cap_on_cycles_never_stops_the_last_one() -> None:
    it = car(cycles_per_day_max=1)
    it.open()
    for _ in range(100):
        it.advance(1)
        assert it.decide() == Ready()


def test_what_the_rules_say_does_not_depend_on_the_order_of_policies() -> None:
    """The calendar that is kept between decisions follows the policy and the minute."""
    it = car(schedule=(Window(start="11:00", end="12:01"),))
    it.open()
    it.policy = policy(schedule=(Window(start="12:01", end="11:00"),))
    assert it.decide() == stop(HoldReason.OUTSIDE_SCHEDULE)
    it.policy = policy(schedule=(Window(start="11:00", end="12:01"),))
    it.decide()
    it.advance(10)
    assert it.decide() == Ready()
    assert set(GOOD) <= set(it.values)


# --- noise ----------------------------------------------------------------------------------------

NOISY = policy(
    ambient_temperature=AirTemperature(),
    cabin_temperature=AirTemperature(),
    departure=Departure(reserve_hours=8, conditioning="stop"),
    energy=Energy(price_max_per_kwh=0.3, price_per_kwh=0.2),
)
STEADY: dict[str, Any] = {
    **GOOD,
    "charge_percent": 95.0,
    "ambient_temperature_c": 20.0,
    "cabin_temperature_c": 20.0,
    "departure_utc_s": NOON_S + 12 * 3600,
    "is_conditioning": False,
    "is_network_metered": False,
}
LEVELS: list[tuple[str, float]] = [
    *(("charge_percent", level) for level in (50.0, 60.0, 85.0, 90.0)),
    *(("battery_temperature_c", level) for level in (0.0, 5.0, 35.0, 42.0)),
    *(("ambient_temperature_c", level) for level in (-15.0, -10.0, 35.0, 40.0)),
    *(("cabin_temperature_c", level) for level in (-15.0, -10.0, 35.0, 40.0)),
    *(("compute_temperature_c", level) for level in (70.0, 78.0, 85.0)),
    *(("low_voltage_v", level) for level in (11.8, 12.2)),
    ("power_saving_level", 5),
    ("departure_utc_s", NOON_S + 30 * 60),
    ("departure_utc_s", NOON_S - 30 * 60),
    ("departure_utc_s", NOON_S + 8 * 3600),
]
FLAGS = ("is_parked", "is_occupied", "is_plugged", "is_conditioning", "is_network_metered")


def begun_at(it: Car, changes: list[tuple[float, dict[str, Any]]]) -> list[int]:
    """Boot times at which the car became ready, while `changes` come after so many seconds each."""
    times: list[int] = []
    was_ready = False
    for seconds, values in changes:
        it.advance(seconds)
        is_ready = it.decide(**values) == Ready()
        if is_ready and not was_ready:
            times.append(it.boot_ns)
        was_ready = is_ready
    return times


def assert_no_flapping(times: list[int], dwell_ns: int) -> None:
    assert all(after - before >= dwell_ns for before, after in pairwise(times))


@settings(max_examples=60, deadline=None)
@given(
    level=st.sampled_from(LEVELS),
    noise=st.lists(st.floats(-0.5, 0.5), min_size=30, max_size=120),
    period_s=st.sampled_from([0.05, 0.2, 1.0, 4.0]),
    begins_good=st.booleans(),
)
def test_noise_around_a_level_never_makes_it_flap(
    level: tuple[str, float], noise: list[float], period_s: float, *, begins_good: bool
) -> None:
    name, at = level
    it = Car(policy=NOISY)
    it.values = dict(STEADY)
    if begins_good:
        it.open()
    whole = isinstance(at, int)
    swing = 3600 if name == "departure_utc_s" else 4
    values: list[Any] = [round(at + swing * n) if whole else at + n for n in noise]
    changes = [(period_s, {name: value}) for value in values]
    assert_no_flapping(begun_at(it, changes), NOISY.dwell_ns)
    it.decide(**STEADY)
    it.advance(10)
    assert it.decide() == Ready()


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(FLAGS),
    flips=st.lists(st.booleans(), min_size=30, max_size=150),
    period_s=st.sampled_from([0.05, 1.0, 4.0]),
)
def test_a_flag_that_chatters_never_makes_it_flap(
    name: str, flips: list[bool], period_s: float
) -> None:
    it = Car(policy=NOISY)
    it.values = dict(STEADY)
    it.open()
    changes = [(period_s, {name: flip}) for flip in flips]
    assert_no_flapping(begun_at(it, changes), NOISY.dwell_ns)


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.3, 1.0, 5.0, 11.0, 61.0]),
            st.dictionaries(
                st.sampled_from(sorted(STEADY)),
                st.none() | st.booleans() | st.integers(-100, 100) | st.floats(),
                max_size=3,
            ),
            st.booleans(),
        ),
        min_size=1,
        max_size=60,
    ),
    cap=st.integers(1, 4),
)
def test_no_sequence_of_anything_flaps_or_passes_the_cap(steps: list[Any], cap: int) -> None:
    it = Car(policy=msgspec.structs.replace(NOISY, cycles_per_day_max=cap))
    it.values = dict(STEADY)
    changes = [(s, dict(STEADY) | values if good else values) for s, values, good in steps]
    times = begun_at(it, changes)
    assert_no_flapping(times, NOISY.dwell_ns)
    assert len(times) <= cap


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(sorted(STEADY)),
    fault=st.sampled_from(["absent", "stale", "nan", "text", "huge", "wrong kind"]),
)
def test_whatever_is_wrong_with_a_signal_work_stops(name: str, fault: str) -> None:
    """Absent decides only where a rule needs the signal; the rest stops work, whatever it is."""
    everything = msgspec.structs.replace(NOISY, require=tuple(STEADY))
    it = Car(policy=everything)
    it.values = dict(STEADY)
    it.open()
    bad: dict[str, Any] = {
        "absent": None,
        "nan": float("nan"),
        "text": "80",
        "huge": 1e300,
        "wrong kind": 1 if isinstance(STEADY[name], bool) else True,
    }
    if fault == "stale":
        del it.values[name]
        it.advance(5.001)
        decision = it.decide()
    else:
        decision = it.decide(**{name: bad[fault]})
    assert decision != Ready()
    assert isinstance(decision, Hold)
    assert decision.stop
    assert decision.reason in {HoldReason.SENSOR_STALE, HoldReason.SENSOR_INVALID}
    assert deciding(it).signal == name
