"""One identity as a folder: a key, the certificate for it, and whom to trust.

    identity.pem       private key, certificate: one file, so that both change at once
    ca.pem             authorities that may have signed the broker's certificate
    trusted-keys/      public Ed25519 keys of the dispatcher (cars only)
    request.key, request.pem   a request that waits for its answer

The other side answers a request with one PEM text: the certificate, then the authorities, then
the keys to trust. Enrolment and renewal are the same exchange.

Invariants
- A private key is made in its folder and never leaves it.
- What is in force is replaced only by an answer that fits the waiting key, is valid now and bears
  the same name; until then, and after any failure, the old identity stays as it is.
"""

import datetime as dt
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edge_runtime.contract.limits import TRUSTED_KEYS_MAX
from edge_runtime.pki.authority import (
    Authority,
    Branch,
    Grant,
    Role,
    common_name,
    load_certificate,
    require_name,
)
from edge_runtime.pki.files import (
    PRIVATE_MODE,
    PUBLIC_MODE,
    PkiError,
    PkiRefused,
    new_folder,
    read_file,
    write_file,
)
from edge_runtime.pki.naming import NAME_HEADING
from edge_runtime.pki.signing import key_id_of, pem_blocks, public_keys_in, public_pem_of

RENEW_AFTER: Final = 2 / 3
"""The part of a certificate's life after which it is renewed: both are valid for the last third."""


@dataclass(frozen=True, slots=True)
class Validity:
    """From when to when a certificate holds, UTC."""

    name: str
    begins: dt.datetime
    ends: dt.datetime

    @property
    def renewal(self) -> dt.datetime:
        """When it is due for renewal."""
        return self.begins + RENEW_AFTER * (self.ends - self.begins)

    def is_due(self, now: dt.datetime) -> bool:
        """Whether two thirds of its life have passed."""
        return now >= self.renewal


@dataclass(frozen=True, slots=True)
class IdentityFolder:
    """The files of one identity."""

    folder: Path

    @property
    def identity(self) -> Path:
        """Private key and certificate."""
        return self.folder / "identity.pem"

    @property
    def ca(self) -> Path:
        """Authorities of the broker."""
        return self.folder / "ca.pem"

    @property
    def trusted_keys(self) -> Path:
        """Folder of the dispatcher's public keys."""
        return self.folder / "trusted-keys"

    @property
    def request_key(self) -> Path:
        """The key of a request that waits."""
        return self.folder / "request.key"

    @property
    def request(self) -> Path:
        """A request that waits."""
        return self.folder / "request.pem"

    # --- our side ---------------------------------------------------------------------------

    def ask(self, name: str) -> bytes:
        """A new key and a request (PEM) for it; an earlier one that waits is given up."""
        require_name(name)
        new_folder(self.folder)
        key = ec.generate_private_key(ec.SECP256R1())
        csr = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .sign(key, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        request = csr.public_bytes(serialization.Encoding.PEM)
        write_file(self.request_key, private, mode=PRIVATE_MODE)
        write_file(self.request, request, mode=PUBLIC_MODE)
        return request

    def accept(self, answer: bytes) -> Validity:
        """Put the answer to the waiting request in force. Raises PkiError, PkiRefused."""
        private = read_file(self.request_key)
        key = serialization.load_pem_private_key(private, None)
        certificates = [der for label, der in pem_blocks(answer) if label == "CERTIFICATE"]
        if not certificates:
            raise PkiRefused("the answer holds no certificate (PEM)")
        try:
            certificate, *authorities = map(x509.load_der_x509_certificate, certificates)
            is_ours = certificate.public_key() == key.public_key()
        except ValueError as error:
            raise PkiRefused(f"the answer's certificates are damaged: {error}") from None
        if not is_ours:
            raise PkiRefused("the answer's certificate is not for the key of the waiting request")
        validity = validity_of(certificate)
        self._check(validity)
        self._trust(authorities, public_keys_in(answer))
        leaf = certificate.public_bytes(serialization.Encoding.PEM)
        heading = f"{NAME_HEADING}{validity.name}\n".encode()
        write_file(self.identity, heading + private + leaf, mode=PRIVATE_MODE)
        for path in (self.request_key, self.request):
            path.unlink(missing_ok=True)
        return validity

    def certificate(self) -> x509.Certificate:
        """The one in force. Raises PkiError."""
        return load_certificate(self.identity)

    def validity(self) -> Validity:
        """Of the certificate in force. Raises PkiError."""
        return validity_of(self.certificate())

    def _check(self, new: Validity) -> None:
        now = dt.datetime.now(dt.UTC)
        if not new.begins <= now < new.ends:
            raise PkiRefused(
                f"the certificate holds from {new.begins} to {new.ends}; it is {now} here"
            )
        asked = common_name(x509.load_pem_x509_csr(read_file(self.request)).subject)
        if new.name != asked:
            raise PkiRefused(f"the certificate is for {new.name!r}, the request for {asked!r}")

    def _trust(self, authorities: list[x509.Certificate], keys: list[bytes]) -> None:
        """Before the certificate: a crash in between leaves what is in force trusted as well."""
        if authorities:
            pem = b"".join(one.public_bytes(serialization.Encoding.PEM) for one in authorities)
            # What cannot be loaded would lock us out.
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode())
            write_file(self.ca, pem, mode=PUBLIC_MODE)
        elif not self.ca.exists():
            raise PkiRefused("the answer names no authority for the broker's certificate")
        if not keys:
            return
        if len(keys) > TRUSTED_KEYS_MAX:
            raise PkiRefused(f"the answer names more than {TRUSTED_KEYS_MAX} keys to trust")
        new_folder(self.trusted_keys)
        named = {f"{key_id_of(key)}.pem": public_pem_of(key) for key in keys}
        for name, pem in named.items():
            write_file(self.trusted_keys / name, pem, mode=PUBLIC_MODE)
        for path in self.trusted_keys.glob("*.pem"):
            if path.name not in named:
                path.unlink()


def validity_of(certificate: x509.Certificate) -> Validity:
    """Name and times of a certificate."""
    return Validity(
        common_name(certificate.subject),
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
    )


# --- the other side -----------------------------------------------------------------------------


def answer_request(authority: Authority, request: bytes, grant: Grant) -> bytes:
    """The answer to a request: certificate, authorities, and for a car the keys to trust."""
    certificate = authority.issue(request, grant)
    answer = certificate.public_bytes(serialization.Encoding.PEM)
    answer += read_file(authority.ca_file(Branch.SERVICES))
    if grant.role is Role.CAR:
        answer += authority.trusted_keys()
    return answer


def new_identity(path: Path) -> IdentityFolder:
    """A folder for a new identity. Raises PkiError where it holds one."""
    found = IdentityFolder(path)
    if found.identity.exists():
        raise PkiError(f"{path}: holds an identity already; renew it with `pki renew`")
    return found
