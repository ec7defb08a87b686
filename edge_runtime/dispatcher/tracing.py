"""Traces by OpenTelemetry: from the HTTP request to every attempt at its work on a car.

A request's `traceparent` (or the span that is made for the request) becomes the job's and travels
in every offer's payload, and as a property of its MQTT 5 message; the car's spans have it for their
parent. Only the API of OpenTelemetry is used: an operator who wants spans brings an SDK and an
exporter (`opentelemetry-instrument edge-runtime dispatcher …`). Without one nothing is recorded,
and a caller's `traceparent` still reaches the cars.

The store keeps it with the job: attempts after a restart have the same parent, and one that was
out meanwhile is recorded by the life that saw its end.

Deliberately absent: spans for each item or chunk.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from edge_runtime.contract import limits
from edge_runtime.dispatcher.core.commands import BeginAttempt, Command, EndAttempt
from edge_runtime.dispatcher.core.state import State

_NAME: Final = "edge_runtime.dispatcher"
_W3C: Final = TraceContextTextMapPropagator()
_HEADERS: Final = frozenset({b"traceparent", b"tracestate"})
_NS_PER_MS: Final = 1_000_000
_SERVER_ERROR: Final = 500

App = Callable[[Any, Any, Any], Awaitable[None]]


def is_recording() -> bool:
    """Whether the operator has brought an SDK."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def current_traceparent() -> str | None:
    """The `traceparent` of what is being done now, None outside of a trace."""
    if not trace.get_current_span().get_span_context().is_valid:
        return None
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return carrier.get("traceparent")


async def traced(app: App, scope: Any, receive: Any, send: Any) -> None:
    """Serve one HTTP request inside a span of its own, or in its caller's trace."""
    given = {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in scope["headers"]
        if name in _HEADERS
    }
    if not given and not is_recording():
        await app(scope, receive, send)
        return
    first = scope["path"][1:].split("/", 2)
    with trace.get_tracer(_NAME).start_as_current_span(
        f"{scope['method']} /{'/'.join(first[:2])}",
        context=_W3C.extract(given),
        kind=trace.SpanKind.SERVER,
        attributes={"http.request.method": scope["method"], "url.path": scope["path"]},
    ) as span:
        own = current_traceparent()
        if span.is_recording() and own is not None:
            kept = [pair for pair in scope["headers"] if pair[0] != b"traceparent"]
            scope = {**scope, "headers": [*kept, (b"traceparent", own.encode())]}
            send = _noting_status(span, send)
        await app(scope, receive, send)


def _noting_status(span: trace.Span, send: Any) -> Any:
    def noting(message: Any) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            span.set_attribute("http.response.status_code", message["status"])
            if message["status"] >= _SERVER_ERROR:
                span.set_status(trace.StatusCode.ERROR)
        sent: Awaitable[None] = send(message)
        return sent

    return noting


class _Begun(NamedTuple):
    """What of an attempt's beginning its span tells. `offered_ms` is UTC."""

    traceparent: str
    offered_ms: int
    items: int


class AttemptSpans:
    """A span for each attempt, from its offer to its end: a watcher of the service."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._begun: OrderedDict[int, _Begun] = OrderedDict()
        for unit in state.units.values():
            self._begin(unit.id, unit.job.spec.traceparent, unit.offered_ms, len(unit.issued))

    def watch(self, commands: Sequence[Command]) -> None:
        """Record the attempts that a tick has begun and ended."""
        if not is_recording():
            return
        for command in commands:
            match command:
                case BeginAttempt(unit=unit, job_no=number, issued=issued, offered_ms=offered_ms):
                    job = self._state.job_by_no.get(number)
                    if job is not None:
                        self._begin(unit, job.spec.traceparent, offered_ms, len(issued))
                case EndAttempt(unit=unit) if unit in self._begun:
                    _record(self._begun.pop(unit), command)
                case _:
                    pass

    def _begin(self, unit: int, traceparent: str | None, offered_ms: int, items: int) -> None:
        if traceparent is None or not is_recording():
            return
        self._begun[unit] = _Begun(traceparent, offered_ms, items)
        if len(self._begun) > limits.ACTIVITY_KNOWN_MAX:
            self._begun.popitem(last=False)


def _record(begun: _Begun, ended: EndAttempt) -> None:
    span = trace.get_tracer(_NAME).start_span(
        "attempt",
        context=_W3C.extract({"traceparent": begun.traceparent}),
        kind=trace.SpanKind.PRODUCER,
        start_time=begun.offered_ms * _NS_PER_MS,
        attributes={
            "edge_runtime.job": ended.job,
            "edge_runtime.unit": ended.unit,
            "edge_runtime.fence": f"{ended.fence.epoch}.{ended.fence.counter}",
            "edge_runtime.car": ended.vehicle,
            "edge_runtime.items": begun.items,
            "edge_runtime.items_done": ended.items_done,
            "edge_runtime.end": ended.end.value,
        },
    )
    if ended.hold is not None:
        span.set_attribute("edge_runtime.hold", ended.hold.value)
    span.end(max(begun.offered_ms, ended.ended_ms) * _NS_PER_MS)
