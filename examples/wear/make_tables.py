"""Make the wear tables that a car carries, from published cell ageing models (BLAST-Lite).

    python3 -m venv wear-venv && wear-venv/bin/pip install -r examples/wear/requirements.txt
    wear-venv/bin/python examples/wear/make_tables.py > edge_runtime/vehicle/energy/wear.json

Takes about a minute. What it computes, and what that does not say, is in
`docs/explanation/wear.md`.

Cycling: two lives of `YEARS` years of one car, the same but for one thing: in the second, the
pack also gives `WORK` of its capacity each day while the car is parked, and is charged again in
the evening. The difference of their cycling fades, divided by the difference of their equivalent
full cycles, is the wear of one equivalent full cycle of work. That less charge stands in the pack
for some hours, which most models reward, is not credited.

Storage: the fade of a pack that stands still, between half a year before and after `AGE_YEARS`.
"""

import importlib.metadata
import json
import sys
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from blast import models

YEARS: Final = 5
AGE_YEARS: Final = 3
DRIVE: Final = 0.15
"""Of the capacity, driven each day: half in the morning, half in the evening."""
WORK: Final = 0.06
"""Of the capacity, given to work each day: 300 W for 12 hours out of 60 kWh."""
TEMPERATURES_C: Final = (0, 10, 20, 30, 40, 50)
CHARGES_PERCENT: Final = (50, 75, 100)
SECONDS_PER_DAY: Final = 86_400
STEP_MAX: Final = 1e-2
"""A day that costs more is an artefact of the model, not ageing."""

Cell = tuple[str, Callable[[], Any], str, str]
CELLS: Final[tuple[Cell, ...]] = (
    (
        "lfp",
        models.Lfp_Gr_250AhPrismatic,
        "LFP-graphite, 250 Ah prismatic",
        "https://doi.org/10.1016/j.est.2023.109042",
    ),
    (
        "nmc622",
        models.Nmc622_Gr_DENSO50Ah_Battery,
        "NMC622-graphite, DENSO 50 Ah of an electric car",
        "https://doi.org/10.1149/1945-7111/ac2ebd",
    ),
    (
        "nmc811",
        models.Nmc811_GrSi_LGMJ1_4Ah_Battery,
        "NMC811-graphite/silicon, LG MJ1 18650",
        "EVERLASTING D2.3, everlasting-project.eu (2020)",
    ),
    (
        "nca",
        models.Nca_Gr_Panasonic3Ah_Battery,
        "NCA-graphite, Panasonic NCR18650B",
        "https://doi.org/10.1149/2.0411609jes and https://doi.org/10.1149/1945-7111/abae37",
    ),
)

Floats = np.ndarray[Any, np.dtype[np.float64]]


def day(charge_percent: float, drive: float, work: float) -> tuple[Floats, Floats]:
    """(seconds, state of charge 0 to 1) of one day that ends as it began."""
    hours = np.arange(0, 24.01, 0.25)
    given = (
        np.clip(hours - 8, 0, 1) * drive / 2
        + np.clip((hours - 9) / 9, 0, 1) * work
        + np.clip(hours - 18, 0, 1) * drive / 2
    )
    charged = np.clip((hours - 21) / 2, 0, 1) * (drive + work)
    return hours * 3600, charge_percent / 100 - given + charged


def live(
    cell: Callable[[], Any], temperature_c: float, soc: tuple[Floats, Floats], years: float
) -> Any:
    """The cell after so many years of the same day."""
    battery = cell()
    seconds, charge = soc
    battery.simulate_battery_life(
        {
            "Time_s": seconds,
            "SOC": charge,
            "Temperature_C": np.full_like(charge, temperature_c),
        },
        threshold_time=years,
        is_constant_input=True,
    )
    steps = -np.diff(battery.outputs["q"])
    if np.max(steps[1:]) > STEP_MAX:
        raise RuntimeError(f"{cell}: a day costs {np.max(steps[1:]):.3g} at {temperature_c} C")
    return battery


def cycle_percent(cell: Callable[[], Any], temperature_c: float, charge_percent: float) -> float:
    """Percent of capacity for one equivalent full cycle of work."""
    without, with_work = (
        live(cell, temperature_c, day(charge_percent, DRIVE, work), YEARS) for work in (0.0, WORK)
    )
    fade = without.outputs["q_EFC"][-1] - with_work.outputs["q_EFC"][-1]
    cycles = with_work.stressors["efc"][-1] - without.stressors["efc"][-1]
    return float(100 * fade / cycles)


def calendar_percent(cell: Callable[[], Any], temperature_c: float, charge_percent: float) -> float:
    """Percent of capacity for one day of standing, at the age of `AGE_YEARS`."""
    standing = day(charge_percent, 0.0, 0.0)
    battery = live(cell, temperature_c, standing, AGE_YEARS + 0.5)
    days = battery.stressors["t_days"]
    first = int(np.searchsorted(days, (AGE_YEARS - 0.5) * 365))
    fade = battery.outputs["q"][first] - battery.outputs["q"][-1]
    return float(100 * fade / (days[-1] - days[first]))


def table(of: Callable[[float, float], float]) -> list[list[float]]:
    """Rows of temperatures, columns of charges, three significant digits."""
    return [
        [float(f"{of(temperature, charge):.3g}") for charge in CHARGES_PERCENT]
        for temperature in TEMPERATURES_C
    ]


def main() -> None:
    """Print the tables."""
    # The models divide by the time that a pack is not cycled; they then use what is not NaN.
    warnings.simplefilter("ignore")
    cells = {}
    for name, cell, title, source in CELLS:
        print(name, file=sys.stderr)
        cells[name] = {
            "title": title,
            "source": source,
            "cycle_percent_per_efc": table(lambda t, c, cell=cell: cycle_percent(cell, t, c)),
            "calendar_percent_per_day": table(lambda t, c, cell=cell: calendar_percent(cell, t, c)),
        }
    version = importlib.metadata.version("blast-lite")
    document = {
        "made": datetime.now(UTC).date().isoformat(),
        "by": f"examples/wear/make_tables.py, BLAST-Lite {version}",
        "temperatures_c": TEMPERATURES_C,
        "charges_percent": CHARGES_PERCENT,
        "cells": cells,
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
