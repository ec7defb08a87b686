"""A car alone: no network for a day, none at its start, and a clock that is a day wrong."""

import asyncio
import contextlib
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import pytest
from agent_rig import POLICY, VEHICLE, is_ready, until
from brokers import BrokerProcess, make_embedded
from car_bench import Bench, offer, only
from scripted_dispatcher import ScriptedDispatcher, row, scripted_dispatcher, unit_offer

from edge_runtime.bus import open_bus
from edge_runtime.contract import limits
from edge_runtime.contract.messages import ItemDone, ItemFailed, Refused, Taken
from edge_runtime.contract.package import Package
from edge_runtime.contract.reasons import (
    HoldReason,
    ItemError,
    Outcome,
    RefusalReason,
    ReleaseReason,
)
from edge_runtime.sim import faults
from edge_runtime.sim import loop as sim_loop
from edge_runtime.sim.campaign import silence
from edge_runtime.sim.runner import make_ground, run_seed
from edge_runtime.sim.world import Planned, Scale, World
from edge_runtime.vehicle.core import commands as c
from edge_runtime.vehicle.core import events as e
from edge_runtime.vehicle.journal import Journal
from edge_runtime.vehicle.models.store import PackageStore

Make = Callable[[str], Package]
DAY_S = 86_400
LEASE_S = 30


# --- leases --------------------------------------------------------------------------------------


def cut_off_with_work_that_waits() -> Bench:
    """A car that has taken a unit whose package is not there yet, and lost the broker."""
    car = Bench().open()
    car.take(offer(1, model="c" * 64))
    car.send(e.BusDisconnected())
    return car


def test_work_whose_lease_ran_out_unheard_is_not_begun() -> None:
    car = cut_off_with_work_that_waits()
    car.live(LEASE_S - 2)
    assert car.core.work.attempts, "the lease stands"
    car.live(4)
    assert not car.core.work.attempts
    said = car.send(e.ModelReady("c" * 64))
    assert not only(c.SubmitRun, car.said + said)
    car.commit()
    car.send(e.BusConnected())
    car.live(1)
    (chunk,) = car.published()
    assert chunk.ending is not None
    assert (chunk.ending.outcome, chunk.ending.reason) == (Outcome.RELEASED, ReleaseReason.DEADLINE)


def test_work_that_can_begin_within_its_lease_does() -> None:
    car = cut_off_with_work_that_waits()
    car.live(LEASE_S - 5)
    assert only(c.SubmitRun, car.send(e.ModelReady("c" * 64)))


def test_while_the_connection_stands_leases_are_the_dispatchers() -> None:
    car = Bench().open()
    car.take(offer(1, model="c" * 64))
    car.live(10 * LEASE_S)
    assert car.core.work.attempts
    assert only(c.SubmitRun, car.send(e.ModelReady("c" * 64)))


def test_a_short_cut_costs_no_lease() -> None:
    car = cut_off_with_work_that_waits()
    for _ in range(10):
        car.live(LEASE_S - 5)
        car.send(e.BusConnected())
        car.send(e.BusDisconnected())
    assert car.core.work.attempts


def test_a_car_that_slept_for_a_day_begins_nothing_that_it_held() -> None:
    """Its connection looks as it did the evening before."""
    car = Bench().open()
    car.take(offer(1), offer(2))
    car.compute(1, 0)
    before = len(only(c.SubmitRun, car.said))
    car._turn_to(car.boot_ns + DAY_S * 1_000_000_000)
    car.sense()
    car.send(e.Tick())
    assert len(only(c.SubmitRun, car.said)) == before
    cancelled = {command.run_id for command in only(c.CancelRun, car.said)}
    assert cancelled == set(car.engine.runs), "what was begun is stopped"
    for run_id in cancelled:
        car.send(e.RunEnded(run_id, e.RunOutcome.CANCELLED))
    car.commit()
    car.live(1)
    assert car.endings() == {(unit, offer(unit).fence): Outcome.RELEASED for unit in (1, 2)}
    assert [item.index for chunk in car.published() for item in chunk.items] == [0]


# --- the bound on what waits ----------------------------------------------------------------------


def test_a_car_that_nobody_answers_stops_at_the_bound_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "UNANSWERED_MAX_BYTES", 40_000)
    car = Bench().open()
    car.take(*(offer(unit, items=range(20)) for unit in (1, 2, 3)))
    car.send(e.BusDisconnected())
    finished = 0
    while car.engine.runs and not car.engine.is_frozen and finished < 60:
        unit, index = divmod(finished, 20)
        car.start(unit + 1, index)
        car.finish(unit + 1, index, "x" * 2_000)
        finished += 1
        car.live(0.3)  # the chunk closes by its age
        car.commit()
    assert finished < 60, "it stopped"
    assert car.core.hold is HoldReason.STORAGE_FULL
    car.live(1)
    car.commit()
    assert not car.core.work.attempts, "what it had not begun is given back"
    held_bytes = sum(map(len, car.journal.chunks.values()))
    assert held_bytes < 40_000 + 3 * 4_000, "the bound, and the last words of three units"
    car.send(e.BusConnected())
    car.live(5)
    done = [(chunk.unit, item.index) for chunk in car.published() for item in chunk.items]
    assert done == [(1 + n // 20, n % 20) for n in range(finished)], "every one is handed over"
    for unit in (1, 2, 3):
        car.answer(unit)
    car.commit()
    car.live(30)
    assert not car.journal.chunks
    assert car.core.hold is None, "and work goes on"


def test_a_journal_is_bounded_by_default(tmp_path: Path) -> None:
    assert limits.UNANSWERED_MAX_BYTES + limits.JOURNAL_RESERVE_BYTES < limits.JOURNAL_MAX_BYTES
    offers = limits.CAR_UNITS_MAX * (limits.UNIT_MAX_BYTES + limits.PARAMETERS_MAX_BYTES)
    all_of_it = limits.UNANSWERED_MAX_BYTES + offers + limits.JOURNAL_RESERVE_BYTES
    assert all_of_it * 1.1 < limits.JOURNAL_MAX_BYTES
    journal = Journal(tmp_path / "journal.db")
    pages, size = (
        journal._connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("max_page_count", "page_size")
    )
    journal.close()
    assert pages * size <= limits.JOURNAL_MAX_BYTES


# --- a day, in virtual time -----------------------------------------------------------------------


@dataclass
class DayAlone:
    """The broker goes when the car is at work, and comes back a day later. What was seen."""

    world: World | None = None
    lease_over: int = 0
    at_return: int = 0
    journal_bytes: int = 0

    async def __call__(self, world: World, rng: Random) -> None:
        del rng
        self.world = world
        while sum(world.ledger.starts.values()) < 3:  # noqa: ASYNC110 - virtual time, no event
            await asyncio.sleep(0.05)
        world.ledger.fault("broker_death")
        world.broker.kill()
        await asyncio.sleep(2 * (limits.LEASE_MS + limits.LEASE_COLD_MS) / 1000)
        self.lease_over = sum(world.ledger.starts.values())
        await asyncio.sleep(DAY_S / 2)
        # A cold start in the middle of it: the power fails, and there is still no network.
        world.kill(world.cars[0].host, 5.0, cuts_power=True)
        await asyncio.sleep(DAY_S / 2)
        self.at_return = sum(world.ledger.starts.values())
        folder = world.cars[0].host.folder
        self.journal_bytes = sum(file.stat().st_size for file in folder.iterdir())
        world.broker.start()


@pytest.mark.timeout(300)
def test_a_day_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    day = DayAlone()
    planned = World._plan

    def early(world: World) -> Iterator[Planned]:
        for job in planned(world):
            yield replace(job, after_s=1.0, deadline_s=3.0 * DAY_S)

    monkeypatch.setattr(World, "_plan", early)
    monkeypatch.setitem(faults.NEMESES, "a day alone", day)
    monkeypatch.setattr(sim_loop, "SIM_STEPS_MAX", 50_000_000)
    silence()
    scale = Scale(cars=1, jobs=3, items_max=30, faults_s=DAY_S + 600.0, healed_s=3_600.0)
    with make_ground() as ground:
        verdict = run_seed(5, ground, scale=scale, nemeses=("a day alone",))
    assert not verdict.violations
    assert day.world is not None
    jobs = day.world.ledger.jobs.values()
    assert jobs
    assert all(job.is_done and all(seen.ok for seen in job.read) for job in jobs)
    assert sum(len(job.read) for job in jobs) == sum(len(job.data) for job in jobs)
    assert day.lease_over >= 3
    assert day.at_return == day.lease_over, "nothing was begun whose lease was over"
    assert 0 < day.journal_bytes < 2 << 20


# --- real processes -------------------------------------------------------------------------------


@dataclass
class LonelyCar:
    """One car, life after life, whose broker comes and goes."""

    folder: Path
    broker: BrokerProcess
    namespace: str = field(default_factory=lambda: f"t{secrets.token_hex(4)}")
    process: subprocess.Popen[bytes] | None = None
    lives: int = 0

    @property
    def log(self) -> Path:
        return self.folder / f"log.{self.lives}"

    def start(self, clock_offset_s: int = 0) -> None:
        self.lives += 1
        script = str(Path(__file__).with_name("offline_car.py"))
        arguments = [str(self.folder), self.broker.url(5), self.namespace, str(clock_offset_s)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, script, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def says(self, *words: str) -> None:
        """Wait for a line of its log with all these words."""
        await until(
            lambda: any(
                all(word in line for word in words) for line in self.log.read_text().splitlines()
            )
        )

    def end(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(timeout=30)
            self.process = None

    @contextlib.asynccontextmanager
    async def dispatcher(self) -> AsyncIterator[ScriptedDispatcher]:
        url = self.broker.url(5)
        async with scripted_dispatcher(open_bus, url, VEHICLE, self.namespace) as peer:
            yield peer


@pytest.fixture
def lonely_car(tmp_path: Path) -> Iterator[LonelyCar]:
    (tmp_path / "policy.toml").write_text(POLICY)
    car = LonelyCar(tmp_path, make_embedded(tmp_path).start())
    yield car
    car.end(signal.SIGKILL)
    car.broker.kill()


async def leave_work_behind(car: LonelyCar, chain: Package) -> dict[tuple[int, int], bytes]:
    """Work on two units, hear no answer, lose the power and the network; what was published."""
    store = PackageStore(car.folder / "car" / "models", 1 << 30)
    await store.add(chain.folder)
    await store.close()
    async with car.dispatcher() as peer:
        car.start()
        await peer.until(lambda: is_ready(peer))
        peer.answers_chunks = False
        peer.offer(*(unit_offer(chain, [row(160)] * 100, unit) for unit in (1, 2)))
        await peer.until(peer.of)
        car.end(signal.SIGKILL)
        published = {(chunk.unit, chunk.seq): chunk for chunk in peer.chunks}
    car.broker.kill()
    return published


def check_handed_over(peer: ScriptedDispatcher, published: dict[tuple[int, int], object]) -> None:
    again = {(chunk.unit, chunk.seq): chunk for chunk in peer.chunks}
    assert {key: again[key] for key in published} == published
    failed = [
        x for unit in (1, 2) for x in peer.results(unit).values() if isinstance(x, ItemFailed)
    ]
    assert [item.code for item in failed] == [ItemError.CAR_REBOOTED], "the item in hand, no other"


@pytest.mark.parametrize("clock_offset_s", [0, DAY_S, -DAY_S])
async def test_a_cold_start_without_network_and_with_any_clock(
    lonely_car: LonelyCar, synthetic: Make, clock_offset_s: int
) -> None:
    chain, car = synthetic("chain"), lonely_car
    published = await leave_work_behind(car, chain)
    car.start(clock_offset_s)
    await car.says("vehicle_started", "attempts=2")
    await car.says("availability", "ready")
    car.broker.start()
    async with car.dispatcher() as peer:
        endings = [await peer.ending(unit) for unit in (1, 2)]
        reasons = {chunk.ending.reason for chunk in endings if chunk.ending}
        assert reasons == {ReleaseReason.REBOOT}, "nothing of the old life is begun"
        await peer.until(
            lambda: published.keys() <= {(chunk.unit, chunk.seq) for chunk in peer.chunks}
        )
        check_handed_over(peer, published)
        await peer.until(lambda: is_ready(peer))
        await new_work(peer, chain, clock_offset_s)


async def new_work(peer: ScriptedDispatcher, chain: Package, clock_offset_s: int) -> None:
    """Offers whose time is up are refused by any clock; good ones as far as it can be known."""
    now_ms = time.time_ns() // 1_000_000
    late = unit_offer(chain, [row(160)], 8, remaining_ms=0, deadline_ms=now_ms - 1_000)
    good = unit_offer(chain, [row(160)], 9, deadline_ms=now_ms + 600_000)
    peer.offer(late, good)
    answers = {}

    def both_answered() -> bool:
        answers.update({verdict.unit: verdict for verdict in peer.verdicts})
        return {8, 9} <= answers.keys()

    await peer.until(both_answered)
    assert isinstance(answers[8], Refused)
    assert answers[8].reason is RefusalReason.EXPIRED
    if clock_offset_s > 0:
        # It cannot tell its own clock from a message that was a day on its way: it does not work.
        assert isinstance(answers[9], Refused)
        assert answers[9].reason is RefusalReason.EXPIRED
        return
    assert isinstance(answers[9], Taken), "a clock that is behind, or right, keeps no work away"
    await peer.ending(9)
    assert isinstance(peer.results(9)[0], ItemDone)


async def test_a_day_behind_is_noticed(lonely_car: LonelyCar, synthetic: Make) -> None:
    """The boot before was numbered by a later clock: schedules are not trusted to this one."""
    chain, car = synthetic("chain"), lonely_car
    await leave_work_behind(car, chain)
    car.start(-DAY_S)
    await car.says("vehicle_started")
    await car.says("availability", "ready")
    assert "clock_judged" not in car.log.read_text()
    with (car.folder / "policy.toml").open("a") as policy:
        policy.write('\n[[schedule]]\nstart = "00:00"\nend = "23:59"\n')
    await car.says("availability", HoldReason.CLOCK_UNTRUSTED.value)
