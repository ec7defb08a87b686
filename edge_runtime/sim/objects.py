"""Objects without sockets, processes or threads: where they lie, and how cars reach them.

Invariants
- What is kept outlives every process; nobody but the dispatcher's `Objects` writes it.
- A car's exchange meets the production routes over the simulated network, which delays and cuts.
  It may be broken off between any two pieces, and goes on where it was.

Deliberately absent: the real process that talks to servers (`vehicle.models.fetch`), which has
servers of its own in tests.
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final, TypeVar

from obstore.store import MemoryStore

from edge_runtime.client.transport import Interrupted
from edge_runtime.dispatcher.objects_kept import KeptObjects, ObjectsUnavailable
from edge_runtime.sim.web import Network, exchange, opened
from edge_runtime.vehicle.models.fetching import FetchFailed, FetchProcess
from edge_runtime.vehicle.models.orders import (
    ObjectOrder,
    ObjectsHeld,
    Order,
    Refusal,
    UploadOrder,
    UploadsTaken,
)

DISPATCHER_URL: Final = "http://dispatcher"
_TUS: Final = {"tus-resumable": "1.0.0"}
_PIECE_BYTES: Final = 32 * 1024
_FIRST_ERROR: Final = 400
_PASSING: Final = frozenset({408, 409, 423})
_Wanted = TypeVar("_Wanted", ObjectOrder, UploadOrder)
_Why = TypeVar("_Why")
_GONE: Final = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})


class SimKept(KeptObjects):
    """Objects as files, written and read in steps of the loop."""

    def __init__(self, folder: Path) -> None:
        super().__init__(MemoryStore())
        self._place = folder

    async def put(self, name: str, source: Path) -> None:
        """Keep a file under a name."""

        def copy() -> None:
            target = self._place / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

        await asyncio.to_thread(copy)

    async def read(self, name: str, span: range) -> AsyncIterator[bytes]:
        """Bytes `span` of an object, in pieces."""
        try:
            data = await asyncio.to_thread((self._place / name).read_bytes)
        except FileNotFoundError:
            raise ObjectsUnavailable(f"{name} is not there") from None
        for start in range(span.start, span.stop, _PIECE_BYTES):
            yield data[start : min(start + _PIECE_BYTES, span.stop)]

    async def delete(self, name: str) -> None:
        """Remove an object."""
        await asyncio.to_thread((self._place / name).unlink, missing_ok=True)


@dataclass(slots=True)
class ExchangeFaults:
    """What goes wrong with the next exchanges of cars: so many of each kind.

    Each piece takes `piece_s`.
    """

    fetch_cuts: int = 0
    upload_cuts: int = 0
    wrong_bytes: int = 0
    deaths: int = 0
    piece_s: float = 0.0

    def heal(self) -> None:
        """Nothing more."""
        self.fetch_cuts = self.upload_cuts = self.wrong_bytes = self.deaths = 0
        self.piece_s = 0.0


class SimExchange(FetchProcess):
    """What the car's process with a network would do, without one. `die` ends the whole car."""

    def __init__(
        self,
        network: Network,
        faults: ExchangeFaults,
        note: Callable[[str], None],
        die: Callable[[], None],
    ) -> None:
        self._network = network
        self._faults = faults
        self._note = note
        self._die = die
        self._is_broken_off = False
        self.received_bytes = 0
        self.sent_bytes = 0

    def break_off(self) -> None:
        """End it before the next piece."""
        self._is_broken_off = True

    async def _go_on(self) -> None:
        await asyncio.sleep(self._faults.piece_s)
        if self._is_broken_off:
            self._note("exchange_broken_off")
            raise FetchFailed("the process was ended")

    # --- inputs ---

    async def objects(self, order: Order) -> ObjectsHeld:
        """Have each object, or say why nobody can."""
        broken = await _each(order.objects, self._get)
        return ObjectsHeld(broken, self.received_bytes)

    async def _get(self, wanted: ObjectOrder) -> str | None:
        target = Path(wanted.target)
        if _size_of(target) < wanted.length and (why := await self._get_more(wanted, target)):
            return why
        if _size_of(target) < wanted.length:
            raise FetchFailed("the answer ended early")
        return _fault_in(target, wanted.sha256)

    async def _get_more(self, wanted: ObjectOrder, target: Path) -> str | None:
        """Ask for what is not here; why nobody can have it."""
        held = _size_of(target)
        headers = {"range": f"bytes={held}-"} if held else {}
        path = wanted.url.removeprefix(DISPATCHER_URL)
        async with opened(self._network, "GET", path, b"", headers) as one:
            await one.started()
            if one.status in _GONE:
                return f"answered {one.status}"
            if one.status >= _FIRST_ERROR:
                raise FetchFailed(f"answered {one.status}")
            while piece := await one.piece():
                _append(target, piece)
                self.received_bytes += len(piece)
                await self._go_on()
                if self._faults.fetch_cuts:
                    self._faults.fetch_cuts -= 1
                    self._note("fetch_cut")
                    raise FetchFailed("the connection was reset")
        return None

    # --- outputs ---

    async def uploads(self, order: Order) -> UploadsTaken:
        """Put each file, or say why it never will be taken."""
        refused = await _each(order.uploads, self._put)
        if self._faults.deaths:
            self._faults.deaths -= 1
            self._note("crash_after_upload")
            self._die()
            await asyncio.sleep(0)  # nothing of this life goes on
        return UploadsTaken(refused, self.received_bytes)

    async def _put(self, wanted: UploadOrder) -> Refusal | None:
        place = wanted.place.removeprefix(DISPATCHER_URL)
        name = base64.b64encode(wanted.sha256.encode()).decode()
        length = {"upload-length": str(wanted.length), "upload-metadata": f"sha256 {name}"}
        answer = await self._ask("POST", place, b"", length)
        if isinstance(answer, Refusal):
            return answer
        await self._go_on()
        data = _read(Path(wanted.source), answer)
        if not data:
            return None
        headers = {"upload-offset": str(answer), "content-type": "application/offset+octet-stream"}
        path = f"{place}/{wanted.sha256}"
        if self._faults.upload_cuts:
            self._faults.upload_cuts -= 1
            self._note("upload_cut")
            half = data[: len(data) // 2]
            self.sent_bytes += len(half)
            await self._send_half(path, half, {**_TUS, **headers})
            raise FetchFailed("the connection was reset")
        if self._faults.wrong_bytes:
            self._faults.wrong_bytes -= 1
            self._note("wrong_bytes")
            data = bytes(len(data))
        self.sent_bytes += len(data)
        done = await self._ask("PATCH", path, data, headers)
        return done if isinstance(done, Refusal) else None

    async def _send_half(self, path: str, half: bytes, headers: dict[str, str]) -> None:
        with contextlib.suppress(Interrupted):
            async with opened(self._network, "PATCH", path, half, headers, is_cut=True) as one:
                await one.body()

    async def _ask(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> int | Refusal:
        """The offset that is answered. Raises `FetchFailed` and `Interrupted`."""
        lines = {**_TUS, **headers, "accept": "application/json"}
        status, answered, content = await exchange(self._network, method, path, body, lines)
        if status < _FIRST_ERROR:
            return int(answered["upload-offset"])
        if status in _PASSING or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise FetchFailed(f"answered {status}")
        problem = json.loads(content)
        return Refusal(status, problem["code"], problem["message"])


# --- a process's own files: no other process waits while it reads them ---------------------------


async def _each(
    wanted: tuple[_Wanted, ...], exchange: Callable[[_Wanted], Awaitable[_Why | None]]
) -> dict[str, _Why]:
    """Exchange one after the other; by SHA-256 why those that nobody can have or take."""
    problems = {}
    for one in wanted:
        try:
            why = await exchange(one)
        except Interrupted as cut:
            raise FetchFailed(cut.cause) from cut
        if why is not None:
            problems[one.sha256] = why
    return problems


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _append(path: Path, piece: bytes) -> None:
    with path.open("ab") as file:
        file.write(piece)


def _read(path: Path, offset: int) -> bytes:
    return path.read_bytes()[offset:]


def _fault_in(path: Path, sha256: str) -> str | None:
    """What is wrong with a whole file, which then goes."""
    if hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
        return None
    path.unlink()
    return "it has another SHA-256"
