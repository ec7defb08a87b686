"""A third party that uses the SDK: the production `Subscription`, which comes and goes.

Invariants
- It keeps the cursors that the subscription gives it, and nothing else, while it is away.
- A job that is lost to it because the dispatcher was put back to an earlier state is read anew.
- It comes again where the broker refused it: here that passes.

`third_party` is the same without the SDK; S4 judges both alike.
"""

import random
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from edge_runtime.bus import BusSettings, MemoryBus
from edge_runtime.client import JobLost, JobResult, Subscription, SubscriptionRefused
from edge_runtime.sim.buses import tenant_url
from edge_runtime.sim.ledger import Ledger
from edge_runtime.sim.reader import Reader

if TYPE_CHECKING:
    from edge_runtime.bus.memory import Faults, MemoryBroker

_STAYS_S: Final = (1.0, 10.0, 60.0)


class Subscriber(Reader):
    """See the module."""

    knows_by_topics = True

    def __init__(self, name: str, tenant: str, ledger: Ledger, rng: random.Random) -> None:
        super().__init__(name, tenant, ledger, rng, _STAYS_S)
        self._cursors: dict[str, int] = {}

    async def visit(self, broker: "MemoryBroker", faults: "Faults") -> None:
        """Until it is cancelled, refused, or something is lost and must be begun again."""
        try:
            await self._read(broker, faults)
        except SubscriptionRefused as refused:
            self.ledger.note(f"{self.name}: {refused}")

    async def _read(self, broker: "MemoryBroker", faults: "Faults") -> None:
        def open_bus(settings: BusSettings) -> MemoryBus:
            return MemoryBus(settings, broker, faults, rng=self.rng)

        async with Subscription(
            tenant_url(self.tenant),
            self.tenant,
            cursors=self._cursors,
            name=f"er-{self.name}",
            open_bus=open_bus,
            rng=self.rng,
        ) as subscription:
            if self._cursors:
                self.ledger.fired["subscription_resumed"] += 1
            async with aclosing(aiter(subscription)) as entries:  # type: ignore[type-var]  # it is a generator
                async for entry in entries:
                    if isinstance(entry, JobLost):
                        self.ledger.note(f"{self.name} lost {entry.job}: {entry.reason}")
                        self._cursors = subscription.cursors
                        return
                    if isinstance(entry, JobResult):
                        self._take(entry)
                        self._cursors = subscription.cursors

    def _take(self, entry: JobResult) -> None:
        result = entry.result
        self.read.setdefault(entry.job, []).append((result.cursor, result.item, int(result.ok)))
