"""From bus messages to the core's events: bounded decoding, every rejection counted by reason."""

from collections import Counter
from collections.abc import Iterator

from edge_runtime.bus import Message
from edge_runtime.contract import codec
from edge_runtime.contract.errors import Rejected, RejectionReason
from edge_runtime.contract.messages import Birth, Offline
from edge_runtime.contract.topics import Topics, Up
from edge_runtime.dispatcher.core.events import (
    ChunkReceived,
    Event,
    StateReported,
    VehicleBorn,
    VehicleWent,
    VerdictReceived,
)


class Intake:
    """Decodes what cars publish. One car's garbage touches nothing but a counter."""

    def __init__(self, topics: Topics, counters: Counter[str]) -> None:
        self._topics = topics
        self._counters = counters
        self._status = codec.status_decoder()
        self._state = codec.state_decoder()
        self._acks = codec.acks_decoder()
        self._results = codec.results_decoder()

    def events(self, message: Message) -> list[Event]:
        """The events in a message; none where it was rejected (and counted)."""
        if not message.payload and message.retain:
            return []  # a retained topic was cleared
        try:
            vehicle, kind = self._topics.parse_up(message.topic)
            return list(self._decode(vehicle, kind, message))
        except Rejected as rejected:
            self.count(rejected)
            return []

    def count(self, rejected: Rejected) -> None:
        """One rejection more of this reason."""
        self._counters[f"rejected_{rejected.reason.value}"] += 1

    def _decode(self, vehicle: str, kind: Up, message: Message) -> Iterator[Event]:
        payload = message.payload
        match kind:
            case Up.STATE:
                state = self._state.decode(payload)
                _same(vehicle, state.vehicle)
                yield StateReported(state=state)
            case Up.RESULT:
                results = self._results.decode(payload)
                _same(vehicle, results.vehicle)
                for chunk in results.chunks:
                    yield ChunkReceived(vehicle=vehicle, chunk=chunk)
            case Up.ACK:
                acks = self._acks.decode(payload)
                _same(vehicle, acks.vehicle)
                for verdict in acks.verdicts:
                    yield VerdictReceived(vehicle=vehicle, verdict=verdict)
            case Up.STATUS:
                status = self._status.decode(payload)
                _same(vehicle, status.vehicle)
                match status:
                    case Birth():
                        yield VehicleBorn(birth=status, is_retained=message.retain)
                    case Offline():
                        yield VehicleWent(offline=status)


def _same(topic_vehicle: str, message_vehicle: str) -> None:
    if topic_vehicle != message_vehicle:
        raise Rejected(RejectionReason.WRONG_VEHICLE, topic_vehicle)
