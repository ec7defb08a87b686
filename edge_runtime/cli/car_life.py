"""One car's service from start to end: ready when it can work, asleep while its computer sleeps.

Invariants
- Ready means: the journal is open, the broker has been tried and, where systemd listens, an
  inference process has started and loaded ONNX Runtime under whatever sandbox there is.
- SIGUSR1 (the computer is about to sleep) gives all work back, says so and disconnects, as an end
  of the service does; then `$RUNTIME_DIRECTORY/asleep` is there. SIGUSR2 (it woke up) begins
  anew from the journal and removes it. Either of them twice does nothing more. A computer that
  stays awake for `CAR_ASLEEP_AWAKE_MAX_S` after all did not go to sleep: the car begins anew too.
- SIGHUP has the owner's policy read at once, which otherwise takes up to a second.

Deliberately absent: any question to logind; `deploy/systemd/edge-runtime-sleep.service` sends
the signals, and whoever runs no systemd sends them otherwise.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from edge_runtime.cli import systemd
from edge_runtime.cli.lifecycle import settle_memory
from edge_runtime.contract import limits
from edge_runtime.contract.reasons import HoldReason

if TYPE_CHECKING:
    from edge_runtime.vehicle.agent import VehicleAgent

_ASLEEP_FILE: Final = "asleep"

_log = structlog.get_logger()


@dataclass(slots=True)
class _Power:
    """Whether the computer sleeps, as the signals say."""

    is_awake: asyncio.Event = field(default_factory=asyncio.Event)
    is_asleep: asyncio.Event = field(default_factory=asyncio.Event)

    def sleep(self) -> None:
        self.is_awake.clear()
        self.is_asleep.set()

    def wake(self) -> None:
        self.is_asleep.clear()
        self.is_awake.set()


async def live(
    make_agent: Callable[[], "VehicleAgent"],
    attend: Callable[["VehicleAgent"], contextlib.AbstractAsyncContextManager[None]],
) -> None:
    """Run agents, one after the other, until one breaks (raises what did) or until cancelled.

    `make_agent` is called once for every time that the computer is awake; `attend` is around
    each agent from its first moment to the one before its leaving.
    """
    power = _Power()
    power.wake()
    agent: VehicleAgent | None = None

    def status() -> str:
        return "asleep" if agent is None else describe(agent)

    def why_stuck() -> str | None:
        return None if agent is None else _why_stuck(agent)

    def reload() -> None:
        systemd.notify_reloading()
        if agent is not None:
            agent.look_again()
        systemd.notify("READY=1")

    handlers = {signal.SIGUSR1: power.sleep, signal.SIGUSR2: power.wake, signal.SIGHUP: reload}
    with _signals(handlers):
        while True:
            async with contextlib.AsyncExitStack() as stack:
                async with systemd.more_time():
                    made = await stack.enter_async_context(make_agent())
                    await stack.enter_async_context(attend(made))
                    await _prove_ready(made)
                agent = made
                await stack.enter_async_context(systemd.reported(systemd.Report(status, why_stuck)))
                systemd.notify("READY=1")
                settle_memory()
                await _wait(made, power)
            agent = None
            await _sleep(power)


async def _prove_ready(agent: "VehicleAgent") -> None:
    """Wait until the broker has been tried; raise `LocalError` where no inference process starts.

    The process is started only for systemd: it costs a second of a core, and exits by itself.
    """
    from edge_runtime.vehicle.inference.engine import SupervisedEngine

    if systemd.is_listening() and isinstance(agent.engine, SupervisedEngine):
        await agent.engine.ensure_started()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limits.BUS_CONNECT_TIMEOUT_S):
            await agent.bus_tried.wait()


async def _wait(agent: "VehicleAgent", power: _Power) -> None:
    """Return when the computer is about to sleep; raise what broke, or the end that was asked."""
    ended = asyncio.ensure_future(agent.wait_ended())
    falling_asleep = asyncio.ensure_future(power.is_asleep.wait())
    try:
        await asyncio.wait({ended, falling_asleep}, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            await ended
        agent.leaves_for = HoldReason.POWER_SAVING
        _log.info("going_to_sleep")
    except BaseException:
        systemd.notify("STOPPING=1", "STATUS=stopping")
        raise
    finally:
        ended.cancel()
        falling_asleep.cancel()
        await asyncio.gather(ended, falling_asleep, return_exceptions=True)


async def _sleep(power: _Power) -> None:
    """Say that all is given back, and wait for the computer to wake up."""
    folder = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    mark = Path(folder, _ASLEEP_FILE) if folder else None
    report = systemd.Report(lambda: "asleep", lambda: None)
    async with systemd.reported(report):
        if mark is not None:
            mark.touch()
        with contextlib.suppress(TimeoutError):
            # Monotonic time stands still while the computer sleeps.
            async with asyncio.timeout(limits.CAR_ASLEEP_AWAKE_MAX_S):
                await power.is_awake.wait()
        _log.info("woke_up", was_told=power.is_awake.is_set())
        power.wake()
        if mark is not None:
            mark.unlink(missing_ok=True)


def describe(agent: "VehicleAgent") -> str:
    """`working, 2 units held`, `hold: not_plugged; no broker`: a line for `systemctl status`."""
    core = agent.core
    hold = core.hold
    line = core.availability.value if hold is None else f"{core.availability.value}: {hold.value}"
    if held := len(core.work.attempts):
        line += f", {held} unit{'s' if held > 1 else ''} held"
    return line if agent.is_connected else f"{line}; no broker"


def _why_stuck(agent: "VehicleAgent") -> str | None:
    """The engine's own watchdog ends a hung item long before this: then that one does not work."""
    from edge_runtime.vehicle.inference.engine import SupervisedEngine

    engine = agent.engine
    if not agent.core.is_computing or not isinstance(engine, SupervisedEngine):
        return None
    silence_s = (time.monotonic_ns() - engine.progress_ns) / 1e9
    if silence_s <= limits.ENGINE_SILENCE_MAX_S:
        return None
    return f"the engine has work and no output came for {silence_s:.0f} s"


@contextlib.contextmanager
def _signals(handlers: dict[signal.Signals, Callable[[], None]]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)
