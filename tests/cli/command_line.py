"""Runs command lines as a person does: in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

TIMEOUT_S = 60


def edge_runtime(
    *arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The finished process; its environment holds no EDGE_RUNTIME_ variable but those of `env`."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("EDGE_RUNTIME_")}
    # rich would cut lines to the width of the terminal that runs the tests.
    return subprocess.run(
        [sys.executable, "-m", "edge_runtime", *arguments],
        env={**clean, "COLUMNS": "100", **(env or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
