"""How long ago the dispatcher can last have heard of this car, and so which leases are over.

Invariants
- A lease is the dispatcher's clock, not ours: this module never ends one early. It says that one
  is over only when nothing that this car sent can have reached anybody for longer than the lease.
- While the connection stands and this computer is awake, no lease is over here: the dispatcher
  says so itself, with a Cancel.
- A computer that slept does not know how its connection fared; it counts as cut from the moment
  it fell asleep until the broker, or the dispatcher, is heard again.

Work whose lease is over was given to another car; beginning it would be energy for nothing.
"""

from dataclasses import dataclass

from edge_runtime.contract import limits
from edge_runtime.contract.clock import NS_PER_MS, Now

_ASLEEP_NS = limits.CAR_ASLEEP_MS * NS_PER_MS


@dataclass(slots=True)
class Link:
    """The way to the dispatcher, as far as time is concerned."""

    is_up: bool = False
    reached_ns: int | None = None
    """Until when messages may have reached it; None before the first connection."""
    _last_ns: int | None = None

    def turn(self, now: Now) -> None:
        """Time has passed. Call it before anything else is decided at `now`."""
        last_ns, self._last_ns = self._last_ns, now.boot_ns
        if last_ns is not None and now.boot_ns - last_ns > _ASLEEP_NS:
            self.is_up = False
        if self.is_up:
            self.reached_ns = now.boot_ns

    def heard(self, now: Now) -> None:
        """The broker took us in, or the dispatcher spoke."""
        self.is_up = True
        self.reached_ns = now.boot_ns

    def lost(self) -> None:
        """There is no connection now."""
        self.is_up = False

    def lease_end_ns(self, lease_ms: int, taken_ns: int) -> int | None:
        """When a lease of an attempt that came at `taken_ns` is over; None while it may be renewed.

        An attempt came by a connection, so the time it came is a time at which we were heard.
        """
        if self.is_up:
            return None
        since_ns = taken_ns if self.reached_ns is None else max(taken_ns, self.reached_ns)
        return since_ns + lease_ms * NS_PER_MS
