"""The unit files, read by systemd-analyze; nothing is started."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from brokers import REPOSITORY

UNITS = REPOSITORY / "deploy" / "systemd"
SCORE_MAX = 1.5


@pytest.fixture
def analyze() -> str:
    found = shutil.which("systemd-analyze")
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("systemd-analyze is missing, and CI tests with it")
        pytest.skip("systemd-analyze is not installed")
    return found


@pytest.mark.parametrize("role", ["vehicle", "dispatcher"])
def test_a_break_in_would_meet_little(analyze: str, role: str) -> None:
    unit = UNITS / f"edge-runtime-{role}.service"
    told = subprocess.run(
        [analyze, "security", "--offline=true", f"--threshold={SCORE_MAX * 10:.0f}", str(unit)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert told.returncode == 0, told.stdout[-200:]


@pytest.mark.parametrize("path", sorted(UNITS.glob("*.service")), ids=lambda path: path.stem)
def test_units_run_what_the_installer_installs(path: Path) -> None:
    installer = (REPOSITORY / "deploy" / "install.sh").read_text()
    assert "edge-runtime-$role.service" in installer
    text = path.read_text()
    if "Type=notify" in text:
        assert "ExecStart=/opt/edge-runtime/current/bin/edge-runtime " in text
        assert "WatchdogSec=" in text
    else:
        assert path.name in installer
