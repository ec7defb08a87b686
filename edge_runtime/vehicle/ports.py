"""The ports of the car's shell: what the agent asks of its engine, package store and sensors.

Invariants
- Everything is called on the agent's event loop, and calls back on it.
- A callback may come while a call is being made; it never waits.

Events are those of `vehicle.core.events`. Deliberately absent: the bus, whose port is
`edge_runtime.bus.port`; the journal, which is one class that tests use as it is.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Protocol

from edge_runtime.contract.messages import StopReport
from edge_runtime.contract.package import Package
from edge_runtime.vehicle.core.commands import SubmitRun
from edge_runtime.vehicle.core.events import Event, SignalsRead

EmitEvent = Callable[[Event], None]


class Engine(Protocol):
    """A supervised inference subprocess, started by the first run.

    Tells `ModelLoaded`, `ItemStarted`, `TokensProduced`, `ItemFinished`, `ItemBroke`, `RunEnded`
    and `EngineDied` to the callback that it was made with.
    """

    def submit(self, run: SubmitRun, package: Package) -> None:
        """Queue a run behind those already here. Never blocks; a failure is an event."""
        ...

    def cancel(self, run_id: int) -> None:
        """Stop one run; ends as `RunEnded`. An unknown run is ignored."""
        ...

    def freeze(self) -> None:
        """SIGSTOP to the process, in this call. Nothing to stop is no error."""
        ...

    async def measure_stop(self) -> StopReport:
        """How long after `freeze` the process last used the CPU."""
        ...

    def thaw(self) -> None:
        """SIGCONT to the process."""
        ...

    async def kill(self) -> StopReport:
        """End the process and forget every run; no event of theirs comes after."""
        ...

    async def close(self) -> None:
        """End the process and everything around it."""
        ...


class PackageStore(Protocol):
    """Verified model packages on disk, by digest."""

    def digests(self) -> Iterable[str]:
        """What is held, most recently used first."""
        ...

    def get(self, digest: str) -> Package | None:
        """The package, where it is held."""
        ...

    def using(self, digest: str) -> AbstractContextManager[None]:
        """Keep the package from being evicted while the block runs."""
        ...

    async def fetch(self, digest: str, base_url: str) -> Package:
        """Have the package, from the server at `base_url` unless it is held.

        Raises `PackageRefused` (it is not what the digest names, or not fit) or `OSError`.
        """
        ...

    async def check(self, base_url: str) -> tuple[str, ...]:
        """Remove what is held and not published any more; return its digests. Raises as `fetch`."""
        ...

    def take_received_bytes(self) -> int:
        """What came from servers since the last call, of use or not."""
        ...

    def break_off(self) -> None:
        """End running downloads: each `fetch` raises `OSError`, and goes on when asked again."""
        ...


class Sensors(Protocol):
    """A source of signals."""

    async def run(self, emit: Callable[[SignalsRead], None]) -> None:
        """Tell every edge at once and every signal once a period, until cancelled."""
        ...

    def note_load(self, *, is_busy: bool) -> None:
        """What the agent knows of the computer's load; a real sensor ignores it."""
        ...
