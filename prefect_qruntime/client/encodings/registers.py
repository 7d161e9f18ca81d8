"""Count the measured bits of one register, without building a list of ints.

A shot's *key* is its form in the body (a hex string, a byte, a machine word, bytes);
only distinct keys are ever turned into numbers and bitstrings. That is what makes a million shots
cheap.
"""

from __future__ import annotations

import contextlib
import math
import struct
import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from prefect_qruntime.client.encodings.arrays import whole_number
from prefect_qruntime.redact import shown

__all__ = ["HexRegister", "PackedRegister", "Register", "flat_index", "memory", "tally"]

# Bytes of a machine word and its typecode.
_WORDS = ((2, "H"), (4, "I"), (8, "Q"))
# Bytes of a word → typecode of one twice as wide.
_WIDER = {2: "I", 4: "Q"}
_MANY = 500_000  # shots
_MANY_EMPTY = 1 << 24
_MOST_DIGITS = 1 << 30
_MOST_BITS = 1_000_000  # of one shot: a few bytes may name any number, and each outcome is written out
_SAMPLE = 2048  # shots that show whether few outcomes dominate


@dataclass(frozen=True, slots=True)
class HexRegister:
    """Hex strings of the plain JSON form; lists of lists for a PUB of several points."""

    samples: list[Any]
    num_bits: int
    shape: tuple[int, ...]

    @classmethod
    def read(cls, value: dict[str, Any]) -> HexRegister:
        """From `{"samples": […], "num_bits": n}`.

        Raises:
            ValueError: No list of hex strings.
        """
        samples, bits = value.get("samples"), value.get("num_bits")
        shape: list[int] = []
        inner: Any = samples
        while isinstance(inner, list) and inner and isinstance(inner[0], list):
            shape.append(len(inner))
            inner = inner[0]
        if not isinstance(samples, list) or not isinstance(inner, list):
            raise ValueError("`samples` is not a list")
        points = list(_points(samples, shape))
        if bits is None:
            bits = max((_hex(key).bit_length() for point in points for key in set(point)), default=1) or 1
        elif type(bits) is not int or not 0 <= bits <= _MOST_BITS:
            raise ValueError(f"`num_bits` is {str(bits)[:40]}")
        return cls(samples, bits, tuple(shape))

    def keys(self, point: int) -> Sequence[Any]:
        """The hex strings of one point."""
        found: Any = self.samples
        for size in _coordinates(point, self.shape):
            try:
                found = found[size]
            except (IndexError, TypeError):
                raise ValueError("`samples` is ragged") from None
        if not isinstance(found, list):
            raise ValueError("`samples` is ragged")
        return found

    def number(self, key: Any) -> int:
        """Value of a hex string."""
        try:
            number = int(key, 16)
        except (TypeError, ValueError):
            number = _hex(key)
        return _fitting(number, self.num_bits) if number >> self.num_bits else number


@dataclass(frozen=True, slots=True)
class PackedRegister:
    """Bytes of an encoded `BitArray`: shape `(*pub, shots, bytes)`, big-endian in each row."""

    data: bytes
    num_bits: int
    shape: tuple[int, ...]
    num_shots: int
    row: int

    @classmethod
    def read(cls, data: bytes, shape: tuple[int, ...], num_bits: Any) -> PackedRegister:
        """From the array of a `BitArray`.

        Raises:
            ValueError: Shape and number of bits do not fit.
        """
        if type(num_bits) is not int or num_bits < 0:
            raise ValueError(f"`num_bits` is {num_bits!r}")
        if len(shape) < 2 or shape[-1] != (num_bits + 7) // 8 or math.prod(shape) != len(data):
            raise ValueError(f"a BitArray of {num_bits} bits has an array of shape {shape}")
        if not data and math.prod(max(size, 1) for size in shape[:-1]) > _MANY_EMPTY:  # which take no bytes
            raise ValueError(f"a BitArray without data has the shape {shape}")
        return cls(data, num_bits, shape[:-2], shape[-2], shape[-1])

    def part(self, point: int) -> bytes:
        """The bytes of one point, shot after shot."""
        size = self.num_shots * self.row
        return self.data[point * size : (point + 1) * size]

    def keys(self, point: int) -> Sequence[Any]:
        """Bytes, machine words or slices of one point, whatever counts fastest."""
        part = self.part(point)
        if self.row == 0:
            return [b""] * self.num_shots
        if self.row == 1:
            return part
        if self.row > 8:
            return list(struct.iter_unpack(f"{self.row}s", part))
        width, code = next(word for word in _WORDS if word[0] >= self.row)
        words = array(code)
        if width == self.row:
            words.frombytes(part)
            if sys.byteorder == "little":
                words.byteswap()
        else:
            # Rows of 3, 5, 6 or 7 bytes, spread so that each machine word is the number itself.
            wide = bytearray(width * self.num_shots)
            for place in range(self.row):
                at = self.row - 1 - place if sys.byteorder == "little" else width - self.row + place
                wide[at::width] = part[place :: self.row]
            words.frombytes(wide)
        return words

    def number(self, key: Any) -> int:
        """Value of a key."""
        if isinstance(key, tuple):
            key = key[0]
        number = key if isinstance(key, int) else int.from_bytes(key, "big")
        return _fitting(number, self.num_bits) if number >> self.num_bits else number


Register = HexRegister | PackedRegister
"""One classical register of one PUB; its shape is `()` for a single point."""


def tally(registers: Sequence[Register], point: int) -> dict[str, int]:
    """Bitstring → number of shots, most frequent first; several registers are joined.

    Joined bitstrings read like one integer: the first register holds the least significant bits, so
    it stands at the right end. This is Qiskit's `join_data` order.
    """
    counts: dict[str, int] = {}
    counter: Counter[Any]
    counter = Counter(_zipped(registers, point)) if len(registers) > 1 else _count(registers[0], point)
    _check_length(len(counter), registers)
    spec = f"0{registers[0].num_bits}b"
    plain = len(registers) == 1 and isinstance(registers[0], PackedRegister) and 1 <= registers[0].row <= 8
    if plain and counter:
        _fitting(max(counter), registers[0].num_bits)
    for key, count in counter.most_common():
        # The keys of a short packed register are its numbers.
        text = format(key, spec) if plain else _text(registers, key)
        counts[text] = counts.get(text, 0) + count
    if len(counts) < len(counter):  # "0x3" and "0x03" were one outcome
        counts = dict(sorted(counts.items(), key=lambda item: -item[1]))
    return counts


def memory(registers: Sequence[Register], point: int) -> list[str]:
    """The bitstring of each shot, in order; several registers are joined as in `tally`."""
    keys: Sequence[Any]
    keys = _zipped(registers, point) if len(registers) > 1 else registers[0].keys(point)
    distinct = set(keys)
    _check_length(len(distinct), registers)
    table = {key: _text(registers, key) for key in distinct}
    return [table[key] for key in keys]


def _check_length(texts: int, registers: Sequence[Register]) -> None:
    """Refuse more digits than fit into memory: a short body can have shots of any number of bits."""
    width = sum(register.num_bits for register in registers)
    if texts * width > _MOST_DIGITS:
        raise ValueError(f"{texts} shots of {width} bits are too many for bitstrings")


def flat_index(index: Any, shape: tuple[int, ...]) -> int:
    """Place of a point in C order.

    Raises:
        IndexError: Not an index of that shape.
    """
    place = index if isinstance(index, tuple | list) else (index,)
    if len(place) != len(shape):
        raise IndexError(f"{shown(index)} is not an index of shape {shape}")
    flat = 0
    for number, size in zip(place, shape, strict=True):
        found = whole_number(number)
        if found is None or not -size <= found < size:
            raise IndexError(f"{shown(index)} is not an index of shape {shape}")
        flat = flat * size + found % size
    return flat


def _count(register: Register, point: int) -> Counter[Any]:
    if isinstance(register, HexRegister):
        return _count_digits(register, point) or Counter(register.keys(point))
    if register.row > 8:
        # Not through `keys`: a list of a million tuples costs more than counting them.
        return Counter(struct.iter_unpack(f"{register.row}s", register.part(point)))
    keys = register.keys(point)
    if isinstance(keys, bytes):
        return _count_bytes(keys)
    if not isinstance(keys, array):
        return Counter(keys)
    return _count_words(keys)


def _count_bytes(keys: bytes) -> Counter[Any]:
    """Count bytes; those that dominate are taken out by a search, which does not make an object of each."""
    found: dict[int, int] = {}
    for value, number in Counter(keys[:_SAMPLE]).most_common(8):
        if number < 0.04 * _SAMPLE:
            break
        rest = keys.translate(None, bytes([value]))
        found[value] = len(keys) - len(rest)
        keys = rest
    counter = Counter(keys)
    counter.update(found)
    return counter


def _count_words(words: array[int]) -> Counter[Any]:
    """Count machine words, two at a time where few different ones make few different pairs.

    Else with numpy: where the user has loaded it anyway, or for so many shots that loading it pays.
    """
    numpy = sys.modules.get("numpy")
    wide = _WIDER.get(words.itemsize)
    even = len(words) // 2 * 2
    sample = words[: 2 * _SAMPLE]
    pairs_differ = wide is None or len(set(zip(sample[::2], sample[1::2], strict=False))) > 0.3 * _SAMPLE
    if numpy is None and pairs_differ and len(words) >= _MANY:
        with contextlib.suppress(ImportError):
            import numpy
    if numpy is not None:
        values, counts = numpy.unique(numpy.frombuffer(words, dtype=f"u{words.itemsize}"), return_counts=True)
        return Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    if pairs_differ or even < 4 * _SAMPLE or wide is None:
        return Counter(words)
    pairs = array(wide)
    pairs.frombytes(memoryview(words)[:even].cast("B"))
    counter = Counter(words[even:])
    bits = 8 * words.itemsize
    mask = (1 << bits) - 1
    get = counter.get
    for pair, number in Counter(pairs).items():
        for word in (pair >> bits, pair & mask):
            counter[word] = get(word, 0) + number
    return counter


def _count_digits(register: HexRegister, point: int) -> Counter[Any] | None:
    """Count hex strings of one digit, as registers of up to four bits have; None for others."""
    if register.num_bits > 4:
        return None
    keys = register.keys(point)
    try:
        text = "".join(keys)
        shots = len(keys)
        # Every third character a digit after "0x", or the strings are not all three characters long.
        if len(text) != 3 * shots or text[::3] != "0" * shots or text[1::3] != "x" * shots:
            return None
        digits = _count_bytes(text[2::3].encode("ascii"))
    except (TypeError, UnicodeEncodeError):
        return None  # not hex strings: reported when their value is read
    return Counter({f"0x{chr(digit)}": number for digit, number in digits.items()})


def _zipped(registers: Sequence[Register], point: int) -> list[tuple[Any, ...]]:
    columns = [register.keys(point) for register in registers]
    if len({len(column) for column in columns}) > 1:
        raise ValueError("registers with different numbers of shots")
    return list(zip(*columns, strict=True))


def _text(registers: Sequence[Register], key: Any) -> str:
    if len(registers) == 1:
        bits, number = registers[0].num_bits, registers[0].number(key)
        return f"{number:0{bits}b}" if bits else ""
    parts = [_text([register], part) for register, part in zip(registers, key, strict=True)]
    return "".join(reversed(parts))


def _coordinates(point: int, shape: tuple[int, ...]) -> list[int]:
    places: list[int] = []
    for size in reversed(shape):
        point, place = divmod(point, size)
        places.append(place)
    return places[::-1]


def _points(samples: list[Any], shape: Sequence[int]) -> Iterator[list[Any]]:
    """The shots of each point."""
    for item in samples if shape else ():
        if not isinstance(item, list) or (len(shape) > 1 and len(item) != shape[1]):
            raise ValueError("`samples` is ragged")
        yield from _points(item, shape[1:])
    if not shape:
        yield samples


def _fitting(number: int, bits: int) -> int:
    """Check that a shot's number fits into its register; in a damaged result it may be too large or negative."""
    if number >> bits:  # -1 for all negative ones
        raise ValueError(f"a shot of {number:#x} does not fit into {bits} bits")
    return number


def _hex(key: Any) -> int:
    try:
        return int(key, 16) if isinstance(key, str) else int.__index__(key)
    except (ValueError, TypeError):
        raise ValueError(f"{key!r:.60} is not a hex string") from None
