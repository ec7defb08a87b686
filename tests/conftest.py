"""Fixtures for every test; brokers are in brokers.py."""

import logging
from collections.abc import Iterator

import pytest
import structlog

pytest_plugins = ["brokers"]


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Commands that are run in the test's own process configure, or silence, the logging of all."""
    yield
    structlog.reset_defaults()
    logging.disable(logging.NOTSET)
