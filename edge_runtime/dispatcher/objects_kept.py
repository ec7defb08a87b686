"""Where whole objects lie: a folder of this machine, or a bucket of a store that speaks S3.

`obstore` knows them all; what differs here is that a folder is made durable after a write, which
that library leaves to the system. Credentials and the endpoint of a bucket come from the
environment (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`,
`AWS_ALLOW_HTTP`), never from a command's flags, where every process could read them.

Deliberately absent: names, hashes and lifetimes, which are `objects`'; addresses signed by the
bucket: cars and requesters know one host, the dispatcher.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, ObjectStore, S3Store

from edge_runtime.contract import limits
from edge_runtime.contract.errors import ConfigError, RemoteError
from edge_runtime.pki.files import sync_path

_ANSWER: Final = timedelta(seconds=limits.OBJECT_STORE_ANSWER_S)


class ObjectsUnavailable(RemoteError):  # noqa: N818 - named for what it is
    """The store of objects did not do what it was asked."""


class KeptObjects:
    """One store of objects. Methods raise `ObjectsUnavailable`."""

    def __init__(self, store: ObjectStore, folder: Path | None = None) -> None:
        self._store = store
        self._folder = folder

    async def put(self, name: str, source: Path) -> None:
        """Keep a file under a name, replacing what is there; durable when it returns."""
        async with _answering():
            # In one request, which may have 5 GiB: of an upload in parts that broke off, the parts
            # lie in the bucket, and are paid for, until somebody looks.
            await obstore.put_async(self._store, name, source, use_multipart=False)
            if self._folder is not None:
                await asyncio.to_thread(_sync, self._folder / name)

    async def read(self, name: str, span: range) -> AsyncIterator[bytes]:
        """Bytes `span` of an object, in pieces."""
        with _faults():
            got = await obstore.get_async(
                self._store, name, options={"range": (span.start, span.stop)}
            )
            async for piece in got.stream(min_chunk_size=limits.HTTP_FILE_CHUNK_BYTES):
                yield bytes(piece)

    async def delete(self, name: str) -> None:
        """Remove an object; one that is not there is no error."""
        async with _answering():
            with contextlib.suppress(FileNotFoundError, NotFoundError):
                await obstore.delete_async(self._store, name)


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError, TimeoutError) as error:
        # Only the first line: what follows are the library's inner causes.
        text = (str(error) or type(error).__name__).splitlines()[0]
        raise ObjectsUnavailable(text[: limits.TEXT_MAX_CHARS]) from error


@contextlib.asynccontextmanager
async def _answering() -> AsyncIterator[None]:
    with _faults():
        async with asyncio.timeout(limits.OBJECT_STORE_ANSWER_S):
            yield


def _sync(path: Path) -> None:
    sync_path(path)
    sync_path(path.parent)


def kept_in_folder(folder: Path) -> KeptObjects:
    """Objects as files under a folder, which is made. Raises `ConfigError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"objects cannot be kept in {folder}: {error.strerror}") from None
    return KeptObjects(LocalStore(prefix=folder), folder)


def kept_at(url: str) -> KeptObjects:
    """Objects at `s3://bucket/prefix`, or in the folder of `file:///path` or a bare path.

    Raises `ConfigError` for any other kind of address. A bucket is not asked for anything yet: a
    dispatcher starts, and serves what needs no object, without it.
    """
    parts = urlsplit(url)
    match parts.scheme:
        case "":
            return kept_in_folder(Path(url))
        case "file" if not parts.netloc and parts.path:
            return kept_in_folder(Path(parts.path))
        case "s3" if parts.netloc:
            try:
                store = S3Store.from_url(
                    url,
                    client_options={
                        "timeout": _ANSWER,
                        "connect_timeout": _ANSWER / 3,
                        # The library asks its environment only where it is given no options.
                        "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true",
                    },
                    # The answers to a bulk delete are not the same everywhere (MinIO's code as
                    # gateways carry it leaves names out, which the library takes for a failure).
                    disable_bulk_delete=True,
                    retry_config={"max_retries": 3, "retry_timeout": _ANSWER / 2},
                )
            except (BaseError, OSError, ValueError) as error:
                raise ConfigError(f"objects at {url}: {error}") from None
            return KeptObjects(store)
        case _:
            raise ConfigError(f"objects are kept in a folder or at s3://bucket, not {url!r}")
