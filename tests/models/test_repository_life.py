"""A signed repository over time: keys change, publishers go, processes die, networks fail."""

import asyncio
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from repository_rig import IMPATIENT, PASSPHRASE, QUOTA, Registry
from repository_server import Evil, FolderServer
from tuf.api.metadata import Metadata, Targets

from edge_runtime.contract.errors import ConfigError
from edge_runtime.contract.package import Package, PackageFault, PackageRefused
from edge_runtime.registry.keys import KeyProblem, KeyRing, read_public_key
from edge_runtime.registry.metadata import RepositoryProblem
from edge_runtime.registry.repository import ModelRepository, Quorum
from edge_runtime.vehicle.models.store import FetchFailed, PackageStore, StoreFull

HERE = Path(__file__).parent
MONTH = timedelta(days=30)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry(tmp_path)
    registry.repository.add_publisher("acme", registry.ring)
    return registry


@pytest.fixture
def server(registry: Registry) -> Iterator[FolderServer]:
    with registry.serving() as server:
        yield server


def weights_path(package: Package) -> str:
    return f"/v1/models/{package.digest}/files/weights.bin"


# --- keys ----------------------------------------------------------------------------------------


async def test_a_car_follows_the_root_over_many_versions(
    registry: Registry, server: FolderServer
) -> None:
    """It has the first root; every key has changed since, the root's three times."""
    for role in ("root", "timestamp", "snapshot", "root", "targets", "acme", "root"):
        assert registry.repository.rotate_key(role, registry.ring)
    assert registry.repository.metadata.versions("root")[-1] == 7
    package = registry.published("first")
    fetched = await registry.car().fetch(package.digest, server.url)
    assert fetched.digest == package.digest


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp", "acme"])
async def test_a_car_that_was_there_before_a_rotation_goes_on(
    registry: Registry, server: FolderServer, role: str
) -> None:
    first = registry.published("first")
    await registry.car().fetch(first.digest, server.url)
    assert registry.repository.rotate_key(role, registry.ring)
    second = registry.published("second")
    assert (await registry.car().fetch(second.digest, server.url)).digest == second.digest


async def test_a_key_that_was_replaced_signs_nothing_any_more(
    registry: Registry, server: FolderServer
) -> None:
    shutil.copytree(registry.folder / "keys", registry.folder / "stolen")
    registry.repository.rotate_key("acme", registry.ring)
    stolen = KeyRing([registry.folder / "stolen"], lambda: PASSPHRASE)
    with pytest.raises(KeyProblem, match="0 found"):
        registry.repository.publish(registry.package("evil"), "acme", stolen)
    package = registry.published("first")
    assert (await registry.car().fetch(package.digest, server.url)).digest == package.digest


@pytest.mark.parametrize("role", ["targets", "timestamp", "acme"])
async def test_a_lost_key_is_replaced_without_it(
    registry: Registry, server: FolderServer, role: str
) -> None:
    first = registry.published("first")
    await registry.car().fetch(first.digest, server.url)
    for file in (registry.folder / "keys").glob(f"{role}.*"):
        file.unlink()
    registry.repository.rotate_key(role, registry.ring)
    second = registry.published("second")
    assert (await registry.car().fetch(second.digest, server.url)).digest == second.digest


def test_a_threshold_of_root_keys_must_be_at_hand(tmp_path: Path) -> None:
    registry = Registry(tmp_path, {"root": Quorum(keys=3, threshold=2)})
    keys = sorted((tmp_path / "keys").glob("root.*.pem"))
    assert len(keys) == 3
    safe = tmp_path / "safe"
    safe.mkdir()
    keys[0].rename(safe / keys[0].name)
    keys[1].rename(safe / keys[1].name)
    with pytest.raises(KeyProblem, match="root needs 2 of the keys"):
        registry.repository.renew("root", registry.ring)
    two_places = KeyRing([tmp_path / "keys", safe], lambda: PASSPHRASE)
    assert registry.repository.renew("root", two_places)
    with pytest.raises(ConfigError, match="--replace"):
        registry.repository.rotate_key("root", two_places)
    replaced = keys[0].name.split(".")[1]
    assert registry.repository.rotate_key("root", two_places, replaced)
    assert registry.repository.metadata.versions("root") == [1, 2, 3]


def test_key_files_are_private_and_encrypted(registry: Registry) -> None:
    files = list((registry.folder / "keys").glob("*.pem"))
    assert {file.name.split(".")[0] for file in files} == {
        *("root", "targets", "snapshot", "timestamp", "acme")
    }
    for file in files:
        assert file.stat().st_mode & 0o077 == 0
        is_online = file.name.startswith(("snapshot", "timestamp"))
        assert (b"ENCRYPTED" not in file.read_bytes()) is is_online
    wrong = KeyRing([registry.folder / "keys"], lambda: b"wrong")
    with pytest.raises(KeyProblem, match="wrong passphrase"):
        registry.repository.publish(registry.package("first"), "acme", wrong)
    none = KeyRing([registry.folder / "keys"], lambda: b"")
    with pytest.raises(KeyProblem, match="needs a passphrase"):
        none.generate("root")


# --- publishers ----------------------------------------------------------------------------------


async def test_a_revoked_publishers_packages_leave_the_cars(
    registry: Registry, server: FolderServer
) -> None:
    registry.repository.add_publisher("other", registry.ring)
    bad, good = registry.published("bad"), registry.published("good", "other")
    car = registry.car()
    for package in (bad, good):
        await car.fetch(package.digest, server.url)
    assert await car.check(server.url) == ()
    assert registry.repository.revoke_publisher("acme", registry.ring)
    assert await car.check(server.url) == (bad.digest,)
    assert car.digests() == (good.digest,)
    with pytest.raises(PackageRefused) as caught:
        await car.fetch(bad.digest, server.url)
    assert caught.value.reason is PackageFault.NOT_PUBLISHED
    with pytest.raises(ConfigError, match="no publisher 'acme'"):
        registry.repository.publish(bad, "acme", registry.ring)


async def test_a_publisher_comes_back_with_a_key_of_its_own(
    registry: Registry, server: FolderServer, tmp_path: Path
) -> None:
    first = registry.published("first")
    await registry.car().fetch(first.digest, server.url)
    registry.repository.revoke_publisher("acme", registry.ring)
    own = KeyRing([tmp_path / "at-acme"], lambda: b"known to acme only")
    public = own.generate("acme").public_key
    (path,) = (tmp_path / "at-acme").glob("*.pub")
    assert read_public_key(path).keyid == public.keyid
    assert registry.repository.add_publisher("acme", registry.ring, read_public_key(path))
    second = registry.package("second")
    assert not registry.repository.publish(second, "acme", own), "the online keys are not there"
    with pytest.raises(PackageRefused):
        await registry.car().fetch(second.digest, server.url)
    assert registry.repository.refresh(registry.ring), "the dispatcher signs what waits"
    assert (await registry.car().fetch(second.digest, server.url)).digest == second.digest


def test_names_and_counts_are_bounded(registry: Registry) -> None:
    for name in ("", "root", "a/b", "../x", "A", "a" * 33):
        with pytest.raises(ConfigError, match="PUBLISHER must be"):
            registry.repository.add_publisher(name, registry.ring)
    with pytest.raises(ConfigError, match="already"):
        registry.repository.add_publisher("acme", registry.ring)
    with pytest.raises(ConfigError, match="a repository already"):
        registry.repository.create(registry.ring, {})
    with pytest.raises(ConfigError, match="threshold"):
        Quorum(keys=1, threshold=2)


def test_what_a_publisher_says_of_a_package_is_not_believed(registry: Registry) -> None:
    package = registry.published("first")
    metadata = Metadata[Targets].from_file(str(registry.newest("acme")))
    (target,) = metadata.signed.targets.values()
    hostile: list[object] = [{"bytes": "x"}, {"name": ["x"]}, "x", {"name": "a\x1b[2J"}, None]
    for custom in hostile:
        target.unrecognized_fields["custom"] = custom
        registry.repository._write("acme", metadata, registry.ring)
        registry.repository.refresh(registry.ring)
        (entry,) = registry.repository.published()
        assert (entry.digest, entry.name, entry.total_bytes) == (package.digest, "", 0)
    metadata.signed.targets = {"acme/..": target}
    registry.repository._write("acme", metadata, registry.ring)
    registry.repository.refresh(registry.ring)
    assert registry.repository.published() == []


def test_a_broken_list_of_one_publisher_does_not_hold_up_the_others(registry: Registry) -> None:
    registry.repository.add_publisher("other", registry.ring)
    first = registry.published("first")
    (registry.metadata / "2.acme.json").write_bytes(b"{")
    second = registry.published("second", "other")
    digests = {entry.digest for entry in registry.repository.published()}
    assert digests == {first.digest, second.digest}
    with pytest.raises(RepositoryProblem, match="no TUF metadata"):
        registry.repository.publish(registry.package("third"), "acme", registry.ring)


# --- the online keys -----------------------------------------------------------------------------


def test_what_is_past_half_its_life_is_signed_again(registry: Registry) -> None:
    assert not registry.repository.refresh(registry.ring), "all of it is fresh"
    snapshots = registry.repository.metadata.versions("snapshot")
    registry.ago = -timedelta(hours=13)
    assert registry.repository.refresh(registry.ring)
    assert registry.repository.metadata.versions("snapshot") == snapshots
    registry.ago = -timedelta(days=4)
    assert registry.repository.refresh(registry.ring)
    assert registry.repository.metadata.versions("snapshot") == [*snapshots, snapshots[-1] + 1]
    assert not registry.repository.refresh(registry.ring)


# --- crashes and company -------------------------------------------------------------------------


def publish_elsewhere(
    registry: Registry, packages: list[Package], kill_at: int = 0
) -> "subprocess.Popen[bytes]":
    sources = [package.folder for package in packages]
    child = HERE / "publishing_child.py"
    command = [sys.executable, child, registry.folder, "acme", str(kill_at), *sources]
    return subprocess.Popen(command)


@pytest.mark.parametrize("kill_at", [1, 2, 3])
async def test_a_publisher_that_dies_at_any_write_publishes_all_or_nothing(
    registry: Registry, server: FolderServer, kill_at: int
) -> None:
    first, second = registry.published("first"), registry.package("second", size=1_000)
    with publish_elsewhere(registry, [second], kill_at) as process:
        assert process.wait(60) == -signal.SIGKILL
    car = registry.car()
    assert (await car.fetch(first.digest, server.url)).digest == first.digest
    with pytest.raises(PackageRefused) as caught:
        await car.fetch(second.digest, server.url)
    assert caught.value.reason is PackageFault.NOT_PUBLISHED
    assert [entry.name for entry in registry.repository.published()] == ["first"]
    third = registry.published("third")
    for package in (second, third) if kill_at > 1 else (third,):
        # What was signed already comes out with the next change.
        assert (await registry.car().fetch(package.digest, server.url)).digest == package.digest
    assert not list(registry.metadata.glob(".*")), "what the crash left is swept"


def test_two_publishers_at_once(registry: Registry) -> None:
    packages = [registry.package(f"model-{number}", size=10_000) for number in range(6)]
    with (
        publish_elsewhere(registry, packages[::2]) as even,
        publish_elsewhere(registry, packages[1::2]) as odd,
    ):
        assert even.wait(60) == 0
        assert odd.wait(60) == 0
    published = {entry.digest for entry in registry.repository.published()}
    assert published == {package.digest for package in packages}
    versions = registry.repository.metadata.versions("acme")
    assert versions == list(range(1, 7))


def test_a_copy_that_was_broken_off_is_swept(registry: Registry) -> None:
    leftover = registry.repository.packages.path / ".incoming-dead"
    leftover.mkdir()
    registry.published("first")
    assert not leftover.exists()


def test_a_damaged_package_in_the_repository_is_put_right(registry: Registry) -> None:
    package = registry.published("first")
    model = registry.repository.packages.path / package.digest / "files" / "model.onnx"
    model.write_bytes(b"damaged")
    registry.repository.publish(package, "acme", registry.ring)
    assert model.read_bytes() == package.path_of("model").read_bytes()


def test_two_cars_in_one_folder_are_told(tmp_path: Path) -> None:
    held = PackageStore(tmp_path / "car", QUOTA)
    child = [sys.executable, str(HERE / "holding_child.py"), str(tmp_path / "car")]
    assert subprocess.run(child, check=False, timeout=60).returncode == 3
    asyncio.run(held.close())
    assert subprocess.run(child, check=False, timeout=60).returncode == 0


# --- downloads that break off --------------------------------------------------------------------


async def test_a_broken_download_goes_on_where_it_ended(
    registry: Registry, server: FolderServer
) -> None:
    package = registry.published("first", size=200_000)
    path = weights_path(package)
    server.evil[path] = Evil(body=(registry.served / path[1:]).read_bytes(), cut_after=150_000)
    with pytest.raises(FetchFailed, match="ended after 150000 of 200000 bytes"):
        await registry.car().fetch(package.digest, server.url)
    server.evil.clear()
    car = registry.car()
    fetched = await car.fetch(package.digest, server.url)
    assert 50_000 < car.take_received_bytes() < 100_000, "the metadata, and the rest of the file"
    assert car.take_received_bytes() == 0
    assert server.ranges == [(path, "bytes=150000-")]
    assert (fetched.folder / "weights.bin").stat().st_size == 200_000
    assert server.requests.count(f"/v1/models/{package.digest}/files/model.onnx") == 1


def test_a_car_that_dies_in_a_download_goes_on_with_it(
    registry: Registry, server: FolderServer
) -> None:
    package = registry.published("first", size=200_000)
    path = weights_path(package)
    body = (registry.served / path[1:]).read_bytes()
    server.evil[path] = Evil(body=body, trickle=True)
    script = (
        "import asyncio, sys; from pathlib import Path;"
        "from edge_runtime.vehicle.models.store import PackageStore;"
        "store = PackageStore(Path(sys.argv[1]), 1 << 20, trusted_root=Path(sys.argv[2]));"
        "asyncio.run(store.fetch(sys.argv[3], sys.argv[4]))"
    )
    arguments = [str(registry.folder / "car"), str(registry.root), package.digest, server.url]
    with subprocess.Popen([sys.executable, "-c", script, *arguments]) as process:
        server.await_request(path)
        downloading = psutil.Process(process.pid).children()
        process.kill()
        assert process.wait(30) == -signal.SIGKILL
    assert downloading
    assert psutil.wait_procs(downloading, 30)[1] == [], "the download dies with the car"
    # What had come by then is on the disk; how much of it there is is the test's to say.
    partial = registry.folder / "car" / f".partial-{package.digest}" / "package" / "weights.bin"
    assert body.startswith(partial.read_bytes())
    partial.write_bytes(body[:120_000])
    server.evil.clear()
    fetched = asyncio.run(registry.car().fetch(package.digest, server.url))
    assert (path, "bytes=120000-") in server.ranges
    assert (fetched.folder / "weights.bin").read_bytes() == body


async def test_a_server_without_ranges_is_asked_from_the_first_byte(
    registry: Registry, server: FolderServer
) -> None:
    package = registry.published("first", size=50_000)
    path = weights_path(package)
    server.evil[path] = Evil(body=(registry.served / path[1:]).read_bytes(), cut_after=20_000)
    car = registry.car()
    with pytest.raises(FetchFailed):
        await car.fetch(package.digest, server.url)
    server.evil.clear()
    server.knows_ranges = False
    assert (await car.fetch(package.digest, server.url)).digest == package.digest


async def test_a_beginning_that_was_wrong_does_not_spoil_a_good_server(
    registry: Registry, server: FolderServer
) -> None:
    package = registry.published("first", size=50_000)
    path = weights_path(package)
    server.evil[path] = Evil(body=bytes(50_000), cut_after=20_000)
    car = registry.car()
    with pytest.raises(FetchFailed):
        await car.fetch(package.digest, server.url)
    server.evil.clear()
    assert (await car.fetch(package.digest, server.url)).digest == package.digest
    assert server.requests.count(path) == 3


async def test_unfinished_downloads_are_few_and_make_room(
    registry: Registry, server: FolderServer
) -> None:
    packages = [registry.published(f"model-{n}", size=100_000) for n in range(6)]
    car = registry.car()
    for package in packages:
        path = weights_path(package)
        server.evil[path] = Evil(body=(registry.served / path[1:]).read_bytes(), cut_after=90_000)
        with pytest.raises(FetchFailed):
            await car.fetch(package.digest, server.url)
    partials = list((registry.folder / "car").glob(".partial-*"))
    assert len(partials) == 4
    large = registry.published("large", size=QUOTA - 50_000)
    assert (await car.fetch(large.digest, server.url)).digest == large.digest
    assert not list((registry.folder / "car").glob(".partial-*"))


async def test_the_quota_holds_before_a_file_is_fetched(
    registry: Registry, server: FolderServer
) -> None:
    first = registry.published("first", size=600_000)
    second = registry.published("second", size=600_000)
    car = registry.car()
    await car.fetch(first.digest, server.url)
    with car.using(first.digest), pytest.raises(StoreFull, match="in use"):
        await car.fetch(second.digest, server.url)
    assert weights_path(second) not in server.requests
    assert (await car.fetch(second.digest, server.url)).digest == second.digest
    assert car.digests() == (second.digest,)


async def test_a_download_is_broken_off_where_the_network_is_not_allowed_any_more(
    registry: Registry, server: FolderServer
) -> None:
    package = registry.published("first", size=50_000)
    path = weights_path(package)
    server.evil[path] = Evil(body=(registry.served / path[1:]).read_bytes(), trickle=True)
    car = PackageStore(registry.folder / "car", QUOTA, trusted_root=registry.root)
    fetch = asyncio.create_task(car.fetch(package.digest, server.url))
    await asyncio.to_thread(server.await_request, path)
    car.break_off()
    with pytest.raises(FetchFailed, match="ended with -9"):
        await fetch
    assert car.take_received_bytes() > 1_000, "what came is counted, of use or not"
    server.evil.clear()
    assert (await car.fetch(package.digest, server.url)).digest == package.digest


async def test_a_disk_that_is_full_in_the_middle_leaves_nothing_behind(
    registry: Registry, server: FolderServer
) -> None:
    """The kernel refuses bytes beyond a bound, as a full disk does."""
    package = registry.published("first", size=200_000)
    car = registry.car()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StoreFull, match="no space left"):
            await car.fetch(package.digest, server.url)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((registry.folder / "car").glob(".partial-*"))
    assert (await car.fetch(package.digest, server.url)).digest == package.digest


async def test_a_partial_file_that_is_too_long_is_begun_again(
    registry: Registry, server: FolderServer
) -> None:
    package = registry.published("first", size=1_000)
    partial = registry.folder / "car" / f".partial-{package.digest}" / "package" / "weights.bin"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(bytes(5_000))
    assert (await registry.car().fetch(package.digest, server.url)).digest == package.digest


# --- without a network, and without a root -------------------------------------------------------


async def test_without_a_network_what_is_held_is_used(
    registry: Registry, server: FolderServer
) -> None:
    first, second = registry.published("first"), registry.published("second")
    await registry.car().fetch(first.digest, server.url)
    registry.ago = MONTH
    registry.repository.renew("timestamp", registry.ring)
    dark = registry.car()
    assert dark.get(first.digest) is not None
    assert (await dark.fetch(first.digest, "http://127.0.0.1:9")).digest == first.digest
    with pytest.raises(FetchFailed, match="refused"):
        await dark.fetch(second.digest, "http://127.0.0.1:9")
    with pytest.raises(FetchFailed, match="refused"):
        await dark.check("http://127.0.0.1:9")
    with pytest.raises(PackageRefused, match="expired"):
        await dark.check(server.url)
    assert dark.digests() == (first.digest,), "a check that failed removes nothing"


async def test_what_came_without_a_root_is_proven_before_it_is_used(
    registry: Registry, server: FolderServer
) -> None:
    good, foreign = registry.published("good", size=1_000), registry.package("foreign")
    old = PackageStore(registry.folder / "car", QUOTA, patience=IMPATIENT)
    for package in (good, foreign):
        await old.add(package.folder)
    car = registry.car()
    assert car.digests() == ()
    assert car.get(good.digest) is None
    assert (await car.fetch(good.digest, server.url)).digest == good.digest
    assert weights_path(good) not in server.requests, "only its proof was fetched"
    with pytest.raises(PackageRefused):
        await car.fetch(foreign.digest, server.url)
    assert registry.car().digests() == (good.digest,)


async def test_another_root_proves_anew(
    registry: Registry, server: FolderServer, tmp_path: Path
) -> None:
    package = registry.published("first")
    await registry.car().fetch(package.digest, server.url)
    other = Registry(tmp_path / "other")
    car = PackageStore(registry.folder / "car", QUOTA, trusted_root=other.root, patience=IMPATIENT)
    assert car.digests() == ()


@pytest.mark.parametrize("data", [b"", b"{}", b'{"signed": {"_type": "targets"}}', bytes(300_000)])
def test_a_root_that_is_none_is_a_setting_to_correct(tmp_path: Path, data: bytes) -> None:
    root = tmp_path / "root.json"
    root.write_bytes(data)
    with pytest.raises(ConfigError, match="trusted root"):
        PackageStore(tmp_path / "car", QUOTA, trusted_root=root)
    with pytest.raises(ConfigError, match="trusted root"):
        PackageStore(tmp_path / "car", QUOTA, trusted_root=tmp_path / "missing.json")


async def test_two_packages_at_once(registry: Registry, server: FolderServer) -> None:
    packages = [registry.published(f"model-{n}", size=10_000) for n in range(4)]
    car = registry.car()
    fetched = await asyncio.gather(*(car.fetch(p.digest, server.url) for p in packages))
    assert [package.digest for package in fetched] == [package.digest for package in packages]


def test_a_car_verifies_without_the_cryptography_library(registry: Registry) -> None:
    """The car's install need not have it: Ed25519 in Python checks a handful of signatures."""
    package = registry.published("first")
    with registry.serving() as server:
        script = (
            "import sys; sys.modules['cryptography'] = None\n"
            "from pathlib import Path\n"
            "from edge_runtime.vehicle.models.download import Downloader\n"
            "from edge_runtime.vehicle.models.orders import Patience\n"
            "from edge_runtime.vehicle.models.trust import Trust\n"
            "root, folder, url, digest = sys.argv[1:]\n"
            "trust = Trust(Path(root).read_bytes(), Path(folder), url, Downloader(Patience()))\n"
            "print(trust.proof(digest).publisher)\n"
        )
        arguments = [str(registry.root), str(registry.folder / "t"), server.url, package.digest]
        run = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert run.stdout.strip() == "acme", run.stderr


def test_no_repository_is_said(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no model repository"):
        ModelRepository(tmp_path).published()
