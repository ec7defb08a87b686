"""Worlds that once broke an invariant: kept for ever, and held ever since."""

from pathlib import Path

import pytest

from edge_runtime.sim.campaign import Replay, read_scenario, silence
from edge_runtime.sim.runner import make_ground

REPLAYS = sorted((Path(__file__).parent / "replays").glob("*.toml"))


@pytest.mark.parametrize("path", REPLAYS, ids=lambda path: path.stem)
def test_it_holds_now(path: Path) -> None:
    replay = read_scenario(path, Replay)
    assert isinstance(replay, Replay)
    silence()
    with make_ground() as ground:
        verdict = replay.run(replay.seed, ground)
    assert verdict.violations == ()
