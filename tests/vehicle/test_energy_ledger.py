"""The energy ledger: conserved, monotone, once per joule, whatever clocks and counters do."""

import math
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from car_bench import GOOD, MODEL, OTHER_MODEL, POLICY, Bench, offer, only, verdicts
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edge_runtime.contract import limits
from edge_runtime.contract.clock import Now, utc_month
from edge_runtime.contract.messages import Refused
from edge_runtime.contract.reasons import (
    Availability,
    EnergyMethod,
    HoldReason,
    RefusalReason,
    WearMethod,
)
from edge_runtime.vehicle.core import commands as c
from edge_runtime.vehicle.core import events as e
from edge_runtime.vehicle.core.energy import Budgets, EnergyFacts, EnergyLedger
from edge_runtime.vehicle.core.energy_rows import (
    ARCHIVE_DAY,
    DayEnergy,
    ModelEnergy,
    PowerMethod,
    sum_of,
    summarise,
)
from edge_runtime.vehicle.core.readings import Readings
from edge_runtime.vehicle.core.wear import UNKNOWN_CELL, WearTable
from edge_runtime.vehicle.energy.tables import wear_table
from edge_runtime.vehicle.policy import Energy, Network, OwnerPolicy, Wear

S = 1_000_000_000
DAY_MS = 86_400_000
NOON_MS = 20_000 * DAY_MS + DAY_MS // 2
WEAR = WearTable(
    name="test",
    temperatures_c=(0, 20, 40),
    charges_percent=(50, 100),
    cycle_percent_per_efc=((0.04, 0.08), (0.01, 0.02), (0.01, 0.02)),
    calendar_percent_per_day=((0.001, 0.001), (0.002, 0.004), (0.01, 0.02)),
)


@dataclass
class Car:
    """A ledger, two clocks, and a journal that is written when the ledger says."""

    facts: EnergyFacts = field(default_factory=lambda: EnergyFacts(wear=WEAR))
    boot_ns: int = 5 * S
    utc_ms: int = NOON_MS
    signals: dict[str, Any] = field(default_factory=lambda: GOOD | {"is_plugged": False})
    rows: dict[int, DayEnergy] = field(default_factory=dict)
    models: dict[str, ModelEnergy] = field(default_factory=dict)
    told_wear_percent: float = 0.0

    def __post_init__(self) -> None:
        self.ledger = EnergyLedger(self.facts, 40.0)
        self.readings = Readings()
        self.start()

    @property
    def now(self) -> Now:
        return Now(self.boot_ns, self.utc_ms)

    def start(self) -> None:
        """A process begins with what the journal kept."""
        self.ledger = EnergyLedger(self.facts, 40.0)
        rows = [msgspec.structs.replace(row) for row in self.rows.values()]
        models = [msgspec.structs.replace(model) for model in self.models.values()]
        self.ledger.restore(rows, models, self.now)
        self.sense()

    def sense(self, **changes: Any) -> None:
        self.signals |= changes
        self.readings.update(self.signals, self.boot_ns)
        self.ledger.advance(self.now)
        self.ledger.look(self.readings, POLICY, self.now)

    def compute(self, is_computing: bool = True) -> None:
        self.ledger.advance(self.now)
        self.ledger.note(self.now, is_computing=is_computing, has_work=is_computing)

    def wait(self, seconds: float) -> None:
        """Time passes with a look and a reading every second."""
        while seconds > 0:
            step = min(1.0, seconds)
            self.boot_ns += round(step * S)
            self.utc_ms += round(step * 1000)
            self.sense()
            seconds -= step

    def item(self, busy_s: float, digest: str = MODEL) -> float:
        self.ledger.advance(self.now)
        cost = self.ledger.item(digest, busy_s * 1000, self.now)
        self.told_wear_percent += cost.wear_percent
        return cost.joules

    def measured(
        self, joules: float, seconds: float, method: PowerMethod = PowerMethod.RAPL
    ) -> None:
        self.ledger.advance(self.now)
        from_ns = self.boot_ns - round(seconds * S)
        self.ledger.told(e.EnergyMeasured(joules, from_ns, self.boot_ns, method), self.now)

    def write(self) -> None:
        for write in self.ledger.take_writes(self.now):
            if isinstance(write, c.WriteEnergy):
                self.rows[write.row.day] = write.row
                for day in write.drops:
                    del self.rows[day]
            elif write.model.items:
                self.models[write.model.digest] = write.model
            else:
                self.models.pop(write.model.digest, None)

    @property
    def total(self) -> DayEnergy:
        return sum_of(self.ledger.days.values())


# --- what is counted -----------------------------------------------------------------------------


def test_time_at_work_is_counted_and_waiting_is_not() -> None:
    car = Car()
    car.wait(100)
    assert car.total.total_j == 0
    car.compute()
    car.wait(100)
    car.compute(False)
    car.wait(100)
    assert car.total.total_j == pytest.approx(4_000)
    assert car.total.computing_s == pytest.approx(100)
    assert car.ledger.summary(car.now).today.methods == (PowerMethod.STATED.value,)


@pytest.mark.parametrize(
    ("signals", "is_grid"),
    [
        ({"is_plugged": True}, True),
        ({"is_plugged": True, "battery_power_w": 7_000.0}, True),
        ({"is_plugged": True, "battery_power_w": 0.0}, True),
        ({"is_plugged": True, "battery_power_w": -300.0}, False),  # plugged, and the pack gives
        ({"is_plugged": False}, False),
        ({"is_plugged": None}, False),
        ({"is_plugged": 1.0}, False),
        ({"is_plugged": True, "battery_power_w": math.nan}, True),
    ],
)
def test_what_is_not_surely_from_the_grid_is_the_packs(
    signals: dict[str, Any], is_grid: bool
) -> None:
    car = Car()
    car.wait(1)
    car.sense(**signals)
    car.wait(1)
    car.compute()
    car.wait(10)
    assert (car.total.grid_j, car.total.pack_j) == pytest.approx((400, 0) if is_grid else (0, 400))
    assert (car.total.efc == 0) is is_grid


def test_items_take_their_part_and_the_rest_is_overhead() -> None:
    car = Car()
    car.compute()
    car.wait(10)
    assert car.item(6) == pytest.approx(240)
    assert car.item(1, OTHER_MODEL) == pytest.approx(40)
    car.compute(False)
    today = car.ledger.summary(car.now).today
    assert today.total_wh * 3600 == pytest.approx(400)
    assert today.units_wh * 3600 == pytest.approx(280)
    assert today.overhead_wh * 3600 == pytest.approx(120)
    assert today.items == 2


def test_items_take_their_part_of_the_wear_and_are_told_how_it_is_known() -> None:
    car = Car()
    car.wait(1)
    car.sense(is_plugged=False)
    car.compute()
    car.wait(100)
    car.ledger.advance(car.now)
    wear = car.total.cycle_wear_percent + car.total.warmth_wear_percent
    assert wear > 0
    first = car.ledger.item(MODEL, 25_000, car.now)
    second = car.ledger.item(MODEL, 75_000, car.now)
    third = car.ledger.item(MODEL, 0.0, car.now)
    assert first.wear_percent == pytest.approx(wear / 4)
    assert second.wear_percent == pytest.approx(wear * 3 / 4)
    assert third.wear_percent == 0
    usage = car.ledger.usage(first.wear_percent)
    assert usage.energy_method is EnergyMethod.STATED_POWER
    assert usage.wear_percent == first.wear_percent
    assert car.ledger.usage(1e9).wear_percent == limits.CHUNK_WEAR_MAX_PERCENT
    table = car.ledger.facts.wear
    assert table is not None
    for name, method in (
        (UNKNOWN_CELL, WearMethod.WORST_CELL_TABLE),
        ("lfp", WearMethod.CELL_TABLE),
    ):
        car.ledger.facts = msgspec.structs.replace(
            car.ledger.facts, wear=msgspec.structs.replace(table, name=name)
        )
        assert car.ledger.usage(0.0).wear_method is method
    car.ledger.facts = msgspec.structs.replace(car.ledger.facts, wear=None)
    assert car.ledger.usage(0.0).wear_method is WearMethod.UNKNOWN


def test_every_way_of_knowing_power_is_one_that_travels() -> None:
    assert {how.value for how in PowerMethod} == {how.value for how in EnergyMethod} - {"unknown"}


def test_an_item_that_is_told_before_its_time_was_booked_is_not_booked_twice() -> None:
    car = Car()
    car.compute()
    car.item(5)
    assert car.total.total_j == pytest.approx(200)
    car.wait(5)
    assert car.total.total_j == pytest.approx(200)
    car.wait(5)
    assert car.total.total_j == pytest.approx(400)


def test_an_item_over_midnight_takes_what_each_day_gave() -> None:
    car = Car()
    car.utc_ms = 20_001 * DAY_MS - 3_000
    car.compute()
    car.wait(10)
    car.item(10)
    for day, row in car.ledger.days.items():
        assert row.units_j == pytest.approx(row.total_j), day
    assert car.total.total_j == pytest.approx(400)
    assert len([row for row in car.ledger.days.values() if row.units_j]) == 2


def test_wasted_items_are_overhead() -> None:
    car = Car()
    car.compute()
    car.wait(4)
    assert car.ledger.wasted(3_000, car.now) == pytest.approx(120)
    assert (car.total.total_j, car.total.units_j) == pytest.approx((160, 0))


def test_a_computer_that_slept_drew_nothing_that_is_ours() -> None:
    car = Car()
    car.compute()
    car.boot_ns += 8 * 3600 * S
    car.utc_ms += 8 * 3600 * 1000
    car.sense()
    assert car.total.total_j <= 40 * limits.ENERGY_GAP_MAX_MS / 1000


@pytest.mark.parametrize("busy_ms", [math.nan, math.inf, -5.0, 1e300])
def test_absurd_times_of_items_do_not_spoil_the_books(busy_ms: float) -> None:
    car = Car()
    car.compute()
    car.wait(1)
    joules = car.ledger.item(MODEL, busy_ms, car.now).joules
    assert 0 <= joules <= 40 * limits.ITEM_TIME_MAX_MS / 1000
    assert not list(car.ledger.problems())


# --- how power is known --------------------------------------------------------------------------


def test_counters_replace_the_estimate_of_the_time_they_cover() -> None:
    car = Car()
    car.compute()
    car.measured(0, 0)
    for _ in range(30):
        car.wait(1)
        car.measured(65, 1)
    assert car.total.total_j == pytest.approx(30 * 65)
    today = car.ledger.summary(car.now).today
    assert today.measured_share == pytest.approx(1)
    assert PowerMethod.RAPL.value in today.methods


def test_too_high_an_estimate_is_paid_back_by_the_next_energy() -> None:
    car = Car()
    car.compute()
    car.measured(0, 0)
    seen = 0.0
    for _ in range(30):
        car.wait(1)
        car.measured(10, 1)
        assert car.total.total_j >= seen
        seen = car.total.total_j
    assert seen == pytest.approx(300)


def test_a_counter_that_begins_late_or_falls_silent_does_not_touch_what_was() -> None:
    car = Car()
    car.compute()
    car.wait(3600)
    before = car.total.total_j
    car.measured(0, 0)
    car.wait(1)
    car.measured(20, 1)
    assert car.total.total_j == pytest.approx(before + 40)  # the model's second; 20 J are owed
    car.wait(100)
    assert car.ledger.method is PowerMethod.STATED
    assert car.total.total_j == pytest.approx(before + 20 + 20 * 3 + 40 * 97, rel=0.01)


@pytest.mark.parametrize(
    "event",
    [
        e.EnergyMeasured(math.nan, 0, S, PowerMethod.RAPL),
        e.EnergyMeasured(math.inf, 0, S, PowerMethod.RAPL),
        e.EnergyMeasured(-1, 0, S, PowerMethod.RAPL),
        e.EnergyMeasured(1e9, 0, S, PowerMethod.RAPL),
        e.EnergyMeasured(5, S, S, PowerMethod.RAPL),
        e.EnergyMeasured(5, 2 * S, S, PowerMethod.RAPL),
    ],
)
def test_absurd_measurements_are_counted_and_change_nothing(event: e.EnergyMeasured) -> None:
    car = Car()
    car.compute()
    car.wait(5)
    before = car.total
    car.ledger.told(event, car.now)
    assert car.total == before
    assert car.ledger.absurd == 1


def test_the_cars_own_reading_counts_once_it_is_of_the_work() -> None:
    car = Car()
    car.signals["compute_power_w"] = 0.0
    car.wait(2)
    car.compute()
    car.signals["compute_power_w"] = 90.0
    car.wait(1)
    assert car.total.total_j == pytest.approx(40)
    car.wait(10)
    assert car.ledger.method is PowerMethod.VEHICLE
    assert car.total.total_j == pytest.approx(40 + 900, rel=0.1)
    assert car.ledger.summary(car.now).today.measured_share > 0.8


def test_the_calibrated_model_follows_the_load() -> None:
    car = Car(EnergyFacts(idle_w=10.0))
    powers = []
    for load in (0.0, 25.0, 50.0, 100.0, None):
        car.sense(compute_load_percent=load)
        car.compute()
        car.wait(1)
        before = car.total.total_j
        car.wait(10)
        powers.append((car.total.total_j - before) / 10)
        car.compute(False)
        car.wait(1)
    assert powers[0] == pytest.approx(10)
    assert powers[3] == powers[4] == pytest.approx(40)
    assert 10 < powers[1] < powers[2] < 40
    assert powers[2] == pytest.approx(10 + 30 * (2 * 0.5 - 0.5**1.4))
    assert car.ledger.method is PowerMethod.CALIBRATED


# --- wear ----------------------------------------------------------------------------------------


def test_cycles_and_wear_of_a_kilowatt_hour_from_the_pack() -> None:
    car = Car(EnergyFacts(pack_kwh=50, pack_efficiency=0.8, wear=WEAR))
    car.sense(charge_percent=75.0, battery_temperature_c=20.0)
    car.wait(1)
    car.compute()
    while car.total.pack_j < 3.6e6:
        car.wait(60)
    efc = car.total.pack_j / 3.6e6 / 0.8 / 50
    assert car.total.efc == pytest.approx(efc)
    assert car.total.cycle_wear_percent == pytest.approx(efc * 0.015)
    assert car.total.warmth_wear_percent == 0


def test_energy_of_the_grid_wears_nothing() -> None:
    car = Car()
    car.sense(is_plugged=True, battery_temperature_c=20.0)
    car.wait(1)
    car.compute()
    car.wait(600)
    assert (car.total.efc, car.total.cycle_wear_percent) == (0, 0)


def test_a_pack_that_is_warmer_than_before_the_work_ages_by_the_difference() -> None:
    car = Car()
    car.sense(is_plugged=True, battery_temperature_c=20.0, charge_percent=100.0)
    car.wait(2)
    car.compute()
    car.wait(600)
    assert car.total.warmth_wear_percent == 0
    car.sense(battery_temperature_c=30.0)
    car.wait(1)
    before = car.total.warmth_wear_percent
    car.wait(600)
    grown = car.total.warmth_wear_percent - before
    assert grown == pytest.approx((0.012 - 0.004) * 600 / 86_400)
    car.sense(battery_temperature_c=10.0)
    car.wait(1)
    before = car.total.warmth_wear_percent
    car.wait(600)
    assert car.total.warmth_wear_percent == before


def test_minutes_over_temperature_are_those_of_the_work() -> None:
    car = Car()
    car.sense(battery_temperature_c=36.0, compute_temperature_c=75.0)
    car.wait(600)
    assert car.total.battery_hot_s == 0
    car.compute()
    car.wait(120)
    today = car.ledger.summary(car.now).today
    assert (today.battery_hot_min, today.compute_hot_min) == pytest.approx((2, 2))


def test_an_unknown_temperature_is_the_worst_one() -> None:
    assert WEAR.cycle_percent(None, 75) == pytest.approx(0.06)
    assert WEAR.cycle_percent(20, None) == 0.02
    assert WEAR.cycle_percent(None, None) == 0.08


@given(st.floats(-100, 200), st.floats(0, 100))
def test_a_table_stays_between_its_points(temperature_c: float, charge: float) -> None:
    for table in (WEAR, wear_table("unknown"), wear_table("lfp")):
        values = [value for row in table.cycle_percent_per_efc for value in row]
        read = table.cycle_percent(temperature_c, charge)
        assert min(values) - 1e-12 <= read <= max(values) + 1e-12


# --- days, months, clocks ------------------------------------------------------------------------


@pytest.mark.parametrize("jump_ms", [DAY_MS, -DAY_MS, 400 * DAY_MS, -NOON_MS, 10**15, -(10**15)])
def test_a_jump_of_utc_neither_makes_nor_loses_energy(jump_ms: int) -> None:
    car = Car()
    car.compute()
    car.wait(10)
    car.utc_ms += jump_ms
    car.sense()
    car.wait(10)
    car.utc_ms -= jump_ms
    car.sense()
    car.wait(10)
    assert car.total.total_j == pytest.approx(1_200)
    assert car.ledger.days[20_000].total_j == pytest.approx(800)
    assert car.ledger.spent(car.now).wh_today == pytest.approx(800 / 3600)


def test_a_new_day_has_a_new_budget_and_the_month_goes_on() -> None:
    car = Car()
    car.utc_ms = 20_000 * DAY_MS
    year, month = utc_month(20_000)
    car.compute()
    car.wait(60)
    car.utc_ms += DAY_MS
    assert utc_month(20_001) == (year, month)
    car.wait(60)
    spent = car.ledger.spent(car.now)
    assert spent.wh_today == pytest.approx(2_400 / 3600)
    assert spent.wh_month == pytest.approx(4_800 / 3600)
    car.utc_ms += 31 * DAY_MS
    assert car.ledger.spent(car.now).wh_month == 0
    assert car.ledger.spent(car.now).equivalent_full_cycles_year == pytest.approx(car.total.efc)


def test_old_days_go_into_one_row_and_nothing_is_lost() -> None:
    car = Car()
    days = limits.ENERGY_DAYS_KEPT_MAX + 30
    for _ in range(days):
        car.compute()
        car.wait(1)
        car.item(0.5)
        car.compute(False)
        car.utc_ms += DAY_MS
        car.write()
    assert len(car.rows) <= limits.ENERGY_DAYS_KEPT_MAX + 1
    assert ARCHIVE_DAY in car.rows
    written = sum_of(car.rows.values())
    assert written.total_j == pytest.approx(40 * days)
    assert written.items == days
    car.start()
    assert car.ledger.summary(car.now).lifetime.total_wh == pytest.approx(40 * days / 3600)


def test_bytes_are_counted_by_month() -> None:
    car = Car()
    car.ledger.told(e.BytesMoved(1_500_000, 500_000), car.now)
    car.ledger.told(e.BytesMoved(-5, -5), car.now)
    assert car.ledger.spent(car.now).data_mb_month == 2
    car.utc_ms += 31 * DAY_MS
    assert car.ledger.spent(car.now).data_mb_month == 0


# --- the journal ---------------------------------------------------------------------------------


def test_a_restored_ledger_goes_on_where_it_was() -> None:
    car = Car()
    car.compute()
    car.wait(100)
    car.item(50)
    car.write()
    before = car.ledger.summary(car.now)
    estimate = car.ledger.estimate_j(MODEL, 3)
    car.start()
    assert car.ledger.summary(car.now) == before
    assert car.ledger.estimate_j(MODEL, 3) == estimate == pytest.approx(6_000)


def test_impossible_rows_are_left_out() -> None:
    ledger = EnergyLedger(EnergyFacts(), 40.0)
    rows = [DayEnergy(1, grid_j=-1), DayEnergy(2, pack_j=math.inf), DayEnergy(3, pack_j=7)]
    ledger.restore(rows, [], Now(0, NOON_MS))
    assert [row.day for row in ledger.days.values()] == [3]


def test_models_that_are_no_longer_known_are_forgotten_in_the_journal_too() -> None:
    car = Car()
    for number in range(limits.MODELS_KNOWN_MAX + 10):
        car.item(1, f"{number:064x}")
    car.write()
    assert len(car.models) == limits.MODELS_KNOWN_MAX
    assert f"{0:064x}" not in car.models


# --- budgets -------------------------------------------------------------------------------------


def test_an_estimate_is_what_items_took_here() -> None:
    car = Car()
    assert car.ledger.estimate_j(MODEL, 5) == pytest.approx(40 * limits.UNIT_TARGET_MS / 1000)
    car.compute()
    car.wait(10)
    car.item(2)
    car.item(4)
    assert car.ledger.estimate_j(MODEL, 5) == pytest.approx(5 * 3 * 40)


def test_the_wear_budget_is_the_packs() -> None:
    car = Car()
    budgets = Budgets(equivalent_full_cycles_per_year=1e-9)
    assert car.ledger.over_budget(100, budgets, car.now) is HoldReason.WEAR_BUDGET_SPENT
    car.wait(1)
    car.sense(is_plugged=True)
    assert car.ledger.over_budget(100, budgets, car.now) is None


def refused(said: list[c.Command]) -> Refused:
    (verdict,) = verdicts(said)
    assert isinstance(verdict, Refused)
    return verdict


def bench(**budgets: Any) -> Bench:
    policy: OwnerPolicy = msgspec.structs.replace(POLICY, **budgets)
    return Bench(policy).open()


def test_a_unit_that_would_pass_the_budget_is_refused_before_it_starts() -> None:
    car = bench(energy=Energy(budget_wh_per_day=0.02))  # 72 J; a unit not known takes 80 J
    answer = refused(car.take(offer(1)))
    assert (answer.reason, answer.hold) == (RefusalReason.HOLD, HoldReason.ENERGY_BUDGET_SPENT)
    assert answer.retry_after_ms == limits.HOLD_RETRY_MS
    assert not car.engine.runs


@pytest.mark.parametrize(
    ("policy", "event", "hold"),
    [
        (
            {"network": Network(budget_mb_per_month=10)},
            e.BytesMoved(4_000_000, 6_000_000),
            HoldReason.DATA_BUDGET_SPENT,
        ),
        (
            {"energy": Energy(budget_wh_per_month=1)},
            e.EnergyMeasured(3_600, 990 * S, 1_000 * S, PowerMethod.RAPL),
            HoldReason.ENERGY_BUDGET_SPENT,
        ),
        (
            {"wear": Wear(equivalent_full_cycles_per_year=1e-5), "plugged_only": False},
            e.EnergyMeasured(3_600, 990 * S, 1_000 * S, PowerMethod.RAPL),
            HoldReason.WEAR_BUDGET_SPENT,
        ),
    ],
)
def test_a_spent_budget_closes_the_car_and_says_so(
    policy: dict[str, Any], event: e.Event, hold: HoldReason
) -> None:
    car = Bench(msgspec.structs.replace(POLICY, **policy))
    car.signals["is_plugged"] = not policy.get("wear")
    car.open()
    car.send(event)
    car.sense()
    deciding = car.core.explain(car.now).forbids[0]
    assert deciding.hold == hold.value
    assert " is at " in deciding.text or " is above " in deciding.text


def test_what_is_held_counts_against_the_budget() -> None:
    car = bench(energy=Energy(budget_wh_per_month=0.04))  # 144 J: one unit of 80 J, not two
    car.take(offer(1))
    assert len(car.engine.runs) == 1
    assert refused(car.take(offer(2))).hold is HoldReason.ENERGY_BUDGET_SPENT


def test_measured_items_open_the_budget_to_cheap_models() -> None:
    car = bench(energy=Energy(budget_wh_per_day=0.03))  # 108 J
    car.take(offer(1, items=(0,)))
    car.send(e.ItemFinished(car.run_of(1), 0, b"\xc0", 500.0))  # 20 J an item
    car.commit()
    assert refused(car.take(offer(2, items=range(5)))).hold is HoldReason.ENERGY_BUDGET_SPENT
    car.take(offer(3, items=range(4)))
    assert len(car.engine.runs) == 2


def test_a_car_that_would_refuse_every_offer_asks_for_none() -> None:
    car = bench(energy=Energy(budget_wh_per_day=0.03))  # 108 J
    car.take(offer(1, items=(0, 1)))
    for index in (0, 1):
        car.send(e.ItemFinished(car.run_of(1), index, b"\xc0", 1_000.0))  # 40 J an item
    car.commit()
    car.live(1)
    assert car.core.availability is Availability.HOLD
    why = car.core.explain(car.now)
    assert why.hold == HoldReason.ENERGY_BUDGET_SPENT.value
    assert why.summary == "one more item would pass a budget of energy"
    assert only(c.PublishState, car.said)[-1].state.energy_budget_wh == pytest.approx(28 / 3600)
    car.utc_ms += DAY_MS
    car.live(1)
    assert car.core.availability is Availability.READY


def test_the_lesser_of_the_budgets_is_told() -> None:
    car = bench(energy=Energy(budget_wh_per_day=100, budget_wh_per_month=60))
    assert only(c.PublishState, car.said)[-1].state.energy_budget_wh == 60


def test_the_wear_budget_refuses_where_the_pack_would_pay() -> None:
    policy: OwnerPolicy = msgspec.structs.replace(
        POLICY, plugged_only=False, wear=Wear(equivalent_full_cycles_per_year=1e-7)
    )
    car = Bench(policy)
    car.signals["is_plugged"] = False
    car.open()
    answer = refused(car.take(offer(1)))
    assert (answer.reason, answer.hold) == (RefusalReason.HOLD, HoldReason.WEAR_BUDGET_SPENT)


def test_the_ledger_is_written_at_most_once_a_minute_without_a_unit() -> None:
    car = Bench().open()
    car.take(offer(1))
    car.commit()
    wrote = 0
    for _ in range(600):
        said = car.live(1)
        wrote += sum(
            isinstance(write, c.WriteEnergy)
            for command in only(c.Persist, said)
            for write in command.writes
        )
        car.commit()
    assert 9 <= wrote <= 11


def test_a_car_without_work_writes_its_bytes_once_an_hour() -> None:
    car = Bench().open()
    wrote = 0
    for second in range(2 * 3600):
        said = car.send(e.BytesMoved(300, 100))
        said += car.advance(1)
        said += car.sense() if second % 4 == 0 else []
        wrote += sum(
            isinstance(write, c.WriteEnergy)
            for command in only(c.Persist, said)
            for write in command.writes
        )
        car.commit()
    assert 1 <= wrote <= 3


def test_a_package_is_counted_within_the_minute() -> None:
    car = Bench().open()
    car.live(60)
    said = car.send(e.BytesMoved(0, 50_000_000)) + car.live(60)
    writes = [write for command in only(c.Persist, said) for write in command.writes]
    assert any(isinstance(write, c.WriteEnergy) for write in writes)


def test_a_unit_takes_its_energy_with_its_last_chunk() -> None:
    car = Bench().open()
    car.take(offer(1, items=(0, 1)))
    said = car.compute(1, 0, 1)
    (persist,) = [p for p in only(c.Persist, said) if any_chunk_ends(p)]
    rows = [write.row for write in persist.writes if isinstance(write, c.WriteEnergy)]
    assert [row.units for row in rows] == [1]
    assert rows[0].items == 2
    assert only(c.LogUnit, said)[0].energy_method == PowerMethod.STATED.value


def any_chunk_ends(persist: c.Persist) -> bool:
    return any(isinstance(write, c.WriteChunk) and write.ends for write in persist.writes)


def test_leaving_writes_what_is_left() -> None:
    car = Bench().open()
    car.send(e.BytesMoved(7, 8))
    car.send(e.ShutdownRequested())
    car.commit()
    (row,) = car.journal.energy.values()
    assert (row.sent_bytes, row.received_bytes) == (7, 8)


# --- whatever happens ----------------------------------------------------------------------------


class AnyLife(RuleBasedStateMachine):
    """Work, sleep, crashes, clocks, counters and plugs in any order."""

    @initialize()
    def begin(self) -> None:
        self.car = Car()
        self.seen: dict[int, DayEnergy] = {}
        self.drawn_max_j = 0.0
        self.is_computing = False

    @rule(seconds=st.floats(0.01, 40))
    def time_passes(self, seconds: float) -> None:
        self.car.wait(seconds)
        if self.is_computing:
            self.drawn_max_j += limits.POWER_MAX_W * seconds

    @rule(hours=st.floats(0.1, 1_000))
    def the_computer_sleeps(self, hours: float) -> None:
        self.car.boot_ns += round(hours * 3600 * S)
        self.car.utc_ms += round(hours * 3_600_000)
        self.car.sense()
        if self.is_computing:
            self.drawn_max_j += limits.POWER_MAX_W * limits.ENERGY_GAP_MAX_MS / 1000

    @rule(days=st.integers(-40, 40))
    def utc_jumps(self, days: int) -> None:
        self.car.utc_ms += days * DAY_MS

    @rule()
    def work_begins(self) -> None:
        self.car.compute()
        self.is_computing = True

    @rule()
    def work_ends(self) -> None:
        self.car.compute(False)
        self.is_computing = False

    @rule(busy_s=st.floats(0, 20), digest=st.sampled_from([MODEL, OTHER_MODEL]))
    def an_item_ends(self, busy_s: float, digest: str) -> None:
        self.car.item(busy_s, digest)
        self.drawn_max_j += limits.POWER_MAX_W * busy_s

    @rule(busy_s=st.floats(0, 20))
    def an_item_is_lost(self, busy_s: float) -> None:
        self.car.ledger.wasted(busy_s * 1000, self.car.now)
        self.drawn_max_j += limits.POWER_MAX_W * busy_s

    @rule(watts=st.floats(0, limits.POWER_MAX_W), seconds=st.floats(0.1, 2))
    def a_counter_says(self, watts: float, seconds: float) -> None:
        self.car.measured(watts * seconds, seconds)
        self.drawn_max_j += watts * seconds

    @rule()
    def a_counter_begins(self) -> None:
        self.car.measured(0, 0)

    @rule(
        changes=st.fixed_dictionaries(
            {},
            optional={
                "is_plugged": st.sampled_from([True, False, None, 3.0]),
                "battery_power_w": st.sampled_from([None, -200.0, 7_000.0, math.nan]),
                "battery_temperature_c": st.sampled_from([None, -20.0, 25.0, 60.0, 1e9]),
                "charge_percent": st.sampled_from([None, 10.0, 100.0, -4.0]),
            },
        )
    )
    def signals_change(self, changes: dict[str, Any]) -> None:
        self.car.sense(**changes)

    @rule()
    def written(self) -> None:
        self.car.write()

    @rule()
    def crash(self) -> None:
        """What was not written is gone; what was written is there once."""
        written = sum_of(self.car.rows.values())
        # What was booked and not written is lost with the process; what was told of it is not.
        kept = sum_of(self.car.rows.values())
        self.car.told_wear_percent = min(
            self.car.told_wear_percent, kept.cycle_wear_percent + kept.warmth_wear_percent
        )
        self.car.start()
        assert self.car.total == written
        self.seen = {}
        self.is_computing = False

    @invariant()
    def the_books_are_right(self) -> None:
        ledger = self.car.ledger
        assert not list(ledger.problems())
        total = self.car.total
        assert total.total_j <= self.drawn_max_j * (1 + 1e-9) + 1e-6
        wear_percent = total.cycle_wear_percent + total.warmth_wear_percent
        assert self.car.told_wear_percent <= wear_percent * (1 + 1e-9) + 1e-12
        summary = ledger.summary(self.car.now)
        life = summary.lifetime
        assert life.grid_wh + life.pack_wh == pytest.approx(life.total_wh)
        assert life.units_wh + life.overhead_wh == pytest.approx(life.total_wh)
        assert life.total_wh * 3600 == pytest.approx(total.total_j)
        assert summary.today.total_wh <= summary.month.total_wh + 1e-9
        assert summary.month.total_wh <= summary.year.total_wh + 1e-9
        assert summary.year.total_wh <= life.total_wh + 1e-9
        spent = ledger.spent(self.car.now)
        assert spent.wh_today == pytest.approx(summary.today.total_wh)
        assert spent.wh_month == pytest.approx(summary.month.total_wh)
        assert spent.equivalent_full_cycles_year == pytest.approx(
            summary.year.equivalent_full_cycles
        )
        efficiency = self.car.facts.pack_efficiency * self.car.facts.pack_kwh
        assert total.efc == pytest.approx(total.pack_j / 3.6e6 / efficiency)
        self._only_grows()

    def _only_grows(self) -> None:
        for day, row in self.car.ledger.days.items():
            before = self.seen.get(day)
            if before is not None:
                for name in ("grid_j", "pack_j", "units_j", "efc", "items", "computing_s"):
                    assert getattr(row, name) >= getattr(before, name), name
            self.seen[day] = msgspec.structs.replace(row)


AnyLife.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyLife = AnyLife.TestCase


@given(
    st.lists(
        st.builds(
            DayEnergy,
            day=st.integers(-1, 60_000),
            grid_j=st.floats(0, 1e9),
            pack_j=st.floats(0, 1e9),
        ),
        max_size=20,
        unique_by=lambda row: row.day,
    ),
    st.integers(0, 60_000),
)
def test_a_summary_counts_every_row_once(rows: list[DayEnergy], day: int) -> None:
    summary = summarise(rows, day)
    assert summary.lifetime.total_wh * 3600 == pytest.approx(sum(row.total_j for row in rows))
    today = sum(row.total_j for row in rows if row.day == day)
    assert summary.today.total_wh * 3600 == pytest.approx(today)


# --- how often work began -------------------------------------------------------------------------

CAPPED = msgspec.structs.replace(POLICY, cycles_per_day_max=2)


def test_a_cap_on_how_often_work_begins_outlives_the_process() -> None:
    car = Bench(CAPPED)
    for life in range(2):
        car.open()
        car.commit()
        assert car.core.hold is None
        assert max(row.begun for row in car.journal.energy.values()) == life + 1
        car.crash()
    car.open()
    assert car.core.hold is HoldReason.CYCLES_SPENT
    car.utc_ms += DAY_MS
    car.live(11)
    assert car.core.hold is None, "a new UTC day"
    assert car.core.energy_summary(car.now).today.begun == 1
    assert car.core.energy_summary(car.now).lifetime.begun == 3


def test_that_work_began_is_durable_before_the_first_unit_is_taken() -> None:
    car = Bench(CAPPED)
    car.open()
    car.take(offer(1))
    writes = [write for persist in only(c.Persist, car.said) for write in persist.writes]
    begun = next(
        place
        for place, write in enumerate(writes)
        if isinstance(write, c.WriteEnergy) and write.row.begun == 1
    )
    taken = next(place for place, write in enumerate(writes) if isinstance(write, c.WriteAttempt))
    assert begun < taken


def test_without_a_cap_nothing_is_written_for_it_at_once() -> None:
    car = Bench().open()
    assert not only(c.Persist, car.said)
    assert car.core.energy_summary(car.now).today.begun == 1


def test_a_clock_that_goes_back_a_day_finds_that_days_count() -> None:
    car = Bench(CAPPED).open()
    car.sense(is_occupied=True)
    car.sense(is_occupied=False)
    car.live(11)
    assert car.core.hold is None
    car.utc_ms += DAY_MS
    car.sense(is_occupied=True)
    car.utc_ms -= DAY_MS
    car.sense(is_occupied=False)
    car.live(11)
    assert car.core.hold is HoldReason.CYCLES_SPENT
