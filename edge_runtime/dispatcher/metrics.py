"""What the dispatcher counts and times, in Prometheus' words, and the page that `/metrics` is.

Two sources: `Meter.watch` sees every command after its commit and counts what ended; at a scrape
the registry, the jobs and the process's counters are read as they are then.

Invariants
- A committed command is counted once; nothing is counted that was not committed.
- Every label has a bound (`METRICS_MODELS_MAX`, closed lists of reasons, `METRICS_REGIONS_MAX`,
  `METRICS_TENANTS_MAX`, `METRICS_EVENTS_MAX`); what comes after is "(others)". No label names a car
  or a job, and a tenant only where the name says so (`edge_runtime_tenant_…`).
- `TABLE` names every family; the page `docs/reference/metrics.md` is made from it.
- Names of Triton (`nv_inference_*`) are used where they mean the same and written as Triton writes
  them: counters without `_total`, hence of no declared type.

Deliberately absent: series by car (10 million of them), pushing to anything.
"""

import asyncio
from collections import Counter as Counts
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from edge_runtime import __version__
from edge_runtime.contract import limits
from edge_runtime.contract.http import AttemptEnd
from edge_runtime.contract.messages import JobStatus
from edge_runtime.contract.reasons import EnergyMethod, JobState, WearMethod
from edge_runtime.dispatcher.core.commands import (
    AddJob,
    AddResult,
    BeginAttempt,
    BookWork,
    Command,
    EndAttempt,
    FailRemaining,
    PublishStatus,
)
from edge_runtime.dispatcher.core.interactive_parts import Answered, Ask
from edge_runtime.dispatcher.service import DispatcherService

OTHERS: Final = "(others)"
_SECONDS: Final = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0)
_STOP_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.0)
_JOB_SECONDS: Final = (0.1, 0.5, 2.0, 10.0, 60.0, 600.0, 3_600.0, 6 * 3_600.0, 24 * 3_600.0)
_HTTP_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0)
_ROUTES: Final = frozenset(
    {"v1", "v2", "metrics", "dashboard", "readyz", "livez", "healthz", "openapi.json"}
)


class Family(NamedTuple):
    """One family of series: its name as it is exposed, kind, labels, and what it says."""

    name: str
    kind: str
    labels: tuple[str, ...]
    says: str


_REQUESTS: Final = "Interactive requests, and items of jobs: each is one request here."
TABLE: Final[tuple[Family, ...]] = (
    # --- Triton's names
    Family(
        "nv_inference_request_success",
        "unknown",
        ("model", "version"),
        f"Requests that ended with a result. {_REQUESTS}",
    ),
    Family(
        "nv_inference_request_failure",
        "unknown",
        ("model", "version"),
        "Requests that ended with an error, for good.",
    ),
    Family(
        "nv_inference_count",
        "unknown",
        ("model", "version"),
        "Inferences performed: items with a result, and rows of interactive requests.",
    ),
    Family(
        "nv_inference_request_duration_us",
        "unknown",
        ("model", "version"),
        "From coming to answer, summed over interactive requests, microseconds.",
    ),
    Family(
        "nv_inference_queue_duration_us",
        "unknown",
        ("model", "version"),
        "Microseconds: of a job's unit from offer until its car took it, of an interactive request "
        "from its coming to the offer.",
    ),
    Family(
        "nv_inference_compute_infer_duration_us",
        "unknown",
        ("model", "version"),
        "Time that cars computed, as they report it, microseconds.",
    ),
    Family(
        "nv_inference_pending_request_count",
        "gauge",
        ("model", "version"),
        "Items of open jobs in memory that are on no car.",
    ),
    # --- the fleet
    Family(
        "edge_runtime_cars",
        "gauge",
        ("availability",),
        "Cars by what they do; a car without a connection is `offline`.",
    ),
    Family(
        "edge_runtime_cars_held",
        "gauge",
        ("reason",),
        "Connected cars that hold, by reason (the closed list of docs/reference/policy.md).",
    ),
    Family(
        "edge_runtime_region_cars",
        "gauge",
        ("region", "availability"),
        "Cars by region: `ready`, `working`, `held`, `offline`.",
    ),
    # --- jobs, units, attempts
    Family("edge_runtime_jobs_open", "gauge", (), "Open jobs in memory."),
    Family("edge_runtime_items_in_flight", "gauge", (), "Items out on cars."),
    Family("edge_runtime_units_in_flight", "gauge", (), "Units offered to, or running on, cars."),
    Family("edge_runtime_jobs_accepted_total", "counter", (), "Jobs accepted."),
    Family("edge_runtime_jobs_ended_total", "counter", ("state",), "Jobs that ended, by state."),
    Family("edge_runtime_job_seconds", "histogram", ("state",), "From acceptance to a job's end."),
    Family(
        "edge_runtime_attempts_ended_total",
        "counter",
        ("end",),
        "Attempts by how they ended: completed, released, refused, cancelled, offer_timeout, "
        "lease_expired.",
    ),
    Family("edge_runtime_unit_seconds", "histogram", ("end",), "From a unit's offer to its end."),
    Family(
        "edge_runtime_stop_seconds",
        "histogram",
        ("tier",),
        "From the reason to stop to the last processor time, as cars measured it, by the rung of "
        "the ladder.",
    ),
    Family(
        "edge_runtime_released_total",
        "counter",
        ("reason",),
        "Attempts that cars gave back, by their hold where there is one, else by the reason.",
    ),
    Family(
        "edge_runtime_energy_joules_total",
        "counter",
        ("method",),
        "Energy of finished items as cars tell it, by how they know it (docs/explanation/wear.md); "
        "`unknown` where they do not say how.",
    ),
    Family(
        "edge_runtime_wear_percent_total",
        "counter",
        ("method",),
        "Wear by finished items as cars tell it: percent of one pack's capacity, summed over cars. "
        "`worst_cell_table` is at most that.",
    ),
    Family(
        "edge_runtime_wear_unknown_items_total",
        "counter",
        (),
        "Finished items of cars that do not tell their wear.",
    ),
    Family(
        "edge_runtime_credits_total",
        "counter",
        (),
        "Price of finished items: a second of the reference core, as the model's package states it "
        "for an item, is one credit.",
    ),
    Family(
        "edge_runtime_tenant_credits_total",
        "counter",
        ("tenant",),
        "The same by tenant.",
    ),
    Family(
        "edge_runtime_tenant_energy_joules_total",
        "counter",
        ("tenant",),
        "Energy of finished items by tenant.",
    ),
    Family("edge_runtime_busy_seconds_total", "counter", (), "Time that cars computed."),
    # --- interactive requests
    Family(
        "edge_runtime_interactive_requests_total",
        "counter",
        ("end",),
        "Interactive requests: `answered`, `failed`, or `left` by who asked.",
    ),
    Family(
        "edge_runtime_interactive_seconds",
        "histogram",
        (),
        "From an interactive request's coming to its answer.",
    ),
    # --- the dispatcher itself
    Family("edge_runtime_ready", "gauge", (), "1 where /readyz says 200."),
    Family("edge_runtime_draining", "gauge", (), "1 while it takes no new work because it stops."),
    Family("edge_runtime_broker_connected", "gauge", (), "1 with a connection to the broker."),
    Family("edge_runtime_store_up", "gauge", (), "1 while the store commits."),
    Family("edge_runtime_info", "gauge", ("version", "dispatcher", "epoch"), "Always 1."),
    Family(
        "edge_runtime_events_total",
        "counter",
        ("event",),
        "Every counter of `GET /v1/health`: refusals, drops and what happened, by name.",
    ),
    Family(
        "edge_runtime_http_requests_total",
        "counter",
        ("route", "status"),
        "Answered HTTP requests by the first part of the path and the first digit of the status.",
    ),
    Family(
        "edge_runtime_http_seconds",
        "histogram",
        ("route",),
        "Until an answer began, by the first part of the path.",
    ),
)
_SAYS: Final = {family.name: family.says for family in TABLE}


class ModelName(NamedTuple):
    """A model as series and people name it."""

    model: str
    version: str

    def __str__(self) -> str:
        return f"{self.model}@{self.version}" if self.version else self.model


class Ended(NamedTuple):
    """An attempt that ended, with what was known from its beginning."""

    command: EndAttempt
    model: ModelName
    took_ms: int | None


class Meter:
    """Counts of one service. `watch` is its watcher; `families` is asked at each scrape."""

    def __init__(self, service: DispatcherService) -> None:
        self._service = service
        self._models: dict[str, ModelName] = {}
        self._jobs: OrderedDict[str, ModelName] = OrderedDict()
        self._units: OrderedDict[int, tuple[int, ModelName]] = OrderedDict()
        # A gauge beside every counter, of use to nobody who has `up`.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library's omission
        self.registry = CollectorRegistry()
        self._done: Counts[ModelName] = Counts()
        self._failed: Counts[ModelName] = Counts()
        self._more_rows: Counts[ModelName] = Counts()
        self._took_us: Counts[ModelName] = Counts()
        self._queued_us: Counts[ModelName] = Counts()
        self._computed_us: Counts[ModelName] = Counts()
        self._make_families()
        for collector in (GC_COLLECTOR, PLATFORM_COLLECTOR):
            self.registry.register(collector)
        ProcessCollector(registry=self.registry)
        self.registry.register(_Sampled(self))

    def _make_families(self) -> None:
        registry = self.registry

        def counter(name: str, *labels: str) -> Counter:
            return Counter(name, _SAYS[name], labels, registry=registry)

        def histogram(name: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(name, _SAYS[name], labels, buckets=buckets, registry=registry)

        self._accepted = counter("edge_runtime_jobs_accepted_total")
        self._jobs_ended = counter("edge_runtime_jobs_ended_total", "state")
        self._job_seconds = histogram("edge_runtime_job_seconds", _JOB_SECONDS, "state")
        self._attempts_ended = counter("edge_runtime_attempts_ended_total", "end")
        self._unit_seconds = histogram("edge_runtime_unit_seconds", _SECONDS, "end")
        self._stop_seconds = histogram("edge_runtime_stop_seconds", _STOP_SECONDS, "tier")
        self._released = counter("edge_runtime_released_total", "reason")
        self._energy = counter("edge_runtime_energy_joules_total", "method")
        self._wear = counter("edge_runtime_wear_percent_total", "method")
        self._wear_unknown = counter("edge_runtime_wear_unknown_items_total")
        self._credits = counter("edge_runtime_credits_total")
        self._tenants: set[str] = set()
        self._tenant_credits = counter("edge_runtime_tenant_credits_total", "tenant")
        self._tenant_energy = counter("edge_runtime_tenant_energy_joules_total", "tenant")
        self._busy = counter("edge_runtime_busy_seconds_total")
        self._requests = counter("edge_runtime_interactive_requests_total", "end")
        self._request_seconds = histogram("edge_runtime_interactive_seconds", _HTTP_SECONDS)
        self._http = counter("edge_runtime_http_requests_total", "route", "status")
        self._http_seconds = histogram("edge_runtime_http_seconds", _HTTP_SECONDS, "route")
        for state in JobState:
            if state.is_terminal:
                self._jobs_ended.labels(state.value)
        for end in AttemptEnd:
            self._attempts_ended.labels(end.value)
        for energy in EnergyMethod:
            self._energy.labels(energy.value)
        for wear in WearMethod:
            if wear is not WearMethod.UNKNOWN:
                self._wear.labels(wear.value)

    # --- names ---

    def model(self, digest: str) -> ModelName:
        """How a model is named; "(others)" once too many have a name."""
        known = self._models.get(digest)
        if known is None:
            if len(self._models) >= limits.METRICS_MODELS_MAX:
                return ModelName(OTHERS, "")
            package = self._service.shelf.find(digest)
            if package is None:
                return ModelName(digest[:12], "")
            known = self._models[digest] = ModelName(package.spec.name, package.spec.version)
        return known

    def model_of_job(self, job: str) -> ModelName:
        """The model of a job that began lately, or is open."""
        known = self._jobs.get(job)
        if known is not None:
            return known
        live = self._service.core.state.jobs.get(job)
        if live is None:
            return ModelName(OTHERS, "")
        return self._remember_job(job, live.spec.requirement.model)

    def _remember_job(self, job: str, digest: str) -> ModelName:
        name = self._jobs[job] = self.model(digest)
        if len(self._jobs) > limits.ACTIVITY_KNOWN_MAX:
            self._jobs.popitem(last=False)
        return name

    # --- what was committed ---

    def watch(self, commands: Sequence[Command]) -> "Seen":
        """Count what a tick has committed; what of it is news for the dashboard."""
        seen = Seen()
        done: Counts[str] = Counts()
        failed: Counts[str] = Counts()
        expired_after: dict[str, int] = {}
        for command in commands:
            match command:
                case AddResult(job=job, error=error):
                    (done if error is None else failed)[job] += 1
                case BeginAttempt():
                    self._began(command)
                case EndAttempt():
                    seen.ended.append(self._ended(command))
                case BookWork():
                    self._booked(command)
                    seen.energy_j += command.energy_j
                case AddJob(spec=spec):
                    self._accepted.inc()
                    self._remember_job(spec.id, spec.requirement.model)
                case FailRemaining(job=job, after_cursor=cursor):
                    expired_after[job] = cursor
                case PublishStatus(status=status) if status.state.is_terminal:
                    self._job_ended(status)
                    seen.jobs.append(status)
                    after = expired_after.get(status.job)
                    if after is not None:
                        failed[status.job] += max(0, status.last_cursor - after)
                case _:
                    pass
        for job, count in done.items():
            self._done[self.model_of_job(job)] += count
        for job, count in failed.items():
            self._failed[self.model_of_job(job)] += count
        seen.done, seen.failed = done.total(), failed.total()
        return seen

    def _job_ended(self, status: JobStatus) -> None:
        state = status.state.value
        took_ms = (status.finished_ms or status.submitted_ms) - status.submitted_ms
        self._jobs_ended.labels(state).inc()
        self._job_seconds.labels(state).observe(max(0, took_ms) / 1000)

    def _began(self, command: BeginAttempt) -> None:
        job = self._service.core.state.job_by_no.get(command.job_no)
        if job is None:
            return
        name = self._jobs.get(job.spec.id)
        if name is None:
            name = self._remember_job(job.spec.id, job.spec.requirement.model)
        self._units[command.unit] = (command.offered_ms, name)
        if len(self._units) > limits.ACTIVITY_KNOWN_MAX:
            self._units.popitem(last=False)

    def _ended(self, command: EndAttempt) -> "Ended":
        end = command.end.value
        self._attempts_ended.labels(end).inc()
        self._busy.inc(command.busy_ms / 1000)
        offered_ms, model = self._units.pop(command.unit, (None, None))
        model = model or self.model_of_job(command.job)
        took_ms = None
        if offered_ms is not None:
            took_ms = max(0, command.ended_ms - offered_ms)
            self._unit_seconds.labels(end).observe(took_ms / 1000)
            if command.taken_ms is not None:
                self._queued_us[model] += max(0, command.taken_ms - offered_ms) * 1000
        self._computed_us[model] += round(command.busy_ms * 1000)
        if command.stop_latency_ms is not None and command.stop_tier is not None:
            tier = self._stop_seconds.labels(command.stop_tier.value)
            tier.observe(command.stop_latency_ms / 1000)
        if command.end is AttemptEnd.RELEASED:
            why = command.hold or command.release_reason
            self._released.labels(why.value if why else "unknown").inc()
        return Ended(command, model, took_ms)

    def _booked(self, work: BookWork) -> None:
        if work.tenant not in self._tenants and len(self._tenants) < limits.METRICS_TENANTS_MAX:
            self._tenants.add(work.tenant)
        tenant = work.tenant if work.tenant in self._tenants else OTHERS
        self._energy.labels(work.energy_method.value).inc(work.energy_j)
        self._credits.inc(work.credits)
        self._tenant_credits.labels(tenant).inc(work.credits)
        self._tenant_energy.labels(tenant).inc(work.energy_j)
        if work.wear_method is WearMethod.UNKNOWN:
            self._wear_unknown.inc(work.items)
        else:
            self._wear.labels(work.wear_method.value).inc(work.wear_percent)

    def request_ended(
        self, ask: Ask, took_ms: int, future: "asyncio.Future[Answered]"
    ) -> bool | None:
        """Count an interactive request; whether it succeeded, None where its requester had left."""
        if future.cancelled():
            self._requests.labels("left").inc()
            return None
        model = self.model(ask.requirement.model)
        if future.exception() is not None:
            self._requests.labels("failed").inc()
            self._failed[model] += 1
            return False
        answered = future.result()
        self._requests.labels("answered").inc()
        self._request_seconds.observe(took_ms / 1000)
        self._done[model] += 1
        self._more_rows[model] += ask.rows - 1
        self._took_us[model] += took_ms * 1000
        self._queued_us[model] += answered.queue_ms * 1000
        self._computed_us[model] += round(answered.busy_ms * 1000 / max(1, answered.batch))
        return True

    def answered(self, path: str, status: int, took_s: float) -> None:
        """An HTTP answer began, `took_s` after its request."""
        route = path[1:].partition("/")[0]
        if route not in _ROUTES:
            route = "other"
        self._http.labels(route, f"{status // 100}xx").inc()
        self._http_seconds.labels(route).observe(took_s)

    # --- a scrape ---

    def families(self) -> Iterator[Metric]:
        """What is read at a scrape: Triton's counters, and how things stand."""
        for name, by_model in (
            ("nv_inference_request_success", self._done),
            ("nv_inference_request_failure", self._failed),
            ("nv_inference_count", self._done + self._more_rows),
            ("nv_inference_request_duration_us", self._took_us),
            ("nv_inference_queue_duration_us", self._queued_us),
            ("nv_inference_compute_infer_duration_us", self._computed_us),
            ("nv_inference_pending_request_count", self._pending()),
        ):
            kind = "gauge" if name.endswith("pending_request_count") else "unknown"
            yield _family(name, kind, ((model._asdict(), n) for model, n in by_model.items()))
        yield from self._fleet()
        state, service = self._service.core.state, self._service
        in_flight = sum(len(unit.open) for unit in state.units.values())
        is_up, is_connected = service.store_state == "ok", service.bus.is_connected
        for name, value in (
            ("edge_runtime_jobs_open", len(state.jobs)),
            ("edge_runtime_items_in_flight", in_flight),
            ("edge_runtime_units_in_flight", len(state.units)),
            ("edge_runtime_ready", service.is_ready),
            ("edge_runtime_draining", service.is_draining),
            ("edge_runtime_broker_connected", is_connected),
            ("edge_runtime_store_up", is_up),
        ):
            yield _family(name, "gauge", [({}, float(value))])
        info = {
            "version": __version__,
            "dispatcher": service.settings.dispatcher_id,
            "epoch": str(state.epoch),
        }
        yield _family("edge_runtime_info", "gauge", [(info, 1.0)])
        events = list(service.all_counters().items())[: limits.METRICS_EVENTS_MAX]
        named = (({"event": event}, count) for event, count in events)
        yield _family("edge_runtime_events_total", "counter", named)

    def _pending(self) -> "Counts[ModelName]":
        pending: Counts[ModelName] = Counts()
        for job in self._service.core.state.jobs.values():
            pending[self.model(job.spec.requirement.model)] += job.open_count - job.in_flight
        return pending

    def _fleet(self) -> Iterator[Metric]:
        fleet = self._service.core.fleet
        by_availability, by_hold = fleet.counts()
        cars = (({"availability": name}, count) for name, count in by_availability.items())
        yield _family("edge_runtime_cars", "gauge", cars)
        held = (({"reason": name}, count) for name, count in by_hold.items())
        yield _family("edge_runtime_cars_held", "gauge", held)
        samples = [
            ({"region": region, "availability": name}, float(count))
            for region, counts in bounded_regions(fleet.counts_by_region()).items()
            for name, count in counts.items()
            if name != "cars"
        ]
        yield _family("edge_runtime_region_cars", "gauge", samples)


class Seen:
    """What one tick brought: items done and failed, their energy, attempts and jobs that ended."""

    __slots__ = ("done", "ended", "energy_j", "failed", "jobs")

    def __init__(self) -> None:
        self.done = self.failed = 0
        self.energy_j = 0.0
        self.ended: list[Ended] = []
        self.jobs: list[JobStatus] = []


class _Sampled(Collector):
    """The families that are read at a scrape."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def collect(self) -> Iterable[Metric]:
        return self._meter.families()

    def describe(self) -> Iterable[Metric]:
        """Nothing: a collector that says nothing here is not asked at its registration."""
        return ()


def _family(name: str, kind: str, samples: Iterable[tuple[dict[str, str], float]]) -> Metric:
    family = Metric(name.removesuffix("_total") if kind == "counter" else name, _SAYS[name], kind)
    for labels, value in samples:
        family.add_sample(name, labels, value)
    return family


def bounded_regions(counts: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """The regions of the most cars, and all others together."""
    if len(counts) <= limits.METRICS_REGIONS_MAX:
        return counts
    by_size = sorted(counts.items(), key=lambda entry: -entry[1]["cars"])
    kept = dict(by_size[: limits.METRICS_REGIONS_MAX - 1])
    others: Counts[str] = Counts()
    for _, more in by_size[limits.METRICS_REGIONS_MAX - 1 :]:
        others.update(more)
    kept[OTHERS] = dict(others)
    return kept
