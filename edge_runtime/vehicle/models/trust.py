"""What a car believes of a signed model repository (TUF 1.0, `tuf.ngclient`).

Invariants
- The only thing trusted from the beginning is the root file that came with the car. Everything
  else is verified before it is kept, and what is kept only grows in version.
- A package is published when some publisher's list, led to by an unexpired timestamp, names its
  digest. Metadata that cannot be had proves nothing, either way.
- A clock that is behind the last moment that was proven is no clock: metadata that has expired
  would look fresh.

Blocks and loads the `tuf` library: for a process of its own (`fetch`). Deliberately absent: the
library's way to fetch targets, which knows no broken downloads.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    RepositoryError,
)
from tuf.api.metadata import Metadata, Snapshot, Targets
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edge_runtime.contract import limits
from edge_runtime.contract.errors import ConfigError
from edge_runtime.contract.package import PackageFault, PackageRefused
from edge_runtime.contract.repository import METADATA_PATH, require_publisher, target_path
from edge_runtime.pki.files import PUBLIC_MODE, write_file
from edge_runtime.vehicle.models.download import Downloader, ServerFailed

_CLOCK_FILE: Final = "proven-utc-s"
_CONFIG: Final = UpdaterConfig(
    max_root_rotations=limits.ROOT_ROTATIONS_MAX,
    max_delegations=limits.PUBLISHERS_MAX,
    root_max_length=limits.ROOT_METADATA_MAX_BYTES,
    timestamp_max_length=limits.TIMESTAMP_METADATA_MAX_BYTES,
    snapshot_max_length=limits.SNAPSHOT_METADATA_MAX_BYTES,
    targets_max_length=limits.TARGETS_METADATA_MAX_BYTES,
)


class Proof(msgspec.Struct, frozen=True):
    """Who published a package, and how long its manifest is."""

    publisher: str
    manifest_bytes: int


class Trust:
    """The repository at `base_url`, judged by what is kept in `folder` and the `root` file.

    Raises `ConfigError` for a root that cannot be read, `PackageRefused` (bad_repository) where
    the repository must not be believed, and `ServerFailed` where it cannot be had.
    """

    def __init__(self, root: bytes, folder: Path, base_url: str, downloader: Downloader) -> None:
        self._folder = folder
        self._check_clock()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._updater = Updater(
                metadata_dir=str(folder),
                metadata_base_url=f"{base_url.rstrip('/')}/{METADATA_PATH}/",
                fetcher=_Fetcher(downloader),
                config=_CONFIG,
                bootstrap=root,
            )
        except (RepositoryError, ValueError) as error:
            raise ConfigError(f"the trusted root file is no TUF root: {error}") from error
        try:
            self._updater.refresh()
            self._publishers = list(self._known_publishers())
        except (RepositoryError, DownloadLengthMismatchError) as error:
            raise _unbelievable(error) from error
        except DownloadError as error:
            raise _unavailable(error) from error
        self._note_clock()

    def proof(self, digest: str) -> Proof:
        """Who publishes the package now.

        Raises `PackageRefused` (not_published) where nobody does, and as the constructor.
        """
        problem: PackageRefused | None = None
        for publisher in self._publishers:
            path = target_path(publisher, digest)
            try:
                target = self._updater.get_targetinfo(path)
            except (RepositoryError, DownloadLengthMismatchError) as error:
                # One publisher's broken list must not take the others' packages from the car.
                problem = _unbelievable(error)
                continue
            except DownloadError as error:
                raise _unavailable(error) from error
            if target is None:
                continue
            if target.hashes.get("sha256") != digest:
                raise PackageRefused(
                    PackageFault.BAD_REPOSITORY, f"{path} is signed with another SHA-256"
                )
            return Proof(publisher, target.length)
        if problem is not None:
            raise problem
        names = ", ".join(self._publishers) or "no publishers"
        raise PackageRefused(
            PackageFault.NOT_PUBLISHED, f"{digest} is not among the packages of {names}"
        )

    def _known_publishers(self) -> Iterator[str]:
        """The publishers with a list, from what the updater has just verified and written."""
        meta = Metadata[Snapshot].from_file(str(self._folder / "snapshot.json")).signed.meta
        targets = Metadata[Targets].from_file(str(self._folder / "targets.json")).signed
        delegations = targets.delegations
        names = list((delegations.roles or {}) if delegations is not None else {})
        for name in names[: limits.PUBLISHERS_MAX]:
            try:
                require_publisher("a publisher's name", name)
            except ConfigError as error:
                raise PackageRefused(PackageFault.BAD_REPOSITORY, str(error)) from error
            if f"{name}.json" in meta:
                yield name

    def _check_clock(self) -> None:
        try:
            proven_s = int((self._folder / _CLOCK_FILE).read_text(encoding="ascii"))
        except (OSError, ValueError):
            return
        now_s = time.time()
        if now_s < proven_s - limits.CLOCK_SLACK_S:
            raise PackageRefused(
                PackageFault.BAD_REPOSITORY,
                f"the clock is {proven_s - now_s:.0f} s behind the last proven moment",
            )

    def _note_clock(self) -> None:
        # A wrong clock in the future cannot come this far by more than a timestamp's life.
        moment = str(int(time.time())).encode()
        write_file(self._folder / _CLOCK_FILE, moment, mode=PUBLIC_MODE)


class _Fetcher(FetcherInterface):
    """The library's network: ours, with our bounds."""

    def __init__(self, downloader: Downloader) -> None:
        self._downloader = downloader

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            yield from self._downloader.blocks(url)
        except ServerFailed as error:
            if error.status is not None:
                raise DownloadHTTPError(str(error), error.status) from error
            raise DownloadError(str(error)) from error


def _unbelievable(error: RepositoryError | DownloadLengthMismatchError) -> PackageRefused:
    what = "expired metadata: " if isinstance(error, ExpiredMetadataError) else ""
    return PackageRefused(PackageFault.BAD_REPOSITORY, f"{what}{error}")


def _unavailable(error: DownloadError) -> ServerFailed:
    status = error.status_code if isinstance(error, DownloadHTTPError) else None
    return ServerFailed(f"the signed metadata could not be had: {error}", status)
