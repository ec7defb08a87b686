"""Services started by hand from the command line, as the README has it, each killed by its pid."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from brokers import free_port

POLICY = "dwell_s = 0.2\n[consent]\ngiven = true\nversion = 1\n"


@dataclass
class Service:
    """One `edge-runtime` command that runs until it is ended."""

    name: str
    arguments: list[str]
    folder: Path
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def start(self) -> Self:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("EDGE_RUNTIME_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edge_runtime", *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean,
            )
        return self

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stopped by SIGSTOP while the block runs."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None


@dataclass
class FourProcesses:
    """A broker, a dispatcher and two cars."""

    broker: Service
    dispatcher: Service
    cars: list[Service]
    url: str
    store: Path

    @property
    def all(self) -> list[Service]:
        return [self.broker, self.dispatcher, *self.cars]


@contextmanager
def four_processes(
    folder: Path,
    models: Path,
    cars: tuple[str, ...] = ("car-1", "car-2"),
    *,
    for_dispatcher: tuple[str, ...] = (),
    for_cars: tuple[str, ...] = (),
) -> Iterator[FourProcesses]:
    """All four (or fewer cars), started; none is left afterwards. `for_…` are more arguments."""
    mqtt, http = free_port(), free_port()
    broker_url = f"mqtt://127.0.0.1:{mqtt}"
    policy = folder / "policy.toml"
    policy.write_text(POLICY)
    store = folder / "dispatcher.db"
    four = FourProcesses(
        broker=Service("broker", ["broker", f"--port={mqtt}"], folder),
        dispatcher=Service(
            "dispatcher",
            [
                "dispatcher",
                f"--broker={broker_url}",
                f"--store={store}",
                f"--models={models}",
                f"--http=127.0.0.1:{http}",
                f"--backups={folder / 'backups'}",
                *for_dispatcher,
            ],
            folder,
        ),
        cars=[
            Service(
                name,
                [
                    "vehicle",
                    f"--id={name}",
                    f"--broker={broker_url}",
                    f"--state-dir={folder / name}",
                    f"--policy={policy}",
                    "--sensors=simulated",
                    *for_cars,
                ],
                folder,
            )
            for name in cars
        ],
        url=f"http://127.0.0.1:{http}",
        store=store,
    )
    with ExitStack() as stack:
        for service in four.all:
            service.start()
            stack.callback(service.kill)
        yield four
