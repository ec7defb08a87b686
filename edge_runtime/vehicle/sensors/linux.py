"""What a Linux computer can say of itself: thermal zones, hwmon, power supplies, load.

Invariants
- What is not there, or cannot be read, is None; never zero, never an old value.
- Reading never waits: sysfs and procfs only.

A computer knows nothing of doors and gears: `is_parked` and `is_occupied` are None here, and a
policy for such a computer does not require them. `root` is where `sys` and `proc` are found.
"""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from edge_runtime.contract import limits
from edge_runtime.contract.signals import SIGNALS
from edge_runtime.vehicle.clock import boot_ns
from edge_runtime.vehicle.core.events import SignalsRead

Value = float | bool | int | None

_FLAGS: Final = tuple(signal.name for signal in SIGNALS if signal.datatype == "boolean")
_EDGE_PERIOD_S: Final = 0.2
_PROCESSOR_CHIPS: Final = frozenset(
    {"coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal", "tegra"}
)
_PROCESSOR_ZONES: Final = ("cpu", "soc", "pkg", "core", "gpu", "acpitz")
_MILLI: Final = 1_000.0
_MICRO: Final = 1_000_000.0
_MAINS: Final = frozenset({"Mains", "USB", "USB_C", "Wireless"})


class LinuxSensors:
    """Reads everything once a period, and plug and charge state five times a second."""

    def __init__(self, root: Path = Path("/"), clock: Callable[[], int] = boot_ns) -> None:
        self._root = root
        self._clock = clock
        self._last_load: tuple[int, int] | None = None

    def note_load(self, *, is_busy: bool) -> None:
        """Nothing: the thermometer knows better."""

    async def run(self, emit: Callable[[SignalsRead], None]) -> None:
        """Tell every edge at once and every signal once a period, until cancelled."""
        per_period = max(1, round(limits.SENSOR_PERIOD_MS / 1000 / _EDGE_PERIOD_S))
        flags: dict[str, Value] = {}
        turn = 0
        while True:
            values = self.read() if turn == 0 else self._power()
            now_flags = {name: values[name] for name in _FLAGS if name in values}
            if turn == 0 or now_flags != flags:
                emit(SignalsRead(values, self._clock()))
            flags = now_flags
            turn = (turn + 1) % per_period
            await asyncio.sleep(_EDGE_PERIOD_S)

    def read(self) -> dict[str, Value]:
        """Every signal; None where this computer has no such reading."""
        values: dict[str, Value] = {signal.name: None for signal in SIGNALS}
        values["compute_temperature_c"] = self._compute_temperature_c()
        values["compute_load_percent"] = self._load_percent()
        return values | self._power()

    def _power(self) -> dict[str, Value]:
        """Batteries and mains."""
        plugged: list[bool] = []
        charges: list[float] = []
        powers: list[float] = []
        temperatures: list[float] = []
        charging: list[bool] = []
        for supply in self._folders("sys/class/power_supply"):
            kind = _text(supply / "type")
            if kind in _MAINS and (online := _number(supply / "online")) is not None:
                plugged.append(online > 0)
            if kind != "Battery" or _text(supply / "scope") == "Device":
                continue
            if (percent := _number(supply / "capacity")) is not None:
                charges.append(percent)
            if (tenths := _number(supply / "temp")) is not None:
                temperatures.append(tenths / 10)
            if (status := _text(supply / "status")) is not None:
                charging.append(status == "Charging")
            if (microwatts := _number(supply / "power_now")) is not None:
                sign = -1 if _text(supply / "status") == "Discharging" else 1
                powers.append(sign * abs(microwatts) / _MICRO)
        return {
            "is_plugged": any(plugged) if plugged else None,
            "is_charging": any(charging) if charging else None,
            "charge_percent": min(charges, default=None),
            "battery_power_w": sum(powers) if powers else None,
            "battery_temperature_c": max(temperatures, default=None),
        }

    def _compute_temperature_c(self) -> float | None:
        """The hottest of the processor's thermometers, or of all where none says it is its."""
        named: list[float] = []
        others: list[float] = []
        for chip in self._folders("sys/class/hwmon"):
            is_processor = (_text(chip / "name") or "") in _PROCESSOR_CHIPS
            for file in sorted(chip.glob("temp*_input")):
                if (milli := _number(file)) is not None:
                    (named if is_processor else others).append(milli / _MILLI)
        for zone in self._folders("sys/class/thermal", "thermal_zone*"):
            kind = (_text(zone / "type") or "").lower()
            if (milli := _number(zone / "temp")) is not None:
                is_processor = any(word in kind for word in _PROCESSOR_ZONES)
                (named if is_processor else others).append(milli / _MILLI)
        return max(named or others, default=None)

    def _load_percent(self) -> float | None:
        """Processor time that was not idle since the last reading; None at the first."""
        text = _text(self._root / "proc/stat")
        if text is None or not text.startswith("cpu "):
            return None
        times = [int(part) for part in text.split("\n", 1)[0].split()[1:9] if part.isdigit()]
        if len(times) < len(("user", "nice", "system", "idle", "iowait")):
            return None
        now = (sum(times), times[3] + times[4])
        last, self._last_load = self._last_load, now
        if last is None or now[0] <= last[0]:
            return None
        return min(100.0, max(0.0, 100.0 * (1 - (now[1] - last[1]) / (now[0] - last[0]))))

    def _folders(self, place: str, pattern: str = "*") -> Iterator[Path]:
        try:
            entries = sorted((self._root / place).iterdir())
        except OSError:
            return
        yield from (entry for entry in entries if entry.match(pattern))


def _text(path: Path) -> str | None:
    """A small file's text, None where there is none or the driver will not say."""
    try:
        with path.open("rb", buffering=0) as file:
            return (file.read(limits.SENSOR_LINE_MAX_BYTES) or b"").decode(errors="replace").strip()
    except OSError:
        return None


def _number(path: Path) -> float | None:
    text = _text(path)
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
