"""The model packages that a dispatcher serves: a folder of package folders, or a signed repository.

A package that does not verify is left out with its reason in the log; the others are served. Of a
repository what is published now is served, with the signed metadata beside it: a dispatcher hands
on what publishers signed and is not asked to be believed. One that is not published any more goes.
"""

import threading
from pathlib import Path
from typing import Final

import structlog

from edge_runtime.contract.errors import EdgeError
from edge_runtime.contract.http import ModelView, Problem
from edge_runtime.contract.package import Package, PackageRefused, read_package
from edge_runtime.contract.repository import METADATA_PATH, MODELS_PATH, is_metadata_name
from edge_runtime.dispatcher.front import Refusal

_FILES_FOLDER: Final = "files"

_log = structlog.get_logger(__name__)


class Shelf:
    """Packages by digest, by `name@version` and by name (its newest version)."""

    def __init__(self, folder: Path | None, repository: Path | None = None) -> None:
        self._folder = folder
        self._repository = repository
        self._in_folder: list[Package] = []
        self._published: dict[str, Package] = {}
        self._by_digest: dict[str, Package] = {}
        self._by_name: dict[str, Package] = {}
        self._seen: dict[Path, int] = {}
        self._scanning = threading.Lock()

    def scan(self) -> None:
        """Read packages that are new or changed since the last scan. Blocks: call in a thread."""
        with self._scanning:
            if self._folder is not None and self._folder.is_dir():
                self._scan_folder(self._folder)
            if self._repository is not None:
                self._scan_repository(self._repository)

    def _scan_folder(self, root: Path) -> None:
        for folder in sorted(root.iterdir()):
            spec = folder / "model.toml"
            if not spec.is_file() or not self._is_new(spec):
                continue
            package = _read(folder)
            if package is not None:
                self._in_folder.append(package)
                self._index(package)

    def _scan_repository(self, repository: Path) -> None:
        # TUF's library: not loaded by a dispatcher without a repository.
        from edge_runtime.registry.repository import ModelRepository  # noqa: PLC0415

        timestamp = repository / METADATA_PATH / "timestamp.json"
        try:
            if not self._is_new(timestamp):
                return
            digests = {entry.digest for entry in ModelRepository(repository).published()}
        except (EdgeError, OSError) as error:
            _log.error("repository_not_read", repository=str(repository), reason=str(error))
            self._seen.pop(timestamp, None)
            return
        before, self._published = self._published, {}
        for digest in sorted(digests):
            package = before.get(digest) or _read(
                repository / MODELS_PATH / digest / _FILES_FOLDER, digest
            )
            if package is not None:
                self._published[digest] = package
        self._by_digest, self._by_name = {}, {}
        for package in (*self._in_folder, *self._published.values()):
            self._index(package, is_known=package.digest in before)

    def _is_new(self, path: Path) -> bool:
        stamp = path.stat().st_mtime_ns
        if self._seen.get(path) == stamp:
            return False
        self._seen[path] = stamp
        return True

    def _index(self, package: Package, *, is_known: bool = False) -> None:
        spec = package.spec
        self._by_digest[package.digest] = package
        self._by_name[f"{spec.name}@{spec.version}"] = package
        newest = self._by_name.get(spec.name)
        if newest is None or _version(spec.version) >= _version(newest.spec.version):
            self._by_name[spec.name] = package
        if not is_known:
            _log.info(
                "package_served", model=spec.name, version=spec.version, digest=package.digest
            )

    def find(self, model: str) -> Package | None:
        """A package by digest, `name@version` or name."""
        return self._by_digest.get(model) or self._by_name.get(model)

    def require(self, digest: str) -> Package:
        """A package by digest; `Refusal` 404 otherwise."""
        package = self._by_digest.get(digest)
        if package is None:
            message = f"no package with digest {digest[:80]}"
            raise Refusal(
                Problem(code="unknown_model", message=message, status=404, field="digest")
            )
        return package

    def manifest(self, digest: str) -> bytes:
        """A package's canonical manifest."""
        return self.require(digest).manifest.canonical_bytes()

    def file(self, digest: str, path: str) -> Path:
        """A file that the package's manifest names."""
        package = self.require(digest)
        if all(entry.path != path for entry in package.manifest.files):
            message = f"the package has no file {path[:200]!r}"
            raise Refusal(Problem(code="unknown_file", message=message, status=404, field="path"))
        return Path(package.folder) / path

    def metadata(self, name: str) -> Path:
        """A file of the repository's signed metadata; `Refusal` 404 where there is none."""
        if self._repository is not None and is_metadata_name(name):
            path = self._repository / METADATA_PATH / name
            if path.is_file():
                return path
        message = f"no signed metadata {name[:80]!r}"
        raise Refusal(Problem(code="unknown_metadata", message=message, status=404, field="name"))

    def views(self) -> list[ModelView]:
        """Every package, for people."""
        return [
            ModelView(
                name=package.spec.name,
                version=package.spec.version,
                task=package.spec.task,
                digest=digest,
                bytes=package.manifest.total_bytes,
                licence=package.spec.licence,
            )
            for digest, package in sorted(
                self._by_digest.items(), key=lambda pair: (pair[1].spec.name, pair[0])
            )
        ]


def _read(folder: Path, digest: str | None = None) -> Package | None:
    """The package in a folder, which must be that of `digest`; None, and a line, where it is not.

    Every byte is read.
    """
    try:
        package = read_package(folder)
    except (PackageRefused, OSError) as error:
        _log.warning("package_refused", folder=str(folder), reason=str(error))
        return None
    if digest is not None and package.digest != digest:
        _log.warning("package_refused", folder=str(folder), reason=f"it is {package.digest}")
        return None
    return package


def _version(text: str) -> tuple[tuple[int, str], ...]:
    return tuple(
        (int(part), "") if part.isdigit() else (-1, part)
        for part in text.replace("-", ".").split(".")
    )
