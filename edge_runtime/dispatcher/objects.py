"""Objects: what is too large to travel inline. Requesters upload inputs, cars outputs.

An object is named by its tenant and the SHA-256 of its bytes. An upload grows in a spool file on
this machine, is proven by its hash, and then lies where `objects_kept` puts it: in a folder, or in
any store that speaks S3.

Invariants
- What is answered is durable: an offset is told after the spool was fsynced, and an object is
  whole only after its bytes have the hash that names them and lie in the store of objects.
- A tenant reaches its own objects only. A car, which has no key, reaches one by a ticket: a keyed
  hash of the object's name, which only an offer of a job of that tenant carries. Another ticket, of
  a job, lets it put that job's outputs, and read nothing.
- An output is a job's from the moment in which its upload begins, and stays as long as that job.
  One that a car refers to is taken only where it is whole, of the length that the car says, and
  was put under the ticket of that very job.
- An object goes a day after its upload or its last new job, unless a job that uses it is still
  kept: then with that job. What was not uploaded to its end goes after a day.
- Nothing is accepted for which there is no room: of one object, of all, of a tenant, of the disk.

Deliberately absent: HTTP (`api.objects`), and any look into what an object holds.
"""

import asyncio
import contextlib
import errno
import hashlib
import hmac
import os
import secrets
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
import structlog

from edge_runtime.contract import limits
from edge_runtime.contract.clock import Now
from edge_runtime.contract.http import JobRequest, Problem
from edge_runtime.contract.messages import Reference
from edge_runtime.dispatcher.accounts_quotas import Load, Quotas
from edge_runtime.dispatcher.front import Refusal, refusal
from edge_runtime.dispatcher.objects_kept import KeptObjects, ObjectsUnavailable
from edge_runtime.dispatcher.storage import Record, Store, StoreError

CARS_PATH: Final = "/objects/for-cars"
_KIND: Final = "object"
_SECRET_KIND: Final = "object-secret"  # noqa: S105 - the name of a kind of record
_SECRET_BYTES: Final = 32
_TICKET_CHARS: Final = 32
_OUTPUTS: Final = "outputs of"
"""Sets tickets of outputs apart: no tenant has this name."""
_RETENTION_MAX_MS: Final = limits.JOB_RETENTION_MAX_S * 1000
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_log = structlog.get_logger(__name__)
_encode = msgspec.msgpack.Encoder().encode


class StoredObject(msgspec.Struct, frozen=True, kw_only=True):
    """One object: what its record says. `expires_ms` is when it is next looked at.

    Of more `jobs` than are remembered it stays until `until_ms`. `is_output` is what only cars
    have uploaded: without a job it is nobody's.
    """

    tenant: str
    sha256: str
    length: int
    expires_ms: int
    is_whole: bool = False
    jobs: tuple[str, ...] = ()
    until_ms: int = 0
    is_output: bool = False

    @property
    def name(self) -> str:
        """Its name in the store of objects, and of its record."""
        return f"{self.tenant}/{self.sha256}"


class Upload(msgspec.Struct, frozen=True):
    """How much of an object is durable here: `offset` of its bytes."""

    stored: StoredObject
    offset: int


_decode = msgspec.msgpack.Decoder(StoredObject).decode


class Objects:
    """The objects of one dispatcher; `open` reads what there is. Methods raise `Refusal`."""

    def __init__(
        self,
        store: Store,
        kept: KeptObjects,
        spool: Path,
        *,
        quotas: Quotas,
        clock: Callable[[], Now],
        counters: Counter[str] | None = None,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._random_bytes = random_bytes
        self._store = store
        self._kept = kept
        self._spool = spool
        self._quotas = quotas
        self._clock = clock
        self._counters: Counter[str] = Counter() if counters is None else counters
        self._objects: dict[str, StoredObject] = {}
        self._busy: set[str] = set()
        self._changing = asyncio.Lock()
        self._secret = b""

    async def open(self) -> None:
        """Read every object's record, and sweep the spool of what has none."""
        before: str | None = None
        while page := await self._store.records(_KIND, None, limits.HTTP_PAGE_MAX, before):
            for record in page:
                self._objects[record.id] = _decode(record.body)
            before = page[-1].id
        found = await self._store.record(_SECRET_KIND, _SECRET_KIND)
        if found is None:
            body = self._random_bytes(_SECRET_BYTES)
            found = Record(_SECRET_KIND, _SECRET_KIND, "", self._now_ms(), body)
            await self._store.put_records([found])
        self._secret = found.body
        known = {self._spooled(stored).name for stored in self._objects.values()}
        await asyncio.to_thread(_sweep_spool, self._spool, known)

    def _now_ms(self) -> int:
        return self._clock().utc_ms

    def _spooled(self, stored: StoredObject) -> Path:
        return self._spool / f"{stored.tenant}.{stored.sha256}"

    def __len__(self) -> int:
        return len(self._objects)

    # --- uploading ------------------------------------------------------------------------------

    async def create(self, tenant: str, sha256: str, length: int) -> Upload:
        """Begin an upload, or find the one that was begun."""
        upload = await self._begin_or_find(tenant, sha256, length)
        if upload.stored.is_output:
            # From now on it is also the tenant's own, which may name it in a job to come.
            upload = Upload(await self._made_own(upload.stored), upload.offset)
        return upload

    async def _made_own(self, stored: StoredObject) -> StoredObject:
        async with self._changing:
            expires_ms = self._now_ms() + limits.OBJECT_UNUSED_S * 1000
            own = msgspec.structs.replace(
                self._find(stored.tenant, stored.sha256), is_output=False, expires_ms=expires_ms
            )
            await self._put([own])
        return own

    async def create_output(self, tenant: str, job: str, sha256: str, length: int) -> Upload:
        """Begin or find the upload of an output of a job, which stays as long as the job.

        `Refusal` 404 where there is no such job, 410 where it is over.
        """
        status = await self._store.job(job)
        if status is None or status.tenant != tenant:
            raise refusal(HTTPStatus.NOT_FOUND, "unknown_job", f"no job {job[:64]}", "job")
        if status.state.is_terminal:
            message = f"the job is {status.state.value}: it wants no more outputs"
            raise refusal(HTTPStatus.GONE, "job_over", message, "job")
        upload = await self._begin_or_find(tenant, sha256, length, is_output=True)
        async with self._changing:
            stored = self._find(tenant, sha256)
            if job not in stored.jobs:
                stored = _used_by(stored, job, status.deadline_ms + _RETENTION_MAX_MS)
                await self._put([stored])
        return Upload(stored, upload.offset)

    async def _begin_or_find(
        self, tenant: str, sha256: str, length: int, *, is_output: bool = False
    ) -> Upload:
        known = self._objects.get(f"{tenant}/{sha256}")
        if known is not None:
            if known.length != length:
                raise refusal(
                    HTTPStatus.CONFLICT,
                    "other_length",
                    f"this object was begun with {known.length} bytes",
                    "Upload-Length",
                )
            return await self.look(tenant, sha256)
        self._require_room(length)
        expires_ms = self._now_ms() + limits.OBJECT_UNUSED_S * 1000
        stored = StoredObject(
            tenant=tenant,
            sha256=sha256,
            length=length,
            expires_ms=expires_ms,
            is_output=is_output,
        )
        async with self._quotas.hold(tenant, lambda: Load(bytes=length)):
            with self._alone(stored.name), _disk_faults():
                await asyncio.to_thread(_begin, self._spooled(stored))
                await self._put([stored])
        return Upload(stored, 0)

    def _require_room(self, length: int) -> None:
        if length > limits.OBJECT_MAX_BYTES:
            raise refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                "too_large",
                f"an object has at most {limits.OBJECT_MAX_BYTES} bytes, not {length}",
                "Upload-Length",
                f"OBJECT_MAX_BYTES={limits.OBJECT_MAX_BYTES}",
            )
        if length < 1:
            message = "an object has at least one byte"
            raise refusal(
                HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_field", message, "Upload-Length"
            )
        if len(self._objects) >= limits.OBJECTS_MAX:
            message = "this dispatcher holds as many objects as it takes"
            limit = f"OBJECTS_MAX={limits.OBJECTS_MAX}"
            raise refusal(HTTPStatus.INSUFFICIENT_STORAGE, "objects_full", message, None, limit)
        with _disk_faults():
            self._spool.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self._spool).free
        # Twice: in a folder, the object is copied out of the spool.
        if free - 2 * length < limits.STORE_RESERVE_BYTES:
            message = f"the disk for uploads has {free} bytes left"
            limit = f"STORE_RESERVE_BYTES={limits.STORE_RESERVE_BYTES}"
            raise refusal(HTTPStatus.INSUFFICIENT_STORAGE, "disk_full", message, None, limit)

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """One writer of an object at a time."""
        if name in self._busy:
            message = "another request is writing this object"
            raise refusal(HTTPStatus.LOCKED, "locked", message)
        if len(self._busy) >= limits.OBJECT_UPLOADS_MAX:
            limit = f"OBJECT_UPLOADS_MAX={limits.OBJECT_UPLOADS_MAX}"
            message = "too many uploads at once; try again"
            raise refusal(HTTPStatus.SERVICE_UNAVAILABLE, "busy", message, None, limit)
        self._busy.add(name)
        try:
            yield
        finally:
            self._busy.discard(name)

    async def look(self, tenant: str, sha256: str) -> Upload:
        """How far an upload is; one that has all its bytes is brought to its end.

        `Refusal` 423 while another request does that: who hears that all bytes are there may
        refer to them.
        """
        stored = self._find(tenant, sha256)
        if stored.is_whole:
            return Upload(stored, stored.length)
        with _disk_faults():
            offset = await asyncio.to_thread(_size_of, self._spooled(stored))
        stored = self._find(tenant, sha256)  # another request may have brought it to its end
        if stored.is_whole:
            return Upload(stored, stored.length)
        if offset < stored.length:
            return Upload(stored, offset)
        with self._alone(stored.name):
            return Upload(await self._finish(stored), stored.length)

    async def append(
        self, tenant: str, sha256: str, offset: int, body: AsyncIterator[bytes]
    ) -> Upload:
        """Write what `body` gives from `offset` on; what came of a broken body stays.

        `Refusal` 409 where `offset` is not where the upload ended, 413 for more than the object's
        length, 422 where the whole has another hash (then nothing of it is kept).
        """
        stored = self._find(tenant, sha256)
        if stored.is_whole:
            raise refusal(HTTPStatus.CONFLICT, "already_whole", "this object is whole")
        with self._alone(stored.name), _disk_faults():
            path = self._spooled(stored)
            present = await asyncio.to_thread(_size_of, path)
            if offset != present:
                raise refusal(
                    HTTPStatus.CONFLICT,
                    "wrong_offset",
                    f"the upload goes on at byte {present}, not {offset}",
                    "Upload-Offset",
                )
            size = await _append(path, offset, stored.length, body)
            if size == stored.length:
                stored = await self._finish(stored)
        return Upload(stored, size)

    async def _finish(self, stored: StoredObject) -> StoredObject:
        """Prove the bytes, and put them where objects are kept."""
        path = self._spooled(stored)
        with _disk_faults():
            sha256 = await asyncio.to_thread(_sha256_of, path)
        if sha256 != stored.sha256:
            await self._drop(stored)
            message = "the bytes have another SHA-256 than the object's name; begin again"
            raise refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "wrong_hash", message, "sha256")
        try:
            await self._kept.put(stored.name, path)
        except ObjectsUnavailable as error:
            self._counters["objects_unavailable"] += 1
            _log.warning("object_not_kept", object=stored.name, reason=str(error))
            raise _unavailable() from error
        async with self._changing:
            # Read again: another job may have come to use it meanwhile.
            stored = self._find(stored.tenant, stored.sha256)
            unused_s = limits.OBJECT_LOOK_S if stored.is_output else limits.OBJECT_UNUSED_S
            expires_ms = self._now_ms() + unused_s * 1000
            whole = msgspec.structs.replace(stored, is_whole=True, expires_ms=expires_ms)
            await self._put([whole])
        await asyncio.to_thread(path.unlink, missing_ok=True)
        self._counters["objects_stored"] += 1
        return whole

    # --- reading --------------------------------------------------------------------------------

    def find_whole(self, tenant: str, sha256: str) -> StoredObject:
        """An object that can be read; `Refusal` 404 otherwise."""
        stored = self._find(tenant, sha256)
        if not stored.is_whole:
            raise _unknown(sha256)
        return stored

    def find_for_car(self, tenant: str, ticket: str, sha256: str) -> StoredObject:
        """The same for who has no key but a ticket; a wrong one is told nothing more than 404."""
        if not self._is_ticket(ticket, tenant, sha256):
            raise _unknown(sha256)
        return self.find_whole(tenant, sha256)

    def output_place(self, tenant: str, job: str) -> str:
        """The path under which cars may put outputs of a job."""
        return f"{CARS_PATH}/{tenant}/{self._ticket(_OUTPUTS, tenant, job)}/{job}"

    def require_output_ticket(self, tenant: str, ticket: str, job: str) -> None:
        """`Refusal` 404 unless the ticket is the one of `output_place`."""
        if not self._is_ticket(ticket, _OUTPUTS, tenant, job):
            raise refusal(HTTPStatus.NOT_FOUND, "unknown_job", f"no job {job[:64]}", "job")

    def output_problem(self, job: str, ref: Reference) -> str | None:
        """What is wrong with an output that a car refers to; None for one that may be taken.

        The ticket in its address proves whose job it is: no other address is believed.
        """
        tenant, _, rest = ref.url.removeprefix(f"{CARS_PATH}/").partition("/")
        ticket, _, name = rest.partition("/")
        if name != f"{job}/{ref.sha256}" or not self._is_ticket(ticket, _OUTPUTS, tenant, job):
            return "the output's address is not one that was offered for this job"
        stored = self._objects.get(f"{tenant}/{ref.sha256}")
        if stored is None or not stored.is_whole:
            return "the output was not uploaded to its end"
        if stored.length != ref.length:
            return f"the output has {stored.length} bytes, not {ref.length}"
        if job not in stored.jobs and not stored.until_ms:
            return "the output was not uploaded for this job"
        return None

    async def read(self, stored: StoredObject, span: range) -> AsyncIterator[bytes]:
        """The bytes of a span. Raises `ObjectsUnavailable`, also in the middle."""
        async for piece in self._kept.read(stored.name, span):
            yield piece

    def _find(self, tenant: str, sha256: str) -> StoredObject:
        stored = self._objects.get(f"{tenant}/{sha256}")
        if stored is None:
            raise _unknown(sha256)
        return stored

    def _ticket(self, *names: str) -> str:
        digest = hmac.digest(self._secret, "/".join(names).encode(), "sha256")
        return digest.hex()[:_TICKET_CHARS]

    def _is_ticket(self, ticket: str, *names: str) -> bool:
        return hmac.compare_digest(ticket.encode(), self._ticket(*names).encode())

    def reference(self, tenant: str, sha256: str) -> Reference:
        """What an offer says of an object; `Refusal` 404 where the tenant has none."""
        stored = self.find_whole(tenant, sha256)
        ticket = self._ticket(tenant, sha256)
        url = f"{CARS_PATH}/{tenant}/{ticket}/{sha256}"
        return Reference(sha256=sha256, length=stored.length, url=url)

    # --- being used, and going ------------------------------------------------------------------

    def problem_with(self, tenant: str, request: JobRequest) -> Problem | None:
        """The first reference of a job that leads nowhere."""
        for index, item in enumerate(request.items):
            if item.ref is None:
                continue
            stored = self._objects.get(f"{tenant}/{item.ref}")
            if stored is None or not stored.is_whole:
                problem = _unknown(item.ref).problem
                return msgspec.structs.replace(problem, field=f"items[{index}].ref")
        return None

    async def use(self, tenant: str, jobs: Mapping[str, Sequence[str]], until_ms: int) -> None:
        """Keep the objects (by job) for as long as those jobs are; durable when it returns.

        `until_ms` is when the last of the jobs is over at the latest. `Refusal` 404 for one that
        went meanwhile.
        """
        async with self._changing:
            changed: dict[str, StoredObject] = {}
            expires_ms = self._now_ms() + limits.OBJECT_UNUSED_S * 1000
            for job, digests in jobs.items():
                for sha256 in dict.fromkeys(digests):
                    stored = changed.get(sha256) or self.find_whole(tenant, sha256)
                    stored = _used_by(stored, job, until_ms)
                    changed[sha256] = msgspec.structs.replace(stored, expires_ms=expires_ms)
            if changed:
                await self._put(list(changed.values()))

    async def delete(self, tenant: str, sha256: str) -> None:
        """Forget an object; `Refusal` 409 while a job uses it."""
        async with self._changing:
            stored = self._find(tenant, sha256)
            with self._alone(stored.name):
                if await self._is_used(stored):
                    raise refusal(HTTPStatus.CONFLICT, "in_use", "a job uses this object")
                await self._drop(stored)

    async def sweep_forever(self) -> None:
        """Let go of what is over; a store that fails is tried again."""
        while True:
            await asyncio.sleep(limits.SWEEP_INTERVAL_S)
            try:
                await self.sweep()
            except (StoreError, Refusal) as error:
                _log.warning("objects_not_swept", error=str(error))

    async def sweep(self) -> None:
        """Let go of objects whose time is over and that no job uses."""
        now_ms = self._now_ms()
        for name in [n for n, stored in self._objects.items() if stored.expires_ms <= now_ms]:
            async with self._changing:
                stored = self._objects.get(name)
                if stored is None or stored.expires_ms > now_ms or name in self._busy:
                    continue
                if stored.is_whole and await self._is_used(stored):
                    # Not written: after a restart it is looked at again, which is as well.
                    later_ms = now_ms + limits.OBJECT_LOOK_S * 1000
                    self._objects[name] = msgspec.structs.replace(stored, expires_ms=later_ms)
                    continue
                with self._alone(name):
                    await self._drop(stored)
                self._counters["objects_expired"] += 1

    async def _is_used(self, stored: StoredObject) -> bool:
        if stored.until_ms > self._now_ms():
            return True
        for job in reversed(stored.jobs):
            if await self._store.job(job) is not None:
                return True
        return False

    async def _drop(self, stored: StoredObject) -> None:
        """Bytes first: a record without them is found and dropped again after a crash."""
        if stored.is_whole:
            try:
                await self._kept.delete(stored.name)
            except ObjectsUnavailable as error:
                self._counters["objects_unavailable"] += 1
                raise _unavailable() from error
        with _disk_faults():
            await asyncio.to_thread(self._spooled(stored).unlink, missing_ok=True)
        await self._store.put_records([], [(_KIND, stored.name)])
        del self._objects[stored.name]

    async def _put(self, objects: Sequence[StoredObject]) -> None:
        now_ms = self._now_ms()
        records = [
            Record(
                _KIND,
                stored.name,
                stored.tenant,
                now_ms,
                _encode(stored),
                is_open=not stored.is_whole,
                bytes=stored.length,
            )
            for stored in objects
        ]
        await self._store.put_records(records)
        self._objects.update((stored.name, stored) for stored in objects)


def _used_by(stored: StoredObject, job: str, until_ms: int) -> StoredObject:
    """The object with one more job; the first of too many is not remembered by name."""
    stored = msgspec.structs.replace(stored, jobs=(*stored.jobs, job))
    if len(stored.jobs) <= limits.OBJECT_JOBS_MAX:
        return stored
    until_ms = max(stored.until_ms, until_ms)
    return msgspec.structs.replace(stored, jobs=stored.jobs[1:], until_ms=until_ms)


# --- the spool, in threads ----------------------------------------------------------------------


async def _append(path: Path, offset: int, length: int, body: AsyncIterator[bytes]) -> int:
    """Write a body behind `offset`; the size then. Durable, also where the body breaks off."""
    file = await asyncio.to_thread(path.open, "r+b")
    size, waiting = offset, bytearray()
    try:
        await asyncio.to_thread(file.seek, offset)
        async for piece in body:
            if size + len(waiting) + len(piece) > length:
                waiting.clear()
                size = offset
                await asyncio.to_thread(file.truncate, offset)
                raise refusal(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    "too_large",
                    f"the body goes beyond the object's {length} bytes",
                    "Upload-Length",
                    f"Upload-Length={length}",
                )
            waiting += piece
            if len(waiting) >= limits.UPLOAD_WRITE_BYTES:
                data, waiting = waiting, bytearray()
                await asyncio.to_thread(file.write, data)
                size += len(data)
    finally:
        await asyncio.shield(asyncio.to_thread(_close, file, bytes(waiting)))
    return size + len(waiting)


def _close(file: BinaryIO, data: bytes) -> None:
    with file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _begin(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        os.fsync(file.fileno())


def _size_of(path: Path) -> int:
    """Bytes in the spool; a file that is gone is begun again."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        _begin(path)
        return 0


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sweep_spool(spool: Path, known: set[str]) -> None:
    if spool.is_dir():
        for path in spool.iterdir():
            if path.name not in known:
                path.unlink(missing_ok=True)


# --- refusals -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _disk_faults() -> Iterator[None]:
    """A disk that is full, or fails, as 507: the upload may go on later where it ended."""
    try:
        yield
    except OSError as error:
        code = "disk_full" if error.errno in _FULL else "disk_failed"
        message = f"the upload cannot be written: {error.strerror}"
        raise refusal(HTTPStatus.INSUFFICIENT_STORAGE, code, message) from error


def _unknown(sha256: str) -> Refusal:
    message = f"no object {sha256[:64]}: it was never uploaded to its end, or has expired"
    return refusal(HTTPStatus.NOT_FOUND, "unknown_object", message, "sha256")


def _unavailable() -> Refusal:
    message = "the store of objects does not answer; try again"
    return refusal(HTTPStatus.SERVICE_UNAVAILABLE, "objects_unavailable", message)
