"""A third party that uses the SDK: the production `Subscription`, which comes and goes.

Invariants
- It keeps the cursors that the subscription gives it, and nothing else, while it is away.
- A job that is lost to it because the dispatcher was put back to an earlier state is read anew.

`third_party` is the same without the SDK; S4 judges both alike.
"""

import asyncio
import random
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from edge_runtime.bus import BusSettings, MemoryBus
from edge_runtime.client import JobLost, JobResult, Subscription
from edge_runtime.sim.buses import tenant_url
from edge_runtime.sim.ledger import Ledger, Submitted

if TYPE_CHECKING:
    from edge_runtime.bus.memory import Faults, MemoryBroker

_STAYS_S: Final = (1.0, 10.0, 60.0)
_AWAY_S: Final = (0.5, 10.0)


class Subscriber:
    """See the module. `read` has (cursor, item, whether good) by job, as they were given."""

    def __init__(self, name: str, tenant: str, ledger: Ledger, rng: random.Random) -> None:
        self.name = name
        self.read: dict[str, list[tuple[int, int, int]]] = {}
        self._tenant = tenant
        self._ledger = ledger
        self._rng = rng
        self._cursors: dict[str, int] = {}

    @property
    def has_everything(self) -> bool:
        """Whether it is as far as the requesters are."""
        return all(
            self._cursor(job.job) >= (job.read[-1].cursor if job.read else 0)
            for job in self._own_jobs()
        )

    async def live(
        self, broker: "MemoryBroker", faults: "Faults", is_healed: Callable[[], bool]
    ) -> None:
        """Come and go while there are faults, and stay when they have ended."""
        while True:
            stays_s = None if is_healed() else self._rng.choice(_STAYS_S)
            try:
                async with asyncio.timeout(stays_s):
                    await self._visit(broker, faults)
            except TimeoutError:
                self._ledger.note(f"{self.name} leaves")
            await asyncio.sleep(self._rng.choice(_AWAY_S))

    async def _visit(self, broker: "MemoryBroker", faults: "Faults") -> None:
        """Until it is cancelled, or something is lost and must be begun again."""

        def open_bus(settings: BusSettings) -> MemoryBus:
            return MemoryBus(settings, broker, faults, rng=self._rng)

        async with Subscription(
            tenant_url(self._tenant),
            self._tenant,
            cursors=self._cursors,
            name=f"er-{self.name}",
            open_bus=open_bus,
            rng=self._rng,
        ) as subscription:
            if self._cursors:
                self._ledger.fired["subscription_resumed"] += 1
            async with aclosing(aiter(subscription)) as entries:  # type: ignore[type-var]  # it is a generator
                async for entry in entries:
                    if isinstance(entry, JobLost):
                        self._ledger.note(f"{self.name} lost {entry.job}: {entry.reason}")
                        self._cursors = subscription.cursors
                        return
                    if isinstance(entry, JobResult):
                        self._take(entry)
                        self._cursors = subscription.cursors

    def _take(self, entry: JobResult) -> None:
        result = entry.result
        self.read.setdefault(entry.job, []).append((result.cursor, result.item, int(result.ok)))

    def _cursor(self, job: str) -> int:
        read = self.read.get(job)
        return read[-1][0] if read else 0

    def _own_jobs(self) -> list[Submitted]:
        return [job for job in self._ledger.jobs.values() if job.tenant == self._tenant]
