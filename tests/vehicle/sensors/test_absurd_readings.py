"""Every signal, every kind of absurdity, through the car's core: the engine is frozen within 1 s.

The policy requires every signal there is; a unit is being computed when the absurdity begins.
"""

from collections.abc import Callable
from math import inf, nan
from typing import Any

import pytest
from car_bench import GOOD, MODEL, Bench, S, offer

from edge_runtime.contract import limits
from edge_runtime.contract.reasons import HoldReason
from edge_runtime.contract.signals import SIGNALS, WIRE_SIGNALS, VssSignal
from edge_runtime.vehicle.core import commands as c
from edge_runtime.vehicle.core import events as e
from edge_runtime.vehicle.policy import Consent, OwnerPolicy

POLICY_TICK_S = 1.0
STALE_S = limits.SENSOR_STALE_MS / 1000

ALL_GOOD: dict[str, Any] = GOOD | {
    "battery_temperature_c": 20.0,
    "battery_power_w": 0.0,
    "is_charging": False,
    "ambient_temperature_c": 15.0,
    "compute_power_w": 5.0,
    "compute_load_percent": 1.0,
    "low_voltage_v": 12.8,
    "power_saving_level": 0,
    "departure_utc_s": 4_000_000_000,
    "cabin_temperature_c": 18.0,
    "battery_energy_kwh": 40.0,
    "battery_health_percent": 97.0,
    "is_conditioning": False,
    "is_network_metered": False,
}
POLICY = OwnerPolicy(
    consent=Consent(given=True, version=1),
    dwell_s=0,
    require=tuple(signal.name for signal in SIGNALS),
)

each_signal = pytest.mark.parametrize("signal", SIGNALS, ids=lambda signal: signal.name)


def wrong_type(signal: VssSignal) -> Any:
    return 1 if signal.datatype == "boolean" else True


def fraction(signal: VssSignal) -> Any:
    """Where a number is wanted just outside its type or its range."""
    return signal.maximum + 1 if signal.datatype == "float" else 0.5


ABSURD_VALUES: dict[str, Callable[[VssSignal], Any]] = {
    "not a number": lambda _: nan,
    "infinite": lambda _: inf,
    "minus infinite": lambda _: -inf,
    "over the range": lambda signal: int(signal.maximum) + 1,
    "under the range": lambda signal: int(signal.minimum) - 1,
    "far beyond it": lambda _: 1e300,
    "an endless number": lambda _: 10**400,
    "of another type": wrong_type,
    "half of one": fraction,
    "words": lambda _: "80",
    "bytes": lambda _: b"\x01",
    "a list": lambda _: [1],
    "a table": lambda _: {"value": 1},
    "gone": lambda _: None,
}


def working_car() -> Bench:
    """A car that computes, with every signal good."""
    car = Bench(POLICY)
    car.signals = dict(ALL_GOOD)
    car.send(e.ClockJudged(is_trusted=True))
    car.send(e.BusConnected())
    car.send(e.ModelReady(MODEL))
    car.sense()
    car.send(e.Tick())
    car.take(offer())
    car.start(1, 0)
    assert not frozen(car)
    return car


def frozen(car: Bench) -> bool:
    """Whether the engine stands still, or is gone."""
    return car.engine.is_frozen or any(isinstance(one, c.KillEngine) for one in car.said)


def hold_of(car: Bench) -> str | None:
    states = [one for one in car.said if isinstance(one, c.LogState)]
    return states[-1].hold


def test_the_good_values_are_of_every_signal() -> None:
    assert ALL_GOOD.keys() == {signal.name for signal in SIGNALS}


def test_a_car_with_good_signals_computes_on() -> None:
    car = working_car()
    car.live(3 * STALE_S)
    assert not frozen(car)


@each_signal
@pytest.mark.parametrize("kind", ABSURD_VALUES)
def test_an_absurd_value_freezes_the_engine_in_the_step_that_brings_it(
    signal: VssSignal, kind: str
) -> None:
    car = working_car()
    car.advance(0.5)
    car.send(e.SignalsRead({signal.name: ABSURD_VALUES[kind](signal)}, car.boot_ns))
    assert frozen(car)
    expected = HoldReason.SENSOR_STALE if kind == "gone" else HoldReason.SENSOR_INVALID
    assert hold_of(car) == expected.value


@each_signal
@pytest.mark.parametrize(
    "age_s",
    [
        pytest.param(None, id="its source died"),
        pytest.param(0, id="the same reading again and again"),
        pytest.param(3600, id="its time runs an hour behind"),
    ],
)
def test_a_reading_that_is_not_renewed_freezes_the_engine_within_a_tick(
    signal: VssSignal, age_s: int | None
) -> None:
    car = working_car()
    last_ns, value = car.boot_ns, car.signals.pop(signal.name)
    while car.boot_ns - last_ns < (STALE_S + POLICY_TICK_S) * S:
        assert frozen(car) is (car.boot_ns - last_ns > STALE_S * S)
        car.live(0.25)
        if age_s is not None:
            car.send(e.SignalsRead({signal.name: value}, last_ns - age_s * S))
    assert frozen(car)
    assert hold_of(car) == HoldReason.SENSOR_STALE.value


@each_signal
def test_a_reading_from_the_future_is_not_believed(signal: VssSignal) -> None:
    car = working_car()
    reading = {signal.name: car.signals[signal.name]}
    car.send(e.SignalsRead(reading, car.boot_ns + 3600 * S))
    assert frozen(car)
    assert hold_of(car) == HoldReason.SENSOR_STALE.value


def test_ten_thousand_readings_of_one_moment_leave_one() -> None:
    car = working_car()
    for turn in range(10_000):
        car.core.handle(e.SignalsRead({"charge_percent": 80.0 + turn / 1e4}, car.boot_ns), car.now)
    car.send(e.SignalsRead({"charge_percent": 10.0}, car.boot_ns))
    assert frozen(car)


def test_a_signal_of_no_name_is_counted_and_nothing_else() -> None:
    car = working_car()
    car.send(e.SignalsRead({"mood": nan}, car.boot_ns))
    assert not frozen(car)


def test_local_signals_never_leave_the_car() -> None:
    car = working_car()
    published = [one.state for one in car.said if isinstance(one, c.PublishState)]
    assert published
    fields = tuple(signal.name for signal in WIRE_SIGNALS)
    assert all(state.signals.__struct_fields__ == fields for state in published)
    assert published[-1].signals.charge_percent == 80.0
