"""From the core's publish commands to bus messages: topics, QoS, retention, expiry, bytes.

Invariants
- A chunk's bytes travel as the journal holds them; they are wrapped, never encoded again.
"""

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from edge_runtime.bus import Message
from edge_runtime.contract import limits
from edge_runtime.contract.codec import encode
from edge_runtime.contract.messages import Acks, Birth, Offline
from edge_runtime.contract.topics import Topics, Up
from edge_runtime.vehicle.core.commands import (
    ClearStatus,
    PublishBirth,
    PublishChunks,
    PublishOffline,
    PublishState,
    PublishVerdicts,
    SetWill,
)

Publish = (
    PublishBirth | PublishOffline | ClearStatus | PublishState | PublishVerdicts | PublishChunks
)

_CONTENT_TYPE: Final = "application/x-msgpack"
_STATE_EXPIRY_S: Final = limits.STATE_STALE_MS // 1000


class EncodedResults(msgspec.Struct, frozen=True, array_like=True, kw_only=True, tag="results"):
    """`contract.messages.Results` with its chunks already encoded; the same on the wire."""

    vehicle: str
    boot: int
    chunks: Annotated[tuple[msgspec.Raw, ...], Meta(max_length=limits.CHUNKS_PER_MESSAGE_MAX)]


class Outgoing:
    """Builds the messages of one car in one boot."""

    def __init__(self, vehicle: str, boot: int, topics: Topics) -> None:
        self._vehicle = vehicle
        self._boot = boot
        self._topic = {kind: topics.up(vehicle, kind) for kind in Up}

    def will(self, command: SetWill) -> Message:
        """What the broker shall say for us."""
        return self._status(command.offline, is_retained=command.is_retained)

    def _status(self, status: Birth | Offline, *, is_retained: bool) -> Message:
        return Message(
            self._topic[Up.STATUS], encode(status), retain=is_retained, content_type=_CONTENT_TYPE
        )

    def message(self, command: Publish) -> Message:
        """The message that a command asks for."""
        match command:
            case PublishChunks(bodies=bodies):
                chunks = tuple(msgspec.Raw(body) for body in bodies)
                results = EncodedResults(vehicle=self._vehicle, boot=self._boot, chunks=chunks)
                return self._plain(Up.RESULT, encode(results))
            case PublishVerdicts(verdicts=verdicts):
                acks = Acks(vehicle=self._vehicle, boot=self._boot, verdicts=verdicts)
                return self._plain(Up.ACK, encode(acks))
            case PublishState(state=state, is_edge=is_edge):
                return Message(
                    self._topic[Up.STATE],
                    encode(state),
                    qos=1 if is_edge else 0,
                    expiry_s=_STATE_EXPIRY_S,
                    content_type=_CONTENT_TYPE,
                )
            case PublishBirth(birth=birth, is_retained=is_retained):
                return self._status(birth, is_retained=is_retained)
            case PublishOffline(offline=offline, is_retained=is_retained):
                return self._status(offline, is_retained=is_retained)
            case ClearStatus():
                return Message(self._topic[Up.STATUS], b"", retain=True)

    def _plain(self, kind: Up, payload: bytes) -> Message:
        return Message(self._topic[kind], payload, content_type=_CONTENT_TYPE)
