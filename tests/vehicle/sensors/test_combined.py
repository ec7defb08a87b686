"""Several sources as one: every signal has one source, and a flood is heard in portions."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from sensor_rig import listening

from edge_runtime.contract import limits
from edge_runtime.contract.errors import ConfigError
from edge_runtime.contract.signals import SIGNALS
from edge_runtime.vehicle.core.events import SignalsRead
from edge_runtime.vehicle.sensors.combined import CombinedSensors, Ear, choose

NAMES = frozenset(signal.name for signal in SIGNALS)


@dataclass
class Scripted:
    """Says what it is told to say, then waits, ends, or breaks."""

    says: list[dict[str, Any]]
    ends: bool = False
    breaks: Exception | None = None
    loads: list[bool] = field(default_factory=list)

    def note_load(self, *, is_busy: bool) -> None:
        self.loads.append(is_busy)

    async def run(self, emit: Callable[[SignalsRead], None]) -> None:
        for at_ns, values in enumerate(self.says, 1):
            emit(SignalsRead(values, at_ns))
        if self.breaks is not None:
            raise self.breaks
        if not self.ends:
            await asyncio.Event().wait()


def test_each_signal_is_chosen_once() -> None:
    chosen = choose("linux", {"charge_percent": "kuksa", "is_parked": "kuksa"})
    assert chosen["kuksa"] == {"charge_percent", "is_parked"}
    assert chosen["linux"] == NAMES - {"charge_percent", "is_parked"}
    assert choose("kuksa", {"is_parked": "kuksa"}) == {"kuksa": NAMES}


def test_a_source_that_is_chosen_for_nothing_is_not_made() -> None:
    assert choose("linux", dict.fromkeys(NAMES, "kuksa")) == {"kuksa": NAMES}


def test_an_unknown_signal_is_named() -> None:
    with pytest.raises(ConfigError, match="'mood' is no signal; known are charge_percent"):
        choose("linux", {"mood": "linux"})


async def test_only_the_chosen_source_is_heard_even_while_it_is_silent() -> None:
    battery = Scripted([{"charge_percent": 50.0, "compute_temperature_c": 90.0}])
    computer = Scripted([{"charge_percent": 99.0, "compute_temperature_c": 40.0}], ends=True)
    silent = Scripted([])
    both = CombinedSensors(
        {
            "kuksa": (battery, frozenset({"charge_percent"})),
            "linux": (computer, NAMES - {"charge_percent", "is_parked"}),
            "trace": (silent, frozenset({"is_parked"})),
        }
    )
    async with listening(both) as listener:
        await listener.hears_value("charge_percent", 50.0)
        await listener.hears_value("compute_temperature_c", 40.0)
    assert len(listener.said) == 2
    both.note_load(is_busy=True)
    assert battery.loads == computer.loads == silent.loads == [True]


async def test_a_source_that_breaks_ends_all_with_its_own_error() -> None:
    broken = Scripted([], breaks=ZeroDivisionError("a defect"))
    both = CombinedSensors({"a": (broken, NAMES), "b": (Scripted([]), frozenset())})
    with pytest.raises(ZeroDivisionError, match="a defect"):
        await both.run(lambda _: None)


class Timer:
    """What `call_later` gives; nobody cancels it here."""

    def cancel(self) -> None:
        raise AssertionError("nothing was closed")


@dataclass
class Bench:
    """An ear with a clock to turn; `later` keeps what would be called."""

    now_ns: int = 10**12
    said: list[SignalsRead] = field(default_factory=list)
    timers: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def ear(self) -> Ear:
        def later(delay_s: float, call: Callable[[], None]) -> Any:
            self.timers.append((delay_s, call))
            return Timer()

        return Ear(NAMES, self.said.append, lambda: self.now_ns, later)


def test_a_flood_is_merged_and_the_newest_of_each_signal_is_told() -> None:
    bench = Bench()
    ear = bench.ear()
    most = limits.SENSOR_EDGES_PER_S_MAX
    for turn in range(10 * most):
        bench.now_ns += 1000
        ear.hear(SignalsRead({"charge_percent": turn, "is_plugged": True}, bench.now_ns))
    assert len(bench.said) == most
    ((delay_s, flush),) = bench.timers
    assert delay_s == limits.SENSOR_FLOOD_MS / 1000
    flush()
    assert bench.said[-1].values == {"charge_percent": 10 * most - 1, "is_plugged": True}
    assert bench.said[-1].at_ns == bench.now_ns
    assert ear.merged == 9 * most - 1


def test_merged_readings_keep_their_own_times() -> None:
    bench = Bench()
    ear = bench.ear()
    for _ in range(limits.SENSOR_EDGES_PER_S_MAX):
        ear.hear(SignalsRead({"charge_percent": 1.0}, 5))
    ear.hear(SignalsRead({"is_parked": False}, 20))
    ear.hear(SignalsRead({"is_parked": True, "charge_percent": 2.0}, 10))
    bench.timers[0][1]()
    assert [(event.at_ns, event.values) for event in bench.said[-2:]] == [
        (10, {"charge_percent": 2.0}),
        (20, {"is_parked": False}),
    ]


def test_after_a_quiet_second_edges_are_told_at_once_again() -> None:
    bench = Bench()
    ear = bench.ear()
    for _ in range(2 * limits.SENSOR_EDGES_PER_S_MAX):
        ear.hear(SignalsRead({"charge_percent": 1.0}, bench.now_ns))
    bench.timers[0][1]()
    heard = len(bench.said)
    bench.now_ns += 1_000_000_000
    ear.hear(SignalsRead({"is_parked": False}, bench.now_ns))
    assert len(bench.said) == heard + 1


def test_a_clock_that_steps_back_does_not_deafen() -> None:
    bench = Bench()
    ear = bench.ear()
    for _ in range(limits.SENSOR_EDGES_PER_S_MAX):
        ear.hear(SignalsRead({"charge_percent": 1.0}, bench.now_ns))
    bench.now_ns -= 3600 * 10**9
    ear.hear(SignalsRead({"is_parked": False}, bench.now_ns))
    assert bench.said[-1].values == {"is_parked": False}
