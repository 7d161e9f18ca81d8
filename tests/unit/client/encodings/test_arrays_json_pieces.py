"""The pieces together are what orjson writes, and none is large."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings, strategies as st

from prefect_qruntime.client.encodings.arrays import json_pieces, weight

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
)


@settings(max_examples=60, deadline=None)
@given(JSON, st.integers(1, 40), st.booleans())
def test_the_same_bytes_in_bounded_pieces(value: Any, piece: int, sort_keys: bool) -> None:
    option = orjson.OPT_SORT_KEYS if sort_keys else None
    pieces = list(json_pieces(value, sort_keys=sort_keys, piece=piece))
    assert b"".join(pieces) == orjson.dumps(value, option=option)
    # A character takes six bytes at most, a number 25; a key stands in one piece with its marks.
    longest = max((len(text) for text in _keys(value)), default=0)
    assert all(len(one) <= 30 * (piece + longest + 2) for one in pieces)


def _keys(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [*value, *(key for item in value.values() for key in _keys(item))]
    return [key for item in value for key in _keys(item)] if isinstance(value, list | tuple) else []


@pytest.mark.parametrize("value", [{1: "x" * 50}, {"a": object(), "b": "x" * 50}])
def test_what_orjson_refuses_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        list(json_pieces(value, piece=10))


def test_weighing_stops_at_the_limit() -> None:
    assert weight([1.0] * 10, 21) == 21
    assert weight([1.0] * 1_000_000, 21) > 21
    assert weight("x" * 22, 21) > 21
    assert weight({"x" * 20: 1}, 20) > 20
    assert weight({"a": [None, "bc"]}, 100) == 11
