"""The newest results of all tenants, in order of position: who keeps up reads no disk.

Invariants
- Positions in here have no gaps: of everything after `_through` that is in the store, nothing
  is missing. What cannot be followed (a job failed in bulk, withdrawn, deleted) empties it.
- Bounded by `RECENT_RESULTS_MAX` and `RECENT_RESULTS_BYTES_MAX`; the oldest go first.

A commit and a read share one thread with all others, so without this a reader of fresh results
waits for the next commit.
"""

from collections import deque
from collections.abc import Sequence
from itertools import islice

from edge_runtime.contract import limits
from edge_runtime.contract.http import FeedEntry
from edge_runtime.dispatcher.core.commands import (
    AddResult,
    FailRemaining,
    StoreCommand,
    WithdrawFailures,
)
from edge_runtime.dispatcher.storage.rows import committed_entry


class RecentResults:
    """See the module. `through` is the position that the store had when it was opened."""

    def __init__(self, through: int) -> None:
        self._through: int | None = through
        self._entries: deque[tuple[str, FeedEntry]] = deque()
        self._bytes = 0

    def committed(self, before: int, commands: Sequence[StoreCommand]) -> None:
        """These commands are in the store; `before` is what `Store.commit` returned."""
        results: list[AddResult] = []
        for command in commands:
            match command:
                case AddResult():
                    results.append(command)
                case FailRemaining() | WithdrawFailures():
                    self.forget()
                    return
                case _:
                    pass
        if not results:
            return
        if self._through is None:
            self._through = before
        for position, result in enumerate(results, before + 1):
            entry = FeedEntry(position=position, job=result.job, result=committed_entry(result))
            self._entries.append((result.tenant, entry))
            self._bytes += _size(entry)
        while (
            len(self._entries) > limits.RECENT_RESULTS_MAX
            or self._bytes > limits.RECENT_RESULTS_BYTES_MAX
        ):
            _, entry = self._entries.popleft()
            self._bytes -= _size(entry)
            self._through = entry.position

    def forget(self) -> None:
        """Know nothing until the next results are committed."""
        self._through = None
        self._entries.clear()
        self._bytes = 0

    def page(self, tenant: str, position: int, limit: int) -> list[FeedEntry] | None:
        """A tenant's results after `position`; None where only the store can tell."""
        if self._through is None or position < self._through:
            return None
        newer = islice(self._entries, position - self._through, None)
        return list(islice((entry for owner, entry in newer if owner == tenant), limit))


def _size(entry: FeedEntry) -> int:
    return len(memoryview(entry.result.output)) + limits.ID_MAX_CHARS
