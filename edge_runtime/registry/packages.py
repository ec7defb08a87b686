"""The packages of a repository: put in place whole, under the digest that names them.

A package is `v1/models/DIGEST/manifest` with `v1/models/DIGEST/files/` beside it. It is copied to a
folder of another name, verified there and renamed; what a crash leaves is swept by the next
writer, who knows it by its lock: the kernel dropped that with the process.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from edge_runtime.contract.package import Package, PackageRefused, parse_manifest, verify_package
from edge_runtime.contract.repository import MODELS_PATH
from edge_runtime.pki.files import sync_path

MANIFEST_FILE: Final = "manifest"
FILES_FOLDER: Final = "files"
_INCOMING: Final = ".incoming-"


class PackageFolder:
    """`FOLDER/v1/models` of a repository."""

    def __init__(self, repository: Path) -> None:
        self.path = repository / MODELS_PATH

    def put(self, package: Package) -> None:
        """Copy a package in; one that is there whole stays. Raises `PackageRefused`, `OSError`."""
        final = self.path / package.digest
        if self._is_whole(final, package.digest):
            return
        self._sweep()
        with self._incoming() as incoming:
            for file in package.manifest.files:
                target = incoming / FILES_FOLDER / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(package.folder / file.path, target)
            verify_package(incoming / FILES_FOLDER, package.manifest)
            (incoming / MANIFEST_FILE).write_bytes(package.manifest.canonical_bytes())
            for path in (*incoming.rglob("*"), incoming):
                sync_path(path)
            self._rename(incoming, final, package.digest)
        sync_path(self.path)

    def _rename(self, incoming: Path, final: Path, digest: str) -> None:
        try:
            incoming.rename(final)
        except OSError:
            # Somebody published the same package meanwhile; or what is there is damaged.
            if self._is_whole(final, digest):
                return
            shutil.rmtree(final)
            incoming.rename(final)

    @staticmethod
    def _is_whole(folder: Path, digest: str) -> bool:
        try:
            manifest = parse_manifest((folder / MANIFEST_FILE).read_bytes(), digest)
            verify_package(folder / FILES_FOLDER, manifest)
        except (PackageRefused, OSError):
            return False
        return True

    @contextlib.contextmanager
    def _incoming(self) -> Iterator[Path]:
        """A locked folder that is gone again unless it was renamed."""
        folder = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self.path))
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            folder.chmod(0o755)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)

    def _sweep(self) -> None:
        for leftover in self.path.glob(f"{_INCOMING}*"):
            with contextlib.suppress(OSError):  # it is gone, or locked: somebody is at it
                descriptor = os.open(leftover, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(leftover, ignore_errors=True)
                finally:
                    os.close(descriptor)
