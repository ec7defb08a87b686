"""The work in this car's hands: from an offer to the last answered chunk.

Invariants
- Taken is said only after the journal holds the attempt; a chunk is published only after the
  journal holds it.
- One unit has at most one live attempt; a newer fence takes it over without losing anything.
- Every live attempt ends exactly once: reported, released, failed, cancelled or refused.
- Nothing of an interactive attempt goes to the journal or the outbox: what it has to say is said
  once, at the end of the step in which it came to be (`take_once`).

Deliberately absent: whether the car may work (`admission`), and how it stops (`machine`).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, assert_never

import msgspec

from edge_runtime.contract.clock import NS_PER_MS, Now
from edge_runtime.contract.codec import encode
from edge_runtime.contract.limits import (
    CHUNKS_UNANSWERED_MAX,
    ENERGY_RIDE_MS,
    HOLD_RETRY_MS,
    INTERACTIVE_CAR_UNITS_MAX,
    INTERACTIVE_FENCES_REMEMBERED_MAX,
    INTERACTIVE_TIMEOUT_DEFAULT_MS,
    JOB_DEADLINE_MAX_S,
    OBJECT_MAX_BYTES,
    REFUSAL_RETRY_MS,
    UNIT_OBJECTS_MAX_BYTES,
)
from edge_runtime.contract.messages import (
    Cancelled,
    Chunk,
    ChunkAnswer,
    Ending,
    Fence,
    Item,
    ItemDone,
    ItemResult,
    Refused,
    StopReport,
    Taken,
    Tokens,
    UnitOffer,
    Verdict,
)
from edge_runtime.contract.reasons import (
    CancelReason,
    FinishReason,
    HoldReason,
    ItemError,
    Outcome,
    RefusalReason,
    ReleaseReason,
    StopTier,
)
from edge_runtime.vehicle.core.attempts import (
    Attempt,
    OpenChunk,
    Phase,
    StopIntent,
    deadline_of,
    failed_item,
    finished_item,
    items_of,
    outputs_place,
    stop_fields,
)
from edge_runtime.vehicle.core.commands import (
    CancelRun,
    Command,
    DropAttempt,
    DropChunks,
    EnsureModel,
    FetchInputs,
    LogUnit,
    RewriteChunk,
    SubmitRun,
    UploadOutputs,
    Write,
    WriteAttempt,
    WriteChunk,
    WriteFence,
    WriteOutput,
    WriteStarted,
)
from edge_runtime.vehicle.core.energy import NO_COST, EnergyLedger, ItemCost
from edge_runtime.vehicle.core.energy_rows import J_PER_WH
from edge_runtime.vehicle.core.events import (
    EngineDied,
    InputsFailed,
    InputsFetched,
    ItemBroke,
    ItemFinished,
    ItemInterrupted,
    ItemStarted,
    ModelFailed,
    ModelFault,
    ModelLoaded,
    OutputsFailed,
    OutputsUploaded,
    RefusedOutput,
    RunEnded,
    RunOutcome,
    TokensProduced,
)
from edge_runtime.vehicle.core.handover import Handover, without_outputs
from edge_runtime.vehicle.core.ledger import Ledger
from edge_runtime.vehicle.core.link import Link
from edge_runtime.vehicle.core.memory import (
    EngineHealth,
    FenceMemory,
    ModelShelf,
    Story,
)
from edge_runtime.vehicle.core.offers import MODEL_REFUSALS, Gate, Refusal, judge
from edge_runtime.vehicle.core.outbox import Key, Outbox
from edge_runtime.vehicle.core.snapshot import CarFacts, SavedAttempt
from edge_runtime.vehicle.core.stops import StopTally

NO_OUTPUTS: Final[Mapping[str, bytes]] = MappingProxyType({})
_chunks: Final = msgspec.msgpack.Decoder(Chunk)


@dataclass(slots=True)
class Work:
    """Live attempts, and every memory that they need. `out` collects commands."""

    facts: CarFacts
    out: list[Command] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    attempts: dict[int, Attempt] = field(default_factory=dict)
    adopting: dict[int, UnitOffer] = field(default_factory=dict)
    runs: dict[int, int] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    outbox: Outbox = field(default_factory=Outbox)
    handover: Handover = field(default_factory=Handover)
    """As `outbox`, of interactive units; only what refers to large outputs is ever in it."""
    fences: FenceMemory = field(default_factory=FenceMemory)
    recent: FenceMemory = field(
        default_factory=lambda: FenceMemory(INTERACTIVE_FENCES_REMEMBERED_MAX)
    )
    """As `fences`, of interactive units: so many end that they would push the others out."""
    models: ModelShelf = field(default_factory=ModelShelf)
    health: EngineHealth = field(default_factory=EngineHealth)
    energy: EnergyLedger = field(init=False)
    story: Story = field(default_factory=Story)
    stops: StopTally = field(default_factory=StopTally)
    link: Link = field(default_factory=Link)
    is_clock_trusted: bool = False
    is_withdrawn: bool = False
    """Whether the owner withdrew consent: then nothing that comes to an end is kept."""
    may_feed: bool = False
    """Whether an attempt may have become ready to submit since `feed` last looked."""
    left_runs: list[int] = field(default_factory=list)
    """Runs in a frozen engine whose attempts were given back: to be cancelled if it is thawed."""
    _once: list[bytes] = field(default_factory=list)
    _next_run: int = 1

    def __post_init__(self) -> None:
        self.energy = EnergyLedger(self.facts.energy, self.facts.compute_power_w)

    # --- offers ---------------------------------------------------------------------------

    @property
    def free_units(self) -> int:
        """How many more units fit."""
        if self.outbox.count >= CHUNKS_UNANSWERED_MAX:
            return 0
        return max(0, self.facts.units_max - self._durable)

    @property
    def free_interactive(self) -> int:
        """How many more interactive units fit, whatever else is held."""
        return max(0, INTERACTIVE_CAR_UNITS_MAX - len(self._interactive()))

    @property
    def _durable(self) -> int:
        orphans = sum(unit not in self.attempts for unit in self.adopting)
        return len(self.attempts) - len(self._interactive()) + orphans

    def _interactive(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts.values() if attempt.is_interactive]

    def offered(self, offer: UnitOffer, gate: Gate, now: Now) -> None:
        """Take, adopt, refuse, or repeat an answer."""
        if offer.interactive:
            self._offered_interactive(offer, gate, now)
            return
        held = self.attempts.get(offer.unit)
        pending = self.adopting.get(offer.unit)
        if held is not None and held.fence == offer.fence:
            if held.phase is not Phase.OFFERED:
                self.verdicts.append(Taken(unit=offer.unit, fence=offer.fence))
            return
        if pending is not None and pending.fence == offer.fence:
            return
        known = self.fences.recall(offer.unit, now)
        seen = [known.fence] if known is not None else []
        seen += [attempt.fence for attempt in (held, pending) if attempt is not None]
        if known is not None and known.fence == offer.fence:
            self._repeat(known.verdict)
        elif held is None and self.outbox.holds((offer.unit, offer.fence)):
            # Ended in an earlier boot, or so long ago that the memory of it had to go.
            self._repeat(Taken(unit=offer.unit, fence=offer.fence))
        elif seen and offer.fence < max(seen):
            self._refuse(offer, Refusal(RefusalReason.STALE_FENCE), now, remember=False)
        elif held is None and pending is None:
            self._take(offer, gate, now)
        else:
            self._take_over(held, offer, now)

    def _offered_interactive(self, offer: UnitOffer, gate: Gate, now: Now) -> None:
        """Begin or refuse; a repeat of what is here, or has ended here, changes nothing."""
        known = self.recent.recall(offer.unit, now)
        if offer.unit in self.attempts or known is not None:
            if known is not None and not isinstance(known.verdict, Taken):
                self.verdicts.append(known.verdict)
            return
        deadline_ns = deadline_of(offer, now, is_clock_trusted=self.is_clock_trusted)
        refusal = judge(offer, deadline_ns, gate, now)
        if refusal is not None:
            self._refuse(offer, refusal, now)
            return
        attempt = Attempt(offer, now.boot_ns, deadline_ns, items_of(offer), phase=Phase.RECORDED)
        self.attempts[offer.unit] = attempt
        self.story.tell(now, offer.unit, offer.fence, "interactive")
        self.may_feed = True
        if self.models.want(offer.model):
            self.out.append(EnsureModel(offer.model))

    def _repeat(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)
        if isinstance(verdict, Taken):
            self.outbox.send_again(verdict.unit)

    def _take(self, offer: UnitOffer, gate: Gate, now: Now) -> None:
        deadline_ns = deadline_of(offer, now, is_clock_trusted=self.is_clock_trusted)
        refusal = judge(offer, deadline_ns, gate, now)
        if refusal is not None:
            self._refuse(offer, refusal, now)
            return
        self.attempts[offer.unit] = Attempt(offer, now.boot_ns, deadline_ns, items_of(offer))
        self.story.tell(now, offer.unit, offer.fence, "offered")
        self.ledger.append(WriteAttempt(offer))
        if self.models.want(offer.model):
            self.out.append(EnsureModel(offer.model))

    def _take_over(self, held: Attempt | None, offer: UnitOffer, now: Now) -> None:
        """A newer fence of a unit that is here: adopt its run, once the journal holds the offer.

        `held` is None when the unit's run ended while an earlier such offer was being written.
        """
        if held is not None and (held.phase is Phase.STOPPING or held.offer.model != offer.model):
            self._refuse(offer, Refusal(RefusalReason.BUSY, REFUSAL_RETRY_MS), now)
            return
        self.story.tell(now, offer.unit, offer.fence, "adopting")
        self.adopting[offer.unit] = offer
        self.ledger.append(WriteAttempt(offer))

    def _refuse(
        self, offer: UnitOffer, refusal: Refusal, now: Now, *, remember: bool = True
    ) -> None:
        verdict = Refused(
            unit=offer.unit,
            fence=offer.fence,
            reason=refusal.reason,
            retry_after_ms=refusal.retry_after_ms,
            hold=refusal.hold,
        )
        self.verdicts.append(verdict)
        self.story.tell(now, offer.unit, offer.fence, f"refused {refusal.reason.value}")
        if remember:
            memory = self.recent if offer.interactive else self.fences
            memory.remember(verdict, now.boot_ns + _memory_ns(offer.remaining_ms))

    # --- the journal's answers --------------------------------------------------------------

    def recorded(self, offer: UnitOffer, now: Now) -> None:
        """The journal holds this attempt."""
        unit, fence = offer.unit, offer.fence
        pending = self.adopting.get(unit)
        attempt = self.attempts.get(unit)
        if pending is not None and pending.fence == fence:
            del self.adopting[unit]
            attempt = self._adopt(attempt, offer, now)
        elif attempt is None or attempt.fence != fence:
            return
        if attempt.phase is Phase.OFFERED:
            attempt.move(Phase.RECORDED)
        self.may_feed = True
        self.verdicts.append(Taken(unit=unit, fence=fence))
        self.story.tell(now, unit, fence, "recorded")
        self._skip_what_is_on_its_way(attempt, now)

    def _adopt(self, attempt: Attempt | None, offer: UnitOffer, now: Now) -> Attempt:
        deadline_ns = deadline_of(offer, now, is_clock_trusted=self.is_clock_trusted)
        if attempt is None:  # it ended while the new offer was being written
            attempt = Attempt(offer, now.boot_ns, deadline_ns, items_of(offer))
            self.attempts[offer.unit] = attempt
            return attempt
        in_chunk = {result.index for result in attempt.chunk.items}
        # What was fetched for the older fence is not fetched again.
        here = {i: item for i, item in attempt.remaining.items() if item.ref is None}
        offered = items_of(offer)
        remaining = {i: here.get(i, x) for i, x in offered.items() if i not in in_chunk}
        attempt.adopt(offer, deadline_ns, remaining)
        return attempt

    def _skip_what_is_on_its_way(self, attempt: Attempt, now: Now) -> None:
        """Items that an older fence finished here are sent again, not computed again."""
        finished = self.outbox.items_of_unit(attempt.unit, attempt.offer.model)
        if not finished.isdisjoint(attempt.remaining):
            attempt.remaining = {i: x for i, x in attempt.remaining.items() if i not in finished}
            self.outbox.send_again(attempt.unit)
        if not attempt.remaining:
            if attempt.run_id is not None:
                self.out.append(CancelRun(attempt.run_id))
            self._complete(attempt, now)

    def declined(self, offer: UnitOffer, reason: HoldReason, now: Now) -> None:
        """The journal does not hold this attempt: it was never taken."""
        refusal = Refusal(RefusalReason.STORAGE_FULL, HOLD_RETRY_MS, reason)
        pending = self.adopting.get(offer.unit)
        attempt = self.attempts.get(offer.unit)
        if pending is not None and pending.fence == offer.fence:
            del self.adopting[offer.unit]
            self._refuse(offer, refusal, now)
        elif attempt is not None and attempt.fence == offer.fence:
            self._withdraw(attempt, refusal, now)

    def _withdraw(self, attempt: Attempt, refusal: Refusal, now: Now) -> None:
        """Refuse an attempt that is not yet taken."""
        attempt.move(Phase.REFUSED)
        del self.attempts[attempt.unit]
        self.ledger.append(DropAttempt(attempt.unit, attempt.fence))
        self._refuse(attempt.offer, refusal, now)

    # --- models -----------------------------------------------------------------------------

    def model_ready(self, digest: str) -> None:
        """The package is in the store: what waited for it may run."""
        self.models.ready(digest)
        self.may_feed = True

    def model_failed(self, event: ModelFailed, now: Now) -> None:
        """Give back whatever waits for this package."""
        self.models.failed(event.digest, event.fault, now)
        for attempt in self._with_model(event.digest):
            self._give_back_unavailable(attempt, event.fault, now)

    def _give_back_unavailable(self, attempt: Attempt, fault: ModelFault, now: Now) -> None:
        if attempt.phase is Phase.OFFERED:
            _, retry_ms = self.models.fault(attempt.offer.model, now) or (fault, 0)
            self._withdraw(attempt, Refusal(MODEL_REFUSALS[fault], retry_ms), now)
        elif attempt.phase is Phase.RECORDED:
            self.release(attempt, Phase.FAILED, ReleaseReason.MODEL_UNAVAILABLE, now)

    def _with_model(self, digest: str) -> list[Attempt]:
        return [a for a in self.attempts.values() if a.offer.model == digest]

    def expiry_ns(self, attempt: Attempt) -> int:
        """When this attempt is worth nothing any more: its deadline, or its lease's certain end."""
        taken_ns = attempt.received_ns
        lease_ns = self.link.lease_end_ns(attempt.offer.lease_ms, taken_ns)
        return attempt.deadline_ns if lease_ns is None else min(attempt.deadline_ns, lease_ns)

    def feed(self, now: Now) -> None:
        """Submit every attempt that is recorded and whose model is ready, oldest first.

        Interactive ones go before the others. One whose time is over is given back instead.
        """
        if not self.may_feed:
            return
        self.may_feed = False
        for attempt in sorted(self.attempts.values(), key=_is_durable):
            if attempt.phase is not Phase.RECORDED:
                continue
            if self.expiry_ns(attempt) > now.boot_ns:
                self._submit(attempt)
            else:
                self.release(attempt, Phase.RELEASED, ReleaseReason.DEADLINE, now)

    def _submit(self, attempt: Attempt) -> None:
        digest = attempt.offer.model
        has_inputs = self._has_inputs(attempt)
        if not self.models.is_ready(digest):
            if self.models.want(digest):
                self.out.append(EnsureModel(digest))
            return
        if not has_inputs:
            return
        run_id, self._next_run = self._next_run, self._next_run + 1
        attempt.move(Phase.LOADING)
        attempt.run_id = run_id
        attempt.run_progress = 0
        self.runs[run_id] = attempt.unit
        items: tuple[Item, ...] = tuple(attempt.remaining.values())
        parameters = bytes(attempt.offer.parameters)
        is_urgent = attempt.is_interactive
        self.out.append(
            SubmitRun(
                run_id,
                attempt.unit,
                digest,
                items,
                parameters,
                streams=is_urgent,
                urgent=is_urgent,
                output_max_bytes=OBJECT_MAX_BYTES if outputs_place(attempt.offer) else None,
            )
        )

    # --- inputs by reference ------------------------------------------------------------------

    def exchange_ended(
        self, event: InputsFetched | InputsFailed | OutputsUploaded | OutputsFailed, now: Now
    ) -> None:
        """What was to be fetched, or handed over, was; or was not."""
        match event:
            case InputsFetched() | InputsFailed():
                self.inputs_ended(event, now)
            case OutputsUploaded() | OutputsFailed():
                self.outputs_ended(event, now)
            case _:
                assert_never(event)

    def _has_inputs(self, attempt: Attempt) -> bool:
        """Whether all its inputs are here; those that are not are fetched when there is room."""
        missing = attempt.missing
        if missing and not attempt.is_fetching:
            need_bytes = sum(ref.length for _, ref in missing)
            fetched_bytes = sum(other.fetched_bytes for other in self.attempts.values())
            if fetched_bytes + need_bytes <= UNIT_OBJECTS_MAX_BYTES:
                # An empty object is asked for as well.
                attempt.fetching_bytes = max(1, need_bytes)
                self.out.append(FetchInputs(attempt.unit, missing))
        return not missing

    def inputs_ended(self, event: InputsFetched | InputsFailed, now: Now) -> None:
        """What waited for its inputs may run, and what is broken of them fails alone.

        Where none could be had the unit is given back: another car may have a network.
        """
        attempt = self.attempts.get(event.unit)
        if attempt is None or not attempt.is_fetching:
            return
        attempt.fetching_bytes = 0
        self.may_feed = True
        if isinstance(event, InputsFailed):
            if attempt.phase is Phase.RECORDED:
                self.release(attempt, Phase.FAILED, ReleaseReason.INPUT_UNAVAILABLE, now)
            return
        for found in event.inputs:
            attempt.hold_input(found.index, found.sha256, found.data)
        for index, message in event.broken:
            if index in attempt.remaining and attempt.phase is Phase.RECORDED:
                failed = failed_item(index, ItemError.INPUT_UNAVAILABLE, message)
                self._report(attempt, failed, NO_COST, now)

    # --- the engine -------------------------------------------------------------------------

    def _of_run(self, run_id: int | None) -> Attempt | None:
        unit = None if run_id is None else self.runs.get(run_id)
        return None if unit is None else self.attempts[unit]

    def loaded(self, event: ModelLoaded) -> None:
        """A run's model is in the engine."""
        attempt = self._of_run(event.run_id)
        if attempt is not None:
            attempt.add_load(max(0.0, event.load_ms))
            self.models.ready(attempt.offer.model)

    def started(self, event: ItemStarted, now: Now) -> None:
        """An item is about to be computed: journal it."""
        attempt = self._of_run(event.run_id)
        if attempt is None:
            return
        if attempt.phase is Phase.LOADING:
            attempt.move(Phase.RUNNING)
            self.story.tell(now, attempt.unit, attempt.fence, "running")
        self._journal(attempt, WriteStarted(attempt.unit, event.index))

    def produced(self, event: TokensProduced) -> None:
        """Tokens of an item: worth sending where somebody waits for them."""
        self.health.worked()
        attempt = self._of_run(event.run_id)
        if attempt is None or not attempt.is_interactive or event.index not in attempt.remaining:
            return
        attempt.chunk.tokens.append(
            Tokens(
                index=event.index,
                offset=event.offset,
                ids=event.ids,
                text=event.text,
                finish=None if event.finish is None else FinishReason(event.finish.value),
            )
        )

    def finished(self, event: ItemFinished, now: Now) -> None:
        """An item's output is here."""
        self.health.worked()
        attempt = self._of_run(event.run_id)
        if attempt is None:
            return
        attempt.run_progress += 1
        if event.index in attempt.remaining:
            place = outputs_place(attempt.offer)
            result = finished_item(
                event.index, event.output, event.busy_ms, sha256=event.sha256, place=place
            )
            cost, output = NO_COST, None
            if isinstance(result, ItemDone):
                cost = self.energy.item(attempt.offer.model, result.busy_ms, now)
                output = None if result.ref is None else event.output
            self._report(attempt, result, cost, now, output)

    def broke(self, event: ItemBroke, now: Now) -> None:
        """An item failed; the engine lives on."""
        self.health.worked()
        attempt = self._of_run(event.run_id)
        if attempt is None:
            return
        attempt.run_progress += 1
        if event.index in attempt.remaining:
            self._count_waste(attempt, now)
            self._report(
                attempt, failed_item(event.index, event.code, event.message), ItemCost(), now
            )

    def interrupted(self, event: ItemInterrupted) -> None:
        """An item was in hand when the engine was stopped: what comes next says what of it."""
        attempt = self._of_run(event.run_id)
        if attempt is not None and event.index in attempt.remaining:
            attempt.in_hand[event.index] = max(0.0, event.busy_ms)

    def _count_waste(self, attempt: Attempt, now: Now) -> int:
        """Items in hand, where there are any, come to nothing: their energy was spent; how many."""
        in_hand, attempt.in_hand = attempt.in_hand, {}
        lost = [busy_ms for index, busy_ms in in_hand.items() if index in attempt.remaining]
        for busy_ms in lost:
            attempt.totals.wasted_j += self.energy.wasted(busy_ms, now)
        return len(lost)

    def run_ended(self, event: RunEnded, now: Now) -> None:
        """A run left the engine before all its items were reported."""
        attempt = self._of_run(event.run_id)
        if attempt is None:
            return
        progress = attempt.run_progress
        self._forget_run(attempt)
        if attempt.intent in {StopIntent.CANCEL, StopIntent.DEADLINE}:
            self.finish_stopping(attempt, None, event.stop, now)
            self._tally(attempt, event.stop)
        elif event.outcome is RunOutcome.MODEL_FAILED:
            self.models.failed(attempt.offer.model, ModelFault.INVALID, now)
            self.release(attempt, Phase.FAILED, ReleaseReason.MODEL_UNAVAILABLE, now)
        elif event.outcome is RunOutcome.COMPLETED and progress == 0:
            # A run that ends without a word about its items would be submitted for ever.
            for index in list(attempt.remaining):
                failed = failed_item(index, ItemError.MODEL_ERROR, event.message or "not computed")
                self._report(attempt, failed, NO_COST, now)

    def _tally(self, attempt: Attempt, stop: StopReport | None) -> None:
        """A run was stopped on its own; one that only waited is not worth counting."""
        if stop is not None and stop.tier is not StopTier.NONE:
            lost, wasted_wh = attempt.totals.lost, attempt.totals.wasted_j / J_PER_WH
            self.stops.note(stop.tier, stop, items_lost=lost, wasted_wh=wasted_wh)

    def engine_died(self, event: EngineDied, now: Now) -> None:
        """Every run is gone; the item in hand takes the blame, the rest is submitted again."""
        victim = self._of_run(event.run_id)
        for attempt in list(self.attempts.values()):
            if attempt.run_id is not None:
                self._forget_run(attempt)
                if attempt.intent in {StopIntent.CANCEL, StopIntent.DEADLINE}:
                    self.finish_stopping(attempt, None, None, now)
        self.runs.clear()
        if victim is None or self.attempts.get(victim.unit) is not victim:
            return
        if event.index is not None and event.index in victim.remaining:
            self._count_waste(victim, now)
            self._report(
                victim, failed_item(event.index, event.code, event.message), ItemCost(), now
            )

    def _forget_run(self, attempt: Attempt) -> None:
        if attempt.run_id is not None:
            self.runs.pop(attempt.run_id, None)
            attempt.leave_engine()
            self.may_feed = True

    # --- chunks -----------------------------------------------------------------------------

    def forget_results(self) -> None:
        """Drop all that is finished and not answered, sent or not; its items are given back.

        An attempt that is still held gives its items back when it ends. One that has ended says
        again that it ends, with nothing, under its next number, which the dispatcher has not seen.
        """
        for attempt in self.attempts.values():
            attempt.chunk = OpenChunk()
        self.handover.clear()
        for last in self.outbox.forget():
            unit, fence = last.key
            self.ledger.append(DropChunks(unit, fence, last.seq))
            attempt_of = self.attempts.get(unit)
            if attempt_of is not None and attempt_of.fence == fence:
                continue
            released = Chunk(
                job=last.job,
                unit=unit,
                fence=fence,
                model=last.model,
                seq=last.seq + 1,
                items=(),
                ending=Ending(
                    outcome=Outcome.RELEASED,
                    reason=ReleaseReason.HOLD,
                    hold=HoldReason.CONSENT_WITHDRAWN,
                ),
            )
            self._keep(released, Phase.RELEASED)

    def _report(
        self,
        attempt: Attempt,
        result: ItemResult,
        cost: ItemCost,
        now: Now,
        output: bytes | None = None,
    ) -> None:
        if self.is_withdrawn:
            return
        # What is inline does not wait until a large output was handed over: that has its own chunk.
        is_large = output is not None
        if not attempt.has_room_for(result) or (is_large and attempt.chunk.items):
            self._close(attempt, None, None, now)
        attempt.report(result, cost, now, output)
        if not attempt.remaining:
            self._complete(attempt, now)
        elif attempt.chunk.is_full or is_large:
            self._close(attempt, None, None, now)

    def _complete(self, attempt: Attempt, now: Now) -> None:
        self.energy.unit_done(now)
        self._end(attempt, Phase.REPORTING, Ending(outcome=Outcome.COMPLETED), now)

    def _close(
        self, attempt: Attempt, ending: Ending | None, ended_as: Phase | None, now: Now
    ) -> None:
        outputs = attempt.chunk.outputs
        done = any(isinstance(result, ItemDone) for result in attempt.chunk.items)
        usage = self.energy.usage(attempt.chunk.wear_percent) if done else None
        chunk = attempt.close_chunk(ending, usage)
        if attempt.is_interactive:
            self._once += map(encode, self.handover.add(chunk, outputs))
            key = chunk.unit, chunk.fence
            if refs := self.handover.references(key, chunk.seq):
                self.out.append(UploadOutputs(*key, chunk.seq, refs))
            self.write_energy(ENERGY_RIDE_MS, now)
            return
        self._keep(chunk, ended_as, outputs)
        self.write_energy(0 if ending is not None else ENERGY_RIDE_MS, now)

    def _journal(self, attempt: Attempt, write: Write) -> None:
        """Write down something of this attempt, unless nothing of it is kept."""
        if not attempt.is_interactive:
            self.ledger.append(write)

    def take_once(self, now: Now) -> list[bytes]:
        """What interactive attempts have to say, as encoded chunks: to be published now, or never.

        Everything that came in one step is one chunk of its attempt.
        """
        for attempt in self._interactive():
            if attempt.chunk.items or attempt.chunk.tokens:
                self._close(attempt, None, None, now)
        once, self._once = self._once, []
        return once

    def write_energy(self, every_ms: int, now: Now) -> None:
        """Journal what the energy ledger has new, unless it was written less long ago.

        While storage is in trouble it waits in the ledger: no write of it need be kept.
        """
        if self.ledger.trouble is None and self.energy.is_due(now, every_ms):
            for write in self.energy.take_writes(now):
                self.ledger.append(write)

    def reserved_j(self) -> float:
        """What the items that are held, and not finished, will take."""
        return sum(
            self.energy.estimate_j(attempt.offer.model, len(attempt.remaining))
            for attempt in self.attempts.values()
        )

    def _keep(
        self, chunk: Chunk, ended_as: Phase | None, outputs: Mapping[str, bytes] = NO_OUTPUTS
    ) -> None:
        body = encode(chunk)
        self.outbox.add(chunk, body, ended_as)
        ends = chunk.ending is not None
        for sha256, output in outputs.items():
            self.ledger.append(WriteOutput(chunk.unit, chunk.fence, chunk.seq, sha256, output))
        self.ledger.append(WriteChunk(chunk.unit, chunk.fence, chunk.seq, body, ends))

    def close_old_chunks(self, now: Now) -> None:
        """Close every chunk whose first item has waited long enough."""
        for attempt in self.attempts.values():
            due_ns = attempt.chunk_due_ns()
            if due_ns is not None and due_ns <= now.boot_ns:
                self._close(attempt, None, None, now)

    def answered(self, answer: ChunkAnswer, now: Now) -> None:
        """The dispatcher has these chunks: forget them, and no others."""
        unit, fence = answer.unit, answer.fence
        first_seq, through_seq = answer.first_seq, answer.through_seq
        had_any, phase = self.outbox.answer((unit, fence), first_seq, through_seq)
        if had_any:
            self.ledger.append(DropChunks(unit, fence, through_seq, first_seq))
        if phase is not None:
            self.story.tell(now, unit, fence, phase.value)

    # --- outputs by reference ---------------------------------------------------------------

    def hand_over(self) -> None:
        """Ask for what chunks refer to, where that is to be handed over now."""
        for chunk in self.outbox.take_uploads():
            unit, fence = chunk.key
            refs = tuple(chunk.references.values())
            self.out.append(UploadOutputs(unit, fence, chunk.seq, refs))

    def holds_outputs(self, key: Key) -> bool:
        """Whether what a unit refers to is still to be handed over, or to be answered."""
        return self.outbox.holds(key) or self.handover.holds(key)

    def outputs_ended(self, event: OutputsUploaded | OutputsFailed, now: Now) -> None:
        """What was handed over may be told of; what nobody takes ends its item instead."""
        key = event.unit, event.fence
        if refs := self.handover.references(key, event.seq):
            if isinstance(event, OutputsUploaded):
                lost = event.refused
            elif event.was_allowed and self.handover.may_try_again(key, event.seq):
                self.out.append(UploadOutputs(*key, event.seq, refs))
                return
            else:
                lost = tuple(RefusedOutput(ref.sha256, event.message) for ref in refs)
            self._once += map(encode, self.handover.ended(key, event.seq, lost))
            return
        if isinstance(event, OutputsUploaded):
            self.outbox.uploaded(key, event.seq)
            self.lose_outputs(key, event.seq, event.refused)
            return
        left = self.outbox.upload_failed(key, event.seq, now, counts=event.was_allowed)
        self.lose_outputs(
            key, event.seq, tuple(RefusedOutput(ref.sha256, event.message) for ref in left)
        )

    def lose_outputs(self, key: Key, seq: int, lost: tuple[RefusedOutput, ...]) -> None:
        """The items of a chunk that refer to these have failed; the chunk says so instead."""
        saved = self.outbox.find(key, seq)
        if saved is None or not lost:
            return
        body = encode(without_outputs(_chunks.decode(saved.body), lost))
        self.outbox.rewrite(saved, body, frozenset(output.sha256 for output in lost))
        self.ledger.append(RewriteChunk(*key, seq, body))

    # --- endings ----------------------------------------------------------------------------

    def cancel(self, unit: int, fence: Fence, reason: CancelReason, now: Now) -> None:
        """Drop, stop or disown an attempt; always ends in an answer."""
        self.handover.drop((unit, fence))
        attempt = self.attempts.get(unit)
        if attempt is None or attempt.fence != fence:
            self._disown(unit, fence, reason, now)
        elif attempt.phase in {Phase.OFFERED, Phase.RECORDED}:
            self._end_cancelled(attempt, None, now, keep_items=_keeps_items(reason))
        elif attempt.intent is None:
            attempt.stop_for(StopIntent.CANCEL)
            self.out.append(CancelRun(attempt.run_id or 0))
        else:
            attempt.stop_for(StopIntent.CANCEL)

    def _disown(self, unit: int, fence: Fence, reason: CancelReason, now: Now) -> None:
        """An attempt that is not here: say so, now and for every later offer of it."""
        if reason is CancelReason.NOT_AWAITED:
            never = Cancelled(unit=unit, fence=fence)
            self.verdicts.append(never)
            self.recent.remember(never, now.boot_ns + _memory_ns(INTERACTIVE_TIMEOUT_DEFAULT_MS))
            return
        pending = self.adopting.get(unit)
        if pending is not None and pending.fence == fence:
            del self.adopting[unit]
            self.ledger.append(DropAttempt(unit, fence))
        self.outbox.send_again(unit)
        verdict = Cancelled(unit=unit, fence=fence)
        self.verdicts.append(verdict)
        self._remember_cancelled(verdict, JOB_DEADLINE_MAX_S * 1000, now)

    def _remember_cancelled(self, verdict: Cancelled, remaining_ms: int, now: Now) -> None:
        self.fences.remember(verdict, now.boot_ns + _memory_ns(remaining_ms))
        until_ms = now.utc_ms + remaining_ms
        self.ledger.append(WriteFence(verdict.unit, verdict.fence, until_ms))

    def finish_stopping(
        self, attempt: Attempt, hold: HoldReason | None, stop: StopReport | None, now: Now
    ) -> None:
        """The engine has let go of a stopping attempt: end it as was meant."""
        match attempt.intent:
            case StopIntent.CANCEL:
                self._end_cancelled(attempt, stop, now, keep_items=True)
            case StopIntent.DEADLINE:
                self.release(attempt, Phase.RELEASED, ReleaseReason.DEADLINE, now, stop=stop)
            case StopIntent.HOLD | None:
                reason = ReleaseReason.HOLD
                self.release(attempt, Phase.RELEASED, reason, now, hold=hold, stop=stop)

    def release(
        self,
        attempt: Attempt,
        phase: Phase,
        reason: ReleaseReason,
        now: Now,
        *,
        hold: HoldReason | None = None,
        stop: StopReport | None = None,
    ) -> None:
        """Give an attempt back: its finished items, and why the rest is not."""
        if attempt.phase is Phase.OFFERED:
            refusal = (
                Refusal(RefusalReason.EXPIRED)
                if reason is ReleaseReason.DEADLINE
                else Refusal(RefusalReason.HOLD, HOLD_RETRY_MS, hold)
            )
            self._withdraw(attempt, refusal, now)
            return
        ending = Ending(outcome=Outcome.RELEASED, reason=reason, hold=hold, stop=stop)
        self._end(attempt, phase, ending, now)

    def _end_cancelled(
        self, attempt: Attempt, stop: StopReport | None, now: Now, *, keep_items: bool
    ) -> None:
        verdict = Cancelled(unit=attempt.unit, fence=attempt.fence)
        if keep_items and attempt.chunk.items:
            self._end(attempt, Phase.CANCELLED, Ending(outcome=Outcome.CANCELLED, stop=stop), now)
        else:
            attempt.totals.lost += self._count_waste(attempt, now)
            self._leave(attempt, Phase.CANCELLED)
            self._journal(attempt, DropAttempt(attempt.unit, attempt.fence))
            self._log(attempt, Ending(outcome=Outcome.CANCELLED, stop=stop), now)
        self.verdicts.append(verdict)
        if attempt.is_interactive:
            self.recent.remember(verdict, now.boot_ns + _memory_ns(attempt.offer.remaining_ms))
        else:
            self._remember_cancelled(verdict, attempt.offer.remaining_ms, now)

    def _end(self, attempt: Attempt, phase: Phase, ending: Ending, now: Now) -> None:
        attempt.totals.lost += self._count_waste(attempt, now)
        self._leave(attempt, phase)
        self._close(attempt, ending, phase, now)
        taken = Taken(unit=attempt.unit, fence=attempt.fence)
        memory = self.recent if attempt.is_interactive else self.fences
        memory.remember(taken, now.boot_ns + _memory_ns(attempt.offer.remaining_ms))
        self._log(attempt, ending, now)

    def _leave(self, attempt: Attempt, phase: Phase) -> None:
        if attempt.run_id is not None:
            self.runs.pop(attempt.run_id, None)
            attempt.run_id = None
        attempt.move(phase)
        del self.attempts[attempt.unit]
        if attempt.fetched_bytes:
            self.may_feed = True  # there is room for what another one waits for

    def _log(self, attempt: Attempt, ending: Ending, now: Now) -> None:
        self.story.tell(now, attempt.unit, attempt.fence, attempt.phase.value)
        tier, latency_ms = stop_fields(ending.stop)
        why = ending.hold or ending.reason
        totals, offer = attempt.totals, attempt.offer
        self.out.append(
            LogUnit(
                unit=attempt.unit,
                fence=attempt.fence,
                job=offer.job,
                tenant=offer.tenant,
                model=offer.model,
                outcome=ending.outcome.value,
                reason=None if why is None else why.value,
                items=len(offer.items),
                done=totals.done,
                failed=totals.failed,
                held_ms=(now.boot_ns - attempt.received_ns) / NS_PER_MS,
                busy_ms=totals.busy_ms,
                load_ms=totals.load_ms,
                energy_j=totals.energy_j,
                stop_tier=tier,
                stop_latency_ms=latency_ms,
                traceparent=offer.traceparent,
                items_lost=totals.lost,
                wasted_wh=totals.wasted_j / J_PER_WH,
                energy_method=self.energy.method.value,
            )
        )

    # --- after a reboot ----------------------------------------------------------------------

    def restore(self, saved: SavedAttempt, now: Now) -> None:
        """An attempt of an earlier boot: give it back; the item it was at takes the blame."""
        offer = saved.offer
        on_its_way = self.outbox.items_of_unit(offer.unit, offer.model)
        remaining = {i: item for i, item in items_of(offer).items() if i not in on_its_way}
        attempt = Attempt(offer, now.boot_ns, now.boot_ns, remaining, phase=Phase.RECORDED)
        attempt.next_seq = saved.next_seq
        self.attempts[offer.unit] = attempt
        if saved.started in remaining and saved.started is not None:
            message = "the car's runtime ended while it computed this item"
            blamed = failed_item(saved.started, ItemError.CAR_REBOOTED, message)
            attempt.report(blamed, NO_COST, now)
        self.release(attempt, Phase.RELEASED, ReleaseReason.REBOOT, now)

    # --- invariants --------------------------------------------------------------------------

    def problems(self) -> Iterator[str]:
        """Every broken invariant, as a sentence."""
        if self._durable > self.facts.units_max:
            yield f"{self._durable} units are held; the car takes {self.facts.units_max}"
        if len(self._interactive()) > INTERACTIVE_CAR_UNITS_MAX:
            yield f"{len(self._interactive())} interactive units are held"
        for unit, attempt in self.attempts.items():
            yield from self._attempt_problems(unit, attempt)
        for run_id, unit in self.runs.items():
            if unit not in self.attempts or self.attempts[unit].run_id != run_id:
                yield f"run {run_id} belongs to no attempt"
        yield from self._feed_problems()
        yield from self.energy.problems()
        yield from self.outbox.problems()
        yield from self.handover.problems()

    def _feed_problems(self) -> Iterator[str]:
        for unit, attempt in self.attempts.items():
            is_fed = self.may_feed or not self.models.is_ready(attempt.offer.model)
            is_fed = is_fed or attempt.is_fetching or bool(attempt.missing)
            if attempt.phase is Phase.RECORDED and not is_fed:
                yield f"unit {unit} is ready to run and nobody looks"

    def _attempt_problems(self, unit: int, attempt: Attempt) -> Iterator[str]:
        story = "; ".join(self.story.of(unit))
        if attempt.phase in {Phase.LOADING, Phase.RUNNING} and attempt.run_id not in self.runs:
            yield f"unit {unit} is {attempt.phase.value} without a run: {story}"
        if attempt.phase in {Phase.OFFERED, Phase.RECORDED} and attempt.run_id is not None:
            yield f"unit {unit} is {attempt.phase.value} with a run: {story}"
        if (attempt.phase is Phase.STOPPING) != (attempt.intent is not None):
            yield f"unit {unit} is {attempt.phase.value}, meant for {attempt.intent}: {story}"
        if not attempt.remaining:
            yield f"unit {unit} has nothing left and did not end: {story}"
        if not {r.index for r in attempt.chunk.items}.isdisjoint(attempt.remaining):
            yield f"unit {unit} would compute a finished item again: {story}"


def _is_durable(attempt: Attempt) -> bool:
    return not attempt.is_interactive


def _keeps_items(reason: CancelReason) -> bool:
    """Whether finished items of a cancelled attempt are worth sending."""
    return reason not in {CancelReason.JOB_CANCELLED, CancelReason.NOT_AWAITED}


def _memory_ns(remaining_ms: int) -> int:
    return min(remaining_ms, JOB_DEADLINE_MAX_S * 1000) * NS_PER_MS


def decode_chunks(bodies: Iterable[bytes]) -> Iterator[tuple[Chunk, bytes]]:
    """The journal's chunks; one that does not decode is left out."""
    for body in bodies:
        try:
            yield _chunks.decode(body), body
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
