"""What to do: everything the car's core can ask of its shell, as frozen imperatives.

Invariants
- The union `Command` is closed; a shell matches it exhaustively and in order.
- Writes are numbered from 1 without gaps; the journal commits them in that order. A failed write
  comes again under a new number.
- `FreezeEngine` is carried out at once, in the same step of the shell's loop.
"""

import msgspec

from edge_runtime.contract.messages import (
    Birth,
    Fence,
    Item,
    Offline,
    Reference,
    UnitOffer,
    VehicleState,
    Verdict,
)
from edge_runtime.vehicle.core.energy_rows import DayEnergy, ModelEnergy


class _Record(msgspec.Struct, frozen=True):
    """Base of commands and writes."""


# --- writes to the journal -----------------------------------------------------------------


class WriteAttempt(_Record, frozen=True):
    """A unit is about to be taken; replaces the unit's older attempt.

    Refused by the journal unless there is room for the largest results of all that may be held.
    """

    offer: UnitOffer


class WriteStarted(_Record, frozen=True):
    """The item that the engine is about to compute for the unit's attempt."""

    unit: int
    index: int


class WriteChunk(_Record, frozen=True):
    """A chunk, encoded. `ends` drops the unit's attempt of this fence in the same commit."""

    unit: int
    fence: Fence
    seq: int
    body: bytes
    ends: bool


class WriteOutput(_Record, frozen=True):
    """An output that a chunk refers to; dropped with the chunk.

    Refused by the journal unless there stays as much room as an attempt needs.
    """

    unit: int
    fence: Fence
    seq: int
    sha256: str
    body: bytes


class RewriteChunk(_Record, frozen=True):
    """What takes the place of a chunk that was never published; nothing else changes."""

    unit: int
    fence: Fence
    seq: int
    body: bytes


class DropChunks(_Record, frozen=True):
    """The attempt's chunks `first_seq` to `through_seq`, both with, were answered."""

    unit: int
    fence: Fence
    through_seq: int
    first_seq: int = 0


class DropAttempt(_Record, frozen=True):
    """The attempt ended without a last chunk."""

    unit: int
    fence: Fence


class WriteFence(_Record, frozen=True):
    """Remember until `until_ms` (UTC) that this attempt was cancelled."""

    unit: int
    fence: Fence
    until_ms: int


class WriteEnergy(_Record, frozen=True):
    """The ledger's row of one day, in place of the one before; `drops` are days that went into it.

    Numbers of a row only grow: of two versions of a number the larger is kept.
    """

    row: DayEnergy
    drops: tuple[int, ...] = ()


class WriteModelEnergy(_Record, frozen=True):
    """What items of one model took, in place of what was known; without items it is forgotten."""

    model: ModelEnergy


class CheckSpace(_Record, frozen=True):
    """Refused unless an attempt could be written now."""


Write = (
    WriteAttempt
    | WriteStarted
    | WriteChunk
    | WriteOutput
    | RewriteChunk
    | DropChunks
    | DropAttempt
    | WriteFence
    | WriteEnergy
    | WriteModelEnergy
    | CheckSpace
)


class Persist(_Record, frozen=True):
    """Commit these writes, the first of which has number `first`."""

    first: int
    writes: tuple[Write, ...]


# --- publishing ---------------------------------------------------------------------------


class PublishBirth(_Record, frozen=True):
    """Publish the Birth; retained, unless the owner has withdrawn consent."""

    birth: Birth
    is_retained: bool = True


class PublishOffline(_Record, frozen=True):
    """Publish the goodbye; retained, unless the owner has withdrawn consent."""

    offline: Offline
    is_retained: bool = True


class ClearStatus(_Record, frozen=True):
    """Take what is retained of this car away from the broker."""


class SetWill(_Record, frozen=True):
    """What the broker shall say for us if the next connection breaks."""

    offline: Offline
    is_retained: bool = True


class PublishState(_Record, frozen=True):
    """Publish the state; an `edge` with QoS 1, a refresh with QoS 0."""

    state: VehicleState
    is_edge: bool


class PublishVerdicts(_Record, frozen=True):
    """Publish one Acks message."""

    verdicts: tuple[Verdict, ...]


class PublishChunks(_Record, frozen=True):
    """Publish one Results message of these encoded chunks."""

    bodies: tuple[bytes, ...]


# --- models and the engine ------------------------------------------------------------------


class EnsureModel(_Record, frozen=True):
    """Have the package in the store, fetched and verified."""

    digest: str


class FetchInputs(_Record, frozen=True):
    """Fetch what these items of a unit refer to: (index, reference) of each."""

    unit: int
    references: tuple[tuple[int, Reference], ...]


class UploadOutputs(_Record, frozen=True):
    """Hand over the outputs that a chunk refers to, from the journal."""

    unit: int
    fence: Fence
    seq: int
    references: tuple[Reference, ...]


class SubmitRun(_Record, frozen=True):
    """Queue items behind what the engine already holds. `parameters` is MessagePack.

    With `streams`, a generation tells its tokens as they come (`TokensProduced`). A run that is
    `urgent` is computed between the items of what is queued, and tells each end at once.
    An output over `output_max_bytes` fails its item; None is what travels inline.
    """

    run_id: int
    unit: int
    digest: str
    items: tuple[Item, ...]
    parameters: bytes
    streams: bool = False
    urgent: bool = False
    output_max_bytes: int | None = None


class CancelRun(_Record, frozen=True):
    """Stop this run, by terminate first."""

    run_id: int


class FreezeEngine(_Record, frozen=True):
    """Stop the engine's process now; `reason` is for people."""

    reason: str


class ThawEngine(_Record, frozen=True):
    """Let the engine's process go on."""


class KillEngine(_Record, frozen=True):
    """End the engine's process and every run in it."""


# --- the process ----------------------------------------------------------------------------


class LogUnit(_Record, frozen=True):
    """The one canonical line of an attempt that ended; times in milliseconds.

    `items_lost` were in hand when a stop came (one at most, but of a generation); `wasted_wh` is
    what computing them had cost.
    """

    unit: int
    fence: Fence
    job: str
    tenant: str
    model: str
    outcome: str
    reason: str | None
    items: int
    done: int
    failed: int
    held_ms: float
    busy_ms: float
    load_ms: float
    energy_j: float
    stop_tier: str | None
    stop_latency_ms: float | None
    traceparent: str | None
    items_lost: int = 0
    wasted_wh: float = 0.0
    energy_method: str = ""


class LogStop(_Record, frozen=True):
    """The engine was stopped for the car's owner; one line a stop.

    `tier` ended the computation, `outcome` is what came of it: "thawed" or "killed".
    """

    reason: str
    tier: str
    latency_ms: float | None
    outcome: str
    items_lost: int
    wasted_wh: float


class LogState(_Record, frozen=True):
    """Availability changed."""

    availability: str
    hold: str | None


class Leave(_Record, frozen=True):
    """Everything is given back: the process may end."""


Command = (
    Persist
    | PublishBirth
    | PublishOffline
    | ClearStatus
    | SetWill
    | PublishState
    | PublishVerdicts
    | PublishChunks
    | EnsureModel
    | FetchInputs
    | UploadOutputs
    | SubmitRun
    | CancelRun
    | FreezeEngine
    | ThawEngine
    | KillEngine
    | LogUnit
    | LogStop
    | LogState
    | Leave
)
