"""A car that is installed on this computer: its settings as its service has them.

Deliberately absent: the variables of `EnvironmentFile=`, which only systemd gives to the service.
"""

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
