"""What is done to the processes: each nemesis is one fault, done once, and says its name.

A nemesis holds the lock of what it harms until that runs again, so that two of them never
quarrel over one process; different ones do meet.
"""

import asyncio
import contextlib
import json
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import psutil
from flood import flood
from history import EngineWatch
from wire import Wire
from world import Service, World, accepts

BEYOND_LEASE_S = 6.5
"""The hurried lease is 5 s."""
SHORT_PAUSE_S = 3.0
END_S = 20.0
UP_FIRST_SHARE = 0.8
UP_PATIENCE_S = 8.0
UP_AT_MOST_S = 3.0
ENDED_WELL = frozenset({0, -signal.SIGTERM})
"""A process that has not come up yet ends by the signal itself."""
LOOK_S = 0.15
WATCH_FROM_S = 0.6
"""After a hold was told: the stop itself takes milliseconds, a busy machine takes its time."""
HOLDS: dict[str, dict[str, object]] = {
    "owner": {"is_occupied": True},
    "unplug": {"is_plugged": False},
    "hot": {"compute_temperature_c": 95.0},
    "drive": {"is_parked": False},
}


@dataclass
class Nemeses:
    """All kinds, on one world; `watches` is what was seen of engines under a hold."""

    world: World
    dice: random.Random
    watches: list[EngineWatch] = field(default_factory=list)

    @property
    def kinds(self) -> dict[str, Callable[[], Awaitable[bool]]]:
        """Name -> does it once; False where there was nothing to do it to."""
        return {
            "dispatcher_kill": self.kill_dispatcher,
            "broker_kill_keeping": lambda: self.kill_broker(forgets=False),
            "broker_kill_forgetting": lambda: self.kill_broker(forgets=True),
            "car_kill": lambda: self.kill(self.any_car()),
            "engine_kill": self.kill_engine,
            "requester_kill": lambda: self.kill(self.world.requester),
            "dispatcher_restart": lambda: self.restart(self.world.dispatcher),
            "car_restart": lambda: self.restart(self.any_car()),
            "dispatcher_pause": lambda: self.pause(self.world.dispatcher),
            "car_pause": lambda: self.pause(self.any_car()),
            "engine_pause": self.pause_engine,
            "broker_pause": lambda: self.pause(self.world.broker, SHORT_PAUSE_S),
            "requester_pause": lambda: self.pause(self.world.requester, SHORT_PAUSE_S),
            "wire_cut": self.cut,
            "wire_delay": self.delay,
            "wire_black_hole": self.black_hole,
            "disk_full_store": self.fill_store,
            "disk_full_store_kill": self.kill_unable_to_commit,
            "disk_full_car": self.fill_car,
            "flood": self.flood,
            **{name: lambda name=name: self.hold(name) for name in HOLDS},  # type: ignore[misc]  # the default binds the name
            "consent": self.withdraw,
        }

    def any_car(self) -> Service:
        return self.dice.choice(list(self.world.cars.values()))

    # --- processes ---------------------------------------------------

    async def kill(self, service: Service) -> bool:
        async with service.lock:
            if not service.is_running:
                return False
            service.kill()
            await asyncio.sleep(self.dice.choice((0.0, 0.0, 0.3, 1.0)))
            service.start()
            return True

    async def kill_dispatcher(self) -> bool:
        """Mostly one that has come up: killed only while it starts, it would never do anything."""
        if self.dice.random() < UP_FIRST_SHARE:
            with contextlib.suppress(TimeoutError):
                await self.world.until(
                    "dispatcher", lambda: accepts(self.world.http_port), UP_PATIENCE_S
                )
            await asyncio.sleep(self.dice.uniform(0.0, UP_AT_MOST_S))
        return await self.kill(self.world.dispatcher)

    async def restart(self, service: Service) -> bool:
        """As an update does: asked to end, it ends well and soon, whatever else goes on."""
        async with service.lock:
            if not service.is_running:
                return False
            code = await asyncio.to_thread(service.stop, END_S)
            if code not in ENDED_WELL and time.monotonic() > service.excused_until_s:
                service.deaths.append(f"{service.name} was asked to end: code {code}")
            service.start()
            return True

    async def kill_broker(self, *, forgets: bool) -> bool:
        broker = self.world.broker
        async with broker.lock:
            broker.kill()
            if forgets:
                for path in self.world.broker_data.iterdir():
                    path.unlink()
            await asyncio.sleep(self.dice.choice((0.0, 0.5, 1.5)))
            broker.start()
            return True

    async def kill_engine(self) -> bool:
        for name in self.dice.sample(list(self.world.cars), len(self.world.cars)):
            engine = self.world.engine_of(name)
            if engine is not None:
                with contextlib.suppress(psutil.NoSuchProcess):
                    engine.kill()
                    return True
        return False

    async def pause(self, service: Service, pause_s: float = BEYOND_LEASE_S) -> bool:
        async with service.lock:
            if not service.is_running:
                return False
            service.send(signal.SIGSTOP)
            await asyncio.sleep(pause_s)
            service.send(signal.SIGCONT)
            return True

    async def pause_engine(self) -> bool:
        """The engine hangs: the car must notice by itself."""
        for name in self.dice.sample(list(self.world.cars), len(self.world.cars)):
            engine = self.world.engine_of(name)
            if engine is not None:
                with contextlib.suppress(psutil.NoSuchProcess):
                    engine.suspend()
                    await asyncio.sleep(BEYOND_LEASE_S)
                    engine.resume()
                return True
        return False

    # --- the network -------------------------------------------------

    def _any_wire(self) -> Wire:
        return self.dice.choice((self.world.mqtt_wire, self.world.mqtt_wire, self.world.http_wire))

    async def cut(self) -> bool:
        link = self._any_wire().any_link(self.dice)
        if link is None:
            return False
        link.cut()
        return True

    async def delay(self) -> bool:
        link = self._any_wire().any_link(self.dice)
        if link is None:
            return False
        link.delay_s = self.dice.uniform(0.05, 1.0)
        await asyncio.sleep(self.dice.uniform(1.0, 4.0))
        link.heal()
        return True

    async def black_hole(self) -> bool:
        """Nothing comes through, in one direction or both, and nobody is told."""
        link = self._any_wire().any_link(self.dice)
        if link is None:
            return False
        gates = self.dice.choice(((link.up,), (link.down,), (link.up, link.down)))
        for gate in gates:
            gate.clear()
        await asyncio.sleep(self.dice.uniform(2.0, 8.0))
        if self.dice.random() < 0.5:
            link.cut()
        link.heal()
        return True

    # --- disks -------------------------------------------------------

    async def fill_store(self) -> bool:
        return await self._fill("store", self.world.dispatcher)

    async def kill_unable_to_commit(self) -> bool:
        """Death between a decision and its commit, which a full disk makes seconds long."""
        dispatcher, disk = self.world.dispatcher, self.world.disks["store"]
        async with dispatcher.lock:
            if not dispatcher.is_running:
                return False
            await asyncio.to_thread(disk.fill, dispatcher)
            await asyncio.sleep(self.dice.uniform(0.5, 2.5))
            dispatcher.kill()
            disk.free(dispatcher)
            dispatcher.start()
            return True

    async def fill_car(self) -> bool:
        name = self.dice.choice(list(self.world.cars))
        return await self._fill(name, self.world.cars[name])

    async def _fill(self, name: str, service: Service) -> bool:
        disk = self.world.disks[name]
        # Its end is excused: who cannot write may give up, and is started again.
        service.excused_until_s = time.monotonic() + 60.0
        await asyncio.to_thread(disk.fill, service)
        await asyncio.sleep(self.dice.uniform(1.0, 5.0))
        disk.free(service)
        service.excused_until_s = time.monotonic() + 5.0
        return True

    # --- a lying car -------------------------------------------------

    async def flood(self) -> bool:
        car = self.dice.choice(list(self.world.cars))
        offers = [o for o in self.world.observer.recent_offers() if o.vehicle != car]
        seed = self.dice.randrange(1 << 30)
        port = self.world.broker_port
        return await asyncio.to_thread(flood, port, car, list(self.world.cars), offers, seed) > 0

    # --- the owner ---------------------------------------------------

    async def hold(self, kind: str) -> bool:
        signals = HOLDS[kind]
        release = json.dumps({"release": list(signals)}).encode()
        name = await self._busiest_car()
        car = self.world.cars[name]
        async with self._kept_alive(car) as runs:
            if not runs:
                return False
            car.tell(json.dumps(signals).encode())
            await self._watch(name, kind)
            car.tell(release)
            return True

    async def withdraw(self) -> bool:
        """The owner's file says no, then yes again."""
        name = await self._busiest_car()
        async with self._kept_alive(self.world.cars[name]) as runs:
            if not runs:
                return False
            self.world.consent(name, given=False)
            # The file is looked at once a second.
            await asyncio.sleep(1.0)
            await self._watch(name, "without consent")
            self.world.consent(name, given=True)
            return True

    @contextlib.asynccontextmanager
    async def _kept_alive(self, service: Service) -> AsyncIterator[bool]:
        """Nobody else harms it meanwhile: a car that begins anew has heard of no hold."""
        async with service.lock:
            yield service.is_running

    async def _busiest_car(self) -> str:
        """The one whose engine computes now: only there is anything to stop."""
        names = self.dice.sample(list(self.world.cars), len(self.world.cars))
        before = {name: _cpu_s(self.world.engine_of(name)) for name in names}
        await asyncio.sleep(LOOK_S)
        after = {name: _cpu_s(self.world.engine_of(name)) for name in names}
        return max(names, key=lambda name: _used_s(before[name], after[name]))

    async def _watch(self, name: str, hold: str) -> None:
        """CPU that the engine uses from the stop bound on, while the owner has the car."""
        await asyncio.sleep(WATCH_FROM_S)
        first = last = _cpu_s(self.world.engine_of(name))
        until_s = time.monotonic() + self.dice.uniform(0.5, 3.0)
        while time.monotonic() < until_s:
            await asyncio.sleep(0.1)
            seen = _cpu_s(self.world.engine_of(name))
            # Frozen first and killed a little later: the last reading of the same process counts.
            if first is not None and seen is not None and seen[0] == first[0]:
                last = seen
        if first is not None:
            self.watches.append(EngineWatch(name, hold, _used_s(first, last)))


def _used_s(before: tuple[int, float] | None, after: tuple[int, float] | None) -> float:
    """CPU seconds between two readings of one process."""
    if before is None or after is None or before[0] != after[0]:
        return 0.0
    return after[1] - before[1]


def _cpu_s(engine: psutil.Process | None) -> tuple[int, float] | None:
    if engine is None:
        return None
    with contextlib.suppress(psutil.Error):
        times = engine.cpu_times()
        return engine.pid, times.user + times.system
    return None
