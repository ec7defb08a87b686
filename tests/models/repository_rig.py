"""A signed model repository, its publishers, and cars that trust it."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from repository_server import FolderServer
from tuf.api.metadata import Metadata, Snapshot, Timestamp

from edge_runtime.contract.package import Package
from edge_runtime.registry.keys import KeyRing
from edge_runtime.registry.repository import ModelRepository, Quorum
from edge_runtime.vehicle.models.importers.synthetic import write_synthetic
from edge_runtime.vehicle.models.importers.writer import write_package
from edge_runtime.vehicle.models.orders import Patience
from edge_runtime.vehicle.models.store import PackageStore

PASSPHRASE = b"a passphrase of this test"
QUOTA = 1 << 20
IMPATIENT = Patience(silence_s=2.0, window_s=0.5, rate_min_bytes_per_s=4_096)


def whole_second(ago: timedelta = timedelta()) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) - ago


class Registry:
    """A repository under `folder`, whose clock can be turned back."""

    def __init__(self, folder: Path, quorums: Mapping[str, Quorum] | None = None) -> None:
        self.folder = folder
        self.ago = timedelta()
        self.ring = KeyRing([folder / "keys"], lambda: PASSPHRASE)
        self.repository = ModelRepository(folder / "served", now=lambda: whole_second(self.ago))
        self.root = folder / "trusted-root.json"
        first = self.repository.create(self.ring, quorums or {})
        shutil.copyfile(first, self.root)

    @property
    def served(self) -> Path:
        return self.folder / "served"

    @property
    def metadata(self) -> Path:
        return self.repository.metadata.path

    def package(self, name: str, size: int = 0) -> Package:
        """A package that differs from the others in its name, with `size` bytes more."""
        noop = write_synthetic("noop", self.folder / "sources")
        spec = msgspec.structs.replace(noop.spec, name=name)
        files = {"model.onnx": noop.path_of("model").read_bytes()}
        if size:
            files["weights.bin"] = bytes(index % 251 for index in range(size))
        return write_package(spec, files, self.folder / "sources" / name)

    def published(self, name: str, publisher: str = "acme", size: int = 0) -> Package:
        package = self.package(name, size)
        assert self.repository.publish(package, publisher, self.ring)
        return package

    def newest(self, role: str) -> Path:
        if role == "timestamp":
            return self.metadata / "timestamp.json"
        return self.metadata / f"{self.repository.metadata.versions(role)[-1]}.{role}.json"

    def forge_timestamp(self, snapshot: int) -> bytes:
        """What the thief of the timestamp key says: that `snapshot` is the newest."""
        timestamp = Metadata[Timestamp].from_file(str(self.newest("timestamp")))
        timestamp.signed.version += 1
        timestamp.signed.snapshot_meta = self.repository.metadata.described("snapshot", snapshot)
        return self._signed("timestamp", timestamp)

    def forge_snapshot(self, changes: Mapping[str, int]) -> None:
        """What the thief of both online keys publishes: other versions of roles."""
        snapshot = Metadata[Snapshot].from_file(str(self.newest("snapshot")))
        snapshot.signed.version += 1
        for role, version in changes.items():
            described = self.repository.metadata.described(role, version)
            snapshot.signed.meta[f"{role}.json"] = described
        version = snapshot.signed.version
        path = self.metadata / f"{version}.snapshot.json"
        path.write_bytes(self._signed("snapshot", snapshot))
        self.newest("timestamp").write_bytes(self.forge_timestamp(version))

    def _signed(self, role: str, metadata: Metadata) -> bytes:
        root = self.repository._root().signed
        keys = [root.keys[keyid] for keyid in root.roles[role].keyids]
        metadata.signatures.clear()
        for signer in self.ring.signers(role, keys):
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def car(self, name: str = "car", quota: int = QUOTA) -> PackageStore:
        """A car's store; the second of one name is the first after a restart."""
        return PackageStore(self.folder / name, quota, trusted_root=self.root, patience=IMPATIENT)

    @contextlib.contextmanager
    def serving(self) -> Iterator[FolderServer]:
        with FolderServer(self.served).running() as server:
            yield server
