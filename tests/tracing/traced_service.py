"""One service of the command line with OpenTelemetry's SDK in it, ended by its pid."""

import subprocess
import sys
from pathlib import Path

CHILD = Path(__file__).with_name("traced_child.py")


class TracedService:
    """Runs until killed. `spans` is the file of its spans."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        folder.mkdir()
        self.spans = folder / "spans.jsonl"
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(CHILD), str(self.spans), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)
