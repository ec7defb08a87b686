"""A third party on a tenant's topics: it keeps a cursor for every job and fetches what it missed.

Invariants
- Of a job it takes what follows its cursor, in order: from a live message only the very next
  result, from the answer to a request whatever the answer has beyond the cursor (a dead letter
  that was requeued leaves its cursor unused).
- It leaves and comes back with its cursors; what it then hears live is often far ahead of them.

It is what an application would write against the documents; `subscriber` does it with the SDK.
"""

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from edge_runtime.bus import BusOverflow, BusSettings, MemoryBus, Message
from edge_runtime.contract import codec
from edge_runtime.contract.errors import Rejected
from edge_runtime.contract.messages import FetchSince, JobResults
from edge_runtime.sim.buses import tenant_url
from edge_runtime.sim.ledger import Ledger, Submitted

if TYPE_CHECKING:
    from edge_runtime.bus.memory import Faults, MemoryBroker

_ASK_S: Final = 2.0
_STAYS_S: Final = (2.0, 15.0, 40.0)
_AWAY_S: Final = (0.5, 10.0)
_HALF: Final = 0.5


class ThirdParty:
    """See the module. `read` has (cursor, item, whether good) by job, as they were taken."""

    def __init__(self, name: str, tenant: str, ledger: Ledger, rng: random.Random) -> None:
        self.name = name
        self.read: dict[str, list[tuple[int, int, int]]] = {}
        self._tenant = tenant
        self._ledger = ledger
        self._rng = rng
        self._jobs = f"er/1/t/{tenant}/jobs/+/results"
        self._answers = f"er/1/t/{tenant}/answers/{name}"

    def cursor(self, job: str) -> int:
        """Up to where it has read a job."""
        read = self.read.get(job)
        return read[-1][0] if read else 0

    @property
    def has_everything(self) -> bool:
        """Whether it is as far as the requesters are."""
        return all(
            self.cursor(job.job) >= (job.read[-1].cursor if job.read else 0)
            for job in self._own_jobs()
        )

    async def live(
        self, broker: "MemoryBroker", faults: "Faults", is_healed: Callable[[], bool]
    ) -> None:
        """Come and go while there are faults, and stay when they have ended."""
        settings = BusSettings(
            tenant_url(self._tenant),
            f"er-{self.name}",
            subscriptions=((self._jobs, 1), (self._answers, 1)),
            session_expiry_s=self._rng.choice((0, 600)),
        )
        while True:
            stays_s = None if is_healed() else self._rng.choice(_STAYS_S)
            async with MemoryBus(settings, broker, faults, rng=self._rng) as bus:
                asking = asyncio.ensure_future(self._ask(bus))
                try:
                    async with asyncio.timeout(stays_s):
                        async for event in bus.events():
                            if isinstance(event, Message):
                                self._hear(event)
                except TimeoutError:
                    self._ledger.note(f"{self.name} leaves")
                finally:
                    asking.cancel()
            await asyncio.sleep(self._rng.choice(_AWAY_S))

    async def _ask(self, bus: MemoryBus) -> None:
        """Ask for what follows the cursor of every job that somebody has read further."""
        while True:
            await asyncio.sleep(_ASK_S)
            for job in self._own_jobs():
                cursor = self.cursor(job.job)
                if bus.is_connected and job.read and job.read[-1].cursor > cursor:
                    self._ledger.fired["fetch_since"] += 1
                    self._fetch(bus, job.job, cursor)

    def _fetch(self, bus: MemoryBus, job: str, cursor: int) -> None:
        has_properties = self._rng.random() < _HALF
        request = FetchSince(
            job=job, cursor=cursor, respond_to="" if has_properties else self._answers
        )
        try:
            bus.publish_soon(
                Message(
                    f"er/1/t/{self._tenant}/request",
                    codec.encode(request),
                    response_topic=self._answers if has_properties else None,
                    correlation=b"%d" % cursor,
                )
            )
        except BusOverflow as overflow:
            self._ledger.note(f"{self.name}: {overflow}")

    def _own_jobs(self) -> list[Submitted]:
        return [job for job in self._ledger.jobs.values() if job.tenant == self._tenant]

    def _hear(self, message: Message) -> None:
        try:
            told = codec.decode_public(message.payload)
        except Rejected as rejected:
            self._ledger.violated("S4", f"{message.topic} does not decode: {rejected}")
            return
        if not isinstance(told, JobResults):
            return
        since = int(message.correlation) if message.correlation else None
        read = self.read.setdefault(told.job, [])
        for entry in told.results:
            cursor = self.cursor(told.job)
            if entry.cursor <= cursor:
                continue  # raw topics may repeat
            is_next = entry.cursor == cursor + 1
            if not is_next and (since is None or since > cursor):
                break  # something is missing before it: it will be fetched
            read.append((entry.cursor, entry.item, int(entry.error is None)))
