"""Decides when which fault happens to which car. Pure: observations in, actions out.

Invariants
- A fault is given to a car only while the dispatcher shows an attempt that this car has taken
  and not ended. No clock decides anything; `now_ms` only marks what happened when.
- A car that has finished an item already is what the owner, or the heat, comes to: its inference
  process is up, so that there is something to stop. Only where every item is out already is any
  car with a unit good enough.
- One car has one fault at a time, and the next fault is given once the one before has struck:
  the attempt was released, or lost, by its car.
- A fault that came too late (the unit was finished in that moment) is taken back and tried again.
- The owner leaves, and the computer cools, when the released work is seen on another attempt,
  or no other car is there to take it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, assert_never

from edge_runtime.cli.demo.report.data import FaultKind, FaultMark
from edge_runtime.contract.http import AttemptEnd, AttemptView, CarView
from edge_runtime.contract.reasons import Availability

_ABLE: Final = frozenset({Availability.READY, Availability.WORKING})


class Act(Enum):
    """What the demo does to a car."""

    OWNER_RETURNS = "owner_returns"
    OWNER_LEAVES = "owner_leaves"
    KILL_AND_RESTART = "kill_and_restart"
    OVERHEAT = "overheat"
    COOL_DOWN = "cool_down"


@dataclass(frozen=True, slots=True)
class Action:
    """One act on one car."""

    act: Act
    vehicle: str


class _Phase(Enum):
    GIVEN = "given"
    STRUCK = "struck"
    RELIEVED = "relieved"


@dataclass(slots=True)
class _Fault:
    kind: FaultKind
    vehicle: str
    at_ms: int
    phase: _Phase = _Phase.GIVEN
    relieved_ms: int | None = None
    recovered_ms: int | None = None
    is_missed: bool = False


def _fence(attempt: AttemptView) -> tuple[int, int]:
    return attempt.epoch, attempt.counter


def is_running(attempt: AttemptView) -> bool:
    """Whether its car has taken it and not ended it, as the dispatcher knows."""
    return attempt.taken_ms is not None and attempt.end is None


@dataclass(slots=True)
class Director:
    """Gives each of `wanted` once, in order."""

    wanted: list[FaultKind]
    _faults: list[_Fault] = field(default_factory=list)

    def observe(
        self,
        cars: Sequence[CarView],
        attempts: Sequence[AttemptView],
        now_ms: int,
        *,
        is_over: bool,
        items_waiting: int = 0,
    ) -> list[Action]:
        """Take in what the dispatcher shows; returns what to do now.

        `is_over` says that every job has ended: nothing more will be taken over.
        `items_waiting` are those that are neither finished nor on a car.
        """
        actions: list[Action] = []
        for fault in self._faults:
            actions += self._follow(fault, cars, attempts, now_ms, is_over=is_over)
        waiting = any(fault.phase is _Phase.GIVEN for fault in self._faults)
        if self.wanted and not waiting and not is_over:
            actions += self._give(cars, attempts, now_ms, items_waiting)
        return actions

    @property
    def is_done(self) -> bool:
        """Whether every fault struck and its car is back."""
        return not self.wanted and all(
            fault.recovered_ms is not None for fault in self._faults if not fault.is_missed
        )

    @property
    def unfired(self) -> tuple[FaultKind, ...]:
        """Faults that never struck a running unit."""
        pending = (fault.kind for fault in self._faults if fault.phase is _Phase.GIVEN)
        return (*pending, *self.wanted)

    def marks(self) -> tuple[FaultMark, ...]:
        """What happened, for the report."""
        return tuple(
            FaultMark(
                kind=fault.kind,
                vehicle=fault.vehicle,
                at_ms=fault.at_ms,
                recovered_ms=fault.recovered_ms,
            )
            for fault in self._faults
            if not fault.is_missed
        )

    # --- giving -----------------------------------------------------------------------------

    def _give(
        self,
        cars: Sequence[CarView],
        attempts: Sequence[AttemptView],
        now_ms: int,
        items_waiting: int,
    ) -> list[Action]:
        is_choosy = items_waiting > 0 and self.wanted[0] is not FaultKind.KILLED
        vehicle = self._choose(cars, attempts, is_choosy=is_choosy)
        if vehicle is None:
            return []
        kind = self.wanted.pop(0)
        self._faults.append(_Fault(kind, vehicle, now_ms))
        return [Action(_first_act(kind), vehicle)]

    def _choose(
        self, cars: Sequence[CarView], attempts: Sequence[AttemptView], *, is_choosy: bool
    ) -> str | None:
        """The working car with the most left to do; one that had no fault yet where possible."""
        busy = {fault.vehicle for fault in self._faults if fault.recovered_ms is None}
        had = {fault.vehicle for fault in self._faults}
        warm = {attempt.vehicle for attempt in attempts if attempt.items_done}
        left: dict[str, int] = {}
        for attempt in attempts:
            if is_running(attempt):
                rest = attempt.items - attempt.items_done
                left[attempt.vehicle] = left.get(attempt.vehicle, 0) + rest
        candidates = [
            car
            for car in cars
            if car.availability is Availability.WORKING
            and car.vehicle not in busy
            and left.get(car.vehicle, 0) > 0
            and (car.vehicle in warm or not is_choosy)
        ]
        best = max(
            candidates,
            key=lambda car: (
                car.vehicle not in had,
                car.vehicle in warm,
                car.backlog_ms,
                left[car.vehicle],
            ),
            default=None,
        )
        return best.vehicle if best else None

    # --- following ------------------------------------------------------------------------------

    def _follow(
        self,
        fault: _Fault,
        cars: Sequence[CarView],
        attempts: Sequence[AttemptView],
        now_ms: int,
        *,
        is_over: bool,
    ) -> list[Action]:
        """Move one fault on by what is seen; more than one step where more was seen."""
        actions: list[Action] = []
        if fault.phase is _Phase.GIVEN:
            actions += self._await_strike(fault, attempts, now_ms)
        if fault.phase is _Phase.STRUCK and (
            is_over or _is_taken_over(fault, attempts) or not self._has_taker(cars)
        ):
            fault.phase, fault.relieved_ms = _Phase.RELIEVED, now_ms
            actions += _relief(fault)
        if fault.phase is _Phase.RELIEVED and fault.recovered_ms is None:
            car = next((car for car in cars if car.vehicle == fault.vehicle), None)
            if car is not None and _is_back(car, fault, now_ms):
                fault.recovered_ms = now_ms
        return actions

    def _has_taker(self, cars: Sequence[CarView]) -> bool:
        """Whether there is a car that could take over."""
        held = {other.vehicle for other in self._faults if other.recovered_ms is None}
        return any(
            car.online and car.availability in _ABLE and car.vehicle not in held for car in cars
        )

    def _await_strike(
        self, fault: _Fault, attempts: Sequence[AttemptView], now_ms: int
    ) -> list[Action]:
        if any(_was_cut(attempt) for attempt in _touched(fault, attempts)):
            fault.phase = _Phase.STRUCK
            return []
        # An offer under way at that moment may still turn out to have been taken.
        if any(
            attempt.end is None
            for attempt in attempts
            if attempt.vehicle == fault.vehicle and attempt.offered_ms <= fault.at_ms
        ):
            return []
        # Everything it held was finished in that very moment: nothing was interrupted.
        self.wanted.insert(0, fault.kind)
        fault.is_missed = True
        fault.phase, fault.relieved_ms = _Phase.RELIEVED, now_ms
        return _relief(fault)


def _touched(fault: _Fault, attempts: Sequence[AttemptView]) -> list[AttemptView]:
    """What the car held when the fault was given, or took since."""
    return [
        attempt
        for attempt in attempts
        if attempt.vehicle == fault.vehicle
        and attempt.taken_ms is not None
        and (attempt.ended_ms is None or attempt.ended_ms >= fault.at_ms)
    ]


def _was_cut(attempt: AttemptView) -> bool:
    return attempt.end is not None and attempt.end is not AttemptEnd.COMPLETED


def _is_taken_over(fault: _Fault, attempts: Sequence[AttemptView]) -> bool:
    """Whether a unit that was cut has a later attempt that a car has taken, or needs none."""
    cut = [attempt for attempt in _touched(fault, attempts) if _was_cut(attempt)]
    if all(attempt.items_done >= attempt.items for attempt in cut):
        return True
    fences = {(attempt.job, attempt.unit): _fence(attempt) for attempt in cut}
    return any(
        attempt.taken_ms is not None and _fence(attempt) > fences[attempt.job, attempt.unit]
        for attempt in attempts
        if (attempt.job, attempt.unit) in fences
    )


def _is_back(car: CarView, fault: _Fault, now_ms: int) -> bool:
    """Whether the car says so itself, in a state it sent after its relief."""
    said_ms = now_ms - car.age_ms
    return (
        car.online
        and car.availability in _ABLE
        and fault.relieved_ms is not None
        and said_ms > fault.relieved_ms
    )


def _first_act(kind: FaultKind) -> Act:
    match kind:
        case FaultKind.OWNER_RETURNED:
            return Act.OWNER_RETURNS
        case FaultKind.KILLED:
            return Act.KILL_AND_RESTART
        case FaultKind.OVERHEATED:
            return Act.OVERHEAT
        case _:
            assert_never(kind)


def _relief(fault: _Fault) -> list[Action]:
    match fault.kind:
        case FaultKind.OWNER_RETURNED:
            return [Action(Act.OWNER_LEAVES, fault.vehicle)]
        case FaultKind.OVERHEATED:
            return [Action(Act.COOL_DOWN, fault.vehicle)]
        case FaultKind.KILLED:
            # It was started again at once.
            return []
        case _:
            assert_never(fault.kind)
