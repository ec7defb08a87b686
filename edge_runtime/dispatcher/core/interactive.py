"""Interactive requests: put together, given to cars, taken back and given to others; pure.

Beside the durable machine, with which it shares the fleet, the numbers and the fences, and
nothing else: no request of this module is ever written down. `handle` is the only mutator,
`next_deadline_ms` the only word on time, `check` the invariants.

- A request has exactly one end: `Answered` or `Failed`, or nobody waits for it any more.
- No unit is out for which nobody waits: it is cancelled in the same step, and the cancel is sent
  again until its car has answered, or given up after `CANCEL_GIVE_UP_MS`.
- An idle car gets what waits at once. Where every car that would do is computing, requests wait
  for company, `INTERACTIVE_BATCH_WAIT_MS` at most, and a car has `INTERACTIVE_IN_FLIGHT` units.
- A car that refuses, gives back, goes or falls silent costs a request time and nothing else. Of two
  cars that were asked the first answer counts, and the other is told to stop.
- Of a stream of tokens only the newest unit adds, and only where the last one ended.

Deliberately absent: retries of offers. QoS 1 carries them; one that is lost is silence.
"""

import heapq
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from typing import assert_never

import msgspec
import numpy as np

from edge_runtime.contract import limits
from edge_runtime.contract.clock import Now
from edge_runtime.contract.messages import (
    INTERACTIVE_JOB,
    Cancelled,
    Chunk,
    Fence,
    Item,
    ItemDone,
    ItemFailed,
    ItemResult,
    Refused,
    Taken,
    Tokens,
    UnitOffer,
    Verdict,
)
from edge_runtime.contract.reasons import ItemError, RefusalReason
from edge_runtime.dispatcher.core.attempts import NOT_THIS_JOB
from edge_runtime.dispatcher.core.booking import price_of, work_done
from edge_runtime.dispatcher.core.events import ChunkReceived, VerdictReceived
from edge_runtime.dispatcher.core.fleet import ONLINE
from edge_runtime.dispatcher.core.interactive_parts import (
    Answered,
    Ask,
    Asked,
    CancelUnit,
    DisownChunk,
    Failed,
    FleetChanged,
    InteractiveCommand,
    InteractiveEvent,
    InteractiveTick,
    Key,
    OfferUnit,
    OutputComes,
    Pool,
    Request,
    RequesterLeft,
    Streamed,
    Unanswered,
    Unit,
    Why,
)
from edge_runtime.dispatcher.core.placement import Requirement
from edge_runtime.dispatcher.core.state import State

_POOL_STALE_MS = 20
"""A list of cars is not made anew more often than so, however fast a large fleet changes."""
_SMALL_FLEET_CARS = 1_000
_LOOK_AGAIN_MS = 50
_CANCEL_AGAIN_MS = 500
_PATIENCE_PER_EXPECTED = 4


class InteractiveCore:
    """Requests that wait and units that are out; see the module."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._requests: dict[int, Request] = {}
        self._queues: OrderedDict[Key, deque[Request]] = OrderedDict()
        self._units: dict[int, Unit] = {}
        self._flights: Counter[int] = Counter()
        self._resting: dict[int, int] = {}
        self._ended: OrderedDict[int, None] = OrderedDict()
        self._cancels: OrderedDict[int, Unanswered] = OrderedDict()
        self._pools: dict[Requirement, Pool] = {}
        self._by_tenant: Counter[str] = Counter()
        self._bytes = 0
        self._deadlines: list[tuple[int, int]] = []
        self._silences: list[tuple[int, int]] = []
        self._pump_at_ms: int | None = None
        self._out: list[InteractiveCommand] = []
        self.counters: Counter[str] = Counter()

    # --- for the shell ---

    def handle(self, event: InteractiveEvent, now: Now) -> list[InteractiveCommand]:
        """Take one event; return what to do about it, in order."""
        match event:
            case Asked(ask=ask):
                self._asked(ask, now)
            case ChunkReceived(vehicle=vehicle, chunk=chunk):
                self._chunk(vehicle, chunk, now)
            case RequesterLeft(number=number):
                self._left(number, now)
            case VerdictReceived(vehicle=vehicle, verdict=verdict):
                self._verdict(vehicle, verdict, now)
            case OutputComes(unit=number, size_bytes=size_bytes):
                self._output_comes(number, size_bytes, now)
            case FleetChanged(vehicle=vehicle):
                self._fleet_changed(vehicle, now)
            case InteractiveTick():
                self._time_passed(now)
            case _:
                assert_never(event)
        if self._queues:
            self._pump(now)
        else:
            self._pump_at_ms = None
        out, self._out = self._out, []
        return out

    def next_deadline_ms(self) -> int | None:
        """Boot time in ms at which a tick is wanted."""
        self._forget_stale_timers()
        due = [self._pump_at_ms]
        if self._cancels:
            due.append(next(iter(self._cancels.values())).due_ms)
        due += [timers[0][0] for timers in (self._deadlines, self._silences) if timers]
        return min((moment for moment in due if moment is not None), default=None)

    def is_mine(self, job: str, unit: int) -> bool:
        """Whether a chunk, or a verdict, is of a unit of this core."""
        return job == INTERACTIVE_JOB or unit in self._units or unit in self._ended

    def is_out(self, unit: int) -> bool:
        """Whether a car has this unit, and somebody waits for it."""
        return unit in self._units

    @property
    def waiting(self) -> int:
        """Requests that no car has."""
        return sum(not request.units for request in self._requests.values())

    @property
    def computing(self) -> int:
        """Units that cars have."""
        return len(self._units)

    # --- requests ---

    def _asked(self, ask: Ask, now: Now) -> None:
        if (full := self._full(ask)) is not None:
            self.counters["interactive_overloaded"] += 1
            self._out.append(Failed(number=ask.number, why=Why.OVERLOADED, message=full))
            return
        key = Key(ask.requirement, ask.tenant, ask.purpose, ask.parameters, ask.media_type)
        request = Request(ask, key, now.boot_ms, now.boot_ms)
        self._requests[ask.number] = request
        self._by_tenant[ask.tenant] += 1
        self._bytes += _held_bytes(ask)
        heapq.heappush(self._deadlines, (ask.deadline_ms, ask.number))
        self.counters["interactive_requests"] += 1
        self._enqueue(request, now)

    def _full(self, ask: Ask) -> str | None:
        if len(self._requests) >= limits.INTERACTIVE_REQUESTS_MAX:
            return f"{limits.INTERACTIVE_REQUESTS_MAX} requests wait already"
        if self._by_tenant[ask.tenant] >= limits.INTERACTIVE_TENANT_REQUESTS_MAX:
            return f"{limits.INTERACTIVE_TENANT_REQUESTS_MAX} requests of this tenant wait already"
        if self._bytes + _held_bytes(ask) > limits.INTERACTIVE_BYTES_MAX:
            return f"requests that wait already hold {self._bytes} bytes"
        return None

    def _enqueue(self, request: Request, now: Now, *, first: bool = False) -> None:
        queue = self._queues.get(request.key)
        if queue is None:
            queue = self._queues[request.key] = deque()
        request.is_queued, request.queued_ms = True, now.boot_ms
        if first:
            queue.appendleft(request)
        else:
            queue.append(request)

    def _over(self, request: Request, now: Now) -> None:
        """A request has its end: whoever still computes it is told, if nobody else waits."""
        request.is_over = True
        ask = request.ask
        del self._requests[ask.number]
        self._by_tenant[ask.tenant] -= 1
        if not self._by_tenant[ask.tenant]:
            del self._by_tenant[ask.tenant]
        self._bytes -= _held_bytes(ask)
        if request.is_queued:
            self._queues[request.key].remove(request)
        for unit in request.units:
            unit.open = {i: other for i, other in unit.open.items() if other is not request}
            if not unit.open:
                self._cancel(unit, now)
        request.units.clear()

    def _fail(self, request: Request, failed: Failed, now: Now) -> None:
        self.counters[f"interactive_failed_{failed.why.value}"] += 1
        self._out.append(failed)
        self._over(request, now)

    def _left(self, number: int, now: Now) -> None:
        request = self._requests.get(number)
        if request is not None:
            self.counters["interactive_left"] += 1
            self._over(request, now)

    def _again(self, request: Request, now: Now) -> None:
        """No car has it now: it goes before those that came later."""
        if request.is_over or request.is_queued or request.units:
            return
        if request.attempts >= limits.INTERACTIVE_ATTEMPTS_MAX:
            message = f"{request.attempts} cars were asked and gave it back"
            failed = Failed(number=request.ask.number, why=Why.NO_CAR, message=message)
            self._fail(request, failed, now)
            return
        self.counters["interactive_again"] += 1
        self._enqueue(request, now, first=True)

    # --- units ---

    def _pump(self, now: Now) -> None:
        """Give what waits to cars that may have it, each queue in its turn."""
        self._pump_at_ms = None
        moved = True
        while moved and self._queues:
            moved = False
            for key in list(self._queues):
                queue = self._queues[key]
                if not queue:
                    del self._queues[key]
                elif self._place(key, queue, now):
                    moved = True
                    if key in self._queues:
                        self._queues.move_to_end(key)

    def _place(self, key: Key, queue: deque[Request], now: Now) -> bool:
        """Offer one unit of a queue; whether one was."""
        head = queue[0]
        waited_ms = now.boot_ms - head.queued_ms
        is_stream = head.ask.resume is not None
        avoid = head.avoided(now.boot_ms)
        row = self._choose(key.requirement, avoid, waited_ms, now, is_stream=is_stream)
        if row is None:
            self._no_car(head, now)
            return False
        batch = self._batch(queue, avoid, row, now)
        if self._flights[row] and not is_stream:
            is_full = len(batch) < len(queue) or self._is_full(batch, row)
            left_ms = limits.INTERACTIVE_BATCH_WAIT_MS - waited_ms
            if not is_full and left_ms > 0:
                self._pump_soon(now.boot_ms + left_ms)
                return False
        for request in batch:
            request.is_queued = False
            queue.popleft()
        self._offer(key, batch, row, now)
        return True

    def _batch(
        self, queue: deque[Request], avoid: frozenset[str], row: int, now: Now
    ) -> list[Request]:
        """The requests at the head of a queue that travel as one unit to this car."""
        head = queue[0]
        if head.ask.resume is not None:
            return [head]
        ask = head.ask
        item_ms = self._state.pace.expect_ms(ask.requirement.model, ask.reference_ms, row)
        most = max(1, min(int(limits.INTERACTIVE_BATCH_MS / item_ms), ask.rows_max))
        batch: list[Request] = []
        rows = size = object_bytes = 0
        for request in queue:
            rows += request.ask.rows
            size += request.size_bytes
            object_bytes += request.ask.object_bytes
            does_not_fit = (
                rows > most
                or size > limits.UNIT_MAX_BYTES
                or object_bytes > limits.UNIT_OBJECTS_MAX_BYTES
            )
            if batch and (does_not_fit or request.avoided(now.boot_ms) != avoid):
                break
            batch.append(request)
            if len(batch) == limits.UNIT_ITEMS_MAX:
                break
        return batch

    def _is_full(self, batch: list[Request], row: int) -> bool:
        ask = batch[0].ask
        item_ms = self._state.pace.expect_ms(ask.requirement.model, ask.reference_ms, row)
        rows = sum(request.ask.rows for request in batch)
        return rows >= min(limits.INTERACTIVE_BATCH_MS / item_ms, ask.rows_max)

    def _offer(self, key: Key, batch: list[Request], row: int, now: Now) -> None:
        state, requirement = self._state, key.requirement
        fleet = state.fleet
        number, state.next_unit = state.next_unit, state.next_unit + 1
        item_ms = state.pace.expect_ms(requirement.model, batch[0].ask.reference_ms, row)
        patience_ms = limits.INTERACTIVE_SILENCE_MS
        patience_ms += int(_PATIENCE_PER_EXPECTED * item_ms * sum(r.ask.rows for r in batch))
        if not fleet.is_resident(row, requirement.model):
            patience_ms += limits.INTERACTIVE_COLD_MS
        if object_bytes := sum(request.ask.object_bytes for request in batch):
            patience_ms += _exchange_ms(object_bytes)
        unit = Unit(
            number=number,
            fence=state.new_fence(),
            vehicle=fleet.vehicles[row],
            row=row,
            life=self._life(row),
            requirement=requirement,
            open=dict(enumerate(batch)),
            batch=len(batch),
            offered_ms=now.boot_ms,
            heard_ms=now.boot_ms,
            patience_ms=patience_ms,
        )
        for request in batch:
            request.units.append(unit)
            request.attempts += 1
        self._units[number] = unit
        self._flights[row] += 1
        heapq.heappush(self._silences, (now.boot_ms + patience_ms, number))
        remaining_ms = max(0, max(r.ask.deadline_ms for r in batch) - now.boot_ms)
        self.counters["interactive_units"] += 1
        self._out.append(
            OfferUnit(
                vehicle=unit.vehicle,
                unit=UnitOffer(
                    job=INTERACTIVE_JOB,
                    unit=number,
                    fence=unit.fence,
                    tenant=key.tenant,
                    purpose=key.purpose,
                    task=requirement.task,
                    model=requirement.model,
                    items=tuple(_item(index, request) for index, request in enumerate(batch)),
                    parameters=msgspec.Raw(key.parameters),
                    deadline_ms=now.utc_ms + remaining_ms,
                    remaining_ms=remaining_ms,
                    lease_ms=remaining_ms,
                    traceparent=batch[0].ask.traceparent,
                    interactive=True,
                ),
            )
        )

    def _life(self, row: int) -> tuple[int, int]:
        fleet = self._state.fleet
        return fleet.boot[row], fleet.connection[row]

    def _drop(self, unit: Unit) -> None:
        """A unit is out no more; its requests no longer count on it."""
        del self._units[unit.number]
        self._flights[unit.row] -= 1
        if not self._flights[unit.row]:
            del self._flights[unit.row]
        self._ended[unit.number] = None
        if len(self._ended) > limits.INTERACTIVE_ENDED_MAX:
            self._ended.popitem(last=False)
        for request in unit.open.values():
            request.units.remove(unit)

    def _cancel(self, unit: Unit, now: Now) -> None:
        if unit.number not in self._units:
            return
        self._drop(unit)
        self.counters["interactive_cancelled"] += 1
        due_ms, until_ms = now.boot_ms + _CANCEL_AGAIN_MS, now.boot_ms + limits.CANCEL_GIVE_UP_MS
        self._cancels[unit.number] = Unanswered(unit.vehicle, unit.fence, due_ms, until_ms)
        if len(self._cancels) > limits.INTERACTIVE_ENDED_MAX:
            self._cancels.popitem(last=False)
        self._out.append(CancelUnit(vehicle=unit.vehicle, unit=unit.number, fence=unit.fence))

    def _give_back(self, unit: Unit, avoid_ms: int, now: Now) -> None:
        """A car will not compute what is left of a unit: it goes to another."""
        self._drop(unit)
        for request in reversed(unit.open.values()):
            request.avoid[unit.vehicle] = now.boot_ms + avoid_ms
            self._again(request, now)

    def _take_back(self, unit: Unit, avoid_ms: int, now: Now) -> None:
        """As `_give_back`, where the car does not know yet."""
        waiting = list(unit.open.values())
        self._cancel(unit, now)
        for request in reversed(waiting):
            request.avoid[unit.vehicle] = now.boot_ms + avoid_ms
            self._again(request, now)

    # --- what cars say ---

    def _mine(self, vehicle: str, number: int, fence: Fence) -> Unit | None:
        unit = self._units.get(number)
        if unit is None or unit.fence != fence or unit.vehicle != vehicle:
            return None
        return unit

    def _chunk(self, vehicle: str, chunk: Chunk, now: Now) -> None:
        unit = self._mine(vehicle, chunk.unit, chunk.fence)
        if unit is None or chunk.model != unit.requirement.model:
            self._orphan(vehicle, chunk)
            return
        unit.heard_ms, unit.is_silent = now.boot_ms, False
        for tokens in chunk.tokens:
            self._tokens(unit, tokens, now)
        if unit.number not in self._units:
            return
        answered: list[Request] = []
        for result in chunk.items:
            request = unit.open.get(result.index)
            if request is not None:
                if isinstance(result, ItemDone):
                    answered.append(request)
                self._result(unit, request, result, now)
        if answered:
            self._book(vehicle, chunk, answered, now)
        if chunk.items and unit.row < len(self._state.fleet):
            done = sum(isinstance(result, ItemDone) for result in chunk.items)
            self._state.fleet.worked(unit.row, done)
            model = unit.requirement.model
            self._state.pace.measured(model, unit.row, len(chunk.items), chunk.busy_ms)
        if unit.number not in self._units:
            return
        if chunk.ending is not None:
            if chunk.ending.hold is not None:
                self._rest(unit.row, limits.INTERACTIVE_AVOID_MS, now)
            self._give_back(unit, limits.INTERACTIVE_AVOID_MS, now)
        elif not unit.open:
            self._cancel(unit, now)

    def _book(self, vehicle: str, chunk: Chunk, done: list[Request], now: Now) -> None:
        """Requests of one unit, so of one tenant, were answered by a car."""
        waited_ms = now.boot_ms - min(request.asked_ms for request in done)
        self._out.append(
            work_done(
                chunk,
                tenant=done[0].ask.tenant,
                vehicle=vehicle,
                items=len(done),
                credits_=sum(price_of(r.ask.rows, r.ask.reference_ms) for r in done),
                asked_ms=now.utc_ms - waited_ms,
                now_ms=now.utc_ms,
                is_interactive=True,
            )
        )

    def _orphan(self, vehicle: str, chunk: Chunk) -> None:
        """Nobody waits for this; the car stops, or forgets what an older one keeps."""
        self.counters["interactive_orphans"] += 1
        if chunk.ending is not None:
            self._cancel_answered(vehicle, chunk.unit, chunk.fence)
        if chunk.ending is None:
            self._out.append(CancelUnit(vehicle=vehicle, unit=chunk.unit, fence=chunk.fence))
        self._out.append(
            DisownChunk(vehicle=vehicle, unit=chunk.unit, fence=chunk.fence, seq=chunk.seq)
        )

    def _result(self, unit: Unit, request: Request, result: ItemResult, now: Now) -> None:
        del unit.open[result.index]
        request.units.remove(unit)
        match result:
            case ItemDone():
                self._out.append(
                    Answered(
                        number=request.ask.number,
                        output=bytes(result.output),
                        vehicle=unit.vehicle,
                        queue_ms=unit.offered_ms - request.asked_ms,
                        busy_ms=result.busy_ms,
                        batch=unit.batch,
                        ref=result.ref,
                    )
                )
                self.counters["interactive_answered"] += 1
                self._over(request, now)
            case ItemFailed():
                self._struck(unit, request, result, now)

    def _struck(self, unit: Unit, request: Request, failure: ItemFailed, now: Now) -> None:
        """An item failed on a car: another may do better, unless the input is to blame."""
        number, code = request.ask.number, failure.code
        if code is ItemError.DEADLINE_PASSED:
            self._fail(request, _too_late(request), now)
            return
        failed = Failed(number=number, why=Why.ITEM, message=failure.message, code=code)
        request.strikes += 1
        request.avoid[unit.vehicle] = request.ask.deadline_ms
        if request.units or request.is_queued:
            return  # another car has it, or is to
        avoid = request.avoided(now.boot_ms)
        is_lost = request.strikes >= limits.POISON_DISTINCT_CARS or not self._live(
            unit.requirement, avoid, now
        )
        if code.is_final or is_lost:
            self._fail(request, failed, now)
        else:
            request.failure = failed
            self._again(request, now)

    def _live(self, requirement: Requirement, avoid: frozenset[str], now: Now) -> bool:
        return self._state.placement.others_live(requirement, avoid, now.boot_ms)

    def _cancel_answered(self, vehicle: str, number: int, fence: Fence) -> None:
        waiting = self._cancels.get(number)
        if waiting is not None and (waiting.vehicle, waiting.fence) == (vehicle, fence):
            del self._cancels[number]

    def _verdict(self, vehicle: str, verdict: Verdict, now: Now) -> None:
        if not isinstance(verdict, Taken):
            self._cancel_answered(vehicle, verdict.unit, verdict.fence)
        unit = self._mine(vehicle, verdict.unit, verdict.fence)
        if unit is None:
            return
        match verdict:
            case Taken():
                unit.heard_ms = now.boot_ms  # an older car says so; its chunk will come
            case Cancelled():
                self._give_back(unit, limits.INTERACTIVE_AVOID_MS, now)
            case Refused(reason=reason):
                self.counters[f"interactive_refused_{reason.value}"] += 1
                avoid_ms = limits.INTERACTIVE_AVOID_MS
                if reason in NOT_THIS_JOB:
                    avoid_ms = limits.REFUSED_JOB_MS
                elif reason in {RefusalReason.HOLD, RefusalReason.BUSY}:
                    avoid_ms = min(max(verdict.retry_after_ms, 50), avoid_ms)
                    self._rest(unit.row, avoid_ms, now)
                self._give_back(unit, avoid_ms, now)

    def _output_comes(self, number: int, size_bytes: int, now: Now) -> None:
        """The car is not silent: it hands in what is too large for a chunk."""
        unit = self._units.get(number)
        if unit is not None:
            unit.heard_ms, unit.is_silent = now.boot_ms, False
            unit.patience_ms = max(
                unit.patience_ms, limits.INTERACTIVE_SILENCE_MS + _exchange_ms(size_bytes)
            )

    def _fleet_changed(self, vehicle: str | None, now: Now) -> None:
        """What is out on a car that went, or may do nothing now, is given to another."""
        for pool in self._pools.values():
            pool.is_stale = True
        row = None if vehicle is None else self._state.fleet.row_of.get(vehicle)
        if row is None or not self._flights.get(row):
            return
        is_online = self._state.fleet.flags[row] == ONLINE  # and not quarantined
        for unit in [unit for unit in self._units.values() if unit.row == row]:
            if is_online and unit.life == self._life(row):
                continue
            self.counters["interactive_car_went"] += 1
            # It may still be computing, for nobody.
            self._take_back(unit, 0 if is_online else limits.INTERACTIVE_AVOID_MS, now)

    # --- tokens ---

    def _tokens(self, unit: Unit, tokens: Tokens, now: Now) -> None:
        """Extend a stream where it ended; what came before is dropped, a gap begins anew there."""
        request = unit.open.get(tokens.index)
        if request is None or request.ask.resume is None:
            return
        have = len(request.ids)
        unit.patience_ms = limits.INTERACTIVE_SILENCE_MS
        if (
            request.has_all_tokens
            or tokens.offset < have
            or (not tokens.ids and not tokens.text and tokens.finish is None)
        ):
            self.counters["interactive_tokens_repeated"] += len(tokens.ids)
        elif tokens.offset > have:
            self.counters["interactive_token_gaps"] += 1
            self._take_back(unit, 0, now)
        else:
            request.ids.extend(tokens.ids)
            request.has_all_tokens = tokens.finish is not None
            request.attempts = 1
            self._out.append(Streamed(number=request.ask.number, tokens=tokens))

    # --- cars ---

    def _rest(self, row: int, rest_ms: int, now: Now) -> None:
        self._resting[row] = now.boot_ms + rest_ms

    def _choose(
        self,
        requirement: Requirement,
        avoid: frozenset[str],
        waited_ms: int,
        now: Now,
        *,
        is_stream: bool,
    ) -> int | None:
        """The car to offer to: idle before busy, one that holds the model before one that does not.

        One that does not is asked only where no other is alive, or has had no room for a while.
        """
        pool = self._pool(requirement, now)
        most = limits.INTERACTIVE_CAR_UNITS_MAX if is_stream else limits.INTERACTIVE_IN_FLIGHT
        row, some_warm = self._best(pool, pool.warm, avoid, most, now)
        if row is None and (not some_warm or waited_ms >= limits.COLD_START_MS):
            row, _ = self._best(pool, pool.cold, avoid, most, now)
        return row

    def _best(
        self, pool: Pool, rows: list[int], avoid: frozenset[str], most: int, now: Now
    ) -> tuple[int | None, bool]:
        """(the best row that has room, whether any is alive) of a bounded number of looks."""
        fleet, resting = self._state.fleet, self._resting
        best: int | None = None
        best_score = (most, 0.0)
        is_any = False
        for row in _some(rows, pool.turn):
            if not fleet.is_available(row, now.boot_ms) or (avoid and fleet.vehicles[row] in avoid):
                continue
            if resting and resting.get(row, 0) > now.boot_ms:
                continue
            is_any = True
            score = (self._flights.get(row, 0), fleet.backlog_ms[row])
            if score < best_score:
                best, best_score = row, score
                if score == (0, 0.0):
                    break
        pool.turn += 1
        return best, is_any

    def _pool(self, requirement: Requirement, now: Now) -> Pool:
        pool = self._pools.get(requirement)
        if pool is None:
            if len(self._pools) >= limits.POOLS_MAX:
                self._pools.pop(next(iter(self._pools)))
            pool = self._pools[requirement] = Pool()
        age_ms = now.boot_ms - pool.built_ms
        is_small = len(self._state.fleet) <= _SMALL_FLEET_CARS
        is_due = pool.is_stale and (is_small or age_ms >= _POOL_STALE_MS)
        if is_due or age_ms >= limits.INTERACTIVE_POOL_MS:
            self._fill(pool, requirement, now)
        return pool

    def _fill(self, pool: Pool, requirement: Requirement, now: Now) -> None:
        fleet = self._state.fleet
        pool.built_ms, pool.is_stale = now.boot_ms, False
        mask = fleet.can_serve(*requirement[1:])
        mask &= fleet.available(now.boot_ms)
        number = fleet.models.find(requirement.model)
        holds = np.zeros(len(fleet), bool) if number is None else fleet.holds_model(number)
        pool.warm = np.flatnonzero(mask & holds)[: limits.POOL_CANDIDATES].tolist()
        pool.cold = np.flatnonzero(mask & ~holds)[: limits.POOL_CANDIDATES].tolist()
        resting = self._resting
        if len(resting) > limits.POOL_CANDIDATES:
            self._resting = {row: ms for row, ms in resting.items() if ms > now.boot_ms}

    def _no_car(self, head: Request, now: Now) -> None:
        """No car has room for the head of a queue: it waits, or ends with the reason.

        Cars that are only busy are waited for until the deadline.
        """
        self._pump_soon(now.boot_ms + _LOOK_AGAIN_MS)
        if head.units or now.boot_ms - head.queued_ms < limits.INTERACTIVE_NO_CAR_MS:
            return
        if self._live(head.key.requirement, head.avoided(now.boot_ms), now):
            return
        failed = head.failure or Failed(
            number=head.ask.number,
            why=Why.NO_CAR,
            message=self.why_no_car(head.key.requirement, now),
            retry_after_ms=limits.HOLD_RETRY_MS,
        )
        self._fail(head, failed, now)

    def why_no_car(self, requirement: Requirement, now: Now) -> str:
        """Why no car serves this now, for a person."""
        state = self._state
        if not len(state.fleet):
            return "no car has ever connected"
        _, excluded = state.placement.excluded(requirement, now.boot_ms)
        causes = ", ".join(f"{count} {cause}" for cause, count in excluded.items())
        _, by_hold = state.fleet.counts()
        holds = ", ".join(f"{count} {hold}" for hold, count in by_hold.items())
        reason = f"no car takes it now: {causes or 'every car has refused it'}"
        return f"{reason} (holds: {holds})" if holds else reason

    # --- time ---

    def _pump_soon(self, at_ms: int) -> None:
        if self._pump_at_ms is None or at_ms < self._pump_at_ms:
            self._pump_at_ms = at_ms

    def _forget_stale_timers(self) -> None:
        while self._deadlines and self._deadlines[0][1] not in self._requests:
            heapq.heappop(self._deadlines)
        while self._silences and self._silences[0][1] not in self._units:
            heapq.heappop(self._silences)

    def _time_passed(self, now: Now) -> None:
        self._forget_stale_timers()
        while self._cancels:
            number, waiting = next(iter(self._cancels.items()))
            if waiting.due_ms > now.boot_ms:
                break
            del self._cancels[number]
            if waiting.until_ms <= now.boot_ms:
                self.counters["interactive_cancels_given_up"] += 1
                continue
            waiting.due_ms = now.boot_ms + _CANCEL_AGAIN_MS
            self._cancels[number] = waiting  # last: those due are first
            self._out.append(CancelUnit(vehicle=waiting.vehicle, unit=number, fence=waiting.fence))
        while self._deadlines and self._deadlines[0][0] <= now.boot_ms:
            request = self._requests.get(heapq.heappop(self._deadlines)[1])
            if request is not None:
                self._fail(request, _too_late(request), now)
        while self._silences and self._silences[0][0] <= now.boot_ms:
            unit = self._units.get(heapq.heappop(self._silences)[1])
            if unit is not None:
                self._silence_due(unit, now)

    def _silence_due(self, unit: Unit, now: Now) -> None:
        due_ms = unit.heard_ms + unit.patience_ms
        if due_ms > now.boot_ms:
            heapq.heappush(self._silences, (due_ms, unit.number))
            return
        self._state.tell(now, f"silent car={unit.vehicle} unit={unit.number}")
        self.counters["interactive_silences"] += 1
        is_stream = any(request.ask.resume is not None for request in unit.open.values())
        if unit.is_silent or is_stream:
            # Of a stream only one unit may add: what this one still says is not wanted.
            self._take_back(unit, limits.INTERACTIVE_AVOID_MS if is_stream else 0, now)
            return
        unit.is_silent, unit.heard_ms = True, now.boot_ms
        heapq.heappush(self._silences, (now.boot_ms + unit.patience_ms, unit.number))
        for request in unit.open.values():
            if len(request.units) > 1 or request.is_queued:
                continue
            request.avoid[unit.vehicle] = now.boot_ms + limits.INTERACTIVE_AVOID_MS
            self._enqueue(request, now, first=True)

    # --- for tests ---

    def check(self) -> None:
        """Invariants; tests call it after every event."""
        flights: Counter[int] = Counter()
        for number, unit in self._units.items():
            flights[unit.row] += 1
            assert unit.open, f"unit {number} is out and nobody waits for it"
            assert number not in self._ended
            for request in unit.open.values():
                assert unit in request.units
                assert not request.is_over
        assert flights == self._flights
        queued = [r for queue in self._queues.values() for r in queue]
        for number, request in self._requests.items():
            assert request.ask.number == number
            assert request.is_queued or request.units, f"request {number} waits for nothing"
            assert all(unit.number in self._units for unit in request.units)
            if request.is_queued:
                assert request in queued
            if request.ask.resume is not None:
                assert len(request.units) <= 1, f"stream {number} is written by two cars"
        assert self._bytes == sum(_held_bytes(r.ask) for r in self._requests.values())
        assert self._by_tenant == Counter(r.ask.tenant for r in self._requests.values())


def _item(index: int, request: Request) -> Item:
    ask = request.ask
    data = ask.item if ask.resume is None else ask.resume(tuple(request.ids))
    return Item(index=index, media_type=ask.media_type, data=data, ref=ask.ref)


def _exchange_ms(size_bytes: int) -> int:
    """How long a car may be silent while so much is fetched, or handed in."""
    return limits.INTERACTIVE_FETCH_MS + size_bytes // limits.INTERACTIVE_FETCH_BYTES_PER_MS


def _held_bytes(ask: Ask) -> int:
    """What of its input is in memory while it waits, here or lent to cars."""
    return len(ask.item) + ask.object_bytes


def _too_late(request: Request) -> Failed:
    where = "a car had it" if request.units else "no car had it"
    if request.failure is not None:
        where = request.failure.message
    message = f"the deadline passed: {where}"
    return Failed(number=request.ask.number, why=Why.DEADLINE, message=message)


def _some(rows: list[int], turn: int) -> Iterator[int]:
    """A bounded number of rows, from another one each turn."""
    count = len(rows)
    for step in range(min(count, limits.INTERACTIVE_LOOKS_MAX)):
        yield rows[(turn + step) % count]
