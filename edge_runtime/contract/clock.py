"""The pair of clocks that every core is told: `Now`.

Boot time runs on while the computer sleeps and never jumps: leases, dwell and freshness use it.
UTC may jump and may be wrong: deadlines, schedules and certificates use it.
"""

from datetime import date
from typing import NamedTuple

NS_PER_MS = 1_000_000
PLAUSIBLE_UTC_MS = 1_767_225_600_000
"""1 January 2026: this program is younger, so a clock that shows less was never set."""


class Now(NamedTuple):
    """A moment: `boot_ns` since this computer started (sleep included), `utc_ms` since 1970."""

    boot_ns: int
    utc_ms: int

    @property
    def boot_ms(self) -> int:
        """Boot time in whole milliseconds."""
        return self.boot_ns // NS_PER_MS


_DAY_ZERO = date(1970, 1, 1).toordinal()
_LAST_DAY = date.max.toordinal() - _DAY_ZERO


def utc_month(day: int) -> tuple[int, int]:
    """(year, month) of a UTC day that is numbered from 1 January 1970; no day is an error."""
    then = date.fromordinal(_DAY_ZERO + min(max(day, 0), _LAST_DAY))
    return then.year, then.month
