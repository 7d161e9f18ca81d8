"""Read and write the tensors of the executor: base64 of the array's bytes, compressed from v2.0 on."""

from __future__ import annotations

import base64
import math
import zlib
from typing import Any

from prefect_qruntime.sandbox.encoding import InputError, inflate, unbase64

# Little-endian and in C order; booleans are packed into bits, the lowest first.
_TYPES = {"f64": "<f8", "u8": "|u1", "c128": "<c16", "bool": "|b1"}


def read(tensor: Any, name: str, packed: bool) -> Any:
    """Return the array of a tensor.

    Raises:
        InputError: If it cannot be decoded, or has more or fewer values than its shape.
    """
    import numpy as np

    kind = tensor.get("dtype", "f64")
    raw = inflate(tensor["data"]) if packed and tensor["data"] else unbase64(tensor["data"])
    shape = tuple(int(length) for length in tensor["shape"])
    if any(length < 0 for length in shape):
        raise InputError(f"The shape of {name} has a negative length: {list(shape)}.")
    size = math.prod(shape)
    if kind == "bool":
        bits = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")
        if not size <= len(bits) < size + 8:
            raise InputError(f"The data of {name} does not fit the shape {list(shape)}.")
        return bits[:size].astype(bool).reshape(shape)
    dtype = np.dtype(_TYPES[kind])
    if len(raw) != dtype.itemsize * size:
        raise InputError(f"The data of {name} does not fit the shape {list(shape)}.")
    return np.frombuffer(raw, dtype).reshape(shape)


def write(values: Any, packed: bool) -> dict[str, Any]:
    """Return an array as a tensor."""
    import numpy as np

    kind = {"b": "bool", "u": "u8", "c": "c128"}.get(values.dtype.kind, "f64")
    if kind == "bool":
        data = np.packbits(values, bitorder="little").tobytes()
    else:
        data = np.ascontiguousarray(values, dtype=_TYPES[kind]).tobytes()
    text = base64.b64encode(zlib.compress(data) if packed else data).decode()
    return {"data": text, "shape": list(values.shape), "dtype": kind}
