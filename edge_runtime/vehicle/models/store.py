"""The car's model packages on disk: verified once, named by digest, bounded in size.

Invariants
- A folder named by a digest holds exactly what the digest names: packages are put together in a
  folder of another name, verified, and renamed. What an interruption leaves is swept at start.
- The quota holds before a byte is fetched; the least recently used packages make room, but
  never one that is in use.
- Everything slow runs in a thread; asking twice for a digest at once fetches it once. A download
  never keeps the process: what it leaves is an interruption's.

`PackageRefused` says that the package is wrong, `StoreFull` that this car has no room,
`FetchFailed` that the server could not be had: only the last is worth another try soon.

Deliberately absent: signatures (a later issue), compression, partial downloads that go on later.
"""

import asyncio
import contextlib
import errno
import os
import shutil
import tempfile
import threading
import urllib.parse
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog

from edge_runtime.contract import limits
from edge_runtime.contract.errors import LocalError
from edge_runtime.contract.package import (
    Manifest,
    Package,
    PackageFault,
    PackageFile,
    PackageRefused,
    parse_manifest,
    read_package,
    read_spec,
    verify_package,
)

if TYPE_CHECKING:
    from http.client import HTTPResponse

MANIFEST_FILE: Final = "manifest.json"
_INCOMING: Final = ".incoming-"
_COPY_BYTES: Final = 1 << 18

T = TypeVar("T")

_log = structlog.get_logger()


class StoreFull(LocalError, OSError):  # noqa: N818 - named for what it is
    """There is no room for the package: the quota, or the disk, is used up."""


class FetchFailed(OSError):  # noqa: N818 - named for what happened
    """The package server could not be reached, or did not send what it said."""


class PackageStore:
    """Verified packages under `root`, `quota_bytes` in total.

    Each is `root/<digest>/package` with `root/<digest>/manifest.json` beside it. Call from one
    event loop.
    """

    def __init__(self, root: Path, quota_bytes: int) -> None:
        self._root = root
        self._quota_bytes = quota_bytes
        self._packages: dict[str, Package] = {}
        self._in_use: Counter[str] = Counter()
        self._promised_bytes = 0
        self._fetching: dict[str, asyncio.Task[Package]] = {}
        root.mkdir(parents=True, exist_ok=True)
        self._sweep()
        self._scan()

    def __repr__(self) -> str:
        return f"<PackageStore {self._root} packages={len(self._packages)}>"

    # --- what is held --------------------------------------------------------------------

    def digests(self) -> tuple[str, ...]:
        """Return what is held, most recently used first."""
        return tuple(reversed(self._packages))

    def get(self, digest: str) -> Package | None:
        """Return the package, where it is held, and count it as used now."""
        package = self._packages.get(digest)
        if package is not None and digest != next(reversed(self._packages)):
            self._packages[digest] = self._packages.pop(digest)
            with contextlib.suppress(OSError):
                # The order of use outlives the process in the folder's time.
                os.utime(package.folder.parent)
        return package

    @property
    def total_bytes(self) -> int:
        """Return what all packages take."""
        return sum(package.manifest.total_bytes for package in self._packages.values())

    @contextlib.contextmanager
    def using(self, digest: str) -> Iterator[None]:
        """Keep the package from being evicted while the block runs."""
        self._in_use[digest] += 1
        try:
            yield
        finally:
            self._in_use[digest] -= 1

    async def verify(self, digest: str) -> Package | None:
        """Hash every byte of a held package again; one that fails is removed.

        Returns None for a package that is not held. Raises `PackageRefused` or `OSError`.
        """
        package = self._packages.get(digest)
        if package is None:
            return None
        try:
            return await asyncio.to_thread(verify_package, package.folder, package.manifest)
        except PackageRefused as error:
            _log.error("package_damaged", model=digest, why=str(error))
            await self.remove(digest)
            raise

    async def remove(self, digest: str) -> None:
        """Remove a package; one that is not held is no error."""
        package = self._packages.pop(digest, None)
        if package is not None:
            await asyncio.to_thread(self._delete, package.folder.parent)

    # --- what comes in -------------------------------------------------------------------

    async def add(self, folder: Path) -> Package:
        """Copy a package from a folder of this machine.

        Raises `PackageRefused`, `StoreFull` or `OSError`.
        """
        source = await asyncio.to_thread(read_package, folder)
        held = self.get(source.digest)
        if held is not None:
            return held
        async with self._room_for(source.manifest):
            package = await asyncio.to_thread(self._copy_in, source)
            self._packages[package.digest] = package
        return package

    async def fetch(self, digest: str, base_url: str) -> Package:
        """Have the package, from the server at `base_url` unless it is held.

        Raises `PackageRefused`, `StoreFull` or `FetchFailed` (both are `OSError`s).
        """
        held = self.get(digest)
        if held is not None:
            return held
        task = self._fetching.get(digest)
        if task is None:
            task = asyncio.create_task(self._fetch(digest, base_url), name=f"fetch {digest[:16]}")
            self._fetching[digest] = task
            task.add_done_callback(lambda done: self._fetched(digest, done))
        # One caller that gives up must not take the download from the others.
        return await asyncio.shield(task)

    def _fetched(self, digest: str, task: asyncio.Task[Package]) -> None:
        del self._fetching[digest]
        if not task.cancelled() and (error := task.exception()) is not None:
            # Told here as well: everybody who asked may have given up.
            _log.warning("package_not_fetched", model=digest, why=str(error))

    async def close(self) -> None:
        """Wait for downloads to end; call when nobody wants packages any more."""
        if self._fetching:
            await asyncio.gather(*self._fetching.values(), return_exceptions=True)

    async def _fetch(self, digest: str, base_url: str) -> Package:
        url = f"{base_url.rstrip('/')}/v1/models/{digest}"
        data = await _in_daemon_thread(
            _get_bytes, f"{url}/manifest", limits.PACKAGE_MANIFEST_MAX_BYTES
        )
        manifest = parse_manifest(data, digest)
        async with self._room_for(manifest):
            package = await _in_daemon_thread(self._download, manifest, data, url)
            self._packages[digest] = package
        _log.info("package_fetched", model=digest, bytes=manifest.total_bytes)
        return package

    def _download(self, manifest: Manifest, data: bytes, url: str) -> Package:
        with self._incoming() as incoming:
            for file in manifest.files:
                target = incoming / "package" / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                _get_file(f"{url}/files/{urllib.parse.quote(file.path)}", file, target)
            return self._settle(incoming, manifest, data)

    def _copy_in(self, source: Package) -> Package:
        with self._incoming() as incoming:
            for file in source.manifest.files:
                target = incoming / "package" / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source.folder / file.path, target)
            return self._settle(incoming, source.manifest, source.manifest.canonical_bytes())

    @contextlib.contextmanager
    def _incoming(self) -> Iterator[Path]:
        """Give a folder that is gone again unless it was settled; a full disk is `StoreFull`."""
        try:
            folder = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self._root))
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise StoreFull(f"no space left under {self._root}") from error
            raise

    def _settle(self, incoming: Path, manifest: Manifest, data: bytes) -> Package:
        """Verify what came in and give it its name, in one step and durably."""
        package = verify_package(incoming / "package", manifest)
        (incoming / MANIFEST_FILE).write_bytes(data)
        for path in (*incoming.rglob("*"), incoming):
            _sync(path)
        final = self._root / package.digest
        if final.exists():
            # A scan refused it, or it would have been found; what is verified replaces it.
            shutil.rmtree(final)
        incoming.rename(final)
        _sync(self._root)
        return Package(
            folder=final / "package",
            manifest=manifest,
            spec=package.spec,
            digest=package.digest,
        )

    # --- room ----------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _room_for(self, manifest: Manifest) -> AsyncIterator[None]:
        """Hold room for a package until it counts itself, evicting others where needed."""
        wanted = manifest.total_bytes
        self._promised_bytes += wanted
        try:
            await self._make_room(wanted)
            yield
        finally:
            self._promised_bytes -= wanted

    async def _make_room(self, wanted: int) -> None:
        if wanted > self._quota_bytes:
            raise StoreFull(f"the package has {wanted} bytes; the quota is {self._quota_bytes}")
        for digest in list(self._packages):
            if self._is_within_quota():
                break
            if self._in_use[digest] <= 0:
                _log.info("package_evicted", model=digest)
                await self.remove(digest)
        if not self._is_within_quota():
            raise StoreFull(
                f"{wanted} bytes are wanted; {self.total_bytes} of {self._quota_bytes} are in use"
            )
        free = shutil.disk_usage(self._root).free
        if free < wanted + limits.JOURNAL_RESERVE_BYTES:
            raise StoreFull(f"{wanted} bytes are wanted; the disk has {free} left")

    def _is_within_quota(self) -> bool:
        return self.total_bytes + self._promised_bytes <= self._quota_bytes

    @staticmethod
    def _delete(folder: Path) -> None:
        """Rename, then delete: half a package must never carry a digest."""
        doomed = folder.with_name(f"{_INCOMING}{folder.name}")
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    # --- start ---------------------------------------------------------------------------

    def _sweep(self) -> None:
        for leftover in self._root.glob(f"{_INCOMING}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _scan(self) -> None:
        """Find the packages of earlier runs; they were verified when they got their names."""
        folders = [entry for entry in self._root.iterdir() if entry.is_dir()]
        for folder in sorted(folders, key=lambda entry: entry.stat().st_mtime_ns):
            try:
                self._packages[folder.name] = _reopen(folder)
            except (PackageRefused, OSError) as error:
                _log.warning("package_ignored", folder=folder.name, why=str(error))


async def _in_daemon_thread(function: Callable[..., T], *arguments: Any) -> T:
    """As `asyncio.to_thread`, whose threads the interpreter would wait for at its end."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def tell(settle: Callable[[Any], None], value: Any) -> None:
        if not answer.done():
            settle(value)

    def work() -> None:
        outcome: tuple[Callable[[Any], None], Any]
        try:
            outcome = answer.set_result, function(*arguments)
        except Exception as error:  # noqa: BLE001 - whoever waits gets it
            outcome = answer.set_exception, error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, *outcome)

    threading.Thread(target=work, name="package download", daemon=True).start()
    return await answer


def _reopen(folder: Path) -> Package:
    manifest = parse_manifest((folder / MANIFEST_FILE).read_bytes(), folder.name)
    package = folder / "package"
    for file in manifest.files:
        if (package / file.path).stat().st_size != file.length:
            raise PackageRefused(PackageFault.WRONG_FILE, f"{file.path} changed its length")
    return Package(folder=package, manifest=manifest, spec=read_spec(package), digest=folder.name)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open(url: str) -> "HTTPResponse":
    """Ask the server. Raises `FetchFailed`."""
    # urllib brings HTTP, TLS and proxies; an idle car has no use for them.
    import urllib.error  # noqa: PLC0415
    import urllib.request  # noqa: PLC0415
    from http.client import HTTPException  # noqa: PLC0415

    if urllib.parse.urlsplit(url).scheme not in {"http", "https"}:
        raise FetchFailed(f"{url}: packages are fetched over http or https only")
    try:
        response: HTTPResponse = urllib.request.urlopen(  # noqa: S310 - the scheme was checked
            url, timeout=limits.FETCH_TIMEOUT_S
        )
    except (OSError, HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise FetchFailed(f"{url}: {error}") from error
    return response


def _blocks(url: str) -> Iterator[bytes]:
    from http.client import HTTPException  # noqa: PLC0415 - as in `_open`

    with _open(url) as response:
        while True:
            try:
                block = response.read(_COPY_BYTES)
            except (OSError, HTTPException) as error:
                raise FetchFailed(f"{url}: {error}") from error
            if not block:
                return
            yield block


def _get_bytes(url: str, max_bytes: int) -> bytes:
    data = bytearray()
    for block in _blocks(url):
        data += block
        if len(data) > max_bytes:
            raise PackageRefused(PackageFault.TOO_LARGE, f"{url}: over {max_bytes} bytes")
    return bytes(data)


def _get_file(url: str, file: PackageFile, target: Path) -> None:
    """Stream a file to disk; it may not be a byte longer than its manifest says."""
    length = 0
    with target.open("xb") as output:
        for block in _blocks(url):
            length += len(block)
            if length > file.length:
                raise PackageRefused(
                    PackageFault.WRONG_FILE, f"{file.path} is over its {file.length} bytes"
                )
            output.write(block)
    if length < file.length:
        raise FetchFailed(f"{url}: ended after {length} of {file.length} bytes")
