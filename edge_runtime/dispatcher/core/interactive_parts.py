"""What the interactive core is told, what it asks for, and what it remembers of each request.

The words: a *request* is one requester's question and waits for exactly one end; a *unit* is what
travels to a car, with the requests that were put together in it; a request may be in more than one
unit when its first car fell silent.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import msgspec

from edge_runtime.contract import limits
from edge_runtime.contract.messages import Fence, Reference, Tokens, UnitOffer
from edge_runtime.contract.reasons import ItemError
from edge_runtime.dispatcher.core.commands import BookWork
from edge_runtime.dispatcher.core.events import ChunkReceived, VerdictReceived
from edge_runtime.dispatcher.core.placement import Requirement

Resume = Callable[[tuple[int, ...]], bytes]
"""The item that goes on after these tokens."""


class _Record(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Base of events and commands."""


# --- events ------------------------------------------------------------------------------------


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One request, validated. `deadline_ms` is boot time; `rows` count along the batch axis.

    Requests may travel in one unit when requirement, tenant, purpose and parameters are equal and
    together they have at most `rows_max` rows. `resume` is there for one that streams tokens:
    it then never shares a unit. `ref` is there for an input that does not travel inline: `item` is
    then empty, and the requirement's cars can fetch.
    """

    number: int
    tenant: str
    requirement: Requirement
    purpose: str
    parameters: bytes
    media_type: str
    item: bytes
    rows: int
    rows_max: int
    deadline_ms: int
    reference_ms: float
    resume: Resume | None = None
    traceparent: str | None = None
    ref: Reference | None = None

    @property
    def object_bytes(self) -> int:
        """What a car fetches for it."""
        return 0 if self.ref is None else self.ref.length


class Asked(_Record, frozen=True, kw_only=True):
    """A request came."""

    ask: Ask


class RequesterLeft(_Record, frozen=True, kw_only=True):
    """Nobody waits for this request any more."""

    number: int


class OutputComes(_Record, frozen=True, kw_only=True):
    """A car begins to hand in an output of a unit, of which so many bytes are still to come."""

    unit: int
    size_bytes: int


class FleetChanged(_Record, frozen=True, kw_only=True):
    """A car said who or how it is, or went; None: something about several cars."""

    vehicle: str | None = None


class InteractiveTick(_Record, frozen=True, kw_only=True):
    """The deadline that the core named has come."""


InteractiveEvent = (
    Asked
    | RequesterLeft
    | ChunkReceived
    | VerdictReceived
    | OutputComes
    | FleetChanged
    | InteractiveTick
)


# --- commands ----------------------------------------------------------------------------------


class OfferUnit(_Record, frozen=True, kw_only=True):
    """Offer this unit to a car, now."""

    vehicle: str
    unit: UnitOffer


class CancelUnit(_Record, frozen=True, kw_only=True):
    """Tell a car that nobody waits for this unit."""

    vehicle: str
    unit: int
    fence: Fence


class DisownChunk(_Record, frozen=True, kw_only=True):
    """Tell a car to forget a chunk that it sends again: of a unit that has ended."""

    vehicle: str
    unit: int
    fence: Fence
    seq: int


class Answered(_Record, frozen=True, kw_only=True):
    """A request has its result: one MessagePack value, or a reference to what was handed in.

    `queue_ms` is from its coming to the offer of the unit that answered, `busy_ms` what the car
    computed; `batch` requests were in that unit.
    """

    number: int
    output: bytes
    vehicle: str
    queue_ms: int
    busy_ms: float
    batch: int
    ref: Reference | None = None


class Streamed(_Record, frozen=True, kw_only=True):
    """A request has more tokens; `tokens.offset` follows on what it was given before."""

    number: int
    tokens: Tokens


class Why(Enum):
    """Why a request has no result."""

    DEADLINE = "deadline"
    NO_CAR = "no_car"
    OVERLOADED = "overloaded"
    ITEM = "item"


class Failed(_Record, frozen=True, kw_only=True):
    """A request ends without a result; `code` where an item failed on a car."""

    number: int
    why: Why
    message: str
    code: ItemError | None = None
    retry_after_ms: int = 1_000


InteractiveCommand = OfferUnit | CancelUnit | DisownChunk | Answered | Streamed | Failed | BookWork


# --- memory ------------------------------------------------------------------------------------


class Key(NamedTuple):
    """Requests that may travel together."""

    requirement: Requirement
    tenant: str
    purpose: str
    parameters: bytes
    media_type: str


@dataclass(slots=True, eq=False)
class Request:
    """One request, until its end. `avoid` are cars, and until when (boot ms)."""

    ask: Ask
    key: Key
    asked_ms: int
    queued_ms: int
    units: "list[Unit]" = field(default_factory=list)
    avoid: dict[str, int] = field(default_factory=dict)
    attempts: int = 0
    strikes: int = 0
    failure: "Failed | None" = None
    ids: list[int] = field(default_factory=list)
    has_all_tokens: bool = False
    is_queued: bool = False
    is_over: bool = False

    @property
    def size_bytes(self) -> int:
        """What it takes in a unit."""
        ref = self.ask.ref
        ref_bytes = 0 if ref is None else len(ref.url) + _REFERENCE_OVERHEAD_BYTES
        return len(self.ask.item) + len(self.ask.media_type) + _ITEM_OVERHEAD_BYTES + ref_bytes

    def avoided(self, now_ms: int) -> frozenset[str]:
        """The cars that it is not to be given to now: they have it, or had it a moment ago."""
        if not self.avoid and not self.units:
            return _NOBODY
        resting = {vehicle for vehicle, until in self.avoid.items() if until > now_ms}
        return frozenset(resting.union(unit.vehicle for unit in self.units))


@dataclass(slots=True, eq=False)
class Unit:
    """One offer to one car; `open` are the requests that still wait for it, by item index.

    `life` is the car's boot and connection: what it said in another life is lost.
    """

    number: int
    fence: Fence
    vehicle: str
    row: int
    life: tuple[int, int]
    requirement: Requirement
    open: dict[int, Request]
    batch: int
    offered_ms: int
    heard_ms: int
    patience_ms: int
    is_silent: bool = False


@dataclass(slots=True)
class Unanswered:
    """A cancel that its car has not answered."""

    vehicle: str
    fence: Fence
    due_ms: int
    until_ms: int


@dataclass(slots=True)
class Pool:
    """Cars that may serve a requirement: rows that hold the model, and rows that would fetch it."""

    warm: list[int] = field(default_factory=list)
    cold: list[int] = field(default_factory=list)
    built_ms: int = -limits.INTERACTIVE_POOL_MS
    is_stale: bool = True
    turn: int = 0


_ITEM_OVERHEAD_BYTES = 64
_REFERENCE_OVERHEAD_BYTES = 96
_NOBODY: frozenset[str] = frozenset()
