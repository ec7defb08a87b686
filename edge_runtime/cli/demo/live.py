"""What a person sees while the demo runs: a table that refreshes, or plain lines. On stderr."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, Self

from edge_runtime.contract.http import CarView
from edge_runtime.contract.reasons import Availability

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_COLOURS: Final = {
    Availability.READY: "green",
    Availability.WORKING: "bright_blue",
    Availability.STOPPING: "yellow",
    Availability.HOLD: "red",
    Availability.DRIVING: "magenta",
    Availability.UNKNOWN: "white",
}
_PROGRESS_LINES: Final = 10


@dataclass(frozen=True, slots=True)
class JobProgress:
    """One job's label and how far it is."""

    label: str
    done: int
    items: int


@dataclass(frozen=True, slots=True)
class Scene:
    """One look at the system. `current` maps a car to the label of the job it runs."""

    cars: Sequence[CarView]
    current: Mapping[str, str]
    done: Mapping[str, int]
    jobs: Sequence[JobProgress]


class View(Protocol):
    """Where the demo shows what happens."""

    def show(self, scene: Scene) -> None:
        """Replace what is shown of the cars."""
        ...

    def say(self, line: str) -> None:
        """Add a line that stays."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


class PlainView:
    """Lines: each event, and progress whenever another tenth of the items is done."""

    def __init__(self, console: "Console") -> None:
        self._console = console
        self._tenth = -1

    def show(self, scene: Scene) -> None:
        """Print progress where it has moved by a tenth."""
        total = sum(job.items for job in scene.jobs)
        done = sum(job.done for job in scene.jobs)
        tenth = done * _PROGRESS_LINES // total if total else -1
        if tenth > self._tenth:
            self._tenth = tenth
            parts = ", ".join(f"{job.label} {job.done}/{job.items}" for job in scene.jobs)
            self.say(f"{done}/{total} answered ({parts})")

    def say(self, line: str) -> None:
        """Print the line."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return None


class LiveView:
    """A table of cars that stays in place while lines scroll above it."""

    def __init__(self, console: "Console") -> None:
        from rich.live import Live

        # What is printed to a file stays there; on the same terminal it goes above the table.
        redirect = sys.stdout.isatty()
        self._live = Live(
            console=console, auto_refresh=False, transient=True, redirect_stdout=redirect
        )

    def show(self, scene: Scene) -> None:
        """Draw the table anew."""
        self._live.update(_table(scene), refresh=True)

    def say(self, line: str) -> None:
        """Print the line above the table."""
        self._live.console.print(line, markup=False, highlight=False)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.__exit__(None, None, None)


def open_view() -> View:
    """A live table where stderr is a terminal, plain lines elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    return LiveView(console) if console.is_terminal else PlainView(console)


def _table(scene: Scene) -> "Table":
    from rich.table import Table

    progress = "   ".join(f"{job.label} {job.done}/{job.items}" for job in scene.jobs)
    table = Table(title=progress or "starting", title_justify="left", expand=False)
    for heading in ("car", "state", "hold", "running"):
        table.add_column(heading, min_width=9)
    for heading in ("items", "°C", "charge"):
        table.add_column(heading, justify="right")
    for car in scene.cars:
        table.add_row(*_cells(car, scene.current, scene.done))
    return table


def _cells(
    car: CarView, current: Mapping[str, str], done: Mapping[str, int]
) -> tuple["str | Text", ...]:
    """One car as the cells of a row. `Text`, not markup: what is said above turns markup off."""
    from rich.text import Text

    state = car.availability.value if car.online else "offline"
    colour = _COLOURS[car.availability] if car.online else "bright_black"
    temperature = car.compute_temperature_c
    return (
        car.vehicle,
        Text(state, style=colour),
        car.hold.value.replace("_", " ") if car.hold else "",
        current.get(car.vehicle, ""),
        str(done.get(car.vehicle, car.items_done)),
        "" if temperature is None else f"{temperature:.0f}",
        "" if car.charge_percent is None else f"{car.charge_percent:.0f} %",
    )
