"""Seeds 0 to 999: one of two files, so that two workers share the 2,000."""

import pytest
from sim_rig import hold


@pytest.mark.timeout(900)
def test_no_seed_breaks_an_invariant_and_every_fault_fires() -> None:
    tally = hold(range(1_000))
    assert tally.never_fired == ()
    assert tally.twice == 10
