"""How long things take: the measured speed of each model and car, and what follows from it.

One number per model (mean item time over the fleet) and one per car (how slow it is against that
mean) estimate every pair without a table of pairs.
"""

from edge_runtime.contract import limits
from edge_runtime.dispatcher.core.fleet import Fleet

_MODEL_WEIGHT = 0.1
_CAR_WEIGHT = 0.3
_SLOWEST, _FASTEST = 200.0, 0.005
_ITEM_MS_MIN = 0.01


class Pace:
    """Item times in milliseconds."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._mean_ms: dict[str, float] = {}

    def expect_ms(self, model: str, reference_ms: float, row: int) -> float:
        """Expected time of one item of `model` on the car in `row`."""
        mean = self._mean_ms.get(model)
        if mean is None:
            mean = self._mean_ms[model] = max(reference_ms, _ITEM_MS_MIN)
        return mean * self._fleet.slowness[row]

    def measured(self, model: str, row: int, items: int, busy_ms: float) -> None:
        """A car reported `items` done in `busy_ms`; absurd reports move nothing."""
        mean = self._mean_ms.get(model)
        if mean is None or items <= 0 or not 0.0 <= busy_ms < limits.ITEM_TIME_MAX_MS * items:
            return
        observed = max(busy_ms / items, _ITEM_MS_MIN)
        ratio = min(max(observed / mean, _FASTEST), _SLOWEST)
        slowness = self._fleet.slowness
        slowness[row] += _CAR_WEIGHT * (ratio - slowness[row])
        self._mean_ms[model] = mean + _MODEL_WEIGHT * (observed - mean)

    def lease_ms(self, expected_ms: float, reference_ms: float) -> int:
        """The lease for a unit expected to take this long, of a model with this reference time.

        It outlives the engine's watchdog: a car that found an item hanging must be able to say
        so while the attempt is still its own.
        """
        hang_ms = max(limits.ENGINE_HANG_MS, limits.ENGINE_HANG_PER_REFERENCE * reference_ms)
        by_time = limits.LEASE_PER_EXPECTED * expected_ms
        return int(max(limits.LEASE_MS, by_time, hang_ms + limits.LEASE_PAST_HANG_MS))

    def unit_items(self, item_ms: float, open_items: int, slots: int) -> int:
        """How many items a unit may have: the target time, but no more than a fair share."""
        by_time = int(limits.UNIT_TARGET_MS / item_ms)
        fair_share = -(-open_items // max(1, slots))
        return max(1, min(by_time, fair_share, limits.UNIT_ITEMS_MAX))
