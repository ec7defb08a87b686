"""The journal: durable in order, honest about failure, one process at a time."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from car_bench import ModelJournal, offer
from hypothesis import given, settings
from hypothesis import strategies as st
from journal_victim import all_writes

from edge_runtime.contract.messages import Fence
from edge_runtime.contract.reasons import HoldReason
from edge_runtime.vehicle.core import commands as c
from edge_runtime.vehicle.core import events as e
from edge_runtime.vehicle.core.energy_rows import DayEnergy, ModelEnergy
from edge_runtime.vehicle.core.snapshot import JournalSnapshot
from edge_runtime.vehicle.journal import Journal, JournalError, JournalHeld

HERE = Path(__file__).parent
F1 = Fence(1, 1)
FAR_MS = 4_000_000_000_000


class Confirmations:
    """What the journal's thread said; waits with a limit."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._events: list[e.WritesCommitted | e.WritesFailed] = []

    def __call__(self, event: e.WritesCommitted | e.WritesFailed) -> None:
        with self._condition:
            self._events.append(event)
            self._condition.notify_all()

    def through(self, number: int) -> e.WritesCommitted | e.WritesFailed:
        def found() -> Any:
            return next((x for x in self._events if x.through >= number), None)

        with self._condition:
            assert self._condition.wait_for(found, timeout=20)
            event: e.WritesCommitted | e.WritesFailed = found()
            return event


class Started:
    """A journal at work: `write` waits for the confirmation."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.journal = Journal(path, **({"reserve_bytes": 0} | options))
        self.snapshot = self.journal.load(0)
        self.said = Confirmations()
        self.journal.start(self.said)
        self.number = 1

    def write(self, *writes: c.Write) -> e.WritesCommitted | e.WritesFailed:
        self.journal.persist(c.Persist(self.number, writes))
        self.number += len(writes)
        return self.said.through(self.number - 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "car" / "journal.db"


@pytest.fixture
def started(path: Path) -> Iterator[Started]:
    journal = Started(path)
    yield journal
    journal.journal.close()


def reload(path: Path) -> JournalSnapshot:
    journal = Journal(path)
    try:
        return journal.load(0)
    finally:
        journal.close()


def contents(snapshot: JournalSnapshot) -> tuple[Any, ...]:
    """A snapshot without its boot number, in a fixed order."""
    return (
        sorted(snapshot.attempts, key=lambda saved: saved.offer.unit),
        sorted(snapshot.chunks),
        sorted(snapshot.fences, key=lambda fence: fence.unit),
        sorted(snapshot.energy, key=lambda row: row.day),
        sorted(snapshot.model_energy, key=lambda model: model.digest),
        sorted((x.unit, x.fence, x.seq, x.sha256) for x in snapshot.outputs),
    )


def expected(writes: list[c.Write]) -> tuple[Any, ...]:
    model = ModelJournal(queued=list(enumerate(writes, 1)))
    if writes:
        model.commit()
    return contents(model.snapshot(1))


# --- what is kept ------------------------------------------------------------------------------

fences = st.builds(Fence, st.just(1), st.integers(1, 2))
units = st.integers(1, 3)
seqs = st.integers(0, 3)
joules = st.floats(0, 1e9)
counts = st.integers(0, 2**40)
day_rows = st.builds(
    DayEnergy,
    day=st.integers(1, 4),
    grid_j=joules,
    pack_j=joules,
    units_j=joules,
    efc=joules,
    items=counts,
    sent_bytes=counts,
    methods=st.integers(0, 63),
)
model_rows = st.builds(
    ModelEnergy, digest=st.sampled_from("abc"), joules=joules, items=st.integers(0, 2)
)
writes_strategy: st.SearchStrategy[c.Write] = st.one_of(
    st.builds(lambda unit, fence: c.WriteAttempt(offer(unit, fence.counter)), units, fences),
    st.builds(c.WriteStarted, units, st.integers(0, 3)),
    st.builds(c.WriteChunk, units, fences, seqs, st.binary(max_size=20), st.booleans()),
    st.builds(c.WriteOutput, units, fences, seqs, st.sampled_from("ab"), st.binary(max_size=20)),
    st.builds(c.RewriteChunk, units, fences, seqs, st.binary(max_size=20)),
    st.builds(c.DropChunks, units, fences, seqs, seqs),
    st.builds(c.DropAttempt, units, fences),
    st.builds(c.WriteFence, units, fences, st.just(FAR_MS)),
    st.builds(c.WriteEnergy, day_rows, st.lists(st.integers(1, 4), max_size=2).map(tuple)),
    st.builds(c.WriteModelEnergy, model_rows),
    st.just(c.CheckSpace()),
)


@settings(max_examples=40, deadline=None)
@given(batches=st.lists(st.lists(writes_strategy, min_size=1, max_size=8), max_size=6))
def test_the_file_holds_what_the_model_says(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[c.Write]]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.db"
    journal = Started(path)
    for batch in batches:
        assert isinstance(journal.write(*batch), e.WritesCommitted)
    journal.journal.close()
    writes = [write for batch in batches for write in batch]
    assert contents(reload(path)) == expected(writes)


def test_everything_queued_shares_a_commit(started: Started) -> None:
    for number in range(1, 1001):
        write = c.WriteChunk(number, F1, 0, b"x", ends=True)
        started.journal.persist(c.Persist(number, (write,)))
    assert isinstance(started.said.through(1000), e.WritesCommitted)
    assert started.journal.commits < 500


def test_started_items_wait_for_company_but_not_for_ever(started: Started) -> None:
    started.write(c.WriteAttempt(offer()))
    commits = started.journal.commits
    for index in range(20):
        started.journal.persist(c.Persist(2 + index, (c.WriteStarted(1, index),)))
    assert isinstance(started.said.through(21), e.WritesCommitted)
    assert started.journal.commits <= commits + 5


def test_a_boot_number_only_grows_whatever_the_clock_says(path: Path) -> None:
    boots = []
    for utc_s in (1_700_000_000, 5, 1_700_000_001, 1_800_000_000):
        journal = Journal(path)
        boots.append(journal.load(utc_s).boot)
        journal.close()
    assert boots == [1_700_000_000, 1_700_000_001, 1_700_000_002, 1_800_000_000]


def test_fences_are_forgotten_at_their_deadline(path: Path, started: Started) -> None:
    started.write(c.WriteFence(1, F1, 1_000), c.WriteFence(2, F1, FAR_MS))
    started.journal.close()
    journal = Journal(path)
    assert [fence.unit for fence in journal.load(1_700_000_000).fences] == [2]
    journal.close()


def test_an_offer_that_does_not_decode_is_left_out(path: Path, started: Started) -> None:
    started.write(c.WriteAttempt(offer(1)), c.WriteAttempt(offer(2)))
    started.journal.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE attempt SET offer = x'c1' WHERE unit = 1")
    connection.close()
    assert [saved.offer.unit for saved in reload(path).attempts] == [2]


# --- kill -9 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_process_leaves_a_prefix_that_holds_all_it_confirmed(
    path: Path, seed: int
) -> None:
    random_ = random.Random(seed)
    victim = subprocess.Popen(
        [sys.executable, str(HERE / "journal_victim.py"), str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert victim.stdout is not None
    confirmed = 0
    enough = random_.randint(1, 400)
    for line in victim.stdout:
        confirmed = int(line)
        if confirmed >= enough:
            break
    victim.send_signal(signal.SIGKILL)
    confirmed = max([confirmed, *(int(x) for x in victim.stdout.read().split("\n")[:-1])])
    victim.stdout.close()
    assert victim.wait(timeout=20) == -signal.SIGKILL
    kept = contents(reload(path))
    model, length = ModelJournal(), 0
    for number, write in enumerate(all_writes(), 1):
        model.queued = [(number, write)]
        model.commit()
        length = number
        if number >= confirmed and contents(model.snapshot(1)) == kept:
            break
        assert number < confirmed + 5_000, "no prefix of the writes explains the file"
    assert length >= confirmed


# --- no room -----------------------------------------------------------------------------------


def test_an_attempt_is_refused_before_the_file_is_full_and_its_results_still_fit(
    path: Path,
) -> None:
    journal = Started(path, max_bytes=400_000, reserve_bytes=200_000)
    big = offer(1, items=(0,), data=b"x" * 50_000)
    taken = 0
    event = journal.write(c.WriteAttempt(big))
    while event == e.WritesCommitted(journal.number - 1):
        taken += 1
        bigger = offer(taken + 1, items=(0,), data=b"x" * 50_000)
        event = journal.write(c.WriteAttempt(bigger))
    assert event == e.WritesCommitted(journal.number - 1, refused=(journal.number - 1,))
    assert 1 <= taken <= 4
    for unit in range(1, taken + 1):
        chunk = c.WriteChunk(unit, F1, 0, b"y" * 40_000, ends=True)
        assert journal.write(chunk) == e.WritesCommitted(journal.number - 1)
    for unit in range(1, taken + 1):
        journal.write(c.DropChunks(unit, F1, 0))
    assert journal.write(c.CheckSpace()) == e.WritesCommitted(journal.number - 1)
    journal.journal.close()


def test_an_output_is_kept_read_beside_the_writer_and_dropped_with_its_chunk(
    path: Path, started: Started
) -> None:
    body = os.urandom(200_000)
    started.write(
        c.WriteOutput(1, F1, 0, "aa", body), c.WriteChunk(1, F1, 0, b"says aa", ends=False)
    )
    assert started.journal.output(1, F1, 0, "aa") == body
    assert started.journal.output(1, F1, 0, "bb") is None
    started.write(c.RewriteChunk(1, F1, 0, b"says nothing"))
    started.journal.close()
    snapshot = reload(path)
    assert snapshot.chunks == (b"says nothing",)
    assert [(saved.unit, saved.sha256) for saved in snapshot.outputs] == [(1, "aa")]
    again = Started(path)
    again.write(c.DropChunks(1, F1, 0))
    assert again.journal.output(1, F1, 0, "aa") is None
    again.journal.close()
    assert reload(path).outputs == ()


def test_an_output_is_refused_where_it_would_take_the_room_of_results(path: Path) -> None:
    journal = Started(path, max_bytes=1_000_000, reserve_bytes=400_000)
    small = c.WriteOutput(1, F1, 0, "aa", bytes(300_000))
    large = c.WriteOutput(1, F1, 1, "bb", bytes(300_000))
    chunks = [c.WriteChunk(1, F1, seq, b"x", ends=False) for seq in (0, 1)]
    assert journal.write(small, large, *chunks) == e.WritesCommitted(4, refused=(2,))
    assert journal.journal.output(1, F1, 1, "bb") is None
    assert journal.write(c.DropChunks(1, F1, 0)) == e.WritesCommitted(5)
    assert journal.write(large) == e.WritesCommitted(6)
    journal.journal.close()


def test_a_journal_of_the_last_version_gains_outputs(path: Path) -> None:
    started = Started(path)
    started.write(c.WriteChunk(1, F1, 0, b"x", ends=False))
    started.journal.close()
    with sqlite3.connect(path) as db:
        db.executescript("DROP TABLE output; PRAGMA user_version=3;")
    db.close()
    assert reload(path).chunks == (b"x",)
    then = Started(path)
    then.write(c.WriteOutput(1, F1, 0, "aa", b"y"))
    assert then.journal.output(1, F1, 0, "aa") == b"y"
    then.journal.close()


def test_a_full_file_fails_the_commit_whole_and_recovers(path: Path) -> None:
    journal = Started(path, max_bytes=200_000)
    journal.write(c.WriteChunk(1, F1, 0, b"a" * 100_000, ends=False))
    event = journal.write(
        c.WriteChunk(2, F1, 0, b"b", ends=False), c.WriteChunk(3, F1, 0, b"c" * 150_000, ends=False)
    )
    assert event == e.WritesFailed(3, HoldReason.STORAGE_FULL)
    assert journal.write(c.DropChunks(1, F1, 0)) == e.WritesCommitted(4)
    assert journal.write(c.WriteChunk(3, F1, 0, b"c" * 150_000, ends=False)) == e.WritesCommitted(5)
    journal.journal.close()
    assert [len(body) for body in reload(path).chunks] == [150_000]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_holds_and_recovers_when_there_is_room(
    small_disk: Path, request: pytest.FixtureRequest
) -> None:
    journal = Started(small_disk / "journal.db", reserve_bytes=300_000)
    request.addfinalizer(journal.journal.close)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 1_800_000)
    event = journal.write(c.WriteAttempt(offer(1)))
    assert event == e.WritesCommitted(1, refused=(1,))
    event = journal.write(c.WriteChunk(1, F1, 0, b"a" * 400_000, ends=False))
    assert isinstance(event, e.WritesFailed)
    ballast.unlink()
    assert journal.write(c.CheckSpace()) == e.WritesCommitted(3)
    event = journal.write(c.WriteChunk(1, F1, 0, b"a" * 100_000, ends=False))
    assert event == e.WritesCommitted(4)
    journal.journal.close()
    assert len(reload(small_disk / "journal.db").chunks) == 1


def test_a_disk_that_refuses_to_write_is_an_error_until_it_writes_again(path: Path) -> None:
    """In a process of its own: the limit on file sizes is the process's."""
    script = f"""
import resource, signal, sys
from pathlib import Path
from test_journal import F1, Started, c, e
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Started(Path({str(path)!r}))
assert isinstance(journal.write(c.WriteChunk(1, F1, 0, b"a", ends=False)), e.WritesCommitted)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
event = journal.write(c.WriteChunk(2, F1, 0, b"b" * 100_000, ends=False))
assert isinstance(event, e.WritesFailed), event
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
event = journal.write(c.WriteChunk(2, F1, 0, b"b" * 100_000, ends=False))
assert isinstance(event, e.WritesCommitted), event
journal.journal.close()
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, timeout=60)
    assert [len(body) for body in reload(path).chunks] == [1, 100_000]


def test_a_locked_database_is_an_error_and_passes(path: Path, started: Started) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    event = started.write(c.WriteChunk(1, F1, 0, b"a", ends=False))
    assert event == e.WritesFailed(1, HoldReason.STORAGE_ERROR)
    other.execute("ROLLBACK")
    other.close()
    assert started.write(c.WriteChunk(1, F1, 0, b"a", ends=False)) == e.WritesCommitted(2)


# --- opening -----------------------------------------------------------------------------------


def test_a_second_process_is_told_who_holds_the_journal(path: Path, started: Started) -> None:
    assert started.journal.path == path
    with pytest.raises(JournalHeld, match=f"held by process {os.getpid()}"):
        Journal(path)


def test_a_journal_of_a_newer_version_is_not_touched(path: Path) -> None:
    Journal(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(JournalError, match="version 99"):
        Journal(path)
    with pytest.raises(JournalError, match="version 99"):
        Journal(path)


def test_a_file_that_is_no_journal_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database " * 100)
    with pytest.raises(JournalError, match="cannot be opened"):
        Journal(path)
