"""Consent and pause by command: durable, whole, one at a time; damage is no consent."""

import datetime as dt
import errno
import multiprocessing
import os
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.contract.reasons import HoldReason
from edge_runtime.vehicle import owner_decisions
from edge_runtime.vehicle.owner_decisions import (
    DecisionError,
    Decisions,
    apply_decisions,
    decisions_path,
    give_consent,
    load_decisions,
    set_paused,
)
from edge_runtime.vehicle.policy import Consent, OwnerPolicy, PolicyError
from edge_runtime.vehicle.policy_file import PolicyFile

TODAY = dt.date(2026, 11, 22)
GIVEN = OwnerPolicy(consent=Consent(given=True, version=3))


def held(state_dir: Path) -> Decisions:
    return load_decisions(decisions_path(state_dir))


def test_without_a_file_the_policy_decides(tmp_path: Path) -> None:
    assert apply_decisions(GIVEN, held(tmp_path)) == GIVEN


def test_a_decision_has_the_next_version_and_its_day(tmp_path: Path) -> None:
    first = give_consent(tmp_path, GIVEN, TODAY, given=False)
    assert first == Consent(given=False, version=4, date=TODAY)
    assert held(tmp_path).consent == first
    assert give_consent(tmp_path, None, TODAY, given=True).version == 5


@pytest.mark.parametrize(
    ("written", "decided", "given"),
    [
        (Consent(given=True, version=9), Consent(given=False, version=1), False),
        (Consent(given=False, version=1), Consent(given=True, version=2), True),
        (Consent(given=False, version=3), Consent(given=True, version=2), False),
        (Consent(), Consent(given=True, version=1), True),
    ],
)
def test_no_file_takes_a_withdrawal_back_and_a_newer_one_in_it_stands(
    written: Consent, decided: Consent, *, given: bool
) -> None:
    policy = apply_decisions(OwnerPolicy(consent=written), Decisions(consent=decided))
    assert policy.consent.given is given


def test_a_pause_overrules_and_a_resume_leaves_it_to_the_policy_again(tmp_path: Path) -> None:
    set_paused(tmp_path, GIVEN, paused=True)
    assert apply_decisions(GIVEN, held(tmp_path)).paused
    set_paused(tmp_path, GIVEN, paused=False)
    assert held(tmp_path).paused is None
    paused = msgspec.structs.replace(GIVEN, paused=True)
    set_paused(tmp_path, paused, paused=False)
    assert not apply_decisions(paused, held(tmp_path)).paused


def test_pausing_keeps_a_withdrawal(tmp_path: Path) -> None:
    give_consent(tmp_path, GIVEN, TODAY, given=False)
    set_paused(tmp_path, GIVEN, paused=True)
    set_paused(tmp_path, GIVEN, paused=False)
    assert held(tmp_path).consent == Consent(given=False, version=4, date=TODAY)


def test_the_file_is_the_owners_alone(tmp_path: Path) -> None:
    give_consent(tmp_path / "new", GIVEN, TODAY, given=True)
    assert decisions_path(tmp_path / "new").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "owner.json",
        "owner.lock",
    ]


@settings(max_examples=200, deadline=None)
@given(
    damage=st.one_of(
        st.tuples(st.just("cut"), st.integers(0, 1_000), st.just(0)),
        st.tuples(st.just("flip"), st.integers(0, 1_000), st.integers(1, 255)),
        st.tuples(st.just("add"), st.integers(1, 10_000), st.just(0)),
    )
)
def test_whatever_is_wrong_with_the_file_it_is_no_consent(
    tmp_path_factory: pytest.TempPathFactory, damage: tuple[str, int, int]
) -> None:
    folder = tmp_path_factory.mktemp("state")
    give_consent(folder, GIVEN, TODAY, given=True)
    path = decisions_path(folder)
    whole = path.read_bytes()
    text = bytearray(whole)
    kind, at, by = damage
    if kind == "cut":
        del text[at % len(text) :]
    elif kind == "flip":
        text[at % len(text)] ^= by
    else:
        text += b"\n" * at + b"x"
    path.write_bytes(text)
    if path.read_bytes().strip() == whole.strip():
        return  # the last end of line carries no meaning
    with pytest.raises(PolicyError) as raised:
        load_decisions(path)
    assert raised.value.hold is HoldReason.CONSENT_MISSING
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_no_consent(tmp_path: Path, make: object) -> None:
    assert callable(make)
    make(decisions_path(tmp_path))
    with pytest.raises(PolicyError) as raised:
        held(tmp_path)
    assert raised.value.hold is HoldReason.CONSENT_MISSING


def test_a_damaged_file_is_not_resumed_but_may_be_decided_anew(tmp_path: Path) -> None:
    decisions_path(tmp_path).write_bytes(b"{")
    with pytest.raises(PolicyError):
        set_paused(tmp_path, GIVEN, paused=False)
    assert give_consent(tmp_path, GIVEN, TODAY, given=True).given


def test_a_full_disk_keeps_the_old_decision_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_consent(tmp_path, GIVEN, TODAY, given=True)

    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(owner_decisions.os, "fsync", full)
    with pytest.raises(DecisionError, match="No space left on device; nothing was decided"):
        set_paused(tmp_path, GIVEN, paused=True)
    assert held(tmp_path) == Decisions(consent=Consent(given=True, version=4, date=TODAY))
    assert not list(tmp_path.glob(".owner.json.*"))


def test_a_withdrawal_on_a_full_disk_empties_the_file_which_is_no_consent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_consent(tmp_path, GIVEN, TODAY, given=True)

    def full(*_: object, **__: object) -> tuple[int, str]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "mkstemp", full)
    with pytest.raises(DecisionError, match="was emptied instead, which is no consent"):
        give_consent(tmp_path, GIVEN, TODAY, given=False)
    with pytest.raises(PolicyError) as raised:
        held(tmp_path)
    assert raised.value.hold is HoldReason.CONSENT_MISSING


def decide_often(folder: str, times: int) -> None:
    for number in range(times):
        give_consent(Path(folder), None, TODAY, given=bool(number % 2))


def test_two_commands_at_once_wait_for_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    deciders = [context.Process(target=decide_often, args=(str(tmp_path), 20)) for _ in range(3)]
    for decider in deciders:
        decider.start()
    for decider in deciders:
        decider.join(60)
        assert decider.exitcode == 0
    consent = held(tmp_path).consent
    assert consent is not None
    assert consent.version == 60


# --- the policy file beside it ------------------------------------------------------------------


def reader(tmp_path: Path, text: str) -> PolicyFile:
    (tmp_path / "policy.toml").write_text(text)
    return PolicyFile(tmp_path / "policy.toml", decisions_path(tmp_path))


def test_a_decision_is_a_change_of_the_policy(tmp_path: Path) -> None:
    file = reader(tmp_path, "[consent]\ngiven = true\nversion = 1\n")
    policy = file.read()
    assert isinstance(policy, OwnerPolicy)
    assert policy.consent.given
    assert file.changed() is None
    give_consent(tmp_path, policy, TODAY, given=False)
    policy = file.changed()
    assert isinstance(policy, OwnerPolicy)
    assert not policy.consent.given
    assert file.changed() is None


@pytest.mark.parametrize("text", ["= broken", "paused = 3"])
def test_a_withdrawal_is_one_whatever_the_policy_file_says(tmp_path: Path, text: str) -> None:
    file = reader(tmp_path, text)
    assert file.read() is HoldReason.POLICY_INVALID
    give_consent(tmp_path, None, TODAY, given=False)
    assert file.changed() is HoldReason.CONSENT_WITHDRAWN
    (tmp_path / "policy.toml").unlink()
    assert file.changed() is HoldReason.CONSENT_WITHDRAWN
    assert file.trouble is not None


def test_damaged_decisions_are_no_consent_whatever_the_policy_says(tmp_path: Path) -> None:
    file = reader(tmp_path, "[consent]\ngiven = true\nversion = 1\n")
    decisions_path(tmp_path).write_bytes(b"\x00" * 100)
    assert file.read() is HoldReason.CONSENT_MISSING
    assert file.trouble is not None
    assert "what the owner decided is lost" in file.trouble


@settings(max_examples=100, deadline=None)
@given(cut=st.integers(0, 400))
def test_a_policy_that_is_being_written_is_no_work_until_it_is_whole(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    """Every beginning of a file is read: none of them crashes, none gives more than the whole."""
    whole = (
        "dwell_s = 5\n[charge]\nstart_percent = 70\nstop_percent = 65\n"
        "[[schedule]]\nstart = '22:00'\nend = '06:00'\n[consent]\ngiven = true\nversion = 1\n"
    )
    folder = tmp_path_factory.mktemp("car")
    file = reader(folder, whole[: cut % len(whole)])
    policy = file.read()
    if isinstance(policy, OwnerPolicy):
        assert not policy.consent.given or policy.consent.version in {0, 1}
        if policy.consent.given:
            assert policy.charge.start_percent == 70
            assert policy.schedule
    with (folder / "policy.toml").open("w") as writer:
        writer.write(whole)
    policy = file.changed()
    assert isinstance(policy, OwnerPolicy)
    assert policy.consent.given
