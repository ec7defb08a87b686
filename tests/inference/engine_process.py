"""A process that holds an engine busy for ever and prints the worker's pid. Killed by a test."""

import asyncio
import sys
from pathlib import Path

from engine_rig import engine_rig, vector

from edge_runtime.contract.package import read_package


async def main(folder: Path) -> None:
    async with engine_rig() as rig:
        run_id = rig.submit(read_package(folder), [vector(1)])
        await rig.started(run_id, 0)
        sys.__stdout__.write(f"{rig.pid}\n")
        sys.__stdout__.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    # The log shares standard output by default, and the test reads a number there.
    sys.stdout = sys.stderr
    asyncio.run(main(Path(sys.argv[1])))
