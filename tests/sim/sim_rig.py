"""Campaigns for tests."""

import structlog

from edge_runtime.sim.campaign import Scenario, Tally, campaign


def hold(seeds: range) -> Tally:
    """Run the seeds in this process; every invariant must hold."""
    before = structlog.get_config()
    try:
        tally = campaign(seeds, Scenario())
    finally:
        structlog.configure(**before)
    told = [f"seed {v.seed}: {v.violations[0]}" for v in tally.failures]
    assert not told, told
    assert tally.seeds == len(seeds)
    return tally
