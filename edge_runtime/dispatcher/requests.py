"""What tenants ask over the bus: a rate for each, a queue that is fair, one answer each.

Invariants
- A tenant that asks too often is refused, and delays nobody else: its requests wait in a queue of
  its own, and the queues take turns.
- Every request is answered where it asked to be, or counted by its reason. Over the rate only the
  counter is exact: a refusal to each would let a tenant have as many messages sent as it sends.
- An answer goes to a topic of the tenant that asked, and only where no reader would take it for
  something that the dispatcher says by itself.
- An answer has whatever follows the cursor, from the first on, with nothing left out.

Deliberately absent: remembering what was asked. Who gets no answer asks again.
"""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import Final, NamedTuple

import structlog

from edge_runtime.bus import Message
from edge_runtime.contract import codec, limits
from edge_runtime.contract.clock import Now
from edge_runtime.contract.errors import Rejected, RejectionReason
from edge_runtime.contract.messages import FetchSince, JobResults, RequestRefused, ResultEntry
from edge_runtime.contract.reasons import RequestRefusal
from edge_runtime.contract.topics import Topics
from edge_runtime.dispatcher.core.fairness import TokenBucket
from edge_runtime.dispatcher.pages import pages
from edge_runtime.dispatcher.storage import Store, StoreError

_log = structlog.get_logger(__name__)
_MSGPACK: Final = "application/x-msgpack"
_READ_ITEMS: Final = 64
"""Entries read at once: of the largest outputs no more is held than a page has room for, twice."""


class _Asked(NamedTuple):
    """A request that waits."""

    tenant: str
    request: FetchSince
    respond_to: str
    correlation: bytes | None


class _Asker:
    """One tenant: its rate, and when it was last told that it is over it."""

    def __init__(self, now_ms: int) -> None:
        self.bucket = TokenBucket(limits.REQUESTS_PER_S, limits.REQUESTS_BURST, now_ms)
        self.told_ms = now_ms - limits.REQUEST_REFUSED_EVERY_MS


class TenantRequests:
    """Requests from the bus; `take` is told of each, `serve` answers until it is cancelled.

    `publish` queues a message without waiting; counters are named `rejected_request_…`.
    """

    def __init__(
        self,
        topics: Topics,
        store: Store,
        clock: Callable[[], Now],
        publish: Callable[[Message], None],
        counters: Counter[str],
    ) -> None:
        self._topics = topics
        self._store = store
        self._clock = clock
        self._publish = publish
        self._counters = counters
        self._askers: OrderedDict[str, _Asker] = OrderedDict()
        self._waiting: OrderedDict[str, deque[_Asked]] = OrderedDict()
        self._waiting_count = 0
        self._wake = asyncio.Event()

    # --- what comes ---

    def take(self, message: Message) -> None:
        """A message on a tenant's request topic: queue it, or refuse it."""
        if not message.payload:
            return  # how a reader tries whether the broker lets it ask
        tenant = message.topic.split("/")[3]
        wait_s = self._over_rate_s(tenant)
        try:
            request = _decode(message)
        except Rejected as rejected:
            self._undecodable(tenant, message, rejected, wait_s)
            return
        respond_to = message.response_topic or request.respond_to
        asked = _Asked(tenant, request, respond_to, message.correlation)
        if wait_s:
            self._refuse_rate(asked, wait_s)
        elif not self._topics.is_for_answers(tenant, respond_to):
            self._counters["rejected_request_not_allowed"] += 1
        elif not self._queue(asked):
            self._refuse(asked, RequestRefusal.BUSY, limits.REQUEST_BUSY_RETRY_MS)

    def _over_rate_s(self, tenant: str) -> float:
        """Seconds until this tenant may ask again; 0.0 where it may now."""
        now_ms = self._clock().boot_ms
        asker = self._askers.get(tenant)
        if asker is None:
            asker = self._askers[tenant] = _Asker(now_ms)
            if len(self._askers) > limits.TENANTS_REMEMBERED_MAX:
                self._askers.popitem(last=False)
        self._askers.move_to_end(tenant)
        return asker.bucket.take(now_ms)

    def _undecodable(
        self, tenant: str, message: Message, rejected: Rejected, wait_s: float
    ) -> None:
        """Only MQTT 5 says where the answer to something that cannot be read should go."""
        self._counters[f"rejected_request_{rejected.reason.value}"] += 1
        is_oversize = rejected.reason is RejectionReason.OVERSIZE
        reason = RequestRefusal.OVERSIZE if is_oversize else RequestRefusal.MALFORMED
        respond_to = message.response_topic or ""
        if not wait_s and self._topics.is_for_answers(tenant, respond_to):
            self._tell(respond_to, RequestRefused(reason=reason), message.correlation)

    def _refuse_rate(self, asked: _Asked, wait_s: float) -> None:
        asker, now_ms = self._askers[asked.tenant], self._clock().boot_ms
        if now_ms - asker.told_ms < limits.REQUEST_REFUSED_EVERY_MS:
            self._counters["rejected_request_rate_exceeded"] += 1
            return
        asker.told_ms = now_ms
        # The whole burst, not one request: who comes back for one is refused the next.
        retry_ms = max(round(1000 * wait_s), limits.REQUEST_REFUSED_EVERY_MS)
        self._refuse(asked, RequestRefusal.RATE_EXCEEDED, retry_ms)

    def _queue(self, asked: _Asked) -> bool:
        """False where too many wait, of this tenant or of all."""
        queue = self._waiting.get(asked.tenant)
        if self._waiting_count >= limits.REQUESTS_WAITING_MAX or (
            queue is not None and len(queue) >= limits.REQUESTS_BURST
        ):
            return False
        if queue is None:
            queue = self._waiting[asked.tenant] = deque()
        queue.append(asked)
        self._waiting_count += 1
        self._wake.set()
        return True

    # --- what goes ---

    async def serve(self) -> None:
        """Answer one request after the other, the tenants in turn."""
        while True:
            asked = await self._next()
            try:
                await self._answer(asked)
            except StoreError as error:
                _log.warning("request_not_answered", error=str(error))
                self._refuse(asked, RequestRefusal.STORE_UNAVAILABLE, limits.REQUEST_BUSY_RETRY_MS)

    async def _next(self) -> _Asked:
        while not self._waiting:
            self._wake.clear()
            await self._wake.wait()
        tenant, queue = self._waiting.popitem(last=False)
        asked = queue.popleft()
        self._waiting_count -= 1
        if queue:
            self._waiting[tenant] = queue
        return asked

    async def _answer(self, asked: _Asked) -> None:
        job, cursor = asked.request.job, asked.request.cursor
        # Before the results: what it tells of is then among them, or follows them.
        status = await self._store.job(job)
        if status is None or status.tenant != asked.tenant:
            self._refuse(asked, RequestRefusal.UNKNOWN_JOB, 0)
            return
        results = await self._page(job, cursor)
        answer = JobResults(
            job=job,
            results=tuple(results),
            since=cursor,
            status=status,
            traceparent=status.traceparent,
        )
        self._tell(asked.respond_to, answer, asked.correlation)

    async def _page(self, job: str, cursor: int) -> list[ResultEntry]:
        """What follows `cursor`, as far as one message goes."""
        found: list[ResultEntry] = []
        while len(found) < limits.FEED_PAGE_ITEMS:
            after = found[-1].cursor if found else cursor
            more = await self._store.results(job, after, _READ_ITEMS)
            found += more
            page = next(pages(found), found)
            if len(page) < len(found):
                return page
            if len(more) < _READ_ITEMS:
                break
        return found

    def _refuse(self, asked: _Asked, reason: RequestRefusal, retry_after_ms: int) -> None:
        self._counters[f"rejected_request_{reason.value}"] += 1
        if not self._topics.is_for_answers(asked.tenant, asked.respond_to):
            return
        refused = RequestRefused(
            reason=reason,
            job=asked.request.job,
            since=asked.request.cursor,
            retry_after_ms=retry_after_ms,
        )
        self._tell(asked.respond_to, refused, asked.correlation)

    def _tell(
        self, topic: str, answer: JobResults | RequestRefused, correlation: bytes | None
    ) -> None:
        self._publish(
            Message(
                topic=topic,
                payload=codec.encode(answer),
                correlation=correlation,
                content_type=_MSGPACK,
            )
        )


def _decode(message: Message) -> FetchSince:
    """The request in a message. Raises `Rejected`."""
    size = len(message.payload) + len(message.correlation or b"")
    if size > limits.REQUEST_MAX_BYTES:
        raise Rejected(RejectionReason.OVERSIZE, f"{size} bytes")
    return codec.decode_request(message.payload)
