"""What a stop costs: the item in hand and no other, said exactly, whatever stopped the process."""

import asyncio
import os
import random
import signal
from collections.abc import Callable

import pytest
from engine_rig import EngineRig, engine_rig, row, vector

from edge_runtime.contract import limits
from edge_runtime.contract.package import Package
from edge_runtime.contract.reasons import ItemError, StopTier
from edge_runtime.vehicle.core.events import (
    EngineDied,
    ItemFinished,
    ItemInterrupted,
    ItemStarted,
    RunOutcome,
)
from edge_runtime.vehicle.inference.options import EngineOptions, WorkerOptions

Synthetic = Callable[[str], Package]
NORMAL_CLASS = WorkerOptions(is_idle_class=False)


def quick_items(count: int) -> list[bytes]:
    """Items of a fraction of a millisecond: many share one write of the worker."""
    return [vector(float(number)) for number in range(count)]


def interrupted(rig: EngineRig) -> list[ItemInterrupted]:
    return [event for event in rig.events if isinstance(event, ItemInterrupted)]


async def test_freezing_again_and_again_loses_and_repeats_nothing(synthetic: Synthetic) -> None:
    rng = random.Random(3)
    async with engine_rig(EngineOptions(worker=NORMAL_CLASS)) as rig:
        count = 6_000
        run_id = rig.submit(synthetic("noop"), quick_items(count))
        await rig.started(run_id, 0)
        for _ in range(12):
            rig.engine.freeze()
            assert (await rig.engine.measure_stop()).tier is StopTier.FREEZE
            done = sorted(rig.outputs(run_id))
            assert done == list(range(len(done))), "what was finished is told, in order"
            rig.engine.thaw()
            await asyncio.sleep(rng.uniform(0, 0.03))  # a random moment of its work
        assert (await rig.ended(run_id)).outcome is RunOutcome.COMPLETED
        started = [e.index for e in rig.events if isinstance(e, ItemStarted)]
        assert started == list(range(count))
        assert sum(isinstance(e, ItemFinished) for e in rig.events) == count


async def test_a_frozen_engine_that_is_killed_loses_the_item_in_hand_alone(
    synthetic: Synthetic,
) -> None:
    async with engine_rig(EngineOptions(worker=NORMAL_CLASS)) as rig:
        run_id = rig.submit(synthetic("mlp5ms"), [row(256)] * 400)
        await rig.started(run_id, 3)
        rig.engine.freeze()
        await rig.engine.measure_stop()
        in_hand = next(iter(interrupted(rig)), None)
        done = sorted(rig.outputs(run_id))
        await rig.engine.kill()
        assert done == list(range(len(done)))
        if in_hand is not None:  # else it stood between two items
            assert (in_hand.run_id, in_hand.index) == (run_id, len(done))
            assert 0 <= in_hand.busy_ms < 60_000
        assert sorted(rig.outputs(run_id)) == done


async def test_a_kill_from_outside_loses_the_item_in_hand_alone(synthetic: Synthetic) -> None:
    async with engine_rig(EngineOptions(worker=NORMAL_CLASS)) as rig:
        run_id = rig.submit(synthetic("mlp5ms"), [row(256)] * 400)
        await rig.started(run_id, 3)
        os.kill(rig.pid, signal.SIGKILL)
        died = await rig.event(EngineDied)
        done = sorted(rig.outputs(run_id))
        assert done == list(range(len(done)))
        if died.index is not None:
            assert died.index == len(done)
            assert interrupted(rig)[-1].index == died.index


async def test_a_cancel_says_which_item_it_cost(synthetic: Synthetic) -> None:
    options = EngineOptions(terminate_grace_ms=30_000, worker=NORMAL_CLASS)
    async with engine_rig(options) as rig:
        for _ in range(10):
            run_id = rig.submit(synthetic("loop-when-positive"), [vector(-1), vector(1)])
            await rig.started(run_id, 1)
            rig.engine.cancel(run_id)
            ended = await rig.ended(run_id)
            assert ended.stop is not None
            if ended.stop.tier is not StopTier.NONE:
                break  # else it was announced, and not begun, when the cancel came
        assert ended.stop is not None
        assert ended.stop.tier is StopTier.TERMINATE
        (in_hand,) = interrupted(rig)
        assert (in_hand.run_id, in_hand.index) == (run_id, 1)
        assert in_hand.busy_ms > 0
        assert rig.events.index(in_hand) < rig.events.index(ended)


async def test_a_worker_that_somebody_else_stopped_is_hung(synthetic: Synthetic) -> None:
    async with engine_rig(EngineOptions(hang_ms=400, worker=NORMAL_CLASS)) as rig:
        run_id = rig.submit(synthetic("loop-when-positive"), [vector(-1), vector(1)])
        await rig.started(run_id, 1)
        before_ns = rig.engine.progress_ns
        os.kill(rig.pid, signal.SIGSTOP)
        died = await rig.event(EngineDied)
        assert (died.run_id, died.index, died.code) == (run_id, 1, ItemError.ENGINE_HUNG)
        assert interrupted(rig)[-1].index == 1
        assert rig.engine.progress_ns == before_ns, "nothing came: no progress"
        good = rig.submit(synthetic("noop"), [vector(1)])
        assert (await rig.ended(good)).outcome is RunOutcome.COMPLETED
        assert rig.engine.progress_ns > before_ns


async def test_what_items_took_here_bounds_the_next(
    synthetic: Synthetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No setting, no reference time: the record of this model alone."""
    monkeypatch.setattr(limits, "ENGINE_HANG_MIN_MS", 200)
    async with engine_rig(EngineOptions(worker=NORMAL_CLASS)) as rig:
        items = [*[vector(-1)] * 5, vector(1), vector(-2)]
        run_id = rig.submit(synthetic("loop-when-positive"), items)
        assert (await rig.ended(run_id)).outcome is RunOutcome.COMPLETED
        assert sorted(rig.outputs(run_id)) == [0, 1, 2, 3, 4, 6]
        assert rig.broken(run_id)[5].code is ItemError.ENGINE_HUNG
        assert interrupted(rig)[-1].index == 5
        assert interrupted(rig)[-1].busy_ms < limits.ENGINE_HANG_MS, "the record spoke first"


async def test_frozen_time_is_progress_of_nobody(synthetic: Synthetic) -> None:
    async with engine_rig(EngineOptions(worker=NORMAL_CLASS)) as rig:
        run_id = rig.submit(synthetic("loop-forever"), [vector(1)])
        await rig.started(run_id, 0)
        rig.engine.freeze()
        await rig.engine.measure_stop()
        first_ns = rig.engine.progress_ns
        await asyncio.sleep(0.05)  # frozen for this long
        assert rig.engine.progress_ns - first_ns >= 40_000_000
        rig.engine.thaw()
        rig.engine.cancel(run_id)
        await rig.ended(run_id)
