"""Interactive units on a car: the owner's same rules, nothing written down, said once and at once.

The bench asserts on every command that nothing of such a unit reaches the journal, that no chunk
of it is sent twice, and that Taken is never said of it.
"""

import pytest
from car_bench import (
    INTERACTIVE_UNIT,
    MODEL,
    OTHER_MODEL,
    STOPPED,
    Bench,
    ask,
    offer,
    only,
    verdicts,
)

from edge_runtime.contract import limits
from edge_runtime.contract.codec import encode
from edge_runtime.contract.messages import Cancelled, Refused, Tokens
from edge_runtime.contract.reasons import (
    CancelReason,
    FinishReason,
    HoldReason,
    ItemError,
    Outcome,
    RefusalReason,
    ReleaseReason,
)
from edge_runtime.vehicle.core import commands as c
from edge_runtime.vehicle.core import events as e
from edge_runtime.vehicle.core.attempts import Phase

UNIT = INTERACTIVE_UNIT


def asked(*units: int, items: tuple[int, ...] = (0,)) -> Bench:
    """A car in good conditions that was asked for these units."""
    car = Bench().open()
    car.send(e.UnitsOffered(tuple(ask(unit, items) for unit in units)))
    return car


def test_it_runs_at_once_and_is_told_at_once() -> None:
    car = Bench().open()
    said = car.send(e.UnitsOffered((ask(UNIT),)))
    (run,) = only(c.SubmitRun, said)
    assert (run.urgent, run.streams) == (True, True)
    said = car.compute(UNIT, 0)
    assert only(c.PublishChunks, said), "in the step in which the item was finished"
    (chunk,) = car.published()
    assert chunk.ending is not None
    assert chunk.ending.outcome is Outcome.COMPLETED
    assert not car.core.work.attempts


def test_nothing_of_it_is_journalled_or_sent_again() -> None:
    car = asked(UNIT)
    car.compute(UNIT, 0)
    car.commit()
    car.send(e.BusDisconnected())
    car.send(e.BusConnected())
    car.live(limits.CHUNK_RESEND_MAX_MS / 1000)
    assert not car.journal.attempts
    assert not car.journal.chunks
    assert len(car.published()) == 1
    car.crash()
    assert not car.core.work.attempts


def test_items_that_come_together_travel_together_and_slow_ones_do_not_wait() -> None:
    car = asked(UNIT, items=(0, 1, 2))
    run = car.run_of(UNIT)
    events = [e.ItemFinished(run, index, encode("ok"), 1.0) for index in (0, 1)]
    for command in car.core.handle_all(events, car.now):
        car._obey(command)
    (chunk,) = car.published()
    assert [item.index for item in chunk.items] == [0, 1]
    assert chunk.ending is None
    car.finish(UNIT, 2)
    assert [len(chunk.items) for chunk in car.published()] == [2, 1]


def test_it_goes_before_durable_units_that_wait() -> None:
    car = Bench().open()
    said = car.send(e.UnitsOffered((offer(1), ask(UNIT))))
    said += car.commit()
    runs = only(c.SubmitRun, said)
    assert [(run.unit, run.urgent) for run in runs] == [(UNIT, True), (1, False)]


def test_it_has_room_where_durable_units_have_none() -> None:
    car = Bench().open()
    car.take(*(offer(unit) for unit in range(1, car.facts.units_max + 1)))
    assert car.core.work.free_units == 0
    said = car.send(e.UnitsOffered((ask(UNIT),)))
    assert [run.unit for run in only(c.SubmitRun, said)] == [UNIT]


def test_more_than_a_car_holds_are_refused_and_take_no_room_from_durable_ones() -> None:
    most = limits.INTERACTIVE_CAR_UNITS_MAX
    car = asked(*range(UNIT, UNIT + most))
    said = car.send(e.UnitsOffered((ask(UNIT + most),)))
    (refused,) = verdicts(said)
    assert isinstance(refused, Refused)
    assert refused.reason is RefusalReason.BUSY
    assert car.core.work.free_units == car.facts.units_max


@pytest.mark.parametrize(
    ("change", "hold"),
    [
        ({"is_parked": False}, HoldReason.NOT_PARKED),
        ({"is_occupied": True}, HoldReason.OCCUPIED),
        ({"is_plugged": False}, HoldReason.NOT_PLUGGED),
    ],
)
def test_the_owner_rules_over_it_as_over_any_work(
    change: dict[str, bool], hold: HoldReason
) -> None:
    car = Bench().open()
    car.sense(**change)
    said = car.send(e.UnitsOffered((ask(UNIT),)))
    (refused,) = verdicts(said)
    assert isinstance(refused, Refused)
    if hold is HoldReason.NOT_PARKED:
        assert refused.hold is not None
    else:
        assert refused.hold is hold
    assert not only(c.SubmitRun, said)


@pytest.mark.parametrize("hold", [{"is_occupied": True}, {"is_parked": False}])
def test_an_owner_who_comes_gives_it_back_in_the_same_step(hold: dict[str, bool]) -> None:
    car = asked(UNIT, items=(0, 1))
    car.compute(UNIT, 0)
    said = car.sense(**hold)
    assert only(c.FreezeEngine, said)
    last = car.published()[-1]
    assert last.unit == UNIT
    assert last.ending is not None
    assert (last.ending.outcome, last.ending.reason) == (Outcome.RELEASED, ReleaseReason.HOLD)
    assert not car.core.work.attempts


def test_a_short_visit_ends_its_run_and_not_that_of_a_durable_unit() -> None:
    car = asked(UNIT)
    car.take(offer(1))
    run, durable = car.run_of(UNIT), car.run_of(1)
    car.sense(is_occupied=True)
    car.send(e.EngineFrozen(STOPPED))
    assert [a.unit for a in car.core.work.attempts.values()] == [1]
    said = car.sense(is_occupied=False)
    assert only(c.ThawEngine, said)
    assert only(c.CancelRun, said) == [c.CancelRun(run)]
    assert car.core.work.attempts[1].run_id == durable
    # What the engine still says of it is of nobody.
    car.send(e.ItemFinished(run, 0, encode("late"), 1.0))
    car.send(e.RunEnded(run, e.RunOutcome.CANCELLED, STOPPED))
    assert [chunk.unit for chunk in car.published()] == [UNIT]


def test_after_a_kill_no_run_of_it_is_cancelled() -> None:
    car = asked(UNIT)
    car.sense(is_occupied=True)
    car.send(e.EngineFrozen(STOPPED))
    said = car.advance(limits.THAW_GRACE_MS / 1000)
    assert only(c.KillEngine, said)
    assert not only(c.CancelRun, said)
    assert not car.core.work.left_runs


def test_a_cancel_ends_it_and_writes_nothing() -> None:
    car = asked(UNIT)
    car.start(UNIT, 0)
    said = car.cancel(UNIT, reason=CancelReason.NOT_AWAITED)
    assert only(c.CancelRun, said)
    said = car.send(e.RunEnded(car.run_of(UNIT), e.RunOutcome.CANCELLED, STOPPED))
    assert [type(verdict) for verdict in verdicts(said)] == [Cancelled]
    assert not car.core.work.attempts
    car.commit()
    assert not car.journal.fences


def test_a_cancel_that_comes_before_its_offer_is_remembered_and_not_written() -> None:
    car = Bench().open()
    said = car.cancel(UNIT, reason=CancelReason.NOT_AWAITED)
    assert [type(verdict) for verdict in verdicts(said)] == [Cancelled]
    said = car.send(e.UnitsOffered((ask(UNIT),)))
    assert [type(verdict) for verdict in verdicts(said)] == [Cancelled]
    assert not only(c.SubmitRun, said)
    car.commit()
    assert not car.journal.fences


def test_an_offer_that_comes_twice_is_computed_once() -> None:
    car = asked(UNIT)
    said = car.send(e.UnitsOffered((ask(UNIT),)))
    assert not only(c.SubmitRun, said)
    car.compute(UNIT, 0)
    said = car.send(e.UnitsOffered((ask(UNIT),)))
    assert not only(c.SubmitRun, said)
    assert len(car.published()) == 1


def test_its_deadline_ends_it() -> None:
    car = Bench().open()
    car.send(e.UnitsOffered((ask(UNIT, remaining_ms=1_500),)))
    car.start(UNIT, 0)
    said = car.live(2)
    assert only(c.CancelRun, said)
    car.send(e.RunEnded(car.run_of(UNIT), e.RunOutcome.CANCELLED, STOPPED))
    (chunk,) = car.published()
    assert chunk.ending is not None
    assert chunk.ending.reason is ReleaseReason.DEADLINE


def test_a_package_that_cannot_be_had_gives_it_back() -> None:
    car = Bench().open()
    said = car.send(e.UnitsOffered((ask(UNIT, model=OTHER_MODEL),)))
    assert only(c.EnsureModel, said) == [c.EnsureModel(OTHER_MODEL)]
    car.send(e.ModelFailed(OTHER_MODEL, e.ModelFault.UNAVAILABLE))
    (chunk,) = car.published()
    assert chunk.ending is not None
    assert chunk.ending.reason is ReleaseReason.MODEL_UNAVAILABLE
    car.send(e.ModelReady(MODEL))


def test_an_engine_that_dies_blames_the_item_in_hand_and_runs_the_rest() -> None:
    car = asked(UNIT, items=(0, 1))
    run = car.run_of(UNIT)
    car.start(UNIT, 0)
    said = car.send(e.EngineDied(run, 0, ItemError.ENGINE_KILLED))
    (chunk,) = car.published()
    assert [(item.index) for item in chunk.items] == [0]
    (again,) = only(c.SubmitRun, said)
    assert [item.index for item in again.items] == [1]


def test_consent_that_is_withdrawn_sends_nothing_of_it() -> None:
    car = asked(UNIT, items=(0, 1))
    car.send(e.PolicyChanged(HoldReason.CONSENT_WITHDRAWN))
    assert not any(chunk.items for chunk in car.published())
    assert not car.core.work.attempts


def test_nothing_is_kept_for_a_broker_that_is_away() -> None:
    car = asked(UNIT)
    car.send(e.BusDisconnected())
    car.compute(UNIT, 0)
    said = car.send(e.BusConnected())
    assert not only(c.PublishChunks, said)
    assert not car.published()


def test_tokens_travel_in_the_step_in_which_they_came() -> None:
    car = asked(UNIT)
    run = car.run_of(UNIT)
    car.start(UNIT, 0)
    car.send(e.TokensProduced(run, 0, 0, (5, 6), "Hel"))
    car.send(e.TokensProduced(run, 0, 2, (7,), "lo", e.FinishReason.STOP))
    first, second = car.published()
    assert first.tokens == (Tokens(index=0, offset=0, ids=(5, 6), text="Hel"),)
    assert second.tokens == (
        Tokens(index=0, offset=2, ids=(7,), text="lo", finish=FinishReason.STOP),
    )
    assert (first.seq, second.seq) == (0, 1)
    car.finish(UNIT, 0)
    assert car.published()[-1].ending is not None


def test_tokens_of_a_durable_unit_are_not_sent() -> None:
    car = Bench().open()
    car.take(offer(1))
    car.start(1, 0)
    car.send(e.TokensProduced(car.run_of(1), 0, 0, (5,), "x"))
    assert not car.published()


def test_it_leaves_from_every_phase_that_it_may_be_in() -> None:
    car = asked(UNIT)
    assert car.core.work.attempts[UNIT].phase is Phase.LOADING
    car.send(e.ShutdownRequested())
    assert car.published()[-1].ending is not None
    assert not car.core.work.attempts
