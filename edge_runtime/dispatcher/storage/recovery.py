"""What a dispatcher starts from after a clean stop, a kill -9 or a restored backup.

Only what is live is read: cars, each tenant's first open jobs, attempts without an end. A
million open items wait where they are.
"""

import sqlite3

import msgspec

from edge_runtime.contract import limits
from edge_runtime.contract.messages import Birth, Fence
from edge_runtime.dispatcher.core.events import StoredAttempt, StoredJob
from edge_runtime.dispatcher.storage.port import Recovered
from edge_runtime.dispatcher.storage.rows import (
    issued_decoder,
    open_items,
    open_jobs,
    stored_job_by_no,
)

_birth = msgspec.msgpack.Decoder(Birth)


def newest_position(db: sqlite3.Connection) -> int:
    """The newest feed position ever given out (deleted results keep theirs)."""
    (newest,) = db.execute("SELECT coalesce(max(position), 0) FROM result").fetchone()
    row = db.execute("SELECT value FROM meta WHERE key='position'").fetchone()
    return int(max(newest, row[0] if row else 0))


def recover(db: sqlite3.Connection, now_utc_s: int) -> Recovered:
    """Read what is open, under a new epoch: max(stored + 1, UTC seconds), never one used before."""
    row = db.execute("SELECT value FROM meta WHERE key='epoch'").fetchone()
    epoch = max((row[0] if row else 0) + 1, now_utc_s)
    db.execute("INSERT OR REPLACE INTO meta VALUES ('epoch', ?)", (epoch,))
    (last_job,) = db.execute("SELECT coalesce(max(no), 0) FROM job").fetchone()
    (last_unit,) = db.execute("SELECT coalesce(max(unit), 0) FROM attempt").fetchone()
    births = [_birth.decode(blob) for (blob,) in db.execute("SELECT birth FROM vehicle")]
    quarantined = [name for (name,) in db.execute("SELECT vehicle FROM quarantine")]
    jobs, more = _open_jobs(db)
    attempts = _live_attempts(db)
    known = {job.no for job in jobs}
    for no in {attempt.job_no for attempt in attempts} - known:
        jobs.append(stored_job_by_no(db, no))
    return Recovered(
        epoch=epoch,
        next_job_no=last_job + 1,
        next_unit=last_unit + 1,
        births=births,
        quarantined=quarantined,
        jobs=jobs,
        attempts=attempts,
        tenants_with_more=more,
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
        "SELECT a.job_no, a.unit, a.epoch, a.counter, a.vehicle, a.issued, a.alone"
        " FROM attempt a JOIN job j ON j.no = a.job_no"
        " WHERE a.ended_ms IS NULL AND j.finished_ms IS NULL ORDER BY a.no"
    ).fetchall()
    attempts = []
    for job_no, unit, epoch, counter, vehicle, issued_blob, alone in rows:
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
            )
        )
    return attempts
