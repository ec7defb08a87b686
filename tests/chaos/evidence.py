"""Reads what a campaign left behind into a `History`: notes, database, journals, logs."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import history as h
import msgspec
from workload import digest_of, digest_of_raw, plan

from edge_runtime.contract.messages import Chunk, ResultError, UnitOffer
from edge_runtime.dispatcher.storage.files import check_file

ITEM_BITS = 20
EXPECTED_ERRORS = frozenset({"engine_died", "store_unavailable"})
"""What the nemeses themselves make the services say."""

_issued = msgspec.msgpack.Decoder(tuple[int, ...])
_error = msgspec.msgpack.Decoder(ResultError)
_chunk = msgspec.msgpack.Decoder(Chunk)
_offer = msgspec.msgpack.Decoder(UnitOffer)


def read_notes(
    path: Path, seed: int, models: Path, **shape: Any
) -> tuple[tuple[h.RequesterEvent, ...], tuple[h.Fed, ...]]:
    """The requester's history and its feed; expected answers are computed from the plans."""
    return tuple(_events(path, seed, models, **shape)), tuple(_feed(path))


def _feed(path: Path) -> Iterator[h.Fed]:
    for line in path.read_bytes().splitlines():
        if line.startswith(b'{"event": "fed"'):
            for position, job, *entry in json.loads(line)["entries"]:
                yield h.Fed(position, job, h.Entry(*entry))


def _events(path: Path, seed: int, models: Path, **shape: Any) -> Iterator[h.RequesterEvent]:
    for line in path.read_bytes().splitlines():
        match json.loads(line):
            case {"event": "intended", "number": number, "key": key}:
                yield h.Intended(key, plan(seed, number, **shape).expected(models))
            case {"event": "accepted", "key": key, "job": job}:
                yield h.Accepted(key, job)
            case {"event": "saw", "job": job, "entries": entries}:
                yield h.Saw(job, tuple(h.Entry(*entry) for entry in entries))
            case {"event": "ended", "job": job, "state": state, "last_cursor": last_cursor}:
                yield h.Ended(job, state, last_cursor)
            case {"event": "cancelling", "job": job}:
                yield h.Cancelling(job)
            case {"event": "deleting", "job": job}:
                yield h.Deleting(job)
            case {"event": "deleted", "job": job}:
                yield h.Deleted(job)
            case _:
                pass


def read_store(path: Path) -> h.Database:
    """The store of a dispatcher that has ended."""
    problems = tuple(check_file(path))
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        names = dict(db.execute("SELECT no, id FROM job"))
        orphans = [
            f"{count} rows of {table} belong to no job"
            for table in ("result", "attempt", "strike")
            if (count := _orphans(db, table))
        ]
        jobs = tuple(
            h.StoredJob(*row)
            for row in db.execute("SELECT id, key, state, items, cursor FROM job ORDER BY no")
        )
        results = tuple(
            h.StoredResult(
                names.get(no, str(no)),
                h.Entry(cursor, item & ((1 << ITEM_BITS) - 1), _digest(output, error)),
                vehicle,
                is_error=error is not None,
            )
            for no, cursor, item, output, error, vehicle in db.execute(
                "SELECT job_no, cursor, item, output, error, vehicle FROM result"
            )
        )
        attempts = tuple(
            h.Issued(
                names.get(no, str(no)),
                unit,
                h.Fence(epoch, counter),
                vehicle,
                frozenset(_issued.decode(issued)),
            )
            for no, unit, epoch, counter, vehicle, issued in db.execute(
                "SELECT job_no, unit, epoch, counter, vehicle, issued FROM attempt"
            )
        )
    return h.Database(jobs, results, attempts, (*problems, *orphans))


def _orphans(db: sqlite3.Connection, table: str) -> int:
    query = f"SELECT count(*) FROM {table} WHERE job_no NOT IN (SELECT no FROM job)"  # noqa: S608 - our own names
    return int(db.execute(query).fetchone()[0])


def _digest(output: bytes | None, error: bytes | None) -> str:
    if output is None:
        assert error is not None
        return digest_of(None, _error.decode(error))
    return digest_of_raw(output)


def read_journal(path: Path) -> tuple[h.JournalRow, ...]:
    """Attempts and chunks that a car still holds; also while it runs."""
    rows: list[h.JournalRow] = []
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as db:
        for (body,) in db.execute("SELECT body FROM chunk").fetchall():
            chunk = _chunk.decode(body)
            fence = h.Fence(chunk.fence.epoch, chunk.fence.counter)
            rows.append(h.JournalRow(chunk.job, chunk.unit, fence, f"chunk {chunk.seq}"))
        for (body,) in db.execute("SELECT offer FROM attempt").fetchall():
            offer = _offer.decode(body)
            fence = h.Fence(offer.fence.epoch, offer.fence.counter)
            rows.append(h.JournalRow(offer.job, offer.unit, fence, "attempt"))
    return tuple(rows)


def read_car_log(path: Path) -> tuple[h.CarEvent, ...]:
    """When the car held and when it computed; a new process begins without leave."""
    return tuple(_car_events(path))


def _car_events(path: Path) -> Iterator[h.CarEvent]:
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # a line that a kill cut in two
        if not isinstance(record, dict) or "timestamp" not in record:
            continue
        at_s = datetime.fromisoformat(record["timestamp"]).timestamp()
        match record:
            case {"event": "availability", "hold": str() as hold}:
                yield h.HoldBegan(at_s, hold)
            case {"event": "availability"} | {"event": "vehicle_started"}:
                yield h.HoldEnded(at_s)
            case {"event": "computes", "what": str() as what}:
                yield h.RunBegan(at_s, what)
            case _:
                pass


def odd_lines(path: Path) -> Iterator[str]:
    """Lines of a log that no fault explains: what was logged as an error, and tracebacks."""
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            if line.startswith((b"Traceback", b"edge-runtime:")):
                yield f"{path.name}: {line.decode(errors='replace')[:300]}"
            continue
        is_error = isinstance(record, dict) and record.get("level") in {"error", "critical"}
        if is_error and record.get("event") not in EXPECTED_ERRORS:
            yield f"{path.name}: {json.dumps(record)[:600]}"
