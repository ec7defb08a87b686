"""`edge-runtime doctor`: every fault is found, named, and has its advice."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from brokers import BrokerProcess, free_port
from command_line import edge_runtime

from edge_runtime.cli.checkup import check_journal, is_locked
from edge_runtime.cli.exit_codes import ExitCode
from edge_runtime.vehicle.journal import SCHEMA_VERSION, Journal
from edge_runtime.vehicle.models.importers.synthetic import write_synthetic
from edge_runtime.vehicle.models.store import PackageStore

POLICY = "dwell_s = 0.2\n[consent]\ngiven = true\nversion = 1\n"
Findings = dict[str, dict[str, Any]]


@pytest.fixture
def settings(tmp_path: Path, embedded_broker: BrokerProcess) -> Path:
    """A car with nothing the matter; `state` has a journal."""
    (tmp_path / "policy.toml").write_text(POLICY)
    journal = Journal(tmp_path / "state" / "journal.db")
    journal.load(1_800_000_000)
    journal.close()
    path = tmp_path / "vehicle.toml"
    path.write_text(
        f'[vehicle]\nid = "car-1"\nbroker = "{embedded_broker.url(5)}"\n'
        f'state-dir = "{tmp_path / "state"}"\npolicy = "{tmp_path / "policy.toml"}"\n'
        'sensors = "simulated"\n'
    )
    return path


def doctor(settings: Path, *arguments: str, code: ExitCode = ExitCode.DONE) -> Findings:
    """What it finds, by subject."""
    done = edge_runtime("doctor", str(settings), "--json", *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    findings = [json.loads(line) for line in done.stdout.splitlines()]
    assert all((finding["verdict"] == "ok") is not bool(finding["do"]) for finding in findings)
    return {finding["subject"]: finding for finding in findings}


def at_fault(findings: Findings) -> set[str]:
    return {name for name, finding in findings.items() if finding["verdict"] == "fault"}


def test_a_car_with_nothing_the_matter(settings: Path) -> None:
    findings = doctor(settings)
    assert at_fault(findings) == set()
    assert "takes this car" in findings["broker"]["says"]
    assert "charge_percent" in findings["sensors"]["says"]
    assert "ONNX Runtime is ready" in findings["engine"]["says"]
    assert "the car does not run" in findings["storage"]["says"]
    assert "in clear" in findings["certificates"]["says"]
    told = edge_runtime("doctor", str(settings), "--quick")
    assert "ok       engine" in told.stdout
    assert "broker  " not in told.stdout


def write_broken_policy(folder: Path) -> None:
    (folder / "policy.toml").write_text("parked_onyl = true\n")


def write_no_policy(folder: Path) -> None:
    (folder / "policy.toml").unlink()


def damage_journal(folder: Path) -> None:
    path = folder / "state" / "journal.db"
    data = bytearray(path.read_bytes())
    data[100:] = b"\xff" * (len(data) - 100)
    path.write_bytes(data)


def write_newer_journal(folder: Path) -> None:
    with sqlite3.connect(folder / "state" / "journal.db") as database:
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    database.close()


def require_a_missing_signal(folder: Path) -> None:
    settings = folder / "vehicle.toml"
    settings.write_text(settings.read_text().replace('"simulated"', '"linux"'))


def point_at_nobody(folder: Path) -> None:
    settings = folder / "vehicle.toml"
    lines = settings.read_text().splitlines()
    lines[2] = f'broker = "mqtt://user:hidden@127.0.0.1:{free_port()}"'
    settings.write_text("\n".join(lines))


def starve_the_engine(folder: Path) -> None:
    settings = folder / "vehicle.toml"
    settings.write_text(settings.read_text() + "engine-memory-bytes = 1000000\n")


@pytest.mark.parametrize(
    ("spoil", "subject", "says"),
    [
        (write_broken_policy, "policy", "policy_invalid"),
        (write_no_policy, "policy", "consent_missing"),
        (damage_journal, "storage", "journal.db"),
        (write_newer_journal, "storage", f"reads up to {SCHEMA_VERSION}"),
        (require_a_missing_signal, "sensors", "is_parked"),
        (point_at_nobody, "broker", "Connect call failed"),
        (starve_the_engine, "engine", "ended before it was ready"),
    ],
)
def test_what_is_at_fault_is_named(
    settings: Path, spoil: Callable[[Path], None], subject: str, says: str
) -> None:
    spoil(settings.parent)
    findings = doctor(settings, code=ExitCode.FAILED)
    assert at_fault(findings) == {subject}
    assert says in findings[subject]["says"]
    assert "hidden" not in json.dumps(findings)


def test_a_wrong_setting_is_the_first_thing_said(settings: Path) -> None:
    settings.write_text(settings.read_text() + 'region = "no spaces"\n')
    assert at_fault(doctor(settings, "--quick", code=ExitCode.FAILED)) == {"settings"}
    settings.write_text(settings.read_text() + "stait-dir = 1\n")
    done = edge_runtime("doctor", str(settings))
    assert done.returncode == ExitCode.USAGE
    assert "stait-dir" in done.stderr
    done = edge_runtime("doctor", str(settings.parent / "none.toml"))
    assert done.returncode == ExitCode.USAGE
    assert "none.toml" in done.stderr


async def test_a_damaged_package_is_found(settings: Path, tmp_path: Path) -> None:
    package = write_synthetic("noop", tmp_path / "source")
    store = PackageStore(tmp_path / "state" / "packages", 1 << 30)
    await store.add(package.folder)
    assert "noop" in doctor(settings)["models"]["says"]
    held = tmp_path / "state" / "packages" / package.digest / "package"
    model = next(held.rglob("*.onnx"))
    shutil.copy(model, tmp_path / "copy")
    model.chmod(0o644)
    model.write_bytes((tmp_path / "copy").read_bytes()[:-1] + b"x")
    findings = doctor(settings, code=ExitCode.FAILED)
    assert at_fault(findings) == {"models"}


def test_a_certificate_is_looked_at(settings: Path, tmp_path: Path) -> None:
    house = tmp_path / "house"
    made = edge_runtime("pki", "init", str(house), "--enroll", "car-1")
    assert made.returncode == ExitCode.DONE, made.stderr
    port = free_port()
    settings.write_text(
        settings.read_text().replace("mqtt://", "mqtts://")
        + f'identity = "{house / "cars" / "car-1"}"\n'
    )
    findings = doctor(settings, "--quick")
    assert "car-1, valid until 20" in findings["certificates"]["says"]
    lines = settings.read_text().splitlines()
    lines[2] = f'broker = "mqtts://127.0.0.1:{port}"'
    settings.write_text("\n".join(lines))
    assert at_fault(doctor(settings, code=ExitCode.FAILED)) == {"broker"}
    (house / "cars" / "car-1" / "identity.pem").write_text("# edge-runtime identity of car-1\n")
    assert "certificates" in at_fault(doctor(settings, "--quick", code=ExitCode.FAILED))


def test_a_running_car_is_not_disturbed(settings: Path, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        car = subprocess.Popen(
            [sys.executable, "-m", "edge_runtime", "vehicle", "--config", str(settings)],
            stdin=subprocess.DEVNULL,
            stderr=log,
        )
    try:
        journal = tmp_path / "state" / "journal.db"
        deadline_s = time.monotonic() + 40
        while b"bus_connected" not in (tmp_path / "log").read_bytes():
            assert car.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        assert is_locked(journal)
        findings = doctor(settings)
        assert "the car runs" in findings["storage"]["says"]
        assert "the running car has the session" in findings["broker"]["says"]
        assert b"bus_disconnected" not in (tmp_path / "log").read_bytes()
        car.send_signal(signal.SIGTERM)
        assert car.wait(10) == ExitCode.DONE
        assert not is_locked(journal)
    finally:
        car.kill()
        car.wait(10)


def test_a_whole_journal(settings: Path) -> None:
    assert check_journal(settings.parent / "state" / "journal.db") == ""
