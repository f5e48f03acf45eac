"""Tensors from bytes and from listed values: what fits, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from glora_deploy.serving.errors import InputError
from glora_deploy.serving.protocol.datatypes import DTYPES
from glora_deploy.serving.protocol.tensors import (
    Tensor,
    from_bytes,
    from_values,
    object_array,
    to_bytes,
)

SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@given(st.sampled_from(sorted(DTYPES)), SHAPES, st.data())
def test_bytes_of_any_datatype_come_back(
    datatype: str, shape: tuple[int, ...], data: st.DataObject
) -> None:
    size = int(np.prod(shape, dtype=int)) * DTYPES[datatype].itemsize
    raw = data.draw(st.binary(min_size=size, max_size=size))
    if datatype == "BOOL":
        raw = bytes(byte & 1 for byte in raw)
    tensor = from_bytes("x", datatype, shape, raw)
    assert (tensor.shape, tensor.values.shape) == (shape, shape)
    assert to_bytes(tensor) == raw


@given(st.lists(st.binary(max_size=9), max_size=5))
def test_elements_of_any_length_come_back(elements: list[bytes]) -> None:
    sent = Tensor(name="x", datatype="BYTES", shape=(len(elements),), values=object_array(elements))
    got = from_bytes("x", "BYTES", [len(elements)], to_bytes(sent))
    assert got.values.tolist() == elements


@given(st.binary(max_size=40), st.integers(0, 5))
def test_any_bytes_are_elements_or_refused(raw: bytes, count: int) -> None:
    try:
        tensor = from_bytes("x", "BYTES", [count], raw)
    except InputError:
        return
    assert to_bytes(tensor) == raw


def test_a_shape_alone_makes_nothing_large() -> None:
    with pytest.raises(InputError, match="must be 1099511627776 elements"):
        from_bytes("x", "BYTES", [1 << 40], b"\0" * 64)


@pytest.mark.parametrize(
    ("datatype", "data", "expected"),
    [
        ("FP32", [1, 2.5, -3], [1, 2.5, -3]),
        ("FP32", [[1], [2], [3]], [1, 2, 3]),
        ("INT8", [-128, 0, 127], [-128, 0, 127]),
        ("BOOL", [True, False, True], [True, False, True]),
        ("BYTES", ["a", "", "ß"], [b"a", b"", "ß".encode()]),
        ("BYTES", [["a"], ["b", "c"]], [b"a", b"b", b"c"]),
    ],
)
def test_listed_values_are_taken_flat_or_nested(
    datatype: str, data: list[Any], expected: list[Any]
) -> None:
    tensor = from_values("x", datatype, [3], data)
    assert tensor.values.tolist() == expected


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "message"),
    [
        ("FP31", [1], [1], "datatype must be one of"),
        ("BF16", [1], [1], "BF16 must be sent as bytes"),
        ("FP32", [2], [1], "must have 2 values"),
        ("FP32", [1], ["1"], "numbers that FP32 can hold"),
        ("FP32", [1], [True], "numbers that FP32 can hold"),
        ("FP32", [1], [None], "numbers that FP32 can hold"),
        ("FP32", [1], {"a": 1}, "numbers that FP32 can hold"),
        ("FP32", [3], [[1, 2], [3]], "list of numbers"),
        ("INT8", [1], [128], "range of INT8"),
        ("UINT8", [1], [-1], "range of UINT8"),
        ("INT64", [1], [2**70], "numbers that INT64 can hold"),
        ("INT64", [1], [1.5], "numbers that INT64 can hold"),
        ("BYTES", [1], [1], "values of BYTES must be strings"),
        ("BYTES", [1], ["\ud800"], "Unicode that UTF-8 can hold"),
        ("FP32", [-1], [1], "integers of 0 or more"),
        ("FP32", [1.0], [1], "integers of 0 or more"),
        ("FP32", [True], [1], "integers of 0 or more"),
        ("FP32", ["1"], [1], "integers of 0 or more"),
        ("FP32", [1] * 17, [1], "at most 16 dimensions"),
        ("FP32", [2**21, 2**21], [1], "elements, shape says more"),
    ],
)
def test_values_that_are_none_are_refused(
    datatype: str, shape: list[Any], data: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        from_values("x", datatype, shape, data)
