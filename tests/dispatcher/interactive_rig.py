"""The interactive core with cars that a test speaks for, and every command it gave."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from edge_runtime.contract.clock import NS_PER_MS, Now
from edge_runtime.contract.messages import (
    INTERACTIVE_JOB,
    Birth,
    Chunk,
    Ending,
    Item,
    ItemDone,
    ItemFailed,
    Offline,
    Reference,
    Refused,
    Tokens,
    UnitOffer,
    VehicleLimits,
    VehicleState,
)
from edge_runtime.contract.reasons import (
    Availability,
    HoldReason,
    ItemError,
    Outcome,
    RefusalReason,
    ReleaseReason,
)
from edge_runtime.contract.signals import Signals
from edge_runtime.dispatcher.core import interactive_parts as p
from edge_runtime.dispatcher.core.events import ChunkReceived, VerdictReceived
from edge_runtime.dispatcher.core.fleet import Fleet
from edge_runtime.dispatcher.core.interactive import InteractiveCore
from edge_runtime.dispatcher.core.placement import Requirement
from edge_runtime.dispatcher.core.state import State

MODEL = "a" * 64
TASK = "tensor"
NEED = Requirement(model=MODEL, task=TASK)
MINUTE_MS = 60_000
T = TypeVar("T")


def lent(number: int, length: int = 200_000) -> dict[str, Any]:
    """What an `Ask` of an input by reference has of its own."""
    url = f"/objects/for-cars/anna/t/{number}"
    return {
        "requirement": NEED._replace(by_reference=True),
        "item": b"",
        "ref": Reference(sha256="b" * 64, length=length, url=url),
    }


def _lent(item: Item) -> bytes:
    """The input that a car finds at its reference."""
    assert item.ref is not None
    return f"item {item.ref.url.rpartition('/')[2]}".encode()


@dataclass
class Rig:
    """`said` is every command; `out` the units that no car has ended, by number."""

    state: State = field(default_factory=lambda: State(7, 1, 1, Fleet()))
    boot_ms: int = 1_000_000
    said: list[Any] = field(default_factory=list)
    out: dict[int, tuple[str, UnitOffer]] = field(default_factory=dict)
    ended: dict[int, Any] = field(default_factory=dict)
    streamed: dict[int, list[Tokens]] = field(default_factory=dict)
    _seqs: dict[str, int] = field(default_factory=dict)
    _numbers: int = 0

    def __post_init__(self) -> None:
        self.core = InteractiveCore(self.state)

    @property
    def now(self) -> Now:
        return Now(self.boot_ms * NS_PER_MS, 1_700_000_000_000 + self.boot_ms)

    def send(self, event: p.InteractiveEvent) -> list[Any]:
        commands = self.core.handle(event, self.now)
        self.core.check()
        for command in commands:
            self._note(command)
        self.said += commands
        return commands

    def _note(self, command: Any) -> None:
        match command:
            case p.OfferUnit(vehicle=vehicle, unit=unit):
                assert unit.interactive
                assert unit.job == INTERACTIVE_JOB
                self.out[unit.unit] = (vehicle, unit)
            case p.CancelUnit(unit=unit):
                self.out.pop(unit, None)
            case p.Answered(number=number) | p.Failed(number=number):
                assert number not in self.ended, "a request ended twice"
                self.ended[number] = command
            case p.Streamed(number=number, tokens=tokens):
                self.streamed.setdefault(number, []).append(tokens)
            case _:
                pass

    # --- cars ---

    def car(
        self,
        vehicle: str = "car-1",
        *,
        is_warm: bool = True,
        boot: int = 1,
        connection: int = 1,
        task: str = TASK,
        takes_references: bool = True,
    ) -> str:
        resident = (MODEL,) if is_warm else ()
        self.state.fleet.born(
            Birth(
                vehicle=vehicle,
                boot=boot,
                connection=connection,
                contract=1,
                runtime="test",
                vss="6.0",
                hardware="x86",
                tasks=(task,),
                resident=resident,
                limits=VehicleLimits(),
                takes_references=takes_references,
            )
        )
        self.says(vehicle, boot=boot)
        return vehicle

    def says(
        self,
        vehicle: str,
        availability: Availability = Availability.READY,
        hold: HoldReason | None = None,
        boot: int = 1,
    ) -> list[Any]:
        self._seqs[vehicle] = seq = self._seqs.get(vehicle, 0) + 1
        self.state.fleet.reported(
            VehicleState(
                vehicle=vehicle,
                boot=boot,
                seq=seq,
                at_ms=1,
                availability=availability,
                hold=hold,
                free_units=4,
                energy_budget_wh=None,
                signals=Signals(),
            ),
            self.boot_ms,
        )
        return self.send(p.FleetChanged(vehicle=vehicle))

    def goes(self, vehicle: str) -> list[Any]:
        self.state.fleet.went(Offline(vehicle=vehicle, boot=1, connection=1))
        return self.send(p.FleetChanged(vehicle=vehicle))

    # --- requests ---

    def ask(self, tenant: str = "anna", rows: int = 1, **more: Any) -> int:
        self._numbers += 1
        fields: dict[str, Any] = {
            "number": self._numbers,
            "tenant": tenant,
            "requirement": NEED,
            "purpose": "default",
            "parameters": b"\x80",
            "media_type": "x",
            "item": f"item {self._numbers}".encode(),
            "rows": rows,
            "rows_max": 16,
            "deadline_ms": self.boot_ms + MINUTE_MS,
            "reference_ms": 1.0,
        }
        self.send(p.Asked(ask=p.Ask(**(fields | more))))
        return self._numbers

    def leave(self, number: int) -> list[Any]:
        return self.send(p.RequesterLeft(number=number))

    # --- what cars answer ---

    def answer(self, unit: int, *indexes: int, ends: bool = True, **more: Any) -> list[Any]:
        """The car has these items, or all; the output of each is the item itself."""
        _, offer = self.out[unit]
        wanted = indexes or tuple(item.index for item in offer.items)
        data = {item.index: item.data or _lent(item) for item in offer.items}
        items = tuple(
            ItemDone(index=index, output=msgspec.Raw(msgspec.msgpack.encode(data[index])))
            for index in wanted
        )
        ending = Ending(outcome=Outcome.COMPLETED) if ends else None
        return self.chunk(unit, items, ending=ending, **more)

    def fail(self, unit: int, index: int, code: ItemError, *, ends: bool = True) -> list[Any]:
        ending = Ending(outcome=Outcome.COMPLETED) if ends else None
        failed = ItemFailed(index=index, code=code, message="so it is")
        return self.chunk(unit, (failed,), ending=ending)

    def release(self, unit: int, hold: HoldReason = HoldReason.OCCUPIED) -> list[Any]:
        ending = Ending(outcome=Outcome.RELEASED, reason=ReleaseReason.HOLD, hold=hold)
        return self.chunk(unit, (), ending=ending)

    def chunk(
        self,
        unit: int,
        items: Sequence[Any] = (),
        *,
        ending: Ending | None = None,
        tokens: tuple[Tokens, ...] = (),
        vehicle: str | None = None,
        offer: UnitOffer | None = None,
    ) -> list[Any]:
        owner, given = self.out.get(unit, ("", None))
        about = offer or given
        assert about is not None
        if ending is not None and vehicle is None:
            self.out.pop(unit, None)
        chunk = Chunk(
            job=INTERACTIVE_JOB,
            unit=unit,
            fence=about.fence,
            model=about.model,
            seq=0,
            items=tuple(items),
            ending=ending,
            tokens=tokens,
        )
        return self.send(ChunkReceived(vehicle=vehicle or owner, chunk=chunk))

    def refuse(
        self, unit: int, reason: RefusalReason = RefusalReason.HOLD, retry_after_ms: int = 5_000
    ) -> list[Any]:
        vehicle, offer = self.out.pop(unit)
        verdict = Refused(
            unit=unit, fence=offer.fence, reason=reason, retry_after_ms=retry_after_ms
        )
        return self.send(VerdictReceived(vehicle=vehicle, verdict=verdict))

    # --- time ---

    def wait(self, ms: int) -> None:
        """Time passes; ticks come when the core asked for them; cars say that they live."""
        end_ms = self.boot_ms + ms
        for _ in range(10_000):
            due_ms = self.core.next_deadline_ms()
            if due_ms is None or due_ms > end_ms:
                self.boot_ms = end_ms
                return
            self.boot_ms = max(due_ms, self.boot_ms)
            self.send(p.InteractiveTick())
            if self.core.next_deadline_ms() == due_ms:
                raise AssertionError("a tick that changes nothing is asked for again")
        raise AssertionError("the core asks for ticks without end")

    @property
    def units(self) -> list[int]:
        return list(self.out)

    def on(self, unit: int) -> str:
        return self.out[unit][0]


def only(kind: type[T], said: list[Any]) -> list[T]:
    return [command for command in said if isinstance(command, kind)]
