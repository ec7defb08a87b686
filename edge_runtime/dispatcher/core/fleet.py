"""The fleet registry: one row per car, one column per number.

Eligibility is one vector expression over a million cars.

Invariants
- A row is never reused: a car keeps its row for the life of the process.
- `connection` and `seq` only grow within a boot; `boot` falls only by a live Birth.
- `in_flight` and `backlog_ms` are what this dispatcher has offered and not seen end; they are
  never taken from the car's word.

Scalar access goes through memoryviews of the same arrays: four times cheaper than numpy's own.
"""

from collections.abc import Iterable
from typing import Any, Final

import numpy as np

from edge_runtime.contract import limits
from edge_runtime.contract.errors import Rejected, RejectionReason
from edge_runtime.contract.http import CarView
from edge_runtime.contract.messages import Birth, Offline, VehicleState
from edge_runtime.contract.reasons import Availability, HoldReason

AVAILABILITIES: Final = tuple(Availability)
HOLDS: Final = (None, *HoldReason)
_AVAILABILITY_CODE: Final = {member: code for code, member in enumerate(AVAILABILITIES)}
_HOLD_CODE: Final = {member: code for code, member in enumerate(HOLDS)}
READY_CODE: Final = _AVAILABILITY_CODE[Availability.READY]
WORKING_CODE: Final = _AVAILABILITY_CODE[Availability.WORKING]

Mask = np.ndarray[Any, np.dtype[np.bool_]]

ONLINE, QUARANTINED = 1, 2
NEVER_SEEN: Final = -(1 << 62)
ALL_ROWS: Final = slice(None)
_NAN: Final = float("nan")

_COLUMNS: Final[dict[str, tuple[str, Any]]] = {
    # name: (dtype, initial value)
    "boot": ("i8", 0),
    "connection": ("i4", 0),
    "seq": ("i8", -1),
    "seen_ms": ("i8", NEVER_SEEN),
    "retry_at_ms": ("i8", 0),
    "availability": ("u1", _AVAILABILITY_CODE[Availability.UNKNOWN]),
    "hold": ("u1", 0),
    "flags": ("u1", 0),
    "units_max": ("i2", 0),
    "in_flight": ("i2", 0),
    "region": ("u2", 0),
    "hardware": ("u2", 0),
    "tasks": ("u4", 0),
    "backlog_ms": ("f4", 0.0),
    "slowness": ("f4", 1.0),
    "charge_percent": ("f4", _NAN),
    "battery_temperature_c": ("f4", _NAN),
    "compute_temperature_c": ("f4", _NAN),
    "items_done": ("u4", 0),
}
_TASK_BITS: Final = 31
_REFERENCES_BIT: Final = 1 << _TASK_BITS
"""Of the tasks column: the car fetches inputs that do not travel inline."""
_CONNECTION_TOP: Final = int(np.iinfo("i4").max)
_ITEMS_DONE_TOP: Final = int(np.iinfo("u4").max)


class Names:
    """Numbers for strings (regions, hardware classes, models): dense, bounded, from 1."""

    def __init__(self, maximum: int) -> None:
        self._numbers: dict[str, int] = {}
        self._names: list[str] = [""]
        self._maximum = maximum

    def number(self, name: str) -> int:
        """The number of `name`; 0 when the table is full (such a car matches no requirement)."""
        known = self._numbers.get(name)
        if known is not None:
            return known
        if len(self._names) > self._maximum:
            return 0
        self._numbers[name] = number = len(self._names)
        self._names.append(name)
        return number

    def find(self, name: str) -> int | None:
        """The number of `name` where a car has named it."""
        return self._numbers.get(name)

    def name(self, number: int) -> str:
        """The string of a number."""
        return self._names[number]


class Fleet:
    """The registry. Rows are ints; `row_of` finds one by vehicle id."""

    boot: "memoryview[int]"
    connection: "memoryview[int]"
    seq: "memoryview[int]"
    seen_ms: "memoryview[int]"
    retry_at_ms: "memoryview[int]"
    availability: "memoryview[int]"
    hold: "memoryview[int]"
    flags: "memoryview[int]"
    units_max: "memoryview[int]"
    in_flight: "memoryview[int]"
    region: "memoryview[int]"
    hardware: "memoryview[int]"
    tasks: "memoryview[int]"
    backlog_ms: "memoryview[float]"
    slowness: "memoryview[float]"
    charge_percent: "memoryview[float]"
    battery_temperature_c: "memoryview[float]"
    compute_temperature_c: "memoryview[float]"
    items_done: "memoryview[int]"

    def __init__(self, capacity: int = 1024) -> None:
        self.row_of: dict[str, int] = {}
        self.vehicles: list[str] = []
        self.regions = Names(maximum=60_000)
        self.hardwares = Names(maximum=60_000)
        self.models = Names(maximum=1_000_000)
        self._task_bits: dict[str, int] = {}
        self.changes = 0
        self._capacity = 0
        self.arrays: dict[str, np.ndarray[Any, Any]] = {}
        self.resident = np.zeros((limits.RESIDENT_MODELS_MAX, 0), dtype="i4")
        self._grow(capacity)

    def __len__(self) -> int:
        return len(self.vehicles)

    def _grow(self, capacity: int) -> None:
        used = self._capacity
        for name, (dtype, initial) in _COLUMNS.items():
            grown = np.full(capacity, initial, dtype=dtype)
            if used:
                grown[:used] = self.arrays[name]
            self.arrays[name] = grown
            setattr(self, name, grown.data)
        resident = np.zeros((limits.RESIDENT_MODELS_MAX, capacity), dtype="i4")
        resident[:, :used] = self.resident
        self.resident = resident
        self._capacity = capacity

    def column(self, name: str) -> np.ndarray[Any, Any]:
        """One column over the rows in use."""
        return self.arrays[name][: len(self.vehicles)]

    @property
    def bytes_used(self) -> int:
        """Bytes of the columns (the id index comes on top)."""
        return sum(array.nbytes for array in self.arrays.values()) + self.resident.nbytes

    # --- what cars say ---

    def born(self, birth: Birth, *, is_live: bool = False) -> int:
        """Apply a Birth; returns the row. Rejects one of an older boot or connection.

        Of an older boot one is taken that is `is_live`, said now and not kept by a broker: a car
        whose disk was replaced, with a clock that is behind, counts its boots anew. Should it be
        a late one after all, the next state is of a boot that is not known, and asks for another.
        """
        row = self.row_of.get(birth.vehicle)
        if row is None:
            row = self._add(birth.vehicle)
        boot, connection = self.boot[row], self.connection[row]
        is_older = (birth.boot, birth.connection) < (boot, connection)
        if is_older and not (is_live and birth.boot < boot):
            raise Rejected(RejectionReason.OLD_BOOT, birth.vehicle)
        if birth.boot != self.boot[row]:
            self.seq[row] = -1
            self.seen_ms[row] = NEVER_SEEN
        self.boot[row] = birth.boot
        self.connection[row] = min(birth.connection, _CONNECTION_TOP)
        self.flags[row] |= ONLINE
        self.units_max[row] = min(birth.limits.units_max, limits.CAR_UNITS_MAX)
        self.region[row] = self.regions.number(birth.region)
        self.hardware[row] = self.hardwares.number(birth.hardware)
        can_fetch = _REFERENCES_BIT if birth.takes_references else 0
        self.tasks[row] = self.task_mask(birth.tasks) | can_fetch
        self._set_resident(row, birth.resident)
        self.retry_at_ms[row] = 0
        self.changes += 1
        return row

    def went(self, offline: Offline) -> int:
        """Apply an Offline; rejects one of an older boot or connection (design §5)."""
        row = self.require(offline.vehicle)
        if (offline.boot, offline.connection) < (self.boot[row], self.connection[row]):
            raise Rejected(RejectionReason.OLD_BOOT, offline.vehicle)
        self.flags[row] &= ~ONLINE
        self.changes += 1
        return row

    def reported(self, state: VehicleState, now_ms: int) -> int:
        """Apply a state; rejects unknown cars, other boots, and old sequence numbers."""
        row = self.row_of.get(state.vehicle)
        if row is None:
            raise Rejected(RejectionReason.UNKNOWN_VEHICLE, state.vehicle)
        boot = self.boot[row]
        if state.boot != boot:
            reason = (
                RejectionReason.OLD_BOOT if state.boot < boot else RejectionReason.UNKNOWN_VEHICLE
            )
            raise Rejected(reason, state.vehicle)
        if state.seq <= self.seq[row]:
            raise Rejected(RejectionReason.OLD_SEQUENCE, state.vehicle)
        self.seq[row] = state.seq
        self.seen_ms[row] = now_ms
        self.flags[row] |= ONLINE
        self.availability[row] = _AVAILABILITY_CODE[state.availability]
        self.hold[row] = _HOLD_CODE[state.hold]
        signals = state.signals
        charge, battery = signals.charge_percent, signals.battery_temperature_c
        compute = signals.compute_temperature_c
        self.charge_percent[row] = _NAN if charge is None else charge
        self.battery_temperature_c[row] = _NAN if battery is None else battery
        self.compute_temperature_c[row] = _NAN if compute is None else compute
        if state.resident:
            self._set_resident(row, state.resident)
        self.changes += 1
        return row

    def require(self, vehicle: str) -> int:
        """The row of a known car; `Rejected` otherwise."""
        row = self.row_of.get(vehicle)
        if row is None:
            raise Rejected(RejectionReason.UNKNOWN_VEHICLE, vehicle)
        return row

    def _add(self, vehicle: str) -> int:
        row = len(self.vehicles)
        if row >= limits.FLEET_MAX_CARS:
            raise Rejected(RejectionReason.FLEET_FULL, vehicle)
        if row >= self._capacity:
            self._grow(self._capacity * 2)
        self.row_of[vehicle] = row
        self.vehicles.append(vehicle)
        return row

    def _set_resident(self, row: int, digests: Iterable[str]) -> None:
        numbers = [self.models.number(digest) for digest in digests]
        numbers += [0] * (limits.RESIDENT_MODELS_MAX - len(numbers))
        self.resident[:, row] = numbers

    # --- what this dispatcher does ---

    def offered(self, row: int, expected_ms: float) -> None:
        """Book a unit on a car."""
        self.in_flight[row] += 1
        self.backlog_ms[row] += expected_ms

    def progressed(self, row: int, expected_ms: float) -> None:
        """Take finished work off a car's backlog."""
        self.backlog_ms[row] = max(0.0, self.backlog_ms[row] - expected_ms)
        self.changes += 1

    def worked(self, row: int, items: int) -> None:
        """The car finished items."""
        self.items_done[row] = min(self.items_done[row] + items, _ITEMS_DONE_TOP)

    def ended(self, row: int, left_ms: float) -> None:
        """A unit left the car with `left_ms` of its booked time not worked off."""
        self.in_flight[row] -= 1
        if self.in_flight[row] <= 0:
            self.backlog_ms[row] = 0.0
        else:
            self.backlog_ms[row] = max(0.0, self.backlog_ms[row] - left_ms)
        self.changes += 1

    def quarantine(self, row: int, *, on: bool) -> None:
        """Give the car no work (or work again)."""
        self.flags[row] = (self.flags[row] & ~QUARANTINED) | (QUARANTINED if on else 0)
        self.changes += 1

    def is_quarantined(self, row: int) -> bool:
        """Whether the operator has quarantined the car."""
        return bool(self.flags[row] & QUARANTINED)

    def unseen(self) -> list[str]:
        """Cars that have not said how they are since this process, or their boot, began."""
        rows = np.flatnonzero(self.column("seen_ms") == NEVER_SEEN)
        return [self.vehicles[row] for row in rows.tolist()]

    # --- eligibility ---

    def task_mask(self, tasks: Iterable[str]) -> int:
        """Bits for task names; names over the 31st have none (such jobs find no car)."""
        mask = 0
        for task in tasks:
            bit = self._task_bits.get(task)
            if bit is None:
                if len(self._task_bits) >= _TASK_BITS:
                    continue
                bit = self._task_bits[task] = 1 << len(self._task_bits)
            mask |= bit
        return mask

    def can_serve(
        self,
        task: str,
        region: str | None,
        hardware: str | None,
        vehicles: tuple[str, ...],
        by_reference: bool = False,
        *,
        rows: slice = ALL_ROWS,
    ) -> Mask:
        """Rows that could ever run such a job, whatever they do now (bool[rows])."""
        mask: Mask = (self.column("tasks")[rows] & np.uint32(self._task_bits.get(task, 0))) != 0
        if by_reference:
            mask &= (self.column("tasks")[rows] & np.uint32(_REFERENCES_BIT)) != 0
        if region is not None:
            mask &= self.column("region")[rows] == (self.regions.find(region) or 65_535)
        if hardware is not None:
            mask &= self.column("hardware")[rows] == (self.hardwares.find(hardware) or 65_535)
        if vehicles:
            named = np.zeros(len(self.vehicles), dtype=bool)
            named[[self.row_of[v] for v in vehicles if v in self.row_of]] = True
            mask &= named[rows]
        return mask

    def available(self, now_ms: int, rows: slice = ALL_ROWS) -> Mask:
        """Rows that may be offered work now, slots aside (bool[rows])."""
        availability = self.column("availability")[rows]
        mask: Mask = (availability == READY_CODE) | (availability == WORKING_CODE)
        mask &= self.column("flags")[rows] == ONLINE
        mask &= self.column("seen_ms")[rows] > now_ms - limits.STATE_STALE_MS
        mask &= self.column("retry_at_ms")[rows] <= now_ms
        return mask

    def has_room(self, rows: slice = ALL_ROWS) -> Mask:
        """Rows that hold less than they may, in units and in expected time (bool[rows])."""
        mask: Mask = self.column("in_flight")[rows] < self.column("units_max")[rows]
        mask &= self.column("backlog_ms")[rows] < limits.BACKLOG_TARGET_MS
        return mask

    def is_available(self, row: int, now_ms: int) -> bool:
        """`available` for one row."""
        return (
            self.availability[row] in (READY_CODE, WORKING_CODE)
            and self.flags[row] == ONLINE
            and self.seen_ms[row] > now_ms - limits.STATE_STALE_MS
            and self.retry_at_ms[row] <= now_ms
        )

    def holds_model(self, number: int, rows: slice = ALL_ROWS) -> Mask:
        """Rows on which a model is resident (bool[rows])."""
        first, *others = self.resident[:, : len(self.vehicles)][:, rows]
        mask: Mask = first == number
        for slot in others:
            mask |= slot == number
        return mask

    def is_resident(self, row: int, model: str) -> bool:
        """Whether the car said that it holds the model loaded."""
        number = self.models.find(model)
        return number is not None and number in self.resident[:, row].tolist()

    # --- for people ---

    def view(self, row: int, now_ms: int) -> CarView:
        """One car, for the operator."""

        def number(column: "memoryview[float]") -> float | None:
            value = column[row]
            return round(value, 1) if value == value else None  # noqa: PLR0124 - NaN test

        seen = self.seen_ms[row]
        return CarView(
            vehicle=self.vehicles[row],
            availability=AVAILABILITIES[self.availability[row]],
            hold=HOLDS[self.hold[row]],
            online=bool(self.flags[row] & ONLINE),
            quarantined=self.is_quarantined(row),
            age_ms=max(0, now_ms - seen) if seen != NEVER_SEEN else -1,
            free_units=max(0, self.units_max[row] - self.in_flight[row]),
            units_in_flight=self.in_flight[row],
            backlog_ms=round(self.backlog_ms[row], 1),
            items_done=self.items_done[row],
            region=self.regions.name(self.region[row]),
            hardware=self.hardwares.name(self.hardware[row]),
            charge_percent=number(self.charge_percent),
            battery_temperature_c=number(self.battery_temperature_c),
            compute_temperature_c=number(self.compute_temperature_c),
            resident=tuple(self.models.name(int(n)) for n in self.resident[:, row] if n),
        )

    def counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """Cars by availability (offline ones as "offline") and held cars by reason."""
        online = (self.column("flags") & ONLINE) != 0
        by_availability: dict[str, int] = {"offline": int((~online).sum())}
        numbers = np.bincount(self.column("availability")[online], minlength=len(AVAILABILITIES))
        for code, member in enumerate(AVAILABILITIES):
            if numbers[code]:
                by_availability[member.value] = int(numbers[code])
        holds = np.bincount(self.column("hold")[online], minlength=len(HOLDS))
        by_hold = {
            reason.value: int(holds[code])
            for code, reason in enumerate(HOLDS)
            if reason is not None and holds[code]
        }
        return by_availability, by_hold

    def counts_by_region(self) -> dict[str, dict[str, int]]:
        """Cars, ready, working, held and offline cars of each region."""
        regions = self.column("region")
        online = (self.column("flags") & ONLINE) != 0
        availability = self.column("availability")
        held = online & ~np.isin(availability, (READY_CODE, WORKING_CODE))
        masks = {
            "cars": np.ones(len(regions), dtype=bool),
            "ready": online & (availability == READY_CODE),
            "working": online & (availability == WORKING_CODE),
            "held": held,
            "offline": ~online,
        }
        size = int(regions.max(initial=0)) + 1
        columns = {name: np.bincount(regions[mask], minlength=size) for name, mask in masks.items()}
        return {
            self.regions.name(number): {
                name: int(column[number]) for name, column in columns.items()
            }
            for number in range(1, size)
            if columns["cars"][number]
        }
