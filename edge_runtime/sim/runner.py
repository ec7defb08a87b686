"""One seed, from nothing to a verdict."""

import asyncio
import contextlib
import gc
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from edge_runtime.contract.limits import CHUNK_RESEND_MAX_MS, HOST_ANNOUNCE_EVERY_S
from edge_runtime.contract.package import read_package
from edge_runtime.sim.faults import NEMESES, RARER, end_quarantine, heal
from edge_runtime.sim.invariants import check_end, kept_rows
from edge_runtime.sim.loop import SimLoop, Stuck
from edge_runtime.sim.world import Ground, Scale, World
from edge_runtime.vehicle.models.importers.synthetic import write_synthetic

_DRAIN_STEP_S: Final = 5.0
_SETTLE_S: Final = CHUNK_RESEND_MAX_MS / 1000 + 5.0
"""Longer than any wait between two sendings of a chunk: what nobody wants must go."""
_WISH_S: Final = HOST_ANNOUNCE_EVERY_S + 60.0
"""A car that missed where packages are hears it again, and then fetches what it should hold."""
_PATIENT_SHARE: Final = 0.2
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - the kernel's memory file system, where there is one


class Verdict(msgspec.Struct, frozen=True):
    """What became of a seed. `trace` is equal for equal runs."""

    seed: int
    violations: tuple[str, ...]
    fired: Counter[str]
    rare: Counter[str]
    nemeses: tuple[str, ...]
    trace: str
    steps: int
    virtual_s: float
    story: tuple[str, ...] = ()


@contextlib.contextmanager
def make_ground() -> Iterator[Ground]:
    """The packages that worlds share, in a folder of their own."""
    with tempfile.TemporaryDirectory(prefix="edge-sim-") as folder:
        models = Path(folder)
        write_synthetic("noop", models)
        packages = [read_package(entry) for entry in sorted(models.iterdir()) if entry.is_dir()]
        # Whatever stands now outlives every world: garbage need not be looked for in it.
        gc.freeze()
        try:
            yield Ground(models, {package.digest: package for package in packages})
        finally:
            gc.unfreeze()


def run_seed(
    seed: int,
    ground: Ground,
    *,
    scale: Scale | None = None,
    nemeses: tuple[str, ...] | None = None,
    keeps_story: bool = False,
) -> Verdict:
    """Build the world of a seed, let it suffer, heal it, drain it and judge it.

    `nemeses` names those that take part; without it the seed draws them.
    """
    # When garbage is found depends on the process; a generator's end is a step of the loop.
    gc.disable()
    try:
        return _run_in_folder(seed, ground, scale or Scale(), nemeses, keeps_story=keeps_story)
    finally:
        gc.enable()
        gc.collect()
        gc.collect()  # what finalizers held on to
        gc.freeze()  # what a world leaves (modules, caches) the next ones have: `make_ground` thaws


def _run_in_folder(
    seed: int,
    ground: Ground,
    scale: Scale,
    nemeses: tuple[str, ...] | None,
    *,
    keeps_story: bool,
) -> Verdict:
    folder = Path(tempfile.mkdtemp(prefix="edge-sim-", dir=_MEMORY if _MEMORY.is_dir() else None))
    loop = SimLoop(lambda: 0.001)
    asyncio.set_event_loop(loop)
    try:
        world = World(loop, seed, folder, ground, scale)
        loop.on_time = lambda now_s: setattr(world.ledger, "now_s", now_s)
        chosen = nemeses if nemeses is not None else _draw(world)
        world.chosen = frozenset(chosen)
        try:
            loop.run_until_complete(_live(world, chosen))
        except Stuck as stuck:
            world.ledger.violated("L1", f"the world is stuck: {stuck}")
        for context in loop.failures:
            world.ledger.violated("S11", f"unhandled: {context.get('exception') or context}")
        _judge(world)
        return _verdict(world, chosen, keeps_story=keeps_story)
    finally:
        loop.bury()
        for host in (world.dispatcher, *world.requesters, *(car.host for car in world.cars)):
            host.close_files()
        asyncio.set_event_loop(None)
        loop.close()
        shutil.rmtree(folder, ignore_errors=True)


def _draw(world: World) -> tuple[str, ...]:
    """Each nemesis takes part in half of the seeds: few at a time find what many hide."""
    rng = world.fork("nemeses")
    share = rng.choice((0.15, 0.3, 0.6))
    # Each by a draw of its own: a new one leaves the worlds without it as they were.
    return tuple(
        name
        for name in NEMESES
        if world.fork(f"takes part/{name}").random() < (share / 2 if name in RARER else share)
    )


async def _live(world: World, chosen: tuple[str, ...]) -> None:
    world.start()
    tasks = [
        asyncio.ensure_future(NEMESES[name](world, world.fork(f"nemesis/{name}")))
        for name in chosen
    ]
    await asyncio.sleep(world.scale.faults_s)
    world.ledger.note("healing")
    heal(world)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    heal(world)  # what a nemesis had in hand when it was stopped
    healing = asyncio.ensure_future(end_quarantine(world))
    for task in tasks:
        if not task.cancelled() and task.exception() is not None:
            raise task.exception()  # type: ignore[misc] # it is not None
    await _drain(world)
    await healing


async def _drain(world: World) -> None:
    """Until every job has been read to its end and rests, or for as long as is allowed."""
    limit_s = world.loop.time() + world.scale.healed_s
    while world.loop.time() < limit_s:
        if world.is_served:
            break
        await asyncio.sleep(_DRAIN_STEP_S)
    await _settle(world)
    world.ledger.note("drained")


async def _settle(world: World) -> None:
    """Until nothing is left to do, or for so long that nothing should be.

    Some worlds wait in any case: for what comes late.
    """
    began_s = world.loop.time()
    is_patient = world.fork("settle").random() < _PATIENT_SHARE
    while world.loop.time() < began_s + (_WISH_S if world.has_wishes else _SETTLE_S):
        told = world.ledger.told_tenants
        await asyncio.sleep(_DRAIN_STEP_S)
        if not is_patient and world.ledger.told_tenants == told and _is_at_rest(world):
            break


def _is_at_rest(world: World) -> bool:
    """Whether all is told, every car holds what it should and none keeps what it should not."""
    journals = [car.host.folder / "journal.db" for car in world.cars]
    is_kept = any(any(kept_rows(path).values()) for path in journals if path.exists())
    return world.has_told_all and not world.has_wishes and not is_kept


def _judge(world: World) -> None:
    for faults in world.all_faults.values():
        for kind in ("loss", "duplicate", "delay", "reorder"):
            world.ledger.fired[kind] += faults.fired[kind]
    world.ledger.fired["queue_overflow"] += world.broker.dropped_messages
    for car in world.cars:
        if car.engine is not None:
            world.ledger.fired.update(car.engine.fired)
    if world.service is not None:
        counters = world.service.core.state.counters
        for kind in ("late_chunks", "chunks_already_have", "chunks_not_wanted", "taken_stale"):
            world.ledger.rare[kind] += counters[kind]
    for host in (world.dispatcher, *(car.host for car in world.cars)):
        host.kill()
    check_end(world, world.dispatcher.folder / "dispatcher.db")


def _verdict(world: World, chosen: tuple[str, ...], *, keeps_story: bool) -> Verdict:
    ledger = world.ledger
    return Verdict(
        seed=world.seed,
        violations=tuple(ledger.violations),
        fired=Counter({kind: count for kind, count in ledger.fired.items() if count}),
        rare=ledger.rare,
        nemeses=chosen,
        trace=ledger.trace,
        steps=world.loop.steps,
        virtual_s=world.loop.time(),
        story=tuple(ledger.story) if keeps_story else (),
    )
