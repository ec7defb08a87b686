"""Totals of booked work as rows: of the fleet, of each tenant, of each car.

Written in the transaction that has the results, so that they tell of each item once whatever
dies; they outlive the jobs.
"""

import sqlite3
from collections.abc import Sequence

from edge_runtime.contract.reasons import EnergyMethod, WearMethod
from edge_runtime.dispatcher.core.commands import BookWork
from edge_runtime.dispatcher.storage.port import Whose, WorkTotal

_COLUMNS = (
    "name, is_interactive, energy_method, wear_method, items, credits, energy_j, wear_percent,"
    " since_ms"
)
_Key = tuple[str, str, bool, str, str]


def book(db: sqlite3.Connection, commands: list[BookWork]) -> None:
    """Add to the totals inside the caller's transaction; one row is written once."""
    sums: dict[_Key, tuple[int, float, float, float, int]] = {}
    for c in commands:
        how = (c.is_interactive, c.energy_method.value, c.wear_method.value)
        for whose, name in (
            (Whose.FLEET, ""),
            (Whose.TENANT, c.tenant),
            (Whose.VEHICLE, c.vehicle),
        ):
            key = (whose.value, name, *how)
            items, earned, energy_j, wear, since_ms = sums.get(key, (0, 0.0, 0.0, 0.0, c.at_ms))
            sums[key] = (
                items + c.items,
                earned + c.credits,
                energy_j + c.energy_j,
                wear + c.wear_percent,
                since_ms,
            )
    db.executemany(
        "INSERT INTO total(kind, name, is_interactive, energy_method, wear_method, items, credits,"
        " energy_j, wear_percent, since_ms) VALUES (?,?,?,?,?,?,?,?,?,?)"
        " ON CONFLICT DO UPDATE SET items = items + excluded.items,"
        " credits = credits + excluded.credits, energy_j = energy_j + excluded.energy_j,"
        " wear_percent = wear_percent + excluded.wear_percent",
        [(*key, *values) for key, values in sums.items()],
    )


def of_name(db: sqlite3.Connection, whose: Whose, name: str) -> list[WorkTotal]:
    """The totals of one name."""
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM total WHERE kind=? AND name=?",  # noqa: S608 - constant columns
        (whose.value, name),
    )
    return [_total(row) for row in rows]


def of_tenants(db: sqlite3.Connection, limit: int) -> list[WorkTotal]:
    """The totals of the tenants with the most credits."""
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM total WHERE kind='tenant' AND name IN"  # noqa: S608 - constant columns
        " (SELECT name FROM total WHERE kind='tenant' GROUP BY name"
        " ORDER BY sum(credits) DESC, name LIMIT ?)",
        (limit,),
    )
    return [_total(row) for row in rows]


def _total(row: Sequence[object]) -> WorkTotal:
    name, is_interactive, energy_method, wear_method, *numbers = row
    return WorkTotal(
        name,  # type: ignore[arg-type]  # the column's type, as the schema has it
        bool(is_interactive),
        EnergyMethod(energy_method),
        WearMethod(wear_method),
        *numbers,  # type: ignore[arg-type]  # as above
    )
