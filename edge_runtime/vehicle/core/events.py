"""What happened: everything the car's core can be told, as frozen past-tense facts.

Invariants
- The union `Event` is closed; the core matches it exhaustively.
- Every command that is spawned ends as exactly one of these, failure included: writes as
  `WritesCommitted` or `WritesFailed`, models as `ModelReady` or `ModelFailed`, runs as `RunEnded`
  or `EngineDied` (or nothing after a `KillEngine`, which ends them all), `FreezeEngine` as
  `EngineFrozen`, `KillEngine` as `EngineKilled`. Publishes are hints and end as nothing: the
  core sends again until the dispatcher has answered.
"""

from collections.abc import Mapping
from enum import Enum

import msgspec

from edge_runtime.contract.messages import Fence, Order, StopReport, UnitOffer
from edge_runtime.contract.reasons import HoldReason, ItemError
from edge_runtime.vehicle.core.energy_rows import PowerMethod
from edge_runtime.vehicle.policy import OwnerPolicy


class _Event(msgspec.Struct, frozen=True):
    """Base of events: structs, because thousands a second are made."""


# --- time and the owner -----------------------------------------------------------------


class Tick(_Event, frozen=True):
    """The deadline that the core named has come, or a little later."""


class PolicyChanged(_Event, frozen=True):
    """The owner's policy, or why there is none."""

    policy: OwnerPolicy | HoldReason


class SignalsRead(_Event, frozen=True):
    """Some signals were read at boot time `at_ns`; names are those of `contract.signals`.

    A value of None says that this car has no such reading. Names that are left out keep the
    reading, and the age, that they had.
    """

    values: Mapping[str, float | bool | int | None]
    at_ns: int


class ClockJudged(_Event, frozen=True):
    """Whether UTC on this computer can be believed."""

    is_trusted: bool


class EnergyMeasured(_Event, frozen=True):
    """The computer drew this between two boot times, in all of which it computed for others."""

    joules: float
    from_ns: int
    to_ns: int
    method: PowerMethod


class BytesMoved(_Event, frozen=True):
    """So much was sent and received since the last time, messages and packages together."""

    sent: int
    received: int


class ShutdownRequested(_Event, frozen=True):
    """The agent is asked to end: give everything back, for this reason, and say goodbye."""

    hold: HoldReason = HoldReason.DRAINING


# --- the bus --------------------------------------------------------------------------


class BusConnected(_Event, frozen=True):
    """A connection to the broker stands."""


class BusDisconnected(_Event, frozen=True):
    """There is none now."""


class UnitsOffered(_Event, frozen=True):
    """Units were offered to this car."""

    units: tuple[UnitOffer, ...]


class OrdersReceived(_Event, frozen=True):
    """The dispatcher's orders; `jitter` is a random number in [0, 1) for any delay in them."""

    orders: tuple[Order, ...]
    jitter: float = 0.0


class ModelsDesired(_Event, frozen=True):
    """What the dispatcher would like this car to hold ready, most wanted first."""

    models: tuple[str, ...]


# --- the journal ------------------------------------------------------------------------


class WritesCommitted(_Event, frozen=True):
    """Every write up to and with `through` is durable, except the `refused`.

    Refused are attempts, outputs, and checks for space, for which the journal has no room.
    """

    through: int
    refused: tuple[int, ...] = ()


class WritesFailed(_Event, frozen=True):
    """None of the unconfirmed writes up to and with `through` is durable.

    `reason` is STORAGE_FULL or STORAGE_ERROR.
    """

    through: int
    reason: HoldReason


# --- models and the engine ---------------------------------------------------------------


class ModelFault(Enum):
    """Why a model package is not there."""

    UNAVAILABLE = "unavailable"
    INVALID = "invalid"


class ModelReady(_Event, frozen=True):
    """The package is in the store and was verified."""

    digest: str


class ModelFailed(_Event, frozen=True):
    """The package could not be had."""

    digest: str
    fault: ModelFault
    message: str = ""


class FetchedInput(_Event, frozen=True):
    """The bytes of one item, proven by the SHA-256 of its reference."""

    index: int
    sha256: str
    data: bytes


class InputsFetched(_Event, frozen=True):
    """What a unit's references lead to; of the `broken` ones (index, why) nothing can be had."""

    unit: int
    inputs: tuple[FetchedInput, ...]
    broken: tuple[tuple[int, str], ...] = ()


class InputsFailed(_Event, frozen=True):
    """A unit's inputs could not be fetched: no network, no host that answers, no room."""

    unit: int
    message: str


class RefusedOutput(_Event, frozen=True):
    """An output that no further try would hand over; `is_final`: nor would another car."""

    sha256: str
    message: str
    is_final: bool = False


class OutputsUploaded(_Event, frozen=True):
    """The dispatcher has every output of a chunk whole, but the `refused` ones."""

    unit: int
    fence: Fence
    seq: int
    refused: tuple[RefusedOutput, ...] = ()


class OutputsFailed(_Event, frozen=True):
    """Outputs of a chunk could not be handed over; what is durable there is gone on from.

    `was_allowed` False: the owner's rules were why, and it was no try.
    """

    unit: int
    fence: Fence
    seq: int
    message: str
    was_allowed: bool = True


class RunOutcome(Enum):
    """How a run left the engine by itself."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    MODEL_FAILED = "model_failed"


class ModelLoaded(_Event, frozen=True):
    """The engine loaded this run's model, in `load_ms`."""

    run_id: int
    load_ms: float


class ItemStarted(_Event, frozen=True):
    """The engine is about to compute an item."""

    run_id: int
    index: int


class ItemFinished(_Event, frozen=True):
    """An item's output: one MessagePack value. Of one over `OUTPUT_MAX_BYTES` the SHA-256, too."""

    run_id: int
    index: int
    output: bytes
    busy_ms: float
    sha256: str = ""


class FinishReason(Enum):
    """Why a generation has all its tokens; the words are those of the OpenAI API."""

    STOP = "stop"
    LENGTH = "length"


class TokensProduced(_Event, frozen=True):
    """Tokens of an item whose run streams, as they come: at most 50 ms, or 8 tokens, of them.

    `offset` counts the item's generated tokens before `ids`, those of earlier cars included.
    `text` is what these tokens made sure of: bytes of an unfinished character, and what may be
    the beginning of a stop string, come with a later one. The last has a `finish`; then
    `ItemFinished` tells the whole output.
    """

    run_id: int
    index: int
    offset: int
    ids: tuple[int, ...]
    text: str
    finish: FinishReason | None = None


class ItemBroke(_Event, frozen=True):
    """An item failed in the engine, which lives on."""

    run_id: int
    index: int
    code: ItemError
    message: str = ""


class ItemInterrupted(_Event, frozen=True):
    """A stop, or the watchdog, found this item in hand: lost, unless a frozen engine is thawed.

    `busy_ms` is for how long it had been computed. Comes before what ends its run.
    """

    run_id: int
    index: int
    busy_ms: float


class RunEnded(_Event, frozen=True):
    """A run left the engine; `stop` tells how, when it was cancelled."""

    run_id: int
    outcome: RunOutcome
    stop: StopReport | None = None
    message: str = ""


class EngineDied(_Event, frozen=True):
    """The engine's process ended against our will, and every run in it.

    `run_id` and `index` name what it was at, where known; `code` is what is said of that item.
    """

    run_id: int | None
    index: int | None
    code: ItemError
    message: str = ""


class EngineFrozen(_Event, frozen=True):
    """The engine's process is stopped and has been measured to be."""

    stop: StopReport


class EngineKilled(_Event, frozen=True):
    """The engine's process is gone, at our will."""

    stop: StopReport


Event = (
    Tick
    | PolicyChanged
    | SignalsRead
    | ClockJudged
    | EnergyMeasured
    | BytesMoved
    | ShutdownRequested
    | BusConnected
    | BusDisconnected
    | UnitsOffered
    | OrdersReceived
    | ModelsDesired
    | WritesCommitted
    | WritesFailed
    | ModelReady
    | ModelFailed
    | ModelLoaded
    | InputsFetched
    | InputsFailed
    | OutputsUploaded
    | OutputsFailed
    | ItemStarted
    | ItemFinished
    | TokensProduced
    | ItemBroke
    | ItemInterrupted
    | RunEnded
    | EngineDied
    | EngineFrozen
    | EngineKilled
)
