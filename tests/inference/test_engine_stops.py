"""Freeze, thaw, cancel, kill, hang and every way to die."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine_rig import PATIENCE_S, cpu_ticks, engine_rig, row, until_cpu_grew, vector

from edge_runtime.contract.package import Package
from edge_runtime.contract.reasons import ItemError, StopTier
from edge_runtime.vehicle.core.events import (
    EngineDied,
    ItemFinished,
    ItemStarted,
    RunEnded,
    RunOutcome,
)
from edge_runtime.vehicle.inference.options import EngineOptions, WorkerOptions
from edge_runtime.vehicle.inference.process import is_at_rest

Synthetic = Callable[[str], Package]

NORMAL_CLASS = WorkerOptions(is_idle_class=False)
"""Where a test looks at time: the idle class may wait for as long as others want the core."""


async def test_a_model_without_end_fails_its_item_and_the_engine_lives(
    synthetic: Synthetic,
) -> None:
    async with engine_rig(EngineOptions(hang_ms=300, worker=NORMAL_CLASS)) as rig:
        bad_run = rig.submit(synthetic("loop-forever"), [vector(1)])
        good_run = rig.submit(synthetic("noop"), [vector(1)])
        assert (await rig.ended(bad_run)).outcome is RunOutcome.COMPLETED
        assert rig.broken(bad_run)[0].code is ItemError.ENGINE_HUNG
        assert (await rig.ended(good_run)).outcome is RunOutcome.COMPLETED
        assert not any(isinstance(event, EngineDied) for event in rig.events)


async def test_only_the_item_that_hangs_is_lost(synthetic: Synthetic) -> None:
    async with engine_rig(EngineOptions(hang_ms=300, worker=NORMAL_CLASS)) as rig:
        items = [vector(-1), vector(1), vector(-2)]
        run_id = rig.submit(synthetic("loop-when-positive"), items)
        assert (await rig.ended(run_id)).outcome is RunOutcome.COMPLETED
        assert list(rig.outputs(run_id)) == [0, 2]
        assert rig.broken(run_id)[1].code is ItemError.ENGINE_HUNG


async def test_an_item_that_cannot_be_stopped_costs_the_process(synthetic: Synthetic) -> None:
    # By then even a busy machine is in the one node that takes seconds, past those before it.
    async with engine_rig(EngineOptions(hang_ms=1_500)) as rig:
        run_id = rig.submit(synthetic("big-node"), [vector(1)])
        died = await rig.event(EngineDied)
        assert (died.run_id, died.index, died.code) == (run_id, 0, ItemError.ENGINE_HUNG)
        good_run = rig.submit(synthetic("noop"), [vector(1)])
        assert (await rig.ended(good_run)).outcome is RunOutcome.COMPLETED


async def test_a_request_for_64_gb_fails_its_item(synthetic: Synthetic) -> None:
    async with engine_rig() as rig:
        bad_run = rig.submit(synthetic("huge-alloc"), [vector(1)])
        await rig.ended(bad_run)
        pid = rig.pid
        assert rig.broken(bad_run)[0].code is ItemError.OUT_OF_MEMORY
        await rig.ended(rig.submit(synthetic("noop"), [vector(1)]))
        assert rig.pid == pid


async def test_a_kill_from_outside_names_the_item_in_hand(synthetic: Synthetic) -> None:
    async with engine_rig() as rig:
        run_id = rig.submit(synthetic("loop-when-positive"), [vector(-1), vector(1)])
        waiting_run = rig.submit(synthetic("noop"), [vector(1)])
        await rig.started(run_id, 1)
        os.kill(rig.pid, signal.SIGKILL)
        died = await rig.event(EngineDied)
        assert (died.run_id, died.index, died.code) == (run_id, 1, ItemError.ENGINE_KILLED)
        assert "SIGKILL" in died.message
        assert list(rig.outputs(run_id)) == [0]
        assert not any(isinstance(event, RunEnded) for event in rig.events), waiting_run
        assert rig.engine.pid is None
        again = rig.submit(synthetic("noop"), [vector(1)])
        assert (await rig.ended(again)).outcome is RunOutcome.COMPLETED


async def test_the_worker_does_not_outlive_its_engine(synthetic: Synthetic) -> None:
    package = synthetic("loop-forever")
    script = Path(__file__).with_name("engine_process.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), str(package.folder), stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        worker_pid = int(await asyncio.wait_for(process.stdout.readline(), PATIENCE_S))
        worker = os.pidfd_open(worker_pid)
    finally:
        process.kill()
        await process.wait()
    try:
        gone = asyncio.Event()
        asyncio.get_running_loop().add_reader(worker, gone.set)
        await asyncio.wait_for(gone.wait(), PATIENCE_S)
        asyncio.get_running_loop().remove_reader(worker)
    finally:
        os.close(worker)


async def test_a_frozen_engine_uses_no_cpu_and_loses_nothing(synthetic: Synthetic) -> None:
    async with engine_rig(EngineOptions(worker=NORMAL_CLASS)) as rig:
        count = 12
        run_id = rig.submit(synthetic("chain"), [row(160)] * count)
        await rig.started(run_id, 2)
        rig.engine.freeze()
        stop = await rig.engine.measure_stop()
        assert stop.tier is StopTier.FREEZE
        assert stop.latency_ms < 500
        assert is_at_rest(rig.pid)
        ticks = cpu_ticks(rig.pid)
        await asyncio.sleep(0.6)  # the time over which its CPU time must not grow
        assert cpu_ticks(rig.pid) == ticks
        rig.engine.thaw()
        assert (await rig.ended(run_id)).outcome is RunOutcome.COMPLETED
        assert sorted(rig.outputs(run_id)) == list(range(count))
        busiest = max(e.busy_ms for e in rig.events if isinstance(e, ItemFinished))
        assert busiest < 600, "frozen time is not busy time"


def classes_of_threads(pid: int) -> dict[int, tuple[int, int]]:
    threads = [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()]
    return {
        thread: (os.sched_getscheduler(thread), os.getpriority(os.PRIO_PROCESS, thread))
        for thread in threads
    }


async def test_a_thawed_engine_is_as_modest_as_before(synthetic: Synthetic) -> None:
    async with engine_rig() as rig:
        await rig.ended(rig.submit(synthetic("noop"), [vector(1)]))
        before = classes_of_threads(rig.pid)
        assert len(before) > 1
        assert set(before.values()) == {(os.SCHED_IDLE, 19)}
        rig.engine.freeze()
        await rig.engine.measure_stop()
        rig.engine.thaw()
        assert classes_of_threads(rig.pid) == before


async def test_frozen_time_does_not_count_as_hanging(synthetic: Synthetic) -> None:
    async with engine_rig(EngineOptions(hang_ms=1_500, worker=NORMAL_CLASS)) as rig:
        run_id = rig.submit(synthetic("chain"), [row(160)] * 3)
        await rig.started(run_id, 0)
        rig.engine.freeze()
        await asyncio.sleep(2.0)  # longer than the watchdog's patience
        rig.engine.thaw()
        assert (await rig.ended(run_id)).outcome is RunOutcome.COMPLETED
        assert not rig.broken(run_id)


async def test_runs_submitted_to_a_frozen_engine_wait(synthetic: Synthetic) -> None:
    async with engine_rig() as rig:
        rig.engine.freeze()
        run_id = rig.submit(synthetic("noop"), [vector(1)])
        assert rig.engine.pid is None, "no process starts while the owner wants the car"
        assert (await rig.engine.measure_stop()).tier is StopTier.NONE
        rig.engine.thaw()
        assert (await rig.ended(run_id)).outcome is RunOutcome.COMPLETED


async def test_a_cancel_stops_at_the_next_node(synthetic: Synthetic) -> None:
    options = EngineOptions(terminate_grace_ms=5_000, worker=NORMAL_CLASS)
    async with engine_rig(options) as rig:
        run_id = rig.submit(synthetic("loop-forever"), [vector(1), vector(2)])
        await rig.started(run_id, 0)
        pid = rig.pid
        await until_cpu_grew(pid, ticks=5)  # it is told before the model runs
        rig.engine.cancel(run_id)
        ended = await rig.ended(run_id)
        assert ended.outcome is RunOutcome.CANCELLED
        assert ended.stop is not None
        assert ended.stop.tier is StopTier.TERMINATE
        assert not rig.outputs(run_id)
        await rig.ended(rig.submit(synthetic("noop"), [vector(1)]))
        assert rig.pid == pid


async def test_a_cancel_in_a_chain_keeps_what_is_finished(synthetic: Synthetic) -> None:
    options = EngineOptions(terminate_grace_ms=5_000, worker=NORMAL_CLASS)
    async with engine_rig(options) as rig:
        run_id = rig.submit(synthetic("chain"), [row(160)] * 200)
        await rig.started(run_id, 2)
        rig.engine.cancel(run_id)
        assert (await rig.ended(run_id)).outcome is RunOutcome.CANCELLED
        assert {0, 1} <= rig.outputs(run_id).keys()
        assert len(rig.outputs(run_id)) < 200


async def test_a_waiting_run_is_cancelled_at_once(synthetic: Synthetic) -> None:
    async with engine_rig() as rig:
        endless = rig.submit(synthetic("loop-forever"), [vector(1)])
        waiting = rig.submit(synthetic("noop"), [vector(1)])
        await rig.started(endless, 0)
        rig.engine.cancel(waiting)
        ended = rig.events[-1]
        assert isinstance(ended, RunEnded)
        assert (ended.run_id, ended.outcome) == (waiting, RunOutcome.CANCELLED)
        rig.engine.cancel(endless)
        await rig.ended(endless)
        await rig.ended(rig.submit(synthetic("noop"), [vector(1)]))
        assert not rig.outputs(waiting)
        assert sum(isinstance(e, RunEnded) and e.run_id == waiting for e in rig.events) == 1


async def test_a_cancel_that_is_not_heard_kills_and_spares_the_others(
    synthetic: Synthetic,
) -> None:
    async with engine_rig() as rig:
        deaf = rig.submit(synthetic("big-node"), [vector(1)])
        waiting = rig.submit(synthetic("noop"), [vector(1), vector(2)])
        await rig.started(deaf, 0)
        pid = rig.pid
        await until_cpu_grew(pid, ticks=50)  # far into its one long node
        rig.engine.cancel(deaf)
        ended = await rig.ended(deaf)
        assert ended.outcome is RunOutcome.CANCELLED
        assert ended.stop is not None
        assert ended.stop.tier is StopTier.KILL
        assert (await rig.ended(waiting)).outcome is RunOutcome.COMPLETED
        assert list(rig.outputs(waiting)) == [0, 1]
        assert rig.pid != pid
        assert not any(isinstance(event, EngineDied) for event in rig.events)


async def test_kill_forgets_everything(synthetic: Synthetic) -> None:
    async with engine_rig() as rig:
        endless = rig.submit(synthetic("loop-forever"), [vector(1)])
        rig.submit(synthetic("noop"), [vector(1)])
        await rig.started(endless, 0)
        rig.engine.freeze()
        frozen = await rig.engine.measure_stop()
        told = len(rig.events)
        killed = await rig.engine.kill()
        assert killed.tier is StopTier.KILL
        assert killed.latency_ms == frozen.latency_ms, "its last CPU time was before the freeze"
        assert rig.engine.pid is None
        await rig.ended(rig.submit(synthetic("noop"), [vector(1)]))
        assert not any(
            isinstance(event, RunEnded | ItemStarted) and event.run_id == endless
            for event in rig.events[told:]
        )


async def test_an_unknown_run_is_ignored() -> None:
    async with engine_rig() as rig:
        rig.engine.cancel(7)
        assert (await rig.engine.kill()).tier is StopTier.NONE
        assert not rig.events


@pytest.fixture
def careless_descriptor() -> Iterator[str]:
    """A file of ours that a careless library left open for children."""
    with Path(__file__).open() as ours:
        os.set_inheritable(ours.fileno(), True)
        yield ours.name


def check_confinement(pid: int, careless: str) -> Path:
    """Check what the kernel says of the worker, and return the folder it stands in."""
    process = Path(f"/proc/{pid}")
    assert os.sched_getscheduler(pid) == os.SCHED_IDLE
    assert os.getpriority(os.PRIO_PROCESS, pid) == 19
    assert (process / "oom_score_adj").read_text().strip() == "1000"
    address_space = resource.prlimit(pid, resource.RLIMIT_AS)
    assert address_space == (EngineOptions().worker.memory_max_bytes,) * 2
    targets = [str(entry.readlink()) for entry in (process / "fd").iterdir()]
    assert careless not in targets
    assert targets.count("/dev/null") == 1
    folder = (process / "cwd").readlink()
    assert list(folder.iterdir()) == []
    assert folder.stat().st_mode & 0o222 == 0
    return folder


async def test_the_worker_gives_way_and_holds_nothing_of_ours(
    synthetic: Synthetic, careless_descriptor: str
) -> None:
    async with engine_rig() as rig:
        await rig.ended(rig.submit(synthetic("noop"), [vector(1)]))
        folder = check_confinement(rig.pid, careless_descriptor)
    assert not await asyncio.to_thread(folder.exists)


async def test_what_a_library_prints_becomes_a_log_line(
    synthetic: Synthetic, capsys: pytest.CaptureFixture[str]
) -> None:
    options = EngineOptions(worker=WorkerOptions(memory_max_bytes=64 << 20))
    async with engine_rig(options) as rig:
        rig.submit(synthetic("noop"), [vector(1)])
        await rig.event(EngineDied)
    assert "worker_said" in capsys.readouterr().out
