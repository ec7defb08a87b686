"""The worker's end of the stream: runs come in, events go out.

Invariants
- The stream is read when little is left to do, so that work never runs dry, and between the items
  of a run that is not urgent, for one that is.
- What is urgent comes first; otherwise runs keep their order.
- Events of items faster than `ENGINE_EVENT_BATCH_MS` share a write. Until then they are in shared
  memory, where the engine finds them when it stops this process.
"""

import socket
import threading
import time
from collections import deque
from collections.abc import Collection
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
        self._waiting: deque[protocol.Run] = deque()
        self._urgent: deque[protocol.ToWorker] = deque()

    def next_now(self) -> protocol.ToWorker | None:
        """Return what waits, or None when nothing has come. Raises `EOFError` at the end."""
        while len(self._waiting) < _RUNS_AHEAD and self._read(socket.MSG_DONTWAIT):
            pass
        return self._first() if self._waiting or self._urgent else None

    def next_urgent(self, besides: Collection[str]) -> protocol.Run | None:
        """Return the urgent run that has come first, or None. Raises `EOFError` at the end.

        One of a model in `besides` waits here for `next_of`, and the others behind it.
        """
        while not self._urgent and self._read(socket.MSG_DONTWAIT):
            pass
        first = self._urgent[0] if self._urgent else None
        if not isinstance(first, protocol.Run) or first.digest in besides:
            return None
        del self._urgent[0]
        return first

    def next_of(self, digest: str, *, only_urgent: bool) -> protocol.Run | None:
        """Return a run of this model that has come and waits first of its kind, or None.

        Raises `EOFError` as `next_now`.
        """
        if len(self._waiting) < _RUNS_AHEAD or not self._urgent:
            self._read(socket.MSG_DONTWAIT)
        for queue in (self._urgent,) if only_urgent else (self._urgent, self._waiting):
            first = queue[0] if queue else None
            if isinstance(first, protocol.Run) and first.digest == digest:
                del queue[0]
                return first
        return None

    def next(self) -> protocol.ToWorker:
        """Wait for the next frame. Raises `EOFError` when the engine has closed the stream."""
        while not (self._waiting or self._urgent):
            self._read(0)
        return self._first()

    def _first(self) -> protocol.ToWorker:
        return self._urgent.popleft() if self._urgent else self._waiting.popleft()

    def _read(self, flags: int) -> bool:
        try:
            data = self._stream.recv(_READ_BYTES, flags)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            raise EOFError from None
        if not data:
            raise EOFError
        for frame in self._splitter.feed(data):
            message = self._decoder.decode(frame)
            if isinstance(message, protocol.Configure):
                self._urgent.appendleft(message)
            elif message.urgent:
                self._urgent.append(message)
            else:
                self._waiting.append(message)
        return True


class Outbox:
    """Events on their way to the engine, several to a write where they come fast.

    The main thread adds and flushes. A second thread flushes what the main one, deep in a model,
    has left lying for `ENGINE_EVENT_LATE_MS`.
    """

    def __init__(self, stream: socket.socket, unsent: protocol.Unsent) -> None:
        self._stream = stream
        self._unsent = unsent
        self._encoder = msgspec.msgpack.Encoder()
        self._lock = threading.Lock()
        self._has_events = threading.Event()
        self._events: list[bytes] = []
        self._batch = 0
        self._bytes = 0
        self._flushed_ns = 0
        self._begin()
        threading.Thread(target=self._flush_late, name="late events", daemon=True).start()

    def add(self, event: protocol.FromWorker) -> None:
        """Keep an event for the next write."""
        with self._lock:
            self._add(self._encoder.encode(event))

    def _add(self, encoded: bytes) -> None:
        if not self._unsent.fits(encoded):
            self._flush()
        if self._unsent.fits(encoded):
            self._unsent.add(encoded)
        self._events.append(encoded)
        self._bytes += len(encoded)

    def _begin(self) -> None:
        """Begin a batch. Its number is the first event in it."""
        self._batch += 1
        self._events, self._bytes = [], 0
        self._unsent.begin(self._batch)
        self._add(self._encoder.encode(protocol.Batch(self._batch)))

    def flush_if_due(self) -> None:
        """Write what is kept when it has waited, or grown, enough."""
        now_ns = time.monotonic_ns()
        is_much = len(self._events) > _FLUSH_EVENTS or self._bytes > _FLUSH_BYTES
        if is_much or now_ns - self._flushed_ns > _BATCH_NS:
            self.flush()
        elif not self._has_events.is_set():
            self._has_events.set()

    def flush(self) -> None:
        """Write what is kept."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        if self._has_any:
            head = protocol.array_head(len(self._events))
            self._stream.sendall(protocol.frame(b"".join((head, *self._events))))
            self._begin()
        self._flushed_ns = time.monotonic_ns()

    @property
    def _has_any(self) -> bool:
        """Whether the batch holds more than its number."""
        return len(self._events) > 1

    def _flush_late(self) -> None:
        while True:
            self._has_events.wait()
            self._has_events.clear()
            time.sleep(limits.ENGINE_EVENT_LATE_MS / 1000)
            late_ns = time.monotonic_ns() - self._flushed_ns
            if late_ns > limits.ENGINE_EVENT_LATE_MS * _NS_PER_MS:
                self.flush()
            elif self._has_any:
                self._has_events.set()
