"""A car that is installed on this computer: its settings and journal as its service has them.

Deliberately absent: the variables of `EnvironmentFile=`, which only systemd gives to the service.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.cli.settings import ENVIRONMENT_PREFIX, Environment, read_file

if TYPE_CHECKING:
    from edge_runtime.cli.commands.vehicle import VehicleOptions
    from edge_runtime.cli.sensing import SensorOptions


def read_settings(path: Path) -> tuple["VehicleOptions", "SensorOptions"]:
    """What `edge-runtime vehicle --config PATH` would run with.

    Raises `ConfigError`, or `CycloptsError` for a value of the wrong type.
    """
    from edge_runtime.cli.app import build_app
    from edge_runtime.cli.commands.vehicle import VehicleOptions
    from edge_runtime.cli.sensing import SensorOptions

    app = build_app()
    app.config = (Environment(ENVIRONMENT_PREFIX), read_file(path, app))
    _, bound, _ = app.parse_args(["vehicle"], print_error=False, exit_on_error=False)
    options = bound.arguments.get("options", VehicleOptions())
    sensing = bound.arguments.get("sensing", SensorOptions())
    return options, sensing


@contextlib.contextmanager
def journal_to_read(path: Path) -> Iterator[sqlite3.Connection]:
    """A journal, for reading; leaves no file behind. Raises `sqlite3.Error`.

    SQLite makes files beside a journal to read it. Where there are none nobody has it open, and
    nothing in it waits to be folded in: it may be read as if it could not change.
    """
    is_open = path.with_name(path.name + "-wal").exists()
    how = "mode=ro" if is_open else "mode=ro&immutable=1"
    connection = sqlite3.connect(f"file:{path}?{how}", uri=True)
    try:
        yield connection
    finally:
        connection.close()
