"""Ed25519 keys and envelopes: what is believed, and why the rest is not."""

import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.contract import codec, limits
from edge_runtime.contract.errors import RejectionReason
from edge_runtime.contract.messages import Control, Drain, Signed
from edge_runtime.pki.files import PkiError, PkiRefused
from edge_runtime.pki.signing import (
    MessageSigner,
    TrustedKeys,
    key_id_of,
    pem_blocks,
    read_public_keys,
)

CONTROL = Control(vehicle="car-1", orders=(Drain(active=True),))
ONE, OTHER = (
    MessageSigner(ed25519.Ed25519PrivateKey.from_private_bytes(seed * 32)) for seed in (b"1", b"2")
)


def trusting(folder: Path, *signers: MessageSigner) -> TrustedKeys:
    folder.mkdir(exist_ok=True)
    for signer in signers:
        (folder / f"{signer.key_id}.pem").write_bytes(signer.public_pem())
    return TrustedKeys(folder)


def envelope(signer: MessageSigner | None) -> Signed:
    return codec.signed_decoder().decode(codec.encode_signed(CONTROL, signer))


def test_a_signed_message_is_believed_and_its_body_is_the_message(tmp_path: Path) -> None:
    signed = envelope(ONE)
    assert trusting(tmp_path, ONE).refusal(signed) is None
    assert codec.control_decoder().decode(signed.body) == CONTROL
    assert len(codec.encode_signed(CONTROL, ONE)) - len(codec.encode_signed(CONTROL)) <= 96


@pytest.mark.parametrize(
    ("forged", "reason"),
    [
        (envelope(None), RejectionReason.UNSIGNED),
        (envelope(OTHER), RejectionReason.UNKNOWN_KEY),
        (
            Signed(key_id=ONE.key_id, signature=OTHER.sign(b"x"), body=b"x"),
            RejectionReason.BAD_SIGNATURE,
        ),
        (Signed(key_id=ONE.key_id, signature=b"", body=b"x"), RejectionReason.BAD_SIGNATURE),
        (
            Signed(key_id=ONE.key_id, signature=ONE.sign(b"x") + b"0", body=b"x"),
            RejectionReason.BAD_SIGNATURE,
        ),
        (
            Signed(key_id=OTHER.key_id, signature=ONE.sign(b"x"), body=b"x"),
            RejectionReason.UNKNOWN_KEY,
        ),
        (Signed(key_id="", signature=ONE.sign(b"x"), body=b"x"), RejectionReason.UNKNOWN_KEY),
    ],
)
def test_a_forged_message_has_its_reason(
    tmp_path: Path, forged: Signed, reason: RejectionReason
) -> None:
    assert trusting(tmp_path, ONE).refusal(forged) is reason


@given(at=st.integers(min_value=0), bit=st.integers(0, 7))
def test_one_changed_bit_anywhere_is_a_bad_signature(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int
) -> None:
    trusted = trusting(tmp_path_factory.getbasetemp() / "bits", ONE)
    signed = envelope(ONE)
    both = bytearray(signed.signature + signed.body)
    both[at % len(both)] ^= 1 << bit
    changed = Signed(key_id=ONE.key_id, signature=bytes(both[:64]), body=bytes(both[64:]))
    assert trusted.refusal(changed) is RejectionReason.BAD_SIGNATURE


def test_two_keys_are_trusted_while_the_dispatcher_changes_its_own(tmp_path: Path) -> None:
    trusted = trusting(tmp_path, ONE)
    assert trusted.refusal(envelope(OTHER)) is RejectionReason.UNKNOWN_KEY
    (tmp_path / "next.pem").write_bytes(OTHER.public_pem())
    trusted.reload()
    assert trusted.refusal(envelope(ONE)) is None
    assert trusted.refusal(envelope(OTHER)) is None
    (tmp_path / f"{ONE.key_id}.pem").unlink()
    trusted.reload()
    assert trusted.refusal(envelope(ONE)) is RejectionReason.UNKNOWN_KEY
    assert trusted.key_ids == [OTHER.key_id]


@pytest.mark.parametrize(
    "damage", [b"", b"\xff" * 100, b"-----BEGIN PUBLIC KEY-----\n!\n-----END PUBLIC KEY-----\n"]
)
def test_damaged_keys_stop_the_start_but_not_a_running_car(tmp_path: Path, damage: bytes) -> None:
    trusted = trusting(tmp_path, ONE)
    for path in tmp_path.glob("*.pem"):
        path.write_bytes(damage)
    trusted.reload()
    assert trusted.refusal(envelope(ONE)) is None
    with pytest.raises(Exception, match="PEM") as error:
        TrustedKeys(tmp_path)
    assert type(error.value).__name__.startswith("Pki")


def test_no_keys_at_all_is_an_error_not_trust_in_everybody(tmp_path: Path) -> None:
    with pytest.raises(PkiError, match="no trusted key"):
        TrustedKeys(tmp_path)
    with pytest.raises(PkiError, match="No such file"):
        TrustedKeys(tmp_path / "none.pem")


def test_too_many_keys_are_refused(tmp_path: Path) -> None:
    for _ in range(limits.TRUSTED_KEYS_MAX + 1):
        signer = MessageSigner.generate()
        (tmp_path / f"{signer.key_id}.pem").write_bytes(signer.public_pem())
    with pytest.raises(PkiError, match=str(limits.TRUSTED_KEYS_MAX)):
        read_public_keys(tmp_path)


def test_files_are_those_of_openssl(tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    private = tmp_path / "private.pem"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    signer = MessageSigner.load(private)
    assert signer.public_pem() == key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    key.public_key().verify(signer.sign(b"body"), b"body")
    assert key_id_of(signer.public_key) == signer.key_id
    signer.save(tmp_path / "saved.pem")
    assert (tmp_path / "saved.pem").read_bytes() == private.read_bytes()
    assert (tmp_path / "saved.pem").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "text", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"]
)
def test_what_is_no_key_is_named(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "signing.key"
    path.write_bytes(text)
    with pytest.raises(PkiError, match=r"signing\.key"):
        MessageSigner.load(path)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.pem"
    path.write_bytes(b" " * (limits.PKI_FILE_MAX_BYTES + 1))
    with pytest.raises(PkiError, match=str(limits.PKI_FILE_MAX_BYTES)):
        TrustedKeys(path)


@given(
    st.lists(
        st.sampled_from(
            [
                b"-----BEGIN A-----",
                b"-----END A-----",
                b"-----END B-----",
                b"-----BEGIN PUBLIC KEY-----",
                b"AAAA",
                b"!",
                b"",
                b"\xff",
            ]
        )
    )
)
def test_any_pieces_of_pem_are_blocks_or_a_refusal(pieces: list[bytes]) -> None:
    try:
        blocks = list(pem_blocks(b"\n".join(pieces)))
    except PkiRefused:
        assert b"!" in pieces or b"\xff" in pieces or b"AAAA" in pieces
    else:
        assert all(set(der) <= {0} for _, der in blocks)


def test_the_largest_hostile_file_takes_no_time() -> None:
    hostile = b"-----BEGIN A-----\n" * 4_000
    started_s = time.process_time()
    assert list(pem_blocks(hostile[: limits.PKI_FILE_MAX_BYTES])) == []
    assert time.process_time() - started_s < 0.5
