"""The car's core and inputs by reference: asked for when there is room, held, lost, given back."""

import hashlib

import msgspec
from car_bench import Bench, offer, only, verdicts

from edge_runtime.contract import limits
from edge_runtime.contract.messages import (
    Fence,
    Item,
    ItemDone,
    ItemFailed,
    Reference,
    Refused,
    Taken,
    UnitOffer,
)
from edge_runtime.contract.reasons import ItemError, Outcome, RefusalReason, ReleaseReason
from edge_runtime.vehicle.core import commands as c
from edge_runtime.vehicle.core import events as e

HALF = limits.UNIT_OBJECTS_MAX_BYTES // 2 + 1


def reference(index: int, length: int = 1_000) -> Reference:
    sha256 = hashlib.sha256(bytes([index])).hexdigest()
    return Reference(sha256=sha256, length=length, url=f"/objects/{index}")


def referring(unit: int = 1, counter: int = 1, *, length: int = 1_000, items: int = 3) -> UnitOffer:
    """Item 0 inline, the others by reference."""
    inline = Item(index=0, media_type="x", data=b"x")
    others = [
        Item(index=i, media_type="x", data=b"", ref=reference(i, length)) for i in range(1, items)
    ]
    return msgspec.structs.replace(offer(unit, counter), items=(inline, *others))


def fetched(unit: int, *indexes: int, broken: tuple[int, ...] = ()) -> e.InputsFetched:
    return e.InputsFetched(
        unit,
        tuple(e.FetchedInput(i, reference(i).sha256, bytes([i])) for i in indexes),
        tuple((i, "gone") for i in broken),
    )


def test_a_unit_runs_when_its_inputs_are_here_and_with_their_bytes() -> None:
    car = Bench().open()
    said = car.take(referring())
    assert verdicts(said) == [Taken(unit=1, fence=Fence(1, 1))]
    (fetch,) = only(c.FetchInputs, said)
    assert fetch == c.FetchInputs(1, ((1, reference(1)), (2, reference(2))))
    assert not only(c.SubmitRun, said)
    said = car.live(2)
    assert not only(c.FetchInputs, said), "asked for once"
    said = car.send(fetched(1, 1, 2))
    (run,) = only(c.SubmitRun, said)
    assert [(item.index, item.data) for item in run.items] == [(0, b"x"), (1, b"\1"), (2, b"\2")]
    car.compute(1, 0, 1, 2)
    car.commit()
    assert car.endings() == {(1, Fence(1, 1)): Outcome.COMPLETED}


def test_bytes_of_another_hash_than_offered_are_not_taken() -> None:
    car = Bench().open()
    car.take(referring(items=2))
    wrong = e.FetchedInput(1, reference(2).sha256, b"other")
    said = car.send(e.InputsFetched(1, (wrong,)))
    assert not only(c.SubmitRun, said)
    assert only(c.FetchInputs, said), "asked for again"


def test_a_broken_input_fails_alone() -> None:
    car = Bench().open()
    car.take(referring())
    said = car.send(fetched(1, 2, broken=(1,)))
    (run,) = only(c.SubmitRun, said)
    assert [item.index for item in run.items] == [0, 2]
    car.compute(1, 0, 2)
    car.commit()
    results = {result.index: result for chunk in car.published() for result in chunk.items}
    assert isinstance(results[0], ItemDone)
    assert isinstance(results[1], ItemFailed)
    assert results[1].code is ItemError.INPUT_UNAVAILABLE
    assert not results[1].code.is_final


def test_a_unit_of_nothing_but_broken_inputs_ends() -> None:
    car = Bench().open()
    car.take(msgspec.structs.replace(referring(), items=referring().items[1:]))
    said = car.send(fetched(1, broken=(1, 2)))
    assert not only(c.SubmitRun, said)
    car.commit()
    assert car.endings() == {(1, Fence(1, 1)): Outcome.COMPLETED}


def test_a_unit_whose_inputs_cannot_be_had_is_given_back() -> None:
    car = Bench().open()
    car.take(referring())
    car.send(e.InputsFailed(1, "no network"))
    car.commit()
    (chunk,) = car.published()
    assert chunk.ending is not None
    assert chunk.ending.outcome is Outcome.RELEASED
    assert chunk.ending.reason is ReleaseReason.INPUT_UNAVAILABLE
    assert not car.send(fetched(1, 1, 2)), "what comes late is nobody's"


def test_no_more_is_fetched_at_once_than_fits() -> None:
    car = Bench().open()
    said = car.take(referring(1, length=HALF, items=2), referring(2, length=HALF, items=2))
    (first,) = only(c.FetchInputs, said)
    assert first.unit == 1
    said = car.send(fetched(1, 1))
    assert not only(c.FetchInputs, said), "the first one's bytes are still here"
    said = car.compute(1, 0, 1)
    (second,) = only(c.FetchInputs, said)
    assert second.unit == 2


def test_a_unit_of_more_than_a_car_holds_is_refused() -> None:
    car = Bench().open()
    said = car.send(e.UnitsOffered((referring(length=HALF),)))
    (verdict,) = verdicts(said)
    assert isinstance(verdict, Refused)
    assert verdict.reason is RefusalReason.TOO_LARGE


def test_a_newer_fence_keeps_what_was_fetched() -> None:
    car = Bench().open()
    car.take(referring())
    car.take(referring(counter=2))
    said = car.send(fetched(1, 1, 2))
    (run,) = only(c.SubmitRun, said)
    assert len(run.items) == 3
    car.compute(1, 0)
    said = car.take(referring(counter=3, items=4))
    car.compute(1, 1, 2)
    said = car.send(e.RunEnded(car.run_of(1), e.RunOutcome.COMPLETED))
    (fetch,) = only(c.FetchInputs, said)
    assert [index for index, _ in fetch.references] == [3]


def test_when_the_owner_comes_back_a_waiting_unit_is_given_back_at_once() -> None:
    car = Bench().open()
    car.take(referring())
    car.sense(is_occupied=True)
    car.live(10)
    car.commit()
    assert car.endings() == {(1, Fence(1, 1)): Outcome.RELEASED}
    assert not only(c.SubmitRun, car.send(fetched(1, 1, 2)))


def test_a_killed_engine_does_not_lose_what_was_fetched() -> None:
    car = Bench().open()
    car.take(referring())
    car.send(fetched(1, 1, 2))
    run_id = car.run_of(1)
    car.engine.runs.clear()
    said = car.send(
        e.EngineDied(run_id=run_id, index=0, code=ItemError.ENGINE_KILLED, message="killed")
    )
    (run,) = only(c.SubmitRun, said)
    assert [(item.index, item.data) for item in run.items] == [(1, b"\1"), (2, b"\2")]
    assert not only(c.FetchInputs, said)


def test_after_a_reboot_a_unit_with_references_is_given_back() -> None:
    car = Bench().open()
    car.take(referring())
    car.crash()
    car.open()
    car.commit()
    assert car.endings() == {(1, Fence(1, 1)): Outcome.RELEASED}
