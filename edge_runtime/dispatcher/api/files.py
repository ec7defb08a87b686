"""A file of a model package as an HTTP answer, whole or one range of it.

A package is named by its digest, so its files never change: the answer may be cached for ever,
and its `ETag` is the digest of the package with the path. Cars resume a broken download with
`Range`; `If-Range` with another tag gets the whole file. Several ranges in one request get the
whole file too, which RFC 9110 allows.
"""

import asyncio
import re
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO, Final
from zlib import crc32

from litestar.datastructures import Headers
from litestar.types import Receive, Scope, Send

from edge_runtime.contract import limits
from edge_runtime.dispatcher.front import refusal

_RANGE: Final = re.compile(r"bytes=(?P<first>\d{0,18})-(?P<last>\d{0,18})")


class FileAnswer:
    """An ASGI application that sends bytes `first` to `last` (both included) of an open file."""

    def __init__(self, file: BinaryIO, size: int, span: range | None, tag: str) -> None:
        self._file = file
        self._span = span if span is not None else range(size)
        self._status = HTTPStatus.OK if span is None else HTTPStatus.PARTIAL_CONTENT
        self._headers = [
            (b"content-type", b"application/octet-stream"),
            (b"content-length", str(len(self._span)).encode()),
            (b"accept-ranges", b"bytes"),
            (b"etag", tag.encode()),
            (b"cache-control", b"public, max-age=31536000, immutable"),
        ]
        if span is not None:
            content_range = f"bytes {span.start}-{span.stop - 1}/{size}"
            self._headers.append((b"content-range", content_range.encode()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, in chunks, each read outside the event loop."""
        del scope, receive
        with self._file as file:
            await send(
                {
                    "type": "http.response.start",
                    "status": int(self._status),
                    "headers": self._headers,
                }
            )
            file.seek(self._span.start)
            left = len(self._span)
            while left > 0:
                chunk = await asyncio.to_thread(file.read, min(left, limits.HTTP_FILE_CHUNK_BYTES))
                if not chunk:
                    # The file shrank under us: an incomplete answer makes the server drop the
                    # connection, and the digest would not fit anyway.
                    return
                left -= len(chunk)
                await send({"type": "http.response.body", "body": chunk, "more_body": left > 0})
            if not self._span:
                await send({"type": "http.response.body", "body": b"", "more_body": False})


async def answer_file(path: Path, digest: str, name: str, headers: Headers) -> FileAnswer:
    """The file, or the range of it that the headers ask for.

    `Refusal` 416 for a range outside the file, 404 for a file that is gone.
    """
    try:
        file, size = await asyncio.to_thread(_open, path)
    except OSError:
        raise refusal(
            HTTPStatus.NOT_FOUND, "not_found", "the package's file cannot be read", field="path"
        ) from None
    try:
        tag = f'"{digest[:32]}-{crc32(name.encode()):08x}"'
        asked = headers.get("range", "") if headers.get("if-range", tag) == tag else ""
        return FileAnswer(file, size, span_of(asked, size), tag)
    except BaseException:
        file.close()
        raise


def _open(path: Path) -> tuple[BinaryIO, int]:
    file = path.open("rb")
    return file, path.stat().st_size


def span_of(asked: str, size: int) -> range | None:
    """The bytes that a `Range` header asks for; None is all of them. `Refusal` 416 outside."""
    found = _RANGE.fullmatch(asked.strip())
    if found is None or not (found["first"] or found["last"]):
        return None
    if found["first"]:
        first = int(found["first"])
        last = min(int(found["last"]), size - 1) if found["last"] else size - 1
        if found["last"] and int(found["last"]) < first:
            return None
    else:
        first, last = max(size - int(found["last"]), 0), size - 1
    if first > last:
        raise refusal(
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            "range_not_satisfiable",
            f"the file has {size} bytes",
            field="Range",
        )
    return range(first, last + 1)
