"""What stops come to: a short visit costs nothing; what is lost is counted by tier and by unit."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from agent_rig import Garage, until
from car_bench import STOPPED, Bench, offer, only
from scripted_dispatcher import row, unit_offer
from structlog.testing import capture_logs

from edge_runtime.contract import limits
from edge_runtime.contract.messages import StopReport
from edge_runtime.contract.package import Package
from edge_runtime.contract.reasons import HoldReason, ItemError, Outcome, StopTier
from edge_runtime.vehicle.agent import VehicleAgent
from edge_runtime.vehicle.core import commands as c
from edge_runtime.vehicle.core import events as e
from edge_runtime.vehicle.core.stops import LATENCY_BOUNDS_MS, StopTally

Make = Callable[[str], Package]
POWER_W = 40.0
DOOR_OPEN_S = 3.0


def wh(busy_ms: float) -> float:
    return busy_ms / 3_600_000 * POWER_W


def freeze_at_item_1() -> Bench:
    """A car that was stopped by somebody who got in while item 1 of unit 1 was computed."""
    car = Bench().open()
    car.take(offer(1), offer(2))
    car.compute(1, 0)
    car.start(1, 1)
    car.sense(is_occupied=True)
    car.send(e.ItemInterrupted(car.run_of(1), 1, 180.0))
    car.send(e.EngineFrozen(STOPPED))
    return car


def test_a_kill_costs_the_item_in_hand_and_says_so() -> None:
    car = freeze_at_item_1()
    assert car.core.work.energy.spent(car.now).wh_today == pytest.approx(wh(10.0))
    said = car.advance(limits.THAW_GRACE_MS / 1000)
    lines = {line.unit: line for line in only(c.LogUnit, said)}
    assert (lines[1].items_lost, lines[2].items_lost) == (1, 0)
    assert lines[1].wasted_wh == pytest.approx(wh(180.0))
    assert lines[2].wasted_wh == 0
    (stop,) = only(c.LogStop, said)
    assert (stop.tier, stop.latency_ms) == ("freeze", STOPPED.latency_ms)
    assert (stop.outcome, stop.items_lost) == ("killed", 1)
    assert stop.wasted_wh == pytest.approx(wh(180.0))
    assert stop.reason == HoldReason.OCCUPIED.value
    summary = car.core.work.stops.summary()
    assert (summary.thawed, summary.killed, summary.items_lost) == (0, 1, 1)
    assert car.core.work.energy.spent(car.now).wh_today == pytest.approx(wh(190.0)), (
        "waste is spent too"
    )


def test_a_thaw_costs_nothing_and_says_so() -> None:
    car = freeze_at_item_1()
    said = car.sense(is_occupied=False)
    (stop,) = only(c.LogStop, said)
    assert (stop.outcome, stop.items_lost, stop.wasted_wh) == ("thawed", 0, 0.0)
    car.finish(1, 1)
    car.compute(1, 2)
    car.compute(2, 0, 1, 2)
    lines = only(c.LogUnit, car.said)
    assert [(line.done, line.items_lost, line.wasted_wh) for line in lines] == [(3, 0, 0.0)] * 2
    summary = car.core.work.stops.summary()
    assert (summary.thawed, summary.killed, summary.items_lost) == (1, 0, 0)


def test_an_item_that_was_in_hand_before_a_thaw_is_not_lost_by_the_next_stop() -> None:
    car = freeze_at_item_1()
    car.sense(is_occupied=False)
    car.finish(1, 1)
    car.sense(is_parked=False)
    said = car.send(e.EngineFrozen(STOPPED))
    assert [line.items_lost for line in only(c.LogUnit, said)] == [0, 0]


def test_a_cancel_is_counted_under_the_tier_that_fired() -> None:
    car = Bench().open()
    car.take()
    car.start(1, 0)
    run_id = car.run_of(1)
    car.cancel()
    car.send(e.ItemInterrupted(run_id, 0, 25.0))
    report = StopReport(tier=StopTier.TERMINATE, latency_ms=7.0)
    (line,) = only(c.LogUnit, car.send(e.RunEnded(run_id, e.RunOutcome.CANCELLED, report)))
    assert (line.stop_tier, line.stop_latency_ms, line.items_lost) == ("terminate", 7.0, 1)
    (tier,) = car.core.work.stops.summary().tiers
    assert (tier.tier, tier.stops, tier.items_lost) == ("terminate", 1, 1)
    assert tier.wasted_wh == pytest.approx(wh(25.0))


def test_a_hung_item_is_broken_not_lost_but_its_energy_is_wasted() -> None:
    car = Bench().open()
    car.take()
    car.start(1, 0)
    run_id = car.run_of(1)
    car.send(e.ItemInterrupted(run_id, 0, 20_000.0))
    car.engine.runs.clear()
    car.send(e.EngineDied(run_id, 0, ItemError.ENGINE_HUNG))
    car.compute(1, 1, 2)
    (line,) = only(c.LogUnit, car.said)
    assert (line.done, line.failed, line.items_lost) == (2, 1, 0)
    assert line.wasted_wh == pytest.approx(wh(20_000.0))


def test_an_interruption_of_an_unknown_run_or_item_changes_nothing() -> None:
    car = Bench().open()
    car.take()
    car.send(e.ItemInterrupted(99, 0, 5.0))
    car.send(e.ItemInterrupted(car.run_of(1), 77, 5.0))
    car.sense(is_parked=False)
    said = car.send(e.EngineFrozen(STOPPED))
    assert [line.items_lost for line in only(c.LogUnit, said)] == [0]


def test_a_stop_that_was_not_measured_in_time_is_counted_as_that() -> None:
    car = Bench().open()
    car.take()
    car.sense(is_parked=False)
    said = car.advance(limits.STOP_REPORT_WAIT_MS / 1000)
    (stop,) = only(c.LogStop, said)
    assert stop.latency_ms is None
    (tier,) = car.core.work.stops.summary().tiers
    assert (tier.stops, tier.unmeasured, sum(tier.buckets)) == (1, 1, 0)


def test_latencies_fall_into_buckets() -> None:
    tally = StopTally()
    for latency_ms in (0.1, LATENCY_BOUNDS_MS[0], 0.3, 4.9, 1e6):
        report = StopReport(tier=StopTier.FREEZE, latency_ms=latency_ms)
        tally.note(StopTier.FREEZE, report, items_lost=0, wasted_wh=0.0)
    (tier,) = tally.summary().tiers
    assert len(tier.buckets) == len(LATENCY_BOUNDS_MS) + 1
    assert (tier.buckets[0], tier.buckets[1], tier.buckets[4], tier.buckets[-1]) == (2, 1, 1, 1)
    assert tier.latency_max_ms == 1e6


def watch_starts(agent: VehicleAgent) -> Counter[tuple[int, int]]:
    """Count how often the engine began each (run, item) of this agent."""
    starts: Counter[tuple[int, int]] = Counter()
    handle_all = agent.core.handle_all

    def watched(events: Iterable[e.Event], now: Any) -> list[c.Command]:
        taken = tuple(events)
        starts.update((x.run_id, x.index) for x in taken if isinstance(x, e.ItemStarted))
        return handle_all(taken, now)

    agent.core.handle_all = watched  # type: ignore[method-assign] # to listen
    return starts


async def test_who_fetches_something_from_the_boot_costs_no_item(
    garage: Garage, synthetic: Make
) -> None:
    """A door is open for 3 s, on the real engine: no item is computed twice, and none is lost."""
    chain = synthetic("chain")
    with capture_logs() as lines:
        async with garage.both(chain) as (agent, peer):
            starts = watch_starts(agent)
            peer.offer(*(unit_offer(chain, [row(160)] * 8, unit) for unit in (1, 2)))
            await peer.until(peer.of)
            pid = agent.engine.pid  # type: ignore[attr-defined] # the real engine has one
            garage.sensors.command(b'{"is_occupied": true}')
            frozen_after = agent.core.work.attempts.copy()
            await asyncio.sleep(DOOR_OPEN_S)  # the visit itself
            garage.sensors.command(b'{"is_occupied": false}')
            chunks = [await peer.ending(unit) for unit in (1, 2)]
            assert frozen_after, "there was work to stop"
            assert agent.engine.pid == pid  # type: ignore[attr-defined] # the same process went on
            assert all(x.ending and x.ending.outcome is Outcome.COMPLETED for x in chunks)
            assert len(peer.results(1)) == len(peer.results(2)) == 8
            assert set(starts.values()) == {1}, "no item was begun twice"
            assert len(starts) == 16
            assert (agent.stops.thawed, agent.stops.killed, agent.stops.items_lost) == (1, 0, 0)
    (stop,) = [line for line in lines if line["event"] == "engine_stopped"]
    assert (stop["tier"], stop["outcome"], stop["items_lost"]) == ("freeze", "thawed", 0)
    assert stop["latency_ms"] >= 0
    units = [line for line in lines if line["event"] == "unit"]
    assert [(unit["items_lost"], unit["wasted_wh"]) for unit in units] == [(0, 0.0)] * 2


async def test_a_long_visit_costs_the_item_in_hand_and_no_other(
    garage: Garage, synthetic: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "THAW_GRACE_MS", 200)
    chain = synthetic("chain")
    async with garage.both(chain) as (agent, peer):
        starts = watch_starts(agent)
        peer.offer(unit_offer(chain, [row(160)] * 100))
        await peer.until(peer.of)
        garage.sensors.command(b'{"is_occupied": true}')
        await peer.ending()
        await until(lambda: agent.stops.killed == 1)
        done = sorted(peer.results(1))
        assert done == list(range(len(done)))
        assert agent.stops.items_lost <= 1
        assert len(starts) - len(done) <= 1, "whatever else was begun was finished and kept"
        assert (agent.stops.wasted_wh > 0) is (agent.stops.items_lost == 1)


def test_the_grace_outlasts_the_visit_and_not_the_lease() -> None:
    assert limits.THAW_GRACE_MS / 1000 > DOOR_OPEN_S + 1
    assert limits.THAW_GRACE_MS * 2 < limits.LEASE_MS
