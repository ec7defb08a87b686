"""The production journal on a loop in virtual time: a commit is a step of the loop, not a thread's.

Invariants
- What is written goes into the next commit, in order; a commit and its event are two steps, since
  a process may die between them.
"""

from collections.abc import Callable
from pathlib import Path

from edge_runtime.sim.loop import SimLoop
from edge_runtime.vehicle.core.commands import Persist, Write
from edge_runtime.vehicle.journal import Emit, Journal


class LoopJournal(Journal):
    """See the module. `commit_delay_s` is asked how long each commit takes."""

    def __init__(self, path: Path, loop: SimLoop, commit_delay_s: Callable[[], float]) -> None:
        super().__init__(path)
        self._loop = loop
        self._commit_delay_s = commit_delay_s
        self._waiting: list[tuple[int, Write]] = []
        self._is_asked = False
        self._emit: Emit | None = None

    def start(self, emit: Emit) -> None:
        """Begin to commit."""
        self._emit = emit

    def persist(self, writes: Persist) -> None:
        """Queue writes for the next commit."""
        self._waiting.extend(enumerate(writes.writes, writes.first))
        if not self._is_asked:
            self._is_asked = True
            self._loop.call_later(self._commit_delay_s(), self._commit_waiting)

    def close(self) -> None:
        """Commit what is queued and let go of the file."""
        self._commit_waiting()
        super().close()

    def _commit_waiting(self) -> None:
        self._is_asked = False
        batch, self._waiting = self._waiting, []
        if not batch or self._lock_fd < 0:
            return
        done = self._commit(batch)
        if self._emit is not None:
            self._loop.call_soon(self._emit, done)
