"""What is over the inline limit: inputs are uploaded as objects, outputs downloaded.

An upload outlives lost connections and a dispatcher's restart: it asks how far it is and goes on
there (tus 1.0.0). What the dispatcher has already is not sent again. A download goes on where it
broke off, and is what was asked for: its bytes have the hash that names them.

Deliberately absent: which outputs to download, and what is in them.
"""

import asyncio
import hashlib
import io
import os
import re
import secrets
from base64 import b64encode
from http import HTTPStatus
from pathlib import Path
from typing import Final

import msgspec

from edge_runtime.client.errors import ContractBroken, DispatcherRefused, JobRefused
from edge_runtime.client.transport import Interrupted, Patience, Transport
from edge_runtime.contract import limits
from edge_runtime.contract.http import OBJECTS_PATH, ItemInput, JobRequest, Problem
from edge_runtime.contract.messages import OutputReference

_TUS: Final = {"Tus-Resumable": "1.0.0"}
_PATH: Final = OBJECTS_PATH
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_AGAIN: Final = frozenset(
    {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.LOCKED, HTTPStatus.NOT_FOUND}
)
"""Of a PATCH: another upload of the same bytes, or a cut one, is in the way. HEAD says how far."""


async def with_references(transport: Transport, request: JobRequest) -> JobRequest:
    """The job with its large inputs uploaded. Raises `JobRefused`, `DispatcherUnreachable`."""
    if not any(_is_large(item) for item in request.items):
        return request
    items = []
    for index, item in enumerate(request.items):
        if _is_large(item):
            data = _bytes_of(item)
            if len(data) > limits.OBJECT_MAX_BYTES:
                raise JobRefused(too_large(f"items[{index}]", len(data)))
            sha256 = await upload(transport, data)
            items.append(ItemInput(media_type=item.media_type, ref=sha256))
        else:
            items.append(item)
    return msgspec.structs.replace(request, items=tuple(items))


def too_large(field: str, length: int) -> Problem:
    """The refusal of an input that no object may hold."""
    return Problem(
        code="too_large",
        message=f"the input has {length} bytes",
        status=int(HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
        field=field,
        limit=f"OBJECT_MAX_BYTES={limits.OBJECT_MAX_BYTES}",
    )


def _is_large(item: ItemInput) -> bool:
    if item.text is not None and len(item.text) <= limits.ITEM_MAX_BYTES // 4:
        return False  # the longest characters have four bytes
    return len(_bytes_of(item)) > limits.ITEM_MAX_BYTES


def _bytes_of(item: ItemInput) -> bytes:
    return item.data if item.data is not None else (item.text or "").encode()


async def upload(transport: Transport, data: bytes) -> str:
    """Have the bytes as an object of the tenant; its name, their SHA-256.

    Raises `JobRefused` or `DispatcherUnreachable`.
    """
    sha256 = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
    patience, reached = transport.patience(), -1
    while True:
        try:
            offset = await _begin_or_find(transport, sha256, len(data))
            if offset > reached:
                patience.reset()
                reached = offset
            if offset < len(data):
                await _go_on(transport, sha256, data, offset)
        except Interrupted as cut:
            await patience.wait(cut)
        except DispatcherRefused as refused:
            if refused.problem.status != HTTPStatus.LOCKED:
                raise JobRefused(refused.problem) from None
            # Somebody else uploads the same bytes.
            await patience.wait(Interrupted(refused.problem.message, refused.problem))
        else:
            return sha256


async def _begin_or_find(transport: Transport, sha256: str, length: int) -> int:
    """How far the upload is."""
    try:
        headers = await transport.ask("HEAD", f"{_PATH}/{sha256}", headers=_TUS)
    except DispatcherRefused as refused:
        if refused.problem.status != HTTPStatus.NOT_FOUND:
            raise
        wanted = {
            **_TUS,
            "Upload-Length": str(length),
            "Upload-Metadata": f"sha256 {b64encode(sha256.encode()).decode()}",
        }
        headers = await transport.ask("POST", _PATH, headers=wanted)
    try:
        return int(headers["Upload-Offset"])
    except (KeyError, ValueError):
        raise ContractBroken(f"{_PATH}: an answer without an Upload-Offset") from None


async def _go_on(transport: Transport, sha256: str, data: bytes, offset: int) -> None:
    headers = {
        **_TUS,
        "Upload-Offset": str(offset),
        "Content-Type": "application/offset+octet-stream",
    }
    rest = io.BytesIO(data[offset:])
    try:
        await transport.ask("PATCH", f"{_PATH}/{sha256}", headers=headers, data=rest)
    except DispatcherRefused as refused:
        if refused.problem.status in _AGAIN:
            raise Interrupted(refused.problem.message, refused.problem) from None
        raise


async def download(transport: Transport, ref: OutputReference) -> bytes:
    """The bytes of an output that did not travel inline, proven by their hash.

    Raises `DispatcherRefused` (404 where they are gone), `DispatcherUnreachable` or
    `ContractBroken` for other bytes.
    """
    if not _SHA256.fullmatch(ref.sha256) or not 0 <= ref.length <= limits.OBJECT_MAX_BYTES:
        raise ContractBroken(f"no reference to an output: {ref}")
    data = bytearray()
    patience = transport.patience()
    while True:
        try:
            await _download_more(transport, ref, data, patience)
            cut = Interrupted("the download ended early")
        except Interrupted as interrupted:
            cut = interrupted
        if len(data) == ref.length:
            break
        await patience.wait(cut)
    sha256 = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
    if sha256 != ref.sha256:
        raise ContractBroken(f"{_PATH}/{ref.sha256}: the bytes have another SHA-256")
    return bytes(data)


async def _download_more(
    transport: Transport, ref: OutputReference, data: bytearray, patience: Patience
) -> None:
    """One try at what is missing."""
    headers = {"Range": f"bytes={len(data)}-"} if data else {}
    async with transport.stream(f"{_PATH}/{ref.sha256}", {}, headers=headers) as response:
        if response.status != HTTPStatus.PARTIAL_CONTENT:
            data.clear()
        while piece := await response.content.readany():
            patience.reset()
            data += piece
            if len(data) > ref.length:
                raise ContractBroken(f"{_PATH}/{ref.sha256} is over its {ref.length} bytes")


async def save(transport: Transport, ref: OutputReference, folder: Path) -> Path:
    """The file of an output in a folder, named by its hash; it is whole or not there.

    Raises as `download`, and `OSError`.
    """
    data = await download(transport, ref)

    def write() -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / ref.sha256
        part = folder / f".{ref.sha256}.{secrets.token_hex(4)}"
        try:
            with part.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            return part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    return await asyncio.to_thread(write)
