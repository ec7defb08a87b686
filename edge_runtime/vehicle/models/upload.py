"""Putting outputs where an offer said: by tus, to a server that may lie, stall or never answer.

Invariants
- What the server has durably is not sent again: it is asked first how far it is.
- Silence and a slow way each have a bound, as for downloads; redirects are not followed.
- Every byte that left is counted and told while it goes: a car that breaks this off knows them.

Blocks, and uses SIGALRM: for the main thread of a process of its own (`fetch`). Deliberately
absent: asyncio; trying again, which the car decides; which refusals are worth it, too.
"""

import base64
import signal
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO, Final

import msgspec

from edge_runtime.contract import limits
from edge_runtime.vehicle.models.download import NoRedirects, ServerFailed, alarm
from edge_runtime.vehicle.models.orders import Patience, UploadOrder

_OFFSET: Final = "Upload-Offset"
_TUS: Final = {"Tus-Resumable": "1.0.0", "User-Agent": "edge-runtime"}
_FIRST_ERROR: Final = 400


class UploadRefused(Exception):  # noqa: N818 - named for what happened
    """The server will not take this output: its status, and what it said about that."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class _Said(msgspec.Struct):
    """As much of a problem as is passed on."""

    code: str = ""
    message: str = ""
    limit: str | None = None


class Uploader:
    """Uploads with one patience. `tell` hears how many bytes have left in all, as they leave."""

    def __init__(self, patience: Patience, tell: Callable[[int], None]) -> None:
        self._patience = patience
        self._tell = tell
        self.sent_bytes = 0
        self._opener = urllib.request.build_opener(NoRedirects())

    def put(self, order: UploadOrder) -> None:
        """Have the file whole at the server. Raises `ServerFailed` or `UploadRefused`."""
        offset = self._begin_or_find(order)
        if offset >= order.length:
            return
        source = Path(order.source)
        with source.open("rb") as file:
            file.seek(offset)
            headers = {
                _OFFSET: str(offset),
                "Content-Type": "application/offset+octet-stream",
                "Content-Length": str(order.length - offset),
            }
            body = _Counted(file, self._patience, self._sent)
            answer = self._ask("PATCH", f"{order.place}/{order.sha256}", headers, body)
        if _offset_in(answer) != order.length:
            raise ServerFailed(f"{order.place}: took {_offset_in(answer)} of {order.length} bytes")

    def _begin_or_find(self, order: UploadOrder) -> int:
        """How much of it the server has."""
        name = base64.b64encode(order.sha256.encode()).decode()
        headers = {"Upload-Length": str(order.length), "Upload-Metadata": f"sha256 {name}"}
        return _offset_in(self._ask("POST", order.place, headers, b""))

    def _sent(self, count: int) -> None:
        self.sent_bytes += count
        self._tell(self.sent_bytes)

    def _ask(
        self, method: str, url: str, headers: dict[str, str], body: "bytes | _Counted"
    ) -> HTTPResponse:
        if urllib.parse.urlsplit(url).scheme not in {"http", "https"}:
            raise ServerFailed(f"{url}: outputs are put over http or https only")
        request = urllib.request.Request(  # noqa: S310 - checked above
            url,
            data=body,
            headers={**_TUS, **headers},
            method=method,
        )
        response: HTTPResponse
        try:
            with alarm(self._patience.silence_s):
                response = self._opener.open(request, timeout=self._patience.silence_s)
            response.close()
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(url, error) from error
        except ServerFailed as error:
            raise ServerFailed(f"{url}: {error}", error.status) from error
        except (OSError, HTTPException) as error:
            raise ServerFailed(f"{url}: {error}") from error
        return response


class _Counted:
    """A file that is being sent: counted, and given up where it goes too slowly."""

    def __init__(self, file: IO[bytes], patience: Patience, sent: Callable[[int], None]) -> None:
        self._file = file
        self._patience = patience
        self._sent = sent
        self._ends_s = time.monotonic() + patience.window_s
        self._window_bytes = 0
        self._last_bytes = 0

    def read(self, _size: int = -1) -> bytes:
        """The next piece; what was read before has left."""
        patience = self._patience
        # The whole answer was given this long; each piece is.
        signal.setitimer(signal.ITIMER_REAL, patience.silence_s)
        self._sent(self._last_bytes)
        self._window_bytes += self._last_bytes
        if time.monotonic() > self._ends_s:
            if self._window_bytes < patience.rate_min_bytes_per_s * patience.window_s:
                raise ServerFailed(
                    f"{self._window_bytes} bytes in {patience.window_s:g} s are too slow"
                )
            self._ends_s, self._window_bytes = time.monotonic() + patience.window_s, 0
        data = self._file.read(limits.UPLOAD_PIECE_BYTES)
        self._last_bytes = len(data)
        return data


def _offset_in(answer: HTTPResponse) -> int:
    text = answer.headers.get(_OFFSET, "")
    if not (text.isascii() and text.isdigit()):
        raise ServerFailed(f"answered {answer.status} without an {_OFFSET}")
    return int(text)


def _refusal(url: str, error: urllib.error.HTTPError) -> ServerFailed | UploadRefused:
    """What an error means: those of the server itself, and what is in the way, may pass."""
    try:
        body = error.read(limits.TEXT_MAX_CHARS * 8)
        said = msgspec.json.decode(body, type=_Said)
    except (OSError, HTTPException, msgspec.DecodeError, UnicodeDecodeError):
        said = _Said()
    limit = f" ({said.limit})" if said.limit else ""
    message = f"{said.message or error.reason}{limit}"[: limits.TEXT_MAX_CHARS]
    if error.code in _PASSING or error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return ServerFailed(f"{url}: answered {error.code}: {message}", error.code)
    return UploadRefused(error.code, said.code, message)


_PASSING: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.LOCKED})
