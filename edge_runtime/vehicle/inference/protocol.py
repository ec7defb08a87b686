"""What the engine and its worker process say to each other, and how it is framed.

Three ways: a stream socket for runs and events, a packet socket for stops (read by a thread of
the worker while a model runs), and shared memory: one page where the worker notes what it is at,
and behind it the events that it has not sent yet. That costs no system call and outlives the
worker: whatever stops it, the item it was at is known, and what was finished before is not lost.

Both ends are always the same version of this package: nothing here evolves.
"""

import enum
import mmap
import struct
import time
from collections.abc import Iterator
from typing import Final

import msgspec

from edge_runtime.contract import limits
from edge_runtime.contract.errors import RemoteError
from edge_runtime.contract.messages import Item
from edge_runtime.contract.reasons import ItemError
from edge_runtime.vehicle.core.events import FinishReason
from edge_runtime.vehicle.inference.options import WorkerOptions

_LENGTH: Final = struct.Struct("<I")
_ARRAY_16: Final = 16
"""From here on MessagePack arrays have two bytes of length."""


class _Frame(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of what travels."""


# --- engine to worker --------------------------------------------------------------------


class Configure(_Frame, frozen=True):
    """The first frame: limits and session options, and a folder where profiles may be written."""

    options: WorkerOptions
    scratch: str


class Run(_Frame, frozen=True):
    """Items for one model. Tickets only grow; `parameters` is MessagePack, may be empty.

    `node_ms` is what the model's longest node takes on this computer, None where nobody knows.
    What is `urgent` is computed before, and between the items of, what is not. With `streams`, a
    generation tells its tokens as they come. An output over `output_max_bytes` fails its item; None
    is what the worker was told when it started.
    """

    ticket: int
    folder: str
    digest: str
    items: tuple[Item, ...]
    parameters: bytes
    node_ms: float | None = None
    urgent: bool = False
    streams: bool = False
    output_max_bytes: int | None = None


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


class Batch(_Frame, frozen=True):
    """The first event of every frame: its number, from 1."""

    number: int


class Ready(_Frame, frozen=True):
    """The worker is set up and waits for runs."""


class Loaded(_Frame, frozen=True):
    """A model was loaded for this run; others may have been let go."""

    ticket: int
    digest: str
    load_ms: float
    reference_ms: float
    evicted: tuple[str, ...]


class Profiled(_Frame, frozen=True):
    """What the model's longest node took, for one row of its input; see `profiling`."""

    digest: str
    node_ms: float


class Started(_Frame, frozen=True):
    """An item is about to be computed."""

    ticket: int
    index: int


class Finished(_Frame, frozen=True):
    """An item's result as MessagePack; `busy_ms` leaves frozen time out.

    Of one that does not travel inline the `sha256` is there, too: nobody else need wait for it.
    """

    ticket: int
    index: int
    output: bytes
    busy_ms: float
    sha256: str = ""


class Tokens(_Frame, frozen=True):
    """Tokens of an item that streams, or (without any) that a generation gets on.

    `offset` counts the item's generated tokens before these; the last of a stream have a
    `finish`.
    """

    ticket: int
    index: int
    offset: int
    ids: tuple[int, ...]
    text: str
    finish: FinishReason | None
    busy_ms: float


class Broke(_Frame, frozen=True):
    """An item has no result; `busy_ms` as for `Finished`."""

    ticket: int
    index: int
    code: ItemError
    message: str
    busy_ms: float = 0.0


class Ended(_Frame, frozen=True):
    """A run is over. One that was cancelled names the item that it was at, and its time."""

    ticket: int
    outcome: EndedAs
    message: str = ""
    index: int | None = None
    busy_ms: float = 0.0


FromWorker = Batch | Ready | Loaded | Profiled | Started | Tokens | Finished | Broke | Ended


# --- frames ------------------------------------------------------------------------------


class BadFrame(RemoteError):  # noqa: N818 - named for what it is
    """The other process sent what it never should; it is not worth talking to any more."""


def frame(body: bytes) -> bytes:
    """Return the body with its length before it."""
    return _LENGTH.pack(len(body)) + body


def array_head(count: int) -> bytes:
    """Return what a MessagePack array of `count` values begins with (65,535 at most)."""
    return bytes([0x90 | count]) if count < _ARRAY_16 else b"\xdc" + count.to_bytes(2, "big")


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
    STEP = 4
    """A step of several items of perhaps several runs; one of them is named."""


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
        words[5] = time.monotonic_ns()
        words[6] = words[4]
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
        """The item that it is at, in phases ITEM and STEP."""
        return self._words[3]

    @property
    def frozen_ns(self) -> int:
        """For how long in total the worker was frozen."""
        return self._words[4]

    def busy_ns(self, now_ns: int) -> int:
        """For how long it has been at it by `now_ns` (CLOCK_MONOTONIC), frozen time left out."""
        words = self._words
        return max(0, now_ns - words[5] - (words[4] - words[6]))

    def add_frozen(self, duration_ns: int) -> None:
        """Engine: the worker was frozen for this long."""
        self._words[4] += duration_ns

    def close(self) -> None:
        """Let go of the page."""
        self._words.release()
        self._map.close()


class Unsent:
    """The worker's events that are not known to be sent: written by it, read when it stands still.

    Behind the page of `Progress` in the same memory. A batch is emptied after it was sent, so a
    reader may find a batch that it has had: batches are numbered. How much there is, is one store
    after the events themselves, so a reader finds whole events only.
    """

    BYTES: Final = limits.ENGINE_OUTBOX_BYTES
    _HEAD_BYTES: Final = 64
    _LENGTH_BITS: Final = 32

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, Progress.BYTES + self.BYTES)
        self._bytes = memoryview(self._map)[Progress.BYTES :]
        self._words = self._bytes[: self._HEAD_BYTES].cast("Q")

    def _extent(self) -> tuple[int, int]:
        """Return how many events there are, and their bytes."""
        extent = self._words[1]
        return extent >> self._LENGTH_BITS, extent & ((1 << self._LENGTH_BITS) - 1)

    def fits(self, event: bytes) -> bool:
        """Worker: whether there is room for one more encoded event."""
        count, length = self._extent()
        return (
            count < limits.ENGINE_UNSENT_EVENTS_MAX
            and self._HEAD_BYTES + length + len(event) <= self.BYTES
        )

    def add(self, event: bytes) -> None:
        """Worker: keep one encoded event that fits."""
        count, length = self._extent()
        start = self._HEAD_BYTES + length
        self._bytes[start : start + len(event)] = event
        self._words[1] = (count + 1) << self._LENGTH_BITS | (length + len(event))

    def begin(self, number: int) -> None:
        """Worker: what was kept is sent; batch `number` begins."""
        self._words[1] = 0
        self._words[0] = number

    def read(self) -> tuple[int, bytes]:
        """Engine: return the batch's number and its events as one MessagePack array, or b"".

        Whatever the worker wrote, no more is read than there is.
        """
        number = self._words[0]
        count, length = self._extent()
        end = self._HEAD_BYTES + length
        if not 0 < count <= limits.ENGINE_UNSENT_EVENTS_MAX or end > self.BYTES:
            return number, b""
        return number, array_head(count) + bytes(self._bytes[self._HEAD_BYTES : end])

    def close(self) -> None:
        """Let go of the memory."""
        self._words.release()
        self._bytes.release()
        self._map.close()
