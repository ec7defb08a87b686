"""The closed lists: reasons, signals, clocks."""

import pytest

from edge_runtime.contract import reasons
from edge_runtime.contract.clock import Now
from edge_runtime.contract.errors import EdgeError, LocalError, Rejected, RejectionReason
from edge_runtime.contract.reasons import ItemError, JobState, WireEnum
from edge_runtime.contract.signals import SIGNALS, WIRE_SIGNALS, Signals

LISTS = [
    kind
    for kind in vars(reasons).values()
    if isinstance(kind, type) and issubclass(kind, WireEnum) and kind is not WireEnum
]


@pytest.mark.parametrize("kind", LISTS, ids=lambda kind: kind.__name__)
def test_every_list_ends_with_unknown(kind: type[WireEnum]) -> None:
    *known, last = kind
    assert last.name == "UNKNOWN"
    assert last.value == "unknown"
    assert known
    assert all(member.value == member.name.lower() for member in kind)


@pytest.mark.parametrize("kind", LISTS, ids=lambda kind: kind.__name__)
def test_only_strings_can_be_unknown_reasons(kind: type[WireEnum]) -> None:
    assert kind("not listed") is kind["UNKNOWN"]
    for wrong in (None, 1, b"hold", []):
        with pytest.raises(ValueError, match="is not a valid"):
            kind(wrong)


def test_signals_and_their_bindings_are_in_the_same_order() -> None:
    assert tuple(signal.name for signal in WIRE_SIGNALS) == Signals.__struct_fields__
    assert SIGNALS[: len(WIRE_SIGNALS)] == WIRE_SIGNALS
    assert len({signal.name for signal in SIGNALS}) == len(SIGNALS)
    assert all(signal.minimum < signal.maximum for signal in SIGNALS)
    assert all(signal.path.startswith("Vehicle.") for signal in SIGNALS)
    assert len({signal.path for signal in SIGNALS}) == len(SIGNALS)


def test_what_says_something_about_people_stays_in_the_car() -> None:
    assert {signal.name for signal in SIGNALS if signal.is_local} == {
        "departure_utc_s",
        "cabin_temperature_c",
        "battery_energy_kwh",
        "battery_health_percent",
        "is_conditioning",
        "is_network_metered",
    }


def test_only_overlays_have_a_path_of_their_own() -> None:
    for signal in SIGNALS:
        assert signal.path.startswith("Vehicle.Private.EdgeRuntime.") is signal.is_overlay


def test_signals_default_to_no_reading() -> None:
    assert all(getattr(Signals(), name) is None for name in Signals.__struct_fields__)


def test_final_item_errors_blame_the_input() -> None:
    retried = {error for error in ItemError if not error.is_final}
    assert retried == {
        ItemError.MODEL_ERROR,
        ItemError.OUT_OF_MEMORY,
        ItemError.ENGINE_KILLED,
        ItemError.ENGINE_HUNG,
        ItemError.CAR_REBOOTED,
        ItemError.INPUT_UNAVAILABLE,
        ItemError.OUTPUT_UNAVAILABLE,
        ItemError.UNKNOWN,
    }


def test_terminal_job_states() -> None:
    assert {state for state in JobState if state.is_terminal} == {
        JobState.DONE,
        JobState.CANCELLED,
        JobState.EXPIRED,
    }


def test_a_rejection_carries_its_reason() -> None:
    rejection = Rejected(RejectionReason.OVERSIZE, "9 bytes")
    assert rejection.reason is RejectionReason.OVERSIZE
    assert str(rejection) == "oversize: 9 bytes"
    assert isinstance(rejection, EdgeError)
    assert not isinstance(rejection, LocalError)


def test_boot_time_in_milliseconds_is_rounded_down() -> None:
    assert Now(boot_ns=1_999_999, utc_ms=0).boot_ms == 1
