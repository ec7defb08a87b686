"""A campaign of a minute on real processes, in the normal tests; `make chaos` runs longer ones."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RUN = Path(__file__).with_name("run.py")
SEED = 7
FAULTS_MINUTES = 1.0
LONGEST_S = 350.0


def run_campaign(folder: Path) -> dict[str, Any]:
    argv = [sys.executable, str(RUN), f"--minutes={FAULTS_MINUTES}", f"--seed={SEED}"]
    with subprocess.Popen(
        [*argv, f"--folder={folder}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            out, err = process.communicate(timeout=LONGEST_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # it ends its own processes
            out, err = process.communicate(timeout=40)
    assert process.returncode in {0, 1}, err[-4_000:]
    assert out, err[-4_000:]
    summary: dict[str, Any] = json.loads(out)
    return summary


@pytest.mark.mosquitto
@pytest.mark.timeout(400)
def test_a_minute_of_chaos_loses_doubles_and_invents_nothing(tmp_path: Path) -> None:
    summary = run_campaign(tmp_path / "run")
    assert summary["ok"], summary
    assert (summary["lost"], summary["doubled"], summary["never_fired"]) == (0, 0, {})
    assert summary["kills"]["dispatcher"] >= 5
    assert summary["kills"]["broker"] >= 3
    assert summary["kills"]["car"] >= 6
    assert summary["items"] >= 1_000
    assert summary["engine_watches"] >= 1
