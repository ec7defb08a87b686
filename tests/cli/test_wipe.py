"""`edge-runtime wipe`: the ledger first, then everything, and nothing while the car runs."""

import json
from pathlib import Path

import pytest
from command_line import edge_runtime

from edge_runtime.cli.exit_codes import ExitCode
from edge_runtime.vehicle.journal import Journal


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """A car that has worked: journal, packages, policy, consent, an identity outside."""
    state = tmp_path / "state"
    journal = Journal(state / "journal.db")
    journal.load(1_800_000_000)
    journal.close()
    (state / "packages" / "ab").mkdir(parents=True)
    (state / "packages" / "ab" / "manifest.json").write_text("{}")
    (state / "owner.json").write_text("{}")
    (tmp_path / "identity").mkdir()
    (tmp_path / "identity" / "identity.pem").write_text("secret")
    (tmp_path / "policy.toml").write_text("[consent]\ngiven = true\n")
    path = tmp_path / "vehicle.toml"
    path.write_text(
        f'[vehicle]\nid = "car-1"\nbroker = "mqtts://127.0.0.1:1"\nstate-dir = "{state}"\n'
        f'policy = "{tmp_path / "policy.toml"}"\nidentity = "{tmp_path / "identity"}"\n'
    )
    return path


def test_everything_goes_and_the_ledger_is_kept(settings: Path, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.json"
    done = edge_runtime("wipe", str(settings), f"--ledger-to={ledger}", "--yes")
    assert done.returncode == ExitCode.DONE, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ledger.json",
        "state",
        "vehicle.toml",
    ]
    assert list((tmp_path / "state").iterdir()) == []
    removed = [line.rsplit("/", 1)[-1] for line in done.stdout.splitlines() if "removed" in line]
    assert removed[0] == "identity"
    assert removed[-2:] == ["journal.db", "journal.db.lock"]
    account = json.loads(ledger.read_text())
    assert account["vehicle"] == "car-1"
    assert {"name": "boot", "value": 1_800_000_000.0} in account["journal"]["meta"]
    assert ledger.stat().st_mode & 0o777 == 0o600
    again = edge_runtime("wipe", str(settings), "--no-ledger", "--yes")
    assert again.returncode == ExitCode.DONE, again.stderr


def test_nothing_goes_unless_it_is_said(settings: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = edge_runtime("wipe", str(settings), "--no-ledger")
    assert done.returncode == ExitCode.USAGE
    assert f"would remove {tmp_path / 'identity'}" in done.stdout
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--ledger-to FILE"),
        (["--no-ledger", "--ledger-to={folder}/new"], "--ledger-to FILE"),
        (["--ledger-to={folder}/state/ledger"], "about to be removed"),
        (["--ledger-to={folder}/policy.toml"], "never overwrites"),
        (["--ledger-to={folder}/nowhere/ledger"], "No such file"),
    ],
)
def test_without_a_ledger_nothing_goes(
    settings: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    given = [argument.format(folder=tmp_path) for argument in arguments]
    done = edge_runtime("wipe", str(settings), "--yes", *given)
    assert done.returncode in {ExitCode.USAGE, ExitCode.FAILED}
    assert says in done.stderr
    assert sorted(path for path in tmp_path.rglob("*") if path.suffix != ".lock") == [
        path for path in before if path.suffix != ".lock"
    ]


def test_a_ledger_that_cannot_be_read_keeps_everything(settings: Path, tmp_path: Path) -> None:
    (tmp_path / "state" / "journal.db").write_bytes(b"no database" * 100)
    done = edge_runtime("wipe", str(settings), f"--ledger-to={tmp_path / 'ledger'}", "--yes")
    assert done.returncode == ExitCode.FAILED
    assert "--no-ledger" in done.stderr
    assert (tmp_path / "identity").exists()
    assert not (tmp_path / "ledger").exists()
    done = edge_runtime("wipe", str(settings), "--no-ledger", "--yes")
    assert done.returncode == ExitCode.DONE


def test_a_running_car_is_not_wiped(settings: Path, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state" / "journal.db")
    try:
        done = edge_runtime("wipe", str(settings), "--no-ledger", "--yes")
    finally:
        journal.close()
    assert done.returncode == ExitCode.FAILED
    assert "the car runs" in done.stderr
    assert (tmp_path / "identity" / "identity.pem").exists()
