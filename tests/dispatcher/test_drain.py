"""A dispatcher that is asked to stop: no new work, what is in hand is finished, or left."""

import asyncio

import pytest
from opentelemetry.context import attach, detach
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from scripted_car import ScriptedCar
from service_rig import House, job_request

from edge_runtime.contract.reasons import JobState
from edge_runtime.dispatcher.core.interactive_parts import Answered
from edge_runtime.dispatcher.core.placement import Requirement
from edge_runtime.dispatcher.front import Refusal
from edge_runtime.dispatcher.interactive import InteractiveFailure


async def test_nothing_is_accepted_or_offered_while_it_drains(house: House) -> None:
    async with ScriptedCar(house.broker, "car1", units_max=1, works=False) as car:
        job = await house.submit(600)
        await car.until(lambda car: len(car.offers) > 0)
        draining = asyncio.create_task(house.service.drain(patience_s=30))
        await house.until(lambda: house.service.is_draining)
        offered = {offer.unit for offer in car.offers}
        health = await house.desk.health()
        assert (health.ready, health.draining) == (False, True)
        with pytest.raises(Refusal) as refused:
            await house.desk.submit("t1", [job_request()])
        assert (refused.value.problem.code, refused.value.problem.status) == ("draining", 503)
        async with ScriptedCar(house.broker, "car2") as idle:
            car.chunks(*(car.finished(unit) for unit in car.offers))
            await asyncio.wait_for(draining, 20)
            assert idle.offers == []
        assert {offer.unit for offer in car.offers} == offered
        assert not house.service.core.state.units
        status = await house.desk.job("t1", job)
        assert status.state is JobState.RUNNING
        assert 0 < status.done < 600


async def test_what_is_not_done_in_time_is_left_as_it_is(house: House) -> None:
    async with ScriptedCar(house.broker, "car1", works=False) as car:
        await house.submit(10)
        await car.until(lambda car: len(car.offers) > 0)
        await asyncio.wait_for(house.service.drain(patience_s=0.05), 10)
        assert house.service.core.state.units
        house.service.core.check()


async def test_without_work_it_drains_at_once(house: House) -> None:
    await asyncio.wait_for(house.service.drain(patience_s=60), 5)


async def ask(house: House) -> Answered:
    package = house.service.shelf.find("noop")
    assert package is not None
    return await house.service.interactive.infer(
        tenant="t1",
        requirement=Requirement(model=package.digest, task=package.spec.task),
        item=b"\x00",
        media_type="application/octet-stream",
        reference_ms=package.spec.reference_ms,
    )


async def test_interactive_requests_finish_and_new_ones_are_refused(house: House) -> None:
    async with ScriptedCar(house.broker, "car1", works=False) as car:
        asked = asyncio.create_task(ask(house))
        await car.until(lambda car: len(car.offers) > 0)
        draining = asyncio.create_task(house.service.drain(patience_s=30))
        await house.until(lambda: house.service.is_draining)
        with pytest.raises(InteractiveFailure, match="stopping"):
            await ask(house)
        assert not draining.done()
        car.chunks(*(car.finished(unit) for unit in car.offers))
        assert (await asyncio.wait_for(asked, 10)).vehicle == "car1"
        await asyncio.wait_for(draining, 10)


async def test_who_waits_too_long_is_told_before_it_ends(house: House) -> None:
    async with ScriptedCar(house.broker, "car1", works=False) as car:
        asked = asyncio.create_task(ask(house))
        await car.until(lambda car: len(car.offers) > 0)
        await asyncio.wait_for(house.service.drain(patience_s=0.05, answers_s=0.05), 10)
        with pytest.raises(InteractiveFailure, match="stopping"):
            await asyncio.wait_for(asked, 10)


async def test_units_are_waited_for_no_longer_because_somebody_waits(house: House) -> None:
    async with ScriptedCar(house.broker, "car1", works=False) as car:
        await house.submit(10)
        asked = asyncio.create_task(ask(house))
        await car.until(lambda car: {unit.interactive for unit in car.offers} == {True, False})
        draining = asyncio.create_task(house.service.drain(patience_s=0.05, answers_s=30))
        await house.until(lambda: house.service.is_draining)
        car.chunks(*(car.finished(unit) for unit in car.offers if unit.interactive))
        assert (await asyncio.wait_for(asked, 10)).vehicle == "car1"
        await asyncio.wait_for(draining, 10)
        assert house.service.core.state.units


async def test_an_offer_carries_its_jobs_trace_as_a_property_too(house: House) -> None:
    given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    seen: list[str | None] = []
    async with ScriptedCar(house.broker, "car1") as car:
        take = car._message
        car._message = lambda m: (seen.append(m.traceparent), take(m))[1]  # type: ignore[method-assign]
        token = attach(TraceContextTextMapPropagator().extract({"traceparent": given}))
        try:
            await house.submit(1)
        finally:
            detach(token)
        await car.until(lambda car: len(car.offers) > 0)
    assert car.offers[0].traceparent == given
    assert given in seen
