"""The owner's week: which of its minutes the policy's windows hold, worked out once a policy.

Invariants
- A set of minutes is a whole number of 10,080 bits, Monday's first minute lowest: to look at a
  minute is to look at a bit, however many windows the owner wrote.
- A window that runs past Sunday's midnight goes on in Monday.
- What it answers is the same for the whole of a UTC minute.
"""

import datetime as dt
from collections.abc import Iterable
from typing import Final, NamedTuple

from edge_runtime.vehicle.policy import DAYS, OwnerPolicy, Window, time_zone

_MINUTES_PER_HOUR: Final = 60
_MINUTES_PER_DAY: Final = 24 * _MINUTES_PER_HOUR
_MINUTES_PER_WEEK: Final = 7 * _MINUTES_PER_DAY
_EVERY_MINUTE: Final = (1 << _MINUTES_PER_WEEK) - 1
_EPOCH: Final = dt.datetime.fromtimestamp(0, dt.UTC)


class Hours(NamedTuple):
    """What the owner's calendar says of one minute; an unknown price is None."""

    is_in_schedule: bool
    is_quiet: bool
    price_per_kwh: float | None


class Week(NamedTuple):
    """The minutes of work, of quiet, and of each price (dearest first), in the owner's zone."""

    zone: dt.tzinfo
    schedule: int
    quiet: int
    tariff: tuple[tuple[float, int], ...]
    price_per_kwh: float | None

    @classmethod
    def of(cls, policy: OwnerPolicy) -> "Week":
        """The week of a policy. Without a schedule every minute is one of work."""
        prices = sorted({window.price_per_kwh for window in policy.tariff}, reverse=True)
        return cls(
            time_zone(policy.time_zone),
            _minutes_of(policy.schedule) if policy.schedule else _EVERY_MINUTE,
            _minutes_of(policy.quiet_hours),
            tuple(
                (price, _minutes_of(w for w in policy.tariff if w.price_per_kwh == price))
                for price in prices
            ),
            policy.energy.price_per_kwh,
        )

    def hours_at(self, utc_ms: int) -> Hours:
        """What the owner's calendar says of this moment."""
        there = (_EPOCH + dt.timedelta(milliseconds=utc_ms)).astimezone(self.zone)
        minute = there.weekday() * _MINUTES_PER_DAY + there.hour * _MINUTES_PER_HOUR + there.minute
        price = next((price for price, minutes in self.tariff if minutes >> minute & 1), None)
        return Hours(
            is_in_schedule=bool(self.schedule >> minute & 1),
            is_quiet=bool(self.quiet >> minute & 1),
            price_per_kwh=self.price_per_kwh if price is None else price,
        )


def _minutes_of(windows: Iterable[Window]) -> int:
    """The minutes of the week that lie in any of the windows."""
    held = 0
    for window in windows:
        start, end = _minute_of_day(window.start), _minute_of_day(window.end)
        length = (end - start - 1) % _MINUTES_PER_DAY + 1  # an end at the start: a whole day
        for day in window.days:
            begin = DAYS.index(day) * _MINUTES_PER_DAY + start
            held |= ((1 << length) - 1) << begin
    return (held | held >> _MINUTES_PER_WEEK) & _EVERY_MINUTE


def _minute_of_day(clock_time: str) -> int:
    return int(clock_time[:2]) * _MINUTES_PER_HOUR + int(clock_time[3:])
