"""The SQLite store beside its model: every commit goes to both, every answer is compared."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from store_model import DictStore

from edge_runtime.contract.http import AttemptEnd
from edge_runtime.contract.messages import Item
from edge_runtime.dispatcher.core import commands as c
from edge_runtime.dispatcher.core import events as e
from edge_runtime.dispatcher.core.placement import Requirement
from edge_runtime.dispatcher.storage import Recovered, SqliteStore
from edge_runtime.dispatcher.storage.files import check_file


def spec(job: str, items: int = 1, **fields: Any) -> e.JobSpec:
    values: dict[str, Any] = {
        "id": job,
        "tenant": "tenant",
        "requirement": Requirement("a" * 64, "tensor"),
        "parameters": b"\x80",
        "purpose": "batch",
        "priority": 5,
        "items": items,
        "submitted_ms": 1_000,
        "deadline_ms": 1_000_000,
        "retention_ms": 5_000,
        "reference_ms": 5.0,
    }
    return e.JobSpec(**{**values, **fields})


def add_job(no: int, job: str, items: int = 1, *, size: int = 16, **fields: Any) -> c.AddJob:
    return c.AddJob(
        no=no,
        spec=spec(job, items, **fields),
        items=tuple(
            Item(index=index, media_type="x", data=bytes([index % 256]) * size)
            for index in range(items)
        ),
    )


class Twins:
    """Both stores as one; sync, with a loop of its own."""

    def __init__(self, path: Path, model: DictStore) -> None:
        self.path = path
        self.model = model
        self.sqlite: SqliteStore | None = None
        self.runner = asyncio.Runner()

    @property
    def store(self) -> SqliteStore:
        assert self.sqlite is not None
        return self.sqlite

    def run(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    def close(self) -> None:
        if self.sqlite is not None:
            self.run(self.sqlite.close())
            self.sqlite = None

    # --- for the core ---

    def recover(self, now_utc_s: int) -> Recovered:
        self.close()
        self.sqlite = SqliteStore(self.path)
        found: Recovered = self.run(self.sqlite.open(now_utc_s))
        expected = self.model.recover(now_utc_s)
        assert _sorted(found) == _sorted(expected)
        return found

    def commit(self, commands: Sequence[c.StoreCommand]) -> int:
        before: int = self.run(self.store.commit(commands))
        assert before == self.model.commit(commands)
        return before

    def load(self, commands: Sequence[c.LoadCommand]) -> list[Any]:
        found: list[Any] = self.run(self.store.load(commands))
        for event, expected in zip(found, self.model.load(commands), strict=True):
            assert _plain(event) == _plain(expected)
        return found

    def delete(self, job_id: str) -> bool:
        found: bool = self.run(self.store.delete(job_id))
        assert found == self.model.delete(job_id)
        return found

    def failed_items(
        self, job_id: str, items: Sequence[int], limit: int, new_deadline_ms: int
    ) -> e.JobRequeued | None:
        found: e.JobRequeued | None = self.run(
            self.store.failed_items(job_id, items, limit, new_deadline_ms)
        )
        assert _plain(found) == _plain(
            self.model.failed_items(job_id, items, limit, new_deadline_ms)
        )
        return found

    # --- for the tests ---

    def compare(self) -> None:
        """Everything that people can read of one is what the other has."""
        jobs = sorted(self.model.jobs.values(), key=lambda job: -job.no)
        found = self.run(self.store.jobs(None, None, 10_000, None))
        assert [status.job for status in found] == [job.spec.id for job in jobs]
        for status, job in zip(found, jobs, strict=True):
            counts = (status.state, status.done, status.failed, status.last_cursor)
            assert counts == (job.state, job.done, job.failed, job.cursor)
            assert (status.finished_ms, status.deadline_ms) == (job.finished_ms, job.deadline_ms)
            self._compare_results(job.spec.id)
        self._compare_feeds()
        self._compare_attempts()
        assert self.run(self.store.count_open()) == sum(job.is_open for job in jobs)

    def _compare_results(self, job_id: str) -> None:
        rows = sorted(self.model.job(job_id).results.values(), key=lambda row: row.cursor)
        cursor, found = 0, []
        while page := self.run(self.store.results(job_id, cursor, 3)):
            found += page
            cursor = page[-1].cursor
        assert [
            (x.cursor, x.item, x.at_ms, bytes(x.output) or None, x.error, x.vehicle) for x in found
        ] == [(r.cursor, r.index, r.at_ms, r.output, r.error, r.vehicle) for r in rows]

    def _compare_feeds(self) -> None:
        for tenant in {job.spec.tenant for job in self.model.jobs.values()}:
            expected = sorted(
                (row.position, job.spec.id, row.cursor, row.index)
                for job in self.model.jobs.values()
                if job.spec.tenant == tenant
                for row in job.results.values()
            )
            position, found = 0, []
            while page := self.run(self.store.feed(tenant, position, 7)):
                found += [(x.position, x.job, x.result.cursor, x.result.item) for x in page]
                position = page[-1].position
            assert found == expected
            assert self.run(self.store.feed_position(tenant)) == self.model.position
        failed = [
            (row.position, job.spec.id, row.index, row.error)
            for job in self.model.jobs.values()
            for row in job.results.values()
            if row.error is not None
        ]
        letters = self.run(self.store.dead_letters(None, None, 100_000))
        assert [(x.job, x.item, x.error) for x in letters] == [
            entry[1:] for entry in sorted(failed, key=lambda entry: -entry[0])
        ]

    def _compare_attempts(self) -> None:
        found = self.run(self.store.attempts(None, None, 100_000, 0))
        ended = [view.end for view in found]
        assert ended == [self._end(key) for key in self.model.attempts]
        assert [(x.unit, x.epoch, x.counter, x.vehicle, x.items) for x in found] == [
            (row.unit, *row.fence, row.vehicle, len(row.issued))
            for row in self.model.attempts.values()
        ]

    def _end(self, key: Any) -> AttemptEnd | None:
        return self.model.attempts[key].end

    def check(self) -> None:
        """The closed file has nothing wrong with it."""
        self.close()
        assert check_file(self.path) == []


def _plain(event: Any) -> Any:
    """Comparable: chunks hold raw bytes that compare by identity."""
    if isinstance(event, e.AttemptFound):
        event = msgspec.structs.replace(event, chunk=None)  # type: ignore[arg-type]
    return msgspec.to_builtins(event)


def _sorted(found: Recovered) -> Any:
    """Two recoveries are the same whatever the order of what has no order."""
    return (
        found.epoch,
        found.next_job_no,
        found.next_unit,
        sorted(birth.vehicle for birth in found.births),
        sorted(found.quarantined),
        {job.no: msgspec.to_builtins(job) for job in found.jobs},
        [job.no for job in sorted(found.jobs, key=lambda job: (job.spec.tenant, not job.in_order))],
        msgspec.to_builtins(found.attempts),
        sorted(found.tenants_with_more),
    )
