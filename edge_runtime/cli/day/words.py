"""A day in an owner's words: durations, amounts, reasons, and what can be changed about them.

Invariants
- Every reason for which a car may hold has words and an answer to "what can I change?".
- A limit is named with its key in `policy.toml` and the value that it has there.

Deliberately absent: HTML, and decisions; the reasons are those that the car's core gave.
"""

import datetime as dt
from collections.abc import Iterable
from typing import Final

import msgspec

from edge_runtime.contract.reasons import Availability, HoldReason
from edge_runtime.sim.day import DayRecord, Span
from edge_runtime.vehicle.policy import OwnerPolicy
from edge_runtime.vehicle.week import Week

WORKED: Final = (Availability.WORKING,)
_S_PER_MIN: Final = 60
_MIN_PER_H: Final = 60
_S_PER_H: Final = 3600
_DAY_LEAST_H: Final = 23
_DAY_MOST_H: Final = 25
_WH_PER_KWH: Final = 1000
_SMALL_WH: Final = 100
_DAYS_PER_YEAR: Final = 365

_NOTHING: Final = "Nothing: this follows from how you use the car."
_SELDOM: Final = "Nothing in policy.toml; edge-runtime doctor says what is wrong."

REASONS: Final[dict[HoldReason, tuple[str, str]]] = {
    HoldReason.CONSENT_MISSING: ("you have not consented", "edge-runtime owner consent"),
    HoldReason.CONSENT_WITHDRAWN: ("you have withdrawn consent", "edge-runtime owner consent"),
    HoldReason.OWNER_PAUSED: ("you paused it", "edge-runtime owner resume, or paused = false"),
    HoldReason.OUTSIDE_SCHEDULE: (
        "outside your hours",
        "Widen [[schedule]], or shorten [[quiet_hours]].",
    ),
    HoldReason.DEPARTURE_SOON: (
        "you were about to leave",
        'Lower departure.stop_before_min (or departure.conditioning = "allow", if it is stop).',
    ),
    HoldReason.NOT_PARKED: ("you were driving", _NOTHING),
    HoldReason.OCCUPIED: (
        "somebody sat in the car",
        "Nothing, as a rule; empty_only = false would allow it.",
    ),
    HoldReason.NOT_PLUGGED: (
        "not plugged in",
        "Plug in, or set plugged_only = false: work then comes from the battery, down to charge.",
    ),
    HoldReason.CHARGE_LOW: (
        "too little charge",
        "Lower charge.start_percent and charge.stop_percent (and the departure's reserve).",
    ),
    HoldReason.BATTERY_HOT: (
        "the battery was too warm",
        "Raise battery_temperature.start_max_c and stop_max_c; heat wears the battery.",
    ),
    HoldReason.BATTERY_COLD: (
        "the battery was too cold",
        "Lower battery_temperature.start_min_c and stop_min_c.",
    ),
    HoldReason.COMPUTE_HOT: (
        "the computer was too hot",
        "Raise the limits in compute_temperature, with care.",
    ),
    HoldReason.ENERGY_BUDGET_SPENT: (
        "the energy budget was spent",
        "Raise energy.budget_wh_per_day or energy.budget_wh_per_month.",
    ),
    HoldReason.TARIFF_HIGH: (
        "electricity was too dear",
        "Raise energy.price_max_per_kwh, or correct [[tariff]].",
    ),
    HoldReason.NETWORK_METERED: (
        "the network was paid by volume",
        'Set network.metered = "allow" (and network.budget_mb_per_month), or use Wi-Fi there.',
    ),
    HoldReason.DATA_BUDGET_SPENT: (
        "the data budget was spent",
        "Raise network.budget_mb_per_month.",
    ),
    HoldReason.WEAR_BUDGET_SPENT: (
        "the battery's budget of wear was spent",
        "Raise wear.equivalent_full_cycles_per_year.",
    ),
    HoldReason.LOW_VOLTAGE_LOW: (
        "the 12 V battery was low",
        "Lower low_voltage.start_v and stop_v, with care: that battery starts the car.",
    ),
    HoldReason.POWER_SAVING: ("the car was saving power", "Raise power_saving_max."),
    HoldReason.SENSOR_STALE: (
        "a reading was missing",
        "Take what this car cannot read out of require.",
    ),
    HoldReason.SENSOR_INVALID: ("a reading was impossible", _SELDOM),
    HoldReason.CLOCK_UNTRUSTED: ("the clock could not be believed", _SELDOM),
    HoldReason.POLICY_INVALID: ("the policy was wrong", "Correct policy.toml."),
    HoldReason.STORAGE_FULL: ("the disk was full", _SELDOM),
    HoldReason.STORAGE_ERROR: ("the disk failed", _SELDOM),
    HoldReason.ENGINE_UNHEALTHY: ("the computation kept failing", _SELDOM),
    HoldReason.DRAINING: ("no work was asked for", _SELDOM),
    HoldReason.DWELL: ("waiting whether all stays good", "Shorten dwell_s."),
    HoldReason.AMBIENT_OUT_OF_RANGE: (
        "too hot or too cold outside",
        "Widen ambient_temperature.",
    ),
    HoldReason.CABIN_OUT_OF_RANGE: ("too hot or too cold inside", "Widen cabin_temperature."),
    HoldReason.JURISDICTION_NOT_ALLOWED: (
        "not in a region that you allow",
        "Add the region to allowed.jurisdictions.",
    ),
    HoldReason.CYCLES_SPENT: (
        "work had begun often enough",
        "Raise cycles_per_day_max, or leave it out.",
    ),
    HoldReason.UNKNOWN: ("for a reason that this version does not know", _SELDOM),
}


class HoldRow(msgspec.Struct, frozen=True, kw_only=True):
    """One reason: how long and how often it kept the car from work, and what could be changed.

    `limits` are the policy's keys that decided, each with its value in the file.
    """

    reason: str
    words: str
    minutes: float
    times: int
    limits: tuple[str, ...]
    change: str


class DaySummary(msgspec.Struct, frozen=True, kw_only=True):
    """What `edge-runtime owner day --json` prints; all of it follows from trace and policy."""

    headline: str
    start_utc_s: float
    hours: float
    worked_min: float
    ready_min: float
    held_min: float
    grid_wh: float
    pack_wh: float
    cost: float | None
    items: int
    wear_percent: float
    equivalent_full_cycles: float
    battery_hot_min: float
    began: int
    holds: tuple[HoldRow, ...]


def summary_of(day: DayRecord) -> DaySummary:
    """The day in numbers and one sentence."""
    held_s = sum(span.to_s - span.from_s for span in day.spans if span.hold is not None)
    took = day.took
    return DaySummary(
        headline=headline(day),
        start_utc_s=day.start_utc_s,
        hours=round(day.length_s / _S_PER_H, 3),
        worked_min=_minutes(day.seconds_in(*WORKED)),
        ready_min=_minutes(day.seconds_in(Availability.READY)),
        held_min=_minutes(held_s),
        grid_wh=round(took.grid_wh, 3),
        pack_wh=round(took.pack_wh, 3),
        cost=cost_of(day),
        items=took.items,
        wear_percent=took.wear_percent,
        equivalent_full_cycles=took.equivalent_full_cycles,
        battery_hot_min=round(took.battery_hot_min, 1),
        began=sum(span.availability in WORKED for span in day.spans),
        holds=tuple(hold_rows(day)),
    )


def headline(day: DayRecord) -> str:
    """The one sentence on top."""
    worked_s = day.seconds_in(*WORKED)
    hours = day.length_s / _S_PER_H
    when = "on this day" if _DAY_LEAST_H <= hours <= _DAY_MOST_H else f"in {duration(day.length_s)}"
    if worked_s <= 0:
        return f"Your car did not work for others {when}, and took nothing for it."
    took = day.took
    wear = wear_words(took.wear_percent)
    return (
        f"Your car worked {duration(worked_s)} {when} and used {energy(took.grid_wh)} from the "
        f"grid and {energy(took.pack_wh)} from the battery. {wear}"
    )


def hold_rows(day: DayRecord) -> Iterable[HoldRow]:
    """Every reason for which no work was taken, the longest first."""
    spans: dict[HoldReason, list[Span]] = {}
    for span in day.spans:
        if span.hold is not None:
            spans.setdefault(span.hold, []).append(span)
    rows = []
    for reason, its in spans.items():
        words, change = REASONS[reason]
        keys = dict.fromkeys(span.key for span in its if span.key)
        keys = keys or dict.fromkeys(_budgets_of(day.policy, reason))
        rows.append(
            HoldRow(
                reason=reason.value,
                words=words,
                minutes=_minutes(sum(span.to_s - span.from_s for span in its)),
                times=_times(day.spans, reason),
                limits=tuple(limit(day.policy, key) for key in keys),
                change=change,
            )
        )
    rows.sort(key=lambda row: (-row.minutes, row.reason))
    return rows


def _budgets_of(policy: OwnerPolicy, reason: HoldReason) -> list[str]:
    """The budgets behind a hold that begins before one is passed: one more item would."""
    keys = {
        HoldReason.ENERGY_BUDGET_SPENT: ("energy.budget_wh_per_day", "energy.budget_wh_per_month"),
        HoldReason.WEAR_BUDGET_SPENT: ("wear.equivalent_full_cycles_per_year",),
    }
    return [key for key in keys.get(reason, ()) if limit(policy, key) != key]


def _times(spans: Iterable[Span], reason: HoldReason) -> int:
    """How often it began; stopping and then holding for one reason is once."""
    times, before = 0, None
    for span in spans:
        times += span.hold is reason and before is not reason
        before = span.hold
    return times


def limit(policy: OwnerPolicy, key: str) -> str:
    """A key and its value, as it would be written; a table alone is its name."""
    value: object = policy
    for part in key.split("."):
        value = getattr(value, part, None)
    match value:
        case bool():
            return f"{key} = {str(value).lower()}"
        case int() | float():
            return f"{key} = {value:g}"
        case str():
            return f'{key} = "{value}"'
        case _:
            return key


def cost_of(day: DayRecord) -> float | None:
    """What the energy from the grid cost, in the policy's currency; None where no price is known.

    Energy from the battery is not in it: when and where that was bought, nobody knows.
    """
    policy = day.policy
    if policy.energy.price_per_kwh is None and not policy.tariff:
        return None
    week = Week.of(policy)
    cost, before_wh = 0.0, 0.0
    for mark in day.marks:
        spent_kwh = (mark.grid_wh - before_wh) / _WH_PER_KWH
        before_wh = mark.grid_wh
        price = week.hours_at(round((day.start_utc_s + mark.at_s) * 1000)).price_per_kwh
        if price is None and spent_kwh > 0:
            return None
        cost += spent_kwh * (price or 0.0)
    return round(cost, 4)


# --- amounts --------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """5 h 12 min, 12 min, 40 s, none."""
    if seconds <= 0:
        return "none"
    if seconds < _S_PER_MIN:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / _S_PER_MIN), _MIN_PER_H)
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def energy(watt_hours: float) -> str:
    """4.1 kWh, 0.60 kWh, 12 Wh, nothing."""
    if watt_hours <= 0:
        return "nothing"
    if watt_hours < _SMALL_WH:
        return f"{watt_hours:.2g} Wh"
    return f"{watt_hours / _WH_PER_KWH:.2f} kWh"


def wear_words(percent: float) -> str:
    """What a day's wear means, as a year of such days."""
    if percent <= 0:
        return "It did not wear the battery."
    yearly = percent * _DAYS_PER_YEAR
    return f"A year of such days would cost {yearly:.2g} % of the battery's capacity."


def clock(day: DayRecord, at_s: float, zone: dt.tzinfo) -> str:
    """The time of day, HH:MM."""
    return f"{moment(day, at_s, zone):%H:%M}"


def moment(day: DayRecord, at_s: float, zone: dt.tzinfo) -> dt.datetime:
    """A moment of the day where the owner lives."""
    return dt.datetime.fromtimestamp(day.start_utc_s + at_s, dt.UTC).astimezone(zone)


def state_words(span: Span) -> str:
    """What the car did in a span."""
    words = short_words(span)
    return words if span.hold is None else f"held: {words}"


def short_words(span: Span) -> str:
    """What the car did in a span, where it is plain that a reason is one for a hold."""
    if span.hold is not None:
        return REASONS[span.hold][0]
    if span.availability is Availability.WORKING:
        return "working"
    return "ready for work"


def _minutes(seconds: float) -> float:
    return round(seconds / _S_PER_MIN, 1)
