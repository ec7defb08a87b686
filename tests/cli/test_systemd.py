"""What a service tells systemd: a socket of our own listens in systemd's place."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from brokers import BrokerProcess, free_port

from edge_runtime.cli import systemd
from edge_runtime.cli.exit_codes import ExitCode

POLICY = "dwell_s = 0.2\n[consent]\ngiven = true\nversion = 1\n"
HEARD_S = 40.0


@dataclass
class Listener:
    """systemd's end of the notify socket; `heard` is every assignment so far."""

    path: Path
    socket: socket.socket
    heard: list[str]

    def until(self, wanted: str, since: int = 0) -> int:
        """Wait for an assignment that begins with `wanted`; its place."""
        deadline_s = time.monotonic() + HEARD_S
        while True:
            for place, line in enumerate(self.heard[since:], since):
                if line.startswith(wanted):
                    return place
            self.socket.settimeout(max(0.01, deadline_s - time.monotonic()))
            try:
                self.heard += self.socket.recv(4096).decode().splitlines()
            except TimeoutError:
                pytest.fail(f"{wanted!r} was not heard, only {self.heard[since:]}")


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(path))
        yield Listener(path, end, [])


@pytest.fixture
def environment(listener: Listener, tmp_path: Path) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("EDGE_RUNTIME_")}
    (tmp_path / "run").mkdir()
    return clean | {
        "NOTIFY_SOCKET": str(listener.path),
        "WATCHDOG_USEC": "2000000",
        "RUNTIME_DIRECTORY": str(tmp_path / "run"),
    }


StartService = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[StartService]:
    started: list[subprocess.Popen[bytes]] = []

    def start_service(*arguments: str) -> "subprocess.Popen[bytes]":
        with (tmp_path / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "edge_runtime", *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        started.append(process)
        return process

    yield start_service
    for process in started:
        process.kill()
        process.wait(10)


def car_arguments(folder: Path, broker_url: str) -> list[str]:
    (folder / "policy.toml").write_text(POLICY)
    return [
        "vehicle",
        "--id=car-1",
        f"--broker={broker_url}",
        f"--state-dir={folder / 'car'}",
        f"--policy={folder / 'policy.toml'}",
        "--sensors=simulated",
        f"--namespace=t{os.getpid()}",
    ]


def test_a_cars_life(
    listener: Listener, start: StartService, tmp_path: Path, embedded_broker: BrokerProcess
) -> None:
    car = start(*car_arguments(tmp_path, embedded_broker.url(5)))
    listener.until("EXTEND_TIMEOUT_USEC=")
    ready = listener.until("READY=1")
    listener.until("WATCHDOG=1", ready)
    listener.until("STATUS=ready", ready)
    asleep = tmp_path / "run" / "asleep"

    car.send_signal(signal.SIGUSR1)
    place = listener.until("STATUS=asleep", ready)
    listener.until("WATCHDOG=1", place)
    assert asleep.exists()
    car.send_signal(signal.SIGUSR1)
    listener.until("WATCHDOG=1", len(listener.heard))
    car.send_signal(signal.SIGUSR2)
    place = listener.until("STATUS=ready", place)
    assert not asleep.exists()

    (tmp_path / "policy.toml").write_text("paused = true\n" + POLICY)
    car.send_signal(signal.SIGHUP)
    place = listener.until("RELOADING=1", place)
    listener.until("MONOTONIC_USEC=", place)
    place = listener.until("READY=1", place)
    listener.until("STATUS=hold: owner_paused", place)

    car.send_signal(signal.SIGTERM)
    listener.until("STOPPING=1", place)
    assert car.wait(10) == ExitCode.DONE
    assert "goodbye_unheard" not in (tmp_path / "log").read_text()


def test_a_car_without_a_broker_is_ready_and_says_so(
    listener: Listener, start: StartService, tmp_path: Path
) -> None:
    car = start(*car_arguments(tmp_path, f"mqtt://127.0.0.1:{free_port()}"))
    listener.until("READY=1")
    assert listener.heard[listener.until("STATUS=ready")].endswith("; no broker")
    car.send_signal(signal.SIGTERM)
    assert car.wait(10) == ExitCode.DONE


def test_a_dispatchers_life(
    listener: Listener, start: StartService, tmp_path: Path, embedded_broker: BrokerProcess
) -> None:
    (tmp_path / "models").mkdir()
    dispatcher = start(
        "dispatcher",
        f"--broker={embedded_broker.url(5)}",
        f"--store={tmp_path / 'store.db'}",
        f"--models={tmp_path / 'models'}",
        f"--http=127.0.0.1:{free_port()}",
        f"--namespace=t{os.getpid()}",
    )
    ready = listener.until("READY=1")
    listener.until("STATUS=0 open jobs, 0 cars", ready)
    listener.until("WATCHDOG=1", ready)
    dispatcher.send_signal(signal.SIGTERM)
    listener.until("STOPPING=1", ready)
    assert dispatcher.wait(10) == ExitCode.DONE


async def test_a_service_that_does_not_get_on_starves_the_watchdog(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(listener.path))
    monkeypatch.setenv("WATCHDOG_USEC", "40000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    stuck: list[str] = []
    looks: asyncio.Queue[bool] = asyncio.Queue()

    def why_stuck() -> str | None:
        looks.put_nowait(bool(stuck))
        return stuck[0] if stuck else None

    async def look(times: int, *, is_stuck: bool) -> None:
        while times:
            times -= await asyncio.wait_for(looks.get(), HEARD_S) is is_stuck

    def fed() -> int:
        listener.socket.setblocking(False)
        try:
            while True:
                listener.heard.append(listener.socket.recv(4096).decode())
        except BlockingIOError:
            return listener.heard.count("WATCHDOG=1")

    async with systemd.reported(systemd.Report(lambda: "line\nbreak", why_stuck)):
        await look(3, is_stuck=False)
        stuck.append("the engine is silent")
        await look(1, is_stuck=True)
        before = fed()
        assert before >= 2
        await look(4, is_stuck=True)
        assert fed() == before
        stuck.clear()
        await look(2, is_stuck=False)
        assert fed() > before
    assert listener.heard.count("STATUS=line break") == 1


@pytest.mark.parametrize(
    ("usec", "pid", "period_s"),
    [
        ("20000000", "", 10.0),
        ("20000000", "1", None),
        ("", "", None),
        ("0", "", None),
        ("-5", "", None),
        ("soon", "", None),
    ],
)
def test_the_watchdogs_period(
    monkeypatch: pytest.MonkeyPatch, usec: str, pid: str, period_s: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    assert systemd.watchdog_period_s() == period_s


@pytest.mark.parametrize("address", ["", "@nobody-listens-here", "/nowhere/at/all"])
def test_nobody_to_tell_is_no_error(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert systemd.is_listening() is bool(address)
    systemd.notify("READY=1", "STATUS=here")
