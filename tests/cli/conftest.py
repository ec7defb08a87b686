"""What several tests of the command line share."""

import pytest
from brokers import free_port


@pytest.fixture
def free_port_of_test() -> int:
    """A port that nobody listened on a moment ago."""
    return free_port()
