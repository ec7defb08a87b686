"""The car's end of the process with a network: started for one order, and gone when that is done.

Invariants
- Leaving the block ends the process, whatever it is doing.
- What it says is decoded like anybody's bytes: bounded and typed. A process that ends without an
  answer is a failed download.
"""

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from typing import Final

import msgspec

from edge_runtime.contract import limits
from edge_runtime.contract.errors import LocalError
from edge_runtime.contract.package import PackageFault, PackageRefused
from edge_runtime.vehicle.models.orders import (
    GO_ON,
    Answer,
    FilesHeld,
    ManifestHeld,
    ObjectsHeld,
    Order,
    Sent,
    Trouble,
    UploadsTaken,
    Verdicts,
)

_decoder: Final[msgspec.json.Decoder[Answer]] = msgspec.json.Decoder(Answer)


class StoreFull(LocalError, OSError):  # noqa: N818 - named for what it is
    """There is no room for the package: the quota, or the disk, is used up."""


class FetchFailed(OSError):  # noqa: N818 - named for what happened
    """The package server could not be reached, or did not send what it said."""


class FetchProcess:
    """A process that takes one order.

    Its methods raise `PackageRefused`, `StoreFull` or `FetchFailed`.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self.received_bytes = 0
        """What came from servers, as its last answer has it."""
        self.sent_bytes = 0
        """What left for servers, as its last answer has it."""

    def break_off(self) -> None:
        """End it; whoever waits for an answer gets `FetchFailed`."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def verdicts(self, order: Order) -> Verdicts:
        """What it finds of an order without a folder."""
        self._say(msgspec.json.encode(order) + b"\n")
        answer = await self._answer()
        if not isinstance(answer, Verdicts):
            raise FetchFailed(f"the download process answered with {type(answer).__name__}")
        return answer

    async def manifest(self, order: Order) -> ManifestHeld:
        """The manifest of the package that the order names; then it waits."""
        self._say(msgspec.json.encode(order) + b"\n")
        answer = await self._answer()
        if not isinstance(answer, ManifestHeld):
            raise FetchFailed(f"the download process answered with {type(answer).__name__}")
        return answer

    async def files(self) -> None:
        """Let it fetch the files, until all of them are there."""
        self._say(GO_ON)
        answer = await self._answer()
        if not isinstance(answer, FilesHeld):
            raise FetchFailed(f"the download process answered with {type(answer).__name__}")

    async def objects(self, order: Order) -> ObjectsHeld:
        """Let it fetch the objects that the order names."""
        self._say(msgspec.json.encode(order) + b"\n")
        answer = await self._answer()
        if not isinstance(answer, ObjectsHeld):
            raise FetchFailed(f"the download process answered with {type(answer).__name__}")
        return answer

    async def uploads(self, order: Order) -> UploadsTaken:
        """Let it put the files that the order names."""
        self._say(msgspec.json.encode(order) + b"\n")
        while isinstance(answer := await self._answer(), Sent):
            self.sent_bytes = answer.sent_bytes
        if not isinstance(answer, UploadsTaken):
            raise FetchFailed(f"the upload process answered with {type(answer).__name__}")
        return answer

    def _say(self, line: bytes) -> None:
        if self._process.stdin is not None:  # it always is: a pipe was asked for
            self._process.stdin.write(line)

    async def _answer(self) -> Answer:
        output = self._process.stdout
        try:
            line = await output.readline() if output is not None else b""
            if not line:
                status = await self._process.wait()
                raise FetchFailed(f"the download process ended with {status}")
            answer = _decoder.decode(line)
        except (ValueError, msgspec.DecodeError) as error:
            raise FetchFailed(f"the download process said: {error}") from error
        self.received_bytes = answer.received_bytes
        if isinstance(answer, Trouble):
            _raise(answer)
        return answer


@contextlib.asynccontextmanager
async def fetching() -> AsyncIterator[FetchProcess]:
    """A process for one order. Raises `FetchFailed` where none can be started."""
    command = (sys.executable, "-P", "-m", "edge_runtime.vehicle.models.fetch", str(os.getpid()))
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, limit=limits.FETCH_ANSWER_MAX_BYTES
        )
    except OSError as error:
        raise FetchFailed(f"no download process: {error}") from error
    running = FetchProcess(process)
    try:
        yield running
    finally:
        running.break_off()
        if process.stdin is not None:
            process.stdin.close()
        # Also where this task is being cancelled: a process that was killed is gone soon.
        await asyncio.shield(process.wait())


def _raise(trouble: Trouble) -> None:
    match trouble.kind:
        case "refused":
            raise PackageRefused(trouble.fault or PackageFault.BAD_MANIFEST, trouble.detail)
        case "full":
            raise StoreFull(f"no space left for the package: {trouble.detail}")
        case _:
            raise FetchFailed(trouble.detail)
