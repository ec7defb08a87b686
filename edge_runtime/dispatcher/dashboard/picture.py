"""What the dashboard shows, computed from the registry's columns, the core and what was committed.

Invariants
- Looked at from the dispatcher's own loop: a picture is of one moment.
- Made at most once a `DASHBOARD_PERIOD_S`, whoever looks, and not at all while nobody does.
- Counts are over every car, by vector expressions; lists are bounded.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from edge_runtime import __version__
from edge_runtime.contract import limits
from edge_runtime.contract.http import AttemptEnd, AttemptView
from edge_runtime.contract.messages import JobStatus
from edge_runtime.contract.overview import (
    CarCounts,
    CarDetail,
    CarList,
    JobDetail,
    JobRow,
    Overview,
    RegionRow,
    Totals,
)
from edge_runtime.contract.reasons import Availability, HoldReason
from edge_runtime.contract.topics import shard_of
from edge_runtime.dispatcher.core.commands import Command
from edge_runtime.dispatcher.core.fleet import (
    AVAILABILITIES,
    HOLDS,
    ONLINE,
    QUARANTINED,
    READY_CODE,
    WORKING_CODE,
    Fleet,
    Mask,
)
from edge_runtime.dispatcher.core.interactive_parts import Answered, Ask
from edge_runtime.dispatcher.core.jobs import Job
from edge_runtime.dispatcher.dashboard.activity import Activity, Durations
from edge_runtime.dispatcher.dashboard.words import HOLD_WORDS
from edge_runtime.dispatcher.front import Front
from edge_runtime.dispatcher.metrics import Meter, bounded_regions
from edge_runtime.dispatcher.service import DispatcherService
from edge_runtime.dispatcher.storage import Whose
from edge_runtime.dispatcher.totals import tally_of

SHARDS: Final = 256
_READY, _WORKING, _HELD, _OFFLINE = range(4)
_encode: Final = msgspec.json.Encoder().encode


class Shards:
    """The shard of each row of a registry, kept as rows are added."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._numbers = np.empty(0, dtype="u1")

    def numbers(self) -> np.ndarray[Any, Any]:
        """One number from 0 to 255 a row (u1[rows])."""
        vehicles, known = self._fleet.vehicles, len(self._numbers)
        if known < len(vehicles):
            new = [int(shard_of(vehicle), 16) for vehicle in vehicles[known:]]
            self._numbers = np.concatenate((self._numbers, np.array(new, dtype="u1")))
        return self._numbers


class Picture:
    """One service, as its operator sees it."""

    def __init__(self, service: DispatcherService, front: Front, meter: Meter) -> None:
        self._service = service
        self._front = front
        self._meter = meter
        self._activity = Activity()
        self._stops = Durations()
        self._stops_by_tier: dict[str, int] = {}
        self._ended: dict[str, int] = {}
        self._ended_jobs: deque[JobRow] = deque(maxlen=limits.DASHBOARD_ENDED_JOBS_MAX)
        self._done = self._failed = 0
        self._energy_j = self._busy_ms = 0.0
        self._started_ms = service.clock().utc_ms
        self._shards = Shards(service.core.fleet)
        self._bytes = b""
        self._made_at_s = -limits.DASHBOARD_PERIOD_S

    # --- what was committed ---

    def watch(self, commands: Sequence[Command]) -> None:
        """A watcher of the service: counts, for the meter and for the plots."""
        seen = self._meter.watch(commands)
        self._done += seen.done
        self._failed += seen.failed
        self._energy_j += seen.energy_j
        self._ended_jobs.extend(self._ended_row(status) for status in seen.jobs)
        units_ms: list[int] = []
        for ended in seen.ended:
            command = ended.command
            self._ended[command.end.value] = self._ended.get(command.end.value, 0) + 1
            self._busy_ms += command.busy_ms
            if ended.took_ms is not None and command.end is AttemptEnd.COMPLETED:
                units_ms.append(ended.took_ms)
            if command.stop_tier is not None and command.stop_latency_ms is not None:
                self._stops.add(command.stop_latency_ms)
                tier = command.stop_tier.value
                self._stops_by_tier[tier] = self._stops_by_tier.get(tier, 0) + 1
        if seen.done or seen.failed or units_ms:
            now_ms = self._service.clock().utc_ms
            self._activity.add(now_ms, seen.done, seen.failed, units_ms)

    def request_ended(self, ask: Ask, came_ms: int, future: "asyncio.Future[Answered]") -> None:
        """A watcher of the interactive desk: its requests are items too."""
        now = self._service.clock()
        is_done = self._meter.request_ended(ask, now.boot_ms - came_ms, future)
        if is_done is not None:
            self._done += is_done
            self._failed += not is_done
            self._activity.add(now.utc_ms, int(is_done), int(not is_done), [])

    # --- everything at a glance ---

    def as_json(self) -> bytes:
        """The overview, made anew when the last one is older than a period."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._made_at_s >= 0.9 * limits.DASHBOARD_PERIOD_S:
            self._bytes = _encode(self.overview())
            self._made_at_s = now_s
        return self._bytes

    def overview(self) -> Overview:
        """Everything at a glance, now."""
        service = self._service
        state, fleet = service.core.state, service.core.fleet
        by_availability, by_hold = fleet.counts()
        waiting = in_flight = 0
        for job in itertools.islice(state.jobs.values(), limits.WINDOW_JOBS_MAX):
            in_flight += job.in_flight
            waiting += job.open_count - job.in_flight
        now_ms = service.clock().utc_ms
        return Overview(
            at_ms=now_ms,
            started_ms=self._started_ms,
            dispatcher=service.settings.dispatcher_id,
            version=__version__,
            ready=service.is_ready,
            draining=service.is_draining,
            broker="connected" if service.bus.is_connected else "not connected",
            store=service.store_state,
            cars=len(fleet),
            by_availability=by_availability,
            by_hold=by_hold,
            regions=self._regions(fleet),
            cells=self._cells(fleet),
            jobs_open=len(state.jobs),
            items_waiting=waiting,
            items_in_flight=in_flight,
            units_in_flight=len(state.units),
            jobs=tuple(self._job_row(job) for job in self._shown_jobs()),
            totals=self._totals(),
            history=self._activity.history(now_ms),
            ended=tuple(reversed(self._ended_jobs)),
            work=service.totals.fleet.shown(),
            tenants=service.totals.shown_tenants(),
        )

    def _totals(self) -> Totals:
        counters = self._service.core.state.counters
        return Totals(
            items_done=self._done,
            items_failed=self._failed,
            attempts=counters["attempts"],
            ended=dict(sorted(self._ended.items())),
            stops=dict(sorted(self._stops_by_tier.items())),
            stop_p95_ms=self._stops.quantile_ms(0.95),
            energy_wh=round(self._energy_j / 3600, 3),
            busy_s=round(self._busy_ms / 1000, 1),
        )

    @staticmethod
    def _regions(fleet: Fleet) -> tuple[RegionRow, ...]:
        regions = bounded_regions(fleet.counts_by_region())
        rows = [RegionRow(region=name, counts=CarCounts(**n)) for name, n in regions.items()]
        return tuple(sorted(rows, key=lambda row: -row.counts.cars))

    def _cells(self, fleet: Fleet) -> tuple[CarCounts, ...]:
        kinds = _kinds(fleet)
        keys = self._shards.numbers().astype("i4") * 4 + kinds
        table = np.bincount(keys, minlength=SHARDS * 4).reshape(SHARDS, 4).tolist()
        return tuple(CarCounts(sum(row), *row) for row in table)

    def _shown_jobs(self) -> Iterable[Job]:
        """Jobs with units on cars first, then the oldest open ones."""
        state, look = self._service.core.state, limits.DASHBOARD_JOBS_LOOK_MAX
        units = itertools.islice(state.units.values(), look)
        shown = {unit.job.spec.id: unit.job for unit in units if not unit.job.is_over}
        for job in itertools.islice(state.jobs.values(), limits.DASHBOARD_JOBS_MAX):
            if not job.is_over:
                shown.setdefault(job.spec.id, job)
        return itertools.islice(shown.values(), limits.DASHBOARD_JOBS_MAX)

    def _job_row(self, job: Job) -> JobRow:
        spec = job.spec
        return JobRow(
            job=spec.id,
            tenant=spec.tenant,
            model=str(self._meter.model(spec.requirement.model)),
            state=job.state.value,
            items=spec.items,
            done=job.done,
            failed=job.failed,
            in_flight=job.in_flight,
            submitted_ms=spec.submitted_ms,
            deadline_ms=spec.deadline_ms,
        )

    def _ended_row(self, status: JobStatus) -> JobRow:
        return JobRow(
            job=status.job,
            tenant=status.tenant,
            model=str(self._meter.model(status.model)),
            state=status.state.value,
            items=status.items,
            done=status.done,
            failed=status.failed,
            in_flight=0,
            submitted_ms=status.submitted_ms,
            deadline_ms=status.deadline_ms,
            finished_ms=status.finished_ms,
        )

    # --- one job, one car ---

    async def job(self, job: str, after: int) -> JobDetail:
        """One job and its newest attempts; `Refusal` 404 where unknown.

        `after` attempts are known to be older than what is shown: they are not read again. Of a
        job with very many, each call goes on where the last one had to stop.
        """
        status = await self._front.job(None, job)
        why = await self._front.why(None, job)
        attempts: list[AttemptView] = []
        last = after + limits.DASHBOARD_JOBS_LOOK_MAX
        while True:
            page = await self._front.attempts(None, job, limit=limits.HTTP_PAGE_MAX, after=after)
            attempts += page
            surplus = max(0, len(attempts) - limits.DASHBOARD_ATTEMPTS_MAX)
            del attempts[:surplus]
            if len(page) < limits.HTTP_PAGE_MAX or after >= last:
                break
            after += len(page)
        shown_from = after + len(page) - len(attempts)
        return JobDetail(
            status=status,
            model=str(self._meter.model(status.model)),
            why=why,
            attempts=tuple(attempts),
            attempts_skipped=shown_from,
        )

    async def car(self, vehicle: str) -> CarDetail | None:
        """One car, None where it has never connected. Raises `StoreError`."""
        fleet, now_ms = self._service.core.fleet, self._service.clock().boot_ms
        row = fleet.row_of.get(vehicle)
        if row is None:
            return None
        totals = await self._service.store.totals(Whose.VEHICLE, vehicle)
        return CarDetail(
            car=fleet.view(row, now_ms),
            cell=shard_of(vehicle),
            why=_why(fleet, row, now_ms),
            work=tally_of(totals),
        )

    def cars(
        self,
        *,
        cell: int | None = None,
        availability: str | None = None,
        hold: HoldReason | None = None,
        region: str | None = None,
        limit: int,
        offset: int,
    ) -> CarList:
        """Cars of a cell, an availability ("offline" too), a hold or a region, in order of row."""
        fleet, now_ms = self._service.core.fleet, self._service.clock().boot_ms
        mask: Mask = np.ones(len(fleet), dtype=bool)
        online = (fleet.column("flags") & ONLINE) != 0
        if cell is not None:
            mask &= self._shards.numbers() == cell
        if availability == "offline":
            mask &= ~online
        elif availability is not None:
            code = AVAILABILITIES.index(Availability(availability))
            mask &= online & (fleet.column("availability") == code)
        if hold is not None:
            mask &= online & (fleet.column("hold") == HOLDS.index(hold))
        if region is not None:
            mask &= fleet.column("region") == (fleet.regions.find(region) or 65_535)
        rows = np.flatnonzero(mask)
        shown = rows[offset : offset + limit].tolist()
        return CarList(cars=tuple(fleet.view(row, now_ms) for row in shown), total=len(rows))


def _kinds(fleet: Fleet) -> np.ndarray[Any, Any]:
    """Ready, working, held (or driving) or offline (i4[rows])."""
    availability = fleet.column("availability")
    kinds = np.full(len(availability), _HELD, dtype="i4")
    kinds[availability == READY_CODE] = _READY
    kinds[availability == WORKING_CODE] = _WORKING
    kinds[(fleet.column("flags") & ONLINE) == 0] = _OFFLINE
    return kinds


def _why(fleet: Fleet, row: int, now_ms: int) -> tuple[str, ...]:
    """Everything that keeps a car from being offered work, by the registry that placement asks."""
    view = fleet.view(row, now_ms)
    why = []
    if not view.online:
        why.append("it is offline: it said goodbye, or its connection broke")
    if fleet.flags[row] & QUARANTINED:
        why.append("an operator has quarantined it: edge-runtime fleet quarantine CAR --off")
    if view.hold is not None:
        why.append(f"{view.hold.value}: {HOLD_WORDS[view.hold]}")
    elif fleet.availability[row] not in (READY_CODE, WORKING_CODE):
        why.append(f"it is {view.availability.value}")
    if view.age_ms < 0:
        why.append("it has not said how it is since this dispatcher began")
    elif view.age_ms >= limits.STATE_STALE_MS:
        why.append(f"its last state is {view.age_ms // 1000} s old; it is not believed any more")
    wait_ms = fleet.retry_at_ms[row] - now_ms
    if wait_ms > 0:
        why.append(f"it asked to be left alone for another {wait_ms / 1000:.1f} s")
    if view.units_in_flight >= fleet.units_max[row]:
        why.append(f"it has {view.units_in_flight} units in hand and takes no more at once")
    elif view.backlog_ms >= limits.BACKLOG_TARGET_MS:
        why.append(f"it has {view.backlog_ms / 1000:.1f} s of work in hand already")
    return tuple(why)
