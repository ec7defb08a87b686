"""What a car writes to its flash: idle for a day, and a day with eight hours of work.

A real `edge-runtime vehicle` with its journal on this machine's disk. Bytes are `write_bytes` of
/proc/PID/io over the car's processes: pages that they made the kernel write, the journal's log and
database among them; what the file system adds of its own (its own journal, the flash's erase
blocks) is not in it. Log lines are not in it either: under systemd they are journald's, whose
budget is `SystemMaxUse=`.

A car without work writes the day's row of its ledger once in `ENERGY_IDLE_WRITE_MS`. Nobody waits
an hour for that: it is the write of the same row that follows work, as measured, as often as a day
has it.
"""

import asyncio
import time
from pathlib import Path
from typing import Final

import psutil
from _rig import SYNTHETIC, TENANT, Load, Process, Rig, figure, say, tensor_item

from edge_runtime.client import EdgeClient
from edge_runtime.contract import limits
from edge_runtime.contract.http import ItemInput
from edge_runtime.vehicle.models.importers.synthetic import MLP_WIDTH

SETTLE_S: Final = 5.0
LAST_ROW_S: Final = limits.ENERGY_WRITE_MS / 1000 + 10.0
WATCH_S: Final = 120.0
WORK_ITEMS: Final = 3_000
DAY_S: Final = 24 * 3600
WORK_DAY_S: Final = 8 * 3600
QUIET: Final = ("--log-level=error",)


def written(car: Process) -> int:
    """Bytes that the car's processes have had written so far."""
    process = psutil.Process(car.pid)
    total = 0
    for pid in (process.pid, *(child.pid for child in process.children(recursive=True))):
        for line in Path(f"/proc/{pid}/io").read_text().splitlines():
            if line.startswith("write_bytes:"):
                total += int(line.split()[1])
    return total


async def work(url: str) -> int:
    """Run one job of 5 ms items; how many ended well."""
    item = ItemInput(
        media_type="application/x-msgpack",
        data=tensor_item(*([0.5] * MLP_WIDTH), shape=(1, MLP_WIDTH)),
    )
    async with EdgeClient(url, TENANT) as client:
        results = [result async for result in client.submit("mlp5ms", [item] * WORK_ITEMS)]
    return sum(result.ok for result in results)


def main() -> None:
    """Measure and print."""
    with Rig() as rig:
        rig.start_broker()
        rig.start_dispatcher(SYNTHETIC)
        car = rig.start_car(options=QUIET)
        rig.await_ready_car()
        asyncio.run(work(rig.url))  # the model is fetched and loaded
        time.sleep(SETTLE_S)
        before = written(car)
        time.sleep(LAST_ROW_S)
        row_bytes = written(car) - before
        before = written(car)
        time.sleep(WATCH_S)
        idle_bytes = written(car) - before
        rows_per_day = DAY_S / (limits.ENERGY_IDLE_WRITE_MS / 1000)
        idle_per_day_mb = (idle_bytes * DAY_S / WATCH_S + row_bytes * rows_per_day) / 1e6
        before, started_s = written(car), time.monotonic()
        with Load() as load:
            done = asyncio.run(work(rig.url))
        elapsed_s = time.monotonic() - started_s
        per_item = (written(car) - before) / done
        car.check()
    say(f"flash_writes: {done} items in {elapsed_s:.0f} s, {per_item:.0f} bytes an item")
    shared = f"2 cores: {rig.broker_kind}, dispatcher, one car"
    figure(
        "idle_flash_mb_per_day",
        idle_per_day_mb,
        "MB",
        "<= 4",
        shared=shared,
        digits=2,
        bytes_of_a_row=row_bytes,
        other_bytes=idle_bytes,
    )
    figure(
        "working_flash_gb_per_day",
        per_item * done * WORK_DAY_S / elapsed_s / 1e9,
        "GB in 8 h of 5 ms items",
        "<= 30",
        shared=shared,
        digits=2,
        bytes_per_item=round(per_item),
        items_per_s=round(done / elapsed_s, 1),
        **load.facts(),
    )


if __name__ == "__main__":
    main()
