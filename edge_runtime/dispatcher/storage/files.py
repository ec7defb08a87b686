"""The store as a file: opening, locking, checking, migrating, backing up, error translation."""

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from edge_runtime.dispatcher.storage.port import StoreBusy, StoreDamaged, StoreError, StoreFull
from edge_runtime.dispatcher.storage.schema import VERSION, migrate, require_ours

_SETTINGS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    "wal_autocheckpoint=1000",
    "journal_size_limit=67108864",
    "mmap_size=0",
    "trusted_schema=OFF",
    "cell_size_check=ON",
    "cache_size=-65536",
    "temp_store=MEMORY",
)
_FULL = 2
_BACKUP_PAGES = 512
_FATAL = frozenset({sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC})


def translated(error: sqlite3.Error) -> StoreError:
    """A SQLite error as ours, by its result code."""
    code = getattr(error, "sqlite_errorcode", None)
    text = f"{error} ({getattr(error, 'sqlite_errorname', 'no code')})"
    if code in _FATAL:
        return StoreDamaged(f"an fsync failed, nothing after it can be trusted: {text}")
    match None if code is None else code & 0xFF:
        case sqlite3.SQLITE_FULL:
            return StoreFull(text)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreBusy(text)
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return StoreDamaged(text)
        case sqlite3.SQLITE_CONSTRAINT:
            # Memory and file no longer agree: trying again cannot help, starting anew does.
            return StoreDamaged(f"what was to be written contradicts the store: {text}")
        case _:
            return StoreError(text)


def connect(path: Path) -> sqlite3.Connection:
    """The one connection, with its settings read back where they matter.

    A database of another application, or of a newer release, is refused and left as it is.
    """
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
    try:
        require_ours(db)
        _apply_settings(db)
    except BaseException:
        db.close()
        raise
    return db


def _apply_settings(db: sqlite3.Connection) -> None:
    for setting in _SETTINGS:
        db.execute(f"PRAGMA {setting}")
    if db.execute("PRAGMA synchronous").fetchone()[0] != _FULL:
        raise StoreError("SQLite did not take synchronous=FULL")


def take_lock(path: Path, holder: str) -> int:
    """Hold the store for this process; raises `StoreBusy` naming who holds it."""
    lock = path.with_name(path.name + ".lock")
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        by = os.read(fd, 200).decode(errors="replace").strip() or "another process"
        os.close(fd)
        raise StoreBusy(f"the store {path} is held by {by}") from None
    os.ftruncate(fd, 0)
    os.write(fd, f"{holder} (pid {os.getpid()})\n".encode())
    return fd


def backup(db: sqlite3.Connection, target: Path) -> int:
    """Copy the store to a new file, whole and fsynced; bytes written."""
    if target.exists():
        raise StoreError(f"{target} exists; a backup never overwrites")
    partial = target.with_name(target.name + ".partial")
    partial.unlink(missing_ok=True)
    copy = sqlite3.connect(partial)
    try:
        db.backup(copy, pages=_BACKUP_PAGES, sleep=0)
    except sqlite3.Error:
        copy.close()
        partial.unlink(missing_ok=True)
        raise
    copy.close()
    for path in (partial, target.parent):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        if path == partial:
            partial.rename(target)
    return target.stat().st_size


def backup_file(path: Path, target: Path) -> int:
    """Back up a store that no dispatcher holds; bytes written."""
    with _held(path) as db:
        return backup(db, target)


def migrate_file(path: Path) -> tuple[int, int]:
    """Bring a store to this release's version; (version before, after)."""
    with _held(path) as db:
        return migrate(db)


def check_file(path: Path) -> list[str]:
    """What is wrong with a store that no dispatcher holds; empty when nothing is."""
    with _held(path) as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            return [f"version {version}; this release wants {VERSION}: run `store migrate`"]
        problems = [row[0] for row in db.execute("PRAGMA integrity_check") if row[0] != "ok"]
        for title, query in _CONSISTENCY.items():
            (count,) = db.execute(query).fetchone()
            if count:
                problems.append(f"{count} {title}")
        return problems


_CONSISTENCY = {
    "results without their item": (
        "SELECT count(*) FROM result r LEFT JOIN item i ON i.key = r.item WHERE i.key IS NULL"
    ),
    "jobs whose counts differ from their results": (
        "SELECT count(*) FROM job j WHERE j.done + j.failed <>"
        " (SELECT count(*) FROM result r WHERE r.job_no = j.no)"
    ),
    "finished jobs with items that have no end": (
        "SELECT count(*) FROM job j WHERE j.state IN ('done', 'expired')"
        " AND j.done + j.failed <> j.items"
    ),
    "items of jobs that do not exist": (
        "SELECT count(*) FROM item i"
        " WHERE NOT EXISTS (SELECT 1 FROM job j WHERE j.no = i.key >> 20)"
    ),
}


@contextlib.contextmanager
def _held(path: Path) -> Iterator[sqlite3.Connection]:
    """A store file, locked and open for an offline command."""
    if not path.is_file():
        raise StoreError(f"there is no store at {path}")
    lock = take_lock(path, "a store command")
    try:
        with contextlib.closing(connect(path)) as db:
            yield db
    except sqlite3.Error as error:
        raise translated(error) from error
    finally:
        os.close(lock)
