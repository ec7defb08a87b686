"""A process that publishes, and may be killed at a given write.

`publishing_child.py FOLDER PUBLISHER KILL_AT SOURCE...`: with KILL_AT over 0 it kills itself
(SIGKILL) before its KILL_AT-th write to the repository's metadata.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from edge_runtime.contract.package import read_package
from edge_runtime.registry import metadata
from edge_runtime.registry.keys import KeyRing
from edge_runtime.registry.repository import ModelRepository


def main() -> None:
    folder, publisher, kill_at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    write_file, writes = metadata.write_file, iter(range(1, 1_000))

    def write_or_die(path: Path, data: bytes, **options: Any) -> None:
        if next(writes) == kill_at:
            # What a crash in the middle of the real thing leaves: part of a file beside.
            path.with_name(f".{path.name}.halfhalf").write_bytes(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        write_file(path, data, **options)

    metadata.write_file = write_or_die
    ring = KeyRing([folder / "keys"], lambda: b"a passphrase of this test")
    for source in sys.argv[4:]:
        ModelRepository(folder / "served").publish(read_package(Path(source)), publisher, ring)


if __name__ == "__main__":
    main()
