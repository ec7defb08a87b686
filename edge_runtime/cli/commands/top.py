"""`edge-runtime top`: a dispatcher at a glance, in a terminal or for a script.

On a terminal the picture stays in place until Ctrl-C and outlives a dispatcher's restart; elsewhere
it is printed anew each time, without control codes. What is shown is what the dashboard shows.
"""

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter

from edge_runtime.cli.asking import ask, print_json
from edge_runtime.cli.options import DEFAULT_TENANT, DEFAULT_URL, AsJson, DispatcherUrl
from edge_runtime.contract import limits
from edge_runtime.contract.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from edge_runtime.client import EdgeClient
    from edge_runtime.contract.overview import Overview, WorkDone

_COLOURS: Final = {
    "ready": "green",
    "working": "bright_blue",
    "hold": "yellow",
    "driving": "magenta",
    "stopping": "yellow",
    "unknown": "white",
    "offline": "bright_black",
}
_BLOCKS: Final = " ▁▂▃▄▅▆▇█"
_BAR_CELLS: Final = 24
_SPARK_CELLS: Final = 40
_HOLDS_SHOWN: Final = 8
_JOBS_SHOWN: Final = 10
_TENANTS_SHOWN: Final = 5
_RECENT: Final = 6
_PLAIN_COLUMNS: Final = 110
_MS_PER_S: Final = 1_000
_BUCKET_S: Final = limits.ACTIVITY_BUCKET_MS / 1000


def top(
    *,
    once: Annotated[bool, Parameter(negative="", help="One picture, then end.")] = False,
    interval_s: Annotated[float, Parameter(help="Between two pictures, seconds.")] = 1.0,
    url: DispatcherUrl = DEFAULT_URL,
    as_json: AsJson = False,
) -> int:
    """Show cars, holds, jobs, throughput and energy of a dispatcher until Ctrl-C."""
    if not interval_s > 0:
        raise ConfigError(f"--interval-s must be over 0, not {interval_s:g}")

    async def question(client: "EdgeClient") -> None:
        first = await client.overview()
        console = _console()
        if as_json:
            await _repeat(client, first, interval_s, print_json, once=once)
        elif console.is_terminal and not once:
            await _live(client, first, interval_s, console)
        else:
            await _repeat(client, first, interval_s, lambda o: console.print(picture(o)), once=once)

    return ask(url, DEFAULT_TENANT, question)


def _console() -> "Console":
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_PLAIN_COLUMNS)


async def _repeat(
    client: "EdgeClient", overview: "Overview", interval_s: float, show: Any, *, once: bool
) -> None:
    show(overview)
    while not once:
        await asyncio.sleep(interval_s)
        show(await client.overview())


async def _live(
    client: "EdgeClient", overview: "Overview", interval_s: float, console: "Console"
) -> None:
    """In place. While nothing answers, the last picture stays and says for how long."""
    from rich.live import Live

    from edge_runtime.client import DispatcherRefused, DispatcherUnreachable

    silent_since_s: float | None = None
    with Live(picture(overview), console=console, auto_refresh=False, screen=True) as live:
        while True:
            await asyncio.sleep(interval_s)
            try:
                overview = await client.overview(retry=False)
                silent_since_s = None
            except (DispatcherUnreachable, DispatcherRefused) as error:
                now_s = time.monotonic()
                silent_since_s = silent_since_s or now_s
                trouble = f"old by {now_s - silent_since_s:.0f} s: {error}"
                live.update(picture(overview, trouble), refresh=True)
            else:
                live.update(picture(overview), refresh=True)


# --- the picture -------------------------------------------------------------------------------


def picture(overview: "Overview", trouble: str = "") -> "RenderableType":
    """Everything at a glance, for `rich`."""
    from rich.columns import Columns
    from rich.console import Group
    from rich.text import Text

    lines: list[Any] = [_headline(overview)]
    if trouble:
        lines.append(Text(trouble, style="bold red"))
    lines += [
        Text(""),
        Columns([_states(overview), _holds(overview)], padding=(0, 4)),
        Text(""),
        _flow(overview),
        Text(""),
        _jobs(overview),
        Text(""),
        *_work(overview),
        _totals(overview),
    ]
    return Group(*lines)


def _headline(overview: "Overview") -> "RenderableType":
    from rich.text import Text

    wrong = []
    if overview.broker != "connected":
        wrong.append(f"broker {overview.broker}")
    if overview.store != "ok":
        wrong.append(f"store: {overview.store}")
    if overview.draining:
        wrong.append("draining")
    line = Text()
    line.append(f"edge-runtime {overview.version} ", style="bold")
    line.append(f"{overview.dispatcher}  ")
    line.append("; ".join(wrong) or "ready", style="bold red" if wrong else "green")
    line.append(f"  up {_span((overview.at_ms - overview.started_ms) / 1000)}  ")
    line.append(f"{overview.cars} cars, {overview.jobs_open} open jobs")
    return line


def _states(overview: "Overview") -> "Table":
    table = _table("cars", "", "share")
    for state in _COLOURS:
        cars = overview.by_availability.get(state, 0)
        if cars:
            share = cars / max(1, overview.cars)
            bar = f"[{_COLOURS[state]}]{'█' * max(1, round(share * _BAR_CELLS))}[/]"
            table.add_row(state, str(cars), f"{share:.1%}", bar)
    return table


def _holds(overview: "Overview") -> "Table":
    table = _table("hold", "cars", "share")
    holds = sorted(overview.by_hold.items(), key=lambda hold: (-hold[1], hold[0]))
    held = sum(overview.by_hold.values())
    for reason, cars in holds[:_HOLDS_SHOWN]:
        table.add_row(reason.replace("_", " "), str(cars), f"{cars / held:.1%}")
    rest = sum(cars for _, cars in holds[_HOLDS_SHOWN:])
    if rest:
        table.add_row(f"{len(holds) - _HOLDS_SHOWN} rarer", str(rest), f"{rest / held:.1%}")
    if not holds:
        table.add_row("none", "0", "")
    return table


def _table(*headings: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    return table


def _flow(overview: "Overview") -> "Table":
    history = overview.history
    recent = history[-_RECENT - 1 : -1]
    rate = sum(moment.done + moment.failed for moment in recent) / (max(1, len(recent)) * _BUCKET_S)
    timed = [moment for moment in history if moment.unit_p95_ms is not None]
    p50_ms = timed[-1].unit_p50_ms if timed else None
    p95_ms = timed[-1].unit_p95_ms if timed else None
    table = _table("flow", "now", "")
    table.add_column("last minutes")
    rates = [moment.done / _BUCKET_S for moment in history[-_SPARK_CELLS:]]
    table.add_row("items/s", f"{rate:.1f}", "", spark(rates))
    latencies = [moment.unit_p95_ms or 0.0 for moment in history[-_SPARK_CELLS:]]
    table.add_row("unit p50 / p95", f"{_ms(p50_ms)} / {_ms(p95_ms)}", "", spark(latencies))
    table.add_row("on cars", f"{overview.units_in_flight} units", "", "")
    table.add_row("waiting", f"{overview.items_waiting} items", "", "")
    return table


def spark(values: list[float]) -> str:
    """Values as a line of blocks; the highest is full, and something is never nothing."""
    most = max(values, default=0.0)
    if most <= 0:
        return " " * len(values)
    steps = len(_BLOCKS) - 1
    return "".join(_BLOCKS[0 if v <= 0 else max(1, round(v / most * steps))] for v in values)


def _jobs(overview: "Overview") -> "Table":
    table = _table("job", "tenant", "model", "done", "failed", "on cars", "age")
    table.add_column("")
    for job in overview.jobs[:_JOBS_SHOWN]:
        share = (job.done + job.failed) / max(1, job.items)
        filled = int(share * _BAR_CELLS)
        table.add_row(
            job.job,
            job.tenant,
            job.model,
            f"{job.done}/{job.items}",
            str(job.failed),
            str(job.in_flight),
            _span((overview.at_ms - job.submitted_ms) / 1000),
            "█" * filled + "░" * (_BAR_CELLS - filled),
        )
    more = overview.jobs_open - min(len(overview.jobs), _JOBS_SHOWN)
    if more > 0:
        table.add_row(f"and {more} more", *[""] * 7)
    return table


def _work(overview: "Overview") -> list[Any]:
    """Energy, wear and credits of finished items, over restarts."""
    from rich.text import Text

    if overview.work is None or not overview.work.items:
        return []
    table = _table(
        "finished work", "items", "credits", "energy", "energy known by", "wear of a pack"
    )
    table.add_row("everybody's", *_work_cells(overview.work))
    for row in overview.tenants[:_TENANTS_SHOWN]:
        table.add_row(row.tenant, *_work_cells(row.work))
    return [table, Text("")]


def _work_cells(work: "WorkDone") -> list[str]:
    by_size = sorted(work.energy_wh_by_method.items(), key=lambda entry: -entry[1])
    known_by = ", ".join(how.replace("_", " ") for how, wh in by_size if wh > 0)
    return [
        str(work.items),
        f"{work.credits:.6g}",
        f"{work.energy_wh:.2f} Wh",
        known_by or "-",
        _wear(work),
    ]


def _wear(work: "WorkDone") -> str:
    """What no car has told is not a figure."""
    if work.wear_unknown_items >= work.items:
        return "not known"
    at_most = "at most " if work.wear_percent_by_method.get("worst_cell_table") else ""
    without = work.wear_unknown_items
    return f"{at_most}{work.wear_percent:.3g} %" + (f", {without} not known" if without else "")


def _totals(overview: "Overview") -> "RenderableType":
    from rich.text import Text

    totals = overview.totals
    parts = [
        f"{totals.items_done} items done, {totals.items_failed} failed",
        f"{totals.attempts} attempts",
        f"{totals.energy_wh:.2f} Wh",
        f"{_span(totals.busy_s)} computed",
    ]
    if totals.stop_p95_ms is not None:
        stops = sum(totals.stops.values())
        parts.append(f"{stops} stops, 95 of 100 within {_ms(totals.stop_p95_ms)}")
    return Text("since it began: " + ", ".join(parts))


def _ms(value_ms: float | None) -> str:
    if value_ms is None:
        return "-"
    return f"{value_ms:.1f} ms" if value_ms < _MS_PER_S else f"{value_ms / _MS_PER_S:.1f} s"


def _span(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
