"""The owner's policy file: what it says, and what a wrong one gets."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from edge_runtime.contract.reasons import HoldReason
from edge_runtime.vehicle.policy import (
    OwnerPolicy,
    PolicyError,
    Window,
    example_policy,
    load_policy,
    parse_policy,
)


def at(day: int, hour: int, minute: int = 0) -> int:
    """UTC milliseconds in the week that began on Monday 5 January 2026."""
    return int(datetime(2026, 1, 5 + day, hour, minute, tzinfo=UTC).timestamp() * 1000)


def test_the_example_says_the_defaults_and_gives_no_consent() -> None:
    policy = parse_policy(example_policy().encode())
    assert policy == OwnerPolicy()
    assert not policy.consent.given


def test_the_commented_parts_of_the_example_are_valid_too() -> None:
    text = example_policy().replace("# budget_wh_per_day = 500 #", "budget_wh_per_day = 500 #")
    tail = text.index("# [[schedule]]")
    text = text[:tail] + text[tail:].replace("# ", "")
    policy = parse_policy(text.encode())
    assert policy.energy.budget_wh_per_day == 500
    assert policy.schedule[0].start == "22:00"


def test_a_missing_file_is_missing_consent(tmp_path: Path) -> None:
    with pytest.raises(PolicyError) as raised:
        load_policy(tmp_path / "policy.toml")
    assert raised.value.hold is HoldReason.CONSENT_MISSING


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("paused = 3", "paused: Expected `bool`"),
        ("[charge]\nstart_percent = 130", "charge.start_percent: Expected `float` <= 100"),
        ("[charge]\nstart_percent = 40", "charge.stop_percent: 50 must be at most 40"),
        ("[compute_temperature]\nstop_c = 60", "compute_temperature.continue_c: 78 must"),
        ("[compute_temperature]\nstop_c = nan", "compute_temperature.stop_c"),
        ("[compute_temperature]\nstop_c = inf", "compute_temperature.stop_c"),
        ("chargee = 1", "unknown field `chargee`"),
        ('require = ["is_happy"]', "require: 'is_happy' is no signal"),
        ('time_zone = "Mars/Olympus"', "time_zone: 'Mars/Olympus'"),
        ('[[schedule]]\nstart = "25:00"\nend = "06:00"', "schedule[0].start"),
        ('[[schedule]]\nstart = "22:00"\nend = "06:00"\ndays = []', "schedule[0].days"),
        ("dwell_s = -1", "dwell_s: Expected `float` >= 0"),
        ("= broken", "Invalid"),
        ("\x00", "Invalid"),
    ],
)
def test_a_wrong_policy_is_refused_whole_and_names_its_field(text: str, says: str) -> None:
    with pytest.raises(PolicyError) as raised:
        parse_policy(text.encode())
    assert raised.value.hold is HoldReason.POLICY_INVALID
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_oversize_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("# " + "x" * 70_000)
    with pytest.raises(PolicyError, match="over 65536 bytes"):
        load_policy(path)


def test_an_unreadable_file_is_an_invalid_policy(tmp_path: Path) -> None:
    with pytest.raises(PolicyError) as raised:
        load_policy(tmp_path)
    assert raised.value.hold is HoldReason.POLICY_INVALID


def test_bytes_that_are_not_text_are_an_invalid_policy() -> None:
    with pytest.raises(PolicyError) as raised:
        parse_policy(b"\xff\xfe")
    assert raised.value.hold is HoldReason.POLICY_INVALID


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
    assert policy.in_schedule(when) is inside


def test_the_schedule_is_read_in_the_owners_time_zone() -> None:
    policy = OwnerPolicy(schedule=(Window(start="01:00", end="02:00"),), time_zone="Europe/Berlin")
    assert policy.in_schedule(at(0, 0, 30))
    assert not policy.in_schedule(at(0, 1, 30))


def test_no_schedule_is_every_hour() -> None:
    assert OwnerPolicy().in_schedule(at(3, 3))
