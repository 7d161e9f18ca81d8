"""Turn a circuit of any form into its wire form, with what is known about it.

qiskit is only looked up in `sys.modules`: a user who holds a `QuantumCircuit` has imported it already, and other
users do not pay for the import.
"""

from __future__ import annotations

import base64
import io
import math
import sys
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect_qruntime.client.inputs.circuit_digest import identity_of
from prefect_qruntime.client.inputs.parameters import shape_of
from prefect_qruntime.client.inputs.qasm import scan, syntax_error, text_of, with_version
from prefect_qruntime.errors import InvalidInput

__all__ = [
    "MAX_QPY_VERSION",
    "Circuit",
    "encode_array",
    "encode_qpy",
    "is_circuit_like",
    "is_encoded_circuit",
    "is_quantum_circuit",
    "load_qpy",
    "qpy_bytes",
    "read_circuit",
]

MAX_QPY_VERSION = 17
"""Newest QPY the service reads, as IBM's own client caps it; newer qiskit writes newer by default."""

_MAX_QPY_BYTES = 1 << 30
_MEASURE_IT = "Measure into a classical register, in OpenQASM 3 by `c = measure q;`."


@dataclass(frozen=True, slots=True)
class Circuit:
    """One circuit as it will be sent.

    Attributes:
        wire: OpenQASM text or an encoded circuit.
        inputs: Parameter names if exactly known, in declared order (text) or qiskit's order.
        qubits: Number of qubits, if exactly known.
        width: Number of classical bits, if exactly known.
        registers: Names of the classical registers, if known.
        scalars: Classical bits that belong to no register: the scalar bits of a text by name, the loose bits of a
            `QuantumCircuit` by number.
        identity: What stands for the circuit in the digest, if `wire` is not reproducible. For an
            encoded circuit that is the text itself: whether qiskit is there to look into it must not
            decide whether a job is found again.
        source: The user's `QuantumCircuit`, if it was one.
    """

    wire: str | dict[str, Any]
    inputs: tuple[str, ...] | None = None
    qubits: int | None = None
    width: int | None = None
    registers: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()
    identity: Any = None
    source: Any = None


def is_quantum_circuit(value: Any) -> bool:
    """Whether it is a qiskit circuit, without importing qiskit."""
    module = sys.modules.get("qiskit.circuit")
    kind = getattr(module, "QuantumCircuit", None)
    return kind is not None and isinstance(value, kind)


def is_circuit_like(value: Any) -> bool:
    """Whether a value has a circuit's form: text, a path, a circuit, an encoded circuit."""
    return isinstance(value, str | Path) or is_quantum_circuit(value) or is_encoded_circuit(value)


def read_circuit(value: Any, *, sampler: bool, field: str) -> Circuit:
    """Check a circuit and turn it into its wire form.

    Raises:
        InvalidInput: Not a circuit, not OpenQASM 2 or 3, an unreadable file, or, for the
            sampler, a circuit that measures nothing.
    """
    value = text_of(value, field=field)
    if isinstance(value, str):
        # One text, one digest: files may come with other line ends than the same text in Python.
        text = value.removeprefix("\ufeff").replace("\r\n", "\n")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidInput("text holds a lone surrogate, which is not valid UTF-8", field=field) from None
        program = scan(text, field=field)
        wrong = syntax_error(text, program.version)
        if wrong is not None:
            raise InvalidInput(
                f"not valid OpenQASM {program.version}: syntax error at {wrong}.",
                field=field,
                solution="Correct it there or just before; each statement ends with a semicolon.",
            )
        if sampler and not program.registers:
            raise InvalidInput("no classical register: the sampler returns what is measured into one", field=field)
        if sampler and not program.measures:
            raise InvalidInput(
                "nothing is measured, so the sampler would return nothing", field=field, solution=_MEASURE_IT
            )
        return Circuit(
            with_version(text),
            program.inputs,
            program.qubits,
            program.width,
            registers=tuple(name for name, _ in program.registers if name not in program.scalars),
            scalars=program.scalars,
        )
    if is_quantum_circuit(value):
        return _from_qiskit(value, sampler=sampler, field=field)
    if is_encoded_circuit(value):
        return Circuit({"__type__": "QuantumCircuit", "__value__": value["__value__"]})
    raise InvalidInput(
        f"{type(value).__name__} is not a circuit; use OpenQASM 2/3 text, a pathlib.Path, 'file:<path>' "
        "or a QuantumCircuit",
        field=field,
    )


def load_qpy(encoded: dict[str, Any], *, field: str) -> Any:
    """The `QuantumCircuit` of an encoded one. Needs qiskit.

    Raises:
        InvalidInput: qiskit is not installed, or the text is not QPY.
    """
    try:
        from qiskit import qpy
    except ImportError:
        raise InvalidInput(
            "an encoded circuit can only be read with qiskit: pip install 'prefect-qruntime[qiskit]'",
            field=field,
        ) from None
    try:
        return qpy.load(io.BytesIO(qpy_bytes(encoded, limit=_MAX_QPY_BYTES)))[0]
    except Exception as error:
        raise InvalidInput(f"not readable QPY: {type(error).__name__}: {error}", field=field) from None


def _from_qiskit(circuit: Any, *, sampler: bool, field: str) -> Circuit:
    loose = tuple(str(place) for place, bit in enumerate(circuit.clbits) if not circuit.find_bit(bit).registers)
    if sampler and not circuit.cregs and not loose:
        raise InvalidInput("no classical register: the sampler returns what is measured into one", field=field)
    if sampler and not _measures(circuit):
        raise InvalidInput(
            "nothing is measured, so the sampler would return nothing", field=field, solution=_MEASURE_IT
        )
    from qiskit import qpy

    target = io.BytesIO()
    try:
        qpy.dump(circuit, target, version=min(MAX_QPY_VERSION, qpy.QPY_VERSION))
    except Exception as error:
        raise InvalidInput(f"cannot be written as QPY: {type(error).__name__}: {error}", field=field) from None
    plain = target.getvalue()
    if len(plain) > _MAX_QPY_BYTES:
        raise InvalidInput("larger than the service's input limit", field=field)
    return Circuit(
        wire=encode_qpy(plain),
        inputs=tuple(parameter.name for parameter in circuit.parameters),
        qubits=circuit.num_qubits,
        width=circuit.num_clbits or None,
        registers=tuple(register.name for register in circuit.cregs),
        scalars=loose,
        identity=identity_of(circuit, plain),
        source=circuit,
    )


def _measures(circuit: Any) -> bool:
    """Whether anything is measured: at the top, in blocks, or inside a composite instruction."""
    return any(_operation_measures(item.operation) for item in circuit.data)


def _operation_measures(operation: Any) -> bool:
    if operation.name == "measure":
        return True
    if blocks := getattr(operation, "blocks", ()):
        return any(map(_measures, blocks))
    if not operation.num_clbits:
        return False
    definition = getattr(operation, "definition", None)
    # An instruction with bits and no definition is the backend's own: only the backend knows.
    return definition is None or _measures(definition)


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
        ValueError: Not base64, not zlib, or more than `limit` bytes.
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
