"""Makes the three recorded days beside this file: trips and energy by emobpy, the rest by physics.

Not a dependency of anything. emobpy 0.6.2 is of 2021 and wants libraries of its time:

    python3.11 -m venv emobpy-venv
    emobpy-venv/bin/pip install emobpy==0.6.2 pandas==1.5.3 numpy==1.26.4
    emobpy-venv/bin/python examples/traces/make_traces.py

From emobpy (MIT), each with a seed: when the car leaves, how far and how long it drives (German
mobility statistics), what a Volkswagen ID.3 of 2020 uses for it (driving cycles, heating, and the
weather of that hour), and the hourly air temperatures in Germany of 2016 (ERA5, moved to the same
day of 2026). From this file: what a mobility model does not know. README.md lists the constants.
"""

import csv
import math
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

HERE = Path(__file__).parent
LOCAL = ZoneInfo("Europe/Berlin")
WEATHER_YEAR = 2016
DAY_S = 24 * 3600
COLUMNS = (
    "utc_s",
    "charge_percent",
    "battery_temperature_c",
    "battery_power_w",
    "is_plugged",
    "is_charging",
    "is_parked",
    "is_occupied",
    "ambient_temperature_c",
    "compute_temperature_c",
    "compute_load_percent",
    "low_voltage_v",
    "power_saving_level",
    "departure_utc_s",
    "cabin_temperature_c",
    "battery_energy_kwh",
    "battery_health_percent",
    "is_conditioning",
    "is_network_metered",
)

FAR_KM = 100.0
HEALTH_PERCENT = 96.0
BOARDING_S, LEAVING_S = 45, 30
PACK_J_PER_K, PACK_W_PER_K = 3.4e5, 10.0
LOSS_SHARE = 0.03
COOLING_ABOVE_C, COOLING_W = 32.0, 2_500.0
HEATER_W, HEATED_TO_C, HEATED_BELOW_C, HEATER_LEAD_S = 3_000.0, 15.0, 8.0, 40 * 60
CABIN_PARKED_S, CABIN_DRIVEN_S, CABIN_WANTED_C, CABIN_LEAD_S = 1_800.0, 420.0, 21.0, 15 * 60
COMPUTE_IDLE_RISE_C, COMPUTE_DRIVEN_RISE_C, COMPUTE_S = 9.0, 24.0, 600.0
IDLE_LOAD_PERCENT, DRIVEN_LOAD_PERCENT = 2.0, 35.0
FAST_W, FAST_FULL_TO_PERCENT, FAST_END_PERCENT, FAST_END_W = 100_000.0, 45.0, 80.0, 45_000.0
FAST_STOP_BELOW_PERCENT = 15.0
CHARGE_EFFICIENCY = 0.9


@dataclass(frozen=True)
class Day:
    """One trace to make. `far_only` draws every trip from the class over 100 km."""

    name: str
    date: str
    seed: int
    rule: str
    destinations: str
    start_percent: float
    limit_percent: float
    home_w: float
    work_w: float = 0.0
    far_only: bool = False


DAYS = (
    Day("commute", "2026-03-09", 1, "fulltime", "Worker", 62.0, 80.0, 11_000.0, 11_000.0),
    Day("winter", "2026-01-19", 3, "fulltime", "Worker", 58.0, 80.0, 3_700.0),
    Day("long-trip", "2026-07-18", 2, "user_defined", "Free", 94.0, 100.0, 11_000.0, far_only=True),
)


@dataclass
class Trip:
    """Seconds of the local day, energy in J, and where it ends."""

    starts_s: int
    ends_s: int
    joule: float
    purpose: str
    stops: list[tuple[int, int]] = field(default_factory=list)

    @property
    def drives_s(self) -> int:
        """Without the stops."""
        return self.ends_s - self.starts_s - sum(end - start for start, end in self.stops)


# --- what emobpy says ----------------------------------------------------------------------


def prepare(folder: Path, day: Day) -> None:
    """Statistics of emobpy, and its rules of a worker and of anyone, in one folder."""
    import emobpy  # noqa: PLC0415 - after XDG_DATA_HOME is set

    data = Path(emobpy.__file__).parent / "data"
    shutil.copytree(data / "eg2/config_files", folder / "config_files")
    worker = (data / "eg1/config_files/rules.yml").read_text().rstrip()
    anyone = (data / "base/config_files/rules.yml").read_text().strip()
    (folder / "config_files/rules.yml").write_text(f"{worker[:-1]},\n{anyone[1:]}\n")
    if day.far_only:
        far = folder / "config_files/DistanceDurationTrip.csv"
        header, *rows = list(csv.reader(far.open()))
        share = sum(float(one) for km, *row in rows for one in row if float(km) > FAR_KM)
        kept = [
            [km, *(float(one) / share if float(km) > FAR_KM else 0.0 for one in row)]
            for km, *row in rows
        ]
        with far.open("w", newline="") as file:
            csv.writer(file).writerows([header, *kept])
        trips = folder / "config_files/TripsPerDay.csv"
        rows = list(csv.reader(trips.open()))
        both = [[n, *("1" if n == "2" else "0" for _ in row)] for n, *row in rows[1:]]
        with trips.open("w", newline="") as file:
            csv.writer(file).writerows([rows[0], *both])


def driven(day: Day) -> tuple[list[Any], float]:
    """The first day's rows of emobpy's profile with energy, and the pack's size in kWh."""
    from emobpy import (  # noqa: PLC0415 - after XDG_DATA_HOME is set
        BEVspecs,
        Consumption,
        DataBase,
        HeatInsulation,
        Mobility,
        copy_to_user_data_dir,
    )
    from emobpy.tools import set_seed  # noqa: PLC0415 - as above

    copy_to_user_data_dir()
    set_seed(day.seed)
    mobility = Mobility()
    mobility.set_params(day.name, 48, 0.25, "user_defined", day.date)
    mobility.set_stats(
        "TripsPerDay.csv",
        f"DepartureDestinationTrip_{day.destinations}.csv",
        "DistanceDurationTrip.csv",
    )
    mobility.set_rules(day.rule)
    mobility.run()
    mobility.save_profile("db")
    database = DataBase("db")
    database.loadfiles_batch(kind="driving")
    car = BEVspecs().model(("Volkswagen", "ID.3", 2020))
    consumption = Consumption(next(iter(database.db)), car)
    consumption.load_setting_mobility(database)
    consumption.run(
        heat_insulation=HeatInsulation(True),
        weather_country="DE",
        weather_year=WEATHER_YEAR,
        passenger_mass=75,
        passenger_sensible_heat=70,
        passenger_nr=1.5,
        air_cabin_heat_transfer_coef=20,
        air_flow=0.02,
        driving_cycle_type="WLTC",
        road_type=0,
        road_slope=0,
    )
    rows = [row for row in consumption.profile.to_dict("records") if row["hr"] < DAY_S / 3600]
    return rows, float(car.parameters["battery_cap"])


def trips_of(day: Day, rows: list[Any]) -> list[Trip]:
    """Trips at the second: emobpy's quarter of an hour, and a seeded moment within it."""
    rng = random.Random(day.seed)  # noqa: S311 - a seeded day, not a secret
    purposes = [row["state"] for row in rows]
    trips = []
    for place, row in enumerate(rows):
        if row["state"] != "driving":
            continue
        starts_s = round(row["hr"] * 3600) + rng.randrange(0, 600)
        lasts_s = max(300, round(row["trip_duration"] * 60))
        purpose = purposes[place + 1] if place + 1 < len(purposes) else "home"
        trips.append(Trip(starts_s, starts_s + lasts_s, row["consumption kWh"] * 3.6e6, purpose))
        km, kwh = row["distance"], row["consumption kWh"]
        print(f"  {row['hr']:5.2f} h, {km:.0f} km, {kwh:.1f} kWh, to {purpose}")
    return trips


def temperatures(day: Day) -> list[float]:
    """Celsius, hour by hour of the local day, from the same UTC hours of the weather's year."""
    import emobpy  # noqa: PLC0415 - after XDG_DATA_HOME is set

    file = Path(emobpy.__file__).parent / "data/ERA5-hourly-t2m.csv"
    with file.open() as lines:
        kelvin = {row["date"][:13]: float(row["DE"]) for row in csv.DictReader(lines)}
    midnight = datetime.fromisoformat(day.date).replace(tzinfo=LOCAL)
    hours = [midnight + timedelta(hours=hour) for hour in range(26)]
    utc = [hour.astimezone(ZoneInfo("UTC")).replace(year=WEATHER_YEAR) for hour in hours]
    return [kelvin[f"{hour:%Y-%m-%d %H}"] - 273.15 for hour in utc]


# --- what it does not say ------------------------------------------------------------------


@dataclass
class Car:
    """The state that physics moves, second by second."""

    day: Day
    pack_j: float
    air_c: list[float]
    trips: list[Trip]
    energy_j: float = 0.0
    pack_c: float = 0.0
    cabin_c: float = 0.0
    compute_c: float = 0.0
    parked_s: float = 6 * 3600.0
    place: str = "home"
    power_w: float = 0.0
    heater_w: float = 0.0

    def __post_init__(self) -> None:
        self.energy_j = self.pack_j * self.day.start_percent / 100
        self.pack_c = self.air_c[0] + 4
        self.cabin_c = self.air_c[0] + 1
        self.compute_c = self.cabin_c + COMPUTE_IDLE_RISE_C

    @property
    def percent(self) -> float:
        """State of charge."""
        return 100 * self.energy_j / self.pack_j

    def air_at(self, second: int) -> float:
        """Between two hours' temperatures."""
        hour, rest = divmod(second, 3600)
        return self.air_c[hour] + (self.air_c[hour + 1] - self.air_c[hour]) * rest / 3600

    def trip_at(self, second: int) -> Trip | None:
        """The trip that is being driven, stops included."""
        return next((trip for trip in self.trips if trip.starts_s <= second < trip.ends_s), None)

    def next_departure(self, second: int) -> int | None:
        """When the owner will leave home next, where the car stands there."""
        if self.trip_at(second) is not None:
            return None
        later = [trip.starts_s for trip in self.trips if trip.starts_s > second]
        return min(later, default=None) if self.place == "home" else None

    def step(self, second: int) -> dict[str, Any]:
        """One second: the world moves the car, and the car is read."""
        trip, air_c = self.trip_at(second), self.air_at(second)
        is_stopped = trip is not None and any(start <= second < end for start, end in trip.stops)
        is_driving = trip is not None and not is_stopped
        if trip is not None and second == trip.ends_s - 1:
            self.place = trip.purpose
        charger_w = self._charger_w(trip, is_stopped=is_stopped)
        self._heat_pack(second, charger_w)
        self._move_energy(trip if is_driving else None, charger_w)
        self._move_heat(second, air_c, is_driving=is_driving, is_fast=is_stopped)
        self.parked_s = 0.0 if is_driving else self.parked_s + 1
        leaves = self.next_departure(second)
        charging = charger_w > 0 and self.power_w > 0
        return {
            "charge_percent": round(self.percent, 1),
            "battery_temperature_c": round(self.pack_c, 1),
            "battery_power_w": round(self.power_w, -1),
            "is_plugged": charger_w > 0,
            "is_charging": charging,
            "is_parked": not is_driving,
            "is_occupied": self._is_occupied(second, trip),
            "ambient_temperature_c": round(air_c, 1),
            "compute_temperature_c": round(self.compute_c, 1),
            "compute_load_percent": DRIVEN_LOAD_PERCENT if is_driving else IDLE_LOAD_PERCENT,
            "low_voltage_v": self._low_voltage(air_c, is_fed=is_driving or charging),
            "power_saving_level": 0,
            "departure_utc_s": None if leaves is None else self.utc_s(leaves),
            "cabin_temperature_c": round(self.cabin_c, 1),
            "battery_energy_kwh": round(self.energy_j * HEALTH_PERCENT / 100 / 3.6e6, 1),
            "battery_health_percent": HEALTH_PERCENT,
            "is_conditioning": self.heater_w > 0,
            "is_network_metered": self.place != "home" or trip is not None,
        }

    def utc_s(self, second: int) -> int:
        """Of a second of the local day."""
        midnight = datetime.fromisoformat(self.day.date).replace(tzinfo=LOCAL)
        return round(midnight.timestamp()) + second

    def _charger_w(self, trip: Trip | None, *, is_stopped: bool) -> float:
        """What the place offers; 0 where the car is not plugged in."""
        if is_stopped:
            return FAST_W
        if trip is not None:
            return 0.0
        return {"home": self.day.home_w, "workplace": self.day.work_w}.get(self.place, 0.0)

    def _heat_pack(self, second: int, charger_w: float) -> None:
        """A plugged car warms its cold pack before a departure."""
        leaves = self.next_departure(second)
        is_soon = leaves is not None and leaves - second <= HEATER_LEAD_S
        goal_c = HEATED_TO_C if self.heater_w else HEATED_BELOW_C
        self.heater_w = HEATER_W if is_soon and charger_w and self.pack_c < goal_c else 0.0

    def _move_energy(self, trip: Trip | None, charger_w: float) -> None:
        if trip is not None:
            self.power_w = -trip.joule / trip.drives_s
        elif self.percent >= self.day.limit_percent or not charger_w:
            self.power_w = 0.0
        elif charger_w == FAST_W:
            self.power_w = fast_w(self.percent)
        else:
            # A frozen pack takes little.
            self.power_w = charger_w * CHARGE_EFFICIENCY * (0.5 if self.pack_c < 0 else 1.0)
        self.energy_j = min(self.pack_j, max(0.0, self.energy_j + self.power_w))

    def _move_heat(self, second: int, air_c: float, *, is_driving: bool, is_fast: bool) -> None:
        loss_w = abs(self.power_w) * LOSS_SHARE * (0.6 if is_fast else 1.0)
        is_cooled = (is_driving or is_fast) and self.pack_c > COOLING_ABOVE_C
        cooling_w = COOLING_W if is_cooled else 0.0
        through_w = PACK_W_PER_K * (air_c - self.pack_c)
        self.pack_c += (loss_w + self.heater_w + through_w - cooling_w) / PACK_J_PER_K
        leaves = self.next_departure(second)
        is_readied = leaves is not None and leaves - second <= CABIN_LEAD_S
        if is_driving or is_readied:
            self.cabin_c += (CABIN_WANTED_C - self.cabin_c) / CABIN_DRIVEN_S
        else:
            sun = max(0.0, math.sin(math.pi * (second / 3600 - 6) / 13)) if second > 6 * 3600 else 0
            sun_c = sun * (14 if max(self.air_c) > 15 else 5)  # noqa: PLR2004 - a summer's sun
            self.cabin_c += (air_c + sun_c - self.cabin_c) / CABIN_PARKED_S
        rise_c = COMPUTE_DRIVEN_RISE_C if is_driving else COMPUTE_IDLE_RISE_C
        self.compute_c += (self.cabin_c + rise_c - self.compute_c) / COMPUTE_S

    def _is_occupied(self, second: int, trip: Trip | None) -> bool:
        around = any(t.starts_s - BOARDING_S <= second < t.ends_s + LEAVING_S for t in self.trips)
        away = trip is not None and any(
            start + LEAVING_S <= second < end - BOARDING_S for start, end in trip.stops
        )
        return around and not away

    def _low_voltage(self, air_c: float, *, is_fed: bool) -> float:
        """14.2 V from the converter; at rest a lead battery sinks slowly, lower in the cold."""
        if is_fed:
            return 14.2
        rest_v = 12.75 - 0.006 * max(0.0, 15 - air_c)
        return round(rest_v + 0.5 * math.exp(-self.parked_s / 900), 2)


def fast_w(percent: float) -> float:
    """A direct-current charger: full power first, then less and less."""
    if percent <= FAST_FULL_TO_PERCENT:
        return FAST_W
    share = (percent - FAST_FULL_TO_PERCENT) / (FAST_END_PERCENT - FAST_FULL_TO_PERCENT)
    return FAST_W - share * (FAST_W - FAST_END_W)


def add_fast_stops(day: Day, trips: list[Trip], pack_j: float) -> None:
    """Where a trip would empty the pack, a stop that fills it to 80 %; later trips wait for it."""
    energy_j, delay_s = pack_j * day.start_percent / 100, 0
    for trip in trips:
        trip.starts_s, trip.ends_s = trip.starts_s + delay_s, trip.ends_s + delay_s
        second, rate = trip.starts_s, trip.joule / (trip.ends_s - trip.starts_s)
        while second < trip.ends_s:
            energy_j -= rate
            second += 1
            if 100 * energy_j / pack_j < FAST_STOP_BELOW_PERCENT and trip.ends_s - second > 300:  # noqa: PLR2004 - who is nearly there drives on
                starts_s = second
                while 100 * energy_j / pack_j < FAST_END_PERCENT:
                    energy_j += fast_w(100 * energy_j / pack_j)
                    second += 1
                trip.stops.append((starts_s, second))
                trip.ends_s += second - starts_s
                delay_s += second - starts_s


def readings(car: Car) -> Iterator[dict[str, Any]]:
    """A row a minute, and one at each second at which a yes or no changes."""
    flags: tuple[Any, ...] = ()
    last: dict[str, Any] = {}
    for second in range(DAY_S + 1):
        row = car.step(min(second, DAY_S - 1))
        now = tuple(row[name] for name in COLUMNS[1:] if name.startswith("is_"))
        is_due = second % 60 == 0 and row != last
        if now != flags or is_due or second == DAY_S:
            flags, last = now, row
            yield {"utc_s": car.utc_s(second)} | row


def written(value: Any) -> str:
    """A cell: empty for no reading, true and false in words, and no needless zero."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else f"{value:.10g}"


def make(day: Day) -> None:
    """One day into one file."""
    print(f"{day.name}: {day.date}")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        prepare(Path(folder), day)
        rows, pack_kwh = driven(day)
        os.chdir(HERE)
    trips, pack_j = trips_of(day, rows), pack_kwh * 3.6e6
    add_fast_stops(day, trips, pack_j)
    car = Car(day, pack_j, temperatures(day), trips)
    with (HERE / f"{day.name}.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        count = 0
        for row in readings(car):
            writer.writerow([written(row[name]) for name in COLUMNS])
            count += 1
    stops = [end - start for trip in trips for start, end in trip.stops]
    print(
        f"  {count} rows; fast stops {stops} s; {pack_kwh:g} kWh pack ends at {car.percent:.0f} %"
    )


def main() -> None:
    """All days, or those named."""
    with tempfile.TemporaryDirectory() as data:
        os.environ["XDG_DATA_HOME"] = data
        for day in DAYS:
            if not sys.argv[1:] or day.name in sys.argv[1:]:
                make(day)


if __name__ == "__main__":
    main()
