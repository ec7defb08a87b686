"""The worker's generating loop in this process, where a stop can come at an exact moment."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_runtime.contract.messages import Item
from edge_runtime.contract.reasons import ItemError
from edge_runtime.vehicle.inference import protocol
from edge_runtime.vehicle.inference.generation.loop import GenerationLoop, LoopCalls
from edge_runtime.vehicle.inference.generation.task import Generation
from edge_runtime.vehicle.inference.protocol import Progress, Unsent
from edge_runtime.vehicle.inference.runtime import OrtRuntime
from edge_runtime.vehicle.inference.stopping import Stops
from edge_runtime.vehicle.inference.streams import Outbox
from edge_runtime.vehicle.inference.tasks.base import ItemFailure
from edge_runtime.vehicle.inference.tasks.registry import load_task
from edge_runtime.vehicle.models.importers.tiny_text import write_tiny_text

DIGEST = "d" * 64


@dataclass
class LoopRig:
    """The loop with its real surroundings; `joiners` come one a step."""

    generation: Generation
    stops: Stops
    loop: GenerationLoop
    hears: socket.socket
    channel: socket.socket
    outbox: Outbox
    joiners: list[protocol.Run] = field(default_factory=list)
    before_step: list[Callable[[], None]] = field(default_factory=list)

    def tell(self, stop: protocol.Stop, is_known: Callable[[], bool]) -> None:
        self.channel.send(msgspec.msgpack.encode(stop))
        deadline_s = time.monotonic() + 30
        while not is_known():
            assert time.monotonic() < deadline_s
            time.sleep(0.001)

    def generate(self, run: protocol.Run) -> list[protocol.FromWorker]:
        """Compute, and return what was told."""
        self.loop.generate(run)
        self.outbox.flush()
        decoder = msgspec.msgpack.Decoder(list[protocol.FromWorker])
        splitter = protocol.FrameSplitter()
        told: list[protocol.FromWorker] = []
        while True:
            try:
                data = self.hears.recv(1 << 20, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return told
            for frame in splitter.feed(data):
                told += decoder.decode(frame)[1:]


def failed(error: Exception) -> ItemFailure:
    assert isinstance(error, ItemFailure), error
    return error


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[LoopRig]:
    package = write_tiny_text(tmp_path)
    runtime = OrtRuntime(provider="CPUExecutionProvider", intra_op_threads=1, scratch=tmp_path)
    runtime.begin_model(package.digest, 1.0)
    generation = load_task(package.folder, package.spec, runtime)
    assert isinstance(generation, Generation)
    page = os.memfd_create("page")
    os.ftruncate(page, Progress.BYTES + Unsent.BYTES)
    hears, says = socket.socketpair()
    channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stops = Stops(theirs, runtime.begin)
    outbox = Outbox(says, Unsent(page))
    rig = LoopRig(generation, stops, None, hears, channel, outbox)  # type: ignore[arg-type] # made next

    def between_steps() -> None:
        if rig.before_step:
            rig.before_step.pop(0)()

    rig.loop = GenerationLoop(
        generation,
        outbox=outbox,
        stops=stops,
        progress=Progress(page),
        calls=LoopCalls(
            next_joiner=lambda: rig.joiners.pop() if rig.joiners else None,
            between_steps=between_steps,
            parameters=lambda data: msgspec.msgpack.decode(data) if data else {},
            encode=msgspec.msgpack.encode,
            as_failure=failed,
        ),
    )
    yield rig
    channel.close()  # ends the thread that listens
    for thread in threading.enumerate():
        if thread.name == "stops":
            thread.join(30)
    for end in (theirs, hears, says):
        end.close()
    os.close(page)


def run_of(ticket: int, *prompts: str, streams: bool = False, **parameters: Any) -> protocol.Run:
    items = tuple(
        Item(index=index, media_type="text/plain", data=prompt.encode())
        for index, prompt in enumerate(prompts)
    )
    asked = msgspec.msgpack.encode({"max_tokens": 12, "ignore_eos": True, **parameters})
    return protocol.Run(ticket, "", DIGEST, items, asked, streams=streams)


def ends(told: list[protocol.FromWorker]) -> dict[int, protocol.EndedAs]:
    return {event.ticket: event.outcome for event in told if isinstance(event, protocol.Ended)}


def finished(told: list[protocol.FromWorker]) -> set[tuple[int, int]]:
    return {(e.ticket, e.index) for e in told if isinstance(e, protocol.Finished)}


def broken(told: list[protocol.FromWorker]) -> dict[tuple[int, int], ItemError]:
    return {(e.ticket, e.index): e.code for e in told if isinstance(e, protocol.Broke)}


def test_an_item_that_hangs_breaks_and_its_neighbours_go_on(rig: LoopRig) -> None:
    rig.tell(protocol.StopItem(1, 0), lambda: rig.stops.wants_item(1, 0))
    told = rig.generate(run_of(1, "a", "b"))
    assert broken(told) == {(1, 0): ItemError.ENGINE_HUNG}
    assert finished(told) == {(1, 1)}
    assert ends(told) == {1: protocol.EndedAs.COMPLETED}


def test_an_item_that_hangs_in_a_shared_step_breaks_alone(rig: LoopRig) -> None:
    # After two steps both prompts are read; the item that is named is the first of them.
    stop = protocol.StopItem(1, 0)
    rig.before_step += [lambda: None] * 3
    rig.before_step.append(lambda: rig.tell(stop, lambda: rig.stops.wants_item(1, 0)))
    told = rig.generate(run_of(1, "a", "b"))
    assert broken(told) == {(1, 0): ItemError.ENGINE_HUNG}
    assert finished(told) == {(1, 1)}


def test_a_cancelled_run_leaves_with_what_waits_and_others_end(rig: LoopRig) -> None:
    rig.joiners.append(run_of(2, *["x"] * 9))
    stop = protocol.StopRun(2)
    rig.before_step += [lambda: None] * 2
    rig.before_step.append(lambda: rig.tell(stop, lambda: rig.stops.wants_run(2)))
    told = rig.generate(run_of(1, "a", "b", max_tokens=30))
    assert ends(told) == {1: protocol.EndedAs.COMPLETED, 2: protocol.EndedAs.CANCELLED}
    assert finished(told) == {(1, 0), (1, 1)}
    (ended,) = [e for e in told if isinstance(e, protocol.Ended) and e.ticket == 2]
    assert ended.index == 0
    assert ended.busy_ms > 0
    assert rig.generation.batch.keys == []
    assert not rig.stops.wants_run(2), "a stop is forgotten with its run"


def test_a_run_whose_stop_came_first_is_not_begun(rig: LoopRig) -> None:
    rig.tell(protocol.StopRun(2), lambda: rig.stops.wants_run(2))
    rig.joiners.append(run_of(2, "x"))
    told = rig.generate(run_of(1, "a"))
    assert ends(told)[2] is protocol.EndedAs.CANCELLED
    assert not [e for e in told if isinstance(e, protocol.Started) and e.ticket == 2]


def test_who_streams_goes_before_who_waits_for_room(rig: LoopRig) -> None:
    rig.before_step.append(lambda: rig.joiners.append(run_of(2, "x", streams=True)))
    told = rig.generate(run_of(1, *"abcdefgh"))
    started = [(e.ticket, e.index) for e in told if isinstance(e, protocol.Started)]
    assert started.index((2, 0)) < started.index((1, 5))
    assert len(finished(told)) == 9


def test_a_step_that_fails_breaks_those_it_was_for(
    rig: LoopRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise ItemFailure(ItemError.OUT_OF_MEMORY, "run: no memory")

    monkeypatch.setattr(rig.generation.batch.decoder, "decode", no_memory)
    told = rig.generate(run_of(1, "a", "b"))
    assert set(broken(told).values()) == {ItemError.OUT_OF_MEMORY}
    assert len(broken(told)) == 2
    assert ends(told) == {1: protocol.EndedAs.COMPLETED}
    monkeypatch.undo()
    assert len(finished(rig.generate(run_of(2, "a", "b")))) == 2


def test_parameters_that_are_none_break_every_item(rig: LoopRig) -> None:
    told = rig.generate(
        protocol.Run(1, "", DIGEST, run_of(1, "a", "b").items, msgspec.msgpack.encode([1]))
    )
    assert set(broken(told).values()) == {ItemError.INVALID_PARAMETERS}
    assert ends(told) == {1: protocol.EndedAs.COMPLETED}


def test_a_run_without_items_ends(rig: LoopRig) -> None:
    assert ends(rig.generate(run_of(1))) == {1: protocol.EndedAs.COMPLETED}


def test_the_busy_times_of_items_are_the_time_of_their_steps(rig: LoopRig) -> None:
    started_s = time.perf_counter()
    told = rig.generate(run_of(1, *"abcd", max_tokens=40))
    elapsed_ms = (time.perf_counter() - started_s) * 1e3
    busy_ms = sum(event.busy_ms for event in told if isinstance(event, protocol.Finished))
    assert 0 < busy_ms <= elapsed_ms
