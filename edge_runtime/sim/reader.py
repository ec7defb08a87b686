"""What third parties have in common: they come, read, leave, and come back with their cursors."""

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from edge_runtime.sim.ledger import Ledger, Submitted

if TYPE_CHECKING:
    from edge_runtime.bus.memory import Faults, MemoryBroker

_AWAY_S: Final = (0.5, 10.0)


class Reader(ABC):
    """`read` has (cursor, item, whether good) by job, as they were taken.

    While there are faults it stays for one of `stays_s` at a time. Who `knows_by_topics` hears of a
    job by them alone: never, where a broker loses what it has acknowledged.
    """

    knows_by_topics = False

    def __init__(
        self,
        name: str,
        tenant: str,
        ledger: Ledger,
        rng: random.Random,
        stays_s: tuple[float, ...],
    ) -> None:
        self.name = name
        self.read: dict[str, list[tuple[int, int, int]]] = {}
        self.tenant = tenant
        self.ledger = ledger
        self.rng = rng
        self._stays_s = stays_s

    def cursor(self, job: str) -> int:
        """Up to where it has read a job."""
        read = self.read.get(job)
        return read[-1][0] if read else 0

    @property
    def has_everything(self) -> bool:
        """Whether it is as far as the requesters are."""
        return all(
            self.cursor(job.job) >= (job.read[-1].cursor if job.read else 0)
            for job in self.own_jobs()
        )

    def own_jobs(self) -> list[Submitted]:
        """The jobs of its tenant."""
        return [job for job in self.ledger.jobs.values() if job.tenant == self.tenant]

    async def live(
        self, broker: "MemoryBroker", faults: "Faults", is_healed: Callable[[], bool]
    ) -> None:
        """Come and go while there are faults, and stay when they have ended."""
        while True:
            stays_s = None if is_healed() else self.rng.choice(self._stays_s)
            try:
                async with asyncio.timeout(stays_s):
                    await self.visit(broker, faults)
            except TimeoutError:
                self.ledger.note(f"{self.name} leaves")
            await asyncio.sleep(self.rng.choice(_AWAY_S))

    @abstractmethod
    async def visit(self, broker: "MemoryBroker", faults: "Faults") -> None:
        """Read until cancelled, or until something must be begun again."""
