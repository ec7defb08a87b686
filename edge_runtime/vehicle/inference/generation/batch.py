"""The requests that are computed together: they join and leave between steps.

Invariants
- What a request's tokens are depends on nothing beside it, but for the last digits of a matrix
  product with more rows.
- Rows lie without gaps from 0: first those whose prompt is read, which are computed together,
  then those whose is not. Prompts are read in the order in which they came.
- Either half of a step that raises has changed nothing that the next one relies on: the same
  tokens are written to the same places again.
- Of a request that brings tokens of another car, only tokens after them are told.

A step is `read`, of a piece of one new prompt, and `decode`, of one token of everybody else.
Deliberately absent: clocks, frames and stops; see `loop`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from edge_runtime.contract import limits
from edge_runtime.contract.errors import LocalError
from edge_runtime.vehicle.core.events import FinishReason
from edge_runtime.vehicle.inference.generation.detokenizer import TextStream
from edge_runtime.vehicle.inference.generation.request import GenerationRequest
from edge_runtime.vehicle.inference.generation.sampler import Logits, choose

Key = tuple[int, int]
"""Names a request; what the two numbers mean is the caller's."""


class Decoder(Protocol):
    """A model with a cache of keys and values for `rows` requests of `context_tokens` each."""

    @property
    def rows(self) -> int:
        """How many requests fit."""
        ...

    def prefill(self, row: int, ids: Sequence[int], start: int) -> Logits:
        """Read tokens into a row behind its first `start`; the logits after the last, [V]."""
        ...

    def decode(self, tokens: Sequence[int], lengths: Sequence[int]) -> Logits:
        """Read one token into each of the first rows, behind its `lengths`; logits [rows, V]."""
        ...

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of one row over another."""
        ...

    def swap(self, first: int, second: int, length: int) -> None:
        """Exchange the first `length` tokens of two rows."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """The whole answer of a request, with what it brought of another car."""

    ids: tuple[int, ...]
    text: str
    finish: FinishReason


@dataclass(frozen=True, slots=True)
class Produced:
    """What a step brought for one request.

    `ids` are new tokens; `text` is what became sure; `margin` is by how much the choice was the
    best one. An `answer` ends the request, which has then left.
    """

    key: Key
    ids: tuple[int, ...]
    text: str
    margin: float
    answer: Answer | None


@dataclass(slots=True)
class _Row:
    number: int
    """Who joined earlier has the smaller one."""
    key: Key
    request: GenerationRequest
    stream: TextStream
    ids: list[int]
    """Prompt and answer: all that is to be read before the next token."""
    texts: list[str]
    read: int = 0
    """How many of them the cache holds."""
    answer: Answer | None = None

    @property
    def is_reading(self) -> bool:
        """Whether more than the newest token is still unread."""
        return len(self.ids) - self.read > 1 or self.read == 0

    def finish_after(self, newest: int | None) -> FinishReason | None:
        """Whether the answer is whole with its newest token."""
        if self.stream.is_stopped or newest in self.request.stop_ids:
            return FinishReason.STOP
        is_long = len(self.ids) - len(self.request.prompt) >= self.request.max_tokens
        return FinishReason.LENGTH if is_long else None

    def produced(
        self, ids: tuple[int, ...], text: str, margin: float, finish: FinishReason | None
    ) -> Produced:
        """Note what came, and tell it; with a `finish` this is the last of it."""
        if finish is not None:
            text += self.stream.finish()
        self.texts.append(text)
        if finish is not None:
            generated = tuple(self.ids[len(self.request.prompt) :])
            self.answer = Answer(generated, "".join(self.texts), finish)
        return Produced(self.key, ids, text, margin, self.answer)


@dataclass(slots=True)
class GenerationBatch:
    """See the module. `token_bytes` are the vocabulary's, by id."""

    decoder: Decoder
    token_bytes: Sequence[bytes]
    _rows: list[_Row] = field(default_factory=list)
    _joined: int = 0

    @property
    def keys(self) -> list[Key]:
        """Who is in it, by row."""
        return [row.key for row in self._rows]

    @property
    def keys_read(self) -> list[Key]:
        """Those whose prompt is read: the next `decode` is for them."""
        return [row.key for row in self._rows[: self._count_read]]

    @property
    def free_rows(self) -> int:
        """How many more requests fit."""
        return self.decoder.rows - len(self._rows)

    @property
    def reading(self) -> Key | None:
        """Whose prompt the next `read` reads; None when all are read."""
        row = self._oldest_reading()
        return None if row is None else row.key

    def add(self, key: Key, request: GenerationRequest) -> Produced | None:
        """Let a request join; `Produced` when what it brought has ended it already.

        Raises `LocalError` when there is no room, or the key is here.
        """
        if not self.free_rows or key in self.keys:
            raise LocalError(f"no room for request {key}, or it is here already")
        stream = TextStream(self.token_bytes, request.stops)
        texts = [stream.push(token) for token in request.generated]
        self._joined += 1
        ids = [*request.prompt, *request.generated]
        row = _Row(self._joined, key, request, stream, ids, texts)
        finish = row.finish_after(request.generated[-1] if request.generated else None)
        if finish is not None:
            return row.produced((), "", math.inf, finish)
        self._rows.append(row)
        return None

    def remove(self, key: Key) -> None:
        """Let a request leave; one that is not here is ignored."""
        for place, row in enumerate(self._rows):
            if row.key == key:
                self._leave(place)
                return

    def read(self) -> list[Produced]:
        """Read a piece of the oldest unread prompt; its first token, when it was the last."""
        row = self._oldest_reading()
        if row is None:
            return []
        stop = min(len(row.ids), row.read + limits.GENERATION_PREFILL_TOKENS)
        place = next(i for i, other in enumerate(self._rows) if other is row)
        logits = self.decoder.prefill(place, row.ids[row.read : stop], row.read)
        front = self._count_read
        row.read = stop
        if stop < len(row.ids):
            return []
        if place != front:
            self._swap(place, front)
        return self._settle([self._advance(row, logits)])

    def decode(self) -> list[Produced]:
        """Compute one token of every request whose prompt is read."""
        rows = self._rows[: self._count_read]
        if not rows:
            return []
        lengths = [row.read for row in rows]
        logits = self.decoder.decode([row.ids[-1] for row in rows], lengths)
        for row in rows:
            row.read += 1
        return self._settle([self._advance(row, logits[i]) for i, row in enumerate(rows)])

    @property
    def _count_read(self) -> int:
        """How many rows have read their prompts; those are the first."""
        return sum(not row.is_reading for row in self._rows)

    def _oldest_reading(self) -> _Row | None:
        reading = self._rows[self._count_read :]
        return min(reading, key=lambda row: row.number, default=None)

    @staticmethod
    def _advance(row: _Row, logits: Logits) -> Produced:
        """Choose the row's next token."""
        token, margin = choose(logits, row.request.sampling, len(row.ids))
        if token in row.request.stop_ids:
            return row.produced((), "", margin, FinishReason.STOP)
        row.ids.append(token)
        text = row.stream.push(token)
        return row.produced((token,), text, margin, row.finish_after(token))

    def _settle(self, produced: list[Produced]) -> list[Produced]:
        """Let those leave that have ended."""
        for place in range(len(self._rows) - 1, -1, -1):
            if self._rows[place].answer is not None:
                self._leave(place)
        return produced

    def _swap(self, first: int, second: int) -> None:
        rows = self._rows
        self.decoder.swap(first, second, max(rows[first].read, rows[second].read))
        rows[first], rows[second] = rows[second], rows[first]

    def _leave(self, place: int) -> None:
        """Close the gap: first with the last row that is read, then with the last of all."""
        last_read = self._count_read - 1
        if place < last_read:
            self._move(last_read, place)
            place = last_read
        last = len(self._rows) - 1
        if place < last:
            self._move(last, place)
        del self._rows[last]

    def _move(self, source: int, target: int) -> None:
        self.decoder.move(source, target, self._rows[source].read)
        self._rows[target] = self._rows[source]
