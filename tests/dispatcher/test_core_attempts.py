"""Each row of the table of attempts, and what late, duplicate and false messages may do."""

import msgspec
import pytest
from core_rig import MODEL, OTHER_MODEL, ModelCar, World

from edge_runtime.contract import limits
from edge_runtime.contract.errors import RejectionReason
from edge_runtime.contract.http import AttemptEnd
from edge_runtime.contract.messages import Cancel, Cancelled, Fence, Refused, Taken
from edge_runtime.contract.reasons import (
    Availability,
    CancelReason,
    ItemError,
    JobState,
    Outcome,
    RefusalReason,
)
from edge_runtime.dispatcher.core import commands as c
from edge_runtime.dispatcher.core import events as e
from edge_runtime.dispatcher.core.jobs import UnitState


@pytest.fixture
def world() -> World:
    return World()


def running(world: World, car: ModelCar, items: int = 3) -> tuple[str, tuple[int, Fence]]:
    """A job of one unit that the car has taken."""
    job = world.submit(items)
    key = car.take()
    world.settle()
    return job, key


def cancels(commands: list[c.Command]) -> list[tuple[str, Cancel]]:
    return [
        (command.vehicle, order)
        for command in commands
        if isinstance(command, c.PublishOrders)
        for order in command.orders
        if isinstance(order, Cancel)
    ]


def ends_of(world: World, unit: int) -> list[AttemptEnd | None]:
    return [row.end for key, row in world.model.attempts.items() if key[0] == unit]


# --- the rows of the table ---------------------------------------------------------------------


def test_pending_with_a_free_car_is_offered_after_its_attempt_is_recorded(world: World) -> None:
    car = world.car()
    event = world.submitted(3)
    commands = world.tick(event)
    kinds = [type(command) for command in commands]
    assert kinds.index(c.AddJob) < kinds.index(c.BeginAttempt) < kinds.index(c.PublishOffer)
    (offer,) = car.offers.values()
    assert (offer.job, [item.index for item in offer.items]) == (event.spec.id, [0, 1, 2])
    assert (offer.model, offer.remaining_ms) == (MODEL, event.spec.deadline_ms - world.utc_ms)
    assert world.state_of(event.spec.id) is JobState.RUNNING


def test_pending_without_a_free_car_waits_and_says_why(world: World) -> None:
    world.car().say()
    world.tick(world.cars["car"].state(Availability.HOLD))
    job = world.submit()
    assert not world.offered
    explanation = world.core.explain(world.job(job), world.now)
    assert explanation.cars_excluded == {"held_or_driving": 1}
    world.tick(world.cars["car"].state(Availability.READY))
    assert len(world.offered) == 1


def test_taken_starts_the_lease(world: World) -> None:
    car = world.car()
    _, key = running(world, car)
    unit = world.unit(key)
    assert unit.state is UnitState.RUNNING
    allowance_ms = limits.LEASE_COLD_MS  # the model is not resident on this car
    assert unit.lease_until_boot_ms == world.boot_ms + unit.lease_ms + allowance_ms
    assert unit.lease_ms >= limits.LEASE_MS


def test_refused_goes_back_to_pending_and_the_car_waits(world: World) -> None:
    car = world.car()
    world.submit()
    first = car.refuse(retry_ms=5_000)
    world.settle()
    assert ends_of(world, first[0]) == [AttemptEnd.REFUSED]
    assert not car.offers
    world.live(4_000)
    assert not car.offers
    world.live(1_500)
    (second,) = car.offers
    assert second[0] == first[0]
    assert second[1] > first[1]


def test_a_car_that_will_not_do_a_job_is_asked_again_after_a_minute_and_works_for_others(
    world: World,
) -> None:
    """Found by the simulation, seed 4 at 666e3e7: 3,700 attempts of one unit in seconds."""
    car = world.car()
    world.submit()
    first = car.refuse(RefusalReason.TENANT_NOT_ALLOWED, retry_ms=0)
    world.settle()
    world.live(50_000)
    assert ends_of(world, first[0]) == [AttemptEnd.REFUSED]
    assert not car.offers
    other = world.submit()
    world.settle()
    assert [offer.job for offer in car.offers.values()] == [other]
    world.live(15_000)
    assert first[0] in {unit for unit, _ in car.offers}


def test_a_car_that_refuses_and_wants_to_be_asked_at_once_is_not(world: World) -> None:
    car = world.car()
    world.submit()
    first = car.refuse(RefusalReason.BUSY, retry_ms=0)
    world.settle()
    assert ends_of(world, first[0]) == [AttemptEnd.REFUSED]
    assert not car.offers


def test_an_absurd_wait_is_cut_to_the_offer_timeout(world: World) -> None:
    car = world.car()
    world.submit()
    car.refuse(RefusalReason.MODEL_UNAVAILABLE, retry_ms=limits.COUNT_MAX)
    world.settle()
    world.live(limits.OFFER_TIMEOUT_MS + 1_000)
    assert len(car.offers) == 1


def test_an_offer_without_an_answer_is_sent_again_unchanged(world: World) -> None:
    car = world.car()
    world.submit(2)
    (first,) = car.offers.values()
    world.advance(limits.OFFER_RESEND_MS)
    commands = world.tick()
    (again,) = [unit for x in world.of(commands, c.PublishOffer) for unit in x.units]
    assert not world.of(commands, c.BeginAttempt)
    moved = {"remaining_ms": first.remaining_ms - limits.OFFER_RESEND_MS}
    assert again == msgspec.structs.replace(first, **moved)


def test_an_offer_never_answered_times_out_with_a_cancel(world: World) -> None:
    car = world.car()
    world.submit(2)
    (first,) = car.offers
    cancelled: list[tuple[str, Cancel]] = []
    car.is_deaf = True
    while not cancelled and world.boot_ms < 2_000_000:
        world.advance(1_000)
        cancelled = cancels(world.tick(car.state()))
    assert world.boot_ms == 1_000_000 + limits.OFFER_TIMEOUT_MS
    assert cancelled == [
        (car.id, Cancel(unit=first[0], fence=first[1], reason=CancelReason.LEASE_LOST))
    ]
    assert ends_of(world, first[0])[0] is AttemptEnd.OFFER_TIMEOUT


def test_a_deaf_car_is_not_asked_again_at_once(world: World) -> None:
    deaf = world.car("deaf")
    world.submit(2)
    deaf.is_deaf = True
    world.live(limits.OFFER_TIMEOUT_MS + 1_000)
    other = world.car("other")
    world.live(1_000)
    assert other.offers


def test_a_chunk_renews_the_lease_and_proves_that_the_offer_was_taken(world: World) -> None:
    car = world.car()
    world.submit(3)
    key = car.take()
    car.outbox.clear()  # Taken is lost
    world.live(10_000)
    car.outbox.clear()
    car.chunk(key, [0])
    world.settle()
    unit = world.unit(key)
    assert unit.state is UnitState.RUNNING
    assert unit.lease_until_boot_ms == world.boot_ms + unit.lease_ms


def test_the_last_chunk_with_nothing_open_ends_the_unit(world: World) -> None:
    car = world.car()
    job, key = running(world, car)
    car.finish(key)
    world.settle()
    assert ends_of(world, key[0]) == [AttemptEnd.COMPLETED]
    assert world.ends(job) == {0: "ok", 1: "ok", 2: "ok"}
    assert world.state_of(job) is JobState.DONE
    assert not world.core.state.jobs
    assert not car.unanswered
    assert world.statuses[-1].state is JobState.DONE


def test_a_last_chunk_with_items_open_offers_them_again_under_a_new_fence(world: World) -> None:
    car = world.car()
    _, key = running(world, car)
    car.chunk(key, [0])
    car.release(key)
    world.settle()
    (offer,) = car.offers.values()
    assert offer.unit == key[0]
    assert offer.fence > key[1]
    assert [item.index for item in offer.items] == [1, 2]
    assert ends_of(world, key[0])[0] is AttemptEnd.RELEASED


def test_a_lease_that_runs_out_isolates_the_first_open_item(world: World) -> None:
    car, other = world.car("car"), world.car("other")
    other.availability = Availability.HOLD
    world.tick(other.state())
    _, key = running(world, car)
    car.chunk(key, [0])
    world.settle()
    del world.cars["car"]  # vanishes
    unit = world.unit(key)
    world.boot_ms = unit.lease_until_boot_ms
    commands = world.tick(other.state(Availability.READY))
    expected = Cancel(unit=key[0], fence=key[1], reason=CancelReason.LEASE_LOST)
    assert ("car", expected) in cancels(commands)
    issued = sorted(tuple(item.index for item in offer.items) for offer in other.offers.values())
    assert issued == [(1,), (2,)]
    assert ends_of(world, key[0])[0] is AttemptEnd.LEASE_EXPIRED


def test_a_cancelled_job_takes_its_attempts_back_until_answered(world: World) -> None:
    car = world.car()
    job, key = running(world, car)
    deaf = [car]
    world.cars.clear()
    commands = world.tick(e.JobCancelled(job=job))
    expected = (car.id, Cancel(unit=key[0], fence=key[1], reason=CancelReason.JOB_CANCELLED))
    assert cancels(commands) == [expected]
    assert world.state_of(job) is JobState.CANCELLED
    world.advance(limits.OFFER_RESEND_MS)
    assert cancels(world.tick()) == [expected]
    world.cars["car"] = deaf[0]
    world.advance(limits.OFFER_RESEND_MS)
    world.settle()
    world.advance(limits.OFFER_RESEND_MS)
    assert not cancels(world.tick())


def test_a_cancel_that_is_never_answered_is_given_up(world: World) -> None:
    car = world.car()
    job, _ = running(world, car)
    world.cars.clear()
    world.tick(e.JobCancelled(job=job))
    world.advance(limits.CANCEL_GIVE_UP_MS)
    world.tick()
    assert world.core.state.counters["cancels_given_up"] == 1
    world.advance(limits.CANCEL_GIVE_UP_MS)
    assert not cancels(world.tick())


def test_only_the_cancelled_car_ends_a_cancel(world: World) -> None:
    car = world.car()
    world.car("liar")
    job, key = running(world, car)
    del world.cars["car"]
    world.tick(e.JobCancelled(job=job))
    lie = Cancelled(unit=key[0], fence=key[1])
    world.tick(e.VerdictReceived(vehicle="liar", verdict=lie))
    world.advance(limits.OFFER_RESEND_MS)
    assert [vehicle for vehicle, _ in cancels(world.tick())] == ["car"]


def test_quarantine_takes_work_back_and_gives_none(world: World) -> None:
    car = world.car()
    job, key = running(world, car)
    commands = world.tick(e.QuarantineSet(vehicle=car.id, on=True))
    expected = Cancel(unit=key[0], fence=key[1], reason=CancelReason.QUARANTINED)
    assert cancels(commands) == [(car.id, expected)]
    world.settle()
    world.live(5_000)
    assert not car.offers
    world.restart()
    world.refresh()
    world.live(5_000)
    assert not car.offers
    world.tick(e.QuarantineSet(vehicle=car.id, on=False))
    world.drain()
    assert world.state_of(job) is JobState.DONE


def test_a_quarantined_car_has_its_chunks_answered_and_counted(world: World) -> None:
    car = world.car()
    job, key = running(world, car)
    event = car.chunk(key, [0])
    car.outbox.clear()
    world.tick(e.QuarantineSet(vehicle=car.id, on=True))
    world.tick(event)
    assert world.verdicts(car) == ["not_wanted"]
    assert world.rejected[RejectionReason.QUARANTINED] == 1
    assert world.ends(job) == {}


def test_a_cancelled_verdict_of_a_live_unit_gives_its_items_back(world: World) -> None:
    car = world.car()
    _, key = running(world, car)
    del car.runs[key]
    car.say(
        e.VerdictReceived(vehicle=car.id, verdict=Cancelled(unit=key[0], fence=key[1])),
    )
    world.settle()
    assert ends_of(world, key[0])[0] is AttemptEnd.CANCELLED
    assert len(car.offers) == 1


# --- verdicts that do not fit ------------------------------------------------------------------


def test_taken_of_a_stale_fence_is_answered_with_a_cancel(world: World) -> None:
    car = world.car()
    world.submit(2)
    (key,) = car.offers
    stale = Taken(unit=key[0], fence=Fence(key[1].epoch, 0))
    commands = world.tick(e.VerdictReceived(vehicle=car.id, verdict=stale))
    expected = Cancel(unit=stale.unit, fence=stale.fence, reason=CancelReason.STALE_FENCE)
    assert cancels(commands) == [(car.id, expected)]
    assert world.unit(key).state is UnitState.OFFERED


@pytest.mark.parametrize("kind", [Taken, Refused, Cancelled])
def test_a_verdict_of_another_car_changes_nothing(world: World, kind: type) -> None:
    car = world.car()
    world.submit(2)
    (key,) = car.offers
    world.car("liar")
    more = {"reason": RefusalReason.BUSY, "retry_after_ms": 0} if kind is Refused else {}
    verdict = kind(unit=key[0], fence=key[1], **more)
    world.tick(e.VerdictReceived(vehicle="liar", verdict=verdict))
    unit = world.unit(key)
    assert (unit.state, unit.vehicle) == (UnitState.OFFERED, "car")


def test_verdicts_of_an_unknown_car_are_counted_and_it_is_asked_who_it_is(world: World) -> None:
    stranger = ModelCar("stranger")
    world.cars["stranger"] = stranger
    verdict = Taken(unit=1, fence=Fence(1, 1))
    world.tick(e.VerdictReceived(vehicle="stranger", verdict=verdict))
    assert world.rejected[RejectionReason.UNKNOWN_VEHICLE] == 1
    world.settle()
    assert stranger.rebirths == 1
    assert "stranger" in world.core.fleet.row_of


# --- chunks: duplicate, late, out of order, false ----------------------------------------------


def test_a_duplicate_chunk_is_answered_again_and_counts_nothing_twice(world: World) -> None:
    car = world.car()
    job, key = running(world, car)
    event = car.chunk(key, [0, 1], busy_ms=80.0, energy_j=5.0)
    world.tick()
    world.tick(event)
    assert world.verdicts(car) == ["stored", "already_have"]
    unit = world.unit(key)
    assert (unit.items_done, unit.busy_ms, unit.energy_j) == (2, 80.0, 5.0)
    assert world.ends(job) == {0: "ok", 1: "ok"}
    assert world.core.fleet.items_done[unit.row] == 2


def test_a_duplicate_of_the_last_chunk_is_answered_after_the_end(world: World) -> None:
    car = world.car()
    job, key = running(world, car)
    event = car.finish(key)
    world.settle()
    world.tick(event)
    assert world.verdicts(car) == ["stored", "not_wanted"]
    assert world.state_of(job) is JobState.DONE


def test_chunks_out_of_order_lose_nothing(world: World) -> None:
    car = world.car()
    job, key = running(world, car)
    chunks = [car.chunk(key, [0]), car.chunk(key, [1]), car.finish(key)]
    car.outbox.clear()
    for chunk in reversed(chunks):
        world.tick(chunk)
    world.settle()
    assert world.ends(job) == {0: "ok", 1: "ok", 2: "ok"}
    assert world.state_of(job) is JobState.DONE
    assert not car.unanswered
    assert not world.core.state.units


def _expired(world: World, car: ModelCar, key: tuple[int, Fence]) -> None:
    """The lease of the car's run is lost while it cannot speak."""
    car.outbox.clear()
    world.boot_ms = world.unit(key).lease_until_boot_ms
    world.tick()
    car.outbox.clear()


def test_a_late_chunk_fills_open_items_and_renews_nothing(world: World) -> None:
    car = world.car()
    job, key = running(world, car)
    late = car.chunk(key, [0, 1])
    _expired(world, car, key)
    other = world.car("other")
    (suspect, rest) = sorted(other.offers, key=lambda k: len(other.offers[k].items))
    assert [item.index for item in other.offers[suspect].items] == [0]
    other.take_all()
    world.settle()
    holder = world.unit(rest)
    lease = holder.lease_until_boot_ms
    world.advance(500)
    commands = world.tick(late)
    assert world.ends(job) == {0: "ok", 1: "ok"}
    assert world.verdicts(car) == ["stored"]
    assert holder.lease_until_boot_ms == lease
    assert list(holder.open) == [2]
    expected = Cancel(unit=suspect[0], fence=suspect[1], reason=CancelReason.STALE_FENCE)
    assert cancels(commands) == [("other", expected)]
    assert world.core.fleet.backlog_ms[world.core.fleet.row_of["other"]] == pytest.approx(
        holder.expected_item_ms
    )
    world.drain()
    assert world.state_of(job) is JobState.DONE


def test_a_late_chunk_fills_items_that_wait_in_a_queue(world: World) -> None:
    car = world.car()
    job, key = running(world, car)
    late = car.chunk(key, [0, 1, 2])
    _expired(world, car, key)
    assert not world.core.state.units  # nobody has it now
    world.tick(late)
    assert world.ends(job) == {0: "ok", 1: "ok", 2: "ok"}
    assert world.state_of(job) is JobState.DONE


def test_a_late_chunk_fills_items_that_were_issued_and_no_others(world: World) -> None:
    car = world.car()
    job, key = running(world, car, items=2)
    second = world.submit(1)
    event = car.chunk(key, [0])
    _expired(world, car, key)
    chunk = msgspec.structs.replace(event.chunk, job=second)
    world.tick(e.ChunkReceived(vehicle=car.id, chunk=chunk))
    assert world.ends(second) == {}
    assert world.rejected[RejectionReason.NOT_YOUR_ATTEMPT] == 1
    items = (msgspec.structs.replace(event.chunk.items[0], index=7),)
    chunk = msgspec.structs.replace(event.chunk, items=items)
    world.tick(e.ChunkReceived(vehicle=car.id, chunk=chunk))
    assert world.ends(job) == {}
    assert world.verdicts(car) == ["not_wanted", "already_have"]


@pytest.mark.parametrize("late", [False, True])
def test_a_chunk_of_another_model_is_not_wanted(world: World, *, late: bool) -> None:
    car = world.car()
    job, key = running(world, car)
    event = car.chunk(key, [0])
    car.outbox.clear()
    if late:
        _expired(world, car, key)
    chunk = msgspec.structs.replace(event.chunk, model=OTHER_MODEL)
    world.tick(e.ChunkReceived(vehicle=car.id, chunk=chunk))
    assert world.verdicts(car) == ["not_wanted"]
    assert world.ends(job) == {}


@pytest.mark.parametrize("state", ["current", "late", "forgotten"])
def test_a_chunk_of_another_car_is_rejected_and_still_answered(world: World, state: str) -> None:
    car = world.car()
    job, key = running(world, car)
    event = car.chunk(key, [0])
    car.outbox.clear()
    if state == "late":
        _expired(world, car, key)
    liar = world.car("liar")
    if state == "forgotten":
        world.restart()
        world.core.state.old_attempts.clear()
        _expired(world, car, key)
        world.core.state.old_attempts.clear()
    world.tick(e.ChunkReceived(vehicle="liar", chunk=event.chunk))
    world.tick()
    assert world.verdicts(liar) == ["not_wanted"]
    assert world.rejected[RejectionReason.NOT_YOUR_ATTEMPT] == 1
    assert world.ends(job) == {}


def test_a_chunk_of_an_unknown_car_is_rejected_and_it_is_asked_who_it_is(world: World) -> None:
    car = world.car()
    _, key = running(world, car)
    event = car.chunk(key, [0])
    car.outbox.clear()
    stranger = world.cars["stranger"] = ModelCar("stranger")
    world.tick(e.ChunkReceived(vehicle="stranger", chunk=event.chunk))
    world.settle()
    assert world.rejected[RejectionReason.UNKNOWN_VEHICLE] == 1
    assert stranger.rebirths == 1


@pytest.mark.parametrize("fate", ["cancelled", "done", "deleted", "never was"])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_chunk_of_an_ended_or_unknown_job_is_not_wanted(
    world: World, fate: str, *, restarted: bool
) -> None:
    car = world.car()
    job, key = running(world, car)
    event = car.chunk(key, [0, 1, 2])
    car.outbox.clear()
    match fate:
        case "cancelled":
            world.tick(e.JobCancelled(job=job))
        case "done":
            world.tick(event)
        case "deleted":
            world.tick(e.JobCancelled(job=job))
            assert world.model.delete(job)
        case _:
            unknown = msgspec.structs.replace(event.chunk, job="never-was", unit=99)
            event = e.ChunkReceived(vehicle=car.id, chunk=unknown)
    if restarted:
        world.restart()
    world.answers.clear()
    world.settle()
    world.tick(event)
    world.settle()
    expected = "already_have" if fate == "done" and not restarted else "not_wanted"
    assert world.verdicts(car)[-1] == expected
    assert sum(car.id == vehicle for vehicle, _ in world.answers) == 1


def test_a_chunk_that_only_the_store_remembers_fills_open_items(world: World) -> None:
    car = world.car()
    job, key = running(world, car)
    late = car.chunk(key, [0, 1])
    _expired(world, car, key)
    world.restart()
    world.core.state.old_attempts.clear()
    world.tick(late)
    world.tick()
    assert world.verdicts(car) == ["stored"]
    assert world.ends(job) == {0: "ok", 1: "ok"}
    world.refresh()
    world.drain()
    assert world.state_of(job) is JobState.DONE


def test_of_a_cancel_and_a_result_the_first_wins(world: World) -> None:
    car = world.car()
    first, key = running(world, car)
    result = car.finish(key)
    car.outbox.clear()
    world.tick(result, e.JobCancelled(job=first))
    assert world.state_of(first) is JobState.DONE
    second, key = running(world, car)
    result = car.finish(key)
    car.outbox.clear()
    world.tick(e.JobCancelled(job=second), result)
    assert world.state_of(second) is JobState.CANCELLED
    assert world.ends(second) == {}
    assert world.verdicts(car)[-1] == "not_wanted"


def test_a_deadline_fails_the_rest_once(world: World) -> None:
    car = world.car()
    job, key = running(world, car)
    car.chunk(key, [1])
    world.settle()
    world.advance(world.job(job).spec.deadline_ms - world.utc_ms - 1)
    world.tick(car.state())
    assert world.state_of(job) is JobState.RUNNING
    world.advance(1)
    commands = world.tick()
    assert len(world.of(commands, c.FailRemaining)) == 1
    assert world.ends(job) == {0: "deadline_passed", 1: "ok", 2: "deadline_passed"}
    assert world.state_of(job) is JobState.EXPIRED
    assert world.statuses[-1].failed == 2
    world.advance(10_000)
    assert not world.of(world.tick(), c.FailRemaining)


def test_the_core_asks_to_be_called_at_a_deadline(world: World) -> None:
    job = world.submit()
    world.advance(limits.STATUS_PUBLISH_INTERVAL_MS)
    world.tick()
    urgent_ms, deadline_ms = world.job(job).urgent_from_ms, world.job(job).spec.deadline_ms
    for moment in (urgent_ms, deadline_ms):
        due = world.core.next_deadline_ms(world.now)
        assert due == world.boot_ms + moment - world.utc_ms
        world.advance(urgent_ms - world.utc_ms)
        world.tick()


def test_a_failure_that_blames_the_input_ends_the_item_at_once(world: World) -> None:
    car = world.car()
    job, key = running(world, car, items=1)
    failed = {0: ItemError.UNDECODABLE_INPUT}
    car.chunk(key, failed=failed, ending=Outcome.COMPLETED)
    world.settle()
    assert world.ends(job) == {0: "undecodable_input"}
    assert world.state_of(job) is JobState.DONE
    assert len(world.model.attempts) == 1
