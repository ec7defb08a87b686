"""The car's signals with their ages: which are there, fresh and possible.

Invariants
- A reading is usable only while it is younger than `SENSOR_STALE_MS`, of the right type, finite
  and inside the range of its VSS signal. Nothing else is ever used or published.
- Local signals are never published, however good they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from edge_runtime.contract import limits
from edge_runtime.contract.clock import NS_PER_MS, Now
from edge_runtime.contract.signals import SIGNALS, WIRE_SIGNALS, Signals, VssSignal

STALE_NS: Final = limits.SENSOR_STALE_MS * NS_PER_MS

_BY_NAME: Final = {signal.name: signal for signal in SIGNALS}


class Quality(Enum):
    """What can be said of a signal now."""

    GOOD = "good"
    ABSENT = "absent"
    STALE = "stale"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class Reading:
    """A value and when it was read; `value` None says that the car has no such reading.

    `is_possible`: of the right type and inside the range of its VSS signal.
    """

    value: float | bool | int | None
    at_ns: int
    is_possible: bool


@dataclass(slots=True)
class Readings:
    """The newest reading of every signal."""

    _by_name: dict[str, Reading] = field(default_factory=dict)
    unknown_names: int = 0

    def update(self, values: Mapping[str, float | bool | int | None], at_ns: int) -> None:
        """Take newer readings; an older one than is held is ignored, an unknown name counted."""
        for name, value in values.items():
            if name not in _BY_NAME:
                self.unknown_names += 1
                continue
            held = self._by_name.get(name)
            if held is None or held.at_ns <= at_ns:
                self._by_name[name] = Reading(value, at_ns, _is_possible(_BY_NAME[name], value))

    def newest(self, name: str) -> Reading | None:
        """The newest reading, usable or not, for people to look at."""
        return self._by_name.get(name)

    def age_s(self, name: str, now: Now) -> float | None:
        """How long ago the newest reading was made; None where there is none."""
        reading = self._by_name.get(name)
        return None if reading is None else (now.boot_ns - reading.at_ns) / 1e9

    def quality(self, name: str, now: Now) -> Quality:
        """What can be said of the signal called `name`."""
        reading = self._by_name.get(name)
        if reading is None or reading.value is None:
            return Quality.ABSENT
        if not 0 <= now.boot_ns - reading.at_ns <= STALE_NS:
            return Quality.STALE
        return Quality.GOOD if reading.is_possible else Quality.INVALID

    def number(self, name: str, now: Now) -> float | None:
        """The usable value of a numeric signal."""
        return self._usable(name, now)

    def flag(self, name: str, now: Now) -> bool | None:
        """The usable value of a boolean signal."""
        value = self._usable(name, now)
        return None if value is None else bool(value)

    def _usable(self, name: str, now: Now) -> float | None:
        reading = self._by_name.get(name)
        if reading is None or not reading.is_possible:
            return None
        return reading.value if 0 <= now.boot_ns - reading.at_ns <= STALE_NS else None

    def signals(self, now: Now) -> Signals:
        """The wire form: what is usable and may leave the car, None for the rest."""
        usable: dict[str, Any] = {s.name: self._usable(s.name, now) for s in WIRE_SIGNALS}
        return Signals(**usable)

    def next_stale_ns(self, now: Now) -> int | None:
        """When the next reading that is fresh now becomes stale."""
        return min(
            (
                reading.at_ns + STALE_NS + 1
                for reading in self._by_name.values()
                if reading.value is not None and reading.at_ns + STALE_NS >= now.boot_ns
            ),
            default=None,
        )


def _is_possible(signal: VssSignal, value: float | bool | None) -> bool:
    if signal.datatype == "boolean":
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if signal.datatype != "float" and not isinstance(value, int):
        return False
    # False for NaN and the infinities too; `isfinite` would raise for an endless whole number.
    return signal.minimum <= value <= signal.maximum
