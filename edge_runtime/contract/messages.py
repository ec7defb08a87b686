"""Every message that travels, as frozen tagged msgspec structs.

Between car and dispatcher structs are array-like (small); on the topics that third parties read
they are named maps with a `type` key. Evolution rules: new fields go last and have defaults; a
new reason decodes as `unknown` on an older peer; a new tag is a counted rejection there. Golden
vectors under `schemas/golden/` hold this down.

Deliberately absent: anything that reads a clock or a random source, any default that hides a
missing mandatory field.
"""

from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from edge_runtime.contract import limits
from edge_runtime.contract.reasons import (
    Availability,
    CancelReason,
    ChunkVerdict,
    EnergyMethod,
    FinishReason,
    HoldReason,
    ItemError,
    JobState,
    Outcome,
    RefusalReason,
    ReleaseReason,
    RequestRefusal,
    StopTier,
    WearMethod,
)
from edge_runtime.contract.signals import Signals

CONTRACT_VERSION = 1
INTERACTIVE_JOB = "interactive"
"""The `job` of every interactive unit: none was accepted, and no durable job has this id."""

Id = Annotated[str, Meta(min_length=1, max_length=limits.ID_MAX_CHARS)]
Digest = Annotated[str, Meta(min_length=64, max_length=64, pattern="^[0-9a-f]{64}$")]
Text = Annotated[str, Meta(max_length=limits.TEXT_MAX_CHARS)]
Count = Annotated[int, Meta(ge=0, le=limits.COUNT_MAX)]
SmallCount = Annotated[int, Meta(ge=0, le=limits.SMALL_COUNT_MAX)]
Amount = Annotated[float, Meta(ge=0, le=limits.AMOUNT_MAX)]
Balance = Annotated[float, Meta(ge=-limits.AMOUNT_MAX, le=limits.AMOUNT_MAX)]


class Fence(NamedTuple):
    """Numbers an attempt; only grows for a unit. Compared as a tuple (design §3).

    Closed: a named tuple never gains a field.
    """

    epoch: Count
    counter: Count


class AttemptId(NamedTuple):
    """One offer of one unit to one car."""

    unit: Count
    fence: Fence


class _Wire(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """Base of the array-like messages between car and dispatcher."""


# --- car -> dispatcher: status ----------------------------------------------------------


class VehicleLimits(_Wire, frozen=True, kw_only=True):
    """What a car takes at once."""

    units_max: SmallCount = 4
    message_max_bytes: Count = limits.MESSAGE_MAX_BYTES


class Birth(_Wire, frozen=True, kw_only=True, tag="birth"):
    """A car's runtime came up, or its connection did (design §5, `up/status`, retained).

    `boot` only grows: max(stored + 1, UTC seconds at start). `connection` counts connects
    within that boot. `hardware` names the class within which outputs compare. One that
    `takes_references` fetches the inputs that do not travel inline.
    """

    vehicle: Id
    boot: Count
    connection: Count
    contract: Count
    runtime: Text
    vss: Text
    hardware: Text
    tasks: Annotated[tuple[Id, ...], Meta(max_length=32)]
    resident: Annotated[tuple[Digest, ...], Meta(max_length=limits.RESIDENT_MODELS_MAX)]
    limits: VehicleLimits
    region: Id = "default"
    takes_references: bool = False


class Offline(_Wire, frozen=True, kw_only=True, tag="offline"):
    """A car left, by its own word or by its Will. Of an older boot or connection: ignored."""

    vehicle: Id
    boot: Count
    connection: Count


Status = Birth | Offline


class VehicleState(_Wire, frozen=True, kw_only=True, tag="state"):
    """A car's availability and signals (`up/state`). `seq` grows within a boot."""

    vehicle: Id
    boot: Count
    seq: Count
    at_ms: Count
    availability: Availability
    hold: HoldReason | None
    free_units: SmallCount
    energy_budget_wh: Balance | None
    signals: Signals
    resident: Annotated[tuple[Digest, ...], Meta(max_length=limits.RESIDENT_MODELS_MAX)] = ()


# --- car -> dispatcher: acknowledgements ---------------------------------------------------


class Taken(_Wire, frozen=True, kw_only=True, tag="taken"):
    """The offer is in the car's journal."""

    unit: Count
    fence: Fence


class Refused(_Wire, frozen=True, kw_only=True, tag="refused"):
    """The car will not run the offer; `retry_after_ms` hints when to ask it again."""

    unit: Count
    fence: Fence
    reason: RefusalReason
    retry_after_ms: Count
    hold: HoldReason | None = None


class Cancelled(_Wire, frozen=True, kw_only=True, tag="cancelled"):
    """The attempt is not, or no longer, running on this car and never will be."""

    unit: Count
    fence: Fence


Verdict = Taken | Refused | Cancelled


class Acks(_Wire, frozen=True, kw_only=True, tag="acks"):
    """Verdicts on offers and cancels, batched (`up/ack`)."""

    vehicle: Id
    boot: Count
    verdicts: Annotated[tuple[Verdict, ...], Meta(max_length=limits.VERDICTS_PER_MESSAGE_MAX)]


# --- car -> dispatcher: results -------------------------------------------------------------


class Reference(_Wire, frozen=True, kw_only=True):
    """An object that is too large to travel inline: its SHA-256 and length, and where it is.

    A `url` that begins with a slash is a path on the host that serves model packages.
    """

    sha256: Digest
    length: Annotated[int, Meta(ge=0, le=limits.OBJECT_MAX_BYTES)]
    url: Text


class ItemDone(_Wire, frozen=True, kw_only=True, tag="ok"):
    """One item's output: any MessagePack value, kept as the bytes the car sent.

    One that does not travel inline is what `ref` leads to (then `output` is nil): it was put whole
    under the place that the unit's offer named.
    """

    index: Count
    output: msgspec.Raw
    busy_ms: Amount = 0.0
    ref: Reference | None = None


class ItemFailed(_Wire, frozen=True, kw_only=True, tag="failed"):
    """One item failed on this car."""

    index: Count
    code: ItemError
    message: Text = ""


ItemResult = ItemDone | ItemFailed


class StopReport(_Wire, frozen=True, kw_only=True):
    """How a running computation was stopped: the rung, and event to last CPU time."""

    tier: StopTier
    latency_ms: Amount


class Ending(_Wire, frozen=True, kw_only=True):
    """Why and how an attempt ended on its car; on its last chunk."""

    outcome: Outcome
    reason: ReleaseReason | None = None
    hold: HoldReason | None = None
    stop: StopReport | None = None


class Tokens(_Wire, frozen=True, kw_only=True):
    """Tokens of one item of an interactive attempt, in the order in which they were generated.

    `offset` counts the item's generated tokens before `ids`, those of earlier cars included, so
    that a repeat is known. Only the attempt's current fence extends a stream. `text` is what these
    tokens made sure of; the last of an item has a `finish`.
    """

    index: Count
    offset: Count
    ids: Annotated[tuple[Count, ...], Meta(max_length=limits.TOKENS_PER_PIECE_MAX)]
    text: Annotated[str, Meta(max_length=limits.TOKENS_TEXT_MAX_CHARS)]
    finish: FinishReason | None = None


class Usage(_Wire, frozen=True, kw_only=True):
    """What a chunk's finished items took from their car, by its own ledger; nobody proves it.

    `energy_method` is how the car knew `Chunk.energy_j`. `wear_percent` is of its traction pack's
    capacity, and says nothing where `wear_method` is unknown.
    """

    energy_method: EnergyMethod = EnergyMethod.UNKNOWN
    wear_percent: Annotated[float, Meta(ge=0, le=limits.CHUNK_WEAR_MAX_PERCENT)] = 0.0
    wear_method: WearMethod = WearMethod.UNKNOWN


class Chunk(_Wire, frozen=True, kw_only=True, tag="chunk"):
    """Finished items of one attempt, numbered from 0. `ending` is set on the last chunk.

    `tokens` are of items that are not finished. A chunk of an interactive attempt is sent once,
    and not answered. `energy_j`, `busy_ms` and `usage` are of the items that have an output.
    """

    job: Id
    unit: Count
    fence: Fence
    model: Digest
    seq: Count
    items: Annotated[tuple[ItemResult, ...], Meta(max_length=limits.ITEMS_PER_CHUNK_MAX)]
    energy_j: Amount = 0.0
    busy_ms: Amount = 0.0
    load_ms: Amount = 0.0
    ending: Ending | None = None
    tokens: Annotated[tuple[Tokens, ...], Meta(max_length=limits.ITEMS_PER_CHUNK_MAX)] = ()
    usage: Usage | None = None


class Results(_Wire, frozen=True, kw_only=True, tag="results"):
    """Chunks, batched (`up/result`)."""

    vehicle: Id
    boot: Count
    chunks: Annotated[tuple[Chunk, ...], Meta(max_length=limits.CHUNKS_PER_MESSAGE_MAX)]


# --- dispatcher -> car ---------------------------------------------------------------------


class Item(_Wire, frozen=True, kw_only=True):
    """One input: `data`, or what `ref` leads to (then `data` is empty)."""

    index: Count
    media_type: Text
    data: bytes
    ref: Reference | None = None


class UnitOffer(_Wire, frozen=True, kw_only=True):
    """One unit for one car. `remaining_ms` is the deadline again, for a car whose UTC is off.

    An `interactive` unit is under the owner's same rules, and nothing of it is kept: it is not
    journalled, Taken is not said, its chunks are sent once, and it goes before what is durable.
    Where `outputs` is not empty, an output over `OUTPUT_MAX_BYTES` is put under that path of the
    host that serves model packages (docs/reference/objects.md), and its item refers to it.
    """

    job: Id
    unit: Count
    fence: Fence
    tenant: Id
    purpose: Id
    task: Id
    model: Digest
    items: Annotated[tuple[Item, ...], Meta(min_length=1, max_length=limits.UNIT_ITEMS_MAX)]
    parameters: msgspec.Raw
    deadline_ms: Count
    remaining_ms: Count
    lease_ms: Count
    traceparent: Text | None = None
    interactive: bool = False
    outputs: Text = ""


class WorkOffer(_Wire, frozen=True, kw_only=True, tag="work"):
    """Units offered to one car (`dn/work`)."""

    vehicle: Id
    units: Annotated[tuple[UnitOffer, ...], Meta(max_length=limits.UNITS_PER_OFFER_MAX)]


class ChunkAnswer(_Wire, frozen=True, kw_only=True, tag="answer"):
    """Chunks `first_seq` to `through_seq` of the attempt (both with) may be forgotten."""

    unit: Count
    fence: Fence
    through_seq: Count
    verdict: ChunkVerdict
    first_seq: Count = 0


class Cancel(_Wire, frozen=True, kw_only=True, tag="cancel"):
    """Stop this attempt; answered with Cancelled, or with its chunks if those came first."""

    unit: Count
    fence: Fence
    reason: CancelReason


class Drain(_Wire, frozen=True, kw_only=True, tag="drain"):
    """Take no new work until told otherwise (`active` False)."""

    active: bool


class Rebirth(_Wire, frozen=True, kw_only=True, tag="rebirth"):
    """Publish Birth and state again."""

    delay_max_ms: Count = 0


Order = ChunkAnswer | Cancel | Drain | Rebirth


class Control(_Wire, frozen=True, kw_only=True, tag="control"):
    """Orders to one car, batched (`dn/control`)."""

    vehicle: Id
    orders: Annotated[tuple[Order, ...], Meta(max_length=limits.ORDERS_PER_MESSAGE_MAX)]


class Desired(_Wire, frozen=True, kw_only=True, tag="desired"):
    """What a car should hold ready (`dn/desired`, retained)."""

    vehicle: Id
    models: Annotated[tuple[Digest, ...], Meta(max_length=32)]
    policy_version: Count = 0


class Signed(_Wire, frozen=True, kw_only=True, tag="signed"):
    """The envelope of every `dn` message, over the raw bytes of its body."""

    key_id: Text
    signature: Annotated[bytes, Meta(max_length=128)]
    body: bytes


class HostStatus(_Wire, frozen=True, kw_only=True, tag="host"):
    """Which dispatcher serves which shards, and where it serves model packages."""

    dispatcher: Id
    epoch: Count
    online: bool
    shards: Annotated[tuple[Id, ...], Meta(max_length=256)] = ()
    models_url: Text = ""


# --- dispatcher -> third parties: named maps ---------------------------------------------------


class _Public(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """Base of the messages that third parties read: maps with a `type` key."""


class ResultError(msgspec.Struct, frozen=True, kw_only=True):
    """Why an item failed for good; `attempts` counts the cars that tried."""

    code: ItemError
    message: str = ""
    attempts: int = 0


class OutputReference(msgspec.Struct, frozen=True, kw_only=True):
    """Where an output is that is too large to travel inline: a path of the HTTP API.

    What is there is the output as MessagePack, of this length and SHA-256; it stays as long as
    the job.
    """

    sha256: str
    length: int
    url: str


class ResultEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One item's canonical end: exactly one of `output`, `error` and `ref`.

    `cursor` numbers a job's results from 1 in order of commit, without gaps.
    """

    cursor: int
    item: int
    at_ms: int
    output: msgspec.Raw = msgspec.Raw()
    error: ResultError | None = None
    vehicle: str = ""
    ref: OutputReference | None = None


class JobStatus(_Public, frozen=True, kw_only=True, tag="status", omit_defaults=False):
    """A job's state and progress (`…/jobs/{job}/status`, retained).

    `last_cursor` is the cursor of its newest result; with a terminal state it is the last.
    `traceparent` (W3C) is that of the request that made the job, where it was traced.
    """

    job: str
    tenant: str
    model: str
    state: JobState
    items: int
    done: int
    failed: int
    last_cursor: int
    submitted_ms: int
    deadline_ms: int
    finished_ms: int | None = None
    traceparent: str | None = None


class JobResults(_Public, frozen=True, kw_only=True, tag="results"):
    """Results of one job in order of commit (`…/jobs/{job}/results`).

    In an answer to FetchSince `since` is the cursor that was asked for: the results are those that
    follow it, with nothing left out between them (a failure that is run again leaves its cursor
    unused). `status` is the job's just before: where there are no results, there is nothing to
    come that it does not tell of. `traceparent` is the job's, as in its status.
    """

    job: str
    results: tuple[ResultEntry, ...]
    since: int | None = None
    status: JobStatus | None = None
    traceparent: str | None = None


class FetchSince(_Public, frozen=True, kw_only=True, tag="fetch_since"):
    """Ask for a job's results after `cursor` (`…/t/{tenant}/request`).

    Answered with one page of JobResults, or with RequestRefused, on the message's response topic,
    or on `respond_to` where the protocol has none: a topic of the tenant's own, neither the
    request's nor under `jobs/`, by custom `…/t/{tenant}/answers/{reader}`. Ask until answered.
    """

    job: Id
    cursor: Count
    respond_to: Text = ""


class RequestRefused(_Public, frozen=True, kw_only=True, tag="request_refused"):
    """Why a request is not answered; `job` and `since` are those of the request, where it had any.

    `retry_after_ms` is when another try may do better; 0 where none will.
    """

    reason: RequestRefusal
    job: str = ""
    since: int | None = None
    retry_after_ms: int = 0


class FleetAggregate(_Public, frozen=True, kw_only=True, tag="fleet"):
    """Capacity of a region, never a single car (`…/pub/fleet/{region}`)."""

    region: str
    at_ms: int
    cars: int
    ready: int
    working: int
    held: int
    offline: int


PublicMessage = JobResults | JobStatus | FleetAggregate | RequestRefused
