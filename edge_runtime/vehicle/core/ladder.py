"""How work stops: frozen in the call that says so, then thawed, or killed and given back.

Invariants
- While the ladder is not GOING the engine computes nothing and gets nothing new.
- A stop that may pass soon keeps the engine frozen for `THAW_GRACE_MS`; then it ends like any
  other: the process is killed and every attempt is given back.
- Giving back waits for the measured stop, and for that at most `STOP_REPORT_WAIT_MS`.
- An interactive attempt waits for neither: its requester does not wait for an owner who may go
  again. It is given back in the call that freezes, and its run ends with the grace.
- Every stop of a computing engine is one `LogStop` and one entry of the tally, with what it cost.

The grace is a bargain: a stop that passes within it costs no item at all, one that does not holds
the units that long from other cars. It is well under a lease, which goes on meanwhile.

Deliberately absent: why the car stops; `machine` knows that from admission.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from edge_runtime.contract import limits
from edge_runtime.contract.clock import NS_PER_MS, Now
from edge_runtime.contract.messages import StopReport
from edge_runtime.contract.reasons import HoldReason, ReleaseReason, StopTier
from edge_runtime.vehicle.core.attempts import Phase, StopIntent
from edge_runtime.vehicle.core.commands import (
    CancelRun,
    FreezeEngine,
    KillEngine,
    LogStop,
    ThawEngine,
)
from edge_runtime.vehicle.core.energy_rows import J_PER_WH
from edge_runtime.vehicle.core.work import Work

MAY_PASS_SOON: Final = frozenset(
    {
        HoldReason.OCCUPIED,
        HoldReason.NOT_PLUGGED,
        HoldReason.SENSOR_STALE,
        HoldReason.SENSOR_INVALID,
    }
)
"""Stops after which the engine stays frozen for a grace instead of being killed at once."""


class Rung(Enum):
    """How far stopping has gone."""

    GOING = "going"
    GRACE = "grace"
    KILLED = "killed"


@dataclass(slots=True)
class Ladder:
    """The stop in progress. `until_ns` ends the grace, or the wait for the measurement."""

    work: Work
    rung: Rung = Rung.GOING
    until_ns: int | None = None
    _is_frozen: bool = False
    _report: StopReport | None = None
    _reason: HoldReason = HoldReason.UNKNOWN
    _is_leaving: bool = False

    @property
    def is_going(self) -> bool:
        """Whether the engine may compute."""
        return self.rung is Rung.GOING

    def demand(self, reason: HoldReason, now: Now, *, is_leaving: bool) -> None:
        """All work must stop, for this reason; say so again whenever the reason changes."""
        self._reason, self._is_leaving = reason, is_leaving
        may_pass = reason in MAY_PASS_SOON and not is_leaving
        match self.rung:
            case Rung.GOING:
                if self.work.attempts:
                    self._freeze()
                    self._give_back_interactive(now)
                    self.rung = Rung.GRACE
                    self.until_ns = now.boot_ns + limits.THAW_GRACE_MS * NS_PER_MS
                    if not may_pass:
                        self._kill(now)
            case Rung.GRACE:
                if not may_pass:
                    self._kill(now)
            case Rung.KILLED:
                pass

    def relent(self, now: Now) -> None:
        """Work need not stop any more; what is still frozen goes on."""
        if self.rung is not Rung.GRACE:
            return
        work = self.work
        if self._is_frozen:
            work.out.append(ThawEngine())
            work.out += [CancelRun(run_id) for run_id in work.left_runs]
            work.stops.thawed += 1
            self._tell("thawed", items_lost=0, wasted_wh=0.0)
        self._reset()
        for attempt in list(work.attempts.values()):
            if attempt.intent is StopIntent.HOLD:
                attempt.go_on()
            elif attempt.intent is not None and attempt.run_id is not None:
                work.out.append(CancelRun(attempt.run_id))
            elif attempt.intent is not None:
                work.finish_stopping(attempt, None, None, now)

    def measured(self, report: StopReport, now: Now) -> None:
        """The engine was measured to stand still, or is gone."""
        if self.rung is Rung.GOING:
            return
        self._report = self._report or report
        if self.rung is Rung.KILLED:
            self._give_back(now)

    def tick(self, now: Now) -> None:
        """End what has lasted long enough."""
        if self.until_ns is None or self.until_ns > now.boot_ns:
            return
        match self.rung:
            case Rung.GRACE:
                self._kill(now)
            case Rung.KILLED:
                self._give_back(now)
            case Rung.GOING:
                pass

    def _freeze(self) -> None:
        work = self.work
        if not work.runs:
            return
        self._is_frozen = True
        work.out.append(FreezeEngine(self._reason.value))
        for attempt in work.attempts.values():
            if attempt.run_id is not None and attempt.intent is None:
                attempt.stop_for(StopIntent.HOLD)

    def _give_back_interactive(self, now: Now) -> None:
        work = self.work
        reason = ReleaseReason.DRAINING if self._is_leaving else ReleaseReason.HOLD
        for attempt in list(work.attempts.values()):
            if not attempt.is_interactive:
                continue
            if attempt.run_id is not None:
                work.left_runs.append(attempt.run_id)
            if attempt.intent is StopIntent.CANCEL:
                work.finish_stopping(attempt, self._reason, None, now)
            else:
                work.release(attempt, Phase.RELEASED, reason, now, hold=self._reason)

    def _kill(self, now: Now) -> None:
        self.rung = Rung.KILLED
        self.until_ns = now.boot_ns + limits.STOP_REPORT_WAIT_MS * NS_PER_MS
        if self._is_frozen:
            self.work.out.append(KillEngine())
        if self._report is not None or not self.work.runs:
            self._give_back(now)

    def _give_back(self, now: Now) -> None:
        """Release everything that is held, and be ready for whatever comes next."""
        work, report = self.work, self._report
        held = list(work.attempts.values())
        wasted_j = -sum(attempt.totals.wasted_j for attempt in held)
        for attempt in held:
            stop = report if attempt.run_id is not None else None
            if self._is_leaving and attempt.intent is not StopIntent.CANCEL:
                reason = ReleaseReason.DRAINING
                work.release(attempt, Phase.RELEASED, reason, now, hold=self._reason, stop=stop)
            else:
                work.finish_stopping(attempt, self._reason, stop, now)
        work.runs.clear()
        if self._is_frozen:
            work.stops.killed += 1
            wasted_j += sum(attempt.totals.wasted_j for attempt in held)
            items_lost = sum(attempt.totals.lost for attempt in held)
            self._tell("killed", items_lost=items_lost, wasted_wh=wasted_j / J_PER_WH)
        self._reset()

    def _tell(self, outcome: str, *, items_lost: int, wasted_wh: float) -> None:
        """Account for the stop that ends here."""
        report = self._report
        tier = StopTier.FREEZE if report is None else report.tier
        self.work.stops.note(tier, report, items_lost=items_lost, wasted_wh=wasted_wh)
        latency_ms = None if report is None else report.latency_ms
        line = LogStop(self._reason.value, tier.value, latency_ms, outcome, items_lost, wasted_wh)
        self.work.out.append(line)

    def _reset(self) -> None:
        self.rung = Rung.GOING
        self.work.may_feed = True
        self._is_frozen = False
        self.work.left_runs.clear()
        self.until_ns = self._report = None
