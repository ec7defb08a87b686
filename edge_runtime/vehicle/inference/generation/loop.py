"""The worker's loop while it generates: runs of one model, whose items share steps.

Invariants
- Every item that was begun ends as Finished or Broke, or with its run's Ended; every run that
  was taken ends as exactly one Ended.
- A run that is to end leaves between two steps; a step that is for nobody else is broken off at
  its next graph node, as is the reading of a prompt that nobody waits for any more.
- Runs of the model that come meanwhile join, unless another's run waits before them: then what is
  here is finished first.
- Items of runs that stream go before others that wait for room.

A step's time is shared evenly by the items that it was computed for. Of a run that is stopped,
the first item in hand is named, with the time of all of them; the engine knows which those are.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from edge_runtime.contract import limits
from edge_runtime.contract.messages import Item
from edge_runtime.contract.reasons import ItemError
from edge_runtime.vehicle.core.events import FinishReason
from edge_runtime.vehicle.inference import protocol
from edge_runtime.vehicle.inference.generation.batch import Key, Produced
from edge_runtime.vehicle.inference.generation.request import GenerationRequest
from edge_runtime.vehicle.inference.generation.task import Generation
from edge_runtime.vehicle.inference.protocol import Phase, Progress
from edge_runtime.vehicle.inference.stopping import Stops
from edge_runtime.vehicle.inference.streams import Outbox
from edge_runtime.vehicle.inference.tasks.base import ItemFailure, ItemStopped

_NS_PER_MS: Final = 1_000_000


@dataclass(slots=True)
class _Run:
    """A run that was taken; `left` counts its items that have not ended."""

    run: protocol.Run
    parameters: Mapping[str, Any]
    left: int


@dataclass(slots=True)
class _Member:
    """An item in the batch, and what was produced and not told yet."""

    run: _Run
    item: Item
    request: GenerationRequest
    offset: int
    ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    told_ns: int = 0
    busy_ms: float = 0.0
    margin: float | None = None

    @property
    def key(self) -> Key:
        """Ticket and index."""
        return self.run.run.ticket, self.item.index


@dataclass(frozen=True, slots=True)
class LoopCalls:
    """What the loop asks of the worker around it.

    `next_joiner` is a run of the same model that has come; `between_steps` does what cannot wait;
    `encode` makes an output's bytes and raises `ItemFailure` for too many.
    """

    next_joiner: Callable[[], protocol.Run | None]
    between_steps: Callable[[], None]
    parameters: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]
    as_failure: Callable[[Exception], ItemFailure]


class GenerationLoop:
    """One stretch of generating; see the module."""

    def __init__(
        self,
        generation: Generation,
        *,
        outbox: Outbox,
        stops: Stops,
        progress: Progress,
        calls: LoopCalls,
    ) -> None:
        self._generation = generation
        self._batch = generation.batch
        self._outbox = outbox
        self._stops = stops
        self._progress = progress
        self._calls = calls
        self._runs: dict[int, _Run] = {}
        self._members: dict[Key, _Member] = {}
        self._streamed: deque[tuple[_Run, Item]] = deque()
        self._waiting: deque[tuple[_Run, Item]] = deque()
        self._step_ms = 0.0
        self._has_told = False

    def generate(self, first: protocol.Run) -> None:
        """Compute `first` and what joins it; every run's end is told."""
        self._join(first)
        while self._runs:
            while (joiner := self._calls.next_joiner()) is not None:
                self._join(joiner)
            for ticket in [ticket for ticket in self._runs if self._stops.wants_run(ticket)]:
                self._cancel(ticket)
            self._admit()
            self._step()
            self._flush()
            if self._runs:
                self._calls.between_steps()

    def _flush(self) -> None:
        """Who reads along, and the watchdog, waits for nothing else."""
        if self._has_told:
            self._has_told = False
            self._outbox.flush()
        else:
            self._outbox.flush_if_due()

    # --- coming ----------------------------------------------------------------------------

    def _join(self, run: protocol.Run) -> None:
        taken = _Run(run, self._calls.parameters(run.parameters), len(run.items))
        self._runs[run.ticket] = taken
        queue = self._streamed if run.streams else self._waiting
        queue.extend((taken, item) for item in run.items)
        if not run.items:
            self._end(taken, protocol.Ended(run.ticket, protocol.EndedAs.COMPLETED))

    def _admit(self) -> None:
        """Begin items as long as there is room."""
        batch = self._batch
        while batch.free_rows and (queue := self._streamed or self._waiting):
            run, item = queue.popleft()
            ticket = run.run.ticket
            self._progress.note(Phase.ITEM, ticket, item.index)
            self._outbox.add(protocol.Started(ticket, item.index))
            try:
                request = self._read(run, item)
            except Exception as error:  # noqa: BLE001 - an item may be wrong in any way; the worker stays
                self._break(run, item.index, self._calls.as_failure(error), self._busy_ms())
                continue
            member = _Member(run, item, request, len(request.generated))
            self._members[member.key] = member
            member.busy_ms = self._busy_ms()
            ended = batch.add(member.key, request)
            if ended is not None:
                self._produced(ended)

    def _read(self, run: _Run, item: Item) -> GenerationRequest:
        if not isinstance(run.parameters, dict):
            raise ItemFailure(ItemError.INVALID_PARAMETERS, "parameters: not a map of names")
        return self._generation.read(item.data, item.media_type, run.parameters)

    # --- steps -----------------------------------------------------------------------------

    def _step(self) -> None:
        batch = self._batch
        if batch.reading is not None:
            self._compute([self._members[batch.reading]], batch.read)
            self._flush()
        if members := [self._members[key] for key in batch.keys_read]:
            self._compute(members, batch.decode)

    def _compute(self, members: list[_Member], compute: Callable[[], list[Produced]]) -> None:
        """Compute one step for these members, tell what it brought, and share its time."""
        oldest = members[0]
        self._progress.note(Phase.STEP, *oldest.key)
        self._stops.begin_step(frozenset(m.run.run.ticket for m in members), oldest.key)
        produced: list[Produced] = []
        broken: list[_Member] = []
        failure = ItemFailure(ItemError.ENGINE_HUNG, "took longer than the watchdog allows")
        try:
            produced = compute()
        except ItemStopped:
            if self._stops.wants_item(*oldest.key):
                broken = [oldest]
        except Exception as error:  # noqa: BLE001 - a model may fail in any way; the worker stays
            broken, failure = members, self._calls.as_failure(error)
        finally:
            self._stops.end()
        self._step_ms = self._busy_ms()
        for member in members:
            member.busy_ms += self._step_ms / len(members)
        for one in produced:
            self._produced(one)
        for member in broken:
            self._batch.remove(member.key)
            del self._members[member.key]
            self._break(member.run, member.item.index, failure, member.busy_ms)
        self._tell_quiet(members)

    def _busy_ms(self) -> float:
        """For how long what was noted last has been computed."""
        return self._progress.busy_ns(time.monotonic_ns()) / 1e6

    def _produced(self, produced: Produced) -> None:
        member = self._members[produced.key]
        member.ids += produced.ids
        member.texts.append(produced.text)
        if produced.margin < (float("inf") if member.margin is None else member.margin):
            member.margin = produced.margin
        if produced.answer is None:
            if member.run.run.streams and self._is_due(member):
                self._tell(member)
            return
        answer = produced.answer
        output = {
            "text": answer.text,
            "ids": answer.ids,
            "finish": answer.finish.value,
            "usage": {
                "prompt_tokens": len(member.request.prompt),
                "completion_tokens": len(answer.ids),
            },
            "margin": member.margin,
        }
        del self._members[member.key]
        ticket, index = member.key
        try:
            encoded = self._calls.encode(output)
        except ItemFailure as failure:
            self._break(member.run, index, failure, member.busy_ms)
            return
        if member.run.run.streams:
            self._tell(member, answer.finish)
        self._outbox.add(protocol.Finished(ticket, index, encoded, member.busy_ms))
        self._item_ended(member.run)

    def _is_due(self, member: _Member) -> bool:
        """Whether its tokens are told now: with the next step's they would be too many, or late."""
        if len(member.ids) >= limits.GENERATION_CHUNK_MAX_TOKENS:
            return True
        age_ms = (time.monotonic_ns() - member.told_ns) / _NS_PER_MS
        return age_ms + self._step_ms > limits.GENERATION_CHUNK_MAX_MS

    def _tell(self, member: _Member, finish: FinishReason | None = None) -> None:
        ids, text = tuple(member.ids), "".join(member.texts)
        self._outbox.add(
            protocol.Tokens(*member.key, member.offset, ids, text, finish, member.busy_ms)
        )
        self._has_told = True
        member.offset += len(ids)
        member.ids, member.texts = [], []
        member.told_ns = time.monotonic_ns()

    def _tell_quiet(self, members: list[_Member]) -> None:
        """Say that those that nobody streams get on, and those that read long prompts."""
        now_ns = time.monotonic_ns()
        for member in members:
            is_late = now_ns - member.told_ns > limits.GENERATION_QUIET_MS * _NS_PER_MS
            if is_late and member.key in self._members:
                if not member.run.run.streams:
                    member.ids, member.texts = [], []
                self._tell(member)

    # --- going -----------------------------------------------------------------------------

    def _break(self, run: _Run, index: int, failure: ItemFailure, busy_ms: float) -> None:
        self._outbox.add(
            protocol.Broke(run.run.ticket, index, failure.code, failure.detail, busy_ms)
        )
        self._has_told = True
        self._item_ended(run)

    def _item_ended(self, run: _Run) -> None:
        run.left -= 1
        if not run.left:
            self._end(run, protocol.Ended(run.run.ticket, protocol.EndedAs.COMPLETED))

    def _cancel(self, ticket: int) -> None:
        """Let go of a run: of its items in the batch, and of those that wait."""
        gone = [member for member in self._members.values() if member.run.run.ticket == ticket]
        for member in gone:
            self._batch.remove(member.key)
            del self._members[member.key]
        for queue in (self._streamed, self._waiting):
            kept = [(run, item) for run, item in queue if run.run.ticket != ticket]
            queue.clear()
            queue.extend(kept)
        ended_as = protocol.EndedAs.CANCELLED
        ended = protocol.Ended(ticket, ended_as)
        if gone:
            busy_ms = sum(member.busy_ms for member in gone)
            ended = protocol.Ended(ticket, ended_as, index=gone[0].item.index, busy_ms=busy_ms)
        self._end(self._runs[ticket], ended)

    def _end(self, run: _Run, ended: protocol.Ended) -> None:
        self._outbox.add(ended)
        del self._runs[run.run.ticket]
        self._stops.forget(run.run.ticket)
