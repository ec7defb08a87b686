"""`edge-runtime dispatcher`: compose store, bus, service and HTTP API, and run until stopped."""

import asyncio
import contextlib
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from edge_runtime.cli import systemd
from edge_runtime.cli.identity import TlsOptions
from edge_runtime.cli.lifecycle import allow_open_files, run_service, settle_memory
from edge_runtime.cli.options import (
    DEFAULT_BROKER,
    DEFAULT_HTTP,
    DEFAULT_MODELS,
    BrokerUrl,
    ModelsFolder,
    Namespace,
    Protocol,
    check_broker_url,
    check_http_url,
    parse_address,
    readable_folder,
)
from edge_runtime.contract import limits
from edge_runtime.contract.errors import ConfigError
from edge_runtime.contract.topics import DEFAULT_NAMESPACE, require_id

if TYPE_CHECKING:
    from edge_runtime.dispatcher.api import Api, Door, HttpServer
    from edge_runtime.dispatcher.service import DispatcherService

_DEFAULT_STORE: Final = Path("dispatcher.db")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SignedModels:
    """A signed repository to serve."""

    repository: Annotated[
        Path | None,
        Parameter(help="Signed repository whose packages are served too (models init-repository)."),
    ] = None
    repository_keys: Annotated[
        tuple[Path, ...],
        Parameter(
            help="Folder with the keys of its snapshot and timestamp, which are then signed again "
            "in time; none: somebody else signs."
        ),
    ] = ()

    def check(self) -> None:
        """Raise `ConfigError` for a folder that is not there."""
        if self.repository is not None:
            readable_folder("--repository", self.repository)
        for folder in self.repository_keys:
            readable_folder("--repository-keys", folder)
        if self.repository_keys and self.repository is None:
            raise ConfigError("--repository-keys are for a --repository")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class KeptBeside:
    """What is kept beside the store."""

    backups: Annotated[
        Path | None, Parameter(help="Folder for backups over HTTP; none: not offered.")
    ] = None
    objects: Annotated[
        str | None,
        Parameter(
            help="Where inputs over the inline limit are kept: a folder, or s3://BUCKET/PREFIX "
            "with AWS_ENDPOINT_URL and credentials in the environment; none: beside the store."
        ),
    ] = None


_UNSIGNED: Final = SignedModels()
_BESIDE: Final = KeptBeside()
_TLS: Final = TlsOptions()


def dispatcher(
    *,
    broker: BrokerUrl = DEFAULT_BROKER,
    store: Annotated[Path, Parameter(help="SQLite file of jobs and results.")] = _DEFAULT_STORE,
    models: ModelsFolder = DEFAULT_MODELS,
    signed: SignedModels = _UNSIGNED,
    http: Annotated[str, Parameter(help="Address of the HTTP API, HOST:PORT.")] = DEFAULT_HTTP,
    allow_remote: Annotated[
        bool, Parameter(negative="", help="Let --http be no loopback address without accounts.")
    ] = False,
    models_url: Annotated[
        str | None,
        Parameter(help="Where cars fetch packages; none: the address of the HTTP API."),
    ] = None,
    kept: KeptBeside = _BESIDE,
    dispatcher_id: Annotated[
        str, Parameter(name="--id", help="Name of this dispatcher.")
    ] = "dispatcher",
    namespace: Namespace = DEFAULT_NAMESPACE,
    protocol: Protocol = 5,
    tls: TlsOptions = _TLS,
    signing_key: Annotated[
        Path | None,
        Parameter(help="Ed25519 key that signs what goes to cars, PEM; none: that of --identity."),
    ] = None,
) -> int:
    """Run the dispatcher until SIGTERM or SIGINT: jobs in by HTTP, work out to cars by MQTT."""
    check_broker_url("--broker", broker)
    certificates, signer = tls.settings(broker), tls.signer(signing_key)
    host, port = parse_address("--http", http)
    _check_names(dispatcher_id, namespace)
    _check_places(store, models, models_url, signed)
    allow_open_files(limits.HTTP_CONNECTIONS_MAX + limits.HTTP_FILES_RESERVED)

    async def run() -> None:
        from edge_runtime.bus import open_bus
        from edge_runtime.dispatcher.chores import Chores
        from edge_runtime.dispatcher.service import DispatcherService, DispatcherSettings
        from edge_runtime.dispatcher.storage import SqliteStore

        settings = DispatcherSettings(
            broker_url=broker,
            models_dir=models,
            repository=signed.repository,
            repository_keys=signed.repository_keys,
            dispatcher_id=dispatcher_id,
            namespace=namespace,
            protocol=protocol,
            tls=certificates,
            signer=signer,
        )
        open_fast = functools.partial(open_bus, fast=True)
        service = DispatcherService(settings, SqliteStore(store), open_fast)
        async with contextlib.AsyncExitStack() as stack:
            async with systemd.more_time():
                await stack.enter_async_context(service)
                server = await _serve(service, (host, port), store, kept, allow_remote=allow_remote)
                stack.push_async_callback(server.close)
                service.announce(models_url or server.url)
                Chores(service).start()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(limits.BUS_CONNECT_TIMEOUT_S):
                        await service.bus_tried.wait()
            await _work(service, stack)

    return run_service(run)


async def _serve(
    service: "DispatcherService",
    address: tuple[str, int],
    store: Path,
    kept: KeptBeside,
    *,
    allow_remote: bool,
) -> "HttpServer":
    """The HTTP API over a running service; beyond loopback only with accounts, or if told."""
    from edge_runtime.dispatcher.api import serve

    app, door = await open_app(service, store, kept)
    return await serve(app, *address, allow_remote=allow_remote or door.accounts.in_force)


async def open_app(
    service: "DispatcherService", store: Path, kept: KeptBeside = _BESIDE
) -> tuple["Api", "Door"]:
    """Everything that a running service answers over HTTP, and who may ask.

    Uploaded files lie in a folder beside the store, and objects where nothing else is said.
    """
    from edge_runtime.dispatcher.api import BatchDesk, build_app, open_door
    from edge_runtime.dispatcher.api.objects import ObjectRoutes, open_objects
    from edge_runtime.dispatcher.api.oip import OpenInference
    from edge_runtime.dispatcher.api.openai.embeddings import LiveEmbeddings
    from edge_runtime.dispatcher.api.openai.live import PATHS, LiveTexts
    from edge_runtime.dispatcher.dashboard import mount_dashboard
    from edge_runtime.dispatcher.desk import FrontDesk
    from edge_runtime.dispatcher.lending import Lender

    door = await open_door(service)
    beside = store.with_name(f"{store.name}-objects")
    objects = await open_objects(service, door.quotas, kept.objects, beside)
    desk = FrontDesk(service, quotas=door.quotas, objects=objects)
    files = store.with_name(f"{store.name}-files")
    batches = BatchDesk(desk, service.store, files, door.quotas, lambda: service.clock().utc_ms)
    await batches.shelf.open()
    service.spawn(batches.run)
    lender = Lender(door.quotas, service.counters)
    app = build_app(
        desk,
        backup_dir=kept.backups,
        door=door,
        mounts={"v2": OpenInference(service, lender), **dict.fromkeys(PATHS, LiveTexts(service))},
        batches=batches,
        embed=LiveEmbeddings(service),
    )
    app.mount("objects", ObjectRoutes(objects, lender, service.receive_outputs()))
    mount_dashboard(app, service, desk)
    return app, door


def _check_names(dispatcher_id: str, namespace: str) -> None:
    require_id("--id", dispatcher_id)
    require_id("--namespace", namespace)


def _check_places(store: Path, models: Path, models_url: str | None, signed: SignedModels) -> None:
    signed.check()
    if signed.repository is None or models != DEFAULT_MODELS:
        readable_folder("--models", models)
    if not store.resolve().parent.is_dir():
        raise ConfigError(f"--store {store}: its folder does not exist")
    if models_url is not None:
        check_http_url("--models-url", models_url)


async def _work(service: "DispatcherService", stack: contextlib.AsyncExitStack) -> None:
    """Say that it is ready, and go on until it fails or is stopped."""
    settle_memory()
    await stack.enter_async_context(systemd.reported(_report(service)))
    systemd.notify("READY=1")
    try:
        await service.wait_failed()
    except asyncio.CancelledError:
        # Asked to stop: the HTTP API answers on, and says that it is not ready, until cars have
        # told of what they have in hand.
        systemd.notify("STOPPING=1", "STATUS=draining")
        await service.drain()
        raise
    finally:
        systemd.notify("STOPPING=1", "STATUS=stopping")


def _report(service: "DispatcherService") -> systemd.Report:
    """What systemd is told of a dispatcher."""

    def status() -> str:
        state = service.core.state
        line = f"{len(state.jobs)} open jobs, {len(service.core.fleet)} cars"
        if service.store_state != "ok":
            line += f"; store: {service.store_state}"
        return line if service.bus.is_connected else f"{line}; no broker"

    def why_stuck() -> str | None:
        silence_s = service.store_silence_s
        if silence_s <= limits.STORE_SILENCE_MAX_S:
            return None
        return f"a commit has neither ended nor failed for {silence_s:.0f} s"

    return systemd.Report(status, why_stuck)
