"""The agent as a process, on a real broker: killed, started again, idle, and asked to end."""

import contextlib
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from agent_rig import POLICY, VEHICLE, is_ready
from brokers import BrokerProcess
from scripted_dispatcher import (
    ScriptedDispatcher,
    row,
    scripted_dispatcher,
    tensor,
    unit_offer,
)

from edge_runtime.bus import open_bus
from edge_runtime.contract import limits
from edge_runtime.contract.messages import Birth, ItemFailed, Offline
from edge_runtime.contract.package import Package
from edge_runtime.contract.reasons import HoldReason, ItemError, ReleaseReason
from edge_runtime.vehicle.models.store import PackageStore

HERE = Path(__file__).parent
Make = Callable[[str], Package]


@dataclass
class CarProcess:
    """One car, life after life."""

    folder: Path
    broker_url: str
    namespace: str = field(default_factory=lambda: f"t{secrets.token_hex(4)}")
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    str(HERE / "agent_process.py"),
                    str(self.folder),
                    self.broker_url,
                    self.namespace,
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def command(self, line: bytes) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def end(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(timeout=20)
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process = None
        return code


@pytest.fixture
def car(tmp_path: Path, embedded_broker: BrokerProcess) -> Iterator[CarProcess]:
    (tmp_path / "policy.toml").write_text(POLICY)
    process = CarProcess(tmp_path, embedded_broker.url(5))
    yield process
    if process.process is not None:
        process.end(signal.SIGKILL)


@contextlib.asynccontextmanager
async def dispatcher_of(car: CarProcess) -> AsyncIterator[ScriptedDispatcher]:
    async with scripted_dispatcher(open_bus, car.broker_url, VEHICLE, car.namespace) as peer:
        yield peer


async def stock(car: CarProcess, package: Package) -> None:
    store = PackageStore(car.folder / "car" / "models", 1 << 30)
    await store.add(package.folder)
    await store.close()  # or the car's process may not have the folder


async def test_a_killed_car_gives_its_work_back_and_blames_the_item_in_hand(
    car: CarProcess, synthetic: Make
) -> None:
    chain = synthetic("chain")
    await stock(car, chain)
    async with dispatcher_of(car) as peer:
        car.start()
        await peer.until(lambda: is_ready(peer))
        first = peer.statuses[-1]
        peer.answers_chunks = False
        peer.offer(*(unit_offer(chain, [row(160)] * 100, unit) for unit in (1, 2)))
        await peer.until(peer.of)
        car.end(signal.SIGKILL)
        published = {(c.unit, c.fence, c.seq): c for c in peer.chunks}
        peer.chunks.clear()
        car.start()
        running, queued = await peer.ending(1), await peer.ending(2)
        for chunk in (running, queued):
            assert chunk.ending is not None
            assert chunk.ending.reason is ReleaseReason.REBOOT
        (blamed,) = running.items
        assert isinstance(blamed, ItemFailed)
        assert blamed.code is ItemError.CAR_REBOOTED
        assert not queued.items
        await peer.until(
            lambda: published.keys() <= {(c.unit, c.fence, c.seq) for c in peer.chunks}
        )
        again = {(c.unit, c.fence, c.seq): c for c in peer.chunks}
        assert {key: again[key] for key in published} == published
        assert running.seq >= len(published)
        second = peer.statuses[-1]
        assert isinstance(first, Birth)
        assert isinstance(second, Birth)
        assert second.boot > first.boot


async def test_a_killed_cars_will_is_heard(car: CarProcess) -> None:
    async with dispatcher_of(car) as peer:
        car.start()
        await peer.until(lambda: is_ready(peer))
        car.end(signal.SIGKILL)
        await peer.until(lambda: isinstance(peer.statuses[-1], Offline))
        birth, will = peer.statuses[0], peer.statuses[-1]
        assert (will.boot, will.connection) == (birth.boot, birth.connection)


async def test_sigterm_leaves_in_good_order_and_in_time(car: CarProcess, synthetic: Make) -> None:
    chain = synthetic("chain")
    await stock(car, chain)
    async with dispatcher_of(car) as peer:
        car.start()
        await peer.until(lambda: is_ready(peer))
        peer.offer(unit_offer(chain, [row(160)] * 100))
        await peer.until(peer.of)
        asked = time.monotonic()
        assert car.end(signal.SIGTERM) == 0
        assert time.monotonic() - asked < limits.CAR_CLOSE_MAX_S + 1
        chunk = await peer.ending()
        assert chunk.ending is not None
        assert chunk.ending.reason is ReleaseReason.DRAINING
        await peer.until(lambda: isinstance(peer.statuses[-1], Offline))


async def test_live_commands_come_through_stdin(car: CarProcess) -> None:
    async with dispatcher_of(car) as peer:
        car.start()
        await peer.until(lambda: is_ready(peer))
        car.command(b'{"compute_temperature_c": 95}')
        await peer.until(lambda: peer.states[-1].hold is HoldReason.COMPUTE_HOT)
        car.command(b'{"release": ["compute_temperature_c"]}')
        await peer.until(lambda: is_ready(peer))


async def test_an_idle_car_is_small_before_and_after_work(car: CarProcess, synthetic: Make) -> None:
    noop = synthetic("noop")
    await stock(car, noop)
    async with dispatcher_of(car) as peer:
        car.start()
        await peer.until(lambda: is_ready(peer))
        assert pss_mb(car.pid) <= 55
        peer.offer(unit_offer(noop, [tensor(1)]))
        await peer.ending()
        assert pss_mb(car.pid) <= 55
        assert not any("onnxruntime" in line for line in maps(car.pid))


def pss_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return (
        int(next(line for line in text.splitlines() if line.startswith("Pss:")).split()[1]) / 1024
    )


def maps(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/maps").read_text().splitlines()
