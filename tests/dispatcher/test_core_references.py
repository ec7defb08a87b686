"""The dispatcher's core and items by reference: who is offered them, and how many at once."""

import msgspec
from core_rig import MODEL, TASK, ModelCar, World

from edge_runtime.contract import limits
from edge_runtime.contract.messages import Item, Reference
from edge_runtime.dispatcher.core import events as e
from edge_runtime.dispatcher.core.placement import Requirement

NEED = Requirement(MODEL, TASK, by_reference=True)


def able(world: World, name: str) -> ModelCar:
    """A car that fetches what does not travel inline."""
    car = world.car(name)
    birth = msgspec.structs.replace(
        car.birth().birth, takes_references=True, connection=car.connection + 1
    )
    car.connection += 1
    world.tick(e.VehicleBorn(birth=birth), car.state())
    return car


def submitted(world: World, *lengths: int) -> e.JobSubmitted:
    items = tuple(
        Item(
            index=index,
            media_type="x",
            data=b"",
            ref=Reference(sha256=f"{index:064x}", length=length, url=f"/objects/{index}"),
        )
        for index, length in enumerate(lengths)
    )
    spec = world.spec(len(items), requirement=NEED, reference_ms=1.0)
    return e.JobSubmitted(spec=spec, items=items)


def test_only_cars_that_can_fetch_are_offered_references() -> None:
    world = World()
    old = world.car("old")
    event = submitted(world, 1_000)
    world.tick(event)
    assert not old.offers
    assert world.core.explain(world.job(event.spec.id), world.now).cars_excluded == {
        "cannot_serve": 1
    }
    new = able(world, "new")
    world.live(2_000)
    (unit,) = new.offers.values()
    assert unit.items == event.items
    assert not old.offers


def test_a_unit_closes_at_what_a_car_holds_of_objects() -> None:
    world = World()
    car = able(world, "car")
    third = limits.UNIT_OBJECTS_MAX_BYTES // 3
    world.tick(submitted(world, third, third, third, third, limits.OBJECT_MAX_BYTES))
    world.live(2_000)
    sizes = [
        sum(item.ref.length for item in unit.items if item.ref is not None)
        for unit in car.offers.values()
    ]
    assert sizes
    assert max(sizes) <= limits.UNIT_OBJECTS_MAX_BYTES
    assert any(len(unit.items) > 1 for unit in car.offers.values())
