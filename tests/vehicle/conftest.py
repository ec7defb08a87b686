"""Generated model packages, and a garage with a car in it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from agent_rig import Garage

from edge_runtime.contract.package import Package
from edge_runtime.vehicle.models.importers.synthetic import write_synthetic


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Package]:
    """Make a generated package, once a session."""
    folder = tmp_path_factory.mktemp("synthetic")
    made: dict[str, Package] = {}

    def make(name: str) -> Package:
        if name not in made:
            made[name] = write_synthetic(name, folder)
        return made[name]

    return make


@pytest.fixture
def garage(tmp_path: Path) -> Garage:
    return Garage(tmp_path)
