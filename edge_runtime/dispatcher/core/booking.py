"""Booking: what finished items are worth, and what they took from the car that finished them.

Invariants
- An item is booked once, at its canonical end, to the car that gave the output: what a car sends
  again, or too late, brings nothing.
- The price is the dispatcher's alone: a second of the reference core, as the package states it for
  an item, is one credit. What a car says of itself is never in it.
- Of what a car tells, items take equal parts; more than `POWER_MAX_W` since the work was asked for
  is not believed.

Deliberately absent: paying anybody; a second car's word for a result; energy of work that came to
nothing, which only the car's own ledger has.
"""

from typing import Final

from edge_runtime.contract import limits
from edge_runtime.contract.messages import Chunk, ItemDone, Usage
from edge_runtime.contract.reasons import EnergyMethod, WearMethod
from edge_runtime.dispatcher.core.commands import BookWork

_NOT_TOLD: Final = Usage()
_MS_PER_S: Final = 1_000


def price_of(items: int, reference_ms: float) -> float:
    """Credits for items of a model; `reference_ms` is one item's time on the reference core."""
    return items * reference_ms / _MS_PER_S


def work_done(
    chunk: Chunk,
    *,
    tenant: str,
    vehicle: str,
    items: int,
    credits_: float,
    asked_ms: int,
    now_ms: int,
    is_interactive: bool = False,
) -> BookWork:
    """What `items` (1 or more) of a chunk's finished ones are booked as; times are UTC."""
    usage = chunk.usage or _NOT_TOLD
    told = sum(isinstance(result, ItemDone) for result in chunk.items)
    share = items / max(told, items)
    most_j = limits.POWER_MAX_W * max(1.0, (now_ms - asked_ms) / _MS_PER_S)
    return BookWork(
        tenant=tenant,
        vehicle=vehicle,
        at_ms=now_ms,
        items=items,
        credits=credits_,
        energy_j=share * min(chunk.energy_j, most_j),
        energy_method=usage.energy_method,
        wear_percent=share * usage.wear_percent,
        wear_method=usage.wear_method,
        is_interactive=is_interactive,
    )


def together(one: BookWork, other: BookWork) -> BookWork:
    """Work of one tenant on one car, known in the same ways, as one booking."""
    return BookWork(
        tenant=one.tenant,
        vehicle=one.vehicle,
        at_ms=one.at_ms,
        items=one.items + other.items,
        credits=one.credits + other.credits,
        energy_j=one.energy_j + other.energy_j,
        energy_method=one.energy_method,
        wear_percent=one.wear_percent + other.wear_percent,
        wear_method=one.wear_method,
        is_interactive=one.is_interactive,
    )


class Books:
    """Bookings that wait, one for each tenant, car and way of knowing."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str, EnergyMethod, WearMethod], BookWork] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, work: BookWork) -> None:
        """Put work to what waits of its kind."""
        key = (work.tenant, work.vehicle, work.energy_method, work.wear_method)
        known = self._waiting.get(key)
        self._waiting[key] = work if known is None else together(known, work)

    def take(self) -> list[BookWork]:
        """What waits, which then does no more."""
        waiting = list(self._waiting.values())
        self._waiting.clear()
        return waiting
