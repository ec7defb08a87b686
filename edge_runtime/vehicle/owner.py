"""What the car tells its owner: consent, what it does and why, what it did and what that took.

Invariants
- One report answers every question; the commands and the page only choose from it.
- Why is explained from the data that decided (`core.explain`).
- It holds what the owner's own car knows about itself: it never leaves the car.

Deliberately absent: other people's payloads, and any history beyond what the ledger keeps.
"""

import datetime as dt
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec

from edge_runtime import __version__
from edge_runtime.contract.clock import PLAUSIBLE_UTC_MS, Now
from edge_runtime.contract.reasons import HoldReason
from edge_runtime.vehicle.core.commands import LogUnit
from edge_runtime.vehicle.core.energy_rows import LedgerSummary
from edge_runtime.vehicle.core.explain import Explanation, RuleSays, explain_stopped
from edge_runtime.vehicle.core.machine import VehicleCore
from edge_runtime.vehicle.core.readings import Readings
from edge_runtime.vehicle.core.rules import Circumstances, Side, findings, used_signals
from edge_runtime.vehicle.energy.report import read_summary
from edge_runtime.vehicle.journal import JournalError
from edge_runtime.vehicle.policy import Consent, OwnerPolicy
from edge_runtime.vehicle.policy_file import PolicyFile
from edge_runtime.vehicle.week import Week

REPORT_FORMAT: Final = 1

DecidedBy = Literal["command", "policy", "nobody"]


class ConsentSays(msgspec.Struct, frozen=True, kw_only=True):
    """The consent that counts, and where it was decided."""

    given: bool = False
    version: int = 0
    date: dt.date | None = None
    by: DecidedBy = "nobody"


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """What work for others took in this UTC day, month or year, and the owner's budget for it.

    `key` is the policy's; `budget` is None where there is none.
    """

    key: str
    unit: str
    spent: float
    budget: float | None


class WorkDone(msgspec.Struct, frozen=True, kw_only=True):
    """What was done since this process began."""

    units: int = 0
    items_done: int = 0
    items_failed: int = 0
    energy_wh: float = 0.0


class OwnerReport(msgspec.Struct, frozen=True, kw_only=True):
    """All that an owner may ask of the car. `trouble` is what is wrong with the policy.

    `ledger` is None, and the budgets are not there, where the car has kept none yet.
    """

    vehicle: str
    is_running: bool
    at: dt.datetime
    consent: ConsentSays
    is_paused: bool
    policy: str
    why: Explanation
    ledger: LedgerSummary | None
    budgets: tuple[Budget, ...]
    done: WorkDone = WorkDone()
    units_held: int = 0
    results_waiting: int = 0
    trouble: str | None = None
    runtime: str = f"edge-runtime {__version__}"
    format: int = REPORT_FORMAT


@dataclass(slots=True)
class Tally:
    """Counts the units that ended."""

    units: int = 0
    items_done: int = 0
    items_failed: int = 0
    energy_j: float = 0.0

    def add(self, unit: LogUnit) -> None:
        """One unit's line."""
        self.units += 1
        self.items_done += unit.done
        self.items_failed += unit.failed
        self.energy_j += unit.energy_j

    def done(self) -> WorkDone:
        """So far."""
        return WorkDone(
            units=self.units,
            items_done=self.items_done,
            items_failed=self.items_failed,
            energy_wh=round(self.energy_j / 3600, 3),
        )


def report_running(
    vehicle: str, file: PolicyFile, core: VehicleCore, tally: Tally, now: Now
) -> OwnerReport:
    """The report of a car whose runtime runs."""
    in_force = core.circumstances(now).policy
    policy = in_force if isinstance(in_force, OwnerPolicy) else None
    ledger = core.work.energy.summary(now)
    return OwnerReport(
        vehicle=vehicle,
        is_running=True,
        at=_moment(now),
        consent=_consent(policy, file),
        is_paused=policy is not None and policy.paused,
        policy=str(file.path.absolute()),
        why=core.explain(now),
        ledger=ledger,
        budgets=_budgets(policy, ledger),
        done=tally.done(),
        units_held=len(core.work.attempts),
        results_waiting=core.work.outbox.count,
        trouble=file.trouble,
    )


def report_stopped(file: PolicyFile, journal: Path, now: Now) -> OwnerReport:
    """The report of a car whose runtime does not run: what its files say."""
    read = file.peek()
    policy = read if isinstance(read, OwnerPolicy) else None
    try:
        ledger = read_summary(journal, now.utc_ms)
    except JournalError:
        ledger = None  # it has not run yet, or what it kept cannot be read: `doctor` says which
    return OwnerReport(
        vehicle="",
        is_running=False,
        at=_moment(now),
        consent=_consent(policy, file),
        is_paused=policy is not None and policy.paused,
        policy=str(file.path.absolute()),
        why=_why_stopped(read, file, now),
        ledger=ledger,
        budgets=() if ledger is None else _budgets(policy, ledger),
        trouble=file.trouble,
    )


def _why_stopped(read: OwnerPolicy | HoldReason, file: PolicyFile, now: Now) -> Explanation:
    """What the files alone forbid; the rules about signals have nothing to look at."""
    if isinstance(read, HoldReason):
        text = file.trouble or read.value
        broken = RuleSays(key="", verdict="stop", text=text, hold=read.value)
        return explain_stopped((), now, also=broken)
    trusted = now.utc_ms >= PLAUSIBLE_UTC_MS
    around = Circumstances(read, Readings(), trusted, 0.0)
    hours = Week.of(read).hours_at(now.utc_ms)
    found = tuple(
        finding
        for finding in findings(now, read, around, used_signals(read), hours)
        if finding.signal is None
        and finding.side is Side.IS
        and finding.key != "allowed.jurisdictions"
    )
    return explain_stopped(found, now)


def _moment(now: Now) -> dt.datetime:
    try:
        return dt.datetime.fromtimestamp(now.utc_ms / 1000, dt.UTC)
    except (OverflowError, ValueError, OSError):
        return dt.datetime.fromtimestamp(0, dt.UTC)  # a clock that shows no date at all


def _consent(policy: OwnerPolicy | None, file: PolicyFile) -> ConsentSays:
    consent = file.consent if policy is None else policy.consent
    if consent is None or consent == Consent():
        return ConsentSays()
    by: DecidedBy = "command" if consent == file.consent else "policy"
    return ConsentSays(given=consent.given, version=consent.version, date=consent.date, by=by)


def _budgets(policy: OwnerPolicy | None, ledger: LedgerSummary) -> tuple[Budget, ...]:
    rules = policy or OwnerPolicy()
    rows: tuple[tuple[str, str, float, float | None], ...] = (
        (
            "energy.budget_wh_per_day",
            "Wh today",
            ledger.today.total_wh,
            rules.energy.budget_wh_per_day,
        ),
        (
            "energy.budget_wh_per_month",
            "Wh this month",
            ledger.month.total_wh,
            rules.energy.budget_wh_per_month,
        ),
        (
            "wear.equivalent_full_cycles_per_year",
            "equivalent full cycles this year",
            ledger.year.equivalent_full_cycles,
            rules.wear.equivalent_full_cycles_per_year,
        ),
        (
            "network.budget_mb_per_month",
            "MB this month",
            ledger.month.sent_mb + ledger.month.received_mb,
            rules.network.budget_mb_per_month,
        ),
        (
            "cycles_per_day_max",
            "times that work began today",
            ledger.today.begun,
            rules.cycles_per_day_max,
        ),
    )
    return tuple(
        Budget(key=key, unit=unit, spent=spent, budget=budget) for key, unit, spent, budget in rows
    )
