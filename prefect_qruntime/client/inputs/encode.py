"""RuntimeEncoder's wire forms, as far as a submission needs them.

`{"__type__": "QuantumCircuit", "__value__": base64(zlib(QPY))}` and
`{"__type__": "ndarray", "__value__": base64(zlib(.npy))}`; the .npy bytes are written here, so
that numpy is not needed.
"""

from __future__ import annotations

import base64
import math
import sys
import zlib
from array import array
from collections.abc import Iterator
from typing import Any

from prefect_qruntime.client.inputs.parameters import shape_of

__all__ = ["encode_array", "encode_qpy", "is_encoded_circuit", "qpy_bytes"]


def is_encoded_circuit(value: Any) -> bool:
    """Whether this is a RuntimeEncoder circuit."""
    return (
        isinstance(value, dict)
        and value.get("__type__") == "QuantumCircuit"
        and isinstance(value.get("__value__"), str)
    )


def encode_qpy(qpy: bytes) -> dict[str, str]:
    """A circuit in the service's envelope."""
    return {"__type__": "QuantumCircuit", "__value__": base64.b64encode(zlib.compress(qpy)).decode()}


def qpy_bytes(encoded: dict[str, Any], *, limit: int) -> bytes:
    """QPY out of the envelope.

    Raises:
        ValueError: No base64, no zlib, or more than `limit` bytes.
    """
    try:
        worker = zlib.decompressobj()
        data = worker.decompress(base64.b64decode(encoded["__value__"], validate=True), limit)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if not worker.eof:
        raise ValueError(f"truncated, or larger than {limit} bytes")
    return data


def encode_array(values: Any) -> dict[str, str]:
    """Nested lists of floats as an encoded float64 array."""
    shape = shape_of(values, field="parameters")
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape!r}, }}"
    # Format 1.0: magic, version, header length, and a header padded so that the data starts at a
    # multiple of 64 bytes, ending in a newline.
    pad = -(10 + len(header) + 1) % 64
    head = (header + " " * pad + "\n").encode("latin-1")
    data = array("d", [values] if not shape else _flat(values))
    if len(data) != math.prod(shape):
        raise ValueError("ragged parameter values")
    if sys.byteorder == "big":
        data.byteswap()
    npy = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + data.tobytes()
    return {"__type__": "ndarray", "__value__": base64.b64encode(zlib.compress(npy)).decode()}


def _flat(values: list[Any]) -> Iterator[float]:
    for value in values:
        if isinstance(value, list):
            yield from _flat(value)
        else:
            yield value
