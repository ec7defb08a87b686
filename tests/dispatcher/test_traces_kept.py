"""A job's trace is kept with it, told with its results, and goes on after a restart."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import attach, detach
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from scripted_car import ScriptedCar
from service_rig import House

from edge_runtime.bus import BusSettings, MemoryBroker, MemoryBus, Message
from edge_runtime.contract import codec
from edge_runtime.contract.messages import JobResults, JobStatus
from edge_runtime.contract.topics import Topics
from edge_runtime.dispatcher.core.placement import Requirement
from edge_runtime.dispatcher.tracing import AttemptSpans

OpenHouse = Callable[..., Any]
GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An operator's SDK, for one test."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter
    provider.shutdown()


async def submit(house: House, items: int = 1) -> str:
    """A job whose request is in the caller's trace."""
    token = attach(TraceContextTextMapPropagator().extract({"traceparent": GIVEN}))
    try:
        return await house.submit(items)
    finally:
        detach(token)


@asynccontextmanager
async def third_party(broker: MemoryBroker) -> AsyncIterator[MemoryBus]:
    topics = Topics("er")
    wanted = (f"{topics.job_results('t1', '+')}", f"{topics.job_status('t1', '+')}")
    settings = BusSettings(
        url="memory://", client_id="reader", subscriptions=tuple((topic, 1) for topic in wanted)
    )
    async with MemoryBus(settings, broker) as bus:
        yield bus


async def test_results_and_statuses_tell_the_trace(open_house: OpenHouse) -> None:
    broker = MemoryBroker()
    async with open_house(broker) as house, third_party(broker) as reader:
        job = await submit(house, 3)
        assert (await house.service.store.job(job)).traceparent == GIVEN
        async with ScriptedCar(broker, "car1"):
            _, status = await house.collect(job)
        assert status.traceparent == GIVEN
        told: set[type] = set()
        async for event in reader.events():
            if not isinstance(event, Message):
                continue
            message = codec.decode_public(event.payload)
            if isinstance(message, JobResults | JobStatus):
                assert (message.traceparent, event.traceparent) == (GIVEN, GIVEN)
                told.add(type(message))
            if told == {JobResults, JobStatus}:
                break


async def test_what_is_read_from_the_store_again_tells_it_too(open_house: OpenHouse) -> None:
    broker = MemoryBroker()
    async with open_house(broker) as house, third_party(broker) as reader:
        async with ScriptedCar(broker, "car1"):
            job = await submit(house, 3)
            await house.collect(job)
        house.service.publisher.fall_behind("t1", job)
        seen = 0
        async for event in reader.events():
            if isinstance(event, Message) and event.topic.endswith("/results"):
                message = codec.decode_public(event.payload)
                assert isinstance(message, JobResults)
                assert (message.traceparent, event.traceparent) == (GIVEN, GIVEN)
                seen += len(message.results)
            if seen >= 3:
                break


async def test_an_untraced_job_says_nothing_of_traces(open_house: OpenHouse) -> None:
    broker = MemoryBroker()
    async with open_house(broker) as house, ScriptedCar(broker, "car1"):
        _, status = await house.collect(await house.submit(1))
        assert status.traceparent is None


async def test_attempts_after_a_restart_belong_to_the_request(
    open_house: OpenHouse, spans: InMemorySpanExporter
) -> None:
    broker = MemoryBroker()
    async with open_house(broker) as house:
        job = await submit(house)
        async with ScriptedCar(broker, "car1", works=False) as car:
            await car.until(lambda car: len(car.offers) > 0)
            (before,) = car.offers
        offered_ms = next(iter(house.service.core.state.units.values())).offered_ms
    async with open_house(broker) as house:
        house.service.watchers.append(AttemptSpans(house.service.core.state).watch)
        async with ScriptedCar(broker, "car1") as car:
            await house.collect(job)
        assert {offer.traceparent for offer in (before, *car.offers)} == {GIVEN}
    (span,) = spans.get_finished_spans()
    assert span.name == "attempt"
    assert span.parent is not None
    assert trace.format_trace_id(span.parent.trace_id) == GIVEN.split("-")[1]
    assert trace.format_span_id(span.parent.span_id) == GIVEN.split("-")[2]
    assert span.start_time == offered_ms * 1_000_000


async def test_who_waits_is_traced_by_every_route(house: House) -> None:
    """The desk takes the trace of what is being done: no route can forget or invent it."""
    package = house.service.shelf.find("noop")
    assert package is not None
    seen: list[str | None] = []
    async with ScriptedCar(house.broker, "car1") as car:
        await house.until(lambda: len(house.service.core.fleet) == 1)
        take = car._message
        car._message = lambda m: (seen.append(m.traceparent), take(m))[1]  # type: ignore[method-assign]
        token = attach(TraceContextTextMapPropagator().extract({"traceparent": GIVEN}))
        try:
            await house.service.interactive.infer(
                tenant="t1",
                requirement=Requirement(model=package.digest, task=package.spec.task),
                item=b"\x00",
                media_type="application/octet-stream",
                reference_ms=package.spec.reference_ms,
            )
        finally:
            detach(token)
        assert car.offers[0].traceparent == GIVEN
    assert seen[0] == GIVEN
