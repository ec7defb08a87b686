"""The package store: what comes in is verified, what goes out was not needed."""

import asyncio
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from package_server import PackageServer

from edge_runtime.contract.package import Package, PackageFault, PackageRefused
from edge_runtime.vehicle.models.importers.synthetic import write_synthetic
from edge_runtime.vehicle.models.importers.writer import write_package
from edge_runtime.vehicle.models.store import FetchFailed, PackageStore, StoreFull

QUOTA = 1 << 20


@pytest.fixture
def noop(tmp_path: Path) -> Package:
    return write_synthetic("noop", tmp_path / "source")


def sized(tmp_path: Path, name: str, size: int) -> Package:
    """A package of about `size` bytes."""
    noop = write_synthetic("noop", tmp_path / "source")
    spec = msgspec.structs.replace(noop.spec, name=name)
    files = {"model.onnx": noop.path_of("model").read_bytes(), "padding.bin": bytes(size)}
    return write_package(spec, files, tmp_path / "source" / name)


def incoming(root: Path) -> list[Path]:
    return list(root.glob(".incoming-*"))


async def test_a_fetched_package_is_whole_and_stays(tmp_path: Path, noop: Package) -> None:
    root = tmp_path / "store"
    with PackageServer(noop).running() as server:
        store = PackageStore(root, QUOTA)
        fetched = await store.fetch(noop.digest, server.url + "/")
        assert fetched.digest == noop.digest
        assert fetched.spec == noop.spec
        assert fetched.path_of("model").read_bytes() == noop.path_of("model").read_bytes()
        assert fetched.folder.is_relative_to(root)
        asked = server.requests.total()
        assert await store.fetch(noop.digest, server.url) is fetched
        assert server.requests.total() == asked, "what is held is not asked for"
    again = PackageStore(root, QUOTA)
    assert again.digests() == (noop.digest,)
    assert again.get(noop.digest) == fetched
    assert await again.verify(noop.digest) is not None


async def test_fetches_of_one_digest_at_once_are_one(tmp_path: Path, noop: Package) -> None:
    server = PackageServer(noop)
    server.gate = threading.Event()
    with server.running():
        store = PackageStore(tmp_path / "store", QUOTA)
        fetches = [asyncio.create_task(store.fetch(noop.digest, server.url)) for _ in range(5)]
        impatient = asyncio.create_task(store.fetch(noop.digest, server.url))
        await asyncio.sleep(0)
        impatient.cancel()
        server.gate.set()
        packages = await asyncio.gather(*fetches)
        assert all(package is packages[0] for package in packages)
        assert set(server.requests.values()) == {1}


def manifest_path(package: Package) -> str:
    return f"/v1/models/{package.digest}/manifest"


def model_path(package: Package) -> str:
    return f"/v1/models/{package.digest}/files/model.onnx"


def wrong_manifest(server: PackageServer, package: Package) -> None:
    server.replace[manifest_path(package)] = b'{"files":[]}'


def endless_manifest(server: PackageServer, package: Package) -> None:
    server.replace[manifest_path(package)] = bytes(1 << 20)


def changed_file(server: PackageServer, package: Package) -> None:
    size = package.path_of("model").stat().st_size
    server.replace[model_path(package)] = bytes(size)


def longer_file(server: PackageServer, package: Package) -> None:
    server.replace[model_path(package)] = package.path_of("model").read_bytes() + b"more"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (wrong_manifest, PackageFault.WRONG_DIGEST),
        (endless_manifest, PackageFault.TOO_LARGE),
        (changed_file, PackageFault.WRONG_FILE),
        (longer_file, PackageFault.WRONG_FILE),
    ],
)
async def test_what_is_not_what_the_digest_names_is_refused(
    tmp_path: Path,
    noop: Package,
    spoil: Callable[[PackageServer, Package], None],
    reason: PackageFault,
) -> None:
    root = tmp_path / "store"
    store = PackageStore(root, QUOTA)
    with PackageServer(noop).running() as server:
        spoil(server, noop)
        with pytest.raises(PackageRefused) as caught:
            await store.fetch(noop.digest, server.url)
        assert caught.value.reason is reason
        assert store.digests() == ()
        assert incoming(root) == []
        server.replace.clear()
        assert (await store.fetch(noop.digest, server.url)).digest == noop.digest


def nothing_there(server: PackageServer, package: Package) -> None:
    server.status[manifest_path(package)] = 404


def server_error(server: PackageServer, package: Package) -> None:
    server.status[model_path(package)] = 503


def cut_file(server: PackageServer, package: Package) -> None:
    server.cut.add(model_path(package))


@pytest.mark.parametrize("spoil", [nothing_there, server_error, cut_file])
async def test_a_server_that_fails_is_worth_another_try(
    tmp_path: Path, noop: Package, spoil: Callable[[PackageServer, Package], None]
) -> None:
    store = PackageStore(tmp_path / "store", QUOTA)
    with PackageServer(noop).running() as server:
        spoil(server, noop)
        with pytest.raises(FetchFailed, match=noop.digest):
            await store.fetch(noop.digest, server.url)
        assert store.digests() == ()


async def test_nobody_there(tmp_path: Path, noop: Package) -> None:
    server = PackageServer(noop)
    with server.running():
        url = server.url
    with pytest.raises(FetchFailed, match="refused"):
        await PackageStore(tmp_path / "store", QUOTA).fetch(noop.digest, url)


async def test_only_http_is_fetched(tmp_path: Path, noop: Package) -> None:
    store = PackageStore(tmp_path / "store", QUOTA)
    with pytest.raises(FetchFailed, match="http or https only"):
        await store.fetch(noop.digest, f"file://{noop.folder}")


async def test_the_least_recently_used_package_makes_room(tmp_path: Path) -> None:
    store = PackageStore(tmp_path / "store", QUOTA)
    first, second, third, fourth = (
        sized(tmp_path, name, QUOTA * 3 // 10) for name in ("first", "second", "third", "fourth")
    )
    for package in (first, second, third):
        await store.add(package.folder)
    store.get(first.digest)
    with store.using(second.digest):
        await store.add(fourth.folder)
    assert set(store.digests()) == {first.digest, second.digest, fourth.digest}
    assert store.total_bytes <= QUOTA


async def test_no_room_when_everything_is_in_use(tmp_path: Path) -> None:
    store = PackageStore(tmp_path / "store", QUOTA)
    held = await store.add(sized(tmp_path, "held", QUOTA * 6 // 10).folder)
    other = sized(tmp_path, "other", QUOTA * 6 // 10)
    with store.using(held.digest), pytest.raises(StoreFull, match="in use"):
        await store.add(other.folder)
    assert store.digests() == (held.digest,)
    assert (await store.add(other.folder)).digest == other.digest
    assert store.digests() == (other.digest,)


async def test_more_than_the_quota_evicts_nothing(tmp_path: Path, noop: Package) -> None:
    store = PackageStore(tmp_path / "store", QUOTA)
    await store.add(noop.folder)
    with pytest.raises(StoreFull, match=f"the quota is {QUOTA}"):
        await store.add(sized(tmp_path, "huge", QUOTA).folder)
    assert store.digests() == (noop.digest,)


async def test_a_full_disk_is_a_full_store(
    tmp_path: Path, noop: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    root = tmp_path / "store"
    store = PackageStore(root, QUOTA)
    monkeypatch.setattr(shutil, "copyfile", no_space)
    with pytest.raises(StoreFull):
        await store.add(noop.folder)
    assert incoming(root) == []


async def test_the_order_of_use_outlives_the_process(tmp_path: Path, noop: Package) -> None:
    store = PackageStore(tmp_path / "store", QUOTA)
    other = sized(tmp_path, "other", 100)
    await store.add(noop.folder)
    await store.add(other.folder)
    store.get(noop.digest)
    assert PackageStore(tmp_path / "store", QUOTA).digests() == (noop.digest, other.digest)


async def test_leftovers_are_swept_and_strangers_ignored(tmp_path: Path, noop: Package) -> None:
    root = tmp_path / "store"
    store = PackageStore(root, QUOTA)
    held = await store.add(noop.folder)
    (root / ".incoming-dead").mkdir()
    (root / "stranger").mkdir()
    forged = root / ("0" * 64)
    shutil.copytree(held.folder.parent, forged)
    again = PackageStore(root, QUOTA)
    assert again.digests() == (noop.digest,)
    assert incoming(root) == []


async def test_a_damaged_package_is_found_and_removed(tmp_path: Path, noop: Package) -> None:
    root = tmp_path / "store"
    store = PackageStore(root, QUOTA)
    held = await store.add(noop.folder)
    model = held.path_of("model")
    model.write_bytes(bytes(model.stat().st_size))
    with pytest.raises(PackageRefused) as caught:
        await store.verify(noop.digest)
    assert caught.value.reason is PackageFault.WRONG_FILE
    assert store.digests() == ()
    assert (await store.add(noop.folder)).digest == noop.digest


def test_a_server_that_falls_silent_does_not_keep_a_process_from_ending(tmp_path: Path) -> None:
    child = Path(__file__).with_name("fetching_child.py")
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with subprocess.Popen([sys.executable, child, url, tmp_path / "store"]) as process:
            server.settimeout(30)
            connection, _ = server.accept()
            with connection:
                connection.recv(4_096)  # it has asked, and hears nothing more
                process.send_signal(signal.SIGTERM)
                try:
                    assert process.wait(10) == 0
                finally:
                    process.kill()
