"""Decides whether a campaign broke the promise: pure, from what each side wrote down.

The requester says what it submitted and saw; the database what was issued and what ended; an
independent subscriber what travelled; each car what it journalled and when it computed. None is
believed alone: a verdict is a contradiction between them.

Deliberately absent: files, processes and clocks. `evidence` reads those; this only compares.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, assert_never

TERMINAL = frozenset({"done", "expired", "cancelled"})
STOP_BOUND_S = 1.0
"""From a hold in the car's log to the last computation: measured in ms, promised within 5 s."""
SETTLE_S = 0.25
"""A resumption is logged after the commands that it caused, by at most this."""
CPU_RESIDUE_S = 0.05
"""A frozen process uses nothing; the kernel's accounts tick in hundredths."""
OWNER_HOLDS = frozenset(
    {
        "consent_missing",
        "consent_withdrawn",
        "owner_paused",
        "not_parked",
        "occupied",
        "not_plugged",
        "compute_hot",
        "sensor_stale",
        "sensor_invalid",
        "policy_invalid",
    }
)
"""Holds under which what runs must stop; under the others it may be finished."""


class Fault(Enum):
    """What a run can be found guilty of."""

    LOST = "lost"
    DOUBLED = "doubled"
    FABRICATED = "fabricated"
    WRONG_OUTPUT = "wrong_output"
    CURSOR_GAP = "cursor_gap"
    CURSOR_REPEAT = "cursor_repeat"
    READER_DIFFERS = "reader_differs"
    JOB_MISSING = "job_missing"
    JOB_OPEN = "job_open"
    JOB_REVIVED = "job_revived"
    FENCE_REUSED = "fence_reused"
    OFFER_UNCOMMITTED = "offer_uncommitted"
    NO_LEAVE = "no_leave"
    JOURNAL_LEFT = "journal_left"
    STORE_UNSOUND = "store_unsound"
    LEAKED = "leaked"
    DIED = "died"


class Verdict(NamedTuple):
    """One contradiction: its kind, and where to look."""

    fault: Fault
    detail: str


class Fence(NamedTuple):
    """(epoch, counter) of an attempt."""

    epoch: int
    counter: int


class Entry(NamedTuple):
    """One result as a reader saw it."""

    cursor: int
    item: int
    digest: str


# --- the requester's own words, in order -------------------------


@dataclass(frozen=True)
class Intended:
    """The job with this key is about to be submitted; `expected` digests, "" where unknown."""

    key: str
    expected: tuple[str, ...]


@dataclass(frozen=True)
class Accepted:
    """The dispatcher acknowledged the job."""

    key: str
    job: str


@dataclass(frozen=True)
class Saw:
    """Results in the order in which they came, durably noted together."""

    job: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Ended:
    """The dispatcher said that the job is over."""

    job: str
    state: str
    last_cursor: int


@dataclass(frozen=True)
class Cancelling:
    """The requester is about to cancel."""

    job: str


@dataclass(frozen=True)
class Deleting:
    """The requester is about to have the job forgotten."""

    job: str


@dataclass(frozen=True)
class Deleted:
    """The dispatcher acknowledged that the job is forgotten."""

    job: str


RequesterEvent = Intended | Accepted | Saw | Ended | Cancelling | Deleting | Deleted


# --- the other sides ---------------------------------------------


@dataclass(frozen=True)
class StoredJob:
    """A row of the database."""

    job: str
    key: str
    state: str
    items: int
    last_cursor: int


@dataclass(frozen=True)
class StoredResult:
    """A canonical result in the database."""

    job: str
    entry: Entry
    vehicle: str
    is_error: bool = False


@dataclass(frozen=True)
class Issued:
    """An attempt: in the database, or in an offer on the bus."""

    job: str
    unit: int
    fence: Fence
    vehicle: str
    items: frozenset[int]
    model: str = field(default="", compare=False)
    """Digest of the package, where it was heard."""


@dataclass(frozen=True)
class Database:
    """What the dispatcher kept. `problems` are those of its own consistency check."""

    jobs: tuple[StoredJob, ...] = ()
    results: tuple[StoredResult, ...] = ()
    attempts: tuple[Issued, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Published:
    """One result on a third party's topic."""

    job: str
    entry: Entry


class Fed(NamedTuple):
    """One result in the feed over all of the tenant's jobs."""

    position: int
    job: str
    entry: Entry


@dataclass(frozen=True)
class HoldBegan:
    """The car's log: no work from now on, for this reason."""

    at_s: float
    hold: str


@dataclass(frozen=True)
class HoldEnded:
    """The car's log: it may work, or its process began anew."""

    at_s: float


@dataclass(frozen=True)
class RunBegan:
    """The car's log: a run went to the engine, or the engine was let go on."""

    at_s: float
    what: str


CarEvent = HoldBegan | HoldEnded | RunBegan


@dataclass(frozen=True)
class JournalRow:
    """An attempt or a chunk that a car still holds."""

    job: str
    unit: int
    fence: Fence
    what: str


@dataclass(frozen=True)
class Car:
    """One car's journal after the drain, and its log in order."""

    journal: tuple[JournalRow, ...] = ()
    log: tuple[CarEvent, ...] = ()


@dataclass(frozen=True)
class EngineWatch:
    """Seen from outside: CPU seconds that a car's engine used while its owner had the car."""

    vehicle: str
    hold: str
    cpu_s: float


@dataclass(frozen=True)
class History:
    """Everything that a campaign wrote down."""

    requester: tuple[RequesterEvent, ...] = ()
    database: Database = field(default_factory=Database)
    fed: tuple[Fed, ...] = ()
    published: tuple[Published, ...] = ()
    offers: tuple[Issued, ...] = ()
    cars: dict[str, Car] = field(default_factory=dict)
    watches: tuple[EngineWatch, ...] = ()
    leaked: tuple[str, ...] = ()
    deaths: tuple[str, ...] = ()


@dataclass
class _Told:
    """The requester's words, sorted out."""

    expected: dict[str, tuple[str, ...]] = field(default_factory=dict)
    jobs: dict[str, str] = field(default_factory=dict)
    """Key -> job."""
    seen: dict[str, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    ended: dict[str, Ended] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    """Jobs whose deletion was asked for: the database may know them or not."""
    deleted: set[str] = field(default_factory=set)


def check(history: History) -> list[Verdict]:
    """Every contradiction in the history; empty for a promise that was kept."""
    told, verdicts = _sort_out(history.requester)
    verdicts += _check_reader(told)
    verdicts += _check_jobs(told, history.database)
    verdicts += _check_results(told, history.database)
    verdicts += _check_feed(history)
    verdicts += _check_published(told, history)
    verdicts += _check_issued(told, history)
    for vehicle, car in history.cars.items():
        verdicts += _check_leave(vehicle, car.log)
        verdicts += (
            Verdict(Fault.JOURNAL_LEFT, f"{vehicle} holds {row.what} of {row.job} {row.unit}")
            for row in car.journal
        )
    verdicts += (
        Verdict(Fault.NO_LEAVE, f"{w.vehicle}: engine used {w.cpu_s:.2f} s of CPU while {w.hold}")
        for w in history.watches
        if w.cpu_s > CPU_RESIDUE_S
    )
    verdicts += (Verdict(Fault.STORE_UNSOUND, text) for text in history.database.problems)
    verdicts += (Verdict(Fault.LEAKED, text) for text in history.leaked)
    verdicts += (Verdict(Fault.DIED, text) for text in history.deaths)
    return verdicts


def _sort_out(events: Iterable[RequesterEvent]) -> tuple[_Told, list[Verdict]]:
    told = _Told()
    verdicts: list[Verdict] = []
    for event in events:
        match event:
            case Intended(key=key, expected=expected):
                told.expected[key] = expected
            case Accepted(key=key, job=job):
                if told.jobs.setdefault(key, job) != job:
                    verdicts.append(
                        Verdict(Fault.DOUBLED, f"key {key} made {told.jobs[key]} and {job}")
                    )
            case Saw(job=job, entries=entries):
                told.seen[job] += entries
            case Ended(job=job):
                told.ended[job] = event
            case Cancelling(job=job):
                told.cancelled.add(job)
            case Deleting(job=job):
                told.gone.add(job)
            case Deleted(job=job):
                told.deleted.add(job)
            case _:
                assert_never(event)
    return told, verdicts


def _check_reader(told: _Told) -> Iterator[Verdict]:
    """A reader that keeps its cursor sees 1, 2, 3 … to the job's last, and each item once."""
    for job, entries in told.seen.items():
        following = 1
        items: set[int] = set()
        for entry in entries:
            if entry.cursor < following:
                yield Verdict(Fault.CURSOR_REPEAT, f"{job}: {entry.cursor} after {following - 1}")
            elif entry.cursor > following:
                yield Verdict(Fault.CURSOR_GAP, f"{job}: {entry.cursor} after {following - 1}")
            following = max(following, entry.cursor + 1)
            if entry.item in items:
                yield Verdict(Fault.DOUBLED, f"{job}: item {entry.item} was delivered again")
            items.add(entry.item)
    for job, ended in told.ended.items():
        last = max((entry.cursor for entry in told.seen[job]), default=0)
        if last != ended.last_cursor:
            yield Verdict(Fault.CURSOR_GAP, f"{job} ended at {ended.last_cursor}, seen to {last}")


def _check_jobs(told: _Told, database: Database) -> Iterator[Verdict]:
    """Every accepted job is in the database and over; none is there that nobody asked for."""
    stored = {job.job: job for job in database.jobs}
    for key, job in told.jobs.items():
        if job not in stored and job not in told.gone:
            yield Verdict(Fault.JOB_MISSING, f"{job} ({key}) was accepted and is not in the store")
        if job not in told.ended:
            yield Verdict(Fault.JOB_OPEN, f"the requester never saw the end of {job} ({key})")
        elif told.ended[job].state == "cancelled" and job not in told.cancelled:
            yield Verdict(Fault.LOST, f"{job} was cancelled, and nobody asked for it")
    unanswered = told.expected.keys() - told.jobs.keys()
    yield from (Verdict(Fault.JOB_OPEN, f"{key} was never accepted") for key in sorted(unanswered))
    keys: dict[str, str] = {}
    for row in database.jobs:
        if row.key not in told.expected:
            yield Verdict(Fault.FABRICATED, f"{row.job}: nobody submitted {row.key!r}")
        if keys.setdefault(row.key, row.job) != row.job:
            yield Verdict(Fault.DOUBLED, f"key {row.key} is {keys[row.key]} and {row.job}")
        if row.state not in TERMINAL:
            yield Verdict(Fault.JOB_OPEN, f"{row.job} is {row.state} after the drain")
        if row.job in told.deleted:
            yield Verdict(Fault.JOB_REVIVED, f"{row.job} was deleted and is in the store")


def _check_results(told: _Told, database: Database) -> Iterator[Verdict]:
    """Each item of a finished job has one result: the one the requester saw, of its input."""
    expected = {job: told.expected.get(key, ()) for key, job in told.jobs.items()}
    stored: dict[str, dict[int, StoredResult]] = defaultdict(dict)
    for result in database.results:
        if result.entry.item in stored[result.job]:
            yield Verdict(Fault.DOUBLED, f"{result.job}: two rows of item {result.entry.item}")
        stored[result.job][result.entry.item] = result
    seen = {job: {entry.item: entry for entry in entries} for job, entries in told.seen.items()}
    for row in database.jobs:
        results = {item: result.entry for item, result in stored[row.job].items()}
        missing = sorted(set(range(row.items)) - results.keys())
        if missing and row.state != "cancelled":
            yield Verdict(
                Fault.LOST, f"{row.job}: {len(missing)} items without an end: {missing[:5]}"
            )
        if row.job in told.ended and results != seen.get(row.job, {}):
            yield Verdict(Fault.READER_DIFFERS, f"{row.job}: the store and the reader disagree")
    for job, items in seen.items():
        wanted = expected.get(job, ())
        for item, entry in items.items():
            if item >= len(wanted):
                yield Verdict(Fault.FABRICATED, f"{job}: item {item} was never submitted")
            elif wanted[item] and entry.digest != wanted[item] and not _is_error(entry):
                yield Verdict(Fault.WRONG_OUTPUT, f"{job}: item {item} is not of its input")


def _is_error(entry: Entry) -> bool:
    return entry.digest.startswith("error:")


def _check_feed(history: History) -> Iterator[Verdict]:
    """A reader of all jobs that keeps its position: each result once, and none left out."""
    before = 0
    entries: dict[tuple[str, int], Entry] = {}
    for fed in history.fed:
        if fed.position <= before:
            yield Verdict(Fault.CURSOR_REPEAT, f"the feed: {fed.position} after {before}")
        before = max(before, fed.position)
        if (fed.job, fed.entry.cursor) in entries:
            yield Verdict(Fault.DOUBLED, f"the feed: {fed.job} {fed.entry.cursor} came again")
        entries[fed.job, fed.entry.cursor] = fed.entry
    for result in history.database.results:
        entry = entries.get((result.job, result.entry.cursor))
        if entry is None:
            yield Verdict(Fault.CURSOR_GAP, f"the feed left out {result.job} {result.entry}")
        elif entry != result.entry:
            yield Verdict(Fault.READER_DIFFERS, f"the feed has {entry} of {result.job}")


def _check_published(told: _Told, history: History) -> Iterator[Verdict]:
    """What third parties hear is what the database holds: nothing before its commit, one truth."""
    truth: dict[tuple[str, int], Entry] = {
        (result.job, result.entry.cursor): result.entry for result in history.database.results
    }
    for job, entries in told.seen.items():
        for entry in entries:
            truth.setdefault((job, entry.cursor), entry)
    known = {row.job for row in history.database.jobs} | told.seen.keys()
    for published in history.published:
        if published.job in told.gone and published.job not in known:
            continue
        if truth.get((published.job, published.entry.cursor)) != published.entry:
            yield Verdict(
                Fault.FABRICATED,
                f"{published.job}: {published.entry} was published and is not in the store",
            )


def _check_issued(told: _Told, history: History) -> Iterator[Verdict]:
    """A fence names one attempt of one car; an output comes from a car that was given its item."""
    fences: dict[tuple[int, Fence], Issued] = {}
    given: dict[tuple[str, str], set[int]] = defaultdict(set)
    for attempt in history.database.attempts:
        key = (attempt.unit, attempt.fence)
        if fences.setdefault(key, attempt) != attempt:
            yield Verdict(Fault.FENCE_REUSED, f"unit {attempt.unit} fence {attempt.fence}")
        given[attempt.job, attempt.vehicle] |= attempt.items
    for offer in history.offers:
        issued = fences.get((offer.unit, offer.fence))
        if issued is None:
            if offer.job not in told.gone:
                yield Verdict(
                    Fault.OFFER_UNCOMMITTED, f"unit {offer.unit} {offer.fence} to {offer.vehicle}"
                )
        elif (issued.job, issued.vehicle) != (offer.job, offer.vehicle) or (
            not offer.items <= issued.items
        ):
            yield Verdict(
                Fault.FENCE_REUSED,
                f"unit {offer.unit} {offer.fence}: {offer.vehicle} heard another offer",
            )
    for result in history.database.results:
        if not result.is_error and result.entry.item not in given[result.job, result.vehicle]:
            yield Verdict(
                Fault.FABRICATED,
                f"{result.job}: item {result.entry.item} was never given to {result.vehicle}",
            )


def _check_leave(vehicle: str, log: tuple[CarEvent, ...]) -> Iterator[Verdict]:
    """No run goes to the engine while the car's own log says that its owner does not allow it."""
    held: HoldBegan | None = None
    for index, event in enumerate(log):
        match event:
            case HoldBegan(hold=hold):
                held = event if hold in OWNER_HOLDS else None
            case HoldEnded():
                held = None
            case RunBegan(at_s=at_s, what=what):
                if held is None or at_s - held.at_s <= STOP_BOUND_S:
                    continue
                following = next((e for e in log[index + 1 :] if not isinstance(e, RunBegan)), None)
                if following is None or following.at_s - at_s > SETTLE_S:
                    yield Verdict(
                        Fault.NO_LEAVE,
                        f"{vehicle}: {what} {at_s - held.at_s:.2f} s into {held.hold}",
                    )
            case _:
                assert_never(event)


def count(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """How many of each kind, all kinds named."""
    counts = {fault.value: 0 for fault in Fault}
    for verdict in verdicts:
        counts[verdict.fault.value] += 1
    return counts
