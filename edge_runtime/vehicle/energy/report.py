"""The energy ledger as read from a car's journal, whether its runtime runs or not.

Invariants
- The journal is opened read-only and let go of at once: a reader changes nothing and is in
  nobody's way.

What it shows is at most `ENERGY_WRITE_MS` old while the runtime runs.
"""

import sqlite3
from pathlib import Path
from typing import Final

from edge_runtime.vehicle.core.energy_rows import LedgerSummary, summarise
from edge_runtime.vehicle.journal import JournalError, energy_rows, journal_to_read

_MS_PER_DAY: Final = 86_400_000
_ENERGY_SINCE_VERSION: Final = 2


def read_summary(journal: Path, utc_ms: int) -> LedgerSummary:
    """The ledger as of `utc_ms`. Raises `JournalError`: there is none, or it cannot be read."""
    if not journal.is_file():
        raise JournalError(f"there is no journal {journal}: this car has not run yet")
    try:
        with journal_to_read(journal) as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            has_energy = version >= _ENERGY_SINCE_VERSION
            rows = energy_rows(connection) if has_energy else ()
    except sqlite3.Error as error:
        raise JournalError(f"the journal {journal} cannot be read: {error}") from error
    return summarise(rows, max(0, utc_ms // _MS_PER_DAY))
