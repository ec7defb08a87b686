"""What travels by reference: inputs are fetched, and proven, and outputs handed over.

The first before their unit runs, the others before the chunk that refers to them is sent. The bytes
come as packages do, and leave, through a process that lives for one order, resumes what broke off
and believes no server (`models.fetch`).

Invariants
- `fetch` ends as exactly one of `InputsFetched` and `InputsFailed`, `upload` as one of
  `OutputsUploaded` and `OutputsFailed`.
- Nothing is fetched while the owner's rules do not allow the network, or for a unit that has left
  the car, and nothing handed over: what is under way then is broken off. What came, and what left,
  counts in the owner's data budget.
- No byte leaves here that is not of the SHA-256 that an offer named; it is hashed once more in
  the memory from which it is handed over, so that nobody can change the file between.
- An output leaves from the journal: what a crash would lose is not handed over.
- One unit at a time; the folder holds broken downloads of a few at most, and none from before.

Deliberately absent: which units' inputs to fetch, when there is room for them, and when to try
again to hand something over: the core's.
"""

import asyncio
import hashlib
import shutil
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from pathlib import Path
from typing import Final

import structlog

from edge_runtime.contract import limits
from edge_runtime.contract.errors import LocalError
from edge_runtime.contract.messages import Fence, Reference
from edge_runtime.vehicle.core.commands import FetchInputs, UploadOutputs
from edge_runtime.vehicle.core.events import (
    Event,
    FetchedInput,
    InputsFailed,
    InputsFetched,
    OutputsFailed,
    OutputsUploaded,
    RefusedOutput,
)
from edge_runtime.vehicle.models.fetching import FetchFailed, FetchProcess, StoreFull, fetching
from edge_runtime.vehicle.models.orders import ObjectOrder, Order, Patience, Refusal, UploadOrder

StartProcess = Callable[[], AbstractAsyncContextManager[FetchProcess]]
ReadOutput = Callable[[int, Fence, int, str], bytes | None]
"""An output that the journal holds, by unit, fence, number of the chunk and SHA-256."""
_NOT_ALLOWED: Final = "the owner's rules do not allow it, or nobody waits for it any more"
_BEYOND_QUOTA: Final = frozenset(
    {HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.TOO_MANY_REQUESTS}
)

_log = structlog.get_logger()


class InputFetcher:
    """One car's inputs. `urls` says where hosts are, best first; `tell` hears what came of it.

    `may_fetch` says whether the owner's rules allow the network and the unit is still here.
    """

    def __init__(
        self,
        folder: Path,
        *,
        urls: Callable[[], list[str]],
        tell: Callable[[Event], None],
        may_fetch: Callable[[int], bool],
        patience: Patience | None = None,
        start: StartProcess = fetching,
    ) -> None:
        self._folder = folder
        self._start = start
        self._urls = urls
        self._tell = tell
        self._may_fetch = may_fetch
        self._patience = patience or Patience()
        self._turn = asyncio.Lock()
        self._running: tuple[int, FetchProcess] | None = None
        self._received_bytes = 0
        self._is_swept = False

    def take_received_bytes(self) -> int:
        """What came from hosts since the last call, of use or not."""
        received, self._received_bytes = self._received_bytes, 0
        return received

    def look(self) -> None:
        """Break off what may not go on. Call about once a second."""
        if self._running is not None and not self._may_fetch(self._running[0]):
            self._running[1].break_off()

    async def fetch(self, command: FetchInputs) -> None:
        """Ends as `InputsFetched` or `InputsFailed`."""
        event: InputsFetched | InputsFailed
        try:
            async with self._turn:
                event = await self._fetch(command)
        except OSError as error:
            _log.warning("inputs_not_fetched", unit=command.unit, why=str(error))
            event = InputsFailed(command.unit, str(error)[: limits.TEXT_MAX_CHARS])
        self._tell(event)

    async def _fetch(self, command: FetchInputs) -> InputsFetched:
        failure = FetchFailed(_NOT_ALLOWED)
        for number in range(limits.OBJECT_FETCH_TRIES):
            if number:
                await asyncio.sleep(limits.OBJECT_FETCH_RETRY_S * 2 ** (number - 1))
            if not self._may_fetch(command.unit):
                break
            urls = self._urls() or [""]
            try:
                return await self._fetch_from(urls[number % len(urls)], command)
            except FetchFailed as error:
                failure = error
        raise failure

    async def _fetch_from(self, base_url: str, command: FetchInputs) -> InputsFetched:
        wanted = dict(command.references)
        await asyncio.to_thread(self._prepare, {ref.sha256: ref for ref in wanted.values()})
        orders = {
            ref.sha256: ObjectOrder(
                _address(base_url, ref.url), ref.sha256, ref.length, str(self._folder / ref.sha256)
            )
            for ref in wanted.values()
        }
        order = Order(objects=tuple(orders.values()), patience=self._patience)
        had_bytes = self._bytes_on_disk(orders)
        async with self._start() as process:
            self._running = command.unit, process
            try:
                held = await process.objects(order)
            finally:
                self._running = None
                # One that was ended could not say: what is on the disk came, at least.
                came = max(0, self._bytes_on_disk(orders) - had_bytes)
                self._received_bytes += max(process.received_bytes, came)
        inputs = []
        broken = []
        for index, ref in wanted.items():
            why = held.broken.get(ref.sha256)
            data = None if why else await asyncio.to_thread(_proven, self._folder, ref)
            if data is None:
                broken.append((index, why or "the file changed after it was fetched"))
            else:
                inputs.append(FetchedInput(index, ref.sha256, data))
        await asyncio.to_thread(self._forget, tuple(orders))
        return InputsFetched(command.unit, tuple(inputs), tuple(broken))

    def _prepare(self, wanted: dict[str, Reference]) -> None:
        """Have the folder, with room for what comes and without what nobody goes on with."""
        if not self._is_swept:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._is_swept = True
        partial = sorted(
            (path for path in self._folder.iterdir() if path.name not in wanted),
            key=lambda path: path.stat().st_mtime_ns,
        )
        for path in partial[: -limits.PARTIAL_DOWNLOADS_MAX]:
            path.unlink(missing_ok=True)
        free = shutil.disk_usage(self._folder).free
        need = sum(ref.length for ref in wanted.values())
        if free - need < limits.JOURNAL_RESERVE_BYTES:
            raise StoreFull(f"{need} bytes of inputs do not fit: the disk has {free} left")

    def _bytes_on_disk(self, names: Iterable[str]) -> int:
        paths = (self._folder / name for name in names)
        return sum(path.stat().st_size for path in paths if path.exists())

    def _forget(self, names: tuple[str, ...]) -> None:
        for name in names:
            (self._folder / name).unlink(missing_ok=True)


class OutputSender:
    """One car's large outputs, as `InputFetcher` has its inputs; `read` gives them, in a thread.

    `may_upload` says whether the owner's rules allow the network, and whether the car still has a
    chunk of that attempt to send.
    """

    def __init__(
        self,
        folder: Path,
        *,
        read: ReadOutput,
        urls: Callable[[], list[str]],
        tell: Callable[[Event], None],
        may_upload: Callable[[int, Fence], bool],
        patience: Patience | None = None,
        start: StartProcess = fetching,
    ) -> None:
        self._folder = folder
        self._read = read
        self._urls = urls
        self._tell = tell
        self._may_upload = may_upload
        self._patience = patience or Patience()
        self._start = start
        self._turn = asyncio.Lock()
        self._running: tuple[UploadOutputs, FetchProcess] | None = None
        self._tries = 0
        self._sent_bytes = 0

    def take_sent_bytes(self) -> int:
        """What left for hosts since the last call, of use or not."""
        sent, self._sent_bytes = self._sent_bytes, 0
        return sent

    def look(self) -> None:
        """Break off what may not go on. Call about once a second."""
        if self._running is not None and not self._is_allowed(self._running[0]):
            self._running[1].break_off()

    def _is_allowed(self, command: UploadOutputs) -> bool:
        return self._may_upload(command.unit, command.fence)

    async def upload(self, command: UploadOutputs) -> None:
        """Ends as `OutputsUploaded` or `OutputsFailed`."""
        place = command.unit, command.fence, command.seq
        event: OutputsUploaded | OutputsFailed
        try:
            async with self._turn:
                event = OutputsUploaded(*place, await self._upload(command))
        except (OSError, LocalError) as error:
            is_allowed = self._is_allowed(command)
            _log.warning("outputs_not_uploaded", unit=command.unit, why=str(error))
            message = str(error)[: limits.TEXT_MAX_CHARS]
            event = OutputsFailed(*place, message, was_allowed=is_allowed)
        self._tell(event)

    async def _upload(self, command: UploadOutputs) -> tuple[RefusedOutput, ...]:
        """Put them; those that no further try would. Raises `OSError`, `JournalError`."""
        if not self._is_allowed(command):
            raise FetchFailed(_NOT_ALLOWED)
        urls = self._urls() or [""]
        base_url = urls[self._tries % len(urls)]
        self._tries += 1
        orders, lost = [], []
        try:
            for ref in command.references:
                source = await asyncio.to_thread(self._spooled, command, ref)
                if source is None:
                    lost.append(RefusedOutput(ref.sha256, "the car has lost the output"))
                    continue
                place = _address(base_url, ref.url.rpartition("/")[0])
                orders.append(UploadOrder(place, ref.sha256, ref.length, str(source)))
            refused = await self._put(command, tuple(orders)) if orders else {}
        finally:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
        return (*lost, *(_refused(sha256, why) for sha256, why in refused.items()))

    async def _put(
        self, command: UploadOutputs, orders: tuple[UploadOrder, ...]
    ) -> dict[str, Refusal]:
        async with self._start() as process:
            self._running = command, process
            try:
                taken = await process.uploads(Order(uploads=orders, patience=self._patience))
            finally:
                self._running = None
                self._sent_bytes += process.sent_bytes
        return taken.refused

    def _spooled(self, command: UploadOutputs, ref: Reference) -> Path | None:
        """A file with an output, for the process; None where the journal has it no more."""
        data = self._read(command.unit, command.fence, command.seq, ref.sha256)
        if data is None:
            return None
        self._folder.mkdir(parents=True, exist_ok=True)
        source = self._folder / ref.sha256
        source.write_bytes(data)
        return source


def _refused(sha256: str, why: Refusal) -> RefusedOutput:
    """Of a tenant without room for it no other car could hand it over, either."""
    message = f"the output was refused: {why.status} {why.code}: {why.message}"
    is_final = why.status in _BEYOND_QUOTA
    return RefusedOutput(sha256, message[: limits.TEXT_MAX_CHARS], is_final=is_final)


def _address(base_url: str, url: str) -> str:
    """Where an object is; a path is of the host that serves packages."""
    return f"{base_url.rstrip('/')}{url}" if url.startswith("/") else url


def _proven(folder: Path, ref: Reference) -> bytes | None:
    """The bytes in a file, where they are those that the reference names."""
    with (folder / ref.sha256).open("rb") as file:
        data = file.read(ref.length + 1)
    is_right = len(data) == ref.length and hashlib.sha256(data).hexdigest() == ref.sha256
    return data if is_right else None
