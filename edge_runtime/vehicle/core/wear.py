"""How much of a pack's capacity work costs: a small table, read between its points.

Invariants
- Nothing is extrapolated: beyond the table's edge the edge's value counts.
- A temperature or charge that is not known is taken where it is worst.

The tables, what is in them and what is not: `docs/explanation/wear.md`.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from edge_runtime.contract.errors import ConfigError

UNKNOWN_CELL: Final = "unknown"
"""Names the table of a cell that is not known: the worst of all."""
Axis = Annotated[tuple[float, ...], Meta(min_length=2, max_length=32)]
Rate = Annotated[float, Meta(ge=0, le=100)]
Grid = tuple[tuple[Rate, ...], ...]


class WearTable(msgspec.Struct, frozen=True, kw_only=True):
    """One cell's wear: rows by temperature (Celsius), columns by charge (percent).

    `cycle_percent_per_efc` is percent of capacity for one equivalent full cycle of work,
    `calendar_percent_per_day` for one day of standing. Raises `ConfigError` where the shapes differ
    or an axis does not rise.
    """

    name: str
    temperatures_c: Axis
    charges_percent: Axis
    cycle_percent_per_efc: Grid
    calendar_percent_per_day: Grid

    def __post_init__(self) -> None:
        for field, axis in (
            ("temperatures_c", self.temperatures_c),
            ("charges_percent", self.charges_percent),
        ):
            if any(after <= before for before, after in pairwise(axis)):
                raise ConfigError(f"wear table {self.name}: {field} must rise")
        for field, grid in (
            ("cycle_percent_per_efc", self.cycle_percent_per_efc),
            ("calendar_percent_per_day", self.calendar_percent_per_day),
        ):
            is_wrong = len(grid) != len(self.temperatures_c) or any(
                len(row) != len(self.charges_percent) for row in grid
            )
            if is_wrong:
                raise ConfigError(
                    f"wear table {self.name}: {field} must have {len(self.temperatures_c)} rows"
                    f" of {len(self.charges_percent)}"
                )

    def cycle_percent(self, temperature_c: float | None, charge_percent: float | None) -> float:
        """Percent of capacity for one equivalent full cycle under these conditions."""
        return self._at(self.cycle_percent_per_efc, temperature_c, charge_percent)

    def calendar_percent(self, temperature_c: float | None, charge_percent: float | None) -> float:
        """Percent of capacity for one day of standing under these conditions."""
        return self._at(self.calendar_percent_per_day, temperature_c, charge_percent)

    def _at(self, grid: Grid, temperature_c: float | None, charge_percent: float | None) -> float:
        rows = [
            max(row)
            if charge_percent is None
            else _between(self.charges_percent, row, charge_percent)
            for row in grid
        ]
        return (
            max(rows)
            if temperature_c is None
            else _between(self.temperatures_c, rows, temperature_c)
        )


def _between(axis: Sequence[float], values: Sequence[float], at: float) -> float:
    """Linear between the two neighbours, the edge's value beyond the edge."""
    if at <= axis[0]:
        return values[0]
    if at >= axis[-1]:
        return values[-1]
    upper = bisect_right(axis, at)
    share = (at - axis[upper - 1]) / (axis[upper] - axis[upper - 1])
    return values[upper - 1] + share * (values[upper] - values[upper - 1])


def worst_of(tables: Iterable[WearTable]) -> WearTable:
    """For a cell that is not known: the worst of all at every point. The axes must agree."""
    first, *others = tables
    if any(
        (other.temperatures_c, other.charges_percent)
        != (first.temperatures_c, first.charges_percent)
        for other in others
    ):
        raise ConfigError("wear tables: the axes differ")
    grids = [
        (table.cycle_percent_per_efc, table.calendar_percent_per_day) for table in (first, *others)
    ]
    cycle, calendar = (
        tuple(
            tuple(max(values) for values in zip(*rows, strict=True))
            for rows in zip(*same, strict=True)
        )
        for same in zip(*grids, strict=True)
    )
    return WearTable(
        name=UNKNOWN_CELL,
        temperatures_c=first.temperatures_c,
        charges_percent=first.charges_percent,
        cycle_percent_per_efc=cycle,
        calendar_percent_per_day=calendar,
    )
