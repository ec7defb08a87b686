"""The car's durable memory: attempts, the item in hand, unanswered chunks, fences, energy.

Invariants
- One file, one connection, one thread. Everything that is queued goes into one transaction
  (group commit), in order, with `synchronous=FULL`; only then is it confirmed.
- A failed transaction changes nothing and is reported whole; the core writes it again. After an
  I/O error the file is opened anew before the next try, since what the failed connection believes
  to be on disk may not be.
- An attempt is refused unless `reserve_bytes` are left, in the file's own limit and on the disk:
  the results of everything that may be held fit in what is left. An output to which a chunk refers
  is refused where less would be left after it.
- Two processes never share a journal: the second ends with `JournalHeld`, which names the first.

Deliberately absent: what any of it means; that is the core's.
"""

import contextlib
import fcntl
import os
import queue
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, assert_never

import msgspec

from edge_runtime.contract import limits
from edge_runtime.contract.errors import LocalError
from edge_runtime.contract.messages import Fence, UnitOffer
from edge_runtime.contract.reasons import HoldReason
from edge_runtime.vehicle.core.commands import (
    CheckSpace,
    DropAttempt,
    DropChunks,
    Persist,
    RewriteChunk,
    Write,
    WriteAttempt,
    WriteChunk,
    WriteEnergy,
    WriteFence,
    WriteModelEnergy,
    WriteOutput,
    WriteStarted,
)
from edge_runtime.vehicle.core.energy_rows import ROW_FIELDS, DayEnergy, ModelEnergy
from edge_runtime.vehicle.core.events import WritesCommitted, WritesFailed
from edge_runtime.vehicle.core.snapshot import (
    JournalSnapshot,
    SavedAttempt,
    SavedFence,
    SavedOutput,
)

Emit = Callable[[WritesCommitted | WritesFailed], None]

SCHEMA_VERSION: Final = 4

_SCHEMA: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value REAL NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE attempt (
    unit INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, counter INTEGER NOT NULL,
    offer BLOB NOT NULL, started INTEGER, next_seq INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE chunk (
    unit INTEGER NOT NULL, epoch INTEGER NOT NULL, counter INTEGER NOT NULL,
    seq INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (unit, epoch, counter, seq)
) STRICT;
CREATE TABLE fence (
    unit INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, counter INTEGER NOT NULL,
    until_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX fence_until ON fence (until_ms);
"""
_ENERGY_SCHEMA: Final = """
CREATE TABLE energy (
    day INTEGER PRIMARY KEY, grid_j REAL NOT NULL, pack_j REAL NOT NULL, units_j REAL NOT NULL,
    measured_j REAL NOT NULL, computing_s REAL NOT NULL, battery_hot_s REAL NOT NULL,
    compute_hot_s REAL NOT NULL, efc REAL NOT NULL, cycle_wear_percent REAL NOT NULL,
    warmth_wear_percent REAL NOT NULL, items INTEGER NOT NULL, units INTEGER NOT NULL,
    sent_bytes INTEGER NOT NULL, received_bytes INTEGER NOT NULL, methods INTEGER NOT NULL
) STRICT;
CREATE TABLE model_energy (
    digest TEXT PRIMARY KEY, joules REAL NOT NULL, items INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO energy
    SELECT CAST(day.value AS INTEGER), 0.0, joules.value, joules.value,
        0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0, 0, 0, 1
    FROM meta AS day JOIN meta AS joules
    WHERE day.name = 'energy_day' AND joules.name = 'energy_j' AND joules.value >= 0;
DELETE FROM meta WHERE name IN ('energy_day', 'energy_j');
"""
"""Version 1 knew neither source nor method: what it counted is the pack's, by stated power."""
_BEGUN_SCHEMA: Final = "ALTER TABLE energy ADD COLUMN begun INTEGER NOT NULL DEFAULT 0;"
_BEGUN_SINCE_VERSION: Final = 3
_OUTPUT_SCHEMA: Final = """
CREATE TABLE output (
    unit INTEGER NOT NULL, epoch INTEGER NOT NULL, counter INTEGER NOT NULL,
    seq INTEGER NOT NULL, sha256 TEXT NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (unit, epoch, counter, seq, sha256)
) STRICT;
"""
_MIGRATIONS: Final = (_SCHEMA, _ENERGY_SCHEMA, _BEGUN_SCHEMA, _OUTPUT_SCHEMA)
"""What leads from each version to the next."""
_PRAGMAS: Final = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "busy_timeout=2000",
    "wal_autocheckpoint=1000",
    "journal_size_limit=8388608",
    "mmap_size=0",
    "trusted_schema=OFF",
    "cell_size_check=ON",
    "secure_delete=ON",
    "cache_size=-1024",
)
_FULL_SYNC: Final = 2
_FULL_CODES: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_TOOBIG})
_PASSING_CODES: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_PRIMARY_CODE_MASK: Final = 0xFF

_encode: Final = msgspec.msgpack.Encoder().encode
_offers: Final = msgspec.msgpack.Decoder(UnitOffer)


class JournalError(LocalError):
    """The journal cannot be used; the message says which file and why."""


class JournalHeld(JournalError):  # noqa: N818 - named for what it is
    """Another process has the journal; `holder` is what it wrote about itself."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"the journal {path} is held by process {holder or 'unknown'}")
        self.path = path
        self.holder = holder


class _Stop:
    """The last thing in the queue."""


class Journal:
    """The production journal. Open, `load` once, `start`, `persist` …, `close`.

    `max_bytes` bounds the file; None leaves that to the disk.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int | None = limits.JOURNAL_MAX_BYTES,
        reserve_bytes: int = limits.JOURNAL_RESERVE_BYTES,
    ) -> None:
        self.path = path
        self.commits = 0
        self._max_bytes = max_bytes
        self._reserve_bytes = reserve_bytes
        self._queue: queue.SimpleQueue[Persist | _Stop] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock_fd = _lock(path)
        try:
            self._connection = self._open()
        except BaseException:
            os.close(self._lock_fd)
            raise

    def load(self, utc_s: int) -> JournalSnapshot:
        """Return what was kept, under a new boot number: max(stored + 1, UTC seconds).

        Raises `JournalError`. What does not decode is left out and dropped.
        """
        connection = self._connection
        try:
            meta = dict(connection.execute("SELECT name, value FROM meta").fetchall())
            boot = max(int(meta.get("boot", 0)) + 1, utc_s)
            connection.execute("BEGIN IMMEDIATE")
            _put_meta(connection, "boot", boot)
            connection.execute("DELETE FROM fence WHERE until_ms <= ?", (utc_s * 1000,))
            connection.execute("COMMIT")
            return JournalSnapshot(
                boot=boot,
                attempts=tuple(_attempts(connection)),
                chunks=tuple(
                    body
                    for (body,) in connection.execute(
                        "SELECT body FROM chunk ORDER BY unit, epoch, counter, seq"
                    )
                ),
                fences=tuple(
                    SavedFence(unit, Fence(epoch, counter), until_ms)
                    for unit, epoch, counter, until_ms in connection.execute(
                        "SELECT unit, epoch, counter, until_ms FROM fence"
                        " ORDER BY until_ms DESC LIMIT ?",
                        (limits.FENCES_REMEMBERED_MAX,),
                    )
                ),
                energy=energy_rows(connection),
                model_energy=tuple(
                    ModelEnergy(*row)
                    for row in connection.execute("SELECT digest, joules, items FROM model_energy")
                ),
                outputs=tuple(
                    SavedOutput(unit, Fence(epoch, counter), seq, sha256)
                    for unit, epoch, counter, seq, sha256 in connection.execute(
                        "SELECT unit, epoch, counter, seq, sha256 FROM output"
                    )
                ),
            )
        except sqlite3.Error as error:
            raise JournalError(f"the journal {self.path} cannot be read: {error}") from error

    def output(self, unit: int, fence: Fence, seq: int, sha256: str) -> bytes | None:
        """An output that was written; None where it is not here any more.

        Reads the file beside the thread that writes it. Raises `JournalError`.
        """
        try:
            with journal_to_read(self.path) as connection:
                row = connection.execute(
                    "SELECT body FROM output WHERE unit = ? AND epoch = ? AND counter = ?"
                    " AND seq = ? AND sha256 = ?",
                    (unit, *fence, seq, sha256),
                ).fetchone()
        except sqlite3.Error as error:
            raise JournalError(f"the journal {self.path} cannot be read: {error}") from error
        return None if row is None else bytes(row[0])

    def start(self, emit: Emit) -> None:
        """Begin to commit; `emit` is called from the journal's thread."""
        self._thread = threading.Thread(
            target=self._commit_all, args=(emit,), name="journal", daemon=True
        )
        self._thread.start()

    def persist(self, writes: Persist) -> None:
        """Queue writes for the next commit; ends as `WritesCommitted` or `WritesFailed`."""
        self._queue.put(writes)

    def close(self) -> None:
        """Commit what is queued and let go of the file."""
        if self._thread is not None:
            self._queue.put(_Stop())
            self._thread.join()
            self._thread = None
        if self._lock_fd >= 0:
            self._connection.close()
            os.close(self._lock_fd)
            self._lock_fd = -1

    # --- the thread --------------------------------------------------------------------------

    def _commit_all(self, emit: Emit) -> None:
        is_open = True
        while is_open:
            batch, is_open = self._gather()
            if batch:
                emit(self._commit(batch))

    def _gather(self) -> tuple[list[tuple[int, Write]], bool]:
        """(everything that is queued, whether to go on); waits for something to be."""
        batch: list[tuple[int, Write]] = []
        is_lazy = True
        deadline_s = 0.0
        while True:
            try:
                if not batch:
                    taken = self._queue.get()
                    deadline_s = time.monotonic() + limits.JOURNAL_LAZY_MS / 1000
                elif is_lazy:
                    taken = self._queue.get(timeout=max(0.0, deadline_s - time.monotonic()))
                else:
                    taken = self._queue.get_nowait()
            except queue.Empty:
                return batch, True
            if isinstance(taken, _Stop):
                return batch, False
            batch.extend(enumerate(taken.writes, taken.first))
            is_lazy = is_lazy and all(isinstance(write, WriteStarted) for write in taken.writes)

    def _commit(self, batch: list[tuple[int, Write]]) -> WritesCommitted | WritesFailed:
        through = batch[-1][0]
        refused: list[int] = []
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            has_room = self._has_room() if _asks_for_room(batch) else True
            overtaken = _overtaken_starts(batch)
            for number, write in batch:
                if number in overtaken:
                    continue
                if self._lacks_room(write, has_room=has_room):
                    refused.append(number)
                else:
                    self._apply(write)
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            return WritesFailed(through, self._recover(error))
        self.commits += 1
        return WritesCommitted(through, tuple(refused))

    def _recover(self, error: sqlite3.Error) -> HoldReason:
        """Undo the transaction; say what the matter is."""
        code = getattr(error, "sqlite_errorcode", 0) & _PRIMARY_CODE_MASK
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if code not in _FULL_CODES | _PASSING_CODES:
                self._reopen()
        except (sqlite3.Error, JournalError):
            # Still broken: the next commit fails too, and comes here again.
            return HoldReason.STORAGE_ERROR
        return HoldReason.STORAGE_FULL if code in _FULL_CODES else HoldReason.STORAGE_ERROR

    def _reopen(self) -> None:
        fresh = self._open()
        self._connection.close()
        self._connection = fresh

    def _lacks_room(self, write: Write, *, has_room: bool) -> bool:
        if isinstance(write, WriteOutput):
            return not self._has_room(len(write.body))
        return isinstance(write, WriteAttempt | CheckSpace) and not has_room

    def _has_room(self, more_bytes: int = 0) -> bool:
        need_bytes = self._reserve_bytes + more_bytes
        if shutil.disk_usage(self.path.parent).free < need_bytes:
            return False
        if self._max_bytes is None:
            return True
        pages, free, size = (
            self._connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return bool((pages - free) * size + need_bytes <= self._max_bytes)

    def _apply(self, write: Write) -> None:
        execute = self._connection.execute
        match write:
            case WriteAttempt(offer=offer):
                execute(_PUT_ATTEMPT, (offer.unit, *offer.fence, _encode(offer)))
            case WriteStarted(unit=unit, index=index):
                execute("UPDATE attempt SET started = ? WHERE unit = ?", (index, unit))
            case WriteChunk() | WriteOutput() | RewriteChunk() | DropChunks():
                self._apply_to_chunks(write)
            case DropAttempt(unit=unit, fence=fence):
                execute(_DELETE_ATTEMPT, (unit, *fence))
            case WriteFence(unit=unit, fence=fence, until_ms=until_ms):
                execute(
                    "INSERT OR REPLACE INTO fence VALUES (?, ?, ?, ?)", (unit, *fence, until_ms)
                )
                execute(_FORGET_FENCES, (limits.FENCES_REMEMBERED_MAX,))
            case WriteEnergy(row=row, drops=drops):
                execute(_PUT_ENERGY, msgspec.structs.astuple(row))
                for day in drops:
                    execute("DELETE FROM energy WHERE day = ?", (day,))
            case WriteModelEnergy(model=model) if model.items > 0:
                execute(
                    "INSERT OR REPLACE INTO model_energy VALUES (?, ?, ?)",
                    (model.digest, model.joules, model.items),
                )
            case WriteModelEnergy(model=model):
                execute("DELETE FROM model_energy WHERE digest = ?", (model.digest,))
            case CheckSpace():
                pass
            case _:
                assert_never(write)

    def _apply_to_chunks(self, write: WriteChunk | WriteOutput | RewriteChunk | DropChunks) -> None:
        execute = self._connection.execute
        match write:
            case WriteChunk(unit=unit, fence=fence, seq=seq, body=body, ends=ends):
                execute(
                    "INSERT OR REPLACE INTO chunk VALUES (?, ?, ?, ?, ?)",
                    (unit, *fence, seq, body),
                )
                key = (unit, *fence)
                if ends:
                    execute(_DELETE_ATTEMPT, key)
                else:
                    execute(
                        "UPDATE attempt SET next_seq = ?"
                        " WHERE unit = ? AND epoch = ? AND counter = ?",
                        (seq + 1, *key),
                    )
            case WriteOutput(unit=unit, fence=fence, seq=seq, sha256=sha256, body=body):
                execute(
                    "INSERT OR REPLACE INTO output VALUES (?, ?, ?, ?, ?, ?)",
                    (unit, *fence, seq, sha256, body),
                )
            case RewriteChunk(unit=unit, fence=fence, seq=seq, body=body):
                execute(_REWRITE_CHUNK, (body, unit, *fence, seq))
            case DropChunks(unit=unit, fence=fence, first_seq=first_seq, through_seq=through_seq):
                for table in ("chunk", "output"):
                    execute(
                        f"DELETE FROM {table} WHERE unit = ? AND epoch = ? AND counter = ?"  # noqa: S608 - constant names
                        " AND seq BETWEEN ? AND ?",
                        (unit, *fence, first_seq, through_seq),
                    )

    # --- the file ----------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                self.path, isolation_level=None, check_same_thread=False, cached_statements=32
            )
            for pragma in _PRAGMAS:
                connection.execute(f"PRAGMA {pragma}").fetchall()
            if connection.execute("PRAGMA synchronous").fetchone()[0] != _FULL_SYNC:
                raise JournalError(f"the journal {self.path} does not sync its commits")
            self._migrate(connection)
            if self._max_bytes is not None:
                size = connection.execute("PRAGMA page_size").fetchone()[0]
                connection.execute(f"PRAGMA max_page_count={self._max_bytes // size}").fetchall()
        except sqlite3.Error as error:
            raise JournalError(f"the journal {self.path} cannot be opened: {error}") from error
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise JournalError(
                f"the journal {self.path} is of version {version};"
                f" this program reads up to {SCHEMA_VERSION}"
            )
        if version < SCHEMA_VERSION:
            steps = "".join(_MIGRATIONS[version:])
            connection.executescript(
                f"BEGIN IMMEDIATE;{steps}PRAGMA user_version={SCHEMA_VERSION};COMMIT;"
            )


_PUT_ATTEMPT: Final = """
INSERT INTO attempt (unit, epoch, counter, offer) VALUES (?, ?, ?, ?)
ON CONFLICT (unit) DO UPDATE SET
    epoch = excluded.epoch, counter = excluded.counter, offer = excluded.offer, next_seq = 0
"""
"""A newer fence keeps the item that was started: the run goes on under it."""
_FORGET_FENCES: Final = """
DELETE FROM fence WHERE until_ms <
    (SELECT until_ms FROM fence ORDER BY until_ms DESC LIMIT 1 OFFSET ?)
"""
_PUT_ENERGY: Final = (
    f"INSERT INTO energy ({', '.join(ROW_FIELDS)}) VALUES ({', '.join('?' * len(ROW_FIELDS))})"  # noqa: S608 - fields of a struct
    " ON CONFLICT (day) DO UPDATE SET "
    + ", ".join(
        f"{name} = {name} | excluded.{name}"
        if name == "methods"
        else f"{name} = MAX({name}, excluded.{name})"
        for name in ROW_FIELDS[1:]
    )
)
"""Whatever order writes come in, the newest numbers win: they only grow."""
_REWRITE_CHUNK: Final = (
    "UPDATE chunk SET body = ? WHERE unit = ? AND epoch = ? AND counter = ? AND seq = ?"
)
_DELETE_ATTEMPT: Final = "DELETE FROM attempt WHERE unit = ? AND epoch = ? AND counter = ?"


def _overtaken_starts(batch: list[tuple[int, Write]]) -> set[int]:
    """Starts that this very commit makes untrue, since a later item of the unit starts in it."""
    overtaken: set[int] = set()
    last: dict[int, int] = {}
    for number, write in batch:
        if isinstance(write, WriteStarted):
            if write.unit in last:
                overtaken.add(last[write.unit])
            last[write.unit] = number
    return overtaken


def _asks_for_room(batch: Iterable[tuple[int, Write]]) -> bool:
    return any(isinstance(write, WriteAttempt | CheckSpace) for _, write in batch)


def _put_meta(connection: sqlite3.Connection, name: str, value: float) -> None:
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))


def energy_rows(connection: sqlite3.Connection) -> tuple[DayEnergy, ...]:
    """The energy ledger's rows, of this version or the last; one that is impossible is left out."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    fields = ROW_FIELDS if version >= _BEGUN_SINCE_VERSION else ROW_FIELDS[:-1]
    rows = connection.execute(f"SELECT {', '.join(fields)} FROM energy ORDER BY day")  # noqa: S608 - fields of a struct
    days = (DayEnergy(*row) for row in rows)
    return tuple(day for day in days if day.is_possible)


@contextlib.contextmanager
def journal_to_read(path: Path) -> Iterator[sqlite3.Connection]:
    """A journal, for reading beside whoever has it; leaves no file behind. Raises `sqlite3.Error`.

    SQLite makes files beside a journal to read it. Where there are none nobody has it open, and
    nothing in it waits to be folded in: it may be read as if it could not change.
    """
    is_open = path.with_name(path.name + "-wal").exists()
    how = "mode=ro" if is_open else "mode=ro&immutable=1"
    uri = f"{path.absolute().as_uri()}?{how}"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=2.0)) as connection:
        yield connection


def _attempts(connection: sqlite3.Connection) -> Iterable[SavedAttempt]:
    rows = connection.execute("SELECT offer, started, next_seq FROM attempt ORDER BY unit")
    for offer, started, next_seq in rows:
        try:
            yield SavedAttempt(_offers.decode(offer), started, next_seq)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue


def _lock(path: Path) -> int:
    """Take the journal for this process. Raises `JournalHeld`."""
    lock_path = path.with_name(path.name + ".lock")
    fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(fd, limits.TEXT_MAX_CHARS).decode(errors="replace").strip()
        os.close(fd)
        raise JournalHeld(path, holder) from None
    os.ftruncate(fd, 0)
    os.write(fd, f"{os.getpid()}\n".encode())
    return fd
