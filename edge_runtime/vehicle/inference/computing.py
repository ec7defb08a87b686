"""The worker's loop: one run after the other, one item after the other.

Invariants
- Whatever an item does inside Python ends as that item's failure, whatever loading does as its
  run's. What the process cannot survive is read by the engine from the shared page, which says
  what comes before it begins.
- Each item starts untouched by a stop that was meant for another.
- An urgent run waits for the item in hand at most, or for a step of a generation. It is computed
  inside the run that it interrupts, between two of its items or steps.

Items of text generation are not computed one after the other: see `generation.loop`.

This module imports onnxruntime, through `runtime`, and is imported by the worker process only.
"""

import ctypes
import gc
import hashlib
import socket
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.contract import limits
from edge_runtime.contract.messages import Item
from edge_runtime.contract.package import PackageRefused, read_spec
from edge_runtime.contract.reasons import ItemError
from edge_runtime.vehicle.inference import protocol
from edge_runtime.vehicle.inference.generation.loop import GenerationLoop, LoopCalls
from edge_runtime.vehicle.inference.generation.task import Generation
from edge_runtime.vehicle.inference.options import WorkerOptions
from edge_runtime.vehicle.inference.protocol import Phase, Progress
from edge_runtime.vehicle.inference.runtime import OrtRuntime
from edge_runtime.vehicle.inference.stopping import Stops
from edge_runtime.vehicle.inference.streams import Inbox, Outbox
from edge_runtime.vehicle.inference.tasks.base import ItemFailure, ItemStopped, Task
from edge_runtime.vehicle.inference.tasks.registry import load_task


class Models:
    """Loaded models; the least recently used goes when there are too many."""

    def __init__(self, runtime: OrtRuntime, resident_max: int) -> None:
        self._runtime = runtime
        self._resident_max = resident_max
        self._tasks: OrderedDict[str, Task | Generation] = OrderedDict()

    def get(self, digest: str) -> Task | Generation | None:
        """Return the task of a loaded model."""
        task = self._tasks.get(digest)
        if task is not None:
            self._tasks.move_to_end(digest)
        return task

    def load(self, run: protocol.Run) -> tuple[Task | Generation, protocol.Loaded]:
        """Load the run's model. Raises `PackageRefused`, `ItemFailure` or `OSError`."""
        started_ns = time.monotonic_ns()
        evicted: list[str] = []
        while len(self._tasks) >= self._resident_max:
            digest, _ = self._tasks.popitem(last=False)
            evicted.append(digest)
        if evicted:
            gc.collect()
        folder = Path(run.folder)
        spec = read_spec(folder)
        self._runtime.begin_model(run.digest, run.node_ms)
        task = self._tasks[run.digest] = load_task(folder, spec, self._runtime)
        _return_free_memory()
        return task, protocol.Loaded(
            ticket=run.ticket,
            digest=run.digest,
            load_ms=(time.monotonic_ns() - started_ns) / 1e6,
            reference_ms=spec.reference_ms,
            evicted=tuple(evicted),
        )


class Computer:
    """The loop: one run after the other, one item after the other."""

    def __init__(
        self,
        *,
        options: WorkerOptions,
        inbox: Inbox,
        outbox: Outbox,
        stops: Stops,
        progress: Progress,
        models: Models,
        runtime: OrtRuntime,
    ) -> None:
        self._runtime = runtime
        self._options = options
        self._inbox = inbox
        self._outbox = outbox
        self._stops = stops
        self._progress = progress
        self._models = models
        self._encoder = msgspec.msgpack.Encoder()
        self._last_ticket = 0
        self._generating: set[str] = set()
        """Models in the middle of a generation: runs of them join it, and begin no second one."""

    def serve(self) -> None:
        """Work until the engine closes the stream (`EOFError`)."""
        self._outbox.add(protocol.Ready())
        while True:
            message = self._inbox.next_now()
            if message is None:
                self._progress.note(Phase.IDLE)
                self._outbox.flush()
                self._stops.forget_through(self._last_ticket)
                message = self._inbox.next()
            if isinstance(message, protocol.Run):
                self._run(message)

    def _run(self, run: protocol.Run, *, is_inside: bool = False) -> None:
        """Compute a run and tell its end; `is_inside` another one, which waits for it."""
        self._last_ticket = max(self._last_ticket, run.ticket)
        if self._stops.wants_run(run.ticket):
            ended = protocol.Ended(run.ticket, protocol.EndedAs.CANCELLED)
        else:
            match self._models.get(run.digest) or self._load(run):
                case protocol.Ended() as ended:
                    pass
                case Generation() as generation:
                    self._generate(run, generation, is_inside=is_inside)
                    return
                case task:
                    ended = self._compute(run, task)
        self._stops.forget(run.ticket)
        self._outbox.add(ended)
        if run.urgent:
            self._outbox.flush()

    def _load(self, run: protocol.Run) -> Task | Generation | protocol.Ended:
        """Return the task, or how the run ends when its model cannot be loaded."""
        self._progress.note(Phase.LOADING, run.ticket)
        self._outbox.flush()
        try:
            task, loaded = self._models.load(run)
        except PackageRefused as error:
            message = str(error)
        except Exception as error:  # noqa: BLE001 - a model may fail in any way; the worker stays
            message = str(_as_failure(error))
        else:
            self._outbox.add(loaded)
            return task
        return protocol.Ended(
            run.ticket, protocol.EndedAs.MODEL_FAILED, message[: limits.TEXT_MAX_CHARS]
        )

    def _compute(self, run: protocol.Run, task: Task) -> protocol.Ended:
        parameters = _parameters(run.parameters)
        for item in run.items:
            if not run.urgent:
                self._run_urgent()
            if self._stops.wants_run(run.ticket):
                return protocol.Ended(run.ticket, protocol.EndedAs.CANCELLED)
            self._progress.note(Phase.ITEM, run.ticket, item.index)
            self._outbox.add(protocol.Started(run.ticket, item.index))
            self._outbox.flush_if_due()
            event = self._item(task, run, item, parameters)
            if isinstance(event, protocol.Ended):
                return event
            self._outbox.add(event)
            if run.urgent and event.busy_ms >= limits.ENGINE_URGENT_EVENT_MS:
                self._outbox.flush()
            self._note_measured()
        return protocol.Ended(run.ticket, protocol.EndedAs.COMPLETED)

    def _run_urgent(self) -> None:
        """Compute what somebody waits for before the next item of what nobody does."""
        while (run := self._inbox.next_urgent(self._generating)) is not None:
            self._run(run, is_inside=True)

    def _generate(self, run: protocol.Run, generation: Generation, *, is_inside: bool) -> None:
        def next_joiner() -> protocol.Run | None:
            joiner = self._inbox.next_of(run.digest, only_urgent=is_inside)
            if joiner is not None:
                self._last_ticket = max(self._last_ticket, joiner.ticket)
            return joiner

        loop = GenerationLoop(
            generation,
            outbox=self._outbox,
            stops=self._stops,
            progress=self._progress,
            calls=LoopCalls(
                next_joiner=next_joiner,
                between_steps=self._between_steps,
                parameters=_parameters,
                encode=self._encoded,
                as_failure=_as_failure,
            ),
        )
        self._generating.add(run.digest)
        loop.generate(run)
        self._generating.remove(run.digest)

    def _between_steps(self) -> None:
        self._run_urgent()
        self._note_measured()

    def _note_measured(self) -> None:
        for digest, node_ms in self._runtime.take_measured().items():
            self._outbox.add(protocol.Profiled(digest, node_ms))

    def _item(
        self, task: Task, run: protocol.Run, item: Item, parameters: Any
    ) -> protocol.Finished | protocol.Broke | protocol.Ended:
        """Compute one item; `Ended` when its run was stopped on the way."""
        ticket = run.ticket
        self._stops.begin(ticket, item.index)
        try:
            output = self._output(task, item, parameters, run.output_max_bytes)
        except ItemStopped:
            busy_ms = self._busy_ms()
            if self._stops.wants_run(ticket):
                ended_as = protocol.EndedAs.CANCELLED
                return protocol.Ended(ticket, ended_as, index=item.index, busy_ms=busy_ms)
            message = "took longer than the watchdog allows"
            return protocol.Broke(ticket, item.index, ItemError.ENGINE_HUNG, message, busy_ms)
        except Exception as error:  # noqa: BLE001 - an item may fail in any way; the worker stays
            failure = _as_failure(error)
            return protocol.Broke(ticket, item.index, failure.code, failure.detail, self._busy_ms())
        finally:
            self._stops.end()
        is_large = len(output) > limits.OUTPUT_MAX_BYTES
        sha256 = hashlib.sha256(output).hexdigest() if is_large else ""
        return protocol.Finished(ticket, item.index, output, self._busy_ms(), sha256)

    def _busy_ms(self) -> float:
        """For how long the item has been computed."""
        return self._progress.busy_ns(time.monotonic_ns()) / 1e6

    def _output(
        self, task: Task, item: Item, parameters: Any, max_bytes: int | None = None
    ) -> bytes:
        if not isinstance(parameters, dict):
            raise ItemFailure(ItemError.INVALID_PARAMETERS, "parameters: not a map of names")
        return self._encoded(task.run(item.data, item.media_type, parameters), max_bytes)

    def _encoded(self, value: Any, max_bytes: int | None = None) -> bytes:
        """Return an output's bytes. Raises `ItemFailure` (result_too_large)."""
        output = self._encoder.encode(value)
        if max_bytes is None:
            max_bytes = self._options.output_max_bytes
        if len(output) > max_bytes:
            raise ItemFailure(
                ItemError.RESULT_TOO_LARGE,
                f"the result has {len(output)} bytes; the limit is {max_bytes}",
            )
        return output


def _parameters(data: bytes) -> Any:
    """Return the decoded parameters, or None for bytes that are no MessagePack."""
    if not data:
        return {}
    try:
        return msgspec.msgpack.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _return_free_memory() -> None:
    """Give the system what loading freed, where the C library can: of SmolLM2 240 MB."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _as_failure(error: Exception) -> ItemFailure:
    """Return any exception as an `ItemFailure`."""
    if isinstance(error, ItemFailure):
        return error
    is_memory = isinstance(error, MemoryError) or "Insufficient memory" in str(error)
    code = ItemError.OUT_OF_MEMORY if is_memory else ItemError.MODEL_ERROR
    return ItemFailure(code, f"{type(error).__name__}: {error}")


def serve(
    configure: protocol.Configure,
    inbox: Inbox,
    outbox: Outbox,
    stop_channel: socket.socket,
    progress: Progress,
) -> None:
    """Compute until the engine closes the stream, which is an `EOFError`."""
    options = configure.options
    runtime = OrtRuntime(
        provider=options.provider,
        intra_op_threads=options.intra_op_threads,
        scratch=Path(configure.scratch),
    )
    stops = Stops(stop_channel, runtime.begin)
    models = Models(runtime, options.resident_models_max)
    Computer(
        options=options,
        inbox=inbox,
        outbox=outbox,
        stops=stops,
        progress=progress,
        models=models,
        runtime=runtime,
    ).serve()
