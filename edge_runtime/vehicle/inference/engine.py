"""The engine: a supervised inference process that starts when there is work and can be stopped.

Invariants
- `submit`, `cancel`, `freeze`, `thaw` never wait. Every run that was submitted ends as exactly
  one `RunEnded`, or with `EngineDied`, or, after `kill`, as nothing.
- No item takes for ever: one that is not finished in time (`watchdog`) is stopped at its next
  graph node (`ItemBroke`, engine_hung), and where it does not stop its process is killed
  (`EngineDied`). Time spent frozen counts for neither.
- A stop costs the item in hand at most, and says so (`ItemInterrupted`): what was finished before
  it is told first, sent or not. Of a generation it costs every item in hand.
- A cancelled run that does not stop in time costs its process; runs behind it start again in a
  new one, and nobody else notices.
- The process exits when there is no work for a while. Its exit is the unload.
- A process that dies again and again without finishing anything is started ever more slowly.

Everything is called, and calls back, on one event loop. Deliberately absent: deadlines, retries
and any opinion on which item is to blame for what; those are the core's.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, assert_never

import structlog

from edge_runtime.contract import limits
from edge_runtime.contract.errors import LocalError
from edge_runtime.contract.messages import StopReport
from edge_runtime.contract.package import Package
from edge_runtime.contract.reasons import ItemError, StopTier
from edge_runtime.vehicle.core.commands import SubmitRun
from edge_runtime.vehicle.core.events import (
    EngineDied,
    ItemBroke,
    ItemFinished,
    ItemInterrupted,
    ItemStarted,
    ModelLoaded,
    RunEnded,
    RunOutcome,
    TokensProduced,
)
from edge_runtime.vehicle.inference import protocol
from edge_runtime.vehicle.inference.node_times import NodeTimes
from edge_runtime.vehicle.inference.options import EngineOptions
from edge_runtime.vehicle.inference.process import WorkerProcess, cpu_ms, describe_exit
from edge_runtime.vehicle.inference.protocol import Phase
from edge_runtime.vehicle.inference.watchdog import ItemTimes, Patience, Watch, item_patience

EngineEvent = (
    ModelLoaded
    | ItemStarted
    | ItemFinished
    | TokensProduced
    | ItemBroke
    | ItemInterrupted
    | RunEnded
    | EngineDied
)
Emit = Callable[[EngineEvent], None]

_WATCH_EVERY_S: Final = 0.1
_RESTART_DELAY_S: Final = 0.5
_LEAVE_GRACE_S: Final = 2.0
_OUTPUTS: Final = (
    protocol.Ready,
    protocol.Loaded,
    protocol.Tokens,
    protocol.Finished,
    protocol.Broke,
    protocol.Ended,
)
"""What counts as progress."""

_log = structlog.get_logger()


class EngineFull(LocalError):  # noqa: N818 - named for what it is
    """More runs, or bytes of runs, than the engine may hold; the caller has no bound of its own."""


@dataclass(slots=True)
class _Held:
    """A run that the engine answers for."""

    run: SubmitRun
    folder: str
    size_bytes: int
    cancelled_at_ns: int | None = None
    is_told: bool = False
    """Its end was told already; what the worker still says of it is not."""
    cancel_timer: asyncio.TimerHandle | None = None
    in_hand: dict[int, float] = field(default_factory=dict)
    """Items that were begun and have not ended, and for how long each was computed, as told."""


class SupervisedEngine:
    """The production engine; see the module. `emit` is called with every event."""

    def __init__(self, options: EngineOptions, emit: Emit) -> None:
        self._options = options
        self._emit = emit
        self._worker: WorkerProcess | None = None
        self._leaving: set[WorkerProcess] = set()
        self._held: OrderedDict[int, _Held] = OrderedDict()
        self._tickets: dict[int, int] = {}
        self._held_bytes = 0
        self._next_ticket = 1
        self._resident: OrderedDict[str, float] = OrderedDict()
        self._is_frozen = False
        self._stop_latency_ms = 0.0
        self._deaths_without_work = 0
        self._restart_timer: asyncio.TimerHandle | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._watch_timer: asyncio.TimerHandle | None = None
        self._watch = Watch(time.monotonic_ns())
        self._item_times = ItemTimes()
        self._node_times = NodeTimes(options.node_times, options.worker)
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<SupervisedEngine {self._worker!r} runs={len(self._tickets)}>"

    # --- what others see -----------------------------------------------------------------

    @property
    def resident(self) -> tuple[str, ...]:
        """Digests of the models in the engine's memory, most recently loaded last."""
        return tuple(self._resident)

    @property
    def pid(self) -> int | None:
        """The process, where there is one."""
        return self._worker.pid if self._worker is not None else None

    @property
    def progress_ns(self) -> int:
        """When the last real output came, or the first work after none (CLOCK_MONOTONIC).

        Frozen time is left out: while the engine is frozen it moves on with the clock.
        """
        worker = self._worker
        return self._watch.since_ns + (0 if worker is None else _frozen_ns(worker))

    def node_ms(self, digest: str) -> float | None:
        """How long the model's longest node takes here, where that is known; see `profiling`."""
        return self._node_times.get(digest)

    @property
    def deaths_without_work(self) -> int:
        """How many processes died in a row with no item finished between."""
        return self._deaths_without_work

    # --- runs ----------------------------------------------------------------------------

    def submit(self, run: SubmitRun, package: Package) -> None:
        """Queue a run behind those already here, and start the process if there is none.

        Raises `EngineFull`.
        """
        size_bytes = sum(len(item.data) for item in run.items) + len(run.parameters)
        is_full = len(self._tickets) >= limits.ENGINE_RUNS_MAX
        if is_full or self._held_bytes + size_bytes > limits.ENGINE_QUEUED_MAX_BYTES:
            raise EngineFull(
                f"{len(self._tickets)} runs of {self._held_bytes} bytes are here; the limits are "
                f"{limits.ENGINE_RUNS_MAX} and {limits.ENGINE_QUEUED_MAX_BYTES}"
            )
        if run.run_id in self._tickets:
            raise LocalError(f"run {run.run_id} is already here")
        ticket = self._next_ticket
        self._next_ticket += 1
        self._tickets[run.run_id] = ticket
        held = _Held(run=run, folder=str(package.folder.absolute()), size_bytes=size_bytes)
        if not self._held and self._worker is not None:
            self._watch.progressed(_clock_ns(self._worker))
        self._held[ticket] = held
        self._held_bytes += size_bytes
        self._stop_timer("_idle_timer")
        if self._worker is None:
            self._start_soon()
        else:
            self._send(self._worker, ticket, held)
        self._watch_on()

    def cancel(self, run_id: int) -> None:
        """Stop one run; ends as `RunEnded`. An unknown run is ignored.

        One that waits ends at once; the one that runs at its next graph node or, after
        `terminate_grace_ms`, with its process.
        """
        ticket = self._tickets.get(run_id)
        if ticket is None:
            return
        held = self._held[ticket]
        if held.cancelled_at_ns is not None:
            return
        held.cancelled_at_ns = time.monotonic_ns()
        worker = self._worker
        if worker is None:
            self._forget(ticket)
            self._tell_cancelled(held, StopTier.NONE)
            return
        worker.stop(protocol.StopRun(ticket))
        is_in_step = worker.progress.phase is Phase.STEP and bool(held.in_hand)
        if worker.progress.ticket != ticket and not is_in_step:
            held.is_told = True
            del self._tickets[run_id]
            self._tell_cancelled(held, StopTier.NONE)
        self._arm_cancel(ticket, held)

    def _tell_cancelled(self, held: _Held, tier: StopTier) -> None:
        latency_ms = 0.0
        if tier is not StopTier.NONE and held.cancelled_at_ns is not None:
            latency_ms = (time.monotonic_ns() - held.cancelled_at_ns) / 1e6
        stop = StopReport(tier=tier, latency_ms=latency_ms)
        self._emit(RunEnded(held.run.run_id, RunOutcome.CANCELLED, stop))

    def _arm_cancel(self, ticket: int, held: _Held) -> None:
        held.cancel_timer = asyncio.get_running_loop().call_later(
            self._options.terminate_grace_ms / 1000, self._escalate_cancel, ticket
        )

    def _escalate_cancel(self, ticket: int) -> None:
        """The grace is over: if the worker still is at the cancelled run, it loses its process."""
        held, worker = self._held.get(ticket), self._worker
        if held is None or worker is None:
            return
        if self._is_frozen or not self._is_only_at(worker, ticket):
            self._arm_cancel(ticket, held)
            return
        worker.freeze()
        worker.salvage()
        if ticket not in self._held:
            worker.thaw()
            return
        self._tell_interrupted(worker)
        self._let_go(worker)
        worker.kill()
        self._forget(ticket)
        if not held.is_told:
            self._tell_cancelled(held, StopTier.KILL)
        _log.warning("engine_killed", why="a cancelled run did not stop", run=held.run.run_id)
        if self._held:
            self._start_soon()

    def _is_only_at(self, worker: WorkerProcess, ticket: int) -> bool:
        """Whether the worker computes for this run, and in the same step for no other."""
        if worker.progress.ticket != ticket:
            return False
        if worker.progress.phase is Phase.STEP:
            others = (held for other, held in self._held.items() if other != ticket)
            return not any(held.in_hand and held.cancelled_at_ns is None for held in others)
        return worker.progress.phase in {Phase.ITEM, Phase.LOADING}

    # --- the process ---------------------------------------------------------------------

    async def ensure_started(self) -> None:
        """Start the process, if there is none, and wait until it has said that it is ready.

        Raises `LocalError` when it dies instead.
        """
        if self._worker is None:
            self._start_now()
        worker = self._worker
        while worker is not None and worker.progress.phase is Phase.STARTING:
            await asyncio.sleep(0.005)
            if self._worker is not worker:
                raise LocalError("the worker process ended before it was ready")

    def _start_soon(self) -> None:
        """Start now, or after a pause when the last ones died without any work done."""
        deaths = self._deaths_without_work - limits.ENGINE_DEATHS_WITHOUT_WORK_MAX
        if self._is_closed or self._is_frozen or self._restart_timer is not None:
            return
        if deaths < 0:
            self._start_now()
            return
        delay_s = min(_RESTART_DELAY_S * 2 ** min(deaths, 10), limits.ENGINE_RESTART_MAX_S)
        self._restart_timer = asyncio.get_running_loop().call_later(delay_s, self._restart)

    def _restart(self) -> None:
        self._restart_timer = None
        if self._worker is None and self._held and not self._is_frozen:
            self._start_now()

    def _start_now(self) -> None:
        try:
            worker = self._worker = WorkerProcess(
                self._options.worker, self._received, self._exited
            )
        except OSError as error:
            self._died(None, None, ItemError.ENGINE_KILLED, f"cannot start a process: {error}")
            return
        _log.info("engine_started", worker=worker.pid)
        self._watch = Watch(time.monotonic_ns())
        for ticket, held in self._held.items():
            self._send(worker, ticket, held)
        self._watch_on()
        if not self._held:
            self._idle_on()

    def _send(self, worker: WorkerProcess, ticket: int, held: _Held) -> None:
        run, node_ms = held.run, self._node_times.get(held.run.digest)
        worker.send(
            protocol.Run(
                ticket,
                held.folder,
                run.digest,
                run.items,
                run.parameters,
                node_ms,
                urgent=run.urgent,
                streams=run.streams,
                output_max_bytes=run.output_max_bytes,
            )
        )

    def _let_go(self, worker: WorkerProcess) -> None:
        """Have nothing more to do with this process; it is ending, and tells nobody."""
        self._worker = None
        self._resident.clear()
        self._leaving.add(worker)
        self._stop_timer("_watch_timer")
        self._stop_timer("_idle_timer")

    def _exited(self, worker: WorkerProcess) -> None:
        if worker in self._leaving:
            self._leaving.discard(worker)
            return
        progress, code = worker.progress, self._watch.blame
        message = describe_exit(worker.exit_status)
        held = None
        if progress.phase in {Phase.LOADING, Phase.ITEM, Phase.STEP}:
            held = self._held.get(progress.ticket)
        run_id = held.run.run_id if held is not None and not held.is_told else None
        index = self._tell_interrupted(worker)
        self._let_go(worker)
        self._leaving.discard(worker)
        if worker.log.last_line:
            message = f"{message}; it last said: {worker.log.last_line}"
        self._died(run_id, index, code, message[: limits.TEXT_MAX_CHARS])

    def _tell_interrupted(self, worker: WorkerProcess) -> int | None:
        """Tell which item a process that is stopped, or gone, was at; its index, if it was."""
        progress = worker.progress
        at = (progress.ticket, progress.index)
        until_ns = worker.frozen_at_ns or time.monotonic_ns()
        busy_ms = progress.busy_ns(until_ns) / 1e6
        if progress.phase is Phase.STEP:
            return self._tell_step_interrupted(at, busy_ms)
        run_id = self._run_id(progress.ticket)
        if progress.phase is not Phase.ITEM or run_id is None or self._watch.done == at:
            return None
        self._emit(ItemInterrupted(run_id, progress.index, busy_ms))
        return progress.index

    def _tell_step_interrupted(self, at: tuple[int, int], step_ms: float) -> int | None:
        """As `_tell_interrupted`, of a step that several items shared."""
        in_hand = [held for held in self._held.values() if held.in_hand and not held.is_told]
        count = max(1, sum(len(held.in_hand) for held in in_hand))
        for held in in_hand:
            for index, busy_ms in held.in_hand.items():
                self._emit(ItemInterrupted(held.run.run_id, index, busy_ms + step_ms / count))
        named = self._held.get(at[0])
        is_in_hand = named is not None and not named.is_told and at[1] in named.in_hand
        return at[1] if is_in_hand else None

    def _died(self, run_id: int | None, index: int | None, code: ItemError, message: str) -> None:
        self._deaths_without_work += 1
        self._forget_all()
        _log.error(
            "engine_died",
            run=run_id,
            index=index,
            code=code.value,
            why=message,
            deaths_without_work=self._deaths_without_work,
        )
        self._emit(EngineDied(run_id, index, code, message))

    def _forget(self, ticket: int) -> None:
        held = self._held.pop(ticket)
        self._held_bytes -= held.size_bytes
        if self._tickets.get(held.run.run_id) == ticket:
            del self._tickets[held.run.run_id]
        if held.cancel_timer is not None:
            held.cancel_timer.cancel()

    def _forget_all(self) -> None:
        for ticket in list(self._held):
            self._forget(ticket)
        self._stop_timer("_restart_timer")

    # --- what the worker says ------------------------------------------------------------

    def _received(self, worker: WorkerProcess, events: list[protocol.FromWorker]) -> None:
        if worker is not self._worker:
            return
        for event in events:
            if isinstance(event, _OUTPUTS):
                self._watch.progressed(_clock_ns(worker))
            match event:
                case protocol.Tokens():
                    self._tokens(event)
                case protocol.Finished():
                    self._finished(event)
                case protocol.Started():
                    self._started(event)
                case protocol.Ended(ticket=ticket):
                    self._ended(event)
                case protocol.Broke():
                    self._broke(event)
                case protocol.Loaded(ticket=ticket):
                    self._loaded(event)
                    if (run_id := self._run_id(ticket)) is not None:
                        self._emit(ModelLoaded(run_id, event.load_ms))
                case protocol.Profiled(digest=digest, node_ms=node_ms):
                    self._node_times.put(digest, node_ms)
                    _log.info("model_profiled", model=digest, node_ms=round(node_ms, 3))
                case protocol.Ready() | protocol.Batch():
                    pass
                case _:
                    assert_never(event)

    def _started(self, event: protocol.Started) -> None:
        held = self._held.get(event.ticket)
        if held is not None:
            held.in_hand[event.index] = 0.0
        if (run_id := self._run_id(event.ticket)) is not None:
            self._emit(ItemStarted(run_id, event.index))

    def _tokens(self, event: protocol.Tokens) -> None:
        held = self._held.get(event.ticket)
        if held is None:
            return
        if event.index in held.in_hand:
            held.in_hand[event.index] = event.busy_ms
        if held.run.streams and not held.is_told and (event.ids or event.finish is not None):
            run_id = held.run.run_id
            told = (event.index, event.offset, event.ids, event.text, event.finish)
            self._emit(TokensProduced(run_id, *told))

    def _finished(self, event: protocol.Finished) -> None:
        self._deaths_without_work = 0
        self._watch.done = (event.ticket, event.index)
        held = self._held.get(event.ticket)
        if held is not None:
            held.in_hand.pop(event.index, None)
            self._item_times.note(held.run.digest, event.busy_ms)
        if (run_id := self._run_id(event.ticket)) is not None:
            finished = ItemFinished(run_id, event.index, event.output, event.busy_ms, event.sha256)
            self._emit(finished)

    def _run_id(self, ticket: int) -> int | None:
        """Return the run to tell of, or None when its end was told already."""
        held = self._held.get(ticket)
        return None if held is None or held.is_told else held.run.run_id

    def _broke(self, event: protocol.Broke) -> None:
        self._watch.done = (event.ticket, event.index)
        if (held := self._held.get(event.ticket)) is not None:
            held.in_hand.pop(event.index, None)
        run_id = self._run_id(event.ticket)
        if run_id is None:
            return
        if event.code is ItemError.ENGINE_HUNG:
            self._emit(ItemInterrupted(run_id, event.index, event.busy_ms))
        self._emit(ItemBroke(run_id, event.index, event.code, event.message))

    def _loaded(self, event: protocol.Loaded) -> None:
        for digest in event.evicted:
            self._resident.pop(digest, None)
        self._resident[event.digest] = event.reference_ms
        _log.info("model_loaded", model=event.digest, load_ms=round(event.load_ms, 1))

    def _ended(self, event: protocol.Ended) -> None:
        held = self._held.get(event.ticket)
        if held is None:
            return
        self._forget(event.ticket)
        if not held.is_told:
            match event.outcome:
                case protocol.EndedAs.COMPLETED:
                    self._emit(RunEnded(held.run.run_id, RunOutcome.COMPLETED))
                case protocol.EndedAs.CANCELLED:
                    self._tell_lost(held, event)
                    self._tell_cancelled(held, StopTier.TERMINATE)
                case protocol.EndedAs.MODEL_FAILED:
                    self._emit(
                        RunEnded(held.run.run_id, RunOutcome.MODEL_FAILED, message=event.message)
                    )
                case _:
                    assert_never(event.outcome)
        if not self._held:
            self._stop_timer("_watch_timer")
            self._idle_on()

    def _tell_lost(self, held: _Held, ended: protocol.Ended) -> None:
        """Tell which items were in hand when their run was stopped; they share its time."""
        if ended.index is None:
            return
        indices = list(held.in_hand) or [ended.index]
        for index in indices:
            self._emit(ItemInterrupted(held.run.run_id, index, ended.busy_ms / len(indices)))

    # --- the ladder ----------------------------------------------------------------------

    def freeze(self) -> None:
        """SIGSTOP to the process, in this call. Nothing to stop is no error."""
        self._is_frozen = True
        if self._worker is not None:
            self._worker.freeze()
        for worker in self._leaving:
            worker.kill()

    async def measure_stop(self) -> StopReport:
        """Return how long after `freeze` every thread of the process was seen to be stopped.

        By then it was told what had been finished, and which item was in hand.
        """
        worker = self._worker
        if worker is None or not worker.is_frozen:
            return StopReport(tier=StopTier.NONE, latency_ms=0.0)
        self._stop_latency_ms = await worker.stop_latency_ms()
        if worker is self._worker and worker.is_frozen:
            worker.salvage()
            self._tell_interrupted(worker)
        return StopReport(tier=StopTier.FREEZE, latency_ms=self._stop_latency_ms)

    def thaw(self) -> None:
        """SIGCONT to the process."""
        self._is_frozen = False
        if self._worker is not None:
            self._worker.thaw()
        elif self._held:
            self._start_soon()

    async def kill(self) -> StopReport:
        """End the process and forget every run; no event of theirs comes after.

        The latency is that of the freeze before it, or else until the process was gone.
        """
        started_ns = time.monotonic_ns()
        self._forget_all()
        self._is_frozen = False
        worker = self._worker
        if worker is None:
            return StopReport(tier=StopTier.NONE, latency_ms=0.0)
        was_frozen = worker.is_frozen
        self._let_go(worker)
        worker.kill()
        await worker.wait_gone()
        latency_ms = (time.monotonic_ns() - started_ns) / 1e6
        if was_frozen:
            latency_ms = self._stop_latency_ms
        return StopReport(tier=StopTier.KILL, latency_ms=latency_ms)

    async def close(self) -> None:
        """End every process and timer of this engine."""
        self._is_closed = True
        await self.kill()
        for worker in list(self._leaving):
            worker.kill()
            await worker.wait_gone()

    # --- time ----------------------------------------------------------------------------

    def _stop_timer(self, name: Literal["_idle_timer", "_watch_timer", "_restart_timer"]) -> None:
        timer: asyncio.TimerHandle | None = getattr(self, name)
        if timer is not None:
            timer.cancel()
            setattr(self, name, None)

    def _idle_on(self) -> None:
        self._stop_timer("_idle_timer")
        self._idle_timer = asyncio.get_running_loop().call_later(
            self._options.idle_exit_ms / 1000, self._idle_exit
        )

    def _idle_exit(self) -> None:
        self._idle_timer = None
        worker = self._worker
        if worker is None or self._held:
            return
        self._let_go(worker)
        if worker.is_frozen:
            worker.kill()
            return
        worker.leave()
        asyncio.get_running_loop().call_later(_LEAVE_GRACE_S, worker.kill)
        _log.info("engine_idle_exit", worker=worker.pid)

    def _watch_on(self) -> None:
        if self._watch_timer is None and self._worker is not None and self._held:
            self._watch_timer = asyncio.get_running_loop().call_later(_WATCH_EVERY_S, self._look)

    def _look(self) -> None:
        """See whether the worker got on since the last look."""
        self._watch_timer = None
        worker, watch = self._worker, self._watch
        if worker is None:
            return
        if not worker.is_frozen:
            clock_ns = _clock_ns(worker)
            if watch.kill_at_ns is not None and clock_ns >= watch.kill_at_ns:
                watch.blame = ItemError.ENGINE_HUNG
                worker.kill()
            elif watch.kill_at_ns is None and watch.is_hung(
                clock_ns, cpu_ms(worker.pid), self._patience(worker)
            ):
                self._hung(worker, clock_ns)
        self._watch_on()

    def _patience(self, worker: WorkerProcess) -> Patience:
        """Return how long the worker may be at what it is at."""
        options = self._options
        match worker.progress.phase:
            case Phase.STARTING:
                return Patience(options.start_hang_ms, options.start_hang_ms)
            case Phase.LOADING:
                return Patience(options.load_hang_ms, options.load_hang_ms)
            case Phase.IDLE | Phase.ITEM | Phase.STEP:
                if options.hang_ms is not None:
                    return Patience(options.hang_ms, options.hang_ms)
                held = self._held.get(worker.progress.ticket)
                if held is None:
                    return item_patience(0.0, None)
                digest = held.run.digest
                reference_ms = self._resident.get(digest, 0.0)
                return item_patience(reference_ms, self._item_times.get(digest))

    def _hung(self, worker: WorkerProcess, clock_ns: int) -> None:
        """Stop the item and, if that does not help within the grace, the process."""
        progress, watch = worker.progress, self._watch
        if progress.phase in {Phase.ITEM, Phase.STEP}:
            _log.warning("item_hung", ticket=progress.ticket, index=progress.index)
            worker.stop(protocol.StopItem(progress.ticket, progress.index))
            watch.kill_at_ns = clock_ns + self._options.terminate_grace_ms * 1_000_000
            return
        if progress.phase is not Phase.LOADING:
            watch.blame = ItemError.ENGINE_HUNG
            worker.kill()
            return
        ticket = progress.ticket
        held = self._held.get(ticket)
        self._let_go(worker)
        worker.kill()
        if held is not None:
            self._forget(ticket)
            if not held.is_told:
                message = f"the model was not loaded within {self._options.load_hang_ms} ms"
                self._emit(RunEnded(held.run.run_id, RunOutcome.MODEL_FAILED, message=message))
        if self._held:
            self._start_soon()


def _frozen_ns(worker: WorkerProcess) -> int:
    """For how long the worker was frozen in all, until now."""
    since_ns = worker.frozen_at_ns
    return worker.frozen_total_ns + (0 if since_ns is None else time.monotonic_ns() - since_ns)


def _clock_ns(worker: WorkerProcess) -> int:
    """A clock that stands still while the worker is frozen."""
    return time.monotonic_ns() - _frozen_ns(worker)
