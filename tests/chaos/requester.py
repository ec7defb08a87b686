"""A requester as a program of its own: submits, reads, keeps its cursor on disk, may be killed.

Its notes are its history and its cursor file in one: a result counts as seen when its line is
fsynced, and after a crash it goes on behind the last such line. A torn last line is cut off.
It submits until the file `finish` appears, reads every job to its end, and ends with code 0.
"""

import argparse
import asyncio
import json
import os
import random
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workload import LAST, JobPlan, digest_of, plan

from edge_runtime.client import EdgeClient
from edge_runtime.client.errors import DispatcherRefused
from edge_runtime.client.results import FeedResult
from edge_runtime.contract.messages import JobStatus

TENANT = "chaos"
FLUSH_S = 0.05
PATIENCE_S = 3_600.0
NOT_FOUND = 404


@dataclass
class Progress:
    """What the notes say of one job."""

    number: int
    job: str | None = None
    cursor: int = 0
    is_cancelling: bool = False
    has_ended: bool = False
    is_deleting: bool = False
    is_over: bool = False


class Notes:
    """Append-only JSON lines; `write` is durable after the next `flush`."""

    def __init__(self, path: Path) -> None:
        self.jobs: dict[int, Progress] = {}
        self.position = 0
        self.jobs_fed: set[str] = set()
        self._by_id: dict[str, Progress] = {}
        whole = path.read_bytes() if path.exists() else b""
        whole = whole[: whole.rfind(b"\n") + 1]
        for line in whole.splitlines():
            self._replay(json.loads(line))
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.ftruncate(self._fd, len(whole))
        self._lines: list[str] = []
        self._seen: dict[str, list[tuple[int, int, str]]] = {}
        self._fed: list[tuple[int, str, int, int, str]] = []

    def write(self, event: str, **fields: Any) -> None:
        self._move_seen()
        record = {"event": event, **fields}
        self._replay(record)
        self._lines.append(json.dumps(record))

    def saw(self, progress: Progress, cursor: int, item: int, digest: str) -> None:
        assert progress.job is not None
        self._seen.setdefault(progress.job, []).append((cursor, item, digest))
        progress.cursor = cursor

    def fed(self, result: FeedResult) -> None:
        inner = result.result
        digest = digest_of(inner.output, inner.error)
        self._fed.append((result.position, result.job, inner.cursor, inner.item, digest))
        self.position = result.position
        self.jobs_fed.add(result.job)

    def flush(self) -> None:
        self._move_seen()
        if self._lines:
            os.write(self._fd, ("\n".join(self._lines) + "\n").encode())
            os.fsync(self._fd)
            self._lines.clear()

    def _move_seen(self) -> None:
        for job, entries in self._seen.items():
            self._lines.append(json.dumps({"event": "saw", "job": job, "entries": entries}))
        self._seen.clear()
        if self._fed:
            self._lines.append(json.dumps({"event": "fed", "entries": self._fed}))
            self._fed.clear()

    def _replay(self, record: dict[str, Any]) -> None:
        match record:
            case {"event": "intended", "number": int() as number}:
                self.jobs[number] = Progress(number)
            case {"event": "accepted", "number": int() as number, "job": str() as job}:
                progress = self.jobs[number]
                progress.job = job
                self._by_id[job] = progress
            case {"event": "saw", "job": job, "entries": entries}:
                self._by_id[job].cursor = max(self._by_id[job].cursor, entries[-1][0])
            case {"event": "fed", "entries": entries}:
                self.position = max(self.position, entries[-1][0])
                self.jobs_fed.update(entry[1] for entry in entries)
            case {"event": "cancelling", "job": job}:
                self._by_id[job].is_cancelling = True
            case {"event": "ended", "job": job}:
                self._by_id[job].has_ended = True
            case {"event": "deleting", "job": job}:
                self._by_id[job].is_deleting = True
            case {"event": "over", "job": job}:
                self._by_id[job].is_over = True
            case _:
                pass


@dataclass
class Requester:
    """Keeps `open_jobs` jobs going."""

    client: EdgeClient
    notes: Notes
    options: argparse.Namespace
    running: set["asyncio.Task[None]"] = field(default_factory=set)

    def plan(self, number: int) -> JobPlan:
        return plan(
            self.options.seed,
            number,
            has_real_model=self.options.real_model,
            large_items=self.options.large_items,
        )

    async def run(self) -> None:
        self.notes.write("started", pid=os.getpid(), at=time.time())
        flusher = asyncio.create_task(self._flush_often())
        feeder = asyncio.create_task(self._follow_feed())
        for progress in [p for p in self.notes.jobs.values() if not p.is_over]:
            self._start(progress)
        finish = self.options.folder / "finish"
        while not finish.exists():
            while len(self.running) < self.options.open_jobs:
                number = len(self.notes.jobs)
                self.notes.write("intended", number=number, key=self.plan(number).key)
                self._start(self.notes.jobs[number])
            await asyncio.wait(self.running, timeout=0.2, return_when=asyncio.FIRST_COMPLETED)
            self._collect()
        while self.running:
            await asyncio.wait(self.running, return_when=asyncio.FIRST_COMPLETED)
            self._collect()
        await self._await_feed()
        for task in (flusher, feeder):
            task.cancel()
        self.notes.write("finished")
        self.notes.flush()

    def _start(self, progress: Progress) -> None:
        self.running.add(asyncio.create_task(self._follow(progress)))

    def _collect(self) -> None:
        for task in [task for task in self.running if task.done()]:
            self.running.discard(task)
            task.result()

    async def _follow_feed(self) -> None:
        """The tenant's results over all jobs, in one stream with one cursor."""
        async with aclosing(self.client.feed(self.notes.position)) as results:
            async for result in results:
                self.notes.fed(result)

    async def _await_feed(self) -> None:
        """One more job: once the feed has its result, it has everything before."""
        if LAST not in self.notes.jobs:
            self.notes.write("intended", number=LAST, key=self.plan(LAST).key)
        last = self.notes.jobs[LAST]
        if not last.is_over:
            await self._follow(last)
        while last.job not in self.notes.jobs_fed:  # noqa: ASYNC110 - the feed has no such event
            await asyncio.sleep(FLUSH_S)

    async def _flush_often(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            self.notes.flush()

    async def _follow(self, progress: Progress) -> None:
        notes, plan_ = self.notes, self.plan(progress.number)
        if progress.job is None:
            notes.flush()  # the intention is on disk before the job is anywhere
            handle = self.client.submit(
                plan_.model,
                plan_.items(),
                idempotency_key=plan_.key,
                deadline_s=plan_.deadline_s,
            )
            status = await handle
            notes.write("accepted", number=progress.number, job=status.job, key=plan_.key)
        assert progress.job is not None
        if not progress.has_ended:
            await self._read(progress, plan_)
        if plan_.is_deleted:
            notes.write("deleting", job=progress.job)
            notes.flush()
            try:
                await self.client.delete(progress.job)
            except DispatcherRefused as refused:
                if refused.problem.status != NOT_FOUND:
                    raise
            notes.write("deleted", job=progress.job)
        notes.write("over", job=progress.job)

    async def _read(self, progress: Progress, plan_: JobPlan) -> None:
        job = progress.job
        assert job is not None
        cancel_after = plan_.cancel_after
        handle = self.client.handle(job, cursor=progress.cursor)
        async with aclosing(aiter(handle)) as results:  # type: ignore[type-var]  # it is a generator
            async for result in results:
                digest = digest_of(result.output, result.error)
                self.notes.saw(progress, result.cursor, result.item, digest)
                if cancel_after is not None and result.cursor > cancel_after:
                    await self._cancel(job)
                    cancel_after = None
        status: JobStatus = await handle.status()
        self.notes.write("ended", job=job, state=status.state.value, last_cursor=status.last_cursor)

    async def _cancel(self, job: str) -> None:
        self.notes.write("cancelling", job=job)
        self.notes.flush()
        await self.client.cancel(job)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--open-jobs", type=int, required=True)
    parser.add_argument("--large-items", type=int, required=True)
    parser.add_argument("--real-model", action="store_true")
    options = parser.parse_args()
    random.seed()  # the client's jitter
    notes = Notes(options.folder / "requester.jsonl")
    async with EdgeClient(options.url, TENANT, unreachable_after_s=PATIENCE_S) as client:
        await Requester(client, notes, options).run()


if __name__ == "__main__":
    asyncio.run(main())
