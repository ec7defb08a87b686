"""Large outputs of requests that wait: a chunk is said once what it refers to was handed over.

Invariants
- Nothing of it is journaled: the outputs stay in memory until they were handed over, were refused,
  or nobody waits for them any more.
- Of all units together no more than `INTERACTIVE_OUTPUTS_MAX_BYTES` are held; an output without
  room has failed, which another car may do better.
- The chunk that ends a unit is said only when no earlier one of it waits: the dispatcher would take
  what is missing for unfinished.
- What does not work is tried again at once, `INTERACTIVE_UPLOAD_TRIES` times in all: somebody
  waits, and the dispatcher gives what failed to another car.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from edge_runtime.contract import limits
from edge_runtime.contract.messages import Chunk, ItemDone, ItemResult, Reference
from edge_runtime.contract.reasons import ItemError
from edge_runtime.vehicle.core.attempts import failed_item
from edge_runtime.vehicle.core.events import RefusedOutput
from edge_runtime.vehicle.core.outbox import Key


@dataclass(slots=True, eq=False)
class _Waiting:
    chunk: Chunk
    outputs: Mapping[str, bytes]
    tries: int = 1

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.outputs.values()))


@dataclass(slots=True)
class Handover:
    """Chunks that wait, by unit, fence and number."""

    size_bytes: int = 0
    _waiting: dict[Key, dict[int, _Waiting]] = field(default_factory=dict)
    _last: dict[Key, Chunk] = field(default_factory=dict)

    def add(self, chunk: Chunk, outputs: Mapping[str, bytes]) -> Iterator[Chunk]:
        """Take a chunk that was closed, and what it refers to; yields what may be said now."""
        waiting = _Waiting(chunk, dict(outputs))
        if self.size_bytes + waiting.size_bytes > limits.INTERACTIVE_OUTPUTS_MAX_BYTES:
            message = f"the car holds {self.size_bytes} bytes of outputs already"
            chunk = without_outputs(chunk, [RefusedOutput(sha256, message) for sha256 in outputs])
        elif outputs:
            self._waiting.setdefault((chunk.unit, chunk.fence), {})[chunk.seq] = waiting
            self.size_bytes += waiting.size_bytes
            return
        yield from self._say(chunk)

    def ended(self, key: Key, seq: int, lost: tuple[RefusedOutput, ...]) -> Iterator[Chunk]:
        """A chunk's outputs were handed over, but for the `lost`; yields what may be said now."""
        waiting = self._waiting.get(key, {}).pop(seq, None)
        if waiting is None:
            return
        self.size_bytes -= waiting.size_bytes
        if not self._waiting[key]:
            del self._waiting[key]
        yield from self._say(without_outputs(waiting.chunk, lost))
        if not self.holds(key) and key in self._last:
            yield self._last.pop(key)

    def _say(self, chunk: Chunk) -> Iterator[Chunk]:
        key = chunk.unit, chunk.fence
        if chunk.ending is not None and self.holds(key):
            self._last[key] = chunk
        else:
            yield chunk

    def may_try_again(self, key: Key, seq: int) -> bool:
        """Whether a chunk's outputs, which could not be handed over, are tried once more."""
        waiting = self._waiting[key][seq]
        waiting.tries += 1
        return waiting.tries <= limits.INTERACTIVE_UPLOAD_TRIES

    def references(self, key: Key, seq: int) -> tuple[Reference, ...]:
        """What a chunk that waits refers to."""
        waiting = self._waiting.get(key, {}).get(seq)
        return () if waiting is None else references_in(waiting.chunk)

    def output(self, key: Key, seq: int, sha256: str) -> bytes | None:
        """The bytes of an output that is still to be handed over."""
        waiting = self._waiting.get(key, {}).get(seq)
        return None if waiting is None else waiting.outputs.get(sha256)

    def holds(self, key: Key) -> bool:
        """Whether anything of this unit is still to be handed over."""
        return key in self._waiting

    def drop(self, key: Key) -> None:
        """Nobody waits for this unit any more."""
        for waiting in self._waiting.pop(key, {}).values():
            self.size_bytes -= waiting.size_bytes
        self._last.pop(key, None)

    def clear(self) -> None:
        """Drop all of it."""
        for key in list(self._waiting):
            self.drop(key)

    def problems(self) -> Iterator[str]:
        """Every broken invariant, as a sentence."""
        held = [one for chunks in self._waiting.values() for one in chunks.values()]
        if self.size_bytes != sum(waiting.size_bytes for waiting in held):
            yield f"outputs of {self.size_bytes} bytes are to be handed over, says their count"
        if self.size_bytes > limits.INTERACTIVE_OUTPUTS_MAX_BYTES:
            yield f"{self.size_bytes} bytes of outputs wait to be handed over"
        for key in self._last.keys() - self._waiting.keys():
            yield f"the end of unit {key} waits for nothing"


def references_in(chunk: Chunk) -> tuple[Reference, ...]:
    """The references of a chunk's items, each once."""
    refs = (item.ref for item in chunk.items if isinstance(item, ItemDone))
    return tuple({ref.sha256: ref for ref in refs if ref is not None}.values())


def without_outputs(chunk: Chunk, lost: "list[RefusedOutput] | tuple[RefusedOutput, ...]") -> Chunk:
    """The chunk, in which the items that refer to these have failed."""
    if not lost:
        return chunk
    why = {output.sha256: output for output in lost}

    def told(item: ItemResult) -> ItemResult:
        output = why.get(item.ref.sha256) if isinstance(item, ItemDone) and item.ref else None
        if output is None:
            return item
        code = ItemError.RESULT_TOO_LARGE if output.is_final else ItemError.OUTPUT_UNAVAILABLE
        return failed_item(item.index, code, output.message)

    return msgspec.structs.replace(chunk, items=tuple(map(told, chunk.items)))
