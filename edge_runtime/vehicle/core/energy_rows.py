"""What the energy ledger keeps and tells: a row for each UTC day, and sums of rows.

Invariants
- Every number of a row only grows; so of two versions of a row the larger is the newer.
- A row's energy by source is all of it: what finished items took is part of it, and the rest is
  overhead (loading models, items lost to a stop, gaps between items).

Deliberately absent: how power is known and who books it (`energy`); where rows are kept.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from math import isfinite
from typing import Final

import msgspec

from edge_runtime.contract.clock import utc_month

J_PER_WH: Final = 3_600.0
ARCHIVE_DAY: Final = -1
"""The row into which days go that are too old to be kept one by one."""
_BYTES_PER_MB: Final = 1e6
_S_PER_MIN: Final = 60.0


class PowerMethod(Enum):
    """How power was known; members are append-only, their order is the bit in a row."""

    STATED = "stated_power"
    """The setting `compute_power_w`, whatever the load."""
    CALIBRATED = "calibrated_model"
    """Idle and busy power as measured once, and the load between them."""
    VEHICLE = "vehicle_signal"
    """The car's own reading of the computer's power (VSS `Health.Resources.Power`)."""
    RAPL = "rapl"
    """The processor's energy counters: packages and memory, not the rest of the computer."""
    SUPPLY = "power_supply"
    """Current times voltage of a battery that is being discharged."""
    INA = "ina"
    """A sensor chip on the board's supply."""

    @property
    def is_measured(self) -> bool:
        """Whether it is a reading, not a model."""
        return self not in {PowerMethod.STATED, PowerMethod.CALIBRATED}

    @property
    def bit(self) -> int:
        """Its bit in `DayEnergy.methods`."""
        return 1 << list(PowerMethod).index(self)


class DayEnergy(msgspec.Struct):
    """One UTC day, numbered from 1 January 1970; joules, seconds, percent of capacity, counts.

    `units_j` is the part of `grid_j + pack_j` that finished items took, `measured_j` the part that
    was read rather than modelled. `efc` counts equivalent full cycles of the pack, and `begun` how
    often the car became ready.
    """

    day: int
    grid_j: float = 0.0
    pack_j: float = 0.0
    units_j: float = 0.0
    measured_j: float = 0.0
    computing_s: float = 0.0
    battery_hot_s: float = 0.0
    compute_hot_s: float = 0.0
    efc: float = 0.0
    cycle_wear_percent: float = 0.0
    warmth_wear_percent: float = 0.0
    items: int = 0
    units: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    methods: int = 0
    begun: int = 0

    @property
    def total_j(self) -> float:
        """All energy of the day."""
        return self.grid_j + self.pack_j

    def add(self, other: "DayEnergy") -> None:
        """Take in another row; the day stays."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.methods |= other.methods

    @property
    def is_possible(self) -> bool:
        """Whether every number is finite and not negative."""
        return all(isfinite(value) and value >= 0 for value in (getattr(self, n) for n in _SUMS))


ROW_FIELDS: Final = tuple(field.name for field in msgspec.structs.fields(DayEnergy))
_SUMS: Final = tuple(name for name in ROW_FIELDS if name not in {"day", "methods"})


class ModelEnergy(msgspec.Struct):
    """What items of one model took here, so that the next ones can be estimated."""

    digest: str
    joules: float = 0.0
    items: int = 0


class PeriodSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One period, as people read it. `wear_percent` is of the pack's capacity, by our work."""

    period: str
    grid_wh: float
    pack_wh: float
    total_wh: float
    units_wh: float
    overhead_wh: float
    measured_share: float
    computing_min: float
    battery_hot_min: float
    compute_hot_min: float
    equivalent_full_cycles: float
    cycle_wear_percent: float
    warmth_wear_percent: float
    wear_percent: float
    items: int
    units: int
    sent_mb: float
    received_mb: float
    methods: tuple[str, ...]
    begun: int = 0


class LedgerSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What work for others has cost this car; `lifetime` is everything that was ever booked."""

    today: PeriodSummary
    month: PeriodSummary
    year: PeriodSummary
    lifetime: PeriodSummary


@dataclass(frozen=True, slots=True)
class Spent:
    """What budgets are held against."""

    wh_today: float
    wh_month: float
    equivalent_full_cycles_year: float
    data_mb_month: float


def data_mb(row: DayEnergy) -> float:
    """Both directions together, in MB (10**6 bytes)."""
    return (row.sent_bytes + row.received_bytes) / _BYTES_PER_MB


def sum_of(rows: Iterable[DayEnergy], day: int = 0) -> DayEnergy:
    """All of these in one row of its own."""
    total = DayEnergy(day)
    for row in rows:
        total.add(row)
    return total


def summarise(rows: Iterable[DayEnergy], day: int) -> LedgerSummary:
    """The ledger as of UTC day number `day`, from its rows."""
    rows = list(rows)
    year, month = utc_month(day)
    dated = [(row, utc_month(row.day)) for row in rows if row.day != ARCHIVE_DAY]
    return LedgerSummary(
        today=_period("today", [row for row in rows if row.day == day]),
        month=_period(
            f"{year:04d}-{month:02d}", [row for row, its in dated if its == (year, month)]
        ),
        year=_period(f"{year:04d}", [row for row, its in dated if its[0] == year]),
        lifetime=_period("lifetime", rows),
    )


def _period(name: str, rows: Iterable[DayEnergy]) -> PeriodSummary:
    row = sum_of(rows)
    total_j = row.total_j
    return PeriodSummary(
        period=name,
        grid_wh=row.grid_j / J_PER_WH,
        pack_wh=row.pack_j / J_PER_WH,
        total_wh=total_j / J_PER_WH,
        units_wh=row.units_j / J_PER_WH,
        overhead_wh=max(0.0, total_j - row.units_j) / J_PER_WH,
        measured_share=min(1.0, row.measured_j / total_j) if total_j > 0 else 0.0,
        computing_min=row.computing_s / _S_PER_MIN,
        battery_hot_min=row.battery_hot_s / _S_PER_MIN,
        compute_hot_min=row.compute_hot_s / _S_PER_MIN,
        equivalent_full_cycles=row.efc,
        cycle_wear_percent=row.cycle_wear_percent,
        warmth_wear_percent=row.warmth_wear_percent,
        wear_percent=row.cycle_wear_percent + row.warmth_wear_percent,
        items=row.items,
        units=row.units,
        sent_mb=row.sent_bytes / _BYTES_PER_MB,
        received_mb=row.received_bytes / _BYTES_PER_MB,
        methods=tuple(method.value for method in PowerMethod if row.methods & method.bit),
        begun=row.begun,
    )
