"""What somebody waits for is computed between the items of what nobody does."""

from collections.abc import Callable

from engine_rig import EngineRig, engine_rig, row, vector

from edge_runtime.contract.package import Package
from edge_runtime.contract.reasons import StopTier
from edge_runtime.vehicle.core.events import ItemFinished, ItemStarted, RunEnded, RunOutcome

Synthetic = Callable[[str], Package]
CHAIN_ROW = row(160)
SLOW_ITEMS = 40


def place(rig: EngineRig, run_id: int) -> int:
    """Where in the story a run ended."""
    return next(
        place
        for place, event in enumerate(rig.events)
        if isinstance(event, RunEnded) and event.run_id == run_id
    )


async def test_an_urgent_run_waits_for_the_item_in_hand_at_most(synthetic: Synthetic) -> None:
    async with engine_rig() as rig:
        slow = rig.submit(synthetic("chain"), [CHAIN_ROW] * SLOW_ITEMS)
        waiting = rig.submit(synthetic("noop"), [vector(1)])
        await rig.started(slow, 1)
        urgent = rig.submit(synthetic("noop"), [vector(2), vector(3)], urgent=True)
        await rig.ended(urgent)
        assert sorted(rig.outputs(urgent)) == [0, 1]
        assert len(rig.outputs(slow)) < SLOW_ITEMS
        await rig.ended(slow)
        await rig.ended(waiting)
        assert place(rig, urgent) < place(rig, slow) < place(rig, waiting)
        assert sorted(rig.outputs(slow)) == list(range(SLOW_ITEMS)), "nothing of it is lost"
        started = [e.index for e in rig.events if isinstance(e, ItemStarted) and e.run_id == slow]
        assert started == list(range(SLOW_ITEMS)), "and nothing is computed twice"


async def test_urgent_runs_keep_their_order(synthetic: Synthetic) -> None:
    async with engine_rig() as rig:
        slow = rig.submit(synthetic("chain"), [CHAIN_ROW] * SLOW_ITEMS)
        await rig.started(slow, 0)
        runs = [rig.submit(synthetic("noop"), [vector(n)], urgent=True) for n in range(50)]
        await rig.ended(runs[-1])
        ended = [e.run_id for e in rig.events if isinstance(e, RunEnded)]
        assert ended == runs
        rig.engine.cancel(slow)
        assert (await rig.ended(slow)).outcome is RunOutcome.CANCELLED


async def test_a_run_that_an_urgent_one_interrupts_can_be_cancelled_meanwhile(
    synthetic: Synthetic,
) -> None:
    async with engine_rig() as rig:
        slow = rig.submit(synthetic("noop"), [vector(n) for n in range(200)])
        urgent = rig.submit(synthetic("chain"), [CHAIN_ROW] * 4, urgent=True)
        await rig.started(urgent, 1)
        rig.engine.cancel(slow)
        stopped = await rig.ended(slow)
        assert stopped.outcome is RunOutcome.CANCELLED
        assert stopped.stop is not None
        assert stopped.stop.tier is StopTier.NONE
        assert (await rig.ended(urgent)).outcome is RunOutcome.COMPLETED
        assert sorted(rig.outputs(urgent)) == [0, 1, 2, 3]


async def test_an_urgent_run_can_be_cancelled_and_the_interrupted_one_goes_on(
    synthetic: Synthetic,
) -> None:
    async with engine_rig() as rig:
        slow = rig.submit(synthetic("mlp5ms"), [row(256)] * 60)
        await rig.started(slow, 0)
        urgent = rig.submit(synthetic("chain"), [CHAIN_ROW] * 40, urgent=True)
        await rig.started(urgent, 0)
        rig.engine.cancel(urgent)
        assert (await rig.ended(urgent)).outcome is RunOutcome.CANCELLED
        assert (await rig.ended(slow)).outcome is RunOutcome.COMPLETED
        assert len(rig.outputs(slow)) == 60
        assert len(rig.outputs(urgent)) < 40


async def test_an_urgent_item_is_told_without_waiting_for_its_neighbours(
    synthetic: Synthetic,
) -> None:
    async with engine_rig() as rig:
        await rig.ended(rig.submit(synthetic("chain"), [CHAIN_ROW]))
        urgent = rig.submit(synthetic("chain"), [CHAIN_ROW] * 5, urgent=True)
        await rig.event(ItemFinished, run_id=urgent, index=0)
        assert not any(
            isinstance(e, ItemFinished) and (e.run_id, e.index) == (urgent, 4) for e in rig.events
        )
        await rig.ended(urgent)
