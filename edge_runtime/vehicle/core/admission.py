"""Whether the car may work now: signals, the owner's policy and the clock in, one decision out.

Invariants
- Fail closed: a required signal that is absent, any used signal that is stale or impossible, no
  policy, no consent: no work, with a typed reason.
- Stopping is immediate; beginning (again) needs every condition good, at its start level, for the
  whole dwell. So the car becomes ready at most once per dwell: it cannot flap.
- A signal that the policy does not require and the car does not have decides nothing.

Each condition has up to four levels: good enough to begin (CLEAR), good enough to go on but not
to begin (KEEP), finish what is held but take nothing new (FINISH), stop at once (STOP).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from edge_runtime.contract.clock import NS_PER_MS, Now
from edge_runtime.contract.reasons import HoldReason
from edge_runtime.vehicle.core.readings import Quality, Readings
from edge_runtime.vehicle.policy import OwnerPolicy

MS_PER_MINUTE: Final = 60_000
MS_PER_DAY: Final = 86_400_000

USED_SIGNALS: Final = (
    "is_parked",
    "is_occupied",
    "power_saving_level",
    "low_voltage_v",
    "is_plugged",
    "charge_percent",
    "battery_temperature_c",
    "compute_temperature_c",
)
"""The signals that conditions look at, in the order in which their faults are reported."""


class Level(IntEnum):
    """How bad a condition is; the worst of all decides."""

    CLEAR = 0
    KEEP = 1
    FINISH = 2
    STOP = 3


class Finding(NamedTuple):
    """One condition's level and, unless it is CLEAR, the reason to give."""

    level: Level
    reason: HoldReason


@dataclass(frozen=True, slots=True)
class Ready:
    """Work may begin."""


@dataclass(frozen=True, slots=True)
class Hold:
    """No new work; `stop` says that held work must stop too."""

    reason: HoldReason
    stop: bool


@dataclass(frozen=True, slots=True)
class Driving:
    """The car is not parked; everything stops."""

    reason: HoldReason = HoldReason.NOT_PARKED
    stop: bool = True


Decision = Ready | Hold | Driving


@dataclass(frozen=True, slots=True)
class Circumstances:
    """All that admission looks at. `spent_wh` is today's energy."""

    policy: OwnerPolicy | HoldReason
    readings: Readings
    is_clock_trusted: bool
    spent_wh: float


@dataclass(slots=True)
class Admission:
    """The memory that hysteresis needs: whether the car is open, and since when all is clear."""

    is_open: bool = False
    clear_since_ns: int | None = None

    def decide(self, now: Now, around: Circumstances) -> Decision:
        """The decision of this moment. Call it on every change and at every `next_ns`."""
        finding = worst_finding(now, around)
        if self.is_open and finding.level < Level.FINISH:
            return Ready()
        if finding.level > Level.CLEAR:
            self.is_open, self.clear_since_ns = False, None
            return _closed(finding)
        if self.clear_since_ns is None:
            self.clear_since_ns = now.boot_ns
        if now.boot_ns - self.clear_since_ns < _dwell_ns(around.policy):
            return Hold(HoldReason.DWELL, stop=False)
        self.is_open = True
        return Ready()

    def next_ns(self, now: Now, around: Circumstances) -> int | None:
        """Boot time at which a decision may change with no event: staleness, dwell, schedule."""
        times = [around.readings.next_stale_ns(now)]
        if not self.is_open and self.clear_since_ns is not None:
            times.append(self.clear_since_ns + _dwell_ns(around.policy))
        if isinstance(around.policy, OwnerPolicy):
            if around.policy.schedule:
                times.append(_boot_ns_at(now, (now.utc_ms // MS_PER_MINUTE + 1) * MS_PER_MINUTE))
            if around.policy.energy.budget_wh_per_day is not None:
                times.append(_boot_ns_at(now, (now.utc_ms // MS_PER_DAY + 1) * MS_PER_DAY))
        return min((time for time in times if time is not None), default=None)


def worst_finding(now: Now, around: Circumstances) -> Finding:
    """The worst condition; of equally bad ones the first in order of report."""
    if isinstance(around.policy, HoldReason):
        return Finding(Level.STOP, around.policy)
    worst = Finding(Level.CLEAR, HoldReason.UNKNOWN)
    for finding in _findings(now, around.policy, around):
        if finding.level > worst.level:
            worst = finding
    return worst


def _findings(now: Now, policy: OwnerPolicy, around: Circumstances) -> Iterator[Finding]:
    yield from _owner(now, policy, around)
    yield from _sensor_faults(now, policy, around.readings)
    yield from _cabin(now, policy, around.readings)
    yield from _power(now, policy, around.readings)
    yield from _temperatures(now, policy, around.readings)
    budget = policy.energy.budget_wh_per_day
    if budget is not None and around.spent_wh >= budget:
        yield Finding(Level.FINISH, HoldReason.ENERGY_BUDGET_SPENT)


def _owner(now: Now, policy: OwnerPolicy, around: Circumstances) -> Iterator[Finding]:
    if not policy.consent.given:
        was_asked = policy.consent.version > 0
        yield Finding(
            Level.STOP,
            HoldReason.CONSENT_WITHDRAWN if was_asked else HoldReason.CONSENT_MISSING,
        )
    if policy.paused:
        yield Finding(Level.STOP, HoldReason.OWNER_PAUSED)
    if policy.schedule and not around.is_clock_trusted:
        yield Finding(Level.STOP, HoldReason.CLOCK_UNTRUSTED)
    elif not policy.in_schedule(now.utc_ms):
        yield Finding(Level.STOP, HoldReason.OUTSIDE_SCHEDULE)
    if policy.network_metered:
        yield Finding(Level.STOP, HoldReason.NETWORK_METERED)


def _sensor_faults(now: Now, policy: OwnerPolicy, readings: Readings) -> Iterator[Finding]:
    required = frozenset(policy.require)
    for name in (*USED_SIGNALS, *sorted(required.difference(USED_SIGNALS))):
        match readings.quality(name, now):
            case Quality.GOOD:
                pass
            case Quality.ABSENT:
                if name in required:
                    yield Finding(Level.STOP, HoldReason.SENSOR_STALE)
            case Quality.STALE:
                yield Finding(Level.STOP, HoldReason.SENSOR_STALE)
            case Quality.INVALID:
                yield Finding(Level.STOP, HoldReason.SENSOR_INVALID)


def _cabin(now: Now, policy: OwnerPolicy, readings: Readings) -> Iterator[Finding]:
    if policy.parked_only and readings.flag("is_parked", now) is False:
        yield Finding(Level.STOP, HoldReason.NOT_PARKED)
    if policy.empty_only and readings.flag("is_occupied", now) is True:
        yield Finding(Level.STOP, HoldReason.OCCUPIED)


def _power(now: Now, policy: OwnerPolicy, readings: Readings) -> Iterator[Finding]:
    saving = readings.number("power_saving_level", now)
    if saving is not None and saving > policy.power_saving_max:
        yield Finding(Level.STOP, HoldReason.POWER_SAVING)
    if policy.plugged_only and readings.flag("is_plugged", now) is False:
        yield Finding(Level.STOP, HoldReason.NOT_PLUGGED)
    charge = readings.number("charge_percent", now)
    if charge is not None:
        limit = policy.charge
        yield _floor(charge, limit.start_percent, limit.stop_percent, HoldReason.CHARGE_LOW)
    volts = readings.number("low_voltage_v", now)
    if volts is not None:
        limit_v = policy.low_voltage
        yield _floor(volts, limit_v.start_v, limit_v.stop_v, HoldReason.LOW_VOLTAGE_LOW)


def _floor(value: float, start: float, stop: float, reason: HoldReason) -> Finding:
    if value < stop:
        return Finding(Level.STOP, reason)
    return Finding(Level.KEEP if value < start else Level.CLEAR, reason)


def _temperatures(now: Now, policy: OwnerPolicy, readings: Readings) -> Iterator[Finding]:
    battery, window = readings.number("battery_temperature_c", now), policy.battery_temperature
    if battery is not None:
        yield _floor(battery, window.start_min_c, window.stop_min_c, HoldReason.BATTERY_COLD)
        yield _floor(-battery, -window.start_max_c, -window.stop_max_c, HoldReason.BATTERY_HOT)
    compute, limit = readings.number("compute_temperature_c", now), policy.compute_temperature
    if compute is not None:
        level = Level.CLEAR
        if compute >= limit.stop_c:
            level = Level.STOP
        elif compute > limit.continue_c:
            level = Level.FINISH
        elif compute > limit.start_c:
            level = Level.KEEP
        yield Finding(level, HoldReason.COMPUTE_HOT)


def _closed(finding: Finding) -> Decision:
    stop = finding.level is Level.STOP
    if finding.reason is HoldReason.NOT_PARKED:
        return Driving()
    return Hold(finding.reason, stop=stop)


def _dwell_ns(policy: OwnerPolicy | HoldReason) -> int:
    return policy.dwell_ns if isinstance(policy, OwnerPolicy) else 0


def _boot_ns_at(now: Now, utc_ms: int) -> int:
    return now.boot_ns + (utc_ms - now.utc_ms) * NS_PER_MS
