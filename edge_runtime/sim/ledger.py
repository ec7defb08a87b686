"""What everybody saw: the history that the invariants judge.

Nothing in here decides anything. `note` keeps a bounded story for people, and a running digest
of it, which is the trace that two runs of a seed must share.
"""

import hashlib
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from edge_runtime.bus import Message
from edge_runtime.contract import codec
from edge_runtime.contract.errors import Rejected
from edge_runtime.contract.limits import SIM_STORY_LINES_MAX
from edge_runtime.contract.messages import Fence, JobResults, RequestRefused
from edge_runtime.contract.topics import Down, Topics

BULK: Final = "bulk"
"""What the keys of jobs begin with whose inputs and outputs do not travel inline."""
_NO_RESULTS = ("/status", "/request")


@dataclass(slots=True)
class Seen:
    """One result as a reader got it."""

    cursor: int
    item: int
    ok: bool
    output: bytes


@dataclass(slots=True)
class Submitted:
    """A job that its requester was told is accepted, and what it read of it since."""

    job: str
    tenant: str
    key: str
    data: list[bytes]
    read: list[Seen] = field(default_factory=list)
    is_done: bool = False
    was_requeued: bool = False
    was_read_again: bool = False
    """By somebody without a cursor, after it was requeued."""

    @property
    def needs_reading_again(self) -> bool:
        """Whether that is still to be done."""
        return self.was_requeued and not self.was_read_again


class Ledger:
    """See the module."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._signed = codec.signed_decoder()
        self._work = codec.work_decoder()
        self._trace = hashlib.sha256()
        self.story: deque[str] = deque(maxlen=SIM_STORY_LINES_MAX)
        self.violations: list[str] = []
        self.fired: Counter[str] = Counter()
        self.rare: Counter[str] = Counter()
        self.jobs: dict[str, Submitted] = {}
        self.keys: dict[tuple[str, str], str] = {}
        self.fences: dict[int, dict[Fence, str]] = {}
        self.newest_fence: dict[int, Fence] = {}
        self.published: dict[str, dict[int, tuple[int, bool, bytes]]] = {}
        self.answered: set[tuple[str, int, Fence, int]] = set()
        self.cancelled: dict[str, int] = {}
        self.deleting: set[str] = set()
        """Jobs that somebody has asked to forget."""
        self.deleted: set[str] = set()
        """Those of them for which the answer has come."""
        self.deaths: dict[bytes, list[str]] = {}
        """Items at which an engine, or a car's process, may have died; the cars, once a death."""
        self.starts: Counter[bytes] = Counter()
        self.feed: list[tuple[int, str, int]] = []
        self.readers: list[object] = []
        self.lies: set[bytes] = set()
        self.doubted: Counter[str] = Counter()
        """Jobs of which somebody has said that outputs are there, and they are not."""
        self.unanswered: set[str] = set()
        """Who asks and waits, and has had no answer since faults have stopped."""
        self.interactive: set[int] = set()
        """Units that somebody waits for, of which nothing is ever written down."""
        self.witnesses: list[Callable[[Message], None]] = []
        self.statuses: dict[str, list[bytes]] = {}
        """Digests of what was to be retained of each job's status, in order; empty for none."""
        self.told_tenants = 0
        """Messages on tenants' topics: results, statuses, requests and their answers."""
        self.now_s = 0.0

    @property
    def trace(self) -> str:
        """The digest of everything that was noted."""
        return self._trace.hexdigest()[:16]

    def note(self, line: str) -> None:
        """Something happened."""
        text = f"{self.now_s:10.4f} {line}"
        self._trace.update(text.encode())
        self.story.append(text)

    def violated(self, invariant: str, what: str) -> None:
        """A promise was broken."""
        self.violations.append(f"{invariant}: {what}")
        self.note(f"VIOLATION {invariant}: {what}")

    @property
    def has_gone_back(self) -> bool:
        """Whether an older store was put back: what was told after it is given up, knowingly."""
        return self.fired["restored_backup"] > 0

    def was_requeued(self, job: str) -> bool:
        """Whether ends of the job's items may have been withdrawn."""
        submitted = self.jobs.get(job)
        return submitted is not None and submitted.was_requeued

    def fault(self, kind: str, what: str = "") -> None:
        """A nemesis struck."""
        self.fired[kind] += 1
        self.note(f"fault {kind} {what}")

    def was_repeated(self, job: str) -> bool:
        """Whether what the broker heard last of a job's status it had heard before."""
        *before, last = self.statuses.get(job, [b""])
        return last in before

    def restored(self, kept: dict[str, int]) -> None:
        """An operator put an older store back: what came after it is given up, knowingly.

        `kept` has the newest cursor of each job that the older store knows.
        """
        for job in [job for job in self.jobs if job not in kept]:
            del self.keys[self.jobs[job].tenant, self.jobs[job].key]
            del self.jobs[job]
        for job, submitted in self.jobs.items():
            submitted.read = [seen for seen in submitted.read if seen.cursor <= kept[job]]
            submitted.is_done = False
        for job, told in self.published.items():
            newest = kept.get(job, 0)
            self.published[job] = {c: entry for c, entry in told.items() if c <= newest}

    # --- the wire, as the broker takes it -------------------------------------------------

    def published_message(self, sender: str, message: Message) -> None:
        """A message reached the broker."""
        digest = hashlib.sha256(message.payload).hexdigest()[:8]
        self.note(f"{sender} -> {message.topic} {len(message.payload)} {digest}")
        self.told_tenants += "/t/" in message.topic
        if message.retain and "/jobs/" in message.topic:
            said = hashlib.sha256(message.payload).digest() if message.payload else b""
            self.statuses.setdefault(message.topic.split("/")[-2], []).append(said)
        if message.topic.endswith(f"/dn/{Down.WORK.value}"):
            self._offered(message)
        elif "/t/" in message.topic and not message.topic.endswith(_NO_RESULTS):
            self._results(message)
        for heard in self.witnesses:
            heard(message)

    def _offered(self, message: Message) -> None:
        try:
            work = self._work.decode(self._signed.decode(message.payload).body)
        except Rejected as rejected:
            self.violated("S11", f"the dispatcher published what does not decode: {rejected}")
            return
        for unit in work.units:
            if unit.interactive:
                self.interactive.add(unit.unit)
            known = self.fences.setdefault(unit.unit, {})
            owner = known.setdefault(unit.fence, work.vehicle)
            if owner != work.vehicle:
                self.violated("S6", f"unit {unit.unit} fence {unit.fence} for two cars")
            newest = self.newest_fence.get(unit.unit)
            if newest is None or unit.fence > newest:
                self.newest_fence[unit.unit] = unit.fence

    def _results(self, message: Message) -> None:
        results = codec.decode_public(message.payload)
        if isinstance(results, RequestRefused):
            return  # an answer that tells of nothing
        if not isinstance(results, JobResults):
            self.violated("S4", f"{message.topic} carries {type(results).__name__}")
            return
        seen = self.published.setdefault(results.job, {})
        for entry in results.results:
            output = bytes(entry.output)
            told = (entry.item, entry.error is None, output)
            if seen.setdefault(entry.cursor, told) != told:
                self.violated("S4", f"{results.job} cursor {entry.cursor} published as two things")
