"""Tenants' turns, windows over the store, recovery, and unit sizes."""

from collections.abc import Iterator

import pytest
from core_rig import HOUR_MS, Key, ModelCar, World

from edge_runtime.contract import limits
from edge_runtime.contract.http import AttemptEnd
from edge_runtime.contract.reasons import Availability, ItemError, JobState
from edge_runtime.dispatcher.core import commands as c
from edge_runtime.dispatcher.core import events as e
from edge_runtime.dispatcher.core.fleet import Fleet
from edge_runtime.dispatcher.core.pace import Pace


@pytest.fixture
def world() -> World:
    return World()


def offered_jobs(commands: list[c.Command]) -> list[str]:
    return [
        unit.job
        for command in commands
        if isinstance(command, c.PublishOffer)
        for unit in command.units
    ]


# --- turns -------------------------------------------------------------------------------------


def test_a_tenant_with_many_jobs_delays_another_by_no_more_than_a_round(world: World) -> None:
    world.is_checking = False  # a check looks at every job
    world.tick(*(world.submitted(1, tenant="crowd") for _ in range(10_000)))
    world.submit(1, tenant="single")
    car = ModelCar("car", units_max=1)
    world.cars["car"] = car
    order = offered_jobs(world.tick(car.birth(), car.state()))
    for _ in range(3):
        car.work()
        order += offered_jobs(world.tick())
    tenants = [world.model.job(job).spec.tenant for job in order]
    assert "single" in tenants[:2]


def test_tenants_take_turns(world: World) -> None:
    for tenant in ("a", "b", "c"):
        world.tick(*(world.submitted(1, tenant=tenant) for _ in range(5)))
    car = world.car(units_max=60)
    tenants = [world.model.job(offer.job).spec.tenant for offer in car.offers.values()]
    assert len(tenants) == 15
    assert all(sorted(tenants[n : n + 3]) == ["a", "b", "c"] for n in range(0, 15, 3))


def test_within_a_tenant_priority_goes_first_then_age(world: World) -> None:
    jobs = {p: world.submit(1, priority=p) for p in (3, 9, 5)}
    second = world.submit(1, priority=5)
    car = world.car()
    order = [offer.job for offer in car.offers.values()]
    assert order == [jobs[9], jobs[5], second, jobs[3]]


def test_a_requirement_without_a_car_blocks_only_itself(world: World) -> None:
    world.submit(1, priority=9, region="mars")
    job = world.submit(1, priority=1)
    car = world.car()
    assert [offer.job for offer in car.offers.values()] == [job]


def test_tenants_that_have_nothing_are_forgotten(world: World) -> None:
    world.car().availability = Availability.HOLD
    world.refresh()
    for n in range(20):
        world.tick(e.JobCancelled(job=world.submit(1, tenant=f"t{n}")))
    world.tick()
    assert len(world.core.state.turns) == 0


def test_ended_jobs_do_not_pile_up_in_a_queue_that_nobody_serves(world: World) -> None:
    keep = world.submit(1, priority=9)
    for _ in range(500):
        world.tick(e.JobCancelled(job=world.submit(1)))
    queue = world.core.state.turns.queue("tenant")
    assert len(queue) < 200
    world.car()
    assert offered_jobs(world.tick()) == []
    world.drain()
    assert world.state_of(keep) is JobState.DONE


# --- windows -----------------------------------------------------------------------------------


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WINDOW_JOBS_MAX", 8)
    monkeypatch.setattr(limits, "TENANT_WINDOW_JOBS_MIN", 4)
    monkeypatch.setattr(limits, "WINDOW_ITEMS_MAX", 40)
    monkeypatch.setattr(limits, "LOAD_ITEMS", 10)
    monkeypatch.setattr(limits, "UNIT_ITEMS_MAX", 4)


@pytest.mark.usefixtures("small_windows")
def test_jobs_beyond_the_window_wait_in_the_store_and_come_back(world: World) -> None:
    jobs = [world.submit(1) for _ in range(30)]
    assert len(world.core.state.jobs) <= 8
    assert world.core.state.counters["jobs_waiting_in_store"] == 22
    world.car()
    world.drain()
    assert {world.state_of(job) for job in jobs} == {JobState.DONE}
    order = [row.job_no for row in world.model.attempts.values()]
    assert order == sorted(order)


@pytest.mark.usefixtures("small_windows")
def test_a_job_accepted_while_the_last_page_is_read_is_not_forgotten(world: World) -> None:
    for _ in range(9):
        world.submit(1)
    car = world.car(units_max=60)
    car.work()
    world.tick()  # the window has room: it asks for what the store has
    assert [type(event) for event in world.loaded] == [e.JobsLoaded]
    late = world.submit(1)  # arrives in the same tick as the answer, which cannot have it
    assert late not in world.core.state.jobs
    world.drain()
    assert world.state_of(late) is JobState.DONE


@pytest.mark.usefixtures("small_windows")
def test_a_page_of_jobs_that_are_known_is_not_read_for_ever(world: World) -> None:
    jobs = [world.submit(1) for _ in range(30)]
    for job in jobs[8:16]:  # taken up out of turn, as a cancel or a requeue does
        world.core.restore_job(world.model.job(job).stored(), in_order=False)
    world.car()
    world.drain()
    assert {world.state_of(job) for job in jobs} == {JobState.DONE}


@pytest.mark.usefixtures("small_windows")
def test_a_job_cancelled_after_it_was_read_is_not_revived(world: World) -> None:
    jobs = [world.submit(1) for _ in range(9)]
    car = world.car(units_max=60)
    car.work()
    world.tick()
    (page,) = world.loaded
    assert jobs[8] in [stored.spec.id for stored in page.jobs]
    world.core.restore_job(world.model.job(jobs[8]).stored(), in_order=False)
    world.tick(e.JobCancelled(job=jobs[8]))
    world.settle()
    assert world.state_of(jobs[8]) is JobState.CANCELLED
    assert jobs[8] not in world.core.state.jobs


@pytest.mark.usefixtures("small_windows")
def test_items_beyond_the_window_are_read_as_they_are_needed(world: World) -> None:
    world.car()
    job = world.submit(200)
    assert not world.job(job).is_fully_loaded
    most = 0
    while world.model.job(job).is_open:
        for car in world.cars.values():
            car.work()
        world.tick()
        most = max(most, world.core.state.window_items)
    assert most <= 40
    assert set(world.ends(job).values()) == {"ok"}
    assert world.state_of(job) is JobState.DONE
    assert world.core.state.window_items == world.core.state.window_bytes == 0


@pytest.mark.usefixtures("small_windows")
def test_many_jobs_in_the_store_are_not_all_read_at_once(world: World) -> None:
    for _ in range(8):
        world.submit(200)
    world.restart()
    car = world.car(units_max=64)
    assert len(car.offers) == 0
    loads = world.of(world.commands, c.LoadItems)
    assert sum(load.limit for load in loads[-8:]) <= limits.WINDOW_ITEMS_MAX + 8 * 4
    most = 0
    for _ in range(200):
        car.work()
        world.tick()
        most = max(most, world.core.state.window_items)
    assert most <= limits.WINDOW_ITEMS_MAX + 8 * 4


@pytest.mark.usefixtures("small_windows")
def test_a_window_full_of_work_for_no_car_delays_nobody(world: World) -> None:
    world.submit(40, region="mars")
    assert world.core.state.window_items == 40
    job = world.submit(30, tenant="other")
    world.car()
    for _ in range(100):
        world.cars["car"].work()
        world.tick()
    assert world.state_of(job) is JobState.DONE


def test_jobs_in_the_store_wait_for_a_car_without_being_lost(world: World) -> None:
    """After a restart nobody is there at first; the jobs must not fall out of their queue."""
    world.car()
    world.cars["car"].availability = Availability.HOLD
    world.refresh()
    jobs = [world.submit(2) for _ in range(3)]
    world.restart()
    for _ in range(5):
        world.advance(1_000)
        world.tick()
    world.cars["car"].availability = Availability.READY
    world.refresh()
    world.drain()
    assert {world.state_of(job) for job in jobs} == {JobState.DONE}


def test_what_ends_while_it_is_read_is_not_taken_up_again(world: World) -> None:
    """A late chunk fills items that the store is about to hand out (closed ahead)."""
    car, key, job, event = _late(world)
    world.restart()
    world.core.state.old_attempts.clear()
    world.refresh()  # the job's items are being read now
    world.tick(event)
    world.settle()
    assert world.verdicts(car) == ["stored"]
    world.drain()
    assert world.ends(job) == {0: "ok", 1: "ok", 2: "ok"}
    assert key


def _late(world: World) -> tuple[ModelCar, Key, str, e.ChunkReceived]:
    car = world.car()
    job = world.submit(3)
    key = car.take()
    world.settle()
    event = car.chunk(key, [0, 2])
    car.outbox.clear()
    world.boot_ms = world.unit(key).lease_until_boot_ms
    world.tick()
    return car, key, job, event


def test_a_deadline_reaches_items_that_were_never_loaded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WINDOW_ITEMS_MAX", 10)
    job = world.submit(100, deadline_ms=world.utc_ms + 5_000)
    assert not world.job(job).items
    world.advance(5_000)
    world.tick()
    assert world.ends(job) == dict.fromkeys(range(100), "deadline_passed")
    assert world.state_of(job) is JobState.EXPIRED


# --- recovery ----------------------------------------------------------------------------------


@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize("moment", range(9))
def test_a_kill_at_each_commit_loses_and_doubles_nothing(
    world: World, moment: int, *, committed: bool
) -> None:
    """A scripted life; the dispatcher dies before or after the commit of one of its ticks."""
    job = ""
    for step, events in enumerate(_life(world)):
        submitted = [event for event in events if isinstance(event, e.JobSubmitted)]
        said = [event for car in world.cars.values() for event in car.speak()]
        commands = world.decide(*events, *said)
        if step == moment:
            if committed:
                stored = [x for x in commands if isinstance(x, c.StoreCommand)]
                world.store.commit(stored)
            world.restart()
            if submitted and not committed:
                world.tick(*submitted)  # never accepted: its requester asks again
            for car in world.cars.values():
                car.resend()
            world.refresh()
            world.settle()
        else:
            world.carry_out(commands)
        if submitted:
            job = submitted[0].spec.id
    world.refresh()
    world.drain()
    assert set(world.ends(job).values()) == {"ok"}
    assert len(world.ends(job)) == 4
    assert world.state_of(job) is JobState.DONE
    world.settle()
    assert not any(car.unanswered for car in world.cars.values())


def _life(world: World) -> Iterator[list[e.Event]]:
    one, two = (ModelCar(name) for name in ("one", "two"))
    world.cars.update(one=one, two=two)
    yield [one.birth(), one.state()]
    yield [world.submitted(4)]
    key, *_ = one.take_all()
    yield []
    one.chunk(key, [one.runs[key].left[0]])
    yield [two.birth(), two.state()]
    if key in one.runs and one.runs[key].left:
        one.chunk(key, failed={one.runs[key].left[0]: ItemError.MODEL_ERROR})
    yield []
    for key in list(one.runs):
        one.release(key)
    yield []
    two.work()
    yield []
    yield [one.state(), two.state()]
    one.work()
    yield []


def test_fences_grow_over_restarts_and_over_a_clock_that_went_back(world: World) -> None:
    car = world.car()
    world.submit(1)
    fences = [next(iter(car.offers))[1]]
    for back_ms in (0, HOUR_MS, 1000 * HOUR_MS):
        world.utc_ms -= back_ms
        world.restart()
        world.refresh()
        for key in list(car.offers):
            car.refuse()
            assert key
        world.settle()
        world.live(limits.REFUSAL_WAIT_MIN_MS + 100)
        fences.append(max(key[1] for key in car.offers))
    assert fences == sorted(set(fences))


def test_a_restart_offers_live_attempts_again_at_once_with_the_same_fence(world: World) -> None:
    car = world.car()
    world.submit(3)
    key = car.take()
    world.settle()
    car.chunk(key, [0])
    world.settle()
    lease = (world.unit(key).lease_ms, world.unit(key).cold_ms)
    world.restart()
    assert (world.unit(key).lease_ms, world.unit(key).cold_ms) == lease
    commands = world.tick()
    (offer,) = [unit for x in world.of(commands, c.PublishOffer) for unit in x.units]
    assert (offer.unit, offer.fence) == key
    assert [item.index for item in offer.items] == [1, 2]
    world.settle()  # the car repeats Taken
    assert world.unit(key).taken_ms is not None
    car.finish(key)
    world.settle()
    assert not world.core.state.jobs


def test_a_restart_asks_the_cars_it_knows_how_they_are(world: World) -> None:
    """Free cars get work at once, not after their next state."""
    car, deaf = world.car(), world.car("deaf")
    world.tick(e.QuarantineSet(vehicle="car", on=True), e.QuarantineSet(vehicle="deaf", on=True))
    job = world.submit(1)
    world.tick(e.QuarantineSet(vehicle="car", on=False))
    world.restart()
    deaf.is_deaf = True
    world.settle()
    assert car.rebirths == 1
    assert [offer.job for offer in car.offers.values()] == [job]
    for _ in range(2 * limits.GREETINGS):
        due = world.core.next_deadline_ms(world.now)
        assert due is not None
        world.advance(max(1, due - world.boot_ms))
        world.tick()
    assert car.rebirths == 1


def test_a_restart_does_not_ask_a_large_fleet(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "GREETED_CARS_MAX", 1)
    cars = [world.car(name) for name in "ab"]
    world.restart()
    world.settle()
    assert [car.rebirths for car in cars] == [0, 0]


def test_an_attempt_of_which_only_the_last_word_is_missing_ends_at_a_restart(
    world: World,
) -> None:
    """Its two items ended, and its car has not said that it is done with them."""
    car = world.car()
    job = world.submit(3)
    key = car.take()
    other = world.car("other")
    world.settle()
    car.chunk(key, [0, 1], failed={2: ItemError.MODEL_ERROR})
    world.settle()
    assert [len(offer.items) for offer in other.offers.values()] == [1]
    world.restart()
    commands = world.tick()
    ended = world.of(commands, c.EndAttempt)
    assert [(x.unit, x.end) for x in ended] == [(key[0], AttemptEnd.COMPLETED)]
    car.finish(key)
    other.work()
    world.settle()
    assert world.verdicts(car) == ["stored", "already_have"]
    assert world.state_of(job) is JobState.DONE


def test_an_item_struck_before_a_restart_is_in_one_place_after_it(world: World) -> None:
    car = world.car("a")
    job = world.submit(3)
    key = car.take()
    world.settle()
    other = world.car("b")
    car.chunk(key, failed={0: ItemError.MODEL_ERROR})
    world.settle()
    assert [len(offer.items) for offer in other.offers.values()] == [1]
    world.restart()  # both attempts were issued item 0, and it has no result
    held = [index for unit in world.core.state.units.values() for index in unit.open]
    assert sorted(held) == [0, 1, 2]
    world.tick()
    other.work()
    car.finish(key)
    world.settle()
    assert world.ends(job) == {0: "ok", 1: "ok", 2: "ok"}


def test_a_struck_item_that_waits_is_not_given_back_to_its_unit_by_a_restart(
    world: World,
) -> None:
    car = world.car("a")
    busy = world.car("b", units_max=1)
    blocker = world.submit(1, vehicles=("b",))
    job = world.submit(3, vehicles=("a", "b"))
    key = next(k for k in car.take_all() if car.runs[k].offer.job == job)
    world.settle()
    event = car.chunk(key, failed={0: ItemError.MODEL_ERROR})
    world.settle()
    assert list(world.job(job).alone) == [0]
    world.restart()
    world.refresh()
    assert list(world.unit(key).open) == [1, 2]
    world.tick(event)
    assert world.model.job(job).strikes == [(0, "a")]
    busy.work()
    world.settle()
    assert world.state_of(blocker) is JobState.DONE
    world.drain()
    assert world.state_of(job) is JobState.DONE


@pytest.mark.usefixtures("small_windows")
def test_a_live_attempt_beyond_the_window_hides_no_job_from_a_restart(world: World) -> None:
    jobs = [world.submit(1, region="mars") for _ in range(7)]
    jobs.append(world.submit(1, priority=9))
    car = world.car()
    assert [offer.job for offer in car.offers.values()] == [jobs[-1]]
    limits.WINDOW_JOBS_MAX = 4  # type: ignore[misc]  # more tenants, a smaller share
    world.restart()
    world.car("martian", region="mars")
    world.refresh()
    world.drain()
    assert {world.state_of(job) for job in jobs} == {JobState.DONE}


# --- unit sizes --------------------------------------------------------------------------------


def sizes(car: ModelCar) -> list[int]:
    return [len(offer.items) for offer in car.offers.values()]


def test_a_unit_is_about_two_seconds_of_its_car(world: World) -> None:
    car = world.car(units_max=1)
    world.submit(1_000, reference_ms=100.0)
    assert sizes(car) == [limits.UNIT_TARGET_MS // 100]


def test_unit_size_follows_the_measured_speed(world: World) -> None:
    car = world.car(units_max=1)
    world.submit(5_000, reference_ms=100.0)
    for _ in range(12):
        key = car.take()
        car.finish(key, busy_ms=20.0 * len(car.runs[key].left))
        world.settle()
    (fast,) = sizes(car)
    assert fast > 60
    for _ in range(12):
        key = car.take()
        car.finish(key, busy_ms=400.0 * len(car.runs[key].left))
        world.settle()
    (slow,) = sizes(car)
    assert slow < 12


def test_little_work_is_shared_fairly(world: World) -> None:
    for n in range(4):
        world.car(f"car{n}")
    world.submit(8, reference_ms=100.0)
    shares = [sum(sizes(car)) for car in world.cars.values()]
    assert sum(shares) == 8
    assert min(shares) >= 1
    assert max(shares) <= 3


def test_a_unit_closes_at_its_size_in_bytes(world: World) -> None:
    car = world.car(units_max=1)
    world.submit(40, size=30_000, reference_ms=1.0)
    assert sizes(car) == [4]


def test_a_car_is_offered_work_until_its_backlog_is_full(world: World) -> None:
    car = world.car(units_max=64)
    world.submit(10_000, reference_ms=500.0)
    booked = sum(sizes(car)) * 500
    assert limits.BACKLOG_TARGET_MS <= booked <= limits.BACKLOG_TARGET_MS + limits.UNIT_TARGET_MS


@pytest.mark.parametrize("busy_ms", [-1.0, float("nan"), float("inf"), 1e30])
def test_absurd_times_move_nothing(busy_ms: float) -> None:
    pace = Pace(Fleet())
    before = pace.expect_ms("m", 100.0, 0)
    pace.measured("m", 0, 1, busy_ms)
    pace.measured("m", 0, 0, 5.0)
    pace.measured("unknown", 0, 1, 5.0)
    assert pace.expect_ms("m", 100.0, 0) == before


def test_speed_is_told_apart_by_car_and_by_model() -> None:
    pace = Pace(Fleet())
    for model, reference in (("m", 100.0), ("n", 10.0)):
        pace.expect_ms(model, reference, 0)
    for _ in range(60):
        pace.measured("m", 0, 1, 200.0)  # a slow car
        pace.measured("m", 1, 1, 50.0)  # a fast one
    assert pace.expect_ms("m", 100.0, 0) == pytest.approx(200.0, rel=0.25)
    assert pace.expect_ms("m", 100.0, 1) == pytest.approx(50.0, rel=0.25)
    assert pace.expect_ms("n", 10.0, 0) > 2 * pace.expect_ms("n", 10.0, 1)
    assert pace.lease_ms(1.0, 1.0) == limits.LEASE_MS
    assert pace.lease_ms(60_000.0, 1.0) == 240_000


def test_a_lease_outlives_the_engines_watchdog() -> None:
    """Or a car that finds an item hanging loses the attempt before it can say so."""
    pace = Pace(Fleet())
    for reference_ms in (1.0, 500.0, 5_000.0):
        hang_ms = max(limits.ENGINE_HANG_MS, limits.ENGINE_HANG_PER_REFERENCE * reference_ms)
        assert pace.lease_ms(1.0, reference_ms) > hang_ms
