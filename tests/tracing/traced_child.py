"""`edge-runtime` with OpenTelemetry's SDK, as an operator would start it; spans go to a file.

    python traced_child.py SPANS_FILE dispatcher --broker=…

Each span is one JSON line, written when it ends: the file holds what an exporter in memory would,
and outlives the process.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from edge_runtime.cli import main


class ToFile(SpanExporter):
    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            context = span.get_span_context()
            assert context is not None
            facts = {
                "name": span.name,
                "trace": trace.format_trace_id(context.trace_id),
                "span": trace.format_span_id(context.span_id),
                "parent": trace.format_span_id(span.parent.span_id) if span.parent else None,
                "start": span.start_time,
                "end": span.end_time,
                "attributes": dict(span.attributes or {}),
            }
            self._file.write(json.dumps(facts) + "\n")
        return SpanExportResult.SUCCESS


if __name__ == "__main__":
    provider = TracerProvider(resource=Resource.create({"service.name": sys.argv[2]}))
    provider.add_span_processor(SimpleSpanProcessor(ToFile(Path(sys.argv[1]))))
    trace.set_tracer_provider(provider)
    del sys.argv[1]
    sys.exit(main())
