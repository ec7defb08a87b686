"""A chaos campaign on real processes: faults, then healing, then the checker's verdict.

    python tests/chaos/run.py --minutes 3 --seed 7

A line of progress every few seconds on stderr, one JSON object on stdout, exit code 0 for a kept
promise. On failure the folder with every log, journal and the store stays, and the command that
runs the same campaign again is said. The seed decides jobs and faults, not the kernel's timing.
"""

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import evidence
import history as h
from nemeses import Nemeses
from workload import REAL_MODEL
from world import REAL_MODELS, REPOSITORY, Shape, World

PROGRESS_S = 5.0
DRAIN_S = 240.0
JOURNAL_S = 60.0
ODD_LINES_SHOWN = 20
WATCHED = "engine_watched"
"""A hold that found an engine to watch: without one, nothing was shown about leave."""


@dataclass(frozen=True)
class Lane:
    """Nemeses that follow one another, so many seconds apart; the first of each come in order."""

    kinds: tuple[str, ...]
    gap_min_s: float
    gap_max_s: float


LANES = (
    Lane(("dispatcher_kill",), 0.5, 3.0),
    Lane(("car_kill",), 2.0, 5.0),
    Lane(("broker_kill_keeping", "broker_kill_forgetting"), 7.0, 14.0),
    Lane(("engine_kill",), 3.0, 8.0),
    Lane(("dispatcher_restart", "car_restart"), 6.0, 15.0),
    Lane(("requester_kill",), 6.0, 14.0),
    Lane(
        ("car_pause", "dispatcher_pause", "engine_pause", "broker_pause", "requester_pause"),
        1.0,
        5.0,
    ),
    Lane(("wire_cut",), 1.0, 4.0),
    Lane(("wire_delay", "wire_black_hole"), 0.5, 2.0),
    Lane(("wire_black_hole",), 1.0, 4.0),
    Lane(("disk_full_car", "disk_full_store", "disk_full_store_kill"), 4.0, 12.0),
    Lane(("flood",), 8.0, 20.0),
    Lane(("owner", "unplug", "hot", "drive", "consent"), 1.0, 4.0),
)
KINDS = tuple(dict.fromkeys(kind for lane in LANES for kind in lane.kinds))


@dataclass
class Campaign:
    """One run in one folder."""

    options: argparse.Namespace
    folder: Path
    fired: Counter[str] = field(default_factory=Counter)
    began_s: float = field(default_factory=time.monotonic)
    codes: dict[str, int] = field(default_factory=dict)
    watches: list[h.EngineWatch] = field(default_factory=list)
    disk_faults: str = ""

    async def run(self) -> tuple[h.History, list[str]]:
        """Faults, drain, end; what everybody wrote down, and what took too long."""
        options = self.options
        shape = Shape(
            folder=self.folder,
            seed=options.seed,
            cars=options.cars,
            open_jobs=options.open_jobs,
            large_items=options.large_items,
            has_real_model=(REAL_MODELS / REAL_MODEL).is_dir() and not options.no_real_model,
        )
        world = World(shape)
        late: list[str] = []
        async with world.running():
            nemeses = Nemeses(world, random.Random(options.seed), self.watches)
            reporter = asyncio.create_task(self._report(world))
            try:
                await self._harm(nemeses)
                self.say("healing")
                await self._drain(world, late)
                left = self._stop_all(world)
            finally:
                reporter.cancel()
        self.disk_faults = ", ".join(sorted({disk.kind for disk in world.disks.values()}))
        return self._collect(world, nemeses, left), late

    # --- faults ------------------------------------------------------

    async def _harm(self, nemeses: Nemeses) -> None:
        end_s = time.monotonic() + self.options.minutes * 60
        latest_s = end_s + max(60.0, self.options.minutes * 60)
        lanes = [
            asyncio.create_task(self._keep_harming(lane, nemeses, index))
            for index, lane in enumerate(LANES)
        ]
        try:
            while time.monotonic() < end_s or (self._missing() and time.monotonic() < latest_s):
                for lane in lanes:
                    if lane.done():
                        lane.result()
                await asyncio.sleep(0.2)
        finally:
            # A nemesis under way heals what it harmed: it is waited for, not cancelled.
            self._is_over.set()
            await asyncio.gather(*lanes)

    def __post_init__(self) -> None:
        self._is_over = asyncio.Event()

    def _missing(self) -> dict[str, int]:
        """Kinds that have not been done as often as they must, and how often that is."""
        done = self.fired + Counter({WATCHED: len(self.watches)})
        return {kind: least for kind, least in self.least.items() if done[kind] < least}

    @property
    def least(self) -> dict[str, int]:
        least = dict.fromkeys((*KINDS, WATCHED), 1)
        least["dispatcher_kill"] = self.options.least_dispatcher_kills
        least["car_kill"] = self.options.least_car_kills
        half = self.options.least_broker_kills // 2
        least["broker_kill_keeping"] = self.options.least_broker_kills - half
        least["broker_kill_forgetting"] = half
        return least

    async def _keep_harming(self, lane: Lane, nemeses: Nemeses, index: int) -> None:
        dice = random.Random(f"{self.options.seed}/{index}")
        does: dict[str, Callable[[], Awaitable[bool]]] = nemeses.kinds
        first = list(lane.kinds)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(dice.uniform(lane.gap_min_s, lane.gap_max_s)):
                    await self._is_over.wait()
            if self._is_over.is_set():
                return
            kind = first[0] if first else dice.choice(lane.kinds)
            if await does[kind]():
                self.fired[kind] += 1
                if kind in first:
                    first.remove(kind)
            elif first:
                first.append(first.pop(0))  # nothing to do it to now: the others first

    # --- healing -----------------------------------------------------

    async def _drain(self, world: World, late: list[str]) -> None:
        """With nothing in its way, every job must end and every journal become empty."""
        world.mqtt_wire.heal()
        world.http_wire.heal()
        for name, car in world.cars.items():
            world.consent(name, given=True)
            if not car.is_running:
                car.start()
        (self.folder / "finish").touch()
        requester = world.requester
        async with requester.lock:  # its end is now its own
            try:
                await world.until("end", lambda: not requester.is_running, DRAIN_S)
            except TimeoutError:
                late.append(f"the requester's jobs did not end within {DRAIN_S:g} s")
            try:
                await world.until(
                    "empty journals",
                    lambda: not any(evidence.read_journal(world.journal(c)) for c in world.cars),
                    JOURNAL_S if not late else 1.0,
                )
            except TimeoutError:
                self.say("a journal is not empty")  # the checker names what is in it

    def _stop_all(self, world: World) -> list[str]:
        """SIGTERM to everything; processes that are left."""
        self.codes["requester"] = world.requester.stop()
        for service in (*world.cars.values(), world.dispatcher):
            self.codes[service.name] = service.stop()
        left = world.left_over()
        return [line for line in left if "mosquitto" not in line]

    # --- afterwards --------------------------------------------------

    def _collect(self, world: World, nemeses: Nemeses, left: list[str]) -> h.History:
        shape = world.shape
        requester, fed = evidence.read_notes(
            world.notes,
            shape.seed,
            world.models,
            has_real_model=shape.has_real_model,
            large_items=shape.large_items,
        )
        deaths = [death for service in world.services for death in service.deaths]
        deaths += [f"{name} stopped with code {code}" for name, code in self.codes.items() if code]
        deaths += world.observer.unreadable
        return h.History(
            requester=requester,
            fed=fed,
            database=evidence.read_store(world.store),
            published=tuple(world.observer.published),
            offers=tuple(world.observer.offers),
            cars={
                name: h.Car(
                    evidence.read_journal(world.journal(name)), evidence.read_car_log(car.log)
                )
                for name, car in world.cars.items()
            },
            watches=tuple(nemeses.watches),
            leaked=tuple(left),
            deaths=tuple(deaths),
        )

    async def _report(self, world: World) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            kills = self.kills()
            counts = " ".join(f"{name} {number}" for name, number in kills.items())
            notes = world.notes.stat().st_size if world.notes.exists() else 0
            self.say(
                f"kills: {counts}; other faults {self.fired.total() - sum(kills.values())};"
                f" published results heard {world.observer.heard}; notes {notes // 1024} KiB"
            )

    def kills(self) -> dict[str, int]:
        fired = self.fired
        return {
            "dispatcher": fired["dispatcher_kill"] + fired["disk_full_store_kill"],
            "broker": fired["broker_kill_keeping"] + fired["broker_kill_forgetting"],
            "car": fired["car_kill"],
            "engine": fired["engine_kill"],
            "requester": fired["requester_kill"],
        }

    def say(self, text: str) -> None:
        sys.stderr.write(f"{time.monotonic() - self.began_s:7.1f} s  {text}\n")

    def summary(self, history: h.History, late: list[str]) -> dict[str, Any]:
        verdicts = h.check(history)
        counts = h.count(verdicts)
        missing = self._missing()
        results = history.database.results
        seen = [e for event in history.requester if isinstance(event, h.Saw) for e in event.entries]
        return {
            "ok": not verdicts and not missing and not late,
            "seed": self.options.seed,
            "seconds": round(time.monotonic() - self.began_s, 1),
            "kills": self.kills(),
            "fired": dict(sorted(self.fired.items())),
            "jobs": sum(isinstance(event, h.Accepted) for event in history.requester),
            "items": len(seen),
            "items_failed": Counter(
                entry.digest for entry in seen if entry.digest.startswith("error:")
            ),
            "attempts": len(history.database.attempts),
            "results_in_store": len(results),
            "published_heard": len(history.published),
            "fed": len(history.fed),
            "disk_faults": self.disk_faults,
            "engine_watches": len(self.watches),
            "verdicts": counts,
            "lost": counts["lost"] + counts["job_missing"] + counts["cursor_gap"],
            "doubled": counts["doubled"] + counts["cursor_repeat"],
            "never_fired": missing,
            "late": late,
            "examples": [f"{v.fault.value}: {v.detail}" for v in verdicts[:40]],
        }


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3.0, help="length of the fault phase")
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time")
    parser.add_argument("--cars", type=int, default=3)
    parser.add_argument("--open-jobs", type=int, default=6, help="jobs that are open at once")
    parser.add_argument("--large-items", type=int, default=1_000, help="least items of a large job")
    parser.add_argument("--least-dispatcher-kills", type=int, default=5)
    parser.add_argument("--least-broker-kills", type=int, default=3)
    parser.add_argument("--least-car-kills", type=int, default=6)
    parser.add_argument("--no-real-model", action="store_true")
    parser.add_argument("--keep", action="store_true", help="keep the folder of a good run too")
    parser.add_argument("--folder", type=Path, help="where; default: beside the models")
    options = parser.parse_args(arguments)
    if options.seed is None:
        options.seed = random.randrange(1 << 20)
    return options


def main() -> int:
    options = parse(sys.argv[1:])
    if options.folder is None:
        # Beside the models: a disk, no memory file system that makes fsync free.
        parent = REPOSITORY / ".data"
        parent.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"chaos-{options.seed}-", dir=parent))
    else:
        folder = options.folder.resolve()
        folder.mkdir(parents=True)
    campaign = Campaign(options, folder)
    again = f"make chaos ARGS='--minutes {options.minutes:g} --seed {options.seed}'"
    campaign.say(f"seed {options.seed}, folder {folder}")
    is_ok = False
    # Asked to end, it still ends every process that it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        history, late = asyncio.run(campaign.run())
        summary = campaign.summary(history, late)
        summary["again"] = again
        odd = [line for log in sorted(folder.glob("*.log")) for line in evidence.odd_lines(log)]
        summary["odd_lines"] = len(odd)
        for line in odd[:ODD_LINES_SHOWN]:
            campaign.say(line)
        is_ok = summary["ok"]
        sys.stdout.write(json.dumps(summary) + "\n")
    finally:
        if is_ok and not options.keep:
            shutil.rmtree(folder)
        else:
            campaign.say(f"logs, journals and store: {folder}\nagain: {again}")
    return 0 if is_ok else 1


if __name__ == "__main__":
    sys.exit(main())
