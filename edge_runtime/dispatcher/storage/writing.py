"""Store commands as SQL, one statement for all commands of a kind."""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from edge_runtime.contract.reasons import JobState
from edge_runtime.dispatcher.core.commands import (
    AddJob,
    AddResult,
    AddStrike,
    BeginAttempt,
    BookWork,
    EndAttempt,
    FailRemaining,
    PutQuarantine,
    PutVehicle,
    StoreCommand,
    UpdateJob,
    WithdrawFailures,
)
from edge_runtime.dispatcher.storage.recovery import keep_newest
from edge_runtime.dispatcher.storage.rows import ITEM_SPAN, enum_value
from edge_runtime.dispatcher.storage.schema import ITEM_BITS
from edge_runtime.dispatcher.storage.totals import book

_pack = msgspec.msgpack.Encoder().encode
_NIL = b"\xc0"
"""Beside a reference: a result has an output or an error, says the schema."""


def write(db: sqlite3.Connection, commands: Sequence[StoreCommand], position: int) -> int:
    """Apply a tick's commands inside the caller's transaction; the newest feed position.

    Commands are grouped by kind; the order of the kinds is the order of dependence.
    """
    groups: dict[type[Any], list[Any]] = {}
    for command in commands:
        groups.setdefault(type(command), []).append(command)
    for kind, apply in _BEFORE_RESULTS.items():
        if kind in groups:
            apply(db, groups[kind])
    position = add_results(db, groups.get(AddResult, []), position)
    position = fail_remaining(db, groups.get(FailRemaining, []), position)
    for kind, apply in _AFTER_RESULTS.items():
        if kind in groups:
            apply(db, groups[kind])
    return position


def _add_jobs(db: sqlite3.Connection, commands: list[AddJob]) -> None:
    db.executemany(
        "INSERT INTO job(no, id, tenant, key, body_hash, spec, state, items, deadline_ms,"
        " retention_ms, bytes) VALUES (?,?,?,?,?,?,?,?,?,?,?)",
        [
            (
                c.no,
                c.spec.id,
                c.spec.tenant,
                c.spec.idempotency_key,
                c.spec.body_hash,
                _pack(c.spec),
                JobState.ACCEPTED.value,
                c.spec.items,
                c.spec.deadline_ms,
                c.spec.retention_ms,
                sum(len(item.data) for item in c.items),
            )
            for c in commands
        ],
    )
    db.executemany(
        "INSERT INTO item(key, media_type, data, reference) VALUES (?,?,?,?)",
        (
            (
                (c.no << ITEM_BITS) | item.index,
                item.media_type,
                item.data,
                _pack(item.ref) if item.ref is not None else None,
            )
            for c in commands
            for item in c.items
        ),
    )


def add_results(db: sqlite3.Connection, commands: list[AddResult], position: int) -> int:
    """Write results at the positions after `position`; the newest position."""
    if not commands:
        return position
    start = position + 1
    db.executemany(
        "INSERT INTO result(position, item, job_no, tenant, cursor, at_ms, vehicle, output,"
        " error, reference) VALUES (?,?,?,?,?,?,?,?,?,?)",
        [
            (
                place,
                (c.job_no << ITEM_BITS) | c.index,
                c.job_no,
                c.tenant,
                c.cursor,
                c.at_ms,
                c.vehicle,
                _NIL if c.ref is not None else c.output,
                _pack(c.error) if c.error is not None else None,
                _pack(c.ref) if c.ref is not None else None,
            )
            for place, c in enumerate(commands, start)
        ],
    )
    return position + len(commands)


def fail_remaining(db: sqlite3.Connection, commands: list[FailRemaining], position: int) -> int:
    """Fail every open item of the jobs; the newest position."""
    for c in commands:
        first = c.job_no << ITEM_BITS
        changed = db.execute(
            "INSERT INTO result(position, item, job_no, tenant, cursor, at_ms, vehicle, error)"
            " SELECT ? + row_number() OVER (ORDER BY i.key), i.key, ?, ?,"
            " ? + row_number() OVER (ORDER BY i.key), ?, '', ?"
            " FROM item i WHERE i.key >= ? AND i.key < ?"
            " AND NOT EXISTS (SELECT 1 FROM result r WHERE r.item = i.key)",
            (
                position,
                c.job_no,
                c.tenant,
                c.after_cursor,
                c.at_ms,
                _pack(c.error),
                first,
                first + ITEM_SPAN,
            ),
        ).rowcount
        position += changed
    return position


def _withdraw(db: sqlite3.Connection, commands: list[WithdrawFailures]) -> None:
    keep_newest(db, "position")
    for c in commands:
        keys = [((c.job_no << ITEM_BITS) | index,) for index in c.items]
        db.executemany("DELETE FROM result WHERE item = ? AND error IS NOT NULL", keys)
        db.executemany(
            "DELETE FROM strike WHERE job_no = ? AND item_index = ?",
            [(c.job_no, index) for index in c.items],
        )


def _begin(db: sqlite3.Connection, commands: list[BeginAttempt]) -> None:
    db.executemany(
        "INSERT INTO attempt(unit, epoch, counter, job_no, vehicle, issued, alone, offered_ms)"
        " VALUES (?,?,?,?,?,?,?,?)",
        [
            (c.unit, *c.fence, c.job_no, c.vehicle, _pack(c.issued), c.alone, c.offered_ms)
            for c in commands
        ],
    )


def _end(db: sqlite3.Connection, commands: list[EndAttempt]) -> None:
    db.executemany(
        "UPDATE attempt SET taken_ms=?, ended_ms=?, ending=?, items_done=?, busy_ms=?,"
        " energy_j=?, outcome=?, release_reason=?, hold=?, stop_tier=?, stop_latency_ms=?"
        " WHERE unit=? AND epoch=? AND counter=?",
        [
            (
                c.taken_ms,
                c.ended_ms,
                c.end.value,
                c.items_done,
                c.busy_ms,
                c.energy_j,
                enum_value(c.outcome),
                enum_value(c.release_reason),
                enum_value(c.hold),
                enum_value(c.stop_tier),
                c.stop_latency_ms,
                c.unit,
                *c.fence,
            )
            for c in commands
        ],
    )


def _strike(db: sqlite3.Connection, commands: list[AddStrike]) -> None:
    db.executemany(
        "INSERT INTO strike(job_no, item_index, vehicle) VALUES (?,?,?)",
        [(c.job_no, c.index, c.vehicle) for c in commands],
    )


def _update_jobs(db: sqlite3.Connection, commands: list[UpdateJob]) -> None:
    db.executemany(
        "UPDATE job SET state=?, done=?, failed=?, cursor=?, deadline_ms=?, finished_ms=?"
        " WHERE no=?",
        [
            (c.state.value, c.done, c.failed, c.cursor, c.deadline_ms, c.finished_ms, c.no)
            for c in commands
        ],
    )


def _put_vehicles(db: sqlite3.Connection, commands: list[PutVehicle]) -> None:
    db.executemany(
        "INSERT OR REPLACE INTO vehicle(id, birth) VALUES (?,?)",
        [(c.birth.vehicle, _pack(c.birth)) for c in commands],
    )


def _put_quarantine(db: sqlite3.Connection, commands: list[PutQuarantine]) -> None:
    for c in commands:
        if c.on:
            db.execute("INSERT OR IGNORE INTO quarantine VALUES (?)", (c.vehicle,))
        else:
            db.execute("DELETE FROM quarantine WHERE vehicle=?", (c.vehicle,))


_Writer = Callable[[sqlite3.Connection, list[Any]], None]

_BEFORE_RESULTS: dict[type[Any], _Writer] = {
    AddJob: _add_jobs,
    WithdrawFailures: _withdraw,
    BeginAttempt: _begin,
    AddStrike: _strike,
}
_AFTER_RESULTS: dict[type[Any], _Writer] = {
    EndAttempt: _end,
    BookWork: book,
    UpdateJob: _update_jobs,
    PutVehicle: _put_vehicles,
    PutQuarantine: _put_quarantine,
}
