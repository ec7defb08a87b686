"""Chunks that the dispatcher has not answered yet: what to publish, and when to send it again.

Invariants
- A chunk is published only when the journal holds it, and kept until it is answered. One that
  refers to outputs is published only when those were handed over (`take_uploads`, `uploaded`).
- The chunk that ends an attempt is published only when no earlier one of its unit waits for that:
  the dispatcher would take its items for unfinished.
- Until then it is sent again, after a wait that doubles up to `CHUNK_RESEND_MAX_MS`; after a
  reconnect all are, one message every `CHUNK_RESEND_SPREAD_MS`.
- `is_full` has no say here: what is finished is kept, however much it is. Who asks stops making
  more, and each attempt that is given back for it adds one last chunk.
- No message exceeds `CHUNKS_PER_MESSAGE_MAX` chunks or, with more than one chunk, `UNIT_MAX_BYTES`.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from edge_runtime.contract import limits
from edge_runtime.contract.clock import NS_PER_MS, Now
from edge_runtime.contract.messages import Chunk, Fence, ItemDone, Reference
from edge_runtime.vehicle.core.attempts import Phase, require_legal

Key = tuple[int, Fence]
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class SavedChunk:
    """One unanswered chunk. `items` are the indexes in it; `due_ns` when it is sent again.

    `references` are outputs that are still to be handed over, `output_bytes` what the journal holds
    of outputs for it. While `is_rewriting` its new body is on the way to the journal.
    """

    key: Key
    seq: int
    job: str
    model: str
    body: bytes
    items: frozenset[int]
    ends: bool = False
    references: dict[str, Reference] = field(default_factory=dict)
    output_bytes: int = 0
    is_uploading: bool = False
    upload_tries: int = 0
    is_rewriting: bool = False
    is_durable: bool = False
    is_ready: bool = False
    due_ns: int | None = None
    wait_ms: int = limits.CHUNK_RESEND_MS

    @property
    def held_bytes(self) -> int:
        """What the journal holds for it."""
        return len(self.body) + self.output_bytes


@dataclass(slots=True)
class Trail:
    """The unanswered chunks of one attempt; `phase` is how it ended, once it has."""

    chunks: dict[int, SavedChunk] = field(default_factory=dict)
    phase: Phase | None = None


@dataclass(slots=True)
class Outbox:
    """Every unanswered chunk of this car, by unit, fence and number."""

    count: int = 0
    size_bytes: int = 0
    answered: int = 0
    resent: int = 0
    _units: dict[int, dict[Fence, Trail]] = field(default_factory=dict)
    _ready: list[SavedChunk] = field(default_factory=list)
    _due: list[tuple[int, int, SavedChunk]] = field(default_factory=list)
    _uploads: list[SavedChunk] = field(default_factory=list)
    _pushes: int = 0

    def add(self, chunk: Chunk, body: bytes, ended_as: Phase | None) -> None:
        """Keep a chunk that was closed; `ended_as` is the attempt's phase after its last one."""
        trail = self._units.setdefault(chunk.unit, {}).setdefault(chunk.fence, Trail())
        refs = (item.ref for item in chunk.items if isinstance(item, ItemDone))
        references = {ref.sha256: ref for ref in refs if ref is not None}
        saved = trail.chunks[chunk.seq] = SavedChunk(
            key=(chunk.unit, chunk.fence),
            seq=chunk.seq,
            job=chunk.job,
            model=chunk.model,
            body=body,
            items=frozenset(item.index for item in chunk.items),
            ends=chunk.ending is not None,
            references=references,
            output_bytes=sum(ref.length for ref in references.values()),
        )
        trail.phase = ended_as or trail.phase
        self.count += 1
        self.size_bytes += saved.held_bytes

    def committed(self, key: Key, seq: int) -> None:
        """The journal holds this chunk: it may be published."""
        chunk = self.find(key, seq)
        if chunk is not None and not chunk.is_durable and not chunk.is_rewriting:
            chunk.is_durable = True
            self._make_ready(chunk)

    def rewrite(self, chunk: SavedChunk, body: bytes, lost: frozenset[str]) -> None:
        """A chunk that was never published says something else, and refers to `lost` no more."""
        for sha256 in lost:
            chunk.references.pop(sha256, None)
        self.size_bytes += len(body) - len(chunk.body)
        chunk.body = body
        chunk.is_rewriting, chunk.is_durable, chunk.due_ns = True, False, None
        if chunk.is_ready:
            chunk.is_ready = False
            self._ready.remove(chunk)

    def rewritten(self, key: Key, seq: int, body: bytes) -> None:
        """The journal holds what a chunk says now."""
        chunk = self.find(key, seq)
        if chunk is not None and chunk.is_rewriting and chunk.body == body:
            chunk.is_rewriting = False
            self.committed(key, seq)
            self._let_end(chunk)

    # --- outputs that it refers to ---

    def take_uploads(self) -> list[SavedChunk]:
        """Chunks whose outputs are to be handed over now."""
        uploads, self._uploads = self._uploads, []
        return uploads

    def uploaded(self, key: Key, seq: int) -> None:
        """The outputs of this chunk were handed over, or never will be: it need wait no longer."""
        chunk = self.find(key, seq)
        if chunk is not None and chunk.is_uploading:
            chunk.is_uploading = False
            chunk.references.clear()
            self._make_ready(chunk)
            self._let_end(chunk)

    def upload_failed(self, key: Key, seq: int, now: Now, *, counts: bool) -> tuple[Reference, ...]:
        """They were not; again later, or never: then what is given up."""
        chunk = self.find(key, seq)
        if chunk is None or not chunk.is_uploading:
            return ()
        chunk.is_uploading = False
        chunk.upload_tries += counts
        if chunk.upload_tries >= limits.OUTPUT_UPLOAD_TRIES:
            return tuple(chunk.references.values())
        self._schedule(chunk, now.boot_ns + chunk.wait_ms * NS_PER_MS)
        chunk.wait_ms = min(2 * chunk.wait_ms, limits.CHUNK_RESEND_MAX_MS)
        return ()

    def _let_end(self, chunk: SavedChunk) -> None:
        """What ends the unit's attempts may have waited for this chunk."""
        for other in self._of_unit(chunk.key[0]):
            if other.ends and other.is_durable and not other.is_uploading:
                self._make_ready(other)

    def _must_wait(self, chunk: SavedChunk) -> bool:
        """Whether an earlier chunk of its unit, which this one ends, cannot be published yet."""
        place = chunk.key[1], chunk.seq
        return chunk.ends and any(
            (other.key[1], other.seq) < place
            for other in self._of_unit(chunk.key[0])
            if other.references or other.is_rewriting
        )

    # --- answers ---

    def answer(self, key: Key, first_seq: int, through_seq: int) -> tuple[bool, Phase | None]:
        """Forget the attempt's durable chunks `first_seq` to `through_seq`, both with.

        Returns whether there were any, and DONE when the attempt's last one was among them.
        """
        trail = self._trail(key)
        if trail is None:
            return False, None
        gone = [
            chunk
            for seq, chunk in trail.chunks.items()
            if first_seq <= seq <= through_seq and chunk.is_durable
        ]
        for chunk in gone:
            del trail.chunks[chunk.seq]
            chunk.is_durable = False
            chunk.due_ns = None
        self.count -= len(gone)
        self.size_bytes -= sum(chunk.held_bytes for chunk in gone)
        self.answered += len(gone)
        if trail.chunks:
            return bool(gone), None
        unit, fence = key
        del self._units[unit][fence]
        if not self._units[unit]:
            del self._units[unit]
        if trail.phase is None:
            return bool(gone), None
        require_legal(unit, trail.phase, Phase.DONE)
        return bool(gone), Phase.DONE

    def forget(self) -> list[SavedChunk]:
        """Drop every chunk; returns the last one of each attempt."""
        last = [
            trail.chunks[max(trail.chunks)]
            for trails in self._units.values()
            for trail in trails.values()
            if trail.chunks
        ]
        for chunk in self._all():
            chunk.is_durable = chunk.is_ready = False
            chunk.due_ns = None
        self._units.clear()
        self._ready.clear()
        self._due.clear()
        self._uploads.clear()
        self.count = self.size_bytes = 0
        return last

    @property
    def is_full(self) -> bool:
        """Whether so much waits for the dispatcher that nothing more may be made."""
        return (
            self.size_bytes >= limits.UNANSWERED_MAX_BYTES
            or self.count >= limits.UNANSWERED_MAX_CHUNKS
        )

    def items_of_unit(self, unit: int, model: str) -> set[int]:
        """Items of this unit that this model finished and that are on their way."""
        return {
            index for chunk in self._of_unit(unit) if chunk.model == model for index in chunk.items
        }

    def holds(self, key: Key) -> bool:
        """Whether chunks of this attempt are unanswered."""
        return self._trail(key) is not None

    def find(self, key: Key, seq: int) -> SavedChunk | None:
        """One unanswered chunk."""
        trail = self._trail(key)
        return None if trail is None else trail.chunks.get(seq)

    def send_again(self, unit: int) -> bool:
        """Publish this unit's durable chunks now; whether there are any."""
        chunks = [chunk for chunk in self._of_unit(unit) if chunk.is_durable]
        for chunk in chunks:
            self._make_ready(chunk)
        return bool(chunks)

    def spread(self, now: Now) -> None:
        """After a reconnect: schedule everything again, a message's worth at a time."""
        for chunk in self._ready:
            chunk.is_ready = False
        self._ready.clear()
        self._due.clear()
        step_ns = limits.CHUNK_RESEND_SPREAD_MS * NS_PER_MS
        durable = [c for c in self._all() if c.is_durable and not c.is_uploading]
        for position, message in enumerate(_messages(durable)):
            for chunk in message:
                chunk.wait_ms = limits.CHUNK_RESEND_MS
                self._schedule(chunk, now.boot_ns + position * step_ns)

    def take(self, now: Now) -> list[tuple[bytes, ...]]:
        """The messages to publish now; each chunk in them is scheduled to be sent again."""
        while self._due and self._due[0][0] <= now.boot_ns:
            due_ns, _, chunk = heapq.heappop(self._due)
            if chunk.due_ns == due_ns and chunk.is_durable and not chunk.is_ready:
                self._make_ready(chunk)
                self.resent += 1
        if not self._ready:
            return []
        ready = [chunk for chunk in self._ready if chunk.is_durable]
        self._ready = []
        to_send = []
        for chunk in ready:
            chunk.is_ready = False
            if chunk.is_uploading:
                continue  # what comes of that decides
            if chunk.references:
                chunk.is_uploading, chunk.due_ns = True, None
                self._uploads.append(chunk)
                continue
            self._schedule(chunk, now.boot_ns + chunk.wait_ms * NS_PER_MS)
            if not self._must_wait(chunk):
                chunk.wait_ms = min(2 * chunk.wait_ms, limits.CHUNK_RESEND_MAX_MS)
                to_send.append(chunk)
        return [tuple(chunk.body for chunk in message) for message in _messages(to_send)]

    def next_ns(self) -> int | None:
        """When the next chunk is due to be sent again."""
        while self._due and self._due[0][2].due_ns != self._due[0][0]:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def problems(self) -> Iterator[str]:
        """Every broken invariant, as a sentence."""
        chunks = list(self._all())
        if self.size_bytes != sum(chunk.held_bytes for chunk in chunks):
            yield f"the outbox says that it holds {self.size_bytes} bytes, and holds others"
        if self.count != len(chunks):
            yield f"the outbox counts {self.count} chunks and holds {len(chunks)}"
        scheduled = {id(c) for due_ns, _, c in self._due if c.due_ns == due_ns}
        for chunk in chunks:
            is_coming = chunk.is_ready or chunk.is_uploading or id(chunk) in scheduled
            if chunk.is_durable and not is_coming:
                yield f"chunk {chunk.key} {chunk.seq} is durable and will never be sent again"

    def _trail(self, key: Key) -> Trail | None:
        return self._units.get(key[0], {}).get(key[1])

    def _all(self) -> Iterator[SavedChunk]:
        for unit in self._units:
            yield from self._of_unit(unit)

    def _of_unit(self, unit: int) -> Iterator[SavedChunk]:
        for trail in self._units.get(unit, {}).values():
            yield from trail.chunks.values()

    def _make_ready(self, chunk: SavedChunk) -> None:
        if not chunk.is_ready:
            chunk.is_ready = True
            self._ready.append(chunk)

    def _schedule(self, chunk: SavedChunk, due_ns: int) -> None:
        chunk.due_ns = due_ns
        self._pushes += 1
        heapq.heappush(self._due, (due_ns, self._pushes, chunk))


def _messages(chunks: Iterable[SavedChunk]) -> Iterator[list[SavedChunk]]:
    """Pack chunks, in order, into as few messages as the limits allow."""
    return _packed(chunks, lambda chunk: len(chunk.body))


def messages_of(bodies: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Pack encoded chunks, in order, into as few messages as the limits allow."""
    return _packed(bodies, len)


def _packed(parts: Iterable[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
    message: list[T] = []
    size = 0
    for part in parts:
        full = len(message) == limits.CHUNKS_PER_MESSAGE_MAX
        if message and (full or size + size_of(part) > limits.UNIT_MAX_BYTES):
            yield message
            message, size = [], 0
        message.append(part)
        size += size_of(part)
    if message:
        yield message
