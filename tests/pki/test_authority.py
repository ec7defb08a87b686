"""Enrolment, renewal and revocation as an exchange of files; the broker's part is in tests/bus."""

import datetime as dt
import os
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from edge_runtime.contract import limits
from edge_runtime.pki import identity as identity_module
from edge_runtime.pki.authority import Authority, Branch, Grant, Role, requested_name
from edge_runtime.pki.files import PkiError, PkiRefused, write_file
from edge_runtime.pki.house import enrol, renew_here
from edge_runtime.pki.identity import IdentityFolder, Validity, answer_request, new_identity
from edge_runtime.pki.naming import name_in

CAR = Grant(Role.CAR, "car-1", 90)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "authority")


@pytest.fixture
def car(tmp_path: Path, authority: Authority) -> IdentityFolder:
    enrol(authority, tmp_path / "car", CAR)
    return IdentityFolder(tmp_path / "car")


def csr(name: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_enrolment_by_request_never_moves_the_key(tmp_path: Path, authority: Authority) -> None:
    car = new_identity(tmp_path / "car")
    request = car.ask("car-1")
    assert b"PRIVATE" not in request
    answer = answer_request(authority, request, Grant(Role.CAR, requested_name(request), 90))
    assert b"PRIVATE" not in answer
    validity = car.accept(answer)
    assert (validity.name, name_in(car.identity)) == ("car-1", "car-1")
    assert 89 <= (validity.ends - dt.datetime.now(dt.UTC)).days <= 90
    private = [
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and b"PRIVATE KEY" in path.read_bytes()
    ]
    assert {path.relative_to(tmp_path).parts[0] for path in private} == {"authority", "car"}
    assert {path.name for path in private if "car" in path.parts} == {"identity.pem"}
    for path in private:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not car.request.exists()
    keys = [path.read_bytes() for path in car.trusted_keys.glob("*.pem")]
    assert b"".join(keys) == authority.trusted_keys()


def test_a_dispatcher_is_given_no_trusted_keys(tmp_path: Path, authority: Authority) -> None:
    enrol(authority, tmp_path / "d", Grant(Role.DISPATCHER, "dispatcher", 365))
    assert not IdentityFolder(tmp_path / "d").trusted_keys.exists()


@pytest.mark.parametrize(
    "name", ["", "+", "#", "a/b", "a b", "$SYS", "ü", "a\0b", "a.b", "x" * 65, "a\nb"]
)
def test_a_name_that_topics_cannot_hold_is_not_certified(
    authority: Authority, tmp_path: Path, name: str
) -> None:
    request = csr("fine", ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(PkiRefused, match="1 to 64"):
        authority.issue(request, Grant(Role.CAR, name, 90))
    with pytest.raises(PkiRefused, match="1 to 64"):
        new_identity(tmp_path / "car").ask(name)


def test_a_request_is_proof_of_a_key_and_of_nothing_else(authority: Authority) -> None:
    with pytest.raises(PkiRefused, match="PKCS #10"):
        authority.issue(b"", CAR)
    with pytest.raises(PkiRefused, match="PKCS #10"):
        authority.issue(os.urandom(2_000), CAR)
    with pytest.raises(PkiRefused, match="P-256"):
        authority.issue(csr("car-1", rsa.generate_private_key(65_537, 2_048)), CAR)
    honest = x509.load_pem_x509_csr(csr("car-1", ec.generate_private_key(ec.SECP256R1())))
    der = bytearray(honest.public_bytes(serialization.Encoding.DER))
    at = bytes(der).index(honest.signature)
    der[at + 10] ^= 1
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(PkiRefused, match="signature"):
        authority.issue(forged, CAR)
    # It asks for another name; the authority decides.
    other = csr("dispatcher", ec.generate_private_key(ec.SECP256R1()))
    certificate = authority.issue(other, CAR)
    (name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert name.value == "car-1"


@pytest.mark.parametrize("days", [0, -1, limits.CERTIFICATE_DAYS_MAX + 1])
def test_a_life_out_of_bounds_is_refused(authority: Authority, days: int) -> None:
    request = csr("car-1", ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(PkiRefused, match=str(limits.CERTIFICATE_DAYS_MAX)):
        authority.issue(request, Grant(Role.CAR, "car-1", days))


def test_a_passphrase_guards_the_authority(tmp_path: Path) -> None:
    folder = tmp_path / "authority"
    locked = Authority.create(folder, b"secret")
    enrol(locked, tmp_path / "car", CAR)
    for passphrase in (None, b"wrong"):
        with pytest.raises(PkiError, match="passphrase"):
            enrol(Authority(folder, passphrase), tmp_path / str(passphrase), CAR)
    assert b"ENCRYPTED" in (folder / "cars" / "ca.key").read_bytes()


def test_an_authority_is_never_replaced(authority: Authority) -> None:
    before = authority.ca_file(Branch.CARS).read_bytes()
    with pytest.raises(PkiError, match="nothing was changed"):
        Authority.create(authority.folder)
    assert authority.ca_file(Branch.CARS).read_bytes() == before


# --- answers that do not fit ----------------------------------------------------------------------


def test_an_answer_that_does_not_fit_changes_nothing(
    authority: Authority, car: IdentityFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in car.folder.rglob("*") if path.is_file()}
    earlier = car.ask("car-1")
    request = car.ask("car-1")
    good = answer_request(authority, request, CAR)
    block = b"-----END CERTIFICATE-----\n"
    cases = {
        "no certificate": b"",
        "damaged": good.replace(b"MII", b"MIJ", 1),
        "not for the key": answer_request(authority, earlier, CAR),
        "is for 'car-2'": answer_request(authority, request, Grant(Role.CAR, "car-2", 90)),
        "more than": good + b"".join(_public_key(n) for n in range(9)),
    }
    for says, answer in cases.items():
        with pytest.raises(PkiRefused, match=says):
            car.accept(answer)
    with monkeypatch.context() as wrong_clock:
        wrong_clock.setattr(identity_module, "dt", _Shifted(-400))
        with pytest.raises(PkiRefused, match="holds from"):
            car.accept(good)
    now = {path: path.read_bytes() for path in before}
    assert now[car.identity] == before[car.identity]
    assert now[car.ca] == before[car.ca]
    # The request still waits, and its true answer is taken; the certificate alone is enough.
    car.accept(good.partition(block)[0] + block)
    assert car.identity.read_bytes() != before[car.identity]


def _public_key(number: int) -> bytes:
    return identity_module.public_pem_of(bytes([number]) * 32)


class _Shifted:
    """`datetime` with a clock that is `days` off."""

    UTC = dt.UTC
    timedelta = dt.timedelta

    def __init__(self, days: int) -> None:
        shift = dt.timedelta(days=days)

        class Clock(dt.datetime):
            @classmethod
            def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:  # type: ignore[override] # it is not a Clock
                return dt.datetime.now(tz) + shift

        self.datetime = Clock


def test_an_answer_without_a_request_is_refused(tmp_path: Path, authority: Authority) -> None:
    request = csr("car-1", ec.generate_private_key(ec.SECP256R1()))
    folder = tmp_path / "empty"
    folder.mkdir()
    with pytest.raises(PkiError, match=r"request\.key"):
        IdentityFolder(folder).accept(answer_request(authority, request, CAR))


def test_an_identity_is_not_enrolled_over(tmp_path: Path, authority: Authority) -> None:
    enrol(authority, tmp_path / "car", CAR)
    with pytest.raises(PkiError, match="already"):
        enrol(authority, tmp_path / "car", CAR)


def test_a_full_disk_leaves_the_old_identity(
    authority: Authority, car: IdentityFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = car.identity.read_bytes()
    answer = answer_request(authority, car.ask("car-1"), CAR)

    def full(path: Path, data: bytes, *, mode: int) -> None:
        if path == car.identity:
            raise OSError(28, "No space left on device")
        write_file(path, data, mode=mode)

    with monkeypatch.context() as disk:
        disk.setattr(identity_module, "write_file", full)
        with pytest.raises(OSError, match="No space"):
            car.accept(answer)
    assert car.identity.read_bytes() == before
    car.accept(answer)


# --- renewal and revocation -----------------------------------------------------------------------


def test_renewal_is_due_at_two_thirds_of_life() -> None:
    begins = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    validity = Validity("car-1", begins, begins + dt.timedelta(days=90))
    assert not validity.is_due(begins + dt.timedelta(days=59, hours=23))
    assert validity.is_due(begins + dt.timedelta(days=60))


@pytest.mark.parametrize("role", list(Role))
def test_a_renewal_grants_the_same_with_a_new_key(
    tmp_path: Path, authority: Authority, role: Role
) -> None:
    hosts = ("broker.example", "10.0.0.1", "::1") if role is Role.BROKER else ()
    folder = IdentityFolder(tmp_path / "one")
    enrol(authority, folder.folder, Grant(role, "one", 90, hosts))
    old = folder.certificate()
    renew_here(authority, folder, 90)
    new = folder.certificate()
    assert new.public_key() != old.public_key()
    assert new.serial_number != old.serial_number
    assert (new.subject, new.issuer) == (old.subject, old.issuer)
    same = (
        (x509.ExtendedKeyUsage, x509.SubjectAlternativeName) if hosts else (x509.ExtendedKeyUsage,)
    )
    for extension in same:
        value = new.extensions.get_extension_for_class(extension).value
        assert value == old.extensions.get_extension_for_class(extension).value
    assert len(authority.issued(role.branch, "one")) == 2


def test_a_renewal_hands_over_the_keys_to_trust_now(
    authority: Authority, car: IdentityFolder
) -> None:
    (old,) = (path.stem for path in car.trusted_keys.iterdir())
    new = authority.new_signing_key()
    renew_here(authority, car, 90)
    assert {path.stem for path in car.trusted_keys.iterdir()} == {old, new}
    authority.retire_signing_key(old)
    renew_here(authority, car, 90)
    assert {path.stem for path in car.trusted_keys.iterdir()} == {new}
    with pytest.raises(PkiError, match="only signing key"):
        authority.retire_signing_key(new)
    with pytest.raises(PkiError, match="no signing key"):
        authority.retire_signing_key(old)


def test_who_is_revoked_or_unknown_is_not_renewed(
    tmp_path: Path, authority: Authority, car: IdentityFolder
) -> None:
    stranger = Authority.create(tmp_path / "other")
    with pytest.raises(PkiRefused, match="not issued here"):
        renew_here(stranger, car, 90)
    assert [one.name for one in authority.revoke(Branch.CARS, "car-1")] == ["car-1"]
    with pytest.raises(PkiRefused, match="revoked"):
        renew_here(authority, car, 90)


def test_a_revocation_is_in_a_list_that_does_not_expire(
    tmp_path: Path, authority: Authority, car: IdentityFolder
) -> None:
    enrol(authority, tmp_path / "car-2", Grant(Role.CAR, "car-2", 90))
    assert len(authority.revoke(Branch.CARS, "car-1")) == 1
    assert authority.revoke(Branch.CARS, "car-1") == []
    with pytest.raises(PkiError, match="car-3"):
        authority.revoke(Branch.CARS, "car-3")
    crl = x509.load_pem_x509_crl(authority.crl_file(Branch.CARS).read_bytes())
    assert [one.serial_number for one in crl] == [car.certificate().serial_number]
    ca = x509.load_pem_x509_certificate(authority.ca_file(Branch.CARS).read_bytes())
    assert crl.is_signature_valid(ca.public_key())  # type: ignore[arg-type] # it is an EC key
    assert crl.next_update_utc == ca.not_valid_after_utc


def test_two_revocations_at_once_are_both_in_the_list(tmp_path: Path, authority: Authority) -> None:
    names = [f"car-{n}" for n in range(8)]
    for name in names:
        enrol(authority, tmp_path / name, Grant(Role.CAR, name, 90))
    threads = [
        threading.Thread(target=Authority(authority.folder).revoke, args=(Branch.CARS, name))
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    crl = x509.load_pem_x509_crl(authority.crl_file(Branch.CARS).read_bytes())
    assert len(list(crl)) == len(names)


@pytest.mark.parametrize(("days", "hours"), [(90, 48), (365, 48), (10, 24), (1, 2.4)])
def test_a_certificate_holds_for_clocks_that_are_behind(
    authority: Authority, days: int, hours: float
) -> None:
    request = csr("car-1", ec.generate_private_key(ec.SECP256R1()))
    certificate = authority.issue(request, Grant(Role.CAR, "car-1", days))
    behind = dt.datetime.now(dt.UTC) - certificate.not_valid_before_utc
    assert abs(behind - dt.timedelta(hours=hours)) < dt.timedelta(minutes=5)
