"""The watchdog's two clocks, without a process."""

import pytest

from edge_runtime.contract import limits
from edge_runtime.vehicle.inference.watchdog import ItemTimes, Patience, Watch, item_patience

MS = 1_000_000


def test_without_a_record_the_reference_time_bounds_both_clocks() -> None:
    quick = item_patience(reference_ms=1.0, slowest_ms=None)
    assert quick == Patience(limits.ENGINE_HANG_MS, limits.ENGINE_HANG_MS)
    slow_ms = 2.0 * limits.ENGINE_HANG_MS / limits.ENGINE_HANG_PER_REFERENCE
    assert item_patience(slow_ms, None).wall_ms == 2 * limits.ENGINE_HANG_MS


@pytest.mark.parametrize(
    ("slowest_ms", "cpu_ms"),
    [
        (0.0, limits.ENGINE_HANG_MIN_MS),
        (1.0, limits.ENGINE_HANG_MIN_MS),
        (200.0, 200.0 * limits.ENGINE_HANG_PER_MEASURED),
        (1e9, limits.ENGINE_HANG_MS),
    ],
)
def test_a_record_bounds_processor_time_between_floor_and_ceiling(
    slowest_ms: float, cpu_ms: float
) -> None:
    patience = item_patience(reference_ms=1.0, slowest_ms=slowest_ms)
    assert patience == Patience(limits.ENGINE_HANG_MS, cpu_ms)


@pytest.mark.parametrize("reference_ms", [1e9, 1e300, float("inf")])
def test_no_package_buys_itself_out_of_the_watchdog(reference_ms: float) -> None:
    assert item_patience(reference_ms, None).wall_ms == limits.ENGINE_HANG_MAX_MS


def test_either_clock_ends_it_and_an_output_begins_anew() -> None:
    watch = Watch(since_ns=0)
    patience = Patience(wall_ms=1_000, cpu_ms=100)
    assert not watch.is_hung(0, 5_000.0, patience), "what it used before does not count"
    assert not watch.is_hung(900 * MS, 5_100.0, patience)
    assert watch.is_hung(900 * MS, 5_101.0, patience)
    assert watch.is_hung(1_001 * MS, 5_000.0, patience), "it waits, or was stopped"
    watch.progressed(1_001 * MS)
    assert not watch.is_hung(1_100 * MS, 5_101.0, patience)


def test_the_record_is_the_slowest_of_late_and_bounded() -> None:
    times = ItemTimes()
    assert times.get("a") is None
    times.note("a", 100.0)
    times.note("a", 10.0)
    known_ms = times.get("a")
    assert known_ms is not None
    assert 10.0 < known_ms < 100.0
    for _ in range(200):
        times.note("a", 10.0)
    assert times.get("a") == pytest.approx(10.0)
    for number in range(limits.MODELS_KNOWN_MAX):
        times.note(f"model {number}", 1.0)
    assert times.get("a") is None
