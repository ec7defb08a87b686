"""What the core starts from: facts about this car, and what its journal kept.

Deliberately absent: where any of it is stored.
"""

import msgspec

from edge_runtime.contract import limits
from edge_runtime.contract.messages import Fence, UnitOffer
from edge_runtime.vehicle.core.energy import EnergyFacts
from edge_runtime.vehicle.core.energy_rows import DayEnergy, ModelEnergy


class CarFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What does not change while the process lives.

    `compute_power_w` is what the computer draws while it infers, where nothing measures it.
    `tasks` are what the engine can do.
    """

    vehicle: str
    boot: int
    runtime: str
    hardware: str = "cpu"
    region: str = "default"
    vss: str = "6.0"
    tasks: tuple[str, ...] = ()
    units_max: int = 4
    message_max_bytes: int = limits.MESSAGE_MAX_BYTES
    compute_power_w: float = 40.0
    energy: EnergyFacts = EnergyFacts()


class SavedAttempt(msgspec.Struct, frozen=True):
    """An attempt that was taken and not ended.

    `started` is the item journalled as started, `next_seq` the number of its next chunk.
    """

    offer: UnitOffer
    started: int | None = None
    next_seq: int = 0


class SavedFence(msgspec.Struct, frozen=True):
    """A cancelled attempt, remembered until `until_ms` (UTC)."""

    unit: int
    fence: Fence
    until_ms: int


class SavedOutput(msgspec.Struct, frozen=True):
    """An output in the journal, that a chunk refers to."""

    unit: int
    fence: Fence
    seq: int
    sha256: str


class JournalSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What the journal held at start; `boot` is already this boot's number."""

    boot: int
    attempts: tuple[SavedAttempt, ...] = ()
    chunks: tuple[bytes, ...] = ()
    fences: tuple[SavedFence, ...] = ()
    energy: tuple[DayEnergy, ...] = ()
    model_energy: tuple[ModelEnergy, ...] = ()
    outputs: tuple[SavedOutput, ...] = ()
