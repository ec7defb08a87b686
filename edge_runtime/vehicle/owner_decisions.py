"""What the owner decided by command: consent and pause, in a small durable file of its own.

Invariants
- The file is `owner.json` in the state folder: one line of JSON and one of its SHA-256. It is
  replaced whole: written aside, synced, renamed, the folder synced. So is every change, under a
  lock that two commands at once wait for.
- A file that cannot be read, is damaged, or says what this version does not know, is no consent.
- A withdrawal outlives everything but a newer consent by command: no policy file takes it back.
  In the other direction the policy counts: a withdrawal in it, under a higher version, stands.
- On a disk with no room left a withdrawal empties the file, which is no consent either.

Deliberately absent: who may decide. Whoever may write in the state folder is the owner.
"""

import contextlib
import datetime as dt
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from edge_runtime.contract import limits
from edge_runtime.contract.errors import LocalError
from edge_runtime.contract.reasons import HoldReason
from edge_runtime.pki.files import sync_path, write_file
from edge_runtime.vehicle.policy import Consent, OwnerPolicy, PolicyError, read_small_file

DECISIONS_FILE: Final = "owner.json"
_LOCK_FILE: Final = "owner.lock"
_FOLDER_MODE: Final = 0o700
_FILE_MODE: Final = 0o600


class DecisionError(LocalError):
    """A decision could not be written; the message says which file and why."""


class Decisions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was decided by command; None leaves it to the policy file."""

    paused: bool | None = None
    consent: Consent | None = None


def decisions_path(state_dir: Path) -> Path:
    """Where the decisions of the car with this state folder are."""
    return state_dir / DECISIONS_FILE


def load_decisions(path: Path) -> Decisions:
    """Read the decisions; a missing file is none. Raises `PolicyError` where it is damaged."""
    try:
        text = read_small_file(path, limits.OWNER_DECISIONS_MAX_BYTES)
    except FileNotFoundError:
        return Decisions()
    except OSError as error:
        raise _damaged(path, error.strerror or "it cannot be read") from None
    if len(text) > limits.OWNER_DECISIONS_MAX_BYTES:
        raise _damaged(path, f"it is over {limits.OWNER_DECISIONS_MAX_BYTES} bytes")
    body, newline, check = text.partition(b"\n")
    if not newline or check.strip().decode("ascii", "replace") != _check_of(body):
        raise _damaged(path, "its check does not fit")
    try:
        return msgspec.json.decode(body, type=Decisions)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(path, str(error)) from None


def apply_decisions(policy: OwnerPolicy, decisions: Decisions) -> OwnerPolicy:
    """The policy with what was decided by command."""
    paused = policy.paused if decisions.paused is None else decisions.paused
    consent, written = decisions.consent or policy.consent, policy.consent
    if not written.given and written.version > consent.version:
        consent = written
    return msgspec.structs.replace(policy, paused=paused, consent=consent)


# --- deciding -----------------------------------------------------------------------------------


def give_consent(
    state_dir: Path, policy: OwnerPolicy | None, today: dt.date, *, given: bool
) -> Consent:
    """Give or withdraw consent, under the next version. `policy` is the file's, where it is right.

    A damaged file is replaced: whoever decides anew has decided. Raises `DecisionError`.
    """

    def change(held: Decisions) -> Decisions:
        versions = [policy.consent.version if policy else 0]
        versions += [held.consent.version if held.consent else 0]
        consent = Consent(given=given, version=max(versions) + 1, date=today)
        return msgspec.structs.replace(held, consent=consent)

    decided = _change(state_dir, change, is_withdrawal=not given).consent
    return decided or Consent()


def set_paused(state_dir: Path, policy: OwnerPolicy | None, *, paused: bool) -> None:
    """Pause or resume. A resume overrules the policy file only where that says to pause.

    Raises `DecisionError`; `PolicyError` where the file is damaged: it may hold a withdrawal.
    """
    overrules = paused or (policy is not None and policy.paused)

    def change(held: Decisions) -> Decisions:
        return msgspec.structs.replace(held, paused=paused if overrules else None)

    load_decisions(decisions_path(state_dir))
    _change(state_dir, change, is_withdrawal=False)


def _change(
    state_dir: Path, change: Callable[[Decisions], Decisions], *, is_withdrawal: bool
) -> Decisions:
    path = decisions_path(state_dir)
    try:
        state_dir.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        with _locked(state_dir):
            try:
                held = load_decisions(path)
            except PolicyError:
                held = Decisions()
            decided = change(held)
            _replace(path, decided)
            return decided
    except OSError as error:
        message = f"{path}: {error.strerror}; nothing was decided"
        if is_withdrawal and _empty(path):
            message = (
                f"{path}: {error.strerror}; the file was emptied instead, which is no consent. "
                "Withdraw again when there is room"
            )
        raise DecisionError(message) from error


@contextlib.contextmanager
def _locked(state_dir: Path) -> Iterator[None]:
    """One change at a time; the lock ends with its process."""
    lock = os.open(state_dir / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
    try:
        _belong_to_folder(lock, state_dir)
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _replace(path: Path, decisions: Decisions) -> None:
    body = msgspec.json.encode(decisions)
    text = body + b"\n" + _check_of(body).encode() + b"\n"
    write_file(
        path, text, mode=_FILE_MODE, prepare=lambda file: _belong_to_folder(file, path.parent)
    )


def _empty(path: Path) -> bool:
    """Make the file one that is no consent, in place; whether that is on disk."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _FILE_MODE)
        try:
            os.fsync(file)
        finally:
            os.close(file)
        sync_path(path.parent)
    except OSError:
        return False
    return True


def _belong_to_folder(file: int, folder: Path) -> None:
    """What root writes must be readable for the account that the service runs under."""
    if os.geteuid() == 0:
        owner = folder.stat()
        os.fchown(file, owner.st_uid, owner.st_gid)


def _check_of(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _damaged(path: Path, why: str) -> PolicyError:
    return PolicyError(
        HoldReason.CONSENT_MISSING,
        f"{path}: {why}; what the owner decided is lost, so no consent: "
        "edge-runtime owner consent, or withdraw",
    )
