"""The ledger in the journal: migrated, growing whatever the order of writes, read by others."""

import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from car_bench import offer
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.contract.errors import ConfigError
from edge_runtime.contract.messages import Fence
from edge_runtime.vehicle.core import commands as c
from edge_runtime.vehicle.core.energy_rows import ROW_FIELDS, DayEnergy
from edge_runtime.vehicle.core.events import WritesCommitted, WritesFailed
from edge_runtime.vehicle.core.wear import UNKNOWN_CELL, WearTable, worst_of
from edge_runtime.vehicle.energy.report import read_summary
from edge_runtime.vehicle.energy.tables import wear_table, wear_tables
from edge_runtime.vehicle.journal import Journal, JournalError

DAY_MS = 86_400_000

VERSION_1 = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value REAL NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE attempt (
    unit INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, counter INTEGER NOT NULL,
    offer BLOB NOT NULL, started INTEGER, next_seq INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE chunk (
    unit INTEGER NOT NULL, epoch INTEGER NOT NULL, counter INTEGER NOT NULL,
    seq INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (unit, epoch, counter, seq)
) STRICT;
CREATE TABLE fence (
    unit INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, counter INTEGER NOT NULL,
    until_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX fence_until ON fence (until_ms);
PRAGMA user_version = 1;
"""


def write(path: Path, *rows: c.Write) -> None:
    """One journal's life in which this is written."""
    done = threading.Event()

    def told(event: WritesCommitted | WritesFailed) -> None:
        assert isinstance(event, WritesCommitted)
        done.set()

    journal = Journal(path, reserve_bytes=0)
    journal.load(0)
    journal.start(told)
    journal.persist(c.Persist(1, rows))
    assert done.wait(20)
    journal.close()


def load(path: Path) -> tuple[DayEnergy, ...]:
    journal = Journal(path, reserve_bytes=0)
    try:
        return journal.load(0).energy
    finally:
        journal.close()


def old_journal(path: Path, **meta: float) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(VERSION_1)
        connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        connection.commit()


def test_a_journal_of_version_1_keeps_its_energy(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    old_journal(path, boot=41, energy_day=20_000, energy_j=1234.5)
    journal = Journal(path)
    snapshot = journal.load(0)
    journal.close()
    assert snapshot.boot == 42
    (row,) = snapshot.energy
    assert (row.day, row.pack_j, row.units_j, row.grid_j) == (20_000, 1234.5, 1234.5, 0)
    assert load(path) == snapshot.energy


def test_a_journal_of_version_1_without_energy_has_none(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    old_journal(path, boot=41)
    assert read_summary(path, 0).lifetime.total_wh == 0
    assert load(path) == ()


@settings(max_examples=30, deadline=None)
@given(
    order=st.permutations(range(4)),
    amounts=st.lists(st.floats(0, 1e6), min_size=4, max_size=4),
)
def test_whatever_order_writes_come_in_the_newest_numbers_win(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], amounts: list[float]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.db"
    sums = [sum(amounts[: index + 1]) for index in range(4)]
    versions = [
        DayEnergy(5, grid_j=total, units_j=total / 2, items=index, methods=1 << index)
        for index, total in enumerate(sums)
    ]
    write(path, *(c.WriteEnergy(versions[index]) for index in order))
    (row,) = load(path)
    assert row == msgspec.structs.replace(versions[3], methods=15)


def test_every_field_of_a_row_has_its_column(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    row = DayEnergy(9, *range(1, len(ROW_FIELDS)))
    write(path, c.WriteEnergy(row))
    assert load(path) == (row,)


def test_the_ledger_is_read_while_the_runtime_has_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    write(path, c.WriteEnergy(DayEnergy(7, grid_j=3_600, units_j=1_800, items=3)))
    journal = Journal(path)
    try:
        summary = read_summary(path, 7 * DAY_MS + 5)
    finally:
        journal.close()
    assert (summary.today.total_wh, summary.today.overhead_wh) == (1.0, 0.5)
    assert summary.month.period == "1970-01"
    assert read_summary(path, 8 * DAY_MS).today.total_wh == 0
    assert read_summary(path, 8 * DAY_MS).lifetime.items == 3
    assert load(path)[0].items == 3


def test_reading_leaves_no_file_behind_that_the_runtime_could_not_open(tmp_path: Path) -> None:
    path = tmp_path / "a journal?.db"
    write(path, c.WriteEnergy(DayEnergy(7, grid_j=3_600)))
    before = sorted(file.name for file in tmp_path.iterdir())
    assert read_summary(path, 7 * DAY_MS).today.total_wh == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == before


_VICTIM = """
import os, sys, threading
from pathlib import Path
from edge_runtime.vehicle.core import commands as c
from edge_runtime.vehicle.core.energy_rows import DayEnergy
from edge_runtime.vehicle.journal import Journal
journal = Journal(Path(sys.argv[1]), reserve_bytes=0)
journal.load(0)
done = threading.Event()
journal.start(lambda event: done.set())
journal.persist(c.Persist(1, (c.WriteEnergy(DayEnergy(7, pack_j=3_600.0)),)))
done.wait(20)
print("written", flush=True)
sys.stdin.read()
"""


def test_the_ledger_is_read_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with subprocess.Popen(
        [sys.executable, "-c", _VICTIM, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"written\n"
        assert read_summary(path, 7 * DAY_MS).today.pack_wh == 1
        victim.send_signal(signal.SIGKILL)
        victim.wait(20)
    assert read_summary(path, 7 * DAY_MS).today.pack_wh == 1
    assert load(path)[0].pack_j == 3_600


@pytest.mark.parametrize("content", [None, b"", b"not a database" * 100])
def test_no_journal_and_no_database_are_said(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "journal.db"
    if content is not None:
        path.write_bytes(content)
    if content == b"":
        assert read_summary(path, 0).lifetime.total_wh == 0
    else:
        with pytest.raises(JournalError, match=r"journal\.db"):
            read_summary(path, 0)


def test_the_start_of_an_item_outlives_the_last_chunk_of_an_older_fence(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    write(
        path,
        c.WriteAttempt(offer(2, counter=2)),
        c.WriteStarted(2, 0),
        c.WriteChunk(2, Fence(1, 1), 0, b"", ends=True),
    )
    journal = Journal(path)
    (attempt,) = journal.load(0).attempts
    journal.close()
    assert attempt.started == 0


# --- the tables ----------------------------------------------------------------------------------


def test_every_table_is_whole_and_colder_or_hotter_is_never_free() -> None:
    tables = wear_tables()
    assert set(tables) == {"lfp", "nmc622", "nmc811", "nca", UNKNOWN_CELL}
    for table in tables.values():
        for row in table.cycle_percent_per_efc:
            assert all(0.001 < value < 0.1 for value in row)
        columns = list(zip(*table.calendar_percent_per_day, strict=True))
        assert all(list(column) == sorted(column) for column in columns)


def test_an_unknown_cell_is_as_bad_as_the_worst() -> None:
    tables = wear_tables()
    worst = tables.pop(UNKNOWN_CELL)
    for temperature_c in (-20, 0, 13, 25, 44, 80):
        for charge in (0, 60, 100):
            most = max(table.cycle_percent(temperature_c, charge) for table in tables.values())
            assert worst.cycle_percent(temperature_c, charge) >= most - 1e-12


def test_a_cell_without_a_table_is_an_error_that_lists_them() -> None:
    with pytest.raises(ConfigError, match="'lead'; there are lfp, nmc622"):
        wear_table("lead")


def test_a_table_of_the_wrong_shape_is_refused() -> None:
    good = wear_table("lfp")
    with pytest.raises(ConfigError, match="temperatures_c must rise"):
        msgspec.structs.replace(good, temperatures_c=(0, 0, 20, 30, 40, 50))
    with pytest.raises(ConfigError, match="cycle_percent_per_efc must have 6 rows of 3"):
        msgspec.structs.replace(good, cycle_percent_per_efc=((0.1, 0.1, 0.1),))
    other = WearTable(
        name="other",
        temperatures_c=(0, 1),
        charges_percent=(0, 1),
        cycle_percent_per_efc=((0, 0), (0, 0)),
        calendar_percent_per_day=((0, 0), (0, 0)),
    )
    with pytest.raises(ConfigError, match="axes differ"):
        worst_of([good, other])


def test_a_journal_of_version_2_is_read_as_it_is_and_then_brought_up(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    write(path, c.WriteEnergy(DayEnergy(5, grid_j=7.0, items=3, methods=1)))
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "ALTER TABLE energy DROP COLUMN begun; DROP TABLE output;"
            "PRAGMA user_version = 2; VACUUM;"
        )
    assert read_summary(path, 5 * DAY_MS).today.items == 3
    assert load(path) == (DayEnergy(5, grid_j=7.0, items=3, methods=1, begun=0),)
    write(path, c.WriteEnergy(DayEnergy(5, begun=2)))
    assert read_summary(path, 5 * DAY_MS).today.begun == 2
