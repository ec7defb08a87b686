"""The wear tables that the car carries, by cell. They are made by `examples/wear/make_tables.py`.

Invariants
- A car whose cell is not named reckons with the worst of all cells.
"""

from importlib import resources

import msgspec

from edge_runtime.contract.errors import ConfigError
from edge_runtime.vehicle.core.wear import UNKNOWN_CELL, Axis, Grid, WearTable, worst_of


class _Cell(msgspec.Struct, frozen=True):
    title: str
    source: str
    cycle_percent_per_efc: Grid
    calendar_percent_per_day: Grid


class _Document(msgspec.Struct, frozen=True):
    made: str
    by: str
    temperatures_c: Axis
    charges_percent: Axis
    cells: dict[str, _Cell]


def wear_tables() -> dict[str, WearTable]:
    """Every table by the cell's name, with `UNKNOWN_CELL` for the worst of all."""
    text = resources.files(__package__).joinpath("wear.json").read_bytes()
    document = msgspec.json.decode(text, type=_Document)
    tables = {
        name: WearTable(
            name=name,
            temperatures_c=document.temperatures_c,
            charges_percent=document.charges_percent,
            cycle_percent_per_efc=cell.cycle_percent_per_efc,
            calendar_percent_per_day=cell.calendar_percent_per_day,
        )
        for name, cell in document.cells.items()
    }
    return tables | {UNKNOWN_CELL: worst_of(tables.values())}


def wear_table(cell: str) -> WearTable:
    """The table of one cell. Raises `ConfigError` that lists the cells."""
    tables = wear_tables()
    if cell not in tables:
        raise ConfigError(f"no wear table of cell {cell[:64]!r}; there are {', '.join(tables)}")
    return tables[cell]
