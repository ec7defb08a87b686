"""One world: a broker, a dispatcher, cars, requesters and a third party, in virtual time.

The dispatcher, the cars and the requesters run the production shells over the production cores;
what is simulated is what lies under their ports: broker, network, clocks, disks, sensors,
engines, packages.
"""

import asyncio
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from edge_runtime.bus import Bus, BusSettings, MemoryBroker, MemoryBus, Message
from edge_runtime.bus.memory import Faults
from edge_runtime.client import EdgeClient
from edge_runtime.client.errors import DispatcherUnreachable, JobRefused
from edge_runtime.contract.errors import EdgeError
from edge_runtime.contract.messages import Item
from edge_runtime.contract.package import Package
from edge_runtime.contract.tensors import Tensor
from edge_runtime.contract.topics import Topics
from edge_runtime.dispatcher.api import build_app
from edge_runtime.dispatcher.chores import Chores
from edge_runtime.dispatcher.desk import FrontDesk
from edge_runtime.dispatcher.service import DispatcherService, DispatcherSettings
from edge_runtime.sim.car import EngineScript, SimEngine, SimPackages, SimSensors, Truth
from edge_runtime.sim.hosts import Host, OneLife, SimJournal, SimStore
from edge_runtime.sim.ledger import Ledger, Seen, Submitted
from edge_runtime.sim.loop import SimLoop
from edge_runtime.sim.web import Network, SimTransport
from edge_runtime.sim.witness import Witness
from edge_runtime.vehicle.agent import VehicleAgent, VehicleSettings

TENANT: Final = "sim"
_RESTART_S: Final = 2.0
_POLICY: Final = "dwell_s = 1\n[consent]\ngiven = {consent}\nversion = 1\n"
_STOP_BOUND_S: Final = 5.0
_DAY_S: Final = 86_400.0
_LOOK_S: Final = 2.0


@dataclass(frozen=True)
class Ground:
    """What every world of a process stands on: real model packages in a real folder."""

    models: Path
    packages: Mapping[str, Package]


@dataclass(frozen=True)
class Scale:
    """How large a world is."""

    cars: int = 3
    jobs: int = 5
    items_max: int = 10
    faults_s: float = 60.0
    healed_s: float = 3_600.0


class WatchedBroker(MemoryBroker):
    """The memory broker, whose publishes the ledger sees."""

    def __init__(self, ledger: Ledger, **options: Any) -> None:
        super().__init__(**options)
        self._ledger = ledger
        self.newer = ""

    def publish(self, message: Message) -> int:
        """Route a message."""
        self._ledger.published_message("", message)
        if self.newer and f"/v/{self.newer}/up/" in message.topic:
            message = _with_one_more_field(message)
        return super().publish(message)

    def expire(self, client_id: str) -> bool:
        """Forget a session as its expiry would; whether there was one."""
        self.cut(client_id)
        session = self._sessions.get(client_id)
        if session is None:
            return False
        self._forget(session)
        return True


def _with_one_more_field(message: Message) -> Message:
    """As a newer release would send it: a field at the end that this one does not know."""
    try:
        fields = msgspec.msgpack.decode(message.payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return message
    if not isinstance(fields, list):
        return message
    payload = msgspec.msgpack.encode([*fields, "tomorrow"])
    return replace(message, payload=payload)


class Car:
    """A car's host and hardware."""

    def __init__(self, world: "World", name: str, folder: Path) -> None:
        self.world = world
        self.name = name
        self.rng = world.fork(name)
        self.truth = Truth(world.loop)
        self.held: set[str] = set()
        self.script = EngineScript(item_s=self.rng.choice((0.05, 0.2, 0.5, 1.5)))
        self.faults = world.faults_for(name)
        self.host = Host(name, world.loop, folder, self._main)
        self.host.on_end = world.came_to_an_end
        self.sensors = SimSensors(self.truth, lambda: self.host.now().boot_ns)
        self.engine: SimEngine | None = None
        self._engine_life: OneLife | None = None
        self.policy = folder / f"{name}.toml"
        self._policies = 0
        self.write_policy()

    def write_policy(self) -> None:
        """Put the owner's decision where the car reads it: a new file each time."""
        self._policies += 1
        consent = str(self.truth.has_consent).lower()
        fresh = self.policy.with_name(f"{self.name}.policy.{self._policies}")
        # Its size tells it from the last one: file times are not simulated.
        fresh.write_text(_POLICY.format(consent=consent) + "#" * self._policies + "\n")
        fresh.replace(self.policy)

    def changed(self, *, tell: bool = True) -> None:
        """The truth changed; sensors say so at once, and the bound on stopping begins."""
        self.truth.note()
        if self.truth.wrong_since_s is not None:
            self.world.loop.call_later(_STOP_BOUND_S, self._must_have_stopped)
        if tell and self.host.is_up:
            self.sensors.tell()
            self._must_stand_still()

    def _must_stand_still(self) -> None:
        """What a sensor tells stops the engine in the same call."""
        life, is_told = self.host.life, not (self.sensors.mute or self.sensors.absurd)
        is_watched = life is not None and not life.is_paused and life is self._engine_life
        is_computing = self.engine is not None and self.engine.is_computing
        if is_watched and is_told and is_computing and not self.truth.do_signals_allow():
            self.world.ledger.violated("S9", f"{self.name} computes on when its sensors have told")

    def _must_have_stopped(self) -> None:
        since_s = self.truth.wrong_since_s
        if since_s is None or self.world.loop.time() - since_s < _STOP_BOUND_S - 1e-6:
            return
        life = self.host.life
        paused = life is not None and (life.is_paused or life.paused_at_s >= since_s)
        if self.host.is_up and self.engine is not None and self.engine.is_computing and not paused:
            self.world.ledger.violated(
                "S9", f"{self.name} computes {_STOP_BOUND_S:g} s after its owner took the car"
            )

    def _started(self, item: Item) -> None:
        self.world.ledger.note(f"{self.name} computes {item.data[-4:].hex()}")
        since_s = self.truth.wrong_since_s
        if since_s is not None and self.world.loop.time() - since_s > _STOP_BOUND_S:
            self.world.ledger.violated("S9", f"{self.name} starts an item without leave")

    def _open_bus(self, settings: BusSettings) -> Bus:
        return MemoryBus(settings, self.world.broker, self.faults, rng=self.rng)

    def _make_engine(self, emit: Any) -> SimEngine:
        world = self.world
        self._engine_life = self.host.life
        self.engine = SimEngine(emit, world.loop, self.script, self.rng, self._started)
        return self.engine

    async def _main(self, host: Host) -> None:
        world = self.world
        settings = VehicleSettings(
            vehicle=self.name,
            broker_url="memory://sim",
            state_dir=host.folder,
            policy=self.policy,
            hardware="sim",
        )
        agent = VehicleAgent(
            settings,
            open_bus=self._open_bus,
            make_engine=self._make_engine,
            packages=SimPackages(world.packages, self.held, world.fetch),
            sensors=self.sensors,
            clock=host.now,
            open_journal=lambda path: SimJournal(path, host, world.disk_delay_s),
            rng=self.rng,
        )
        async with agent:
            await agent.wait_ended()


class World:
    """See the module. `rng` decides everything that is not decided elsewhere."""

    def __init__(
        self, loop: SimLoop, seed: int, folder: Path, ground: Ground, scale: Scale
    ) -> None:
        self.loop = loop
        self.seed = seed
        self.rng = random.Random(seed)  # noqa: S311 - a simulation must be repeatable
        self.scale = scale
        self.folder = folder
        self.packages = ground.packages
        self.topics = Topics()
        self.ledger = Ledger(self.topics)
        queue_max = self.fork("broker").choice((3, 30, 200))
        self.broker = WatchedBroker(self.ledger, session_queue_max_messages=queue_max)
        self.all_faults: dict[str, Faults] = {}
        self.network = Network(self.fork("network"))
        self.is_fetch_failing = False
        self.is_healed = False
        self._disk_rng = self.fork("disk")
        self._models = ground.models
        self.dispatcher_faults = self.faults_for("dispatcher")
        self._dispatcher_rng = self.fork("dispatcher")
        self.dispatcher = Host("dispatcher", loop, folder, self._dispatch)
        self.dispatcher.on_end = self.came_to_an_end
        self.service: DispatcherService | None = None
        self.cars = [Car(self, f"car{n}", folder) for n in range(scale.cars)]
        self.witness = Witness(self.ledger, self.topics, self.dispatcher)
        self.witness.watch([car.host for car in self.cars])
        self.ledger.witnesses.append(self.witness.heard)
        self.dispatcher.open_files.append(self.witness.close)
        self.requester = Host("requester", loop, folder, self._request)
        self.requester.on_end = self.came_to_an_end
        self.plan = list(self._plan())

    # --- seeds ---

    def fork(self, name: str) -> random.Random:
        """A source of its own, so that one part's draws do not move another's."""
        return random.Random(f"{self.seed}/{name}")  # noqa: S311 - a simulation must be repeatable

    def faults_for(self, name: str) -> Faults:
        """The (so far faultless) way between a host and the broker."""
        faults = self.all_faults[name] = Faults(self.fork(f"{name}/bus"))
        return faults

    def disk_delay_s(self) -> float:
        """How long a commit takes."""
        return self._disk_rng.uniform(0.0005, 0.01)

    def _plan(self) -> "Iterator[tuple[str, list[bytes], float, float]]":
        rng = self.fork("plan")
        number = 0
        for job in range(self.scale.jobs):
            data = []
            for _ in range(rng.randint(1, self.scale.items_max)):
                number += 1
                data.append(tensor_item(number))
            deadline_s = rng.choice((20.0, _DAY_S, _DAY_S, _DAY_S))
            yield f"key{job}", data, rng.uniform(0, self.scale.faults_s / 2), deadline_s

    # --- life ---

    def start(self) -> None:
        """Start every host."""
        for host in (self.dispatcher, *(car.host for car in self.cars), self.requester):
            host.start()

    def came_to_an_end(self, host: Host) -> None:
        """A host's program ended by itself; what supervises it starts it again."""
        error = host.ends[-1]
        self.ledger.note(f"{host.name} ended: {error!r}")
        self.ledger.rare["ended_by_itself"] += 1
        if host is self.dispatcher:
            self.network.server_died()
        if error is not None and not isinstance(error, EdgeError):
            self.ledger.violated("S11", f"{host.name} ended with {error!r}")
        self.loop.call_later(_RESTART_S, host.start)

    def kill(self, host: Host, restart_after_s: float, *, cuts_power: bool = False) -> None:
        """SIGKILL, or worse; its connections are reset; it is started again."""
        if not host.is_up:
            return
        if cuts_power:
            host.cut_power()
        else:
            host.kill()
        self.broker.cut(self.client_id(host))
        if host is self.dispatcher:
            self.network.server_died()
        self.loop.call_later(restart_after_s, host.start)

    def client_id(self, host: Host) -> str:
        """Under which name a host is known to the broker."""
        return "er-dispatcher-dispatcher" if host is self.dispatcher else f"er-{host.name}"

    async def fetch(self) -> None:
        """Download a package."""
        await asyncio.sleep(self.rng.uniform(0.01, 0.5))
        if self.is_fetch_failing:
            raise OSError("the package server does not answer")

    # --- the dispatcher ---

    async def _dispatch(self, host: Host) -> None:
        rng = self._dispatcher_rng

        def open_bus(settings: BusSettings) -> Bus:
            return MemoryBus(settings, self.broker, self.dispatcher_faults, rng=rng)

        settings = DispatcherSettings("memory://sim", models_dir=self._models)
        async with DispatcherService(settings, SimStore(host), open_bus, host.now) as service:
            self.service = service
            desk = FrontDesk(service, lambda count: rng.randbytes(count).hex())
            self.network.listen(host, build_app(desk))
            service.announce("http://dispatcher")
            Chores(service).start()
            await service.wait_failed()

    # --- the requester ---

    def client(self, name: str) -> EdgeClient:
        """The production SDK on the simulated network."""
        transport = SimTransport(self.network, TENANT, 120.0, self.fork(f"{name}/client"))
        return EdgeClient(transport=transport)

    async def _request(self, host: Host) -> None:
        del host
        async with self.client("requester") as client:
            await asyncio.gather(*(self._follow(client, *job) for job in self.plan))

    async def _follow(
        self, client: EdgeClient, key: str, data: list[bytes], after_s: float, deadline_s: float
    ) -> None:
        """Submit a job and read it to its end, over as many failures as there are."""
        await asyncio.sleep(after_s)
        while True:
            handle = client.submit("noop", data, idempotency_key=key, deadline_s=deadline_s)
            try:
                status = await handle
                break
            except (DispatcherUnreachable, JobRefused) as error:
                self.ledger.note(f"requester: {key} not accepted: {error}")
                if isinstance(error, JobRefused) and not _is_passing(error):
                    self.ledger.violated("S8", f"{key} refused: {error}")
                    return
        known = self.ledger.keys.setdefault(key, status.job)
        if known != status.job:
            self.ledger.violated("S8", f"{key} is two jobs: {known}, {status.job}")
        submitted = self.ledger.jobs.setdefault(status.job, Submitted(status.job, key, data))
        self.ledger.note(f"requester: {key} accepted as {status.job}")
        self.witness.accepted(status.job)
        while True:  # a dead letter may be requeued long after its job's end
            await self._read(client, submitted)
            await asyncio.sleep(_LOOK_S)

    async def _read(self, client: EdgeClient, submitted: Submitted) -> None:
        """Read a job to its end from where it was left."""
        while not submitted.is_done:
            cursor = submitted.read[-1].cursor if submitted.read else 0
            try:
                async for result in client.results(submitted.job, cursor):
                    submitted.read.append(
                        Seen(result.cursor, result.item, result.ok, _packed(result.output))
                    )
                submitted.is_done = True
            except DispatcherUnreachable as error:
                self.ledger.note(f"requester: {submitted.job} unreachable: {error}")


def _is_passing(error: JobRefused) -> bool:
    return error.problem.status in {429, 502, 503, 504, 507}


def _packed(output: object) -> bytes:
    return b"" if output is None else msgspec.msgpack.encode(output)


def tensor_item(number: int) -> bytes:
    """A tensor that no other item has."""
    value = msgspec.msgpack.encode(
        [Tensor(name="x", datatype="FP32", shape=(1,), data=number.to_bytes(4, "little"))]
    )
    return bytes(value)
