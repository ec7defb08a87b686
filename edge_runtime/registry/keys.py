"""The keys that sign a model repository: Ed25519, one file each, named by role and key id.

Invariants
- A private key is never written without a passphrase unless its role is online (snapshot and
  timestamp, which a machine signs alone), and never readable by anybody but its owner.
- Only files of the role in question are opened; the passphrase is asked for when the first
  encrypted one is.

A file is `ROLE.ABCDEF12.pem` (PKCS 8) with the public half as `.pub` beside it. Keys may lie in
several folders, such as one memory stick for each root key. Deliberately absent: hardware tokens.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, Key, SSlibKey

from edge_runtime.contract import limits
from edge_runtime.contract.errors import ConfigError, LocalError
from edge_runtime.pki.files import PRIVATE_MODE, PUBLIC_MODE, new_folder, write_file

ONLINE_ROLES: Final = frozenset({"snapshot", "timestamp"})
_NAMED_DIGITS: Final = 8

AskPassphrase = Callable[[], bytes]


class KeyProblem(LocalError):  # noqa: N818 - named for what it is
    """A key is missing, cannot be opened, or is not one of the role's; the message names it."""


class KeyRing:
    """The private keys in some folders; new ones go to the first.

    `ask` gives the passphrase of encrypted files; it is called once, when one is needed.
    """

    def __init__(self, folders: Sequence[Path], ask: AskPassphrase) -> None:
        if not folders:
            raise ConfigError("a folder of keys is needed")
        self._folders = tuple(folders)
        self._ask = ask
        self._passphrase: bytes | None = None

    def __repr__(self) -> str:
        return f"<KeyRing {', '.join(map(str, self._folders))}>"

    def generate(self, role: str) -> CryptoSigner:
        """Make a key for `role` and write it down. Raises `KeyProblem` or `OSError`."""
        private = Ed25519PrivateKey.generate()
        signer = CryptoSigner(private, SSlibKey.from_crypto(private.public_key()))
        encryption: KeySerializationEncryption = NoEncryption()
        if role not in ONLINE_ROLES:
            encryption = BestAvailableEncryption(self._secret())
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
        path = self._path(new_folder(self._folders[0]), role, signer.public_key.keyid)
        write_file(path, pem, mode=PRIVATE_MODE)
        public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        write_file(path.with_suffix(".pub"), public, mode=PUBLIC_MODE)
        return signer

    def signers(self, role: str, keys: Iterable[Key]) -> list[CryptoSigner]:
        """Those of the role's `keys` whose private half is at hand."""
        found = []
        for key in keys:
            paths = (self._path(folder, role, key.keyid) for folder in self._folders)
            path = next((path for path in paths if path.is_file()), None)
            if path is not None:
                found.append(self._open(path, key))
        return found

    @staticmethod
    def _path(folder: Path, role: str, keyid: str) -> Path:
        return folder / f"{role}.{keyid[:_NAMED_DIGITS]}.pem"

    def _secret(self) -> bytes:
        if self._passphrase is None:
            self._passphrase = self._ask()
            if not self._passphrase:
                raise KeyProblem("an offline key needs a passphrase, and none was given")
        return self._passphrase

    def _open(self, path: Path, key: Key) -> CryptoSigner:
        pem = _read(path)
        try:
            try:
                private = load_pem_private_key(pem, None)
            except TypeError:  # it is encrypted
                private = load_pem_private_key(pem, self._secret())
        except ValueError:
            raise KeyProblem(f"{path}: wrong passphrase, or no key in PEM form") from None
        if not isinstance(private, Ed25519PrivateKey):
            raise KeyProblem(f"{path}: not an Ed25519 key")
        signer = CryptoSigner(private, SSlibKey.from_crypto(private.public_key()))
        if signer.public_key.keyid != key.keyid:
            raise KeyProblem(f"{path}: the key is not the one that its name says")
        return signer


def read_public_key(path: Path) -> SSlibKey:
    """A publisher's public key, PEM. Raises `KeyProblem`."""
    try:
        public = load_pem_public_key(_read(path))
    except ValueError:
        raise KeyProblem(f"{path}: no public key in PEM form") from None
    if not isinstance(public, Ed25519PublicKey):
        raise KeyProblem(f"{path}: not an Ed25519 key")
    return SSlibKey.from_crypto(public)


def require_signers(
    role: str, ring: KeyRing, keys: Mapping[str, Key], threshold: int
) -> list[CryptoSigner]:
    """Enough of the role's private keys to sign for it. Raises `KeyProblem`."""
    signers = ring.signers(role, keys.values())
    if len(signers) < threshold:
        names = ", ".join(f"{role}.{keyid[:_NAMED_DIGITS]}.pem" for keyid in keys)
        raise KeyProblem(
            f"{role} needs {threshold} of the keys {names}; {len(signers)} found in {ring!r}"
        )
    return signers


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limits.KEY_FILE_MAX_BYTES + 1)
    except OSError as error:
        raise KeyProblem(f"{path}: {error.strerror}") from None
    if len(data) > limits.KEY_FILE_MAX_BYTES:
        raise KeyProblem(f"{path}: over {limits.KEY_FILE_MAX_BYTES} bytes")
    return data
