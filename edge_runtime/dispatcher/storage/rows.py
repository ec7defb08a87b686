"""Rows of the SQLite store as the objects that the core and the API speak of."""

import sqlite3
from collections.abc import Sequence
from enum import Enum
from typing import Any

import msgspec

from edge_runtime.contract import limits
from edge_runtime.contract.http import AttemptEnd, AttemptView
from edge_runtime.contract.messages import (
    Item,
    JobStatus,
    OutputReference,
    Reference,
    ResultEntry,
    ResultError,
)
from edge_runtime.contract.reasons import HoldReason, JobState, Outcome, ReleaseReason, StopTier
from edge_runtime.dispatcher.core.commands import AddResult
from edge_runtime.dispatcher.core.events import JobSpec, StoredJob
from edge_runtime.dispatcher.storage.schema import ITEM_BITS

ITEM_SPAN = 1 << ITEM_BITS
JOB_COLUMNS = "no, id, tenant, spec, state, items, done, failed, cursor, deadline_ms, finished_ms"

issued_decoder = msgspec.msgpack.Decoder(tuple[int, ...])
spec_decoder = msgspec.msgpack.Decoder(JobSpec)
reference_decoder = msgspec.msgpack.Decoder(Reference)
output_reference_decoder = msgspec.msgpack.Decoder(OutputReference)
error_decoder = msgspec.msgpack.Decoder(ResultError)


def enum_value(member: Enum | None) -> str | None:
    """What is stored of an optional enum."""
    return None if member is None else str(member.value)


def job_status(row: Sequence[Any]) -> JobStatus:
    """A row of `JOB_COLUMNS`."""
    _, job, tenant, spec_blob, state, items, done, failed, cursor, deadline_ms, finished_ms = row
    spec = spec_decoder.decode(spec_blob)
    return JobStatus(
        job=job,
        tenant=tenant,
        model=spec.requirement.model,
        state=JobState(state),
        items=items,
        done=done,
        failed=failed,
        last_cursor=cursor,
        submitted_ms=spec.submitted_ms,
        deadline_ms=deadline_ms,
        finished_ms=finished_ms,
        traceparent=spec.traceparent,
    )


def result_entry(row: Sequence[Any]) -> ResultEntry:
    """A row of cursor, item key, at_ms, output, error, vehicle, reference."""
    cursor, item, at_ms, output, error, vehicle, reference = row
    if error is not None:
        return ResultEntry(
            cursor=cursor,
            item=item % ITEM_SPAN,
            at_ms=at_ms,
            error=error_decoder.decode(error),
            vehicle=vehicle,
        )
    if reference is not None:
        return ResultEntry(
            cursor=cursor,
            item=item % ITEM_SPAN,
            at_ms=at_ms,
            vehicle=vehicle,
            ref=output_reference_decoder.decode(reference),
        )
    return ResultEntry(
        cursor=cursor,
        item=item % ITEM_SPAN,
        at_ms=at_ms,
        output=msgspec.Raw(output),
        vehicle=vehicle,
    )


def committed_entry(command: AddResult) -> ResultEntry:
    """What a committed result is to its readers."""
    # An explicit empty Raw would be written as nothing at all: leave the field out instead.
    output = {} if command.output is None else {"output": msgspec.Raw(command.output)}
    return ResultEntry(
        cursor=command.cursor,
        item=command.index,
        at_ms=command.at_ms,
        error=command.error,
        vehicle=command.vehicle,
        ref=command.ref,
        **output,
    )


def attempt_view(row: Sequence[Any]) -> AttemptView:
    """An attempt, for timelines."""
    (job, unit, epoch, counter, vehicle, offered_ms, issued, taken_ms, ended_ms, ending) = row[:10]
    (outcome, release, hold, items_done, tier, latency_ms, energy_j, busy_ms) = row[10:]
    return AttemptView(
        job=job,
        unit=unit,
        epoch=epoch,
        counter=counter,
        vehicle=vehicle,
        offered_ms=offered_ms,
        items=len(issued_decoder.decode(issued)),
        taken_ms=taken_ms,
        ended_ms=ended_ms,
        end=AttemptEnd(ending) if ending else None,
        outcome=Outcome(outcome) if outcome else None,
        release_reason=ReleaseReason(release) if release else None,
        hold=HoldReason(hold) if hold else None,
        items_done=items_done,
        stop_tier=StopTier(tier) if tier else None,
        stop_latency_ms=latency_ms,
        energy_j=energy_j,
        busy_ms=busy_ms,
    )


_STORED = "SELECT no, spec, state, done, failed, cursor, deadline_ms FROM job"


def _stored(db: sqlite3.Connection, row: Sequence[Any]) -> StoredJob:
    no, spec_blob, state, done, failed, cursor, deadline_ms = row
    strikes = db.execute("SELECT item_index, vehicle FROM strike WHERE job_no=?", (no,)).fetchall()
    spec = spec_decoder.decode(spec_blob)
    if spec.deadline_ms != deadline_ms:
        spec = msgspec.structs.replace(spec, deadline_ms=deadline_ms)
    return StoredJob(
        no=no,
        spec=spec,
        state=JobState(state),
        done=done,
        failed=failed,
        cursor=cursor,
        strikes=tuple(strikes),
    )


def stored_job(db: sqlite3.Connection, job: str) -> StoredJob | None:
    """One job, open or ended, as the core takes it up."""
    row = db.execute(f"{_STORED} WHERE id=?", (job,)).fetchone()
    return None if row is None else _stored(db, row)


def stored_job_by_no(db: sqlite3.Connection, no: int) -> StoredJob:
    """One job by its number."""
    return _stored(db, db.execute(f"{_STORED} WHERE no=?", (no,)).fetchone())


def open_jobs(db: sqlite3.Connection, tenant: str, after_no: int, limit: int) -> list[StoredJob]:
    """Open jobs of a tenant in order of acceptance."""
    rows = db.execute(
        f"{_STORED} WHERE tenant=? AND no>? AND finished_ms IS NULL ORDER BY no LIMIT ?",
        (tenant, after_no, min(limit, limits.WINDOW_JOBS_MAX)),
    ).fetchall()
    return [_stored(db, row) for row in rows]


def stored_item(index: int, media_type: str, data: bytes, reference: bytes | None) -> Item:
    """A row's media_type, data and reference."""
    ref = None if reference is None else reference_decoder.decode(reference)
    return Item(index=index, media_type=media_type, data=data, ref=ref)


def open_items(db: sqlite3.Connection, job_no: int, indices: Sequence[int]) -> tuple[Item, ...]:
    """Those of the items that have no result yet, with their inputs."""
    statement = (
        "SELECT i.media_type, i.data, i.reference FROM item i WHERE i.key=?"
        " AND NOT EXISTS (SELECT 1 FROM result r WHERE r.item = i.key)"
    )
    found = []
    for index in indices:
        row = db.execute(statement, ((job_no << ITEM_BITS) | index,)).fetchone()
        if row is not None:
            found.append(stored_item(index, *row))
    return tuple(found)
