"""The signals a car reports, each bound to its VSS 6.0 path, unit and valid range.

Names and units are those of the COVESA Vehicle Signal Specification 6.0: percent is 0 to 100,
temperatures are Celsius. `Signals` is the wire form: one field per signal, None where the car
has no such reading. The order of its fields is the wire order and is append-only.
"""

from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec

_TB = "Vehicle.Powertrain.TractionBattery"
_HEALTH = "Vehicle.ControlUnit.Central.Health.Resources"

Uint8 = Annotated[int, msgspec.Meta(ge=0, le=255)]
VssDatatype = Literal["float", "boolean", "uint8"]


@dataclass(frozen=True, slots=True)
class VssSignal:
    """One row of the binding table; `minimum` and `maximum` bound a plausible reading."""

    name: str
    path: str
    datatype: VssDatatype
    unit: str
    minimum: float
    maximum: float


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
)
