"""A random life of the dispatcher's world: cars, network, operator and crashes, by choice.

Choices come from Hypothesis or from a seed. `SMALL` are bounds so small that every one is met.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from core_rig import CoreStore, ModelCar, World
from hypothesis import strategies as st
from store_model import DictStore

from edge_runtime.contract import limits
from edge_runtime.contract.messages import Cancelled, Fence, Order, Refused, Taken, UnitOffer
from edge_runtime.contract.reasons import Availability, ItemError, Outcome, RefusalReason
from edge_runtime.dispatcher.core import commands as c
from edge_runtime.dispatcher.core import events as e

CARS = ("car0", "car1", "car2", "car3")
TENANTS = ("ada", "bob", "eve")
SMALL = {
    "WINDOW_JOBS_MAX": 9,
    "TENANT_WINDOW_JOBS_MIN": 2,
    "WINDOW_ITEMS_MAX": 20,
    "LOAD_ITEMS": 6,
    "LOADS_MAX": 2,
    "UNIT_ITEMS_MAX": 4,
    "ENDED_ATTEMPTS_KEPT_MAX": 4,
    "ENDED_JOBS_KEPT_MAX": 6,
    "ATTEMPTS_PER_ITEM_MAX": 6,
    "POISON_DISTINCT_CARS": 2,
    "CANCELS_MAX": 3,
    "UNITS_PER_OFFER_MAX": 2,
    "ORDERS_PER_MESSAGE_MAX": 3,
    "EMPTY_POOL_REBUILD_MS": 50,
    "SMALL_FLEET_CARS": 2,
    "STORY_EVENTS_MAX": 2,
}


class Chooser:
    """Where a random life takes its choices from."""

    def pick(self, options: Sequence[Any]) -> Any:
        raise NotImplementedError


class Seeded(Chooser):
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def pick(self, options: Sequence[Any]) -> Any:
        return options[self.random.randrange(len(options))]


class Drawn(Chooser):
    def __init__(self, data: st.DataObject) -> None:
        self.data = data

    def pick(self, options: Sequence[Any]) -> Any:
        return options[self.data.draw(st.integers(0, len(options) - 1))]


class Life(World):
    """A world whose network keeps messages, and whose cars do as they are told to by chance."""

    def __init__(self, store: Callable[[DictStore], CoreStore] | None = None) -> None:
        super().__init__(store)
        self.to_cars: list[tuple[str, UnitOffer | Order]] = []
        self.to_core: list[e.Event] = []
        self.past: list[e.Event] = []
        self.pages: list[tuple[int, e.JobRequeued]] = []
        self.ends_seen = 0
        self.lossy = True
        self.seen: Counter[str] = Counter()
        for name in CARS:
            self.car(name, units_max=2)

    def deliver_offer(self, vehicle: str, unit: UnitOffer) -> None:
        self._deliver(vehicle, unit)

    def deliver_order(self, vehicle: str, order: Order) -> None:
        self._deliver(vehicle, order)

    def _deliver(self, vehicle: str, message: UnitOffer | Order) -> None:
        if self.lossy:
            self.to_cars.append((vehicle, message))
            del self.to_cars[:-200]
        else:
            self._arrive(vehicle, message)

    def carry_out(self, commands: Sequence[c.Command]) -> None:
        super().carry_out(commands)
        self.seen.update(type(command).__name__ for command in commands)
        self.ends_seen += sum(
            isinstance(x, c.UpdateJob) and x.finished_ms is not None for x in commands
        )

    def restart(self) -> None:
        self.seen += self.core.state.counters
        super().restart()

    def _arrive(self, vehicle: str, message: UnitOffer | Order) -> None:
        if isinstance(message, UnitOffer):
            self.cars[vehicle].hear_offer(message)
        else:
            self.cars[vehicle].hear_order(message)

    def hear(self) -> None:
        """What the cars have said is on its way."""
        for car in self.cars.values():
            said = car.speak()
            self.to_core += said
            self.past += said
        del self.past[:-100]
        del self.to_core[:-200]

    # --- steps ---

    def step(self, choose: Chooser) -> None:
        kinds = [self.car_steps] * 6 + [self.network_steps] + [self.dispatcher_steps] * 2
        choose.pick(choose.pick(kinds)())(choose)
        self.hear()
        if choose.pick([True, True, False]):
            self.delivers_all(choose)
            self.hear()

    def car_steps(self) -> list[Any]:
        return [
            *[self.takes] * 6,
            *[self.finishes_some] * 9,
            *[self.finishes_run] * 2,
            *[self.says_state] * 3,
            self.refuses,
            self.releases,
            self.reboots,
            self.reconnects,
            self.forgets_all,
            self.resends,
            self.lies,
        ]

    def network_steps(self) -> list[Any]:
        return [self.delivers_down, self.delivers_up, self.delivers_all, self.loses, self.repeats]

    def dispatcher_steps(self) -> list[Any]:
        return [
            *[self.submits] * 4,
            *[self.time_passes] * 6,
            self.cancels,
            self.quarantines,
            *[self.requeues] * 2,
            *[self.reads_early] * 2,
            self.dies,
            self.deletes,
        ]

    def a_car(self, choose: Chooser) -> ModelCar:
        return self.cars[choose.pick(CARS)]

    def takes(self, choose: Chooser) -> None:
        car = self.a_car(choose)
        if car.offers:
            car.take(choose.pick(list(car.offers)))

    def finishes_some(self, choose: Chooser) -> None:
        car = self.a_car(choose)
        if not car.runs:
            return
        key = choose.pick(list(car.runs))
        run = car.runs[key]
        done = run.left[: choose.pick([0, 1, 1, 2])]
        rest = run.left[len(done) :]
        failed = {rest[0]: choose.pick(list(ItemError))} if rest and choose.pick([0, 0, 1]) else {}
        ending = choose.pick([None, None, None, *Outcome])
        car.chunk(key, done, failed=failed, ending=ending, busy_ms=choose.pick([0.0, 5.0, 500.0]))

    def finishes_run(self, choose: Chooser) -> None:
        car = self.a_car(choose)
        if car.runs:
            car.finish(choose.pick(list(car.runs)))

    def refuses(self, choose: Chooser) -> None:
        car = self.a_car(choose)
        if car.offers:
            car.refuse(choose.pick(list(RefusalReason)), choose.pick([0, 500, 600_000]))

    def releases(self, choose: Chooser) -> None:
        car = self.a_car(choose)
        if car.runs:
            car.release(choose.pick(list(car.runs)))

    def reboots(self, choose: Chooser) -> None:
        self.a_car(choose).reboot(choose.pick([None, ItemError.CAR_REBOOTED]))

    def reconnects(self, choose: Chooser) -> None:
        car = self.a_car(choose)
        offline = car.offline()
        car.connection += 1
        car.say(*choose.pick([[offline, car.birth()], [car.birth(), offline], [offline]]))

    def says_state(self, choose: Chooser) -> None:
        car = self.a_car(choose)
        ready = [Availability.READY] * 3
        car.say(car.state(choose.pick([*ready, *Availability])))

    def forgets_all(self, choose: Chooser) -> None:
        """Its journal is lost with everything in it."""
        car = self.a_car(choose)
        car.runs.clear()
        car.offers.clear()
        car.unanswered.clear()

    def resends(self, choose: Chooser) -> None:
        self.a_car(choose).resend()

    def lies(self, choose: Chooser) -> None:
        """Something another car said, or about an attempt of its own imagination."""
        car = self.a_car(choose)
        attempts = list(self.model.attempts) or [(1, Fence(1, 1))]
        unit, fence = choose.pick([*attempts[-6:], (77, Fence(3, 3))])
        refused = Refused(unit=unit, fence=fence, reason=RefusalReason.BUSY, retry_after_ms=9)
        verdicts = [Taken(unit=unit, fence=fence), Cancelled(unit=unit, fence=fence), refused]
        lie: e.Event = e.VerdictReceived(vehicle=car.id, verdict=choose.pick(verdicts))
        chunks = [x for x in self.past if isinstance(x, e.ChunkReceived)]
        if chunks and choose.pick([True, False]):
            chunk = choose.pick(chunks).chunk
            changes = choose.pick([{}, {"job": "none"}, {"unit": unit}, {"model": "c" * 64}])
            chunk = msgspec.structs.replace(chunk, **changes)
            lie = e.ChunkReceived(vehicle=car.id, chunk=chunk)
        self.tick(lie)

    def delivers_down(self, choose: Chooser) -> None:
        if self.to_cars:
            self._arrive(*choose.pick(self.to_cars))  # and may arrive again

    def delivers_up(self, choose: Chooser) -> None:
        if self.to_core:
            event = choose.pick(self.to_core)
            self.to_core.remove(event)
            self.tick(event)

    def delivers_all(self, choose: Chooser) -> None:
        del choose
        down, self.to_cars = self.to_cars, []
        for vehicle, message in down:
            self._arrive(vehicle, message)
        up, self.to_core = self.to_core, []
        self.tick(*up)

    def loses(self, choose: Chooser) -> None:
        choose.pick([self.to_cars, self.to_core]).clear()

    def repeats(self, choose: Chooser) -> None:
        if self.past:
            self.tick(choose.pick(self.past))

    def submits(self, choose: Chooser) -> None:
        events = [
            self.submitted(
                choose.pick([1, 1, 3, 9, 30]),
                tenant=choose.pick(TENANTS),
                priority=choose.pick([1, 5, 9]),
                deadline_ms=self.utc_ms + choose.pick([1_000, 60_000, 3_600_000]),
                reference_ms=choose.pick([1.0, 700.0]),
                vehicles=choose.pick([(), (), ("car1", "car3")]),
            )
            for _ in range(choose.pick([1, 1, 5]))
        ]
        self.tick(*events)

    def time_passes(self, choose: Chooser) -> None:
        due = self.core.next_deadline_ms(self.now)
        wait = [] if due is None else [max(0, due - self.boot_ms)]
        self.advance(choose.pick([1, 300, 2_000, 2_000, 9_000, 31_000, *wait]))
        if choose.pick([True, False]):
            self.hear()
            self.tick(*(car.state() for car in self.cars.values()))
        else:
            self.tick()

    def a_job(self, choose: Chooser) -> str | None:
        return choose.pick(list(self.model.number)) if self.model.number else None

    def cancels(self, choose: Chooser) -> None:
        job = self.a_job(choose)
        if job is not None:
            row = self.model.job(job)
            if row.is_open and choose.pick([True, False]):
                self.core.restore_job(row.stored(), in_order=False)  # as the service does
            self.tick(e.JobCancelled(job=job))

    def quarantines(self, choose: Chooser) -> None:
        on = choose.pick([True, False, False])
        self.tick(e.QuarantineSet(vehicle=choose.pick(CARS), on=on))

    def reads_early(self, choose: Chooser) -> None:
        """A requeue is read from the store now, and handled some time later."""
        job = self.a_job(choose)
        if job is not None:
            self.pages.append((self.ends_seen, self.requeue(job)))
            del self.pages[:-2]

    def requeues(self, choose: Chooser) -> None:
        if self.pages:
            read_at, event = self.pages.pop(choose.pick([0, -1]))
            is_lately = self.ends_seen - read_at < limits.ENDED_JOBS_KEPT_MAX
            if is_lately and event.job.spec.id in self.model.number:
                self.tick(event)

    def dies(self, choose: Chooser) -> None:
        """kill -9, before or after the commit of a tick."""
        self.hear()
        up, self.to_core = self.to_core, []
        commands = self.decide(*up)
        if choose.pick([True, False]):
            self.store.commit([x for x in commands if isinstance(x, c.StoreCommand)])
        self.pages.clear()
        self.restart()

    def deletes(self, choose: Chooser) -> None:
        job = self.a_job(choose)
        if job is not None and job not in self.core.state.jobs and not self.loaded:
            self.store.delete(job)
            self.pages = [page for page in self.pages if page[1].job.spec.id != job]

    # --- the end ---

    def heal(self) -> None:
        """The network is good, the cars are honest and know nothing of before."""
        self.hear()
        self.lossy = False
        self.to_cars.clear()
        self.to_core.clear()
        for car in self.cars.values():
            car.runs.clear()
            car.offers.clear()
            car.boot += 1
            car.seq = 0
            car.availability = Availability.READY
            self.tick(car.birth(), car.state())
            self.tick(e.QuarantineSet(vehicle=car.id, on=False))
            car.resend()
        self.settle()
        self.drain()
        for _ in range(100):  # last words that were lost are waited for as long as a lease
            if self.core.state.units:
                self.live(10_000, step_ms=10_000)
        self.is_over()
        self.seen += self.core.state.counters
        self.seen.update({reason.value: n for reason, n in self.rejected.items()})

    def is_over(self) -> None:
        state = self.core.state
        assert not state.jobs
        assert not state.units
        assert (state.window_items, state.window_bytes) == (0, 0)
        assert (state.loading_items, state.loading_bytes, state.loading) == (0, 0, {})
        assert not any(car.unanswered for car in self.cars.values())
        for job in self.model.jobs.values():
            assert not job.is_open
            if job.state.value != "cancelled":
                assert set(job.results) == set(job.items), job.spec.id
        assert not self.model.live or all(
            not self.model.jobs[row.job_no].is_open for row in self.model.live.values()
        )
        assert len(state.turns) == 0
