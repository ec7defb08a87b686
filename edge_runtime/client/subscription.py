"""A third party's reading of a tenant's topics over MQTT: each result once, in order, by cursor.

Invariants
- What is given out of a job follows its cursor without a gap or a repeat, whatever the broker, the
  dispatcher or this program do meanwhile; `cursors` is where another one goes on.
- The reader is never a reason for the dispatcher to wait: what does not fit is dropped here, with a
  counter, and fetched again.
- A broker that refuses is an exception. It cannot always be known: MQTT 3.1.1 refuses a publish
  without a word, and a SUBSCRIBE is granted to everybody by many brokers.

Deliberately absent: submitting and cancelling, which are HTTP's (`EdgeClient`), and a session that
the broker keeps: what is missed is fetched from the dispatcher, which forgets nothing.
"""

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final, Self

import structlog

from edge_runtime.bus import (
    Bus,
    BusError,
    BusEvent,
    BusOverflow,
    BusRefused,
    BusSettings,
    Connected,
    Disconnected,
    Message,
    TlsSettings,
    open_bus,
)
from edge_runtime.client.subscription_state import Ask, Entry, SubscriptionState
from edge_runtime.contract import codec
from edge_runtime.contract.errors import ConfigError, Rejected, RemoteError
from edge_runtime.contract.limits import COUNT_MAX
from edge_runtime.contract.messages import (
    FetchSince,
    FleetAggregate,
    JobResults,
    JobStatus,
    RequestRefused,
)
from edge_runtime.contract.topics import DEFAULT_NAMESPACE, Topics, require_id

_log = logging.getLogger(__name__)
_NO_TLS: Final = TlsSettings()


class SubscriptionRefused(RemoteError):  # noqa: N818 - named for what the broker did
    """The broker lets this account not in, or not ask for this tenant.

    `operation` is "connect", "subscribe" or "publish"; `reason` is the broker's word for it.
    """

    def __init__(self, operation: str, reason: str) -> None:
        super().__init__(f"the broker refused to {operation}: {reason}")
        self.operation = operation
        self.reason = reason


class Subscription:
    """One job of a tenant, or all of them, read over MQTT.

    `url` is `mqtt[s]://[user:password@]host:port`. `cursors` are those of an earlier subscription
    (job -> cursor; a job without one is read from its start). `name` tells this reader from the
    tenant's others, at the broker and in answers; without one it is a new random name. With `fleet`
    the fleet's capacity by region comes too. `open_bus` and `rng` are for worlds without a broker.

    Use as `async with Subscription(...) as subscription: async for entry in subscription:`. Entries
    are `JobResult`, `JobStatus`, `JobLost` and `FleetAggregate`. Of one job it ends after the final
    status, or after `JobLost`; of a tenant it never does. Raises `ConfigError`,
    `SubscriptionRefused` and `TooManyJobs`.
    """

    def __init__(
        self,
        url: str,
        tenant: str,
        *,
        job: str | None = None,
        cursors: Mapping[str, int] | None = None,
        name: str | None = None,
        fleet: bool = False,
        namespace: str = DEFAULT_NAMESPACE,
        protocol: int = 5,
        tls: TlsSettings = _NO_TLS,
        open_bus: Callable[[BusSettings], Bus] = open_bus,
        rng: random.Random | None = None,
    ) -> None:
        rng = rng or random.SystemRandom()
        self._topics = Topics(namespace)
        self._tenant = require_id("tenant", tenant)
        self._name = require_id("name", name or f"reader-{rng.getrandbits(64):016x}")
        self._state = SubscriptionState(job, _checked(cursors or {}, job), rng)
        self._rejected: Counter[str] = Counter()
        self._answers = self._topics.tenant_answers(self._tenant, self._name)
        jobs = self._topics.tenant_all(self._tenant)
        if job is not None:
            jobs = jobs.replace("/+/+", f"/{job}/+")
        filters = [(jobs, 1), (self._answers, 1)]
        if fleet:
            filters.append((self._topics.fleet("+"), 0))
        self._settings = BusSettings(
            url,
            self._name,
            protocol=protocol,
            session_expiry_s=0,
            subscriptions=tuple(filters),
            tls=tls,
        )
        self._open_bus = open_bus
        self._bus: Bus
        self._events: AsyncIterator[BusEvent] | None = None
        self._next: asyncio.Task[BusEvent] | None = None
        self._has_warned = False

    @property
    def cursors(self) -> dict[str, int]:
        """Of each job the cursor of the last result given out; keep it, and give it back later.

        Jobs that are over are among them until their retained status is cleared: who forgets their
        cursors may be given their results again.
        """
        return self._state.cursors

    @property
    def counters(self) -> dict[str, int]:
        """What was repeated, held, let go, refused, unanswered, undecodable, dropped by the bus."""
        counters = self._state.counters + self._rejected
        if self._events is not None:
            for reason, count in self._bus.counters.dropped.items():
                counters[f"bus_dropped_{reason.value}"] = count
        return {name: count for name, count in sorted(counters.items()) if count}

    async def __aenter__(self) -> Self:
        if not structlog.is_configured():
            # The bus would write to the stdout of whose program this is: `logging` has it instead.
            structlog.configure(logger_factory=structlog.stdlib.LoggerFactory())
        self._bus = self._open_bus(self._settings)
        await self._bus.__aenter__()
        self._events = self._bus.events()
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)
            self._next = None
        await self._bus.__aexit__(*exc)

    async def __aiter__(self) -> AsyncIterator[Entry]:
        if self._events is None:
            raise ConfigError("use the subscription inside `async with Subscription(...) as …:`")
        while True:
            while (entry := self._state.take()) is not None:
                yield entry
            if self._state.is_ended:
                return
            for ask in self._state.requests(self._now_s()):
                self._ask(ask)
            event = await self._next_event(self._events)
            if event is not None:
                await self._handle(event)

    # --- inside ---

    async def _next_event(self, events: AsyncIterator[BusEvent]) -> BusEvent | None:
        """The next event; None when something is due before."""
        if self._next is None:
            self._next = asyncio.ensure_future(_anext(events))
        due_s = self._state.next_deadline_s()
        timeout_s = None if due_s is None else max(0.0, due_s - self._now_s())
        done, _ = await asyncio.wait({self._next}, timeout=timeout_s)
        if not done:
            return None
        event, self._next = self._next.result(), None
        return event

    async def _handle(self, event: BusEvent) -> None:
        match event:
            case Message():
                self._hear(event)
            case Connected():
                await self._try_rights()
                self._state.connected(self._now_s())
            case Disconnected(refused=refused):
                self._state.disconnected()
                if refused is not None:
                    raise SubscriptionRefused(refused.operation, refused.reason)

    async def _try_rights(self) -> None:
        """An empty request is nobody's; whether it may be sent is what it says."""
        try:
            await self._bus.publish(Message(self._topics.tenant_request(self._tenant), b""))
        except BusRefused as refused:
            raise SubscriptionRefused(refused.operation, refused.reason) from None
        except BusError as error:
            _log.info("%s: %s", self._name, error)  # the connection is down again, or about to be

    def _ask(self, ask: Ask) -> None:
        request = FetchSince(job=ask.job, cursor=ask.cursor, respond_to=self._answers)
        message = Message(self._topics.tenant_request(self._tenant), codec.encode(request))
        with contextlib.suppress(BusOverflow):  # counted by the bus; asked again in its time
            self._bus.publish_soon(message)
        if self._state.counters["unanswered"] and not self._has_warned:
            self._has_warned = True
            _log.warning(
                "no answer about %s: is a dispatcher running, and may this account ask for %r?",
                ask.job,
                self._tenant,
            )

    def _hear(self, message: Message) -> None:
        job, kind = self._topic_of(message.topic)
        now_s = self._now_s()
        if kind == "status" and not message.payload:
            self._state.cleared(job, now_s)
            return
        try:
            told = codec.decode_public(message.payload)
        except Rejected as rejected:
            self._rejected[f"rejected_{rejected.reason.value}"] += 1
            return
        match told:
            case JobResults() if kind in {"answer", "results"}:
                if kind == "results" and told.job != job:
                    self._rejected["rejected_wrong_topic"] += 1
                    return
                self._state.results(told, now_s, is_answer=kind == "answer")
            case JobStatus() if kind == "status" and told.job == job:
                self._state.status(told, now_s)
            case RequestRefused() if kind == "answer":
                self._state.refused(told, now_s)
            case FleetAggregate() if kind == "fleet":
                self._state.fleet(told)
            case _:
                self._rejected["rejected_wrong_topic"] += 1

    def _topic_of(self, topic: str) -> tuple[str, str]:
        """(job, kind) of a topic that is subscribed to."""
        if topic == self._answers:
            return "", "answer"
        *_, above, last = topic.split("/")
        if above == "fleet":
            return "", "fleet"
        return above, last

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()


async def _anext(events: AsyncIterator[BusEvent]) -> BusEvent:
    """`anext` as the coroutine that a task is made of."""
    return await anext(events)


def _checked(cursors: Mapping[str, object], job: str | None) -> dict[str, int]:
    """Cursors as they can be asked for. Raises ConfigError that names the job."""
    good: dict[str, int] = {}
    for name, cursor in cursors.items():
        require_id("a job of cursors", name)
        if isinstance(cursor, bool) or not isinstance(cursor, int) or not 0 <= cursor <= COUNT_MAX:
            raise ConfigError(f"cursors[{name!r}] must be a whole number from 0, not {cursor!r}")
        good[name] = cursor
    return good if job is None else {require_id("job", job): good.get(job, 0)}
