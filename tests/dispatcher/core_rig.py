"""A world around the dispatcher's core: a store model, model cars, and a clock to turn.

The world is the adversary's half of the contract. It asserts on every tick that what the core
asked for was allowed: nothing published before its attempt was committed, no work for a car that
is held, stale or quarantined, no offer of an ended job, one answer for each chunk received.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
from store_model import DictStore

from edge_runtime.contract import limits
from edge_runtime.contract.clock import NS_PER_MS, Now
from edge_runtime.contract.errors import Rejected, RejectionReason
from edge_runtime.contract.messages import (
    Birth,
    Cancel,
    Cancelled,
    Chunk,
    ChunkAnswer,
    Ending,
    Fence,
    Item,
    ItemDone,
    ItemFailed,
    ItemResult,
    JobStatus,
    Offline,
    Order,
    Rebirth,
    Refused,
    Taken,
    UnitOffer,
    VehicleLimits,
    VehicleState,
    Verdict,
)
from edge_runtime.contract.reasons import (
    Availability,
    HoldReason,
    ItemError,
    JobState,
    Outcome,
    RefusalReason,
    ReleaseReason,
)
from edge_runtime.contract.signals import Signals
from edge_runtime.dispatcher.core import commands as c
from edge_runtime.dispatcher.core import events as e
from edge_runtime.dispatcher.core.jobs import Job, Unit
from edge_runtime.dispatcher.core.machine import DispatcherCore
from edge_runtime.dispatcher.core.placement import Requirement
from edge_runtime.dispatcher.storage import Recovered

MODEL, OTHER_MODEL = "a" * 64, "b" * 64
TASK = "tensor"
START_BOOT_MS, START_UTC_MS = 1_000_000, 1_700_000_000_000
HOUR_MS = 3_600_000
Key = tuple[int, Fence]


class CoreStore(Protocol):
    """What the world needs of a store."""

    def commit(self, commands: Sequence[c.StoreCommand]) -> int: ...
    def load(self, commands: Sequence[c.LoadCommand]) -> list[Any]: ...
    def recover(self, now_utc_s: int) -> Recovered: ...
    def delete(self, job_id: str) -> bool: ...
    def failed_items(
        self, job_id: str, items: Sequence[int], limit: int, new_deadline_ms: int
    ) -> e.JobRequeued | None: ...


def output_of(job: str, index: int) -> bytes:
    """What an honest car computes for an item."""
    return msgspec.msgpack.encode([job, index])


@dataclass
class Run:
    """An attempt as its car has it."""

    offer: UnitOffer
    left: list[int]
    seq: int = 0


@dataclass
class ModelCar:
    """A car that does what it is told to, honest or not. What it says goes to `outbox`."""

    id: str
    units_max: int = 4
    boot: int = 1
    connection: int = 1
    region: str = "default"
    hardware: str = "x86"
    tasks: tuple[str, ...] = (TASK,)
    resident: tuple[str, ...] = ()
    seq: int = 0
    availability: Availability = Availability.READY
    outbox: list[e.Event] = field(default_factory=list)
    offers: dict[Key, UnitOffer] = field(default_factory=dict)
    runs: dict[Key, Run] = field(default_factory=dict)
    over: dict[Key, Verdict | None] = field(default_factory=dict)
    unanswered: dict[tuple[int, Fence, int], Chunk] = field(default_factory=dict)
    rebirths: int = 0
    is_deaf: bool = False
    """Alive, and hears nothing."""

    # --- what it says ---

    def say(self, *events: e.Event) -> None:
        self.outbox += events

    def speak(self) -> list[e.Event]:
        """Everything said since the last time."""
        out, self.outbox = self.outbox, []
        return out

    def birth(self) -> e.VehicleBorn:
        return e.VehicleBorn(
            birth=Birth(
                vehicle=self.id,
                boot=self.boot,
                connection=self.connection,
                contract=1,
                runtime="test",
                vss="6.0",
                hardware=self.hardware,
                tasks=self.tasks,
                resident=self.resident,
                limits=VehicleLimits(units_max=self.units_max),
                region=self.region,
            )
        )

    def state(self, availability: Availability | None = None, **signals: Any) -> e.StateReported:
        if availability is not None:
            self.availability = availability
        self.seq += 1
        held = self.availability is Availability.HOLD
        return e.StateReported(
            state=VehicleState(
                vehicle=self.id,
                boot=self.boot,
                seq=self.seq,
                at_ms=0,
                availability=self.availability,
                hold=HoldReason.OCCUPIED if held else None,
                free_units=self.units_max,
                energy_budget_wh=None,
                signals=Signals(**signals),
                resident=self.resident,
            )
        )

    def offline(self) -> e.VehicleWent:
        return e.VehicleWent(
            offline=Offline(vehicle=self.id, boot=self.boot, connection=self.connection)
        )

    # --- what it hears ---

    def hear_offer(self, offer: UnitOffer) -> None:
        key = (offer.unit, offer.fence)
        if self.is_deaf:
            return
        if key in self.over:
            verdict = self.over[key]
            if verdict is not None:
                self.say(e.VerdictReceived(vehicle=self.id, verdict=verdict))
        elif key in self.runs:
            self._say_taken(key)
        else:
            self.offers[key] = offer

    def hear_order(self, order: Order) -> None:
        match order:
            case _ if self.is_deaf:
                pass
            case ChunkAnswer():
                for seq in range(order.first_seq, order.through_seq + 1):
                    self.unanswered.pop((order.unit, order.fence, seq), None)
            case Cancel():
                self._cancelled((order.unit, order.fence))
            case Rebirth():
                self.rebirths += 1
                self.say(self.birth(), self.state())
            case _:
                raise AssertionError(order)

    def _cancelled(self, key: Key) -> None:
        """It gives up what it has not finished; its unanswered chunks stay."""
        self.offers.pop(key, None)
        self.runs.pop(key, None)
        verdict = self.over.setdefault(key, Cancelled(unit=key[0], fence=key[1]))
        if isinstance(verdict, Cancelled):
            self.say(e.VerdictReceived(vehicle=self.id, verdict=verdict))

    # --- what it does ---

    def _say_taken(self, key: Key) -> None:
        self.say(e.VerdictReceived(vehicle=self.id, verdict=Taken(unit=key[0], fence=key[1])))

    def take(self, key: Key | None = None) -> Key:
        """Take an offer (the oldest): recorded, Taken said."""
        key = key or next(iter(self.offers))
        offer = self.offers.pop(key)
        self.runs[key] = Run(offer, [item.index for item in offer.items])
        self._say_taken(key)
        return key

    def take_all(self) -> list[Key]:
        return [self.take(key) for key in list(self.offers)]

    def refuse(self, reason: RefusalReason = RefusalReason.BUSY, retry_ms: int = 0) -> Key:
        key, offer = next(iter(self.offers.items()))
        del self.offers[key]
        verdict = Refused(
            unit=offer.unit, fence=offer.fence, reason=reason, retry_after_ms=retry_ms
        )
        self.over[key] = verdict
        self.say(e.VerdictReceived(vehicle=self.id, verdict=verdict))
        return key

    def chunk(
        self,
        key: Key,
        done: Iterable[int] = (),
        *,
        failed: dict[int, ItemError] | None = None,
        ending: Ending | Outcome | None = None,
        busy_ms: float = 0.0,
        energy_j: float = 0.0,
    ) -> e.ChunkReceived:
        """Finish items of a run and say so; with an ending the run is over."""
        run = self.runs[key]
        offer = run.offer
        results: list[ItemResult] = [
            ItemDone(index=index, output=msgspec.Raw(output_of(offer.job, index))) for index in done
        ]
        results += [ItemFailed(index=index, code=code) for index, code in (failed or {}).items()]
        for result in results:
            run.left.remove(result.index)
        if isinstance(ending, Outcome):
            ending = Ending(outcome=ending)
        chunk = Chunk(
            job=offer.job,
            unit=offer.unit,
            fence=offer.fence,
            model=offer.model,
            seq=run.seq,
            items=tuple(results),
            busy_ms=busy_ms,
            energy_j=energy_j,
            ending=ending,
        )
        run.seq += 1
        if ending is not None:
            del self.runs[key]
            self.over[key] = None
        self.unanswered[chunk.unit, chunk.fence, chunk.seq] = chunk
        event = e.ChunkReceived(vehicle=self.id, chunk=chunk)
        self.say(event)
        return event

    def finish(self, key: Key, busy_ms: float = 0.0) -> e.ChunkReceived:
        """Do all that is left of a run."""
        left = list(self.runs[key].left)
        return self.chunk(key, left, ending=Outcome.COMPLETED, busy_ms=busy_ms)

    def release(self, key: Key, reason: ReleaseReason = ReleaseReason.HOLD) -> e.ChunkReceived:
        """The owner came back."""
        return self.chunk(key, ending=Ending(outcome=Outcome.RELEASED, reason=reason))

    def resend(self) -> None:
        """Send again every chunk that has no answer."""
        self.say(*(e.ChunkReceived(vehicle=self.id, chunk=x) for x in self.unanswered.values()))

    def work(self) -> None:
        """Take and finish everything, as a good car does."""
        for key in [*self.runs, *self.take_all()]:
            if key in self.runs:
                self.finish(key)

    def reboot(self, failed: ItemError | None = ItemError.CAR_REBOOTED) -> None:
        """The computer starts again: runs are given back, the item in hand is blamed."""
        self.boot += 1
        self.connection, self.seq = 1, 0
        self.offers.clear()
        self.say(self.birth())
        for key, run in list(self.runs.items()):
            blame = {run.left[0]: failed} if failed and run.left else {}
            ending = Ending(outcome=Outcome.RELEASED, reason=ReleaseReason.REBOOT)
            self.chunk(key, failed=blame, ending=ending)
        self.resend()
        self.say(self.state())


class World:
    """The core, its store, the cars, and time."""

    def __init__(self, store: Callable[[DictStore], CoreStore] | None = None) -> None:
        self.model = DictStore()
        self.store: CoreStore = store(self.model) if store else self.model
        self.boot_ms, self.utc_ms = START_BOOT_MS, START_UTC_MS
        self.is_checking = True
        self.cars: dict[str, ModelCar] = {}
        self.loaded: list[Any] = []
        self.commands: list[c.Command] = []
        self.statuses: list[JobStatus] = []
        self.rejected: Counter[RejectionReason] = Counter()
        self.received: Counter[tuple[str, int, Fence, int]] = Counter()
        self.answered: Counter[tuple[str, int, Fence, int]] = Counter()
        self.answers: list[tuple[str, ChunkAnswer]] = []
        self.offered: dict[Key, UnitOffer] = {}
        self._is_ready: dict[str, int] = {}
        self._boots: dict[str, int] = {}
        self._offline: set[str] = set()
        self._jobs = 0
        self.core = self._recovered()

    @property
    def now(self) -> Now:
        return Now(self.boot_ms * NS_PER_MS, self.utc_ms)

    def advance(self, ms: int) -> None:
        self.boot_ms += ms
        self.utc_ms += ms

    # --- the dispatcher's life ---

    def restart(self) -> None:
        """kill -9, and a new process from the store."""
        self.loaded.clear()
        self.received.clear()
        self.answered.clear()
        self._is_ready.clear()
        self._offline.clear()
        self.core = self._recovered()
        self.core.check()

    def _recovered(self) -> DispatcherCore:
        found = self.store.recover(self.utc_ms // 1000)
        core = DispatcherCore(
            epoch=found.epoch, next_job_no=found.next_job_no, next_unit=found.next_unit
        )
        for birth in found.births:
            core.fleet.born(birth)
        for vehicle in found.quarantined:
            if vehicle in core.fleet.row_of:
                core.fleet.quarantine(core.fleet.row_of[vehicle], on=True)
        for job in found.jobs:
            core.restore_job(job)
        for tenant in found.tenants_with_more:
            core.has_more(tenant)
        for attempt in found.attempts:
            core.restore_attempt(attempt, self.now)
        return core

    # --- ticks ---

    def decide(self, *events: e.Event) -> list[c.Command]:
        """Handle events as one tick; nothing is carried out yet."""
        loaded, self.loaded = self.loaded, []
        for event in [*events, *loaded]:
            if isinstance(event, e.ChunkReceived):
                self.received[event.vehicle, *_chunk_key(event.chunk)] += 1
            try:
                self.core.handle(event, self.now)
            except Rejected as rejected:
                self._was_rejected(event, rejected)
            else:
                self._note(event)
            if self.is_checking:
                self.core.check()
        commands = self.core.finish_tick(self.now)
        if self.is_checking:
            self.core.check()
        return commands

    def _was_rejected(self, event: e.Event, rejected: Rejected) -> None:
        self.rejected[rejected.reason] += 1
        known = rejected.reason is not RejectionReason.UNKNOWN_VEHICLE
        if isinstance(event, e.ChunkReceived) and not known:
            self.received[event.vehicle, *_chunk_key(event.chunk)] -= 1  # nobody to answer

    def _note(self, event: e.Event) -> None:
        """Keep, apart from the core, who may be given work until when."""
        match event:
            case e.StateReported(state=state):
                is_ready = state.availability in (Availability.READY, Availability.WORKING)
                until = self.boot_ms + limits.STATE_STALE_MS
                self._is_ready[state.vehicle] = until if is_ready else -1
                self._offline.discard(state.vehicle)
            case e.VehicleWent(offline=offline):
                self._offline.add(offline.vehicle)
            case e.VehicleBorn(birth=birth):
                if self._boots.get(birth.vehicle) != birth.boot:
                    self._is_ready[birth.vehicle] = -1
                self._boots[birth.vehicle] = birth.boot
                self._offline.discard(birth.vehicle)

    def carry_out(self, commands: Sequence[c.Command]) -> None:
        """Commit, then publish, then load: the order of effects."""
        to_store = [x for x in commands if isinstance(x, c.StoreCommand)]
        begun = {(x.unit, x.fence): x for x in to_store if isinstance(x, c.BeginAttempt)}
        for command in begun.values():
            assert self._is_ready.get(command.vehicle, -1) > self.boot_ms, command
            assert command.vehicle not in self._offline, command
        if to_store:
            self.store.commit(to_store)
        for command in commands:
            self._publish(command)
        loads = [x for x in commands if isinstance(x, c.LoadCommand)]
        self.loaded += self.store.load(loads) if loads else []

    def _publish(self, command: c.Command) -> None:
        match command:
            case c.PublishOffer(vehicle=vehicle, units=units):
                for unit in units:
                    self._offer(vehicle, unit)
            case c.PublishOrders(vehicle=vehicle, orders=orders):
                for order in orders:
                    self._order(vehicle, order)
            case c.PublishStatus(status=status):
                self.statuses.append(status)
            case _:
                self.commands.append(command)

    def _offer(self, vehicle: str, unit: UnitOffer) -> None:
        attempt = self.model.live.get((unit.unit, unit.fence))
        assert attempt is not None, f"an offer without a live attempt: {unit}"
        assert attempt.vehicle == vehicle
        assert unit.items, "an offer of nothing"
        assert {item.index for item in unit.items} <= set(attempt.issued)
        job = self.model.job(unit.job)
        assert job.is_open, f"an offer of an ended job: {unit}"
        self.offered[unit.unit, unit.fence] = unit
        self.deliver_offer(vehicle, unit)

    def _order(self, vehicle: str, order: Order) -> None:
        if isinstance(order, ChunkAnswer):
            for seq in range(order.first_seq, order.through_seq + 1):
                self.answered[vehicle, order.unit, order.fence, seq] += 1
            self.answers.append((vehicle, order))
        self.deliver_order(vehicle, order)

    def deliver_offer(self, vehicle: str, unit: UnitOffer) -> None:
        if vehicle in self.cars:
            self.cars[vehicle].hear_offer(unit)

    def deliver_order(self, vehicle: str, order: Order) -> None:
        if vehicle in self.cars:
            self.cars[vehicle].hear_order(order)

    def tick(self, *events: e.Event) -> list[c.Command]:
        """One tick with everything the cars have said, carried out; the commands."""
        said = [event for car in self.cars.values() for event in car.speak()]
        commands = self.decide(*events, *said)
        self.carry_out(commands)
        if not self.loaded:
            assert self.answered == +self.received, self.answered - self.received
        return commands

    def settle(self) -> None:
        """Tick until nobody has anything to say and nothing is being loaded."""
        for _ in range(1_000):
            self.tick()
            if not self.loaded and not any(car.outbox for car in self.cars.values()):
                return
        raise AssertionError("the world does not come to rest")

    # --- cars and jobs ---

    def car(self, name: str = "car", **traits: Any) -> ModelCar:
        """A car that is ready for work."""
        car = self.cars[name] = ModelCar(id=name, **traits)
        self.tick(car.birth(), car.state())
        return car

    def refresh(self) -> None:
        """Every car says its state again, as it does all ten seconds."""
        self.tick(*(car.state() for car in self.cars.values()))

    def live(self, ms: int, step_ms: int = 1_000) -> None:
        """Let time pass with every car refreshing its state."""
        until = self.boot_ms + ms
        while self.boot_ms < until:
            self.advance(min(step_ms, until - self.boot_ms))
            self.refresh()
        self.settle()

    def spec(self, items: int = 1, **fields: Any) -> e.JobSpec:
        self._jobs += 1
        requirement = Requirement(
            model=fields.pop("model", MODEL),
            task=fields.pop("task", TASK),
            region=fields.pop("region", None),
            hardware=fields.pop("hardware", None),
            vehicles=fields.pop("vehicles", ()),
        )
        values: dict[str, Any] = {
            "id": f"job{self._jobs}",
            "tenant": "tenant",
            "requirement": requirement,
            "parameters": b"\x80",
            "purpose": "batch",
            "priority": 5,
            "items": items,
            "submitted_ms": self.utc_ms,
            "deadline_ms": self.utc_ms + HOUR_MS,
            "retention_ms": HOUR_MS,
            "reference_ms": 100.0,
        }
        return e.JobSpec(**{**values, **fields})

    def submitted(self, items: int = 1, *, size: int = 8, **fields: Any) -> e.JobSubmitted:
        spec = self.spec(items, **fields)
        return e.JobSubmitted(
            spec=spec,
            items=tuple(
                Item(index=index, media_type="x", data=bytes(size)) for index in range(items)
            ),
        )

    def submit(self, items: int = 1, **fields: Any) -> str:
        """Submit a job and tick; its id."""
        event = self.submitted(items, **fields)
        self.tick(event)
        return event.spec.id

    def requeue(self, job: str, items: Sequence[int] = ()) -> e.JobRequeued:
        event = self.store.failed_items(job, items, limits.LOAD_ITEMS, self.utc_ms + HOUR_MS)
        assert event is not None
        return event

    # --- looking ---

    def job(self, job_id: str) -> Job:
        return self.core.state.jobs[job_id]

    def unit(self, key: Key) -> Unit:
        unit = self.core.state.units[key[0]]
        assert unit.fence == key[1]
        return unit

    def state_of(self, job_id: str) -> JobState:
        return self.model.job(job_id).state

    def ends(self, job_id: str) -> dict[int, str]:
        """Each ended item's "ok" or error code."""
        return {
            index: "ok" if row.error is None else row.error.code.value
            for index, row in sorted(self.model.job(job_id).results.items())
        }

    def of(self, commands: Iterable[c.Command], kind: type[Any]) -> list[Any]:
        return [command for command in commands if isinstance(command, kind)]

    def verdicts(self, car: ModelCar) -> list[str]:
        return [answer.verdict.value for vehicle, answer in self.answers if vehicle == car.id]

    def drain(self, *, limit_ms: int = 10 * HOUR_MS) -> None:
        """Honest cars work until every job has ended."""
        until = self.boot_ms + limit_ms
        while any(job.is_open for job in self.model.jobs.values()):
            assert self.boot_ms < until, self._stuck()
            for car in self.cars.values():
                car.work()
            self.settle()
            self.advance(1_000)
            self.refresh()

    def _stuck(self) -> str:
        open_jobs = [job for job in self.model.jobs.values() if job.is_open]
        return "\n".join(
            f"{job.spec.id} {job.state} open={job.open_items()[:10]}"
            f" memory={self.core.state.jobs.get(job.spec.id)}"
            for job in open_jobs
        )


def _chunk_key(chunk: Chunk) -> tuple[int, Fence, int]:
    return (chunk.unit, chunk.fence, chunk.seq)
