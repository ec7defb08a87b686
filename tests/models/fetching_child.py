"""A process that fetches a package and is asked to end meanwhile: `fetching_child.py URL ROOT`."""

import sys
from pathlib import Path

from edge_runtime.cli.lifecycle import run_service
from edge_runtime.vehicle.models.store import PackageStore


async def fetch() -> None:
    await PackageStore(Path(sys.argv[2]), 1 << 20).fetch("0" * 64, sys.argv[1])


if __name__ == "__main__":
    sys.exit(run_service(fetch))
