"""Writes on their way to the journal: numbered, confirmed, and kept through storage trouble.

Invariants
- Writes are numbered from 1 without gaps and confirmed in order.
- Nothing but an attempt that was not yet taken, and an output for which there is no room, is ever
  given up: every other write that failed is written again, in order, until it is durable.
- While there is trouble, writes wait here and `CheckSpace` asks whether it is over.
"""

from collections import deque
from dataclasses import dataclass, field

from edge_runtime.contract import limits
from edge_runtime.contract.clock import NS_PER_MS, Now
from edge_runtime.contract.reasons import HoldReason
from edge_runtime.vehicle.core.commands import (
    CheckSpace,
    Persist,
    Write,
    WriteAttempt,
    WriteOutput,
)


@dataclass(slots=True)
class Ledger:
    """`trouble` is the hold that storage imposes; `retry_ns` when the backlog is tried again."""

    trouble: HoldReason | None = None
    retry_ns: int | None = None
    _next_number: int = 1
    _sent: deque[tuple[int, Write]] = field(default_factory=deque)
    _fresh: list[Write] = field(default_factory=list)
    _failed: list[Write] = field(default_factory=list)
    _backlog: list[Write] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether everything is durable."""
        return not (self._sent or self._fresh or self._failed or self._backlog)

    def append(self, write: Write) -> None:
        """Write this, now or when the trouble is over."""
        (self._fresh if self.trouble is None else self._backlog).append(write)

    def flush(self) -> Persist | None:
        """What to hand to the journal now."""
        if not self._fresh:
            return None
        first = self._next_number
        writes, self._fresh = tuple(self._fresh), []
        self._sent.extend(enumerate(writes, first))
        self._next_number += len(writes)
        return Persist(first, writes)

    def committed(
        self, through: int, refused: tuple[int, ...], now: Now
    ) -> tuple[list[Write], list[WriteAttempt | WriteOutput]]:
        """(durable writes, attempts and outputs for which there is no room), in order."""
        durable: list[Write] = []
        declined: list[WriteAttempt | WriteOutput] = []
        numbers = frozenset(refused)
        for number, write in self._take(through):
            if number not in numbers:
                durable.append(write)
                if isinstance(write, CheckSpace):
                    self._recover()
            else:
                if isinstance(write, WriteAttempt | WriteOutput):
                    declined.append(write)
                self._hold(HoldReason.STORAGE_FULL, now)
        return durable, declined

    def failed(self, through: int, reason: HoldReason, now: Now) -> list[WriteAttempt]:
        """Keep what failed for another try; the attempts among it are given up and returned."""
        declined: list[WriteAttempt] = []
        for _, write in self._take(through):
            match write:
                case WriteAttempt():
                    declined.append(write)
                case CheckSpace():
                    pass
                case _:
                    self._failed.append(write)
        self._hold(reason, now)
        return declined

    def tick(self, now: Now) -> None:
        """Try the backlog again when its time has come."""
        if self.retry_ns is not None and now.boot_ns >= self.retry_ns:
            self.retry_ns = None
            self._retry()
            self._fresh.append(CheckSpace())

    def _take(self, through: int) -> list[tuple[int, Write]]:
        taken = []
        while self._sent and self._sent[0][0] <= through:
            taken.append(self._sent.popleft())
        return taken

    def _hold(self, reason: HoldReason, now: Now) -> None:
        self.trouble = reason
        self.retry_ns = now.boot_ns + limits.STORAGE_RETRY_MS * NS_PER_MS
        self._backlog.extend(self._fresh)
        self._fresh.clear()

    def _recover(self) -> None:
        self.trouble = self.retry_ns = None
        self._retry()

    def _retry(self) -> None:
        self._fresh += self._failed
        self._fresh += self._backlog
        self._failed.clear()
        self._backlog.clear()
