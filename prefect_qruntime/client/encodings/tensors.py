"""Tensors as the executor sends and takes them, without numpy.

On the wire a tensor is `{"data": base64, "shape": […], "dtype": …}`: C order, little-endian, booleans packed into
bits with the least significant bit first. From schema version v2.0 on, the bytes are also compressed with zlib.
"""

from __future__ import annotations

import base64
import binascii
import math
import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import compress

from prefect_qruntime.client.encodings.arrays import Allowance, NpyArray, leaves

__all__ = [
    "DTYPES",
    "Tensor",
    "bit_rows",
    "broadcast_places",
    "decode_tensor",
    "encode_tensor",
    "is_tensor",
    "not_finite",
]

DTYPES: dict[str, tuple[str, int]] = {
    "f16": ("<f2", 2), "f32": ("<f4", 4), "f64": ("<f8", 8), "c64": ("<c8", 8), "c128": ("<c16", 16),
    "i8": ("|i1", 1), "i16": ("<i2", 2), "i32": ("<i4", 4), "i64": ("<i8", 8),
    "u8": ("|u1", 1), "u16": ("<u2", 2), "u32": ("<u4", 4), "u64": ("<u8", 8),
    "bool": ("|b1", 0),
}  # fmt: skip
"""Name on the wire → numpy's name and bytes of an element. v1.1 and older know f64, bool, u8 and c128 only."""

# Of each dtype with NaN: the bytes of a real number, and the bits of its exponent in the two highest ones.
_EXPONENTS = {"f16": (2, 0x7C00), "f32": (4, 0x7F80), "f64": (8, 0x7FF0), "c64": (4, 0x7F80), "c128": (8, 0x7FF0)}
_SMALL_EXPONENTS = bytes(value for value in range(256) if value & 0x7C != 0x7C)  # in the last byte of all of them
_MAX_DIMENSIONS = 32
_FLAGS = bytes(int(value == 49) for value in range(256))


@dataclass(frozen=True, slots=True)
class Tensor:
    r"""A decoded tensor: its bytes as the service packs them.

    Example:
        ```python
        from prefect_qruntime.client.encodings.tensors import Tensor, decode_tensor

        packed = Tensor("bool", (2, 2), b"\x09").encoded()
        assert decode_tensor(packed).tolist() == [[True, False], [False, True]]
        ```
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def encoded(self) -> dict[str, Any]:
        """The tensor as JSON of v2.0."""
        data = base64.b64encode(compress(self.data)).decode()
        return {"data": data, "shape": list(self.shape), "dtype": self.dtype}

    def as_array(self) -> NpyArray:
        """The same values in numpy's layout, in which a boolean takes a byte."""
        data = self.data
        if self.dtype == "bool":
            size = math.prod(self.shape)
            digits = format(int.from_bytes(data, "little"), f"0{size}b") if size else ""
            data = digits[::-1][:size].encode().translate(_FLAGS)
        return NpyArray(DTYPES[self.dtype][0], self.shape, data)

    def tolist(self) -> Any:
        """Nested lists, or one value if the shape is `()`."""
        return self.as_array().tolist()


def is_tensor(value: Any) -> bool:
    """Whether a JSON value is a tensor by its keys and dtype."""
    return (
        isinstance(value, dict)
        and value.keys() == {"data", "shape", "dtype"}
        and isinstance(value["data"], str)
        and isinstance(value["shape"], list)
        and isinstance(value["dtype"], str)
        and value["dtype"] in DTYPES
    )


def encode_tensor(values: Any, shape: Sequence[int]) -> dict[str, Any]:
    """Encode nested lists of real numbers as a tensor.

    Raises:
        ValueError: They do not fill the shape.
    """
    numbers = array("d", leaves(values))
    if math.prod(shape) != len(numbers):
        raise ValueError(f"{len(numbers)} values do not fill the shape {tuple(shape)}")
    if sys.byteorder == "big":
        numbers.byteswap()
    return Tensor("f64", tuple(shape), numbers.tobytes()).encoded()


def decode_tensor(value: Any, *, compressed: bool | None = None, allowance: Allowance | None = None) -> Tensor:
    """Decode a tensor.

    Args:
        value: The JSON value.
        compressed: Whether its bytes are compressed; None detects it.
        allowance: How many bytes it may unfold to.

    Raises:
        ValueError: No tensor, damaged, of another size than its shape says, or more than the allowance has.
    """
    if not is_tensor(value):
        raise ValueError(f"a tensor is {type(value).__name__} without data, shape and a known dtype")
    shape = tuple(value["shape"])
    if len(shape) > _MAX_DIMENSIONS or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"a tensor has the shape {list(shape)!r:.80}")
    allowance = allowance or Allowance()
    text, dtype = value["data"], value["dtype"]
    size = _bytes_of(dtype, shape)
    if size > allowance.size:
        raise ValueError(f"an encoded array unfolds to more than {allowance.size} bytes")
    if compressed is None:
        compressed = _is_compressed(text, size)
    own = Allowance(size + 1)  # no more is unfolded than the shape asks for
    try:
        found = Tensor(dtype, shape, own.inflate(text) if compressed and text else _plain(text, own))
    except ValueError as error:
        raise ValueError(f"{error}; its shape is {shape}, its dtype {dtype}") from None
    if len(found.data) != size:
        raise ValueError(f"a tensor of shape {shape} and dtype {dtype} has {len(found.data)} bytes")
    allowance.size -= size
    return found


def not_finite(value: Any, path: str) -> str | None:
    """The path of the first NaN or infinity in nested JSON with tensors; a tensor that cannot be read has none.

    Args:
        value: The JSON value.
        path: Its own path.
    """
    if is_tensor(value):
        try:
            found = decode_tensor(value)
        except ValueError:
            return None
        # The exponent of such a number is all ones: it is in the number's last two bytes.
        size, mask = _EXPONENTS.get(found.dtype, (0, 0))
        last = found.data[size - 1 :: size] if size else b""
        if not last.translate(None, _SMALL_EXPONENTS):  # the common case without a Python call per number
            return None
        high = zip(found.data[size - 2 :: size], last, strict=True)
        return path if any((second << 8 | first) & mask == mask for first, second in high) else None
    if isinstance(value, float):
        return None if math.isfinite(value) else path
    inner: Iterable[tuple[str, Any]] = ()
    if isinstance(value, dict):
        inner = ((f"{path}.{name}", item) for name, item in value.items())
    elif isinstance(value, list):
        inner = ((f"{path}[{place}]", item) for place, item in enumerate(value))
    return next(filter(None, (not_finite(item, spot) for spot, item in inner)), None)


def _is_compressed(text: str, size: int) -> bool:
    """Whether a tensor's text is a zlib stream of just the size that its shape asks for."""
    if len(text) // 4 * 3 - text[-2:].count("=") != size:
        return bool(text)
    try:
        # Bytes that are as many compressed as not: only a whole stream of that size is one.
        return len(Allowance(size + 1).inflate(text)) == size
    except ValueError:
        return False


def bit_rows(data: bytes, width: int, count: int) -> bytes:
    """Unpack a stream of bits into one row of whole bytes for each shot, the most significant byte first.

    Works on strided copies of the whole stream, so that a million shots take milliseconds: shots whose bits
    start at the same place within a byte are shifted together.

    Args:
        data: Bits of all shots without gaps, the least significant bit of each byte and of each shot first.
        width: Bits of one shot.
        count: Number of shots.

    Raises:
        ValueError: Fewer bits than that.
    """
    if len(data) < (width * count + 7) // 8:
        raise ValueError(f"{len(data)} bytes hold fewer than {count} shots of {width} bits")
    if not width or not count:
        return b""
    row = (width + 7) // 8
    phases = 8 // math.gcd(width, 8)
    period = width * phases // 8
    groups = -(-count // phases)
    data = data.ljust(groups * period, b"\0")[: groups * period]
    if width == 8:
        return data[:count]
    target = bytearray(groups * phases * row)
    for phase in range(phases):
        for place in range(row):
            bits = min(8, width - 8 * place)
            byte, offset = divmod(phase * width + 8 * place, 8)
            mask = (1 << bits) - 1
            found = data[byte::period]
            if offset or bits < 8:
                found = found.translate(bytes((value >> offset) & mask for value in range(256)))
            if offset + bits > 8:
                rest = data[byte + 1 :: period]
                rest = rest.translate(bytes((value << (8 - offset)) & mask for value in range(256)))
                both = int.from_bytes(found, "little") | int.from_bytes(rest, "little")
                found = both.to_bytes(groups, "little")
            target[phase * row + row - 1 - place :: phases * row] = found
    return bytes(target[: count * row])


def broadcast_places(shape: Sequence[int], own: Sequence[int]) -> list[int]:
    """For each element of a shape, in C order, the flat index of the element that it is broadcast from."""
    found = [0]
    step = math.prod(own)
    for size, length in zip(shape, (*(1,) * (len(shape) - len(own)), *own), strict=True):
        step //= max(length, 1)
        found = [start + (place * step if length > 1 else 0) for start in found for place in range(size)]
    return found


def _plain(text: str, allowance: Allowance) -> bytes:
    if len(text) // 4 * 3 > allowance.size + 2:
        raise ValueError(f"an encoded array unfolds to more than {allowance.size} bytes")
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise ValueError(f"an encoded array is damaged: {error}") from None
    allowance.size -= len(data)
    return data


def _bytes_of(dtype: str, shape: Sequence[int]) -> int:
    size = math.prod(shape)
    return (size + 7) // 8 if dtype == "bool" else size * DTYPES[dtype][1]
