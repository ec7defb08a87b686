"""The car's core and large outputs: kept, handed over, and only then told of; or given up."""

import msgspec
import pytest
from car_bench import INTERACTIVE_UNIT, MODEL, POLICY, Bench, ask, offer, only, sha256_of

from edge_runtime.contract import limits
from edge_runtime.contract.messages import Fence, ItemDone, ItemFailed, UnitOffer
from edge_runtime.contract.reasons import CancelReason, HoldReason, ItemError, Outcome
from edge_runtime.vehicle.core import commands as c
from edge_runtime.vehicle.core import events as e
from edge_runtime.vehicle.core.machine import NO_PREFETCH, NO_UPLOAD
from edge_runtime.vehicle.policy import Consent

PLACE = "/objects/for-cars/anna/00ff/job-1"


def large(unit: int = 1, counter: int = 1, **more: object) -> UnitOffer:
    return offer(unit, counter, **{"outputs": PLACE, **more})


def results(car: Bench) -> dict[int, ItemDone | ItemFailed]:
    return {item.index: item for chunk in car.published() for item in chunk.items}


def test_an_output_is_told_of_when_it_was_handed_over_and_not_before() -> None:
    car = Bench().open()
    said = car.take(large(items=(0, 1)))
    (run,) = only(c.SubmitRun, said)
    assert run.output_max_bytes == limits.OBJECT_MAX_BYTES
    car.finish_large(1, 0)
    said = car.commit()
    (upload,) = only(c.UploadOutputs, said)
    (ref,) = upload.references
    assert ref.sha256 == sha256_of(0)
    assert ref.length == limits.OUTPUT_MAX_BYTES + 1
    assert ref.url == f"{PLACE}/{ref.sha256}"
    car.live(30)
    car.compute(1, 1)
    car.commit()
    car.live(30)
    assert car.published() == [], "the last chunk would end the unit before its first item"
    assert car.uploads == [upload], "asked for once"
    car.hand_over()
    assert car.endings() == {(1, Fence(1, 1)): Outcome.COMPLETED}
    done = results(car)[0]
    assert isinstance(done, ItemDone)
    assert done.ref == ref
    assert bytes(done.output) == b"\xc0"
    car.answer()
    car.commit()
    assert car.journal.outputs == {}
    assert car.journal.chunks == {}


def test_small_results_do_not_wait_for_a_large_one() -> None:
    car = Bench().open()
    car.take(large())
    car.compute(1, 0)
    car.finish_large(1, 1)
    car.commit()
    assert sorted(results(car)) == [0]
    assert not car.endings()


def test_without_a_place_for_it_a_large_output_is_too_large() -> None:
    for unit in (offer(), large(outputs="x" * limits.TEXT_MAX_CHARS)):
        car = Bench().open()
        (run,) = only(c.SubmitRun, car.take(unit))
        assert run.output_max_bytes is None
        car.finish_large(1, 0)
        car.compute(1, 1, 2)
        car.commit()
        failed = results(car)[0]
        assert isinstance(failed, ItemFailed)
        assert failed.code is ItemError.RESULT_TOO_LARGE


def test_an_output_over_the_largest_object_is_too_large_and_says_the_limit() -> None:
    car = Bench().open()
    car.take(large())
    car.finish_large(1, 0, limits.OBJECT_MAX_BYTES + 1)
    car.compute(1, 1, 2)
    car.commit()
    failed = results(car)[0]
    assert isinstance(failed, ItemFailed)
    assert failed.code is ItemError.RESULT_TOO_LARGE
    assert str(limits.OBJECT_MAX_BYTES) in failed.message
    assert not car.uploads


def test_an_upload_that_fails_is_tried_again_and_given_up_in_the_end() -> None:
    car = Bench().open()
    car.take(large(items=(0,)))
    car.finish_large(1, 0)
    car.commit()
    for _ in range(3):
        car.fail_upload(was_allowed=False)  # no try: the owner's rules did not let it
        car.live(limits.CHUNK_RESEND_MAX_MS / 1000 + 1)
    for _ in range(limits.OUTPUT_UPLOAD_TRIES - 1):
        car.fail_upload()
        assert car.published() == []
        car.live(limits.CHUNK_RESEND_MAX_MS / 1000 + 1)
    car.fail_upload()
    assert not car.uploads
    failed = results(car)[0]
    assert isinstance(failed, ItemFailed)
    assert failed.code is ItemError.OUTPUT_UNAVAILABLE
    assert not failed.code.is_final
    assert car.endings() == {(1, Fence(1, 1)): Outcome.COMPLETED}


def test_what_is_refused_fails_alone_and_finally_where_nobody_else_could_do_better() -> None:
    car = Bench().open()
    car.take(large(items=(0, 1, 2)))
    for index in (0, 1, 2):
        car.finish_large(1, index)
    car.commit()
    car.hand_over(e.RefusedOutput(sha256_of(0), "413 over_quota", is_final=True))
    car.hand_over(e.RefusedOutput(sha256_of(1), "422 wrong_hash"))
    car.hand_over()
    told = results(car)
    assert [item.code for item in told.values() if isinstance(item, ItemFailed)] == [
        ItemError.RESULT_TOO_LARGE,
        ItemError.OUTPUT_UNAVAILABLE,
    ]
    assert isinstance(told[2], ItemDone)
    assert car.endings() == {(1, Fence(1, 1)): Outcome.COMPLETED}


def test_without_room_in_the_journal_an_output_is_lost_and_said_so() -> None:
    car = Bench().open()
    car.take(large(items=(0, 1)))
    car.journal.is_full = True
    car.finish_large(1, 0)
    car.commit()
    assert car.core.hold is HoldReason.STORAGE_FULL
    car.live(limits.STORAGE_RETRY_MS / 1000 + 1)
    car.commit()
    failed = results(car)[0]
    assert isinstance(failed, ItemFailed)
    assert failed.code is ItemError.OUTPUT_UNAVAILABLE
    assert "JOURNAL_RESERVE_BYTES" in failed.message
    assert not car.uploads


def test_after_a_crash_it_is_handed_over_from_the_journal() -> None:
    car = Bench().open()
    car.take(large(items=(0, 1)))
    car.finish_large(1, 0)
    car.commit()
    car.crash()
    car.open()
    car.commit()
    (upload,) = car.uploads
    assert upload.fence == Fence(1, 1)
    assert not car.endings(), "giving the unit back waits, too"
    car.hand_over()
    assert car.endings() == {(1, Fence(1, 1)): Outcome.RELEASED}
    assert isinstance(results(car)[0], ItemDone)


def test_a_chunk_whose_output_the_journal_never_had_says_that_it_failed() -> None:
    car = Bench().open()
    car.take(large(items=(0, 1)))
    car.finish_large(1, 0)
    car.commit()
    car.journal.outputs.clear()
    car.crash()
    car.open()
    car.commit()
    failed = results(car)[0]
    assert isinstance(failed, ItemFailed)
    assert failed.code is ItemError.OUTPUT_UNAVAILABLE
    assert not car.uploads


def test_a_newer_fence_neither_computes_nor_hands_over_again() -> None:
    car = Bench().open()
    car.take(large(items=(0,)))
    car.finish_large(1, 0)
    car.commit()
    said = car.take(large(counter=2, items=(0,)))
    assert not only(c.SubmitRun, said)
    assert len(car.uploads) == 1
    assert not car.endings()
    car.hand_over()
    assert set(car.endings()) == {(1, Fence(1, 1)), (1, Fence(1, 2))}
    first = min(key for key in car.chunks)
    assert first[1] == Fence(1, 1)


def test_withdrawn_consent_forgets_outputs_with_everything_else() -> None:
    car = Bench().open()
    car.take(large(items=(0, 1)))
    car.finish_large(1, 0)
    car.commit()
    withdrawn = msgspec.structs.replace(POLICY, consent=Consent(given=False, version=1))
    car.send(e.PolicyChanged(withdrawn))
    car.commit()
    assert car.journal.outputs == {}
    upload = car.uploads.pop()
    assert not car.send(e.OutputsUploaded(upload.unit, upload.fence, upload.seq)), "nobody's"


def test_so_much_that_waits_makes_no_more_and_may_still_leave() -> None:
    car = Bench().open()
    count = -(-limits.UNANSWERED_MAX_BYTES // limits.OBJECT_MAX_BYTES)
    car.take(large(items=tuple(range(count + 1))))
    for index in range(count):
        car.finish_large(1, index, limits.OBJECT_MAX_BYTES)
    car.commit()
    assert car.core.work.outbox.is_full
    assert not car.core.is_computing
    assert not car.core.is_network_allowed
    assert car.core.is_upload_allowed
    assert NO_UPLOAD < NO_PREFETCH
    for _ in range(count):
        car.hand_over()
    for seq in range(count):
        assert (1, Fence(1, 1), seq) in car.chunks
    car.answer()
    car.commit()
    assert not car.core.work.outbox.is_full


def answering(items: tuple[int, ...] = (0,)) -> Bench:
    """A car that computes for who waits, and may hand over."""
    car = Bench().open()
    (run,) = only(c.SubmitRun, car.send(e.UnitsOffered((ask(items=items, outputs=PLACE),))))
    assert run.output_max_bytes == limits.OBJECT_MAX_BYTES
    return car


def test_a_large_answer_is_told_of_when_it_was_handed_over_and_never_journaled() -> None:
    car = answering()
    car.finish_large(INTERACTIVE_UNIT, 0)
    (upload,) = car.uploads
    held = car.core.work.handover
    key = upload.unit, upload.fence
    assert held.output(key, upload.seq, sha256_of(0)) == bytes(limits.OUTPUT_MAX_BYTES + 1)
    assert held.output(key, upload.seq, sha256_of(1)) is None
    assert car.core.work.holds_outputs(key)
    assert not car.published()
    car.hand_over()
    (chunk,) = car.published()
    assert isinstance(chunk.items[0], ItemDone)
    assert chunk.items[0].ref == upload.references[0]
    assert chunk.ending is not None
    assert held.size_bytes == 0
    assert not car.core.work.holds_outputs(key)
    assert not car.journal.outputs


def test_a_large_answer_keeps_no_small_one_waiting_and_the_end_waits_for_both() -> None:
    car = answering(items=(0, 1, 2))
    car.finish_large(INTERACTIVE_UNIT, 0)
    car.compute(INTERACTIVE_UNIT, 1)
    assert sorted(results(car)) == [1]
    car.finish_large(INTERACTIVE_UNIT, 2)
    second = car.uploads[1]
    car.send(e.OutputsUploaded(second.unit, second.fence, second.seq, ()))
    assert sorted(results(car)) == [1], "the end of the unit would say that 0 is not done"
    car.handed_over |= {sha256_of(0), sha256_of(2)}
    car.hand_over()
    assert sorted(results(car)) == [0, 1, 2]
    assert list(car.endings().values()) == [Outcome.COMPLETED]


@pytest.mark.parametrize("is_refused", [True, False])
def test_a_large_answer_that_nobody_takes_has_failed(*, is_refused: bool) -> None:
    car = answering()
    car.finish_large(INTERACTIVE_UNIT, 0)
    if is_refused:
        car.hand_over(e.RefusedOutput(sha256_of(0), "413 too_large", is_final=True))
    else:
        for _ in range(limits.INTERACTIVE_UPLOAD_TRIES):
            assert not car.published()
            car.fail_upload()
        assert not car.uploads
    failed = results(car)[0]
    assert isinstance(failed, ItemFailed)
    expected = ItemError.RESULT_TOO_LARGE if is_refused else ItemError.OUTPUT_UNAVAILABLE
    assert failed.code is expected
    assert len(car.endings()) == 1


def test_an_answer_that_nobody_waits_for_any_more_is_dropped() -> None:
    for items in ((0,), (0, 1)):  # with the first, the car has ended the unit
        car = answering(items)
        car.finish_large(INTERACTIVE_UNIT, 0)
        car.cancel(INTERACTIVE_UNIT, 1, CancelReason.NOT_AWAITED)
        assert car.core.work.handover.size_bytes == 0
        car.hand_over()
        assert not car.published()


def test_withdrawn_consent_drops_large_answers() -> None:
    car = answering()
    car.finish_large(INTERACTIVE_UNIT, 0)
    withdrawn = msgspec.structs.replace(POLICY, consent=Consent(given=False, version=1))
    car.send(e.PolicyChanged(withdrawn))
    assert car.core.work.handover.size_bytes == 0
    car.hand_over()
    assert not car.published()


def test_a_car_holds_a_bounded_amount_of_large_answers() -> None:
    most = limits.INTERACTIVE_OUTPUTS_MAX_BYTES // limits.OBJECT_MAX_BYTES
    car = answering(items=tuple(range(most + 1)))
    for index in range(most + 1):
        car.finish_large(INTERACTIVE_UNIT, index, limits.OBJECT_MAX_BYTES)
    assert len(car.uploads) == most
    for _ in range(most):
        car.hand_over()
    told = results(car)
    failed = told.pop(most)
    assert isinstance(failed, ItemFailed)
    assert failed.code is ItemError.OUTPUT_UNAVAILABLE
    assert all(isinstance(item, ItemDone) for item in told.values())


def test_without_a_place_a_large_answer_is_too_large() -> None:
    car = Bench().open()
    (run,) = only(c.SubmitRun, car.send(e.UnitsOffered((ask(),))))
    assert run.output_max_bytes is None
    car.finish_large(INTERACTIVE_UNIT, 0)
    failed = results(car)[0]
    assert isinstance(failed, ItemFailed)
    assert failed.code is ItemError.RESULT_TOO_LARGE


def test_a_cancelled_jobs_output_is_told_of_as_refused() -> None:
    car = Bench().open()
    car.take(large(items=(0,)))
    car.finish_large(1, 0)
    car.commit()
    car.cancel()
    assert len(car.uploads) == 1, "its upload goes on; the dispatcher says what of it is wanted"
    car.hand_over(e.RefusedOutput(sha256_of(0), "410 job_over"))
    (chunk,) = car.published()
    assert chunk.model == MODEL
    assert isinstance(chunk.items[0], ItemFailed)


def test_where_the_owner_allows_no_network_a_large_answer_has_failed_at_once() -> None:
    car = answering()
    car.finish_large(INTERACTIVE_UNIT, 0)
    car.fail_upload(was_allowed=False)
    assert isinstance(results(car)[0], ItemFailed)
