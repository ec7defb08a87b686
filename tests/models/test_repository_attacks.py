"""The attacks of the TUF paper on a car that trusts a repository, over HTTP on loopback.

The paper's list (Samuel et al., "Survivable Key Compromise in Software Update Systems", 2010):
arbitrary software, rollback, freeze, endless data, slow retrieval, extraneous dependencies, mix
and match, and a compromise of fewer keys than a role's threshold. Extraneous dependencies do not
exist here: a package depends on no other, and its manifest names every file of it.
"""

import gzip
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from repository_rig import Registry
from repository_server import Evil, FolderServer
from tuf.api.metadata import Metadata, Root, Targets

from edge_runtime.contract.package import PackageFault, PackageRefused
from edge_runtime.registry.repository import Quorum
from edge_runtime.vehicle.models.store import FetchFailed, PackageStore

MONTH = timedelta(days=30)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Publisher acme with one package, `first`."""
    registry = Registry(tmp_path)
    registry.repository.add_publisher("acme", registry.ring)
    return registry


@pytest.fixture
def server(registry: Registry) -> Iterator[FolderServer]:
    with registry.serving() as server:
        yield server


async def refused(store: PackageStore, digest: str, server: FolderServer) -> PackageRefused:
    with pytest.raises(PackageRefused) as caught:
        await store.fetch(digest, server.url)
    assert digest not in store.digests()
    assert store.get(digest) is None
    return caught.value


async def test_a_published_package_is_accepted(registry: Registry, server: FolderServer) -> None:
    package = registry.published("first", size=1_000)
    fetched = await registry.car().fetch(package.digest, server.url)
    assert fetched.digest == package.digest
    assert (fetched.folder / "weights.bin").read_bytes() == bytes(i % 251 for i in range(1_000))
    assert registry.car().digests() == (package.digest,), "and still held after a restart"


# --- arbitrary software --------------------------------------------------------------------------


async def test_arbitrary_software_that_nobody_published(
    registry: Registry, server: FolderServer
) -> None:
    """The package is there and whole, as a dispatcher that was taken over would have it."""
    package = registry.package("evil")
    registry.repository.packages.put(package)
    error = await refused(registry.car(), package.digest, server)
    assert error.reason is PackageFault.NOT_PUBLISHED, "with publishers who have published nothing"
    registry.published("first")
    error = await refused(registry.car(), package.digest, server)
    assert error.reason is PackageFault.NOT_PUBLISHED
    assert "acme" in error.detail


async def test_arbitrary_software_in_a_repository_of_the_attackers_own(
    registry: Registry, server: FolderServer, tmp_path: Path
) -> None:
    other = Registry(tmp_path / "attacker")
    other.repository.add_publisher("acme", other.ring)
    package = other.published("evil")
    server.folder = other.served
    error = await refused(registry.car(), package.digest, server)
    assert error.reason is PackageFault.BAD_REPOSITORY


# --- rollback ------------------------------------------------------------------------------------


async def test_rollback_of_everything_to_an_older_state(
    registry: Registry, server: FolderServer, tmp_path: Path
) -> None:
    weak = registry.published("weak")
    shutil.copytree(registry.served, tmp_path / "older")
    assert registry.repository.revoke_package("acme", weak.digest, registry.ring)
    strong = registry.published("strong")
    await registry.car().fetch(strong.digest, server.url)
    server.folder = tmp_path / "older"
    error = await refused(registry.car(), weak.digest, server)
    assert error.reason is PackageFault.BAD_REPOSITORY
    assert "version" in error.detail


async def test_rollback_of_the_snapshot_with_a_stolen_timestamp_key(
    registry: Registry, server: FolderServer
) -> None:
    weak = registry.published("weak")
    old = registry.repository.metadata.versions("snapshot")[-1]
    registry.repository.revoke_package("acme", weak.digest, registry.ring)
    strong = registry.published("strong")
    await registry.car().fetch(strong.digest, server.url)
    registry.newest("timestamp").write_bytes(registry.forge_timestamp(old))
    error = await refused(registry.car(), weak.digest, server)
    assert error.reason is PackageFault.BAD_REPOSITORY


@pytest.mark.parametrize("role", ["acme", "targets"])
async def test_rollback_of_lists_with_both_online_keys_stolen(
    registry: Registry, server: FolderServer, role: str
) -> None:
    weak = registry.published("weak")
    old = {name: registry.repository.metadata.versions(name)[-1] for name in ("acme", "targets")}
    registry.repository.revoke_package("acme", weak.digest, registry.ring)
    registry.repository.add_publisher("other", registry.ring)
    strong = registry.published("strong")
    await registry.car().fetch(strong.digest, server.url)
    registry.forge_snapshot({role: old[role]})
    error = await refused(registry.car(), weak.digest, server)
    assert error.reason is PackageFault.BAD_REPOSITORY


# --- freeze --------------------------------------------------------------------------------------


async def test_freeze_at_a_state_that_was_good_once(
    registry: Registry, server: FolderServer
) -> None:
    first = registry.published("first")
    await registry.car().fetch(first.digest, server.url)
    registry.ago = MONTH
    second = registry.published("second")
    car = registry.car()
    error = await refused(car, second.digest, server)
    assert error.reason is PackageFault.BAD_REPOSITORY
    assert "expired" in error.detail
    assert car.get(first.digest) is not None, "what was proven is used however old the proof is"
    registry.ago = timedelta()
    assert registry.repository.refresh(registry.ring)
    assert (await car.fetch(second.digest, server.url)).digest == second.digest


async def test_freeze_by_turning_the_clock_back(registry: Registry, server: FolderServer) -> None:
    first, second = registry.published("first"), registry.published("second")
    car = registry.car()
    await car.fetch(first.digest, server.url)
    (moment,) = (registry.folder / "car").glob(".trust/*/proven-utc-s")
    moment.write_text(str(int(moment.read_text()) + 2 * 86_400))
    error = await refused(car, second.digest, server)
    assert "clock" in error.detail


# --- endless data --------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["timestamp", "root", "snapshot", "acme", "manifest", "file"])
async def test_endless_data(registry: Registry, server: FolderServer, what: str) -> None:
    package = registry.published("first")
    paths = {
        "timestamp": "/v1/metadata/timestamp.json",
        "root": "/v1/metadata/2.root.json",
        "manifest": f"/v1/models/{package.digest}/manifest",
        "file": f"/v1/models/{package.digest}/files/model.onnx",
    }
    path = paths.get(what) or f"/v1/metadata/{registry.newest(what).name}"
    server.evil[path] = Evil(body=b"", endless=True)
    car = registry.car()
    with pytest.raises((PackageRefused, FetchFailed)):
        await car.fetch(package.digest, server.url)
    assert car.digests() == ()
    on_disk = sum(p.stat().st_size for p in (registry.folder / "car").rglob("*") if p.is_file())
    assert on_disk < 200_000
    server.evil.clear()
    assert (await car.fetch(package.digest, server.url)).digest == package.digest


# --- slow retrieval ------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Evil(trickle=True), Evil(slow_head=True)])
@pytest.mark.parametrize("what", ["timestamp", "file"])
async def test_slow_retrieval(
    registry: Registry, server: FolderServer, what: str, fault: Evil
) -> None:
    package = registry.published("first", size=100_000)
    path = f"/v1/models/{package.digest}/files/weights.bin"
    server.evil["/v1/metadata/timestamp.json" if what == "timestamp" else path] = fault
    car = registry.car()
    with pytest.raises(FetchFailed, match=r"too slow|no answer within"):
        await car.fetch(package.digest, server.url)
    server.evil.clear()
    assert (await car.fetch(package.digest, server.url)).digest == package.digest


# --- mix and match -------------------------------------------------------------------------------


async def test_mix_and_match_of_lists(registry: Registry, server: FolderServer) -> None:
    """Each list is genuine, but they were never published together."""
    weak = registry.published("weak")
    old = registry.newest("acme").read_bytes()
    registry.repository.revoke_package("acme", weak.digest, registry.ring)
    server.evil[f"/v1/metadata/{registry.newest('acme').name}"] = Evil(body=old)
    error = await refused(registry.car(), weak.digest, server)
    assert error.reason is PackageFault.BAD_REPOSITORY


async def test_mix_and_match_of_files(registry: Registry, server: FolderServer) -> None:
    """A genuine file of another genuine package."""
    first, second = registry.published("first"), registry.published("second")
    other = (second.folder / "model.toml").read_bytes()
    server.evil[f"/v1/models/{first.digest}/files/model.toml"] = Evil(body=other)
    error = await refused(registry.car(), first.digest, server)
    assert error.reason is PackageFault.WRONG_FILE


# --- wrong hash, wrong length --------------------------------------------------------------------


def changed(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def longer(data: bytes) -> bytes:
    return data + b" "


def shorter(data: bytes) -> bytes:
    return data[:-1]


@pytest.mark.parametrize("spoil", [changed, longer, shorter])
@pytest.mark.parametrize("what", ["manifest", "file", "snapshot", "acme"])
async def test_wrong_hash_and_wrong_length(
    registry: Registry, server: FolderServer, what: str, spoil: Callable[[bytes], bytes]
) -> None:
    package = registry.published("first", size=500)
    paths = {
        "manifest": f"v1/models/{package.digest}/manifest",
        "file": f"v1/models/{package.digest}/files/weights.bin",
    }
    path = paths.get(what) or f"v1/metadata/{registry.newest(what).name}"
    server.evil[f"/{path}"] = Evil(body=spoil((registry.served / path).read_bytes()))
    car = registry.car()
    with pytest.raises((PackageRefused, FetchFailed)):
        await car.fetch(package.digest, server.url)
    assert car.digests() == ()


# --- compromise of fewer keys than the threshold -------------------------------------------------


async def test_one_stolen_root_key_of_two_needed_is_not_enough(
    tmp_path: Path, registry: Registry
) -> None:
    registry = Registry(tmp_path / "guarded", {"root": Quorum(keys=3, threshold=2)})
    registry.repository.add_publisher("acme", registry.ring)
    package = registry.published("first")
    root = Metadata[Root].from_file(str(registry.newest("root")))
    thief = registry.ring.signers("root", [root.signed.keys[root.signed.roles["root"].keyids[0]]])
    root.signed.version += 1
    root.signed.roles["root"].threshold = 1
    root.sign(thief[0])
    (registry.metadata / "2.root.json").write_bytes(root.to_bytes())
    with registry.serving() as server:
        error = await refused(registry.car(), package.digest, server)
    assert error.reason is PackageFault.BAD_REPOSITORY
    assert "1/2" in error.detail


async def test_stolen_online_keys_publish_nothing(registry: Registry, server: FolderServer) -> None:
    """The thief lists a package of acme's with a key of his own."""
    evil = registry.package("evil")
    registry.repository.packages.put(evil)
    known = registry.published("first")
    await registry.car().fetch(known.digest, server.url)
    thief = Registry(registry.folder / "thief")
    thief.repository.add_publisher("acme", thief.ring)
    for _ in range(2):  # so that the version grows
        thief.repository.publish(evil, "acme", thief.ring)
    version = thief.repository.metadata.versions("acme")[-1]
    shutil.copyfile(thief.newest("acme"), registry.metadata / f"{version}.acme.json")
    registry.forge_snapshot({"acme": version})
    error = await refused(registry.car(), evil.digest, server)
    assert error.reason is PackageFault.BAD_REPOSITORY


async def test_a_publisher_signs_in_its_own_name_only(
    registry: Registry, server: FolderServer
) -> None:
    """Acme's key lists a package as that of another publisher, who has published nothing."""
    registry.repository.add_publisher("other", registry.ring)
    package = registry.published("first")
    metadata = Metadata[Targets].from_file(str(registry.newest("acme")))
    (target,) = metadata.signed.targets.values()
    metadata.signed.targets = {f"other/{package.digest}": target}
    registry.repository._write("acme", metadata, registry.ring)
    assert registry.repository.refresh(registry.ring)
    error = await refused(registry.car(), package.digest, server)
    assert error.reason is PackageFault.NOT_PUBLISHED


async def test_what_a_publisher_did_not_sign_is_not_led_to(registry: Registry) -> None:
    """Who can write into the folder, and only that, changes nothing for cars."""
    before = registry.published("first")
    thief = Registry(registry.folder / "thief")
    thief.repository.add_publisher("acme", thief.ring)
    evil = thief.published("evil")
    shutil.copyfile(thief.newest("acme"), registry.metadata / "9.acme.json")
    registry.repository.refresh(registry.ring)
    digests = [entry.digest for entry in registry.repository.published()]
    assert digests == [before.digest]
    assert evil.digest not in digests


# --- what a server may try beside ----------------------------------------------------------------


def redirect(data: bytes) -> Evil:
    del data
    return Evil(status=302, headers={"Location": "http://127.0.0.1:9/"})


def gzip_bomb(data: bytes) -> Evil:
    del data
    return Evil(body=gzip.compress(bytes(50_000_000)), headers={"Content-Encoding": "gzip"})


def lying_length(data: bytes) -> Evil:
    return Evil(body=data, length=1 << 40)


def cut_short(data: bytes) -> Evil:
    return Evil(body=data, cut_after=len(data) // 2)


@pytest.mark.parametrize("fault", [redirect, gzip_bomb, lying_length, cut_short])
@pytest.mark.parametrize("what", ["timestamp", "manifest", "file"])
async def test_tricks_of_http(
    registry: Registry, server: FolderServer, what: str, fault: Callable[[bytes], Evil]
) -> None:
    package = registry.published("first", size=5_000)
    path = {
        "timestamp": "v1/metadata/timestamp.json",
        "manifest": f"v1/models/{package.digest}/manifest",
        "file": f"v1/models/{package.digest}/files/weights.bin",
    }[what]
    server.evil[f"/{path}"] = fault((registry.served / path).read_bytes())
    car = registry.car()
    if fault is lying_length and what != "file":
        # What was announced did not come; what came is signed.
        assert (await car.fetch(package.digest, server.url)).digest == package.digest
        return
    with pytest.raises((PackageRefused, FetchFailed)):
        await car.fetch(package.digest, server.url)
    assert car.digests() == ()


async def test_garbage_for_metadata(registry: Registry, server: FolderServer) -> None:
    package = registry.published("first")
    for body in (b"", b"{}", b"[" * 10_000, b"\xff\xfe", msgspec.json.encode({"signed": 1})):
        server.evil["/v1/metadata/timestamp.json"] = Evil(body=body)
        error = await refused(registry.car(), package.digest, server)
        assert error.reason is PackageFault.BAD_REPOSITORY
