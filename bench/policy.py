"""What one look at the owner's policy costs: every signal fresh, every rule in use, all windows.

The car looks at every sensor edge and at least once a second. Measured is `Admission.decide`, in
processor time, once a second for hours of a car's life, on the largest policy that a file may hold
(64 windows each of schedule, quiet hours and tariff, every table and budget). The first look of a
minute reads the calendar and is shown apart too.
"""

import gc
import statistics
import time
from typing import Any, Final

from _rig import Load, figure, say

from edge_runtime.contract import limits
from edge_runtime.contract.clock import Now
from edge_runtime.vehicle.core.admission import Admission, Circumstances, Ready
from edge_runtime.vehicle.core.readings import Readings
from edge_runtime.vehicle.policy import (
    AirTemperature,
    Allowed,
    Consent,
    Departure,
    Energy,
    Network,
    OwnerPolicy,
    TariffWindow,
    Wear,
    Window,
)

MINUTES: Final = 300
LOOKS_PER_MINUTE: Final = 60
BOUND_US: Final = 200.0
PERCENTILE: Final = 0.99
NS_PER_US: Final = 1_000
BEGIN: Final = Now(1_000_000_000_000, 1_795_300_020_000)
SECOND: Final = Now(1_000_000_000, 1_000)
WINDOWS: Final = limits.POLICY_WINDOWS_MAX
SIGNALS: Final[dict[str, Any]] = {
    "charge_percent": 95.0,
    "battery_temperature_c": 20.0,
    "is_plugged": True,
    "is_parked": True,
    "is_occupied": False,
    "ambient_temperature_c": 15.0,
    "compute_temperature_c": 50.0,
    "low_voltage_v": 12.8,
    "power_saving_level": 0,
    "departure_utc_s": BEGIN.utc_ms // 1000 + 30 * 24 * 3600,
    "cabin_temperature_c": 20.0,
    "is_conditioning": False,
    "is_network_metered": False,
}


def largest() -> OwnerPolicy:
    """A policy with everything in it, under which the car may work."""
    quiet = Window(start="00:00", end="00:01", days=("fri",))  # it begins on a Sunday
    hours = Window(start="00:00", end="00:00")
    return OwnerPolicy(
        consent=Consent(given=True, version=1),
        dwell_s=0,
        time_zone="Europe/Berlin",
        cycles_per_day_max=limits.POLICY_CYCLES_PER_DAY_MAX,
        ambient_temperature=AirTemperature(),
        cabin_temperature=AirTemperature(),
        departure=Departure(reserve_hours=8, conditioning="stop"),
        energy=Energy(
            budget_wh_per_day=500, budget_wh_per_month=9_000, price_max_per_kwh=1, price_per_kwh=1
        ),
        wear=Wear(equivalent_full_cycles_per_year=5),
        network=Network(budget_mb_per_month=500),
        allowed=Allowed(jurisdictions=("eu", "default")),
        # The window that counts comes last: all of them are looked at.
        schedule=(quiet,) * (WINDOWS - 1) + (hours,),
        quiet_hours=(quiet,) * WINDOWS,
        tariff=(TariffWindow(start="00:00", end="00:00", price_per_kwh=0.5),) * WINDOWS,
    )


class Look:
    """One car's admission and the world that it looks at."""

    def __init__(self) -> None:
        self.admission = Admission()
        self.readings = Readings()
        self.around = Circumstances(largest(), self.readings, True, 1.0, 1.0, 1.0, 1.0)
        self.now = BEGIN

    def second(self) -> int:
        """A second passes, everything is read again; nanoseconds that one look took."""
        self.now = Now(self.now.boot_ns + SECOND.boot_ns, self.now.utc_ms + SECOND.utc_ms)
        self.readings.update(SIGNALS, self.now.boot_ns)
        start_ns = time.thread_time_ns()
        decision = self.admission.decide(self.now, self.around)
        took_ns = time.thread_time_ns() - start_ns
        assert isinstance(decision, Ready)
        return took_ns


def p99(values: list[float]) -> float:
    """The 99th percentile."""
    return sorted(values)[int(len(values) * PERCENTILE)]


def main() -> None:
    """Measure and print."""
    look = Look()
    look.second()
    gc.collect()
    gc.disable()
    with Load() as load:
        took_us = [look.second() / NS_PER_US for _ in range(MINUTES * LOOKS_PER_MINUTE)]
    gc.enable()
    # The first of these looks is two seconds into a minute.
    first_us = took_us[LOOKS_PER_MINUTE - 2 :: LOOKS_PER_MINUTE]
    rules = look.admission.last.findings if look.admission.last else ()
    say(f"policy: {len(rules)} rules, {3 * WINDOWS} windows, {len(took_us)} looks")
    figure(
        "policy_look_us_p99",
        p99(took_us),
        "us",
        f"<= {BOUND_US:g}",
        shared="one process on one core",
        median_us=round(statistics.median(took_us), 1),
        max_us=round(max(took_us), 1),
        first_of_a_minute_us_median=round(statistics.median(first_us), 1),
        first_of_a_minute_us_p99=round(p99(first_us), 1),
        rules=len(rules),
        windows=3 * WINDOWS,
        **load.facts(),
    )


if __name__ == "__main__":
    main()
