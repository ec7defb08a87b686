"""The shell of interactive requests: futures and streams in front, cars behind, the core between.

Invariants
- Everything happens in the call that brings the event: a request is on its way to a car before
  `infer` first waits, and an answer is handed over in the call that decodes its chunk. Nothing
  here waits for the store, and nothing here writes to it.
- A caller that is cancelled leaves: in the same call the car that computes for it is told to stop.
- Every request that waits when the desk closes ends with `InteractiveFailure`.
- What cars hand in (`receiver`) goes with the last request of its unit.
"""

import asyncio
import functools
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable
from typing import assert_never

import msgspec

from edge_runtime.bus import Message
from edge_runtime.contract import codec, limits
from edge_runtime.contract.clock import Now
from edge_runtime.contract.errors import EdgeError
from edge_runtime.contract.messages import (
    Cancel,
    ChunkAnswer,
    Control,
    Reference,
    Tokens,
    UnitOffer,
    WorkOffer,
)
from edge_runtime.contract.reasons import CancelReason, ChunkVerdict
from edge_runtime.contract.topics import Down, Topics
from edge_runtime.dispatcher.core.commands import BookWork
from edge_runtime.dispatcher.core.events import ChunkReceived, Event, VerdictReceived
from edge_runtime.dispatcher.core.interactive import InteractiveCore
from edge_runtime.dispatcher.core.interactive_parts import (
    Answered,
    Ask,
    Asked,
    CancelUnit,
    DisownChunk,
    Failed,
    FleetChanged,
    InteractiveCommand,
    InteractiveEvent,
    InteractiveTick,
    OfferUnit,
    OutputComes,
    RequesterLeft,
    Resume,
    Streamed,
    Why,
)
from edge_runtime.dispatcher.core.placement import Requirement
from edge_runtime.dispatcher.core.state import State
from edge_runtime.dispatcher.receiving import Receiver
from edge_runtime.dispatcher.tracing import current_traceparent

_MSGPACK = "application/x-msgpack"


class InteractiveFailure(EdgeError):  # noqa: N818 - named for what the requester is told
    """A request has no result; `failed` says why and when to ask again."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.failed = failed


class Stream:
    """The tokens of one request, as they come; ends after the answer."""

    def __init__(self) -> None:
        self.pieces: deque[Tokens] = deque()
        self.answer: Answered | None = None
        self.news = asyncio.Event()


Watcher = Callable[[Ask, int, "asyncio.Future[Answered]"], None]
"""Told of a request and when it came (boot time in ms), once it ended or nobody waits for it."""


class InteractiveDesk:
    """Requests in, answers out; see the module. `publish` sends one message to one car."""

    def __init__(
        self,
        state: State,
        topics: Topics,
        clock: Callable[[], Now],
        publish: Callable[[Message], None],
        signer: codec.Signer | None,
    ) -> None:
        self.core = InteractiveCore(state)
        self._topics = topics
        self._clock = clock
        self._publish = publish
        self._signer = signer
        self._loop = asyncio.get_running_loop()
        self._next_number = 1
        self._waiting: dict[int, asyncio.Future[Answered]] = {}
        self._streams: dict[int, Stream] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms = 0
        self._is_closed = False
        self._refuses = False
        self.quiet = asyncio.Event()
        """Set while no request waits."""
        self.quiet.set()
        self.watchers: list[Watcher] = []
        self.receiver: Receiver | None = None
        """Where cars may hand in large outputs; without one they end as `result_too_large`."""
        self.on_work: Callable[[BookWork], object] = lambda _: None
        """Told of what cars have finished."""

    # --- for requesters ---

    async def infer(
        self,
        *,
        tenant: str,
        requirement: Requirement,
        item: bytes,
        media_type: str,
        reference_ms: float,
        parameters: bytes = b"\x80",
        purpose: str = "default",
        rows: int = 1,
        rows_max: int = limits.INTERACTIVE_BATCH_ROWS_MAX,
        timeout_ms: int = limits.INTERACTIVE_TIMEOUT_DEFAULT_MS,
        ref: Reference | None = None,
    ) -> Answered:
        """The answer of some car. Cancel the call when nobody waits any more.

        `parameters` and the output are MessagePack; `reference_ms` is one row's time on a reference
        core. `ref` leads to an input that does not travel inline, while `item` is empty. Raises
        `InteractiveFailure`.
        """
        ask = Ask(
            number=self._number(),
            tenant=tenant,
            requirement=requirement,
            purpose=purpose,
            parameters=parameters,
            media_type=media_type,
            item=item,
            rows=rows,
            rows_max=rows_max,
            deadline_ms=self._clock().boot_ms + timeout_ms,
            reference_ms=reference_ms,
            traceparent=current_traceparent(),
            ref=ref,
        )
        future = self._ask(ask)
        try:
            return await future
        finally:
            self._done_waiting(ask.number)

    async def stream(
        self,
        *,
        tenant: str,
        requirement: Requirement,
        resume: Resume,
        media_type: str,
        reference_ms: float,
        parameters: bytes = b"\x80",
        purpose: str = "default",
        timeout_ms: int = limits.INTERACTIVE_TIMEOUT_DEFAULT_MS,
    ) -> AsyncGenerator[Tokens | Answered, None]:
        """The tokens of a generation, each once and in order, then the answer.

        `resume` makes the item that goes on after the tokens that it is given: of none for the
        first car, of all that came for every further one. Close the iterator to stop the car.
        Raises `InteractiveFailure`.
        """
        number = self._number()
        ask = Ask(
            number=number,
            tenant=tenant,
            requirement=requirement,
            purpose=purpose,
            parameters=parameters,
            media_type=media_type,
            item=resume(()),
            rows=1,
            rows_max=1,
            deadline_ms=self._clock().boot_ms + timeout_ms,
            reference_ms=reference_ms,
            resume=resume,
            traceparent=current_traceparent(),
        )
        stream = self._streams[number] = Stream()
        future = self._ask(ask)
        future.add_done_callback(lambda _: stream.news.set())
        try:
            while True:
                while stream.pieces:
                    yield stream.pieces.popleft()
                if future.done():
                    yield future.result()
                    return
                stream.news.clear()
                await stream.news.wait()
        finally:
            self._done_waiting(number)

    def _number(self) -> int:
        number, self._next_number = self._next_number, self._next_number + 1
        return number

    def _ask(self, ask: Ask) -> asyncio.Future[Answered]:
        future: asyncio.Future[Answered] = self._loop.create_future()
        self._waiting[ask.number] = future
        self.quiet.clear()
        for watch in self.watchers:
            future.add_done_callback(functools.partial(watch, ask, self._clock().boot_ms))
        if self._is_closed or self._refuses:
            self._carry_out([_closing(ask.number)])
        else:
            self._handle(Asked(ask=ask))
        return future

    def _done_waiting(self, number: int) -> None:
        """Nobody waits for this request any more; one without its end is ended."""
        future = self._waiting.pop(number)
        self._streams.pop(number, None)
        if not self._waiting:
            self.quiet.set()
        if not future.done() or future.cancelled():
            future.cancel()
            self._handle(RequesterLeft(number=number))
        elif not future.cancelled():
            future.exception()  # who did not wait for it has left

    # --- for the service ---

    def receive_outputs(
        self, counters: Counter[str], random_bytes: Callable[[int], bytes]
    ) -> Receiver:
        """From now on cars may hand in large outputs, at the receiver's places."""

        def comes(unit: int, size_bytes: int) -> None:
            self._handle(OutputComes(unit=unit, size_bytes=size_bytes))

        self.receiver = Receiver(self.core.is_out, comes, counters, random_bytes)
        return self.receiver

    def heard(self, event: Event) -> bool:
        """Take what a car says of an interactive unit; whether it was of one."""
        match event:
            case ChunkReceived(chunk=chunk):
                if not self.core.is_mine(chunk.job, chunk.unit):
                    return False
            case VerdictReceived(verdict=verdict):
                if not self.core.is_mine("", verdict.unit):
                    return False
            case _:
                return False
        self._handle(event)
        return True

    def fleet_changed(self, vehicle: str) -> None:
        """The registry knows something new of this car."""
        self._handle(FleetChanged(vehicle=vehicle))

    def refuse_new(self) -> None:
        """End every new request at once; those that wait go on, to other cars where they must."""
        self._refuses = True

    def close(self) -> None:
        """End every request that waits, and every new one at once."""
        self._is_closed = True
        for number in list(self._waiting):
            self._carry_out([_closing(number)])
            self._handle(RequesterLeft(number=number))
        if self._timer is not None:
            self._timer.cancel()

    # --- the loop ---

    def _handle(self, event: InteractiveEvent) -> None:
        now = self._clock()
        self._carry_out(self.core.handle(event, now))
        if self.receiver is not None:
            self.receiver.forget_ended()
        due_ms = self.core.next_deadline_ms()
        if due_ms is None or self._is_closed:
            return
        if self._timer is not None:
            if self._timer_ms <= due_ms:
                return  # it comes first, and looks again
            self._timer.cancel()
        self._timer_ms = due_ms
        self._timer = self._loop.call_later(max(0, due_ms - now.boot_ms) / 1000, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._handle(InteractiveTick())

    def _carry_out(self, commands: list[InteractiveCommand]) -> None:
        for command in commands:
            match command:
                case OfferUnit(vehicle=vehicle, unit=unit):
                    work = WorkOffer(vehicle=vehicle, units=(self._with_place(unit),))
                    self._send(vehicle, Down.WORK, work, unit.traceparent)
                case Answered(number=number):
                    future = self._waiting.get(number)
                    if future is not None and not future.done():
                        future.set_result(self._whole(command))
                case Streamed(number=number, tokens=tokens):
                    stream = self._streams.get(number)
                    if stream is not None:
                        stream.pieces.append(tokens)
                        stream.news.set()
                case Failed(number=number):
                    future = self._waiting.get(number)
                    if future is not None and not future.done():
                        future.set_exception(InteractiveFailure(command))
                case BookWork():
                    self.on_work(command)
                case CancelUnit(vehicle=vehicle, unit=number, fence=fence):
                    reason = CancelReason.NOT_AWAITED
                    order = Cancel(unit=number, fence=fence, reason=reason)
                    self._send(vehicle, Down.CONTROL, Control(vehicle=vehicle, orders=(order,)))
                case DisownChunk(vehicle=vehicle, unit=number, fence=fence, seq=seq):
                    answer = ChunkAnswer(
                        unit=number,
                        fence=fence,
                        first_seq=seq,
                        through_seq=seq,
                        verdict=ChunkVerdict.NOT_WANTED,
                    )
                    self._send(vehicle, Down.CONTROL, Control(vehicle=vehicle, orders=(answer,)))
                case _:
                    assert_never(command)

    def _with_place(self, unit: UnitOffer) -> UnitOffer:
        if self.receiver is None:
            return unit
        place = self.receiver.place(unit.tenant, unit.unit)
        return msgspec.structs.replace(unit, outputs=place)

    def _whole(self, answered: Answered) -> Answered:
        """The answer with its output, wherever that is."""
        if answered.ref is None or self.receiver is None:
            return answered
        output = self.receiver.read(answered.ref)
        return msgspec.structs.replace(answered, output=output, ref=None)

    def _send(
        self, vehicle: str, kind: Down, body: WorkOffer | Control, traceparent: str | None = None
    ) -> None:
        self._publish(
            Message(
                topic=self._topics.down(vehicle, kind),
                payload=codec.encode_signed(body, self._signer),
                expiry_s=max(1, limits.OFFER_TIMEOUT_MS // 1000),
                content_type=_MSGPACK,
                traceparent=traceparent,
            )
        )


def _closing(number: int) -> Failed:
    return Failed(number=number, why=Why.OVERLOADED, message="the dispatcher is stopping")
