"""Large inputs of requests that wait, lent to the cars that compute them.

A request that waits is promised nothing beyond its connection, and nothing of it is written down
(`docs/adr/0005`). So an input of one that does not travel inline is no stored object: it stays in
this process's memory, where cars fetch it as they fetch objects, and goes with its requester.

Invariants
- What is lent ends with the block that lends it. Who is still reading then gets no further byte,
  and holds none of the memory.
- A car reaches it by its ticket, which is drawn for each loan and only the loan's offer carries.
- Its bytes count in the tenant's quota for as long as it is lent.

Deliberately absent: a bound on all loans together, which is the interactive core's
(`INTERACTIVE_BYTES_MAX`), and HTTP (`api.objects`).
"""

import asyncio
import contextlib
import hashlib
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Final

from edge_runtime.contract import limits
from edge_runtime.contract.http import Problem
from edge_runtime.contract.messages import Reference
from edge_runtime.dispatcher.accounts_quotas import Load, Quotas
from edge_runtime.dispatcher.front import Refusal
from edge_runtime.dispatcher.objects import CARS_PATH
from edge_runtime.dispatcher.objects_kept import ObjectsUnavailable

_TICKET_BYTES: Final = 16


class Loan:
    """One input, while its requester waits."""

    def __init__(self, sha256: str, data: bytes) -> None:
        self.sha256 = sha256
        self.length = len(data)
        self._data: bytes | None = data

    def end(self) -> None:
        """Nobody waits for it any more."""
        self._data = None

    async def read(self, span: range) -> AsyncIterator[bytes]:
        """The bytes of a span, in pieces. Raises `ObjectsUnavailable` once it has ended."""
        for start in range(span.start, span.stop, limits.HTTP_FILE_CHUNK_BYTES):
            if self._data is None:
                raise ObjectsUnavailable("nobody waits for this input any more")
            yield self._data[start : min(start + limits.HTTP_FILE_CHUNK_BYTES, span.stop)]


class Lender:
    """What is lent now; tickets are `random_bytes`."""

    def __init__(
        self,
        quotas: Quotas,
        counters: Counter[str] | None = None,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._quotas = quotas
        self._random_bytes = random_bytes
        self._counters: Counter[str] = Counter() if counters is None else counters
        self._loans: dict[tuple[str, str, str], Loan] = {}

    def __len__(self) -> int:
        return len(self._loans)

    @contextlib.asynccontextmanager
    async def lend(self, tenant: str, data: bytes) -> AsyncIterator[Reference]:
        """Let cars fetch this until the block ends; what an offer says of it.

        Raises `Refusal`: 413 over `OBJECT_MAX_BYTES`, 429 or 413 over the tenant's quota.
        """
        if len(data) > limits.OBJECT_MAX_BYTES:
            raise _too_large(len(data))
        async with self._quotas.hold(tenant, lambda: Load(bytes=len(data))):
            sha256 = await asyncio.to_thread(_sha256_of, data)
            ticket = self._random_bytes(_TICKET_BYTES).hex()
            loan = self._loans[tenant, ticket, sha256] = Loan(sha256, data)
            self._counters["inputs_lent"] += 1
            try:
                url = f"{CARS_PATH}/{tenant}/{ticket}/{sha256}"
                yield Reference(sha256=sha256, length=len(data), url=url)
            finally:
                del self._loans[tenant, ticket, sha256]
                loan.end()

    def find(self, tenant: str, ticket: str, sha256: str) -> Loan | None:
        """What this ticket was drawn for, while it is lent."""
        return self._loans.get((tenant, ticket, sha256))


def _sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _too_large(size: int) -> Refusal:
    return Refusal(
        Problem(
            code="too_large",
            message=f"the inputs have {size} bytes together; at most {limits.OBJECT_MAX_BYTES} "
            "travel by reference (OBJECT_MAX_BYTES)",
            status=int(HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
            limit=f"OBJECT_MAX_BYTES={limits.OBJECT_MAX_BYTES}",
        )
    )
