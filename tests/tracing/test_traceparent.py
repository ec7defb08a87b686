"""A caller's trace reaches the cars, with an SDK or without; broken headers begin no trace."""

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from edge_runtime.dispatcher import tracing

GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """An operator's SDK, for one test."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter
    provider.shutdown()


async def serve(headers: list[tuple[bytes, bytes]], status: int = 200) -> tuple[Any, str | None]:
    """What an application sees: its headers, and the current trace."""
    seen: list[tuple[Any, str | None]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        del receive
        seen.append((scope["headers"], tracing.current_traceparent()))
        await send({"type": "http.response.start", "status": status, "headers": []})

    async def send(message: Any) -> None:
        del message

    scope = {"method": "POST", "path": "/v1/jobs/batch", "headers": headers}
    await tracing.traced(app, scope, None, send)
    return seen[0]


async def test_without_an_sdk_the_callers_trace_goes_on() -> None:
    headers, current = await serve([(b"traceparent", GIVEN.encode())])
    assert current == GIVEN
    assert headers == [(b"traceparent", GIVEN.encode())]


async def test_without_an_sdk_and_a_trace_there_is_none() -> None:
    assert await serve([(b"host", b"x")]) == ([(b"host", b"x")], None)


NO_TRACE = f"00-{'0' * 32}-b7ad6b7169203331-01".encode()


@pytest.mark.parametrize(
    "broken", [b"", b"00", b"00-0-0-01", GIVEN.encode()[:-1], b"\xff" * 60, NO_TRACE]
)
async def test_a_broken_header_is_no_trace(broken: bytes) -> None:
    assert (await serve([(b"traceparent", broken)]))[1] is None


async def test_with_an_sdk_the_span_is_the_callers_child(spans: InMemorySpanExporter) -> None:
    headers, current = await serve([(b"traceparent", GIVEN.encode())], status=503)
    (span,) = spans.get_finished_spans()
    assert span.name == "POST /v1/jobs"
    assert span.parent is not None
    assert trace.format_span_id(span.parent.span_id) == GIVEN.split("-")[2]
    assert span.status.status_code is trace.StatusCode.ERROR
    context = span.get_span_context()
    assert context is not None
    own = f"00-{GIVEN.split('-')[1]}-{trace.format_span_id(context.span_id)}-01"
    assert (headers, current) == ([(b"traceparent", own.encode())], own)


async def test_with_an_sdk_a_request_without_a_trace_begins_one(
    spans: InMemorySpanExporter,
) -> None:
    _, current = await serve([])
    (span,) = spans.get_finished_spans()
    assert span.parent is None
    assert current is not None


async def test_what_is_not_sampled_is_not_recorded(spans: InMemorySpanExporter) -> None:
    given = GIVEN[:-2] + "00"
    _, current = await serve([(b"traceparent", given.encode())])
    assert spans.get_finished_spans() == ()
    assert current is not None
    assert current.endswith("-00")
