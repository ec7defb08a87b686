"""What the dispatcher's core asks for: imperatives, frozen.

Store commands of one tick go into one transaction, in order; publish commands follow the commit;
load commands read and come back as exactly one event each.
"""

import msgspec

from edge_runtime.contract.http import AttemptEnd
from edge_runtime.contract.messages import (
    Birth,
    Chunk,
    Fence,
    Item,
    JobStatus,
    Order,
    OutputReference,
    ResultError,
    UnitOffer,
)
from edge_runtime.contract.reasons import (
    EnergyMethod,
    HoldReason,
    JobState,
    Outcome,
    ReleaseReason,
    StopTier,
    WearMethod,
)
from edge_runtime.dispatcher.core.events import JobSpec


class _Command(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Base of the core's commands."""


# --- store --------------------------------------------------------------------------


class AddJob(_Command, frozen=True, kw_only=True):
    """A new job with its items."""

    no: int
    spec: JobSpec
    items: tuple[Item, ...]


class UpdateJob(_Command, frozen=True, kw_only=True):
    """A job's counts and state; `finished_ms` is set with a terminal state."""

    no: int
    state: JobState
    done: int
    failed: int
    cursor: int
    deadline_ms: int
    finished_ms: int | None


class AddResult(_Command, frozen=True, kw_only=True):
    """One item's canonical end: exactly one of `output` (MessagePack), `error` and `ref`."""

    job_no: int
    job: str
    tenant: str
    cursor: int
    index: int
    at_ms: int
    vehicle: str
    output: bytes | None
    error: ResultError | None
    traceparent: str | None = None
    ref: OutputReference | None = None


class FailRemaining(_Command, frozen=True, kw_only=True):
    """Every item of the job that has no result fails; cursors go on from `after_cursor`."""

    job_no: int
    job: str
    tenant: str
    after_cursor: int
    at_ms: int
    error: ResultError


class WithdrawFailures(_Command, frozen=True, kw_only=True):
    """Dead letters become open again; their failures and strikes are forgotten."""

    job_no: int
    items: tuple[int, ...]


class AddStrike(_Command, frozen=True, kw_only=True):
    """An item failed on a car in a way that may be the car's fault."""

    job_no: int
    index: int
    vehicle: str


class BeginAttempt(_Command, frozen=True, kw_only=True):
    """An offer is about to leave."""

    job_no: int
    unit: int
    fence: Fence
    vehicle: str
    issued: tuple[int, ...]
    alone: bool
    offered_ms: int


class EndAttempt(_Command, frozen=True, kw_only=True):
    """An attempt is over, as the dispatcher sees it."""

    unit: int
    fence: Fence
    job: str
    vehicle: str
    end: AttemptEnd
    taken_ms: int | None
    ended_ms: int
    items_done: int
    busy_ms: float
    energy_j: float
    outcome: Outcome | None
    release_reason: ReleaseReason | None
    hold: HoldReason | None
    stop_tier: StopTier | None
    stop_latency_ms: float | None


class BookWork(_Command, frozen=True, kw_only=True):
    """Items that a car has finished, each at its one canonical end, for the totals.

    `credits` are the price that the dispatcher has set, `price_of` so many items; energy and wear
    are what the car tells of them. Durable items are booked with their results, in one commit.
    """

    tenant: str
    vehicle: str
    at_ms: int
    items: int
    credits: float
    energy_j: float
    energy_method: EnergyMethod
    wear_percent: float
    wear_method: WearMethod
    is_interactive: bool = False


class PutVehicle(_Command, frozen=True, kw_only=True):
    """A car's newest Birth."""

    birth: Birth


class PutQuarantine(_Command, frozen=True, kw_only=True):
    """A car's quarantine."""

    vehicle: str
    on: bool


StoreCommand = (
    AddJob
    | UpdateJob
    | AddResult
    | FailRemaining
    | WithdrawFailures
    | AddStrike
    | BeginAttempt
    | EndAttempt
    | BookWork
    | PutVehicle
    | PutQuarantine
)

# --- load -----------------------------------------------------------------------------


class LoadJobs(_Command, frozen=True, kw_only=True):
    """Open jobs of a tenant after job number `after_no` → JobsLoaded."""

    tenant: str
    after_no: int
    limit: int


class LoadItems(_Command, frozen=True, kw_only=True):
    """Open items of a job above index `after` → ItemsLoaded."""

    job: str
    job_no: int
    after: int
    limit: int
    limit_bytes: int


class FindAttempt(_Command, frozen=True, kw_only=True):
    """Was this attempt issued to this car? → AttemptFound."""

    vehicle: str
    chunk: Chunk


LoadCommand = LoadJobs | LoadItems | FindAttempt

# --- publish ----------------------------------------------------------------------------


class PublishOffer(_Command, frozen=True, kw_only=True):
    """Units for one car."""

    vehicle: str
    units: tuple[UnitOffer, ...]


class PublishOrders(_Command, frozen=True, kw_only=True):
    """Chunk answers, cancels and the like for one car."""

    vehicle: str
    orders: tuple[Order, ...]


class PublishStatus(_Command, frozen=True, kw_only=True):
    """A job's status for its tenant."""

    status: JobStatus


PublishCommand = PublishOffer | PublishOrders | PublishStatus

Command = StoreCommand | LoadCommand | PublishCommand
