"""The demo's processes: started from the command line a person would use, each ended by its pid.

Invariants
- Every child dies with the demo, even if that is killed with SIGKILL (`child.py`).
- A child that ends when it should not is a `ProcessEnded` that quotes the last line of its log.
- Nothing here looks at what the processes do.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Final

from edge_runtime.contract.errors import LocalError

_STOP_TIMEOUT_S: Final = 10.0
_LOG_TAIL_BYTES: Final = 4_096


class ProcessEnded(LocalError):  # noqa: N818 - named for what happened
    """A process of the demo ended by itself."""

    def __init__(self, name: str, code: int | None, log: Path) -> None:
        super().__init__(f"{name} ended with code {code}: {last_line(log)} (log: {log})")
        self.name = name
        self.code = code


def last_line(log: Path) -> str:
    """The last line that a process wrote."""
    with contextlib.suppress(OSError):
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
        if lines:
            return lines[-1][:300]
    return "it wrote nothing"


class Child:
    """One process, which may be started again after it was killed.

    `arguments` are those of the `edge-runtime` command. Its stderr goes to `log`.
    """

    def __init__(
        self, name: str, arguments: Sequence[str], log: Path, *, has_stdout: bool = False
    ) -> None:
        self.name = name
        self.arguments = tuple(arguments)
        self.log = log
        self._has_stdout = has_stdout
        self._process: Process | None = None
        self._log_file: IO[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    @property
    def was_killed(self) -> bool:
        """Whether a signal ended it."""
        process = self._process
        return process is not None and process.returncode is not None and process.returncode < 0

    async def start(self) -> None:
        """Start the process; returns once it exists."""
        self._log_file = self.log.open("ab")
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "edge_runtime.cli.demo.child",
            str(os.getpid()),
            *self.arguments,
            stdin=PIPE,
            stdout=PIPE if self._has_stdout else DEVNULL,
            stderr=self._log_file,
        )

    async def send(self, message: dict[str, Any]) -> None:
        """Write one JSON line to its stdin. Raises `ProcessEnded`."""
        self.check()
        stdin = self._require().stdin
        if stdin is None:
            raise LocalError(f"{self.name} has no stdin")
        try:
            stdin.write(json.dumps(message).encode() + b"\n")
            await stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            raise ProcessEnded(self.name, self._require().returncode, self.log) from None

    async def receive(self) -> dict[str, Any]:
        """Read one JSON line from its stdout. Raises `ProcessEnded`."""
        stdout = self._require().stdout
        if stdout is None:
            raise LocalError(f"{self.name} has no stdout")
        line = await stdout.readline()
        if not line:
            raise ProcessEnded(self.name, await self._require().wait(), self.log)
        message: dict[str, Any] = json.loads(line)
        return message

    def check(self) -> None:
        """Raise `ProcessEnded` where it does not run."""
        process = self._require()
        if process.returncode is not None:
            raise ProcessEnded(self.name, process.returncode, self.log)

    async def wait(self) -> int:
        """Wait until it ends by itself; its exit code, negative for a signal."""
        return await self._require().wait()

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL where that does not end it; nothing where it does not run."""
        await self._end(signal.SIGTERM)

    async def _end(self, number: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
            try:
                async with asyncio.timeout(_STOP_TIMEOUT_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
        await process.wait()
        if process.stdin is not None:
            process.stdin.close()
        if self._log_file is not None:
            self._log_file.close()
            self._log_file = None

    def _require(self) -> Process:
        if self._process is None:
            raise LocalError(f"{self.name} was not started")
        return self._process


async def stop_all(children: Sequence[Child]) -> None:
    """Stop every one of them, at once; a failure of one does not keep the others."""
    results = await asyncio.gather(*(child.stop() for child in children), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
