"""The signals a car reports, each bound to its VSS 6.0 path, unit and valid range.

Names and units are those of the COVESA Vehicle Signal Specification 6.0: percent is 0 to 100,
temperatures are Celsius. `Signals` is the wire form: one field per signal that travels, None where
the car has no such reading. The order of its fields is the wire order and is append-only.

Invariants
- A local signal (`is_local`) decides on the car and never leaves it: when somebody drives off and
  how warm the cabin is say more about people than about a computer.
- `datatype` is that of a reading here. Where VSS has another (a list of words, a point in time),
  the source translates; `docs/reference/signals.md` says how.
"""

from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec

from edge_runtime.contract.clock import PLAUSIBLE_UTC_MS

_TB = "Vehicle.Powertrain.TractionBattery"
_HEALTH = "Vehicle.ControlUnit.Central.Health.Resources"

Uint8 = Annotated[int, msgspec.Meta(ge=0, le=255)]
Value = float | bool | int | None
"""One reading; None says that the car has no such reading, never that it is zero."""
Values = dict[str, Value]
"""Readings of one moment by signal name."""
VssDatatype = Literal["float", "boolean", "uint8", "uint32"]


@dataclass(frozen=True, slots=True)
class VssSignal:
    """One row of the binding table; `minimum` and `maximum` bound a plausible reading.

    `is_local`: it never leaves the car. `is_overlay`: VSS 6.0 has no such signal, the path is this
    project's own, under the branch that VSS leaves to everybody.
    """

    name: str
    path: str
    datatype: VssDatatype
    unit: str
    minimum: float
    maximum: float
    is_local: bool = False
    is_overlay: bool = False


class Signals(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """Readings of one moment; None means this car has no reading (never zero).

    `is_parked` is the conjunction the car's sensors made of park lock, gear and brake.
    """

    charge_percent: float | None = None
    battery_temperature_c: float | None = None
    battery_power_w: float | None = None
    is_plugged: bool | None = None
    is_charging: bool | None = None
    is_parked: bool | None = None
    is_occupied: bool | None = None
    ambient_temperature_c: float | None = None
    compute_temperature_c: float | None = None
    compute_power_w: float | None = None
    compute_load_percent: float | None = None
    low_voltage_v: float | None = None
    power_saving_level: Uint8 | None = None


SIGNALS: Final[tuple[VssSignal, ...]] = (
    VssSignal("charge_percent", f"{_TB}.StateOfCharge.Displayed", "float", "percent", 0, 100),
    VssSignal("battery_temperature_c", f"{_TB}.Temperature.Max", "float", "Celsius", -60, 120),
    VssSignal("battery_power_w", f"{_TB}.CurrentPower", "float", "W", -1e6, 1e6),
    VssSignal(
        "is_plugged",
        f"{_TB}.Charging.ChargingPort.AnyPosition.IsChargingCableConnected",
        "boolean",
        "",
        0,
        1,
    ),
    VssSignal("is_charging", f"{_TB}.Charging.IsCharging", "boolean", "", 0, 1),
    VssSignal(
        "is_parked", "Vehicle.Powertrain.Transmission.IsParkLockEngaged", "boolean", "", 0, 1
    ),
    VssSignal(
        "is_occupied", "Vehicle.Cabin.Seat.Row1.DriverSide.OccupancyStatus", "boolean", "", 0, 1
    ),
    VssSignal(
        "ambient_temperature_c", "Vehicle.Exterior.AirTemperature", "float", "Celsius", -90, 90
    ),
    VssSignal("compute_temperature_c", f"{_HEALTH}.Temperature", "float", "Celsius", -60, 150),
    VssSignal("compute_power_w", f"{_HEALTH}.Power", "float", "W", 0, 10_000),
    VssSignal("compute_load_percent", f"{_HEALTH}.Utilization.CPU", "float", "percent", 0, 100),
    VssSignal("low_voltage_v", "Vehicle.LowVoltageBattery.CurrentVoltage", "float", "V", 0, 60),
    VssSignal("power_saving_level", "Vehicle.PowerOptimizeLevel", "uint8", "", 0, 10),
    VssSignal(
        "departure_utc_s",
        f"{_TB}.Charging.Timer.Time",
        "uint32",
        "s",
        PLAUSIBLE_UTC_MS // 1000,
        2**32 - 1,
        is_local=True,
    ),
    VssSignal(
        "cabin_temperature_c",
        "Vehicle.Cabin.HVAC.AmbientAirTemperature",
        "float",
        "Celsius",
        -90,
        110,
        is_local=True,
    ),
    VssSignal(
        "battery_energy_kwh",
        f"{_TB}.StateOfCharge.CurrentEnergy",
        "float",
        "kWh",
        0,
        2_000,
        is_local=True,
    ),
    VssSignal(
        "battery_health_percent",
        f"{_TB}.StateOfHealth",
        "float",
        "percent",
        0,
        100,
        is_local=True,
    ),
    VssSignal(
        "is_conditioning",
        f"{_TB}.BatteryConditioning.IsOngoing",
        "boolean",
        "",
        0,
        1,
        is_local=True,
    ),
    VssSignal(
        "is_network_metered",
        "Vehicle.Private.EdgeRuntime.IsNetworkMetered",
        "boolean",
        "",
        0,
        1,
        is_local=True,
        is_overlay=True,
    ),
)
"""Wire signals first, in the order of the fields of `Signals`; then the local ones.

`departure_utc_s` is when the owner has told the charging timer to be ready, whole seconds UTC; it
may lie in the past, and there is none unless the timer's mode is END_TIME."""

WIRE_SIGNALS: Final = tuple(signal for signal in SIGNALS if not signal.is_local)
"""The signals that a car reports: the fields of `Signals`, in order."""
