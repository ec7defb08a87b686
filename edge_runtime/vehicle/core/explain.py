"""Why this car works or does not, in words, from the findings that its decision was made of.

Invariants
- Nothing is evaluated again: the words are about the last decision's own findings, the readings
  that they compared, and their ages now.
- Of what forbids work the deciding rule comes first, then the rest from worst to least.
- Each rule names its policy key; what must change names the key at which work begins.

The structs are what `edge-runtime owner why --json` and the owner's page show.
"""

from typing import Final, Literal

import msgspec

from edge_runtime.contract.clock import Now
from edge_runtime.contract.reasons import Availability, HoldReason
from edge_runtime.contract.signals import SIGNALS
from edge_runtime.vehicle.core.admission import Decision, Judgement, Ready, worst_of
from edge_runtime.vehicle.core.readings import Readings
from edge_runtime.vehicle.core.rules import Finding, Level, Side, Value

Verdict = Literal["clear", "keep", "finish", "stop"]

_UNITS: Final = {signal.name: signal for signal in SIGNALS}
_UNIT_WORDS: Final = {"percent": " %", "Celsius": " °C", "": ""}
_SUFFIXES: Final = ("_percent", "_c", "_v", "_kwh")
_SHOWN_CHARS: Final = 64
_KEY_UNITS: Final = {
    "energy.budget_wh_per_day": ("energy spent today", " Wh"),
    "energy.budget_wh_per_month": ("energy spent this month", " Wh"),
    "wear.equivalent_full_cycles_per_year": ("wear this year", " equivalent full cycles"),
    "network.budget_mb_per_month": ("data sent and received this month", " MB"),
    "energy.price_max_per_kwh": ("the price of energy", " per kWh"),
    "cycles_per_day_max": ("how often work began today", ""),
}
_WHEN_SPENT: Final = {
    "energy.budget_wh_per_day": "the next UTC day, or a higher",
    "energy.budget_wh_per_month": "the next UTC month, or a higher",
    "wear.equivalent_full_cycles_per_year": "the next UTC year, or a higher",
    "network.budget_mb_per_month": "the next UTC month, or a higher",
    "energy.price_max_per_kwh": "a price at or below",
    "cycles_per_day_max": "the next UTC day, or a higher",
}
_OWN_HOLDS: Final = {
    HoldReason.CONSENT_MISSING: "there is no policy, or no readable decision of the owner's",
    HoldReason.POLICY_INVALID: "the policy file is wrong",
    HoldReason.DRAINING: "no more work was asked of this car: it is leaving, or drained",
    HoldReason.ENGINE_UNHEALTHY: "the inference engine died too often and rests for a while",
    HoldReason.STORAGE_FULL: "the disk, or the journal, is full",
    HoldReason.STORAGE_ERROR: "the disk does not take the journal's writes",
    HoldReason.ENERGY_BUDGET_SPENT: "one more item would pass a budget of energy",
    HoldReason.WEAR_BUDGET_SPENT: "one more item would pass the budget of cycles",
    HoldReason.POWER_SAVING: "the car's computer is about to sleep",
    HoldReason.SENSOR_STALE: "nothing has been read from the sensors yet",
}


class RuleSays(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One rule of the owner's policy, as it stands.

    `verdict`: clear lets work begin, keep lets it go on, finish takes nothing new, stop ends it.
    `limit` is the value of `key`; `value` what was compared with it. `age_s` is the age of the
    signal's reading now, `quality` what can be said of it. `change` is what would clear it.
    """

    key: str
    verdict: Verdict
    text: str
    hold: str | None = None
    limit: Value = None
    signal: str | None = None
    value: Value = None
    age_s: float | None = None
    quality: str | None = None
    change: str | None = None


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why. `forbids` are all rules that stand in the way now, the deciding one first.

    `allows` are all others. `dwell_left_s`: how long everything must still stay good.
    """

    availability: str
    hold: str | None
    stops_work: bool
    summary: str
    forbids: tuple[RuleSays, ...]
    allows: tuple[RuleSays, ...]
    dwell_left_s: float | None = None


def explain(
    now: Now,
    judgement: Judgement | None,
    decision: Decision,
    availability: Availability,
    readings: Readings,
) -> Explanation:
    """Explain `decision`, which is admission's `judgement` or this computer's own hold."""
    found = () if judgement is None else judgement.findings
    worst = worst_of(found)
    is_open = isinstance(decision, Ready)
    least = Level.FINISH if is_open else Level.KEEP
    bad = [finding for finding in found if finding.level >= least]
    bad.sort(key=lambda finding: (finding is not worst, -finding.level))
    forbids = [_says(finding, readings, now) for finding in bad]
    reason = None if isinstance(decision, Ready) else decision.reason
    if reason is not None and reason not in {finding.reason for finding in bad}:
        forbids = _own_hold(reason) + forbids
    left_s = None
    if judgement is not None and judgement.clear_ns is not None and not bad:
        left_s = max(0.0, round((judgement.clear_ns - now.boot_ns) / 1e9, 1))
    return Explanation(
        availability=availability.value,
        hold=None if reason is None else reason.value,
        stops_work=not isinstance(decision, Ready) and decision.stop,
        summary=_summary(forbids, availability, left_s),
        forbids=tuple(forbids),
        allows=tuple(_says(finding, readings, now) for finding in found if finding.level < least),
        dwell_left_s=left_s,
    )


def explain_stopped(
    found: tuple[Finding, ...], now: Now, *, also: RuleSays | None = None
) -> Explanation:
    """Explain a car whose runtime does not run, from what its files alone say."""
    readings = Readings()
    stopped = RuleSays(key="", verdict="stop", text="the car's runtime is not running")
    bad = [_says(finding, readings, now) for finding in found if finding.level > Level.CLEAR]
    good = [_says(finding, readings, now) for finding in found if finding.level is Level.CLEAR]
    forbids = (stopped, *([] if also is None else [also]), *bad)
    return Explanation(
        availability="stopped",
        hold=None,
        stops_work=True,
        summary=stopped.text,
        forbids=forbids,
        allows=tuple(good),
    )


def _summary(forbids: list[RuleSays], availability: Availability, left_s: float | None) -> str:
    if forbids:
        return forbids[0].text
    if left_s is not None:
        return f"everything is good, and must stay so for {left_s:g} s more (dwell_s)"
    return f"nothing forbids work; the car is {availability.value}"


def _own_hold(reason: HoldReason) -> list[RuleSays]:
    if reason is HoldReason.DWELL:
        return []
    text = _OWN_HOLDS.get(reason, f"the car holds: {reason.value}")
    return [RuleSays(key="", verdict="stop", text=text, hold=reason.value)]


def _says(finding: Finding, readings: Readings, now: Now) -> RuleSays:
    age_s = quality = None
    if finding.signal is not None:
        quality = readings.quality(finding.signal, now).value
        age_s = readings.age_s(finding.signal, now)
    is_clear = finding.level is Level.CLEAR
    verdicts: tuple[Verdict, ...] = ("clear", "keep", "finish", "stop")
    return RuleSays(
        key=finding.key,
        verdict=verdicts[finding.level],
        text=_text(finding, readings, age_s),
        hold=None if is_clear else finding.reason.value,
        limit=finding.limit,
        signal=finding.signal,
        value=finding.value,
        age_s=None if age_s is None else round(age_s, 1),
        quality=quality,
        change=None if is_clear else _change(finding),
    )


# --- words --------------------------------------------------------------------------------------


def _text(finding: Finding, readings: Readings, age_s: float | None) -> str:
    key, signal, side = finding.key, finding.signal, finding.side
    if not key and signal is None:
        return _OWN_HOLDS.get(finding.reason, f"the car holds: {finding.reason.value}")
    if finding.reason is HoldReason.CLOCK_UNTRUSTED:
        return f"this computer's clock cannot be believed, and {key} needs it"
    if side in {Side.ABSENT, Side.STALE, Side.INVALID}:
        return _fault(finding, readings, age_s)
    if key == "departure.stop_before_min":
        return _departure(finding)
    if side is Side.IS:
        return _is(finding)
    name, unit = _KEY_UNITS.get(key) or _named(signal or "")
    if side is Side.UNKNOWN:
        return f"{name} is not known, and {key} is {_shown(finding.limit)}{unit}"
    relation = _relation(finding)
    return f"{name} {_shown(finding.value)}{unit} is {relation} {key} {_shown(finding.limit)}{unit}"


def _relation(finding: Finding) -> str:
    if finding.level is Level.CLEAR:
        return "at or above" if finding.side is Side.BELOW else "within"
    return finding.side.value if finding.value != finding.limit else "at"


def _is(finding: Finding) -> str:
    key, value = finding.key, finding.value
    if key == "allowed.jurisdictions":
        verb = "is" if finding.level is Level.CLEAR else "is not"
        return f"the car's region {_shown(value)} {verb} in {key}: {_shown(finding.limit)}"
    if key == "schedule":
        return f"now is {'inside' if value else 'outside'} every window of schedule"
    if key == "quiet_hours":
        return f"now is {'inside' if value else 'outside'} quiet_hours"
    if finding.signal is not None:
        return f"{finding.signal} is {_shown(value)}, and {key} is {_shown(finding.limit)}"
    return f"{key} is {_shown(finding.limit)}"


def _fault(finding: Finding, readings: Readings, age_s: float | None) -> str:
    name = finding.signal or ""
    needs = f", and {finding.key} asks for it" if finding.key else ""
    match finding.side:
        case Side.ABSENT:
            return f"{name} is not there{needs}: this car has no such reading"
        case Side.STALE:
            age = "" if age_s is None else f": it was read {age_s:.1f} s ago"
            return f"{name} is stale{age}, and {_shown(finding.limit)} s is the limit"
        case _:
            signal, held = _UNITS[name], readings.newest(name)
            value = repr(None if held is None else held.value)[:_SHOWN_CHARS]
            bounds = (
                "true or false"
                if signal.datatype == "boolean"
                else f"{signal.minimum:g} to {signal.maximum:g}{_unit(signal.unit)}"
            )
            return f"{name} is impossible: {value} is not {bounds}"


def _departure(finding: Finding) -> str:
    left = finding.value if isinstance(finding.value, int | float) else 0.0
    when = f"in {left:.0f} minutes" if left >= 0 else f"{-left:.0f} minutes ago"
    return f"the next departure is {when}, and {finding.key} is {_shown(finding.limit)}"


def _change(finding: Finding) -> str:
    """What would have to change for this rule to let work begin."""
    key, signal, side = finding.key, finding.signal, finding.side
    simple = {
        "consent.given": "edge-runtime owner consent",
        "paused": "edge-runtime owner resume",
        "network_metered": "network_metered = false in the policy",
        "schedule": "an hour inside schedule",
        "quiet_hours": "an hour outside quiet_hours",
        "allowed.jurisdictions": "a region that allowed.jurisdictions names",
        "departure.stop_before_min": "a later departure, or none",
    }
    if finding.reason is HoldReason.CLOCK_UNTRUSTED:
        return "a clock that is set"
    if not key and signal is None:
        return "a policy file that can be read and is right"
    if side in {Side.ABSENT, Side.STALE, Side.INVALID}:
        return f"a fresh and possible reading of {signal}"
    if key in simple:
        return simple[key]
    if key in _WHEN_SPENT:
        return f"{_WHEN_SPENT[key]} {key}"
    if side is Side.IS:
        return f"{signal} must be {'false' if finding.value else 'true'}"
    start_key, start = finding.start_key or key, finding.limit
    if finding.start is not None:
        start = finding.start
    name, unit = _named(signal or "")
    way = "rise to" if side is Side.BELOW else "fall to"
    return f"{name} must {way} {start_key}, {_shown(start)}{unit}"


def _named(signal: str) -> tuple[str, str]:
    """`charge_percent` as ("charge", " %")."""
    unit = _unit(_UNITS[signal].unit) if signal in _UNITS else ""
    for suffix in _SUFFIXES:
        signal = signal.removesuffix(suffix)
    return signal.replace("_", " "), unit


def _unit(unit: str) -> str:
    return _UNIT_WORDS.get(unit, f" {unit}")


def _shown(value: Value) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"{value:.5g}"
        case None:
            return "unknown"
        case _:
            return value[:_SHOWN_CHARS]
