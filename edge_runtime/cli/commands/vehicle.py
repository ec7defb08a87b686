"""`edge-runtime vehicle`: compose sensors, engine, packages and bus, and run one car.

Everything heavy stays out: ONNX Runtime and numpy load in the inference process, which starts
with the first unit.
"""

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from edge_runtime.cli.car_life import live
from edge_runtime.cli.identity import CarIdentityOptions
from edge_runtime.cli.lifecycle import run_service
from edge_runtime.cli.options import (
    DEFAULT_BROKER,
    DEFAULT_POLICY,
    DEFAULT_STATE,
    BrokerUrl,
    Namespace,
    Protocol,
    check_broker_url,
    check_http_url,
    check_port,
)
from edge_runtime.cli.owner_doors import owner_doors
from edge_runtime.cli.sensing import SensorOptions, make_sensors
from edge_runtime.contract import limits
from edge_runtime.contract.errors import ConfigError
from edge_runtime.contract.topics import DEFAULT_NAMESPACE, require_id

if TYPE_CHECKING:
    from edge_runtime.vehicle.inference.options import EngineOptions

_DEFAULT_QUOTA_BYTES: Final = 4 * 1024 * 1024 * 1024
_DEFAULT_WATTS: Final = 40.0
_DEFAULT_PACK_KWH: Final = 60.0
_REAL_SOURCES: Final = frozenset({"linux", "kuksa"})
"""With these the car is this computer: its counters count."""
_WHO: Final = CarIdentityOptions()
_SENSING: Final = SensorOptions()


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class VehicleOptions:
    """Settings of one car's runtime."""

    vehicle_id: Annotated[
        str,
        Parameter(
            name="--id",
            help="Opaque random id, never the VIN; none: that of --identity, else one is drawn.",
        ),
    ] = ""
    broker: BrokerUrl = DEFAULT_BROKER
    state_dir: Annotated[Path, Parameter(help="Folder of the journal and the model packages.")] = (
        DEFAULT_STATE
    )
    policy: Annotated[
        Path, Parameter(help="The owner's policy, TOML; without consent in it, no work.")
    ] = DEFAULT_POLICY
    owner_page_port: Annotated[
        int | None,
        Parameter(help="Port on 127.0.0.1 of a page for the owner, 0 for any; none: no page."),
    ] = None
    models_url: Annotated[
        str | None, Parameter(help="Where packages are fetched; none: where a dispatcher says.")
    ] = None
    models_root: Annotated[
        Path | None,
        Parameter(
            help="Root of the signed repository that packages must be published in, which "
            "`models init-repository` made; none: whatever has the digest that work names."
        ),
    ] = None
    model_quota_bytes: Annotated[
        int, Parameter(help="Most that model packages may take on disk, bytes.")
    ] = _DEFAULT_QUOTA_BYTES
    units_max: Annotated[
        int, Parameter(help=f"Units held at once, 1 to {limits.CAR_UNITS_MAX}.")
    ] = 4
    compute_watts: Annotated[
        float, Parameter(help="What the computer draws while it infers, watts.")
    ] = _DEFAULT_WATTS
    idle_watts: Annotated[
        float | None,
        Parameter(help="What the computer draws without work, as measured once, watts."),
    ] = None
    pack_kwh: Annotated[
        float, Parameter(help="Usable capacity of the traction battery, kWh, for the wear ledger.")
    ] = _DEFAULT_PACK_KWH
    cell: Annotated[
        str,
        Parameter(help="The battery's cells: lfp, nmc622, nmc811 or nca; unknown takes the worst."),
    ] = "unknown"
    region: Annotated[str, Parameter(help="Where the car is, for placement.")] = "default"
    hardware: Annotated[str, Parameter(help="Class within which outputs compare.")] = (
        f"cpu-{platform.machine()}"
    )
    provider: Annotated[str, Parameter(help="ONNX Runtime's execution provider.")] = (
        "CPUExecutionProvider"
    )
    engine_threads: Annotated[int, Parameter(help="Threads of one inference.")] = 1
    engine_memory_bytes: Annotated[
        int, Parameter(help="Most that the inference process may take, bytes.")
    ] = limits.ENGINE_MEMORY_MAX_BYTES
    engine_cpus: Annotated[
        tuple[int, ...] | None,
        Parameter(help="Processors of the inference process; none: the kernel decides."),
    ] = None
    namespace: Namespace = DEFAULT_NAMESPACE
    protocol: Protocol = 5
    who: CarIdentityOptions = _WHO

    @property
    def name(self) -> str:
        """The id of this car: as told, as its certificate says, or as once drawn."""
        return self.who.name(self.vehicle_id, self.state_dir)

    def check(self) -> None:
        """Raise `ConfigError` for the first setting that is out of its bounds."""
        check_broker_url("--broker", self.broker)
        require_id("--id", self.name)
        self.who.settings(self.broker)
        require_id("--region", self.region)
        require_id("--namespace", self.namespace)
        if self.models_url is not None:
            check_http_url("--models-url", self.models_url)
        if self.owner_page_port is not None:
            check_port("--owner-page-port", self.owner_page_port)
        if not 1 <= self.units_max <= limits.CAR_UNITS_MAX:
            raise ConfigError(
                f"--units-max must be 1 to {limits.CAR_UNITS_MAX}, not {self.units_max}"
            )
        for option, number in (
            ("--model-quota-bytes", self.model_quota_bytes),
            ("--engine-threads", self.engine_threads),
            ("--engine-memory-bytes", self.engine_memory_bytes),
            ("--compute-watts", self.compute_watts),
        ):
            if number <= 0:
                raise ConfigError(f"{option} must be over 0, not {number:g}")


_DEFAULTS: Final = VehicleOptions()


def vehicle(options: VehicleOptions = _DEFAULTS, sensing: SensorOptions = _SENSING) -> int:
    """Run one car's runtime until SIGTERM or SIGINT; leaving gives all work back."""
    options.who.draw_name(options.vehicle_id, options.state_dir)
    options.check()
    sensors = make_sensors(sensing)

    async def run() -> None:
        from edge_runtime.bus import open_bus
        from edge_runtime.vehicle.agent import VehicleAgent, VehicleSettings
        from edge_runtime.vehicle.energy.counters import PowerMeter
        from edge_runtime.vehicle.inference.engine import SupervisedEngine
        from edge_runtime.vehicle.inference.tasks.installed import installed_tasks
        from edge_runtime.vehicle.models.store import PackageStore
        from edge_runtime.vehicle.promptness import prompt

        tls = options.who.settings(options.broker)
        identity = options.who.compose(tls)
        settings = VehicleSettings(
            vehicle=options.name,
            broker_url=options.broker,
            state_dir=options.state_dir,
            policy=options.policy,
            namespace=options.namespace,
            protocol=options.protocol,
            region=options.region,
            hardware=options.hardware,
            units_max=options.units_max,
            compute_power_w=options.compute_watts,
            idle_power_w=options.idle_watts,
            pack_kwh=options.pack_kwh,
            cell=options.cell,
            models_url=options.models_url,
            tasks=installed_tasks(),
            tls=tls,
        )
        engine = _engine_options(options)
        packages = PackageStore(
            options.state_dir / "packages",
            options.model_quota_bytes,
            trusted_root=options.models_root,
        )
        try:
            async with prompt():
                await live(
                    lambda: VehicleAgent(
                        settings,
                        open_bus=open_bus,
                        make_engine=lambda emit: SupervisedEngine(engine, emit),
                        packages=packages,
                        sensors=sensors,
                        identity=identity,
                        meter=PowerMeter() if sensing.sensors in _REAL_SOURCES else None,
                    ),
                    attend=lambda agent: owner_doors(
                        agent, options.state_dir, options.owner_page_port
                    ),
                )
        finally:
            await packages.close()

    return run_service(run)


def _engine_options(options: VehicleOptions) -> "EngineOptions":
    from edge_runtime.vehicle.inference.options import EngineOptions, WorkerOptions

    return EngineOptions(
        worker=WorkerOptions(
            provider=options.provider,
            intra_op_threads=options.engine_threads,
            memory_max_bytes=options.engine_memory_bytes,
            cpus=options.engine_cpus,
        ),
        node_times=options.state_dir / "node-times.json",
    )
