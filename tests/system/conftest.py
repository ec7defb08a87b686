"""One booted computer for all tests of systemd, with both services on it.

They are installed as docs/how-to/install-on-a-car.md says.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import REPOSITORY, BrokerProcess, free_port
from container import booted
from system_computer import DISPATCHER, VEHICLE, Computer, configure

from edge_runtime import __version__
from edge_runtime.vehicle.models.importers.synthetic import write_synthetic

ENVIRONMENT = "EDGE_RUNTIME_TEST_ROOT"
"""The Debian root and the wheels that `make test-system` made; without it these tests skip."""
SYNTHETIC = ("mlp5ms",)
REAL = ("minilm", "pp-ocr")
"""One with a tokenizer, one with OpenCV."""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages to serve: generated ones, and the real ones where `make models` made them."""
    folder = tmp_path_factory.mktemp("models")
    for name in SYNTHETIC:
        write_synthetic(name, folder)
    for made in filter(Path.is_dir, (REPOSITORY / ".data" / "models" / name for name in REAL)):
        shutil.copytree(made, folder / made.name)
    # The service is another user, and pytest's folders are for one only.
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


@pytest.fixture(scope="session")
def computer(
    tmp_path_factory: pytest.TempPathFactory, embedded_broker: BrokerProcess, models: Path
) -> Iterator[Computer]:
    prepared = os.environ.get(ENVIRONMENT)
    if not prepared:
        pytest.skip("needs root, systemd-nspawn and a Debian root: run `make test-system`")
    port = free_port()
    binds = {
        REPOSITORY / "deploy": "/srv/deploy",
        Path(prepared) / "wheels": "/srv/wheels",
        models: "/srv/edge-runtime/models",
    }
    arguments = [f"--bind-ro={here}:{there}" for here, there in binds.items() if here.is_dir()]
    folder = tmp_path_factory.mktemp("computer")
    with booted(Path(prepared) / "debian", folder, *arguments) as inside:
        computer = Computer(inside, embedded_broker, f"http://127.0.0.1:{port}")
        for role in ("vehicle,ocr", "dispatcher"):
            inside.run("/srv/deploy/install.sh", role, __version__, "/srv/wheels")
        configure(computer, port)
        yield computer


@pytest.fixture
def running(computer: Computer) -> Computer:
    """Both services, ready, and the car able to work."""
    computer.start(DISPATCHER, VEHICLE)
    computer.inside.until(VEHICLE, "StatusText", "ready")
    return computer
