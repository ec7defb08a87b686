"""Accounts of tenants at the broker: a password and a block of the ACL for each user.

A tenant's first user is `tenant-NAME`; another of its readers is `tenant-NAME.READER`, for the
broker has one connection of a user at a time. All of them may do the same: read the tenant's topics
and the fleet's aggregates, and write its requests.

Invariants
- A user has its block before its password, and loses them in the other order: at no moment may
  somebody in who is not known to the ACL.
- Passwords are made here, of 192 random bits, and shown once; the file has their hash.
- Both files are replaced whole. Two commands at once wait for each other.

Deliberately absent: telling the broker. It reads both files again on SIGHUP.
"""

import base64
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from edge_runtime.contract import limits
from edge_runtime.contract.topics import DEFAULT_NAMESPACE, Topics, require_id
from edge_runtime.pki.broker_files import ACL_TENANTS, TENANT_PASSWORDS
from edge_runtime.pki.files import PRIVATE_MODE, PUBLIC_MODE, PkiError, write_file

_TOPICS: Final = Topics(DEFAULT_NAMESPACE)
_PASSWORD_BYTES: Final = 24
_SALT_BYTES: Final = 12
_ITERATIONS: Final = 101
"""Mosquitto's own. A slow hash protects guessable passwords; these are not, and the broker pays."""


class Account(NamedTuple):
    """What one of a tenant's readers logs in with."""

    user: str
    password: str


def user_of(tenant: str, reader: str | None = None) -> str:
    """A tenant's user, or that of another of its readers. Raises ConfigError."""
    user = f"tenant-{require_id('tenant', tenant)}"
    return user if reader is None else f"{user}.{require_id('--reader', reader)}"


def acl_block(user: str, tenant: str) -> str:
    """What a tenant's user may do."""
    return (
        f"user {user}\n"
        f"topic read {_TOPICS.namespace}/1/t/{tenant}/#\n"
        f"topic write {_TOPICS.tenant_request(tenant)}\n"
        f"topic read {_TOPICS.fleet('#')}\n"
    )


def add_account(folder: Path, tenant: str, reader: str | None = None) -> Account:
    """Let a tenant's reader in, or give it a new password, in the broker's files of `folder`.

    Raises ConfigError for a name that is no id, PkiError.
    """
    user = user_of(tenant, reader)
    account = Account(user, secrets.token_urlsafe(_PASSWORD_BYTES))
    with _alone(folder):
        acl, passwords = _read(folder)
        if len(passwords) >= limits.BROKER_TENANTS_MAX and user not in passwords:
            raise PkiError(f"{folder}: has {limits.BROKER_TENANTS_MAX} tenants' users, no more fit")
        acl[user] = acl_block(user, tenant)
        passwords[user] = _hashed(account.password)
        _write_acl(folder, acl)
        _write_passwords(folder, passwords)
    return account


def remove_account(folder: Path, tenant: str, reader: str | None = None) -> list[str]:
    """Let a tenant's reader, or with none all of the tenant's users, in no more; their names.

    Raises ConfigError for a name that is no id, PkiError also where there is no such user.
    """
    user = user_of(tenant, reader)
    with _alone(folder):
        acl, passwords = _read(folder)
        known = {*acl, *passwords} - {_HEAD}
        gone = [
            name
            for name in sorted(known)
            if name == user or (reader is None and name.startswith(f"{user}."))
        ]
        if not gone:
            raise PkiError(f"{folder}: there is no user {user}")
        for name in gone:
            acl.pop(name, None)
            passwords.pop(name, None)
        _write_passwords(folder, passwords)
        _write_acl(folder, acl)
    return gone


def accounts(folder: Path) -> list[str]:
    """The users that may log in, in order. Raises PkiError."""
    return sorted(_read(folder)[1])


# --- the two files ------------------------------------------------------------------------------

_HEAD: Final = ""


def _read(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Blocks of the ACL by user, what stands before them under ""; hashes by user."""
    blocks: dict[str, str] = {_HEAD: ""}
    user = _HEAD
    for line in _text(folder / ACL_TENANTS).splitlines(keepends=True):
        word, _, name = line.strip().partition(" ")
        if word == "user":
            user = name.strip()
            blocks[user] = ""
        blocks[user] += line
    lines = _text(folder / TENANT_PASSWORDS).splitlines()
    passwords = dict(line.split(":", 1) for line in lines if ":" in line)
    return blocks, passwords


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(limits.BROKER_TENANT_FILE_MAX_BYTES + 1)
    except OSError as error:
        raise PkiError(f"{path}: {error.strerror}") from None
    if len(data) > limits.BROKER_TENANT_FILE_MAX_BYTES:
        raise PkiError(f"{path}: larger than {limits.BROKER_TENANT_FILE_MAX_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise PkiError(f"{path}: not text") from None


def _write_acl(folder: Path, blocks: dict[str, str]) -> None:
    text = "\n".join(block.rstrip("\n") + "\n" for block in blocks.values() if block.strip())
    _write(folder / ACL_TENANTS, text, PUBLIC_MODE)


def _write_passwords(folder: Path, passwords: dict[str, str]) -> None:
    text = "".join(f"{user}:{hashed}\n" for user, hashed in passwords.items())
    _write(folder / TENANT_PASSWORDS, text, PRIVATE_MODE)


def _write(path: Path, text: str, mode: int) -> None:
    try:
        owner = path.stat()

        def keep_owner(descriptor: int) -> None:
            if os.geteuid() == 0:
                os.fchown(descriptor, owner.st_uid, owner.st_gid)

        write_file(path, text.encode(), mode=mode, prepare=keep_owner)
    except OSError as error:
        raise PkiError(f"{path}: {error.strerror}") from None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder: whoever else changes its accounts waits."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise PkiError(f"{folder}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _hashed(password: str) -> str:
    """As `mosquitto_passwd` of Mosquitto 2 writes it: $7$, PBKDF2 with SHA-512."""
    salt = secrets.token_bytes(_SALT_BYTES)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS)
    encoded = (base64.b64encode(part).decode() for part in (salt, digest))
    return "$".join(("", "7", str(_ITERATIONS), *encoded))
