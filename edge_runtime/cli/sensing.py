"""Which source gives which signal: the options, and the sources that they make.

Every source is imported only when it is chosen: a car without a databroker loads no gRPC.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from cyclopts import Parameter

from edge_runtime.cli.options import readable_file
from edge_runtime.contract import limits
from edge_runtime.contract.errors import ConfigError

if TYPE_CHECKING:
    from edge_runtime.vehicle.ports import Sensors

Source = Literal["linux", "kuksa", "trace", "simulated"]

_STDIN: Final = 0


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SensorOptions:
    """Where a car's readings come from."""

    sensors: Annotated[Source, Parameter(help="Where readings come from.")] = "linux"
    signal: Annotated[
        dict[str, Source],
        Parameter(
            help="Another source for one signal, such as --signal.charge_percent kuksa; in a file "
            "[vehicle.signal]."
        ),
    ] = field(default_factory=dict)
    sensor_commands: Annotated[
        bool,
        Parameter(
            negative="", help='Simulated: read JSON lines on stdin, such as {"is_occupied": true}.'
        ),
    ] = False
    scenario: Annotated[
        Path | None, Parameter(help="Simulated: how the car begins and what happens, TOML.")
    ] = None
    trace: Annotated[Path | None, Parameter(help="Trace: the recorded day, .csv or .parquet.")] = (
        None
    )
    trace_speed: Annotated[
        float, Parameter(help="Trace: how many times faster than it was recorded.")
    ] = 1.0
    trace_loop: Annotated[bool, Parameter(negative="", help="Trace: begin again at its end.")] = (
        False
    )
    kuksa_address: Annotated[
        str, Parameter(help="KUKSA: the databroker, HOST:PORT or unix:PATH.")
    ] = "127.0.0.1:55555"
    kuksa_token: Annotated[Path | None, Parameter(help="KUKSA: file with the JSON web token.")] = (
        None
    )
    kuksa_ca: Annotated[
        Path | None, Parameter(help="KUKSA: certificates, PEM; makes the connection TLS.")
    ] = None
    kuksa_parked_by: Annotated[
        tuple[Literal["park-lock", "gear", "brake"], ...],
        Parameter(help="KUKSA: what must all say that the car is parked."),
    ] = ("park-lock", "gear", "brake")
    kuksa_frozen_s: Annotated[
        float,
        Parameter(
            help="KUKSA: seconds after which a measurement not written again is stale; 0: never."
        ),
    ] = limits.SENSOR_FROZEN_MS / 1000


def make_sensors(options: SensorOptions) -> "Sensors":
    """The sources that are chosen, as one. Raises `ConfigError`."""
    from edge_runtime.vehicle.sensors.combined import CombinedSensors, choose

    chosen = choose(options.sensors, options.signal)
    _check_unused(options, frozenset(chosen))
    return CombinedSensors(
        {source: (_make(source, options, names), names) for source, names in chosen.items()}
    )


def _check_unused(options: SensorOptions, sources: frozenset[str]) -> None:
    """Refuse an option of a source that is not chosen: it would silently do nothing."""
    default = SensorOptions()
    for prefix, source in (
        ("sensor_commands", "simulated"),
        ("scenario", "simulated"),
        ("trace", "trace"),
        ("kuksa", "kuksa"),
    ):
        if source in sources:
            continue
        for name in SensorOptions.__dataclass_fields__:
            is_set = getattr(options, name) != getattr(default, name)
            if name.startswith(prefix) and is_set:
                option = name.replace("_", "-")
                raise ConfigError(f"--{option} is for the source {source}, which nothing chooses")


def _make(source: str, options: SensorOptions, names: frozenset[str]) -> "Sensors":
    match source:
        case "linux":
            from edge_runtime.vehicle.sensors.linux import LinuxSensors

            return LinuxSensors()
        case "simulated":
            from edge_runtime.vehicle.sensors.simulated import SimulatedSensors, parse_scenario

            script = None
            if options.scenario is not None:
                script = parse_scenario(readable_file("--scenario", options.scenario).read_bytes())
            return SimulatedSensors(script, commands=_STDIN if options.sensor_commands else None)
        case "trace":
            return _make_trace(options, names)
        case "kuksa":
            return _make_kuksa(options, names)
        case _:
            raise ConfigError(f"{source[:64]!r} is no source of signals")


def _make_trace(options: SensorOptions, names: frozenset[str]) -> "Sensors":
    from edge_runtime.vehicle.sensors.replay import TraceSensors
    from edge_runtime.vehicle.sensors.traces import read_trace

    if options.trace is None:
        raise ConfigError("the source trace needs --trace FILE")
    trace = read_trace(readable_file("--trace", options.trace))
    missing = sorted(names & options.signal.keys() - set(trace.names))
    if missing:
        raise ConfigError(f"{options.trace}: has no column {missing[0]}, which is to come from it")
    return TraceSensors(trace, speed=options.trace_speed, loops=options.trace_loop)


def _make_kuksa(options: SensorOptions, names: frozenset[str]) -> "Sensors":
    try:
        from edge_runtime.vehicle.sensors.kuksa import KuksaSensors, KuksaSettings
    except ImportError as error:
        raise ConfigError(
            f"the source kuksa needs the extra: pip install 'edge-runtime[vss]' ({error})"
        ) from None
    for option, file in (
        ("--kuksa-token", options.kuksa_token),
        ("--kuksa-ca", options.kuksa_ca),
    ):
        if file is not None:
            readable_file(option, file)
    settings = KuksaSettings(
        address=options.kuksa_address,
        token=options.kuksa_token,
        ca=options.kuksa_ca,
        parked_by=options.kuksa_parked_by,
        frozen_after_ms=round(options.kuksa_frozen_s * 1000),
    )
    return KuksaSensors(settings, sorted(names))
