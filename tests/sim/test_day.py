"""The recorded days, lived by the production car: what holds it, when it works, what that takes."""

from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from edge_runtime.contract import limits
from edge_runtime.contract.errors import ConfigError
from edge_runtime.contract.reasons import Availability, HoldReason
from edge_runtime.sim.campaign import silence
from edge_runtime.sim.day import ITEM_S, DayRecord, DaySettings, live_day
from edge_runtime.vehicle.policy import PolicyError, example_policy
from edge_runtime.vehicle.sensors.traces import Trace, read_trace

TRACES = Path(__file__).parents[2] / "examples" / "traces"
SHIPPED_DWELL_S = 30.0
ITS_OWN_S = 20.0
CONSENT = "[consent]\ngiven = true\nversion = 1\n"

# Each span of ten minutes or more under the shipped policy: minutes, and why no work was taken.
DAYS: dict[str, list[tuple[int, HoldReason | None]]] = {
    "commute": [
        (29, HoldReason.BATTERY_COLD),
        (453, None),
        (29, HoldReason.DEPARTURE_SOON),
        (36, HoldReason.NOT_PARKED),
        (420, HoldReason.NETWORK_METERED),
        (30, HoldReason.NOT_PARKED),
        (440, None),
    ],
    "winter": [
        (424, HoldReason.BATTERY_COLD),
        (29, HoldReason.DEPARTURE_SOON),
        (45, HoldReason.NOT_PARKED),
        (439, HoldReason.NETWORK_METERED),
        (38, HoldReason.NOT_PARKED),
        (66, HoldReason.CHARGE_LOW),
        (398, None),
    ],
    "long-trip": [
        (796, None),
        (29, HoldReason.DEPARTURE_SOON),
        (61, HoldReason.NOT_PARKED),
        (20, HoldReason.NETWORK_METERED),
        (27, HoldReason.NOT_PARKED),
        (61, HoldReason.NETWORK_METERED),
        (24, HoldReason.NOT_PARKED),
        (20, HoldReason.NETWORK_METERED),
        (51, HoldReason.NOT_PARKED),
        (20, HoldReason.NETWORK_METERED),
        (13, HoldReason.NOT_PARKED),
        (311, None),
    ],
}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    silence()


def part_of(name: str, from_h: float, to_h: float) -> Trace:
    """Some hours of a recorded day."""
    whole = read_trace(TRACES / f"{name}.csv")
    rows = [
        (time_ns, row)
        for time_ns, row in zip(whole.times_ns, whole.rows, strict=True)
        if from_h <= time_ns / 3.6e12 < to_h
    ]
    first_ns = rows[0][0]
    return Trace(
        whole.names,
        whole.start_utc_s + first_ns / 1e9,
        tuple(time_ns - first_ns for time_ns, _ in rows),
        tuple(row for _, row in rows),
    )


def policy_file(folder: Path, text: str) -> Path:
    path = folder / "policy.toml"
    path.write_text(text)
    return path


def check(day: DayRecord, dwell_s: float) -> None:
    """What is true of every day, whatever its policy."""
    assert day.spans[0].from_s == 0
    assert day.spans[-1].to_s == day.length_s
    assert all(before.to_s == after.from_s for before, after in pairwise(day.spans)), "no gap"
    for before, after in pairwise(day.spans):
        if after.availability is Availability.READY:
            assert before.hold is HoldReason.DWELL
            assert before.to_s - before.from_s >= dwell_s - 1, "work begins after a whole dwell"
    worked_s = day.seconds_in(Availability.WORKING, Availability.READY)
    assert abs(day.took.computing_min * 60 - worked_s) < ITS_OWN_S, "it computed while it could"
    watts = day.settings.compute_power_w
    assert day.took.total_wh == pytest.approx(watts * day.took.computing_min / 60)
    assert day.took.grid_wh + day.took.pack_wh == pytest.approx(day.took.total_wh)
    assert day.took.units_wh <= day.took.total_wh
    assert day.marks[-1].grid_wh + day.marks[-1].pack_wh <= day.took.total_wh + 1e-9
    assert day.took.items == day.done.items_done == day.items
    assert day.items == pytest.approx(worked_s / ITEM_S, rel=0.01, abs=10)
    assert day.done.items_failed == 0
    for before_mark, mark in pairwise(day.marks):
        assert mark.at_s - before_mark.at_s == 60
        assert mark.grid_wh >= before_mark.grid_wh
        assert mark.pack_wh >= before_mark.pack_wh


@pytest.mark.timeout(900)  # two cores that others fill take six times as long
@pytest.mark.parametrize("name", DAYS)
def test_a_recorded_day_under_the_shipped_policy(name: str) -> None:
    seconds: list[float] = []
    day = live_day(read_trace(TRACES / f"{name}.csv"), on_time=seconds.append)
    check(day, SHIPPED_DWELL_S)
    long = [
        (round((span.to_s - span.from_s) / 60), span.hold)
        for span in day.spans
        if span.to_s - span.from_s >= 600
    ]
    assert [reason for _, reason in long] == [reason for _, reason in DAYS[name]]
    for (minutes, _), (expected, _) in zip(long, DAYS[name], strict=True):
        assert minutes == pytest.approx(expected, abs=1)
    assert day.assumed_consent
    assert day.took.pack_wh == 0, "the shipped policy works only while plugged in"
    assert day.took.methods == ("stated_power",)
    began = sum(span.availability is Availability.WORKING for span in day.spans)
    assert began == sum(reason is None for _, reason in DAYS[name]), "it does not flap"
    assert day.given_back <= 2 * (began + 1), "what it had in hand when it stopped"
    assert day.completed + day.given_back == day.taken
    assert seconds == [60.0 * number for number in range(len(seconds))]
    assert seconds[-1] > day.length_s - 61


def test_the_same_day_is_the_same_record() -> None:
    trace = part_of("commute", 16.3, 17.2)
    once, again = (msgspec.json.encode(live_day(trace)) for _ in range(2))
    assert once == again


def test_work_from_the_battery_is_said_to_be_and_wears_it(tmp_path: Path) -> None:
    text = CONSENT + "[network]\nmetered = 'allow'\n"
    path = policy_file(tmp_path, "plugged_only = false\ndwell_s = 3\n" + text)
    day = live_day(
        part_of("winter", 9, 10), path, DaySettings(compute_power_w=500.0, pack_kwh=45.0)
    )
    check(day, 3)
    assert not day.assumed_consent
    assert day.took.grid_wh == 0
    assert day.took.pack_wh == pytest.approx(500, rel=0.02), "an hour at 500 W"
    assert day.took.equivalent_full_cycles > 0
    assert day.took.cycle_wear_percent > 0


def test_the_owners_lists_do_not_end_the_trial(tmp_path: Path) -> None:
    lists = f'[allowed]\ntenants = ["hospital"]\npurposes = ["care"]\nmodels = ["{"a" * 64}"]\n'
    day = live_day(part_of("commute", 20, 20.2), policy_file(tmp_path, CONSENT + lists))
    assert day.items > 0


def test_a_spent_budget_ends_the_day(tmp_path: Path) -> None:
    path = policy_file(tmp_path, CONSENT + "[energy]\nbudget_wh_per_day = 10\n")
    day = live_day(part_of("commute", 20, 21), path)
    assert day.spans[-1].hold is HoldReason.ENERGY_BUDGET_SPENT
    assert 9 < day.took.total_wh <= 10


def test_a_paused_or_wrong_policy_is_what_it_is(tmp_path: Path) -> None:
    trace = part_of("commute", 20, 20.1)
    day = live_day(trace, policy_file(tmp_path, "paused = true\n" + CONSENT))
    assert {span.hold for span in day.spans} == {HoldReason.OWNER_PAUSED}
    assert day.items == 0
    with pytest.raises(PolicyError, match="dwell_s"):
        live_day(trace, policy_file(tmp_path, "dwell_s = 'long'"))
    with pytest.raises(PolicyError, match="no policy file"):
        live_day(trace, tmp_path / "none.toml")


def test_readings_that_are_missing_or_impossible_hold_the_car() -> None:
    trace = part_of("commute", 20, 20.2)
    place = trace.names.index("charge_percent")
    half = len(trace.rows) // 2
    rows = tuple(
        (*row[:place], None if number < half else 900.0, *row[place + 1 :])
        for number, row in enumerate(trace.rows)
    )
    day = live_day(Trace(trace.names, trace.start_utc_s, trace.times_ns, rows))
    assert [span.hold for span in day.spans] == [HoldReason.SENSOR_STALE, HoldReason.SENSOR_INVALID]


def test_a_trace_too_long_or_too_late_is_refused() -> None:
    rows = ((50.0,), (50.0,))
    too_long = Trace(("charge_percent",), 0.0, (0, round(limits.DAY_MAX_S * 1e9)), rows)
    with pytest.raises(ConfigError, match=r"384\.0 hours, at most 192"):
        live_day(too_long)
    with pytest.raises(ConfigError, match="utc_s"):
        live_day(Trace(("charge_percent",), limits.DAY_UTC_MAX_S * 2, (0, 1_000_000_000), rows))
    with pytest.raises(ConfigError, match="compute_power_w"):
        live_day(
            Trace(("charge_percent",), 0.0, (0, 1_000_000_000), rows),
            None,
            DaySettings(compute_power_w=-1),
        )


def test_the_shipped_policy_gives_no_consent() -> None:
    assert "given = false" in example_policy()
