"""The owner's policy: a TOML file that says when, for whom and how far the car may work.

Invariants
- A policy that cannot be read, or is wrong anywhere, is no policy: the car takes no work
  (`consent_missing` for a missing file, `policy_invalid` otherwise). There is no partial reading.
- Unknown keys are errors: a misspelt limit must not be a limit that is silently not there.
- Hysteresis is kept by construction: every start level is stricter than its stop level.

Deliberately absent: anything a dispatcher may set, and any default that gives consent.
"""

import zoneinfo
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from edge_runtime.contract import limits
from edge_runtime.contract.errors import ConfigError
from edge_runtime.contract.reasons import HoldReason
from edge_runtime.contract.signals import SIGNALS

Percent = Annotated[float, Meta(ge=0, le=100)]
Celsius = Annotated[float, Meta(ge=-60, le=150)]
Volt = Annotated[float, Meta(ge=0, le=60)]
ClockTime = Annotated[str, Meta(pattern="^([01][0-9]|2[0-3]):[0-5][0-9]$")]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
Names = Annotated[tuple[str, ...], Meta(max_length=limits.POLICY_NAMES_MAX)]

_DAYS: Final[tuple[Day, ...]] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_SIGNAL_NAMES: Final = frozenset(signal.name for signal in SIGNALS)

CAR_REQUIRES: Final = (
    "charge_percent",
    "is_plugged",
    "is_parked",
    "is_occupied",
    "compute_temperature_c",
)
"""What a car must be able to read; a computer without a park lock lists fewer."""


class PolicyError(ConfigError):
    """A policy could not be used; `hold` is the reason under which the car then rests."""

    def __init__(self, hold: HoldReason, message: str) -> None:
        super().__init__(message)
        self.hold = hold


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the tables of the file."""


class Consent(_Section, frozen=True):
    """`version` counts the owner's decisions; version 0 was never asked."""

    given: bool = False
    version: Annotated[int, Meta(ge=0)] = 0


class Window(_Section, frozen=True):
    """Hours in which work is allowed; an end at or before the start lies on the next day."""

    start: ClockTime
    end: ClockTime
    days: Annotated[tuple[Day, ...], Meta(min_length=1)] = _DAYS

    def holds(self, weekday: int, minute: int) -> bool:
        """Whether minute `minute` of weekday `weekday` (0 is Monday) lies in the window."""
        start, end = _minutes(self.start), _minutes(self.end)
        today, yesterday = _DAYS[weekday], _DAYS[weekday - 1]
        if start < end:
            return today in self.days and start <= minute < end
        return (today in self.days and minute >= start) or (yesterday in self.days and minute < end)


class Charge(_Section, frozen=True):
    """Traction battery, percent: work begins at `start_percent` and ends below `stop_percent`."""

    start_percent: Percent = 60.0
    stop_percent: Percent = 50.0


class BatteryTemperature(_Section, frozen=True):
    """Hottest cell, Celsius: work begins inside start_min..start_max, ends outside stop_*."""

    start_min_c: Celsius = 5.0
    start_max_c: Celsius = 35.0
    stop_min_c: Celsius = 0.0
    stop_max_c: Celsius = 42.0


class ComputeTemperature(_Section, frozen=True):
    """Computer, Celsius: begins up to `start_c`, stops at `stop_c` at once.

    Above `continue_c` what is held is finished and nothing new is taken.
    """

    start_c: Celsius = 70.0
    continue_c: Celsius = 78.0
    stop_c: Celsius = 85.0


class LowVoltage(_Section, frozen=True):
    """The 12 V battery, volts."""

    start_v: Volt = 12.2
    stop_v: Volt = 11.8


class Energy(_Section, frozen=True):
    """`budget_wh_per_day` per UTC day; absent means no budget."""

    budget_wh_per_day: Annotated[float, Meta(gt=0, le=1e6)] | None = None


class Allowed(_Section, frozen=True):
    """Who may use the car, for what, with which models (digests); empty allows all."""

    tenants: Names = ()
    purposes: Names = ()
    models: Names = ()


class OwnerPolicy(_Section, frozen=True):
    """What the owner allows. `require` names the signals without which nothing runs."""

    consent: Consent = Consent()
    paused: bool = False
    parked_only: bool = True
    empty_only: bool = True
    plugged_only: bool = True
    network_metered: bool = False
    power_saving_max: Annotated[int, Meta(ge=0, le=10)] = 5
    dwell_s: Annotated[float, Meta(ge=0, le=limits.DWELL_MAX_S)] = 30.0
    require: Names = CAR_REQUIRES
    time_zone: str = "UTC"
    schedule: Annotated[tuple[Window, ...], Meta(max_length=limits.POLICY_WINDOWS_MAX)] = ()
    charge: Charge = Charge()
    battery_temperature: BatteryTemperature = BatteryTemperature()
    compute_temperature: ComputeTemperature = ComputeTemperature()
    low_voltage: LowVoltage = LowVoltage()
    energy: Energy = Energy()
    allowed: Allowed = Allowed()

    @property
    def dwell_ns(self) -> int:
        """How long every condition must be good before a hold clears."""
        return round(self.dwell_s * 1e9)

    def in_schedule(self, utc_ms: int) -> bool:
        """Whether work is allowed at this hour; always, without a schedule."""
        if not self.schedule:
            return True
        zone = time_zone(self.time_zone)
        there = (datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=utc_ms)).astimezone(zone)
        minute = there.hour * 60 + there.minute
        return any(window.holds(there.weekday(), minute) for window in self.schedule)


def time_zone(name: str) -> tzinfo:
    """The zone of an IANA name; UTC needs no zone database. Raises `PolicyError`."""
    if name == "UTC":
        return UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise PolicyError(
            HoldReason.POLICY_INVALID,
            f"time_zone: {name[:64]!r} is not in this computer's zone database",
        ) from None


def parse_policy(text: bytes) -> OwnerPolicy:
    """Read a policy. Raises `PolicyError` whose one line names the field and its limit."""
    if len(text) > limits.POLICY_FILE_MAX_BYTES:
        raise _invalid(f"the file is over {limits.POLICY_FILE_MAX_BYTES} bytes")
    try:
        policy = msgspec.toml.decode(text, type=OwnerPolicy)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid(_readable(error)) from None
    _check_levels(policy)
    return policy


def load_policy(path: Path) -> OwnerPolicy:
    """Read the policy file. Raises `PolicyError`; a missing file is missing consent."""
    try:
        with path.open("rb") as file:
            text = file.read(limits.POLICY_FILE_MAX_BYTES + 1)
    except FileNotFoundError:
        raise PolicyError(
            HoldReason.CONSENT_MISSING, f"{path}: no policy file, so no consent"
        ) from None
    except OSError as error:
        raise _invalid(f"{path}: {error.strerror}") from None
    try:
        return parse_policy(text)
    except PolicyError as error:
        raise PolicyError(error.hold, f"{path}: {error}") from None


def example_policy() -> str:
    """A complete policy file with every default and what it means; it gives no consent."""
    return _EXAMPLE


def _minutes(clock_time: str) -> int:
    return int(clock_time[:2]) * 60 + int(clock_time[3:])


def _invalid(message: str) -> PolicyError:
    return PolicyError(HoldReason.POLICY_INVALID, message)


def _readable(error: Exception) -> str:
    """`Expected … - at `$.charge.start_percent`` turned around: field first."""
    message, at, place = str(error).partition(" - at `$")
    return f"{place.strip('.`')}: {message}" if at else message


def _check_levels(policy: OwnerPolicy) -> None:
    """Raise `PolicyError` where a start level is not stricter than its stop level."""
    battery, compute = policy.battery_temperature, policy.compute_temperature
    rising = (
        ("charge.stop_percent", policy.charge.stop_percent, policy.charge.start_percent),
        ("battery_temperature.stop_min_c", battery.stop_min_c, battery.start_min_c),
        ("battery_temperature.start_min_c", battery.start_min_c, battery.start_max_c),
        ("battery_temperature.start_max_c", battery.start_max_c, battery.stop_max_c),
        ("compute_temperature.start_c", compute.start_c, compute.continue_c),
        ("compute_temperature.continue_c", compute.continue_c, compute.stop_c),
        ("low_voltage.stop_v", policy.low_voltage.stop_v, policy.low_voltage.start_v),
    )
    for field, lower, upper in rising:
        if lower > upper:
            raise _invalid(f"{field}: {lower:g} must be at most {upper:g}, the next level")
    unknown = sorted(set(policy.require) - _SIGNAL_NAMES)
    if unknown:
        raise _invalid(
            f"require: {unknown[0]!r} is no signal; known are {', '.join(sorted(_SIGNAL_NAMES))}"
        )
    time_zone(policy.time_zone)


_EXAMPLE: Final = """\
# The owner's policy of this car. Every key may be left out; what is written here are the
# defaults, except that consent is yours to give. A wrong key or value stops all work.

paused = false            # stop everything for now, without withdrawing consent
parked_only = true        # work only while parked
empty_only = true         # work only while nobody sits in the car
plugged_only = true       # work only while plugged in
network_metered = false   # true: this link is paid by volume, so no work
power_saving_max = 5      # work only while the car's power saving level (0 to 10) is at most this
dwell_s = 30              # every condition must be good for so long before work begins (again)
time_zone = "UTC"         # of the schedule, for example "Europe/Berlin"
# Signals that must be there and fresh. Take out what this computer cannot read.
require = ["charge_percent", "is_plugged", "is_parked", "is_occupied", "compute_temperature_c"]

[consent]
given = false             # true: you agree that this car works for others
version = 0               # add one whenever you change your mind

[charge]                  # traction battery, percent
start_percent = 60        # work begins at or above
stop_percent = 50         # work stops below

[battery_temperature]     # hottest cell, Celsius
start_min_c = 5           # work begins between these two
start_max_c = 35
stop_min_c = 0            # and stops outside these two
stop_max_c = 42

[compute_temperature]     # the computer, Celsius
start_c = 70              # work begins at or below
continue_c = 78           # no new work above
stop_c = 85               # everything stops at or above

[low_voltage]             # 12 V battery, volts
start_v = 12.2
stop_v = 11.8

[energy]
# budget_wh_per_day = 500 # no more than this per UTC day

[allowed]                 # empty allows all
tenants = []
purposes = []
models = []               # digests of model packages

# Hours of work; without any, every hour. An end before the start lies on the next day.
# [[schedule]]
# days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
# start = "22:00"
# end = "06:00"
"""
