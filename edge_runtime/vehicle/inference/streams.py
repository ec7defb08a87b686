"""The worker's end of the stream: runs come in, events go out.

Invariants: the stream is read only when little is left to do, so that it is never read for
nothing and work never runs dry; events of items faster than `ENGINE_EVENT_BATCH_MS` share a write.
"""

import socket
import time
from collections import deque
from typing import Final

import msgspec

from edge_runtime.contract import limits
from edge_runtime.vehicle.inference import protocol

_READ_BYTES: Final = 1 << 20
_RUNS_AHEAD: Final = 2
_FLUSH_BYTES: Final = 64 * 1024
_BATCH_NS: Final = limits.ENGINE_EVENT_BATCH_MS * 1_000_000


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
    """Events on their way to the engine, several to a write where they come fast."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._encoder = msgspec.msgpack.Encoder()
        self._events: list[protocol.FromWorker] = []
        self._bytes = 0
        self._flushed_ns = 0

    def add(self, event: protocol.FromWorker) -> None:
        """Keep an event for the next write."""
        self._events.append(event)
        if isinstance(event, protocol.Finished):
            self._bytes += len(event.output)

    def flush_if_due(self) -> None:
        """Write what is kept when it has waited, or grown, enough."""
        now_ns = time.monotonic_ns()
        if self._bytes > _FLUSH_BYTES or now_ns - self._flushed_ns > _BATCH_NS:
            self.flush()

    def flush(self) -> None:
        """Write what is kept."""
        if self._events:
            self._stream.sendall(protocol.frame(self._encoder.encode(self._events)))
            self._events.clear()
            self._bytes = 0
        self._flushed_ns = time.monotonic_ns()
