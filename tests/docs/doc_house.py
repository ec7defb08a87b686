"""What pages begin with: models under the names that they use, and processes that already run."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from doc_pages import ROOT
from doc_shell import DocShell

from edge_runtime.vehicle.models.importers.synthetic import write_synthetic
from edge_runtime.vehicle.models.importers.tiny_text import NAME as TINY_TEXT
from edge_runtime.vehicle.models.importers.tiny_text import write_tiny_text

SERVICES: Final = """
edge-runtime broker
edge-runtime dispatcher
edge-runtime vehicle --id parked-1 --policy examples/policy.toml --sensors simulated
"""


def real_model(name: str) -> Path:
    """A package of `make models`; without it the test skips, and fails under CI=true."""
    models = Path(os.environ.get("EDGE_RUNTIME_TEST_MODELS", ROOT / ".data" / "models"))
    if not (models / name).is_dir():
        message = f"{models / name} is missing: run `make models`"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return models / name


def write_models(folder: Path) -> None:
    """`noop`, the real `minilm`, and as `smollm2` a tiny model that writes nonsense at once."""
    write_synthetic("noop", folder)
    (folder / "minilm").symlink_to(real_model("minilm"))
    text = folder / "smollm2"
    shutil.move(write_tiny_text(folder).folder, text)
    described = (text / "model.toml").read_text()
    assert described.count(TINY_TEXT) == 1
    (text / "model.toml").write_text(described.replace(TINY_TEXT, "smollm2"))


@contextmanager
def doc_house(folder: Path) -> Iterator[dict[str, int]]:
    """A broker, a dispatcher and a car; their ports by the standard ones."""
    shell = DocShell(folder)
    write_models(shell.clone / ".data" / "models")
    try:
        shell.stays(SERVICES, "the house")
        yield {port: shell.ports[port] for port in ("1883", "8080")}
    finally:
        shell.kill()
    assert not shell.bad_ends, shell.logs()
