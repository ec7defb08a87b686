"""Small durable documents beside jobs: accounts, quotas, uploaded files, batches.

A record is found by (kind, id); its body is MessagePack that only its owner reads. Records that
are put together are durable together. What a tenant has open is counted by the database itself
(triggers in `schema`), so that it is right after any crash.
"""

import sqlite3
from collections.abc import Sequence

from edge_runtime.contract.messages import ResultEntry
from edge_runtime.dispatcher.storage.port import OpenWork, Record
from edge_runtime.dispatcher.storage.rows import ITEM_SPAN, result_entry
from edge_runtime.dispatcher.storage.schema import ITEM_BITS

_COLUMNS = "kind, id, tenant, at_ms, is_open, bytes, body"


def put(db: sqlite3.Connection, records: Sequence[Record], drop: Sequence[tuple[str, str]]) -> None:
    """Write and drop inside the caller's transaction."""
    db.executemany(
        "INSERT OR REPLACE INTO record(kind, id, tenant, at_ms, is_open, bytes, body)"
        " VALUES (?,?,?,?,?,?,?)",
        [(r.kind, r.id, r.tenant, r.at_ms, r.is_open, r.bytes, r.body) for r in records],
    )
    db.executemany("DELETE FROM record WHERE kind=? AND id=?", drop)


def _record(row: sqlite3.Row | tuple[str, str, str, int, int, int, bytes]) -> Record:
    kind, record_id, tenant, at_ms, is_open, size, body = row
    return Record(kind, record_id, tenant, at_ms, body, bool(is_open), size)


def find(db: sqlite3.Connection, kind: str, record_id: str) -> Record | None:
    """One record."""
    row = db.execute(
        f"SELECT {_COLUMNS} FROM record WHERE kind=? AND id=?",  # noqa: S608 - constant columns
        (kind, record_id),
    ).fetchone()
    return None if row is None else _record(row)


def page(
    db: sqlite3.Connection, kind: str, tenant: str | None, limit: int, before: str | None
) -> list[Record]:
    """Records of a kind, newest first."""
    where, values = "kind=?", [kind]
    if tenant is not None:
        where, values = f"{where} AND tenant=?", [*values, tenant]
    if before is not None:
        where += " AND (at_ms, id) < (SELECT at_ms, id FROM record WHERE kind=? AND id=?)"
        values = [*values, kind, before]
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM record WHERE {where}"  # noqa: S608 - constant parts
        " ORDER BY at_ms DESC, id DESC LIMIT ?",
        (*values, limit),
    )
    return [_record(row) for row in rows]


def open_of_kind(db: sqlite3.Connection, kind: str) -> list[Record]:
    """Every open record of a kind, in order of id."""
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM record WHERE kind=? AND is_open ORDER BY id",  # noqa: S608 - constant columns
        (kind,),
    )
    return [_record(row) for row in rows]


def open_work(db: sqlite3.Connection, tenant: str) -> OpenWork:
    """What a tenant has open now."""
    row = db.execute("SELECT jobs, items, bytes FROM usage WHERE tenant=?", (tenant,)).fetchone()
    (stored,) = db.execute(
        "SELECT coalesce(sum(bytes), 0) FROM record WHERE kind IN ('file', 'object') AND tenant=?",
        (tenant,),
    ).fetchone()
    jobs, items, size = row or (0, 0, 0)
    return OpenWork(jobs, items, size, stored)


def results_by_item(db: sqlite3.Connection, job: str, after: int, limit: int) -> list[ResultEntry]:
    """A page of a job's results in order of item."""
    row = db.execute("SELECT no FROM job WHERE id=?", (job,)).fetchone()
    if row is None:
        return []
    first = row[0] << ITEM_BITS
    rows = db.execute(
        "SELECT cursor, item, at_ms, output, error, vehicle, reference FROM result"
        " WHERE item > ? AND item < ? ORDER BY item LIMIT ?",
        (first + after, first + ITEM_SPAN, limit),
    )
    return [result_entry(found) for found in rows]
