"""Real brokers for tests: each its own process on ephemeral ports, ended by its pid.

Fixtures (one process per session and xdist worker): `embedded_broker`, `mosquitto_broker`
(anonymous) and `mosquitto_guarded` (the passwords and ACLs of broker/). A test that kills its
broker makes its own `BrokerProcess`.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest

REPOSITORY = Path(__file__).parent.parent
START_TIMEOUT_S = 20.0


def find_mosquitto() -> str | None:
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("mosquitto") is None or find_mosquitto() is not None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail("Mosquitto is missing, and CI tests on it")
    pytest.skip("Mosquitto is not installed")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class BrokerProcess:
    """A broker that can be killed and started again on the same ports."""

    kind: str
    argv: list[str]
    ports: dict[int, int]
    """MQTT protocol (5 or 4) -> port."""
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None)

    def url(self, protocol: int, user: str | None = None, password: str = "secret") -> str:  # noqa: S107 - a test's own password
        login = "" if user is None else f"{user}:{password}@"
        return f"mqtt://{login}127.0.0.1:{self.ports[protocol]}"

    def start(self) -> Self:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.argv, stdout=log, stderr=log)
        deadline = time.monotonic() + START_TIMEOUT_S
        for port in set(self.ports.values()):
            while not _accepts(port):
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.kill()
                    pytest.fail(f"{self.argv} did not start: {self.log.read_text()[-2000:]}")
                time.sleep(0.01)
        return self

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def make_embedded(folder: Path) -> BrokerProcess:
    ports = {5: free_port(), 4: free_port()}
    argv = [
        sys.executable,
        "-m",
        "edge_runtime.bus.embedded",
        f"--port={ports[5]}",
        f"--port-311={ports[4]}",
        f"--parent={os.getpid()}",
    ]
    return BrokerProcess("embedded", argv, ports, folder / "embedded.log")


def make_mosquitto(folder: Path, *lines: str) -> BrokerProcess:
    """An anonymous Mosquitto with the limits of broker/mosquitto.conf and further `lines`."""
    port = free_port()
    configuration = folder / "mosquitto.conf"
    limits = [
        line
        for line in (REPOSITORY / "broker/mosquitto.conf").read_text().splitlines()
        if line.startswith(("max_", "set_tcp_nodelay", "queue_qos0"))
        and not any(other.split()[0] == line.split()[0] for other in lines)
    ]
    configuration.write_text(
        "\n".join([f"listener {port} 127.0.0.1", "allow_anonymous true", *limits, *lines, ""])
    )
    return _mosquitto(folder, configuration, {5: port, 4: port})


def make_guarded(folder: Path, cars: list[str], services: list[str]) -> tuple[BrokerProcess, int]:
    """Mosquitto with broker/mosquitto.conf itself; the broker (services) and the cars' port.

    Every password is "secret"; only paths and ports differ from the shipped file.
    """
    ports = {"1883": free_port(), "1884": free_port()}
    text = (REPOSITORY / "broker/mosquitto.conf").read_text()
    for standard, port in ports.items():
        text = text.replace(f"listener {standard}", f"listener {port} 127.0.0.1")
    text = text.replace("/etc/mosquitto/edge-runtime/acl", f"{REPOSITORY}/broker/acl")
    text = text.replace("/etc/mosquitto/edge-runtime", str(folder))
    text = text.replace("/var/lib/mosquitto/", f"{folder}/")
    for name, users in (("cars", cars), ("services", services)):
        passwords = folder / f"{name}.passwd"
        passwords.write_text("".join(f"{user}:secret\n" for user in users))
        subprocess.run(["mosquitto_passwd", "-U", passwords], check=True, capture_output=True)
    configuration = folder / "mosquitto.conf"
    # A Mosquitto that starts as root becomes `mosquitto`, who may not read this folder.
    configuration.write_text(text + "\nuser root\n")
    services_port = ports["1884"]
    process = _mosquitto(folder, configuration, {5: services_port, 4: services_port})
    return process, ports["1883"]


def _mosquitto(folder: Path, configuration: Path, ports: dict[int, int]) -> BrokerProcess:
    executable = find_mosquitto()
    assert executable is not None, "mark the test with `mosquitto`"
    argv = [executable, "-c", str(configuration)]
    return BrokerProcess("mosquitto", argv, ports, folder / "mosquitto.log")


@pytest.fixture(scope="session")
def embedded_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    broker = make_embedded(tmp_path_factory.mktemp("embedded")).start()
    yield broker
    broker.kill()


@pytest.fixture(scope="session")
def mosquitto_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    broker = make_mosquitto(tmp_path_factory.mktemp("mosquitto")).start()
    yield broker
    broker.kill()


@dataclass
class GuardedBroker:
    """Mosquitto with the shipped ACLs; `car_url` and `service_url` log in with the password."""

    services: BrokerProcess
    cars_port: int

    def car_url(self, vehicle: str, password: str = "secret") -> str:  # noqa: S107 - a test's own password
        return f"mqtt://{vehicle}:{password}@127.0.0.1:{self.cars_port}"

    def service_url(self, user: str, password: str = "secret") -> str:  # noqa: S107 - a test's own password
        return self.services.url(5, user, password)


GUARDED_CARS = ["car-a", "car-b"]
GUARDED_SERVICES = ["dispatcher", "tenant-demo", "tenant-other"]


@pytest.fixture(scope="session")
def mosquitto_guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedBroker]:
    folder = tmp_path_factory.mktemp("guarded")
    process, cars_port = make_guarded(folder, GUARDED_CARS, GUARDED_SERVICES)
    process.start()
    yield GuardedBroker(process, cars_port)
    process.kill()
