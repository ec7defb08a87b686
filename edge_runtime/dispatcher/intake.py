"""From bus messages to the core's events: bounded decoding, every rejection counted by reason.

An output that its readers could not take (too large, nested too deep) becomes its item's failure
here: what is committed reaches everybody. So does one by reference that leads nowhere: who keeps
objects says so (`output_problem`); until that is known, what refers to objects is dropped, and sent
again.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import msgspec

from edge_runtime.bus import Message
from edge_runtime.contract import codec, limits
from edge_runtime.contract.errors import Rejected, RejectionReason
from edge_runtime.contract.messages import (
    INTERACTIVE_JOB,
    Birth,
    Chunk,
    ItemDone,
    ItemFailed,
    ItemResult,
    Offline,
    Reference,
)
from edge_runtime.contract.nesting import TooNested, check_nesting
from edge_runtime.contract.reasons import ItemError
from edge_runtime.contract.topics import Topics, Up
from edge_runtime.dispatcher.core.events import (
    ChunkReceived,
    Event,
    StateReported,
    VehicleBorn,
    VehicleWent,
    VerdictReceived,
)

OutputProblem = Callable[[str, Reference], str | None]
"""What is wrong with an output by reference of a job; None for one that is kept for that job."""

_SMALL_BYTES: Final = limits.OUTPUT_NESTING_MAX
"""Each list or map takes a byte."""


class Intake:
    """Decodes what cars publish. One car's garbage touches nothing but a counter."""

    def __init__(self, topics: Topics, counters: Counter[str]) -> None:
        self._topics = topics
        self._counters = counters
        self._status = codec.status_decoder()
        self._state = codec.state_decoder()
        self._acks = codec.acks_decoder()
        self._results = codec.results_decoder()
        self.output_problem: OutputProblem | None = None
        self.request_output_problem: Callable[[Reference], str | None] = _not_offered
        """The same of requests that wait."""

    def events(self, message: Message) -> list[Event]:
        """The events in a message; none where it was rejected (and counted)."""
        if not message.payload and message.retain:
            return []  # a retained topic was cleared
        try:
            vehicle, kind = self._topics.parse_up(message.topic)
            return list(self._decode(vehicle, kind, message))
        except Rejected as rejected:
            self.count(rejected)
            return []

    def count(self, rejected: Rejected) -> None:
        """One rejection more of this reason."""
        self._counters[f"rejected_{rejected.reason.value}"] += 1

    def _decode(self, vehicle: str, kind: Up, message: Message) -> Iterator[Event]:
        payload = message.payload
        match kind:
            case Up.STATE:
                state = self._state.decode(payload)
                _same(vehicle, state.vehicle)
                yield StateReported(state=state)
            case Up.RESULT:
                results = self._results.decode(payload)
                _same(vehicle, results.vehicle)
                chunks = map(self._with_outputs, results.chunks)
                for chunk in _readable(chunks):
                    yield ChunkReceived(vehicle=vehicle, chunk=chunk)
            case Up.ACK:
                acks = self._acks.decode(payload)
                _same(vehicle, acks.vehicle)
                for verdict in acks.verdicts:
                    yield VerdictReceived(vehicle=vehicle, verdict=verdict)
            case Up.STATUS:
                status = self._status.decode(payload)
                _same(vehicle, status.vehicle)
                match status:
                    case Birth():
                        yield VehicleBorn(birth=status, is_retained=message.retain)
                    case Offline():
                        yield VehicleWent(offline=status)

    def _with_outputs(self, chunk: Chunk) -> Chunk:
        """The chunk, a reference that leads to no whole output replaced by its item's failure."""
        if not any(isinstance(item, ItemDone) and item.ref is not None for item in chunk.items):
            return chunk
        if chunk.job == INTERACTIVE_JOB:
            problem = self.request_output_problem
            items = tuple(_judged(item, problem) for item in chunk.items)
            return msgspec.structs.replace(chunk, items=items)
        if self.output_problem is None:
            raise Rejected(RejectionReason.STORE_UNAVAILABLE, "who keeps objects is not there yet")
        of_job = functools.partial(self.output_problem, chunk.job)
        items = tuple(_judged(item, of_job) for item in chunk.items)
        return msgspec.structs.replace(chunk, items=items)


def _not_offered(_ref: Reference) -> str:
    return "no place was offered for outputs of requests"


def _judged(item: ItemResult, output_problem: Callable[[Reference], str | None]) -> ItemResult:
    if isinstance(item, ItemFailed) or item.ref is None:
        return item
    problem = output_problem(item.ref)
    if problem is None:
        return item
    # Not final: the car may be what is broken, and another may do better.
    return ItemFailed(index=item.index, code=ItemError.OUTPUT_UNAVAILABLE, message=problem)


def _same(topic_vehicle: str, message_vehicle: str) -> None:
    if topic_vehicle != message_vehicle:
        raise Rejected(RejectionReason.WRONG_VEHICLE, topic_vehicle)


def _readable(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """The chunks of one message, an unreadable output replaced by its item's failure."""
    values_left = limits.OUTPUTS_LOOK_MAX_VALUES
    for chunk in chunks:
        replaced: list[ItemResult] | None = None
        for place, item in enumerate(chunk.items):
            # Most outputs are too small to hold what is looked for.
            if isinstance(item, ItemFailed) or len(memoryview(item.output)) <= _SMALL_BYTES:
                continue
            failure, looked_at = _checked(item, values_left)
            values_left -= looked_at
            if failure is not None:
                replaced = replaced or list(chunk.items)
                replaced[place] = failure
        yield chunk if replaced is None else msgspec.structs.replace(chunk, items=tuple(replaced))


def _checked(item: ItemDone, values_left: int) -> tuple[ItemFailed | None, int]:
    """(the failure that an item ends in instead, values that were looked at)."""
    output = bytes(item.output)
    if len(output) > limits.OUTPUT_MAX_BYTES:
        message = f"the output has {len(output)} bytes; the limit is {limits.OUTPUT_MAX_BYTES}"
        code = ItemError.RESULT_TOO_LARGE
        return ItemFailed(index=item.index, code=code, message=message), 0
    try:
        return None, check_nesting(output, limits.OUTPUT_NESTING_MAX, values_left)
    except TooNested as nested:
        # Not final: the car may be what is broken, and another may do better.
        message = f"the output is not readable: {nested}"
        failure = ItemFailed(index=item.index, code=ItemError.MODEL_ERROR, message=message)
        return failure, values_left
