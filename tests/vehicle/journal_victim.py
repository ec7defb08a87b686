"""A process that writes to a journal until it is killed; prints what was confirmed."""

import itertools
import sys
import threading
from pathlib import Path

from car_bench import offer

from edge_runtime.contract.messages import Fence
from edge_runtime.vehicle.core import commands as c
from edge_runtime.vehicle.core.energy_rows import DayEnergy
from edge_runtime.vehicle.core.events import WritesCommitted, WritesFailed
from edge_runtime.vehicle.journal import Journal

MOST_AHEAD = 100
"""Writes that may wait for their confirmation, as the core's are bounded."""


def writes_of(unit: int) -> list[c.Write]:
    """What one unit writes in its life; one in three is still open at the end."""
    fence = Fence(1, unit)
    life: list[c.Write] = [
        c.WriteAttempt(offer(unit, counter=unit, data=b"x" * 500)),
        c.WriteStarted(unit, 0),
        c.WriteOutput(unit, fence, 0, f"{unit:064x}", b"o" * 3_000),
        c.WriteChunk(unit, fence, 0, b"a" * 300, ends=False),
        c.WriteStarted(unit, 1),
        c.WriteEnergy(DayEnergy(1, pack_j=float(unit))),
    ]
    if unit % 3:
        life.append(c.WriteChunk(unit, fence, 1, b"b" * 300, ends=True))
    if unit % 3 == 1:
        life.append(c.DropChunks(unit, fence, 1))
    return life


def all_writes() -> "itertools.chain[c.Write]":
    return itertools.chain.from_iterable(writes_of(unit) for unit in itertools.count(1))


def main() -> None:
    journal = Journal(Path(sys.argv[1]), reserve_bytes=0)
    journal.load(0)

    confirmed = [0]
    turn = threading.Event()

    def confirm(event: WritesCommitted | WritesFailed) -> None:
        sys.stdout.write(f"{event.through}\n")
        sys.stdout.flush()
        confirmed.append(event.through)
        turn.set()

    journal.start(confirm)
    number = 1
    writes = all_writes()
    for size in itertools.cycle((1, 7, 3, 40, 2)):
        batch = tuple(itertools.islice(writes, size))
        journal.persist(c.Persist(number, batch))
        number += size
        while number - confirmed[-1] > MOST_AHEAD:
            turn.wait()
            turn.clear()


if __name__ == "__main__":
    main()
