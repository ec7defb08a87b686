"""The computer of the system tests: a container in which both services are installed."""

import secrets
from dataclasses import dataclass

from brokers import BrokerProcess
from container import Container

VEHICLE = "edge-runtime-vehicle.service"
DISPATCHER = "edge-runtime-dispatcher.service"
POLICY = "dwell_s = 0.2\n[consent]\ngiven = true\nversion = 1\n"


@dataclass
class Computer:
    """The container, and where its dispatcher answers on this machine too."""

    inside: Container
    broker: BrokerProcess
    url: str

    def status(self, unit: str) -> str:
        return self.inside.property(unit, "StatusText")

    def main_pid(self, unit: str) -> int:
        """The service's main process, as numbered inside."""
        return int(self.inside.property(unit, "MainPID"))

    def processes(self, unit: str) -> set[int]:
        """Every process of the service, as numbered inside; none once it has ended."""
        group = self.inside.property(unit, "ControlGroup")
        if not group:
            return set()
        script = f"cat /sys/fs/cgroup{group}/cgroup.procs /sys/fs/cgroup/*{group}/cgroup.procs"
        return {int(pid) for pid in self.inside.run("sh", "-c", script, check=False).stdout.split()}

    def signal(self, unit: str, name: str) -> None:
        """Send a signal to the service's main process."""
        self.inside.run("systemctl", "kill", "--kill-who=main", f"--signal={name}", unit)

    def restarts(self, unit: str) -> int:
        return int(self.inside.property(unit, "NRestarts"))

    def is_alive(self, pid: int) -> bool:
        return self.inside.run("test", "-d", f"/proc/{pid}", check=False).returncode == 0

    def start(self, *units: str) -> None:
        """Start and wait for READY=1: `systemctl start` returns with it."""
        self.inside.run("systemctl", "reset-failed", *units, check=False)
        done = self.inside.run("systemctl", "start", *units, check=False)
        journals = [self.inside.journal(unit)[-3_000:] for unit in units]
        assert not done.returncode, "\n".join([done.stderr, *journals])

    def stop(self, *units: str) -> None:
        self.inside.run("systemctl", "stop", *units)


def configure(computer: Computer, port: int) -> None:
    """Both services on the broker outside, in a namespace that no other test uses."""
    shared = f'broker = "{computer.broker.url(5)}"\nnamespace = "t{secrets.token_hex(4)}"\n'
    write = computer.inside.write
    write("/etc/edge-runtime/policy.toml", POLICY)
    write(
        "/etc/edge-runtime/vehicle.toml",
        f'[vehicle]\nid = "car-1"\n{shared}state-dir = "/var/lib/edge-runtime"\n'
        'policy = "/etc/edge-runtime/policy.toml"\nsensors = "simulated"\n',
    )
    write(
        "/etc/edge-runtime/dispatcher.toml",
        f'[dispatcher]\n{shared}http = "127.0.0.1:{port}"\nmodels = "/srv/edge-runtime/models"\n'
        'store = "/var/lib/edge-runtime-dispatcher/store.db"\n',
    )
    for unit in (VEHICLE, DISPATCHER):
        computer.inside.write(
            f"/etc/systemd/system/{unit}.d/quick.conf",
            # A watchdog that waits for 20 s is tested as well by one that waits for 4.
            "[Service]\nWatchdogSec=4\nRestartSec=100ms\n",
        )
    computer.inside.run("systemctl", "daemon-reload")
