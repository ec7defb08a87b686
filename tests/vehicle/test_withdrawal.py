"""Withdrawn consent: work stops in the same call, what is not handed over is dropped, for good."""

from typing import Any

import msgspec
import pytest
from car_bench import POLICY, Bench, offer, only, verdicts

from edge_runtime.contract.messages import Chunk, Fence, Refused
from edge_runtime.contract.reasons import HoldReason, Outcome, RefusalReason, ReleaseReason
from edge_runtime.contract.signals import Signals
from edge_runtime.vehicle.core import commands as c
from edge_runtime.vehicle.core import events as e
from edge_runtime.vehicle.policy import Consent, OwnerPolicy

WITHDRAWN = msgspec.structs.replace(POLICY, consent=Consent(given=False, version=2))
_chunks = msgspec.msgpack.Decoder(Chunk)


def withdraw(car: Bench, policy: OwnerPolicy | HoldReason = WITHDRAWN) -> list[c.Command]:
    car.policy = policy
    return car.send(e.PolicyChanged(policy))


def sent_after(said: list[c.Command]) -> list[Chunk]:
    return [_chunks.decode(b) for command in only(c.PublishChunks, said) for b in command.bodies]


def assert_given_back_empty(chunk: Chunk) -> None:
    assert not chunk.items
    assert chunk.ending is not None
    assert chunk.ending.outcome is Outcome.RELEASED
    assert chunk.ending.reason is ReleaseReason.HOLD
    assert chunk.ending.hold is HoldReason.CONSENT_WITHDRAWN


@pytest.mark.parametrize("policy", [WITHDRAWN, HoldReason.CONSENT_WITHDRAWN])
def test_work_stops_in_the_same_call_and_its_items_are_given_back(policy: Any) -> None:
    car = Bench().open()
    car.take()
    car.compute(1, 0)
    said = withdraw(car, policy)
    assert any(isinstance(command, c.FreezeEngine) for command in said)
    assert any(isinstance(command, c.KillEngine) for command in said)
    said += car.commit() + car.advance(0.1) + car.commit()
    (chunk,) = sent_after(said)
    assert_given_back_empty(chunk)
    assert not car.core.work.attempts


def test_results_that_were_not_answered_are_dropped_from_memory_and_journal() -> None:
    car = Bench().open()
    car.take()
    car.compute(1, 0, 1, 2)
    car.commit()
    assert [len(chunk.items) for chunk in car.published()] == [3]
    said = withdraw(car) + car.commit()
    (chunk,) = sent_after(said)
    assert_given_back_empty(chunk)
    assert (chunk.unit, chunk.fence, chunk.seq) == (1, Fence(1, 1), 1)
    assert [_chunks.decode(body).items for body in car.journal.chunks.values()] == [()]
    # Nothing but that is ever sent again, whatever is asked.
    for _ in range(3):
        again = car.send(e.BusDisconnected()) + car.send(e.BusConnected()) + car.live(120)
        again += car.send(e.UnitsOffered((offer(),))) + car.commit()
        assert all(not chunk.items for chunk in sent_after(again))


def test_a_chunk_that_is_being_written_is_dropped_too() -> None:
    car = Bench().open()
    car.take()
    car.compute(1, 0, 1, 2)  # its write is queued, not committed
    said = withdraw(car) + car.commit() + car.live(10)
    assert {len(chunk.items) for chunk in sent_after(said)} == {0}
    assert all(not _chunks.decode(body).items for body in car.journal.chunks.values())


def test_what_the_engine_still_says_is_dropped() -> None:
    car = Bench().open()
    car.take()
    run_id = car.run_of(1)
    withdraw(car)
    car.send(e.ItemFinished(run_id, 0, b"\xc3", 5.0))
    said = car.commit() + car.advance(0.1) + car.commit()
    assert_given_back_empty(*sent_after(said))


def test_a_withdrawal_while_nothing_ran_drops_what_the_journal_kept() -> None:
    car = Bench().open()
    car.take(offer(1), offer(2))
    car.compute(1, 0, 1, 2)
    car.start(2, 0)
    car.commit()
    car.policy = WITHDRAWN
    car.crash()
    car.sense()
    said = car.send(e.BusConnected()) + car.commit() + car.live(5) + car.commit()
    assert car.core.hold is HoldReason.CONSENT_WITHDRAWN
    given_back = sent_after(said)
    assert {chunk.unit for chunk in given_back} == {1, 2}
    for chunk in given_back:
        assert_given_back_empty(chunk)
    assert all(not _chunks.decode(body).items for body in car.journal.chunks.values())


def test_it_is_still_withdrawn_after_a_restart_and_work_is_refused() -> None:
    car = Bench().open()
    withdraw(car)
    car.crash()
    car.send(e.BusConnected())
    car.sense()
    car.live(60)
    (refused,) = verdicts(car.take(offer(7)))
    assert isinstance(refused, Refused)
    assert refused.reason is RefusalReason.HOLD
    assert refused.hold is HoldReason.CONSENT_WITHDRAWN


def test_new_consent_lets_new_work_begin_and_keeps_its_results() -> None:
    car = Bench().open()
    car.take()
    car.compute(1, 0)
    withdraw(car)
    car.commit()
    car.advance(0.1)
    car.commit()
    again = msgspec.structs.replace(POLICY, consent=Consent(given=True, version=3))
    withdraw(car, again)
    car.live(11)
    car.take(offer(2))
    car.compute(2, 0, 1, 2)
    car.commit()
    assert [len(chunk.items) for chunk in car.published() if chunk.unit == 2] == [3]


def test_who_was_never_asked_or_has_a_broken_policy_loses_no_result() -> None:
    car = Bench().open()
    car.take()
    car.compute(1, 0, 1, 2)
    car.commit()
    withdraw(car, HoldReason.POLICY_INVALID)
    withdraw(car, HoldReason.CONSENT_MISSING)
    assert [len(_chunks.decode(body).items) for body in car.journal.chunks.values()] == [3]


def test_forgetting_is_once_a_withdrawal() -> None:
    car = Bench().open()
    car.take()
    car.compute(1, 0, 1, 2)
    car.commit()
    withdraw(car)
    car.commit()
    before = len(car.journal.chunks)
    withdraw(car, msgspec.structs.replace(WITHDRAWN, paused=True))
    withdraw(car, HoldReason.CONSENT_WITHDRAWN)
    car.commit()
    assert len(car.journal.chunks) == before == 1


# --- what stays at the broker ---------------------------------------------------------------------


def test_what_the_broker_keeps_of_the_car_is_cleared_at_once() -> None:
    car = Bench().open()
    assert all(birth.is_retained for birth in only(c.PublishBirth, car.said))
    said = withdraw(car)
    assert len(only(c.ClearStatus, said)) == 1
    (will,) = only(c.SetWill, said)
    assert not will.is_retained
    assert will.offline.connection == 2


def test_without_consent_births_and_goodbyes_are_for_those_who_listen() -> None:
    car = Bench(WITHDRAWN)
    assert not car.core.first_will().is_retained
    said = car.send(e.BusConnected())
    kinds = [type(command) for command in said]
    assert kinds.index(c.ClearStatus) < kinds.index(c.PublishBirth)
    assert not only(c.PublishBirth, said)[0].is_retained
    said = car.send(e.ShutdownRequested()) + car.commit()
    assert not only(c.PublishOffline, said)[0].is_retained


def test_a_withdrawal_without_a_connection_is_told_when_there_is_one() -> None:
    car = Bench().open()
    car.send(e.BusDisconnected())
    assert not only(c.ClearStatus, withdraw(car))
    assert only(c.ClearStatus, car.send(e.BusConnected()))


def test_a_car_without_consent_tells_no_signal() -> None:
    car = Bench().open()
    withdraw(car)
    said = car.sense() + car.live(30)
    states = [command.state for command in only(c.PublishState, said)]
    assert states
    assert all(state.signals == Signals() for state in states)
    assert all(state.hold is HoldReason.CONSENT_WITHDRAWN for state in states)


def test_new_consent_is_a_birth_that_the_broker_keeps() -> None:
    car = Bench().open()
    withdraw(car)
    again = msgspec.structs.replace(POLICY, consent=Consent(given=True, version=3))
    said = withdraw(car, again) + car.live(1)
    (birth,) = only(c.PublishBirth, said)
    assert birth.is_retained
    (will,) = only(c.SetWill, said)
    assert will.is_retained
