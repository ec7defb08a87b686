"""Certificates and keys on the command line: what does not fit is said before anything starts."""

from pathlib import Path

import pytest
from command_line import edge_runtime

TLS = "--broker mqtts://localhost:1 "


@pytest.fixture
def house(tmp_path: Path) -> Path:
    made = edge_runtime("pki", "init", "house", "--enroll", "car-1", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    (tmp_path / "empty").mkdir()
    (tmp_path / "nonsense.pem").write_text("nonsense")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("vehicle", "--id, or --identity"),
        ("vehicle --identity house/cars/car-1", "mqtts://"),
        ("dispatcher --identity house/dispatcher --models empty", "mqtts://"),
        ("tap --identity house/dispatcher", "mqtts://"),
        ("vehicle --identity none " + TLS, "none"),
        ("vehicle --identity empty " + TLS, "empty/identity.pem"),
        ("vehicle --id car-1 --tls-ca none.pem " + TLS, "none.pem"),
        ("vehicle --id car-1 --tls-key nonsense.pem " + TLS, "--tls-cert"),
        ("vehicle --id car-1 --trusted-keys none", "none"),
        ("vehicle --id car-1 --trusted-keys empty", "no trusted key"),
        ("vehicle --id car-1 --trusted-keys nonsense.pem", "no Ed25519 public key"),
        ("vehicle --id car-1 --renew-hook true", "--identity"),
        (
            "vehicle --identity house/cars/car-1 --renew-hook x --renew-authority house " + TLS,
            "not both",
        ),
        ("vehicle --identity house/cars/car-1 --renew-authority none " + TLS, "none"),
        ("dispatcher --models empty --signing-key nonsense.pem", "nonsense.pem"),
        ("dispatcher --models empty --signing-key none.pem", "none.pem"),
    ],
)
def test_what_does_not_fit_is_one_line(house: Path, command: str, says: str) -> None:
    done = edge_runtime(*command.split(), cwd=house)
    assert done.returncode in {1, 2}, done.stderr
    line = done.stderr.splitlines()[-1]
    assert says in line
    assert line.startswith("edge-runtime: ")


def test_an_identity_may_come_from_the_file_or_the_environment(house: Path) -> None:
    (house / "car.toml").write_text('[vehicle]\nidentity = "none"\nbroker = "mqtts://h:1"\n')
    by_file = edge_runtime("vehicle", "--config", "car.toml", cwd=house)
    assert "--identity none" in by_file.stderr
    env = {"EDGE_RUNTIME_VEHICLE_IDENTITY": "nowhere", "EDGE_RUNTIME_VEHICLE_BROKER": "mqtts://h:1"}
    by_environment = edge_runtime("vehicle", cwd=house, env=env)
    assert "--identity nowhere" in by_environment.stderr
