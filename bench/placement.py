"""The dispatcher's core over a fleet of a million cars: placing, hearing, and what a car costs.

`placements_per_s`: the best free car for each of 200 distinct sets of requirements in turn, booked,
rebuilt pools included. `state_updates_per_s`: a state of each car decoded from its bytes and
applied to the registry. `bytes_per_car`: the growth of this process while the cars are born, the
index by id included. `units_placed_per_s` goes on to cut units from jobs and to make their
attempts and offers, as a tick does. One process; nothing is mocked, nothing is sent. Rates are by
processor time: what shares the cores slows this process down, but is not counted as its own.
"""

import gc
import time
from collections.abc import Iterator
from typing import Final

import msgspec
import psutil
from _rig import Load, figure, median, say

from edge_runtime.contract import codec, limits
from edge_runtime.contract.clock import NS_PER_MS, Now
from edge_runtime.contract.messages import (
    CONTRACT_VERSION,
    Birth,
    Item,
    VehicleLimits,
    VehicleState,
)
from edge_runtime.contract.reasons import Availability
from edge_runtime.contract.signals import Signals
from edge_runtime.dispatcher.core.commands import BeginAttempt
from edge_runtime.dispatcher.core.events import JobSpec, JobSubmitted
from edge_runtime.dispatcher.core.fleet import Fleet
from edge_runtime.dispatcher.core.machine import DispatcherCore
from edge_runtime.dispatcher.core.placement import Placement, Requirement

CARS: Final = 1_000_000
SETS: Final = 200
PLACEMENTS: Final = 200_000
ROUNDS: Final = 5
STATES_A_PART: Final = 100_000
ITEM_MS: Final = 30.0
NOW_MS: Final = 1_000_000
DIGESTS: Final = tuple(f"{number:064x}" for number in range(SETS))
_SIGNALS: Final = Signals(
    charge_percent=80.0,
    battery_temperature_c=20.0,
    is_plugged=True,
    is_parked=True,
    is_occupied=False,
    compute_temperature_c=45.0,
)


def vehicle(number: int) -> str:
    """An opaque id, as long as a real one."""
    return f"{number:016x}"


def births() -> Iterator[Birth]:
    """A fleet of 20 regions; each car holds one of eight models."""
    for number in range(CARS):
        yield Birth(
            vehicle=vehicle(number),
            boot=1,
            connection=1,
            contract=CONTRACT_VERSION,
            runtime="0.1",
            vss="6.0",
            hardware="x86-64",
            tasks=("tensor",),
            resident=(DIGESTS[number % 8],),
            limits=VehicleLimits(units_max=64),
            region=f"region-{number % 20}",
        )


def states(first: int, seq: int) -> list[bytes]:
    """What so many cars say, encoded."""
    ready = VehicleState(
        vehicle="",
        boot=1,
        seq=seq,
        at_ms=NOW_MS,
        availability=Availability.READY,
        hold=None,
        free_units=4,
        energy_budget_wh=12.5,
        signals=_SIGNALS,
    )
    return [
        codec.encode(msgspec.structs.replace(ready, vehicle=vehicle(number)))
        for number in range(first, first + STATES_A_PART)
    ]


def measure_states(fleet: Fleet) -> float:
    """States per second over every car."""
    decoder = codec.state_decoder()
    spent_s = 0.0
    for first in range(0, CARS, STATES_A_PART):
        payloads = states(first, seq=1)
        started_s = time.process_time()
        for payload in payloads:
            fleet.reported(decoder.decode(payload), NOW_MS)
        spent_s += time.process_time() - started_s
    return CARS / spent_s


def requirements() -> list[Requirement]:
    """Half of them for a model that many cars hold, in one region; half for one that none does."""
    warm = [
        Requirement(DIGESTS[number % 8], "tensor", region=f"region-{number // 8}")
        for number in range(SETS // 2)
    ]
    cold = [Requirement(DIGESTS[8 + number], "tensor") for number in range(SETS // 2)]
    assert len({*warm, *cold}) == SETS
    return [*warm, *cold]


def measure_placements(fleet: Fleet) -> tuple[float, int]:
    """Placements per second, and how many pools were built for them."""
    placement = Placement(fleet)
    wanted = requirements()
    booked = []
    started_s = time.process_time()
    for _ in range(PLACEMENTS // SETS):
        for requirement in wanted:
            row = placement.choose(requirement, NOW_MS)
            assert row is not None, requirement
            fleet.offered(row, ITEM_MS)
            booked.append(row)
    rate = PLACEMENTS / (time.process_time() - started_s)
    for row in booked:
        fleet.ended(row, ITEM_MS)
    return rate, placement.rebuilds


def measure_ticks(fleet: Fleet) -> float:
    """Units per second through whole ticks, their attempts and offers made."""
    core = DispatcherCore(epoch=1, fleet=fleet)
    now = Now(NOW_MS * NS_PER_MS, NOW_MS)
    items = tuple(Item(index=index, media_type="x", data=bytes(60)) for index in range(200))
    for number, requirement in enumerate(requirements()):
        spec = JobSpec(
            id=f"job{number}",
            tenant=f"tenant{number % 10}",
            requirement=requirement,
            parameters=b"\x80",
            purpose="batch",
            priority=5,
            items=len(items),
            submitted_ms=NOW_MS,
            deadline_ms=10 * NOW_MS,
            retention_ms=NOW_MS,
            reference_ms=float(limits.UNIT_TARGET_MS),  # one item fills a unit
        )
        core.handle(JobSubmitted(spec=spec, items=items), now)
    placed = 0
    started_s = time.process_time()
    while True:
        commands = core.finish_tick(now)
        begun = sum(isinstance(command, BeginAttempt) for command in commands)
        if not begun:
            return placed / (time.process_time() - started_s)
        placed += begun


def resident_bytes() -> int:
    """This process's resident memory."""
    rss: int = psutil.Process().memory_info().rss
    return rss


def main() -> None:
    """Measure and print."""
    with Load() as load:
        gc.collect()
        before = resident_bytes()
        fleet = Fleet()
        for birth in births():
            fleet.born(birth)
        gc.collect()
        bytes_per_car = (resident_bytes() - before) / CARS
        gc.freeze()
        states_per_s = measure_states(fleet)
        rounds = []
        for _ in range(ROUNDS):
            rate, rebuilds = measure_placements(fleet)
            rounds.append(rate)
            say(f"placement: {rate:.0f} placements/s")
        units_per_s = measure_ticks(fleet)
    shared = "one core of 2: this process alone; rates by its processor time"
    facts = {"shared": shared, "digits": 0, "cars": CARS, **load.facts()}
    figure(
        "placements_per_s",
        median(rounds),
        "placements/s",
        ">= 100000",
        **facts,
        requirement_sets=SETS,
        pools_built=rebuilds,
        best=round(max(rounds)),
        worst=round(min(rounds)),
    )
    figure("units_placed_per_s", units_per_s, "units/s", ">= 10000", **facts)
    figure("state_updates_per_s", states_per_s, "states/s", ">= 200000", **facts)
    figure(
        "bytes_per_car",
        bytes_per_car,
        "B",
        "<= 300",
        **facts,
        columns_bytes=round(fleet.bytes_used / CARS, 1),
    )


if __name__ == "__main__":
    main()
