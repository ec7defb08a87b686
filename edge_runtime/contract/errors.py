"""The root of every exception of this project, split by whose fault it is.

`LocalError` is ours to fix: a wrong configuration, a broken invariant, a full disk.
`RemoteError` is the other side's: a refused publish, a message that does not decode.
Each carries fields; callers never match message text.
"""

from enum import Enum


class RejectionReason(Enum):
    """Why an incoming message was thrown away (each is a counter label)."""

    OVERSIZE = "oversize"
    MALFORMED = "malformed"
    UNKNOWN_TAG = "unknown_tag"
    WRONG_TYPE = "wrong_type"
    UNKNOWN_TOPIC = "unknown_topic"
    WRONG_SHARD = "wrong_shard"
    WRONG_VEHICLE = "wrong_vehicle"
    OLD_BOOT = "old_boot"
    OLD_SEQUENCE = "old_sequence"
    UNKNOWN_VEHICLE = "unknown_vehicle"
    NOT_YOUR_ATTEMPT = "not_your_attempt"
    QUARANTINED = "quarantined"
    FLEET_FULL = "fleet_full"
    STORE_UNAVAILABLE = "store_unavailable"
    UNSIGNED = "unsigned"
    UNKNOWN_KEY = "unknown_key"
    BAD_SIGNATURE = "bad_signature"


class EdgeError(Exception):
    """Anything this project raises on purpose."""


class LocalError(EdgeError):
    """The fault is on this side: configuration, use, or this machine's resources."""


class ConfigError(LocalError):
    """A setting is wrong; the message is one line that says what to change."""


class RemoteError(EdgeError):
    """The fault is on the other side of a wire or file."""


class Rejected(RemoteError):  # noqa: N818 - a rejection is counted, not an alarm
    """A message was not accepted.

    `reason` is one of `RejectionReason` and is what the counter is labelled with.
    """

    def __init__(self, reason: RejectionReason, detail: str = "") -> None:
        super().__init__(f"{reason.value}: {detail}" if detail else reason.value)
        self.reason = reason
        self.detail = detail
