"""The owner's commands and a car as processes of their own, on a real broker and a real engine."""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from agent_rig import VEHICLE, is_ready, until
from brokers import BrokerProcess
from scripted_dispatcher import ScriptedDispatcher, row, scripted_dispatcher, unit_offer

from edge_runtime.bus import BusSettings, Connected, Message, open_bus
from edge_runtime.contract.messages import Birth, Chunk
from edge_runtime.contract.package import Package
from edge_runtime.contract.reasons import HoldReason, Outcome
from edge_runtime.contract.signals import Signals
from edge_runtime.contract.topics import Topics, Up
from edge_runtime.vehicle.models.store import PackageStore

Make = Callable[[str], Package]
POLICY = "dwell_s = 0\n[charge]\nstart_percent = 55\n"


@dataclass
class OwnedCar:
    """`edge-runtime vehicle` and `edge-runtime owner` over one state folder."""

    folder: Path
    broker_url: str
    namespace: str = field(default_factory=lambda: f"t{secrets.token_hex(4)}")
    process: subprocess.Popen[bytes] | None = None

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    @property
    def policy(self) -> Path:
        return self.folder / "policy.toml"

    def start(self) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("EDGE_RUNTIME_")}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "edge_runtime", "vehicle", f"--id={VEHICLE}"),
                    *(f"--broker={self.broker_url}", f"--state-dir={self.state_dir}"),
                    *(f"--policy={self.policy}", f"--namespace={self.namespace}"),
                    *("--sensors=simulated", "--models-url=http://127.0.0.1:9"),
                    "--owner-page-port=0",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean,
            )

    def end(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(20)
        self.process = None

    def owner_now(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *(sys.executable, "-m", "edge_runtime", "owner", *arguments),
                *(f"--state-dir={self.state_dir}", f"--policy={self.policy}"),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    async def owner(self, *arguments: str) -> str:
        """A command that does as it is told; what it printed."""
        done = await asyncio.to_thread(self.owner_now, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def engines(self) -> list[psutil.Process]:
        """Inference processes of the car."""
        assert self.process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def journalled(self) -> list[int]:
        """Bytes of each chunk that the journal holds."""
        journal = sqlite3.connect(f"file:{self.state_dir}/journal.db?mode=ro", uri=True)
        try:
            return [size for (size,) in journal.execute("SELECT length(body) FROM chunk")]
        finally:
            journal.close()


@pytest.fixture
def car(tmp_path: Path, embedded_broker: BrokerProcess) -> Iterator[OwnedCar]:
    (tmp_path / "policy.toml").write_text(POLICY)
    owned = OwnedCar(tmp_path, embedded_broker.url(5))
    yield owned
    if owned.process is not None:
        owned.end(signal.SIGKILL)


@contextlib.asynccontextmanager
async def dispatcher_of(car: OwnedCar) -> AsyncIterator[ScriptedDispatcher]:
    async with scripted_dispatcher(open_bus, car.broker_url, VEHICLE, car.namespace) as peer:
        yield peer


async def stock(car: OwnedCar, package: Package) -> None:
    store = PackageStore(car.state_dir / "packages", 1 << 30)
    try:
        await store.add(package.folder)
    finally:
        await store.close()


def ending_of(peer: ScriptedDispatcher, unit: int) -> Chunk | None:
    return next((c for c in peer.chunks if c.unit == unit and c.ending is not None), None)


async def retained_of(car: OwnedCar) -> dict[str, bytes]:
    """What a broker tells of the car to who has just come: topic and payload."""
    found: dict[str, bytes] = {}
    barrier = Message(f"{car.namespace}/barrier", secrets.token_bytes(8))
    settings = BusSettings(
        url=car.broker_url,
        client_id=f"look-{secrets.token_hex(4)}",
        subscriptions=((f"{car.namespace}/#", 1),),
    )
    async with open_bus(settings) as bus, asyncio.timeout(20):
        async for event in bus.events():
            match event:
                case Connected():
                    bus.publish_soon(barrier)
                case Message(topic=barrier.topic):
                    break
                case Message(retain=True):
                    found[event.topic] = event.payload
    return {topic: payload for topic, payload in found.items() if f"/v/{VEHICLE}/" in topic}


@pytest.mark.mosquitto
@pytest.mark.timeout(120)
async def test_withdrawn_consent_leaves_nothing_of_the_car_at_the_broker(
    tmp_path: Path, mosquitto_broker: BrokerProcess
) -> None:
    (tmp_path / "policy.toml").write_text(POLICY + "[consent]\ngiven = true\nversion = 1\n")
    car = OwnedCar(tmp_path, mosquitto_broker.url(5))
    status = Topics(car.namespace).up(VEHICLE, Up.STATUS)
    try:
        async with dispatcher_of(car) as peer:
            car.start()
            await peer.until(lambda: is_ready(peer))
            assert set(await retained_of(car)) == {status}
            await car.owner("withdraw")
            await peer.until(lambda: peer.states[-1].hold is HoldReason.CONSENT_WITHDRAWN)
            assert not await retained_of(car), "cleared before the state was told"
            assert peer.states[-1].signals == Signals()

            # Neither a goodbye nor the Birth of a new process puts anything there again.
            car.end(signal.SIGTERM)
            assert not await retained_of(car)
            peer.states.clear()
            peer.statuses.clear()
            car.start()
            await peer.until(lambda: bool(peer.states))
            assert isinstance(peer.statuses[-1], Birth), "who listens hears it all the same"
            assert not await retained_of(car)

            # A crash says no more either: the Will of this connection is for who listens.
            car.end(signal.SIGKILL)
            assert not await retained_of(car)
            car.start()
            await car.owner("consent")
            await peer.until(lambda: is_ready(peer))
            assert set(await retained_of(car)) == {status}
    finally:
        if car.process is not None:
            car.end(signal.SIGKILL)


async def test_withdrawn_consent_stops_drops_releases_and_lasts(
    car: OwnedCar, synthetic: Make
) -> None:
    chain = synthetic("chain")
    await stock(car, chain)
    async with dispatcher_of(car) as peer:
        car.start()
        await peer.until(lambda: bool(peer.states))
        assert peer.states[-1].hold is HoldReason.CONSENT_MISSING
        assert "consent given, version 1; car-1 is now" in await car.owner("consent")
        await peer.until(lambda: is_ready(peer))

        # Unit 1 ends and stays unanswered; unit 2 is being computed.
        peer.answers_chunks = False
        peer.offer(unit_offer(chain, [row(160)] * 3, 1))
        await peer.until(lambda: ending_of(peer, 1) is not None)
        assert any(chunk.items for chunk in peer.chunks)
        peer.offer(unit_offer(chain, [row(160)] * 100, 2))
        await peer.until(lambda: any(chunk.unit == 2 and chunk.items for chunk in peer.chunks))
        assert car.engines()
        assert sum(car.journalled()) > 0

        peer.chunks.clear()
        said = await car.owner("withdraw")
        # The command has returned: the engine is frozen or gone, by the car's own word.
        assert "consent withdrawn, version 2; car-1 is now" in said
        await until(lambda: not car.engines())
        await peer.until(lambda: ending_of(peer, 2) is not None)
        await peer.until(lambda: ending_of(peer, 1) is not None)
        for unit in (1, 2):
            ending = ending_of(peer, unit)
            assert ending is not None
            assert ending.ending is not None
            assert not ending.items
            assert ending.ending.outcome is Outcome.RELEASED
            assert ending.ending.hold is HoldReason.CONSENT_WITHDRAWN
        await until(lambda: len(car.journalled()) == 2)
        assert peer.states[-1].hold is HoldReason.CONSENT_WITHDRAWN

        # What it took is in the books, whether the results were handed over or not.
        assert "energy known by           stated_power" in await car.owner("ledger")
        books = json.loads(await car.owner("ledger", "--json"))
        assert books["today"]["items"] >= 4
        assert books["today"]["total_wh"] > 0

        # A crash, and a policy that says otherwise, change nothing.
        car.policy.write_text(POLICY + "[consent]\ngiven = true\nversion = 50\n")
        car.end(signal.SIGKILL)
        assert "withdrawn, version 2 of 20" in await car.owner("status")
        kept = json.loads(await car.owner("ledger", "--json"))
        assert kept["today"]["items"] == books["today"]["items"]
        peer.states.clear()
        peer.chunks.clear()
        car.start()
        await peer.until(lambda: ending_of(peer, 1) is not None and ending_of(peer, 2) is not None)
        assert not any(chunk.items for chunk in peer.chunks)
        assert {state.hold for state in peer.states} == {HoldReason.CONSENT_WITHDRAWN}
        peer.answers_chunks = True
        assert "consent given, version 51" in await car.owner("consent")
        await peer.until(lambda: is_ready(peer))


async def test_pause_and_resume_are_obeyed_at_once_and_why_says_which_rule(
    car: OwnedCar,
) -> None:
    async with dispatcher_of(car) as peer:
        car.start()
        await peer.until(lambda: bool(peer.states))
        await car.owner("consent")
        await peer.until(lambda: is_ready(peer))
        assert "car-1 is now hold (owner_paused)" in await car.owner("pause")
        await peer.until(lambda: peer.states[-1].hold is HoldReason.OWNER_PAUSED)
        why = json.loads(await car.owner("why", "--json"))
        assert why["hold"] == "owner_paused"
        assert why["forbids"][0]["key"] == "paused"
        assert why["forbids"][0]["change"] == "edge-runtime owner resume"
        assert "car-1 is now" in await car.owner("resume")
        await peer.until(lambda: is_ready(peer))

        car.policy.write_text(POLICY.replace("55", "97") + "stop_percent = 96\n")
        await peer.until(lambda: peer.states[-1].hold is HoldReason.CHARGE_LOW)
        text = await car.owner("why")
        assert "is below charge.stop_percent 96 %" in text
        assert "needs: charge must rise to charge.start_percent, 97 %" in text
        assert "allows work:" in text
        status = await car.owner("status")
        assert "consent   given, version 1 of 20" in status
        assert "hold (charge_low)" in status
        assert "Wh today" in status

        car.policy.write_text("[charge]\nstart_percent = 1")
        await peer.until(lambda: peer.states[-1].hold is HoldReason.POLICY_INVALID)
        assert "charge.stop_percent: 50 must be at most 1" in await car.owner("status")


async def test_a_stuck_runtime_is_told_of_and_the_decision_stands(car: OwnedCar) -> None:
    async with dispatcher_of(car) as peer:
        car.start()
        await peer.until(lambda: bool(peer.states))
        await car.owner("consent")
        await peer.until(lambda: is_ready(peer))
        assert car.process is not None
        car.process.send_signal(signal.SIGSTOP)
        done = await asyncio.to_thread(car.owner_now, "withdraw")
        assert done.returncode == 3
        assert "gives no answer" in done.stderr
        car.process.send_signal(signal.SIGCONT)
        await peer.until(lambda: peer.states[-1].hold is HoldReason.CONSENT_WITHDRAWN)


def test_without_a_runtime_the_commands_write_and_say_so(tmp_path: Path) -> None:
    car = OwnedCar(tmp_path, "")
    car.policy.write_text(POLICY)
    said = car.owner_now("status")
    assert said.returncode == 0
    assert "never given" in said.stdout
    assert not said.stderr
    assert "the car's runtime is not running" in said.stdout
    said = car.owner_now("withdraw")
    assert said.returncode == 0
    assert "consent withdrawn, version 1; the car's runtime is not running" in said.stdout
    why = json.loads(car.owner_now("why", "--json").stdout)
    assert [rule["key"] for rule in why["forbids"]] == ["", "consent.given"]
    said = car.owner_now("ledger")
    assert said.returncode == 1
    assert "there is no ledger" in said.stderr
    (car.state_dir / "owner.json").write_text("{}")
    said = car.owner_now("resume")
    assert said.returncode == 2
    assert "what the owner decided is lost" in said.stderr
    assert "what the owner decided is lost" in car.owner_now("status").stdout
    assert "consent given, version 1" in car.owner_now("consent").stdout


def test_the_example_is_printed_and_is_a_policy_without_consent(tmp_path: Path) -> None:
    car = OwnedCar(tmp_path, "")
    printed = subprocess.run(
        [sys.executable, "-m", "edge_runtime", "owner", "policy"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    car.policy.write_text(printed)
    assert "never given" in car.owner_now("status").stdout
