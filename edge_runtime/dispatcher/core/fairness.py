"""Who is served next among tenants, and how often one may ask: pure arithmetic.

Deficit round robin (Shreedhar and Varghese, 1995) over car time: in each round a tenant gets
`UNIT_TARGET_MS` of car time for each point of its weight, pays for each unit what it is expected
to take, and waits for the next round when nothing is left; what was not done of a unit it gets
back. Within a round tenants are served one unit each in turn.

Invariants
- A tenant that comes to the ring with nothing out is served before those that wait for their
  next turn: its first unit waits for the next free car and for nobody's queue.
- It cannot gain by going and coming: what it owes is remembered while it is away.
- A tenant with work is never passed over for ever: between two of its turns every other one
  gets at most its quantum and one unit, and a quantum more for each that this one owed.

Deliberately absent: priorities between tenants. A priority orders a tenant's own jobs; to let
it order others' would make every job the most urgent one.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence

from edge_runtime.contract import limits


class Shares:
    """Car time (ms) that tenants may still use in their turns, and their weights."""

    def __init__(self) -> None:
        self._weights: dict[str, int] = {}
        self._left_ms: OrderedDict[str, float] = OrderedDict()

    def set_weight(self, tenant: str, weight: int) -> None:
        """A tenant's share beside others' (1 where none was set)."""
        if weight == 1:
            self._weights.pop(tenant, None)
        else:
            self._weights[tenant] = weight

    def quantum_ms(self, tenant: str) -> float:
        """The car time of one turn."""
        return float(limits.UNIT_TARGET_MS * self._weights.get(tenant, 1))

    def left_ms(self, tenant: str) -> float:
        """What is left of the tenant's turn; negative is what it owes."""
        return self._left_ms.get(tenant, 0.0)

    def came(self, tenant: str) -> bool:
        """It has jobs again after having had none; whether it owes nothing and is served first.

        What it had not used when it went is not saved.
        """
        if self.left_ms(tenant) < 0.0:
            return False
        self._set(tenant, self.quantum_ms(tenant))
        return True

    def new_round(self, tenants: Sequence[str]) -> None:
        """Everybody who waits gets a quantum; several, where all owe more than one."""
        rounds = min(
            math.floor(-self.left_ms(tenant) / self.quantum_ms(tenant)) + 1 for tenant in tenants
        )
        for tenant in tenants:
            self._set(tenant, self.left_ms(tenant) + rounds * self.quantum_ms(tenant))

    def charge(self, tenant: str, cost_ms: float) -> None:
        """It was given so much car time (negative: it gave it back)."""
        left_ms = self.left_ms(tenant) - cost_ms
        self._set(tenant, min(left_ms, self.quantum_ms(tenant)))

    def _set(self, tenant: str, left_ms: float) -> None:
        self._left_ms[tenant] = left_ms
        self._left_ms.move_to_end(tenant)
        if len(self._left_ms) > limits.TENANTS_REMEMBERED_MAX:
            self._left_ms.popitem(last=False)


class TokenBucket:
    """So many requests a second, and so many at once."""

    __slots__ = ("_at_ms", "_burst", "_rate_per_s", "_tokens")

    def __init__(self, rate_per_s: float, burst: float, now_ms: int) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._tokens = burst
        self._at_ms = now_ms

    def take(self, now_ms: int) -> float:
        """Take one token: 0.0, or the seconds until there is one (and nothing is taken)."""
        elapsed_s = max(0, now_ms - self._at_ms) / 1000
        self._at_ms = max(self._at_ms, now_ms)
        self._tokens = min(self._burst, self._tokens + elapsed_s * self._rate_per_s)
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self._rate_per_s
