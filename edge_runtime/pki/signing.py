"""Ed25519 keys: the dispatcher signs every `dn` message, cars verify before they look inside.

A private key is a PKCS #8 PEM file, a public key a SubjectPublicKeyInfo PEM file, both as
RFC 8410 says and as OpenSSL reads and writes them. A key's id is the first 8 bytes of SHA-256
of the 32 bytes of the public key, in hex.

Invariants
- The signature is over the bytes as they travel: nothing is decoded before it is verified.
- The id only picks the key. A wrong id is refused, never worked around by trying other keys.

Deliberately absent: passphrases. Whoever signs thousands of messages a second holds its key in
the clear; the file belongs to its user alone (0600), or to systemd's `LoadCredential=`.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Self

import structlog
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edge_runtime.contract.errors import RejectionReason
from edge_runtime.contract.limits import TRUSTED_KEYS_MAX
from edge_runtime.contract.messages import Signed
from edge_runtime.pki.files import PRIVATE_MODE, PkiError, PkiRefused, read_file, write_file

_KEY_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64
_KEY_ID_BYTES: Final = 8
_PRIVATE_DER: Final = bytes.fromhex("302e020100300506032b657004220420")
"""Everything of a PKCS #8 Ed25519 key but the key (RFC 8410 §7, without attributes)."""
_PUBLIC_DER: Final = bytes.fromhex("302a300506032b6570032100")
"""Everything of a SubjectPublicKeyInfo of Ed25519 but the key (RFC 8410 §4)."""
_EDGE: Final = re.compile(rb"-----(BEGIN|END) ([A-Z0-9 ]{1,64})-----")

_log = structlog.get_logger()


class MessageSigner:
    """A dispatcher's private key; a `Signer` of the codec."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key = key.public_key().public_bytes_raw()
        self.key_id = key_id_of(self.public_key)

    @classmethod
    def generate(cls) -> Self:
        """A new key, from the system's random source."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> Self:
        """The key in a PKCS #8 PEM file. Raises PkiError."""
        for label, der in pem_blocks(read_file(path)):
            if label == "PRIVATE KEY" and der[:-_KEY_BYTES] == _PRIVATE_DER:
                return cls(Ed25519PrivateKey.from_private_bytes(der[-_KEY_BYTES:]))
        raise PkiError(f"{path}: holds no unencrypted Ed25519 private key (PKCS #8, PEM)")

    def save(self, path: Path) -> None:
        """Write the private key, readable by its owner only. Raises OSError."""
        der = _PRIVATE_DER + self._key.private_bytes_raw()
        write_file(path, _pem("PRIVATE KEY", der), mode=PRIVATE_MODE)

    def public_pem(self) -> bytes:
        """What a car trusts, as PEM."""
        return public_pem_of(self.public_key)

    def sign(self, body: bytes) -> bytes:
        """The signature of `body`, 64 bytes."""
        return self._key.sign(body)


class TrustedKeys:
    """The public keys a car believes; two at once while the dispatcher's key is changed.

    `path` is a PEM file or a folder of `*.pem`. What cannot be read at start raises PkiError;
    later the keys read last stay in force.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: Mapping[str, Ed25519PublicKey] = read_public_keys(path)

    @property
    def key_ids(self) -> list[str]:
        """The ids of the trusted keys."""
        return sorted(self._keys)

    def reload(self) -> None:
        """Read the keys again; where that fails, go on with those that are known."""
        try:
            keys = read_public_keys(self._path)
        except (PkiError, PkiRefused) as error:
            _log.warning("trusted_keys_unreadable", why=str(error), kept=self.key_ids)
            return
        if keys.keys() != self._keys.keys():
            self._keys = keys
            _log.info("trusted_keys_changed", key_ids=self.key_ids)

    def refusal(self, envelope: Signed) -> RejectionReason | None:
        """Why an envelope is not believed; None where a trusted key signed its body."""
        if not envelope.key_id and not envelope.signature:
            return RejectionReason.UNSIGNED
        key = self._keys.get(envelope.key_id)
        if key is None:
            return RejectionReason.UNKNOWN_KEY
        if len(envelope.signature) != _SIGNATURE_BYTES:
            return RejectionReason.BAD_SIGNATURE
        try:
            key.verify(envelope.signature, envelope.body)
        except InvalidSignature:
            return RejectionReason.BAD_SIGNATURE
        return None


def key_id_of(public_key: bytes) -> str:
    """First 8 bytes of SHA-256 of a public key, in hex."""
    return hashlib.sha256(public_key).digest()[:_KEY_ID_BYTES].hex()


def public_pem_of(public_key: bytes) -> bytes:
    """A public key as PEM."""
    return _pem("PUBLIC KEY", _PUBLIC_DER + public_key)


def read_public_keys(path: Path) -> dict[str, Ed25519PublicKey]:
    """Key id -> key of every public key in a PEM file or a folder of `*.pem`. Raises PkiError."""
    try:
        files = sorted(path.glob("*.pem")) if path.is_dir() else [path]
    except OSError as error:
        raise PkiError(f"{path}: {error.strerror}") from None
    keys: dict[str, Ed25519PublicKey] = {}
    for file in files:
        found = public_keys_in(read_file(file))
        if not found:
            raise PkiError(f"{file}: holds no Ed25519 public key (PEM)")
        keys.update({key_id_of(key): Ed25519PublicKey.from_public_bytes(key) for key in found})
        if len(keys) > TRUSTED_KEYS_MAX:
            raise PkiError(f"{path}: more than {TRUSTED_KEYS_MAX} trusted keys")
    if not keys:
        raise PkiError(f"{path}: holds no trusted key (*.pem)")
    return keys


def public_keys_in(pem: bytes) -> list[bytes]:
    """The Ed25519 public keys among the blocks of a PEM text. Raises PkiRefused for broken PEM."""
    return [
        der[-_KEY_BYTES:]
        for label, der in pem_blocks(pem)
        if label == "PUBLIC KEY" and der[:-_KEY_BYTES] == _PUBLIC_DER
    ]


def pem_blocks(pem: bytes) -> Iterator[tuple[str, bytes]]:
    """(label, bytes) of every block of a PEM text. Raises PkiRefused for a block of no base64.

    Text outside blocks, and a block without its end, is passed over. Takes time in proportion.
    """
    label: bytes | None = None
    rows: list[bytes] = []
    for line in pem.splitlines():
        edge = _EDGE.fullmatch(line.strip())
        if edge is None:
            rows.append(line.strip())
        elif edge[1] == b"BEGIN":
            label, rows = edge[2], []
        elif label is not None and edge[2] == label:
            yield label.decode(), _from_base64(label, b"".join(rows))
            label = None


def _from_base64(label: bytes, text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise PkiRefused(f"{label.decode()}: not valid PEM: {error}") from None


def _pem(label: str, der: bytes) -> bytes:
    lines = base64.b64encode(der).decode()
    rows = "\n".join(lines[start : start + 64] for start in range(0, len(lines), 64))
    return f"-----BEGIN {label}-----\n{rows}\n-----END {label}-----\n".encode()
