"""Many seeds over several processes: counting what fired, checking that runs repeat, shrinking.

Invariants
- A seed's verdict depends on the seed and the scenario alone, not on the process or the order.
- One seed in a hundred is run twice; two traces of one seed are a failure of their own.
- A failure is shrunk before it is shown: nemeses, jobs, items and cars that it does not need are
  taken away.
"""

import hashlib
import logging
import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import structlog
from msgspec import Meta

from edge_runtime.contract.errors import ConfigError
from edge_runtime.contract.limits import SIM_SEEDS_PER_TASK, SIM_SHRINK_MAX_S, SIM_SHRINK_RUNS_MAX
from edge_runtime.lifeline import die_with
from edge_runtime.sim.faults import FAULT_KINDS, NEMESES
from edge_runtime.sim.runner import Verdict, make_ground, run_seed
from edge_runtime.sim.world import Ground, Scale

TWICE_EVERY: Final = 100


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a world is made of. What is not named each seed draws for itself."""

    nemeses: tuple[str, ...] | None = None
    cars: Annotated[int, Meta(ge=1, le=100)] | None = None
    jobs: Annotated[int, Meta(ge=1, le=1_000)] | None = None
    items_max: Annotated[int, Meta(ge=1, le=1_000)] | None = None
    faults_s: Annotated[float, Meta(gt=0, le=86_400)] | None = None
    healed_s: Annotated[float, Meta(gt=0, le=86_400)] = 3_600.0

    def scale(self, seed: int) -> Scale:
        """How large the world of a seed is: few of them are large, for small ones find as much."""
        rng = random.Random(f"{seed}/scale")  # noqa: S311 - a simulation must be repeatable
        cars, jobs = rng.choice((1, 2, 2, 2, 3, 3)), rng.randint(2, 5)
        items_max, faults_s = rng.choice((3, 10)), rng.choice((20.0, 30.0, 40.0, 60.0))
        return Scale(
            self.cars or cars,
            self.jobs or jobs,
            self.items_max or items_max,
            self.faults_s or faults_s,
            self.healed_s,
        )

    def sized(self, seed: int) -> "Scenario":
        """This scenario with the sizes of the seed named."""
        scale = self.scale(seed)
        return msgspec.structs.replace(
            self,
            cars=scale.cars,
            jobs=scale.jobs,
            items_max=scale.items_max,
            faults_s=scale.faults_s,
        )

    def run(self, seed: int, ground: Ground, *, keeps_story: bool = False) -> Verdict:
        """Run one seed of it."""
        return run_seed(
            seed, ground, scale=self.scale(seed), nemeses=self.nemeses, keeps_story=keeps_story
        )


class Replay(Scenario, frozen=True, kw_only=True):
    """A scenario with the seed that once failed in it, and what it found."""

    seed: int
    found: str


def read_scenario(path: Path, kind: type[Scenario] = Scenario) -> Scenario:
    """A scenario from a TOML file. Raises `ConfigError` naming the field."""
    try:
        scenario = msgspec.toml.decode(path.read_bytes(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    check_nemeses(scenario.nemeses or ())
    return scenario


def check_nemeses(names: Sequence[str]) -> None:
    """Raise `ConfigError` for a name that no nemesis has."""
    for name in names:
        if name not in NEMESES:
            raise ConfigError(f"no nemesis {name[:40]!r}; there are {', '.join(NEMESES)}")


@dataclass
class Tally:
    """What a campaign saw."""

    seeds: int = 0
    failures: list[Verdict] = field(default_factory=list)
    fired: Counter[str] = field(default_factory=Counter)
    rare: Counter[str] = field(default_factory=Counter)
    steps: int = 0
    virtual_s: float = 0.0
    twice: int = 0
    trace: int = 0
    """Of all seeds: that of equal campaigns is equal, in whatever order their seeds ended."""

    def add(self, verdict: Verdict) -> None:
        """One more seed."""
        self.seeds += 1
        self.fired.update(verdict.fired)
        self.rare.update(verdict.rare)
        self.steps += verdict.steps
        self.virtual_s += verdict.virtual_s
        one = hashlib.sha256(f"{verdict.seed} {verdict.trace}".encode()).digest()
        self.trace ^= int.from_bytes(one[:8])
        if verdict.violations:
            self.failures.append(verdict)

    @property
    def never_fired(self) -> tuple[str, ...]:
        """Faults that no seed had: a campaign in which one is idle proves nothing about it."""
        return tuple(kind for kind in FAULT_KINDS if not self.fired[kind])


def campaign(
    seeds: range,
    scenario: Scenario,
    *,
    processes: int = 1,
    until_failure: bool = False,
    on_verdict: Callable[[Verdict], None] = lambda _: None,
) -> Tally:
    """Run every seed; `on_verdict` hears of each as it ends, in any order."""
    tally = Tally()
    for verdict in _verdicts(seeds, scenario, processes):
        tally.add(verdict)
        tally.twice += verdict.seed % TWICE_EVERY == 0
        on_verdict(verdict)
        if until_failure and tally.failures:
            break
    return tally


def _verdicts(seeds: range, scenario: Scenario, processes: int) -> Iterator[Verdict]:
    if processes == 1:
        silence()
        with make_ground() as ground:
            for seed in seeds:
                yield _run_checked(seed, scenario, ground)
        return
    tasks = iter(
        [seeds[n : n + SIM_SEEDS_PER_TASK] for n in range(0, len(seeds), SIM_SEEDS_PER_TASK)]
    )
    # Not forked: the caller may have threads, a progress bar's for one.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        processes, mp_context=context, initializer=_start, initargs=(os.getpid(),)
    ) as pool:
        running: set[Future[list[Verdict]]] = set()
        try:
            while True:
                while len(running) < 2 * processes and (task := next(tasks, None)) is not None:
                    running.add(pool.submit(_run_some, task, scenario))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield from future.result()
        finally:
            pool.shutdown(cancel_futures=True)


_GROUND: list[Ground] = []
_STACK: Final = ExitStack()


def _start(parent_pid: int) -> None:
    """In each process: the packages, and quiet."""
    die_with(parent_pid)
    silence()
    _GROUND.append(_STACK.enter_context(make_ground()))


def _run_some(seeds: range, scenario: Scenario) -> list[Verdict]:
    return [_run_checked(seed, scenario, _GROUND[0]) for seed in seeds]


def _run_checked(seed: int, scenario: Scenario, ground: Ground) -> Verdict:
    """Run a seed, one in a hundred of them twice."""
    verdict = scenario.run(seed, ground)
    if seed % TWICE_EVERY == 0:
        again = scenario.run(seed, ground)
        if again.trace != verdict.trace:
            what = f"determinism: trace {verdict.trace}, then {again.trace}"
            verdict = msgspec.structs.replace(verdict, violations=(*verdict.violations, what))
    return verdict


def silence() -> None:
    """No log lines: thousands of processes live and die in a campaign, all of them loudly."""
    logging.disable(logging.CRITICAL)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        logger_factory=structlog.ReturnLoggerFactory(),
    )


# --- shrinking --------------------------------------------------------------------------------


def shrink(failed: Verdict, scenario: Scenario, ground: Ground) -> tuple[Scenario, Verdict]:
    """The smallest scenario found in which the seed still breaks one of the same invariants.

    It names every size. A world that does not drain takes seconds, so the search ends after so
    many runs or so long.
    """
    end_s = time.monotonic() + SIM_SHRINK_MAX_S
    kinds = {violation.partition(":")[0] for violation in failed.violations}
    drawn = scenario.sized(failed.seed)
    best = msgspec.structs.replace(drawn, nemeses=failed.nemeses)
    found = failed
    runs = 0
    is_smaller = True
    while is_smaller:
        is_smaller = False
        for smaller in _smaller(best):
            runs += 1
            verdict = smaller.run(failed.seed, ground)
            if kinds & {violation.partition(":")[0] for violation in verdict.violations}:
                best, found, is_smaller = smaller, verdict, True
                break
            if runs >= SIM_SHRINK_RUNS_MAX or time.monotonic() > end_s:
                return best, found
    return best, found


def _smaller(scenario: Scenario) -> Iterator[Scenario]:
    names = scenario.nemeses or ()
    for name in names:
        rest = tuple(other for other in names if other != name)
        yield msgspec.structs.replace(scenario, nemeses=rest)
    jobs, items_max, cars = scenario.jobs or 1, scenario.items_max or 1, scenario.cars or 1
    changes: list[dict[str, Any]] = []
    if jobs > 1:
        changes += [{"jobs": 1}, {"jobs": jobs - 1}]
    if items_max > 1:
        changes += [{"items_max": 1}, {"items_max": items_max // 2}]
    if cars > 1:
        changes += [{"cars": cars - 1}]
    for change in changes:
        yield msgspec.structs.replace(scenario, **change)


def command_for(seed: int, scenario: Scenario) -> str:
    """What a person types to see the failure again."""
    parts = [f"edge-runtime simulate --seeds {seed}:{seed + 1}"]
    if scenario.nemeses is not None:
        parts.append(f"--nemeses {','.join(scenario.nemeses) or 'none'}")
    parts += [
        f"--{name.replace('_', '-')} {getattr(scenario, name)}"
        for name in ("cars", "jobs", "items_max", "faults_s")
        if getattr(scenario, name) is not None
    ]
    return " ".join(parts).replace("--jobs", "--world-jobs")
