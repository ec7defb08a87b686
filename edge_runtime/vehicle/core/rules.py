"""The owner's rules one by one: what each says of this moment, with the numbers that it compared.

Invariants
- Every rule that looks at something answers with one `Finding`, good or bad: what decides is also
  what is shown.
- Fail closed: what a rule needs and cannot have (a signal, a price, a count) is a bad finding.
- A signal that neither the policy requires nor a table of it asks for, and that the car does not
  have, decides nothing.

Deliberately absent: memory (dwell and hysteresis are `admission`'s) and words (`explain`'s).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final, NamedTuple

from edge_runtime.contract import limits
from edge_runtime.contract.clock import Now
from edge_runtime.contract.reasons import HoldReason
from edge_runtime.vehicle.core.readings import Quality, Readings
from edge_runtime.vehicle.policy import AirTemperature, BatteryTemperature, OwnerPolicy
from edge_runtime.vehicle.week import Hours

MS_PER_MINUTE: Final = 60_000
_MINUTES_PER_HOUR: Final = 60
_STALE_S: Final = limits.SENSOR_STALE_MS / 1000

USED_SIGNALS: Final = (
    "is_parked",
    "is_occupied",
    "power_saving_level",
    "low_voltage_v",
    "is_plugged",
    "charge_percent",
    "battery_temperature_c",
    "compute_temperature_c",
    "departure_utc_s",
)
"""The signals that every policy looks at, in the order in which their faults are reported."""

Value = float | bool | int | str | None


class Level(IntEnum):
    """How bad a condition is; the worst of all decides."""

    CLEAR = 0
    KEEP = 1
    FINISH = 2
    STOP = 3


class Side(Enum):
    """How a value stands to the limit of its key, where that is bad."""

    BELOW = "below"
    ABOVE = "above"
    IS = "is"
    UNKNOWN = "unknown"
    ABSENT = "absent"
    STALE = "stale"
    INVALID = "invalid"


class Finding(NamedTuple):
    """What one rule says. `key` is the policy's, `limit` its value, `value` what was compared.

    `reason` is what the car holds for, unless the level is CLEAR. `start_key` and `start` are the
    level at which work begins, where that is another than the one at which it ends.
    """

    level: Level
    reason: HoldReason
    key: str
    side: Side
    limit: Value
    value: Value
    signal: str | None = None
    start_key: str = ""
    start: float | None = None


@dataclass(frozen=True, slots=True)
class Circumstances:
    """All that the rules look at, the clock aside.

    What was spent: Wh in this UTC day and month, equivalent full cycles of the pack in this UTC
    year, data in this UTC month in MB (1,000,000 bytes). None where nobody counts it: a budget of
    that is then spent. `region` is the car's own.
    """

    policy: OwnerPolicy | HoldReason
    readings: Readings
    is_clock_trusted: bool
    spent_wh_today: float
    spent_wh_month: float | None = None
    equivalent_full_cycles_year: float | None = None
    data_mb_month: float | None = None
    region: str = "default"


def used_signals(policy: OwnerPolicy) -> tuple[tuple[str, str], ...]:
    """(signal, key that requires it or ""), in the order in which faults are reported."""
    required = dict.fromkeys(policy.require, "require")
    if policy.ambient_temperature is not None:
        required["ambient_temperature_c"] = "ambient_temperature"
    if policy.cabin_temperature is not None:
        required["cabin_temperature_c"] = "cabin_temperature"
    used = dict.fromkeys(USED_SIGNALS, "")
    if policy.departure.conditioning == "stop":
        used["is_conditioning"] = ""
    if policy.network.metered == "stop":
        used["is_network_metered"] = ""
    return tuple({**used, **required}.items())


def findings(
    now: Now,
    policy: OwnerPolicy,
    around: Circumstances,
    used: tuple[tuple[str, str], ...],
    hours: Hours,
) -> Iterator[Finding]:
    """Every rule's finding, in order of report. `used` and `hours` are those of the policy."""
    readings = around.readings
    yield from _owner(policy, around, hours)
    yield from _sensor_faults(now, used, readings)
    yield from _people(now, policy, readings)
    yield from _network(now, policy, readings)
    yield from _departure(now, policy, around)
    yield from _power(now, policy, readings)
    yield from _temperatures(now, policy, readings)
    yield from _budgets(policy, around)


# --- what the owner says ------------------------------------------------------------------------


def _flag(
    key: str,
    wanted: Value,
    value: Value,
    reason: HoldReason,
    *,
    signal: str | None = None,
    good: bool,
) -> Finding:
    """A rule that is either kept or broken."""
    return Finding(Level.CLEAR if good else Level.STOP, reason, key, Side.IS, wanted, value, signal)


def _owner(policy: OwnerPolicy, around: Circumstances, hours: Hours) -> Iterator[Finding]:
    consent = policy.consent
    no_consent = HoldReason.CONSENT_WITHDRAWN if consent.version > 0 else HoldReason.CONSENT_MISSING
    yield _flag("consent.given", consent.given, None, no_consent, good=consent.given)
    yield _flag("paused", policy.paused, None, HoldReason.OWNER_PAUSED, good=not policy.paused)
    regions = policy.allowed.jurisdictions
    if regions:
        yield _flag(
            "allowed.jurisdictions",
            ", ".join(regions),
            around.region,
            HoldReason.JURISDICTION_NOT_ALLOWED,
            good=around.region in regions,
        )
    if policy.has_hours and not around.is_clock_trusted:
        yield _untrusted_clock(policy)
        return
    outside = HoldReason.OUTSIDE_SCHEDULE
    if policy.schedule:
        yield _flag("schedule", "work", hours.is_in_schedule, outside, good=hours.is_in_schedule)
    if policy.quiet_hours:
        yield _flag("quiet_hours", "quiet", hours.is_quiet, outside, good=not hours.is_quiet)
    dearest, price = policy.energy.price_max_per_kwh, hours.price_per_kwh
    if dearest is not None:
        good = price is not None and price <= dearest
        yield Finding(
            Level.CLEAR if good else Level.FINISH,
            HoldReason.TARIFF_HIGH,
            "energy.price_max_per_kwh",
            Side.UNKNOWN if price is None else Side.ABOVE,
            dearest,
            price,
        )


def _untrusted_clock(policy: OwnerPolicy) -> Finding:
    if policy.schedule:
        key = "schedule"
    elif policy.quiet_hours:
        key = "quiet_hours"
    else:
        key = "energy.price_max_per_kwh"
    return Finding(Level.STOP, HoldReason.CLOCK_UNTRUSTED, key, Side.UNKNOWN, None, None)


def _network(now: Now, policy: OwnerPolicy, readings: Readings) -> Iterator[Finding]:
    metered = HoldReason.NETWORK_METERED
    if policy.network_metered:
        yield _flag("network_metered", wanted=True, value=None, reason=metered, good=False)
    if policy.network.metered == "stop":
        is_metered = readings.flag("is_network_metered", now)
        if is_metered is not None:
            yield _flag(
                "network.metered",
                "stop",
                is_metered,
                metered,
                signal="is_network_metered",
                good=not is_metered,
            )


# --- what the car says --------------------------------------------------------------------------


def _sensor_faults(
    now: Now, used: tuple[tuple[str, str], ...], readings: Readings
) -> Iterator[Finding]:
    for name, key in used:
        match readings.quality(name, now):
            case Quality.GOOD:
                continue
            case Quality.ABSENT:
                if not key:
                    continue
                reason, side = HoldReason.SENSOR_STALE, Side.ABSENT
            case Quality.STALE:
                reason, side = HoldReason.SENSOR_STALE, Side.STALE
            case Quality.INVALID:
                reason, side = HoldReason.SENSOR_INVALID, Side.INVALID
        yield Finding(Level.STOP, reason, key, side, _STALE_S, None, name)


def _people(now: Now, policy: OwnerPolicy, readings: Readings) -> Iterator[Finding]:
    is_parked = readings.flag("is_parked", now)
    if policy.parked_only and is_parked is not None:
        yield _flag(
            "parked_only",
            wanted=True,
            value=is_parked,
            reason=HoldReason.NOT_PARKED,
            signal="is_parked",
            good=is_parked,
        )
    is_occupied = readings.flag("is_occupied", now)
    if policy.empty_only and is_occupied is not None:
        yield _flag(
            "empty_only",
            wanted=True,
            value=is_occupied,
            reason=HoldReason.OCCUPIED,
            signal="is_occupied",
            good=not is_occupied,
        )


def minutes_to_departure(now: Now, policy: OwnerPolicy, readings: Readings) -> float | None:
    """Minutes until the next departure, negative when it is late; None where there is none."""
    departure_s = readings.number("departure_utc_s", now)
    if departure_s is None:
        return None
    left_min = (departure_s * 1000 - now.utc_ms) / MS_PER_MINUTE
    return left_min if left_min > -policy.departure.late_min else None


def _departure(now: Now, policy: OwnerPolicy, around: Circumstances) -> Iterator[Finding]:
    readings, rule = around.readings, policy.departure
    conditioning = readings.flag("is_conditioning", now)
    if rule.conditioning == "stop" and conditioning is not None:
        yield _flag(
            "departure.conditioning",
            "stop",
            conditioning,
            HoldReason.DEPARTURE_SOON,
            signal="is_conditioning",
            good=not conditioning,
        )
    if readings.number("departure_utc_s", now) is None:
        return
    if not around.is_clock_trusted:
        yield Finding(
            Level.STOP,
            HoldReason.CLOCK_UNTRUSTED,
            "departure.stop_before_min",
            Side.UNKNOWN,
            rule.stop_before_min,
            None,
            "departure_utc_s",
        )
        return
    left_min = minutes_to_departure(now, policy, readings)
    if left_min is None:
        return
    yield Finding(
        Level.STOP if left_min <= rule.stop_before_min else Level.CLEAR,
        HoldReason.DEPARTURE_SOON,
        "departure.stop_before_min",
        Side.BELOW,
        rule.stop_before_min,
        left_min,
        "departure_utc_s",
    )
    charge = readings.number("charge_percent", now)
    if charge is not None and left_min <= rule.reserve_hours * _MINUTES_PER_HOUR:
        yield _floor(
            "charge_percent",
            charge,
            ("departure.reserve_start_percent", rule.reserve_start_percent),
            ("departure.reserve_stop_percent", rule.reserve_stop_percent),
            HoldReason.CHARGE_LOW,
        )


def _power(now: Now, policy: OwnerPolicy, readings: Readings) -> Iterator[Finding]:
    saving = readings.number("power_saving_level", now)
    if saving is not None:
        most = policy.power_saving_max
        yield Finding(
            Level.STOP if saving > most else Level.CLEAR,
            HoldReason.POWER_SAVING,
            "power_saving_max",
            Side.ABOVE,
            most,
            saving,
            "power_saving_level",
        )
    is_plugged = readings.flag("is_plugged", now)
    if policy.plugged_only and is_plugged is not None:
        yield _flag(
            "plugged_only",
            wanted=True,
            value=is_plugged,
            reason=HoldReason.NOT_PLUGGED,
            signal="is_plugged",
            good=is_plugged,
        )
    charge = readings.number("charge_percent", now)
    if charge is not None:
        yield _floor(
            "charge_percent",
            charge,
            ("charge.start_percent", policy.charge.start_percent),
            ("charge.stop_percent", policy.charge.stop_percent),
            HoldReason.CHARGE_LOW,
        )
    volts = readings.number("low_voltage_v", now)
    if volts is not None:
        yield _floor(
            "low_voltage_v",
            volts,
            ("low_voltage.start_v", policy.low_voltage.start_v),
            ("low_voltage.stop_v", policy.low_voltage.stop_v),
            HoldReason.LOW_VOLTAGE_LOW,
        )


def _floor(
    signal: str, value: float, start: tuple[str, float], stop: tuple[str, float], reason: HoldReason
) -> Finding:
    if value < stop[1]:
        return Finding(Level.STOP, reason, stop[0], Side.BELOW, stop[1], value, signal, *start)
    level = Level.KEEP if value < start[1] else Level.CLEAR
    return Finding(level, reason, start[0], Side.BELOW, start[1], value, signal)


def _ceiling(
    signal: str, value: float, start: tuple[str, float], stop: tuple[str, float], reason: HoldReason
) -> Finding:
    if value > stop[1]:
        return Finding(Level.STOP, reason, stop[0], Side.ABOVE, stop[1], value, signal, *start)
    level = Level.KEEP if value > start[1] else Level.CLEAR
    return Finding(level, reason, start[0], Side.ABOVE, start[1], value, signal)


def _window(
    signal: str,
    value: float,
    table: str,
    window: BatteryTemperature | AirTemperature,
    reasons: tuple[HoldReason, HoldReason],
) -> Iterator[Finding]:
    """A temperature between two levels; the reasons are those of too cold and too hot."""
    coldest = (
        (f"{table}.start_min_c", window.start_min_c),
        (f"{table}.stop_min_c", window.stop_min_c),
    )
    hottest = (
        (f"{table}.start_max_c", window.start_max_c),
        (f"{table}.stop_max_c", window.stop_max_c),
    )
    yield _floor(signal, value, *coldest, reasons[0])
    yield _ceiling(signal, value, *hottest, reasons[1])


_BATTERY: Final = (HoldReason.BATTERY_COLD, HoldReason.BATTERY_HOT)
_AMBIENT: Final = (HoldReason.AMBIENT_OUT_OF_RANGE, HoldReason.AMBIENT_OUT_OF_RANGE)
_CABIN: Final = (HoldReason.CABIN_OUT_OF_RANGE, HoldReason.CABIN_OUT_OF_RANGE)


def _temperatures(now: Now, policy: OwnerPolicy, readings: Readings) -> Iterator[Finding]:
    name = "battery_temperature_c"
    if (battery := readings.number(name, now)) is not None:
        window = policy.battery_temperature
        yield from _window(name, battery, "battery_temperature", window, _BATTERY)
    compute = readings.number("compute_temperature_c", now)
    if compute is not None:
        yield _compute(policy, compute)
    air, name = policy.ambient_temperature, "ambient_temperature_c"
    if air is not None and (ambient := readings.number(name, now)) is not None:
        yield from _window(name, ambient, "ambient_temperature", air, _AMBIENT)
    air, name = policy.cabin_temperature, "cabin_temperature_c"
    if air is not None and (cabin := readings.number(name, now)) is not None:
        yield from _window(name, cabin, "cabin_temperature", air, _CABIN)


def _compute(policy: OwnerPolicy, value: float) -> Finding:
    limit, name = policy.compute_temperature, "compute_temperature_c"
    start = ("compute_temperature.start_c", limit.start_c)
    hot, above = HoldReason.COMPUTE_HOT, Side.ABOVE
    if value >= limit.stop_c:
        key = "compute_temperature.stop_c"
        return Finding(Level.STOP, hot, key, above, limit.stop_c, value, name, *start)
    if value > limit.continue_c:
        key = "compute_temperature.continue_c"
        return Finding(Level.FINISH, hot, key, above, limit.continue_c, value, name, *start)
    level = Level.KEEP if value > limit.start_c else Level.CLEAR
    return Finding(level, hot, start[0], above, limit.start_c, value, name)


# --- what was spent -----------------------------------------------------------------------------


def _budgets(policy: OwnerPolicy, around: Circumstances) -> Iterator[Finding]:
    energy = policy.energy
    yield from _budget(
        "energy.budget_wh_per_day",
        energy.budget_wh_per_day,
        around.spent_wh_today,
        HoldReason.ENERGY_BUDGET_SPENT,
    )
    yield from _budget(
        "energy.budget_wh_per_month",
        energy.budget_wh_per_month,
        around.spent_wh_month,
        HoldReason.ENERGY_BUDGET_SPENT,
    )
    yield from _budget(
        "wear.equivalent_full_cycles_per_year",
        policy.wear.equivalent_full_cycles_per_year,
        around.equivalent_full_cycles_year,
        HoldReason.WEAR_BUDGET_SPENT,
    )
    yield from _budget(
        "network.budget_mb_per_month",
        policy.network.budget_mb_per_month,
        around.data_mb_month,
        HoldReason.DATA_BUDGET_SPENT,
    )


def _budget(
    key: str, budget: float | None, spent: float | None, reason: HoldReason
) -> Iterator[Finding]:
    if budget is None:
        return
    # Written so that a sum which is no number counts as spent.
    is_left = spent is not None and spent < budget
    side = Side.UNKNOWN if spent is None else Side.ABOVE
    yield Finding(Level.CLEAR if is_left else Level.FINISH, reason, key, side, budget, spent)
