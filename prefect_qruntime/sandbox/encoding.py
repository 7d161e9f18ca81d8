"""Encode and decode the typed JSON of the official client, `{"__type__": …, "__value__": …}`, without pickle.

Arrays are base64 of zlib of `.npy` bytes; circuits base64 of zlib of QPY bytes (read from the client's own output).
"""

from __future__ import annotations

import base64
import binascii
import io
import zlib
from datetime import UTC, datetime
from functools import cache
from typing import Any

# A circuit or parameter array above this is a mistake or an attack, not an input.
_MAX_BYTES = 256 * 1024 * 1024


INSTALL = "Install prefect-qruntime[sandbox] where the sandbox runs."


class InputError(Exception):
    """Raised if the job's input cannot be run; the job fails with this text.

    Args:
        message: What is wrong.
        code: The service's reason code.
    """

    def __init__(self, message: str, code: int = 1500) -> None:
        super().__init__(message)
        self.code = code


def inflate(text: Any) -> bytes:
    """Decode base64 and zlib."""
    packed = unbase64(text)
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(packed, _MAX_BYTES)
    except zlib.error as error:
        raise InputError(f"An encoded value could not be decoded: {error}") from error
    if unpacker.unconsumed_tail or not unpacker.eof:
        raise InputError("An encoded value is too large or incomplete.")
    return data


def unbase64(text: Any) -> bytes:
    """Decode base64."""
    if not isinstance(text, str):
        raise InputError("An encoded value must be a base64 string.")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"An encoded value could not be decoded: {error}") from error


def decode_array(value: Any) -> Any:
    """Decode an ndarray; object arrays come as plain lists."""
    import numpy as np

    if isinstance(value, list):
        return np.asarray(decode(value), dtype=object)
    try:
        return np.load(io.BytesIO(inflate(value)), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"An encoded array could not be decoded: {error}") from error


def decode_circuit(data: bytes) -> Any:
    """Decode QPY bytes into the first circuit in them."""
    return decode_circuits(data)[0]


def decode_circuits(data: bytes) -> list[Any]:
    """Decode QPY bytes into the circuits in them, at least one."""
    from qiskit import qpy

    try:
        circuits = qpy.load(io.BytesIO(data), annotation_factories={"samplomatic": _annotations()})
    except Exception as error:
        raise InputError(f"The QPY data could not be read: {error}", 1500) from error
    if not circuits:
        raise InputError("The QPY data holds no circuit.")
    return list(circuits)


@cache
def _annotations() -> Any:
    """Return a reader of the annotations of IBM's package samplomatic that keeps their names only."""
    from qiskit.circuit import Annotation
    from qiskit.circuit.annotation import QPYSerializer

    class Named(Annotation):  # type: ignore[misc]
        namespace = "samplomatic"

        def __init__(self, name: str) -> None:
            self.name = name

    class Reader(QPYSerializer):  # type: ignore[misc]
        def load_annotation(self, payload: bytes) -> Named:
            size = int.from_bytes(payload[:2], "big")
            return Named(payload[2 : 2 + size].decode())

        def dump_annotation(self, namespace: str, annotation: Any) -> Any:
            return NotImplemented

    return Reader


def decode(value: Any) -> Any:
    """Decode nested JSON with typed values in it.

    Raises:
        InputError: For a type that is not known here or data that cannot be read.
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "__type__" not in value:
        return {key: decode(item) for key, item in value.items()}
    kind, inner = value["__type__"], value.get("__value__")
    if kind == "QuantumCircuit":
        return decode_circuit(inflate(inner))
    if kind == "ndarray":
        return decode_array(inner)
    if kind == "complex" and isinstance(inner, list) and len(inner) == 2:
        return complex(float(inner[0]), float(inner[1]))
    if kind == "ObservablesArray":
        return decode(inner)
    raise InputError(f"Encoded values of type {kind!r} are not known here.")


def array(values: Any) -> dict[str, Any]:
    """Encode a numpy array."""
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return {"__type__": "ndarray", "__value__": base64.b64encode(zlib.compress(buffer.getvalue())).decode()}


def moment(seconds: float) -> dict[str, Any]:
    """Encode a time in seconds since the epoch."""
    return {"__type__": "datetime", "__value__": datetime.fromtimestamp(seconds, UTC).isoformat()}


def bit_array(values: Any, num_bits: int) -> dict[str, Any]:
    """Encode shots as a BitArray; `values` is uint8 of shape (*pub, shots, bytes), big-endian."""
    return {"__type__": "BitArray", "__value__": {"array": array(values), "num_bits": num_bits}}


def data_bin(fields: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """Encode the data of one pub."""
    inner = {"field_names": list(fields), "shape": list(shape), "fields": fields}
    return {"__type__": "DataBin", "__value__": inner}


def pub_result(kind: str, data: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any]:
    """Encode the result of one pub; `kind` is `SamplerPubResult` or `PubResult`."""
    return {"__type__": kind, "__value__": {"data": data, "metadata": metadata}}


def primitive_result(pubs: list[dict[str, Any]], metadata: dict[str, Any]) -> dict[str, Any]:
    """Encode the result of a job."""
    return {"__type__": "PrimitiveResult", "__value__": {"pub_results": pubs, "metadata": metadata}}
