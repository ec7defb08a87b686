"""Energy as Linux counts it: RAPL, a sensor chip on the board's supply, a battery's own gauge.

Invariants
- A counter that is absent, forbidden, torn or absurd gives nothing; it never gives zero, an old
  value or an exception.
- A counter that wraps around is read on; one that goes back for another reason gives nothing.
- Nothing is read while the computer does not compute for others.

`root` is where `sys` is found. Deliberately absent: guesses of what no counter covers. RAPL knows
the processor and its memory, a battery's gauge the whole computer; the method's name says which.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Final, Protocol

import structlog

from edge_runtime.contract import limits
from edge_runtime.vehicle.clock import boot_ns
from edge_runtime.vehicle.core.energy_rows import PowerMethod
from edge_runtime.vehicle.core.events import EnergyMeasured

_MICRO: Final = 1e-6
_NS_PER_S: Final = 1_000_000_000
_INA_CHIPS: Final = frozenset(
    {"ina209", "ina219", "ina220", "ina226", "ina230", "ina231", "ina238", "ina2xx", "ina3221"}
)
_INPUT_LABELS: Final = frozenset({"VDD_IN", "VIN", "POM_5V_IN", "VDD_IN_SYS"})
"""What boards call the rail that feeds all others."""
_HWMON_CHANNELS: Final = range(1, 9)

_log = structlog.get_logger()


class Counter(Protocol):
    """A source of energy readings. Both readings are None where there is none now."""

    method: PowerMethod

    def begin(self) -> bool:
        """Read for the first time; whether it works."""
        ...

    def joules(self, seconds: float) -> float | None:
        """What was drawn since the last reading, `seconds` ago."""
        ...


@dataclass(slots=True)
class _Zone:
    """One RAPL counter, in microjoules, and where it wraps around."""

    path: Path
    range_uj: float
    last_uj: float = 0.0


class Rapl:
    """The kernel's powercap zones: the whole platform where there is one, else every package.

    Source: kernel documentation, "Power Capping Framework". Memory (`dram`) is beside its package,
    not in it. Since 2020 only root, or whom root lets, may read them.
    """

    method = PowerMethod.RAPL

    def __init__(self, root: Path) -> None:
        self._root = root
        self._zones: list[_Zone] = []

    def begin(self) -> bool:
        """Find the zones and read them; all or none."""
        self._zones = list(self._find())
        return bool(self._zones) and self._read() is not None

    def joules(self, seconds: float) -> float | None:
        """Sum over the zones; a counter that wrapped around goes on from zero."""
        del seconds
        return self._read()

    def _read(self) -> float | None:
        total_uj = 0.0
        for zone in self._zones:
            now_uj = read_number(zone.path)
            if now_uj is None or not 0 <= now_uj <= zone.range_uj:
                return None
            grown_uj = now_uj - zone.last_uj
            total_uj += grown_uj if grown_uj >= 0 else grown_uj + zone.range_uj
            zone.last_uj = now_uj
        return total_uj * _MICRO

    def _find(self) -> Iterator[_Zone]:
        names: dict[str, list[Path]] = {}
        for folder in _folders(self._root / "sys/class/powercap", "intel-rapl:*"):
            name = (read_text(folder / "name") or "").partition("-")[0]
            names.setdefault(name, []).append(folder)
        chosen = names.get("psys") or [*names.get("package", []), *names.get("dram", [])]
        for folder in chosen:
            range_uj = read_number(folder / "max_energy_range_uj")
            if range_uj is not None and range_uj > 0:
                yield _Zone(folder / "energy_uj", range_uj)


class _Gauge(ABC):
    """A source that tells power: energy is the mean of two readings, times the time between."""

    method: PowerMethod

    def __init__(self, root: Path) -> None:
        self._root = root
        self._last_w: float | None = None

    def begin(self) -> bool:
        """Read for the first time; whether it works."""
        self._last_w = self.watts()
        return self._last_w is not None

    def joules(self, seconds: float) -> float | None:
        """Trapezoid rule."""
        last_w, now_w = self._last_w, self.watts()
        self._last_w = now_w
        if last_w is None or now_w is None:
            return None
        return (last_w + now_w) / 2 * seconds

    @abstractmethod
    def watts(self) -> float | None:
        """Power now."""


class Ina(_Gauge):
    """INA2xx and INA3221 chips in hwmon: the input's rail where one is named so, else all rails."""

    method = PowerMethod.INA

    def watts(self) -> float | None:
        """Sum over the rails that count; a rail that cannot be read makes the sum unknown."""
        rails = [
            (label, watts)
            for chip in _folders(self._root / "sys/class/hwmon", "*")
            if read_text(chip / "name") in _INA_CHIPS
            for label, watts in _rails(chip)
        ]
        inputs = [watts for label, watts in rails if label in _INPUT_LABELS]
        return _sum(inputs or [watts for _, watts in rails])


class PowerSupply(_Gauge):
    """Batteries of the computer itself, while they are discharged: then they feed all of it."""

    method = PowerMethod.SUPPLY

    def watts(self) -> float | None:
        """Power out of all batteries; None while any is not discharged."""
        powers: list[float | None] = []
        for supply in _folders(self._root / "sys/class/power_supply", "*"):
            is_battery = read_text(supply / "type") == "Battery"
            if not is_battery or read_text(supply / "scope") == "Device":
                continue
            if read_text(supply / "status") != "Discharging":
                return None
            microwatts = read_number(supply / "power_now")
            if microwatts is None:
                current_ua = read_number(supply / "current_now")
                voltage_uv = read_number(supply / "voltage_now")
                if current_ua is not None and voltage_uv is not None:
                    microwatts = current_ua * voltage_uv * _MICRO
            powers.append(None if microwatts is None else abs(microwatts) * _MICRO)
        return _sum(powers)


class PowerMeter:
    """Measures while the computer computes for others, with the widest counter that works.

    `note_load` and `look` return what to tell the core; `look` is to be called once a second.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        clock: Callable[[], int] = boot_ns,
        counters: Iterable[Counter] | None = None,
    ) -> None:
        self._clock = clock
        self._counters: list[Counter] = (
            list(counters) if counters is not None else [Ina(root), PowerSupply(root), Rapl(root)]
        )
        self._counter: Counter | None = None
        self._is_busy = False
        self._at_ns = 0
        self._said: PowerMethod | None = None

    def note_load(self, *, is_busy: bool) -> EnergyMeasured | None:
        """The computer begins, or ends, to compute for others."""
        if is_busy is self._is_busy:
            return None
        self._is_busy = is_busy
        if is_busy:
            return self._begin()
        measured = self._measure()
        self._counter = None
        return measured

    def look(self) -> EnergyMeasured | None:
        """What was drawn since the last look; a counter that fails is given up for another."""
        if not self._is_busy:
            return None
        return (self._measure() if self._counter is not None else None) or self._begin()

    def _begin(self) -> EnergyMeasured | None:
        """Find a counter; a reading without time tells the core that measuring begins here."""
        self._counter = next((counter for counter in self._counters if counter.begin()), None)
        self._at_ns = self._clock()
        if self._counter is None:
            return None
        method = self._counter.method
        if method is not self._said:
            self._said = method
            _log.info("energy_measured", by=method.value)
        return EnergyMeasured(0.0, self._at_ns, self._at_ns, method)

    def _measure(self) -> EnergyMeasured | None:
        counter, from_ns = self._counter, self._at_ns
        if counter is None:
            return None
        self._at_ns = self._clock()
        seconds = (self._at_ns - from_ns) / _NS_PER_S
        joules = counter.joules(seconds)
        if joules is None or not isfinite(joules) or seconds <= 0:
            return None
        if joules > limits.POWER_MAX_W * seconds:
            _log.warning("energy_absurd", by=counter.method.value, joules=joules, seconds=seconds)
            return None
        return EnergyMeasured(joules, from_ns, self._at_ns, counter.method)


def _rails(chip: Path) -> Iterator[tuple[str | None, float | None]]:
    """(label, watts) of every channel of one chip that has any reading of power."""
    for channel in _HWMON_CHANNELS:
        label = read_text(chip / f"in{channel}_label") or read_text(chip / f"power{channel}_label")
        if (chip / f"power{channel}_input").exists():
            yield label, _scaled(read_number(chip / f"power{channel}_input"), _MICRO)
        elif (chip / f"curr{channel}_input").exists():
            current_ma = read_number(chip / f"curr{channel}_input")
            voltage_mv = read_number(chip / f"in{channel}_input")
            if current_ma is None or voltage_mv is None:
                yield label, None
            else:
                yield label, abs(current_ma * voltage_mv) * _MICRO


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else abs(value) * unit


def _sum(values: list[float | None]) -> float | None:
    """The sum of known values; unknown if any is, or if there are none."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _folders(place: Path, pattern: str) -> list[Path]:
    try:
        return sorted(entry for entry in place.iterdir() if entry.match(pattern))
    except OSError:
        return []


def read_text(path: Path) -> str | None:
    """A small file's text; None where there is none, or it may not or cannot be read."""
    try:
        with path.open("rb", buffering=0) as file:
            return (file.read(limits.ENERGY_FILE_MAX_BYTES) or b"").decode(errors="replace").strip()
    except OSError:
        return None


def read_number(path: Path) -> float | None:
    """A finite number; None for anything else."""
    text = read_text(path)
    try:
        value = None if text is None else float(text)
    except ValueError:
        return None
    return value if value is not None and isfinite(value) else None
