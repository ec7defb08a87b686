"""Who is known, who may be given work, and who is given it first."""

from typing import Any

import msgspec
import numpy as np
import pytest
from core_rig import MODEL, OTHER_MODEL, TASK, ModelCar, World
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.contract import limits
from edge_runtime.contract.errors import Rejected, RejectionReason
from edge_runtime.contract.messages import Birth, Offline
from edge_runtime.contract.reasons import Availability, HoldReason
from edge_runtime.dispatcher.core.events import VehicleBorn, VehicleWent
from edge_runtime.dispatcher.core.fleet import Fleet, Names
from edge_runtime.dispatcher.core.placement import Placement, Requirement

NOW_MS = 1_000_000
NEED = Requirement(MODEL, TASK)


def born(fleet: Fleet, name: str, **traits: Any) -> ModelCar:
    """A car that is ready."""
    car = ModelCar(name, **traits)
    fleet.born(car.birth().birth)
    fleet.reported(car.state().state, NOW_MS)
    return car


def rejected(function: Any, *arguments: Any) -> RejectionReason:
    with pytest.raises(Rejected) as info:
        function(*arguments)
    return info.value.reason


@pytest.fixture
def fleet() -> Fleet:
    return Fleet(capacity=2)


# --- old boots, connections and sequence numbers -----------------------------------------------


def test_a_birth_of_an_older_boot_or_connection_is_rejected(fleet: Fleet) -> None:
    car = born(fleet, "a", boot=5, connection=3)
    old = car.birth().birth
    for boot, connection in ((4, 9), (5, 2)):
        stale = msgspec.structs.replace(old, boot=boot, connection=connection, region="moon")
        assert rejected(fleet.born, stale) is RejectionReason.OLD_BOOT
    assert fleet.view(0, NOW_MS).region == "default"
    assert fleet.born(msgspec.structs.replace(old, connection=4, region="moon")) == 0
    assert fleet.view(0, NOW_MS).region == "moon"


def test_a_live_birth_of_an_older_boot_is_taken_but_of_no_older_connection(fleet: Fleet) -> None:
    """A car with a new disk and a clock that is behind counts its boots anew."""
    car = born(fleet, "a", boot=5, connection=3)
    car.boot, car.connection, car.seq = 4, 2, 0
    assert fleet.born(car.birth().birth, is_live=True) == 0
    assert not fleet.is_available(0, NOW_MS), "nothing of its state is known"
    fleet.reported(car.state().state, NOW_MS)
    assert fleet.is_available(0, NOW_MS)
    stale = msgspec.structs.replace(car.birth().birth, connection=1)
    with pytest.raises(Rejected):
        fleet.born(stale, is_live=True)


def test_a_birth_may_be_repeated(fleet: Fleet) -> None:
    car = born(fleet, "a")
    assert fleet.born(car.birth().birth) == 0
    assert fleet.is_available(0, NOW_MS)


@pytest.mark.parametrize(("boot", "connection"), [(4, 9), (5, 2)])
def test_an_offline_of_an_older_boot_or_connection_is_rejected(
    fleet: Fleet, boot: int, connection: int
) -> None:
    born(fleet, "a", boot=5, connection=3)
    stale = Offline(vehicle="a", boot=boot, connection=connection)
    assert rejected(fleet.went, stale) is RejectionReason.OLD_BOOT
    assert fleet.is_available(0, NOW_MS)


def test_an_offline_of_this_connection_ends_offers_until_the_next_word(fleet: Fleet) -> None:
    car = born(fleet, "a", boot=5, connection=3)
    fleet.went(car.offline().offline)
    assert not fleet.is_available(0, NOW_MS)
    fleet.reported(car.state().state, NOW_MS)
    assert fleet.is_available(0, NOW_MS)


def test_connections_beyond_the_column_do_not_wrap(fleet: Fleet) -> None:
    car = born(fleet, "a", connection=2**40)
    stale = Offline(vehicle="a", boot=car.boot, connection=7)
    assert rejected(fleet.went, stale) is RejectionReason.OLD_BOOT


def test_states_of_other_boots_and_old_numbers_are_rejected(fleet: Fleet) -> None:
    car = born(fleet, "a", boot=5)
    state = car.state().state
    fleet.reported(state, NOW_MS)
    assert rejected(fleet.reported, state, NOW_MS) is RejectionReason.OLD_SEQUENCE
    older = msgspec.structs.replace(state, boot=4, seq=99)
    assert rejected(fleet.reported, older, NOW_MS) is RejectionReason.OLD_BOOT
    newer = msgspec.structs.replace(state, boot=6, seq=99)
    assert rejected(fleet.reported, newer, NOW_MS) is RejectionReason.UNKNOWN_VEHICLE
    other = msgspec.structs.replace(state, vehicle="b")
    assert rejected(fleet.reported, other, NOW_MS) is RejectionReason.UNKNOWN_VEHICLE


def test_a_new_boot_starts_its_numbers_and_says_nothing_of_its_state(fleet: Fleet) -> None:
    car = born(fleet, "a", boot=1)
    car.seq = 50
    fleet.reported(car.state().state, NOW_MS)
    car.boot, car.seq = 2, 0
    fleet.born(car.birth().birth)
    assert not fleet.is_available(0, NOW_MS)
    fleet.reported(car.state().state, NOW_MS)
    assert fleet.is_available(0, NOW_MS)


def test_a_car_that_counts_its_boots_anew_works_again() -> None:
    world = World()
    car = world.car(boot=30)
    world.settle()
    car.boot, car.connection, car.seq = 7, 1, 0
    world.tick(car.state())
    assert world.rejected[RejectionReason.OLD_BOOT] == 1
    world.settle()
    assert car.rebirths == 1, "it is asked who it is"
    assert world.core.fleet.boot[0] == car.boot
    assert world.core.fleet.is_available(0, world.now.boot_ms)


def car_and_an_earlier_birth() -> tuple[World, ModelCar, Birth]:
    """A car that is known, and what it said in the boot before."""
    world = World()
    car = world.car(boot=30)
    return world, car, msgspec.structs.replace(car.birth().birth, boot=29)


def test_a_late_birth_of_an_earlier_boot_is_soon_corrected() -> None:
    world, car, late = car_and_an_earlier_birth()
    world.tick(VehicleBorn(birth=late))
    assert world.core.fleet.boot[0] == late.boot
    world.tick(car.state())
    world.settle()
    assert world.core.fleet.boot[0] == car.boot
    assert world.core.fleet.is_available(0, world.now.boot_ms)


def test_what_a_broker_kept_of_an_earlier_boot_is_not_believed_and_the_car_is_asked() -> None:
    world, car, kept = car_and_an_earlier_birth()
    world.tick(VehicleBorn(birth=kept, is_retained=True))
    assert world.rejected[RejectionReason.OLD_BOOT] == 1
    world.settle()
    assert world.core.fleet.boot[0] == car.boot
    assert car.rebirths == 1


def test_an_old_offline_is_answered_with_a_rebirth() -> None:
    world = World()
    car = world.car(boot=3)
    old = Offline(vehicle="car", boot=2, connection=1)
    world.tick(VehicleWent(offline=old))
    assert world.rejected[RejectionReason.OLD_BOOT] == 1
    world.settle()
    assert car.rebirths == 1


def test_rebirths_are_asked_gradually(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REBIRTHS_PER_TICK_MAX", 2)
    world = World()
    strangers = [ModelCar(f"car{n}") for n in range(5)]
    world.cars = {car.id: car for car in strangers}
    world.refresh()
    assert sum(car.rebirths for car in strangers) == 2
    assert world.core.next_deadline_ms(world.now) == world.boot_ms + limits.EMPTY_POOL_REBUILD_MS
    world.settle()
    world.tick()
    assert sum(car.rebirths for car in strangers) == 5


def test_a_will_never_ends_a_lease() -> None:
    world = World()
    car = world.car()
    world.submit(2)
    key = car.take()
    world.settle()
    world.tick(car.offline())
    assert world.unit(key).vehicle == "car"
    car.finish(key)
    world.settle()
    assert not world.core.state.jobs


# --- who may be given work ---------------------------------------------------------------------


def test_a_stale_state_gets_no_work() -> None:
    world = World()
    car = world.car()
    world.advance(limits.STATE_STALE_MS)
    job = world.submit()
    assert not car.offers
    assert world.core.explain(world.job(job), world.now).cars_excluded == {"state_stale": 1}
    world.refresh()
    assert car.offers


@pytest.mark.parametrize("availability", list(Availability))
def test_only_ready_and_working_cars_get_work(availability: Availability) -> None:
    world = World()
    car = world.car()
    world.tick(car.state(availability))
    world.submit()
    ready = availability in (Availability.READY, Availability.WORKING)
    assert bool(car.offers) is ready


def test_one_row_and_the_vector_agree_on_who_is_available(fleet: Fleet) -> None:
    for number, availability in enumerate(Availability):
        for name in "abcd":
            car = born(fleet, f"{name}{number}")
            fleet.reported(car.state(availability).state, NOW_MS - 1_000 * number)
    fleet.flags[1] = 0
    fleet.quarantine(2, on=True)
    fleet.retry_at_ms[3] = NOW_MS + 1
    moments = (NOW_MS, NOW_MS + 1, NOW_MS + limits.STATE_STALE_MS - 2_000)
    for now_ms in moments:
        vector = fleet.available(now_ms).tolist()
        assert vector == [fleet.is_available(row, now_ms) for row in range(len(fleet))]
    assert 0 < sum(fleet.available(NOW_MS)) < len(fleet)


def test_requirements_on_region_hardware_task_and_car(fleet: Fleet) -> None:
    born(fleet, "a", region="north", hardware="x86", tasks=("tensor",))
    born(fleet, "b", region="south", hardware="x86", tasks=("tensor", "text"))
    born(fleet, "c", region="north", hardware="arm", tasks=("text",))

    def who(**need: Any) -> str:
        requirement = Requirement(MODEL, **{"task": TASK, **need})
        mask = Placement(fleet).could_serve(requirement)
        return "".join(np.array(fleet.vehicles)[mask])

    assert who() == "ab"
    assert who(task="text") == "bc"
    assert who(task="text", region="north") == "c"
    assert who(hardware="x86", region="south") == "b"
    assert who(vehicles=("c", "b", "nobody")) == "b"
    assert who(region="nowhere") == who(hardware="quantum") == who(task="unheard") == ""


def test_jobs_cannot_use_up_the_task_table(fleet: Fleet) -> None:
    for number in range(100):
        fleet.can_serve(f"task{number}", None, None, ())
    born(fleet, "a", tasks=("tensor",))
    assert fleet.can_serve("tensor", None, None, ()).tolist() == [True]


def test_names_are_bounded() -> None:
    names = Names(maximum=2)
    assert [names.number(name) for name in ("a", "b", "c", "a")] == [1, 2, 0, 1]
    assert (names.find("c"), names.name(2)) == (None, "b")


def test_a_full_registry_takes_no_more_cars(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FLEET_MAX_CARS", 1)
    born(fleet, "a")
    assert rejected(fleet.born, ModelCar("b").birth().birth) is RejectionReason.FLEET_FULL


@given(st.data())
def test_any_state_that_decodes_can_be_applied(data: st.DataObject) -> None:
    fleet = Fleet(capacity=1)
    car = ModelCar("a", boot=data.draw(st.integers(0, limits.COUNT_MAX)))
    fleet.born(car.birth().birth)
    anything = st.one_of(st.none(), st.floats())
    car.seq = data.draw(st.integers(0, limits.COUNT_MAX - 1))
    state = car.state(
        data.draw(st.sampled_from(Availability)),
        charge_percent=data.draw(anything),
        battery_temperature_c=data.draw(anything),
        compute_temperature_c=data.draw(anything),
    )
    hold = data.draw(st.one_of(st.none(), st.sampled_from(HoldReason)))
    fleet.reported(msgspec.structs.replace(state.state, hold=hold), NOW_MS)
    view = fleet.view(0, NOW_MS)
    assert (view.availability, view.hold) == (state.state.availability, hold)
    msgspec.json.encode(view)


def test_counts_by_availability_hold_and_region(fleet: Fleet) -> None:
    held = born(fleet, "a", region="north")
    fleet.reported(held.state(Availability.HOLD).state, NOW_MS)
    gone = born(fleet, "b", region="north")
    fleet.went(gone.offline().offline)
    born(fleet, "c", region="south")
    assert fleet.counts() == ({"offline": 1, "ready": 1, "hold": 1}, {"occupied": 1})
    regions = fleet.counts_by_region()
    assert regions["north"] == {"cars": 2, "ready": 0, "working": 0, "held": 1, "offline": 1}
    assert regions["south"] == {"cars": 1, "ready": 1, "working": 0, "held": 0, "offline": 0}


def test_the_registry_grows_and_keeps_what_it_knows(fleet: Fleet) -> None:
    for number in range(100):
        born(fleet, f"car{number}", region=f"r{number}", resident=(MODEL,))
    views = [fleet.view(row, NOW_MS) for row in range(100)]
    assert [view.vehicle for view in views] == [f"car{number}" for number in range(100)]
    assert [view.region for view in views] == [f"r{number}" for number in range(100)]
    assert all(view.resident == (MODEL,) for view in views)


# --- who is given it first ---------------------------------------------------------------------


def test_a_warm_car_is_preferred_to_a_cold_one(fleet: Fleet) -> None:
    for number in range(20):
        born(fleet, f"cold{number}", resident=(OTHER_MODEL,))
    born(fleet, "warm", resident=(OTHER_MODEL, MODEL))
    assert fleet.vehicles[Placement(fleet).choose(NEED, NOW_MS)] == "warm"  # type: ignore[index]


def test_a_cold_car_is_preferred_to_a_long_wait(fleet: Fleet) -> None:
    born(fleet, "warm", resident=(MODEL,))
    born(fleet, "cold")
    placement = Placement(fleet)
    fleet.offered(0, limits.COLD_START_MS + 100)
    assert placement.choose(NEED, NOW_MS) == 1


def test_the_less_loaded_car_is_preferred(fleet: Fleet) -> None:
    for name in "abc":
        born(fleet, name)
    placement = Placement(fleet)
    booked = []
    for _ in range(9):
        row = placement.choose(NEED, NOW_MS)
        assert row is not None
        fleet.offered(row, 300.0)
        booked.append(row)
    assert sorted(booked) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_car_that_was_busy_once_is_not_passed_over_for_good(fleet: Fleet) -> None:
    for name in "ab":
        born(fleet, name, units_max=64)
    placement = Placement(fleet)
    for row in (0, 1):
        fleet.offered(row, 2_000.0)
    assert placement.choose(NEED, NOW_MS) is not None  # both scored as busy
    fleet.ended(0, 2_000.0)
    later_ms = NOW_MS + limits.POOL_MAX_AGE_MS
    for _ in range(3):
        assert placement.choose(NEED, later_ms) == 0
        fleet.offered(0, 100.0)


def test_a_car_is_full_by_units_and_by_time(fleet: Fleet) -> None:
    born(fleet, "units", units_max=2)
    placement = Placement(fleet)
    for _ in range(2):
        assert placement.choose(NEED, NOW_MS) == 0
        fleet.offered(0, 1.0)
    assert placement.choose(NEED, NOW_MS) is None
    fleet.ended(0, 1.0)
    assert placement.choose(NEED, NOW_MS) == 0
    fleet.offered(0, limits.BACKLOG_TARGET_MS)
    fleet.ended(0, 1.0)
    assert placement.choose(NEED, NOW_MS) is None


def test_cars_to_avoid_are_passed_over_and_stay_in_the_pool(fleet: Fleet) -> None:
    for name in "abc":
        born(fleet, name)
    placement = Placement(fleet)
    assert placement.choose(NEED, NOW_MS, frozenset("ab")) == 2
    assert placement.choose(NEED, NOW_MS, frozenset("abc")) is None
    assert placement.others_live(NEED, frozenset("ab"), NOW_MS)
    assert not placement.others_live(NEED, frozenset("abc"), NOW_MS)
    assert {placement.choose(NEED, NOW_MS, frozenset(x)) for x in ("ab", "bc", "ca")} == {0, 1, 2}


def test_a_stale_pool_is_never_wrong(fleet: Fleet) -> None:
    cars = [born(fleet, f"car{number}") for number in range(10)]
    placement = Placement(fleet)
    assert placement.choose(NEED, NOW_MS) is not None
    for car in cars[:5]:
        fleet.reported(car.state(Availability.HOLD).state, NOW_MS)
    fleet.quarantine(5, on=True)
    fleet.went(cars[6].offline().offline)
    fleet.retry_at_ms[7] = NOW_MS + 100
    rows = set()
    while (row := placement.choose(NEED, NOW_MS)) is not None:
        rows.add(row)
        fleet.offered(row, 2_000.0)
    assert rows == {8, 9}


def test_an_empty_pool_of_a_large_fleet_is_not_rebuilt_at_every_call(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SMALL_FLEET_CARS", 1)
    cars = [born(fleet, f"car{number}") for number in range(3)]
    for car in cars:
        fleet.reported(car.state(Availability.HOLD).state, NOW_MS)
    placement = Placement(fleet)
    for _ in range(10):
        assert placement.choose(NEED, NOW_MS) is None
        fleet.reported(cars[0].state(Availability.DRIVING).state, NOW_MS)
    assert placement.rebuilds == 1
    fleet.reported(cars[1].state(Availability.READY).state, NOW_MS)
    assert placement.choose(NEED, NOW_MS + limits.EMPTY_POOL_REBUILD_MS) == 1


def test_pools_are_bounded(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "POOLS_MAX", 3)
    born(fleet, "a")
    placement = Placement(fleet)
    for number in range(10):
        assert placement.choose(Requirement(f"{number:064x}", TASK), NOW_MS) == 0
    assert len(placement._pools) == 3


def test_everyone_excluded_is_counted_once(fleet: Fleet) -> None:
    for name in "abcdefg":
        born(fleet, name, units_max=1)
    fleet.flags[0] = 0
    fleet.quarantine(1, on=True)
    fleet.tasks[2] = 0
    fleet.seen_ms[3] = 0
    fleet.reported(ModelCar("e", seq=5).state(Availability.HOLD).state, NOW_MS)
    fleet.retry_at_ms[5] = NOW_MS + 1
    eligible, causes = Placement(fleet).excluded(NEED, NOW_MS)
    assert eligible == 1
    assert causes == dict.fromkeys(
        (
            "offline",
            "quarantined",
            "cannot_serve",
            "state_stale",
            "held_or_driving",
            "asked_to_wait",
        ),
        1,
    )
    fleet.offered(6, 1.0)
    assert Placement(fleet).excluded(NEED, NOW_MS)[1]["busy"] == 1


@given(st.lists(st.tuples(st.sampled_from("bpe"), st.floats(0, 1e4)), max_size=60))
def test_a_backlog_is_never_negative_and_an_idle_car_has_none(
    steps: list[tuple[str, float]],
) -> None:
    fleet = Fleet(capacity=1)
    born(fleet, "a")
    out: list[float] = []
    for kind, amount in steps:
        if kind == "b":
            fleet.offered(0, amount)
            out.append(amount)
        elif kind == "p":
            fleet.progressed(0, amount)
        elif out:
            fleet.ended(0, out.pop())
        assert fleet.backlog_ms[0] >= 0.0
        assert fleet.in_flight[0] == len(out)
        if kind == "e" and not out:
            assert fleet.backlog_ms[0] == 0.0


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """A fleet that counts as large: pools are built from stretches of it."""
    monkeypatch.setattr(limits, "SMALL_FLEET_CARS", 10)
    monkeypatch.setattr(limits, "POOL_STRETCH_FLEET_CARS", 100)
    monkeypatch.setattr(limits, "POOL_CANDIDATES", 8)
    monkeypatch.setattr(limits, "POOL_WARM_ENOUGH", 4)
    fleet = Fleet(capacity=2)
    for number in range(320):
        resident = (MODEL,) if number % 2 else ()
        born(fleet, f"car{number}", units_max=1, resident=resident)
    return fleet


def drained(placement: Placement, fleet: Fleet, need: Requirement) -> list[int]:
    """Every row that the pool gives out until there is none."""
    rows = []
    while (row := placement.choose(need, NOW_MS)) is not None:
        fleet.offered(row, 100.0)
        fleet.changes += 1
        rows.append(row)
    return rows


def test_a_large_fleet_is_used_to_the_last_car_the_warm_ones_first(large: Fleet) -> None:
    rows = drained(Placement(large), large, NEED)
    assert sorted(rows) == list(range(320))
    warm = [row % 2 for row in rows]
    assert sum(warm[:120]) >= 110


def test_a_model_that_few_cars_hold_is_found_wherever_they_are(large: Fleet) -> None:
    rare = ModelCar("car200", resident=("c" * 64,), seq=9)
    large.reported(rare.state().state, NOW_MS)
    assert Placement(large).choose(Requirement("c" * 64, TASK), NOW_MS) == 200


def test_a_stretch_without_enough_cars_is_not_the_end(large: Fleet) -> None:
    for row in range(320):
        if row not in (7, 319):
            large.flags[row] = 0
    large.changes += 1
    assert sorted(drained(Placement(large), large, NEED)) == [7, 319]
    assert Placement(large).choose(Requirement(MODEL, TASK, vehicles=("car7",)), NOW_MS) is None


def test_pools_of_a_large_fleet_count_its_free_cars(large: Fleet) -> None:
    placement = Placement(large)
    placement.choose(NEED, NOW_MS)
    assert placement.pool(NEED).eligible == 320
