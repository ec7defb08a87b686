"""A car's core on a bench: a clock to turn, a journal and an engine that obey the ports' rules.

The bench is the adversary's half of the contract: it asserts on every command that what the core
asked for was allowed (nothing published before it was durable, nothing submitted to a frozen
engine, no second answer that contradicts the first).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from edge_runtime.contract.clock import Now
from edge_runtime.contract.codec import encode
from edge_runtime.contract.limits import OUTPUT_MAX_BYTES
from edge_runtime.contract.messages import (
    INTERACTIVE_JOB,
    Cancel,
    Cancelled,
    Chunk,
    ChunkAnswer,
    Fence,
    Item,
    ItemDone,
    Refused,
    StopReport,
    Taken,
    UnitOffer,
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
from edge_runtime.vehicle.core.energy_rows import ROW_FIELDS, DayEnergy, ModelEnergy
from edge_runtime.vehicle.core.machine import VehicleCore
from edge_runtime.vehicle.core.snapshot import (
    CarFacts,
    JournalSnapshot,
    SavedAttempt,
    SavedFence,
    SavedOutput,
)
from edge_runtime.vehicle.policy import Consent, OwnerPolicy

S = 1_000_000_000
MS = 1_000_000
MODEL = "a" * 64
OTHER_MODEL = "b" * 64
FACTS = CarFacts(vehicle="car-1", boot=1, runtime="test", units_max=4, tasks=("tensor",))
POLICY = OwnerPolicy(consent=Consent(given=True, version=1), dwell_s=10)
GOOD: dict[str, Any] = {
    "is_parked": True,
    "is_occupied": False,
    "is_plugged": True,
    "charge_percent": 80.0,
    "compute_temperature_c": 45.0,
}
STOPPED = StopReport(tier=StopTier.FREEZE, latency_ms=0.5)
_chunks = msgspec.msgpack.Decoder(Chunk)
INTERACTIVE_UNIT = 9_000
"""Interactive units of tests have this number, or a larger one."""

T = TypeVar("T")


def offer(
    unit: int = 1,
    counter: int = 1,
    items: Sequence[int] = (0, 1, 2),
    data: bytes = b"x",
    **more: Any,
) -> UnitOffer:
    """A unit offer of small items, valid for an hour."""
    fields: dict[str, Any] = {
        "job": f"job-{unit}",
        "unit": unit,
        "fence": Fence(1, counter),
        "tenant": "anna",
        "purpose": "research",
        "task": "tensor",
        "model": MODEL,
        "items": tuple(Item(index=i, media_type="x", data=data) for i in items),
        "parameters": msgspec.Raw(encode({})),
        "deadline_ms": 2_000_000_000_000,
        "remaining_ms": 3_600_000,
        "lease_ms": 30_000,
    }
    return UnitOffer(**(fields | more))


def ask(unit: int = INTERACTIVE_UNIT, items: Sequence[int] = (0,), **more: Any) -> UnitOffer:
    """An offer of an interactive unit."""
    return offer(unit, items=items, job=INTERACTIVE_JOB, interactive=True, **more)


def _is_interactive(write: c.Write) -> bool:
    match write:
        case c.WriteAttempt(offer=held):
            return held.interactive
        case c.WriteEnergy() | c.WriteModelEnergy() | c.CheckSpace():
            return False
        case _:
            return write.unit >= INTERACTIVE_UNIT


@dataclass
class ModelJournal:
    """What the SQLite journal does, in dictionaries. `queued` are writes not yet committed."""

    attempts: dict[int, SavedAttempt] = field(default_factory=dict)
    chunks: dict[tuple[int, Fence, int], bytes] = field(default_factory=dict)
    fences: dict[int, SavedFence] = field(default_factory=dict)
    energy: dict[int, DayEnergy] = field(default_factory=dict)
    model_energy: dict[str, ModelEnergy] = field(default_factory=dict)
    queued: list[tuple[int, c.Write]] = field(default_factory=list)
    ever_held: set[tuple[int, Fence]] = field(default_factory=set)
    is_full: bool = False
    outputs: dict[tuple[int, Fence, int, str], bytes] = field(default_factory=dict)

    def commit(self) -> e.WritesCommitted:
        refused = []
        for number, write in self.queued:
            if not self._apply(write):
                refused.append(number)
        through = self.queued[-1][0]
        self.queued.clear()
        return e.WritesCommitted(through, tuple(refused))

    def fail(self, reason: HoldReason) -> e.WritesFailed:
        through = self.queued[-1][0]
        self.queued.clear()
        return e.WritesFailed(through, reason)

    def _apply(self, write: c.Write) -> bool:
        match write:
            case c.WriteAttempt() | c.WriteOutput() | c.CheckSpace() if self.is_full:
                return False
            case c.WriteAttempt():
                held = self.attempts.get(write.offer.unit)
                started = held.started if held is not None else None
                self.attempts[write.offer.unit] = SavedAttempt(write.offer, started)
                self.ever_held.add((write.offer.unit, write.offer.fence))
            case c.WriteStarted():
                if write.unit in self.attempts:
                    self._put(write.unit, started=write.index)
            case c.WriteChunk() | c.WriteOutput() | c.RewriteChunk() | c.DropChunks():
                self._apply_to_chunks(write)
            case c.DropAttempt():
                if self._has(write.unit, write.fence):
                    del self.attempts[write.unit]
            case c.WriteFence():
                self.fences[write.unit] = SavedFence(write.unit, write.fence, write.until_ms)
            case c.WriteEnergy():
                self._write_energy(write)
            case c.WriteModelEnergy() if write.model.items > 0:
                self.model_energy[write.model.digest] = write.model
            case c.WriteModelEnergy():
                self.model_energy.pop(write.model.digest, None)
            case c.CheckSpace():
                pass
        return True

    def _apply_to_chunks(
        self, write: c.WriteChunk | c.WriteOutput | c.RewriteChunk | c.DropChunks
    ) -> None:
        match write:
            case c.WriteChunk():
                self._write_chunk(write)
            case c.WriteOutput():
                key = (write.unit, write.fence, write.seq, write.sha256)
                self.outputs[key] = write.body
            case c.RewriteChunk():
                if (write.unit, write.fence, write.seq) in self.chunks:
                    self.chunks[write.unit, write.fence, write.seq] = write.body
            case c.DropChunks():
                answered = (write.unit, write.fence)
                self.outputs = {
                    key: body
                    for key, body in self.outputs.items()
                    if key[:2] != answered or not write.first_seq <= key[2] <= write.through_seq
                }
                self.chunks = {
                    key: body
                    for key, body in self.chunks.items()
                    if key[:2] != answered or not write.first_seq <= key[2] <= write.through_seq
                }

    def _write_energy(self, write: c.WriteEnergy) -> None:
        held = self.energy.get(write.row.day)
        row = msgspec.structs.replace(write.row)
        if held is not None:
            for name in ROW_FIELDS[1:]:
                old, new = getattr(held, name), getattr(row, name)
                setattr(row, name, old | new if name == "methods" else max(old, new))
        self.energy[row.day] = row
        for day in write.drops:
            self.energy.pop(day, None)

    def _write_chunk(self, write: c.WriteChunk) -> None:
        self.chunks[write.unit, write.fence, write.seq] = write.body
        if self._has(write.unit, write.fence):
            if write.ends:
                del self.attempts[write.unit]
            else:
                self._put(write.unit, next_seq=write.seq + 1)

    def _has(self, unit: int, fence: Fence) -> bool:
        return unit in self.attempts and self.attempts[unit].offer.fence == fence

    def _put(self, unit: int, **changes: Any) -> None:
        self.attempts[unit] = msgspec.structs.replace(self.attempts[unit], **changes)

    def snapshot(self, boot: int) -> JournalSnapshot:
        return JournalSnapshot(
            boot=boot,
            attempts=tuple(self.attempts.values()),
            chunks=tuple(self.chunks.values()),
            fences=tuple(self.fences.values()),
            energy=tuple(msgspec.structs.replace(row) for row in self.energy.values()),
            model_energy=tuple(self.model_energy.values()),
            outputs=tuple(SavedOutput(*key) for key in self.outputs),
        )


@dataclass
class ModelEngine:
    """Runs in order; asserts that nothing is asked of a frozen process."""

    runs: dict[int, c.SubmitRun] = field(default_factory=dict)
    is_frozen: bool = False

    def obey(self, command: c.Command) -> None:
        match command:
            case c.SubmitRun():
                assert not self.is_frozen, "a run was submitted to a frozen engine"
                assert command.items, "an empty run was submitted"
                self.runs[command.run_id] = command
            case c.FreezeEngine():
                assert not self.is_frozen
                self.is_frozen = True
            case c.ThawEngine():
                assert self.is_frozen
                self.is_frozen = False
            case c.KillEngine():
                self.is_frozen = False
                self.runs.clear()
            case _:
                pass


class Bench:
    """One car. `said` is every command so far; `chunks` what was published, decoded."""

    def __init__(self, policy: OwnerPolicy | HoldReason = POLICY, facts: CarFacts = FACTS) -> None:
        self.facts = facts
        self.policy = policy
        self.boot_ns = 1_000 * S
        self.utc_ms = 1_767_614_400_000
        self.journal = ModelJournal()
        self.engine = ModelEngine()
        self.signals = dict(GOOD)
        self.said: list[c.Command] = []
        self.chunks: dict[tuple[int, Fence, int], bytes] = {}
        self.uploads: list[c.UploadOutputs] = []
        self.handed_over: set[str] = set()
        self.core = VehicleCore(facts, policy, self.journal.snapshot(facts.boot), self.now)

    @property
    def now(self) -> Now:
        return Now(self.boot_ns, self.utc_ms)

    # --- driving ---------------------------------------------------------------------------

    def send(self, event: e.Event) -> list[c.Command]:
        """One event; the commands are checked, obeyed and returned."""
        commands = self.core.handle(event, self.now)
        self.core.check(self.now)
        for command in commands:
            self._obey(command)
        self.said += commands
        return commands

    def _obey(self, command: c.Command) -> None:
        self.engine.obey(command)
        match command:
            case c.Persist():
                last = self.journal.queued[-1][0] if self.journal.queued else command.first - 1
                assert command.first == last + 1
                assert not any(_is_interactive(write) for write in command.writes)
                self.journal.queued.extend(enumerate(command.writes, command.first))
            case c.PublishChunks():
                for body in command.bodies:
                    chunk = _chunks.decode(body)
                    key = (chunk.unit, chunk.fence, chunk.seq)
                    if chunk.job == INTERACTIVE_JOB:
                        assert key not in self.chunks, "an interactive chunk was sent twice"
                    else:
                        assert key in self.journal.chunks, "published before it was durable"
                        assert body == self.journal.chunks[key], "published as it is not written"
                    refs = {i.ref.sha256 for i in chunk.items if isinstance(i, ItemDone) and i.ref}
                    assert refs <= self.handed_over, "published before it was handed over"
                    assert self.chunks.setdefault(key, body) == body, "a chunk changed"
            case c.UploadOutputs():
                for ref in command.references:
                    key3 = (command.unit, command.fence, command.seq, ref.sha256)
                    if command.unit < INTERACTIVE_UNIT:
                        assert key3 in self.journal.outputs, "handed over before it was durable"
                self.uploads.append(command)
            case c.PublishVerdicts():
                for verdict in command.verdicts:
                    key2 = (verdict.unit, verdict.fence)
                    if isinstance(verdict, Taken):
                        assert verdict.unit < INTERACTIVE_UNIT, "said of an interactive unit"
                        assert key2 in self.journal.ever_held, "taken before it was durable"
            case _:
                pass

    def commit(self) -> list[c.Command]:
        """The journal commits what is queued, and whatever that brings, to rest."""
        said: list[c.Command] = []
        while self.journal.queued:
            said += self.send(self.journal.commit())
        return said

    def advance(self, seconds: float) -> list[c.Command]:
        """Time passes; ticks come when the core asked for them, sensors every second."""
        end = self.boot_ns + round(seconds * S)
        said: list[c.Command] = []
        for _ in range(10_000):
            due = self.core.next_deadline(self.now)
            if due is None or due > end:
                break
            assert due >= self.boot_ns or self.boot_ns == end or due < end
            self._turn_to(max(due, self.boot_ns))
            said += self.send(e.Tick())
        else:
            raise AssertionError("the core asks for ticks without end")
        self._turn_to(end)
        return said

    def _turn_to(self, boot_ns: int) -> None:
        self.utc_ms += (boot_ns - self.boot_ns) // MS
        self.boot_ns = boot_ns

    def sense(self, **changes: Any) -> list[c.Command]:
        """Every signal is read, with these changes."""
        self.signals |= changes
        return self.send(e.SignalsRead(dict(self.signals), self.boot_ns))

    def live(self, seconds: float) -> list[c.Command]:
        """Time passes with the sensors alive."""
        said: list[c.Command] = []
        while seconds > 0:
            step = min(1.0, seconds)
            said += self.advance(step)
            said += self.sense()
            seconds -= step
        return said

    def open(self) -> "Bench":
        """Connected, in good conditions, dwell over, the model at hand."""
        self.send(e.BusConnected())
        self.send(e.ModelReady(MODEL))
        self.sense()
        self.live(10)
        self.send(e.Tick())
        return self

    def take(self, *offers: UnitOffer) -> list[c.Command]:
        """Offered, recorded, and so submitted."""
        said = self.send(e.UnitsOffered(offers or (offer(),)))
        return said + self.commit()

    def run_of(self, unit: int) -> int:
        """The engine's run of this unit."""
        return next(r.run_id for r in self.engine.runs.values() if r.unit == unit)

    def start(self, unit: int, index: int) -> list[c.Command]:
        return self.send(e.ItemStarted(self.run_of(unit), index))

    def finish(self, unit: int, index: int, output: Any = "ok") -> list[c.Command]:
        return self.send(e.ItemFinished(self.run_of(unit), index, encode(output), 10.0))

    def finish_large(
        self, unit: int, index: int, size: int = OUTPUT_MAX_BYTES + 1
    ) -> list[c.Command]:
        """An output that does not travel inline; its hash is that of its index."""
        self.start(unit, index)
        run_id = self.run_of(unit)
        return self.send(e.ItemFinished(run_id, index, bytes(size), 10.0, sha256_of(index)))

    def hand_over(self, *refused: e.RefusedOutput) -> list[c.Command]:
        """The oldest upload that was asked for comes to its end."""
        upload = self.uploads.pop(0)
        lost = {output.sha256 for output in refused}
        self.handed_over |= {ref.sha256 for ref in upload.references} - lost
        said = self.send(e.OutputsUploaded(upload.unit, upload.fence, upload.seq, refused))
        return said + self.commit()

    def fail_upload(self, *, was_allowed: bool = True) -> list[c.Command]:
        """The oldest upload that was asked for does not work."""
        upload = self.uploads.pop(0)
        place = (upload.unit, upload.fence, upload.seq)
        said = self.send(e.OutputsFailed(*place, "no way", was_allowed=was_allowed))
        return said + self.commit()

    def compute(self, unit: int, *indexes: int) -> list[c.Command]:
        """The engine starts and finishes these items."""
        said = []
        run_id = self.run_of(unit)
        for index in indexes:
            said += self.send(e.ItemStarted(run_id, index))
            said += self.send(e.ItemFinished(run_id, index, encode("ok"), 10.0))
        return said

    def cancel(self, unit: int = 1, counter: int = 1, reason: Any = None) -> list[c.Command]:
        why = reason or CancelReason.JOB_CANCELLED
        order = Cancel(unit=unit, fence=Fence(1, counter), reason=why)
        return self.send(e.OrdersReceived((order,)))

    def answer(self, unit: int = 1, counter: int = 1, through: int = 99) -> list[c.Command]:
        order = ChunkAnswer(
            unit=unit, fence=Fence(1, counter), through_seq=through, verdict=ChunkVerdict.STORED
        )
        return self.send(e.OrdersReceived((order,)))

    def crash(self) -> None:
        """The process is killed; what was not committed is gone; a new one starts."""
        self.journal.queued.clear()
        self.uploads.clear()
        self.engine = ModelEngine()
        self.facts = msgspec.structs.replace(self.facts, boot=self.facts.boot + 1)
        snapshot = self.journal.snapshot(self.facts.boot)
        self.core = VehicleCore(self.facts, self.policy, snapshot, self.now)

    # --- looking -----------------------------------------------------------------------------

    def published(self) -> list[Chunk]:
        """Every chunk that was published, by unit, fence and number."""
        return [_chunks.decode(self.chunks[key]) for key in sorted(self.chunks)]

    def endings(self) -> dict[tuple[int, Fence], Outcome]:
        """How attempts ended, by their last chunks."""
        return {
            (chunk.unit, chunk.fence): chunk.ending.outcome
            for chunk in self.published()
            if chunk.ending is not None
        }


def sha256_of(index: int) -> str:
    """What tests take for the hash of an item's output."""
    return hashlib.sha256(bytes([index])).hexdigest()


def only(kind: type[T], commands: list[c.Command]) -> list[T]:
    """The commands of one kind."""
    return [command for command in commands if isinstance(command, kind)]


def verdicts(commands: list[c.Command]) -> list[Taken | Refused | Cancelled]:
    """Every verdict that was published."""
    return [v for command in only(c.PublishVerdicts, commands) for v in command.verdicts]


def broke(run_id: int, index: int) -> e.ItemBroke:
    return e.ItemBroke(run_id, index, ItemError.UNDECODABLE_INPUT, "not an image")
