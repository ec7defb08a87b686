"""A signed model repository: who may publish what, and what is published (TUF 1.0).

Invariants
- A reader sees the state before a change or after it. New versions of roles lie in the folder
  unread until `timestamp.json`, which is replaced in one step, leads to them. A new root is read
  at once; so a role whose key it changes is signed by the old and the new key first.
- What is not signed by enough keys of its role is never put into a snapshot, whoever wrote it.
- A role's version only grows, also for a publisher who comes back after being revoked.
- Keys of root, targets and publishers are needed for what they sign only. Snapshot and timestamp
  are signed by whoever holds their keys; without them a change waits for the dispatcher that does.

Sources: the TUF specification 1.0, sections 4 (formats), 5 (client) and 6 (key management).
Deliberately absent: delegations below a publisher, mirrors, a secret kept in this folder.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec
import structlog
from msgspec import Meta
from securesystemslib.signer import CryptoSigner, Key
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from edge_runtime.contract import limits
from edge_runtime.contract.errors import ConfigError
from edge_runtime.contract.package import Package
from edge_runtime.contract.repository import TOP_ROLES, require_publisher, target_path
from edge_runtime.registry.keys import KeyProblem, KeyRing, require_signers
from edge_runtime.registry.metadata import MetadataFolder, RepositoryProblem
from edge_runtime.registry.packages import PackageFolder

S = TypeVar("S", Root, Targets, Snapshot, Timestamp)
_KINDS: Final[Mapping[str, Any]] = {
    "root": Root,
    "targets": Targets,
    "snapshot": Snapshot,
    "timestamp": Timestamp,
}
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_RENEW_BELOW: Final = 0.5  # of a role's life

_log = structlog.get_logger()


def utc_now() -> datetime:
    """The moment, to the second: what metadata can say."""
    return datetime.now(UTC).replace(microsecond=0)


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long a signature is good for. What is signed offline lives long, the online short."""

    root: timedelta = timedelta(days=365)
    targets: timedelta = timedelta(days=365)
    publisher: timedelta = timedelta(days=365)
    snapshot: timedelta = timedelta(days=7)
    timestamp: timedelta = timedelta(days=1)

    def of(self, role: str) -> timedelta:
        """The life of a role's metadata."""
        life: timedelta = getattr(self, role if role in TOP_ROLES else "publisher")
        return life


@dataclass(frozen=True, slots=True)
class Quorum:
    """How many keys a role has, and how many of them must sign."""

    keys: int = 1
    threshold: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.threshold <= self.keys <= limits.ROLE_KEYS_MAX:
            raise ConfigError(
                f"a threshold of {self.threshold} of {self.keys} keys: it must be 1 to the number "
                f"of keys, and those at most {limits.ROLE_KEYS_MAX}"
            )


@dataclass(frozen=True, slots=True)
class Published:
    """One package that a reader finds now."""

    publisher: str
    digest: str
    name: str
    version: str
    total_bytes: int


class _Said(msgspec.Struct, frozen=True):
    """The part of a target that is for people."""

    name: Annotated[str, Meta(max_length=limits.ID_MAX_CHARS)] = ""
    version: Annotated[str, Meta(max_length=limits.ID_MAX_CHARS)] = ""
    bytes: Annotated[int, Meta(ge=0, le=limits.PACKAGE_MAX_BYTES)] = 0


class ModelRepository:
    """The repository in a folder. Everything blocks; raises `LocalError`s and `OSError`."""

    def __init__(
        self,
        folder: Path,
        *,
        now: Callable[[], datetime] = utc_now,
        lifetimes: Lifetimes | None = None,
    ) -> None:
        self.folder = folder
        self.metadata = MetadataFolder(folder)
        self.packages = PackageFolder(folder)
        self._now = now
        self._lifetimes = lifetimes or Lifetimes()

    def __repr__(self) -> str:
        return f"<ModelRepository {self.folder}>"

    # --- the beginning ------------------------------------------------------------------------

    def create(self, ring: KeyRing, quorums: Mapping[str, Quorum]) -> Path:
        """Make an empty repository and every key it needs; returns the first root's file.

        `quorums` names the roles with more than one key. Raises `ConfigError` where one exists.
        """
        self.metadata.path.mkdir(parents=True, exist_ok=True)
        self.packages.path.mkdir(parents=True, exist_ok=True)
        with self.metadata.locked():
            if self.metadata.versions("root"):
                raise ConfigError(f"{self.folder} holds a repository already")
            root = Root(consistent_snapshot=True)
            for role in TOP_ROLES:
                quorum = quorums.get(role, Quorum())
                root.roles[role].threshold = quorum.threshold
                for _ in range(quorum.keys):
                    root.add_key(ring.generate(role).public_key, role)
            # The root is written last: a crash before leaves keys, and no repository.
            self._write("targets", Metadata(Targets()), ring, root)
            self._commit(ring, root)
            self._write("root", Metadata(root), ring, root)
        return self.metadata.path / "1.root.json"

    # --- publishers ---------------------------------------------------------------------------

    def add_publisher(self, name: str, ring: KeyRing, public_key: Key | None = None) -> bool:
        """Let `name` publish, with a new key or with the public half of the publisher's own.

        Returns whether readers see it already; else a dispatcher has to sign. Raises
        `ConfigError` for a name that is taken.
        """
        require_publisher("PUBLISHER", name)
        with self.metadata.locked():
            targets = self._targets()
            known = _delegations(targets)
            if name in known:
                raise ConfigError(f"{name} is a publisher already")
            if len(known) >= limits.PUBLISHERS_MAX:
                raise ConfigError(f"there are {len(known)} publishers, which is the limit")
            key = public_key or ring.generate(name).public_key
            delegations = targets.signed.delegations or Delegations({}, {})
            if delegations.roles is None:
                raise RepositoryProblem(f"{self.folder}: delegations of a kind that is not ours")
            delegations.roles[name] = DelegatedRole(
                name=name, keyids=[], threshold=1, terminating=True, paths=[target_path(name, "*")]
            )
            targets.signed.delegations = delegations
            targets.signed.add_key(key, name)
            self._write("targets", targets, ring)
            return self._commit(ring)

    def publish(self, package: Package, publisher: str, ring: KeyRing) -> bool:
        """Put a package in place and sign for it; returns whether readers see it already."""
        # The long part, which needs no lock: nobody knows of the package yet.
        self.packages.put(package)
        with self.metadata.locked():
            metadata = self._of_publisher(publisher)
            path = target_path(publisher, package.digest)
            manifest = package.manifest.canonical_bytes()
            target = TargetFile.from_data(path, manifest, ["sha256"])
            target.unrecognized_fields["custom"] = {
                "name": package.spec.name,
                "version": package.spec.version,
                "bytes": package.manifest.total_bytes,
            }
            metadata.signed.targets[path] = target
            self._write(publisher, metadata, ring)
            return self._commit(ring)

    def revoke_package(self, publisher: str, digest: str, ring: KeyRing) -> bool:
        """Take a package back; its files stay. Returns whether readers see it already."""
        with self.metadata.locked():
            metadata = self._of_publisher(publisher)
            if metadata.signed.targets.pop(target_path(publisher, digest), None) is None:
                raise ConfigError(f"{publisher} has published no {digest[:64]}")
            self._write(publisher, metadata, ring)
            return self._commit(ring)

    def revoke_publisher(self, name: str, ring: KeyRing) -> bool:
        """Take all packages of a publisher back, with the key of targets alone."""
        with self.metadata.locked():
            targets = self._targets()
            role = self._delegated(targets, name)
            for keyid in list(role.keyids):
                targets.signed.revoke_key(keyid, name)
            if targets.signed.delegations is not None and targets.signed.delegations.roles:
                del targets.signed.delegations.roles[name]
            self._write("targets", targets, ring)
            return self._commit(ring)

    # --- keys ---------------------------------------------------------------------------------

    def rotate_key(self, role: str, ring: KeyRing, replaced: str | None = None) -> bool:
        """Give a role a new key in place of the one whose id begins with `replaced`.

        Without `replaced` the role must have one key only. Returns whether readers see it.
        """
        with self.metadata.locked():
            if role not in TOP_ROLES:
                return self._rotate_publisher(role, ring, replaced)
            root, next_root = self._root(), self._root()
            keyids = root.signed.roles[role].keyids
            old = _one_key(role, keyids, replaced)
            # A key that was lost cannot sign; readers then miss a beat until the root is there.
            signers = ring.signers(role, [root.signed.keys[keyid] for keyid in keyids])
            new = ring.generate(role)
            next_root.signed.add_key(new.public_key, role)
            next_root.signed.revoke_key(old, role)
            if role == "root":
                self._write_signed("root", next_root, [*signers, new], [root, next_root])
                return True
            root_signers = self._top_signers("root", ring, root.signed)
            # Signed by the old and the new key, it is good under both roots.
            self._sign_again(role, ring, next_root.signed, [*signers, new])
            self._write_signed("root", next_root, root_signers)
            return True

    def _rotate_publisher(self, name: str, ring: KeyRing, replaced: str | None) -> bool:
        targets = self._targets()
        keys = self._publisher_keys(targets, name)
        old = _one_key(name, list(keys), replaced)
        target_signers = self._top_signers("targets", ring, self._root().signed)
        new = ring.generate(name)
        # First what is good under both delegations: a crash in between changes nothing.
        signers = [*ring.signers(name, keys.values()), new]
        self._write_signed(name, self._of_publisher(name), signers)
        targets.signed.add_key(new.public_key, name)
        targets.signed.revoke_key(old, name)
        self._write_signed("targets", targets, target_signers)
        return self._commit(ring)

    def renew(self, role: str, ring: KeyRing) -> bool:
        """Sign a role again as it is, for its whole life; returns whether readers see it."""
        with self.metadata.locked():
            root = self._root()
            if role == "root":
                self._write("root", root, ring, root.signed)
                return True
            if role in TOP_ROLES:
                signers = self._top_signers(role, ring, root.signed)
                return self._sign_again(role, ring, root.signed, signers)
            self._write(role, self._of_publisher(role), ring)
            return self._commit(ring)

    def _sign_again(
        self, role: str, ring: KeyRing, root: Root, signers: list[CryptoSigner]
    ) -> bool:
        match role:
            case "targets":
                self._write_signed("targets", self._targets(), signers)
                return self._commit(ring, root)
            case "snapshot":
                return self._commit(ring, root, snapshot_signers=signers)
            case _:
                return self._commit(ring, root, timestamp_signers=signers)

    # --- the online half ----------------------------------------------------------------------

    def refresh(self, ring: KeyRing) -> bool:
        """Publish what waits for the online keys, and sign again what is past half its life.

        Call regularly where the online keys are. Returns whether anything was written.
        """
        with self.metadata.locked():
            before = self._timestamp_version()
            self._commit(ring, must=True)
            return self._timestamp_version() != before

    def _commit(
        self,
        ring: KeyRing,
        root: Root | None = None,
        *,
        snapshot_signers: list[CryptoSigner] | None = None,
        timestamp_signers: list[CryptoSigner] | None = None,
        must: bool = False,
    ) -> bool:
        """Lead readers to the newest roles. False where the online keys are not at hand."""
        root = root or self._root().signed
        snapshot = self.metadata.newest("snapshot", Snapshot) or Metadata(Snapshot())
        meta = {**snapshot.signed.meta, **self._signed_roles(root)}
        timestamp = self.metadata.newest("timestamp", Timestamp) or Metadata(Timestamp())
        is_first = not self.metadata.versions("snapshot")
        new_snapshot = (
            is_first
            or snapshot_signers is not None
            or meta != snapshot.signed.meta
            or self._is_due("snapshot", snapshot.signed.expires)
        )
        led_to = timestamp.signed.snapshot_meta.version
        new_timestamp = (
            new_snapshot
            or timestamp_signers is not None
            or led_to != snapshot.signed.version
            or self._is_due("timestamp", timestamp.signed.expires)
        )
        if not new_timestamp:
            return True
        for role, given in (("snapshot", snapshot_signers), ("timestamp", timestamp_signers)):
            needed = new_snapshot or role == "timestamp"
            if needed and given is None and not must and not self._can_sign(role, ring, root):
                _log.info("repository_waits_for_online_key", role=role)
                return False
        if new_snapshot:
            snapshot.signed.meta = meta
            signers = snapshot_signers or self._top_signers("snapshot", ring, root)
            described = self._write_signed("snapshot", snapshot, signers)
        else:
            described = self.metadata.described("snapshot", snapshot.signed.version)
        timestamp.signed.snapshot_meta = described
        signers = timestamp_signers or self._top_signers("timestamp", ring, root)
        self._write_signed("timestamp", timestamp, signers)
        return True

    def _signed_roles(self, root: Root) -> dict[str, MetaFile]:
        """The newest versions of targets and of publishers that enough of their keys signed."""
        metadata = self.metadata
        targets = self._targets()
        _require_signed("targets", targets, root)
        roles = {"targets.json": metadata.described("targets", targets.signed.version)}
        for name in _delegations(targets):
            try:
                newest = metadata.newest(name, Targets)
                if newest is None:
                    continue
                targets.signed.verify_delegate(name, newest.signed_bytes, newest.signatures)
            except (UnsignedMetadataError, RepositoryProblem) as error:
                # The others' packages must not wait for this one to be put right.
                _log.warning("publisher_not_signed", publisher=name, why=str(error))
                continue
            roles[f"{name}.json"] = metadata.described(name, newest.signed.version)
        return roles

    def _can_sign(self, role: str, ring: KeyRing, root: Root) -> bool:
        keys = [root.keys[keyid] for keyid in root.roles[role].keyids]
        return len(ring.signers(role, keys)) >= root.roles[role].threshold

    def _is_due(self, role: str, expires: datetime) -> bool:
        return expires - self._now() < self._lifetimes.of(role) * _RENEW_BELOW

    def _timestamp_version(self) -> int:
        timestamp = self.metadata.newest("timestamp", Timestamp)
        return timestamp.signed.version if timestamp else 0

    # --- reading ------------------------------------------------------------------------------

    def published(self) -> list[Published]:
        """Every package that a reader finds now, by publisher and digest; nothing is verified."""
        timestamp = self.metadata.newest("timestamp", Timestamp)
        if timestamp is None:
            raise RepositoryProblem(f"{self.folder}: no model repository; make one with init")
        version = timestamp.signed.snapshot_meta.version
        meta = self.metadata.version("snapshot", version, Snapshot).signed.meta
        if "targets.json" not in meta:
            raise RepositoryProblem(f"{self.folder}: snapshot {version} names no targets")
        targets = self.metadata.version("targets", meta["targets.json"].version, Targets)
        found: list[Published] = []
        for name in _delegations(targets):
            described = meta.get(f"{name}.json")
            if described is None:
                continue
            role = self.metadata.version(name, described.version, Targets).signed
            found += (
                _published(name, path, target)
                for path, target in role.targets.items()
                if _DIGEST.fullmatch(path.rpartition("/")[2])
            )
        return sorted(found, key=lambda entry: (entry.publisher, entry.name, entry.digest))

    def _root(self) -> Metadata[Root]:
        root = self.metadata.newest("root", Root)
        if root is None:
            raise RepositoryProblem(f"{self.folder}: no model repository; make one with init")
        return root

    def _targets(self) -> Metadata[Targets]:
        targets = self.metadata.newest("targets", Targets)
        if targets is None:
            raise RepositoryProblem(f"{self.folder}: no model repository; make one with init")
        return targets

    def _delegated(self, targets: Metadata[Targets], name: str) -> DelegatedRole:
        role = _delegations(targets).get(name)
        if role is None:
            known = ", ".join(_delegations(targets)) or "none"
            raise ConfigError(f"no publisher {name[:64]!r}; known are: {known}")
        return role

    def _publisher_keys(self, targets: Metadata[Targets], name: str) -> dict[str, Key]:
        role = self._delegated(targets, name)
        return {keyid: targets.signed.get_key(keyid) for keyid in role.keyids}

    def _of_publisher(self, name: str) -> Metadata[Targets]:
        self._delegated(self._targets(), name)
        return self.metadata.newest(name, Targets) or Metadata(Targets())

    # --- writing ------------------------------------------------------------------------------

    def _top_signers(self, role: str, ring: KeyRing, root: Root) -> list[CryptoSigner]:
        keys = {keyid: root.keys[keyid] for keyid in root.roles[role].keyids}
        return require_signers(role, ring, keys, root.roles[role].threshold)

    def _write(
        self, role: str, metadata: Metadata[S], ring: KeyRing, root: Root | None = None
    ) -> None:
        """Sign with the role's keys, and write."""
        if role in TOP_ROLES:
            signers = self._top_signers(role, ring, root or self._root().signed)
        else:
            targets = self._targets()
            keys = self._publisher_keys(targets, role)
            threshold = self._delegated(targets, role).threshold
            signers = require_signers(role, ring, keys, threshold)
        self._write_signed(role, metadata, signers)

    def _write_signed(
        self,
        role: str,
        metadata: Metadata[S],
        signers: list[CryptoSigner],
        judges: Sequence[Metadata[Root]] = (),
    ) -> MetaFile:
        """Sign and write, unless one of the `judges` would not accept it (`KeyProblem`)."""
        versions = self.metadata.versions(role)
        current = versions[-1] if versions else 0
        if role == Timestamp.type:
            current = self._timestamp_version()
        metadata.signed.version = current + 1
        metadata.signed.expires = self._now() + self._lifetimes.of(role)
        metadata.signatures.clear()
        for signer in signers:
            metadata.sign(signer, append=True)
        for judge in judges:
            _require_signed(role, metadata, judge.signed)
        return self.metadata.write(role, metadata)


def _published(publisher: str, path: str, target: TargetFile) -> Published:
    """What a publisher says of a package; it may say anything."""
    try:
        said = msgspec.convert(target.custom, _Said)
    except msgspec.ValidationError:
        said = _Said()
    return Published(
        publisher=publisher,
        digest=path.rpartition("/")[2],
        name=said.name if said.name.isprintable() else "",
        version=said.version if said.version.isprintable() else "",
        total_bytes=said.bytes,
    )


def _require_signed(role: str, metadata: Metadata[Any], root: Root) -> None:
    try:
        root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except UnsignedMetadataError as error:
        raise KeyProblem(f"version {metadata.signed.version} of {error}") from error


def _delegations(targets: Metadata[Targets]) -> Mapping[str, DelegatedRole]:
    delegations = targets.signed.delegations
    return (delegations.roles or {}) if delegations is not None else {}


def _one_key(role: str, keyids: list[str], chosen: str | None) -> str:
    """The key id that `chosen` begins, or the only one. Raises `ConfigError`."""
    fitting = [keyid for keyid in keyids if keyid.startswith(chosen or "")]
    if len(fitting) != 1:
        names = ", ".join(keyid[:8] for keyid in keyids)
        raise ConfigError(f"{role} has the keys {names}: say with --replace which one goes")
    return fitting[0]
