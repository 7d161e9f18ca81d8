"""Turn a raw `params` payload into a canonical form that is equal for equal work.

Two payloads that compute the same can differ in every byte: QPY holds random parameter ids and counted names,
compressed bytes depend on the library, a samplex holds QPY within JSON within JSON. So all of these are decoded:
circuits become their digest, arrays their values. If something cannot be decoded (qiskit is not installed, a circuit
has an operation without a definition), its bytes are used instead and a doubt is recorded: the same work, built again,
may then count as new work.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import zlib
from dataclasses import dataclass, field
from typing import Any

import orjson

from prefect_qruntime.client.encodings.arrays import Allowance, read_npy
from prefect_qruntime.client.encodings.tensors import decode_tensor, is_tensor
from prefect_qruntime.client.inputs.circuit_digest import identity_of

__all__ = ["Meaning", "meaning_of", "qpy_in"]

_QPY = b"QISKIT"
_QPY_BASE64 = "UUlTS0lU"
# How base64 of a zlib stream begins, by its level of compression.
_ZLIB_BASE64 = ("eJ", "eA", "eF", "eN")
_LIMIT = 1 << 30
_NEGATIVE_ZERO = b"\0\0\0\0\0\0\0\x80"
# Keys that say how a neighbour is written, not what it is.
_WRITING = {"b64_data": "qpy_version", "circuit_b64": "qpy_version", "circuit_base64": "qpy"}
_VERSIONS = frozenset({"samplomatic_version"})


@dataclass(frozen=True, slots=True)
class Meaning:
    """The meaning of a payload.

    Attributes:
        canonical: Plain JSON, equal for equal work.
        doubts: What could not be decoded, one sentence each.
        source: The payload itself: the form does not apply to another object that replaces it.
    """

    canonical: Any
    doubts: tuple[str, ...] = ()
    source: Any = field(default=None, repr=False, compare=False)

    @property
    def certain(self) -> bool:
        """Whether the same work, written again in another process, is certain to have this form."""
        return not self.doubts


def meaning_of(params: Any) -> Meaning:
    """Read a payload made of plain JSON. Imports qiskit only if there is QPY in it.

    Example:
        ```python
        from prefect_qruntime.client.inputs.meaning import meaning_of

        assert meaning_of({"shots": 5}).certain
        ```
    """
    reader = _Reader()
    canonical = reader.value(params, "params")
    return Meaning(canonical, tuple(reader.doubts), params)


def qpy_in(text: str, allowance: Allowance | None = None) -> bytes | None:
    """The QPY that a text holds as base64, compressed or not; None if it holds none."""
    try:
        if text.startswith(_QPY_BASE64):
            return base64.b64decode(text, validate=True)
        if text.startswith(_ZLIB_BASE64) and len(text) >= 16:
            head = base64.b64decode(text[:256][: len(text[:256]) // 4 * 4], validate=True)
            if zlib.decompressobj().decompress(head, len(_QPY)) == _QPY:
                return (allowance or Allowance(_LIMIT)).inflate(text)
    except (ValueError, binascii.Error, zlib.error):
        pass
    return None


class _Reader:
    def __init__(self) -> None:
        self.doubts: list[str] = []
        self.allowance = Allowance(_LIMIT)

    def value(self, value: Any, path: str, *, nested_json: bool = False) -> Any:
        if isinstance(value, str):
            return self._text(value, path, nested_json=nested_json)
        if isinstance(value, list):
            return [self.value(item, f"{path}[{place}]", nested_json=nested_json) for place, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        if is_tensor(value) and not nested_json:
            return self._tensor(value, path)
        if "__type__" in value and "__value__" in value:
            return self._encoded(value, path)
        skipped = {other for name, other in _WRITING.items() if name in value} | _VERSIONS
        return {
            name: self.value(item, f"{path}.{name}", nested_json=nested_json or name == "samplex_json")
            for name, item in value.items()
            if name not in skipped
        }

    def _text(self, text: str, path: str, *, nested_json: bool) -> Any:
        qpy = qpy_in(text, self.allowance)
        if qpy is not None:
            return self._circuits(qpy, path)
        if nested_json and text[:1] in ("{", "["):
            try:
                inner = json.loads(text)
            except (ValueError, RecursionError):
                self.doubts.append(f"{path} is not readable JSON.")
                return text
            return ["json", self.value(inner, path, nested_json=True)]
        return text

    def _circuits(self, qpy: bytes, path: str) -> list[Any]:
        digest = hashlib.sha256(qpy).hexdigest()
        try:
            from qiskit import qpy as reader
        except ImportError:
            self.doubts.append(f"{path} holds circuits as QPY, which cannot be compared without qiskit.")
            return ["qpy", digest]
        try:
            circuits = reader.load(io.BytesIO(qpy))
        except Exception as error:  # qiskit raises all kinds of errors for what it cannot read
            self.doubts.append(f"{path} holds QPY that qiskit cannot read ({type(error).__name__}).")
            return ["qpy", digest]
        identities = [identity_of(circuit, qpy) for circuit in circuits]
        if any("qpy" in identity for identity in identities):
            self.doubts.append(
                f"{path} holds a circuit that has an operation without a definition that could be compared."
            )
        return ["circuits", identities]

    def _tensor(self, value: dict[str, Any], path: str) -> Any:
        try:
            found = decode_tensor(value, allowance=self.allowance)
        except ValueError as error:
            self.doubts.append(f"{path} is not a readable tensor ({error}).")
            return ["text", value]
        return ["array", found.dtype, list(found.shape), _values_digest(found.data, found.dtype in ("f64", "c128"))]

    def _encoded(self, value: dict[str, Any], path: str) -> Any:
        """An object of IBM's RuntimeEncoder; a circuit's text is recognised as QPY by itself."""
        kind, inner = value["__type__"], value["__value__"]
        if kind == "ndarray" and isinstance(inner, str):
            try:
                found = read_npy(self.allowance.inflate(inner))
            except ValueError as error:
                self.doubts.append(f"{path} is not a readable array ({error}).")
                return ["text", value]
            floats = found.descr in ("<f8", "<c16")
            return ["array", found.descr, list(found.shape), _values_digest(found.data, floats)]
        if kind == "Parameter" and isinstance(inner, str):
            return ["parameter", self._parameter(inner, path)]
        canonical = self.value(inner, path)
        if kind == "set" and isinstance(canonical, list):
            canonical = sorted(canonical, key=lambda item: orjson.dumps(item, option=orjson.OPT_SORT_KEYS))
        return ["object", kind, canonical]

    def _parameter(self, text: str, path: str) -> str:
        """The name of an encoded parameter, whose id is random: a length, 16 bytes of id, and the name."""
        try:
            data = base64.b64decode(text, validate=True)
            size = int.from_bytes(data[:2], "big")
            if len(data) == 18 + size:
                return data[18:].decode()
        except ValueError:
            pass
        self.doubts.append(f"{path} is not a readable parameter.")
        return text


def _values_digest(data: bytes, floats: bool) -> str:
    # 0.0 and -0.0 are one value; a match that spans two numbers changes nothing that counts.
    if floats and _NEGATIVE_ZERO in data:
        words = memoryview(bytearray(data)).cast("Q")
        sign = int.from_bytes(_NEGATIVE_ZERO, "little")
        for place, word in enumerate(words):
            if word == sign:
                words[place] = 0
        data = words.tobytes()
    return hashlib.sha256(data).hexdigest()
