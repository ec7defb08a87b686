"""Whose orders a car obeys, and how its certificates are renewed while it runs."""

import asyncio
import datetime as dt
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agent_rig import Garage, until
from scripted_dispatcher import ScriptedDispatcher, tensor, unit_offer
from structlog.testing import capture_logs

from edge_runtime.bus import Message
from edge_runtime.contract import codec, limits
from edge_runtime.contract.errors import RejectionReason
from edge_runtime.contract.messages import Cancel, Control, Desired, Drain, Signed, WorkOffer
from edge_runtime.contract.reasons import Availability, CancelReason, HoldReason
from edge_runtime.contract.topics import Down, Topics
from edge_runtime.pki import authority as authority_module
from edge_runtime.pki.authority import Authority, Grant, Role
from edge_runtime.pki.house import enrol
from edge_runtime.pki.identity import IdentityFolder
from edge_runtime.pki.signing import MessageSigner, TrustedKeys
from edge_runtime.vehicle.identity import Identity
from edge_runtime.vehicle.intake import Hosts, Intake

TOPICS = Topics("er")
BODIES = {
    Down.WORK: WorkOffer(vehicle="car-1", units=()),
    Down.CONTROL: Control(vehicle="car-1", orders=(Drain(active=True),)),
    Down.DESIRED: Desired(vehicle="car-1", models=()),
}


@pytest.fixture
def signer() -> MessageSigner:
    return MessageSigner.generate()


@pytest.fixture
def keys(tmp_path: Path, signer: MessageSigner) -> Path:
    folder = tmp_path / "trusted-keys"
    folder.mkdir()
    (folder / "dispatcher.pem").write_bytes(signer.public_pem())
    return folder


@pytest.fixture
def intake(keys: Path) -> Intake:
    return Intake("car-1", TOPICS, Hosts(None), lambda: 0.5, TrustedKeys(keys).refusal)


# --- verification -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(Down))
def test_a_signed_message_is_obeyed_and_an_unsigned_one_is_not(
    intake: Intake, signer: MessageSigner, kind: Down
) -> None:
    topic = TOPICS.down("car-1", kind)
    assert intake.event(Message(topic, codec.encode_signed(BODIES[kind], signer))) is not None
    assert intake.event(Message(topic, codec.encode_signed(BODIES[kind]))) is None
    stranger = MessageSigner.generate()
    assert intake.event(Message(topic, codec.encode_signed(BODIES[kind], stranger))) is None
    assert intake.rejected == {RejectionReason.UNSIGNED: 1, RejectionReason.UNKNOWN_KEY: 1}


@pytest.mark.parametrize("kind", list(Down))
def test_nothing_of_a_forged_body_is_decoded(
    intake: Intake, signer: MessageSigner, kind: Down, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touched(_: bytes) -> Any:
        pytest.fail("a body was decoded before it was verified")

    topic = TOPICS.down("car-1", kind)
    monkeypatch.setitem(intake._bodies, topic, touched)
    forged = Signed(key_id=signer.key_id, signature=bytes(64), body=b"\xc1" * 100)
    for _ in range(3):
        assert intake.event(Message(topic, codec.encode(forged))) is None
    assert intake.rejected == {RejectionReason.BAD_SIGNATURE: 3}


def test_a_genuine_message_for_another_car_or_topic_is_not_obeyed(
    intake: Intake, signer: MessageSigner
) -> None:
    for_another = codec.encode_signed(Control(vehicle="car-2", orders=()), signer)
    assert intake.event(Message(TOPICS.down("car-1", Down.CONTROL), for_another)) is None
    control = codec.encode_signed(BODIES[Down.CONTROL], signer)
    assert intake.event(Message(TOPICS.down("car-1", Down.WORK), control)) is None
    assert intake.rejected == {RejectionReason.WRONG_VEHICLE: 1, RejectionReason.UNKNOWN_TAG: 1}


def test_forgeries_do_not_fill_the_log(intake: Intake) -> None:
    topic = TOPICS.down("car-1", Down.CONTROL)
    with capture_logs() as logs:
        for _ in range(1_000):
            intake.event(Message(topic, codec.encode_signed(BODIES[Down.CONTROL])))
    assert len(logs) == 10
    assert {(line["event"], line["reason"]) for line in logs} == {("message_rejected", "unsigned")}
    assert intake.rejected[RejectionReason.UNSIGNED] == 1_000


async def send(peer: ScriptedDispatcher, signer: MessageSigner | None, *, drain: bool) -> None:
    control = Control(vehicle="car-1", orders=(Drain(active=drain),))
    topic = TOPICS.down("car-1", Down.CONTROL)
    await peer.bus.publish(Message(topic, codec.encode_signed(control, signer)))


async def test_a_running_car_takes_the_next_key_and_drops_the_last(
    garage: Garage, keys: Path, signer: MessageSigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "IDENTITY_LOOK_S", 0.01)
    garage.identity = Identity(trust=TrustedKeys(keys), trust_path=keys)
    after = MessageSigner.generate()
    async with garage.both() as (agent, peer):
        await send(peer, None, drain=True)
        await send(peer, after, drain=True)
        await until(lambda: agent.rejected[RejectionReason.UNKNOWN_KEY] == 1)
        assert peer.states[-1].availability is Availability.READY
        await send(peer, signer, drain=True)
        await peer.until(lambda: peer.states[-1].hold is HoldReason.DRAINING)
        (keys / "next.pem").write_bytes(after.public_pem())
        await _tell_until(peer, after, lambda: peer.states[-1].hold is None)
        (keys / "dispatcher.pem").unlink()
        unknown = agent.rejected[RejectionReason.UNKNOWN_KEY]
        gone = lambda: agent.rejected[RejectionReason.UNKNOWN_KEY] > unknown  # noqa: E731 - one use
        await _tell_until(peer, signer, gone)
        assert agent.rejected[RejectionReason.UNSIGNED] == 1


async def _tell_until(
    peer: ScriptedDispatcher, signer: MessageSigner, condition: Callable[[], bool]
) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await send(peer, signer, drain=False)
            await asyncio.sleep(0.01)


# --- renewal ------------------------------------------------------------------------------------


async def test_a_renewed_certificate_means_a_new_connection_without_a_will(
    garage: Garage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "IDENTITY_LOOK_S", 0.01)
    certificate = tmp_path / "identity.pem"
    certificate.write_text("old")
    garage.identity = Identity(certificates=[certificate])
    async with garage.both() as (agent, peer):
        births = len(peer.statuses)
        certificate.write_text("renewed")
        await peer.until(lambda: len(peer.statuses) > births)
        assert agent._bus.counters.reconnects == 1
        assert {type(status).__name__ for status in peer.statuses} == {"Birth"}


def script(path: Path, text: str) -> list[str]:
    path.write_text(text)
    return [sys.executable, str(path)]


async def run_renewals(identity: Identity, condition: Callable[[], bool]) -> list[Any]:
    with capture_logs() as logs:
        task = asyncio.create_task(identity.keep_renewed())
        await until(condition)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    return [line for line in logs if line["event"] == "renewal_failed"]


async def test_a_failed_renewal_is_said_and_tried_again_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RENEWAL_RETRY_FIRST_S", 0.001)
    monkeypatch.setattr(limits, "RENEWAL_RETRY_MAX_S", 0.01)
    command = script(tmp_path / "fails.py", "import sys; sys.exit('no authority in sight')")
    identity = Identity(renew=command)
    logs = await run_renewals(identity, lambda: identity.failed_renewals >= 3)
    assert logs[0]["why"] == "exit code 1: no authority in sight"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["/nowhere/renew"], "FileNotFoundError"),
        ([""], "PermissionError"),
        ([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], "exit code -9"),
        ([sys.executable, "-c", "print('x' * 10**7)\nraise SystemExit(3)"], "exit code 3"),
    ],
)
async def test_whatever_a_renewal_does_the_car_goes_on(command: list[str], says: str) -> None:
    identity = Identity(renew=command)
    logs = await run_renewals(identity, lambda: identity.failed_renewals == 1)
    assert says in logs[0]["why"]


async def test_a_renewal_that_hangs_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RENEWAL_RUN_MAX_S", 0.5)
    command = script(tmp_path / "hangs.py", "import signal\nsignal.pause()")
    identity = Identity(renew=command)
    logs = await run_renewals(identity, lambda: identity.failed_renewals == 1)
    assert "no end within" in logs[0]["why"]


async def test_a_due_certificate_is_renewed_by_the_command_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority.create(tmp_path / "house" / "authority")
    folder = IdentityFolder(tmp_path / "car")
    renew = [sys.executable, "-m", "edge_runtime", "pki", "renew", str(folder.folder), "--if-due"]
    renew += ["--authority", str(tmp_path / "house")]
    sixty_days_ago = dt.datetime.now(dt.UTC) - dt.timedelta(days=61)
    with monkeypatch.context() as then:
        then.setattr(authority_module, "_now", lambda: sixty_days_ago)
        enrol(authority, folder.folder, Grant(Role.CAR, "car-1", 90))
    before = folder.certificate()
    identity = Identity(certificates=[folder.identity], renew=renew)
    assert not identity.look()
    logs = await run_renewals(identity, lambda: folder.certificate() != before)
    assert not logs
    assert identity.look()
    assert not identity.look()
    assert not folder.validity().is_due(dt.datetime.now(dt.UTC))
    # A second car's day: not due is no failure, and changes nothing.
    fresh = folder.certificate()
    process = await asyncio.create_subprocess_exec(*renew)
    assert await process.wait() == 0
    assert folder.certificate() == fresh


async def test_renewals_run_beside_a_working_car_and_end_with_it(
    garage: Garage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RENEWAL_RETRY_FIRST_S", 0.001)
    monkeypatch.setattr(limits, "RENEWAL_RETRY_MAX_S", 0.01)
    garage.identity = Identity(renew=script(tmp_path / "fails.py", "raise SystemExit(1)"))
    async with garage.both() as (_, peer):
        await until(lambda: garage.identity.failed_renewals >= 2)
        await send(peer, None, drain=True)
        await peer.until(lambda: peer.states[-1].hold is HoldReason.DRAINING)


@pytest.mark.parametrize("patience_s", [0, 3_600])
async def test_a_busy_car_keeps_its_connection_until_it_rests_or_has_waited_enough(
    garage: Garage, synthetic: Any, tmp_path: Path, patience_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "IDENTITY_LOOK_S", 0.01)
    monkeypatch.setattr(limits, "RENEWED_QUIET_WAIT_MAX_S", patience_s)
    certificate = tmp_path / "identity.pem"
    certificate.write_text("old")
    garage.identity = Identity(certificates=[certificate])
    endless = synthetic("loop-forever")
    async with garage.both(endless) as (agent, peer):
        offer = unit_offer(endless, [tensor(1)])
        peer.offer(offer)
        await until(lambda: bool(agent.core.work.attempts))
        looks = 0
        look = garage.identity.look

        def counted() -> bool:
            nonlocal looks
            looks += 1
            return look()

        monkeypatch.setattr(garage.identity, "look", counted)
        certificate.write_text("renewed")
        if patience_s:
            await until(lambda: looks >= 5)
            assert agent._bus.counters.reconnects == 0
            peer.order(Cancel(unit=1, fence=offer.fence, reason=CancelReason.JOB_CANCELLED))
        await until(lambda: agent._bus.counters.reconnects == 1)
