"""Faults fire on what the dispatcher shows, each exactly once, and are taken back in order."""

from edge_runtime.cli.demo.director import Act, Action, Director
from edge_runtime.cli.demo.report import FaultKind
from edge_runtime.contract.http import AttemptEnd, AttemptView, CarView
from edge_runtime.contract.reasons import Availability

OWNER, KILL, HEAT = FaultKind.OWNER_RETURNED, FaultKind.KILLED, FaultKind.OVERHEATED


def car(vehicle: str, availability: Availability, age_ms: int = 0) -> CarView:
    return CarView(
        vehicle=vehicle,
        availability=availability,
        online=True,
        age_ms=age_ms,
        free_units=1,
        units_in_flight=1,
        backlog_ms=100.0,
    )


def attempt(vehicle: str, unit: int, counter: int = 1, **fields: object) -> AttemptView:
    values: dict[str, object] = {
        "job": "job-1",
        "unit": unit,
        "epoch": 1,
        "counter": counter,
        "vehicle": vehicle,
        "offered_ms": 0,
        "taken_ms": 1,
        "items": 8,
    }
    return AttemptView(**{**values, **fields})  # type: ignore[arg-type] # a test's shorthand


WORKING = [car("car-1", Availability.WORKING), car("car-2", Availability.WORKING)]
READY = [car("car-1", Availability.READY), car("car-2", Availability.READY)]


def test_nothing_happens_to_a_car_without_a_running_unit() -> None:
    director = Director([OWNER])
    offered = attempt("car-1", 1, taken_ms=None)
    finished = attempt("car-2", 2, ended_ms=5, end=AttemptEnd.COMPLETED, items_done=8)
    assert director.observe(WORKING, [offered, finished], 10, is_over=False) == []
    assert director.observe(READY, [attempt("car-1", 1)], 10, is_over=False) == []
    assert director.unfired == (OWNER,)


def test_the_owner_leaves_when_his_released_unit_runs_elsewhere() -> None:
    director = Director([OWNER])
    running = attempt("car-1", 1)
    assert director.observe(WORKING, [running], 10, is_over=False) == [
        Action(Act.OWNER_RETURNS, "car-1")
    ]
    assert director.observe(WORKING, [running], 20, is_over=False) == []
    released = attempt("car-1", 1, ended_ms=25, end=AttemptEnd.RELEASED, items_done=2)
    assert director.observe(WORKING, [released], 30, is_over=False) == []
    assert director.unfired == ()
    assert not director.is_done
    rerun = attempt("car-2", 1, counter=2, items=6)
    assert director.observe(WORKING, [released, rerun], 40, is_over=False) == [
        Action(Act.OWNER_LEAVES, "car-1")
    ]
    stale = [car("car-1", Availability.READY, age_ms=30), READY[1]]
    director.observe(stale, [released, rerun], 50, is_over=False)
    assert not director.is_done
    director.observe(READY, [released, rerun], 60, is_over=False)
    assert director.is_done
    (mark,) = director.marks()
    assert (mark.kind, mark.vehicle, mark.at_ms, mark.recovered_ms) == (OWNER, "car-1", 10, 60)


def test_a_fault_that_came_too_late_is_taken_back_and_given_again() -> None:
    director = Director([HEAT])
    director.observe(WORKING[:1], [attempt("car-1", 1)], 10, is_over=False)
    done = attempt("car-1", 1, ended_ms=12, end=AttemptEnd.COMPLETED, items_done=8)
    actions = director.observe(WORKING, [done, attempt("car-2", 2)], 20, is_over=False)
    assert actions == [Action(Act.COOL_DOWN, "car-1"), Action(Act.OVERHEAT, "car-2")]
    assert director.marks()[0].vehicle == "car-2"
    assert len(director.marks()) == 1


def test_faults_come_one_after_the_other_and_to_different_cars() -> None:
    director = Director([OWNER, KILL])
    first, second = attempt("car-1", 1), attempt("car-2", 2)
    (owner,) = director.observe(WORKING, [first, second], 10, is_over=False)
    assert director.observe(WORKING, [first, second], 20, is_over=False) == []
    cut = attempt(
        owner.vehicle, 1 if owner.vehicle == "car-1" else 2, ended_ms=25, end=AttemptEnd.RELEASED
    )
    other = second if owner.vehicle == "car-1" else first
    (kill,) = director.observe(WORKING, [cut, other], 30, is_over=False)
    assert kill.act is Act.KILL_AND_RESTART
    assert kill.vehicle != owner.vehicle


def test_a_lost_lease_is_a_strike_too() -> None:
    director = Director([KILL])
    director.observe(WORKING, [attempt("car-1", 1)], 10, is_over=False)
    director.observe(
        WORKING,
        [attempt("car-1", 1, ended_ms=99, end=AttemptEnd.LEASE_EXPIRED)],
        100,
        is_over=False,
    )
    assert director.unfired == ()


def test_a_released_unit_with_nothing_left_needs_nobody_else() -> None:
    director = Director([HEAT])
    director.observe(WORKING, [attempt("car-1", 1)], 10, is_over=False)
    whole = attempt("car-1", 1, ended_ms=15, end=AttemptEnd.RELEASED, items_done=8)
    assert director.observe(WORKING, [whole], 20, is_over=False) == [Action(Act.COOL_DOWN, "car-1")]


def test_the_owner_leaves_where_nobody_else_can_take_over() -> None:
    director = Director([OWNER])
    alone = WORKING[:1]
    director.observe(alone, [attempt("car-1", 1)], 10, is_over=False)
    released = attempt("car-1", 1, ended_ms=15, end=AttemptEnd.RELEASED)
    assert director.observe(alone, [released], 20, is_over=False) == [
        Action(Act.OWNER_LEAVES, "car-1")
    ]


def test_an_offer_under_way_at_a_kill_may_still_have_been_taken() -> None:
    director = Director([KILL])
    running, offered = attempt("car-1", 1), attempt("car-1", 2, counter=2, taken_ms=None)
    director.observe(WORKING, [running, offered], 10, is_over=False)
    done = attempt("car-1", 1, ended_ms=12, end=AttemptEnd.COMPLETED, items_done=8)
    assert director.observe(WORKING, [done, offered], 20, is_over=False) == []
    cut = attempt("car-1", 2, counter=2, ended_ms=30, end=AttemptEnd.RELEASED)
    director.observe(WORKING, [done, cut], 40, is_over=False)
    assert director.unfired == ()


def test_while_items_wait_the_owner_comes_to_a_car_that_has_finished_one() -> None:
    director = Director([OWNER])
    cold, warm = attempt("car-1", 1), attempt("car-2", 2)
    assert director.observe(WORKING, [cold, warm], 10, is_over=False, items_waiting=5) == []
    finished = attempt("car-2", 3, ended_ms=5, end=AttemptEnd.COMPLETED, items_done=8)
    assert director.observe(
        WORKING, [cold, warm, finished], 20, is_over=False, items_waiting=5
    ) == [Action(Act.OWNER_RETURNS, "car-2")]


def test_no_fault_is_given_after_the_last_job_ended() -> None:
    director = Director([OWNER])
    assert director.observe(WORKING, [attempt("car-1", 1)], 10, is_over=True) == []
    assert director.unfired == (OWNER,)
    assert not director.is_done
