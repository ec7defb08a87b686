"""The engine as the core's commands see it: ordered, measured, and with its packages at hand.

Invariants
- `freeze` is the engine's own, in the same call; nothing waits in front of it.
- A run that is submitted while the engine is being killed waits for the new one.
- A package is not evicted while a run of it is in the engine.
- `FreezeEngine` ends as `EngineFrozen`, `KillEngine` as `EngineKilled`, a run whose package is
  gone as `ModelFailed` and `RunEnded`.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from edge_runtime.contract import limits
from edge_runtime.contract.messages import StopReport
from edge_runtime.contract.package import Package
from edge_runtime.contract.reasons import StopTier
from edge_runtime.vehicle.core.commands import SubmitRun
from edge_runtime.vehicle.core.events import (
    EngineDied,
    EngineFrozen,
    EngineKilled,
    Event,
    ModelFailed,
    ModelFault,
    RunEnded,
    RunOutcome,
)
from edge_runtime.vehicle.ports import EmitEvent, Engine, PackageStore

Spawn = Callable[[Coroutine[Any, Any, None], str], "asyncio.Task[None]"]


class EngineRoom:
    """Carries out what the core asks of the engine; tells `emit` everything that comes back."""

    def __init__(
        self,
        make_engine: Callable[[EmitEvent], Engine],
        packages: PackageStore,
        emit: EmitEvent,
        spawn: Spawn,
    ) -> None:
        self.engine = make_engine(self._heard)
        self._packages = packages
        self._emit = emit
        self._spawn = spawn
        self._in_use: dict[str, _InUse] = {}
        self._digests: dict[int, str] = {}
        self._waiting: list[SubmitRun] = []
        self._measuring: asyncio.Task[None] | None = None
        self._is_killing = False

    def submit(self, run: SubmitRun) -> None:
        """Queue a run."""
        if self._is_killing:
            self._waiting.append(run)
            return
        package = self._use(run)
        if package is None:
            message = "the package is no longer on this car"
            self._emit(ModelFailed(run.digest, ModelFault.UNAVAILABLE, message))
            self._emit(RunEnded(run.run_id, RunOutcome.CANCELLED, message=message))
            return
        self.engine.submit(run, package)

    def _use(self, run: SubmitRun) -> Package | None:
        """The run's package, kept until the run has left the engine."""
        held = self._in_use.get(run.digest)
        if held is None:
            package = self._packages.get(run.digest)
            if package is None:
                return None
            held = self._in_use[run.digest] = _InUse(package, self._packages.using(run.digest))
            held.using.__enter__()
        held.runs.add(run.run_id)
        self._digests[run.run_id] = run.digest
        return held.package

    def cancel(self, run_id: int) -> None:
        """Stop one run."""
        for run in self._waiting:
            if run.run_id == run_id:
                self._waiting.remove(run)
                nothing = StopReport(tier=StopTier.NONE, latency_ms=0.0)
                self._emit(RunEnded(run_id, RunOutcome.CANCELLED, nothing))
                return
        self.engine.cancel(run_id)

    def freeze(self) -> None:
        """Stop the process now, and measure that it did."""
        self.engine.freeze()
        self._measuring = self._spawn(self._measure(), "measure stop")

    def thaw(self) -> None:
        """Let the process go on."""
        self.engine.thaw()

    def kill(self) -> None:
        """End the process and its runs."""
        self._is_killing = True
        self._spawn(self._kill(), "kill engine")

    async def close(self) -> None:
        """End the process for good."""
        await self.engine.close()
        self._release_all()

    async def _measure(self) -> None:
        self._emit(EngineFrozen(await self.engine.measure_stop()))

    async def _kill(self) -> None:
        if self._measuring is not None:
            # What is frozen computes nothing: the measurement is worth these milliseconds.
            await asyncio.wait({self._measuring}, timeout=limits.STOP_REPORT_WAIT_MS / 1000)
        report = await self.engine.kill()
        self._is_killing = False
        self._release_all()
        self._emit(EngineKilled(report))
        waiting, self._waiting = self._waiting, []
        for run in waiting:
            self.submit(run)

    def _heard(self, event: Event) -> None:
        if isinstance(event, RunEnded):
            self._release(event.run_id)
        elif isinstance(event, EngineDied):
            self._release_all()
        self._emit(event)

    def _release(self, run_id: int) -> None:
        digest = self._digests.pop(run_id, None)
        if digest is None:
            return
        held = self._in_use[digest]
        held.runs.discard(run_id)
        if not held.runs:
            del self._in_use[digest]
            held.using.__exit__(None, None, None)

    def _release_all(self) -> None:
        for run_id in list(self._digests):
            self._release(run_id)


@dataclass(slots=True)
class _InUse:
    """A package with runs in the engine."""

    package: Package
    using: AbstractContextManager[None]
    runs: set[int] = field(default_factory=set)
