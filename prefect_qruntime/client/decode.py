"""RuntimeEncoder's values read without numpy or qiskit, and without ever unpickling.

Known: `ndarray` (base64 of a zlib-packed .npy), `complex`, `datetime`, `set`, `ExecutionSpans`.
Everything else stays what it is in the JSON. The forms were found by running IBM's encoder.
"""

from __future__ import annotations

import ast
import base64
import math
import struct
import sys
import zlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

__all__ = ["DECODE_LIMIT", "ExecutionSpan", "NpyArray", "decode_array", "decode_value", "nested", "read_npy"]

DECODE_LIMIT = 1 << 30
"""Most bytes one array may unfold to: a few kilobytes of zlib can hold a terabyte of zeros."""

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 1 << 16
_MAX_DIMENSIONS = 32
# numpy's kind and size → typecode of struct; None where struct has none.
_CODES = {
    "b1": "?", "u1": "B", "i1": "b", "u2": "H", "i2": "h", "u4": "I", "i4": "i", "u8": "Q", "i8": "q",
    "f2": "e", "f4": "f", "f8": "d", "c8": "f", "c16": "d",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class NpyArray:
    """An array as its bytes: C order, `descr` as numpy writes it (`<f8`, `|u1`).

    Example:
        ```python
        from prefect_qruntime.client.decode import NpyArray

        assert NpyArray("|u1", (2, 1), bytes([0, 3])).tolist() == [[0], [3]]
        ```
    """

    descr: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return int(self.descr[2:])

    def flat(self) -> list[Any]:
        """The elements in C order."""
        order = self.descr[0] if self.descr[0] in "<>" else "="
        code = _CODES[self.descr[1:]]
        if code in "edfQq?" and (code in "e?" or order != "="):
            code_width = struct.calcsize("=" + code)
            values: list[Any] = list(struct.unpack(f"{order}{len(self.data) // code_width}{code}", self.data))
        else:
            values = self._fast(order, code)
        if self.descr[1] == "c":
            return [complex(*pair) for pair in zip(values[::2], values[1::2], strict=True)]
        return values

    def _fast(self, order: str, code: str) -> list[Any]:
        found = array(code)
        found.frombytes(self.data)
        if order != "=" and (order == ">") != (sys.byteorder == "big"):
            found.byteswap()
        return found.tolist()

    def tolist(self) -> Any:
        """Nested lists, or one number where the shape is `()`."""
        return nested(self.flat(), self.shape)


@dataclass(frozen=True, slots=True)
class ExecutionSpan:
    """When a part of a sampler job ran on the QPU; times are aware, `data` says which shots."""

    start: datetime
    stop: datetime
    kind: str
    data: dict[str, Any]


def nested(values: Sequence[Any], shape: tuple[int, ...]) -> Any:
    """A flat sequence as nested lists of that shape (C order)."""
    if not shape:
        return values[0]
    if len(shape) == 1:
        return list(values)
    step = math.prod(shape[1:])
    return [nested(values[place * step : (place + 1) * step], shape[1:]) for place in range(shape[0])]


def decode_array(value: Any, *, limit: int = DECODE_LIMIT) -> NpyArray | list[Any]:
    """The value of an `ndarray`: an array of numbers, or a plain list for an array of objects.

    Raises:
        ValueError: Broken base64, zlib or .npy, a kind of element that is not a number, or more
            than `limit` bytes.
    """
    if isinstance(value, list):
        return value
    if not isinstance(value, str):
        raise ValueError(f"an encoded array is text, not {type(value).__name__}")
    return read_npy(inflate(value, limit=limit))


def inflate(text: str, *, limit: int) -> bytes:
    """Base64 and zlib undone, up to `limit` bytes."""
    try:
        packed = base64.b64decode(text, validate=True)
        worker = zlib.decompressobj()
        data = worker.decompress(packed, limit)
    except (ValueError, zlib.error) as error:
        raise ValueError(f"an encoded array is damaged: {error}") from None
    if not worker.eof:
        if len(data) >= limit:
            raise ValueError(f"an encoded array unfolds to more than {limit} bytes")
        raise ValueError("an encoded array is cut off")
    return data


def read_npy(data: bytes) -> NpyArray:
    """Read .npy bytes of format 1 to 3.

    Raises:
        ValueError: Not .npy, objects or text in it, or a size that does not fit the header.
    """
    if data[:6] != _MAGIC or len(data) < 12:
        raise ValueError("an encoded array is no .npy")
    wide = data[6] >= 2
    start = 12 if wide else 10
    length = int.from_bytes(data[8:start], "little")
    if not 1 <= data[6] <= 3 or length > _MAX_HEADER or start + length > len(data):
        raise ValueError("an .npy header is damaged")
    try:
        header = ast.literal_eval(data[start : start + length].decode("utf-8").strip())
        descr, fortran, shape = header["descr"], header["fortran_order"], header["shape"]
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError):
        raise ValueError("an .npy header is damaged") from None
    if not isinstance(descr, str) or descr[:1] not in ("<", ">", "|", "=") or descr[1:] not in _CODES:
        raise ValueError(f"an array of {descr!r} is not read")
    if (
        not isinstance(shape, tuple)
        or len(shape) > _MAX_DIMENSIONS
        or not all(type(size) is int and size >= 0 for size in shape)
    ):
        raise ValueError(f"an .npy header has the shape {shape!r}")
    body = data[start + length :]
    size = int(descr[2:])
    if len(body) != math.prod(shape) * size:
        raise ValueError(f"an array of shape {shape} and type {descr} has {len(body)} bytes")
    if fortran and len(shape) > 1:
        body = _to_c_order(body, shape, size)
    return NpyArray(descr, shape, body)


def decode_value(
    value: Any, *, limit: int = DECODE_LIMIT, as_array: Callable[[NpyArray], Any] = NpyArray.tolist
) -> Any:
    """A JSON value with the known `__type__` objects in it replaced; unknown ones stay as data.

    Args:
        value: Decoded JSON.
        limit: Most bytes one array may unfold to.
        as_array: What to make of a number array; nested lists by default.

    Raises:
        ValueError: A known type with a broken value.
    """
    if isinstance(value, list):
        return [decode_value(item, limit=limit, as_array=as_array) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get("__type__")
    if kind is None or "__value__" not in value:
        return {key: decode_value(item, limit=limit, as_array=as_array) for key, item in value.items()}
    inner = value["__value__"]
    if kind == "ndarray":
        found = decode_array(inner, limit=limit)
        if isinstance(found, NpyArray):
            return as_array(found)
        return decode_value(found, limit=limit, as_array=as_array)
    if kind == "complex":
        return _complex(inner)
    if kind == "datetime":
        return _moment(value)
    if kind == "set" and isinstance(inner, list):
        items = [decode_value(item, limit=limit, as_array=as_array) for item in inner]
        return set(items) if all(not isinstance(item, list | dict | set) for item in items) else items
    if kind == "ExecutionSpans" and isinstance(inner, dict) and isinstance(inner.get("spans"), list):
        return [_span(item) for item in inner["spans"]]
    return value


def _complex(value: Any) -> complex:
    if isinstance(value, list) and len(value) == 2 and all(isinstance(part, int | float) for part in value):
        return complex(value[0], value[1])
    raise ValueError(f"an encoded complex number is {value!r:.60}")


def _moment(value: Any) -> datetime:
    text = value.get("__value__") if isinstance(value, dict) else value
    try:
        return datetime.fromisoformat(str(text))
    except ValueError:
        raise ValueError(f"an encoded datetime is {text!r:.60}") from None


def _span(value: Any) -> ExecutionSpan | Any:
    inner = value.get("__value__") if isinstance(value, dict) else None
    if not isinstance(inner, dict) or "start" not in inner or "stop" not in inner:
        return value
    rest = {key: decode_value(item) for key, item in inner.items() if key not in ("start", "stop")}
    return ExecutionSpan(_moment(inner["start"]), _moment(inner["stop"]), str(value.get("__type__")), rest)


def _to_c_order(body: bytes, shape: tuple[int, ...], size: int) -> bytes:
    """Elements sorted from column-major to row-major."""
    if 0 in shape:
        return body
    places = [0]
    stride = 1
    for length in shape:  # the first axis moves fastest in what was written
        places = [place + step * stride for place in places for step in range(length)]
        stride *= length
    return b"".join(body[place * size : (place + 1) * size] for place in places)
