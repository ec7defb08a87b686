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
from edge_runtime.sim.ledger import Ledger
from edge_runtime.sim.reader import Reader

if TYPE_CHECKING:
    from edge_runtime.bus.memory import Faults, MemoryBroker

_ASK_S: Final = 2.0
_STAYS_S: Final = (2.0, 15.0, 40.0)
_HALF: Final = 0.5


class ThirdParty(Reader):
    """See the module."""

    def __init__(self, name: str, tenant: str, ledger: Ledger, rng: random.Random) -> None:
        super().__init__(name, tenant, ledger, rng, _STAYS_S)
        self._jobs = f"er/1/t/{tenant}/jobs/+/results"
        self._answers = f"er/1/t/{tenant}/answers/{name}"
        self._session_expiry_s = 0

    async def live(
        self, broker: "MemoryBroker", faults: "Faults", is_healed: Callable[[], bool]
    ) -> None:
        """As every reader; with a session that the broker keeps, or with none."""
        self._session_expiry_s = self.rng.choice((0, 600))
        await super().live(broker, faults, is_healed)

    async def visit(self, broker: "MemoryBroker", faults: "Faults") -> None:
        """Until cancelled."""
        settings = BusSettings(
            tenant_url(self.tenant),
            f"er-{self.name}",
            subscriptions=((self._jobs, 1), (self._answers, 1)),
            session_expiry_s=self._session_expiry_s,
        )
        async with MemoryBus(settings, broker, faults, rng=self.rng) as bus:
            asking = asyncio.ensure_future(self._ask(bus))
            try:
                async for event in bus.events():
                    if isinstance(event, Message):
                        self._hear(event)
            finally:
                asking.cancel()

    async def _ask(self, bus: MemoryBus) -> None:
        """Ask for what follows the cursor of every job that somebody has read further."""
        while True:
            await asyncio.sleep(_ASK_S)
            for job in self.own_jobs():
                cursor = self.cursor(job.job)
                if bus.is_connected and job.read and job.read[-1].cursor > cursor:
                    self.ledger.fired["fetch_since"] += 1
                    self._fetch(bus, job.job, cursor)

    def _fetch(self, bus: MemoryBus, job: str, cursor: int) -> None:
        has_properties = self.rng.random() < _HALF
        request = FetchSince(
            job=job, cursor=cursor, respond_to="" if has_properties else self._answers
        )
        try:
            bus.publish_soon(
                Message(
                    f"er/1/t/{self.tenant}/request",
                    codec.encode(request),
                    response_topic=self._answers if has_properties else None,
                    correlation=b"%d" % cursor,
                )
            )
        except BusOverflow as overflow:
            self.ledger.note(f"{self.name}: {overflow}")

    def _hear(self, message: Message) -> None:
        try:
            told = codec.decode_public(message.payload)
        except Rejected as rejected:
            self.ledger.violated("S4", f"{message.topic} does not decode: {rejected}")
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
