"""Computers that may die, sleep, lose their disk's room and misread the time.

Invariants
- A host has one life at a time. Killing it ends every callback of that life at once; what is on
  its disk stays, in a copy that the dead life's open files no longer reach.
- Boot time never jumps and runs on in sleep; UTC jumps when a nemesis says so.
"""

import asyncio
import contextlib
import contextvars
import errno
import shutil
import sqlite3
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from edge_runtime.contract.clock import Now
from edge_runtime.contract.messages import Fence, UnitOffer
from edge_runtime.dispatcher.core.commands import StoreCommand
from edge_runtime.dispatcher.storage import Recovered, SqliteStore
from edge_runtime.sim.journal import LoopJournal
from edge_runtime.sim.loop import SimLoop, current_life
from edge_runtime.vehicle.core.commands import Write, WriteAttempt, WriteStarted
from edge_runtime.vehicle.core.events import WritesCommitted, WritesFailed

START_UTC_MS: Final = 1_780_000_000_000
_NO_LIMIT: Final = 1 << 30
_FULL_SYNC: Final = 2


@dataclass(slots=True)
class Disk:
    """What is the matter with a host's disk."""

    is_full: bool = False
    is_failing: bool = False

    def check(self) -> None:
        """Raise what SQLite raises on a failing disk."""
        if self.is_failing:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            error.sqlite_errorname = "SQLITE_IOERR"
            raise error


@dataclass(eq=False)
class OneLife:
    """A process of a host, from its start to its end."""

    host: str
    number: int
    is_dead: bool = False
    is_paused: bool = False
    paused_at_s: float = -1.0
    awake_since_s: float = 0.0
    pauses: int = 0
    is_told_to_end: bool = False
    held: list[asyncio.Handle] = field(default_factory=list)


@dataclass(eq=False)
class Host:
    """A computer. `main` is its program; `folder` is where its files are in this life."""

    name: str
    loop: SimLoop
    root: Path
    main: "Callable[[Host], Coroutine[Any, Any, None]]"
    drift: float = 1.0
    utc_offset_ms: int = 0
    slept_s: float = 0.0
    disk: Disk = field(default_factory=Disk)
    life: OneLife | None = None
    lives: int = 0
    booted_at_s: float = 0.0
    folder: Path = field(init=False)
    ends: list[BaseException | None] = field(default_factory=list)
    open_files: list[Callable[[], None]] = field(default_factory=list)
    image: Path | None = None
    has_held: set[tuple[int, ...]] = field(default_factory=set)
    chunks_since_s: dict[tuple[int, ...], float] = field(default_factory=dict)
    let_go: dict[tuple[int, ...], float] = field(default_factory=dict)
    """Chunks that its journal has forgotten, and when."""
    on_end: Callable[["Host"], None] | None = None
    on_death: Callable[[], None] | None = None
    on_commit: Callable[[Sequence[StoreCommand], sqlite3.Connection], None] | None = None
    went_back: list[tuple[int, Fence, Fence]] = field(default_factory=list)
    """Attempts that its journal took after a newer one of their unit: unit, newer, older."""
    _task: "asyncio.Task[None] | None" = None

    def __post_init__(self) -> None:
        self.folder = self.root / f"{self.name}.0"
        self.folder.mkdir(parents=True)

    @property
    def is_up(self) -> bool:
        """Whether its process runs."""
        return self.life is not None and not self.life.is_dead

    def now(self) -> Now:
        """This host's clocks."""
        since_boot_s = (self.loop.time() - self.booted_at_s) * self.drift + self.slept_s
        utc_ms = START_UTC_MS + int(self.loop.time() * 1000) + self.utc_offset_ms
        return Now(round((since_boot_s + 1.0) * 1e9), utc_ms)

    def start(self) -> None:
        """Start the program anew."""
        if self.is_up:
            return
        self.lives += 1
        life = self.life = OneLife(self.name, self.lives, awake_since_s=self.loop.time())
        context = contextvars.copy_context()
        context.run(current_life.set, life)
        task = self.loop.create_task(self.main(self), name=self.name, context=context)
        self._task = task
        # In no life: it is told even of one that is over.
        task.add_done_callback(lambda done: self._ended(life, done), context=contextvars.Context())

    def run(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Run something in its present life."""
        context = contextvars.copy_context()
        context.run(current_life.set, self.life)
        self.loop.create_task(work, name=f"{self.name} {name}", context=context)

    def _ended(self, life: OneLife, task: Any) -> None:
        if life is not self.life or life.is_dead:
            return
        life.is_dead = True
        error = None if task.cancelled() else task.exception()
        self.ends.append(error)
        self._leave_folder()
        if self.on_death is not None:
            self.on_death()
        if self.on_end is not None:
            self.on_end(self)

    def kill(self) -> None:
        """End the process at once, as SIGKILL does."""
        if self.life is None or self.life.is_dead:
            return
        self.life.is_dead = True
        self._leave_folder()
        if self.on_death is not None:
            self.on_death()

    def stop(self) -> None:
        """SIGTERM: the program is told to end, and may take its time."""
        if self._task is not None and self.life is not None and not self.life.is_dead:
            self.life.is_told_to_end = True
            self._task.cancel()

    def reboot(self) -> None:
        """Lose power: the process dies and boot time begins again."""
        self.kill()
        self.booted_at_s, self.slept_s = self.loop.time(), 0.0

    def pause(self, for_s: float) -> None:
        """SIGSTOP, and SIGCONT after a while."""
        life = self.life
        if life is not None and not life.is_dead:
            life.is_paused = True
            life.pauses += 1
            life.paused_at_s = self.loop.time()
            self.loop.call_later(for_s, self._resume, life, life.pauses)

    def resume(self) -> None:
        """SIGCONT now."""
        if self.life is not None:
            self._resume(self.life, self.life.pauses)

    def _resume(self, life: OneLife, pause: int) -> None:
        if life.is_paused and life.pauses == pause:
            life.is_paused = False
            life.awake_since_s = self.loop.time()
            self.loop.resume(life)

    def watch_syncs(self) -> None:
        """From now on keep an image of what a power cut would leave on the disk."""
        self.image = self.root / f"{self.name}.{self.lives}.image"
        if not self.image.exists():
            copy_files(self.folder, self.image)

    def synced(self, connection: sqlite3.Connection) -> None:
        """A commit is over; it outlives a power cut only where SQLite was told to sync."""
        if self.image is None:
            return
        (level,) = connection.execute("PRAGMA synchronous").fetchone()
        if level >= _FULL_SYNC:
            shutil.rmtree(self.image)
            copy_files(self.folder, self.image)

    def cut_power(self) -> None:
        """The process dies, and with it every write that was not synced."""
        image, self.image = self.image, None
        self.reboot()
        if image is not None:
            shutil.rmtree(self.folder)
            copy_files(image, self.folder)

    def _leave_folder(self) -> None:
        """The next life finds what is on disk now, out of reach of files that are still open."""
        old = self.folder
        self.folder = self.root / f"{self.name}.{self.lives}"
        copy_files(old, self.folder)

    def close_files(self) -> None:
        """The world ends: close what dead lives left open."""
        for close in self.open_files:
            close()


def copy_files(source: Path, target: Path) -> None:
    """Every file but locks and SQLite's shared memory, which a new process makes anew."""
    target.mkdir(parents=True)
    for file in sorted(source.iterdir()):
        if file.is_dir():
            copy_files(file, target / file.name)
        elif not file.name.endswith((".lock", "-shm")):
            shutil.copyfile(file, target / file.name)


def cursors_in(store: Path) -> dict[str, int]:
    """Each job of a store that nobody holds, and its newest cursor; nothing where it is new."""
    db = sqlite3.connect(store)
    try:
        return dict(db.execute("SELECT id, cursor FROM job").fetchall())
    except sqlite3.OperationalError:
        return {}  # not even a table yet
    finally:
        db.close()


class _Room:
    """How large a full disk lets a database grow; a setting of each connection."""

    def __init__(self) -> None:
        self._set: tuple[sqlite3.Connection, int] | None = None

    def limit(self, connection: sqlite3.Connection, disk: Disk) -> None:
        """Let it grow as the disk says now."""
        pages = 1 if disk.is_full else _NO_LIMIT
        if self._set != (connection, pages):
            self._set = (connection, pages)
            connection.execute(f"PRAGMA max_page_count={pages}").fetchall()


class SimStore(SqliteStore):
    """The production store on a host's disk."""

    def __init__(self, host: Host) -> None:
        super().__init__(host.folder / "dispatcher.db")
        self._host = host
        self._disk = host.disk
        self._room = _Room()
        host.open_files.append(self._abandon)

    def _commit(self, commands: Sequence[StoreCommand]) -> int:
        self._disk.check()
        self._room.limit(self._db, self._disk)
        if self._host.on_commit is not None:
            self._host.on_commit(commands, self._db)
        return super()._commit(commands)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with super()._transaction() as db:
            yield db
        self._host.synced(db)

    def _open(self, now_utc_s: int) -> Recovered:
        recovered = super()._open(now_utc_s)
        self._host.synced(self._db)
        return recovered

    @property
    def is_open(self) -> bool:
        """Whether it was opened and not closed."""
        return self._lock_fd is not None

    def free_bytes(self) -> int:
        """Nothing on a full disk."""
        return 0 if self._disk.is_full else super().free_bytes()

    def _abandon(self) -> None:
        if not self._is_closed:
            self._close()
            self._is_closed = True


class SimJournal(LoopJournal):
    """The production journal on a host's disk."""

    def __init__(self, path: Path, host: Host, commit_delay_s: Callable[[], float]) -> None:
        super().__init__(path, host.loop, commit_delay_s)
        self._host = host
        self._held = self._keys("SELECT unit, epoch, counter, seq FROM chunk")
        self._disk = host.disk
        self._room = _Room()
        self._newest: dict[int, Fence] = {}
        host.open_files.append(self._abandon)

    def _commit(self, batch: list[tuple[int, Write]]) -> WritesCommitted | WritesFailed:
        self._room.limit(self._connection, self._disk)
        done = super()._commit(batch)
        self._host.synced(self._connection)
        if not all(isinstance(write, WriteStarted) for _, write in batch):
            offers = {n: write.offer for n, write in batch if isinstance(write, WriteAttempt)}
            self._look(list(offers.values()))
            if isinstance(done, WritesCommitted):
                self._note_overtaken([x for n, x in offers.items() if n not in done.refused])
        return done

    def _note_overtaken(self, written: Sequence[UnitOffer]) -> None:
        """An attempt whose place a newer one took in the same commit was held until then.

        The car may still say that it took it, and by then have let go of the newer one: its
        dispatcher, who gave out both, knows better.
        """
        newest = {offer.unit: offer.fence for offer in written}
        self._host.has_held |= {(x.unit, *x.fence) for x in written if x.fence != newest[x.unit]}

    def _look(self, written: Sequence[UnitOffer]) -> None:
        """Note what the file holds, and which chunks it no longer does.

        An attempt whose place a newer one of its unit took in the same commit was held, too.
        """
        chunks = self._keys("SELECT unit, epoch, counter, seq FROM chunk")
        now_s = self._loop.time()
        for key in chunks - self._held:
            self._host.chunks_since_s.setdefault(key, now_s)
        self._host.has_held |= chunks
        attempts = self._keys("SELECT unit, epoch, counter FROM attempt")
        held = {unit for unit, *_ in attempts}
        self._host.has_held |= attempts
        self._host.has_held |= {(x.unit, *x.fence) for x in written if x.unit in held}
        self._host.let_go.update(dict.fromkeys(self._held - chunks, now_s))
        self._held = chunks

    def _keys(self, statement: str) -> set[tuple[int, ...]]:
        return set(self._connection.execute(statement))

    def _apply(self, write: Write) -> None:
        self._disk.check()
        super()._apply(write)
        if isinstance(write, WriteAttempt):
            unit, fence = write.offer.unit, write.offer.fence
            newest = self._newest.setdefault(unit, fence)
            if fence < newest:
                self._host.went_back.append((unit, newest, fence))
            self._newest[unit] = max(fence, newest)

    def _has_room(self, more_bytes: int = 0) -> bool:
        del more_bytes
        return not self._disk.is_full

    def _abandon(self) -> None:
        try:
            # What was not committed dies with the process.
            super(LoopJournal, self).close()
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
