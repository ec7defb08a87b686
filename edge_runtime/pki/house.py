"""A deployment's folder, as `pki init` makes it: authority, broker, dispatcher, cars.

    HOUSE/authority/    keep it offline: it can make anybody
    HOUSE/broker/       goes to the broker's machine
    HOUSE/dispatcher/   goes to the dispatcher's machine; with `signing.key`
    HOUSE/cars/ID/      identities made here, for cars on this machine only

On one machine both sides of an enrolment run in one command; the key is made in the identity's
own folder all the same and is never copied.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_runtime.pki.authority import Authority, Branch, Grant, Issued, Role
from edge_runtime.pki.broker_files import BrokerLayout, write_broker_files
from edge_runtime.pki.files import PRIVATE_MODE, PUBLIC_MODE, new_folder, read_file, write_file
from edge_runtime.pki.identity import IdentityFolder, Validity, answer_request, new_identity

CAR_DAYS: Final = 90
SERVICE_DAYS: Final = 365
DISPATCHER_NAME: Final = "dispatcher"
BROKER_NAME: Final = "broker"


@dataclass(frozen=True, slots=True)
class House:
    """The folders of a deployment."""

    folder: Path

    @property
    def authority(self) -> Path:
        """Both authorities and the signing keys."""
        return self.folder / "authority"

    @property
    def broker(self) -> Path:
        """What Mosquitto reads."""
        return self.folder / "broker"

    @property
    def dispatcher(self) -> Path:
        """The dispatcher's identity and signing key."""
        return self.folder / "dispatcher"

    def car(self, name: str) -> Path:
        """A car's identity, where the car is on this machine."""
        return self.folder / "cars" / name

    def open(self, passphrase: bytes | None = None) -> Authority:
        """The authority. Raises PkiError."""
        return Authority(self.authority, passphrase)


def build_house(
    house: House, layout: BrokerLayout, hosts: tuple[str, ...], passphrase: bytes | None
) -> Authority:
    """Everything but the cars. Raises PkiError where an authority is there already."""
    authority = Authority.create(house.authority, passphrase)
    enrol(authority, house.broker, Grant(Role.BROKER, BROKER_NAME, SERVICE_DAYS, hosts))
    enrol(authority, house.dispatcher, Grant(Role.DISPATCHER, DISPATCHER_NAME, SERVICE_DAYS))
    (key,) = authority.signing_folder.glob("*.key")
    write_file(house.dispatcher / "signing.key", read_file(key), mode=PRIVATE_MODE)
    for branch in Branch:
        name = f"{branch.value}-ca.pem"
        shutil.copyfile(authority.ca_file(branch), house.broker / name)
    give_revocations(authority, house.broker)
    write_broker_files(house.broker, layout)
    return authority


def enrol(authority: Authority, folder: Path, grant: Grant) -> Validity:
    """Both sides of an enrolment on one machine. Raises PkiError, PkiRefused."""
    identity = new_identity(new_folder(folder))
    request = identity.ask(grant.name)
    return identity.accept(answer_request(authority, request, grant))


def renew_here(authority: Authority, identity: IdentityFolder, days: int) -> Validity:
    """Both sides of a renewal on one machine. Raises PkiError, PkiRefused."""
    grant = authority.granted(identity.certificate(), days)
    request = identity.ask(grant.name)
    return identity.accept(answer_request(authority, request, grant))


def revoke(authority: Authority, house: House, branch: Branch, name: str) -> list[Issued]:
    """Revoke all of `name`'s certificates; the broker's files are brought up to date."""
    revoked = authority.revoke(branch, name)
    if house.broker.is_dir():
        give_revocations(authority, house.broker)
    return revoked


def give_revocations(authority: Authority, folder: Path) -> None:
    """Put the lists of revoked certificates where the broker reads them."""
    for branch in Branch:
        data = read_file(authority.crl_file(branch))
        write_file(folder / f"{branch.value}-crl.pem", data, mode=PUBLIC_MODE)


def use_signing_key(authority: Authority, house: House, key_id: str) -> None:
    """Let the dispatcher sign with this key from its next start on. Raises PkiError."""
    key = read_file(authority.signing_folder / f"{key_id}.key")
    write_file(house.dispatcher / "signing.key", key, mode=PRIVATE_MODE)
