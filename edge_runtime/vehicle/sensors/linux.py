"""What a Linux computer can say of itself: thermometers, power supplies, load, metered link.

Invariants
- What is not there, or cannot be read, is None; never zero, never an old value.
- What was there and is gone is not None: the signal falls silent, and grows stale. A computer that
  loses its thermometer while it works must not go on without.
- Reading never waits: files of the kernel and of NetworkManager only, below `root`.

A computer knows nothing of doors and gears: `is_parked` and `is_occupied` are None here, and a
policy for such a computer does not require them.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edge_runtime.contract import limits
from edge_runtime.contract.signals import SIGNALS, Value, Values
from edge_runtime.vehicle.clock import boot_ns
from edge_runtime.vehicle.core.events import SignalsRead
from edge_runtime.vehicle.sensors.files import entries_of, number_of, text_of
from edge_runtime.vehicle.sensors.metering import Metering

_NAMES: Final = tuple(signal.name for signal in SIGNALS)
_FLAGS: Final = tuple(signal.name for signal in SIGNALS if signal.datatype == "boolean")
_MAY_END: Final = frozenset({"compute_load_percent", "is_network_metered"})
"""No load of no time, no word on no network: None is an answer here."""
_EDGE_PERIOD_S: Final = 0.2
_PROCESSOR_CHIPS: Final = frozenset(
    {"coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal", "tegra"}
)
_PROCESSOR_ZONES: Final = ("cpu", "soc", "pkg", "core", "gpu", "acpitz")
_MILLI: Final = 1_000.0
_MICRO: Final = 1_000_000.0
_MAINS: Final = frozenset({"Mains", "USB", "USB_C", "Wireless"})


@dataclass(frozen=True, slots=True)
class _Battery:
    """One battery; None for what its driver does not say."""

    charge_percent: float | None
    temperature_c: float | None
    is_charging: bool | None
    power_w: float | None
    energy_kwh: float | None
    health_percent: float | None


def _battery(supply: Path) -> _Battery:
    """Units of the kernel's `power_supply` class: 0.1 Celsius, microwatt, microwatt hour."""
    status = text_of(supply / "status")
    tenths = number_of(supply / "temp")
    microwatts = number_of(supply / "power_now")
    microwatt_hours = number_of(supply / "energy_now")
    full = number_of(supply / "energy_full") or number_of(supply / "charge_full")
    new = number_of(supply / "energy_full_design") or number_of(supply / "charge_full_design")
    sign = -1 if status == "Discharging" else 1
    return _Battery(
        charge_percent=number_of(supply / "capacity"),
        temperature_c=None if tenths is None else tenths / 10,
        is_charging=None if status is None else status == "Charging",
        power_w=None if microwatts is None else sign * abs(microwatts) / _MICRO,
        energy_kwh=None if microwatt_hours is None else microwatt_hours / _MICRO / 1000,
        # A new battery holds a little more than its design says.
        health_percent=min(100.0, 100 * full / new) if full and new else None,
    )


def _over(combine: Callable[[list[Any]], Value], parts: list[Any]) -> Value:
    """The combination of what the batteries say; None where none says anything."""
    said = [part for part in parts if part is not None]
    return combine(said) if said else None


class LinuxSensors:
    """Reads everything once a period, and plug and charge state five times a second."""

    def __init__(self, root: Path = Path("/"), clock: Callable[[], int] = boot_ns) -> None:
        self._root = root
        self._clock = clock
        self._metering = Metering(root)
        self._last_load: tuple[int, int] | None = None
        self._seen: set[str] = set()

    def note_load(self, *, is_busy: bool) -> None:
        """Nothing: the thermometer knows better."""

    async def run(self, emit: Callable[[SignalsRead], None]) -> None:
        """Tell every edge at once and every signal once a period, until cancelled."""
        per_period = max(1, round(limits.SENSOR_PERIOD_MS / 1000 / _EDGE_PERIOD_S))
        flags: Values = {}
        turn = 0
        while True:
            values = self.read() if turn == 0 else self._still_there(self._power())
            now_flags = {name: values[name] for name in _FLAGS if name in values}
            if turn == 0 or now_flags != flags:
                emit(SignalsRead(values, self._clock()))
            flags = now_flags
            turn = (turn + 1) % per_period
            await asyncio.sleep(_EDGE_PERIOD_S)

    def read(self) -> Values:
        """Every signal that can be told; None where this computer has no such reading."""
        values: Values = dict.fromkeys(_NAMES)
        values["compute_load_percent"] = self._load_percent()
        values["is_network_metered"] = self._metering.read()
        values["compute_temperature_c"] = self._compute_temperature_c()
        return self._still_there(values | self._power())

    def _still_there(self, values: Values) -> Values:
        """Without what was there and is gone."""
        self._seen.update(name for name, value in values.items() if value is not None)
        gone = self._seen - _MAY_END
        return {n: value for n, value in values.items() if value is not None or n not in gone}

    def _power(self) -> Values:
        """Batteries and mains."""
        plugged: list[bool] = []
        batteries: list[_Battery] = []
        for supply in entries_of(self._root / "sys/class/power_supply"):
            kind = text_of(supply / "type")
            if kind in _MAINS and (online := number_of(supply / "online")) is not None:
                plugged.append(online > 0)
            if kind == "Battery" and text_of(supply / "scope") != "Device":
                batteries.append(_battery(supply))
        return {
            "is_plugged": any(plugged) if plugged else None,
            "is_charging": _over(any, [one.is_charging for one in batteries]),
            "charge_percent": _over(min, [one.charge_percent for one in batteries]),
            "battery_power_w": _over(sum, [one.power_w for one in batteries]),
            "battery_temperature_c": _over(max, [one.temperature_c for one in batteries]),
            "battery_energy_kwh": _over(sum, [one.energy_kwh for one in batteries]),
            "battery_health_percent": _over(min, [one.health_percent for one in batteries]),
        }

    def _compute_temperature_c(self) -> float | None:
        """The hottest of the processor's thermometers, or of all where none says it is its."""
        named: list[float] = []
        others: list[float] = []
        for chip in entries_of(self._root / "sys/class/hwmon"):
            is_processor = (text_of(chip / "name") or "") in _PROCESSOR_CHIPS
            for file in entries_of(chip, "temp*_input"):
                if (milli := number_of(file)) is not None:
                    (named if is_processor else others).append(milli / _MILLI)
        for zone in entries_of(self._root / "sys/class/thermal", "thermal_zone*"):
            kind = (text_of(zone / "type") or "").lower()
            if (milli := number_of(zone / "temp")) is not None:
                is_processor = any(word in kind for word in _PROCESSOR_ZONES)
                (named if is_processor else others).append(milli / _MILLI)
        return max(named or others, default=None)

    def _load_percent(self) -> float | None:
        """Processor time that was not idle since the last reading; None at the first."""
        text = text_of(self._root / "proc/stat")
        if text is None or not text.startswith("cpu "):
            return None
        parts = text.split("\n", 1)[0].split()[1:9]
        times = [int(part) for part in parts if part.isascii() and part.isdecimal()]
        if len(times) < len(("user", "nice", "system", "idle", "iowait")):
            return None
        now = (sum(times), times[3] + times[4])
        last, self._last_load = self._last_load, now
        if last is None or now[0] <= last[0]:
            return None
        return min(100.0, max(0.0, 100.0 * (1 - (now[1] - last[1]) / (now[0] - last[0]))))
