"""The energy and wear ledger: what work for others costs this car, by day, source and model.

Invariants (`problems` says which is broken)
- Energy is booked once, at one place, to one day and one source; items take their part of what is
  booked. So by source, by day, and as items plus overhead, it adds up to the same.
- Nothing booked is taken back. Where an estimate was too high, the next energy pays for it first.
- Time counts on the boot clock, and no more than `ENERGY_GAP_MAX_MS` between two looks: sleep and
  jumps of UTC make no energy. UTC only chooses the row; a day that comes again goes on in its row.
- What is not known is taken as the owner would fear it: an unknown source is the pack.

What counts is the whole draw of the computer in the time in which it computes for others. What it
draws while it waits for work, or is frozen, does not; nor does charging loss.

Deliberately absent: clocks, counters and files, which the shell reads (`vehicle.energy`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import isfinite
from typing import Final, NamedTuple

import msgspec

from edge_runtime.contract import limits
from edge_runtime.contract.clock import NS_PER_MS, Now, utc_month
from edge_runtime.contract.messages import Usage
from edge_runtime.contract.reasons import EnergyMethod, HoldReason, WearMethod
from edge_runtime.vehicle.core.commands import WriteEnergy, WriteModelEnergy
from edge_runtime.vehicle.core.energy_rows import (
    ARCHIVE_DAY,
    J_PER_WH,
    DayEnergy,
    LedgerSummary,
    ModelEnergy,
    PowerMethod,
    Spent,
    data_mb,
    sum_of,
    summarise,
)
from edge_runtime.vehicle.core.events import BytesMoved, EnergyMeasured
from edge_runtime.vehicle.core.readings import Readings
from edge_runtime.vehicle.core.wear import UNKNOWN_CELL, WearTable
from edge_runtime.vehicle.policy import OwnerPolicy

_NS_PER_S: Final = 1_000_000_000
_MS_PER_DAY: Final = 86_400_000
_S_PER_DAY: Final = 86_400.0
_LOAD_EXPONENT: Final = 1.4
_ROUNDING: Final = 1e-6


class EnergyFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of this car's computer and pack.

    `idle_w` is what the computer draws without work, where that was measured; `pack_kwh` the pack's
    usable capacity; `pack_efficiency` the part of the pack's energy that reaches the computer.
    """

    idle_w: float | None = None
    pack_kwh: float = 60.0
    pack_efficiency: float = 0.9
    wear: WearTable | None = None


class Budgets(msgspec.Struct, frozen=True, kw_only=True):
    """The owner's; None is no budget."""

    wh_per_day: float | None = None
    wh_per_month: float | None = None
    equivalent_full_cycles_per_year: float | None = None


@dataclass(frozen=True, slots=True)
class Conditions:
    """What of the car's signals energy and wear depend on."""

    is_on_grid: bool = False
    load_percent: float | None = None
    battery_c: float | None = None
    charge_percent: float | None = None
    is_battery_hot: bool = False
    is_compute_hot: bool = False


class ItemCost(NamedTuple):
    """What a finished item took: energy, and wear in percent of the pack's capacity."""

    joules: float = 0.0
    wear_percent: float = 0.0


NO_COST: Final = ItemCost()


@dataclass(frozen=True, slots=True)
class _Power:
    """Power, how it was known, and when."""

    watts: float
    method: PowerMethod
    at_ns: int


def conditions_of(readings: Readings, policy: OwnerPolicy | None, now: Now) -> Conditions:
    """The conditions of this moment; hot is hotter than where the owner lets work begin."""
    battery_c = readings.number("battery_temperature_c", now)
    compute_c = readings.number("compute_temperature_c", now)
    pack_w = readings.number("battery_power_w", now)
    is_draining = pack_w is not None and pack_w < 0
    return Conditions(
        is_on_grid=readings.flag("is_plugged", now) is True and not is_draining,
        load_percent=readings.number("compute_load_percent", now),
        battery_c=battery_c,
        charge_percent=readings.number("charge_percent", now),
        is_battery_hot=policy is not None
        and battery_c is not None
        and battery_c > policy.battery_temperature.start_max_c,
        is_compute_hot=policy is not None
        and compute_c is not None
        and compute_c > policy.compute_temperature.start_c,
    )


@dataclass(slots=True)
class EnergyLedger:
    """`busy_w` is what the computer draws while it computes, where nothing says better.

    `absurd` counts readings that were not believed.
    """

    facts: EnergyFacts
    busy_w: float
    is_computing: bool = False
    absurd: int = 0
    days: dict[int, DayEnergy] = field(default_factory=dict)
    models: dict[str, ModelEnergy] = field(default_factory=dict)
    _conditions: Conditions = field(default_factory=Conditions)
    _power: _Power = field(init=False)
    _read: _Power | None = None
    _at_ns: int = 0
    _since_ns: int = 0
    _written_ns: int = 0
    _free_j: dict[int, float] = field(default_factory=dict)
    """By day: booked since there is work, and taken by no item yet."""
    _free_wear_percent: float = 0.0
    """The wear of what no item has taken yet."""
    _estimated_j: float = 0.0
    """Booked, or to be paid, since the last measurement."""
    _owed_j: float = 0.0
    """Booked beyond what was drawn: the next energy pays for it."""
    _calm_c: float | None = None
    """The pack's temperature when the computer last did not compute."""
    _cycle_percent_per_j: float = 0.0
    _warmth_percent_per_s: float = 0.0
    _row: DayEnergy | None = None
    _month_before: DayEnergy = field(default_factory=lambda: DayEnergy(0))
    _year_before: DayEnergy = field(default_factory=lambda: DayEnergy(0))
    _dirty_days: set[int] = field(default_factory=set)
    _is_pressing: bool = False
    """Whether what is dirty should not be lost: energy, or a package's bytes."""
    _is_urgent: bool = False
    """Whether what is dirty decides: a car that forgets it would do what its owner forbade."""
    _dirty_models: set[str] = field(default_factory=set)
    _drops: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._power = self._modelled(0)

    def restore(self, days: Iterable[DayEnergy], models: Iterable[ModelEnergy], now: Now) -> None:
        """Begin with what the journal kept."""
        self.days = {row.day: row for row in days if row.is_possible}
        self.models = {model.digest: model for model in models}
        self._at_ns = self._written_ns = now.boot_ns
        self._row = None

    # --- time ------------------------------------------------------------------------------------

    def advance(self, now: Now) -> None:
        """Book what was drawn since the last look. Call it before whatever happens at `now`."""
        elapsed_ns = now.boot_ns - self._at_ns
        self._at_ns = now.boot_ns
        if not self.is_computing or elapsed_ns <= 0:
            return
        seconds = min(elapsed_ns / _NS_PER_S, limits.ENERGY_GAP_MAX_MS / 1000)
        row, conditions = self._today(now), self._conditions
        row.computing_s += seconds
        if conditions.is_battery_hot:
            row.battery_hot_s += seconds
        if conditions.is_compute_hot:
            row.compute_hot_s += seconds
        row.warmth_wear_percent += self._warmth_percent_per_s * seconds
        self._free_wear_percent += self._warmth_percent_per_s * seconds
        joules = self._power.watts * seconds
        self._estimated_j += joules
        self._book(joules, row)

    def note(self, now: Now, *, is_computing: bool, has_work: bool) -> None:
        """From now on the computer computes, or does not: it is frozen, or has no work."""
        if not has_work:
            self._free_j.clear()
            self._free_wear_percent = 0.0
        if is_computing is self.is_computing:
            return
        self.is_computing = is_computing
        if is_computing:
            self._since_ns = now.boot_ns
            self._choose_power(now)

    def look(self, readings: Readings, policy: OwnerPolicy | None, now: Now) -> None:
        """Take in the signals that were just read; power and rates hold until the next reading.

        Signals that are no longer told stop the work, so nothing goes on under old ones for long.
        """
        conditions = self._conditions = conditions_of(readings, policy, now)
        if not self.is_computing:
            self._calm_c = conditions.battery_c
        elif self._is_older(self._read, now) or self._read_by_vehicle():
            self._take_vehicle_power(readings.number("compute_power_w", now), now)
        self._choose_rates(conditions)
        self._choose_power(now)

    def _read_by_vehicle(self) -> bool:
        return self._read is not None and self._read.method is PowerMethod.VEHICLE

    def _take_vehicle_power(self, watts: float | None, now: Now) -> None:
        """A reading of before the work began says nothing of the work."""
        is_of_the_work = now.boot_ns - self._since_ns >= limits.SENSOR_PERIOD_MS * NS_PER_MS
        if watts is not None and watts > 0 and is_of_the_work:
            self._read = _Power(min(watts, limits.POWER_MAX_W), PowerMethod.VEHICLE, now.boot_ns)

    def _choose_rates(self, conditions: Conditions) -> None:
        wear, facts = self.facts.wear, self.facts
        if wear is None:
            return
        battery_c, charge = conditions.battery_c, conditions.charge_percent
        pack_j = facts.pack_kwh * 1000 * J_PER_WH * facts.pack_efficiency
        self._cycle_percent_per_j = wear.cycle_percent(battery_c, charge) / pack_j
        self._warmth_percent_per_s = 0.0
        calm_c = self._calm_c
        if self.is_computing and calm_c is not None and battery_c is not None:
            warmer = wear.calendar_percent(battery_c, charge) - wear.calendar_percent(
                calm_c, charge
            )
            self._warmth_percent_per_s = max(0.0, warmer) / _S_PER_DAY

    def _choose_power(self, now: Now) -> None:
        read = self._read
        if read is None or self._is_older(read, now):
            self._power = self._modelled(now.boot_ns)
        else:
            self._power = read

    @staticmethod
    def _is_older(read: _Power | None, now: Now) -> bool:
        age_ns = limits.ENERGY_READING_MAX_MS * NS_PER_MS
        return read is None or not 0 <= now.boot_ns - read.at_ns <= age_ns

    def _modelled(self, at_ns: int) -> _Power:
        """Fan, Weber and Barroso, ISCA 2007: idle + (busy - idle) x (2u - u^1.4)."""
        idle_w, load = self.facts.idle_w, self._conditions.load_percent
        if idle_w is None:
            return _Power(self.busy_w, PowerMethod.STATED, at_ns)
        share = 1.0 if load is None else load / 100
        share = 2 * share - share**_LOAD_EXPONENT
        watts = idle_w + max(0.0, self.busy_w - idle_w) * share
        return _Power(watts, PowerMethod.CALIBRATED, at_ns)

    # --- what happened ---------------------------------------------------------------------------

    def told(self, event: EnergyMeasured | BytesMoved, now: Now) -> None:
        """The shell read a counter, or moved bytes; no time and no joules begin a measurement."""
        if isinstance(event, BytesMoved):
            row = self._today(now)
            row.sent_bytes += max(0, event.sent)
            row.received_bytes += max(0, event.received)
            self._dirty_days.add(row.day)
            if event.sent + event.received > limits.ENERGY_BYTES_SMALL:
                self._is_pressing = True
            return
        seconds = (event.to_ns - event.from_ns) / _NS_PER_S
        joules = event.joules
        if seconds == 0 == joules:
            self._estimated_j = 0.0
            return
        if not (seconds > 0 and isfinite(joules) and 0 <= joules <= limits.POWER_MAX_W * seconds):
            self.absurd += 1
            return
        row = self._today(now)
        too_little = joules - self._estimated_j
        self._estimated_j = 0.0
        row.measured_j += joules
        row.methods |= event.method.bit
        if too_little >= 0:
            self._book(too_little, row)
        else:
            self._owed_j -= too_little
        self._read = _Power(joules / seconds, event.method, now.boot_ns)
        self._choose_power(now)

    def item(self, digest: str, busy_ms: float, now: Now) -> ItemCost:
        """An item of this model was finished: what it took."""
        cost = self._take(busy_ms, now, is_of_items=True)
        self._today(now).items += 1
        self._learn(digest, cost.joules)
        return cost

    def wasted(self, busy_ms: float, now: Now) -> float:
        """An item came to nothing after so much time: the joules that it took are overhead."""
        return self._take(busy_ms, now, is_of_items=False).joules

    def _take(self, busy_ms: float, now: Now, *, is_of_items: bool) -> ItemCost:
        """A part of what was booked, oldest day first; what was not booked yet is booked early.

        Its wear is that part of the wear of what no item has taken.
        """
        known_ms = busy_ms if isfinite(busy_ms) else 0.0
        busy_s = min(max(known_ms, 0.0), limits.ITEM_TIME_MAX_MS) / 1000
        row, joules = self._today(now), self._power.watts * busy_s
        all_j = sum(self._free_j.values())
        missing = joules
        for day in list(self._free_j):
            taken = min(missing, self._free_j[day])
            self._free_j[day] -= taken
            missing -= taken
            self._dirty_days.add(day)
            if is_of_items:
                self.days[day].units_j += taken
            if missing <= 0:
                break
            del self._free_j[day]
        if missing > 0:
            self._add(missing, row)
            self._owed_j += missing
            all_j += missing
            if is_of_items:
                row.units_j += missing
        self._dirty_days.add(row.day)
        wear_percent = self._free_wear_percent * min(1.0, joules / all_j) if all_j > 0 else 0.0
        self._free_wear_percent -= wear_percent
        return ItemCost(joules, wear_percent)

    def unit_done(self, now: Now) -> None:
        """A unit was computed to its end."""
        row = self._today(now)
        row.units += 1
        self._dirty_days.add(row.day)

    def _learn(self, digest: str, joules: float) -> None:
        model = self.models.pop(digest, None) or ModelEnergy(digest)
        model.joules += joules
        model.items += 1
        if model.items >= limits.ENERGY_MODEL_ITEMS_MAX:
            model.joules, model.items = model.joules / 2, model.items // 2
        self.models[digest] = model
        self._dirty_models.add(digest)
        while len(self.models) > limits.MODELS_KNOWN_MAX:
            oldest = next(iter(self.models))
            del self.models[oldest]
            self._dirty_models.add(oldest)

    def note_begun(self, begun: int, now: Now, *, decides: bool) -> None:
        """So often the car became ready today; `decides`: the owner has set a most."""
        row = self._today(now)
        if begun > row.begun:
            row.begun = begun
            self._dirty_days.add(row.day)
            self._is_urgent |= decides

    def begun_today(self, now: Now) -> int:
        """How often the car became ready in this UTC day, in every life of its process."""
        return self._today(now).begun

    # --- booking ---------------------------------------------------------------------------------

    def _book(self, joules: float, row: DayEnergy) -> None:
        """Energy was drawn: what is owed is paid first."""
        paid = min(self._owed_j, joules)
        self._owed_j -= paid
        self._add(joules - paid, row)
        self._free_j[row.day] = self._free_j.get(row.day, 0.0) + joules - paid

    def _add(self, joules: float, row: DayEnergy) -> None:
        """The only place at which energy and cycles enter a row."""
        self._dirty_days.add(row.day)
        self._is_pressing = True
        row.methods |= self._power.method.bit
        if self._power.method is PowerMethod.VEHICLE:
            row.measured_j += joules
        if self._conditions.is_on_grid:
            row.grid_j += joules
            return
        row.pack_j += joules
        row.efc += self._cycles(joules)
        row.cycle_wear_percent += joules * self._cycle_percent_per_j
        self._free_wear_percent += joules * self._cycle_percent_per_j

    def _cycles(self, joules: float) -> float:
        facts = self.facts
        return joules / (facts.pack_kwh * 1000 * J_PER_WH * facts.pack_efficiency)

    def _today(self, now: Now) -> DayEnergy:
        day = max(0, now.utc_ms // _MS_PER_DAY)
        row = self._row
        if row is not None and row.day == day:
            return row
        row = self._row = self.days.setdefault(day, DayEnergy(day))
        self._fold(day)
        year, month = utc_month(day)
        others = [
            (other, utc_month(other.day))
            for other in self.days.values()
            if other.day not in {day, ARCHIVE_DAY}
        ]
        self._month_before = sum_of(other for other, its in others if its == (year, month))
        self._year_before = sum_of(other for other, its in others if its[0] == year)
        return row

    def _fold(self, today: int) -> None:
        """Put the oldest days into the archive's row."""
        too_many = len(self.days) - 1 - limits.ENERGY_DAYS_KEPT_MAX
        if too_many <= 0:
            return
        archive = self.days.setdefault(ARCHIVE_DAY, DayEnergy(ARCHIVE_DAY))
        for day in sorted(self.days.keys() - {today, ARCHIVE_DAY})[:too_many]:
            archive.add(self.days.pop(day))
            self._drops.append(day)
            self._dirty_days.discard(day)
            if (free_j := self._free_j.pop(day, None)) is not None:
                self._free_j[ARCHIVE_DAY] = self._free_j.get(ARCHIVE_DAY, 0.0) + free_j
        self._dirty_days.add(ARCHIVE_DAY)

    # --- budgets ---------------------------------------------------------------------------------

    def spent(self, now: Now) -> Spent:
        """What budgets are held against."""
        row = self._today(now)
        return Spent(
            wh_today=row.total_j / J_PER_WH,
            wh_month=(self._month_before.total_j + row.total_j) / J_PER_WH,
            equivalent_full_cycles_year=self._year_before.efc + row.efc,
            data_mb_month=data_mb(self._month_before) + data_mb(row),
        )

    def estimate_j(self, digest: str, items: int) -> float:
        """What so many items of a model will take: as they did here, or a whole unit's share."""
        known = self.models.get(digest)
        if known is None or known.items <= 0:
            return self.busy_w * limits.UNIT_TARGET_MS / 1000
        return known.joules / known.items * items

    def cheapest_j(self) -> float:
        """The least that any work may take: an item of the cheapest model, or one never seen."""
        known = (model.joules / model.items for model in self.models.values() if model.items > 0)
        return min((*known, self.estimate_j("", 1)))

    def over_budget(self, need_j: float, budgets: Budgets, now: Now) -> HoldReason | None:
        """Which budget `need_j` more, from the source of now, would pass; None is none."""
        spent, need_wh = self.spent(now), need_j / J_PER_WH
        for budget_wh, spent_wh in (
            (budgets.wh_per_day, spent.wh_today),
            (budgets.wh_per_month, spent.wh_month),
        ):
            if budget_wh is not None and spent_wh + need_wh > budget_wh:
                return HoldReason.ENERGY_BUDGET_SPENT
        cycles = budgets.equivalent_full_cycles_per_year
        if cycles is None or self._conditions.is_on_grid:
            return None
        is_over = spent.equivalent_full_cycles_year + self._cycles(need_j) > cycles
        return HoldReason.WEAR_BUDGET_SPENT if is_over else None

    @property
    def method(self) -> PowerMethod:
        """How power is known now."""
        return self._power.method

    def usage(self, wear_percent: float) -> Usage:
        """What the dispatcher is told of finished items beside their energy, as it is known now."""
        wear = self.facts.wear
        if wear is None:
            method = WearMethod.UNKNOWN
        elif wear.name == UNKNOWN_CELL:
            method = WearMethod.WORST_CELL_TABLE
        else:
            method = WearMethod.CELL_TABLE
        return Usage(
            energy_method=EnergyMethod(self.method.value),
            wear_percent=min(max(wear_percent, 0.0), limits.CHUNK_WEAR_MAX_PERCENT),
            wear_method=method,
        )

    # --- the journal -----------------------------------------------------------------------------

    def is_due(self, now: Now, every_ms: int) -> bool:
        """Whether there is something to write, and the last write is so long ago.

        The few bytes of a car without work are no reason to write flash every minute.
        """
        if not (self._dirty_days or self._dirty_models):
            return False
        if self._is_urgent:
            return True
        if not self._is_pressing and every_ms > 0:
            every_ms = limits.ENERGY_IDLE_WRITE_MS
        return not 0 <= now.boot_ns - self._written_ns < every_ms * NS_PER_MS

    def take_writes(self, now: Now) -> list[WriteEnergy | WriteModelEnergy]:
        """What has changed since the last call, to be written in one commit."""
        self._written_ns, self._is_pressing, self._is_urgent = now.boot_ns, False, False
        drops, self._drops = tuple(self._drops), []
        writes: list[WriteEnergy | WriteModelEnergy] = []
        for day in sorted(self._dirty_days):
            row = msgspec.structs.replace(self.days[day])
            writes.append(WriteEnergy(row, drops if day == ARCHIVE_DAY else ()))
        for digest in sorted(self._dirty_models):
            model = self.models.get(digest) or ModelEnergy(digest)
            writes.append(WriteModelEnergy(msgspec.structs.replace(model)))
        self._dirty_days.clear()
        self._dirty_models.clear()
        return writes

    # --- for people and tests --------------------------------------------------------------------

    def summary(self, now: Now) -> LedgerSummary:
        """What it all came to, as of now."""
        return summarise(self.days.values(), self._today(now).day)

    def problems(self) -> Iterator[str]:
        """Every broken invariant, as a sentence."""
        for day, row in self.days.items():
            if not row.is_possible:
                yield f"the energy of day {day} is impossible: {row}"
            if row.units_j > row.total_j * (1 + _ROUNDING) + _ROUNDING:
                yield f"items of day {day} took {row.units_j} J of {row.total_j} J"
