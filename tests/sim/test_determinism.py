"""The same seed is the same run, whatever the hash seed and the process."""

import os
import subprocess
import sys

import pytest

SEEDS = range(180, 192)
"""With 187, in which readers were woken in the order of a set of events."""
PROGRAM = f"""
from edge_runtime.sim.campaign import Scenario, silence
from edge_runtime.sim.runner import make_ground
silence()
with make_ground() as ground:
    for seed in {SEEDS!r}:
        verdict = Scenario().run(seed, ground)
        print(seed, verdict.trace, verdict.steps, verdict.violations)
"""


@pytest.mark.timeout(300)
def test_three_hash_seeds_give_one_trace() -> None:
    told = set()
    for hash_seed in ("0", "1", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        told.add(done.stdout)
    (lines,) = told
    assert len(set(lines.splitlines())) == len(SEEDS)
