"""The model packages that a dispatcher serves: a folder of package folders, read by digest.

A package that does not verify is left out with its reason in the log; the others are served.
"""

from pathlib import Path

import structlog

from edge_runtime.contract.http import ModelView, Problem
from edge_runtime.contract.package import Package, PackageRefused, read_package
from edge_runtime.dispatcher.front import Refusal

_log = structlog.get_logger(__name__)


class Shelf:
    """Packages by digest, by `name@version` and by name (its newest version)."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._by_digest: dict[str, Package] = {}
        self._by_name: dict[str, Package] = {}
        self._seen: dict[Path, int] = {}

    def scan(self) -> None:
        """Read packages that are new or changed since the last scan. Blocks: call in a thread."""
        if self._folder is None or not self._folder.is_dir():
            return
        for folder in sorted(self._folder.iterdir()):
            spec = folder / "model.toml"
            if not spec.is_file():
                continue
            stamp = spec.stat().st_mtime_ns
            if self._seen.get(folder) == stamp:
                continue
            self._seen[folder] = stamp
            try:
                self._add(read_package(folder))
            except (PackageRefused, OSError) as error:
                _log.warning("package_refused", folder=folder.name, reason=str(error))

    def _add(self, package: Package) -> None:
        spec = package.spec
        self._by_digest[package.digest] = package
        self._by_name[f"{spec.name}@{spec.version}"] = package
        newest = self._by_name.get(spec.name)
        if newest is None or _version(spec.version) >= _version(newest.spec.version):
            self._by_name[spec.name] = package
        _log.info("package_served", model=spec.name, version=spec.version, digest=package.digest)

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


def _version(text: str) -> tuple[tuple[int, str], ...]:
    return tuple(
        (int(part), "") if part.isdigit() else (-1, part)
        for part in text.replace("-", ".").split(".")
    )
