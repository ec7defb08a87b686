"""Seeds 0 to 1,999, in two processes: the longest test, and alone in its file, so begun last."""

import pytest

from edge_runtime.sim.campaign import Scenario, campaign

SEEDS = range(2_000)


@pytest.mark.timeout(1_200)
def test_no_seed_breaks_an_invariant_and_every_fault_fires() -> None:
    tally = campaign(SEEDS, Scenario(), processes=2)
    told = [f"seed {v.seed}: {v.violations[0]}" for v in tally.failures]
    assert not told, told
    assert tally.seeds == len(SEEDS)
    assert tally.never_fired == ()
    assert tally.twice == len(SEEDS) // 100
