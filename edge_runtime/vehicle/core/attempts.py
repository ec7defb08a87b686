"""An attempt on the car: its phase, the items that remain, and the chunk that is being filled.

Invariants
- Phases change only along `TRANSITIONS`; anything else raises `InvalidTransition`.
- An item of the offer is in exactly one place: `remaining`, the open chunk, or a closed chunk.
- Chunks of one fence are numbered from 0 without gaps; the last one carries the ending.
- An interactive attempt is RECORDED from the first: there is no record to wait for.

Deliberately absent: the journal, the engine and the bus; `machine` ties them together.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from math import isfinite
from typing import Final

import msgspec

from edge_runtime.contract import limits
from edge_runtime.contract.clock import NS_PER_MS, Now
from edge_runtime.contract.errors import LocalError
from edge_runtime.contract.messages import (
    Chunk,
    Ending,
    Fence,
    Item,
    ItemDone,
    ItemFailed,
    ItemResult,
    Reference,
    StopReport,
    Tokens,
    UnitOffer,
    Usage,
)
from edge_runtime.contract.reasons import ItemError
from edge_runtime.vehicle.core.energy import ItemCost


class Phase(Enum):
    """Where an attempt is in its life on this car."""

    OFFERED = "offered"
    RECORDED = "recorded"
    LOADING = "loading"
    RUNNING = "running"
    STOPPING = "stopping"
    REPORTING = "reporting"
    RELEASED = "released"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REFUSED = "refused"
    DONE = "done"


_P = Phase
TRANSITIONS: Final[Mapping[Phase, frozenset[Phase]]] = {
    # Waiting for its journal record; an interactive attempt has none, and begins one further.
    _P.OFFERED: frozenset({_P.RECORDED, _P.REFUSED, _P.CANCELLED}),
    # Waiting for its model package, or for the engine to be thawed or replaced.
    _P.RECORDED: frozenset({_P.LOADING, _P.REPORTING, _P.RELEASED, _P.FAILED, _P.CANCELLED}),
    # In the engine's queue; back to RECORDED when the engine died.
    _P.LOADING: frozenset({_P.RUNNING, _P.RECORDED, _P.STOPPING, _P.REPORTING, _P.FAILED}),
    _P.RUNNING: frozenset({_P.RECORDED, _P.STOPPING, _P.REPORTING, _P.FAILED}),
    # Frozen, or being cancelled; back where it was when the engine is thawed.
    _P.STOPPING: frozenset(
        {_P.RECORDED, _P.LOADING, _P.RUNNING, _P.REPORTING, _P.RELEASED, _P.FAILED, _P.CANCELLED}
    ),
    # Ended here; the last chunk waits for the dispatcher's answer.
    _P.REPORTING: frozenset({_P.DONE}),
    _P.RELEASED: frozenset({_P.DONE}),
    _P.FAILED: frozenset({_P.DONE}),
    _P.CANCELLED: frozenset({_P.DONE}),
    # Nothing more, ever.
    _P.REFUSED: frozenset(),
    _P.DONE: frozenset(),
}

LIVE: Final = frozenset({_P.OFFERED, _P.RECORDED, _P.LOADING, _P.RUNNING, _P.STOPPING})
"""The phases that occupy one of the car's units."""
IN_ENGINE: Final = frozenset({_P.LOADING, _P.RUNNING, _P.STOPPING})


class InvalidTransition(LocalError):  # noqa: N818 - named for what it is in the table
    """A phase was to change in a way that the table does not list: a defect of this program."""

    def __init__(self, unit: int, before: Phase, after: Phase) -> None:
        super().__init__(f"unit {unit}: {before.value} -> {after.value} is not in the table")
        self.unit = unit
        self.before = before
        self.after = after


def require_legal(unit: int, before: Phase, after: Phase) -> None:
    """Raise `InvalidTransition` unless the table lists the change."""
    if after not in TRANSITIONS[before]:
        raise InvalidTransition(unit, before, after)


class StopIntent(Enum):
    """What a stopping attempt becomes when the engine has let go of it."""

    HOLD = "hold"
    CANCEL = "cancel"
    DEADLINE = "deadline"


@dataclass(slots=True)
class OpenChunk:
    """The chunk that is being filled."""

    items: list[ItemResult] = field(default_factory=list)
    tokens: list[Tokens] = field(default_factory=list)
    outputs: dict[str, bytes] = field(default_factory=dict)
    """What its items refer to, by SHA-256."""
    encoded_bytes: int = 0
    since_ns: int = 0
    busy_ms: float = 0.0
    energy_j: float = 0.0
    wear_percent: float = 0.0
    load_ms: float = 0.0

    @property
    def is_full(self) -> bool:
        """Whether it must close before another item comes."""
        return (
            len(self.items) >= limits.CHUNK_ITEMS_MAX or self.encoded_bytes >= limits.UNIT_MAX_BYTES
        )


@dataclass(slots=True)
class Totals:
    """What the attempt came to, for its one log line.

    `lost` items were in hand when it was stopped. `wasted_j` went into those, and into items
    that the watchdog ended.
    """

    done: int = 0
    failed: int = 0
    lost: int = 0
    wasted_j: float = 0.0
    busy_ms: float = 0.0
    load_ms: float = 0.0
    energy_j: float = 0.0


@dataclass(slots=True)
class Attempt:
    """One unit in this car's hands."""

    offer: UnitOffer
    received_ns: int
    deadline_ns: int
    remaining: dict[int, Item]
    phase: Phase = Phase.OFFERED
    run_id: int | None = None
    run_progress: int = 0
    fetching_bytes: int = 0
    """What has been asked for of inputs that travel by reference, until that is answered."""
    held_bytes: int = 0
    """What has come of them."""
    next_seq: int = 0
    chunk: OpenChunk = field(default_factory=OpenChunk)
    intent: StopIntent | None = None
    resume: Phase | None = None
    in_hand: dict[int, float] = field(default_factory=dict)
    """Items that a stop found being computed, and for how many milliseconds each had been."""
    totals: Totals = field(default_factory=Totals)

    @property
    def unit(self) -> int:
        """The unit's number."""
        return self.offer.unit

    @property
    def fence(self) -> Fence:
        """The fence under which new chunks go."""
        return self.offer.fence

    @property
    def is_interactive(self) -> bool:
        """Whether its requester waits, and nothing of it is journalled or sent twice."""
        return self.offer.interactive

    @property
    def missing(self) -> tuple[tuple[int, Reference], ...]:
        """(index, reference) of the remaining items whose bytes are not here."""
        return tuple(
            (index, item.ref) for index, item in self.remaining.items() if item.ref is not None
        )

    @property
    def is_fetching(self) -> bool:
        """Whether inputs have been asked for, and there is no answer yet."""
        return self.fetching_bytes > 0

    @property
    def fetched_bytes(self) -> int:
        """What it has fetched, and is fetching."""
        return self.held_bytes + self.fetching_bytes

    def hold_input(self, index: int, sha256: str, data: bytes) -> None:
        """The bytes of an item are here; what is of no remaining item is let go."""
        item = self.remaining.get(index)
        if item is not None and item.ref is not None and item.ref.sha256 == sha256:
            self.held_bytes += item.ref.length
            self.remaining[index] = msgspec.structs.replace(item, data=data, ref=None)

    def move(self, after: Phase) -> None:
        """Change phase. Raises `InvalidTransition`."""
        require_legal(self.unit, self.phase, after)
        self.phase = after

    def stop_for(self, intent: StopIntent) -> None:
        """Begin to stop, or change what stopping is for."""
        if self.phase is not Phase.STOPPING:
            self.resume = self.phase
            self.move(Phase.STOPPING)
        self.intent = intent

    def go_on(self) -> None:
        """Go back to where it was before it was stopped."""
        if self.resume is None:
            raise LocalError(f"unit {self.unit}: nothing to resume")
        self.move(self.resume)
        self.resume = self.intent = None
        self.in_hand = {}

    def leave_engine(self) -> None:
        """The engine no longer knows the run; what remains may be submitted again."""
        self.run_id = None
        self.run_progress = 0
        if self.phase is Phase.STOPPING:
            self.resume = Phase.RECORDED
        else:
            self.move(Phase.RECORDED)

    def adopt(self, offer: UnitOffer, deadline_ns: int, remaining: dict[int, Item]) -> None:
        """Go on under a newer fence: what was finished and is still open is sent under it."""
        self.offer = offer
        self.deadline_ns = deadline_ns
        self.remaining = remaining
        self.next_seq = 0

    def has_room_for(self, result: ItemResult) -> bool:
        """Whether a finished item still fits the open chunk."""
        size = encoded_size(result)
        return not self.chunk.items or (
            not self.chunk.is_full and self.chunk.encoded_bytes + size <= limits.UNIT_MAX_BYTES
        )

    def report(
        self, result: ItemResult, cost: ItemCost, now: Now, output: bytes | None = None
    ) -> None:
        """Move one item from `remaining` to the open chunk. The item must remain.

        `output` is what the result refers to, where it refers to anything.
        """
        del self.remaining[result.index]
        chunk = self.chunk
        if output is not None and isinstance(result, ItemDone) and result.ref is not None:
            chunk.outputs[result.ref.sha256] = output
        if not chunk.items:
            chunk.since_ns = now.boot_ns
        chunk.items.append(result)
        chunk.encoded_bytes += encoded_size(result)
        if isinstance(result, ItemDone):
            self.totals.done += 1
            chunk.busy_ms += result.busy_ms
            self.totals.busy_ms += result.busy_ms
            chunk.energy_j += cost.joules
            chunk.wear_percent += cost.wear_percent
            self.totals.energy_j += cost.joules
        else:
            self.totals.failed += 1

    def add_load(self, load_ms: float) -> None:
        """Time that loading the model took."""
        self.chunk.load_ms += load_ms
        self.totals.load_ms += load_ms

    def close_chunk(self, ending: Ending | None, usage: Usage | None = None) -> Chunk:
        """Return the open chunk, numbered, and begin the next."""
        chunk, self.chunk = self.chunk, OpenChunk()
        seq, self.next_seq = self.next_seq, self.next_seq + 1
        return Chunk(
            job=self.offer.job,
            unit=self.unit,
            fence=self.fence,
            model=self.offer.model,
            seq=seq,
            items=tuple(chunk.items),
            energy_j=_amount(chunk.energy_j),
            busy_ms=_amount(chunk.busy_ms),
            load_ms=_amount(chunk.load_ms),
            ending=ending,
            tokens=tuple(chunk.tokens),
            usage=usage,
        )

    def chunk_due_ns(self) -> int | None:
        """When the open chunk must close for its age."""
        if not self.chunk.items:
            return None
        return self.chunk.since_ns + limits.CHUNK_MAX_AGE_MS * NS_PER_MS


def items_of(offer: UnitOffer) -> dict[int, Item]:
    """The offer's items by index, in order."""
    return {item.index: item for item in offer.items}


def referenced_bytes(offer: UnitOffer) -> int:
    """What the references of an offer lead to, together."""
    return sum(item.ref.length for item in offer.items if item.ref is not None)


def deadline_of(offer: UnitOffer, now: Now, *, is_clock_trusted: bool) -> int:
    """Boot time of the deadline: the earlier of the two clocks' word for it."""
    deadline_ms = offer.remaining_ms
    if is_clock_trusted:
        deadline_ms = min(deadline_ms, offer.deadline_ms - now.utc_ms)
    return now.boot_ns + deadline_ms * NS_PER_MS


def outputs_place(offer: UnitOffer) -> str:
    """Where large outputs of a unit may be put; empty where nowhere."""
    is_usable = len(offer.outputs) + 1 + _SHA256_CHARS <= limits.TEXT_MAX_CHARS
    return offer.outputs if is_usable else ""


def finished_item(
    index: int, output: bytes, busy_ms: float, *, sha256: str = "", place: str = ""
) -> ItemResult:
    """An output as it travels; what cannot travel becomes the item's failure.

    One that is too large to travel inline becomes a reference to where it will be put: under
    `place`, by its `sha256`.
    """
    if len(output) > limits.OUTPUT_MAX_BYTES:
        is_taken = bool(place) and len(sha256) == _SHA256_CHARS
        limit = limits.OBJECT_MAX_BYTES if is_taken else limits.OUTPUT_MAX_BYTES
        if len(output) > limit:
            message = f"the output has {len(output)} bytes; the limit is {limit}"
            return failed_item(index, ItemError.RESULT_TOO_LARGE, message)
        ref = Reference(sha256=sha256, length=len(output), url=f"{place}/{sha256}")
        return ItemDone(index=index, output=_NIL, busy_ms=_amount(busy_ms), ref=ref)
    try:
        _raw_decoder.decode(output)
    except (msgspec.DecodeError, RecursionError):
        return failed_item(
            index, ItemError.MODEL_ERROR, "the engine's output is not one MessagePack value"
        )
    return ItemDone(index=index, output=msgspec.Raw(output), busy_ms=_amount(busy_ms))


def failed_item(index: int, code: ItemError, message: str) -> ItemFailed:
    """A failure as it travels."""
    return ItemFailed(index=index, code=code, message=message[: limits.TEXT_MAX_CHARS])


def stop_fields(stop: StopReport | None) -> tuple[str | None, float | None]:
    """Tier and latency for a log line."""
    return (None, None) if stop is None else (stop.tier.value, stop.latency_ms)


_raw_decoder: Final = msgspec.msgpack.Decoder(msgspec.Raw)
_ITEM_OVERHEAD_BYTES: Final = 32
_SHA256_CHARS: Final = 64
_NIL: Final = msgspec.Raw(b"\xc0")


def encoded_size(result: ItemResult) -> int:
    """Upper bound of a result's encoded bytes."""
    if isinstance(result, ItemDone):
        size = len(memoryview(result.output)) + _ITEM_OVERHEAD_BYTES
        return size if result.ref is None else size + 4 * limits.TEXT_MAX_CHARS
    return 4 * len(result.message) + _ITEM_OVERHEAD_BYTES + len(result.code.value)


def _amount(value: float) -> float:
    """A time or energy that the wire accepts, whatever the engine said."""
    return min(max(value, 0.0), limits.AMOUNT_MAX) if isfinite(value) else 0.0
