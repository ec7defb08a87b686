"""A Mosquitto as `pki init` sets it up, with tenants' accounts; a dispatcher and a car on it."""

import asyncio
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from brokers import BrokerProcess, _mosquitto, free_port
from services import POLICY, Service

from edge_runtime.bus import TlsSettings
from edge_runtime.client import EdgeClient, Subscription
from edge_runtime.client.subscription_state import Entry, JobResult
from edge_runtime.contract.http import ItemInput
from edge_runtime.contract.messages import JobStatus
from edge_runtime.contract.tensors import from_numpy
from edge_runtime.pki.tenants import Account, add_account
from edge_runtime.vehicle.models.importers.synthetic import write_synthetic

TENANT = "acme"
STRANGER = "other"


@dataclass
class Stack:
    """Real processes; `accounts` log in at `url(...)`, whose certificate `ca` signs."""

    folder: Path
    broker: BrokerProcess
    dispatcher: Service
    car: Service
    tenants_port: int
    http: str
    accounts: dict[str, Account] = field(default_factory=dict)

    @property
    def house(self) -> Path:
        return self.folder / "house"

    @property
    def ca(self) -> Path:
        return self.house / "dispatcher" / "ca.pem"

    def url(self, account: Account) -> str:
        return f"mqtts://{account.user}:{account.password}@localhost:{self.tenants_port}"

    def add(self, tenant: str, reader: str | None = None) -> Account:
        """A new account, known to the broker."""
        account = add_account(self.house / "broker", tenant, reader)
        self.reload()
        self.accounts[account.user] = account
        return account

    def reload(self) -> None:
        assert self.broker.process is not None
        os.kill(self.broker.process.pid, signal.SIGHUP)

    def restart_dispatcher(self) -> None:
        """SIGKILL, and again."""
        self.dispatcher.kill()
        self.dispatcher.start()

    def subscription(
        self, account: Account, tenant: str = TENANT, **options: object
    ) -> Subscription:
        tls = TlsSettings(ca=self.ca)
        return Subscription(self.url(account), tenant, tls=tls, **options)  # type: ignore[arg-type]

    def client(self, tenant: str = TENANT) -> EdgeClient:
        return EdgeClient(self.http, tenant=tenant)

    def tls_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca))


@contextmanager
def subscribe_stack(folder: Path) -> Iterator[Stack]:
    """Started, and nothing is left of it afterwards."""
    ports = _distinct_ports(4)
    cars, services, tenants, http = ports
    run = [
        sys.executable,
        "-m",
        "edge_runtime",
        "pki",
        "init",
        "house",
        "--broker-host",
        "localhost",
    ]
    run += ["--enroll", "car-1", "--cars-port", f"{cars}", "--services-port", f"{services}"]
    subprocess.run(
        [*run, "--tenants-port", f"{tenants}"], check=True, cwd=folder, capture_output=True
    )
    write_synthetic("noop", folder / "models")
    (folder / "policy.toml").write_text(POLICY)
    configuration = folder / "house" / "broker" / "mosquitto.conf"
    broker = _mosquitto(folder, configuration, {5: tenants, 4: tenants, 0: cars, 1: services})
    house = folder / "house"
    dispatcher = ["dispatcher", f"--broker=mqtts://localhost:{services}"]
    dispatcher += [f"--identity={house}/dispatcher", f"--store={folder}/dispatcher.db"]
    dispatcher += [f"--models={folder}/models", f"--backups={folder}/backups"]
    car = ["vehicle", "--id=car-1", f"--broker=mqtts://localhost:{cars}"]
    car += [f"--state-dir={folder}/car-1", f"--identity={house}/cars/car-1"]
    car += [f"--policy={folder}/policy.toml", "--sensors=simulated"]
    stack = Stack(
        folder=folder,
        broker=broker,
        dispatcher=Service(
            "dispatcher",
            [*dispatcher, f"--http=127.0.0.1:{http}"],
            folder,
        ),
        car=Service("car", car, folder),
        tenants_port=tenants,
        http=f"http://127.0.0.1:{http}",
    )
    with ExitStack() as running:
        broker.start()
        running.callback(broker.kill)
        for service in (stack.dispatcher, stack.car):
            service.start()
            running.callback(service.kill)
        yield stack


def _distinct_ports(count: int) -> list[int]:
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


def noop_items(count: int) -> list[ItemInput]:
    """Items of the model that gives its input back."""
    data = [
        msgspec.msgpack.encode([from_numpy("x", np.full(1, number, np.float32))])
        for number in range(count)
    ]
    return [ItemInput(media_type="application/x-msgpack", data=one) for one in data]


def is_final(entry: Entry) -> bool:
    return isinstance(entry, JobStatus) and entry.state.is_terminal


def cursors_of(entries: list[Entry], job: str) -> list[int]:
    return [e.result.cursor for e in entries if isinstance(e, JobResult) and e.job == job]


async def read_to_end(subscription: Subscription, job: str, timeout_s: float = 90) -> list[Entry]:
    """Until the final status of `job`."""
    entries: list[Entry] = []
    async with asyncio.timeout(timeout_s):
        async for entry in subscription:
            entries.append(entry)
            if is_final(entry) and entry.job == job:  # type: ignore[union-attr]  # a status
                break
    return entries


async def submitted(stack: Stack, items: int, tenant: str = TENANT) -> str:
    """A job's id."""
    async with stack.client(tenant) as client:
        return (await client.submit("noop", noop_items(items))).job
