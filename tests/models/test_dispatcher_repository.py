"""A dispatcher that serves a signed repository: what is published, its metadata, its signatures."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
import structlog.testing
from repository_rig import Registry

from edge_runtime.dispatcher.front import Refusal
from edge_runtime.dispatcher.keeper import RepositoryKeeper
from edge_runtime.dispatcher.shelf import Shelf


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry(tmp_path)
    registry.repository.add_publisher("acme", registry.ring)
    return registry


def test_the_shelf_holds_what_is_published_now(registry: Registry) -> None:
    first = registry.published("first")
    unsigned = registry.package("unsigned")
    registry.repository.packages.put(unsigned)
    shelf = Shelf(None, registry.served)
    shelf.scan()
    assert [view.digest for view in shelf.views()] == [first.digest]
    assert shelf.find("first") == shelf.find(first.digest)
    assert shelf.manifest(first.digest) == first.manifest.canonical_bytes()
    second = registry.published("second")
    registry.repository.revoke_package("acme", first.digest, registry.ring)
    shelf.scan()
    assert [view.digest for view in shelf.views()] == [second.digest]
    with pytest.raises(Refusal):
        shelf.manifest(first.digest)


def test_a_folder_and_a_repository_are_served_together(registry: Registry) -> None:
    published = registry.published("first")
    beside = registry.package("beside")
    shelf = Shelf(registry.folder / "sources", registry.served)
    shelf.scan()
    shelf.scan()
    assert {published.digest, beside.digest} <= {view.digest for view in shelf.views()}


def test_what_is_damaged_in_a_repository_is_not_served(registry: Registry) -> None:
    good, bad = registry.published("good"), registry.published("bad")
    (registry.repository.packages.path / bad.digest / "files" / "model.toml").write_text("x")
    shelf = Shelf(None, registry.served)
    shelf.scan()
    assert [view.digest for view in shelf.views()] == [good.digest]


def test_metadata_is_served_by_name_only(registry: Registry) -> None:
    shelf = Shelf(None, registry.served)
    assert shelf.metadata("timestamp.json") == registry.newest("timestamp")
    assert shelf.metadata("1.root.json") == registry.metadata / "1.root.json"
    for name in ("2.root.json", ".lock", "../models", "1.root.json/", "timestamp", "x" * 300):
        with pytest.raises(Refusal):
            shelf.metadata(name)
    with pytest.raises(Refusal):
        Shelf(None).metadata("timestamp.json")


def test_a_repository_that_is_none_keeps_nobody_from_starting(tmp_path: Path) -> None:
    shelf = Shelf(None, tmp_path)
    with structlog.testing.capture_logs() as logs:
        shelf.scan()
    assert shelf.views() == []
    assert [line["event"] for line in logs] == ["repository_not_read"]


def test_the_dispatcher_signs_what_waits_with_its_keys_alone(
    registry: Registry, tmp_path: Path
) -> None:
    """The publisher and the owner of the targets key have the others."""
    online = tmp_path / "online"
    online.mkdir()
    for file in [*(tmp_path / "keys").glob("snapshot.*"), *(tmp_path / "keys").glob("timestamp.*")]:
        file.rename(online / file.name)
    package = registry.package("first")
    assert not registry.repository.publish(package, "acme", registry.ring)
    assert registry.repository.published() == []
    asyncio.run(RepositoryKeeper(registry.served, [online]).keep_once())
    assert [entry.digest for entry in registry.repository.published()] == [package.digest]


def test_a_timestamp_that_has_expired_is_signed_again(registry: Registry) -> None:
    registry.ago = timedelta(days=30)
    registry.published("first")
    expired = registry.newest("timestamp").read_bytes()
    asyncio.run(RepositoryKeeper(registry.served, [registry.folder / "keys"]).keep_once())
    assert registry.newest("timestamp").read_bytes() != expired


def test_a_dispatcher_without_the_keys_says_so_and_goes_on(
    registry: Registry, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    registry.ago = timedelta(days=30)
    registry.published("first")
    with structlog.testing.capture_logs() as logs:
        asyncio.run(RepositoryKeeper(registry.served, [tmp_path / "empty"]).keep_once())
    (line,) = logs
    assert line["event"] == "repository_not_signed"
    assert "snapshot needs 1 of the keys" in line["reason"]
