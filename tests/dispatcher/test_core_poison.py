"""What counts against an item, what does not, and that every poisonous item ends."""

import pytest
from core_rig import Key, ModelCar, World

from edge_runtime.contract import limits
from edge_runtime.contract.errors import RejectionReason
from edge_runtime.contract.messages import Fence
from edge_runtime.contract.reasons import (
    Availability,
    ItemError,
    JobState,
    Outcome,
    RefusalReason,
    ReleaseReason,
)
from edge_runtime.dispatcher.core import commands as c
from edge_runtime.dispatcher.core import events as e

STRIKES = [
    ItemError.MODEL_ERROR,
    ItemError.OUT_OF_MEMORY,
    ItemError.ENGINE_KILLED,
    ItemError.ENGINE_HUNG,
    ItemError.CAR_REBOOTED,
    ItemError.UNKNOWN,
]
FINAL = [error for error in ItemError if error.is_final]


@pytest.fixture
def world() -> World:
    return World()


def only(car: ModelCar) -> Key:
    (key,) = car.offers
    return car.take(key)


def busy_with(world: World, name: str, items: int = 3) -> tuple[ModelCar, Key, str]:
    """A job of one unit, on the only car that is ready."""
    car = world.car(name)
    job = world.submit(items)
    key = only(car)
    world.settle()
    return car, key, job


def strikes_on(world: World, job: str) -> list[tuple[int, str]]:
    return world.model.job(job).strikes


@pytest.mark.parametrize("error", FINAL)
def test_a_final_error_settles_its_item_at_once_and_no_other(
    world: World, error: ItemError
) -> None:
    car, key, job = busy_with(world, "a")
    car.chunk(key, [0], failed={1: error})
    world.settle()
    assert world.ends(job) == {0: "ok", 1: error.value}
    car.finish(key)
    world.settle()
    assert world.ends(job) == {0: "ok", 1: error.value, 2: "ok"}
    assert world.state_of(job) is JobState.DONE


@pytest.mark.parametrize("error", STRIKES)
def test_a_strike_retries_the_item_alone_on_a_car_without_one(
    world: World, error: ItemError
) -> None:
    car, key, job = busy_with(world, "a")
    world.car("b")
    car.chunk(key, [0], failed={1: error})
    world.settle()
    assert strikes_on(world, job) == [(1, "a")]
    other = world.cars["b"]
    (offer,) = other.offers.values()
    assert [item.index for item in offer.items] == [1]
    assert not car.offers
    car.finish(key)
    other.work()
    world.settle()
    assert world.ends(job) == {0: "ok", 1: "ok", 2: "ok"}
    assert world.state_of(job) is JobState.DONE


def test_an_item_fails_for_good_after_so_many_distinct_cars(world: World) -> None:
    names = [f"car{n}" for n in range(limits.POISON_DISTINCT_CARS + 1)]
    for name in names:
        world.car(name)
    job = world.submit(1)
    tried: list[str] = []
    while world.state_of(job) is not JobState.DONE:
        (car,) = [car for car in world.cars.values() if car.offers]
        tried.append(car.id)
        car.chunk(only(car), failed={0: ItemError.ENGINE_KILLED}, ending=Outcome.COMPLETED)
        world.settle()
    assert len(tried) == len(set(tried)) == limits.POISON_DISTINCT_CARS
    row = world.model.job(job).results[0]
    assert row.error is not None
    assert (row.error.code, row.error.attempts) == (ItemError.ENGINE_KILLED, 3)


def test_a_single_car_ends_a_poisonous_item_too(world: World) -> None:
    car = world.car()
    job = world.submit(1)
    tries = 0
    while world.state_of(job) is not JobState.DONE:
        tries += 1
        assert tries < 20
        car.chunk(only(car), failed={0: ItemError.ENGINE_HUNG}, ending=Outcome.COMPLETED)
        world.settle()
    assert world.ends(job) == {0: "engine_hung"}


def test_an_engine_killing_item_leaves_the_rest_of_its_unit_unharmed(world: World) -> None:
    """Each car does what it can, blames the item it had in hand and gives the rest back."""
    for n in range(4):
        world.car(f"car{n}")
    job = world.submit(40)
    for _ in range(100):
        if not world.model.job(job).is_open:
            break
        for car in world.cars.values():
            for key in [*car.runs, *car.take_all()]:
                _run_with_poison(car, key, poison=7)
        world.settle()
    ends = world.ends(job)
    assert ends.pop(7) == "engine_killed"
    assert set(ends.values()) == {"ok"}
    assert len(ends) == 39
    assert len({vehicle for _, vehicle in strikes_on(world, job)}) == 2  # the third settled it


def _run_with_poison(car: ModelCar, key: Key, poison: int) -> None:
    left = list(car.runs[key].left)
    if poison not in left:
        car.finish(key)
        return
    before = left[: left.index(poison)]
    car.chunk(key, before, failed={poison: ItemError.ENGINE_KILLED})
    car.release(key, ReleaseReason.ENGINE_DIED)


def test_refusals_and_owners_stops_never_count(world: World) -> None:
    car = world.car()
    job = world.submit(2)
    for n in range(limits.ATTEMPTS_PER_ITEM_MAX + 10):
        if n % 2:
            car.refuse(RefusalReason.HOLD)
        else:
            car.release(only(car))
        world.settle()
        world.advance(1_000)
        world.refresh()
    assert world.ends(job) == {}
    assert strikes_on(world, job) == []
    assert not world.job(job).expiries
    (offer,) = car.offers.values()
    assert len(offer.items) == 2
    world.drain()
    assert world.state_of(job) is JobState.DONE


def test_silent_expiry_isolates_only_the_first_open_item(world: World) -> None:
    car, key, job = busy_with(world, "a", items=4)
    car.chunk(key, [0])
    world.settle()
    del world.cars["a"]
    world.boot_ms = world.unit(key).lease_until_boot_ms
    world.tick()
    other = world.car("b")
    issued = sorted(tuple(item.index for item in offer.items) for offer in other.offers.values())
    assert issued == [(1,), (2, 3)]
    assert strikes_on(world, job) == []
    other.work()
    world.settle()
    assert world.state_of(job) is JobState.DONE


def test_an_item_with_which_every_car_falls_silent_ends_at_last(world: World) -> None:
    world.car("a")
    world.car("b")
    job = world.submit(1, deadline_ms=world.utc_ms + 100 * 3_600_000)
    for _ in range(3 * limits.ATTEMPTS_PER_ITEM_MAX):
        if not world.model.job(job).is_open:
            break
        for car in world.cars.values():
            car.take_all()
            world.tick()
            car.runs.clear()
        world.live(limits.LEASE_MS + limits.OFFER_TIMEOUT_MS + 1_000, step_ms=5_000)
    assert world.ends(job) == {0: "too_many_attempts"}


def test_an_item_that_fell_silent_is_tried_on_another_car(world: World) -> None:
    car, key, job = busy_with(world, "a", items=1)
    other = world.car("b")
    del car.runs[key]
    world.live(limits.LEASE_MS + limits.LEASE_COLD_MS + 1_000)
    assert [len(x.offers) for x in (car, other)] == [0, 1]
    assert world.model.job(job).is_open


def test_a_car_that_says_completed_and_did_nothing_cannot_keep_an_item_for_ever(
    world: World,
) -> None:
    car = world.car("liar")
    job = world.submit(2)
    for _ in range(3 * limits.ATTEMPTS_PER_ITEM_MAX):
        if not world.model.job(job).is_open:
            break
        for key in car.take_all():
            car.chunk(key, ending=Outcome.COMPLETED)
        world.settle()
    assert world.ends(job) == {0: "too_many_attempts", 1: "too_many_attempts"}


def test_an_isolated_item_that_waits_for_another_car_holds_up_nobody(world: World) -> None:
    """Head-of-line blocking: one struck item must not idle the car that it failed on."""
    car, key, job = busy_with(world, "a", items=1)
    other = world.car("b", units_max=1)
    blocker = world.submit(1, vehicles=("b",))
    assert len(other.offers) == 1
    car.chunk(key, failed={0: ItemError.MODEL_ERROR}, ending=Outcome.COMPLETED)
    world.settle()
    second = world.submit(1)
    assert [offer.job for offer in car.offers.values()] == [second]
    assert not world.job(job).units
    other.work()
    world.settle()
    assert [offer.job for offer in other.offers.values()] == [job]
    assert world.state_of(blocker) is JobState.DONE


def test_a_car_that_takes_no_units_is_no_other_car(world: World) -> None:
    car, key, job = busy_with(world, "a", items=1)
    world.car("b", units_max=0)
    car.chunk(key, failed={0: ItemError.MODEL_ERROR}, ending=Outcome.COMPLETED)
    world.settle()
    assert len(car.offers) == 1
    assert world.model.job(job).is_open


def test_a_reboot_that_outlasts_the_lease_still_counts(world: World) -> None:
    """An item that takes cars down is always reported late."""
    cars = [world.car(f"car{n}") for n in range(limits.POISON_DISTINCT_CARS)]
    job = world.submit(1)
    for _ in range(limits.POISON_DISTINCT_CARS):
        (car,) = [car for car in cars if car.offers]
        del world.cars[car.id]
        car.take()
        world.tick(*car.speak())
        world.live(limits.LEASE_MS + 1_000)
        world.cars[car.id] = car
        car.reboot()
        world.settle()
    assert world.ends(job) == {0: "car_rebooted"}
    assert world.state_of(job) is JobState.DONE


def test_a_late_failure_counts_once_a_car(world: World) -> None:
    car, key, job = busy_with(world, "a", items=1)
    event = car.chunk(key, failed={0: ItemError.ENGINE_KILLED}, ending=Outcome.COMPLETED)
    car.outbox.clear()
    world.boot_ms = world.unit(key).lease_until_boot_ms
    world.tick()
    for _ in range(10):
        world.tick(event)
    assert strikes_on(world, job) == [(0, "a")]
    assert world.verdicts(car) == ["stored"] + ["already_have"] * 9


@pytest.mark.parametrize("items", [1, 2])
def test_a_late_strike_too_many_settles_an_item_that_waits(world: World, items: int) -> None:
    """It is taken off its queue first: settling it may end the job and with it the queue."""
    late: list[e.ChunkReceived] = []
    job = ""
    for n in range(limits.POISON_DISTINCT_CARS):
        car = world.car(f"car{n}")
        job = job or world.submit(items)
        world.live(1_000)
        key = next(k for k in car.take_all() if 0 in car.runs[k].left)
        world.tick()
        late.append(car.chunk(key, failed={0: ItemError.ENGINE_KILLED}))
        car.outbox.clear()
        world.boot_ms = world.unit(key).lease_until_boot_ms
        world.tick()
    assert 0 in world.job(job).alone
    world.tick(*late)
    assert world.ends(job) == {0: "engine_killed"}
    assert world.model.job(job).is_open is (items > 1)


def test_a_late_strike_leaves_the_item_with_the_car_that_has_it(world: World) -> None:
    car, key, job = busy_with(world, "a", items=1)
    event = car.chunk(key, failed={0: ItemError.ENGINE_KILLED}, ending=Outcome.COMPLETED)
    car.outbox.clear()
    other = world.car("b")
    world.boot_ms = world.unit(key).lease_until_boot_ms
    world.tick(other.state())
    held = only(other)
    world.settle()
    world.tick(event)
    assert strikes_on(world, job) == [(0, "a")]
    assert list(world.unit(held).open) == [0]
    other.work()
    world.settle()
    assert world.ends(job) == {0: "ok"}


def test_a_late_final_error_fills_an_open_item_but_a_late_deadline_does_not(world: World) -> None:
    car, key, job = busy_with(world, "a", items=2)
    event = car.chunk(
        key,
        failed={0: ItemError.WRONG_SHAPE, 1: ItemError.DEADLINE_PASSED},
        ending=Outcome.COMPLETED,
    )
    car.outbox.clear()
    world.boot_ms = world.unit(key).lease_until_boot_ms
    world.tick()
    world.tick(event)
    assert world.ends(job) == {0: "wrong_shape"}


def test_strikes_survive_a_restart(world: World) -> None:
    car, key, job = busy_with(world, "a", items=3)
    car.chunk(key, [0], failed={1: ItemError.MODEL_ERROR})
    world.settle()
    world.restart()
    world.tick(e.QuarantineSet(vehicle="a", on=True))
    other = world.car("b")
    world.settle()
    world.live(3_000)
    issued = sorted(tuple(item.index for item in offer.items) for offer in other.offers.values())
    assert issued == [(1,), (2,)]
    other.chunk(
        next(k for k in other.take_all() if 1 in other.runs[k].left),
        failed={1: ItemError.MODEL_ERROR},
        ending=Outcome.COMPLETED,
    )
    world.settle()
    assert strikes_on(world, job) == [(1, "a"), (1, "b")]


# --- dead letters ------------------------------------------------------------------------------


def dead(world: World, items: int = 2) -> tuple[ModelCar, str]:
    """A job that is done, all items of it failed."""
    car, key, job = busy_with(world, "a", items)
    failed = dict.fromkeys(range(items), ItemError.WRONG_SHAPE)
    car.chunk(key, failed=failed, ending=Outcome.COMPLETED)
    world.settle()
    assert world.state_of(job) is JobState.DONE
    return car, job


def test_dead_letters_run_again_and_the_job_is_open_again(world: World) -> None:
    car, job = dead(world)
    commands = world.tick(world.requeue(job, [1]))
    assert [x.items for x in world.of(commands, c.WithdrawFailures)] == [(1,)]
    assert world.state_of(job) is JobState.RUNNING
    assert world.ends(job) == {0: "wrong_shape"}
    car.work()
    world.settle()
    assert world.ends(job) == {0: "wrong_shape", 1: "ok"}
    row = world.model.job(job)
    assert (row.done, row.failed, row.cursor) == (1, 1, 3)
    assert world.state_of(job) is JobState.DONE


@pytest.mark.parametrize("restarted", [False, True])
def test_a_requeued_item_starts_without_strikes(world: World, *, restarted: bool) -> None:
    cars = [world.car(f"car{n}") for n in range(limits.POISON_DISTINCT_CARS)]
    job = world.submit(1)

    def fail_once() -> None:
        (car,) = [car for car in cars if car.offers]
        car.chunk(only(car), failed={0: ItemError.MODEL_ERROR}, ending=Outcome.COMPLETED)
        world.settle()

    for _ in range(limits.POISON_DISTINCT_CARS):
        fail_once()
    assert world.ends(job) == {0: "model_error"}
    if restarted:
        world.restart()
        world.refresh()
    world.tick(world.requeue(job))
    world.settle()
    fail_once()
    assert world.model.job(job).is_open
    fail_once()
    assert world.model.job(job).is_open
    fail_once()
    assert world.ends(job) == {0: "model_error"}


def test_a_requeue_gives_an_expired_job_time_and_the_old_deadline_is_forgotten(
    world: World,
) -> None:
    car, key, job = busy_with(world, "a")
    failed = {0: ItemError.WRONG_SHAPE}
    car.chunk(key, failed=failed)
    world.settle()
    old_deadline_ms = world.job(job).spec.deadline_ms
    world.advance(1_800_000)
    world.tick(world.requeue(job))
    new_deadline_ms = world.job(job).spec.deadline_ms
    assert new_deadline_ms > old_deadline_ms
    world.advance(old_deadline_ms - world.utc_ms)
    world.tick()
    assert world.state_of(job) is JobState.RUNNING
    world.advance(new_deadline_ms - world.utc_ms)
    world.tick()
    assert world.state_of(job) is JobState.EXPIRED


def test_an_expired_job_that_never_ran_can_be_requeued(world: World) -> None:
    """Its old object may still stand in line: two objects of one number are never compared."""
    world.car("a")
    world.tick(world.cars["a"].state(Availability.HOLD))
    first = world.submit(1, priority=9)
    job = world.submit(2, deadline_ms=world.utc_ms + 1_000)
    world.advance(1_000)
    world.tick()
    assert world.state_of(job) is JobState.EXPIRED
    world.tick(world.requeue(job))
    world.tick(world.cars["a"].state(Availability.READY))
    world.drain()
    assert world.ends(job) == {0: "ok", 1: "ok"}
    assert world.state_of(first) is JobState.DONE


def test_two_requeues_read_at_once_withdraw_once(world: World) -> None:
    car, job = dead(world)
    first, second = world.requeue(job), world.requeue(job)
    commands = world.tick(first, second)
    assert len(world.of(commands, c.WithdrawFailures)) == 1
    car.work()
    world.settle()
    world.tick(second)  # read long ago, handled only now
    assert world.ends(job) == {0: "ok", 1: "ok"}
    assert world.state_of(job) is JobState.DONE
    assert world.model.job(job).failed == 0


def test_a_requeue_read_before_its_job_ended_uses_the_newest_counts(world: World) -> None:
    car, key, job = busy_with(world, "a")
    car.chunk(key, failed={0: ItemError.WRONG_SHAPE})
    world.settle()
    requeue = world.requeue(job)
    finish = car.finish(key)
    car.outbox.clear()
    world.tick(finish, requeue)
    assert world.state_of(job) is JobState.RUNNING
    world.drain()
    assert world.ends(job) == {0: "ok", 1: "ok", 2: "ok"}
    assert world.model.job(job).cursor == 4


def test_a_requeue_of_a_cancelled_job_runs_what_is_left_of_it(world: World) -> None:
    car, key, job = busy_with(world, "a")
    car.chunk(key, failed={0: ItemError.WRONG_SHAPE})
    world.settle()
    world.tick(e.JobCancelled(job=job))
    world.settle()
    assert world.ends(job) == {0: "wrong_shape"}
    world.tick(world.requeue(job))
    world.drain()
    assert world.ends(job) == {0: "ok", 1: "ok", 2: "ok"}


def test_a_requeue_of_nothing_opens_nothing(world: World) -> None:
    _, job = dead(world)
    event = world.requeue(job)
    world.tick(e.JobRequeued(job=event.job, items=()))
    assert world.state_of(job) is JobState.DONE


def test_nothing_is_counted_against_an_item_by_another_car(world: World) -> None:
    car, key, job = busy_with(world, "a", items=1)
    event = car.chunk(key, failed={0: ItemError.MODEL_ERROR})
    car.outbox.clear()
    world.car("liar")
    world.tick(e.ChunkReceived(vehicle="liar", chunk=event.chunk))
    assert world.rejected[RejectionReason.NOT_YOUR_ATTEMPT] == 1
    assert strikes_on(world, job) == []
    assert isinstance(key[1], Fence)
