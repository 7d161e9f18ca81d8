"""Read and write the JSON of payloads: RuntimeEncoder's values, and texts too large to be written at once.

RuntimeEncoder's values are read without numpy or qiskit, and without ever unpickling. Known: `ndarray` (base64 of a
zlib-packed .npy), `complex`, `datetime`, `set`, `ExecutionSpans`. Everything else stays what it is in the JSON. The
forms were found by running IBM's encoder.

JSON is written piece by piece, so that a large payload never holds the interpreter's lock for long. `orjson.dumps`
keeps the lock from its first byte to its last, so that a large payload stops the network loop even when it is written
in another thread. Between two pieces the loop can run.
"""

from __future__ import annotations

import base64
import itertools
import math
import re
import struct
import sys
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

import orjson

__all__ = [
    "DECODE_LIMIT",
    "LIST_LIMIT",
    "PIECE",
    "Allowance",
    "ExecutionSpan",
    "Extrapolator",
    "NpyArray",
    "decode_array",
    "decode_value",
    "json_pieces",
    "leaves",
    "list_shape",
    "nested",
    "read_npy",
    "weight",
    "whole_number",
]


Extrapolator = Literal[
    "linear",
    "exponential",
    "double_exponential",
    "polynomial_degree_1",
    "polynomial_degree_2",
    "polynomial_degree_3",
    "polynomial_degree_4",
    "polynomial_degree_5",
    "polynomial_degree_6",
    "polynomial_degree_7",
    "fallback",
]
"""Methods by which the server's estimator extrapolates to zero noise; a name may stand in place of an array."""

DECODE_LIMIT = 1 << 30
"""Most bytes to which the arrays read at once may unfold: a few kilobytes of zlib can hold a terabyte of zeros."""

LIST_LIMIT = 1 << 22
"""Most elements made into Python objects at once: each takes some 32 bytes, whatever its size in the array."""

_MAX_COPIES = 1 << 22
_SPANS = ("ExecutionSpans", "ExecutionSpanCollection")  # the second is their older name

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 1 << 16
# Not by `ast.literal_eval`: until Python 3.11.8 and 3.12.2 threads that parse at the same time break each other's work.
_HEADER_ITEM = re.compile(
    r"""'descr'\s*:\s*'(?P<descr>[^']*)'|'fortran_order'\s*:\s*(?P<fortran>True|False)|"""
    r"""'shape'\s*:\s*\(\s*(?P<shape>|(?:\d+L?\s*,\s*)+(?:\d+L?\s*)?)\)""",
    re.ASCII,
)
_BETWEEN = str.maketrans("", "", ", \t\r\n")
_MAX_DIMENSIONS = 32
# numpy's kind and size → typecode of struct; None if struct has none.
_CODES = {
    "b1": "?", "u1": "B", "i1": "b", "u2": "H", "i2": "h", "u4": "I", "i4": "i", "u8": "Q", "i8": "q",
    "f2": "e", "f4": "f", "f8": "d", "c8": "f", "c16": "d",
}  # fmt: skip

PIECE = 1 << 16
"""Characters and values that are written at once: at most a few milliseconds of work."""


class Allowance:
    """The remaining size to which one reading may unfold, over all the arrays in it.

    Args:
        size: Bytes.
        elements: Python objects.
    """

    __slots__ = ("_size", "elements", "size")

    def __init__(self, size: int = DECODE_LIMIT, elements: int = LIST_LIMIT) -> None:
        self.size = self._size = size
        self.elements = elements

    def inflate(self, text: str) -> bytes:
        """Decode base64 and zlib.

        Raises:
            ValueError: Damaged, or more bytes than are left.
        """
        try:
            packed = base64.b64decode(text, validate=True)
            worker = zlib.decompressobj()
            # A limit of 0 would mean no limit.
            data = worker.decompress(packed, max(self.size, 1))
        except (ValueError, zlib.error) as error:
            raise ValueError(f"an encoded array is damaged: {error}") from None
        if not worker.eof:
            if len(data) >= self.size:
                raise ValueError(f"an encoded array unfolds to more than {self._size} bytes")
            raise ValueError("an encoded array is cut off")
        self.size -= len(data)
        return data

    def listed(self, found: NpyArray) -> Any:
        """An array as nested lists.

        Raises:
            ValueError: More elements than are left.
        """
        # Lists of lists count too: an array of no elements may have any number of rows.
        count, level = 1, 1
        for size in found.shape:
            level *= size
            count += level
        if count > self.elements:
            raise ValueError(
                f"an encoded array of shape {found.shape} is too large for lists; use to_primitive_result()"
            )
        self.elements -= count
        return found.tolist()


@dataclass(frozen=True, slots=True)
class NpyArray:
    """An array as its bytes: C order, `descr` as numpy writes it (`<f8`, `|u1`).

    Example:
        ```python
        from prefect_qruntime.client.encodings.arrays import NpyArray

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
        """Nested lists, or one number if the shape is `()`."""
        return nested(self.flat(), self.shape)


@dataclass(frozen=True, slots=True)
class ExecutionSpan:
    """The time at which a part of a sampler job ran on the QPU; times are aware, `data` says which shots."""

    start: datetime
    stop: datetime
    kind: str
    data: dict[str, Any]


def whole_number(value: object) -> int | None:
    """The integer that a value is, also numpy's; no bool is one, but Python's and older numpy's have `__index__`."""
    index = None if type(value).__name__ in ("bool", "bool_") else getattr(value, "__index__", None)
    try:
        return None if index is None else int(index())
    except TypeError:  # a numpy array, a class
        return None


def nested(values: Sequence[Any], shape: tuple[int, ...]) -> Any:
    """A flat sequence as nested lists of that shape (C order)."""
    if not shape:
        return values[0]
    if len(shape) == 1:
        return list(values)
    step = math.prod(shape[1:])
    return [nested(values[place * step : (place + 1) * step], shape[1:]) for place in range(shape[0])]


def leaves(value: Any) -> Iterator[Any]:
    """The elements of nested lists in C order; the value itself if it is no list."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def list_shape(value: Any) -> tuple[int, ...]:
    """Shape of nested lists, which must not be ragged; `()` for anything else."""
    return (len(value), *(list_shape(value[0]) if value else ())) if isinstance(value, list) else ()


def decode_array(value: Any, *, allowance: Allowance | None = None) -> NpyArray | list[Any] | int | str:
    """The value of an `ndarray`: an array of numbers, or plain JSON for an array of objects.

    Raises:
        ValueError: Broken base64, zlib or .npy, a kind of element that is not a number, or more
            than the allowance has.
    """
    # An array of objects comes as a list, one without axes as the object: IBM's decoder knows these.
    if isinstance(value, list | int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise ValueError(f"an encoded array is text, not {type(value).__name__}")
    return value if value in get_args(Extrapolator) else read_npy((allowance or Allowance()).inflate(value))


def read_npy(data: bytes) -> NpyArray:
    """Read .npy bytes of format 1 to 3.

    Raises:
        ValueError: Not .npy, objects or text in it, or a size that does not fit the header.
    """
    if data[:6] != _MAGIC or len(data) < 12:
        raise ValueError("an encoded array is not in .npy format")
    wide = data[6] >= 2
    start = 12 if wide else 10
    length = int.from_bytes(data[8:start], "little")
    if not 1 <= data[6] <= 3 or length > _MAX_HEADER or start + length > len(data):
        raise ValueError("an .npy header is damaged")
    try:
        header = data[start : start + length].decode("utf-8")
        found = {
            name: value
            for item in _HEADER_ITEM.finditer(header)
            for name, value in item.groupdict().items()
            if value is not None
        }
        descr, fortran = found["descr"], found["fortran"] == "True"
        shape = tuple(map(int, found["shape"].replace("L", "").replace(",", " ").split()))
    except (ValueError, KeyError):
        raise ValueError("an .npy header is damaged") from None
    if _HEADER_ITEM.sub("", header).translate(_BETWEEN) != "{}":
        raise ValueError("an .npy header is damaged")
    if descr[:1] not in ("<", ">", "|", "=") or descr[1:] not in _CODES:
        raise ValueError(f"an array of {descr!r} is not supported")
    if len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"an .npy header has the shape {shape!r}")
    body = data[start + length :]
    size = int(descr[2:])
    if len(body) != math.prod(shape) * size:
        raise ValueError(f"an array of shape {shape} and type {descr} has {len(body)} bytes")
    if fortran and len(shape) > 1:
        body = _to_c_order(body, shape, size)
    return NpyArray(descr, shape, body)


def decode_value(
    value: Any,
    *,
    allowance: Allowance | None = None,
    as_array: Callable[[NpyArray | list[Any] | int], Any] | None = None,
    as_spans: Callable[[list[Any]], Any] = list,
) -> Any:
    """A JSON value with the known `__type__` objects in it replaced; unknown ones stay as data.

    Args:
        value: Decoded JSON.
        allowance: What it may unfold to.
        as_array: What to make of an array; nested lists by default.
        as_spans: What to make of a list of `ExecutionSpan`.

    Raises:
        ValueError: A known type with a broken value, or more than the allowance has.
    """
    return _Decoder(allowance or Allowance(), as_array, as_spans).value(value)


@dataclass(frozen=True, slots=True)
class _Decoder:
    allowance: Allowance
    as_array: Callable[[NpyArray | list[Any] | int], Any] | None
    as_spans: Callable[[list[Any]], Any]

    def value(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if isinstance(value, NpyArray):  # a tensor of the executor, decoded before
            return self.as_array(value) if self.as_array is not None else self.allowance.listed(value)
        if not isinstance(value, dict):
            return value
        kind = value.get("__type__")
        if kind is None or "__value__" not in value:
            return {key: self.value(item) for key, item in value.items()}
        inner = value["__value__"]
        if kind == "ndarray":
            return self._array(inner)
        if kind == "complex":
            return _complex(inner)
        if kind == "datetime":
            return _moment(value)
        if kind == "set" and isinstance(inner, list):
            items = [self.value(item) for item in inner]
            return set(items) if all(not isinstance(item, list | dict | set) for item in items) else items
        if kind in _SPANS and isinstance(inner, dict) and isinstance(inner.get("spans"), list):
            return self.as_spans([self._span(item) for item in inner["spans"]])
        return value

    def _array(self, value: Any) -> Any:
        found = decode_array(value, allowance=self.allowance)
        if isinstance(found, list):
            found = [self.value(item) for item in found]
        if isinstance(found, str):
            return found
        if self.as_array is not None:
            return self.as_array(found)
        return self.allowance.listed(found) if isinstance(found, NpyArray) else found

    def _span(self, value: Any) -> ExecutionSpan | Any:
        inner = value.get("__value__") if isinstance(value, dict) else None
        if not isinstance(inner, dict) or "start" not in inner or "stop" not in inner:
            return value
        rest = {key: self.value(item) for key, item in inner.items() if key not in ("start", "stop")}
        return ExecutionSpan(_moment(inner["start"]), _moment(inner["stop"]), str(value.get("__type__")), rest)


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


def _to_c_order(body: bytes, shape: tuple[int, ...], size: int) -> bytes:
    """Elements sorted from column-major to row-major, by strided copies along the longest axis."""
    if 0 in shape:
        return body
    longest = max(range(len(shape)), key=lambda axis: shape[axis])
    others = [axis for axis in range(len(shape)) if axis != longest]
    if math.prod(shape[axis] for axis in others) > _MAX_COPIES:
        raise ValueError(f"an array of shape {shape} in column-major order is not supported")
    # Words of up to eight bytes, for a strided copy moves one at a time; a wider element is several.
    word = min(size, 8)
    lanes = size // word
    code: Any = {1: "B", 2: "H", 4: "I", 8: "Q"}[word]
    target = bytearray(len(body))
    old, new = memoryview(body).cast(code), memoryview(target).cast(code)
    before = [lanes * math.prod(shape[:axis]) for axis in range(len(shape))]
    after = [lanes * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    length = shape[longest]
    for place in itertools.product(*(range(shape[axis]) for axis in others)):
        source = sum(step * before[axis] for step, axis in zip(place, others, strict=True))
        to = sum(step * after[axis] for step, axis in zip(place, others, strict=True))
        for lane in range(lanes):
            ends = source + lane + (length - 1) * before[longest] + 1, to + lane + (length - 1) * after[longest] + 1
            new[to + lane : ends[1] : after[longest]] = old[source + lane : ends[0] : before[longest]]
    return bytes(target)


def weight(value: Any, limit: int, *, keys: bool = True) -> int:
    """Characters and values in a value together; any larger number above the limit, as counting ends there.

    Args:
        value: The value.
        limit: Where counting ends.
        keys: Whether the names in objects count; those of a Hamiltonian are nearly all of it.
    """
    found, stack = 0, [value]
    while stack and found <= limit:
        one = stack.pop()
        found += 1
        if isinstance(one, str):
            found += len(one)
        elif isinstance(one, dict | list | tuple):
            found += len(one)
            if found <= limit:
                if keys or not isinstance(one, dict):
                    stack += one
                if isinstance(one, dict):
                    stack += one.values()
    return found


def json_pieces(value: Any, *, sort_keys: bool = False, piece: int = PIECE) -> Iterator[bytes]:
    """The bytes of `orjson.dumps`, cut into pieces of bounded size.

    Args:
        value: What `orjson` can write.
        sort_keys: As `orjson.OPT_SORT_KEYS`.
        piece: Most characters and values in a piece.

    Yields:
        Pieces that together are the same JSON text.

    Raises:
        TypeError: `orjson` cannot write it.
    """
    option = orjson.OPT_SORT_KEYS if sort_keys else None
    if weight(value, piece) <= piece:
        yield orjson.dumps(value, option=option)
    elif isinstance(value, str):
        yield b'"'
        for start in range(0, len(value), piece):
            yield orjson.dumps(value[start : start + piece])[1:-1]
        yield b'"'
    elif isinstance(value, dict):
        comma = b"{"
        # orjson sorts keys by their UTF-8, which is the order of Python's texts.
        for key in sorted(value) if sort_keys else value:
            if not isinstance(key, str):
                raise TypeError(f"Dict key must be str, not {type(key).__name__}")
            yield comma + orjson.dumps(key) + b":"
            yield from json_pieces(value[key], sort_keys=sort_keys, piece=piece)
            comma = b","
        yield b"}"
    else:
        comma = b"["
        for group in _groups(value, piece):
            yield comma
            if len(group) == 1:
                yield from json_pieces(group[0], sort_keys=sort_keys, piece=piece)
            else:
                yield orjson.dumps(group, option=option)[1:-1]
            comma = b","
        yield b"]"


def _groups(items: list[Any] | tuple[Any, ...], piece: int) -> Iterator[list[Any]]:
    """Group neighbours that fit into one piece; a value that is too large stands alone."""
    group: list[Any] = []
    left = piece
    for item in items:
        needed = weight(item, piece) + 1
        if group and needed > left:
            yield group
            group, left = [], piece
        group.append(item)
        left -= needed
    yield group
