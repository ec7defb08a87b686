"""Watches who is served: of tenants that wait for the same cars, none is passed over.

Looks at what each tick has begun. A tenant counts as passed over when a unit of another was
placed while it had an item to offer to the same cars and something left in its round; a turn of
its own, or one moment without either, begins the count anew. One tick may be several rounds: who
owed when it began, or was served in it, may have owed while others were served, and is not counted.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from edge_runtime.dispatcher.core.commands import BeginAttempt, Command
from edge_runtime.dispatcher.core.machine import DispatcherCore
from edge_runtime.dispatcher.core.placement import Requirement
from edge_runtime.sim.ledger import Ledger

_SLACK_UNITS: Final = 4
"""A tenant that comes, or a round that ends, may be served between."""


class FairShares:
    """Told what each tick of one dispatcher has committed."""

    def __init__(self, core: DispatcherCore, ledger: Ledger) -> None:
        self._core = core
        self._ledger = ledger
        self._passed_over: Counter[str] = Counter()
        self._known: set[str] = set()
        self._may_owe: set[str] = set()

    def watch(self, commands: Sequence[Command]) -> None:
        """Judge a tick."""
        state = self._core.state
        for command in commands:
            if not isinstance(command, BeginAttempt):
                continue
            job = state.job_by_no.get(command.job_no)
            if job is None:
                continue
            tenant, requirement = job.spec.tenant, job.spec.requirement
            self._may_owe.add(tenant)
            waiting = self._waiting(requirement) - self._may_owe
            self._passed_over = Counter(
                {other: self._passed_over[other] + 1 for other in sorted(waiting)}
            )
            most = len(state.turns) + _SLACK_UNITS
            for other, count in self._passed_over.items():
                if count > most:
                    self._ledger.violated("S15", f"{other} was passed over {count} times")
        self._known |= {queue.tenant for queue in state.turns}
        shares = state.turns.shares
        self._may_owe = {tenant for tenant in self._known if shares.left_ms(tenant) <= 0.0}

    def _waiting(self, requirement: Requirement) -> set[str]:
        """Tenants with an item to offer to such a car, and something left in their round."""
        shares = self._core.state.turns.shares
        return {
            job.spec.tenant
            for job in self._core.state.jobs.values()
            if job.pending
            and not (job.is_over or job.is_loading or job.refused_by)
            and job.spec.requirement == requirement
            and shares.left_ms(job.spec.tenant) > 0.0
        }
