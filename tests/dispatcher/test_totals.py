"""Totals of finished work: each item once, priced here, and the same after any restart."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from scripted_car import ScriptedCar
from service_rig import House

from edge_runtime.bus import MemoryBroker
from edge_runtime.contract import limits
from edge_runtime.contract.messages import Chunk, Fence, ItemDone, ItemFailed, Usage
from edge_runtime.contract.reasons import EnergyMethod, ItemError, WearMethod
from edge_runtime.dispatcher.core.booking import price_of, work_done
from edge_runtime.dispatcher.core.commands import BookWork
from edge_runtime.dispatcher.core.placement import Requirement
from edge_runtime.dispatcher.storage import SqliteStore, StoreFull, Whose
from edge_runtime.dispatcher.totals import WorkTotals, tally_of

USAGE = Usage(
    energy_method=EnergyMethod.RAPL, wear_percent=0.002, wear_method=WearMethod.CELL_TABLE
)


def chunk(items: int = 2, *, failed: int = 0, usage: Usage | None = USAGE, **more: Any) -> Chunk:
    done = tuple(ItemDone(index=n, output=msgspec.Raw(b"\x01")) for n in range(items))
    broke = tuple(ItemFailed(index=items + n, code=ItemError.MODEL_ERROR) for n in range(failed))
    fields = {"energy_j": 10.0, "usage": usage, **more}
    return Chunk(
        job="j", unit=1, fence=Fence(1, 1), model="0" * 64, seq=0, items=done + broke, **fields
    )


def booked(given: Chunk, items: int = 2, **more: Any) -> BookWork:
    fields: dict[str, Any] = {"asked_ms": 0, "now_ms": 60_000, **more}
    return work_done(
        given, tenant="anna", vehicle="car", items=items, credits_=price_of(items, 500.0), **fields
    )


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    made = SqliteStore(tmp_path / "store.db")
    await made.open(1_000)
    yield made
    await made.close()


# --- what an item is booked as ---------------------------------------------------------------


def test_the_price_is_the_packages_and_not_what_a_car_says() -> None:
    modest, greedy = booked(chunk()), booked(chunk(energy_j=1e9, busy_ms=1e9))
    assert modest.credits == greedy.credits == 1.0


def test_items_that_were_not_wanted_take_their_part_of_what_the_car_tells() -> None:
    work = booked(chunk(4, failed=3), items=1)
    assert work.energy_j == pytest.approx(2.5)
    assert work.wear_percent == pytest.approx(0.0005)


@pytest.mark.parametrize(
    ("asked_ms", "most_s"), [(59_000, 1.0), (0, 60.0), (60_000, 1.0), (90_000, 1.0)]
)
def test_more_than_any_computer_draws_is_not_believed(asked_ms: int, most_s: float) -> None:
    work = booked(chunk(energy_j=limits.AMOUNT_MAX), asked_ms=asked_ms)
    assert work.energy_j == pytest.approx(limits.POWER_MAX_W * most_s)


def test_a_car_that_does_not_tell_is_unknown() -> None:
    work = booked(chunk(usage=None))
    assert (work.energy_method, work.wear_method) == (EnergyMethod.UNKNOWN, WearMethod.UNKNOWN)
    assert work.energy_j == 10.0


# --- what the store makes of it --------------------------------------------------------------


async def test_everybody_each_tenant_and_each_car_have_the_same_work(store: SqliteStore) -> None:
    works = [
        booked(chunk()),
        msgspec.structs.replace(booked(chunk()), vehicle="other"),
        msgspec.structs.replace(booked(chunk(usage=None)), tenant="bert"),
    ]
    await store.commit(works[:2])
    await store.commit(works[2:])
    fleet = tally_of(await store.totals(Whose.FLEET, ""))
    assert (fleet.items, fleet.credits) == (6, 3.0)
    assert fleet.energy_wh_by_method == pytest.approx(
        {"rapl": 20 / 3600, "unknown": 10 / 3600}, abs=1e-6
    )
    assert fleet.wear_percent_by_method == pytest.approx({"cell_table": 0.004})
    assert fleet.wear_unknown_items == 2
    anna = tally_of(await store.totals(Whose.TENANT, "anna"))
    car = tally_of(await store.totals(Whose.VEHICLE, "car"))
    assert (anna.items, anna.wear_unknown_items) == (4, 0)
    assert (car.items, car.wear_unknown_items) == (4, 2)
    nobody = tally_of(await store.totals(Whose.TENANT, "nobody"))
    assert (nobody.items, nobody.since_ms) == (0, None)


async def test_totals_begin_where_an_earlier_life_ended(tmp_path: Path) -> None:
    work = booked(chunk())
    for life in range(3):
        store = SqliteStore(tmp_path / "store.db")
        totals = WorkTotals(await store.open(1_000 + life))
        assert totals.fleet.items == totals.fleet.shown().items == 2 * life
        await store.commit([work])
        totals.watch([work])
        shown = tally_of(await store.totals(Whose.FLEET, ""))
        assert totals.fleet.shown() == shown
        assert {row.tenant: row.work for row in totals.shown_tenants()} == {"anna": shown}
        assert shown.since_ms == work.at_ms
        await store.close()


async def test_tenants_in_memory_are_bounded_and_never_wrong(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TOTALS_TENANTS_MAX", 2)
    rich = [
        msgspec.structs.replace(booked(chunk()), tenant=name, credits=worth)
        for name, worth in (("a", 1.0), ("b", 5.0), ("c", 3.0))
    ]
    await store.commit(rich)
    await store.close()
    again = SqliteStore(store.path)
    totals = WorkTotals(await again.open(2_000))
    assert [row.tenant for row in totals.shown_tenants()] == ["b", "c"]
    await again.commit(rich)
    totals.watch(rich)
    assert [(row.tenant, row.work.credits) for row in totals.shown_tenants()] == [
        ("b", 10.0),
        ("c", 6.0),
    ]
    assert totals.fleet.shown().items == 12
    assert tally_of(await again.totals(Whose.TENANT, "a")).credits == 2.0
    await again.close()


# --- interactive work ------------------------------------------------------------------------


async def test_interactive_work_waits_together_and_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TOTALS_WAITING_MAX", 2)
    store = SqliteStore(tmp_path / "new.db")
    totals = WorkTotals(await store.open(1_000))
    await store.close()
    work = booked(chunk(), is_interactive=True)
    for _ in range(3):
        totals.wait(work)
    totals.wait(msgspec.structs.replace(work, vehicle="other"))
    totals.wait(msgspec.structs.replace(work, vehicle="too many"))
    waiting, other = totals.take_waiting()
    assert (waiting.items, waiting.credits, waiting.energy_j) == (6, 3.0, 30.0)
    assert (other.vehicle, other.items) == ("other", 2)
    assert totals.take_waiting() == []
    assert totals.dropped == 2


async def test_durable_and_interactive_work_outlives_the_dispatcher(
    open_house: Callable[..., Any],
) -> None:
    broker = MemoryBroker()
    async with open_house(broker) as house, ScriptedCar(broker, "car1"):
        await house.collect(await house.submit(3))
        package = house.service.shelf.find("noop")
        price = package.spec.reference_ms / 1000
        await house.service.interactive.infer(
            tenant="chatty",
            requirement=Requirement(model=package.digest, task=package.spec.task),
            item=b"\x00",
            media_type="application/octet-stream",
            reference_ms=package.spec.reference_ms,
        )
        assert house.service.totals.fleet.items == 3
    async with open_house(broker) as house:
        shown = house.service.totals.fleet.shown()
        assert (shown.items, shown.interactive_items) == (4, 1)
        assert shown.credits == pytest.approx(4 * price)
        tenants = {row.tenant: row.work.items for row in house.service.totals.shown_tenants()}
        assert tenants == {"t1": 3, "chatty": 1}
        assert tally_of(await house.service.store.totals(Whose.VEHICLE, "car1")) == shown


async def test_interactive_work_waits_on_while_the_store_fails(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = house.service
    service.totals.wait(booked(chunk(), is_interactive=True))

    async def full(commands: Any) -> int:
        raise StoreFull(f"no room for {len(commands)}")

    with monkeypatch.context() as patch:
        patch.setattr(service.store, "commit", full)
        await service.write_totals()
    assert service.totals.fleet.items == 0
    await service.write_totals()
    assert service.totals.fleet.items == 2
    assert tally_of(await service.store.totals(Whose.FLEET, "")).items == 2
