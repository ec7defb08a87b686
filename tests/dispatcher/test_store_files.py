"""The store as a file: versions, holders, backups, kills, full disks, foreign locks."""

import asyncio
import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
from store_child import ticks
from store_rig import add_job

from edge_runtime.contract.messages import Fence, ResultError
from edge_runtime.contract.reasons import ItemError, JobState
from edge_runtime.dispatcher.core import commands as c
from edge_runtime.dispatcher.storage import (
    SqliteStore,
    StoreBusy,
    StoreDamaged,
    StoreError,
    StoreFull,
)
from edge_runtime.dispatcher.storage.files import backup_file, check_file, migrate_file
from edge_runtime.dispatcher.storage.schema import (
    APPLICATION_ID,
    ITEM_BITS,
    MIGRATIONS,
    VERSION,
    migrate,
)
from edge_runtime.dispatcher.storage.writing import write

HERE = Path(__file__).parent


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path)
    await store.open(1_000)
    yield store
    await store.close()


def child(path: Path, *, hold: bool = False) -> subprocess.Popen[str]:
    command = [sys.executable, str(HERE / "store_child.py"), str(path), "1" if hold else "0"]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE.parents[1]
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> list[str]:
    """Kill -9; what it had still said."""
    process.kill()
    rest, _ = process.communicate(timeout=20)
    return rest.split("\n")[:-1]  # a last line without its end was not said


# --- versions ----------------------------------------------------------------------------------


def version_1(path: Path) -> None:
    """A store as the first release left it, with rows in every table."""
    db = sqlite3.connect(path, isolation_level=None)
    migrate(db, through=1)
    assert db.execute("PRAGMA user_version").fetchone() == (1,)
    db.execute("INSERT INTO meta VALUES ('epoch', 77)")
    add = add_job(1, "job1", 2, idempotency_key="key")
    db.execute(
        "INSERT INTO job(no, id, tenant, key, body_hash, spec, state, items, deadline_ms,"
        " retention_ms) VALUES (1, 'job1', 'tenant', 'key', '', ?, 'accepted', 2, 9, 9)",
        (msgspec.msgpack.encode(add.spec),),
    )
    for item in add.items:
        key = (1 << ITEM_BITS) | item.index
        db.execute("INSERT INTO item VALUES (?, ?, ?)", (key, item.media_type, item.data))
    begin = c.BeginAttempt(
        job_no=1,
        unit=5,
        fence=Fence(77, 1),
        vehicle="car",
        issued=(0, 1),
        alone=False,
        offered_ms=1,
    )
    strike = c.AddStrike(job_no=1, index=1, vehicle="car")
    result, update = ticks_of_result()
    write(db, [begin, strike, update], 0)
    assert isinstance(result, c.AddResult)
    db.execute(
        "INSERT INTO result(position, item, job_no, tenant, cursor, at_ms, vehicle, output)"
        " VALUES (1, ?, 1, 'tenant', 1, 3, 'car', ?)",
        ((1 << ITEM_BITS), result.output),
    )
    db.close()


def ticks_of_result() -> list[c.StoreCommand]:
    result = c.AddResult(
        job_no=1,
        job="job1",
        tenant="tenant",
        cursor=1,
        index=0,
        at_ms=3,
        vehicle="car",
        output=b"\x07",
        error=None,
    )
    update = c.UpdateJob(
        no=1, state=JobState.RUNNING, done=1, failed=0, cursor=1, deadline_ms=9, finished_ms=None
    )
    return [result, update]


async def test_a_store_of_version_1_is_migrated_when_opened_and_all_is_there(path: Path) -> None:
    version_1(path)
    store = SqliteStore(path)
    found = await store.open(50)
    assert (found.epoch, found.next_job_no, found.next_unit) == (78, 2, 6)
    (job,) = found.jobs
    assert (job.spec.id, job.done, job.cursor, job.strikes) == ("job1", 1, 1, ((1, "car"),))
    (attempt,) = found.attempts
    assert [item.index for item in attempt.items] == [1]
    assert (await store.results("job1", 0, 10))[0].vehicle == "car"
    assert set(await store.find_keys("tenant", ["key", "other"])) == {"key"}
    await store.commit([c.PutQuarantine(vehicle="car", on=True)])  # a table of version 2
    await store.close()
    assert check_file(path) == []


def test_the_migrate_command_says_from_where_to_where(path: Path) -> None:
    version_1(path)
    (problem,) = check_file(path)
    assert "store migrate" in problem
    assert migrate_file(path) == (1, VERSION)
    assert migrate_file(path) == (VERSION, VERSION)
    assert check_file(path) == []


def test_a_migration_that_fails_changes_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version_1(path)
    broken = (MIGRATIONS[0], MIGRATIONS[1] + "CREATE TABLE job(no INTEGER);")
    monkeypatch.setattr("edge_runtime.dispatcher.storage.schema.MIGRATIONS", broken)
    with pytest.raises(StoreError):
        migrate_file(path)
    monkeypatch.undo()
    assert migrate_file(path) == (1, VERSION)
    assert check_file(path) == []


def refuses(path: Path, message: str | None = None) -> None:
    """Nobody opens this file, and nothing about it changes."""
    before = path.read_bytes()
    with pytest.raises(StoreDamaged, match=message):
        asyncio.run(SqliteStore(path).open(1))
    for command in (check_file, migrate_file):
        with pytest.raises(StoreDamaged, match=message):
            command(path)
    assert path.read_bytes() == before


def test_a_newer_version_is_refused_and_left_as_it_is(path: Path) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    migrate(db)
    db.execute(f"PRAGMA user_version={VERSION + 1}")
    db.close()
    refuses(path, f"version {VERSION + 1}")


def test_a_database_of_another_application_is_refused_and_left_as_it_is(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE precious(x)")
    db.commit()
    db.close()
    refuses(path, "another application")


def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(path: Path) -> None:
    path.write_text("dear diary, " * 1_000)
    refuses(path)


def test_a_store_that_cannot_be_opened_lets_go_of_its_lock(path: Path) -> None:
    path.write_text("dear diary, " * 1_000)
    failed = SqliteStore(path)
    with pytest.raises(StoreDamaged):
        asyncio.run(failed.open(1))
    path.unlink()
    asyncio.run(_opened(SqliteStore(path)))


async def test_a_store_is_marked_as_ours(store: SqliteStore, path: Path) -> None:
    assert store.path == path
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    db.close()


# --- holders -----------------------------------------------------------------------------------


def test_a_second_holder_is_refused_with_the_name_of_the_first(path: Path) -> None:
    first = child(path, hold=True)
    try:
        assert said(first) == "open"
        with pytest.raises(StoreBusy, match=rf"held by the child \(pid {first.pid}\)"):
            asyncio.run(SqliteStore(path).open(1))
        for command in (check_file, migrate_file):
            with pytest.raises(StoreBusy, match="the child"):
                command(path)
        with pytest.raises(StoreBusy, match="the child"):
            backup_file(path, path.with_name("copy.db"))
    finally:
        end(first)
    store = SqliteStore(path)
    asyncio.run(_opened(store))  # the lock dies with its holder


async def _opened(store: SqliteStore) -> None:
    await store.open(1)
    await store.close()


async def test_a_closed_store_says_so(path: Path) -> None:
    store = SqliteStore(path)
    with pytest.raises(StoreError, match="not open"):
        await store.count_open()
    await store.open(1)
    await store.close()
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await store.count_open()


async def test_a_foreign_lock_is_a_typed_error_and_passes(store: SqliteStore, path: Path) -> None:
    foreign = sqlite3.connect(path, isolation_level=None)
    foreign.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreBusy):
        await store.commit([add_job(1, "job1")])
    foreign.execute("ROLLBACK")
    foreign.close()
    await store.commit([add_job(1, "job1")])
    assert await store.count_open() == 1


async def test_what_contradicts_the_store_is_damage_not_a_hiccup(store: SqliteStore) -> None:
    """Memory and file disagree: the service must start anew, not try for ever."""
    await store.commit([add_job(1, "job1")])
    with pytest.raises(StoreDamaged, match="contradicts"):
        await store.commit([add_job(1, "again")])
    assert await store.count_open() == 1


# --- backup ------------------------------------------------------------------------------------


async def test_a_backup_while_committing_is_whole(store: SqliteStore, tmp_path: Path) -> None:
    async def commit_all() -> None:
        for no in range(1, 25):
            for commands in ticks(no, 1):
                await store.commit(commands)

    committing = asyncio.create_task(commit_all())
    copies = []
    while not committing.done():
        target = tmp_path / f"copy{len(copies)}.db"
        size = await store.backup(target)
        assert size == target.stat().st_size
        copies.append(target)
        await asyncio.sleep(0)
    await committing
    assert len(copies) >= 2
    counts = []
    for copy in copies:
        assert check_file(copy) == []
        opened = SqliteStore(copy)
        found = await opened.open(1)
        counts.append(found.next_job_no)
        await opened.close()
    assert counts == sorted(counts)
    assert counts[-1] > 1


async def test_a_backup_never_overwrites(store: SqliteStore, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    with pytest.raises(StoreError, match="exists"):
        await store.backup(target)
    assert target.read_text() == "precious"


async def test_a_backup_to_nowhere_is_an_error_and_leaves_nothing(
    store: SqliteStore, tmp_path: Path
) -> None:
    with pytest.raises(StoreError):
        await store.backup(tmp_path / "no" / "folder" / "copy.db")
    await store.commit([add_job(1, "job1")])


def test_a_backup_of_a_store_at_rest(path: Path, tmp_path: Path) -> None:
    asyncio.run(_opened(SqliteStore(path)))
    target = tmp_path / "copy.db"
    assert backup_file(path, target) == target.stat().st_size
    assert check_file(target) == []
    with pytest.raises(StoreError, match="no store at"):
        check_file(tmp_path / "nothing.db")


async def test_a_restored_backup_never_repeats_an_epoch(path: Path, tmp_path: Path) -> None:
    store = SqliteStore(path)
    first = await store.open(1_000)
    copy = tmp_path / "copy.db"
    await store.backup(copy)
    await store.close()
    epochs = [first.epoch]
    for utc_s in (1_500, 1_500, 10):
        again = SqliteStore(path)
        epochs.append((await again.open(utc_s)).epoch)
        await again.close()
    assert epochs == sorted(set(epochs))
    restored = SqliteStore(copy)
    assert (await restored.open(2_000)).epoch > epochs[-1]  # by the clock
    await restored.close()


# --- kill -9 -----------------------------------------------------------------------------------


def test_every_commit_that_returned_survives_a_kill(path: Path) -> None:
    moments = random.Random(7)
    acknowledged: list[str] = []
    for _ in range(6):
        process = child(path)
        lines = [said(process)]
        assert lines == ["open"]
        lines += [said(process) for _ in range(moments.randrange(3, 90))]
        acknowledged += [line for line in lines[1:] + end(process) if " " in line]
        assert check_file(path) == []
    assert len(acknowledged) > 100
    db = sqlite3.connect(path)
    for line in acknowledged:
        no, tick = map(int, line.split())
        (done,) = db.execute("SELECT done FROM job WHERE no=?", (no,)).fetchone()
        assert done >= (0, 1, 3)[tick], line
    results = db.execute("SELECT count(*), max(position) FROM result").fetchone()
    assert results[0] == results[1]  # positions without a gap or a repeat
    db.close()


# --- no space ----------------------------------------------------------------------------------


async def test_a_full_store_is_a_typed_error_and_is_usable_afterwards(store: SqliteStore) -> None:
    await store.commit([add_job(1, "job1")])
    db = store._db
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    await store._run(lambda: db.execute(f"PRAGMA max_page_count={pages + 4}").fetchone())
    with pytest.raises(StoreFull):
        await store.commit([add_job(2, "job2", 50, size=4_000)])
    await _still_works(store)
    await store._run(lambda: db.execute("PRAGMA max_page_count=100000").fetchone())
    await store.commit([add_job(2, "job2", 50, size=4_000)])
    assert await store.count_open() == 2


async def _still_works(store: SqliteStore) -> None:
    """What it has can be read, and what was refused left nothing."""
    assert [status.job for status in await store.jobs(None, None, 10, None)] == ["job1"]
    assert await store.feed_position("tenant") == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root mounts a small disk")
    options = ["-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mount)]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        pytest.skip("this machine mounts nothing")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def fill_up(disk: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        (disk / "filler").write_bytes(bytes(4 << 20))


def free_up(disk: Path) -> set[str]:
    """Remove the filler; what else there is."""
    (disk / "filler").unlink()
    return {file.name for file in disk.iterdir()}


async def test_a_full_disk_is_a_typed_error_and_is_usable_afterwards(small_disk: Path) -> None:
    store = SqliteStore(small_disk / "store.db")
    await store.open(1)
    try:
        await _fill_and_free(store, small_disk)
    finally:
        await store.close()
    assert check_file(small_disk / "store.db") == []


async def _fill_and_free(store: SqliteStore, small_disk: Path) -> None:
    await store.commit([add_job(1, "job1")])
    with pytest.raises(StoreFull):
        await store.commit([add_job(2, "job2", 1_000, size=4_000)])
    await _still_works(store)
    fill_up(small_disk)
    with pytest.raises(StoreFull):
        await store.commit([add_job(2, "job2", 1_000, size=4_000)])
    with pytest.raises(StoreError):
        await store.backup(small_disk / "copy.db")
    assert free_up(small_disk) == {"store.db", "store.db-wal", "store.db-shm", "store.db.lock"}
    await store.commit([add_job(2, "job2", 20, size=4_000)])
    assert await store.count_open() == 2


# --- check -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("DELETE FROM item WHERE key = (SELECT item FROM result LIMIT 1)", "without their item"),
        ("UPDATE job SET done = 0", "counts differ"),
        ("UPDATE job SET items = 9", "have no end"),
        ("UPDATE job SET no = 99", "do not exist"),
    ],
)
def test_the_check_finds(path: Path, damage: str, problem: str) -> None:
    async def fill() -> None:
        store = SqliteStore(path)
        await store.open(1)
        for commands in ticks(1, 1):
            await store.commit(commands)
        await store.close()

    asyncio.run(fill())
    assert check_file(path) == []
    db = sqlite3.connect(path)
    db.execute(damage)
    db.commit()
    db.close()
    assert any(problem in line for line in check_file(path))


def test_the_check_finds_a_torn_page(path: Path) -> None:
    async def fill() -> None:
        store = SqliteStore(path)
        await store.open(1)
        await store.commit([add_job(1, "job1", 200, size=500)])
        await store.close()

    asyncio.run(fill())
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * 600)
    with contextlib.suppress(StoreDamaged):  # found sooner
        assert check_file(path)


def test_errors_of_results_are_what_was_written(path: Path) -> None:
    error = ResultError(code=ItemError.WRONG_SHAPE, message="why", attempts=2)

    async def run() -> None:
        store = SqliteStore(path)
        await store.open(1)
        result = c.AddResult(
            job_no=1,
            job="job1",
            tenant="tenant",
            cursor=1,
            index=0,
            at_ms=3,
            vehicle="car",
            output=None,
            error=error,
        )
        await store.commit([add_job(1, "job1", 1), result])
        (entry,) = await store.results("job1", 0, 5)
        assert (entry.error, bytes(entry.output)) == (error, b"")
        (letter,) = await store.dead_letters("tenant", "job1", 5)
        assert (letter.job, letter.item, letter.error) == ("job1", 0, error)
        await store.close()

    asyncio.run(run())
