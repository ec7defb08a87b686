"""What a VSS tree says, as signals: from datapoints of paths to values of names.

Invariants
- A signal whose paths the tree does not have, or has never had a value for, is one that this car
  does not have: None.
- A signal that had a reading and has none any more is not None: it falls silent, grows stale and
  holds the car. So does a measured value that nobody has renewed for `frozen_after_ms`.
- A value of the wrong type becomes NaN, which `Readings` calls invalid; it never becomes a guess.
- `is_parked` is the conjunction of its parts, and true only when every part says so.

Occupancy `UNKNOWN` is no value, never "empty". A departure exists only in timer mode END_TIME, with
a time; VSS writes times in UTC, and a time without an offset is wrong.

Deliberately absent: clocks and connections, which are `kuksa`'s.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from math import nan
from typing import Final

from edge_runtime.contract import limits
from edge_runtime.contract.clock import NS_PER_MS
from edge_runtime.contract.signals import SIGNALS, Value, Values

Raw = float | bool | int | str | None
"""A datapoint: None where the tree has no value now; an array or the like comes as a string."""

GEAR_PARK: Final = 126
"""`SelectedGear` of VSS: 126 is Park."""

_TIMER_MODE: Final = "Vehicle.Powertrain.TractionBattery.Charging.Timer.Mode"

PARKED_BY: Final[Mapping[str, str]] = {
    "park-lock": "Vehicle.Powertrain.Transmission.IsParkLockEngaged",
    "gear": "Vehicle.Powertrain.Transmission.SelectedGear",
    "brake": "Vehicle.Chassis.ParkingBrake.IsEngaged",
}
"""The parts of `is_parked`. A car that lacks one is parked by the others, where its installer says
so; a part that is asked for and is not in the tree leaves `is_parked` without a reading."""

MEASURED: Final = frozenset(
    {
        "battery_temperature_c",
        "battery_power_w",
        "ambient_temperature_c",
        "compute_temperature_c",
        "compute_power_w",
        "compute_load_percent",
        "low_voltage_v",
        "cabin_temperature_c",
    }
)
"""Continuous measurements: who provides them writes them again and again, changed or not."""

UNITS: Final[Mapping[str, str]] = {signal.path: signal.unit for signal in SIGNALS} | {
    "Vehicle.Powertrain.TractionBattery.Charging.Timer.Time": "iso8601",
}
"""The unit of each path in VSS 6.0; empty for none."""


class _Lost(Enum):
    """No value now, of a signal that the tree does have."""

    LOST = "lost"


_LOST: Final = _Lost.LOST
_Answer = Value | _Lost


def _number(raws: tuple[Raw, ...]) -> _Answer:
    (raw,) = raws
    if raw is None:
        return _LOST
    return nan if isinstance(raw, str | bool) else raw


def _flag(raws: tuple[Raw, ...]) -> _Answer:
    (raw,) = raws
    if raw is None:
        return _LOST
    return raw if isinstance(raw, bool) else nan


def _parked(raws: tuple[Raw, ...]) -> _Answer:
    if any(raw is False for raw in raws):
        return False
    if any(raw is None for raw in raws):
        return _LOST
    return True if all(raw is True for raw in raws) else nan


def _gear(raw: Raw) -> Raw:
    """Whether the gear is Park; what is no whole number says nothing that is right."""
    if raw is None:
        return None
    is_whole = isinstance(raw, int) and not isinstance(raw, bool)
    return raw == GEAR_PARK if is_whole else nan


def _occupied(raws: tuple[Raw, ...]) -> _Answer:
    match raws[0]:
        case "OCCUPIED":
            return True
        case "EMPTY":
            return False
        case None | "UNKNOWN":
            return _LOST
        case _:
            return nan


def _departure(raws: tuple[Raw, ...]) -> _Answer:
    """Time and mode. None is an answer here: nobody has said when the car must be ready."""
    time, mode = raws
    match mode:
        case None:
            return _LOST
        case "INACTIVE" | "START_TIME":
            return None
        case "END_TIME":
            pass
        case _:
            return nan
    if time is None:
        return _LOST
    if not isinstance(time, str):
        return nan
    return _utc_s(time) if time else None


def _utc_s(text: str) -> Value:
    """Whole seconds UTC of an ISO 8601 time; NaN for what is none, or has no offset."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return nan
    return nan if time.tzinfo is None else round(time.timestamp())


@dataclass(frozen=True, slots=True)
class _Binding:
    """How a signal is read: from which paths, and by what rule."""

    paths: tuple[str, ...]
    read: Callable[[tuple[Raw, ...]], _Answer]


def _bindings(parked_by: Collection[str]) -> dict[str, _Binding]:
    special = {
        "is_parked": _Binding(
            tuple(path for part, path in PARKED_BY.items() if part in parked_by), _parked
        ),
        "is_occupied": _Binding(("Vehicle.Cabin.Seat.Row1.DriverSide.OccupancyStatus",), _occupied),
        "departure_utc_s": _Binding(
            ("Vehicle.Powertrain.TractionBattery.Charging.Timer.Time", _TIMER_MODE), _departure
        ),
    }
    plain = {
        signal.name: _Binding((signal.path,), _flag if signal.datatype == "boolean" else _number)
        for signal in SIGNALS
    }
    return plain | special


def paths_of(names: Iterable[str], parked_by: Collection[str]) -> tuple[str, ...]:
    """Every path that these signals are read from, each once."""
    bindings = _bindings(parked_by)
    return tuple(dict.fromkeys(path for name in names for path in bindings[name].paths))


@dataclass(slots=True)
class _Held:
    """The newest datapoint of a path; `renewed_ns` is when its provider last wrote it."""

    raw: Raw
    stamp: object
    at_ns: int
    renewed_ns: int


@dataclass(slots=True)
class VssReadings:
    """The newest datapoints of a tree, and the signals that they make.

    `known` are the paths that the tree has. `frozen_after_ms` 0 believes a measured value for as
    long as the tree has it. `seen` are the signals that have had a reading, here or in an earlier
    session: what the car has once shown does not become "this car has none".
    """

    names: tuple[str, ...]
    known: frozenset[str]
    parked_by: tuple[str, ...] = tuple(PARKED_BY)
    frozen_after_ms: int = limits.SENSOR_FROZEN_MS
    seen: set[str] = field(default_factory=set)
    _bindings: dict[str, _Binding] = field(init=False)
    _by_path: dict[str, _Held] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._bindings = _bindings(self.parked_by)

    def update(self, path: str, raw: Raw, stamp: object, at_ns: int) -> None:
        """Take a datapoint that was true at boot time `at_ns`; an older one than is held is not.

        `stamp` is the tree's own time of the write, only ever compared for equality: a provider
        that writes the same value again has renewed it.
        """
        held = self._by_path.get(path)
        if held is not None and at_ns < held.at_ns:
            return
        is_renewed = held is None or held.stamp != stamp
        renewed_ns = at_ns if held is None or is_renewed else held.renewed_ns
        self._by_path[path] = _Held(raw, stamp, at_ns, renewed_ns)

    def values(self, now_ns: int, touched: frozenset[str] | None = None) -> Values:
        """The signals that can be told now; of all, or of those that read a path in `touched`."""
        told: Values = {}
        for name in self.names:
            binding = self._bindings[name]
            if touched is not None and touched.isdisjoint(binding.paths):
                continue
            answer = self._answer(name, binding, now_ns)
            if not isinstance(answer, _Lost):
                self.seen.add(name)
                told[name] = answer
            elif name not in self.seen:
                told[name] = None
        return told

    def _answer(self, name: str, binding: _Binding, now_ns: int) -> _Answer:
        if not self.known.issuperset(binding.paths):
            return _LOST
        if name in MEASURED and self._is_frozen(binding, now_ns):
            return _LOST
        raws = tuple(self._raw(path) for path in binding.paths)
        return binding.read(raws)

    def _raw(self, path: str) -> Raw:
        held = self._by_path.get(path)
        raw = None if held is None else held.raw
        return _gear(raw) if path == PARKED_BY["gear"] else raw

    def _is_frozen(self, binding: _Binding, now_ns: int) -> bool:
        held = [self._by_path[path] for path in binding.paths if path in self._by_path]
        limit_ns = self.frozen_after_ms * NS_PER_MS
        return bool(limit_ns) and any(now_ns - one.renewed_ns > limit_ns for one in held)
