"""Fetching over HTTP from a server that may lie, stall or never end: in bytes, time and rate.

Invariants
- No byte over what was asked for is kept, and no answer is waited for without an end: silence,
  a slow head and a slow body each have a bound.
- Redirects are not followed and compressed answers not unpacked: either would let a server choose
  what this car does next.
- A file that was broken off goes on where it ended (HTTP Range). What counts is the SHA-256 of the
  whole; where that is wrong and a part was from an earlier time, the file is fetched once more
  from its first byte, so that one bad server does not spoil the answer of a good one.

Blocks, and uses SIGALRM: for the main thread of a process of its own (`fetch`). Deliberately
absent: asyncio, and any trust in what a server says.
"""

import contextlib
import hashlib
import signal
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO, Any, Final

from edge_runtime.contract import limits
from edge_runtime.contract.package import PackageFault, PackageFile, PackageRefused
from edge_runtime.vehicle.models.orders import Patience

_COPY_BYTES: Final = 1 << 18


class ServerFailed(OSError):  # noqa: N818 - named for what happened
    """The server could not be reached, or did not send what it said.

    `status` is the HTTP status where it sent another one than was asked for.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Raises `ServerFailed` where a server sends somewhere else."""

    def redirect_request(  # noqa: D102, PLR0917 - the library's method
        self,
        req: urllib.request.Request,  # noqa: ARG002 - as above
        fp: IO[bytes],  # noqa: ARG002 - as above
        code: int,
        msg: str,  # noqa: ARG002 - as above
        headers: HTTPMessage,  # noqa: ARG002 - as above
        newurl: str,
    ) -> None:
        raise ServerFailed(
            f"answered {code}, see {newurl[: limits.TEXT_MAX_CHARS]}; redirects are not followed",
            code,
        )


class Downloader:
    """Fetches with one patience."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self.received_bytes = 0
        """Bodies of answers, as far as they came."""
        self._opener = urllib.request.build_opener(NoRedirects())

    def blocks(self, url: str) -> Iterator[bytes]:
        """The body of `url` in pieces, as they come. Raises `ServerFailed`."""
        with self._open(url, 0) as response:
            yield from self._read(url, response)

    def get_bytes(self, url: str, max_bytes: int) -> bytes:
        """A small body. Raises `ServerFailed`, and `PackageRefused` over `max_bytes`."""
        data = bytearray()
        with self._open(url, 0) as response:
            for block in self._read(url, response):
                data += block
                if len(data) > max_bytes:
                    raise PackageRefused(PackageFault.TOO_LARGE, f"{url}: over {max_bytes} bytes")
        return bytes(data)

    def get_file(self, url: str, file: PackageFile, target: Path) -> None:
        """Have the file whole at `target`, going on with what is there.

        Raises `ServerFailed` (what came is kept), `PackageRefused` (wrong_file; nothing is kept)
        or `OSError`.
        """
        had_bytes = target.stat().st_size if target.exists() else 0
        try:
            self._go_on(url, file, target)
        except PackageRefused:
            target.unlink(missing_ok=True)
            if not had_bytes:
                raise
            try:
                self._go_on(url, file, target)
            except PackageRefused:
                target.unlink(missing_ok=True)
                raise

    def _go_on(self, url: str, file: PackageFile, target: Path) -> None:
        sha256, length = hashlib.sha256(), 0
        with target.open("a+b") as output:
            output.seek(0)
            while length <= file.length and (block := output.read(_COPY_BYTES)):
                sha256.update(block)
                length += len(block)
            if length < file.length:
                length = self._append(url, file, output, sha256)
        if length > file.length:
            raise PackageRefused(
                PackageFault.WRONG_FILE, f"{file.path} is over its {file.length} bytes"
            )
        if length < file.length:
            raise ServerFailed(f"{url}: ended after {length} of {file.length} bytes")
        if sha256.hexdigest() != file.sha256:
            raise PackageRefused(PackageFault.WRONG_FILE, f"{file.path} has another SHA-256")

    def _append(self, url: str, file: PackageFile, output: IO[bytes], sha256: Any) -> int:
        """Fetch what is missing; the length then, at most one block over the file's."""
        length = output.tell()
        with self._open_at(url, length) as response:
            if length and response.status != HTTPStatus.PARTIAL_CONTENT:
                # This server knows no ranges. What is here does not fit, so it is begun again.
                raise PackageRefused(PackageFault.WRONG_FILE, f"{file.path}: no ranges here")
            said = response.length
            if said is not None and said > file.length - length:
                raise PackageRefused(
                    PackageFault.WRONG_FILE,
                    f"{file.path} is over its {file.length} bytes: {length + said} are announced",
                )
            for block in self._read(url, response):
                length += len(block)
                if length > file.length:
                    return length
                output.write(block)
                sha256.update(block)
        return length

    def _open_at(self, url: str, first: int) -> HTTPResponse:
        try:
            return self._open(url, first)
        except ServerFailed as error:
            if first and error.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise PackageRefused(PackageFault.WRONG_FILE, str(error)) from error
            raise

    def _open(self, url: str, first: int) -> HTTPResponse:
        """Ask for `url` from byte `first`. Raises `ServerFailed`."""
        if urllib.parse.urlsplit(url).scheme not in {"http", "https"}:
            raise ServerFailed(f"{url}: packages are fetched over http or https only")
        headers = {"Accept-Encoding": "identity", "User-Agent": "edge-runtime"}
        if first:
            headers["Range"] = f"bytes={first}-"
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - checked above
        response: HTTPResponse
        try:
            with alarm(self._patience.silence_s):
                response = self._opener.open(request, timeout=self._patience.silence_s)
        except urllib.error.HTTPError as error:
            error.close()
            raise ServerFailed(f"{url}: {error}", error.code) from error
        except ServerFailed as error:
            raise ServerFailed(f"{url}: {error}", error.status) from error
        except (OSError, HTTPException) as error:
            raise ServerFailed(f"{url}: {error}") from error
        encoding = response.headers.get("Content-Encoding", "identity")
        problem = None
        if encoding != "identity":
            problem = f"answered with content encoded as {encoding[:64]}"
        elif response.status == HTTPStatus.PARTIAL_CONTENT:
            span = response.headers.get("Content-Range", "")
            if not span.startswith(f"bytes {first}-"):
                problem = f"answered with {span[:64]!r}, not from byte {first}"
        elif response.status != HTTPStatus.OK:
            problem = f"answered {response.status}"
        if problem is not None:
            response.close()
            raise ServerFailed(f"{url}: {problem}", response.status)
        return response

    def _read(self, url: str, response: HTTPResponse) -> Iterator[bytes]:
        patience = self._patience
        window_bytes = patience.rate_min_bytes_per_s * patience.window_s
        window_ends_s, received = time.monotonic() + patience.window_s, 0
        while True:
            try:
                # At most one read of the socket: a whole block might never come.
                block = response.read1(_COPY_BYTES)
            except (OSError, HTTPException) as error:
                raise ServerFailed(f"{url}: {error}") from error
            if not block:
                return
            self.received_bytes += len(block)
            yield block
            received += len(block)
            if time.monotonic() > window_ends_s:
                if received < window_bytes:
                    raise ServerFailed(
                        f"{url}: {received} bytes in {patience.window_s:g} s are too slow"
                    )
                window_ends_s, received = time.monotonic() + patience.window_s, 0


def file_url(url: str, path: str) -> str:
    """The address of a package's file under the package's."""
    return f"{url}/files/{urllib.parse.quote(path)}"


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Break a blocking call off: a server may send its head byte by byte, none of them late."""

    def ring(_number: int, _frame: object) -> None:
        raise TimeoutError(f"no answer within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
