"""Frames, the shared page and the worker's log, without a process."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from edge_runtime.contract import limits
from edge_runtime.vehicle.inference.protocol import (
    BadFrame,
    FrameSplitter,
    Phase,
    Progress,
    frame,
)
from edge_runtime.vehicle.inference.worker_log import WorkerLog

NS_PER_S = 1_000_000_000


@given(bodies=st.lists(st.binary(max_size=40), max_size=8), cut=st.integers(1, 50))
def test_frames_come_out_as_they_went_in(bodies: list[bytes], cut: int) -> None:
    stream = b"".join(map(frame, bodies))
    splitter = FrameSplitter()
    pieces = [stream[start : start + cut] for start in range(0, len(stream), cut)]
    assert [body for piece in pieces for body in splitter.feed(piece)] == bodies


def test_a_frame_over_the_limit_is_refused_from_its_length() -> None:
    length = (limits.ENGINE_FRAME_MAX_BYTES + 1).to_bytes(4, "little")
    with pytest.raises(BadFrame):
        list(FrameSplitter().feed(length))


def test_the_page_is_shared() -> None:
    descriptor = os.memfd_create("test-progress")
    try:
        os.ftruncate(descriptor, Progress.BYTES)
        worker, engine = Progress(descriptor), Progress(descriptor)
    finally:
        os.close(descriptor)
    assert (engine.phase, engine.sequence) == (Phase.STARTING, 0)
    worker.note(Phase.ITEM, ticket=7, index=3)
    assert (engine.phase, engine.ticket, engine.index) == (Phase.ITEM, 7, 3)
    assert engine.sequence == 1
    engine.add_frozen(5)
    engine.add_frozen(6)
    assert worker.frozen_ns == 11
    worker.close()
    engine.close()


def test_log_lines_are_short_few_and_counted() -> None:
    with capture_logs() as lines:
        log = WorkerLog(pid=1)
        log.feed(b"half a ", NS_PER_S)
        log.feed(b"line\n\n" + b"x" * 5_000 + b"\n", NS_PER_S)
        log.feed(b"again\n" * 100, NS_PER_S)
        log.feed(b"\xff next second\n", 2 * NS_PER_S)
        log.feed(b"the end without a newline", 2 * NS_PER_S)
        log.close(2 * NS_PER_S)
    said = [line["line"] for line in lines if line["event"] == "worker_said"]
    assert said[0] == "half a line"
    assert len(said[1]) == limits.ENGINE_LOG_LINE_MAX_BYTES
    assert len(said) == limits.ENGINE_LOG_LINES_PER_S + 2
    left_out = [line["lines"] for line in lines if line["event"] == "worker_lines_left_out"]
    assert left_out == [102 - limits.ENGINE_LOG_LINES_PER_S]
    assert log.last_line == "the end without a newline"


def test_a_line_without_end_does_not_fill_memory() -> None:
    log = WorkerLog(pid=1)
    with capture_logs():
        for _ in range(100):
            log.feed(b"x" * 10_000, NS_PER_S)
        assert len(log._pending) <= limits.ENGINE_LOG_BUFFER_MAX_BYTES
        log.close(NS_PER_S)
