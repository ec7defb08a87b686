"""The worker's end of the stream: runs come in, events go out.

Invariants: the stream is read only when little is left to do, so that it is never read for
nothing and work never runs dry; events of items faster than `ENGINE_EVENT_BATCH_MS` share a write.
"""

import socket
import threading
import time
from collections import deque
from typing import Final

import msgspec

from edge_runtime.contract import limits
from edge_runtime.vehicle.inference import protocol

_NS_PER_MS: Final = 1_000_000
_READ_BYTES: Final = 1 << 20
_RUNS_AHEAD: Final = 2
_FLUSH_BYTES: Final = 64 * 1024
_FLUSH_EVENTS: Final = 24
_BATCH_NS: Final = limits.ENGINE_EVENT_BATCH_MS * _NS_PER_MS


class Inbox:
    """Frames that wait."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._splitter = protocol.FrameSplitter()
        self._decoder = msgspec.msgpack.Decoder(protocol.ToWorker)
        self._waiting: deque[protocol.ToWorker] = deque()

    def next_now(self) -> protocol.ToWorker | None:
        """Return what waits, or None when nothing has come. Raises `EOFError` at the end."""
        while len(self._waiting) < _RUNS_AHEAD and self._read(socket.MSG_DONTWAIT):
            pass
        return self._waiting.popleft() if self._waiting else None

    def next(self) -> protocol.ToWorker:
        """Wait for the next frame. Raises `EOFError` when the engine has closed the stream."""
        while not self._waiting:
            self._read(0)
        return self._waiting.popleft()

    def _read(self, flags: int) -> bool:
        try:
            data = self._stream.recv(_READ_BYTES, flags)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            raise EOFError from None
        if not data:
            raise EOFError
        self._waiting.extend(map(self._decoder.decode, self._splitter.feed(data)))
        return True


class Outbox:
    """Events on their way to the engine, several to a write where they come fast.

    The main thread adds and flushes. A second thread flushes what the main one, deep in a model,
    has left lying for `ENGINE_EVENT_LATE_MS`.
    """

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._encoder = msgspec.msgpack.Encoder()
        self._lock = threading.Lock()
        self._has_events = threading.Event()
        self._events: list[protocol.FromWorker] = []
        self._bytes = 0
        self._flushed_ns = 0
        threading.Thread(target=self._flush_late, name="late events", daemon=True).start()

    def add(self, event: protocol.FromWorker) -> None:
        """Keep an event for the next write."""
        self._events.append(event)
        if isinstance(event, protocol.Finished):
            self._bytes += len(event.output)

    def flush_if_due(self) -> None:
        """Write what is kept when it has waited, or grown, enough."""
        now_ns = time.monotonic_ns()
        is_much = len(self._events) >= _FLUSH_EVENTS or self._bytes > _FLUSH_BYTES
        if is_much or now_ns - self._flushed_ns > _BATCH_NS:
            self.flush()
        elif not self._has_events.is_set():
            self._has_events.set()

    def flush(self) -> None:
        """Write what is kept."""
        with self._lock:
            events, self._events = self._events, []
            self._bytes = 0
            if events:
                self._stream.sendall(protocol.frame(self._encoder.encode(events)))
            self._flushed_ns = time.monotonic_ns()

    def _flush_late(self) -> None:
        while True:
            self._has_events.wait()
            self._has_events.clear()
            time.sleep(limits.ENGINE_EVENT_LATE_MS / 1000)
            late_ns = time.monotonic_ns() - self._flushed_ns
            if late_ns > limits.ENGINE_EVENT_LATE_MS * _NS_PER_MS:
                self.flush()
            elif self._events:
                self._has_events.set()
