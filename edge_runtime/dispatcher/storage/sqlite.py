"""The store on SQLite: WAL, `synchronous=FULL`, exactly one connection on one thread.

One connection, because SQLite before 3.51.3 can corrupt a WAL that two connections reset at
once; one thread, because the connection then needs no lock. Commits of a tick are one
transaction, grouped by table for speed; the order of the groups is the order of dependence.
A failed fsync is fatal: what the kernel then says of later ones cannot be trusted.
"""

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edge_runtime.contract.http import AttemptView, DeadLetter, FeedEntry
from edge_runtime.contract.messages import Item, JobStatus, ResultEntry
from edge_runtime.dispatcher.core.commands import (
    FindAttempt,
    LoadCommand,
    LoadItems,
    LoadJobs,
    StoreCommand,
)
from edge_runtime.dispatcher.core.events import (
    AttemptFound,
    ItemsLoaded,
    JobRequeued,
    JobsLoaded,
)
from edge_runtime.dispatcher.storage import records as documents
from edge_runtime.dispatcher.storage import totals as work_totals
from edge_runtime.dispatcher.storage.files import backup, connect, take_lock, translated
from edge_runtime.dispatcher.storage.port import (
    KnownKey,
    OpenWork,
    Record,
    Recovered,
    StoreError,
    Whose,
    WorkTotal,
)
from edge_runtime.dispatcher.storage.recent import RecentResults
from edge_runtime.dispatcher.storage.recovery import keep_newest, newest, recover
from edge_runtime.dispatcher.storage.rows import (
    ITEM_SPAN,
    JOB_COLUMNS,
    attempt_view,
    error_decoder,
    issued_decoder,
    job_status,
    open_items,
    open_jobs,
    result_entry,
    stored_item,
    stored_job,
)
from edge_runtime.dispatcher.storage.schema import ITEM_BITS, migrate
from edge_runtime.dispatcher.storage.writing import write

T = TypeVar("T")
Loaded = JobsLoaded | ItemsLoaded | AttemptFound


class SqliteStore:
    """See the module and `storage.port.Store`."""

    def __init__(self, path: Path, holder: str = "dispatcher") -> None:
        self.path = path
        self._holder = holder
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._lock_fd: int | None = None
        self._connection: sqlite3.Connection | None = None
        self._position = 0
        self._recent = RecentResults(0)
        self._is_closed = False

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        if self._is_closed:
            raise StoreError("the store is closed")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._guarded, function, *arguments)

    def _guarded(self, function: Callable[..., T], *arguments: Any) -> T:
        try:
            return function(*arguments)
        except sqlite3.Error as error:
            raise translated(error) from error

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreError("the store is not open")
        return self._connection

    # --- opening ---

    async def open(self, now_utc_s: int) -> Recovered:
        """Take the store and read what is open. What it took it gives back where that fails."""
        try:
            recovered = await self._run(self._open, now_utc_s)
        except BaseException:
            await self.close()
            raise
        self._recent = RecentResults(self._position)
        return recovered

    def _open(self, now_utc_s: int) -> Recovered:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock_fd = take_lock(self.path, self._holder)
        self._connection = connect(self.path)
        migrate(self._connection)
        self._position = newest(self._connection, "position")
        return recover(self._connection, now_utc_s)

    async def close(self) -> None:
        """Release the store."""
        if self._is_closed:
            return
        await self._run(self._close)
        self._is_closed = True
        self._thread.shutdown()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    # --- writing ---

    async def commit(self, commands: Sequence[StoreCommand]) -> int:
        """Apply a tick's store commands in one durable transaction."""
        before = await self._run(self._commit, commands)
        self._recent.committed(before, commands)
        return before

    def _commit(self, commands: Sequence[StoreCommand]) -> int:
        before = self._position
        with self._transaction() as db:
            self._position = write(db, commands, before)
        return before

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        db = self._db
        position = self._position
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
            db.execute("COMMIT")
        except BaseException:
            self._position = position
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    # --- reading for the core ---

    async def load(self, commands: Sequence[LoadCommand]) -> list[Loaded]:
        """Answer load commands, one event each."""
        return await self._run(self._load, commands)

    def _load(
        self, commands: Sequence[LoadCommand]
    ) -> list[JobsLoaded | ItemsLoaded | AttemptFound]:
        events: list[Loaded] = []
        for command in commands:
            match command:
                case LoadItems():
                    events.append(self._load_items(command))
                case LoadJobs(tenant=tenant, after_no=after_no, limit=limit):
                    jobs = open_jobs(self._db, tenant, after_no, limit + 1)
                    more = len(jobs) > limit
                    events.append(JobsLoaded(tenant=tenant, jobs=tuple(jobs[:limit]), more=more))
                case FindAttempt():
                    events.append(self._find_attempt(command))
        return events

    def _load_items(self, command: LoadItems) -> ItemsLoaded:
        first = command.job_no << ITEM_BITS
        rows = self._db.execute(
            "SELECT i.key, i.media_type, i.data, i.reference FROM item i"
            " WHERE i.key > ? AND i.key < ?"
            " AND NOT EXISTS (SELECT 1 FROM result r WHERE r.item = i.key)"
            " ORDER BY i.key LIMIT ?",
            (first + command.after, first + ITEM_SPAN, command.limit + 1),
        )
        items: list[Item] = []
        size = 0
        more = False
        for key, media_type, data, reference in rows:
            if len(items) >= command.limit or size > command.limit_bytes:
                more = True
                break
            items.append(stored_item(key - first, media_type, data, reference))
            size += len(data)
        rows.close()
        through = items[-1].index if items and more else ITEM_SPAN
        return ItemsLoaded(job=command.job, items=tuple(items), through=through, more=more)

    def _find_attempt(self, command: FindAttempt) -> AttemptFound:
        chunk = command.chunk
        found = self._db.execute(
            "SELECT j.no, j.id, j.finished_ms, a.issued"
            " FROM attempt a JOIN job j ON j.no = a.job_no"
            " WHERE a.unit=? AND a.epoch=? AND a.counter=? AND a.vehicle=? AND j.id=?",
            (chunk.unit, *chunk.fence, command.vehicle, chunk.job),
        ).fetchone()
        if found is None:
            known = self._db.execute("SELECT 1 FROM job WHERE id=?", (chunk.job,)).fetchone()
            return AttemptFound(
                vehicle=command.vehicle, chunk=chunk, issued=None, known_job=known is not None
            )
        no, job, finished_ms, issued_blob = found
        issued = issued_decoder.decode(issued_blob)
        wanted = {result.index for result in chunk.items} & set(issued)
        stored = None if finished_ms is not None else stored_job(self._db, job)
        return AttemptFound(
            vehicle=command.vehicle,
            chunk=chunk,
            issued=issued,
            known_job=True,
            stored=stored,
            open_items=open_items(self._db, no, sorted(wanted)) if stored else (),
        )

    async def find_keys(self, tenant: str, keys: Sequence[str]) -> dict[str, KnownKey]:
        """Jobs of a tenant by idempotency key."""

        def read() -> dict[str, KnownKey]:
            statement = "SELECT id, body_hash FROM job WHERE tenant=? AND key=?"
            found = {}
            for key in keys:
                row = self._db.execute(statement, (tenant, key)).fetchone()
                if row is not None:
                    found[key] = KnownKey(*row)
            return found

        return await self._run(read)

    # --- reading for people ---

    async def job(self, job: str) -> JobStatus | None:
        """A job's status."""
        return await self._run(self._job, job)

    def _job(self, job: str) -> JobStatus | None:
        row = self._db.execute(f"SELECT {JOB_COLUMNS} FROM job WHERE id=?", (job,)).fetchone()  # noqa: S608 - constant columns
        return None if row is None else job_status(row)

    async def jobs(
        self, tenant: str | None, state: str | None, limit: int, before: str | None
    ) -> list[JobStatus]:
        """Jobs, newest first."""

        def read() -> list[JobStatus]:
            where, values = _where(
                {
                    "tenant=?": tenant,
                    "state=?": state,
                    "no < (SELECT no FROM job WHERE id=?)": before,
                }
            )
            rows = self._db.execute(
                f"SELECT {JOB_COLUMNS} FROM job{where} ORDER BY no DESC LIMIT ?",  # noqa: S608 - constant parts
                (*values, limit),
            )
            return [job_status(row) for row in rows]

        return await self._run(read)

    async def results(self, job: str, cursor: int, limit: int) -> list[ResultEntry]:
        """A page of a job's results after `cursor`."""

        def read() -> list[ResultEntry]:
            rows = self._db.execute(
                "SELECT cursor, item, at_ms, output, error, vehicle, reference FROM result"
                " WHERE job_no=(SELECT no FROM job WHERE id=?) AND cursor>?"
                " ORDER BY cursor LIMIT ?",
                (job, cursor, limit),
            )
            return [result_entry(row) for row in rows]

        return await self._run(read)

    async def feed(self, tenant: str, position: int, limit: int) -> list[FeedEntry]:
        """A page of a tenant's results over all jobs after `position`."""
        recent = self._recent.page(tenant, position, limit)
        if recent is not None:
            return recent

        def read() -> list[FeedEntry]:
            rows = self._db.execute(
                "SELECT r.position, j.id, r.cursor, r.item, r.at_ms, r.output, r.error, r.vehicle,"
                " r.reference FROM result r JOIN job j ON j.no = r.job_no"
                " WHERE r.tenant=? AND r.position>? ORDER BY r.position LIMIT ?",
                (tenant, position, limit),
            )
            return [
                FeedEntry(position=place, job=job, result=result_entry(rest))
                for place, job, *rest in rows
            ]

        return await self._run(read)

    async def feed_position(self, tenant: str) -> int:
        """The newest position of a tenant's feed (of all feeds: positions have gaps)."""
        del tenant  # positions are shared; a reader of any tenant may start from the newest
        return self._position

    async def attempts(
        self, tenant: str | None, job: str | None, limit: int, after: int
    ) -> list[AttemptView]:
        """Attempts in order of offer."""

        def read() -> list[AttemptView]:
            where, values = _where({"j.tenant=?": tenant, "j.id=?": job})
            rows = self._db.execute(
                "SELECT j.id, a.unit, a.epoch, a.counter, a.vehicle, a.offered_ms, a.issued,"  # noqa: S608 - constant parts
                " a.taken_ms, a.ended_ms, a.ending, a.outcome, a.release_reason, a.hold,"
                " a.items_done, a.stop_tier, a.stop_latency_ms, a.energy_j, a.busy_ms"
                f" FROM attempt a JOIN job j ON j.no = a.job_no{where}"
                " ORDER BY a.no LIMIT ? OFFSET ?",
                (*values, limit, after),
            )
            return [attempt_view(row) for row in rows]

        return await self._run(read)

    async def dead_letters(
        self, tenant: str | None, job: str | None, limit: int
    ) -> list[DeadLetter]:
        """Items that failed for good, newest first."""

        def read() -> list[DeadLetter]:
            where, values = _where({"r.tenant=?": tenant, "j.id=?": job})
            rows = self._db.execute(
                "SELECT j.id, r.item, r.at_ms, r.error"  # noqa: S608 - constant parts
                " FROM result r INDEXED BY result_failed JOIN job j ON j.no = r.job_no"
                f"{where}{' AND' if where else ' WHERE'} r.error IS NOT NULL"
                " ORDER BY r.position DESC LIMIT ?",
                (*values, limit),
            )
            return [
                DeadLetter(
                    job=name, item=item % ITEM_SPAN, at_ms=at, error=error_decoder.decode(error)
                )
                for name, item, at, error in rows
            ]

        return await self._run(read)

    async def failed_items(
        self, job: str, items: Sequence[int], limit: int, new_deadline_ms: int
    ) -> JobRequeued | None:
        """What is needed to run failed items again."""

        def read() -> JobRequeued | None:
            stored = stored_job(self._db, job)
            if stored is None:
                return None
            rows = self._db.execute(
                "SELECT i.key, i.media_type, i.data, i.reference"
                " FROM result r JOIN item i ON i.key = r.item"
                " WHERE r.job_no=? AND r.error IS NOT NULL ORDER BY i.key",
                (stored.no,),
            )
            wanted = set(items)
            found: list[Item] = []
            for key, media_type, data, reference in rows:
                index = key % ITEM_SPAN
                if not wanted or index in wanted:
                    found.append(stored_item(index, media_type, data, reference))
                if len(found) >= limit:
                    break
            deadline_ms = max(stored.spec.deadline_ms, new_deadline_ms)
            spec = msgspec.structs.replace(stored.spec, deadline_ms=deadline_ms)
            stored = msgspec.structs.replace(stored, spec=spec)
            return JobRequeued(job=stored, items=tuple(found))

        return await self._run(read)

    # --- publishing, retention, backup ---

    async def unpublished(self, limit: int) -> list[tuple[JobStatus, int]]:
        """Jobs with results above their published cursor, and that cursor."""

        def read() -> list[tuple[JobStatus, int]]:
            rows = self._db.execute(
                f"SELECT {JOB_COLUMNS}, published FROM job"  # noqa: S608 - constant columns
                " WHERE published < cursor ORDER BY no LIMIT ?",
                (limit,),
            )
            return [(job_status(row[:-1]), row[-1]) for row in rows]

        return await self._run(read)

    async def published(self, job: str) -> int:
        """A job's published cursor."""

        def read() -> int:
            row = self._db.execute("SELECT published FROM job WHERE id=?", (job,)).fetchone()
            return int(row[0]) if row else 0

        return await self._run(read)

    async def set_published(self, cursors: dict[str, int]) -> None:
        """Everything up to these cursors has been acknowledged by the broker."""

        def write_cursors() -> None:
            with self._transaction() as db:
                db.executemany(
                    "UPDATE job SET published=max(published, ?) WHERE id=?",
                    [(cursor, job) for job, cursor in cursors.items()],
                )

        await self._run(write_cursors)

    async def delete(self, job: str) -> bool:
        """Forget an ended job with its items, results and attempts."""
        is_gone = await self._run(self._delete, job)
        self._recent.forget()
        return is_gone

    async def to_clear(self, limit: int) -> list[tuple[str, str]]:
        """(tenant, job) of deleted jobs whose status topic was not cleared yet."""

        def read() -> list[tuple[str, str]]:
            statement = "SELECT tenant, job FROM forgotten LIMIT ?"
            return self._db.execute(statement, (limit,)).fetchall()

        return await self._run(read)

    async def cleared(self, jobs: Sequence[str]) -> None:
        """The broker has acknowledged that these jobs' statuses are gone."""

        def forget() -> None:
            with self._transaction() as db:
                db.executemany("DELETE FROM forgotten WHERE job=?", [(job,) for job in jobs])

        await self._run(forget)

    def _delete(self, job: str) -> bool:
        with self._transaction() as db:
            row = db.execute(
                "SELECT no, tenant FROM job WHERE id=? AND finished_ms IS NOT NULL", (job,)
            ).fetchone()
            if row is None:
                return False
            no, tenant = row
            db.execute("INSERT OR REPLACE INTO forgotten(job, tenant) VALUES(?, ?)", (job, tenant))
            first = no << ITEM_BITS
            span = (first, first + ITEM_SPAN)
            keep_newest(db, "position", "job_no", "unit")
            db.execute("DELETE FROM item WHERE key >= ? AND key < ?", span)
            for table in ("result", "attempt", "strike"):
                db.execute(f"DELETE FROM {table} WHERE job_no=?", (no,))  # noqa: S608 - constant names
            db.execute("DELETE FROM job WHERE no=?", (no,))
        return True

    async def expired(self, now_ms: int, limit: int) -> list[tuple[str, str]]:
        """(tenant, job) of ended jobs whose retention is over."""

        def read() -> list[tuple[str, str]]:
            return self._db.execute(
                "SELECT tenant, id FROM job WHERE finished_ms IS NOT NULL"
                " AND finished_ms + retention_ms < ? LIMIT ?",
                (now_ms, limit),
            ).fetchall()

        return await self._run(read)

    async def ended_between(self, after_ms: int, until_ms: int, limit: int) -> list[JobStatus]:
        """Jobs that ended after `after_ms` and not after `until_ms`, oldest first.

        Over `limit` only those that ended in the same millisecond as the last of them.
        """

        def read() -> list[JobStatus]:
            last = self._db.execute(
                "SELECT finished_ms FROM job WHERE finished_ms > ? AND finished_ms <= ?"
                " ORDER BY finished_ms LIMIT 1 OFFSET ?",
                (after_ms, until_ms, limit - 1),
            ).fetchone()
            rows = self._db.execute(
                f"SELECT {JOB_COLUMNS} FROM job WHERE finished_ms IS NOT NULL"  # noqa: S608 - constant columns
                " AND finished_ms > ? AND finished_ms <= ? ORDER BY finished_ms",
                (after_ms, until_ms if last is None else last[0]),
            )
            return [job_status(row) for row in rows]

        return await self._run(read)

    async def get_meta(self, key: str) -> int:
        """A remembered number, 0 where there is none."""

        def read() -> int:
            row = self._db.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
            return int(row[0]) if row else 0

        return await self._run(read)

    async def set_meta(self, key: str, value: int) -> None:
        """Remember a number."""

        def write_number() -> None:
            with self._transaction() as db:
                db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

        await self._run(write_number)

    # --- documents ---

    async def put_records(
        self, records: Sequence[Record], drop: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Write records, and drop others, in one durable transaction."""

        def put() -> None:
            with self._transaction() as db:
                documents.put(db, records, drop)

        await self._run(put)

    async def record(self, kind: str, record_id: str) -> Record | None:
        """One record."""
        return await self._run(lambda: documents.find(self._db, kind, record_id))

    async def records(
        self, kind: str, tenant: str | None, limit: int, before: str | None = None
    ) -> list[Record]:
        """Records of a kind, newest first."""
        return await self._run(lambda: documents.page(self._db, kind, tenant, limit, before))

    async def open_records(self, kind: str) -> list[Record]:
        """Every open record of a kind, in order of id."""
        return await self._run(lambda: documents.open_of_kind(self._db, kind))

    async def open_work(self, tenant: str) -> OpenWork:
        """What a tenant has open now."""
        return await self._run(lambda: documents.open_work(self._db, tenant))

    async def results_by_item(self, job: str, after: int, limit: int) -> list[ResultEntry]:
        """A page of a job's results in order of item."""
        return await self._run(lambda: documents.results_by_item(self._db, job, after, limit))

    async def totals(self, whose: Whose, name: str) -> list[WorkTotal]:
        """What the finished items of a tenant, a car or (by an empty name) the fleet came to."""
        return await self._run(lambda: work_totals.of_name(self._db, whose, name))

    def free_bytes(self) -> int:
        """Room left on the disk of the store's folder, for an unprivileged writer."""
        disk = os.statvfs(self.path.parent)
        return disk.f_bavail * disk.f_frsize

    async def count_open(self) -> int:
        """How many jobs have not ended."""

        def read() -> int:
            (count,) = self._db.execute(
                "SELECT count(*) FROM job WHERE finished_ms IS NULL"
            ).fetchone()
            return int(count)

        return await self._run(read)

    async def backup(self, target: Path) -> int:
        """Copy the store, while it is in use, to a new file; bytes written."""
        return await self._run(backup, self._db, target)


def _where(conditions: dict[str, Any]) -> tuple[str, list[Any]]:
    """A WHERE over those conditions whose value is asked for, so that an index can serve it."""
    asked = {condition: value for condition, value in conditions.items() if value is not None}
    return (" WHERE " + " AND ".join(asked) if asked else ""), list(asked.values())
