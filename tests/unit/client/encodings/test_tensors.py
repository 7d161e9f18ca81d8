"""Tensors: the same bytes as numpy writes, read with a cap."""

from __future__ import annotations

import base64
import math
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as arrays

from prefect_qruntime.client.encodings.arrays import Allowance
from prefect_qruntime.client.encodings.tensors import (
    DTYPES,
    Tensor,
    bit_rows,
    broadcast_places,
    decode_tensor,
    encode_tensor,
    not_finite,
)
from tests.support.executor import tensor

SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
KINDS = {"f64": np.float64, "bool": np.bool_, "u8": np.uint8, "c128": np.complex128}


@given(st.data())
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", KINDS)
def test_both_ways_are_those_of_numpy(dtype: str, compressed: bool, data: st.DataObject) -> None:
    array = data.draw(arrays.arrays(KINDS[dtype], SHAPES, elements={"allow_nan": False} if dtype != "bool" else None))
    wire = tensor(array, packed=compressed)
    found = decode_tensor(wire, compressed=compressed)
    assert found.tolist() == array.tolist()
    assert found.shape == array.shape
    assert decode_tensor(wire).data == found.data, "found out without being told"
    assert decode_tensor(found.encoded()) == found
    if dtype == "f64":
        assert encode_tensor(array.tolist(), array.shape) == found.encoded()


@given(st.integers(1, 70), st.integers(0, 40), st.randoms(use_true_random=False))
def test_rows_of_bits(width: int, count: int, draw: Any) -> None:
    numbers = [draw.getrandbits(width) for _ in range(count)]
    bits = np.array([[number >> place & 1 for place in range(width)] for number in numbers], dtype=bool)
    stream = np.packbits(bits.ravel(), bitorder="little").tobytes()
    row = (width + 7) // 8
    assert bit_rows(stream, width, count) == b"".join(number.to_bytes(row, "big") for number in numbers)
    with pytest.raises(ValueError, match="fewer"):
        bit_rows(stream[:-1], width, count + 8)


@given(st.data())
def test_broadcast_places(data: st.DataObject) -> None:
    found = data.draw(arrays.mutually_broadcastable_shapes(num_shapes=2, min_side=1, max_side=4))
    shape, own = found.result_shape, found.input_shapes[0]
    numbers = np.arange(int(np.prod(own))).reshape(own)
    assert broadcast_places(shape, own) == np.broadcast_to(numbers, shape).ravel().tolist()


@pytest.mark.parametrize("dtype", ["f16", "f32", "i8", "i16", "i32", "i64", "u16", "u32", "u64", "c64"])
def test_other_kinds_of_v2_are_read(dtype: str) -> None:
    array = np.array([[1, 2], [3, 4]]).astype(f"{dtype[0]}{int(dtype[1:]) // 8}")
    wire = {"data": base64.b64encode(zlib.compress(array.tobytes())).decode(), "shape": [2, 2], "dtype": dtype}
    assert decode_tensor(wire).tolist() == array.tolist()


@pytest.mark.parametrize(
    "wire",
    [
        None,
        {"data": "", "shape": [0]},
        {"data": "", "shape": [0], "dtype": "object"},
        {"data": "", "shape": [0], "dtype": ["f64"]},
        {"data": "", "shape": [0], "dtype": {}},
        {"data": "", "shape": [-1], "dtype": "f64"},
        {"data": "", "shape": [True], "dtype": "bool"},
        {"data": "", "shape": [1] * 40, "dtype": "bool"},
        {"data": "AAAA", "shape": [1], "dtype": "f64"},
        {"data": "no base64!", "shape": [1], "dtype": "u8"},
        {"data": base64.b64encode(zlib.compress(b"12345678")[:-2]).decode(), "shape": [1], "dtype": "f64"},
    ],
)
def test_damage_is_an_error(wire: Any) -> None:
    with pytest.raises(ValueError, match=r"tensor|array"):
        decode_tensor(wire)


def test_a_bomb_is_refused_while_it_unfolds() -> None:
    size = 1 << 24
    bomb = base64.b64encode(zlib.compress(bytes(size), 9)).decode()
    for dtype, shape in (("u8", [size]), ("bool", [size, 8])):
        with pytest.raises(ValueError, match="unfolds"):
            decode_tensor({"data": bomb, "shape": shape, "dtype": dtype}, compressed=True, allowance=Allowance(1000))
    allowance = Allowance(30)
    wire = tensor([1.0, 2.0, 3.0], packed=False)
    decode_tensor(wire, compressed=False, allowance=allowance)
    with pytest.raises(ValueError, match="unfolds"):
        decode_tensor(wire, compressed=False, allowance=allowance)


@pytest.mark.parametrize("compressed", [True, None])
@pytest.mark.parametrize(("dtype", "shape"), [("u8", [8]), ("bool", [3]), ("f64", [0]), ("c128", [])])
def test_no_more_is_unfolded_than_the_shape_asks_for(dtype: str, shape: list[int], compressed: bool | None) -> None:
    bomb = base64.b64encode(zlib.compress(bytes(1 << 26), 9)).decode()
    tracemalloc.start()
    with pytest.raises(ValueError, match="shape"):
        decode_tensor({"data": bomb, "shape": shape, "dtype": dtype}, compressed=compressed)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("compressed", [True, False, None])
def test_a_tensor_of_nothing_needs_no_bytes(compressed: bool | None) -> None:
    for shape in ([0], [3, 0], [0, 2]):
        assert decode_tensor({"data": "", "shape": shape, "dtype": "f64"}, compressed=compressed).data == b""


def test_values_that_do_not_fill_the_shape_are_not_encoded() -> None:
    with pytest.raises(ValueError, match="shape"):
        encode_tensor([1.0, 2.0], [3])


@pytest.mark.parametrize("wrong", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["f16", "f32", "f64", "c64", "c128"])
def test_a_number_that_is_not_finite_is_found_in_a_tensor_of_each_dtype(dtype: str, wrong: float) -> None:
    kind = np.dtype(DTYPES[dtype][0])
    most = np.finfo(kind).max
    for place in range(6):
        for part in (wrong, complex(0.5, wrong)) if kind.kind == "c" else (wrong,):
            values = np.array([0.0, -1.0, most, -most, np.finfo(kind).tiny, 1.0], dtype=kind)
            assert not_finite({"a": [Tensor(dtype, (6,), values.tobytes()).encoded()]}, "x") is None
            values[place] = part
            wire = Tensor(dtype, (2, 3), values.tobytes()).encoded()
            assert not_finite({"a": [1.0, wire]}, "x") == "x.a[1]"
            assert not_finite([{**wire, "data": base64.b64encode(values.tobytes()).decode()}], "x") == "x[0]"


@pytest.mark.parametrize("value", [None, "nan", 10**400, [], {"a": True}, Tensor("bool", (2,), b"\x03").encoded()])
def test_what_has_no_numbers_of_that_kind_holds_none_that_is_not_finite(value: Any) -> None:
    assert not_finite(value, "x") is None
    assert not_finite({**Tensor("f64", (1,), b"\xff" * 8).encoded(), "data": "damaged"}, "x") is None
    assert not_finite({"a": [value, {"b": math.inf}]}, "x") == "x.a[1].b"
