"""Build and parse topics. No other module formats one.

`{ns}/1/{shard}/v/{vehicle}/…` for cars, `{ns}/1/t/{tenant}/…` for tenants, `{ns}/1/host/…` and
`{ns}/1/pub/…` beside them (design §5). At most 7 slashes; ids hold no dot, space, slash or
wildcard.
"""

import re
import zlib
from dataclasses import dataclass
from enum import Enum
from typing import Final

from edge_runtime.contract.errors import ConfigError, Rejected, RejectionReason
from edge_runtime.contract.limits import ANSWERS_TOPIC_MAX_CHARS

ID_PATTERN: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
DEFAULT_NAMESPACE: Final = "er"
_CAR_TOPIC_PARTS: Final = 7
_TOPIC_SLASHES: Final = 7


class Up(Enum):
    """What a car publishes under `up/`."""

    STATUS = "status"
    STATE = "state"
    ACK = "ack"
    RESULT = "result"


class Down(Enum):
    """What a car subscribes to under `dn/`."""

    WORK = "work"
    CONTROL = "control"
    DESIRED = "desired"


_UP = {member.value: member for member in Up}


def shard_of(vehicle: str) -> str:
    """Two hex digits of CRC-32 of the vehicle id: the unit of ownership."""
    return f"{zlib.crc32(vehicle.encode()) & 0xFF:02x}"


def require_id(field: str, value: str) -> str:
    """`value`, or ConfigError naming `field` where it is not a valid id."""
    if not ID_PATTERN.fullmatch(value):
        raise ConfigError(f"{field} must be 1 to 64 of A-Z a-z 0-9 _ -, not {value!r}")
    return value


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of one namespace."""

    namespace: str = DEFAULT_NAMESPACE

    def __post_init__(self) -> None:
        require_id("namespace", self.namespace)

    def up(self, vehicle: str, kind: Up) -> str:
        """Where a car publishes."""
        return f"{self.namespace}/1/{shard_of(vehicle)}/v/{vehicle}/up/{kind.value}"

    def down(self, vehicle: str, kind: Down) -> str:
        """Where a car is addressed."""
        return f"{self.namespace}/1/{shard_of(vehicle)}/v/{vehicle}/dn/{kind.value}"

    def canary(self, vehicle: str) -> str:
        """A car's self-addressed topic: inside `up/`, which it may write."""
        return f"{self.namespace}/1/{shard_of(vehicle)}/v/{vehicle}/up/canary"

    def down_all(self, vehicle: str) -> str:
        """Filter: everything addressed to one car."""
        return f"{self.namespace}/1/{shard_of(vehicle)}/v/{vehicle}/dn/+"

    def up_all(self, shard: str = "+") -> str:
        """Filter: everything that cars of a shard, or of all, publish."""
        return f"{self.namespace}/1/{shard}/v/+/up/+"

    def host(self, dispatcher: str) -> str:
        """A dispatcher's retained status."""
        return f"{self.namespace}/1/host/{dispatcher}"

    def host_all(self) -> str:
        """Filter: every dispatcher's status."""
        return f"{self.namespace}/1/host/+"

    def job_results(self, tenant: str, job: str) -> str:
        """A job's results, for its tenant."""
        return f"{self.namespace}/1/t/{tenant}/jobs/{job}/results"

    def job_status(self, tenant: str, job: str) -> str:
        """A job's retained status, for its tenant."""
        return f"{self.namespace}/1/t/{tenant}/jobs/{job}/status"

    def tenant_all(self, tenant: str) -> str:
        """Filter: results and status of every job of a tenant."""
        return f"{self.namespace}/1/t/{tenant}/jobs/+/+"

    def tenant_request(self, tenant: str = "+") -> str:
        """Where a tenant asks (FetchSince)."""
        return f"{self.namespace}/1/t/{tenant}/request"

    def tenant_answers(self, tenant: str, reader: str) -> str:
        """Where one of a tenant's readers has its requests answered, by custom."""
        return f"{self.namespace}/1/t/{tenant}/answers/{reader}"

    def is_for_answers(self, tenant: str, topic: str) -> bool:
        """Whether a tenant's reader may have answers sent to `topic`.

        Under the tenant's own topics, but nowhere that somebody believes to be told by the
        dispatcher itself, or that the dispatcher reads.
        """
        own = f"{self.namespace}/1/t/{tenant}/"
        return (
            topic.startswith(own)
            and len(topic) <= ANSWERS_TOPIC_MAX_CHARS
            and topic.count("/") <= _TOPIC_SLASHES
            and topic.isprintable()
            and not set(topic) & {"+", "#"}
            and topic.removeprefix(own).split("/")[0] not in {"", "jobs", "request"}
        )

    def fleet(self, region: str) -> str:
        """Aggregated capacity of a region."""
        return f"{self.namespace}/1/pub/fleet/{region}"

    def parse_up(self, topic: str) -> tuple[str, Up]:
        """(vehicle, kind) of a car's topic; `Rejected` for any other topic or a wrong shard."""
        parts = topic.split("/")
        if (
            len(parts) != _CAR_TOPIC_PARTS
            or parts[0] != self.namespace
            or parts[1] != "1"
            or parts[3] != "v"
            or parts[5] != "up"
        ):
            raise Rejected(RejectionReason.UNKNOWN_TOPIC, topic[:200])
        kind = _UP.get(parts[6])
        vehicle = parts[4]
        if kind is None or not ID_PATTERN.fullmatch(vehicle):
            raise Rejected(RejectionReason.UNKNOWN_TOPIC, topic[:200])
        if shard_of(vehicle) != parts[2]:
            raise Rejected(RejectionReason.WRONG_SHARD, topic[:200])
        return vehicle, kind
