"""Any order of events, faults and crashes: the core's promises hold, and all work ends."""

from typing import Any

import msgspec
from car_bench import GOOD, MODEL, OTHER_MODEL, POLICY, STOPPED, Bench, offer, only, verdicts
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_runtime.contract.codec import encode
from edge_runtime.contract.limits import UNIT_OBJECTS_MAX_BYTES
from edge_runtime.contract.messages import (
    Cancel,
    Cancelled,
    ChunkAnswer,
    Drain,
    Fence,
    Rebirth,
    Reference,
    Refused,
    StopReport,
    Taken,
)
from edge_runtime.contract.reasons import (
    CancelReason,
    ChunkVerdict,
    HoldReason,
    ItemError,
    Outcome,
    StopTier,
)
from edge_runtime.vehicle.core import commands as c
from edge_runtime.vehicle.core import events as e
from edge_runtime.vehicle.core.admission import Ready

UNITS = st.integers(1, 5)
INDEXES = (0, 1, 2, 3)
Key = tuple[int, Fence]


class CarUnderTest(RuleBasedStateMachine):
    """The dispatcher, the owner, the engine and the disk, all at once and in any order."""

    def __init__(self) -> None:
        super().__init__()
        policy = msgspec.structs.replace(POLICY, dwell_s=2)
        self.car = Bench(policy).open()
        self.fences: dict[int, int] = {}
        self.taken: set[Key] = set()
        self.refused: set[Key] = set()
        self.cancelled: set[Key] = set()
        self.seen = 0
        self.started: dict[int, int] = {}
        self.said = 0
        self.fetches: list[c.FetchInputs] = []
        """Asked for, and not answered by the process that asked."""

    # --- the dispatcher ----------------------------------------------------------------------

    @rule(unit=UNITS, subset=st.sets(st.sampled_from(INDEXES), min_size=1), other=st.booleans())
    def offers_anew(self, unit: int, subset: set[int], *, other: bool) -> None:
        counter = self.fences[unit] = self.fences.get(unit, 0) + 1
        model = OTHER_MODEL if other and unit == 5 else MODEL
        fresh = offer(unit, counter, items=sorted(subset), model=model)
        self.car.send(e.UnitsOffered((fresh,)))

    @rule(unit=UNITS)
    def takes_and_begins(self, unit: int) -> None:
        """The usual way, so that the unusual happens deep inside a unit's life."""
        counter = self.fences[unit] = self.fences.get(unit, 0) + 1
        self.car.send(e.UnitsOffered((offer(unit, counter, items=INDEXES),)))
        self.car.commit()

    @rule(unit=UNITS, large=st.booleans())
    def offers_references(self, unit: int, *, large: bool) -> None:
        counter = self.fences[unit] = self.fences.get(unit, 0) + 1
        length = UNIT_OBJECTS_MAX_BYTES // 2 if large else 1_000
        fresh = offer(unit, counter, items=INDEXES)
        items = tuple(
            msgspec.structs.replace(item, data=b"", ref=_reference(item.index, length))
            if item.index in {1, 3}
            else item
            for item in fresh.items
        )
        self.car.send(e.UnitsOffered((msgspec.structs.replace(fresh, items=items),)))
        self.car.commit()

    def _open_fetches(self) -> list[c.FetchInputs]:
        self.fetches += only(c.FetchInputs, self.car.said[self.said :])
        self.said = len(self.car.said)
        return self.fetches

    @precondition(lambda self: self._open_fetches())
    @rule(came=st.sets(st.sampled_from(INDEXES)), failed=st.booleans())
    def inputs_come_or_not(self, came: set[int], *, failed: bool) -> None:
        fetch = self.fetches.pop(0)
        self._answer_fetch(fetch, came, failed=failed)

    def _answer_fetch(self, fetch: c.FetchInputs, came: set[int], *, failed: bool) -> None:
        if failed:
            self.car.send(e.InputsFailed(fetch.unit, "no network"))
            return
        self.car.send(
            e.InputsFetched(
                fetch.unit,
                tuple(
                    e.FetchedInput(index, ref.sha256, b"fetched")
                    for index, ref in fetch.references
                    if index in came
                ),
                tuple((index, "gone") for index, _ in fetch.references if index not in came),
            )
        )

    @invariant()
    def no_run_has_an_input_that_is_not_here(self) -> None:
        for run in self.car.engine.runs.values():
            assert all(item.ref is None and item.data for item in run.items), run

    @invariant()
    def no_more_is_fetched_than_fits(self) -> None:
        attempts = self.car.core.work.attempts.values()
        assert sum(attempt.fetched_bytes for attempt in attempts) <= UNIT_OBJECTS_MAX_BYTES

    @precondition(lambda self: self.car.engine.runs and not self.car.engine.is_frozen)
    @rule(items=st.integers(1, 3), age=st.sampled_from([0.0, 0.3]), commits=st.booleans())
    def engine_gets_on(self, items: int, age: float, *, commits: bool) -> None:
        """Items of the oldest run, and perhaps time for a chunk to close and be written."""
        run_id, run = next(iter(self.car.engine.runs.items()))
        done = self.started.get(run_id, 0)
        for item in run.items[done : done + items]:
            self.car.send(e.ItemStarted(run_id, item.index))
            self.car.send(e.ItemFinished(run_id, item.index, encode(item.index), 5.0))
        self.started[run_id] = done + items
        if done + items >= len(run.items):
            self.car.engine.runs.pop(run_id, None)
            self.car.send(e.RunEnded(run_id, e.RunOutcome.COMPLETED))
        self.car.live(age)
        if commits:
            self.car.commit()

    @precondition(lambda self: self.fences)
    @rule(data=st.data())
    def offers_again(self, data: st.DataObject) -> None:
        unit = data.draw(st.sampled_from(sorted(self.fences)))
        counter = data.draw(st.integers(1, self.fences[unit]))
        self.car.send(e.UnitsOffered((offer(unit, counter, items=INDEXES),)))

    @rule(unit=UNITS, counter=st.integers(1, 6), reason=st.sampled_from(CancelReason))
    def cancels(self, unit: int, counter: int, reason: CancelReason) -> None:
        order = Cancel(unit=unit, fence=Fence(1, counter), reason=reason)
        self.car.send(e.OrdersReceived((order,)))

    @precondition(lambda self: self.car.chunks)
    @rule(data=st.data(), alone=st.booleans())
    def answers(self, data: st.DataObject, *, alone: bool) -> None:
        unit, fence, seq = data.draw(st.sampled_from(sorted(self.car.chunks)))
        order = ChunkAnswer(
            unit=unit,
            fence=fence,
            through_seq=seq,
            verdict=ChunkVerdict.STORED,
            first_seq=seq if alone else 0,
        )
        self.car.send(e.OrdersReceived((order,)))

    @rule(active=st.booleans())
    def drains(self, *, active: bool) -> None:
        self.car.send(e.OrdersReceived((Drain(active=active), Rebirth(delay_max_ms=500)), 0.3))

    @rule(up=st.booleans())
    def connection_changes(self, *, up: bool) -> None:
        self.car.send(e.BusConnected() if up else e.BusDisconnected())

    # --- the owner and time ------------------------------------------------------------------

    @rule(
        changes=st.sampled_from(
            [
                {"is_occupied": True},
                {"is_parked": False},
                {"compute_temperature_c": 80.0},
                {"compute_temperature_c": 95.0},
                {"charge_percent": float("nan")},
                {"is_plugged": None},
                GOOD,
                GOOD,
            ]
        )
    )
    def signals_change(self, changes: dict[str, Any]) -> None:
        self.car.sense(**changes)

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 4.0]))
    def time_passes(self, seconds: float) -> None:
        self.car.live(seconds)

    @rule()
    def sensors_are_silent(self) -> None:
        self.car.advance(6)

    # --- the disk ----------------------------------------------------------------------------

    @precondition(lambda self: self.car.journal.queued)
    @rule()
    def disk_commits(self) -> None:
        self.car.commit()

    @precondition(lambda self: self.car.journal.queued)
    @rule(reason=st.sampled_from([HoldReason.STORAGE_FULL, HoldReason.STORAGE_ERROR]))
    def disk_fails(self, reason: HoldReason) -> None:
        self.car.send(self.car.journal.fail(reason))

    @rule(full=st.booleans())
    def disk_fills(self, *, full: bool) -> None:
        self.car.journal.is_full = full

    # --- the engine --------------------------------------------------------------------------

    @precondition(lambda self: self.car.engine.runs)
    @rule(what=st.sampled_from(["start", "finish", "break", "end", "load"]))
    def engine_works(self, what: str) -> None:
        run_id, run = next(iter(self.car.engine.runs.items()))
        done = self.started.get(run_id, 0)
        if done >= len(run.items) or what == "end":
            del self.car.engine.runs[run_id]
            self.car.send(e.RunEnded(run_id, e.RunOutcome.COMPLETED))
            return
        index = run.items[done].index
        match what:
            case "start":
                self.car.send(e.ItemStarted(run_id, index))
            case "finish":
                self.started[run_id] = done + 1
                self.car.send(e.ItemFinished(run_id, index, encode(index), 5.0))
            case "break":
                self.started[run_id] = done + 1
                self.car.send(e.ItemBroke(run_id, index, ItemError.WRONG_SHAPE))
            case _:
                self.car.send(e.ModelLoaded(run_id, 3.0))

    @precondition(lambda self: self.car.engine.runs)
    @rule(data=st.data(), tier=st.sampled_from(StopTier))
    def engine_lets_a_cancelled_run_go(self, data: st.DataObject, tier: StopTier) -> None:
        run_id = data.draw(st.sampled_from(sorted(self.car.engine.runs)))
        del self.car.engine.runs[run_id]
        stop = StopReport(tier=tier, latency_ms=1.0)
        self.car.send(e.RunEnded(run_id, e.RunOutcome.CANCELLED, stop))

    @precondition(lambda self: self.car.engine.runs)
    @rule(in_hand=st.booleans(), code=st.sampled_from(ItemError))
    def engine_dies(self, code: ItemError, *, in_hand: bool) -> None:
        run_id, run = next(iter(self.car.engine.runs.items()))
        self.car.engine.runs.clear()
        index = run.items[0].index if in_hand else None
        self.car.send(e.EngineDied(run_id if in_hand else None, index, code, "it died"))

    @rule(killed=st.booleans())
    def engine_is_measured(self, *, killed: bool) -> None:
        self.car.send(e.EngineKilled(STOPPED) if killed else e.EngineFrozen(STOPPED))

    @rule(digest=st.sampled_from([MODEL, OTHER_MODEL]), ready=st.booleans())
    def model_comes_or_not(self, digest: str, *, ready: bool) -> None:
        if ready:
            self.car.send(e.ModelReady(digest))
        else:
            self.car.send(e.ModelFailed(digest, e.ModelFault.UNAVAILABLE))

    @rule(measured=st.booleans())
    def process_is_asked_to_leave(self, *, measured: bool) -> None:
        self.car.journal.is_full = False
        said = self.car.send(e.ShutdownRequested())
        if measured:
            said += self.car.send(e.EngineFrozen(STOPPED))
        said += self.car.advance(0.1)
        said += self.car.commit()
        assert not self.car.core.work.attempts
        said += self.car.live(2)
        assert len(only(c.Leave, said)) == 1
        self._restart()

    @rule()
    def process_is_killed(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self.answers_do_not_contradict_each_other()
        self.refused.clear()  # refusals are remembered within a boot
        self._open_fetches()
        self.fetches.clear()  # the processes that fetched died with the car's
        self.car.crash()
        self.car.core.check(self.car.now)

    # --- what must hold ----------------------------------------------------------------------

    @invariant()
    def answers_do_not_contradict_each_other(self) -> None:
        for verdict in verdicts(self.car.said[self.seen :]):
            key = (verdict.unit, verdict.fence)
            match verdict:
                case Taken():
                    assert key not in self.refused
                    self.taken.add(key)
                case Refused(reason=reason):
                    # A stale or withdrawn fence is refused although it was taken, never the
                    # other way about.
                    if key not in self.taken and reason.value != "stale_fence":
                        self.refused.add(key)
                case Cancelled():
                    self.cancelled.add(key)
        self.seen = len(self.car.said)

    @invariant()
    def the_engine_stands_still_while_the_car_must_not_work(self) -> None:
        decision = self.car.core.decision
        if not isinstance(decision, Ready) and decision.stop:
            # A run with nothing left computes nothing, and ends by itself.
            runs = self.car.engine.runs.items()
            left = [run for run_id, run in runs if self.started.get(run_id, 0) < len(run.items)]
            assert self.car.engine.is_frozen or not left

    def teardown(self) -> None:
        """Everything heals: whatever was taken and is still open ends, and all is forgotten."""
        car = self.car
        car.journal.is_full = False
        car.send(e.OrdersReceived((Drain(active=False),)))
        car.send(e.BusConnected())
        for _ in range(400):
            car.sense(**GOOD)
            for digest in (MODEL, OTHER_MODEL):
                car.send(e.ModelReady(digest))
            while self._open_fetches():
                self._answer_fetch(self.fetches.pop(0), set(INDEXES), failed=False)
            self._run_everything()
            car.live(2)
            car.commit()
            for unit, fence, seq in sorted(car.chunks):
                order = ChunkAnswer(
                    unit=unit, fence=fence, through_seq=seq, verdict=ChunkVerdict.STORED
                )
                car.send(e.OrdersReceived((order,)))
            if not (car.core.work.attempts or car.journal.queued or car.core.work.outbox.count):
                break
        self.answers_do_not_contradict_each_other()
        assert not car.core.work.attempts, [car.core.story(u) for u in car.core.work.attempts]
        assert not car.journal.attempts
        assert not car.journal.chunks
        for key, outcome in car.endings().items():
            if outcome is Outcome.COMPLETED:
                assert key in car.journal.ever_held

    def _run_everything(self) -> None:
        car = self.car
        for run_id, run in list(car.engine.runs.items()):
            if car.engine.is_frozen or run_id not in car.engine.runs:
                continue
            for item in run.items:
                car.send(e.ItemFinished(run_id, item.index, encode(item.index), 1.0))
            car.engine.runs.pop(run_id, None)
            stop = StopReport(tier=StopTier.TERMINATE, latency_ms=1.0)
            car.send(e.RunEnded(run_id, e.RunOutcome.COMPLETED, stop))


def _reference(index: int, length: int) -> Reference:
    return Reference(sha256=f"{index:064x}", length=length, url=f"/objects/{index}")


CarUnderTest.TestCase.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, print_blob=True
)
TestCarUnderTest = CarUnderTest.TestCase
