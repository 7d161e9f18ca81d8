"""Arrays and other encoded values, read without numpy, the broken and hostile ones too."""

from __future__ import annotations

import base64
import io
import math
import pickle
import tracemalloc
import zlib
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from prefect_qruntime.client.encodings.arrays import (
    Allowance,
    ExecutionSpan,
    NpyArray,
    decode_array,
    decode_value,
    read_npy,
)
from tests.support.encoding import ndarray

TYPES = [
    "|u1",
    "|i1",
    "|b1",
    "<u2",
    ">u2",
    "<i4",
    ">i4",
    "<i8",
    ">u8",
    "<f2",
    ">f2",
    "<f4",
    "<f8",
    ">f8",
    "<c8",
    ">c16",
]


def _arrays() -> st.SearchStrategy[np.ndarray]:
    return st.sampled_from(TYPES).flatmap(
        lambda kind: hnp.arrays(np.dtype(kind), hnp.array_shapes(min_dims=0, max_dims=4, max_side=4))
    )


@given(_arrays(), st.booleans())
def test_any_array_is_read_as_numpy_reads_it(values: np.ndarray, fortran: bool) -> None:
    if fortran:
        values = np.asfortranarray(values)
    found = decode_array(ndarray(values)["__value__"])
    assert isinstance(found, NpyArray)
    assert found.shape == values.shape
    np.testing.assert_array_equal(np.array(found.tolist(), dtype=values.dtype), values)


@given(st.binary(max_size=300))
def test_any_bytes_are_an_array_or_a_value_error(data: bytes) -> None:
    for text in (data, b"\x93NUMPY\x01\x00" + data):
        with pytest.raises(ValueError, match=r"array|npy|unfolds"):
            read_npy(text)


def _npy(header: str, body: bytes = b"", version: int = 1) -> bytes:
    text = header.encode()
    size = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + body


@pytest.mark.parametrize(
    "data",
    [
        _npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", pickle.dumps([1])),
        _npy("{'descr': '<U4', 'fortran_order': False, 'shape': (1,)}", b"a" * 16),
        _npy("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (1,)}", b"a" * 8),
        _npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-1,)}"),
        _npy("{'descr': '|u1', 'fortran_order': False, 'shape': (10**9,)}"),
        _npy("{'descr': '|u1', 'fortran_order': False, 'shape': (True,)}", b"a"),
        _npy("{'descr': '|u1', 'fortran_order': False, 'shape': [1]}", b"a"),
        _npy("{'descr': '|u1', 'fortran_order': False, 'shape': (2,)}", b"a"),
        _npy("{'descr': '|u1', 'fortran_order': False, 'shape': " + "(1," * 200 + ")" * 200 + "}"),
        _npy("{'descr': '|u1', 'shape': (1,)}", b"a"),
        _npy("__import__('os').system('true')"),
        _npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1,)}", b"a", version=9),
        _npy("1"),
        _npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1,)} + 0", b"a"),
        _npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1,), 'more': 1}", b"a"),
    ],
)
def test_hostile_arrays_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"array|npy"):
        read_npy(data)


def test_newer_headers_are_read() -> None:
    data = _npy("{'descr': '|u1', 'fortran_order': False, 'shape': (2,), }\n", b"\x01\x02", version=2)
    assert read_npy(data).tolist() == [1, 2]


@pytest.mark.parametrize(
    "shape",
    ["'shape': (2,)", "'shape': ( 2, )", "'shape' : (2 , )", "'shape': (2L,)", "'shape':(2,)", "'shape': (1, 2 )"],
)
def test_headers_that_numpy_reads_are_read(shape: str) -> None:
    data = _npy(f"{{'descr' : '|u1', 'fortran_order': False, {shape}, }}\n", b"\x01\x02")
    assert read_npy(data).shape in ((2,), (1, 2))


def test_a_bomb_does_not_unfold() -> None:
    bomb = base64.b64encode(zlib.compress(bytes(50_000_000))).decode()
    assert len(bomb) < 100_000
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        decode_array(bomb, allowance=Allowance(1000))
    allowance = Allowance(100_000_000)
    decode_value(ndarray(np.zeros(60_000_000, dtype="u1")), allowance=allowance, as_array=id)
    with pytest.raises(ValueError, match="more than 100000000 bytes"):  # the two together
        decode_value(ndarray(np.zeros(60_000_000, dtype="u1")), allowance=allowance, as_array=id)


@pytest.mark.parametrize("shape", [(20_000_000,), (10**12, 0), (3_000_000, 1)])
def test_small_text_does_not_become_many_objects(shape: tuple[int, ...]) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}\n"
    data = _npy(header, bytes(math.prod(shape)))
    value = {"__type__": "ndarray", "__value__": base64.b64encode(zlib.compress(data)).decode()}
    with pytest.raises(ValueError, match="too large for lists"):
        decode_value(value)
    read = decode_value(value, as_array=lambda found: found.shape)
    assert read == shape


def test_lists_share_one_budget() -> None:
    half = ndarray(np.zeros(3_000_000))
    assert len(decode_value(half)) == 3_000_000
    with pytest.raises(ValueError, match="too large for lists"):
        decode_value({"a": half, "b": {"c": [half]}})


@pytest.mark.parametrize("kind", ["u1", "<f8", "<c16"])
@pytest.mark.parametrize("shape", [(1500, 1000), (2, 3, 100_000), (250_000, 3, 1), (7, 1), (0, 4)])
def test_column_major_arrays_are_turned_without_a_list_of_places(kind: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 200, shape).astype(kind)
    text = ndarray(np.asfortranarray(values))["__value__"]
    tracemalloc.start()
    found = decode_array(text)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(found, NpyArray)
    assert found.data == values.tobytes()
    assert peak < 10 * values.nbytes + 100_000


def test_column_major_arrays_of_countless_axes_are_refused() -> None:
    with pytest.raises(ValueError, match="column-major"):
        read_npy(_npy(f"{{'descr': '|u1', 'fortran_order': True, 'shape': {(2,) * 25}}}", bytes(1 << 25)))


@pytest.mark.parametrize(
    "text", ["@@@", "AAAA", "", base64.b64encode(zlib.compress(b"x" * 99)[:-6]).decode(), 7.5, None]
)
def test_damaged_text(text: Any) -> None:
    with pytest.raises(ValueError, match="encoded array"):
        decode_array(text)


def test_arrays_of_objects_come_as_lists() -> None:
    value = {"__type__": "ndarray", "__value__": [{"__type__": "complex", "__value__": [1.0, 2.0]}, None]}
    assert decode_value(value) == [1 + 2j, None]
    # One without axes is the object itself.
    assert decode_value({"__type__": "ndarray", "__value__": "linear"}) == "linear"
    assert decode_value({"__type__": "ndarray", "__value__": 3}) == 3


def test_known_types_anywhere_in_the_data() -> None:
    moment = {"__type__": "datetime", "__value__": "2026-01-02T03:04:05+00:00"}
    span = {
        "__type__": "ExecutionSpan",
        "__value__": {"start": moment, "stop": moment, "data_slices": {"0": [[100], 0, 100]}},
    }
    given = {
        "execution": {"execution_spans": {"__type__": "ExecutionSpans", "__value__": {"spans": [span]}}},
        "list": [moment, {"__type__": "set", "__value__": [1, 2]}],
        "array": ndarray([[1.5, 2.0]]),
        "unknown": {"__type__": "Instruction", "__value__": "AAAA"},
        "settings": {"__type__": "settings", "__module__": "os", "__class__": "system", "__value__": "true"},
    }
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert decode_value(given) == {
        "execution": {
            "execution_spans": [ExecutionSpan(at, at, "ExecutionSpan", {"data_slices": {"0": [[100], 0, 100]}})]
        },
        "list": [at, {1, 2}],
        "array": [[1.5, 2.0]],
        "unknown": given["unknown"],
        "settings": given["settings"],
    }


@pytest.mark.parametrize(
    "value",
    [
        {"__type__": "complex", "__value__": "1+2j"},
        {"__type__": "datetime", "__value__": "yesterday"},
        {"__type__": "datetime", "__value__": None},
    ],
)
def test_known_types_with_broken_values(value: Any) -> None:
    with pytest.raises(ValueError, match="encoded"):
        decode_value(value)


def test_nothing_is_unpickled() -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("unpickled",))

    target = io.BytesIO()
    np.save(target, np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="is not supported"):
        decode_array(base64.b64encode(zlib.compress(target.getvalue())).decode())
