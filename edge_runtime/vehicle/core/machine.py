"""The car: every event in, every command out, in one place that reads no clock.

Invariants (`check` asserts them)
- Nothing but `handle` and `handle_all` changes state; commands come out in the order in which to
  carry them out.
- The engine computes only while admission lets it: a stop freezes it in the same call.
- Whatever is held when work must stop is thawed within the grace or given back.

Deliberately absent: clocks, random numbers, files, sockets, threads, asyncio; wire bytes of
messages (the shell encodes them); any order from a dispatcher that could overrule the owner.
"""

from collections.abc import Iterable
from typing import Final, assert_never

from edge_runtime.contract import limits
from edge_runtime.contract.clock import NS_PER_MS, Now
from edge_runtime.contract.errors import LocalError
from edge_runtime.contract.messages import (
    Cancel,
    Cancelled,
    Chunk,
    ChunkAnswer,
    Drain,
    Order,
    Rebirth,
    UnitOffer,
)
from edge_runtime.contract.reasons import Availability, HoldReason, ReleaseReason
from edge_runtime.contract.signals import Signals
from edge_runtime.vehicle.core.admission import (
    Admission,
    Circumstances,
    Decision,
    Driving,
    Hold,
    Ready,
)
from edge_runtime.vehicle.core.attempts import IN_ENGINE, Phase, StopIntent
from edge_runtime.vehicle.core.commands import (
    CancelRun,
    CheckSpace,
    Command,
    EnsureModel,
    Leave,
    PublishChunks,
    PublishVerdicts,
    RewriteChunk,
    SetWill,
    WriteAttempt,
    WriteChunk,
    WriteOutput,
)
from edge_runtime.vehicle.core.energy import Budgets
from edge_runtime.vehicle.core.energy_rows import LedgerSummary
from edge_runtime.vehicle.core.events import (
    BusConnected,
    BusDisconnected,
    BytesMoved,
    ClockJudged,
    EnergyMeasured,
    EngineDied,
    EngineFrozen,
    EngineKilled,
    Event,
    InputsFailed,
    InputsFetched,
    ItemBroke,
    ItemFinished,
    ItemInterrupted,
    ItemStarted,
    ModelFailed,
    ModelLoaded,
    ModelReady,
    ModelsDesired,
    OrdersReceived,
    OutputsFailed,
    OutputsUploaded,
    PolicyChanged,
    RefusedOutput,
    RunEnded,
    ShutdownRequested,
    SignalsRead,
    Tick,
    TokensProduced,
    UnitsOffered,
    WritesCommitted,
    WritesFailed,
)
from edge_runtime.vehicle.core.explain import Explanation, explain
from edge_runtime.vehicle.core.herald import Herald, View
from edge_runtime.vehicle.core.ladder import Ladder
from edge_runtime.vehicle.core.offers import Gate
from edge_runtime.vehicle.core.outbox import messages_of
from edge_runtime.vehicle.core.readings import Readings
from edge_runtime.vehicle.core.rules import Level
from edge_runtime.vehicle.core.snapshot import CarFacts, JournalSnapshot
from edge_runtime.vehicle.core.work import Work, decode_chunks
from edge_runtime.vehicle.policy import Allowed, OwnerPolicy, is_withdrawn

NO_PREFETCH: Final = frozenset(
    {
        HoldReason.CONSENT_MISSING,
        HoldReason.CONSENT_WITHDRAWN,
        HoldReason.OWNER_PAUSED,
        HoldReason.POLICY_INVALID,
        HoldReason.JURISDICTION_NOT_ALLOWED,
        HoldReason.NETWORK_METERED,
        HoldReason.DATA_BUDGET_SPENT,
        HoldReason.POWER_SAVING,
        HoldReason.LOW_VOLTAGE_LOW,
        HoldReason.STORAGE_FULL,
        HoldReason.STORAGE_ERROR,
        HoldReason.DRAINING,
    }
)
"""Holds under which not even a model package is fetched."""
NO_UPLOAD: Final = NO_PREFETCH - {
    HoldReason.STORAGE_FULL,
    HoldReason.STORAGE_ERROR,
    HoldReason.DRAINING,
}
"""Holds under which no output is handed over: those that the network, or the owner, is about."""


class VehicleCore:
    """The decisions of one car. Not thread-safe; one shell calls `handle`, one call at a time."""

    def __init__(
        self,
        facts: CarFacts,
        policy: OwnerPolicy | HoldReason,
        snapshot: JournalSnapshot,
        now: Now,
    ) -> None:
        self._facts = facts
        self._policy = policy
        self._readings = Readings()
        self._admission = Admission()
        self._work = Work(facts)
        self._ladder = Ladder(self._work)
        self._herald = Herald(facts)
        self._decision: Decision = Hold(HoldReason.SENSOR_STALE, stop=True)
        self._decided_ns = now.boot_ns
        self._is_draining = False
        self._leave_ns: int | None = None
        self._leave_hold = HoldReason.DRAINING
        self._has_left = False
        self._desired: tuple[str, ...] = ()
        self.corrupt_chunks = 0
        self._restore(snapshot, now)
        self._note_consent(now)

    def _restore(self, snapshot: JournalSnapshot, now: Now) -> None:
        work = self._work
        work.energy.restore(snapshot.energy, snapshot.model_energy, now)
        restored = 0
        for chunk, body in decode_chunks(snapshot.chunks):
            work.outbox.add(chunk, body, Phase.REPORTING if chunk.ending is not None else None)
            work.outbox.committed((chunk.unit, chunk.fence), chunk.seq)
            restored += 1
            self._miss_outputs(chunk, snapshot)
        self.corrupt_chunks = len(snapshot.chunks) - restored
        for fence in snapshot.fences:
            until_ns = now.boot_ns + (fence.until_ms - now.utc_ms) * NS_PER_MS
            work.fences.remember(Cancelled(unit=fence.unit, fence=fence.fence), until_ns)
        for saved in snapshot.attempts:
            work.restore(saved, now)

    def _miss_outputs(self, chunk: Chunk, snapshot: JournalSnapshot) -> None:
        """What a restored chunk refers to, and the journal had no room for, is lost."""
        key = chunk.unit, chunk.fence
        saved = self._work.outbox.find(key, chunk.seq)
        if saved is None or not saved.references:
            return
        held = {(o.unit, o.fence, o.seq, o.sha256) for o in snapshot.outputs}
        missing = [s for s in saved.references if (*key, chunk.seq, s) not in held]
        lost = tuple(RefusedOutput(sha256, _NOT_KEPT) for sha256 in missing)
        self._work.lose_outputs(key, chunk.seq, lost)

    # --- the one entrance ------------------------------------------------------------------------

    def handle(self, event: Event, now: Now) -> list[Command]:
        """Take one event; return what to do about it, in order."""
        return self.handle_all((event,), now)

    def handle_all(self, events: Iterable[Event], now: Now) -> list[Command]:
        """Take events that came together, in order; what follows is settled once for all."""
        self._work.link.turn(now)
        energy = self._work.energy
        energy.advance(now)
        for event in events:
            self._apply(event, now)
        self._settle(now)
        energy.note(now, is_computing=self.is_computing, has_work=bool(self._work.runs))
        commands, self._work.out = self._work.out, []
        return commands

    def _apply(self, event: Event, now: Now) -> None:
        work = self._work
        match event:
            case ItemFinished():
                work.finished(event, now)
            case ItemStarted():
                work.started(event, now)
            case UnitsOffered():
                work.link.heard(now)
                self._offered(event, now)
            case OrdersReceived():
                work.link.heard(now)
                for order in event.orders:
                    self._order(order, event.jitter, now)
            case WritesCommitted():
                self._committed(event, now)
            case WritesFailed():
                for write in work.ledger.failed(event.through, event.reason, now):
                    work.declined(write.offer, event.reason, now)
            case TokensProduced():
                work.produced(event)
            case ItemBroke():
                work.broke(event, now)
            case ItemInterrupted():
                work.interrupted(event)
            case RunEnded():
                work.run_ended(event, now)
            case EngineDied():
                self._engine_died(event, now)
            case EngineFrozen() | EngineKilled():
                self._ladder.measured(event.stop, now)
            case _:
                self._apply_rarer(event, now)

    def _apply_rarer(
        self,
        event: Tick
        | PolicyChanged
        | SignalsRead
        | ClockJudged
        | EnergyMeasured
        | BytesMoved
        | ShutdownRequested
        | BusConnected
        | BusDisconnected
        | ModelsDesired
        | ModelReady
        | ModelFailed
        | InputsFetched
        | InputsFailed
        | OutputsUploaded
        | OutputsFailed
        | ModelLoaded,
        now: Now,
    ) -> None:
        match event:
            case Tick():
                self._tick(now)
            case SignalsRead():
                self._readings.update(event.values, event.at_ns)
                self._work.energy.look(self._readings, self._owners_policy, now)
            case PolicyChanged():
                self._policy = event.policy
                self._note_consent(now)
            case EnergyMeasured() | BytesMoved():
                self._work.energy.told(event, now)
            case ClockJudged():
                self._work.is_clock_trusted = event.is_trusted
            case BusConnected():
                self._work.link.heard(now)
                self._work.out += self._herald.connected(now, self._view(now))
                self._work.outbox.spread(now)
            case BusDisconnected():
                self._work.link.lost()
                self._herald.is_connected = False
            case ModelsDesired():
                self._desired = event.models
            case ModelReady():
                self._work.model_ready(event.digest)
            case ModelFailed():
                self._work.model_failed(event, now)
            case InputsFetched() | InputsFailed() | OutputsUploaded() | OutputsFailed():
                self._work.exchange_ended(event, now)
            case ModelLoaded():
                self._work.loaded(event)
            case ShutdownRequested():
                if self._leave_ns is None:
                    self._leave_hold = event.hold
                    wait_ms = round(limits.CAR_CLOSE_MAX_S * 500)
                    self._leave_ns = now.boot_ns + wait_ms * NS_PER_MS
            case _:
                assert_never(event)
        self._reconsider(now)

    def _settle(self, now: Now) -> None:
        """What follows from whatever happened."""
        work = self._work
        is_blocked = work.ledger.trouble is not None or work.outbox.is_full
        if is_blocked or self._has_budget() or _stops(self._decision):
            self._reconsider(now)
        self._reconsider_if_old(now)
        if self._ladder.is_going and not _stops(self._decision):
            work.feed(now)
            self._prefetch(now)
        if self._herald.is_connected:
            for message in work.outbox.take(now):
                work.out.append(PublishChunks(message))
            work.hand_over()
            self._publish_verdicts()
        self._publish_once(now)
        del work.verdicts[: -limits.VERDICTS_WAITING_MAX]
        is_leaving = self._leave_ns is not None and not work.attempts
        work.write_energy(0 if is_leaving else limits.ENERGY_WRITE_MS, now)
        persist = work.ledger.flush()
        if persist is not None:
            work.out.append(persist)
        availability, hold = self._availability(), self._hold()
        work.out += self._herald.note(availability, hold)
        if self._herald.is_edge(availability, hold):
            work.out += self._herald.tell(now, self._view(now), is_edge=True)
        self._perhaps_leave(now)

    # --- time ------------------------------------------------------------------------------------

    def next_deadline(self, now: Now) -> int | None:
        """Boot time at which to send a `Tick`, if nothing else happens first."""
        work = self._work
        times: list[int | None] = [
            self._admission.next_ns(now, self._around(now)),
            self._ladder.until_ns,
            work.ledger.retry_ns,
            work.health.unhealthy_until_ns,
            self._leave_ns if not self._has_left else None,
            *(attempt.chunk_due_ns() for attempt in work.attempts.values()),
            *(work.expiry_ns(a) for a in work.attempts.values() if _may_expire(a.intent)),
        ]
        if self._herald.is_connected:
            times.append(work.outbox.next_ns())
            times.append(self._herald.next_ns(self._availability()))
        return min((time for time in times if time is not None), default=None)

    def _tick(self, now: Now) -> None:
        work = self._work
        work.ledger.tick(now)
        work.health.tick(now)
        work.close_old_chunks(now)
        self._expire_attempts(now)
        self._ladder.tick(now)
        herald, availability = self._herald, self._availability()
        due_ns = herald.next_ns(availability)
        if due_ns is None or due_ns > now.boot_ns:
            return
        if herald.birth_ns is not None and herald.birth_ns <= now.boot_ns:
            work.out += herald.birth(now, self._view(now))
        else:
            is_edge = herald.changed(availability)
            work.out += herald.tell(now, self._view(now), is_edge=is_edge)

    def _expire_attempts(self, now: Now) -> None:
        for attempt in list(self._work.attempts.values()):
            if self._work.expiry_ns(attempt) > now.boot_ns or not _may_expire(attempt.intent):
                continue
            if attempt.phase not in IN_ENGINE:
                reason = ReleaseReason.DEADLINE
                self._work.release(attempt, Phase.RELEASED, reason, now)
                continue
            was_going = attempt.intent is None
            attempt.stop_for(StopIntent.DEADLINE)
            if was_going and attempt.run_id is not None:
                self._work.out.append(CancelRun(attempt.run_id))

    # --- whether to work -------------------------------------------------------------------------

    def _note_consent(self, now: Now) -> None:
        """Who withdraws consent takes back what is not handed over yet, and what is retained."""
        policy, work = self._policy, self._work
        was_withdrawn, work.is_withdrawn = work.is_withdrawn, is_withdrawn(policy)
        work.out += self._herald.hide(now, is_hidden=work.is_withdrawn)
        if work.is_withdrawn and not was_withdrawn:
            work.forget_results()
            self._reconsider(now)

    def _around(self, now: Now) -> Circumstances:
        spent = self._work.energy.spent(now)
        return Circumstances(
            self._policy,
            self._readings,
            self._work.is_clock_trusted,
            spent_wh_today=spent.wh_today,
            spent_wh_month=spent.wh_month,
            equivalent_full_cycles_year=spent.equivalent_full_cycles_year,
            data_mb_month=spent.data_mb_month,
            region=self._facts.region,
        )

    def _has_budget(self) -> bool:
        return isinstance(self._policy, OwnerPolicy) and self._policy.has_budgets

    def _reconsider(self, now: Now) -> None:
        """Decide again, and carry the stop ladder one rung on where that asks for it."""
        decision = self._decision = self._decide(now)
        self._decided_ns = now.boot_ns
        if not isinstance(decision, Ready) and decision.stop:
            is_leaving = self._leave_ns is not None
            self._ladder.demand(decision.reason, now, is_leaving=is_leaving)
        else:
            self._ladder.relent(now)

    def _reconsider_if_old(self, now: Now) -> None:
        """A process that was stopped for a while must not go by what it saw before."""
        if now.boot_ns - self._decided_ns > limits.DECISION_MAX_AGE_MS * NS_PER_MS:
            self._reconsider(now)

    def _decide(self, now: Now) -> Decision:
        admission, energy, policy = self._admission, self._work.energy, self._owners_policy
        admission.recall(energy.begun_today(now), now)
        decision = admission.decide(now, self._around(now))
        decides = policy is not None and policy.cycles_per_day_max is not None
        energy.note_begun(admission.cycles_on(now), now, decides=decides)
        if _stops(decision):
            return decision
        own = self._own_hold(now)
        if own is not None and (own.stop or isinstance(decision, Ready)):
            return own
        return decision

    def _own_hold(self, now: Now) -> Hold | None:
        """Holds that come from this computer, not from the owner or the car."""
        if self._leave_ns is not None:
            return Hold(self._leave_hold, stop=True)
        if self._work.health.unhealthy_until_ns is not None:
            return Hold(HoldReason.ENGINE_UNHEALTHY, stop=False)
        if self._work.outbox.is_full:
            return Hold(HoldReason.STORAGE_FULL, stop=True)
        if self._work.ledger.trouble is not None:
            return Hold(self._work.ledger.trouble, stop=False)
        if self._is_draining:
            return Hold(HoldReason.DRAINING, stop=False)
        if self._work.attempts or not self._has_budget():
            return None
        # A car that would refuse every offer must not ask for any.
        energy = self._work.energy
        spent = energy.over_budget(energy.cheapest_j(), _budgets(self._owners_policy), now)
        return None if spent is None else Hold(spent, stop=False)

    def _engine_died(self, event: EngineDied, now: Now) -> None:
        work = self._work
        work.engine_died(event, now)
        if not work.health.died(now):
            return
        for attempt in list(work.attempts.values()):
            reason, hold = ReleaseReason.ENGINE_DIED, HoldReason.ENGINE_UNHEALTHY
            work.release(attempt, Phase.FAILED, reason, now, hold=hold)
        self._reconsider(now)

    # --- offers, orders, the journal -------------------------------------------------------------

    def _offered(self, event: UnitsOffered, now: Now) -> None:
        self._reconsider_if_old(now)
        work = self._work
        policy = self._owners_policy
        allowed = policy.allowed if policy is not None else Allowed()

        def over_budget(offer: UnitOffer) -> HoldReason | None:
            need_j = work.energy.estimate_j(offer.model, len(offer.items)) + work.reserved_j()
            return work.energy.over_budget(need_j, _budgets(policy), now)

        for offer in event.units:
            tasks = self._facts.tasks
            free = work.free_interactive if offer.interactive else work.free_units
            gate = Gate(self._hold(), allowed, tasks, free, work.models, over_budget)
            work.offered(offer, gate, now)

    def _order(self, order: Order, jitter: float, now: Now) -> None:
        match order:
            case ChunkAnswer():
                self._work.answered(order, now)
            case Cancel():
                self._work.cancel(order.unit, order.fence, order.reason, now)
            case Drain():
                self._is_draining = order.active
                self._reconsider(now)
            case Rebirth():
                delay_ms = min(order.delay_max_ms, limits.STATE_STALE_MS) * jitter
                self._herald.birth_ns = now.boot_ns + round(delay_ms) * NS_PER_MS
            case _:
                assert_never(order)

    def _committed(self, event: WritesCommitted, now: Now) -> None:
        work = self._work
        durable, declined = work.ledger.committed(event.through, event.refused, now)
        for refused in declined:
            if isinstance(refused, WriteOutput):  # before its chunk is told of
                lost = RefusedOutput(refused.sha256, _NOT_KEPT)
                work.lose_outputs((refused.unit, refused.fence), refused.seq, (lost,))
        for write in durable:
            if isinstance(write, WriteChunk):
                work.outbox.committed((write.unit, write.fence), write.seq)
            elif isinstance(write, RewriteChunk):
                work.outbox.rewritten((write.unit, write.fence), write.seq, write.body)
            elif isinstance(write, WriteAttempt):
                work.recorded(write.offer, now)
        for refused in declined:
            if isinstance(refused, WriteAttempt):
                work.declined(refused.offer, HoldReason.STORAGE_FULL, now)
        if declined or any(isinstance(write, CheckSpace) for write in durable):
            self._reconsider(now)

    # --- telling the dispatcher ------------------------------------------------------------------

    def first_will(self) -> SetWill:
        """The Will of the first connection."""
        return self._herald.next_will()

    def _publish_verdicts(self) -> None:
        work = self._work
        most = limits.VERDICTS_PER_MESSAGE_MAX
        for start in range(0, len(work.verdicts), most):
            work.out.append(PublishVerdicts(tuple(work.verdicts[start : start + most])))
        work.verdicts.clear()

    def _publish_once(self, now: Now) -> None:
        """What interactive attempts say: it is worth nothing later."""
        bodies = self._work.take_once(now)
        if bodies and self._herald.is_connected:
            self._work.out += [PublishChunks(tuple(some)) for some in messages_of(bodies)]

    def _view(self, now: Now) -> View:
        hold, work = self._hold(), self._work
        return View(
            availability=self._availability(),
            hold=hold,
            free_units=0 if hold is not None else work.free_units,
            energy_budget_wh=self._budget_left_wh(now),
            signals=Signals() if work.is_withdrawn else self._readings.signals(now),
            resident=work.models.resident,
        )

    def _budget_left_wh(self, now: Now) -> float | None:
        """What is left of the day's and the month's budget of energy, whichever is less."""
        budgets, spent = _budgets(self._owners_policy), self._work.energy.spent(now)
        left_wh = [
            budget_wh - spent_wh
            for budget_wh, spent_wh in (
                (budgets.wh_per_day, spent.wh_today),
                (budgets.wh_per_month, spent.wh_month),
            )
            if budget_wh is not None
        ]
        return max(0.0, min(left_wh)) if left_wh else None

    def _hold(self) -> HoldReason | None:
        return None if isinstance(self._decision, Ready) else self._decision.reason

    def _availability(self) -> Availability:
        held = bool(self._work.attempts)
        match self._decision:
            case Ready():
                return Availability.WORKING if held else Availability.READY
            case Driving():
                return Availability.STOPPING if held else Availability.DRIVING
            case Hold():
                if held:
                    stops = self._decision.stop
                    return Availability.STOPPING if stops else Availability.WORKING
                return Availability.HOLD

    @property
    def is_network_allowed(self) -> bool:
        """Whether the car may fetch what no offer waits for.

        Every finding counts, not only the one that decides: who is driving on a metered link is
        held because of the driving.
        """
        return self._is_free_of(NO_PREFETCH)

    @property
    def is_upload_allowed(self) -> bool:
        """Whether the car may hand over what it has computed; with a full disk, too: that helps."""
        return self._is_free_of(NO_UPLOAD)

    def _is_free_of(self, reasons: frozenset[HoldReason]) -> bool:
        judgement = self._admission.last
        found = () if judgement is None else judgement.findings
        return self._hold() not in reasons and all(
            finding.level is Level.CLEAR or finding.reason not in reasons for finding in found
        )

    def _prefetch(self, now: Now) -> None:
        if not self._desired or not self.is_network_allowed:
            return
        for digest in self._work.models.missing(self._desired, now):
            self._work.models.want(digest)
            self._work.out.append(EnsureModel(digest))

    def _perhaps_leave(self, now: Now) -> None:
        if self._leave_ns is None or self._has_left:
            return
        work = self._work
        is_done = not work.attempts and work.ledger.is_empty
        if is_done or now.boot_ns >= self._leave_ns:
            self._has_left = True
            work.out += self._herald.farewell()
            work.out.append(Leave())

    # --- for people, tests and errors ------------------------------------------------------------

    @property
    def _owners_policy(self) -> OwnerPolicy | None:
        return self._policy if isinstance(self._policy, OwnerPolicy) else None

    @property
    def decision(self) -> Decision:
        """What admission said last."""
        return self._decision

    @property
    def availability(self) -> Availability:
        """What the car is doing."""
        return self._availability()

    @property
    def hold(self) -> HoldReason | None:
        """Why the car takes no work now, where it takes none."""
        return self._hold()

    @property
    def is_computing(self) -> bool:
        """Whether the engine has work and is not stopped."""
        return bool(self._work.runs) and self._ladder.is_going

    def energy_summary(self, now: Now) -> LedgerSummary:
        """What work for others has cost this car."""
        return self._work.energy.summary(now)

    @property
    def work(self) -> Work:
        """What the car holds, to look at; only `handle` may change it."""
        return self._work

    def circumstances(self, now: Now) -> Circumstances:
        """What admission looks at now."""
        return self._around(now)

    def explain(self, now: Now) -> Explanation:
        """Why the car does what it does, from the data of its last decision."""
        judgement, readings = self._admission.last, self._readings
        return explain(now, judgement, self._decision, self._availability(), readings)

    def story(self, unit: int) -> list[str]:
        """The last things that happened to a unit, oldest first."""
        return self._work.story.of(unit)

    def check(self, now: Now) -> None:
        """Raise `BrokenInvariant` unless all is as the module says."""
        work, is_going = self._work, self._ladder.is_going
        problems = list(work.problems())
        if isinstance(self._decision, Ready) and not self._admission.is_open:
            problems.append("ready while admission is closed")
        if _stops(self._decision) and is_going and work.attempts:
            problems.append(f"work goes on under {self._hold()}")
        if not is_going and any(
            attempt.phase in {Phase.LOADING, Phase.RUNNING} for attempt in work.attempts.values()
        ):
            problems.append("a run goes on in a stopped engine")
        if problems:
            raise BrokenInvariant(problems, now)


class BrokenInvariant(LocalError):  # noqa: N818 - named for what happened
    """This program contradicts itself; `problems` says how."""

    def __init__(self, problems: list[str], now: Now) -> None:
        super().__init__(f"at {now.boot_ns} ns: " + "; ".join(problems))
        self.problems = problems


_NOT_KEPT: Final = (
    "the car had no room for the output: JOURNAL_RESERVE_BYTES="
    f"{limits.JOURNAL_RESERVE_BYTES} must stay free beside it"
)


def _budgets(policy: OwnerPolicy | None) -> Budgets:
    """The owner's budgets of energy and wear."""
    if policy is None:
        return Budgets()
    return Budgets(
        wh_per_day=policy.energy.budget_wh_per_day,
        wh_per_month=policy.energy.budget_wh_per_month,
        equivalent_full_cycles_per_year=policy.wear.equivalent_full_cycles_per_year,
    )


def _stops(decision: Decision) -> bool:
    return not isinstance(decision, Ready) and decision.stop


def _may_expire(intent: StopIntent | None) -> bool:
    return intent is None or intent is StopIntent.HOLD
