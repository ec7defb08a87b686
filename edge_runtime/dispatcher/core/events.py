"""What the dispatcher's core is told: past-tense facts, frozen."""

import msgspec

from edge_runtime.contract.messages import (
    Birth,
    Chunk,
    Fence,
    Item,
    Offline,
    VehicleState,
    Verdict,
)
from edge_runtime.contract.reasons import JobState
from edge_runtime.dispatcher.core.placement import Requirement


class _Event(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Base of the core's events."""


class JobSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a job that never changes. `parameters` is MessagePack."""

    id: str
    tenant: str
    requirement: Requirement
    parameters: bytes
    purpose: str
    priority: int
    items: int
    submitted_ms: int
    deadline_ms: int
    retention_ms: int
    reference_ms: float
    idempotency_key: str | None = None
    body_hash: bytes = b""
    traceparent: str | None = None


class JobSubmitted(_Event, frozen=True, kw_only=True):
    """A validated job arrived; its items are at hand."""

    spec: JobSpec
    items: tuple[Item, ...]


class JobCancelled(_Event, frozen=True, kw_only=True):
    """Its requester, or the operator, no longer wants a job."""

    job: str


class JobRequeued(_Event, frozen=True, kw_only=True):
    """The operator runs dead letters of a job again; the store still holds their failures."""

    job: "StoredJob"
    items: tuple[Item, ...]


class StoredJob(msgspec.Struct, frozen=True, kw_only=True):
    """An open job as the store has it.

    `in_order` False: open jobs of its tenant with lower numbers may not have been taken up.
    """

    no: int
    spec: JobSpec
    state: JobState
    done: int
    failed: int
    cursor: int
    strikes: tuple[tuple[int, str], ...] = ()
    in_order: bool = True


class StoredAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that had not ended when the store was last written, with its open items."""

    job_no: int
    unit: int
    fence: Fence
    vehicle: str
    items: tuple[Item, ...]
    issued: tuple[int, ...]
    alone: bool
    offered_ms: int


class JobsLoaded(_Event, frozen=True, kw_only=True):
    """Open jobs of a tenant from the store, in order of acceptance. `more` says there are more."""

    tenant: str
    jobs: tuple[StoredJob, ...]
    more: bool


class ItemsLoaded(_Event, frozen=True, kw_only=True):
    """Open items of a job after the ones asked from. `more` False: that was the end."""

    job: str
    items: tuple[Item, ...]
    through: int
    more: bool


class VehicleBorn(_Event, frozen=True, kw_only=True):
    """A Birth arrived on the car's own topic; `is_retained`: the broker's copy, maybe old."""

    birth: Birth
    is_retained: bool = False


class VehicleWent(_Event, frozen=True, kw_only=True):
    """An Offline arrived on the car's own topic."""

    offline: Offline


class StateReported(_Event, frozen=True, kw_only=True):
    """A VehicleState arrived on the car's own topic."""

    state: VehicleState


class VerdictReceived(_Event, frozen=True, kw_only=True):
    """A car answered an offer or a cancel."""

    vehicle: str
    verdict: Verdict


class ChunkReceived(_Event, frozen=True, kw_only=True):
    """A chunk arrived on the car's own topic."""

    vehicle: str
    chunk: Chunk


class AttemptFound(_Event, frozen=True, kw_only=True):
    """What the store knows of an attempt that memory does not.

    `issued` are the items issued to that car, None if it was never given that attempt;
    `stored` is its job while that is open; `open_items` those of the chunk that are open.
    """

    vehicle: str
    chunk: Chunk
    issued: tuple[int, ...] | None
    known_job: bool
    stored: StoredJob | None = None
    open_items: tuple[Item, ...] = ()


class QuarantineSet(_Event, frozen=True, kw_only=True):
    """The operator gave a car no work, or work again."""

    vehicle: str
    on: bool


class WeightSet(_Event, frozen=True, kw_only=True):
    """A tenant's share of the fleet beside others' (1: as everybody)."""

    tenant: str
    weight: int


class TimePassed(_Event, frozen=True, kw_only=True):
    """A deadline that the core asked for has come."""


Event = (
    JobSubmitted
    | JobCancelled
    | JobRequeued
    | JobsLoaded
    | ItemsLoaded
    | VehicleBorn
    | VehicleWent
    | StateReported
    | VerdictReceived
    | ChunkReceived
    | AttemptFound
    | QuarantineSet
    | WeightSet
    | TimePassed
)
