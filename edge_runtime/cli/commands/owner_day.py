"""`edge-runtime owner day`: what a policy makes of a recorded day, before the car lives one."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from cyclopts import Parameter

from edge_runtime.cli.asking import print_json
from edge_runtime.cli.exit_codes import ExitCode
from edge_runtime.cli.logging import configure_logging
from edge_runtime.cli.options import AsJson
from edge_runtime.contract.errors import ConfigError

if TYPE_CHECKING:
    from edge_runtime.cli.day.words import DaySummary

_SHIPPED = "the shipped policy"


def day(
    trace: Annotated[Path, Parameter(help="A recorded day, .csv or .parquet.")],
    *,
    policy: Annotated[
        Path | None, Parameter(help="The policy to try; without it, the shipped one.")
    ] = None,
    html: Annotated[Path | None, Parameter(help="Write the owner's page to this file.")] = None,
    compute_power_w: Annotated[
        float, Parameter(help="What the computer draws while it works, W.")
    ] = 40.0,
    pack_kwh: Annotated[float, Parameter(help="Usable capacity of the battery, kWh.")] = 60.0,
    cell: Annotated[str, Parameter(help="The battery's cells, as for `vehicle`.")] = "unknown",
    region: Annotated[str, Parameter(help="Where the car is, as for `vehicle`.")] = "default",
    time_zone: Annotated[
        str | None, Parameter(help="IANA name for what is shown; without it, the policy's.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Live a recorded day under a policy, thousands of times as fast; say what the car would do.

    The car's own program runs in virtual time, with always enough work. Nothing on this computer
    changes, and no network is needed. Where the policy gives no consent, it is tried as if it did.
    """
    from edge_runtime.cli.day import render_day, summary_of
    from edge_runtime.sim.day import DaySettings, live_day
    from edge_runtime.vehicle.policy import time_zone as zone_of
    from edge_runtime.vehicle.sensors.traces import read_trace

    # Its car logs like any other; of a day that is over in a minute only errors matter.
    configure_logging("auto", "error")
    recorded = read_trace(trace)
    if html is not None:
        _check_target(html)
    settings = DaySettings(
        compute_power_w=compute_power_w, pack_kwh=pack_kwh, cell=cell, region=region
    )
    zone = None if time_zone is None else zone_of(time_zone)
    began_s = time.monotonic()
    with _progress(recorded.duration_ns / 1e9) as advance:
        lived = live_day(recorded, policy, settings, on_time=advance)
    took_s = max(time.monotonic() - began_s, 1e-3)
    summary = summary_of(lived)
    if html is not None:
        name = _SHIPPED if policy is None else policy.name
        page = render_day(lived, trace.name, name, zone or zone_of(lived.policy.time_zone))
        html.write_text(page, encoding="utf-8")
    speed = {"seconds": round(took_s, 1), "times_real_time": round(lived.length_s / took_s)}
    if as_json:
        print_json(msgspec.structs.asdict(summary) | speed)
    else:
        _print(summary, speed, html)
    return ExitCode.DONE


def _check_target(html: Path) -> None:
    """Say now, not after the day, that the page cannot be written. Raises `ConfigError`."""
    folder = html.parent
    if not folder.is_dir():
        raise ConfigError(f"--html {html}: there is no folder {folder}")
    if html.is_dir():
        raise ConfigError(f"--html {html}: it is a folder")
    if not os.access(html if html.exists() else folder, os.W_OK):
        raise ConfigError(f"--html {html}: it may not be written")


def _print(summary: "DaySummary", speed: dict[str, Any], html: Path | None) -> None:
    from edge_runtime.cli.day.words import duration

    print(summary.headline)
    for row in summary.holds:
        limits = f"   {', '.join(row.limits)}" if row.limits else ""
        print(f"  {duration(row.minutes * 60):>12}  {row.words}{limits}")
    print(
        f"{summary.hours:g} hours in {speed['seconds']:g} s: "
        f"{speed['times_real_time']:,} times real time"
    )
    if html is not None:
        print(f"page: {html}")


@contextlib.contextmanager
def _progress(length_s: float) -> Iterator[Callable[[float], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

    columns = ("the day", BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("day", total=length_s)
        yield lambda at_s: bar.update(task, completed=at_s)
