"""HTTP calls that outlive a dispatcher's restart.

Invariants
- A call is repeated only where repeating is safe: reads, and writes that carry their own
  idempotency. Between tries it waits with full jitter, and gives up with
  `DispatcherUnreachable` when nothing has answered for the client's limit.
- 429, 502, 503, 504 and 507 mean "later" and are tried again like a lost connection; any other
  refusal is raised at once. When time runs out, the last refusal is raised, if there was one.
- Bodies travel as MessagePack in both directions.
"""

import asyncio
import io
import logging
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec

from edge_runtime.client.errors import ContractBroken, DispatcherRefused, DispatcherUnreachable
from edge_runtime.contract import limits
from edge_runtime.contract.errors import ConfigError
from edge_runtime.contract.http import Problem

T = TypeVar("T")

_DEFAULT_TENANT: Final = "default"
MSGPACK: Final = "application/x-msgpack"
LATER: Final = frozenset({429, 502, 503, 504, 507})
"""Statuses that a later try may not get; 507 is a store that is full or locked."""
FIRST_ERROR: Final = 400
_BYTES_AS_FILE: Final = 1024 * 1024
"""aiohttp wants larger bodies as a file, so that sending them does not hold the loop."""
_problem: Final = msgspec.msgpack.Decoder(Problem)


class Interrupted(Exception):  # noqa: N818 - named for what happened; never leaves the client
    """A try failed in a way that another one may not."""

    def __init__(self, cause: str, problem: Problem | None = None) -> None:
        super().__init__(cause)
        self.cause = cause
        self.problem = problem


# Not structlog, which without its set-up would print to the stdout of whose program this is.
_log = logging.getLogger(__name__)


class Patience:
    """How long to go on: full-jitter waits, and an end. Says once that it waits, and for what."""

    def __init__(self, url: str, limit_s: float, rng: random.Random) -> None:
        self._url = url
        self._rng = rng
        self._limit_s = limit_s
        self._failures = 0
        self._failing_since_s: float | None = None

    def reset(self) -> None:
        """Something answered."""
        self._failures = 0
        self._failing_since_s = None

    async def wait(self, cut: Interrupted) -> None:
        """Sleep before the next try; the final error where the limit has passed."""
        now_s = asyncio.get_running_loop().time()
        if self._failing_since_s is None:
            self._failing_since_s = now_s
            if self._limit_s > limits.CLIENT_SILENT_WAIT_S:
                _log.warning("%s: %s; trying again for %g s", self._url, cut.cause, self._limit_s)
        waited_s = now_s - self._failing_since_s
        if waited_s >= self._limit_s:
            if cut.problem is not None:
                raise DispatcherRefused(cut.problem)
            raise DispatcherUnreachable(self._url, waited_s, cut.cause)
        ceiling_s = min(
            limits.CLIENT_BACKOFF_FIRST_S * 2.0 ** min(self._failures, 16),
            limits.CLIENT_BACKOFF_MAX_S,
            self._limit_s - waited_s,
        )
        self._failures += 1
        await asyncio.sleep(self._rng.uniform(0.0, ceiling_s))


def _authorization(api_key: str | None) -> dict[str, str]:
    """The header that says who asks. Raises `ConfigError` for what no header can carry."""
    if not api_key:
        return {}
    if len(api_key) > limits.KEY_MAX_CHARS or not api_key.isascii() or not api_key.isprintable():
        raise ConfigError(f"an API key is at most {limits.KEY_MAX_CHARS} printable characters")
    return {"Authorization": f"Bearer {api_key}"}


class Transport:
    """One dispatcher as one tenant sees it. Open it inside a running event loop."""

    def __init__(
        self,
        url: str,
        tenant: str,
        unreachable_after_s: float,
        rng: random.Random | None = None,
        *,
        api_key: str | None = None,
    ) -> None:
        if not _is_http_url(url):
            raise ConfigError(f"the dispatcher's URL must be http://host:port, not {url!r}")
        self.url = url.rstrip("/")
        self._tenant = tenant
        self._api_key = api_key
        self._authorization = _authorization(api_key)
        self._unreachable_after_s = unreachable_after_s
        self._rng = rng or random.SystemRandom()
        self._session: aiohttp.ClientSession | None = None

    def open(self) -> None:
        """Ready the connection pool; nothing is sent yet."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=limits.HTTP_STREAMS_MAX),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept": MSGPACK, **self._authorization},
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(
                total=None,
                sock_connect=limits.CLIENT_CONNECT_TIMEOUT_S,
                sock_read=limits.CLIENT_ANSWER_TIMEOUT_S,
            ),
        )

    async def close(self) -> None:
        """Close every connection, streams included."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def patience(self) -> Patience:
        """A new count of failures."""
        return Patience(self.url, self._unreachable_after_s, self._rng)

    def new_key(self) -> str:
        """An idempotency key that nobody else has."""
        return f"{self._rng.getrandbits(128):032x}"

    async def call(
        self,
        method: str,
        path: str,
        answer: "msgspec.msgpack.Decoder[T]",
        *,
        query: Mapping[str, Any] | None = None,
        body: bytes | None = None,
        is_operator: bool = False,
        retry: bool = True,
    ) -> T:
        """The decoded answer. Raises `DispatcherRefused` or `DispatcherUnreachable`."""
        patience = self.patience()
        while True:
            try:
                data = await self._once(method, path, query, body, is_operator=is_operator)
                break
            except Interrupted as cut:
                if not retry:
                    if cut.problem is not None:
                        raise DispatcherRefused(cut.problem) from None
                    raise DispatcherUnreachable(self.url, 0.0, cut.cause) from None
                await patience.wait(cut)
        try:
            return answer.decode(data or b"\xc0")
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ContractBroken(f"{method} {path}: {error}") from None

    async def _once(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None,
        body: bytes | None,
        *,
        is_operator: bool,
    ) -> bytes:
        headers = {} if is_operator else self._whose()
        if body is not None:
            headers["Content-Type"] = MSGPACK
        data: Any = io.BytesIO(body) if body and len(body) > _BYTES_AS_FILE else body
        _, content = await self._try(method, path, params=query, data=data, headers=headers)
        return content

    async def ask(
        self, method: str, path: str, *, headers: Mapping[str, str], data: Any = None
    ) -> Mapping[str, str]:
        """One try at a request whose answer is its headers.

        Raises `DispatcherRefused`, or `Interrupted` where another try may do better.
        """
        response, _ = await self._try(method, path, data=data, headers={**self._whose(), **headers})
        return response.headers

    async def _try(
        self, method: str, path: str, **request: Any
    ) -> tuple[aiohttp.ClientResponse, bytes]:
        """A good answer and its body. Raises `Interrupted`, `DispatcherRefused`."""
        session = self._opened()
        try:
            async with session.request(method, self.url + path, **request) as response:
                content = await response.read()
        except (aiohttp.ClientError, OSError) as error:
            raise Interrupted(_words(error)) from None
        if response.status >= FIRST_ERROR:
            raise refused(response.status, content)
        return response, content

    @asynccontextmanager
    async def stream(
        self, path: str, query: Mapping[str, Any], *, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One try at a stream: `Interrupted` or `DispatcherRefused`, also while reading it."""
        session = self._opened()
        timeout = aiohttp.ClientTimeout(
            total=None,
            sock_connect=limits.CLIENT_CONNECT_TIMEOUT_S,
            sock_read=limits.CLIENT_STREAM_SILENCE_S,
        )
        try:
            async with session.get(
                self.url + path,
                params=query,
                headers={**self._whose(), **(headers or {})},
                timeout=timeout,
            ) as response:
                if response.status >= FIRST_ERROR:
                    raise refused(response.status, await response.read())
                yield response
        except (aiohttp.ClientError, OSError) as error:
            raise Interrupted(_words(error)) from None

    def _whose(self) -> dict[str, str]:
        """For whom a call is: a key says that by itself, unless another tenant is named."""
        is_said = self._api_key and self._tenant == _DEFAULT_TENANT
        return {} if is_said else {"X-Tenant": self._tenant}

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            raise ConfigError("use the client inside `async with EdgeClient(...) as client:`")
        return self._session


def _is_http_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__


def refused(status: int, content: bytes) -> Exception:
    """What an error answer stands for: `DispatcherRefused`, or `Interrupted` where later may do."""
    try:
        problem = _problem.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        problem = Problem(
            code="http_error", message=f"HTTP {status} without a problem body", status=status
        )
    if status in LATER:
        return Interrupted(problem.message, problem)
    return DispatcherRefused(problem)
