"""Uploaded and produced files: bytes in a folder, everything else in the store.

Invariants
- A file has a record only once all its bytes are on disk; what has none is nobody's, and goes
  at the next start.
- No file is ever held in memory, whoever sends or reads it.
- A file counts for its tenant's quota of bytes; one that a batch still reads is not deleted.
"""

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import msgspec
import structlog

from edge_runtime.contract import limits
from edge_runtime.dispatcher.accounts_quotas import Load, Quotas
from edge_runtime.dispatcher.front import refusal
from edge_runtime.dispatcher.storage import Record, Store
from edge_runtime.pki.files import sync_path

_log = structlog.get_logger(__name__)

FILE_KIND: Final = "file"
_UNFINISHED: Final = ".part"
_ID_BYTES: Final = 12


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """What a record of kind `file` says. `lines` are those with something in them."""

    filename: str
    purpose: str
    lines: int
    expires_s: int | None = None


class FileView(NamedTuple):
    """A file as its owner sees it."""

    id: str
    bytes: int
    created_s: int
    stored: StoredFile

    def body(self) -> dict[str, Any]:
        """As OpenAI's API writes it."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created_s,
            "expires_at": self.stored.expires_s,
            "filename": self.stored.filename,
            "purpose": self.stored.purpose,
            "status": "processed",
            "status_details": None,
        }


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(StoredFile).decode


class Writing:
    """A file that is being written; counts its lines. Writes block: a megabyte at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.lines = 0
        self._file: BinaryIO = path.open("xb")
        self._buffer = bytearray()
        self._is_line_open = False

    async def write(self, data: bytes | bytearray) -> None:
        """Take more bytes."""
        self._buffer += data
        self.size += len(data)
        if len(self._buffer) >= limits.UPLOAD_WRITE_BYTES:
            await asyncio.to_thread(self._flush)

    def _flush(self) -> None:
        data = bytes(self._buffer)
        self._buffer.clear()
        self._count(data)
        self._file.write(data)

    def _count(self, data: bytes) -> None:
        for place, piece in enumerate(data.split(b"\n")):
            if place:
                self.lines += self._is_line_open
                self._is_line_open = False
            self._is_line_open = self._is_line_open or bool(piece.strip())

    async def finish(self) -> None:
        """Everything is on disk."""

        def sync() -> None:
            self._flush()
            self.lines += self._is_line_open
            self._is_line_open = False
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

        await asyncio.to_thread(sync)

    def abandon(self) -> None:
        """Leave nothing behind."""
        self._file.close()
        self.path.unlink(missing_ok=True)


class FileShelf:
    """Files of all tenants. `open` makes the folder and clears it of what is nobody's."""

    def __init__(
        self,
        store: Store,
        folder: Path,
        quotas: Quotas,
        now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._store = store
        self._folder = folder
        self.quotas = quotas
        self._now_ms = now_ms
        self._random_bytes = random_bytes
        self._in_use: dict[str, str] = {}
        self._writing = 0

    async def open(self) -> None:
        """Make the folder; what a crash left half-written in it goes."""
        await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True)
        for path in await asyncio.to_thread(lambda: list(self._folder.iterdir())):
            is_known = await self._store.record(FILE_KIND, path.name) is not None
            if not is_known:
                await asyncio.to_thread(path.unlink, missing_ok=True)

    def path(self, file_id: str) -> Path:
        """Where a file's bytes are."""
        return self._folder / file_id

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[Writing]:
        """A new file; without `keep` nothing of it remains. Raises `Refusal` 503 or 507."""
        if self._writing >= limits.UPLOADS_MAX:
            raise refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "busy",
                "too many uploads at once; try again",
                limit=f"UPLOADS_MAX={limits.UPLOADS_MAX}",
            )
        if self._store.free_bytes() < limits.STORE_RESERVE_BYTES:
            message = "the disk is nearly full; what is left is kept for results"
            raise refusal(HTTPStatus.INSUFFICIENT_STORAGE, "store_nearly_full", message)
        self._writing += 1
        path = self._folder / f"{self._random_bytes(_ID_BYTES).hex()}{_UNFINISHED}"
        writing = await asyncio.to_thread(Writing, path)
        try:
            yield writing
        except OSError as error:
            _log.error("file_not_written", error=str(error))
            raise refusal(
                HTTPStatus.INSUFFICIENT_STORAGE, "store_full", "the file could not be written"
            ) from error
        finally:
            self._writing -= 1
            writing.abandon()

    async def keep(self, writing: Writing, tenant: str, stored: StoredFile) -> FileView:
        """Give a written file to a tenant. Raises `Refusal` 429 or 413 over its quota."""
        await writing.finish()
        async with self.quotas.hold(tenant, lambda: Load(bytes=writing.size)):
            record = await self.place(writing, tenant, stored)
            await self._store.put_records([record])
        return _view(record)

    async def place(self, writing: Writing, tenant: str, stored: StoredFile) -> Record:
        """The finished file under its final name, and the record that makes it somebody's."""
        stored = msgspec.structs.replace(stored, lines=writing.lines)
        file_id = f"file-{self._random_bytes(_ID_BYTES).hex()}"
        await asyncio.to_thread(_move, writing.path, self.path(file_id))
        return Record(
            FILE_KIND, file_id, tenant, self._now_ms(), _encode(stored), bytes=writing.size
        )

    def expiry_s(self, seconds: str | None) -> int | None:
        """When (UTC) a file goes that is to last so many seconds. Raises `Refusal` 400."""
        if seconds is None:
            return None
        first, last = limits.FILE_EXPIRY_MIN_S, limits.FILE_EXPIRY_MAX_S
        is_number = seconds.isascii() and seconds.isdigit() and len(seconds) <= len(str(last))
        if not is_number or not first <= int(seconds) <= last:
            message = f"expires_after is {first} to {last} s"
            field = "expires_after[seconds]"
            raise refusal(HTTPStatus.BAD_REQUEST, "invalid_field", message, field=field)
        return self._now_ms() // 1000 + int(seconds)

    async def view(self, tenant: str | None, file_id: str) -> FileView:
        """A file of a tenant; `Refusal` 404 otherwise, and for one that has expired."""
        record = await self._store.record(FILE_KIND, file_id)
        view = None if record is None or tenant not in (None, record.tenant) else _view(record)
        if view is None or self._is_expired(view):
            message = f"No such File object: {file_id[:80]}"
            raise refusal(HTTPStatus.NOT_FOUND, "not_found", message, field="id")
        return view

    def _is_expired(self, view: FileView) -> bool:
        expires_s = view.stored.expires_s
        return expires_s is not None and self._now_ms() >= expires_s * 1000

    async def views(
        self, tenant: str | None, limit: int, after: str | None, purpose: str | None
    ) -> tuple[list[FileView], bool]:
        """A page of files, newest first, and whether there are more."""
        records = await self._store.records(FILE_KIND, tenant, limit + 1, after)
        views = [view for view in map(_view, records[:limit]) if not self._is_expired(view)]
        return (
            [view for view in views if purpose in (None, view.stored.purpose)],
            len(records) > limit,
        )

    def use(self, file_id: str, batch: str) -> None:
        """A batch reads this file: it stays."""
        self._in_use[file_id] = batch

    def leave(self, file_id: str) -> None:
        """It has been read."""
        self._in_use.pop(file_id, None)

    async def delete(self, tenant: str | None, file_id: str) -> None:
        """Forget a file. Raises `Refusal` 404, or 409 while a batch reads it."""
        await self.view(tenant, file_id)
        batch = self._in_use.get(file_id)
        if batch is not None:
            message = f"{file_id} is being read by {batch}; cancel that first, or wait"
            raise refusal(HTTPStatus.CONFLICT, "file_in_use", message, field="id")
        await self._remove(file_id)

    async def _remove(self, file_id: str) -> None:
        await self._store.put_records([], [(FILE_KIND, file_id)])
        await asyncio.to_thread(self.path(file_id).unlink, missing_ok=True)

    async def sweep(self) -> None:
        """Forget files that have expired."""
        for record in await self._store.records(FILE_KIND, None, limits.FILES_SWEPT_MAX):
            if self._is_expired(_view(record)) and record.id not in self._in_use:
                await self._remove(record.id)


def _move(path: Path, target: Path) -> None:
    """Give a file its final name, durably: the store is not to know a file that a crash unnames."""
    path.rename(target)
    sync_path(target.parent)


def _view(record: Record) -> FileView:
    return FileView(record.id, record.bytes, record.at_ms // 1000, _decode(record.body))
