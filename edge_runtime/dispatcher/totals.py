"""Totals of finished work at hand: everybody's and each tenant's, begun from what the store has.

Invariants
- What is shown has been committed.
- Memory is bounded: `TOTALS_TENANTS_MAX` tenants; those of further ones, and of cars, are read from
  the store when somebody asks.
- Interactive work leaves nothing of a request in the store, but its sums: they wait here by tenant
  and car, and are written together every `TOTALS_WRITE_S`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from edge_runtime.contract import limits
from edge_runtime.contract.overview import TenantRow, WorkDone
from edge_runtime.contract.reasons import EnergyMethod, WearMethod
from edge_runtime.dispatcher.core.booking import Books
from edge_runtime.dispatcher.core.commands import BookWork, Command
from edge_runtime.dispatcher.storage import Recovered, WorkTotal

_J_PER_WH: Final = 3_600


class Tally:
    """What the finished items of one name came to."""

    __slots__ = ("credits", "energy_j", "interactive", "items", "since_ms", "wear", "wear_items")

    def __init__(self) -> None:
        self.items = self.interactive = 0
        self.credits = 0.0
        self.energy_j: dict[EnergyMethod, float] = {}
        self.wear: dict[WearMethod, float] = {}
        self.wear_items: Counter[WearMethod] = Counter()
        self.since_ms: int | None = None

    def add(self, work: BookWork | WorkTotal, since_ms: int) -> None:
        """Add what was booked."""
        self.items += work.items
        self.interactive += work.items * work.is_interactive
        self.credits += work.credits
        energy, wear = work.energy_method, work.wear_method
        self.energy_j[energy] = self.energy_j.get(energy, 0.0) + work.energy_j
        self.wear[wear] = self.wear.get(wear, 0.0) + work.wear_percent
        self.wear_items[wear] += work.items
        self.since_ms = since_ms if self.since_ms is None else min(self.since_ms, since_ms)

    def shown(self) -> WorkDone:
        """As people see it."""
        wear = {how: n for how, n in self.wear.items() if how is not WearMethod.UNKNOWN}
        return WorkDone(
            items=self.items,
            interactive_items=self.interactive,
            credits=round(self.credits, 6),
            energy_wh=round(sum(self.energy_j.values()) / _J_PER_WH, 6),
            energy_wh_by_method={
                how.value: round(n / _J_PER_WH, 6) for how, n in self.energy_j.items()
            },
            wear_percent=sum(wear.values()),
            wear_percent_by_method={how.value: n for how, n in wear.items()},
            wear_unknown_items=self.wear_items[WearMethod.UNKNOWN],
            since_ms=self.since_ms,
        )


def tally_of(totals: Iterable[WorkTotal]) -> WorkDone:
    """Totals of one name, as people see them."""
    tally = Tally()
    for total in totals:
        tally.add(total, total.since_ms)
    return tally.shown()


class WorkTotals:
    """See the module. `watch` is a watcher of the service."""

    def __init__(self, recovered: Recovered) -> None:
        self.fleet = Tally()
        self.tenants: dict[str, Tally] = {}
        self._waiting = Books()
        for total in recovered.fleet_total:
            self.fleet.add(total, total.since_ms)
        for total in recovered.tenant_totals:
            self.tenants.setdefault(total.name, Tally()).add(total, total.since_ms)
        self._is_full = len(self.tenants) >= limits.TOTALS_TENANTS_MAX
        self.dropped = 0
        """Interactive items that were not booked: too much waited while the store was down."""

    def watch(self, commands: Sequence[Command]) -> None:
        """Take in what was committed."""
        for command in commands:
            if isinstance(command, BookWork):
                self.fleet.add(command, command.at_ms)
                tally = self._tenant(command.tenant)
                if tally is not None:
                    tally.add(command, command.at_ms)

    def _tenant(self, name: str) -> Tally | None:
        tally = self.tenants.get(name)
        # Where some did not fit, the store may know more of one that is not here.
        if tally is None and not self._is_full:
            tally = self.tenants[name] = Tally()
            self._is_full = len(self.tenants) >= limits.TOTALS_TENANTS_MAX
        return tally

    def shown_tenants(self) -> tuple[TenantRow, ...]:
        """Those with the most credits first, at most `DASHBOARD_TENANTS_MAX` rows."""
        by_credits = sorted(self.tenants.items(), key=lambda entry: -entry[1].credits)
        return tuple(
            TenantRow(tenant=name, work=tally.shown())
            for name, tally in by_credits[: limits.DASHBOARD_TENANTS_MAX]
        )

    # --- interactive work, on its way to the store ---

    def wait(self, work: BookWork) -> None:
        """Keep interactive work until it is written."""
        if len(self._waiting) >= limits.TOTALS_WAITING_MAX:
            self.dropped += work.items
        else:
            self._waiting.add(work)

    def take_waiting(self) -> list[BookWork]:
        """What waits; it is the caller's to write, or to give back by `wait`."""
        return self._waiting.take()
