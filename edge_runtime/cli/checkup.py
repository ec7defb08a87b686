"""What can be wrong with a car's installation, looked at one by one; nothing is changed.

Invariants
- A look at one thing never fails another: whatever goes wrong in it is its finding.
- Every finding that is not `OK` says what to do.
- A car that runs goes on as it is: the journal is opened for reading only, and the broker is not
  asked for a session under the car's name, which would end the running one.

Deliberately absent: looking inside the service's sandbox. What only its user may not read is found
by the service itself, and said in its log.
"""

import asyncio
import contextlib
import datetime as dt
import shutil
import sqlite3
import time
from collections.abc import Awaitable, Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from edge_runtime.contract import limits
from edge_runtime.contract.clock import PLAUSIBLE_UTC_MS
from edge_runtime.contract.errors import EdgeError
from edge_runtime.contract.reasons import HoldReason

if TYPE_CHECKING:
    from edge_runtime.bus.port import TlsSettings
    from edge_runtime.cli.commands.vehicle import VehicleOptions
    from edge_runtime.cli.sensing import SensorOptions
    from edge_runtime.vehicle.policy import OwnerPolicy

_MIB: Final = 1024 * 1024
_SYNCHRONISED: Final = Path("/run/systemd/timesync/synchronized")
_SYSTEMD: Final = Path("/run/systemd/system")
_LOCKS: Final = Path("/proc/locks")
_DEFAULT_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}
_CERTIFICATE_WARNING: Final = dt.timedelta(days=14)


class Verdict(Enum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One look: at what, what was found, and what to do about it (empty where all is well)."""

    subject: str
    verdict: Verdict
    says: str
    do: str = ""


Look = Callable[[], Awaitable[Finding]]


class Checkup:
    """Looks at the car that `options` and `sensing` describe."""

    def __init__(self, options: "VehicleOptions", sensing: "SensorOptions", settings: Path) -> None:
        self._options = options
        self._sensing = sensing
        self._settings = settings
        self._journal = options.state_dir / "journal.db"

    async def run(self, *, quick: bool) -> list[Finding]:
        """Every finding; `quick` leaves out what needs the network, the sensors or minutes."""
        looks: dict[str, Look] = {
            "settings": self._look_at_settings,
            "certificates": self._look_at_certificates,
            "policy": self._look_at_policy,
            "storage": self._look_at_storage,
            "clock": self._look_at_clock,
            "engine": self._look_at_engine,
            "tasks": self._look_at_tasks,
        }
        if not quick:
            looks |= {
                "sensors": self._look_at_sensors,
                "models": self._look_at_models,
                "broker": self._look_at_broker,
            }
        return [await _tried(subject, look) for subject, look in looks.items()]

    # --- files ---------------------------------------------------------------------------

    async def _look_at_settings(self) -> Finding:
        self._options.check()
        return _ok("settings", f"{self._options.name} at {_address(self._options.broker)}")

    async def _look_at_certificates(self) -> Finding:
        tls = self._options.who.settings(self._options.broker)
        if tls.cert is None:
            if urlsplit(self._options.broker).scheme == "mqtts":
                return _ok("certificates", "none of this car's own; it logs in by password")
            return _warning(
                "certificates",
                "the broker is spoken to in clear",
                "enrol the car (edge-runtime pki --help) and use mqtts://",
            )
        from edge_runtime.pki.authority import load_certificate
        from edge_runtime.pki.identity import validity_of

        validity = validity_of(load_certificate(tls.cert))
        now = dt.datetime.now(dt.UTC)
        until = f"{tls.cert}: {validity.name}, valid until {validity.ends:%Y-%m-%d %H:%MZ}"
        renew = "edge-runtime pki renew, and see why it was not renewed by itself"
        if now >= validity.ends:
            return _fault("certificates", until, renew)
        if now < validity.begins:
            return _fault("certificates", f"{until}, but only from {validity.begins}", "see clock")
        is_late = validity.ends - now < _CERTIFICATE_WARNING and validity.is_due(now)
        return _warning("certificates", until, renew) if is_late else _ok("certificates", until)

    async def _look_at_policy(self) -> Finding:
        policy = self._policy()
        here = f"--state-dir {self._options.state_dir} --policy {self._options.policy}"
        if isinstance(policy, HoldReason):
            return _fault(
                "policy",
                f"{self._options.policy}: no work, {policy.value}",
                f"edge-runtime owner why {here}; a complete file: edge-runtime owner policy",
            )
        if not policy.consent.given:
            return _warning(
                "policy",
                "right, but the owner has not agreed: no work",
                f"edge-runtime owner consent {here}",
            )
        if policy.paused:
            return _warning(
                "policy", "right, and paused: no work", f"edge-runtime owner resume {here}"
            )
        return _ok("policy", f"right; consent {policy.consent.version} given")

    def _policy(self) -> "OwnerPolicy | HoldReason":
        from edge_runtime.vehicle.owner_decisions import decisions_path
        from edge_runtime.vehicle.policy_file import PolicyFile

        return PolicyFile(self._options.policy, decisions_path(self._options.state_dir)).read()

    async def _look_at_storage(self) -> Finding:
        folder = self._options.state_dir
        if not folder.is_dir():
            return _warning(
                "storage",
                f"{folder} is not there yet",
                "nothing, where the service has never run: it makes it",
            )
        free = shutil.disk_usage(folder).free
        if free < limits.JOURNAL_RESERVE_BYTES:
            return _fault(
                "storage",
                f"{folder}: {free // _MIB} MiB are free, no work below "
                f"{limits.JOURNAL_RESERVE_BYTES // _MIB}",
                "make room, or lower --model-quota-bytes",
            )
        if not self._journal.exists():
            return _ok("storage", f"{folder}: {free // _MIB} MiB free, no journal yet")
        problem = await asyncio.to_thread(check_journal, self._journal)
        if problem:
            return _fault(
                "storage",
                f"{self._journal}: {problem}",
                "stop the car and move journal.db* away: what it held is done again elsewhere",
            )
        runs = "the car runs" if is_locked(self._journal) else "the car does not run"
        return _ok("storage", f"{folder}: {free // _MIB} MiB free, the journal is whole, {runs}")

    async def _look_at_models(self) -> Finding:
        from edge_runtime.contract.package import PackageRefused, parse_manifest, verify_package
        from edge_runtime.vehicle.inference.tasks.installed import why_not_installed

        folder = self._options.state_dir / "packages"
        names: list[str] = []
        for manifest in sorted(folder.glob("[0-9a-f]*/manifest.json")):
            try:
                parsed = parse_manifest(manifest.read_bytes(), manifest.parent.name)
                package = await asyncio.to_thread(
                    verify_package, manifest.parent / "package", parsed
                )
            except PackageRefused as refused:
                return _fault(
                    "models",
                    f"{manifest.parent}: {refused}",
                    "stop the car and remove that folder: it is fetched again when wanted",
                )
            names.append(package.spec.name)
            if lacks := why_not_installed(package.spec.task):
                return _warning("models", f"{package.spec.name} cannot run", lacks)
        return _ok("models", f"{len(names)} packages, all whole: {', '.join(names) or '-'}")

    # --- the computer --------------------------------------------------------------------

    async def _look_at_clock(self) -> Finding:
        utc_ms = time.time_ns() // 1_000_000
        here = f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M:%SZ}"
        advice = "have the clock set (timedatectl set-ntp true) before the car starts"
        if utc_ms < PLAUSIBLE_UTC_MS:
            return _fault("clock", f"{here} is before this program was written", advice)
        if _SYSTEMD.is_dir() and not _SYNCHRONISED.exists():
            return _warning("clock", f"{here}; systemd-timesyncd has not confirmed it", advice)
        return _ok("clock", here)

    async def _look_at_tasks(self) -> Finding:
        from edge_runtime.contract.package import KNOWN_TASKS
        from edge_runtime.vehicle.inference.tasks.installed import (
            installed_tasks,
            why_not_installed,
        )

        here = ", ".join(installed_tasks())
        lacking = [lacks for task in sorted(KNOWN_TASKS) if (lacks := why_not_installed(task))]
        # A car need not do everything: what it cannot do it does not announce.
        return _ok("tasks", "; ".join([here, *lacking]))

    async def _look_at_engine(self) -> Finding:
        from edge_runtime.vehicle.inference.engine import SupervisedEngine
        from edge_runtime.vehicle.inference.options import EngineOptions, WorkerOptions

        worker = WorkerOptions(
            provider=self._options.provider,
            memory_max_bytes=self._options.engine_memory_bytes,
            cpus=self._options.engine_cpus,
        )
        engine = SupervisedEngine(EngineOptions(worker=worker), lambda _: None)
        started_s = time.monotonic()
        try:
            async with asyncio.timeout(limits.ENGINE_START_HANG_MS / 1000):
                await engine.ensure_started()
        finally:
            await engine.close()
        took_s = time.monotonic() - started_s
        return _ok("engine", f"ONNX Runtime is ready after {took_s:.1f} s")

    async def _look_at_sensors(self) -> Finding:
        from edge_runtime.cli.sensing import make_sensors

        read: dict[str, Any] = {}
        reading = asyncio.create_task(
            make_sensors(self._sensing).run(lambda event: read.update(event.values))
        )
        await asyncio.wait({reading}, timeout=2.5 * limits.SENSOR_PERIOD_MS / 1000)
        reading.cancel()
        outcome = (await asyncio.gather(reading, return_exceptions=True))[0]
        if isinstance(outcome, Exception):
            raise outcome
        there = sorted(name for name, value in read.items() if value is not None)
        policy = self._policy()
        required = () if isinstance(policy, HoldReason) else policy.require
        missing = sorted(set(required) - set(there))
        if missing:
            return _fault(
                "sensors",
                f"the policy requires {', '.join(missing)}; read are {', '.join(there) or 'none'}",
                "name a source that has it (--sensors, --signal), or take it out of `require`",
            )
        return _ok("sensors", f"{self._sensing.sensors}: {', '.join(there) or 'no readings'}")

    # --- the network ---------------------------------------------------------------------

    async def _look_at_broker(self) -> Finding:
        options = self._options
        address = _address(options.broker)
        tls = options.who.settings(options.broker)
        if is_locked(self._journal):
            await _reach(options.broker, tls)
            return _ok("broker", f"{address} answers; the running car has the session")
        from edge_runtime.bus import BusSettings, Connected, Disconnected, open_bus

        settings = BusSettings(
            url=options.broker,
            client_id=f"{options.namespace}-{options.name}",
            protocol=options.protocol,
            session_expiry_s=0,
            tls=tls,
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.BUS_CONNECT_TIMEOUT_S), open_bus(settings) as bus:
                async for event in bus.events():
                    match event:
                        case Connected():
                            return _ok("broker", f"{address} takes this car")
                        case Disconnected(reason=reason):
                            return _no_broker(reason)
                        case _:
                            continue
        return _no_broker(f"{address}: no answer in {limits.BUS_CONNECT_TIMEOUT_S:g} s")


async def _reach(url: str, tls: "TlsSettings") -> None:
    """Open a connection, with TLS where the URL says so. Raises OSError or BusError."""
    from edge_runtime.bus.tls import tls_context

    parts = urlsplit(url)
    context = tls_context(tls) if parts.scheme == "mqtts" else None
    async with asyncio.timeout(limits.BUS_CONNECT_TIMEOUT_S):
        _, writer = await asyncio.open_connection(
            parts.hostname, parts.port or _DEFAULT_PORTS[parts.scheme], ssl=context
        )
    writer.close()
    await writer.wait_closed()


def check_journal(path: Path) -> str:
    """What is wrong with a journal, read only; empty where nothing is."""
    from edge_runtime.vehicle.journal import SCHEMA_VERSION, journal_to_read

    try:
        with journal_to_read(path) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        return str(error)
    if version > SCHEMA_VERSION:
        return f"it is of version {version}, this program reads up to {SCHEMA_VERSION}"
    return "" if said == "ok" else str(said)


def is_locked(journal: Path) -> bool:
    """Whether a car has this journal, by the kernel's list: trying its lock could keep one out."""
    try:
        number = journal.with_name(journal.name + ".lock").stat().st_ino
        locks = _LOCKS.read_text(encoding="ascii")
    except OSError:
        return False
    return any(
        "FLOCK" in line and line.split()[5].endswith(f":{number}") for line in locks.splitlines()
    )


async def _tried(subject: str, look: Look) -> Finding:
    try:
        return await look()
    except (EdgeError, OSError, sqlite3.Error, TimeoutError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        return _fault(subject, why, _ADVICE[subject])


_ADVICE: Final = {
    "settings": "correct that line of the settings",
    "certificates": "edge-runtime pki request, enroll: see edge-runtime pki --help",
    "policy": "edge-runtime owner policy prints a complete file",
    "storage": "let root, or the service's user, read that folder",
    "clock": "set the clock",
    "engine": "install the release again, or raise --engine-memory-bytes",
    "sensors": "see --sensors in edge-runtime vehicle --help",
    "models": "let root, or the service's user, read that folder",
    "broker": "check address, network and firewall; then the broker's own log",
}


def _no_broker(why: str) -> Finding:
    return _fault("broker", why, _ADVICE["broker"])


def _ok(subject: str, says: str) -> Finding:
    return Finding(subject=subject, verdict=Verdict.OK, says=says)


def _warning(subject: str, says: str, do: str) -> Finding:
    return Finding(subject=subject, verdict=Verdict.WARNING, says=says, do=do)


def _fault(subject: str, says: str, do: str) -> Finding:
    return Finding(subject=subject, verdict=Verdict.FAULT, says=says, do=do)


def _address(url: str) -> str:
    """Host and port, without the password that a URL may hold."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{parts.port or _DEFAULT_PORTS[parts.scheme]}"
