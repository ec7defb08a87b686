"""The owner's week: what its windows hold, at every minute, in the owner's own time zone."""

from datetime import UTC, datetime, timedelta
from typing import Any, get_args
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.vehicle.policy import Day, Energy, OwnerPolicy, TariffWindow, Window
from edge_runtime.vehicle.week import Hours, Week

_ZONES = ("UTC", "Europe/Berlin", "Asia/Kathmandu", "America/St_Johns")
_CLOCK = st.builds(lambda h, m: f"{h:02}:{m:02}", st.integers(0, 23), st.integers(0, 59))
_DAYS = st.lists(st.sampled_from(get_args(Day)), min_size=1, unique=True).map(tuple)
_WINDOW: dict[str, Any] = {"start": _CLOCK, "end": _CLOCK, "days": _DAYS}
_WINDOWS = st.lists(st.builds(Window, **_WINDOW), max_size=3).map(tuple)
_TARIFF = st.lists(
    st.builds(TariffWindow, price_per_kwh=st.sampled_from((-0.1, 0.0, 0.2, 0.3)), **_WINDOW),
    max_size=3,
).map(tuple)


def at(day: int, hour: int, minute: int = 0) -> int:
    """UTC milliseconds in the week that began on Monday 5 January 2026."""
    return int(datetime(2026, 1, 5 + day, hour, minute, tzinfo=UTC).timestamp() * 1000)


def in_schedule(policy: OwnerPolicy, utc_ms: int) -> bool:
    return Week.of(policy).hours_at(utc_ms).is_in_schedule


def holds(window: Window, there: datetime) -> bool:
    """By the window's definition: it starts on its days and ends within the next 24 hours."""
    days = get_args(Day)
    start, end = (int(text[:2]) * 60 + int(text[3:]) for text in (window.start, window.end))
    now, length = there.hour * 60 + there.minute, end - start if end > start else end - start + 1440
    return any(
        days[(there.weekday() - back) % 7] in window.days
        and start <= now + back * 1440 < start + length
        for back in (0, 1)
    )


@given(
    st.builds(
        OwnerPolicy,
        schedule=_WINDOWS,
        quiet_hours=_WINDOWS,
        tariff=_TARIFF,
        energy=st.builds(Energy, price_per_kwh=st.sampled_from((None, 0.25))),
        time_zone=st.sampled_from(_ZONES),
    ),
    st.datetimes(datetime(2025, 1, 1), datetime(2030, 1, 1)),  # noqa: DTZ001 - made UTC below
)
def test_a_minute_is_what_the_windows_say_by_their_definition(
    policy: OwnerPolicy, moment: datetime
) -> None:
    when = moment.replace(tzinfo=UTC)
    there = when.astimezone(ZoneInfo(policy.time_zone))
    prices = [window.price_per_kwh for window in policy.tariff if holds(window, there)]
    utc_ms = (when - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    assert Week.of(policy).hours_at(utc_ms) == Hours(
        not policy.schedule or any(holds(window, there) for window in policy.schedule),
        any(holds(window, there) for window in policy.quiet_hours),
        max(prices, default=policy.energy.price_per_kwh),
    )


@pytest.mark.parametrize(
    ("when", "inside"),
    [
        (at(0, 21, 59), False),
        (at(0, 22), True),
        (at(1, 5, 59), True),
        (at(1, 6), False),
        (at(1, 23), False),
        (at(6, 3), False),
    ],
)
def test_a_window_over_midnight_belongs_to_the_day_it_starts_on(when: int, *, inside: bool) -> None:
    policy = OwnerPolicy(schedule=(Window(start="22:00", end="06:00", days=("mon",)),))
    assert in_schedule(policy, when) is inside


def test_the_schedule_is_read_in_the_owners_time_zone() -> None:
    policy = OwnerPolicy(schedule=(Window(start="01:00", end="02:00"),), time_zone="Europe/Berlin")
    assert in_schedule(policy, at(0, 0, 30))
    assert not in_schedule(policy, at(0, 1, 30))


def test_no_schedule_is_every_hour() -> None:
    assert in_schedule(OwnerPolicy(), at(3, 3))


def test_where_tariffs_overlap_the_highest_price_counts_and_none_is_unknown() -> None:
    tariff = (
        TariffWindow(start="01:00", end="03:00", price_per_kwh=0.2),
        TariffWindow(start="02:00", end="04:00", price_per_kwh=0.3),
    )
    policy = OwnerPolicy(tariff=tariff)
    assert [Week.of(policy).hours_at(at(0, hour)).price_per_kwh for hour in (0, 1, 2, 3, 4)] == [
        None,
        0.2,
        0.3,
        0.3,
        None,
    ]
    always = OwnerPolicy(tariff=tariff, energy=Energy(price_per_kwh=0.5))
    assert Week.of(always).hours_at(at(0, 12)).price_per_kwh == 0.5


def test_quiet_hours_are_none_unless_they_are_written() -> None:
    assert not Week.of(OwnerPolicy()).hours_at(at(0, 12, 30)).is_quiet
    quiet = OwnerPolicy(quiet_hours=(Window(start="12:00", end="13:00", days=("mon",)),))
    assert Week.of(quiet).hours_at(at(0, 12, 30)).is_quiet
    assert not Week.of(quiet).hours_at(at(1, 12, 30)).is_quiet
