"""The certificate authorities of one deployment: a folder that belongs on an offline machine.

    AUTHORITY/cars/       signs cars:      the only authority that the cars' listener trusts
    AUTHORITY/services/   signs the broker and the dispatchers: trusted by cars and by the
                          services' listener
    AUTHORITY/signing/    the dispatcher's Ed25519 keys, newest in force or about to be

Invariants
- A private key of anyone else never comes here: a certificate is made from a request (PKCS #10)
  whose signature proves that the requester has the key. Of a request only the key is believed;
  name, lifetime and usage are this side's decision.
- Two authorities, so that no car's certificate, whatever its name, opens the services' listener.
- A name that means something to MQTT (`+`, `#`, `/`, `$`) or to nobody is never certified.
- What was issued or revoked is a file each, written before the certificate leaves: a crash
  loses no record of a certificate that exists.

Deliberately absent: intermediate authorities, OCSP, certificates that sign certificates.
"""

import contextlib
import datetime as dt
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address
from pathlib import Path
from typing import Final, assert_never

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edge_runtime.contract.limits import CERTIFICATE_DAYS_MAX
from edge_runtime.contract.topics import ID_PATTERN
from edge_runtime.pki.files import (
    PRIVATE_MODE,
    PUBLIC_MODE,
    PkiError,
    PkiRefused,
    new_folder,
    read_file,
    write_file,
)
from edge_runtime.pki.signing import MessageSigner, read_public_keys

_BACKDATED: Final = dt.timedelta(days=2)
"""Certificates begin this much before they are made, short-lived ones a tenth of their life: a car
whose clock is wrong by a day, as after a flat battery, is let in and believes the broker."""
_BACKDATED_PART: Final = 10
_AUTHORITY_DAYS: Final = CERTIFICATE_DAYS_MAX
_HOST_CHARS: Final = 253

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


class Branch(Enum):
    """The two authorities of a deployment."""

    CARS = "cars"
    SERVICES = "services"


class Role(Enum):
    """Who a certificate is for."""

    CAR = "car"
    DISPATCHER = "dispatcher"
    BROKER = "broker"

    @property
    def branch(self) -> Branch:
        """Which authority signs it."""
        return Branch.CARS if self is Role.CAR else Branch.SERVICES


@dataclass(frozen=True, slots=True)
class Grant:
    """What is certified: who, as what, for how many days; `hosts` are a broker's names or IPs."""

    role: Role
    name: str
    days: int
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Issued:
    """One certificate that was issued, as the authority remembers it."""

    name: str
    serial: int
    not_after: dt.datetime
    file: Path
    is_revoked: bool


class Authority:
    """The authorities in a folder. Opening raises PkiError where there are none."""

    def __init__(self, folder: Path, passphrase: bytes | None = None) -> None:
        self.folder = folder
        self._passphrase = passphrase
        if not self.ca_file(Branch.CARS).is_file():
            raise PkiError(f"{folder}: no certificate authority; make one with `pki init`")

    @classmethod
    def create(cls, folder: Path, passphrase: bytes | None = None) -> "Authority":
        """New authorities and a first signing key. Raises PkiError where some are there."""
        new_folder(folder)
        for branch in Branch:
            path = new_folder(folder / branch.value)
            new_folder(path / "issued")
            new_folder(path / "revoked")
            if (path / "ca.pem").exists():
                raise PkiError(f"{path}: holds an authority already; nothing was changed")
            _create_authority(path, branch, passphrase)
        authority = cls(folder, passphrase)
        authority.new_signing_key()
        for branch in Branch:
            authority.write_revocations(branch)
        return authority

    def ca_file(self, branch: Branch) -> Path:
        """The certificate of an authority."""
        return self.folder / branch.value / "ca.pem"

    def crl_file(self, branch: Branch) -> Path:
        """The list of an authority's revoked certificates."""
        return self.folder / branch.value / "crl.pem"

    # --- certificates ---------------------------------------------------------------------

    def issue(self, request: bytes, grant: Grant) -> x509.Certificate:
        """Certify the key of a request (PEM). Raises PkiRefused for a request or name."""
        name, role = require_name(grant.name), grant.role
        if not 1 <= grant.days <= CERTIFICATE_DAYS_MAX:
            raise PkiRefused(f"days must be 1 to {CERTIFICATE_DAYS_MAX}, not {grant.days}")
        key = requested_key(request)
        ca, ca_key = self._load(role.branch)
        now = _now()
        life = dt.timedelta(days=grant.days)
        ends = min(now + life, ca.not_valid_after_utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(ca.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - min(_BACKDATED, life / _BACKDATED_PART))
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([_purpose(role)]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
                critical=False,
            )
        )
        if grant.hosts:
            names = [_host(host) for host in grant.hosts]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(ca_key, hashes.SHA256())
        record = self._records(role.branch, "issued") / f"{name}.{certificate.serial_number:x}.pem"
        write_file(record, _pem(certificate), mode=PUBLIC_MODE)
        return certificate

    def granted(self, current: x509.Certificate, days: int) -> Grant:
        """What a certificate of this authority grants, for a renewal. Raises PkiRefused, PkiError.

        An expired one still says who its owner is; a revoked one says nothing any more.
        """
        name = require_name(common_name(current.subject))
        for branch in Branch:
            known = [
                one for one in self.issued(branch, name) if one.serial == current.serial_number
            ]
            if not known or load_certificate(known[0].file) != current:
                continue
            if known[0].is_revoked:
                raise PkiRefused(f"{name}: its certificate is revoked; enrol it anew")
            return Grant(_role_of(current, branch), name, days, _hosts_of(current))
        raise PkiRefused(f"{name}: its certificate was not issued here")

    def issued(self, branch: Branch, name: str | None = None) -> list[Issued]:
        """What was issued (to `name`, None: to anyone), newest end first. Raises PkiError."""
        revoked = {path.stem for path in self._records(branch, "revoked").glob("*.pem")}
        found = []
        for path in self._records(branch, "issued").glob("*.pem"):
            owner, _, serial = path.stem.rpartition(".")
            if name is not None and owner != name:
                continue
            certificate = load_certificate(path)
            found.append(
                Issued(
                    name=owner,
                    serial=certificate.serial_number,
                    not_after=certificate.not_valid_after_utc,
                    file=path,
                    is_revoked=f"{owner}.{serial}" in revoked,
                )
            )
        return sorted(found, key=lambda one: one.not_after, reverse=True)

    # --- revocation -----------------------------------------------------------------------

    def revoke(self, branch: Branch, name: str) -> list[Issued]:
        """Revoke every certificate of `name` that is not expired; those that were not yet.

        Writes the new list of revoked certificates. Raises PkiError where `name` has none.
        """
        live = [one for one in self.issued(branch, name) if one.not_after > _now()]
        if not live:
            raise PkiError(f"{name}: no certificate of this authority is valid")
        fresh = [one for one in live if not one.is_revoked]
        for one in fresh:
            record = self._records(branch, "revoked") / one.file.name
            write_file(record, read_file(one.file), mode=PUBLIC_MODE)
        # Also where nothing is new: a crash may have come between the record and the list.
        self.write_revocations(branch)
        return fresh

    def write_revocations(self, branch: Branch) -> None:
        """Write the CRL of a branch from what is recorded as revoked.

        It never expires before its authority: a broker refuses everybody while a list is overdue.
        """
        with self._lock():
            ca, ca_key = self._load(branch)
            builder = (
                x509.CertificateRevocationListBuilder()
                .issuer_name(ca.subject)
                .last_update(_now() - _BACKDATED)
                .next_update(ca.not_valid_after_utc)
            )
            for path in sorted(self._records(branch, "revoked").glob("*.pem")):
                builder = builder.add_revoked_certificate(
                    x509.RevokedCertificateBuilder()
                    .serial_number(load_certificate(path).serial_number)
                    .revocation_date(dt.datetime.fromtimestamp(path.stat().st_mtime, dt.UTC))
                    .build()
                )
            crl = builder.sign(ca_key, hashes.SHA256())
            data = crl.public_bytes(serialization.Encoding.PEM)
            write_file(self.crl_file(branch), data, mode=PUBLIC_MODE)

    # --- the dispatcher's signing keys ------------------------------------------------------

    @property
    def signing_folder(self) -> Path:
        """`KEYID.key` and `KEYID.pem` of every signing key that cars are told to trust."""
        return self.folder / "signing"

    def new_signing_key(self) -> str:
        """Make one key more; its id. Cars trust it from their next enrolment or renewal on."""
        folder = new_folder(self.signing_folder)
        signer = MessageSigner.generate()
        signer.save(folder / f"{signer.key_id}.key")
        write_file(folder / f"{signer.key_id}.pem", signer.public_pem(), mode=PUBLIC_MODE)
        return signer.key_id

    def retire_signing_key(self, key_id: str) -> None:
        """Forget a signing key: answers from now on do not name it. Raises PkiError."""
        keys = read_public_keys(self.signing_folder)
        if key_id not in keys:
            raise PkiError(f"{key_id}: no signing key of this authority; it has {', '.join(keys)}")
        if len(keys) == 1:
            raise PkiError(f"{key_id} is the only signing key; make the next one first")
        for suffix in (".pem", ".key"):
            (self.signing_folder / f"{key_id}{suffix}").unlink(missing_ok=True)

    def trusted_keys(self) -> bytes:
        """The public keys that cars are to trust, as PEM. Raises PkiError."""
        read_public_keys(self.signing_folder)
        return b"".join(read_file(path) for path in sorted(self.signing_folder.glob("*.pem")))

    # --- inside -----------------------------------------------------------------------------

    def _records(self, branch: Branch, kind: str) -> Path:
        return self.folder / branch.value / kind

    def _load(self, branch: Branch) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        path = self.folder / branch.value / "ca.key"
        try:
            key = serialization.load_pem_private_key(read_file(path), self._passphrase)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise PkiError(f"{path}: cannot be used; wrong passphrase? ({error})") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise PkiError(f"{path}: not an elliptic curve key")
        return load_certificate(self.ca_file(branch)), key

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """One process at a time writes a list: of two at once, one would miss the other's."""
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, PRIVATE_MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def require_name(name: str) -> str:
    """`name` where it may be certified: it becomes an MQTT user name and part of topics."""
    if not ID_PATTERN.fullmatch(name):
        raise PkiRefused(f"a name must be 1 to 64 of A-Z a-z 0-9 _ -, not {name[:80]!r}")
    return name


def requested_key(request: bytes) -> PublicKey:
    """The public key that a request (PEM) proves to have. Raises PkiRefused."""
    try:
        csr = x509.load_pem_x509_csr(request)
        key = csr.public_key()
        is_proven = csr.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise PkiRefused(f"not a certificate request (PKCS #10, PEM): {error}") from None
    if not is_proven:
        raise PkiRefused("the request's signature is wrong: its sender does not have the key")
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(
        key.curve, ec.SECP256R1 | ec.SECP384R1
    ):
        return key
    raise PkiRefused("the request's key must be EC P-256, EC P-384 or Ed25519")


def requested_name(request: bytes) -> str:
    """The name that a request (PEM) asks for. Raises PkiRefused."""
    try:
        subject = x509.load_pem_x509_csr(request).subject
        return require_name(common_name(subject))
    except (ValueError, TypeError) as error:
        raise PkiRefused(f"not a certificate request (PKCS #10, PEM): {error}") from None


def common_name(subject: x509.Name) -> str:
    """The one common name of a subject. Raises PkiRefused."""
    names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise PkiRefused(f"a subject must have one common name, not {len(names)}")
    return str(names[0].value)


def load_certificate(path: Path) -> x509.Certificate:
    """The first certificate in a PEM file. Raises PkiError."""
    try:
        return x509.load_pem_x509_certificate(read_file(path))
    except ValueError as error:
        raise PkiError(f"{path}: holds no certificate: {error}") from None


def _create_authority(path: Path, branch: Branch, passphrase: bytes | None) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"edge-runtime {branch.value} authority")
    now = _now()
    public = key.public_key()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + dt.timedelta(days=_AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(passphrase)
    # The key first: an authority is there when its certificate is.
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    write_file(path / "ca.key", private, mode=PRIVATE_MODE)
    write_file(path / "ca.pem", _pem(certificate), mode=PUBLIC_MODE)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _purpose(role: Role) -> x509.ObjectIdentifier:
    match role:
        case Role.CAR | Role.DISPATCHER:
            return ExtendedKeyUsageOID.CLIENT_AUTH
        case Role.BROKER:
            return ExtendedKeyUsageOID.SERVER_AUTH
        case _:
            assert_never(role)


def _role_of(certificate: x509.Certificate, branch: Branch) -> Role:
    if branch is Branch.CARS:
        return Role.CAR
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    return Role.BROKER if ExtendedKeyUsageOID.SERVER_AUTH in usage else Role.DISPATCHER


def _hosts_of(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(name.value) for name in names)


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        if not host or len(host) > _HOST_CHARS or not host.isascii() or "/" in host:
            raise PkiRefused(f"{host[:80]!r} is no DNS name or IP address") from None
        return x509.DNSName(host)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC).replace(microsecond=0)
