"""Any order of events, faults, lies and crashes: the promises hold, and all work ends.

After the faults comes a healed phase: honest cars drain everything, and then every job has ended
and every item has exactly one end. The store model objects to a second one on the way.
"""

from collections import Counter
from typing import Any

import pytest
from core_life import SMALL, Drawn, Life, Seeded
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from edge_runtime.contract import limits


@pytest.fixture(autouse=True, scope="module")
def small() -> Any:
    """Bounds so small that every one of them is met."""
    patch = pytest.MonkeyPatch()
    for name, value in SMALL.items():
        patch.setattr(limits, name, value)
    yield
    patch.undo()


class DispatcherUnderTest(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.life = Life()

    def _do(self, steps: list[Any], data: st.DataObject) -> None:
        choose = Drawn(data)
        choose.pick(steps)(choose)
        self.life.hear()

    @rule(data=st.data())
    def a_car_acts(self, data: st.DataObject) -> None:
        self._do(self.life.car_steps(), data)

    @rule(data=st.data())
    def the_network_acts(self, data: st.DataObject) -> None:
        self._do(self.life.network_steps(), data)

    @rule(data=st.data())
    def the_dispatcher_acts(self, data: st.DataObject) -> None:
        self._do(self.life.dispatcher_steps(), data)

    @precondition(lambda self: self.life.to_cars or self.life.to_core)
    @rule()
    def everything_arrives(self) -> None:
        self.life.delivers_all(Seeded(0))
        self.life.hear()

    def teardown(self) -> None:
        self.life.heal()


DispatcherUnderTest.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestDispatcher = DispatcherUnderTest.TestCase


RARE = {
    *("late_items", "late_chunks", "chunks_already_have", "chunks_not_wanted", "chunks_stored"),
    *("ended_completed", "ended_released", "ended_refused", "ended_cancelled"),
    *("ended_offer_timeout", "ended_lease_expired", "offers_resent", "taken_stale"),
    *("cancels_given_up", "jobs_waiting_in_store", "AddStrike", "AddResult"),
    *("item_failed_too_many_attempts", "item_failed_wrong_shape", "strike_car_rebooted"),
    *("LoadItems", "LoadJobs", "FindAttempt", "FailRemaining", "WithdrawFailures"),
    *("unknown_vehicle", "old_boot", "old_sequence", "quarantined", "not_your_attempt"),
}


def test_long_random_lives_heal() -> None:
    """Many more steps than the state machine takes; every rare path must have been taken."""
    seen: Counter[str] = Counter()
    for seed in range(30):
        life, choose = Life(), Seeded(seed)
        for step in range(300):
            try:
                life.step(choose)
            except Exception as error:
                raise AssertionError(f"seed {seed} step {step}") from error
        life.heal()
        seen += life.seen
    never = RARE - seen.keys()
    assert not never, (never, seen)
