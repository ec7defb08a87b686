"""The reference page of the metrics, made from their table.

`python -m edge_runtime.dispatcher.metrics_page > docs/reference/metrics.md`; a test compares them.
"""

import sys
from typing import Final

from edge_runtime.contract import limits
from edge_runtime.dispatcher.metrics import OTHERS, TABLE

_HEAD: Final = f"""\
# Metrics

<!-- Made by `python -m edge_runtime.dispatcher.metrics_page`; edit dispatcher/metrics.py. -->

`GET /metrics` of a dispatcher answers in Prometheus' text form, or in OpenMetrics where the scraper
asks for it. A Grafana dashboard over these series is in `deploy/grafana/`. A scrape configuration:

```yaml
scrape_configs:
  - job_name: edge-runtime
    static_configs:
      - targets: ["127.0.0.1:8080"]
```

Where the dispatcher has accounts, the scraper sends an operator's key
(`authorization: {{credentials_file: …}}`).

Counts begin with the process (totals that outlive it are on the dashboard). What is counted has
been committed before. No label names a car or a job, and a tenant only in `edge_runtime_tenant_…`;
every label is bounded: at most {limits.METRICS_MODELS_MAX} models, {limits.METRICS_REGIONS_MAX}
regions and {limits.METRICS_TENANTS_MAX} tenants have series of their own, what comes after them is
counted as `{OTHERS}`; at most {limits.METRICS_EVENTS_MAX} events are exposed. Energy, wear and
credits of interactive requests are counted when they are written, every
{limits.TOTALS_WRITE_S:g} s.

The names of Triton are used where they mean the same, written as Triton writes them (counters
without `_total`, so they carry no type), and so existing dashboards show them. Not there, because
nothing here means the same: `nv_inference_exec_count` (cars batch by themselves and do not tell),
`nv_inference_compute_input_duration_us`, `nv_inference_compute_output_duration_us`, `nv_gpu_*`.

| name | kind | labels | says |
| --- | --- | --- | --- |
"""
_TAIL: Final = """
Beside these, `process_*` and `python_*` of the process, as the Prometheus client for Python has
them.
"""


def metrics_page() -> str:
    """The page, in Markdown."""
    rows = [
        f"| `{family.name}` | {family.kind} | {_labels(family.labels)} | {family.says} |\n"
        for family in TABLE
    ]
    return _HEAD + "".join(rows) + _TAIL


def _labels(labels: tuple[str, ...]) -> str:
    return ", ".join(f"`{label}`" for label in labels)


if __name__ == "__main__":
    sys.stdout.write(metrics_page())
