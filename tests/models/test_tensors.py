"""Tensors to numpy and back, and what contradicts itself."""

import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.contract import limits
from edge_runtime.contract.tensors import (
    BadTensor,
    Tensor,
    check_tensor,
    element_count,
    from_numpy,
    to_numpy,
)

DTYPES = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "u2",
    "UINT32": "u4",
    "UINT64": "u8",
    "INT8": "i1",
    "INT16": "i2",
    "INT32": "i4",
    "INT64": "i8",
    "FP16": "f2",
    "FP32": "f4",
    "FP64": "f8",
}


@pytest.mark.parametrize(("datatype", "dtype"), DTYPES.items())
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3)])
def test_every_datatype_comes_back(datatype: str, dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    tensor = from_numpy("t", array)
    assert tensor.datatype == datatype
    assert tensor.shape == shape
    back = to_numpy(tensor)
    assert back.dtype == array.dtype
    assert np.array_equal(back, array)


def test_big_endian_and_strided_arrays_travel_little_endian_and_packed() -> None:
    array = np.arange(8, dtype=">i4")[::2]
    assert from_numpy("t", array).data == struct.pack("<4i", 0, 2, 4, 6)


def test_strings_have_their_lengths_before_them() -> None:
    tensor = from_numpy("t", np.array(["a", "üü", ""], dtype=object))
    assert tensor.datatype == "BYTES"
    assert tensor.data == b"\x01\0\0\0a\x04\0\0\0\xc3\xbc\xc3\xbc\0\0\0\0"
    assert to_numpy(tensor).tolist() == ["a", "üü", ""]


@pytest.mark.parametrize(
    ("tensor", "field"),
    [
        (Tensor(name="t", datatype="BF16", shape=(1,), data=b"\0\0"), "datatype"),
        (Tensor(name="t", datatype="FP32", shape=(-1,), data=b""), "shape"),
        (Tensor(name="t", datatype="FP32", shape=(1 << 62, 4), data=b""), "shape"),
        (Tensor(name="t", datatype="FP32", shape=(2,), data=b"\0" * 7), "data"),
        (Tensor(name="t", datatype="FP32", shape=(1,) * 17, data=b"\0" * 4), "shape"),
        (Tensor(name="t", datatype="BYTES", shape=(1,), data=b"\x05\0\0\0ab"), "data"),
        (Tensor(name="t", datatype="BYTES", shape=(1,), data=b"\x01\0\0\0ab"), "data"),
        (Tensor(name="t", datatype="BYTES", shape=(1,), data=b"\x01\0\0\0\xff"), "data"),
        (Tensor(name="t", datatype="BYTES", shape=(1 << 26,), data=b""), "data"),
    ],
)
def test_contradictions_are_named(tensor: Tensor, field: str) -> None:
    for look in (to_numpy, check_tensor):
        with pytest.raises(BadTensor) as caught:
            look(tensor)
        assert caught.value.field == field


def test_complex_numbers_have_no_name() -> None:
    with pytest.raises(BadTensor, match="complex128"):
        from_numpy("t", np.zeros(1, complex))


@given(
    datatype=st.sampled_from([*DTYPES, "BYTES", "nonsense"]),
    shape=st.lists(st.integers(-2, 1 << 40), max_size=4).map(tuple),
    data=st.binary(max_size=64),
)
def test_any_tensor_is_an_array_or_a_bad_tensor(
    datatype: str, shape: tuple[int, ...], data: bytes
) -> None:
    tensor = Tensor(name="t", datatype=datatype, shape=shape, data=data)
    try:
        array = to_numpy(tensor)
    except BadTensor:
        with pytest.raises(BadTensor):
            check_tensor(tensor)
        return
    check_tensor(tensor)
    assert array.shape == shape
    assert array.size == element_count(shape) <= limits.TENSOR_MAX_ELEMENTS


def test_carrying_tensors_does_not_load_numpy() -> None:
    script = (
        "import sys, edge_runtime.contract.tensors, edge_runtime.contract.package; "
        "sys.exit('numpy' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
