"""What the dispatcher is told of this car, and when: births, states, edges.

Invariants
- A change of admission is told at once, with QoS 1; READY and WORKING, which change with every
  unit, are told at most once per `STATE_EDGE_MS`.
- Without news the state is refreshed every `STATE_REFRESH_MS`. `seq` grows within a boot.
- A Will carries the numbers of the connection that it belongs to.
- While the owner's consent is withdrawn nothing of this car is retained at the broker: what was is
  cleared, again with every Birth, which is then for those who listen, as goodbye and Will are.
"""

from dataclasses import dataclass
from typing import Final

from edge_runtime.contract import limits
from edge_runtime.contract.clock import NS_PER_MS, Now
from edge_runtime.contract.messages import (
    CONTRACT_VERSION,
    Birth,
    Offline,
    VehicleLimits,
    VehicleState,
)
from edge_runtime.contract.reasons import Availability, HoldReason
from edge_runtime.contract.signals import Signals
from edge_runtime.vehicle.core.commands import (
    ClearStatus,
    Command,
    LogState,
    PublishBirth,
    PublishOffline,
    PublishState,
    SetWill,
)
from edge_runtime.vehicle.core.snapshot import CarFacts

_OPEN: Final = frozenset({Availability.READY, Availability.WORKING})


@dataclass(frozen=True, slots=True)
class View:
    """What a state says, apart from the car's name and the time."""

    availability: Availability
    hold: HoldReason | None
    free_units: int
    energy_budget_wh: float | None
    signals: Signals
    resident: tuple[str, ...]


@dataclass(slots=True)
class Herald:
    """What was told last, and on which connection. `birth_ns` is when a Birth was asked for.

    `is_hidden`: the owner has withdrawn consent.
    """

    facts: CarFacts
    is_connected: bool = False
    is_hidden: bool = False
    connection: int = 0
    birth_ns: int | None = None
    _availability: Availability | None = None
    _hold: HoldReason | None = None
    _noted: tuple[Availability, HoldReason | None] | None = None
    _told_ns: int = 0
    _seq: int = 0

    def offline(self, connection: int) -> Offline:
        """The goodbye, or the Will, of a connection."""
        return Offline(vehicle=self.facts.vehicle, boot=self.facts.boot, connection=connection)

    def connected(self, now: Now, view: View) -> list[Command]:
        """Introduce this car on a new connection."""
        self.is_connected = True
        self.connection += 1
        return [self.next_will(), *self.birth(now, view)]

    def hide(self, now: Now, *, is_hidden: bool) -> list[Command]:
        """The owner has withdrawn consent, or given it again: then a Birth is due."""
        if is_hidden is self.is_hidden:
            return []
        self.is_hidden = is_hidden
        if not self.is_connected:
            return []
        if not is_hidden:
            self.birth_ns = now.boot_ns
            return [self.next_will()]
        return [self.next_will(), ClearStatus()]

    def next_will(self) -> SetWill:
        """What the broker shall say if the next connection breaks."""
        return SetWill(self.offline(self.connection + 1), is_retained=not self.is_hidden)

    def birth(self, now: Now, view: View) -> list[Command]:
        """Say Birth and state."""
        facts = self.facts
        self.birth_ns = None
        birth = Birth(
            vehicle=facts.vehicle,
            boot=facts.boot,
            connection=self.connection,
            contract=CONTRACT_VERSION,
            runtime=facts.runtime,
            vss=facts.vss,
            hardware=facts.hardware,
            tasks=facts.tasks,
            takes_references=True,
            resident=view.resident,
            limits=VehicleLimits(
                units_max=facts.units_max, message_max_bytes=facts.message_max_bytes
            ),
            region=facts.region,
        )
        clears = [ClearStatus()] if self.is_hidden else []
        said = PublishBirth(birth, is_retained=not self.is_hidden)
        return [*clears, said, *self.tell(now, view, is_edge=True)]

    def farewell(self) -> list[Command]:
        """Say Offline, where anybody hears it."""
        if not self.is_connected:
            return []
        goodbye = self.offline(self.connection)
        return [PublishOffline(goodbye, is_retained=not self.is_hidden)]

    def is_edge(self, availability: Availability, hold: HoldReason | None) -> bool:
        """Whether this must be told at once."""
        if not self.is_connected:
            return False
        return hold is not self._hold or (
            availability is not self._availability
            and not {availability, self._availability} <= _OPEN
        )

    def tell(self, now: Now, view: View, *, is_edge: bool) -> list[Command]:
        """Say the state."""
        self._availability, self._hold, self._told_ns = view.availability, view.hold, now.boot_ns
        self._seq += 1
        state = VehicleState(
            vehicle=self.facts.vehicle,
            boot=self.facts.boot,
            seq=self._seq,
            at_ms=max(0, now.utc_ms),
            availability=view.availability,
            hold=view.hold,
            free_units=view.free_units,
            energy_budget_wh=view.energy_budget_wh,
            signals=view.signals,
            resident=view.resident,
        )
        return [PublishState(state, is_edge)]

    def note(self, availability: Availability, hold: HoldReason | None) -> list[Command]:
        """Log a change of admission, whoever hears of it; not every unit's begin and end."""
        kind = Availability.READY if availability in _OPEN and hold is None else availability
        if self._noted == (kind, hold):
            return []
        self._noted = (kind, hold)
        return [LogState(availability.value, None if hold is None else hold.value)]

    def changed(self, availability: Availability) -> bool:
        """Whether the availability is another than was told."""
        return availability is not self._availability

    def next_ns(self, availability: Availability) -> int | None:
        """When the next Birth or state is due."""
        if not self.is_connected:
            return None
        changed = self.changed(availability)
        wait_ms = limits.STATE_EDGE_MS if changed else limits.STATE_REFRESH_MS
        state_ns = self._told_ns + wait_ms * NS_PER_MS
        return state_ns if self.birth_ns is None else min(state_ns, self.birth_ns)
