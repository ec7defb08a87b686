"""Events that come together are settled once, and nothing else of the car's promises changes."""

from typing import Any

from car_bench import Bench, only
from hypothesis import settings
from test_vehicle_core_stateful import CarUnderTest

from edge_runtime.contract.codec import encode
from edge_runtime.contract.reasons import Outcome
from edge_runtime.vehicle.core import commands as c
from edge_runtime.vehicle.core import events as e

TOGETHER_MAX = 6
OF_THE_ENGINE = (e.ItemStarted, e.ItemFinished, e.ItemBroke, e.RunEnded, e.ModelLoaded)


def events_of(run_id: int, *indexes: int) -> list[e.Event]:
    """What the engine tells of a run that goes well."""
    told: list[e.Event] = []
    for index in indexes:
        told.append(e.ItemStarted(run_id, index))
        told.append(e.ItemFinished(run_id, index, encode("ok"), 10.0))
    return [*told, e.RunEnded(run_id, e.RunOutcome.COMPLETED)]


class GatheringBench(Bench):
    """Keeps the engine's events back until something else happens, as a car's shell does."""

    kept: list[e.Event]

    def send(self, event: e.Event) -> list[c.Command]:
        self.kept = [*getattr(self, "kept", ()), event]
        if isinstance(event, OF_THE_ENGINE) and len(self.kept) < TOGETHER_MAX:
            return []
        return self.send_kept()

    def send_kept(self) -> list[c.Command]:
        events, self.kept = self.kept, []
        commands = self.core.handle_all(events, self.now)
        self.core.check(self.now)
        for command in commands:
            self._obey(command)
        self.said += commands
        return commands


def test_a_run_told_at_once_is_one_persist_and_the_same_chunks() -> None:
    one_by_one, together = Bench().open(), Bench().open()
    for car in (one_by_one, together):
        car.take()
    run_id = one_by_one.run_of(1)
    assert run_id == together.run_of(1)
    indexes = [item.index for item in one_by_one.engine.runs[run_id].items]
    for event in events_of(run_id, *indexes):
        one_by_one.send(event)
    said = together.core.handle_all(events_of(run_id, *indexes), together.now)
    together.core.check(together.now)
    for command in said:
        together._obey(command)
    assert len(only(c.Persist, said)) == 1
    for car in (one_by_one, together):
        car.commit()
    assert together.chunks == one_by_one.chunks
    assert set(together.endings().values()) == {Outcome.COMPLETED}


def test_nothing_together_changes_nothing() -> None:
    car = Bench().open()
    assert car.core.handle_all((), car.now) == []


class CarToldTogether(CarUnderTest):
    """The same dispatcher, owner, engine and disk; the engine's events come in bunches."""

    def __init__(self) -> None:
        super().__init__()
        self.car: Any = GatheringBench(self.car.policy).open()


TestCarToldTogether = CarToldTogether.TestCase
TestCarToldTogether.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
