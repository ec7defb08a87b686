"""The car's core, rule by rule: events in, commands out."""

import itertools
from typing import Any

import msgspec
import pytest
from car_bench import (
    FACTS,
    MODEL,
    MS,
    OTHER_MODEL,
    POLICY,
    STOPPED,
    Bench,
    broke,
    offer,
    only,
    verdicts,
)

from edge_runtime.contract import limits
from edge_runtime.contract.messages import (
    Cancelled,
    Drain,
    Fence,
    ItemFailed,
    Rebirth,
    Refused,
    StopReport,
    Taken,
)
from edge_runtime.contract.reasons import (
    Availability,
    CancelReason,
    HoldReason,
    ItemError,
    Outcome,
    RefusalReason,
    ReleaseReason,
    StopTier,
)
from edge_runtime.vehicle.core import commands as c
from edge_runtime.vehicle.core import events as e
from edge_runtime.vehicle.core.admission import Ready
from edge_runtime.vehicle.core.attempts import (
    TRANSITIONS,
    InvalidTransition,
    Phase,
    require_legal,
)
from edge_runtime.vehicle.core.machine import BrokenInvariant
from edge_runtime.vehicle.policy import Allowed, Energy, Window

F1, F2 = Fence(1, 1), Fence(1, 2)


def refusal(commands: list[c.Command]) -> Refused:
    (verdict,) = verdicts(commands)
    assert isinstance(verdict, Refused)
    return verdict


# --- the table -------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), list(itertools.product(Phase, Phase)))
def test_every_pair_of_phases_is_legal_or_refused(before: Phase, after: Phase) -> None:
    if after in TRANSITIONS[before]:
        require_legal(7, before, after)
    else:
        with pytest.raises(InvalidTransition, match="unit 7"):
            require_legal(7, before, after)


def test_every_phase_is_in_the_table_and_every_live_one_can_end() -> None:
    assert set(TRANSITIONS) == set(Phase)
    for phase in Phase:
        reachable, frontier = {phase}, {phase}
        while frontier:
            frontier = {after for p in frontier for after in TRANSITIONS[p]} - reachable
            reachable |= frontier
        assert reachable & {Phase.DONE, Phase.REFUSED}


# --- the happy way ---------------------------------------------------------------------------


def test_a_unit_from_offer_to_answer() -> None:
    car = Bench().open()
    said = car.send(e.UnitsOffered((offer(),)))
    assert not verdicts(said)
    assert only(c.Persist, said)[0].writes == (c.WriteAttempt(offer()),)
    said = car.commit()
    assert verdicts(said) == [Taken(unit=1, fence=F1)]
    (run,) = only(c.SubmitRun, said)
    assert [item.index for item in run.items] == [0, 1, 2]
    car.compute(1, 0, 1, 2)
    said = car.commit()
    assert len(only(c.PublishChunks, said)) == 1
    (chunk,) = car.published()
    assert [item.index for item in chunk.items] == [0, 1, 2]
    assert chunk.ending is not None
    assert chunk.ending.outcome is Outcome.COMPLETED
    assert chunk.energy_j == pytest.approx(0.03 * FACTS.compute_power_w)
    assert chunk.busy_ms == 30
    car.answer()
    car.commit()
    assert not car.journal.attempts
    assert not car.journal.chunks
    assert car.core.story(1)[-1].endswith("done")


def test_many_small_units_share_one_commit_one_message_and_one_ack() -> None:
    car = Bench(facts=msgspec.structs.replace(FACTS, units_max=64)).open()
    units = range(1, 65)
    said = car.send(e.UnitsOffered(tuple(offer(unit, items=(0,)) for unit in units)))
    assert len(only(c.Persist, said)) == 1
    said = car.commit()
    assert len(only(c.PublishVerdicts, said)) == 1
    assert len(verdicts(said)) == 64
    assert len(only(c.SubmitRun, said)) == 64
    for unit in units:
        car.compute(unit, 0)
    assert len(only(c.PublishChunks, car.commit())) == 1
    assert len(car.endings()) == 64


def test_the_engine_holds_the_next_units_before_the_first_has_ended() -> None:
    car = Bench().open()
    car.take(offer(1), offer(2), offer(3))
    assert [run.unit for run in car.engine.runs.values()] == [1, 2, 3]


def test_the_item_in_hand_is_journalled_without_the_engine_waiting_for_it() -> None:
    car = Bench().open()
    car.take()
    said = car.start(1, 0)
    assert only(c.Persist, said)[0].writes == (c.WriteStarted(1, 0),)


# --- chunks ----------------------------------------------------------------------------------


def test_a_chunk_closes_when_its_first_item_is_old_enough() -> None:
    car = Bench().open()
    car.take()
    car.compute(1, 0)
    car.commit()
    assert not car.chunks
    car.advance(limits.CHUNK_MAX_AGE_MS / 1000)
    car.commit()
    (chunk,) = car.published()
    assert chunk.ending is None
    assert chunk.seq == 0


def test_a_chunk_closes_at_its_largest_number_of_items() -> None:
    car = Bench().open()
    many = range(limits.CHUNK_ITEMS_MAX + 1)
    car.take(offer(items=many))
    car.compute(1, *many)
    car.commit()
    assert [len(chunk.items) for chunk in car.published()] == [limits.CHUNK_ITEMS_MAX, 1]


def test_a_chunk_never_exceeds_its_largest_size() -> None:
    car = Bench().open()
    car.take()
    for index in range(3):
        car.finish(1, index, b"x" * 50_000)
    car.commit()
    assert [len(chunk.items) for chunk in car.published()] == [2, 1]
    assert all(len(body) <= limits.UNIT_MAX_BYTES for body in car.chunks.values())


@pytest.mark.parametrize(
    ("output", "code"),
    [
        (msgspec.msgpack.encode(b"x" * limits.OUTPUT_MAX_BYTES), ItemError.RESULT_TOO_LARGE),
        (b"", ItemError.MODEL_ERROR),
        (b"\x92\x01", ItemError.MODEL_ERROR),
        (b"\x01\x02", ItemError.MODEL_ERROR),
    ],
)
def test_an_output_that_cannot_travel_is_that_items_failure(output: bytes, code: ItemError) -> None:
    car = Bench().open()
    car.take(offer(items=(0,)))
    car.send(e.ItemFinished(car.run_of(1), 0, output, 1.0))
    car.commit()
    (chunk,) = car.published()
    (item,) = chunk.items
    assert isinstance(item, ItemFailed)
    assert item.code is code


def test_a_failed_item_does_not_stop_the_others() -> None:
    car = Bench().open()
    car.take()
    car.send(broke(car.run_of(1), 0))
    car.compute(1, 1, 2)
    car.commit()
    (chunk,) = car.published()
    assert [type(item).__name__ for item in chunk.items] == ["ItemFailed", "ItemDone", "ItemDone"]


def test_unanswered_chunks_are_sent_again_ever_more_slowly() -> None:
    car = Bench().open()
    car.take(offer(items=(0,)))
    car.compute(1, 0)
    car.commit()
    sent_at = [car.boot_ns for _ in range(300) if only(c.PublishChunks, car.live(1))]
    waits = [round((b - a) / 1e9) for a, b in itertools.pairwise(sent_at)]
    assert waits[0] >= limits.CHUNK_RESEND_MS / 1000
    assert sorted(waits) == waits
    assert waits[-1] == limits.CHUNK_RESEND_MAX_MS / 1000
    car.answer()
    assert not only(c.PublishChunks, car.live(120))


def test_after_a_reconnect_everything_unanswered_is_sent_again_spread_out() -> None:
    car = Bench(facts=msgspec.structs.replace(FACTS, units_max=64)).open()
    car.take(*(offer(unit, items=(0, 1)) for unit in range(1, 11)))
    for unit in range(1, 11):
        car.finish(unit, 0, b"x" * 50_000)
        car.finish(unit, 1, b"x" * 50_000)
    car.commit()
    car.send(e.BusDisconnected())
    assert not only(c.PublishChunks, car.live(100))
    said = car.send(e.BusConnected())
    times = [car.boot_ns] * len(only(c.PublishChunks, said))
    for _ in range(400):
        times += [car.boot_ns] * len(only(c.PublishChunks, car.advance(0.001)))
    assert len(times) == 10
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert min(gaps) >= (limits.CHUNK_RESEND_SPREAD_MS - 1) * MS


def test_too_many_unanswered_chunks_refuse_new_work() -> None:
    car = Bench(facts=msgspec.structs.replace(FACTS, units_max=64)).open()
    for unit in range(limits.CHUNKS_UNANSWERED_MAX):
        car.take(offer(unit, items=(0,)))
        car.compute(unit, 0)
    car.commit()
    assert refusal(car.take(offer(999))).reason is RefusalReason.BUSY
    car.answer(unit=0)
    assert verdicts(car.take(offer(999, 2))) == [Taken(unit=999, fence=F2)]


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"remaining_ms": 0}, RefusalReason.EXPIRED),
        ({"tenant": "mallory"}, RefusalReason.TENANT_NOT_ALLOWED),
        ({"purpose": "spam"}, RefusalReason.PURPOSE_NOT_ALLOWED),
        ({"model": OTHER_MODEL}, RefusalReason.MODEL_NOT_ALLOWED),
        ({"task": "fortune-telling"}, RefusalReason.TASK_UNKNOWN),
        (
            {"items": (0, 1), "data": b"x" * (limits.ITEM_MAX_BYTES + 1)},
            RefusalReason.TOO_LARGE,
        ),
        (
            {"items": (0, 1), "data": b"x" * (limits.UNIT_MAX_BYTES // 2 + 1)},
            RefusalReason.TOO_LARGE,
        ),
        (
            {"parameters": msgspec.Raw(b"\xc4" * (limits.PARAMETERS_MAX_BYTES + 1))},
            RefusalReason.TOO_LARGE,
        ),
    ],
)
def test_an_offer_is_refused_with_its_reason(
    changes: dict[str, Any], reason: RefusalReason
) -> None:
    allowed = Allowed(tenants=("anna",), purposes=("research",), models=(MODEL,))
    car = Bench(msgspec.structs.replace(POLICY, allowed=allowed)).open()
    assert refusal(car.take(offer(**changes))).reason is reason
    assert not car.journal.attempts
    assert verdicts(car.take(offer(unit=2))) == [Taken(unit=2, fence=F1)]


def test_a_deadline_that_has_passed_by_a_trusted_clock_is_expired() -> None:
    car = Bench().open()
    late = offer(deadline_ms=car.utc_ms - 1)
    assert verdicts(car.take(late)) == [Taken(unit=1, fence=F1)]
    car.send(e.ClockJudged(is_trusted=True))
    assert refusal(car.take(offer(2, deadline_ms=car.utc_ms - 1))).reason is RefusalReason.EXPIRED


def test_a_held_car_refuses_with_its_hold() -> None:
    car = Bench().open()
    car.sense(is_occupied=True)
    verdict = refusal(car.take())
    assert verdict.reason is RefusalReason.HOLD
    assert verdict.hold is HoldReason.OCCUPIED
    assert verdict.retry_after_ms > 0


def test_a_process_that_stood_still_begins_nothing_by_what_it_saw_before() -> None:
    """It was stopped for longer than a reading lasts; no tick came, no sensor has told since."""
    car = Bench().open()
    car.take(offer(1))
    car.start(1, 0)
    car._turn_to(car.boot_ns + (limits.SENSOR_STALE_MS + 100) * MS)
    said = car.send(e.UnitsOffered((offer(2),)))
    (refused,) = verdicts(said)
    assert isinstance(refused, Refused)
    assert refused.hold is HoldReason.SENSOR_STALE
    assert only(c.FreezeEngine, said), "and what runs stops"


def test_a_full_car_refuses_the_next_unit() -> None:
    car = Bench().open()
    said = car.take(*(offer(unit) for unit in range(1, 6)))
    assert [type(v).__name__ for v in verdicts(said)] == ["Refused", *["Taken"] * 4]
    assert isinstance(verdicts(said)[0], Refused)


def test_an_answer_is_repeated_until_the_deadline_and_not_longer() -> None:
    car = Bench().open()
    car.sense(is_occupied=True)
    short = offer(remaining_ms=20_000)
    first = refusal(car.take(short))
    car.sense(is_occupied=False)
    car.live(11)
    assert refusal(car.take(short)) == first
    car.live(10)
    assert verdicts(car.take(short)) == [Taken(unit=1, fence=F1)]


def test_the_memory_of_fences_is_bounded() -> None:
    car = Bench().open()
    car.sense(is_occupied=True)
    for unit in range(limits.FENCES_REMEMBERED_MAX + 10):
        car.take(offer(unit))
    assert len(car.core.work.fences) == limits.FENCES_REMEMBERED_MAX


# --- fences ----------------------------------------------------------------------------------


def test_a_duplicate_offer_is_answered_once_recorded_and_runs_once() -> None:
    car = Bench().open()
    car.send(e.UnitsOffered((offer(),)))
    assert not verdicts(car.send(e.UnitsOffered((offer(),))))
    car.commit()
    said = car.send(e.UnitsOffered((offer(),)))
    assert verdicts(said) == [Taken(unit=1, fence=F1)]
    assert len(car.engine.runs) == 1
    car.compute(1, 0, 1, 2)
    car.commit()
    said = car.send(e.UnitsOffered((offer(),)))
    assert verdicts(said) == [Taken(unit=1, fence=F1)]
    assert len(only(c.PublishChunks, said)) == 1
    assert not only(c.SubmitRun, said)


def test_an_older_fence_is_stale() -> None:
    car = Bench().open()
    car.take(offer(counter=2))
    assert refusal(car.take(offer(counter=1))).reason is RefusalReason.STALE_FENCE
    car.compute(1, 0, 1, 2)
    car.commit()
    assert refusal(car.take(offer(counter=1))).reason is RefusalReason.STALE_FENCE


def test_a_newer_fence_adopts_the_run() -> None:
    car = Bench().open()
    car.take()
    car.compute(1, 0)
    car.advance(0.3)
    car.commit()
    car.compute(1, 1)
    said = car.take(offer(counter=2))
    assert verdicts(said) == [Taken(unit=1, fence=F2)]
    assert not only(c.SubmitRun, said)
    car.compute(1, 2)
    car.commit()
    old, new = car.published()
    assert (old.fence, old.seq, [i.index for i in old.items]) == (F1, 0, [0])
    assert (new.fence, new.seq, [i.index for i in new.items]) == (F2, 0, [1, 2])
    assert car.endings() == {(1, F2): Outcome.COMPLETED}
    assert not car.journal.attempts


def test_adoption_asks_again_for_what_the_new_offer_adds_and_drops_what_it_leaves_out() -> None:
    car = Bench().open()
    car.take(offer(items=(0, 1)))
    car.take(offer(counter=2, items=(1, 5)))
    car.compute(1, 0, 1)
    said = car.send(e.RunEnded(car.run_of(1), e.RunOutcome.COMPLETED))
    (run,) = only(c.SubmitRun, said)
    assert [item.index for item in run.items] == [5]
    del car.engine.runs[min(car.engine.runs)]
    car.compute(1, 5)
    car.commit()
    assert sorted(i.index for chunk in car.published() for i in chunk.items) == [1, 5]


def test_a_newer_fence_of_a_unit_that_just_ended_is_not_computed_again() -> None:
    car = Bench().open()
    car.take()
    car.compute(1, 0, 1, 2)
    car.commit()
    said = car.take(offer(counter=2))
    assert verdicts(said) == [Taken(unit=1, fence=F2)]
    assert not only(c.SubmitRun, said)
    assert car.endings() == {(1, F1): Outcome.COMPLETED, (1, F2): Outcome.COMPLETED}


def test_a_newer_fence_behind_one_that_waits_for_the_journal_wins() -> None:
    car = Bench().open()
    car.send(e.UnitsOffered((offer(1, 1, model=OTHER_MODEL),)))
    car.send(e.UnitsOffered((offer(1, 2, model=OTHER_MODEL),)))
    assert refusal(car.send(e.ModelFailed(OTHER_MODEL, e.ModelFault.UNAVAILABLE))).fence == F1
    car.send(e.UnitsOffered((offer(1, 3, model=OTHER_MODEL),)))
    said = car.commit()
    assert verdicts(said) == [Taken(unit=1, fence=Fence(1, 3))]
    assert car.core.work.attempts[1].fence == Fence(1, 3)
    assert car.journal.attempts[1].offer.fence == Fence(1, 3)


def test_a_fence_that_waits_for_the_journal_counts_as_held() -> None:
    car = Bench().open()
    car.send(e.UnitsOffered((offer(1, 1, model=OTHER_MODEL),)))
    car.send(e.UnitsOffered((offer(1, 2, model=OTHER_MODEL),)))
    car.send(e.ModelFailed(OTHER_MODEL, e.ModelFault.UNAVAILABLE))
    said = car.send(e.UnitsOffered(tuple(offer(unit) for unit in range(2, 6))))
    assert refusal(said).reason is RefusalReason.BUSY
    car.commit()
    assert len(car.core.work.attempts) == FACTS.units_max


def test_a_newer_fence_of_a_unit_that_is_being_stopped_is_refused_for_good() -> None:
    car = Bench().open()
    car.take()
    car.cancel()
    first = refusal(car.take(offer(counter=2)))
    assert first.reason is RefusalReason.BUSY
    car.send(e.RunEnded(car.run_of(1), e.RunOutcome.CANCELLED))
    assert refusal(car.take(offer(counter=2))) == first
    assert verdicts(car.take(offer(counter=3))) == [Taken(unit=1, fence=Fence(1, 3))]


def test_a_cancel_of_another_fence_leaves_the_held_one_alone() -> None:
    car = Bench().open()
    car.take(offer(counter=2))
    for counter in (1, 3):
        said = car.cancel(counter=counter)
        assert verdicts(said) == [Cancelled(unit=1, fence=Fence(1, counter))]
        assert not only(c.CancelRun, said)
    car.compute(1, 0, 1, 2)
    car.commit()
    assert car.endings() == {(1, F2): Outcome.COMPLETED}


def test_a_fence_that_waits_for_the_journal_can_be_cancelled() -> None:
    car = Bench().open()
    car.take()
    car.send(e.UnitsOffered((offer(counter=2),)))
    assert verdicts(car.cancel(counter=2)) == [Cancelled(unit=1, fence=F2)]
    assert not verdicts(car.commit())
    car.compute(1, 0, 1, 2)
    car.commit()
    assert car.endings() == {(1, F1): Outcome.COMPLETED}
    assert not car.journal.attempts


def test_a_unit_that_ends_while_its_newer_fence_is_being_written() -> None:
    car = Bench().open()
    car.take()
    car.send(e.UnitsOffered((offer(counter=2),)))
    car.compute(1, 0, 1, 2)
    car.commit()
    assert car.endings() == {(1, F1): Outcome.COMPLETED, (1, F2): Outcome.COMPLETED}
    assert not car.journal.attempts


# --- the journal -----------------------------------------------------------------------------


def test_no_room_refuses_the_offer_holds_the_car_and_recovers() -> None:
    car = Bench().open()
    car.take(offer(1))
    car.journal.is_full = True
    verdict = refusal(car.take(offer(2)))
    assert verdict.reason is RefusalReason.STORAGE_FULL
    assert refusal(car.take(offer(3))).hold is HoldReason.STORAGE_FULL
    car.compute(1, 0, 1, 2)
    car.live(2)
    car.commit()
    car.journal.is_full = False
    car.live(limits.STORAGE_RETRY_MS / 1000)
    car.commit()
    assert car.core.decision == Ready()
    assert car.endings() == {(1, F1): Outcome.COMPLETED}
    assert verdicts(car.take(offer(4))) == [Taken(unit=4, fence=F1)]


@pytest.mark.parametrize("reason", [HoldReason.STORAGE_FULL, HoldReason.STORAGE_ERROR])
def test_what_could_not_be_written_is_written_later_in_order(reason: HoldReason) -> None:
    car = Bench().open()
    car.take(offer(1))
    car.compute(1, 0, 1, 2)
    car.send(e.UnitsOffered((offer(2),)))
    said = car.send(car.journal.fail(reason))
    assert refusal(said).reason is RefusalReason.STORAGE_FULL
    assert car.core.decision != Ready()
    assert not car.chunks
    car.live(limits.STORAGE_RETRY_MS / 1000)
    car.commit()
    assert car.endings() == {(1, F1): Outcome.COMPLETED}
    assert car.core.decision == Ready()
    assert not car.journal.attempts


# --- models ----------------------------------------------------------------------------------


def test_a_model_is_fetched_once_and_runs_wait_for_it() -> None:
    car = Bench().open()
    said = car.take(offer(1, model=OTHER_MODEL), offer(2, model=OTHER_MODEL))
    assert only(c.EnsureModel, said) == [c.EnsureModel(OTHER_MODEL)]
    assert not car.engine.runs
    car.send(e.ModelReady(OTHER_MODEL))
    assert len(car.engine.runs) == 2


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (e.ModelFault.UNAVAILABLE, RefusalReason.MODEL_UNAVAILABLE),
        (e.ModelFault.INVALID, RefusalReason.MODEL_INVALID),
    ],
)
def test_a_missing_model_refuses_what_is_not_taken_and_releases_what_is(
    fault: e.ModelFault, reason: RefusalReason
) -> None:
    car = Bench().open()
    car.take(offer(1, model=OTHER_MODEL))
    car.send(e.UnitsOffered((offer(2, model=OTHER_MODEL),)))
    said = car.send(e.ModelFailed(OTHER_MODEL, fault))
    assert refusal(said).reason is reason
    car.commit()
    (chunk,) = car.published()
    assert chunk.ending is not None
    assert chunk.ending.reason is ReleaseReason.MODEL_UNAVAILABLE
    late = refusal(car.take(offer(3, model=OTHER_MODEL)))
    assert late.reason is reason
    assert late.retry_after_ms > 0
    assert not car.journal.attempts


def test_a_model_that_the_engine_cannot_load_is_given_back_and_not_tried_again_soon() -> None:
    car = Bench().open()
    car.take()
    car.send(e.RunEnded(car.run_of(1), e.RunOutcome.MODEL_FAILED, message="no such operator"))
    car.commit()
    (chunk,) = car.published()
    assert chunk.ending is not None
    assert chunk.ending.outcome is Outcome.RELEASED
    assert refusal(car.take(offer(2))).reason is RefusalReason.MODEL_INVALID


def test_desired_models_are_fetched_in_the_background_unless_the_network_costs() -> None:
    car = Bench().open()
    said = car.send(e.ModelsDesired((MODEL, OTHER_MODEL)))
    assert only(c.EnsureModel, said) == [c.EnsureModel(OTHER_MODEL)]
    metered = Bench(msgspec.structs.replace(POLICY, network_metered=True))
    metered.sense()
    assert not only(c.EnsureModel, metered.send(e.ModelsDesired((OTHER_MODEL,))))
    assert not metered.core.is_network_allowed


def test_a_metered_network_counts_also_where_another_reason_holds_the_car() -> None:
    for is_metered in (False, True):
        closed = Window(start="03:00", end="03:01")
        car = Bench(msgspec.structs.replace(POLICY, schedule=(closed,), network_metered=is_metered))
        car.sense()
        assert car.core._hold() is HoldReason.CLOCK_UNTRUSTED, "the schedule needs a clock"
        assert car.core.is_network_allowed is not is_metered


# --- the engine ------------------------------------------------------------------------------


def test_a_death_blames_the_item_in_hand_and_nothing_else() -> None:
    car = Bench().open()
    car.take(offer(1), offer(2))
    car.compute(1, 0)
    car.start(1, 1)
    dead = car.run_of(1)
    car.engine.runs.clear()
    said = car.send(e.EngineDied(dead, 1, ItemError.OUT_OF_MEMORY, "64 GB"))
    runs = {run.unit: [item.index for item in run.items] for run in only(c.SubmitRun, said)}
    assert runs == {1: [2], 2: [0, 1, 2]}
    car.compute(1, 2)
    car.commit()
    (chunk,) = car.published()
    failed = [item for item in chunk.items if isinstance(item, ItemFailed)]
    assert [(item.index, item.code) for item in failed] == [(1, ItemError.OUT_OF_MEMORY)]


def test_an_engine_that_keeps_dying_rests_longer_each_time() -> None:
    car = Bench().open()
    rests = []
    for counter in range(1, 4):
        car.take(offer(counter=counter, items=range(10)))
        for index in range(limits.ENGINE_DEATHS_MAX):
            dead = car.run_of(1)
            car.engine.runs.clear()
            car.send(e.EngineDied(dead, index, ItemError.ENGINE_KILLED))
        assert refusal(car.take(offer(2, counter))).hold is HoldReason.ENGINE_UNHEALTHY
        car.commit()
        assert car.published()[-1].ending is not None
        car.answer(counter=counter)
        began = car.boot_ns
        while car.core.decision != Ready():
            car.live(1)
        rests.append(round((car.boot_ns - began) / 1e9))
    first = limits.ENGINE_UNHEALTHY_MS // 1000
    assert rests == [first, 2 * first, 4 * first]


def test_a_finished_item_forgives_earlier_deaths() -> None:
    car = Bench().open()
    car.take(offer(items=range(10)))
    for index in range(5):
        dead = car.run_of(1)
        car.engine.runs.clear()
        car.send(e.EngineDied(dead, 2 * index, ItemError.ENGINE_KILLED))
        if index < 4:
            car.compute(1, 2 * index + 1)
    assert car.core.decision == Ready()


def test_a_run_that_ends_without_a_word_fails_its_items_instead_of_looping() -> None:
    car = Bench().open()
    car.take()
    said = car.send(e.RunEnded(car.run_of(1), e.RunOutcome.COMPLETED))
    assert not only(c.SubmitRun, said)
    car.commit()
    (chunk,) = car.published()
    assert all(isinstance(item, ItemFailed) for item in chunk.items)


def test_events_of_runs_that_are_no_more_are_ignored() -> None:
    car = Bench().open()
    car.take()
    car.compute(1, 0, 1, 2)
    run_id = car.run_of(1)
    for event in (
        e.ItemStarted(run_id, 0),
        e.ItemFinished(run_id, 0, b"\xc0", 1.0),
        broke(run_id, 1),
        e.ModelLoaded(run_id, 5.0),
        e.RunEnded(run_id, e.RunOutcome.COMPLETED),
        e.EngineDied(None, None, ItemError.ENGINE_KILLED),
        e.EngineFrozen(STOPPED),
        e.EngineKilled(STOPPED),
    ):
        assert not only(c.SubmitRun, car.send(event))
    car.commit()
    assert len(car.published()) == 1


# --- the owner comes first -------------------------------------------------------------------


def test_the_owners_return_freezes_the_engine_in_the_same_call() -> None:
    car = Bench().open()
    car.take()
    car.start(1, 0)
    said = car.sense(is_occupied=True)
    assert isinstance(said[0], c.FreezeEngine)
    (state,) = only(c.PublishState, said)
    assert state.is_edge
    assert state.state.availability is Availability.STOPPING
    assert state.state.hold is HoldReason.OCCUPIED
    assert state.state.free_units == 0
    assert not only(c.KillEngine, said)


def test_a_reason_that_passes_within_the_grace_loses_nothing() -> None:
    car = Bench().open()
    car.take()
    car.compute(1, 0)
    car.start(1, 1)
    car.sense(is_occupied=True)
    car.send(e.EngineFrozen(STOPPED))
    car.advance(limits.THAW_GRACE_MS / 1000 - 0.1)
    said = car.sense(is_occupied=False)
    assert only(c.ThawEngine, said)
    assert refusal(car.take(offer(2))).hold is HoldReason.DWELL
    car.finish(1, 1)
    car.compute(1, 2)
    car.commit()
    assert car.endings() == {(1, F1): Outcome.COMPLETED}
    assert not only(c.KillEngine, car.said)


def test_after_the_grace_everything_is_given_back_with_the_measured_stop() -> None:
    car = Bench().open()
    car.take(offer(1), offer(2))
    car.compute(1, 0)
    car.sense(is_occupied=True)
    car.send(e.EngineFrozen(STOPPED))
    said = car.advance(limits.THAW_GRACE_MS / 1000)
    assert only(c.KillEngine, said)
    assert {w.unit for p in only(c.Persist, said) for w in only(c.WriteChunk, p.writes)} == {1, 2}
    car.commit()
    finished, first, second = car.published()
    assert [item.index for item in finished.items] == [0]
    for chunk in (first, second):
        assert chunk.ending is not None
        assert chunk.ending.reason is ReleaseReason.HOLD
        assert chunk.ending.hold is HoldReason.OCCUPIED
        assert chunk.ending.stop == STOPPED
    assert car.core.availability is Availability.HOLD
    assert not car.journal.attempts


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"compute_temperature_c": 95.0}, HoldReason.COMPUTE_HOT),
        ({"is_parked": False}, HoldReason.NOT_PARKED),
        ({"charge_percent": 10.0}, HoldReason.CHARGE_LOW),
    ],
)
def test_a_reason_that_stays_kills_at_once(changes: dict[str, Any], reason: HoldReason) -> None:
    car = Bench().open()
    car.take()
    said = car.sense(**changes)
    kinds = [type(command) for command in said]
    assert kinds.index(c.FreezeEngine) < kinds.index(c.KillEngine)
    said = car.send(e.EngineFrozen(STOPPED))
    assert only(c.Persist, said)
    car.commit()
    (chunk,) = car.published()
    assert chunk.ending is not None
    assert (chunk.ending.hold, chunk.ending.stop) == (reason, STOPPED)


def test_a_stop_that_nobody_measures_is_given_back_all_the_same() -> None:
    car = Bench().open()
    car.take()
    car.sense(compute_temperature_c=95.0)
    car.advance(limits.STOP_REPORT_WAIT_MS / 1000)
    car.commit()
    (chunk,) = car.published()
    assert chunk.ending is not None
    assert chunk.ending.stop is None


def test_a_worse_reason_ends_the_grace() -> None:
    car = Bench().open()
    car.take()
    car.sense(is_occupied=True)
    assert only(c.KillEngine, car.sense(is_parked=False))


def test_consent_withdrawn_kills_at_once() -> None:
    car = Bench().open()
    car.take()
    assert only(c.KillEngine, car.send(e.PolicyChanged(HoldReason.CONSENT_WITHDRAWN)))


def test_silent_sensors_stop_the_work_by_themselves() -> None:
    car = Bench().open()
    car.take()
    said = car.advance(limits.SENSOR_STALE_MS / 1000 + 0.001)
    assert only(c.FreezeEngine, said)


def test_work_that_is_too_warm_is_finished_but_no_more_is_taken() -> None:
    car = Bench().open()
    car.take()
    said = car.sense(compute_temperature_c=80.0)
    assert not only(c.FreezeEngine, said)
    assert refusal(car.take(offer(2))).hold is HoldReason.COMPUTE_HOT
    car.compute(1, 0, 1, 2)
    car.commit()
    assert car.endings() == {(1, F1): Outcome.COMPLETED}


def test_an_attempt_that_is_recorded_during_a_stop_is_given_back() -> None:
    car = Bench().open()
    car.send(e.UnitsOffered((offer(),)))
    car.sense(is_parked=False)
    assert not car.core.work.attempts
    said = car.commit()
    assert not car.journal.attempts
    assert not only(c.SubmitRun, said)


def test_an_item_that_was_already_finished_when_the_engine_froze_is_kept() -> None:
    car = Bench().open()
    car.take()
    car.sense(is_occupied=True)
    car.compute(1, 0)
    car.send(e.EngineFrozen(STOPPED))
    car.advance(limits.THAW_GRACE_MS / 1000)
    car.commit()
    done = [item.index for chunk in car.published() for item in chunk.items]
    assert done == [0]


def test_a_death_while_frozen_does_not_leave_the_engine_frozen_for_ever() -> None:
    car = Bench().open()
    car.take()
    car.sense(is_occupied=True)
    dead = car.run_of(1)
    car.engine.runs.clear()
    car.send(e.EngineDied(dead, None, ItemError.ENGINE_KILLED))
    said = car.sense(is_occupied=False)
    assert [type(x) for x in said if isinstance(x, c.ThawEngine | c.SubmitRun)] == [
        c.ThawEngine,
        c.SubmitRun,
    ]


# --- cancels and deadlines -------------------------------------------------------------------


def test_a_queued_attempt_is_cancelled_at_once() -> None:
    car = Bench().open()
    car.take(offer(model=OTHER_MODEL))
    assert verdicts(car.cancel()) == [Cancelled(unit=1, fence=F1)]
    car.commit()
    assert not car.journal.attempts


def test_a_running_attempt_is_stopped_and_then_cancelled() -> None:
    car = Bench().open()
    car.take()
    car.start(1, 0)
    said = car.cancel()
    assert only(c.CancelRun, said) == [c.CancelRun(car.run_of(1))]
    assert not verdicts(said)
    assert not only(c.CancelRun, car.cancel())
    stop = StopReport(tier=StopTier.TERMINATE, latency_ms=2.0)
    said = car.send(e.RunEnded(car.run_of(1), e.RunOutcome.CANCELLED, stop))
    assert verdicts(said) == [Cancelled(unit=1, fence=F1)]
    (line,) = only(c.LogUnit, said)
    assert (line.outcome, line.stop_tier) == ("cancelled", "terminate")
    car.commit()
    assert not car.journal.attempts
    assert verdicts(car.take(offer())) == [Cancelled(unit=1, fence=F1)]


def test_finished_items_of_a_lost_lease_are_still_sent() -> None:
    car = Bench().open()
    car.take()
    car.compute(1, 0)
    car.cancel(reason=CancelReason.LEASE_LOST)
    car.send(e.RunEnded(car.run_of(1), e.RunOutcome.CANCELLED))
    car.commit()
    (chunk,) = car.published()
    assert [item.index for item in chunk.items] == [0]
    assert chunk.ending is not None
    assert chunk.ending.outcome is Outcome.CANCELLED


def test_an_unknown_fence_is_cancelled_and_remembered_through_a_crash() -> None:
    car = Bench().open()
    assert verdicts(car.cancel(unit=9)) == [Cancelled(unit=9, fence=F1)]
    car.commit()
    car.crash()
    car.open()
    assert verdicts(car.take(offer(9))) == [Cancelled(unit=9, fence=F1)]
    assert verdicts(car.take(offer(9, 2))) == [Taken(unit=9, fence=F2)]


def test_a_cancel_after_the_last_chunk_is_answered_with_the_chunks() -> None:
    car = Bench().open()
    car.take()
    car.compute(1, 0, 1, 2)
    car.commit()
    said = car.cancel()
    assert only(c.PublishChunks, said)
    assert verdicts(said) == [Cancelled(unit=1, fence=F1)]
    assert car.journal.chunks


def test_a_cancel_while_frozen_waits_for_the_thaw_or_the_kill() -> None:
    car = Bench().open()
    car.take(offer(1), offer(2))
    car.sense(is_occupied=True)
    assert not only(c.CancelRun, car.cancel(unit=1))
    said = car.sense(is_occupied=False)
    kinds = [type(x) for x in said if isinstance(x, c.ThawEngine | c.CancelRun)]
    assert kinds == [c.ThawEngine, c.CancelRun]
    car.sense(is_parked=False)
    said = car.send(e.EngineFrozen(STOPPED))
    assert verdicts(said) == [Cancelled(unit=1, fence=F1)]


def test_a_deadline_that_passes_on_the_car_gives_the_rest_back() -> None:
    car = Bench().open()
    car.take(offer(remaining_ms=2_000))
    car.compute(1, 0)
    said = car.live(2)
    assert only(c.CancelRun, said)
    car.send(e.RunEnded(car.run_of(1), e.RunOutcome.CANCELLED))
    car.commit()
    last = car.published()[-1]
    assert last.ending is not None
    assert last.ending.reason is ReleaseReason.DEADLINE


def test_a_deadline_that_passes_before_the_run_gives_everything_back() -> None:
    car = Bench().open()
    car.take(offer(remaining_ms=2_000, model=OTHER_MODEL))
    car.live(2)
    car.commit()
    (chunk,) = car.published()
    assert chunk.ending is not None
    assert chunk.ending.reason is ReleaseReason.DEADLINE


# --- reboot ----------------------------------------------------------------------------------


def test_after_a_crash_attempts_are_released_and_the_item_in_hand_is_blamed() -> None:
    car = Bench().open()
    car.take(offer(1), offer(2))
    car.compute(1, 0)
    car.advance(0.3)
    car.start(1, 1)
    car.commit()
    car.crash()
    car.send(e.Tick())
    assert not car.core.work.attempts
    car.commit()
    assert not car.journal.attempts
    car.send(e.BusConnected())
    car.advance(1)
    first, released, second = car.published()
    assert (first.seq, released.seq, second.seq) == (0, 1, 0)
    (blamed,) = released.items
    assert isinstance(blamed, ItemFailed)
    assert (blamed.index, blamed.code) == (1, ItemError.CAR_REBOOTED)
    for chunk in (released, second):
        assert chunk.ending is not None
        assert chunk.ending.reason is ReleaseReason.REBOOT
    assert not second.items


def test_after_a_crash_numbering_goes_on_although_earlier_chunks_were_answered() -> None:
    car = Bench().open()
    car.take()
    car.compute(1, 0)
    car.advance(0.3)
    car.commit()
    car.answer()
    car.commit()
    car.crash()
    car.send(e.BusConnected())
    car.commit()
    assert [chunk.seq for chunk in car.published()] == [0, 1]


def test_an_offer_that_ended_before_the_crash_is_not_computed_again() -> None:
    car = Bench().open()
    car.take()
    car.compute(1, 0, 1, 2)
    car.commit()
    before = car.published()
    car.crash()
    car.open()
    said = car.take()
    assert verdicts(said) == [Taken(unit=1, fence=F1)]
    assert not only(c.SubmitRun, said)
    assert car.published() == before


def test_a_chunk_that_does_not_decode_after_a_crash_is_counted_and_left() -> None:
    car = Bench().open()
    car.journal.chunks[5, F1, 0] = b"\xc1"
    car.crash()
    assert car.core.corrupt_chunks == 1


def test_energy_of_the_day_survives_a_crash_and_ends_at_midnight() -> None:
    budget = Energy(budget_wh_per_day=0.03)
    car = Bench(msgspec.structs.replace(POLICY, energy=budget)).open()
    car.take()
    car.send(e.ItemFinished(car.run_of(1), 0, b"\xc0", 3_000.0))
    assert car.core.decision != Ready()
    car.advance(0.3)
    car.commit()
    car.crash()
    car.open()
    assert refusal(car.take(offer(2))).hold is HoldReason.ENERGY_BUDGET_SPENT
    car.utc_ms += 24 * 3600 * 1000
    car.live(11)
    assert car.core.decision == Ready()


# --- what is told ----------------------------------------------------------------------------


def test_a_connection_begins_with_will_birth_and_state() -> None:
    car = Bench()
    assert car.core.first_will().offline.connection == 1
    for connection in (1, 2):
        said = car.send(e.BusConnected())
        (will,) = only(c.SetWill, said)
        (birth,) = only(c.PublishBirth, said)
        (state,) = only(c.PublishState, said)
        assert will.offline.connection == connection + 1
        assert birth.birth.connection == connection
        assert birth.birth.limits.units_max == FACTS.units_max
        assert state.is_edge
        car.send(e.BusDisconnected())


def test_the_state_is_refreshed_and_its_number_grows() -> None:
    car = Bench().open()
    states = [x.state.seq for x in only(c.PublishState, car.said)]
    refreshes = only(c.PublishState, car.live(60))
    assert len(refreshes) == 60_000 // limits.STATE_REFRESH_MS
    assert not any(refresh.is_edge for refresh in refreshes)
    states += [x.state.seq for x in refreshes]
    assert states == list(range(1, len(states) + 1))


def test_ready_and_working_are_told_at_most_once_a_second() -> None:
    car = Bench().open()
    before = len(only(c.PublishState, car.said))
    for unit in range(100):
        car.take(offer(unit, items=(0,)))
        car.compute(unit, 0)
        car.commit()
        car.answer(unit=unit)
        car.advance(0.02)
    assert len(only(c.PublishState, car.said)) - before <= 3


def test_nothing_is_published_while_disconnected_and_answers_wait() -> None:
    car = Bench().open()
    car.send(e.BusDisconnected())
    said = car.take() + car.live(30)
    assert not only(c.PublishVerdicts, said)
    assert not only(c.PublishState, said)
    assert verdicts(car.send(e.BusConnected())) == [Taken(unit=1, fence=F1)]


def test_a_change_of_admission_is_logged_although_nobody_is_connected() -> None:
    car = Bench().open()
    car.send(e.BusDisconnected())
    said = car.take()
    assert not only(c.LogState, said)
    assert only(c.LogState, car.sense(is_occupied=True)) == [c.LogState("stopping", "occupied")]


def test_rebirth_comes_within_the_delay_it_allows() -> None:
    car = Bench().open()
    car.send(e.OrdersReceived((Rebirth(delay_max_ms=10_000),), jitter=0.5))
    assert not only(c.PublishBirth, car.live(4.9))
    assert len(only(c.PublishBirth, car.live(0.2))) == 1
    car.send(e.OrdersReceived((Rebirth(),)))
    assert len(only(c.PublishBirth, car.advance(0.001))) == 1


def test_draining_finishes_what_is_held_until_told_otherwise() -> None:
    car = Bench().open()
    car.take()
    car.send(e.OrdersReceived((Drain(active=True),)))
    assert refusal(car.take(offer(2))).hold is HoldReason.DRAINING
    car.compute(1, 0, 1, 2)
    car.commit()
    assert car.endings() == {(1, F1): Outcome.COMPLETED}
    car.send(e.OrdersReceived((Drain(active=False),)))
    assert verdicts(car.take(offer(3))) == [Taken(unit=3, fence=F1)]


# --- leaving ---------------------------------------------------------------------------------


def test_leaving_gives_everything_back_and_says_goodbye_last() -> None:
    car = Bench().open()
    car.take()
    car.compute(1, 0)
    car.send(e.ShutdownRequested())
    car.send(e.EngineFrozen(STOPPED))
    assert not only(c.Leave, car.said)
    said = car.commit()
    kinds = [type(x) for x in said]
    assert kinds.index(c.PublishChunks) < kinds.index(c.PublishOffline) < kinds.index(c.Leave)
    (chunk,) = car.published()
    assert chunk.ending is not None
    assert chunk.ending.reason is ReleaseReason.DRAINING
    assert not car.journal.attempts


def test_leaving_does_not_wait_for_a_journal_that_hangs() -> None:
    car = Bench().open()
    car.take()
    car.send(e.ShutdownRequested())
    said = car.live(limits.CAR_CLOSE_MAX_S)
    assert len(only(c.Leave, said)) == 1


def test_an_idle_car_leaves_at_once() -> None:
    car = Bench().open()
    car.send(e.ShutdownRequested())
    assert isinstance(car.commit()[-1], c.Leave), "with the day's row written"


def test_a_broken_invariant_says_which_and_tells_the_story() -> None:
    car = Bench().open()
    car.take()
    car.core.work.attempts[1].remaining.clear()
    with pytest.raises(BrokenInvariant, match=r"nothing left .* recorded"):
        car.core.check(car.now)
