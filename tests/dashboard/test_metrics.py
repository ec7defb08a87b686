"""What `/metrics` says is what happened, is bounded, and is all described."""

import json
import re
from pathlib import Path

import pytest
from dashboard_rig import Watched
from prometheus_client.parser import text_string_to_metric_families

from edge_runtime.contract import limits
from edge_runtime.contract.reasons import Availability, HoldReason
from edge_runtime.dispatcher.core.placement import Requirement
from edge_runtime.dispatcher.interactive import InteractiveFailure
from edge_runtime.dispatcher.metrics import OTHERS, TABLE
from edge_runtime.dispatcher.metrics_page import metrics_page

ROOT = Path(__file__).parents[2]


async def scraped(watched: Watched) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = await watched.text("/metrics")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_jobs_cars_and_requests_are_counted(watched: Watched) -> None:
    watched.put_car("hot", Availability.HOLD, HoldReason.COMPUTE_HOT)
    job = await watched.submit(4)
    await watched.desk.cancel(None, job)
    found = await scraped(watched)
    assert found["edge_runtime_jobs_accepted_total", ()] == 1
    assert found["edge_runtime_jobs_ended_total", (("state", "cancelled"),)] == 1
    assert found["edge_runtime_cars_held", (("reason", "compute_hot"),)] == 1
    assert found["edge_runtime_ready", ()] == 1
    found = await scraped(watched)
    requests = ("edge_runtime_http_requests_total", (("route", "metrics"), ("status", "2xx")))
    assert found[requests] == 1


async def test_items_that_a_deadline_fails_are_counted(watched: Watched) -> None:
    job = await watched.submit(4, deadline_s=0.05)
    async for _ in watched.desk.results(None, job, cursor=0, follow=True):
        pass
    found = await scraped(watched)
    failures = ("nv_inference_request_failure", (("model", "noop"), ("version", "1")))
    assert found[failures] == 4
    assert found["edge_runtime_jobs_ended_total", (("state", "expired"),)] == 1


async def test_pending_items_are_a_gauge_of_their_model(watched: Watched) -> None:
    await watched.submit(6)
    name = "nv_inference_pending_request_count"
    found = await scraped(watched)
    assert found[name, (("model", "noop"), ("version", "1"))] == 6


async def test_every_family_is_in_the_table_and_the_other_way_round(watched: Watched) -> None:
    watched.put_car("hot", Availability.HOLD, HoldReason.COMPUTE_HOT)
    await watched.text("/dashboard/")
    text = await watched.text("/metrics")
    told = {line.split()[2] for line in text.splitlines() if line.startswith("# HELP ")}
    ours = {name for name in told if not name.startswith(("process_", "python_"))}
    assert ours == {family.name for family in TABLE}


async def test_energy_wear_and_credits_are_counted_by_how_they_are_known(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "METRICS_TENANTS_MAX", 1)
    await watched.finish(anna=40, bert=2)
    found = await scraped(watched)
    assert found["edge_runtime_energy_joules_total", (("method", "rapl"),)] == 1_440
    assert found["edge_runtime_energy_joules_total", (("method", "unknown"),)] == 72
    wear = found["edge_runtime_wear_percent_total", (("method", "worst_cell_table"),)]
    assert wear == pytest.approx(0.00004)
    assert found["edge_runtime_wear_unknown_items_total", ()] == 2
    assert found["edge_runtime_credits_total", ()] == 10.5
    assert found["edge_runtime_tenant_credits_total", (("tenant", "anna"),)] == 10
    assert found["edge_runtime_tenant_credits_total", (("tenant", OTHERS),)] == 0.5
    assert found["edge_runtime_tenant_energy_joules_total", (("tenant", OTHERS),)] == 72


async def test_regions_are_bounded(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "METRICS_REGIONS_MAX", 3)
    for number in range(10):
        watched.put_car(f"car-{number}", region=f"region-{number}")
    found = await scraped(watched)
    regions = {
        dict(labels)["region"]: value
        for (name, labels), value in found.items()
        if name == "edge_runtime_region_cars" and dict(labels)["availability"] == "ready"
    }
    assert len(regions) == 3
    assert regions[OTHERS] == 8
    assert sum(regions.values()) == 10


async def test_models_are_bounded(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "METRICS_MODELS_MAX", 0)
    await watched.submit(2)
    found = await scraped(watched)
    pending = "nv_inference_pending_request_count"
    assert found[pending, (("model", OTHERS), ("version", ""))] == 2


async def test_paths_make_no_series_of_their_own(watched: Watched) -> None:
    for path in ("/x1", "/x2", "/v1/jobs/nothing", "/v1/jobs/else"):
        await watched.text(path, 404)
    found = await scraped(watched)
    routes = {
        dict(labels)["route"]
        for name, labels in found
        if name == "edge_runtime_http_requests_total"
    }
    assert routes == {"other", "v1"}


async def test_a_scraper_may_ask_for_openmetrics(watched: Watched) -> None:
    text = await watched.text("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert text.endswith("# EOF\n")
    assert "nv_inference_request_success" in text


def test_the_reference_page_is_made_from_the_table() -> None:
    assert (ROOT / "docs/reference/metrics.md").read_text() == metrics_page()


def test_the_grafana_dashboard_asks_only_for_what_there_is() -> None:
    board = json.loads((ROOT / "deploy/grafana/edge-runtime.json").read_text())
    asked = {
        name
        for panel in board["panels"]
        for target in panel.get("targets", [])
        for name in re.findall(r"\b((?:nv_inference|edge_runtime|process)_\w+)", target["expr"])
    }
    of_histograms = {
        f"{family.name}_{part}"
        for family in TABLE
        if family.kind == "histogram"
        for part in ("bucket", "count", "sum")
    }
    of_process = {"process_cpu_seconds_total", "process_resident_memory_bytes"}
    assert len(asked) > 15
    assert asked <= {family.name for family in TABLE} | of_histograms | of_process


async def test_interactive_requests_are_counted_by_their_end(watched: Watched) -> None:
    package = watched.service.shelf.find("noop")
    assert package is not None
    with pytest.raises(InteractiveFailure):
        await watched.service.interactive.infer(
            tenant="t1",
            requirement=Requirement(model=package.digest, task=package.spec.task),
            item=b"\x00",
            media_type="application/octet-stream",
            reference_ms=package.spec.reference_ms,
            timeout_ms=20,
        )
    found = await scraped(watched)
    assert found["edge_runtime_interactive_requests_total", (("end", "failed"),)] == 1
    labels = (("model", "noop"), ("version", "1"))
    assert found["nv_inference_request_failure", labels] == 1
