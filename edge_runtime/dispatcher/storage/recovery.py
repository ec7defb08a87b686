"""What a dispatcher starts from after a clean stop, a kill -9 or a restored backup.

Only what is live is read: cars, each tenant's first open jobs, attempts without an end. A
million open items wait where they are.
"""

import sqlite3

import msgspec

from edge_runtime.contract import limits
from edge_runtime.contract.messages import Birth, Fence
from edge_runtime.dispatcher.core.events import StoredAttempt, StoredJob
from edge_runtime.dispatcher.storage import totals
from edge_runtime.dispatcher.storage.port import Recovered, Whose
from edge_runtime.dispatcher.storage.rows import (
    issued_decoder,
    open_items,
    open_jobs,
    stored_job_by_no,
)

_birth = msgspec.msgpack.Decoder(Birth)


_NEWEST = {
    "position": "SELECT max(position) FROM result",
    "job_no": "SELECT max(no) FROM job",
    "unit": "SELECT max(unit) FROM attempt",
}


def newest(db: sqlite3.Connection, number: str) -> int:
    """The newest feed `position`, `job_no` or `unit` ever given out."""
    (in_use,) = db.execute(_NEWEST[number]).fetchone()
    kept = db.execute("SELECT value FROM meta WHERE key=?", (number,)).fetchone()
    return max(in_use or 0, kept[0] if kept else 0)


def keep_newest(db: sqlite3.Connection, *numbers: str) -> None:
    """Remember numbers before their rows go: none is ever given out twice.

    Readers resume from a position; cars remember attempts by unit.
    """
    db.executemany(
        "INSERT OR REPLACE INTO meta VALUES (?, ?)",
        [(number, newest(db, number)) for number in numbers],
    )


def recover(db: sqlite3.Connection, now_utc_s: int) -> Recovered:
    """Read what is open, under a new epoch: max(stored + 1, UTC seconds), never one used before."""
    row = db.execute("SELECT value FROM meta WHERE key='epoch'").fetchone()
    epoch = max((row[0] if row else 0) + 1, now_utc_s)
    db.execute("INSERT OR REPLACE INTO meta VALUES ('epoch', ?)", (epoch,))
    births = [_birth.decode(blob) for (blob,) in db.execute("SELECT birth FROM vehicle")]
    quarantined = [name for (name,) in db.execute("SELECT vehicle FROM quarantine")]
    jobs, more = _open_jobs(db)
    attempts = _live_attempts(db)
    known = {job.no for job in jobs}
    for no in sorted({attempt.job_no for attempt in attempts} - known):
        beyond = stored_job_by_no(db, no)
        jobs.append(msgspec.structs.replace(beyond, in_order=False))
    return Recovered(
        epoch=epoch,
        next_job_no=newest(db, "job_no") + 1,
        next_unit=newest(db, "unit") + 1,
        births=births,
        quarantined=quarantined,
        jobs=jobs,
        attempts=attempts,
        tenants_with_more=more,
        fleet_total=totals.of_name(db, Whose.FLEET, ""),
        tenant_totals=totals.of_tenants(db, limits.TOTALS_TENANTS_MAX),
    )


def _open_jobs(db: sqlite3.Connection) -> tuple[list[StoredJob], list[str]]:
    tenants = [
        tenant
        for (tenant,) in db.execute("SELECT DISTINCT tenant FROM job WHERE finished_ms IS NULL")
    ]
    share = max(limits.TENANT_WINDOW_JOBS_MIN, limits.WINDOW_JOBS_MAX // max(1, len(tenants)))
    jobs: list[StoredJob] = []
    more = []
    for tenant in tenants:
        found = open_jobs(db, tenant, 0, share)
        jobs += found
        if len(found) == share:
            more.append(tenant)
    return jobs, more


def _live_attempts(db: sqlite3.Connection) -> list[StoredAttempt]:
    rows = db.execute(
        "SELECT a.job_no, a.unit, a.epoch, a.counter, a.vehicle, a.issued, a.alone,"
        " a.offered_ms"
        " FROM attempt a INDEXED BY attempt_open JOIN job j ON j.no = a.job_no"
        " WHERE a.ended_ms IS NULL AND j.finished_ms IS NULL ORDER BY a.no"
    ).fetchall()
    attempts = []
    for job_no, unit, epoch, counter, vehicle, issued_blob, alone, offered_ms in rows:
        issued = issued_decoder.decode(issued_blob)
        attempts.append(
            StoredAttempt(
                job_no=job_no,
                unit=unit,
                fence=Fence(epoch, counter),
                vehicle=vehicle,
                items=open_items(db, job_no, issued),
                issued=issued,
                alone=bool(alone),
                offered_ms=offered_ms,
            )
        )
    return attempts
