"""What the engine and its worker process say to each other, and how it is framed.

Three ways: a stream socket for runs and events, a packet socket for stops (read by a thread of
the worker while a model runs), and one page of shared memory where the worker notes what it is
at. The page costs no system call and outlives the worker: whatever kills it, the item it was at
is known.

Both ends are always the same version of this package: nothing here evolves.
"""

import enum
import mmap
import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from edge_runtime.contract import limits
from edge_runtime.contract.errors import RemoteError
from edge_runtime.contract.messages import Item
from edge_runtime.contract.reasons import ItemError
from edge_runtime.vehicle.inference.options import WorkerOptions

_LENGTH: Final = struct.Struct("<I")


class _Frame(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of what travels."""


# --- engine to worker --------------------------------------------------------------------


class Configure(_Frame, frozen=True):
    """The first frame: limits and session options."""

    options: WorkerOptions


class Run(_Frame, frozen=True):
    """Items for one model. Tickets only grow; `parameters` is MessagePack, may be empty."""

    ticket: int
    folder: str
    digest: str
    items: tuple[Item, ...]
    parameters: bytes


ToWorker = Configure | Run


class StopRun(_Frame, frozen=True):
    """End this run, whether it runs or waits."""

    ticket: int


class StopItem(_Frame, frozen=True):
    """End this item, which took too long, and go on with the next."""

    ticket: int
    index: int


Stop = StopRun | StopItem


# --- worker to engine --------------------------------------------------------------------


class EndedAs(enum.Enum):
    """How a run left the worker."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    MODEL_FAILED = "model_failed"


class Ready(_Frame, frozen=True):
    """The worker is set up and waits for runs."""


class Loaded(_Frame, frozen=True):
    """A model was loaded for this run; others may have been let go."""

    ticket: int
    digest: str
    load_ms: float
    reference_ms: float
    evicted: tuple[str, ...]


class Started(_Frame, frozen=True):
    """An item is about to be computed."""

    ticket: int
    index: int


class Finished(_Frame, frozen=True):
    """An item's result as MessagePack; `busy_ms` leaves frozen time out."""

    ticket: int
    index: int
    output: bytes
    busy_ms: float


class Broke(_Frame, frozen=True):
    """An item has no result."""

    ticket: int
    index: int
    code: ItemError
    message: str


class Ended(_Frame, frozen=True):
    """A run is over."""

    ticket: int
    outcome: EndedAs
    message: str = ""


FromWorker = Ready | Loaded | Started | Finished | Broke | Ended


# --- frames ------------------------------------------------------------------------------


class BadFrame(RemoteError):  # noqa: N818 - named for what it is
    """The other process sent what it never should; it is not worth talking to any more."""


def frame(body: bytes) -> bytes:
    """Return the body with its length before it."""
    return _LENGTH.pack(len(body)) + body


class FrameSplitter:
    """Cuts a byte stream into frames; holds at most one unfinished frame."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield every frame that is now whole. Raises `BadFrame` for one over the limit."""
        self._pending += data
        position = 0
        while len(self._pending) - position >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._pending, position)
            if length > limits.ENGINE_FRAME_MAX_BYTES:
                raise BadFrame(f"a frame of {length} bytes")
            end = position + _LENGTH.size + length
            if end > len(self._pending):
                break
            yield bytes(memoryview(self._pending)[position + _LENGTH.size : end])
            position = end
        del self._pending[:position]


# --- the shared page ---------------------------------------------------------------------


class Phase(enum.IntEnum):
    """What the worker is at."""

    STARTING = 0
    IDLE = 1
    LOADING = 2
    ITEM = 3


class Progress:
    """One page that the worker writes and the engine reads, but for `frozen_ns`: vice versa.

    Each field is one aligned 8-byte store. `sequence` grows with every change, so that a reader
    can tell "still at it" from "at it again".
    """

    BYTES: Final = 4096

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, self.BYTES)
        self._words = memoryview(self._map).cast("Q")

    def note(self, phase: Phase, ticket: int = 0, index: int = 0) -> None:
        """Worker: this is what comes now."""
        words = self._words
        words[1] = phase
        words[2] = ticket
        words[3] = index
        words[0] += 1

    @property
    def sequence(self) -> int:
        """How many changes the worker has noted."""
        return self._words[0]

    @property
    def phase(self) -> Phase:
        """What the worker is at."""
        return Phase(self._words[1])

    @property
    def ticket(self) -> int:
        """The run that it is at, where the phase has one."""
        return self._words[2]

    @property
    def index(self) -> int:
        """The item that it is at, in phase ITEM."""
        return self._words[3]

    @property
    def frozen_ns(self) -> int:
        """For how long in total the worker was frozen."""
        return self._words[4]

    def add_frozen(self, duration_ns: int) -> None:
        """Engine: the worker was frozen for this long."""
        self._words[4] += duration_ns

    def close(self) -> None:
        """Let go of the page."""
        self._words.release()
        self._map.close()
