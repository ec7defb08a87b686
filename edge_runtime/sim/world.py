"""One world: a broker, a dispatcher, cars, requesters and a third party, in virtual time.

The dispatcher, the cars and the requesters run the production shells over the production cores;
what is simulated is what lies under their ports: broker, network, clocks, disks, sensors,
engines, packages.
"""

import asyncio
import contextlib
import contextvars
import math
import random
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from edge_runtime.bus import Bus, BusSettings, MemoryBroker, Message
from edge_runtime.bus.memory import Faults
from edge_runtime.client import EdgeClient
from edge_runtime.client.errors import DispatcherRefused, DispatcherUnreachable, JobRefused
from edge_runtime.contract.errors import EdgeError
from edge_runtime.contract.limits import (
    BUS_OUTBOUND_MAX_MESSAGES,
    DRAIN_ANSWERS_MAX_S,
    DRAIN_MAX_S,
    SIM_ITEMS_IN_DOUBT_MAX,
)
from edge_runtime.contract.messages import Item, JobStatus
from edge_runtime.contract.package import Package
from edge_runtime.contract.tensors import Tensor
from edge_runtime.contract.topics import Topics
from edge_runtime.dispatcher.chores import Chores
from edge_runtime.dispatcher.core.commands import BeginAttempt
from edge_runtime.dispatcher.service import DispatcherService, DispatcherSettings
from edge_runtime.sim.buses import DrainWatch, WatchedBus, car_url, listeners, service_url
from edge_runtime.sim.car import EngineScript, SimEngine, SimPackages, SimSensors, Truth
from edge_runtime.sim.fair_shares import FairShares
from edge_runtime.sim.front import WRITING, open_front
from edge_runtime.sim.hosts import Host, OneLife, SimJournal, SimStore
from edge_runtime.sim.ledger import Ledger, Seen, Submitted
from edge_runtime.sim.loop import SimLoop
from edge_runtime.sim.objects import DISPATCHER_URL, ExchangeFaults, SimExchange
from edge_runtime.sim.reader import Reader
from edge_runtime.sim.web import Network, SimTransport
from edge_runtime.sim.witness import Witness
from edge_runtime.vehicle.agent import VehicleAgent, VehicleSettings

TENANT: Final = "sim"
NEIGHBOUR: Final = "neighbour"
FICKLE: Final = "fickle"
TENANTS: Final = (TENANT, NEIGHBOUR, FICKLE)
VISITOR: Final = "visitor"
LISTENER: Final = "listener"
NIGHT: Final = "night"
PEOPLE: Final = (*TENANTS, VISITOR, LISTENER, NIGHT)
"""All who call over HTTP; those who are no `TENANTS` have no password at the broker."""
_RESTART_S: Final = 2.0
_DRAIN_SLACK_S: Final = 1.0
_POLICY: Final = "dwell_s = 1\n[consent]\ngiven = {consent}\nversion = 1\n"
_SENSOR_PERIODS_S: Final = (1.0, 2.0)
_STOP_BOUND_S: Final = 5.0
_TOLD_S: Final = 0.01
"""So long after an engine began an item its agent has heard of it."""
_LEAVE_BOUND_S: Final = 20.0
_POLICY_READ_S: Final = 2.0
"""After so long a car has read a new policy; not if it is paused or its process is dead."""
SMALL_OUTBOX_MESSAGES: Final = 2
_DISK_TROUBLE: Final = frozenset({"full_disks", "failing_disks"})
_HALF: Final = 0.5
_DAY_S: Final = 86_400.0
_LOOK_S: Final = 2.0


@dataclass(frozen=True)
class Ground:
    """What every world of a process stands on: real model packages in a real folder.

    `writing` is the ground of worlds where a model is to write texts.
    """

    models: Path
    packages: Mapping[str, Package]
    writing: "Ground | None" = None


@dataclass(frozen=True, slots=True)
class Planned:
    """A job that a requester will submit, under the key until it is accepted."""

    tenant: str
    key: str
    data: list[bytes]
    after_s: float
    deadline_s: float


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

    @property
    def is_running(self) -> bool:
        """Whether anybody reaches it."""
        return self._is_running

    def retains_of(self, job: str) -> bool:
        """Whether a status of this job is retained."""
        return any(topic.endswith(f"/jobs/{job}/status") for topic in self._retained)

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
    """A car's host and hardware; hears what its engine does (`EngineWatch`)."""

    def __init__(self, world: "World", name: str, folder: Path) -> None:
        self.world = world
        self.name = name
        self.rng = world.fork(name)
        self.truth = Truth(world.loop)
        self.held: set[str] = set()
        self.desired: set[str] = set()
        self.script = EngineScript(item_s=self.rng.choice((0.05, 0.2, 0.5, 1.5)))
        self.faults = world.faults_for(name)
        self.host = Host(name, world.loop, folder, self._main)
        self.host.on_end = world.came_to_an_end
        self.host.on_death = self._process_died
        self.drain = DrainWatch(name, world.ledger)
        # Which item its journal has as started when it dies, nobody can tell from outside.
        self._in_doubt: deque[bytes] = deque()
        period_s = world.fork(f"{name}/sensors").choice(_SENSOR_PERIODS_S)
        self.sensors = SimSensors(self.truth, lambda: self.host.now().boot_ns, period_s)
        self.engine: SimEngine | None = None
        self.agent: VehicleAgent | None = None
        self._engine_life: OneLife | None = None
        self._exchanging_life: OneLife | None = None
        self._withdrawals: list[tuple[float, float]] = []
        self.policy = folder / f"{name}.toml"
        self._policies = 0
        self.write_policy()

    def write_policy(self) -> None:
        """Put the owner's decision where the car reads it: a new file each time."""
        self._policies += 1
        now_s = self.world.loop.time()
        if not self.truth.has_consent:
            self._withdrawals.append((now_s, math.inf))
        elif self._withdrawals:
            self._withdrawals[-1] = (self._withdrawals[-1][0], now_s)
        consent = str(self.truth.has_consent).lower()
        fresh = self.policy.with_name(f"{self.name}.policy.{self._policies}")
        # Its size tells it from the last one: file times are not simulated.
        fresh.write_text(_POLICY.format(consent=consent) + "#" * self._policies + "\n")
        fresh.replace(self.policy)

    @property
    def is_computing(self) -> bool:
        """Whether its engine is at an item."""
        return self.host.is_up and self.engine is not None and self.engine.is_computing

    @property
    def missing(self) -> list[str]:
        """The models that it was told to hold ready and does not hold."""
        if "slow_packages" in self.world.chosen:
            return []  # there a nemesis empties shelves, of which nobody tells the car
        return sorted(self.desired - self.held)

    def has_withdrawn(self, since_s: float, until_s: float) -> bool:
        """Whether between these times consent was withdrawn, as far as the car could know."""
        return any(
            begin_s <= until_s and since_s <= end_s + _POLICY_READ_S
            for begin_s, end_s in self._withdrawals
        )

    @property
    def must_keep_quiet(self) -> bool:
        """Whether its process has had the time to read that consent is withdrawn."""
        life = self.host.life
        if self.truth.has_consent or life is None:
            return False
        since_s = max(self._withdrawals[-1][0], life.awake_since_s)
        return self.world.loop.time() > since_s + _POLICY_READ_S

    def changed(self, *, tell: bool = True) -> None:
        """The truth changed; sensors say so at once, and the bound on stopping begins."""
        self.truth.note()
        if self.truth.wrong_since_s is not None:
            self.world.loop.call_later(_STOP_BOUND_S, self._must_have_stopped)
        life = self.host.life
        if tell and self.host.is_up and life is not None and not life.is_paused:
            self.sensors.tell()
            self._must_stand_still()

    def _must_stand_still(self) -> None:
        """What a sensor tells stops the engine in the same call."""
        life, is_told = self.host.life, not (self.sensors.mute or self.sensors.absurd)
        is_watched = life is not None and not life.is_paused and life is self._engine_life
        if is_watched and is_told and self.is_computing and not self.truth.do_signals_allow():
            self.world.ledger.violated("S9", f"{self.name} computes on when its sensors have told")

    def _must_have_stopped(self) -> None:
        since_s = self.truth.wrong_since_s
        if since_s is None or self.world.loop.time() - since_s < _STOP_BOUND_S - 1e-6:
            return
        life = self.host.life
        paused = life is not None and (life.is_paused or life.paused_at_s >= since_s)
        if self.is_computing and not paused:
            self.world.ledger.violated(
                "S9", f"{self.name} computes {_STOP_BOUND_S:g} s after its owner took the car"
            )

    def died(self, item: Item) -> None:
        """The engine died at an item."""
        self.world.ledger.deaths.setdefault(item.data, []).append(self.name)

    def takes_car_down(self) -> None:
        """The item in hand ends the process, or the computer."""
        world = self.world
        if self.rng.random() < _HALF:
            world.ledger.fault("item_crashes_car", self.name)
        else:
            world.ledger.fault("item_reboots_car", self.name)
            self.host.booted_at_s, self.host.slept_s = world.loop.time(), 0.0
        world.kill(self.host, self.rng.choice((0.5, 3.0)))

    def _process_died(self) -> None:
        for data in dict.fromkeys(self._in_doubt):
            self.world.ledger.deaths.setdefault(data, []).append(self.name)
        self._in_doubt.clear()

    def started(self, item: Item) -> None:
        """The computation of an item begins."""
        self._in_doubt.append(item.data)
        if not (self.host.disk.is_failing or self.host.disk.is_full):
            while len(self._in_doubt) > SIM_ITEMS_IN_DOUBT_MAX:
                self._in_doubt.popleft()
        self.world.ledger.starts[item.data] += 1
        self.world.ledger.note(f"{self.name} computes {item.data[-4:].hex()}")
        context = contextvars.Context()
        self.world.loop.call_later(_TOLD_S, self._goes_on, item, context=context)

    def _goes_on(self, item: Item) -> None:
        """An item has begun, and the agent, who was told, lets it."""
        life = self.host.life
        if not self.is_computing or life is None or life.is_paused:
            return
        if self.engine is None or self.engine.in_hand is not item.data:
            return
        since_s = self.truth.wrong_by_signals_since_s
        is_wrong = since_s is not None and self.world.loop.time() - since_s > _STOP_BOUND_S
        if is_wrong or self.must_keep_quiet:
            self.world.ledger.violated("S9", f"{self.name} starts an item without leave")

    def _open_bus(self, settings: BusSettings) -> Bus:
        watch = self.drain if "drains" in self.world.chosen else None
        small = "small_outboxes" in self.world.chosen
        return WatchedBus(
            settings,
            self.world.broker,
            self.faults,
            self.rng,
            self.world.ledger,
            watch=watch,
            must_keep_quiet=lambda: self.must_keep_quiet,
            outbound_max_messages=SMALL_OUTBOX_MESSAGES if small else BUS_OUTBOUND_MAX_MESSAGES,
        )

    def _make_engine(self, emit: Any) -> SimEngine:
        world = self.world
        self._engine_life = self.host.life
        self.engine = SimEngine(emit, world.loop, self.script, self.rng, self)
        return self.engine

    @contextlib.asynccontextmanager
    async def _exchanging(self) -> AsyncIterator[SimExchange]:
        """The process through which it fetches inputs and hands outputs over."""
        world, life = self.world, self.host.life

        def note(kind: str) -> None:
            world.ledger.fault(kind, self.name)

        def die() -> None:
            world.kill(self.host, self.rng.choice((0.5, 3.0)))

        self._exchanging_life = life
        try:
            yield SimExchange(world.network, world.exchange_faults, note, die)
        finally:
            self._exchanging_life = None

    @property
    def has_answers(self) -> bool:
        """Whether it has large outputs for who waits, which it has not handed in."""
        return self.agent is not None and self.agent.core.work.handover.size_bytes > 0

    @property
    def is_exchanging(self) -> bool:
        """Whether it fetches something, or hands something over."""
        return self._exchanging_life is not None and self._exchanging_life is self.host.life

    async def _main(self, host: Host) -> None:
        world = self.world
        settings = VehicleSettings(
            vehicle=self.name,
            broker_url=car_url(self.name),
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
            start_fetching=self._exchanging,
        )
        async with agent:
            self.agent = agent
            await agent.wait_ended()


class World:
    """See the module. `rng` decides everything that is not decided elsewhere."""

    def __init__(
        self, loop: SimLoop, seed: int, folder: Path, ground: Ground, scale: Scale
    ) -> None:
        self.loop = loop
        self.seed = seed
        self.chosen: frozenset[str] = frozenset()
        """The nemeses that take part; known before anything starts."""
        self.third_parties: list[Reader] = []
        self.keepers: list[asyncio.Future[None]] = []
        """Who goes on when faults have stopped, as a nemesis does not."""
        self.quarantined: set[str] = set()
        """Cars that an operator has put into quarantine, once or more."""
        self.waits_for: list[Callable[[], bool]] = []
        """What must have come true, besides all jobs being read, before the world is judged."""
        self.rng = random.Random(seed)  # noqa: S311 - a simulation must be repeatable
        self.scale = scale
        self.folder = folder
        self._ground = ground
        self.topics = Topics()
        self.ledger = Ledger(self.topics)
        queue_max = self.fork("broker").choice((3, 30, 200))
        self.broker = WatchedBroker(
            self.ledger, session_queue_max_messages=queue_max, access=listeners(TENANTS)
        )
        self.all_faults: dict[str, Faults] = {}
        self.network = Network(self.fork("network"))
        self.exchange_faults = ExchangeFaults()
        self.kept = folder / "objects" / "kept"
        """Where objects lie, by tenant and SHA-256."""
        self.is_fetch_failing = False
        self.is_healed = False
        self._disk_rng = self.fork("disk")
        self.dispatcher_faults = self.faults_for("dispatcher")
        self._dispatcher_rng = self.fork("dispatcher")
        self.dispatcher = Host("dispatcher", loop, folder, self._dispatch)
        self.dispatcher.on_end = self.came_to_an_end
        self.service: DispatcherService | None = None
        self.cars = [Car(self, f"car{n}", folder) for n in range(scale.cars)]
        self.witness = Witness(self.ledger, self.topics, self.dispatcher, self.kept)
        self.witness.watch([car.host for car in self.cars])
        self.ledger.witnesses.append(self.witness.heard)
        self.dispatcher.open_files.append(self.witness.close)
        self.dispatcher.on_commit = self.witness.committing
        self.plan: list[Planned] = []
        self.requesters: list[Host] = []
        self.add_requester("requester", TENANT, list(self._plan()))

    @property
    def ground(self) -> Ground:
        """What this world stands on."""
        return (WRITING & self.chosen and self._ground.writing) or self._ground

    @property
    def packages(self) -> Mapping[str, Package]:
        """The model packages that there are."""
        return self.ground.packages

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

    def _plan(self) -> Iterator[Planned]:
        rng = self.fork("plan")
        number = 0
        for job in range(self.scale.jobs):
            data = []
            for _ in range(rng.randint(1, self.scale.items_max)):
                number += 1
                data.append(tensor_item(number))
            deadline_s = rng.choice((20.0, _DAY_S, _DAY_S, _DAY_S))
            after_s = rng.uniform(0, self.scale.faults_s / 2)
            yield Planned(TENANT, f"key{job}", data, after_s, deadline_s)

    # --- life ---

    def start(self) -> None:
        """Start every host."""
        for host in (self.dispatcher, *(car.host for car in self.cars), *self.requesters):
            host.start()

    def stop(self, host: Host) -> None:
        """SIGTERM: the process must end by itself within a bound; then it is started again."""
        life = host.life
        if life is None or life.is_dead:
            return
        pauses = life.pauses
        host.stop()

        def must_have_ended() -> None:
            if not life.is_dead and life.pauses == pauses and not life.is_paused:
                self.ledger.violated("L1", f"{host.name} does not end when it is told to")

        self.loop.call_later(_LEAVE_BOUND_S, must_have_ended)

    @property
    def has_told_all(self) -> bool:
        """Whether the dispatcher is connected and the broker has every result that it keeps."""
        if self.service is None or not self.service.bus.is_connected:
            return False
        return not self._in_store("SELECT 1 FROM job WHERE published < cursor LIMIT 1")

    @property
    def unretained(self) -> list[str]:
        """Jobs of the store whose status the broker does not keep, though it loses nothing."""
        if self.has_lost_at_broker:
            return []
        jobs = self._in_store("SELECT id FROM job")
        return [job for (job,) in jobs if not self.broker.retains_of(job)]

    @property
    def has_lost_at_broker(self) -> bool:
        """Whether something of the dispatcher's was acknowledged, or refused, and is not there."""
        fired = self.dispatcher_faults.fired
        return fired["loss"] > 0 or fired["refused"] > 0

    def _in_store(self, query: str) -> list[Any]:
        """The rows that the dispatcher's store has for a query."""
        path = self.dispatcher.folder / "dispatcher.db"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            return db.execute(query).fetchall()

    @property
    def has_wishes(self) -> bool:
        """Whether a car lacks a model that it was told to hold ready."""
        return any(car.missing for car in self.cars)

    @property
    def is_served(self) -> bool:
        """Whether every job has been read to its end, and nobody waits for anything."""
        jobs = self.ledger.jobs.values()
        is_read = len(jobs) == len(self.plan) and all(
            job.is_done and not job.needs_reading_again for job in jobs
        )
        # Some jobs have no reader; they end all the same.
        is_idle = self.service is not None and not self.service.core.state.jobs
        return is_read and is_idle and all(is_true() for is_true in self.waits_for)

    @property
    def holders_of_answers(self) -> list[str]:
        """Who has large outputs of requests in memory."""
        receiver = None if self.service is None else self.service.interactive.receiver
        holders = [car.name for car in self.cars if car.has_answers]
        return holders if receiver is None or not len(receiver) else ["the dispatcher", *holders]

    def came_to_an_end(self, host: Host) -> None:
        """A host's program ended by itself; what supervises it starts it again."""
        error = host.ends[-1]
        self.ledger.note(f"{host.name} ended: {error!r}")
        self.ledger.rare["ended_by_itself"] += 1
        if host is self.dispatcher:
            self.network.server_died()
        if error is not None and not isinstance(error, EdgeError):
            self.ledger.violated("S11", f"{host.name} ended with {error!r}")
        if host.life is not None and host.life.is_told_to_end:
            self._must_have_given_back(host)
        self.loop.call_later(_RESTART_S, host.start)

    def _must_have_given_back(self, host: Host) -> None:
        """A car that ends because it is told to, with a sound disk, gives its units back first."""
        was_paused = host.life is not None and host.life.pauses > 0
        if host is self.dispatcher or was_paused or self.chosen & _DISK_TROUBLE:
            return
        journal = sqlite3.connect(host.folder / "journal.db")
        try:
            (left,) = journal.execute("SELECT count(*) FROM attempt").fetchone()
        finally:
            journal.close()
        if left:
            self.ledger.violated(
                "S12", f"{host.name} ended with {left} units that it did not give back"
            )

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
        # In no life: an item that ends its car's process may be the cause of this.
        self.loop.call_later(restart_after_s, host.start, context=contextvars.Context())

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
            return WatchedBus(settings, self.broker, self.dispatcher_faults, rng, self.ledger)

        settings = DispatcherSettings(service_url("dispatcher"), models_dir=self.ground.models)
        async with DispatcherService(settings, SimStore(host), open_bus, host.now) as service:
            self.service = service
            service.watchers.append(FairShares(service.core, self.ledger).watch)
            app = await open_front(
                service,
                host.folder,
                rng,
                chosen=self.chosen,
                network=self.network,
                people=PEOPLE,
                kept=self.kept,
            )
            self.network.listen(host, app)
            service.announce(DISPATCHER_URL)
            Chores(service).start()
            try:
                await service.wait_failed()
            except asyncio.CancelledError:
                if host.life is not None and host.life.is_told_to_end:
                    await self._drain(service, host.life)
                raise
            finally:
                self.network.server_died()

    async def _drain(self, service: DispatcherService, life: OneLife) -> None:
        """S16: told to end, a dispatcher offers nothing new, and waits no longer than it may."""
        last, pauses = service.core.state.fence_counter, life.pauses

        def watch(commands: Sequence[object]) -> None:
            for command in commands:
                if isinstance(command, BeginAttempt) and command.fence.counter > last:
                    self.ledger.violated("S16", f"unit {command.unit} was offered while draining")

        service.watchers.append(watch)
        began_s = self.loop.time()
        waited_s = DRAIN_ANSWERS_MAX_S

        async def note_quiet() -> None:
            nonlocal waited_s
            await service.interactive.quiet.wait()
            waited_s = min(waited_s, self.loop.time() - began_s)

        noting = asyncio.create_task(note_quiet())
        await service.drain()
        noting.cancel()
        took_s = self.loop.time() - began_s
        if took_s > max(DRAIN_MAX_S, waited_s) + _DRAIN_SLACK_S and life.pauses == pauses:
            self.ledger.violated("S16", f"a dispatcher drained for {took_s:g} s")

    # --- the requesters ---

    def client(self, name: str, tenant: str = TENANT) -> EdgeClient:
        """The production SDK on the simulated network."""
        transport = SimTransport(self.network, tenant, 120.0, self.fork(f"{name}/client"))
        return EdgeClient(transport=transport)

    def add_requester(self, name: str, tenant: str, plan: Sequence[Planned]) -> Host:
        """A host that submits the tenant's jobs and reads each to its end."""

        async def main(host: Host) -> None:
            async with self.client(host.name, tenant) as client:
                await asyncio.gather(*(self._follow(client, job) for job in plan))

        host = Host(name, self.loop, self.folder, main)
        host.on_end = self.came_to_an_end
        self.plan += plan
        self.requesters.append(host)
        return host

    async def _follow(self, client: EdgeClient, job: Planned) -> None:
        """Submit a job and read it to its end, over as many failures as there are."""
        await asyncio.sleep(job.after_s)
        while True:
            handle = client.submit(
                "noop", job.data, idempotency_key=job.key, deadline_s=job.deadline_s
            )
            try:
                status = await handle
                break
            except (DispatcherUnreachable, JobRefused) as error:
                self.ledger.note(f"{job.tenant}: {job.key} not accepted: {error}")
                if isinstance(error, JobRefused) and not is_passing(error):
                    self.ledger.violated("S8", f"{job.key} refused: {error}")
                    return
        submitted = self.was_accepted(job, status)
        while True:  # a dead letter may be requeued long after its job's end
            await self._read(client, submitted)
            if self.is_healed and submitted.needs_reading_again:
                await self._read_again(client, submitted)
            await asyncio.sleep(_LOOK_S)

    async def _read_again(self, client: EdgeClient, submitted: Submitted) -> None:
        """As somebody new would, who has no cursor: he comes to the end as well."""
        cursors: list[int] = []
        try:
            cursors += [result.cursor async for result in client.results(submitted.job)]
        except DispatcherUnreachable as error:
            self.ledger.note(f"requester: {submitted.job} unreachable: {error}")
            return
        submitted.was_read_again = True
        lacking = {seen.cursor for seen in submitted.read if seen.ok}.difference(cursors)
        is_whole = self.ledger.has_gone_back or not lacking
        if not is_whole or cursors != sorted(set(cursors)):
            self.ledger.violated("S4", f"{submitted.job} was read again as {cursors}")

    def was_accepted(self, job: Planned, status: JobStatus) -> Submitted:
        """Somebody has just been told that a job is accepted: it must be the one of its key."""
        known = self.ledger.keys.setdefault((job.tenant, job.key), status.job)
        if known != status.job:
            self.ledger.violated("S8", f"{job.key} is two jobs: {known}, {status.job}")
        submitted = self.ledger.jobs.setdefault(
            status.job, Submitted(status.job, job.tenant, job.key, job.data)
        )
        if submitted.tenant != job.tenant:
            self.ledger.violated(
                "S10", f"{status.job} of {submitted.tenant} is also {job.tenant}'s"
            )
        self.ledger.note(f"{job.tenant}: {job.key} accepted as {status.job}")
        self.witness.accepted(status.job)
        return submitted

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


def is_passing(error: DispatcherRefused) -> bool:
    """Whether asking again later may be answered otherwise."""
    if error.problem.code == "unknown_object":
        return True  # an older store was put back: what was uploaded is uploaded again
    return error.problem.status in {429, 502, 503, 504, 507}


def _packed(output: object) -> bytes:
    return b"" if output is None else msgspec.msgpack.encode(output)


def tensor_item(number: int) -> bytes:
    """A tensor that no other item has."""
    value = msgspec.msgpack.encode(
        [Tensor(name="x", datatype="FP32", shape=(1,), data=number.to_bytes(4, "little"))]
    )
    return bytes(value)
