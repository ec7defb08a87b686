"""What a reader of a tenant's topics has, what it lacks, and what it asks for.

Topics may repeat, skip and come in any order; an answer to a request begins right after the cursor
that was asked for and leaves nothing out. Out of both comes each result of a job once, in order.

Invariants
- Of a live message the result that is next is taken; one that is further waits, within bounds,
  until what lies between has been fetched. From an answer whatever follows the cursor is taken.
- A job is over when its final status is known and everything up to its last cursor was given, or
  the dispatcher says that there is no more. That status comes last.
- A job is asked for after each connect, at each gap, and when it has been silent: the broker may
  lose anything, the last message too.
- Requests that wait for an answer are few, and none is sent while the dispatcher asks for a pause.

Deliberately absent: clocks, sockets, tasks. `now_s` is an argument; who owns the connection sends
what `requests` gives, and calls again at `next_deadline_s`.
"""

import random
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from edge_runtime.client.results import ItemResult, item_result
from edge_runtime.contract import limits
from edge_runtime.contract.errors import LocalError
from edge_runtime.contract.messages import (
    FleetAggregate,
    JobResults,
    JobStatus,
    RequestRefused,
    ResultEntry,
)
from edge_runtime.contract.reasons import RequestRefusal

_BACKOFF_DOUBLINGS: Final = 16


class JobResult(msgspec.Struct, frozen=True):
    """One result of one job."""

    job: str
    result: ItemResult


class JobLost(msgspec.Struct, frozen=True):
    """A job of which nothing more will come; `reason` says why.

    `unknown_job`: it was deleted, or is not this tenant's. `cursor_ahead`: the dispatcher has fewer
    results than the cursor counts; it was put back to an earlier state, or the cursor is wrong.
    """

    job: str
    reason: str


Entry = JobResult | JobStatus | JobLost | FleetAggregate
"""What a subscription gives."""


class TooManyJobs(LocalError):  # noqa: N818 - named for what happened
    """More jobs at once than a subscription follows (`SUBSCRIPTION_JOBS_MAX`)."""


class Ask(NamedTuple):
    """A request that is due: the results of `job` after `cursor`."""

    job: str
    cursor: int


@dataclass(slots=True)
class _Track:
    """One job. `cursor` is that of the last result in order, `given` of the last given out."""

    cursor: int
    given: int
    settled: int = 0
    """Up to here nothing is missing, though cursors may be unused."""
    target: int = 0
    """The highest cursor that is known to be, or have been, in use."""
    status: JobStatus | None = None
    is_told: bool = False
    """Whether `status` was given out."""
    is_checked: bool = False
    """Whether the dispatcher has answered for this job on this connection."""
    heard_s: float = 0.0
    unanswered: int = 0
    held: dict[int, ResultEntry] = field(default_factory=dict)

    @property
    def through(self) -> int:
        """Up to here nothing is missing."""
        return max(self.cursor, self.settled)

    @property
    def is_over(self) -> bool:
        """Whether everything there will be has been taken."""
        status = self.status
        return (
            status is not None
            and status.state.is_terminal
            and self.through >= max(status.last_cursor, self.target)
        )

    @property
    def is_wanting(self) -> bool:
        """Whether the dispatcher must be asked."""
        return not self.is_over and (not self.is_checked or self.target > self.through)


class SubscriptionState:
    """See the module. `job` None follows every job of the tenant; `cursors` are where to go on.

    Take what there is (`take`) after each call; `counters` says what was repeated, held or let go.
    """

    def __init__(
        self, job: str | None, cursors: Mapping[str, int], rng: random.Random | None = None
    ) -> None:
        self._entries: deque[Entry] = deque()
        self.counters: Counter[str] = Counter()
        self.job = job
        # Spreads readers that were told to wait; no secret.
        self._rng = rng or random.Random()  # noqa: S311 - jitter is not a secret
        self._tracks: dict[str, _Track] = {}
        self._wanting: dict[str, None] = {}
        self._asked: dict[str, float] = {}
        self._resting: dict[str, float] = {}
        self._pause_until_s = 0.0
        self._look_s = 0.0
        self._is_connected = False
        self._held_entries = 0
        self._held_bytes = 0
        self._is_ended = False
        wanted = cursors if job is None else {job: cursors.get(job, 0)}
        for name, cursor in wanted.items():
            self._add(name, cursor)

    @property
    def cursors(self) -> dict[str, int]:
        """Of each job that is followed the cursor of the last result taken from here."""
        return {name: track.given for name, track in self._tracks.items()}

    def take(self) -> Entry | None:
        """The next entry, which counts as given; None where there is none now."""
        if not self._entries:
            return None
        entry = self._entries.popleft()
        if isinstance(entry, JobResult) and (track := self._tracks.get(entry.job)) is not None:
            track.given = entry.result.cursor
        return entry

    def fleet(self, told: FleetAggregate) -> None:
        """Capacity of a region: given on as it is."""
        self._entries.append(told)

    @property
    def is_ended(self) -> bool:
        """Whether nothing more will come: of one job only."""
        return self._is_ended

    # --- the connection ---

    def connected(self, now_s: float) -> None:
        """Messages may have been lost before: every job that is not over is asked for."""
        self._is_connected = True
        self._asked.clear()
        self._resting.clear()
        self._pause_until_s = 0.0
        self._look_s = now_s + limits.SUBSCRIPTION_SILENCE_S
        for name, track in self._tracks.items():
            track.is_checked = False
            self._note(name, track, now_s)

    def disconnected(self) -> None:
        """Nothing can be asked for now."""
        self._is_connected = False
        self._asked.clear()

    # --- what is heard ---

    def results(self, told: JobResults, now_s: float, *, is_answer: bool) -> None:
        """A page, live or as an answer."""
        track = self._heard(told.job, now_s)
        if track is None:
            return
        is_whole = told.since is not None and told.since <= track.through
        for entry in told.results:
            if entry.cursor <= track.through:
                self.counters["repeated"] += 1
            elif is_whole or entry.cursor == track.through + 1:
                self._take(told.job, track, entry)
                self._take_held(told.job, track)
            else:
                self._hold(track, entry)
        if is_answer:
            self._asked.pop(told.job, None)
            track.unanswered = 0 if told.results else track.unanswered + 1
            track.is_checked = True
            if self._is_ahead(told):
                self._lose(told.job, "cursor_ahead")
                return
        if told.status is not None:
            if is_whole and not told.results:
                # Its last cursors are in use no more: failures that are run again.
                track.settled = max(track.settled, told.status.last_cursor)
                self._take_held(told.job, track)
            self._set_status(track, told.status)
        self._note(told.job, track, now_s)
        if is_answer and not told.results and told.job in self._wanting:
            # What was promised is not there: it is on its way, or never was.
            del self._wanting[told.job]
            self._resting[told.job] = now_s + self._patience_s(track) / limits.SUBSCRIPTION_ASKS_MAX

    def status(self, told: JobStatus, now_s: float) -> None:
        """A status, live or retained."""
        track = self._heard(told.job, now_s)
        if track is not None:
            self._set_status(track, told)
            self._note(told.job, track, now_s)

    def cleared(self, job: str, now_s: float) -> None:
        """A job's retained status is no more: a day after its end, or when it was deleted."""
        track = self._tracks.get(job)
        if track is None:
            return
        if track.is_over:
            if self.job is None:
                self._forget(job)
            return
        track.is_checked = False
        self._note(job, track, now_s)

    def refused(self, told: RequestRefused, now_s: float) -> None:
        """A request was not answered."""
        self.counters[f"refused_{told.reason.value}"] += 1
        track = self._tracks.get(told.job)
        self._asked.pop(told.job, None)
        if told.reason is RequestRefusal.UNKNOWN_JOB:
            if track is not None:
                self._lose(told.job, told.reason.value)
            return
        pause_s = max(told.retry_after_ms / 1000, 0.1) * (1 + self._rng.random())
        self._pause_until_s = now_s + min(pause_s, limits.SUBSCRIPTION_ANSWER_MAX_S)
        if track is not None:
            self._note(told.job, track, now_s)

    # --- what is asked ---

    def requests(self, now_s: float) -> list[Ask]:
        """What to ask for now; each counts as asked."""
        if not self._is_connected:
            return []
        self._expire(now_s)
        if now_s >= self._look_s:
            self._look_s = now_s + limits.SUBSCRIPTION_SILENCE_S
            self._look_for_silent(now_s)
        asks: list[Ask] = []
        if now_s < self._pause_until_s:
            return asks
        while self._wanting and len(self._asked) < limits.SUBSCRIPTION_ASKS_MAX:
            name = next(iter(self._wanting))
            del self._wanting[name]
            track = self._tracks[name]
            self._asked[name] = now_s + self._patience_s(track)
            asks.append(Ask(name, track.cursor))
        return asks

    def next_deadline_s(self) -> float | None:
        """When to call `requests` again, if nothing is heard before."""
        if not self._is_connected:
            return None
        due = [self._look_s, *self._asked.values(), *self._resting.values()]
        if self._wanting and len(self._asked) < limits.SUBSCRIPTION_ASKS_MAX:
            due.append(self._pause_until_s)
        return min(due)

    @staticmethod
    def _patience_s(track: _Track) -> float:
        doublings = min(track.unanswered, _BACKOFF_DOUBLINGS)
        return min(limits.SUBSCRIPTION_ANSWER_S * 2.0**doublings, limits.SUBSCRIPTION_ANSWER_MAX_S)

    def _expire(self, now_s: float) -> None:
        for name in [name for name, due_s in self._resting.items() if due_s <= now_s]:
            del self._resting[name]
            self._note(name, self._tracks[name], now_s)
        for name in [name for name, due_s in self._asked.items() if due_s <= now_s]:
            del self._asked[name]
            self.counters["unanswered"] += 1
            track = self._tracks[name]
            track.unanswered += 1
            self._note(name, track, now_s)

    def _look_for_silent(self, now_s: float) -> None:
        for name, track in self._tracks.items():
            is_silent = now_s - track.heard_s >= limits.SUBSCRIPTION_SILENCE_S
            if is_silent and not track.is_over:
                track.is_checked = False
                self._note(name, track, now_s)

    # --- inside ---

    def _heard(self, job: str, now_s: float) -> _Track | None:
        """The job's track; None where it is not followed."""
        track = self._tracks.get(job)
        if track is None:
            if self.job is not None:
                return None
            track = self._add(job, 0)
            # What it is told of decides whether anything is missing.
            track.is_checked = True
        track.heard_s = now_s
        return track

    def _add(self, job: str, cursor: int) -> _Track:
        if len(self._tracks) >= limits.SUBSCRIPTION_JOBS_MAX:
            over = next((name for name, track in self._tracks.items() if track.is_over), None)
            if over is None:
                raise TooManyJobs(
                    f"more than {limits.SUBSCRIPTION_JOBS_MAX} jobs are followed and none is over"
                )
            self._forget(over)
        track = self._tracks[job] = _Track(cursor, given=cursor)
        return track

    def _forget(self, job: str) -> None:
        track = self._tracks.pop(job)
        self._wanting.pop(job, None)
        self._asked.pop(job, None)
        self._resting.pop(job, None)
        for entry in list(track.held.values()):
            self._release(track, entry)

    def _lose(self, job: str, reason: str) -> None:
        self._forget(job)
        self._entries.append(JobLost(job, reason))
        self._is_ended = self.job is not None

    def _take(self, job: str, track: _Track, entry: ResultEntry) -> None:
        track.cursor = entry.cursor
        track.target = max(track.target, entry.cursor)
        self._entries.append(JobResult(job, item_result(entry)))

    def _take_held(self, job: str, track: _Track) -> None:
        while track.held and (entry := track.held.get(track.through + 1)) is not None:
            self._release(track, entry)
            self._take(job, track, entry)
        if track.held:
            for entry in [e for cursor, e in track.held.items() if cursor <= track.cursor]:
                self._release(track, entry)

    def _hold(self, track: _Track, entry: ResultEntry) -> None:
        track.target = max(track.target, entry.cursor)
        size = len(bytes(entry.output))
        if entry.cursor in track.held:
            self.counters["repeated"] += 1
        elif (
            self._held_entries >= limits.SUBSCRIPTION_HELD_ENTRIES_MAX
            or self._held_bytes + size > limits.SUBSCRIPTION_HELD_BYTES_MAX
        ):
            self.counters["let_go"] += 1
        else:
            # Not the whole message that it came in.
            output = {"output": entry.output.copy()} if size else {}
            track.held[entry.cursor] = msgspec.structs.replace(entry, **output)
            self._held_entries += 1
            self._held_bytes += size
            self.counters["held"] += 1

    def _release(self, track: _Track, entry: ResultEntry) -> None:
        del track.held[entry.cursor]
        self._held_entries -= 1
        self._held_bytes -= len(bytes(entry.output))

    @staticmethod
    def _is_ahead(answer: JobResults) -> bool:
        return (
            answer.since is not None
            and answer.status is not None
            and answer.since > answer.status.last_cursor
        )

    @staticmethod
    def _set_status(track: _Track, told: JobStatus) -> None:
        known = track.status
        if known is not None:
            is_older = told.last_cursor < known.last_cursor or (
                told.last_cursor == known.last_cursor
                and known.state.is_terminal
                and not told.state.is_terminal
            )
            if is_older or told == known:
                return
        track.status = told
        track.is_told = False
        track.target = max(track.target, told.last_cursor)

    def _note(self, job: str, track: _Track, now_s: float) -> None:
        """After each change: what is to be asked, what is to be told."""
        if track.is_wanting:
            if job not in self._asked and job not in self._resting:
                self._wanting[job] = None
        else:
            self._wanting.pop(job, None)
        status = track.status
        if status is None or track.is_told:
            return
        if status.state.is_terminal and not track.is_over:
            return
        track.is_told = True
        track.heard_s = now_s
        self._entries.append(status)
        if track.is_over and self.job is not None:
            self._is_ended = True
