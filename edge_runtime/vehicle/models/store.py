"""The car's model packages on disk: verified once, named by digest, bounded in size.

Invariants
- A folder named by a digest holds exactly what the digest names: packages are put together in a
  folder of another name, verified, and renamed. What an interruption leaves of a copy is swept at
  start; what it leaves of a download is gone on with, and counts against the quota.
- The quota holds before a file is fetched; unfinished downloads and then the least recently used
  packages make room, but never one that is in use.
- With a trusted root, a package is held only while its publisher's signature was seen once under
  that root (`trust.json` beside it); one that is found not to be published any more is removed.
  What is held is used without a network, however old its proof is.
- One process at a time has the folder. Everything slow runs in a thread, everything with a
  network in a process of its own; asking twice for a digest at once fetches it once.

`PackageRefused` says that the package is wrong, `StoreFull` that this car has no room,
`FetchFailed` that the server could not be had: only the last is worth another try soon.

Deliberately absent: compression, several servers for one download.
"""

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import msgspec
import structlog

from edge_runtime.contract import limits
from edge_runtime.contract.errors import ConfigError, LocalError
from edge_runtime.contract.package import (
    Manifest,
    Package,
    PackageFault,
    PackageRefused,
    parse_manifest,
    read_package,
    read_spec,
    verify_package,
)
from edge_runtime.pki.files import PUBLIC_MODE, sync_path, write_file
from edge_runtime.vehicle.models.fetching import (
    FetchFailed,
    FetchProcess,
    StoreFull,
    fetching,
)
from edge_runtime.vehicle.models.orders import (
    PACKAGE_FOLDER,
    Order,
    Patience,
    TrustedRoot,
)

__all__ = ["FetchFailed", "PackageStore", "StoreFull", "StoreHeld", "TrustMark"]

MANIFEST_FILE: Final = "manifest.json"
TRUST_FILE: Final = "trust.json"
_LOCK_FILE: Final = ".lock"
_TRUST_FOLDER: Final = ".trust"
_INCOMING: Final = ".incoming-"
_PARTIAL: Final = ".partial-"

_log = structlog.get_logger()


class StoreHeld(LocalError):  # noqa: N818 - named for what it is
    """Another process has this folder of packages."""


class TrustMark(msgspec.Struct, frozen=True):
    """Beside a package: the SHA-256 of the root file under which it was proven, and by whom."""

    root_sha256: str
    publisher: str


class PackageStore:
    """Verified packages under `root`, `quota_bytes` in total. Call from one event loop.

    Each is `root/<digest>/package` with `root/<digest>/manifest.json` beside it. `trusted_root`
    is the file of a TUF root: with it, only what is signed under it is accepted or used.

    Raises `StoreHeld` where another process has the folder, `ConfigError` for a root that cannot
    be read.
    """

    def __init__(
        self,
        root: Path,
        quota_bytes: int,
        *,
        trusted_root: Path | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._root = root
        self._quota_bytes = quota_bytes
        self._patience = patience or Patience()
        self._trust: TrustedRoot | None = None
        self._root_sha256 = ""
        self._packages: dict[str, Package] = {}
        self._unproven: dict[str, Package] = {}
        self._partials: dict[Path, int] = {}
        self._in_use: Counter[str] = Counter()
        self._promised_bytes = 0
        self._fetching: dict[str, asyncio.Task[Package]] = {}
        self._proving = asyncio.Lock()
        self._running: set[FetchProcess] = set()
        self._received_bytes = 0
        root.mkdir(parents=True, exist_ok=True)
        self._lock: int | None = _lock(root / _LOCK_FILE)
        if trusted_root is not None:
            self._root_sha256 = _sha256_of_root(trusted_root)
            # A folder for each root: what one repository proved is nothing under another's.
            folder = root / _TRUST_FOLDER / self._root_sha256[:16]
            self._trust = TrustedRoot(str(trusted_root.absolute()), str(folder.absolute()))
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
        held = (*self._packages.values(), *self._unproven.values())
        return sum(package.manifest.total_bytes for package in held)

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
        package = self._packages.pop(digest, None) or self._unproven.pop(digest, None)
        if package is not None:
            await asyncio.to_thread(self._delete, package.folder.parent)

    # --- what comes in -------------------------------------------------------------------

    async def add(self, folder: Path) -> Package:
        """Copy a package from a folder of this machine, whoever put it there.

        With a trusted root it is not used before it is proven, which `fetch` does. Raises
        `PackageRefused`, `StoreFull` or `OSError`.
        """
        source = await asyncio.to_thread(read_package, folder)
        held = self.get(source.digest)
        if held is not None:
            return held
        async with self._room_for(source.manifest):
            package = await asyncio.to_thread(self._copy_in, source)
            where = self._packages if self._trust is None else self._unproven
            where[package.digest] = package
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

    async def check(self, base_url: str) -> tuple[str, ...]:
        """Ask whether what is held is still published; what is not is removed and returned.

        Without a trusted root everything is. Raises as `fetch`; then nothing was removed.
        """
        digests = self.digests()
        if self._trust is None or not digests:
            return ()
        order = self._order(digests, base_url)
        async with self._proving, fetching() as process, self._listed(process):
            verdicts = await process.verdicts(order)
        gone = tuple(digest for digest in verdicts.not_published if digest in self._packages)
        for digest in gone:
            _log.warning("package_not_published_any_more", model=digest)
            await self.remove(digest)
        return gone

    def take_received_bytes(self) -> int:
        """What came from servers since the last call, of use or not."""
        received, self._received_bytes = self._received_bytes, 0
        return received

    def break_off(self) -> None:
        """End running downloads: each `fetch` raises `FetchFailed`, and goes on if asked again."""
        for process in self._running:
            process.break_off()

    @contextlib.asynccontextmanager
    async def _listed(self, process: FetchProcess) -> AsyncIterator[None]:
        self._running.add(process)
        try:
            yield
        finally:
            self._running.discard(process)
            self._received_bytes += process.received_bytes

    async def close(self) -> None:
        """Break downloads off, to be gone on with later, and let the folder go."""
        tasks = list(self._fetching.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def _fetch(self, digest: str, base_url: str) -> Package:
        """Prove, make room, fetch, verify; what comes in outlives everything but a refusal."""
        partial = self._root / f"{_PARTIAL}{digest}"
        order = self._order((digest,), base_url, partial)
        async with contextlib.AsyncExitStack() as room:
            async with fetching() as process, self._listed(process):
                # One at a time at the verified metadata; a download does not need it any more.
                async with self._proving if self._trust else contextlib.nullcontext():
                    held = await process.manifest(order)
                manifest = parse_manifest(held.data, digest)
                mark = TrustMark(self._root_sha256, held.publisher)
                package = self._unproven.pop(digest, None)
                if package is not None:
                    await self._prove(package, mark)
                else:
                    await self._download(process, partial, manifest, room)
                    package = await self._settle_download(partial, manifest, held.data, mark)
            self._packages[digest] = package
        _log.info(
            "package_fetched",
            model=digest,
            bytes=manifest.total_bytes,
            publisher=held.publisher or None,
        )
        return package

    async def _prove(self, package: Package, mark: TrustMark) -> None:
        try:
            await asyncio.to_thread(_write_mark, package.folder.parent, mark)
        except BaseException:
            self._unproven[package.digest] = package
            raise

    async def _download(
        self,
        process: FetchProcess,
        partial: Path,
        manifest: Manifest,
        room: contextlib.AsyncExitStack,
    ) -> None:
        """Have the files in `partial`, with room for them until `room` ends.

        Where it breaks off, what came stays for the next time.
        """
        self._partials.pop(partial, None)
        had_bytes = await asyncio.to_thread(_bytes_in, partial)
        proven_bytes = process.received_bytes
        try:
            await room.enter_async_context(self._room_for(manifest, had_bytes))
            if had_bytes:
                _log.info("package_download_goes_on", model=partial.name, bytes=had_bytes)
            await process.files()
        except (PackageRefused, StoreFull):
            await asyncio.to_thread(shutil.rmtree, partial, ignore_errors=True)
            raise
        except BaseException:
            left_bytes = await asyncio.to_thread(_bytes_in, partial)
            if process.received_bytes == proven_bytes:
                # It was ended before it could say more: what is on the disk came, at least.
                self._received_bytes += max(0, left_bytes - had_bytes)
            if left_bytes:
                self._partials[partial] = left_bytes
                await self._drop_partials(limits.PARTIAL_DOWNLOADS_MAX)
            raise

    async def _settle_download(
        self, partial: Path, manifest: Manifest, data: bytes, mark: TrustMark
    ) -> Package:
        try:
            return await asyncio.to_thread(self._settle, partial, manifest, data, mark)
        except (PackageRefused, OSError):
            await asyncio.to_thread(shutil.rmtree, partial, ignore_errors=True)
            raise

    def _order(self, digests: tuple[str, ...], base_url: str, folder: Path | None = None) -> Order:
        return Order(
            digests=digests,
            base_url=base_url,
            folder=None if folder is None else str(folder.absolute()),
            trust=self._trust,
            patience=self._patience,
        )

    async def _drop_partials(self, keep: int) -> None:
        """Delete unfinished downloads but the newest `keep`."""
        for partial in list(self._partials)[: max(0, len(self._partials) - keep)]:
            del self._partials[partial]
            await asyncio.to_thread(shutil.rmtree, partial, ignore_errors=True)

    def _copy_in(self, source: Package) -> Package:
        with self._incoming() as incoming:
            for file in source.manifest.files:
                target = incoming / PACKAGE_FOLDER / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source.folder / file.path, target)
            data = source.manifest.canonical_bytes()
            return self._settle(incoming, source.manifest, data, None)

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

    def _settle(
        self, incoming: Path, manifest: Manifest, data: bytes, mark: TrustMark | None
    ) -> Package:
        """Verify what came in and give it its name, in one step and durably."""
        package = verify_package(incoming / PACKAGE_FOLDER, manifest)
        (incoming / MANIFEST_FILE).write_bytes(data)
        if mark is not None and self._trust is not None:
            (incoming / TRUST_FILE).write_bytes(msgspec.json.encode(mark))
        for path in (*incoming.rglob("*"), incoming):
            sync_path(path)
        final = self._root / package.digest
        if final.exists():
            # A scan refused it, or it would have been found; what is verified replaces it.
            shutil.rmtree(final)
        incoming.rename(final)
        sync_path(self._root)
        return Package(
            folder=final / PACKAGE_FOLDER,
            manifest=manifest,
            spec=package.spec,
            digest=package.digest,
        )

    # --- room ----------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _room_for(self, manifest: Manifest, had_bytes: int = 0) -> AsyncIterator[None]:
        """Hold room for a package until it counts itself, evicting others where needed.

        `had_bytes` of it are on the disk already.
        """
        wanted = manifest.total_bytes
        self._promised_bytes += wanted
        try:
            await self._make_room(wanted, had_bytes)
            yield
        finally:
            self._promised_bytes -= wanted

    async def _make_room(self, wanted: int, had_bytes: int) -> None:
        if wanted > self._quota_bytes:
            raise StoreFull(f"the package has {wanted} bytes; the quota is {self._quota_bytes}")
        while self._partials and not self._is_within_quota():
            await self._drop_partials(len(self._partials) - 1)
        for digest in (*self._unproven, *self._packages):
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
        if free < wanted - had_bytes + limits.JOURNAL_RESERVE_BYTES:
            raise StoreFull(f"{wanted - had_bytes} bytes are wanted; the disk has {free} left")

    def _is_within_quota(self) -> bool:
        unfinished = sum(self._partials.values())
        return self.total_bytes + unfinished + self._promised_bytes <= self._quota_bytes

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
        folders = [
            entry
            for entry in self._root.iterdir()
            if entry.is_dir() and entry.name != _TRUST_FOLDER
        ]
        for folder in sorted(folders, key=lambda entry: entry.stat().st_mtime_ns):
            if folder.name.startswith(_PARTIAL):
                self._partials[folder] = _bytes_in(folder)
                continue
            try:
                package = _reopen(folder)
            except (PackageRefused, OSError) as error:
                _log.warning("package_ignored", folder=folder.name, why=str(error))
                continue
            is_proven = self._trust is None or _mark_of(folder).root_sha256 == self._root_sha256
            where = self._packages if is_proven else self._unproven
            where[folder.name] = package
        _log.info(
            "package_store",
            packages=len(self._packages),
            unproven=len(self._unproven),
            unfinished=len(self._partials),
            trusted_root=self._root_sha256[:16] or "none: whatever has its digest is accepted",
        )


def _reopen(folder: Path) -> Package:
    manifest = parse_manifest((folder / MANIFEST_FILE).read_bytes(), folder.name)
    package = folder / PACKAGE_FOLDER
    for file in manifest.files:
        if (package / file.path).stat().st_size != file.length:
            raise PackageRefused(PackageFault.WRONG_FILE, f"{file.path} changed its length")
    return Package(folder=package, manifest=manifest, spec=read_spec(package), digest=folder.name)


def _lock(path: Path) -> int:
    """Be the only process here; the kernel lets go with the process. Raises `StoreHeld`."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in {errno.EACCES, errno.EAGAIN}:
            raise StoreHeld(f"{path.parent}: another process has these packages") from None
        raise
    return descriptor


def _sha256_of_root(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(limits.ROOT_METADATA_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"the trusted root {path}: {error.strerror}") from None
    if len(data) > limits.ROOT_METADATA_MAX_BYTES:
        raise ConfigError(f"the trusted root {path} is over {limits.ROOT_METADATA_MAX_BYTES} bytes")
    try:
        kind = msgspec.json.decode(data)["signed"]["_type"]
    except (msgspec.DecodeError, KeyError, TypeError):
        kind = None
    if kind != "root":
        raise ConfigError(f"the trusted root {path} is no TUF root, such as 1.root.json")
    return hashlib.sha256(data).hexdigest()


def _mark_of(folder: Path) -> TrustMark:
    """What proved a package; a mark of nothing where none can be read."""
    try:
        return msgspec.json.decode((folder / TRUST_FILE).read_bytes(), type=TrustMark)
    except (OSError, msgspec.DecodeError):
        return TrustMark("", "")


def _write_mark(folder: Path, mark: TrustMark) -> None:
    write_file(folder / TRUST_FILE, msgspec.json.encode(mark), mode=PUBLIC_MODE)


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
