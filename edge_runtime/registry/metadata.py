"""The metadata folder of a repository: versions of roles, written whole and never twice.

Invariants
- A version of a role is written once: by rename, after its bytes are on disk. What a crash
  leaves has another kind of name, and is swept by whoever writes next.
- `timestamp.json` alone is replaced: it is what a reader begins with, so what it does not lead to
  is not published yet.
- One writer at a time, held by a lock of the folder which the kernel drops with the process.

Deliberately absent: what a role means, which is the repository's.
"""

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import JSONSerializer

from edge_runtime.contract import limits
from edge_runtime.contract.errors import LocalError
from edge_runtime.contract.repository import METADATA_PATH
from edge_runtime.pki.files import PUBLIC_MODE, write_file

S = TypeVar("S", Root, Targets, Snapshot, Timestamp)
_VERSIONED: Final = re.compile(r"(\d{1,9})\.([a-z0-9-]+)\.json")
_SIZES: Final = {
    Root.type: limits.ROOT_METADATA_MAX_BYTES,
    Targets.type: limits.TARGETS_METADATA_MAX_BYTES,
    Snapshot.type: limits.SNAPSHOT_METADATA_MAX_BYTES,
    Timestamp.type: limits.TIMESTAMP_METADATA_MAX_BYTES,
}
_LEFTOVER: Final = re.compile(r"\..+\.json\.[a-z0-9_]{8}")
_LOCK_FILE: Final = ".lock"
_LOCK_LOOK_S: Final = 0.05


class RepositoryProblem(LocalError):  # noqa: N818 - named for what it is
    """The repository cannot be used as it is; the message says what is wrong and where."""


class MetadataFolder:
    """`FOLDER/v1/metadata` of a repository."""

    def __init__(self, repository: Path) -> None:
        self.path = repository / METADATA_PATH
        self._lock_path = repository / _LOCK_FILE

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only writer. Raises `RepositoryProblem` where another one takes too long."""
        descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            give_up_s = time.monotonic() + limits.REPOSITORY_LOCK_WAIT_S
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > give_up_s:
                        raise RepositoryProblem(
                            f"{self._lock_path}: another writer has held it for "
                            f"{limits.REPOSITORY_LOCK_WAIT_S:g} s"
                        ) from None
                    time.sleep(_LOCK_LOOK_S)
            self._sweep()
            yield
        finally:
            os.close(descriptor)

    def _sweep(self) -> None:
        for leftover in self.path.glob(".*"):
            # Ours only: somebody else's file may be on its way in (rsync names it alike).
            if _LEFTOVER.fullmatch(leftover.name):
                leftover.unlink(missing_ok=True)

    def versions(self, role: str) -> list[int]:
        """Every version of a role that lies here, oldest first."""
        found = (_VERSIONED.fullmatch(entry.name) for entry in self.path.glob(f"*.{role}.json"))
        return sorted(int(match[1]) for match in found if match and match[2] == role)

    def newest(self, role: str, kind: type[S]) -> Metadata[S] | None:
        """The newest version of a role, or None. Raises `RepositoryProblem`."""
        if role == Timestamp.type:
            path = self.path / "timestamp.json"
            return self._read(path, kind) if path.exists() else None
        versions = self.versions(role)
        return self.version(role, versions[-1], kind) if versions else None

    def version(self, role: str, version: int, kind: type[S]) -> Metadata[S]:
        """One version of a role. Raises `RepositoryProblem`."""
        return self._read(self.path / f"{version}.{role}.json", kind)

    @staticmethod
    def _read(path: Path, kind: type[S]) -> Metadata[S]:
        try:
            data = path.read_bytes()
            _require_size(path, kind.type, data)
            metadata: Metadata[Any] = Metadata.from_bytes(data)
        except OSError as error:
            raise RepositoryProblem(f"{path}: {error.strerror}") from error
        except (DeserializationError, RepositoryError) as error:
            raise RepositoryProblem(f"{path}: no TUF metadata: {error}") from error
        if not isinstance(metadata.signed, kind):
            raise RepositoryProblem(f"{path}: not the metadata of {kind.type}")
        return metadata

    def write(self, role: str, metadata: Metadata[S]) -> MetaFile:
        """Put a new version in place; returns what the metadata above says of it."""
        data = metadata.to_bytes(JSONSerializer(compact=True))
        version = metadata.signed.version
        name = "timestamp" if role == Timestamp.type else f"{version}.{role}"
        path = self.path / f"{name}.json"
        if role != Timestamp.type and path.exists():
            raise RepositoryProblem(f"{path} exists: a version is written once")
        _require_size(path, metadata.signed.type, data)
        write_file(path, data, mode=PUBLIC_MODE)
        return MetaFile.from_data(version, data, ["sha256"])

    def described(self, role: str, version: int) -> MetaFile:
        """What the metadata above says of a version that lies here."""
        path = self.path / f"{version}.{role}.json"
        return MetaFile.from_data(version, path.read_bytes(), ["sha256"])


def _require_size(path: Path, kind: str, data: bytes) -> None:
    """Refuse what no car would read."""
    if len(data) > _SIZES[kind]:
        raise RepositoryProblem(
            f"{path.name} has {len(data)} bytes, and cars read {_SIZES[kind]}: revoke what is old"
        )
