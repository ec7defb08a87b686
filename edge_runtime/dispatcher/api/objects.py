"""Objects over HTTP: resumable uploads by tus 1.0.0, downloads by ranges.

The protocol is at https://tus.io/protocols/resumable-upload. `/objects`, and what is under it, is
an application of its own beside the API: the protocol's methods and headers are its clients'. An
upload's address is `/objects/{sha256}`, so that whoever has the bytes knows where they are, or how
far: `HEAD` tells, `PATCH` goes on, `GET` reads what is whole. Of tus it has the core, and the
extensions creation, expiration and termination; the metadata `sha256` (64 hex digits) is needed.

Cars have no key: they read at an address with a ticket in it, which an offer names, and put outputs
by the same protocol under another: `POST` to the job's, `PATCH` under it. There they read nothing.
Outputs of requests that wait go the same way, to a place of their unit (`dispatcher.receiving`).

Deliberately absent: `creation-with-upload` and concatenation; which object may be read or goes
when, which `dispatcher.objects` decides.
"""

import base64
import binascii
import re
from collections.abc import AsyncIterator, Callable
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, NamedTuple

import structlog
from litestar.connection import Request

from edge_runtime.contract import limits
from edge_runtime.contract.http import OBJECTS_PATH
from edge_runtime.contract.topics import ID_PATTERN
from edge_runtime.dispatcher.accounts_quotas import Quotas
from edge_runtime.dispatcher.api.files import span_of
from edge_runtime.dispatcher.api.forms import refuse
from edge_runtime.dispatcher.api.pace import Pace
from edge_runtime.dispatcher.api.problems import WrongMethod, problem_of, too_large
from edge_runtime.dispatcher.api.queries import tenant_of
from edge_runtime.dispatcher.front import Refusal, refusal
from edge_runtime.dispatcher.lending import Lender, Loan
from edge_runtime.dispatcher.objects import CARS_PATH, Objects, StoredObject, Upload
from edge_runtime.dispatcher.objects_kept import ObjectsUnavailable, kept_at, kept_in_folder
from edge_runtime.dispatcher.receiving import Receiver
from edge_runtime.dispatcher.service import DispatcherService

TUS_VERSION: Final = "1.0.0"
OFFSET_TYPE: Final = "application/offset+octet-stream"
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_TICKET: Final = re.compile(r"[0-9a-f]{1,64}")
_Request = Request[Any, Any, Any]

_log = structlog.get_logger(__name__)


async def open_objects(
    service: DispatcherService, quotas: Quotas, url: str | None, folder: Path
) -> Objects:
    """The objects of a running service, swept for as long as it lives.

    They are kept at `url` (`objects_kept.kept_at`), without one in `folder`, where uploads grow in
    any case. Raises `ConfigError`.
    """
    kept = kept_in_folder(folder / "kept") if url is None else kept_at(url)
    objects = Objects(
        service.store,
        kept,
        folder / "uploads",
        quotas=quotas,
        clock=service.clock,
        counters=service.counters,
    )
    await objects.open()
    service.spawn(objects.sweep_forever)
    return objects


class _AwaitedUnit(NamedTuple):
    """A unit of requests that wait, and who takes its outputs."""

    receiver: Receiver
    number: int


class ObjectRoutes:
    """The ASGI application under `/objects`."""

    def __init__(
        self, objects: Objects, lender: Lender | None = None, receiver: Receiver | None = None
    ) -> None:
        self._objects = objects
        self._lender = lender
        self._receiver = receiver

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        started = False

        async def noted(message: Any) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._answer(Request(scope, receive, noted), noted)
        except (Refusal, ObjectsUnavailable) as error:
            if started:
                # Half an answer makes the server drop the connection; the reader goes on later.
                _log.warning("object_answer_broke_off", reason=str(error))
                return
            problem = problem_of(error) if isinstance(error, Refusal) else _unavailable().problem
            more = {"allow": error.allow} if isinstance(error, WrongMethod) else {}
            answer = refuse(problem, scope["path"], scope["headers"], **more)
            await answer(scope, receive, noted)

    async def _answer(self, request: _Request, send: Any) -> None:
        path, method = request.scope["path"], str(request.method)
        if path.startswith(f"{CARS_PATH}/"):
            await self._for_car(request, path.removeprefix(f"{CARS_PATH}/"), send)
            return
        sha256 = path.removeprefix(OBJECTS_PATH).strip("/")
        if method == "OPTIONS":
            await _send(send, HTTPStatus.NO_CONTENT, _options())
            return
        tenant = tenant_of(request)
        if not sha256:
            if method != "POST":
                raise WrongMethod("POST, OPTIONS")
            _require_tus(request)
            await self._create(request, tenant, send)
        elif not _SHA256.fullmatch(sha256):
            raise refusal(HTTPStatus.NOT_FOUND, "not_found", "no such path", field="sha256")
        elif method == "GET":
            stored = self._objects.find_whole(tenant, sha256)
            await self._read(request, stored, partial(self._objects.read, stored), send)
        elif method in {"HEAD", "PATCH", "DELETE"}:
            _require_tus(request)
            await self._tus(request, tenant, sha256, send)
        else:
            raise WrongMethod("GET, HEAD, PATCH, DELETE, OPTIONS")

    async def _for_car(self, request: _Request, rest: str, send: Any) -> None:
        match (str(request.method), *rest.split("/")):
            case ("GET", tenant, ticket, sha256) if _is_path(tenant, ticket, sha256):
                await self._read_lent_or_kept(request, tenant, ticket, sha256, send)
            case ("POST", tenant, ticket, job) if _is_path(tenant, ticket, job=job):
                unit = self._unit_at(tenant, ticket, job)
                _require_tus(request)
                sha256, length = _wanted(request)
                if unit is None:
                    upload = await self._objects.create_output(tenant, job, sha256, length)
                    headers = _upload_headers(upload)
                else:
                    headers = _offset_header(unit.receiver.create(unit.number, sha256, length))
                location = f"{CARS_PATH}/{rest}/{sha256}"
                await _send(send, HTTPStatus.CREATED, {"location": location, **headers})
            case ("PATCH", tenant, ticket, job, sha256) if _is_path(tenant, ticket, sha256, job):
                unit = self._unit_at(tenant, ticket, job)
                _require_tus(request)
                if unit is None:
                    await self._append(request, tenant, sha256, send)
                    return
                offset = _offset(request)
                body = _body(request)
                size = await unit.receiver.append(unit.number, sha256, offset, body)
                await _send(send, HTTPStatus.NO_CONTENT, _offset_header(size))
            case _:
                raise refusal(HTTPStatus.NOT_FOUND, "not_found", "no such path")

    def _unit_at(self, tenant: str, ticket: str, job: str) -> _AwaitedUnit | None:
        """The unit of requests whose outputs go here; None where it is the place of a job."""
        if self._receiver is not None:
            number = self._receiver.unit_at(tenant, ticket, job)
            if number is not None:
                return _AwaitedUnit(self._receiver, number)
        self._objects.require_output_ticket(tenant, ticket, job)
        return None

    async def _read_lent_or_kept(
        self, request: _Request, tenant: str, ticket: str, sha256: str, send: Any
    ) -> None:
        loan = None if self._lender is None else self._lender.find(tenant, ticket, sha256)
        if loan is not None:
            await self._read(request, loan, loan.read, send)
            return
        stored = self._objects.find_for_car(tenant, ticket, sha256)
        await self._read(request, stored, partial(self._objects.read, stored), send)

    # --- uploading ------------------------------------------------------------------------------

    async def _create(self, request: _Request, tenant: str, send: Any) -> None:
        sha256, length = _wanted(request)
        upload = await self._objects.create(tenant, sha256, length)
        headers = {"location": f"{OBJECTS_PATH}/{sha256}", **_upload_headers(upload)}
        await _send(send, HTTPStatus.CREATED, headers)

    async def _tus(self, request: _Request, tenant: str, sha256: str, send: Any) -> None:
        if request.method == "HEAD":
            upload = await self._objects.look(tenant, sha256)
            headers = {
                "upload-length": str(upload.stored.length),
                "cache-control": "no-store",
                **_upload_headers(upload),
            }
            await _send(send, HTTPStatus.OK, headers)
            return
        if request.method == "DELETE":
            await self._objects.delete(tenant, sha256)
            await _send(send, HTTPStatus.NO_CONTENT, {})
            return
        await self._append(request, tenant, sha256, send)

    async def _append(self, request: _Request, tenant: str, sha256: str, send: Any) -> None:
        offset = _offset(request)
        upload = await self._objects.append(tenant, sha256, offset, _body(request))
        await _send(send, HTTPStatus.NO_CONTENT, _upload_headers(upload))

    # --- reading --------------------------------------------------------------------------------

    async def _read(
        self,
        request: _Request,
        stored: StoredObject | Loan,
        read: Callable[[range], AsyncIterator[bytes]],
        send: Any,
    ) -> None:
        tag = f'"{stored.sha256}"'
        has_changed = request.headers.get("if-range", tag) != tag
        asked = "" if has_changed else request.headers.get("range", "")
        span = span_of(asked, stored.length)
        status = HTTPStatus.OK if span is None else HTTPStatus.PARTIAL_CONTENT
        headers = {
            "content-type": "application/octet-stream",
            "accept-ranges": "bytes",
            "etag": tag,
            # The bytes are a tenant's, and go with its jobs: no cache between keeps them.
            "cache-control": "private, no-store",
        }
        if span is None:
            span = range(stored.length)
        else:
            headers["content-range"] = f"bytes {span.start}-{span.stop - 1}/{stored.length}"
        headers["content-length"] = str(len(span))
        pieces = read(span)
        # The first bytes are there before the status is said: a store that is away is a 503.
        first = await anext(pieces, b"")
        await _start(send, status, headers)
        left = len(span) - len(first)
        await send({"type": "http.response.body", "body": first, "more_body": left > 0})
        async for piece in pieces:
            left -= len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": left > 0})


async def _body(request: _Request) -> AsyncIterator[bytes]:
    """The request's body as it comes; `Refusal` where it is too slow or its sender leaves."""
    pace = Pace(request.receive)
    more = True
    while more:
        piece, more = await pace.piece()
        yield piece


def _is_path(tenant: str, ticket: str, sha256: str | None = None, job: str | None = None) -> bool:
    """Whether the parts of a car's path are what they should look like."""
    is_right = ID_PATTERN.fullmatch(tenant) is not None and _TICKET.fullmatch(ticket) is not None
    is_right = is_right and (sha256 is None or _SHA256.fullmatch(sha256) is not None)
    return is_right and (job is None or ID_PATTERN.fullmatch(job) is not None)


def _wanted(request: _Request) -> tuple[str, int]:
    """The name and the length of the upload that a request would begin."""
    length = _number(request, "upload-length")
    sha256 = _metadata(request).get("sha256", "")
    if not _SHA256.fullmatch(sha256):
        raise _wrong("Upload-Metadata", "the key sha256 must be 64 hex digits in lower case")
    return sha256, length


def _offset(request: _Request) -> int:
    """Where an upload is to go on."""
    if request.headers.get("content-type", "") != OFFSET_TYPE:
        raise refusal(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            f"send {OFFSET_TYPE}",
            field="Content-Type",
        )
    announced = request.headers.get("content-length", "")
    if _NUMBER.fullmatch(announced) and int(announced) > limits.OBJECT_MAX_BYTES:
        name, most = "OBJECT_MAX_BYTES", limits.OBJECT_MAX_BYTES
        raise Refusal(too_large("body", f"an object has at most {most} bytes", name, most))
    return _number(request, "upload-offset")


def _require_tus(request: _Request) -> None:
    if request.headers.get("tus-resumable", "") != TUS_VERSION:
        raise refusal(
            HTTPStatus.PRECONDITION_FAILED,
            "tus_version",
            f"send Tus-Resumable: {TUS_VERSION}",
            field="Tus-Resumable",
        )


def _number(request: _Request, name: str) -> int:
    text = request.headers.get(name, "")
    if not _NUMBER.fullmatch(text):
        raise _wrong(name.title(), f"{name.title()} must be a number of bytes")
    return int(text)


def _metadata(request: _Request) -> dict[str, str]:
    """The metadata as tus writes it: `key base64, key base64`."""
    text = request.headers.get("upload-metadata", "")
    if len(text) > limits.OBJECT_METADATA_MAX_CHARS:
        raise _wrong(
            "Upload-Metadata", f"at most {limits.OBJECT_METADATA_MAX_CHARS} characters are read"
        )
    found = {}
    for pair in text.split(","):
        key, _, value = pair.strip().partition(" ")
        try:
            found[key] = base64.b64decode(value, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise _wrong("Upload-Metadata", f"the value of {key[:80]!r} is not base64") from None
    return found


def _wrong(field: str, message: str) -> Refusal:
    return refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_field", message, field=field)


def _unavailable() -> Refusal:
    return refusal(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "objects_unavailable",
        "the store of objects does not answer; try again",
    )


def _options() -> dict[str, str]:
    return {
        "tus-version": TUS_VERSION,
        "tus-extension": "creation,expiration,termination",
        "tus-max-size": str(limits.OBJECT_MAX_BYTES),
    }


def _upload_headers(upload: Upload) -> dict[str, str]:
    expires = formatdate(upload.stored.expires_ms / 1000, usegmt=True)
    return {**_offset_header(upload.offset), "upload-expires": expires}


def _offset_header(offset: int) -> dict[str, str]:
    return {"upload-offset": str(offset)}


async def _send(send: Any, status: HTTPStatus, headers: dict[str, str]) -> None:
    """An answer without a body."""
    length = {} if status == HTTPStatus.NO_CONTENT else {"content-length": "0"}
    await _start(send, status, {"tus-resumable": TUS_VERSION, **length, **headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _start(send: Any, status: HTTPStatus, headers: dict[str, str]) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": int(status), "headers": raw})
