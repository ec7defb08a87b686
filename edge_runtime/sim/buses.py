"""Buses whose owner is watched from both ends.

Invariants
- S12: what a program hands to its bus is on its way, waiting, or counted as dropped.
- S10: nobody hears more than the access lists of the real broker let him hear.
- S9: a car that was told to drain takes no unit that it did not have; one whose owner has
  withdrawn consent hands over no result, and leaves nothing of itself at the broker.
"""

import random
from collections.abc import Callable, Sequence
from typing import Final

from edge_runtime.bus import Bus, BusOverflow, BusSettings, MemoryBroker, MemoryBus, Message
from edge_runtime.bus.access import AccessList
from edge_runtime.bus.memory import Faults
from edge_runtime.bus.port import DropReason
from edge_runtime.contract import codec
from edge_runtime.contract.errors import Rejected
from edge_runtime.contract.limits import BUS_OUTBOUND_MAX_MESSAGES
from edge_runtime.contract.messages import Drain, Taken
from edge_runtime.contract.topics import Down, Up
from edge_runtime.pki.broker_files import ACL_CARS, ACL_DISPATCHERS, ACL_TENANTS, ACLS
from edge_runtime.sim.ledger import Ledger

_CONTROL: Final = f"/dn/{Down.CONTROL.value}"
_WORK: Final = f"/dn/{Down.WORK.value}"
_ACK: Final = f"/up/{Up.ACK.value}"
_RESULT: Final = f"/up/{Up.RESULT.value}"


def car_url(name: str) -> str:
    """Where who has a car's key connects."""
    return f"memory://{name}@{ACL_CARS}"


def service_url(name: str) -> str:
    """Where who has a service's key connects."""
    return f"memory://{name}@{ACL_DISPATCHERS}"


def tenant_url(tenant: str) -> str:
    """Where who has a tenant's password connects."""
    return f"memory://tenant-{tenant}@{ACL_TENANTS}"


def listeners(tenants: Sequence[str]) -> dict[str, AccessList]:
    """The shipped rules of the real broker, by listener, with a block for each tenant."""
    block = ACLS[ACL_TENANTS]
    texts = ACLS | {ACL_TENANTS: "".join(block.replace("demo", tenant) for tenant in tenants)}
    return {listener: AccessList(text) for listener, text in texts.items()}


async def overhear(bus: Bus, ledger: Ledger, who: str, own: Sequence[str]) -> None:
    """Listen to all that the broker lets `who` hear: S10, nothing but what begins as `own`."""
    async for event in bus.events():
        if isinstance(event, Message) and not event.topic.startswith(tuple(own)):
            ledger.violated("S10", f"{who} heard {event.topic}")


class DrainWatch:
    """What one car was told of draining, and which units it was offered meanwhile."""

    def __init__(self, car: str, ledger: Ledger) -> None:
        self._car = car
        self._ledger = ledger
        self._signed = codec.signed_decoder()
        self._work = codec.work_decoder()
        self._control = codec.control_decoder()
        self._acks = codec.acks_decoder()
        self._is_draining = False
        self._known: set[int] = set()
        self._only_while_draining: set[int] = set()

    def started_anew(self) -> None:
        """A new process: it has not been told anything."""
        self._is_draining = False

    def hear(self, message: Message) -> None:
        """A message reaches the car."""
        try:
            if message.topic.endswith(_CONTROL):
                orders = self._control.decode(self._signed.decode(message.payload).body).orders
                for order in orders:
                    if isinstance(order, Drain):
                        self._is_draining = order.active
            elif message.topic.endswith(_WORK):
                work = self._work.decode(self._signed.decode(message.payload).body)
                units = {offer.unit for offer in work.units}
                if self._is_draining:
                    self._only_while_draining |= units - self._known
                else:
                    self._known |= units
                    self._only_while_draining -= units
        except Rejected:
            return  # garbage; the car counts it

    def say(self, message: Message) -> None:
        """The car answers."""
        if not message.topic.endswith(_ACK):
            return
        for verdict in self._acks.decode(message.payload).verdicts:
            if isinstance(verdict, Taken) and verdict.unit in self._only_while_draining:
                self._ledger.violated(
                    "S9", f"{self._car} takes unit {verdict.unit} while it drains"
                )


class WatchedBus(MemoryBus):
    """The memory bus, which tells the ledger of whatever vanishes in it."""

    def __init__(
        self,
        settings: BusSettings,
        broker: MemoryBroker,
        faults: Faults,
        rng: random.Random,
        ledger: Ledger,
        *,
        watch: DrainWatch | None = None,
        must_keep_quiet: Callable[[], bool] = lambda: False,
        outbound_max_messages: int = BUS_OUTBOUND_MAX_MESSAGES,
    ) -> None:
        super().__init__(
            settings, broker, faults, rng=rng, outbound_max_messages=outbound_max_messages
        )
        self._ledger = ledger
        self._watch = watch
        self._must_keep_quiet = must_keep_quiet
        self._results = codec.results_decoder()
        if watch is not None:
            watch.started_anew()

    def publish_soon(self, message: Message) -> None:
        """As the memory bus. Raises BusOverflow."""
        if self._watch is not None:
            self._watch.say(message)
        if message.retain and message.payload and self._must_keep_quiet():
            self._ledger.violated("S9", f"{message.topic}: retained without consent")
        if message.topic.endswith(_RESULT) and self._must_keep_quiet():
            chunks = self._results.decode(message.payload).chunks
            if any(chunk.items for chunk in chunks):
                self._ledger.violated("S9", f"{message.topic}: results without consent")
        waiting, dropped = len(self._outbox), self._dropped()
        try:
            super().publish_soon(message)
        except BusOverflow as overflow:
            if overflow.reason is DropReason.OUTBOUND_FULL:
                self._ledger.fired["outbox_overflow"] += 1
            if self._dropped() == dropped:
                self._vanished(message)
            raise
        # The broker's answer is a later step: here nothing can have been settled yet.
        if len(self._outbox) == waiting and self._dropped() == dropped:
            self._vanished(message)

    def _deliver(self, message: Message) -> None:
        if self._watch is not None:
            self._watch.hear(message)
        super()._deliver(message)

    def _dropped(self) -> int:
        return sum(self.counters.dropped.values())

    def _vanished(self, message: Message) -> None:
        self._ledger.violated("S12", f"{message.topic} was dropped and nobody counts it")
