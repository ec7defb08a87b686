"""The owner's policy file: what it says, and what a wrong one gets."""

import os
import re
import tomllib
from datetime import date
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from edge_runtime.contract.reasons import HoldReason
from edge_runtime.vehicle.policy import (
    AirTemperature,
    OwnerPolicy,
    PolicyError,
    example_policy,
    load_policy,
    parse_policy,
)


def test_the_example_says_the_defaults_and_gives_no_consent() -> None:
    policy = parse_policy(example_policy().encode())
    assert policy == OwnerPolicy()
    assert not policy.consent.given


def uncommented() -> str:
    """The example with everything in it that is only shown."""
    return re.sub(r"(?m)^# (?=\w+ = |\[)", "", example_policy())


def test_the_commented_parts_of_the_example_are_valid_too() -> None:
    policy = parse_policy(uncommented().encode())
    assert policy.energy.budget_wh_per_day == 500
    assert policy.schedule[0].start == "22:00"
    assert policy.cabin_temperature == policy.ambient_temperature == AirTemperature()
    assert policy.consent.date == date(2026, 11, 22)


def keys_of(struct: type[msgspec.Struct], above: str = "") -> set[str]:
    """Every key that the file may have, `table.key`."""
    keys: set[str] = set()
    for field in msgspec.structs.fields(struct):
        inner = [t for t in (field.type, *get_args(field.type)) if is_struct(t)]
        inner += (
            [t for t in get_args(get_args(field.type)[0]) if is_struct(t)]
            if (get_args(field.type))
            else []
        )
        key = above + field.encode_name
        keys |= keys_of(inner[0], key + ".") if inner else {key}
    return keys


def is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def test_the_example_shows_every_key() -> None:
    def names(table: Any, above: str = "") -> set[str]:
        found: set[str] = set()
        for key, value in table.items():
            inner = value[0] if isinstance(value, list) and value else value
            found |= names(inner, f"{above}{key}.") if isinstance(inner, dict) else {above + key}
        return found

    shown = names(tomllib.loads(uncommented()))
    hidden = {"quiet_hours.days", "tariff.days"}  # as schedule.days
    assert keys_of(OwnerPolicy) == shown | hidden


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
        ("dwell_s = nan", "dwell_s"),
        ("cycles_per_day_max = 0", "cycles_per_day_max: Expected `int` >= 1"),
        ('[consent]\ndate = "soon"', "consent.date: Expected `date"),
        ('[consent]\ngiven = "yes"', "consent.given: Expected `bool`"),
        ('[[quiet_hours]]\nstart = "1:00"\nend = "06:00"', "quiet_hours[0].start"),
        ("[departure]\nreserve_start_percent = 10", "departure.reserve_stop_percent: 85 must"),
        ("[departure]\nreserve_hours = 0.25", "departure.reserve_hours: 15 minutes must be over"),
        ('[departure]\nconditioning = "perhaps"', "departure.conditioning: Invalid enum"),
        ("[cabin_temperature]\nstop_max_c = 20", "cabin_temperature.start_max_c: 35 must be"),
        ("[ambient_temperature]\nstart_min_c = 36", "ambient_temperature.start_min_c: 36 must"),
        ("[energy]\nbudget_wh_per_day = 0", "energy.budget_wh_per_day: Expected `float` > 0"),
        (
            "[energy]\nbudget_wh_per_day = 9\nbudget_wh_per_month = 8",
            "energy.budget_wh_per_month: 8 must be at least energy.budget_wh_per_day, 9",
        ),
        ("[energy]\nprice_max_per_kwh = 1", "energy.price_max_per_kwh: no price"),
        ('[[tariff]]\nstart = "01:00"\nend = "02:00"', "tariff[0]: Object missing required"),
        ("[wear]\nequivalent_full_cycles_per_year = -1", "equivalent_full_cycles_per_year"),
        ('[network]\nmetered = "no"', "network.metered: Invalid enum value 'no'"),
        (
            'network_metered = true\n[network]\nmetered = "allow"',
            'network.metered: "allow" contradicts network_metered = true',
        ),
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


def test_what_is_no_ordinary_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    os.mkfifo(path)
    with pytest.raises(PolicyError, match="not an ordinary file"):
        load_policy(path)


def test_an_unreadable_file_is_an_invalid_policy(tmp_path: Path) -> None:
    with pytest.raises(PolicyError) as raised:
        load_policy(tmp_path)
    assert raised.value.hold is HoldReason.POLICY_INVALID


def test_bytes_that_are_not_text_are_an_invalid_policy() -> None:
    with pytest.raises(PolicyError) as raised:
        parse_policy(b"\xff\xfe")
    assert raised.value.hold is HoldReason.POLICY_INVALID
