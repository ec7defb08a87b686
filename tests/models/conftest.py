"""Real packages and data for package tests."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_runtime.contract.package import Package, read_package

ROOT = Path(__file__).parents[2]


def needed(path: Path) -> Path:
    """A file of `make models`: its tests skip at home and fail where CI=true."""
    if not path.exists():
        message = f"{path} is missing; run `make models`"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path


@pytest.fixture(scope="session")
def models_folder() -> Path:
    return needed(Path(os.environ.get("EDGE_RUNTIME_TEST_MODELS", ROOT / ".data" / "models")))


@pytest.fixture(scope="session")
def model(models_folder: Path) -> Callable[[str], Package]:
    """Read a real package."""
    return lambda name: read_package(needed(models_folder / name))


@pytest.fixture(scope="session")
def demo_file(models_folder: Path) -> Callable[[str], Path]:
    """A real input."""
    return lambda name: needed(models_folder.parent / "demo" / name)


@pytest.fixture(scope="session")
def wheel_cache(models_folder: Path) -> Path:
    """What `make models` downloaded."""
    return needed(models_folder.parent / "cache")
