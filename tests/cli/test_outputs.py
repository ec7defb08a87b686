"""Outputs of tasks as lines for people, and of anything else as something."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.cli.outputs import describe_output


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ({"detections": []}, "nothing found"),
        (
            {"detections": [{"box": [66.2, 37.4, 9, 9], "score": 0.923, "label": "face"}]},
            "1 face at (66, 37) 0.92",
        ),
        (
            {"detections": [{"box": [1, 2, 3, 4], "score": 0.5, "label": "face"}] * 7},
            "7 faces at " + ", ".join(["(1, 2) 0.50"] * 6) + ", …",
        ),
        ({"lines": []}, "no text"),
        ({"lines": [{"text": "NO"}, {"text": "PARKING\x1b"}]}, "NO / PARKING\\x1b"),
        ({"shape": [1], "data": b"1234"}, "shape=[1] data=<4 bytes 31 32 33 34>"),
        ({"detections": [3]}, "detections=[3]"),
        ([1, 2], "[1, 2]"),
        (None, "None"),
    ],
)
def test_an_output_is_a_line(output: Any, line: str) -> None:
    assert describe_output(output) == line


@given(st.recursive(st.none() | st.floats() | st.text() | st.binary(), st.lists, max_leaves=9))
def test_any_output_has_a_line(output: Any) -> None:
    assert "\n" not in describe_output({"detections": output, "lines": output})
    assert "\n" not in describe_output(output)
