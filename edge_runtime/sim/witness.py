"""Told means on disk: what reaches the broker is compared with what its sender has kept.

Invariants
- S1: an accepted job, an offer, a result and a `stored` are in the dispatcher's store before
  anybody can read them; a Taken and a chunk have been in the car's journal before.
- S2: an item is struck only for a death at which it was in hand.
- S2: what a car first says of a job after it was forgotten is not wanted.
- S7: the chunks of an attempt are numbered from 0; none with items comes without the one before.
- S10: what is said on a tenant's topics is about that tenant's jobs.
- S11: an item with strikes is offered alone.
- S12: a car lets go of a chunk only after the dispatcher's answer to it.
- S20: nobody tells of an output by reference that the dispatcher does not keep whole; a car loses
  one, or has no room for it, only where a disk was full or went back.
- S13: nothing of an interactive unit is in the store when it is offered, or in the car's journal
  when it is answered; a car never says that it has taken one.

The witness reads the files themselves: a program that only believes to have written is caught.
Deliberately absent: what liars send, which nobody wrote down; what a dispatcher says after an
older store was put back, since words from before may still be under way.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from edge_runtime.bus import Message
from edge_runtime.contract import codec
from edge_runtime.contract.errors import Rejected
from edge_runtime.contract.messages import (
    INTERACTIVE_JOB,
    Chunk,
    ChunkAnswer,
    Fence,
    ItemDone,
    ItemFailed,
    JobResults,
    JobStatus,
    Taken,
)
from edge_runtime.contract.reasons import ChunkVerdict, ItemError
from edge_runtime.contract.topics import Down, Topics, Up
from edge_runtime.dispatcher.core.commands import (
    AddStrike,
    BeginAttempt,
    StoreCommand,
    WithdrawFailures,
)
from edge_runtime.sim.hosts import Host
from edge_runtime.sim.ledger import BULK, Ledger

_ChunkKey = tuple[str, int, Fence, int]


class Witness:
    """See the module. `heard` takes every message that the broker takes."""

    def __init__(self, ledger: Ledger, topics: Topics, dispatcher: Host, kept: Path) -> None:
        self._kept = kept
        self._ledger = ledger
        self._topics = topics
        self._dispatcher = dispatcher
        self._cars: dict[str, Host] = {}
        self._signed = codec.signed_decoder()
        self._work = codec.work_decoder()
        self._control = codec.control_decoder()
        self._acks = codec.acks_decoder()
        self._results = codec.results_decoder()
        self._chunks: dict[_ChunkKey, Chunk] = {}
        self._hopeless: set[_ChunkKey] = set()
        self._owners: dict[str, str] = {}
        self._proven: set[tuple[str | int, ...]] = set()
        self._proven_whole: set[str] = set()
        self._db: sqlite3.Connection | None = None
        self._db_inode = -1

    def watch(self, cars: Sequence[Host]) -> None:
        """These hosts are the cars."""
        self._cars = {host.name: host for host in cars}

    def heard(self, message: Message) -> None:
        """A message reached the broker."""
        if message.payload in self._ledger.lies:
            return
        kind = message.topic.rpartition("/")[2]
        try:
            match kind:
                case Down.WORK.value if "/dn/" in message.topic:
                    self._offers(message)
                case Down.CONTROL.value if "/dn/" in message.topic:
                    self._answers(message)
                case Up.ACK.value if "/up/" in message.topic:
                    self._taken(message)
                case Up.RESULT.value if "/up/" in message.topic:
                    self._sent(message)
                case _ if "/t/" in message.topic and kind != "request":
                    self._told_tenant(message)
                case _:
                    pass
        except Rejected:
            return  # garbage; whoever reads it counts it

    def accepted(self, job: str) -> None:
        """A requester has just been told that its job is accepted."""
        self._require_stored(("job", job), "SELECT 1 FROM job WHERE id=?")

    def committing(self, commands: Sequence[StoreCommand], db: sqlite3.Connection) -> None:
        """The dispatcher is about to commit a tick."""
        struck: set[tuple[int, int]] = set()
        withdrawn: set[tuple[int, int]] = set()
        for command in commands:
            match command:
                case AddStrike(job_no=job_no, index=index, vehicle=vehicle):
                    struck.add((job_no, index))
                    self._require_death(db, job_no, index, vehicle)
                case WithdrawFailures(job_no=job_no, items=items):
                    withdrawn |= {(job_no, index) for index in items}
                    struck -= withdrawn
                case BeginAttempt(job_no=job_no, issued=issued) if len(issued) > 1:
                    known = db.execute("SELECT item_index FROM strike WHERE job_no=?", (job_no,))
                    now = {(job_no, index) for (index,) in known} - withdrawn | struck
                    together = sorted(i for i in issued if (job_no, i) in now)
                    if together:
                        self._ledger.violated(
                            "S11",
                            f"unit {command.unit} has {together}, which were struck, not alone",
                        )
                case _:
                    pass

    def _require_death(self, db: sqlite3.Connection, job_no: int, index: int, vehicle: str) -> None:
        """A strike says that the item was in hand when something died on that car.

        A journal that went back may name an item of long ago.
        """
        row = db.execute("SELECT id FROM job WHERE no=?", (job_no,)).fetchone()
        job = None if row is None else self._ledger.jobs.get(row[0])
        if job is None or self._ledger.fired["stale_journal"]:
            return
        if job.key.startswith(BULK) or job.job in self._ledger.doubted:
            return  # its inputs, and outputs, may be out of reach, or are said to be there
        if vehicle not in self._ledger.deaths.get(job.data[index], ()):
            self._ledger.violated(
                "S2", f"{job.job} item {index} is struck for nothing on {vehicle}"
            )

    def close(self) -> None:
        """Let go of the store."""
        if self._db is not None:
            self._db.close()
            self._db = None

    # --- the dispatcher -------------------------------------------------------------------

    def _offers(self, message: Message) -> None:
        work = self._work.decode(self._signed.decode(message.payload).body)
        for unit in work.units:
            if unit.job in self._ledger.deleting:
                continue
            if unit.interactive:
                self._require_untold(unit.unit)
                continue
            self._require_stored(
                ("offer", unit.unit, *unit.fence, work.vehicle),
                "SELECT 1 FROM attempt WHERE unit=? AND epoch=? AND counter=? AND vehicle=?",
            )

    def _require_untold(self, unit: int) -> None:
        found = self._store().execute("SELECT 1 FROM attempt WHERE unit=?", (unit,)).fetchone()
        if found is not None:
            self._ledger.violated("S13", f"interactive unit {unit} is in the store")

    def _answers(self, message: Message) -> None:
        control = self._control.decode(self._signed.decode(message.payload).body)
        for order in control.orders:
            if not isinstance(order, ChunkAnswer):
                continue
            for seq in range(order.first_seq, order.through_seq + 1):
                key = (control.vehicle, order.unit, order.fence, seq)
                self._ledger.answered.add(key)
                chunk = self._chunks.get(key)
                if chunk is None or order.verdict is not ChunkVerdict.STORED:
                    continue
                if key in self._hopeless and not self._ledger.has_gone_back:
                    self._ledger.violated("S2", f"{key} of a forgotten job was stored")
                self._require_any_stored(chunk)

    def _require_any_stored(self, chunk: Chunk) -> None:
        """`stored` says that one item at least was settled or struck."""
        key = ("stored", chunk.job, chunk.unit, *chunk.fence, chunk.seq)
        if (
            key in self._proven
            or self._ledger.was_requeued(chunk.job)
            or chunk.job in self._ledger.deleting
            or self._ledger.has_gone_back
        ):
            return
        self._proven.add(key)
        marks = ",".join("?" * len(chunk.items))
        found = self._store().execute(
            "SELECT 1 FROM job j WHERE j.id=?1 AND (EXISTS (SELECT 1 FROM result r"  # noqa: S608 - only question marks
            f" WHERE r.job_no=j.no AND r.item & 1048575 IN ({marks})) OR EXISTS"
            " (SELECT 1 FROM strike s WHERE s.job_no=j.no))",
            (chunk.job, *(item.index for item in chunk.items)),
        )
        if found.fetchone() is None:
            self._ledger.violated("S1", f"{_words(key)} was said before it was on disk")

    def _told_tenant(self, message: Message) -> None:
        told = codec.decode_public(message.payload)
        if not isinstance(told, JobResults | JobStatus):
            return
        tenant, owner = message.topic.split("/")[3], self._owner(told.job)
        if owner not in (None, tenant) or (isinstance(told, JobStatus) and told.tenant != tenant):
            self._ledger.violated("S10", f"{message.topic} tells of {told.job} of {owner}")
        if isinstance(told, JobResults):
            self._published(told)

    def _owner(self, job: str) -> str | None:
        """Whose job it is; None for one that is not in the store."""
        if job not in self._owners:
            row = self._store().execute("SELECT tenant FROM job WHERE id=?", (job,)).fetchone()
            if row is None:
                return None
            self._owners[job] = row[0]
        return self._owners[job]

    def _published(self, results: JobResults) -> None:
        if not self._ledger.was_requeued(results.job) and results.job not in self._ledger.deleting:
            for entry in results.results:
                if entry.ref is not None:
                    path = self._kept / (self._owner(results.job) or "") / entry.ref.sha256
                    self._require_whole(path, entry.ref.length, f"{results.job} {entry.cursor}")
                self._require_stored(
                    ("result", results.job, entry.cursor),
                    "SELECT 1 FROM result r JOIN job j ON j.no=r.job_no"
                    " WHERE j.id=? AND r.cursor=?",
                )

    def _require_stored(self, key: tuple[str | int, ...], statement: str) -> None:
        """`key` without its first word is what the statement asks for."""
        if key in self._proven or self._ledger.has_gone_back:
            return
        self._proven.add(key)
        if self._store().execute(statement, key[1:]).fetchone() is None:
            self._ledger.violated("S1", f"{_words(key)} was told before it was on disk")

    def _store(self) -> sqlite3.Connection:
        """The dispatcher's file as it is now; another one after each of its deaths."""
        path = self._dispatcher.folder / "dispatcher.db"
        inode = path.stat().st_ino
        if self._db is None or inode != self._db_inode:
            self.close()
            self._db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
            self._db_inode = inode
        return self._db

    # --- cars -----------------------------------------------------------------------------

    def _taken(self, message: Message) -> None:
        acks = self._acks.decode(message.payload)
        for verdict in acks.verdicts:
            if isinstance(verdict, Taken) and verdict.unit in self._ledger.interactive:
                self._ledger.violated("S13", f"{acks.vehicle} has taken unit {verdict.unit}")
            elif isinstance(verdict, Taken):
                self._require_held(acks.vehicle, (verdict.unit, *verdict.fence))

    def _sent(self, message: Message) -> None:
        results = self._results.decode(message.payload)
        for chunk in results.chunks:
            key = (results.vehicle, chunk.unit, chunk.fence, chunk.seq)
            if chunk.job == INTERACTIVE_JOB:
                self._require_unwritten(results.vehicle, chunk)
                continue
            if key not in self._chunks and chunk.job in self._ledger.deleted:
                self._hopeless.add(key)
            # A journal that went back numbers another chunk alike: `stored` may mean either.
            known = self._chunks.setdefault(key, chunk)
            if known.items != chunk.items:
                items = {result.index: result for result in (*known.items, *chunk.items)}
                self._chunks[key] = msgspec.structs.replace(chunk, items=tuple(items.values()))
            self._look_at_outputs(results.vehicle, chunk)
            self._require_held(results.vehicle, (chunk.unit, *chunk.fence, chunk.seq))
            self._require_next(results.vehicle, chunk)

    def _look_at_outputs(self, vehicle: str, chunk: Chunk) -> None:
        for item in chunk.items:
            if isinstance(item, ItemDone) and item.ref is not None:
                tenant = item.ref.url.split("/")[3]
                path = self._kept / tenant / item.ref.sha256
                self._require_whole(path, item.ref.length, f"{vehicle} {chunk.unit} {item.index}")
            elif isinstance(item, ItemFailed) and item.code is ItemError.OUTPUT_UNAVAILABLE:
                fired = self._ledger.fired
                is_excused = fired["disk_full"] or fired["disk_error"] or fired["stale_journal"]
                if not is_excused and any(word in item.message for word in _LOST):
                    self._ledger.violated("S20", f"{vehicle} has lost an output: {item.message}")

    def _require_whole(self, path: Path, length: int, what: str) -> None:
        if self._ledger.has_gone_back or what in self._proven_whole:
            return
        self._proven_whole.add(what)
        if not path.exists() or path.stat().st_size != length:
            self._ledger.violated("S20", f"{what} refers to an output that is not there")

    def _require_unwritten(self, vehicle: str, chunk: Chunk) -> None:
        """Of an interactive unit no journal has anything."""
        car = self._cars.get(vehicle)
        if car is not None and any(key[0] == chunk.unit for key in car.has_held):
            self._ledger.violated("S13", f"{vehicle} has interactive unit {chunk.unit} on disk")

    def _require_next(self, vehicle: str, chunk: Chunk) -> None:
        car = self._cars.get(vehicle)
        before = (chunk.unit, *chunk.fence, chunk.seq - 1)
        # Withdrawn consent takes back what is not even written, and ends with an empty chunk.
        is_told = bool(chunk.items) and chunk.seq > 0
        if is_told and car is not None and before not in car.has_held:
            self._ledger.violated("S7", f"{vehicle} never had a chunk {_words(before)}")

    def _require_held(self, vehicle: str, key: tuple[int, ...]) -> None:
        car = self._cars.get(vehicle)
        if car is not None and key not in car.has_held and (vehicle, *key) not in self._proven:
            self._proven.add((vehicle, *key))
            self._ledger.violated(
                "S1", f"{vehicle} told of {_words(key)} before its journal held it"
            )


_LOST = ("no room", "has lost")
"""What a car says of an output that it computed and does not have."""


def _words(key: Iterable[str | int]) -> str:
    return " ".join(str(part) for part in key)
