"""The reference page of signals tells what the code does."""

import re

from signals_page import PAGE, with_table

from edge_runtime.cli.sensing import SensorOptions
from edge_runtime.contract.signals import SIGNALS


def test_the_table_is_that_of_the_code() -> None:
    page = PAGE.read_text()
    assert with_table(page) == page, "run tests/vehicle/sensors/signals_page.py"


def test_every_option_is_explained() -> None:
    page = PAGE.read_text()
    for name in SensorOptions.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in page


def test_every_signal_that_is_named_is_one() -> None:
    names = {signal.name for signal in SIGNALS}
    examples = re.findall(r"--signal\.([a-z_]+) ", PAGE.read_text())
    assert examples
    assert set(examples) <= names
