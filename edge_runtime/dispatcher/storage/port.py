"""The `Store` port: what the dispatcher's service asks of its database.

Invariants
- `commit` is all or nothing, and durable (fsynced) when it returns.
- Reads see every commit that returned before them.
- One dispatcher holds a store at a time; a second one is refused with the holder's name.
"""

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Protocol

from edge_runtime.contract.errors import LocalError
from edge_runtime.contract.http import AttemptView, DeadLetter, FeedEntry
from edge_runtime.contract.messages import Birth, JobStatus, ResultEntry
from edge_runtime.contract.reasons import EnergyMethod, WearMethod
from edge_runtime.dispatcher.core.commands import LoadCommand, StoreCommand
from edge_runtime.dispatcher.core.events import (
    AttemptFound,
    ItemsLoaded,
    JobRequeued,
    JobsLoaded,
    StoredAttempt,
    StoredJob,
)


class StoreError(LocalError):
    """The store failed; what was to be committed is not."""


class StoreFull(StoreError):  # noqa: N818 - named for the state it reports
    """No space left for it."""


class StoreBusy(StoreError):  # noqa: N818 - named for the state it reports
    """Somebody else holds the store (or its lock) now."""


class StoreDamaged(StoreError):  # noqa: N818 - named for the state it reports
    """The file is not a store of this version, or its contents are inconsistent."""


class Whose(Enum):
    """Whom a total is of."""

    FLEET = "fleet"
    TENANT = "tenant"
    VEHICLE = "vehicle"


class WorkTotal(NamedTuple):
    """What booked items of one kind came to; a name (empty: the fleet's) has one for each kind.

    `energy_j` and `wear_percent` (of a pack's capacity, summed over cars) are known by the methods
    named. `since_ms` is when the first was booked.
    """

    name: str
    is_interactive: bool
    energy_method: EnergyMethod
    wear_method: WearMethod
    items: int
    credits: float
    energy_j: float
    wear_percent: float
    since_ms: int


class Recovered(NamedTuple):
    """What a dispatcher starts from."""

    epoch: int
    next_job_no: int
    next_unit: int
    births: Sequence[Birth]
    quarantined: Sequence[str]
    jobs: Sequence[StoredJob]
    attempts: Sequence[StoredAttempt]
    tenants_with_more: Sequence[str]
    fleet_total: Sequence[WorkTotal] = ()
    tenant_totals: Sequence[WorkTotal] = ()
    """Of the `TOTALS_TENANTS_MAX` tenants with the most credits."""


class KnownKey(NamedTuple):
    """A job found by its idempotency key."""

    job: str
    body_hash: bytes


class Record(NamedTuple):
    """One document. `is_open` ones are found again at a start; `bytes` count for its tenant."""

    kind: str
    id: str
    tenant: str
    at_ms: int
    body: bytes
    is_open: bool = False
    bytes: int = 0


class OpenWork(NamedTuple):
    """What a tenant has in the store: unfinished jobs, their open items and input bytes.

    `stored_bytes` are those of its records (uploaded files).
    """

    jobs: int = 0
    items: int = 0
    bytes: int = 0
    stored_bytes: int = 0


class RecordStore(Protocol):
    """What accounts and batches ask of the store. Every method may raise `StoreError`."""

    async def put_records(
        self, records: Sequence[Record], drop: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Write records, and drop others by (kind, id), in one durable transaction."""
        ...

    async def record(self, kind: str, record_id: str) -> Record | None:
        """One record."""
        ...

    async def records(
        self, kind: str, tenant: str | None, limit: int, before: str | None = None
    ) -> list[Record]:
        """Records of a kind, newest first; `before` is the last id of the page before."""
        ...

    async def open_records(self, kind: str) -> list[Record]:
        """Every open record of a kind, in order of id."""
        ...

    async def open_work(self, tenant: str) -> OpenWork:
        """What a tenant has open now."""
        ...

    async def results_by_item(self, job: str, after: int, limit: int) -> list[ResultEntry]:
        """A page of a job's results in order of item, of those above index `after`."""
        ...


class Store(RecordStore, Protocol):
    """A dispatcher's durable state. Every method but `open` may raise `StoreError`."""

    async def open(self, now_utc_s: int) -> Recovered:
        """Take the store and read what is open. Raises `StoreBusy` where another holds it."""
        ...

    async def commit(self, commands: Sequence[StoreCommand]) -> int:
        """Apply a tick's store commands in one durable transaction.

        Returns the feed position before it: its AddResults got the following ones in order,
        and results of FailRemaining those after them.
        """
        ...

    async def load(
        self, commands: Sequence[LoadCommand]
    ) -> list[JobsLoaded | ItemsLoaded | AttemptFound]:
        """Answer load commands, one event each."""
        ...

    async def find_keys(self, tenant: str, keys: Sequence[str]) -> dict[str, KnownKey]:
        """Jobs of a tenant by idempotency key."""
        ...

    async def job(self, job: str) -> JobStatus | None:
        """A job's status."""
        ...

    async def jobs(
        self, tenant: str | None, state: str | None, limit: int, before: str | None
    ) -> list[JobStatus]:
        """Jobs, newest first."""
        ...

    async def results(self, job: str, cursor: int, limit: int) -> list[ResultEntry]:
        """A page of a job's results after `cursor`."""
        ...

    async def feed(self, tenant: str, position: int, limit: int) -> list[FeedEntry]:
        """A page of a tenant's results over all jobs after `position`."""
        ...

    async def feed_position(self, tenant: str) -> int:
        """The newest position of a tenant's feed."""
        ...

    async def attempts(
        self, tenant: str | None, job: str | None, limit: int, after: int
    ) -> list[AttemptView]:
        """Attempts in order of offer."""
        ...

    async def dead_letters(
        self, tenant: str | None, job: str | None, limit: int
    ) -> list[DeadLetter]:
        """Items that failed for good, newest first."""
        ...

    async def failed_items(
        self, job: str, items: Sequence[int], limit: int, new_deadline_ms: int
    ) -> JobRequeued | None:
        """What is needed to run failed items again (all, up to `limit`, where none is named)."""
        ...

    async def unpublished(self, limit: int) -> list[tuple[JobStatus, int]]:
        """Jobs with results above their published cursor, and that cursor."""
        ...

    async def published(self, job: str) -> int:
        """A job's published cursor."""
        ...

    async def set_published(self, cursors: dict[str, int]) -> None:
        """Everything up to these cursors has been acknowledged by the broker."""
        ...

    async def delete(self, job: str) -> bool:
        """Forget an ended job with its items, results and attempts.

        What remains is that its status topic is to be cleared, until `cleared` says it is.
        """
        ...

    async def to_clear(self, limit: int) -> list[tuple[str, str]]:
        """(tenant, job) of deleted jobs whose status topic was not cleared yet."""
        ...

    async def cleared(self, jobs: Sequence[str]) -> None:
        """The broker has acknowledged that these jobs' statuses are gone."""
        ...

    async def expired(self, now_ms: int, limit: int) -> list[tuple[str, str]]:
        """(tenant, job) of ended jobs whose retention is over."""
        ...

    async def ended_between(self, after_ms: int, until_ms: int, limit: int) -> list[JobStatus]:
        """Jobs that ended after `after_ms` and not after `until_ms`, oldest first.

        Over `limit` only those that ended in the same millisecond as the last of them.
        """
        ...

    async def get_meta(self, key: str) -> int:
        """A remembered number, 0 where there is none."""
        ...

    async def set_meta(self, key: str, value: int) -> None:
        """Remember a number."""
        ...

    async def totals(self, whose: Whose, name: str) -> list[WorkTotal]:
        """What the finished items of a tenant, a car or (by an empty name) the fleet came to."""
        ...

    def free_bytes(self) -> int:
        """Room left where the store lies."""
        ...

    async def count_open(self) -> int:
        """How many jobs have not ended."""
        ...

    async def backup(self, target: Path) -> int:
        """Copy the store, while it is in use, to a new file; bytes written."""
        ...

    async def close(self) -> None:
        """Release the store."""
        ...
