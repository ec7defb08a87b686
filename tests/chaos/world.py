"""The processes of a campaign: Mosquitto, dispatcher, cars, requester, and what is between them.

Everything runs in one folder, so that what is left of a run is known by its working folder.
A service that ends is started again, as systemd would; one that ends by itself while nothing was
done to its disk is a death, which the checker is told of.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil
from observer import Observer
from wire import Wire
from workload import ENDLESS, REAL_MODEL, WIDTHS

from edge_runtime.vehicle.models.importers.synthetic import write_synthetic

REPOSITORY = Path(__file__).parents[2]
HURRIED = Path(__file__).with_name("hurried.py")
REQUESTER = Path(__file__).with_name("requester.py")
REAL_MODELS = REPOSITORY / ".data" / "models"
WORKER = "edge_runtime.vehicle.inference.worker"
START_S = 60.0
CAR_DISK_BYTES = 160 * 1024 * 1024
STORE_DISK_BYTES = 1024 * 1024 * 1024
CONSENT = "dwell_s = 0.2\n[consent]\ngiven = {}\nversion = {}\n"
PERSISTENT = ("persistence true", "autosave_interval 2")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


class Service:
    """One process that is started again whenever it ends, until `stop`."""

    def __init__(
        self, name: str, argv: list[str], folder: Path, *, takes_input: bool = False
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.lock = asyncio.Lock()
        """Held by whoever does something to it."""
        self.starts = 0
        self.deaths: list[str] = []
        self.excused_until_s = 0.0
        self._argv = argv
        self._folder = folder
        self._takes_input = takes_input
        self._is_wanted = False
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("EDGE_RUNTIME_")}
        paths = os.pathsep.join(map(str, (HURRIED.parent, REPOSITORY)))
        self._is_wanted = True
        self.starts += 1
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._argv,
                stdin=subprocess.PIPE if self._takes_input else subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env=kept | {"TMPDIR": str(self._folder / "tmp"), "PYTHONPATH": paths},
            )
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, as a crash; not started again by this."""
        if self.process is not None:
            self._is_wanted = False
            self.process.kill()
            self.process.wait(10)
            self._close_input()

    def tell(self, line: bytes) -> None:
        """Write to its stdin; a process that has just gone hears nothing."""
        assert self.process is not None
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):
            self.process.stdin.write(line + b"\n")
            self.process.stdin.flush()

    def stop(self, patience_s: float = 30.0) -> int:
        """SIGTERM; the exit code, -9 where it took longer than `patience_s`."""
        assert self.process is not None
        self._is_wanted = False
        self.send(signal.SIGTERM)
        try:
            code = self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait(10)
        self._close_input()
        return code

    def revive(self) -> None:
        """Start it again where it ended by itself; a death unless excused."""
        if not self._is_wanted or self.is_running:
            return
        assert self.process is not None
        if time.monotonic() > self.excused_until_s:
            self.deaths.append(f"{self.name} ended with code {self.process.returncode}")
        self._close_input()
        self.start()

    def _close_input(self) -> None:
        if self.process is not None and self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()


class Disk:
    """A folder on a file system of its own where we may mount one, else with a file-size limit."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
        self.is_mounted = (
            os.geteuid() == 0
            and subprocess.run(command, check=False, capture_output=True).returncode == 0
        )
        self._filler = folder / "filler"

    @property
    def kind(self) -> str:
        return "tmpfs" if self.is_mounted else "rlimit"

    def fill(self, service: Service) -> None:
        """Leave nothing: the next write of its service fails."""
        if not self.is_mounted:
            self._limit(service, 1)
            return
        with self._filler.open("wb") as file, contextlib.suppress(OSError):
            block = 1 << 24
            while block >= 512:
                try:
                    os.posix_fallocate(file.fileno(), file.tell(), block)
                    file.seek(block, os.SEEK_CUR)
                except OSError:
                    block //= 2

    def free(self, service: Service) -> None:
        self._filler.unlink(missing_ok=True)
        if not self.is_mounted:
            self._limit(service, psutil.RLIM_INFINITY)

    def _limit(self, service: Service, size_bytes: int) -> None:
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            limits = (size_bytes, psutil.RLIM_INFINITY)
            psutil.Process(service.pid).rlimit(psutil.RLIMIT_FSIZE, limits)

    def close(self) -> None:
        """Keep the files, without the file system."""
        if not self.is_mounted:
            return
        kept = self.folder.with_name(self.folder.name + ".kept")
        self._filler.unlink(missing_ok=True)
        shutil.copytree(self.folder, kept, ignore=shutil.ignore_patterns("packages"))
        subprocess.run(["umount", str(self.folder)], check=True, capture_output=True)
        self.folder.rmdir()
        kept.rename(self.folder)


@dataclass
class Shape:
    """How large a campaign is."""

    folder: Path
    seed: int
    cars: int = 3
    open_jobs: int = 6
    large_items: int = 1_000
    has_real_model: bool = False


@dataclass
class World:
    """All of it. Enter `running` before anything else."""

    shape: Shape

    def __post_init__(self) -> None:
        folder = self.shape.folder
        (folder / "tmp").mkdir(parents=True)
        self.models = folder / "models"
        for name in ("noop", *WIDTHS, ENDLESS):
            write_synthetic(name, self.models)
        if self.shape.has_real_model:
            shutil.copytree(REAL_MODELS / REAL_MODEL, self.models / REAL_MODEL)
        self.broker_port, self.http_port = free_port(), free_port()
        self.mqtt_wire, self.http_wire = Wire(self.broker_port), Wire(self.http_port)
        self.broker = Service("broker", self._broker_argv(), folder)
        self.broker_data = folder / "broker-data"
        self.broker_data.mkdir()
        self.dispatcher: Service
        self.requester: Service
        self.cars: dict[str, Service] = {}
        self.disks: dict[str, Disk] = {}
        self.observer: Observer

    @property
    def services(self) -> list[Service]:
        return [self.broker, self.dispatcher, *self.cars.values(), self.requester]

    def _broker_argv(self) -> list[str]:
        found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
        assert found is not None, "chaos needs a real Mosquitto"
        shipped = (REPOSITORY / "broker/mosquitto.conf").read_text().splitlines()
        limits = [line for line in shipped if line.startswith(("max_", "set_tcp", "queue_qos0"))]
        lines = [
            f"listener {self.broker_port} 127.0.0.1",
            "allow_anonymous true",
            *limits,
            *PERSISTENT,
            f"persistence_location {self.shape.folder}/broker-data/",
            *(["user root"] if os.geteuid() == 0 else []),
        ]
        configuration = self.shape.folder / "mosquitto.conf"
        configuration.write_text("\n".join([*lines, ""]))
        return [found, "-c", str(configuration)]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Started; whatever happens, no process and no mount is left by us."""
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self.mqtt_wire)
            await stack.enter_async_context(self.http_wire)
            self._make_services(stack)
            for service in self.services:
                stack.callback(service.kill)
            self.broker.start()
            await self.until("broker", lambda: accepts(self.broker_port))
            self.observer = Observer(self.broker_port)
            stack.callback(self.observer.close)
            for service in self.services[1:]:
                service.start()
            watcher = asyncio.create_task(self._keep_up())
            try:
                yield self
            finally:
                watcher.cancel()

    def _make_services(self, stack: contextlib.AsyncExitStack) -> None:
        folder, run = self.shape.folder, [sys.executable, str(HURRIED)]
        broker_url = f"mqtt://127.0.0.1:{self.mqtt_wire.port}"
        names = [f"car-{number}" for number in range(1, self.shape.cars + 1)]
        for name in ("store", *names):
            size_bytes = STORE_DISK_BYTES if name == "store" else CAR_DISK_BYTES
            self.disks[name] = Disk(folder / name, size_bytes)
            stack.callback(self.disks[name].close)
        arguments = [
            "dispatcher",
            f"--broker={broker_url}",
            f"--store={self.store}",
            f"--models={self.models}",
            f"--http=127.0.0.1:{self.http_port}",
            f"--models-url=http://127.0.0.1:{self.http_wire.port}",
        ]
        self.dispatcher = Service("dispatcher", [*run, *arguments], folder)
        for name in names:
            self.consent(name, given=True)
            arguments = [
                "vehicle",
                f"--id={name}",
                f"--broker={broker_url}",
                f"--state-dir={folder / name}",
                f"--policy={folder / name}.toml",
                "--sensors=simulated",
                "--sensor-commands",
                # One car speaks MQTT 3.1.1: nothing relies on what 5 adds.
                f"--protocol={4 if name == names[-1] else 5}",
            ]
            self.cars[name] = Service(name, [*run, *arguments], folder, takes_input=True)
        arguments = [
            str(REQUESTER),
            f"--url=http://127.0.0.1:{self.http_wire.port}",
            f"--folder={folder}",
            f"--seed={self.shape.seed}",
            f"--open-jobs={self.shape.open_jobs}",
            f"--large-items={self.shape.large_items}",
            *(["--real-model"] if self.shape.has_real_model else []),
        ]
        self.requester = Service("requester", [*run, *arguments], folder)

    @property
    def store(self) -> Path:
        return self.shape.folder / "store" / "dispatcher.db"

    @property
    def notes(self) -> Path:
        return self.shape.folder / "requester.jsonl"

    def journal(self, car: str) -> Path:
        return self.shape.folder / car / "journal.db"

    def consent(self, car: str, *, given: bool) -> None:
        """The owner's file, replaced whole."""
        path = self.shape.folder / f"{car}.toml"
        part = path.with_suffix(".part")
        part.write_text(CONSENT.format(str(given).lower(), 1 if given else 2))
        part.replace(path)

    async def _keep_up(self) -> None:
        while True:
            for service in self.services:
                if not service.lock.locked():
                    service.revive()
            await asyncio.sleep(0.1)

    async def until(self, what: str, is_so: Callable[[], bool], timeout_s: float = START_S) -> None:
        """Wait for a condition; TimeoutError names it."""
        deadline_s = time.monotonic() + timeout_s
        while not is_so():
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"no {what} within {timeout_s:g} s")
            await asyncio.sleep(0.05)

    def engine_of(self, car: str) -> psutil.Process | None:
        """The car's inference process, where it has one now."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.cars[car].pid).children():
                if WORKER in child.cmdline():
                    return child
        return None

    def left_over(self) -> list[str]:
        """Processes that stand in this run's folder."""
        return [
            f"{process.pid} {' '.join(process.cmdline())[:200]}"
            for process in _standing_in(self.shape.folder)
        ]


def _standing_in(folder: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and Path(process.cwd()).is_relative_to(folder):
                yield process
