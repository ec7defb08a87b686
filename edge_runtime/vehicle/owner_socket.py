"""The owner's way to the running car: a Unix socket in the state folder, one question a connection.

Invariants
- Whoever may open the socket (mode 0600, the service's account and root) may ask and decide
  nothing: decisions are in a file, and the socket only says that there is a new one.
- A question and an answer are one line of JSON each, of bounded size, within a bounded time;
  `OWNER_CLIENTS_MAX` are talked to at once. A client that is slow, silent or gone harms nobody.
- A socket that a dead process left is replaced: the journal's lock says that there is one car.

The socket is opened through its folder's descriptor: a path of any length will do, where the name
of a Unix socket has 108 bytes.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

import msgspec

from edge_runtime.contract import limits
from edge_runtime.contract.errors import LocalError, RemoteError
from edge_runtime.vehicle.owner import OwnerReport
from edge_runtime.vehicle.owner_clients import OwnerClients

SOCKET_FILE: Final = "owner.sock"
_MODE: Final = 0o600
_READ_BYTES: Final = 16 * 1024

Ask = Literal["report", "look"]


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`look`: obey what the owner's files say now; either way the answer is the report."""

    ask: Ask


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Exactly one of the two."""

    report: OwnerReport | None = None
    error: str | None = None


class NotRunning(LocalError):  # noqa: N818 - named for what it is
    """Nobody listens at the socket: the car's runtime does not run."""


class NoAnswer(RemoteError):  # noqa: N818 - named for what happened
    """The car's runtime is there and gave no answer, or none that can be read."""


_questions: Final = msgspec.json.Decoder(Question)
_answers: Final = msgspec.json.Decoder(Answer)


class OwnerSocket:
    """Listens while its context lasts. `report` and `look` are called on the event loop."""

    def __init__(
        self, state_dir: Path, report: Callable[[], OwnerReport], look: Callable[[], None]
    ) -> None:
        self._state_dir = state_dir
        self._report = report
        self._look = look
        self._clients = OwnerClients(self._encoded_answer)
        self._folder = -1
        self._server: asyncio.Server

    async def __aenter__(self) -> Self:
        """Raises `OSError` where the folder takes no socket."""
        self._folder = os.open(self._state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            listener = _listen(self._folder)
            self._server = await asyncio.start_unix_server(
                self._clients.connected, sock=listener, limit=limits.OWNER_REQUEST_MAX_BYTES
            )
        except BaseException:
            os.close(self._folder)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        await self._clients.end()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(SOCKET_FILE, dir_fd=self._folder)
        os.close(self._folder)

    async def _encoded_answer(
        self,
        reader: asyncio.StreamReader,
        is_one_too_many: bool,
    ) -> bytes:
        answer = await self._answer(reader, is_one_too_many=is_one_too_many)
        return msgspec.json.encode(answer) + b"\n"

    async def _answer(self, reader: asyncio.StreamReader, *, is_one_too_many: bool) -> Answer:
        try:
            # Read in any case: an answer to a question that was not read is lost with the close.
            line = await reader.readline()
            if is_one_too_many:
                return Answer(error=f"more than {limits.OWNER_CLIENTS_MAX} ask at once; ask again")
            question = _questions.decode(line)
        except ValueError as error:  # a line that is too long, and one that is no question
            return Answer(error=f"not a question: {error}"[: limits.TEXT_MAX_CHARS])
        if question.ask == "look":
            self._look()
        return Answer(report=self._report())


def ask_owner(state_dir: Path, ask: Ask) -> OwnerReport:
    """Ask the car whose state folder this is.

    Raises `NotRunning`, or `NoAnswer` where it does not answer within `OWNER_TALK_MAX_S`.
    """
    line = msgspec.json.encode(Question(ask)) + b"\n"
    try:
        text = _exchange(state_dir, line)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        raise NotRunning(f"the car's runtime is not running in {state_dir}") from None
    except OSError as error:
        why = error.strerror or str(error) or "it is silent"
        raise NoAnswer(f"the car's runtime in {state_dir} gives no answer: {why}") from None
    try:
        answer = _answers.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NoAnswer(f"the car's runtime gives no answer that can be read: {error}") from None
    if answer.report is None:
        raise NoAnswer(f"the car's runtime: {answer.error or 'an empty answer'}")
    return answer.report


def _exchange(state_dir: Path, line: bytes) -> bytes:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_folder(state_dir))
        client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        client.settimeout(limits.OWNER_TALK_MAX_S)
        client.connect(_address(folder))
        client.sendall(line)
        text = bytearray()
        while piece := client.recv(_READ_BYTES):
            text += piece
            if len(text) > limits.OWNER_ANSWER_MAX_BYTES:
                raise OSError(0, f"the answer is over {limits.OWNER_ANSWER_MAX_BYTES} bytes")
        return bytes(text)


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _address(folder: int) -> str:
    return f"/proc/self/fd/{folder}/{SOCKET_FILE}"


def _listen(folder: int) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(SOCKET_FILE, dir_fd=folder)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Before bind: there is no moment at which others may connect.
        os.fchmod(listener.fileno(), _MODE)
        listener.bind(_address(folder))
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
