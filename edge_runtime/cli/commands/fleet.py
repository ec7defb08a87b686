"""`edge-runtime fleet`: the cars of a dispatcher."""

import asyncio
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from edge_runtime.cli.asking import ask, print_json
from edge_runtime.cli.options import DEFAULT_TENANT, DEFAULT_URL, AsJson, DispatcherUrl

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from edge_runtime.client import EdgeClient
    from edge_runtime.contract.http import CarView, FleetView

_WIDE_COLUMNS: Final = 150


def list_cars(
    *,
    watch: Annotated[
        bool, Parameter(negative="", help="Refresh until Ctrl-C, as a live table.")
    ] = False,
    interval_s: Annotated[float, Parameter(help="Between two refreshes, seconds.")] = 1.0,
    limit: Annotated[int, Parameter(help="How many cars at most.")] = 100,
    url: DispatcherUrl = DEFAULT_URL,
    as_json: AsJson = False,
) -> int:
    """List cars: what each does, or why it takes no work, and its readings."""

    async def question(client: "EdgeClient") -> None:
        if as_json:
            for car in (await client.fleet(limit=limit)).cars:
                print_json(car)
        elif watch:
            await _watch(client, limit, interval_s)
        else:
            _console().print(fleet_table(await client.fleet(limit=limit)))

    return ask(url, DEFAULT_TENANT, question)


def _console() -> "Console":
    """stdout; wide where it is no terminal, so that no cell is cut for a program."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_WIDE_COLUMNS)


async def _watch(client: "EdgeClient", limit: int, interval_s: float) -> None:
    from rich.live import Live

    with Live(fleet_table(await client.fleet(limit=limit)), auto_refresh=False) as live:
        while True:
            await asyncio.sleep(interval_s)
            live.update(fleet_table(await client.fleet(limit=limit)), refresh=True)


def fleet_table(fleet: "FleetView") -> "Table":
    """Cars as a table of `rich`, with the counts over all of them as its caption."""
    from rich.table import Table

    counts = [f"{fleet.total} cars"]
    counts += [f"{count} {state}" for state, count in sorted(fleet.by_availability.items())]
    counts += [f"{count} {hold}" for hold, count in sorted(fleet.by_hold.items())]
    table = Table(caption=", ".join(counts), caption_justify="left")
    for heading in ("car", "state", "hold", "region"):
        table.add_column(heading)
    for heading in ("slots", "units", "backlog", "items", "charge", "battery", "computer", "age"):
        table.add_column(heading, justify="right")
    for car in fleet.cars:
        table.add_row(*_cells(car))
    return table


def _cells(car: "CarView") -> tuple[str, ...]:
    state = car.availability.value if car.online else "offline"
    return (
        car.vehicle,
        f"{state} (quarantined)" if car.quarantined else state,
        car.hold.value.replace("_", " ") if car.hold else "",
        car.region,
        str(car.free_units),
        str(car.units_in_flight),
        f"{car.backlog_ms / 1000:.1f} s",
        str(car.items_done),
        _reading(car.charge_percent, "%"),
        _reading(car.battery_temperature_c, "°C"),
        _reading(car.compute_temperature_c, "°C"),
        f"{car.age_ms / 1000:.1f} s",
    )


def _reading(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.0f} {unit}"


def quarantine(
    vehicle: Annotated[str, Parameter(help="The car's id.")],
    /,
    *,
    off: Annotated[bool, Parameter(negative="", help="Give it work again.")] = False,
    url: DispatcherUrl = DEFAULT_URL,
) -> int:
    """Give a car no work until further notice; what it runs is taken back."""

    async def question(client: "EdgeClient") -> None:
        await client.quarantine(vehicle, on=not off)

    return ask(url, DEFAULT_TENANT, question)
