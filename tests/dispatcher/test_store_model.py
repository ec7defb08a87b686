"""The SQLite store does what its model does, whatever the dispatcher's life throws at it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from core_life import SMALL, Drawn, Life, Seeded
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from store_model import DictStore
from store_rig import Twins

from edge_runtime.contract import limits


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    """Bounds so small that every one of them is met."""
    patch = pytest.MonkeyPatch()
    for name, value in SMALL.items():
        patch.setattr(limits, name, value)
    yield
    patch.undo()


class TwinLife(Life):
    """A life on both stores at once."""

    def __init__(self, folder: Path) -> None:
        def twins(model: DictStore) -> Twins:
            self.twins = Twins(folder / "store.db", model)
            return self.twins

        super().__init__(twins)

    def end(self) -> None:
        self.twins.compare()
        self.heal()
        self.twins.compare()
        self.twins.check()
        self.twins.runner.close()


class StoreUnderTest(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.life = TwinLife(Path(self.folder.name))

    def _do(self, steps: list[Any], data: st.DataObject) -> None:
        choose = Drawn(data)
        choose.pick(steps)(choose)
        self.life.hear()

    @rule(data=st.data())
    def a_car_acts(self, data: st.DataObject) -> None:
        self._do(self.life.car_steps(), data)
        self.life.delivers_all(Drawn(data))
        self.life.hear()

    @rule(data=st.data())
    def the_dispatcher_acts(self, data: st.DataObject) -> None:
        self._do(self.life.dispatcher_steps(), data)
        self.life.delivers_all(Drawn(data))
        self.life.hear()

    def teardown(self) -> None:
        try:
            self.life.end()
        finally:
            self.life.twins.close()
            self.folder.cleanup()


StoreUnderTest.TestCase.settings = settings(
    max_examples=15,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestStore = StoreUnderTest.TestCase


@pytest.mark.parametrize("seed", range(4))
def test_a_long_life_leaves_both_stores_alike(seed: int, tmp_path: Path) -> None:
    life, choose = TwinLife(tmp_path), Seeded(seed)
    for step in range(250):
        life.step(choose)
        if step % 50 == 0:
            life.twins.compare()
    life.end()
