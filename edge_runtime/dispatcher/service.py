"""The dispatcher's shell: events in, ticks of the core, commit, then publish.

Invariants
- Order of effects: decide, commit (one transaction a tick), publish. Nothing leaves before its
  commit; while a commit fails, nothing leaves at all and what cars send is dropped with the
  reason `store_unavailable` (they send it again).
- One tick at a time. Events that arrive during a commit wait for the next tick: that is the
  group commit.
- What is interactive waits for no tick and no commit: it goes past them (`interactive`).
- A store that is damaged ends the service: restarting it is safe, going on is not.
"""

import asyncio
import contextlib
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import msgspec
import structlog

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
from edge_runtime.contract import codec, limits
from edge_runtime.contract.clock import PLAUSIBLE_UTC_MS, Now
from edge_runtime.contract.errors import Rejected, RejectionReason
from edge_runtime.contract.messages import Control, HostStatus, JobStatus, WorkOffer
from edge_runtime.contract.reasons import ReleaseReason
from edge_runtime.contract.topics import DEFAULT_NAMESPACE, Down, Topics, require_id
from edge_runtime.dispatcher.core.commands import (
    AddResult,
    Command,
    EndAttempt,
    FailRemaining,
    FindAttempt,
    LoadCommand,
    LoadItems,
    LoadJobs,
    PublishOffer,
    PublishOrders,
    PublishStatus,
    StoreCommand,
)
from edge_runtime.dispatcher.core.events import (
    Event,
    QuarantineSet,
    StateReported,
    VehicleBorn,
    VehicleWent,
)
from edge_runtime.dispatcher.core.machine import DispatcherCore
from edge_runtime.dispatcher.intake import Intake, OutputProblem
from edge_runtime.dispatcher.interactive import InteractiveDesk
from edge_runtime.dispatcher.publisher import Publisher
from edge_runtime.dispatcher.receiving import Receiver
from edge_runtime.dispatcher.requests import TenantRequests
from edge_runtime.dispatcher.shelf import Shelf
from edge_runtime.dispatcher.storage import Recovered, Store, StoreDamaged, StoreError
from edge_runtime.dispatcher.totals import WorkTotals

_log = structlog.get_logger(__name__)
_MSGPACK = "application/x-msgpack"
_COMMIT_RETRY_FIRST_S = 0.05
_UNIT_BITS_PER_EPOCH = 22


def system_clock() -> Now:
    """This machine's clocks."""
    return Now(time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns() // 1_000_000)


@dataclass(frozen=True, slots=True)
class DispatcherSettings:
    """What a dispatcher needs to know.

    `repository` is a signed repository to serve, `repository_keys` are folders with the keys of its
    snapshot and timestamp, none where somebody else signs. `tls` is for a broker at `mqtts://`;
    `signer` signs every `dn` message, None leaves them bare.
    """

    broker_url: str
    models_dir: Path | None = None
    repository: Path | None = None
    repository_keys: tuple[Path, ...] = ()
    dispatcher_id: str = "dispatcher"
    namespace: str = DEFAULT_NAMESPACE
    protocol: int = 5
    tls: TlsSettings = field(default_factory=TlsSettings)
    signer: codec.Signer | None = None

    def __post_init__(self) -> None:
        require_id("dispatcher id", self.dispatcher_id)


@dataclass(slots=True)
class _Tick:
    """A batch of events that one caller wants to know committed."""

    events: Sequence[Event]
    done: asyncio.Future[None] | None = None


def _first_unit(epoch: int) -> int:
    """The first unit number of an epoch (in UTC seconds), beyond those of all earlier ones.

    A store that is put back from a backup does not know the units given out since; a car that
    still runs one of them would take a new unit of that number for it.
    """
    return max(0, epoch - PLAUSIBLE_UTC_MS // 1000) << _UNIT_BITS_PER_EPOCH


class DispatcherService:
    """One dispatcher. Use as an async context manager; `wait_failed` ends when it cannot go on."""

    def __init__(
        self,
        settings: DispatcherSettings,
        store: Store,
        open_bus: Callable[[BusSettings], Bus],
        clock: Callable[[], Now] = system_clock,
    ) -> None:
        self.settings = settings
        self.topics = Topics(settings.namespace)
        self.store = store
        self.clock = clock
        self.counters: Counter[str] = Counter()
        self.shelf = Shelf(settings.models_dir, settings.repository)
        self.store_state = "opening"
        self.models_url = ""
        self.bus_tried = asyncio.Event()
        """Set once the broker has been reached, or not, for the first time."""
        self.watchers: list[Callable[[Sequence[Command]], object]] = []
        """Told what a tick has committed and published; they only look."""
        self._committing_since_s: float | None = None
        self._announce_again_at_s = 0.0
        self.committed = Committed()
        self.requests = TenantRequests(self.topics, store, clock, self.publish, self.counters)
        self.ended_jobs = asyncio.Lock()
        """Held while an ended job is deleted, or read and run again: never both."""
        self._intake = Intake(self.topics, self.counters)
        self._output_place: Callable[[str, str], str] = lambda _tenant, _job: ""
        # Bound once: thousands of lines a second come from here.
        self._lines = _log.bind()
        self._inbox: list[_Tick] = []
        self._inbox_events = 0
        self._wake = asyncio.Event()
        self._has_told_all = False
        self._drained = asyncio.Event()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: list[asyncio.Task[None]] = []
        self._stack = contextlib.AsyncExitStack()
        self._is_closing = False
        self._open_bus = open_bus
        self.core: DispatcherCore
        self.totals: WorkTotals
        self.interactive: InteractiveDesk
        self.bus: Bus
        self.publisher: Publisher

    # --- life ---

    async def __aenter__(self) -> Self:
        now = self.clock()
        recovered = await self.store.open(now.utc_ms // 1000)
        self._stack.push_async_callback(self.store.close)
        try:
            self.store_state = "ok"
            self._rebuild(recovered, now)
            await asyncio.to_thread(self.shelf.scan)
            self.bus = await self._stack.enter_async_context(self._open_bus(self._bus_settings()))
            self.publisher = Publisher(self.bus, self.store, self.topics, self.counters)
            self.publisher.catch_up(await self.store.unpublished(limits.STATUSES_WAITING_MAX))
            for tenant, job in await self.store.to_clear(limits.STATUSES_WAITING_MAX):
                self.publisher.clear_status(tenant, job)
        except BaseException:
            await self._stack.aclose()
            raise
        for work in (self._read_bus, self._tick_forever, self.publisher.run):
            self._spawn(work)
        _log.info(
            "dispatcher_started",
            dispatcher=self.settings.dispatcher_id,
            epoch=self.core.state.epoch,
            open_jobs=len(self.core.state.jobs),
            live_attempts=len(self.core.state.units),
            cars=len(self.core.fleet),
            signs_as=None if self.settings.signer is None else self.settings.signer.key_id,
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._is_closing = True
        self.interactive.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for tick in self._inbox:
            if tick.done is not None and not tick.done.done():
                tick.done.cancel()
        with contextlib.suppress(StoreError):
            await self.publisher.flush()
        await self.write_totals()
        if self.bus.is_connected:
            with contextlib.suppress(BusError, BusOverflow, TimeoutError):
                async with asyncio.timeout(limits.BUS_CLOSE_TIMEOUT_S):
                    await self.bus.publish(self._host_message(online=False))
        self.committed.close()
        await self._stack.aclose()
        _log.info("dispatcher_stopped", dispatcher=self.settings.dispatcher_id)

    async def wait_failed(self) -> None:
        """Returns never, or raises what made the service unable to go on."""
        await asyncio.shield(self._failed)

    def _spawn(self, work: Callable[[], Awaitable[None]]) -> None:
        async def guarded() -> None:
            try:
                await work()
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it was ends the service, with its cause
                _log.exception("dispatcher_failed", task=work.__qualname__)
                if not self._failed.done():
                    self._failed.set_exception(error)

        self._tasks.append(asyncio.create_task(guarded(), name=work.__qualname__))

    def spawn(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run something for as long as the service lives; its failure is the service's."""
        self._spawn(work)

    def take_outputs(self, place: Callable[[str, str], str], problem: OutputProblem) -> None:
        """Know who keeps large outputs; until then no result that refers to one is taken.

        `place` says where those of a tenant's job may be put (empty: nowhere), `problem` what is
        wrong with one that a car refers to.
        """
        self._output_place = place
        self._intake.output_problem = problem

    def receive_outputs(
        self, random_bytes: Callable[[int], bytes] = secrets.token_bytes
    ) -> Receiver:
        """From now on cars may hand in large outputs of requests that wait."""
        receiver = self.interactive.receive_outputs(self.counters, random_bytes)
        self._intake.request_output_problem = receiver.problem
        return receiver

    def _rebuild(self, recovered: Recovered, now: Now) -> None:
        core = DispatcherCore(
            epoch=recovered.epoch,
            next_job_no=recovered.next_job_no,
            next_unit=max(recovered.next_unit, _first_unit(recovered.epoch)),
        )
        fleet = core.fleet
        for birth in recovered.births:
            fleet.born(birth)
        for vehicle in recovered.quarantined:
            if vehicle in fleet.row_of:
                fleet.quarantine(fleet.row_of[vehicle], on=True)
        for job in recovered.jobs:
            core.restore_job(job)
        for tenant in recovered.tenants_with_more:
            core.has_more(tenant)
        for attempt in recovered.attempts:
            core.restore_attempt(attempt, now)
        self.core = core
        self.totals = WorkTotals(recovered)
        self.watchers.append(self.totals.watch)
        self.interactive = InteractiveDesk(
            core.state, self.topics, self.clock, self.publish, self.settings.signer
        )
        self.interactive.on_work = self.totals.wait
        self._wake.set()

    # --- the bus ---

    def _bus_settings(self) -> BusSettings:
        settings = self.settings
        return BusSettings(
            url=settings.broker_url,
            client_id=f"{settings.namespace}-dispatcher-{settings.dispatcher_id}",
            protocol=settings.protocol,
            will=self._host_message(online=False),
            subscriptions=((self.topics.up_all(), 1), (self.topics.tenant_request(), 1)),
            tls=settings.tls,
        )

    def _host_message(self, *, online: bool) -> Message:
        status = HostStatus(
            dispatcher=self.settings.dispatcher_id,
            epoch=self.core.state.epoch,
            online=online,
            models_url=self.models_url,
        )
        return Message(
            topic=self.topics.host(self.settings.dispatcher_id),
            payload=codec.encode(status),
            retain=True,
        )

    def announce(self, models_url: str) -> None:
        """Cars fetch packages here from now on."""
        self.models_url = models_url
        if self.bus.is_connected:
            self.publish(self._host_message(online=True))

    def announce_again(self) -> None:
        """A car may not know where packages are: the broker may have lost what it was told."""
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._announce_again_at_s and self.bus.is_connected:
            self._announce_again_at_s = now_s + limits.HOST_ANNOUNCE_AGAIN_S
            self.publish(self._host_message(online=True))

    async def _read_bus(self) -> None:
        async for event in self.bus.events():
            match event:
                case Message():
                    await self._message(event)
                case Connected(session_present=session_present):
                    self.bus_tried.set()
                    self.publish(self._host_message(online=True))
                    self.core.ask_who_is_there(self.clock())
                    self._wake.set()
                    await self._publish_retained_again(is_kept=session_present)
                case Disconnected():
                    self.bus_tried.set()
                    self.counters["bus_disconnects"] += 1

    async def _message(self, message: Message) -> None:
        if message.topic.endswith("/request"):
            self.requests.take(message)
            return
        if message.topic.endswith("/up/canary"):
            return  # a car testing its own permissions
        heard = self.interactive.heard
        events = [event for event in self._intake.events(message) if not heard(event)]
        if not events:
            return
        if self.store_state != "ok":
            self._intake.count(Rejected(RejectionReason.STORE_UNAVAILABLE))
            return
        self._put(_Tick(events))
        if self._inbox_events >= limits.INBOX_EVENTS_MAX:
            self._drained.clear()
            await self._drained.wait()

    async def _publish_retained_again(self, *, is_kept: bool) -> None:
        """The broker may have kept nothing of us: publish the retained status topics again.

        Where it kept the session, only those are missing that were acknowledged since its last
        snapshot. Of this process's first connection even that is not believed: the one before may
        have died while it told a broker that had forgotten everything.
        """
        for job in list(self.core.state.jobs.values()):
            self.publisher.status(job.status())
        is_recent = is_kept and self._has_told_all
        back_s = limits.JOB_STATUS_AGAIN_S if is_recent else limits.JOB_STATUS_RETAINED_S
        since_ms = self.clock().utc_ms - back_s * 1000
        # Not only up to now: the clock may have been set back since they ended.
        ended = await self.store.ended_between(
            since_ms, limits.COUNT_MAX, limits.STATUSES_WAITING_MAX
        )
        for status in ended:
            self.publisher.status(status)
        self._has_told_all = True

    def publish(self, message: Message) -> None:
        """Queue a message; what does not fit is counted."""
        try:
            self.bus.publish_soon(message)
        except BusOverflow as overflow:
            # Offers and orders are sent again by the core's timers until they are answered.
            self.counters[f"publish_{overflow.reason.value}"] += 1

    # --- ticks ---

    async def commit(self, events: Sequence[Event]) -> None:
        """Hand events to the core; returns when what they decided is durable."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._put(_Tick(events, done))
        await done

    @property
    def is_ready(self) -> bool:
        """Whether new work should come here."""
        return self.bus.is_connected and self.store_state == "ok" and not self.is_draining

    @property
    def is_draining(self) -> bool:
        """Whether it takes no new work because it is about to stop."""
        return self.core.is_draining

    async def drain(
        self,
        patience_s: float = limits.DRAIN_MAX_S,
        answers_s: float = limits.DRAIN_ANSWERS_MAX_S,
    ) -> None:
        """Offer nothing more, and wait until cars have told of what they have in hand.

        What is not done after `patience_s` goes on without this process: the store knows it, and
        the next dispatcher takes it up. Who waits for an answer, and has none after `answers_s`
        (counted from the same moment), is told why.
        """
        began_s = asyncio.get_running_loop().time()
        self.core.is_draining = True
        is_quiet = asyncio.Event()

        def look(commands: Sequence[Command]) -> None:
            del commands
            if not self.core.state.units:
                is_quiet.set()

        look(())
        self.watchers.append(look)
        self.interactive.refuse_new()
        in_hand = len(self.core.state.units)
        _log.info("dispatcher_draining", units=in_hand, patience_s=patience_s)
        for quiet, most_s in ((is_quiet, patience_s), (self.interactive.quiet, answers_s)):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(began_s + most_s):
                    await quiet.wait()
        self.interactive.close()
        self.watchers.remove(look)
        _log.info("dispatcher_drained", units_left=len(self.core.state.units), units=in_hand)

    async def write_totals(self) -> None:
        """Write the sums of interactive work; where the store fails they wait on."""
        works = self.totals.take_waiting()
        if not works:
            return
        try:
            await self.store.commit(works)
        except StoreError as error:
            _log.warning("totals_not_stored", error=str(error))
            for work in works:
                self.totals.wait(work)
            return
        for watch in self.watchers:
            watch(works)

    async def take_up(self, job: str) -> None:
        """Bring an open job that waits in the store into memory, out of its turn."""
        event = await self.store.failed_items(job, (), 0, 0)
        if event is not None and not event.job.state.is_terminal:
            self.core.restore_job(event.job, in_order=False)
            self._wake.set()

    @property
    def store_silence_s(self) -> float:
        """How long the commit in hand has neither ended nor failed; 0 without one."""
        since_s = self._committing_since_s
        return 0.0 if since_s is None else asyncio.get_running_loop().time() - since_s

    def all_counters(self) -> dict[str, int]:
        """Every counter of this process, for people and monitoring."""
        counters = self.counters + self.core.state.counters + self.interactive.core.counters
        for reason, count in self.bus.counters.dropped.items():
            counters[f"bus_dropped_{reason.value}"] = count
        counters["totals_dropped_items"] = self.totals.dropped
        counters["bus_received"] = self.bus.counters.received
        counters["bus_published"] = self.bus.counters.published
        counters["bus_reconnects"] = self.bus.counters.reconnects
        return dict(sorted(counters.items()))

    def _put(self, tick: _Tick) -> None:
        self._inbox.append(tick)
        self._inbox_events += len(tick.events)
        self._wake.set()

    async def _tick_forever(self) -> None:
        while True:
            await self._wait_for_work()
            inbox, self._inbox, self._inbox_events = self._inbox, [], 0
            now = self.clock()
            for tick in inbox:
                self._handle(tick.events, now)
            await self._carry_out(self.core.finish_tick(now))
            self._drained.set()
            for tick in inbox:
                if tick.done is not None and not tick.done.done():
                    tick.done.set_result(None)

    async def _wait_for_work(self) -> None:
        if not self._inbox:
            now = self.clock()
            due = self.core.next_deadline_ms(now)
            timeout = None if due is None else max(0.0, (due - now.boot_ms) / 1000)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._wake.wait()
        self._wake.clear()

    def _handle(self, events: Sequence[Event], now: Now) -> None:
        for event in events:
            try:
                self.core.handle(event, now)
            except Rejected as rejected:
                self._intake.count(rejected)
                continue
            match event:
                case StateReported(state=about) | VehicleBorn(birth=about):
                    self.interactive.fleet_changed(about.vehicle)
                case VehicleWent(offline=offline):
                    self.interactive.fleet_changed(offline.vehicle)
                case QuarantineSet(vehicle=vehicle):
                    self.interactive.fleet_changed(vehicle)
                case _:
                    pass

    async def _carry_out(self, commands: Sequence[Command]) -> None:
        to_store: list[StoreCommand] = []
        to_load: list[LoadCommand] = []
        to_publish: list[PublishOffer | PublishOrders | PublishStatus] = []
        for command in commands:
            match command:
                case LoadItems() | LoadJobs() | FindAttempt():
                    to_load.append(command)
                case PublishOffer() | PublishOrders() | PublishStatus():
                    to_publish.append(command)
                case _:
                    to_store.append(command)
        if to_store:
            await self._commit(to_store)
            self._tell_committed(to_store)
        for publish in to_publish:
            self._publish_command(publish)
        for watch in self.watchers:
            watch(commands)
        if to_load:
            await self._load(to_load)

    async def _commit(self, commands: Sequence[StoreCommand]) -> None:
        """Commit, however long it takes: the core has decided and cannot take it back."""
        delay_s = _COMMIT_RETRY_FIRST_S
        loop = asyncio.get_running_loop()
        while True:
            self._committing_since_s = loop.time()
            try:
                await self.store.commit(commands)
            except StoreDamaged:
                raise
            except StoreError as error:
                if self.store_state == "ok":
                    _log.error("store_unavailable", error=str(error))
                self.store_state = str(error)
                self._committing_since_s = None
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, limits.COMMIT_RETRY_MAX_S)
            else:
                if self.store_state != "ok":
                    _log.info("store_recovered")
                self.store_state = "ok"
                self._committing_since_s = None
                return

    async def _load(self, commands: Sequence[LoadCommand]) -> None:
        """Ask until there is an answer: the core waits for exactly one event for each."""
        while True:
            try:
                self._put(_Tick(await self.store.load(commands)))
            except StoreDamaged:
                raise
            except StoreError as error:
                self.store_state = str(error)
                await asyncio.sleep(_COMMIT_RETRY_FIRST_S)
            else:
                self.store_state = "ok"
                return

    def _tell_committed(self, commands: Sequence[StoreCommand]) -> None:
        results = [command for command in commands if isinstance(command, AddResult)]
        if results:
            self.publisher.results(results)
            self.committed.results(results)
        for command in commands:
            if isinstance(command, FailRemaining):
                self._failed_in_bulk(command)
            elif isinstance(command, EndAttempt):
                _log_unit(self._lines, command)
                if command.release_reason is ReleaseReason.MODEL_UNAVAILABLE:
                    self.announce_again()

    def _failed_in_bulk(self, command: FailRemaining) -> None:
        self.publisher.fall_behind(command.tenant, command.job)
        self.committed.job(command.tenant, command.job)

    def _signed(self, message: WorkOffer | Control) -> bytes:
        return codec.encode_signed(message, self.settings.signer)

    def _publish_command(self, command: PublishOffer | PublishOrders | PublishStatus) -> None:
        match command:
            case PublishOffer(vehicle=vehicle, units=units):
                units = tuple(
                    msgspec.structs.replace(unit, outputs=self._output_place(unit.tenant, unit.job))
                    for unit in units
                )
                work = self._signed(WorkOffer(vehicle=vehicle, units=units))
                self.publish(
                    Message(
                        topic=self.topics.down(vehicle, Down.WORK),
                        payload=work,
                        expiry_s=max(1, limits.OFFER_TIMEOUT_MS // 1000),
                        content_type=_MSGPACK,
                        traceparent=units[0].traceparent,
                    )
                )
            case PublishOrders(vehicle=vehicle, orders=orders):
                self.publish(
                    Message(
                        topic=self.topics.down(vehicle, Down.CONTROL),
                        payload=self._signed(Control(vehicle=vehicle, orders=orders)),
                        content_type=_MSGPACK,
                    )
                )
            case PublishStatus(status=status):
                self.publisher.status(status)
                if status.state.is_terminal:
                    self.committed.job(status.tenant, status.job)
                    _log_job(self._lines, status)


class Committed:
    """Tells waiting readers that something new is in the store; they read it there."""

    def __init__(self) -> None:
        # In order of their coming, so that who waits longest is told first.
        self._waiting: dict[str, dict[asyncio.Event, None]] = {}
        self.is_closed = False

    @contextlib.contextmanager
    def listen(self, key: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever there is news of `key` (a job, or `tenant:` + name)."""
        event = asyncio.Event()
        self._waiting.setdefault(key, {})[event] = None
        try:
            yield event
        finally:
            listeners = self._waiting[key]
            del listeners[event]
            if not listeners:
                del self._waiting[key]

    def results(self, commands: Sequence[AddResult]) -> None:
        """Results were committed."""
        if self._waiting:
            for key in dict.fromkeys(command.job for command in commands):
                self._set(key)
            for tenant in dict.fromkeys(command.tenant for command in commands):
                self._set(f"tenant:{tenant}")

    def job(self, tenant: str, job: str) -> None:
        """A job's state, or many of its results, were committed."""
        self._set(job)
        self._set(f"tenant:{tenant}")

    def _set(self, key: str) -> None:
        for event in self._waiting.get(key, ()):
            event.set()

    def close(self) -> None:
        """Wake everybody for the last time."""
        self.is_closed = True
        for events in self._waiting.values():
            for event in events:
                event.set()


def _log_unit(log: Any, command: EndAttempt) -> None:
    """The canonical line of a unit's attempt."""
    log.info(
        "unit",
        unit=command.unit,
        fence=f"{command.fence.epoch}.{command.fence.counter}",
        job=command.job,
        car=command.vehicle,
        end=command.end.value,
        items_done=command.items_done,
        busy_ms=round(command.busy_ms, 1),
        held_ms=command.ended_ms - (command.taken_ms or command.ended_ms),
        hold=command.hold.value if command.hold else None,
        stop_tier=command.stop_tier.value if command.stop_tier else None,
        stop_latency_ms=command.stop_latency_ms,
    )


def _log_job(log: Any, status: JobStatus) -> None:
    """The canonical line of a job."""
    log.info(
        "job",
        job=status.job,
        tenant=status.tenant,
        state=status.state.value,
        items=status.items,
        done=status.done,
        failed=status.failed,
        took_ms=(status.finished_ms or status.submitted_ms) - status.submitted_ms,
    )
