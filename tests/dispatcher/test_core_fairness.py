"""Tenants beside each other: shares, newcomers, priorities, deadlines; nobody starves."""

from collections import Counter

import pytest
from core_rig import HOUR_MS, ModelCar, World
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.contract import limits
from edge_runtime.contract.reasons import ReleaseReason
from edge_runtime.dispatcher.core import events as e
from edge_runtime.dispatcher.core.fairness import Shares

UNIT_MS = float(limits.UNIT_TARGET_MS)


@pytest.fixture
def world() -> World:
    return World()


def tenants_of(car: ModelCar) -> list[str]:
    return [offer.tenant for offer in car.offers.values()]


def serve(world: World, car: ModelCar, units: int) -> Counter[str]:
    """Let the car do so many units, one at a time; units by tenant."""
    served: Counter[str] = Counter()
    while served.total() < units:
        key = next(iter(car.offers or car.runs))
        if key in car.offers:
            served[car.offers[key].tenant] += 1
            car.take(key)
        car.finish(key, busy_ms=UNIT_MS)
        world.settle()
        world.advance(2_000)
        world.refresh()
    return served


# --- the arithmetic ----------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    weights=st.lists(st.integers(1, 10), min_size=2, max_size=5),
    costs=st.lists(st.floats(200, 6_000), min_size=5, max_size=5),
)
def test_car_time_follows_weights_whatever_units_cost(
    weights: list[int], costs: list[float]
) -> None:
    """Who always has work gets its share of car time, to within a quantum and a unit."""
    shares = Shares()
    tenants = [f"t{n}" for n in range(len(weights))]
    used = dict.fromkeys(tenants, 0.0)
    for tenant, weight in zip(tenants, weights, strict=True):
        shares.set_weight(tenant, weight)
        assert shares.came(tenant)
    rounds = 40
    for _ in range(rounds):
        while able := [tenant for tenant in tenants if shares.left_ms(tenant) > 0]:
            for tenant in able:
                cost = costs[tenants.index(tenant)]
                shares.charge(tenant, cost)
                used[tenant] += cost
        shares.new_round(tenants)
    per_point = [used[tenant] / weight for tenant, weight in zip(tenants, weights, strict=True)]
    slack = 2 * UNIT_MS + 2 * max(costs)
    assert max(per_point) - min(per_point) <= slack


@settings(max_examples=100, deadline=None)
@given(cost=st.floats(1, 1e9), others=st.integers(1, 5))
def test_a_round_always_serves_somebody(cost: float, others: int) -> None:
    shares = Shares()
    tenants = [f"t{n}" for n in range(others)]
    for tenant in tenants:
        shares.charge(tenant, cost)
    shares.new_round(tenants)
    assert max(shares.left_ms(tenant) for tenant in tenants) > 0


def test_going_and_coming_gains_nothing() -> None:
    shares = Shares()
    assert shares.came("a")
    shares.charge("a", 3 * UNIT_MS)
    assert not shares.came("a"), "what it owes is remembered"
    assert shares.left_ms("a") == -2 * UNIT_MS
    shares.charge("a", -10 * UNIT_MS)
    assert shares.left_ms("a") == UNIT_MS, "nothing is saved beyond one turn"


def test_tenants_remembered_are_bounded() -> None:
    shares = Shares()
    for n in range(limits.TENANTS_REMEMBERED_MAX + 100):
        shares.charge(f"t{n}", 1.0)
    assert shares.left_ms("t0") == 0.0
    assert shares.left_ms(f"t{limits.TENANTS_REMEMBERED_MAX + 99}") == -1.0


def test_a_turn_without_a_car_is_not_lost(world: World) -> None:
    """Whoever's turn it was when the last car was taken has the next one."""
    for tenant in ("a", "b"):
        for _ in range(6):
            world.tick(world.submitted(1, tenant=tenant))
    car = world.car(units_max=1)
    served = []
    for _ in range(12):
        (key,) = car.offers
        served.append(car.offers[key].tenant)
        car.work()
        world.settle()
    assert served in (["a", "b"] * 6, ["b", "a"] * 6)


# --- the core ----------------------------------------------------------------------------------


def test_a_crowd_delays_a_newcomer_by_one_unit_on_one_car(world: World) -> None:
    """Its car computes one unit and holds another; the newcomer takes that one's place."""
    world.is_checking = False
    car = world.car(units_max=8)
    world.submit(2_000, tenant="crowd", reference_ms=100.0)
    world.settle()
    (first, *waiting) = list(car.offers)
    assert waiting, "the car holds more than what it computes"
    car.take(first)
    world.settle()
    world.submit(1, tenant="newcomer", reference_ms=100.0)
    assert tenants_of(car) == ["newcomer", "crowd"], "it waits behind what is computed"
    assert world.core.state.counters["units_taken_back_for_others"] == 1
    world.is_checking = True
    world.tick()


def test_nothing_begun_is_taken_back(world: World) -> None:
    car = world.car(units_max=8)
    job = world.submit(100, tenant="crowd", reference_ms=100.0)
    world.settle()
    for key in list(car.offers):
        run = car.take(key)
        del run
        car.chunk(key, [car.runs[key].left[0]])
    world.settle()
    out = world.core.state.units_out["crowd"]
    world.submit(1, tenant="newcomer", reference_ms=100.0)
    assert world.core.state.units_out["crowd"] == out
    assert not world.core.state.counters["units_taken_back_for_others"]
    world.drain()
    assert len(world.ends(job)) == 100


def test_two_tenants_do_not_displace_each_other_for_ever(world: World) -> None:
    world.car(units_max=8)
    for tenant in ("a", "b"):
        world.submit(500, tenant=tenant, reference_ms=100.0)
    world.settle()
    for _ in range(20):
        world.advance(100)
        world.tick()
    assert world.core.state.counters["units_taken_back_for_others"] <= 1
    world.drain()


def test_what_was_taken_back_is_done_all_the_same(world: World) -> None:
    car = world.car(units_max=8)
    crowd = world.submit(300, tenant="crowd", reference_ms=100.0)
    car.take(next(iter(car.offers)))
    world.settle()
    others = [world.submit(3, tenant=f"n{n}", reference_ms=100.0) for n in range(3)]
    world.drain()
    assert len(world.ends(crowd)) == 300
    assert [len(world.ends(job)) for job in others] == [3, 3, 3]


def test_weights_share_the_fleet(world: World) -> None:
    world.tick(e.WeightSet(tenant="heavy", weight=3))
    for tenant in ("heavy", "light"):
        world.submit(2_000, tenant=tenant, reference_ms=100.0)
    car = world.car(units_max=1)
    served = serve(world, car, 40)
    assert 27 <= served["heavy"] <= 33, served


def test_a_tenant_of_tiny_units_gets_as_much_car_time_as_one_of_large_ones(world: World) -> None:
    for n in range(400):
        world.tick(world.submitted(1, tenant="tiny", reference_ms=100.0, id=f"tiny{n}"))
    world.submit(400, tenant="large", reference_ms=100.0)
    world.car(units_max=64)
    world.settle()
    used_ms: Counter[str] = Counter()
    for unit in world.core.state.units.values():
        used_ms[unit.job.spec.tenant] += int(unit.expected_item_ms * len(unit.open))
    assert abs(used_ms["tiny"] - used_ms["large"]) <= 2 * UNIT_MS, used_ms


def test_what_a_car_gives_back_is_given_back(world: World) -> None:
    car = world.car(units_max=1)
    world.submit(20, tenant="a", reference_ms=100.0)
    shares = world.core.state.turns.shares
    assert shares.left_ms("a") == 0.0
    (key,) = list(car.offers)
    car.take(key)
    car.release(key, ReleaseReason.HOLD)
    car.offers.clear()
    world.tick(car.state())
    spent = sum(u.expected_item_ms * len(u.open) for u in world.core.state.units.values())
    assert shares.left_ms("a") == pytest.approx(UNIT_MS - spent)


def test_a_deadline_that_is_near_lifts_a_job_by_three_levels_and_no_more(world: World) -> None:
    soon = world.utc_ms + 2 * limits.DEADLINE_BOOST_MS
    urgent = world.submit(1, priority=5, deadline_ms=soon)
    higher = world.submit(1, priority=7)
    highest = world.submit(1, priority=9)
    late = world.submit(1, priority=5)
    world.advance(limits.DEADLINE_BOOST_MS + 1)
    car = world.car()
    order = [offer.job for offer in car.offers.values()]
    assert order == [highest, urgent, higher, late]


def test_a_job_with_little_time_from_the_start_is_urgent_at_once(world: World) -> None:
    world.submit(1, priority=5)
    short = world.submit(1, priority=5, deadline_ms=world.utc_ms + 10_000)
    car = world.car()
    assert next(iter(car.offers.values())).job == short


@settings(max_examples=60, deadline=None)
@given(
    jobs=st.lists(
        st.tuples(st.integers(0, 9), st.sampled_from([30_000, HOUR_MS]), st.sampled_from("xyz")),
        min_size=1,
        max_size=25,
    )
)
def test_no_job_goes_before_one_of_a_higher_rank_of_its_tenant(
    jobs: list[tuple[int, int, str]],
) -> None:
    world = World()
    for priority, left_ms, region in jobs:
        world.submit(
            1, priority=priority, deadline_ms=world.utc_ms + left_ms, region=None, model=region * 64
        )
    car = world.car(units_max=64)
    world.settle()
    ranks = [world.job(offer.job).rank for offer in car.offers.values()]
    assert ranks == sorted(ranks, reverse=True)
    assert len(ranks) == len(jobs)


@settings(max_examples=25, deadline=None)
@given(
    plan=st.lists(
        st.tuples(st.sampled_from("abcd"), st.integers(1, 60), st.integers(0, 9)),
        min_size=1,
        max_size=12,
    ),
    cars=st.integers(1, 3),
)
def test_everybody_is_served_in_the_end(plan: list[tuple[str, int, int]], cars: int) -> None:
    world = World()
    for n in range(cars):
        world.car(f"car{n}", units_max=4)
    jobs = [
        world.submit(items, tenant=tenant, priority=priority) for tenant, items, priority in plan
    ]
    world.drain()
    for job, (_, items, _) in zip(jobs, plan, strict=True):
        assert len(world.ends(job)) == items
    world.settle()
    assert not world.core.state.units_out
