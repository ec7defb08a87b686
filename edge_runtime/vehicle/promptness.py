"""The agent's place at the processor: first, so that the owner need not wait for it.

The agent decides in microseconds when to stop, but only once it runs, and a car's computer is
busiest when its owner comes back. On two cores with a load of 8, half of all stops took 1 ms in
either class, but the slowest of 50 took 5 to 8 ms in the ordinary class, up to 14 ms with a nice
value of -15, and 1 to 4 ms in the real-time class (`bench/stop_latency.py`'s visits, measured side
by side). So the agent asks for the lowest real-time priority, round robin.

Invariants
- Only this thread, the event loop's: neither its other threads nor any child inherits the class.
- An agent that computes for `REALTIME_SOFT_MS` without a pause gives the class back, and says so;
  one that cannot even do that is killed by the kernel at `REALTIME_HARD_MS`.
- It asks for it again when its thread has been quiet, each time after twice as long: a seldom busy
  moment costs no owner of later, and what is often busy ends up in the ordinary class.
- Where the service may not have the class it runs in the ordinary one, and says so.

A unit file gives the class, and the right to ask for it again: CPUSchedulingPolicy=rr,
CPUSchedulingPriority=1, CPUSchedulingResetOnFork=true, LimitRTPRIO=1.
"""

import asyncio
import contextlib
import os
import resource
import signal
import time
from collections.abc import AsyncIterator
from types import FrameType
from typing import Final

import structlog

from edge_runtime.contract import limits

_REALTIME: Final = (os.SCHED_RR, os.SCHED_FIFO)
_US_PER_MS: Final = 1000

_log = structlog.get_logger()


def be_prompt() -> bool:
    """Put the calling (main) thread into the real-time class; whether it is in it now."""
    limits_us = (limits.REALTIME_SOFT_MS * _US_PER_MS, limits.REALTIME_HARD_MS * _US_PER_MS)
    signal.signal(signal.SIGXCPU, _give_back)
    try:
        resource.setrlimit(resource.RLIMIT_RTTIME, limits_us)
        _take()
    except (OSError, ValueError) as error:
        _log.info("ordinary_class", why=str(error))
        return False
    return True


@contextlib.asynccontextmanager
async def prompt() -> AsyncIterator[None]:
    """While this lasts the loop's thread is in the class, where it may be: see `be_prompt`."""
    if not be_prompt():
        yield
        return
    regaining = asyncio.create_task(_regain(), name="regain the real-time class")
    try:
        yield
    finally:
        regaining.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await regaining


async def _regain() -> None:
    """Ask for the class again whenever it was given back and this thread has been quiet since."""
    quiet_s = limits.REALTIME_QUIET_MS / 1000
    while True:
        used_s = time.thread_time()
        await asyncio.sleep(quiet_s)
        share = (time.thread_time() - used_s) / quiet_s
        if _is_realtime() or share > limits.REALTIME_QUIET_SHARE:
            continue
        try:
            _take()
        except OSError as error:
            _log.error("realtime_class_lost", why=str(error))
            return
        _log.info("realtime_class_regained", quiet_s=quiet_s)
        quiet_s = min(2 * quiet_s, limits.REALTIME_QUIET_MAX_MS / 1000)


def _is_realtime() -> bool:
    return os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK in _REALTIME


def _take() -> None:
    """Put the calling thread into the class, if it is not there. Raises OSError."""
    if not _is_realtime():
        own = os.SCHED_RR | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, own, os.sched_param(1))


def _give_back(number: int, frame: FrameType | None) -> None:
    """SIGXCPU: this thread has not let go of the processor for too long."""
    del number, frame
    try:
        # Who may not raise itself may not drop the flag either (sched(7)): it stays.
        ordinary = os.SCHED_OTHER | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, ordinary, os.sched_param(0))
    except OSError as error:
        # Raised here it would end whatever this thread happens to be in the middle of.
        _log.error("realtime_class_kept", why=str(error))
        return
    _log.error("realtime_class_given_back", after_ms=limits.REALTIME_SOFT_MS)
