"""The owner's policy: a TOML file that says when, for whom and how far the car may work.

Invariants
- A policy that cannot be read, or is wrong anywhere, is no policy: the car takes no work
  (`consent_missing` for a missing file, `policy_invalid` otherwise). There is no partial reading.
- Unknown keys are errors: a misspelt limit must not be a limit that is silently not there.
- Hysteresis is kept by construction: every start level is stricter than its stop level.
- Every key says in its `description` what it means; `docs/reference/policy.md` is made from that.

Deliberately absent: anything a dispatcher may set, any default that gives consent, and what the
owner decides by command, which is in a file of its own (`owner_decisions`).
"""

import datetime as dt
import os
import stat
import zoneinfo
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
Minutes = Annotated[float, Meta(ge=0, le=limits.POLICY_AHEAD_MAX_MIN)]
HoursAhead = Annotated[float, Meta(ge=0, le=limits.POLICY_AHEAD_MAX_MIN / 60)]
Price = Annotated[float, Meta(ge=-limits.POLICY_PRICE_MAX, le=limits.POLICY_PRICE_MAX)]
WattHours = Annotated[float, Meta(gt=0, le=limits.POLICY_BUDGET_MAX_WH)]
ClockTime = Annotated[str, Meta(pattern="^([01][0-9]|2[0-3]):[0-5][0-9]$")]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
Names = Annotated[tuple[str, ...], Meta(max_length=limits.POLICY_NAMES_MAX)]

DAYS: Final[tuple[Day, ...]] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_SIGNAL_NAMES: Final = frozenset(signal.name for signal in SIGNALS)
_MINUTES_PER_HOUR: Final = 60

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
    """The owner's consent. A version of 0 was never asked.

    `edge-runtime owner consent` and `withdraw` decide the same without this file. A withdrawal by
    command stands whatever is written here; a withdrawal written here under a higher version
    stands whatever was decided by command.
    """

    given: Annotated[bool, Meta(description="You agree that this car works for others.")] = False
    version: Annotated[
        int,
        Meta(ge=0, le=limits.COUNT_MAX, description="Add one whenever you change your mind."),
    ] = 0
    date: Annotated[
        dt.date | None, Meta(description="The day of that decision, such as 2026-11-22.")
    ] = None


class Window(_Section, frozen=True):
    """Hours of the week; an end at or before the start lies on the next day."""

    start: Annotated[ClockTime, Meta(description='The first minute, "HH:MM".')]
    end: Annotated[ClockTime, Meta(description="The first minute after.")]
    days: Annotated[
        tuple[Day, ...],
        Meta(min_length=1, max_length=7, description="The days on which the window starts."),
    ] = DAYS


class TariffWindow(Window, frozen=True, kw_only=True):
    """What energy costs in these hours. Where windows overlap, the highest price counts."""

    price_per_kwh: Annotated[Price, Meta(description="The price, in any one currency.")]


class Charge(_Section, frozen=True):
    """Charge of the traction battery."""

    start_percent: Annotated[Percent, Meta(description="Work begins at or above.")] = 60.0
    stop_percent: Annotated[Percent, Meta(description="Work stops below.")] = 50.0


class Departure(_Section, frozen=True):
    """The owner's next departure, where the car tells it (`departure_utc_s`)."""

    stop_before_min: Annotated[
        Minutes, Meta(description="No work from so long before the departure. 0: until it.")
    ] = 30.0
    late_min: Annotated[
        Minutes,
        Meta(
            description="A departure that has passed still counts for so long; then there is none."
        ),
    ] = 30.0
    reserve_hours: Annotated[
        HoursAhead,
        Meta(description="From so long before the departure the reserve must be there. 0: never."),
    ] = 0.0
    reserve_start_percent: Annotated[
        Percent, Meta(description="Charge at or above which work then begins.")
    ] = 90.0
    reserve_stop_percent: Annotated[
        Percent, Meta(description="Charge below which work then stops.")
    ] = 85.0
    conditioning: Annotated[
        Literal["allow", "stop"],
        Meta(description="Whether work goes on while the car conditions its battery."),
    ] = "allow"


class BatteryTemperature(_Section, frozen=True):
    """Temperature of the hottest cell."""

    start_min_c: Annotated[Celsius, Meta(description="Work begins at or above.")] = 5.0
    start_max_c: Annotated[Celsius, Meta(description="Work begins at or below.")] = 35.0
    stop_min_c: Annotated[Celsius, Meta(description="Work stops below.")] = 0.0
    stop_max_c: Annotated[Celsius, Meta(description="Work stops above.")] = 42.0


class AirTemperature(_Section, frozen=True):
    """Temperature of the air. Without the table it decides nothing."""

    start_min_c: Annotated[Celsius, Meta(description="Work begins at or above.")] = -10.0
    start_max_c: Annotated[Celsius, Meta(description="Work begins at or below.")] = 35.0
    stop_min_c: Annotated[Celsius, Meta(description="Work stops below.")] = -15.0
    stop_max_c: Annotated[Celsius, Meta(description="Work stops above.")] = 40.0


class ComputeTemperature(_Section, frozen=True):
    """Temperature of the computer."""

    start_c: Annotated[Celsius, Meta(description="Work begins at or below.")] = 70.0
    continue_c: Annotated[
        Celsius,
        Meta(description="Above it what is held is finished and nothing new is taken."),
    ] = 78.0
    stop_c: Annotated[Celsius, Meta(description="At or above it everything stops at once.")] = 85.0


class LowVoltage(_Section, frozen=True):
    """The 12 V battery."""

    start_v: Annotated[Volt, Meta(description="Work begins at or above.")] = 12.2
    stop_v: Annotated[Volt, Meta(description="Work stops below.")] = 11.8


class Energy(_Section, frozen=True):
    """What work for others may take and cost. A budget that is left out is none."""

    budget_wh_per_day: Annotated[
        WattHours | None, Meta(description="No more than this a UTC day.")
    ] = None
    budget_wh_per_month: Annotated[
        WattHours | None, Meta(description="No more than this a UTC month.")
    ] = None
    price_max_per_kwh: Annotated[
        Price | None, Meta(description="No work while energy costs more than this.")
    ] = None
    price_per_kwh: Annotated[
        Price | None,
        Meta(description="The price outside every `[[tariff]]`. Unknown counts as too high."),
    ] = None


class Wear(_Section, frozen=True):
    """What the traction battery may give."""

    equivalent_full_cycles_per_year: Annotated[
        Annotated[float, Meta(gt=0, le=limits.POLICY_CYCLES_PER_YEAR_MAX)] | None,
        Meta(description="No more than this a UTC year for work. Left out: no budget."),
    ] = None


class Network(_Section, frozen=True):
    """The car's link. It is metered where the car says so or `network_metered` does."""

    metered: Annotated[
        Literal["stop", "allow"], Meta(description="What a metered link does to work.")
    ] = "stop"
    budget_mb_per_month: Annotated[
        Annotated[float, Meta(gt=0, le=limits.POLICY_BUDGET_MAX_MB)] | None,
        Meta(description="No more data than this a UTC month (1 MB is 1,000,000 bytes)."),
    ] = None


class Allowed(_Section, frozen=True):
    """Who may use the car, for what, with which models and where; an empty list allows all."""

    tenants: Annotated[Names, Meta(description="Accounts.")] = ()
    purposes: Annotated[Names, Meta(description="Purposes, as jobs name them.")] = ()
    models: Annotated[Names, Meta(description="Digests of model packages.")] = ()
    jurisdictions: Annotated[
        Names, Meta(description="The car's own region (`--region`) must be one of these.")
    ] = ()


class OwnerPolicy(_Section, frozen=True):
    """What the owner allows. Every key may be left out; each has the default that is shown."""

    paused: Annotated[
        bool, Meta(description="Stop everything for now, without withdrawing consent.")
    ] = False
    parked_only: Annotated[bool, Meta(description="Work only while parked.")] = True
    empty_only: Annotated[bool, Meta(description="Work only while nobody sits in the car.")] = True
    plugged_only: Annotated[bool, Meta(description="Work only while plugged in.")] = True
    network_metered: Annotated[
        bool, Meta(description="This link is paid by volume, whatever the car says.")
    ] = False
    power_saving_max: Annotated[
        int,
        Meta(ge=0, le=10, description="Work only up to this power saving level of the car."),
    ] = 5
    cycles_per_day_max: Annotated[
        Annotated[int, Meta(ge=1, le=limits.POLICY_CYCLES_PER_DAY_MAX)] | None,
        Meta(description="How often work may begin in a UTC day. Left out: no cap."),
    ] = None
    dwell_s: Annotated[
        float,
        Meta(
            ge=0,
            le=limits.DWELL_MAX_S,
            description="Every condition must be good for so long before work begins (again).",
        ),
    ] = 30.0
    require: Annotated[
        Names,
        Meta(description="Signals without which nothing runs: take out what this car cannot read."),
    ] = CAR_REQUIRES
    time_zone: Annotated[
        str, Meta(max_length=64, description='IANA name for all hours, such as "Europe/Berlin".')
    ] = "UTC"
    consent: Consent = Consent()
    charge: Charge = Charge()
    departure: Departure = Departure()
    battery_temperature: BatteryTemperature = BatteryTemperature()
    compute_temperature: ComputeTemperature = ComputeTemperature()
    ambient_temperature: AirTemperature | None = None
    cabin_temperature: AirTemperature | None = None
    low_voltage: LowVoltage = LowVoltage()
    energy: Energy = Energy()
    wear: Wear = Wear()
    network: Network = Network()
    allowed: Allowed = Allowed()
    schedule: Annotated[
        tuple[Window, ...],
        Meta(
            max_length=limits.POLICY_WINDOWS_MAX,
            description="Hours of work; without any, every hour.",
        ),
    ] = ()
    quiet_hours: Annotated[
        tuple[Window, ...],
        Meta(
            max_length=limits.POLICY_WINDOWS_MAX,
            description="Hours without work, whatever the schedule says.",
        ),
    ] = ()
    tariff: Annotated[
        tuple[TariffWindow, ...],
        Meta(max_length=limits.POLICY_WINDOWS_MAX, description="What energy costs, by the hour."),
    ] = ()

    @property
    def dwell_ns(self) -> int:
        """How long every condition must be good before a hold clears."""
        return round(self.dwell_s * 1e9)

    @property
    def has_hours(self) -> bool:
        """Whether the time of day or week decides anything."""
        return bool(self.schedule or self.quiet_hours) or self.energy.price_max_per_kwh is not None

    @property
    def has_budgets(self) -> bool:
        """Whether what was spent decides anything."""
        energy = self.energy
        return not (
            energy.budget_wh_per_day is None
            and energy.budget_wh_per_month is None
            and self.wear.equivalent_full_cycles_per_year is None
            and self.network.budget_mb_per_month is None
        )


def is_withdrawn(policy: OwnerPolicy | HoldReason) -> bool:
    """Whether the owner, having been asked, does not consent; never having been asked is less."""
    if isinstance(policy, HoldReason):
        return policy is HoldReason.CONSENT_WITHDRAWN
    return not policy.consent.given and policy.consent.version > 0


def time_zone(name: str) -> dt.tzinfo:
    """The zone of an IANA name; UTC needs no zone database. Raises `PolicyError`."""
    if name == "UTC":
        return dt.UTC
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
    _check_together(policy)
    return policy


def load_policy(path: Path) -> OwnerPolicy:
    """Read the policy file. Raises `PolicyError`; a missing file is missing consent."""
    try:
        text = read_small_file(path, limits.POLICY_FILE_MAX_BYTES)
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


def read_small_file(path: Path, max_bytes: int) -> bytes:
    """At most `max_bytes` + 1 bytes of an ordinary file; never waits, whatever lies there.

    Raises `OSError`.
    """
    # A named pipe or a device in the place of a file must not stop the loop that reads it.
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(0, "it is not an ordinary file")
        pieces: list[bytes] = []
        wanted = max_bytes + 1
        while wanted > 0 and (piece := os.read(file, wanted)):
            pieces.append(piece)
            wanted -= len(piece)
        return b"".join(pieces)
    finally:
        os.close(file)


def example_policy() -> str:
    """A complete policy file with every default and what it means; it gives no consent."""
    return _EXAMPLE


def _invalid(message: str) -> PolicyError:
    return PolicyError(HoldReason.POLICY_INVALID, message)


def _readable(error: Exception) -> str:
    """`Expected … - at `$.charge.start_percent`` turned around: field first."""
    message, at, place = str(error).partition(" - at `$")
    return f"{place.strip('.`')}: {message}" if at else message


def _check_levels(policy: OwnerPolicy) -> None:
    """Raise `PolicyError` where a start level is not stricter than its stop level."""
    compute, departure = policy.compute_temperature, policy.departure
    rising: list[tuple[str, float, float]] = [
        ("charge.stop_percent", policy.charge.stop_percent, policy.charge.start_percent),
        (
            "departure.reserve_stop_percent",
            departure.reserve_stop_percent,
            departure.reserve_start_percent,
        ),
        ("compute_temperature.start_c", compute.start_c, compute.continue_c),
        ("compute_temperature.continue_c", compute.continue_c, compute.stop_c),
        ("low_voltage.stop_v", policy.low_voltage.stop_v, policy.low_voltage.start_v),
    ]
    windows: tuple[tuple[str, BatteryTemperature | AirTemperature | None], ...] = (
        ("battery_temperature", policy.battery_temperature),
        ("ambient_temperature", policy.ambient_temperature),
        ("cabin_temperature", policy.cabin_temperature),
    )
    for table, window in windows:
        if window is not None:
            rising += [
                (f"{table}.stop_min_c", window.stop_min_c, window.start_min_c),
                (f"{table}.start_min_c", window.start_min_c, window.start_max_c),
                (f"{table}.start_max_c", window.start_max_c, window.stop_max_c),
            ]
    for field, lower, upper in rising:
        if lower > upper:
            raise _invalid(f"{field}: {lower:g} must be at most {upper:g}, the next level")


def _check_together(policy: OwnerPolicy) -> None:
    """Raise `PolicyError` where two keys contradict each other, or a name is not known."""
    unknown = sorted(set(policy.require) - _SIGNAL_NAMES)
    if unknown:
        raise _invalid(
            f"require: {unknown[0][:64]!r} is no signal; known are "
            f"{', '.join(sorted(_SIGNAL_NAMES))}"
        )
    time_zone(policy.time_zone)
    energy, departure = policy.energy, policy.departure
    day, month = energy.budget_wh_per_day, energy.budget_wh_per_month
    if day is not None and month is not None and month < day:
        raise _invalid(
            f"energy.budget_wh_per_month: {month:g} must be at least energy.budget_wh_per_day, "
            f"{day:g}"
        )
    if energy.price_max_per_kwh is not None and energy.price_per_kwh is None and not policy.tariff:
        raise _invalid(
            "energy.price_max_per_kwh: no price to compare it with; add [[tariff]] or "
            "energy.price_per_kwh"
        )
    reserve_min = departure.reserve_hours * _MINUTES_PER_HOUR
    if 0 < reserve_min <= departure.stop_before_min:
        raise _invalid(
            f"departure.reserve_hours: {reserve_min:g} minutes must be over "
            f"departure.stop_before_min, {departure.stop_before_min:g}, when work has stopped"
        )
    if policy.network_metered and policy.network.metered == "allow":
        raise _invalid(
            'network.metered: "allow" contradicts network_metered = true; take one of them out'
        )


_EXAMPLE: Final = """\
# The owner's policy of this car. Every key may be left out; what is written here are the
# defaults, except that consent is yours to give. A wrong key or value stops all work.

paused = false            # stop everything for now, without withdrawing consent
parked_only = true        # work only while parked
empty_only = true         # work only while nobody sits in the car
plugged_only = true       # work only while plugged in
network_metered = false   # true: this link is paid by volume, so no work
power_saving_max = 5      # work only while the car's power saving level (0 to 10) is at most this
# cycles_per_day_max = 24 # work begins at most so often in a UTC day
dwell_s = 30              # every condition must be good for so long before work begins (again)
time_zone = "UTC"         # of all hours below, for example "Europe/Berlin"
# Signals that must be there and fresh. Take out what this computer cannot read.
require = ["charge_percent", "is_plugged", "is_parked", "is_occupied", "compute_temperature_c"]

[consent]                 # or by command: edge-runtime owner consent, edge-runtime owner withdraw
given = false             # true: you agree that this car works for others
version = 0               # add one whenever you change your mind
# date = 2026-11-22       # the day of that decision

[charge]                  # traction battery, percent
start_percent = 60        # work begins at or above
stop_percent = 50         # work stops below

[departure]               # the next departure, where the car tells it
stop_before_min = 30      # no work from so many minutes before
late_min = 30             # a departure that has passed still counts for so long
reserve_hours = 0         # from so many hours before, the reserve must be there; 0: never
reserve_start_percent = 90  # work then begins at or above
reserve_stop_percent = 85 # and stops below
conditioning = "allow"    # "stop": no work while the car conditions its battery

[battery_temperature]     # hottest cell, Celsius
start_min_c = 5           # work begins between these two
start_max_c = 35
stop_min_c = 0            # and stops outside these two
stop_max_c = 42

[compute_temperature]     # the computer, Celsius
start_c = 70              # work begins at or below
continue_c = 78           # no new work above
stop_c = 85               # everything stops at or above

# [ambient_temperature]   # the air outside, Celsius; without the table it decides nothing
# start_min_c = -10
# start_max_c = 35
# stop_min_c = -15
# stop_max_c = 40

# [cabin_temperature]     # the air inside, Celsius; without the table it decides nothing
# start_min_c = -10
# start_max_c = 35
# stop_min_c = -15
# stop_max_c = 40

[low_voltage]             # 12 V battery, volts
start_v = 12.2
stop_v = 11.8

[energy]
# budget_wh_per_day = 500 # no more than this per UTC day
# budget_wh_per_month = 9000 # no more than this per UTC month
# price_max_per_kwh = 0.25 # no work while energy costs more
# price_per_kwh = 0.30    # the price outside every [[tariff]] below

[wear]
# equivalent_full_cycles_per_year = 5 # of the traction battery, for work

[network]
metered = "stop"          # "allow": work also where the link is paid by volume
# budget_mb_per_month = 500 # no more data than this per UTC month

[allowed]                 # empty allows all
tenants = []
purposes = []
models = []               # digests of model packages
jurisdictions = []        # the car's own region must be one of these

# Hours of work; without any, every hour. An end before the start lies on the next day.
# [[schedule]]
# days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
# start = "22:00"
# end = "06:00"

# Hours without work, whatever the schedule says.
# [[quiet_hours]]
# start = "12:00"
# end = "13:00"

# What energy costs; price_max_per_kwh of [energy] decides.
# [[tariff]]
# start = "23:00"
# end = "05:00"
# price_per_kwh = 0.18
"""
