"""A deployment as `edge-runtime pki init` makes it, with a real Mosquitto on ephemeral ports."""

import contextlib
import os
import pwd
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brokers import BrokerProcess, _mosquitto

from edge_runtime.bus import BusSettings, TlsSettings
from edge_runtime.pki.authority import Authority, Grant, Role
from edge_runtime.pki.broker_files import CONFIGURATION, BrokerLayout
from edge_runtime.pki.house import House, build_house, enrol
from edge_runtime.pki.identity import IdentityFolder

HOSTS = ("localhost", "127.0.0.1")


@dataclass
class MtlsBroker:
    """`connection(name)` is how a car connects, `service()` how a dispatcher does."""

    house: House
    authority: Authority
    process: BrokerProcess
    layout: BrokerLayout

    def tls(self, folder: Path) -> TlsSettings:
        identity = IdentityFolder(folder)
        return TlsSettings(identity.ca, identity.identity)

    def enrol(self, name: str, role: Role = Role.CAR, folder: Path | None = None) -> Path:
        """An identity's folder."""
        folder = folder or self.house.car(name)
        enrol(self.authority, folder, Grant(role, name, 90))
        return folder

    def connection(
        self, name: str, *filters: str, identity: Path | None = None, **changes: Any
    ) -> BusSettings:
        """As a car of this name, or with another identity under this client id."""
        values: dict[str, Any] = {
            "client_id": name,
            "session_expiry_s": 0,
            "subscriptions": tuple((topic_filter, 1) for topic_filter in filters),
            "tls": self.tls(identity or self.house.car(name)),
        }
        return BusSettings(**({"url": self.url(self.layout.cars_port)} | values | changes))

    def service(self, *filters: str, **changes: Any) -> BusSettings:
        """As the dispatcher."""
        changes = {"url": self.services_url} | changes
        return self.connection("er-dispatcher", *filters, identity=self.house.dispatcher, **changes)

    @property
    def services_url(self) -> str:
        return self.url(self.layout.services_port)

    def url(self, port: int, host: str = "localhost") -> str:
        return f"mqtts://{host}:{port}"

    def add_tenant(self, user: str, password: str) -> None:
        """As an operator does; Mosquitto reads the passwords again."""
        tenants = self.house.broker / "tenants.passwd"
        tenants.write_text(f"{user}:{password}\n")
        subprocess.run(["mosquitto_passwd", "-U", tenants], check=True, capture_output=True)
        self.reload()

    def listen_everywhere(self) -> None:
        """Not only on 127.0.0.1, from the next start on."""
        conf = self.house.broker / CONFIGURATION
        conf.write_text(conf.read_text().replace(" 127.0.0.1\n", " 0.0.0.0\n"))

    def reload(self) -> None:
        """SIGHUP."""
        assert self.process.process is not None
        os.kill(self.process.process.pid, signal.SIGHUP)

    def restart(self) -> None:
        assert self.process.process is not None
        self.process.process.terminate()
        self.process.process.wait(10)
        self.process.start()


def _free_ports(count: int) -> list[int]:
    """Different ones: none is given back before all are drawn."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def make_mtls(folder: Path) -> MtlsBroker:
    """Authorities, broker files and two cars; the broker is not started yet."""
    house = House(folder / "house")
    cars_port, services_port, tenants_port = _free_ports(3)
    layout = BrokerLayout(
        folder=str(house.broker),
        data=str(house.broker / "data"),
        user=pwd.getpwuid(os.geteuid()).pw_name,
        cars_port=cars_port,
        services_port=services_port,
        tenants_port=tenants_port,
        address="127.0.0.1",
    )
    authority = build_house(house, layout, HOSTS, None)
    ports = {5: layout.cars_port, 4: layout.services_port, 0: layout.tenants_port}
    process = _mosquitto(folder, house.broker / CONFIGURATION, ports)
    broker = MtlsBroker(house, authority, process, layout)
    for name in ("car-1", "car-2"):
        broker.enrol(name)
    return broker
