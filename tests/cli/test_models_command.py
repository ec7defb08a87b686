"""`models pack|list|verify` on generated packages."""

import json
from pathlib import Path

import pytest
from command_line import edge_runtime

from edge_runtime.vehicle.models.importers.synthetic import write_synthetic


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_synthetic("noop", tmp_path / "source")
    return tmp_path / "source" / "noop"


def test_a_folder_is_packed_listed_and_verified(source: Path, tmp_path: Path) -> None:
    models = f"--models={tmp_path / 'models'}"
    packed = edge_runtime("models", "pack", str(source), models)
    digest, name, version = packed.stdout.split()
    assert (packed.returncode, name, version) == (0, "noop", "1")
    row = json.loads(edge_runtime("models", "list", models, "--json").stdout)
    assert (row["name"], row["task"], row["digest"]) == ("noop", "tensor", digest)
    assert edge_runtime("models", "verify", digest, models).returncode == 0
    assert edge_runtime("models", "verify", "0" * 64, models).returncode == 1
    again = edge_runtime("models", "pack", str(source), models)
    assert again.returncode == 2
    assert "exists" in again.stderr


def test_another_version_lies_beside_the_first(source: Path, tmp_path: Path) -> None:
    models = f"--models={tmp_path / 'models'}"
    assert edge_runtime("models", "pack", str(source), models).returncode == 0
    described = source / "model.toml"
    text = described.read_text()
    assert text.count('version = "1"') == 1
    described.write_text(text.replace('version = "1"', 'version = "2"'))
    assert edge_runtime("models", "pack", str(source), models).returncode == 0
    assert {path.name for path in (tmp_path / "models").iterdir()} == {"noop", "noop-2"}
    again = edge_runtime("models", "pack", str(source), models)
    assert (again.returncode, again.stdout) == (2, "")
    assert "noop-2 exists" in again.stderr


def test_a_broken_package_is_refused_with_its_reason(source: Path, tmp_path: Path) -> None:
    (source / "model.onnx").write_bytes(b"no model")
    packed = edge_runtime("models", "pack", str(source), f"--models={tmp_path / 'models'}")
    assert packed.returncode == 1
    assert "refused" in packed.stdout
    assert not (tmp_path / "models" / "noop").exists()
    verified = edge_runtime("models", "verify", f"--models={source.parent}")
    assert verified.returncode == 1
    listed = edge_runtime("models", "list", f"--models={source.parent}", "--json")
    assert listed.returncode == 1
    assert "bad_model" in json.loads(listed.stdout)["problem"]


def test_generated_documents_that_differ_are_named(tmp_path: Path) -> None:
    assert edge_runtime("schemas", "write", f"--folder={tmp_path}").returncode == 0
    assert edge_runtime("schemas", "check", f"--folder={tmp_path}").returncode == 0
    (tmp_path / "asyncapi.json").write_text("{}")
    checked = edge_runtime("schemas", "check", f"--folder={tmp_path}")
    assert checked.returncode == 1
    assert "asyncapi.json" in checked.stderr
