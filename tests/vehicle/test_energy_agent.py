"""The ledger of a real car: an engine that works, a counter that counts, a journal that is read."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from agent_rig import Garage, until
from scripted_dispatcher import row, unit_offer

from edge_runtime.contract.package import Package
from edge_runtime.vehicle.core.energy_rows import PowerMethod
from edge_runtime.vehicle.energy.counters import PowerMeter
from edge_runtime.vehicle.energy.report import read_summary

Make = Callable[[str], Package]
WATTS = 100.0


@contextlib.asynccontextmanager
async def running_counter(root: Path) -> AsyncIterator[None]:
    """A RAPL zone in files, at a steady power."""
    zone = root / "sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text("262143328850\n")
    energy, fresh = zone / "energy_uj", zone / "fresh"
    began_s = time.monotonic()

    def count() -> None:
        fresh.write_text(f"{int((time.monotonic() - began_s) * WATTS * 1e6)}\n")
        fresh.replace(energy)

    async def count_on() -> None:
        while True:
            count()
            await asyncio.sleep(0.005)

    count()
    counting = asyncio.create_task(count_on())
    try:
        yield
    finally:
        counting.cancel()


async def test_work_is_measured_written_and_read(
    garage: Garage, synthetic: Make, tmp_path: Path
) -> None:
    chain = synthetic("chain")
    async with running_counter(tmp_path / "root"):
        garage.meter = PowerMeter(tmp_path / "root")
        began_s = time.monotonic()
        async with garage.both(chain) as (agent, peer):
            ledger = agent.core.work.energy
            peer.offer(unit_offer(chain, [row(160)] * 20))
            await peer.ending()
            await until(lambda: ledger.method is PowerMethod.RAPL)
            # On a slow machine the first reading comes when the first unit is over.
            peer.offer(unit_offer(chain, [row(160)] * 20, unit=2))
            chunk = await peer.ending(unit=2)
            took_s = time.monotonic() - began_s
            assert chunk.energy_j > 0
            sent_j = sum(one.energy_j for one in peer.chunks)
            await until(lambda: agent.core.work.ledger.is_empty)
            summary = read_summary(garage.state_dir / "journal.db", time.time_ns() // 1_000_000)
        assert summary.today.items == 40
        assert summary.today.units == 2
        assert summary.today.grid_wh == summary.today.total_wh  # these sensors are plugged in
        assert summary.today.units_wh * 3600 == pytest.approx(sent_j)
        assert PowerMethod.RAPL.value in summary.today.methods
        # Up to a second of the model's 40 W, and one interval ahead: see docs/explanation/wear.md.
        assert summary.today.total_wh * 3600 <= WATTS * (took_s + 1)
    stopped = read_summary(garage.state_dir / "journal.db", time.time_ns() // 1_000_000)
    assert stopped.lifetime.total_wh >= summary.lifetime.total_wh
    assert stopped.lifetime.received_mb > 0
