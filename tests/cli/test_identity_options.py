"""Certificates and keys on the command line: what does not fit is said before anything starts."""

import re
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
    (tmp_path / "car.toml").write_text("[vehicle]\n")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("wipe car.toml --ledger-to ledger.json --yes", "--id, or --identity"),
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


def test_a_car_of_which_nobody_said_an_id_draws_one_and_keeps_it(tmp_path: Path) -> None:
    # Nothing answers there: the wrong page port ends it, after it knows who it is.
    command = ("vehicle", "--broker", "mqtt://127.0.0.1:1", "--owner-page-port", "-1")
    first = edge_runtime(*command, cwd=tmp_path)
    assert "--owner-page-port" in first.stderr.splitlines()[-1]
    drawn = (tmp_path / "vehicle-state" / "vehicle-id").read_text()
    assert re.fullmatch(r"car-[0-9a-f]{16}\n", drawn)
    assert drawn.strip() in first.stderr
    edge_runtime(*command, cwd=tmp_path)
    assert (tmp_path / "vehicle-state" / "vehicle-id").read_text() == drawn


@pytest.mark.parametrize("text", ["", "two words", "x" * 65, "ü", "a\nb"])
def test_a_drawn_id_that_was_spoilt_is_named_with_its_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "vehicle-state").mkdir()
    (tmp_path / "vehicle-state" / "vehicle-id").write_text(text)
    done = edge_runtime("vehicle", "--broker", "mqtt://127.0.0.1:1", cwd=tmp_path)
    assert done.returncode == 2
    assert "vehicle-state/vehicle-id must be 1 to 64 of" in done.stderr.splitlines()[-1]


def test_an_id_that_cannot_be_kept_names_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = edge_runtime("vehicle", "--state-dir", "file/state", cwd=tmp_path)
    assert done.returncode == 2
    assert "--state-dir file/state: Not a directory" in done.stderr.splitlines()[-1]
