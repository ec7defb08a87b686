"""From bus messages to the core's events: bounded decoding, every rejection counted by reason.

Invariants
- No message raises out of here, whatever its bytes; what is not understood is one count more.
- Only what is addressed to this car, by topic and inside the body, becomes an event.
- With a verifier, the bytes of a `dn` body are not decoded before their signature has been
  verified. What a replay of genuine messages can do is in docs/explanation/identity.md.

Deliberately absent: signatures on the host topic. What it says (where packages are served) is
only a place to look: a package is accepted by its digest, which a signed offer names.
"""

import random
from collections import Counter
from collections.abc import Callable

import structlog

from edge_runtime.bus import Message
from edge_runtime.contract import codec, limits
from edge_runtime.contract.errors import Rejected, RejectionReason
from edge_runtime.contract.messages import HostStatus, Signed
from edge_runtime.contract.topics import Down, Topics
from edge_runtime.vehicle.core.events import Event, ModelsDesired, OrdersReceived, UnitsOffered

Verify = Callable[[Signed], RejectionReason | None]
"""Why an envelope is not to be believed; None where a trusted key has signed its body."""

_log = structlog.get_logger()


class Hosts:
    """The dispatchers that said where they serve packages."""

    def __init__(self, models_url: str | None) -> None:
        self._fixed = models_url
        self._by_topic: dict[str, HostStatus] = {}

    def heard(self, topic: str, status: HostStatus | None) -> None:
        """A dispatcher's retained status, or None when it was cleared."""
        self._by_topic.pop(topic, None)
        if status is not None:
            self._by_topic[topic] = status
        while len(self._by_topic) > limits.HOSTS_KNOWN_MAX:
            del self._by_topic[next(iter(self._by_topic))]

    def urls(self) -> list[str]:
        """Where packages may be had, best first: as configured, then hosts that are online."""
        if self._fixed is not None:
            return [self._fixed]
        known = [host for host in self._by_topic.values() if host.models_url]
        known.sort(key=lambda host: (host.online, host.epoch), reverse=True)
        return [host.models_url for host in known]


class Intake:
    """Decodes what is sent to one car. `rejected` counts by reason; `jitter` spreads rebirths.

    `verify` is asked about every `dn` envelope; None believes them all.
    """

    def __init__(
        self,
        vehicle: str,
        topics: Topics,
        hosts: Hosts,
        jitter: Callable[[], float] = random.random,
        verify: Verify | None = None,
    ) -> None:
        self.rejected: Counter[RejectionReason] = Counter()
        self._vehicle = vehicle
        self._jitter = jitter
        self._hosts = hosts
        self._verify = verify
        self._host_prefix = topics.host("")
        self._signed = codec.signed_decoder()
        self._host = codec.host_decoder()
        self._bodies: dict[str, Callable[[bytes], Event]] = {
            topics.down(vehicle, Down.WORK): self._work_event,
            topics.down(vehicle, Down.CONTROL): self._control_event,
            topics.down(vehicle, Down.DESIRED): self._desired_event,
        }
        self._work = codec.work_decoder()
        self._control = codec.control_decoder()
        self._desired = codec.desired_decoder()

    def event(self, message: Message) -> Event | None:
        """The event in a message; None where there is none for the core."""
        try:
            return self._event(message)
        except Rejected as rejected:
            self._count(message, rejected)
            return None

    def _event(self, message: Message) -> Event | None:
        topic, payload = message.topic, message.payload
        decode = self._bodies.get(topic)
        if decode is not None:
            if not payload and message.retain:
                return None  # a retained topic was cleared
            return decode(self._believed(self._signed.decode(payload)))
        if not topic.startswith(self._host_prefix):
            raise Rejected(RejectionReason.UNKNOWN_TOPIC, topic[:200])
        self._hosts.heard(topic, self._host.decode(payload) if payload else None)
        return None

    def _believed(self, envelope: Signed) -> bytes:
        """The body of an envelope. Raises Rejected where no trusted key has signed it."""
        reason = None if self._verify is None else self._verify(envelope)
        if reason is not None:
            raise Rejected(reason, envelope.key_id[:64])
        return envelope.body

    def _count(self, message: Message, rejected: Rejected) -> None:
        self.rejected[rejected.reason] += 1
        count = self.rejected[rejected.reason]
        if count & (count - 1) == 0:  # the 1st, 2nd, 4th, 8th …: a flood must not fill the log
            _log.warning(
                "message_rejected",
                topic=message.topic[:200],
                reason=rejected.reason.value,
                bytes=len(message.payload),
                count=count,
            )

    def _work_event(self, body: bytes) -> Event:
        work = self._work.decode(body)
        self._require_own(work.vehicle)
        return UnitsOffered(work.units)

    def _control_event(self, body: bytes) -> Event:
        control = self._control.decode(body)
        self._require_own(control.vehicle)
        jitter = self._jitter()
        return OrdersReceived(control.orders, jitter)

    def _desired_event(self, body: bytes) -> Event:
        desired = self._desired.decode(body)
        self._require_own(desired.vehicle)
        return ModelsDesired(desired.models)

    def _require_own(self, vehicle: str) -> None:
        if vehicle != self._vehicle:
            raise Rejected(RejectionReason.WRONG_VEHICLE, vehicle[:64])
