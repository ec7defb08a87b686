"""A real engine with its events in a list that a test can wait on."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from edge_runtime.contract.messages import Item
from edge_runtime.contract.package import Package
from edge_runtime.contract.tensors import from_numpy
from edge_runtime.vehicle.core.commands import SubmitRun
from edge_runtime.vehicle.core.events import ItemBroke, ItemFinished, ItemStarted, RunEnded
from edge_runtime.vehicle.inference.engine import EngineEvent, SupervisedEngine
from edge_runtime.vehicle.inference.options import EngineOptions

Event = TypeVar("Event", bound=EngineEvent)

PATIENCE_S = 60.0
"""Far beyond what anything takes on a busy machine; only a defect waits this long."""


class EngineRig:
    """An engine, what it told, and ways to wait for it to tell more."""

    def __init__(self, options: EngineOptions) -> None:
        self.events: list[EngineEvent] = []
        self._changed = asyncio.Event()
        self.engine = SupervisedEngine(options, self._note)
        self._next_run_id = 1

    def _note(self, event: EngineEvent) -> None:
        self.events.append(event)
        self._changed.set()

    def submit(
        self,
        package: Package,
        inputs: Iterable[bytes],
        parameters: dict[str, object] | None = None,
        media_type: str = "application/octet-stream",
        *,
        urgent: bool = False,
    ) -> int:
        run_id = self._next_run_id
        self._next_run_id += 1
        items = tuple(
            Item(index=index, media_type=media_type, data=data) for index, data in enumerate(inputs)
        )
        run = SubmitRun(
            run_id=run_id,
            unit=run_id,
            digest=package.digest,
            items=items,
            parameters=msgspec.msgpack.encode(parameters or {}),
            urgent=urgent,
        )
        self.engine.submit(run, package)
        return run_id

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def event(self, kind: type[Event], **fields: object) -> Event:
        """Wait for the first event of this kind whose fields have these values."""
        found: list[Event] = []

        def is_here() -> bool:
            found[:] = [
                event
                for event in self.events
                if isinstance(event, kind)
                and all(getattr(event, name) == value for name, value in fields.items())
            ]
            return bool(found)

        await self.until(is_here)
        return found[0]

    async def ended(self, run_id: int) -> RunEnded:
        return await self.event(RunEnded, run_id=run_id)

    def outputs(self, run_id: int) -> dict[int, object]:
        return {
            event.index: msgspec.msgpack.decode(event.output)
            for event in self.events
            if isinstance(event, ItemFinished) and event.run_id == run_id
        }

    def broken(self, run_id: int) -> dict[int, ItemBroke]:
        return {
            event.index: event
            for event in self.events
            if isinstance(event, ItemBroke) and event.run_id == run_id
        }

    async def started(self, run_id: int, index: int) -> None:
        await self.event(ItemStarted, run_id=run_id, index=index)

    @property
    def pid(self) -> int:
        assert self.engine.pid is not None
        return self.engine.pid


@contextlib.asynccontextmanager
async def engine_rig(options: EngineOptions | None = None) -> AsyncIterator[EngineRig]:
    rig = EngineRig(options or EngineOptions())
    try:
        yield rig
    finally:
        await rig.engine.close()


def tensors(**arrays: object) -> bytes:
    """Encode a `tensor` item; plain numbers become FP32."""
    return msgspec.msgpack.encode(
        [
            from_numpy(name, value if isinstance(value, np.ndarray) else np.float32(value))
            for name, value in arrays.items()
        ]
    )


def vector(*values: float) -> bytes:
    return tensors(x=np.array(values, np.float32))


def row(width: int) -> bytes:
    return tensors(x=np.full((1, width), -0.5, np.float32))


def cpu_ticks(pid: int) -> int:
    """User and system time of the process, in clock ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


async def until_cpu_grew(pid: int, ticks: int) -> None:
    """Wait until the process has computed for this long from now on."""
    before = cpu_ticks(pid)
    async with asyncio.timeout(PATIENCE_S):
        while cpu_ticks(pid) < before + ticks:  # noqa: ASYNC110 - the kernel tells nobody
            await asyncio.sleep(0.01)
