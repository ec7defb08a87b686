"""How much a tenant may have at once, and how often it may ask.

What is open is counted by the store; what is being accepted in this moment is held in memory
until its commit, so that two requests at once do not both fit where one does. A tenant without a
quota of its own has that of `*`; without that it has none.

Invariants
- A refusal names the limit, the present value and when another try may do better; what can never
  fit is told so (413), not asked to wait.
- A repeat of an accepted job is no new job and is never refused here.
"""

import contextlib
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from http import HTTPStatus
from typing import Final, NamedTuple

import msgspec

from edge_runtime.contract import limits
from edge_runtime.contract.clock import Now
from edge_runtime.contract.http import Problem, Quota, TenantUsage
from edge_runtime.dispatcher.core.fairness import TokenBucket
from edge_runtime.dispatcher.front import Refusal
from edge_runtime.dispatcher.storage import OpenWork, Record, RecordStore

EVERYBODY: Final = "*"
"""The name under which the quota of tenants without their own is kept."""
_KIND: Final = "quota"
_UNBOUNDED: Final = Quota()
_RETRY_S: Final = 2.0
_TOO_MANY: Final = HTTPStatus.TOO_MANY_REQUESTS
_TOO_LARGE: Final = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Quota).decode


class Load(NamedTuple):
    """What a request would add."""

    jobs: int = 0
    items: int = 0
    bytes: int = 0

    def __add__(self, other: "Load") -> "Load":  # type: ignore[override]  # sums, not concatenation
        return Load(self.jobs + other.jobs, self.items + other.items, self.bytes + other.bytes)

    def __sub__(self, other: "Load") -> "Load":
        return Load(self.jobs - other.jobs, self.items - other.items, self.bytes - other.bytes)


class Quotas:
    """Quotas of one store's tenants; `open` reads them."""

    def __init__(
        self,
        store: RecordStore,
        clock: Callable[[], Now],
        counters: Counter[str] | None = None,
    ) -> None:
        self._counters = Counter() if counters is None else counters
        self._store = store
        self._clock = clock
        self._quotas: dict[str, Quota] = {}
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()
        self._held: dict[str, Load] = {}
        self.refused: Counter[str] = Counter()

    async def open(self) -> None:
        """Read every quota."""
        for record in await self._store.records(_KIND, None, limits.KEYS_MAX):
            self._quotas[record.id] = _decode(record.body)

    def of(self, tenant: str) -> Quota:
        """The quota in force for a tenant."""
        return self._quotas.get(tenant) or self._quotas.get(EVERYBODY, _UNBOUNDED)

    def weights(self) -> dict[str, int]:
        """Weights of the tenants that have a quota of their own."""
        return {name: quota.weight for name, quota in self._quotas.items() if name != EVERYBODY}

    async def put(self, tenant: str, quota: Quota) -> None:
        """A tenant's quota from now on (`*`: that of all without their own)."""
        at_ms = self._clock().utc_ms
        await self._store.put_records([Record(_KIND, tenant, tenant, at_ms, _encode(quota))])
        self._quotas[tenant] = quota
        self._buckets.clear()

    async def usage(self, tenant: str) -> TenantUsage:
        """A tenant's quota and what it uses of it."""
        work = await self._store.open_work(tenant)
        return TenantUsage(
            tenant=tenant,
            quota=self.of(tenant),
            jobs=work.jobs,
            items=work.items,
            bytes=work.bytes + work.stored_bytes,
            refused=self.refused[tenant],
        )

    async def usages(self) -> list[TenantUsage]:
        """Of every tenant with a quota of its own."""
        return [await self.usage(name) for name in sorted(self._quotas) if name != EVERYBODY]

    # --- asking ---

    def ask(self, tenant: str) -> None:
        """One request; `Refusal` 429 where they come too fast."""
        quota = self.of(tenant)
        rate = quota.requests_per_s
        if rate is None:
            return
        now_ms = self._clock().boot_ms
        bucket = self._buckets.get(tenant)
        if bucket is None:
            burst = quota.burst or max(1.0, rate * limits.REQUESTS_BURST_DEFAULT_S)
            bucket = self._buckets[tenant] = TokenBucket(rate, burst, now_ms)
            if len(self._buckets) > limits.TENANTS_REMEMBERED_MAX:
                self._buckets.popitem(last=False)
        wait_s = bucket.take(now_ms)
        if wait_s:
            self._count(tenant, "requests_per_s")
            raise Refusal(
                Problem(
                    code="quota_exceeded",
                    message=f"tenant {tenant} asks faster than {rate:g} requests a second",
                    status=int(_TOO_MANY),
                    field="requests_per_s",
                    limit=f"requests_per_s={rate:g}",
                    retry_after_s=wait_s,
                )
            )

    def _count(self, tenant: str, bound: str) -> None:
        """A refusal, for its tenant and for the process's counters."""
        self.refused[tenant] += 1
        self._counters[f"quota_refused_{bound}"] += 1

    @contextlib.contextmanager
    def _holding(self, tenant: str, load: Load) -> Iterator[None]:
        self._held[tenant] = self._held.get(tenant, Load()) + load
        try:
            yield
        finally:
            left = self._held[tenant] - load
            if any(left):
                self._held[tenant] = left
            else:
                del self._held[tenant]

    @contextlib.asynccontextmanager
    async def hold(self, tenant: str, adds: Callable[[], Load]) -> AsyncIterator[None]:
        """Room for a request's jobs while they are being accepted; `Refusal` 429 or 413.

        `adds` is asked only of a tenant with a bound.
        """
        quota = self.of(tenant)
        if quota.jobs is None and quota.items is None and quota.bytes is None:
            yield
            return
        load = adds()
        with self._holding(tenant, load):
            work = await self._store.open_work(tenant)
            self._check(tenant, quota, load, work)
            yield

    def _check(self, tenant: str, quota: Quota, load: Load, work: OpenWork) -> None:
        held = self._held[tenant] - load
        present = held + Load(work.jobs, work.items, work.bytes + work.stored_bytes)
        for name, limit, has, adds in (
            ("jobs", quota.jobs, present.jobs, load.jobs),
            ("items", quota.items, present.items, load.items),
            ("bytes", quota.bytes, present.bytes, load.bytes),
        ):
            if limit is None or has + adds <= limit or not adds:
                continue
            self._count(tenant, name)
            fits_never = adds > limit
            raise Refusal(
                Problem(
                    code="over_quota" if fits_never else "quota_exceeded",
                    message=f"tenant {tenant} has {has} open {name} of at most {limit}, "
                    f"and asks for {adds} more",
                    status=int(_TOO_LARGE if fits_never else _TOO_MANY),
                    field=name,
                    limit=f"{name}={limit}",
                    present=has,
                    retry_after_s=None if fits_never else _RETRY_S,
                )
            )
