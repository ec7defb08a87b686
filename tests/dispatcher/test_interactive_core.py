"""Requests are put together, given to cars, taken back and given to others, and end once."""

import pytest
from interactive_rig import MODEL, NEED, Rig, lent, only

from edge_runtime.contract import limits
from edge_runtime.contract.messages import Cancelled, Tokens
from edge_runtime.contract.reasons import (
    Availability,
    FinishReason,
    HoldReason,
    ItemError,
    RefusalReason,
)
from edge_runtime.dispatcher.core import interactive_parts as p
from edge_runtime.dispatcher.core.events import VerdictReceived
from edge_runtime.dispatcher.core.placement import Requirement


def rig(*cars: str) -> Rig:
    made = Rig()
    for car in cars or ("car-1",):
        made.car(car)
    return made


def resume(ids: tuple[int, ...]) -> bytes:
    return f"after {ids}".encode()


def stream(r: Rig) -> int:
    return r.ask(resume=resume, item=resume(()))


# --- inputs by reference ---------------------------------------------------------------------


def test_an_input_by_reference_goes_to_a_car_that_fetches_and_nowhere_inline() -> None:
    r = Rig()
    r.car("old", takes_references=False)
    number = r.ask(**lent(1))
    assert not r.units
    r.car("car-1")
    (unit,) = r.units
    vehicle, offer = r.out[unit]
    (item,) = offer.items
    assert (vehicle, item.data, item.ref) == ("car-1", b"", lent(1)["ref"])
    r.answer(unit)
    assert isinstance(r.ended[number], p.Answered)


def test_no_unit_has_more_to_fetch_than_a_car_takes() -> None:
    r = rig()
    numbers = [r.ask(**lent(n + 1, limits.OBJECT_MAX_BYTES // 3)) for n in range(9)]
    sizes = []
    while r.units:
        _, offer = r.out[r.units[0]]
        sizes.append(sum(item.ref.length for item in offer.items if item.ref is not None))
        r.answer(r.units[0])
    assert sorted(r.ended) == numbers
    assert max(sizes) <= limits.UNIT_OBJECTS_MAX_BYTES
    assert max(sizes) > limits.OBJECT_MAX_BYTES // 3, "they travel together as far as they fit"


def test_a_car_is_given_time_to_fetch_before_another_is_asked() -> None:
    r = rig("car-1", "car-2")
    length = limits.OBJECT_MAX_BYTES
    r.ask(**lent(1, length))
    fetch_ms = limits.INTERACTIVE_FETCH_MS + length // limits.INTERACTIVE_FETCH_BYTES_PER_MS
    for car in ("car-1", "car-2"):
        r.says(car)
    r.wait(fetch_ms)
    for car in ("car-1", "car-2"):
        r.says(car)
    assert len(r.units) == 1
    r.wait(2 * limits.INTERACTIVE_SILENCE_MS)
    assert len(r.units) == 2


def test_a_car_is_given_time_to_hand_in_what_it_has_announced() -> None:
    r = rig("car-1", "car-2")
    number = r.ask()
    (unit,) = r.units
    assert r.core.is_out(unit)
    r.wait(limits.INTERACTIVE_SILENCE_MS - 100)
    length = limits.OBJECT_MAX_BYTES
    r.send(p.OutputComes(unit=unit, size_bytes=length))
    hand_in_ms = limits.INTERACTIVE_FETCH_MS + length // limits.INTERACTIVE_FETCH_BYTES_PER_MS
    for _ in range(2):
        for car in ("car-1", "car-2"):
            r.says(car)
        r.wait(hand_in_ms // 2)
    assert len(r.units) == 1
    r.answer(unit)
    assert number in r.ended
    assert not r.core.is_out(unit)
    r.send(p.OutputComes(unit=unit, size_bytes=length))  # late: nobody waits
    assert not r.units


def test_what_is_lent_counts_in_the_memory_of_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "INTERACTIVE_BYTES_MAX", 500_000)
    r = Rig()
    first, second, third = (r.ask(**lent(n, 200_000)) for n in (1, 2, 3))
    assert {first, second}.isdisjoint(r.ended)
    assert r.ended[third].why is p.Why.OVERLOADED
    r.leave(first)
    fourth = r.ask(**lent(4, 200_000))
    assert fourth not in r.ended


# --- one request, one car -----------------------------------------------------------------------


def test_an_idle_car_is_asked_at_once_and_its_answer_is_the_requests_own() -> None:
    r = rig()
    number = r.ask()
    (unit,) = r.units
    r.answer(unit)
    answered = r.ended[number]
    assert isinstance(answered, p.Answered)
    assert answered.output.endswith(f"item {number}".encode())
    assert not r.core.computing


def test_requests_that_wait_for_a_busy_car_travel_together_and_each_gets_its_own() -> None:
    r = rig()
    numbers = [r.ask() for _ in range(1 + limits.INTERACTIVE_IN_FLIGHT * 8)]
    while r.units:
        r.answer(r.units[0])
    assert sorted(r.ended) == numbers
    for number in numbers:
        assert r.ended[number].output.endswith(f"item {number}".encode())
    assert len(only(p.OfferUnit, r.said)) < len(numbers) / 2


def test_who_waits_for_company_does_not_wait_long() -> None:
    r = rig()
    r.ask()
    r.ask()
    assert len(r.units) == 1
    r.wait(limits.INTERACTIVE_BATCH_WAIT_MS)
    assert len(r.units) == 2


def test_a_car_has_no_more_units_than_it_may() -> None:
    r = rig()
    for _ in range(200):
        r.ask()
        r.wait(3)
    assert len(r.units) == limits.INTERACTIVE_IN_FLIGHT


@pytest.mark.parametrize("rows", [1, 3, 16, 40])
def test_rows_are_counted_not_requests(rows: int) -> None:
    r = rig()
    for _ in range(40):
        r.ask(rows=rows)
    r.wait(5)
    for _, offer in r.out.values():
        assert len(offer.items) == 1 or len(offer.items) * rows <= 16


def test_a_batch_closes_at_its_time_and_its_bytes() -> None:
    r = rig()
    for _ in range(20):
        r.ask(reference_ms=limits.INTERACTIVE_BATCH_MS / 4, rows_max=64)
    r.wait(5)
    assert max(len(offer.items) for _, offer in r.out.values()) == 4
    r = rig()
    for _ in range(10):
        r.ask(item=bytes(50_000))
    r.wait(5)
    assert max(len(offer.items) for _, offer in r.out.values()) == 2


@pytest.mark.parametrize(
    "other",
    [{"tenant": "bob"}, {"parameters": b"\x81"}, {"purpose": "other"}, {"media_type": "y"}],
)
def test_requests_that_differ_never_share_a_unit(other: dict[str, object]) -> None:
    r = rig()
    r.ask()
    for _ in range(4):
        r.ask()
        r.ask(**other)  # type: ignore[arg-type]  # one of several fields
    while r.units:
        offer = r.out[r.units[0]][1]
        data = {item.data for item in offer.items}
        assert len(data) == len(offer.items)
        r.answer(r.units[0])
        r.wait(3)
    for command in only(p.OfferUnit, r.said):
        numbers = [int(item.data.split()[1]) for item in command.unit.items]
        kinds = {number > 1 and number % 2 for number in numbers}
        assert len(kinds) == 1


# --- which car ----------------------------------------------------------------------------------


def test_idle_cars_go_before_busy_ones() -> None:
    r = rig("car-1", "car-2", "car-3")
    for _ in range(3):
        r.ask()
    assert {r.on(unit) for unit in r.units} == {"car-1", "car-2", "car-3"}


def test_a_car_that_holds_the_model_goes_before_one_that_would_fetch_it() -> None:
    r = Rig()
    r.car("cold", is_warm=False)
    r.car("warm")
    r.ask()
    r.ask()
    r.wait(5)
    assert {r.on(unit) for unit in r.units} == {"warm"}


def test_a_cold_car_is_asked_where_no_other_is_alive() -> None:
    r = Rig()
    r.car("cold", is_warm=False)
    r.ask()
    assert [r.on(unit) for unit in r.units] == ["cold"]


def test_cars_full_of_durable_work_are_asked_all_the_same() -> None:
    r = rig()
    row = r.state.fleet.row_of["car-1"]
    for _ in range(4):
        r.state.fleet.offered(row, 10_000.0)
    r.ask()
    assert r.units


# --- cars that do not ---------------------------------------------------------------------------


def test_a_refusal_moves_the_request_to_another_car() -> None:
    r = rig("car-1", "car-2")
    number = r.ask()
    first = r.on(r.units[0])
    r.refuse(r.units[0])
    assert r.on(r.units[0]) != first
    r.answer(r.units[0])
    assert isinstance(r.ended[number], p.Answered)


def test_a_car_that_gives_back_keeps_what_it_had_finished() -> None:
    r = rig()
    for _ in range(4):
        r.ask()
    r.answer(r.units[0])
    r.wait(3)
    (unit,) = r.units
    r.car("car-2")
    r.answer(unit, 0, ends=False)
    r.release(unit)
    (again,) = r.units
    assert r.on(again) == "car-2"
    assert len(r.out[again][1].items) == 2
    r.answer(again)
    assert len(r.ended) == 4


def test_the_only_car_is_asked_again_after_a_while() -> None:
    r = rig()
    r.ask()
    r.release(r.units[0])
    assert not r.units
    r.wait(limits.INTERACTIVE_AVOID_MS + 300)
    assert r.units


@pytest.mark.parametrize("how", ["offline", "reboot", "reconnect", "quarantine"])
def test_a_car_that_went_loses_what_it_had(how: str) -> None:
    r = rig("car-1", "car-2")
    number = r.ask()
    (unit,) = r.units
    gone = r.on(unit)
    match how:
        case "offline":
            r.goes(gone)
        case "reboot":
            r.car(gone, boot=2)
        case "reconnect":
            r.car(gone, connection=2)
        case _:
            r.state.fleet.quarantine(r.state.fleet.row_of[gone], on=True)
            r.send(p.FleetChanged(vehicle=gone))
    assert unit not in r.units
    r.answer(r.units[0])
    assert isinstance(r.ended[number], p.Answered)


def test_a_car_that_falls_silent_is_not_waited_for() -> None:
    r = rig("car-1", "car-2")
    number = r.ask()
    r.wait(limits.INTERACTIVE_SILENCE_MS + 100)
    assert len(r.units) == 2
    first, second = r.units
    assert r.on(first) != r.on(second)
    said = r.answer(first)
    assert [command.unit for command in only(p.CancelUnit, said)] == [second]
    assert isinstance(r.ended[number], p.Answered)
    assert not r.units


def test_an_offer_that_was_lost_is_made_again_to_the_only_car() -> None:
    r = rig()
    r.ask()
    (lost,) = r.units
    r.wait(3 * limits.INTERACTIVE_SILENCE_MS)
    assert r.units
    assert lost not in r.units


def test_a_request_is_never_twice_on_one_car() -> None:
    r = rig()
    r.ask()
    for _ in range(30):
        r.wait(300)
        assert len(r.units) <= 1


# --- failures -----------------------------------------------------------------------------------


def test_a_wrong_input_fails_at_once_and_alone() -> None:
    r = rig()
    r.ask()
    bad, good = r.ask(), r.ask()
    r.answer(r.units[0])
    r.wait(3)
    (unit,) = r.units
    r.fail(unit, 0, ItemError.WRONG_SHAPE, ends=False)
    r.answer(unit, 1)
    assert r.ended[bad].code is ItemError.WRONG_SHAPE
    assert isinstance(r.ended[good], p.Answered)


def test_a_failure_that_may_be_the_cars_is_tried_on_another() -> None:
    r = rig("car-1", "car-2")
    number = r.ask()
    first = r.on(r.units[0])
    r.fail(r.units[0], 0, ItemError.MODEL_ERROR)
    assert r.on(r.units[0]) != first
    r.answer(r.units[0])
    assert isinstance(r.ended[number], p.Answered)


def test_a_failure_on_every_car_there_is_is_the_answer() -> None:
    r = rig("car-1", "car-2")
    number = r.ask()
    for _ in range(2):
        r.fail(r.units[0], 0, ItemError.MODEL_ERROR)
    assert r.ended[number].why is p.Why.ITEM


def test_a_poisonous_request_kills_a_bounded_number_of_cars() -> None:
    r = rig(*(f"car-{n}" for n in range(10)))
    number = r.ask()
    killed = 0
    while number not in r.ended:
        r.fail(r.units[0], 0, ItemError.ENGINE_KILLED)
        killed += 1
    assert killed == limits.POISON_DISTINCT_CARS


def test_without_a_car_it_ends_soon_and_says_why() -> None:
    r = rig()
    r.says("car-1", Availability.HOLD, HoldReason.OCCUPIED)
    number = r.ask()
    r.wait(limits.INTERACTIVE_NO_CAR_MS + 300)
    failed = r.ended[number]
    assert failed.why is p.Why.NO_CAR
    assert "occupied" in failed.message
    assert failed.retry_after_ms > 0


def test_without_a_car_it_waits_a_little_for_one() -> None:
    r = Rig()
    number = r.ask()
    r.wait(limits.INTERACTIVE_NO_CAR_MS // 2)
    r.car()
    r.wait(100)
    r.answer(r.units[0])
    assert isinstance(r.ended[number], p.Answered)


def test_a_task_that_no_car_has_says_so() -> None:
    r = rig()
    number = r.ask(requirement=Requirement(model=MODEL, task="other"))
    r.wait(limits.INTERACTIVE_NO_CAR_MS + 300)
    assert "cannot_serve" in r.ended[number].message


def test_a_car_that_refuses_it_for_good_is_not_asked_twice() -> None:
    r = rig()
    number = r.ask()
    r.refuse(r.units[0], RefusalReason.TENANT_NOT_ALLOWED, 0)
    r.wait(limits.INTERACTIVE_NO_CAR_MS + 300)
    assert r.ended[number].why is p.Why.NO_CAR
    assert len(only(p.OfferUnit, r.said)) == 1


def test_the_deadline_ends_it_and_stops_the_car() -> None:
    r = rig()
    number = r.ask(deadline_ms=r.boot_ms + 50)
    r.wait(51)
    assert r.ended[number].why is p.Why.DEADLINE
    assert only(p.CancelUnit, r.said)
    assert not r.core.computing


def test_a_car_is_told_how_much_time_is_left() -> None:
    r = rig()
    r.ask(deadline_ms=r.boot_ms + 1_234)
    ((_, offer),) = r.out.values()
    assert offer.remaining_ms == 1_234
    assert offer.deadline_ms == r.now.utc_ms + 1_234


def test_more_than_fits_is_refused_by_tenant_and_in_all() -> None:
    r = Rig()
    for _ in range(limits.INTERACTIVE_TENANT_REQUESTS_MAX):
        r.ask()
    assert r.ended[r.ask()].why is p.Why.OVERLOADED
    assert r.ask("bob") not in r.ended
    r = Rig()
    for n in range(5):
        r.ask(f"t{n}", item=bytes(limits.INTERACTIVE_BYTES_MAX // 4))
    assert r.ended[5].why is p.Why.OVERLOADED


# --- requesters that leave ----------------------------------------------------------------------


def test_who_leaves_stops_the_car_in_the_same_step() -> None:
    r = rig()
    number = r.ask()
    (unit,) = r.units
    said = r.leave(number)
    assert [command.unit for command in only(p.CancelUnit, said)] == [unit]
    assert not r.core.waiting


def test_who_leaves_does_not_stop_its_neighbours() -> None:
    r = rig()
    r.ask()
    left, stays = r.ask(), r.ask()
    r.answer(r.units[0])
    r.wait(3)
    said = r.leave(left)
    assert not only(p.CancelUnit, said)
    r.answer(r.units[0])
    assert isinstance(r.ended[stays], p.Answered)
    assert left not in r.ended


def test_when_the_last_of_a_batch_leaves_the_car_is_told() -> None:
    r = rig()
    r.ask()
    numbers = [r.ask(), r.ask()]
    r.answer(r.units[0])
    r.wait(3)
    r.leave(numbers[0])
    assert only(p.CancelUnit, r.leave(numbers[1]))


def test_what_waits_and_leaves_is_forgotten() -> None:
    r = Rig()
    for _ in range(100):
        r.leave(r.ask())
    assert not r.core.waiting
    assert r.core.next_deadline_ms() is None


# --- cars that lie, and late words --------------------------------------------------------------


def test_another_cars_chunk_answers_nothing() -> None:
    r = rig("car-1", "car-2")
    number = r.ask()
    (unit,) = r.units
    liar = "car-2" if r.on(unit) == "car-1" else "car-1"
    r.answer(unit, vehicle=liar, offer=r.out[unit][1])
    assert number not in r.ended


def test_a_late_chunk_is_disowned_and_what_still_runs_is_stopped() -> None:
    r = rig()
    number = r.ask()
    (unit,) = r.units
    offer = r.out[unit][1]
    r.leave(number)
    said = r.chunk(unit, offer=offer, vehicle="car-1")
    assert only(p.CancelUnit, said)
    assert only(p.DisownChunk, said)


def test_a_chunk_that_comes_twice_answers_once() -> None:
    r = rig()
    r.ask()
    (unit,) = r.units
    offer = r.out[unit][1]
    r.answer(unit)
    r.out[unit] = ("car-1", offer)
    assert only(p.DisownChunk, r.answer(unit))


def test_an_item_that_was_never_asked_for_is_nobodys() -> None:
    r = rig()
    number = r.ask()
    (unit,) = r.units
    r.fail(unit, 7, ItemError.MODEL_ERROR, ends=False)
    assert number not in r.ended


# --- fairness -----------------------------------------------------------------------------------


def test_a_tenant_with_many_requests_does_not_keep_another_waiting() -> None:
    r = rig()
    for _ in range(200):
        r.ask("many", rows_max=4)
    other = r.ask("one")
    for _ in range(4):
        r.wait(limits.INTERACTIVE_BATCH_WAIT_MS)
        r.answer(r.units[0])
    assert other in r.ended


# --- streams ------------------------------------------------------------------------------------


def test_tokens_come_once_and_in_order() -> None:
    r = rig()
    number = stream(r)
    (unit,) = r.units
    r.chunk(unit, tokens=(Tokens(index=0, offset=0, ids=(1, 2), text="ab"),))
    r.chunk(unit, tokens=(Tokens(index=0, offset=0, ids=(1, 2), text="ab"),))
    r.chunk(unit, tokens=(Tokens(index=0, offset=2, ids=(3,), text="c"),))
    assert [piece.text for piece in r.streamed[number]] == ["ab", "c"]
    r.answer(unit)
    assert isinstance(r.ended[number], p.Answered)


def test_a_stream_goes_on_elsewhere_after_its_last_token() -> None:
    r = rig("car-1", "car-2")
    number = stream(r)
    (unit,) = r.units
    first = r.on(unit)
    r.chunk(unit, tokens=(Tokens(index=0, offset=0, ids=(1, 2), text="ab"),))
    r.release(unit)
    (second,) = r.units
    assert r.on(second) != first
    assert r.out[second][1].items[0].data == resume((1, 2))
    last = Tokens(index=0, offset=2, ids=(3,), text="c", finish=FinishReason.STOP)
    r.chunk(second, tokens=(last,))
    assert [piece.offset for piece in r.streamed[number]] == [0, 2]


def test_a_stream_whose_car_dies_after_the_last_token_ends_once() -> None:
    r = rig("car-1", "car-2")
    number = stream(r)
    last = Tokens(index=0, offset=0, ids=(1,), text="a", finish=FinishReason.STOP)
    r.chunk(r.units[0], tokens=(last,))
    r.goes(r.on(r.units[0]))
    (second,) = r.units
    assert r.out[second][1].items[0].data == resume((1,))
    r.chunk(second, tokens=(Tokens(index=0, offset=1, ids=(), text="a", finish=last.finish),))
    r.answer(second)
    assert [piece.text for piece in r.streamed[number]] == ["a"]
    assert isinstance(r.ended[number], p.Answered)


def test_a_silent_stream_moves_and_what_the_old_car_says_later_is_not_wanted() -> None:
    r = rig("car-1", "car-2")
    number = stream(r)
    (unit,) = r.units
    old_car, old_offer = r.out[unit]
    r.chunk(unit, tokens=(Tokens(index=0, offset=0, ids=(1,), text="a"),))
    r.wait(limits.INTERACTIVE_SILENCE_MS + 50)
    (second,) = r.units
    assert r.on(second) != old_car
    late = Tokens(index=0, offset=1, ids=(9,), text="X")
    r.chunk(unit, tokens=(late,), vehicle=old_car, offer=old_offer)
    assert [piece.text for piece in r.streamed[number]] == ["a"]


def test_a_gap_in_a_stream_is_filled_not_skipped() -> None:
    r = rig("car-1")
    number = stream(r)
    (unit,) = r.units
    r.chunk(unit, tokens=(Tokens(index=0, offset=0, ids=(1,), text="a"),))
    r.chunk(unit, tokens=(Tokens(index=0, offset=5, ids=(6,), text="f"),))
    assert [piece.text for piece in r.streamed[number]] == ["a"]
    (second,) = r.units
    assert second != unit
    assert r.out[second][1].items[0].data == resume((1,))


def test_streams_share_a_car_each_in_its_own_unit() -> None:
    r = rig()
    for _ in range(limits.INTERACTIVE_CAR_UNITS_MAX + 2):
        stream(r)
    assert len(r.units) == limits.INTERACTIVE_CAR_UNITS_MAX
    assert all(len(offer.items) == 1 for _, offer in r.out.values())


def test_a_request_that_is_no_stream_ignores_tokens() -> None:
    r = rig()
    number = r.ask()
    r.chunk(r.units[0], tokens=(Tokens(index=0, offset=0, ids=(1,), text="a"),))
    assert number not in r.streamed


def test_why_no_car_is_said_for_an_empty_fleet() -> None:
    r = Rig()
    assert r.core.why_no_car(NEED, r.now) == "no car has ever connected"


def test_a_cancel_is_sent_again_until_its_car_answers() -> None:
    r = rig()
    r.leave(r.ask())
    (cancel,) = only(p.CancelUnit, r.said)
    r.wait(1_200)
    assert len(only(p.CancelUnit, r.said)) == 3
    cancelled = Cancelled(unit=cancel.unit, fence=cancel.fence)
    r.send(VerdictReceived(vehicle="car-1", verdict=cancelled))
    r.wait(5_000)
    assert len(only(p.CancelUnit, r.said)) == 3


def test_a_cancel_that_nobody_answers_is_given_up() -> None:
    r = rig()
    r.leave(r.ask())
    r.wait(limits.CANCEL_GIVE_UP_MS + 1_000)
    assert r.core.next_deadline_ms() is None
