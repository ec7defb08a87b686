"""Whether one offer may be taken: the car's circumstances in, a refusal or None out.

The order of the questions is the order of what the dispatcher can do about the answer: first
what holds the whole car, then what is wrong with this offer for ever, then what passes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from edge_runtime.contract import limits
from edge_runtime.contract.clock import Now
from edge_runtime.contract.messages import UnitOffer
from edge_runtime.contract.reasons import HoldReason, RefusalReason
from edge_runtime.vehicle.core.attempts import referenced_bytes
from edge_runtime.vehicle.core.events import ModelFault
from edge_runtime.vehicle.core.memory import ModelShelf
from edge_runtime.vehicle.policy import Allowed


@dataclass(frozen=True, slots=True)
class Gate:
    """What decides about an offer, apart from the offer.

    `over_budget` says which of the owner's budgets the offer would pass, with all that is held.
    """

    hold: HoldReason | None
    allowed: Allowed
    tasks: tuple[str, ...]
    free_units: int
    models: ModelShelf
    over_budget: Callable[[UnitOffer], HoldReason | None]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not, and when to ask again."""

    reason: RefusalReason
    retry_after_ms: int = 0
    hold: HoldReason | None = None


def judge(offer: UnitOffer, deadline_ns: int, gate: Gate, now: Now) -> Refusal | None:
    """Return why this offer is refused, or None when it may be taken."""
    if gate.hold is not None:
        return Refusal(RefusalReason.HOLD, limits.HOLD_RETRY_MS, gate.hold)
    if deadline_ns <= now.boot_ns:
        return Refusal(RefusalReason.EXPIRED)
    if (reason := _never(offer, gate)) is not None:
        return Refusal(reason)
    if (fault := gate.models.fault(offer.model, now)) is not None:
        return Refusal(MODEL_REFUSALS[fault[0]], fault[1])
    if gate.free_units <= 0:
        return Refusal(RefusalReason.BUSY, limits.REFUSAL_RETRY_MS)
    if (budget := gate.over_budget(offer)) is not None:
        return Refusal(RefusalReason.HOLD, limits.HOLD_RETRY_MS, budget)
    return None


MODEL_REFUSALS: Final = {
    ModelFault.UNAVAILABLE: RefusalReason.MODEL_UNAVAILABLE,
    ModelFault.INVALID: RefusalReason.MODEL_INVALID,
}


def _never(offer: UnitOffer, gate: Gate) -> RefusalReason | None:
    allowed = gate.allowed
    if allowed.tenants and offer.tenant not in allowed.tenants:
        return RefusalReason.TENANT_NOT_ALLOWED
    if allowed.purposes and offer.purpose not in allowed.purposes:
        return RefusalReason.PURPOSE_NOT_ALLOWED
    if allowed.models and offer.model not in allowed.models:
        return RefusalReason.MODEL_NOT_ALLOWED
    if gate.tasks and offer.task not in gate.tasks:
        return RefusalReason.TASK_UNKNOWN
    sizes = [len(item.data) for item in offer.items]
    if (
        max(sizes) > limits.ITEM_MAX_BYTES
        or sum(sizes) > limits.UNIT_MAX_BYTES
        or referenced_bytes(offer) > limits.UNIT_OBJECTS_MAX_BYTES
        or len(memoryview(offer.parameters)) > limits.PARAMETERS_MAX_BYTES
    ):
        return RefusalReason.TOO_LARGE
    return None
