"""A dispatcher at a glance: what its dashboard and `edge-runtime top` are shown once a second.

Counts of cars are those of the registry, over every car; lists are bounded. Amounts are since the
dispatcher's process began. Nothing here names a person or the place of a car: a cell is a shard of
vehicle ids, a region what cars say of themselves.
"""

from typing import NamedTuple

import msgspec

from edge_runtime.contract.http import AttemptView, CarView, Explanation
from edge_runtime.contract.messages import JobStatus


class _Shown(msgspec.Struct, frozen=True, kw_only=True):
    """Base: named maps."""


class CarCounts(NamedTuple):
    """Cars of a cell: all, and of them ready, working, held (or driving), offline."""

    cars: int = 0
    ready: int = 0
    working: int = 0
    held: int = 0
    offline: int = 0


class RegionRow(_Shown, frozen=True, kw_only=True):
    """Cars of a region; the last row of a long list is "(others)"."""

    region: str
    counts: CarCounts


class JobRow(_Shown, frozen=True, kw_only=True):
    """A job. `model` is its package's name@version where known, else the digest's beginning."""

    job: str
    tenant: str
    model: str
    state: str
    items: int
    done: int
    failed: int
    in_flight: int
    submitted_ms: int
    deadline_ms: int
    finished_ms: int | None = None


class Moment(NamedTuple):
    """One stretch of the recent past, `ACTIVITY_BUCKET_MS` long, that ended at `end_ms` (UTC).

    `unit_p50_ms` and `unit_p95_ms` are from offer to end over completed units; None without one.
    """

    end_ms: int
    done: int
    failed: int
    units: int
    unit_p50_ms: float | None
    unit_p95_ms: float | None


class Totals(_Shown, frozen=True, kw_only=True):
    """Since `started_ms`. `ended` counts attempts by their end; energy is what cars reported."""

    items_done: int
    items_failed: int
    attempts: int
    ended: dict[str, int]
    stops: dict[str, int]
    stop_p95_ms: float | None
    energy_wh: float
    busy_s: float


class WorkDone(_Shown, frozen=True, kw_only=True):
    """What finished items came to since `since_ms` (None: there is none), over restarts.

    An item counts once, at its canonical end. `credits` are the dispatcher's price, a second of the
    reference core each; energy and wear are what cars tell, by how they know: `unknown` is energy
    of cars that do not say how, `wear_unknown_items` have no figure. Wear is in percent of one
    pack's capacity, summed over cars; what is known by `worst_cell_table` is at most that.
    """

    items: int
    interactive_items: int
    credits: float
    energy_wh: float
    energy_wh_by_method: dict[str, float]
    wear_percent: float
    wear_percent_by_method: dict[str, float]
    wear_unknown_items: int
    since_ms: int | None = None


class TenantRow(_Shown, frozen=True, kw_only=True):
    """A tenant's work."""

    tenant: str
    work: WorkDone


class Overview(_Shown, frozen=True, kw_only=True):
    """Everything at a glance. `cells` has one entry for each of the 256 shards, in order.

    `jobs` are open ones, `ended` the last that ended since `started_ms`, newest first. `tenants`
    are those with the most credits; `work` is everybody's.
    """

    at_ms: int
    started_ms: int
    dispatcher: str
    version: str
    ready: bool
    draining: bool
    broker: str
    store: str
    cars: int
    by_availability: dict[str, int]
    by_hold: dict[str, int]
    regions: tuple[RegionRow, ...]
    cells: tuple[CarCounts, ...]
    jobs_open: int
    items_waiting: int
    items_in_flight: int
    units_in_flight: int
    jobs: tuple[JobRow, ...]
    totals: Totals
    history: tuple[Moment, ...]
    ended: tuple[JobRow, ...] = ()
    work: WorkDone | None = None
    tenants: tuple[TenantRow, ...] = ()


class CarDetail(_Shown, frozen=True, kw_only=True):
    """One car, in words why it gets no work now (empty: it may be offered some), and its work."""

    car: CarView
    cell: str
    why: tuple[str, ...]
    work: WorkDone | None = None


class CarList(_Shown, frozen=True, kw_only=True):
    """A page of the cars that were asked for, and how many there are."""

    cars: tuple[CarView, ...]
    total: int


class JobDetail(_Shown, frozen=True, kw_only=True):
    """One job: where it stands, why it waits, who tried it."""

    status: JobStatus
    model: str
    why: Explanation
    attempts: tuple[AttemptView, ...]
    attempts_skipped: int
