"""Why, in words: the deciding rule first, with its key, its numbers and what would clear it."""

from typing import Any

import msgspec
import pytest
from car_bench import GOOD, POLICY, Bench
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.contract.reasons import HoldReason
from edge_runtime.vehicle.core import events as e
from edge_runtime.vehicle.core.explain import Explanation, RuleSays
from edge_runtime.vehicle.policy import (
    AirTemperature,
    Consent,
    Departure,
    Energy,
    OwnerPolicy,
    Window,
)


def why(car: Bench) -> Explanation:
    return car.core.explain(car.now)


def deciding(car: Bench) -> RuleSays:
    return why(car).forbids[0]


def test_a_car_that_may_work_says_every_rule_that_lets_it() -> None:
    car = Bench().open()
    said = why(car)
    assert (said.availability, said.hold, said.forbids) == ("ready", None, ())
    assert said.summary == "nothing forbids work; the car is ready"
    by_key = {rule.key: rule for rule in said.allows}
    assert by_key["charge.start_percent"].text == (
        "charge 80 % is at or above charge.start_percent 60 %"
    )
    assert by_key["charge.start_percent"].age_s == 0.0
    assert by_key["charge.start_percent"].quality == "good"
    assert {"consent.given", "paused", "parked_only", "empty_only", "plugged_only"} <= set(by_key)


def test_before_it_has_begun_the_level_at_which_work_begins_decides() -> None:
    car = Bench()
    car.sense(charge_percent=48.0)
    rule = deciding(car)
    assert rule.key == "charge.stop_percent"
    car.sense(charge_percent=55.0)
    rule = deciding(car)
    assert rule.text == "charge 55 % is below charge.start_percent 60 %"
    assert (rule.limit, rule.value, rule.signal) == (60.0, 55.0, "charge_percent")
    assert rule.change == "charge must rise to charge.start_percent, 60 %"
    assert rule.verdict == "keep"


def test_the_worst_comes_first_and_everything_bad_is_there() -> None:
    car = Bench().open()
    car.sense(charge_percent=55.0, compute_temperature_c=80.0, is_occupied=True)
    said = why(car)
    assert [rule.hold for rule in said.forbids] == ["occupied", "compute_hot", "charge_low"]
    assert said.hold == "occupied"
    assert said.stops_work
    assert said.summary == "is_occupied is true, and empty_only is true"
    assert said.forbids[0].change == "is_occupied must be false"
    assert said.forbids[1].text == (
        "compute temperature 80 °C is above compute_temperature.continue_c 78 °C"
    )
    assert said.forbids[1].change == (
        "compute temperature must fall to compute_temperature.start_c, 70 °C"
    )


def test_the_age_is_that_of_the_reading_now() -> None:
    car = Bench().open()
    car.sense(charge_percent=48.0)
    car.advance(3)
    assert deciding(car).age_s == 3.0
    car.advance(3)
    stale = deciding(car)
    assert stale.hold == "sensor_stale"
    assert "it was read 6.0 s ago, and 5 s is the limit" in stale.text
    assert stale.quality == "stale"


def test_an_impossible_and_an_absent_reading_say_what_was_read() -> None:
    car = Bench().open()
    car.sense(charge_percent=130.0)
    assert deciding(car).text == "charge_percent is impossible: 130.0 is not 0 to 100 %"
    car.sense(charge_percent=None)
    assert deciding(car).text.startswith("charge_percent is not there, and require asks for it")


def test_the_dwell_says_how_long() -> None:
    car = Bench()
    car.sense()
    car.live(4)
    said = why(car)
    assert said.hold == "dwell"
    assert said.dwell_left_s == 6.0
    assert said.summary == "everything is good, and must stay so for 6 s more (dwell_s)"


def test_this_computers_own_troubles_are_said_too() -> None:
    car = Bench().open()
    car.send(e.ShutdownRequested())
    assert deciding(car).hold == "draining"
    assert "leaving" in deciding(car).text


def test_no_policy_says_so() -> None:
    car = Bench(HoldReason.POLICY_INVALID)
    car.sense()
    assert deciding(car).text == "the policy file is wrong"
    assert deciding(car).change == "a policy file that can be read and is right"


@pytest.mark.parametrize(
    ("changes", "signals", "text"),
    [
        ({"consent": Consent()}, {}, "consent.given is false"),
        ({"paused": True}, {}, "paused is true"),
        (
            {"schedule": (Window(start="03:00", end="04:00"),)},
            {},
            "now is outside every window of schedule",
        ),
        (
            {"energy": Energy(price_max_per_kwh=0.3, price_per_kwh=0.31)},
            {},
            "the price of energy 0.31 per kWh is above energy.price_max_per_kwh 0.3 per kWh",
        ),
        (
            {},
            {"departure_utc_s": 1_767_614_400 + 600},
            "the next departure is in 10 minutes, and departure.stop_before_min is 30",
        ),
        (
            {"cabin_temperature": AirTemperature()},
            {"cabin_temperature_c": 41.5},
            "cabin temperature 41.5 °C is above cabin_temperature.stop_max_c 40 °C",
        ),
        ({}, {"is_plugged": False}, "is_plugged is false, and plugged_only is true"),
        ({}, {"low_voltage_v": 11.0}, "low voltage 11 V is below low_voltage.stop_v 11.8 V"),
    ],
)
def test_each_rule_has_its_words(
    changes: dict[str, Any], signals: dict[str, Any], text: str
) -> None:
    car = Bench(msgspec.structs.replace(POLICY, **changes))
    car.send(e.ClockJudged(is_trusted=True))
    car.sense(**signals)
    assert deciding(car).text == text
    assert deciding(car).change


anything = st.none() | st.booleans() | st.integers(-200, 200) | st.floats() | st.text(max_size=100)


@settings(max_examples=200, deadline=None)
@given(
    signals=st.dictionaries(
        st.sampled_from([*GOOD, "departure_utc_s", "cabin_temperature_c", "is_network_metered"]),
        anything,
    ),
    begun=st.booleans(),
)
def test_whatever_is_read_it_can_be_said_and_sent(signals: dict[str, Any], *, begun: bool) -> None:
    policy: OwnerPolicy = msgspec.structs.replace(
        POLICY, cabin_temperature=AirTemperature(), departure=Departure(reserve_hours=8)
    )
    car = Bench(policy)
    if begun:
        car.sense(cabin_temperature_c=20.0)
        car.live(11)
    car.sense(**signals)
    said = why(car)
    assert msgspec.json.decode(msgspec.json.encode(said), type=Explanation)
    if said.hold is not None:
        assert said.hold == "dwell" or said.forbids[0].hold == said.hold
    for rule in (*said.forbids, *said.allows):
        assert rule.text
        assert "\n" not in rule.text
        assert len(rule.text) < 300
        assert (rule.change is None) == (rule.hold is None)
