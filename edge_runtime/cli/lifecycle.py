"""Run a command's coroutine and end it cleanly on SIGTERM and SIGINT.

The first signal cancels the coroutine, so that every `async with` of it closes; a second one
ends the process at once.
"""

import asyncio
import gc
import os
import resource
import signal
from collections.abc import Callable, Coroutine
from typing import Any, Final

from edge_runtime.cli.exit_codes import ExitCode

_GC_THRESHOLDS: Final = (50_000, 20, 50)
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


async def stopped() -> None:
    """Wait until this task is cancelled: the body of a service whose parts run by themselves."""
    await asyncio.get_running_loop().create_future()


def settle_memory() -> None:
    """Call once a service stands: what lives until its end is not looked at by the collector again.

    The collector's defaults suit a small program: of a dispatcher that makes and drops thousands
    of objects a tick they took an eighth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


def allow_open_files(most: int) -> None:
    """Let this process open as many files as the system lets it, up to `most`.

    Login shells are started with 1,024 for the sake of programs that use `select`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def run_service(main: Callable[[], Coroutine[Any, Any, int | None]]) -> int:
    """Run until `main` returns (its exit code) or a signal stops it (`DONE`)."""
    return _run(main, when_stopped=ExitCode.DONE)


def run_command(main: Callable[[], Coroutine[Any, Any, int | None]]) -> int:
    """Run `main` to its end (its exit code); `INTERRUPTED` where a signal stops it."""
    return _run(main, when_stopped=ExitCode.INTERRUPTED)


def _run(main: Callable[[], Coroutine[Any, Any, int | None]], when_stopped: ExitCode) -> int:
    return asyncio.run(_supervise(main, when_stopped))


async def _supervise(
    main: Callable[[], Coroutine[Any, Any, int | None]], when_stopped: ExitCode
) -> int:
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(main())
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        if len(received) > 1:
            os._exit(128 + number)
        task.cancel()

    for number in _SIGNALS:
        loop.add_signal_handler(number, stop, number)
    try:
        return await task or ExitCode.DONE
    except asyncio.CancelledError:
        if not received:
            raise
        return when_stopped
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
