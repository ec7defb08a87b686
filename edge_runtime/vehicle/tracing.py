"""A span for each unit that this car ran, in the trace that the offer names.

By the API of OpenTelemetry only, and only where an offer names a trace: an idle car has not loaded
it. Nothing is recorded where the operator of the car has brought no SDK.
"""

from typing import Final

from edge_runtime.vehicle.core.commands import LogUnit

_NAME: Final = "edge_runtime.vehicle"
_NS_PER_MS: Final = 1_000_000


def record_unit(vehicle: str, unit: LogUnit, now_utc_ms: int) -> None:
    """Record a unit that has ended now, since its offer came; nothing of one without a trace."""
    if unit.traceparent is None:
        return
    from opentelemetry import trace  # noqa: PLC0415 - see the module
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415 - as above
        TraceContextTextMapPropagator,
    )

    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return
    ended_ns = now_utc_ms * _NS_PER_MS
    span = trace.get_tracer(_NAME).start_span(
        "unit",
        context=TraceContextTextMapPropagator().extract({"traceparent": unit.traceparent}),
        kind=trace.SpanKind.CONSUMER,
        start_time=ended_ns - round(unit.held_ms * _NS_PER_MS),
        attributes={
            "edge_runtime.car": vehicle,
            "edge_runtime.job": unit.job,
            "edge_runtime.unit": unit.unit,
            "edge_runtime.fence": f"{unit.fence.epoch}.{unit.fence.counter}",
            "edge_runtime.items": unit.items,
            "edge_runtime.items_done": unit.done,
            "edge_runtime.outcome": unit.outcome,
            "edge_runtime.busy_ms": unit.busy_ms,
            "edge_runtime.load_ms": unit.load_ms,
            "edge_runtime.energy_j": unit.energy_j,
        },
    )
    if unit.reason is not None:
        span.set_attribute("edge_runtime.reason", unit.reason)
    span.end(ended_ns)
