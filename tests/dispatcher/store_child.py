"""A process that commits jobs and results until it is killed, and says what returned.

Run as `store_child.py STORE HOLD`: with HOLD "1" it opens the store, says so and waits.
"""

import asyncio
import sys
from pathlib import Path

from store_rig import add_job

from edge_runtime.contract.messages import Fence
from edge_runtime.contract.reasons import JobState
from edge_runtime.dispatcher.core import commands as c
from edge_runtime.dispatcher.storage import SqliteStore


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def ticks(no: int, epoch: int) -> list[list[c.StoreCommand]]:
    """The life of a job of three items, tick by tick."""
    job = f"job{no}"
    fence = Fence(epoch, no)

    def result(cursor: int) -> c.AddResult:
        return c.AddResult(
            job_no=no,
            job=job,
            tenant="tenant",
            cursor=cursor,
            index=cursor - 1,
            at_ms=cursor,
            vehicle="car",
            output=b"\x01",
            error=None,
        )

    def update(done: int) -> c.UpdateJob:
        return c.UpdateJob(
            no=no,
            state=JobState.DONE if done == 3 else JobState.RUNNING,
            done=done,
            failed=0,
            cursor=done,
            deadline_ms=1,
            finished_ms=5 if done == 3 else None,
        )

    begin = c.BeginAttempt(
        job_no=no, unit=no, fence=fence, vehicle="car", issued=(0, 1, 2), alone=False, offered_ms=1
    )
    return [
        [add_job(no, job, 3, size=2_000), update(0), begin],
        [result(1), update(1)],
        [result(2), result(3), update(3)],
    ]


async def main(path: Path, *, hold: bool) -> None:
    store = SqliteStore(path, holder="the child")
    found = await store.open(1_000)
    say("open")
    if hold:
        await asyncio.to_thread(sys.stdin.read)
        return
    no = found.next_job_no
    while True:
        for tick, commands in enumerate(ticks(no, found.epoch)):
            await store.commit(commands)
            say(f"{no} {tick}")
        no += 1


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), hold=sys.argv[2] == "1"))
