"""A process that opens a car's packages: `holding_child.py ROOT`; exits with 3 where it may not."""

import sys
from pathlib import Path

from edge_runtime.vehicle.models.store import PackageStore, StoreHeld

if __name__ == "__main__":
    try:
        PackageStore(Path(sys.argv[1]), 1 << 20)
    except StoreHeld:
        sys.exit(3)
