"""The car's shell: one loop in which events go through the core and commands become effects.

Invariants
- Every event is handled in the callback that brings it, those of the engine together at the end of
  that turn of the loop. A sensor's edge goes before whatever waits, and the engine is frozen in
  the same callback.
- Every command that is spawned ends as exactly one event, failure included.
- A defect (an exception out of the core or of a task) ends the agent: `wait_ended` raises it,
  the journal has what matters, and a new process goes on from there.
- An idle car loads neither numpy nor onnxruntime: the engine's process does.

Deliberately absent: decisions, which are the core's; reading flags and composing adapters, which
is the command line's; a way to reach the car from outside, which does not exist.
"""

import asyncio
import platform
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, assert_never

import msgspec
import structlog

from edge_runtime import __version__
from edge_runtime.bus import (
    Bus,
    BusError,
    BusOverflow,
    BusSettings,
    Connected,
    Disconnected,
    Message,
    TlsSettings,
)
from edge_runtime.contract import limits
from edge_runtime.contract.clock import NS_PER_MS, PLAUSIBLE_UTC_MS, Now
from edge_runtime.contract.errors import ConfigError, RejectionReason
from edge_runtime.contract.messages import Fence
from edge_runtime.contract.package import KNOWN_TASKS
from edge_runtime.contract.reasons import HoldReason
from edge_runtime.contract.topics import DEFAULT_NAMESPACE, Topics, require_id
from edge_runtime.vehicle.clock import read_clock
from edge_runtime.vehicle.core import commands as do
from edge_runtime.vehicle.core.energy import EnergyFacts
from edge_runtime.vehicle.core.events import (
    BusConnected,
    BusDisconnected,
    BytesMoved,
    ClockJudged,
    EnergyMeasured,
    Event,
    ModelReady,
    PolicyChanged,
    ShutdownRequested,
    SignalsRead,
    Tick,
)
from edge_runtime.vehicle.core.machine import VehicleCore
from edge_runtime.vehicle.core.snapshot import CarFacts
from edge_runtime.vehicle.core.stops import StopSummary
from edge_runtime.vehicle.core.wear import UNKNOWN_CELL
from edge_runtime.vehicle.energy.counters import PowerMeter
from edge_runtime.vehicle.energy.tables import wear_table
from edge_runtime.vehicle.engine_room import EngineRoom
from edge_runtime.vehicle.identity import NOBODY, Identity
from edge_runtime.vehicle.intake import Hosts, Intake
from edge_runtime.vehicle.journal import Journal
from edge_runtime.vehicle.models.fetching import fetching
from edge_runtime.vehicle.models.supply import Supply
from edge_runtime.vehicle.objects import InputFetcher, OutputSender, StartProcess
from edge_runtime.vehicle.outgoing import Outgoing
from edge_runtime.vehicle.owner import OwnerReport, Tally, report_running
from edge_runtime.vehicle.owner_decisions import decisions_path
from edge_runtime.vehicle.policy_file import PolicyFile
from edge_runtime.vehicle.ports import EmitEvent, Engine, PackageStore, Sensors
from edge_runtime.vehicle.tracing import record_unit

_CLOCK_SLACK_S: Final = 3_600
_PACKET_BYTES: Final = 64
"""What TCP/IP, TLS and MQTT add to a message, about; re-sent packets are not seen here."""
_FAREWELL_S: Final = limits.CAR_FAREWELL_MS / 1000

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class VehicleSettings:
    """What a car needs to know. The journal is `state_dir/journal.db`.

    `models_url` is where packages are fetched; None: where a dispatcher says. `units_max` bounds
    the units held at once. `compute_power_w` is what the computer draws while it infers and
    `idle_power_w` without work, where that was measured; `pack_kwh` and `cell` (a name of
    `vehicle.energy.tables`) are the traction battery's. `tasks` are those that its installation
    can do; it announces them, and refuses offers of others.
    """

    vehicle: str
    broker_url: str
    state_dir: Path
    policy: Path
    namespace: str = DEFAULT_NAMESPACE
    protocol: int = 5
    region: str = "default"
    hardware: str = f"cpu-{platform.machine()}"
    units_max: int = 4
    compute_power_w: float = 40.0
    idle_power_w: float | None = None
    pack_kwh: float = 60.0
    cell: str = UNKNOWN_CELL
    models_url: str | None = None
    tasks: tuple[str, ...] = tuple(sorted(KNOWN_TASKS))
    tls: TlsSettings = field(default_factory=TlsSettings)

    def __post_init__(self) -> None:
        require_id("vehicle id", self.vehicle)
        require_id("region", self.region)
        if not 1 <= self.units_max <= limits.CAR_UNITS_MAX:
            raise ConfigError(
                f"units_max must be 1 to {limits.CAR_UNITS_MAX}, not {self.units_max}"
            )
        for name, value, most in (
            ("compute_power_w", self.compute_power_w, limits.POWER_MAX_W),
            ("idle_power_w", self.idle_power_w or 0.0, self.compute_power_w),
            ("pack_kwh", self.pack_kwh, limits.PACK_MAX_KWH),
        ):
            if not 0 <= value <= most or (value == 0 and name == "pack_kwh"):
                raise ConfigError(f"{name} must be over 0 and at most {most:g}, not {value:g}")
        wear_table(self.cell)


class VehicleAgent:
    """One car. Use as an async context manager: leaving gives all work back and says goodbye.

    Entering raises `JournalHeld` when another process has this car's journal, `JournalError`
    when the journal cannot be used.
    """

    def __init__(
        self,
        settings: VehicleSettings,
        *,
        open_bus: Callable[[BusSettings], Bus],
        make_engine: Callable[[EmitEvent], Engine],
        packages: PackageStore,
        sensors: Sensors,
        identity: Identity = NOBODY,
        clock: Callable[[], Now] = read_clock,
        open_journal: Callable[[Path], Journal] = Journal,
        rng: random.Random | None = None,
        meter: PowerMeter | None = None,
        start_fetching: StartProcess = fetching,
    ) -> None:
        self._start_fetching = start_fetching
        self.settings = settings
        self._open_bus = open_bus
        self._make_engine = make_engine
        self.packages = packages
        self._sensors = sensors
        self._meter = meter
        self._sent_bytes = self._received_bytes = 0
        self._clock = clock
        self._open_journal = open_journal
        # Bound once: a busy car writes a thousand lines a second.
        self._lines = _log.bind(vehicle=settings.vehicle)
        self._topics = Topics(settings.namespace)
        self._hosts = Hosts(settings.models_url)
        # It only spreads cars over time.
        jitter = rng or random.Random()  # noqa: S311 - no secret
        self._identity = identity
        self._intake = Intake(
            settings.vehicle, self._topics, self._hosts, jitter.random, identity.verify
        )
        self._policy = PolicyFile(settings.policy, decisions_path(settings.state_dir))
        self._tally = Tally()
        self._urgent: list[Event] = []
        self._events: list[Event] = []
        self._drain_asked = False
        self._is_handling = False
        self._is_busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0
        self._timer_asked = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._stack = AsyncExitStack()
        self._has_left = asyncio.Event()
        self._farewell: Message | None = None
        self.overflows = 0
        self.leaves_for = HoldReason.DRAINING
        """What the dispatcher is told when this agent leaves."""
        self.bus_tried = asyncio.Event()
        """Set once the broker has been reached, or not, for the first time."""
        # Bound once: a line is written for every unit.
        self._lines = _log.bind(vehicle=settings.vehicle)
        self.core: VehicleCore
        self.boot = 0
        self._loop: asyncio.AbstractEventLoop
        self._ended: asyncio.Future[None]
        self._journal: Journal
        self._room: EngineRoom
        self._outgoing: Outgoing
        self._supply: Supply
        self._inputs: InputFetcher
        self._outputs: OutputSender
        self._bus: Bus

    @property
    def engine(self) -> Engine:
        """The engine, to look at."""
        return self._room.engine

    @property
    def stops(self) -> StopSummary:
        """How work was stopped since this process began, by tier."""
        return self.core.work.stops.summary()

    @property
    def rejected(self) -> Counter[RejectionReason]:
        """Messages that were not accepted, by reason."""
        return self._intake.rejected

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection to the broker."""
        return self._bus.is_connected

    # --- life ----------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        try:
            self._recover()
            self._room = EngineRoom(self._make_engine, self.packages, self._computed, self._spawn)
            self._stack.push_async_callback(self._room.close)
            self._supply = Supply(
                self.packages,
                vehicle=self.settings.vehicle,
                urls=self._hosts.urls,
                tell=self.tell,
                is_network_allowed=lambda: self.core.is_network_allowed,
            )
            self._inputs = InputFetcher(
                self.settings.state_dir / "inputs",
                urls=self._hosts.urls,
                tell=self.tell,
                may_fetch=lambda unit: (
                    self.core.is_network_allowed and unit in self.core.work.attempts
                ),
                start=self._start_fetching,
            )
            self._outputs = OutputSender(
                self.settings.state_dir / "outputs",
                read=self._output,
                urls=self._hosts.urls,
                tell=self.tell,
                may_upload=lambda unit, fence: (
                    self.core.is_upload_allowed and self.core.work.holds_outputs((unit, fence))
                ),
                start=self._start_fetching,
            )
            self._bus = await self._stack.enter_async_context(self._open_bus(self._bus_settings()))
        except BaseException:
            await self._stack.aclose()
            raise
        self._judge_clock()
        for digest in reversed(list(self.packages.digests())):
            self.tell(ModelReady(digest))
        self._spawn(self._read_bus(), "read bus")
        self._spawn(self._sensors.run(self._sensed), "sensors")
        self._spawn(self._look_around(), "look around")
        self._spawn(self._supply.check_forever(), "check packages")
        if self._identity is not NOBODY:
            self._spawn(self._use_renewed(), "use renewed certificates")
            self._spawn(self._identity.keep_renewed(), "renew certificates")
        return self

    def _recover(self) -> None:
        """Open the journal and build the core from what it kept."""
        settings, now = self.settings, self._clock()
        self._journal = self._open_journal(settings.state_dir / "journal.db")
        self._stack.push_async_callback(asyncio.to_thread, self._journal.close)
        snapshot = self._journal.load(now.utc_ms // 1000)
        self.boot = snapshot.boot
        facts = CarFacts(
            vehicle=settings.vehicle,
            boot=snapshot.boot,
            runtime=f"edge-runtime {__version__}",
            hardware=settings.hardware,
            region=settings.region,
            tasks=settings.tasks,
            units_max=settings.units_max,
            compute_power_w=settings.compute_power_w,
            energy=EnergyFacts(
                idle_w=settings.idle_power_w,
                pack_kwh=settings.pack_kwh,
                wear=wear_table(settings.cell),
            ),
        )
        self._outgoing = Outgoing(settings.vehicle, snapshot.boot, self._topics)
        self.core = VehicleCore(facts, self._policy.read(), snapshot, now)
        _log.info(
            "vehicle_started",
            vehicle=settings.vehicle,
            boot=snapshot.boot,
            attempts=len(snapshot.attempts),
            chunks=len(snapshot.chunks),
            corrupt_chunks=self.core.corrupt_chunks,
        )
        self._journal.start(self._committed)

    async def wait_ended(self) -> None:
        """Wait until something breaks; raises what did. Cancel it to leave in good order."""
        await asyncio.shield(self._ended)

    async def __aexit__(self, *exc: object) -> None:
        try:
            if not self._ended.done():
                await self._leave()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._stack.aclose()
            if self._ended.done() and not self._ended.cancelled():
                self._ended.exception()  # whoever waits has it; nobody may be waiting
            _log.info("vehicle_stopped", vehicle=self.settings.vehicle, boot=self.boot)

    async def _leave(self) -> None:
        """Give everything back and say goodbye, within the time that a shutdown allows."""
        self.tell(ShutdownRequested(self.leaves_for))
        try:
            async with asyncio.timeout(limits.CAR_CLOSE_MAX_S / 2 + _FAREWELL_S):
                await self._has_left.wait()
        except TimeoutError:
            _log.error("leaving_took_too_long", held=len(self.core.work.attempts))
        if self._farewell is None:
            return
        try:
            async with asyncio.timeout(_FAREWELL_S):
                await self._bus.publish(self._farewell)
        except (BusError, BusOverflow, TimeoutError) as error:
            _log.info("goodbye_unheard", why=str(error))

    def _bus_settings(self) -> BusSettings:
        settings, topics = self.settings, self._topics
        return BusSettings(
            url=settings.broker_url,
            client_id=f"{settings.namespace}-{settings.vehicle}",
            protocol=settings.protocol,
            will=self._outgoing.will(self.core.first_will()),
            subscriptions=((topics.down_all(settings.vehicle), 1), (topics.host_all(), 1)),
            canary_topic=topics.canary(settings.vehicle),
            # Every connect subscribes afresh: some brokers send retained topics (who serves
            # packages?) only to a subscription that they did not have. What a kept session
            # would queue is sent again by the dispatcher anyway.
            session_expiry_s=0,
            tls=settings.tls,
        )

    # --- the loop ------------------------------------------------------------------------

    def tell(self, event: Event) -> None:
        """Handle an event now; one that comes while another is handled is next in line."""
        self._events.append(event)
        if not self._is_handling:
            self._drain()

    def _computed(self, event: Event) -> None:
        """The engine tells of many items in one message: they are handled together."""
        self._events.append(event)
        if not self._is_handling and not self._drain_asked:
            self._drain_asked = True
            self._loop.call_soon(self._drain_soon)

    def _drain_soon(self) -> None:
        self._drain_asked = False
        if not self._is_handling:
            self._drain()

    def _sensed(self, event: SignalsRead) -> None:
        self._urgent.append(event)
        if not self._is_handling:
            self._drain()

    def _committed(self, event: Event) -> None:
        """From the journal's thread."""
        self._loop.call_soon_threadsafe(self.tell, event)

    def _drain(self) -> None:
        self._is_handling = True
        try:
            while self._urgent or self._events:
                # What the sensors say is obeyed before anything else is looked at.
                source = self._urgent or self._events
                events = tuple(source)
                source.clear()
                for command in self.core.handle_all(events, self._clock()):
                    self._obey(command)
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends the agent, with its cause
            self._fail(error)
        finally:
            self._is_handling = False
        is_busy = self.core.is_computing
        if is_busy is not self._is_busy:
            self._is_busy = is_busy
            self._sensors.note_load(is_busy=is_busy)
            if self._meter is not None:
                self._measured(self._meter.note_load(is_busy=is_busy))
        if not self._timer_asked:
            self._timer_asked = True
            self._loop.call_soon(self._set_timer)

    def _measured(self, event: EnergyMeasured | None) -> None:
        if event is not None:
            self._computed(event)

    def _set_timer(self) -> None:
        """Wake when the core wants to be; asked once per turn of the loop."""
        self._timer_asked = False
        now = self._clock()
        latest_ns = now.boot_ns + limits.CAR_TIMER_MAX_MS * NS_PER_MS
        due_ns = min(self.core.next_deadline(now) or latest_ns, latest_ns)
        if self._timer is not None:
            if due_ns == self._timer_ns:
                return
            self._timer.cancel()
        self._timer_ns = due_ns
        self._timer = self._loop.call_later(max(0, due_ns - now.boot_ns) / 1e9, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.tell(Tick())

    def _fail(self, error: BaseException) -> None:
        if not self._ended.done():
            _log.error("vehicle_broke", exc_info=error)
            self._ended.set_exception(error)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        task = self._loop.create_task(work, name=f"{self.settings.vehicle} {name}")
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    # --- commands ------------------------------------------------------------------------

    def _obey(self, command: do.Command) -> None:
        match command:
            case do.Persist():
                self._journal.persist(command)
            case do.FreezeEngine():
                self._room.freeze()
            case do.SubmitRun():
                self._room.submit(command)
            case do.CancelRun():
                self._room.cancel(command.run_id)
            case do.ThawEngine():
                self._room.thaw()
            case do.KillEngine():
                self._room.kill()
            case do.PublishOffline():
                self._farewell = self._outgoing.message(command)
            case (
                do.PublishBirth()
                | do.ClearStatus()
                | do.PublishState()
                | do.PublishVerdicts()
                | do.PublishChunks()
            ):
                self._publish(self._outgoing.message(command))
            case do.SetWill():
                self._spawn(self._bus.set_will(self._outgoing.will(command)), "set will")
            case do.EnsureModel() | do.FetchInputs() | do.UploadOutputs():
                self._exchange(command)
            case do.LogUnit():
                self._tally.add(command)
                self._lines.info("unit", **_fields(command))
                record_unit(self.settings.vehicle, command, self._clock().utc_ms)
            case do.LogStop():
                self._lines.info("engine_stopped", **_fields(command))
            case do.LogState():
                self._lines.info("availability", **_fields(command))
            case do.Leave():
                self._has_left.set()
            case _:
                assert_never(command)

    def _exchange(self, command: do.EnsureModel | do.FetchInputs | do.UploadOutputs) -> None:
        match command:
            case do.EnsureModel():
                self._spawn(self._supply.have(command.digest), "fetch model")
            case do.FetchInputs():
                self._spawn(self._inputs.fetch(command), "fetch inputs")
            case do.UploadOutputs():
                self._spawn(self._outputs.upload(command), "upload outputs")

    def _publish(self, message: Message) -> None:
        """A hint: what matters is sent again until the dispatcher has answered."""
        self._sent_bytes += len(message.topic) + len(message.payload) + _PACKET_BYTES
        try:
            self._bus.publish_soon(message)
        except BusOverflow:
            self.overflows += 1  # the bus counts and logs it; the core sends again

    def _output(self, unit: int, fence: Fence, seq: int, sha256: str) -> bytes | None:
        """An output that is to be handed over: a request's from memory, a job's from the journal.

        Called beside the loop's thread; a look at a dictionary is one step of the interpreter.
        """
        held = self.core.work.handover.output((unit, fence), seq, sha256)
        return self._journal.output(unit, fence, seq, sha256) if held is None else held

    # --- sources of events -----------------------------------------------------------------

    async def _read_bus(self) -> None:
        turn_s = limits.CAR_BUS_TURN_MS / 1000
        turn_ends_s = self._loop.time() + turn_s
        async for event in self._bus.events():
            match event:
                case Message():
                    self._received(event)
                case Connected():
                    self.bus_tried.set()
                    self.tell(BusConnected())
                case Disconnected():
                    self.bus_tried.set()
                    self.tell(BusDisconnected())
            if self._loop.time() > turn_ends_s:
                await asyncio.sleep(0)
                turn_ends_s = self._loop.time() + turn_s

    def _received(self, message: Message) -> None:
        self._received_bytes += len(message.topic) + len(message.payload) + _PACKET_BYTES
        event = self._intake.event(message)
        if event is not None:
            self.tell(event)
        elif self._hosts.urls():
            self._supply.heard_of_hosts()

    async def _look_around(self) -> None:
        """Once a second: look whether the owner changed the policy, and at the clock."""
        while True:
            await asyncio.sleep(limits.SENSOR_PERIOD_MS / 1000)
            self.look_again()
            self._supply.look_at_network()
            self._inputs.look()
            self._outputs.look()
            self._count_costs()

    def owner_report(self) -> OwnerReport:
        """What the owner may know of this car now."""
        vehicle, now = self.settings.vehicle, self._clock()
        return report_running(vehicle, self._policy, self.core, self._tally, now)

    def look_again(self) -> None:
        """Obey the owner's policy as it is on disk now, and judge the clock."""
        policy = self._policy.changed()
        if policy is not None:
            self.tell(PolicyChanged(policy))
        self._judge_clock()

    async def _use_renewed(self) -> None:
        """Connect again with renewed certificates: when no work is held, or it never rests."""
        waits_since_s: float | None = None
        while True:
            await asyncio.sleep(limits.IDENTITY_LOOK_S)
            now_s = self._loop.time()
            if self._identity.look():
                waits_since_s = now_s
            if waits_since_s is None:
                continue
            waited_s = now_s - waits_since_s
            if not self.core.work.attempts or waited_s >= limits.RENEWED_QUIET_WAIT_MAX_S:
                waits_since_s = None
                self._bus.reconnect("certificates were renewed")

    def _count_costs(self) -> None:
        """Tell what was drawn and what was sent and received since the last time."""
        if self._meter is not None:
            self._measured(self._meter.look())
        self._received_bytes += self._supply.take_fetched_bytes()
        self._received_bytes += self._inputs.take_received_bytes()
        self._sent_bytes += self._outputs.take_sent_bytes()
        if self._sent_bytes or self._received_bytes:
            self.tell(BytesMoved(self._sent_bytes, self._received_bytes))
            self._sent_bytes = self._received_bytes = 0

    def _judge_clock(self) -> None:
        """A clock before this program was written, or before this boot was numbered, is wrong."""
        utc_ms = self._clock().utc_ms
        is_trusted = utc_ms >= PLAUSIBLE_UTC_MS and utc_ms // 1000 + _CLOCK_SLACK_S >= self.boot
        if is_trusted is not self.core.work.is_clock_trusted:
            _log.info("clock_judged", is_trusted=is_trusted)
            self.tell(ClockJudged(is_trusted))


def _fields(record: do.LogUnit | do.LogStop | do.LogState) -> dict[str, Any]:
    fields = msgspec.structs.asdict(record)
    if isinstance(record, do.LogUnit | do.LogStop):
        fields["wasted_wh"] = round(record.wasted_wh, 6)
    if isinstance(record, do.LogUnit):
        fields["fence"] = f"{record.fence.epoch}.{record.fence.counter}"
        for name in ("held_ms", "busy_ms", "load_ms", "energy_j"):
            fields[name] = round(fields[name], 3)
    return fields
