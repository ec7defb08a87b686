"""What a service tells systemd, and only where systemd asked: readiness, life, status.

Invariants
- `WATCHDOG=1` leaves from a task of the event loop, and only while the service says that it gets
  on: a stuck loop, or a loop that turns for nothing, starves the watchdog.
- `READY=1` is the caller's, who knows when; until then, and while stopping, `more_time` asks for
  time as long as the loop turns.
- Without `NOTIFY_SOCKET`, or refused by it, nothing happens: nobody is there to be told.

The protocol is that of sd_notify(3) and sd_watchdog_enabled(3). Deliberately absent: a thread,
which would feed a watchdog on behalf of a loop that hangs.
"""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

import structlog

from edge_runtime.contract import limits

_US_PER_S: Final = 1_000_000
_LOOK_EVERY_S: Final = 1.0
_MORE_TIME_S: Final = 10

_log = structlog.get_logger()


def is_listening() -> bool:
    """Whether systemd, or something like it, started this process and waits for news."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def notify(*assignments: str) -> None:
    """Send `READY=1`, `STOPPING=1`, `STATUS=…` and the like as one datagram."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as datagram,
    ):
        # A manager that does not read must not stop the loop that it watches.
        datagram.setblocking(False)
        datagram.sendto("\n".join(assignments).encode(), address)


def notify_reloading() -> None:
    """The configuration is being read again; `READY=1` ends it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1_000}")


def watchdog_period_s() -> float | None:
    """Half of the time within which systemd wants a sign of life; None where it wants none."""
    wanted_us = os.environ.get("WATCHDOG_USEC", "")
    watched_pid = os.environ.get("WATCHDOG_PID", "")
    if not wanted_us.isdecimal() or not int(wanted_us):
        return None
    if watched_pid and watched_pid != str(os.getpid()):
        return None
    return int(wanted_us) / _US_PER_S / 2


@contextlib.asynccontextmanager
async def more_time() -> AsyncIterator[None]:
    """While the body starts or stops a service: as long as the loop turns, it is not too late."""

    async def ask() -> None:
        while True:
            notify(f"EXTEND_TIMEOUT_USEC={_MORE_TIME_S * _US_PER_S}")
            await asyncio.sleep(_MORE_TIME_S / 3)

    asking = asyncio.create_task(ask(), name="systemd: more time")
    try:
        yield
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


class Report:
    """What systemd is told while a service runs; both functions are called once a second.

    `status` is one line for people (`systemctl status`); `why_stuck` says why the service does
    not get on, or None. The watchdog is not fed while it says why.
    """

    def __init__(self, status: Callable[[], str], why_stuck: Callable[[], str | None]) -> None:
        self.status = status
        self.why_stuck = why_stuck
        self._told_status = ""
        self._was_stuck = False

    async def keep(self) -> None:
        """Tell systemd until cancelled."""
        period_s = watchdog_period_s()
        look_every_s = _LOOK_EVERY_S if period_s is None else min(_LOOK_EVERY_S, period_s)
        fed_at_s = float("-inf")
        while True:
            self._tell_status()
            now_s = time.monotonic()
            # A look early rather than one late: timers are never early.
            is_due = period_s is not None and now_s - fed_at_s > period_s - look_every_s
            if is_due and self._gets_on():
                notify("WATCHDOG=1")
                fed_at_s = now_s
            await asyncio.sleep(look_every_s)

    def _tell_status(self) -> None:
        status = " ".join(self.status().split())[: limits.TEXT_MAX_CHARS]
        if status != self._told_status:
            self._told_status = status
            notify(f"STATUS={status}")

    def _gets_on(self) -> bool:
        why = self.why_stuck()
        if why is not None and not self._was_stuck:
            _log.error("watchdog_not_fed", why=why)
        self._was_stuck = why is not None
        return not self._was_stuck


@contextlib.asynccontextmanager
async def reported(report: Report) -> AsyncIterator[None]:
    """Keep `report` while the body runs; costs nothing where systemd does not listen."""
    if not is_listening():
        yield
        return
    keeping = asyncio.create_task(report.keep(), name="systemd: report")
    try:
        yield
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
