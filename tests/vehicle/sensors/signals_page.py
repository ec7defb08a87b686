"""The table of docs/reference/signals.md. Run it to write the table anew; a test compares."""

import sys
from pathlib import Path

from edge_runtime.contract.signals import SIGNALS, VssSignal
from edge_runtime.vehicle.sensors.vss import PARKED_BY, paths_of

PAGE = Path(__file__).parents[3] / "docs/reference/signals.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->"


def row(signal: VssSignal) -> str:
    """One line of the table."""
    paths = "<br>".join(f"`{path}`" for path in paths_of((signal.name,), PARKED_BY))
    if signal.is_overlay:
        paths += " (this project's)"
    span = f"{signal.minimum:,.0f} to {signal.maximum:,.0f}"
    cells = (
        f"`{signal.name}`",
        paths,
        signal.datatype,
        signal.unit,
        "" if signal.datatype == "boolean" else span,
        "no" if signal.is_local else "yes",
    )
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """The whole table."""
    head = "| name | VSS 6.0 path | type | unit | plausible | leaves the car |"
    return "\n".join((head, "| --- | --- | --- | --- | --- | --- |", *map(row, SIGNALS), ""))


def with_table(page: str) -> str:
    """The page with the present table in it."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
    sys.stdout.write(f"{PAGE}\n")
