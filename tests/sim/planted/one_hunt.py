"""Run seeds on whatever `edge_runtime` is imported until one fails; say so in one JSON line.

Started by `hunt.py` with PYTHONPATH at the tree to judge. Exits 3 where that tree is not the one
that was imported, or breaks before its first seed.
"""

import argparse
import json
import logging
import random
import sys
from pathlib import Path

import structlog

import edge_runtime
from edge_runtime.sim import runner

_SILENT = logging.CRITICAL


class Draw:
    """As much of a world as drawing its nemeses takes."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def fork(self, name: str) -> random.Random:
        """As `World.fork`."""
        return random.Random(f"{self._seed}/{name}")


def drawn(seed: int) -> set[str]:
    """The nemeses of a seed."""
    return set(runner._draw(Draw(seed)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tree", type=Path, required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--end", type=int, required=True)
    parser.add_argument("--needs", nargs="*", default=())
    asked = parser.parse_args()
    if not Path(edge_runtime.__file__).is_relative_to(asked.tree):
        sys.stderr.write(f"{edge_runtime.__file__} is not in {asked.tree}\n")
        return 3
    logging.disable()
    structlog.configure(
        logger_factory=structlog.ReturnLoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(_SILENT),
    )
    found: dict[str, object] = {"seed": None, "violation": None}
    with runner.make_ground() as ground:
        for seed in range(asked.first, asked.end):
            if not set(asked.needs) <= drawn(seed):
                continue
            verdict = runner.run_seed(seed, ground)
            if verdict.violations:
                found = {"seed": seed, "violation": verdict.violations[0]}
                break
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
