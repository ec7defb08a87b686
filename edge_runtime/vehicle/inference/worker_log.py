"""What the worker process prints, as log lines: short, few, never in the way.

Invariant: nothing that a library prints can fill memory or the log; what is left out is counted.
"""

from typing import Final

import structlog

from edge_runtime.contract import limits

_NS_PER_S: Final = 1_000_000_000


class WorkerLog:
    """Turns the worker's output into at most `ENGINE_LOG_LINES_PER_S` lines a second."""

    def __init__(self, pid: int) -> None:
        self._log = structlog.get_logger().bind(worker=pid)
        self._pending = b""
        self._second = 0
        self._lines_in_second = 0
        self._left_out = 0
        self.last_line = ""
        """The last line that said something; it often says why a process died."""

    def feed(self, data: bytes, now_ns: int) -> None:
        """Take what was read from the worker's output at monotonic time `now_ns`."""
        *lines, self._pending = (self._pending + data).split(b"\n")
        self._pending = self._pending[: limits.ENGINE_LOG_BUFFER_MAX_BYTES]
        for line in lines:
            self._tell(line, now_ns // _NS_PER_S)

    def close(self, now_ns: int) -> None:
        """The worker is gone: tell what is left."""
        self._tell(self._pending, now_ns // _NS_PER_S)
        self._pending = b""
        self._tell_left_out()

    def _tell(self, line: bytes, second: int) -> None:
        text = line[: limits.ENGINE_LOG_LINE_MAX_BYTES].decode(errors="replace").strip()
        if not text:
            return
        self.last_line = text
        if second != self._second:
            self._tell_left_out()
            self._second, self._lines_in_second = second, 0
        self._lines_in_second += 1
        if self._lines_in_second > limits.ENGINE_LOG_LINES_PER_S:
            self._left_out += 1
            return
        self._log.warning("worker_said", line=text)

    def _tell_left_out(self) -> None:
        if self._left_out:
            self._log.warning("worker_lines_left_out", lines=self._left_out)
            self._left_out = 0
