"""What travels over HTTP between a requester (or operator) and the dispatcher.

The same structs serve JSON (bytes as base64) and MessagePack (`application/x-msgpack`, bytes as
bytes), the form the Python SDK uses. Streams are newline-delimited JSON, or MessagePack values
back to back.
"""

from enum import Enum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from edge_runtime.contract import limits
from edge_runtime.contract.messages import (
    Count,
    Digest,
    Id,
    JobStatus,
    ResultEntry,
    ResultError,
    Text,
)
from edge_runtime.contract.reasons import (
    Availability,
    HoldReason,
    Outcome,
    ReleaseReason,
    StopTier,
)

OBJECTS_PATH = "/objects"
"""Where a tenant's objects are, each under its SHA-256."""


class _Body(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the HTTP bodies: named maps."""


class ItemInput(_Body, frozen=True, kw_only=True):
    """One item as its owner has it: exactly one of `data` (bytes), `text` and `ref`.

    `ref` is the SHA-256 of an object that the tenant has uploaded, for what is over
    `ITEM_MAX_BYTES`.
    """

    media_type: Text = "application/octet-stream"
    data: bytes | None = None
    text: str | None = None
    ref: Digest | None = None


class Requirements(_Body, frozen=True, kw_only=True, omit_defaults=True):
    """What a car must have to run a job; empty fields ask for nothing."""

    region: Id | None = None
    hardware: Text | None = None
    vehicles: Annotated[tuple[Id, ...], Meta(max_length=64)] = ()


class JobRequest(_Body, frozen=True, kw_only=True, omit_defaults=True):
    """One job. `model` is a package's name, `name@version` or digest.

    `deadline_s` counts from acceptance. The same `idempotency_key` with the same body returns
    the same job; with another body it is refused with 409.
    """

    model: Text
    items: Annotated[tuple[ItemInput, ...], Meta(max_length=limits.JOB_MAX_ITEMS)]
    parameters: dict[str, Any] = {}
    idempotency_key: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    deadline_s: Annotated[float, Meta(gt=0, le=limits.JOB_DEADLINE_MAX_S)] = (
        limits.JOB_DEADLINE_DEFAULT_S
    )
    retention_s: Annotated[float, Meta(gt=0, le=limits.JOB_RETENTION_MAX_S)] = (
        limits.JOB_RETENTION_DEFAULT_S
    )
    purpose: Id = "batch"
    priority: Annotated[int, Meta(ge=0, le=9)] = 5
    requirements: Requirements = Requirements()


class JobsRequest(_Body, frozen=True, kw_only=True):
    """Up to `JOBS_PER_REQUEST_MAX` jobs in one request; each is answered by itself."""

    jobs: Annotated[tuple[JobRequest, ...], Meta(min_length=1)]


class Problem(_Body, frozen=True, kw_only=True, omit_defaults=True):
    """A refusal: `code` for programs, `message` for people, `field` and `limit` where known.

    `present` is the value that met the limit; `retry_after_s` when another try may do better.
    """

    code: str
    message: str
    status: int
    field: str | None = None
    limit: str | None = None
    present: float | None = None
    retry_after_s: float | None = None


class Submitted(_Body, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to one job of a request: `status` or `problem`.

    `existing` says that the idempotency key named a job accepted before.
    """

    status: JobStatus | None = None
    existing: bool = False
    problem: Problem | None = None


class JobsAnswer(_Body, frozen=True, kw_only=True):
    """Answers in the order of the request's jobs."""

    jobs: tuple[Submitted, ...]


class FeedEntry(_Body, frozen=True, kw_only=True):
    """One result in a tenant's feed. `position` grows over all the tenant's jobs, with gaps."""

    position: int
    job: str
    result: ResultEntry


class StreamEnd(_Body, frozen=True, kw_only=True):
    """The last element of a finished job's result stream."""

    status: JobStatus


class StreamProblem(_Body, frozen=True, kw_only=True):
    """The last element of a stream that failed on the dispatcher's side."""

    problem: Problem


class CarView(_Body, frozen=True, kw_only=True, omit_defaults=True):
    """One car, as its operator sees it. `age_ms` is since its last state."""

    vehicle: str
    availability: Availability
    hold: HoldReason | None = None
    online: bool
    quarantined: bool = False
    age_ms: int
    free_units: int
    units_in_flight: int
    backlog_ms: float
    items_done: int = 0
    region: str = "default"
    hardware: str = ""
    charge_percent: float | None = None
    battery_temperature_c: float | None = None
    compute_temperature_c: float | None = None
    resident: tuple[str, ...] = ()


class FleetView(_Body, frozen=True, kw_only=True):
    """A page of cars and the counts over all of them."""

    cars: tuple[CarView, ...]
    total: int
    by_availability: dict[str, int]
    by_hold: dict[str, int]


class AttemptState(Enum):
    """Where an attempt stands."""

    OFFERED = "offered"
    RUNNING = "running"
    ENDED = "ended"


class AttemptEnd(Enum):
    """How the dispatcher saw an attempt end."""

    COMPLETED = "completed"
    RELEASED = "released"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    OFFER_TIMEOUT = "offer_timeout"
    LEASE_EXPIRED = "lease_expired"


class AttemptView(_Body, frozen=True, kw_only=True, omit_defaults=True):
    """One attempt, for timelines: who, when, which items, how it ended, how it was stopped."""

    job: str
    unit: int
    epoch: int
    counter: int
    vehicle: str
    offered_ms: int
    items: int
    taken_ms: int | None = None
    ended_ms: int | None = None
    end: AttemptEnd | None = None
    outcome: Outcome | None = None
    release_reason: ReleaseReason | None = None
    hold: HoldReason | None = None
    items_done: int = 0
    stop_tier: StopTier | None = None
    stop_latency_ms: float | None = None
    energy_j: float = 0.0
    busy_ms: float = 0.0


class Explanation(_Body, frozen=True, kw_only=True):
    """Why a job is waiting: the same data that placement decided on, counted by cause."""

    job: str
    summary: str
    items_open: int
    items_in_flight: int
    cars_total: int
    cars_eligible: int
    cars_excluded: dict[str, int]


class DeadLetter(_Body, frozen=True, kw_only=True):
    """An item that failed for good."""

    job: str
    item: int
    at_ms: int
    error: ResultError


class ModelView(_Body, frozen=True, kw_only=True):
    """A package that the dispatcher serves."""

    name: str
    version: str
    task: str
    digest: str
    bytes: int
    licence: str = ""


class Health(_Body, frozen=True, kw_only=True, omit_defaults=True):
    """Readiness: the broker and the store, with the reason where one is down.

    A dispatcher that is about to stop is `draining`, and not ready.
    """

    ready: bool
    broker: str
    store: str
    epoch: int
    open_jobs: int
    version: str
    counters: dict[str, int] = {}
    draining: bool = False


class Requeue(_Body, frozen=True, kw_only=True):
    """Which dead letters to run again; no items means all of the job."""

    items: Annotated[tuple[Count, ...], Meta(max_length=limits.JOB_MAX_ITEMS)] = ()


class Requeued(_Body, frozen=True, kw_only=True):
    """How many items run again."""

    items: int


class Quarantine(_Body, frozen=True, kw_only=True):
    """Give a car no work (`on`), or give it work again."""

    on: bool


class NewKey(_Body, frozen=True, kw_only=True, omit_defaults=True):
    """A key to be made for a tenant; `is_operator` keys may also do what an operator does."""

    tenant: Id
    is_operator: bool = False
    note: Text = ""


class KeyView(_Body, frozen=True, kw_only=True, omit_defaults=True):
    """A key as it is listed: never the key, only the prefix that it begins with."""

    prefix: str
    tenant: str
    created_ms: int
    is_operator: bool = False
    note: str = ""
    revoked_ms: int | None = None


class KeyMade(_Body, frozen=True, kw_only=True):
    """A new key. Shown once: what is stored is its hash."""

    key: str
    view: KeyView


_Bound = Annotated[int, Meta(ge=0, le=limits.COUNT_MAX)]


class Quota(_Body, frozen=True, kw_only=True, omit_defaults=True):
    """What a tenant may have at once; None is no bound.

    `items` and `bytes` are those of jobs that have not ended (`bytes` also those of uploaded
    files). `burst` requests may come at once, `requests_per_s` in the long run. `weight` is the
    tenant's share of the fleet while others wait too.
    """

    jobs: _Bound | None = None
    items: _Bound | None = None
    bytes: _Bound | None = None
    requests_per_s: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    burst: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    weight: Annotated[int, Meta(ge=1, le=limits.TENANT_WEIGHT_MAX)] = 1


class TenantUsage(_Body, frozen=True, kw_only=True):
    """A tenant's quota and what it uses of it now. `refused` counts since the start."""

    tenant: str
    quota: Quota
    jobs: int
    items: int
    bytes: int
    refused: int


class Backup(_Body, frozen=True, kw_only=True):
    """The name of the new file in the dispatcher's backup folder; without one, UTC names it."""

    name: Annotated[str, Meta(pattern="^[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}$")] | None = None


class BackupDone(_Body, frozen=True, kw_only=True):
    """Where the backup is, on the dispatcher's machine."""

    path: str
    bytes: int
