"""Several sources as one: each signal comes from the source that is chosen for it.

Invariants
- A signal has one source. What another source says of it is not heard, not even while the chosen
  one is silent: it grows stale, and stale means no work.
- A source that tells more than `SENSOR_EDGES_PER_S_MAX` times a second is heard every
  `SENSOR_FLOOD_MS`, with the newest of each signal: it costs the car neither its processor nor
  more than that delay.
- A source that ends leaves the others alone; one that breaks is a defect and ends the car's agent.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from edge_runtime.contract import limits
from edge_runtime.contract.clock import NS_PER_MS
from edge_runtime.contract.errors import ConfigError
from edge_runtime.contract.signals import SIGNALS, Value, Values
from edge_runtime.vehicle.clock import boot_ns
from edge_runtime.vehicle.core.events import SignalsRead
from edge_runtime.vehicle.ports import Sensors

_NAMES: Final = tuple(signal.name for signal in SIGNALS)
_SECOND_NS: Final = 1000 * NS_PER_MS

Emit = Callable[[SignalsRead], None]


def choose(default: str, by_signal: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """Which signals each source gives: `by_signal` names exceptions from `default`.

    Raises `ConfigError` for an unknown signal.
    """
    unknown = sorted(by_signal.keys() - set(_NAMES))
    if unknown:
        raise ConfigError(f"{unknown[0][:64]!r} is no signal; known are {', '.join(_NAMES)}")
    sources = (default, *by_signal.values())
    chosen = {
        source: frozenset(n for n in _NAMES if by_signal.get(n, default) == source)
        for source in sources
    }
    return {source: names for source, names in chosen.items() if names}


class CombinedSensors:
    """`parts` are sources, each with the names of the signals that it is heard for."""

    def __init__(
        self,
        parts: Mapping[str, tuple[Sensors, frozenset[str]]],
        clock: Callable[[], int] = boot_ns,
    ) -> None:
        self.parts = dict(parts)
        self._clock = clock
        self.ears: dict[str, Ear] = {}

    def note_load(self, *, is_busy: bool) -> None:
        """Every source may want to know."""
        for sensors, _ in self.parts.values():
            sensors.note_load(is_busy=is_busy)

    async def run(self, emit: Emit) -> None:
        """Tell what each source says of its signals, until cancelled."""
        loop = asyncio.get_running_loop()
        self.ears = {
            source: Ear(names, emit, self._clock, loop.call_later)
            for source, (_, names) in self.parts.items()
        }
        try:
            async with asyncio.TaskGroup() as tasks:
                for source, (sensors, _) in self.parts.items():
                    tasks.create_task(sensors.run(self.ears[source].hear), name=source)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group
        finally:
            for ear in self.ears.values():
                ear.close()


@dataclass(slots=True)
class Ear:
    """Hears one source: only of its signals, and a flood of it in portions.

    `merged` counts the tellings that were merged with a later one. `later` is the loop's
    `call_later`.
    """

    names: frozenset[str]
    emit: Emit
    clock: Callable[[], int]
    later: Callable[..., asyncio.TimerHandle]
    merged: int = 0
    _second_ns: int = 0
    _told: int = 0
    _waiting: dict[str, tuple[int, Value]] = field(default_factory=dict)
    _timer: asyncio.TimerHandle | None = None

    def hear(self, event: SignalsRead) -> None:
        """Pass on at once, or with the next portion of a flood."""
        values = {name: value for name, value in event.values.items() if name in self.names}
        if not values:
            return
        now_ns = self.clock()
        if not 0 <= now_ns - self._second_ns < _SECOND_NS:
            self._second_ns, self._told = now_ns, 0
        self._told += 1
        if self._timer is None and self._told <= limits.SENSOR_EDGES_PER_S_MAX:
            self.emit(SignalsRead(values, event.at_ns))
            return
        self.merged += bool(self._waiting)
        for name, value in values.items():
            held = self._waiting.get(name)
            if held is None or held[0] <= event.at_ns:
                self._waiting[name] = (event.at_ns, value)
        if self._timer is None:
            self._timer = self.later(limits.SENSOR_FLOOD_MS / 1000, self._flush)

    def _flush(self) -> None:
        waiting, self._waiting, self._timer = self._waiting, {}, None
        by_time: dict[int, Values] = {}
        for name, (at_ns, value) in waiting.items():
            by_time.setdefault(at_ns, {})[name] = value
        for at_ns in sorted(by_time):
            self.emit(SignalsRead(by_time[at_ns], at_ns))

    def close(self) -> None:
        """Forget what waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
