"""Whether the car may work now: signals, the owner's policy and the clock in, one decision out.

Invariants
- Fail closed: a required signal that is absent, any used signal that is stale or impossible, no
  policy, no consent: no work, with a typed reason.
- Stopping is immediate; beginning (again) needs every condition good, at its start level, for the
  whole dwell. So the car becomes ready at most once per dwell, and at most
  `cycles_per_day_max` times in a UTC day: it cannot flap.
- What was found last is kept with the decision: explaining a decision looks at nothing else.

Each condition (`rules`) has up to four levels: good enough to begin (CLEAR), good enough to go on
but not to begin (KEEP), finish what is held but take nothing new (FINISH), stop at once (STOP).
"""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from edge_runtime.contract.clock import NS_PER_MS, Now
from edge_runtime.contract.reasons import HoldReason
from edge_runtime.vehicle.core.rules import (
    MS_PER_MINUTE,
    USED_SIGNALS,
    Circumstances,
    Finding,
    Level,
    Side,
    findings,
    minutes_to_departure,
    used_signals,
)
from edge_runtime.vehicle.policy import OwnerPolicy
from edge_runtime.vehicle.week import Hours, Week

__all__ = (
    "MS_PER_DAY",
    "USED_SIGNALS",
    "Admission",
    "Circumstances",
    "Decision",
    "Driving",
    "Hold",
    "Judgement",
    "Ready",
)

MS_PER_DAY: Final = 86_400_000


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


class Judgement(NamedTuple):
    """A decision and all that it was made from; `clear_ns` is when the dwell will be over."""

    decision: Decision
    now: Now
    findings: tuple[Finding, ...]
    clear_ns: int | None


_NO_HOURS: Final = Hours(is_in_schedule=True, is_quiet=False, price_per_kwh=None)


@dataclass(slots=True)
class _Calendar:
    """What follows from the policy and the minute alone, worked out once for both."""

    _policy: OwnerPolicy | None = None
    _minute: int = 0
    _used: tuple[tuple[str, str], ...] = ()
    _week: Week | None = None
    _hours: Hours = _NO_HOURS

    def look(self, policy: OwnerPolicy, now: Now) -> tuple[tuple[tuple[str, str], ...], Hours]:
        """The signals that this policy uses, and what it says of this minute."""
        minute = now.utc_ms // MS_PER_MINUTE
        if policy is not self._policy:
            self._policy, self._used = policy, used_signals(policy)
            self._week = Week.of(policy) if policy.has_hours else None
            self._minute = minute - 1
        if minute != self._minute:
            self._minute = minute
            if self._week is not None:
                self._hours = self._week.hours_at(now.utc_ms)
        return self._used, self._hours


@dataclass(slots=True)
class Admission:
    """The memory that hysteresis needs: whether the car is open, and since when all is clear.

    `cycles` counts how often it opened in the UTC day `cycles_day`; `recall` tells what was counted
    before this process.
    """

    is_open: bool = False
    clear_since_ns: int | None = None
    cycles: int = 0
    cycles_day: int = 0
    last: Judgement | None = None
    _calendar: _Calendar = field(default_factory=_Calendar)

    def decide(self, now: Now, around: Circumstances) -> Decision:
        """The decision of this moment. Call it on every change and at every `next_ns`."""
        found = tuple(self._find(now, around))
        decision = self._judge(now, around, worst_of(found))
        clear_ns = None
        if not self.is_open and self.clear_since_ns is not None:
            clear_ns = self.clear_since_ns + _dwell_ns(around.policy)
        self.last = Judgement(decision, now, found, clear_ns)
        return decision

    def _judge(self, now: Now, around: Circumstances, worst: Finding | None) -> Decision:
        level = Level.CLEAR if worst is None else worst.level
        if self.is_open and level < Level.FINISH:
            return Ready()
        if worst is not None and level > Level.CLEAR:
            self.is_open, self.clear_since_ns = False, None
            return _closed(worst)
        if self.clear_since_ns is None:
            self.clear_since_ns = now.boot_ns
        if now.boot_ns - self.clear_since_ns < _dwell_ns(around.policy):
            return Hold(HoldReason.DWELL, stop=False)
        self.is_open = True
        self.cycles = self.cycles_on(now) + 1
        self.cycles_day = now.utc_ms // MS_PER_DAY
        return Ready()

    def _find(self, now: Now, around: Circumstances) -> list[Finding]:
        policy = around.policy
        if isinstance(policy, HoldReason):
            return [Finding(Level.STOP, policy, "", Side.IS, None, None)]
        used, hours = self._calendar.look(policy, now)
        found = list(findings(now, policy, around, used, hours))
        most = policy.cycles_per_day_max
        if most is not None:
            cycles = self.cycles_on(now)
            level = Level.KEEP if cycles >= most else Level.CLEAR
            reason, side = HoldReason.CYCLES_SPENT, Side.ABOVE
            found.append(Finding(level, reason, "cycles_per_day_max", side, most, cycles))
        return found

    def recall(self, cycles: int, now: Now) -> None:
        """It opened so often today, as was written down, in whatever life of its process."""
        self.cycles = max(cycles, self.cycles_on(now))
        self.cycles_day = now.utc_ms // MS_PER_DAY

    def cycles_on(self, now: Now) -> int:
        """How often it opened in this UTC day."""
        return self.cycles if self.cycles_day == now.utc_ms // MS_PER_DAY else 0

    def next_ns(self, now: Now, around: Circumstances) -> int | None:
        """Boot time at which a decision may change with no event: staleness, dwell, the clock."""
        policy = around.policy
        times = [around.readings.next_stale_ns(now)]
        if not self.is_open and self.clear_since_ns is not None:
            times.append(self.clear_since_ns + _dwell_ns(policy))
        if isinstance(policy, OwnerPolicy):
            if policy.has_hours:
                times.append(_boot_ns_at(now, (now.utc_ms // MS_PER_MINUTE + 1) * MS_PER_MINUTE))
            if policy.has_budgets or policy.cycles_per_day_max is not None:
                times.append(_boot_ns_at(now, (now.utc_ms // MS_PER_DAY + 1) * MS_PER_DAY))
            times += _departure_edges(now, policy, around)
        return min((time for time in times if time is not None), default=None)


def worst_of(found: tuple[Finding, ...]) -> Finding | None:
    """The worst finding; of equally bad ones the first in order of report."""
    return max(found, key=_level, default=None)


def _level(finding: Finding) -> Level:
    return finding.level


def _departure_edges(now: Now, policy: OwnerPolicy, around: Circumstances) -> list[int]:
    """When a rule about the departure begins, or the departure is over."""
    left_min = minutes_to_departure(now, policy, around.readings)
    if left_min is None:
        return []
    rule = policy.departure
    edges_min = (rule.stop_before_min, rule.reserve_hours * 60, -rule.late_min)
    return [
        now.boot_ns + int((left_min - edge) * MS_PER_MINUTE + 1) * NS_PER_MS
        for edge in edges_min
        if left_min > edge
    ]


def _closed(finding: Finding) -> Decision:
    stop = finding.level is Level.STOP
    if finding.reason is HoldReason.NOT_PARKED:
        return Driving()
    return Hold(finding.reason, stop=stop)


def _dwell_ns(policy: OwnerPolicy | HoldReason) -> int:
    return policy.dwell_ns if isinstance(policy, OwnerPolicy) else 0


def _boot_ns_at(now: Now, utc_ms: int) -> int:
    return now.boot_ns + (utc_ms - now.utc_ms) * NS_PER_MS
