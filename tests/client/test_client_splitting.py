"""The splitter cuts any byte stream of MessagePack values at exactly their ends."""

from itertools import pairwise

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.client.errors import ContractBroken
from edge_runtime.client.results import ValueSplitter, decode_result
from edge_runtime.contract import limits

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary(max_size=400),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=20,
)


@given(st.lists(VALUES, max_size=8), st.lists(st.integers(0, 2000), max_size=20))
def test_any_cut_gives_the_same_values(values: list[object], cuts: list[int]) -> None:
    packed = [msgpack.packb(value) for value in values]
    stream = b"".join(packed)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    splitter = ValueSplitter()
    found: list[bytes] = []
    for start, end in pairwise(edges):
        found += splitter.feed(stream[start:end])
    assert found == packed


def test_bytes_that_are_no_value_are_refused() -> None:
    with pytest.raises(ContractBroken):
        ValueSplitter().feed(b"\x01\xc1\x01")


def test_a_value_without_end_is_refused() -> None:
    splitter = ValueSplitter()
    splitter.feed(b"\xc6" + (2**31).to_bytes(4))
    for _ in range(limits.CLIENT_STREAM_VALUE_MAX_BYTES // 65_536 - 1):
        assert splitter.feed(b"\x00" * 65_536) == []
    with pytest.raises(ContractBroken):
        splitter.feed(b"\x00" * 131_072)


@pytest.mark.parametrize("value", [b"\x01", b"\x80", b"\x90", msgpack.packb({"cursor": "x"})])
def test_elements_that_are_nothing_of_ours(value: bytes) -> None:
    with pytest.raises(ContractBroken):
        decode_result(value)
